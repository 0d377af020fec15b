"""Wake-ups: datagrams between backends of one database, over socket files in the data directory.

A worker's backend listens in one of a few numbered slots. A committing backend sends one datagram
to the first slot that listens. A wake-up is a hint: a lost one costs time, never a request.

This module relies on PostgreSQL: the current directory of a backend is the data directory, which
only the server's own user can enter. So the paths are relative, and the limit of 107 bytes for the
path of a socket holds wherever that directory is. Base backups leave pg_stat_tmp out (the list
excludeDirContents in backup/basebackup.c). tests/database/test_wake_up.py checks slots, files that
are left over, and full queues.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterable

from pgnet.server import backend, waiters

SLOTS = 8
# The slots of runners, which wait for callbacks, stand beside those of workers.
RUNNERS = "c"
_DIRECTORY = "pg_stat_tmp"

# The signals, one byte each in a datagram.
SIGNALS = {"wake": b"w", "prepared": b"p", "reload": b"r", "callback": b"c"}
_NAMES = {code[0]: name for name, code in SIGNALS.items()}


def _path(database: int, slot: int, kind: str = "") -> str:
    return f"{_DIRECTORY}/pgnet.{database}.{kind}{slot}"


class Sender:
    """Sends signals to the workers of one database. Sending never blocks and never raises.

    database: its oid.

    Raises OSError where no socket can be made.
    """

    def __init__(self, database: int) -> None:
        self._database = database
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._paths = [_path(database, slot) for slot in range(SLOTS)]
        self._runners = [_path(database, slot, RUNNERS) for slot in range(SLOTS)]

    def send(self, signal: str, *, after: int = -1) -> bool:
        """Send to the first slot behind ``after`` that listens; returns whether there was one."""
        return any(self._send_to(path, signal) for path in self._paths[after + 1 :])

    def send_all(self, signal: str) -> None:
        """Send to every listening slot."""
        for path in self._paths:
            self._send_to(path, signal)

    def send_to_runners(self) -> None:
        """Tell those that wait for callbacks that some are due."""
        for path in self._runners:
            self._send_to(path, "callback")

    def tell(self, ended: Iterable[int]) -> None:
        """Tell those that wait for these requests that they have ended."""
        waiters.tell(self._socket, self._database, ended)

    def _send_to(self, path: str, signal: str) -> bool:
        try:
            self._socket.sendto(SIGNALS[signal], path)
        except OSError:
            # Nobody listens in this slot, or its queue is full since its worker is busy or stopped.
            return False
        return True


class Listener:
    """Listens in the first free slot of a database. kind: RUNNERS for those of runners.

    A slot belongs to the process that holds a lock on a file beside the socket. The kernel releases
    the lock when the process ends, so that a socket file that is left over is known as such.

    Raises OSError where every slot is taken, or where the directory cannot be written.
    """

    def __init__(self, database: int, kind: str = "") -> None:
        for slot in range(SLOTS):
            path = _path(database, slot, kind)
            lock = os.open(path + ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
                continue
            break
        else:
            raise OSError(f"all {SLOTS} wake-up slots of this database are taken")
        self.slot = slot
        self._lock = lock
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        umask = os.umask(0o177)
        try:
            if os.path.exists(self._path):
                os.unlink(self._path)
            self._socket.bind(self._path)
        except OSError:
            self._socket.close()
            os.close(lock)
            raise
        finally:
            os.umask(umask)

    def fileno(self) -> int:
        """The socket's descriptor, readable when a signal waits."""
        return self._socket.fileno()

    def read(self) -> set[str]:
        """Return the names of the signals that have come; does not block."""
        names: set[str] = set()
        while True:
            try:
                datagram = self._socket.recv(16)
            except BlockingIOError:
                return names
            names.update(_NAMES[code] for code in datagram if code in _NAMES)

    def close(self) -> None:
        """Stop listening and give the slot back."""
        if self._socket.fileno() < 0:
            return
        os.unlink(self._path)
        self._socket.close()
        os.close(self._lock)


# The listeners of this backend by kind. They stay bound between two calls of
# pgnet.wait_for_signals, so that signals that come in between are not lost.
_listeners: dict[str, Listener] = {}


def listener(kind: str = "") -> Listener | None:
    """This backend's listener; None where every slot is taken or the directory is not writable."""
    if kind not in _listeners:
        try:
            _listeners[kind] = Listener(backend.database_oid(), kind)
        except OSError:
            return None
    return _listeners[kind]


def close_listener(kind: str = "") -> None:
    """Give this backend's slot back."""
    found = _listeners.pop(kind, None)
    if found is not None:
        found.close()
