"""Calling a role's code in a session of somebody else, with nothing of that one's rights.

A callback runs as the role that made the request, in a session of a worker's role. SET ROLE would
not do, since the callback could undo it. PostgreSQL has the means for the same problem in VACUUM,
which runs the functions of a user's index in a session of a superuser: a security-restricted
operation. In it the server refuses SET ROLE and SET SESSION AUTHORIZATION, temporary objects,
PREPARE, DEALLOCATE, DISCARD, LISTEN, cursors WITH HOLD, and deferred triggers, which would fire
after the operation. Settings that are made in it are undone with it, search_path among them.

Advisory locks of the session stay beyond a transaction: they are released afterwards.

Time: the server's own timer cancels the callback. One that catches its cancel (PL/pgSQL's "when
query_canceled") gets a signal of the kernel's some time later, which ends the session, and cannot
be caught. Memory: the kernel refuses the process more than a bound, and the server reports that as
"out of memory".

This module relies on, in the C of PostgreSQL 15 to 18:

| symbol | header | what is called |
|---|---|---|
| GetUserIdAndSecContext, SetUserIdAndSecContext | miscadmin.h | (Oid *, int *), (Oid, int) |
| SECURITY_LOCAL_USERID_CHANGE, …_RESTRICTED_OPERATION | miscadmin.h | 1, 2 |
| NewGUCNestLevel, AtEOXact_GUC | utils/guc.h | int (void), (bool isCommit, int nestLevel) |
| enable_timeout_after, disable_timeout | utils/timeout.h | (TimeoutId, int ms), (TimeoutId, bool) |
| STATEMENT_TIMEOUT | utils/timeout.h | 3 |

None of these raises an error of the server. tests/database/callbacks/ checks what is refused.
"""

from __future__ import annotations

import contextlib
import ctypes
import resource
import signal
import time
from collections.abc import Iterator
from typing import Any

_LOCAL_USERID_CHANGE, _RESTRICTED_OPERATION = 1, 2
_STATEMENT_TIMEOUT = 3
_QUERY_CANCELED = "57014"
# Seconds after its cancel that a callback has to end.
_PATIENCE = 2.0
# The timer of the server is exact to a millisecond or so.
_EARLY = 0.05
_PAGE = resource.getpagesize()
# clockid_t and sigev_notify of <time.h> and <signal.h>.
_CLOCK_MONOTONIC, _SIGEV_SIGNAL = 1, 0

Report = tuple[str | None, str | None, str | None, bool, bool]


def call(
    plpy: Any,
    role: int,
    path: str,
    query: str,
    argument: str,
    timeout: float,
    memory: int,
    *,
    keep_locks: bool,
) -> Report:
    """Run a query as a role, and give the error that it raised, with its effects undone.

    role: an oid. path: the search_path. query: has the parameter $1, a text. timeout: seconds.
    memory: bytes beyond what the process has. keep_locks: the session has advisory locks of its
    own, so that those of the callback, which cannot be told apart, stay as well.

    Returns message, SQLSTATE and context of the error, None without one; whether it was for the
    time; whether it was a cancel from outside.
    """
    message: str | None = None
    state: str | None = None
    context: str | None = None
    began = time.monotonic()
    try:
        with _settings(plpy, path), _bounds(timeout, memory), _operation(role):
            plan = plpy.prepare(
                "select r.* from pgnet.report_call($1, $2) r", ["pg_catalog.text"] * 2
            )
            found = plpy.execute(plan, [query, argument], 1)[0]
            if found["state"] is not None:
                raise _Raised(found)
    except _Raised as error:
        message, state, context = error.message, error.state, error.context
    except plpy.SPIError as error:
        message, state = str(error), error.sqlstate or "XX000"
    except MemoryError:
        message, state = "out of memory", "53200"
    finally:
        if not keep_locks:
            plpy.execute("select pg_catalog.pg_advisory_unlock_all()")
    is_cancel = state == _QUERY_CANCELED
    timed_out = is_cancel and time.monotonic() - began >= timeout - _EARLY
    # RAISE says so in the context: it may have any SQLSTATE.
    raised = is_cancel and " RAISE" in (context or "").partition("\n")[0]
    if timed_out:
        message = f"The callback was cancelled after {timeout:g} s, the setting callback_timeout."
    return message, state, context, timed_out, is_cancel and not timed_out and not raised


class _Raised(Exception):
    """The error that a callback has raised, which its report says."""

    def __init__(self, report: Any) -> None:
        self.state: str = report["state"]
        self.context: str | None = report["context"]
        self.message = ". ".join(
            part.rstrip(".")
            for part in (report["message"], report["detail"], report["hint"])
            if part
        )


@contextlib.contextmanager
def _settings(plpy: Any, path: str) -> Iterator[None]:
    """Settings that are made within are undone at the end."""
    library = ctypes.PyDLL(None)
    library.AtEOXact_GUC.argtypes = [ctypes.c_bool, ctypes.c_int]
    library.AtEOXact_GUC.restype = None
    level = library.NewGUCNestLevel()
    try:
        plan = plpy.prepare(
            "select pg_catalog.set_config('search_path', $1, true)", ["pg_catalog.text"]
        )
        plpy.execute(plan, [path])
        yield
    finally:
        library.AtEOXact_GUC(False, level)


@contextlib.contextmanager
def _operation(role: int) -> Iterator[None]:
    """A security-restricted operation as a role."""
    library = ctypes.PyDLL(None)
    set_context = library.SetUserIdAndSecContext
    set_context.argtypes, set_context.restype = [ctypes.c_uint32, ctypes.c_int], None
    user, context = ctypes.c_uint32(), ctypes.c_int()
    library.GetUserIdAndSecContext(ctypes.byref(user), ctypes.byref(context))
    set_context(role, context.value | _LOCAL_USERID_CHANGE | _RESTRICTED_OPERATION)
    try:
        yield
    finally:
        set_context(user.value, context.value)


@contextlib.contextmanager
def _bounds(timeout: float, memory: int) -> Iterator[None]:
    """Within, the process has so much time, and so much memory beyond what it has."""
    library = ctypes.PyDLL(None)
    library.enable_timeout_after.argtypes = [ctypes.c_int, ctypes.c_int]
    library.enable_timeout_after.restype = None
    library.disable_timeout.argtypes = [ctypes.c_int, ctypes.c_bool]
    library.disable_timeout.restype = None
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bound = _data_size() + memory
    if hard != resource.RLIM_INFINITY and bound > hard:
        bound = hard
    with _terminated_after(timeout + _PATIENCE):
        resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))
        library.enable_timeout_after(_STATEMENT_TIMEOUT, int(timeout * 1000))
        try:
            yield
        finally:
            library.disable_timeout(_STATEMENT_TIMEOUT, False)
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_size() -> int:
    """About the bytes that RLIMIT_DATA counts."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[5]) * _PAGE


class _SignalEvent(ctypes.Structure):
    """struct sigevent of Linux: 64 bytes, of which these are set."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_char * 48),
    )


class _TimerSpec(ctypes.Structure):
    """struct itimerspec: an interval, and the time until the timer goes off."""

    _fields_ = (
        ("interval_seconds", ctypes.c_long),
        ("interval_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    )


@contextlib.contextmanager
def _terminated_after(seconds: float) -> Iterator[None]:
    """The process gets SIGTERM after some seconds, by a timer of the kernel's."""
    library = ctypes.CDLL(None)
    timer = ctypes.c_void_p()
    event = _SignalEvent(None, signal.SIGTERM, _SIGEV_SIGNAL, b"")
    if library.timer_create(_CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)):
        yield
        return
    spec = _TimerSpec(0, 0, int(seconds), int(seconds % 1 * 1e9))
    library.timer_settime(timer, 0, ctypes.byref(spec), None)
    try:
        yield
    finally:
        library.timer_delete(timer)
