"""Waiting for the end of a request: whatever ends it tells those who wait, and waiting is cheap."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors

from servers.cluster import Cluster, Database, Worker
from servers.nginx import Nginx
from servers.responses import get, in_flight, outcome
from servers.waiting import wait_until
from servers.workers import PROMPT, Form, Session, as_backend, as_process

FORMS = pytest.mark.parametrize("form", [as_process, as_backend])
# Longer than anything takes here, and so much longer than a waiter takes to look by itself that
# only what was told ends it before.
LONG = 20


def directory(database: Database) -> Path:
    """Where those who wait have their sockets; it is there while somebody waits."""
    return database.cluster.data / "pg_stat_tmp/pgnet.waiting"


def waiting_files(database: Database) -> list[str]:
    """The request and the process of each that waits in a database."""
    oid = database.value("select oid::text from pg_database where datname = current_database()")
    try:
        names = sorted(os.listdir(directory(database)))
    except FileNotFoundError:
        return []
    return [name.partition(".")[2] for name in names if name.partition(".")[0] == oid]


@contextlib.contextmanager
def listening(database: Database, request_id: int, user: str = "postgres") -> Iterator[Session]:
    """A session that waits to be told of an end, and does not look by itself."""
    connection = database.connect(user, autocommit=False)
    connection.execute("select pgnet.await_end(%s, 0)", (request_id,))
    session = Session(connection, f"select pgnet.await_end({request_id}, {LONG})")
    try:
        # A cancel that comes before the statement would end nothing.
        wait_until(
            lambda: (
                not session.running
                or database.value(
                    "select state = 'active' from pg_stat_activity where pid = %s", session.pid
                )
            ),
            description="it waits",
        )
        yield session
    finally:
        session.end()


def is_told(session: Session) -> None:
    began = time.monotonic()
    assert session.ended(LONG / 2) is None
    assert time.monotonic() - began < LONG / 2


@pytest.fixture
def busy(database: Database, httpd: str) -> Callable[..., int]:
    """Queues a request that is in flight for long."""

    def queue(path: str = "/hang", **options: str) -> int:
        return get(database, httpd + path, timeout_milliseconds=60_000, **options)

    return queue


# ---- what ends a request tells of it


@FORMS
def test_a_recording_tells(database: Database, nginx: Nginx, form: Form) -> None:
    """Whether there was an answer or none; and nobody is told of the end of another request."""
    other = get(database, f"{nginx.url}/slow?s=60", timeout_milliseconds=60_000)
    with form(database), listening(database, other) as undisturbed:
        for url in (f"{nginx.url}/slow?s=0.2", "http://127.0.0.1:9/"):
            request_id = get(database, url)
            with listening(database, request_id) as session:
                is_told(session)
        assert undisturbed.running
        # The worker does not wait for it at its end.
        database.execute("select net.cancel(%s)", other)
        outcome(database, other)


@FORMS
def test_a_cancel_tells(database: Database, busy: Callable[..., int], form: Form) -> None:
    with form(database):
        request_id = busy()
        in_flight(database, request_id)
        with listening(database, request_id) as session:
            database.execute("select net.cancel(%s)", request_id)
            is_told(session)
        waiter = Session(database.connect(), f"select net.wait({busy()}, '{LONG} s')")
        database.execute(
            "select net.cancel(id) from net.http_request_queue where id <> %s", request_id
        )
        assert waiter.ended(LONG / 2) is None


def test_a_cancel_without_a_worker_tells(database: Database) -> None:
    request_id = get(database, "http://127.0.0.1:1025/")
    waiter = database.connect()
    with listening(database, request_id) as session:
        database.execute("select net.cancel(%s)", request_id)
        is_told(session)
    row = waiter.execute("select (net.wait(%s)).state::text", (request_id,)).fetchone()
    assert row == ("cancelled",)


def test_a_forgotten_request_is_not_waited_for(database: Database) -> None:
    request_id = get(database, "http://127.0.0.1:1025/")
    waiter = Session(database.connect(), f"select net.wait({request_id}, '{LONG} s')")
    wait_until(lambda: waiting_files(database), description="the waiter listens")
    began = time.monotonic()
    database.execute("select net.forget(%s)", request_id)
    assert isinstance(waiter.ended(), errors.NoDataFound)
    assert time.monotonic() - began < PROMPT


def test_a_deleted_request_is_not_waited_for(database: Database) -> None:
    """Nothing tells of a row that somebody deletes: the waiter looks by itself, soon."""
    request_id = get(database, "http://127.0.0.1:1025/")
    waiter = Session(database.connect(), f"select net._await_response({request_id})")
    wait_until(lambda: waiting_files(database), description="the waiter listens")
    database.execute("delete from net.http_request_queue")
    assert waiter.ended(5) is None


def test_an_expiry_tells(database: Database, worker: Worker) -> None:
    database.execute("select net.pause('127.0.0.1:1025')")
    request_id = database.value(
        "select net.http_request('GET', 'http://127.0.0.1:1025/',"
        ' options => \'{"not_after": "1 second"}\')'
    )
    with listening(database, request_id) as session:
        is_told(session)
    assert outcome(database, request_id)["state"] == "expired"


def test_the_end_of_what_follows_others_tells(database: Database, worker: Worker) -> None:
    """A request that was to follow one which fails is cancelled."""
    database.execute("select net.pause('127.0.0.1:9')")
    first = get(database, "http://127.0.0.1:9/")
    after = database.value(
        "select net.http_request('GET', 'http://127.0.0.1:1025/',"
        " options => jsonb_build_object('after', array[%s::bigint]))",
        first,
    )
    with listening(database, after) as session:
        database.execute("select net.resume('127.0.0.1:9')")
        is_told(session)
    assert outcome(database, after)["state"] == "cancelled"


def test_a_rescue_tells(database: Database, httpd: str) -> None:
    """What was lost with its worker, and is not sent again."""
    request_id = database.value(
        "select net.http_request('GET', %s, options => '{\"delivery\": \"at_most_once\"}')",
        f"{httpd}/hang",
    )
    with database.worker() as worker:
        in_flight(database, request_id)
        worker.kill()
    with listening(database, request_id) as session, database.worker():
        is_told(session)
    assert outcome(database, request_id)["state"] == "unknown"


def test_a_rolled_back_cancel_tells_nobody(database: Database) -> None:
    first, second = (get(database, "http://127.0.0.1:1025/") for _ in range(2))
    with listening(database, first) as one, listening(database, second) as two:
        caller = database.connect(autocommit=False)
        caller.execute("select net.cancel(%s)", (first,))
        caller.rollback()
        caller.execute("select net.cancel(%s)", (second,))
        caller.commit()
        is_told(two)
        assert one.running


# ---- soon, and cheaply


class Waiters:
    """Many sessions that wait at once, from one thread: 200 threads of Python are no measure."""

    def __init__(self, database: Database, count: int) -> None:
        self.connections = [database.connect() for _ in range(count)]
        # A session's first wait takes long: of 200 at once the last one would come too late.
        request_id = database.value(
            "select net.http_request('GET', 'http://127.0.0.1:9/',"
            ' options => \'{"not_before": "1 hour"}\')'
        )
        self.wait([request_id] * count)
        wait_until(lambda: len(waiting_files(database)), lambda n: n == count, "they listen", 80)
        database.execute("select net.cancel(%s)", request_id)
        self.returned()

    def wait(self, ids: list[int]) -> None:
        for connection, request_id in zip(self.connections, ids, strict=True):
            connection.pgconn.send_query(
                b"select w.id, w.state::text, extract(epoch from clock_timestamp())"
                b" from net.wait(%d, '90 s') w" % request_id
            )

    def returned(self) -> list[tuple[int, str, float]]:
        """Each one's request, its state, and when net.wait returned, by the server's clock."""
        found = []
        for connection in self.connections:
            pgconn = connection.pgconn
            while pgconn.is_busy():
                select.select([pgconn.socket], [], [])
                pgconn.consume_input()
            result = pgconn.get_result()
            assert result is not None
            assert result.error_message == b"", result.error_message
            row = [result.get_value(0, column) or b"" for column in range(3)]
            found.append((int(row[0]), row[1].decode(), float(row[2])))
            assert pgconn.get_result() is None
        return found


@pytest.fixture(scope="module")
def wide(make_cluster: Any) -> Iterator[Database]:
    """A database in a cluster of many connections, with a worker."""
    cluster: Cluster = make_cluster(max_connections=260)
    database = cluster.create_database()
    database.execute("select net.allow_network('loopback')")
    with database.worker("--grace", "1"):
        yield database
    database.drop()


def lateness(database: Database, returned: list[tuple[int, str, float]]) -> list[float]:
    """How long after the recording each has returned, in seconds, the shortest time first."""
    recorded = dict(
        database.rows("select id, extract(epoch from created)::float8 from net._http_response")
    )
    assert {state for _id, state, _at in returned} == {"succeeded"}
    return sorted(at - recorded[id] for id, _state, at in returned)


@pytest.fixture(scope="module")
def waiters(wide: Database) -> Waiters:
    return Waiters(wide, 200)


@pytest.mark.parametrize("spread", [0, 2])
def test_200_waiters_return_soon(
    wide: Database, waiters: Waiters, httpd: str, spread: float
) -> None:
    """Each waits for a request of its own; these end at once, or one after the other."""
    wide.execute(
        "create temporary table made as select net.http_get("
        "format('%%s/delay/%%s', %s::text, 3 + %s * n / 200.0),"
        " timeout_milliseconds => 20000) as id from generate_series(1, 200) n",
        httpd,
        spread,
    )
    ids = [id for (id,) in wide.rows("select id from made")]
    wide.execute("drop table made")
    waiters.wait(ids)
    wait_until(lambda: len(waiting_files(wide)), lambda n: n == 200, "all of them listen")
    times = lateness(wide, waiters.returned())
    # A waiter that nobody tells looks once a second.
    assert times[100] < 0.1, times
    assert times[-1] < 0.9, times
    wait_until(lambda: waiting_files(wide), lambda files: files == [], "all have gone")


def test_200_waiters_for_one(wide: Database, waiters: Waiters, httpd: str) -> None:
    request_id = get(wide, f"{httpd}/delay/3", timeout_milliseconds=20_000)
    waiters.wait([request_id] * 200)
    wait_until(lambda: len(waiting_files(wide)), lambda n: n == 200, "all of them listen")
    times = lateness(wide, waiters.returned())
    assert times[-1] < 0.9, times


def test_wait_all_returns_with_the_last(served: Database, nginx: Nginx) -> None:
    ids = [
        get(served, f"{nginx.url}/slow?s={s}", timeout_milliseconds=9000)
        for s in (0.6, 0.1, 0.9, 0.3)
    ]
    rows = served.rows(
        "select id, state::text, extract(epoch from clock_timestamp())::float8"
        " from net.wait_all(%s)",
        ids,
    )
    assert [row[0] for row in rows] == ids
    assert lateness(served, rows)[0] < 0.3
    assert waiting_files(served) == []


def test_a_waiter_seldom_looks(served: Database, busy: Callable[..., int], nginx: Nginx) -> None:
    connection = served.connect()
    connection.execute("set track_functions = 'all'")
    request_id = get(served, f"{nginx.url}/slow?s=3", timeout_milliseconds=20_000)
    connection.execute("select net.wait(%s, '2500 ms')", (request_id,))
    connection.execute("select pg_stat_force_next_flush()")
    looks = connection.execute(
        "select calls from pg_stat_user_functions where funcname = 'outcome_so_far'"
    ).fetchone()
    assert looks is not None
    # More often at first, then once a second.
    assert looks[0] <= 15


@pytest.mark.parametrize("function", ["pg_cancel_backend", "pg_terminate_backend"])
@pytest.mark.parametrize("call", ["net.wait({}, '20 s')", "net.http_get_result({}, false)"])
def test_a_wait_ends_at_once_when_told(database: Database, function: str, call: str) -> None:
    request_id = get(database, "http://127.0.0.1:1025/")
    session = Session(database.connect(), f"select {call.format(request_id)}")
    wait_until(lambda: waiting_files(database), description="it listens")
    began = time.monotonic()
    database.execute(f"select {function}(%s)", session.pid)
    error = session.ended()
    assert time.monotonic() - began < PROMPT
    expected = errors.QueryCanceled if "cancel" in function else psycopg.OperationalError
    assert isinstance(error, expected)
    wait_until(lambda: waiting_files(database), lambda files: files == [], "no file is left", 2)


# ---- the sockets


def test_the_socket_of_a_waiter(database: Database) -> None:
    """Nobody but the server's own user can send to it, or sees who waits."""
    request_id = get(database, "http://127.0.0.1:1025/")
    connection = database.connect(autocommit=False)
    assert waiting_files(database) == []
    connection.execute("select net.wait(%s, '100 ms')", (request_id,))
    files = waiting_files(database)
    assert files == [f"{request_id}.{connection.info.backend_pid}"]
    place = directory(database)
    (path,) = place.glob(f"*.{files[0]}")
    mode = path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    # A session has one socket, whatever it waits for, and none after its transaction.
    other = get(database, "http://127.0.0.1:1025/")
    connection.execute("select net.wait(%s, '100 ms')", (other,))
    assert waiting_files(database) == [f"{other}.{connection.info.backend_pid}"]
    connection.rollback()
    assert waiting_files(database) == []
    connection.execute("savepoint s")
    with pytest.raises(errors.DivisionByZero):
        connection.execute("select net.wait(%s, '100 ms'), 1 / 0", (other,))
    connection.execute("rollback to s")
    connection.commit()
    assert waiting_files(database) == []


def test_what_a_killed_waiter_has_left(database: Database, nginx: Nginx) -> None:
    """The file of a process that is gone is removed by others, and is in nobody's way."""
    first = get(database, "http://127.0.0.1:1025/")
    place = directory(database)
    oid = database.value("select oid from pg_database where datname = current_database()")
    with subprocess.Popen(["true"]) as gone:
        pass
    with listening(database, first):
        for name in (f"{oid}.{first + 1}.{gone.pid}", f"{oid}.{first + 2}.{os.getpid()}"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as left:
                left.bind(str(place / name))
            os.chown(place / name, place.stat().st_uid, place.stat().st_gid)
        (place / "no.socket").touch()
        for _ in range(2):
            request_id = get(database, f"{nginx.url}/slow?s=0.3")
            with database.worker():
                waited = database.value("select (net.wait(%s)).state::text", request_id)
                assert waited == "succeeded"
    (place / f"{oid}.{first + 2}.{os.getpid()}").unlink()
    wait_until(
        lambda: os.listdir(place), lambda names: names == ["no.socket"], "only that file is left"
    )
    (place / "no.socket").unlink()
    with listening(database, get(database, "http://127.0.0.1:1025/")):
        assert len(waiting_files(database)) == 1
    wait_until(place.exists, lambda there: not there, "the directory goes with the last one")


def test_a_waiter_in_the_way_of_nothing(database: Database, nginx: Nginx) -> None:
    """Where the directory cannot be made, one waits by looking."""
    place = directory(database)
    wait_until(place.exists, lambda there: not there, "nobody waits")
    place.touch()
    request_id = get(database, f"{nginx.url}/slow?s=0.3")
    with database.worker():
        began = time.monotonic()
        assert database.value("select (net.wait(%s)).state::text", request_id) == "succeeded"
        assert time.monotonic() - began < 5
    place.unlink()


@FORMS
def test_waiting_where_commits_tell_nothing(database: Database, nginx: Nginx, form: Form) -> None:
    database.execute("select net.configure('wake_up', 'poll')")
    database.close()
    with form(database):
        request_id = get(database, f"{nginx.url}/slow?s=0.2")
        row = database.row(
            "select w.id, w.state::text, extract(epoch from clock_timestamp())::float8"
            " from net.wait(%s) w",
            request_id,
        )
        assert row is not None
        assert waiting_files(database) == []
        assert lateness(database, [row])[0] < 0.5


def test_waiting_on_a_standby(make_cluster: Any, nginx: Nginx) -> None:
    """No commit tells of an end there: it looks by itself, and does not warn of workers."""
    primary: Cluster = make_cluster()
    database = primary.create_database()
    database.execute("select net.allow_network('loopback')")
    standby = primary.base_backup(standby=True)
    try:
        standby.start()
        with database.worker():
            request_id = get(database, f"{nginx.url}/slow?s=2", timeout_milliseconds=20_000)
            primary.wait_for_standby(standby)
            with standby.connect(database.name) as reader:
                notices: list[str] = []
                reader.add_notice_handler(lambda n: notices.append(n.message_primary or ""))
                row = reader.execute(
                    "select w.id, w.state::text, extract(epoch from clock_timestamp())::float8"
                    " from net.wait(%s, '20 s') w",
                    (request_id,),
                ).fetchone()
            assert row is not None
            assert notices == []
            assert lateness(database, [row])[0] < 0.5
    finally:
        standby.close()
        database.drop()


# ---- who may know


def test_nobody_learns_when_anothers_request_ends(database: Database) -> None:
    """Neither by waiting for it, nor by the files; and what anybody tells ends no wait."""
    database.execute("drop role if exists wt_visitor")
    database.execute("create role wt_visitor login")
    try:
        request_id = get(database, "http://127.0.0.1:1025/")
        with contextlib.closing(database.connect("wt_visitor", autocommit=False)) as visitor:
            for setting in ("on", "off"):
                visitor.execute(f"set local row_security = {setting}")
                for _ in range(2):
                    # It listens to nothing, and returns at once.
                    visitor.execute("select pgnet.await_end(%s, 60)", (request_id,))
            assert waiting_files(database) == []
            visitor.rollback()
            waiter = Session(database.connect(), f"select net.wait({request_id}, '3 s')")
            wait_until(lambda: waiting_files(database), description="it listens")
            visitor.execute("select pgnet.tell_waiter(n) from generate_series(-10, 5000) n")
            visitor.commit()
            with pytest.raises(errors.InsufficientPrivilege):
                visitor.execute("select pgnet.tell_waiters('{1}')")
            visitor.rollback()
            assert waiter.running
            assert waiter.ended() is None
    finally:
        database.execute("drop role wt_visitor")


def test_a_worker_that_goes_while_one_waits(database: Database, busy: Callable[..., int]) -> None:
    """Whoever waits learns that no worker runs any more, once."""
    notices: list[str] = []
    connection = database.connect()
    connection.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    with database.worker() as worker:
        request_id = busy()
        in_flight(database, request_id)
        session = Session(connection, f"select net.wait({request_id}, '4 s')")
        wait_until(lambda: waiting_files(database), description="it listens")
        assert notices == []
        worker.kill()
        assert session.ended() is None
    assert notices == [f"request {request_id} waits: no worker is running"]


def test_many_waits_in_one_session(served: Database, nginx: Nginx) -> None:
    """Each finds its own end, whatever the session has waited for before."""
    connection = served.connect(autocommit=False)
    for _ in range(30):
        ids = [get(served, nginx.url) for _ in range(3)]
        found = connection.execute(
            "select id, state::text from net.wait_all(%s)", (ids,)
        ).fetchall()
        assert found == [(id, "succeeded") for id in ids]
    assert len(waiting_files(served)) <= 1
    connection.close()
