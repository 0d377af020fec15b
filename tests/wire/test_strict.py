"""What hypothesis makes of a request reaches a strict server as just that request, or is refused.

Each case is asked for as a caller does it, and compared with what `wanted` says of it by rules of
its own: RFC 3986 and 9110, and what docs/urls.md and docs/headers.md promise. Method, target,
fields in their order and body must be the same to the byte; nothing else may arrive.

The suite's cases are always the same ones; `make fuzz` makes others, as many as it is told.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast
from urllib.parse import quote

import gevent
import psycopg
import pytest
from gevent.event import AsyncResult
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

import pgnet
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
from servers.cluster import Database
from servers.strict import Received, Strict

# `make fuzz` gives other numbers. Of one seed the cases are the same while the code is: hypothesis
# takes constants from that, too.
CASES = int(os.environ.get("FUZZ_CASES", "20000"))
SQL_CASES = max(2000, CASES // 10)
SEED = int(os.environ.get("FUZZ_SEED", "20260101"))
# So many examples of one round of hypothesis: of more it would make most by copying within one.
ROUND = 10
PORT = "PORT"
TIMEOUT = 10_000

# --- The strict server is strict ------------------------------------------------------------------

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n"


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


# --- What is asked for ----------------------------------------------------------------------------


class Number(str):
    """A JSON number, as it is written."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Case:
    """A request as a caller asks for it; PORT in the URL stands for the server's.

    body: its kind, as the arguments of net.http_request are called, and its value; None is none.
    """

    method: str
    url: str
    params: object
    headers: object
    body: tuple[str, Any] | None

    def __hash__(self) -> int:
        kind, value = self.body or ("", None)
        body = value if isinstance(value, bytes) else repr(value)
        return hash((self.method, self.url, repr(self.params), repr(self.headers), kind, body))


def json_text(value: object) -> str:
    """A value as jsonb writes it, but for the order of keys, which is that of the value."""
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, dict):
        pairs = [f"{json_text(key)}: {json_text(item)}" for key, item in value.items()]
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(json_text, value))}]"
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
        return re.sub(r"[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)
    return {True: "true", False: "false", None: "null"}[cast(Any, value)]


def as_jsonb(value: Any) -> Any:
    """The value with its keys in jsonb's order: shorter ones first, then by their bytes."""
    if isinstance(value, list):
        return [as_jsonb(item) for item in value]
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: (len(key.encode()), key.encode()))
        return {key: as_jsonb(value[key]) for key in keys}
    return value


def pick(*weighted: tuple[int, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """One of the strategies, each as often as its weight says."""
    places = [strategy for weight, strategy in weighted for _ in range(weight)]
    place = st.integers(0, len(places) - 1)

    # one_of would take each only once, and write all of them out where a case fails.
    @st.composite
    def picked(draw: DrawFn) -> Any:
        return draw(places[draw(place)])

    return picked()


CANARY = "canary-8d1e"


def ipv6() -> list[str]:
    """Spellings of the loopback address of IPv6, where there is one."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return []
    return ["[::1]", "[0:0:0:0:0:0:0:1]", "[::0001]"]


IPV6 = ipv6()

# Tokens, in every case; tunnels and echoes; and what is no token.
methods = pick(
    (40, st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "QUERY"])),
    (12, st.sampled_from(
        ["get", "Post", "pAtCh", "head", "PROPFIND", "M-SEARCH", "PRI", "X", "!#$%&'*+-.^_`|~09Az",
         "CONNECTED", "GETS", "HEADER", "PUTS", "ORDERPATCH", "version-control", "0"])),
    (6, st.text("!#$%&'*+-.^_`|~09AZaz", min_size=1, max_size=12)),
    (1, st.sampled_from(["CONNECT", "TRACE", "connect", "Trace", "tRACE"])),
    (1, st.sampled_from(
        ["", " ", "GET ", " GET", "GET /", "G\tT", "GET\r\nX: y", "POST\n", "GET\0", "G\u00cbT",
         "po\u017ft", "\uff27\uff25\uff34", "t\u0131tle", "(GET)", "GET,POST", "a/b", "a:b"])),
    (1, st.text(max_size=6)),
)  # fmt: skip

# Spellings of the addresses the server listens on; names that our name server has; and no hosts.
local_hosts = pick(
    (8, st.sampled_from(["127.0.0.1", "localhost", "127.1", "[::ffff:127.0.0.1]"])),
    (6, st.sampled_from(
        ["127.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "0x7f.1", "127.0.0.1.", "127.1.",
         "017700000001",
         "0x7F.0.0.1", "127.0x0.0.1", "LOCALHOST", "LocalHost", "[::FFFF:7F00:1]",
         "\uff4c\uff4f\uff43\uff41\uff4c\uff48\uff4f\uff53\uff54",
         "\uff11\uff12\uff17\u3002\uff10.0\uff0e\uff11", *IPV6])),
)  # fmt: skip
named_hosts = pick(
    (6, st.sampled_from(
        ["api.example", "localhost.", "a_b.example", "_.example", "-a-.example", "xn--nxasmq6b",
         "a.local", "x.localhost", "1.2.3.4.5.example", "0x7f.example", "EXAMPLE.",
         "b\u00fccher.example", "B\u00dcCHER.example",
         "\u65e5\u672c\u8a9e.example", "\u2603.example",
         "a\u00ad\u0300.example", "a\u3002example", f"{'a' * 63}.example",
         ".".join(["b" * 62] * 4)])),
    (1, st.text("abxyz019-_", min_size=1, max_size=20).map("{}.example".format)),
)  # fmt: skip
no_hosts = st.sampled_from(
    ["", "a b", "1.2.3.4.5", "a.0", "a.0x", "127.0.0.256", "08.1", "4294967296", "0x7f000001x.1",
     "a%41.example", "%31%32%37.1", "a..example", ".example", "..", "a\\b", "a'b",
     "[::1", "::1", "[::1%25lo]", "[::g]", "[127.0.0.1]", "[]", "[v1.a]", "127.0.0.1\\@b",
     "127.0.0.1 ", "\t127.0.0.1", "127.0.0.1\r\nHost: b", "127.0.0.1\n", "127.0.0.1\0",
     "fa\u00df.example", "a\u200db.example", "\U0001f600.example", "\u2100.example", "\ud800",
     f"{'a' * 64}.example", ".".join(["b" * 63] * 4), "a,b", "a;b", "a^b", "a|b", "{a}", "<a>",
     "*", "!", "$", "a\x7f", "a\u0080b", "a\u00a0b", "(a)"]
)  # fmt: skip
ports = pick(
    (30, st.just(":PORT")),
    (6, st.sampled_from([":0PORT", ":0000PORT"])),
    (1, st.sampled_from(
        [":0", ":65536", ":-1", ":+PORT", ":a", ":PORT:PORT", ": PORT", ":PORT ", ":\u0661", ":1e3",
         ":PORT\r\n", ":PORT\\", ":99999999999999999999", ":PORT\0"])),
)  # fmt: skip
# What a URL may have behind its authority; then what is encoded there, or refused.
pieces = st.sampled_from(
    ["/", "//", ".", "..", "/./", "/../", "/..", "a", "B", "0", "-", "_", "~", "%7E", "%7e", "%2e",
     "%2E%2e", "%2f", "%2F", "%5c", "%00", "%0d%0a", "%20", "%25", "%ff", "%C3%A9", "!", "$", "&",
     "'", "(", ")", "*", "+", ",", ";", "=", ":", "@", "a=b", "a=1&a=2", "&&", "//@/", "..;/",
     "\u00e9", "\u65e5\u672c", "\U0001f600", "\u00a0", "\u2028", "\ufeff", "\ufffd", "\uffff",
     "e\u0301", "http://b/", "HTTP/1.1", "x" * 300, "a b", "a[]", "{id}", "|", "\\", "..\\", "^",
     "`", "<b>", '"', "%", "%4", "%zz", "%%41"]
)  # fmt: skip
illegal_pieces = st.sampled_from(
    [" ", "\\", "/{secret:a}", "{secret:a}",
     "\t", "\r\n", "\n", "\r", "\0", '"', "<", ">", "^", "`", "{", "}", "|", "[", "]",
     "%", "%z", "%zz", "%4", "%%", "\x7f", "\x80", "\u0085", "\x1f", "\ud800", "\udfff",
     " HTTP/1.1\r\nHost: b\r\n\r\n"]
)  # fmt: skip
rests = pick(
    (20, st.lists(pieces, max_size=5).map("".join)),
    (1, st.text(max_size=5)),
    (1, st.integers(0, 3000).map(lambda n: "long/" * n)),
)
scheme_texts = pick(
    (30, st.just("http://")),
    (6, st.sampled_from(["HTTP://", "hTTp://"])),
    (1, st.sampled_from(
        ["ftp://", "http:/", "http:", "//", "", "httpx://", "http//", " http://", "\thttp://",
         "http ://", "h\u0442tp://", "http:\\\\", "mailto:", "file://", "ws://", "\ufeffhttp://"])),
)  # fmt: skip


@st.composite
def urls(draw: DrawFn, hosts: st.SearchStrategy[str]) -> str:
    """A URL, most often a legal one."""
    shape = draw(st.integers(0, 49))
    if shape == 49:
        return draw(st.text(max_size=20))
    url: str = draw(scheme_texts)
    if shape == 48:
        url += draw(st.sampled_from(["a@", f"a:{CANARY}@", "@", ":@", "a@b@", "a%40b@", "@\\"]))
    url += draw(hosts) + draw(ports)
    parts = draw(st.integers(0, 7))
    if parts & 1:
        url += "/" + draw(rests)
    if parts & 2:
        url += "?" + draw(rests)
    if parts & 4:
        url += "#" + draw(rests)
    if shape in (46, 47):
        url += draw(illegal_pieces)
    return url


texts = pick(
    (3, st.text("abcXYZ019 -._~", max_size=8)),
    (2, st.text(st.characters(exclude_categories=["Cs"]), max_size=8)),
    (2, st.sampled_from(
        ["", "a", "a&b=c", "#", "%41", "%", "+", " ", "a/b?c", "\u00e9", "\U0001f600", "\r\n",
         "\t", "'\"\\", "\u2028", "\x7f", "null", "{}", "\x1f", "\u0085"])),
)  # fmt: skip
numbers = st.sampled_from(
    ["0", "1", "-1", "1.10", "-0.5", "12345678901234567890", "0.0010", "100000000000000000000.5"]
).map(Number)
scalars = pick((6, texts), (2, numbers), (1, st.booleans()), (1, st.none()))
values = pick(
    (8, scalars),
    (1, st.lists(scalars, max_size=3)),
    (1, st.dictionaries(texts, scalars, max_size=2)),
)
no_objects = st.sampled_from([Number("1"), "a", [], True, None, [{"X-A": "b"}]])
objects = st.dictionaries(texts, values, max_size=4)
maybe_params = pick(
    (16, st.just({})),
    (40, objects),
    (1, no_objects),
    (1, st.sampled_from([{"a\0": "b"}, {"a": "b\0"}, {"a": "\ud800"}, {"\udfff": "b"}])),
)

header_names = pick(
    (6, st.sampled_from(
        ["X-A", "x-a", "X-B", "Accept", "accept", "Authorization", "Cookie", "Referer", "Range",
         "If-None-Match", "Accept-Encoding", "Content-Encoding", "Origin", "Via", "DNT", "Date",
         "X-Forwarded-For", "X-Forwarded-Host", "Content-MD5", "Content-Language", "Cache-Control",
         "Content-Lengthy", "Hosts", "Proxy", "Close", "HTTP2-Settings", "Forwarded", "Accept-",
         "!#$%&'*+-.^_`|~09Az", "_", "0", "X_Y", "Content_Length", "x" * 100])),
    (2, st.sampled_from(["Content-Type", "content-type", "User-Agent", "user-agent"])),
    (1, st.text("!#$%&'*+-.^_`|~019AZaz", min_size=1, max_size=8)),
)  # fmt: skip
header_texts = pick(
    (6, st.sampled_from(
        ["a", "", " a", "a\t", " \t ", "a  b", "a\tb", "a, b", '"a;b"', ";", ":", "a: b", "@/etc/x",
         "application/json", "text/plain", "text/plain; charset=utf-8",
         "text/plain; charset=ISO-8859-1", "gzip", "identity",
         f"Bearer {CANARY}", "\u00e9", "\u65e5", "\U0001f600", "\u00a0", "\u2028", "\ufeff", "a=b",
         "bytes=0-1", "close", "chunked", "100-continue", "null", "x" * 5000])),
    (2, st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)),
    (1, st.text(
        st.characters(min_codepoint=160, exclude_categories=["Cs"]) | st.just("\t"), max_size=8)),
)  # fmt: skip
header_values = pick(
    (12, header_texts),
    (2, st.lists(pick((6, header_texts), (1, numbers), (1, st.none())), max_size=4)),
    (1, numbers),
    (1, st.booleans()),
    (1, st.none()),
)
bad_headers = pick(
    (4, st.tuples(
        st.sampled_from(
            ["Host", "host", "Content-Length", "content-length", "Transfer-Encoding", "TE", "te",
             "Trailer", "Connection", "Keep-Alive", "Upgrade", "Expect", "EXPECT",
             "Proxy-Connection", "proxy-authorization", "Proxy-", "transfer-ENCODING"]),
        header_texts | numbers)),
    (3, st.tuples(
        st.sampled_from(
            ["", " ", "X A", "X-A ", " X-A", "X-A:", "X:A", "X\tA", "X-A\r\n", "X\nA", "\u00e9",
             "X\0", "(X)", "X,Y", "X/Y", "X;", "X=", "X@", "[X]", "{X}", '"X"', "X\\", "\x7f",
             "Host\u200b", "Ho\u017ft", "Content-Length\0", "Transfer-Encoding ", ":method"]),
        header_texts)),
    (4, st.tuples(
        header_names,
        st.builds(
            "{}{}{}".format,
            st.sampled_from(["", CANARY]),
            st.sampled_from(
                ["\r\n", "\n", "\r", "\0", "\r\nX-B: b", "\x01", "\x1b", "\x7f", "\x0b", "\x0c",
                 "\x80", "\u0085", "\x9f", "\ud800", "\n a", "\r\n\r\nGET / HTTP/1.1\r\n\r\n"]),
            st.sampled_from(["", CANARY])))),
    (1, st.tuples(header_names, st.dictionaries(texts, texts, max_size=1) | st.just([[CANARY]]))),
)  # fmt: skip


@st.composite
def maybe_headers(draw: DrawFn) -> object:
    """An object of headers, most often a legal one."""
    shape = draw(st.integers(0, 39))
    if shape < 3:
        return {}
    if shape == 3:
        return draw(no_objects)
    if shape == 4:
        size = draw(st.integers(0, 1000))
        return {f"X-{n}": "v" * size for n in range(draw(st.integers(1, 100)))}
    headers: dict[str, object] = draw(st.dictionaries(header_names, header_values, max_size=5))
    if shape < 8:
        name, value = draw(bad_headers)
        headers[name] = value
    return headers


sizes = pick((6, st.integers(0, 300)), (2, st.integers(0, 5000)), (1, st.integers(0, 200_000)))
byte_bodies = st.builds(
    lambda seed, size: (seed * (size // len(seed) + 1))[:size],
    st.binary(min_size=1, max_size=8)
    | st.sampled_from([b"\0", b"\r\n", b"0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"--"]),
    sizes,
)
bodies = pick(
    (16, st.none()),
    (2, st.just(("body_bytes", b""))),
    (8, st.tuples(st.just("body_bytes"), byte_bodies)),
    (4, st.tuples(st.just("body"), values)),
    (4, st.tuples(st.just("body_text"), texts)),
    (4, st.tuples(st.just("body_form"), objects)),
    (1, st.tuples(st.just("body_form"), no_objects)),
)
# Hypothesis needs more time for a case than the case itself: so of few parts there are many cases.
EDGE = 5


def combine(*parts: list[Any]) -> list[Case]:
    """EDGE² cases of EDGE parts of each kind; as EDGE is prime, no two parts meet twice."""
    return [
        Case(*(of_kind[(row + kind * column) % EDGE] for kind, of_kind in enumerate(parts)))
        for row in range(EDGE)
        for column in range(EDGE)
    ]


def batches(hosts: st.SearchStrategy[str]) -> st.SearchStrategy[list[Case]]:
    kinds = methods, urls(hosts), maybe_params, maybe_headers(), bodies
    return st.builds(combine, *(st.lists(kind, min_size=EDGE, max_size=EDGE) for kind in kinds))


# --- What is to come of it ------------------------------------------------------------------------


class Refused(Exception):
    """The call must raise."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the server must get; headers: those that are asked for, in order."""

    method: bytes
    target: bytes
    host: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes | None


# By IDNA 2003 (RFC 3490), looked up elsewhere; all other names beyond ASCII are refused here.
IDNA = {
    "b\u00fccher.example": "xn--bcher-kva.example",
    "B\u00dcCHER.example": "xn--bcher-kva.example",
    "\u65e5\u672c\u8a9e.example": "xn--wgv71a119e.example",
    "\u2603.example": "xn--n3h.example",
    "a\u00ad\u0300.example": "xn--0ca.example",
    "\uff4c\uff4f\uff43\uff41\uff4c\uff48\uff4f\uff53\uff54": "localhost",
    "\uff11\uff12\uff17\u3002\uff10.0\uff0e\uff11": "127.0.0.1",
    "a\u3002example": "a.example",
}
LITERALS = {"[::ffff:127.0.0.1]", "[::FFFF:7F00:1]", *IPV6}
THE_CLIENTS = {
    *("host", "content-length", "transfer-encoding", "te", "trailer", "connection", "keep-alive"),
    *("upgrade", "expect"),
}
# Whoever reads one of these twice may choose the other one.
SINGLE = (b"authorization", b"content-type", b"user-agent")
METHOD_OR_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
NO_REST = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
# In a number ends what is an address, or nothing: a part of it is decimal, octal or hexadecimal.
A_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
PART = re.compile(r"0|[1-9][0-9]*|0[0-7]+|0x[0-9a-f]+")
TYPES = {
    "body": "application/json",
    "body_text": "text/plain; charset=utf-8",
    "body_form": "application/x-www-form-urlencoded",
    "body_bytes": "application/octet-stream",
}


def wanted(case: Case, port: int, typed: bool) -> Wanted:
    """What must reach the server.

    typed: whether a body without a Content-Type gets one, and text must be in the charset that is
    declared, as net.http_request sees to.

    Raises Refused.
    """
    method = case.method
    if not METHOD_OR_NAME.fullmatch(method):
        raise Refused("method")
    method = method.upper()
    if method in ("CONNECT", "TRACE"):
        raise Refused("method")
    if method == "HEAD" and case.body is not None:
        raise Refused("body")
    host, target = wanted_target(case.url.replace(PORT, str(port)), case.params)
    headers = case.headers
    if not isinstance(headers, dict):
        raise Refused("headers")
    body = None if case.body is None else wanted_body(*case.body)
    if typed and case.body is not None:
        given = [
            json_text(value)
            for name, value in headers.items()
            if name.lower() == "content-type" and value is not None
        ]
        if not given:
            headers = as_jsonb({**headers, "Content-Type": TYPES[case.body[0]]})
        elif case.body[0] == "body_text" and any("ISO-8859-1" in text for text in given):
            raise Refused("charset")
    return Wanted(method.encode(), target.encode(), host.encode(), wanted_headers(headers), body)


def wanted_target(url: str, params: object) -> tuple[str, str]:
    """Host, and the target behind it."""
    scheme, slashes, rest = url.strip(" \t\n\f\r").partition("://")
    if not slashes or scheme.lower() != "http":
        raise Refused("scheme")
    rest, _, fragment = rest.partition("#")
    at = min((rest.index(c) for c in "/?" if c in rest), default=len(rest))
    authority, rest = rest[:at], rest[at:]
    path, mark, query = rest.partition("?")
    if any(map(NO_REST.search, (path, query, fragment))) or "{secret:" in url:
        raise Refused("a character")
    path, query = wanted_rest(path), wanted_rest(query)
    if not isinstance(params, dict):
        raise Refused("params")
    pairs = [
        f"{wanted_quote(name)}={wanted_quote(v if isinstance(v, str) else json_text(v))}"
        for name, v in params.items()
        if v is not None
    ]
    if pairs:
        if query and not query.endswith("&"):
            query += "&"
        mark, query = "?", query + "&".join(pairs)
    target = f"{path or '/'}{mark}{query}"
    return wanted_host(authority), target


def wanted_rest(text: str) -> str:
    """What RFC 3986 allows in a path or query, and everything else percent-encoded."""
    parts = re.split("(%[0-9A-Fa-f]{2})", text)
    parts[::2] = [quote(part, safe="!$&'()*+,;=:@/?-._~") for part in parts[::2]]
    return "".join(parts)


def wanted_host(authority: str) -> str:
    host, colon, port = authority.partition(":")
    if host.startswith("["):
        host, bracket, port = authority.partition("]")
        host, colon, port = host + bracket, port[:1], port[1:]
    if colon != ":" or not re.fullmatch("[0-9]+", port) or not 0 < int(port) < 65536:
        raise Refused("port")
    port = f":{int(port)}"
    if host in LITERALS:
        return host.lower() + port
    host = IDNA.get(host, host).lower()
    name = host.removesuffix(".")
    if not all(re.fullmatch(r"[a-z0-9_-]{1,63}", label) for label in name.split(".")):
        raise Refused("host")
    if len(name) > 253 or not host.isascii():
        raise Refused("host")
    labels = name.split(".")
    if A_NUMBER.fullmatch(labels[-1]):
        if len(labels) > 4 or not all(map(PART.fullmatch, labels)):
            raise Refused("no address")
        *first, last = [int(t, 16 if t[:2] == "0x" else 8 if t[:1] == "0" else 10) for t in labels]
        if max(first, default=0) > 255 or last >= 256 ** (4 - len(first)):
            raise Refused("no address")
    return host + port


def wanted_quote(text: str) -> str:
    if re.search(r"[\0\ud800-\udfff]", text):
        raise Refused("a parameter")
    return quote(text, safe="~")


def wanted_headers(headers: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    fields = []
    for name, value in headers.items():
        if not METHOD_OR_NAME.fullmatch(name):
            raise Refused("name")
        if name.lower() in THE_CLIENTS or name.lower().startswith("proxy-"):
            raise Refused("the client's own")
        for item in value if isinstance(value, list) else [value]:
            if item is None:
                continue
            if isinstance(item, (list, dict)):
                raise Refused("value")
            text = item if isinstance(item, str) else json_text(item)
            if re.search(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff]", text):
                raise Refused("value")
            fields.append((name.encode(), text.strip(" \t").encode()))
    names = [name.lower() for name, _ in fields]
    if any(names.count(single) > 1 for single in SINGLE):
        raise Refused("repeated")
    return fields


def wanted_body(kind: str, value: Any) -> bytes:
    if kind == "body_bytes":
        return cast(bytes, value)
    if kind == "body_text":
        return cast(str, value).encode()
    if kind == "body":
        return json_text(as_jsonb(value)).encode()
    if not isinstance(value, dict):
        raise Refused("form")
    # URL standard, section 5.2, the serializer.
    pairs = []
    for name, items in as_jsonb(value).items():
        for item in items if isinstance(items, list) else [items]:
            if item is not None:
                text = item if isinstance(item, str) else json_text(item)
                pairs.append(f"{form_quote(name)}={form_quote(text)}")
    return "&".join(pairs).encode()


def form_quote(text: str) -> str:
    kept = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789*-._"
    return "".join(
        "+" if c == " " else c if c in kept else "".join(f"%{byte:02X}" for byte in c.encode())
        for c in text
    )


def compare(case: Case, expected: Wanted, got: Received) -> None:
    """The server got what was asked for, to the byte.

    Besides what is asked for there are these fields, and no others: Host; User-Agent, where none is
    given; Content-Length, where there is a body, and where the method is one of those that are
    expected to have one (RFC 9110, section 8.6).
    """
    assert got.method == expected.method, case
    assert got.target == expected.target, case
    assert got.body == (expected.body or b""), case
    added = [(b"Host", expected.host)]
    if not any(name.lower() == b"user-agent" for name, _ in expected.headers):
        added.append((b"User-Agent", f"pgnet/{pgnet.__version__}".encode()))
    if expected.body is not None or expected.method in (b"POST", b"PUT", b"PATCH"):
        added.append((b"Content-Length", str(len(got.body)).encode()))
    rest = list(got.headers)
    for field in added:
        assert field in rest, (case, got.headers)
        rest.remove(field)
    assert rest == expected.headers, case


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


class Tally:
    """How many different cases there were, and what came of them."""

    def __init__(self) -> None:
        self.sent: set[int] = set()
        self.refused: set[int] = set()

    def __len__(self) -> int:
        return len(self.sent) + len(self.refused)

    def __str__(self) -> str:
        return f"{len(self.sent)} sent, {len(self.refused)} refused"


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of asking.

    expected: what must reach the server; None where the call must raise.
    refusal: how it raised; outcome: where its answer will be.
    """

    case: Case
    expected: Wanted | None
    refusal: Exception | None
    outcome: Any


def ask_all(
    batch: list[Case], port: int, typed: bool, ask: Callable[[Case], Any], error: type[Exception]
) -> list[Asked]:
    asked = []
    for case in batch:
        expected, refusal, outcome = None, None, None
        with contextlib.suppress(Refused):
            expected = wanted(case, port, typed)
        try:
            outcome = ask(case)
        except error as raised:
            refusal = raised
        asked.append(Asked(case, expected, refusal, outcome))
    return asked


def compare_all(
    asked: list[Asked], answers: dict[int, tuple[int, str]], server: Strict, tally: Tally
) -> None:
    """All that was asked for arrived, or was refused; and nothing else.

    answers: by the request's place, its status, and the number that the server gave it or what went
    wrong.
    """
    received, faults = server.take()
    assert faults == []
    by_serial = {str(got.serial): got for got in received}
    for place, one in enumerate(asked):
        case, expected = one.case, one.expected
        if one.refusal is not None:
            assert expected is None, (case, str(one.refusal))
            check_refusal(case, one.refusal)
            tally.refused.add(hash(case))
        else:
            assert expected is not None, f"not refused: {case}"
            status, serial = answers[place]
            assert status == 200, (case, serial)
            compare(case, expected, by_serial.pop(serial))
            tally.sent.add(hash(case))
    assert not by_serial, f"more than was asked for: {by_serial}"


def check_refusal(case: Case, refusal: Any) -> None:
    """A refusal is PostgreSQL's error of a wrong argument, and tells no value of a header."""
    assert refusal.sqlstate in ("22023", "23502"), (case, str(refusal))
    said = getattr(refusal, "diag", refusal)
    told = [getattr(said, name) for name in dir(said) if not name.startswith("_")]
    assert CANARY not in f"{refusal}{told}", case


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


def fuzz(
    hosts: st.SearchStrategy[str], count: int, run: Callable[[list[Case], Tally], None]
) -> Tally:
    """Have hypothesis make different cases until there are that many; the same ones for a seed."""
    tally = Tally()
    rounds = random.Random(SEED)
    started = time.monotonic()
    print(f"seed {SEED}")
    while len(tally) < count:

        @seed(rounds.getrandbits(64))
        @settings(
            max_examples=ROUND,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(batch=batches(hosts))
        def round(batch: list[Case]) -> None:
            run(batch, tally)

        round()
    print(f"{tally}, in {time.monotonic() - started:.1f} s")
    assert len(tally.sent) >= count / 2
    assert len(tally.refused) >= count / 10
    return tally


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


# --- Through SQL and a worker ---------------------------------------------------------------------


def storable(case: Case) -> bool:
    """Whether the database's text can hold it; what it cannot is not the extension's to refuse."""
    texts = f"{case.method}{case.url}{json_text(case.params)}{json_text(case.headers)}"
    if case.body is not None and case.body[0] != "body_bytes":
        texts += json_text(case.body[1])
    return not re.search(r"\0|\\u0000|[\ud800-\udfff]|\\ud[89a-f]", texts)


def call(connection: psycopg.Connection[Any], case: Case, port: int) -> int:
    """Queue a request; raises psycopg.Error."""
    arguments = {
        "method": case.method,
        "url": case.url.replace(PORT, str(port)),
        "params": json_text(case.params),
        "headers": json_text(case.headers),
    }
    extra = ""
    if case.body is not None:
        kind, value = case.body
        is_json = kind in ("body", "body_form")
        extra = f", {kind} => %(body)s" + ("::jsonb" if is_json else "")
        arguments["body"] = json_text(value) if is_json else value
    row = connection.execute(
        "select net.http_request(%(method)s, %(url)s, params => %(params)s::jsonb,"
        f" headers => %(headers)s::jsonb, timeout_milliseconds => {TIMEOUT}{extra})",
        arguments,
    ).fetchone()
    assert row is not None
    request_id: int = row[0]
    return request_id


def run_sql_batch(database: Database, server: Strict, batch: list[Case], tally: Tally) -> None:
    """Queue a batch, wait for its outcomes, and compare."""
    cases = [
        replace(case, params=as_jsonb(case.params), headers=as_jsonb(case.headers))
        for case in batch
        if storable(case)
    ]
    asked = ask_all(
        cases,
        server.port,
        True,
        lambda case: call(database.connection, case, server.port),
        psycopg.Error,
    )
    places = {one.outcome: place for place, one in enumerate(asked) if one.refusal is None}
    ids = list(places)
    database.wait_for(
        "select count(*) from net.responses where id = any(%s)",
        ids,
        predicate=len(ids).__eq__,
        timeout=2 * TIMEOUT / 1000,
    )
    answers = {
        places[id]: (status or 0, serial or error_msg)
        for id, status, serial, error_msg in database.rows(
            "delete from net._http_response where id = any(%s)"
            " returning id, status_code, headers->>'X-Serial', error_msg",
            ids,
        )
    }
    compare_all(asked, answers, server, tally)


@pytest.mark.timeout(max(120, SQL_CASES // 10))
def test_each_request_of_sql_arrives_so_too(database: Database, server: Strict) -> None:
    hosts = pick((18, local_hosts), (1, no_hosts))
    with database.worker():
        fuzz(hosts, SQL_CASES, lambda batch, tally: run_sql_batch(database, server, batch, tally))
        assert database.row("select count(*) from net.http_request_queue") == (0,)
    assert server.settle() == ([], [])
    # Nor did the server write a header's value where it wrote of what was refused.
    assert CANARY not in database.cluster.log.read_text(errors="replace")
