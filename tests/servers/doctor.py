"""net.check(), read by its items."""

from __future__ import annotations

from servers.cluster import Database


def check(database: Database) -> dict[str, tuple[bool, str, str | None]]:
    return {
        item: (ok, detail, hint)
        for item, ok, detail, hint in database.rows("select * from net.check()")
    }
