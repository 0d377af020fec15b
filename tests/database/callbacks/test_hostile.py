"""A hostile callback gains nothing, and what it leaves behind nobody meets."""

from __future__ import annotations

import time
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from servers.callback_scene import (
    ALICE,
    BOB,
    WORKER,
    ask,
    callback_of,
    define,
    drain,
    log_of,
    value,
)
from servers.cluster import Database
from servers.httpd import Running
from servers.waiting import wait_until
from servers.workers import serving

Session = psycopg.Connection[Any]

# What PostgreSQL refuses within the operation, or to a role like this one. The worker's role, and
# the owner's, may do some of it.
REFUSED = (
    "set role cb_worker",
    "set role postgres",
    "set role none",
    "reset role",
    "set session authorization postgres",
    "set session authorization default",
    "reset session authorization",
    "select set_config('role', 'postgres', false)",
    "select set_config('session_authorization', 'postgres', false)",
    "create temp table t (n int)",
    "create temp view v as select 1",
    "create temp sequence s",
    "create table pg_temp.t (n int)",
    "select 1 as n into temp t",
    "prepare p as select 1",
    "deallocate all",
    "discard all",
    "discard temp",
    "discard plans",
    "listen news",
    "unlisten *",
    "declare c cursor with hold for select 1",
    "copy (select 1) to program 'touch /tmp/pgnet-callback-was-here'",
    "copy (select 1) to '/tmp/pgnet-callback-was-here'",
    "select pg_read_file('postgresql.conf')",
    "load 'plpython3'",
    "set session_replication_role = replica",
    "set temp_file_limit = -1",
    "lock table net._http_response in access exclusive mode",
    "lock table pgnet.callback in share mode",
    "delete from pgnet.callback",
    "update pgnet.callback set state = 'done'",
    "insert into pgnet.callback (request_id, requested_by, callback) values (1, 'cb_bob', 'x.y')",
    "select pg_terminate_backend(pg_backend_pid())",
    "select pg_cancel_backend(pg_backend_pid())",
    "alter role cb_alice superuser",
    "alter system set port = 1",
    "create trigger t before insert on net._http_response execute function cb_alice.t()",
    "alter function cb_alice.hostile owner to cb_worker",
    "commit",
    "rollback",
    "call net.drain()",
    "call net.run_callbacks()",
    "select pgnet.register_worker('process')",
    "select pgnet.look_for_callbacks()",
    "select pgnet.call_restricted(10, '', 'select 1', '', 1, 1, true)",
    "vacuum",
)


def test_what_is_refused(scene: Database, alice: Session, witness: Running) -> None:
    """Each is tried by a callback of its own, all in one session."""
    alice.execute("create table cb_alice.tried (statement text, error text, code text)")
    define(
        alice,
        """
        declare statement text := o.context ->> 0;
        begin
            begin
                execute statement;
                insert into cb_alice.tried values (statement, null, null);
            exception when others then
                insert into cb_alice.tried values (statement, sqlerrm, sqlstate);
            end;
        end""",
    )
    for statement in REFUSED:
        ask(
            alice,
            witness.url,
            "cb_alice.hostile",
            context=Jsonb([statement]),
        )
    drain(scene)
    tried = {
        statement: error
        for statement, error in scene.rows("select statement, error from cb_alice.tried")
    }
    assert set(tried) == set(REFUSED)
    assert {statement for statement, error in tried.items() if error is None} == set()


TEMPORARY = (
    "create function pg_temp.f() returns int language sql as 'select 1'",
    "create domain pg_temp.text as pg_catalog.text",
    "create type pg_temp.jsonb as enum ('a')",
    "create operator pg_temp.= (leftarg = int, rightarg = int, function = int4eq)",
)


@pytest.mark.parametrize("user", [WORKER, "postgres"])
def test_temporary_objects_that_are_no_tables(
    scene: Database, alice: Session, bob: Session, witness: Running, user: str
) -> None:
    """PostgreSQL allows some of them in the operation; they are undone with the callback."""
    define(alice, "begin execute o.context ->> 0; end")
    session = scene.connect(user)
    if user == "postgres":
        session.execute("create temp table of_the_owners (n int)")
    ids = [
        ask(alice, witness.url, "cb_alice.hostile", context=Jsonb([statement]))
        for statement in TEMPORARY
    ]
    other = ask(bob, witness.url, "cb_bob.note")
    session.execute("call net.drain()")
    for id in ids:
        state, _attempts, message, code = callback_of(scene, id) or ()
        assert (state, code) == ("failed", "42501")
        assert "temporary" in message
    assert (callback_of(scene, other) or ())[0] == "done"
    assert value(session, "select pgnet.temporary_objects()") == (1 if user == "postgres" else 0)
    session.execute("call net.drain()")


def test_the_workers_functions_refuse_a_callback(
    scene: Database, alice: Session, witness: Running
) -> None:
    """The session is a worker's, and everybody may execute everything."""
    scene.execute("grant execute on all routines in schema net, pgnet to public")
    scene.execute("select net.set_secret('k', 'hunter2-hunter2', 'http://127.0.0.1/')")
    calls = (
        "select pgnet.require_worker()",
        "select pgnet.register_worker('process')",
        "select pgnet.claim_requests(w.id, 10, 10, 10, '{}', 1000000, '') from net.workers w",
        "select pgnet.record_outcomes('[]')",
        "select pgnet.report_attempts(1, '[]')",
        "select pgnet.report_work(1, '{}')",
        "select pgnet.release_requests('{1}', array[gen_random_uuid()], 'x')",
        "select pgnet.claimed_secrets('{1}', array[gen_random_uuid()], '{k}')",
        "select pgnet.deregister_worker(1, gen_random_uuid())",
        "select pgnet.heartbeat(null)",
        "select pgnet.look_for_callbacks()",
        "select pgnet.take_callback('cb_bob'::regrole::oid)",
        "select pgnet.perform_callback(gen_random_uuid(), true)",
        "select pgnet.wake_up_fault()",
        "select pgnet.wake_next_worker(0)",
    )
    alice.execute("create table cb_alice.tried (statement text, error text)")
    define(
        alice,
        """
        declare statement text;
        begin
            for statement in select jsonb_array_elements_text(o.context) loop
                begin
                    execute statement;
                    insert into cb_alice.tried values (statement, null);
                exception when others then
                    insert into cb_alice.tried values (statement, sqlerrm);
                end;
            end loop;
        end""",
    )
    ask(alice, witness.url, "cb_alice.hostile", context=Jsonb(list(calls)))
    drain(scene)
    tried = dict(scene.rows("select statement, error from cb_alice.tried"))
    assert set(tried) == set(calls)
    for statement, error in tried.items():
        assert error is not None, statement
        assert error.endswith("cannot execute UNLISTEN within security-restricted operation")


def test_who_it_is(scene: Database, alice: Session, witness: Running) -> None:
    alice.execute("create table cb_alice.who (name text, setting text)")
    define(
        alice,
        """
        begin
            insert into cb_alice.who values
                ('current_user', current_user), ('session_user', session_user),
                ('role', current_setting('role')),
                ('session_replication_role', current_setting('session_replication_role'));
        end""",
    )
    ask(alice, witness.url, "cb_alice.hostile")
    drain(scene)
    # The page of callbacks says so of session_user.
    assert dict(scene.rows("select name, setting from cb_alice.who")) == {
        "current_user": ALICE,
        "session_user": WORKER,
        "role": "none",
        "session_replication_role": "origin",
    }


def test_settings_are_undone(
    scene: Database, alice: Session, bob: Session, witness: Running
) -> None:
    """In the same session, with operators that its search_path would bring in."""
    alice.execute("create table cb_alice.trapped (what text)")
    alice.execute(
        "grant usage on schema cb_alice to public; grant insert on cb_alice.trapped to public"
    )
    alice.execute(
        """
        create function cb_alice.trap(anyelement, anyelement) returns boolean language plpgsql as
            $$ begin insert into cb_alice.trapped values (current_user); return true; end $$;
        create operator cb_alice.= (leftarg = anyelement, rightarg = anyelement,
            function = cb_alice.trap);
        create operator cb_alice.<> (leftarg = anyelement, rightarg = anyelement,
            function = cb_alice.trap);
        create function cb_alice.clock_timestamp() returns timestamptz language plpgsql as
            $$ begin insert into cb_alice.trapped values (current_user); return now(); end $$;
        create function cb_alice.least(anyelement, anyelement) returns anyelement language plpgsql
            as $$ begin insert into cb_alice.trapped values (current_user); return $1; end $$;
        """
    )
    define(
        alice,
        """
        begin
            perform set_config('search_path', 'cb_alice, pg_catalog', false);
            perform set_config('timezone', 'Asia/Tokyo', false);
            perform set_config('statement_timeout', '1', false);
            perform set_config('lock_timeout', '1', false);
            perform set_config('cb.mine', 'left behind', false);
            perform set_config('row_security', 'off', false);
        end""",
    )
    bob.execute("create table cb_bob.seen (name text, setting text)")
    define(
        bob,
        """
        begin
            insert into cb_bob.seen
            select n, nullif(current_setting(n, true), '')
            from unnest(array['search_path', 'timezone', 'statement_timeout', 'lock_timeout',
                'cb.mine', 'row_security']) n;
        end""",
        "cb_bob.look",
    )
    ask(bob, witness.url, "cb_bob.look")
    drain(scene)
    before = scene.rows("select name, setting from cb_bob.seen")
    scene.execute("truncate cb_bob.seen")
    session = scene.connect(WORKER)
    ask(alice, witness.url, "cb_alice.hostile")
    session.execute("call net.drain()")
    ask(bob, witness.url, "cb_bob.look")
    session.execute("call net.drain()")
    assert scene.rows("select name, setting from cb_bob.seen") == before
    assert scene.rows("select what from cb_alice.trapped") == []
    assert {state for (state,) in scene.rows("select state from net.callbacks")} == {"done"}


def test_deferred_triggers(scene: Database, alice: Session, witness: Running) -> None:
    """They would fire at the worker's commit, outside of the operation."""
    alice.execute(
        """
        create table cb_alice.orders (id bigint);
        create table cb_alice.fired (who text);
        create function cb_alice.fire() returns trigger language plpgsql as
            $$ begin insert into cb_alice.fired values (current_user); return null; end $$;
        create constraint trigger fire after insert on cb_alice.orders deferrable initially deferred
            for each row execute function cb_alice.fire();
        """
    )
    define(alice, "begin insert into cb_alice.orders values (o.id); end")
    id = ask(alice, witness.url, "cb_alice.hostile")
    drain(scene)
    assert "deferred trigger" in str(callback_of(scene, id))
    assert scene.value("select count(*) from cb_alice.orders") == 0
    assert scene.value("select count(*) from cb_alice.fired") == 0
    # Its author can have them fire at once.
    define(
        alice,
        "begin set constraints all immediate; insert into cb_alice.orders values (o.id); end",
    )
    assert value(alice, "select net.run_callback(%s)", id)
    drain(scene)
    assert scene.rows("select who from cb_alice.fired") == [(ALICE,)]


@pytest.mark.parametrize("security", ["invoker", "definer"])
def test_it_alters_itself(scene: Database, alice: Session, witness: Running, security: str) -> None:
    """While it runs, and before it is run: it stays the role's own."""
    alice.execute("create table cb_alice.who (name text)")
    body = """
        begin
            insert into cb_alice.who values (current_user);
            alter function cb_alice.hostile security invoker;
            alter function cb_alice.hostile set role = postgres;
            execute 'create or replace function cb_alice.hostile(o net.outcome) returns void'
                ' language sql as $$ insert into cb_alice.who values (current_user) $$';
            perform cb_alice.hostile(o);
        end"""
    define(alice, body.replace("alter function cb_alice.hostile set role = postgres;", ""))
    alice.execute(f"alter function cb_alice.hostile security {security}")
    ask(alice, witness.url, "cb_alice.hostile")
    drain(scene)
    ask(alice, witness.url, "cb_alice.hostile")
    drain(scene)
    assert scene.rows("select name from cb_alice.who") == [(ALICE,)] * 3


def test_a_definer_function_of_anothers(
    scene: Database, alice: Session, bob: Session, witness: Running
) -> None:
    """It runs as its owner, and still cannot become the worker."""
    bob.execute(
        """
        create function cb_bob.lend(o net.outcome) returns void language plpgsql security definer as
        $$ begin
            insert into cb_bob.log (id, who) values (o.id, current_user);
            set role cb_worker;
        exception when insufficient_privilege or object_not_in_prerequisite_state then
            insert into cb_bob.log (id, who) values (o.id, current_user);
        end $$;
        grant usage on schema cb_bob to cb_alice;
        """
    )
    id = ask(alice, witness.url, "cb_bob.lend")
    drain(scene)
    assert log_of(scene, BOB) == [(id, None, None, BOB)]


ALTERED = (
    "net.http_request",
    "pgnet.queue_request",
    "pgnet.resolve_callback",
    "pgnet.caller_role",
    "pgnet.report_call",
)


@pytest.mark.parametrize("altered", ALTERED)
def test_a_function_of_ours_that_was_altered(
    scene: Database, alice: Session, witness: Running, altered: str
) -> None:
    """As migrations for pg_net do: the callback would run as the owner of the extension."""
    alice.execute("create table cb_alice.who (name text)")
    define(alice, "begin insert into cb_alice.who values (current_user); end")
    before = ask(alice, witness.url, "cb_alice.hostile")
    signature = scene.value("select %s::regproc::regprocedure::text", altered)
    scene.execute(f"alter function {signature} security definer")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="no callback can be named"):
        ask(alice, witness.url, "cb_alice.hostile")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="no callback can be named"):
        drain(scene)
    assert scene.rows("select name from cb_alice.who") == []
    scene.execute(f"alter function {signature} security invoker")
    drain(scene)
    assert (callback_of(scene, before) or ())[0] == "done"
    assert scene.rows("select name from cb_alice.who") == [(ALICE,)]


def test_advisory_locks(scene: Database, alice: Session, witness: Running) -> None:
    define(
        alice,
        "begin perform pg_advisory_lock(7); perform pg_try_advisory_lock_shared(8);"
        " perform cb_alice.note(o); end",
    )
    locks = "select count(*) from pg_locks where locktype = 'advisory'"
    with serving(scene, "call net.run_callbacks()", user=WORKER, registers=False):
        ask(alice, witness.url, "cb_alice.hostile")
        with scene.worker():
            scene.wait_for("select count(*) = 1 from cb_alice.log")
            scene.wait_for("select bool_and(state = 'done') from net.callbacks")
            assert scene.value(locks) == 0
    # A session's own ones stay.
    session = scene.connect(WORKER)
    session.execute("select pg_advisory_lock(1)")
    ask(alice, witness.url)
    session.execute("call net.drain()")
    assert scene.value(locks) == 1


ENDLESS = {
    "a loop": "begin loop end loop; end",
    "a nap": "begin perform pg_sleep(1000); end",
    "a lock": "begin lock table cb_alice.log; end",
    "a query": "begin perform count(*) from generate_series(1, 100000000000); end",
}


@pytest.mark.parametrize("how", ENDLESS)
def test_one_that_does_not_end(
    scene: Database, alice: Session, bob: Session, witness: Running, how: str
) -> None:
    """It is cancelled, and its role alone waits."""
    scene.execute("select net.configure('callback_timeout', '3 s')")
    alice.execute("begin; lock table cb_alice.log in row exclusive mode")
    own = scene.connect(ALICE)
    define(own, ENDLESS[how])
    with scene.worker():
        id = ask(own, witness.url, "cb_alice.hostile")
        scene.wait_for("select state = 'running' from net.callbacks where id = %s", id)
        began = time.monotonic()
        other = ask(bob, witness.url, "cb_bob.note")
        scene.wait_for("select count(*) = 1 from cb_bob.log where id = %s", other)
        assert time.monotonic() - began < 2.5
        scene.wait_for("select state = 'failed' from net.callbacks where id = %s", id)
    assert "cancelled after 3 s" in str(callback_of(scene, id))
    alice.rollback()


CATCHES = """
begin
    loop
        begin
            perform pg_sleep(1000);
        exception when query_canceled then
            null;
        end;
    end loop;
end"""


def test_one_that_catches_its_cancel(
    scene: Database, alice: Session, bob: Session, witness: Running
) -> None:
    """Its session ends, and the worker goes on."""
    scene.execute("select net.configure('callback_timeout', '1 s')")
    define(alice, CATCHES)
    with scene.worker() as worker:
        id = ask(alice, witness.url, "cb_alice.hostile")
        scene.wait_for("select state = 'failed' from net.callbacks where id = %s", id)
        assert "session that ran it was lost" in str(callback_of(scene, id))
        other = ask(bob, witness.url, "cb_bob.note")
        scene.wait_for("select count(*) = 1 from cb_bob.log where id = %s", other)
        assert worker.process.poll() is None
    assert scene.value(
        "select paused_until > now() from pgnet.callback_turn where role = 'cb_alice'::regrole"
    )


def test_many_hang(scene: Database, alice: Session, bob: Session, witness: Running) -> None:
    """A role has one callback running, and pauses for longer each time."""
    scene.execute("select net.configure('callback_timeout', '3 s')")
    define(alice, "begin perform pg_sleep(1000); end")
    with scene.worker():
        for _ in range(50):
            ask(alice, witness.url, "cb_alice.hostile")
        scene.wait_for("select timeouts = 1 from pgnet.callback_turn")
        for _ in range(20):
            began = time.monotonic()
            id = ask(bob, witness.url, "cb_bob.note")
            scene.wait_for("select count(*) = 1 from cb_bob.log where id = %s", id)
            assert time.monotonic() - began < 2.5
            assert scene.value("select count(*) <= 1 from net.callbacks where state = 'running'")
        sessions = scene.value(
            "select count(*) from pg_stat_activity where application_name = 'pgnet callbacks'"
        )
        assert sessions <= 4


def test_one_that_says_it_was_cancelled(
    scene: Database, alice: Session, bob: Session, witness: Running
) -> None:
    """A session that runs callbacks does not take that for a cancel of its own."""
    define(
        alice,
        "begin raise exception 'canceling statement due to user request'"
        " using errcode = 'query_canceled'; end",
    )
    id = ask(alice, witness.url, "cb_alice.hostile")
    other = ask(bob, witness.url, "cb_bob.note")
    drain(scene)
    assert (callback_of(scene, id) or ())[0] == "failed"
    assert (callback_of(scene, other) or ())[0] == "done"


def test_a_cancel_of_the_session_is_one(scene: Database, alice: Session, witness: Running) -> None:
    define(alice, "begin perform cb_alice.note(o); perform pg_sleep(1000); end")
    id = ask(alice, witness.url, "cb_alice.hostile")
    with serving(scene, "call net.drain()", user=WORKER) as session:
        scene.wait_for("select state = 'running' from net.callbacks")
        # It sleeps by now, and not before.
        scene.wait_for(
            "select wait_event = 'PgSleep' from pg_stat_activity where pid = %s", session.pid
        )
        began = time.monotonic()
        session.connection.cancel()
        error = session.ended()
        assert error is not None
        assert error.sqlstate == "57014"
        assert time.monotonic() - began < 1
    assert (callback_of(scene, id) or ())[0] == "failed"
    assert log_of(scene) == []


def test_memory(scene: Database, alice: Session, bob: Session, witness: Running) -> None:
    """A callback that takes too much fails; the server does not run out of it."""
    scene.execute("select net.configure('callback_memory', '67108864')")
    define(
        alice,
        "declare hoard text[]; begin loop hoard := hoard || repeat('x', 10000000); end loop; end",
    )
    id = ask(alice, witness.url, "cb_alice.hostile")
    other = ask(bob, witness.url, "cb_bob.note")
    crashes = scene.cluster.log.read_text().count("terminated by signal")
    with scene.worker():
        scene.wait_for("select state = 'failed' from net.callbacks where id = %s", id)
        scene.wait_for("select count(*) = 1 from cb_bob.log where id = %s", other)
    assert (callback_of(scene, id) or ())[3] == "53200"
    assert scene.cluster.log.read_text().count("terminated by signal") == crashes


def test_what_a_session_keeps_is_its_roles(
    scene: Database, alice: Session, bob: Session, witness: Running
) -> None:
    """A worker process gives each role a session of its own."""
    for session, role in ((alice, ALICE), (bob, BOB)):
        session.execute(f"create table {role}.pids (pid integer)")
        define(
            session, f"begin insert into {role}.pids values (pg_backend_pid()); end", f"{role}.pid"
        )
    scene.execute("select net.configure('callback_runners', '1')")
    with scene.worker():
        for _ in range(3):
            for session, role in ((alice, ALICE), (bob, BOB)):
                ask(session, witness.url, f"{role}.pid")
        scene.wait_for(
            "select count(*) = 6 from (table cb_alice.pids union all table cb_bob.pids) p"
        )
    assert (
        scene.value("select count(*) from cb_alice.pids a join cb_bob.pids b on a.pid = b.pid") == 0
    )


def test_forged_rows(scene: Database, alice: Session, bob: Session, witness: Running) -> None:
    """A role that inserts by hand has its own functions called, as itself, or none at all."""
    alice.execute("create table cb_alice.stolen (who text)")
    alice.execute(
        "grant usage on schema cb_alice to public; grant insert on cb_alice.stolen to public"
    )
    define(alice, "begin insert into cb_alice.stolen values (current_user); end")
    scene.execute(
        "create function public.secret(o net.outcome) returns void language sql as"
        " $$ insert into cb_alice.stolen values ('public.secret') $$;"
        "revoke execute on function public.secret from public"
    )
    number = "(select oid from pg_proc where proname = '{}')"
    mine = [value(alice, "select net.http_get(%s)", witness.url) for _ in range(4)]
    theirs = value(bob, "select net.http_get(%s)", witness.url)
    forged = (
        (mine[0], "'cb_alice.hostile(null); select 1; --'", number.format("hostile")),
        (mine[1], "'public.secret'", number.format("secret")),
        (mine[2], "repeat('x', 10000000)", "0"),
        (mine[3], "'cb_alice.hostile'", "null"),
        (theirs, "'cb_alice.hostile'", number.format("hostile")),
        (4711, "'cb_alice.hostile'", number.format("hostile")),
    )
    for id, name, oid in forged:
        alice.execute(
            f"insert into net._new_flow (request_id, callback, callback_oid)"
            f" values ({id}, {name}, {oid})"
        )
        alice.execute(
            f"insert into net._new_callback (request_id, callback, callback_oid)"
            f" values ({id}, {name}, {oid})"
        )
        alice.execute(
            f"insert into net._new_callback (request_ids, callback, callback_oid)"
            f" values ('{{{id}}}', {name}, {oid})"
        )
    scene.execute("update net.http_request_queue set held = false")
    drain(scene)
    scene.execute("update pgnet.callback_order set look_at = now()")
    drain(scene)
    assert scene.rows("select distinct who from cb_alice.stolen") in ([], [(ALICE,)])
    assert scene.value("select count(*) from net._http_response") == 5
    assert scene.value("select count(*) from pgnet.callback_order") == 0
    assert (
        scene.value("select count(*) from net.callbacks where requested_by = 'cb_bob'::regrole")
        == 0
    )


def test_after_the_role_has_gone(scene: Database, witness: Running) -> None:
    scene.execute("create role cb_brief login; create schema cb_brief authorization cb_brief")
    brief = scene.connect("cb_brief")
    brief.execute("create function cb_brief.note(o net.outcome) returns void language sql as ''")
    id = ask(brief, witness.url, "cb_brief.note")
    brief.close()
    scene.execute("drop owned by cb_brief cascade; drop role cb_brief")
    drain(scene)
    assert "does not exist any more" in str(callback_of(scene, id))


def test_it_says_nothing_to_others(
    scene: Database, alice: Session, bob: Session, witness: Running
) -> None:
    define(alice, "begin raise exception 'hunter2-of-alice'; end")
    ask(alice, witness.url, "cb_alice.hostile")
    drain(scene)
    assert "hunter2" in str(alice.execute("select * from net.callbacks").fetchall())
    for query in ("table net.callbacks", "table pgnet.callback", "table net.responses"):
        assert bob.execute(query).fetchall() == []
    scene.execute("analyze pgnet.callback")
    assert "hunter2" not in str(scene.rows("select * from pg_stats where tablename = 'callback'"))
    assert wait_until(lambda: "hunter2-of-alice" not in scene.cluster.log.read_text())
