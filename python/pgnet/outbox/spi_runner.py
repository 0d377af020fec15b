"""A runner of callbacks in the session of net.run_callbacks or net.drain: SPI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pgnet.outbox import DueCallbacks, Performed, translate_error

# Their cause may be gone in a moment: a lock of another session.
_BRIEF = ("55P03", "40")
_UUID, _OID = "pg_catalog.uuid", "pg_catalog.oid"


class SpiRunner:
    """See pgnet.outbox.Runner. A cancel of the session, and most errors, are raised as they are."""

    def __init__(self, plpy: Any) -> None:
        self._plpy = plpy
        # Locks of the caller's: those that callbacks take cannot be told from them.
        self._keep_locks = bool(
            plpy.execute(
                "select exists (select from pg_catalog.pg_locks l"
                " where l.locktype operator(pg_catalog.=) 'advisory'"
                " and l.pid operator(pg_catalog.=) pg_catalog.pg_backend_pid()) as found"
            )[0]["found"]
        )
        plpy.commit()

    def look(self) -> DueCallbacks:
        row = self._call(
            "select roles::bigint[] as roles, suspects::bigint[] as suspects, look_in, runners"
            " from pgnet.look_for_callbacks()"
        )
        return DueCallbacks(row["roles"], row["suspects"], row["look_in"], row["runners"])

    def take(self, role: int) -> str | None:
        row = self._call("select pgnet.take_callback($1) as token", [_OID], role)
        token: str | None = row["token"]
        return token

    def perform(self, token: str, *, go_on: bool) -> Performed:
        row = self._call(
            "select next_token, cancelled from pgnet.perform_callback($1, $2, $3)",
            [_UUID, "boolean", "boolean"],
            token,
            go_on,
            self._keep_locks,
        )
        return Performed(row["next_token"], bool(row["cancelled"]))

    def _call(self, sql: str, types: Sequence[str] = (), *arguments: Any) -> Any:
        try:
            row = self._plpy.execute(self._plpy.prepare(sql, list(types)), list(arguments))[0]
            self._plpy.commit()
        except self._plpy.SPIError as error:
            if not (error.sqlstate or "").startswith(_BRIEF):
                raise
            self._plpy.rollback()
            raise translate_error(error.sqlstate, str(error), None, lambda: False) from error
        return row

    def cancel(self) -> None:
        """Do nothing: a cancel of the session comes through the server."""

    def close(self) -> None:
        """Do nothing: the session is its caller's."""
