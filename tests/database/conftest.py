"""Fixtures of the tests that talk to a database; the others are those of tests/conftest.py.

| fixture | lives | what |
|---|---|---|
| worker | the test | a worker process for `database` |
| stoppable_cluster | the module | a cluster that a test may stop and crash |
| stoppable | the test | a database in `stoppable_cluster`, loopback allowed |
| httpd | the run | the URL of `witness`, without a slash at its end |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from servers.cluster import Cluster, Database, Worker
from servers.httpd import Running


@pytest.fixture
def worker(database: Database) -> Iterator[Worker]:
    with database.worker() as worker:
        yield worker


@pytest.fixture(scope="session")
def httpd(running_httpd: Running) -> str:
    return running_httpd.url


@pytest.fixture(scope="module")
def stoppable_cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    return make_cluster()


@pytest.fixture
def stoppable(stoppable_cluster: Cluster) -> Iterator[Database]:
    database = stoppable_cluster.create_database()
    database.execute("select net.allow_network('loopback')")
    yield database
    if not stoppable_cluster.running:
        stoppable_cluster.start()
    database.drop()
