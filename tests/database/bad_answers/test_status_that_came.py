"""Answers that are not as they should be: the status counts, and what can be kept is kept."""

from __future__ import annotations

import base64
import gzip
import re
import zlib
from dataclasses import dataclass
from typing import Any

import pytest

from servers.cluster import Cluster, Database, free_port
from servers.raw import GZIP, LONG, OK, TIMEOUT, Raw, ask, coded, prepare, redirect, whole

BAD_CODING = "Unrecognized or bad HTTP Content or Transfer-Encoding"


AS_IT_CAME = f"{BAD_CODING}: the body is kept as it came"


UP_TO_THE_FAULT = f"{BAD_CODING}: the body is kept up to the fault"

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
    """An answer with a fault is tried again by its status, at the time of its Retry-After."""
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
    """The policy of a webhook does not accept this status."""
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
    """Where no body is allowed, statuses still come."""
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
    """A reader who undoes the coding would see the secret; plain text is masked as always."""
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
