"""The few things of the server's own process that Python has to see, through ctypes.

Usable inside a PostgreSQL backend only. Nothing here runs SQL or allocates in PostgreSQL.

This module relies on, in the C of PostgreSQL 15 to 18:

| symbol | header | what is read |
|---|---|---|
| MyDatabaseId | miscadmin.h | an Oid, 32 bits |
| InterruptPending | miscadmin.h | a sig_atomic_t, an int on all platforms |
| postmaster_alive_fds | postmaster/postmaster.h | int[2]; the first one is watched |
| MyProcPort | miscadmin.h, libpq/libpq-be.h | a Port *; its first member is the client's socket |
| RegisterXactCallback | access/xact.h | (XactCallback, void *); XactEvent's numbers |

How it is checked: net.check() registers the callback, and says where that fails: workers then poll.
The tests run on each version of PostgreSQL. tests/database/test_wake_up.py commits, rolls back and
prepares; tests/database/test_worker_backend.py cancels, terminates, and kills the postmaster.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

# The first numbers of XactEvent.
COMMIT, PARALLEL_COMMIT, ABORT, PARALLEL_ABORT, PREPARE = range(5)

_XactCallback = ctypes.PYFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p)


def database_oid() -> int:
    """The oid of the database that this backend is connected to."""
    return ctypes.c_uint32.in_dll(ctypes.PyDLL(None), "MyDatabaseId").value


def interrupt_flag() -> ctypes.c_int:
    """The server's InterruptPending: its ``value`` is true once a cancel or a stop has come.

    The server acts upon it at the next statement, or when the Python code returns.
    """
    return ctypes.c_int.in_dll(ctypes.PyDLL(None), "InterruptPending")


def postmaster_fd() -> int:
    """A file descriptor that becomes readable when the postmaster dies."""
    return (ctypes.c_int * 2).in_dll(ctypes.PyDLL(None), "postmaster_alive_fds")[0]


def client_fd() -> int:
    """The socket of this backend's client; -1 where it has none, as in a background worker."""
    port = ctypes.c_void_p.in_dll(ctypes.PyDLL(None), "MyProcPort").value
    return ctypes.c_int.from_address(port).value if port else -1


def register_xact_callback(callback: Callable[[int], None]) -> object:
    """Have the server call ``callback(event)`` at the end of each transaction of this backend.

    The callback must not raise, run SQL or allocate in PostgreSQL. The caller must keep what is
    returned for the life of the process: the server points to it, and would crash without it.

    Raises OSError, MemoryError or AttributeError where the host refuses closures, or has no such
    symbol.
    """
    closure = _XactCallback(lambda event, _arg: callback(event))
    register = ctypes.PyDLL(None).RegisterXactCallback
    register.argtypes = [_XactCallback, ctypes.c_void_p]
    register.restype = None
    register(closure, None)
    return closure
