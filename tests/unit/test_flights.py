"""The requests in flight, the room that is left, and what a worker asks the database for."""

from __future__ import annotations

import itertools

from pgnet.outbox import Claim, Place
from pgnet.worker.adaptive import Adaptive
from pgnet.worker.flights import Flight, Flights
from pgnet.worker.window import Window

ids = itertools.count(1)


def flight(host: str = "a", began: float = 100.0, timeout: int = 5000) -> Flight:
    claim = Claim(
        id=next(ids),
        token="t",
        attempt=1,
        lost=0,
        method="GET",
        url=f"http://{host}/",
        headers=None,
        body=None,
        timeout_milliseconds=timeout,
        options=None,
        host=host,
        revision=1,
        age=0.0,
        idempotency_key=None,
    )
    return Flight(claim, began)


def flights(*hosts: str, most: int = 100, began: float = 100.0) -> Flights:
    made = Flights(Window(most, clock=lambda: began), Adaptive(lambda place: True))
    for host in hosts:
        made.add(flight(host, began))
    return made


def test_a_flight_has_a_deadline() -> None:
    assert flight(began=100.0, timeout=1500).deadline == 101.5


def test_what_is_added_is_there_until_it_is_removed() -> None:
    both = flights()
    first, second = flight("a", 100.0), flight("b", 101.0)
    both.add(first)
    both.add(second)
    assert list(both) == [first, second]
    assert list(both.begins) == [100.0, 101.0]
    assert both.get(first.claim.id) is first
    both.remove(first)
    assert list(both.ids) == [second.claim.id]
    assert both.get(first.claim.id) is None
    assert len(both) == 1


def test_the_window_holds_back_what_is_in_flight_since_a_moment() -> None:
    busy = flights(*["a"] * 60, most=1000)
    assert busy.room(100.2) == 4
    # By now they wait for a server, and leave their room to others.
    assert busy.room(100.3) == 64
    busy.add(flight(began=100.3))
    assert busy.room(100.4) == 63


def test_the_setting_holds_back_all_that_is_in_flight() -> None:
    slow = flights(*["a"] * 60, most=70)
    assert slow.room(200.0) == 10
    slow.remove(next(iter(slow)))
    assert slow.room(200.0) == 11
    slow.window.most = 20
    assert slow.room(200.0) < 0


def test_a_host_is_full_at_three_quarters() -> None:
    some = flights(*["a"] * 5, *["b"] * 6, most=8)
    assert some.full_hosts() == ["b"]
    assert flights("a", most=1).full_hosts() == ["a"]


def test_a_demand() -> None:
    demand = flights(*["a"] * 10, *["b"] * 75, most=100).demand(
        15, 200, Place("a", 7), None, quarantined_only=False
    )
    assert demand.slots == 15
    # Each of two hosts gets half of what is free; a single host gets what its limit leaves.
    assert demand.host_quota == 8
    assert demand.single_host_quota == 65
    assert demand.full_hosts == ["b"]
    assert (demand.after, demand.until) == (Place("a", 7), None)


def test_a_demand_is_no_larger_than_a_batch() -> None:
    demand = flights(most=1000).demand(900, 200, Place(), Place("b"), quarantined_only=True)
    assert demand.slots == 200
    assert demand.until == Place("b")
    assert demand.quarantined_only


def test_the_end_of_a_request_says_whether_its_host_was_passed_over() -> None:
    some = flights(*["a"] * 6, "b", most=8)
    of_a, of_b = (next(f for f in some if f.claim.host == host) for host in "ab")
    assert not some.remove(of_a)
    some.add(of_a)
    some.demand(1, 10, Place(), None, quarantined_only=False)
    assert some.remove(of_a)
    assert not some.remove(of_b)
