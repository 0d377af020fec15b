"""Requests that were lost with several workers: they are attempted apart from all others, in turns.

While they have their turn, the worker claims nothing else. Before the turn, what is in flight may
end, so that a request that brings down the worker brings down few others. Both are bounded in time,
since an attempt may last for hours: what has been in flight for longer than that counts as harmless
for now, and the others go on beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

# A turn waits so long at most for a request that was in flight before it, in seconds since that one
# began. What would bring down a worker mostly does so sooner.
_PATIENCE = 10.0
# Suspects follow one another for so long; and the last of them may take so long to end.
_TURN, _LONGEST_TURN = 1.0, 10.0


class Quarantine:
    """Whose turn it is: suspects', or everybody else's. Times are of the monotonic clock."""

    def __init__(self) -> None:
        # The suspects in flight, while they have their turn.
        self.apart: set[int] = set()
        # Whether they have their turn, or wait for it to begin.
        self._is_on = False
        # When it was asked for.
        self._since = 0.0
        # When the first of this turn was claimed; infinity before that.
        self._began = math.inf
        # The others have theirs until then.
        self._not_before = 0.0

    @property
    def is_on(self) -> bool:
        """Whether nothing but suspects may be claimed."""
        return self._is_on

    def wanted(self, now: float) -> None:
        """Suspects wait in the database."""
        if not self._is_on and now >= self._not_before:
            self._is_on = True
            self._since = now
            self._began = math.inf

    def check(self, now: float) -> bool:
        """Whether the turn has just ended, because its time is over."""
        over = now >= self._began + (_LONGEST_TURN if self.apart else _TURN)
        if self._is_on and over:
            self.end(now)
            return True
        return False

    def end(self, now: float) -> None:
        """The others have their turn, for as long as they had to wait."""
        self._not_before = now + max(_TURN, now - self._since)
        self._is_on = False
        self._began = math.inf
        self.apart.clear()

    def may_claim(self, now: float, began: Iterable[float]) -> bool:
        """Whether a suspect may be claimed now. began: when each request in flight did."""
        return not self.apart and now >= self._clear_at(began)

    def next_change(self, began: Iterable[float]) -> float:
        """When ``check`` or ``may_claim`` may give another answer, if nothing ends before."""
        if not self._is_on:
            return math.inf
        return self._began + _LONGEST_TURN if self.apart else self._clear_at(began)

    @staticmethod
    def _clear_at(began: Iterable[float]) -> float:
        return max(began, default=-math.inf) + _PATIENCE

    def claimed(self, ids: set[int], now: float) -> None:
        """Suspects were claimed, and are in flight; none means that there is none to be had."""
        self.apart = ids
        self._began = min(self._began, now)
        if not ids:
            self.end(now)
