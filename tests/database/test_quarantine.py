"""Requests that were lost with workers are attempted apart from others, and hold up nobody."""

from __future__ import annotations

from servers.cluster import Database
from servers.httpd import Running
from servers.traffic import queue, seen, targets


def test_a_suspect_that_hangs_stops_nobody(database: Database, witness: Running) -> None:
    """The suspect was lost with three workers and hangs for a day: others go on beside it."""
    [suspect] = queue(database, f"{witness.url}/delay/600", timeout=86_000_000)
    database.execute(
        "insert into pgnet.attempt (request_id, attempt, requested_by, ending, started, ended)"
        " select %s, n, 'postgres'::regrole, 'lost', now(), now() from generate_series(1, 3) n",
        suspect,
    )
    database.execute(
        "update net.http_request_queue set due = 'infinity', waits_since = clock_timestamp()"
    )
    with database.worker("--grace", "0"):
        seen(witness, 1)
        queue(database, f"{witness.url}/body/#", 50)
        # its phase is over after ten seconds
        database.wait_for("select count(*) = 50 from net._http_response", timeout=20)
        assert len(targets(witness)) == 51
        assert database.rows("select id, attempt from pgnet.claim") == [(suspect, 4)]
        queue(database, f"{witness.url}/body/#", 50)
        database.wait_for("select count(*) = 100 from net._http_response", timeout=5)
