"""net.stats: what waits, what is in flight, rates, failures and times; by host and in all."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors
from psycopg.rows import dict_row

from servers.cluster import Cluster, Database, Worker
from servers.nginx import Nginx
from servers.roles import login_roles
from servers.waiting import wait_until
from servers.workers import as_backend

# Rows and index entries that the current transaction has read in the extension's tables.
READ = """
    select sum(pg_stat_get_xact_tuples_returned(c.oid))
    from pg_class c
    where c.relnamespace = any ('{net,pgnet}'::regnamespace[]) and c.relkind in ('r', 'i')
"""
MILLION = 1_000_000

Rows = dict[str | None, dict[str, Any]]


def stats(place: Database | psycopg.Connection[Any]) -> Rows:
    connection = place.connection if isinstance(place, Database) else place
    cursor = connection.cursor(row_factory=dict_row)
    return {row["host"]: row for row in cursor.execute("select * from net.stats").fetchall()}


def fill(database: Database, hosts: int, count: int, age: str = "1 hour") -> None:
    database.execute(
        "insert into net.http_request_queue (method, url, created)"
        " select 'GET', format('http://h%%s.example/', n %% %s), now() - %s::interval"
        " from generate_series(1, %s) n",
        hosts,
        age,
        count,
    )


def put(database: Database, minutes_ago: int, **more: Any) -> None:
    """Count an attempt of another worker."""
    row = {
        "host": "a",
        "role": database.value("select 'postgres'::regrole::oid::bigint"),
        "worker": 1,
        "made": 1,
        "attempts": 1,
        "failed": 0,
        "ended": 1,
        "first_byte_buckets": [40],
        "first_byte_counts": [1],
        "total_buckets": [40],
        "total_counts": [1],
        **more,
    }
    database.execute(
        "insert into pgnet.host_minute"
        " select r.* from jsonb_populate_record(null::pgnet.host_minute, %s::jsonb"
        "  || jsonb_build_object('minute', date_trunc('minute', now()) - %s * interval '1 min')) r",
        json.dumps(row),
        minutes_ago,
    )


def test_a_database_where_nothing_happens(database: Database) -> None:
    (everything,) = stats(database).values()
    assert everything["host"] is None
    assert everything["waiting"] == "0"
    numbers = ("waiting_at_least", "in_flight", "in_per_minute", "out_per_minute")
    assert [everything[name] for name in numbers] == [0] * 4
    assert everything["oldest"] is None
    assert everything["failed_percent"] is None
    assert everything["total_p99_ms"] is None


@pytest.mark.parametrize(
    ("hosts", "count", "in_all", "by_host"),
    [
        (1, 17, "17", {"17"}),
        (1, 10_000, "10,000+", {"10,000+"}),
        (1, 9_999, "9,999", {"9,999"}),
        (1, 10_001, "10,000+", {"10,000+"}),
        (3, 3_000, "3,000", {"1,000"}),
        (10, 30_000, "10,000+", {"1,000+"}),
        (100, 1_000, "1,000+", {"10"}),
    ],
)
def test_what_waits(
    database: Database, hosts: int, count: int, in_all: str, by_host: set[str]
) -> None:
    fill(database, hosts, count)
    # These wait for something else than a worker.
    database.execute(
        "insert into net.http_request_queue (method, url, due)"
        " select 'GET', 'http://h0.example/', 'infinity' from generate_series(1, 5)"
    )
    found = stats(database)
    everything = found.pop(None)
    assert everything["waiting"] == in_all
    assert {row["waiting"] for row in found.values()} == by_host
    assert len(found) == hosts
    assert everything["oldest"].total_seconds() == pytest.approx(3600, abs=60)
    assert everything["in_per_minute"] == 0


def test_what_is_in_flight_does_not_wait(database: Database, nginx: Nginx) -> None:
    host = nginx.url.split("/")[2]
    with database.worker("--concurrency", "4", "--grace", "0"):
        for _ in range(5):
            database.execute(
                "select net.http_get(%s, timeout_milliseconds => 30000)", f"{nginx.url}/slow?s=20"
            )
        found = wait_until(
            lambda: stats(database),
            lambda f: (f[None]["in_per_minute"], f[None]["in_flight"]) == (5, 3),
            "three of five are in flight",
        )
        for row in (found[None], found[host]):
            assert (row["in_flight"], row["waiting"]) == (3, "2")
            assert row["in_per_minute"] == 5
            assert row["oldest"].total_seconds() < 60


def quantile(times: list[float], part: float) -> float:
    return sorted(times)[math.ceil(part * len(times)) - 1]


@pytest.mark.parametrize("kind", ["process", "backend"])
def test_rates_failures_and_times(database: Database, nginx: Nginx, kind: str) -> None:
    host = nginx.url.split("/")[2]
    queue = (
        "select count(net.http_get(%s || n, timeout_milliseconds => 20000))"
        " from generate_series(1, %s) n"
    )
    # A hundred failures would have it wait.
    database.execute("select net.configure_host('*', '{\"breaker\": false}')")
    with database.worker() if kind == "process" else as_backend(database):
        database.execute(queue, f"{nginx.url}/?", 300)
        database.execute(queue, f"{nginx.url}/status/500?", 100)
        database.execute(queue, f"{nginx.url}/slow?s=0.7&", 10)
        database.wait_for("select count(*) = 410 from net._http_response", timeout=30)
        found = wait_until(
            lambda: stats(database), lambda f: f[None]["attempts_per_minute"] >= 300, "counts"
        )
        found = wait_until(
            lambda: stats(database), lambda f: f[None]["total_p99_ms"] >= 600, "the slow ones"
        )
    rows = database.rows("select first_byte_ms, total_ms from net._http_response")
    for row in (found[None], found[host]):
        # The minute before counts for less, where one has just ended.
        assert 300 <= row["in_per_minute"] <= 410
        assert 300 <= row["out_per_minute"] <= 410
        assert float(row["failed_percent"]) == pytest.approx(100 * 100 / 410, abs=0.1)
        for at, name in enumerate(("first_byte", "total")):
            times = [each[at] for each in rows]
            for part in (50, 99):
                exact = quantile(times, part / 100)
                assert row[f"{name}_p{part}_ms"] == pytest.approx(exact, rel=0.1)


def test_an_attempt_that_is_repeated_has_not_ended_its_request(
    database: Database, worker: Worker, nginx: Nginx
) -> None:
    database.execute(
        'select net.configure_retry(\'later\', \'{"statuses": [503], "methods": "any",'
        ' "backoff_milliseconds": 60000}\')'
    )
    database.execute(
        "select net.http_request('GET', %s, retry => 'later')", f"{nginx.url}/status/503"
    )
    found = wait_until(
        lambda: stats(database), lambda f: f[None]["attempts_per_minute"] == 1, "one attempt"
    )
    assert found[None]["out_per_minute"] == 0
    assert found[None]["failed_percent"] == 100
    assert found[None]["waiting"] == "0"


def test_workers_are_summed_up_and_old_minutes_do_not_count(database: Database) -> None:
    for worker in (1, 2):
        for host in ("a", "*"):
            put(database, 0, worker=worker, host=host, failed=worker - 1)
            put(database, 3, worker=worker, host=host, attempts=100)
    found = stats(database)
    for place in (None, "a"):
        assert found[place]["attempts_per_minute"] == 2
        assert found[place]["failed_percent"] == 50
        assert found[place]["total_p50_ms"] == pytest.approx(0.1 * 2**9.875, rel=0.001)


def test_a_minute_counts_as_far_as_it_is_within_the_last_sixty_seconds(database: Database) -> None:
    put(database, 1, host="*", ended=6000)
    second = database.value("select extract(second from now())::float")
    out = stats(database)[None]["out_per_minute"]
    assert out == pytest.approx(6000 * (60 - second) / 60, abs=300)


def test_hosts_have_a_bound(database: Database) -> None:
    database.execute(
        "insert into pgnet.host_minute select date_trunc('minute', now()), 'h' || n, 10, 1, 1, n,"
        " 0, 1, '{1}', '{1}', '{1}', '{1}' from generate_series(1, 500) n"
    )
    hosts = [row["host"] for row in stats(database).values()]
    assert hosts == [None, *(f"h{n}" for n in range(500, 400, -1))]


@pytest.fixture(scope="module")
def roles(cluster: Cluster) -> Iterator[None]:
    with login_roles(cluster, ("stats_alice", "stats_monitor")):
        with cluster.connect() as connection:
            connection.execute("grant pg_monitor to stats_monitor")
        yield


def test_a_role_sees_its_own_and_pg_monitor_sees_all(
    database: Database, nginx: Nginx, roles: None
) -> None:
    alice, monitor = database.connect("stats_alice"), database.connect("stats_monitor")
    with database.worker():
        database.execute("select net.http_get(%s)", nginx.url)
        alice.execute("select net.http_get('http://alice.example/')")
        wait_until(
            lambda: stats(database), lambda f: f[None]["attempts_per_minute"] == 2, "both attempts"
        )
    database.execute("select net.http_get('http://secret.example/')")
    alice.execute("select net.http_get('http://alice.example/')")
    hosts = {None, nginx.url.split("/")[2], "alice.example", "secret.example"}
    assert set(stats(monitor)) == set(stats(database)) == hosts
    assert stats(monitor)[None]["waiting"] == "2"
    own = stats(alice)
    assert set(own) == {None, "alice.example"}
    for row in own.values():
        assert (row["waiting"], row["attempts_per_minute"]) == ("1", 1)
    assert monitor.execute("select count(*) from net.requests").fetchone() == (0,)


@pytest.fixture(scope="module")
def quiet_cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    """A cluster whose statistics only the test makes."""
    return make_cluster(autovacuum="off")


def read_so_far(session: psycopg.Connection[Any]) -> int:
    row = session.execute(READ).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("hosts", [1, 10, 1000])
@pytest.mark.parametrize("seen", ["empty", "full"])
def test_a_million_rows_are_not_read(
    quiet_cluster: Cluster, hosts: int, seen: str, capsys: pytest.CaptureFixture[str]
) -> None:
    database = quiet_cluster.create_database()
    try:
        session = database.connect(autocommit=False)
        session.execute("analyze net.http_request_queue")
        for _ in range(6):
            session.execute("select * from net.stats")
            session.execute("select * from net.explain(1)")
        session.commit()
        fill(database, hosts, MILLION)
        if seen == "full":
            database.execute("analyze net.http_request_queue")
        took = {}
        for query, most in (
            ("select * from net.stats", 40_000),
            (f"select * from net.explain({MILLION})", 2_000),
        ):
            best = math.inf
            for _ in range(5):
                before, began = read_so_far(session), time.perf_counter()
                assert session.execute(query).fetchall()
                best = min(best, time.perf_counter() - began)
                assert read_so_far(session) - before < most, query
                session.commit()
            took[query] = best
            # Wide, for a busy machine: the rows that are read are what counts.
            assert best < 0.2, query
        with capsys.disabled():
            print(" ".join(f" [{seconds * 1000:.1f} ms]" for seconds in took.values()), end="")
        assert stats(database)[None]["waiting"] == "10,000+"
    finally:
        database.drop()


def test_old_minutes_go(database: Database) -> None:
    for minutes in (0, 300, 400, 10_000):
        put(database, minutes)
    with database.worker():
        database.wait_for("select count(*) = 2 from pgnet.host_minute")
    assert database.value("select min(minute) > now() - interval '302 min' from pgnet.host_minute")


def report(session: psycopg.Connection[Any], worker: int, **more: Any) -> float:
    place = {
        "host": "a",
        "role": 10,
        **dict.fromkeys(("made", "attempts", "failed", "ended"), 1),
        "first_byte_buckets": [],
        "first_byte_counts": [],
        "total_buckets": [],
        "total_counts": [],
    }
    row = session.execute(
        "select pgnet.report_work(%s, %s::json)",
        (worker, json.dumps({"slots": 5, "places": [place], "progress": {}, **more})),
    ).fetchone()
    assert row is not None
    return float(row[0])


def test_reports(database: Database) -> None:
    session = database.connect()
    row = session.execute("select worker_id from pgnet.register_worker('process')").fetchone()
    assert row is not None
    now = report(session, row[0])
    # It comes again, and for the minute before: the first is overwritten.
    report(session, row[0], minute=int(now // 60))
    report(session, row[0], minute=int(now // 60) - 1)
    # A worker whose clock is wrong counts for the present minute.
    report(session, row[0], minute=5)
    ages = "select extract(epoch from now() - minute) / 60 < %s, attempts from pgnet.host_minute"
    assert database.rows(f"{ages} order by minute", 2.1) == [(True, 1), (True, 1)]
    assert database.value("select slots from pgnet.worker") == 5
    with pytest.raises(errors.ConnectionDoesNotExist):
        report(session, 77)


def test_a_report_that_cannot_be_written_comes_again(
    database: Database, worker: Worker, nginx: Nginx
) -> None:
    with database.connect(autocommit=False) as session:
        session.execute("lock table pgnet.host_minute in access exclusive mode")
        id = database.value("select net.http_get(%s)", nginx.url)
        assert database.value("select status_code from net.wait(%s)", id) == 200
        database.wait_for("select count(*) = 1 from net._http_response")
        session.rollback()
    wait_until(lambda: stats(database), lambda f: f[None]["out_per_minute"] == 1, "the report")
