"""Header fields as they go out and as they come in, and the classes of requests around them."""

from __future__ import annotations

import datetime
import io
import re
from collections import OrderedDict
from collections.abc import Iterable
from types import MappingProxyType
from typing import Any, NamedTuple

import requests
from requests.cookies import RequestsCookieJar
from requests.structures import CaseInsensitiveDict
from requests.utils import get_encoding_from_headers

import pgnet
from pgnet.request.headers import is_clients_own, is_token
from pgnet.wire.wire_error import Code, WireError

_BAD_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# Anchored at the start of a line. Otherwise a line without a colon is read once for each character.
_FIELD = re.compile(r"(?m:^)([^:\n]+):[ \t]*([^\n]*)(?:\n|\Z)")
_STATUS_LINE = re.compile(
    r"HTTP/([0-9](?:\.[0-9])?) +([0-9]{3})((?:[ \t\r].*)?)", re.IGNORECASE | re.DOTALL
)
_LENGTH = re.compile(r"[0-9]{1,18}")
# Headers that libcurl adds by itself, and nobody asked for. A name without a value removes each.
_UNASKED = (b"Accept:", b"Content-Type:", b"Expect:")
_UNASKED_NAMES = ("accept", "content-type", "expect")
USER_AGENT = f"pgnet/{pgnet.__version__}"


def check_method(method: str) -> None:
    """Refuse what is not a token (RFC 9110, section 9.1), and the methods for tunnels and echoes.

    Raises WireError.
    """
    if method in ("GET", "POST"):
        return
    if is_token(method) is None:
        raise WireError("invalid method")
    if method.upper() in ("CONNECT", "TRACE"):
        raise WireError(f"method {method} is not allowed")


def encode_headers(fields: Iterable[tuple[str, str]], user_agent: str | None = None) -> list[bytes]:
    """Return header lines as libcurl takes them, and those that remove libcurl's own headers.

    fields: names and values in order; a repeated name is a repeated header.
    user_agent: the User-Agent where the fields have none; None means pgnet's own.

    Raises WireError for a name that is not a token, for a control character in a value (RFC 9110,
    sections 5.1 and 5.5), and for a header that only the client itself sets. The error does not
    hold the value.
    """
    lines: list[bytes] = []
    names = set()
    for name, value in fields:
        lower = name.lower()
        if is_token(name) is None:
            raise WireError("invalid header name")
        if is_clients_own(lower):
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
    # The semicolon tells libcurl that the value is empty.
    return (f"{name}: {stripped}" if stripped else f"{name};").encode("utf-8")


class Head(NamedTuple):
    """The header section of an answer.

    version: "1.0", "1.1", "2". fields: in order, repeats kept.
    """

    version: str
    status: int
    reason: str
    fields: list[tuple[str, str]]


def parse_head(section: bytes) -> Head:
    """Read a status line and the fields below it.

    Raises WireError where the first line is not a status line of HTTP.
    """
    line, _, rest = _as_text(section).partition("\n")
    status = _STATUS_LINE.fullmatch(line)
    if status is None:
        raise WireError(Code.UNSUPPORTED_PROTOCOL.words, possibly_sent=True)
    return Head(status[1], int(status[2]), status[3].strip(), _fields(rest))


def parse_fields(section: bytes) -> list[tuple[str, str]]:
    """Read fields without a status line, such as those of trailers."""
    return _fields(_as_text(section))


def _fields(text: str) -> list[tuple[str, str]]:
    text = text.replace("\r\n", "\n")
    if "\n " in text or "\n\t" in text:
        text = _unfolded(text)
    fields: list[tuple[str, str]] = _FIELD.findall(text)
    if " \n" in text or "\t\n" in text or "\r" in text:
        fields = [(name, value.rstrip("\r \t")) for name, value in fields]
    return fields


def _unfolded(text: str) -> str:
    """Join each folded line (RFC 9112, section 5.2) to the one before it.

    A regular expression would look at a long run of spaces once for each of them.
    """
    lines: list[list[str]] = []
    for line in text.split("\n"):
        if lines and line[:1] in (" ", "\t") and line.strip():
            last = lines[-1]
            last[-1] = last[-1].rstrip(" \t\r")
            last.append(line.lstrip(" \t"))
        else:
            lines.append([line])
    return "\n".join([" ".join(parts) for parts in lines])


def _as_text(section: bytes) -> str:
    """Read each line as UTF-8 where it is valid, else as Latin-1: RFC 9110, 5.5, leaves it open."""
    try:
        return section.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(map(_line_as_text, section.splitlines(keepends=True)))


def _line_as_text(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("latin-1")


class Framing(NamedTuple):
    """How the body of an answer comes.

    length: in bytes; None where no field says it. codings: the value of Content-Encoding.
    """

    length: int | None
    codings: str


def framing(fields: list[tuple[str, str]]) -> Framing:
    """Read how a header section says that the body comes (RFC 9112, section 6).

    libcurl accepts lengths that are not numbers, and takes the first one of several. Then one side
    may take for the end of the body what the other side takes for the next answer. So these are
    refused here.

    Raises WireError.
    """
    lengths: list[str] = []
    transfer_codings, codings = [], []
    for name, value in fields:
        # The lengths of the names tell them apart, which costs least.
        size = len(name)
        if size == 14 and name.lower() == "content-length":
            lengths.append(value)
        elif size == 16 and name.lower() == "content-encoding":
            codings.append(value)
        elif size == 17 and name.lower() == "transfer-encoding":
            transfer_codings.append(value)
    if transfer_codings:
        if ",".join(transfer_codings).lower() != "chunked":
            # The request asked for no other (RFC 9110, section 10.1.4).
            raise WireError(Code.BAD_CONTENT_ENCODING.words, possibly_sent=True)
        lengths = []
    return Framing(_length(lengths) if lengths else None, ", ".join(codings))


def _length(values: list[str]) -> int:
    """The one length that all values of Content-Length agree on (RFC 9110, section 8.6)."""
    if len(values) == 1 and _LENGTH.fullmatch(values[0]):
        return int(values[0])
    texts = {text.strip(" \t") for value in values for text in value.split(",")}
    # Leading zeros are cut off: int() would take long to read many of them.
    numbers = {text.lstrip("0") or text[-1:] for text in texts}
    if not all(map(_LENGTH.fullmatch, numbers)) or len(numbers) != 1:
        raise WireError(Code.WEIRD_REPLY.words, possibly_sent=True)
    return int(numbers.pop())


def combine_headers(fields: list[tuple[str, str]]) -> CaseInsensitiveDict[str]:
    """Return fields as one mapping: repeats are joined by commas (RFC 9110, section 5.3).

    Repeats of Set-Cookie cannot be joined: the last one stands.
    """
    values: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    for name, value in fields:
        lower = name.lower()
        if lower in names and lower != "set-cookie":
            values[lower].append(value)
        else:
            names[lower], values[lower] = name, [value]
    store = OrderedDict((lower, (name, ", ".join(values[lower]))) for lower, name in names.items())
    # The class's own constructor would take several calls of Python code for each field.
    made: CaseInsensitiveDict[str] = CaseInsensitiveDict.__new__(CaseInsensitiveDict)
    vars(made)["_store"] = store
    return made


class WireRequest(requests.PreparedRequest):
    """A PreparedRequest of requests that is sent exactly as it is given.

    method, url, body: taken as they are. requests would rewrite what was checked and stored. A
    fragment of the URL is not sent.
    fields: the header fields in order; a repeated name is a repeated header.
    """

    method: str
    url: str
    body: bytes | None
    # Attributes of requests' class, the same for all: nothing here is hooked, kept or rewound.
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
    """A Response of requests. Attributes that few users need are made when they are needed."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        # The class's own constructor makes a cookie jar, which costs more than all the rest.
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
    head: Head,
    content: bytes,
    seconds: float,
) -> WireResponse:
    """Return a Response of requests.

    request, url: what was answered. head, content: the header section and the decoded body.
    seconds: how long the request took.
    """
    return WireResponse(
        {
            "status_code": head.status,
            "reason": head.reason,
            "headers": combine_headers(head.fields),
            "_content": content,
            "_content_consumed": True,
            "_next": None,
            "url": url,
            "request": request,
            "elapsed": datetime.timedelta(seconds=seconds),
            "connection": None,
        }
    )
