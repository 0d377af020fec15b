"""The command ``pgnet``: its options, and which module runs each subcommand."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import pgnet
from pgnet.cli import secret as secret_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    arguments: None means those of sys.argv.
    """
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
        "a transaction pooler. If the server restarts, the worker waits and connects again.",
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
        help="how long requests in flight may take to end after SIGTERM, at most "
        "(default: the database's setting max_grace)",
    )
    worker.add_argument(
        "--secrets-dir",
        metavar="DIR",
        help="the directory with the secrets that this worker holds itself, one file for each",
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


def _worker(options: argparse.Namespace) -> int:
    from pgnet.worker import process

    return process.run(
        options.dsn,
        concurrency=options.concurrency,
        grace=options.grace,
        secrets_dir=options.secrets_dir,
        verbose=options.verbose,
    )
