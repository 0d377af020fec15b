"""Headers of a request: which are accepted, which are refused, and in what form they are sent."""

from __future__ import annotations

import re

from pgnet.request.errors import InvalidRequest, described
from pgnet.request.json_text import encode_json, json_object, kind_of
from pgnet.request.secret_reference import ILLEGAL_IN_VALUE, Reference, read_reference

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# In bytes, as they are sent.
MAX_HEADERS_LENGTH = 400_000
# libcurl appends each header to a list that it walks through from its start: 10,000 take 60 ms.
MAX_HEADERS = 10_000

# The default of net.http_post, which needs no check.
JSON_HEADERS = '{"Content-Type": "application/json"}'

# RFC 9110, 5.6.2.
_TCHAR = r"[A-Za-z0-9!#$%&'*+\-.^_`|~]"
is_token = re.compile(rf"{_TCHAR}+").fullmatch

# With these headers a caller could change where a message goes or where it ends (RFC 9112, 11.2),
# or how its connection is used. Expect makes a request wait.
_CLIENTS_OWN = frozenset(
    (
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
# These headers may occur only once (RFC 9110, 5.3): of two, one server believes the first and
# another the last.
_SINGLE = frozenset(("authorization", "content-type", "user-agent"))
_HINT_SINGLE = "Give one value. Names of headers are the same in upper and lower case."
_HINT_HOST = (
    "Host is the host of the URL. For a server that is to be asked for another name, the owner of "
    "the extension sets it: "
    """select net.configure_host(host, '{"host_header": "shop.example"}')"""
)
_HINT_REFUSED = "pgnet sets it for each request, from the URL, the body and the connection."


def is_clients_own(lower: str) -> bool:
    """Whether only the client itself may set a header. lower: the header's name in lower case."""
    return lower in _CLIENTS_OWN or lower[:6] == "proxy-"


def parse_headers(
    text: str | None, *, may_name_secrets: bool = False
) -> list[tuple[str, str | Reference]]:
    """Return headers given as JSON text as names and values to send; None and null mean none.

    may_name_secrets: as for flatten_headers.

    Raises InvalidRequest, with the name of the header and never its value.
    """
    if text is None or text in ("{}", "null"):
        return []
    return flatten_headers(json_object("headers", text), may_name_secrets)


def flatten_headers(
    headers: dict[str, object], may_name_secrets: bool = False
) -> list[tuple[str, str | Reference]]:
    """Return headers as names and values to send, in order, checked by RFC 9110.

    A number or boolean becomes its JSON text, an array a header for each of its elements, and None
    is left out. White space around a value is not part of it (RFC 9110, 5.5).
    may_name_secrets: whether a value {"secret": name} is a Reference; otherwise it is refused.

    Raises InvalidRequest, with the name of the header and never its value.
    """
    pairs: list[tuple[str, str | Reference]] = []
    single = set()
    for name, value in headers.items():
        if is_token(name) is None:
            raise _invalid_header_name(name)
        lower = name.lower()
        if is_clients_own(lower):
            hint = _HINT_HOST if lower == "host" else _HINT_REFUSED
            raise InvalidRequest(f'header "{name}" is not allowed', hint)
        before = len(pairs)
        if type(value) is str and value.isprintable():  # as most are
            pairs.append((name, value.strip(" \t")))
        elif isinstance(value, list):
            pairs += [
                (name, _header_value(name, item, may_name_secrets))
                for item in value
                if item is not None
            ]
        elif value is not None:
            pairs.append((name, _header_value(name, value, may_name_secrets)))
        if lower in _SINGLE and len(pairs) > before:
            if lower in single or len(pairs) > before + 1:
                raise InvalidRequest(f'header "{name}" must not be repeated', _HINT_SINGLE)
            single.add(lower)
    check_size(pairs)
    return pairs


def check_size(headers: Sequence[tuple[str, str | Reference]]) -> None:
    """Refuse too many headers, and headers that are too long together; raises InvalidRequest."""
    if len(headers) > MAX_HEADERS:
        raise InvalidRequest(f"there are more than {MAX_HEADERS} headers")
    # Each header also has a colon, a space and the line's end: four bytes.
    if sum([len(name) + _utf8_length(value) + 4 for name, value in headers]) > MAX_HEADERS_LENGTH:
        raise InvalidRequest(f"the headers are longer than {MAX_HEADERS_LENGTH} bytes")


def _utf8_length(value: str | Reference) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode())
    return 0  # The value of the secret is not known yet.


def _header_value(name: str, value: object, may_name_secrets: bool) -> str | Reference:
    if may_name_secrets and isinstance(value, dict) and "secret" in value:
        return read_reference(value)
    if not isinstance(value, str):
        if isinstance(value, (dict, list)):
            raise InvalidRequest(
                f'the value of header "{name}" must not be {kind_of(value)}',
                "It is a string, a number or a boolean, or an array of these to repeat the header; "
                'or {"secret": name}.',
            )
        return encode_json(value)
    illegal = re.search(ILLEGAL_IN_VALUE, value)
    if illegal is not None:
        if illegal[0] in "\r\n":
            raise InvalidRequest(
                f'header "{name}" contains a carriage return or line feed',
                "A header's value is one line. Is there a line break at its end?",
            )
        raise InvalidRequest(f'header "{name}" contains {described(illegal[0])}')
    return value.strip(" \t")


def _invalid_header_name(name: str) -> InvalidRequest:
    # Shown as far as it is a name: the rest may be a value that was given in the wrong place.
    prefix = re.match(rf"{_TCHAR}{{0,40}}", name)
    shown = prefix[0] if prefix is not None else ""
    illegal = name[len(shown) : len(shown) + 1]
    if illegal and illegal in "\r\n":
        return InvalidRequest(f'header "{shown}" contains a carriage return or line feed')
    if not illegal:
        return InvalidRequest("a header's name must not be empty")
    return InvalidRequest(
        f'invalid header name "{shown}...": {described(illegal)} is not allowed in it',
        "A name has letters, digits and !#$%&'*+-.^_`|~ only (RFC 9110).",
    )


def require_json(headers: Sequence[tuple[str, str | Reference]]) -> None:
    """Refuse a Content-Type that is not JSON's, for net.http_post; raises InvalidRequest."""
    types = [value for name, value in headers if len(name) == 12 and name.lower() == "content-type"]
    if types and types != ["application/json"] and not _is_json_type(types[0]):
        raise InvalidRequest(
            'Content-Type header must be "application/json"',
            "Parameters may follow; a charset must be utf-8, since the body is sent in UTF-8. "
            "net.http_request takes any type.",
        )


def _is_json_type(value: str | Reference) -> bool:
    """Whether a Content-Type is JSON's, with any parameters but a charset other than UTF-8."""
    if isinstance(value, Reference):
        return False
    media_type, _, parameters = value.partition(";")
    charset = re.search(r";[ \t]*charset=\"?([^\";\s]*)", f";{parameters}", re.IGNORECASE)
    return media_type.strip().lower() == "application/json" and (
        charset is None or charset[1].lower() in ("utf-8", "utf8", "us-ascii")
    )
