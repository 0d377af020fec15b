"""Addresses as plain integers: which are private, and all the ways to write one."""

from __future__ import annotations

import re
import socket
import string
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

Address = tuple[int, int]
"""Version and number."""

# Special-purpose ranges, first and last address of each.
SPECIAL_4 = {
    "0.0.0.0/8": (0x00000000, 0x00FFFFFF),
    "10.0.0.0/8": (0x0A000000, 0x0AFFFFFF),
    "100.64.0.0/10": (0x64400000, 0x647FFFFF),
    "127.0.0.0/8": (0x7F000000, 0x7FFFFFFF),
    "169.254.0.0/16": (0xA9FE0000, 0xA9FEFFFF),
    "172.16.0.0/12": (0xAC100000, 0xAC1FFFFF),
    "192.0.0.0/24": (0xC0000000, 0xC00000FF),
    "192.0.2.0/24": (0xC0000200, 0xC00002FF),
    "192.88.99.0/24": (0xC0586300, 0xC05863FF),
    "192.168.0.0/16": (0xC0A80000, 0xC0A8FFFF),
    "198.18.0.0/15": (0xC6120000, 0xC613FFFF),
    "198.51.100.0/24": (0xC6336400, 0xC63364FF),
    "203.0.113.0/24": (0xCB007100, 0xCB0071FF),
    "224.0.0.0/4": (0xE0000000, 0xEFFFFFFF),
    "240.0.0.0/4": (0xF0000000, 0xFFFFFFFF),
}


def high(*groups: int) -> int:
    """The number of an IPv6 address that begins with these groups of 16 bits."""
    return sum(group << (112 - 16 * place) for place, group in enumerate(groups))


def prefix(bits: int, *groups: int) -> tuple[int, int]:
    """First and last address of a network of IPv6."""
    return high(*groups), high(*groups) | ((1 << (128 - bits)) - 1)


SPECIAL_6 = {
    "::/96": prefix(96),
    "::ffff:0:0:0/96": prefix(96, 0, 0, 0, 0, 0xFFFF),
    "64:ff9b::/96": prefix(96, 0x64, 0xFF9B),
    "64:ff9b:1::/48": prefix(48, 0x64, 0xFF9B, 1),
    "100::/64": prefix(64, 0x100),
    "100:0:0:1::/64": prefix(64, 0x100, 0, 0, 1),
    "2001::/32": prefix(32, 0x2001, 0),
    "2001:2::/48": prefix(48, 0x2001, 2),
    "2001:10::/28": prefix(28, 0x2001, 0x10),
    "2001:20::/28": prefix(28, 0x2001, 0x20),
    "2001:db8::/32": prefix(32, 0x2001, 0xDB8),
    "2002::/16": prefix(16, 0x2002),
    "3fff::/20": prefix(20, 0x3FFF),
    "5f00::/16": prefix(16, 0x5F00),
    "fc00::/7": prefix(7, 0xFC00),
    "fe80::/10": prefix(10, 0xFE80),
    "fec0::/10": prefix(10, 0xFEC0),
    "ff00::/8": prefix(8, 0xFF00),
}

# In IPv6 only this range is public, without the ranges above and those of IETF protocols.
UNICAST = (6, *prefix(3, 0x2000))


PROTOCOLS = (6, *prefix(23, 0x2001))


MAPPED = prefix(96, 0, 0, 0, 0, 0, 0xFFFF)


RANGES = [(4, *bounds) for bounds in SPECIAL_4.values()] + [
    (6, *bounds) for bounds in SPECIAL_6.values()
]


NAMES = [*SPECIAL_4, *SPECIAL_6]


LAST = {4: (1 << 32) - 1, 6: (1 << 128) - 1}

# The networks that an error about a name may show, and the ranges that each one opens.
TELLS: dict[str, list[tuple[int, int, int]]] = {
    **{name: [bounds] for name, bounds in zip(NAMES, RANGES, strict=True)},
    "255.255.255.255/32": [(4, LAST[4], LAST[4])],
    "loopback": [(4, *SPECIAL_4["127.0.0.0/8"]), (6, 1, 1)],
    "private": [
        *((4, *SPECIAL_4[n]) for n in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")),
        (6, *SPECIAL_6["fc00::/7"]),
    ],
}


EVERYTHING: dict[str, Any] = {"allow_networks": ["0.0.0.0/0", "::/0"]}


DNS_V4, DNS_V6 = (4, 0x08080808), (6, high(0x2606, 0x4700) + 1)


def among(address: Address, ranges: Iterable[tuple[int, int, int]]) -> bool:
    version, number = address
    return any(version == v and low <= number <= up for v, low, up in ranges)


def unwrapped(address: Address) -> Address:
    """The address that the kernel connects to."""
    version, number = address
    return (4, number & LAST[4]) if version == 6 and number >> 32 == 0xFFFF else address


def private(address: Address) -> bool:
    address = unwrapped(address)
    if address[0] == 6 and not among(address, [UNICAST]):
        return True
    return among(address, [*RANGES, PROTOCOLS])


def number_of(text: str) -> Address:
    """Read an address that the system has written."""
    version = 6 if ":" in text else 4
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    return version, int.from_bytes(socket.inet_pton(family, text), "big")


def written(address: Address) -> str:
    version, number = address
    if version == 4:
        return ".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0))
    return socket.inet_ntop(socket.AF_INET6, number.to_bytes(16, "big"))


def host_of(address: Address) -> str:
    return f"[{written(address)}]" if address[0] == 6 else written(address)


def edges(version: int, low: int, up: int) -> list[Address]:
    """The first and last address of a range, and the neighbours of each."""
    found = [low - 1, low, low + 1, up - 1, up, up + 1]
    return [(version, number) for number in found if 0 <= number <= LAST[version]]


ALL_EDGES = [address for bounds in [*RANGES, UNICAST, PROTOCOLS] for address in edges(*bounds)]

# ---- spellings

Spelling = Callable[[int], str]


WIDE = str.maketrans(string.digits, "".join(chr(0xFF10 + digit) for digit in range(10)))


CIRCLED = str.maketrans("123456789", "".join(chr(0x2460 + digit) for digit in range(9)))


def parts(number: int) -> tuple[int, int, int, int]:
    return number >> 24, number >> 16 & 255, number >> 8 & 255, number & 255


def dotted(number: int, *forms: str) -> str:
    """Write the number in as many parts as there are forms; the last part holds the rest."""
    rest = 32 - 8 * (len(forms) - 1)
    values = [*parts(number)[: len(forms) - 1], number & ((1 << rest) - 1)]
    return ".".join(form % value for form, value in zip(forms, values, strict=True))


# Each reader that follows the C library's inet_aton reads the same address in these.
SPELLINGS_4: dict[str, Spelling] = {
    "usual": lambda n: dotted(n, "%d", "%d", "%d", "%d"),
    "decimal": lambda n: dotted(n, "%d"),
    "hex": lambda n: dotted(n, "0x%x"),
    "HEX": lambda n: dotted(n, "0X%X"),
    "hex, many zeros": lambda n: dotted(n, "0x%020x"),
    "octal": lambda n: dotted(n, "0%o"),
    "octal, many zeros": lambda n: dotted(n, "%020o"),
    "two parts": lambda n: dotted(n, "%d", "%d"),
    "three parts": lambda n: dotted(n, "%d", "%d", "%d"),
    "hex parts": lambda n: dotted(n, "0x%x", "0x%x", "0x%x", "0x%x"),
    "octal parts": lambda n: dotted(n, "0%o", "0%o", "0%o", "0%o"),
    "octal parts with zeros": lambda n: dotted(n, "%05o", "%05o", "%05o", "%05o"),
    "mixed": lambda n: dotted(n, "0x%x", "%d", "0%o", "%d"),
    "mixed, two parts": lambda n: dotted(n, "0%o", "0x%x"),
    "mixed, three parts": lambda n: dotted(n, "%d", "0x%X", "0%o"),
    "full width digits": lambda n: dotted(n, "%d", "%d", "%d", "%d").translate(WIDE),
    "full width decimal": lambda n: dotted(n, "%d").translate(WIDE),
    "circled digits": lambda n: dotted(n, "%d", "%d", "%d", "%d").translate(CIRCLED),
    "ideographic stops": lambda n: dotted(n, "%d", "%d", "%d", "%d").replace(".", "\u3002"),
    "full width stops": lambda n: dotted(n, "%d", "%d", "%d", "%d").replace(".", "\uff0e"),
    "soft hyphens": lambda n: dotted(n, "%d", "%d", "%d", "%d").replace(".", "\u00ad."),
    "mapped": lambda n: f"[::ffff:{dotted(n, '%d', '%d', '%d', '%d')}]",
    "mapped in hex": lambda n: f"[::ffff:{n >> 16:x}:{n & 0xFFFF:x}]",
    "MAPPED": lambda n: f"[::FFFF:{n >> 16:04X}:{n & 0xFFFF:04X}]",
    "mapped at length": lambda n: f"[0:0:0:0:0:ffff:{n >> 16:x}:{n & 0xFFFF:x}]",
    "mapped, all zeros": lambda n: (
        f"[0000:0000:0000:0000:0000:ffff:{dotted(n, '%d', '%d', '%d', '%d')}]"
    ),
    "mapped, other colons": lambda n: f"[0:0::0:ffff:{n >> 16:x}:{n & 0xFFFF:x}]",
}

# Readers disagree about these: any refusal is right, a connection to a private address is not.
DISPUTED_4: dict[str, Spelling] = {
    "trailing dot": lambda n: dotted(n, "%d", "%d", "%d", "%d") + ".",
    "trailing dots": lambda n: dotted(n, "%d", "%d", "%d", "%d") + "..",
    "decimal, trailing dot": lambda n: dotted(n, "%d") + ".",
    "hex, trailing dot": lambda n: dotted(n, "0x%x") + ".",
    "decimal beyond 32 bits": lambda n: str(n + (1 << 32)),
    "hex beyond 32 bits": lambda n: hex(n + (1 << 32)),
    "a part beyond 8 bits": lambda n: dotted(n, "%d", "%d", "%d", "%d").replace(".", ".256", 1),
    "five parts": lambda n: dotted(n, "%d", "%d", "%d", "%d") + ".0",
    "percent-encoded": lambda n: "".join(f"%{ord(c):02x}" for c in dotted(n, *["%d"] * 4)),
    "percent-encoded stops": lambda n: dotted(n, "%d", "%d", "%d", "%d").replace(".", "%2e"),
    "percent-encoded full width": lambda n: quote(dotted(n, *["%d"] * 4).translate(WIDE)),
    "encoded NUL": lambda n: dotted(n, "%d", "%d", "%d", "%d") + "%00",
    "NUL": lambda n: dotted(n, "%d", "%d", "%d", "%d") + "\x00.test",
    "blank": lambda n: dotted(n, "%d", "%d", "%d", "%d") + " ",
    "tab": lambda n: "\t" + dotted(n, "%d", "%d", "%d", "%d"),
    "line feed": lambda n: dotted(n, "%d", "%d", "%d", "%d").replace(".", "\n.", 1),
    "plus": lambda n: "+" + dotted(n, "%d", "%d", "%d", "%d"),
    "hex without digits": lambda n: dotted(n, "0x%x", "%d", "%d", "%d") + ".0x",
    "brackets": lambda n: f"[{dotted(n, '%d', '%d', '%d', '%d')}]",
    "behind a user name": lambda n: "8.8.8.8@" + dotted(n, "%d", "%d", "%d", "%d"),
    "before a user name": lambda n: dotted(n, "%d", "%d", "%d", "%d") + "@8.8.8.8",
    "before a backslash": lambda n: dotted(n, "%d", "%d", "%d", "%d") + "\\@8.8.8.8",
    "behind a backslash": lambda n: "8.8.8.8\\@" + dotted(n, "%d", "%d", "%d", "%d"),
    "behind a number sign": lambda n: "8.8.8.8#@" + dotted(n, "%d", "%d", "%d", "%d"),
    "behind a question mark": lambda n: "8.8.8.8?@" + dotted(n, "%d", "%d", "%d", "%d"),
    "behind a semicolon": lambda n: "8.8.8.8;" + dotted(n, "%d", "%d", "%d", "%d"),
    "mapped with a zone": lambda n: f"[::ffff:{dotted(n, '%d', '%d', '%d', '%d')}%25lo]",
    "mapped, hex part": lambda n: f"[::ffff:{dotted(n, '0x%x', '%d', '%d', '%d')}]",
    "mapped, a bracket more": lambda n: f"[[::ffff:{n >> 16:x}:{n & 0xFFFF:x}]]",
    "mapped, no brackets": lambda n: f"::ffff:{n >> 16:x}:{n & 0xFFFF:x}",
    "translated": lambda n: f"[::ffff:0:{dotted(n, '%d', '%d', '%d', '%d')}]",
}


def groups(number: int) -> list[int]:
    return [number >> shift & 0xFFFF for shift in range(112, -1, -16)]


def shortened(number: int) -> str:
    """The address with `::` for its last run of zeros, where the system would not put it."""
    text = ":".join(f"{group:x}" for group in groups(number))
    runs = list(re.finditer(r"(?:^|(?<=:))0(?::0)*(?=:|$)", text))
    if not runs:
        return text
    at = runs[-1]
    before, after = text[: at.start()].rstrip(":"), text[at.end() :].lstrip(":")
    return f"{before}::{after}"


def with_dots(number: int) -> str:
    first = ":".join(f"{group:x}" for group in groups(number)[:6])
    return f"{first}:{dotted(number & LAST[4], '%d', '%d', '%d', '%d')}"


SPELLINGS_6: dict[str, Spelling] = {
    "usual": lambda n: f"[{written((6, n))}]",
    "upper case": lambda n: f"[{written((6, n)).upper()}]",
    "at length": lambda n: "[" + ":".join(f"{group:04x}" for group in groups(n)) + "]",
    "no zeros": lambda n: "[" + ":".join(f"{group:X}" for group in groups(n)) + "]",
    "other colons": lambda n: f"[{shortened(n)}]",
    "dots at the end": lambda n: f"[{with_dots(n)}]",
}


DISPUTED_6: dict[str, Spelling] = {
    "zone": lambda n: f"[{written((6, n))}%25lo]",
    "bare zone": lambda n: f"[{written((6, n))}%lo]",
    "zone by number": lambda n: f"[{written((6, n))}%251]",
    "encoded colons": lambda n: "[" + written((6, n)).replace(":", "%3a") + "]",
    "encoded brackets": lambda n: f"%5b{written((6, n))}%5d",
    "no brackets": lambda n: written((6, n)),
    "trailing dot": lambda n: f"[{written((6, n))}].",
    "trailing dot inside": lambda n: f"[{written((6, n))}.]",
    "blank": lambda n: f"[ {written((6, n))}]",
    "version": lambda n: f"[v6.{written((6, n))}]",
    "prefix length": lambda n: f"[{written((6, n))}/128]",
    "five digits": lambda n: "[" + ":".join(f"0{group:04x}" for group in groups(n)) + "]",
    "full width digits": lambda n: f"[{written((6, n)).translate(WIDE)}]",
    "full width colons": lambda n: f"[{written((6, n)).replace(':', chr(0xFF1A))}]",
    "behind a user name": lambda n: f"8.8.8.8@[{written((6, n))}]",
    "behind a backslash": lambda n: f"8.8.8.8\\[{written((6, n))}]",
}


SPELLINGS = {4: SPELLINGS_4, 6: SPELLINGS_6}


DISPUTED = {4: DISPUTED_4, 6: DISPUTED_6}

# IPv6 addresses that contain an IPv4 address, each with the IPv6 range it belongs to.
WRAPPERS: dict[str, tuple[str, Callable[[int], int]]] = {
    "compatible": ("::/96", lambda n: n),
    "translated": ("::ffff:0:0:0/96", lambda n: high(0, 0, 0, 0, 0xFFFF) | n),
    "NAT64": ("64:ff9b::/96", lambda n: high(0x64, 0xFF9B) | n),
    "local NAT64": ("64:ff9b:1::/48", lambda n: high(0x64, 0xFF9B, 1) | n),
    # RFC 6052, section 2.2: the bits 64 to 71 are left out.
    "local NAT64 /48": (
        "64:ff9b:1::/48",
        lambda n: high(0x64, 0xFF9B, 1) | (n >> 16) << 64 | (n & 0xFFFF) << 40,
    ),
    "local NAT64 /56": (
        "64:ff9b:1::/48",
        lambda n: high(0x64, 0xFF9B, 1) | (n >> 24) << 64 | (n & 0xFFFFFF) << 32,
    ),
    "local NAT64 /64": ("64:ff9b:1::/48", lambda n: high(0x64, 0xFF9B, 1) | n << 24),
    "6to4": ("2002::/16", lambda n: high(0x2002) | n << 80 | 1),
    "Teredo": (
        "2001::/32",
        lambda n: high(0x2001, 0, 0x0808, 0x0808, 0, 0x1234) | (n ^ LAST[4]),
    ),
}
