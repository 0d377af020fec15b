"""The worker in the database: `call net.drain()` and `call net.work()`."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from servers.cluster import Cluster, Database, process_fields
from servers.httpd import Running
from servers.nginx import Nginx
from servers.traffic import crowd, queue, seen, states
from servers.waiting import wait_until
from servers.workers import PROMPT, Session, serving


def cpu_seconds(pid: int) -> float:
    fields = process_fields(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module", autouse=True)
def idle(make_cluster: Any) -> Iterator[tuple[Cluster, Session]]:
    """A worker alone in a cluster that nobody else touches, from before the first test on."""
    cluster: Cluster = make_cluster()
    database = cluster.create_database()
    with serving(database) as session:
        yield cluster, session
    database.close()


# ---- drain


def test_drain_sends_what_is_due_and_returns(database: Database, nginx: Nginx) -> None:
    queue(database, f"{nginx.url}/json", 25)
    database.execute("call net.drain()")
    assert database.rows(
        "select status_code, content, count(*) from net._http_response group by 1, 2"
    ) == [(200, '{"ok": true}', 25)]
    assert database.value("select count(*) from net.http_request_queue") == 0
    assert database.value("select count(*) from pgnet.claim") == 0
    assert database.value("select count(*) from pgnet.worker where ended is null") == 0


def test_drain_returns_at_once_when_nothing_is_due(database: Database) -> None:
    database.execute("call net.drain()")
    started = time.monotonic()
    database.execute("call net.drain()")
    assert time.monotonic() - started < 1


def test_drain_takes_more_than_one_batch(database: Database, nginx: Nginx) -> None:
    database.execute("select net.configure('batch_size', '10')")
    queue(database, f"{nginx.url}/", 95)
    database.execute("call net.drain()")
    assert states(database) == {"succeeded": 95}


@pytest.mark.parametrize("procedure", ["drain", "work"])
def test_after_max_runtime_it_finishes_what_is_in_flight_and_claims_no_more(
    database: Database, witness: Running, procedure: str
) -> None:
    queue(database, f"{witness.url}/delay/2?in-time")
    with serving(database, f"call net.{procedure}('1 second')") as session:
        seen(witness, 1)
        # By now the worker has begun, however long the machine took for it.
        started = time.monotonic()
        wait_until(lambda: time.monotonic() - started > 1.2, description="max_runtime is over")
        queue(database, f"{witness.url}/body/late")
        assert session.ended() is None
    assert time.monotonic() - started < 3
    assert states(database) == {"succeeded": 1, "ready": 1}
    assert len(witness.record()) == 1
    assert database.value("select count(*) from pgnet.claim") == 0


def test_work_ends_by_max_runtime(database: Database) -> None:
    started = time.monotonic()
    database.execute("call net.work('1 second')")
    assert 0.9 < time.monotonic() - started < 2


@pytest.mark.parametrize("call", ["call net.drain()", "call net.work()"])
def test_refuses_inside_a_transaction_block(database: Database, call: str) -> None:
    connection = database.connect(autocommit=False)
    connection.execute("select 1")
    with pytest.raises(psycopg.errors.ActiveSqlTransaction) as caught:
        connection.execute(call)
    assert "transaction block" in str(caught.value.diag.message_primary)
    assert caught.value.diag.message_hint
    connection.rollback()
    # the session is as good as before
    connection.autocommit = True
    connection.execute("call net.drain()")


def test_a_bad_max_runtime_is_refused(database: Database) -> None:
    with pytest.raises(psycopg.errors.InvalidDatetimeFormat):
        database.execute("call net.drain('soon')")


# ---- work


def test_a_commit_wakes_it(database: Database, nginx: Nginx) -> None:
    with serving(database):
        queue(database, f"{nginx.url}/?warm")
        wait_until(nginx.requests, description="the first request")
        delays = []
        for number in range(30):
            nginx.forget()
            before = time.time()
            queue(database, f"{nginx.url}/?{number}")
            answered = wait_until(nginx.requests, description="the request")[0].time
            delays.append(answered - before)
    # nginx's clock has milliseconds
    assert statistics.median(delays) < 0.05, delays


def test_a_hand_made_row_is_sent_after_net_wake(database: Database, witness: Running) -> None:
    with serving(database):
        database.execute(
            "insert into net.http_request_queue (method, url) values ('GET', %s)",
            f"{witness.url}/body/by-hand",
        )
        database.execute("select net.wake()")
        database.wait_for(
            "select content from net._http_response", predicate=lambda c: c == "by-hand", timeout=2
        )


def test_several_databases_at_once(cluster: Cluster, witness: Running) -> None:
    databases = [cluster.create_database() for _ in range(3)]
    with contextlib.ExitStack() as stack:
        for database in databases:
            stack.callback(database.drop)
            database.execute("select net.allow_network('loopback')")
        sessions = [stack.enter_context(serving(database)) for database in databases]
        for number, database in enumerate(databases):
            queue(database, f"{witness.url}/body/{number}")
        for number, database in enumerate(databases):
            assert database.wait_for("select content from net._http_response", timeout=2) == str(
                number
            )
        assert len({session.pid for session in sessions}) == 3
        assert len(witness.record()) == 3


def test_its_name_while_it_runs_and_after(database: Database) -> None:
    name = "select application_name from pg_stat_activity where pid = %s"
    with serving(database, setup="set application_name = 'mine'") as session:
        assert database.value(name, session.pid).startswith("pgnet")
        session.connection.cancel()
        assert isinstance(session.ended(), psycopg.errors.QueryCanceled)
        assert session.connection.execute("show application_name").fetchone() == ("mine",)
        session.connection.execute("call net.drain()")
        assert session.connection.execute("show application_name").fetchone() == ("mine",)


def test_a_role_with_a_workers_rights_and_no_other(database: Database, witness: Running) -> None:
    database.execute("drop role if exists only_a_worker")
    database.execute("create role only_a_worker login")
    try:
        refused = database.connect("only_a_worker")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            refused.execute("call net.drain()")
        database.execute("select net.grant_worker('only_a_worker')")
        queue(database, f"{witness.url}/body/one")
        with serving(database, user="only_a_worker"):
            database.wait_for("select count(*) from net._http_response")
            queue(database, f"{witness.url}/body/two")
            database.wait_for(
                "select count(*) from net._http_response", predicate=lambda n: n == 2, timeout=2
            )
        assert refused.execute("select count(*) from net._http_response").fetchone() == (0,)
        for table in ("worker", "setting", "egress_rule"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                refused.execute(sql.SQL("select * from pgnet.{}").format(sql.Identifier(table)))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            refused.execute("select token from pgnet.claim")
        database.execute("select net.revoke_worker('only_a_worker')")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            refused.execute("call net.work()")
        refused.close()
    finally:
        database.execute("drop owned by only_a_worker")
        database.execute("drop role only_a_worker")


@pytest.mark.parametrize(
    "target", ["/body/quick", "/delay/600"], ids=["idle", "with a hung request"]
)
def test_it_ends_cleanly_before_the_roles_statement_timeout(
    database: Database, witness: Running, target: str
) -> None:
    queue(database, f"{witness.url}{target}", timeout=60_000)
    with serving(database, setup="set statement_timeout = '3 s'") as session:
        seen(witness, 1)
        assert session.ended() is None
    assert database.value("select count(*) from pgnet.claim") == 0
    assert states(database) == ({"ready": 1} if target == "/delay/600" else {"succeeded": 1})


# ---- the backend stays a normal backend


def test_nothing_is_patched(database: Database, witness: Running) -> None:
    queue(database, f"{witness.url}/")
    database.execute("call net.drain()")
    database.execute(
        """
        do $$
        import _socket, select, socket, ssl, subprocess, sys, threading, time
        patcher = sys.modules.get("gevent." + "monkey")
        assert patcher is None or not patcher.saved, patcher.saved
        builtin = type(len)
        assert type(time.sleep) is builtin and time.sleep.__module__ == "time"
        assert socket.socket.__module__ == "socket" and issubclass(socket.socket, _socket.socket)
        assert type(select.select) is builtin
        assert threading.get_ident() == threading.main_thread().ident
        assert "psycopg" not in sys.modules
        started = time.monotonic()
        time.sleep(0.02)
        assert time.monotonic() - started >= 0.02
        $$ language plpython3u
        """
    )


def tasks(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def test_no_thread_is_born_in_a_backend(database: Database, witness: Running) -> None:
    with serving(database) as session:
        names = [f"http://localhost:{witness.port}/delay/0.3", f"{witness.url}/delay/0.3"]
        # a name that nobody knows: the resolver's failing path too
        queue(database, "http://no-such-host.invalid/")
        for name in names:
            queue(database, name, 20)
        seen(witness, 20)
        assert tasks(session.pid) == 1
        database.wait_for("select count(*) = 41 from net._http_response")
        assert tasks(session.pid) == 1


def descriptors(pid: int) -> Counter[str]:
    """The open files of a process, but for relations, which come and go with the server's cache."""
    names = (os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir())
    return Counter(
        name.partition(":")[0] for name in names if "/base/" not in name and "/global/" not in name
    )


def test_many_drains_leak_no_descriptor(database: Database, witness: Running) -> None:
    connection = database.connect()
    pid = connection.info.backend_pid
    open_files = []
    for _ in range(12):
        queue(database, f"http://localhost:{witness.port}/", 5)
        connection.execute("call net.drain()")
        open_files.append(descriptors(pid))
    assert open_files[-1] == open_files[0], open_files
    assert states(database) == {"succeeded": 60}
    assert list(Path(database.cluster.data, "pg_stat_tmp").glob(f"pgnet.{oid(database)}.?")) == []


def oid(database: Database) -> int:
    found: int = database.value(
        "select oid::int from pg_database where datname = current_database()"
    )
    return found


def test_the_limit_of_open_files_is_raised(database: Database) -> None:
    with serving(database) as session:
        limits = Path(f"/proc/{session.pid}/limits").read_text().splitlines()
        [soft, hard] = next(line for line in limits if line.startswith("Max open files")).split()[
            3:5
        ]
        assert soft == hard


def test_a_session_works_again_after_a_cancel(database: Database, witness: Running) -> None:
    connection = database.connect()
    for _ in range(3):
        session = Session(connection, "call net.work()")
        queue(database, f"{witness.url}/body/again")
        database.wait_for("select count(*) = 0 from net.http_request_queue")
        connection.cancel()
        assert isinstance(session.ended(PROMPT), psycopg.errors.QueryCanceled)
    assert states(database) == {"succeeded": 3}


# ---- cancel, terminate, shutdown


@contextlib.contextmanager
def slow_requests(
    database: Database, witness: Running, count: int
) -> Iterator[tuple[Session, list[int]]]:
    crowd(database)
    with serving(database) as session:
        ids = queue(database, f"{witness.url}/delay/600?#", count, 60_000) if count else []
        seen(witness, count)
        yield session, ids


@pytest.mark.parametrize("count", [0, 100], ids=["idle", "100 slow requests"])
@pytest.mark.parametrize("function", ["pg_cancel_backend", "pg_terminate_backend"])
def test_cancel_and_terminate_take_effect_at_once(
    database: Database, witness: Running, function: str, count: int
) -> None:
    with slow_requests(database, witness, count) as (session, _ids):
        started = time.monotonic()
        database.execute(f"select {function}(%s)", session.pid)
        error = session.ended()
        assert time.monotonic() - started < PROMPT
        if function == "pg_cancel_backend":
            assert isinstance(error, psycopg.errors.QueryCanceled)
            assert database.value("select count(*) from pgnet.claim") == 0
            assert database.value("select count(*) from pgnet.worker where ended is null") == 0
        else:
            assert isinstance(error, psycopg.OperationalError)
    # free again at once: the next worker waits for nothing
    witness.reset()
    with serving(database):
        assert len(seen(witness, count, 1.5)) == count
        assert database.value("select count(*) from pgnet.claim where attempt = 2") == count


def test_a_cancel_records_what_had_ended(database: Database, witness: Running) -> None:
    """The cancel comes while a batch is being recorded."""
    database.execute(
        """
        create function public.wait_for_lock() returns trigger language plpgsql as $$
        begin
            perform pg_advisory_xact_lock(1);
            return new;
        end $$;
        create trigger wait_for_lock before insert on net._http_response
            for each statement execute function public.wait_for_lock();
        """
    )
    holder = database.connect()
    holder.execute("select pg_advisory_lock(1)")
    with serving(database) as session:
        queue(database, f"{witness.url}/body/done", 20)
        queue(database, f"{witness.url}/delay/600", 5)
        waiting = "select max(waitstart) from pg_locks where pid = %s and not granted"
        first = database.wait_for(waiting, session.pid)
        database.execute("select pg_cancel_backend(%s)", session.pid)
        # it tries once more before it goes
        database.wait_for(waiting, session.pid, predicate=lambda since: since not in (None, first))
        holder.execute("select pg_advisory_unlock(1)")
        assert isinstance(session.ended(), psycopg.errors.QueryCanceled)
    assert states(database) == {"succeeded": 20, "ready": 5}
    assert database.value("select count(*) from pgnet.claim") == 0
    assert max(Counter(entry["target"] for entry in witness.record()).values()) == 20


@pytest.mark.parametrize("count", [0, 100], ids=["idle", "100 slow requests"])
def test_a_fast_shutdown_takes_effect_at_once(
    stoppable_cluster: Cluster, witness: Running, count: int
) -> None:
    database = stoppable_cluster.create_database()
    database.execute("select net.allow_network('loopback')")
    with slow_requests(database, witness, count) as (session, _ids):
        started = time.monotonic()
        stoppable_cluster.stop("fast")
        assert isinstance(session.ended(PROMPT), psycopg.OperationalError)
        # the server itself has a checkpoint to write
        assert time.monotonic() - started < PROMPT + 1
    database.close()
    stoppable_cluster.start()
    witness.reset()
    with serving(database):
        assert len(seen(witness, count, 1.5)) == count
    database.drop()


def test_a_dropped_database_ends_it(cluster: Cluster, witness: Running) -> None:
    database = cluster.create_database()
    database.execute("select net.allow_network('loopback')")
    with slow_requests(database, witness, 10) as (session, _ids):
        started = time.monotonic()
        with cluster.connect() as connection:
            connection.execute(f"drop database {database.name} with (force)")
        assert time.monotonic() - started < PROMPT + 1
        assert isinstance(session.ended(PROMPT), psycopg.OperationalError)
    database.close()


def test_it_does_not_outlive_the_postmaster(stoppable_cluster: Cluster, witness: Running) -> None:
    """Without its postmaster a backend must not go on: it would keep the next one from starting."""
    database = stoppable_cluster.create_database()
    database.execute("select net.allow_network('loopback')")
    with slow_requests(database, witness, 3) as (session, _ids):
        assert stoppable_cluster.process is not None
        stoppable_cluster.process.kill()
        stoppable_cluster.process.wait()
        wait_until(
            lambda: process_fields(session.pid)[:1],
            lambda state: state in ([], ["Z"]),
            "the backend is gone",
            timeout=3,
        )
    database.close()
    stoppable_cluster.start()
    database.drop()


# ---- idle, looked at last: by now it has been idle for a while


def test_an_idle_worker_is_idle(idle: tuple[Cluster, Session]) -> None:
    cluster, session = idle
    started, cpu = time.monotonic(), cpu_seconds(session.pid)
    with cluster.connect() as connection:
        # a worker commits after each of its statements: the age of its transaction is the time
        # since the last one; it is to look once a minute
        wait_until(
            lambda: connection.execute(
                "select (clock_timestamp() - xact_start)::text,"
                " clock_timestamp() - xact_start > '30 s', backend_xmin, backend_xid"
                " from pg_stat_activity where pid = %s",
                (session.pid,),
            ).fetchone(),
            lambda row: row is not None and row[1:] == (True, None, None),
            "thirty seconds without a statement",
            timeout=65,
            interval=0.1,
        )
        assert (
            connection.execute(
                "select locktype, mode from pg_locks where pid = %s and locktype <> 'virtualxid'",
                (session.pid,),
            ).fetchall()
            == []
        )
    used, passed = cpu_seconds(session.pid) - cpu, time.monotonic() - started
    # a tick of the kernel's clock is 10 ms
    assert used <= 0.005 * passed + 0.02, f"{used:.2f} s of CPU in {passed:.1f} s"
