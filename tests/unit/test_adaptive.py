"""How many requests a place may have in flight, as it adapts."""

from __future__ import annotations

from pgnet.outbox import Place
from pgnet.worker.adaptive import INITIAL, Adaptive
from pgnet.worker.breaker import Verdict

A, B = Place("a", 7), Place("b", 7)
NO_ANSWER = Verdict("failed", "timeout", is_congestion=True)


class World:
    """Requests to places, by a clock of our own."""

    def __init__(self, most: int = 1000, fixed: frozenset[Place] = frozenset()) -> None:
        self.now = 100.0
        self.adaptive = Adaptive(lambda place: place not in fixed, lambda: self.now)
        self.adaptive.most = most

    def room(self, place: Place = A) -> int:
        rooms = self.adaptive.rooms()
        return rooms.get(f"{place.role} {place.host}", rooms["*"])

    def round(
        self, number: int, verdict: Verdict, place: Place = A, *, is_probe: bool = False
    ) -> list[bool]:
        """So many requests begin together, and end a second later."""
        began = self.now
        for _ in range(number):
            self.adaptive.begun(place, is_probe=is_probe)
        self.now += 1.0
        left = []
        for _ in range(number):
            self.adaptive.judged(place, verdict, began)
            left.append(self.adaptive.ended(place))
        return left


def answer(latency: float = 0.01) -> Verdict:
    return Verdict("ok", status=200, latency=latency)


def test_a_place_begins_small_and_doubles() -> None:
    world = World()
    assert world.room() == INITIAL
    world.round(INITIAL, answer())
    assert world.room() == INITIAL * 2
    assert world.room(B) == INITIAL


def test_what_is_in_flight_has_no_room() -> None:
    world = World()
    for _ in range(INITIAL):
        world.adaptive.begun(A, is_probe=False)
    assert world.room() == 0


def test_a_limit_that_is_not_used_does_not_grow() -> None:
    world = World()
    for _ in range(100):
        world.round(4, answer())
    assert world.room() == INITIAL


def test_a_limit_does_not_grow_beyond_what_a_host_may_have() -> None:
    world = World(most=40)
    for _ in range(10):
        world.round(world.room(), answer())
    assert world.room() == 40


def test_a_round_without_answers_halves_once() -> None:
    world = World()
    world.round(INITIAL, NO_ANSWER)
    assert world.room() == INITIAL // 2
    world.round(INITIAL // 2, NO_ANSWER)
    assert world.room() == INITIAL // 4
    for _ in range(9):
        world.round(world.room(), NO_ANSWER)
    assert world.room() == 1


def test_after_congestion_it_grows_by_one_in_a_round() -> None:
    world = World()
    world.round(INITIAL, NO_ANSWER)
    before = world.room()
    for _ in range(4):
        world.round(world.room(), answer())
    assert before + 3 <= world.room() <= before + 4


def test_answers_that_take_longer_make_it_smaller() -> None:
    world = World()
    for _ in range(2):
        world.round(world.room(), answer(0.05))
    before = world.room()
    world.round(before, answer(0.05 * 2 + 0.09))
    assert world.room() >= before
    before = world.room()
    world.round(before, answer(0.05 * 2 + 0.2))
    assert before * 0.85 <= world.room() <= before * 0.95


def test_what_is_slow_for_long_is_usual() -> None:
    world = World()
    world.round(world.room(), answer(0.05))
    for _ in range(400):
        world.round(world.room(), answer(1.0))
    before = world.room()
    world.round(before, answer(1.0))
    assert world.room() >= before


def test_after_a_probe_it_begins_with_one_and_doubles() -> None:
    world = World()
    world.round(INITIAL, NO_ANSWER)
    world.round(1, answer(), is_probe=True)
    rooms = []
    for _ in range(5):
        rooms.append(world.room())
        world.round(rooms[-1], answer())
    assert rooms[:3] == [2, 4, 8]
    assert rooms[3:] <= [9, 10]


def test_the_end_of_a_request_says_that_a_claim_has_left_others() -> None:
    world = World()
    assert world.room() == INITIAL
    assert world.round(INITIAL - 1, answer()) == [False] * (INITIAL - 1)
    left = world.round(world.room(), answer())
    # once: the claim that follows finds all
    assert left == [True] + [False] * (len(left) - 1)


def test_a_place_whose_limit_is_set_does_not_adapt() -> None:
    world = World(fixed=frozenset([A]))
    for _ in range(INITIAL):
        world.adaptive.begun(A, is_probe=False)
    # The claim did not know it yet.
    assert world.adaptive.claims_again()
    assert not world.adaptive.claims_again()
    assert world.room() == 1000
    assert world.adaptive.changes() == {}


def test_places_are_forgotten() -> None:
    world = World()
    world.round(INITIAL, NO_ANSWER)
    world.round(INITIAL, answer(), B)
    assert world.room() < INITIAL < world.room(B)
    world.now += 11.0
    assert world.room() < INITIAL == world.room(B)
    world.now += 60.0
    assert world.room() == INITIAL


def test_many_places_are_not_all_kept() -> None:
    world = World()
    for number in range(5000):
        world.round(1, NO_ANSWER, Place(str(number), 7))
        if not number % 100:
            world.adaptive.rooms()
    assert len(world.adaptive.rooms()) <= 1101


def test_changes_are_said_once() -> None:
    world = World()
    world.round(INITIAL, NO_ANSWER)
    world.round(INITIAL, answer(), B)
    assert world.adaptive.changes() == {A: INITIAL // 2}
    assert world.adaptive.changes() == {}
    world.now += 61.0
    world.adaptive.rooms()
    assert world.adaptive.changes() == {A: 0}
