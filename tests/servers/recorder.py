"""A worker by hand: one statement at a time, so that a test says what comes between."""

from __future__ import annotations

import json
from typing import Any

from servers.cluster import Database


class Recorder:
    """A worker of one statement at a time, by hand."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.connection = database.connect()
        row = self.connection.execute(
            "select worker_id, worker_secret from pgnet.register_worker('process')"
        ).fetchone()
        assert row is not None
        self.id, self.secret = row

    def claim(self, slots: int = 100, max_bytes: int = 1 << 30) -> dict[int, str]:
        """Claim what is there; gives the tokens by id."""
        rows = self.connection.execute(
            "select id, token from pgnet.claim_requests(worker_id => %s::bigint, slots => %s::int,"
            " host_quota => %s::int, single_host_quota => %s::int, full_hosts => '{}',"
            " max_bytes => %s, after_host => '')",
            (self.id, slots, slots, slots, max_bytes),
        ).fetchall()
        return {id: token for id, token in rows if id is not None}

    def record(self, claims: dict[int, str], **more: Any) -> list[int]:
        """Record a success for each; gives the ids that are deferred."""
        outcomes = [
            {"id": id, "token": token, "state": "succeeded", "status_code": 200, "content": "ok"}
            | {"timed_out": False}
            | more
            for id, token in claims.items()
        ]
        row = self.connection.execute(
            "select pgnet.record_outcomes(%s::json)", (json.dumps(outcomes),)
        ).fetchone()
        assert row is not None
        deferred: list[int] = row[0]
        return deferred
