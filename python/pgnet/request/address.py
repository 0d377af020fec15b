"""IP addresses, as the host of a URL may spell them."""

from __future__ import annotations

import socket
from ipaddress import IPv6Address


def literal_address(host: str) -> str | None:
    """Read `host` as an IP address, in any spelling a C library accepts, or say None.

    Arguments: the host of a URL, an IPv6 address with or without its brackets.
    Returns the address in its usual form: `127.1`, `0x7f000001`, `2130706433` and `127.0.0.1.`,
    with the root's dot, are 127.0.0.1.
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
        # As Python has it from 3.13 on.
        mapped = address.ipv4_mapped
        return address.compressed if mapped is None else f"::ffff:{mapped}"
    host = host.removesuffix(".")
    # inet_aton stops reading at white space: such a text is no address here.
    if not host[:1].isdigit() or not host.isascii() or any(c.isspace() for c in host):
        return None
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return None
