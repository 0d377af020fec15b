"""Registering with the database, at the beginning and whenever the connection was lost."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence

from pgnet.outbox import Outbox, OutboxError, OutboxFailed, OutboxRefused, OutboxUnregistered
from pgnet.worker.signals import Signals

log = logging.getLogger("pgnet.worker")

# Seconds until the first try again, and until a later one at the longest. It is well below the
# setting rescue_after: others take over what a worker has in flight that stays away.
_FIRST, _LONGEST = 0.1, 1.0
# The same where the database answers with an error.
_LONGEST_REFUSED = 5.0


def register(
    outbox: Outbox,
    owned: Callable[[], Sequence[int]],
    signals: Signals,
    *,
    reason: OutboxError | None = None,
    give_up_at: float = math.inf,
) -> bool | None:
    """Register the worker with the database, however long it takes.

    owned: the requests that are this worker's, as it says. signals: a stop ends the trying, unless
    there is a time to give up at, by the monotonic clock. reason: why it is to be done again.

    Returns whether the database knows the worker as the same one as before, and None where it was
    given up. Raises OutboxRefused.
    """
    pause, logged = _FIRST, ""
    was_absent = isinstance(reason, OutboxUnregistered)
    if was_absent:
        log.warning("the extension pgnet is gone, or was created again: %s", reason)
    elif reason is not None:
        log.warning("the database is out of reach: %s", reason)
    while time.monotonic() < give_up_at and (give_up_at < math.inf or "stop" not in signals):
        try:
            same = outbox.connect(owned())
        except OutboxRefused:
            raise
        except OutboxError as error:
            # The log says already that the extension is absent.
            is_logged = was_absent and isinstance(error, OutboxUnregistered)
            if str(error) != logged and not is_logged:
                logged = str(error)
                log.warning("waiting for the database: %s", logged)
            signals.await_another(pause)
            longest = _LONGEST_REFUSED if isinstance(error, OutboxFailed) else _LONGEST
            pause = min(pause * 1.6, longest)
        else:
            if was_absent:
                log.warning("the extension pgnet is back, and served")
            elif logged:
                log.warning("connected")
            return same
    return None
