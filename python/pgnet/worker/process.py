"""The worker as a process of its own: what ``pgnet worker`` runs."""

from __future__ import annotations

import logging
import signal
import sys

import gevent

from pgnet.outbox import OutboxRefused
from pgnet.outbox.libpq import LibpqOutbox
from pgnet.secret.directory import Directory, UnsafeFile
from pgnet.worker import open_files
from pgnet.worker.callbacks import ProcessCallbacks
from pgnet.worker.loop import Worker

# Seconds that idle threads have to end.
_IDLE_THREADS_END = 0.5


def run(
    dsn: str,
    *,
    concurrency: int | None = None,
    grace: float | None = None,
    secrets_dir: str | None = None,
    verbose: bool = False,
) -> int:
    """Serve one database until SIGTERM or SIGINT.

    dsn: a connection string or URI of libpq; what it leaves out comes from libpq's environment.
    concurrency: requests in flight at once; None for the setting of the database.
    grace: seconds that requests in flight may take to end after a signal; None for the setting
    max_grace of the database.
    secrets_dir: the directory of the secrets that this worker holds itself.
    verbose: log what goes well, too.

    Returns the exit status of the process: 0 after a signal, 1 where the database refuses the
    worker, 2 for wrong arguments. An error is printed to standard error.
    """
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )
    directory = None
    if secrets_dir is not None:
        try:
            directory = Directory(secrets_dir)
        except OSError as error:
            return _fail(f"--secrets-dir cannot be read: {error.strerror}")
        except UnsafeFile as fault:
            return _fail(f"--secrets-dir is not safe: {fault}")
    open_files.raise_limit()
    try:
        outbox = LibpqOutbox(dsn)
    except ValueError as error:
        return _fail(str(error))
    worker = Worker(
        outbox,
        grace=grace,
        concurrency=concurrency,
        directory=directory,
        callbacks=ProcessCallbacks(outbox.open_runner),
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, worker.stop)
    try:
        worker.run()
    except OutboxRefused as error:
        return _fail(str(error), status=1)
    finally:
        # Python 3.13 and later warn of a thread that still waits for work when Python ends. A
        # thread that waits for the server is left alone: the server may hang.
        with gevent.Timeout(_IDLE_THREADS_END, False):
            gevent.get_hub().threadpool.kill()
    return 0


def _fail(message: str, *, status: int = 2) -> int:
    print(f"pgnet worker: {message}", file=sys.stderr)
    return status
