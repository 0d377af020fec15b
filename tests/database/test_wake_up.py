"""How workers are woken: slots, sockets, signals; and pgnet.wait_for_signals."""

from __future__ import annotations

import contextlib
import random
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from servers.cluster import Cluster, Database, Worker
from servers.crashes import kill_backend
from servers.httpd import Running
from servers.waiting import wait_until
from servers.workers import PROMPT, Session, serving

# Well under a worker's two looks: a minute when it is alone, two seconds when it is not.
AT_ONCE = 1.0


def oid(database: Database) -> int:
    found: int = database.value(
        "select oid::int from pg_database where datname = current_database()"
    )
    return found


def socket_file(database: Database, slot: int) -> Path:
    return database.cluster.data / "pg_stat_tmp" / f"pgnet.{oid(database)}.{slot}"


def slots(database: Database) -> list[int]:
    """The slots that have a socket file."""
    return [slot for slot in range(20) if socket_file(database, slot).exists()]


def listener(database: Database) -> psycopg.Connection[Any]:
    """A session that holds a slot, as the second connection of a worker process does."""
    connection = database.connect()
    connection.execute("call pgnet.wait_for_signals(0)")
    return connection


def slot_of_a_new_listener(database: Database) -> int | None:
    with contextlib.closing(database.connect()) as connection:
        return wait_call(connection, 0)[1]


def wait_call(connection: psycopg.Connection[Any], timeout: float) -> tuple[str, int | None]:
    row: tuple[str, int | None] | None = connection.execute(
        f"call pgnet.wait_for_signals({timeout})"
    ).fetchone()
    assert row is not None
    return row


def settle(database: Database) -> None:
    """Wait until the workers have looked: from now on only a wake-up makes them look."""
    database.wait_for(
        "select bool_and(a.backend_xmin is null and a.backend_xid is null)"
        " from pgnet.worker w join pg_stat_activity a on a.pid = w.pid"
    )


def as_process(database: Database) -> contextlib.AbstractContextManager[object]:
    return database.worker("--grace", "1")


def as_backend(database: Database) -> contextlib.AbstractContextManager[object]:
    return serving(database)


FORMS = pytest.mark.parametrize("form", [as_process, as_backend])
Form = Callable[[Database], contextlib.AbstractContextManager[object]]


def wait_for_listener(database: Database) -> None:
    wait_until(lambda: slots(database), description="a worker listens")


# ---- slots


@FORMS
def test_a_workers_socket(database: Database, form: Form) -> None:
    with form(database):
        wait_for_listener(database)
        assert slots(database) == [0]
        path = socket_file(database, 0)
        mode = path.stat()
        assert stat.S_ISSOCK(mode.st_mode)
        assert stat.S_IMODE(mode.st_mode) == 0o600
        assert mode.st_uid == database.cluster.data.stat().st_uid
        for other in path.parent.glob(f"{path.name}*"):
            assert stat.S_IMODE(other.stat().st_mode) == 0o600
    # when it has ended the slot is free, whether or not its file is still there
    wait_until(lambda: slot_of_a_new_listener(database), lambda slot: slot == 0, "the slot", 2)


def test_each_listener_has_a_slot_of_its_own(database: Database) -> None:
    connections = [database.connect() for _ in range(9)]
    taken = [wait_call(connection, 0)[1] for connection in connections]
    assert taken == [0, 1, 2, 3, 4, 5, 6, 7, None]
    # a slot that is given back is taken again
    connections[3].close()
    wait_until(
        lambda: wait_call(connections[8], 0)[1],
        lambda slot: slot == 3,
        "the ninth has the slot",
        2,
    )


def test_a_worker_without_a_slot_looks_each_second(database: Database, witness: Running) -> None:
    listeners = [listener(database) for _ in range(8)]
    with serving(database), database.worker():
        settle(database)
        for number in range(3):
            database.execute("select net.http_get(%s)", f"{witness.url}/body/{number}")
            database.wait_for("select count(*) = %s from net._http_response", number + 1, timeout=3)
    for one in listeners:
        one.close()


def test_one_commit_wakes_one_of_them(database: Database) -> None:
    first, second = listener(database), listener(database)
    for one in (first, second):
        # what came while they were registered is over
        wait_call(one, 0)
    database.execute("select net.wake()")
    assert wait_call(first, 2) == ("wake", 0)
    assert wait_call(second, 0) == ("", 1)
    # all of them are told to read their settings
    database.execute("select net.configure('concurrency', '7')")
    assert wait_call(first, 2) == ("reload", 0)
    assert wait_call(second, 2) == ("reload", 1)


def test_only_a_commit_wakes(database: Database) -> None:
    one = listener(database)
    caller = database.connect(autocommit=False)
    caller.execute("select net.http_get('http://unsent.example/')")
    caller.rollback()
    assert wait_call(one, 0.1) == ("", 0)
    with contextlib.suppress(psycopg.errors.InvalidParameterValue):
        caller.execute("select net.http_get('no url')")
    caller.rollback()
    assert wait_call(one, 0.1) == ("", 0)
    caller.execute("select net.http_get('http://unsent.example/') from generate_series(1, 100)")
    assert wait_call(one, 0.1) == ("", 0)
    caller.commit()
    assert wait_call(one, 2) == ("wake", 0)
    # a hundred requests were one wake-up, and the next transaction is not one
    assert wait_call(one, 0) == ("", 0)
    caller.execute("select 1")
    caller.commit()
    assert wait_call(one, 0.1) == ("", 0)


def test_a_wake_up_between_two_waits_is_kept(database: Database) -> None:
    one = listener(database)
    database.execute("select net.wake()")
    database.execute("select net.worker_restart()")
    signals, _slot = wait_call(one, 2)
    assert signals.split() == ["reload", "wake"]


def test_another_databases_commit_wakes_nobody_here(database: Database, cluster: Cluster) -> None:
    other = cluster.create_database()
    one = listener(database)
    other.execute("select net.wake()")
    assert wait_call(one, 0.1) == ("", 0)
    other.drop()


def test_a_full_worker_wakes_the_next(database: Database, witness: Running) -> None:
    """There are more requests than the first worker takes: it wakes the second."""
    # The second one takes all of them at once, although they are for one host.
    database.execute("select net.configure_host('*', '{\"adaptive\": false}')")
    with database.worker("--concurrency", "4", "--grace", "0"):
        wait_for_listener(database)
        with database.worker("--grace", "0"):
            wait_until(lambda: slots(database), [0, 1].__eq__, "both listen")
            settle(database)
            for _ in range(3):
                witness.reset()
                started = time.monotonic()
                database.execute(
                    "select net.http_get(%s || n, timeout_milliseconds => 600000)"
                    " from generate_series(1, 40) n",
                    f"{witness.url}/delay/600?",
                )
                wait_until(lambda: len(witness.record()), lambda n: n == 40, "forty requests")
                # by its own look it would be up to two seconds, once in a while less
                assert time.monotonic() - started < 0.5


# ---- what is left behind


def test_a_killed_listeners_socket_is_taken_over(make_cluster: Any, witness: Running) -> None:
    database: Database = make_cluster().create_database()
    database.execute("select net.allow_network('loopback')")
    with serving(database) as session:
        wait_for_listener(database)
        path = socket_file(database, 0)
        kill_backend(database, session.pid)
        assert session.ended() is not None
    # nobody has tidied up; a commit does not mind
    assert path.exists()
    database.execute("select net.http_get(%s)", f"{witness.url}/body/one")
    with serving(database):
        database.wait_for("select count(*) = 1 from net._http_response", timeout=2)
        assert slots(database) == [0]
        # and it is heard there
        settle(database)
        started = time.monotonic()
        database.execute("select net.http_get(%s)", f"{witness.url}/body/two")
        database.wait_for("select count(*) = 2 from net._http_response", timeout=AT_ONCE)
        assert time.monotonic() - started < AT_ONCE
    database.drop()


def test_a_commit_skips_what_nobody_listens_to(database: Database) -> None:
    """A stale socket of one that was killed, and a file that is no socket."""
    first, second, third = (listener(database) for _ in range(3))
    path = socket_file(database, 0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stale:
        path.unlink()
        stale.bind(str(path))
    socket_file(database, 1).unlink()
    socket_file(database, 1).touch(0o600)
    database.execute("select net.wake()")
    assert wait_call(third, 2) == ("wake", 2)
    for one in (first, second):
        one.close()


# ---- signals


@FORMS
def test_settings_and_egress_are_followed_at_once(
    database: Database, witness: Running, form: Form
) -> None:
    def send() -> int:
        id: int = database.value("select net.http_get(%s)", f"{witness.url}/body/1234567890")
        return id

    def error_of(id: int) -> str:
        query = "select coalesce(error_msg, 'none') from net._http_response where id = %s"
        found: Any = database.wait_for(query, id, timeout=2)
        return str(found)

    with form(database):
        wait_for_listener(database)
        assert error_of(send()) == "none"
        settle(database)
        database.execute("select net.configure('max_response_bytes', '5')")
        assert "5" in error_of(send())
        database.execute("select net.configure('max_response_bytes', null)")
        assert error_of(send()) == "none"
        database.execute("select net.deny_network('loopback')")
        refused = error_of(send())
        assert "127.0.0.1" in refused
        assert "denied" in refused or "not allowed" in refused
        database.execute("select net.allow_network('loopback')")
        assert error_of(send()) == "none"
        # one statement that does both
        with database.connect(autocommit=False) as both:
            both.execute("select net.deny_network('loopback')")
            both.execute("select net.http_get(%s)", (f"{witness.url}/body/both",))
            both.commit()
        database.wait_for("select count(*) = 6 from net._http_response", timeout=2)
    assert len([e for e in witness.record() if e["target"] == "/body/both"]) == 0


@FORMS
def test_rules_hold_for_what_is_committed_after_them(
    database: Database, witness: Running, form: Form
) -> None:
    """A busy worker, too, sends each request by the rules of the time of its commit."""
    traffic = database.connect()
    busy = Session(
        traffic,
        """
        do $$
        begin
            for n in 1 .. 400 loop
                perform net.http_get('http://127.0.0.2:9/' || n);
                commit;
                perform pg_sleep(0.005);
            end loop;
        end $$
        """,
    )
    outcomes = []
    with form(database):
        wait_for_listener(database)
        while busy.running:
            for verb in ("deny", "allow"):
                database.execute(f"select net.{verb}_network('127.0.0.1')")
                id = database.value("select net.http_get(%s)", f"{witness.url}/{verb}")
                error = database.wait_for(
                    "select coalesce(error_msg, 'sent') from net._http_response where id = %s", id
                )
                outcomes.append((verb, error == "sent"))
    assert busy.ended() is None
    assert len(outcomes) > 20
    assert set(outcomes) == {("deny", False), ("allow", True)}


def connections_used(witness: Running) -> list[int]:
    return [entry["connection"] for entry in witness.record()]


@FORMS
def test_worker_restart(database: Database, witness: Running, form: Form) -> None:
    """For the owner workers start anew, with new connections; for others they read settings."""
    database.execute("drop role if exists ordinary")
    database.execute("create role ordinary login")

    def send() -> int:
        before = len(witness.record())
        database.execute("select net.http_get(%s)", f"{witness.url}/body/x")
        wait_until(lambda: len(witness.record()), lambda n: n == before + 1, "the request", 2)
        database.wait_for("select count(*) = 0 from net.http_request_queue", timeout=2)
        return connections_used(witness)[-1]

    try:
        with form(database):
            wait_for_listener(database)
            first = send()
            assert send() == first
            ordinary = database.connect("ordinary")
            assert ordinary.execute("select net.worker_restart()").fetchone() == (True,)
            assert send() == first
            assert database.value("select net.worker_restart()") is True
            second = send()
            assert second != first
            assert send() == second
            ordinary.close()
    finally:
        database.execute("drop role ordinary")


@FORMS
def test_a_restart_finishes_what_is_in_flight(
    database: Database, witness: Running, form: Form
) -> None:
    with form(database):
        wait_for_listener(database)
        database.execute(
            "select net.http_get(%s, timeout_milliseconds => 20000)", f"{witness.url}/delay/0.5"
        )
        wait_until(witness.record, description="the request")
        database.execute("select net.worker_restart()")
        database.execute("select net.http_get(%s)", f"{witness.url}/body/after")
        database.wait_for(
            "select count(*) = 2 from net._http_response where status_code = 200", timeout=3
        )
    assert len(witness.record()) == 2


@FORMS
def test_wake_up_by_polling(database: Database, witness: Running, form: Form) -> None:
    """Where commits do not wake: the setting says so, and workers look each second."""
    database.execute("select net.configure('wake_up', 'poll')")
    database.close()
    with form(database):
        settle(database)
        for number in range(2):
            database.execute("select net.http_get(%s)", f"{witness.url}/body/x")
            database.wait_for("select count(*) = %s from net._http_response", number + 1, timeout=3)


@FORMS
def test_a_prepared_transaction(database: Database, witness: Running, form: Form) -> None:
    """COMMIT PREPARED comes from a session that queued nothing."""
    with form(database):
        wait_for_listener(database)
        settle(database)
        for verb in ("commit", "rollback"):
            caller = database.connect(autocommit=False)
            caller.execute("select net.http_get(%s)", (f"{witness.url}/body/{verb}",))
            caller.execute("prepare transaction 'pgnet'")
            caller.close()
            assert [e for e in witness.record() if e["target"] == f"/body/{verb}"] == []
            with database.cluster.connect(database.name) as fresh:
                fresh.execute(f"{verb} prepared 'pgnet'")
        database.wait_for("select count(*) = 1 from net._http_response", timeout=3)
        assert database.value("select count(*) from net.http_request_queue") == 0
    assert [entry["target"] for entry in witness.record()] == ["/body/commit"]


# ---- pgnet.wait_for_signals


def test_wait_holds_nothing(database: Database) -> None:
    connection = listener(database)
    session = Session(connection, "call pgnet.wait_for_signals(60)")
    database.wait_for(
        "select state = 'active' and backend_xmin is null and backend_xid is null"
        " from pg_stat_activity where pid = %s",
        session.pid,
    )
    assert (
        database.rows(
            "select locktype, mode from pg_locks where pid = %s and locktype <> 'virtualxid'",
            session.pid,
        )
        == []
    )
    # it is woken at once
    started = time.monotonic()
    database.execute("select net.wake()")
    assert session.ended(2) is None
    assert time.monotonic() - started < PROMPT


def test_wait_ends_after_its_time(database: Database) -> None:
    connection = listener(database)
    wait_call(connection, 0)
    started = time.monotonic()
    assert wait_call(connection, 0.3) == ("", 0)
    assert 0.3 <= time.monotonic() - started < 0.3 + PROMPT


@pytest.mark.parametrize("function", ["pg_cancel_backend", "pg_terminate_backend"])
def test_wait_ends_at_once_when_told(database: Database, function: str) -> None:
    connection = listener(database)
    session = Session(connection, "call pgnet.wait_for_signals(60)")
    database.wait_for("select state = 'active' from pg_stat_activity where pid = %s", session.pid)
    started = time.monotonic()
    database.execute(f"select {function}(%s)", session.pid)
    error = session.ended()
    assert time.monotonic() - started < PROMPT
    if function == "pg_cancel_backend":
        # a cancel is never swallowed
        assert isinstance(error, psycopg.errors.QueryCanceled)
        # its slot is still its own
        database.execute("select net.wake()")
        assert wait_call(connection, 2) == ("wake", 0)
    else:
        database.wait_for(
            "select count(*) = 0 from pg_stat_activity where pid = %s", session.pid, timeout=PROMPT
        )


def test_wait_is_for_workers(database: Database) -> None:
    database.execute("drop role if exists ordinary")
    database.execute("create role ordinary login")
    try:
        with (
            database.cluster.connect(database.name, "ordinary") as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute("call pgnet.wait_for_signals(0)")
    finally:
        database.execute("drop role ordinary")


# ---- whether one is up


def test_check_worker_is_up(database: Database) -> None:
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as caught:
        database.execute("select net.check_worker_is_up()")
    assert database.name in str(caught.value.diag.message_detail)
    for way in ("net.schedule_worker()", "net.work()", "pgnet worker"):
        assert way in str(caught.value.diag.message_hint)
    with serving(database):
        database.execute("select net.check_worker_is_up()")
    with database.worker() as worker:
        database.execute("select net.wait_until_running()")
        database.execute("select net.check_worker_is_up()")
        worker.kill()
        wait_until(lambda: is_up(database), lambda up: not up, "the worker is seen to be gone")


def is_up(database: Database) -> bool:
    try:
        database.execute("select net.check_worker_is_up()")
    except psycopg.errors.ObjectNotInPrerequisiteState:
        return False
    return True


def test_an_ordinary_role_may_ask(database: Database, worker: Worker) -> None:
    database.execute("select net.wait_until_running()")
    database.execute("drop role if exists ordinary")
    database.execute("create role ordinary login")
    try:
        with database.cluster.connect(database.name, "ordinary") as connection:
            connection.execute("select net.check_worker_is_up()")
            connection.execute("select net.wait_until_running()")
    finally:
        database.execute("drop role ordinary")


@FORMS
def test_wait_until_running(database: Database, form: Form) -> None:
    session = Session(database.connect(), "select net.wait_until_running()")
    database.wait_for("select state = 'active' from pg_stat_activity where pid = %s", session.pid)
    assert session.running
    with form(database):
        assert session.ended(5) is None


def test_wait_until_running_can_be_cancelled(database: Database) -> None:
    session = Session(database.connect(), "select net.wait_until_running()")
    database.wait_for("select state = 'active' from pg_stat_activity where pid = %s", session.pid)
    started = time.monotonic()
    session.connection.cancel()
    assert isinstance(session.ended(), psycopg.errors.QueryCanceled)
    assert time.monotonic() - started < PROMPT


def test_no_wake_up_is_lost(database: Database, worker: Worker, witness: Running) -> None:
    """A worker that is alone looks by itself once a minute: what wakes it while it is busy with
    the one before must be kept until it goes to sleep."""
    choose = random.Random(1)
    first, second = database.connect(), database.connect()
    for n in range(150):
        for connection in (first, second):
            connection.execute("select net.http_get(%s)", (f"{witness.url}/body/{n}",))
            time.sleep(choose.uniform(0, 0.006))
        database.wait_for("select count(*) >= %s from net._http_response", 2 * (n + 1), timeout=5)
