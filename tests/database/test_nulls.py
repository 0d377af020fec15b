"""NULL as an argument: it means none, gives NULL, or is refused; the COMMENT of each says which.

Each call is made with a literal, with a parameter in a generic and in a custom plan, and with a
column: a planner that knows an argument to be NULL may drop what would have raised.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors

from servers.cluster import Cluster, Database

INVALID = errors.InvalidParameterValue

# NULL in the place of the question mark
RAISING = {
    "net.http_get(?::text)": errors.NotNullViolation,
    "net.http_post(?::text)": errors.NotNullViolation,
    "net.http_delete(?::text)": errors.NotNullViolation,
    "net.http_put(?::text)": errors.NotNullViolation,
    "net.http_patch(?::text)": errors.NotNullViolation,
    "net.http_head(?::text)": errors.NotNullViolation,
    "net.http_request('GET', ?::text)": errors.NotNullViolation,
    "net.http_request(?::text, 'http://x/')": errors.NullValueNotAllowed,
    "net.multipart(?::jsonb)": INVALID,
    "net.secret_url(?::text)": INVALID,
    "net.set_secret(?::text, '0123456789')": INVALID,
    "net.grant_secret(?::text, 'postgres')": INVALID,
    "net.grant_secret('s', ?::text)": INVALID,
    "net.revoke_secret(?::text, 'postgres')": INVALID,
    "net.revoke_secret('s', ?::text)": INVALID,
    "net.configure(?::text, '1')": INVALID,
    "net.configure_host(?::text, '{}')": INVALID,
    "net.configure_retry(?::text, '{}')": INVALID,
    "net.allow_network(?::text)": INVALID,
    "net.deny_network(?::text)": INVALID,
    "net.forget_network(?::text)": INVALID,
    "net.allow_host(?::text)": INVALID,
    "net.deny_host(?::text)": INVALID,
    "net.forget_host(?::text)": INVALID,
    "net.grant_worker(?::text)": INVALID,
    "net.revoke_worker(?::text)": INVALID,
}
NULL = {
    "net._urlencode_string(?::text)",
    "net._encode_url_with_params_array(?::text, '{}')",
    "net._encode_url_with_params_array('http://x/', ?::text[])",
    "net.http_get_result(?::bigint)",
    "net.http_collect_response(?::bigint)",
    "net._await_response(?::bigint)",
    "(net.wait(?::bigint)).id",
    "net.retry(?::bigint)",
}


def forms(call: str) -> list[tuple[str, ...]]:
    kind = call.partition("?::")[2].split(",")[0].split(")")[0]
    parameter = call.replace(f"?::{kind}", "$1")
    return [
        (f"select {call.replace('?', 'null')}",),
        (
            "set plan_cache_mode = force_custom_plan",
            f"prepare p ({kind}) as select {parameter}",
            "execute p (null)",
        ),
        (
            "set plan_cache_mode = force_generic_plan",
            f"prepare q ({kind}) as select {parameter}",
            "execute q (null)",
        ),
        (f"select {call.replace('?', 't.x')} from (values (null::text)) t (x)",),
    ]


@pytest.fixture(scope="module")
def read_only(cluster: Cluster) -> Iterator[Database]:
    """A database with a secret, which no test here changes."""
    database = cluster.create_database()
    database.execute("select net.set_secret('s', '0123456789', 'http://x/')")
    yield database
    database.drop()


@pytest.fixture
def connection(read_only: Database) -> Iterator[psycopg.Connection[Any]]:
    """A session for one test: it prepares statements."""
    with read_only.connect() as connection:
        yield connection


@pytest.mark.parametrize("call", RAISING)
def test_refused(connection: psycopg.Connection[Any], call: str) -> None:
    for *before, last in forms(call):
        for statement in before:
            connection.execute(statement)
        with pytest.raises(RAISING[call]) as caught:
            connection.execute(last)
        assert "RAISE" not in (caught.value.diag.message_primary or "")


@pytest.mark.parametrize("call", sorted(NULL))
def test_null_gives_null(connection: psycopg.Connection[Any], call: str) -> None:
    for *before, last in forms(call):
        for statement in before:
            connection.execute(statement)
        assert connection.execute(last).fetchall() == [(None,)], last
