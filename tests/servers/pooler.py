"""PgBouncer in front of a throwaway cluster."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg

from servers.cluster import CLEAN_ENVIRONMENT, Cluster, as_server_user, free_port
from servers.waiting import wait_until

CONFIGURATION = """\
[databases]
* = host={cluster.socket_directory} port={cluster.port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {sessions}
ignore_startup_parameters = extra_float_digits
"""


def program() -> str | None:
    """Return where PgBouncer is; it stands beside what only root needs."""
    return shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin:/usr/local/sbin")


class Pooler:
    """A running PgBouncer."""

    def __init__(self, port: int) -> None:
        self.port = port

    def dsn(self, dbname: str) -> str:
        """Return the connection string by way of the pooler."""
        return f"host=127.0.0.1 port={self.port} dbname={dbname} user=postgres"


@contextlib.contextmanager
def running(cluster: Cluster, mode: str, sessions: int = 5) -> Iterator[Pooler]:
    """Run PgBouncer in a mode, `transaction` or `session`, with that many sessions in its pool."""
    found = program()
    assert found is not None, "pgbouncer is not installed here: make deps"
    with tempfile.TemporaryDirectory(prefix="pgnet-pooler-") as name:
        directory = Path(name)
        port = free_port()
        settings = directory / "pgbouncer.ini"
        settings.write_text(
            CONFIGURATION.format(cluster=cluster, port=port, mode=mode, sessions=sessions)
        )
        # it does not run as root, as the server does not
        if os.geteuid() == 0:
            account = pwd.getpwnam("postgres")
            for path in (directory, settings):
                os.chown(path, account.pw_uid, account.pw_gid)
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                as_server_user([found, str(settings)], signal.SIGKILL),
                env=CLEAN_ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        pooler = Pooler(port)

        def answers() -> bool | str:
            try:
                psycopg.connect(pooler.dsn("postgres")).close()
            except psycopg.OperationalError as error:
                written = (directory / "log").read_text(errors="replace").splitlines()
                return "\n".join([str(error), *written[-5:]])
            return True

        try:
            wait_until(answers, lambda answer: answer is True, "the pooler answers")
            yield pooler
        finally:
            process.kill()
            process.wait()
