"""The command ``pgnet``: each subcommand has a module of its own beside this one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import pgnet
from pgnet.cli import secret, worker


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    arguments: None means those of sys.argv.
    """
    parser = argparse.ArgumentParser(
        prog="pgnet", description="HTTP as part of a PostgreSQL transaction."
    )
    parser.add_argument("--version", action="version", version=f"pgnet {pgnet.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    worker.add_to(commands)
    secret.add_to(commands)
    options = parser.parse_args(arguments)
    status: int = options.run(options)
    return status
