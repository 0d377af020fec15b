"""Fixtures of the tests on coming from Supabase.

| fixture | lives | what |
|---|---|---|
| bare | the test | a database with the extension, and roles that a project has |
| project | the test | the same, into which the dump of a project was restored |
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from servers.cluster import Cluster, Database
from servers.httpd import Running
from servers.supabase import SCRIPT, dump, run

ROLES = ("anon", "supabase_admin", "supabase_mallory")


@pytest.fixture(scope="module")
def roles(cluster: Cluster) -> Iterator[None]:
    """Roles that a project has, and those of its dump."""
    with cluster.connect() as connection:
        for name in ROLES:
            connection.execute(f"create role {name} login")
    yield
    with cluster.connect() as connection:
        for name in (*ROLES, "supabase_functions_admin"):
            connection.execute(f"drop role if exists {name}")


@pytest.fixture
def bare(database: Database, roles: None) -> Iterator[Database]:
    yield database
    # Roles own objects in it, and are dropped with the module.
    database.drop()


@pytest.fixture
def project(bare: Database, witness: Running) -> Database:
    run(bare, SCRIPT.read_text())
    run(bare, dump(witness))
    return bare
