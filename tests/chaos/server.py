"""PostgreSQL with what chaos needs: a small disk, a clock that can be moved, faults at commits.

The data directory is a file system of its own in memory: what a killed process has written is
still there, as on a disk, and it can be full. fsync is on all the same, so that the server does
what it does in production.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from chaos import crash, orders
from chaos.tally import Tally
from servers.cluster import STOP_SIGNALS, Cluster, child_processes, process_fields

DATABASE = "chaos"
# The clients' role and the workers': neither is a superuser.
CLIENT, WORKER = "client", "worker"
MAX_CONNECTIONS = 60
RESERVED = 8
_DISK_MB = 1024
# Dynamic shared memory, mostly of statistics, and some room.
_SHARED_MB = 64

# Points at which a backend is killed, at the end of a transaction that did this.
POINTS = tuple(
    f"{when} {what}"
    for what in ("claim", "record", "call", "callback")
    for when in ("before", "after")
)

# Runs in the backend that claims, records, calls or runs a callback; the end of its transaction
# reads what it did.
_POINTS_SQL = """
create function app.at_point() returns trigger language plpython3u as $python$
import os, signal
if "points" not in GD:
    from pgnet.server import backend
    done = set()
    def at_end(event):
        # 5 is before the commit, 0 after it; 2 the end of a transaction that was rolled back
        if event in (0, 5):
            when = "before" if event == 5 else "after"
            for what in done:
                try:
                    os.unlink({directory!r} + "/" + when + " " + what)
                except OSError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
        if event != 5:
            done.clear()
    GD["points"] = done
    GD["pinned"] = backend.register_xact_callback(at_end)
GD["points"].add(TD["args"][0])
$python$;
create trigger at_claim after insert on pgnet.claim
    for each statement execute function app.at_point('claim');
create trigger at_record after insert on net._http_response
    for each statement execute function app.at_point('record');
create trigger at_call after insert on app.sent
    for each statement execute function app.at_point('call');
create trigger at_callback after insert on app.called
    for each statement execute function app.at_point('callback');
"""

_SETUP_SQL = """
create schema app;
-- What is in here was committed together with its request.
create table app.sent (
    key text primary key,
    id bigint not null,
    method text not null,
    delivery text not null,
    retry text,
    max_attempts integer,
    idempotency_key text,
    ordering_key text,
    blocks boolean not null,
    after bigint[],
    after_any_end boolean not null,
    not_before timestamptz,
    not_after timestamptz,
    limited boolean not null,
    calls boolean not null
);
-- What callbacks have done, and the sets that there are. Again nothing is unique.
create table app.called (id bigint not null, state net.request_state not null);
create table app.made_set (id bigint not null, ids bigint[] not null);
create table app.called_set (ids bigint[] not null, states net.request_state[] not null);
-- Some fail, and are tried again.
create function app.note_call(o net.outcome) returns void language plpgsql as $$
begin
    insert into app.called (id, state) values (o.id, o.state);
    if random() < 0.05 then
        raise exception 'this callback fails by chance';
    end if;
end $$;
create function app.note_set(o net.outcome[]) returns void language plpgsql as $$
begin
    insert into app.called_set (ids, states)
    select array_agg(u.id order by u.id), array_agg(u.state order by u.id) from unnest(o) u;
end $$;
-- Numbers what happens, in the order in which it happens.
create sequence app.number;
grant usage on sequence app.number to client;
-- The same of net.retry, net.cancel and net.unblock. Nothing is unique here: two instead of one is
-- a finding.
create table app.sent_again (
    id bigint not null,
    former bigint not null,
    number bigint not null default nextval('app.number')
);
create table app.cancelled (id bigint not null);
create table app.let_run (
    head bigint not null,
    number bigint not null default nextval('app.number')
);
grant usage on schema app to client;
grant select, insert on all tables in schema app to client;

-- Everything that ever happened to an outcome: a second one could hide behind the first.
create table app.outcome (
    number bigint not null default nextval('app.number'),
    operation text not null,
    id bigint not null,
    state net.request_state not null
);
create function app.note_outcome() returns trigger language plpgsql security definer as $$
begin
    if tg_op = 'DELETE' then
        insert into app.outcome (operation, id, state) values (tg_op, old.id, old.state);
    else
        insert into app.outcome (operation, id, state) values (tg_op, new.id, new.state);
    end if;
    return null;
end $$;
create trigger note_outcome after insert or update or delete on net._http_response
    for each row execute function app.note_outcome();
"""


class SmallDisk(Cluster):
    """A cluster whose data directory is a file system in memory, with a clock of its own."""

    def __init__(self, clock: bool, disk: bool, **options: object) -> None:
        super().__init__(**options)
        self._disk = disk
        self._clock = clock
        self._memory: str | None = None

    def initdb(self) -> None:
        if self._disk:
            self.data.mkdir()
            self._mount("-t", "tmpfs", "-o", f"size={_DISK_MB}m", "none")
            os.chown(self.data, self.directory.stat().st_uid, self.directory.stat().st_gid)
            self.data.chmod(0o700)
        else:
            # A real disk makes each recovery slow, and this run wants many crashes.
            self._memory = tempfile.mkdtemp(prefix="pgnet-", dir="/dev/shm")
            os.chown(self._memory, self.directory.stat().st_uid, self.directory.stat().st_gid)
            self.data.symlink_to(self._memory)
        if self._clock:
            self.set_clock(0)
            self.server_environment = {
                "LD_PRELOAD": str(faketime()),
                "FAKETIME_TIMESTAMP_FILE": str(self.directory / "clock"),
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        super().initdb()

    def close(self) -> None:
        if self.running:
            self.stop("immediate")
        if self._disk and self.directory != Path():
            subprocess.run(["umount", self.data], check=False, stderr=subprocess.DEVNULL)
        super().close()
        if self._memory is not None:
            shutil.rmtree(self._memory, ignore_errors=True)

    def _mount(self, *arguments: str) -> None:
        subprocess.run(["mount", *arguments, str(self.data)], check=True)

    def _resize(self, size: int) -> bool:
        command = ["mount", "-o", f"remount,size={size}", str(self.data)]
        return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0

    def set_disk(self, full: bool) -> None:
        """Take away what is free of the disk, or give it back."""
        if not full:
            self._mount("-o", f"remount,size={_DISK_MB << 20}")
            return
        # The disk goes on being written to: the size just looked up may be too small already.
        for margin in range(1000):
            space = os.statvfs(self.data)
            if self._resize((space.f_blocks - space.f_bfree + margin) * space.f_frsize):
                return
        raise RuntimeError("the disk is filled faster than it can be made small")

    def set_clock(self, seconds: int) -> None:
        """Set the server's clock off by that; it follows within a second."""
        path = self.directory / "clock.new"
        path.write_text(f"{seconds:+d}\n")
        path.chmod(0o644)
        path.rename(self.directory / "clock")


# The title of a session past its authentication.
_LET_IN = re.compile(rf"postgres: \S+ {DATABASE} \S+ (?!authentication|startup|initializing)")


def _title(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    return ""


def _waits_in(pid: int) -> str:
    """The file behind the memory of the lock that a process waits for."""
    directory = Path(f"/proc/{pid}")
    with contextlib.suppress(OSError, ValueError, IndexError):
        call = (directory / "syscall").read_text().split()
        # 202 is futex on x86-64; its first argument is the lock's address
        if call[0] == "202":
            for line in (directory / "maps").read_text().splitlines():
                low, _, high = line.split()[0].partition("-")
                if int(low, 16) <= int(call[1], 16) < int(high, 16):
                    return f"a lock in {line.split(maxsplit=5)[5:]}"
    return ""


def _described(pid: int) -> str:
    """A process's title, state and what it waits in."""
    directory = Path(f"/proc/{pid}")
    with contextlib.suppress(OSError):
        stack = ""
        with contextlib.suppress(OSError):
            stack = (directory / "stack").read_text()
        status = (directory / "status").read_text()
        waits = [line for line in status.splitlines() if line.startswith(("State", "Sig", "Shd"))]
        return f"{pid} {_title(pid)}: {waits} {_waits_in(pid)} {stack}"
    return str(pid)


def faketime() -> Path | None:
    """The library that has a process see another time; without threads: backends have none."""
    return next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


def clock_can_be_moved() -> bool:
    return faketime() is not None


class Server:
    """The cluster of a run, its faults, and a guardian that starts it again when it has ended."""

    def __init__(self, addresses: list[str], tally: Tally, *, disk: bool) -> None:
        self.tally = tally
        self.disk = disk
        self.clock = clock_can_be_moved()
        self.cluster = SmallDisk(
            self.clock,
            self.disk,
            fsync="on",
            listen_addresses=",".join(["127.0.0.1", *addresses]),
            max_connections=MAX_CONNECTIONS,
            superuser_reserved_connections=RESERVED,
            max_prepared_transactions=30,
            max_wal_size="192MB",
            min_wal_size="64MB",
            checkpoint_timeout="30s",
            shared_buffers="64MB",
            # Not in files of the data directory: where the disk is full, statistics crash.
            dynamic_shared_memory_type="posix",
            log_checkpoints="off",
            log_statement="none",
        )
        self._addresses = addresses
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.findings: list[str] = []
        # when it had ended
        self.ends: list[float] = []
        # worth a look, but not a fault
        self.notes: list[str] = []
        self._guardian = threading.Thread(target=self._guard, daemon=True)

    def start(self) -> None:
        cluster = self.cluster
        if self.disk:
            # Shared memory is this process's alone, too: the rest of a killed server goes with it.
            command = ["mount", "-t", "tmpfs", "-o", f"size={_SHARED_MB * 4}m", "none", "/dev/shm"]
            subprocess.run(command, check=False, stderr=subprocess.DEVNULL)
        free = os.statvfs("/dev/shm")
        megabytes = free.f_bavail * free.f_frsize >> 20
        if megabytes < _SHARED_MB:
            self.notes.append(
                f"/dev/shm has {megabytes} MB, and PostgreSQL needs up to {_SHARED_MB} there: "
                "crashes of its statistics are for want of them"
            )
        crash.allow_cores()
        cluster.create()
        with (cluster.data / "pg_hba.conf").open("a") as rules:
            rules.writelines(f"host all all {address}/24 trust\n" for address in self._addresses)
        points = cluster.directory / "points"
        points.mkdir()
        os.chown(points, cluster.data.stat().st_uid, cluster.data.stat().st_gid)
        cluster.stop()
        self._guardian.start()
        cluster.wait_ready()
        cluster.create_database(name=DATABASE).close()
        with self.connect() as connection:
            connection.execute("create role client login")
            connection.execute("create role worker login")
            connection.execute("select net.grant_worker('worker')")
            for network in ["127.0.0.0/8", *(f"{address}/32" for address in self._addresses)]:
                connection.execute("select net.allow_network(%s)", (network,))
            # Sessions that run callbacks are killed, too.
            connection.execute("select net.configure('callback_attempts', '100')")
            # The clock is moved by hours, and what has been recorded is evidence.
            for name in ("ttl", "ttl_failed"):
                connection.execute("select net.configure(%s, '3000 days')", (name,))
            connection.execute(
                "select net.configure_retry(%s, %s)", (orders.QUICK, Jsonb(orders.QUICK_SETTINGS))
            )
            connection.execute(_SETUP_SQL)
            connection.execute(_POINTS_SQL.replace("{directory!r}", repr(str(points))))

    def close(self) -> None:
        self._ended.set()
        if self._guardian.is_alive():
            self._guardian.join()
        self.cluster.close()

    def dsn(self, user: str, host: str | None = None, port: int | None = None) -> str:
        """A connection string, over the Unix socket unless it says where."""
        return (
            f"host={host or self.cluster.socket_directory} port={port or self.cluster.port}"
            f" dbname={DATABASE} user={user} sslmode=disable gssencmode=disable"
        )

    def connect(self, user: str = "postgres") -> psycopg.Connection[Any]:
        return psycopg.connect(self.dsn(user), autocommit=True, connect_timeout=10)

    # ---- faults

    def crash(self, way: str) -> bool:
        """Stop it: immediate, fast, or kill (all of its processes at once); it is started again."""
        with self._lock:
            if not self.cluster.running:
                return False
            if way == "kill":
                self.cluster.kill()
            else:
                self._stop(way)
            return True

    def _stop(self, way: str) -> None:
        process = self.cluster.process
        assert process is not None
        process.send_signal(STOP_SIGNALS[way])
        try:
            # A process that is paused just now goes on within a few seconds; a recovery ends first.
            process.wait(60)
        except subprocess.TimeoutExpired:
            left = {pid: _title(pid) for pid in child_processes(process.pid)}
            # Nothing of pgnet runs in a session that is not let in yet, nor in the server's own
            # processes: what hangs there is counted, and not held against it.
            inside = [pid for pid, title in left.items() if _LET_IN.match(title)]
            if inside:
                waits = [_described(pid) for pid in inside]
                self.findings.append(f"no {way} stop within 60 s; what was left: {waits}")
            else:
                waits = [_described(pid) for pid in (process.pid, *left)]
                locked = any("futex" in described for described in waits)
                why = "was hung by a lock of its own" if locked else "did not stop"
                self.tally.add(f"PostgreSQL {why} where nothing of pgnet runs, and was killed")
                self.notes.append(f"no {way} stop within 60 s: {waits}")
        self.cluster.kill()

    def _guard(self) -> None:
        # The server ends with the thread that has started it: this one.
        while not self._ended.wait(0.02):
            with self._lock:
                process = self.cluster.process
                crash.collect(self.cluster.data, self.cores)
                if self.cluster.running:
                    continue
                self.ends.append(time.time())
                if process is not None:
                    self.tally.add("PostgreSQL ended by itself, and was started")
                try:
                    self.cluster.start()
                except (RuntimeError, TimeoutError):
                    # The disk is full, or a process of the last one is still about.
                    self.tally.add("PostgreSQL did not start, and was started again")
                    self.cluster.process = None

    @property
    def cores(self) -> Path:
        return self.cluster.directory / "cores"

    def crashes(self) -> list[str]:
        """Crashes to account for; what is PostgreSQL's own, by its stack, is counted and noted."""
        crash.collect(self.cluster.data, self.cores)
        log = self.cluster.log.read_text(errors="replace").splitlines()
        lines = [line for line in log if "terminated by signal 11" in line or "TRAP:" in line]
        for stack in crash.stacks(self.cores, self.cluster.bindir / "postgres"):
            if crash.is_postgresqls_own(stack):
                lines = lines[1:]
                self.tally.add("PostgreSQL crashed where nothing of pgnet runs")
                self.notes.append(f"a crash of PostgreSQL's own:\n{stack}")
            else:
                self.notes.append(f"a crash:\n{stack}")
        return lines

    def backends(self, where: str) -> list[int]:
        """Process ids of sessions by a condition on pg_stat_activity; none while it is down."""
        try:
            with self.connect() as connection:
                found = connection.execute(
                    f"select pid from pg_stat_activity where pid <> pg_backend_pid() and {where}"
                    " order by pid"
                ).fetchall()
        except psycopg.Error:
            return []
        return [pid for (pid,) in found]

    def signal(self, pid: int, number: signal.Signals) -> bool:
        """Send a signal to one of the server's processes, and to no other; whether it was there."""
        postmaster = self.cluster.process
        if postmaster is None or process_fields(pid)[1:2] != [str(postmaster.pid)]:
            return False
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    def kill_at(self, point: str, seconds: float) -> bool:
        """Kill the next backend that comes to this point; returns whether one was killed."""
        path = self.cluster.directory / "points" / point
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            return False
        deadline = time.monotonic() + seconds
        while path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            path.unlink()
        except FileNotFoundError:
            return True
        return False
