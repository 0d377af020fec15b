"""Workers of both kinds, for a test to run: a process, and a session of the server."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg

from servers.cluster import Database
from servers.waiting import wait_until

# Seconds within which a worker ends after a cancel, or when the server is stopped.
PROMPT = 0.5


class Session:
    """A session that runs one statement in a thread."""

    def __init__(self, connection: psycopg.Connection[Any], call: str) -> None:
        self.connection = connection
        self.call = call
        self.pid = connection.info.backend_pid
        self._error: psycopg.Error | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.connection.execute(self.call)
        except psycopg.Error as error:
            self._error = error

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def ended(self, timeout: float = 10.0) -> psycopg.Error | None:
        """Wait until the statement has ended; gives the error it ended with."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"{self.call} did not end within {timeout:g} s")
        return self._error

    def end(self) -> None:
        """Cancel the statement if it still runs, and close the session."""
        if self.running:
            with contextlib.suppress(psycopg.Error):
                self.connection.cancel()
        try:
            self.ended()
        finally:
            self.connection.close()


@contextlib.contextmanager
def serving(
    database: Database,
    call: str = "call net.work()",
    *,
    user: str = "postgres",
    setup: str = "",
    registers: bool = True,
) -> Iterator[Session]:
    """Run a worker in a session of its own; it has registered when this returns.

    registers: false for a session that only runs callbacks; then it is just begun.
    """
    connection = database.connect(user)
    if setup:
        connection.execute(setup)
    session = Session(connection, call)
    try:
        wait_until(
            lambda: (
                not registers
                or (
                    session.running
                    and database.value(
                        "select exists (select from pgnet.worker where pid = %s)", session.pid
                    )
                )
                or (not session.running and session.ended())
            ),
            description="the worker in the database has registered",
        )
        yield session
    finally:
        session.end()


@contextlib.contextmanager
def as_process(database: Database) -> Iterator[int]:
    """Run a worker process, which has to live to the end; gives its pid."""
    with database.worker() as worker:
        yield worker.pid
        assert worker.process.poll() is None


@contextlib.contextmanager
def as_backend(database: Database) -> Iterator[int]:
    """Run a worker in the database, which has to live to the end; gives the pid of its session."""
    with serving(database) as session:
        yield session.pid
        assert session.running


Form = Callable[[Database], contextlib.AbstractContextManager[int]]


def one_worker(database: Database, kind: str) -> contextlib.AbstractContextManager[int]:
    """Run a worker of the kind "process" or "backend"."""
    return as_process(database) if kind == "process" else as_backend(database)
