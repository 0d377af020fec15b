"""Quarantine has phases, in which nothing but suspects is claimed; they are never long."""

from __future__ import annotations

import itertools

import pytest

from pgnet.worker.quarantine import Quarantine


def on(quarantine: Quarantine) -> bool:
    return quarantine.is_on


def test_nothing_is_on_before_it_is_wanted() -> None:
    quarantine = Quarantine()
    assert not on(quarantine)
    assert not quarantine.phase_ended(100.0)
    quarantine.wanted(100.0)
    assert on(quarantine)
    assert quarantine.may_claim(100.0, [])


def test_what_is_in_flight_may_end_first_but_not_for_long() -> None:
    quarantine = Quarantine()
    quarantine.wanted(100.0)
    assert not quarantine.may_claim(100.0, [50.0, 99.0])
    assert quarantine.next_change([50.0, 99.0]) == 109.0
    assert quarantine.may_claim(109.0, [50.0, 99.0])
    # what has been in flight for hours delays nobody
    assert quarantine.may_claim(100.0, [50.0])


def test_one_follows_the_other_and_the_others_have_as_long() -> None:
    quarantine = Quarantine()
    quarantine.wanted(100.0)
    quarantine.claimed({1}, 100.0)
    assert not quarantine.may_claim(100.1, [100.0])
    quarantine.in_flight.discard(1)
    assert not quarantine.phase_ended(100.2)
    quarantine.claimed({2}, 100.2)
    quarantine.in_flight.discard(2)
    assert quarantine.phase_ended(101.1)
    assert not on(quarantine)
    quarantine.wanted(101.5)
    assert not on(quarantine)
    quarantine.wanted(102.3)
    assert on(quarantine)


def test_one_that_hangs_does_not_keep_the_phase() -> None:
    quarantine = Quarantine()
    quarantine.wanted(100.0)
    quarantine.claimed({1}, 100.0)
    assert not quarantine.phase_ended(109.9)
    assert quarantine.next_change([100.0]) == 110.0
    assert quarantine.phase_ended(110.0)
    assert not on(quarantine)
    # over the years, the others have at least half of the time
    seconds = {True: 0.0, False: 0.0}
    for tick in itertools.takewhile(lambda tick: tick < 10_000, itertools.count()):
        now = 110.0 + tick / 10
        quarantine.phase_ended(now)
        quarantine.wanted(now)
        if on(quarantine) and quarantine.may_claim(now, [100.0]):
            quarantine.claimed({1}, now)
        seconds[on(quarantine)] += 0.1
    assert seconds[True] == pytest.approx(seconds[False], rel=0.1)


def test_none_to_be_had_ends_the_phase() -> None:
    quarantine = Quarantine()
    quarantine.wanted(100.0)
    quarantine.claimed(set(), 100.0)
    assert not on(quarantine)
