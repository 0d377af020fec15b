"""What is kept of an answer, and who is told of an outcome: store_response, notify_outcomes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from servers.cluster import Database, Worker
from servers.nginx import Nginx
from servers.responses import get, outcome

# ---- store_response


def ask(database: Database, url: str, options: dict[str, Any], **arguments: Any) -> int:
    named = "".join(f", {name} => %s" for name in arguments)
    request_id: int = database.value(
        f"select net.http_request('GET', %s, options => %s{named})",
        url,
        json.dumps(options),
        *arguments.values(),
    )
    return request_id


@pytest.mark.parametrize("keeps", [False, True, None])
def test_the_outcome_without_the_answer(served: Database, nginx: Nginx, keeps: bool | None) -> None:
    request_id = ask(served, f"{nginx.url}/json", {"store_response": keeps}, context='{"a": 1}')
    found = outcome(served, request_id)
    assert (found["state"], found["status_code"], found["error_msg"]) == ("succeeded", 200, None)
    assert found["context"] == {"a": 1}
    answer = ("content_type", "headers", "content", "content_bytes", "header_list")
    if keeps is False:
        assert {name: found[name] for name in answer} == dict.fromkeys(answer)
        collected = served.row(
            "select r.status::text, r.message, r.response from net.http_get_result(%s) r",
            request_id,
        )
        assert collected is not None
        assert collected[:2] == ("SUCCESS", "ok")
    else:
        assert found["content"] == '{"ok": true}'
        assert found["headers"]["Content-Type"] == found["content_type"] == "application/json"
        assert found["header_list"]


def test_a_failure_without_the_answer(served: Database, nginx: Nginx, httpd: str) -> None:
    """The status and the error are kept, through retries and when it is sent again."""
    url = f"{nginx.url}/status/503"
    served.execute(
        "select net.configure_retry('twice', '{\"max_attempts\": 2, \"backoff_milliseconds\": 10}')"
    )
    request_id = ask(served, url, {"store_response": False}, retry="twice")
    found = outcome(served, request_id)
    assert (found["state"], found["status_code"], found["attempts"]) == ("failed", 503, 2)
    assert (found["content"], found["headers"]) == (None, None)
    again = served.value("select net.retry(%s)", request_id)
    assert outcome(served, again)["content"] is None
    broken = ask(served, f"{httpd}/empty", {"store_response": False})
    assert outcome(served, broken)["error_msg"].startswith("Server returned nothing")


def test_a_row_that_was_inserted_by_hand(served: Database, nginx: Nginx) -> None:
    request_id = served.value(
        "insert into net.http_request_queue (method, url, options)"
        " values ('GET', %s, '{\"store_response\": 1}') returning id",
        nginx.url + "/",
    )
    served.execute("select net.wake()")
    assert outcome(served, request_id)["error_msg"] == (
        'option "store_response" must be true or false'
    )


# ---- notify_outcomes


@pytest.fixture
def listener(database: Database) -> psycopg.Connection[Any]:
    connection = database.connect()
    connection.execute("listen pgnet_outcomes")
    return connection


def told(database: Database, listener: psycopg.Connection[Any]) -> Iterator[dict[str, Any]]:
    """What has been told by now: a notification of the test's own comes behind all of it."""
    database.execute("notify pgnet_outcomes, 'the end'")
    for notification in listener.notifies():
        if notification.payload == "the end":
            return
        yield json.loads(notification.payload)


def test_nobody_is_told_unless_asked_for(
    database: Database, worker: Worker, nginx: Nginx, listener: psycopg.Connection[Any]
) -> None:
    outcome(database, get(database, nginx.url))
    assert list(told(database, listener)) == []
    database.execute("select net.configure('notify_outcomes', 'on')")
    request_id = get(database, nginx.url)
    outcome(database, request_id)
    assert list(told(database, listener)) == [{"count": 1, "ids": [request_id]}]
    database.execute("select net.configure('notify_outcomes', null)")
    outcome(database, get(database, nginx.url))
    assert list(told(database, listener)) == []


def test_one_for_a_batch(
    database: Database, nginx: Nginx, listener: psycopg.Connection[Any]
) -> None:
    database.execute("select net.configure('notify_outcomes', 'on')")
    database.execute(
        "insert into net.http_request_queue (method, url) select 'GET', 'mailto:x'"
        " from generate_series(1, 400)"
    )
    with database.worker():
        database.wait_for("select count(*) = 400 from net._http_response")
    found = list(told(database, listener))
    assert sorted(id for one in found for id in one["ids"]) == list(range(1, 401))
    assert all(len(one["ids"]) == one["count"] for one in found)
    assert len(found) < 100


def test_a_payload_is_bounded(database: Database, listener: psycopg.Connection[Any]) -> None:
    """Of a batch that is large the number only: PostgreSQL takes less than 8,000 bytes."""
    database.execute("select net.configure('notify_outcomes', 'on')")
    for count in (1, 300, 301, 10_000):
        database.execute(
            "select pgnet.tell_of_ends(array(select -9223372036854775808 + n::bigint"
            " from generate_series(1, %s) n))",
            count,
        )
    database.execute("select pgnet.tell_of_ends('{}'), pgnet.tell_of_ends(null)")
    found = list(told(database, listener))
    assert [(one["count"], len(one.get("ids", ()))) for one in found] == [
        (1, 1),
        (300, 300),
        (301, 0),
        (10_000, 0),
    ]


def test_a_cancel_is_told_by_the_worker(
    database: Database, listener: psycopg.Connection[Any]
) -> None:
    """The caller's commit pays nothing; what is forgotten has no outcome."""
    database.execute("select net.configure('notify_outcomes', 'on')")
    cancelled, forgotten = (get(database, "http://127.0.0.1:1025/") for _ in range(2))
    database.execute("select net.cancel(%s), net.forget(%s)", cancelled, forgotten)
    assert list(told(database, listener)) == []
    with database.worker():
        outcome(database, cancelled)
        database.wait_for("select count(*) = 0 from pgnet.mark")
    assert list(told(database, listener)) == [{"count": 1, "ids": [cancelled]}]
