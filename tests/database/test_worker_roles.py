"""The roles that run workers: the owner and those of net.grant_worker, whatever EXECUTE says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors

from servers.cluster import Cluster, Database
from servers.nginx import Nginx
from servers.roles import login_roles

ROLES = ("wr_visitor", "wr_victim", "wr_worker", "wr_member", "wr_outsider")


@pytest.fixture(scope="module")
def roles(cluster: Cluster) -> Iterator[None]:
    with login_roles(cluster, ROLES):
        with cluster.connect() as connection:
            connection.execute("grant wr_worker to wr_member")
        yield


@pytest.fixture
def open_database(database: Database, roles: None) -> Database:
    """Everybody may execute everything; one request of the victim's waits."""
    database.execute("grant execute on all routines in schema net, pgnet to public")
    database.execute("grant create on schema public to public")
    database.connect("wr_victim").execute(
        "select net.http_get('http://127.0.0.1:1025/', headers => '{\"A\": \"hunter2\"}')"
    )
    return database


def may_work(connection: psycopg.Connection[Any]) -> bool:
    """Whether a worker's first call is let through."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute("select pgnet.register_worker('process')")
    except errors.InsufficientPrivilege:
        return False
    return True


def test_every_workers_routine_asks(open_database: Database) -> None:
    """No routine does anything for a role that may only execute it, nor waits for a lock."""
    visitor = open_database.connect("wr_visitor")
    calls = {
        "register_worker": "select pgnet.register_worker('process')",
        "claim_requests": "select pgnet.claim_requests(1, 10, 10, 10, '{}', 1000000, '', false)",
        "record_outcomes": "select pgnet.record_outcomes('[]')",
        "report_attempts": "select pgnet.report_attempts(1, '[]')",
        "report_work": "select pgnet.report_work(1, '{}')",
        "release_requests": "select pgnet.release_requests('{1}', array[gen_random_uuid()], 'x')",
        "take_stubs": "select pgnet.take_stubs('{1}', array[gen_random_uuid()])",
        "claimed_secrets": "select pgnet.claimed_secrets('{1}', array[gen_random_uuid()], '{k}')",
        "deregister_worker": "select pgnet.deregister_worker(1, gen_random_uuid())",
        "heartbeat": "select pgnet.heartbeat(1)",
        "wait_for_signals": "call pgnet.wait_for_signals(0)",
        "wake_next_worker": "select pgnet.wake_next_worker(0)",
        "wake_up_fault": "select pgnet.wake_up_fault()",
        "refuse_copy": "select pgnet.refuse_copy()",
        "serve": "call pgnet.serve(null, true, null)",
        "look_for_callbacks": "select pgnet.look_for_callbacks()",
        "take_callback": "select pgnet.take_callback(10)",
        "perform_callback": "select pgnet.perform_callback(gen_random_uuid(), true)",
        "serve_callbacks": "call pgnet.serve_callbacks(null, null)",
        "run_callbacks": "call net.run_callbacks()",
        "work": "call net.work('1 s')",
        "drain": "call net.drain()",
        "require_worker": "select pgnet.require_worker()",
    }
    helpers = {"refuse_transaction_block", "setting_value"}
    routines = open_database.rows(
        "select p.proname::text from pgnet.worker_routines() r (oid) join pg_proc p using (oid)"
    )
    assert {name for (name,) in routines} == set(calls) | helpers
    locking = open_database.connect(autocommit=False)
    locking.execute("lock table net.http_request_queue")
    for call in calls.values():
        with pytest.raises(errors.InsufficientPrivilege, match="may not run workers") as caught:
            visitor.execute(call)
        assert "select net.grant_worker('wr_visitor');" in str(caught.value)
    locking.rollback()
    # The whole way that used to be open.
    assert open_database.value("select count(*) from pgnet.worker") == 0
    assert open_database.value("select count(*) from pgnet.claim") == 0


def test_whose_session_it_is_counts(open_database: Database) -> None:
    open_database.execute("select net.grant_worker('wr_worker')")
    assert may_work(open_database.connect("wr_worker"))
    assert may_work(open_database.connect("wr_member"))
    assert not may_work(open_database.connect("wr_visitor"))
    # SET ROLE gives rights away, until it is reset.
    session = open_database.connect()
    session.execute("set role wr_visitor")
    assert not may_work(session)
    session.execute("reset role")
    assert may_work(session)
    session.execute("set session authorization wr_visitor")
    assert not may_work(session)
    session.execute("set session authorization wr_member")
    session.execute("set role wr_worker")
    assert may_work(session)


def test_a_definer_function_of_a_worker_lends_nothing(open_database: Database) -> None:
    open_database.execute("select net.grant_worker('wr_worker')")
    for owner in ("wr_worker", "postgres"):
        open_database.connect(owner).execute(
            f"create function public.lend_{owner}() returns void language sql security definer"
            " as $$ select pgnet.register_worker('process') $$"
        )
        with pytest.raises(errors.InsufficientPrivilege, match="may not run workers"):
            open_database.connect("wr_visitor").execute(f"select public.lend_{owner}()")


def test_a_claim_is_for_the_session_that_registered(open_database: Database) -> None:
    first, second = open_database.connect(), open_database.connect()
    row = first.execute("select worker_id from pgnet.register_worker('process')").fetchone()
    assert row is not None
    claim = "select id from pgnet.claim_requests(%s, 10, 10, 10, '{}', 1000000, '', false)"
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="session has changed"):
        second.execute(claim, row)
    for unknown in (row[0] + 1, 0):
        with pytest.raises(errors.ConnectionDoesNotExist, match="is not registered"):
            first.execute(claim, (unknown,))
    with pytest.raises(errors.InsufficientPrivilege):
        open_database.connect("wr_visitor").execute(claim, row)
    assert len(first.execute(claim, row).fetchall()) == 1
    first.execute("select pgnet.deregister_worker(w.id, w.secret) from pgnet.worker w")
    with pytest.raises(errors.ConnectionDoesNotExist, match="is not registered"):
        first.execute(claim, row)


def test_what_runs_for_a_role_in_anothers_session(open_database: Database) -> None:
    """ANALYZE runs the functions of an index as its owner, in a superuser's session."""
    visitor = open_database.connect("wr_visitor")
    visitor.execute(
        """
        create table public.loot (what text);
        create table public.bait (n integer);
        create function public.steal() returns text language plpgsql as $$
        declare me record;
        begin
            select * into me from pgnet.register_worker('process');
            insert into public.loot
            select c.headers
            from pgnet.claim_requests(me.worker_id, 10, 10, 10, '{}', 1000000, '', false) c;
            return 'stolen';
        exception when others then
            insert into public.loot values (sqlerrm);
            return 'refused';
        end $$;
        create function public.harmless(n integer) returns text language plpgsql immutable
            as $$ begin return 'x'; end $$;
        create index on public.bait ((public.harmless(n)));
        insert into public.bait select generate_series(1, 10);
        create or replace function public.harmless(n integer) returns text language plpgsql
            immutable as $$ begin return public.steal(); end $$;
        """
    )
    open_database.execute("analyze public.bait")
    loot = [what for (what,) in open_database.rows("select what from public.loot")]
    assert loot
    assert "hunter2" not in str(loot)
    assert open_database.value("select count(*) from pgnet.claim") == 0


def test_what_a_worker_sets_off(open_database: Database, nginx: Nginx) -> None:
    """A foreign key's action runs the triggers of its table in a worker's session.

    A role that is neither owner nor member of it makes none; one that it has been given does harm
    by it to nobody's requests all the same.
    """
    open_database.execute("grant all on all tables in schema net, pgnet to wr_visitor")
    visitor = open_database.connect("wr_visitor")
    visitor.execute(
        """
        create table public.loot (what text);
        create table public.bait (id bigint);
        create function public.steal() returns trigger language plpgsql as $$
        begin
            begin
                insert into public.loot
                select c.headers
                from net.workers w
                cross join lateral
                    pgnet.claim_requests(w.id, 10, 10, 10, '{}', 1000000, '', false) c
                where w.pid = pg_catalog.pg_backend_pid();
                insert into public.loot select pgnet.heartbeat(w.id)
                from net.workers w where w.pid = pg_catalog.pg_backend_pid();
            exception when others then
                insert into public.loot values (sqlerrm);
            end;
            return old;
        end $$;
        create trigger steal before delete on public.bait
            for each row execute function public.steal();
        """
    )
    row = visitor.execute("select net.http_get(%s)", (nginx.url,)).fetchone()
    visitor.execute("insert into public.bait values (%s)", row)
    open_database.execute(
        "alter table public.bait add foreign key (id) references net.http_request_queue (id)"
        " on delete cascade"
    )
    # The victim's request stays behind: nothing is ready but the visitor's own.
    open_database.execute(
        "update net.http_request_queue set due = 'infinity', waits_since = now()"
        " where requested_by = 'wr_victim'::regrole"
    )
    open_database.execute(
        """
        create function public.due() returns trigger language plpgsql as $$ begin
            update net.http_request_queue set due = null, waits_since = null
            where due = 'infinity';
            return null;
        end $$;
        create trigger due before delete on net.http_request_queue
            for each statement execute function public.due();
        """
    )
    open_database.connect().execute("call net.drain('2 s')")
    loot = [what for (what,) in open_database.rows("select what from public.loot")]
    assert loot
    assert "hunter2" not in str(loot)
    assert set(loot) == {"a worker's calls do not come from a trigger"}


# ---- what is remembered


def members(database: Database) -> list[str]:
    return [
        name for (name,) in database.rows("select role::text from pgnet.worker_role order by 1")
    ]


def test_a_deferred_trigger_does_not_wait_for_the_workers_commit(open_database: Database) -> None:
    """The trigger fires within the worker's function, before the session can interfere."""
    open_database.execute(
        """
        select net.grant_worker('wr_worker');
        create table public.audit (role text);
        create function public.note() returns trigger language plpgsql as $$
        begin
            insert into audit values (current_user);
            return null;
        end $$;
        create constraint trigger note after update on net.http_request_queue
            deferrable initially deferred for each row execute function public.note();
        update net.http_request_queue set due = now(), waits_since = now();
        """
    )
    open_database.execute("delete from public.audit")
    worker = open_database.connect("wr_worker", autocommit=False)
    worker.execute(
        "select pgnet.claim_requests(r.worker_id, 1, 1, 1, '{}', 1000, '')"
        " from pgnet.register_worker('process') r"
    )
    worker.execute("create temp table audit (role text)")
    worker.commit()
    assert worker.execute("select count(*) from pg_temp.audit").fetchone() == (0,)
    assert open_database.rows("select role = current_user from public.audit") == [(True,)]


def test_a_renamed_and_a_dropped_role(database: Database) -> None:
    database.execute("create role wr_before login")
    database.execute("select net.grant_worker('wr_before')")
    database.execute("select net.grant_worker('wr_before')")
    database.execute("alter role wr_before rename to wr_after")
    assert members(database) == ["wr_after"]
    assert may_work(database.connect("wr_after"))
    database.connect("wr_after").execute("call net.drain()")
    # A role that holds rights is not dropped; its name is free afterwards, and stands for nothing.
    with pytest.raises(errors.DependentObjectsStillExist):
        database.execute("drop role wr_after")
    database.execute("drop owned by wr_after")
    database.execute("drop role wr_after")
    database.execute("create role wr_after login")
    try:
        database.execute("grant execute on all functions in schema net, pgnet to wr_after")
        assert not may_work(database.connect("wr_after"))
        # The next grant clears the number away that the dropped one has left behind.
        database.execute("select net.grant_worker('wr_after')")
        assert members(database) == ["wr_after"]
        database.execute("select net.revoke_worker('wr_after')")
        assert members(database) == []
    finally:
        database.execute("drop owned by wr_after")
        database.execute("drop role wr_after")


@pytest.mark.parametrize("name", ["public", "no_such_role", ""])
def test_nobody(database: Database, name: str) -> None:
    for call in ("grant_worker", "revoke_worker"):
        with pytest.raises(errors.UndefinedObject, match=f'role "{name}" does not exist'):
            database.execute(f"select net.{call}(%s)", name)
        with pytest.raises(errors.InvalidParameterValue, match="role must not be NULL"):
            database.execute(f"select net.{call}(null)")


def test_a_dump_has_it(cluster: Cluster, database: Database, roles: None) -> None:
    database.execute("select net.grant_worker('wr_worker')")
    dump = cluster.run("pg_dump", database.name)
    copy = cluster.create_database(extension=False)
    try:
        path = cluster.directory / "worker-roles.sql"
        path.write_text(dump)
        cluster.run("psql", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "-f", str(path), copy.name)
        assert members(copy) == ["wr_worker"]
        copy.connect("wr_worker").execute("call net.drain()")
        assert (
            copy.rows("select detail, hint from net.check() where item = 'rights' and not ok") == []
        )
    finally:
        copy.drop()


def test_a_session_that_serves_ends_when_it_may_no_longer(database: Database, roles: None) -> None:
    """A worker process: see tests/database/test_worker_process.py."""
    database.execute("select net.grant_worker('wr_worker')")
    session = database.connect("wr_worker")
    with database.connect() as other:
        other.execute(
            "create function public.take_back() returns trigger language plpgsql as"
            " $$ begin perform net.revoke_worker('wr_worker'); return null; end $$"
        )
        # In the middle of its work, by a trigger of the owner's: by the next call it knows.
        other.execute(
            "create trigger t after insert on pgnet.worker execute function public.take_back()"
        )
    with pytest.raises(errors.InsufficientPrivilege) as caught:
        session.execute("call net.work('20 s')")
    assert 'role "wr_worker" may not run workers' in str(caught.value)


# ---- PUBLIC without any right


WITHOUT_PUBLIC = {
    "by default": (
        (
            "alter default privileges revoke execute on functions from public",
            "alter default privileges revoke usage on types from public",
        ),
        (),
    ),
    "afterwards": (
        (),
        (
            "revoke all on all routines in schema net, pgnet from public",
            "revoke all on all tables in schema net, pgnet from public",
            "revoke all on schema net, pgnet from public",
        ),
    ),
}


@pytest.mark.parametrize("how", WITHOUT_PUBLIC)
def test_a_worker_where_public_has_nothing(
    cluster: Cluster, roles: None, nginx: Nginx, how: str
) -> None:
    """The rights of net.grant_worker suffice: for secrets, hosts and retries, in both kinds."""
    before, after = WITHOUT_PUBLIC[how]
    database = cluster.create_database(extension=False)
    try:
        for statement in before:
            database.execute(statement)
        database.execute("create extension pgnet cascade")
        for statement in after:
            database.execute(statement)
        database.execute("select net.allow_network('loopback'), net.grant_worker('wr_worker')")
        database.execute("select net.set_secret('k', 'a-long-value', %s)", nginx.url)
        database.execute(
            "select net.configure_host('127.0.0.1', '{\"user_agent\": \"of this host\"}')"
        )
        database.execute(
            "select net.configure_retry("
            "'mine', '{\"backoff_milliseconds\": 1, \"max_attempts\": 2}')"
        )

        def ask() -> tuple[int, int]:
            echo = database.value(
                'select net.http_get(%s, headers => \'{"X-K": {"secret": "k"}}\')',
                f"{nginx.url}/echo",
            )
            failing = database.value(
                "select net.http_request('GET', %s, retry => 'mine')", f"{nginx.url}/status/500"
            )
            return echo, failing

        def look(asked: tuple[int, int]) -> None:
            echo, failing = asked
            answer = database.value("select (net.wait(%s)).content", echo)
            assert "User-Agent: of this host" in answer
            assert "X-K: " in answer
            assert database.row("select attempts, status_code from net.wait(%s)", failing) == (
                2,
                500,
            )

        with database.cluster.worker(dbname=database.name, user="wr_worker") as worker:
            look(ask())
            assert "denied" not in worker.output()
        asked = ask()
        session = database.connect("wr_worker")
        session.execute("call net.drain()")
        session.execute("call net.work('100 ms')")
        look(asked)
    finally:
        database.drop()
