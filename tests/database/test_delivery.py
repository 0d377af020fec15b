"""The promises of delivery beyond retries: at most once, poison, stalled workers, clocks, modes."""

from __future__ import annotations

import contextlib
import http.server
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from servers.cluster import Database, Worker, free_port
from servers.crashes import Supervisor, crash, kill_backend
from servers.httpd import Running
from servers.recorder import Recorder
from servers.traffic import seen, targets
from servers.waiting import wait_until
from servers.workers import serving

ONCE = '{"delivery": "at_most_once"}'
UNKNOWN = "Whether the request was received is unknown, and it is not sent again."


def request(database: Database, url: str, **arguments: Any) -> int:
    """net.http_request by names of arguments; gives the id."""
    given = {"method": "POST", "url": url, **arguments}
    names = ", ".join(f"{name} => %s" for name in given)
    id: int = database.value(f"select net.http_request({names})", *given.values())
    return id


def ended(database: Database, id: int, timeout: float = 20.0) -> tuple[str, int | None, str | None]:
    """Wait for the end; gives state, status code and error."""

    def look() -> Any:
        return database.row(
            "select state::text, status_code, error_msg from net._http_response where id = %s", id
        )

    found: tuple[str, int | None, str | None] = wait_until(
        look, description=f"request {id} has ended", timeout=timeout
    )
    return found


# ---- at most once


def test_the_claim_of_a_request_that_is_sent_once_is_on_disk(database: Database) -> None:
    """And that of all others need not be: lost, the request is free again."""
    recorder = Recorder(database)
    for options, expected in (
        ("{}", "off"),
        (ONCE, "on"),
        ('{"delivery": "at_least_once"}', "off"),
    ):
        request(database, "http://unsent.example/", options=options)
        with recorder.connection.transaction():
            recorder.connection.execute("set local synchronous_commit = off")
            assert len(recorder.claim()) == 1
            [(shown,)] = recorder.connection.execute("show synchronous_commit").fetchall()
            assert shown == expected, options


def kill_process(stack: contextlib.ExitStack, database: Database) -> Callable[[], None]:
    return stack.enter_context(database.worker()).kill


def stop_process(stack: contextlib.ExitStack, database: Database) -> Callable[[], None]:
    worker = stack.enter_context(database.worker("--grace", "0"))
    return lambda: print(worker.stop())


def kill_the_backend(stack: contextlib.ExitStack, database: Database) -> Callable[[], None]:
    session = stack.enter_context(serving(database))
    return lambda: kill_backend(database, session.pid)


def crash_the_server(stack: contextlib.ExitStack, database: Database) -> Callable[[], None]:
    stack.enter_context(serving(database))
    return lambda: crash(database)


@pytest.mark.parametrize("fault", [kill_process, stop_process, kill_the_backend, crash_the_server])
def test_at_most_once_ends_as_unknown(
    stricken: Database,
    witness: Running,
    fault: Callable[[contextlib.ExitStack, Database], Callable[[], None]],
) -> None:
    with contextlib.ExitStack() as stack:
        strike = fault(stack, stricken)
        once = request(stricken, f"{witness.url}/delay/600?once", options=ONCE)
        twice = request(stricken, f"{witness.url}/delay/600?twice")
        seen(witness, 2)
        strike()
    with stricken.worker("--grace", "0"):
        state, status, error = ended(stricken, once)
        assert (state, status) == ("unknown", None)
        assert error is not None
        assert error.endswith(UNKNOWN)
        seen(witness, 3)
        assert Counter(target.partition("?")[2] for target in targets(witness)) == {
            "once": 1,
            "twice": 2,
        }
    assert stricken.value("select state::text from net.requests where id = %s", twice) == "ready"
    assert stricken.value("select (net.http_get_result(%s)).status::text", once) == "ERROR"
    assert stricken.rows("select id, state::text, attempts from net.failures") == [
        (once, "unknown", 1)
    ]
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="is unknown") as caught:
        stricken.execute("select net.retry(id) from net.failures")
    assert "even_unknown" in (caught.value.diag.message_hint or "")
    again = stricken.value("select net.retry(%s, even_unknown => true)", once)
    assert stricken.rows(
        "select id, retry_of from net.http_request_queue where id = %s", again
    ) == [(again, once)]


@pytest.mark.parametrize(
    ("path", "state"),
    [
        ("status/200", "succeeded"),
        ("status/503", "failed"),
        ("reset", "unknown"),
        ("empty", "unknown"),
        ("hang", "unknown"),
        ("garbage", "unknown"),
    ],
)
@pytest.mark.parametrize("kind", ["process", "backend"])
def test_what_is_known_of_a_request_that_is_sent_once(
    database: Database, witness: Running, path: str, state: str, kind: str
) -> None:
    with database.worker() if kind == "process" else serving(database):
        ids = [
            request(
                database,
                f"{witness.url}/{path}",
                method=method,
                options=ONCE,
                retry="webhook",
                timeout_milliseconds=1000,
            )
            for method in ("POST", "GET")
        ]
        assert [ended(database, id)[0] for id in ids] == [state] * 2
    assert len(targets(witness)) == 2


def test_once_over_a_connection_that_was_kept_and_has_ended(
    database: Database, witness: Running
) -> None:
    """An idempotent request would be sent again; one that is sent once makes its own connection."""
    with database.worker():
        for _ in range(10):
            kept = request(database, f"{witness.url}/body/x", method="GET")
            assert ended(database, kept)[0] == "succeeded"
            witness.reset()
            id = request(database, f"{witness.url}/empty", method="GET", options=ONCE)
            assert ended(database, id)[0] == "unknown"
            assert len(targets(witness)) == 1


# ---- what kills its worker


class Executioner(http.server.ThreadingHTTPServer):
    """Kills the worker that asks for /poison; notes how many other requests it served meanwhile."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self) -> None:
        self.victim: Callable[[], int] = int
        self.others: list[int] = []
        self.served: Counter[str] = Counter()
        self._now = 0
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", free_port()), _Executing)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def poisoned(self) -> None:
        with self._lock:
            self.others.append(self._now)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.victim(), signal.SIGKILL)

    @contextlib.contextmanager
    def serving(self, path: str) -> Iterator[None]:
        with self._lock:
            self._now += 1
            self.served[path] += 1
        yield
        with self._lock:
            self._now -= 1


class _Executing(http.server.BaseHTTPRequestHandler):
    server: Executioner
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/poison":
            self.server.poisoned()
            self.close_connection = True
            return
        with self.server.serving(self.path):
            time.sleep(0.2)
        with contextlib.suppress(OSError):
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def executioner() -> Iterator[Executioner]:
    server = Executioner()
    yield server
    server.shutdown()
    server.server_close()


class Restarted:
    """A worker process that is started again whenever it has ended."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.worker: Worker | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        wait_until(lambda: self.worker, description="the worker runs")

    def pid(self) -> int:
        assert self.worker is not None
        return self.worker.pid

    def _work(self) -> None:
        while not self._stopped.is_set():
            with self.database.worker("--grace", "0", seen=False) as self.worker:
                while self.worker.process.poll() is None and not self._stopped.wait(0.02):
                    pass

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(20)


def has_ended_among_others(database: Database, poison: int, url: str) -> bool:
    """Whether a request has an outcome; more innocent ones are made while it has none.

    Those that a crash of the server refuses are made the next time.
    """
    with contextlib.suppress(psycopg.Error):
        database.execute(
            "insert into innocent select net.http_request("
            "'GET', %s || n) from generate_series(1, 5) n",
            f"{url}/innocent?{time.monotonic_ns()}-",
        )
        return bool(
            database.value("select exists (select from net._http_response where id = %s)", poison)
        )
    database.close()
    time.sleep(0.05)
    return False


@pytest.mark.parametrize("kind", ["process", "backend"])
def test_a_request_that_kills_its_worker(
    stricken: Database, executioner: Executioner, kind: str
) -> None:
    """Such a request is attempted alone, and ends as failed; all others are served."""
    stricken.execute("select net.configure('rescue_after', '0')")
    stricken.execute("select net.configure('max_losses', '4')")
    stricken.execute("create table innocent (id bigint)")
    supervisor = Supervisor(stricken) if kind == "backend" else None
    restarted = Restarted(stricken) if supervisor is None else None
    executioner.victim = lambda: supervisor.pid if supervisor else restarted.pid()  # type: ignore[union-attr]
    try:
        poison = request(
            stricken, f"{executioner.url}/poison", method="GET", timeout_milliseconds=5000
        )
        wait_until(
            lambda: has_ended_among_others(stricken, poison, executioner.url),
            description="the poison has ended",
            timeout=60,
            interval=0.05,
        )
        # The last of them may have been lost with the last crash.
        stricken.close()
        wait_until(
            lambda: stricken.value(
                "select count(*) from innocent i left join net._http_response r using (id)"
                " where r.state is distinct from 'succeeded'"
            ),
            lambda left: left == 0,
            "all others are served",
            30,
        )
        assert stricken.rows(
            "select state::text, attempts, error_msg from net._http_response where id = %s", poison
        ) == [
            (
                "failed",
                4,
                "The worker was lost. 4 workers were lost with it, and it is not tried again.",
            )
        ]
        assert stricken.rows(
            "select attempt, state from net.attempts where request_id = %s order by 1", poison
        ) == [(1, "lost"), (2, "lost"), (3, "lost"), (4, "failed")]
        # The third time with a few that were lost as often, the fourth time with nobody.
        assert executioner.others[-1] == 0
        # A crash may forget the claim of the first one.
        assert len(executioner.others) in ((4,) if kind == "process" else (4, 5))
        assert stricken.value("select count(*) from pgnet.claim") == 0
    finally:
        if supervisor is not None:
            supervisor.stop()
        if restarted is not None:
            restarted.stop()


# ---- workers that stall, and clocks


def test_a_stopped_process_loses_its_claims_past_their_deadline(
    database: Database, witness: Running
) -> None:
    with database.worker("--grace", "0") as stopped:
        request(database, f"{witness.url}/delay/600", timeout_milliseconds=600_000)
        seen(witness, 1)
        stopped.pause()
        with database.worker("--grace", "0"):
            database.execute("update pgnet.claim set deadline = clock_timestamp()")
            seen(witness, 2, 15)
            assert database.value(
                "select state from net.workers where pid <> %s order by id", 0
            ) in (
                "stalled",
                "running",
            )
            assert database.rows("select attempt, ending from pgnet.attempt") == [(1, "lost")]
            stopped.resume()
            # it is well again, and its late answer would be fenced off
            database.wait_for("select count(*) = 2 from net.workers where state = 'running'")


def test_a_clock_put_forward_takes_nothing_from_a_worker_that_is_well(
    database: Database, witness: Running
) -> None:
    """By such a clock, every claim is past its deadline."""
    with database.worker(), database.worker():
        id = request(database, f"{witness.url}/delay/9", timeout_milliseconds=20_000)
        seen(witness, 1)
        database.execute("update pgnet.claim set deadline = clock_timestamp() - interval '1 hour'")
        assert ended(database, id) == ("succeeded", 200, None)
    assert len(targets(witness)) == 1
    assert database.value("select attempts from net._http_response") == 1


def test_a_clock_put_back_strands_nothing(database: Database) -> None:
    """Written an hour ahead: a claim's deadline, a time to wait for, a worker's absence."""
    recorder = Recorder(database)
    first = request(database, "http://unsent.example/1", timeout_milliseconds=30_000)
    recorder.claim()
    database.execute(
        "update pgnet.claim set claimed = claimed + interval '1 hour',"
        " deadline = deadline + interval '1 hour'"
    )
    database.execute("update pgnet.worker set gone_since = clock_timestamp() + interval '1 hour'")
    waiting = request(database, "http://unsent.example/2")
    quarantined = request(database, "http://unsent.example/3")
    database.execute(
        "update net.http_request_queue set due = clock_timestamp() + interval '1 hour 2 s',"
        " waits_since = clock_timestamp() + interval '1 hour' where id = %s",
        waiting,
    )
    database.execute(
        "update net.http_request_queue set due = 'infinity',"
        " waits_since = clock_timestamp() + interval '1 hour' where id = %s",
        quarantined,
    )
    heartbeat = database.value(
        "select pgnet.heartbeat(worker_id) from pgnet.register_worker('process')"
    )
    assert heartbeat["next_poll"] <= 3.1
    assert heartbeat["quarantined"]
    assert database.value(
        "select deadline - clock_timestamp() < interval '91 s' from pgnet.claim where id = %s",
        first,
    )
    assert database.value(
        "select due - clock_timestamp() between '1 s' and '2.1 s' from net.http_request_queue"
        " where id = %s",
        waiting,
    )
    assert database.value("select bool_and(gone_since <= clock_timestamp()) from pgnet.worker")


# ---- modes


@pytest.mark.parametrize("kind", ["process", "backend"])
def test_mode_record_sends_nothing(database: Database, witness: Running, kind: str) -> None:
    database.execute("select net.configure('mode', 'record')")
    with database.worker() if kind == "process" else serving(database):
        id = request(database, f"{witness.url}/body/x", body='{"a": 1}', retry="webhook")
        assert ended(database, id) == ("cancelled", None, "Not sent: the mode is record.")
        # what would have been sent is there to be looked at, and can be sent
        [(state, method, url, body)] = database.rows(
            "select state::text, method, url, body from net.failures"
        )
        assert (state, method, url, bytes(body)) == (
            "cancelled",
            "POST",
            f"{witness.url}/body/x",
            b'{"a": 1}',
        )
        refused = request(database, "http://10.0.0.1/")
        ended(database, refused)
        assert targets(witness) == []
        database.execute("select net.configure('mode', 'on')")
        again = database.value("select net.retry(%s)", id)
        assert ended(database, again)[0] == "succeeded"
    assert targets(witness) == ["/body/x"]


@pytest.mark.parametrize("kind", ["process", "backend"])
def test_mode_off_claims_nothing(database: Database, witness: Running, kind: str) -> None:
    with database.worker() if kind == "process" else serving(database):
        warm = request(database, f"{witness.url}/body/warm")
        assert ended(database, warm)[0] == "succeeded"
        # in one transaction, so that the request and the mode are seen at once
        with database.connect().transaction() as transaction:
            transaction.connection.execute("select net.configure('mode', 'off')")
            transaction.connection.execute(
                "select net.http_request('POST', %s)", (f"{witness.url}/body/held",)
            )
        time.sleep(1)
        assert targets(witness) == ["/body/warm"]
        assert (
            database.rows("select state::text, attempts from net.requests order by id")
            == [
                ("ready", 0),
                ("succeeded", 1),
            ]
            or database.value("select count(*) from pgnet.claim") == 0
        )
        database.execute("call net.drain()")
        assert targets(witness) == ["/body/warm"]
        database.execute("select net.configure('mode', null)")
        seen(witness, 2)
    assert targets(witness) == ["/body/warm", "/body/held"]


# ---- stopping


@pytest.mark.parametrize("kind", ["setting", "option"])
def test_the_grace_is_at_most_the_longest_deadline_in_flight(
    database: Database, witness: Running, kind: str
) -> None:
    if kind == "setting":
        database.execute("select net.configure('max_grace', '20 s')")
    with database.worker(*(["--grace", "20"] if kind == "option" else [])) as worker:
        ids = [
            request(database, f"{witness.url}/hang", timeout_milliseconds=milliseconds)
            for milliseconds in (1000, 3000)
        ]
        seen(witness, 2)
        started = time.monotonic()
        assert worker.stop(15) == 0
        assert time.monotonic() - started < 3 + 2
    for id in ids:
        assert database.rows(
            "select state::text, timed_out from net._http_response where id = %s", id
        ) == [("failed", True)]


def test_what_outlives_max_grace_is_given_back_and_counted(
    database: Database, witness: Running
) -> None:
    database.execute("select net.configure('max_grace', '500 ms')")
    with database.worker() as worker:
        for n in range(3):
            request(database, f"{witness.url}/hang?{n}")
        once = request(database, f"{witness.url}/hang?once", options=ONCE)
        seen(witness, 4)
        started = time.monotonic()
        assert worker.stop(15) == 0
        assert time.monotonic() - started < 0.5 + 2
    assert database.rows("select state, in_flight, cut_off from net.workers") == [("stopped", 0, 4)]
    assert database.rows("select ending, count(*) from pgnet.attempt group by 1") == [
        ("stopped", 3)
    ]
    assert ended(database, once)[0] == "unknown"
    assert database.value("select count(*) from pgnet.claim") == 0


# ---- steering


def test_cancelling_what_waits_for_another_attempt(database: Database) -> None:
    recorder = Recorder(database)
    id = request(database, "http://unsent.example/")
    recorder.record(
        recorder.claim(), state="retrying", retry_in=3600, status_code=503, content=None
    )
    assert database.rows(
        "select state::text, attempts, status_code, next_attempt > now() + interval '59 min'"
        " from net.requests"
    ) == [("retrying", 1, 503, True)]
    assert database.value("select net.cancel(%s)", id) is True
    cancelled = [("cancelled", 1, 503, None)]
    standing = "select state::text, attempts, status_code, next_attempt from net.requests"
    assert database.rows(standing) == cancelled
    database.execute("select pgnet.act_on_marks()")
    assert database.rows("select state::text, attempts, error_msg from net._http_response") == [
        ("cancelled", 1, "The request was cancelled before another attempt.")
    ]
    assert database.rows("select attempt, state from net.attempts order by 1") == [(1, "answered")]


def expire(database: Database) -> None:
    """Have the heartbeat delete expired rows."""
    for kind in ("responses", "failed requests", "attempts"):
        database.execute("select pgnet.expire(%s)", kind)


def test_attempts_go_with_their_request(database: Database) -> None:
    """Attempts go with the response after ttl, or with the failure after ttl_failed."""
    recorder = Recorder(database)
    ids = [request(database, f"http://unsent.example/{n}") for n in range(4)]
    claims = recorder.claim()
    recorder.record(claims, state="retrying", retry_in=0, content=None, status_code=503)
    claims = recorder.claim()
    good, bad, gone, waiting = ids
    recorder.record({good: claims[good], gone: claims[gone]})
    recorder.record({bad: claims[bad]}, state="failed")
    assert database.value("select count(*) from pgnet.attempt") == 4
    database.execute("delete from net._http_response where id = %s", gone)
    database.execute("update net._http_response set created = now() - interval '1 day'")
    expire(database)
    assert database.rows("select request_id from pgnet.attempt order by 1") == [
        (bad,),
        (gone,),
        (waiting,),
    ]
    database.execute("update pgnet.failed set failed = now() - interval '15 days'")
    database.execute("update pgnet.attempt set ended = now() - interval '15 days'")
    expire(database)
    assert database.rows("select request_id from pgnet.attempt") == [(waiting,)]
