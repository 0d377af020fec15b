"""One run: start everything, let it go wrong, wait until all has drained, check."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from chaos import checker, culprit, faults, orders, server, witness
from chaos.clients import Clients
from chaos.link import Link
from chaos.proxy import Proxy
from chaos.tally import Tally
from chaos.workers import BackendWorker, ProcessWorker

# The value "own" says that this process has a mount namespace of its own.
_MOUNTS = "PGNET_CHAOS_MOUNTS"
# Seconds within which everything must have an outcome once nothing goes wrong any more.
DRAIN = 150


class Run:
    """Everything that faults strike at."""

    def __init__(
        self, seed: int, seconds: float, rate: float, directory: Path, *, calm: bool = False
    ) -> None:
        self.seed = seed
        self.calm = calm
        self.seconds = seconds
        self.directory = directory
        self.tally = Tally()
        # When something happened after which a host may get more at once than its limit.
        self.upsets: list[float] = []
        self.link_lock = threading.Lock()
        self.witness_lock = threading.Lock()
        self._rate = rate
        self._stack = contextlib.ExitStack()
        disk = os.environ.get(_MOUNTS) == "own"
        self.link: Link | None = None
        # Only root may make a link, and in some chroots not even root.
        with contextlib.suppress(OSError, RuntimeError, subprocess.SubprocessError):
            self.link = Link()
            self._stack.callback(self.link.close)
        addresses = [self.link.address] if self.link else []
        self.server = server.Server(addresses, self.tally, disk=disk)
        self.allowed = frozenset(
            [
                *(["libfaketime"] if self.server.clock else []),
                *(["a file system of its own"] if disk else []),
                *(["a network namespace"] if self.link else []),
            ]
        )

    def __enter__(self) -> Run:
        stack = self._stack
        try:
            stack.callback(self.server.close)
            self.server.start()
            sockets = [Path("/proc/net/tcp"), *([self.link.sockets] if self.link else [])]
            host = self.link.address if self.link else "127.0.0.1"
            self.record = self.directory / "witness.jsonl"
            self.witness = stack.enter_context(
                witness.running(self.record, str(self.seed), host, sockets)
            )
            self._limit_hosts()
            self.proxy = Proxy(
                self.server.cluster.port, lambda port: bool(culprit.kill(port, sockets))
            )
            stack.callback(self.proxy.close)
            self._make_workers()
            proxied = self.server.dsn(server.CLIENT, "127.0.0.1", self.proxy.port)
            direct = self.server.dsn(server.CLIENT)
            self.clients = Clients(
                [direct, proxied, direct] * 3,
                direct,
                (self.witness.url, self.witness.limited_url),
                self._rate,
                self.seed,
                self.tally,
            )
        except BaseException:
            stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _limit_hosts(self) -> None:
        limits = {"concurrency": orders.CONCURRENCY, "rate": f"{orders.RATE}/second"}
        host = self.witness.limited_url.split("/")[2]
        with self.server.connect() as connection:
            connection.execute(
                "select net.configure_host(%s, %s)",
                (host, Jsonb({**limits, "burst": orders.BURST})),
            )
            # A host that was broken for a minute would be broken for longer than the run lasts.
            breaker = {"open_milliseconds": 500, "max_open_milliseconds": 4000}
            connection.execute("select net.configure_host('*', %s)", (Jsonb({"breaker": breaker}),))

    def _make_workers(self) -> None:
        where = self.server.cluster.directory
        user = server.WORKER
        direct = self.server.dsn(user)
        proxied = self.server.dsn(user, "127.0.0.1", self.proxy.port)
        self.processes = [
            ProcessWorker("by the socket", direct, where, self.tally),
            ProcessWorker("by the proxy", proxied, where, self.tally),
        ]
        if self.link is not None:
            remote = self.server.dsn(user, self.link.address)
            self.processes.append(
                ProcessWorker("by the cable", remote, where, self.tally, prefix=self.link.command())
            )
        self.sessions = [
            BackendWorker("a session", direct, self.tally),
            BackendWorker("a session by the proxy", proxied, self.tally),
            BackendWorker("callbacks", direct, self.tally, "call net.run_callbacks()"),
        ]
        self.workers: list[ProcessWorker | BackendWorker] = [*self.processes, *self.sessions]

    def go(self) -> checker.Evidence:
        """All of it; gives what there is to check."""
        for worker in self.workers:
            worker.start()
        self.clients.start()
        if self.calm:
            self.witness.tell("take your time")
        kinds = [kind for kind in faults.KINDS if kind.gentle or not self.calm]
        plan = faults.Faults(self, self.seed, self.seconds, kinds, self.allowed)
        self.left_out = plan.left_out
        plan.strike()
        self.server.cluster.set_clock(0)
        self.clients.stop()
        self._bring_times_near()
        self.witness.tell("behave")
        self.drained = self._drain()
        evidence = self._evidence()
        for worker in self.workers:
            worker.stop()
            evidence.findings += worker.findings
        evidence.findings += plan.findings + self.server.findings
        evidence.findings += self.server.crashes()
        return evidence

    def _bring_times_near(self) -> None:
        """What was to wait for seconds, by a clock that was ahead of this one, waits for seconds.

        not_before is a time, and it comes when the clock says so: tomorrow, perhaps.
        """
        with self.server.connect() as connection:
            connection.execute(
                "update pgnet.flow set not_before = clock_timestamp() + interval '1 s'"
                " where not_before > clock_timestamp() + interval '5 s'"
            )

    def _drain(self) -> float:
        """Wait until nothing is queued; gives the seconds it took."""
        started = time.monotonic()
        while time.monotonic() < started + DRAIN:
            with contextlib.suppress(psycopg.Error), self.server.connect() as connection:
                found = connection.execute(
                    "select (select count(*) from net.http_request_queue),"
                    " (select count(*) from pgnet.claim), (select count(*) from pg_prepared_xacts),"
                    " (select count(*) from pgnet.mark where not done),"
                    " (select count(*) from net.callbacks where state not in ('done', 'failed'))"
                ).fetchone()
                if found == (0, 0, 0, 0, 0):
                    break
                # Their pauses are longer than this wait.
                connection.execute("update pgnet.callback_turn set paused_until = '-infinity'")
                connection.execute(
                    "update pgnet.callback set due = clock_timestamp()"
                    " where due > clock_timestamp() + interval '1 s'"
                )
                with self.server.connect(server.CLIENT) as client:
                    client.execute(orders.UNBLOCK, {"count": 1000})
            time.sleep(0.2)
        return time.monotonic() - started

    def _evidence(self) -> checker.Evidence:
        evidence = checker.Evidence(
            acknowledged=set(self.clients.acknowledged),
            spans=self.clients.acknowledged,
            undone=self.clients.undone,
            calm=self.calm,
            upsets=sorted(self.upsets + self.server.ends),
        )
        for line in self.record.read_text().splitlines():
            entry: dict[str, Any] = json.loads(line)
            if "killed" in entry:
                if entry["killed"]:
                    what = "a worker process" if "python" in entry["killed"] else "a session"
                    self.tally.add(f"of these, at the witness: {what}, {entry['point']}")
            elif "wrong_body" in entry:
                evidence.wrong_bodies.append(entry["key"])
            else:
                evidence.sightings.append(checker.Sighting(**entry))
        with self.server.connect() as connection:

            def rows(query: str) -> list[tuple[Any, ...]]:
                return connection.execute(query).fetchall()

            evidence.sent = [
                checker.Sent(*row)
                for row in rows(
                    "select key, id, method, delivery, retry, max_attempts, idempotency_key, null,"
                    " ordering_key, blocks, after, after_any_end,"
                    " extract(epoch from not_before)::float8,"
                    " extract(epoch from not_after)::float8, limited, calls from app.sent"
                )
            ]
            evidence.sent += _sent_again(
                evidence.sent, rows("select id, former from app.sent_again")
            )
            evidence.let_run = [
                (head, number)
                for head, number in rows(
                    "select head, number from app.let_run"
                    " union all select former, number from app.sent_again"
                )
            ]
            evidence.ended = dict(
                rows("select id, number from app.outcome where operation = 'INSERT'")
            )
            evidence.called = [
                (id, state) for id, state in rows("select id, state::text from app.called")
            ]
            evidence.sets = [tuple(ids) for (ids,) in rows("select ids from app.made_set")]
            evidence.called_sets = [
                (tuple(ids), tuple(states))
                for ids, states in rows("select ids, states::text[] from app.called_set")
            ]
            evidence.cancelled = [id for (id,) in rows("select id from app.cancelled")]
            evidence.attempts = [
                checker.Attempt(*row)
                for row in rows("select request_id, attempt, state from net.attempts")
            ]
            evidence.responses = [
                checker.Response(*row)
                for row in rows(
                    "select id, url, state::text, status_code, content, error_msg, attempts"
                    " from net._http_response"
                )
            ]
            evidence.operations = [
                (operation, id, state)
                for operation, id, state in rows(
                    "select operation, id, state::text from app.outcome order by number"
                )
            ]
            evidence.failed = {id for (id,) in rows("select id from net.failures")}
            evidence.marked = {
                id for (id,) in rows("select request_id from pgnet.mark where not done")
            }
            evidence.queued = {id for (id,) in rows("select id from net.http_request_queue")}
            evidence.claimed = {id for (id,) in rows("select id from pgnet.claim")}
        return evidence

    def keep(self) -> None:
        """Copy what a person needs to find out."""
        for log in self.server.cluster.directory.glob("*log*"):
            if log.is_file():
                shutil.copy(log, self.directory / log.name)

    def explain(self, violation: checker.Violation) -> str:
        """All that the database and the witness know of a request."""
        lines = [f"{violation.kind}: {violation.subject}: {violation.detail}"]
        with self.server.connect() as connection:
            row = connection.execute(
                "select id, key, to_jsonb(s) from app.sent s where key = %s or id::text = %s",
                (violation.subject, violation.subject),
            ).fetchone()
            if row is not None:
                id, key, sent = row
                lines.append(f"  sent {sent}")
                for table, column in (
                    ("net._http_response", "id"),
                    ("pgnet.attempt", "request_id"),
                    ("net.http_request_queue", "id"),
                    ("pgnet.claim", "id"),
                    ("app.outcome", "id"),
                ):
                    for (found,) in connection.execute(
                        f"select jsonb_strip_nulls(to_jsonb(t)) from {table} t where {column} = %s",
                        (id,),
                    ):
                        lines.append(f"  {table} {found}")
            else:
                key = violation.subject
        lines += [
            f"  witness {line}"
            for line in self.record.read_text().splitlines()
            if f'"{key}"' in line
        ]
        return "\n".join(lines)


def _sent_again(sent: list[checker.Sent], again: list[tuple[Any, ...]]) -> Iterator[checker.Sent]:
    """The requests that net.retry made: as the first ones, with ids of their own."""
    requests = {request.id: request for request in sent}
    for id, former in sorted(again):
        # It does not wait for what the first one waited for.
        requests[id] = replace(
            requests[former], id=id, former=former, after=None, not_before=None, not_after=None
        )
        yield requests[id]


def report(run: Run, evidence: checker.Evidence, violations: list[checker.Violation]) -> None:
    counts = run.tally.counts()
    struck = Counter({name: count for name, count in counts.items() if name.startswith("fault: ")})
    kills = sum(count for name, count in struck.items() if "kill -9" in name)
    stops = struck["fault: immediate stop of PostgreSQL"]
    rows: list[tuple[str, object]] = [
        *checker.summary(evidence, violations),
        *sorted((name, count) for name, count in counts.items() if name not in struck),
        *sorted(struck.items()),
        ("faults: kill -9, all together", kills),
        ("faults: immediate stops", stops),
        ("seconds until all had an outcome", f"{run.drained:.1f}"),
    ]
    for name, value in rows:
        print(f"{value:>8}  {name}")
    for note in run.server.notes:
        print(f"note: {note}")
    for name in run.left_out:
        print(f"not possible here: {name}")


def in_own_mounts() -> None:
    """Root's file systems are mounted where nobody else sees them, and go with this process."""
    if _MOUNTS in os.environ:
        return
    command = ["unshare", "--mount", "--propagation", "private"]
    tried = subprocess.run([*command, "true"], stderr=subprocess.DEVNULL, check=False)
    if tried.returncode == 0:
        command += [sys.executable, "-m", "chaos", *sys.argv[1:]]
        os.execvpe("unshare", command, {**os.environ, _MOUNTS: "own"})


def main(seconds: float, seed: int | None, rate: float, *, calm: bool) -> int:
    if seed is None:
        seed = random.SystemRandom().randrange(1 << 32)
    print(f"{'calm' if calm else 'chaos'} for {seconds:g} s, SEED={seed}", flush=True)
    directory = Path("build/chaos") / str(seed)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with Run(seed, seconds, rate, directory.resolve(), calm=calm) as run:
        evidence = run.go()
        violations = checker.check(evidence)
        report(run, evidence, violations)
        for violation in violations[:20]:
            print(run.explain(violation))
        run.keep()
    print(f"SEED={seed}: " + (f"{len(violations)} violations" if violations else "all is well"))
    return 1 if violations else 0
