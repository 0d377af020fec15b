"""Nothing private is connected to by a name, whatever name servers say of it, and when."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from servers.addresses import (
    ALL_EDGES,
    DNS_V4,
    DNS_V6,
    EVERYTHING,
    MAPPED,
    RANGES,
    Address,
    private,
    unwrapped,
)
from servers.internet import REFUSED_NAME, Case, Internet, label, last_host, name_for, through


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
    """Records of a name that nobody asked about are ignored."""
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
    # A host that ends in a number is an address, and the caller knows it.
    assert REFUSED_NAME.fullmatch(error) or re.search(r"(\.1|^0x7f000001)\.$", host), error
    internet.nothing_private()


@pytest.mark.parametrize("host", ["1.2.3.4.5", "4294967296", "0x", "a.10", "10.0.0.1.0x0."])
def test_a_number_is_no_name(internet: Internet, host: str) -> None:
    """Neither a name server nor a proxy is asked for such a host."""
    for exchange, hosts in (("direct", {}), ("proxied", through("http://8.8.8.8:3128"))):
        internet.configure(exchange, hosts=hosts, **EVERYTHING)
        answers = internet.run([f"http://{host}/"], exchange)
        answers += internet.run([f"http://{host}/"], exchange, stored=False)
        errors = [answer.get("invalid") or answer.get("error", "") for answer in answers]
        assert all("ends in a number" in text for text in errors), answers
    assert internet.seen() == ([], [])


def test_names_of_the_hosts_file(internet: Internet) -> None:
    """Names of the hosts file work if their address is public."""
    internet.judge(
        [
            Case("http://outer.hosts/", (4, 0x01000001)),
            Case("http://mixed.hosts/", (4, 0x08080404)),
        ]
    )


def test_no_address_at_all(internet: Internet) -> None:
    """Neither the name itself has one, nor the name in the search domain."""
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
