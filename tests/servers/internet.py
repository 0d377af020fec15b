"""A client in a network namespace that is a whole internet, and what must come of its requests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from servers import netns
from servers.addresses import (
    RANGES,
    SPECIAL_6,
    SPELLINGS,
    TELLS,
    Address,
    among,
    number_of,
    private,
    unwrapped,
    written,
)

# The kernel makes no TCP connection to these (to fe80::/10 without a zone): only the guard's
# refusal can be seen.
UNREACHABLE = [
    (4, 0x7FFFFFFF, 0x7FFFFFFF),
    (4, 0xE0000000, 0xEFFFFFFF),
    (4, 0xFFFFFFFF, 0xFFFFFFFF),
    (6, *SPECIAL_6["fe80::/10"]),
    (6, *SPECIAL_6["ff00::/8"]),
]

# The error where the URL contains the address.
REFUSED = re.compile(r"not allowed: select net\.allow_network\('([0-9a-f:.]+)/([0-9]+)'\)$")

# The error where the URL contains a name: the kind of its address, and no address.
REFUSED_NAME = re.compile(
    r"(?:proxy )?(?P<host>[a-z0-9._-]+): its address is [^.:/]+ and not allowed: "
    r"(?:select net\.allow_network\('(?P<network>[^']+)'\)"
    r"|the worker's log has the statement that allows it)"
)

# The line of the log about such a name.
LOGGED = re.compile(
    r"refused: (?P<host>[^ :]+): (?P<address>[0-9a-f:.]+) is [^.:/]+ and not allowed: "
    r"(?P<statement>select net\.allow_network\('(?P<network>[0-9a-f:./]+)'\))"
)

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
        """Make all these requests at once; gives their outcomes."""
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
        """Find the fault of a refusal: it tells an address only to a caller that wrote it."""
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
        """Find the fault of an outcome; None if it is right."""
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


def opened_by(network: str) -> list[tuple[int, int, int]]:
    """The ranges that a network or a word of net.allow_network opens."""
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
    """The host without its port if it is a name; None if it is an address in any spelling."""
    name = re.sub(":[0-9]*$", "", host).rstrip(".").lower()
    return name if name.endswith((".test", ".hosts", "localhost")) else None


def literal(address: Address, spelling: str = "usual", scheme: str = "http") -> str:
    return f"{scheme}://{SPELLINGS[address[0]][spelling](address[1])}/"


# ---- names


def label(address: Address) -> str:
    return f"{address[0]}-{address[1]:0{8 if address[0] == 4 else 32}x}"


_serial = iter(range(1 << 30))


def name_for(*labels: str) -> str:
    """A new name that has these records."""
    return ".".join([*labels, f"n{next(_serial)}", "test"])


# ---- redirects


def redirect(location: str, status: str = "302", base: str = "http://8.8.8.8") -> str:
    return f"{base}/redirect/{status}?{quote(location, safe='')}"


def hops(*hosts: str, last: str) -> str:
    """A URL that redirects from host to host, to the last one."""
    url = last
    for host in reversed(hosts):
        url = redirect(url, base=f"http://{host}")
    return url


# ---- proxies


def through(proxy: str) -> dict[str, dict[str, str]]:
    return {"*": {"proxy": proxy}}
