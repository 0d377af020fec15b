"""Where the next claim goes on, and whether there is to be one at once."""

from __future__ import annotations

from pgnet.outbox import Claimed, Demand, Place
from pgnet.worker.turns import Turns
from unit.test_flights import flight


def demand(turns: Turns, slots: int = 4, host_quota: int = 2) -> Demand:
    return Demand(slots, host_quota, slots, (), 1, turns.after, turns.until)


def claimed(*hosts: str, stopped_at: Place | None = None) -> Claimed:
    return Claimed([flight(host).claim for host in hosts], stopped_at)


def test_a_claim_that_got_all_it_asked_for_is_followed_by_another() -> None:
    turns = Turns()
    assert turns.claimed(demand(turns), claimed("a", "b", "c", "d"))
    assert not turns.claimed(demand(turns), claimed("a", "b", "c"))
    assert not turns.claimed(demand(turns), claimed())


def test_a_host_that_got_its_quota_may_have_more() -> None:
    turns = Turns()
    assert turns.claimed(demand(turns), claimed("a", "a", "b"))


def test_the_next_claim_begins_behind_the_last_request() -> None:
    turns = Turns()
    turns.served(flight("b").claim)
    assert turns.after == Place("b", 0)
    assert not turns.is_unfinished


def test_a_claim_that_stopped_goes_on_from_there_until_it_is_where_it_began() -> None:
    turns = Turns()
    turns.served(flight("b").claim)
    assert not turns.claimed(demand(turns), claimed(stopped_at=Place("m", 1)))
    assert turns.is_unfinished
    assert (turns.after, turns.until) == (Place("m", 1), Place("b", 0))
    assert not turns.claimed(demand(turns), claimed(stopped_at=Place("z", 1)))
    assert (turns.after, turns.until) == (Place("z", 1), Place("b", 0))
    assert not turns.claimed(demand(turns), claimed())
    assert not turns.is_unfinished


def test_a_claim_that_stopped_and_found_something_is_followed_at_once() -> None:
    turns = Turns()
    assert turns.claimed(demand(turns), claimed("a", stopped_at=Place("m", 1)))
    assert not turns.is_unfinished
    assert turns.after == Place("m", 1)
