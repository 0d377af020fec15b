"""Workers among others: behind a pooler, stopped, killed, cut off, and seen in net.workers."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

import httpd
import pooler
from cluster import CLEAN_ENVIRONMENT, Cluster, Database, Worker, server_python, wait_until
from httpd import Running
from test_worker_process import queue, targets, wait_for_states
from test_worker_process import seen as arrived


@pytest.fixture(scope="module")
def witness() -> Iterator[Running]:
    with httpd.running() as running:
        yield running


@pytest.fixture(autouse=True)
def forget(witness: Running) -> None:
    witness.reset()


# ---- poolers


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_a_worker_behind_a_pooler_is_refused(
    cluster: Cluster, database: Database, mode: str
) -> None:
    """It ends at once, says in one line what to do, and has left nothing in the pool's sessions."""
    with pooler.running(cluster, mode) as pool:
        command = [server_python(), "-m", "pgnet", "worker", "--dsn", pool.dsn(database.name)]
        ended = subprocess.run(
            command, env=CLEAN_ENVIRONMENT, capture_output=True, text=True, timeout=20, check=False
        )
        assert ended.returncode == 1, ended.stderr
        assert ended.stdout == ""
        assert ended.stderr.count("\n") == 1, ended.stderr
        assert ended.stderr.startswith("pgnet worker: a connection pooler stands between")
        assert "connect to the server directly" in ended.stderr
        assert database.value("select count(*) from net.worker") == 0
        with psycopg.connect(pool.dsn(database.name), autocommit=True) as caller:
            row = caller.execute(
                "select current_setting('search_path'), current_setting('tcp_user_timeout')"
            ).fetchone()
        assert row == ('"$user", public', "0")


def test_a_session_that_changes_under_a_worker(database: Database, witness: Running) -> None:
    """A pooler that hands on the server's own pid is noticed by the look in the database."""
    with database.cluster.worker(dbname=database.name) as worker:
        queue(database, f"{witness.url}/body/x")
        wait_for_states(database, {"succeeded": 1})
        database.execute("update net.worker set pid = pg_backend_pid()")
        database.execute("select net.worker_restart()")
        assert worker.process.wait(10) == 1
        said = worker.output().splitlines()
        assert len(said) == 1, said
        assert said[0].startswith("pgnet worker: the worker's session has changed under it. ")
        assert "connect to the server directly" in said[0]


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_callers_may_go_through_a_pooler(
    cluster: Cluster, database: Database, worker: Worker, witness: Running, mode: str
) -> None:
    """More callers than sessions, their transactions committed and rolled back in turns."""
    with pooler.running(cluster, mode, sessions=2 if mode == "transaction" else 5) as pool:
        callers = [psycopg.connect(pool.dsn(database.name), prepare_threshold=None) for _ in "abcd"]
        for n in range(40):
            caller = callers[n % len(callers)]
            caller.execute("select net.http_get(%s)", (f"{witness.url}/body/{n}?",))
            (caller.rollback if n % 5 == 4 else caller.commit)()
        wait_for_states(database, {"succeeded": 32})
        assert database.value("select max(created - requested) from net.responses") is not None
        for caller in callers:
            caller.close()
    sent = {int(target.rpartition("/")[2].rstrip("?")) for target in targets(witness)}
    assert sent == {n for n in range(40) if n % 5 != 4}
