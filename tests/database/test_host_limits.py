"""Limits by host: concurrency and rate, as the server sees them."""

from __future__ import annotations

import math
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from servers import gauge
from servers.cluster import Database
from servers.gauge import Gauge, excess, most_at_once
from servers.traffic import queue, wait_for_states
from servers.waiting import wait_until
from servers.workers import serving


@pytest.fixture(scope="module")
def running_gauge() -> Iterator[Gauge]:
    with gauge.running() as running:
        yield running


@pytest.fixture
def server(running_gauge: Gauge) -> Gauge:
    running_gauge.reset()
    return running_gauge


def limit(database: Database, host: str, **settings: Any) -> None:
    database.execute("select net.configure_host(%s, %s)", host, Jsonb(settings))


def arrivals(server: Gauge, count: int, timeout: float = 10.0) -> list[gauge.Request]:
    return wait_until(
        server.requests,
        lambda found: len(found) >= count,
        f"{count} requests at the server",
        timeout,
    )


def test_concurrency_holds_across_workers(database: Database, server: Gauge) -> None:
    limit(database, "127.0.0.1", concurrency=5)
    queue(database, f"{server.url}/30?#", 120)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(database.worker())
        wait_for_states(database, {"succeeded": 120}, 20)
    assert most_at_once(server.requests()) == 5


@pytest.mark.parametrize(
    ("rate", "burst", "count"), [(50, 10, 110), (100, None, 260), (20, 1, 20), (10, 2, 15)]
)
def test_a_rate_holds_across_workers(
    database: Database, server: Gauge, rate: int, burst: int | None, count: int
) -> None:
    limit(database, "127.0.0.1", rate=f"{rate}/second", burst=burst)
    queue(database, f"{server.url}/1?#", count)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(database.worker())
        wait_for_states(database, {"succeeded": count}, 30)
    found = server.requests()
    most = burst or rate + 1
    assert excess(found, rate, most) <= 0
    # It is made use of.
    capacity, refill = database.rows("select capacity, refill from pgnet.host_budget")[0]
    took = found[-1].came - found[0].came
    assert took < (count - capacity) / refill * 1.5 + 1, took


def test_a_bucket_never_lets_more_arrive_than_it_says(database: Database) -> None:
    """Whatever the delays are: n requests that are claimed as soon as can be, and bunched."""
    for rate in (1 / 86400, 0.1, 1, 3.7, 10, 100, 5000):
        for burst in (1, 2, 3, 10, 101, 5000):
            for concurrency in (None, 1, 2, 5, 1000):
                refill, capacity, delay = database.rows(
                    "select * from pgnet.bucket(%s, %s, %s)", rate, burst, concurrency
                )[0]
                assert capacity >= 1
                before = concurrency or 0 if delay is None else 0
                for n in (1, 2, 3, burst, burst + 1, burst + 10, 10 * burst):
                    # The time in which n can be claimed is the least in which n - before arrive.
                    claimed_in = max(0.0, (n - capacity) / refill)
                    window = max(0.0, claimed_in - (delay or 0.0))
                    assert n + before <= burst + rate * window + 1e-6, (rate, burst, concurrency)


def test_no_rate_no_bucket(database: Database) -> None:
    assert database.rows("select * from pgnet.bucket(null, null, 5)") == [(None, None, None)]


def test_a_limit_that_is_lowered_drains_first(database: Database, server: Gauge) -> None:
    limit(database, "127.0.0.1", concurrency=8)
    queue(database, f"{server.url}/1200?#", 8)
    with database.worker(), database.worker():
        arrivals(server, 8)
        limit(database, "127.0.0.1", concurrency=2)
        queue(database, f"{server.url}/100?late-#", 20)
        wait_for_states(database, {"succeeded": 28}, 20)
    found = server.requests()
    assert most_at_once(found) == 8
    late = [entry for entry in found if "late" in entry.target]
    assert most_at_once([entry for entry in found if entry.over >= late[0].came]) == 2


def test_a_first_limit_counts_what_is_in_flight(database: Database, server: Gauge) -> None:
    """Claims from before the limit count, also those of another worker."""
    queue(database, f"{server.url}/1500?#", 8)
    with database.worker(), database.worker():
        arrivals(server, 8)
        limit(database, "127.0.0.1", concurrency=3)
        queue(database, f"{server.url}/50?late-#", 20)
        wait_for_states(database, {"succeeded": 28}, 20)
    found = server.requests()
    assert most_at_once(found) == 8
    late = [entry for entry in found if "late" in entry.target]
    assert most_at_once([entry for entry in found if entry.over >= late[0].came]) == 3


def test_a_claim_waits_for_those_from_before_the_limit(database: Database, server: Gauge) -> None:
    """A claim that began before the change may still take requests: the host stays closed."""
    with serving(database) as earlier, database.worker():
        # The session that claims is held in its transaction by a lock on the configuration.
        holder = database.connect(autocommit=False)
        holder.execute("lock table pgnet.egress_rule in access exclusive mode")
        limit(database, "127.0.0.1", concurrency=3)
        queue(database, f"{server.url}/10?#", 5)
        time.sleep(0.3)
        holder.rollback()
        wait_for_states(database, {"succeeded": 5})
        assert earlier.running
    assert most_at_once(server.requests()) <= 3


def test_the_most_specific_pattern_counts(database: Database) -> None:
    limit(database, "*", concurrency=50, rate="100/second")
    limit(database, "*.example", concurrency=10)
    limit(database, "api.example", concurrency=False, rate="3/minute", burst=7)
    limit(database, "api.example:8443", rate=False)
    limit(database, "[2001:db8::1]:8443", concurrency=2)
    limit(database, "10.0.0.7", concurrency=3)
    query = "select concurrency, rate, burst from pgnet.limits_of_host(%s)"
    found = {
        host: database.rows(query, host)[0]
        for host in (
            "other.test:81",
            "a.b.example",
            "api.example",
            "api.example.",
            "api.example:444",
            "api.example:8443",
            "[2001:db8::0:1]:8443",
            "[2001:db8::1]",
            "10.0.0.7:8000",
        )
    }
    assert found == {
        "other.test:81": (50, "100/second", 101),
        "a.b.example": (10, "100/second", 101),
        "api.example": (None, "3/minute", 7),
        "api.example.": (None, "3/minute", 7),
        "api.example:444": (None, "3/minute", 7),
        "api.example:8443": (None, None, None),
        "[2001:db8::0:1]:8443": (2, "100/second", 101),
        "[2001:db8::1]": (50, "100/second", 101),
        "10.0.0.7:8000": (3, "100/second", 101),
    }


def test_a_limit_is_each_hosts_own(database: Database, server: Gauge) -> None:
    """`*` stands for each host: one that is at its limit leaves the others alone."""
    limit(database, "*", concurrency=1)
    with gauge.running() as other, database.worker() as worker:
        queue(database, f"{server.url}/hang", 3, timeout=60_000)
        arrivals(server, 1)
        queue(database, f"{other.url}/5?#", 10)
        wait_for_states(database, {"succeeded": 10, "in_flight": 1, "ready": 2})
        assert most_at_once(other.requests()) == 1
        shown = database.rows("select host, concurrency, in_flight from net.hosts order by host")
        assert (server.authority, 1, 1) in shown
        assert ("*", 1, 0) in shown
        worker.kill()


def test_without_a_limit_again(database: Database, server: Gauge) -> None:
    limit(database, "127.0.0.1", concurrency=1)
    with database.worker():
        queue(database, f"{server.url}/1000?#", 4)
        arrivals(server, 1)
        database.execute("select net.configure_host('127.0.0.1', null)")
        database.execute("select net.wake()")
        wait_until(lambda: most_at_once(server.requests()), (4).__eq__, "all at once")


def test_a_cancelled_request_counts_until_its_connection_is_closed(
    database: Database, server: Gauge
) -> None:
    """Its worker is stopped, and another one acts on the mark."""
    limit(database, "127.0.0.1", concurrency=1)
    with database.worker() as stopped:
        (first,) = queue(database, f"{server.url}/hang", timeout=60_000)
        arrivals(server, 1)
        stopped.pause()
        with database.worker():
            database.execute("select net.cancel(%s)", first)
            (second,) = queue(database, f"{server.url}/5?second", timeout=60_000)
            database.wait_for("select state = 'cancelled' from net.requests where id = %s", first)
            time.sleep(1.5)
            assert len(server.requests()) == 1
            stopped.resume()
            database.wait_for("select state = 'succeeded' from net.requests where id = %s", second)
    assert most_at_once(server.requests()) == 1


def test_a_lost_backends_request_counts_for_rescue_after(database: Database, server: Gauge) -> None:
    database.execute("select net.configure('rescue_after', '2 s')")
    limit(database, "127.0.0.1", concurrency=1)
    with serving(database) as lost, ExitStack() as stack:
        queue(database, f"{server.url}/hang", timeout=60_000)
        arrivals(server, 1)
        worker = stack.enter_context(database.worker())
        queue(database, f"{server.url}/5?second")
        database.execute("select pg_terminate_backend(%s)", lost.pid)
        at = time.monotonic()
        found = arrivals(server, 2)
        assert time.monotonic() - at > 1.9
        worker.kill()
    assert most_at_once(found) == 1


def test_a_request_is_spared_a_slow_connection_once(database: Database) -> None:
    """A connection that is made too late for the rate is given up, and then is a failure."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        accepted: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    accepted.append(silent.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        limit(database, host, rate="10/second", burst=6)
        queue(database, f"https://{host}/")
        with database.worker():
            wait_for_states(database, {"failed": 1})
        message = database.value("select error_msg from net.responses")
        assert re.match("Connect timeout of (2[0-9][0-9]|300) ms reached", message), message
        assert "larger burst" in message
        assert len(accepted) == 2
        for connection in accepted:
            connection.close()
        silent.shutdown(socket.SHUT_RDWR)


def test_a_clock_that_goes_back_stops_nothing(database: Database, server: Gauge) -> None:
    limit(database, "127.0.0.1", rate="50/second", burst=5)
    with database.worker():
        queue(database, f"{server.url}/1?#", 10)
        wait_for_states(database, {"succeeded": 10})
        database.execute(
            "update pgnet.host_budget"
            " set tokens = 0, tokens_at = clock_timestamp() + interval '1 hour'"
        )
        queue(database, f"{server.url}/1?again-#", 10)
        wait_for_states(database, {"succeeded": 20})


@pytest.mark.parametrize("spelling", ["127.1", "0x7f000001", "localhost."])
def test_one_host_has_one_name(database: Database, server: Gauge, spelling: str) -> None:
    """A role must not get round a limit by another spelling of the same host."""
    limit(database, "127.0.0.1", concurrency=1)
    limit(database, "localhost", concurrency=1)
    port = server.url.rpartition(":")[2]
    with database.worker():
        queue(database, f"http://{spelling}:{port}/1")
        wait_for_states(database, {"failed": 1})
        usual = "localhost" if "localhost" in spelling else "127.0.0.1"
        assert database.value("select error_msg from net.responses") == (
            f"requests to this host are limited, and its name is to be {usual}:{port}"
        )
        database.execute(
            "insert into net._new_request (method, url) values ('GET', %s)",
            f"http://LOCALHOST:{port}/1",
        )
        wait_for_states(database, {"failed": 2})
    assert server.requests() == []


def test_a_redirect_gets_round_no_limit(database: Database, server: Gauge) -> None:
    with gauge.running() as free, database.worker():
        limit(database, server.authority, concurrency=1)
        queue(database, f"{free.url}/x?to={server.url}/1")
        # The redirect itself is the answer.
        wait_for_states(database, {"succeeded": 1})
        assert "has a limit" in database.value("select error_msg from net.responses")
        assert server.requests() == []
        # Within the host it is followed: the request holds its slot.
        queue(database, f"{server.url}/x?to={server.url}/1")
        wait_for_states(database, {"succeeded": 2})
        assert len(server.requests()) == 2
        # The limit of all hosts keeps no redirect from being followed.
        database.execute("select net.configure_host(%s, null)", server.authority)
        limit(database, "*", concurrency=1)
        queue(database, f"{free.url}/x?to={server.url}/1")
        wait_for_states(database, {"succeeded": 3})
        assert len(server.requests()) == 3


def test_roles_share_a_limit_in_turns(database: Database, server: Gauge) -> None:
    """A role with many requests, slow ones, does not keep another one waiting for long."""
    limit(database, "127.0.0.1", concurrency=2)
    database.execute("create role busy_role login; create role calm_role login")
    try:
        busy, calm = database.connect("busy_role"), database.connect("calm_role")
        busy.execute(
            "select net.http_get(format('%%s/100?busy-%%s', %s::text, n),"
            " timeout_milliseconds => 20000) from generate_series(1, 1000) n",
            (server.url,),
        )
        with database.worker(), database.worker():
            arrivals(server, 4)
            calm.execute(
                "select net.http_get(format('%%s/100?calm-%%s', %s::text, n),"
                " timeout_milliseconds => 20000) from generate_series(1, 10) n",
                (server.url,),
            )
            at = len(server.requests())
            wait_until(
                lambda: [request.target for request in server.requests()],
                lambda found: sum("calm" in target for target in found) >= 10,
                "the calm role's requests",
            )
        targets = [request.target for request in server.requests()][at:]
        last = max(n for n, target in enumerate(targets) if "calm" in target)
        assert last <= 24, targets[: last + 1]
    finally:
        database.execute("drop owned by busy_role, calm_role; drop role busy_role, calm_role")


def test_requests_in_quarantine_have_limits_too(database: Database, server: Gauge) -> None:
    limit(database, "127.0.0.1", concurrency=1)
    with database.worker():
        queue(database, f"{server.url}/1500?#", 2)
        arrivals(server, 1)
        queue(database, f"{server.url}/10?suspect-#", 5)
        database.execute(
            "update net.http_request_queue set due = 'infinity', waits_since = now()"
            " where url like '%suspect%'"
        )
        wait_for_states(database, {"succeeded": 7}, 30)
    assert most_at_once(server.requests()) == 1


def test_budgets_are_forgotten(database: Database, server: Gauge) -> None:
    limit(database, "*", rate="50/second")
    with database.worker():
        queue(database, f"{server.url}/1")
        wait_for_states(database, {"succeeded": 1})
    forget = "select pgnet.forget_budgets()"
    count = "select count(*) from pgnet.host_budget"
    database.execute(forget)
    assert database.value(count) == 1
    database.execute("update pgnet.host_budget set met = now() - interval '1 day', tokens = -1000")
    database.execute(forget)
    assert database.value(count) == 1, "its tokens are not all there"
    database.execute(
        "update pgnet.host_budget set met = now() - interval '1 day', tokens = capacity"
    )
    database.execute(forget)
    assert database.value(count) == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"concurrency": 0}, "at least 1; net.pause"),
        ({"concurrency": 100_001}, "integer between 1 and 100000, or false"),
        ({"concurrency": "5"}, "integer between"),
        ({"concurrency": True}, "integer between"),
        ({"concurrency": 1.5}, "integer between"),
        ({"rate": 5}, 'such as "10/second"'),
        ({"rate": "5"}, 'such as "10/second"'),
        ({"rate": "0/second"}, 'such as "10/second"'),
        ({"rate": "5/week"}, 'such as "10/second"'),
        ({"rate": "-5/second"}, 'such as "10/second"'),
        ({"rate": True}, 'such as "10/second"'),
        ({"rate": "5/second", "burst": 0}, "integer between 1 and 1000000"),
        ({"burst": 5}, "needs a rate"),
        ({"burst": 5, "rate": False}, "needs a rate"),
    ],
    ids=str,
)
def test_bad_limits(database: Database, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(Exception, match=words) as raised:
        limit(database, "a.example", **settings)
    assert getattr(raised.value, "sqlstate", "") == "22023"


def test_good_limits(database: Database) -> None:
    for settings in (
        {"concurrency": 1},
        {"concurrency": False},
        {"rate": "0.5/second"},
        {"rate": " 500 / minute ", "burst": 20},
        {"rate": "5000/day"},
        {"rate": False},
    ):
        limit(database, "a.example:8443", **settings)
        database.execute("select net.configure_host('a.example:8443', null)")
    assert math.isclose(database.value("select pgnet.rate_per_second('30/minute')"), 0.5)
