"""The worker in a database session: what net.work() and net.drain() run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from pgnet.outbox import SESSION_SETTINGS, OutboxRefused
from pgnet.outbox.spi import REFUSED, TEXT, SpiOutbox
from pgnet.worker import open_files
from pgnet.worker.loop import Worker

_INVALID_TRANSACTION_TERMINATION = "2D000"


def run(plpy: Any, max_runtime: str | None, *, until_idle: bool) -> bool:
    """Run a worker in this session: what net.work and net.drain do.

    max_runtime: an interval as text, None for no limit. until_idle: end when nothing is due.

    Returns False inside a transaction block, where a procedure cannot commit: nothing is done.
    Raises what a cancel raises.
    """
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
        return False
    runtime, grace = row["runtime"], None
    statement_timeout = row["statement_timeout"]
    if statement_timeout:
        # The timeout would end the CALL with requests in flight. So the worker ends before it.
        allowed = max(statement_timeout * 0.8 - (time.time() - row["began"]), 0.0)
        runtime = allowed if runtime is None else min(runtime, allowed)
        grace = statement_timeout * 0.1
    open_files.raise_limit()
    before = _set(plpy, {**SESSION_SETTINGS, "application_name": "pgnet worker"})
    outbox = SpiOutbox(plpy)
    try:
        Worker(outbox, max_runtime=runtime, until_idle=until_idle, grace=grace).run()
    except OutboxRefused as error:
        plpy.error(str(error), sqlstate=REFUSED)
    finally:
        outbox.stop_listening()
        _set(plpy, before)
    return True


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
