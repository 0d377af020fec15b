#!/usr/bin/python3
"""The demonstration: what a user would type in psql, on a throwaway cluster, with a local server.

Exit status 0 only if every committed request was answered and the one rolled back was never sent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "tools")]

from sandbox import echo_server, end_on_signal
from servers.cluster import Cluster, Database

# What the server must have on record, and nothing else, in any order.
EXPECTED = sorted(
    [
        "GET /hello?name=world",
        'POST /payments {"item": "tea", "amount": 3}',
        'POST /orders {"id": 1, "item": "bread"}',
        'POST /orders {"id": 2, "item": "butter"}',
        'POST /later {"patience": true}',
    ]
)


def say(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m\n" if sys.stdout.isatty() else f"\n==== {text}\n", flush=True)


def show(database: Database, script: str, url: str, record: Path) -> None:
    """Run a script in psql and let it echo what it reads."""
    psql = [str(database.cluster.bindir / "psql"), "--no-psqlrc", "--echo-all"]
    subprocess.run(
        [*psql, "-v", "ON_ERROR_STOP=1", "-v", f"url={url}", "-f", str(HERE / script)],
        env={
            **os.environ,
            **database.cluster.environment,
            "PGDATABASE": database.name,
            "PGCLIENTENCODING": "UTF8",
            "PAGER": "",
            "RECORD": str(record),
        },
        stdin=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        check=True,
    )


def check(database: Database, record: Path) -> list[str]:
    """Return what is not as it should be."""
    problems = []
    answered = database.rows(
        "select id, status_code, error_msg from net._http_response order by id"
    )
    problems += [
        f"request {number} has no good answer: {status or message}"
        for number, status, message in answered
        if status != 200
    ]
    if len(answered) != len(EXPECTED):
        problems.append(f"{len(EXPECTED)} requests were committed, {len(answered)} have an outcome")
    received = sorted(record.read_text().splitlines())
    if received != EXPECTED:
        problems.append(f"the server received {received} instead of {EXPECTED}")
    return problems


def main() -> int:
    signal.signal(signal.SIGTERM, end_on_signal)
    signal.signal(signal.SIGHUP, end_on_signal)
    with contextlib.ExitStack() as stack:
        say("A throwaway cluster, and a local HTTP server that echoes what it gets")
        options = {"shared_preload_libraries": "pg_cron", "cron.database_name": "demo"}
        cluster = stack.enter_context(Cluster(**options))
        record = cluster.directory / "record"
        record.touch()
        url = stack.enter_context(echo_server(record))
        database = cluster.create_database(extension=False, name="demo")
        stack.callback(database.close)
        print(f"cluster {cluster.dsn('demo')}\nserver  {url}", flush=True)

        say("Install")
        show(database, "1-install.sql", url, record)
        say("A worker sends what is committed: pgnet worker --dsn 'dbname=demo'")
        with cluster.worker(dbname="demo"):
            show(database, "2-requests.sql", url, record)
        say("The worker has been stopped. Without one, on a schedule")
        show(database, "3-schedule.sql", url, record)

        problems = check(database, record)
    if problems:
        print("\nThe demonstration FAILED:", *problems, sep="\n  ", file=sys.stderr)
        return 1
    say("Every committed request was answered, and the one rolled back was never sent.")
    print("Everything this has started is gone again. To try it yourself: make psql", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"the demonstration FAILED: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
