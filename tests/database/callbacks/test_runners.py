"""Runners: whose turn it is, when they look, what becomes of a callback when one dies."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from typing import Any

import psycopg
import pytest
from psycopg import errors

from servers.callback_scene import ALICE, BOB, WORKER, ask, callback_of, define, drain, prepare
from servers.cluster import Cluster, Database
from servers.crashes import crash, kill_backend
from servers.httpd import Running
from servers.roles import login_roles
from servers.waiting import wait_until
from servers.workers import as_process, serving

Session = psycopg.Connection[Any]


def test_at_once(scene: Database, alice: Session, witness: Running) -> None:
    """The commit that records an outcome wakes a runner, in both kinds."""
    ask(alice, f"{witness.url}/body/x")
    with as_process(scene):
        scene.wait_for("select count(*) = 1 from cb_alice.log")
        took = []
        for n in range(2, 22):
            began = time.monotonic()
            ask(alice, f"{witness.url}/body/x")
            scene.wait_for("select count(*) = %s from cb_alice.log", n)
            took.append(time.monotonic() - began)
        assert sorted(took)[10] < 0.15
    scene.execute("truncate cb_alice.log")
    scene.execute("select net.configure('callback_runners', '0')")
    with as_process(scene), serving(scene, "call net.run_callbacks()", registers=False):
        ask(alice, f"{witness.url}/body/x")
        scene.wait_for("select count(*) = 1 from cb_alice.log", timeout=15)
        took = []
        for n in range(2, 12):
            began = time.monotonic()
            ask(alice, f"{witness.url}/body/x")
            scene.wait_for("select count(*) = %s from cb_alice.log", n)
            took.append(time.monotonic() - began)
        assert sorted(took)[5] < 0.15


def test_without_callbacks_there_is_no_session_for_them(scene: Database, witness: Running) -> None:
    with as_process(scene):
        for _ in range(5):
            scene.execute("select net.http_get(%s)", witness.url)
        scene.wait_for("select count(*) = 5 from net._http_response")
        scene.execute("select net.worker_restart()")
        assert (
            scene.value(
                "select count(*) from pg_stat_activity where application_name = 'pgnet callbacks'"
            )
            == 0
        )


def test_run_callbacks_ends_in_time(scene: Database) -> None:
    began = time.monotonic()
    scene.connect(WORKER).execute("call net.run_callbacks('300 ms')")
    assert 0.25 < time.monotonic() - began < 3
    session = scene.connect(WORKER, autocommit=False)
    session.execute("select 1")
    with pytest.raises(errors.ActiveSqlTransaction, match="run_callbacks cannot run inside"):
        session.execute("call net.run_callbacks()")
    with pytest.raises(errors.InsufficientPrivilege):
        scene.connect(ALICE).execute("call net.run_callbacks()")


def test_a_cancel_ends_run_callbacks(scene: Database) -> None:
    with serving(scene, "call net.run_callbacks()", registers=False) as session:
        scene.wait_for(
            "select application_name = 'pgnet callbacks' from pg_stat_activity where pid = %s",
            session.pid,
        )
        began = time.monotonic()
        session.connection.cancel()
        error = session.ended()
        assert error is not None
        assert error.sqlstate == "57014"
        assert time.monotonic() - began < 1


def test_roles_take_turns(scene: Database, alice: Session, bob: Session, witness: Running) -> None:
    """A role with many callbacks keeps another one waiting for a turn at most."""
    scene.execute("select net.configure('callback_runners', '1')")
    define(alice, "begin perform pg_sleep(0.05); perform cb_alice.note(o); end")
    with alice.transaction():
        for _ in range(200):
            ask(alice, f"{witness.url}/body/x", "cb_alice.hostile")
    with as_process(scene):
        scene.wait_for("select count(*) > 3 from cb_alice.log")
        ask(bob, f"{witness.url}/body/x", "cb_bob.note")
        scene.wait_for("select count(*) = 1 from cb_bob.log", timeout=5)
    assert scene.value("select count(*) from cb_alice.log") < 100


def test_many_of_one_role(scene: Database, alice: Session, witness: Running) -> None:
    scene.execute("select net.configure_host('*', '{\"adaptive\": false}')")
    alice.execute(
        "select net.http_request('GET', %s, on_response => 'cb_alice.note')"
        " from generate_series(1, 1500)",
        (f"{witness.url}/body/x",),
    )
    with as_process(scene), as_process(scene):
        scene.wait_for("select count(*) = 1500 from cb_alice.log", timeout=60)
        scene.wait_for("select bool_and(state = 'done') from net.callbacks")
    assert scene.value("select count(distinct id) from cb_alice.log") == 1500


def test_not_in_a_database_that_is_off(scene: Database, alice: Session, witness: Running) -> None:
    scene.execute("select net.configure('callback_runners', '0')")
    ask(alice, f"{witness.url}/body/x")
    with as_process(scene):
        scene.wait_for("select count(*) = 1 from net.callbacks")
    scene.execute("select net.configure('mode', 'off'), net.configure('callback_runners', null)")
    drain(scene)
    assert scene.value("select state from net.callbacks") == "waiting"
    with as_process(scene):
        scene.execute("select net.configure('mode', null)")
        scene.wait_for("select state = 'done' from net.callbacks")


def test_a_worker_that_stops_does_not_wait_for_one(
    scene: Database, alice: Session, witness: Running
) -> None:
    scene.execute("select net.configure('callback_attempts', null)")
    define(alice, "begin perform cb_alice.note(o); perform pg_sleep(1000); end")
    id = ask(alice, f"{witness.url}/body/x", "cb_alice.hostile")
    with scene.worker() as worker:
        scene.wait_for("select state = 'running' from net.callbacks")
        began = time.monotonic()
        assert worker.stop(timeout=20) == 0
        assert time.monotonic() - began < 12
    scene.wait_for(
        "select count(*) = 0 from pg_stat_activity where application_name = 'pgnet callbacks'"
    )
    define(alice, "begin perform cb_alice.note(o); end")
    # Its role pauses for a second, as after every cancel.
    scene.execute("update pgnet.callback set due = now() where due is not null")
    scene.execute("update pgnet.callback_turn set paused_until = now()")
    drain(scene)
    assert callback_of(scene, id) == ("done", 2, None, None)
    assert scene.value("select count(*) from cb_alice.log") == 1


def test_a_lock_on_the_table_of_callbacks(
    scene: Database, alice: Session, witness: Running
) -> None:
    """Nothing is lost by it, and a callback that runs holds up no owner's statement but on that."""
    ask(alice, f"{witness.url}/body/x")
    owner = scene.connect(autocommit=False)
    owner.execute("lock table pgnet.callback")
    with as_process(scene):
        time.sleep(1)  # the worker has met the lock by now
        owner.rollback()
        scene.wait_for("select count(*) = 1 from cb_alice.log")
        define(alice, "begin perform cb_alice.note(o); perform pg_sleep(3); end")
        ask(alice, f"{witness.url}/body/x", "cb_alice.hostile")
        scene.wait_for("select count(*) = 1 from net.callbacks where state = 'running'")
        scene.execute("set lock_timeout = '1 s'")
        for table in ("net._http_response", "net.http_request_queue", "pgnet.worker", "pgnet.mark"):
            with scene.connection.transaction(force_rollback=True):
                scene.wait_for(f"select count(*) >= 0 from {table}")
                scene.execute(f"lock table {table} in access exclusive mode")
        scene.wait_for("select count(*) = 2 from cb_alice.log")


# ---- what dies


@pytest.fixture
def fragile(crashing: Cluster, stricken: Database) -> Any:
    with login_roles(crashing, (ALICE, BOB, WORKER)):
        prepare(stricken)
        stricken.execute("select net.configure('callback_attempts', null)")
        yield stricken
        crashing.wait_ready()
        stricken.execute("drop owned by cb_alice, cb_bob, cb_worker cascade")


def runners(database: Database) -> list[int]:
    return [
        pid
        for (pid,) in database.rows(
            "select pid from pg_stat_activity where application_name = 'pgnet callbacks'"
        )
    ]


def test_one_that_kills_its_session_each_time(fragile: Database, witness: Running) -> None:
    """It is given up after its attempts, though nothing that it does is ever committed."""
    fragile.execute("select net.configure('callback_attempts', '2')")
    # Only a superuser can make such a function.
    fragile.execute(
        "create function cb_alice.kill(o net.outcome) returns void language plpython3u as"
        " 'import os; os.kill(os.getpid(), 9)'"
    )
    alice = fragile.connect(ALICE)
    id = ask(alice, f"{witness.url}/body/x", "cb_alice.kill")
    for _ in range(20):
        canary = fragile.cluster.connect()
        try:
            fragile.connect().execute("call net.drain()")
        except psycopg.OperationalError:
            # The postmaster ends every other session before it recovers.
            with contextlib.suppress(psycopg.OperationalError):
                canary.execute("select pg_sleep(10)")
            assert canary.closed
        canary.close()
        fragile.close()
        fragile.cluster.wait_ready()
        if (callback_of(fragile, id) or ("",))[0] == "failed":
            break
        fragile.execute("update pgnet.callback set due = now() where due is not null")
        fragile.execute("update pgnet.callback_turn set paused_until = now()")
    assert (callback_of(fragile, id) or ())[:2] == ("failed", 2)


def left_to_call(database: Database) -> Any:
    """How many requests and callbacks are left; their pauses are cut short."""
    with contextlib.suppress(psycopg.Error):
        database.execute("update pgnet.callback_turn set paused_until = now()")
        database.execute("update pgnet.callback set due = now() where due > now()")
        return database.row(
            "select (select count(*) from net.http_request_queue),"
            " (select count(*) from net.callbacks where state <> 'done')"
        )
    return None


def test_exactly_once_whatever_dies(fragile: Database, witness: Running) -> None:
    """Runners, their server and the worker are killed: each effect is there once."""
    count, seed = 600, random.SystemRandom().randrange(1 << 32)
    chance = random.Random(seed)
    fragile.execute("select net.configure('callback_attempts', '100')")
    fragile.execute("select net.configure_host('*', '{\"adaptive\": false}')")
    alice = fragile.connect(ALICE)
    define(alice, "begin perform cb_alice.note(o); perform pg_sleep(0.005); end")
    stop = threading.Event()

    def keep_working() -> None:
        while not stop.is_set():
            try:
                with fragile.worker(seen=False) as worker:
                    while not stop.wait(0.05) and worker.process.poll() is None:
                        if chance.random() < 0.03:
                            worker.kill()
            except (OSError, TimeoutError, psycopg.Error):
                continue

    alice.execute(
        "select net.http_request('GET', %s, on_response => 'cb_alice.hostile')"
        " from generate_series(1, %s)",
        (f"{witness.url}/body/x", count),
    )
    worker = threading.Thread(target=keep_working, daemon=True)
    worker.start()
    kills: Counter[str] = Counter()
    try:
        until = time.monotonic() + 25
        while time.monotonic() < until:
            with contextlib.suppress(psycopg.Error, OSError):
                found = runners(fragile)
                # A role whose session was lost pauses for longer each time.
                fragile.execute("update pgnet.callback_turn set paused_until = now()")
                fragile.execute(
                    "update pgnet.callback set due = now() where due > now() + interval '1 s'"
                )
                match chance.choice(["terminate", "kill", "crash", "none", "none"]):
                    case "terminate" if found:
                        os.kill(chance.choice(found), signal.SIGTERM)
                        kills["terminated"] += 1
                    case "kill" if found:
                        kill_backend(fragile, chance.choice(found))
                        kills["killed"] += 1
                    case "crash":
                        crash(fragile)
                        kills["crashed"] += 1
            fragile.cluster.wait_ready()
            time.sleep(chance.uniform(0.1, 0.6))
        wait_until(lambda: left_to_call(fragile), (0, 0).__eq__, "all are called", 60)
    finally:
        stop.set()
        worker.join(20)
    assert kills["killed"] + kills["crashed"] > 3, (seed, kills)
    assert fragile.row("select count(*), count(distinct id) from cb_alice.log") == (count, count), (
        seed,
        kills,
    )
    assert fragile.value("select max(attempts) from net.callbacks") > 1, (seed, kills)
