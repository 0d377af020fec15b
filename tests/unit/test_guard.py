"""Which addresses the guard lets through: literals, embedded ones, by rules; deny wins."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgnet.request.address import literal_address
from pgnet.wire.guard import EgressRefused, EgressRules, Guard, embedded_addresses, is_public

SPECIAL = [
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
    "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16",
    "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    "::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64",
    "2001::/32", "2001:2::/48", "2001:10::/28", "2001:20::/28", "2001::/23",
    "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fc00::/7",
    "fe80::/10", "fec0::/10", "ff00::/8",
    # all that is not 2000::/3
    "::/3", "4000::/2", "8000::/1",
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
        if mapped is not None:
            inside = any(mapped in n for n in NETWORKS if n.version == 4)
        if inside:
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


@pytest.mark.parametrize(
    ("ip", "public"),
    [
        ("8.8.8.8", True),
        ("::ffff:8.8.8.8", True),
        ("::ffff:10.0.0.1", False),
        ("2606:4700::1", True),
        ("2606:4700::5efe:10.0.0.1", False),
        ("64:ff9b::8.8.8.8", False),
        ("4000::1", False),
    ],
)
def test_what_is_public(ip: str, public: bool) -> None:
    assert is_public(ip) is public


@given(st.ip_addresses(v=4))
def test_what_is_inside_decides(inner: ipaddress.IPv4Address) -> None:
    number = int(inner)
    nat64 = ipaddress.IPv6Address((0x64FF9B << 96) | number)
    sixtofour = ipaddress.IPv6Address((0x2002 << 112) | (number << 80) | 1)
    translated = ipaddress.IPv6Address((0xFFFF << 48) | number)
    isatap = ipaddress.IPv6Address((0x20010DB8 << 96) | (0x5EFE << 32) | number)
    opened = rules(allow_networks=["64:ff9b::/96", "2002::/16", "::ffff:0:0:0/96", "2001:db8::/32"])
    for outer in (nat64, sixtofour, translated, isatap):
        assert embedded_addresses(outer) == (inner,)
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
        ("2001:2::1", "2001:2::1 is a benchmarking address and not allowed: "
         "select net.allow_network('2001:2::/48')"),
        ("2001:4:112::1", "2001:4:112::1 is a reserved address and not allowed: "
         "select net.allow_network('2001:4:112::1/128')"),
        ("4000::1", "4000::1 is not a global unicast address and not allowed: "
         "select net.allow_network('4000::1/128')"),
        ("::ffff:127.0.0.1", "127.0.0.1 is a loopback address and not allowed: "
         "select net.allow_network('127.0.0.0/8')"),
    ],
)  # fmt: skip
def test_the_refusal_names_the_statement_that_allows_it(ip: str, message: str) -> None:
    assert refusal(PUBLIC, ip).removeprefix(f"{ip}: ") == message
    statement = message.rpartition("'")[0].rpartition("'")[2]
    rules(allow_networks=[statement]).check_address(ip, ip, 80)


@pytest.mark.parametrize(
    ("ip", "words"),
    [
        ("10.20.30.40", "a private address and not allowed: select net.allow_network('private')"),
        ("172.16.30.40", "a private address and not allowed: select net.allow_network('private')"),
        ("fd00:20::40", "a private address and not allowed: select net.allow_network('private')"),
        (
            "127.20.30.40",
            "a loopback address and not allowed: select net.allow_network('loopback')",
        ),
        ("100.64.30.40", "select net.allow_network('100.64.0.0/10')"),
        ("64:ff9b::10.20.30.40", "select net.allow_network("),
        ("4000:20::40", "not allowed: the worker's log has the statement that allows it"),
        ("2001:1::40", "not allowed: the worker's log has the statement that allows it"),
        ("8.20.30.40", "inner.example: its address is in a denied network: see net.egress"),
        ("9.20.30.40", "inner.example: port 5432 of its address is this database server's own"),
    ],
)
def test_nobody_learns_the_address_of_a_name(
    ip: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A caller cannot map the inner network by refusals; the log has each address once."""
    guard = rules(deny_networks=["8.20.0.0/16"], deny_endpoints=["9.20.30.40:5432"])
    for _again in range(2):
        message = refusal(guard, ip, "inner.example", port=5432)
        assert message.startswith("inner.example: ")
        assert words in message
        assert ".30" not in message
        assert str(ipaddress.ip_address(ip)) not in message
        assert "/16" not in message
    assert len(caplog.records) == 1
    assert str(ipaddress.ip_address(ip)) in caplog.text


def test_the_log_has_each_address_of_a_name(caplog: pytest.LogCaptureFixture) -> None:
    """A name that moves, or has several addresses: the statement for the last one is there too."""
    for ip in ("10.0.0.1", "4000::1", "10.0.0.1", "4000::2"):
        refusal(PUBLIC, ip, "moving.example")
    statements = [record.getMessage().rpartition(": ")[2] for record in caplog.records]
    assert statements == [
        "select net.allow_network('10.0.0.0/8')",
        "select net.allow_network('4000::1/128')",
        "select net.allow_network('4000::2/128')",
    ]


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
            guard.check_host(host, 443)
    guard.check_host("evil.example", 443)


def test_an_allowed_host_does_not_open_private_networks() -> None:
    refusal(rules(allow_hosts=["inner.example"]), "10.0.0.1", "inner.example")


def test_listed_lets_only_through_what_is_allowed() -> None:
    guard = rules(egress="listed", allow_hosts=["api.example", "*.cdn.example"])
    for host in ("api.example", "x.cdn.example"):
        guard.check_host(host, 443)
        guard.check_address(host, "8.8.8.8", 443)
    for host in ("example", "cdn.example", "xapi.example", "api.example.org"):
        with pytest.raises(EgressRefused, match=r"select net\.allow_host"):
            guard.check_host(host, 443)
        refusal(guard, "8.8.8.8", host)
    network = rules(egress="listed", allow_networks=["8.8.8.0/24"])
    network.check_host("any.example", 443)
    network.check_address("any.example", "8.8.8.8", 443)
    refusal(network, "9.9.9.9", "any.example")


def test_an_endpoint_is_denied_where_its_network_is_allowed() -> None:
    guard = rules(
        allow_networks=["127.0.0.0/8", "::1/128"], deny_endpoints=["127.0.0.1:5432", "[::1]:5432"]
    )
    guard.check_address("localhost", "127.0.0.1", 80)
    for ip in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
        assert "database server's own" in refusal(guard, ip, port=5432)


def test_ports_are_allowed_one_by_one_and_in_ranges() -> None:
    guard = rules(ports="80, 443,1024-65535")
    for port in (80, 443, 1024, 65535):
        guard.check_host("a.example", port)
    for port in (1, 22, 79, 81, 1023):
        with pytest.raises(EgressRefused) as caught:
            guard.check_host("a.example", port)
        assert str(caught.value) == (
            f"a.example: port {port} is not allowed: "
            f"select net.configure('egress_ports', '80,443,1024-65535,{port}')"
        )
        statement = str(caught.value).rpartition(", '")[2][:-2]
        rules(ports=statement).check_host("a.example", port)
    for port in (1, 22, 65535):
        PUBLIC.check_host("a.example", port)
        rules(ports="").check_host("a.example", port)


@pytest.mark.parametrize("text", ["x", "0", "65536", "5-4", "-5", "80-", "80-443-500", "1e3", "+5"])
def test_ports_are_read_strictly(text: str) -> None:
    with pytest.raises(ValueError, match="not a port or a range of ports"):
        EgressRules.from_json({"ports": f"80,{text}"})


@pytest.mark.parametrize("ip", ["127.0.0.1", "127.0.0.2", "127.255.255.254", "0.0.0.0", "::",
                                "::1", "::ffff:0.0.0.0", "::ffff:127.0.0.9"])  # fmt: skip
def test_the_own_endpoint_has_many_names(ip: str) -> None:
    guard = rules(
        allow_networks=["0.0.0.0/0", "::/0"], deny_endpoints=["127.0.0.1:5432", "[::1]:5432"]
    )
    guard.check_address("localhost", ip, 80)
    assert "database server's own" in refusal(guard, ip, port=5432)


def test_a_local_translator_may_have_any_layout() -> None:
    opened = rules(allow_networks=["64:ff9b:1::/48"])
    opened.check_address("a.example", "64:ff9b:1::808:808", 80)
    for ip in (
        "64:ff9b:1::a00:1",  # behind 96 bits
        "64:ff9b:1:a00:0:1:808:808",  # behind 48
        "64:ff9b:1:a:0:1:808:808",  # behind 56
        "64:ff9b:1:0:a:0:108:808",  # behind 64
    ):
        assert "10.0.0." in refusal(opened, ip)
        assert "a private address" in refusal(opened, ip)


def test_the_own_port_on_any_address_of_this_host() -> None:
    guard = rules(allow_networks=["0.0.0.0/0", "::/0"], own_port=5432)
    for ip in ("127.0.0.1", "127.9.9.9", "0.0.0.0", "::", "::1", "::ffff:127.0.0.1"):
        guard.check_address(ip, ip, 80)
        assert "database server's own" in refusal(guard, ip, port=5432)
    for ip in ("192.0.2.1", "8.8.8.8", "2001:db8::1"):
        guard.check_address(ip, ip, 5432)


def test_no_address_is_judged_as_loopback_too() -> None:
    for ip, network in (("0.0.0.0", "0.0.0.0/8"), ("::", "::/128")):
        refusal(PUBLIC, ip)
        assert "a loopback address" in refusal(rules(allow_networks=[network]), ip)
        assert "a denied network" in refusal(
            rules(allow_networks=["0.0.0.0/0", "::/0"], deny_networks=["127.0.0.0/8", "::1"]), ip
        )


# ---- behind a proxy


def behind(guard: Guard, host: str, port: int = 443) -> str | None:
    try:
        guard.check_behind_proxy(host, port)
    except EgressRefused as refused:
        return str(refused)
    return None


def test_what_a_proxy_looks_up_is_judged_by_name_port_and_literal() -> None:
    guard = rules(deny_hosts=["*.evil.example"], deny_networks=["8.8.8.0/24"], ports="443")
    assert behind(guard, "a.example") is None
    assert behind(guard, "9.9.9.9") is None
    for host, words in (
        ("a.evil.example", "denied host"),
        ("8.8.8.8", "denied network"),
        ("127.1", "127.1: 127.0.0.1 is a loopback address"),
        ("[::1]", "::1 is a loopback address"),
        ("10.0.0.1", "a private address"),
        ("127.0.0.1.", "a loopback address"),
        ("2130706433", "a loopback address"),
        ("2130706433.", "a loopback address"),
        ("0x7f.1", "a loopback address"),
        ("0177.0.0.1", "a loopback address"),
        ("127.1.", "a loopback address"),
        # 8.0.0.1 for programs that read it as octal
        ("010.0.0.1", "10.0.0.1 is a private address"),
        ("1.2.3.4.5", "ends in a number"),
        ("127.0.0.1.5.", "ends in a number"),
        ("a.0x7f", "ends in a number"),
        ("4294967297", "ends in a number"),
        ("localhost.", "a loopback address"),
        ("localhost", "localhost: its address is a loopback address"),
        ("x.LocalHost.", "a loopback address"),
    ):
        assert words in (behind(guard, host) or ""), host
    assert "port 80 is not allowed" in (behind(guard, "a.example", 80) or "")


def test_behind_a_proxy_a_listed_host_is_listed_by_its_name() -> None:
    guard = rules(egress="listed", allow_hosts=["a.example"], allow_networks=["8.8.8.0/24"])
    assert behind(guard, "a.example") is None
    assert behind(guard, "8.8.8.8") is None
    for host in ("b.example", "9.9.9.9"):
        assert "not an allowed host" in (behind(guard, host) or "")


def test_rules_are_checked() -> None:
    for bad in ({"egress": "open"}, {"allow_networks": ["10.0.0.0/99"]}):
        with pytest.raises(ValueError):  # noqa: PT011
            EgressRules.from_json(bad)
    assert EgressRules.from_json({"allow_networks": None, "egress": None}) == EgressRules()


@pytest.mark.parametrize(
    "host",
    ["127.1", "127.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "0x7f.1", "017700000001",
     "127.0.0.1", "127.0.0.1.", "127.1.", "2130706433.", "0x7f.1."],
)  # fmt: skip
def test_loopback_in_any_spelling(host: str) -> None:
    assert literal_address(host) == "127.0.0.1"


@pytest.mark.parametrize(
    ("host", "address"),
    [("0", "0.0.0.0"), ("[::1]", "::1"), ("[::ffff:7f00:1]", "::ffff:127.0.0.1"),
     ("a.example", None),
     ("1.example", None), ("", None), ("[fe80::1%25eth0]", None), ("256.1.1.1", None),
     ("127.0.0.1 x", None), ("[::g]", None), (".", None), ("127.0.0.1..", None)],
)  # fmt: skip
def test_what_is_an_address(host: str, address: str | None) -> None:
    assert literal_address(host) == address
