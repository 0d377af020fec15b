"""What claims do about limits of hosts: who gets what, what is read, how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from servers.cluster import Cluster, Database

TABLES = "net.http_request_queue, pgnet.claim, pgnet.host_budget, pgnet.mark, pgnet.host"
# Rows and index entries that the current transaction has read in the extension's tables.
READ = """
    select sum(pg_stat_get_xact_tuples_returned(c.oid))
    from pg_class c
    where c.relnamespace = any ('{net,pgnet}'::regnamespace[]) and c.relkind in ('r', 'i')
"""


@pytest.fixture(scope="module")
def quiet_cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    """A cluster whose statistics only the test makes."""
    return make_cluster(autovacuum="off")


@pytest.fixture
def database(quiet_cluster: Cluster) -> Any:
    database = quiet_cluster.create_database()
    yield database
    database.drop()


class Session:
    """A worker's session; a claim is a transaction, which `commit` ends."""

    def __init__(self, database: Database) -> None:
        self.connection = database.connect(autocommit=False)
        row = self.connection.execute(
            "select worker_id from pgnet.register_worker('process')"
        ).fetchone()
        assert row is not None
        (self.worker,) = row
        self.connection.commit()
        self.look_in: float | None = None
        self.read = 0

    def claim(self, slots: int = 500, *, commit: bool = True) -> list[int]:
        before = self._read()
        rows = self.connection.execute(
            "select id, (flow::json ->> 'look_in')::float8 from pgnet.claim_requests("
            " worker_id => %s::bigint, slots => %s::int, host_quota => %s::int,"
            " single_host_quota => %s::int, full_hosts => '{}', max_bytes => 1000000000,"
            " after_host => '')",
            (self.worker, slots, slots, slots),
            prepare=True,
        ).fetchall()
        self.read = self._read() - before
        if commit:
            self.connection.commit()
        self.look_in = next((look_in for id, look_in in rows if id is None), None)
        return [id for id, _ in rows if id is not None]

    def commit(self) -> None:
        self.connection.commit()

    def _read(self) -> int:
        row = self.connection.execute(READ).fetchone()
        assert row is not None
        return int(row[0])


def limit(database: Database, host: str, **settings: Any) -> None:
    database.execute("select net.configure_host(%s, %s)", host, Jsonb(settings))


def fill(database: Database, host: str, count: int) -> None:
    database.execute(
        "insert into net.http_request_queue (method, url)"
        " select 'GET', format('http://%%s/%%s', %s::text, n) from generate_series(1, %s) n",
        host,
        count,
    )


def settle(session: Session) -> None:
    """The first claims after a change of the configuration see to it that all claims count."""
    for _ in range(3):
        session.connection.execute("select pgnet.host_room('unknown.example')")
        session.commit()


def test_two_claims_at_once(database: Database) -> None:
    """One of them has the budget; the other takes nothing, waits for nothing and looks again."""
    limit(database, "a.example", concurrency=3)
    fill(database, "a.example", 10)
    one, other = Session(database), Session(database)
    settle(one)
    assert len(one.claim(1)) == 1
    assert len(one.claim(1, commit=False)) == 1
    began = time.monotonic()
    assert other.claim() == []
    assert time.monotonic() - began < 5
    assert other.look_in == pytest.approx(0.01)
    one.commit()
    assert len(other.claim()) == 1
    assert other.claim() == one.claim() == []
    assert one.look_in is None, "whoever frees a slot looks for more"


def test_two_first_claims_at_once(database: Database) -> None:
    """Neither waits for the row that the other one makes."""
    limit(database, "*", concurrency=3)
    for host in ("a.example", "b.example"):
        fill(database, host, 5)
    one, other = Session(database), Session(database)
    settle(one)
    assert len(one.claim(commit=False)) == 6
    assert other.claim() == []
    assert other.look_in is not None
    one.commit()


def test_tokens_are_taken_in_blocks(database: Database) -> None:
    limit(database, "a.example", rate="100/second", burst=40)
    fill(database, "a.example", 100)
    session = Session(database)
    settle(session)
    # Half of the burst pays for the delay between the claim and the wire.
    assert len(session.claim()) == 20
    database.execute("update pgnet.host_budget set tokens = 4, tokens_at = clock_timestamp()")
    assert session.claim() == []
    assert session.look_in == pytest.approx(0.06, abs=0.05)
    database.execute(
        "update pgnet.host_budget set tokens = 0, tokens_at = clock_timestamp() - interval '0.13 s'"
    )
    assert 13 <= len(session.claim()) < 20


def test_a_first_limit_waits_for_its_own_hosts_claims(database: Database) -> None:
    """Claims that are being recorded are locked: others' do not keep a host closed."""
    fill(database, "a.example", 4)
    fill(database, "b.example", 4)
    session = Session(database)
    assert len(session.claim()) == 8
    limit(database, "*", concurrency=6)
    for host in ("a.example", "b.example"):
        fill(database, host, 10)
    recording = database.connect(autocommit=False)
    recording.execute("select from pgnet.claim where host = 'b.example' for update")
    assert sum(len(session.claim()) for _ in range(3)) == 2
    assert database.value("select count(*) from pgnet.claim where host = 'a.example'") == 6
    assert session.look_in is not None
    recording.rollback()
    assert len(session.claim()) == 2
    assert database.value("select count(*) from pgnet.claim where limited") == 12


def test_a_first_limit_waits_for_transactions_from_before(database: Database) -> None:
    """What they claim is not seen yet."""
    fill(database, "a.example", 4)
    earlier, session = Session(database), Session(database)
    assert len(earlier.claim(commit=False)) == 4
    limit(database, "a.example", concurrency=6)
    fill(database, "a.example", 10)
    for _ in range(4):
        assert session.claim() == []
        assert session.look_in is not None
    earlier.commit()
    assert len(session.claim()) == 2


@pytest.mark.parametrize("statistics", ["never", "empty", "full", "emptied"])
def test_a_host_without_a_budget_is_not_read(database: Database, statistics: str) -> None:
    """100,000 of its rows are in front of another host's, whatever the statistics say."""
    limit(database, "a.example", concurrency=2)
    limit(database, "b.example", rate="1/hour")
    if statistics == "empty":
        database.execute(f"vacuum analyze {TABLES}")
    fill(database, "a.example", 100_000)
    fill(database, "b.example", 50_000)
    fill(database, "c.example", 10)
    if statistics in ("full", "emptied"):
        database.execute(f"vacuum analyze {TABLES}")
    if statistics == "emptied":
        database.execute("create table kept as table net.http_request_queue")
        database.execute("delete from net.http_request_queue")
        database.execute(f"vacuum analyze {TABLES}")
        database.execute("insert into net.http_request_queue table kept")
    session = Session(database)
    settle(session)
    # b.example has no time between claim and wire for more than one.
    assert len(session.claim()) == 2 + 1 + 10
    for _ in range(3):
        assert session.claim() == []
        assert session.read < 200, session.read
    fill(database, "d.example", 10)
    assert len(session.claim()) == 10
    assert session.read < 400, session.read


def test_many_hosts_with_limits(database: Database) -> None:
    """A claim reads as much of the 500th host as of the first: each is looked up by itself."""
    limit(database, "*", concurrency=5, rate="100/second")
    database.execute(
        "insert into net.http_request_queue (method, url)"
        " select 'GET', format('http://h%s.example/', n % 5000) from generate_series(1, 10000) n"
    )
    session = Session(database)
    settle(session)
    reads = {}
    for slots in (100, 400):
        assert len(session.claim(slots)) == slots
        assert len(session.claim(slots)) == slots
        reads[slots] = session.read / slots
    assert reads[400] < reads[100] * 1.5 + 5, reads


def test_roles_of_a_host_take_turns(database: Database) -> None:
    """Also where one request of theirs is claimed at a time."""
    database.execute("create role limits_one; create role limits_other")
    try:
        limit(database, "a.example", concurrency=4)
        for role, count in (("limits_one", 50), ("limits_other", 50)):
            database.execute(
                "insert into net.http_request_queue (method, url, requested_by)"
                " select 'GET', 'http://a.example/', %s::text::regrole"
                " from generate_series(1, %s) n",
                role,
                count,
            )
        session = Session(database)
        settle(session)
        in_flight = (
            "select count(*) from pgnet.claim where role = %s::text::regrole::oid and limited"
        )
        # Both have half of what is free, whoever comes first in the order of turns.
        assert len(session.claim()) == 4
        assert database.value(in_flight, "limits_one") == 2
        # Whatever ends, the role with fewer in flight is next.
        for role, other in (("limits_one", "limits_other"), ("limits_other", "limits_one")):
            ended = "delete from pgnet.claim where role = %s::text::regrole::oid"
            database.execute(ended, role)
            assert len(session.claim()) == 2
            assert database.value(in_flight, role) == database.value(in_flight, other) == 2
    finally:
        database.execute("delete from net.http_request_queue")
        database.execute("drop role limits_one; drop role limits_other")


def test_names_of_hosts_are_the_owners(database: Database) -> None:
    """Others see what is configured, and not to whom requests are sent."""
    database.execute("create role limits_curious")
    try:
        limit(database, "*", concurrency=4)
        fill(database, "confidential.example", 1)
        session = Session(database)
        settle(session)
        session.claim()
        hosts = "select array_agg(host order by host) from net.hosts"
        assert "confidential.example" in database.value(hosts)
        with database.connect() as curious:
            curious.execute("set role limits_curious")
            assert curious.execute(hosts).fetchone() == (["*"],)
    finally:
        database.execute("drop role limits_curious")
