"""The worker in a database session: what net.work() and net.drain() run."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from pgnet.outbox import SESSION_SETTINGS, OutboxFailed, OutboxRefused
from pgnet.outbox.spi import REFUSED, TEXT, SpiOutbox
from pgnet.outbox.spi_runner import SpiRunner
from pgnet.server import backend, waiting, wake_up
from pgnet.worker import open_files
from pgnet.worker.callbacks import CallbackCancelled, SessionCallbacks, run_due
from pgnet.worker.loop import Worker

_INVALID_TRANSACTION_TERMINATION, _QUERY_CANCELED = "2D000", "57014"
_CANCELLED = "canceling statement due to user request"
# How often net.run_callbacks looks unasked, with a slot for signals and without one, and how soon
# after a lock of another session was in its way, in seconds.
_POLL_INTERVAL, _POLL_WITHOUT_SLOT, _BRIEF_PAUSE = 10.0, 1.0, 0.1


def run(plpy: Any, max_runtime: str | None, *, until_idle: bool) -> bool:
    """Run a worker in this session: what net.work and net.drain do.

    max_runtime: an interval as text, None for no limit. until_idle: end when nothing is due.

    Returns False inside a transaction block, where a procedure cannot commit: nothing is done.
    Raises what a cancel raises.
    """
    runtime = _runtime(plpy, max_runtime)
    if runtime is None:
        return False
    open_files.raise_limit()
    before = _set(plpy, {**SESSION_SETTINGS, "application_name": "pgnet worker"})
    outbox = SpiOutbox(plpy)
    try:
        Worker(
            outbox,
            max_runtime=runtime.seconds,
            until_idle=until_idle,
            grace=runtime.grace,
            callbacks=SessionCallbacks(lambda: SpiRunner(plpy)) if until_idle else None,
        ).run()
    except OutboxRefused as error:
        plpy.error(str(error), sqlstate=REFUSED)
    except CallbackCancelled:
        plpy.error(_CANCELLED, sqlstate=_QUERY_CANCELED)
    finally:
        outbox.stop_listening()
        _set(plpy, before)
    return True


def run_callbacks(plpy: Any, max_runtime: str | None) -> bool:
    """Run callbacks in this session: what net.run_callbacks does.

    max_runtime, what is returned and raised: as of ``run``.
    """
    runtime = _runtime(plpy, max_runtime)
    if runtime is None:
        return False
    ends_at = math.inf if runtime.seconds is None else time.monotonic() + runtime.seconds
    before = _set(plpy, {**SESSION_SETTINGS, "application_name": "pgnet callbacks"})
    try:
        _serve_callbacks(plpy, SpiRunner(plpy), ends_at)
    except CallbackCancelled:
        plpy.error(_CANCELLED, sqlstate=_QUERY_CANCELED)
    finally:
        wake_up.close_listener(wake_up.RUNNERS)
        _set(plpy, before)
    return True


def _serve_callbacks(plpy: Any, runner: SpiRunner, ends_at: float) -> None:
    interrupt = backend.interrupt_flag()
    while time.monotonic() < ends_at:
        # Bound before the look, so that no signal is lost.
        listener = wake_up.listener(wake_up.RUNNERS)
        look_in: float | None = _BRIEF_PAUSE
        with contextlib.suppress(OutboxFailed):  # another session holds a lock
            look_in = run_due(runner, ends_at)[1]
        longest = _POLL_INTERVAL if listener is not None else _POLL_WITHOUT_SLOT
        timeout = min(longest, ends_at - time.monotonic(), math.inf if look_in is None else look_in)
        waiting.wait(
            [] if listener is None else [listener],
            interrupt,
            backend.postmaster_fd(),
            backend.client_fd(),
            max(timeout, 0.01),
        )
        if waiting.is_gone(backend.client_fd()):
            return
        # A cancel is the statement's to raise; and a commit once in a while.
        plpy.execute("select 1")
        plpy.commit()


class _Runtime(NamedTuple):
    """Seconds that a session works, None for no limit; and its grace, None for the setting."""

    seconds: float | None
    grace: float | None


def _runtime(plpy: Any, max_runtime: str | None) -> _Runtime | None:
    """How long this session works; None inside a transaction block."""
    row = plpy.execute(
        plpy.prepare(
            "select extract(epoch from $1::interval)::double precision as runtime,"
            # pg_settings is not read, since it may need a temporary file.
            " extract(epoch from pg_catalog.current_setting('statement_timeout')::interval)"
            "  ::double precision as statement_timeout,"
            " extract(epoch from pg_catalog.statement_timestamp())::double precision as began",
            [TEXT],
        ),
        [max_runtime],
    )[0]
    try:
        plpy.commit()
    except plpy.SPIError as error:
        if error.sqlstate != _INVALID_TRANSACTION_TERMINATION:
            raise
        return None
    runtime, grace = row["runtime"], None
    statement_timeout = row["statement_timeout"]
    if statement_timeout:
        # The timeout would end the CALL with requests in flight. So the worker ends before it.
        allowed = max(statement_timeout * 0.8 - (time.time() - row["began"]), 0.0)
        runtime = allowed if runtime is None else min(runtime, allowed)
        grace = statement_timeout * 0.1
    return _Runtime(runtime, grace)


def _set(plpy: Any, settings: Mapping[str, str]) -> dict[str, str]:
    """Set the session's settings, from the next transaction on. Gives their former values."""
    read = plpy.prepare("select pg_catalog.current_setting($1, true) as value", [TEXT])
    write = plpy.prepare("select pg_catalog.set_config($1, $2, false)", [TEXT, TEXT])
    before = {name: plpy.execute(read, [name])[0]["value"] for name in settings}
    # A setting that this version of PostgreSQL does not have has no value.
    before = {name: value for name, value in before.items() if value is not None}
    for name in before:
        plpy.execute(write, [name, settings[name]])
    plpy.commit()
    return before
