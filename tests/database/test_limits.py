"""Everything that misbehaves at once, through SQL and a real worker: what it costs, and whom.

The servers are those of servers/misbehaviour.py. Memory is the worker's resident set at its peak
(VmHWM, which the kernel is told to forget before each part) above what it was at rest.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import psycopg
import pytest

from servers import misbehaviour
from servers.cluster import Cluster, Database
from servers.memory import MIB, forget_peak, sockets, status
from servers.misbehaviour import Running
from servers.nginx import Nginx
from servers.waiting import wait_until
from servers.way import WAYS, Limits, Way, several
from servers.workers import Form, as_backend, as_process

COPIES = 10
# Milliseconds: of what is never answered, and of what must be done long before.
SHORT, LONG = 2000, 20_000
LATENESS = 1000
SMALL = Limits()
LARGE = Limits(8 * MIB, 4 * MIB, SMALL.max_header_bytes)


@pytest.fixture(scope="module")
def servers() -> Iterator[Running]:
    with misbehaviour.running() as running:
        yield running


@pytest.fixture(scope="module")
def fast() -> Iterator[Nginx]:
    """A server that does what it should; it keeps no record."""
    with Nginx(record=False) as nginx:
        yield nginx


@pytest.fixture
def prepared(cluster: Cluster, servers: Running) -> Iterator[Database]:
    database = cluster.create_database()
    database.execute("select net.allow_network('loopback')")
    # Servers that misbehave are all on one address, and each is asked as often as the test says.
    database.execute("select net.configure_host('*', '{\"breaker\": false, \"adaptive\": false}')")
    database.execute(
        "select net.configure_host('127.0.0.1', jsonb_build_object('ca', %s::text))", servers.ca
    )
    yield database
    database.drop()


def limit(database: Database, limits: Limits, **more: int) -> None:
    for name, value in {**asdict(limits), **more}.items():
        database.execute("select net.configure(%s, %s)", name, str(value))


# ---- what a process has


# ---- requests


@dataclass(frozen=True)
class Asked:
    """A request to a way, under its id."""

    id: int
    way: Way
    timeout: int


def ask(database: Database, servers: Running, ways: list[Way]) -> list[Asked]:
    """Queue requests to these, in one transaction."""
    asked = []
    with database.connect(autocommit=False) as session, session.pipeline():
        cursors = []
        for way in ways:
            timeout = SHORT if way.outcome.may_be_late else LONG
            body = None if way.size < 0 else bytes(min(way.size, MIB))
            cursors.append(
                session.execute(
                    "select net.http_request(%s, %s, body_bytes => %s, timeout_milliseconds => %s)",
                    (way.method, servers.url(way), body, timeout),
                )
            )
        for way, cursor in zip(ways, cursors, strict=True):
            row = cursor.fetchone()
            assert row is not None
            asked.append(Asked(row[0], way, SHORT if way.outcome.may_be_late else LONG))
    return asked


def left(database: Database) -> int:
    count: int = database.value("select count(*) from net.http_request_queue")
    return count


def all_ended(database: Database, seconds: float) -> None:
    wait_until(lambda: left(database), lambda n: n == 0, "every request has ended", seconds)


def assert_outcomes(database: Database, asked: list[Asked], limits: Limits) -> None:
    """Each request has its own outcome, and had it in time."""
    rows = {
        row[0]: row[1:]
        for row in database.rows(
            "select id, status_code, content, error_msg, timed_out, total_ms"
            " from net._http_response where id = any(%s)",
            [each.id for each in asked],
        )
    }
    wrong = []
    for each in asked:
        code, content, error, timed_out, total = rows[each.id]
        fits = each.way.outcome.fits(code, content, error, bool(timed_out), limits, busy=True)
        if not fits or total > each.timeout + LATENESS:
            wrong.append((each.way.name, code, (content or "")[:30], error, timed_out, total))
    assert wrong == []


class Steady:
    """A request to a good server each few milliseconds, until it is stopped."""

    INTERVAL = 0.01

    def __init__(self, database: Database, url: str) -> None:
        self._connection = database.connect()
        self._url = url
        self._ids: list[int] = []
        self._stop = threading.Event()
        self._error: psycopg.Error | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._ids)

    def go_on(self, seconds: float) -> None:
        """Ask good requests for that many seconds."""
        self._stop.wait(seconds)

    def _run(self) -> None:
        try:
            while not self._stop.wait(self.INTERVAL):
                row = self._connection.execute(
                    "select net.http_get(%s, timeout_milliseconds => 30000)", (self._url,)
                ).fetchone()
                assert row is not None
                self._ids.append(row[0])
        except psycopg.Error as error:
            self._error = error

    def stop(self, database: Database) -> list[float]:
        """The time of each in milliseconds, from its commit to its outcome, sorted."""
        self._stop.set()
        self._thread.join(10)
        self._connection.close()
        assert self._error is None
        rows = database.rows(
            "select (net.wait(id, '30 s')).status_code, id from unnest(%s) id", self._ids
        )
        assert {status for status, _ in rows} == {200}
        return sorted(
            float(took)
            for (took,) in database.rows(
                "select extract(epoch from took) * 1000 from net.responses where id = any(%s)",
                self._ids,
            )
        )


def percentile(sorted_times: list[float], share: float) -> float:
    return sorted_times[min(int(len(sorted_times) * share), len(sorted_times) - 1)]


# Seconds from wave to wave; a wave is one of each way.
INTERVAL = 1.0
# The peak beside as many silent requests, which have the same handles, connections and bodies to
# send, may be so much lower. By their limits, twice, all of them might have 1.3 GB.
ALLOWED = 64 * MIB
# How many times longer fast requests may take than beside the silent ones; and what the median and
# the slowest percent may take in any case, in milliseconds. (Servers, database and worker have the
# same few processors.)
RATIO, FLOORS = 10, (30, 1000)


def silent(ways: list[Way]) -> list[Way]:
    """As many requests with the same body, which are never answered."""
    return [replace(WAYS["silence"], method=way.method, size=way.size) for way in ways]


@pytest.mark.parametrize(
    ("form", "waves"), [(as_process, 6), (as_backend, 3)], ids=["process", "backend"]
)
def test_all_ways_beside_good_requests(
    prepared: Database,
    servers: Running,
    fast: Nginx,
    form: Form,
    waves: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Wave upon wave, then all at once: each has its outcome, and the worker lives as before."""
    database = prepared
    limit(database, SMALL)

    def beside(name: str, groups: list[list[Way]]) -> tuple[list[float], int]:
        """Have these asked beside fast requests; the times of those, and the peak."""
        rest = forget_peak(pid)
        steady = Steady(database, fast.url)
        asked = []
        for group in groups:
            asked += ask(database, servers, group)
            if len(groups) > 1:
                steady.go_on(INTERVAL)
        all_but_fast_ended(database, fast, 90)
        times = steady.stop(database)
        all_ended(database, 30)
        assert_outcomes(database, asked, SMALL)
        peak = status(pid, "VmHWM") - rest
        with capsys.disabled():
            print(
                f" [{len(asked)} {name}: {peak / MIB:.0f} MB, {len(times)} fast ones:"
                f" p50 {percentile(times, 0.5):.0f} ms, p99 {percentile(times, 0.99):.0f} ms]",
                end="",
            )
        return [percentile(times, 0.5), percentile(times, 0.99)], peak

    with form(database) as pid:
        # Once each, so that what is made once is made.
        beside("at first", [several(1)])
        opened = sockets(pid)
        groups = [several(1)] + [[way for way in several(1) if not way.alone]] * (waves - 1)
        quiet, quiet_peak = beside("silent", [silent(group) for group in groups])
        loud, loud_peak = beside("misbehaving", groups)
        for usual, now, floor in zip(quiet, loud, FLOORS, strict=True):
            assert now <= max(RATIO * usual, floor)
        assert loud_peak <= quiet_peak + ALLOWED
        if form is as_process:
            beside("at once", [several(COPIES)])
        assert_all_left(servers)
        # Connections are kept for the next requests, in some ways too, as at the fast server.
        assert sockets(pid) <= opened + 200


def all_but_fast_ended(database: Database, fast: Nginx, seconds: float) -> None:
    wait_until(
        lambda: database.value(
            "select count(*) from net.http_request_queue where not starts_with(url, %s)", fast.url
        ),
        lambda n: n == 0,
        "every request that misbehaves has ended",
        seconds,
        0.05,
    )


def assert_all_left(servers: Running) -> None:
    """The worker has closed the connections of all these ways, and used none of them again."""
    names = [way.name for way in WAYS.values() if not way.keeps and way.tls != "2"]

    def still_open() -> set[str]:
        seen = servers.seen()
        return {name for name in names if seen.open.intersection(seen.of(name))}

    wait_until(still_open, lambda found: not found, "the connections are closed", 10, 0.05)
    seen = servers.seen()
    assert {name: seen.after(name) for name in names if seen.after(name)} == {}


def test_one_at_a_time(
    prepared: Database, servers: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    """No answer costs more than its body does on its way into the database, in several forms.

    The largest of them is base64, and Python's of a text of which a character is wide.
    """
    database = prepared
    ways = [way for way in WAYS.values() if "exceed" in way.outcome.messages]
    assert len(ways) > 30
    grown = {}
    with as_process(database) as pid:
        # The worker now makes what it makes once, while no request may take much.
        limit(database, SMALL)
        ask(database, servers, ways)
        all_ended(database, 60)
        limit(database, LARGE)
        for way in ways:
            rest = forget_peak(pid)
            asked = ask(database, servers, [way])
            all_ended(database, 30)
            grown[way.name] = status(pid, "VmHWM") - rest
            assert_outcomes(database, asked, LARGE)
    most = max(grown, key=lambda name: grown[name])
    with capsys.disabled():
        print(f" [at most {grown[most] / MIB:.1f} MB, for {most}]", end="")

    def allowed(name: str) -> int:
        times = 8 if "wide" in name else 6
        return times * LARGE.max_response_bytes + 2 * LARGE.max_header_bytes

    assert {name: size for name, size in grown.items() if size > allowed(name)} == {}
