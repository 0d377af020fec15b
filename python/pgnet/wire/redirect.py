"""Redirects: where the next hop leads, and what goes along."""

from __future__ import annotations

import re
from typing import Any, cast
from urllib import parse
from urllib.parse import quote, urljoin

from pgnet.request.url import canonical_url
from pgnet.wire.connection import Origin

REDIRECTS = (301, 302, 303, 307, 308)
# urllib.parse keeps the last hundred URLs; those that are longer than this are not to stay there.
_LONG_URL = 4096
# What a caller's header may tell another server: nothing about the caller.
HARMLESS = frozenset(("accept", "accept-encoding", "accept-language", "user-agent"))
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
# Scheme and authority, each perhaps empty, and what follows them.
_AUTHORITY = re.compile(r"(?s:((?:[A-Za-z][A-Za-z0-9+.-]*:)?(?://[^/?]*)?)(.*))")
# What path and query may hold (RFC 3986, sections 3.3 and 3.4).
_PATH_SAFE = "%:/?@!$&'()*+,;=-._~"
_STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


def resolve(base: str, location: str) -> str:
    """What a Location means (RFC 3986, section 5), in canonical form and without its fragment.

    What may not stand in a URL is percent-encoded where it stands, as browsers do.
    Errors: ValueError for what is no http or https URL.
    """
    reference = location.partition("#")[0]
    prefix, rest = cast(re.Match[str], _AUTHORITY.match(reference)).groups()
    rest = _STRAY_PERCENT.sub("%25", quote(rest, safe=_PATH_SAFE))
    # urljoin would take `http://` for "here".
    absolute = _ABSOLUTE.match(reference) is not None
    url = prefix + rest if absolute else urljoin(base, prefix + rest)
    if not absolute and len(base) + len(url) > _LONG_URL:
        cast(Any, parse).clear_cache()
    return canonical_url(url)


def same_origin(before: Origin, after: Origin) -> bool:
    """Whether two URLs have one origin; http to https of one host by the usual ports counts.

    That upgrade gives nothing to anybody who has not just been told it in clear.
    """
    if before.host != after.host:
        return False
    if (before.scheme, before.port) == (after.scheme, after.port):
        return True
    return (before.scheme, before.port, after.scheme, after.port) == ("http", 80, "https", 443)
