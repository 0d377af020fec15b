"""The outbox of a worker that is a backend: SPI, the server's own interface.

How it works
------------

The worker runs inside a ``call net.work()``, a procedure that may commit. PL/Python keeps its calls
on a stack, so that a switch of greenlets below SPI crashes the server. Hence SPI is used from the
main greenlet only, and nothing below it switches. Each use ends with a commit or a rollback: until
then the snapshot of the statement stays pinned, which keeps vacuum from its work.

Nothing else of the worker runs during a statement. So each one is bounded: it waits for no lock
longer than half a second, and claims a batch at most.

A cancel, a statement_timeout, a shutdown set a variable of the server, InterruptPending, from a
signal handler. Nobody looks at it while the worker waits in gevent's loop. The worker reads it
after each round of the loop, and runs an empty statement, in which the server acts upon it. Such
errors end the call, and so the worker: they go through as plpy raises them.

Commits of others send datagrams to a socket that this process listens to. See server/wake_up.py.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gevent

import pgnet
from pgnet.outbox import (
    Claim,
    Claimed,
    Demand,
    OutboxError,
    OutboxRefused,
    OutboxUnregistered,
    Outcome,
    Reported,
    Secret,
    Stub,
    WorkerState,
    encode_outcomes,
    read_secrets,
    read_stubs,
    translate_error,
)
from pgnet.server import backend
from pgnet.server.waiting import is_gone
from pgnet.server.wake_up import Sender, close_listener
from pgnet.server.wake_up import listener as own_listener

# Types are looked up in the session's search_path, so those that the grammar does not know are
# written with their schema.
TEXT, _JSON, _UUID = "pg_catalog.text", "pg_catalog.json", "pg_catalog.uuid"
_OID = "pg_catalog.oid"
_CLAIM = (
    "select * from pgnet.claim_requests($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, rooms => $12)"
)
_CLAIM_TYPES = [
    *("bigint", "int", "int", "int", f"{TEXT}[]", "bigint"),
    *(TEXT, "boolean", _OID, TEXT, _OID, "pg_catalog.jsonb"),
]
# A signal may come between the check and the wait of the loop, and is seen this much later, in
# seconds.
_INTERRUPT_CHECK = 0.4
# A cancel, or a statement_timeout, which has the same SQLSTATE: both end the call.
_QUERY_CANCELED = "57014"
_INSUFFICIENT_PRIVILEGE, REFUSED = "42501", "55000"
# Seconds that a worker waits for an extension that was dropped to be created again.
_ABSENCE = 60.0
# A claim whose commit is asynchronous is gone if the server crashes, and with it the count of the
# attempt. A request that crashes the server would be attempted for ever. So for so many seconds
# after a worker has registered, its claims are on disk before anything is sent.
_SYNCHRONOUS_FOR = 10.0


class SpiOutbox:
    """See pgnet.outbox.Outbox."""

    def __init__(self, plpy: Any) -> None:
        self._plpy = plpy
        self._plans: dict[str, Any] = {}
        self._worker_id: int | None = None
        self._secret: str | None = None
        self._absent_since: float | None = None
        self._slot: int | None = None
        self._watchers: list[Any] = []
        self._orphaned = False
        self._synchronous_until = 0.0
        self.wake_up_fault: str | None = None

    def _call(self, sql: str, types: Sequence[str] = (), *arguments: Any) -> Any:
        plan = self._plans.get(sql)
        if plan is None:
            plan = self._plans[sql] = self._plpy.prepare(sql, list(types))
        try:
            return self._plpy.execute(plan, list(arguments))
        except self._plpy.SPIError as error:
            if _unpack(error.spidata[0]) == _INSUFFICIENT_PRIVILEGE:
                # If this role may not run workers any more, its error is the one to raise.
                self._plpy.execute("select pgnet.require_worker()")
            raise

    @contextlib.contextmanager
    def _transaction(self, *, refusable: bool = False) -> Iterator[None]:
        """Commit at the end. An error rolls back, and becomes an error of the outbox.

        What ends the call goes through as plpy raises it: a cancel, rights that are gone, and a
        refusal where ``refusable`` says that one may come. Before the worker has registered every
        error does: the caller of net.work() is there to read it.
        """
        try:
            yield
            self._plpy.commit()
        except self._plpy.SPIError as error:
            code, _detail, hint, *_rest = error.spidata
            sqlstate = _unpack(code)
            if sqlstate == _QUERY_CANCELED or self._worker_id is None:
                raise
            self._plpy.rollback()
            if sqlstate == _INSUFFICIENT_PRIVILEGE or (refusable and sqlstate == REFUSED):
                raise
            message = (str(error) or sqlstate).splitlines()[0]
            raise translate_error(sqlstate, message, hint, self._is_absent) from error

    def _is_absent(self) -> bool:
        """Whether the database does not have the extension."""
        rows = self._plpy.execute(
            "select 1 from pg_catalog.pg_extension where extname operator(pg_catalog.=) 'pgnet'"
        )
        self._plpy.commit()
        return len(rows) == 0

    def connect(self, owned: Sequence[int]) -> bool:
        former = self._worker_id, self._secret
        try:
            with self._transaction(refusable=True):
                row = self._call(
                    "select * from pgnet.register_worker('backend', $1, $2, $3, $4, $5)",
                    ["bigint", _UUID, "bigint[]", TEXT, TEXT],
                    self._worker_id,
                    self._secret,
                    list(owned),
                    socket.gethostname(),
                    pgnet.__version__,
                )[0]
                self.wake_up_fault = self._call("select pgnet.wake_up_fault() as fault")[0]["fault"]
        except OutboxUnregistered as error:
            self._absent_since = self._absent_since or time.monotonic()
            if time.monotonic() > self._absent_since + _ABSENCE:
                raise OutboxRefused("the extension pgnet was dropped from this database") from error
            raise
        self._absent_since = None
        self._synchronous_until = time.monotonic() + _SYNCHRONOUS_FOR
        self._worker_id, self._secret = row["worker_id"], row["worker_secret"]
        return former == (self._worker_id, self._secret)

    def listen(self, on_signals: Callable[[set[str]], None]) -> None:
        loop = gevent.get_hub().loop
        interrupt = backend.interrupt_flag()
        client = backend.client_fd()

        def check_interrupt() -> None:
            if interrupt.value:
                on_signals({"interrupt"})

        def check_interrupt_and_client() -> None:
            check_interrupt()
            if is_gone(client):
                # Nobody could see or end the call any more: the worker finishes, and ends.
                on_signals({"stop"})

        # A signal ends the loop's wait. This is called after each wait.
        check = loop.check()
        check.start(check_interrupt)
        timer = loop.timer(_INTERRUPT_CHECK, _INTERRUPT_CHECK)
        timer.start(check_interrupt_and_client)
        # A backend that outlives the postmaster keeps the server from starting again.
        postmaster = loop.io(backend.postmaster_fd(), 1)
        postmaster.start(self._postmaster_died, on_signals)
        self._watchers += [check, timer, postmaster]
        if self.wake_up_fault is not None:
            return
        listener = own_listener()
        if listener is None:
            self.wake_up_fault = "every wake-up slot is taken"
            return
        self._slot = listener.slot
        readable = loop.io(listener.fileno(), 1)
        readable.start(lambda: on_signals(listener.read()))
        self._watchers.append(readable)

    def _postmaster_died(self, on_signals: Callable[[set[str]], None]) -> None:
        self._orphaned = True
        on_signals({"interrupt"})

    def stop_listening(self) -> None:
        for watcher in self._watchers:
            watcher.stop()
            watcher.close()
        self._watchers.clear()
        close_listener()

    def wake_next(self) -> None:
        if self._slot is not None:
            Sender(backend.database_oid()).send("wake", after=self._slot)

    def record_and_claim(self, outcomes: Sequence[Outcome], demand: Demand | None) -> Claimed:
        claimed = Claimed()
        with self._transaction():
            if outcomes:
                recorded = self._call(
                    "select pgnet.record_outcomes($1) as deferred",
                    [_JSON],
                    encode_outcomes(outcomes),
                )
                claimed.deferred = list(recorded[0]["deferred"])
            elif time.monotonic() > self._synchronous_until:
                # If this commit is lost, nothing else is: the request is free again.
                self._call("set local synchronous_commit = off")
            if demand is not None:
                rows = self._call(
                    _CLAIM,
                    _CLAIM_TYPES,
                    self._worker_id,
                    demand.slots,
                    demand.host_quota,
                    demand.single_host_quota,
                    list(demand.full_hosts),
                    demand.max_bytes,
                    demand.after.host,
                    demand.quarantined_only,
                    demand.after.role,
                    demand.until and demand.until.host,
                    demand.until and demand.until.role,
                    demand.rooms and json.dumps(demand.rooms),
                )
                for row in rows:
                    claimed.add(row)
        return claimed

    def secrets(self, wanted: Sequence[tuple[Claim, str]]) -> dict[tuple[int, str], Secret]:
        with self._transaction():
            rows = self._call(
                "select * from pgnet.claimed_secrets($1, $2, $3)",
                ["bigint[]", f"{_UUID}[]", f"{TEXT}[]"],
                [claim.id for claim, _name in wanted],
                [claim.token for claim, _name in wanted],
                [name for _claim, name in wanted],
            )
        return read_secrets(rows)

    def stubs(self, claims: Sequence[Claim]) -> dict[int, Stub]:
        with self._transaction():
            rows = self._call(
                "select * from pgnet.take_stubs($1, $2)",
                ["bigint[]", f"{_UUID}[]"],
                [claim.id for claim in claims],
                [claim.token for claim in claims],
            )
        return read_stubs(rows)

    def heartbeat(self, owned: Sequence[int]) -> WorkerState:
        with self._transaction(refusable=True):
            row = self._call(
                "select pgnet.heartbeat($1, $2) as state",
                ["bigint", "bigint[]"],
                self._worker_id,
                list(owned),
            )[0]
        return WorkerState(**json.loads(row["state"]))

    def report_work(self, report: str) -> float:
        with self._transaction(refusable=True):
            self._call("set local synchronous_commit = off")
            row = self._call(
                "select pgnet.report_work($1, $2) as now",
                ["bigint", _JSON],
                self._worker_id,
                report,
            )[0]
        return float(row["now"])

    def report(self, reports: Sequence[Mapping[str, Any]]) -> Reported:
        with self._transaction(refusable=True):
            # If this commit is lost, the counts of a second are.
            self._call("set local synchronous_commit = off")
            row = self._call(
                "select pgnet.report_attempts($1, $2) as reported",
                ["bigint", _JSON],
                self._worker_id,
                json.dumps(reports),
            )[0]
        return Reported.from_json(json.loads(row["reported"]))

    def release(self, claims: Sequence[Claim], reason: str | None) -> None:
        with self._transaction():
            self._call(
                "select pgnet.release_requests($1, $2, $3)",
                ["bigint[]", f"{_UUID}[]", TEXT],
                [claim.id for claim in claims],
                [claim.token for claim in claims],
                reason,
            )

    def check_interrupts(self) -> None:
        if self._orphaned:
            self._plpy.fatal("terminating because the postmaster is gone")
        self._plpy.execute("select 1")
        self._plpy.commit()

    def cancel_statement(self) -> None:
        """Do nothing: in a backend a cancel ends the statement, and with it the call."""

    def close(self, cut_off: int) -> None:
        if self._worker_id is None:
            return
        with contextlib.suppress(OutboxError), self._transaction():
            self._call(
                "select pgnet.deregister_worker($1, $2, $3)",
                ["bigint", _UUID, "int"],
                self._worker_id,
                self._secret,
                cut_off,
            )


def _unpack(code: int) -> str:
    """The five characters of an SQLSTATE, as the server packs them: six bits each."""
    return "".join(chr((code >> 6 * place & 0x3F) + ord("0")) for place in range(5))
