"""TLS within TLS: a request for https by a proxy that is itself spoken to by TLS.

libcurl with GnuTLS may have read the whole answer from the socket into the outer TLS, and then wait
for the socket, which has nothing more to give. So libcurl is told now and then that these sockets
can be read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pgnet.wire.curl.easy import Easy

# Seconds: an answer that was read ahead is found this late at most.
_POLL_INTERVAL = 0.02


class InnerTls:
    """The requests that use TLS within TLS; as long as there are any, `poll` is called regularly.

    loop: gevent's. poll: has libcurl read from the sockets of these requests.
    users: the handles of these requests.
    """

    def __init__(self, loop: Any, poll: Callable[[], None]) -> None:
        self._loop = loop
        self._poll = poll
        self.users: set[Easy] = set()
        self._timer = loop.timer(0.0)

    def add(self, easy: Easy) -> None:
        """A request begins that uses TLS within TLS."""
        self.users.add(easy)
        if len(self.users) == 1:
            self._poll_later()

    def discard(self, easy: Easy) -> None:
        """A request has ended."""
        self.users.discard(easy)

    def close(self) -> None:
        """Release the timer."""
        self._timer.close()

    def _poll_later(self) -> None:
        self._timer.close()
        self._timer = self._loop.timer(_POLL_INTERVAL)
        self._timer.start(self._on_time, update=True)

    def _on_time(self) -> None:
        self._poll()
        if self.users:
            self._poll_later()
