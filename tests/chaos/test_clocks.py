"""A worker whose clock is wrong: what is compared across machines goes by the database's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from chaos import server
from chaos.tally import Tally
from chaos.workers import ProcessWorker
from servers.cluster import Database
from servers.httpd import Running
from servers.waiting import wait_until


@contextlib.contextmanager
def worker_at(database: Database, offset: str) -> Iterator[ProcessWorker]:
    """A worker process whose clock is wrong by this offset."""
    single = server.faketime()
    assert single is not None, "libfaketime is not installed here: make deps"
    worker = ProcessWorker(
        "a worker with another clock",
        database.dsn(),
        database.cluster.directory,
        Tally(),
        environment={
            # the one for processes with threads
            "LD_PRELOAD": str(single.with_name("libfaketimeMT.so.1")),
            "FAKETIME": offset,
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        },
    )
    worker.start()
    try:
        database.wait_for("select count(*) > 0 from pgnet.worker", timeout=20)
        yield worker
    finally:
        worker.stop()
    assert worker.findings == []


@pytest.mark.parametrize("offset", ["-2d", "+2d"])
def test_a_claim_ends_by_the_databases_clock(
    database: Database, witness: Running, offset: str
) -> None:
    with worker_at(database, offset):
        database.execute(
            "select net.http_request('GET', %s, timeout_milliseconds => 1500)",
            f"{witness.url}/hang",
        )
        wait_until(lambda: len(witness.record()), (1).__eq__, "the request is seen")
        left = database.value(
            "select extract(epoch from deadline - clock_timestamp()) from pgnet.claim"
        )
        assert 50 < left < 70
        database.wait_for("select count(*) = 1 from net._http_response")
    assert len(witness.record()) == 1


@pytest.mark.parametrize("offset", ["-2d", "+2d"])
def test_retries_wait_by_the_databases_clock(
    database: Database, witness: Running, offset: str
) -> None:
    with worker_at(database, offset):
        database.execute("select net.configure_retry('soon', '{\"backoff_milliseconds\": 100}');")
        database.execute(
            "select net.http_request('GET', %s, retry => 'soon', max_attempts => 3)",
            f"{witness.url}/status/503",
        )
        database.wait_for("select attempts = 3 from net._http_response")
    assert len(witness.record()) == 3


def test_what_waits_is_sent_when_the_clock_is_put_back(
    database: Database, witness: Running
) -> None:
    """A request waits 1 s for its next attempt; before that the clock goes back by a day."""
    database.execute(
        "select net.http_request('GET', %s, retry => 'safe')", f"{witness.url}/status/503"
    )
    database.execute("call net.drain('1 s')")
    # To the database it is the same: all times that were set are a day ahead.
    database.execute(
        "update net.http_request_queue set due = due + interval '1 day',"
        " waits_since = waits_since + interval '1 day'"
    )
    seen = len(witness.record())
    with database.worker():
        wait_until(lambda: len(witness.record()), lambda count: count > seen, "it is sent again")


def test_a_claim_is_rescued_when_the_clock_is_put_back(
    database: Database, witness: Running
) -> None:
    database.execute(
        "select net.http_get(%s, timeout_milliseconds => 30000)", witness.url + "/hang"
    )
    with database.worker() as worker:
        wait_until(lambda: len(witness.record()), (1).__eq__, "the request is seen")
        worker.kill()
    database.wait_for(
        "select not bool_or(pgnet.session_is_alive(pid, backend_start)) from pgnet.worker"
    )
    with database.worker("--grace", "0") as other:
        database.wait_for("select count(*) = 1 from pgnet.worker where gone_since is not null")
        database.execute(
            "update pgnet.claim set claimed = claimed + interval '1 day',"
            " deadline = deadline + interval '1 day'"
        )
        database.execute("update pgnet.worker set gone_since = gone_since + interval '1 day'")
        wait_until(lambda: len(witness.record()), (2).__eq__, "it is sent again")
        assert other.process.poll() is None
