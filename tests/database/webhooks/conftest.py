"""Fixtures of the tests of webhooks.

| fixture | lives | what |
|---|---|---|
| shop | the test | a table that a role owns and another role writes to: servers/shop.py |
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from servers.cluster import Cluster, Database
from servers.roles import login_roles
from servers.shop import HOSTILE, OWNER, WRITER, Shop


@pytest.fixture(scope="module")
def shop_roles(cluster: Cluster) -> Iterator[None]:
    with login_roles(cluster, (OWNER, WRITER, HOSTILE)):
        yield


@pytest.fixture
def shop(shop_roles: None, database: Database) -> Shop:
    return Shop(database)
