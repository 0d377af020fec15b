"""Real crashes: whatever dies, a committed request ends in one outcome, and no other is sent."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from servers.cluster import Cluster, Database
from servers.crashes import Supervisor, crash, kill_backend
from servers.httpd import Running
from servers.nginx import Nginx
from servers.recorder import Recorder
from servers.traffic import queue, seen, targets
from servers.waiting import wait_until
from servers.workers import Session, serving

RESCUE_AFTER = 3.0


# ---- a thousand requests with a crash in their midst


class Clients:
    """Several clients that commit and roll back requests, and go on when the server is back."""

    def __init__(self, database: Database, url: str, requests: int, seed: int) -> None:
        self.database = database
        self.url = url
        self.left = requests
        self.rolled_back: set[str] = set()
        self._lock = threading.Lock()
        self._random = random.Random(seed)
        self._threads = [
            threading.Thread(target=self._work, args=(f"client{n}",), daemon=True) for n in range(4)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, name: str) -> None:
        connection: psycopg.Connection[Any] | None = None
        number = 0
        while True:
            with self._lock:
                if self.left <= 0:
                    break
                size = min(self._random.randint(1, 8), self.left)
                self.left -= size
                fate = self._random.choice(["commit", "commit", "rollback", "savepoint"])
            keys = [f"{name}-{number + i}" for i in range(size)]
            number += size
            try:
                if connection is None or connection.closed:
                    connection = self.database.cluster.connect(self.database.name, autocommit=False)
                self._transact(connection, keys, fate)
            except psycopg.OperationalError:
                # what became of it, app.sent says
                if connection is not None:
                    connection.close()
        if connection is not None:
            connection.close()

    def _transact(self, connection: psycopg.Connection[Any], keys: list[str], fate: str) -> None:
        spoilt = [f"{key}-undone" for key in keys]
        if fate == "savepoint":
            connection.execute("savepoint before")
            self._send(connection, spoilt)
            connection.execute("rollback to savepoint before")
        self._send(connection, spoilt if fate == "rollback" else keys)
        if fate == "rollback":
            connection.rollback()
        else:
            connection.commit()
        if fate != "commit":
            with self._lock:
                self.rolled_back.update(spoilt)

    def _send(self, connection: psycopg.Connection[Any], keys: list[str]) -> None:
        for key in keys:
            connection.execute(
                "with i as (insert into app.sent values (%s) returning key)"
                " select net.http_get(%s || i.key, timeout_milliseconds => 20000) from i",
                (key, self.url),
            )

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a client hangs"


def kill_worker_process(stack: contextlib.ExitStack, database: Database) -> Callable[[], None]:
    worker = stack.enter_context(database.worker())

    def strike() -> None:
        worker.kill()
        stack.enter_context(database.worker())

    return strike


def kill_worker_backend(stack: contextlib.ExitStack, database: Database) -> Callable[[], None]:
    supervisor = Supervisor(database)
    stack.callback(supervisor.stop)

    def strike() -> None:
        kill_backend(database, supervisor.pid)

    return strike


def crash_under_process(stack: contextlib.ExitStack, database: Database) -> Callable[[], None]:
    stack.enter_context(database.worker())
    return lambda: crash(database)


def crash_under_backend(stack: contextlib.ExitStack, database: Database) -> Callable[[], None]:
    stack.callback(Supervisor(database).stop)
    return lambda: crash(database)


@pytest.mark.parametrize(
    "fault", [kill_worker_process, kill_worker_backend, crash_under_process, crash_under_backend]
)
def test_a_crash_amid_a_thousand_requests(
    stricken: Database,
    witness: Running,
    fault: Callable[[contextlib.ExitStack, Database], Callable[[], None]],
) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    with contextlib.ExitStack() as stack:
        strike = fault(stack, stricken)
        clients = Clients(stricken, f"{witness.url}/delay/0.05?", 1000, seed)
        seen(witness, 250, 60)
        strike()
        clients.join()
        wait_until(
            lambda: stricken.row(
                "select (select count(*) from net.http_request_queue),"
                " (select count(*) from pgnet.claim)"
            ),
            (0, 0).__eq__,
            "nothing is left in the queue, nothing claimed",
            30,
        )
        committed = {key for (key,) in stricken.rows("select key from app.sent")}
        outcomes = Counter(
            url.partition("?")[2] for (url,) in stricken.rows("select url from net._http_response")
        )
        assert stricken.rows("select state, count(*) from net._http_response group by 1") == [
            ("succeeded", len(committed))
        ]
    at_server = Counter(target.partition("?")[2] for target in targets(witness))
    assert clients.rolled_back
    assert not clients.rolled_back & at_server.keys(), "a rolled-back request was sent"
    assert outcomes == Counter(committed), "not one outcome for each committed request"
    assert at_server.keys() == committed
    print(f"{len(committed)} committed, {sum(at_server.values()) - len(committed)} sent twice")


# ---- rescue


def test_another_worker_rescues_a_killed_ones_requests(
    database: Database, witness: Running
) -> None:
    with database.worker() as first:
        queue(database, f"{witness.url}/delay/600?#", 20, 600_000)
        seen(witness, 20)
        with database.worker("--grace", "0"):
            first.kill()
            killed = time.monotonic()
            seen(witness, 40)
            took = time.monotonic() - killed
    assert set(Counter(targets(witness)).values()) == {2}
    assert took <= RESCUE_AFTER + 2, f"after {took:.2f} s"
    assert database.rows("select distinct attempt, error_msg from pgnet.attempt order by 1") == [
        (1, "The worker was lost."),
        (2, "The worker stopped while it was in flight."),
    ]


def test_a_new_worker_rescues_the_requests_of_one_that_was_alone(
    database: Database, witness: Running
) -> None:
    with database.worker() as first:
        queue(database, f"{witness.url}/delay/600?#", 20, 600_000)
        seen(witness, 20)
        first.kill()
    with database.worker("--grace", "0"):
        started = time.monotonic()
        seen(witness, 40)
        assert time.monotonic() - started <= RESCUE_AFTER + 2


def test_a_worker_that_is_back_in_time_keeps_its_requests(
    database: Database, witness: Running
) -> None:
    """Another one has seen twice that it is gone, and leaves it the time of rescue_after."""
    with database.worker() as first:
        queue(database, f"{witness.url}/delay/6?#", 20)
        seen(witness, 20)
        held = "pgnet.worker w where w.id in (select c.worker from pgnet.claim c)"
        with database.worker():
            first.pause()
            database.execute(f"select pg_terminate_backend(w.pid) from {held}")
            database.wait_for(f"select clock_timestamp() - w.gone_since > '1.5 s' from {held}")
            first.resume()
            database.wait_for("select count(*) = 20 from net._http_response")
    assert set(Counter(targets(witness)).values()) == {1}
    assert database.value("select count(*) from pgnet.attempt") == 0


def test_drain_rescues_too(database: Database, witness: Running) -> None:
    """net.drain does not end before the requests of a lost worker are free."""
    with database.worker() as first:
        queue(database, f"{witness.url}/delay/0.7?#", 5)
        seen(witness, 5)
        first.kill()
    database.execute("select net.configure('rescue_after', '500 ms')")
    database.wait_for(
        "select (database.n = 0) from (select count(*) as n from pgnet.claim c join pgnet.worker w"
        " on w.id = c.worker and pgnet.session_is_alive(w.pid, w.backend_start)) database"
    )
    deadline = time.monotonic() + 5
    while database.value("select count(*) from net._http_response") < 5:
        assert time.monotonic() < deadline
        database.execute("call net.drain()")
    assert database.rows("select attempts, count(*) from net._http_response group by 1") == [(2, 5)]


def test_a_claim_past_its_deadline_is_free(database: Database, witness: Running) -> None:
    """The session is there, but the claim is past its time and the worker does not look."""
    ids = queue(database, f"{witness.url}/body/x", 3)
    assert Recorder(database).claim().keys() == set(ids)
    database.execute("call net.drain()")
    assert witness.record() == []
    database.execute("update pgnet.claim set deadline = clock_timestamp()")
    database.execute("call net.drain()")
    assert witness.record() == []
    database.execute("update pgnet.worker set stalled_since = stalled_since - interval '5 s'")
    database.execute("call net.drain()")
    assert database.rows("select state, attempts from net._http_response") == [("succeeded", 2)] * 3


# ---- recording


@pytest.fixture
def recorder(database: Database) -> Recorder:
    return Recorder(database)


def enqueue(database: Database, count: int) -> list[int]:
    return queue(database, "http://unsent.example/#", count)


def test_a_stale_token_records_nothing(database: Database, recorder: Recorder) -> None:
    [id] = enqueue(database, 1)
    [token] = recorder.claim().values()
    stale = "00000000-0000-4000-8000-000000000000"
    assert recorder.record({id: stale}) == []
    assert database.value("select count(*) from net._http_response") == 0
    assert database.rows("select id, token::text from pgnet.claim") == [(id, token)]
    assert database.rows("select id from net.http_request_queue") == [(id,)]
    # the worker that holds the claim records, once
    assert recorder.record({id: token}) == []
    assert recorder.record({id: token}, content="again") == []
    assert database.rows("select id, content, attempts from net._http_response") == [(id, "ok", 1)]
    assert database.value("select count(*) from pgnet.claim") == 0


def test_a_rescued_claim_is_fenced(database: Database, recorder: Recorder) -> None:
    ids = enqueue(database, 5)
    stale = recorder.claim()
    database.execute("update pgnet.claim set deadline = clock_timestamp()")
    database.execute("update pgnet.worker set stalled_since = clock_timestamp() - interval '6 s'")
    database.execute("select pgnet.heartbeat(worker_id) from pgnet.register_worker('process')")
    other = Recorder(database)
    fresh = other.claim()
    assert fresh.keys() == stale.keys() == set(ids)
    assert set(fresh.values()) != set(stale.values())
    recorder.record(stale, content="stale")
    assert database.value("select count(*) from net._http_response") == 0
    other.record(fresh, content="fresh")
    recorder.record(stale, content="stale")
    assert database.rows(
        "select content, attempts, count(*) from net._http_response group by 1, 2"
    ) == [("fresh", 2, 5)]


def test_claims_are_exclusive(database: Database, recorder: Recorder) -> None:
    ids = enqueue(database, 300)
    recorders = [recorder, *(Recorder(database) for _ in range(3))]
    taken: list[dict[int, str]] = []

    def claim(one: Recorder) -> None:
        while claims := one.claim(7):
            taken.append(claims)

    threads = [threading.Thread(target=claim, args=(one,)) for one in recorders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    counts = Counter(id for claims in taken for id in claims)
    assert set(counts.values()) == {1}
    # a worker that lost a race gets nothing once, and claims again
    while claims := recorder.claim():
        counts.update(claims)
    assert counts == Counter(ids)


@pytest.mark.parametrize("always", [False, True], ids=["content refused", "row refused"])
def test_a_row_that_cannot_be_recorded_holds_up_no_other(
    database: Database, recorder: Recorder, always: bool
) -> None:
    ids = enqueue(database, 16)
    bad = ids[5]
    condition = "true" if always else "new.content is not null"
    database.execute(
        f"""
        create function public.refuse() returns trigger language plpgsql as $$
        begin
            if new.id = {bad} and {condition} then
                raise exception 'not this one';
            end if;
            return new;
        end $$;
        create trigger refuse before insert on net._http_response
            for each row execute function public.refuse();
        """
    )
    claims = recorder.claim()
    deferred = recorder.record(claims)
    good = sorted(set(ids) - {bad})
    recorded = database.rows("select id from net._http_response where error_msg is null order by 1")
    assert [id for (id,) in recorded] == good
    if always:
        # its outcome is kept, delays no other, and is recorded once nothing refuses it
        assert deferred == []
        assert database.rows("select id, worker from pgnet.claim") == [(bad, None)]
        assert database.rows("select id, message from pgnet.unrecorded") == [(bad, "not this one")]
        database.execute("drop trigger refuse on net._http_response")
        database.execute("update pgnet.unrecorded set retry_at = now()")
        database.execute("select pgnet.heartbeat(null)")
        assert database.value("select count(*) from net._http_response where content = 'ok'") == 16
        assert database.value("select count(*) from pgnet.unrecorded") == 0
    else:
        assert deferred == []
        assert database.rows(
            "select state, status_code, content, error_msg from net._http_response where id = %s",
            bad,
        ) == [("succeeded", 200, None, "The response could not be recorded: not this one")]


def test_a_workers_own_row_that_cannot_be_recorded(database: Database, nginx: Nginx) -> None:
    """The same through a worker: the others have their outcomes, and it serves on."""
    [bad] = queue(database, f"{nginx.url}/?bad")
    database.execute(
        f"""
        create function public.refuse() returns trigger language plpgsql as $$
        begin
            raise exception 'not this one';
        end $$;
        create trigger refuse before insert on net._http_response
            for each row when (new.id = {bad}) execute function public.refuse();
        """
    )
    good = queue(database, f"{nginx.url}/?#", 50)
    with database.worker("--grace", "1"):
        database.wait_for("select count(*) = %s from net._http_response", len(good))
        database.execute("drop trigger refuse on net._http_response")
        database.wait_for("select count(*) = 51 from net._http_response")
    assert len(nginx.requests()) == 51


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_an_open_delete_of_a_queued_row_holds_up_that_row_alone(
    database: Database, recorder: Recorder, end: str
) -> None:
    ids = enqueue(database, 10)
    claims = recorder.claim()
    user = database.connect(autocommit=False)
    user.execute("delete from net.http_request_queue where id = %s", (ids[3],))
    started = time.monotonic()
    assert recorder.record(claims) == [ids[3]]
    assert time.monotonic() - started < 1
    assert database.value("select count(*) from net._http_response") == 9
    assert database.rows("select id from pgnet.claim") == [(ids[3],)]
    getattr(user, end)()
    assert recorder.record({ids[3]: claims[ids[3]]}) == []
    assert database.value("select count(*) from net._http_response where id = %s", ids[3]) == (
        0 if end == "commit" else 1
    )
    assert database.value("select count(*) from pgnet.claim") == 0
    assert database.value("select count(*) from net.http_request_queue") == 0


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_an_open_delete_under_a_worker(database: Database, witness: Running, end: str) -> None:
    with serving(database):
        ids = queue(database, f"{witness.url}/delay/0.5?#", 10)
        seen(witness, 10)
        user = database.connect(autocommit=False)
        user.execute("delete from net.http_request_queue where id = %s", (ids[3],))
        database.wait_for("select count(*) = 9 from net._http_response")
        getattr(user, end)()
        database.wait_for("select count(*) = 0 from pgnet.claim", timeout=3)
    assert database.value("select count(*) from net._http_response") == (
        9 if end == "commit" else 10
    )
    assert len(targets(witness)) == 10


def test_an_open_delete_of_a_row_that_is_not_claimed_yet(
    database: Database, witness: Running
) -> None:
    [first, second] = queue(database, f"{witness.url}/body/#", 2)
    user = database.connect(autocommit=False)
    user.execute("delete from net.http_request_queue where id = %s", (first,))
    database.execute("call net.drain('2 s')")
    assert database.rows("select id from net._http_response") == [(second,)]
    user.rollback()
    database.execute("call net.drain()")
    assert database.value("select count(*) from net._http_response") == 2


@pytest.mark.parametrize("form", ["process", "backend"])
@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_an_answer_that_the_database_cannot_hold(
    cluster: Cluster, nginx: Nginx, encoding: str, form: str
) -> None:
    name = f"in_{encoding}_{form}".lower()
    with cluster.connect() as connection:
        connection.execute(
            f"create database {name} template template0 encoding '{encoding}' locale 'C'"
        )
    database = Database(cluster, name)
    try:
        database.execute("create extension pgnet cascade")
        database.execute("select net.allow_network('loopback')")
        bad = nginx.file("emoji.txt", "a 😀 b".encode())
        first = queue(database, bad)[0]
        queue(database, f"{nginx.url}/?#", 20)
        with contextlib.ExitStack() as stack:
            if form == "process":
                worker = stack.enter_context(database.worker("--grace", "1", seen=False))
                stack.callback(lambda: print(worker.output()))
            else:
                stack.enter_context(serving(database))
            database.wait_for("select count(*) = 21 from net._http_response")
            assert database.value("select count(*) from pgnet.claim") == 0
        # psycopg gives bytes from an SQL_ASCII database unless told otherwise
        with database.cluster.connect(name, client_encoding="UTF8") as reader:
            [(state, status, content, content_bytes, error)] = reader.execute(
                "select state, status_code, content, content_bytes, error_msg"
                " from net._http_response where id = %s",
                (first,),
            ).fetchall()
        # the bytes, or an error that says why not; never text that was changed
        if state == "succeeded":
            assert (status, content, bytes(content_bytes)) == (200, None, "a 😀 b".encode())
        else:
            assert (status, content) == (200, None)
            assert "could not be recorded" in error
        assert (
            database.value("select count(*) from net._http_response where content = 'pgnet'") == 20
        )
    finally:
        database.drop()


# ---- a crash of the server with a worker's requests in flight


def test_a_backends_claims_are_free_after_the_crash(stricken: Database, witness: Running) -> None:
    """kill -9 of the worker's backend: its requests do not wait for rescue_after."""
    with serving(stricken) as session:
        queue(stricken, f"{witness.url}/delay/600?#", 20, 600_000)
        seen(witness, 20)
        kill_backend(stricken, session.pid)
        assert isinstance(session.ended(), psycopg.OperationalError)
    with serving(stricken):
        started = time.monotonic()
        seen(witness, 40)
        assert time.monotonic() - started < 2


def test_committed_and_never_seen_by_a_worker(stricken: Database, witness: Running) -> None:
    """Queued while no worker runs; the server crashes; it is still there."""
    queue(stricken, f"{witness.url}/body/#", 100)
    crash(stricken)
    assert stricken.value("select count(*) from net.http_request_queue") == 100
    session = Session(stricken.connect(), "call net.drain()")
    assert session.ended() is None
    assert len(targets(witness)) == 100
