"""What webhooks send: events, columns, conditions, shapes; row by row, and by statement."""

from __future__ import annotations

from typing import Any

import pytest

from servers.shop import OWNER, WRITER, Shop, events

ROW = {"id": 1, "status": "new", "amount": 2.50, "note": None}


def test_each_event(shop: Shop) -> None:
    shop.webhook()
    shop.write("insert into app.orders values (1, 'new', 2.50)")
    shop.write("update app.orders set status = 'paid'")
    shop.write("delete from app.orders")
    bodies = shop.queued()
    paid = ROW | {"status": "paid"}
    assert events(bodies) == [
        ("INSERT", ROW, None),
        ("UPDATE", paid, ROW),
        ("DELETE", None, paid),
    ]
    assert {(body["schema"], body["table"]) for body in bodies} == {("app", "orders")}
    assert set(bodies[0]) == {"type", "table", "schema", "record", "old_record"}


def test_a_request_is_the_owners_and_says_what_it_is_about(shop: Shop) -> None:
    shop.webhook(headers={"X-Shop": "one"}, options={"timeout_milliseconds": 5000})
    shop.write("insert into app.orders values (1, 'new')")
    assert shop.requests(
        "requested_by::text, method::text, url, headers, timeout_milliseconds, context, options"
    ) == [
        (
            OWNER,
            "POST",
            "http://127.0.0.1:1025/hook",
            {"X-Shop": "one", "Content-Type": "application/json"},
            5000,
            {"webhook": "hook", "event": "INSERT", "key": {"id": 1}},
            {"webhook": "hook", "retry": "webhook"},
        )
    ]


def test_a_transaction_that_is_rolled_back_sends_nothing(shop: Shop) -> None:
    shop.webhook()
    with shop.writer.transaction(force_rollback=True):
        shop.write("insert into app.orders values (1)")
    assert shop.queued() == []


@pytest.mark.parametrize("per", ["row", "statement"])
def test_some_events_only(shop: Shop, per: str) -> None:
    shop.webhook(events=["update", "DELETE"], per=per)
    shop.write("insert into app.orders values (1, 'new')")
    assert shop.queued() == []
    shop.write("update app.orders set status = 'paid'")
    shop.write("delete from app.orders")
    assert [body["type"] for body in shop.queued()] == ["UPDATE", "DELETE"]


@pytest.mark.parametrize("per", ["row", "statement"])
def test_columns(shop: Shop, per: str) -> None:
    """A value that a trigger of the table changes counts too."""
    shop.webhook(columns=["status", "note"], per=per)
    shop.write("insert into app.orders values (1, 'new', 1), (2, 'new', 1)")
    assert len(shop.queued()) == (2 if per == "row" else 1)
    shop.write("update app.orders set amount = amount + 1, status = status")
    assert shop.queued() == []
    shop.write("update app.orders set status = 'paid' where id = 2")
    (body,) = shop.queued()
    assert (body["record"] if per == "row" else body["records"][0])["id"] == 2
    shop.owner.execute(
        "create function app.stamp() returns trigger language plpgsql as"
        " $$ begin new.note := '{\"a\": 1}'; return new; end $$"
    )
    shop.owner.execute(
        "create trigger stamp before update on app.orders for each row execute function app.stamp()"
    )
    shop.write("update app.orders set amount = 0 where id = 1")
    assert len(shop.queued()) == 1


@pytest.mark.parametrize("per", ["row", "statement"])
def test_a_condition(shop: Shop, per: str) -> None:
    shop.webhook(
        events=["UPDATE"],
        per=per,
        condition="new.status = 'paid' and old.status is distinct from 'paid'",
    )
    shop.write("insert into app.orders values (1, 'new'), (2, 'new'), (3, 'paid')")
    shop.write("update app.orders set status = 'late'")
    assert shop.queued() == []
    shop.write("update app.orders set status = 'paid' where id > 1")
    bodies = shop.queued()
    sent = (
        [body["record"]["id"] for body in bodies]
        if per == "row"
        else [r["id"] for b in bodies for r in b["records"]]
    )
    assert sorted(sent) == [2, 3]


@pytest.mark.parametrize("per", ["row", "statement"])
def test_a_condition_by_a_function_of_the_callers_path(shop: Shop, per: str) -> None:
    """The condition means what it meant when the webhook was made, whoever writes."""
    shop.owner.execute(
        "create function app.is_big(n numeric) returns boolean language sql immutable"
        " as 'select n > 100'"
    )
    shop.owner.execute("set search_path = app")
    shop.webhook(table="orders", events=["INSERT"], per=per, condition="is_big(new.amount)")
    shop.write("set search_path = pg_catalog")
    shop.write("insert into app.orders values (1, 'a', 1), (2, 'b', 101)")
    assert len(shop.queued()) == 1


def test_changes(shop: Shop) -> None:
    shop.webhook(options={"changes": True})
    shop.write("insert into app.orders values (1, 'new', 1)")
    shop.write("update app.orders set status = 'paid', amount = null")
    inserted, updated = shop.queued()
    assert "changes" not in inserted
    assert updated["changes"] == {"status": "new", "amount": 1}


def test_hasura(shop: Shop) -> None:
    shop.webhook(options={"payload": "hasura"})
    shop.write("insert into app.orders values (1, 'new', 2.50)")
    shop.write("update app.orders set status = 'paid'")
    first, second = shop.queued()
    assert first["event"]["op"] == "INSERT"
    assert first["event"]["data"] == {"old": None, "new": ROW}
    assert second["event"]["data"] == {"old": ROW, "new": ROW | {"status": "paid"}}
    assert first["table"] == {"schema": "app", "name": "orders"}
    assert first["trigger"] == {"name": "hook"}
    assert first["id"] != second["id"]
    assert set(first) == {"id", "created_at", "trigger", "table", "event", "delivery_info"}


def test_sequin_by_row_and_by_statement(shop: Shop) -> None:
    shop.webhook("rows", options={"payload": "sequin"})
    shop.webhook("all", options={"payload": "sequin"}, per="statement")
    shop.write("insert into app.orders values (1, 'new', 2.50), (2, 'new', 2.50)")
    shop.write("update app.orders set status = 'paid' where id = 1")
    shop.write("delete from app.orders where id = 1")
    bodies = shop.queued()
    single = [body for body in bodies if "data" not in body]
    batches = [body["data"] for body in bodies if "data" in body]
    assert [(m["action"], m["record"]["id"], m["changes"]) for m in single] == [
        ("insert", 1, None),
        ("insert", 2, None),
        ("update", 1, {"status": "new"}),
        ("delete", 1, None),
    ]
    assert single[0]["metadata"]["table_schema"] == "app"
    assert single[0]["metadata"]["table_name"] == "orders"
    assert [[(m["action"], m["record"]["id"], m["changes"]) for m in b] for b in batches] == [
        [("insert", 1, None), ("insert", 2, None)],
        [("update", 1, {"status": "new"})],
        [("delete", 1, None)],
    ]


SHAPE = (
    "create function app.shape(event jsonb) returns jsonb language sql immutable set search_path"
    " from current as $$ select case when event #>> '{record,id}' is distinct from '7'"
    " then jsonb_build_object('what', event ->> 'type', 'rows', event -> 'records') end $$"
)


@pytest.mark.parametrize("per", ["row", "statement"])
def test_a_payload_function(shop: Shop, per: str) -> None:
    shop.owner.execute(SHAPE)
    shop.owner.execute("set search_path = app, public")
    shop.webhook(options={"payload": "shape"}, per=per)
    shop.write("insert into app.orders values (1)")
    (body,) = shop.queued()
    assert body["what"] == "INSERT"
    assert body["rows"] == (None if per == "row" else [{**ROW, "status": None, "amount": None}])


def test_a_payload_function_that_gives_null_sends_nothing(shop: Shop) -> None:
    shop.owner.execute(SHAPE)
    shop.webhook(options={"payload": "app.shape"})
    shop.write("insert into app.orders values (7), (8)")
    assert len(shop.queued()) == 1


@pytest.mark.parametrize("per", ["row", "statement"])
def test_a_payload_function_that_fails(shop: Shop, per: str) -> None:
    """The statement succeeds, and the request says why it was not sent."""
    shop.owner.execute(
        "create function app.bad(event jsonb) returns jsonb language sql immutable"
        " as 'select to_jsonb(1 / 0)'"
    )
    shop.webhook(options={"payload": "app.bad"}, per=per)
    shop.write("insert into app.orders values (1)")
    ((body, options),) = shop.requests("body, options")
    assert body is None
    assert options["fault"] == "The payload function app.bad has failed: division by zero"


def test_a_statement_with_all_its_rows(shop: Shop) -> None:
    shop.webhook(per="statement", options={"changes": True})
    shop.write("insert into app.orders select n, 'new', n from generate_series(1, 100) n")
    shop.write("update app.orders set status = 'paid' where id <= 3")
    shop.write("delete from app.orders where id > 98")
    shop.write("delete from app.orders where id > 98")
    inserted, updated, deleted = shop.queued()
    assert [row["id"] for row in inserted["records"]] == list(range(1, 101))
    assert inserted["old_records"] is None
    assert [row["status"] for row in updated["records"]] == ["paid"] * 3
    assert [row["status"] for row in updated["old_records"]] == ["new"] * 3
    pairs = zip(updated["records"], updated["old_records"], strict=True)
    assert all(new["id"] == old["id"] for new, old in pairs)
    assert updated["changes"] == [{"status": "new"}] * 3
    assert deleted["records"] is None
    assert sorted(row["id"] for row in deleted["old_records"]) == [99, 100]


def test_a_statement_is_split_at_a_size(shop: Shop) -> None:
    shop.webhook(per="statement", options={"max_bytes": 10000})
    shop.write("insert into app.orders select n, repeat('x', 900) from generate_series(1, 50) n")
    rows = [row[0]["rows"] for row in shop.requests("context")]
    assert sum(rows) == 50
    assert len(rows) >= 4
    bodies = shop.queued()
    assert [r["id"] for body in bodies for r in body["records"]] == list(range(1, 51))


def test_on_conflict_merge_and_copy(shop: Shop) -> None:
    shop.webhook("rows")
    shop.webhook("all", per="statement")
    shop.write("insert into app.orders values (1, 'a'), (2, 'b')")
    shop.queued()
    shop.write(
        "insert into app.orders values (1, 'c'), (3, 'd')"
        " on conflict (id) do update set status = excluded.status"
    )
    bodies = shop.queued()
    assert sorted(e[0] for e in events([b for b in bodies if "record" in b])) == [
        "INSERT",
        "UPDATE",
    ]
    by_statement = {b["type"]: [r["id"] for r in b["records"]] for b in bodies if "records" in b}
    assert by_statement == {"INSERT": [3], "UPDATE": [1]}
    with shop.writer.cursor().copy("copy app.orders (id) from stdin") as copy:
        copy.write("7\n8\n")
    assert len(shop.queued()) == 3


def parted(shop: Shop) -> None:
    shop.table("events", "id integer, day date, primary key (id, day)", "partition by range (day)")
    shop.owner.execute(
        "create table app.events_1 partition of app.events"
        " for values from ('2026-01-01') to ('2026-02-01')"
    )
    shop.owner.execute("create table app.events_2 partition of app.events default")


@pytest.mark.parametrize("per", ["row", "statement"])
def test_a_partitioned_table(shop: Shop, per: str) -> None:
    """The name is that of the table, not of its partition; a new partition sends, too."""
    parted(shop)
    shop.webhook(table="app.events", per=per)
    shop.owner.execute(
        "create table app.events_3 partition of app.events"
        " for values from ('2027-01-01') to ('2027-02-01')"
    )
    shop.write("insert into app.events values (1, '2026-01-05'), (2, '2026-03-05')")
    shop.write("insert into app.events values (3, '2027-01-05')")
    bodies = shop.queued()
    assert len(bodies) == (3 if per == "row" else 2)
    assert {(body["schema"], body["table"]) for body in bodies} == {("app", "events")}
    shop.write("update app.events set day = '2026-03-06' where id = 1")
    assert shop.queued() != []


def test_ordering_keys(shop: Shop) -> None:
    shop.table("pairs", "a integer, b text, c integer, primary key (a, b)")
    shop.webhook("pairs", "app.pairs", options={"ordering": True, "on_failure": "skip"})
    shop.write("insert into app.pairs values (1, 'x', 1), (1, %s, 1)", "é" * 300)
    shop.write("update app.pairs set c = 2 where b = 'x'")
    keys = shop.database.rows("select ordering_key from pgnet.flow order by request_id")
    assert keys[0] == keys[2] == ("pairs 1,x",)
    assert keys[1][0].startswith("pairs ")
    assert len(keys[1][0]) < 100
    options = [row[0] for row in shop.requests("options")]
    assert options[0]["on_failure"] == "skip"
    assert [o["ordering_key"] for o in options] == [key for (key,) in keys]
    assert shop.requests("held") == [(True,)] * 3


def test_two_webhooks_of_two_tables(shop: Shop) -> None:
    shop.table("items", "id integer")
    shop.webhook("one")
    shop.webhook("two", "app.items")
    shop.write("insert into app.items values (5)")
    assert shop.requests("context") == [({"webhook": "two", "event": "INSERT", "key": None},)]


def test_values_as_json(shop: Shop) -> None:
    """What is no JSON of itself stands as text, and json columns stand as they are."""
    shop.table("kinds", "f float8, n numeric, t timestamptz, j json, b bytea, a int[], r int4range")
    shop.webhook("kinds", "app.kinds")
    note = '{"nul": "\\u0000", "half": "\\ud800"}'
    shop.write(
        "insert into app.kinds values ('inf', 'NaN', 'infinity', %s, '\\x00ff', '{1,2}', '[1,3)')",
        note,
    )
    ((body,),) = shop.requests("convert_from(body, 'UTF8')")
    assert note in body
    (sent,) = shop.queued()
    record: dict[str, Any] = sent["record"]
    del record["j"]
    assert record == {
        "f": "Infinity",
        "n": "NaN",
        "t": "infinity",
        "b": "\\x00ff",
        "a": [1, 2],
        "r": "[1,3)",
    }


def test_a_writer_needs_no_right_on_pgnet(shop: Shop) -> None:
    shop.webhook()
    shop.database.execute("revoke usage on schema net, pgnet from public")
    shop.database.execute(f"grant usage on schema net, pgnet to {OWNER}")
    shop.write("insert into app.orders values (1)")
    assert shop.requests("requested_by::text") == [(OWNER,)]
    assert not shop.database.value("select has_schema_privilege(%s, 'net', 'usage')", WRITER)
