"""The command ``pgnet worker``: its options. The worker itself is in worker/process.py."""

from __future__ import annotations

import argparse
from typing import Any


def add_to(commands: Any) -> None:
    """Add ``worker`` to the subparsers of the command line."""
    parser = commands.add_parser(
        "worker",
        help="send the requests of a database",
        description="Serve one database: send its committed requests and store their outcomes, "
        "until SIGTERM or SIGINT. The connection comes from --dsn and libpq's environment "
        "(PGHOST, PGDATABASE, PGPASSFILE, PGSERVICE, ...). It must be a direct one, not through "
        "a transaction pooler. If the server restarts, the worker waits and connects again.",
    )
    parser.add_argument(
        "--dsn", default="", help="libpq connection string or URI; a password in it shows in ps"
    )
    parser.add_argument(
        "--concurrency",
        type=_positive,
        metavar="N",
        help="requests in flight at once (default: the database's setting)",
    )
    parser.add_argument(
        "--grace",
        type=float,
        metavar="SECONDS",
        help="how long requests in flight may take to end after SIGTERM, at most "
        "(default: the database's setting max_grace)",
    )
    parser.add_argument(
        "--secrets-dir",
        metavar="DIR",
        help="the directory with the secrets that this worker holds itself, one file for each",
    )
    parser.add_argument("--verbose", action="store_true", help="log more")
    parser.set_defaults(run=_run)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _run(options: argparse.Namespace) -> int:
    from pgnet.worker import process

    return process.run(
        options.dsn,
        concurrency=options.concurrency,
        grace=options.grace,
        secrets_dir=options.secrets_dir,
        verbose=options.verbose,
    )
