"""References to secrets: a header names a secret, or a secret stands for a URL."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pgnet.request.errors import InvalidRequest
from pgnet.request.url import canonical_url

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    SecretValue = Callable[[str, dict[str, object]], str]

# Each of them is looked for in every answer, in all its forms.
MAX_SECRETS = 20
# Few requests refer to secrets: the patterns are compiled at their first use.
_SECRET_URL = r"(?s:(https?://[^/?#{}]*)/\{secret:([A-Za-z0-9][A-Za-z0-9_.-]{0,62})\}(\?.*)?)"
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}"
CONTROL = r"[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff]"
HINT_NAME = "A name is of 1 to 63 letters, digits, and - _ . behind the first one."
_HINT_REFERENCE = 'For example {"secret": "stripe", "prefix": "Bearer "}.'


def collector(secrets: list[str]) -> SecretValue:
    """Return what puts the names of the secrets that headers refer to into a list, each once."""

    def collect(_header: str, reference: dict[str, object]) -> str:
        name = reference_name(reference)
        if name not in secrets:
            secrets.append(name)
        if len(secrets) > MAX_SECRETS:
            raise InvalidRequest(f"a request names at most {MAX_SECRETS} secrets")
        return ""

    return collect


def split_secret_url(url: str) -> tuple[str, str, str] | None:
    """Take a URL as net.secret_url gives it apart: origin, secret's name, query with its "?"."""
    match = re.fullmatch(_SECRET_URL, url)
    return None if match is None else (match[1], match[2], match[3] or "")


def canonical_secret_url(url: str, secrets: list[str]) -> str:
    parts = split_secret_url(url)
    if parts is None:
        return canonical_url(url)  # which says what is wrong with it
    origin, name, query = parts
    complete = canonical_url(f"{origin}/{query}")
    path = complete.index("/", 8)
    secrets.append(name)
    return f"{complete[:path]}/{{secret:{name}}}{complete[path + 1 :]}"


def is_name(text: object) -> bool:
    """Whether this is the name of a secret."""
    return type(text) is str and re.fullmatch(_NAME, text) is not None


def reference_name(reference: Mapping[str, object]) -> str:
    """Check a header value ``{"secret": name}`` and return the name.

    Raises InvalidRequest, without the value of anything.
    """
    name, _prefix = read_reference(reference)
    return name


def read_reference(reference: Mapping[str, object]) -> tuple[str, str]:
    name, prefix = reference.get("secret"), reference.get("prefix")
    if not isinstance(name, str) or not is_name(name):
        raise InvalidRequest("a header's value names no secret", HINT_NAME)
    if prefix is None:
        prefix = ""
    if type(prefix) is not str or re.search(CONTROL, prefix):
        raise InvalidRequest(
            f'the "prefix" of secret "{name}" must be a string of printable characters',
            _HINT_REFERENCE,
        )
    if not reference.keys() <= {"secret", "prefix"}:
        raise InvalidRequest(
            f'a header value with secret "{name}" knows "secret" and "prefix" only',
            _HINT_REFERENCE,
        )
    return name, prefix
