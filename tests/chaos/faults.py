"""The faults of a run and their times, drawn by a seed, so that a run can be made again, nearly.

A fault happens to whatever is there at its time, and is counted only when it has happened.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from chaos import server

if TYPE_CHECKING:
    from chaos.run import Run

Strike = Callable[["Run", random.Random], bool]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault.

    rate: of ten minutes. needs: what the machine must allow, if anything. gentle: no request is
    sent twice for it, nor does one fail.
    """

    name: str
    rate: int
    strike: Strike
    needs: str | None = None
    gentle: bool = False


_kinds: list[Kind] = []


def _kind(
    name: str, rate: int, needs: str | None = None, *, gentle: bool = False
) -> Callable[[Strike], Strike]:
    def note(strike: Strike) -> Strike:
        _kinds.append(Kind(name, rate, strike, needs, gentle))
        return strike

    return note


# ---- processes

_WORKERS_SESSION = "application_name like 'pgnet worker%' or application_name = 'chaos worker'"
_ANY_SESSION = "backend_type = 'client backend'"
_OWN_PROCESS = "backend_type in ('checkpointer', 'walwriter', 'background writer')"


@_kind("kill -9 of a worker process", 480)
def _kill_process(run: Run, choose: random.Random) -> bool:
    return choose.choice(run.processes).signal(signal.SIGKILL)


@_kind("kill -9 of a worker's session", 44)
def _kill_workers_session(run: Run, choose: random.Random) -> bool:
    return _signal_one(run, choose, _WORKERS_SESSION, signal.SIGKILL)


@_kind("kill -9 of any session", 36)
def _kill_any_session(run: Run, choose: random.Random) -> bool:
    return _signal_one(run, choose, _ANY_SESSION, signal.SIGKILL)


@_kind("kill -9 of a process of the server's own", 6)
def _kill_own_process(run: Run, choose: random.Random) -> bool:
    return _signal_one(run, choose, _OWN_PROCESS, signal.SIGKILL)


@_kind("SIGSTOP of a worker process, and SIGCONT", 40)
def _pause_process(run: Run, choose: random.Random) -> bool:
    worker = choose.choice(run.processes)
    if not worker.signal(signal.SIGSTOP):
        return False
    time.sleep(choose.uniform(0.5, 6))
    worker.signal(signal.SIGCONT)
    return True


@_kind("SIGSTOP of a worker process, its sessions ended, and SIGCONT", 30)
def _orphan_process(run: Run, choose: random.Random) -> bool:
    """A process is rescued while it sleeps, and comes back with what it had begun."""
    run.upsets.append(time.time())
    worker = choose.choice(run.processes)
    if not worker.signal(signal.SIGSTOP):
        return False
    for pid in run.server.backends(f"({_WORKERS_SESSION}) and application_name like 'pgnet%'"):
        run.server.signal(pid, signal.SIGTERM)
    time.sleep(choose.uniform(2, 7))
    worker.signal(signal.SIGCONT)
    return True


@_kind("SIGSTOP of a session, and SIGCONT", 30)
def _pause_session(run: Run, choose: random.Random) -> bool:
    where = choose.choice([_WORKERS_SESSION, _ANY_SESSION])
    pids = run.server.backends(where)
    if not pids:
        return False
    pid = choose.choice(pids)
    if not run.server.signal(pid, signal.SIGSTOP):
        return False
    time.sleep(choose.uniform(0.5, 4))
    run.server.signal(pid, signal.SIGCONT)
    return True


@_kind("pg_terminate_backend", 60)
def _terminate(run: Run, choose: random.Random) -> bool:
    return _tell_one(run, choose, "pg_terminate_backend")


@_kind("pg_cancel_backend", 40)
def _cancel(run: Run, choose: random.Random) -> bool:
    return _tell_one(run, choose, "pg_cancel_backend")


@_kind("SIGTERM of a worker process", 40, gentle=True)
def _stop_process(run: Run, choose: random.Random) -> bool:
    worker = choose.choice(run.processes)
    took = worker.terminate()
    return took is not None


@_kind("net.worker_restart()", 10, gentle=True)
def _restart_workers(run: Run, choose: random.Random) -> bool:
    return _say(run, "select net.worker_restart()")


@_kind("a setting changed", 20, gentle=True)
def _change_setting(run: Run, choose: random.Random) -> bool:
    return _say(run, f"select net.configure('batch_size', '{choose.randint(2, 500)}')")


@_kind("pg_terminate_backend of a worker process's session", 15, gentle=True)
def _terminate_process_session(run: Run, choose: random.Random) -> bool:
    """The process comes back as the same worker, and keeps what it has begun."""
    return _say(
        run,
        "select pg_terminate_backend(a.pid) from pg_stat_activity a"
        " join pgnet.worker w on w.pid = a.pid and w.backend_start = a.backend_start"
        " where w.kind = 'process' order by random() limit 1",
    )


def _say(run: Run, statement: str) -> bool:
    with contextlib.suppress(psycopg.Error), run.server.connect() as connection:
        return connection.execute(statement).fetchone() is not None
    return False


def _signal_one(run: Run, choose: random.Random, where: str, number: signal.Signals) -> bool:
    pids = run.server.backends(where)
    return bool(pids) and run.server.signal(choose.choice(pids), number)


def _tell_one(run: Run, choose: random.Random, function: str) -> bool:
    where = choose.choice([_WORKERS_SESSION, _ANY_SESSION])
    pids = run.server.backends(where)
    if pids:
        with contextlib.suppress(psycopg.Error), run.server.connect() as connection:
            found = connection.execute(f"select {function}(%s)", (choose.choice(pids),)).fetchone()
            return found == (True,)
    return False


# ---- the server


@_kind("immediate stop of PostgreSQL", 64)
def _stop_immediately(run: Run, choose: random.Random) -> bool:
    return run.server.crash("immediate")


@_kind("kill -9 of all of PostgreSQL", 12)
def _kill_server(run: Run, choose: random.Random) -> bool:
    return run.server.crash("kill")


@_kind("fast stop of PostgreSQL", 10)
def _stop_fast(run: Run, choose: random.Random) -> bool:
    return run.server.crash("fast")


@_kind("full disk", 12, "a file system of its own")
def _fill_disk(run: Run, choose: random.Random) -> bool:
    run.server.cluster.set_disk(full=True)
    try:
        time.sleep(choose.uniform(0.5, 2.5))
    finally:
        run.server.cluster.set_disk(full=False)
    return True


@_kind("clock jump", 36, "libfaketime")
def _move_clock(run: Run, choose: random.Random) -> bool:
    """Seconds, minutes or hours, forward or back; sometimes it comes right again."""
    span = choose.choice([5, 60, 600, 7200, 86400])
    run.server.cluster.set_clock(choose.choice([0, choose.randint(-span, span)]))
    return True


@_kind("all connections taken", 12)
def _take_connections(run: Run, choose: random.Random) -> bool:
    """All connections are taken, but for those that are reserved for superusers."""
    taken: list[psycopg.Connection[Any]] = []
    try:
        while len(taken) < server.MAX_CONNECTIONS:
            taken.append(psycopg.connect(run.server.dsn(server.CLIENT), connect_timeout=5))
    except psycopg.OperationalError as error:
        exhausted = "too many clients" in str(error) or "remaining connection slots" in str(error)
    else:
        exhausted = False
    if exhausted:
        # A client that loses its connection now cannot open another.
        _signal_one(run, choose, _WORKERS_SESSION, signal.SIGTERM)
        time.sleep(choose.uniform(0.5, 3))
    for connection in taken:
        connection.close()
    return exhausted


def _at_point(point: str) -> Strike:
    return lambda run, choose: run.server.kill_at(point, 4)


for _point in server.POINTS:
    _kind(f"kill -9 of a session {_point.replace(' ', ' the commit of a ')}", 9)(_at_point(_point))


# ---- the network


@_kind("connections cut", 40)
def _cut(run: Run, choose: random.Random) -> bool:
    return run.proxy.cut() > 0


@_kind("connections that pass nothing on", 14)
def _hold(run: Run, choose: random.Random) -> bool:
    run.proxy.hold(True)
    time.sleep(choose.choice([1, 4, 8]))
    if choose.random() < 0.5:
        run.proxy.cut()
    run.proxy.hold(False)
    return True


def _break(when: str, kind: str) -> Strike:
    return lambda run, choose: run.proxy.break_at(when, kind, 4)


_BREAKS = {
    "before": "connection cut before the commit of a {}",
    "after": "answer of a {} swallowed after its commit",
    "killed": "kill -9 of a worker process after the commit of a {}",
}
for _when, _name in _BREAKS.items():
    for _what in ("claim", "record"):
        _kind(_name.format(_what), 20)(_break(_when, _what))
for _when in ("before", "after"):
    _kind(_BREAKS[_when].format("transaction of a client"), 20)(_break(_when, "commit"))


@_kind("cable pulled: packets dropped", 14, "a network namespace")
def _pull_cable(run: Run, choose: random.Random) -> bool:
    if run.link is None or not run.link_lock.acquire(blocking=False):
        return False
    try:
        run.upsets.append(time.time())
        run.link.pull()
        # Sometimes longer than a connection lives without an answer.
        time.sleep(choose.choice([1, 2, 5, 10, 32]))
        run.link.plug()
    finally:
        run.link_lock.release()
    return True


# ---- points that the witness sees


def _at_witness(point: str) -> Strike:
    def strike(run: Run, choose: random.Random) -> bool:
        with run.witness_lock:
            before = run.witness.kills()
            run.witness.tell(f"kill {point}")
            deadline = time.monotonic() + 4
            while run.witness.kills() == before and time.monotonic() < deadline:
                time.sleep(0.02)
            run.witness.tell(f"spare {point}")
            return run.witness.kills() > before

    return strike


for _point in ("connect", "sent"):
    _kind(f"kill -9 at the witness: {_point}", 40)(_at_witness(_point))


KINDS: Sequence[Kind] = tuple(_kinds)
# Without other faults, gentle ones come this many times as often.
_CALM = 6
# One after the other, and with so many seconds between them: a worker that loses its connection
# again and again while it stops has to give up.
_CALM_PAUSE = 0.7


# ---- all of it


class Faults:
    """Strikes for so many seconds, with faults of these kinds."""

    def __init__(
        self,
        run: Run,
        seed: int,
        seconds: float,
        kinds: Sequence[Kind],
        allowed: frozenset[str],
    ) -> None:
        self._run = run
        self._seconds = seconds
        self.left_out = [kind.name for kind in kinds if kind.needs and kind.needs not in allowed]
        choose = random.Random(f"{seed}/faults")
        self._plan: list[tuple[float, Kind, random.Random]] = []
        for kind in kinds:
            if kind.name in self.left_out:
                continue
            rate = kind.rate * (_CALM if run.calm else 1)
            # The run has each kind at least once, however short it is.
            for number in range(max(1, round(rate * seconds / 600))):
                at = choose.uniform(0.02, 0.98) * seconds
                self._plan.append((at, kind, random.Random(f"{seed}/{kind.name}/{number}")))
        self._plan.sort(key=lambda planned: planned[0])
        self.findings: list[str] = []
        self._one_by_one = threading.Lock()

    def strike(self) -> None:
        started = time.monotonic()
        threads: list[threading.Thread] = []
        for at, kind, choose in self._plan:
            time.sleep(max(0.0, started + at - time.monotonic()))
            thread = threading.Thread(target=self._strike, args=(kind, choose), daemon=True)
            thread.start()
            threads.append(thread)
        time.sleep(max(0.0, started + self._seconds - time.monotonic()))
        for thread in threads:
            thread.join(90)
            if thread.is_alive():
                raise TimeoutError("a fault does not end")

    def _strike(self, kind: Kind, choose: random.Random) -> None:
        try:
            # The process that this fault strikes may be away just now.
            for _ in range(5):
                if self._run.calm:
                    with self._one_by_one:
                        struck = kind.strike(self._run, choose)
                        time.sleep(_CALM_PAUSE)
                else:
                    struck = kind.strike(self._run, choose)
                if struck:
                    self._run.tally.add(f"fault: {kind.name}")
                    return
                time.sleep(0.3)
        except Exception as error:  # the harness's own, which must not look like calm
            self.findings.append(f"the fault {kind.name!r}: {type(error).__name__}: {error}")
