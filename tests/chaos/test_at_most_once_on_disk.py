"""At most once: what is on disk before the first byte, and what a crash leaves of it."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from servers.cluster import Cluster, child_processes
from servers.httpd import Running
from servers.waiting import wait_until
from servers.workers import serving


@pytest.fixture(scope="module")
def crashing(make_cluster: Any) -> Cluster:
    made: Cluster = make_cluster(fsync="on", wal_writer_delay="10s")
    return made


def wal_writer(cluster: Cluster) -> int:
    for pid in child_processes(cluster.pid):
        if b"walwriter" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise RuntimeError("no WAL writer")


@pytest.mark.parametrize("form", ["process", "backend"])
def test_the_attempt_is_on_disk_before_the_first_byte(
    crashing: Cluster, witness: Running, form: str
) -> None:
    """Everything dies when the server has seen the request: what only memory knew is gone."""
    witness.reset()
    database = crashing.create_database()
    database.execute("select net.allow_network('loopback')")
    with contextlib.ExitStack() as stack:
        if form == "process":
            worker = stack.enter_context(database.worker())
        else:
            # its session ends with the server
            stack.enter_context(contextlib.suppress(psycopg.OperationalError))
            stack.enter_context(serving(database))
        # Only a commit flushes the WAL here.
        os.kill(wal_writer(crashing), signal.SIGSTOP)
        [(id,)] = database.rows(
            "select net.http_request('POST', %s, body_text => 'x',"
            ' options => \'{"delivery": "at_most_once"}\')',
            f"{witness.url}/hang",
        )
        wait_until(lambda: len(witness.record()), (1).__eq__, "the request is seen")
        crashing.kill()
        if form == "process":
            worker.kill()
    database.close()
    crashing.start()
    with database.worker():
        state = "select state::text from net._http_response where id = %s"
        assert database.wait_for(state, id) == "unknown"
    assert len(witness.record()) == 1
    assert database.rows("select attempt, state from net.attempts where request_id = %s", id) == [
        (1, "unknown")
    ]
    database.drop()
