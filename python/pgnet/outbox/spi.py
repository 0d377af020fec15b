"""The outbox of a worker that is a backend: the server's own interface, and the worker's run in it.

SPI is used from the main greenlet only, and never with a switch of greenlets below it. After each
call there is a commit: until then the snapshot of the statement stays pinned.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gevent

import pgnet
from pgnet.outbox import (
    Claim,
    Demand,
    OutboxError,
    OutboxRefused,
    OutboxUnknown,
    Outcome,
    Place,
    Secret,
    Tending,
    Turn,
    encode_outcomes,
    error_of,
    secrets_of,
)
from pgnet.server import backend
from pgnet.server.waiting import is_gone
from pgnet.server.wake_up import Sender, close_listener
from pgnet.server.wake_up import listener as own_listener

# Types are looked up in the session's path: those that the grammar does not know are qualified.
TEXT, _JSON, _UUID = "pg_catalog.text", "pg_catalog.json", "pg_catalog.uuid"
_OID = "pg_catalog.oid"
_CLAIM = "select * from pgnet.claim_requests($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
_CLAIM_TYPES = [
    *("bigint", "int", "int", "int", f"{TEXT}[]", "bigint"),
    *(TEXT, "boolean", _OID, TEXT, _OID),
]
# libev's timer that bounds how late an interrupt is seen, should its signal come at a bad moment.
_INTERRUPT_CHECK = 0.4
# A cancel, and a statement_timeout, which nothing can tell from it: these end the call.
_QUERY_CANCELED = "57014"
_INSUFFICIENT_PRIVILEGE, REFUSED = "42501", "55000"
# Seconds that a worker waits for an extension that was dropped to be made anew.
_ABSENCE = 60.0
# A request that crashes the server would take its claim along, and be tried for ever: for so many
# seconds a new worker's claims are on disk before anything is sent.
_CAUTION = 10.0


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
        self._cautious_until = 0.0
        self.wake_up_fault: str | None = None

    def _call(self, sql: str, types: Sequence[str] = (), *arguments: Any) -> Any:
        plan = self._plans.get(sql)
        if plan is None:
            plan = self._plans[sql] = self._plpy.prepare(sql, list(types))
        try:
            return self._plpy.execute(plan, list(arguments))
        except self._plpy.SPIError as error:
            if _unpack(error.spidata[0]) == _INSUFFICIENT_PRIVILEGE:
                # Where this role may not run workers any more, that is what is said.
                self._plpy.execute("select pgnet.require_worker()")
            raise

    @contextlib.contextmanager
    def _transaction(self, *, refusable: bool = False) -> Iterator[None]:
        """Commit at the end; an error rolls back, and becomes the outbox's.

        What ends the call goes through as it is: a cancel, rights that are gone, and a refusal
        where ``refusable`` says that one may come; at first everything, since the caller of
        net.work() is there to be told.
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
            raise error_of(sqlstate, message, hint, self._is_absent) from error

    def _is_absent(self) -> bool:
        """Whether the database does not have the extension."""
        rows = self._plpy.execute(
            "select 1 from pg_catalog.pg_extension where extname operator(pg_catalog.=) 'pgnet'"
        )
        self._plpy.commit()
        return len(rows) == 0

    def connect(self, holding: Sequence[int]) -> bool:
        former = self._worker_id, self._secret
        try:
            with self._transaction(refusable=True):
                row = self._call(
                    "select * from pgnet.register_worker('backend', $1, $2, $3, $4, $5)",
                    ["bigint", _UUID, "bigint[]", TEXT, TEXT],
                    self._worker_id,
                    self._secret,
                    list(holding),
                    socket.gethostname(),
                    pgnet.__version__,
                )[0]
                self.wake_up_fault = self._call("select pgnet.wake_up_fault() as fault")[0]["fault"]
        except OutboxUnknown as error:
            self._absent_since = self._absent_since or time.monotonic()
            if time.monotonic() > self._absent_since + _ABSENCE:
                raise OutboxRefused("the extension pgnet was dropped from this database") from error
            raise
        self._absent_since = None
        self._cautious_until = time.monotonic() + _CAUTION
        self._worker_id, self._secret = row["worker_id"], row["worker_secret"]
        return former == (self._worker_id, self._secret)

    def listen(self, on_signals: Callable[[set[str]], None]) -> None:
        loop = gevent.get_hub().loop
        interrupt = backend.interrupt_flag()

        client = backend.client_fd()

        def look() -> None:
            if interrupt.value:
                on_signals({"interrupt"})

        def look_closely() -> None:
            look()
            if is_gone(client):
                # Nobody could see or end it any more: what it holds is finished first.
                on_signals({"stop"})

        # A signal ends the loop's wait; what it has set is seen after that turn of the loop.
        check = loop.check()
        check.start(look)
        timer = loop.timer(_INTERRUPT_CHECK, _INTERRUPT_CHECK)
        timer.start(look_closely)
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

    def turn(self, outcomes: Sequence[Outcome], demand: Demand | None) -> Turn:
        turn = Turn()
        with self._transaction():
            if outcomes:
                recorded = self._call(
                    "select pgnet.record_outcomes($1) as held_up",
                    [_JSON],
                    encode_outcomes(outcomes),
                )
                turn.held_up = list(recorded[0]["held_up"])
            elif time.monotonic() > self._cautious_until:
                # Nothing is lost if this commit is: the request is free again.
                self._call("set local synchronous_commit = off")
            if demand is not None:
                rows = self._call(
                    _CLAIM,
                    _CLAIM_TYPES,
                    self._worker_id,
                    demand.slots,
                    demand.host_quota,
                    demand.lone_quota,
                    list(demand.full_hosts),
                    demand.max_bytes,
                    demand.after.host,
                    demand.alone,
                    demand.after.role,
                    demand.until and demand.until.host,
                    demand.until and demand.until.role,
                )
                turn.claims = [Claim(**row) for row in rows if row["id"] is not None]
                if rows and rows[-1]["id"] is None:
                    turn.more = Place(rows[-1]["host"], rows[-1]["role"])
        return turn

    def secrets(self, wanted: Sequence[tuple[Claim, str]]) -> dict[tuple[int, str], Secret]:
        with self._transaction():
            rows = self._call(
                "select * from pgnet.claimed_secrets($1, $2, $3)",
                ["bigint[]", f"{_UUID}[]", f"{TEXT}[]"],
                [claim.id for claim, _name in wanted],
                [claim.token for claim, _name in wanted],
                [name for _claim, name in wanted],
            )
        return secrets_of(rows)

    def tend(self, holding: Sequence[int]) -> Tending:
        with self._transaction(refusable=True):
            row = self._call(
                "select pgnet.heartbeat($1, $2) as tending",
                ["bigint", "bigint[]"],
                self._worker_id,
                list(holding),
            )[0]
        return Tending(**json.loads(row["tending"]))

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

    def cut_short(self) -> None:
        """Nothing to do: a cancel ends the statement, and with it the call."""

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
