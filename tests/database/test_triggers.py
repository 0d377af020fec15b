"""The owner's own triggers on pgnet's tables: what they find, in whose session they fire."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors

from servers.cluster import Cluster, Database
from servers.nginx import Nginx
from servers.roles import login_roles
from servers.waiting import wait_until

ROLES = ("triggers_worker", "triggers_alice")
TABLES = ("net.http_request_queue", "net._http_response", "pgnet.failed", "pgnet.attempt")

# An everyday audit trigger: it names a table, a function and an operator without their schemas.
AUDIT = """
    create table {schema}.audit (tg text, path text);
    create function {schema}.remark() returns text language sql
        as $$ select current_setting('search_path') $$;
    create function {schema}.audit() returns trigger language plpgsql as $$
    begin
        insert into audit values (
            tg_table_name || ' ' || tg_op || ' ' || tg_when || ' ' || tg_level, remark());
        return case tg_op when 'DELETE' then old else new end;
    end $$;
"""


@pytest.fixture(scope="module")
def roles(cluster: Cluster) -> Iterator[None]:
    with login_roles(cluster, ROLES):
        yield


@pytest.fixture
def audited(database: Database, roles: None) -> Database:
    database.execute("select net.grant_worker('triggers_worker')")
    return database


def audit(database: Database, schema: str = "public") -> None:
    database.execute(AUDIT.format(schema=schema))
    for table in TABLES:
        for when in ("before", "after"):
            for level in ("row", "statement"):
                database.execute(
                    f"create trigger {when}_{level} {when} insert or update or delete"
                    f" on {table} for each {level} execute function {schema}.audit()"
                )


def everything_happens(database: Database, nginx: Nginx) -> None:
    """Requests that succeed, fail, are tried again, cancelled, forgotten, and past their time."""
    alice = database.connect("triggers_alice")
    database.execute("select net.configure_retry('soon', %s)", '{"backoff_milliseconds": 10}')
    for statement in (
        f"select net.http_get('{nginx.url}')",
        f"select net.http_request('GET', '{nginx.url}/status/503', retry => 'soon',"
        " max_attempts => 2)",
        "select net.cancel(net.http_get('http://localhost/'))",
        "select net.forget(net.http_get('http://localhost/'))",
    ):
        alice.execute(statement)


EXPECTED = {
    f"{table} {operation}"
    for table, operations in {
        "http_request_queue": ("INSERT", "UPDATE", "DELETE"),
        "_http_response": ("INSERT", "DELETE"),
        "failed": ("INSERT", "DELETE"),
        "attempt": ("INSERT", "DELETE"),
    }.items()
    for operation in operations
}


@pytest.mark.parametrize("kind", ["process", "backend"])
@pytest.mark.parametrize("where", ["public", "of the database", "of the role"])
def test_an_audit_trigger_finds_what_its_owner_finds(
    audited: Database, nginx: Nginx, kind: str, where: str
) -> None:
    """That holds for any search_path of the worker's session, and for any role that runs it."""
    schema = "public"
    if where != "public":
        schema = "own"
        audited.execute("create schema own")
        audited.execute(
            f"alter database {audited.name} set search_path = own, public"
            if where == "of the database"
            else f"alter role postgres in database {audited.name} set search_path = own"
        )
    everything_happens(audited, nginx)
    audit(audited, schema)
    audited.execute("create schema elsewhere; create table elsewhere.audit (tg int)")
    audited.execute("grant usage on schema elsewhere to triggers_worker")
    audited.execute("alter role triggers_worker set search_path = elsewhere")

    def drain() -> bool:
        audited.connect("triggers_worker").execute("call net.drain()")
        return ended(audited)

    try:
        if kind == "process":
            with audited.cluster.worker(dbname=audited.name, user="triggers_worker"):
                wait_until(lambda: ended(audited), description="all ends")
        else:
            wait_until(drain, description="all ends")
        assert audited.rows(
            "select state::text, error_msg from net._http_response order by id"
        ) == [
            ("succeeded", None),
            ("failed", None),
            ("cancelled", "The request was cancelled before it was sent."),
        ]
        audited.execute("select net.configure('ttl', '0'), net.configure('ttl_failed', '0')")
        drain()
        found = audited.rows(f"select tg, path from {schema}.audit")
    finally:
        audited.execute("alter role triggers_worker reset search_path")
    assert {tg.rsplit(" ", 2)[0] for tg, _path in found} >= EXPECTED - {"http_request_queue INSERT"}
    assert {tg.split(" ", 2)[2] for tg, _path in found} == {
        f"{when} {level}" for when in ("BEFORE", "AFTER") for level in ("ROW", "STATEMENT")
    }
    assert {path for _tg, path in found} == {
        {
            "public": '"$user", public, pg_temp',
            "of the database": "own, public, pg_temp",
            "of the role": "own, pg_temp",
        }[where]
    }
    assert audited.value("select count(*) from elsewhere.audit") == 0


def test_a_workers_role_takes_no_owners_place(audited: Database, nginx: Nginx) -> None:
    """A trigger on the role's temporary table would run as the owner, a superuser."""
    everything_happens(audited, nginx)
    audit(audited)
    worker = audited.connect("triggers_worker")
    worker.execute(
        """
        create temp table audit (tg text, path text);
        create function pg_temp.rise() returns trigger language plpgsql as $$
        begin execute 'alter role triggers_worker superuser'; return new; end $$;
        create trigger rise before insert on audit for each row execute function pg_temp.rise();
        """
    )
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="temporary tables") as caught:
        worker.execute("call net.drain()")
    assert "discard temp" in (caught.value.diag.message_hint or "")
    for call in (
        "pgnet.register_worker('process')",
        "pgnet.claim_requests(1, 1, 1, 1, '{}', 1, '')",
        "pgnet.record_outcomes('[]')",
        "pgnet.heartbeat(1)",
        "pgnet.report_attempts(1, '[]')",
        "pgnet.deregister_worker(1, gen_random_uuid())",
        "pgnet.release_requests('{}', '{}', null)",
    ):  # fmt: skip
        with pytest.raises(errors.ObjectNotInPrerequisiteState, match="temporary tables"):
            worker.execute(f"select {call}")
    assert superusers(audited) == []
    # A type is enough: a variable in a trigger function may be of it.
    worker.execute("discard temp; create domain pg_temp.text as pg_catalog.text")
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="temporary tables"):
        worker.execute("call net.drain()")
    worker.execute("discard temp")
    wait_until(
        lambda: worker.execute("call net.drain()") and ended(audited), description="all ends"
    )
    assert audited.value("select count(*) from public.audit") > 0


def test_the_owners_own_session_may_have_temporary_tables(audited: Database, nginx: Nginx) -> None:
    everything_happens(audited, nginx)
    audited.execute("create temp table scratch ()")
    audited.execute("call net.drain()")
    assert audited.value("select count(*) from net._http_response where state = 'succeeded'") == 1


@pytest.mark.parametrize("action", ["cancel", "forget", "retry"])
def test_nothing_fires_with_the_owners_rights_in_a_callers_session(
    audited: Database, action: str
) -> None:
    """That holds for all triggers on the tables, and for all that a caller puts in the way."""
    alice = audited.connect("triggers_alice")
    number = value(alice, "select net.http_get('http://localhost/')")
    if action == "retry":
        audited.execute("call net.drain()")
    audit(audited)
    audited.execute(
        "create function public.who() returns trigger language plpgsql as $$"
        " begin raise notice 'fired as %', current_user; return new; end $$;"
        "create trigger who before insert or update or delete on pgnet.mark"
        " for each row execute function public.who();"
        "create trigger who before insert or update or delete on net.http_request_queue"
        " for each row execute function public.who();"
        "drop trigger before_row on net.http_request_queue;"
        "drop trigger after_row on net.http_request_queue;"
        "drop trigger before_statement on net.http_request_queue;"
        "drop trigger after_statement on net.http_request_queue;"
    )
    notices: list[str] = []
    alice.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    alice.execute(
        """
        create temp table audit (tg text, path text);
        create function pg_temp.rise() returns trigger language plpgsql as $$
        begin raise notice 'rises as %', current_user; return new; end $$;
        create trigger rise before insert on audit for each row execute function pg_temp.rise();
        """
    )
    assert value(alice, f"select net.{action}(%s)", number)
    assert set(notices) == {"fired as triggers_alice"}


def test_the_doctor_names_functions_without_a_fixed_path(audited: Database) -> None:
    """Those of triggers, rules, policies, defaults and constraints; the hint cures all."""

    def doctor() -> tuple[bool, str, str | None]:
        row = audited.row("select ok, detail, hint from net.check() where item = 'triggers'")
        assert row is not None
        return row

    assert doctor()[0] is True
    audited.execute(
        """
        create table public.audit (tg text, path text);
        create function public.audit() returns trigger language plpgsql
            as $$ begin return null; end $$;
        create function public.half() returns trigger language plpgsql set search_path = public
            as $$ begin return null; end $$;
        create function public.whole() returns trigger language plpgsql
            set search_path = public, pg_temp as $$ begin return null; end $$;
        create function public.open(bigint) returns boolean language sql as $$ select true $$;
        create function public.atomic(bigint) returns boolean language sql return true;
        create function public.equal(regrole, text) returns boolean language sql
            as $$ select true $$;
        create operator public.=== (function = public.equal, leftarg = regrole, rightarg = text);
        create trigger audit after insert on net._http_response
            for each row execute function public.audit();
        create trigger half after insert on pgnet.attempt
            for each row execute function public.half();
        create trigger whole after insert on pgnet.failed
            for each row execute function public.whole();
        create trigger built_in before update on pgnet.failed
            for each row execute function suppress_redundant_updates_trigger();
        create rule follow as on delete to pgnet.failed
            do also insert into public.audit select 'rule' where public.open(old.id);
        create policy mine on pgnet.worker using (public.open(id));
        create policy atomic on pgnet.worker using (public.atomic(id));
        create policy operator on pgnet.mark using (requested_by === 'x');
        alter table pgnet.attempt add constraint checked check (public.open(request_id));
        alter table net._http_response alter content_type set default public.open(1)::text;
        """
    )
    ok, detail, hint = doctor()
    assert ok is False
    assert hint is not None
    for place in (
        "trigger audit on net._http_response (public.audit())",
        "trigger half on pgnet.attempt (public.half())",
        "rule follow on pgnet.failed (public.open(bigint))",
        "policy mine on pgnet.worker (public.open(bigint))",
        "policy operator on pgnet.mark (public.equal(regrole,text))",
        "constraint checked on pgnet.attempt (public.open(bigint))",
        "default of net._http_response.content_type (public.open(bigint))",
    ):  # fmt: skip
        assert place in detail
    for name in ("whole", "atomic", "built_in", "replicated"):
        assert name not in detail
    assert "alter function public.half() set search_path = public, pg_temp;" in hint
    audited.execute(hint)
    assert doctor()[0] is True


def value(connection: psycopg.Connection[Any], query: str, *arguments: Any) -> Any:
    row = connection.execute(query, arguments or None).fetchone()
    return None if row is None else row[0]


def ended(database: Database) -> bool:
    return bool(database.value("select count(*) from net._http_response") == 3)


def superusers(database: Database) -> list[tuple[str]]:
    return database.rows("select rolname from pg_roles where rolname = any (%s) and rolsuper",
                         list(ROLES))  # fmt: skip
