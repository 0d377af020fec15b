"""The caller's check: what becomes of a URL, its parameters and headers, or which error.

This module runs in the backend of everyone who queues a request, so it imports little, keeps
nothing of one call for the next, and raises one exception. Its rules stand, as input and row or
error, in ``tests/cases/requests.json``.

What is stored is an absolute http or https URL by RFC 3986, complete, and it is sent as it is
stored. What is given may be more than that, as it may in browsers (https://url.spec.whatwg.org):

- white space at either end is no part of the URL;
- scheme and host are in lower case, an international host name is in its ASCII form (RFC 3490);
- a port that is empty or the scheme's own is dropped (RFC 3986, 6.2.3), an empty path is ``/``;
- path, query and fragment stay as they were written, dot segments and ``%7E`` included. What
  RFC 3986 does not allow in them is percent-encoded as UTF-8: spaces, characters beyond ASCII,
  ``[ ] { } | \\ " ^ ` < >``, and a percent sign without two hexadecimal digits behind it;
- a host may be an address in any spelling (``127.1``): what is judged is the address connected to.
"""

from __future__ import annotations

import json
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    SecretValue = Callable[[str, dict[str, object]], str]

# Together less than 1 MiB: libcurl sends no longer head of a request.
MAX_URL_LENGTH = 400_000
MAX_HEADERS_LENGTH = 400_000
# libcurl appends each to a list that it walks through from its beginning: 10,000 take 60 ms.
MAX_HEADERS = 10_000
# Of params, headers and options as JSON text, which is looked at before it is parsed. Whatever fits
# into a URL or the headers is shorter, with each of its characters escaped.
MAX_JSON_LENGTH = 2_500_000
# Each of them is looked for in every answer, in all its forms.
MAX_SECRETS = 20

INVALID_PARAMETER_VALUE = "22023"
NOT_NULL_VIOLATION = "23502"


class InvalidRequest(ValueError):
    """A request that cannot be sent as it was asked for.

    message, hint: for the user. They hold no header's value, no user name or password, no query,
    and of a URL's path nothing where there is a host before it: each of these may be a secret.
    sqlstate: the SQLSTATE to raise it with.
    """

    def __init__(
        self, message: str, hint: str | None = None, sqlstate: str = INVALID_PARAMETER_VALUE
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.sqlstate = sqlstate


def check(
    method: str,
    url: str | None,
    params: str | None,
    headers: str | None,
    timeout_milliseconds: int | None,
    options: str | None = None,
    secrets: list[str] | None = None,
) -> str:
    """Check what is asked of net.http_request and its kin; return the URL to store.

    method: in upper case.
    params, headers: JSON text, as PostgreSQL writes jsonb; None means none.
    timeout_milliseconds: of the whole attempt; None means the setting of that name.
    options: JSON text; None means the rules of net.http_get, http_post and http_delete, whose POST
    is of JSON only.
    secrets: gets the names of the secrets that headers and URL refer to; whether the caller may use
    them is not for this module to say. Where it is None, a request with a secret is refused.

    Raises InvalidRequest.
    """
    if url is None:
        # Word for word what PostgreSQL says, as the column is what pg_net leaves this check to.
        raise InvalidRequest(
            'null value in column "url" of relation "http_request_queue" '
            "violates not-null constraint",
            "The argument url is NULL. Give an absolute http or https URL.",
            sqlstate=NOT_NULL_VIOLATION,
        )
    if method not in ("GET", "POST", "DELETE"):
        _check_method(method)
    if timeout_milliseconds is not None and timeout_milliseconds <= 0:
        raise InvalidRequest(
            f"timeout_milliseconds must be greater than 0, not {timeout_milliseconds}",
            "It is the total time of an attempt in milliseconds. NULL stands for the default.",
        )
    if secrets is not None and "{" in url:
        complete = _canonical_secret_url(url, secrets)
    else:
        complete = canonical_url(url)
    if params is not None and params != "{}":
        complete = add_params(complete, _json_object("params", params))
    if headers is not None and headers != "{}" and headers != _JSON_HEADERS:
        pairs = flatten_headers(_json_object("headers", headers), _collector(secrets))
        if method == "POST" and options is None:
            _require_json(pairs)
    if options is not None and options != "{}" and "idempotency_key" in parse_options(options):
        pairs = parse_headers(headers, _collector(secrets))
        if any(name.lower() == "idempotency-key" for name, _value in pairs):
            raise InvalidRequest(
                "the idempotency key is given twice",
                "Give the option idempotency_key or the header Idempotency-Key.",
            )
    return complete


def _collector(secrets: list[str] | None) -> SecretValue | None:
    return None if secrets is None else collector(secrets)


def collector(secrets: list[str]) -> SecretValue:
    """Return what puts the names of the secrets that headers refer to into a list, each once."""

    def collect(_header: str, reference: dict[str, object]) -> str:
        from pgnet.secret import reference_name

        name = reference_name(reference)
        if name not in secrets:
            secrets.append(name)
        if len(secrets) > MAX_SECRETS:
            raise InvalidRequest(f"a request names at most {MAX_SECRETS} secrets")
        return ""

    return collect


AT_MOST_ONCE = "at_most_once"
# What net.http_request knows as options: integers with their bounds, words, or a key.
_OPTIONS: dict[str, tuple[int, int] | tuple[str, ...] | None] = {
    "delivery": ("at_least_once", AT_MOST_ONCE),
    "idempotency_key": None,
    "max_redirects": (0, 30),
    "priority": (-32768, 32767),
}
# What is asked of net.http_request otherwise.
_ARGUMENTS = frozenset(
    (
        "method",
        "url",
        "body",
        "params",
        "headers",
        "timeout_milliseconds",
        "body_text",
        "body_form",
        "body_bytes",
        "retry",
        "max_attempts",
        "context",
    )
)
# What a row's options hold besides: arguments of net.http_request, which has checked them.
_STORED_OPTIONS = {**_OPTIONS, "max_attempts": (1, 1000), "retry": None}


def parse_options(text: str | None, *, stored: bool = False) -> dict[str, Any]:
    """Return the options of a request, given as JSON text; None means none.

    stored: they are those of a row, and not a caller's.

    Raises InvalidRequest for an unknown one and for a value out of its bounds.
    """
    if text is None:
        return {}
    options: dict[str, Any] = {}
    known = _STORED_OPTIONS if stored else _OPTIONS
    for name, value in _json_object("options", text).items():
        if name not in known:
            raise _unknown_option(name, known)
        if value is not None:
            options[name] = _option(name, value, known[name])
    return options


def _unknown_option(name: str, known: Iterable[str]) -> InvalidRequest:
    names = ", ".join(sorted(known))
    if name in _ARGUMENTS:
        return InvalidRequest(
            f'unknown option "{name}": it is an argument of net.http_request; known: {names}',
            f"Give it beside options, not in it: {name} => value.",
        )
    return InvalidRequest(f'unknown option "{_printable(name)}"; known: {names}')


def _option(name: str, value: object, bounds: tuple[int, int] | tuple[str, ...] | None) -> Any:
    if bounds is None:
        if type(value) is not str or _is_key(value) is None:
            raise InvalidRequest(
                f'option "{name}" must be a string of 1 to 255 printable ASCII characters'
            )
        return value
    low, high = bounds[0], bounds[-1]
    if isinstance(low, str) or isinstance(high, str):
        if value not in bounds:
            words = " or ".join(f'"{word}"' for word in bounds)
            raise InvalidRequest(f'option "{name}" must be {words}')
        return value
    number = int(value) if isinstance(value, Number) and _is_integer(value) else None
    if number is None or not low <= number <= high:
        raise InvalidRequest(f'option "{name}" must be an integer between {low} and {high}')
    return number


# No space at either end: it would not be part of a header's value.
_is_key = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?").fullmatch
_is_integer = re.compile(r"-?[0-9]{1,10}").fullmatch


def _check_method(method: str) -> None:
    if is_token(method) is None:
        raise InvalidRequest(
            "the method is no token of RFC 9110", "A method is a word such as GET or PATCH."
        )
    if method in ("CONNECT", "TRACE"):
        raise InvalidRequest(f"the method {method} is not allowed", "It asks for a tunnel or echo.")


# --- JSON -----------------------------------------------------------------------------------------


class Number(str):
    """A JSON number as it was written: through a float, 1.10 would become 1.1."""

    __slots__ = ()


def _refuse_constant(name: str) -> object:
    raise ValueError(name)  # NaN and Infinity, which Python takes for JSON


_decode_json = json.JSONDecoder(
    parse_float=Number, parse_int=Number, parse_constant=_refuse_constant
).raw_decode
_encode_json = json.JSONEncoder(ensure_ascii=False).encode

_HINT_NONE = "Leave it out, or give NULL or '{}', for none."


def decode_json(argument: str, text: str, longest: int | None = None) -> object:
    """Read JSON text; a number is a Number, as it was written.

    longest: how many characters it may have.

    Raises InvalidRequest, with the name of the argument.
    """
    if longest is not None and len(text) > longest:
        raise InvalidRequest(f"{argument} is longer than {longest} characters as JSON")
    text = text.strip(" \t\n\r")
    try:
        value, end = _decode_json(text)
    except ValueError:
        raise InvalidRequest(f"{argument} is not valid JSON") from None
    except RecursionError:
        raise InvalidRequest(f"{argument} is nested too deeply") from None
    if end != len(text):
        raise InvalidRequest(f"{argument} is not valid JSON")
    return value


def _json_object(
    argument: str, text: str, longest: int | None = MAX_JSON_LENGTH
) -> dict[str, object]:
    value = decode_json(argument, text, longest)
    if type(value) is not dict:
        raise InvalidRequest(f"{argument} must be a JSON object, not {_kind(value)}", _HINT_NONE)
    return value


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (Number, int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"


def jsonb_text(value: object) -> str:
    """Write a value that decode_json has read as jsonb's output function does."""
    written: list[str] = []
    # By a stack of its own: what was read may be nested deeper than calls can be. A Number is
    # written as it is, and so are brackets and commas.
    todo = [value]
    while todo:
        item = todo.pop()
        if type(item) is Number:
            written.append(item)
        elif isinstance(item, list):
            todo.append(Number("]"))
            for element in reversed(item):
                todo += element, Number(", ")
            todo[-1:] = [Number("[")] if item else [Number("]"), Number("[")]
        elif isinstance(item, dict):
            todo.append(Number("}"))
            for key, element in reversed(item.items()):
                todo += element, Number(f"{_encode_json(key)}: "), Number(", ")
            todo[-1:] = [Number("{")] if item else [Number("}"), Number("{")]
        else:
            written.append(_encode_json(item))
    return "".join(written)


# --- URL ------------------------------------------------------------------------------------------

# RFC 3986: pchar and "/", without pct-encoded; in query and fragment also "?".
_PCHARS = r"[A-Za-z0-9\-._~!$&'()*+,;=:@/]*"
_QCHARS = r"[A-Za-z0-9\-._~!$&'()*+,;=:@/?]*"
_PCT = r"%[0-9A-Fa-f]{2}"
# There is one way only to match a text, so a mismatch costs no backtracking.
_PATH = rf"/{_PCHARS}(?:{_PCT}{_PCHARS})*"
_QUERY = rf"{_QCHARS}(?:{_PCT}{_QCHARS})*"
# Underscores are no host name by RFC 952, but stand in names that resolve.
_HOST = r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}\.?"

# The last label is no number (see _NUMBER), or all of it is an IPv4 address in its usual form.
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_USUAL_HOST = (
    rf"(?:(?:[a-z0-9_-]{{1,63}}\.)*[a-z_][a-z0-9_-]{{0,62}}\.?|{_OCTET}(?:\.{_OCTET}){{3}})"
)

# What needs no second look. Ports above 59999, the two default ports and unusual hosts get one.
# The patterns that are not compiled here are seldom needed: re compiles them at their first use.
_is_canonical = re.compile(
    rf"https?://(?=[^/:]{{1,253}}[/:]){_USUAL_HOST}"
    r"(?::(?!80/|443/)(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}))?"
    rf"{_PATH}(?:\?{_QUERY})?(?:#{_QUERY})?"
).fullmatch
# RFC 3986, appendix B, with the characters that a scheme may have.
_PARTS = r"(?s:(?:([A-Za-z][A-Za-z0-9+.-]*):)?(?://([^/?#]*))?([^?#]*)(\?[^#]*)?(#.*)?)"
# The white space of what browsers remove at either end.
_ENDS = " \t\n\f\r"
# What no percent-encoding makes good: browsers drop tabs and line breaks wherever they stand, and
# libcurl refuses all controls; halves of surrogate pairs have no UTF-8.
_REFUSED = r"[\x00-\x1f\x7f\ud800-\udfff]"
# What RFC 3986 does not allow in path, query and fragment. That has all of the WHATWG's encode sets
# for them but the apostrophe of a query, which is legal and so stays.
_TO_ENCODE = r"[^A-Za-z0-9\-._~!$&'()*+,;=:@/?%]+|%(?![0-9A-Fa-f]{2})"
_ILLEGAL_IN_HOST = r"[^a-z0-9._-]"
# The WHATWG's "ends in a number": such a host is an IPv4 address, or none at all. What a resolver
# or a proxy would make of one that is none, nobody knows.
_NUMBER = r"(?:^|\.)(?:[0-9]+|0x[0-9a-f]*)\.?$"
_IP_LITERAL = r"(?s:\[([0-9A-Fa-f:.]+)\](?::(.*))?)"

_DEFAULT_PORTS = {"http": 80, "https": 443}
# IDNA 2003, which Python has, makes other names of these than IDNA 2008 does; so it may of what
# Unicode 3.2 did not have yet.
_IDNA_DEVIATIONS = frozenset("\u00df\u03c2\u200c\u200d")

_HINT_ABSOLUTE = "Begin the URL with http:// or https://."
_HINT_USERINFO = (
    "A URL is stored and shown. Give the credentials in an Authorization header, "
    "best as a secret: net.set_secret."
)
_HINT_CONTROL = "Take it out, or percent-encode it. What is given in params is encoded for you."
_HINT_SECRET = (
    "net.secret_url(name) gives the URL that stands for a secret one. "
    "A brace that means itself is written %7B."
)
_HINT_IPV4 = "An IPv4 address is four numbers up to 255. The last label of a name is no number."
_HINT_IPV6 = "Write an IPv6 address in brackets: http://[2001:db8::1]/"
_HINT_IDNA = 'Write the host name in its ASCII form, which begins with "xn--".'


def canonical_url(url: str) -> str:
    """Return a URL as it is stored and sent, by the rules this module begins with.

    Raises InvalidRequest for what is no absolute http or https URL, and for one that two readers
    would take for two.
    """
    if len(url) <= MAX_URL_LENGTH and _is_canonical(url) is not None:
        return url
    return _canonicalize(url)


_SECRET_URL = r"(?s:(https?://[^/?#{}]*)/\{secret:([A-Za-z0-9][A-Za-z0-9_.-]{0,62})\}(\?.*)?)"


def split_secret_url(url: str) -> tuple[str, str, str] | None:
    """Take a URL as net.secret_url gives it apart: origin, secret's name, query with its "?"."""
    match = re.fullmatch(_SECRET_URL, url)
    return None if match is None else (match[1], match[2], match[3] or "")


def _canonical_secret_url(url: str, secrets: list[str]) -> str:
    parts = split_secret_url(url)
    if parts is None:
        return canonical_url(url)  # which says what is wrong with it
    origin, name, query = parts
    complete = canonical_url(f"{origin}/{query}")
    path = complete.index("/", 8)
    secrets.append(name)
    return f"{complete[:path]}/{{secret:{name}}}{complete[path + 1 :]}"


def _canonicalize(url: str) -> str:
    url = _bounded(url).strip(_ENDS)
    match = re.fullmatch(_PARTS, url)
    assert match is not None  # each part may be empty
    scheme, authority, path, query, fragment = match.groups("")
    scheme = scheme.lower()
    if not scheme:
        raise _invalid_url(url, "it is not an absolute URL", _HINT_ABSOLUTE)
    if scheme not in _DEFAULT_PORTS:
        raise _invalid_url(url, "Unsupported URL scheme", _HINT_ABSOLUTE)
    if "@" in authority:
        raise _invalid_url(url, "user name and password are not allowed in it", _HINT_USERINFO)
    origin = f"{scheme}://{_canonical_authority(url, scheme, authority)}"
    for name, part in ("path", path), ("query", query), ("fragment", fragment):
        refused = re.search(_REFUSED, part)
        if refused is not None:
            raise _invalid_url(
                url, f"{_described(refused[0])} is not allowed in its {name}", _HINT_CONTROL
            )
    if "{secret:" in url:
        raise _invalid_url(url, '"{secret:" stands only in what net.secret_url gives', _HINT_SECRET)
    rest = _encoded(path or "/") + _encoded(query) + fragment[:1] + _encoded(fragment[1:])
    return _bounded(origin + rest)


def _encoded(text: str) -> str:
    return re.sub(_TO_ENCODE, lambda found: _percent_encode(found[0]), text)


def _canonical_authority(url: str, scheme: str, authority: str) -> str:
    if authority.startswith("["):
        literal = re.fullmatch(_IP_LITERAL, authority)
        if literal is None or not _is_ipv6(literal[1]):
            reason = "its host is not an IPv6 address in brackets"
            hint = "A zone, as in fe80::1%eth0, is not allowed." if "%" in authority else None
            raise _invalid_url(url, reason, hint)
        host, port = f"[{literal[1].lower()}]", literal[2] or ""
    else:
        name, _, port = authority.partition(":")
        host = _canonical_host(url, name, _HINT_IPV6 if ":" in port else None)
    if not port:
        return host
    digits = port.lstrip("0")
    if not (port.isascii() and port.isdigit()):
        raise _invalid_url(url, "its port is not a number", _HINT_IPV6 if ":" in port else None)
    if not 1 <= len(digits) <= 5 or int(digits) > 65535:
        raise _invalid_url(url, "its port is not between 1 and 65535")
    return host if int(digits) == _DEFAULT_PORTS[scheme] else f"{host}:{digits}"


def _canonical_host(url: str, host: str, hint: str | None) -> str:
    if not host:
        raise _invalid_url(url, "its host is missing", hint)
    if not host.isascii():
        host = _idna(url, host)
    host = host.lower()
    if re.fullmatch(_HOST, host) is not None and len(host.rstrip(".")) <= 253:
        if is_number(host) and not _is_ipv4(host):
            reason = "its host ends in a number and is not an IPv4 address"
            raise _invalid_url(url, reason, _HINT_IPV4)
        return host
    illegal = re.search(_ILLEGAL_IN_HOST, host)
    if illegal is not None:
        raise _invalid_url(url, f"{_described(illegal[0])} is not allowed in its host")
    raise _invalid_url(
        url,
        "its host is not a name of at most 253 characters with 1 to 63 between two dots",
    )


def _idna(url: str, host: str) -> str:
    # Few host names are international: the others do not pay for the import.
    from stringprep import in_table_a1

    reason = "its host is not an international host name"
    if len(host) <= 253:  # what is longer takes the codec long
        if not _IDNA_DEVIATIONS.isdisjoint(host) or any(map(in_table_a1, host)):
            reason = "its host has a character that standards convert differently"
        else:
            try:
                return host.encode("idna").decode("ascii")
            except UnicodeError:
                pass
    raise _invalid_url(url, reason, _HINT_IDNA)


def is_number(host: str) -> bool:
    """Whether a host, in lower case, ends in a number, as the WHATWG's URL standard calls it."""
    return re.search(_NUMBER, host) is not None


def _is_ipv4(host: str) -> bool:
    # Few hosts are addresses in an unusual form: the others do not pay for the import.
    from pgnet.host import literal_address

    return literal_address(host) is not None


def _is_ipv6(text: str) -> bool:
    # As above: few hosts are literals.
    from ipaddress import AddressValueError, IPv6Address

    try:
        IPv6Address(text)
    except AddressValueError:
        return False
    return True


def _bounded(url: str) -> str:
    if len(url) > MAX_URL_LENGTH:
        raise _invalid_url(url, f"it is longer than {MAX_URL_LENGTH} characters")
    return url


# --- Parameters -----------------------------------------------------------------------------------

# RFC 3986, 2.3: what needs no encoding anywhere.
_UNRESERVED = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
_PERCENT = [chr(byte) if byte in _UNRESERVED else f"%{byte:02X}" for byte in range(256)]


def _percent_encode(text: str) -> str:
    # Twice as fast as byte by byte where text is ASCII, as most is.
    if text.isascii():
        return text.translate(_PERCENT)
    return "".join([_PERCENT[byte] for byte in text.encode()])


def urlencode_string(string: str | None) -> str | None:
    """Percent-encode all but RFC 3986's unreserved characters; None stays None.

    Raises InvalidRequest for what UTF-8 cannot express, and for a NUL character.
    """
    return None if string is None else _encode_component(string)


def _encode_component(text: str) -> str:
    if text.isalnum() and text.isascii():
        return text
    if "\0" in text:
        raise InvalidRequest("a parameter must not contain a NUL character")
    try:
        return _percent_encode(text)
    except UnicodeEncodeError:
        raise InvalidRequest("a parameter must not contain an unpaired surrogate") from None


def add_params(url: str, params: dict[str, object]) -> str:
    """Append parameters to the query of a canonical URL, percent-encoded, before its fragment.

    A None drops its pair; what is not a string is its JSON text, arrays and objects included.

    Raises InvalidRequest.
    """
    pairs = []
    for key, value in params.items():
        if value is not None:
            text = value if isinstance(value, str) else jsonb_text(value)
            pairs.append(f"{_encode_component(key)}={_encode_component(text)}")
    return _append_to_query(url, pairs) if pairs else url


def _append_to_query(url: str, pairs: list[str]) -> str:
    base, hash_sign, fragment = url.partition("#")
    _, question_mark, query = base.partition("?")
    separator = "?"
    if question_mark:
        separator = "&" if query and not query.endswith("&") else ""
    return _bounded(f"{base}{separator}{'&'.join(pairs)}{hash_sign}{fragment}")


def encode_form(text: str | None) -> str:
    """Return an object, given as JSON text, as application/x-www-form-urlencoded; None is empty.

    As the URL standard serializes it, section 5.2: a space is "+", an array repeats its name, a
    null is left out; what is no string is its JSON text.

    Raises InvalidRequest.
    """
    pairs = []
    # A body may be of any length.
    fields = {} if text is None else _json_object("body_form", text, longest=None)
    for key, value in fields.items():
        items = value if isinstance(value, list) else [value]
        pairs += [
            f"{_encode_field(key)}={_encode_field(i if isinstance(i, str) else jsonb_text(i))}"
            for i in items
            if i is not None
        ]
    return "&".join(pairs)


def _encode_field(text: str) -> str:
    try:
        return _percent_encode(text).replace("%20", "+").replace("~", "%7E").replace("%2A", "*")
    except UnicodeEncodeError:
        raise InvalidRequest("body_form must not contain an unpaired surrogate") from None


def encode_url_with_params_array(
    url: str | None, params_array: list[str | None] | None
) -> str | None:
    """Return the canonical URL with parameters appended that are encoded already, as ``k=v``.

    A None among the parameters is passed over; None for either argument gives None.

    Raises InvalidRequest for an invalid URL, or a parameter that cannot stand in a query.
    """
    if url is None or params_array is None:
        return None
    complete = canonical_url(url)
    pairs = []
    for pair in params_array:
        if not pair:
            continue
        refused = re.search(_REFUSED, pair)
        if refused is not None:
            raise InvalidRequest(
                f"{_described(refused[0])} is not allowed in an element of params_array",
                "Each is key=value, both encoded by net._urlencode_string.",
            )
        pairs.append(_encoded(pair))
    return _append_to_query(complete, pairs) if pairs else complete


# --- Headers --------------------------------------------------------------------------------------

_JSON_HEADERS = '{"Content-Type": "application/json"}'

# RFC 9110, 5.6.2.
_TCHAR = r"[A-Za-z0-9!#$%&'*+\-.^_`|~]"
is_token = re.compile(rf"{_TCHAR}+").fullmatch
_ILLEGAL_IN_VALUE = r"[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff]"

# With these a caller could change where a message goes or ends (RFC 9112, 11.2), or whose
# connection it is; Expect makes a request wait.
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
# Of two of these each server believes another one (RFC 9110, 5.3).
_SINGLE = frozenset(("authorization", "content-type", "user-agent"))
_HINT_SINGLE = "Give one value. Names of headers are the same in upper and lower case."
_HINT_HOST = (
    "It is the host of the URL. For a server that is asked for another name the owner sets it: "
    """select net.configure_host(host, '{"host_header": "shop.example"}')"""
)
_HINT_REFUSED = "It is set for each request from its URL, its body and the connection."


def is_clients_own(lower: str) -> bool:
    """Whether a header, its name in lower case, is set by the client itself and by nobody else."""
    return lower in _CLIENTS_OWN or lower[:6] == "proxy-"


def parse_headers(
    text: str | None, secret_value: SecretValue | None = None
) -> list[tuple[str, str]]:
    """Return headers given as JSON text as names and values to send; None and null mean none.

    secret_value: as flatten_headers takes it.

    Raises InvalidRequest, with the name of the header and never its value.
    """
    if text is None or text in ("{}", "null"):
        return []
    return flatten_headers(_json_object("headers", text), secret_value)


def flatten_headers(
    headers: dict[str, object], secret_value: SecretValue | None = None
) -> list[tuple[str, str]]:
    """Return headers as names and values to send, in order, checked by RFC 9110.

    Numbers and booleans are their JSON text, an array is a header for each of its elements, None
    is left out. White space around a value is no part of it (RFC 9110, 5.5).
    secret_value: what a value {"secret": name} stands for, asked with the header's name; where it
    is None, there are no secrets.

    Raises InvalidRequest, with the name of the header and never its value.
    """
    pairs: list[tuple[str, str]] = []
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
                (name, _header_value(name, item, secret_value))
                for item in value
                if item is not None
            ]
        elif value is not None:
            pairs.append((name, _header_value(name, value, secret_value)))
        if lower in _SINGLE and len(pairs) > before:
            if lower in single or len(pairs) > before + 1:
                raise InvalidRequest(f'header "{name}" must not be repeated', _HINT_SINGLE)
            single.add(lower)
    if len(pairs) > MAX_HEADERS:
        raise InvalidRequest(f"there are more than {MAX_HEADERS} headers")
    # With the colon, the space and the line's end.
    if sum([len(name) + _utf8_length(value) + 4 for name, value in pairs]) > MAX_HEADERS_LENGTH:
        raise InvalidRequest(f"the headers are longer than {MAX_HEADERS_LENGTH} bytes")
    return pairs


def _utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _header_value(name: str, value: object, secret_value: SecretValue | None) -> str:
    if isinstance(value, dict) and "secret" in value and secret_value is not None:
        value = secret_value(name, value)
    if not isinstance(value, str):
        if isinstance(value, (dict, list)):
            raise InvalidRequest(
                f'the value of header "{name}" must not be {_kind(value)}',
                "It is a string, a number or a boolean, or an array of these to repeat the header; "
                'or {"secret": name}.',
            )
        return _encode_json(value)
    illegal = re.search(_ILLEGAL_IN_VALUE, value)
    if illegal is not None:
        if illegal[0] in "\r\n":
            raise InvalidRequest(
                f'header "{name}" contains a carriage return or line feed',
                "A header's value is one line. Does one end it that is not meant?",
            )
        raise InvalidRequest(f'header "{name}" contains {_described(illegal[0])}')
    return value.strip(" \t")


def _invalid_header_name(name: str) -> InvalidRequest:
    # Only as far as it is a name: behind that may stand a value that got into the wrong place.
    prefix = re.match(rf"{_TCHAR}{{0,40}}", name)
    shown = prefix[0] if prefix is not None else ""
    illegal = name[len(shown) : len(shown) + 1]
    if illegal and illegal in "\r\n":
        return InvalidRequest(f'header "{shown}" contains a carriage return or line feed')
    if not illegal:
        return InvalidRequest("a header's name must not be empty")
    return InvalidRequest(
        f'invalid header name "{shown}...": {_described(illegal)} is not allowed in it',
        "A name is of letters, digits and !#$%&'*+-.^_`|~ (RFC 9110).",
    )


def _require_json(pairs: list[tuple[str, str]]) -> None:
    types = [value for name, value in pairs if len(name) == 12 and name.lower() == "content-type"]
    if types and types != ["application/json"] and not _is_json_type(types[0]):
        raise InvalidRequest(
            'Content-Type header must be "application/json"',
            "Parameters may follow; a charset must be utf-8, which is what is sent. "
            "For another type there is net.http_request.",
        )


def _is_json_type(value: str) -> bool:
    """Whether a Content-Type is JSON's, with whatever parameters, but for a charset not UTF-8."""
    media_type, _, parameters = value.partition(";")
    charset = re.search(r";[ \t]*charset=\"?([^\";\s]*)", f";{parameters}", re.IGNORECASE)
    return media_type.strip().lower() == "application/json" and (
        charset is None or charset[1].lower() in ("utf-8", "utf8", "us-ascii")
    )


# --- Errors ---------------------------------------------------------------------------------------

_NAMES = {" ": "a space", "\\": "a backslash", "\0": "a NUL character", '"': "a double quote"}

# What stands before the host or, where there is none, before the first segment of the path.
_SHOWN_PARTS = r"(?s:((?:[^/?#@:]*:)?//|/|)([^/?#]*)(.*))"
_HOST_AND_PORT = r"(?:[^:@\[\]]*|\[[^@\[\]]*\])(?::[0-9]*)?"


def _invalid_url(url: str, reason: str, hint: str | None = None) -> InvalidRequest:
    return InvalidRequest(f'invalid URL "{_shown(url)}": {reason}', hint)


def _described(character: str) -> str:
    if character in _NAMES:
        return _NAMES[character]
    if "!" <= character <= "~":
        return f'"{character}"'
    return f"the character U+{ord(character):04X}"


def _shown(url: str) -> str:
    """Return what of a faulty URL can be shown: no user and password, no path below the host.

    It cannot rely on the URL's syntax: a password may hold what ends a host.
    """
    match = re.fullmatch(_SHOWN_PARTS, url)
    assert match is not None  # each part may be empty
    lead, host, tail = match.groups()
    if "@" in host or ("@" in tail and ":" in host):
        behind = host.rpartition("@")[2]
        host = (
            f"***@{behind}" if "@" not in tail and re.fullmatch(_HOST_AND_PORT, behind) else "***"
        )
    elif not re.fullmatch(_HOST_AND_PORT, host):
        host = f"{host.partition(':')[0]}:***"
    if tail not in ("", "/"):
        tail = "/..."
    shown = f"{lead}{host}"
    if len(shown) > 100:
        shown = f"{shown[:100]}..."
    return _printable(shown + tail)


def _printable(text: str) -> str:
    """The beginning of a text, with what cannot be shown replaced."""
    # ASCII besides what the caller wrote, for databases in other encodings.
    shown = text if len(text) <= 120 else f"{text[:120]}..."
    return "".join([c if c.isprintable() else "?" for c in shown])
