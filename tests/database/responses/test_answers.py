"""Outcomes: an answer with status, headers and content, or an error without them."""

from __future__ import annotations

import socket
import time

import pytest

from servers.cluster import Database, Worker, free_port
from servers.nginx import Nginx
from servers.responses import TIMEOUT, Canned, get, http, outcome, result

# ---- answers


def test_an_answer(served: Database, nginx: Nginx) -> None:
    request_id = get(served, f"{nginx.url}/echo?a=1", headers='{"X-Test": "yes"}')
    row = outcome(served, request_id)
    assert row["status_code"] == 200
    assert row["content_type"] == "text/plain"
    assert row["headers"]["Content-Type"] == "text/plain"
    assert row["headers"]["Server"].startswith("nginx")
    assert row["content"].startswith("GET /echo?a=1 HTTP/1.1\r\n")
    assert "\r\nX-Test: yes\r\n" in row["content"]
    assert row["timed_out"] is False
    assert row["error_msg"] is None
    assert row["state"] == "succeeded"
    assert row["content_bytes"] is None
    assert row["attempts"] == 1
    assert row["context"] is None
    assert (row["method"], row["url"]) == ("GET", f"{nginx.url}/echo?a=1")
    assert row["requested_by"] == "postgres"
    assert row["requested"] <= row["created"]
    assert (
        served.value("select count(*) from net.http_request_queue where id = %s", request_id) == 0
    )
    assert result(served, request_id) == (
        "SUCCESS", "ok", 200, row["headers"], row["content"],
    )  # fmt: skip


def test_a_post(served: Database, nginx: Nginx) -> None:
    request_id = served.value(
        "select net.http_post(%s, body => %s)", f"{nginx.url}/echo", '{"a": "ä"}'
    )
    content = outcome(served, request_id)["content"]
    assert content.startswith("POST /echo HTTP/1.1\r\n")
    assert "\r\nContent-Type: application/json\r\n" in content
    assert "\r\nContent-Length: 11\r\n" in content
    assert content.endswith('\r\n\r\n{"a": "ä"}')


def test_an_empty_post(served: Database, nginx: Nginx) -> None:
    request_id = served.value("select net.http_post(%s, body => null)", f"{nginx.url}/echo")
    content = outcome(served, request_id)["content"]
    assert "\r\nContent-Length: 0\r\n" in content
    assert "\r\nContent-Type: application/json\r\n" in content
    assert content.endswith("\r\n\r\n")


def test_a_delete_with_and_without_a_body(served: Database, nginx: Nginx) -> None:
    url = f"{nginx.url}/echo"
    bare = outcome(served, served.value("select net.http_delete(%s)", url))["content"]
    full = outcome(served, served.value("select net.http_delete(%s, body => '[1]')", url))[
        "content"
    ]
    assert bare.startswith("DELETE /echo HTTP/1.1\r\n")
    assert "Content-Length" not in bare
    assert full.endswith("\r\n\r\n[1]")


@pytest.mark.parametrize("status", [201, 404, 429, 500, 503])
def test_every_status_is_an_answer(served: Database, nginx: Nginx, status: int) -> None:
    request_id = get(served, f"{nginx.url}/status/{status}")
    row = outcome(served, request_id)
    assert (row["status_code"], row["timed_out"], row["error_msg"]) == (status, False, None)
    assert row["state"] == ("succeeded" if status < 400 else "failed")
    assert result(served, request_id)[:3] == ("SUCCESS", "ok", status)
    failures = served.rows("select status_code, url from net.failures where id = %s", request_id)
    assert failures == ([] if status < 400 else [(status, f"{nginx.url}/status/{status}")])


def test_no_content(served: Database, nginx: Nginx) -> None:
    for path, status in (("/empty", 200), ("/status/204", 204)):
        request_id = get(served, nginx.url + path)
        row = outcome(served, request_id)
        assert (row["status_code"], row["content"], row["content_bytes"]) == (status, None, None)
        assert result(served, request_id)[4] is None


def test_a_redirect_is_followed(served: Database, nginx: Nginx) -> None:
    row = outcome(served, get(served, f"{nginx.url}/redirect"))
    assert (row["status_code"], row["content"]) == (200, "pgnet")
    assert row["url"] == f"{nginx.url}/redirect"


def test_headers_and_content_type_as_sent(served: Database, canned: Canned) -> None:
    canned.answers.put(
        http(b'content-TYPE: Text/HTML ;Charset="UTF-8"', b"x-ODD: 1", b"X-Twice: a", b"X-Twice: b")
    )
    row = outcome(served, get(served, canned.url))
    assert row["content_type"] == 'Text/HTML ;Charset="UTF-8"'
    assert row["headers"] == {
        "content-TYPE": 'Text/HTML ;Charset="UTF-8"',
        "x-ODD": "1",
        "X-Twice": "b",
        "Content-Length": "0",
    }


def test_no_content_type(served: Database, canned: Canned) -> None:
    canned.answers.put(http(body=b"plain"))
    row = outcome(served, get(served, canned.url))
    assert (row["content_type"], row["content"]) == (None, "plain")


def test_a_header_that_is_no_utf8(served: Database, canned: Canned) -> None:
    canned.answers.put(http(b"X-Name: Zo\xeb"))
    assert outcome(served, get(served, canned.url))["headers"]["X-Name"] == "Zoë"


@pytest.mark.parametrize(
    ("content_type", "body", "text"),
    [
        ("text/plain", "Zoë ☃".encode(), "Zoë ☃"),
        ("text/plain; charset=iso-8859-1", "Zoë".encode("latin-1"), "Zoë"),
        ('text/plain; charset="UTF-8"', "Zoë".encode(), "Zoë"),
        ("text/plain", "Zoë".encode("latin-1"), None),
        ("text/plain", b"a\0b", None),
        ("text/plain; charset=utf-16", "a\0b".encode("utf-16"), None),
        ("text/plain; charset=no-such", b"abc", None),
        # codecs of Python's that are no charsets
        ("text/plain; charset=base64", b"YWJj", None),
        ("text/plain; charset=rot13", b"abc", None),
        ("text/plain; charset=idna", b"xn--zo-jka", None),
        ("text/plain; charset=utf-8", b"\xed\xa0\x80", None),
        ("image/png", b"\x89PNG\r\n\x1a\n\0\0", None),
    ],
)
def test_content(
    served: Database, canned: Canned, content_type: str, body: bytes, text: str | None
) -> None:
    canned.answers.put(http(f"Content-Type: {content_type}".encode(), body=body))
    request_id = get(served, canned.url)
    row = outcome(served, request_id)
    assert (row["status_code"], row["error_msg"], row["content_type"]) == (200, None, content_type)
    assert row["content"] == text
    assert row["content_bytes"] == (None if text is not None else body)
    assert result(served, request_id)[0] == "SUCCESS"
    assert served.value("select content_bytes from net.responses where id = %s", request_id) == (
        None if text is not None else body
    )


def test_a_nul_in_a_header_of_the_answer(served: Database, httpd: str) -> None:
    """The request has one outcome, an answer or an error, and the worker goes on."""
    outcome(served, get(served, f"{httpd}/nul-header"))
    assert outcome(served, get(served, f"{httpd}/body/after"))["content"] == "after"


# ---- no answer


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("{httpd}/empty", "Server returned nothing (no headers, no data)"),
        ("http://no-such-host.invalid/", "Couldn't resolve host name"),
        ("http://127.0.0.1:{closed}/", "Couldn't connect to server"),
    ],
)
def test_no_answer(served: Database, httpd: str, url: str, message: str) -> None:
    request_id = get(
        served, url.format(httpd=httpd, closed=free_port()), timeout_milliseconds=20_000
    )
    row = outcome(served, request_id, timeout=25)
    assert row["error_msg"] == message
    assert row["timed_out"] is False
    assert row["state"] == "failed"
    for column in ("status_code", "content_type", "headers", "content", "content_bytes"):
        assert row[column] is None
    assert result(served, request_id) == ("ERROR", message, None, None, None)
    assert served.rows("select error_msg from net.failures where id = %s", request_id) == [
        (message,)
    ]


@pytest.mark.parametrize(
    "path", ["/hang", "/drip-headers/0.05", "/drip-body/0.05", "/continue/0.05"]
)
def test_timeout(served: Database, httpd: str, path: str) -> None:
    began = time.monotonic()
    request_id = get(served, httpd + path, timeout_milliseconds=300)
    row = outcome(served, request_id)
    took = time.monotonic() - began
    assert row["timed_out"] is True
    # The beginning of an answer is kept.
    status = 200 if path.startswith("/drip") else None
    assert row["status_code"] == status
    assert (row["content"] or "").strip("x") == ""
    found = TIMEOUT.fullmatch(row["error_msg"])
    assert found, row["error_msg"]
    assert int(found["limit"]) == 300
    assert found["whose"] == "the timeout_milliseconds of the request"
    assert 300 <= float(found["total"]) <= 550
    parts = sum(float(found[name]) for name in ("dns", "connect", "http"))
    assert parts == pytest.approx(float(found["total"]), abs=2)
    assert took >= 0.3
    assert result(served, request_id)[:3] == (
        "ERROR" if status is None else "SUCCESS", row["error_msg"], status
    )  # fmt: skip


def test_the_timeout_is_the_setting_unless_given(served: Database, httpd: str) -> None:
    row = outcome(served, get(served, f"{httpd}/hang"))
    found = TIMEOUT.fullmatch(row["error_msg"])
    assert found, row["error_msg"]
    assert found["limit"] == "1000"
    assert found["whose"].startswith("the setting timeout_milliseconds, for requests that give no")
    assert "net.configure('timeout_milliseconds', '5000')" in found["whose"]


def test_whose_time_to_connect_it_was(database: Database, worker: Worker) -> None:
    """The setting's, or the host's: behind where the time went."""
    with socket.socket() as full:
        # The server's backlog is full: another connection is not answered.
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        url = f"http://127.0.0.1:{full.getsockname()[1]}/"
        taken = [socket.socket() for _ in range(4)]
        for one in taken:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        database.execute("select net.configure('connect_timeout_milliseconds', '300')")
        message = outcome(database, get(database, url, timeout_milliseconds=5000))["error_msg"]
        assert message.startswith("Connect timeout of 300 ms reached. Total time: 3"), message
        assert "the setting connect_timeout_milliseconds: net.configure sets it" in message
        host = "select net.configure_host('127.0.0.1', '{\"connect_timeout_milliseconds\": 400}')"
        database.execute(host)
        message = outcome(database, get(database, url, timeout_milliseconds=5000))["error_msg"]
        assert message.startswith("Connect timeout of 400 ms reached. Total time: 4"), message
        assert "connect_timeout_milliseconds of the host: net.configure_host" in message
        for one in taken:
            one.close()
