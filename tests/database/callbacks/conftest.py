"""Fixtures of the tests of callbacks.

| fixture | lives | what |
|---|---|---|
| callback_roles | the module | cb_alice, cb_bob, cb_worker |
| scene | the test | a database where each role has a schema, a log and a callback `note` |
| alice, bob | the test | their connections to it |
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from servers.callback_scene import ALICE, BOB, ROLES, prepare
from servers.cluster import Cluster, Database
from servers.roles import login_roles


@pytest.fixture(scope="module")
def callback_roles(cluster: Cluster) -> Iterator[None]:
    with login_roles(cluster, ROLES):
        yield


@pytest.fixture
def scene(callback_roles: None, database: Database) -> Iterator[Database]:
    prepare(database)
    yield database
    # Its roles own objects in it.
    database.drop()


@pytest.fixture
def alice(scene: Database) -> psycopg.Connection[Any]:
    return scene.connect(ALICE)


@pytest.fixture
def bob(scene: Database) -> psycopg.Connection[Any]:
    return scene.connect(BOB)
