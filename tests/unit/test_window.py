"""The window of requests in flight grows where the loop has time, and shrinks where it has none."""

from __future__ import annotations

import pytest

from pgnet.worker.window import Window


class Loop:
    """A loop of a clock of our own: each round is busy for a while, then idle for a while."""

    def __init__(self, most: int = 1000) -> None:
        self.now = 100.0
        self.window = Window(most, clock=lambda: self.now)

    def round(self, busy: float, idle: float, in_flight: int) -> int:
        self.now += busy
        self.window.idle_begins()
        self.now += idle
        self.window.idle_ends()
        self.window.adjust(in_flight)
        return self.window.size


def test_it_grows_while_servers_are_slow() -> None:
    loop = Loop()
    sizes = [loop.round(0.001, 0.009, loop.window.size) for _ in range(6)]
    assert sizes == [128, 256, 512, 1000, 1000, 1000]


def test_it_shrinks_to_a_floor_while_the_loop_is_busy() -> None:
    loop = Loop()
    for _ in range(6):
        loop.round(0.001, 0.009, loop.window.size)
    sizes = [loop.round(0.01, 0.0, loop.window.size) for _ in range(20)]
    assert sizes[0] == 800
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 64


def test_it_does_not_grow_beyond_what_is_used() -> None:
    loop = Loop()
    assert [loop.round(0.001, 0.009, 10) for _ in range(5)] == [64] * 5


def test_a_little_idle_time_leaves_it_as_it_is() -> None:
    loop = Loop()
    loop.round(0.001, 0.009, 64)
    assert [loop.round(0.0095, 0.0005, 128) for _ in range(5)] == [128] * 5


def test_a_moment_is_no_judgement() -> None:
    loop = Loop()
    assert loop.round(0.0001, 0.0009, 64) == 64


@pytest.mark.parametrize("most", [1, 5, 64])
def test_it_keeps_below_the_limit(most: int) -> None:
    loop = Loop(most)
    for _ in range(5):
        assert loop.round(0.001, 0.009, most) == most
