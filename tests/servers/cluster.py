"""Throwaway PostgreSQL clusters: started for a test or a demonstration, gone without a trace.

A cluster is a plain `initdb` in a temporary directory, and its postmaster is a child of this
process: so it can be stopped in every mode, killed, and started again, and it ends when this
process does, however that comes about. Run by root, the server runs as the user postgres, since it
refuses to run as root.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from servers.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]

STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}

# Every backend inherits the server's environment: it must not contain the caller's variables.
CLEAN_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}

# Called with the directory of each cluster that has stopped, before that is removed.
before_removal: list[Callable[[Path], None]] = []


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def find_pg_config() -> str:
    """Return the server's pg_config: the variable PG_CONFIG, or what tools/find-pg-config finds."""
    found = (
        os.environ.get("PG_CONFIG")
        or subprocess.run(
            [ROOT / "tools/find-pg-config"], capture_output=True, text=True, check=True
        ).stdout.strip()
    )
    if not found:
        raise RuntimeError("no PostgreSQL server is installed here: make deps")
    return found


def pg_config(item: str) -> str:
    """Return one of pg_config's answers, such as `bindir`."""
    output = subprocess.run(
        [find_pg_config(), f"--{item}"], capture_output=True, text=True, check=True
    )
    return output.stdout.strip()


def server_python() -> str:
    """Return the interpreter that PL/Python was built with."""
    makefile = Path(pg_config("pgxs")).parent.parent / "Makefile.global"
    for line in makefile.read_text().splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "PYTHON":
            return value.strip()
    raise RuntimeError(f"{makefile} names no PYTHON: PostgreSQL was built without PL/Python")


def worker_python() -> str:
    """Return the interpreter that runs workers: the variable WORKER_PYTHON, or the server's."""
    return os.environ.get("WORKER_PYTHON") or server_python()


def as_server_user(command: list[str], on_parents_death: signal.Signals) -> list[str]:
    """Return the command that runs `command` as the server's user and ends it with us."""
    prefix = ["setpriv", f"--pdeathsig={on_parents_death.name.removeprefix('SIG')}"]
    if os.geteuid() == 0:
        prefix += ["--reuid=postgres", "--regid=postgres", "--init-groups"]
    return [*prefix, *command]


class Worker:
    """A worker process: `pgnet worker`."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self, timeout: float = 10.0) -> int:
        """Ask it to end (SIGTERM), wait for that, and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            # a worker that the test has paused would not get the signal
            self.process.send_signal(signal.SIGCONT)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise TimeoutError(
                f"the worker did not stop within {timeout:g} s; it wrote:\n{self.output()}"
            ) from None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def output(self) -> str:
        return self.log.read_text(errors="replace")


class Database:
    """A database of a cluster, and the connections a test has opened to it."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self._connections: list[psycopg.Connection[Any]] = []
        self._own: psycopg.Connection[Any] | None = None

    def dsn(self, user: str = "postgres") -> str:
        return self.cluster.dsn(self.name, user)

    def connect(
        self, user: str = "postgres", autocommit: bool = True, **parameters: Any
    ) -> psycopg.Connection[Any]:
        """Open a connection; it is closed with the database."""
        connection = self.cluster.connect(self.name, user, autocommit, **parameters)
        self._connections.append(connection)
        return connection

    @property
    def connection(self) -> psycopg.Connection[Any]:
        """The superuser's connection of the shorthands below; opened anew when it is broken."""
        if self._own is None or self._own.closed:
            self._own = self.connect()
        return self._own

    def execute(self, query: str, *arguments: Any) -> None:
        self.connection.execute(query, arguments or None)

    def rows(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        return self.connection.execute(query, arguments or None).fetchall()

    def row(self, query: str, *arguments: Any) -> tuple[Any, ...] | None:
        found: tuple[Any, ...] | None = self.connection.execute(
            query,
            arguments or None,
        ).fetchone()
        return found

    def value(self, query: str, *arguments: Any) -> Any:
        """Return the first column of the first row; None without a row."""
        found = self.row(query, *arguments)
        return None if found is None else found[0]

    def wait_for(
        self,
        query: str,
        *arguments: Any,
        predicate: Callable[[Any], bool] = bool,
        timeout: float = 10.0,
    ) -> Any:
        """Run a query of one value until the predicate holds; fails with the last value seen."""
        return wait_until(lambda: self.value(query, *arguments), predicate, query, timeout)

    @contextlib.contextmanager
    def worker(
        self, *arguments: str, environment: Mapping[str, str] | None = None, seen: bool = True
    ) -> Iterator[Worker]:
        """Run a worker process for this database.

        `seen`: wait until its session stands in pg_stat_activity.
        """
        with self.cluster.worker(
            *arguments, dbname=self.name, environment=environment, seen=seen
        ) as worker:
            yield worker

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self._connections.clear()
        self._own = None

    def drop(self) -> None:
        self.close()
        with self.cluster.connect() as connection:
            connection.execute(
                sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(self.name))
            )


class Cluster:
    """One PostgreSQL cluster in a temporary directory.

    `options` are server settings; fsync is off unless they say otherwise. Use it as a context
    manager, or call `create()` and `close()`.
    """

    def __init__(self, **options: object) -> None:
        self.bindir = Path(pg_config("bindir"))
        self.port = 0
        self.options: dict[str, object] = {"fsync": "off", **options}
        self.directory = Path()
        self.process: subprocess.Popen[bytes] | None = None
        # further environment variables of the server's processes
        self.server_environment: dict[str, str] = {}
        self._databases = 0

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def socket_directory(self) -> Path:
        return self.directory

    @property
    def environment(self) -> dict[str, str]:
        """The environment by which libpq's programs find this cluster."""
        return {
            "PGHOST": str(self.socket_directory),
            "PGPORT": str(self.port),
            "PGUSER": "postgres",
        }

    def __enter__(self) -> Cluster:
        self.create()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def create(self) -> None:
        """Make the data directory and start the server."""
        try:
            self.initialize()
            self.start()
        except BaseException:
            self.close()
            raise

    def initialize(self) -> None:
        """Make the data directory, and do not start the server."""
        self._make_directory()
        self.initdb()

    def initdb(self) -> None:
        self.run(
            "initdb",
            "--pgdata=data",
            "--auth=trust",
            "--username=postgres",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        )

    def _make_directory(self) -> None:
        # short, since the path of a Unix socket has 107 bytes at most
        self.directory = Path(tempfile.mkdtemp(prefix="pgnet-", dir="/tmp"))
        # others than the server's user may pass through to the socket
        self.directory.chmod(0o755)
        if os.geteuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(self.directory, account.pw_uid, account.pw_gid)

    def base_backup(
        self, into: Cluster | None = None, *, standby: bool = False, **options: object
    ) -> Cluster:
        """Return a clone of this cluster, which is not started yet: the caller closes it.

        into: a cluster that is stopped and whose data the clone replaces. standby: it follows this
        one until `promote()`. `options` are settings beside this one's.
        """
        clone = into or Cluster(**self.options)
        clone.options.update(options)
        try:
            if into is None:
                clone.bindir = self.bindir
                clone._make_directory()
            else:
                shutil.rmtree(clone.data)
            arguments = [f"--pgdata={clone.data}", "--checkpoint=fast", "--no-sync"]
            if standby:
                arguments.append("--write-recovery-conf")
            self.run("pg_basebackup", *arguments)
        except BaseException:
            clone.close()
            raise
        return clone

    def promote(self) -> None:
        """Make a standby the primary; returns when it takes writes."""
        with self.connect() as connection:
            connection.execute("select pg_promote()")

    def wait_for_standby(self, standby: Cluster, timeout: float = 30.0) -> None:
        """Wait until a standby has replayed all that has been written here so far."""
        with self.connect() as here, standby.connect() as there:
            position = here.execute("select pg_current_wal_flush_lsn()").fetchone()
            assert position is not None
            wait_until(
                lambda: there.execute(
                    "select pg_last_wal_replay_lsn() >= %s::pg_lsn", position
                ).fetchone(),
                lambda replayed: replayed == (True,),
                "the standby has caught up",
                timeout,
            )

    def close(self) -> None:
        """Stop the server without ceremony and remove every file."""
        if self.running:
            self.stop("immediate")
        if self.directory != Path():
            try:
                for look in before_removal:
                    look(self.directory)
            finally:
                shutil.rmtree(self.directory, ignore_errors=True)

    def run(self, program: str, *arguments: str) -> str:
        """Run one of the server's programs as its user and in its directory; return its output."""
        finished = subprocess.run(
            as_server_user([str(self.bindir / program), *arguments], signal.SIGKILL),
            cwd=self.directory,
            env={**CLEAN_ENVIRONMENT, **(self.environment if self.port else {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if finished.returncode != 0:
            raise RuntimeError(f"{program} failed ({finished.returncode}):\n{finished.stdout}")
        return finished.stdout

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        if self.process is None:
            raise RuntimeError("the server is not running")
        return self.process.pid

    def start(self, **options: object) -> None:
        """Start the server with its options and these; wait until it accepts connections."""
        self.options.update(options)
        # Another process may take the free port before the server does: try again with another one.
        for attempt in range(3):
            if self.port == 0:
                self.port = free_port()
            if self._start():
                return
            if "could not bind" not in self.log_tail(20) or attempt == 2:
                break
            self.port = 0
        raise RuntimeError(f"the server did not start:\n{self.log_tail(40)}")

    def _start(self) -> bool:
        settings: dict[str, object] = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.socket_directory,
            "log_line_prefix": "%m [%p] %q%u@%d %a ",
            "max_connections": 100,
            **self.options,
        }
        # set by env, so that the commands before it, which run as another user, do not have them
        variables = [f"{name}={value}" for name, value in self.server_environment.items()]
        command = ["env", *variables, str(self.bindir / "postgres"), "-D", str(self.data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                as_server_user(command, signal.SIGINT),
                cwd=self.directory,
                env=CLEAN_ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C at the terminal must not stop the server
                start_new_session=True,
            )

        # Either the server has ended, or it says that it is ready.
        wait_until(
            lambda: not self.running or self._ready(),
            description="the server accepts connections or gives up",
            timeout=60,
        )
        return self.running

    def _ready(self) -> bool:
        try:
            status = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        # a file left by a killed server names another process
        return (
            len(status) >= 8
            and status[0] == str(self.pid)
            and status[7].strip() in ("ready", "standby")
        )

    def stop(self, mode: str = "fast", timeout: float = 60.0) -> None:
        """Shut down in the mode smart, fast or immediate, and wait until the server has ended."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(STOP_SIGNALS[mode])
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            tail = self.log_tail(20)
            self.kill()
            raise TimeoutError(f"no {mode} shutdown within {timeout:g} s:\n{tail}") from None
        self.process = None

    def kill(self) -> None:
        """Kill the postmaster and all of its processes with SIGKILL, as a power cut would."""
        if self.process is None:
            return
        children = child_processes(self.process.pid)
        self.process.kill()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process = None
        # the next start refuses while one of them is still attached to the shared memory
        wait_until(
            lambda: [pid for pid in children if process_fields(pid)[:1] not in ([], ["Z"])],
            lambda left: not left,
            "the server's processes are gone",
        )

    def restart(self, mode: str = "fast", **options: object) -> None:
        self.stop(mode)
        self.start(**options)

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until a connection works, for example while the server recovers from a crash."""

        def connects() -> bool | str:
            try:
                self.connect().close()
            except psycopg.OperationalError as error:
                return str(error)
            return True

        wait_until(connects, lambda answer: answer is True, "a connection works", timeout)

    def log_tail(self, lines: int = 50) -> str:
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def dsn(self, dbname: str = "postgres", user: str = "postgres") -> str:
        """Return the connection string, over the cluster's Unix socket."""
        return f"host={self.socket_directory} port={self.port} dbname={dbname} user={user}"

    def connect(
        self,
        dbname: str = "postgres",
        user: str = "postgres",
        autocommit: bool = True,
        **parameters: Any,
    ) -> psycopg.Connection[Any]:
        connection: psycopg.Connection[Any] = psycopg.connect(
            self.dsn(dbname, user), autocommit=autocommit, **parameters
        )
        return connection

    def create_database(
        self, extension: bool = True, name: str | None = None, options: str = ""
    ) -> Database:
        """Create a database with a name of its own, and the extension unless told otherwise.

        options: further options of CREATE DATABASE, as SQL.
        """
        self._databases += 1
        database = Database(self, name or f"test_{self._databases}")
        with self.connect() as connection:
            connection.execute(
                sql.SQL("create database {} template template0 {}").format(
                    sql.Identifier(database.name), sql.SQL(options)
                )
            )
        if extension:
            database.execute("create extension pgnet cascade")
        return database

    @contextlib.contextmanager
    def worker(
        self,
        *arguments: str,
        dbname: str,
        user: str = "postgres",
        environment: Mapping[str, str] | None = None,
        seen: bool = True,
    ) -> Iterator[Worker]:
        """Run the installed `pgnet worker` for a database, and stop it at the end of the block."""
        earlier = self._worker_sessions(dbname) if seen else set()
        descriptor, path = tempfile.mkstemp(prefix="worker-", suffix=".log", dir=self.directory)
        with os.fdopen(descriptor, "wb") as log:
            process = subprocess.Popen(
                as_server_user(
                    [
                        worker_python(),
                        "-m",
                        "pgnet",
                        "worker",
                        "--dsn",
                        self.dsn(dbname, user),
                        *arguments,
                    ],
                    signal.SIGTERM,
                ),
                cwd=self.directory,
                env={**CLEAN_ENVIRONMENT, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        worker = Worker(process, Path(path))
        try:
            if seen:
                self._wait_for_worker(worker, dbname, earlier)
            yield worker
            worker.stop()
        finally:
            if process.poll() is None:
                worker.kill()

    def _worker_sessions(self, dbname: str) -> set[int]:
        with self.connect() as connection:
            found = connection.execute(
                "select pid from pg_stat_activity"
                " where datname = %s and application_name like 'pgnet%%'",
                (dbname,),
            ).fetchall()
        return {pid for (pid,) in found}

    def _wait_for_worker(self, worker: Worker, dbname: str, earlier: set[int]) -> None:
        def state() -> str:
            if worker.process.poll() is not None:
                return f"ended with {worker.process.returncode}"
            return "up" if self._worker_sessions(dbname) - earlier else "not seen"

        last = wait_until(
            state, lambda value: value != "not seen", "the worker's session is seen", 20
        )
        if last != "up":
            raise RuntimeError(f"the worker {last}; it wrote:\n{worker.output()}")


def process_fields(pid: int) -> list[str]:
    """Return a process's state, parent and what follows in /proc; nothing for one that is gone."""
    try:
        # the command's name stands first, in parentheses, and may hold anything
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def child_processes(parent: int) -> list[int]:
    """Return the process ids of a process's children."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if process_fields(pid)[1:2] == [str(parent)]]


def stale_installation() -> list[str]:
    """Return the files of the tree whose installed copies are missing or differ."""
    share = Path(pg_config("sharedir")) / "extension"
    site = subprocess.run(
        [server_python(), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
        env=CLEAN_ENVIRONMENT,
    ).stdout.strip()
    pairs = {
        name: share / name.name for name in (*ROOT.glob("pgnet--*.sql"), ROOT / "pgnet.control")
    }
    package = ROOT / "python/pgnet"
    for source in package.rglob("*.py"):
        pairs[source] = Path(site) / "pgnet" / source.relative_to(package)
    return sorted(
        str(source.relative_to(ROOT))
        for source, copy in pairs.items()
        if not copy.exists() or copy.read_bytes() != source.read_bytes()
    )


if __name__ == "__main__":
    sys.exit("a module for tests and tools: see tools/sandbox.py")
