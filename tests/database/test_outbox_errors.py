"""An error of the database is no lost connection: it is named once, and the rest goes on."""

from __future__ import annotations

from collections import Counter

import psycopg
import pytest

from pgnet.outbox import OutboxFailed, OutboxUnregistered, ends_session, translate_error
from pgnet.worker.backoff import Backoff
from servers.cluster import Database
from servers.httpd import Running
from servers.traffic import queue, seen, targets, wait_for_states
from servers.waiting import wait_until
from servers.workers import serving


@pytest.mark.parametrize(
    ("sqlstate", "said", "brief"),
    [
        ("53100", "disk of the database server is full", False),
        ("53200", "out of memory", False),
        ("53400", "lacks a resource", False),
        ("42501", "select net.grant_worker(", False),
        ("55P03", "pg_blocking_pids", True),
        ("40P01", "it happened", True),
        ("40001", "it happened", True),
        ("57014", "statement_timeout", False),
        ("25006", "standby", False),
        ("58030", "file system", False),
        ("42703", "it happened", False),
        ("22021", "it happened", False),
    ],
)
def test_each_error_has_its_words(sqlstate: str, said: str, brief: bool) -> None:
    error = translate_error(sqlstate, "it happened.", None, lambda: False)
    assert isinstance(error, OutboxFailed)
    assert said in str(error)
    assert str(error).startswith("it happened")
    assert ".." not in str(error)
    assert error.brief == brief
    assert not ends_session(sqlstate)


@pytest.mark.parametrize("sqlstate", ["57P01", "57P02", "57P03", "57P05", "25P03", "08006"])
def test_these_end_the_session(sqlstate: str) -> None:
    assert ends_session(sqlstate)


@pytest.mark.parametrize("sqlstate", ["3F000", "42883", "42P01", "XX000"])
def test_an_extension_that_is_gone(sqlstate: str) -> None:
    assert isinstance(
        translate_error(sqlstate, "no schema", None, lambda: True), OutboxUnregistered
    )
    assert isinstance(translate_error(sqlstate, "no schema", None, lambda: False), OutboxFailed)


def test_the_log_says_it_once(caplog: pytest.LogCaptureFixture) -> None:
    backoff = Backoff("claiming")
    for _ in range(20):
        backoff.failed(OutboxFailed("no room"))
    backoff.failed(OutboxFailed("no memory"))
    backoff.succeeded()
    backoff.succeeded()
    assert [record.getMessage() for record in caplog.records] == [
        "claiming fails, and is tried again: no room",
        "claiming fails, and is tried again: no memory",
        "claiming works again",
    ]
    caplog.clear()
    backoff.failed(OutboxFailed("a lock", brief=True))
    backoff.succeeded()
    assert caplog.records == []


def test_a_claim_that_fails_stops_no_recording(database: Database, witness: Running) -> None:
    """An error of the worker's own SQL: what is in flight is recorded, over the same connection."""
    with database.worker() as worker:
        queue(database, f"{witness.url}/delay/1?#", 20)
        seen(witness, 20)
        pid = database.value("select pid from pgnet.worker")
        database.execute("alter function pgnet.claim_requests rename to claim_away")
        queue(database, f"{witness.url}/body/later", 5)
        wait_for_states(database, {"succeeded": 20, "ready": 5})
        wait_until(lambda: "claiming fails" in worker.output(), bool, "it is said")
        database.execute("alter function pgnet.claim_away rename to claim_requests")
        wait_for_states(database, {"succeeded": 25})
        assert database.rows("select pid from pgnet.worker") == [(pid,)]
        assert worker.output().count("\n") == 2, worker.output()
        assert "out of reach" not in worker.output()
    assert set(Counter(targets(witness)).values()) <= {1, 5}


def test_a_cancelled_statement_of_a_process(database: Database, witness: Running) -> None:
    """Somebody cancels whatever the worker does, again and again: nothing is lost or sent twice."""
    with database.worker() as worker:
        for number in range(10):
            queue(database, f"{witness.url}/delay/0.1?{number}-#", 20)
            for _ in range(20):
                database.execute("select pg_cancel_backend(pid) from pgnet.worker")
        wait_for_states(database, {"succeeded": 200})
        assert set(Counter(targets(witness)).values()) == {1}
        assert worker.process.poll() is None
        assert "out of reach" not in worker.output()


def test_net_work_ends_when_its_role_is_no_worker_any_more(
    database: Database, witness: Running
) -> None:
    database.execute("drop role if exists was_a_worker")
    database.execute("create role was_a_worker login")
    try:
        database.execute("select net.grant_worker('was_a_worker')")
        with serving(database, user="was_a_worker") as session:
            database.execute("select net.revoke_worker('was_a_worker')")
            database.execute("select net.http_get(%s)", f"{witness.url}/body/x")
            error = session.ended()
            assert isinstance(error, psycopg.errors.InsufficientPrivilege), error
    finally:
        database.execute("drop owned by was_a_worker")
        database.execute("drop role was_a_worker")
