"""Cancelling; what the views show; how long a response is kept."""

from __future__ import annotations

from typing import Any

import pytest

from servers.cluster import Database
from servers.nginx import Nginx
from servers.responses import Canned, get, http, in_flight, outcome, result
from servers.waiting import wait_until

# ---- cancelling


def test_cancel_queued(unserved: Database, nginx: Nginx) -> None:
    request_id, kept = get(unserved, f"{nginx.url}/args?no"), get(unserved, f"{nginx.url}/args?yes")
    assert unserved.value("select net.cancel(%s)", request_id) is True
    assert unserved.value("select net.cancel(%s)", request_id) is False
    # No worker has looked, and all say the same of it as afterwards.
    message = "The request was cancelled before it was sent."
    standing = (
        ("cancelled", None, message, 0),
        ("cancelled", message, 0),
        ("ERROR", message),
        True,
    )

    def stands() -> tuple[Any, ...]:
        return (
            unserved.row(
                "select state::text, status_code, error_msg, attempts from net.requests"
                " where id = %s and ended is not null and next_attempt is null",
                request_id,
            ),
            unserved.row("select state::text, error_msg, attempts from net.wait(%s)", request_id),
            result(unserved, request_id)[:2],
            unserved.value("select net._await_response(%s)", request_id),
        )

    assert stands() == standing
    assert unserved.value("select count(*) from net._http_response") == 0
    with unserved.worker():
        outcome(unserved, kept)
        row = outcome(unserved, request_id)
    assert (row["state"], row["error_msg"]) == ("cancelled", message)
    assert (row["status_code"], row["timed_out"], row["attempts"]) == (None, False, 0)
    assert stands() == standing
    assert unserved.value("select net.cancel(%s)", request_id) is False
    wait_until(nginx.requests, description="nginx's record")
    assert [seen.uri for seen in nginx.requests()] == ["/args?yes"]


def test_cancel_in_flight(served: Database, canned: Canned, nginx: Nginx) -> None:
    canned.answers.put(None)
    request_id = get(served, canned.url, timeout_milliseconds=20_000)
    in_flight(served, request_id)
    assert served.value("select net.cancel(%s)", request_id) is True
    row = outcome(served, request_id)
    assert row["state"] == "cancelled"
    assert row["error_msg"].startswith("The request was cancelled while it was in flight")
    assert row["attempts"] == 1
    canned.released.set()
    assert canned.ended.get(timeout=10)
    # recorded after the late answer came in, and so after that was dropped
    assert outcome(served, get(served, nginx.url))["content"] == "pgnet"
    assert outcome(served, request_id) == row
    assert canned.received.qsize() == 1


def test_cancel_is_part_of_the_transaction(unserved: Database) -> None:
    request_id = get(unserved, "http://127.0.0.1:1025/")
    connection = unserved.connect(autocommit=False)
    assert connection.execute("select net.cancel(%s)", (request_id,)).fetchone() == (True,)
    connection.rollback()
    assert unserved.value("select state::text from net.requests") == "ready"
    # also of the one that queued it
    row = connection.execute("select net.http_get('http://127.0.0.1:1025/')").fetchone()
    assert connection.execute("select net.cancel(%s)", row).fetchone() == (True,)
    connection.commit()
    assert unserved.rows("select state::text from net.requests order by id") == [
        ("ready",),
        ("cancelled",),
    ]


def test_cancel_what_has_ended_or_never_was(served: Database, nginx: Nginx) -> None:
    request_id = get(served, nginx.url)
    row = outcome(served, request_id)
    assert served.value("select net.cancel(%s)", request_id) is False
    assert outcome(served, request_id) == row
    assert served.value("select net.cancel(%s)", 2**60) is False
    assert served.value("select net.cancel(null)") is False


def test_cancel_another_roles_request(unserved: Database) -> None:
    request_id = get(unserved, "http://127.0.0.1:1025/")
    unserved.execute("create role cancelling login")
    try:
        other = unserved.connect("cancelling")
        assert other.execute("select net.cancel(%s)", (request_id,)).fetchone() == (False,)
        own = other.execute("select net.http_get('http://127.0.0.1:1025/')").fetchone()
        assert other.execute("select net.cancel(%s)", own).fetchone() == (True,)
        third = other.execute("select net.http_get('http://127.0.0.1:1025/')").fetchone()
        assert third is not None
        # the owner may cancel everybody's
        assert unserved.value("select net.cancel(%s)", third[0]) is True
        assert unserved.value("select state::text from net.requests where id = %s", request_id) == (
            "ready"
        )
        unserved.execute("call net.drain()")
        assert unserved.value(
            "select requested_by::text from net._http_response where id = %s", third[0]
        ) == ("cancelling")
    finally:
        unserved.drop()
        with unserved.cluster.connect() as connection:
            connection.execute("drop role cancelling")


# ---- views


def test_views(served: Database, nginx: Nginx, httpd: str) -> None:
    good = get(served, f"{nginx.url}/json")
    bad = served.value(
        'select net.http_post(%s, \'{"a": 1}\', headers => \'{"X-A": "b"}\')',
        f"{nginx.url}/status/500",
    )
    hanging = get(served, f"{httpd}/hang", timeout_milliseconds=20_000)
    outcome(served, good)
    outcome(served, bad)
    in_flight(served, hanging)
    requests = served.rows(
        "select id, state::text, method, url, requested_by::text, status_code, attempts,"
        " ended >= requested, age >= '0' from net.requests where id = any(%s) order by id",
        [good, bad, hanging],
    )
    assert requests == [
        (good, "succeeded", "GET", f"{nginx.url}/json", "postgres", 200, 1, True, True),
        (bad, "failed", "POST", f"{nginx.url}/status/500", "postgres", 500, 1, True, True),
        (hanging, "in_flight", "GET", f"{httpd}/hang", "postgres", None, 1, None, True),
    ]
    assert served.value("select net.cancel(%s)", hanging)
    assert served.row(
        "select state::text, method, url, status_code, content_json, took >= '0'"
        " from net.responses where id = %s",
        good,
    ) == ("succeeded", "GET", f"{nginx.url}/json", 200, {"ok": True}, True)
    failure = served.row(
        "select method, url, headers, body, status_code, attempts, error_msg"
        " from net.failures where id = %s",
        bad,
    )
    assert failure == (
        "POST",
        f"{nginx.url}/status/500",
        {"X-A": "b", "Content-Type": "application/json"},
        b'{"a": 1}',
        500,
        1,
        None,
    )


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        (b"application/json", b'{"a": 1}', {"a": 1}),
        (b"application/problem+json; charset=utf-8", b"[1]", [1]),
        (b"application/json", b"{not json", None),
        (b"application/json", b'{"a": "\\u0000"}', None),
        (b"application/json", b"[" * 20000 + b"]" * 20000, None),
        (b"text/plain", b'{"a": 1}', {"a": 1}),
        (b"text/plain", b"1", None),
    ],
    ids=["json", "suffix", "broken", "nul", "deep", "object as text", "text"],
)
def test_content_json(
    served: Database, canned: Canned, content_type: bytes, body: bytes, expected: Any
) -> None:
    canned.answers.put(http(b"Content-Type: " + content_type, body=body))
    request_id = get(served, canned.url)
    row = outcome(served, request_id)
    assert row["content"] == body.decode()
    found = served.value("select content_json from net.responses where id = %s", request_id)
    assert found == expected
    served.execute("delete from net._http_response where id = %s", request_id)


# ---- time


def test_ttl(unserved: Database, nginx: Nginx) -> None:
    """Applied while no request comes in: by a worker that has nothing else to do."""
    with unserved.worker():
        request_id = get(unserved, f"{nginx.url}/status/500")
        kept = outcome(unserved, request_id)
        unserved.execute("select net.configure('ttl', '1 s')")
        unserved.wait_for("select count(*) from net._http_response", predicate=lambda n: n == 0)
        assert unserved.value("select clock_timestamp() - %s", kept["created"]).total_seconds() >= 1
        assert unserved.value("select count(*) from net.failures") == 1
        assert result(unserved, request_id)[:2] == (
            "ERROR", "request matching request_id not found",
        )  # fmt: skip
        unserved.execute("select net.configure('ttl_failed', '1 s')")
        unserved.wait_for("select count(*) from net.failures", predicate=lambda n: n == 0)


def test_ttl_of_what_comes_later(unserved: Database, nginx: Nginx) -> None:
    """The response is recorded after the worker has last looked for what is past its time."""
    unserved.execute("select net.configure('ttl', '1 s')")
    with unserved.worker():
        outcome(unserved, get(unserved, nginx.url))
        unserved.wait_for("select count(*) from net._http_response", predicate=lambda n: n == 0)
