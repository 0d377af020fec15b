"""Times at which requests fall due, so that a worker is to claim."""

from __future__ import annotations

import heapq
import math
from typing import Final

# However many requests fall due, it rings no more often than this, in seconds.
TICK: Final = 0.02


class Alarm:
    """Rings at each time it is set to, or up to a tick later.

    Times are in seconds of one clock. It rings once for all times within one tick, so that what it
    keeps is bounded by how far ahead it is set.
    """

    def __init__(self) -> None:
        self._ticks: list[int] = []
        self._known: set[int] = set()

    @property
    def next(self) -> float:
        """When it rings next; infinity where it is not set."""
        return self._ticks[0] * TICK if self._ticks else math.inf

    def set(self, at: float) -> None:
        """Have the alarm ring at this time, too."""
        tick = math.ceil(at / TICK)
        if tick not in self._known:
            self._known.add(tick)
            heapq.heappush(self._ticks, tick)

    def rings(self, now: float) -> bool:
        """Whether a time has come. It does not ring for that time again."""
        rang = False
        while self.next <= now:
            self._known.discard(heapq.heappop(self._ticks))
            rang = True
        return rang
