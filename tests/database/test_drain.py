"""net.drain: it sends what can be sent now, and ends when nothing more can be."""

from __future__ import annotations

import time

from servers.cluster import Database
from servers.httpd import Running
from servers.traffic import queue, states, targets


def drain(database: Database) -> float:
    began = time.monotonic()
    database.execute("call net.drain()")
    return time.monotonic() - began


def test_it_sends_all_that_the_rate_of_a_host_allows(database: Database, witness: Running) -> None:
    """The next request may always begin within a second, and is waited for."""
    database.execute(
        'select net.configure_host(\'127.0.0.1\', \'{"rate": "5/second", "burst": 1}\')'
    )
    queue(database, f"{witness.url}/body/#", 6)
    took = drain(database)
    assert states(database) == {"succeeded": 6}
    assert 0.8 < took < 8


def test_it_waits_for_no_later_time(database: Database, witness: Running) -> None:
    """A rate of one request a minute, a retry in an hour, a time in the future."""
    database.execute(
        'select net.configure_host(\'127.0.0.1\', \'{"rate": "1/minute", "burst": 1}\')'
    )
    queue(database, f"{witness.url}/body/#", 3)
    queue(database, "http://localhost:1/", 1)
    database.execute(
        "update net.http_request_queue set due = now() + interval '1 hour', waits_since = now()"
        " where url like '%localhost%'"
    )
    assert drain(database) < 5
    assert len(targets(witness)) == 1
    assert states(database) == {"succeeded": 1, "ready": 2, "scheduled": 1}


def test_many_that_fall_due_at_once(database: Database, witness: Running) -> None:
    """A claim makes 1,000 ready at a time."""
    queue(database, f"{witness.url}/body/#", 2500)
    database.execute("update net.http_request_queue set due = now(), waits_since = now()")
    drain(database)
    assert states(database) == {"succeeded": 2500}
