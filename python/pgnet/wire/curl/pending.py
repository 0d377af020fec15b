"""Requests that wait for the connection of another request to the same server.

With CURLOPT_PIPEWAIT libcurl makes one connection, and has other requests to that server wait for
it: it may turn out to speak HTTP/2, and then serves them all. libcurl forgets their deadlines
meanwhile, and a connection that hangs would hold them all up. So a request waits for a second at
most, and then makes a connection of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pycurl

from pgnet.wire.curl.easy import Easy
from pgnet.wire.transfer import Transfer
from pgnet.wire.wire_error import Code

# Seconds that a request waits for the connection of another one to the same server.
_LONGEST_WAIT = 1.0


class _Waiting(NamedTuple):
    """A transfer that waits for a connection, and until when (time.monotonic)."""

    easy: Easy
    transfer: Transfer
    until: float


class Pending:
    """The requests that wait.

    multi: libcurl's handle. end: ends the transfer of an easy handle with one of libcurl's codes.
    started: requests that may share a connection, and were given to libcurl since `look`.
    """

    def __init__(
        self, loop: Any, multi: pycurl.CurlMulti, end: Callable[[pycurl.Curl, int, str], None]
    ) -> None:
        self._loop = loop
        self._multi = multi
        self._end = end
        self.started: list[Easy] = []
        self._waiting: list[_Waiting] = []
        self._timer = loop.timer(0.0)
        # When the timer fires, by time.monotonic.
        self._due = 0.0

    def look(self) -> None:
        """Find out which of the started requests wait, now that libcurl has begun them."""
        now = time.monotonic()
        for easy in self.started:
            transfer = easy.transfer
            if transfer is not None and easy.is_pending:
                until = min(now + _LONGEST_WAIT, transfer.deadline)
                self._waiting.append(_Waiting(easy, transfer, until))
                if len(self._waiting) == 1 or until < self._due:
                    self._wake_at(until)
        self.started.clear()

    def close(self) -> None:
        """Release the timer."""
        self._timer.close()

    def _wake_at(self, due: float) -> None:
        self._due = due
        self._timer.close()
        self._timer = self._loop.timer(max(due - time.monotonic(), 0.0))
        self._timer.start(self._on_time, update=True)

    def _on_time(self) -> None:
        """Have requests that have waited long enough make connections of their own, or end."""
        now = time.monotonic()
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            easy, transfer = each.easy, each.transfer
            if easy.transfer is not transfer or not easy.is_pending:
                continue
            if each.until > now:
                self._waiting.append(each)
            elif transfer.deadline <= now:
                self._end(easy.curl, Code.OPERATION_TIMEDOUT, "")
            else:
                # libcurl asks for a connection anew only where the handle is added anew.
                self._multi.remove_handle(easy.curl)
                easy.options.wait_for_shared(False)
                easy.options.limit_time(transfer)
                self._multi.add_handle(easy.curl)
        if self._waiting:
            self._wake_at(min(each.until for each in self._waiting))
