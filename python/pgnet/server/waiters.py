"""Sessions that wait for a request to end: each has a socket file, to which the end is told.

A waiting backend binds a datagram socket whose file is named by the database, the request and the
process. The commit that ends requests lists the directory, and sends a datagram to those that wait
for one of them. The directory is there while somebody waits, and no longer: so what records
outcomes asks for the directory, and hands over the ids only where it is there.

As with wake-ups, a datagram is a hint, and the table is the truth. A waiter binds its socket, looks
at the table, and only then waits. What was recorded before it had its socket, and is committed
after it has looked, it is not told of: it looks again after a moment, and then ever more seldom, at
last once a second.

The files stand in pg_stat_tmp, for the reasons that wake_up.py gives. A backend that is killed
leaves its file behind: others remove it, since the process is gone.
tests/database/responses/test_waiting.py checks it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterable

# pgnet.store_outcomes asks for it.
DIRECTORY = "pg_stat_tmp/pgnet.waiting"
# A backend looks for files of dead processes this often, in seconds.
_TIDY_INTERVAL = 10.0
# Another waiter may remove the directory between its making and the bind.
_ATTEMPTS = 20

_tidied = -_TIDY_INTERVAL


class Waiter:
    """Listens for the end of one request, until it is closed.

    database: the oid of this backend's. Raises OSError where the socket cannot be made.
    """

    def __init__(self, database: int, request_id: int) -> None:
        self.request_id = request_id
        self._path = f"{DIRECTORY}/{database}.{request_id}.{os.getpid()}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        umask = os.umask(0o077)
        try:
            self._bind()
        except OSError:
            self._socket.close()
            raise
        finally:
            os.umask(umask)

    def _bind(self) -> None:
        for attempt in range(_ATTEMPTS):
            os.umask(0o077)
            with contextlib.suppress(FileExistsError):
                os.mkdir(DIRECTORY)
            os.umask(0o177)
            with contextlib.suppress(FileNotFoundError):
                # A killed backend with the same process id has left it.
                os.unlink(self._path)
            try:
                self._socket.bind(self._path)
            except FileNotFoundError:
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                return

    def fileno(self) -> int:
        """The socket's descriptor, readable when the end was told."""
        return self._socket.fileno()

    def read(self) -> set[str]:
        """Take what has come; returns "end" where something has."""
        try:
            while self._socket.recv(16):
                pass
        except OSError:
            pass
        return {"end"}

    def close(self) -> None:
        """Stop listening, and remove the file. Never raises."""
        _remove(self._path)
        self._socket.close()


def tell(sender: socket.socket, database: int, ended: Iterable[int]) -> None:
    """Tell those that wait for one of these requests that it has ended. Never blocks or raises.

    sender: a datagram socket that does not block.
    """
    try:
        names = os.listdir(DIRECTORY)
    except OSError:
        return
    ids = set(ended)
    for name in names:
        own, _, rest = name.partition(".")
        request_id = rest.partition(".")[0]
        if own != str(database) or not request_id.removeprefix("-").isdecimal():
            continue
        if int(request_id) in ids:
            with contextlib.suppress(OSError):
                # The queue of a waiter that has not read what came before may be full.
                sender.sendto(b"e", f"{DIRECTORY}/{name}")
    _tidy(names)


def _tidy(names: Iterable[str]) -> None:
    """Remove the files of processes that are gone, once in a while."""
    global _tidied
    if time.monotonic() < _tidied + _TIDY_INTERVAL:
        return
    _tidied = time.monotonic()
    for name in names:
        process = name.rpartition(".")[2]
        if not process.isdecimal():
            continue
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            _remove(f"{DIRECTORY}/{name}")
        except OSError:
            continue


def _remove(path: str) -> None:
    """Remove a file, and the directory where it was the last one."""
    with contextlib.suppress(OSError):
        os.unlink(path)
    with contextlib.suppress(OSError):
        os.rmdir(DIRECTORY)
