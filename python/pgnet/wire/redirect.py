"""Redirects: the next request that an answer asks for, or why it is not sent. Pure: no I/O.

`next_hop` has all the rules; the exchange only sends what it returns. They are, in this order:

1. Only 301, 302, 303, 307 and 308 with a Location lead on (RFC 9110, section 15.4). Any other
   answer is the answer of the request, and so is a redirect where the limit of hops is 0.
2. No more hops than the limit.
3. Two different Locations, or one that is not an http or https URL, lead nowhere.
4. https does not lead to http.
5. A URL that repeats a secret beyond the secret's URL prefix is not asked for.
6. 303 turns every method but HEAD into GET, 301 and 302 turn POST into GET. The body and what
   describes it (Content-…) stay behind then.
7. Another origin gets no body, no method that changes anything, and no header of the caller but
   those of `HARMLESS`. A header that is bound to a URL prefix goes to no URL beyond it.
8. A header or body that was left out once stays out, also where a later hop leads back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast
from urllib import parse
from urllib.parse import quote, urljoin

from pgnet.request.prefix import within
from pgnet.request.url import canonical_url
from pgnet.wire.connection import Origin
from pgnet.wire.message import Head, WireRequest
from pgnet.wire.wire_error import Code, WireError

Fields = list[tuple[str, str]]

_STATUSES = (301, 302, 303, 307, 308)
# Methods that may go to another origin, without a body: they change nothing there.
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
# The caller's headers that may go to another origin: they tell nothing about the caller.
HARMLESS = frozenset(("accept", "accept-encoding", "accept-language", "user-agent"))
# urllib.parse keeps the last hundred URLs that it has read. Longer ones are not to stay there.
_LONG_URL = 4096
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
# Scheme and authority, each of which may be empty, and what follows them.
_AUTHORITY = re.compile(r"(?s:((?:[A-Za-z][A-Za-z0-9+.-]*:)?(?://[^/?]*)?)(.*))")
# The characters of path and query (RFC 3986, sections 3.3 and 3.4).
_PATH_SAFE = "%:/?@!$&'()*+,;=-._~"
_STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


def is_redirect(status: int | None) -> bool:
    """Whether an answer of this status may lead to another URL."""
    return status in _STATUSES


def next_hop(
    request: WireRequest,
    answer: Head,
    followed: int,
    most: int,
    bound: Mapping[str, str],
    may_follow: Callable[[str], bool] | None,
) -> WireRequest | WireError | None:
    """Return the request that an answer leads on to.

    request: what was answered. answer: status and header fields.
    followed: how many redirects led to this request. most: how many may be followed in all.
    bound: names of headers, in lower case, and the URL prefix beyond which each may not be sent.
    may_follow: asked for the next URL; false where it repeats a secret that must not go there.

    Returns None where the answer is not to be followed and stands for itself, and a WireError where
    it should be followed and may not be.
    """
    if not is_redirect(answer.status) or not most:
        return None
    locations = locations_in(answer.fields)
    if locations <= {""}:
        return None
    if followed >= most:
        code = Code.TOO_MANY_REDIRECTS
        return WireError(code.words, possibly_sent=True, code=code)
    before = Origin.parse(request.url.partition("#")[0])
    try:
        # Where two differ, nobody can say which one the server means.
        (location,) = locations
        url = resolve(request.url, location)
        after = Origin.parse(url)
    except (WireError, ValueError):
        return _refusal("redirect to an invalid or unsupported URL")
    if before.scheme == "https" and after.scheme == "http":
        return _refusal("redirect from https to http is not followed")
    if may_follow is not None and not may_follow(url):
        return _refusal("the redirect repeats a secret beyond its URL prefix and is not followed")

    method, body = request.method, request.body
    becomes_get = (answer.status == 303 and method != "HEAD") or (
        answer.status in (301, 302) and method == "POST"
    )
    if becomes_get:
        method, body = "GET", None
    same = same_origin(before, after)
    if not same and (body is not None or method not in _SAFE_METHODS):
        return _refusal(f"redirect of a {method} request to another origin is not followed")
    # Each prefix is judged once: a URL may be long, and so may be the list of headers.
    beyond = {prefix for prefix in set(bound.values()) if not within(prefix, url)}
    kept = [
        (name, value)
        for name, value in request.fields
        if (same or name.lower() in HARMLESS)
        and not (becomes_get and name.lower().startswith("content-"))
        and bound.get(name.lower()) not in beyond
    ]
    return WireRequest(method, url, kept, body)


def _refusal(message: str) -> WireError:
    return WireError(message, possibly_sent=True)


def locations_in(fields: Iterable[tuple[str, str]]) -> set[str]:
    """Return the different values of Location."""
    return {value for name, value in fields if name.lower() == "location"}


def resolve(base: str, location: str) -> str:
    """Return the URL that a Location means (RFC 3986, section 5), canonical, without a fragment.

    A character that may not stand in a URL is percent-encoded where it stands, as browsers do.

    Raises ValueError for what is not an http or https URL.
    """
    base = base.partition("#")[0]
    reference = location.partition("#")[0]
    prefix, rest = cast(re.Match[str], _AUTHORITY.match(reference)).groups()
    rest = _STRAY_PERCENT.sub("%25", quote(rest, safe=_PATH_SAFE))
    # urljoin would take `http://` for a reference to the base itself.
    absolute = _ABSOLUTE.match(reference) is not None
    url = prefix + rest if absolute else urljoin(base, prefix + rest)
    if not absolute and len(base) + len(url) > _LONG_URL:
        cast(Any, parse).clear_cache()
    return canonical_url(url)


def same_origin(before: Origin, after: Origin) -> bool:
    """Whether two URLs have one origin; http to https of one host by the usual ports counts.

    That upgrade tells nothing to a server that has not just been told it in clear text.
    """
    if before.host != after.host:
        return False
    if (before.scheme, before.port) == (after.scheme, after.port):
        return True
    return (before.scheme, before.port, after.scheme, after.port) == ("http", 80, "https", 443)
