"""Nothing private is connected to, however its address is written."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from servers import netns
from servers.addresses import (
    ALL_EDGES,
    DISPUTED,
    EVERYTHING,
    NAMES,
    RANGES,
    SPELLINGS,
    SPELLINGS_4,
    SPELLINGS_6,
    WRAPPERS,
    among,
    high,
    number_of,
    private,
    written,
)
from servers.internet import REFUSED, UNREACHABLE, Case, Internet, literal

# ---- the namespace itself


def test_a_namespace_leaves_nothing_behind() -> None:
    """That holds after a failure, too."""
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
    """Each address as the queue stores it, and as a role could write it into the queue."""
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
