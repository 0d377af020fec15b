"""Made-up requests reach a strict server just as they are, or are refused."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import gevent
import pytest
from gevent.event import AsyncResult

from pgnet.outbox import Claim
from pgnet.request.check import check
from pgnet.request.errors import InvalidRequest
from pgnet.request.params import encode_form
from pgnet.wire.answer import Answer
from pgnet.wire.exchange import Exchange
from pgnet.wire.guard import Guard
from pgnet.worker.assemble import assemble, read
from servers import strict
from servers.client import LOOPBACK, NameServer
from servers.fuzz import CASES, TIMEOUT, Tally, ask_all, check_refusal, compare_all, fuzz
from servers.made_requests import (
    HEAD,
    PORT,
    Case,
    as_jsonb,
    json_text,
    local_hosts,
    named_hosts,
    no_hosts,
    pick,
)
from servers.strict import Strict
from servers.wanted import compare, wanted, wanted_body


@pytest.fixture(scope="module")
def server() -> Iterator[Strict]:
    with strict.running() as running:
        yield running


@pytest.fixture(autouse=True)
def forget(server: Strict) -> None:
    server.take()


def send(server: Strict, data: bytes) -> bytes:
    """Send bytes over one connection, and read until the server has answered or closed."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(10)
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = bytearray()
        while chunk := connection.recv(65536):
            answer += chunk
        return bytes(answer)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(HEAD + b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", id="two where one was sent"),
        pytest.param(HEAD + b"\r\n\r\n", id="a line break behind it"),
        pytest.param(HEAD + b"Content-Length: 3\r\n\r\nabcd", id="a byte behind its body"),
        pytest.param(HEAD + b"Content-Length: 3\r\n\r\nab", id="a body cut off"),
        pytest.param(HEAD, id="a head cut off"),
        pytest.param(b"\r\n" + HEAD + b"\r\n", id="a line break before it"),
        pytest.param(
            HEAD + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            id="a length and a coding",
        ),
        pytest.param(HEAD + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n", id="two lengths"),
        pytest.param(HEAD + b"Content-Length: 0, 0\r\n\r\n", id="a list of lengths"),
        pytest.param(HEAD + b"Content-Length: +1\r\n\r\na", id="a length with a sign"),
        pytest.param(HEAD + b"Transfer-Encoding: gzip\r\n\r\n", id="an unknown coding"),
        pytest.param(HEAD + b"Host: a\r\n\r\n", id="two hosts"),
        pytest.param(b"GET / HTTP/1.1\r\nX: a\r\n\r\n", id="no host"),
        pytest.param(HEAD + b"X: a\r\n b\r\n\r\n", id="a folded line"),
        pytest.param(HEAD + b"X: a\nY: b\r\n\r\n", id="a bare line feed"),
        pytest.param(HEAD.replace(b"\r", b"") + b"\n", id="bare line feeds only"),
        pytest.param(HEAD + b"X: a\rb\r\n\r\n", id="a bare carriage return"),
        pytest.param(HEAD + b"X: a\0b\r\n\r\n", id="a NUL"),
        pytest.param(HEAD + b"X: a\x01b\r\n\r\n", id="a control character"),
        pytest.param(HEAD + b"X : a\r\n\r\n", id="a space before the colon"),
        pytest.param(HEAD + b": a\r\n\r\n", id="no name"),
        pytest.param(HEAD + b"X\r\n\r\n", id="no colon"),
        pytest.param(HEAD + b"X\xc3\xa9: a\r\n\r\n", id="a name beyond ASCII"),
        pytest.param(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n", id="another version"),
        pytest.param(b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", id="two spaces"),
        pytest.param(b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", id="a space in the target"),
        pytest.param(b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", id="a target beyond ASCII"),
        pytest.param(b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", id="a tab for a space"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00", id="a TLS handshake"),
    ],
)
def test_the_server_takes_nothing_else(server: Strict, data: bytes) -> None:
    answer = send(server, data)
    received, faults = server.settle()
    assert len(faults) == 1
    assert received == []
    assert not answer.startswith(b"HTTP/1.1 200")


def test_the_server_records_what_it_takes(server: Strict) -> None:
    send(
        server,
        b"!x /%zz?#\\ HTTP/1.1\r\nb:\r\nHOST:\t a\r\nB: \xff\t c \r\ncontent-length: 2\r\n\r\n\0\n",
    )
    send(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n")
    received, faults = server.settle()
    assert faults == []
    first, second = received
    assert (first.method, first.target, first.body) == (b"!x", b"/%zz?#\\", b"\0\n")
    assert first.headers == [
        (b"b", b""),
        (b"HOST", b"a"),
        (b"B", b"\xff\t c"),
        (b"content-length", b"2"),
    ]
    assert (b"Transfer-Encoding", b"chunked") in second.headers
    assert second.serial == first.serial + 1


# --- Through the check and the wire ---------------------------------------------------------------
class Everywhere(dict[str, list[str] | None]):
    """Every name has the address 127.0.0.1."""

    def get(self, _name: str, _default: object = None) -> list[str]:
        return ["127.0.0.1"]

    def __contains__(self, _name: object) -> bool:
        return True


@pytest.fixture(scope="module")
def exchange() -> Iterator[Exchange]:
    names = NameServer()
    names.answers = Everywhere()
    made = Exchange(Guard(LOOPBACK), resolver=names.resolver())
    yield made
    made.close()
    gevent.sleep(0)
    names.close()


def ask(exchange: Exchange, case: Case, port: int) -> AsyncResult:
    """Check and send a request as a call and a worker do; raises InvalidRequest."""
    method = "".join(c.upper() if c.isascii() else c for c in case.method)
    headers = json_text(case.headers)
    url = check(
        method,
        case.url.replace(PORT, str(port)),
        json_text(case.params),
        headers,
        TIMEOUT,
        "{}",
    )
    body = None
    if case.body is not None:
        kind, value = case.body
        if method == "HEAD":
            raise InvalidRequest("a HEAD request has no body")
        if kind == "body_form":
            body = encode_form(json_text(as_jsonb(value))).encode()
        else:
            body = wanted_body(kind, value)
    claim = Claim(0, "", 1, 0, method, url, headers, body, TIMEOUT, None, "", 0, 0.0, None)
    ended: AsyncResult = AsyncResult()
    exchange.start(assemble(claim, read(claim), {}, None).request, TIMEOUT / 1000, ended.set)
    return ended


def run_batch(exchange: Exchange, server: Strict, batch: list[Case], tally: Tally) -> None:
    """Send a batch at once, and compare."""
    asked = ask_all(
        batch,
        server.port,
        False,
        lambda case: ask(exchange, case, server.port),
        InvalidRequest,
    )
    answers = {}
    for place, one in enumerate(asked):
        if one.refusal is None:
            answer: Answer = one.outcome.get(timeout=2 * TIMEOUT / 1000)
            if answer.error is None:
                answers[place] = (answer.status_code or 0, dict(answer.header_list)["X-Serial"])
            else:
                answers[place] = (0, answer.error.message)
    compare_all(asked, answers, server, tally)


@pytest.mark.parametrize("size", [100_000, 600_000, 1_000_000, 1_100_000, 2_000_000, 8_000_001])
@pytest.mark.parametrize("part", ["path", "query", "fragment", "value", "many", "path and value"])
def test_what_is_long_arrives_or_is_refused(
    exchange: Exchange, server: Strict, part: str, size: int
) -> None:
    """libcurl takes a head of 1 MiB at most, which nobody is to learn from an outcome."""
    url = "http://127.0.0.1:PORT/" + {"query": "?", "fragment": "#"}.get(part, "")
    headers: dict[str, object] = {}
    if part in ("path", "query", "fragment", "path and value"):
        url += "a" * size
    if part in ("value", "path and value"):
        headers = {"X-A": "b" * size}
    if part == "many":
        headers = {f"X-{n}": "b" * 100 for n in range(size // 100)}
    case = Case("GET", url, {}, headers, None)
    try:
        ended = ask(exchange, case, server.port)
    except InvalidRequest as refusal:
        check_refusal(case, refusal)
        assert size > 100_000
        return
    answer: Answer = ended.get(timeout=2 * TIMEOUT / 1000)
    assert answer.error is None, answer.error.message
    received, faults = server.take()
    assert faults == []
    (got,) = received
    compare(case, wanted(case, server.port, typed=False), got)


@pytest.mark.timeout(max(120, CASES // 50))
def test_each_request_arrives_as_it_was_asked_for(exchange: Exchange, server: Strict) -> None:
    hosts = pick((12, local_hosts), (6, named_hosts), (1, no_hosts))
    fuzz(hosts, CASES, lambda batch, tally: run_batch(exchange, server, batch, tally))
    exchange.close()
    assert server.settle() == ([], [])
