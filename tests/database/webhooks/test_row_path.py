"""No statement of a user fails by a webhook, whatever became of the table, the rights, the rest."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from psycopg import errors

from servers.cluster import Database
from servers.shop import HOSTILE, OWNER, WRITER, Shop, create, events


def fault(shop: Shop, name: str = "hook") -> str | None:
    found: str | None = shop.database.value("select fault from net.webhooks where name = %s", name)
    return found


def rights_revoked(shop: Shop) -> None:
    shop.database.execute("revoke usage on schema net from public")


def inner_rights_revoked(shop: Shop) -> None:
    shop.database.execute("revoke usage on schema pgnet from public")


def column_renamed(shop: Shop) -> None:
    shop.owner.execute("alter table app.orders rename id to number")


def key_dropped(shop: Shop) -> None:
    shop.owner.execute("alter table app.orders drop column id cascade")


def other_column_dropped(shop: Shop) -> None:
    shop.owner.execute("alter table app.orders drop column amount")


def column_of_another_type(shop: Shop) -> None:
    shop.owner.execute("alter table app.orders alter amount type text")


def table_renamed(shop: Shop) -> None:
    shop.owner.execute("alter table app.orders rename to sold")
    shop.owner.execute("create view app.orders as select * from app.sold")
    shop.owner.execute(f"grant all on app.orders to {WRITER}")


def schema_renamed(shop: Shop) -> None:
    shop.database.execute("alter schema app rename to other")
    shop.database.execute("create schema app")
    shop.database.execute(
        f"grant usage on schema app to {WRITER}; grant usage on schema other to public"
    )
    shop.database.execute("create view app.orders as select * from other.orders")
    shop.database.execute(f"grant all on app.orders to {WRITER}")


def attached_to_a_partitioned_table(shop: Shop) -> None:
    shop.owner.execute(
        "create table app.parent (like app.orders including all) partition by list (id)"
    )
    shop.owner.execute("alter table app.parent attach partition app.orders default")


def endpoint_dropped(shop: Shop) -> None:
    shop.owner.execute("select net.drop_endpoint('crm')")


def mode_off(shop: Shop) -> None:
    shop.database.execute("select net.configure('mode', 'off')")


def too_many_pending(shop: Shop) -> None:
    shop.database.execute("select net.configure('max_pending', '1')")
    shop.owner.execute("select net.http_get('http://127.0.0.1:1025/')")


def disabled(shop: Shop) -> None:
    shop.owner.execute("select net.disable_webhook('hook')")


CHANGES = [
    rights_revoked,
    inner_rights_revoked,
    column_renamed,
    key_dropped,
    other_column_dropped,
    column_of_another_type,
    table_renamed,
    schema_renamed,
    attached_to_a_partitioned_table,
    endpoint_dropped,
    mode_off,
    too_many_pending,
    disabled,
]


@pytest.mark.parametrize("per", ["row", "statement"])
@pytest.mark.parametrize("change", CHANGES)
def test_the_statement_succeeds(shop: Shop, change: Callable[[Shop], None], per: str) -> None:
    shop.owner.execute("select net.set_endpoint('crm', 'http://127.0.0.1:1025/')")
    shop.webhook(endpoint="crm", per=per, columns=["status"], options={"changes": True})
    change(shop)
    shop.write("insert into app.orders (status) values ('new')") if change is key_dropped else (
        shop.write("insert into app.orders values (1, 'new')")
    )
    shop.write("update app.orders set status = 'paid'")
    assert shop.write("delete from app.orders").rowcount == 1


@pytest.mark.parametrize("change", CHANGES)
def test_the_statement_succeeds_in_order_with_a_function(
    shop: Shop, change: Callable[[Shop], None]
) -> None:
    shop.owner.execute(
        "create function app.shape(event jsonb) returns jsonb language sql immutable"
        " as 'select event'"
    )
    shop.owner.execute("select net.set_endpoint('crm', 'http://127.0.0.1:1025/')")
    shop.webhook(endpoint="crm", options={"payload": "app.shape", "ordering": True})
    change(shop)
    shop.write("insert into app.orders (status) values ('new')") if change is key_dropped else (
        shop.write("insert into app.orders values (1, 'new')")
    )
    shop.write("update app.orders set status = 'paid'")
    assert shop.write("delete from app.orders").rowcount == 1


def test_what_became_of_it_can_be_read(shop: Shop) -> None:
    shop.owner.execute("select net.set_endpoint('crm', 'http://127.0.0.1:1025/')")
    shop.webhook(endpoint="crm", columns=["status"])
    assert fault(shop) is None
    shop.owner.execute("select net.drop_endpoint('crm')")
    assert "endpoint is not set" in str(fault(shop))
    shop.owner.execute("select net.set_endpoint('crm', 'http://127.0.0.1:1025/')")
    shop.owner.execute("alter table app.orders rename status to state")
    assert "another name" in str(fault(shop))
    shop.owner.execute("alter table app.orders disable trigger user")
    assert "disabled" in str(fault(shop))
    shop.owner.execute("alter table app.orders drop column state cascade")
    assert "dropped" in str(fault(shop))
    shop.owner.execute("drop table app.orders")
    assert fault(shop) == "The table was dropped."
    assert shop.owner.execute("select net.drop_webhook('hook')").fetchone() == (True,)
    assert shop.database.value("select count(*) from pg_proc where proname = 'pgnet_hook'") == 0


def test_rights_are_missed(shop: Shop) -> None:
    shop.webhook()
    shop.database.execute("revoke usage on schema net from public")
    shop.write("insert into app.orders values (1)")
    assert shop.requests("id") == []
    assert "may not use" in str(fault(shop))


def test_a_row_that_is_too_long(shop: Shop) -> None:
    shop.webhook(options={"max_bytes": 2000})
    shop.write("insert into app.orders values (1, repeat('x', 3000)), (2, 'short')")
    bodies = shop.requests("body is null, options ->> 'fault', context -> 'key'")
    assert [body[0] for body in bodies] == [True, False]
    assert "max_bytes of the webhook (2000)" in bodies[0][1]
    assert bodies[1][1:] == (None, {"id": 2})
    # What is compressed is as long as it was before.
    shop.queued()
    shop.write("insert into app.orders values (3, repeat('x', 100000))")
    assert shop.requests("body is null") == [(True,)]


def test_a_condition_of_a_statement_that_fails(shop: Shop) -> None:
    shop.webhook(per="statement", events=["INSERT"], condition="10 / new.id > 1")
    shop.write("insert into app.orders values (0), (1)")
    ((body, options),) = shop.requests("body, options")
    assert body is None
    assert "division by zero" in options["fault"]


def test_the_extension_is_dropped(shop: Shop) -> None:
    """The triggers go with it."""
    shop.table("parted", "id integer", "partition by range (id)")
    shop.owner.execute("create table app.parted_1 partition of app.parted default")
    shop.webhook()
    shop.webhook("more", per="statement")
    shop.webhook("parted", "app.parted")
    shop.database.execute("drop extension pgnet")
    shop.write("insert into app.orders values (1)")
    shop.write("insert into app.parted values (1)")
    assert shop.database.value("select count(*) from pg_proc where proname like 'pgnet%%'") == 0


def test_without_the_package(shop: Shop) -> None:
    """A session that cannot import the package queues the request all the same."""
    shop.webhook()
    shop.database.execute(
        "create function app.break() returns void language plpython3u as"
        " $$ import sys; sys.modules['pgnet'] = None; sys.modules['pgnet.sql_v1'] = None $$"
    )
    shop.write("select app.break()")
    shop.write("insert into app.orders values (1)")
    assert len(shop.queued()) == 1


def test_one_transaction_id_for_all_rows(shop: Shop) -> None:
    shop.webhook("rows", options={"changes": True})
    shop.webhook("all", per="statement")
    first = shop.database.value("select pg_current_xact_id()::text::bigint")
    shop.write("insert into app.orders select n from generate_series(1, 500) n")
    shop.write("update app.orders set status = 'paid'")
    assert shop.database.value("select pg_current_xact_id()::text::bigint") == first + 3
    assert len(shop.requests("id")) == 1000 + 2


# ---- hostile roles


def test_only_the_owner_of_a_table(shop: Shop) -> None:
    """A superuser cannot either: the table's owner could have its function run code."""
    shop.database.execute(f"grant trigger, select on app.orders to {HOSTILE}")
    shop.database.execute(f"grant create on schema app to {HOSTILE}")
    hostile = shop.database.connect(HOSTILE)
    for connection in (hostile, shop.database.connection):
        with pytest.raises(errors.InsufficientPrivilege, match="not the owner"):
            create(connection, "mine")
    shop.database.execute(f"grant {OWNER} to {HOSTILE}")
    try:
        with pytest.raises(errors.InsufficientPrivilege, match="not the owner"):
            create(hostile, "mine")
    finally:
        shop.database.execute(f"revoke {OWNER} from {HOSTILE}")


def test_the_function_is_the_owners_alone(shop: Shop) -> None:
    """Nobody else can attach it to a table of his own, and have it send what he likes."""
    shop.webhook()
    hostile = shop.database.connect(HOSTILE)
    hostile.execute("create temporary table bait (id integer)")
    with pytest.raises(errors.InsufficientPrivilege, match="pgnet_hook"):
        hostile.execute(
            "create trigger bite after insert on bait for each row"
            " execute function app.pgnet_hook()"
        )


TRAP = (
    "create table app.caught (who text);"
    "grant insert on app.caught to public;"
    "create type app.bait as enum ('a');"
    "create function app.trap(b app.bait) returns json language plpgsql as $$ begin"
    " insert into app.caught values (current_user); return 'null'; end $$;"
    "create cast (app.bait as json) with function app.trap(app.bait) as assignment;"
)


def test_two_roles_give_the_same_name(shop: Shop) -> None:
    """Both functions stand in the same schema."""
    shop.webhook()
    shop.database.execute(f"grant create on schema app to {HOSTILE}")
    hostile = shop.database.connect(HOSTILE)
    hostile.execute("create table app.other (id integer primary key)")
    create(hostile, "hook", "app.other")
    shop.write("insert into app.orders values (1)")
    hostile.execute("insert into app.other values (2)")
    assert [body["record"]["id"] for body in shop.queued()] == [1, 2]
    shop.owner.execute("select net.drop_webhook('hook')")
    hostile.execute("insert into app.other values (3)")
    hostile.execute("select net.drop_webhook('hook')")
    assert [body["record"]["id"] for body in shop.queued()] == [3]
    made = "select count(*) from pg_proc where proname like 'pgnet%hook%' and prorettype = 2279"
    assert shop.database.value(f"{made} and pronamespace = 'app'::regnamespace") == 0


def test_a_table_given_to_another_owner(shop: Shop) -> None:
    """A cast of the new owner's would run with the rights of the former one."""
    shop.database.execute("create table app.given (id integer)")
    create(shop.database.connection, "given", "app.given")
    with pytest.raises(errors.InsufficientPrivilege, match="another owner"):
        shop.database.execute(f"alter table app.given owner to {OWNER}")
    assert shop.database.value("select tableowner from pg_tables where tablename = 'given'") == (
        "postgres"
    )
    shop.database.execute("select net.drop_webhook('given')")
    shop.database.execute(f"alter table app.given owner to {OWNER}")
    shop.webhook("given", "app.given")
    # The trap catches its own role.
    shop.owner.execute(TRAP)
    shop.owner.execute("alter table app.given add column b app.bait")
    shop.database.execute("insert into app.given values (1, 'a')")
    assert set(shop.database.rows("select who from app.caught")) == {(OWNER,)}


def test_objects_of_a_hostile_writer(shop: Shop) -> None:
    """Operators, functions and temporary tables of the writer's are not taken for ours."""
    shop.webhook("rows", columns=["status"], options={"changes": True, "ordering": True})
    shop.webhook("all", per="statement", events=["UPDATE"], condition="new.status = 'paid'")
    hostile = shop.database.connect(HOSTILE)
    shop.database.execute(f"create schema bad authorization {HOSTILE}")
    hostile.execute(
        "create table bad.caught (who text);"
        "create function bad.row_to_json(record) returns json language plpgsql as"
        " $$ begin insert into bad.caught values (current_user); return '1'; end $$;"
        "create function bad.grab(text, text) returns boolean language plpgsql as"
        " $$ begin insert into bad.caught values (current_user); return true; end $$;"
        "create operator bad.= (leftarg = text, rightarg = text, function = bad.grab);"
        "create operator bad.|| (leftarg = text, rightarg = text, function = bad.grab);"
        "create temporary table pg_class (oid oid, relname name);"
        "create temporary table pgnet_new (id integer);"
        "set search_path = bad, pg_temp, pg_catalog"
    )
    hostile.execute("insert into app.orders values (1, 'new')")
    hostile.execute("update app.orders set status = 'paid'")
    assert shop.database.rows("select who from bad.caught") == []
    assert len(shop.queued()) == 3


def ids_sent(shop: Shop) -> list[int]:
    """The ids of the rows that wait to be sent, by a webhook of either form."""
    records = [body.get("records") or [body["record"]] for body in shop.queued()]
    return [record["id"] for rows in records for record in rows]


@pytest.mark.parametrize("per", ["row", "statement"])
@pytest.mark.parametrize("column", ["mood", "mood[]", "inner_mood", "both"])
def test_a_cast_to_json_that_another_role_makes(shop: Shop, column: str, per: str) -> None:
    """The type's owner need not be the table's: no row is made JSON by code of the type's owner."""
    shop.database.execute(f"create schema bad authorization {HOSTILE}")
    shop.database.execute("grant usage on schema bad to public")
    hostile = shop.database.connect(HOSTILE)
    hostile.execute(
        "create table bad.caught (who text); grant all on bad.caught to public;"
        "create type bad.mood as enum ('well');"
        "create domain bad.inner_mood as bad.mood; create type bad.both as (m bad.mood[]);"
        "create function bad.steal(bad.mood) returns json language plpgsql as"
        " $$ begin insert into bad.caught values (current_user); return '1'; end $$"
    )
    shop.table("feelings", f"id integer primary key, m bad.{column}")
    shop.webhook("feelings", "app.feelings", per=per)
    shop.write("insert into app.feelings values (1)")
    assert ids_sent(shop) == [1]
    hostile.execute("create cast (bad.mood as json) with function bad.steal(bad.mood)")
    value = {"mood[]": "{well}", "both": "({well})"}.get(column, "well")
    shop.write("insert into app.feelings values (2, %s)", value)
    shop.write("update app.feelings set id = 3 where id = 2")
    with pytest.raises(errors.InsufficientPrivilege, match=f"cast to json.*{HOSTILE}"):
        shop.owner.execute("call net.test_webhook('feelings')")
    assert shop.database.rows("select who from bad.caught") == []
    with shop.database.worker():
        shop.database.wait_for("select count(*) = 2 from net._http_response")
    messages = shop.database.rows("select state::text, error_msg from net._http_response")
    assert {state for state, _ in messages} == {"failed"}
    assert all(f"cast to json that the role {HOSTILE} has made" in words for _, words in messages)
    # A superuser's cast is trusted: extensions have such.
    shop.database.execute("alter function bad.steal(bad.mood) owner to postgres")
    shop.write("insert into app.feelings values (4, %s)", value)
    assert ids_sent(shop) == [4]


def test_a_column_of_another_roles_type_that_comes_later(shop: Shop) -> None:
    shop.database.execute(f"create schema bad authorization {HOSTILE}")
    shop.database.execute("grant usage on schema bad to public")
    shop.database.connect(HOSTILE).execute("create type bad.mood as enum ('well')")
    shop.owner.execute("create type app.mood as enum ('well')")
    shop.webhook()
    shop.owner.execute("alter table app.orders add own app.mood")
    with pytest.raises(errors.InsufficientPrivilege, match=f"belongs to another role, {HOSTILE}"):
        shop.owner.execute("alter table app.orders add foreign_one bad.mood")
    shop.owner.execute("select net.drop_webhook('hook')")
    shop.owner.execute("alter table app.orders add foreign_one bad.mood")
    shop.webhook()
    shop.owner.execute("alter table app.orders add another_one bad.mood")


def test_a_role_in_the_session_keeps_its_rights(shop: Shop) -> None:
    """The writer is who he was behind the statement, and the owner in no moment that he sees."""
    shop.webhook()
    with shop.writer.transaction():
        shop.write("insert into app.orders values (1)")
        assert shop.write("select current_user, current_setting('search_path')").fetchone() == (
            WRITER,
            '"$user", public',
        )


def test_the_rows_of_webhooks_are_ones_own(shop: Shop) -> None:
    shop.webhook(headers={"X-Key": "hunter2hunter2"})
    shop.owner.execute("select net.set_endpoint('crm', 'http://127.0.0.1:1025/')")
    hostile = shop.database.connect(HOSTILE)
    for view in ("net.webhooks", "net.webhook_deliveries", "net.endpoints", "pgnet.webhook"):
        assert hostile.execute(f"select * from {view}").fetchall() == []
    assert hostile.execute("update pgnet.webhook set disabled_since = now()").rowcount == 0
    for statement in (
        "insert into pgnet.webhook (owner, name, on_table, definition)"
        f" values ('{OWNER}', 'x', 'app.orders', '{{}}')",
        f"insert into pgnet.endpoint (owner, name, url) values ('{OWNER}', 'crm', 'http://a/')",
        "delete from pgnet.webhook",
        "delete from pgnet.webhook_state",
        "insert into pgnet.webhook_tally (owner, name, sent, failed, unsent)"
        " values ('pg_monitor', 'x', 1, 1, 1)",
        "lock table pgnet.webhook in share mode",
        "lock table pgnet.endpoint in row exclusive mode",
    ):
        with pytest.raises(errors.InsufficientPrivilege), hostile.transaction():
            hostile.execute(statement)
    for call in ("net.drop_webhook('hook')", "net.drop_endpoint('crm')"):
        assert hostile.execute(f"select {call}").fetchone() == (False,)
    for call in ("net.enable_webhook('hook')", "net.replay_webhook('hook')"):
        with pytest.raises(errors.UndefinedObject):
            hostile.execute(f"select {call}")
    with pytest.raises(errors.UndefinedObject):
        hostile.execute("call net.test_webhook('hook')")
    assert fault(shop) is None


def test_forged_rows_keep_nobody_from_anything(shop: Shop, httpd: str) -> None:
    """What a role writes into its own rows fails no view of the owner's, and no recording."""
    shop.webhook(url=f"{httpd}/ok")
    hostile = shop.database.connect(HOSTILE)
    for name, definition in enumerate(
        ("{}", "[]", '"x"', '{"events": 1}', '{"events": {}, "columns": 7}', '{"events": [1]}')
    ):
        hostile.execute(
            "insert into pgnet.webhook (name, on_table, definition) values (%s, 1, %s)",
            (str(name), definition),
        )
    hostile.execute(
        'update pgnet.webhook set backfill = \'{"sent": "many", "state": {"a": 1}}\','
        " on_table = 'pg_class'"
    )
    for context in (
        '{"webhook": null, "event": null}',
        '{"webhook": "0", "event": [], "rows": "x", "key": 1}',
        '{"webhook": {"a": 1}, "event": "e", "rows": 1e40}',
        '["webhook", "event"]',
    ):
        for options in ('{"webhook": "0"}', '["webhook"]', '{"webhook": {}, "endpoint": []}'):
            hostile.execute(
                "insert into net.http_request_queue (method, url, context, options)"
                " values ('GET', %s, %s, %s)",
                (f"{httpd}/ok", context, options),
            )
    hostile.execute("select net.wake()")
    shop.write("insert into app.orders values (1)")
    with shop.database.worker():
        shop.database.wait_for("select count(*) = 13 from net._http_response")
    assert (
        shop.database.value(
            "select count(*) from net._http_response where error_msg like '%%be recorded%%'"
        )
        == 0
    )
    shop.database.execute("select pgnet.judge_webhooks()")
    assert len(shop.database.rows("select * from net.webhooks")) == 7
    assert len(shop.database.rows("select * from net.webhook_deliveries")) >= 1
    assert shop.owner.execute("select sent, fault from net.webhooks").fetchall() == [(1, None)]


def test_a_role_that_may_not_send_makes_no_webhook(shop: Shop) -> None:
    shop.database.execute("revoke usage on schema net from public")
    with pytest.raises(errors.InsufficientPrivilege):
        shop.owner.execute(
            "insert into pgnet.webhook (name, on_table, definition)"
            " values ('x', 'app.orders', '{}')"
        )


def test_a_dump_restores_the_webhook(shop: Shop, database: Database) -> None:
    """The trigger, its function and its row are in a dump; the endpoint is not."""
    shop.owner.execute("select net.set_endpoint('crm', 'http://127.0.0.1:1025/')")
    shop.webhook(endpoint="crm", columns=["status"], condition="new.id > 0", events=["UPDATE"])
    database.cluster.run("pg_dump", "--file=dump.sql", f"--dbname={database.dsn()}")
    copy = database.cluster.create_database(extension=False)
    try:
        database.cluster.run(
            "psql", "--set=ON_ERROR_STOP=1", "--file=dump.sql", f"--dbname={copy.dsn()}"
        )
        assert copy.rows("select name, on_table::text, owner::text, fault from net.webhooks") == [
            ("hook", "app.orders", OWNER, "Its endpoint is not set: net.set_endpoint.")
        ]
        writer = copy.connect(WRITER)
        writer.execute("insert into app.orders values (1)")
        writer.execute("update app.orders set status = 'x'")
        assert copy.rows("select options ->> 'endpoint' from net.http_request_queue") == [("crm",)]
        owner = copy.connect(OWNER)
        assert owner.execute("select net.drop_webhook('hook')").fetchone() == (True,)
    finally:
        copy.drop()


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"name": "no name!"}, errors.InvalidParameterValue),
        ({"name": None}, errors.InvalidParameterValue),
        ({"on_table": None}, errors.NullValueNotAllowed),
        ({"on_table": "pg_class"}, errors.WrongObjectType),
        ({"url": "nowhere"}, errors.InvalidParameterValue),
        ({"url": "http://a/", "endpoint": "x"}, errors.InvalidParameterValue),
        ({"url": None}, errors.InvalidParameterValue),
        ({"endpoint": "nothere"}, errors.UndefinedObject),
        ({"events": ["TRUNCATE"]}, errors.InvalidParameterValue),
        ({"events": []}, errors.InvalidParameterValue),
        ({"events": None}, errors.InvalidParameterValue),
        ({"columns": ["none"]}, errors.UndefinedColumn),
        ({"columns": []}, errors.UndefinedColumn),
        ({"condition": "new.none = 1", "events": ["INSERT"]}, errors.UndefinedColumn),
        ({"condition": "old.id = 1", "events": ["INSERT"]}, errors.InvalidObjectDefinition),
        ({"condition": "new.status::int = 1", "events": ["INSERT"]}, errors.DataError),
        ({"per": "table"}, errors.InvalidParameterValue),
        ({"headers": {"Host": "a"}}, errors.InvalidParameterValue),
        ({"secret": "none"}, errors.InsufficientPrivilege),
        ({"retry": "forever"}, errors.InvalidParameterValue),
        ({"options": {"payload": "none"}}, errors.UndefinedFunction),
        ({"options": {"payload": "hasura"}, "per": "statement"}, errors.InvalidParameterValue),
        ({"options": {"colour": 1}}, errors.InvalidParameterValue),
        ({"options": {"max_bytes": 1}}, errors.InvalidParameterValue),
        ({"options": {"max_bytes": "x"}}, errors.InvalidParameterValue),
        ({"options": {"on_failure": "skip"}}, errors.InvalidParameterValue),
        ({"options": {"ordering": True}, "per": "statement"}, errors.InvalidParameterValue),
        ({"options": {"sign": ["none"]}}, errors.InsufficientPrivilege),
    ],
)
def test_arguments_that_cannot_be(
    shop: Shop, given: dict[str, object], error: type[psycopg.Error]
) -> None:
    shop.write("insert into app.orders values (1, 'text')")
    with pytest.raises(error):
        create(shop.owner, **({"name": "hook"} | given))  # type: ignore[arg-type]
    assert shop.database.value("select count(*) from pg_trigger where tgname like 'pgnet%%'") == 0
    assert shop.database.value("select count(*) from pg_proc where proname = 'pgnet_hook'") == 0


def test_a_condition_whose_function_others_may_not_execute(shop: Shop) -> None:
    shop.owner.execute("create function app.f() returns boolean language sql as 'select true'")
    shop.owner.execute("revoke execute on function app.f() from public")
    with pytest.raises(errors.InsufficientPrivilege, match=r"app\.f"):
        shop.webhook(condition="app.f()")


def test_a_payload_function_of_another_role(shop: Shop) -> None:
    shop.database.execute(f"grant create on schema app to {HOSTILE}")
    hostile = shop.database.connect(HOSTILE)
    hostile.execute(
        "create function app.theirs(event jsonb) returns jsonb language sql as 'select event'"
    )
    with pytest.raises(errors.InsufficientPrivilege, match="another role"):
        shop.webhook(options={"payload": "app.theirs"})


def test_replacing_and_dropping(shop: Shop) -> None:
    shop.table("items", "id integer")
    shop.webhook()
    with pytest.raises(errors.DuplicateObject):
        shop.webhook()
    shop.webhook(table="app.items", replace=True)
    shop.write("insert into app.orders values (1)")
    shop.write("insert into app.items values (1)")
    assert [event[0] for event in events(shop.queued())] == ["INSERT"]
    assert shop.owner.execute("select net.drop_webhook('hook')").fetchone() == (True,)
    assert shop.owner.execute("select net.drop_webhook('hook')").fetchone() == (False,)
    assert shop.owner.execute("select net.drop_webhook(null)").fetchone() == (False,)
    shop.write("insert into app.items values (1)")
    assert shop.queued() == []
    assert shop.database.rows("select * from net.webhooks") == []
    shop.webhook()
    shop.write("insert into app.orders values (2)")
    assert len(shop.queued()) == 1
