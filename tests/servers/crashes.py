"""Crashes of the server, and a worker in the database that is started again after each."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import Any

import psycopg

from servers.cluster import Database
from servers.waiting import wait_until


class Supervisor:
    """Starts the worker in the database again whenever it has ended, as pg_cron does."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.stopped = threading.Event()
        self.pid = 0
        self._connection: psycopg.Connection[Any] | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        wait_until(lambda: self.pid, description="the worker runs")

    def _work(self) -> None:
        while not self.stopped.is_set():
            with contextlib.suppress(psycopg.Error):
                self._connection = self.database.cluster.connect(self.database.name)
                self.pid = self._connection.info.backend_pid
                self._connection.execute("call net.work()")
            if self._connection is not None:
                self._connection.close()
            self.stopped.wait(0.05)

    def stop(self) -> None:
        self.stopped.set()
        with contextlib.suppress(psycopg.Error):
            if self._connection is not None:
                self._connection.cancel()
        self._thread.join(10)
        assert not self._thread.is_alive()


def kill_backend(database: Database, pid: int) -> None:
    """kill -9 of a backend, and the recovery of the whole server that it brings about."""
    canary = database.cluster.connect()
    os.kill(pid, signal.SIGKILL)
    # the postmaster ends every other session before it recovers
    with contextlib.suppress(psycopg.OperationalError):
        canary.execute("select pg_sleep(10)")
    assert canary.closed
    canary.close()
    database.close()
    database.cluster.wait_ready()


def crash(database: Database) -> None:
    database.close()
    database.cluster.stop("immediate")
    database.cluster.start()
