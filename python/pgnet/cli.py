"""The command ``pgnet``."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence

import pgnet
from pgnet import secret_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit status. ``arguments`` are sys.argv's by default."""
    parser = argparse.ArgumentParser(
        prog="pgnet", description="HTTP as part of a PostgreSQL transaction."
    )
    parser.add_argument("--version", action="version", version=f"pgnet {pgnet.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    worker = commands.add_parser(
        "worker",
        help="send the requests of a database",
        description="Serve one database: send its committed requests and store their outcomes, "
        "until SIGTERM or SIGINT. The connection comes from --dsn and libpq's environment "
        "(PGHOST, PGDATABASE, PGPASSFILE, PGSERVICE, ...). It must be a direct one, not through "
        "a transaction pooler. A server that restarts is waited for.",
    )
    worker.add_argument(
        "--dsn", default="", help="libpq connection string or URI; a password in it shows in ps"
    )
    worker.add_argument(
        "--concurrency",
        type=_positive,
        metavar="N",
        help="requests in flight at once (default: the database's setting)",
    )
    worker.add_argument(
        "--grace",
        type=float,
        metavar="SECONDS",
        help="how long at most requests in flight may take to end after SIGTERM "
        "(default: the database's setting max_grace)",
    )
    worker.add_argument(
        "--secrets-dir",
        metavar="DIR",
        help="where this worker finds the secrets that it holds itself: a file each, by its name",
    )
    worker.add_argument("--verbose", action="store_true", help="log more")
    worker.set_defaults(run=_worker)
    secret_command.add_to(commands)
    options = parser.parse_args(arguments)
    status: int = options.run(options)
    return status


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


# Seconds that the threads which wait for work have to end.
_IDLE_THREADS_END = 0.5


def _worker(options: argparse.Namespace) -> int:
    import gevent
    import psycopg

    from pgnet.outbox import OutboxRefused
    from pgnet.outbox.libpq import LibpqOutbox
    from pgnet.secret import Directory, UnsafeFile
    from pgnet.worker import Worker, raise_file_limit

    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if options.verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )
    directory = None
    if options.secrets_dir is not None:
        try:
            directory = Directory(options.secrets_dir)
        except OSError as error:
            said = error.strerror
            print(f"pgnet worker: --secrets-dir cannot be read: {said}", file=sys.stderr)
            return 2
        except UnsafeFile as fault:
            print(f"pgnet worker: --secrets-dir is not safe: {fault}", file=sys.stderr)
            return 2
    raise_file_limit()
    try:
        outbox = LibpqOutbox(options.dsn)
    except psycopg.ProgrammingError:
        print(f"pgnet worker: {secret_command.NO_DSN}", file=sys.stderr)
        return 2
    worker = Worker(
        outbox, grace=options.grace, concurrency=options.concurrency, directory=directory
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, worker.stop)
    try:
        worker.run()
    except OutboxRefused as error:
        print(f"pgnet worker: {error}", file=sys.stderr)
        return 1
    finally:
        # Python 3.13 and later complain about a thread that still waits for work when they end.
        # A thread that waits for the server is not waited for: the server may hang.
        with gevent.Timeout(_IDLE_THREADS_END, False):
            gevent.get_hub().threadpool.kill()
    return 0
