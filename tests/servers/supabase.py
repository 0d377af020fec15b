"""What the tests on coming from Supabase share: psql, and what came to the receiver."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from servers.cluster import ROOT, Database
from servers.httpd import Running
from servers.waiting import wait_until

SCRIPT = ROOT / "contrib/supabase_functions.sql"
CONVERSION = ROOT / "contrib/webhooks_from_triggers.sql"
DUMPS = ROOT / "tests/database/supabase"


def run(database: Database, script: str, *options: str, stop: bool = True) -> str:
    """Feed a script to psql as a superuser; give what it printed.

    stop: the first error is one of psql's, and raised.
    """
    finished = subprocess.run(
        [
            database.cluster.bindir / "psql",
            "--no-psqlrc",
            f"--set=ON_ERROR_STOP={'on' if stop else 'off'}",
            *options,
            "--file=-",
        ],
        input=script,
        env={
            **os.environ,
            **database.cluster.environment,
            "PGDATABASE": database.name,
            "PGCLIENTENCODING": "UTF8",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if finished.returncode != 0:
        raise RuntimeError(finished.stdout)
    return finished.stdout


def dump(witness: Running, name: str = "project.sql") -> str:
    """A dump, with the receiver's port in its triggers."""
    return (DUMPS / name).read_text().replace("localhost:9/", f"localhost:{witness.port}/")


def received(database: Database, witness: Running, count: int) -> list[dict[str, Any]]:
    """Send what is due; give what has come, in the order of its arrival."""
    database.execute("call net.drain()")
    found = wait_until(witness.record, lambda record: len(record) >= count, "the webhooks")
    assert len(found) == count
    return found
