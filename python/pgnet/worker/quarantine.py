"""Requests in quarantine: they were lost with several workers, and are attempted apart from others.

A request that brings down its worker takes with it whatever else the worker has in flight. So a
worker that hears of such suspects begins a phase: it claims nothing but suspects, one at a time.
Before the first one, what is in flight may end. After the phase the others have as long as they had
to wait.

Both waits are bounded, since an attempt may last for hours. A request that has been in flight for
longer than the bound counts as harmless: what would bring down a worker mostly does so sooner.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

# The first suspect waits for a request until that has been in flight for so many seconds.
_PATIENCE = 10.0
# Suspects follow one another for so many seconds; and the last one may take so many to end.
_PHASE, _LONGEST_PHASE = 1.0, 10.0


class Quarantine:
    """Which requests may be claimed: suspects, or all others. Times are of the monotonic clock.

    in_flight: the suspects that are attempted now.
    """

    def __init__(self) -> None:
        self.in_flight: set[int] = set()
        self._is_on = False
        # When the phase was asked for, and when its first suspect was claimed; infinity before.
        self._asked_at = 0.0
        self._began = math.inf
        # All other requests may be claimed until then.
        self._not_before = 0.0

    @property
    def is_on(self) -> bool:
        """Whether nothing but suspects may be claimed: in a phase, and while one is to begin."""
        return self._is_on

    def wanted(self, now: float) -> None:
        """Suspects wait in the database."""
        if not self._is_on and now >= self._not_before:
            self._is_on = True
            self._asked_at = now
            self._began = math.inf

    def phase_ended(self, now: float) -> bool:
        """End the phase, if its time is over; gives whether it was ended."""
        over = now >= self._began + (_LONGEST_PHASE if self.in_flight else _PHASE)
        if self._is_on and over:
            self.end(now)
            return True
        return False

    def end(self, now: float) -> None:
        """End the phase: all other requests may be claimed, for as long as they had to wait."""
        self._not_before = now + max(_PHASE, now - self._asked_at)
        self._is_on = False
        self._began = math.inf
        self.in_flight.clear()

    def may_claim(self, now: float, begins: Iterable[float]) -> bool:
        """Whether a suspect may be claimed now. begins: of all requests in flight, when."""
        return not self.in_flight and now >= self._clear_at(begins)

    def next_change(self, begins: Iterable[float]) -> float:
        """When ``phase_ended`` or ``may_claim`` may change, if nothing ends before."""
        if not self._is_on:
            return math.inf
        return self._began + _LONGEST_PHASE if self.in_flight else self._clear_at(begins)

    @staticmethod
    def _clear_at(begins: Iterable[float]) -> float:
        return max(begins, default=-math.inf) + _PATIENCE

    def claimed(self, ids: set[int], now: float) -> None:
        """These suspects were claimed and are in flight; no ids: the phase ends."""
        self.in_flight = ids
        self._began = min(self._began, now)
        if not ids:
            self.end(now)
