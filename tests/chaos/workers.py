"""Workers of both kinds, each started again whenever it has ended, as a service manager would.

One that ends without having been told, stopped or killed is a finding.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg

from chaos.tally import Tally
from servers.cluster import CLEAN_ENVIRONMENT, as_server_user, server_python

# Seconds that requests in flight have to end after a SIGTERM, and that a worker may take besides.
GRACE, MARGIN = 2, 2


class ProcessWorker:
    """`pgnet worker`. prefix: a command that runs it elsewhere."""

    def __init__(
        self,
        name: str,
        dsn: str,
        directory: Path,
        tally: Tally,
        *,
        prefix: list[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        self._command = [
            *(prefix or []),
            *as_server_user(
                [
                    "env",
                    *(f"{key}={value}" for key, value in (environment or {}).items()),
                    server_python(),
                    *("-m", "pgnet", "worker", "--dsn", dsn, "--grace", str(GRACE)),
                ],
                signal.SIGKILL,
            ),
        ]
        self._directory = directory
        self._tally = tally
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._asked = False
        self._stopped = threading.Event()
        self.findings: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def pid(self) -> int | None:
        with self._lock:
            process = self._process
        return None if process is None or process.poll() is not None else process.pid

    def _run(self) -> None:
        with self.log.open("ab") as log:
            while not self._stopped.is_set():
                with self._lock:
                    self._asked = False
                    self._process = subprocess.Popen(
                        self._command,
                        cwd=self._directory,
                        env=CLEAN_ENVIRONMENT,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                status = self._process.wait()
                self._tally.add("worker processes started")
                with self._lock:
                    asked = self._asked
                # A kill -9 comes from a fault, or from the witness, which tells nobody beforehand.
                # A worker that is asked to end while Python starts is ended by the signal.
                if status != -signal.SIGKILL and not (asked and status in (0, -signal.SIGTERM)):
                    self.findings.append(
                        f"{self.name} ended with status {status}"
                        f"{' after a SIGTERM' if asked else ' by itself'}:\n{self._tail()}"
                    )
                self._stopped.wait(0.1)

    def _tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])

    def signal(self, number: signal.Signals) -> bool:
        """Send it a signal; whether it was there."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                return False
            self._asked |= number == signal.SIGTERM
            self._process.send_signal(number)
            return True

    def terminate(self) -> float | None:
        """Stop the worker gracefully; gives the seconds that took, None where no worker ran."""
        with self._lock:
            process = self._process
        started = time.monotonic()
        if process is None or not self.signal(signal.SIGTERM):
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        return time.monotonic() - started

    def stop(self) -> None:
        self._stopped.set()
        took = self.terminate()
        if took is not None and took > GRACE + MARGIN:
            self.findings.append(f"{self.name} took {took:.1f} s to stop\n{self._tail()}")
        self.signal(signal.SIGKILL)
        self._thread.join(10)


class BackendWorker:
    """A session that calls net.work(), or another procedure, again and again."""

    def __init__(self, name: str, dsn: str, tally: Tally, call: str = "call net.work()") -> None:
        self.name = name
        self._call = call
        self._dsn = dsn
        self._tally = tally
        self._stopped = threading.Event()
        self._connection: psycopg.Connection[Any] | None = None
        self.findings: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                with psycopg.connect(self._dsn, autocommit=True, connect_timeout=5) as connection:
                    self._connection = connection
                    connection.execute("set application_name = 'chaos worker'")
                    self._tally.add("worker sessions started")
                    connection.execute(self._call)
            except (psycopg.OperationalError, psycopg.errors.DiskFull):
                # The server, the connection or a cancel ended it.
                pass
            except psycopg.Error as error:
                self.findings.append(f"{self.name} ended with {type(error).__name__}: {error}")
            self._stopped.wait(0.1)

    def stop(self) -> None:
        self._stopped.set()
        deadline = time.monotonic() + 10
        while self._thread.is_alive() and time.monotonic() < deadline:
            with contextlib.suppress(psycopg.Error):
                if self._connection is not None:
                    self._connection.cancel()
            self._thread.join(0.5)
        if self._thread.is_alive():
            self.findings.append(f"{self.name} does not end when it is cancelled")
