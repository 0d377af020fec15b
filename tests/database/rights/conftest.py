"""Fixtures of the tests of rights: roles, and databases that are closed or open to them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from servers.cluster import Cluster, Database
from servers.rights import ROLES
from servers.roles import login_roles


@pytest.fixture(scope="module")
def roles(cluster: Cluster) -> Iterator[None]:
    with login_roles(cluster, ROLES):
        yield


@pytest.fixture(scope="module")
def granted(cluster: Cluster, roles: None) -> Iterator[Database]:
    """A database as CREATE EXTENSION leaves it, with one role that may run workers."""
    database = cluster.create_database()
    database.execute("select net.grant_worker('rights_worker')")
    yield database
    database.drop()


@pytest.fixture(scope="module")
def closed(cluster: Cluster, roles: None) -> Iterator[Database]:
    """A database that is closed to PUBLIC: one role has USAGE, and one may run workers."""
    database = cluster.create_database()
    database.execute("revoke usage on schema net, pgnet from public")
    database.execute("grant usage on schema net, pgnet to rights_alice")
    database.execute("select net.grant_worker('rights_worker')")
    yield database
    database.drop()


@pytest.fixture
def own(database: Database, roles: None) -> Database:
    """A database for one test, loopback allowed; the roles exist."""
    database.execute("grant create on schema public to public")
    return database


@pytest.fixture(scope="module")
def served(cluster: Cluster, roles: None) -> Iterator[Database]:
    database = cluster.create_database()
    database.execute("select net.allow_network('loopback')")
    database.execute("grant create on schema public to public")
    with database.worker():
        yield database
    database.drop()
