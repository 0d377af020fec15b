"""Helpers of the tests of callbacks: their roles, a schema of the application, what was called."""

from __future__ import annotations

from typing import Any

import psycopg

from servers.cluster import Database

ALICE, BOB, WORKER = "cb_alice", "cb_bob", "cb_worker"
ROLES = (ALICE, BOB, WORKER)

# Each role has a schema of its own, with a table of what was called, and a callback.
_SCHEMA = """
create schema {role} authorization {role};
set role {role};
create table {role}.log (
    number bigint generated always as identity, id bigint, state text, status integer,
    content text, context jsonb, who text);
create function {role}.note(o net.outcome) returns void language sql as $$
    insert into {role}.log (id, state, status, content, context, who)
    values (o.id, o.state, o.status_code, o.content, o.context, current_user)
$$;
reset role;
"""


def prepare(database: Database) -> None:
    for role in (ALICE, BOB):
        database.execute(_SCHEMA.format(role=role))
    database.execute("select net.grant_worker(%s)", WORKER)
    # Pauses of half a minute would make the tests wait.
    database.execute("select net.configure('callback_attempts', '1')")


def value(connection: psycopg.Connection[Any], query: str, *arguments: Any) -> Any:
    row = connection.execute(query, arguments or None).fetchone()
    return None if row is None else row[0]


def define(connection: psycopg.Connection[Any], body: str, name: str = "cb_alice.hostile") -> None:
    """Create a callback in PL/pgSQL with this body."""
    connection.execute(
        f"create or replace function {name}(o net.outcome) returns void language plpgsql"
        f" as $callback$ {body} $callback$"
    )


def ask(
    connection: psycopg.Connection[Any], url: str, callback: str = "cb_alice.note", **more: Any
) -> int:
    """Queue a request with a callback; gives its id."""
    names = "".join(f", {name} => %({name})s" for name in more)
    found = connection.execute(
        f"select net.http_request('GET', %(url)s, on_response => %(callback)s{names})",
        {"url": url, "callback": callback, **more},
    ).fetchone()
    assert found is not None
    identity: int = found[0]
    return identity


def drain(database: Database, user: str = WORKER) -> None:
    """A session of a worker's role, which is no superuser, sends and calls all that is due."""
    with database.connect(user) as session:
        session.execute("call net.drain()")


def callback_of(database: Database, id: int) -> tuple[Any, ...] | None:
    return database.row(
        "select state, attempts, error_msg, error_code from net.callbacks where id = %s", id
    )


def log_of(database: Database, role: str = ALICE) -> list[tuple[Any, ...]]:
    return database.rows(f"select id, state, status, who from {role}.log order by number")
