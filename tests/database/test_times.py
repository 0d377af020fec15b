"""not_before and not_after: sent at the right time, or not at all."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from psycopg.types.json import Jsonb

from pgnet.outbox import Claim
from pgnet.worker.delivery import expiry_message
from servers.cluster import Cluster, Database
from servers.scripted import SLACK, Reply, Scripted, send
from servers.waiting import wait_until
from servers.workers import one_worker

UNSENT = "The request expired: its not_after passed before it was sent."


@pytest.fixture(scope="module")
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    yield scripted
    scripted.close()


@pytest.fixture(scope="module", params=["process", "backend"])
def served(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Database]:
    """A database with a worker of each kind, which is alone and sleeps for a minute."""
    database = cluster.create_database()
    database.execute("select net.allow_network('loopback')")
    database.execute(
        "select net.configure_retry('patient', %s)",
        Jsonb({"max_attempts": 3, "backoff_milliseconds": 10, "total_milliseconds": 800}),
    )
    with one_worker(database, request.param):
        yield database
    database.drop()


def outcome(database: Database, id: int) -> tuple[str, str | None, int]:
    """How a request ended: its state, its message, and its attempts."""
    found = database.row(
        "select (o).state::text, (o).error_msg, (o).attempts from net.wait(%s, '20 s') o", id
    )
    assert found is not None
    return found


def arrivals(database: Database, server: Scripted, ids: dict[str, int]) -> dict[str, float]:
    """How many seconds after its time each request came to the server, by URL."""
    for id in ids.values():
        assert outcome(database, id)[0] == "succeeded"
    return {url: server.seen(url)[0].at for url in ids}


# ---- not_before


def test_sent_at_its_time(served: Database, server: Scripted) -> None:
    """Also where it is earlier than one that the worker knows of, and where two are close."""
    begin = time.time()
    ids, times = {}, {}
    for given, seconds in {
        "2.5 s": 2.5, "00:00:01": 1.0, "1.03 seconds": 1.03, "PT0.4S": 0.4, "-1 day": 0.0,
    }.items():  # fmt: skip
        url = server.script(200)
        times[url] = time.time() + seconds
        ids[url] = send(served, "GET", url, options={"not_before": given})
    url = server.script(200)
    times[url] = begin + 3
    told = served.value("select to_timestamp(%s)::text", times[url])
    ids[url] = send(served, "GET", url, options={"not_before": told})
    for url, at in arrivals(served, server, ids).items():
        assert -0.001 <= at - times[url] <= SLACK, url
        assert len(server.seen(url)) == 1


def test_it_is_scheduled_until_then(served: Database, server: Scripted) -> None:
    url = server.script(200)
    id = send(served, "GET", url, options={"not_before": "1 hour"})
    assert served.row(
        "select state::text, next_attempt - now() between '59 min' and '1 hour', attempts"
        " from net.requests where id = %s",
        id,
    ) == ("scheduled", True, 0)
    assert served.value("select (net.http_get_result(%s)).status::text", id) == "PENDING"
    assert served.value("select (net.wait(%s, '1 ms')).state::text", id) == "scheduled"
    assert served.value("select net.cancel(%s)", id) is True
    assert outcome(served, id)[0] == "cancelled"
    assert server.seen(url) == []


def test_infinity_waits_until_it_is_cancelled(served: Database, server: Scripted) -> None:
    url = server.script(200)
    id = send(served, "GET", url, options={"not_before": "infinity"})
    other = send(served, "GET", server.script(200), options={"not_before": "0.5 s"})
    assert outcome(served, other)[0] == "succeeded"
    assert served.row("select state::text, next_attempt from net.requests where id = %s", id) == (
        "scheduled",
        None,
    )
    served.execute("select net.cancel(%s)", id)
    assert outcome(served, id)[0] == "cancelled"


def test_many_at_the_same_time(served: Database, server: Scripted) -> None:
    """More than a claim makes ready at once."""
    url = server.script(200)
    served.execute(
        "select net.http_request('GET', %s || '?' || n, timeout_milliseconds => 20000,"
        " options => jsonb_build_object('not_before', clock_timestamp() + interval '1 s'))"
        " from generate_series(1, 2500) n",
        url,
    )
    served.wait_for(
        "select count(*) from net._http_response"
        " where url like %s || '?%%' and status_code = 200", url, timeout=30,
        predicate=lambda count: count == 2500,
    )  # fmt: skip


def test_the_total_time_of_a_policy_counts_from_the_first_attempt(
    served: Database, server: Scripted
) -> None:
    url = server.script(503, 503, 200)
    id = send(served, "GET", url, retry="patient", options={"not_before": "1.5 s"})
    assert outcome(served, id) == ("succeeded", None, 3)


def test_roles_fall_due_in_turns(database: Database) -> None:
    """Thousands of one role at the same moment do not keep another role's from its time."""
    database.execute("create role times_alice")
    try:
        queue = (
            "select net.http_request('GET', 'http://localhost/' || n, options =>"
            " jsonb_build_object('not_before', clock_timestamp() + interval '0.05 s'))"
            " from generate_series(1, %s) n"
        )
        database.execute(queue, 2500)
        database.execute("set role times_alice")
        database.execute(queue, 3)
        database.execute("reset role")
        time.sleep(0.1)
        ready = (
            "select count(*) from net.http_request_queue"
            " where not held group by requested_by order by count(*)"
        )
        assert database.value("select pgnet.wake_due_requests()") == pytest.approx(0.02)
        assert database.rows(ready) == [(3,), (500,)]
        for _ in range(3):
            database.value("select pgnet.wake_due_requests()")
        assert database.rows(ready) == [(3,), (2500,)]
        assert database.value("select pgnet.wake_due_requests()") is None
    finally:
        database.drop()
        with database.cluster.connect() as connection:
            connection.execute("drop role times_alice")


def test_a_worker_looks_again_in_time(database: Database) -> None:
    """Where no wake-up told it, after another worker has put a time there."""
    poll = "select pgnet.next_poll(1, '{}', false)"
    assert database.value(poll) == 60
    for given, seconds in {"30 s": 30, "10 s": 10, "1 ms": 0.5}.items():
        send(database, "GET", "http://localhost/", options={"not_before": given})
        assert database.value(poll) == pytest.approx(seconds, abs=2)
    database.execute("delete from net.http_request_queue")
    database.execute("delete from pgnet.flow")
    send(database, "GET", "http://localhost/", options={"not_before": "infinity"})
    assert database.value(poll) == 60


# ---- not_after


def test_what_is_claimed_too_late_is_not_sent(served: Database, server: Scripted) -> None:
    url = server.script(200)
    id = send(served, "GET", url, options={"not_after": "-1 s"}, context={"order": 1})
    assert outcome(served, id) == ("expired", UNSENT, 0)
    assert served.row(
        "select status_code, timed_out, context, url, total_ms from net.responses where id = %s", id
    ) == (None, False, {"order": 1}, url, None)
    assert served.value("select (net.http_get_result(%s)).status::text", id) == "ERROR"
    assert served.value("select count(*) from net.attempts where request_id = %s", id) == 0
    assert served.value("select count(*) from net.failures where id = %s", id) == 0
    assert server.seen(url) == []


def test_what_is_sent_in_time_is_not_ended(served: Database, server: Scripted) -> None:
    """not_after is for the beginning of an attempt, not for its end."""
    url = server.script(Reply(after=2.5))
    id = send(served, "GET", url, options={"not_after": "1 s"})
    assert outcome(served, id) == ("succeeded", None, 1)


def test_what_nobody_may_claim_expires(served: Database, server: Scripted) -> None:
    """The worker has nothing else to do, and ends it in time."""
    url = server.script(200)
    served.execute("insert into pgnet.pause (host) values ('*')")
    try:
        began = time.monotonic()
        id = send(served, "GET", url, options={"not_after": "1 s"})
        scheduled = send(
            served, "GET", url, options={"not_before": "1 hour", "not_after": "61 minutes"}
        )
        assert outcome(served, id) == ("expired", UNSENT, 0)
        assert 1 <= time.monotonic() - began <= 3 + SLACK
    finally:
        served.execute("delete from pgnet.pause")
    assert served.value("select state::text from net.requests where id = %s", scheduled) == (
        "scheduled"
    )
    served.execute("select net.cancel(%s)", scheduled)


def test_no_attempt_begins_later(served: Database, server: Scripted) -> None:
    """The request ends at once, with its last answer."""
    url = server.script(Reply(503, {"Retry-After": "5"}), 200)
    began = time.monotonic()
    id = send(served, "GET", url, retry="safe", options={"not_after": "3 s"})
    assert outcome(served, id)[0] == "failed"
    assert time.monotonic() - began < 3
    assert served.row("select status_code, attempts from net.responses where id = %s", id) == (
        503,
        1,
    )
    assert served.value("select count(*) from net.failures where id = %s", id) == 1
    url = server.script(Reply(503, {"Retry-After": "1"}), 200)
    id = send(served, "GET", url, retry="safe", options={"not_after": "30 s"})
    assert outcome(served, id) == ("succeeded", None, 2)


def test_a_retry_that_comes_too_late_expires(database: Database, server: Scripted) -> None:
    """No worker ran while it was due."""
    url = server.script(Reply(503, {"Retry-After": "1"}), 200)
    id = send(database, "GET", url, retry="safe", options={"not_after": "1 hour"})
    with database.worker():
        database.wait_for("select state = 'retrying' from net.requests where id = %s", id)
    database.execute("update pgnet.flow set not_after = now() - interval '1 s'")
    database.execute("update net.http_request_queue set due = now() - interval '2 s'")
    with database.worker():
        state, message, attempts = outcome(database, id)
    assert (state, attempts) == ("expired", 1)
    assert message == "The request expired: its not_after passed before another attempt."
    assert database.rows("select attempt, state from net.attempts where request_id = %s", id) == [
        (1, "answered")
    ]
    assert len(server.seen(url)) == 1


def test_the_words_are_the_same_everywhere(database: Database) -> None:
    for attempt in (1, 2, 7):
        claim = Claim(1, "", attempt, 0, "GET", "", None, None, 1, None, "", 1, 0.0, None)
        told = database.value("select pgnet.expiry_message(%s)", attempt - 1)
        assert expiry_message(claim) == told


def test_many_expire_in_batches(database: Database) -> None:
    database.execute(
        "select net.http_request('GET', 'http://localhost/' || n,"
        ' options => \'{"not_after": "-1 s"}\') from generate_series(1, 2300) n'
    )
    send(database, "GET", "http://localhost/", options={"not_after": "1 hour"})
    left = "select count(*) from net.http_request_queue"
    waits = []
    for expected in (1301, 301, 1, 1):
        waits.append(database.value("select pgnet.expire_requests()"))
        assert database.value(left) == expected
    assert waits[:2] == [0.1, 0.1]
    assert waits[3] == pytest.approx(3600, abs=60)
    assert database.rows("select state::text, count(*) from net._http_response group by 1") == [
        ("expired", 2300)
    ]


def test_what_cannot_be_ended_stops_no_other(database: Database) -> None:
    """A trigger of the owner's refuses one: the others end, and the doctor names it."""
    database.execute(
        """
        create function public.refuse() returns trigger language plpgsql as $$
        begin
            if new.url like '%/refused' then raise exception 'not this one'; end if;
            return new;
        end $$;
        create trigger refuse before insert on net._http_response
            for each row execute function public.refuse();
        insert into pgnet.pause (host) values ('*');
        """
    )
    database.execute(
        "select net.http_request('GET', 'http://localhost/' || n,"
        ' options => \'{"not_after": "-1 s"}\')'
        " from (values ('a'), ('b'), ('refused'), ('c'), ('d')) v (n)"
    )
    with database.worker():
        database.wait_for("select count(*) = 4 from net._http_response where state = 'expired'")
        database.wait_for(
            "select detail like '%not this one%' from net.check() where item = 'heartbeat'"
        )
        assert database.value("select url from net.http_request_queue") == (
            "http://localhost/refused"
        )
        database.execute("drop trigger refuse on net._http_response")
        database.execute("update net.http_request_queue set due = now()")
        database.execute("select net.wake()")
        database.wait_for("select count(*) = 5 from net._http_response where state = 'expired'")
        wait_until(lambda: database.rows("select * from pgnet.fault"), lambda faults: faults == [])


def test_a_cancelled_one_does_not_expire(database: Database) -> None:
    id = send(database, "GET", "http://localhost/", options={"not_after": "-1 s"})
    database.execute("select net.cancel(%s)", id)
    database.execute("select pgnet.expire_requests()")
    assert database.value("select count(*) from net._http_response") == 0
    with database.worker():
        assert outcome(database, id)[0] == "cancelled"
