"""Fixtures of the tests of bad answers: the server that gives them, a database that asks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from servers.cluster import Cluster, Database
from servers.raw import Raw, prepare
from servers.workers import one_worker


@pytest.fixture(scope="module")
def server() -> Iterator[Raw]:
    raw = Raw()
    yield raw
    raw.close()


@pytest.fixture(scope="module", params=["process", "backend"])
def served(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Database]:
    database = cluster.create_database()
    prepare(database)
    with one_worker(database, request.param):
        yield database
        database.wait_for("select count(*) from pgnet.claim", predicate=lambda left: left == 0)
    database.drop()
