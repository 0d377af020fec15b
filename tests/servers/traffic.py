"""Requests: queue them, wait until a server has got them, wait until they have ended."""

from __future__ import annotations

from servers.cluster import Database
from servers.httpd import Running
from servers.waiting import wait_until


def crowd(database: Database) -> None:
    """Have a worker send one host all at once: how many are in flight there does not adapt."""
    database.execute("select net.configure_host('*', '{\"adaptive\": false}')")


def queue(database: Database, url: str, count: int = 1, timeout: int = 20_000) -> list[int]:
    """Commit that many requests in one transaction; `#` in the URL becomes each one's number."""
    found = database.rows(
        "select net.http_get(replace(%s, '#', n::text), timeout_milliseconds => %s)"
        " from generate_series(1, %s) n",
        url,
        timeout,
        count,
    )
    return [id for (id,) in found]


def targets(witness: Running) -> list[str]:
    return [entry["target"] for entry in witness.record()]


def seen(witness: Running, count: int, timeout: float = 10.0) -> list[str]:
    """Wait until the server has got that many requests; gives their targets."""
    return wait_until(
        lambda: targets(witness),
        lambda found: len(found) >= count,
        f"{count} requests at the server",
        timeout,
    )


def states(database: Database) -> dict[str, int]:
    return dict(database.rows("select state::text, count(*) from net.requests group by 1"))


def wait_for_states(database: Database, expected: dict[str, int], timeout: float = 10.0) -> None:
    wait_until(lambda: states(database), expected.__eq__, "the states of the requests", timeout)


def make_durable(database: Database) -> None:
    """Wait until a crash would lose nothing of what has happened (claims are not flushed)."""
    position = database.value("select pg_current_wal_insert_lsn()::text")
    database.wait_for("select pg_current_wal_flush_lsn() >= %s::pg_lsn", position)
