"""Fixtures of the tests of retries: the server with a script, a database that a worker serves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg.types.json import Jsonb

from servers.cluster import Cluster, Database
from servers.scripted import POLICIES, Scripted
from servers.workers import one_worker


@pytest.fixture(scope="module")
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    yield scripted
    scripted.close()


@pytest.fixture
def unknown_server() -> Iterator[Scripted]:
    """A server that no worker has a kept connection to."""
    scripted = Scripted()
    yield scripted
    scripted.close()


@pytest.fixture(scope="module", params=["process", "backend"])
def served(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Database]:
    """A database with the policies above and a worker of each kind."""
    database = cluster.create_database()
    database.execute("select net.allow_network('loopback')")
    # So many requests fail here that each host would be taken for broken; and a host that asks for
    # a pause would get it for the requests of the next test, too.
    learnt = {"breaker": False, "adaptive": False, "max_retry_after_milliseconds": 0}
    database.execute("select net.configure_host('*', %s)", Jsonb(learnt))
    for name, settings in POLICIES.items():
        database.execute("select net.configure_retry(%s, %s)", name, Jsonb(settings))
    with one_worker(database, request.param):
        yield database
        database.wait_for("select count(*) from pgnet.claim", predicate=lambda left: left == 0)
    database.drop()
