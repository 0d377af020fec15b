"""When the worker's heartbeat is due, and which of its duties fail."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from pgnet.worker.backoff import Backoff

log = logging.getLogger("pgnet.worker")

# A heartbeat that a signal asks for comes no sooner after the last one, in seconds: any role may
# send such a signal, with each of its commits.
_PAUSE = 0.05
# The pause after a heartbeat is this many times as long as the heartbeat itself: it takes a fifth
# of the worker's time at most.
_REST = 4


class Heartbeat:
    """The schedule of heartbeats, and the duties that failed in the last one.

    Times are of the monotonic clock.

    due_at: when the next one is due. backoff: of a heartbeat that failed as a whole.
    """

    def __init__(self) -> None:
        self.due_at = 0.0
        self.backoff = Backoff("the heartbeat")
        self._ended = 0.0
        self._pause = _PAUSE
        # The database's message for each duty that failed in the last heartbeat.
        self._faults: Mapping[str, str] = {}

    def no_later_than(self, at: float) -> None:
        """The next heartbeat is due at this time, if not sooner."""
        self.due_at = min(self.due_at, at)

    def asked_for(self) -> None:
        """A signal asks for a heartbeat: it is due a pause after the end of the last one."""
        self.no_later_than(self._ended + self._pause)

    def done(self, began: float, ended: float, next_in: float) -> None:
        """A heartbeat has ended; the next one is due after ``next_in`` seconds."""
        self._ended = ended
        self._pause = max(_PAUSE, _REST * (ended - began))
        self.due_at = ended + next_in

    def log_faults(self, faults: Mapping[str, str]) -> None:
        """Log once of each duty that it fails, and once that it works again."""
        for duty in self._faults.keys() | faults.keys():
            if duty not in faults:
                log.warning("%s works again", duty)
            elif duty not in self._faults:
                log.warning("%s fails, and is tried again: %s", duty, faults[duty])
        self._faults = faults
