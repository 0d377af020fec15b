"""The queue as workers and callers see it, a statement at a time: what a state machine drives.

Workers are sessions that call the functions of a worker. Nobody sends anything: what an attempt
came to, the machine says. The clock is moved by moving every time in the tables, which to the
database is the same.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg

from servers.cluster import Database
from servers.waiting import wait_until

# A tick of the clock. Everything falls due in the middle of one, so that the time that statements
# take changes nothing.
TICK = 100
ROLES = ("alice", "bob")


@dataclass(slots=True)
class Worker:
    """A worker: its session, and the tokens of what it believes to hold."""

    number: int
    connection: psycopg.Connection[Any]
    id: int
    secret: UUID
    holds: dict[int, str] = field(default_factory=dict)
    alive: bool = True


class World:
    """A database that is emptied and used again, with the sessions of two callers and an owner."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.owner = database.connect()
        for role in ROLES:
            if self._rows("select to_regrole(%s) is null", role) == [(True,)]:
                self.owner.execute(f"create role {role} login")
        for name in ("ttl", "ttl_failed"):
            self.owner.execute("select net.configure(%s, '3000 days')", (name,))
        self.callers = {role: database.connect(role) for role in ROLES}
        # Transactions that stay open for a while.
        self.open_callers = {role: database.connect(role, autocommit=False) for role in ROLES}
        self.holder = database.connect(autocommit=False)
        self.owner.execute("set lock_timeout = '5 s'")
        self.workers: list[Worker] = []
        self._held: set[int] = set()
        # Sessions that were workers in an earlier example: what they have planned is kept.
        self._spare: list[psycopg.Connection[Any]] = []
        self._tables = self._empty_tables()
        self._times = [
            f"update {table} set {', '.join(f'{c} = {c} - %(by)s::interval' for c in columns)}"
            for table, columns in self._columns_of_times()
        ]
        self._number = 0
        self._began = time.monotonic()
        self._moved = 0.0

    def close(self) -> None:
        workers = [worker.connection for worker in self.workers]
        callers = [*self.callers.values(), *self.open_callers.values()]
        for connection in (self.owner, self.holder, *callers, *workers, *self._spare):
            connection.close()

    def _empty_tables(self) -> list[str]:
        """The tables that a new database has nothing in."""
        tables = self._rows(
            "select c.oid::regclass::text from pg_class c"
            " where c.relnamespace = any ('{net,pgnet}'::regnamespace[]) and c.relkind = 'r'"
        )
        return [
            table
            for (table,) in tables
            if self._rows(f"select not exists (select from {table})") == [(True,)]
        ]

    def _columns_of_times(self) -> list[tuple[str, list[str]]]:
        """The columns that hold times, but for the start of a session, by which it is known."""
        return [
            (table, columns)
            for table, columns in self._rows(
                "select c.oid::regclass::text, array_agg(quote_ident(a.attname))"
                " from pg_class c join pg_attribute a on a.attrelid = c.oid"
                " where c.relnamespace = any ('{net,pgnet}'::regnamespace[]) and c.relkind = 'r'"
                " and a.atttypid = 'timestamptz'::regtype and not a.attisdropped"
                " and a.attname <> 'backend_start' group by 1"
            )
            if table in self._tables
        ]

    def _rows(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        return self.owner.execute(query, arguments or None).fetchall()

    def reset(self) -> None:
        """Forget everything, and begin anew at the tick 0."""
        self.let_go()
        for connection in self.open_callers.values():
            connection.rollback()
        self._spare += [worker.connection for worker in self.workers if worker.alive]
        self.workers = []
        with self.owner.transaction():
            for table in self._tables:
                self.owner.execute(f"delete from {table}")
        self._began = time.monotonic()
        self._moved = 0.0

    # ---- the clock

    def advance(self, ticks: int) -> None:
        """Let time pass: every time in the tables moves into the past."""
        self._moved += ticks * TICK
        # What the statements themselves took is not to add up.
        by = self._moved - (time.monotonic() - self._began)
        self._began, self._moved = time.monotonic(), 0.0
        held = self._held
        self.let_go()
        with self.owner.transaction():
            for statement in self._times:
                self.owner.execute(statement, {"by": f"{by} s"})
        for id in held:
            self.hold(id)

    # ---- callers

    def call(self, role: str, query: str, *arguments: Any, stays_open: bool = False) -> Any:
        """What a statement gives; stays_open: in a transaction that is not ended yet."""
        callers = self.open_callers if stays_open else self.callers
        row = callers[role].execute(query, arguments or None).fetchone()
        assert row is not None
        return row[0]

    def send(self, role: str, host: str, stays_open: bool = False, **options: Any) -> int:
        id: int = self.call(
            role,
            "select net.http_request('GET', %s, options => %s::jsonb)",
            f"http://{host}/",
            json.dumps({k: v for k, v in options.items() if v is not None}),
            stays_open=stays_open,
        )
        return id

    def administer(self, query: str, *arguments: Any) -> None:
        """What the owner does."""
        self.owner.execute(query, arguments)

    # ---- another session's locks

    def hold(self, id: int) -> bool:
        """Lock a request's row; whether it was there."""
        found = self.holder.execute(
            "select id from net.http_request_queue where id = %s for update skip locked", (id,)
        ).fetchone()
        if found is not None:
            self._held.add(id)
        return found is not None

    def let_go(self) -> None:
        self.holder.rollback()
        self._held = set()

    # ---- workers

    def _rows_for(
        self, connection: psycopg.Connection[Any], query: str, arguments: tuple[Any, ...] = ()
    ) -> list[dict[str, Any]]:
        """What a worker's statement gives. As a worker, it comes again where a table is locked.

        VACUUM locks a table for a moment when it cuts off the end of its file.
        """
        for _ in range(20):
            try:
                with connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
                    return cursor.execute(query, arguments or None).fetchall()
            except psycopg.errors.LockNotAvailable:
                time.sleep(0.1)
        raise AssertionError(f"a table stays locked: {query}")

    def begin_worker(self) -> Worker:
        connection = self._spare.pop() if self._spare else self.database.connect()
        [row] = self._rows_for(
            connection, "select worker_id, worker_secret from pgnet.register_worker('process')"
        )
        self._number += 1
        worker = Worker(self._number, connection, row["worker_id"], row["worker_secret"])
        self.workers.append(worker)
        return worker

    def kill(self, worker: Worker) -> None:
        """End its session; returns when the server knows."""
        pid = worker.connection.info.backend_pid
        worker.connection.close()
        worker.alive = False
        wait_until(
            lambda: self._rows("select count(*) from pg_stat_activity where pid = %s", pid),
            lambda rows: rows == [(0,)],
            "the session is gone",
            interval=0.001,
        )

    def come_back(self, worker: Worker) -> bool:
        """Connect anew, with the secret and what it believes to hold; whether it is the same."""
        worker.connection = self.database.connect()
        [row] = self._rows_for(
            worker.connection,
            "select worker_id, worker_secret from pgnet.register_worker('process', %s, %s, %s)",
            (worker.id, worker.secret, list(worker.holds)),
        )
        same = bool(row["worker_id"] == worker.id)
        worker.id, worker.secret = row["worker_id"], row["worker_secret"]
        worker.alive = True
        return same

    def claim(
        self, worker: Worker, slots: int, *, quarantined: bool = False
    ) -> tuple[list[dict[str, Any]], bool]:
        """Claim; gives the rows by the names of columns, and whether there is more to look at."""
        rows = self._rows_for(
            worker.connection,
            "select * from pgnet.claim_requests(worker_id => %s::bigint, slots => %s::int,"
            " host_quota => %s::int, single_host_quota => %s::int, full_hosts => '{}',"
            " max_bytes => 1000000000, after_host => '', quarantined_only => %s)",
            (worker.id, slots, slots, slots, quarantined),
        )
        claimed = [row for row in rows if row["id"] is not None]
        worker.holds |= {row["id"]: row["token"] for row in claimed}
        return claimed, len(rows) > len(claimed)

    def record(self, worker: Worker, outcomes: dict[int, dict[str, Any]]) -> list[int]:
        """Record outcomes by ids; gives those that are deferred, which the worker keeps."""
        given = [
            {"id": id, "token": worker.holds[id], "timed_out": False, **outcome}
            for id, outcome in outcomes.items()
        ]
        [row] = self._rows_for(
            worker.connection,
            "select pgnet.record_outcomes(%s::json) as deferred",
            (json.dumps(given),),
        )
        deferred: list[int] = row["deferred"]
        for id in outcomes.keys() - set(deferred):
            del worker.holds[id]
        return deferred

    def release(self, worker: Worker, ids: list[int], reason: str | None) -> None:
        self._rows_for(
            worker.connection,
            "select pgnet.release_requests(%s, %s::uuid[], %s)",
            (ids, [worker.holds.pop(id) for id in ids], reason),
        )

    def heartbeat(self, worker: Worker) -> dict[str, Any]:
        """The duties of all workers; the worker forgets what is no longer its own."""
        [row] = self._rows_for(
            worker.connection,
            "select pgnet.heartbeat(%s::bigint, %s) as said",
            (worker.id, list(worker.holds)),
        )
        said: dict[str, Any] = row["said"]
        assert said["faults"] in ([], {}, None), said["faults"]
        for id in said["dropped"]:
            del worker.holds[id]
        return said

    # ---- what is there

    def known(self, id: int) -> list[str]:
        """All that the tables have of a request, for a person who looks why a step failed."""
        found = []
        for table, columns in self._rows(
            "select c.oid::regclass::text, array_agg(a.attname::text) from pg_class c"
            " join pg_attribute a on a.attrelid = c.oid"
            " where c.relnamespace = any ('{net,pgnet}'::regnamespace[]) and c.relkind = 'r'"
            " and a.attname = any ('{id,request_id,after_id,head,retry_of}')"
            " and a.atttypid = 'bigint'::regtype group by 1"
        ):
            where = " or ".join(f"{column} = {id}" for column in columns)
            query = f"select jsonb_strip_nulls(to_jsonb(t)) from {table} t where {where}"
            found += [f"{table} {row}" for (row,) in self._rows(query)]
        return found

    def queued(self) -> dict[int, int | None]:
        """The requests without an outcome, and the workers that have them, by their ids."""
        return dict(
            self._rows(
                "select q.id, c.worker from net.http_request_queue q"
                " left join pgnet.claim c on c.id = q.id"
            )
        )

    def outcomes(self) -> dict[int, str]:
        return dict(self._rows("select id, state::text from net._http_response"))

    def failures(self) -> set[int]:
        return {id for (id,) in self._rows("select id from pgnet.failed")}

    def claims(self) -> dict[int, int]:
        return dict(self._rows("select id, worker from pgnet.claim"))
