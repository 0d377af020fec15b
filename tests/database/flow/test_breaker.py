"""Circuit breakers: hosts that are down, and what becomes of their requests."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

import pytest

from servers.cluster import Database
from servers.moody import Moody
from servers.waiting import wait_until
from servers.workers import as_backend, as_process

BRIEF = {"open_milliseconds": 200, "max_open_milliseconds": 400}


@pytest.fixture
def moody() -> Iterator[Moody]:
    server = Moody()
    yield server
    server.mood = 200
    server.down()


def configure(database: Database, **settings: Any) -> None:
    database.execute("select net.configure_host('*', %s)", json.dumps(settings))


def send(database: Database, moody: Moody, count: int, retry: str | None = "safe") -> list[int]:
    return [
        id
        for (id,) in database.rows(
            "select net.http_request('GET', %s || n, retry => %s, timeout_milliseconds => 10000)"
            " from generate_series(1, %s) n",
            f"{moody.url}/",
            retry,
            count,
        )
    ]


def state(database: Database) -> Any:
    return database.value("select max(state) from pgnet.host_state")


def events(database: Database) -> list[tuple[str, int | None]]:
    return database.rows("select event, percent from net.host_events order by happened, percent")


@pytest.mark.parametrize("form", [as_process, as_backend])
def test_it_opens_and_requests_wait(database: Database, moody: Moody, form: Any) -> None:
    configure(database, breaker={"open_milliseconds": 60_000})
    moody.down()
    send(database, moody, 100, None)
    with form(database):
        database.wait_for("select state = 'open' from pgnet.host_state")
        database.wait_for("select count(*) between 20 and 64 from net._http_response")
        row = database.rows(
            "select host, role, why, next_probe - now() from net.hosts where state = 'open'"
        )[0]
        assert row[:2] == (f"127.0.0.1:{moody.port}", "postgres")
        assert "failures in a row, where 20 open it; the last: connect" in row[2]
        assert 50 < row[3].total_seconds() <= 60
        ended = database.value("select count(*) from net._http_response")
        # A host that is well shows that the worker looks.
        moody.up()
        other = Moody()
        database.execute("select net.http_get(%s)", other.url)
        database.wait_for("select count(*) = %s from net._http_response", ended + 1)
        other.down()
        waiting = "select count(*), max(attempts) from net.requests where state = 'ready'"
        assert database.rows(waiting) == [(100 - ended, 0)]
        assert moody.arrivals == []
    percents = [percent for event, percent in events(database) if event == "alert"]
    assert percents == [50, 70, 90, 100]
    _item, well, detail, hint = database.rows(
        "select * from net.check() where item = 'circuit breakers'"
    )[0]
    assert not well
    assert f"127.0.0.1:{moody.port} for role postgres (open since" in detail
    assert "net.hosts" in hint


def test_a_host_that_comes_back_gets_its_requests(database: Database, moody: Moody) -> None:
    """Nothing is lost, attempts are not burned, and no storm meets the host."""
    configure(database, breaker=BRIEF)
    moody.delay = 0.02
    with database.worker(), database.worker():
        send(database, moody, 200)
        wait_until(lambda: len(moody.arrivals) > 50, description="some were sent")
        moody.down()
        for _ in range(4):
            send(database, moody, 100)
            time.sleep(0.4)
        database.wait_for("select state <> 'closed' from pgnet.host_state")
        back = time.time()
        moody.most = 0
        moody.up()
        database.wait_for("select count(*) = 600 from net._http_response", timeout=20)
    assert database.value("select count(*) from net._http_response where state <> 'succeeded'") == 0
    # Those that two workers had in flight when it died, and their next round.
    counted = "select count(*) from pgnet.attempt where ending = 'answered'"
    assert database.value(counted) <= 200
    of_each = (
        "select count(*) from pgnet.attempt where ending = 'answered' group by request_id"
        " order by 1 desc limit 1"
    )
    assert database.value(of_each) <= 2
    at = moody.since(back)
    assert at[0] < 1.5
    # First the probe alone.
    assert at[1] - at[0] > 0.01
    assert moody.most <= 64 + 64
    last = [event for event, _ in events(database)][-1]
    assert last == "closed"
    assert state(database) == "closed"


def test_it_opens_for_twice_as_long_each_time(database: Database, moody: Moody) -> None:
    configure(database, breaker={"failures_in_a_row": 2, "open_milliseconds": 200})
    moody.mood = 500
    send(database, moody, 60, None)
    with database.worker():
        database.wait_for("select count(*) = 4 from net.host_events where event = 'opened'")
    at = database.rows("select happened from net.host_events where event = 'opened' order by 1")
    pauses = [(b[0] - a[0]).total_seconds() for a, b in itertools.pairwise(at)]
    assert 0.2 <= pauses[0] < 0.4 <= pauses[1] < 0.8 <= pauses[2] < 1.6


def test_a_share_of_failures_opens_it(database: Database, moody: Moody) -> None:
    configure(
        database,
        breaker={"failures_in_a_row": 1000, "min_attempts": 20, "open_milliseconds": 60_000},
    )
    with database.worker():
        for round in range(3):
            moody.mood = 200 if round == 0 else 500
            send(database, moody, 10, None)
            database.wait_for("select count(*) = %s from net._http_response", 10 * (round + 1))
        database.wait_for("select state = 'open' from pgnet.host_state")
    assert "attempts have failed within 60" in database.value("select reason from pgnet.host_state")


@pytest.mark.parametrize("mood", [400, 404, 429])
def test_other_answers_do_not_open_it(database: Database, moody: Moody, mood: int) -> None:
    configure(database, breaker={"failures_in_a_row": 2})
    moody.mood = mood
    send(database, moody, 30, None)
    with database.worker():
        database.wait_for("select count(*) = 30 from net._http_response")
    assert state(database) in (None, "closed")


def test_what_is_refused_here_does_not_open_it(database: Database, moody: Moody) -> None:
    configure(database, breaker={"failures_in_a_row": 2})
    database.execute("select net.deny_host('refused.example')")
    with database.worker():
        database.execute(
            "select net.http_get('http://refused.example/') from generate_series(1, 30)"
        )
        database.wait_for("select count(*) = 30 from net._http_response")
    assert state(database) is None


def test_switched_off(database: Database, moody: Moody) -> None:
    configure(database, breaker=False)
    moody.down()
    send(database, moody, 100, None)
    with database.worker():
        database.wait_for("select count(*) = 100 from net._http_response")
    assert events(database) == []


def test_the_owner_closes_it(database: Database, moody: Moody) -> None:
    configure(database, breaker={"failures_in_a_row": 2, "open_milliseconds": 600_000})
    moody.mood = 500
    send(database, moody, 40, None)
    with database.worker():
        database.wait_for("select state = 'open' from pgnet.host_state")
        moody.mood = 200
        database.execute("select net.configure_host('127.0.0.1', '{\"breaker\": true}')")
        database.wait_for("select count(*) = 0 from net.http_request_queue")
    closed = "select count(*) from net.host_events where detail = 'its settings were changed'"
    assert database.value(closed) == 1


def test_requests_may_fail_at_once(database: Database, moody: Moody) -> None:
    configure(
        database,
        breaker={"failures_in_a_row": 2, "open_milliseconds": 600_000, "on_open": "fail"},
    )
    moody.mood = 500
    with database.worker():
        send(database, moody, 2, None)
        database.wait_for("select state = 'open' from pgnet.host_state")
        send(database, moody, 1000)
        database.wait_for("select count(*) = 1002 from net._http_response")
    message, attempts = database.rows(
        "select min(error_msg), max(attempts) from net._http_response where error_msg is not null"
    )[0]
    assert message.startswith(f"Not sent: the circuit breaker of 127.0.0.1:{moody.port} is open")
    assert "status 500" in message
    assert attempts == 0
    assert database.value("select count(*) from net.failures where attempts = 0") == 1000


def test_a_probe_is_not_counted_where_its_request_is_tried_again(
    database: Database, moody: Moody
) -> None:
    configure(database, breaker={"failures_in_a_row": 1, **BRIEF})
    database.execute(
        "select net.configure_retry('twice', '{\"max_attempts\": 2, \"backoff_milliseconds\": 10}')"
    )
    moody.mood = 500
    with database.worker():
        send(database, moody, 1, "twice")
        database.wait_for("select count(*) >= 3 from pgnet.attempt where ending = 'probe'")
        moody.mood = 200
        database.wait_for("select count(*) = 1 from net._http_response where state = 'succeeded'")
        # Without a policy it ends.
        moody.mood = 500
        send(database, moody, 2, None)
        database.wait_for("select count(*) = 2 from net._http_response where state = 'failed'")


def test_a_probe_that_is_lost_frees_the_next(database: Database, moody: Moody) -> None:
    configure(database, breaker={"failures_in_a_row": 2, **BRIEF})
    database.execute("select net.configure('rescue_after', '0.5 s')")
    moody.mood = 500
    with database.worker(), database.worker() as other:
        send(database, moody, 2, None)
        database.wait_for("select state = 'open' from pgnet.host_state")
        moody.mood = "hang"
        send(database, moody, 30)
        database.wait_for("select state = 'half_open' from pgnet.host_state")
        wait_until(lambda: len(moody.arrivals) == 3, description="the probe is at the host")
        assert database.value("select count(*) from pgnet.claim where probe") == 1
        assert database.value("select count(*) from pgnet.claim") == 1
        pid = database.value(
            "select w.pid from pgnet.worker w join pgnet.claim c on c.worker = w.id"
        )
        database.execute("select pg_terminate_backend(%s)", pid)
        # Its worker comes back, and goes on with it: so it is cancelled.
        database.execute("select net.cancel((select id from pgnet.claim))")
        moody.mood = 200
        database.wait_for("select count(*) = 0 from net.http_request_queue", timeout=20)
        assert other is not None
    assert events(database)[-1][0] == "closed"


def test_a_clock_that_is_put_back_keeps_no_host_closed(database: Database, moody: Moody) -> None:
    configure(database, breaker={"failures_in_a_row": 2, "open_milliseconds": 1000})
    moody.mood = 500
    # With another worker there is a heartbeat each second.
    with database.worker(), database.worker():
        send(database, moody, 2, None)
        database.wait_for("select state = 'open' from pgnet.host_state")
        moody.mood = 200
        database.execute(
            "update pgnet.host_state set updated = updated + interval '1 day',"
            " since = since + interval '1 day', closed_until = closed_until + interval '1 day'"
        )
        send(database, moody, 2)
        database.wait_for("select count(*) = 2 from net._http_response where state = 'succeeded'")


def test_a_role_closes_a_host_for_itself_only(database: Database, moody: Moody) -> None:
    configure(database, breaker={"failures_in_a_row": 2, "open_milliseconds": 600_000})
    database.execute("drop role if exists breaker_alice; create role breaker_alice login")
    alice = database.connect("breaker_alice")
    with database.worker():
        moody.mood = 500
        alice.execute("select net.http_get(%s) from generate_series(1, 40)", (moody.url,))
        database.wait_for("select state = 'open' from pgnet.host_state")
        moody.mood = 200
        send(database, moody, 10, None)
        # One of the other role's may have been answered after the mood changed.
        database.wait_for(
            "select count(*) = 10 from net._http_response"
            " where status_code = 200 and requested_by <> 'breaker_alice'::regrole"
        )
        send_as_owner = database.rows("select role::text from net.hosts where state = 'open'")
        assert send_as_owner == [("breaker_alice",)]
        assert alice.execute("select event from net.host_events").fetchall()
    database.execute("create role breaker_bob login")
    bob = database.connect("breaker_bob")
    assert bob.execute("select * from net.host_events").fetchall() == []
    assert bob.execute("select * from pgnet.host_state").fetchall() == []
    assert bob.execute("select host from net.hosts").fetchall() == [("*",)]
    for session in (alice, bob):
        session.close()
    database.execute("drop owned by breaker_alice, breaker_bob")
    database.execute("delete from net.http_request_queue; drop role breaker_alice, breaker_bob")


# ---- a host that asks for a pause


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_pause_holds_for_all_requests(
    database: Database, moody: Moody, status: int, form: str
) -> None:
    moody.mood = status
    after = "2" if form == "seconds" else formatdate(int(time.time()) + 4, usegmt=True)
    moody.headers = {"Retry-After": after}
    if form == "date":
        moody.headers["Date"] = formatdate(int(time.time()) + 2, usegmt=True)
    with database.worker():
        send(database, moody, 1, None)
        database.wait_for("select closed_until is not null from pgnet.host_state")
        asked = time.time()
        moody.mood, moody.headers = 200, {}
        send(database, moody, 50, None)
        row = database.rows("select state, why from net.hosts where role is not null")[0]
        assert row[0] == "slowed"
        assert re.fullmatch(f"status {status} asks to wait for [12][.][0-9]+ s", row[1])
        database.wait_for("select count(*) = 51 from net._http_response")
    at = moody.since(asked)
    assert len(at) == 50
    assert 1.7 < at[0] < 3.5


def test_a_pause_has_a_ceiling(database: Database, moody: Moody) -> None:
    configure(database, max_retry_after_milliseconds=500)
    moody.mood, moody.headers = 429, {"Retry-After": "31536000"}
    with database.worker():
        send(database, moody, 1, None)
        database.wait_for("select closed_until is not null from pgnet.host_state")
        moody.mood, moody.headers = 200, {}
        send(database, moody, 5, None)
        database.wait_for("select count(*) = 6 from net._http_response")


# ---- how many at once


def test_a_host_that_hangs_takes_few_slots(database: Database, moody: Moody) -> None:
    moody.mood = "hang"
    send(database, moody, 500)
    other = Moody()
    with database.worker("--grace", "0"):
        database.wait_for("select count(*) = 32 from pgnet.claim")
        database.execute("select net.http_get(%s) from generate_series(1, 100)", other.url)
        database.wait_for("select count(*) = 100 from net._http_response")
        assert database.value("select count(*) from pgnet.claim") == 32
        configure(database, adaptive=False)
        database.wait_for("select count(*) > 32 from pgnet.claim")
    other.down()


def test_what_it_is_at_stands_in_net_hosts(database: Database, moody: Moody) -> None:
    configure(database, breaker=False)
    moody.mood = "hang"
    database.execute(
        "select net.http_get(%s, timeout_milliseconds => 200) from generate_series(1, 200)",
        moody.url,
    )
    with database.worker("--grace", "0"):
        database.wait_for("select adaptive < 32 from net.hosts where role is not null")
