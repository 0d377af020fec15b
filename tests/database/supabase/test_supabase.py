"""Coming from Supabase: a dump with webhook triggers restores, and delivers."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from psycopg import errors

from servers.cluster import Cluster, Database
from servers.httpd import Running
from servers.supabase import SCRIPT, dump, received, run

OWNER = "supabase_functions_admin"


def change_orders(connection: psycopg.Connection[Any]) -> None:
    connection.execute("insert into orders (id, item, tags) values (1, 'tea', '{hot}')")
    connection.execute("update orders set item = 'green tea' where id = 1")
    connection.execute("delete from orders where id = 1")


def test_the_dump_delivers(project: Database, witness: Running) -> None:
    """INSERT, UPDATE and DELETE by a role with no rights but those on the table."""
    anon = project.connect("anon")
    with anon.transaction():
        change_orders(anon)
    found = {}
    for request in received(project, witness, 3):
        body = json.loads(request["body"])
        found[body["type"]] = body
        headers = {name.lower(): value for name, value in request["headers"]}
        assert (request["method"], request["target"]) == ("POST", "/orders")
        assert headers["content-type"] == "application/json"
        assert headers["authorization"] == "Bearer a-token-of-the-project"
    assert set(found) == {"INSERT", "UPDATE", "DELETE"}
    for body in found.values():
        assert set(body) == {"type", "table", "schema", "record", "old_record"}
        assert (body["schema"], body["table"]) == ("public", "orders")
    first, second = found["INSERT"]["record"], found["UPDATE"]["record"]
    assert found["INSERT"]["old_record"] is None
    assert (first["id"], first["item"], first["state"], first["tags"]) == (1, "tea", "new", ["hot"])
    assert found["UPDATE"]["old_record"] == first
    assert second == {**first, "item": "green tea"}
    assert (found["DELETE"]["record"], found["DELETE"]["old_record"]) == (None, second)


def test_a_condition_and_columns(project: Database, witness: Running) -> None:
    project.execute("insert into public.orders (id, item) values (1, 'tea'), (2, 'cake')")
    project.execute("update public.orders set state = 'paid' where id = 1")
    project.execute("update public.orders set state = 'new', item = 'cup' where id = 2")
    targets = [request["target"] for request in received(project, witness, 5)]
    assert sorted(targets) == ["/orders"] * 4 + ["/paid"]
    project.execute("update public.orders set state = 'paid'")
    assert len(received(project, witness, 5 + 3)) == 8


def test_a_get_with_parameters(project: Database, witness: Running) -> None:
    project.execute('insert into public."Customers" ("Full Name") values (\'Zoë\')')
    project.execute('delete from public."Customers"')
    (request,) = received(project, witness, 1)
    assert (request["method"], request["body"]) == ("GET", "")
    assert request["target"] == "/customers?source=db&reason=asked%20%26%20done"
    assert ["X-Kind", "removed"] in request["headers"]
    assert project.value("select context from net.responses") == {
        "trigger": "customer_removed",
        "table": 'public."Customers"',
        "event": "DELETE",
    }


def test_the_requests_are_the_functions_owners(project: Database, witness: Running) -> None:
    anon = project.connect("anon")
    change_orders(anon)
    received(project, witness, 3)
    assert project.rows("select distinct requested_by::text from net.responses") == [(OWNER,)]
    for relation in ("net.requests", "net.responses", "net.http_request_queue"):
        assert anon.execute(f"select count(*) from {relation}").fetchone() == (0,)
    rights = "select rolsuper, rolcanlogin, rolcreaterole, rolbypassrls from pg_roles"
    assert project.row(f"{rights} where rolname = %s", OWNER) == (False, False, False, False)


def test_no_right_on_net_is_needed(project: Database, witness: Running) -> None:
    project.execute("revoke usage on schema net, pgnet from public")
    change_orders(project.connect("anon"))
    received(project, witness, 3)


def test_many_rows_are_one_transaction(project: Database, witness: Running) -> None:
    project.execute("drop trigger order_paid on public.orders")
    connection = project.connect()
    with connection.transaction():
        before = connection.execute("select pg_current_xact_id()::text::bigint").fetchone()
        connection.execute(
            "insert into public.orders select n, 'tea' from generate_series(1, 500) n"
        )
    after = project.value("select pg_current_xact_id()::text::bigint")
    assert before is not None
    # Autovacuum may have taken some.
    assert after - before[0] < 10
    assert len(received(project, witness, 500)) == 500


CANNOT_BE_SENT = {
    "ftp://example.com/": "Unsupported URL scheme",
    "http://localhost:{port}/x y\u0001": "invalid URL",
}


@pytest.mark.parametrize("url", CANNOT_BE_SENT)
def test_a_broken_url_fails_no_statement(project: Database, witness: Running, url: str) -> None:
    """The row is changed, and what was wrong can be read."""
    project.execute("drop trigger order_hook on public.orders")
    project.execute(
        "create trigger broken after insert on public.orders for each row execute function"
        f" supabase_functions.http_request('{url.format(port=witness.port)}', 'POST')"
    )
    project.connect("anon").execute("insert into orders (id, item) values (1, 'tea')")
    project.execute("call net.drain()")
    state, error = project.row("select state, error_msg from net.responses") or (None, None)
    assert state == "failed"
    assert CANNOT_BE_SENT[url] in str(error)
    assert project.value("select count(*) from public.orders") == 1


def test_headers_that_cannot_be_sent_fail_no_statement(project: Database, witness: Running) -> None:
    """Supabase sends them; here they are refused, and the request says so."""
    project.execute(
        "create trigger broken after insert on public.orders for each row execute function"
        f" supabase_functions.http_request('{witness.url}/broken', 'POST', '{{\"Host\": \"a\"}}')"
    )
    project.execute("insert into public.orders (id, item) values (1, 'tea')")
    received(project, witness, 1)
    assert "Host" in project.value("select error_msg from net.responses where state = 'failed'")


# ---- a whole dump, and a second run


@pytest.mark.parametrize("first", ["the script", "the dump"])
def test_a_dump_with_the_schema(bare: Database, witness: Running, first: str) -> None:
    """In either order: what is there already is an error of psql's, and the rest is restored."""
    if first == "the dump":
        if not bare.value("select count(*) from pg_roles where rolname = %s", OWNER):
            bare.execute(f"create role {OWNER}")
        run(bare, dump(witness, "whole.sql") + dump(witness))
        with pytest.raises(errors.RaiseException):
            change_orders(bare.connect("anon"))
        with pytest.raises(RuntimeError, match='belongs to the role "supabase_admin"') as refused:
            run(bare, SCRIPT.read_text())
        assert "alter schema supabase_functions owner to postgres;" in str(refused.value)
        bare.execute("alter schema supabase_functions owner to postgres")
        run(bare, SCRIPT.read_text())
    else:
        run(bare, SCRIPT.read_text())
        printed = run(bare, dump(witness, "whole.sql") + dump(witness), stop=False)
        assert printed.count("ERROR:") == 2
        assert printed.count("already exists") == 2
    assert bare.value("select to_regclass('supabase_functions.hooks') is not null")
    change_orders(bare.connect("anon"))
    received(bare, witness, 3)


def test_a_second_run_changes_nothing(project: Database, witness: Running) -> None:
    state = (
        "select p.oid, p.prosrc, p.proacl::text, p.proowner, p.prosecdef from pg_proc p"
        " where p.pronamespace = 'supabase_functions'::regnamespace order by 1"
    )
    before = project.rows(state)
    run(project, SCRIPT.read_text())
    assert project.rows(state) == before
    change_orders(project.connect("anon"))
    received(project, witness, 3)


def test_without_the_extension_no_trigger_is_left(project: Database) -> None:
    """It would fail every change of its table."""
    with pytest.raises(errors.DependentObjectsStillExist) as caught:
        project.execute("drop extension pgnet")
    assert "trigger order_hook on table orders" in str(caught.value.diag.message_detail)
    project.execute("drop extension pgnet cascade")
    change_orders(project.connect("anon"))


def test_without_the_extension_the_script_says_what_is_missing(cluster: Cluster) -> None:
    empty = cluster.create_database(extension=False)
    try:
        with pytest.raises(RuntimeError, match="create extension pgnet cascade"):
            run(empty, SCRIPT.read_text())
    finally:
        empty.drop()


# ---- hostile roles


def test_nobody_makes_a_trigger_that_was_not_granted(project: Database, witness: Running) -> None:
    """Its requests would be those of the function's owner, with the owner's secrets."""
    project.execute("grant create on schema public to supabase_mallory")
    project.execute("grant usage on schema supabase_functions to supabase_mallory")
    mallory = project.connect("supabase_mallory")
    mallory.execute("create table public.mine (id int)")
    make = (
        "create trigger mine after insert on public.mine for each row execute function"
        f" supabase_functions.http_request('{witness.url}', 'POST')"
    )
    with pytest.raises(errors.InsufficientPrivilege):
        mallory.execute(make)
    project.execute("grant execute on function supabase_functions.http_request to supabase_mallory")
    mallory.execute(make)
    # The script takes back what was granted, perhaps by a dump.
    run(project, SCRIPT.read_text())
    with pytest.raises(errors.InsufficientPrivilege):
        mallory.execute(make.replace("trigger mine", "trigger another"))


def test_a_cast_of_the_tables_owner_is_not_run(project: Database, witness: Running) -> None:
    """row_to_json calls a type's cast to json, here with the rights of the function's owner."""
    project.execute("grant create on schema public to supabase_mallory")
    mallory = project.connect("supabase_mallory")
    mallory.execute(
        """
        create table public.stolen (by_role text);
        grant all on public.stolen to public;
        create type public.mood as enum ('well');
        create domain public.moods as public.mood;
        create function public.steal(public.mood) returns json language plpgsql as $$
        begin
            insert into public.stolen values (current_user);
            return to_json($1::text);
        end $$;
        create table public.mine (id int, moods public.moods[]);
        """
    )
    project.execute(
        "create trigger mine after insert on public.mine for each row execute function"
        f" supabase_functions.http_request('{witness.url}/mine', 'POST')"
    )
    mallory.execute("insert into public.mine values (1, '{well}')")
    mallory.execute("create cast (public.mood as json) with function public.steal(public.mood)")
    with pytest.raises(errors.InsufficientPrivilege, match=r"mood .*supabase_mallory") as caught:
        mallory.execute("insert into public.mine values (2, '{well}')")
    assert caught.value.diag.message_hint == "drop cast (public.mood as json);"
    assert project.rows("select by_role from public.stolen") == []
    # Other tables go on: the cast is none of their business.
    change_orders(project.connect("anon"))
    received(project, witness, 4)


def test_a_schema_of_somebody_else_is_refused(bare: Database) -> None:
    bare.execute("grant create on database " + bare.name + " to supabase_mallory")
    bare.connect("supabase_mallory").execute("create schema supabase_functions")
    with pytest.raises(RuntimeError, match='belongs to the role "supabase_mallory"'):
        run(bare, SCRIPT.read_text())
    assert bare.value("select count(*) from pg_proc where proname = 'http_request'") == 1


# ---- net.webhook()


TABLE = "create table public.things (id int primary key, name text)"


def hook(url: str, *more: str, when: str = "after insert or update or delete") -> str:
    arguments = ", ".join(f"'{argument}'" for argument in (url, *more))
    return (
        f"create trigger hook {when} on public.things for each row"
        f" execute function net.webhook({arguments})"
    )


def test_the_same_arguments_by_name_of_net(bare: Database, witness: Running) -> None:
    bare.execute(TABLE)
    bare.execute("grant all on public.things to anon")
    bare.execute(hook(f"{witness.url}/things", "put", "null", '{"a": 1}'))
    anon = bare.connect("anon")
    anon.execute("insert into public.things values (1, 'tea')")
    (request,) = received(bare, witness, 1)
    assert (request["method"], request["target"]) == ("PUT", "/things?a=1")
    assert json.loads(request["body"]) == {
        "type": "INSERT",
        "table": "things",
        "schema": "public",
        "record": {"id": 1, "name": "tea"},
        "old_record": None,
    }
    # The request is the role's that has changed the row.
    assert anon.execute("select state::text, method from net.requests").fetchall() == [
        ("succeeded", "PUT")
    ]


def test_the_url_alone_is_enough(bare: Database, witness: Running) -> None:
    bare.execute(TABLE)
    bare.execute(hook(f"{witness.url}/things"))
    bare.execute("insert into public.things values (1, 'tea')")
    (request,) = received(bare, witness, 1)
    assert request["method"] == "POST"
    assert ["Content-Type", "application/json"] in request["headers"]
    setting = bare.value("select value from net.settings where name = 'timeout_milliseconds'")
    assert setting == "1000"


def test_a_trigger_before_the_change_lets_it_through(bare: Database, witness: Running) -> None:
    bare.execute(TABLE)
    bare.execute(hook(f"{witness.url}/things", when="before insert or update or delete"))
    bare.execute("insert into public.things values (1, 'tea')")
    bare.execute("update public.things set name = 'cake'")
    assert bare.rows("select name from public.things") == [("cake",)]
    bare.execute("delete from public.things")
    assert bare.rows("select name from public.things") == []
    received(bare, witness, 3)


def test_a_trigger_for_the_statement(bare: Database, witness: Running) -> None:
    bare.execute(TABLE)
    bare.execute(
        "create trigger hook after truncate on public.things for each statement"
        f" execute function net.webhook('{witness.url}/things', 'POST')"
    )
    bare.execute("truncate public.things")
    (request,) = received(bare, witness, 1)
    body = json.loads(request["body"])
    assert (body["type"], body["record"], body["old_record"]) == ("TRUNCATE", None, None)


def test_what_json_can_hold_and_jsonb_cannot(bare: Database, witness: Running) -> None:
    bare.execute("create table public.things (id int primary key, name json)")
    bare.execute(hook(f"{witness.url}/things"))
    bare.execute("insert into public.things values (1, %s)", r'"a\u0000b"')
    (request,) = received(bare, witness, 1)
    assert json.loads(request["body"])["record"] == {"id": 1, "name": "a\0b"}


def test_what_is_rolled_back_is_not_sent(bare: Database, witness: Running) -> None:
    bare.execute(TABLE)
    bare.execute(hook(f"{witness.url}/things"))
    connection = bare.connect()
    with connection.transaction(force_rollback=True):
        connection.execute("insert into public.things values (1, 'tea')")
    bare.execute("insert into public.things values (2, 'cake')")
    (request,) = received(bare, witness, 1)
    assert json.loads(request["body"])["record"]["id"] == 2


def test_a_secret_needs_a_grant_to_the_role_that_writes(bare: Database, witness: Running) -> None:
    bare.execute(TABLE)
    bare.execute("grant all on public.things to anon")
    bare.execute("select net.set_secret('key', 'a-long-secret', %s)", f"{witness.url}/")
    bare.execute(hook(f"{witness.url}/things", "POST", '{"X-Key": {"secret": "key"}}'))
    anon = bare.connect("anon")
    anon.execute("insert into public.things values (1, 'tea')")
    bare.execute("call net.drain()")
    assert witness.record() == []
    assert "may not use it" in bare.value("select error_msg from net.responses")
    bare.execute("select net.grant_secret('key', 'anon')")
    anon.execute("insert into public.things values (2, 'tea')")
    (request,) = received(bare, witness, 1)
    assert ["X-Key", "a-long-secret"] in request["headers"]
    bare.execute("select net.drop_secret('key')")


@pytest.mark.parametrize("argument", ["null", ""])
def test_without_a_url_the_mistake_shows_at_once(bare: Database, argument: str) -> None:
    """As at Supabase."""
    bare.execute(TABLE)
    bare.execute(hook(argument).replace("('')", "()"))
    with pytest.raises(errors.InvalidParameterValue, match="names no URL"):
        bare.execute("insert into public.things values (1, 'tea')")
