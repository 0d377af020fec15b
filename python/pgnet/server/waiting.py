"""Waiting in a backend: a signal, a cancel, a stop, the end of the postmaster or the client end it.

This module relies on the following. PostgreSQL's handlers of SIGINT and SIGTERM set
InterruptPending, and the kernel ends poll(2) with EINTR after any handler, also where it was
installed with SA_RESTART, as the server's are. When the postmaster dies, its end of a pipe is
closed, and ours becomes readable. When the client goes, its socket shows POLLRDHUP.
tests/database/test_worker_backend.py checks it: test_cancel_and_terminate_take_effect_at_once,
test_it_does_not_outlive_the_postmaster.
"""

from __future__ import annotations

import ctypes
import select
import time
from typing import TYPE_CHECKING

from pgnet.server.unpatched import poll as python_poll

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgnet.server.waiters import Waiter
    from pgnet.server.wake_up import Listener

_POLLIN = 0x001
# Milliseconds of one poll. A signal that comes just before it begins does not end it, and is seen
# afterwards.
_SLICE = 400


class _PollFd(ctypes.Structure):
    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


def is_gone(client_fd: int) -> bool:
    """Whether the peer of a socket, or of a pipe, has closed it; false for -1."""
    if client_fd < 0:
        return False
    poll = python_poll()
    poll.register(client_fd, select.POLLRDHUP)
    return bool(poll.poll(0))


def wait(
    listeners: Sequence[Listener | Waiter],
    interrupt: ctypes.c_int,
    postmaster_fd: int,
    client_fd: int,
    timeout: float,
) -> set[str]:
    """Wait for what a listener hears, for at most ``timeout`` seconds; returns its names.

    The wait also ends, perhaps with no name, when the server's ``interrupt`` flag is set, when the
    postmaster has died, and when the client has gone (-1: it is not watched): a session without a
    client would take the wake-ups of others. libc's poll is called directly. Python's own goes on
    after a signal (PEP 475), and a cancel would have to wait for the timeout.
    """
    poll = ctypes.CDLL(None).poll
    poll.argtypes = [ctypes.POINTER(_PollFd), ctypes.c_ulong, ctypes.c_int]
    watched = (_PollFd * (2 + len(listeners)))(
        _PollFd(postmaster_fd, _POLLIN, 0),
        _PollFd(client_fd, select.POLLRDHUP, 0),
        *(_PollFd(listener.fileno(), _POLLIN, 0) for listener in listeners),
    )
    deadline = time.monotonic() + timeout
    while not interrupt.value:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            break
        poll(watched, len(watched), min(_SLICE, int(remaining * 1000) + 1))
        if watched[0].revents or watched[1].revents:
            break
        signals = {
            signal
            for listener, entry in zip(listeners, watched[2:], strict=True)
            if entry.revents
            for signal in listener.read()
        }
        if signals:
            return signals
    return set()
