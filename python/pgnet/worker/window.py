"""How many requests in flight are worth having.

Where servers are slow, more requests in flight give more throughput. Where the worker's own loop is
busy, they only wait in it, and their time runs out. What tells the two apart is how much time the
loop is idle: the window shrinks where that is nearly none, and grows where there is some.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_FLOOR = 64
# The part of its time that the loop is idle: below the first the window shrinks, above the second
# it grows.
_BUSY, _IDLE = 0.02, 0.10
# The shortest time that is judged, in seconds.
_SPAN = 0.005


class Window:
    """The limit of requests in flight, between a floor and ``most``.

    The hub's loop tells it when it begins to wait for events, and when it ends. clock: gives
    seconds, and never goes back.
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
        """The loop begins to wait."""
        self._idle_since = self._clock()

    def idle_ends(self) -> None:
        """The loop has waited."""
        if self._idle_since:
            self._idle += self._clock() - self._idle_since
            self._idle_since = 0.0

    def adjust(self, in_flight: int) -> None:
        """Judge the time since the last judgement. Called before each claim."""
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
