"""Workers among others: behind a pooler, stopped, killed, cut off, and seen in net.workers."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

import pgnet
from servers import httpd, netns, pooler
from servers.cluster import CLEAN_ENVIRONMENT, Cluster, Database, Worker, server_python
from servers.httpd import Running
from servers.traffic import make_durable, queue, targets, wait_for_states
from servers.traffic import seen as arrived
from servers.waiting import wait_until
from servers.workers import Session

# ---- poolers


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_a_worker_behind_a_pooler_is_refused(
    cluster: Cluster, database: Database, mode: str
) -> None:
    """The worker ends at once, says in a line what to do, and leaves the pool's sessions alone."""
    with pooler.running(cluster, mode) as pool:
        command = [server_python(), "-m", "pgnet", "worker", "--dsn", pool.dsn(database.name)]
        ended = subprocess.run(
            command, env=CLEAN_ENVIRONMENT, capture_output=True, text=True, timeout=20, check=False
        )
        assert ended.returncode == 1, ended.stderr
        assert ended.stdout == ""
        assert ended.stderr.count("\n") == 1, ended.stderr
        assert ended.stderr.startswith("pgnet worker: a connection pooler stands between")
        assert "connect to the server directly" in ended.stderr
        assert database.value("select count(*) from pgnet.worker") == 0
        with psycopg.connect(pool.dsn(database.name), autocommit=True) as caller:
            row = caller.execute(
                "select current_setting('search_path'), current_setting('tcp_user_timeout')"
            ).fetchone()
        assert row == ('"$user", public', "0")


def test_a_session_that_changes_under_a_worker(database: Database, witness: Running) -> None:
    """A pooler that hands on the server's own pid is noticed by the look in the database."""
    with database.cluster.worker(dbname=database.name) as worker:
        queue(database, f"{witness.url}/body/x")
        wait_for_states(database, {"succeeded": 1})
        database.execute("update pgnet.worker set pid = pg_backend_pid()")
        database.execute("select net.worker_restart()")
        assert worker.process.wait(10) == 1
        lines = worker.output().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("pgnet worker: the worker's session has changed under it. ")
        assert "connect to the server directly" in lines[0]


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_callers_may_go_through_a_pooler(
    cluster: Cluster, database: Database, worker: Worker, witness: Running, mode: str
) -> None:
    """More callers than sessions, their transactions committed and rolled back in turns."""
    with pooler.running(cluster, mode, sessions=2 if mode == "transaction" else 5) as pool:
        callers = [psycopg.connect(pool.dsn(database.name), prepare_threshold=None) for _ in "abcd"]
        for n in range(40):
            caller = callers[n % len(callers)]
            caller.execute("select net.http_get(%s)", (f"{witness.url}/body/{n}?",))
            (caller.rollback if n % 5 == 4 else caller.commit)()
        wait_for_states(database, {"succeeded": 32})
        assert database.value("select max(created - requested) from net.responses") is not None
        for caller in callers:
            caller.close()
    sent = {int(target.rpartition("/")[2].rstrip("?")) for target in targets(witness)}
    assert sent == {n for n in range(40) if n % 5 != 4}


# ---- stopped in order, again and again

STOPS = int(os.environ.get("PGNET_STOPS", "6"))
GRACE = 1.5
# One request in so many is slower than the grace.
SLOW_ONE_IN = 60


class Load:
    """Clients that commit requests without a pause, most of them quick, a few slower than GRACE."""

    def __init__(self, database: Database, url: str, clients: int = 2) -> None:
        self.database = database
        self.url = url
        self.committed: list[str] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _work(self, client: int) -> None:
        chance = random.Random(client)
        number = 0
        with self.database.cluster.connect(self.database.name, autocommit=False) as connection:
            while not self._over.is_set():
                keys = []
                for _ in range(chance.randint(1, 6)):
                    slow = chance.randrange(SLOW_ONE_IN) == 0
                    way = f"/delay/{GRACE * 2}" if slow else f"/delay/{chance.random() * 0.3:.2f}"
                    keys.append(f"{way}?{client}-{number}")
                    number += 1
                connection.execute(
                    "select net.http_get(%s || key, timeout_milliseconds => 20000)"
                    " from unnest(%s::text[]) key",
                    (self.url, keys),
                )
                connection.commit()
                with self._lock:
                    self.committed += keys
                self._over.wait(0.05)

    def check(self, witness: Running) -> Counter[str]:
        """Check that each request succeeded once; gives how often each was sent."""
        path = "regexp_replace(url, '^http://[^/]*', '')"
        outcomes = self.database.rows(f"select {path}, state, attempts from net._http_response")
        assert Counter(key for key, _, _ in outcomes) == Counter(self.committed)
        assert [row for row in outcomes if row[1] != "succeeded"] == []
        assert self.database.value("select count(*) from pgnet.claim") == 0
        sent = Counter(targets(witness))
        assert sent.keys() == set(self.committed)
        # what was claimed, and cut off before it went out, counts as an attempt too
        attempts = {key: attempts for key, _, attempts in outcomes}
        more = {key: times for key, times in sent.items() if times > attempts[key]}
        assert not more, "sent more often than attempted"
        return sent


def in_turns(work: Callable[[random.Random], float], times: int, at_once: int = 3) -> list[float]:
    """Do something so many times, some of them at once; gives what it gave."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda n: work(random.Random(n)), range(times)))


def drained(database: Database) -> None:
    left = (
        "select format('%s queued, %s of them alone, %s claimed', count(*),"
        " count(*) filter (where due = 'infinity'), (select count(*) from pgnet.claim))"
        " from net.http_request_queue"
    )
    database.wait_for(left, predicate=lambda text: text.startswith("0 queued"), timeout=60 + STOPS)


@pytest.mark.timeout(120 + 8 * STOPS)
def test_stops_of_processes_under_load(database: Database, witness: Running) -> None:
    """SIGTERM: nothing is lost, and only what outlives the grace is sent twice."""

    def life(chance: random.Random) -> float:
        with (
            database.cluster.connect(database.name) as connection,
            database.worker("--verbose", "--grace", str(GRACE), seen=False) as worker,
        ):
            serving_as = wait_until(
                lambda: re.search(r"serving as worker (\d+)", worker.output()), timeout=30
            )
            assert serving_as is not None
            at_work = "select exists (select from pgnet.claim where worker = %s)"

            def busy() -> bool:
                row = connection.execute(at_work, (serving_as.group(1),)).fetchone()
                return row is not None and row[0]

            wait_until(busy, description="it has something in flight", timeout=30)
            time.sleep(chance.random() * 0.4)
            began = time.monotonic()
            worker.process.send_signal(signal.SIGTERM)
            assert worker.process.wait(GRACE + 10) == 0
            took = time.monotonic() - began
            assert "Traceback" not in worker.output()
            return took

    with Load(database, witness.url) as load:
        took = in_turns(life, STOPS)
    with database.worker():
        drained(database)
    sent = load.check(witness)
    assert max(took) <= GRACE + 2
    again = {key for key, times in sent.items() if times > 1}
    # whatever was cut off had the whole grace, and did not end in it
    shortest = database.value("select min(ended - started) from pgnet.attempt")
    assert shortest is None or shortest.total_seconds() >= GRACE - 0.1
    attempts = database.rows("select ending, count(*) from pgnet.attempt group by 1")
    # all of the workers have said good-bye, and count what they did not finish
    assert database.rows(
        "select count(*), sum(cut_off) from net.workers where state = 'stopped'"
    ) == [(STOPS + 1, dict(attempts).get("stopped", 0))]
    assert dict(attempts).keys() <= {"stopped"}
    print(f"{len(sent)} requests, {len(again)} sent twice, stops took {max(took):.1f} s at most")


@pytest.mark.timeout(120 + 8 * STOPS)
def test_ends_of_backends_under_load(database: Database, witness: Running) -> None:
    """Cancelled, terminated or at the end of its time: what was cut off is all that is repeated."""
    database.execute("select net.configure('max_grace', %s)", f"{GRACE} s")
    # so many are terminated that some requests have the bad luck of several
    database.execute("select net.configure('max_losses', '100')")
    ends = Counter[str]()

    def life(chance: random.Random) -> float:
        way = chance.choice(["pg_cancel_backend", "pg_terminate_backend", "runtime"])
        ends[way] += 1
        runtime = chance.random() * 0.5 + 0.3
        with (
            database.cluster.connect(database.name) as connection,
            database.cluster.connect(database.name) as other,
        ):
            call = "call net.work()" if way != "runtime" else f"call net.work('{runtime} s')"
            session = Session(connection, call)
            if way == "runtime":
                assert session.ended(30) is None
                lived = "select ended - started from net.workers where pid = %s"
                row = other.execute(lived, (session.pid,)).fetchone()
                assert row is not None
                seconds: float = row[0].total_seconds()
                return seconds - runtime - GRACE
            at_work = (
                "select exists (select from pgnet.claim c join pgnet.worker w on w.id = c.worker"
                " where w.pid = %s)"
            )

            def busy() -> bool:
                row = other.execute(at_work, (session.pid,)).fetchone()
                return row is not None and row[0]

            wait_until(busy, description="it has something in flight", timeout=30)
            time.sleep(chance.random() * 0.4)
            began = time.monotonic()
            other.execute(f"select {way}(%s)", (session.pid,))
            error = session.ended(30)
            expected = {
                "pg_cancel_backend": psycopg.errors.QueryCanceled,
                # its message says more than its class
                "pg_terminate_backend": psycopg.OperationalError,
            }[way]
            assert isinstance(error, expected), error
            return time.monotonic() - began

    with Load(database, witness.url) as load:
        took = in_turns(life, STOPS)
    with database.worker():
        drained(database)
    sent = load.check(witness)
    assert max(took) <= 2
    endings = dict(database.rows("select ending, count(*) from pgnet.attempt group by 1"))
    assert endings.keys() <= {"stopped", "lost"}
    if not ends["pg_terminate_backend"]:
        assert "lost" not in endings
    cut_off = database.value("select sum(cut_off) from net.workers")
    assert cut_off == endings.get("stopped", 0)
    print(f"{len(sent)} requests, {ends}, {endings}, took {max(took):.1f} s at most")


# ---- killed

# Databases at once, and kills in each, one after another.
CHAINS, KILLS = 10, 2


def test_rescue_after_a_kill_is_quick(cluster: Cluster, witness: Running) -> None:
    """kill -9 of a worker process, one other alive, which has its request within 5 s."""

    def chain(number: int) -> list[float]:
        chance = random.Random(number)
        took = []
        database = cluster.create_database()
        try:
            database.execute("select net.allow_network('loopback')")
            with contextlib.ExitStack() as stack:
                worker = stack.enter_context(database.worker("--grace", "0"))
                for kill in range(KILLS):
                    database.execute("select net.cancel(id) from net.http_request_queue")
                    key = f"{number}-{kill}"
                    queue(database, f"{witness.url}/delay/600?{key}", 1, 700_000)
                    sent(key, 1)
                    other = stack.enter_context(database.worker("--grace", "0"))
                    # at any moment between two of its looks
                    time.sleep(chance.random())
                    killed = time.time()
                    worker.kill()
                    at = sent(key, 2)
                    took.append(at[1] - killed)
                    worker = other
        finally:
            database.drop()
        return took

    def sent(key: str, times: int) -> list[float]:
        return wait_until(
            lambda: [
                entry["at"]
                for entry in witness.record()
                if entry["target"].rpartition("?")[2] == key
            ],
            lambda at: len(at) == times,
            f"it is sent {times} times",
            20,
        )

    with ThreadPoolExecutor(CHAINS) as pool:
        took = sorted(t for some in pool.map(chain, range(CHAINS)) for t in some)
    print(f"rescued after {took[0]:.2f} to {took[-1]:.2f} s, median {took[len(took) // 2]:.2f}")
    assert len(took) == CHAINS * KILLS
    assert took[int(len(took) * 0.95) - 1] <= 5, took
    assert took[0] > 3, "rescued before rescue_after"


# ---- the server restarts


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_with_two_workers_sends_nothing_again(
    stoppable: Database, stoppable_cluster: Cluster, witness: Running, mode: str
) -> None:
    """Away for 2.5 s; neither takes the other for lost: both come back within rescue_after."""
    with stoppable.worker() as one, stoppable.worker() as other:
        queue(stoppable, f"{witness.url}/delay/0.3?early-#", 40)
        queue(stoppable, f"{witness.url}/delay/3.2?late-#", 60)
        arrived(witness, 100)
        make_durable(stoppable)
        stoppable.close()
        stoppable_cluster.stop(mode)
        time.sleep(2.5)
        stoppable_cluster.start()
        wait_for_states(stoppable, {"succeeded": 100})
        assert set(Counter(targets(witness)).values()) == {1}
        assert len(targets(witness)) == 100
        assert stoppable.value("select max(attempts) from net._http_response") == 1
        assert stoppable.value("select count(*) from pgnet.attempt") == 0
        stoppable.wait_for("select count(*) = 2 from net.workers where state = 'running'")
        for worker in (one, other):
            assert worker.process.poll() is None
            assert "Traceback" not in worker.output()


# ---- on another host


@pytest.fixture(scope="module")
def wire() -> Iterator[netns.Wire]:
    try:
        with netns.wire() as laid:
            yield laid
    except netns.LackingRight as error:
        pytest.skip(f"no network namespaces here: {error}")


@pytest.fixture(scope="module")
def distant(wire: netns.Wire, installed: None) -> Iterator[Database]:
    """A database on the host at the other end of the wire; by its Unix socket it is here too."""
    cluster = Cluster(listen_addresses=wire.SERVER)
    with netns.inside(wire.server):
        cluster.create()
    try:
        with (cluster.data / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {wire.CLIENT}/32 trust\n")
        database = cluster.create_database()
        database.execute("select pg_reload_conf()")
        database.execute("select net.allow_network('loopback')")
        yield database
        database.close()
    finally:
        cluster.close()


@pytest.fixture
def beside(wire: netns.Wire) -> Iterator[Running]:
    """The test, and a server for requests, are on the workers' host."""
    with netns.inside(wire.client), httpd.running() as running:
        yield running


def far(wire: netns.Wire, database: Database, more: str = "") -> list[str]:
    """The arguments of a worker that connects over the wire."""
    address = f"host={wire.SERVER} port={database.cluster.port} dbname={database.name}"
    return ["--dsn", f"{address} user=postgres {more}"]


def test_a_commit_wakes_a_worker_on_another_host(
    wire: netns.Wire, distant: Database, beside: Running
) -> None:
    caller = distant.connect(autocommit=False)
    with distant.worker(*far(wire, distant)):
        distant.wait_for(
            "select count(*) = 2 from pg_stat_activity where client_addr = %s", wire.CLIENT
        )
        committed = {}
        for number in range(30):
            caller.execute("select net.http_get(%s)", (f"{beside.url}/body/x?{number}",))
            committed[str(number)] = time.time()
            caller.commit()
            arrived(beside, number + 1)
        took = sorted(
            entry["at"] - committed[entry["target"].rpartition("?")[2]] for entry in beside.record()
        )
    print(f"commit to request: median {took[15] * 1000:.1f} ms, at most {took[-1] * 1000:.1f} ms")
    assert took[15] < 0.03, "not woken: it found the requests by looking"


KEEPALIVES = "keepalives_idle=2 keepalives_interval=1 keepalives_count=2 tcp_user_timeout=4000"


def test_both_ends_of_a_workers_connections_look_after_the_other(
    wire: netns.Wire, distant: Database
) -> None:
    """Both of its connections, at both ends, have a timer that is to ask in 10 s at most."""

    def timers() -> list[str]:
        command = ["ss", "--no-header", "--options", "--tcp", "state", "established"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return re.findall(r"timer:\(keepalive,(?:[0-9.]+ms|[0-9]sec|10sec),", shown)

    with netns.inside(wire.client), distant.worker(*far(wire, distant)):
        for name in (wire.client, wire.server):
            with netns.inside(name):
                wait_until(timers, lambda found: len(found) == 2, "the timers of two connections")


def test_a_worker_whose_packets_are_dropped(
    wire: netns.Wire, distant: Database, beside: Running
) -> None:
    """The worker cannot deregister: its requests are rescued, and it comes back fenced."""
    # two seconds without a word, two probes of one second, and what a lost worker's rescue takes
    longest = 2 + 2 * 1 + 1 + 3 + 2
    with (
        distant.worker(*far(wire, distant, KEEPALIVES), "--verbose") as lost,
        contextlib.ExitStack() as stack,
    ):
        distant.wait_for("select count(*) = 1 from net.workers where state = 'running'")
        worker_id = distant.value("select id from net.workers where state = 'running'")
        queue(distant, f"{beside.url}/delay/2?#", 10)
        arrived(beside, 10)
        wire.cut()
        stack.callback(wire.mend)
        cut = time.monotonic()
        # this one goes by the Unix socket
        stack.enter_context(distant.worker())
        arrived(beside, 20, longest + 5)
        took = time.monotonic() - cut
        print(f"rescued {took:.1f} s after the packets were dropped")
        assert took <= longest
        state = "select state from net.workers where id = %s"
        assert distant.value(state, worker_id) == "lost"
        distant.wait_for("select count(*) = 0 from net.http_request_queue", timeout=20)
        before = distant.rows("select id, attempts, created from net.responses order by id")
        assert {attempts for _, attempts, _ in before[-10:]} == {2}
        stack.close()
        wait_until(lambda: distant.value(state, worker_id), "running".__eq__, "it is back", 30)
        # and alone now
        queue(distant, f"{beside.url}/body/after", 10)
        distant.wait_for("select count(*) = 0 from net.http_request_queue", timeout=20)
        after = distant.rows("select id, attempts, created from net.responses order by id")
        assert after[: len(before)] == before
        assert len(after) == len(before) + 10
        assert "Traceback" not in lost.output()


# ---- net.workers


def shown(database: Database) -> list[tuple[Any, ...]]:
    return database.rows("select kind, state, in_flight, cut_off from net.workers order by id")


def test_workers_are_seen(database: Database, witness: Running) -> None:
    """net.workers shows both kinds: while they live, when they have stopped or were lost."""
    assert shown(database) == []
    with database.worker("--grace", "0") as process:
        queue(database, f"{witness.url}/delay/600?#", 3, 700_000)
        arrived(witness, 3)
        assert shown(database) == [("process", "running", 3, 0)]
        row = database.row("select host, version, ended, pid from net.workers")
        assert row is not None
        assert row[:3] == (socket.gethostname(), pgnet.__version__, None)
        activity = "select application_name from pg_stat_activity where pid = %s"
        assert database.value(activity, row[3]) == "pgnet worker"
        assert process.stop() == 0
    assert shown(database) == [("process", "stopped", 0, 3)]
    assert database.value("select ended > started from net.workers")
    # a role that is not the owner sees the workers, but not where they run
    database.execute("set role pg_monitor")
    assert database.rows("select kind, state, host from net.workers") == [
        ("process", "stopped", None)
    ]
    database.execute("reset role")

    connection = database.connect()
    session = Session(connection, "call net.work()")
    arrived(witness, 6)
    assert shown(database)[1:] == [("backend", "running", 3, 0)]
    assert database.value("select pid from net.workers where kind = 'backend'") == session.pid
    connection.cancel()
    session.ended()
    assert shown(database)[1:] == [("backend", "stopped", 0, 3)]

    session = Session(connection, "call net.work()")
    arrived(witness, 9)
    database.execute("select pg_terminate_backend(%s)", session.pid)
    session.ended()
    database.wait_for("select count(*) = 1 from net.workers where state = 'lost'")
    with database.worker("--grace", "0") as process:
        arrived(witness, 12)
        assert shown(database)[2:] == [("backend", "lost", 0, 0), ("process", "running", 3, 0)]
        assert database.value("select ended is not null from net.workers where state = 'lost'")
        process.kill()
        database.wait_for("select count(*) = 2 from net.workers where state = 'lost'")
        assert shown(database)[3:] == [("process", "lost", 3, 0)]
