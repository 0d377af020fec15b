"""The rights that everyday GRANTs open, and those that stay closed.

Statements for a whole schema, default privileges before CREATE EXTENSION, grants to PUBLIC: after
each of them a visitor tries all that it may execute, read and write.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.types.json import Jsonb

from servers.cluster import Cluster, Database

VISITOR, VICTIM, WORKER = "grants_visitor", "grants_victim", "grants_worker"
# The victim's requests and answers, the secrets and the claims contain it, and nothing else does.
CANARY = "grants-hunter2-grants"

AFTERWARDS = {
    "functions": (
        "grant usage on schema net, pgnet to {role}",
        "grant execute on all functions in schema net, pgnet to {role}",
        "grant execute on all procedures in schema net, pgnet to {role}",
        "grant execute on all routines in schema net, pgnet to {role}",
    ),
    "tables": (
        "grant usage on schema net, pgnet to {role}",
        "grant all on all tables in schema net, pgnet to {role}",
        "grant all on all sequences in schema net, pgnet to {role}",
    ),
    "everything": (
        "grant usage on schema net, pgnet to {role}",
        "grant all on all tables in schema net, pgnet to {role}",
        "grant all on all sequences in schema net, pgnet to {role}",
        "grant all on all routines in schema net, pgnet to {role}",
    ),
    "insert": ("grant insert, select on net.http_request_queue to {role}",),
}
BEFORE = {
    "defaults": (
        "alter default privileges grant all on tables to {role}",
        "alter default privileges grant all on sequences to {role}",
        "alter default privileges grant all on routines to {role}",
        "alter default privileges grant all on types to {role}",
        "alter default privileges grant all on schemas to {role}",
    ),
    "defaults with grant option": (
        "alter default privileges grant all on tables to grants_visitor with grant option",
        "alter default privileges grant all on routines to grants_visitor with grant option",
    ),
}
# The same for everybody, and nothing of anybody's request.
FOR_ALL = {
    "net.settings",
    "net.egress",
    "net.hosts",
    "net.retry_policies",
    "net.workers",
    "net.stats",
}


@pytest.fixture(scope="module")
def roles(cluster: Cluster) -> Iterator[None]:
    names = [sql.Identifier(name) for name in (VISITOR, VICTIM, WORKER)]
    with cluster.connect() as connection:
        for name in names:
            connection.execute(sql.SQL("create role {} login").format(name))
    yield
    with cluster.connect() as connection:
        for name in names:
            connection.execute(sql.SQL("drop role {}").format(name))


def populate(database: Database) -> None:
    """Put a row into every table, with the canary where it is the victim's or the owner's."""
    database.execute("select net.grant_worker(%s)", WORKER)
    database.execute("select net.configure('ttl', '1 hour'), net.deny_host('denied.example')")
    database.execute("select net.set_secret('k', %s, 'http://localhost/')", CANARY)
    database.execute("select net.grant_secret('k', %s)", VICTIM)
    database.execute("select net.configure_host('a.example', '{\"http_version\": \"1.1\"}')")
    database.execute("select net.configure_retry('mine', '{\"max_attempts\": 2}')")
    victim = database.connect(VICTIM)
    victim.execute(
        "select net.http_get('http://localhost/', headers => %s)",
        (f'{{"Authorization": "{CANARY}"}}',),
    )
    for statement in (
        "insert into net._http_response"
        " (id, state, content, attempts, method, url, requested_by, requested)"
        " values (1000, 'failed', %(canary)s, 1, 'GET', 'http://localhost/', %(victim)s, now())",
        "insert into pgnet.failed"
        " (id, state, method, url, requested_by, created, priority, attempts)"
        " values (1000, 'failed', 'GET', %(canary)s, %(victim)s, now(), 0, 1)",
        "insert into pgnet.stub (url_pattern, headers, delay) values (%(canary)s, '[]', '0')",
        "insert into pgnet.stubbed"
        " (request_id, attempt, requested_by, method, url, requested, url_pattern)"
        " values (1000, 1, %(victim)s, 'GET', %(canary)s, now(), '*')",
        "insert into pgnet.attempt"
        " (request_id, attempt, requested_by, ending, started, ended, error_msg)"
        " values (1000, 1, %(victim)s, 'answered', now(), now(), %(canary)s)",
        "insert into pgnet.mark (request_id, requested_by, action)"
        " values (1001, %(victim)s, 'cancel')",
        "insert into pgnet.fault (duty, retry_at, failures, message)"
        " values ('expire', now(), 1, %(canary)s)",
        "insert into pgnet.unrecorded (id, token, outcome)"
        " values (1000, gen_random_uuid(), to_json(%(canary)s::text))",
        "insert into pgnet.flow (request_id, requested_by, ordering_key)"
        " values (1000, %(victim)s, %(canary)s)",
        "insert into pgnet.dependency (after_id, request_id, any_end)"
        " select 1, id, false from net.http_request_queue",
        "insert into pgnet.ended_request (request_id, requested_by, ordering_key)"
        " values (1000, %(victim)s, %(canary)s)",
        "insert into pgnet.blocked_key (requested_by, ordering_key, head, state, since)"
        " values (%(victim)s, %(canary)s, 1000, 'failed', now())",
        "insert into pgnet.callback (request_id, requested_by, callback, state, error_msg)"
        " values (1000, %(victim)s, %(canary)s, 'failed', %(canary)s)",
        "insert into pgnet.callback_turn (role) values (%(victim)s::regrole)",
        "insert into pgnet.callback_order (requested_by, request_id, callback)"
        " values (%(victim)s, 1000, %(canary)s)",
        "insert into pgnet.pause (host) values (%(canary)s)",
        "insert into pgnet.backlog (role, pending) values (%(victim)s::regrole, 1)",
        "insert into pgnet.host_budget (host, revision) values (%(canary)s, 1)",
        "insert into pgnet.host_state (host, role) values (%(canary)s, %(victim)s::regrole)",
        "insert into pgnet.host_event (host, role, event, detail)"
        " values (%(canary)s, %(victim)s::regrole, 'closed', %(canary)s)",
        "insert into pgnet.host_minute values"
        " (now(), %(canary)s, 1, 1, 1, 1, 1, 1, '{1}', '{1}', '{1}', '{1}')",
        "insert into pgnet.endpoint (owner, name, url) values (%(victim)s, 'crm', %(canary)s)",
        "insert into pgnet.webhook (owner, name, on_table, definition)"
        " values (%(victim)s, %(canary)s, 'pg_class', jsonb_build_object('url', %(canary)s::text))",
        "insert into pgnet.webhook_tally (owner, name, sent, failed, unsent, error_msg)"
        " values (%(victim)s, %(canary)s, 0, 1, 0, %(canary)s)",
        "insert into pgnet.webhook_state (owner, name, last_error)"
        " values (%(victim)s, %(canary)s, %(canary)s)",
        "insert into pgnet.worker (kind, pid, backend_start, host)"
        " values ('process', 1, now(), %(canary)s)",
        "insert into pgnet.claim (id, host, worker, token, attempt, deadline, role)"
        " select id, %(canary)s, 1, gen_random_uuid(), 1, 'infinity', requested_by"
        " from net.http_request_queue",
    ):
        database.connection.execute(statement, {"canary": CANARY, "victim": VICTIM})


@pytest.fixture(scope="module", params=[*AFTERWARDS, *BEFORE, "everything to PUBLIC"])
def granted(request: pytest.FixtureRequest, cluster: Cluster, roles: None) -> Iterator[Database]:
    name: str = request.param
    database = cluster.create_database(extension=False)
    role = VISITOR
    if name.endswith(" to PUBLIC"):
        name, role = name.removesuffix(" to PUBLIC"), "public"
    for statement in BEFORE.get(name, ()):
        database.execute(statement.format(role=role))
    database.execute("create extension pgnet cascade")
    for statement in AFTERWARDS.get(name, ()):
        database.execute(statement.format(role=role))
    populate(database)
    database.execute("grant create on schema public to public")
    yield database
    database.drop()


@pytest.fixture
def visitor(granted: Database) -> psycopg.Connection[Any]:
    connection = granted.connect(VISITOR)
    connection.execute("set statement_timeout = '500 ms'")
    return connection


def relations(database: Database, kinds: str) -> list[str]:
    return [
        name
        for (name,) in database.rows(
            "select oid::regclass::text from pg_class"
            " where relnamespace = any ('{net,pgnet}'::regnamespace[])"
            ' and relkind = any (%s::text[]::"char"[]) order by 1',
            list(kinds),
        )
    ]


def contents(database: Database) -> dict[str, Any]:
    """The contents of every table, but for what a role may say of requests of its own."""
    own = f"where requested_by <> '{VISITOR}'::regrole"
    return {
        name: database.value(
            f"select md5(coalesce(string_agg(t::text, '|' order by t::text), '')) from {name} t"
            f" {own if name == 'pgnet.flow' else ''}"
        )
        for name in relations(database, "r")
    }


def attempt(connection: psycopg.Connection[Any], statement: str, *arguments: Any) -> Any:
    """Give the rows, the number of rows, or the error that a statement raises."""
    try:
        cursor = connection.execute(statement, arguments or None)
    except psycopg.Error as error:
        return error
    return cursor.fetchall() if cursor.description else cursor.rowcount


def test_every_table_has_a_row(granted: Database) -> None:
    """Or else the tests below would show nothing."""
    for name in relations(granted, "r"):
        assert granted.value(f"select count(*) from {name}") > 0, name


def test_reading(granted: Database, visitor: psycopg.Connection[Any]) -> None:
    for name in relations(granted, "rv"):
        seen = attempt(visitor, f"select * from {name}")
        assert CANARY not in str(seen), name
        if name in FOR_ALL:
            assert seen, name
        else:
            assert isinstance(seen, errors.InsufficientPrivilege) or seen == [], name


def test_writing(granted: Database, visitor: psycopg.Connection[Any]) -> None:
    before = contents(granted)
    for name in relations(granted, "rv"):
        columns = [
            column
            for (column,) in granted.rows(
                "select attname::text from pg_attribute where attrelid = %s::regclass"
                " and attnum > 0 and not attisdropped",
                name,
            )
        ]
        row = granted.value(f"select to_jsonb(t) from {name} t limit 1") or {}
        row |= {"id": 77, "request_id": 77, "pid": 77, "name": "n", "pattern": "p", "secret": "k"}
        statements = [f"delete from {name}", f"truncate {name} cascade"]
        statements += [f'update {name} set "{column}" = "{column}"' for column in columns]
        statements += [
            f"insert into {name} overriding system value"
            f" select * from jsonb_populate_record(null::{name}, %s)",
            f"merge into {name} t using (values (1)) v on true when matched then delete",
        ]
        for statement in statements:
            arguments = [Jsonb(row)] if "%s" in statement else []
            done = attempt(visitor, statement, *arguments)
            if statement.startswith("insert into net._new_flow "):
                # A row of the visitor's own, of which nobody takes notice without its request.
                assert done == 1
                continue
            assert isinstance(done, psycopg.Error) or done in (0, []), (statement, done)
            assert CANARY not in str(done), statement
    assert contents(granted) == before


SAMPLES = {
    "bigint": ["1", "1000", "null"],
    "integer": ["1"],
    "smallint": ["1"],
    "boolean": ["true", "false"],
    "text": ["'k'", "'ttl'", "'failed'", f"'{VISITOR}'"],
    "name": ["'http_request_queue'"],
    "character varying": ["'k'"],
    "jsonb": ['\'{"ttl": "1 s"}\'', "null"],
    "json": ["'[{\"id\": 1000}]'", "'[]'"],
    "uuid": ["gen_random_uuid()", "null"],
    "interval": ["'1 s'"],
    "timestamp with time zone": ["now()"],
    "double precision": ["0"],
    "numeric": ["1"],
    "bigint[]": ["'{1,1000}'"],
    "text[]": ["'{k}'", "'{}'"],
    "uuid[]": ["array[gen_random_uuid()]"],
    "bytea": ["'a'"],
    "bytea[]": ["'{}'"],
    "xid": ["'1'"],
}


def test_calling(granted: Database, visitor: psycopg.Connection[Any]) -> None:
    """Each routine with each combination of a few arguments; nothing is told, nothing changes."""
    before = contents(granted)
    for name, kind, types in granted.rows(
        "select p.oid::regproc::text, p.prokind::text,"
        " array(select format_type(t, null) from unnest(p.proargtypes) with ordinality a (t, n)"
        "       order by n)"
        " from pg_proc p where p.pronamespace = any ('{net,pgnet}'::regnamespace[])"
        " and p.prorettype not in ('trigger'::regtype, 'event_trigger'::regtype) order by 1"
    ):
        values = [SAMPLES.get(type_, ["null"]) for type_ in types]
        for chosen in itertools.islice(itertools.product(*values), 24):
            arguments = ", ".join(
                f"{value}::{type_}" for value, type_ in zip(chosen, types, strict=True)
            )
            call = "call" if kind == "p" else "select * from"
            done = attempt(visitor, f"{call} {name}({arguments})")
            assert CANARY not in str(done), (name, chosen)
    # The requests that it has queued are its own.
    granted.execute("delete from net.http_request_queue where requested_by = %s::regrole", VISITOR)
    assert contents(granted) == before


FORGED = (
    ("requested_by", "'grants_victim'"),
    ("requested_by", "'postgres'"),
    ("id", "1000000"),
    ("id", "9223372036854775807"),
    ("created", "now() + interval '1 second'"),
    ("due", "'infinity'"),
    ("due", "now()"),
    ("waits_since", "now()"),
    ("origin", "'a'"),
    ("retry_of", "1"),
)


@pytest.mark.parametrize(("column", "forged"), FORGED)
def test_forging(
    granted: Database, visitor: psycopg.Connection[Any], column: str, forged: str
) -> None:
    """Only the columns for callers count in a request's row, whichever role may INSERT."""
    with pytest.raises(errors.InsufficientPrivilege):
        visitor.execute(
            f"insert into net.http_request_queue (method, url, {column})"
            f" overriding system value values ('GET', 'http://localhost/', {forged})"
        )
    with pytest.raises((errors.UndefinedColumn, errors.FeatureNotSupported)):
        visitor.execute(
            f"insert into net._new_request (method, url, {column})"
            f" overriding system value values ('GET', 'http://localhost/', {forged})"
        )


def test_inserting_by_hand(granted: Database, visitor: psycopg.Connection[Any]) -> None:
    """Several rows at once, and a call between them: each number was drawn for its row."""
    made = visitor.execute(
        "insert into net.http_request_queue (method, url)"
        " select 'GET', 'http://localhost/' || n from generate_series(1, 100) n order by -n"
        " returning id"
    ).fetchall()
    assert len(set(made)) == 100
    found = granted.rows(
        "delete from net.http_request_queue where requested_by = %s::regrole returning id", VISITOR
    )
    assert sorted(found) == sorted(made)


def test_triggers_and_rules(granted: Database, visitor: psycopg.Connection[Any]) -> None:
    """Triggers would run as the role that sends a request, and as the owner."""
    visitor.execute(
        "create or replace function public.grants_f() returns trigger language plpgsql"
        " as $$ begin return null; end $$"
    )
    for name in relations(granted, "rv"):
        for kind in ("before insert", "instead of insert", "after insert"):
            for each in ("row", "statement"):
                made = attempt(
                    visitor,
                    f"create trigger t {kind} on {name} for each {each}"
                    " execute function public.grants_f()",
                )
                assert isinstance(made, psycopg.Error), (name, kind, each)
        for statement in (
            f"create rule r as on insert to {name} do also notify x",
            f"create policy p on {name} using (true)",
            f"alter table {name} disable row level security",
            f"create index on {name} ((1))",
            f"comment on table {name} is 'x'",
        ):
            assert isinstance(attempt(visitor, statement), psycopg.Error), statement
    # On a table of its own it may.
    visitor.execute("create table public.grants_own (id bigint primary key)")
    visitor.execute("alter table public.grants_own add foreign key (id) references grants_own")
    visitor.execute(
        "create trigger t after insert on public.grants_own execute function public.grants_f()"
    )
    visitor.execute("drop table public.grants_own")
    visitor.execute("drop function public.grants_f")


def test_foreign_keys(granted: Database, visitor: psycopg.Connection[Any]) -> None:
    """A foreign key's action would run triggers of the visitor's table in a worker's session."""
    keys = {
        "net.http_request_queue": "id", "net._http_response": "id", "pgnet.failed": "id",
        "pgnet.claim": "id", "pgnet.worker": "id", "pgnet.secret": "name",
        "pgnet.host": "pattern", "pgnet.setting": "name",
    }  # fmt: skip
    visitor.execute("create table public.grants_own (key text, number bigint)")
    for name, key in keys.items():
        own = "number" if key == "id" else "key"
        for statement in (
            f"create table public.grants_key ({own} {'bigint' if key == 'id' else 'text'}"
            f" references {name} ({key}) on delete cascade)",
            f"alter table public.grants_own add foreign key ({own}) references {name} ({key})",
            f"create temp table grants_key ({own} {'bigint' if key == 'id' else 'text'}"
            f" references {name} ({key}))",
        ):
            assert isinstance(attempt(visitor, statement), psycopg.Error), statement
    assert (
        granted.rows(
            "select conrelid::regclass from pg_constraint where contype = 'f' and conrelid <> all"
            " (array(select oid from pg_class"
            "   where relnamespace = any ('{net,pgnet}'::regnamespace[])))"
        )
        == []
    )
    visitor.execute("drop table public.grants_own")


def test_a_trigger_function_on_a_table_of_ones_own(
    granted: Database, visitor: psycopg.Connection[Any]
) -> None:
    """Some act with the owner's rights: they look whose table it is."""
    before = contents(granted)
    visitor.execute("create table public.database (id bigint, publisher_key_namespace uuid)")
    for (name,) in granted.rows(
        "select oid::regproc::text from pg_proc"
        " where pronamespace = any ('{net,pgnet}'::regnamespace[])"
        " and prorettype = 'trigger'::regtype and prosecdef"
    ):
        made = attempt(
            visitor,
            "create or replace trigger t before insert on public.database for each row"
            f" execute function {name}()",
        )
        if not isinstance(made, psycopg.Error):
            with pytest.raises(errors.InsufficientPrivilege):
                visitor.execute("insert into public.database values (1000, gen_random_uuid())")
    visitor.execute("drop table public.database")
    assert contents(granted) == before


def test_using_a_secret(granted: Database, visitor: psycopg.Connection[Any]) -> None:
    """A right on the table of secrets is not a right on a secret."""
    with pytest.raises(errors.InsufficientPrivilege, match='secret "k"'):
        visitor.execute(
            'select net.http_get(\'http://localhost/\', headers => \'{"A": {"secret": "k"}}\')'
        )


def test_a_signal_that_there_is_not(granted: Database) -> None:
    """An unknown signal is refused at the call, since nothing may be raised at a commit."""
    with pytest.raises(errors.ExternalRoutineException, match="is not known"):
        granted.execute("select pgnet.arm_wake_up('boom')")
    granted.execute("select pgnet.arm_wake_up('reload')")


# ---- ALTER DEFAULT PRIVILEGES, and PUBLIC without any


def rights(database: Database) -> list[tuple[Any, ...]]:
    """Every right on every object, as (object, grantee, privilege)."""
    return database.rows(
        """
        select o.name, a.grantee::regrole::text, a.privilege_type, a.is_grantable
        from (
            select nspname::text, nspacl, nspowner
            from pg_namespace where nspname in ('net', 'pgnet')
            union all
            select oid::regclass::text, coalesce(relacl, acldefault('r', relowner)), relowner
            from pg_class
            where relnamespace = any ('{net,pgnet}'::regnamespace[]) and relkind <> 'S'
            union all
            select oid::regclass::text, coalesce(relacl, acldefault('s', relowner)), relowner
            from pg_class where relnamespace = any ('{net,pgnet}'::regnamespace[]) and relkind = 'S'
            union all
            select attrelid::regclass || '.' || attname, attacl, relowner
            from pg_attribute a join pg_class c on c.oid = a.attrelid
            where relnamespace = any ('{net,pgnet}'::regnamespace[])
            union all
            select oid::regprocedure::text, coalesce(proacl, acldefault('f', proowner)), proowner
            from pg_proc where pronamespace = any ('{net,pgnet}'::regnamespace[])
            union all
            select oid::regtype::text, coalesce(typacl, acldefault('T', typowner)), typowner
            from pg_type where typnamespace = any ('{net,pgnet}'::regnamespace[]) and typelem = 0
        ) o (name, acl, owner)
        cross join lateral aclexplode(o.acl) a
        where a.grantee <> o.owner
        order by 1, 2, 3
        """
    )


@pytest.fixture(scope="module")
def plain_rights(cluster: Cluster, roles: None) -> Iterator[list[tuple[Any, ...]]]:
    database = cluster.create_database()
    yield rights(database)
    database.drop()


DEFAULTS = {
    **BEFORE,
    "none for PUBLIC": (
        "alter default privileges revoke execute on functions from public",
        "alter default privileges revoke usage on types from public",
    ),
    "all for PUBLIC": (
        "alter default privileges grant all on tables to public",
        "alter default privileges grant all on sequences to public",
        "alter default privileges grant all on schemas to public",
    ),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_default_privileges_change_nothing(
    cluster: Cluster, plain_rights: list[tuple[Any, ...]], name: str
) -> None:
    database = cluster.create_database(extension=False)
    try:
        for statement in DEFAULTS[name]:
            database.execute(statement.format(role=VISITOR))
        database.execute("create extension pgnet cascade")
        assert rights(database) == plain_rights
    finally:
        database.drop()


# ---- the doctor


def doctor(database: Database) -> tuple[bool, str, str | None]:
    row = database.row("select ok, detail, hint from net.check() where item = 'rights'")
    assert row is not None
    return row


MORE = {
    **AFTERWARDS,
    "schema": ("grant all on schema net, pgnet to {role}",),
    "columns": ("grant select (value), update (value) on pgnet.secret to {role}",),
    "delete": ("grant delete on net._http_response to {role}",),
}


@pytest.mark.parametrize("role", [VISITOR, "public"])
@pytest.mark.parametrize("name", MORE)
def test_the_doctor_takes_back_what_was_granted(
    cluster: Cluster, plain_rights: list[tuple[Any, ...]], name: str, role: str
) -> None:
    """The doctor's hint takes them back; REVOKE on a table also takes rights on columns."""
    database = cluster.create_database()
    try:
        assert doctor(database) == (True, "every role may send requests", None)
        for statement in MORE[name]:
            database.execute(statement.format(role=role))
        ok, detail, hint = doctor(database)
        assert not ok
        assert f"{role} has " in detail
        assert hint is not None
        database.execute(hint)
        if "missing" in doctor(database)[1]:
            database.execute(doctor(database)[2] or "")
        assert doctor(database) == (True, "every role may send requests", None)
        of_public = [row for row in rights(database) if row[1] == "-"]
        assert of_public == plain_rights
        # A role keeps only what PUBLIC has.
        left = {(row[0], row[2]) for row in rights(database) if row[1] != "-"}
        assert left <= {(row[0], row[2]) for row in plain_rights}
    finally:
        database.drop()


def test_the_doctor_knows_what_is_well(cluster: Cluster, roles: None) -> None:
    """The statements that the documentation gives to administrators are not faults."""
    database = cluster.create_database()
    try:
        database.execute("select net.grant_worker(%s)", WORKER)
        database.execute("grant usage on schema net, pgnet to grants_victim")
        database.execute("grant execute on function net.http_get to grants_victim")
        assert doctor(database)[0]
        database.execute("revoke usage on schema net, pgnet from public")
        assert doctor(database) == (
            True,
            "only roles with usage on the schema net may send requests",
            None,
        )
        database.execute("revoke execute on function net.http_post from public")
        assert doctor(database)[0]
    finally:
        database.drop()


def test_the_doctor_names_what_is_missing(cluster: Cluster, roles: None) -> None:
    database = cluster.create_database()
    try:
        database.execute("select net.grant_worker(%s)", WORKER)
        database.execute(
            "revoke execute on function pgnet.check_request, pgnet.claim_requests from public"
        )
        database.execute("revoke execute on function pgnet.claim_requests from grants_worker")
        database.execute("revoke insert (url) on net._new_request from public")
        ok, detail, hint = doctor(database)
        assert not ok
        assert "public has not EXECUTE on pgnet.check_request(" in detail
        assert "public has not INSERT on (url) on net._new_request" in detail
        assert "the worker role grants_worker may not execute pgnet.claim_requests(" in detail
        assert hint is not None
        database.execute(hint)
        assert doctor(database)[0]
        # One role may call, and PUBLIC nothing at all: it needs what the calls need.
        database.execute("revoke all on all routines in schema net, pgnet from public")
        database.execute("revoke all on all tables in schema net, pgnet from public")
        database.execute("grant execute on function net.http_get to grants_victim")
        ok, detail, hint = doctor(database)
        assert not ok
        assert "grants_victim has not EXECUTE on" in detail
        assert hint is not None
        database.execute(hint)
        assert doctor(database)[0]
        database.connect(VICTIM).execute("select net.http_get('http://localhost/')")
    finally:
        database.drop()
