"""The outbox of a worker that is a process: libpq, through psycopg, in gevent's thread pool.

How it works
------------

The hub's thread never waits for the database: requests go on while a statement runs. Each call is
handed to a thread of gevent's pool, and the greenlet that made it waits for the thread. Only the
worker's loop calls, one call at a time, so that one connection is enough. The exception is
``cancel_statement``, which ends a call that lasts.

A second connection, the listener, waits for commits of others: its backend listens to a socket on
the server's machine, which this process, perhaps on another machine, cannot. It has a greenlet of
its own, and occupies one thread, in a call of ``pgnet.wait_for_signals`` that returns after a
minute at the latest. While it is not connected, ``wake_up_fault`` says so, and the worker polls.

An error is translated where it leaves this file. If the connection is broken, nobody knows whether
the statement was committed: that is OutboxLost, whatever the error says. Otherwise its SQLSTATE
says what it means: see ``translate_error`` in pgnet.outbox.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gevent
import psycopg
from gevent.event import Event
from gevent.threadpool import ThreadPool
from psycopg.adapt import Dumper
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

import pgnet
from pgnet.outbox import (
    NO_DSN,
    SESSION_SETTINGS,
    Claim,
    Claimed,
    Demand,
    OutboxError,
    OutboxFailed,
    OutboxLost,
    OutboxRefused,
    OutboxUnregistered,
    Outcome,
    Reported,
    Secret,
    Stub,
    WorkerState,
    encode_outcomes,
    ends_session,
    read_secrets,
    read_stubs,
    translate_error,
)
from pgnet.outbox.libpq_runner import LibpqRunner

log = logging.getLogger("pgnet.outbox")

# A peer that is gone is noticed by both sides within about this many seconds.
_CONNECTION = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
    "connect_timeout": 10,
    # Of several hosts, the one that is not a standby; the worker waits until one is promoted. It is
    # not "read-write": no server is, where default_transaction_read_only is on.
    "target_session_attrs": "primary",
}
_SESSION = {
    **SESSION_SETTINGS,
    "idle_in_transaction_session_timeout": "0",
    "search_path": "pg_catalog, pg_temp",
    "statement_timeout": "0",
    "idle_session_timeout": "0",
    "default_transaction_read_only": "off",
}
# The settings by which the server watches its end of the connection, and the parameters by which
# libpq watches this one: both get the same values.
_SERVER_SIDE = {
    "tcp_keepalives_idle": "keepalives_idle",
    "tcp_keepalives_interval": "keepalives_interval",
    "tcp_keepalives_count": "keepalives_count",
    "tcp_user_timeout": "tcp_user_timeout",
}
# Sets the settings that the server has, and skips those that it does not.
_SET = (
    "select pg_catalog.set_config(s.name, s.value, false)"
    " from rows from (pg_catalog.unnest(%s::pg_catalog.text[]),"
    " pg_catalog.unnest(%s::pg_catalog.text[])) as s (name, value)"
    " where pg_catalog.current_setting(s.name, true) is not null"
)
_CLAIM_CALL = (
    "pgnet.claim_requests(%(worker)s::bigint, %(slots)s::int, %(host_quota)s::int,"
    " %(single_host_quota)s::int, %(full_hosts)s::text[], %(max_bytes)s::bigint,"
    " %(after_host)s::text, %(quarantined_only)s::boolean, %(after_role)s::oid,"
    " %(until_host)s::text, %(until_role)s::oid,"
    " rooms => %(rooms)s::jsonb)"
)
# One statement is one transaction and one round trip. LATERAL has the recording come first.
_RECORD_AND_CLAIM = (
    "select r.deferred, c.* from"
    " (select pgnet.record_outcomes(%(outcomes)s::json) as deferred offset 0) r"
    f" left join lateral (select * from {_CLAIM_CALL} where r.deferred is not null) c on true"
)
# If this commit is lost, nothing else is: the request is free again.
_CLAIM = (
    "select null as deferred, c.*"
    " from (select set_config('synchronous_commit', 'off', true) as done offset 0) s"
    f" cross join lateral (select * from {_CLAIM_CALL} where s.done is not null) c"
)
_RECORD = "select pgnet.record_outcomes(%(outcomes)s::json) as deferred, null as id"
# If this commit is lost, the counts of a second are.
_REPORT = (
    "select pgnet.report_attempts(%(id)s::bigint, %(reports)s::json) as reported"
    " from (select set_config('synchronous_commit', 'off', true) as done offset 0) s"
    " where s.done is not null"
)
# That goes for session mode too. There a pooler keeps the session when its worker dies, so that the
# worker does not seem to be lost, and nobody rescues its requests.
_POOLED = (
    "a connection pooler stands between the worker and the server."
    " Let the worker connect to the server directly. Callers may go through the pooler"
)
_IS_ABSENT = (
    "select not exists (select from pg_catalog.pg_extension"
    " where extname operator(pg_catalog.=) 'pgnet') as absent"
)
# Seconds that one call of pgnet.wait_for_signals lasts. The listener calls again at once.
_WAIT = 60.0
# Seconds that a cancelled statement has to end, before its connection is shut down.
_CANCELLED = 2.0
_FIRST_RETRY, _LONGEST_RETRY = 0.2, 5.0
# The most that the setting callback_runners may be.
_MOST_RUNNERS = 64
# Seconds that idle threads of runners have to end.
_THREADS_END = 0.5


class _Json:
    """A JSON text in UTF-8, as it goes to the server: no str is kept beside its bytes."""

    __slots__ = ("text",)

    def __init__(self, text: bytes) -> None:
        self.text = text


class _JsonDumper(Dumper):
    oid = psycopg.adapters.types["json"].oid

    def dump(self, obj: _Json) -> bytes:
        return obj.text


class LibpqOutbox:
    """See pgnet.outbox.Outbox.

    conninfo: libpq's connection string; what it leaves out comes from libpq's environment.
    Raises ValueError, with what is to be given instead, for any other string.
    """

    def __init__(self, conninfo: str = "") -> None:
        try:
            self._parameters = psycopg.conninfo.conninfo_to_dict(conninfo)
        except psycopg.ProgrammingError:
            raise ValueError(NO_DSN) from None
        self._pool = gevent.get_hub().threadpool
        self._connection: psycopg.Connection[dict[str, Any]] | None = None
        self._worker_id: int | None = None
        self._secret: str | None = None
        self._listening: gevent.Greenlet[..., Any] | None = None
        self._listener: psycopg.Connection[dict[str, Any]] | None = None
        self._slot: int | None = None
        self._connected = Event()
        self._runners: ThreadPool | None = None
        self.wake_up_fault: str | None = "the listener is not connected yet"

    # ---- in the pool's threads

    def _open(self, name: str) -> psycopg.Connection[dict[str, Any]]:
        parameters: dict[str, Any] = {
            **_CONNECTION,
            **self._parameters,
            "application_name": name,
            "client_encoding": "UTF8",
        }
        connection = psycopg.connect(**parameters, autocommit=True, row_factory=dict_row)
        connection.adapters.register_dumper(_Json, _JsonDumper)
        row = connection.execute("select pg_catalog.pg_backend_pid() as pid").fetchone()
        if row is None or row["pid"] != connection.info.backend_pid:
            # This session gets no settings: a pooler hands it to another client next.
            connection.close()
            raise OutboxRefused(_POOLED)
        server_side = {name: str(parameters[of]) for name, of in _SERVER_SIDE.items()}
        settings = {**_SESSION, **server_side}
        connection.execute(_SET, (list(settings), list(settings.values())))
        return connection

    def _connect(self, owned: Sequence[int]) -> bool:
        if self._connection is None or self._connection.closed:
            self._connection = self._open("pgnet worker")
        pid = self._connection.info.backend_pid
        former = self._worker_id, self._secret
        row = self._connection.execute(
            "select worker_id, worker_secret::text"
            " from pgnet.register_worker('process', %s::bigint, %s::uuid, %s::bigint[], %s, %s)",
            (self._worker_id, self._secret, list(owned), socket.gethostname(), pgnet.__version__),
        ).fetchone()
        assert row is not None
        self._worker_id, self._secret = row["worker_id"], row["worker_secret"]
        log.info("serving as worker %s, backend %s", self._worker_id, pid)
        return former == (self._worker_id, self._secret)

    def _query(self, sql: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        if self._connection is None:
            raise OutboxLost("the worker has not connected yet")
        with self._connection.cursor(binary=True) as cursor:
            return cursor.execute(sql, parameters, prepare=True).fetchall()

    def _deregister_and_close(self, cut_off: int) -> None:
        if self._connection is None:
            return
        try:
            self._connection.execute(
                "select pgnet.deregister_worker(%s::bigint, %s::uuid, %s::int)",
                (self._worker_id, self._secret, cut_off),
            )
        except psycopg.Error as error:
            if not self._is_absent():
                log.warning("the worker could not deregister: %s", _message(error))
        self._connection.close()

    def _is_absent(self) -> bool:
        """Whether the database is known not to have the extension."""
        assert self._connection is not None
        try:
            row = self._connection.execute(_IS_ABSENT).fetchone()
        except psycopg.Error:
            return False
        return row is not None and row["absent"]

    # ---- in the hub's thread

    def _in_pool(
        self, function: Callable[..., Any], *arguments: Any, pool: ThreadPool | None = None
    ) -> Any:
        """Run a function in a thread of the pool. Raises what the function raises.

        The pool prints what a function raises in it. So such errors come back as values.
        """

        def guarded() -> tuple[Any, psycopg.Error | OutboxError | None]:
            try:
                return function(*arguments), None
            except (psycopg.Error, OutboxError) as error:
                return None, error

        result, error = (pool or self._pool).apply(guarded)
        if error is not None:
            raise error
        return result

    def _call(self, function: Callable[..., Any], *arguments: Any, refusable: bool = False) -> Any:
        """Run a function in a thread of the pool. Its errors become errors of the outbox.

        refusable: an error 55000 of the server is for good.
        """
        try:
            return self._in_pool(function, *arguments)
        except psycopg.Error as error:
            if refusable and isinstance(error, psycopg.errors.ObjectNotInPrerequisiteState):
                raise OutboxRefused(_refusal(error)) from error
            if isinstance(error, psycopg.errors.InsufficientPrivilege) and not self._is_closed():
                self._require_worker()
            raise self._in_pool(self._translated, error) from error

    def _require_worker(self) -> None:
        """Ask whether this role may run workers at all. Raises OutboxRefused where it may not."""
        try:
            self._in_pool(self._query, "select pgnet.require_worker()", {})
        except psycopg.errors.InsufficientPrivilege as error:
            raise OutboxRefused(_refusal(error)) from error
        except psycopg.Error:
            pass  # the first error is the one to report

    def _translated(self, error: psycopg.Error) -> OutboxError:
        if self._connection is not None and ends_session(error.sqlstate or ""):
            self._connection.close()
        if self._is_closed():
            return OutboxLost(_message(error))
        if not error.sqlstate:
            return OutboxFailed(_message(error))
        translated = translate_error(
            error.sqlstate, _message(error), error.diag.message_hint, self._is_absent
        )
        return OutboxLost(_message(error)) if self._is_closed() else translated

    def _is_closed(self) -> bool:
        return self._connection is None or self._connection.closed

    def connect(self, owned: Sequence[int]) -> bool:
        try:
            same: bool = self._call(self._connect, owned, refusable=True)
        except OutboxUnregistered:
            raise
        except OutboxError as error:
            # The next connection may be to another of several hosts, or by another role.
            self._close_connection()
            if isinstance(error.__cause__, psycopg.errors.InsufficientPrivilege):
                # The right may be granted in a moment: the worker was started first, or the
                # extension is new.
                raise OutboxFailed(str(error)) from error
            raise
        # A listener that waits because it has met the same error need not wait any longer.
        self._connected.set()
        return same

    def _close_connection(self) -> None:
        if self._connection is not None:
            self._in_pool(self._connection.close)

    def record_and_claim(self, outcomes: Sequence[Outcome], demand: Demand | None) -> Claimed:
        parameters: dict[str, Any] = {}
        if outcomes:
            parameters["outcomes"] = _Json(encode_outcomes(outcomes).encode())
        if demand is not None:
            parameters |= {
                "worker": self._worker_id,
                "slots": demand.slots,
                "host_quota": demand.host_quota,
                "single_host_quota": demand.single_host_quota,
                "full_hosts": list(demand.full_hosts),
                "max_bytes": demand.max_bytes,
                "after_host": demand.after.host,
                "after_role": demand.after.role,
                "until_host": demand.until and demand.until.host,
                "until_role": demand.until and demand.until.role,
                "quarantined_only": demand.quarantined_only,
                "rooms": demand.rooms and json.dumps(demand.rooms),
            }
        sql = _RECORD if demand is None else _RECORD_AND_CLAIM if outcomes else _CLAIM
        rows = self._call(self._query, sql, parameters)
        claimed = Claimed()
        for row in rows:
            claimed.deferred = row.pop("deferred") or []
            claimed.add(row)
        return claimed

    def secrets(self, wanted: Sequence[tuple[Claim, str]]) -> dict[tuple[int, str], Secret]:
        rows = self._call(
            self._query,
            "select * from pgnet.claimed_secrets("
            "%(ids)s::bigint[], %(tokens)s::uuid[], %(names)s::text[])",
            {
                "ids": [claim.id for claim, _name in wanted],
                "tokens": [claim.token for claim, _name in wanted],
                "names": [name for _claim, name in wanted],
            },
        )
        return read_secrets(rows)

    def stubs(self, claims: Sequence[Claim]) -> dict[int, Stub]:
        rows = self._call(
            self._query,
            "select * from pgnet.take_stubs(%(ids)s::bigint[], %(tokens)s::uuid[])",
            {
                "ids": [claim.id for claim in claims],
                "tokens": [claim.token for claim in claims],
            },
        )
        return read_stubs(rows)

    def heartbeat(self, owned: Sequence[int]) -> WorkerState:
        rows = self._call(
            self._query,
            "select pgnet.heartbeat(%(id)s::bigint, %(owned)s::bigint[]) as state",
            {"id": self._worker_id, "owned": list(owned)},
            refusable=True,
        )
        return WorkerState(**rows[0]["state"])

    def report_work(self, report: str) -> float:
        rows = self._call(
            self._query,
            "select pgnet.report_work(%(worker)s::bigint, %(report)s::json) as now"
            " from (select set_config('synchronous_commit', 'off', true) as done offset 0) s"
            " where s.done is not null",
            {"worker": self._worker_id, "report": report},
            refusable=True,
        )
        return float(rows[0]["now"])

    def report(self, reports: Sequence[Mapping[str, Any]]) -> Reported:
        rows = self._call(
            self._query,
            _REPORT,
            {"id": self._worker_id, "reports": json.dumps(reports)},
            refusable=True,
        )
        return Reported.from_json(rows[0]["reported"])

    def release(self, claims: Sequence[Claim], reason: str | None) -> None:
        self._call(
            self._query,
            "select pgnet.release_requests("
            "%(ids)s::bigint[], %(tokens)s::uuid[], %(reason)s::text)",
            {
                "ids": [claim.id for claim in claims],
                "tokens": [claim.token for claim in claims],
                "reason": reason,
            },
        )

    def check_interrupts(self) -> None:
        """Do nothing: a process is stopped by signals of its own."""

    def cancel_statement(self) -> None:
        connection = self._connection
        if connection is None or connection.closed:
            return
        with contextlib.suppress(psycopg.Error):
            self._in_pool(connection.cancel)
        gevent.sleep(_CANCELLED)
        if connection.info.transaction_status == TransactionStatus.ACTIVE:
            # The server does not answer: the thread that waits for it ends with the connection.
            with contextlib.suppress(OSError, psycopg.Error):
                descriptor = os.dup(connection.fileno())
                with socket.socket(fileno=descriptor) as end:
                    end.shutdown(socket.SHUT_RDWR)

    def close(self, cut_off: int) -> None:
        self.stop_listening()
        with contextlib.suppress(OutboxError):
            self._call(self._deregister_and_close, cut_off)
        if self._runners is not None:
            # A thread that waits for a server that hangs is left alone.
            with gevent.Timeout(_THREADS_END, False):
                self._runners.kill()

    def open_runner(self) -> LibpqRunner:
        """A session for callbacks, whose threads are not those that requests wait for."""
        if self._runners is None:
            self._runners = ThreadPool(_MOST_RUNNERS)
        pool = self._runners
        return LibpqRunner(self._open, lambda *call: self._in_pool(*call, pool=pool))

    # ---- waking up

    def listen(self, on_signals: Callable[[set[str]], None]) -> None:
        self._listening = gevent.spawn(self._listen, on_signals)

    def _listen(self, on_signals: Callable[[set[str]], None]) -> None:
        pause = _FIRST_RETRY
        while True:
            try:
                self._listener = self._in_pool(self._open, "wake-up of a pgnet worker")
                # The slot is taken now. A claim finds what was committed before.
                self.wake_up_fault = self._in_pool(self._take_slot)
                on_signals({"wake", "reload"})
                pause = _FIRST_RETRY
                while True:
                    signals = self._in_pool(self._wait, _WAIT)["signals"].split()
                    if signals:
                        on_signals(set(signals))
            except (psycopg.Error, OutboxRefused) as error:
                if self.wake_up_fault is None:
                    log.info("the listener lost its connection: %s", _message(error))
                self.wake_up_fault = _message(error)
                on_signals({"reload"})
            if self._listener is not None:
                self._in_pool(self._listener.close)
            self._connected.clear()
            self._connected.wait(pause)
            pause = min(pause * 1.6, _LONGEST_RETRY)

    def _take_slot(self) -> str | None:
        assert self._listener is not None
        self._slot = self._wait(0.0)["slot"]
        row = self._listener.execute("select pgnet.wake_up_fault() as fault").fetchone()
        assert row is not None
        fault: str | None = row["fault"]
        return fault or ("every wake-up slot is taken" if self._slot is None else None)

    def _wait(self, timeout: float) -> dict[str, Any]:
        assert self._listener is not None
        row = self._listener.execute(
            "call pgnet.wait_for_signals(%s::float8, callbacks => true)", (timeout,)
        ).fetchone()
        assert row is not None
        return row

    def stop_listening(self) -> None:
        if self._listening is None:
            return
        self._listening.kill(block=False)
        self._listening = None
        if self._listener is not None and not self._listener.closed:
            # Its thread waits in the call: the cancel ends that, and the thread with it.
            with contextlib.suppress(OutboxError):
                self._call(self._listener.cancel)

    def wake_next(self) -> None:
        self._call(
            self._query, "select pgnet.wake_next_worker(%(slot)s::int)", {"slot": self._slot}
        )


def _refusal(error: psycopg.Error) -> str:
    """The server's message of an error, and its hint."""
    parts = (error.diag.message_primary, error.diag.message_hint)
    return ". ".join(part.rstrip(".") for part in parts if part)


def _message(error: psycopg.Error | OutboxError) -> str:
    """The first line of the message of the server or of libpq."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
