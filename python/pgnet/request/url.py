"""URLs: what is accepted, and their canonical form, which is stored and sent.

A URL is stored as a complete, absolute http or https URL by RFC 3986, and it is sent as it is
stored. Callers may give what browsers take (https://url.spec.whatwg.org):

- white space at either end is removed;
- scheme and host become lower case, an international host name its ASCII form (RFC 3490);
- a port that is empty or the scheme's default is dropped (RFC 3986, 6.2.3), an empty path becomes
  ``/``;
- path, query and fragment stay as they were written, dot segments and ``%7E`` included. Characters
  that RFC 3986 does not allow in them are percent-encoded as UTF-8: spaces, characters beyond
  ASCII, ``[ ] { } | \\ " ^ ` < >``, and a percent sign without two hexadecimal digits behind it;
- a host may be an address in any spelling (``127.1``); the egress rules judge the address that is
  connected to.
"""

from __future__ import annotations

import re

from pgnet.request.errors import InvalidRequest, described, printable

# Together with the headers less than 1 MiB, since libcurl refuses to send a longer request head.
MAX_URL_LENGTH = 400_000

# RFC 3986: pchar and "/", without pct-encoded; in query and fragment also "?".
_PCHARS = r"[A-Za-z0-9\-._~!$&'()*+,;=:@/]*"
_QCHARS = r"[A-Za-z0-9\-._~!$&'()*+,;=:@/?]*"
_PCT = r"%[0-9A-Fa-f]{2}"
# A text matches in one way only, so that a mismatch costs no backtracking.
_PATH = rf"/{_PCHARS}(?:{_PCT}{_PCHARS})*"
_QUERY = rf"{_QCHARS}(?:{_PCT}{_QCHARS})*"
# RFC 952 has no underscores in host names, but there are names with them that resolve.
_HOST = r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}\.?"

# The last label is not a number (see _NUMBER), or the host is an IPv4 address in its usual form.
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_USUAL_HOST = (
    rf"(?:(?:[a-z0-9_-]{{1,63}}\.)*[a-z_][a-z0-9_-]{{0,62}}\.?|{_OCTET}(?:\.{_OCTET}){{3}})"
)

# Most URLs match this and are canonical. Ports above 59999, the two default ports and unusual hosts
# need a second look. The patterns that are not compiled here are seldom needed: re compiles each
# when it is used first.
_is_canonical = re.compile(
    rf"https?://(?=[^/:]{{1,253}}[/:]){_USUAL_HOST}"
    r"(?::(?!80/|443/)(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}))?"
    rf"{_PATH}(?:\?{_QUERY})?(?:#{_QUERY})?"
).fullmatch
# RFC 3986, appendix B, with the characters that a scheme may have.
_PARTS = r"(?s:(?:([A-Za-z][A-Za-z0-9+.-]*):)?(?://([^/?#]*))?([^?#]*)(\?[^#]*)?(#.*)?)"
# The white space that browsers remove at either end.
_ENDS = " \t\n\f\r"
# These characters are refused, not percent-encoded. Browsers drop tabs and line breaks wherever
# they stand, libcurl refuses all control characters, and halves of surrogate pairs have no UTF-8.
REFUSED = r"[\x00-\x1f\x7f\ud800-\udfff]"
# The characters that RFC 3986 does not allow in path, query and fragment. These include all that
# the WHATWG's standard encodes there, but for the apostrophe of a query, which RFC 3986 allows.
_TO_ENCODE = r"[^A-Za-z0-9\-._~!$&'()*+,;=:@/?%]+|%(?![0-9A-Fa-f]{2})"
_ILLEGAL_IN_HOST = r"[^a-z0-9._-]"
# A host of which the WHATWG's standard says that it "ends in a number". Such a host must be an IPv4
# address: nobody knows what a resolver or a proxy would make of one that is not.
_NUMBER = r"(?:^|\.)(?:[0-9]+|0x[0-9a-f]*)\.?$"
_IP_LITERAL = r"(?s:\[([0-9A-Fa-f:.]+)\](?::(.*))?)"

_DEFAULT_PORTS = {"http": 80, "https": 443}
# IDNA 2003, which Python has, makes other names of these characters than IDNA 2008 does. So it may
# do with characters that are younger than Unicode 3.2.
_IDNA_DEVIATIONS = frozenset("\u00df\u03c2\u200c\u200d")

_HINT_ABSOLUTE = "Begin the URL with http:// or https://."
_HINT_USERINFO = (
    "A URL is stored and shown. Give the credentials in an Authorization header, "
    "best as a secret: net.set_secret."
)
_HINT_CONTROL = "Take it out, or percent-encode it. The argument params is encoded for you."
_HINT_SECRET = (
    "net.secret_url(name) gives the URL that stands for a secret one. "
    "A brace that means itself is written %7B."
)
_HINT_IPV4 = "An IPv4 address is four numbers up to 255. A name does not end in a number."
_HINT_IPV6 = "Write an IPv6 address in brackets: http://[2001:db8::1]/"
_HINT_IDNA = 'Write the host name in its ASCII form, which begins with "xn--".'


def canonical_url(url: str) -> str:
    """Return a URL as it is stored and sent, by the rules that this module begins with.

    Raises InvalidRequest for what is not an absolute http or https URL, and for a URL that two
    programs may read as two different ones.
    """
    if len(url) <= MAX_URL_LENGTH and _is_canonical(url) is not None:
        return url
    return _canonicalize(url)


def _canonicalize(url: str) -> str:
    url = bounded(url).strip(_ENDS)
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
        refused = re.search(REFUSED, part)
        if refused is not None:
            raise _invalid_url(
                url, f"{described(refused[0])} is not allowed in its {name}", _HINT_CONTROL
            )
    if "{secret:" in url:
        raise _invalid_url(url, '"{secret:" stands only in what net.secret_url gives', _HINT_SECRET)
    rest = encoded(path or "/") + encoded(query) + fragment[:1] + encoded(fragment[1:])
    return bounded(origin + rest)


def encoded(text: str) -> str:
    """Percent-encode what RFC 3986 does not allow in path, query or fragment."""
    return re.sub(_TO_ENCODE, lambda found: percent_encode(found[0]), text)


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
        raise _invalid_url(url, f"{described(illegal[0])} is not allowed in its host")
    raise _invalid_url(
        url,
        "its host is not a name of at most 253 characters with 1 to 63 between two dots",
    )


def _idna(url: str, host: str) -> str:
    # Imported here, since few callers give international names.
    from stringprep import in_table_a1

    reason = "its host is not an international host name"
    if len(host) <= 253:  # the codec takes long for longer ones
        if not _IDNA_DEVIATIONS.isdisjoint(host) or any(map(in_table_a1, host)):
            reason = "its host has a character that standards convert differently"
        else:
            try:
                return host.encode("idna").decode("ascii")
            except UnicodeError:
                pass
    raise _invalid_url(url, reason, _HINT_IDNA)


def is_number(host: str) -> bool:
    """Whether a host, in lower case, ends in a number, as the WHATWG's standard calls it."""
    return re.search(_NUMBER, host) is not None


def _is_ipv4(host: str) -> bool:
    # Imported here, since few callers give addresses in an unusual form.
    from pgnet.request.address import literal_address

    return literal_address(host) is not None


def _is_ipv6(text: str) -> bool:
    # Imported here, since few callers give addresses of IPv6.
    from ipaddress import AddressValueError, IPv6Address

    try:
        IPv6Address(text)
    except AddressValueError:
        return False
    return True


def bounded(url: str) -> str:
    """Return the URL; raises InvalidRequest where it is too long."""
    if len(url) > MAX_URL_LENGTH:
        raise _invalid_url(url, f"it is longer than {MAX_URL_LENGTH} characters")
    return url


# RFC 3986, 2.3: these need no encoding anywhere.
_UNRESERVED = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
_PERCENT = [chr(byte) if byte in _UNRESERVED else f"%{byte:02X}" for byte in range(256)]


def percent_encode(text: str) -> str:
    """Percent-encode all characters but the unreserved ones."""
    # Most text is ASCII, which takes half as long in this way.
    if text.isascii():
        return text.translate(_PERCENT)
    return "".join([_PERCENT[byte] for byte in text.encode()])


# The part before the host, the host, and the rest. Where there is no host, the first segment of the
# path takes its place.
_SHOWN_PARTS = r"(?s:((?:[^/?#@:]*:)?//|/|)([^/?#]*)(.*))"
_HOST_AND_PORT = r"(?:[^:@\[\]]*|\[[^@\[\]]*\])(?::[0-9]*)?"


def _invalid_url(url: str, reason: str, hint: str | None = None) -> InvalidRequest:
    return InvalidRequest(f'invalid URL "{_shown(url)}": {reason}', hint)


def _shown(url: str) -> str:
    """Return a faulty URL without user, password and path, as far as it can be shown.

    This cannot rely on the URL's syntax: a password may hold the characters that end a host.
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
    return printable(shown + tail)
