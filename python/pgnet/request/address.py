"""IP addresses as hosts of URLs: every spelling that a C library reads as an address."""

from __future__ import annotations

import socket
from ipaddress import IPv6Address


def literal_address(host: str) -> str | None:
    """Read the host of a URL as an IP address; None where it is a name.

    host: an IPv6 address with or without its brackets; any spelling that a C library accepts.

    Returns the usual form: `127.1`, `0x7f000001`, `2130706433` and, with the root's dot,
    `127.0.0.1.` are 127.0.0.1.
    """
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if ":" in host:
        try:
            address = IPv6Address(host) if "%" not in host else None
        except ValueError:
            return None
        if address is None:
            return None
        # Python 3.13 and later write mapped addresses like this; older versions do not.
        mapped = address.ipv4_mapped
        return address.compressed if mapped is None else f"::ffff:{mapped}"
    host = host.removesuffix(".")
    # inet_aton stops reading at white space: a text with white space is not an address here.
    if not host[:1].isdigit() or not host.isascii() or any(c.isspace() for c in host):
        return None
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return None
