"""URL prefixes: whether a URL lies below a prefix, however a server may read it.

A secret is bound to a prefix. Servers, proxies and frameworks decode and normalize a path in ways
of their own: `/v1/..%2fadmin` may be `/admin` for one of them. So `within` says yes only where all
of them stay below the prefix.
"""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote_to_bytes

from pgnet.request.errors import InvalidRequest
from pgnet.request.secret_reference import read_secret_url
from pgnet.request.url import canonical_url

# How often a segment of a path may be percent-encoded, one encoding within another.
_LAYERS = 5
_HINT_PREFIX = "Give scheme, host and perhaps a path, such as https://api.example.com/v1/."


def canonical_prefix(text: str) -> str:
    """Return a URL prefix in its canonical form.

    Raises InvalidRequest for what is not an http or https URL, and for one with a user, a query, a
    fragment, dot segments or encoded slashes.
    """
    try:
        prefix = canonical_url(text)
    except InvalidRequest:
        # The error's own words show what was given: perhaps the value, in the wrong argument.
        raise InvalidRequest("the URL prefix is not an http or https URL", _HINT_PREFIX) from None
    if "?" in prefix or "#" in prefix:
        raise InvalidRequest("a URL prefix must not have a query or a fragment", _HINT_PREFIX)
    if not all(map(_is_plain, _segments(prefix))):
        raise InvalidRequest(
            "a URL prefix must not have dot segments or encoded slashes", _HINT_PREFIX
        )
    return prefix


def within(prefix: str, url: str) -> bool:
    """Whether a canonical URL is the canonical prefix itself, or below it.

    Scheme, host and port must be the same, and each segment of the prefix's path. Where the prefix
    has a path, a URL with dot segments or encoded slashes, however often encoded, is not within it:
    a server may read it as a URL outside. A prefix without a path covers the whole origin.
    """
    try:
        if canonical_url(url) != url or canonical_prefix(prefix) != prefix:
            return False
    except InvalidRequest:
        return False
    if origin(prefix) != origin(url):
        return False
    above = _segments(prefix)
    if above and not above[-1]:
        above.pop()
    path = _segments(url)
    if path[: len(above)] != above:
        return False
    return not above or all(map(_is_plain, path[len(above) :]))


def covers(prefix: str | None, url: str) -> bool:
    """Whether a secret with this prefix may go into a request to a URL as it is stored.

    Only the origin of a secret URL is known here. `expand_url` judges the rest in the worker.
    """
    if prefix is None:
        return False
    secret_url = read_secret_url(url)
    return within(prefix, url) if secret_url is None else origin(prefix) == secret_url.origin


def origin(url: str) -> str:
    """Return the scheme, host and port of a canonical URL."""
    return url[: path_begin(url)]


def path_begin(url: str) -> int:
    """Return the place in a canonical URL where the path begins, or its end."""
    found = re.compile(r"[/?#]").search(url, url.find("//") + 2)
    return len(url) if found is None else found.start()


def _segments(url: str) -> list[str]:
    """The segments of a URL's path; an empty list for the root."""
    path = re.split(r"[?#]", url[path_begin(url) :], maxsplit=1)[0]
    return [] if path in ("", "/") else path[1:].split("/")


def _is_plain(segment: str) -> bool:
    """Whether every server reads this as one segment of a path, which leads downwards."""
    if "%" not in segment:
        return not _leads_elsewhere(segment)
    text, decoded = "", segment
    for _layer in range(_LAYERS):
        if decoded == text:
            break
        text = decoded
        try:
            decoded = unquote_to_bytes(text).decode()
        except UnicodeDecodeError:
            return False  # it may be an overlong form of a dot or a slash
    if decoded != text:
        return False
    # Some servers know more spellings, and drop characters that cannot be printed.
    text = unicodedata.normalize("NFKC", text)
    if re.search(r"[/\\]|%[uU]|[\x00-\x1f\x7f-\x9f\u2028\u2029]", text):
        return False
    return not _leads_elsewhere("".join([c for c in text if c.isprintable() and c != " "]))


def _leads_elsewhere(segment: str) -> bool:
    """Whether a server may read a segment as a dot segment.

    Some servers cut a segment at a semicolon, others at a character that they cannot read. So every
    segment that begins with two dots counts as one.
    """
    return segment.startswith("..") or segment.partition(";")[0] == "."
