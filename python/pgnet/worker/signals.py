"""The signals of the hub's callbacks to the worker's loop, which sleeps until one comes.

The loop takes all names at the beginning of a round. A signal that comes later in the round, while
the loop waits for the database, stays for the next round, and keeps the loop from sleeping.
"""

from __future__ import annotations

from collections.abc import Iterable

from gevent.event import Event


class Signals:
    """The names of signals that have come and are not taken yet.

    interrupt: a cancel or a stop waits in the server. stop: the worker is to end. wake: requests
    may be ready. prepared: a prepared transaction was committed, whatever was in it. reload: the
    heartbeat has something new to read.
    """

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._event = Event()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def add(self, names: Iterable[str]) -> None:
        """Signals have come: the loop goes on."""
        self._names |= set(names)
        self._event.set()

    def end_sleep(self) -> None:
        """Have the loop go on, without any signal."""
        self._event.set()

    def take(self) -> set[str]:
        """The names that have come since they were taken the last time."""
        self._event.clear()
        names, self._names = self._names, set()
        return names

    def sleep(self, seconds: float) -> None:
        """Return after some seconds, or as soon as something has come since ``take``."""
        if seconds > 0 and not self._names:
            self._event.wait(seconds)

    def await_another(self, seconds: float) -> None:
        """Return after some seconds, or when a signal comes, whatever has come before."""
        self._event.clear()
        self._event.wait(seconds)
