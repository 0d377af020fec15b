"""The worker as a process, `pgnet worker`: its life beside a server that comes and goes."""

from __future__ import annotations

import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from servers.cluster import Cluster, Database, Worker
from servers.httpd import Running
from servers.traffic import crowd, make_durable, queue, seen, states, targets, wait_for_states
from servers.waiting import wait_until

# ---- in pg_stat_activity


def test_it_is_one_row_of_pg_stat_activity(database: Database, worker: Worker) -> None:
    named = (
        "select count(*) from pg_stat_activity"
        " where application_name like 'pgnet%' and datname = current_database()"
    )
    # the session that waits for commits is there too, under another name
    database.wait_for(
        "select count(*) = 2 from pg_stat_activity"
        " where application_name like '%pgnet%' and datname = current_database()"
    )
    assert database.value(named) == 1


def test_it_holds_neither_transaction_nor_snapshot(database: Database, witness: Running) -> None:
    own = (
        "from pg_stat_activity a"
        " where application_name like '%pgnet%' and datname = current_database()"
    )
    with database.worker("--grace", "0"):
        queue(database, f"{witness.url}/delay/600", 10)
        seen(witness, 10)
        database.wait_for(f"select bool_and(backend_xmin is null and backend_xid is null) {own}")
        assert database.value(f"select count(*) {own}") == 2
        # A statement of the moment, such as a look at the queue, has its locks until it ends.
        wait_until(
            lambda: database.rows(
                "select l.locktype, l.mode from pg_locks l where l.locktype <> 'virtualxid'"
                f" and l.pid in (select a.pid {own})"
            ),
            lambda locks: locks == [],
            "no lock",
        )


def test_a_role_with_a_workers_rights_and_no_other(database: Database, witness: Running) -> None:
    database.execute("drop role if exists only_a_process")
    database.execute("create role only_a_process login")
    try:
        database.execute("select net.grant_worker('only_a_process')")
        with database.cluster.worker(dbname=database.name, user="only_a_process"):
            queue(database, f"{witness.url}/body/x", 5)
            wait_for_states(database, {"succeeded": 5})
    finally:
        database.execute("drop owned by only_a_process")
        database.execute("drop role only_a_process")


def test_two_workers_send_each_request_once(database: Database, witness: Running) -> None:
    with database.worker(), database.worker():
        for _ in range(5):
            queue(database, f"{witness.url}/body/x?{time.monotonic_ns()}-#", 100)
        wait_for_states(database, {"succeeded": 500})
    assert set(Counter(targets(witness)).values()) == {1}


# ---- it stops


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_one_stops_at_once(database: Database, number: signal.Signals) -> None:
    with database.worker() as worker:
        started = time.monotonic()
        worker.process.send_signal(number)
        assert worker.process.wait(10) == 0
        assert time.monotonic() - started < 2
    assert database.value("select count(*) from pgnet.worker where ended is null") == 0
    database.wait_for(
        "select count(*) = 0 from pg_stat_activity"
        " where application_name like '%pgnet%' and datname = current_database()"
    )
    assert "Traceback" not in worker.output()


def queued_until_one_stays(database: Database, url: str) -> int:
    """Queue requests, one after another, until one is not claimed; gives how many there were."""
    for count in range(1, 1000):
        queue(database, url)
        try:
            database.wait_for(
                "select count(*) = 0 from net.requests where state = 'ready'", timeout=0.3
            )
        except TimeoutError:
            return count
    raise AssertionError("every one of 1,000 requests was claimed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_finishes_what_is_in_flight_and_gives_back_the_rest(
    database: Database, witness: Running, number: signal.Signals
) -> None:
    with database.worker("--grace", "2") as worker:
        queue(database, f"{witness.url}/delay/1?#", 5)
        queue(database, f"{witness.url}/delay/600?#", 3, 60_000)
        seen(witness, 8)
        started = time.monotonic()
        worker.process.send_signal(number)
        # Once the worker has heard the signal, it claims nothing any more.
        late = queued_until_one_stays(database, f"{witness.url}/body/late")
        wait_for_states(database, {"succeeded": 4 + late, "in_flight": 3, "ready": 1}, 2)
        assert worker.process.wait(10) == 0
        assert 1.5 < time.monotonic() - started < 4
        assert "Traceback" not in worker.output()
    assert states(database) == {"succeeded": 4 + late, "ready": 4}
    assert database.value("select count(*) from pgnet.claim") == 0
    assert database.value("select count(*) from pgnet.worker where ended is null") == 0
    assert len(targets(witness)) == 7 + late
    # what was cut off is free again at once
    with database.worker("--grace", "0"):
        assert len(seen(witness, 11 + late, 1.5)) == 11 + late
        assert database.rows("select attempt from pgnet.claim where attempt > 1") == [(2,)] * 3


def test_sigterm_is_heard_during_a_restart(database: Database, witness: Running) -> None:
    with database.worker("--grace", "3") as worker:
        queue(database, f"{witness.url}/delay/1.5")
        seen(witness, 1)
        # it hears signals from then on
        database.wait_for(
            "select count(*) = 1 from pg_stat_activity where datname = current_database()"
            " and state = 'active' and query like 'call pgnet.wait_for_signals%'"
        )
        database.execute("select net.worker_restart()")
        # it finishes what is in flight before it starts anew: it claims nothing
        queued_until_one_stays(database, f"{witness.url}/body/x")
        started = time.monotonic()
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(10) == 0
        assert time.monotonic() - started < 4


def test_sigterm_while_the_server_is_away(stoppable: Database, stoppable_cluster: Cluster) -> None:
    with stoppable.worker() as worker:
        stoppable.close()
        stoppable_cluster.stop("fast")
        wait_until(worker.output, lambda text: "database" in text, "it says what it waits for")
        started = time.monotonic()
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(10) == 0
        assert time.monotonic() - started < 2
        assert "Traceback" not in worker.output()


def test_sigterm_before_it_has_connected(stoppable: Database, stoppable_cluster: Cluster) -> None:
    stoppable.close()
    stoppable_cluster.stop("fast")
    with stoppable.worker(seen=False) as worker:
        wait_until(worker.output, lambda text: "waiting for" in text, "it says what it waits for")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(10) == 0
        assert "Traceback" not in worker.output()


# ---- the server restarts


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_sends_nothing_again(
    stoppable: Database, stoppable_cluster: Cluster, witness: Running, mode: str
) -> None:
    with stoppable.worker() as worker:
        # some answers come while the server is away, others when it is back
        queue(stoppable, f"{witness.url}/delay/0.3?early-#", 40)
        queue(stoppable, f"{witness.url}/delay/2.5?late-#", 60)
        seen(witness, 100)
        make_durable(stoppable)
        stoppable.close()
        stoppable_cluster.restart(mode)
        wait_for_states(stoppable, {"succeeded": 100})
        assert set(Counter(targets(witness)).values()) == {1}
        assert len(targets(witness)) == 100
        assert stoppable.value("select max(attempts) from net._http_response") == 1
        # it is woken as before
        stoppable.wait_for(
            "select count(*) = 2 from pg_stat_activity"
            " where application_name like '%pgnet%' and datname = current_database()"
        )
        queue(stoppable, f"{witness.url}/body/after")
        wait_for_states(stoppable, {"succeeded": 101}, 2)
        assert worker.process.poll() is None
        assert "Traceback" not in worker.output()
        assert stoppable.value("select count(*) from pgnet.worker where ended is null") == 1


def test_a_terminated_session_comes_back_as_the_same_worker(
    database: Database, worker: Worker, witness: Running
) -> None:
    before = database.wait_for("select id from pgnet.worker")
    queue(database, f"{witness.url}/delay/1?#", 30)
    seen(witness, 30)
    database.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name like '%pgnet%' and datname = current_database()"
    )
    wait_for_states(database, {"succeeded": 30})
    assert len(targets(witness)) == 30
    assert database.rows("select id from pgnet.worker") == [(before,)]
    database.wait_for(
        "select count(*) = 2 from pg_stat_activity"
        " where application_name like '%pgnet%' and datname = current_database()"
    )
    queue(database, f"{witness.url}/body/after")
    wait_for_states(database, {"succeeded": 31}, 2)


def test_answers_that_come_while_the_server_is_away_are_kept(
    stoppable: Database, stoppable_cluster: Cluster, witness: Running
) -> None:
    with stoppable.worker():
        queue(stoppable, f"{witness.url}/delay/0.5?#", 50)
        seen(witness, 50)
        make_durable(stoppable)
        stoppable.close()
        stoppable_cluster.stop("fast")
        wait_until(witness.open_connections, lambda _: True)
        # the last answers are out when a request of ours that began later is answered
        witness.ask("/delay/0.6")
        stoppable_cluster.start()
        wait_for_states(stoppable, {"succeeded": 50})
    assert len([target for target in targets(witness) if "?" in target]) == 50


# ---- what it needs is not there yet


def test_it_waits_for_the_database(cluster: Cluster, witness: Running) -> None:
    with cluster.worker(dbname="not_yet", seen=False) as worker:
        wait_until(worker.output, lambda text: '"not_yet" does not exist' in text, "what it says")
        database = cluster.create_database(name="not_yet")
        try:
            database.execute("select net.allow_network('loopback')")
            queue(database, f"{witness.url}/body/x")
            wait_for_states(database, {"succeeded": 1})
            assert "Traceback" not in worker.output()
            worker.stop()
        finally:
            database.drop()


def create_extension(database: Database) -> None:
    with database.connect(autocommit=False) as connection:
        connection.execute("create extension pgnet cascade")
        connection.execute("select net.allow_network('loopback')")


def test_it_waits_for_the_extension(cluster: Cluster, witness: Running) -> None:
    database = cluster.create_database(extension=False)
    with cluster.worker(dbname=database.name, seen=False) as worker:
        output = wait_until(worker.output, lambda text: "net" in text, "what it says")
        assert "does not exist" in output
        create_extension(database)
        queue(database, f"{witness.url}/body/x")
        wait_for_states(database, {"succeeded": 1})
        # dropped and made again under it
        database.execute("drop extension pgnet")
        create_extension(database)
        queue(database, f"{witness.url}/body/x")
        wait_for_states(database, {"succeeded": 1})
        assert "Traceback" not in worker.output()
        worker.stop()
    database.drop()


def test_it_waits_for_the_right_password(stoppable: Database, witness: Running) -> None:
    server = stoppable.cluster
    hba = Path(server.data, "pg_hba.conf")
    trusting = hba.read_text()
    stoppable.execute("drop role if exists guarded")
    stoppable.execute("create role guarded login password 'correct'")
    stoppable.execute("select net.grant_worker('guarded')")
    hba.write_text("local all guarded scram-sha-256\n" + trusting)
    stoppable.execute("select pg_reload_conf()")
    try:
        with server.worker(
            "--dsn",
            stoppable.dsn("guarded"),
            dbname=stoppable.name,
            environment={"PGPASSWORD": "s3cr3t-as-given"},
            seen=False,
        ) as worker:
            output = wait_until(
                worker.output, lambda text: "password authentication failed" in text, "what it says"
            )
            assert "s3cr3t" not in output
            stoppable.execute("alter role guarded password 's3cr3t-as-given'")
            queue(stoppable, f"{witness.url}/body/x")
            wait_for_states(stoppable, {"succeeded": 1})
            assert "s3cr3t" not in worker.output()
    finally:
        hba.write_text(trusting)
        stoppable.execute("select pg_reload_conf()")
        stoppable.execute("drop owned by guarded")
        stoppable.execute("drop role guarded")


def test_it_waits_for_its_rights(database: Database, witness: Running) -> None:
    """And ends at once where they are taken back."""
    database.execute("drop role if exists not_a_worker_yet")
    database.execute("create role not_a_worker_yet login")
    try:
        with database.cluster.worker(
            dbname=database.name, user="not_a_worker_yet", seen=False
        ) as worker:
            wait_until(
                worker.output,
                lambda text: "select net.grant_worker('not_a_worker_yet')" in text,
                "what it says",
            )
            database.execute("select net.grant_worker('not_a_worker_yet')")
            queue(database, f"{witness.url}/body/x")
            wait_for_states(database, {"succeeded": 1})
            database.execute("select net.revoke_worker('not_a_worker_yet')")
            assert worker.process.wait(10) == 1
            assert 'role "not_a_worker_yet" may not run workers' in worker.output()
    finally:
        database.execute("drop owned by not_a_worker_yet")
        database.execute("drop role not_a_worker_yet")


def test_a_dropped_database_under_it(cluster: Cluster, witness: Running) -> None:
    database = cluster.create_database()
    database.execute("select net.allow_network('loopback')")
    with database.worker("--grace", "1") as worker:
        queue(database, f"{witness.url}/delay/600", 10)
        seen(witness, 10)
        started = time.monotonic()
        database.drop()
        assert time.monotonic() - started < 3
        wait_until(worker.output, lambda text: "does not exist" in text, "what it says")
        assert worker.stop() == 0
        assert "Traceback" not in worker.output()


def test_a_broken_dsn_is_refused(cluster: Cluster) -> None:
    """A worker does not wait where waiting cannot help: it ends with an error at once."""
    arguments = ("--dsn", "no_such_parameter=1 password=s3cr3t")
    with cluster.worker(*arguments, dbname="postgres", seen=False) as worker:
        assert worker.process.wait(10) != 0
        # not even of a string that is no good the password is shown
        assert "--dsn" in worker.output()
        assert "s3cr3t" not in worker.output()
        assert "Traceback" not in worker.output()


# ---- paused


def outcomes(database: Database) -> list[tuple[Any, ...]]:
    return database.rows("select id, created, attempts from net._http_response order by id")


def test_a_paused_worker_records_nothing_twice(database: Database, witness: Running) -> None:
    """The worker's session lives, but its claims pass their deadline and another takes them."""
    crowd(database)
    with database.worker("--grace", "0") as paused:
        queue(database, f"{witness.url}/delay/0.5?#", 50)
        seen(witness, 50)
        paused.pause()
        with database.worker():
            # what five seconds, and the minute's margin, would do
            database.execute("update pgnet.claim set deadline = clock_timestamp()")
            wait_for_states(database, {"succeeded": 50})
            before = database.rows(
                "select id, created, attempts from net._http_response order by 1"
            )
            assert {attempts for _, _, attempts in before} == {2}
            paused.resume()
            queue(database, f"{witness.url}/body/after", 20)
            wait_for_states(database, {"succeeded": 70})
            assert paused.stop() == 0
            assert outcomes(database)[:50] == before
    assert len([target for target in targets(witness) if "delay" in target]) == 100


def test_a_paused_worker_whose_session_is_gone(database: Database, witness: Running) -> None:
    """Five seconds: longer than rescue_after; the other one rescues, the first one comes back."""
    crowd(database)
    with database.worker("--grace", "0") as paused:
        queue(database, f"{witness.url}/delay/0.5?#", 50)
        seen(witness, 50)
        paused.pause()
        with database.worker():
            database.execute(
                "select pg_terminate_backend(pid) from pgnet.worker order by id limit 1",
            )
            started = time.monotonic()
            wait_for_states(database, {"succeeded": 50})
            assert time.monotonic() - started > 3, "rescued before rescue_after"
            wait_until(time.monotonic, lambda now: now - started > 5, "five seconds", 10)
            before = database.rows(
                "select id, created, attempts from net._http_response order by 1"
            )
            paused.resume()
            # it is back when it has its session again
            database.wait_for(
                "select count(*) = 2 from pgnet.worker w join pg_stat_activity a"
                " on a.pid = w.pid and a.backend_start = w.backend_start"
            )
            queue(database, f"{witness.url}/body/after", 20)
            wait_for_states(database, {"succeeded": 70})
            assert outcomes(database)[:50] == before
            assert paused.stop() == 0


def test_a_paused_alone_worker_goes_on(
    database: Database, worker: Worker, witness: Running
) -> None:
    queue(database, f"{witness.url}/delay/0.3?#", 10)
    seen(witness, 10)
    worker.pause()
    witness.ask("/delay/0.5")
    worker.resume()
    wait_for_states(database, {"succeeded": 10})
    assert len([target for target in targets(witness) if "?" in target]) == 10
