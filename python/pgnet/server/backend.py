"""The few things of the server's own process that Python has to see, through ctypes.

Only usable inside a PostgreSQL backend. Nothing here runs SQL or allocates in PostgreSQL.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

# XactEvent, src/include/access/xact.h: the same numbers in PostgreSQL 15 to 18.
COMMIT, PARALLEL_COMMIT, ABORT, PARALLEL_ABORT, PREPARE = range(5)

_XactCallback = ctypes.PYFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p)


def database_oid() -> int:
    """The oid of the database that this backend is connected to."""
    return ctypes.c_uint32.in_dll(ctypes.PyDLL(None), "MyDatabaseId").value


def interrupt_flag() -> ctypes.c_int:
    """The server's InterruptPending: its ``value`` is true once a cancel or a stop has come.

    What is pending is acted upon by the next statement, or when the Python code returns.
    """
    return ctypes.c_int.in_dll(ctypes.PyDLL(None), "InterruptPending")


def postmaster_fd() -> int:
    """A file descriptor that becomes readable when the postmaster dies."""
    return (ctypes.c_int * 2).in_dll(ctypes.PyDLL(None), "postmaster_alive_fds")[0]


def client_fd() -> int:
    """The socket of this backend's client; -1 where it has none, as a background worker.

    It is the first member of MyProcPort, src/include/libpq/libpq-be.h, in PostgreSQL 15 to 18.
    """
    port = ctypes.c_void_p.in_dll(ctypes.PyDLL(None), "MyProcPort").value
    return ctypes.c_int.from_address(port).value if port else -1


def register_xact_callback(callback: Callable[[int], None]) -> object:
    """Have the server call ``callback(event)`` at the end of each transaction of this backend.

    The callback must not raise, run SQL or allocate in PostgreSQL. What is returned must be kept
    for the life of the process: there is no collecting what the server points to.

    Raises OSError, MemoryError or AttributeError where the host refuses closures or the symbol.
    """
    closure = _XactCallback(lambda event, _arg: callback(event))
    register = ctypes.PyDLL(None).RegisterXactCallback
    register.argtypes = [_XactCallback, ctypes.c_void_p]
    register.restype = None
    register(closure, None)
    return closure
