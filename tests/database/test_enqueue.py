"""The way into the queue: transactions, savepoints, wake-ups, a backend that stays healthy."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from servers.cluster import Cluster, Database
from servers.nginx import Nginx
from servers.waiting import wait_until


@pytest.fixture
def unserved(database: Database) -> Database:
    """A database for one test, which no worker serves."""
    return database


def xid(connection: psycopg.Connection[Any]) -> int:
    """Take the next transaction id."""
    row = connection.execute("select pg_current_xact_id()::text::bigint").fetchone()
    assert row is not None
    return int(row[0])


def answered(database: Database, count: int, timeout: float = 15) -> None:
    database.wait_for(
        "select count(*) from net._http_response",
        predicate=lambda found: found >= count,
        timeout=timeout,
    )
    assert database.value("select count(*) from net._http_response") == count


def seen(nginx: Nginx, count: int) -> list[str]:
    """The targets that the server was asked for, in alphabetical order."""
    wait_until(nginx.requests, lambda found: len(found) >= count, "nginx's record")
    return sorted(request.uri for request in nginx.requests())


@contextmanager
def listening(database: Database, slot: int = 0) -> Iterator[socket.socket]:
    """Stand in for a worker's listener: the datagrams of commits arrive here."""
    oid = database.value("select oid::int from pg_database where datname = current_database()")
    directory = Path(database.value("select current_setting('data_directory')")) / "pg_stat_tmp"
    path = directory / f"pgnet.{oid}.{slot}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        here = os.open(directory, os.O_RDONLY)
        try:
            receiver.bind(f"/proc/self/fd/{here}/{path.name}")
        finally:
            os.close(here)
        path.chmod(0o666)
        receiver.setblocking(False)
        try:
            yield receiver
        finally:
            path.unlink()


def datagrams(receiver: socket.socket) -> list[bytes]:
    """The datagrams that have come: a commit sends before the client hears that it is done."""
    found = []
    with suppress(BlockingIOError):
        while True:
            found.append(receiver.recv(64))
    return found


# ---- ids and transactions


def test_ids_begin_at_one(unserved: Database) -> None:
    ids = [unserved.value("select net.http_get('http://localhost/')") for _ in range(3)]
    ids.append(unserved.value("select net.http_post('http://localhost/')"))
    ids.append(unserved.value("select net.http_delete('http://localhost/')"))
    assert ids == [1, 2, 3, 4, 5]


def test_only_what_is_committed_is_sent(unserved: Database, nginx: Nginx) -> None:
    """The server's record is the witness: rollbacks and rolled-back savepoints send nothing."""
    url = nginx.url + "/args?"
    session = unserved.connect(autocommit=False)

    def get(name: str) -> None:
        session.execute("select net.http_get(%s)", (url + name,))

    with unserved.worker():
        get("rolled-back-1")
        get("rolled-back-2")
        session.rollback()

        get("kept-1")
        session.execute("savepoint a")
        get("lost-a")
        session.execute("rollback to a")
        get("kept-2")
        session.execute("savepoint b")
        get("kept-3")
        session.execute("savepoint c")
        get("lost-c")
        session.execute("rollback to c")
        session.execute("release b")
        session.commit()

        with pytest.raises(psycopg.errors.DivisionByZero):
            unserved.execute("select net.http_get(%s), 1 / (random() * 0)::int", url + "lost-error")
        unserved.execute("select net.http_get(%s)", url + "last")
        answered(unserved, 4)
    assert seen(nginx, 4) == [f"/args?{name}" for name in ("kept-1", "kept-2", "kept-3", "last")]
    assert unserved.value("select count(*) from net.http_request_queue") == 0


def test_nothing_is_sent_before_the_commit(unserved: Database, nginx: Nginx) -> None:
    session = unserved.connect(autocommit=False)
    with unserved.worker():
        session.execute("select net.http_get(%s)", (f"{nginx.url}/args?open",))
        unserved.execute("select net.http_get(%s)", f"{nginx.url}/args?other")
        answered(unserved, 1)
        assert seen(nginx, 1) == ["/args?other"]
        session.commit()
        answered(unserved, 2)
    assert seen(nginx, 2) == ["/args?open", "/args?other"]


def test_200_calls_use_one_transaction_id(unserved: Database) -> None:
    session = unserved.connect()
    before = xid(session)
    with session.transaction():
        own = xid(session)
        for _ in range(200):
            session.execute("select net.http_get('http://localhost/', params => '{\"a\": 1}')")
        session.execute("select net.http_post('http://localhost/') from generate_series(1, 200)")
        session.execute(
            "do $$ begin for i in 1..200 loop perform net.http_delete('http://localhost/');"
            " end loop; end $$"
        )
    assert xid(session) == own + 1 == before + 2
    assert unserved.rows("select distinct xmin::text::bigint from net.http_request_queue") == [
        (own % 2**32,)
    ]


def test_the_first_call_of_a_session_uses_one_transaction_id(unserved: Database) -> None:
    before = xid(unserved.connection)
    session = unserved.connect()
    session.execute("select net.http_get('http://localhost/')")
    assert xid(unserved.connection) == before + 2


def test_savepoints_cost_what_they_cost_without_us(unserved: Database) -> None:
    """A savepoint that writes takes one id, however many calls are in it; later calls take none."""
    session = unserved.connect()
    with session.transaction():
        own = xid(session)
        session.execute("savepoint a")
        session.execute("select net.http_get('http://localhost/') from generate_series(1, 100)")
        session.execute("rollback to a")
        session.execute("select net.http_get('http://localhost/') from generate_series(1, 100)")
        session.execute("release a")
        session.execute("select net.http_get('http://localhost/') from generate_series(1, 100)")
    # the savepoint's two lives
    assert xid(session) == own + 3


def test_a_call_in_a_function_with_an_exception_block(unserved: Database, nginx: Nginx) -> None:
    unserved.execute(
        """
        create function pg_temp.try(url text, fail boolean) returns void language plpgsql as $$
        begin
            begin
                perform net.http_get(url);
                if fail then raise division_by_zero; end if;
            exception when division_by_zero then
                null;
            end;
        end $$
        """
    )
    with unserved.worker():
        for name, fail in (("kept", False), ("lost", True), ("last", False)):
            unserved.execute("select pg_temp.try(%s, %s)", f"{nginx.url}/args?{name}", fail)
        answered(unserved, 2)
    assert seen(nginx, 2) == ["/args?kept", "/args?last"]


def test_a_parallel_plan_is_not_tried(unserved: Database) -> None:
    """PARALLEL UNSAFE: a query over a large table that calls it runs in the leader."""
    unserved.execute("create table big as select generate_series(1, 1000) as n")
    renamed = unserved.connection.info.server_version >= 160000
    unserved.execute(f"set {'debug_parallel_query' if renamed else 'force_parallel_mode'} = on")
    unserved.execute("set parallel_setup_cost = 0")
    unserved.execute("set min_parallel_table_scan_size = 0")
    unserved.execute("select net.http_get('http://localhost/' || n) from big")
    assert unserved.value("select count(*) from net.http_request_queue") == 1000


# ---- wake-ups


def test_one_datagram_for_a_transaction(unserved: Database) -> None:
    session = unserved.connect(autocommit=False)
    with listening(unserved) as receiver:
        session.execute("select net.http_get('http://localhost/') from generate_series(1, 50)")
        session.execute("savepoint a")
        session.execute("select net.http_post('http://localhost/')")
        session.execute("release a")
        session.execute("select net.http_delete('http://localhost/')")
        assert datagrams(receiver) == []
        session.commit()
        assert datagrams(receiver) == [b"w"]
        # nothing is left over for the next one
        session.execute("create table unrelated ()")
        session.commit()
        assert datagrams(receiver) == []
        session.execute("select net.http_get('http://localhost/')")
        session.commit()
        assert datagrams(receiver) == [b"w"]


def test_no_datagram_for_a_rollback(unserved: Database) -> None:
    session = unserved.connect(autocommit=False)
    with listening(unserved) as receiver:
        session.execute("select net.http_get('http://localhost/')")
        session.rollback()
        session.execute("create table unrelated ()")
        session.commit()
        assert datagrams(receiver) == []


def test_the_datagram_comes_after_the_row_can_be_seen(unserved: Database) -> None:
    session = unserved.connect(autocommit=False)
    with listening(unserved) as receiver:
        for count in range(1, 51):
            session.execute("select net.http_get('http://localhost/')")
            session.commit()
            assert datagrams(receiver) == [b"w"]
            assert unserved.value("select count(*) from net.http_request_queue") == count


def test_wake(unserved: Database, nginx: Nginx) -> None:
    """net.wake wakes a worker for rows that the owner has inserted by hand."""
    with unserved.worker():
        unserved.execute(
            "insert into net.http_request_queue (method, url) values ('get', %s)",
            f"{nginx.url}/method",
        )
        unserved.execute("select net.wake()")
        answered(unserved, 1)
    assert unserved.row("select id, method, content from net._http_response") == (1, "get", "GET")


def test_wake_sends_a_datagram_at_the_commit(unserved: Database) -> None:
    session = unserved.connect(autocommit=False)
    with listening(unserved) as receiver:
        session.execute("select net.wake()")
        assert datagrams(receiver) == []
        session.rollback()
        assert datagrams(receiver) == []
        session.execute("select net.wake(), net.wake()")
        session.commit()
        assert datagrams(receiver) == [b"w"]


def test_reload_goes_to_every_listener(unserved: Database) -> None:
    with ExitStack() as stack:
        receivers = [stack.enter_context(listening(unserved, slot)) for slot in (0, 1, 5)]
        unserved.execute("select net.configure('batch_size', '100')")
        assert [datagrams(receiver) for receiver in receivers] == [[b"r"]] * 3
        unserved.execute("select net.worker_restart()")
        assert [datagrams(receiver) for receiver in receivers] == [[b"r"]] * 3
        unserved.execute("select net.http_get('http://localhost/')")
        assert [datagrams(receiver) for receiver in receivers] == [[b"w"], [], []]


def test_a_full_listener_stops_no_commit(unserved: Database) -> None:
    session = unserved.connect(options="-c statement_timeout=5000")
    with listening(unserved):
        for _ in range(600):
            session.execute("select net.wake()")
    assert session.execute("select 1").fetchone() == (1,)


def test_poll(unserved: Database, nginx: Nginx) -> None:
    """No datagram then, and workers look every second."""
    unserved.execute("select net.configure('wake_up', 'poll')")
    with listening(unserved, 7) as receiver:
        session = unserved.connect()
        session.execute("select net.http_get(%s)", (nginx.url,))
        assert datagrams(receiver) == []
    with unserved.worker():
        answered(unserved, 1)
        session.execute("select net.http_get(%s)", (nginx.url,))
        answered(unserved, 2, timeout=5)
        # and back again, without a restart
        unserved.execute("select net.configure('wake_up', 'callback')")
        unserved.connect().execute("select net.http_get(%s)", (nginx.url,))
        answered(unserved, 3, timeout=5)


def test_a_host_that_refuses_callbacks(unserved: Database, nginx: Nginx) -> None:
    """The enqueue succeeds, polling delivers, and the doctor says so."""
    unserved.execute(
        """
        create function refuse_callbacks() returns void language plpython3u as $$
        from pgnet.server import backend

        def refused(callback):
            raise MemoryError("closures are not allowed here")

        backend.register_xact_callback = refused
        $$
        """
    )
    session = unserved.connect()
    session.execute("select refuse_callbacks()")
    session.execute("select net.http_get(%s)", (nginx.url,))
    session.execute("select net.http_get(%s) from generate_series(1, 10)", (nginx.url,))
    session.execute("select net.wake()")
    doctor = session.execute(
        "select ok, detail, hint from net.check() where item = 'wake-up'"
    ).fetchone()
    assert doctor is not None
    assert doctor[0] is False
    assert "closures are not allowed here" in doctor[1]
    assert doctor[2]
    assert unserved.value("select count(*) from net.http_request_queue") == 11
    # its own backends are refused too: they ask their backend, which is where it matters
    unserved.execute("select net.configure('poll_interval', '1 s')")
    with unserved.worker():
        answered(unserved, 11)
        session.execute("select net.http_get(%s)", (nginx.url,))
        answered(unserved, 12, timeout=5)


# ---- prepared transactions


def test_commit_prepared_from_another_session(unserved: Database, nginx: Nginx) -> None:
    with unserved.worker():
        session = unserved.connect(autocommit=False)
        session.execute("select net.http_get(%s)", (f"{nginx.url}/args?prepared",))
        session.execute("prepare transaction 'enqueue_one'")
        session.execute("select net.http_get(%s)", (f"{nginx.url}/args?given-up",))
        session.execute("prepare transaction 'enqueue_two'")
        session.close()
        unserved.execute("select net.http_get(%s)", f"{nginx.url}/args?other")
        answered(unserved, 1)
        unserved.execute("rollback prepared 'enqueue_two'")
        unserved.execute("commit prepared 'enqueue_one'")
        answered(unserved, 2, timeout=5)
    assert seen(nginx, 2) == ["/args?other", "/args?prepared"]


def test_prepare_sends_no_wake_up(unserved: Database) -> None:
    session = unserved.connect(autocommit=False)
    with listening(unserved) as receiver:
        session.execute("select net.http_get('http://localhost/')")
        session.execute("prepare transaction 'enqueue_three'")
        assert datagrams(receiver) == [b"p"]
        session.execute("create table unrelated ()")
        session.commit()
        assert datagrams(receiver) == []
    unserved.execute("rollback prepared 'enqueue_three'")


# ---- the backend stays healthy


def test_collected_garbage_does_not_take_the_callback(unserved: Database) -> None:
    unserved.execute(
        "create function collect() returns int language plpython3u"
        " as $$ import gc; return gc.collect() $$"
    )
    session = unserved.connect()
    session.execute("select net.http_get('http://localhost/')")
    pid = session.info.backend_pid
    session.execute("select collect()")
    session.execute(
        """
        do $$
        begin
            for i in 1..1000 loop
                perform net.http_get('http://localhost/');
                if i % 100 = 0 then
                    perform collect();
                end if;
                commit;
            end loop;
        end $$
        """
    )
    with listening(unserved) as receiver:
        session.execute("select net.http_get('http://localhost/')")
        assert datagrams(receiver) == [b"w"]
    assert session.info.backend_pid == pid
    assert unserved.value("select count(*) from net.http_request_queue") == 1002


def test_a_failing_callback_harms_nobody(unserved: Database) -> None:
    """If the callback fails in any way, the commit stands and the backend lives."""
    unserved.execute(
        """
        create function break_sender() returns void language plpython3u as $$
        from pgnet.server.wake_up import Sender

        def send(self, signal, **more):
            raise RuntimeError("on purpose")

        Sender.send = send
        $$
        """
    )
    session = unserved.connect()
    session.execute("select break_sender()")
    for _ in range(3):
        session.execute("select net.http_get('http://localhost/')")
    assert session.execute("select count(*) from net.http_request_queue").fetchone() == (3,)


def test_the_enqueue_imports_the_standard_library_only(unserved: Database) -> None:
    unserved.execute(
        """
        create function loaded() returns text[] language plpython3u as $$
        import sys
        return sorted({name.partition(".")[0] for name in sys.modules}
                      & {"gevent", "greenlet", "requests", "urllib3", "pycurl", "psycopg", "ssl"})
        $$
        """
    )
    session = unserved.connect()
    session.execute("select net.http_get('http://localhost/', '{\"a\": 1}', '{\"X-A\": \"b\"}')")
    session.execute("select net.http_post('http://bücher.example/')")
    assert session.execute("select loaded()").fetchone() == ([],)


def test_no_request_stays_in_the_interpreter(unserved: Database) -> None:
    """One interpreter serves all roles of a session, so it must keep nothing of a call."""
    unserved.execute(
        """
        create function kept(first text, second text) returns text[] language plpython3u as $$
        import gc, sys
        word = first + second
        reached = {id(module): module for module in list(sys.modules.values())}
        ahead = list(reached.values())
        found = []
        while ahead:
            for thing in gc.get_referents(ahead.pop()):
                if isinstance(thing, (str, bytes)):
                    if (word if isinstance(thing, str) else word.encode()) in thing:
                        found.append(str(thing))
                elif id(thing) not in reached:
                    reached[id(thing)] = thing
                    ahead.append(thing)
        return found
        $$
        """
    )
    session = unserved.connect()
    secret = "hunter2"
    session.execute(
        "select net.http_post(%s, body => %s, params => %s, headers => %s)",
        (
            f"https://{secret}.example:81/{secret}?{secret}",
            f'"{secret}"',
            f'{{"{secret}": "{secret}"}}',
            f'{{"Authorization": "{secret}", "X-{secret}": ["{secret}"]}}',
        ),
    )
    for url in (f"http://{secret}:{secret}@localhost/", f"http://{secret}:x/", f"{secret}:/"):
        with pytest.raises(psycopg.Error):
            session.execute("select net.http_get(%s)", (url,))
    assert session.execute("select kept(%s, %s)", (secret[:3], secret[3:])).fetchone() == ([],)
    # and it would have been found
    session.execute("do language plpython3u $$ import re; re.kept = {1: ['hunter2']} $$")
    found = session.execute("select kept(%s, %s)", (secret[:3], secret[3:])).fetchone()
    assert found == ([secret],)


# ---- what comes in by hand


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ("method, url", "'GET', 'http://user:hunter2@127.0.0.1/'"),
        ("method, url", "'GET', 'http://127.0.0.1:99999/'"),
        ("method, url", "'GET', 'http://127.0.0.1/%zz'"),
        ("method, url", "'GET', 'http:///x'"),
        ("method, url", "'GET', 'http://exa mple/'"),
        ("method, url", "'GET', 'ftp://127.0.0.1/'"),
        ("method, url", "'GET', 'nothing at all'"),
        ("method, url", "'GET', ''"),
        ("method, url", "'GET', 'http://127.0.0.1/' || chr(10) || 'x'"),
        ("method, url", "'CONNECT', 'http://127.0.0.1/'"),
        ("method, url", "'trace', 'http://127.0.0.1/'"),
        ("method, url, headers", "'GET', 'http://127.0.0.1/', '{\"Host\": \"x\"}'"),
        ("method, url, headers", "'GET', 'http://127.0.0.1/', '{\"A B\": \"x\"}'"),
        ("method, url, headers", "'GET', 'http://127.0.0.1/', '{\"A\": \"x\\r\\nB: y\"}'"),
        ("method, url, headers", "'GET', 'http://127.0.0.1/', '{\"A\": {\"b\": 1}}'"),
        ("method, url, headers", "'GET', 'http://127.0.0.1/', '[1, 2]'"),
        ("method, url, headers", "'GET', 'http://127.0.0.1/', '\"text\"'"),
        ("method, url, timeout_milliseconds", "'GET', 'http://127.0.0.1/', 0"),
        ("method, url, timeout_milliseconds", "'GET', 'http://127.0.0.1/', -5"),
    ],
)
def test_a_bad_row_by_hand(by_hand: Database, nginx: Nginx, columns: str, values: str) -> None:
    """Refused when it is inserted, or an error as its outcome; never a worker that is dead."""
    try:
        by_hand.execute(f"insert into net.http_request_queue ({columns}) values ({values})")
    except psycopg.errors.IntegrityError:
        return
    request_id = by_hand.value("select max(id) from net.http_request_queue")
    if request_id is None:
        request_id = by_hand.value("select max(id) from net._http_response")
    by_hand.execute("select net.wake()")
    state, error = by_hand.row(  # type: ignore[misc]
        "select state::text, error_msg from net.wait(%s, '5 s')", request_id
    )
    assert state == "failed"
    assert error
    assert "hunter2" not in error
    good = by_hand.value("select net.http_get(%s)", nginx.url)
    assert by_hand.value("select (net.wait(%s, '5 s')).status_code", good) == 200


@pytest.fixture(scope="module")
def by_hand(cluster: Cluster) -> Iterator[Database]:
    database = cluster.create_database()
    database.execute("select net.allow_network('loopback')")
    with database.worker():
        yield database
    database.drop()


def test_good_rows_by_hand(by_hand: Database, nginx: Nginx) -> None:
    """A row by hand may have what functions do not give: any method, an id of its own."""
    by_hand.execute(
        "insert into net.http_request_queue (id, method, url, headers, body, context) values"
        " (100000, 'patch', %s, '{\"X-A\": [\"1\", \"2\"]}', '\\xff00', '{\"k\": 1}')",
        f"{nginx.url}/headers",
    )
    by_hand.execute("select net.wake()")
    row = by_hand.row("select * from net.wait(100000)")
    assert row is not None
    assert row[:3] == (100000, "succeeded", 200)
    assert row[4].startswith("PATCH /headers HTTP/1.1\r\n")
    assert "\r\nX-A: 1\r\nX-A: 2\r\n" in row[4]
    assert "\r\nContent-Length: 2\r\n" in row[4]
    assert row[8] == {"k": 1}


def test_a_large_body(by_hand: Database, nginx: Nginx) -> None:
    request_id = by_hand.value(
        "select net.http_post(%s, to_jsonb(repeat('x', 5000000)), timeout_milliseconds => 10000)",
        f"{nginx.url}/body",
    )
    content = by_hand.value("select (net.wait(%s)).content", request_id)
    assert len(content) == 5_000_002


# ---- several databases


def test_several_databases_at_once(cluster: Cluster, nginx: Nginx) -> None:
    """Each worker serves its own database, and only that database wakes it."""
    with ExitStack() as stack:
        databases = [cluster.create_database() for _ in range(3)]
        for database in databases:
            stack.callback(database.drop)
            database.execute("select net.allow_network('loopback')")
        for database in databases[:2]:
            stack.enter_context(database.worker())
        for number, database in enumerate(databases):
            database.execute(
                "select net.http_get(%s || n) from generate_series(1, 20) n",
                f"{nginx.url}/args?{number}-",
            )
        for database in databases[:2]:
            answered(database, 20)
        assert databases[2].value("select count(*) from net.http_request_queue") == 20
        assert not any(uri.startswith("/args?2-") for uri in seen(nginx, 40))
        with databases[2].worker():
            answered(databases[2], 20)
    assert len(set(seen(nginx, 60))) == 60


def test_two_workers_share_a_database(unserved: Database, nginx: Nginx) -> None:
    with unserved.worker(), unserved.worker():
        for _ in range(20):
            unserved.execute(
                "select net.http_get(%s) from generate_series(1, 25)", f"{nginx.url}/args?shared"
            )
        answered(unserved, 500)
    assert len(seen(nginx, 500)) == 500
