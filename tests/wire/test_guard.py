from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgnet.guard import EgressRefused, EgressRules, Guard, embedded_address, literal_address

SPECIAL = [
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
    "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16",
    "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    "::/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/32",
    "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fc00::/7",
    "fe80::/10", "fec0::/10", "ff00::/8",
]  # fmt: skip
NETWORKS = [ipaddress.ip_network(text) for text in SPECIAL]
PUBLIC = Guard(EgressRules())


def rules(**obj: object) -> Guard:
    return Guard(EgressRules.from_json(obj))


def refusal(guard: Guard, ip: str, host: str | None = None, port: int = 80) -> str:
    with pytest.raises(EgressRefused) as caught:
        guard.check_address(host or ip, ip, port)
    return str(caught.value)


@pytest.mark.parametrize("network", NETWORKS, ids=SPECIAL)
def test_every_special_range_is_refused_at_its_edges(network: ipaddress.IPv4Network) -> None:
    for address in (network.network_address, network.broadcast_address):
        assert "select net.allow_network('" in refusal(PUBLIC, str(address))


@pytest.mark.parametrize("network", NETWORKS, ids=SPECIAL)
def test_the_neighbours_of_a_range_are_public_unless_they_are_in_another(
    network: ipaddress.IPv4Network,
) -> None:
    kind = type(network.network_address)
    highest = 2**network.max_prefixlen - 1
    for number in (int(network.network_address) - 1, int(network.broadcast_address) + 1):
        if not 0 <= number <= highest:
            continue
        address = kind(number)
        inside = any(address in other for other in NETWORKS if other.version == network.version)
        mapped = getattr(address, "ipv4_mapped", None)
        if inside or (mapped is not None and any(mapped in n for n in NETWORKS if n.version == 4)):
            refusal(PUBLIC, str(address))
        else:
            PUBLIC.check_address(str(address), str(address), 80)


@given(st.ip_addresses())
def test_an_address_is_refused_exactly_when_a_range_has_it(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    judged = getattr(address, "ipv4_mapped", None) or address
    if any(judged in network for network in NETWORKS if network.version == judged.version):
        refusal(PUBLIC, str(address))
    else:
        PUBLIC.check_address("name.example", str(address), 443)


@given(st.ip_addresses(v=4))
def test_what_is_inside_decides(inner: ipaddress.IPv4Address) -> None:
    number = int(inner)
    nat64 = ipaddress.IPv6Address((0x64FF9B << 96) | number)
    sixtofour = ipaddress.IPv6Address((0x2002 << 112) | (number << 80) | 1)
    opened = rules(allow_networks=["64:ff9b::/96", "2002::/16"])
    for outer in (nat64, sixtofour):
        assert embedded_address(outer) == inner
        refusal(PUBLIC, str(outer))
        if any(inner in network for network in NETWORKS if network.version == 4):
            refusal(opened, str(outer))
        else:
            opened.check_address("a.example", str(outer), 80)


@pytest.mark.parametrize(
    ("ip", "message"),
    [
        ("127.0.0.1", "127.0.0.1 is a loopback address and not allowed: "
         "select net.allow_network('127.0.0.0/8')"),
        ("::1", "::1 is a loopback address and not allowed: select net.allow_network('::1/128')"),
        ("10.1.2.3", "10.1.2.3 is a private address and not allowed: "
         "select net.allow_network('10.0.0.0/8')"),
        ("169.254.169.254", "169.254.169.254 is a link-local address and not allowed: "
         "select net.allow_network('169.254.0.0/16')"),
        ("::ffff:127.0.0.1", "127.0.0.1 is a loopback address and not allowed: "
         "select net.allow_network('127.0.0.0/8')"),
    ],
)  # fmt: skip
def test_the_refusal_names_the_statement_that_allows_it(ip: str, message: str) -> None:
    assert refusal(PUBLIC, ip).removeprefix(f"{ip}: ") == message
    statement = message.rpartition("'")[0].rpartition("'")[2]
    rules(allow_networks=[statement]).check_address(ip, ip, 80)


def test_a_name_stands_before_its_address() -> None:
    assert refusal(PUBLIC, "10.0.0.1", "inner.example").startswith("inner.example: 10.0.0.1 is ")


def test_deny_wins() -> None:
    guard = rules(
        allow_networks=["10.0.0.0/8"],
        deny_networks=["10.1.0.0/16", "8.8.8.0/24"],
        allow_hosts=["bad.example"],
        deny_hosts=["bad.example", "*.evil.example"],
    )
    guard.check_address("a.example", "10.2.0.1", 80)
    assert "select net.forget_network('10.1.0.0/16')" in refusal(guard, "10.1.0.1")
    refusal(guard, "8.8.8.8")
    refusal(guard, "::ffff:8.8.8.8")
    for host in ("bad.example", "BAD.example.", "a.evil.example"):
        with pytest.raises(EgressRefused, match="denied host"):
            guard.check_host(host)
    guard.check_host("evil.example")


def test_an_allowed_host_does_not_open_private_networks() -> None:
    refusal(rules(allow_hosts=["inner.example"]), "10.0.0.1", "inner.example")


def test_listed_lets_only_through_what_is_allowed() -> None:
    guard = rules(egress="listed", allow_hosts=["api.example", "*.cdn.example"])
    for host in ("api.example", "x.cdn.example"):
        guard.check_host(host)
        guard.check_address(host, "8.8.8.8", 443)
    for host in ("example", "cdn.example", "xapi.example", "api.example.org"):
        with pytest.raises(EgressRefused, match=r"select net\.allow_host"):
            guard.check_host(host)
        refusal(guard, "8.8.8.8", host)
    network = rules(egress="listed", allow_networks=["8.8.8.0/24"])
    network.check_host("any.example")
    network.check_address("any.example", "8.8.8.8", 443)
    refusal(network, "9.9.9.9", "any.example")


def test_an_endpoint_is_denied_where_its_network_is_allowed() -> None:
    guard = rules(
        allow_networks=["127.0.0.0/8", "::1/128"], deny_endpoints=["127.0.0.1:5432", "[::1]:5432"]
    )
    guard.check_address("localhost", "127.0.0.1", 80)
    for ip in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
        assert "database server's own" in refusal(guard, ip, port=5432)


def test_rules_are_checked() -> None:
    for bad in ({"egress": "open"}, {"allow_networks": ["10.0.0.0/99"]}):
        with pytest.raises(ValueError):  # noqa: PT011
            EgressRules.from_json(bad)
    assert EgressRules.from_json({"allow_networks": None, "egress": None}) == EgressRules()


@pytest.mark.parametrize(
    "host",
    ["127.1", "127.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "0x7f.1", "017700000001",
     "127.0.0.1"],
)  # fmt: skip
def test_loopback_in_any_spelling(host: str) -> None:
    assert literal_address(host) == "127.0.0.1"


@pytest.mark.parametrize(
    ("host", "address"),
    [("0", "0.0.0.0"), ("[::1]", "::1"), ("[::ffff:7f00:1]", "::ffff:7f00:1"), ("a.example", None),
     ("1.example", None), ("", None), ("[fe80::1%25eth0]", None), ("256.1.1.1", None),
     ("127.0.0.1 x", None), ("[::g]", None)],
)  # fmt: skip
def test_what_is_an_address(host: str, address: str | None) -> None:
    assert literal_address(host) == address
