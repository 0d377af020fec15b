"""How many requests in flight are worth having.

Where servers are slow, more requests in flight are more throughput. Where the worker's own loop is
what is busy, they only wait in it, and their time runs out. The difference is whether the loop has
time to be idle: with less than a little of it, the window shrinks, else it grows.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_FLOOR = 64
# The share of time that the loop has nothing to do: below the one the window shrinks, above the
# other it grows.
_BUSY, _IDLE = 0.02, 0.10
# Seconds that a judgement needs at least.
_SPAN = 0.005


class Window:
    """The limit of requests in flight, between a floor and ``most``.

    The loop tells it when it begins and ends to wait for something to happen. ``clock`` gives
    seconds and never goes back.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self._clock = clock
        self._size = float(_FLOOR)
        self._since = clock()
        self._idle = 0.0
        self._idle_since = 0.0

    @property
    def size(self) -> int:
        """Requests that may be in flight now."""
        return max(1, min(int(self._size), self.most))

    def idle_begins(self) -> None:
        """The loop waits."""
        self._idle_since = self._clock()

    def idle_ends(self) -> None:
        """The loop goes on."""
        if self._idle_since:
            self._idle += self._clock() - self._idle_since
            self._idle_since = 0.0

    def adjust(self, in_flight: int) -> None:
        """Judge the time since the last judgement; called before each claim."""
        now = self._clock()
        span = now - self._since
        if span < _SPAN:
            return
        share = self._idle / span
        self._since, self._idle = now, 0.0
        if share < _BUSY:
            self._size = max(_FLOOR, self._size * 0.8)
        elif share > _IDLE and in_flight * 2 >= self._size:
            self._size = min(self._size * 2, self.most)
