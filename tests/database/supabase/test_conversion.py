"""Triggers of Supabase become webhooks by what contrib/webhooks_from_triggers.sql prints."""

from __future__ import annotations

import json

from psycopg import sql

from servers.cluster import Database
from servers.httpd import Running
from servers.supabase import CONVERSION, received, run


def statements(database: Database) -> str:
    """What the query prints."""
    return run(database, CONVERSION.read_text(), "--no-align", "--tuples-only")


def triggers(database: Database) -> list[str]:
    """The triggers that have no webhook."""
    return [
        name
        for (name,) in database.rows(
            "select tgname from pg_trigger where not tgisinternal and tgfoid = any (array["
            " to_regprocedure('supabase_functions.http_request()'),"
            " to_regprocedure('net.webhook()')]) order by 1"
        )
    ]


def test_the_statements_make_the_same_webhooks(project: Database, witness: Running) -> None:
    printed = statements(project)
    assert triggers(project) == ["customer_removed", "order_hook", "order_paid"]
    run(project, printed)
    assert triggers(project) == ["customer_removed"]
    assert "its method is GET" in printed
    assert project.rows(
        "select name, on_table::text, events, owner::text from net.webhooks order by name"
    ) == [
        ("order_hook", "orders", ["DELETE", "INSERT", "UPDATE"], "postgres"),
        ("order_paid", "orders", ["UPDATE"], "postgres"),
    ]

    anon = project.connect("anon")
    with anon.transaction():
        anon.execute("insert into orders (id, item) values (1, 'tea')")
        anon.execute("update orders set state = 'paid' where id = 1")
        anon.execute("update orders set state = 'paid', item = 'cup' where id = 1")
        anon.execute("delete from orders where id = 1")
    found: dict[str, list[str]] = {"/orders": [], "/paid": []}
    for request in received(project, witness, 5):
        body = json.loads(request["body"])
        assert set(body) == {"type", "table", "schema", "record", "old_record"}
        assert (body["schema"], body["table"]) == ("public", "orders")
        headers = {name.lower(): value for name, value in request["headers"]}
        assert headers["content-type"] == "application/json"
        if request["target"] == "/orders":
            assert headers["authorization"] == "Bearer a-token-of-the-project"
        found[request["target"]].append(body["type"])
    assert found["/paid"] == ["UPDATE"]
    assert sorted(found["/orders"]) == ["DELETE", "INSERT", "UPDATE", "UPDATE"]


def test_a_token_becomes_a_secret(project: Database) -> None:
    """It stands in no definition, and is bound to the trigger's URL."""
    number = project.value("select oid from pg_trigger where tgname = 'order_hook'")
    run(project, statements(project))
    rows = project.rows("select name, url_prefix from net.secrets")
    assert [name for name, _ in rows] == [f"hook-{number}-authorization"]
    assert rows[0][1].endswith("/orders")
    for query in (
        "select string_agg(definition::text, '') from pgnet.webhook",
        "select string_agg(prosrc, '') from pg_proc where prosrc like '%_new_request%'",
        "select string_agg(pg_get_triggerdef(oid), '') from pg_trigger where not tgisinternal",
    ):
        assert "a-token-of-the-project" not in (project.value(query) or ""), query


def test_what_is_left_out_and_what_has_odd_names(bare: Database, witness: Running) -> None:
    """A name is no SQL, wherever it is printed."""
    odd = "it's;\ndrop table public.things; --"
    after = "after insert"
    bare.execute("create table public.things (id int primary key, name text)")

    def trigger(name: str, when: str, path: str, *more: str, each: str = "row") -> None:
        given = [f"{witness.url}/{path}", *more]
        bare.execute(
            sql.SQL(
                "create trigger {} {} on public.things for each {} execute function net.webhook({})"
            )
            .format(
                sql.Identifier(name),
                sql.SQL(when),
                sql.SQL(each),
                sql.SQL(", ").join(map(sql.Literal, given)),
            )
            .as_string(bare.connection)
        )

    trigger(odd, after, "odd", "POST", json.dumps({"X-A": "it's \\ : x"}), '{"q": "a b"}')
    trigger(odd + "2", "before insert", "before", "POST")
    trigger("each statement", after, "statement", each="statement")
    trigger("no json", after, "no-json", "POST", "{'a': 1}")
    trigger("put", after, "put", "PUT")
    trigger("off", after, "off")
    bare.execute("alter table public.things disable trigger off")
    trigger("truncated", "after truncate", "truncated", each="statement")
    printed = statements(bare)
    comments = [line for line in printed.splitlines() if line.startswith("--")]
    assert len(comments) == 6
    run(bare, printed)
    left = [odd + "2", "each statement", "no json", "off", "put", "truncated"]
    assert triggers(bare) == sorted(left)
    for name in left:
        quoted = bare.value("select quote_ident(%s)", name)
        bare.execute(f"alter table public.things disable trigger {quoted}")
    bare.execute("insert into public.things values (1, 'tea')")
    (request,) = received(bare, witness, 1)
    assert request["target"] == "/odd?q=a%20b"
    assert ["X-A", "it's \\ : x"] in request["headers"]


def test_the_secret_of_another_trigger_is_out_of_reach(project: Database) -> None:
    """A trigger of the same name on one's own table gets no use of a secret that is there."""
    project.execute("grant create on schema public to supabase_mallory")
    mallory = project.connect("supabase_mallory")
    mallory.execute("create table public.mine (id int)")
    mallory.execute(
        "create trigger order_hook after insert on public.mine for each row execute function"
        " net.webhook('http://localhost:9/', 'POST', '{\"Authorization\": \"mallory-mallory\"}')"
    )
    run(project, statements(project))
    secrets = project.rows(
        "select g.secret, s.url_prefix from pgnet.secret_grant g join pgnet.secret s"
        " on s.name = g.secret where g.role = 'supabase_mallory'::regrole"
    )
    assert [prefix for _, prefix in secrets] == ["http://localhost:9/"]
    assert project.value("select count(*) from net.secrets") == 2
