"""Helpers of the tests of copies: requests, which of them were sent, copies of databases."""

from __future__ import annotations

import subprocess
from collections import Counter

from psycopg import sql

from servers.cluster import Cluster, Database
from servers.httpd import Running
from servers.waiting import wait_until


def sent(witness: Running) -> Counter[str]:
    """How often each path was requested."""
    return Counter(entry["target"] for entry in witness.record())


def wait_sent(witness: Running, *paths: str) -> None:
    wait_until(
        lambda: set(sent(witness)),
        lambda found: found >= set(paths),
        f"{', '.join(paths)} sent",
    )


def request(database: Database, witness: Running, path: str) -> int:
    found: int = database.value("select net.http_get(%s)", witness.url + path)
    return found


def template_copy(original: Database, name: str) -> Database:
    original.close()
    with original.cluster.connect() as connection:
        connection.execute(
            sql.SQL("create database {} template {}").format(
                sql.Identifier(name), sql.Identifier(original.name)
            )
        )
    return Database(original.cluster, name)


# ---- create database … template


def claim_all(database: Database, kind: str = "process") -> None:
    """Be a worker that takes what is ready, and is heard of no more."""
    database.execute(
        "select pgnet.claim_requests(worker_id, 10, 10, 10, '{}', 1000, '')"
        " from pgnet.register_worker(%s)",
        kind,
    )


# ---- the mode


def say_in_file(cluster: Cluster, mode: str) -> None:
    """Add a line to a file that postgresql.conf includes; nothing is reloaded."""
    with (cluster.data / "postgresql.auto.conf").open("a") as file:
        file.write(f"pgnet.mode = '{mode}'\n")


def psql(database: Database, script: str) -> None:
    finished = subprocess.run(
        [
            database.cluster.bindir / "psql",
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            database.dsn(),
        ],
        input=script,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
