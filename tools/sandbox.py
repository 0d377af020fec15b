#!/usr/bin/python3
"""Run a command beside a throwaway PostgreSQL cluster, which is gone when the command ends.

    tools/sandbox.py [--bare] [--worker] [--echo-server] [--allow NETWORK] [--option NAME=VALUE ...]
        COMMAND ...

The command finds the cluster through PGHOST, PGPORT, PGUSER and PGDATABASE, and the echo server
through ECHO_URL. The exit status is that of the command. When the command is psql, it is the
server's own, and greets.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from servers.cluster import Cluster

GREETING = """\
pgnet sandbox: a throwaway cluster{with_worker}; it is gone when you leave with \\q.
"""
GREETING_ECHO = """\
A server that echoes what it gets listens on {url}, also known as :'url'. Try:

    select net.http_post(:'url' || '/hello', body => '{{"who": "world"}}');
    select * from net.responses \\gx
    begin; select net.http_get(:'url' || '/never'); rollback;
    select * from net.check();
"""


@contextlib.contextmanager
def echo_server(record: Path | None = None) -> Iterator[str]:
    """Run the echo server of the demonstration; gives its URL."""
    command = ["setpriv", "--pdeathsig=TERM", sys.executable, str(ROOT / "demo/echo_server.py")]
    if record:
        command += ["--record", str(record)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def end_on_signal(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bare", action="store_true", help="no database with the extension")
    parser.add_argument("--worker", action="store_true", help="run a worker process")
    parser.add_argument("--echo-server", action="store_true", help="run the echo server")
    parser.add_argument("--allow", metavar="NETWORK", help="let requests go to this network")
    parser.add_argument("--option", metavar="NAME=VALUE", action="append", default=[])
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if not arguments.command:
        parser.error("which command?")

    # whoever ends this ends what it started
    signal.signal(signal.SIGTERM, end_on_signal)
    signal.signal(signal.SIGHUP, end_on_signal)

    options = dict(option.split("=", 1) for option in arguments.option)
    command: list[str] = arguments.command
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(Cluster(**options))
        environment = {**os.environ, **cluster.environment, "PGDATABASE": "postgres"}
        greeting = GREETING.format(with_worker=" with a worker" if arguments.worker else "")
        if not arguments.bare:
            database = cluster.create_database(name="sandbox")
            environment["PGDATABASE"] = database.name
            if arguments.allow:
                database.execute("select net.allow_network(%s)", arguments.allow)
            database.close()
        if arguments.worker:
            stack.enter_context(cluster.worker(dbname=environment["PGDATABASE"]))
        psql_options = []
        if arguments.echo_server:
            url = stack.enter_context(echo_server())
            environment["ECHO_URL"] = url
            psql_options = ["-v", f"url={url}"]
            greeting += GREETING_ECHO.format(url=url)
        if command[0] == "psql":
            command = [str(cluster.bindir / "psql"), *psql_options, *command[1:]]
            print(greeting, flush=True)
        # Ctrl-C at a psql prompt cancels a query: it is not for us
        if sys.stdin.isatty():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return subprocess.run(
            command, env=environment, check=False, preexec_fn=restore_interrupt
        ).returncode


def restore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
