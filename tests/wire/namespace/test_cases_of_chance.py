"""Thousands of requests made up by hypothesis: nothing private is connected to."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st

from servers.addresses import (
    DISPUTED,
    DNS_V6,
    LAST,
    MAPPED,
    RANGES,
    SPELLINGS,
    WRAPPERS,
    Address,
    host_of,
)
from servers.internet import Case, Internet, label, name_for, redirect

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
