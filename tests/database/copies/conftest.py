"""Fixtures of the tests of copies: a database, and its copy by CREATE DATABASE … TEMPLATE."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from servers.cluster import Cluster, Database
from servers.copies import request, template_copy
from servers.httpd import Running


@pytest.fixture
def shop(database: Database) -> Database:
    """A database with an order table, whose worker is stopped."""
    database.execute("create table orders (id int primary key)")
    return database


@pytest.fixture
def copy(shop: Database, witness: Running) -> Iterator[Database]:
    """A copy of a database that has a request waiting, and one that was claimed."""
    request(shop, witness, "/claimed")
    shop.execute(
        "select pgnet.claim_requests(worker_id, 10, 10, 10, '{}', 1000, '')"
        " from pgnet.register_worker('backend')"
    )
    request(shop, witness, "/waiting")
    copy = template_copy(shop, f"{shop.name}_copy")
    yield copy
    copy.drop()


@pytest.fixture(scope="module")
def configured(make_cluster: Callable[..., Cluster]) -> Cluster:
    return make_cluster()
