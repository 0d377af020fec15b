"""Answers that are not as they should be: the status counts, and what can be kept is kept.

What a server answers here stands in the tests byte by byte. Each is asked by SQL, and read by SQL.
"""

from __future__ import annotations

import base64
import gzip
import itertools
import re
import signal
import socket
import struct
import subprocess
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from servers.cluster import Cluster, Database, as_server_user, free_port
from servers.memory import MIB, forget_peak
from servers.memory import status as size_of
from servers.workers import as_backend, as_process, one_worker

OK = b"HTTP/1.1 200 OK\r\n"
GZIP = gzip.compress(b"some words " * 500)
BAD_CODING = "Unrecognized or bad HTTP Content or Transfer-Encoding"
AS_IT_CAME = f"{BAD_CODING}: the body is kept as it came"
UP_TO_THE_FAULT = f"{BAD_CODING}: the body is kept up to the fault"
TIMEOUT = 600
POLICIES: dict[str, dict[str, Any]] = {
    # Whatever goes wrong, and whatever the method: only a status ends it.
    "stubborn": {"errors": "any", "methods": "any", "statuses": [503], "max_attempts": 4},
    # As webhook, in less time
    "hook": {"errors": "any", "methods": "any", "statuses": "any", "accept": ["2xx"],
             "max_attempts": 3},
}  # fmt: skip


class Raw:
    """A server that answers the n-th request for a path with the n-th of its answers, as it is.

    Then it ends the connection, by a reset where the answer ends in RESET, and not at all where it
    ends in SILENCE.
    """

    RESET, SILENCE = b"<reset>", b"<silence>"

    def __init__(self) -> None:
        self.answers: dict[str, list[bytes]] = {}
        self.seen: Counter[str] = Counter()
        self.headers: dict[str, bytes] = {}
        self._paths = itertools.count(1)
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def answering(self, *answers: bytes) -> str:
        """A new URL, with these answers; the last one stays."""
        path = f"/{next(self._paths)}"
        self.answers[path] = list(answers)
        return self.url + path

    def count(self, url: str) -> int:
        return self.seen[url.removeprefix(self.url)]

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                piece = connection.recv(65536)
                if not piece:
                    return
                head += piece
            head, _, body = head.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
            while length and len(body) < int(length[1]):
                body += connection.recv(65536)
            path = head.split(b" ")[1].decode().partition("?")[0]
            self.headers[path] = head
            number, answers = self.seen[path], self.answers.get(path, [whole(b"ok")])
            self.seen[path] += 1
            answer = answers[min(number, len(answers) - 1)]
            connection.sendall(answer.removesuffix(self.RESET).removesuffix(self.SILENCE))
            if answer.endswith(self.RESET):
                threading.Event().wait(0.02)
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            elif answer.endswith(self.SILENCE):
                self._ended.wait(30)

    def close(self) -> None:
        self._ended.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


def whole(body: bytes, *fields: bytes, status: bytes = b"200 OK") -> bytes:
    head = [b"HTTP/1.1 " + status, *fields, b"Content-Length: %d" % len(body), b"", b""]
    return b"\r\n".join(head) + body


def coded(coding: str, body: bytes) -> bytes:
    return whole(body, b"Content-Encoding: " + coding.encode())


def redirect(status: int, to: str, body: bytes = b"gone") -> bytes:
    return whole(body, b"Location: " + to.encode(), status=b"%d Elsewhere" % status)


@pytest.fixture(scope="module")
def server() -> Iterator[Raw]:
    raw = Raw()
    yield raw
    raw.close()


def prepare(database: Database) -> None:
    database.execute("select net.allow_network('127.0.0.1'), net.deny_host('no.example')")
    for name, settings in POLICIES.items():
        database.execute(
            "select net.configure_retry(%s, %s)",
            name,
            Jsonb({"backoff_milliseconds": 20, "max_backoff_milliseconds": 50, **settings}),
        )
    for name, value in {"max_response_bytes": 1000, "max_header_bytes": 1024}.items():
        database.execute("select net.configure(%s, %s)", name, str(value))


@pytest.fixture(scope="module", params=["process", "backend"])
def served(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Database]:
    database = cluster.create_database()
    prepare(database)
    with one_worker(database, request.param):
        yield database
        database.wait_for("select count(*) from pgnet.claim", predicate=lambda left: left == 0)
    database.drop()


def ask(database: Database, method: str, url: str, **more: Any) -> dict[str, Any]:
    """Send a request, and give its row when it has ended."""
    arguments = {"timeout_milliseconds": 10_000, **more}
    named = "".join(f", {name} => %s" for name in arguments)
    values = [Jsonb(v) if isinstance(v, dict) else v for v in arguments.values()]
    id = database.value(f"select net.http_request(%s, %s{named})", method, url, *values)
    database.execute("select net.wait(%s, '30 s')", id)
    cursor = database.connection.cursor(row_factory=dict_row)
    row = cursor.execute("select * from net.responses where id = %s", (id,)).fetchone()
    assert row is not None
    return row


# ---- a status that came is never lost


@dataclass(frozen=True)
class Case:
    """An answer, and what must come of it.

    body: what is kept, as text or as bytes. error: the whole message. late: whether it is the
    deadline that ends it.
    """

    answer: bytes
    body: str | bytes | None
    error: str
    status: int = 200
    late: bool = False
    headers: int | None = None


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n"
PARTIAL = "Transferred a partial file"
BROKEN_OFF = "Failure when receiving data from the peer"
LATE = rf"Timeout of {TIMEOUT} ms reached\..*"
WORDS = "some words " * 500
LONG = "response body exceeds 1000 bytes"
WEIRD = "Weird server reply"
PLAIN = b'{"a": 1, "b": [true, "two"]}'
CASES = {
    # codings
    "none": Case(coded("none", b"done"), "done", AS_IT_CAME),
    "unknown": Case(coded("aws-chunked", b"done"), "done", AS_IT_CAME),
    "utf-8": Case(coded("UTF-8", b"done"), "done", AS_IT_CAME),
    "binary": Case(coded("binary", b"\xff\0"), b"\xff\0", AS_IT_CAME),
    "identity-foo": Case(coded("identity, foo", b"done"), "done", AS_IT_CAME),
    "foo-gzip": Case(coded("foo, gzip", GZIP[:900]), GZIP[:900], AS_IT_CAME),
    "quoted": Case(coded('"gzip"', GZIP), GZIP, AS_IT_CAME),
    "zstd": Case(coded("zstd", b"\x28\xb5\x2f\xfd"), b"\x28\xb5\x2f\xfd", AS_IT_CAME),
    "plain-as-gzip": Case(coded("gzip", PLAIN), PLAIN.decode(), AS_IT_CAME),
    "plain-as-x-gzip": Case(coded("x-gzip", PLAIN), PLAIN.decode(), AS_IT_CAME),
    "plain-as-deflate": Case(coded("deflate", PLAIN), PLAIN.decode(), AS_IT_CAME),
    "plain-as-br": Case(coded("br", PLAIN), PLAIN.decode(), AS_IT_CAME),
    "plain-as-two": Case(coded("gzip, br", PLAIN), PLAIN.decode(), AS_IT_CAME),
    "gzip-as-deflate": Case(coded("deflate", GZIP), GZIP, AS_IT_CAME),
    "png-as-gzip": Case(coded("gzip", b"\x89PNG\r\n"), b"\x89PNG\r\n", AS_IT_CAME),
    "utf8-as-br": Case(coded("br", "Zoë ☃".encode()), "Zoë ☃", AS_IT_CAME),
    "cut-gzip": Case(coded("gzip", gzip.compress(b"ab" * 99)[:-4]), "ab" * 99, UP_TO_THE_FAULT),
    "gzip-and-more": Case(coded("gzip", gzip.compress(b"done") + b"!"), "done", UP_TO_THE_FAULT),
    "zlib-and-more": Case(coded("deflate", zlib.compress(b"done") + b"!"), "done", UP_TO_THE_FAULT),
    "bad-checksum": Case(
        coded("gzip", gzip.compress(b"done")[:-8] + bytes(8)), "done", UP_TO_THE_FAULT
    ),
    # limits
    "too-long": Case(whole(b"x" * 1001), "x" * 1000, LONG),
    "too-long-in-chunks": Case(
        CHUNKED + b"\r\n" + b"64\r\n" + b"y" * 100 + b"\r\n"
        + b"fff\r\n" + b"x" * 4095 + b"\r\n0\r\n\r\n", "y" * 100 + "x" * 900, LONG,
    ),
    "too-long-decoded": Case(coded("gzip", GZIP), WORDS[:1000], LONG),
    "too-long-as-it-came": Case(coded("none", b"x" * 2000), "x" * 1000, LONG),
    "within-a-character": Case(whole("xx☃".encode() * 201), "xx☃" * 200, LONG),
    "too-long-and-no-text": Case(whole(b"\xff" * 2000), b"\xff" * 1000, LONG),
    "too-many-headers": Case(
        OK + b"".join(b"X-%03d: %s\r\n" % (n, b"x" * 100) for n in range(30)) + b"\r\nok",
        None, "response headers exceed 1024 bytes", headers=9,
    ),
    "header-too-long": Case(
        OK + b"X-A: b\r\nX-Long: " + b"x" * 2000 + b"\r\n\r\nok",
        None, "response headers exceed 1024 bytes", headers=1,
    ),
    "too-many-trailers": Case(
        CHUNKED + b"\r\n2\r\nok\r\n0\r\nX-Long: " + b"x" * 2000 + b"\r\n\r\n",
        "ok", "response headers exceed 1024 bytes", headers=1,
    ),
    # ends before the end
    "short": Case(OK + b"Content-Length: 100\r\n\r\nhalf", "half", PARTIAL),
    "short-by-all": Case(OK + b"Content-Length: 100\r\n\r\n", None, PARTIAL),
    "cut-in-a-character": Case(OK + b"Content-Length: 9\r\n\r\nab\xe2\x98", "ab", PARTIAL),
    "cut-chunk": Case(CHUNKED + b"\r\n64\r\nhalf", "half", PARTIAL),
    "no-last-chunk": Case(CHUNKED + b"\r\n4\r\nhalf\r\n", "half", PARTIAL),
    "bad-chunk": Case(CHUNKED + b"\r\n4\r\nhalf\r\nzz\r\n", "half", BROKEN_OFF),
    "cut-headers": Case(OK + b"X-A: b\r\nX-Half: ", None, PARTIAL, headers=1),
    "reset": Case(OK + b"Content-Length: 9\r\n\r\nhalf" + Raw.RESET, "half", BROKEN_OFF),
    "created-and-cut": Case(
        b"HTTP/1.1 201 Created\r\nContent-Length: 9\r\n\r\nhalf", "half", PARTIAL, 201
    ),
    # the time is over
    "late-body": Case(
        OK + b"Content-Length: 9\r\n\r\nhalf" + Raw.SILENCE, "half", LATE, late=True
    ),
    "late-end": Case(OK + b"\r\nall" + Raw.SILENCE, "all", LATE, late=True),
    "late-chunk": Case(CHUNKED + b"\r\n4\r\nhalf\r\n" + Raw.SILENCE, "half", LATE, late=True),
    "late-headers": Case(OK + b"X-A: b\r\n" + Raw.SILENCE, None, LATE, late=True, headers=1),
    "interim-then-late": Case(
        b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK + b"\r\n" + Raw.SILENCE, None, LATE, late=True
    ),
    # framing that cannot be trusted
    "chunked-twice": Case(
        CHUNKED + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", None, BAD_CODING
    ),
    "chunked-chunked": Case(
        OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", None, BAD_CODING
    ),
    "foreign-transfer": Case(OK + b"Transfer-Encoding: foo\r\n\r\nok", None, BAD_CODING),
    "gzip-transfer": Case(
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", None, BAD_CODING
    ),
    "two-lengths": Case(
        OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok!", None, WEIRD, headers=2
    ),
    "list-of-lengths": Case(OK + b"Content-Length: 2, 3\r\n\r\nok!", None, WEIRD),
    "no-length": Case(OK + b"Content-Length: two\r\n\r\nok", None, WEIRD),
    # redirects that cannot be followed
    "to-nowhere": Case(
        redirect(302, "ftp://x/"), "gone", "redirect to an invalid or unsupported URL", 302
    ),
    "to-no-url": Case(
        redirect(303, "http://["), "gone", "redirect to an invalid or unsupported URL", 303
    ),
    "two-locations": Case(
        whole(b"gone", b"Location: /a", b"Location: /b", status=b"302 F"), "gone",
        "redirect to an invalid or unsupported URL", 302,
    ),
    "guarded": Case(
        redirect(303, "http://127.0.0.2:8080/"), "gone",
        r"127\.0\.0\.2 is a loopback address .*", 303,
    ),
    "guarded-port": Case(redirect(303, "http://127.0.0.1:25/"), "gone", r".*port 25 is not.*", 303),
    "guarded-name": Case(
        redirect(302, "http://no.example/"), "gone", r"no\.example is a denied host.*", 302
    ),
    "other-origin": Case(
        redirect(307, "http://127.0.0.1:1/"), "gone",
        "redirect of a POST request to another origin is not followed", 307,
    ),
    "redirect-too-long": Case(redirect(302, "/x", b"x" * 2000), "x" * 1000, LONG, 302),
    "redirect-to-a-dead-port": Case(
        redirect(303, f"http://127.0.0.1:{free_port()}/"), "gone", "Couldn't connect to server", 303
    ),
    "redirect-to-no-host": Case(
        redirect(302, "http://nobody.invalid/"), "gone", "Couldn't resolve host name", 302
    ),
}  # fmt: skip


def assert_is(case: Case, row: dict[str, Any]) -> None:
    content, content_bytes = row["content"], row["content_bytes"]
    assert (content if content is not None else content_bytes) == case.body
    assert row["status_code"] == case.status
    assert re.fullmatch(re.escape(case.error) if case.error[-1] != "*" else case.error,
                        row["error_msg"]), row["error_msg"]  # fmt: skip
    assert row["timed_out"] is case.late
    assert row["http_version"] == "1.1"
    assert row["first_byte_ms"] > 0
    assert row["total_ms"] >= row["first_byte_ms"]
    assert len(row["header_list"]) == (case.headers or len(row["header_list"]))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_status_that_came_is_what_counts(served: Database, server: Raw, case: Case) -> None:
    """Under a policy that sends again whatever goes wrong: it has not gone wrong."""
    url = server.answering(case.answer)
    more = {"timeout_milliseconds": TIMEOUT} if case.late else {}
    row = ask(served, "POST", url, body_text="x", retry="stubborn", **more)
    assert_is(case, row)
    assert (row["state"], row["attempts"], server.count(url)) == ("succeeded", 1, 1)
    # All ways to look at it
    id = row["id"]
    assert served.row(
        "select r.status::text, r.message, (r.response).status_code, (r.response).headers,"
        " (r.response).body from net.http_get_result(%s) r",
        id,
    ) == ("SUCCESS", row["error_msg"], case.status, row["headers"], row["content"])
    assert served.row("select state::text, status_code, error_msg from net.wait(%s)", id) == (
        "succeeded", case.status, row["error_msg"],
    )  # fmt: skip
    assert served.rows("select status_code, timed_out from net.attempts where request_id = %s", id)
    assert served.rows("select from net.failures where id = %s", id) == []


@pytest.mark.parametrize(
    "name", ["none", "plain-as-gzip", "too-long", "short", "reset", "late-body", "late-headers",
             "two-lengths", "cut-headers", "too-many-headers", "guarded", "redirect-to-a-dead-port"]
)  # fmt: skip
def test_at_most_once_knows_that_it_was_answered(served: Database, server: Raw, name: str) -> None:
    case = CASES[name]
    url = server.answering(case.answer)
    more = {"timeout_milliseconds": TIMEOUT} if case.late else {}
    once = {"delivery": "at_most_once"}
    row = ask(served, "POST", url, body_text="x", retry="stubborn", options=once, **more)
    assert_is(case, row)
    assert (row["state"], server.count(url)) == ("succeeded", 1)


@pytest.mark.parametrize("end", [b"", Raw.RESET])
def test_at_most_once_that_was_passed_on(served: Database, server: Raw, end: bytes) -> None:
    """307 says that the request is to be made elsewhere; whether it was there nobody knows."""
    url = server.answering(redirect(307, server.answering(end)))
    once = {"delivery": "at_most_once"}
    row = ask(served, "POST", url, body_text="x", retry="stubborn", options=once)
    assert (row["state"], row["status_code"], row["attempts"]) == ("unknown", 307, 1)
    assert row["error_msg"].endswith("is unknown, and it is not sent again.")


@pytest.mark.parametrize("code", [500, 404])
def test_a_status_that_is_not_accepted(served: Database, server: Raw, code: int) -> None:
    url = server.answering(b"HTTP/1.1 %d Oh\r\nContent-Length: 9\r\n\r\nhalf" % code)
    row = ask(served, "GET", url, retry="stubborn")
    assert (row["state"], row["status_code"], row["attempts"]) == ("failed", code, 1)
    assert (row["content"], row["error_msg"]) == ("half", PARTIAL)
    id = row["id"]
    assert served.value("select (net.http_get_result(%s)).status::text", id) == "SUCCESS"
    assert served.rows("select status_code, error_msg from net.failures where id = %s", id) == [
        (code, PARTIAL)
    ]


def test_a_status_that_is_tried_again(served: Database, server: Raw) -> None:
    """As any status is, at the time that it says itself."""
    busy = b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 9\r\n\r\nhalf"
    url = server.answering(busy, coded("none", b"done"))
    row = ask(served, "POST", url, body_text="x", retry="stubborn")
    assert (row["state"], row["status_code"], row["attempts"]) == ("succeeded", 200, 2)
    first, second = served.rows(
        "select state, status_code, error_msg, retry_in >= '1 s' from net.attempts"
        " where request_id = %s order by attempt",
        row["id"],
    )
    assert first == ("answered", 503, PARTIAL, True)
    assert second[:3] == ("succeeded", 200, AS_IT_CAME)


def test_a_redirect_is_a_status_like_any_other(served: Database, server: Raw) -> None:
    """To a webhook it is none that it accepts."""
    url = server.answering(redirect(302, "ftp://x/"))
    row = ask(served, "POST", url, body_text="x", retry="hook")
    assert (row["state"], row["status_code"], row["attempts"]) == ("failed", 302, 3)
    assert server.count(url) == 3


def test_a_redirect_without_an_answer_behind_it(served: Database, server: Raw) -> None:
    """A GET is passed on: that nobody is there is tried again, and is no success."""
    dead = f"http://127.0.0.1:{free_port()}/"
    url = server.answering(redirect(302, dead))
    row = ask(served, "GET", url, retry="stubborn")
    assert (row["state"], row["status_code"], row["attempts"]) == ("failed", 302, 4)
    assert (row["error_msg"], row["final_url"]) == ("Couldn't connect to server", dead)
    assert row["headers"]["Location"] == dead


def test_a_redirect_is_followed_whatever_its_body_is(served: Database, server: Raw) -> None:
    to = server.answering(whole(b"here"))
    for answer in (
        whole(b"gone", b"Content-Encoding: none", b"Location: " + to.encode(), status=b"302 F"),
        whole(b"gone", b"Content-Encoding: gzip", b"Location: " + to.encode(), status=b"303 S"),
    ):
        row = ask(served, "POST", server.answering(answer), body_text="x")
        assert (row["status_code"], row["content"], row["error_msg"]) == (200, "here", None)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + Raw.RESET,
        b"HTTP/1.1 20",
        b"ICY 200 OK\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
def test_where_no_final_status_came(served: Database, server: Raw, answer: bytes) -> None:
    url = server.answering(answer)
    row = ask(served, "POST", url, body_text="x", retry="stubborn")
    assert (row["state"], row["status_code"], row["attempts"]) == ("failed", None, 4)
    assert server.count(url) == 4
    assert (row["headers"], row["header_list"], row["content"]) == (None, None, None)
    assert row["error_msg"]
    assert served.value("select (net.http_get_result(%s)).status::text", row["id"]) == "ERROR"


def test_trailers_and_interim_answers(served: Database, server: Raw) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nX-Early: 1\r\n\r\n"
    url = server.answering(interim + CHUNKED + b"\r\n2\r\nok\r\n0\r\nX-Late: 2\r\n\r\n")
    row = ask(served, "GET", url)
    assert (row["status_code"], row["content"], row["error_msg"]) == (200, "ok", None)
    assert [name for name, _ in row["header_list"]] == ["Transfer-Encoding", "X-Late"]


def test_no_answer_beyond_a_limit_of_nothing(cluster: Cluster, server: Raw) -> None:
    """Who wants no bodies has their statuses."""
    database = cluster.create_database()
    prepare(database)
    database.execute("select net.configure('max_response_bytes', '0')")
    with database.worker():
        row = ask(database, "GET", server.answering(whole(b"body")))
        assert (row["status_code"], row["content"]) == (200, None)
        assert row["error_msg"] == "response body exceeds 0 bytes"
        row = ask(database, "GET", server.answering(whole(b"")))
        assert (row["status_code"], row["error_msg"]) == (200, None)
    database.drop()


# ---- secrets


SECRET = "Tr0ub4dor-and-3-horses"


@pytest.fixture(scope="module")
def with_secret(served: Database, server: Raw) -> Database:
    served.execute("select net.set_secret('key', %s, %s)", SECRET, server.url)
    return served


def everything(row: dict[str, Any]) -> str:
    """All of a row, so that whatever tells the secret is found."""
    shown = " ".join(str(value) for name, value in row.items() if name != "content_bytes")
    return shown + (row["content_bytes"] or b"").decode("latin-1")


@pytest.mark.parametrize("missing", [1, 3, 10, 15])
def test_a_secret_that_a_limit_cuts(with_secret: Database, server: Raw, missing: int) -> None:
    """A mask finds whole secrets: most of one, at the end of what is kept, is hidden too."""
    before = b"x" * (1000 - len(SECRET) + missing)
    url = server.answering(whole(before + SECRET.encode() + b" and more"))
    row = ask(with_secret, "GET", url, headers={"X-Key": {"secret": "key"}})
    assert row["error_msg"] == LONG
    assert SECRET[:7] not in everything(row)
    assert row["content"].startswith("x" * 500)


@pytest.mark.parametrize(
    "form", [str, lambda s: base64.b64encode(s.encode()).decode(), lambda s: s.encode().hex()],
    ids=["plain", "base64", "hex"],
)  # fmt: skip
@pytest.mark.parametrize("end", [b"", Raw.RESET])
@pytest.mark.parametrize("binary", [b"", b"\xff"], ids=["text", "bytes"])
def test_a_secret_that_an_end_cuts(
    with_secret: Database, server: Raw, form: Any, end: bytes, binary: bytes
) -> None:
    told = form(SECRET)[:-2]
    answer = OK + b"Content-Length: 999\r\n\r\n" + binary + b"x" * 500 + told.encode() + end
    row = ask(with_secret, "GET", server.answering(answer), headers={"X-Key": {"secret": "key"}})
    assert row["status_code"] == 200
    assert told[:8] not in everything(row)


def test_a_secret_in_a_coding_that_is_not_undone(with_secret: Database, server: Raw) -> None:
    """Whoever can undo it would read the secret; what is plain is masked, as always."""
    packed = gzip.compress(f"your key is {SECRET}".encode())
    row = ask(with_secret, "GET", server.answering(coded("compress, gzip", packed)),
              headers={"X-Key": {"secret": "key"}})  # fmt: skip
    assert (row["status_code"], row["content"], row["content_bytes"]) == (200, None, None)
    row = ask(with_secret, "GET", server.answering(coded("none", f"it is {SECRET}".encode())),
              headers={"X-Key": {"secret": "key"}})  # fmt: skip
    assert (row["status_code"], row["content"]) == (200, "it is ***")


@pytest.mark.parametrize("location", ["http://127.0.0.2:8080/?k={}", "/?k={}", "//127.0.0.2/{}"])
@pytest.mark.parametrize("max_redirects", [None, 0])
def test_a_secret_in_a_redirect(
    with_secret: Database, server: Raw, location: str, max_redirects: int | None
) -> None:
    to = location.format(SECRET)
    url = server.answering(redirect(302, to, f"<a href='{to}'>".encode()))
    row = ask(with_secret, "GET", url, headers={"X-Key": {"secret": "key"}},
              options={"max_redirects": max_redirects})  # fmt: skip
    assert SECRET not in everything(row)
    if "127.0.0.2" in location:
        assert (row["status_code"], row["headers"]["Location"]) == (302, "***")
        assert row["content"] is None
        assert "repeats a secret beyond its URL prefix" in row["error_msg"]


def test_the_redirect_of_a_secret_url(with_secret: Database, server: Raw) -> None:
    with_secret.execute(
        "select net.set_secret('hook', %s, %s)", server.url + "/hooks/T0ken-of-a-hook", server.url
    )
    server.answers["/hooks/T0ken-of-a-hook"] = [redirect(302, "ftp://x/T0ken-of-a", b"")]
    url = with_secret.value("select net.secret_url('hook')")
    row = ask(with_secret, "POST", url, body_text="x")
    assert (row["status_code"], row["headers"]["Location"]) == (302, "***")
    assert "T0ken" not in everything(row)


# ---- text


@pytest.mark.parametrize(
    ("content_type", "body", "text"),
    [
        # A label of the standard means what it means to browsers.
        ("text/html; charset=ISO-8859-1", b"\x80 10 \x93quoted\x94", "€ 10 “quoted”"),
        ("text/html; charset=latin1", b"Zo\xeb", "Zoë"),
        ("text/html; charset=us-ascii", b"\x85", "…"),
        ("text/plain; charset=windows-1252", b"\x81\x8d\x90", "\x81\x8d\x90"),
        ("text/plain; charset=iso-8859-9", b"\xfd\xf0", "\u0131\u011f"),
        ("text/plain; charset=iso-8859-11", b"\xa1", "ก"),
        ("text/plain; charset=gb2312", "汉".encode("gb18030"), "汉"),
        ("text/plain; charset=ks_c_5601-1987", "한".encode("cp949"), "한"),
        ("text/plain; charset=shift_jis", "①".encode("cp932"), "①"),
        ("text/plain; charset=cp1251", "Привет".encode("cp1251"), "Привет"),
        ("text/plain; charset=x-sjis", "日本".encode("cp932"), "日本"),
        ("text/plain; charset='utf-8'", "Zoë".encode(), "Zoë"),
        ("text/plain; CHARSET = UTF-8 ; x=y", "Zoë".encode(), "Zoë"),
        ("text/plain; charset=utf-8, text/plain", "Zoë".encode(), "Zoë"),
        # A byte order mark says more than a label, and is not part of the text.
        ("text/csv; charset=iso-8859-1", "\ufeffZoë".encode(), "Zoë"),
        ("text/plain", "Zoë".encode("utf-16"), "Zoë"),
        ("text/xml", b"\xfe\xff" + "Zoë".encode("utf-16-be"), "Zoë"),
        ("text/plain; charset=utf-16le", "Zoë".encode("utf-16-le"), "Zoë"),
        # A text says of itself what it likes.
        ("text/html", b"<meta charset=iso-8859-1>Zo\xeb", None),
        # What is no label, and what is one that means nothing any more
        ("text/plain; charset=utf8mb4", b"abc", None),
        ("text/plain; charset=hz-gb-2312", b"abc", None),
        ("text/plain; charset=x-user-defined", b"abc", None),
        ("text/plain; charset=utf-7", b"+AGE-", None),
        ("text/plain; charset=unicode_escape", b"\\u0061", None),
        ("text/plain; charset=zip", zlib.compress(b"abc"), None),
        ("application/octet-stream", b"\xff\xfea\0", None),
    ],
)
def test_text(
    served: Database, server: Raw, content_type: str, body: bytes, text: str | None
) -> None:
    row = ask(
        served, "GET", server.answering(whole(body, b"Content-Type: " + content_type.encode()))
    )
    assert row["error_msg"] is None
    assert (row["content"], row["content_bytes"]) == (text, None if text is not None else body)


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        # RFC 8259: UTF-8, whatever the label says
        ("application/json", b'\xef\xbb\xbf{"a": "\xc3\xab"}', {"a": "ë"}),
        ("application/json; charset=utf8mb4", '{"a": "ë"}'.encode(), {"a": "ë"}),
        ("application/json; charset=iso-8859-1", '{"a": "ë"}'.encode(), {"a": "ë"}),
        ("application/json; charset=utf-16", '{"a": "ë"}'.encode(), {"a": "ë"}),
        ("application/json; charset=", b"[1]", [1]),
        ('application/json; charset="utf-8', b"[1]", [1]),
        ("application/json;charset=binary", b"[1]", [1]),
        ("text/json; charset=none", b"[1]", [1]),
        ("application/ld+json; charset=us-ascii", '["ë"]'.encode(), ["ë"]),
        ("APPLICATION/JSON", b"true", True),
        ("application/vnd.api+json;profile=x", b'"\\u00eb"', "ë"),
        ("application/json, application/json", b"[1]", [1]),
        ("application/x-json", b"[1]", [1]),
        # forms that older standards allowed
        ("application/json", '["ë"]'.encode("utf-16"), ["ë"]),
        ("application/json", '["ë"]'.encode("utf-16-le"), ["ë"]),
        ("application/json", '["ë"]'.encode("utf-16-be"), ["ë"]),
        ("application/json", '["ë"]'.encode("utf-32"), ["ë"]),
        ("application/json", '["ë"]'.encode("utf-32-be"), ["ë"]),
        # and one that none did, but whose label says what it is
        ("application/json; charset=iso-8859-1", '["ë"]'.encode("latin-1"), ["ë"]),
        # What jsonb makes of it
        ("application/json", b'{"a": 1, "a": 2}', {"a": 2}),
        ("application/json", b"12345678901234567890.10", 12345678901234567890.10),
        ("application/json", b' \n[1e3]\t', [1000]),
        ("application/json", b"null", None),
        # and what it cannot hold, or what is no JSON
        ("application/json", b'["\\u0000"]', None),
        ("application/json", b'["\\ud800"]', None),
        ("application/json", b"1e200000", None),
        ("application/json", b"[NaN]", None),
        ("application/json", b"", None),
        ("application/json", b"[1", None),
        ("application/json", b"[1] [2]", None),
        ("application/json", b'["\x01"]', None),
        ("application/json", b"\xff\xfe", None),
        ("application/json", b'["\0"]', None),
        ("application/json", b"[" * 900, None),
        # Under another type a number or a word is a text, and an array or an object is JSON.
        ("text/html", b" [1]", [1]),
        ("text/plain", b'{"a": 1}', {"a": 1}),
        ("text/plain", b"1", None),
        ("text/plain", b"true", None),
        ("text/plain", b"[info] started", None),
        ("application/octet-stream", b"{}", {}),
    ],
)  # fmt: skip
def test_json(served: Database, server: Raw, content_type: str, body: bytes, expected: Any) -> None:
    row = ask(
        served, "GET", server.answering(whole(body, b"Content-Type: " + content_type.encode()))
    )
    assert (row["status_code"], row["error_msg"]) == (200, None)
    assert row["content_json"] == expected
    if expected is not None:
        # Who casts it himself has no byte order mark to take away.
        assert (
            served.value("select content::jsonb from net._http_response where id = %s", row["id"])
            == expected
        )


@pytest.mark.parametrize(
    ("encoding", "locale"), [("LATIN1", "C"), ("SQL_ASCII", "C"), ("WIN1252", "C"), ("EUC_JP", "C")]
)
def test_json_in_other_databases(cluster: Cluster, server: Raw, encoding: str, locale: str) -> None:
    """Where the database's text can hold it; a body is never lost."""
    name = f"answers_{encoding}".lower()
    with cluster.connect() as connection:
        connection.execute(
            sql.SQL("create database {} template template0 encoding {} locale {}").format(
                sql.Identifier(name), sql.Literal(encoding), sql.Literal(locale)
            )
        )
    database = Database(cluster, name)
    database.execute("create extension pgnet cascade")
    prepare(database)
    bodies = {
        "ascii": b'\xef\xbb\xbf{"a": "\\n"}',
        "latin": '{"a": "ë"}'.encode(),
        "snow": '{"a": "☃"}'.encode(),
    }
    expected: dict[str, Any] = {"ascii": "\n", "latin": "ë", "snow": None}
    if encoding == "SQL_ASCII":
        expected["snow"] = "☃"
    with database.worker(), cluster.connect(name, client_encoding="UTF8") as reader:
        for kind, body in bodies.items():
            url = server.answering(whole(body, b"Content-Type: application/json; charset=x"))
            row: Any = reader.execute(
                "select net.http_get(%s, timeout_milliseconds => 9000)", (url,)
            ).fetchone()
            assert row is not None
            reader.commit()
            reader.execute("select net.wait(%s)", row)
            found: Any = reader.execute(
                "select content_json ->> 'a', coalesce(convert_to(content, 'SQL_ASCII'),"
                " content_bytes) from net.responses where id = %s",
                row,
            ).fetchone()
            assert found is not None
            told = found[0]
            # Of an SQL_ASCII database psycopg gives bytes.
            assert told in (expected[kind], (expected[kind] or "").encode()), kind
            assert found[1], kind
            reader.commit()
    database.drop()


@pytest.mark.parametrize(
    ("body", "fits"),
    [
        (b"[" + b"1e131071," * 7000 + b"1]", True),
        (b"[" + b"1e131071," * 9000 + b"1]", False),
        (b"[" + b"-1E+00131071, " * 9000 + b"1]", False),
        (b"[" + b"1e-16383," * 70_000 + b"1]", False),
        (b"{" + b",".join(b'"%d":1e131071' % n for n in range(9000)) + b"}", False),
        (b"[" + b'"1e131071",' * 9000 + b"1]", True),
        (b"[" + rb'"\"1e131071\\",' * 9000 + b"1]", True),
        (b"[" + b"1e9," * 20_000 + b"1]", True),
    ],
)
def test_json_that_grows(database: Database, body: bytes, fits: bool) -> None:
    """Eighty kilobytes, and more than a gigabyte as jsonb: the view is read all the same."""
    database.execute(
        "insert into net._http_response (id, status_code, content_type, content, timed_out, state,"
        " attempts, method, url, requested_by, requested) select n, 200, 'application/json',"
        " case n when 1 then %s else '[1]' end, false, 'succeeded', 1, 'GET', 'http://x/',"
        " current_user::regrole, now() from generate_series(1, 3) n",
        body.decode(),
    )
    found = database.rows("select id, content_json is not null from net.responses order by id")
    assert found == [(1, fits), (2, True), (3, True)]
    if not fits:
        assert len(database.rows("select * from net.responses")) == 3


def test_json_with_more_elements_than_jsonb_takes(database: Database) -> None:
    """PostgreSQL runs into the limit of its allocations, which is no error of the data."""
    database.execute(
        "insert into net._http_response (id, status_code, content_type, content, timed_out, state,"
        " attempts, method, url, requested_by, requested) select 1, 200, 'application/json',"
        " '[' || repeat('1,', 16800000) || '1]', false, 'succeeded', 1, 'GET', 'http://x/',"
        " current_user::regrole, now()"
    )
    assert database.value("select content_json is null from net.responses") is True


# ---- memory


@pytest.fixture(scope="module", params=[as_process, as_backend], ids=["process", "backend"])
def roomy(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[tuple[Database, int, str]]:
    """A database whose answers may be large, and the process that reads them."""
    database = cluster.create_database()
    prepare(database)
    for name in ("max_response_bytes", "max_wire_bytes"):
        database.execute("select net.configure(%s, %s)", name, str(200 * MIB))
    with request.param(database) as pid:
        yield database, pid, request.param.__name__
    database.drop()


@pytest.mark.parametrize("character", [b"\x01", b'"', b"x", b"\xff"])
def test_what_a_large_answer_costs(
    roomy: tuple[Database, int, str],
    server: Raw,
    character: bytes,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever its characters are: as JSON, some would be six times as long."""
    database, pid, form = roomy
    size = 32 * MIB
    url = server.answering(whole(character * size))
    rest = forget_peak(pid)
    id = database.value("select net.http_get(%s, timeout_milliseconds => 60000)", url)
    assert database.row(
        "select status_code, octet_length(content), octet_length(content_bytes), error_msg"
        " from net.wait(%s, '60 s')",
        id,
    ) == (200, *((None, size) if character == b"\xff" else (size, None)), None)
    most = size_of(pid, "VmHWM") - rest
    with capsys.disabled():
        print(f" [{most / size:.1f} times its size]", end="")
    # Of a backend the shared buffers count too, and the server's own copies.
    assert most < (8 if "process" in form else 24) * size
    database.execute("delete from net._http_response where id = %s", id)


def test_labels_are_not_remembered(roomy: tuple[Database, int, str], server: Raw) -> None:
    """Each long label is another one; Python's own look-up keeps each for ever."""
    database, pid, _form = roomy
    urls = [
        server.answering(whole(b"x", b"Content-Type: text/plain; charset=x%d" % n + b"y" * 100_000))
        for n in range(400)
    ]
    database.execute("select net.configure('max_header_bytes', '200000')")

    def have_answered(some: list[str]) -> None:
        database.execute(
            "select net.http_get(url, timeout_milliseconds => 60000) from unnest(%s::text[]) url",
            some,
        )
        database.wait_for(
            "select count(*) from net.http_request_queue", predicate=lambda n: n == 0, timeout=60
        )

    # What is made once is made first. Few at a time, which take the room of those before them.
    for start in range(0, 100, 5):
        have_answered(urls[start : start + 5])
    before = size_of(pid, "VmRSS")
    for start in range(100, 400, 5):
        have_answered(urls[start : start + 5])
    assert size_of(pid, "VmRSS") - before < 12 * MIB
    assert server.count(urls[-1]) == 1


def test_an_answer_that_there_is_no_memory_for(cluster: Cluster, server: Raw) -> None:
    """It is recorded without its body; the worker lives, and others have their answers."""
    database = cluster.create_database()
    prepare(database)
    for name in ("max_response_bytes", "max_wire_bytes"):
        database.execute("select net.configure(%s, %s)", name, str(200 * MIB))
    sizes = [20, 40, 60, 90, 120, 180]
    with database.worker() as worker:
        assert ask(database, "GET", server.answering(whole(b"ok")))["content"] == "ok"
        allowed = size_of(worker.pid, "VmSize") + 150 * MIB
        # As the worker's user: root may be confined itself.
        limit = ["prlimit", "--pid", str(worker.pid), f"--as={allowed}"]
        subprocess.run(as_server_user(limit, signal.SIGKILL), check=True)
        lost = []
        for size in sizes:
            url = server.answering(whole(b"x" * (size * MIB)))
            row = ask(database, "POST", url, body_text="x", timeout_milliseconds=60_000)
            assert (row["status_code"], row["state"], server.count(url)) == (200, "succeeded", 1)
            if row["content"] is None:
                lost.append(row["error_msg"])
            assert ask(database, "GET", server.answering(whole(b"ok")))["content"] == "ok"
        assert len(lost) >= 3
        assert all("there is no memory for" in message for message in lost)
        assert worker.process.poll() is None
    database.drop()
