"""The case file, through SQL: what a call queues, or the error it raises."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from servers.cluster import Cluster, Database

CASES: list[dict[str, Any]] = json.loads(
    Path(__file__).parents[1].joinpath("cases/requests.json").read_text(encoding="utf-8")
)
JSON_ARGUMENTS = ("body", "params", "headers", "body_form", "context", "options")
CASTS = {"method": "::text", "body_text": "::text", "body_bytes": "::bytea"}
ROWS = [pytest.param(case, id=case["name"]) for case in CASES if "row" in case]
ERRORS = [pytest.param(case, id=case["name"]) for case in CASES if "error" in case]


@pytest.fixture(scope="module")
def queue(cluster: Cluster) -> Iterator[Database]:
    """A database that no worker serves: what is queued stays."""
    database = cluster.create_database()
    database.execute("create role cases_caller login")
    yield database
    database.drop()
    with cluster.connect() as connection:
        connection.execute("drop role cases_caller")


@pytest.fixture(scope="module")
def caller(queue: Database) -> psycopg.Connection[Any]:
    """A role without any right of its own."""
    return queue.connect("cases_caller")


def call(connection: psycopg.Connection[Any], case: dict[str, Any]) -> int:
    arguments = dict(case["args"])
    for name in JSON_ARGUMENTS:
        value = arguments.get(name)
        if value is not None and not isinstance(value, str):
            arguments[name] = json.dumps(value, ensure_ascii=False)
    named = ", ".join(
        f"{name} => %({name})s{'::jsonb' if name in JSON_ARGUMENTS else CASTS.get(name, '')}"
        for name in arguments
    )
    row = connection.execute(f"select net.{case['call']}({named})", arguments).fetchone()
    assert row is not None
    request_id: int = row[0]
    return request_id


@pytest.mark.parametrize("case", ROWS)
def test_row(caller: psycopg.Connection[Any], case: dict[str, Any]) -> None:
    request_id = call(caller, case)
    found = caller.execute(
        "select jsonb_build_object('method', method, 'url', url,"
        " 'headers', coalesce(headers, '{}'), 'body_hex', encode(body, 'hex'),"
        " 'timeout_milliseconds', timeout_milliseconds, 'priority', priority,"
        " 'context', context, 'options', options, 'unique_key', unique_key,"
        " 'not_before', not_before at time zone 'UTC', 'not_after', not_after at time zone 'UTC')"
        " from net.http_request_queue left join pgnet.flow on request_id = id where id = %s",
        (request_id,),
    ).fetchone()
    assert found is not None
    body = found[0]["body_hex"]
    if "body" in case["row"]:
        found[0]["body"] = None if body is None else bytes.fromhex(body).decode()
    row = {name: found[0][name] for name in case["row"]}
    if row.get("headers", {}) is None:
        row["headers"] = {}
    assert row == case["row"]


@pytest.mark.parametrize("case", ERRORS)
def test_error(caller: psycopg.Connection[Any], case: dict[str, Any]) -> None:
    expected = case["error"]
    with pytest.raises(psycopg.Error) as caught:
        call(caller, case)
    diag = caught.value.diag
    assert diag.sqlstate == expected["sqlstate"]
    assert diag.message_primary is not None
    assert diag.message_primary == expected.get("message", diag.message_primary)
    assert expected.get("contains", "") in diag.message_primary
    assert expected.get("hint_contains", "") in (diag.message_hint or "")
    everything = "\n".join(
        getattr(diag, name) or ""
        for name in dir(diag)
        if not name.startswith("_")
        if isinstance(getattr(diag, name), str)
    )
    for secret in expected.get("hides", ()):
        assert secret not in everything
    assert "Traceback" not in everything


def test_a_refused_request_leaves_no_row(caller: psycopg.Connection[Any]) -> None:
    before = caller.execute("select count(*) from net.http_request_queue").fetchone()
    with pytest.raises(psycopg.Error):
        caller.execute("select net.http_get('mailto:x')")
    assert caller.execute("select count(*) from net.http_request_queue").fetchone() == before


def test_a_refused_request_can_be_caught(caller: psycopg.Connection[Any]) -> None:
    """In PL/pgSQL, by the condition's name, and what was queued beside it stands."""
    caller.execute(
        """
        do $$
        begin
            perform net.http_get('http://localhost/beside-a-refused-one');
            begin
                perform net.http_get('ftp://localhost/');
                raise exception 'it was taken';
            exception when invalid_parameter_value then
                null;
            end;
        end $$
        """
    )
    assert caller.execute(
        "select count(*) from net.http_request_queue where url like '%/beside-a-refused-one'"
    ).fetchone() == (1,)
