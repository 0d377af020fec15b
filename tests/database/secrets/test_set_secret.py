"""Secrets by SQL: which roles set, see, use and drop them, and what a call may name."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg import errors
from psycopg.types.json import Jsonb

from servers.canary import CANARY, found_in
from servers.cluster import (
    Cluster,
    Database,
)
from servers.secret_scene import API, put, refusal


def known(database: Database) -> list[tuple[Any, ...]]:
    return database.rows("select name, url_prefix, stored_in from net.secrets order by name")


def seen(database: Database, role: str) -> list[str]:
    with psycopg.connect(database.dsn(role)) as connection:
        rows = connection.execute("select name from net.secrets order by name").fetchall()
    return [name for (name,) in rows]


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
        ("", CANARY, API, "this is not a valid name of a secret"),
        (f"{CANARY} ", "stripe12", API, "this is not a valid name of a secret"),
        ("../etc/passwd", CANARY, API, "this is not a valid name of a secret"),
        ("x" * 64, CANARY, API, "this is not a valid name of a secret"),
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
         "this is not a valid name of a secret"),
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
    """A dropped role's grant hinders nothing, and does not pass to a new role of its name."""
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
    app.add_notice_handler(lambda notice: notices.append(notice.message_primary))
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
    """Neither statistics nor a dump have the values of secrets."""
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
