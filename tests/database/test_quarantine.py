"""Turns of requests that were lost with workers: apart from others, and never for long."""

from __future__ import annotations

import itertools

import pytest

from pgnet.worker.quarantine import Quarantine
from servers.cluster import Database
from servers.httpd import Running
from servers.traffic import queue, seen, targets


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


def test_one_that_hangs_does_not_keep_the_turn() -> None:
    quarantine = Quarantine()
    quarantine.wanted(100.0)
    quarantine.claimed({1}, 100.0)
    assert not quarantine.phase_ended(109.9)
    assert quarantine.next_change([100.0]) == 110.0
    assert quarantine.phase_ended(110.0)
    assert not on(quarantine)
    # over the years, the others have at least half of the time
    turns = {True: 0.0, False: 0.0}
    for tick in itertools.takewhile(lambda tick: tick < 10_000, itertools.count()):
        now = 110.0 + tick / 10
        quarantine.phase_ended(now)
        quarantine.wanted(now)
        if on(quarantine) and quarantine.may_claim(now, [100.0]):
            quarantine.claimed({1}, now)
        turns[on(quarantine)] += 0.1
    assert turns[True] == pytest.approx(turns[False], rel=0.1)


def test_none_to_be_had_ends_the_turn() -> None:
    quarantine = Quarantine()
    quarantine.wanted(100.0)
    quarantine.claimed(set(), 100.0)
    assert not on(quarantine)


def test_a_suspect_that_hangs_stops_nobody(database: Database, witness: Running) -> None:
    """It was lost with three workers, and its timeout is in a day: others go on beside it."""
    [suspect] = queue(database, f"{witness.url}/delay/600", timeout=86_000_000)
    database.execute(
        "insert into pgnet.attempt (request_id, attempt, requested_by, ending, started, ended)"
        " select %s, n, 'postgres'::regrole, 'lost', now(), now() from generate_series(1, 3) n",
        suspect,
    )
    database.execute(
        "update net.http_request_queue set due = 'infinity', waits_since = clock_timestamp()"
    )
    with database.worker("--grace", "0"):
        seen(witness, 1)
        queue(database, f"{witness.url}/body/#", 50)
        # its turn is over after ten seconds
        database.wait_for("select count(*) = 50 from net._http_response", timeout=20)
        assert len(targets(witness)) == 51
        assert database.rows("select id, attempt from pgnet.claim") == [(suspect, 4)]
        queue(database, f"{witness.url}/body/#", 50)
        database.wait_for("select count(*) = 100 from net._http_response", timeout=5)
