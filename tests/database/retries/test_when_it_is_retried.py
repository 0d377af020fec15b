"""When a request is attempted again: backoff, Retry-After, and what waits beside it."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from servers.cluster import Database
from servers.scripted import SLACK, Reply, Scripted, attempts, ended, errors_of, gaps, send, waiting
from servers.waiting import wait_until
from servers.workers import one_worker


def test_the_backoff_grows_and_is_drawn_anew(served: Database, server: Scripted) -> None:
    urls = [server.script(503) for _ in range(20)]
    ids = [send(served, "GET", url, retry="growing") for url in urls]
    assert [ended(served, id) for id in ids] == [("failed", 503, 4)] * 20
    drawn: list[list[float]] = [[], [], []]
    for url, id in zip(urls, ids, strict=True):
        attempts = served.rows(
            "select attempt, extract(epoch from retry_in)::float8 from net.attempts"
            " where request_id = %s and retry_in is not null order by 1",
            id,
        )
        assert [attempt for attempt, _ in attempts] == [1, 2, 3]
        for (attempt, retry_in), gap in zip(attempts, gaps(server.seen(url)), strict=True):
            drawn[attempt - 1].append(retry_in)
            assert retry_in - 0.05 <= gap <= retry_in + SLACK
    for bound, values in zip((0.1, 0.3, 0.5), drawn, strict=True):
        assert min(values) >= 0
        assert max(values) <= bound
        assert max(values) - min(values) > bound / 5
    # Twenty numbers from 0 to 0.5 are not all below 0.3: it has grown.
    assert max(drawn[2]) > 0.3


def test_requests_that_wait_are_seen(served: Database, server: Scripted) -> None:
    url = server.script(503)
    id = send(served, "GET", url, retry="slow")
    waiting(served, id)
    row = served.row(
        "select status_code, error_msg, attempts, next_attempt - now(), ended from net.requests"
        " where id = %s",
        id,
    )
    assert row is not None
    assert (row[0], row[2]) == (503, 1)
    assert row[1].startswith("Attempt 2 follows at ")
    assert row[1].endswith(" Attempt 1 ended with: status 503")
    assert 0 <= row[3].total_seconds() <= 86400
    assert row[4] is None
    status, message = served.rows("select status::text, message from net.http_get_result(%s)", id)[
        0
    ]
    assert status == "PENDING"
    assert message
    outcome = served.row("select state::text, attempts from net.wait(%s, '50 ms')", id)
    assert outcome == ("retrying", 1)
    assert attempts(served, id) == [(1, "answered", 503)]
    assert served.value("select net.cancel(%s)", id) is True
    assert ended(served, id)[0] == "cancelled"
    message = served.value("select error_msg from net.requests where id = %s", id)
    assert message == "The request was cancelled before another attempt."
    assert len(server.seen(url)) == 1


def test_no_attempt_begins_after_the_total_time(served: Database, server: Scripted) -> None:
    url = server.script(503)
    id = send(served, "GET", url, retry="short")
    state, status, made = ended(served, id)
    assert (state, status) == ("failed", 503)
    assert 2 <= made < 1000
    started, all_of_it = served.rows(
        "select extract(epoch from max(a.started) - r.requested)::float8,"
        " extract(epoch from r.created - r.requested)::float8"
        " from net.attempts a join net.responses r on r.id = a.request_id where r.id = %s"
        " group by r.id, r.requested, r.created",
        id,
    )[0]
    assert started <= 1.5 + SLACK
    assert all_of_it <= 1.5 + SLACK
    attempts = served.rows(
        "select extract(epoch from a.ended - r.requested + a.retry_in)::float8"
        " from net.attempts a join net.responses r on r.id = a.request_id"
        " where r.id = %s and a.retry_in is not null",
        id,
    )
    # The waits were planned within the bound; between an answer and its recording a moment passes.
    assert max(planned for (planned,) in attempts) <= 1.5 + 0.5


# ---- Retry-After


def test_retry_after_in_seconds(served: Database, server: Scripted) -> None:
    urls = [server.script(Reply(status, {"Retry-After": "1"}), 200) for status in (429, 503)]
    ids = [send(served, "GET", url, retry="quick") for url in urls]
    assert [ended(served, id) for id in ids] == [("succeeded", 200, 2)] * 2
    for url in urls:
        assert 0.95 <= gaps(server.seen(url))[0] <= 1.04 + SLACK


@pytest.mark.parametrize("ahead", [0, -3600, 86400], ids=lambda seconds: f"clock{seconds:+}")
def test_retry_after_as_a_date(served: Database, server: Scripted, ahead: int) -> None:
    """The server's clock is its own: its Date says what it is."""
    then = time.time() + ahead
    headers = {
        "Date": formatdate(then, usegmt=True),
        "Retry-After": formatdate(then + 1, usegmt=True),
    }
    url = server.script(Reply(503, headers), 200)
    assert ended(served, send(served, "GET", url, retry="quick")) == ("succeeded", 200, 2)
    assert 0.95 <= gaps(server.seen(url))[0] <= 1.04 + SLACK


def test_retry_after_as_a_date_without_another(served: Database, server: Scripted) -> None:
    """The date is compared with the worker's clock; a date has whole seconds."""
    date = formatdate(time.time() + 3, usegmt=True)
    url = server.script(Reply(503, {"Retry-After": date}), 200)
    assert ended(served, send(served, "GET", url, retry="quick")) == ("succeeded", 200, 2)
    assert 1 <= gaps(server.seen(url))[0] <= 3.04 + SLACK


def test_retry_after_is_cut(served: Database, server: Scripted) -> None:
    url = server.script(Reply(503, {"Retry-After": "86400"}), 200)
    assert ended(served, send(served, "GET", url, retry="hasty")) == ("succeeded", 200, 2)
    assert 0.55 <= gaps(server.seen(url))[0] <= 0.6 + SLACK


@pytest.mark.parametrize("retry_after", ["soon", "-5", "1.5", "", "Wed, 32 Foo 2020 00:00:00 GMT"])
def test_rubbish_asks_for_nothing(served: Database, server: Scripted, retry_after: str) -> None:
    url = server.script(Reply(503, {"Retry-After": retry_after}), 200)
    id = send(served, "GET", url, retry="quick")
    assert ended(served, id) == ("succeeded", 200, 2)
    retry_in = served.value(
        "select extract(epoch from retry_in) from net.attempts where request_id = %s"
        " and attempt = 1",
        id,
    )
    assert retry_in <= 0.04


def test_retry_after_beyond_the_total_time(served: Database, server: Scripted) -> None:
    """An attempt before that time is pointless: the request ends at once."""
    url = server.script(Reply(503, {"Retry-After": "60"}), 200)
    assert ended(served, send(served, "GET", url, retry="short")) == ("failed", 503, 1)


# ---- beside other requests


def test_those_that_wait_are_in_nobody_s_way(served: Database, server: Scripted) -> None:
    """Two thousand of the same host wait: a new request goes out at once."""
    url = server.script(503)
    served.execute(
        "select net.http_request('GET', %s, retry => 'slow', timeout_milliseconds => 20000)"
        " from generate_series(1, 2000)",
        url,
    )
    served.wait_for(
        "select count(*) from net.requests where url = %s and state = 'retrying'", url,
        predicate=lambda n: n == 2000, timeout=60,
    )  # fmt: skip
    started = time.monotonic()
    for _ in range(5):
        assert ended(served, send(served, "GET", server.script(200)))[0] == "succeeded"
    assert time.monotonic() - started < 5
    served.execute("select net.cancel(id) from net.requests where url = %s", url)


def test_a_hundred_thousand_that_wait_cost_nothing(database: Database) -> None:
    """Neither a claim nor a heartbeat reads waiting rows: indexes lead to those that are due."""

    def least(call: str) -> float:
        took = []
        for _ in range(10):
            started = time.monotonic()
            database.execute(f"select {call}")
            took.append(time.monotonic() - started)
        return min(took)

    worker = database.value("select worker_id from pgnet.register_worker('process')")
    calls = (
        f"count(*) from pgnet.claim_requests({worker}, 1, 1, 1, '{{}}', 1, '')",
        f"pgnet.heartbeat({worker})",
    )
    before = [least(call) for call in calls]
    database.execute(
        "insert into net.http_request_queue (method, url, due, waits_since)"
        " select 'GET', 'http://127.0.0.1:1/', now() + interval '1 hour' + n * interval '10 ms',"
        " now() from generate_series(1, 100000) n"
    )
    database.execute(
        "insert into net._http_response"
        " (id, state, attempts, method, url, requested_by, requested, timed_out, created)"
        " select 1000000 + n, 'succeeded', 1, 'GET', 'http://127.0.0.1/', 'postgres'::regrole,"
        " now(), false, now() - n * interval '10 ms' from generate_series(1, 100000) n"
    )
    after = [least(call) for call in calls]
    for one_before, one_after in zip(before, after, strict=True):
        assert one_after < one_before * 3 + 0.05


@pytest.mark.parametrize("kind", ["process", "backend"])
def test_waiting_outlives_the_worker(database: Database, server: Scripted, kind: str) -> None:
    url = server.script(Reply(503, {"Retry-After": "1"}), Reply(503, {"Retry-After": "1"}), 200)
    id = send(database, "GET", url, retry="safe")
    with one_worker(database, kind):
        waiting(database, id)
    # A worker that comes later takes it when it is due, and goes on counting.
    with one_worker(database, kind):
        assert ended(database, id) == ("succeeded", 200, 3)
    assert min(gaps(server.seen(url))) >= 0.95
    assert attempts(database, id) == [
        (1, "answered", 503), (2, "answered", 503), (3, "succeeded", 200),
    ]  # fmt: skip


def test_an_attempt_that_was_lost_with_its_worker_does_not_count(
    database: Database, server: Scripted
) -> None:
    """The policy does not count it as an attempt, and the idempotency key stays the same."""
    url = server.script(Reply(after=30.0), 503, 200)
    database.execute("select net.configure('rescue_after', '1 s')")
    id = send(
        database, "POST", url, retry="safe", max_attempts=2, timeout_milliseconds=60_000,
        options={"idempotency_key": "the-same"},
    )  # fmt: skip
    with database.worker() as first:
        wait_until(lambda: len(server.seen(url)), lambda n: n == 1, "the first attempt is there")
        with database.worker():
            first.kill()
            assert ended(database, id) == ("succeeded", 200, 3)
    assert attempts(database, id) == [
        (1, "lost", None), (2, "answered", 503), (3, "succeeded", 200),
    ]  # fmt: skip
    assert [seen.key for seen in server.seen(url)] == ["the-same"] * 3
    assert errors_of(database, id)[0] == "The worker was lost."


def test_who_stays_takes_over_what_waits(database: Database, server: Scripted) -> None:
    """The worker that put a request back is gone when it falls due."""
    url = server.script(Reply(503, {"Retry-After": "2"}), 200)
    with database.worker() as first:
        id = send(database, "GET", url, retry="safe")
        waiting(database, id)
        with database.worker():
            first.kill()
            assert ended(database, id) == ("succeeded", 200, 2)
    assert 1.95 <= gaps(server.seen(url))[0] <= 3 + SLACK


def test_drain_sends_what_is_due_and_waits_for_nothing(
    database: Database, server: Scripted
) -> None:
    # A drain waits for what falls due within a second.
    url = server.script(Reply(503, {"Retry-After": "3"}), 200)
    id = send(database, "GET", url, retry="safe")
    started = time.monotonic()
    database.execute("call net.drain()")
    assert time.monotonic() - started < SLACK
    assert database.value("select state::text from net.requests where id = %s", id) == "retrying"

    def drained() -> tuple[str, int | None, int]:
        database.execute("call net.drain()")
        return ended(database, id, "50 ms")

    wait_until(drained, lambda outcome: outcome == ("succeeded", 200, 2), "sent by another drain")


def test_a_policy_that_cannot_be_read_spoils_nothing(database: Database, server: Scripted) -> None:
    """A policy that was written by hand and cannot be read retries nothing; all others work."""
    database.execute("insert into pgnet.retry_policy values ('odd', '{\"statuses\": [\"many\"]}')")
    urls = [server.script(503, 200), server.script(503, 200)]
    with database.worker() as worker:
        ids = [
            send(database, "GET", url, retry=name)
            for url, name in zip(urls, ("odd", "safe"), strict=True)
        ]
        assert [ended(database, id) for id in ids] == [("failed", 503, 1), ("succeeded", 200, 2)]
        assert worker.output().count('retry policy "odd": "many" is not a status code') == 1


def test_a_row_by_hand_with_a_policy_that_is_none(served: Database, server: Scripted) -> None:
    """An option that net.http_request refuses may be inserted, and has no effect."""
    url = server.script(503, 200)
    id = served.value(
        "insert into net.http_request_queue (method, url, options)"
        " values ('GET', %s, '{\"retry\": \"no such\"}') returning id",
        url,
    )
    served.execute("select net.wake()")
    assert ended(served, id) == ("failed", 503, 1)
