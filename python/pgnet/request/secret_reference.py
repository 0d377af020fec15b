"""References to secrets: a header's value names a secret, or a secret stands for a URL.

Requests hold names of secrets only, in one of two forms:

- a header's value ``{"secret": name}``, with ``"prefix": "Bearer "`` before it if need be: a
  `Reference`;
- a URL ``https://host/{secret:name}?query``, as net.secret_url gives it: a `SecretUrl`.

The folder ``secret`` has the values and where they may go; a caller's check needs neither.
"""

from __future__ import annotations

import re

from pgnet.request.errors import InvalidRequest
from pgnet.request.url import canonical_url

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# How many secrets one request may name: each is looked for in its answer, in many forms.
MAX_SECRETS = 20
# Few requests refer to secrets: these patterns are compiled when they are used first.
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}"
_SECRET_URL = rf"(?s:(https?://[^/?#{{}}]*)/\{{secret:({_NAME})\}}(\?.*)?)"
# The characters that no header's value may hold (RFC 9110, 5.5), and halves of surrogate pairs.
ILLEGAL_IN_VALUE = r"[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff]"
HINT_NAME = "A name is of 1 to 63 letters, digits, and - _ . behind the first one."
_HINT_REFERENCE = 'For example {"secret": "stripe", "prefix": "Bearer "}.'


class Reference:
    """A header's value that is a secret: the secret's name, and the text that stands before it."""

    __slots__ = ("name", "prefix")

    def __init__(self, name: str, prefix: str) -> None:
        self.name = name
        self.prefix = prefix


class SecretUrl:
    """A URL that is a secret: its origin, the secret's name, and a query with its "?", or ""."""

    __slots__ = ("name", "origin", "query")

    def __init__(self, origin: str, name: str, query: str) -> None:
        self.origin = origin
        self.name = name
        self.query = query


def is_name(text: object) -> bool:
    """Whether this is the name of a secret."""
    return type(text) is str and re.fullmatch(_NAME, text) is not None


def read_reference(value: Mapping[str, object]) -> Reference:
    """Read a header's value ``{"secret": name}``.

    Raises InvalidRequest, whose text holds no value, neither the secret's nor the reference's.
    """
    name, prefix = value.get("secret"), value.get("prefix")
    if not isinstance(name, str) or not is_name(name):
        raise InvalidRequest("a header's value names no secret", HINT_NAME)
    if prefix is None:
        prefix = ""
    if type(prefix) is not str or re.search(ILLEGAL_IN_VALUE, prefix):
        raise InvalidRequest(
            f'the "prefix" of secret "{name}" must be a string of printable characters',
            _HINT_REFERENCE,
        )
    if not value.keys() <= {"secret", "prefix"}:
        raise InvalidRequest(
            f'a header value with secret "{name}" knows "secret" and "prefix" only',
            _HINT_REFERENCE,
        )
    return Reference(name, prefix)


def collect_names(headers: Iterable[tuple[str, object]], names: list[str]) -> None:
    """Add the secrets that headers refer to, each once, to the names that a request has so far.

    Raises InvalidRequest for too many.
    """
    add_names((value.name for _header, value in headers if isinstance(value, Reference)), names)


def add_names(more: Iterable[str], names: list[str]) -> None:
    """Add names of secrets, each once, to those that a request has so far.

    Raises InvalidRequest for too many.
    """
    for name in more:
        if name not in names:
            names.append(name)
            if len(names) > MAX_SECRETS:
                raise InvalidRequest(f"a request names at most {MAX_SECRETS} secrets")


def read_secret_url(url: str) -> SecretUrl | None:
    """Read a URL as net.secret_url gives it; None for any other."""
    match = re.fullmatch(_SECRET_URL, url)
    return None if match is None else SecretUrl(match[1], match[2], match[3] or "")


def canonical_secret_url(url: str, names: list[str]) -> str:
    """Return a URL as it is stored, and add the secret that it is, if it is one, to the names.

    Raises InvalidRequest.
    """
    secret_url = read_secret_url(url)
    if secret_url is None:
        return canonical_url(url)  # which says what is wrong with it
    complete = canonical_url(f"{secret_url.origin}/{secret_url.query}")
    path = complete.index("/", 8)
    names.append(secret_url.name)
    return f"{complete[:path]}/{{secret:{secret_url.name}}}{complete[path + 1 :]}"
