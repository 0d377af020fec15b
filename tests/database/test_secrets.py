"""Secrets through SQL, the command and a worker: who may use one, and that it is nowhere else."""

from __future__ import annotations

import base64
import contextlib
import html
import http.server
import json
import os
import pty
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, unquote

import psycopg
import pytest
import trustme
from psycopg import errors
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from servers.canary import CANARY, found_in, leaks, logs, look
from servers.cluster import (
    CLEAN_ENVIRONMENT,
    Cluster,
    Database,
    Worker,
    free_port,
    pg_config,
    server_python,
)

API = "https://api.example/v1/"


# ==== by SQL ======================================================================================


@pytest.fixture(scope="module")
def rules(cluster: Cluster) -> Iterator[Database]:
    """A database that no worker serves, and roles: app, its members, another one."""
    database = cluster.create_database()
    for role in ("secrets_app login", "secrets_other login", "secrets_reader login"):
        database.execute(f"create role {role}")
    database.execute("create role secrets_member login in role secrets_app")
    database.execute("create role secrets_stranger login noinherit in role secrets_app")
    database.execute("grant select on pgnet.secret to secrets_reader")
    yield database
    database.drop()
    with cluster.connect() as connection:
        for role in ("app", "other", "reader", "member", "stranger"):
            connection.execute(f"drop role secrets_{role}")


@pytest.fixture
def secrets(rules: Database) -> Iterator[Database]:
    """The same with two secrets of a test's own."""
    put(rules, "stripe", f"sk_{CANARY}", API)
    put(rules, "hook", f"https://hooks.example/services/{CANARY}", "https://hooks.example/services")
    yield rules
    rules.execute("delete from pgnet.secret")
    rules.execute("delete from net.http_request_queue")


def put(database: Database, name: str | None, value: str | None, prefix: str | None = None) -> None:
    database.execute("select net.set_secret(%s, %s, %s)", name, value, prefix)


def known(database: Database) -> list[tuple[Any, ...]]:
    return database.rows("select name, url_prefix, held_by from net.secrets order by name")


def seen(database: Database, role: str) -> list[str]:
    with psycopg.connect(database.dsn(role)) as connection:
        rows = connection.execute("select name from net.secrets order by name").fetchall()
    return [name for (name,) in rows]


def refusal(caught: pytest.ExceptionInfo[psycopg.Error]) -> str:
    """What an error says, which holds no secret."""
    said = caught.value.diag
    parts = (said.message_primary, said.message_detail, said.message_hint, said.context)
    text = "\n".join(part for part in parts if part)
    assert not found_in(text)
    assert not found_in(str(caught.value))
    return said.message_primary or ""


def test_setting(secrets: Database) -> None:
    put(secrets, "held", None, "https://H.example:443")
    put(secrets, "key", f"-----BEGIN\n{CANARY}\n")
    assert known(secrets) == [
        ("held", "https://h.example/", "worker"),
        ("hook", "https://hooks.example/services", "database"),
        ("key", None, "database"),
        ("stripe", API, "database"),
    ]


def test_rotation(secrets: Database) -> None:
    """A new value keeps prefix and grants; a new prefix comes with a value."""
    secrets.execute("select net.grant_secret('stripe', 'secrets_app')")
    created = secrets.value("select created from net.secrets where name = 'stripe'")
    put(secrets, "stripe", f"another {CANARY}")
    assert secrets.row("select name, url_prefix from net.secrets where name = 'stripe'") == (
        "stripe",
        API,
    )
    assert (
        secrets.value("select value from pgnet.secret where name = 'stripe'") == f"another {CANARY}"
    )
    assert secrets.value(
        "select changed > created and created = %s from net.secrets where name = 'stripe'", created
    )
    assert seen(secrets, "secrets_app") == ["stripe"]
    # a value that the prefix it keeps does not allow
    with pytest.raises(errors.InvalidParameterValue) as caught:
        put(secrets, "stripe", f"https://elsewhere.example/{CANARY}")
    assert "not within its URL prefix" in refusal(caught)
    put(secrets, "stripe", None, "https://other.example/")
    assert ("stripe", "https://other.example/", "worker") in known(secrets)


def test_dropping(secrets: Database) -> None:
    secrets.execute("select net.grant_secret('stripe', 'secrets_app')")
    assert secrets.value("select net.drop_secret('stripe')") is True
    assert secrets.value("select net.drop_secret('stripe')") is False
    assert secrets.value("select net.drop_secret(null)") is False
    # the grants went with it
    put(secrets, "stripe", f"sk_{CANARY}", API)
    assert seen(secrets, "secrets_app") == []
    assert secrets.value("select count(*) from pgnet.secret_grant") == 0


def test_each_change_is_one_of_the_configuration(secrets: Database) -> None:
    """Host settings may refer to secrets: workers read them again."""
    revisions = [secrets.value("select revision from pgnet.configuration")]
    for statement in (
        "select net.set_secret('stripe', 'a value of it')",
        "select net.drop_secret('stripe')",
    ):
        secrets.execute(statement)
        revisions.append(secrets.value("select revision from pgnet.configuration"))
    assert revisions == sorted(set(revisions))


@pytest.mark.parametrize(
    ("name", "value", "prefix", "message"),
    [
        (None, CANARY, API, "the name of a secret must not be NULL"),
        ("", CANARY, API, "this is no name of a secret"),
        (f"{CANARY} ", "stripe12", API, "this is no name of a secret"),
        ("../etc/passwd", CANARY, API, "this is no name of a secret"),
        ("x" * 64, CANARY, API, "this is no name of a secret"),
        ("s", "", API, 'the value of secret "s" is empty'),
        ("s", "", None, 'the value of secret "s" is empty'),
        ("s", CANARY[:7], API, 'the value of secret "s" has fewer than 8 characters'),
        ("s", f"{CANARY}\n", API, 'the value of secret "s" has a line break'),
        ("s", f"{CANARY}\r\nX: 1", API, 'the value of secret "s" has a line break'),
        ("s", f"{CANARY}\x07", API, 'the value of secret "s" has a control character, which no '
         "header can hold"),
        ("s", f" {CANARY}", API, 'the value of secret "s" begins or ends with white space'),
        ("s", CANARY * 4000, API, 'the value of secret "s" is longer than 65536 characters'),
        ("s", f"https://evil.example/{CANARY}", API,
         'the URL that secret "s" holds is not within its URL prefix'),
        ("s", f"https://user:{CANARY}@api.example/v1/", API,
         'secret "s" holds neither a URL nor a query that begins with "?"'),
        ("s", CANARY, "", "the URL prefix is not an http or https URL"),
        ("s", "value of it", CANARY, "the URL prefix is not an http or https URL"),
        ("s", CANARY, f"https://u:{CANARY}@h.example/",
         "the URL prefix is not an http or https URL"),
        ("s", CANARY, f"https://h.example/?{CANARY}",
         "a URL prefix must not have a query or a fragment"),
        ("s", CANARY, f"https://h.example/../{CANARY}",
         "a URL prefix must not have dot segments or encoded slashes"),
    ],
)  # fmt: skip
def test_what_is_no_secret(
    secrets: Database, name: str | None, value: str, prefix: str | None, message: str
) -> None:
    with pytest.raises(errors.InvalidParameterValue) as caught:
        put(secrets, name, value, prefix)
    assert refusal(caught) == message
    assert [row[0] for row in known(secrets)] == ["hook", "stripe"]


def test_null_and_unknown(secrets: Database) -> None:
    for statement, error, message in (
        ("select net.grant_secret(null, 'secrets_app')", errors.InvalidParameterValue,
         "the name of a secret must not be NULL"),
        ("select net.grant_secret('stripe', null)", errors.InvalidParameterValue,
         "role must not be NULL"),
        ("select net.revoke_secret('stripe', null)", errors.InvalidParameterValue,
         "role must not be NULL"),
        ("select net.grant_secret('strip', 'secrets_app')", errors.UndefinedObject,
         'secret "strip" does not exist'),
        ("select net.grant_secret('stripe', 'nobody_is_called_so')", errors.UndefinedObject,
         'role "nobody_is_called_so" does not exist'),
        ("select net.grant_secret('stripe', 'public')", errors.UndefinedObject,
         'role "public" does not exist'),
        ("select net.secret_url(null)", errors.InvalidParameterValue,
         "the name of a secret must not be NULL"),
        ("select net.secret_url('strip')", errors.UndefinedObject, 'secret "strip" does not exist'),
        ("select net.secret_url('a b')", errors.InvalidParameterValue,
         "this is no name of a secret"),
        ("select pgnet.check_secret(null, null)", errors.InvalidParameterValue,
         "the name of a secret must not be NULL"),
        ("select pgnet.check_secret('stripe', null)", errors.InvalidParameterValue,
         'secret "stripe" may not go to this URL'),
    ):  # fmt: skip
        with pytest.raises(error) as caught:
            secrets.execute(statement)
        assert refusal(caught) == message
    assert secrets.rows("select * from pgnet.claimed_secrets(null, null, null)") == []


def test_who_sees_a_secret(secrets: Database) -> None:
    everybody = ("app", "member", "stranger", "other", "reader")

    def who() -> list[str]:
        return [role for role in everybody if "stripe" in seen(secrets, f"secrets_{role}")]

    # pg_read_all_data is not a grant of every secret: row security holds for it, too
    assert who() == []
    secrets.execute("select net.grant_secret('stripe', 'secrets_app')")
    secrets.execute("select net.grant_secret('stripe', 'secrets_app')")
    assert who() == ["app", "member"]
    assert seen(secrets, "secrets_app") == ["stripe"]
    secrets.execute("select net.revoke_secret('stripe', 'secrets_app')")
    secrets.execute("select net.revoke_secret('stripe', 'secrets_app')")
    assert who() == []
    secrets.execute("select net.grant_secret('stripe', 'secrets_stranger')")
    assert who() == ["stranger"]


def test_a_role_with_any_name(secrets: Database) -> None:
    secrets.execute('create role "Odd ""role"" é" login')
    try:
        secrets.execute("select net.grant_secret('stripe', 'Odd \"role\" é')")
        assert seen(secrets, "'Odd \"role\" é'") == ["stripe"]
    finally:
        secrets.execute('drop role "Odd ""role"" é"')


def test_a_dropped_role(secrets: Database) -> None:
    """Its grant is in nobody's way, and not its successor's."""
    secrets.execute("create role secrets_gone login")
    secrets.execute("select net.grant_secret('stripe', 'secrets_gone')")
    connection = secrets.connect("secrets_gone")
    connection.execute(
        "select net.http_get(%s, headers => %s)",
        (f"{API}x", Jsonb({"Authorization": {"secret": "stripe"}})),
    )
    connection.close()
    secrets.execute("drop role secrets_gone")
    assert seen(secrets, "secrets_other") == []
    assert [row[0] for row in known(secrets)] == ["hook", "stripe"]
    secrets.execute("create role secrets_gone login")
    try:
        assert seen(secrets, "secrets_gone") == []
        with pytest.raises(errors.UndefinedObject):
            secrets.execute("select net.grant_secret('stripe', 'secrets_never')")
        secrets.execute("select net.grant_secret('hook', 'secrets_app')")
        assert secrets.rows("select secret, role::text from pgnet.secret_grant") == [
            ("hook", "secrets_app")
        ]
    finally:
        secrets.execute("drop role secrets_gone")


def test_nobody_else_reads_or_writes(secrets: Database) -> None:
    secrets.execute("select net.grant_secret('stripe', 'secrets_app')")
    app = secrets.connect("secrets_app")
    for statement in (
        "select value from pgnet.secret",
        "select name from pgnet.secret",
        "select count(*) from pgnet.secret",
        "select * from pgnet.secret_grant",
        "copy pgnet.secret to stdout",
        "update pgnet.secret set url_prefix = 'https://evil.example/'",
        "insert into pgnet.secret_grant values ('hook', 'secrets_app')",
        "delete from pgnet.secret",
        "update net.secrets set url_prefix = 'https://evil.example/'",
        "delete from net.secrets",
        "do $$ begin lock table pgnet.secret; end $$",
        "select net.set_secret('stripe', 'another value', 'https://evil.example/')",
        "select net.drop_secret('stripe')",
        "select net.grant_secret('hook', 'secrets_app')",
        "select net.revoke_secret('stripe', 'secrets_app')",
        "select * from pgnet.claimed_secrets('{1}', array[gen_random_uuid()], '{stripe}')",
        "select pgnet.inspect_secret('a', 'b', 'c')",
        "select pgnet.set_secret_grant('hook', 'secrets_app', true)",
        "create rule sneak as on insert to pgnet.secret do also notify sneak",
        "create trigger sneak before insert on pgnet.secret execute function pgnet.keep_own_row()",
    ):
        # The view cannot be written to by anybody.
        with pytest.raises(
            (errors.InsufficientPrivilege, errors.ObjectNotInPrerequisiteState)
        ) as caught:
            app.execute(statement)
        refusal(caught)
    assert app.execute("select * from net.secrets").fetchall() != []
    assert not found_in(str(app.execute("select s::text from net.secrets s").fetchall()))


def test_a_condition_does_not_see_what_the_view_leaves_out(secrets: Database) -> None:
    """A function that costs nothing is asked last nevertheless."""
    app = secrets.connect("secrets_app")
    app.execute(
        "create function pg_temp.tell(name text, url_prefix text) returns boolean"
        " language plpgsql cost 0.0001 as $$"
        " begin raise notice '% %', name, url_prefix; return true; end $$"
    )
    notices: list[str | None] = []
    app.add_notice_handler(lambda said: notices.append(said.message_primary))
    assert (
        app.execute(
            "select * from net.secrets s where pg_temp.tell(s.name, s.url_prefix)"
        ).fetchall()
        == []
    )
    assert notices == []
    secrets.execute("select net.grant_secret('stripe', 'secrets_app')")
    app.execute("select * from net.secrets s where pg_temp.tell(s.name, s.url_prefix)")
    assert notices == [f"stripe {API}"]


def test_default_privileges_do_not_open_it(cluster: Cluster) -> None:
    database = cluster.create_database(extension=False)
    database.execute("create role secrets_default login")
    try:
        database.execute("alter default privileges grant all on tables to public, secrets_default")
        database.execute("create extension pgnet cascade")
        for role in ("public", "secrets_default"):
            for table in ("secret", "secret_grant"):
                assert database.value(
                    "select not has_any_column_privilege(%s, %s, 'select, insert, update')"
                    " and not has_table_privilege(%s, %s, 'select, insert, update, delete,"
                    " truncate, references, trigger')",
                    *(role, f"pgnet.{table}") * 2,
                ), (role, table)
    finally:
        database.execute(
            "alter default privileges revoke all on tables from public, secrets_default"
        )
        database.drop()
        with cluster.connect() as connection:
            connection.execute("drop role secrets_default")


def test_what_is_kept_beside_the_table(secrets: Database) -> None:
    """Neither statistics nor a dump have the values."""
    for number in range(300):
        put(secrets, f"many{number % 7}.{number}", f"{CANARY}{number % 5}", API)
    secrets.execute("analyze pgnet.secret")
    assert (
        secrets.rows(
            "select attname from pg_stats where schemaname = 'pgnet' and tablename = 'secret'"
            " and attname = 'value'"
        )
        == []
    )
    dumped = secrets.cluster.run("pg_dump", "--dbname", secrets.dsn())
    assert "CREATE EXTENSION" in dumped
    assert not found_in(dumped)


# ---- at the call


def queue(connection: psycopg.Connection[Any], url: str, headers: Any = None) -> int:
    row = connection.execute(
        "select net.http_get(%s, headers => %s)", (url, None if headers is None else Jsonb(headers))
    ).fetchone()
    assert row is not None
    request_id: int = row[0]
    return request_id


def test_the_row_has_the_name_only(secrets: Database) -> None:
    connection = secrets.connection
    headers = {
        "Authorization": {"secret": "stripe", "prefix": "Bearer "},
        "X-Many": ["plain", {"secret": "stripe"}],
    }
    queue(connection, f"{API}x?y", headers)
    url = secrets.value("select net.secret_url('hook')")
    assert url == "https://hooks.example/{secret:hook}"
    secrets.execute('select net.http_post(%s, params => \'{"a": "b c"}\')', url)
    rows = secrets.rows("select url, headers from net.http_request_queue order by id")
    assert rows == [
        (f"{API}x?y", headers),
        (
            "https://hooks.example/{secret:hook}?a=b%20c",
            {"Content-Type": "application/json"},
        ),
    ]
    assert not found_in(str(secrets.rows("select r::text from net.requests r")))


@pytest.mark.parametrize(
    ("role", "url", "headers", "error", "message"),
    [
        ("secrets_app", f"{API}x", {"A": {"secret": "hook"}}, errors.InsufficientPrivilege,
         'secret "hook" does not exist, or role "secrets_app" may not use it'),
        ("secrets_app", f"{API}x", {"A": {"secret": "never"}}, errors.InsufficientPrivilege,
         'secret "never" does not exist, or role "secrets_app" may not use it'),
        ("postgres", f"{API}x", {"A": {"secret": "never"}}, errors.UndefinedObject,
         'secret "never" does not exist'),
        ("secrets_app", "https://hooks.example/{secret:hook}", None, errors.InsufficientPrivilege,
         'secret "hook" does not exist, or role "secrets_app" may not use it'),
        ("secrets_app", "https://api.example/v10/", {"A": {"secret": "stripe"}},
         errors.InvalidParameterValue, 'secret "stripe" may not go to this URL'),
        ("secrets_app", "http://api.example/v1/", {"A": [{"secret": "stripe"}]},
         errors.InvalidParameterValue, 'secret "stripe" may not go to this URL'),
        ("secrets_app", f"{API}../x", {"A": {"secret": "stripe"}},
         errors.InvalidParameterValue, 'secret "stripe" may not go to this URL'),
        ("secrets_app", "https://api.example/{secret:stripe}", {"A": {"secret": "hook"}},
         errors.InsufficientPrivilege,
         'secret "hook" does not exist, or role "secrets_app" may not use it'),
        ("postgres", "https://hooks.example/{secret:stripe}", None,
         errors.InvalidParameterValue, 'secret "stripe" may not go to this URL'),
        ("postgres", "https://hooks.example/{secret:hook}", {"A": {"secret": "stripe"}},
         errors.InvalidParameterValue, 'secret "stripe" may not go to this URL'),
        ("postgres", f"{API}x", {"A": {"secret": "key"}}, errors.InvalidParameterValue,
         'secret "key" has no URL prefix: no request can use it'),
        ("postgres", f"{API}x", {"A": {"secret": f"{CANARY} "}}, errors.InvalidParameterValue,
         "a header's value names no secret"),
        ("postgres", f"{API}x", {"A": {"secret": "stripe", "prefix": f"{CANARY}\n"}},
         errors.InvalidParameterValue,
         'the "prefix" of secret "stripe" must be a string of printable characters'),
        ("postgres", f"{API}x", {"A": {"secret": "stripe", "value": CANARY}},
         errors.InvalidParameterValue,
         'a header value with secret "stripe" knows "secret" and "prefix" only'),
    ],
)  # fmt: skip
def test_refused_at_the_call(
    secrets: Database, role: str, url: str, headers: Any, error: type[psycopg.Error], message: str
) -> None:
    put(secrets, "key", f"{CANARY}\n")
    secrets.execute("select net.grant_secret('stripe', 'secrets_app')")
    with pytest.raises(error) as caught:
        queue(secrets.connect(role), url, headers)
    assert refusal(caught) == message
    assert secrets.value("select count(*) from net.http_request_queue") == 0


@pytest.mark.parametrize(
    "url",
    ["https://hooks.example/{secret:hook}/more", "https://hooks.example/x/{secret:hook}",
     "https://hooks.example/{secret:hook}#x", "https://hooks.example/{secret:}",
     "https://hooks.example/?{secret:hook}", "https://{secret:hook}/", "{secret:hook}",
     "https://hooks.example/{secret:hook", " https://hooks.example/{secret:hook}",
     "HTTPS://hooks.example/{secret:hook}", "https://hooks.example/{secret:hook}\t?x"],
)  # fmt: skip
def test_a_reference_stands_nowhere_else(secrets: Database, url: str) -> None:
    with pytest.raises(errors.InvalidParameterValue) as caught:
        queue(secrets.connection, url)
    assert "invalid URL" in refusal(caught)


def test_the_current_role_counts(secrets: Database) -> None:
    """In a definer function it is the function's owner: so a role can lend a use of a secret."""
    secrets.execute("select net.grant_secret('stripe', 'secrets_app')")
    secrets.execute("grant create on schema public to secrets_app")
    secrets.connect("secrets_app").execute(
        "create function public.charge() returns bigint security definer"
        " set search_path = pg_catalog, pg_temp"
        f' return net.http_get(\'{API}charge\', headers => \'{{"A": {{"secret": "stripe"}}}}\')'
    )
    try:
        other = secrets.connect("secrets_other")
        row = other.execute("select public.charge()").fetchone()
        assert row is not None
        assert (
            secrets.value(
                "select requested_by::text from net.http_request_queue where id = %s", row[0]
            )
            == "secrets_app"
        )
        # what it sent is its owner's to see
        assert other.execute("select * from net.requests").fetchall() == []
    finally:
        secrets.execute("drop function public.charge()")
        secrets.execute("revoke create on schema public from secrets_app")


# ==== by the command ==============================================================================


def command(
    database: Database,
    *arguments: str,
    given: bytes | None = b"",
    user: str = "postgres",
    **more: Any,
) -> tuple[int, str]:
    """Run `pgnet secret`; give its exit status and what it printed."""
    finished = subprocess.run(
        [server_python(), "-m", "pgnet", "secret", *arguments, "--dsn", database.dsn(user)],
        cwd="/",
        env=CLEAN_ENVIRONMENT,
        input=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        **more,
    )
    printed = finished.stdout.decode()
    assert not found_in(printed)
    return finished.returncode, printed


def logs_parameters_of_plans(database: Database) -> bool:
    """Whether auto_explain logs the parameters of statements: from PostgreSQL 16 on."""
    return database.connection.info.server_version >= 160000


# The sessions of `store`, by their databases: to start Python in one takes longer than the rest.
silent: dict[str, psycopg.Connection[Any]] = {}


def store(database: Database, name: str, value: str, prefix: str | None = None) -> None:
    """Set a secret as the command does, in a session that is silent where others are not."""
    quiet = [
        "log_parameter_max_length=0",
        "log_parameter_max_length_on_error=0",
        "plan_cache_mode=force_generic_plan",
    ]
    if database.dsn() not in silent:
        if logs_parameters_of_plans(database):
            quiet.append("auto_explain.log_parameter_max_length=0")
        options = " ".join(f"-c {setting}" for setting in quiet)
        silent[database.dsn()] = database.connect(options=options)
    silent[database.dsn()].execute("select net.set_secret(%s, %s, %s)", (name, value, prefix))


@pytest.fixture(scope="module")
def talkative(make_cluster: Callable[..., Cluster]) -> Cluster:
    """A cluster that logs whatever it can: statements, parameters, plans, errors with it all."""
    options: dict[str, object] = {
        "log_statement": "all",
        "log_min_duration_statement": 0,
        "log_min_duration_sample": 0,
        "log_transaction_sample_rate": 1,
        "log_duration": "on",
        "log_parameter_max_length": -1,
        "log_parameter_max_length_on_error": -1,
        "log_error_verbosity": "verbose",
        "log_min_messages": "debug1",
        "log_min_error_statement": "debug1",
        "log_connections": "on",
        "log_disconnections": "on",
        "log_lock_waits": "on",
        "log_replication_commands": "on",
        "track_activity_query_size": 65536,
        "max_prepared_transactions": 10,
    }
    library = Path(pg_config("pkglibdir"))
    modules = [
        name for name in ("auto_explain", "pg_stat_statements") if (library / f"{name}.so").exists()
    ]
    if modules:
        options["shared_preload_libraries"] = ",".join(modules)
    if "auto_explain" in modules:
        options |= {
            "auto_explain.log_min_duration": 0,
            "auto_explain.log_analyze": "on",
            "auto_explain.log_verbose": "on",
            "auto_explain.log_nested_statements": "on",
            "auto_explain.log_triggers": "on",
            "auto_explain.log_settings": "on",
        }
    if "pg_stat_statements" in modules:
        options |= {"pg_stat_statements.track": "all", "pg_stat_statements.track_utility": "on"}
    return make_cluster(**options)


def observed(cluster: Cluster) -> Database:
    """A database of that cluster."""
    database = cluster.create_database()
    database.execute("select net.allow_network('loopback')")
    if "pg_stat_statements.track" in cluster.options:
        database.execute("create extension pg_stat_statements")
    return database


@pytest.fixture(scope="module")
def watched(talkative: Cluster) -> Iterator[Database]:
    database = observed(talkative)
    yield database
    database.close()


# How far `nowhere` has read each log.
looked_at: dict[Path, int] = {}


def nowhere(database: Database) -> None:
    """The canary is in no log, and in no table or view of the extension but its own."""
    for path in logs(database.cluster.directory):
        with path.open("rb") as file:
            # what was looked at stays looked at; a match may begin there
            file.seek(max(0, looked_at.get(path, 0) - 1000))
            content = file.read()
            looked_at[path] = file.tell()
        assert not found_in(content), path
    relations = database.rows(
        "select c.oid::regclass::text from pg_class c where c.relkind in ('r', 'v', 'm', 'p', 'f')"
        " and (c.relnamespace = any ('{net,pgnet}'::regnamespace[]) or c.oid in ("
        " to_regclass('pg_stat_statements'), 'pg_catalog.pg_stat_activity'::regclass,"
        " 'pg_catalog.pg_statistic'::regclass, 'pg_catalog.pg_prepared_statements'::regclass))"
        " and c.oid <> 'pgnet.secret'::regclass"
    )
    assert ("net._http_response",) in relations
    for (relation,) in relations:
        rows = database.rows(f"select x::text from {relation} x")
        assert not found_in("\n".join(str(text) for (text,) in rows)), relation


def test_what_the_talkative_cluster_tells(watched: Database) -> None:
    """Whatever else is set is in its log: so the tests that find nothing there look where it is."""
    watched.execute("select net.set_secret('told', %s, %s)", "a Told and retold value", API)
    log = watched.cluster.log.read_text()
    assert "parameters: $1 = 'a Told and retold value'" in log
    if "auto_explain.log_verbose" in watched.cluster.options:
        # a plan that was made for it holds it, but for those of net.set_secret itself
        assert "Output: net.set_secret('told'::text, 'a Told and retold value'::text" in log
        assert "insert into pgnet.secret (name, value, url_prefix)" in log
        assert log.count("'a Told and retold value'::text") == 1
    with pytest.raises(errors.InvalidParameterValue):
        watched.execute("select net.set_secret('told', %s, %s)", "Told", API)
    assert "parameters: $1 = 'Told'" in watched.cluster.log.read_text()


def test_setting_by_the_command(watched: Database) -> None:
    value = f'sk_{CANARY} ü "quoted" \\'
    status, printed = command(
        watched,
        "set",
        "cli",
        "--url-prefix",
        "https://Api.example/v1",
        given=value.encode() + b"\n",
    )
    assert (status, printed) == (0, 'secret "cli" is set, for requests to https://api.example/v1\n')
    assert watched.value("select value from pgnet.secret where name = 'cli'") == value
    # rotated, from a file that ends without a line break
    status, printed = command(watched, "set", "cli", given=f"{CANARY}.2".encode())
    assert (status, printed) == (0, 'secret "cli" is set, for requests to https://api.example/v1\n')
    assert watched.value("select value from pgnet.secret where name = 'cli'") == f"{CANARY}.2"
    pem = f"-----BEGIN KEY-----\n{CANARY}\n-----END KEY-----\n"
    status, printed = command(watched, "set", "pem", given=pem.encode())
    assert status == 0
    assert "only net.configure_host" in printed
    assert watched.value("select value from pgnet.secret where name = 'pem'") == pem.rstrip("\n")
    status, printed = command(watched, "list")
    assert status == 0
    lines = [line.split()[:4] for line in printed.splitlines()]
    assert lines[0] == ["NAME", "URL", "PREFIX", "HELD"]
    assert ["cli", "https://api.example/v1", "database"] in [line[:3] for line in lines]
    assert ["pem", "-", "database"] in [line[:3] for line in lines]
    assert command(watched, "drop", "pem") == (0, 'secret "pem" is dropped\n')
    assert command(watched, "drop", "pem") == (1, 'pgnet secret: secret "pem" does not exist\n')
    assert "net.set_secret" in watched.cluster.log.read_text()
    nowhere(watched)


@pytest.mark.parametrize(
    ("name", "given", "prefix", "message"),
    [
        ("s", b"", None, 'the value of secret "s" is empty'),
        ("s", b"\n", None, 'the value of secret "s" is empty'),
        ("s", CANARY.encode() + b"\xff", None, 'the value of secret "s" is not in UTF-8'),
        ("s", CANARY.encode() + b"\0", None, 'the value of secret "s" has a NUL character'),
        ("s", CANARY.encode() * 10_000, None, 'the value of secret "s" is longer than 65536'),
        (f"{CANARY}/", b"stripe", None, "this is no name of a secret"),
        # by the server
        ("s", f"{CANARY}\n\n".encode(), API, 'the value of secret "s" has a line break'),
        ("s", CANARY[:6].encode(), API, 'the value of secret "s" has fewer than 8 characters'),
        ("s", CANARY.encode(), f"https://u:{CANARY}@h/", "the URL prefix is not an http"),
        ("s", f"https://evil.example/{CANARY}".encode(), API, "is not within its URL prefix"),
    ],
)  # fmt: skip
def test_the_command_refuses(
    watched: Database, name: str, given: bytes, prefix: str | None, message: str
) -> None:
    to = [] if prefix is None else ["--url-prefix", prefix.replace(CANARY, "word")]
    status, printed = command(watched, "set", name, *to, given=given)
    assert status == 1
    assert message in printed
    assert "Traceback" not in printed
    assert watched.value("select count(*) from pgnet.secret where name = 's'") == 0
    nowhere(watched)


def test_a_call_that_fails_in_the_server(watched: Database) -> None:
    """Whatever goes wrong behind it, and says what it was doing."""
    watched.execute(
        "create function public.fail() returns trigger language plpgsql as $$"
        " begin raise exception 'not today' using detail = 'no detail'; end $$"
    )
    watched.execute(
        "create trigger fail before insert on pgnet.secret"
        " for each row execute function public.fail()"
    )
    try:
        status, printed = command(watched, "set", "s", "--url-prefix", API, given=CANARY.encode())
        assert (status, printed) == (1, "pgnet secret: not today\n")
    finally:
        watched.execute("drop function public.fail() cascade")
    assert "not today" in watched.cluster.log.read_text()
    nowhere(watched)


def test_a_call_that_is_cut_off(watched: Database) -> None:
    """A lock keeps it from the table; then its session is ended."""
    holder = watched.connect(autocommit=False)
    holder.execute("lock table pgnet.secret in exclusive mode")
    done: list[tuple[int, str]] = []
    thread = threading.Thread(
        target=lambda: done.append(
            command(watched, "set", "s", "--url-prefix", API, given=CANARY.encode())
        )
    )
    thread.start()
    waiting = "select pid from pg_stat_activity where wait_event_type = 'Lock'"
    pid = watched.wait_for(waiting)
    query = watched.value("select query from pg_stat_activity where pid = %s", pid)
    assert query == "select net.set_secret($1, $2, $3)"
    nowhere(watched)
    watched.execute("select pg_terminate_backend(%s)", pid)
    thread.join(20)
    holder.rollback()
    status, printed = done[0]
    assert status == 1
    assert "terminating connection" in printed
    nowhere(watched)


def test_where_the_server_would_log_it(watched: Database) -> None:
    """A role that may set secrets, and may not keep the server from logging its parameters."""
    watched.execute("create role secrets_dba login in role postgres")
    try:
        arguments = ("set", "s", "--url-prefix", API)
        status, printed = command(watched, *arguments, given=CANARY.encode(), user="secrets_dba")
        assert status == 1
        assert "this server would log the value" in printed
        statement = 'grant set on parameter log_parameter_max_length to "secrets_dba"'
        assert statement in printed
        assert watched.value("select count(*) from pgnet.secret where name = 's'") == 0
        watched.execute(statement)
        if logs_parameters_of_plans(watched):
            watched.execute(statement.replace("log_parameter", "auto_explain.log_parameter"))
        status, printed = command(watched, *arguments, given=CANARY.encode(), user="secrets_dba")
        assert status == 0, printed
        assert command(watched, "drop", "s", user="secrets_dba")[0] == 0
    finally:
        watched.execute("drop owned by secrets_dba")
        watched.execute("drop role secrets_dba")
    nowhere(watched)


def test_where_the_server_would_not_log_it(rules: Database) -> None:
    """The same role, and a server as it comes."""
    rules.execute("create role secrets_dba login in role postgres")
    try:
        status, printed = command(rules, "set", "s", given=CANARY.encode(), user="secrets_dba")
        assert status == 0, printed
        assert command(rules, "drop", "s", user="secrets_dba")[0] == 0
    finally:
        rules.execute("drop role secrets_dba")


def test_the_command_by_others(secrets: Database) -> None:
    for arguments in (("set", "stripe"), ("drop", "stripe")):
        status, printed = command(secrets, *arguments, given=CANARY.encode(), user="secrets_app")
        assert status == 1
        assert "permission denied for function" in printed
    secrets.execute("select net.grant_secret('stripe', 'secrets_app')")
    status, printed = command(secrets, "list", user="secrets_app")
    assert status == 0
    assert [line.split()[0] for line in printed.splitlines()] == ["NAME", "stripe"]


def test_the_command_without_a_database(secrets: Database) -> None:
    nobody = f"host=127.0.0.1 port={free_port()} password={CANARY} connect_timeout=5"
    for dsn, message in (
        (nobody, "onnection refused"),
        (f"hots={CANARY}", "--dsn is no connection string of libpq"),
    ):
        finished = subprocess.run(
            [server_python(), "-m", "pgnet", "secret", "set", "s", "--dsn", dsn],
            cwd="/", env=CLEAN_ENVIRONMENT, input=CANARY.encode(), capture_output=True, check=False,
        )  # fmt: skip
        assert finished.returncode == 1
        printed = (finished.stdout + finished.stderr).decode()
        assert message in printed
        assert "Traceback" not in printed
        assert not found_in(printed)
    empty = secrets.cluster.create_database(extension=False)
    try:
        status, printed = command(empty, "set", "s", given=CANARY.encode())
        assert (status, printed) == (1, 'pgnet secret: schema "net" does not exist\n')
    finally:
        empty.drop()


def test_a_terminal(secrets: Database) -> None:
    """What is typed would be seen."""
    ours, theirs = pty.openpty()
    try:
        status, printed = command(secrets, "set", "s", given=None, stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)
    assert status == 1
    assert "not from a terminal" in printed
    assert "pgnet secret set s < file" in printed


@pytest.mark.parametrize("kind", ["missing", "a file", "refused"])
def test_a_directory_of_secrets_that_cannot_be_read(tmp_path: Path, kind: str) -> None:
    directory = tmp_path / "secrets"
    prefix: list[str] = []
    if kind == "a file":
        directory.touch()
    elif kind == "refused":
        directory.mkdir(mode=0)
        # root reads everything
        prefix = ["setpriv", "--reuid=65534", "--clear-groups"] if os.geteuid() == 0 else []
        tmp_path.chmod(0o755)
    finished = subprocess.run(
        [*prefix, server_python(), "-m", "pgnet", "worker", "--secrets-dir", str(directory)],
        cwd="/", env=CLEAN_ENVIRONMENT, capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    assert finished.returncode == 2
    assert finished.stderr.startswith("pgnet worker: --secrets-dir cannot be read: ")
    assert "Traceback" not in finished.stderr


# ==== by a worker =================================================================================


@dataclass
class Site:
    """A server that repeats what it was told, in the way that the path asks for.

    received: each request as it came, byte for byte but for the decoding from Latin-1.
    """

    url: str = ""
    received: list[str] = field(default_factory=list)
    to: str = ""
    release: threading.Event = field(default_factory=threading.Event)

    def take(self) -> str:
        """The only request so far."""
        assert len(self.received) == 1, self.received
        return self.received.pop()


def shown(handler: http.server.BaseHTTPRequestHandler) -> str:
    """What a request told: its target, decoded too, and the values of its fields."""
    target = handler.path.partition("?")[2] and handler.path
    values = [v for n, v in handler.headers.items() if n.lower() not in ("host", "user-agent")]
    return "|".join([*values, target, unquote(target)])


class Repeats(http.server.BaseHTTPRequestHandler):
    """/v1/WAY/…: what `shown` gives of the request, in the way of that name."""

    protocol_version = "HTTP/1.1"
    # an answer in one piece: for the second one the first one's receipt would be waited for
    wbufsize = -1
    site: ClassVar[Site]

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = (self.raw_requestline.decode("latin-1"), str(self.headers), body.decode("latin-1"))
        self.site.received.append("".join(parts))
        way = self.path.split("/")[2] if self.path.startswith("/v1/") else ""
        getattr(self, f"way_{way.partition('?')[0]}", self.way_ok)(shown(self))
        self.wfile.flush()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""

    def answer(
        self,
        body: bytes,
        status: int = 200,
        kind: str = "text/plain; charset=utf-8",
        phrase: str | None = None,
        more: Mapping[str, str] | None = None,
    ) -> None:
        self.send_response(status, phrase)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (more or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def way_ok(self, _told: str) -> None:
        self.answer(b"ok")

    def way_plain(self, told: str) -> None:
        self.answer(told.encode())

    def way_failing(self, told: str) -> None:
        self.answer(told.encode(), 500)

    def way_json(self, told: str) -> None:
        self.answer(json.dumps({"told": told}).encode(), kind="application/json")

    def way_percent(self, told: str) -> None:
        self.answer(quote(told, safe="").encode())

    def way_html(self, told: str) -> None:
        self.answer(f"<p>{html.escape(told)}</p>".encode(), kind="text/html")

    def way_base64(self, told: str) -> None:
        self.answer(base64.b64encode(told.encode()))

    def way_utf16(self, told: str) -> None:
        self.answer(told.encode("utf-16"), kind="text/plain; charset=utf-16")

    def way_binary(self, told: str) -> None:
        self.answer(b"\0\xff" + told.encode() + b"\0", kind="application/octet-stream")

    def way_utf16_binary(self, told: str) -> None:
        self.answer(b"\0" + told.encode("utf-16-le"), kind="application/octet-stream")

    def way_fields(self, told: str) -> None:
        more = {"X-Told": told.replace("\n", ""), "Set-Cookie": f"a={quote(told)}", "ETag": told}
        self.answer(b"ok", more=more, kind=f"text/plain; told={quote(told, safe='')}")

    def way_phrase(self, told: str) -> None:
        self.answer(b"ok", 418, phrase=told)

    def way_garbage(self, told: str) -> None:
        self.close_connection = True
        self.wfile.write(f"HTTP/7 {told}\r\n\r\n".encode())

    def way_short(self, told: str) -> None:
        self.close_connection = True
        self.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{told}".encode())

    def way_location(self, told: str) -> None:
        """Redirects to where the site points, and repeats all of it there."""
        self.answer(b"", 302, more={"Location": f"{self.site.to}?told={quote(told, safe='')}"})

    def way_to(self, _told: str) -> None:
        """Redirects to where the site points."""
        self.answer(b"", int(self.path.split("/")[3]), more={"Location": self.site.to})

    def way_later(self, told: str) -> None:
        self.site.release.wait(20)
        self.answer(told.encode())

    def way_never(self, _told: str) -> None:
        self.rfile.read(1)
        self.close_connection = True


@contextlib.contextmanager
def serving(handler: type[Repeats] = Repeats, tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    """A site of that kind, on a port of 127.0.0.1."""
    site = Site()
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Handler", (handler,), {"site": site})
    )
    if tls is not None:
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    server.daemon_threads = True
    scheme = "http" if tls is None else "https"
    site.url = f"{scheme}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield site
    finally:
        site.release.set()
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Scene:
    """A database with a worker, the server that secrets are for, and one that must not see any."""

    database: Database
    worker: Worker
    directory: Path
    home: Site
    foreign: Site
    made: int = 0

    def secret(self, value: str, path: str = "/v1/") -> str:
        """Store a secret for the home server; give its name."""
        self.made += 1
        name = f"s{self.made}"
        store(self.database, name, value, self.home.url + path)
        return name

    def held(self, content: bytes, path: str = "/v1/") -> str:
        """The same for one that the worker holds itself."""
        self.made += 1
        name = f"s{self.made}"
        (self.directory / name).write_bytes(content)
        put(self.database, name, None, self.home.url + path)
        return name

    def ask(self, url: str, headers: Any = None, **more: Any) -> dict[str, Any]:
        """Have a request made, wait for its end, and give its row of net.responses."""
        return self.wait(self.begin(url, headers, **more))

    def begin(self, url: str, headers: Any = None, **more: Any) -> int:
        arguments = {"url": url, "headers": None if headers is None else Jsonb(headers), **more}
        named = ", ".join(f"{name} => %({name})s" for name in arguments)
        row = self.database.connection.execute(
            f"select net.http_request('GET', {named})", arguments
        ).fetchone()
        assert row is not None
        request_id: int = row[0]
        return request_id

    def wait(self, request_id: int) -> dict[str, Any]:
        with self.database.connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute("select (net.wait(%s, '30 s')).state", (request_id,))
            row = cursor.execute(
                "select * from net.responses where id = %s", (request_id,)
            ).fetchone()
        assert row is not None
        assert row["state"] in ("succeeded", "failed")
        return row

    def check(self) -> None:
        """Nobody has the canary but the server that it is for."""
        nowhere(self.database)
        assert not found_in("\n".join(self.foreign.received)), self.foreign.received


@pytest.fixture(scope="module")
def sites() -> Iterator[tuple[Site, Site]]:
    with serving() as home, serving() as foreign:
        yield home, foreign


@pytest.fixture(scope="module")
def stage(talkative: Cluster, sites: tuple[Site, Site]) -> Iterator[Scene]:
    database = observed(talkative)
    directory = talkative.directory / "secrets"
    directory.mkdir()
    shutil.chown(directory, *(2 * ["postgres"] if os.geteuid() == 0 else [os.geteuid()] * 2))
    with database.worker("--verbose", "--secrets-dir", str(directory)) as worker:
        yield Scene(database, worker, directory, *sites)
    database.close()


@pytest.fixture
def scene(stage: Scene) -> Iterator[Scene]:
    for site in (stage.home, stage.foreign):
        site.received.clear()
        site.release.clear()
        site.to = ""
    yield stage
    stage.home.release.set()
    stage.check()


# ---- what goes out


def test_in_a_header(scene: Scene) -> None:
    name = scene.secret(f"sk_{CANARY}")
    row = scene.ask(f"{scene.home.url}/v1/x", {"X-Key": {"secret": name}, "X-Other": "1"})
    assert row["status_code"] == 200
    assert f"X-Key: sk_{CANARY}\n" in scene.home.take()


def test_with_a_prefix(scene: Scene) -> None:
    name = scene.secret(f"sk_{CANARY}")
    scene.ask(f"{scene.home.url}/v1/x", {"Authorization": {"secret": name, "prefix": "Bearer "}})
    assert f"Authorization: Bearer sk_{CANARY}\n" in scene.home.take()


def test_in_an_array(scene: Scene) -> None:
    first, second = scene.secret(f"one {CANARY}"), scene.secret(f"two {CANARY}", "/v1")
    headers = {
        "X-Key": ["plain", {"secret": first}, {"secret": second, "prefix": "p="}],
        "X-B": "b",
    }
    scene.ask(f"{scene.home.url}/v1/x", headers)
    told = scene.home.take()
    lines = [line for line in told.splitlines() if line.startswith("X-")]
    # jsonb has shorter names first
    assert lines == ["X-B: b", "X-Key: plain", f"X-Key: one {CANARY}", f"X-Key: p=two {CANARY}"]


def test_as_a_url(scene: Scene) -> None:
    name = scene.secret(f"{scene.home.url}/v1/hooks/{CANARY}")
    url = scene.database.value("select net.secret_url(%s)", name)
    row = scene.ask(url, params=Jsonb({"a": "b c"}))
    assert row["status_code"] == 200
    assert row["url"] == f"{scene.home.url}/{{secret:{name}}}?a=b%20c"
    assert row["final_url"] == row["url"]
    assert scene.home.take().startswith(f"GET /v1/hooks/{CANARY}?a=b%20c HTTP/1.1\r\n")


def test_as_a_query(scene: Scene) -> None:
    name = scene.secret(f"?token={CANARY}", "/v1/json")
    url = scene.database.value("select net.secret_url(%s)", name)
    row = scene.ask(url, params=Jsonb({"a": 1}))
    assert scene.home.take().startswith(f"GET /v1/json?token={CANARY}&a=1 HTTP/1.1\r\n")
    assert "***" in row["content"]
    assert "a=1" in row["content"]


def test_both_at_once(scene: Scene) -> None:
    hook = scene.secret(f"{scene.home.url}/v1/plain/{CANARY}")
    inside, outside = (
        scene.secret(f"in {CANARY}", "/v1/plain"),
        scene.secret(f"out {CANARY}", "/v2"),
    )
    url = scene.database.value("select net.secret_url(%s)", hook)
    row = scene.ask(url, {"A": {"secret": inside}})
    assert row["status_code"] == 200
    assert f"A: in {CANARY}\n" in scene.home.take()
    # only the worker can know that this one's URL is not below the other one's prefix
    row = scene.ask(url, {"A": {"secret": outside}})
    assert row["state"] == "failed"
    assert f'secret "{outside}"' in row["error_msg"]
    assert scene.home.received == []


def test_held_by_the_worker(scene: Scene) -> None:
    name = scene.held(f"held {CANARY}\n".encode())
    row = scene.ask(f"{scene.home.url}/v1/json", {"A": {"secret": name, "prefix": "Token "}})
    assert f"A: Token held {CANARY}\n" in scene.home.take()
    assert row["content_json"]["told"].startswith("Token ***|")
    # what is put in its place counts at once
    (scene.directory / name).write_text(f"again {CANARY}")
    scene.ask(f"{scene.home.url}/v1/x", {"A": {"secret": name}})
    assert f"A: again {CANARY}\n" in scene.home.take()
    hook = scene.held(f"{scene.home.url}/v1/plain/{CANARY}".encode())
    scene.ask(scene.database.value("select net.secret_url(%s)", hook))
    assert scene.home.take().startswith(f"GET /v1/plain/{CANARY} HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not have it"),
        (CANARY[:7].encode(), "fewer than 8 characters"),
        (b"", "is empty"),
        (f"{CANARY}\n\n".encode(), "line break"),
        (f"{CANARY}\x01".encode(), "control character"),
        (f" {CANARY}".encode(), "white space"),
        (CANARY.encode() + b"\xff", "not in UTF-8"),
        (CANARY.encode() * 20_000, "cannot be read"),
        (f"https://evil.example/{CANARY}".encode(), "not within its URL prefix"),
    ],
)
def test_held_and_no_use(scene: Scene, content: bytes | None, message: str) -> None:
    name = scene.held(content or b"")
    if content is None:
        (scene.directory / name).unlink()
    row = scene.ask(f"{scene.home.url}/v1/x", {"A": {"secret": name}})
    assert (row["state"], row["status_code"]) == ("failed", None)
    assert message in row["error_msg"]
    assert scene.home.received == []


@pytest.mark.skipif(os.geteuid() != 0, reason="the file has to be another user's")
def test_held_and_unreadable(scene: Scene) -> None:
    name = scene.held(CANARY.encode())
    (scene.directory / name).chmod(0o600)
    row = scene.ask(f"{scene.home.url}/v1/x", {"A": {"secret": name}})
    assert row["error_msg"] == f'the file of secret "{name}" cannot be read: Permission denied'
    assert scene.home.received == []


# ---- what comes back

VALUES = [
    f"sk_{CANARY}",
    f'a "{CANARY}" & <b>/\\\'+%ü',
    base64.b64encode(f"u:{CANARY}".encode()).decode(),
]
WAYS = [name.removeprefix("way_") for name in vars(Repeats) if name.startswith("way_")]
REPEATING = [way for way in WAYS if way not in ("ok", "location", "to", "later", "never")]


@pytest.mark.parametrize("value", VALUES, ids=["key", "nasty", "basic"])
@pytest.mark.parametrize("way", REPEATING)
def test_repeated(scene: Scene, way: str, value: str) -> None:
    name = scene.secret(value)
    row = scene.ask(
        f"{scene.home.url}/v1/{way}", {"Authorization": {"secret": name}, "X-Plain": "plain"}
    )
    assert len(scene.home.received) == 1
    if way in ("garbage", "short"):
        assert row["error_msg"]
    else:
        assert row["status_code"] in (200, 418, 500)
    if way in ("plain", "json", "utf16", "html", "failing", "percent"):
        assert "***" in row["content"]
        assert "plain" in row["content"]
    if way in ("binary", "utf16_binary"):
        assert b"***" in row["content_bytes"]
    if way == "fields":
        assert "***" in row["headers"]["X-Told"]
        assert "***" in row["content_type"]


@pytest.mark.parametrize("form", ["path", "query", "nasty"])
@pytest.mark.parametrize("way", REPEATING)
def test_a_url_repeated(scene: Scene, way: str, form: str) -> None:
    behind = {
        "path": f"/T0/{CANARY}",
        "query": f"/x?token={CANARY}",
        "nasty": f"/T0%20x/{CANARY}%22?a=%26{CANARY}%3D&b=%C3%BC+%25",
    }[form]
    name = scene.secret(f"{scene.home.url}/v1/{way}{behind}")
    scene.ask(scene.database.value("select net.secret_url(%s)", name), {"X-Plain": "plain"})
    assert len(scene.home.received) == 1


def test_a_request_that_failed_is_kept_without_it(scene: Scene) -> None:
    name = scene.secret(f"sk_{CANARY}")
    headers = {"A": {"secret": name}}
    row = scene.ask(f"{scene.home.url}/v1/failing", headers)
    assert row["state"] == "failed"
    assert scene.database.row(
        "select headers, status_code from pgnet.failed where id = %s", row["id"]
    ) == (headers, 500)


def test_in_an_error_of_a_trigger(scene: Scene) -> None:
    """Whoever shows all of the row shows no secret."""
    scene.database.execute(
        "create function public.complain() returns trigger language plpgsql as $$"
        " begin raise exception 'refused: %', new"
        " using detail = new::text, hint = new.content; end $$"
    )
    scene.database.execute(
        "create trigger complain before insert on net._http_response"
        " for each row when (new.status_code = 500) execute function public.complain()"
    )
    try:
        name = scene.secret(f"sk_{CANARY}")
        row = scene.ask(f"{scene.home.url}/v1/failing", {"A": {"secret": name}})
        assert row["error_msg"].startswith("The response could not be recorded: refused: (")
        assert "***" in row["error_msg"]
    finally:
        scene.database.execute("drop function public.complain() cascade")


def test_while_it_is_in_flight(scene: Scene) -> None:
    """pg_stat_activity, and what else shows the moment."""
    name = scene.secret(f"sk_{CANARY}")
    hook = scene.secret(f"{scene.home.url}/v1/later/{CANARY}")
    url = scene.database.value("select net.secret_url(%s)", hook)
    done = threading.Event()
    found: list[str] = []

    def sample() -> None:
        with psycopg.connect(scene.database.dsn(), autocommit=True) as connection:
            while not done.is_set():
                rows = connection.execute("select a::text from pg_stat_activity a").fetchall()
                found.extend(found_in(str(rows)))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        ids = [
            request_id
            for _ in range(20)
            for request_id in (
                scene.begin(f"{scene.home.url}/v1/later", {"A": {"secret": name}}),
                scene.begin(url),
            )
        ]
        scene.database.wait_for(
            "select count(*) from net.requests where state = 'in_flight'",
            predicate=lambda count: count >= 20,
        )
        nowhere(scene.database)
        # what the process itself shows to others
        environment = Path(f"/proc/{scene.worker.pid}/environ").read_bytes()
        arguments = Path(f"/proc/{scene.worker.pid}/cmdline").read_bytes()
        assert not found_in(environment + arguments)
        scene.home.release.set()
        assert {scene.wait(request_id)["status_code"] for request_id in ids} == {200}
    finally:
        scene.home.release.set()
        done.set()
        sampler.join()
    assert found == []


# ---- what fails


def test_a_timeout(scene: Scene) -> None:
    name = scene.secret(f"sk_{CANARY}")
    row = scene.ask(f"{scene.home.url}/v1/never", {"A": {"secret": name}}, timeout_milliseconds=300)
    assert row["timed_out"] is True


def test_a_refused_connection(scene: Scene) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    store(scene.database, "refused", f"sk_{CANARY}", nobody)
    row = scene.ask(f"{nobody}/x", {"A": {"secret": "refused"}})
    assert "connect" in row["error_msg"]
    store(scene.database, "refused", f"{nobody}/{CANARY}", nobody)
    row = scene.ask(scene.database.value("select net.secret_url('refused')"))
    assert "connect" in row["error_msg"]


@pytest.mark.parametrize("host", ["nobody.invalid", "10.255.255.1"])
def test_a_host_that_is_none(scene: Scene, host: str) -> None:
    store(scene.database, "nobody", f"http://{host}/{CANARY}", f"http://{host}/")
    row = scene.ask(scene.database.value("select net.secret_url('nobody')"))
    assert row["error_msg"]


def test_tls_that_fails(scene: Scene) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with serving(tls=context) as site:
        store(scene.database, "tls", f"sk_{CANARY}", site.url)
        row = scene.ask(f"{site.url}/x", {"A": {"secret": "tls"}})
        assert row["status_code"] is None
        assert row["error_msg"]
        # plain text at a port of TLS, and the other way round
        plain = site.url.replace("https", "http")
        store(scene.database, "tls", f"sk_{CANARY}", plain)
        row = scene.ask(f"{plain}/x", {"A": {"secret": "tls"}})
        assert row["status_code"] is None
        assert site.received == []
    secure = scene.home.url.replace("http", "https")
    store(scene.database, "tls", f"sk_{CANARY}", secure)
    row = scene.ask(f"{secure}/x", {"A": {"secret": "tls"}})
    assert row["status_code"] is None


# ---- where it does not go


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_origin(scene: Scene, status: int) -> None:
    name = scene.secret(f"sk_{CANARY}")
    scene.home.to = f"{scene.foreign.url}/v1/json"
    row = scene.ask(f"{scene.home.url}/v1/to/{status}", {"Authorization": {"secret": name}})
    assert row["status_code"] == 200
    assert "authorization" not in scene.foreign.take().lower()


@pytest.mark.parametrize("status", [302, 307])
def test_a_redirect_within_the_origin(scene: Scene, status: int) -> None:
    """Within the prefix a header is kept, beyond it is not, and it does not come back."""
    name = scene.secret(f"sk_{CANARY}")
    headers = {"Authorization": {"secret": name, "prefix": "Bearer "}, "X-Plain": "plain"}
    scene.home.to = f"{scene.home.url}/v1/json"
    row = scene.ask(f"{scene.home.url}/v1/to/{status}", headers)
    assert row["final_url"] == scene.home.to
    assert f"Authorization: Bearer sk_{CANARY}\n" in scene.home.received[1]
    for to in ("/v10/x", "/", "/v1/../v2/x", "/v1/%2e%2e/v2", "/v1/..%2fv2", "/x//v1/x", "/V1/x"):
        scene.home.received.clear()
        scene.home.to = to
        row = scene.ask(f"{scene.home.url}/v1/to/{status}", headers)
        assert row["status_code"] == 200, to
        assert not found_in(scene.home.received[1]), to
        assert "X-Plain: plain" in scene.home.received[1]


def test_a_redirect_out_and_back(scene: Scene) -> None:
    name = scene.secret(f"sk_{CANARY}")
    scene.home.to = f"{scene.foreign.url}/v1/to/302"
    scene.foreign.to = f"{scene.home.url}/v1/json"
    scene.ask(f"{scene.home.url}/v1/to/302", {"A": {"secret": name}})
    assert len(scene.foreign.received) == 1
    assert len(scene.home.received) == 2
    assert not found_in(scene.home.received[1])


@pytest.mark.parametrize("to", ["foreign", "outside"])
def test_a_redirect_that_repeats_it(scene: Scene, to: str) -> None:
    """A server may send what it was told to another one, by way of the client."""
    if to == "foreign":
        scene.home.to = f"{scene.foreign.url}/v1/x"
    else:
        scene.home.to = f"{scene.home.url}/v2/x"
    name = scene.secret(f"sk_{CANARY}")
    hook = scene.secret(f"{scene.home.url}/v1/location/x?token={CANARY}")
    for url, headers in (
        (f"{scene.home.url}/v1/location", {"A": {"secret": name}}),
        (scene.database.value("select net.secret_url(%s)", hook), None),
    ):
        scene.home.received.clear()
        row = scene.ask(url, headers)
        assert (row["status_code"], row["headers"]["Location"]) == (302, "***")
        assert "redirect" in row["error_msg"]
        assert not found_in(str(row))
        assert len(scene.home.received) == 1
        assert scene.foreign.received == []


@pytest.mark.parametrize(
    "form",
    [
        f"sk_{CANARY}".replace("y", "%79"),
        f"sk_{CANARY}".replace("C", "%2543"),
        f"sk_{CANARY}".replace("C", "%5Cu0043"),
        f"sk_{CANARY}".replace("C", "%26%2367%3B"),
        f"SK_{CANARY.lower()}",
        "%0A".join(f"sk_{CANARY}"),
        base64.b64encode(f"sk_{CANARY}".encode()).decode().replace("=", "").swapcase(),
        "%20".join(f"sk_{CANARY}".encode().hex()),
    ],
)
def test_a_redirect_that_repeats_it_in_another_form(scene: Scene, form: str) -> None:
    name = scene.secret(f"sk_{CANARY}")
    scene.home.to = f"{scene.foreign.url}/v1/json?x={form}"
    row = scene.ask(f"{scene.home.url}/v1/to/302", {"A": {"secret": name}})
    assert "repeats a secret" in row["error_msg"]
    assert scene.foreign.received == []
    assert form not in str(row)


def test_a_redirect_that_repeats_it_within_the_prefix(scene: Scene) -> None:
    """There it belongs."""
    scene.home.to = f"{scene.home.url}/v1/x"
    name = scene.secret(f"sk_{CANARY}")
    row = scene.ask(f"{scene.home.url}/v1/location", {"A": {"secret": name}})
    assert row["status_code"] == 200
    assert found_in(scene.home.received[1])
    assert "***" in row["final_url"]


def test_a_secret_url_that_redirects(scene: Scene) -> None:
    scene.home.to = f"{scene.foreign.url}/v1/json"
    name = scene.secret(f"{scene.home.url}/v1/to/302/{CANARY}")
    row = scene.ask(scene.database.value("select net.secret_url(%s)", name))
    assert row["status_code"] == 200
    assert row["final_url"] == f"{scene.foreign.url}/"
    assert not found_in(scene.foreign.take())


# ---- what changes between the call and the sending


@pytest.fixture
def later(talkative: Cluster, sites: tuple[Site, Site]) -> Iterator[Database]:
    """A database whose requests are sent when a test says so, by a worker in a backend."""
    home, _foreign = sites
    home.received.clear()
    database = observed(talkative)
    database.execute("create role secrets_later login")
    database.execute("grant select on net.http_request_queue to secrets_later")
    store(database, "key", f"sk_{CANARY}", f"{home.url}/v1/")
    database.execute("select net.grant_secret('key', 'secrets_later')")
    yield database
    nowhere(database)
    database.drop()
    with talkative.connect() as connection:
        connection.execute("drop role if exists secrets_later")


def send(database: Database, home: Site, meanwhile: Callable[[], None]) -> tuple[Any, ...]:
    """Queue a request as secrets_later, do something, send it; give state and error."""
    connection = database.connect("secrets_later")
    row = connection.execute(
        "select net.http_get(%s, headers => %s, timeout_milliseconds => 5000)",
        (f"{home.url}/v1/plain", Jsonb({"A": {"secret": "key"}})),
    ).fetchone()
    assert row is not None
    connection.close()
    meanwhile()
    database.execute("call net.drain()")
    found = database.row("select state, error_msg from net._http_response where id = %s", row[0])
    assert found is not None
    return found


REFUSED = 'secret "key" does not exist, or role "secrets_later" may not use it'


def test_nothing_changes(later: Database, sites: tuple[Site, Site]) -> None:
    assert send(later, sites[0], lambda: None) == ("succeeded", None)
    assert f"A: sk_{CANARY}\n" in sites[0].take()


def test_dropped_meanwhile(later: Database, sites: tuple[Site, Site]) -> None:
    def meanwhile() -> None:
        later.execute("select net.drop_secret('key')")

    assert send(later, sites[0], meanwhile) == ("failed", REFUSED)
    assert sites[0].received == []


def test_revoked_meanwhile(later: Database, sites: tuple[Site, Site]) -> None:
    def meanwhile() -> None:
        later.execute("select net.revoke_secret('key', 'secrets_later')")

    assert send(later, sites[0], meanwhile) == ("failed", REFUSED)
    assert sites[0].received == []


def test_its_prefix_changed_meanwhile(later: Database, sites: tuple[Site, Site]) -> None:
    def meanwhile() -> None:
        store(later, "key", f"sk_{CANARY}", f"{sites[0].url}/v2/")

    state, error = send(later, sites[0], meanwhile)
    assert (state, error) == ("failed", 'secret "key" may not go to the URL of this request')
    assert sites[0].received == []


def test_rotated_meanwhile(later: Database, sites: tuple[Site, Site]) -> None:
    def meanwhile() -> None:
        store(later, "key", f"new_{CANARY}")

    assert send(later, sites[0], meanwhile) == ("succeeded", None)
    assert f"A: new_{CANARY}\n" in sites[0].take()


def test_the_role_dropped_meanwhile(later: Database, sites: tuple[Site, Site]) -> None:
    def meanwhile() -> None:
        later.execute("drop owned by secrets_later")
        later.execute("drop role secrets_later")

    state, error = send(later, sites[0], meanwhile)
    assert state == "failed"
    assert error == 'the role that asked for the secret "key" does not exist any more'
    assert sites[0].received == []


def test_held_by_workers_and_this_one_is_a_backend(
    later: Database, sites: tuple[Site, Site]
) -> None:
    def meanwhile() -> None:
        put(later, "key", None)

    state, error = send(later, sites[0], meanwhile)
    assert state == "failed"
    assert "pgnet worker --secrets-dir" in error
    assert sites[0].received == []


def test_by_hand(later: Database, sites: tuple[Site, Site]) -> None:
    """What a role inserts past the functions is judged when it is sent."""
    home, foreign = sites
    foreign.received.clear()
    store(later, "other", f"other {CANARY}", home.url)
    connection = later.connect("secrets_later")
    reference = {"A": {"secret": "key"}}
    for url, headers in (
        (f"{foreign.url}/v1/", reference),
        (f"{home.url}/v2/", reference),
        (f"{home.url}/v1/", {"A": {"secret": "other"}}),
        (f"{home.url}/v1/", {"A": [[{"secret": "key"}]]}),
        (f"{home.url}/v1/", {"A": {"b": {"secret": "key"}}}),
        (f"{home.url}/v1/", {"secret": "key"}),
        (f"{home.url}/v1/", [reference]),
        (f"{home.url}/v1/", {"Host": {"secret": "key"}}),
        (f"{home.url}/v1/", {"A": {"secret": "key", "prefix": "a\r\nB: c"}}),
        (f"{home.url}/{{secret:other}}", {}),
        (f"{home.url}/{{secret:key}}", {}),
        (f"{foreign.url}/{{secret:key}}", {}),
        (f"{home.url}/v1/{{secret:key}}", {}),
        (f"{home.url}/{{secret:key}}/{{secret:key}}", {}),
    ):
        connection.execute(
            "insert into net.http_request_queue (method, url, headers, timeout_milliseconds)"
            " values ('GET', %s, %s, 5000)",
            (url, Jsonb(headers)),
        )
    later.execute("call net.drain()")
    rows = later.rows("select url, state::text, error_msg from net._http_response order by id")
    assert len(rows) == 14
    # a header by the name of "secret" is no secret: that one is sent as it is
    assert [row for row in rows if row[1] != "failed"] == [rows[5]]
    assert "secret: key\n" in home.take()
    assert foreign.received == []


def test_a_worker_gets_only_what_its_claims_name(later: Database, sites: tuple[Site, Site]) -> None:
    """Its role asks for values by the tokens of its claims, and has no other way to them."""
    home = sites[0]
    store(later, "other", f"other {CANARY}", home.url)
    later.execute("select net.grant_secret('other', 'secrets_later')")
    connection = later.connect("secrets_later")
    headers = Jsonb({"A": {"secret": "key"}})
    queued = connection.execute(
        "select net.http_get(%s, headers => %s)", (f"{home.url}/v1/x", headers)
    ).fetchone()
    assert queued is not None
    connection.close()
    later.execute("create role secrets_worker login")
    try:
        later.execute("select net.grant_worker('secrets_worker')")
        worker = later.connect("secrets_worker")
        registered = worker.execute(
            "select worker_id from pgnet.register_worker('backend')"
        ).fetchone()
        assert registered is not None
        claimed = worker.execute(
            "select id, token from pgnet.claim_requests(%s, 10, 10, 10, '{}', 1000, '')", registered
        ).fetchone()
        assert claimed is not None
        request_id, token = claimed

        def asked(*triples: tuple[int, str, str]) -> list[tuple[Any, ...]]:
            ids, tokens, names = (list(column) for column in zip(*triples, strict=True))
            return worker.execute(
                "select name, value, url_prefix, held_by, fault"
                " from pgnet.claimed_secrets(%s::bigint[], %s::uuid[], %s::text[])",
                (ids, tokens, names),
            ).fetchall()

        assert asked((request_id, token, "key"), (request_id, token, "other")) == [
            ("key", f"sk_{CANARY}", f"{home.url}/v1/", "database", None),
            ("other", None, f"{home.url}/", "database",
             'the request does not name the secret "other"'),
        ]  # fmt: skip
        stranger = "00000000-0000-0000-0000-000000000000"
        assert asked((request_id, stranger, "key"), (request_id + 1, token, "key")) == []
        with pytest.raises(errors.InsufficientPrivilege):
            worker.execute("select * from pgnet.secret")
        worker.close()
    finally:
        later.execute("drop owned by secrets_worker")
        later.execute("drop role secrets_worker")


# ---- in the settings of hosts


class Proxies(Repeats):
    """A proxy for http that answers by itself, and repeats what it was told."""

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        self.site.received.append(self.raw_requestline.decode("latin-1") + str(self.headers))
        told = "|".join(self.headers.values())
        basic = self.headers.get("Proxy-Authorization", "").partition(" ")[2]
        told = f"{told}|{base64.b64decode(basic).decode()}"
        self.answer(told.encode(), more={"X-Told": told})
        self.wfile.flush()


def test_a_proxys_password(scene: Scene) -> None:
    with serving(Proxies) as proxy:
        password = f"{CANARY}/@"
        address = proxy.url.removeprefix("http://")
        store(scene.database, "proxy", f"http://user:{quote(password, '')}@{address}")
        configure(scene, "127.0.0.2", {"proxy": {"secret": "proxy"}})
        try:
            row = scene.ask("http://127.0.0.2:8080/x", {"X-Plain": "plain"})
            assert row["status_code"] == 200, row
            basic = base64.b64encode(f"user:{password}".encode()).decode()
            assert f"Proxy-Authorization: Basic {basic}" in proxy.take()
            assert "plain" in row["content"]
        finally:
            configure(scene, "127.0.0.2", None)
    # Another one, which is not there: a worker may have kept its connection to the first.
    store(scene.database, "proxy", f"http://user:{quote(password, '')}@127.0.0.1:{free_port()}")
    configure(scene, "127.0.0.2", {"proxy": {"secret": "proxy"}})
    try:
        row = scene.ask("http://127.0.0.2:8080/x")
        assert row["error_msg"]
    finally:
        configure(scene, "127.0.0.2", None)


def test_a_clients_key(scene: Scene) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    client = authority.issue_cert("client.example")
    chain = b"".join(pem.bytes() for pem in client.cert_chain_pems).decode()
    # what stands before the key in PEM is for people to read
    key = f"{CANARY}\n{client.private_key_pem.bytes().decode()}"
    store(scene.database, "client-key", key)
    said = {
        "ca": authority.cert_pem.bytes().decode(),
        "client_certificate": chain,
        "client_key": {"secret": "client-key"},
    }
    with serving(tls=context) as site:
        configure(scene, "127.0.0.1", said)
        try:
            row = scene.ask(f"{site.url}/v1/json")
            assert row["status_code"] == 200, row
            assert not found_in(site.take())
            # one that is held by the worker, and one that is none
            (scene.directory / "client-key").write_text(key)
            put(scene.database, "client-key", None)
            row = scene.ask(f"{site.url}/v1/json")
            assert row["status_code"] == 200, row
            store(scene.database, "client-key", f"{CANARY} is no key")
            row = scene.ask(f"{site.url}/v1/json")
            assert row["status_code"] is None
            assert row["error_msg"]
            (scene.directory / "client-key").write_bytes(CANARY.encode() + b"\xff")
            put(scene.database, "client-key", None)
            row = scene.ask(f"{site.url}/v1/json")
            assert row["status_code"] is None
            assert row["error_msg"]
        finally:
            configure(scene, "127.0.0.1", None)
    # the worker is there, and serves others
    assert scene.ask(f"{scene.home.url}/v1/x")["status_code"] == 200


def configure(scene: Scene, host: str, settings: dict[str, Any] | None) -> None:
    scene.database.execute(
        "select net.configure_host(%s, %s)", host, None if settings is None else Jsonb(settings)
    )


# ==== the search itself ===========================================================================


def test_the_search_finds(tmp_path: Path) -> None:
    """What the end of the run relies on."""
    (tmp_path / "data/log").mkdir(parents=True)
    told = {
        "log": f"parameters: $1 = '{CANARY}'",
        "worker-1.log": base64.b64encode(f"user:{CANARY}!".encode()).decode(),
        "data/log/postgresql.csv": CANARY.encode().hex(),
        "data/log/other": CANARY.encode("utf-16-le").decode(),
    }
    for name, content in told.items():
        (tmp_path / name).write_text(f"before\n{content}\nbehind")
    (tmp_path / "quiet").write_text(CANARY[:-1])
    before = list(leaks)
    try:
        look(tmp_path)
        found = {leak.partition(": ")[0] for leak in leaks[len(before) :]}
        assert found == {str(tmp_path / name) for name in told}
    finally:
        leaks[:] = before
