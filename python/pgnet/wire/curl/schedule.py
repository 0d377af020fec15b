"""When libcurl is called next: its one timer, and the turns of gevent's loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Schedule:
    """Calls `act` when libcurl asks for it (CURLMOPT_TIMERFUNCTION), from gevent's loop.

    libcurl moves its timer with every request, and most deadlines never come due. So gevent's timer
    is left alone as long as it comes no later than libcurl's: when it fires it looks again.

    acting: whether libcurl is being called just now.
    """

    def __init__(self, loop: Any, act: Callable[[], None]) -> None:
        self._loop = loop
        self._act = act
        self._timer = loop.timer(0.0)
        self._again = loop.timer(0.0)
        # By time.monotonic: when gevent's timer fires, and when libcurl wants to be called.
        self._armed: float | None = None
        self._due: float | None = None
        self._is_scheduled = False
        self.acting = False

    def on_timer(self, milliseconds: int) -> None:
        """CURLMOPT_TIMERFUNCTION: libcurl says when it wants to be called; -1 is never."""
        if milliseconds < 0:
            self._due = None
        elif milliseconds == 0:
            self.schedule_action()
        else:
            due = time.monotonic() + milliseconds / 1000
            self._due = due
            if self._armed is None or due < self._armed:
                self._arm(due)

    def schedule_action(self) -> None:
        """Call `act` in the next round of the loop."""
        if self._is_scheduled:
            return
        self._is_scheduled = True
        if self.acting:
            # libcurl asks for another call while it is called. Everybody else comes first: a timer
            # fires after the loop has looked at all sockets, a callback would come before.
            self._again.close()
            self._again = self._loop.timer(0.0)
            self._again.start(self._on_round)
        else:
            self._loop.run_callback(self._on_round)

    def close(self) -> None:
        """Release the timers."""
        self._timer.close()
        self._again.close()

    def _on_round(self) -> None:
        self._is_scheduled = False
        self._act()

    def _arm(self, due: float) -> None:
        self._timer.close()
        self._timer = self._loop.timer(max(due - time.monotonic(), 0.001))
        self._timer.start(self._on_alarm, update=True)
        self._armed = due

    def _on_alarm(self) -> None:
        self._armed = None
        if self._due is None:
            return
        if self._due - time.monotonic() > 0.001:
            self._arm(self._due)
            return
        self._due = None
        self.schedule_action()
