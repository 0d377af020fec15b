"""What a claim reads to open gates, whatever the statistics say: the few rows that it opens.

The plans are made while the tables are empty, as in test_plans.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from servers.cluster import Cluster, Database
from servers.recorder import Recorder

TABLES = (
    "net.http_request_queue, pgnet.claim, pgnet.attempt, net._http_response, pgnet.failed,"
    " pgnet.flow, pgnet.dependency, pgnet.ended_request, pgnet.blocked_key"
)
# Rows and index entries that the session has read in the extension's tables.
READ = """
    select sum(pg_stat_get_xact_tuples_returned(c.oid))
    from pg_class c
    where c.relnamespace = any ('{net,pgnet}'::regnamespace[]) and c.relkind in ('r', 'i')
"""
ROWS = 10_000


@pytest.fixture(scope="module")
def quiet_cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    """A cluster whose statistics only the test makes."""
    return make_cluster(autovacuum="off")


@pytest.fixture
def database(quiet_cluster: Cluster) -> Any:
    database = quiet_cluster.create_database()
    yield database
    database.drop()


def queue(database: Database, options: str, count: int) -> None:
    """Queue requests with these options, an SQL expression of n."""
    database.execute(
        "select count(net.http_request('POST', 'http://127.0.0.1:1025/', options => "
        + options
        + "))"
        f" from generate_series(1, {count}) n"
    )


def never_seen(database: Database) -> None:
    """A database whose tables were never analyzed."""


def empty(database: Database) -> None:
    database.execute(f"vacuum analyze {TABLES}")


def emptied(database: Database) -> None:
    """The statistics are of full tables, which are empty now."""
    queue(database, "jsonb_build_object('ordering_key', n::text)", 3000)
    database.execute(f"vacuum analyze {TABLES}")
    database.execute("delete from net.http_request_queue")
    database.execute("delete from pgnet.flow")
    database.execute(f"vacuum {TABLES}")


def read(recorder: Recorder, work: Callable[[], object]) -> int:
    connection = recorder.connection
    connection.autocommit = False
    before = connection.execute(READ).fetchone()
    work()
    after = connection.execute(READ).fetchone()
    connection.commit()
    connection.autocommit = True
    assert before is not None
    assert after is not None
    return int(after[0] - before[0])


@pytest.mark.parametrize("state", [never_seen, empty, emptied])
def test_a_claim_reads_what_it_opens(database: Database, state: Callable[[Database], None]) -> None:
    state(database)
    recorder = Recorder(database)
    # The plans that the session keeps are made now.
    for _ in range(8):
        queue(database, """'{"ordering_key": "first"}'""", 1)
        queue(database, "jsonb_build_object('after', array[lastval()])", 1)
        while claims := recorder.claim():
            recorder.record(claims)
    # One key with 10,000 requests, as many with one of their own.
    queue(database, """'{"ordering_key": "long"}'""", ROWS)
    queue(database, "jsonb_build_object('ordering_key', n::text)", ROWS)
    database.execute("insert into pgnet.pause (host) values ('*')")
    while database.value("select exists (select from pgnet.flow where gate = 'new')"):
        recorder.claim()
    database.execute("delete from pgnet.pause")
    claims = recorder.claim(50)
    # A few looks at indexes for each request that is claimed, recorded or opened, and for each one
    # that is examined.
    assert read(recorder, lambda: recorder.record(claims)) < 40 * len(claims)
    assert read(recorder, lambda: recorder.claim(50)) < 40 * 50
    assert read(recorder, lambda: recorder.claim(50)) < 40 * 50
