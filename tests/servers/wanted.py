"""The request that must be on the wire, worked out anew, and the comparison with what came."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote

import pgnet
from servers.made_requests import IPV6, PORT, Case, as_jsonb, json_text
from servers.strict import Received


# --- What is to come of it ------------------------------------------------------------------------
class Refused(Exception):
    """The call must raise."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The request that the server must get; headers: those that are asked for, in order."""

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

# A reader that finds one of these twice may choose either.
SINGLE = (b"authorization", b"content-type", b"user-agent")


METHOD_OR_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


NO_REST = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

# A host whose last part is a number is an IPv4 address or invalid (URL standard): each part is
# decimal, octal or hexadecimal.
A_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


PART = re.compile(r"0|[1-9][0-9]*|0[0-7]+|0x[0-9a-f]+")


TYPES = {
    "body": "application/json",
    "body_text": "text/plain; charset=utf-8",
    "body_form": "application/x-www-form-urlencoded",
    "body_bytes": "application/octet-stream",
}


def wanted(case: Case, port: int, typed: bool) -> Wanted:
    """The request that must reach the server.

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
    """A path or query with everything percent-encoded that RFC 3986 does not allow there."""
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
