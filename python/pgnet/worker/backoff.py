"""When a task that failed is tried again, and what the log says of it."""

from __future__ import annotations

import logging
import math
import time

from pgnet.outbox import OutboxFailed

log = logging.getLogger("pgnet.worker")

# Seconds until the task is tried again: the first time, at the longest, and at the longest after an
# error whose cause may be gone in a moment, such as a lock that another session holds.
_FIRST, _LONGEST, _LONGEST_BRIEF = 0.1, 5.0, 1.0
# Seconds that such an error must last before it is logged.
_PATIENCE = 2.0


class Backoff:
    """A task that the worker does again and again: whether it fails, and when it is tried again.

    The log has a line when it begins to fail, when it fails for another reason, and when it works
    again. what: names it in the log, such as "claiming". retry_at: when it may be tried, by the
    monotonic clock.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._pause = _FIRST
        self._since = math.inf
        self._logged = ""
        self.retry_at = 0.0

    @property
    def failing(self) -> bool:
        """Whether the task failed the last time."""
        return self._since < math.inf

    def failed(self, error: OutboxFailed, *, retry_differs: bool = False) -> None:
        """The task has failed, and may not be tried before ``retry_at``.

        retry_differs: what is tried next is not the same but a part of it, so the pause does not
        grow.
        """
        now = time.monotonic()
        self._since = min(self._since, now)
        self.retry_at = now + self._pause
        if not retry_differs:
            self._pause = min(self._pause * 2, _LONGEST_BRIEF if error.brief else _LONGEST)
        if str(error) != self._logged and not (error.brief and now < self._since + _PATIENCE):
            self._logged = str(error)
            log.warning("%s fails, and is tried again: %s", self._what, error)

    def succeeded(self) -> None:
        """The task has succeeded: the next failure is a first one."""
        if self.failing:
            if self._logged:
                log.warning("%s works again", self._what)
            self._pause, self._since, self._logged = _FIRST, math.inf, ""
            self.retry_at = 0.0
