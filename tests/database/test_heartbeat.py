"""The duties of the heartbeat fail alone, and what cannot be recorded is kept: others go on."""

from __future__ import annotations

import time
from collections import Counter

import psycopg
import pytest

from servers.cluster import Database, Worker
from servers.httpd import Running
from servers.traffic import queue, seen, targets, wait_for_states
from servers.waiting import wait_until
from servers.workers import serving


def check(database: Database, item: str) -> tuple[bool, str, str | None]:
    found = database.row("select ok, detail, hint from net.check() where item = %s limit 1", item)
    assert found is not None
    return found


def logged(worker: Worker, text: str) -> int:
    return sum(text in line for line in worker.output().splitlines())


REFUSE = """
    create function public.refuse() returns trigger language plpgsql as $$
    begin
        raise exception 'not here';
    end $$;
"""
KEEP = """
    create function public.keep() returns trigger language plpgsql as $$
    begin
        return null;
    end $$;
"""
# A statement that keeps expired rows, one that undoes it, and the doctor's words.
KEEPERS = {
    "foreign key": (
        "create table public.keep (id bigint references {table} (id));"
        " insert into public.keep select id from {table} limit 1",
        "drop table public.keep",
        "violates foreign key constraint",
        "drop constraint",
    ),
    "deferred foreign key": (
        "create table public.keep"
        " (id bigint references {table} (id) deferrable initially deferred);"
        " insert into public.keep select id from {table} limit 1",
        "drop table public.keep",
        "violates foreign key constraint",
        "drop constraint",
    ),
    "trigger that raises": (
        REFUSE + "create trigger refuse before delete on {table}"
        " for each row when (old.id = 1) execute function public.refuse()",
        "drop trigger refuse on {table}",
        "not here",
        "disable trigger refuse",
    ),
    "trigger of the statement": (
        REFUSE + "create trigger refuse before delete on {table}"
        " for each statement execute function public.refuse()",
        "drop trigger refuse on {table}",
        "not here",
        "disable trigger refuse",
    ),
    "trigger that keeps without a word": (
        KEEP + "create trigger refuse before delete on {table}"
        " for each row when (old.id = 1) execute function public.keep()",
        "drop trigger refuse on {table}",
        "a trigger or a rule keeps the row",
        "disable trigger refuse",
    ),
}


@pytest.mark.parametrize("way", KEEPERS)
@pytest.mark.parametrize("table", ["net._http_response", "pgnet.failed"])
def test_a_row_that_cannot_be_deleted_stays_alone(
    database: Database, witness: Running, way: str, table: str
) -> None:
    """Requests are sent all the while; the others of its batch go, and those behind it too."""
    keep, let_go, fault, hint = (text.format(table=table) for text in KEEPERS[way])
    with database.worker() as worker:
        queue(database, f"{witness.url}/status/500?#", 20)
        wait_for_states(database, {"failed": 20})
        assert database.value("select count(*) from pgnet.failed") == 20
        database.execute(keep)
        time_column = "created" if table == "net._http_response" else "failed"
        database.execute(f"update {table} set {time_column} = now() - interval '30 days'")
        database.execute("select net.worker_restart()")
        stays = 20 if way == "trigger of the statement" else 1
        database.wait_for(f"select count(*) = {stays} from {table}")
        # another comes behind it
        database.execute(
            f"insert into {table} select * from jsonb_populate_record(null::{table},"
            f" (select to_jsonb(t) || '{{\"id\": 1000}}' from {table} t limit 1))"
        )
        database.execute("select pgnet.reload_workers()")
        database.wait_for(f"select count(*) = {stays + (stays == 20)} from {table}")
        ok, detail, remedy = check(database, "heartbeat")
        assert not ok
        assert fault in detail
        assert hint in (remedy or ""), remedy
        queue(database, f"{witness.url}/body/x")
        database.wait_for("select count(*) = 1 from net._http_response where status_code = 200")
        wait_until(lambda: logged(worker, "deleting expired"), bool, "the log has it")
        database.execute(let_go)
        database.wait_for(
            f"select count(*) = 0 from {table} where {time_column} < now() - interval '9 days'"
        )
        wait_until(lambda: logged(worker, "works again"), bool, "the log has it")
        assert check(database, "heartbeat")[0]
        assert logged(worker, "deleting expired") == 2, worker.output()


def test_many_rows_that_stay_do_not_starve_those_behind_them(database: Database) -> None:
    """More than a batch; they are tried again, a few at first, and go when they may."""
    database.execute(
        "insert into net._http_response"
        " (id, state, attempts, method, url, requested_by, requested, timed_out, created)"
        " select n, 'succeeded', 1, 'GET', 'http://127.0.0.1/', 'postgres'::regrole, now(), false,"
        " now() - interval '2 days' + n * interval '1 ms' from generate_series(1, 12000) n"
    )
    database.execute("create table public.keep (id bigint references net._http_response (id))")
    database.execute("insert into public.keep select generate_series(1, 5500)")
    for _ in range(20):
        database.execute("select pgnet.heartbeat(null)")
    assert database.value("select count(*) from net._http_response") == 5500
    assert database.value("select kept from pgnet.fault") == 5500
    # a few of them are looked at, and not all
    database.execute("update pgnet.fault set retry_at = now()")
    started = time.monotonic()
    database.execute("select pgnet.heartbeat(null)")
    assert time.monotonic() - started < 1
    assert database.value("select retry_at > now() and kept = 5500 from pgnet.fault")
    database.execute("delete from public.keep where id <> 17")
    database.execute("update pgnet.fault set retry_at = now()")
    for _ in range(20):
        database.execute("select pgnet.heartbeat(null)")
    assert database.rows("select id from net._http_response") == [(17,)]
    assert database.rows("select kept from pgnet.fault") == [(1,)]
    database.execute("drop table public.keep")
    database.execute("update pgnet.fault set retry_at = now()")
    database.execute("select pgnet.heartbeat(null)")
    assert database.value("select count(*) from net._http_response") == 0
    assert database.value("select count(*) from pgnet.fault") == 0


@pytest.mark.parametrize(
    ("table", "event"),
    [
        ("pgnet.worker", "delete"),
        ("pgnet.worker", "update of gone_since"),
        ("pgnet.attempt", "insert"),
        ("pgnet.attempt", "delete"),
        ("pgnet.claim", "update"),
        ("net.http_request_queue", "update"),
    ],
)
def test_a_trigger_that_raises_stops_nobody_else(
    database: Database, witness: Running, table: str, event: str
) -> None:
    """A worker is lost with a request, others are to be deleted: what can be done is done."""
    with database.worker() as lost:
        queue(database, f"{witness.url}/delay/600", timeout=700_000)
        seen(witness, 1)
        database.execute(
            REFUSE + f"create trigger refuse before {event} on {table}"
            " for each row execute function public.refuse()"
        )
        lost.kill()
    database.execute(
        "insert into pgnet.worker (kind, pid, backend_start, ended)"
        " values ('process', 1, now(), now() - interval '1 day')"
    )
    with database.worker("--grace", "0") as worker:
        for _ in range(3):
            queue(database, f"{witness.url}/body/x")
        database.wait_for("select count(*) = 3 from net._http_response where status_code = 200")
        # the lost one's request is with another, or the doctor says why not
        database.wait_for(
            "select exists (select from pgnet.claim where attempt = 2) or not c.ok"
            " from net.check() c where c.item = 'heartbeat'"
        )
        assert worker.process.poll() is None
        assert logged(worker, "fails") <= 2, worker.output()


@pytest.mark.parametrize("form", ["process", "backend"])
@pytest.mark.parametrize("deferred", [False, True], ids=["at once", "deferred"])
def test_an_outcome_that_is_refused_is_kept(
    database: Database, witness: Running, form: str, deferred: bool
) -> None:
    """Others go on; the request is named once, survives its worker, and is not sent again."""
    kind = "constraint trigger" if deferred else "trigger"
    when = "deferrable initially deferred" if deferred else ""
    with database.worker() if form == "process" else serving(database) as worker:
        database.execute(
            REFUSE + f"create {kind} refuse after insert on net._http_response {when}"
            " for each row when (new.url like '%bad%') execute function public.refuse()"
        )
        queue(database, f"{witness.url}/body/bad#", 3)
        queue(database, f"{witness.url}/body/good#", 50)
        wait_for_states(database, {"succeeded": 50, "in_flight": 3})
        database.wait_for("select count(*) = 3 from pgnet.unrecorded")
        assert (
            database.value(
                "select count(*) from net.requests where error_msg like '%cannot be recorded yet%'"
            )
            == 3
        )
        ok, detail, hint = check(database, "recording")
        assert not ok
        assert "3 outcomes cannot be recorded" in detail
        assert "not here" in detail
        assert "disable trigger refuse" in (hint or "")
        if isinstance(worker, Worker):
            database.execute("select pgnet.reload_workers()")
            wait_until(lambda: logged(worker, "recording fails"), bool, "the log has it")
            assert logged(worker, "not here") == 1, worker.output()
    with database.worker():
        database.execute("drop trigger refuse on net._http_response")
        database.execute("update pgnet.unrecorded set retry_at = now()")
        database.execute("select pgnet.reload_workers()")
        wait_for_states(database, {"succeeded": 53})
        assert database.value("select count(*) from net.responses where content like 'bad%'") == 3
        assert database.value("select count(*) from pgnet.claim") == 0
        assert check(database, "recording")[0]
    assert set(Counter(targets(witness)).values()) == {1}


@pytest.mark.parametrize("sqlstate", ["40001", "53100", "55000", "58030", "XX000", "P0001"])
def test_whatever_a_trigger_raises_others_are_recorded(
    database: Database, witness: Running, sqlstate: str
) -> None:
    database.execute(
        f"""
        create function public.refuse() returns trigger language plpgsql as $$
        begin
            raise exception using errcode = '{sqlstate}', message = 'not here';
        end $$;
        create trigger refuse before insert on net._http_response
            for each row when (new.url like '%bad%') execute function public.refuse();
        """
    )
    with database.worker() as worker:
        queue(database, f"{witness.url}/body/good#", 30)
        queue(database, f"{witness.url}/body/bad")
        queue(database, f"{witness.url}/body/good1#", 30)
        wait_for_states(database, {"succeeded": 60, "in_flight": 1}, 20)
        database.wait_for("select count(*) = 1 from pgnet.unrecorded", timeout=20)
        assert worker.process.poll() is None


def test_locks_on_many_rows_fill_no_memory(database: Database, witness: Running) -> None:
    """A role deletes its rows in flight, again and again, and does not commit: others go on."""

    def resident(worker: Worker) -> int:
        with open(f"/proc/{worker.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

    sessions = []
    with database.worker("--concurrency", "20") as worker:
        queue(database, f"{witness.url}/body/warm")
        wait_for_states(database, {"succeeded": 1})
        sizes = []
        for number in range(1, 5):
            # the slot of each is free when its answer has come, whether that can be recorded or not
            ids = queue(database, f"{witness.url}/long/4000000?{number}-#", 12, 60_000)
            session = database.connect(autocommit=False)
            sessions.append(session)
            session.execute("delete from net.http_request_queue where id = any (%s)", (ids,))
            queue(database, f"{witness.url}/body/other{number}")
            database.wait_for(
                "select count(*) = %s from net.responses where content like 'other%%'",
                number,
                timeout=30,
            )
            sizes.append(resident(worker))
        print(sizes, database.value("select count(*) from pgnet.unrecorded"))
        # a role's 200 MB would be there
        assert sizes[-1] < sizes[0] + 60_000
        for session in sessions:
            session.rollback()
        wait_for_states(database, {"succeeded": 1 + 4 + 48}, 60)


def test_what_is_deleted_in_flight_frees_its_slot(database: Database, witness: Running) -> None:
    with database.worker("--concurrency", "4", "--grace", "0") as worker:
        queue(database, f"{witness.url}/delay/600?#", 3, 700_000)
        seen(witness, 3)
        queue(database, f"{witness.url}/body/next", 4)
        database.execute("delete from net.http_request_queue where url like '%delay%'")
        database.execute("select pgnet.reload_workers()")
        wait_for_states(database, {"succeeded": 4}, 5)
        wait_until(witness.open_connections, lambda count: count <= 4, "connections are closed")
        assert database.value("select count(*) from pgnet.claim") == 0
        assert "Traceback" not in worker.output()


def test_a_lock_of_a_table_delays_what_needs_it(database: Database, witness: Running) -> None:
    """No statement waits for longer than half a second, and the worker stops at once."""
    with database.worker("--grace", "2") as worker:
        queue(database, f"{witness.url}/body/first")
        wait_for_states(database, {"succeeded": 1})
        holder = database.connect(autocommit=False)
        holder.execute("lock table net.http_request_queue in access exclusive mode")
        database.execute("select net.wake()")
        wait_until(lambda: logged(worker, "claiming fails"), bool, "the log has it")
        started = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - started < 4
        with database.worker() as other:
            holder.rollback()
            queue(database, f"{witness.url}/body/second")
            wait_for_states(database, {"succeeded": 2})
            assert other.process.poll() is None


@pytest.mark.timeout(400)
@pytest.mark.parametrize("form", ["process", "backend"])
def test_a_worker_lives_through_drop_and_create(
    database: Database, witness: Running, form: str
) -> None:
    """Fifty times in a row, mostly while it is at work: no deadlock, and it is back soon."""
    rounds = 50
    with database.worker("--verbose") if form == "process" else serving(database) as worker:
        database.execute("select net.wait_until_running()")
        slowest = 0.0
        for round in range(rounds):
            if round % 5:
                queue(database, f"{witness.url}/delay/0.2?{round}-#", 30)
                queue(database, f"{witness.url}/body/{round}-#", 30)
            database.execute("drop extension pgnet")
            if round % 10 == 5:
                # it has noticed, and waits
                time.sleep(0.7)
            database.execute("create extension pgnet")
            started = time.monotonic()
            database.execute("select net.allow_network('loopback')")
            database.execute("set statement_timeout = '5 s'")
            database.execute("select net.wait_until_running()")
            database.execute("set statement_timeout = 0")
            queue(database, f"{witness.url}/body/new{round}")
            wait_for_states(database, {"succeeded": 1}, 3)
            slowest = max(slowest, time.monotonic() - started)
        assert slowest < (3 if form == "process" else 5)
        if isinstance(worker, Worker):
            assert worker.process.poll() is None
            assert logged(worker, "is gone") == logged(worker, "is back") == rounds, worker.output()
            assert "Traceback" not in worker.output()
        else:
            worker.connection.cancel()
            assert isinstance(worker.ended(), psycopg.errors.QueryCanceled)
    assert max(Counter(targets(witness)).values()) == 1


@pytest.mark.parametrize("table", ["pgnet.claim", "net.http_request_queue", "net._http_response"])
def test_a_lock_is_waited_for_with_no_other_in_hand(
    database: Database, witness: Running, table: str
) -> None:
    """DROP EXTENSION, which takes locks one after the other, meets no deadlock."""
    with database.worker():
        database.execute("select net.wait_until_running()")
        blocker = database.connect(autocommit=False)
        blocker.execute(f"lock table {table} in access exclusive mode")
        database.execute("select net.wake()")
        in_hand = database.wait_for(
            "select array(select o.relation::regclass::text from pg_locks o"
            " join pg_class c on c.oid = o.relation"
            " where o.pid = w.pid and o.granted and c.relkind = 'r'"
            " and c.relnamespace = any ('{net,pgnet}'::regnamespace[]))"
            f" from pg_locks w where w.relation = '{table}'::regclass and not w.granted"
            " limit 1",
            predicate=lambda found: found is not None,
        )
        assert in_hand == []
        blocker.rollback()
