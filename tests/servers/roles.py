"""Roles that a module of tests makes, and drops again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from psycopg import sql

from servers.cluster import Cluster


@contextlib.contextmanager
def login_roles(cluster: Cluster, names: Iterable[str]) -> Iterator[None]:
    """Make roles that may log in; drop them at the end."""
    with cluster.connect() as connection:
        for name in names:
            connection.execute(sql.SQL("create role {} login").format(sql.Identifier(name)))
    yield
    with cluster.connect() as connection:
        for name in names:
            connection.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))
