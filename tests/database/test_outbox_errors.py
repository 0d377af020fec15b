"""An error of the database is no lost connection: it is named once, and the rest goes on."""

from __future__ import annotations

from collections import Counter

import psycopg

from servers.cluster import Database
from servers.httpd import Running
from servers.traffic import queue, seen, targets, wait_for_states
from servers.waiting import wait_until
from servers.workers import serving


def test_a_claim_that_fails_stops_no_recording(database: Database, witness: Running) -> None:
    """An error of the worker's own SQL: what is in flight is recorded, over the same connection."""
    with database.worker() as worker:
        queue(database, f"{witness.url}/delay/1?#", 20)
        seen(witness, 20)
        pid = database.value("select pid from pgnet.worker")
        database.execute("alter function pgnet.claim_requests rename to claim_away")
        queue(database, f"{witness.url}/body/later", 5)
        wait_for_states(database, {"succeeded": 20, "ready": 5})
        wait_until(lambda: "claiming fails" in worker.output(), bool, "the log has it")
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
