"""Made-up requests that are queued by SQL reach a strict server just as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from servers import strict
from servers.cluster import Database
from servers.fuzz import SQL_CASES, TIMEOUT, Tally, ask_all, compare_all, fuzz
from servers.made_requests import (
    CANARY,
    PORT,
    Case,
    as_jsonb,
    json_text,
    local_hosts,
    no_hosts,
    pick,
)
from servers.strict import Strict


@pytest.fixture(scope="module")
def server() -> Iterator[Strict]:
    with strict.running() as running:
        yield running


@pytest.fixture(autouse=True)
def forget(server: Strict) -> None:
    server.take()


def storable(case: Case) -> bool:
    """Whether the database's text can hold it; what it cannot is not the extension's to refuse."""
    texts = f"{case.method}{case.url}{json_text(case.params)}{json_text(case.headers)}"
    if case.body is not None and case.body[0] != "body_bytes":
        texts += json_text(case.body[1])
    return not re.search(r"\0|\\u0000|[\ud800-\udfff]|\\ud[89a-f]", texts)


def call(connection: psycopg.Connection[Any], case: Case, port: int) -> int:
    """Queue a request; raises psycopg.Error."""
    arguments = {
        "method": case.method,
        "url": case.url.replace(PORT, str(port)),
        "params": json_text(case.params),
        "headers": json_text(case.headers),
    }
    extra = ""
    if case.body is not None:
        kind, value = case.body
        is_json = kind in ("body", "body_form")
        extra = f", {kind} => %(body)s" + ("::jsonb" if is_json else "")
        arguments["body"] = json_text(value) if is_json else value
    row = connection.execute(
        "select net.http_request(%(method)s, %(url)s, params => %(params)s::jsonb,"
        f" headers => %(headers)s::jsonb, timeout_milliseconds => {TIMEOUT}{extra})",
        arguments,
    ).fetchone()
    assert row is not None
    request_id: int = row[0]
    return request_id


def run_sql_batch(database: Database, server: Strict, batch: list[Case], tally: Tally) -> None:
    """Queue a batch, wait for its outcomes, and compare."""
    cases = [
        replace(case, params=as_jsonb(case.params), headers=as_jsonb(case.headers))
        for case in batch
        if storable(case)
    ]
    asked = ask_all(
        cases,
        server.port,
        True,
        lambda case: call(database.connection, case, server.port),
        psycopg.Error,
    )
    places = {one.outcome: place for place, one in enumerate(asked) if one.refusal is None}
    ids = list(places)
    database.wait_for(
        "select count(*) from net.responses where id = any(%s)",
        ids,
        predicate=len(ids).__eq__,
        timeout=2 * TIMEOUT / 1000,
    )
    answers = {
        places[id]: (status or 0, serial or error_msg)
        for id, status, serial, error_msg in database.rows(
            "delete from net._http_response where id = any(%s)"
            " returning id, status_code, headers->>'X-Serial', error_msg",
            ids,
        )
    }
    compare_all(asked, answers, server, tally)


@pytest.mark.timeout(max(120, SQL_CASES // 10))
def test_each_request_of_sql_arrives_so_too(database: Database, server: Strict) -> None:
    hosts = pick((18, local_hosts), (1, no_hosts))
    with database.worker():
        fuzz(hosts, SQL_CASES, lambda batch, tally: run_sql_batch(database, server, batch, tally))
        assert database.row("select count(*) from net.http_request_queue") == (0,)
    assert server.settle() == ([], [])
    # Nor did the server write a header's value where it wrote of what was refused.
    assert CANARY not in database.cluster.log.read_text(errors="replace")
