"""Retries from end to end: by both kinds of worker, to a server that answers by a script."""

from __future__ import annotations

import http.server
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from itertools import count, pairwise
from typing import Any

import pytest
from psycopg import errors
from psycopg.types.json import Jsonb

from servers.cluster import Cluster, Database, free_port
from servers.waiting import wait_until
from servers.workers import one_worker

# What a busy machine may take on top of a time that was asked for, in seconds.
SLACK = 3.0


@dataclass(frozen=True)
class Reply:
    """An answer: its status and headers, sent after a pause; or `end` instead of one."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    after: float = 0.0
    end: str = ""


RESET, GARBAGE = Reply(end="reset"), Reply(end="garbage")


@dataclass(frozen=True)
class Seen:
    """A request as it came in; `at` in seconds since the epoch."""

    method: str
    at: float
    key: str | None
    body: bytes


class Scripted(http.server.ThreadingHTTPServer):
    """Answers the n-th request for a path with the n-th reply of its script; the last one stays."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, port: int = 0) -> None:
        self.scripts: dict[str, Sequence[Reply]] = {}
        self.record: dict[str, list[Seen]] = defaultdict(list)
        self._paths = count(1)
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def script(self, *replies: Reply | int) -> str:
        """A new URL, with these answers; a number is a status."""
        path = f"/{next(self._paths)}"
        self.scripts[path] = [Reply(r) if isinstance(r, int) else r for r in replies]
        return self.url + path

    def next_reply(self, path: str, seen: Seen) -> Reply:
        with self._lock:
            record = self.record[path]
            record.append(seen)
            script = self.scripts.get(path, [Reply()])
            return script[min(len(record), len(script)) - 1]

    def seen(self, url: str) -> list[Seen]:
        """What came in for a URL, in the order of arrival."""
        return list(self.record["/" + url.split("/", 3)[3]])

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none of our business."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        key = self.headers.get("Idempotency-Key")
        seen = Seen(self.command, time.time(), key, body)
        reply = self.server.next_reply(self.path, seen)
        time.sleep(reply.after)
        if reply.end:
            self.close_connection = True
            if reply.end == "garbage":
                self.wfile.write(b"\x00\x01 this is no HTTP\r\n\r\n")
            else:
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
            return
        self.send_response_only(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = answer

    def log_message(self, *_: object) -> None:
        pass


POLICIES: dict[str, dict[str, Any]] = {
    # as safe and as webhook, in less time
    "quick": {"backoff_milliseconds": 40, "max_backoff_milliseconds": 200},
    "hook": {
        "max_attempts": 4,
        "backoff_milliseconds": 40,
        "max_backoff_milliseconds": 200,
        "statuses": "any",
        "accept": ["2xx"],
        "errors": "any",
        "methods": "any",
    },
    "patient": {"max_attempts": 50, "backoff_milliseconds": 100, "backoff_factor": 1},
    "growing": {
        "max_attempts": 4,
        "backoff_milliseconds": 100,
        "backoff_factor": 3,
        "max_backoff_milliseconds": 500,
    },
    "short": {
        "max_attempts": 1000,
        "backoff_milliseconds": 200,
        "backoff_factor": 1,
        "total_milliseconds": 1500,
    },
    "hasty": {"backoff_milliseconds": 0, "max_retry_after_milliseconds": 600},
    "slow": {"backoff_milliseconds": 86400000, "max_backoff_milliseconds": 86400000,
             "total_milliseconds": 2592000000},
    "deaf": {"backoff_milliseconds": 10, "errors": ["timeout"], "statuses": [404]},
    "found": {"accept": [404], "statuses": [200], "backoff_milliseconds": 10},
    "posts": {"methods": ["POST"], "backoff_milliseconds": 10},
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    yield scripted
    scripted.close()


@pytest.fixture
def unknown_server() -> Iterator[Scripted]:
    """One that no worker has a kept connection to."""
    scripted = Scripted()
    yield scripted
    scripted.close()


@pytest.fixture(scope="module", params=["process", "backend"])
def served(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Database]:
    """A database with the policies above and a worker of each kind."""
    database = cluster.create_database()
    database.execute("select net.allow_network('loopback')")
    for name, settings in POLICIES.items():
        database.execute("select net.configure_retry(%s, %s)", name, Jsonb(settings))
    with one_worker(database, request.param):
        yield database
        database.wait_for("select count(*) from pgnet.claim", predicate=lambda left: left == 0)
    database.drop()


def send(database: Database, method: str, url: str, **arguments: Any) -> int:
    """Queue a request by net.http_request; gives its id."""
    arguments = {"timeout_milliseconds": 5000, **arguments}
    named = ", ".join(f"{name} => %s" for name in arguments)
    values = [Jsonb(v) if isinstance(v, dict | list) else v for v in arguments.values()]
    id: int = database.value(f"select net.http_request(%s, %s, {named})", method, url, *values)
    return id


def ended(database: Database, id: int, timeout: str = "20 s") -> tuple[str, int | None, int]:
    """Wait for the end of a request: state, status, number of attempts."""
    row = database.row(
        "select state::text, status_code, attempts from net.wait(%s, %s::interval)", id, timeout
    )
    assert row is not None
    return row[0], row[1], row[2]


def attempts(database: Database, id: int) -> list[tuple[Any, ...]]:
    return database.rows(
        "select attempt, state, status_code from net.attempts where request_id = %s"
        " order by attempt",
        id,
    )


def waiting(database: Database, id: int) -> None:
    """Wait until a request waits for its next attempt."""
    database.wait_for(
        "select state::text from net.requests where id = %s", id,
        predicate=lambda state: state == "retrying",
    )  # fmt: skip


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
    # They need no key: twice is once.
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
    """It waits up to 5 s after the first attempt, and sends a POST again with its key."""
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


# ---- how soon


def gaps(seen: Sequence[Seen]) -> list[float]:
    return [later.at - earlier.at for earlier, later in pairwise(seen)]


def test_the_backoff_grows_and_is_drawn_anew(served: Database, server: Scripted) -> None:
    urls = [server.script(503) for _ in range(20)]
    ids = [send(served, "GET", url, retry="growing") for url in urls]
    assert [ended(served, id) for id in ids] == [("failed", 503, 4)] * 20
    drawn: list[list[float]] = [[], [], []]
    for url, id in zip(urls, ids, strict=True):
        said = served.rows(
            "select attempt, extract(epoch from retry_in)::float8 from net.attempts"
            " where request_id = %s and retry_in is not null order by 1",
            id,
        )
        assert [attempt for attempt, _ in said] == [1, 2, 3]
        for (attempt, retry_in), gap in zip(said, gaps(server.seen(url)), strict=True):
            drawn[attempt - 1].append(retry_in)
            assert retry_in - 0.05 <= gap <= retry_in + SLACK
    for bound, values in zip((0.1, 0.3, 0.5), drawn, strict=True):
        assert min(values) >= 0
        assert max(values) <= bound
        assert max(values) - min(values) > bound / 5
    # Twenty numbers from 0 to 0.5 are not all below 0.3: it has grown.
    assert max(drawn[2]) > 0.3


def test_requests_that_wait_are_seen(served: Database, server: Scripted) -> None:
    url = server.script(503)
    id = send(served, "GET", url, retry="slow")
    waiting(served, id)
    row = served.row(
        "select status_code, error_msg, attempts, next_attempt - now(), ended from net.requests"
        " where id = %s",
        id,
    )
    assert row is not None
    assert row[:3] == (503, None, 1)
    assert 0 <= row[3].total_seconds() <= 86400
    assert row[4] is None
    status, message = served.rows("select status::text, message from net.http_get_result(%s)", id)[
        0
    ]
    assert status == "PENDING"
    assert message
    outcome = served.row("select state::text, attempts from net.wait(%s, '50 ms')", id)
    assert outcome == ("retrying", 1)
    assert attempts(served, id) == [(1, "answered", 503)]
    assert served.value("select net.cancel(%s)", id) is True
    assert ended(served, id)[0] == "cancelled"
    message = served.value("select error_msg from net.requests where id = %s", id)
    assert message == "The request was cancelled before another attempt."
    assert len(server.seen(url)) == 1


def test_no_attempt_begins_after_the_total_time(served: Database, server: Scripted) -> None:
    url = server.script(503)
    id = send(served, "GET", url, retry="short")
    state, status, made = ended(served, id)
    assert (state, status) == ("failed", 503)
    assert 2 <= made < 1000
    started, all_of_it = served.rows(
        "select extract(epoch from max(a.started) - r.requested)::float8,"
        " extract(epoch from r.created - r.requested)::float8"
        " from net.attempts a join net.responses r on r.id = a.request_id where r.id = %s"
        " group by r.id, r.requested, r.created",
        id,
    )[0]
    assert started <= 1.5 + SLACK
    assert all_of_it <= 1.5 + SLACK
    said = served.rows(
        "select extract(epoch from a.ended - r.requested + a.retry_in)::float8"
        " from net.attempts a join net.responses r on r.id = a.request_id"
        " where r.id = %s and a.retry_in is not null",
        id,
    )
    # What was planned lies within; between an answer and its recording a moment passes.
    assert max(planned for (planned,) in said) <= 1.5 + 0.5


# ---- Retry-After


def test_retry_after_in_seconds(served: Database, server: Scripted) -> None:
    urls = [server.script(Reply(status, {"Retry-After": "1"}), 200) for status in (429, 503)]
    ids = [send(served, "GET", url, retry="quick") for url in urls]
    assert [ended(served, id) for id in ids] == [("succeeded", 200, 2)] * 2
    for url in urls:
        assert 0.95 <= gaps(server.seen(url))[0] <= 1.04 + SLACK


@pytest.mark.parametrize("ahead", [0, -3600, 86400], ids=lambda seconds: f"clock{seconds:+}")
def test_retry_after_as_a_date(served: Database, server: Scripted, ahead: int) -> None:
    """The server's clock is its own: its Date says what it is."""
    then = time.time() + ahead
    headers = {
        "Date": formatdate(then, usegmt=True),
        "Retry-After": formatdate(then + 1, usegmt=True),
    }
    url = server.script(Reply(503, headers), 200)
    assert ended(served, send(served, "GET", url, retry="quick")) == ("succeeded", 200, 2)
    assert 0.95 <= gaps(server.seen(url))[0] <= 1.04 + SLACK


def test_retry_after_as_a_date_without_another(served: Database, server: Scripted) -> None:
    """By the worker's clock; a date has whole seconds."""
    said = formatdate(time.time() + 3, usegmt=True)
    url = server.script(Reply(503, {"Retry-After": said}), 200)
    assert ended(served, send(served, "GET", url, retry="quick")) == ("succeeded", 200, 2)
    assert 1 <= gaps(server.seen(url))[0] <= 3.04 + SLACK


def test_retry_after_is_cut(served: Database, server: Scripted) -> None:
    url = server.script(Reply(503, {"Retry-After": "86400"}), 200)
    assert ended(served, send(served, "GET", url, retry="hasty")) == ("succeeded", 200, 2)
    assert 0.55 <= gaps(server.seen(url))[0] <= 0.6 + SLACK


@pytest.mark.parametrize("said", ["soon", "-5", "1.5", "", "Wed, 32 Foo 2020 00:00:00 GMT"])
def test_rubbish_asks_for_nothing(served: Database, server: Scripted, said: str) -> None:
    url = server.script(Reply(503, {"Retry-After": said}), 200)
    id = send(served, "GET", url, retry="quick")
    assert ended(served, id) == ("succeeded", 200, 2)
    retry_in = served.value(
        "select extract(epoch from retry_in) from net.attempts where request_id = %s"
        " and attempt = 1",
        id,
    )
    assert retry_in <= 0.04


def test_retry_after_beyond_the_total_time(served: Database, server: Scripted) -> None:
    """There is no point in coming before: the request ends at once."""
    url = server.script(Reply(503, {"Retry-After": "60"}), 200)
    assert ended(served, send(served, "GET", url, retry="short")) == ("failed", 503, 1)


# ---- errors


def errors_of(database: Database, id: int) -> list[str | None]:
    rows = database.rows(
        "select error_msg from net.attempts where request_id = %s order by attempt", id
    )
    return [message for (message,) in rows]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_refused_connection(served: Database, method: str) -> None:
    """Nothing was sent: it is tried again whatever the method, without a key."""
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
    """It would come the same way again: only who names that kind of error tries."""
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
    """Not again without a key, again with one."""
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
    # Whoever knows better may.
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
        # Its number of attempts goes with the host's policy.
        twice = send(served, "GET", here(503), max_attempts=2)
        assert ended(served, twice) == ("failed", 503, 2)
        # Another host has none.
        other = send(served, "GET", server.script(503, 200))
        assert ended(served, other) == ("failed", 503, 1)
    finally:
        served.execute("select net.configure_host('localhost', null)")
    assert ended(served, send(served, "GET", here(503, 200))) == ("failed", 503, 1)


def test_a_policy_that_changes_while_requests_wait(served: Database, server: Scripted) -> None:
    """What it says now counts for the attempt that ends now; a dropped one says nothing."""
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
    """What is claimed just behind it is held by the worker as well, and sent once."""
    url = server.script(200)
    for _ in range(20):
        served.execute("select net.configure_retry('quick', '{}')")
        assert ended(served, send(served, "GET", url)) == ("succeeded", 200, 1)
    assert len(server.seen(url)) == 20


# ---- net.attempts


def test_rows_of_attempts(served: Database, server: Scripted) -> None:
    url = server.script(503, RESET, Reply(429, {"Retry-After": "1"}), 200)
    id = send(served, "PUT", url, retry="hook")
    ended(served, id)
    rows = served.rows(
        "select attempt, state, status_code, timed_out, error_msg, retry_in is not null,"
        " started <= ended, ended <= clock_timestamp()"
        " from net.attempts where request_id = %s order by attempt",
        id,
    )
    made = len(rows)
    assert [row[0] for row in rows] == list(range(1, made + 1))
    assert [row[1] for row in rows] == ["answered"] * (made - 1) + ["succeeded"]
    assert [row[3] for row in rows] == [False] * made
    assert [row[5] for row in rows] == [True] * (made - 1) + [False]
    assert all(row[6] and row[7] for row in rows)
    assert rows[0][2] == 503
    assert rows[-1][2] == 200
    # One begins when the time of the one before is over.
    waits = served.rows(
        "select lead(started) over (order by attempt) - ended - retry_in from net.attempts"
        " where request_id = %s order by attempt",
        id,
    )
    for (early,) in waits[:-1]:
        assert early.total_seconds() > -0.05
    assert served.value("select attempts from net._http_response where id = %s", id) == made


def test_an_attempt_in_flight_is_a_row(served: Database, server: Scripted) -> None:
    url = server.script(503, Reply(after=1.0))
    id = send(served, "GET", url, retry="quick")
    served.wait_for(
        "select count(*) from net.attempts where request_id = %s and attempt = 2"
        " and state = 'in_flight' and ended is null",
        id,
    )
    assert ended(served, id) == ("succeeded", 200, 2)


def test_attempts_are_their_role_s_own(served: Database, server: Scripted) -> None:
    with served.connect() as connection:
        connection.execute("create role retries_alice login")
        connection.execute("create role retries_bob login")
    try:
        url = server.script(503, 200)
        with served.connect("retries_alice") as alice, served.connect("retries_bob") as bob:
            row = alice.execute(
                "select net.http_request('GET', %s, retry => 'quick')", [url]
            ).fetchone()
            assert row is not None
            assert alice.execute("select (net.wait(%s)).attempts", row).fetchone() == (2,)
            count_of = "select count(*) from net.attempts where request_id = %s"
            assert alice.execute(count_of, row).fetchone() == (2,)
            assert bob.execute(count_of, row).fetchone() == (0,)
    finally:
        served.execute("drop role retries_alice")
        served.execute("drop role retries_bob")


# ---- net.retry


def test_a_thousand_are_sent_again(served: Database, server: Scripted) -> None:
    """Once each, with the key of the first time, and the failures are gone."""
    url = server.script(503)
    served.execute(
        "select net.http_request('POST', %s || '?n=' || n, body => jsonb_build_object('n', n),"
        " retry => 'hook', max_attempts => 2, timeout_milliseconds => 20000)"
        " from generate_series(1, 1000) n",
        url,
    )
    # A path with its query is a path of its own.
    path = "/" + url.split("/", 3)[3]
    for n in range(1, 1001):
        server.scripts[f"{path}?n={n}"] = [Reply(503), Reply(503), Reply(200)]
    mine = "f.url like %s || '?n=%%'"
    served.wait_for(
        f"select count(*) from net.failures f where {mine}", url,
        predicate=lambda n: n == 1000, timeout=60,
    )  # fmt: skip
    pairs = served.rows(f"select f.id, net.retry(f.id) from net.failures f where {mine}", url)
    assert len({new for _, new in pairs}) == 1000
    assert {new for _, new in pairs}.isdisjoint({old for old, _ in pairs})
    served.wait_for(
        f"select count(*) from net.responses f where {mine} and f.state = 'succeeded'", url,
        predicate=lambda n: n == 1000, timeout=60,
    )  # fmt: skip
    assert served.value(f"select count(*) from net.failures f where {mine}", url) == 0
    again = served.rows(
        "select retry_of, id from net.responses where retry_of = any(%s)", [o for o, _ in pairs]
    )
    assert set(again) == set(pairs)
    for n in range(1, 1001):
        seen = server.record[f"{path}?n={n}"]
        assert len(seen) == 3
        assert len({(one.method, one.key, one.body) for one in seen}) == 1
        assert seen[0].key is not None


def test_retry_with_a_new_key(served: Database, server: Scripted) -> None:
    derived, asked = server.script(503, 503, 503, 200), server.script(503, 503, 503, 200)
    ids = [
        send(served, "POST", derived, retry="hook", max_attempts=2),
        send(served, "POST", asked, retry="hook", max_attempts=2,
             options={"idempotency_key": "mine"}),
    ]  # fmt: skip
    for id in ids:
        assert ended(served, id) == ("failed", 503, 2)
        again = served.value("select net.retry(%s, new_idempotency_key => true)", id)
        assert ended(served, again) == ("succeeded", 200, 2)
        assert served.row("select retry_of, attempts from net.requests where id = %s", again) == (
            id,
            2,
        )
    for url in (derived, asked):
        keys = [seen.key for seen in server.seen(url)]
        assert keys[0] == keys[1] != keys[2] == keys[3]
        assert None not in keys
    assert server.seen(asked)[0].key == "mine"


def test_retry_is_part_of_a_transaction(served: Database, server: Scripted) -> None:
    url = server.script(503, 200)
    id = send(served, "GET", url)
    assert ended(served, id) == ("failed", 503, 1)
    with served.connect(autocommit=False) as connection:
        connection.execute("select net.retry(%s)", [id])
        connection.rollback()
    assert served.value("select count(*) from net.failures where id = %s", id) == 1
    again = served.value("select net.retry(%s)", id)
    assert ended(served, again) == ("succeeded", 200, 1)
    assert len(server.seen(url)) == 2


def test_what_cannot_be_sent_again(served: Database, server: Scripted) -> None:
    assert served.value("select net.retry(null)") is None
    failed, fine = (
        send(served, "GET", server.script(503, 200)),
        send(served, "GET", server.script(200)),
    )
    assert ended(served, failed)[0] == "failed"
    assert ended(served, fine)[0] == "succeeded"
    in_flight = send(served, "GET", server.script(Reply(after=1.0)))
    served.execute("select net.retry(%s)", failed)
    for id in (failed, fine, in_flight, 10**9):
        with pytest.raises(errors.NoDataFound, match=f"no request {id} to send again") as caught:
            served.execute("select net.retry(%s)", id)
        assert "net.failures" in (caught.value.diag.message_hint or "")
    assert ended(served, in_flight) == ("succeeded", 200, 1)


def test_another_role_s_are_not_sent_again(served: Database, server: Scripted) -> None:
    served.execute("create role retries_carol login")
    try:
        id = send(served, "GET", server.script(503, 503, 200))
        assert ended(served, id)[0] == "failed"
        with served.connect("retries_carol") as carol:
            with pytest.raises(errors.NoDataFound):
                carol.execute("select net.retry(%s)", [id])
            own = carol.execute(
                "select net.http_get(%s, timeout_milliseconds => 5000)", [server.script(503)]
            ).fetchone()
            assert own is not None
            assert carol.execute("select (net.wait(%s)).state::text", own).fetchone() == ("failed",)
        # The owner may, and it stays that role's.
        again = served.value("select net.retry(%s)", own[0])
        assert ended(served, again)[0] == "failed"
        assert (
            served.value("select requested_by::text from net.requests where id = %s", again)
            == "retries_carol"
        )
        served.execute("delete from pgnet.failed where requested_by = 'retries_carol'::regrole")
        served.execute(
            "delete from net._http_response where requested_by = 'retries_carol'::regrole"
        )
    finally:
        served.execute("drop role retries_carol")


# ---- beside other requests


def test_those_that_wait_are_in_nobody_s_way(served: Database, server: Scripted) -> None:
    """Two thousand of the same host wait: a new request goes out at once."""
    url = server.script(503)
    served.execute(
        "select net.http_request('GET', %s, retry => 'slow', timeout_milliseconds => 20000)"
        " from generate_series(1, 2000)",
        url,
    )
    served.wait_for(
        "select count(*) from net.requests where url = %s and state = 'retrying'", url,
        predicate=lambda n: n == 2000, timeout=60,
    )  # fmt: skip
    started = time.monotonic()
    for _ in range(5):
        assert ended(served, send(served, "GET", server.script(200)))[0] == "succeeded"
    assert time.monotonic() - started < 5
    served.execute("select net.cancel(id) from net.requests where url = %s", url)


def test_a_hundred_thousand_that_wait_cost_nothing(database: Database) -> None:
    """Neither a claim nor a look reads them: indexes lead to what is due."""

    def least(call: str) -> float:
        took = []
        for _ in range(10):
            started = time.monotonic()
            database.execute(f"select {call}")
            took.append(time.monotonic() - started)
        return min(took)

    worker = database.value("select worker_id from pgnet.register_worker('process')")
    calls = (
        f"count(*) from pgnet.claim_requests({worker}, 1, 1, 1, '{{}}', 1, '')",
        f"pgnet.heartbeat({worker})",
    )
    before = [least(call) for call in calls]
    database.execute(
        "insert into net.http_request_queue (method, url, due, waits_since)"
        " select 'GET', 'http://127.0.0.1:1/', now() + interval '1 hour' + n * interval '10 ms',"
        " now() from generate_series(1, 100000) n"
    )
    database.execute(
        "insert into net._http_response"
        " (id, state, attempts, method, url, requested_by, requested, timed_out, created)"
        " select 1000000 + n, 'succeeded', 1, 'GET', 'http://127.0.0.1/', 'postgres'::regrole,"
        " now(), false, now() - n * interval '10 ms' from generate_series(1, 100000) n"
    )
    after = [least(call) for call in calls]
    for one_before, one_after in zip(before, after, strict=True):
        assert one_after < one_before * 3 + 0.05


@pytest.mark.parametrize("kind", ["process", "backend"])
def test_waiting_outlives_the_worker(database: Database, server: Scripted, kind: str) -> None:
    url = server.script(Reply(503, {"Retry-After": "1"}), Reply(503, {"Retry-After": "1"}), 200)
    id = send(database, "GET", url, retry="safe")
    with one_worker(database, kind):
        waiting(database, id)
    # A worker that comes later takes it when it is due, and goes on counting.
    with one_worker(database, kind):
        assert ended(database, id) == ("succeeded", 200, 3)
    assert min(gaps(server.seen(url))) >= 0.95
    assert attempts(database, id) == [
        (1, "answered", 503), (2, "answered", 503), (3, "succeeded", 200),
    ]  # fmt: skip


def test_an_attempt_that_was_lost_with_its_worker_does_not_count(
    database: Database, server: Scripted
) -> None:
    """It is none of the policy's attempts, and the idempotency key stays the same."""
    url = server.script(Reply(after=30.0), 503, 200)
    database.execute("select net.configure('rescue_after', '1 s')")
    id = send(
        database, "POST", url, retry="safe", max_attempts=2, timeout_milliseconds=60_000,
        options={"idempotency_key": "the-same"},
    )  # fmt: skip
    with database.worker() as first:
        wait_until(lambda: len(server.seen(url)), lambda n: n == 1, "the first attempt is there")
        with database.worker():
            first.kill()
            assert ended(database, id) == ("succeeded", 200, 3)
    assert attempts(database, id) == [
        (1, "lost", None), (2, "answered", 503), (3, "succeeded", 200),
    ]  # fmt: skip
    assert [seen.key for seen in server.seen(url)] == ["the-same"] * 3
    assert errors_of(database, id)[0] == "The worker was lost."


def test_who_stays_takes_over_what_waits(database: Database, server: Scripted) -> None:
    """The worker that put a request back is gone when it falls due."""
    url = server.script(Reply(503, {"Retry-After": "2"}), 200)
    with database.worker() as first:
        id = send(database, "GET", url, retry="safe")
        waiting(database, id)
        with database.worker():
            first.kill()
            assert ended(database, id) == ("succeeded", 200, 2)
    assert 1.95 <= gaps(server.seen(url))[0] <= 3 + SLACK


def test_drain_sends_what_is_due_and_waits_for_nothing(
    database: Database, server: Scripted
) -> None:
    url = server.script(Reply(503, {"Retry-After": "1"}), 200)
    id = send(database, "GET", url, retry="safe")
    started = time.monotonic()
    database.execute("call net.drain()")
    assert time.monotonic() - started < SLACK
    assert database.value("select state::text from net.requests where id = %s", id) == "retrying"

    def drained() -> tuple[str, int | None, int]:
        database.execute("call net.drain()")
        return ended(database, id, "50 ms")

    wait_until(drained, lambda outcome: outcome == ("succeeded", 200, 2), "sent by another drain")


def test_a_policy_that_cannot_be_read_spoils_nothing(database: Database, server: Scripted) -> None:
    """Only by hand can it be such a one: it says nothing, and all others go on."""
    database.execute("insert into pgnet.retry_policy values ('odd', '{\"statuses\": [\"many\"]}')")
    urls = [server.script(503, 200), server.script(503, 200)]
    with database.worker() as worker:
        ids = [
            send(database, "GET", url, retry=name)
            for url, name in zip(urls, ("odd", "safe"), strict=True)
        ]
        assert [ended(database, id) for id in ids] == [("failed", 503, 1), ("succeeded", 200, 2)]
        assert worker.output().count('retry policy "odd": "many" is not a status code') == 1


def test_a_row_by_hand_with_a_policy_that_is_none(served: Database, server: Scripted) -> None:
    """What net.http_request refuses may be inserted: it is as if nothing had been asked for."""
    url = server.script(503, 200)
    id = served.value(
        "insert into net.http_request_queue (method, url, options)"
        " values ('GET', %s, '{\"retry\": \"no such\"}') returning id",
        url,
    )
    served.execute("select net.wake()")
    assert ended(served, id) == ("failed", 503, 1)
