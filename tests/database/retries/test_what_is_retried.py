"""Which requests are attempted again, and how often: by both kinds of worker."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import errors
from psycopg.types.json import Jsonb

from servers.cluster import Database, free_port
from servers.scripted import (
    GARBAGE,
    RESET,
    SLACK,
    Reply,
    Scripted,
    attempts,
    ended,
    errors_of,
    send,
    waiting,
)

# ---- which requests


def test_nothing_is_tried_again_by_itself(
    served: Database, server: Scripted, unknown_server: Scripted
) -> None:
    urls = [server.script(503, 200), server.script(503, 200), unknown_server.script(RESET, 200)]
    ids = [
        send(served, "GET", urls[0]),
        send(served, "GET", urls[1], retry="none"),
        send(served, "POST", urls[2]),
    ]
    assert [ended(served, id) for id in ids] == [
        ("failed", 503, 1),
        ("failed", 503, 1),
        ("failed", None, 1),
    ]
    assert [len(server.seen(url)) for url in urls[:2]] == [1, 1]
    assert len(unknown_server.seen(urls[2])) == 1
    old = server.script(503, 200)
    id = served.value("select net.http_get(%s, timeout_milliseconds => 5000)", old)
    assert ended(served, id) == ("failed", 503, 1)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_safe(served: Database, server: Scripted, method: str) -> None:
    """The policy as it is: half a second of backoff, on average."""
    url = server.script(503, 200)
    id = send(served, method, url, retry="safe")
    assert ended(served, id) == ("succeeded", 200, 2)
    assert attempts(served, id) == [(1, "answered", 503), (2, "succeeded", 200)]
    assert [seen.method for seen in server.seen(url)] == [method] * 2
    # These methods need no key: they are idempotent.
    assert [seen.key for seen in server.seen(url)] == [None] * 2
    first, second = (seen.at for seen in server.seen(url))
    assert second - first < 1 + SLACK


def test_statuses(served: Database, server: Scripted) -> None:
    again = (408, 425, 429, 500, 502, 503, 504)
    last = (400, 401, 403, 404, 409, 410, 422, 501, 505, 520)
    urls = {status: server.script(status, 200) for status in again + last}
    ids = {status: send(served, "GET", url, retry="quick") for status, url in urls.items()}
    found = {status: ended(served, id) for status, id in ids.items()}
    assert found == {
        status: ("succeeded", 200, 2) if status in again else ("failed", status, 1)
        for status in urls
    }
    assert {status: len(server.seen(url)) for status, url in urls.items()} == {
        status: 2 if status in again else 1 for status in urls
    }


@pytest.mark.parametrize("status", [302, 304, 400, 404, 410, 500, 599])
def test_any_status_but_2xx(served: Database, server: Scripted, status: int) -> None:
    url = server.script(status, 202)
    id = send(served, "POST", url, retry="hook", options={"max_redirects": 0})
    assert ended(served, id) == ("succeeded", 202, 2)


def test_the_built_in_webhook(served: Database, server: Scripted) -> None:
    """The policy waits up to 5 s after the first attempt, and sends a POST again with its key."""
    url = server.script(404, 204)
    id = send(served, "POST", url, body={"a": 1}, retry="webhook")
    assert ended(served, id) == ("succeeded", 204, 2)
    retry_in = served.value(
        "select extract(epoch from retry_in) from net.attempts where request_id = %s"
        " and attempt = 1",
        id,
    )
    assert 0 <= retry_in <= 5
    first, second = server.seen(url)
    assert first.key is not None
    assert (second.key, second.body) == (first.key, first.body)
    # A redirect that is not followed is no 2xx.
    moved = server.script(302)
    id = send(served, "GET", moved, retry="webhook", options={"max_redirects": 0})
    waiting(served, id)
    assert served.value("select net.cancel(%s)", id)


def test_what_a_policy_of_one_s_own_accepts(served: Database, server: Scripted) -> None:
    url = server.script(200, 404)
    id = send(served, "GET", url, retry="found")
    assert ended(served, id) == ("succeeded", 404, 2)
    assert served.row("select status::text, message from net.http_get_result(%s)", id) == (
        "SUCCESS",
        "ok",
    )
    assert served.value("select count(*) from net.failures where id = %s", id) == 0


def test_what_a_policy_of_one_s_own_tries_again(served: Database, server: Scripted) -> None:
    missing, broken = server.script(404, 200), server.script(503, 200)
    assert ended(served, send(served, "GET", missing, retry="deaf")) == ("succeeded", 200, 2)
    assert ended(served, send(served, "GET", broken, retry="deaf")) == ("failed", 503, 1)


# ---- how often


def test_attempts_are_used_up(served: Database, server: Scripted) -> None:
    url = server.script(503, 429, 500)
    id = send(served, "PUT", url, body={"a": 1}, retry="quick", max_attempts=3)
    assert ended(served, id) == ("failed", 500, 3)
    assert attempts(served, id) == [(1, "answered", 503), (2, "answered", 429), (3, "failed", 500)]
    assert len(server.seen(url)) == 3
    assert served.row(
        "select state::text, attempts, status_code, body from net.failures where id = %s", id
    ) == ("failed", 3, 500, b'{"a": 1}')
    # pg_net's view of it: there was an answer
    assert served.row("select status::text, message from net.http_get_result(%s)", id) == (
        "SUCCESS",
        "ok",
    )
    # and one outcome
    assert served.value("select count(*) from net._http_response where id = %s", id) == 1


@pytest.mark.parametrize(
    ("arguments", "made"),
    [
        ({"retry": "quick"}, 5),
        ({"retry": "quick", "max_attempts": 1}, 1),
        ({"retry": "quick", "max_attempts": 2}, 2),
        ({"retry": "quick", "max_attempts": 8}, 8),
        ({"retry": "hook"}, 4),
        # alone it is safe's manner, with as many attempts
        ({"max_attempts": 2}, 2),
        ({"retry": "none", "max_attempts": 2}, 2),
        ({"max_attempts": 1}, 1),
    ],
    ids=str,
)
def test_max_attempts(
    served: Database, server: Scripted, arguments: dict[str, Any], made: int
) -> None:
    url = server.script(503)
    assert ended(served, send(served, "GET", url, **arguments)) == ("failed", 503, made)
    assert len(server.seen(url)) == made


@pytest.mark.parametrize(
    ("arguments", "words", "hint"),
    [
        ({"retry": "mine"}, 'unknown retry policy "mine"', "known: none, safe, webhook, deaf"),
        ({"retry": ""}, 'unknown retry policy ""', "known: "),
        ({"max_attempts": 0}, "max_attempts", ""),
        ({"max_attempts": 1001}, "max_attempts", ""),
        ({"max_attempts": -1}, "max_attempts", ""),
        ({"options": {"retry": "safe"}}, 'unknown option "retry"', ""),
    ],
    ids=str,
)
def test_refused_at_the_call(
    served: Database, arguments: dict[str, Any], words: str, hint: str
) -> None:
    with pytest.raises(errors.InvalidParameterValue) as caught:
        send(served, "GET", "http://127.0.0.1/", **arguments)
    assert words in str(caught.value)
    assert hint in (caught.value.diag.message_hint or "")


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_refused_connection(served: Database, method: str) -> None:
    """Nothing was sent, so the request is tried again whatever its method, without a key."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/late"
    id = send(served, method, url, retry="patient")
    served.wait_for(
        "select attempts from net.requests where id = %s", id, predicate=lambda n: n > 2
    )
    server = Scripted(port)
    try:
        state, status, made = ended(served, id)
        assert (state, status) == ("succeeded", 200)
        assert made > 2
        assert errors_of(served, id) == ["Couldn't connect to server"] * (made - 1) + [None]
        assert [(seen.method, seen.key) for seen in server.seen(url)] == [(method, None)]
    finally:
        server.close()


def test_a_refused_connection_where_it_is_not_named(served: Database) -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    for arguments in ({}, {"retry": "none"}, {"retry": "deaf"}):
        id = send(served, "GET", url, **arguments)
        assert ended(served, id) == ("failed", None, 1)
        assert errors_of(served, id) == ["Couldn't connect to server"]


def test_a_connection_that_breaks(
    served: Database, server: Scripted, unknown_server: Scripted
) -> None:
    """The server may have seen it: GET is sent again, POST is not."""
    get, post = server.script(RESET, RESET, 200), unknown_server.script(RESET, 200)
    id = send(served, "POST", post, retry="quick")
    assert ended(served, id) == ("failed", None, 1)
    assert len(unknown_server.seen(post)) == 1
    id = send(served, "GET", get, retry="quick")
    state, status, _ = ended(served, id)
    assert (state, status) == ("succeeded", 200)


def test_a_timeout(served: Database, server: Scripted) -> None:
    late = Reply(after=1.0)
    get, post = server.script(late, 200), server.script(late, 200)
    ids = [
        send(served, method, url, retry="quick", timeout_milliseconds=300)
        for method, url in (("GET", get), ("POST", post))
    ]
    assert ended(served, ids[0]) == ("succeeded", 200, 2)
    assert ended(served, ids[1]) == ("failed", None, 1)
    first, second = served.rows(
        "select timed_out, error_msg from net.attempts where request_id = %s order by attempt",
        ids[0],
    )
    assert first[0] is True
    assert first[1].startswith("Timeout of 300 ms reached.")
    assert second == (False, None)


def test_an_answer_that_cannot_be_used(served: Database, server: Scripted) -> None:
    """The next answer would be the same: only a policy that names this kind of error retries."""
    safe, any_error = server.script(GARBAGE, 200), server.script(GARBAGE, 200)
    assert ended(served, send(served, "GET", safe, retry="quick")) == ("failed", None, 1)
    assert ended(served, send(served, "GET", any_error, retry="hook")) == ("succeeded", 200, 2)


def test_what_is_refused_here_is_not_tried_again(served: Database) -> None:
    id = send(served, "GET", "http://10.1.2.3/", retry="hook")
    assert ended(served, id) == ("failed", None, 1)
    assert "is a private address and not allowed" in (errors_of(served, id)[0] or "")


def test_what_a_name_server_does_not_know(served: Database) -> None:
    id = send(served, "POST", "http://no-such-name.invalid/", retry="hook", max_attempts=2)
    assert ended(served, id) == ("failed", None, 2)
    assert errors_of(served, id) == ["Couldn't resolve host name"] * 2


# ---- idempotency keys


def test_post_under_safe(served: Database, server: Scripted) -> None:
    """A POST is sent again only with an idempotency key."""
    bare, option, header = (server.script(503, 503, 200) for _ in range(3))
    ids = [
        send(served, "POST", bare, retry="quick"),
        send(served, "POST", option, retry="quick", options={"idempotency_key": "order-17"}),
        send(served, "POST", header, retry="quick", headers={"idempotency-KEY": "order-18"}),
    ]
    assert [ended(served, id) for id in ids] == [
        ("failed", 503, 1),
        ("succeeded", 200, 3),
        ("succeeded", 200, 3),
    ]
    assert [seen.key for seen in server.seen(bare)] == [None]
    assert [seen.key for seen in server.seen(option)] == ["order-17"] * 3
    assert [seen.key for seen in server.seen(header)] == ["order-18"] * 3


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_key_where_a_policy_may_send_twice(
    served: Database, server: Scripted, method: str
) -> None:
    urls = [server.script(503, 503, 503, 200) for _ in range(3)]
    ids = [send(served, method, url, body={"a": 1}, retry="hook") for url in urls]
    assert [ended(served, id) for id in ids] == [("succeeded", 200, 4)] * 3
    keys = [{seen.key for seen in server.seen(url)} for url in urls]
    # one for all attempts of a request, another for each request
    assert [len(of_one) for of_one in keys] == [1, 1, 1]
    assert len(set.union(*keys)) == 3
    assert None not in set.union(*keys)
    assert {seen.body for url in urls for seen in server.seen(url)} == {b'{"a": 1}'}


def test_no_key_where_none_is_needed(served: Database, server: Scripted) -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("GET", {"retry": "hook"}),
        ("PUT", {"retry": "hook"}),
        ("DELETE", {"retry": "hook"}),
        ("POST", {}),
        ("POST", {"retry": "none"}),
        ("POST", {"retry": "quick"}),
        ("POST", {"retry": "hook", "max_attempts": 1}),
        ("PATCH", {"retry": "posts"}),
    ]
    urls = [server.script(200) for _ in cases]
    for (method, arguments), url in zip(cases, urls, strict=True):
        assert ended(served, send(served, method, url, **arguments))[0] == "succeeded"
        assert [seen.key for seen in server.seen(url)] == [None], (method, arguments)


def test_a_key_that_was_asked_for_is_always_sent(served: Database, server: Scripted) -> None:
    for method, arguments in (("POST", {}), ("GET", {}), ("PUT", {"retry": "quick"})):
        url = server.script(200)
        options = {"idempotency_key": "mine, all mine"}
        assert ended(served, send(served, method, url, options=options, **arguments))[2] == 1
        assert [seen.key for seen in server.seen(url)] == ["mine, all mine"]


def test_methods_by_name(served: Database, server: Scripted) -> None:
    post, get = server.script(503, 200), server.script(503, 200)
    assert ended(served, send(served, "POST", post, retry="posts")) == ("succeeded", 200, 2)
    assert ended(served, send(served, "GET", get, retry="posts")) == ("failed", 503, 1)
    first, second = server.seen(post)
    assert first.key == second.key != None  # noqa: E711


# ---- at most once


def test_at_most_once_is_not_tried_again(served: Database, server: Scripted) -> None:
    late, broken, answered = (
        server.script(Reply(after=1.0), 200), server.script(RESET, 200), server.script(503, 200),
    )  # fmt: skip
    options = {"delivery": "at_most_once"}
    ids = [
        send(served, "POST", url, retry="hook", options=options, timeout_milliseconds=300)
        for url in (late, broken, answered)
    ]
    assert [ended(served, id) for id in ids] == [
        ("unknown", None, 1),
        ("unknown", None, 1),
        ("failed", 503, 1),
    ]
    assert [len(server.seen(url)) for url in (late, broken, answered)] == [1, 1, 1]
    assert [seen.key for seen in server.seen(late)] == [None]
    message = served.value("select error_msg from net._http_response where id = %s", ids[0])
    assert message.endswith("it is not sent again.")
    # A policy of the user may say otherwise.
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="whether request"):
        served.execute("select net.retry(%s)", ids[1])
    again = served.value("select net.retry(%s, even_unknown => true)", ids[1])
    assert ended(served, again) == ("succeeded", 200, 1)


def test_at_most_once_where_nothing_was_sent(served: Database) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/once"
    id = send(served, "POST", url, retry="patient", options={"delivery": "at_most_once"})
    served.wait_for(
        "select attempts from net.requests where id = %s", id, predicate=lambda n: n > 1
    )
    server = Scripted(port)
    try:
        state, status, made = ended(served, id)
        assert (state, status) == ("succeeded", 200)
        assert made > 1
        assert len(server.seen(url)) == 1
    finally:
        server.close()


# ---- whose policy


def test_the_policy_of_a_host(served: Database, server: Scripted) -> None:
    served.execute("select net.configure_host('localhost', '{\"retry\": \"quick\"}')")

    def here(*replies: Reply | int) -> str:
        return server.script(*replies).replace("127.0.0.1", "localhost")

    try:
        assert ended(served, send(served, "GET", here(503, 200))) == ("succeeded", 200, 2)
        id = served.value("select net.http_get(%s, timeout_milliseconds => 5000)", here(503, 200))
        assert ended(served, id) == ("succeeded", 200, 2)
        # The request's own counts before the host's.
        own = send(served, "GET", here(503, 200), retry="none")
        assert ended(served, own) == ("failed", 503, 1)
        own = send(served, "GET", here(404, 200), retry="hook")
        assert ended(served, own) == ("succeeded", 200, 2)
        # The request's number of attempts replaces that of the host's policy.
        twice = send(served, "GET", here(503), max_attempts=2)
        assert ended(served, twice) == ("failed", 503, 2)
        # Another host has none.
        other = send(served, "GET", server.script(503, 200))
        assert ended(served, other) == ("failed", 503, 1)
    finally:
        served.execute("select net.configure_host('localhost', null)")
    assert ended(served, send(served, "GET", here(503, 200))) == ("failed", 503, 1)


def test_a_policy_that_changes_while_requests_wait(served: Database, server: Scripted) -> None:
    """The policy of now counts for an attempt that ends now; a dropped policy retries nothing."""
    brief = Jsonb({"backoff_milliseconds": 500, "max_attempts": 9})
    served.execute("select net.configure_retry('brief', %s)", brief)
    changed, dropped = (
        server.script(Reply(503, {"Retry-After": "1"}), 503, 200),
        server.script(Reply(503, {"Retry-After": "1"}), 503, 200),
    )
    ids = [send(served, "GET", changed, retry="brief"), send(served, "GET", dropped, retry="brief")]
    for id in ids:
        waiting(served, id)
    served.execute("select net.configure_retry('brief', '{\"max_attempts\": 2}')")
    assert ended(served, ids[0]) == ("failed", 503, 2)
    id = send(served, "GET", server.script(Reply(503, {"Retry-After": "1"}), 503), retry="brief")
    waiting(served, id)
    served.execute("select net.configure_retry('brief', null)")
    assert ended(served, id) == ("failed", 503, 2)


def test_a_change_of_settings_costs_no_attempt(served: Database, server: Scripted) -> None:
    """Requests that are claimed just after the change stay the worker's, and are sent once."""
    url = server.script(200)
    for _ in range(20):
        served.execute("select net.configure_retry('quick', '{}')")
        assert ended(served, send(served, "GET", url)) == ("succeeded", 200, 1)
    assert len(server.seen(url)) == 20
