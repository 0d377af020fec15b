"""What is tried again after a failure: when, and what the log says of it."""

from __future__ import annotations

import logging
import math
import time

from pgnet.outbox import OutboxFailed

log = logging.getLogger("pgnet.worker")

# Seconds until the first try again; until a later one at the longest; the same where the failure is
# one of a moment, such as a lock that another session holds.
_FIRST, _LONGEST, _LONGEST_BRIEF = 0.1, 5.0, 1.0
# Seconds that a failure of a moment must last before the log has it.
_PATIENCE = 2.0


class Backoff:
    """One thing that the worker does again and again, such as "claiming".

    The log has a line when it begins to fail, one when it fails for another reason, and one when it
    works again.
    """

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._pause = _FIRST
        self._since = math.inf
        self._logged = ""
        # When it may be tried again, by the monotonic clock.
        self.retry_at = 0.0

    @property
    def failing(self) -> bool:
        """Whether it failed the last time."""
        return self._since < math.inf

    def failed(self, error: OutboxFailed, *, differently: bool = False) -> None:
        """It has failed: not before ``retry_at`` again.

        differently: it is not the same that is tried next, but a part of it.
        """
        now = time.monotonic()
        self._since = min(self._since, now)
        self.retry_at = now + self._pause
        if not differently:
            self._pause = min(self._pause * 2, _LONGEST_BRIEF if error.brief else _LONGEST)
        if str(error) != self._logged and not (error.brief and now < self._since + _PATIENCE):
            self._logged = str(error)
            log.warning("%s fails, and is tried again: %s", self._doing, error)

    def succeeded(self) -> None:
        """It has worked."""
        if self.failing:
            if self._logged:
                log.warning("%s works again", self._doing)
            self._pause, self._since, self._logged = _FIRST, math.inf, ""
            self.retry_at = 0.0
