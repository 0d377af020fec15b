"""URL prefixes: which URL lies below which prefix, for every server that may read it."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote_to_bytes

from pgnet.request.errors import InvalidRequest
from pgnet.request.secret_reference import read_secret_url
from pgnet.request.url import canonical_url

# How often a segment of a path may be percent-encoded.
_LAYERS = 5
_HINT_PREFIX = "Give scheme, host and perhaps a path, such as https://api.example.com/v1/."


def canonical_prefix(text: str) -> str:
    """Return a URL prefix in its canonical form.

    Raises InvalidRequest for what is no http or https URL, and for one with user, query, fragment,
    dot segments, or encoded slashes.
    """
    try:
        prefix = canonical_url(text)
    except InvalidRequest:
        # Its words show what was given, which may be the value in the wrong place.
        raise InvalidRequest("the URL prefix is no http or https URL", _HINT_PREFIX) from None
    if "?" in prefix or "#" in prefix:
        raise InvalidRequest("a URL prefix has neither query nor fragment", _HINT_PREFIX)
    if not all(map(_is_plain, _segments(prefix))):
        raise InvalidRequest(
            "a URL prefix has no dot segments and no encoded slashes", _HINT_PREFIX
        )
    return prefix


def within(prefix: str, url: str) -> bool:
    """Whether a canonical URL is the canonical prefix itself, or below it.

    Scheme, host and port are the same, and so is each segment of the prefix's path. Where the
    prefix has a path, no server's reading of the URL leads out of it again: a URL with dot
    segments or encoded slashes, however often encoded, is not within. An origin covers all.
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
    """Whether a secret with this prefix may go into a request to this URL, as it is stored.

    Of a URL that is a secret itself only the origin is known: ``expand_url`` looks at the rest.
    """
    if prefix is None:
        return False
    secret_url = read_secret_url(url)
    return within(prefix, url) if secret_url is None else origin(prefix) == secret_url.origin


def origin(url: str) -> str:
    """Return the scheme, host and port of a canonical URL."""
    return url[: path_begin(url)]


def path_begin(url: str) -> int:
    found = re.compile(r"[/?#]").search(url, url.find("//") + 2)
    return len(url) if found is None else found.start()


def _segments(url: str) -> list[str]:
    """The segments of a URL's path; none for the root."""
    path = re.split(r"[?#]", url[path_begin(url) :], maxsplit=1)[0]
    return [] if path in ("", "/") else path[1:].split("/")


def _is_plain(segment: str) -> bool:
    """Whether every server takes this for one segment of a path that leads downwards."""
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
            return False  # overlong forms of dots and slashes among them
    if decoded != text:
        return False
    # Some servers know further spellings, and lose what they cannot print.
    text = unicodedata.normalize("NFKC", text)
    if re.search(r"[/\\]|%[uU]|[\x00-\x1f\x7f-\x9f\u2028\u2029]", text):
        return False
    return not _leads_elsewhere("".join([c for c in text if c.isprintable() and c != " "]))


def _leads_elsewhere(segment: str) -> bool:
    """Whether a server may take a segment for a dot segment.

    Some cut it at a semicolon, others at whatever they cannot read: nothing that begins with two
    dots is worth the risk.
    """
    return segment.startswith("..") or segment.partition(";")[0] == "."
