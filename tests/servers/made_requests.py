"""Requests as hypothesis makes them up: every method, URL, header and body, good and bad."""

from __future__ import annotations

import json
import re
import socket
from dataclasses import dataclass
from typing import Any, cast

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

PORT = "PORT"

# --- The strict server is strict ------------------------------------------------------------------
HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n"


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

    # one_of would take each strategy only once, and print all of them if a case fails.
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

# Methods: tokens in every case, CONNECT and TRACE, and texts that are not tokens.
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

# Hosts: spellings of the addresses the server listens on, names that our name server knows, others.
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

# Text behind the authority of a URL: legal text, and text that is encoded or refused.
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

# Hypothesis takes longer to make a case than we take to run it: so few parts make many cases.
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
