"""A runner of callbacks that is a session of its own, through libpq, for a worker process."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Any

import psycopg

from pgnet.outbox import (
    DueCallbacks,
    OutboxError,
    OutboxFailed,
    OutboxLost,
    Performed,
    ends_session,
    translate_error,
)

Connection = psycopg.Connection[dict[str, Any]]


class LibpqRunner:
    """See pgnet.outbox.Runner. Its session is opened when it is needed.

    open_connection: gives a connection, by the name of its application. in_pool: runs a function in
    a thread of the runners' pool, and raises what it raises.
    """

    def __init__(
        self,
        open_connection: Callable[[str], Connection],
        in_pool: Callable[..., Any],
    ) -> None:
        self._open = open_connection
        self._in_pool = in_pool
        self._connection: Connection | None = None

    def look(self) -> DueCallbacks:
        row = self._call("select * from pgnet.look_for_callbacks()", {})
        return DueCallbacks(row["roles"], row["suspects"], row["look_in"], row["runners"])

    def take(self, role: int) -> str | None:
        row = self._call("select pgnet.take_callback(%(role)s::oid)::text as token", {"role": role})
        token: str | None = row["token"]
        return token

    def perform(self, token: str, *, go_on: bool) -> Performed:
        row = self._call(
            "select p.next_token::text, p.cancelled"
            " from pgnet.perform_callback(%(token)s::uuid, %(go_on)s::boolean) p",
            {"token": token, "go_on": go_on},
        )
        return Performed(row["next_token"], bool(row["cancelled"]))

    def _call(self, sql: str, parameters: dict[str, Any]) -> dict[str, Any]:
        try:
            row: dict[str, Any] = self._in_pool(self._query, sql, parameters)
        except psycopg.Error as error:
            raise self._translated(error) from error
        return row

    def _query(self, sql: str, parameters: dict[str, Any]) -> dict[str, Any]:
        if self._connection is None:
            self._connection = self._open("pgnet callbacks")
        row = self._connection.execute(sql, parameters).fetchone()
        assert row is not None
        return row

    def _translated(self, error: psycopg.Error) -> OutboxError:
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        sqlstate = error.sqlstate or ""
        if self._connection is None or self._connection.closed or ends_session(sqlstate):
            self.close()
            return OutboxLost(message)
        if not sqlstate:
            return OutboxFailed(message)
        return translate_error(sqlstate, message, error.diag.message_hint, lambda: False)

    def cancel(self) -> None:
        connection = self._connection
        if connection is None or connection.closed:
            return
        # The server ends the session when its client is gone, at the end of the statement.
        with contextlib.suppress(psycopg.Error, OSError):
            self._in_pool(connection.cancel)
            descriptor = os.dup(connection.fileno())
            with socket.socket(fileno=descriptor) as end:
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                connection.close()
