"""Fixtures of the tests with httpbin: its URL, and what asks it, by either kind of worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from servers import httpbind
from servers.asker import Asker
from servers.cluster import Cluster, Database


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    """httpbin's URL, without a slash at its end."""
    with httpbind.running() as url:
        yield url


@pytest.fixture(scope="module")
def with_process(cluster: Cluster) -> Iterator[Database]:
    """A database that a worker process serves."""
    database = cluster.create_database()
    database.execute("select net.allow_network('loopback')")
    with database.worker():
        yield database
    database.drop()


@pytest.fixture(scope="module")
def with_backend(cluster: Cluster) -> Iterator[Database]:
    """A database without a worker: the test that asks also drains."""
    database = cluster.create_database()
    database.execute("select net.allow_network('loopback')")
    yield database
    database.drop()


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    return str(getattr(request, "param", "process"))


@pytest.fixture
def ask(request: pytest.FixtureRequest, base: str, kind: str) -> Asker:
    database = request.getfixturevalue(f"with_{kind}")
    return Asker(database, base, kind == "backend")
