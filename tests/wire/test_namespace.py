"""The guard in a network namespace that is a whole internet: nothing private is ever connected to.

Every address in there accepts connections and remembers them (servers/netns.py). What must happen
is judged by a table of this file, with plain integers; the code under test is not asked.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import string
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st

from servers import netns

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
# Of IPv6 only this is public, less the ranges above and what the IETF's protocols have of it.
UNICAST = (6, *prefix(3, 0x2000))
PROTOCOLS = (6, *prefix(23, 0x2001))
MAPPED = prefix(96, 0, 0, 0, 0, 0, 0xFFFF)
RANGES = [(4, *bounds) for bounds in SPECIAL_4.values()] + [
    (6, *bounds) for bounds in SPECIAL_6.values()
]
NAMES = [*SPECIAL_4, *SPECIAL_6]
LAST = {4: (1 << 32) - 1, 6: (1 << 128) - 1}

# Nobody can connect there by TCP without a zone, so that the guard's word is all there is to see.
UNREACHABLE = [
    (4, 0x7FFFFFFF, 0x7FFFFFFF),
    (4, 0xE0000000, 0xEFFFFFFF),
    (4, 0xFFFFFFFF, 0xFFFFFFFF),
    (6, *SPECIAL_6["fe80::/10"]),
    (6, *SPECIAL_6["ff00::/8"]),
]
# What is said of an address that the URL has itself.
REFUSED = re.compile(r"not allowed: select net\.allow_network\('([0-9a-f:.]+)/([0-9]+)'\)$")
# What is said of a name: the kind of its address, and nothing that has the form of one.
REFUSED_NAME = re.compile(
    r"(?:proxy )?(?P<host>[a-z0-9._-]+): its address is [^.:/]+ and not allowed: "
    r"(?:select net\.allow_network\('(?P<network>[^']+)'\)"
    r"|the worker's log has the statement that allows it)"
)
# What the log has of it.
LOGGED = re.compile(
    r"refused: (?P<host>[^ :]+): (?P<address>[0-9a-f:.]+) is [^.:/]+ and not allowed: "
    r"(?P<statement>select net\.allow_network\('(?P<network>[0-9a-f:./]+)'\))"
)
# The networks that an error may tell of a name, and what they open.
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
    """What the kernel connects to."""
    version, number = address
    return (4, number & LAST[4]) if version == 6 and number >> 32 == 0xFFFF else address


def private(address: Address) -> bool:
    address = unwrapped(address)
    if address[0] == 6 and not among(address, [UNICAST]):
        return True
    return among(address, [*RANGES, PROTOCOLS])


def number_of(text: str) -> Address:
    """An address that the system has written."""
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
    """First and last, and one before and after where there is one."""
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
    """The number in as many parts as there are forms; the last has what is left."""
    rest = 32 - 8 * (len(forms) - 1)
    values = [*parts(number)[: len(forms) - 1], number & ((1 << rest) - 1)]
    return ".".join(form % value for form, value in zip(forms, values, strict=True))


# Every reader of addresses in the C library's way sees the same in these.
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
# Readers disagree about these, so any refusal is right; a connection to what is private never is.
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
    """With `::` for its last run of zeros, however short: not where the system would put it."""
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

# Addresses of IPv6 that stand for one of IPv4, each with the range that it is in itself.
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


# ---- the world


@dataclass(frozen=True)
class Case:
    """A request, and what must come of it.

    to: the address that its URL leads to at last; None where it leads nowhere.
    disputed: any refusal will do.
    """

    url: str
    to: Address | None
    disputed: bool = False


class Internet:
    """The servers and the client in the namespace."""

    def __init__(self, place: netns.Namespace, world: netns.Program, client: netns.Program) -> None:
        self.place = place
        self.world = world
        self.client = client
        # of each name: the addresses that the guard's log has, and the networks of their statements
        self.logged: dict[str, dict[Address, str]] = {}

    def configure(self, name: str, max_age: float = 30.0, **rules: Any) -> None:
        """Give an Exchange of the client other rules; a new name is a new Exchange."""
        hosts = rules.pop("hosts", None)
        self.client.ask("configure", name=name, rules=rules, hosts=hosts, max_age=max_age)

    def run(self, urls: Iterable[str], name: str = "default", stored: bool = True) -> list[Any]:
        """The outcomes of requests that are all under way at once."""
        cases = [{"url": url} for url in urls]
        found: list[Any] = self.client.ask("run", name=name, cases=cases, stored=stored)
        for line in self.client.ask("logged"):
            match = LOGGED.fullmatch(line)
            if match is not None:
                of_name = self.logged.setdefault(match["host"], {})
                of_name[number_of(match["address"])] = match["network"]
        return found

    def seen(self) -> tuple[list[Address], list[str]]:
        """The addresses that accepted connections since the last time, and the paths asked for."""
        found = self.world.ask("seen")
        addresses = {number_of(a) for a, _ in found["accepts"]}
        addresses |= {number_of(a) for a, _, _ in found["requests"]}
        return sorted(addresses), [target for _, _, target in found["requests"]]

    def nothing_private(self) -> None:
        """No connection has reached the private side."""
        reached = [written(address) for address in self.seen()[0] if private(address)]
        assert reached == []

    def judge(self, cases: list[Case], name: str = "default", stored: bool = True) -> None:
        """Try these cases, and see that each comes to its end."""
        answers = self.run([case.url for case in cases], name, stored)
        for case, answer in zip(cases, answers, strict=True):
            fault = self.fault(case, answer)
            assert fault is None, (fault, case, answer)
        self.nothing_private()

    def refused(self, host: str, answer: dict[str, Any], *addresses: Address) -> None:
        """A host was refused that has these addresses, which are private."""
        fault = self.fault_of_refusal(host, answer, *addresses)
        assert fault is None, (fault, host, answer)

    def fault_of_refusal(
        self, host: str, answer: dict[str, Any], *addresses: Address
    ) -> str | None:
        """What is wrong with a refusal: an address is told to whoever wrote it, and to the log."""
        error = answer.get("error", "")
        # A redirect that is refused comes from where it came.
        if answer.get("address") is not None and private(number_of(answer["address"])):
            return "it tells an address that was not connected to"
        name = name_of(host)
        if name is None:
            named = REFUSED.search(error)
            if named is None:
                return "it does not say which network to allow"
            found = opened_by(f"{named[1]}/{named[2]}")
            fits = any(among(unwrapped(address), found) for address in addresses)
            return None if fits else "it names another network"
        told = REFUSED_NAME.fullmatch(error)
        if told is None:
            return "it tells more of a name than how to allow it, or less"
        if told["host"] != name:
            return "it names another host"
        has = {unwrapped(address) for address in addresses}
        logged = {a: n for a, n in self.logged.get(name, {}).items() if a in has}
        if not logged:
            return "the log does not have its address"
        if any(not among(address, opened_by(network)) for address, network in logged.items()):
            return "the log names another network"
        if told["network"] is None:
            # Only a network of one address would open it.
            single = (a == (6, 0) or not among(a, RANGES) for a in logged)
            return None if any(single) else "it does not say which network to allow"
        if told["network"] not in TELLS:
            return "it names a network that is none of the table"
        found = TELLS[told["network"]]
        fits = any(among(address, found) for address in logged)
        return None if fits else "it names another network"

    def fault(self, case: Case, answer: dict[str, Any]) -> str | None:
        """What is wrong with an outcome."""
        if "status" in answer:
            came = number_of(json.loads(answer["body"])["local"])
            if private(came):
                return f"it came from {written(came)}"
            if case.disputed:
                return None
            if case.to is None or private(case.to):
                return "it should have been refused"
            return None if came == unwrapped(case.to) else "another address answered"
        if case.disputed:
            return None
        if case.to is None or not private(case.to):
            return "it should have succeeded"
        return self.fault_of_refusal(last_host(case.url), answer, case.to)


@pytest.fixture(scope="module")
def made_internet() -> Iterator[Internet]:
    try:
        with (
            netns.namespace() as place,
            place.program("world") as world,
            place.program("client") as client,
        ):
            made = Internet(place, world, client)
            made.configure("default")
            # no name is remembered, so that each request asks again
            made.configure("forgetful", max_age=0.0)
            yield made
    except netns.LackingRight as lacking:
        pytest.skip(str(lacking))


@pytest.fixture
def internet(made_internet: Internet) -> Internet:
    made_internet.seen()
    return made_internet


def opened_by(network: str) -> list[tuple[int, int, int]]:
    """What a network or a word of net.allow_network has, as a table of this file or as written."""
    if network in TELLS:
        return TELLS[network]
    text, _, bits = network.partition("/")
    version, low = number_of(text)
    return [(version, low, low + (1 << (128 if version == 6 else 32) - int(bits)) - 1)]


def last_host(url: str) -> str:
    """The host that a URL leads to at last."""
    while (plain := unquote(url)) != url:
        url = plain
    found: list[str] = re.findall(r"//([^/?#]*)", url)
    return found[-1]


def name_of(host: str) -> str | None:
    """The name that a host is, without its port; None for an address, in whatever spelling."""
    name = re.sub(":[0-9]*$", "", host).rstrip(".").lower()
    return name if name.endswith((".test", ".hosts", "localhost")) else None


def literal(address: Address, spelling: str = "usual", scheme: str = "http") -> str:
    return f"{scheme}://{SPELLINGS[address[0]][spelling](address[1])}/"


# ---- the namespace itself


def test_a_namespace_leaves_nothing_behind() -> None:
    """Not after a failure either."""
    name = ""

    def exists() -> list[bool]:
        return [Path(parent, name).exists() for parent in ("/run/netns", "/etc/netns")]

    def fail() -> None:
        nonlocal name
        with netns.namespace() as place, place.program("world"):
            name = place.name
            assert exists() == [True, True]
            raise ZeroDivisionError

    try:
        with pytest.raises(ZeroDivisionError):
            fail()
    except netns.LackingRight as lacking:
        pytest.skip(str(lacking))
    assert exists() == [False, False]


# ---- addresses


def test_the_table_is_what_its_names_say() -> None:
    for name, (version, low, up) in zip(NAMES, RANGES, strict=True):
        base, _, bits = name.partition("/")
        size = 1 << ((32 if version == 4 else 128) - int(bits))
        assert (number_of(base), up) == ((version, low), low + size - 1)
    assert len(RANGES) == 33


@pytest.mark.parametrize("bounds", RANGES, ids=NAMES)
def test_the_private_side_is_there(internet: Internet, bounds: tuple[int, int, int]) -> None:
    """Where the rules let it through, a connection to any of these addresses is made and seen."""
    version, low, up = bounds
    network = NAMES[RANGES.index(bounds)]
    middle = (low + up) // 2
    addresses = [(version, number) for number in (low, low + 1, middle, up - 1, up)]
    internet.configure("opened", **EVERYTHING)
    answers = internet.run(map(literal, addresses), "opened")
    reachable = [address for address in addresses if not among(address, UNREACHABLE)]
    came = internet.seen()[0]
    for address, answer in zip(addresses, answers, strict=True):
        if address in reachable:
            assert answer.get("status") == 200, (written(address), answer)
        else:
            assert answer["error"] == "Couldn't connect to server"
    loopback = {(4, 0): (4, 0x7F000001), (6, 0): (6, 1)}
    assert came == sorted({loopback.get(address, address) for address in reachable})
    # The statement that an error names lets through what is in that range, and nothing else.
    inner = [] if version == 4 else ["0.0.0.0/0"]
    internet.configure("one", allow_networks=[network, *inner])
    answers = internet.run(map(literal, addresses), "one")
    refused = [
        address
        for address, answer in zip(addresses, answers, strict=True)
        if REFUSED.search(answer.get("error", ""))
    ]
    # No address at all leads to loopback, which is another range.
    assert refused == [(4, 0)][: network == "0.0.0.0/8"]
    internet.seen()
    others = [
        address
        for other in RANGES
        for address in (other[0:2], (other[0], other[2]))
        if address[0] == version and not low <= address[1] <= up
    ]
    internet.judge([Case(literal(address), address) for address in others], "one")


def test_every_range_at_its_edges(internet: Internet) -> None:
    internet.judge([Case(literal(address), address) for address in ALL_EDGES])


def test_every_range_inside(internet: Internet) -> None:
    chance = random.Random(1)
    for version, low, up in RANGES:
        inside = [(version, chance.randint(low, up)) for _ in range(40)]
        internet.judge([Case(literal(address), address) for address in inside])


def test_public_addresses_answer(internet: Internet) -> None:
    chance = random.Random(2)
    numbers = [(4, chance.getrandbits(32)) for _ in range(200)]
    numbers += [(6, chance.getrandbits(128)) for _ in range(200)]
    numbers += [(6, high(0x2000) | chance.getrandbits(125)) for _ in range(300)]
    public = [address for address in numbers if not private(address)]
    assert len(public) > 300
    internet.judge([Case(literal(address), address) for address in public])


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "as written"])
@pytest.mark.parametrize("version", [4, 6])
def test_every_spelling_of_every_edge(internet: Internet, version: int, stored: bool) -> None:
    """As the queue stores it, and as somebody could write it into the queue."""
    addresses = [address for address in ALL_EDGES if address[0] == version]
    for name, spell in SPELLINGS[version].items():
        hosts = [(address, spell(address[1])) for address in addresses]
        internet.judge(
            [
                Case(f"http://{host}/", address, disputed=not stored and not host.isascii())
                for address, host in hosts
            ],
            stored=stored,
        )
        assert name
    for spell in DISPUTED[version].values():
        internet.judge(
            [Case(f"http://{spell(number)}/", (version, number), True) for _, number in addresses],
            stored=stored,
        )


def test_what_is_inside_counts(internet: Internet) -> None:
    """An IPv6 address that stands for one of IPv4 is refused, and judged by both once allowed."""
    inner = [address for address in ALL_EDGES if address[0] == 4]
    wrapped = [
        (spelling, (6, wrap(number)))
        for _, wrap in WRAPPERS.values()
        for _, number in inner
        for spelling in SPELLINGS_6
    ]
    internet.judge([Case(literal(address, s), address) for s, address in wrapped])
    for name, (network, wrap) in WRAPPERS.items():
        internet.configure("wrapper", allow_networks=[network])
        outer = [(address, (6, wrap(address[1]))) for address in inner]
        # The local listener's own, ::1 and ::, do not stand for an address of IPv4.
        outer = [(a, w) for a, w in outer if w[1] > 1]
        answers = internet.run([literal(w) for _, w in outer], "wrapper")
        expected = set()
        for (address, wrapper), answer in zip(outer, answers, strict=True):
            if private(address):
                # Which layout is in use cannot be seen where the first octet is zero; to 0.0.0.0/8
                # no translator leads.
                if "/" not in name or address[1] >> 24:
                    assert REFUSED.search(answer.get("error", "")), (written(address), answer)
            elif "/" not in name:
                assert answer.get("status") == 200, (written(address), answer)
            # In another layout it stands for another address, which may be private.
            if "status" in answer:
                expected.add(wrapper)
        assert set(internet.seen()[0]) == expected


def test_mapped_addresses_are_the_address_itself(internet: Internet) -> None:
    """A rule for the mapped range says nothing: what is connected to is of IPv4."""
    internet.configure("mapped", allow_networks=["::ffff:0:0/96", "::/0"])
    names = [name for name in SPELLINGS_4 if "mapped" in name.lower()]
    assert len(names) == 6
    inner = [address for address in ALL_EDGES if address[0] == 4]
    cases = [Case(literal(address, name), address) for address in inner for name in names]
    internet.judge(cases, "mapped")


# ---- names


def label(address: Address) -> str:
    return f"{address[0]}-{address[1]:0{8 if address[0] == 4 else 32}x}"


_serial = iter(range(1 << 30))


def name_for(*labels: str) -> str:
    """A name of its own that has these records."""
    return ".".join([*labels, f"n{next(_serial)}", "test"])


def test_names_of_every_edge(internet: Internet) -> None:
    addresses = [address for address in ALL_EDGES if unwrapped(address) == address]
    makers: list[Callable[[Address], str]] = [
        lambda a: name_for(label(a)),
        lambda a: name_for(label(a)).upper() + ".",
        lambda a: name_for("c", label(a)),
        lambda a: name_for("c", "c", "c", "c", label(a)),
        lambda a: name_for("t", label(a)),
        lambda a: name_for(label(a), label(a)),
    ]
    for make in makers:
        internet.judge([Case(f"http://{make(address)}/", address) for address in addresses])


def test_mapped_addresses_by_name(internet: Internet) -> None:
    """An AAAA record may hold an address of IPv4."""
    for _, number in (a for a in ALL_EDGES if a[0] == 4):
        address = (6, MAPPED[0] | number)
        case = Case(f"http://{name_for(label(address))}/", address)
        internet.judge([case])


def test_one_private_among_public_ones(internet: Internet) -> None:
    """The public ones are used, and none but them: wherever the private one stands."""
    inside = [(version, (low + up) // 2) for version, low, up in RANGES]
    public = [(4, 0x08080808), (4, 0x01010101), DNS_V6]
    for hidden in inside:
        urls = []
        for place in range(4):
            records = [label(address) for address in public]
            records.insert(place, label(hidden))
            urls += [f"http://{name_for(*records)}/", f"http://{name_for('c', *records)}/"]
        answers = internet.run(urls)
        assert [answer.get("status") for answer in answers] == [200] * len(urls)
        internet.nothing_private()
    # Also where no public one listens: what is left is not taken.
    urls = [f"http://{name_for(label(DNS_V4), label(hidden))}:9/" for hidden in inside]
    internet.configure("anyport", ports="1-65535")
    assert all("error" in answer for answer in internet.run(urls, "anyport"))
    internet.nothing_private()


def test_a_and_aaaa_differ(internet: Internet) -> None:
    v4 = [address for address in ALL_EDGES if address[0] == 4 and private(address)]
    v6 = [address for address in ALL_EDGES if address[0] == 6 and private(address)]
    cases = [Case(f"http://{name_for(label(DNS_V6), label(a))}/", DNS_V6) for a in v4]
    cases += [Case(f"http://{name_for(label(DNS_V4), label(a))}/", DNS_V4) for a in v6]
    internet.judge(cases)
    both = {name_for(label(a), label(b)): (a, b) for a, b in zip(v4, v6, strict=False)}
    answers = internet.run(f"http://{host}/" for host in both)
    for (host, pair), answer in zip(both.items(), answers, strict=True):
        internet.refused(host, answer, *pair)
    internet.nothing_private()


def test_records_of_other_names_are_not_taken(internet: Internet) -> None:
    """What a name server says of a name that nobody asked about."""
    cases = [
        Case(f"http://{name_for('o-0a000001', label(DNS_V4))}/", DNS_V4, disputed=True),
        Case(f"http://{name_for(label(DNS_V4), 'o-0a000001')}/", DNS_V4, disputed=True),
        Case(f"http://{name_for('o-0a000001')}/", None, disputed=True),
    ]
    internet.judge(cases)


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "localhost.", "LOCALHOST", "LocalHost.", "a.localhost", "a.b.localhost.",
        "8.8.8.8.localhost", "ip6-localhost", "ip6-loopback", "ip6-mcastprefix",
        "ip6-allnodes", "inner.hosts", "INNER.hosts.", "metadata.google.internal", "metadata",
        "intranet", "localhost.localdomain", "anything.example", "0x.example", "1e1",
        "127.0.0.1.nip.example", "\u24dbocalhost",
        "\uff4cocalhost", "lo\u00adcalhost", "127.0.0.1.", "10.0.0.1.", "0x7f000001.",
    ],
)  # fmt: skip
def test_names_of_the_private_side(internet: Internet, host: str) -> None:
    """In /etc/hosts, in the search domain, or wherever: all of these have private addresses."""
    answers = internet.run([f"http://{host}/"] * 2)
    answers += internet.run([f"http://{host}/"] * 2, stored=False)
    assert all("error" in answer or "invalid" in answer for answer in answers), answers
    error = answers[0].get("error", "")
    assert "not allowed" in error, answers
    # What ends in a number is an address, and the caller knows it.
    assert REFUSED_NAME.fullmatch(error) or re.search(r"(\.1|^0x7f000001)\.$", host), error
    internet.nothing_private()


@pytest.mark.parametrize("host", ["1.2.3.4.5", "4294967296", "0x", "a.10", "10.0.0.1.0x0."])
def test_a_number_is_no_name(internet: Internet, host: str) -> None:
    """Nobody is asked for it, neither a name server nor a proxy."""
    for exchange, hosts in (("direct", {}), ("proxied", through("http://8.8.8.8:3128"))):
        internet.configure(exchange, hosts=hosts, **EVERYTHING)
        answers = internet.run([f"http://{host}/"], exchange)
        answers += internet.run([f"http://{host}/"], exchange, stored=False)
        said = [answer.get("invalid") or answer.get("error", "") for answer in answers]
        assert all("ends in a number" in text for text in said), answers
    assert internet.seen() == ([], [])


def test_names_of_the_hosts_file(internet: Internet) -> None:
    """They work, where their address is public."""
    internet.judge(
        [
            Case("http://outer.hosts/", (4, 0x01000001)),
            Case("http://mixed.hosts/", (4, 0x08080404)),
        ]
    )


def test_no_address_at_all(internet: Internet) -> None:
    """Neither the name itself nor what the search domain makes of it."""
    (answer,) = internet.run(["http://absent.test/"])
    assert answer["error"] == "Couldn't resolve host name"
    asked = {name for name, _ in internet.world.ask("seen")["questions"]}
    assert asked == {"absent.test", "absent.test.inner.test"}


@pytest.mark.parametrize("exchange", ["forgetful", "default"])
def test_rebinding(internet: Internet, exchange: str) -> None:
    """A name that is public when it is asked for first, and private ever after."""
    hidden = [(version, (low + up) // 2) for version, low, up in RANGES]
    for _ in range(3):
        hosts = [
            name_for(label(DNS_V4), label(DNS_V6), "then", label(address)) for address in hidden
        ]
        first = internet.run([f"http://{host}/" for host in hosts], exchange)
        assert [answer.get("status") for answer in first] == [200] * len(hosts)
        for _ in range(3):
            again = internet.run([f"http://{host}/" for host in hosts], exchange)
            for host, address, answer in zip(hosts, hidden, again, strict=True):
                # Remembered for a while, it stays what it was; asked for again, it is refused.
                if exchange == "forgetful":
                    internet.refused(host, answer, address)
                else:
                    assert answer["status"] == 200
        # And another port of it, which no connection is kept to.
        again = internet.run([f"http://{host}:443/" for host in hosts], exchange)
        for host, address, answer in zip(hosts, hidden, again, strict=True):
            if exchange == "forgetful":
                internet.refused(host, answer, address)
            else:
                assert answer["status"] == 200
        internet.nothing_private()


def test_rebinding_many_at_once(internet: Internet) -> None:
    """The answers change while hundreds of requests to the same few names are under way."""
    hosts = [
        name_for(*(["4-08080808", "then", "4-0a000001", "then"] * 3), "4-08080808")
        for _ in range(20)
    ]
    urls = [f"http://{host}:{port}/" for host in hosts for port in (80, 443, 1024)] * 5
    for _ in range(6):
        answers = internet.run(urls, "forgetful")
        for url, answer in zip(urls, answers, strict=True):
            if answer.get("status") != 200:
                internet.refused(last_host(url), answer, (4, 0x0A000001))
        internet.nothing_private()


def test_each_request_asks_once(internet: Internet) -> None:
    """There is no second lookup whose answer could be another."""
    host = name_for(label(DNS_V4), label(DNS_V6), "then", "4-0a000001")
    internet.world.ask("seen")
    (answer,) = internet.run([f"http://{host}/"], "forgetful")
    assert answer["status"] == 200
    asked = [kind for name, kind in internet.world.ask("seen")["questions"] if name == host]
    assert sorted(asked) == [1, 28]


# ---- redirects


def redirect(location: str, status: str = "302", base: str = "http://8.8.8.8") -> str:
    return f"{base}/redirect/{status}?{quote(location, safe='')}"


def hops(*hosts: str, last: str) -> str:
    """A URL that leads over all these hosts to the last."""
    url = last
    for host in reversed(hosts):
        url = redirect(url, base=f"http://{host}")
    return url


@pytest.mark.parametrize("status", ["301", "302", "303", "307", "308"])
def test_redirects_to_every_edge(internet: Internet, status: str) -> None:
    cases = [Case(redirect(literal(address), status), address) for address in ALL_EDGES]
    internet.judge(cases)


def test_redirects_in_every_spelling(internet: Internet) -> None:
    """A Location is not canonicalized by the caller's check; non-ASCII is percent-encoded."""
    firsts = [(version, low) for version, low, _ in RANGES]
    for address in firsts:
        cases = []
        for spell in SPELLINGS[address[0]].values():
            host = spell(address[1])
            cases.append(Case(redirect(f"http://{host}/"), address, not host.isascii()))
            cases.append(Case(redirect(f"//{host}/"), address, not host.isascii()))
        for spell in DISPUTED[address[0]].values():
            host = spell(address[1])
            cases.append(Case(redirect(f"http://{host}/"), address, disputed=True))
            cases.append(Case(redirect(f"//{host}/"), address, disputed=True))
        internet.judge(cases)


@pytest.mark.parametrize(
    "form",
    [
        "http://{}/", "http://{}", "http://{}?x", "http://{}#x", "HTTP://{}/", "hTtP://{}/",
        "//{}/", "//{}", "https://{}/", "//{}:443/", "http://{}:443/", "http://{}:/",
    ],
)  # fmt: skip
def test_absolute_and_scheme_relative(internet: Internet, form: str) -> None:
    targets = [(version, (low + up) // 2) for version, low, up in RANGES]
    cases = [Case(redirect(form.format(host_of(address))), address) for address in targets]
    internet.judge(cases)


@pytest.mark.parametrize(
    "form",
    [
        "///{}/", "////{}/", "\\\\{}/", "/\\{}/", "\\/{}/", "http:\\\\{}/", "http:/{}/", "http:{}/",
        "http:///{}/", "http:////{}/", "/\t/{}/", "//\t{}/", " //{}/", "\t//{}/", "//8.8.8.8@{}/",
        "//{}@8.8.8.8/", "//{}\\@8.8.8.8/", "//8.8.8.8\\@{}/", "http://8.8.8.8:80@{}/",
        "http://8.8.8.8#@{}/", "http://8.8.8.8?@{}/", "/../../{}/", "?//{}/", "#//{}/",
        "http://{} /", "http://{}\x00/", "//{}%00/", "//{}%2f@8.8.8.8/", "//8.8.8.8%2f@{}/",
        "javascript://{}/", "ftp://{}/", "gopher://{}/", "file://{}/", "url:http://{}/",
        "http://[::ffff:8.8.8.8]@{}/", "http://a:b@{}/", "//{},8.8.8.8/", "http://{};8.8.8.8/",
        "http://8.8.8.8 {}/", "http://8.8.8.8\t@{}/", "http:\t//{}/", "h\tttp://{}/",
        "//\u3000{}/", "\uff0f\uff0f{}/", "//{}\uff0f8.8.8.8/", "http://8.8.8.8&@{}/",
    ],
)  # fmt: skip
def test_locations_that_readers_dispute(internet: Internet, form: str) -> None:
    targets = [(version, (low + up) // 2) for version, low, up in RANGES]
    cases = [Case(redirect(form.format(host_of(address))), address, True) for address in targets]
    internet.judge(cases)


def test_chains_of_hops(internet: Internet) -> None:
    """Over several public hosts, of both families and by name, and private at the end."""
    firsts = [(version, low) for version, low, _ in RANGES]
    for address in firsts:
        name = name_for(label(DNS_V4))
        hidden = name_for("c", label(address))
        public = ["8.8.8.8", "1.1.1.1", host_of(DNS_V6), name]
        cases = [
            Case(hops(*public[:count], last=last), address)
            for count in range(1, 5)
            for last in (f"http://{host_of(address)}/", f"http://{hidden}/")
        ]
        internet.judge(cases)
    to = (4, 0x01010101)
    internet.judge([Case(hops("8.8.8.8", host_of(DNS_V6), last="http://1.1.1.1/"), to)])
    # A hop in the middle is a hop too: what stands behind it is never asked.
    (answer,) = internet.run([hops("8.8.8.8", "10.0.0.1", last="http://1.1.1.1/")])
    assert REFUSED.search(answer["error"])
    assert internet.seen()[0] == [DNS_V4]


def test_a_redirect_to_a_name_that_was_rebound(internet: Internet) -> None:
    """The same host before and after, and other addresses."""
    names = {name_for(label(DNS_V4), "then", label((v, low))): (v, low) for v, low, _ in RANGES}
    urls = [hops(name, last=f"http://{name}:1024/") for name in names]
    answers = internet.run(urls, "forgetful")
    for (name, address), answer in zip(names.items(), answers, strict=True):
        internet.refused(name, answer, address)
    internet.nothing_private()


# ---- rules


def test_no_connection_outlives_its_rules(internet: Internet) -> None:
    """Connections are kept open; after a change of the rules none of them is used."""
    reachable = [
        (version, (low + up) // 2)
        for version, low, up in RANGES
        if not among((version, (low + up) // 2), UNREACHABLE)
    ]
    urls = [literal(address) for address in reachable]
    urls += [f"http://{name_for(label(address))}/" for address in reachable]
    for _ in range(3):
        internet.configure("changing", **EVERYTHING)
        for _ in range(2):
            answers = internet.run(urls, "changing")
            assert [answer.get("status") for answer in answers] == [200] * len(urls)
        assert internet.seen()[0] == sorted(reachable)
        internet.configure("changing")
        answers = internet.run(urls, "changing")
        for url, address, answer in zip(urls, reachable * 2, answers, strict=True):
            internet.refused(last_host(url), answer, address)
        internet.nothing_private()


def test_a_hop_goes_by_the_rules_of_its_time(internet: Internet) -> None:
    """Begun under rules that would have let it, redirected under others."""
    targets = [(version, low) for version, low, _ in RANGES]
    urls = [f"http://8.8.8.8/hold?{quote(literal(address))}" for address in targets]
    internet.configure("changing", **EVERYTHING)
    internet.client.ask("begin", name="changing", cases=[{"url": url} for url in urls])
    internet.world.ask("holding", count=len(urls))
    internet.configure("changing")
    internet.world.ask("release")
    for answer in internet.client.ask("collect"):
        assert REFUSED.search(answer["error"])
    internet.nothing_private()


def test_the_databases_own_port(internet: Internet) -> None:
    own = ["127.0.0.1:5432", "[::1]:5432", "10.0.0.5:5432", "8.8.8.8:5432"]
    internet.configure("own", allow_networks=["0.0.0.0/0", "::/0"], deny_endpoints=own)
    hosts = [
        *(spell(n) for n in (0x7F000001, 0x0A000005, 0x08080808) for spell in SPELLINGS_4.values()),
        *(spell(1) for spell in SPELLINGS_6.values()),
        "localhost", "ip6-localhost",
        name_for("4-7f000001"), name_for("6-" + f"{1:032x}"), name_for("c", "4-0a000005"),
        name_for("6-" + f"{MAPPED[0] | 0x0A000005:032x}"),
        *(host_of((6, wrap(0x0A000005))) for _, wrap in WRAPPERS.values()),
    ]  # fmt: skip
    urls = [f"http://{host}:5432/" for host in hosts]
    urls += [redirect(f"http://{host}:5432/") for host in hosts if host.isascii()]
    for url, answer in zip(urls, internet.run(urls, "own"), strict=True):
        assert "is this database server's own" in answer.get("error", ""), (url, answer)
    assert all(address == DNS_V4 for address in internet.seen()[0])
    # Its neighbours are other ports, and other addresses of the same port.
    others = [f"http://{host}:443/" for host in hosts] + ["http://10.0.0.6:5432/"]
    for answer in internet.run(others, "own"):
        assert answer.get("status") == 200, answer
    internet.seen()


@pytest.mark.parametrize("host", ["0.0.0.0", "0", "[::]", "[::ffff:0.0.0.0]"])
def test_no_address_means_this_host(internet: Internet, host: str) -> None:
    """A connection to it reaches loopback, so the own port is shut here too."""
    internet.configure("own", **EVERYTHING, deny_endpoints=["127.0.0.1:5432", "[::1]:5432"])
    (answer,) = internet.run([f"http://{host}:5432/"], "own")
    assert "is this database server's own" in answer.get("error", ""), answer
    assert internet.seen()[0] == []


PORT_RULES = {
    "80,443,1024-65535": {80, 443, 1024, 3128, 5432, 65535},
    "80": {80},
    "1-79,81-65535": set(netns.PORTS) - {80},
    "79-81": {79, 80, 81},
    "442-442, 444": {442, 444},
    "1023": {1023},
    "65535": {65535},
    "": set(netns.PORTS),
}


@pytest.mark.parametrize("text", PORT_RULES)
def test_ports(internet: Internet, text: str) -> None:
    internet.configure("ports", ports=text)
    name = name_for(label(DNS_V4))
    for form in ("http://8.8.8.8:{}/", f"http://{host_of(DNS_V6)}:{{}}/", f"http://{name}:{{}}/"):
        urls = [form.format(port) for port in netns.PORTS]
        urls += [redirect(url, base="http://8.8.8.8:80") for url in urls if 80 in PORT_RULES[text]]
        for url, answer in zip(urls, internet.run(urls, "ports"), strict=True):
            port = int(re.findall(r"(?::|%3A)([0-9]+)(?:/|%2F)$", url)[0])
            if port in PORT_RULES[text]:
                assert answer.get("status") == 200, (url, answer)
                assert json.loads(answer["body"])["port"] == port
            else:
                assert (
                    f"port {port} is not allowed: select net.configure('egress_ports', '"
                    in (answer["error"])
                )
    accepts = internet.world.ask("seen")["accepts"]
    assert {port for _, port in accepts} == PORT_RULES[text]


def test_a_shut_port_is_shut_in_an_allowed_network(internet: Internet) -> None:
    internet.configure("ports", ports="80", allow_networks=["10.0.0.0/8"])
    good, bad = internet.run(["http://10.0.0.1/", "http://10.0.0.1:22/"], "ports")
    assert good["status"] == 200
    assert "port 22 is not allowed" in bad["error"]
    assert {port for _, port in internet.world.ask("seen")["accepts"]} == {80}


def test_listed(internet: Internet) -> None:
    """Only what is allowed, and a name opens nothing private."""
    inner, outer = name_for("4-0a000001"), name_for(label(DNS_V4))
    below, other = name_for(label(DNS_V4)), name_for(label(DNS_V4))
    suffix = below.split(".", 1)[1]
    internet.configure(
        "listed", egress="listed", allow_hosts=[inner, outer, f"*.{suffix}", "8.8.4.4"],
        allow_networks=["1.1.1.0/24", "192.168.0.0/16"],
    )  # fmt: skip
    expected = {
        f"http://{outer}/": True,
        f"http://{outer.upper()}./": True,
        f"http://{below}/": True,
        "http://1.1.1.1/": True,
        "http://192.168.0.1/": True,
        f"http://{name_for('4-01010101')}/": True,
        f"http://{inner}/": False,
        f"http://{other}/": False,
        f"http://{suffix}/": False,
        f"http://x{outer}/": False,
        f"http://{outer}.x/": False,
        "http://8.8.8.8/": False,
        "http://1.1.2.1/": False,
        "http://10.0.0.1/": False,
        f"http://{host_of(DNS_V6)}/": False,
        f"http://{name_for('4-08080808')}/": False,
        redirect("http://8.8.8.8/", base=f"http://{outer}"): False,
        redirect("http://1.1.1.1/", base=f"http://{outer}"): True,
        redirect("http://10.0.0.1/", base=f"http://{outer}"): False,
    }
    answers = internet.run(expected, "listed")
    found = {url: "status" in answer for url, answer in zip(expected, answers, strict=True)}
    assert found == expected
    reached = set(internet.seen()[0])
    assert reached == {(4, 0x01010101), (4, 0xC0A80001), DNS_V4}


def test_deny_wins(internet: Internet) -> None:
    name, evil = name_for(label(DNS_V4)), name_for(label(DNS_V4))
    suffix = evil.split(".", 1)[1]
    internet.configure(
        "denied",
        allow_networks=["10.0.0.0/8", "8.8.4.0/24", "fd00::/8"],
        deny_networks=["10.1.0.0/16", "8.8.4.4/32", "1.1.1.0/24", "fd00:1::/32", "2606:4700::/32"],
        allow_hosts=[evil, name],
        deny_hosts=[f"*.{suffix}"],
    )
    expected = {
        "http://10.0.255.255/": True,
        "http://10.1.0.0/": False,
        "http://10.1.255.255/": False,
        "http://10.2.0.0/": True,
        "http://8.8.4.3/": True,
        "http://8.8.4.4/": False,
        "http://8.8.4.5/": True,
        "http://1.1.1.1/": False,
        "http://[::ffff:1.1.1.1]/": False,
        "http://0x01010101/": False,
        f"http://{name_for('4-01010101')}/": False,
        "http://[fd00::1]/": True,
        "http://[fd00:1::1]/": False,
        f"http://{host_of(DNS_V6)}/": False,
        f"http://{name}/": True,
        f"http://{evil}/": False,
        f"http://{evil.upper()}./": False,
        redirect("http://1.1.1.1/"): False,
        redirect("http://10.1.0.1/"): False,
        redirect("http://10.0.0.1/"): True,
        redirect(f"http://{evil}/"): False,
    }
    answers = internet.run(expected, "denied")
    found = {url: "status" in answer for url, answer in zip(expected, answers, strict=True)}
    assert found == expected
    denied = [(4, 0x0A010000, 0x0A01FFFF), (4, 0x08080404, 0x08080404), (4, 0x01010100, 0x010101FF)]
    denied += [(6, *prefix(32, 0xFD00, 1)), (6, *prefix(32, 0x2606, 0x4700))]
    assert [written(a) for a in internet.seen()[0] if among(a, denied)] == []


# ---- proxies


def through(proxy: str) -> dict[str, dict[str, str]]:
    return {"*": {"proxy": proxy}}


def test_a_proxy_is_judged_instead(internet: Internet) -> None:
    """Where the proxy stands decides, for its addresses and its names."""
    for version, low, up in RANGES:
        address = (version, (low + up) // 2)
        host = host_of(address)
        for proxy in (host, name_for(label(address)), name_for("c", label(address))):
            for scheme in ("http", "https"):
                internet.configure("proxied", hosts=through(f"{scheme}://{proxy}:3128"))
                for answer in internet.run(["http://8.8.8.8/", "https://a.example/"], "proxied"):
                    assert answer["error"].startswith("proxy "), answer
                    internet.refused(proxy, answer, address)
    internet.nothing_private()


def test_what_is_behind_a_proxy(internet: Internet) -> None:
    """A literal address is judged all the same; names are the proxy's to look up."""
    for proxy in ("8.8.8.8", name_for(label(DNS_V4))):
        internet.configure("proxied", hosts=through(f"http://{proxy}:3128"))
        refused = [
            form.format(SPELLINGS[version][spelling](number))
            for version, low, up in RANGES
            for number in (low, up)
            for spelling in ("usual", *(list(SPELLINGS_4) if version == 4 else []))
            for form in ("http://{}/", "https://{}/")
        ]
        refused += [
            f"http://{DISPUTED_4[spelling](number)}/"
            for version, low, up in RANGES
            if version == 4
            for number in (low, up)
            for spelling in ("trailing dot", "decimal, trailing dot", "hex, trailing dot")
        ]
        refused += ["http://localhost/", "https://a.localhost/", "http://LOCALHOST/"]
        refused += ["http://localhost./", "http://010.0.0.1/", "http://0x7f.1./"]
        refused += [redirect("http://10.0.0.1/"), redirect("http://localhost/")]
        for url, answer in zip(refused, internet.run(refused, "proxied"), strict=True):
            # Of localhost nothing is looked up, so that the log says what the error hides.
            if name_of(last_host(url)) is not None:
                internet.refused(last_host(url), answer, (4, 0x7F000001))
            else:
                assert REFUSED.search(answer.get("error", "")), (url, answer)
        reached, targets = internet.seen()
        assert set(reached) == {DNS_V4}
        assert all(target.startswith("http://8.8.8.8/redirect") for target in targets)
        for url in ("http://1.1.1.1/x", "http://inner.hosts/x", "http://10.example/x"):
            (answer,) = internet.run([url], "proxied")
            assert json.loads(answer["body"]) == {"local": "8.8.8.8", "port": 3128, "target": url}
        internet.nothing_private()


def test_a_proxy_that_was_rebound(internet: Internet) -> None:
    hosts = {name_for(label(DNS_V4), "then", label((v, low))): (v, low) for v, low, _ in RANGES}
    for host, address in hosts.items():
        internet.configure("rebound", max_age=0.0, hosts=through(f"http://{host}:3128"))
        first, second = (internet.run(["http://1.1.1.1/"], "rebound")[0] for _ in range(2))
        assert first["status"] == 200
        internet.refused(host, second, address)
    internet.nothing_private()


# ---- by SQL: a server, a worker process and a worker in a backend, all inside


@dataclass(frozen=True)
class Remote:
    """A database in the namespace, and a worker that serves it."""

    connection: psycopg.Connection[Any]
    port: int
    drain: Callable[[], object]
    log: Path

    def value(self, query: str, *arguments: Any) -> Any:
        row = self.connection.execute(query, arguments).fetchone()
        return None if row is None else row[0]

    def get(self, urls: Iterable[str]) -> list[tuple[int | None, str | None, str | None]]:
        """Status, error and content of each, all queued in one transaction."""
        ids = self.value(
            "select array_agg(net.http_get(url, timeout_milliseconds => 10000))"
            " from unnest(%s::text[]) url",
            list(urls),
        )
        self.drain()
        return self.connection.execute(
            "select o.status_code, o.error_msg, o.content"
            " from net.wait_all(%s::bigint[]) o order by array_position(%s::bigint[], o.id)",
            (ids, ids),
        ).fetchall()

    def places(self, count: int) -> list[tuple[str | None, str, list[list[str]] | None]]:
        """Address, final URL and headers of the requests that were made last, in their order."""
        rows = self.connection.execute(
            "select host(address), final_url, header_list from net.responses"
            " order by id desc limit %s",
            (count,),
        ).fetchall()
        return rows[::-1]

    def logged(self, name: str) -> re.Match[str]:
        """What the worker's log has of a name's refusals: the last of them."""
        found = [m for m in LOGGED.finditer(self.log.read_text()) if m["host"] == name]
        assert found, f"the log has nothing of {name}"
        return found[-1]


@pytest.fixture(scope="module")
def inside(made_internet: Internet, installed: None) -> Iterator[dict[str, Remote]]:
    with made_internet.place.program("cluster") as program:
        hello = program.hello
        process = psycopg.connect(hello["dsn"], autocommit=True)
        process.execute("create database drained")
        backend, drainer = (
            psycopg.connect(hello["dsn"], dbname="drained", autocommit=True) for _ in range(2)
        )
        with process, backend, drainer:
            backend.execute("create extension pgnet cascade")
            yield {
                "process": Remote(process, hello["port"], lambda: None, Path(hello["worker_log"])),
                "backend": Remote(
                    backend,
                    hello["port"],
                    lambda: drainer.execute("call net.drain()"),
                    Path(hello["server_log"]),
                ),
            }


@pytest.fixture(params=["process", "backend"])
def remote(inside: dict[str, Remote], request: pytest.FixtureRequest) -> Iterator[Remote]:
    """Without any rules; what a test says is forgotten behind it."""
    made: Remote = inside[request.param]
    yield made
    made.connection.execute(
        "select case kind when 'host' then net.forget_host(pattern)"
        " else net.forget_network(pattern) end from net.egress"
    )
    made.connection.execute("select net.configure('egress_ports', null)")


ADVICE = re.compile(r"(select net\.allow_network\('[^']+'\))$")
OPENED = {
    "http://10.1.2.3/x": (4, 0x0A010203),
    "http://0x7f000001/": (4, 0x7F000001),
    "http://\uff12130706433/": (4, 0x7F000001),
    "http://169.254.169.254/latest/meta-data/": (4, 0xA9FEA9FE),
    "http://0144.64.1/": (4, 0x64400001),
    "http://[::1]/": (6, 1),
    "http://[FD00::1]/": (6, high(0xFD00) + 1),
    "http://[::ffff:192.168.1.1]/": (4, 0xC0A80101),
    "http://[64:ff9b::10.0.0.1]/": (6, high(0x64, 0xFF9B) + 0x0A000001),
    "http://inner.hosts/": (4, 0x0A000063),
    "http://localhost/": (4, 0x7F000001),
    "http://c.4-c0a80001.sql.test/": (4, 0xC0A80001),
    f"http://6-{high(0xFD00) + 3:032x}.sql.test/": (6, high(0xFD00) + 3),
    "http://4-6440010a.sql.test/": (4, 0x6440010A),
    f"http://6-{high(0x64, 0xFF9B) + 0x0A000001:032x}.sql.test/": (
        6, high(0x64, 0xFF9B) + 0x0A000001,
    ),
    # A network of one address: the log has it.
    f"http://6-{high(0x4000) + 1:032x}.sql.test/": (6, high(0x4000) + 1),
    f"http://6-{0:032x}.sql.test/": (6, 1),
    redirect("http://4-ac100002.sql.test/"): (4, 0xAC100002),
    redirect("http://172.16.0.1/"): (4, 0xAC100001),
    redirect("//[fd00::2]/"): (6, high(0xFD00) + 2),
}  # fmt: skip
OPENED_NAMES = [url for url in OPENED if name_of(last_host(url)) is not None]


def test_by_sql_nothing_private_is_reached(internet: Internet, remote: Remote) -> None:
    urls = [literal(address) for address in ALL_EDGES if private(address)]
    for status, error, content in remote.get(urls):
        assert (status, content) == (None, None)
        assert REFUSED.search(error or ""), error
    assert remote.places(len(urls)) == [(None, url, None) for url in urls]
    # A redirect that is refused keeps what it said.
    redirects = [redirect(url) for url in urls]
    for status, error, content in remote.get(redirects):
        assert (status, content) == (302, None)
        assert REFUSED.search(error or ""), error
    places = remote.places(len(redirects))
    for url, over, (server, final_url, headers) in zip(urls, redirects, places, strict=True):
        assert (server, final_url) == ("8.8.8.8", over)
        assert ["Location", url] in (headers or [])
    internet.nothing_private()
    public = [address for address in ALL_EDGES if not private(address)]
    for address, found in zip(public, remote.get(map(literal, public)), strict=True):
        assert found[0] == 200, found
        assert number_of(json.loads(found[2] or "")["local"]) == unwrapped(address)


@pytest.mark.parametrize(
    ("remote", "url", "source"),
    [("process", url, "error") for url in OPENED]
    + [("process", url, "log") for url in OPENED_NAMES]
    + [("backend", url, "error") for url in list(OPENED)[::4]]
    + [("backend", url, "log") for url in OPENED_NAMES[::4]],
    indirect=["remote"],
)
def test_by_sql_the_statement_opens_exactly_that(
    internet: Internet, remote: Remote, url: str, source: str
) -> None:
    """Running what is advised lets the request through, and none to another range.

    source: where the statement for a name is from. The log always has it.
    """
    address = OPENED[url]
    name = name_of(last_host(url))
    said: list[str] = []

    def advised(error: str | None) -> str:
        """The statement that lets it through."""
        ((told, final_url, _),) = remote.places(1)
        assert told is None or not private(number_of(told)), told
        if name is None:
            advice = ADVICE.search(error or "")
            assert advice, error
            return advice.group()
        refused = REFUSED_NAME.fullmatch(error or "")
        assert refused, error
        assert refused["host"] == name
        assert written(address) not in final_url
        logged = remote.logged(name)
        if source == "log" or refused["network"] is None:
            return logged["statement"]
        assert among(number_of(logged["address"]), TELLS[refused["network"]])
        return f"select net.allow_network('{refused['network']}')"

    for _ in range(3):
        ((status, error, content),) = remote.get([url])
        if error is None:
            break
        internet.nothing_private()
        said.append(advised(error))
        remote.connection.execute(said[-1])
    assert status == 200
    came = number_of(json.loads(content or "")["local"])
    # A name in the hosts file has two addresses, and one of them will do.
    assert came == address or (url == "http://localhost/" and came == (6, 1))
    assert 1 <= len(said) <= 2
    # Who wrote the address is told it; who wrote a name is not.
    ((connected, final_url, _),) = remote.places(1)
    if name is None:
        assert unwrapped(number_of(connected or "")) == came
    else:
        assert connected is None
        assert written(came) not in final_url
    internet.seen()
    opened = [bounds for s in said for bounds in opened_by(s.split("'")[1])]
    edges_of_all = [(version, number) for version, low, up in RANGES for number in (low, up)]
    edges_of_all += [(address[0], address[1] + step) for step in (-1, 1)]
    others = [a for a in edges_of_all if private(a) and not among(a, opened)]
    for status, error, _ in remote.get([literal(a) for a in others]):
        assert status is None
        assert ADVICE.search(error or ""), error
    internet.nothing_private()
    for statement in said:
        remote.connection.execute(statement.replace("allow_", "forget_"))
    ((status, error, _),) = remote.get([url])
    # Of a redirect, its own.
    assert status == (302 if "/redirect/" in url else None)
    assert advised(error)
    internet.nothing_private()


def test_by_sql_ports(internet: Internet, remote: Remote) -> None:
    """The default lets go to the web's ports and to those of no special right."""
    urls = [f"http://8.8.8.8:{port}/" for port in netns.PORTS]
    open_ports = {80, 443, 1024, 3128, 5432, 65535}
    for port, (status, error, _) in zip(netns.PORTS, remote.get(urls), strict=True):
        assert (status == 200) == (port in open_ports), (port, error)
    ((_, error, _),) = remote.get(["http://8.8.8.8:22/"])
    statement = re.search(r"select net\.configure\('egress_ports', '[0-9,-]+'\)$", error or "")
    assert statement, error
    remote.connection.execute(statement.group())
    found = dict(zip(netns.PORTS, remote.get(urls), strict=True))
    assert {port for port, row in found.items() if row[0] == 200} == open_ports | {22}


def test_by_sql_the_databases_own_door(internet: Internet, remote: Remote) -> None:
    """It listens on all addresses of its machine, and none of them is a way in."""
    for network in ("loopback", "private", "0.0.0.0/8", "::/96", "64:ff9b::/96"):
        remote.connection.execute("select net.allow_network(%s)", (network,))
    hosts = [
        "127.0.0.1", "127.0.0.2", "127.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0",
        "0", "[::]", "[::ffff:0.0.0.0]", "10.1.2.3", "192.168.0.1", "[fd00::1]", "inner.hosts",
        "8.8.8.8", "[64:ff9b::127.0.0.1]", "[::127.0.0.1]",
    ]  # fmt: skip
    found = dict(zip(hosts, remote.get(f"http://{h}:{remote.port}/" for h in hosts), strict=True))
    assert {
        host: (status, error)
        for host, (status, error, _) in found.items()
        if "is this database server's own" not in (error or "")
    } == {}
    # and the port beside it is open
    found = dict(zip(hosts, remote.get(f"http://{host}:1024/" for host in hosts), strict=True))
    assert {host: row for host, row in found.items() if row[0] != 200} == {}


# ---- what nobody thought of

CASES_OF_CHANCE = max(5000, int(os.environ.get("FUZZ_CASES", "0")))


# Made once: hypothesis looks at each strategy that is made.
ANY_NUMBER = st.integers(0, LAST[6])
ANY_RANGE = st.sampled_from(RANGES)
NUMBER_WAYS = st.sampled_from(["inside", "first", "last", "anywhere"])
WRAPPER_WAYS = st.sampled_from(["itself", "itself", "itself", "mapped", *WRAPPERS])
HOST_WAYS = st.sampled_from(["spelling", "spelling", "disputed", "name", "rebound"])
SPELLING_WAYS = {version: st.sampled_from(list(SPELLINGS[version].values())) for version in (4, 6)}
DISPUTED_WAYS = {version: st.sampled_from(list(DISPUTED[version].values())) for version in (4, 6)}
LABELS = st.sampled_from([[], [], ["c"], ["t"], ["c", "c"], ["c", "c", "c", "t"]])
PORTS = st.sampled_from(["", "", "", ":80", ":443", ":1024", ":", ":080"])
FORMS = st.sampled_from(["http://{}{}/", "http://{}{}", "HTTP://{}{}/x?y#z"])
HOPS = st.lists(
    st.tuples(
        st.sampled_from(["301", "302", "303", "307", "308"]),
        st.sampled_from(["http://8.8.8.8", f"http://{host_of(DNS_V6)}", "http://0x1010101"]),
        st.booleans(),
    ),
    max_size=3,
)


@st.composite
def addresses(draw: st.DrawFn) -> Address:
    """Mostly about the edges of ranges, and what stands for them."""
    version, low, up = draw(ANY_RANGE)
    number, way = draw(ANY_NUMBER), draw(NUMBER_WAYS)
    if way == "inside":
        number = low + number % (up - low + 1)
    elif way == "anywhere":
        number &= LAST[version]
    else:
        edge = low if way == "first" else up
        number = min(max(edge + number % 600 - 300, 0), LAST[version])
    if version == 6:
        return 6, number
    way = draw(WRAPPER_WAYS)
    if way == "itself":
        return 4, number
    return 6, MAPPED[0] | number if way == "mapped" else WRAPPERS[way][1](number)


@st.composite
def hosts(draw: st.DrawFn) -> tuple[str, Address, bool]:
    """A host, the address it means, and whether readers dispute that."""
    address, way = draw(ADDRESSES), draw(HOST_WAYS)
    version, number = address
    if way == "spelling":
        host = draw(SPELLING_WAYS[version])(number)
        return host, address, not host.isascii()
    if way == "disputed":
        return draw(DISPUTED_WAYS[version])(number), address, True
    labels = [*draw(LABELS), label(address)]
    if way == "name":
        return name_for(*labels), address, False
    return name_for(*labels, "then", label(draw(ADDRESSES))), address, True


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A request of some form, perhaps by way of public hosts that redirect it."""
    host, address, disputed = draw(SOME_HOSTS)
    port = draw(PORTS)
    url = draw(FORMS).format(host, port)
    for status, over, relative in draw(HOPS):
        if relative and url.lower().startswith("http://"):
            # Whatever is in front of the two slashes is that of the redirecting page.
            url = url.partition(":")[2]
        url = redirect(url, status, over)
    return Case(url, address, disputed)


ADDRESSES = addresses()
SOME_HOSTS = hosts()


def test_cases_of_chance(internet: Internet) -> None:
    """Thousands, the same ones each time, many under way at once."""
    tried = 0

    @settings(
        max_examples=CASES_OF_CHANCE // 50,
        derandomize=True,
        deadline=None,
        database=None,
        # a case that fails says all there is to know
        phases=[Phase.generate],
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(cases(), min_size=50, max_size=60), st.sampled_from(["default", "forgetful"]))
    def try_them(some: list[Case], exchange: str) -> None:
        nonlocal tried
        tried += len(some)
        internet.judge(some, exchange)

    try_them()
    assert tried >= CASES_OF_CHANCE
