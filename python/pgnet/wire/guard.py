"""Egress: where a request may go, by its host's name and port, and by the address it connects to.

A name is judged before it is looked up, and each of its addresses before a connection is made to
it, so that a name server cannot lead a request past the rules. Where an IPv6 address leads to an
IPv4 one (mapped, NAT64, 6to4, Teredo, ISATAP), both are judged.

A refusal names the statement that allows the request. The address of a name is not told: a role
that may send requests could map the inner network with it. The log has each such address once.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import requests

from pgnet.request.address import literal_address
from pgnet.request.url import is_number
from pgnet.wire.host import patterns_of, plain_host

log = logging.getLogger("pgnet.guard")

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class EgressRefused(requests.RequestException):
    """The egress rules do not allow this destination."""


# IANA's special-purpose registries (RFC 6890 and its successors), written out. Python's `is_global`
# changes between versions, and lets NAT64 and multicast through. Each network has its words in the
# error that names it as the network to allow. In IPv6 nothing outside 2000::/3 is public, in the
# table or not: nothing else is allocated as global unicast (RFC 4291, 2.4).
_SPECIAL: tuple[tuple[str, str], ...] = (
    ("127.0.0.0/8", "a loopback address"),
    ("10.0.0.0/8", "a private address"),
    ("172.16.0.0/12", "a private address"),
    ("192.168.0.0/16", "a private address"),
    ("169.254.0.0/16", "a link-local address"),
    ("100.64.0.0/10", "a shared (carrier-grade NAT) address"),
    ("0.0.0.0/8", "an address of this host"),
    ("192.0.0.0/24", "a reserved address"),
    ("192.0.2.0/24", "a documentation address"),
    ("192.88.99.0/24", "a 6to4 relay address"),
    ("198.18.0.0/15", "a benchmarking address"),
    ("198.51.100.0/24", "a documentation address"),
    ("203.0.113.0/24", "a documentation address"),
    ("224.0.0.0/4", "a multicast address"),
    ("255.255.255.255/32", "the broadcast address"),
    ("240.0.0.0/4", "a reserved address"),
    ("::1/128", "a loopback address"),
    ("::/128", "an address of this host"),
    ("::/96", "an IPv4-compatible address"),
    ("::ffff:0:0:0/96", "an IPv4-translated address"),
    ("64:ff9b::/96", "a NAT64 address"),
    ("64:ff9b:1::/48", "a local NAT64 address"),
    ("100::/64", "a discard-only address"),
    ("100:0:0:1::/64", "a dummy address"),
    ("2001::/32", "a Teredo address"),
    ("2001:2::/48", "a benchmarking address"),
    ("2001:10::/28", "an overlay identifier (ORCHID)"),
    ("2001:20::/28", "an overlay identifier (ORCHID)"),
    ("2001:db8::/32", "a documentation address"),
    ("2002::/16", "a 6to4 address"),
    ("3fff::/20", "a documentation address"),
    ("5f00::/16", "a segment routing address"),
    ("fc00::/7", "a private address"),
    ("fe80::/10", "a link-local address"),
    ("fec0::/10", "a site-local address"),
    ("ff00::/8", "a multicast address"),
)
_SPECIAL_RANGES = tuple(
    (network.version, int(network.network_address), int(network.broadcast_address), cidr, words)
    for cidr, words in _SPECIAL
    for network in (ipaddress.ip_network(cidr),)
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")
# IETF protocol assignments (RFC 2928): anycast addresses of protocols that are not the web's.
_PROTOCOLS = IPv6Network("2001::/23")
_NAT64 = IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")
# Where the octets of the IPv4 address stand behind prefixes of 48, 56 and 64 bits.
_NAT64_LAYOUTS = ((6, 7, 9, 10), (7, 9, 10, 11), (9, 10, 11, 12))
# IPv4-compatible and IPv4-translated addresses (RFC 2765) end in the IPv4 address.
_COMPATIBLE = IPv6Network("::/96")
_TRANSLATED = IPv6Network("::ffff:0:0:0/96")
# In an interface identifier of ISATAP (RFC 5214) the IPv4 address follows one of these.
_ISATAP = (0x00005EFE, 0x02005EFE)
# The words by which net.allow_network opens all such networks. To name one network would tell more
# of an address.
_WORDS_OF_SQL = {"a private address": "private", "a loopback address": "loopback"}
# How many refusals are logged, at most, until the rules change.
_LOGGED_REFUSALS = 1000
_LOOPBACK: dict[int, Address] = {4: IPv4Address("127.0.0.1"), 6: IPv6Address("::1")}
_LOOPBACK_NETWORK = IPv4Network("127.0.0.0/8")
_LEADING_ZEROS = re.compile(r"(?:^|(?<=\.))0+(?=[0-9])")
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


def embedded_addresses(address: Address) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses to which an IPv6 address may lead; an empty tuple for most.

    Mapped, compatible, translated, NAT64, 6to4, Teredo and ISATAP addresses lead to an IPv4 one.
    Where that depends on the translator (RFC 6052, section 2.2), all of them are returned.
    """
    if not isinstance(address, IPv6Address):
        return ()
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address.sixtofour is not None:
        return (address.sixtofour,)
    if address.teredo is not None:
        return (address.teredo[1],)
    last = IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _NAT64_LOCAL:
        octets = address.packed
        others = (IPv4Address(bytes(octets[at] for at in layout)) for layout in _NAT64_LAYOUTS)
        # An address that is not of a layout has mostly zeros in that layout's octets.
        return (last, *(other for other in others if other.packed[0] != 0))
    if address in _NAT64 or address in _TRANSLATED or (address in _COMPATIBLE and int(last) > 1):
        return (last,)
    return (last,) if int(address) >> 32 & 0xFFFFFFFF in _ISATAP else ()


@dataclass(frozen=True, slots=True)
class EgressRules:
    """The hosts and networks that the administrator allows and denies. Where both match, deny wins.

    allow_networks, deny_networks: networks of either family.
    allow_hosts, deny_hosts: exact names, or `*.suffix` for every name below a suffix.
    listed: whether only what is allowed may be reached; otherwise everything public may, too.
    deny_endpoints: (address, port) pairs that are never connected to, such as the database's own.
    ports: ranges of ports, both ends included; an empty tuple means every port.
    own_port: the database's port, which is never connected to on any address of this host.
    """

    allow_networks: tuple[Network, ...] = ()
    deny_networks: tuple[Network, ...] = ()
    allow_hosts: frozenset[str] = frozenset()
    deny_hosts: frozenset[str] = frozenset()
    listed: bool = False
    deny_endpoints: frozenset[tuple[str, int]] = frozenset()
    ports: tuple[tuple[int, int], ...] = ()
    own_port: int | None = None

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> EgressRules:
        """Read the rules from their JSON form; a key that is missing or null stands for no rule.

        Raises ValueError for what is not a network, not a list of ports such as
        `80,443,1024-65535`, or not a known `egress`.
        """
        egress = obj.get("egress") or "public"
        if egress not in ("public", "listed"):
            raise ValueError(f"unknown egress {egress!r}; known: public, listed")
        return cls(
            allow_networks=_networks(obj.get("allow_networks")),
            deny_networks=_networks(obj.get("deny_networks")),
            allow_hosts=_patterns(obj.get("allow_hosts")),
            deny_hosts=_patterns(obj.get("deny_hosts")),
            listed=egress == "listed",
            deny_endpoints=frozenset(_endpoint(e) for e in obj.get("deny_endpoints") or ()),
            ports=_ports(obj.get("ports") or ""),
            own_port=obj.get("own_port"),
        )


def _networks(texts: Iterable[str] | None) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text, strict=False) for text in texts or ())


def _patterns(texts: Iterable[str] | None) -> frozenset[str]:
    return frozenset(plain_host(text) for text in texts or ())


def _endpoint(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return str(ipaddress.ip_address(host.strip("[]"))), int(port)


def _ports(text: str) -> tuple[tuple[int, int], ...]:
    ranges = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _PORTS.fullmatch(part)
        low, high = (int(n) for n in match.groups(match[1])) if match is not None else (0, 0)
        if not 0 < low <= high < 65536:
            raise ValueError(f"not a port or a range of ports: {part!r}")
        ranges.append((low, high))
    return tuple(ranges)


def _matches(host: str, patterns: frozenset[str]) -> str | None:
    """The most specific pattern that matches a host; it takes no longer where there are many."""
    return next((p for p in patterns_of(host) if p in patterns), None) if patterns else None


class _Networks:
    """A set of networks. To find an address in it takes no longer where there are many."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._bases: dict[tuple[int, int], dict[int, Network]] = {}
        for network in networks:
            shift = network.max_prefixlen - network.prefixlen
            bases = self._bases.setdefault((network.version, shift), {})
            bases[int(network.network_address) >> shift] = network

    def find(self, address: Address) -> Network | None:
        """Return a network that the address is in; None without one."""
        version, number = address.version, int(address)
        for (of_version, shift), bases in self._bases.items():
            network = bases.get(number >> shift) if of_version == version else None
            if network is not None:
                return network
        return None


class Guard:
    """Judges names and addresses by the egress rules; knows nothing of requests or connections."""

    def __init__(self, rules: EgressRules) -> None:
        self.rules = rules
        self._logged: set[str] = set()
        self._allowed = _Networks(rules.allow_networks)
        self._denied = _Networks(rules.deny_networks)

    def check_host(self, host: str, port: int) -> None:
        """Refuse a host for its name or port, before the name is looked up.

        Raises EgressRefused, with the statement that allows it.
        """
        self.check_name(host)
        ports = self.rules.ports
        if ports and not any(low <= port <= high for low, high in ports):
            ranges = (str(low) if low == high else f"{low}-{high}" for low, high in ports)
            setting = _quoted(",".join((*ranges, str(port))))
            raise EgressRefused(
                f"{plain_host(host)}: port {port} is not allowed: "
                f"select net.configure('egress_ports', {setting})"
            )

    def check_name(self, host: str) -> None:
        """Refuse a host for its name alone. This is how a proxy is judged.

        Raises EgressRefused, with the statement that allows it.
        """
        rules = self.rules
        host = plain_host(host)
        if is_number(host) and literal_address(host) is None:
            raise EgressRefused(f"{host} ends in a number and is not an IPv4 address")
        denied = _matches(host, rules.deny_hosts)
        if denied is not None:
            raise EgressRefused(
                f"{host} is a denied host: select net.forget_host({_quoted(denied)})"
            )
        # Where networks are allowed, only the address can tell whether one of them has it.
        if rules.listed and not rules.allow_networks and not _matches(host, rules.allow_hosts):
            raise self._not_listed(host)

    def check_behind_proxy(self, host: str, port: int) -> None:
        """Refuse a host that a proxy looks up and connects to. Its address is not known here.

        Raises EgressRefused, with the statement that allows it.
        """
        self.check_host(host, port)
        name = plain_host(host)
        literal = literal_address(host)
        if literal is None and (name == "localhost" or name.endswith(".localhost")):
            # RFC 6761, section 6.3: these names always mean the loopback address.
            literal = "127.0.0.1"
        if literal is not None:
            self.check_address(host, literal, port)
            # 010.0.0.1 is octal for a C library, and decimal for some proxies.
            decimal = literal_address(_LEADING_ZEROS.sub("", host))
            if decimal is not None:
                self.check_address(host, decimal, port)
        elif self.rules.listed and not _matches(name, self.rules.allow_hosts):
            raise self._not_listed(name)

    def check_address(self, host: str, ip: str, port: int) -> None:
        """Refuse an address that a connection is about to be made to.

        host: of the URL. ip: one of its addresses.

        Raises EgressRefused, with the statement that allows the address.
        """
        host = plain_host(host)
        try:
            address = _connected_address(ip)
        except ValueError:
            raise EgressRefused(f"{host} has an address that cannot be judged") from None
        judged: list[Address] = [address, *embedded_addresses(address)]
        # To connect to the unspecified address is to connect to this host.
        judged += [_LOOPBACK[a.version] for a in judged if a.is_unspecified]
        # A message names the host before its address, unless the URL has the address as it is.
        name = "" if host in (ip, f"[{ip}]") else f"{host}: "
        for candidate in judged:
            if self._is_own_server(candidate, port):
                raise self._refusal(
                    host,
                    f"{name}{candidate} port {port} is this database server's own",
                    f"{host}: port {port} of its address is this database server's own",
                )
            network = self._denied.find(candidate)
            if network is not None:
                raise self._refusal(
                    host,
                    f"{name}{candidate} is in a denied network: "
                    f"select net.forget_network({_quoted(str(network))})",
                    f"{host}: its address is in a denied network: see net.egress",
                )
        allowed = [self._allowed.find(candidate) is not None for candidate in judged]
        for candidate, is_allowed in zip(judged, allowed, strict=True):
            special = None if is_allowed else _special(candidate)
            if special is not None:
                cidr, words = special
                statement = f"select net.allow_network({_quoted(cidr)})"
                raise self._refusal(
                    host,
                    f"{name}{candidate} is {words} and not allowed: {statement}",
                    f"{host}: its address is {words} and not allowed: {_advice(cidr, words)}",
                )
        rules = self.rules
        if rules.listed and not allowed[0] and not _matches(host, rules.allow_hosts):
            raise self._not_listed(host)

    def _is_own_server(self, address: Address, port: int) -> bool:
        # All of 127.0.0.0/8 leads to a server that listens on every address.
        own = _LOOPBACK[4] if address in _LOOPBACK_NETWORK else address
        return (str(own), port) in self.rules.deny_endpoints or (
            port == self.rules.own_port and _is_of_this_host(address)
        )

    def _refusal(self, host: str, in_full: str, of_name: str) -> EgressRefused:
        """Refuse in full where the URL has the address, in any spelling; else the log tells it."""
        if literal_address(host) is not None:
            return EgressRefused(in_full)
        self._log(in_full)
        return EgressRefused(of_name)

    def _log(self, refusal: str) -> None:
        if refusal not in self._logged and len(self._logged) < _LOGGED_REFUSALS:
            self._logged.add(refusal)
            log.warning("refused: %s", refusal)

    @staticmethod
    def _not_listed(host: str) -> EgressRefused:
        literal = literal_address(host)
        if literal is not None:
            advice = f"select net.allow_network({_quoted(literal)})"
        else:
            advice = f"select net.allow_host({_quoted(host)})"
        return EgressRefused(f"{host} is not an allowed host, and egress is listed: {advice}")


def _advice(cidr: str, words: str) -> str:
    """How to allow a special network, without the address of a name."""
    if words in _WORDS_OF_SQL:
        return f"select net.allow_network({_quoted(_WORDS_OF_SQL[words])})"
    if cidr.endswith("/128"):
        return "the worker's log has the statement that allows it"
    return f"select net.allow_network({_quoted(cidr)})"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _is_of_this_host(address: Address) -> bool:
    """Whether an address is one of this host's interfaces: only to these a socket can be bound."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError as error:
        return error.errno != errno.EADDRNOTAVAIL
    return True


@lru_cache(4096)
def _connected_address(ip: str) -> Address:
    """The address that the kernel connects to: for a mapped one the IPv4 address itself.

    Raises ValueError.
    """
    address = ipaddress.ip_address(ip)
    return getattr(address, "ipv4_mapped", None) or address


def is_public(ip: str) -> bool:
    """Whether an address is public, and so are those to which it may lead."""
    address = _connected_address(ip)
    return all(_special(one) is None for one in (address, *embedded_addresses(address)))


def _special(address: Address) -> tuple[str, str] | None:
    """The special network that an address is in, and its words; None for a public address."""
    number = int(address)
    for version, low, high, cidr, words in _SPECIAL_RANGES:
        if low <= number <= high and version == address.version:
            return cidr, words
    if address.version == 6:
        # Only the address itself is named: a network around it would have networks of the table in
        # it.
        if address not in _GLOBAL_UNICAST:
            return f"{address}/128", "not a global unicast address"
        if address in _PROTOCOLS:
            return f"{address}/128", "a reserved address"
    return None
