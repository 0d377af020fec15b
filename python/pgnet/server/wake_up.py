"""Wake-ups: datagrams between backends of one database, over socket files below the data directory.

A worker's backend listens in one of a few numbered slots; a committing backend sends one datagram
to the first slot that listens. A wake-up is a hint: one that is lost costs time, never a request.

Runs inside backends only: their current directory is the data directory, and only the server's own
user can enter it. The paths are relative, so the limit of 107 bytes for a socket's path holds
wherever that directory is.
"""

from __future__ import annotations

import fcntl
import os
import socket

from pgnet.server import backend

SLOTS = 8
# Base backups leave this directory out.
_DIRECTORY = "pg_stat_tmp"

# The signals, one byte each on the wire.
SIGNALS = {"wake": b"w", "prepared": b"p", "reload": b"r"}
_NAMES = {code[0]: name for name, code in SIGNALS.items()}


def _path(database: int, slot: int) -> str:
    return f"{_DIRECTORY}/pgnet.{database}.{slot}"


class Sender:
    """Sends signals to the workers of one database. Never blocks, never raises when sending.

    ``database`` is the database's oid. Raises OSError where no socket can be made.
    """

    def __init__(self, database: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._paths = [_path(database, slot) for slot in range(SLOTS)]

    def send(self, signal: str, *, after: int = -1) -> bool:
        """Send to the first listening slot behind ``after``; whether there was one."""
        return any(self._send_to(path, signal) for path in self._paths[after + 1 :])

    def send_all(self, signal: str) -> None:
        """Send to every listening slot."""
        for path in self._paths:
            self._send_to(path, signal)

    def _send_to(self, path: str, signal: str) -> bool:
        try:
            self._socket.sendto(SIGNALS[signal], path)
        except OSError:
            # Nobody listens here; or its queue is full, it is busy or stopped: the next may help.
            return False
        return True


class Listener:
    """Listens in the first free slot of a database.

    A lock on a file beside the socket says who owns a slot: the kernel gives it back when its
    owner dies, so that a stale socket file is never mistaken for a living worker's.

    Raises OSError where every slot is taken or the directory cannot be written.
    """

    def __init__(self, database: int) -> None:
        for slot in range(SLOTS):
            lock = os.open(
                _path(database, slot) + ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600
            )
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
        self._path = _path(database, slot)
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
        """The names of the signals that have come; does not block."""
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


# The listener of this backend: it stays bound between two calls of pgnet.wait_for_signals, so that
# what comes in between is not lost.
_listener: Listener | None = None


def listener() -> Listener | None:
    """This backend's listener; None where every slot is taken or the directory is not writable."""
    global _listener
    if _listener is None:
        try:
            _listener = Listener(backend.database_oid())
        except OSError:
            return None
    return _listener


def close_listener() -> None:
    """Give this backend's slot back."""
    global _listener
    if _listener is not None:
        _listener.close()
        _listener = None
