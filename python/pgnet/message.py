"""Header fields as they go out and come in, and requests' Response over what came."""

from __future__ import annotations

import datetime
import io
import re
from collections import OrderedDict
from collections.abc import Iterable
from types import MappingProxyType
from typing import Any

import pycurl
import requests
from requests.cookies import RequestsCookieJar
from requests.structures import CaseInsensitiveDict
from requests.utils import get_encoding_from_headers

import pgnet
from pgnet.wire_error import WireError

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BAD_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_FIELD = re.compile(r"([^:\n]+):[ \t]*([^\n]*)\n")
# The client's own: with them a caller could smuggle a request or speak to a proxy.
_FORBIDDEN = frozenset(
    [
        "host",
        "content-length",
        "transfer-encoding",
        "te",
        "trailer",
        "connection",
        "keep-alive",
        "upgrade",
        "expect",
    ]
)
# An empty value takes libcurl's own header away: nobody asked for these.
_UNASKED = (b"Accept:", b"Accept-Encoding:", b"Content-Type:", b"Expect:")
_UNASKED_NAMES = ("accept", "accept-encoding", "content-type", "expect")
USER_AGENT = f"pgnet/{pgnet.__version__}"


def check_method(method: str) -> None:
    """Refuse what is no token (RFC 9110, section 9.1), and the methods that open tunnels.

    Errors: WireError.
    """
    if method in ("GET", "POST"):
        return
    if _TOKEN.fullmatch(method) is None:
        raise WireError("invalid method")
    if method.upper() in ("CONNECT", "TRACE"):
        raise WireError(f"method {method} is not allowed")


def encode_headers(fields: Iterable[tuple[str, str]], user_agent: str | None = None) -> list[bytes]:
    """Header lines as libcurl takes them, and the removal of those that nobody asked for.

    Arguments: names and values in order, where a name may come again; the User-Agent where there
    is none among them, pgnet's own if it is None.
    Errors: WireError for a name that is no token, a control character in a value (RFC 9110,
    sections 5.1 and 5.5), or a header that is the client's own. The value is never told.
    """
    lines: list[bytes] = []
    names = set()
    for name, value in fields:
        lower = name.lower()
        if _TOKEN.fullmatch(name) is None:
            raise WireError("invalid header name")
        if lower in _FORBIDDEN or lower.startswith("proxy-"):
            raise WireError(f"header {name} is set by the client itself")
        names.add(lower)
        lines.append(_line(name, value))
    if "user-agent" not in names:
        lines.append(_line("User-Agent", user_agent or USER_AGENT))
    if names.isdisjoint(_UNASKED_NAMES):
        lines.extend(_UNASKED)
    else:
        lines.extend(
            u for u, name in zip(_UNASKED, _UNASKED_NAMES, strict=True) if name not in names
        )
    return lines


def _line(name: str, value: str) -> bytes:
    if _BAD_VALUE.search(value) is not None:
        raise WireError(f"header {name} has an invalid value")
    stripped = value.strip(" \t")
    # libcurl's way to say that a value is empty.
    return (f"{name}: {stripped}" if stripped else f"{name};").encode("utf-8")


def parse_headers(head: bytes) -> tuple[str, str, list[tuple[str, str]]]:
    """The header section of an answer, with its status line, and trailer fields behind it.

    Returns the HTTP version, the reason phrase, and the fields in order, repeats kept. Values are
    UTF-8 where they are valid UTF-8, otherwise Latin-1 (RFC 9110, section 5.5, leaves bytes above
    127 open).
    """
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        text = b"".join(map(_as_utf8, head.splitlines(keepends=True))).decode("utf-8")
    status, _, rest = text.partition("\n")
    version, _, reason = status.partition(" ")
    if "\n " in rest or "\n\t" in rest:
        # A folded line (RFC 9112, section 5.2) goes on with the one before.
        rest = re.sub(r"[ \t\r]*\n[ \t]+(?=\S)", " ", rest)
    fields = [(name, value.rstrip("\r \t")) for name, value in _FIELD.findall(rest)]
    return version[5:], reason[4:].strip(), fields


_STATUS_LINE = re.compile(rb"HTTP/(1\.[0-9]|[23]) ([0-9]{3})(?:[ \r\n]|\Z)")
_LENGTHS = re.compile(rb"\ncontent-length:[ \t]*([^\r\n]*)", re.IGNORECASE)
_CODINGS = re.compile(rb"\ncontent-encoding:[ \t]*([^\r\n]*)", re.IGNORECASE)
_LENGTH = re.compile(rb"[0-9]{1,18}")
_SWITCHING_PROTOCOLS = b"101"
# CURLE_WEIRD_SERVER_REPLY, which pycurl has no name for.
_WEIRD_SERVER_REPLY = 8


def fault_of_head(head: bytes) -> int:
    """libcurl's code for what is wrong with a header section, where it would go on; 0 if nothing.

    A version that is none; a protocol that nobody asked to switch to; a Content-Length that is no
    number, or several that differ (RFC 9110, section 8.6): who believes another one of them finds
    an answer within the answer.
    """
    status = _STATUS_LINE.match(head)
    if status is None:
        return int(pycurl.E_UNSUPPORTED_PROTOCOL)
    if status[2] == _SWITCHING_PROTOCOLS:
        return _WEIRD_SERVER_REPLY
    lengths = {value.strip() for value in _LENGTHS.findall(head)}
    if len(lengths) > 1 or any(_LENGTH.fullmatch(value) is None for value in lengths):
        return _WEIRD_SERVER_REPLY
    return 0


def content_encoding(head: bytes) -> str:
    """The field Content-Encoding of a header section, repeats joined."""
    return ",".join(value.decode("latin-1") for value in _CODINGS.findall(head))


def _as_utf8(line: bytes) -> bytes:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("latin-1").encode("utf-8")
    return line


def combine_headers(fields: list[tuple[str, str]]) -> CaseInsensitiveDict[str]:
    """Fields as one object: repeats joined by commas (RFC 9110, section 5.3).

    Of Set-Cookie, which cannot be joined, the last stands there.
    """
    store: OrderedDict[str, tuple[str, str]] = OrderedDict()
    for field in fields:
        lower = field[0].lower()
        if lower in store and lower != "set-cookie":
            store[lower] = (store[lower][0], f"{store[lower][1]}, {field[1]}")
        else:
            store[lower] = field
    # requests' own constructor would take some calls of Python code for each field.
    made: CaseInsensitiveDict[str] = CaseInsensitiveDict.__new__(CaseInsensitiveDict)
    vars(made)["_store"] = store
    return made


class WireRequest(requests.PreparedRequest):
    """requests' PreparedRequest, sent exactly as it is said here.

    method, url, body: assigned, not prepared; requests would rewrite what was checked and stored.
    fields: the header fields in order, where a name may come again.
    """

    # Of requests' own, for all alike: nothing here is hooked, kept or rewound.
    hooks: Any = MappingProxyType({})
    _cookies = None
    _body_position = None

    def __init__(
        self, method: str, url: str, fields: list[tuple[str, str]], body: bytes | None
    ) -> None:
        self.method = method
        self.url = url
        self.fields = fields
        self.body = body

    def __getattr__(self, name: str) -> Any:
        if name != "headers":
            raise AttributeError(name)
        self.headers = combine_headers(self.fields)
        return self.headers


class WireResponse(requests.Response):
    """requests' Response; what few ask for is made when it is asked for."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        # requests' own constructor makes a cookie jar, which costs more than all the rest.
        self.__dict__ = attributes

    def __getattr__(self, name: str) -> Any:
        value: Any
        if name == "cookies":
            value = RequestsCookieJar()
        elif name == "encoding":
            value = get_encoding_from_headers(self.headers)
        elif name == "history":
            value = []
        elif name == "raw":
            value = io.BytesIO(self.content)
        else:
            raise AttributeError(name)
        setattr(self, name, value)
        return value


def build_response(
    request: requests.PreparedRequest,
    url: str,
    status: int,
    head: bytes,
    content: bytes,
    seconds: float,
) -> WireResponse:
    """requests' Response of what came.

    Arguments: the request and the URL that were answered, the status, header section and decoded
    body of the answer, and how long it took.
    """
    _, reason, fields = parse_headers(head)
    return WireResponse(
        {
            "status_code": status,
            "reason": reason,
            "headers": combine_headers(fields),
            "_content": content,
            "_content_consumed": True,
            "_next": None,
            "url": url,
            "request": request,
            "elapsed": datetime.timedelta(seconds=seconds),
            "connection": None,
        }
    )
