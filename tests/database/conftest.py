"""Fixtures of the tests that talk to a database; the others are those of tests/conftest.py.

| fixture | lives | what |
|---|---|---|
| worker | the test | a worker process for `database` |
| httpd | the run | the URL of our server that misbehaves, without a slash at its end |
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from servers import httpd as server
from servers.cluster import Database, Worker


@pytest.fixture
def worker(database: Database) -> Iterator[Worker]:
    with database.worker() as worker:
        yield worker


@pytest.fixture(scope="session")
def httpd() -> Iterator[str]:
    with server.running() as running:
        yield running.url.rstrip("/")
