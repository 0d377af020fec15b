"""Functions altered to SECURITY DEFINER, as migrations for pg_net do, lend nobody a secret."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors

from servers.cluster import Cluster, Database

URL = "http://127.0.0.1:1025/"
HEADERS = '{"X-K": {"secret": "k"}}'
# For each function that queues requests: a call that names the secret in a header, and one in its
# URL.
CALLS = {
    "http_get": "select net.http_get({url}, headers => {headers})",
    "http_post": "select net.http_post({url}, headers => {headers})",
    "http_delete": "select net.http_delete({url}, headers => {headers})",
    "http_request": "select net.http_request('GET', {url}, headers => {headers})",
    "http_put": "select net.http_put({url}, headers => {headers})",
    "http_patch": "select net.http_patch({url}, headers => {headers})",
    "http_head": "select net.http_head({url}, headers => {headers})",
}
PLAIN, NAMED = f"'{URL}'", "'http://127.0.0.1:1025/{secret:k}'"


@pytest.fixture(scope="module")
def visitor(cluster: Cluster) -> Iterator[str]:
    with cluster.connect() as connection:
        connection.execute("create role definer_visitor login")
        yield "definer_visitor"
        connection.execute("drop role definer_visitor")


@pytest.fixture
def secret(database: Database, visitor: str) -> Iterator[Database]:
    database.execute("select net.set_secret('k', 'a-long-secret-value', %s)", URL)
    database.execute("grant create on schema public to public")
    yield database
    database.drop()


def check(database: Database) -> tuple[bool, str, str | None]:
    row = database.row("select ok, detail, hint from net.check() where item = 'definer functions'")
    assert row is not None
    return row


def asks(connection: psycopg.Connection[Any], name: str) -> list[str | None]:
    """The errors that refuse two calls with the secret; None for a call that is accepted."""
    refusals: list[str | None] = []
    for url, headers in ((PLAIN, f"'{HEADERS}'"), (NAMED, "'{}'")):
        try:
            connection.execute(CALLS[name].format(url=url, headers=headers))
        except errors.InsufficientPrivilege as error:
            refusals.append(f"{error.diag.message_primary} {error.diag.message_hint}")
        else:
            refusals.append(None)
    return refusals


@pytest.mark.parametrize("altered", CALLS)
def test_an_altered_function(secret: Database, visitor: str, altered: str) -> None:
    """An altered function refuses secrets, also to roles that may use them; other calls work."""
    signature = secret.value("select %s::regproc::regprocedure::text", f"net.{altered}")
    secret.execute(f"alter function {signature} security definer")
    session = secret.connect(visitor)
    for refusal in asks(session, altered):
        assert refusal is not None
        assert (
            "was altered to SECURITY DEFINER: no request that it makes can name a secret" in refusal
        )
        assert f"alter function {signature} security invoker;" in refusal
    session.execute(CALLS[altered].format(url=PLAIN, headers="'{}'"))
    # The owner is told, with the statement that mends it.
    ok, detail, hint = check(secret)
    assert not ok
    assert signature in detail
    assert hint == f"alter function {signature} security invoker;"
    # A role that may use the secret still uses it by the other functions.
    secret.execute("select net.grant_secret('k', %s)", visitor)
    through = {altered} | (
        {"http_put", "http_patch", "http_head"} if altered == "http_request" else set()
    )
    for name in CALLS:
        assert [refusal is None for refusal in asks(session, name)] == [name not in through] * 2, (
            name
        )
    secret.execute(hint)
    assert check(secret)[0]
    assert asks(session, altered) == [None, None]


@pytest.mark.parametrize("helper", ["check_or_raise", "check_secret", "secret_prefix"])
def test_an_altered_helper(secret: Database, visitor: str, helper: str) -> None:
    signature = secret.value("select %s::regproc::regprocedure::text", f"pgnet.{helper}")
    secret.execute(f"alter function {signature} security definer")
    session = secret.connect(visitor)
    for name in CALLS:
        assert None not in asks(session, name), name
    assert not check(secret)[0]


def test_all_at_once(secret: Database, visitor: str) -> None:
    secret.execute(
        "do $$ declare f regprocedure; begin for f in select p.oid from pg_proc p"
        " where p.pronamespace = any ('{net,pgnet}'::regnamespace[]) and p.prokind = 'f' loop"
        " execute format('alter function %s security definer', f); end loop; end $$"
    )
    session = secret.connect(visitor)
    for name in CALLS:
        assert None not in asks(session, name), name


def test_a_function_that_lends_one_on_purpose(secret: Database, visitor: str) -> None:
    """A definer function of a user goes on working, and net.check names it."""
    secret.execute(
        f"create function public.lend() returns bigint language sql security definer"
        f" set search_path = pg_catalog, pg_temp"
        f" as $$ select net.http_get('{URL}', headers => '{HEADERS}') $$"
    )
    secret.connect(visitor).execute("select public.lend()")
    ok, detail, _hint = check(secret)
    assert ok
    assert "lend()" in detail
