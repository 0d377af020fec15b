"""Rules open what they name, and no more: networks, ports, hosts; deny wins."""

from __future__ import annotations

import json
import re
from urllib.parse import quote

import pytest

from servers import netns
from servers.addresses import (
    DNS_V4,
    DNS_V6,
    EVERYTHING,
    MAPPED,
    RANGES,
    SPELLINGS_4,
    SPELLINGS_6,
    WRAPPERS,
    among,
    host_of,
    prefix,
    written,
)
from servers.internet import (
    REFUSED,
    UNREACHABLE,
    Internet,
    label,
    last_host,
    literal,
    name_for,
    redirect,
)

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
    """Only allowed hosts are reached, and a rule for a name opens no private address."""
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
