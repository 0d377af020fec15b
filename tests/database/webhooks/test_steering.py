"""Counts, what can be seen, samples; webhooks that are disabled and enabled; sending again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from psycopg import errors

from servers import httpd
from servers.cluster import Database
from servers.shop import Shop
from servers.waiting import wait_until


def seen(shop: Shop, columns: str, name: str = "hook") -> tuple[Any, ...]:
    row = shop.owner.execute(
        f"select {columns} from net.webhooks where name = %s", (name,)
    ).fetchone()
    assert row is not None
    return tuple(row)


def bodies(witness: httpd.Running, number: int) -> list[Any]:
    record = wait_until(witness.record, lambda r: len(r) >= number, f"{number} requests")
    return [json.loads(r["body"]) for r in record]


def ended(database: Database, number: int) -> None:
    database.wait_for("select count(*) >= %s from net._http_response", number)


def test_counts(shop: Shop, witness: httpd.Running) -> None:
    shop.webhook("good", url=f"{witness.url}/ok")
    shop.webhook("bad", url=f"{witness.url}/status/500", retry="none", events=["UPDATE"])
    shop.write("insert into app.orders select n from generate_series(1, 20) n")
    assert seen(shop, "sent, failed, waiting, p50_ms", "good") == (0, 0, 20, None)
    with shop.database.worker():
        ended(shop.database, 20)
        shop.write("update app.orders set status = 'x' where id <= 3")
        ended(shop.database, 26)
    assert seen(shop, "sent, failed, unsent, waiting, last_status, last_error", "good") == (
        (23, 0, 0, 0, 200, None)
    )
    assert seen(shop, "sent, failed, waiting, last_status, last_error, fault", "bad") == (
        (0, 3, 0, 500, "Status 500", None)
    )
    assert 0 < seen(shop, "p50_ms", "good")[0] < 10000
    # Summed up, they are the same.
    shop.database.execute("select pgnet.judge_webhooks()")
    assert shop.database.value("select count(*) from pgnet.webhook_tally") == 0
    assert seen(shop, "sent, failed, last_status", "good") == (23, 0, 200)
    assert seen(shop, "failed, last_error, failing_since is not null", "bad") == (
        3,
        "Status 500",
        True,
    )
    assert 0 < seen(shop, "p50_ms", "good")[0] < 10000
    shop.database.execute("select pgnet.judge_webhooks()")
    assert seen(shop, "sent, failed, last_status", "good") == (23, 0, 200)


def test_deliveries(shop: Shop, witness: httpd.Running) -> None:
    shop.webhook("rows", url=f"{witness.url}/status/500", retry="none")
    shop.webhook("all", url=f"{witness.url}/ok", per="statement")
    with shop.database.worker():
        shop.write("insert into app.orders values (1), (2)")
        ended(shop.database, 3)
    shop.write("delete from app.orders where id = 2")
    columns = "webhook, event, key, rows, state::text, attempts, status_code"
    assert shop.owner.execute(
        f"select {columns} from net.webhook_deliveries order by request_id"
    ).fetchall() == [
        ("rows", "INSERT", {"id": 1}, None, "failed", 1, 500),
        ("rows", "INSERT", {"id": 2}, None, "failed", 1, 500),
        ("all", "INSERT", None, 2, "succeeded", 1, 200),
        ("rows", "DELETE", {"id": 2}, None, "ready", 0, None),
        ("all", "DELETE", None, 1, "ready", 0, None),
    ]


def test_disabled_and_enabled_with_what_was_missed(shop: Shop, witness: httpd.Running) -> None:
    shop.webhook(url=f"{witness.url}/ok")
    shop.owner.execute("select net.disable_webhook('hook', 'the shop moves.')")
    with shop.database.worker():
        shop.write("insert into app.orders values (1), (2)")
        ended(shop.database, 2)
        assert witness.record() == []
        states = shop.database.rows("select state::text, error_msg from net.responses")
        assert {state for state, _ in states} == {"cancelled"}
        assert 'The webhook "hook" is disabled since ' in states[0][1]
        assert states[0][1].endswith(": the shop moves.")
        assert seen(shop, "enabled, unsent, failed, disabled_reason") == (
            (False, 2, 0, "the shop moves.")
        )
        assert shop.owner.execute("select net.enable_webhook('hook')").fetchone() == (2,)
        assert [body["record"]["id"] for body in bodies(witness, 2)] == [1, 2]
        assert seen(shop, "enabled, disabled_since, disabled_reason") == (True, None, None)
        # Once only.
        assert shop.owner.execute("select net.enable_webhook('hook')").fetchone() == (0,)


def test_enabled_from_now_on(shop: Shop, witness: httpd.Running) -> None:
    shop.webhook(url=f"{witness.url}/ok")
    shop.owner.execute("select net.disable_webhook('hook')")
    with shop.database.worker():
        shop.write("insert into app.orders values (1)")
        ended(shop.database, 1)
        shop.owner.execute("select net.enable_webhook('hook', with_missed => false)")
        shop.write("insert into app.orders values (2)")
        assert [body["record"]["id"] for body in bodies(witness, 1)] == [2]
        # Another time it does not send what was left before.
        shop.owner.execute("select net.disable_webhook('hook')")
        assert shop.owner.execute("select net.enable_webhook('hook')").fetchone() == (0,)


def test_a_request_that_waits_when_its_webhook_is_disabled(
    shop: Shop, witness: httpd.Running
) -> None:
    shop.webhook(url=f"{witness.url}/ok")
    shop.write("insert into app.orders values (1)")
    shop.owner.execute("select net.disable_webhook('hook')")
    with shop.database.worker():
        ended(shop.database, 1)
        assert witness.record() == []
        assert shop.owner.execute("select net.enable_webhook('hook')").fetchone() == (1,)
        bodies(witness, 1)


def test_disabled_after_long_failure(shop: Shop, witness: httpd.Running) -> None:
    shop.database.execute("select net.configure('disable_webhook_after', '1 hour')")
    shop.webhook(url=f"{witness.url}/status/410", retry="none")
    with shop.database.worker():
        shop.write("insert into app.orders values (1)")
        ended(shop.database, 1)
    shop.database.execute("select pgnet.judge_webhooks()")
    assert seen(shop, "enabled") == (True,)
    shop.database.execute("update pgnet.webhook_state set failing_since = now() - interval '2 h'")
    shop.database.execute("update pgnet.webhook set created = now() - interval '2 h'")
    shop.database.execute(
        "insert into pgnet.webhook_tally (owner, name, sent, failed, unsent)"
        " select owner, name, 0, 1, 0 from pgnet.webhook"
    )
    with shop.database.worker():
        shop.database.wait_for("select disabled_since is not null from net.webhooks")
    enabled, reason = seen(shop, "enabled, disabled_reason")
    assert not enabled
    assert "No request was accepted since " in reason
    assert reason.endswith("The last error: Status 410")


def test_failures_before_it_was_enabled_count_no_more(shop: Shop) -> None:
    shop.database.execute("select net.configure('disable_webhook_after', '1 hour')")
    shop.webhook()
    tally = (
        "insert into pgnet.webhook_tally (owner, name, sent, failed, unsent, recorded)"
        " select owner, name, 0, 1, 0, now() - interval '3 h' from pgnet.webhook"
    )
    shop.database.execute(tally)
    shop.database.execute("select pgnet.judge_webhooks()")
    # It is newer than its failures.
    assert seen(shop, "enabled") == (True,)
    shop.database.execute("update pgnet.webhook set created = now() - interval '1 day'")
    shop.database.execute(tally)
    shop.database.execute("select pgnet.judge_webhooks()")
    assert seen(shop, "enabled") == (False,)
    shop.owner.execute("select net.enable_webhook('hook')")
    shop.database.execute(tally)
    shop.database.execute("select pgnet.judge_webhooks()")
    assert seen(shop, "enabled") == (True,)


def test_a_success_ends_the_failure(shop: Shop) -> None:
    shop.webhook()
    tally = (
        "insert into pgnet.webhook_tally (owner, name, sent, failed, unsent, recorded)"
        " select owner, name, %s, %s, 0, now() - %s::interval from pgnet.webhook"
    )
    shop.database.execute(tally, 0, 1, "3 h")
    shop.database.execute(tally, 0, 1, "2 h")
    shop.database.execute("select pgnet.judge_webhooks()")
    age = "round(extract(epoch from now() - failing_since) / 3600)"
    assert seen(shop, age) == (3,)
    shop.database.execute(tally, 0, 1, "1 h")
    shop.database.execute("select pgnet.judge_webhooks()")
    assert seen(shop, age) == (3,)
    shop.database.execute(tally, 1, 0, "1 h")
    shop.database.execute(tally, 0, 1, "1 h")
    shop.database.execute("select pgnet.judge_webhooks()")
    assert seen(shop, age) == (1,)
    shop.database.execute(tally, 1, 0, "0 h")
    shop.database.execute("select pgnet.judge_webhooks()")
    assert seen(shop, "failing_since") == (None,)


def test_a_role_that_locks_its_webhook_delays_nobody(shop: Shop, witness: httpd.Running) -> None:
    shop.webhook("mine", url=f"{witness.url}/ok")
    shop.webhook("other", url=f"{witness.url}/ok", events=["DELETE"])
    locker = shop.database.connect("shop_owner", autocommit=False)
    shop.database.execute("update pgnet.webhook set created = now() - interval '2 h'")
    locker.execute("update pgnet.webhook set disabled_reason = 'x' where name = 'mine'")
    shop.database.execute("select net.configure('disable_webhook_after', '1 s')")
    shop.database.execute(
        "insert into pgnet.webhook_tally (owner, name, sent, failed, unsent, recorded)"
        " select owner, name, 0, 1, 0, now() - interval '1 h' from pgnet.webhook"
    )
    with shop.database.worker():
        shop.database.wait_for(
            "select disabled_since is not null from net.webhooks where name = 'other'"
        )
        shop.write("insert into app.orders values (1)")
        bodies(witness, 1)
    locker.rollback()


def test_replay(shop: Shop, witness: httpd.Running) -> None:
    shop.webhook(url=f"{witness.url}/status/500", retry="none")
    shop.webhook("other", url=f"{witness.url}/status/500", retry="none")
    with shop.database.worker():
        shop.write("insert into app.orders values (1), (2), (3)")
        ended(shop.database, 6)
        witness.reset()
        replay = "select net.replay_webhook('hook', %s, %s)"
        assert shop.owner.execute(replay, ("infinity", None)).fetchone() == (0,)
        assert shop.owner.execute(replay, (None, "-infinity")).fetchone() == (0,)
        assert shop.owner.execute(replay, (None, None)).fetchone() == (3,)
        assert sorted(body["record"]["id"] for body in bodies(witness, 3)) == [1, 2, 3]
        assert (
            shop.database.value(
                "select count(*) from net.webhook_deliveries where retry_of is not null"
            )
            == 3
        )


@pytest.mark.parametrize("per", ["row", "statement"])
def test_a_sample(shop: Shop, witness: httpd.Running, per: str) -> None:
    shop.webhook(url=f"{witness.url}/body/thanks", per=per)
    shop.owner.execute("select net.disable_webhook('hook')")
    with shop.database.worker():
        row = shop.owner.execute("call net.test_webhook('hook')").fetchone()
        assert row is not None
        assert row[1:] == (200, "thanks", None)
        (body,) = bodies(witness, 1)
        assert body["test"] is True
        assert body["type"] == "INSERT"
        shop.write("insert into app.orders values (7)")
        shop.owner.execute("call net.test_webhook('hook')")
        sample = bodies(witness, 2)[1]
        record = sample["record"] if per == "row" else sample["records"][0]
        assert record["id"] == 7
    assert seen(shop, "sent, failed") == (0, 0)


@pytest.mark.parametrize("payload", ["hasura", "sequin", "app.shape"])
def test_a_sample_in_another_shape(shop: Shop, witness: httpd.Running, payload: str) -> None:
    shop.owner.execute(
        "create function app.shape(event jsonb) returns jsonb language sql immutable"
        " as 'select event'"
    )
    shop.webhook(url=f"{witness.url}/ok", options={"payload": payload})
    with shop.database.worker():
        row = shop.owner.execute("call net.test_webhook('hook')").fetchone()
        assert row is not None
        assert row[1] == 200
    (body,) = bodies(witness, 1)
    assert body["test"] is True


def test_a_webhook_that_is_not_there(shop: Shop) -> None:
    for call in ("disable_webhook", "enable_webhook", "replay_webhook"):
        for name in ("none", None):
            with pytest.raises(errors.UndefinedObject):
                shop.owner.execute(f"select net.{call}(%s)", (name,))
    with pytest.raises(errors.UndefinedObject):
        shop.owner.execute("call net.test_webhook(null)")


def test_an_endpoint_that_moves(shop: Shop, witness: httpd.Running) -> None:
    """Requests that wait go to where it is now; one without it fails, and can be sent again."""
    shop.owner.execute("select net.set_endpoint('crm', %s)", (f"{witness.url}/first",))
    shop.webhook(endpoint="crm", retry="none")
    shop.write("insert into app.orders values (1)")
    shop.owner.execute("select net.set_endpoint('crm', %s)", (f"{witness.url}/second",))
    with shop.database.worker():
        bodies(witness, 1)
        assert witness.record()[0]["target"] == "/second"
        shop.owner.execute("select net.drop_endpoint('crm')")
        shop.write("insert into app.orders values (2)")
        message = shop.database.wait_for(
            "select error_msg from net.responses where state = 'failed'"
        )
        assert 'has no endpoint "crm"' in message
        shop.owner.execute("select net.set_endpoint('crm', %s)", (f"{witness.url}/third",))
        assert shop.owner.execute("select net.replay_webhook('hook')").fetchone() == (1,)
        bodies(witness, 2)
        assert witness.record()[1]["target"] == "/third"


def test_rows_in_the_order_of_their_changes(shop: Shop, witness: httpd.Running) -> None:
    """With ordering, the events of a row arrive in the order of the commits, one at a time."""
    shop.webhook(url=f"{witness.url}/ok", options={"ordering": True})
    with shop.database.worker():
        shop.write("insert into app.orders (id, amount) select n, 0 from generate_series(1, 5) n")
        for _ in range(10):
            shop.write("update app.orders set amount = amount + 1")
        sent = bodies(witness, 55)
    for number in range(1, 6):
        amounts = [b["record"]["amount"] for b in sent if b["record"]["id"] == number]
        assert amounts == list(range(11))
