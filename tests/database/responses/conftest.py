"""Fixtures of the tests of responses: a database that a worker serves, and one that none serves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from servers.cluster import Cluster, Database, Worker
from servers.responses import Canned


@pytest.fixture(scope="module")
def shared_database(cluster: Cluster) -> Iterator[Database]:
    database = cluster.create_database()
    database.execute("select net.allow_network('loopback')")
    yield database
    database.drop()


@pytest.fixture(scope="module")
def shared_worker(shared_database: Database) -> Iterator[tuple[ExitStack, list[Worker]]]:
    with ExitStack() as stack:
        # Requests that a test has left hanging are given back at the end, not waited for.
        yield stack, [stack.enter_context(shared_database.worker("--grace", "1"))]


@pytest.fixture
def served(
    shared_database: Database, shared_worker: tuple[ExitStack, list[Worker]]
) -> Iterator[Database]:
    """A database with a worker, shared by the tests that do not disturb each other."""
    stack, workers = shared_worker
    shared_database.execute("set statement_timeout = '30 s'")
    yield shared_database
    ended = workers[-1].process.poll()
    if ended is not None:
        # the test that ended it is at fault, not the next one
        workers.append(stack.enter_context(shared_database.worker("--grace", "1")))
        pytest.fail(f"the worker ended with {ended}; it wrote:\n{workers[-2].output()}")


@pytest.fixture
def unserved(database: Database) -> Database:
    """A database for one test, which no worker serves."""
    return database


@pytest.fixture
def canned() -> Iterator[Canned]:
    server = Canned()
    yield server
    server.close()
