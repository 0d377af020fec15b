"""The rows that a table has already, sent a page after the other."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from psycopg import errors

from servers import httpd
from servers.shop import Shop
from servers.waiting import wait_until


def state(shop: Shop) -> Any:
    return shop.owner.execute("select backfill, backfilled from net.webhooks").fetchone()


def done(shop: Shop) -> None:
    wait_until(lambda: state(shop), lambda s: s[0] == "done", "the backfill is done", timeout=30)


def bodies(witness: httpd.Running) -> list[Any]:
    return [json.loads(request["body"]) for request in witness.record()]


def fill(shop: Shop, number: int = 25) -> None:
    shop.write("insert into app.orders select n, 'old', n from generate_series(1, %s) n", number)


@pytest.mark.parametrize("per", ["row", "statement"])
def test_all_rows_in_pages(shop: Shop, witness: httpd.Running, per: str) -> None:
    fill(shop)
    shop.webhook(url=f"{witness.url}/ok", per=per, events=["UPDATE"])
    with shop.database.worker():
        shop.owner.execute("select net.backfill_webhook('hook', batch => 10)")
        assert state(shop) == ("running", 10)
        done(shop)
    assert state(shop) == ("done", 25)
    sent = bodies(witness)
    assert all(body["type"] == "INSERT" and body["read"] is True for body in sent)
    if per == "row":
        assert sorted(body["record"]["id"] for body in sent) == list(range(1, 26))
    else:
        assert [len(body["records"]) for body in sent] == [10, 10, 5]
        assert [r["id"] for body in sent for r in body["records"]] == list(range(1, 26))
    events = (
        "select count(*) from net.webhook_deliveries where event = 'READ' and owner = %s::regrole"
    )
    assert shop.database.value(events, "shop_owner") == (25 if per == "row" else 3)


def test_some_rows_of_a_key_of_two_columns(shop: Shop, witness: httpd.Running) -> None:
    shop.table("pairs", "a text, b date, c integer, primary key (b, a)")
    shop.write(
        "insert into app.pairs select chr(65 + n), date '2026-01-01' + n % 3, n"
        " from generate_series(0, 19) n"
    )
    shop.webhook(table="app.pairs", url=f"{witness.url}/ok", options={"ordering": True})
    with shop.database.worker():
        shop.owner.execute("select net.backfill_webhook('hook', 'c >= 10', 3)")
        done(shop)
    assert sorted(body["record"]["c"] for body in bodies(witness)) == list(range(10, 20))
    keys = shop.database.value(
        "select key from net.webhook_deliveries where webhook = 'hook' order by request_id limit 1"
    )
    assert set(keys) == {"a", "b"}


def test_a_rate(shop: Shop, witness: httpd.Running) -> None:
    fill(shop, 10)
    shop.webhook(url=f"{witness.url}/ok")
    with shop.database.worker():
        began = time.monotonic()
        shop.owner.execute("select net.backfill_webhook('hook', batch => 5, rate => '5/second')")
        done(shop)
    assert time.monotonic() - began > 1.5


def test_an_empty_table_and_a_second_one(shop: Shop) -> None:
    shop.webhook()
    shop.owner.execute("select net.backfill_webhook('hook')")
    assert state(shop) == ("done", 0)
    fill(shop, 1)
    shop.owner.execute("select net.backfill_webhook('hook')")
    with pytest.raises(errors.ObjectInUse):
        shop.owner.execute("select net.backfill_webhook('hook')")


def test_it_stops_and_goes_on(shop: Shop, witness: httpd.Running) -> None:
    fill(shop)
    shop.webhook(url=f"{witness.url}/ok", events=["UPDATE"])
    shop.owner.execute("select net.backfill_webhook('hook', batch => 5)")
    shop.owner.execute("select net.disable_webhook('hook')")
    with shop.database.worker():
        wait_until(lambda: state(shop), lambda s: s == ("stopped", 5), "it has stopped")
        with pytest.raises(errors.ObjectNotInPrerequisiteState):
            shop.owner.execute("select net.backfill_webhook('hook')")
        assert shop.owner.execute("select net.enable_webhook('hook')").fetchone() == (5,)
        done(shop)
        sent = wait_until(lambda: bodies(witness), lambda b: len(b) >= 25, "all rows")
    assert sorted(body["record"]["id"] for body in sent) == list(range(1, 26))


def test_a_payload_function_that_passes_over_rows(shop: Shop, witness: httpd.Running) -> None:
    fill(shop)
    shop.owner.execute(
        "create function app.late(event jsonb) returns jsonb language sql immutable as"
        " $$ select case when (event #>> '{record,id}')::int > 20 then event end $$"
    )
    shop.webhook(url=f"{witness.url}/ok", options={"payload": "app.late"}, events=["UPDATE"])
    with shop.database.worker():
        shop.owner.execute("select net.backfill_webhook('hook', batch => 4)")
        done(shop)
    assert state(shop) == ("done", 25)
    assert sorted(body["record"]["id"] for body in bodies(witness)) == [21, 22, 23, 24, 25]


def test_a_dropped_webhook_sends_no_further_page(shop: Shop, witness: httpd.Running) -> None:
    fill(shop)
    shop.webhook(url=f"{witness.url}/ok", events=["UPDATE"])
    shop.owner.execute("select net.backfill_webhook('hook', batch => 5)")
    shop.owner.execute("select net.drop_webhook('hook')")
    with shop.database.worker():
        shop.database.wait_for("select count(*) = 5 from net._http_response")
        shop.owner.execute("select net.http_get(%s)", (f"{witness.url}/last",))
        shop.database.wait_for("select count(*) = 6 from net._http_response")
    assert len(witness.record()) == 6


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("'none'", errors.UndefinedObject),
        ("null", errors.UndefinedObject),
        ("'hook', batch => 0", errors.InvalidParameterValue),
        ("'hook', batch => null", errors.InvalidParameterValue),
        ("'hook', rate => '5'' a day'", errors.InvalidParameterValue),
        ("'hook', rate => '0/second'", errors.InvalidParameterValue),
        ("'hook', condition => 'none = 1'", errors.UndefinedColumn),
    ],
)
def test_arguments_that_cannot_be(shop: Shop, arguments: str, error: type[Exception]) -> None:
    fill(shop, 1)
    shop.webhook()
    with pytest.raises(error):
        shop.owner.execute(f"select net.backfill_webhook({arguments})")
