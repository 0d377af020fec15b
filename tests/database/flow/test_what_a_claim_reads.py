"""What a claim reads, whatever the statistics say, and whatever waits that it may not take.

test_plans.py has the other statements of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from servers.cluster import Cluster, Database

TABLES = (
    "net.http_request_queue, pgnet.flow, pgnet.claim, pgnet.attempt, net._http_response,"
    " pgnet.failed"
)
# Of each kind of request that may not be sent now.
IDLE = 15_000
# Requests for hosts that are well, all together.
READY = 20_000
SLOTS = 500
# Rows and buffers for each row that is claimed, with its place and its claim.
MOST_ROWS, MOST_BUFFERS = 12, 80


@pytest.fixture(scope="module")
def quiet_cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    """A cluster whose statistics only the test makes."""
    return make_cluster(autovacuum="off")


@pytest.fixture
def database(quiet_cluster: Cluster) -> Iterator[Database]:
    database = quiet_cluster.create_database()
    yield database
    database.drop()


def fill(database: Database, hosts: int) -> None:
    """Requests that may be sent, and as many as a claim must not read for each reason to wait."""
    database.execute(
        "insert into net.http_request_queue (method, url)"
        " select 'GET', format('http://h%%s.example/%%s', n %% %s, n)"
        " from generate_series(1, %s) n",
        hosts,
        READY,
    )
    for host in ("0hung", "1paused", "2broken", "3limited"):
        database.execute(
            "insert into net.http_request_queue (method, url)"
            " select 'GET', format('http://%%s.example/%%s', %s::text, n)"
            " from generate_series(1, %s) n",
            host,
            IDLE,
        )
    # These are of the hosts that are well.
    for columns, value in (
        ("ordering_key, gate", "'one', 'key'"),
        ("gate", "'ids'"),
        ("not_before", "now() + interval '1 week'"),
    ):
        database.execute(
            "with held as ("
            " insert into net.http_request_queue (method, url, held)"
            " select 'GET', format('http://h%%s.example/%%s', n %% %s, n), true"
            " from generate_series(1, %s) n returning id)"
            f" insert into pgnet.flow (request_id, {columns}) select id, {value} from held",
            hosts,
            IDLE,
        )
    database.execute(
        "insert into net.http_request_queue (method, url, due, waits_since)"
        " select 'GET', format('http://h%%s.example/%%s', n %% %s, n), now() + interval '1 hour',"
        " now() from generate_series(1, %s) n",
        hosts,
        IDLE,
    )
    # Every fifth of those that may be sent has a row in pgnet.flow.
    database.execute(
        "with chosen as ("
        " update net.http_request_queue set held = false"
        " where id % 5 = 0 and held is null and due is null and url like 'http://h%'"
        " returning id)"
        " insert into pgnet.flow (request_id, not_after)"
        " select id, now() + interval '1 hour' from chosen"
    )


def empty(database: Database, hosts: int) -> None:
    database.execute(f"vacuum analyze {TABLES}")


def full(database: Database, hosts: int) -> None:
    fill(database, hosts)
    database.execute(f"vacuum analyze {TABLES}")
    for table in ("pgnet.flow", "net.http_request_queue"):
        database.execute(f"delete from {table}")
        database.execute(f"vacuum {table}")


def emptied(database: Database, hosts: int) -> None:
    full(database, hosts)
    database.execute(f"vacuum analyze {TABLES}")


def set_rules(database: Database, worker: int) -> None:
    """One host is paused, one is broken, one has a limit and all that it may have in flight."""
    database.execute("select net.configure_host('3limited.example', '{\"concurrency\": 1}')")
    database.execute(
        "insert into pgnet.claim (id, host, role, worker, token, attempt, deadline, limited)"
        " values (-1, '3limited.example', 'postgres'::regrole, %s, gen_random_uuid(), 1,"
        " now() + interval '1 hour', true)",
        worker,
    )
    database.execute("insert into pgnet.pause (host) values ('1paused.example')")
    database.execute(
        "insert into pgnet.host_state (host, role, closed_until)"
        " values ('2broken.example', 'postgres'::regrole, now() + interval '1 hour')"
    )


class Claims:
    """A worker's session: what each of its claims reads. Each begins where the last one ended."""

    def __init__(self, database: Database, quota: int) -> None:
        self.connection = database.connect()
        self.quota = quota
        self.after = ""
        row = self.connection.execute("select worker_id from pgnet.register_worker('process')")
        self.worker = row.fetchone()[0]  # type: ignore[index]

    def claim(self) -> tuple[int, int, int]:
        """Gives how many rows were claimed, and how many rows and buffers were read for it."""
        with self.connection.transaction():
            before = self._rows_read()
            [(plan,)] = self.connection.execute(
                "explain (analyze, buffers, timing off, format json)"
                " select id, host from pgnet.claim_requests(worker_id => %s::bigint,"
                " slots => %s::int, host_quota => %s::int, single_host_quota => %s::int,"
                " full_hosts => '{0hung.example}', max_bytes => 1000000000, after_host => %s)",
                (self.worker, SLOTS, self.quota, self.quota, self.after),
                prepare=True,
            ).fetchall()
            read = self._rows_read() - before
        claimed = self.connection.execute(
            "select host from pgnet.claim where token ="
            " (select token from pgnet.claim order by claimed desc limit 1)"
            ' order by host collate "C"'
        ).fetchall()
        if claimed:
            self.after = claimed[-1][0]
        top: dict[str, Any] = plan[0]["Plan"]
        return len(claimed), read, top["Shared Hit Blocks"] + top["Shared Read Blocks"]

    def _rows_read(self) -> int:
        row = self.connection.execute(
            "select sum(pg_stat_get_xact_tuples_returned(c.oid))::bigint from pg_class c"
            " where c.relnamespace = any ('{net,pgnet}'::regnamespace[])"
            " and c.relkind in ('r', 'i')"
        ).fetchone()
        assert row is not None
        return int(row[0])


@pytest.mark.parametrize("hosts", [1, 1000, 10_000])
@pytest.mark.parametrize("state", [empty, full, emptied])
def test_a_claim_reads_what_it_takes(
    database: Database,
    state: Callable[[Database, int], None],
    hosts: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state(database, hosts)
    # Where there are many hosts, each row is another one's.
    session = Claims(database, SLOTS if hosts == 1 else 1)
    # The plans that the session keeps are made now, while nothing is there.
    for _ in range(8):
        assert session.claim()[0] == 0
    set_rules(database, session.worker)
    fill(database, hosts)
    read = [session.claim() for _ in range(4 if hosts > 1 else 2)]
    with capsys.disabled():
        print(f" {read}", end="")
    assert {claimed for claimed, _rows, _buffers in read} == {SLOTS}
    assert max(rows for _claimed, rows, _buffers in read) <= MOST_ROWS * SLOTS
    assert max(buffers for _claimed, _rows, buffers in read) <= MOST_BUFFERS * SLOTS
