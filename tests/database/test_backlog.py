"""max_pending and max_pending_per_role: back-pressure, counted without reading the queue."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors

from servers.cluster import Cluster, Database
from servers.doctor import check
from servers.httpd import Running
from servers.nginx import Nginx
from servers.roles import login_roles
from servers.workers import serving

ROLES = ("backlog_alice", "backlog_bob")
URL = "http://a.example/"
CALLS = (
    f"net.http_get('{URL}')",
    f"net.http_post('{URL}')",
    f"net.http_delete('{URL}')",
    f"net.http_request('PUT', '{URL}', body => '1')",
    f"net.http_patch('{URL}')",
)
MANY = f"select count(net.http_get('{URL}')) from generate_series(1, %s)"
PENDING = "select coalesce(sum(pending), 0)::int from pgnet.backlog where role <> 0::oid"

# The last count came after so many requests were queued, and found that all have ended.
COUNTED = "select pending = 0 and inserted = %s from pgnet.backlog where role = 0::oid"


@pytest.fixture(scope="module")
def roles(cluster: Cluster) -> Iterator[None]:
    with login_roles(cluster, ROLES):
        yield


@pytest.fixture
def own(fresh_database: Database, roles: None) -> Database:
    return fresh_database


def report(database: Database) -> None:
    """Have the session's counts in the server's statistics."""
    database.execute("select pg_stat_force_next_flush()")


def refused(connection: psycopg.Connection[Any], call: str) -> str:
    with pytest.raises(errors.ConfigurationLimitExceeded) as caught:
        connection.execute(f"select {call}")
    assert caught.value.diag.message_hint
    return caught.value.diag.message_primary or ""


# ---- off


def test_while_it_is_off_a_call_has_a_constant(own: Database) -> None:
    """What is left of it in a plan is neither a call of a function nor a row that is read."""
    assert own.value("select pgnet.pending_limits() is not null") is False
    plan = own.rows("explain (verbose) select pgnet.pending_limits() is not null")
    assert plan[1] == ("  Output: false",)
    own.execute("select net.configure('max_pending', '5')")
    own.execute("select net.configure('max_pending_per_role', '3')")
    assert own.value("select pgnet.pending_limits()") == [5, 3]
    own.execute("select net.configure('max_pending', null)")
    assert own.value("select pgnet.pending_limits()") == [None, 3]
    own.execute("select net.configure('max_pending_per_role', '0')")
    assert own.value("select pgnet.pending_limits()") is None
    assert own.value("select count(net.http_get('http://a.example/')) from generate_series(1, 20)")


def test_a_change_reaches_sessions_that_have_called_before(own: Database) -> None:
    alice = own.connect("backlog_alice")
    for _ in range(10):  # also with plans that are kept
        alice.execute(f"select {CALLS[0]}")
    own.execute("select net.configure('max_pending_per_role', '1')")
    own.execute("select pgnet.count_backlog()")
    for call in CALLS:
        refused(alice, call)
    own.execute("select net.configure('max_pending_per_role', null)")
    alice.execute(f"select {CALLS[0]}")


def test_a_rolled_back_change_is_none(own: Database) -> None:
    with own.connect(autocommit=False) as connection:
        connection.execute("select net.configure('max_pending', '1')")
        connection.execute(f"select {CALLS[0]}")
        refused(connection, CALLS[0])
        connection.rollback()
    for _ in range(3):
        own.execute(f"select {CALLS[0]}")


# ---- in all


def test_beyond_the_limit_every_call_is_refused(own: Database) -> None:
    own.execute("select net.configure('max_pending', '10')")
    alice = own.connect("backlog_alice")
    alice.execute(MANY, [10])
    for call in CALLS:
        message = refused(alice, call)
        assert message == "too many requests are pending: about 10, and at most 10 may be"
    # By hand the owner may insert.
    own.execute("insert into net.http_request_queue (method, url) values ('GET', %s)", URL)
    with pytest.raises(errors.ConfigurationLimitExceeded) as caught:
        alice.execute(f"select {CALLS[0]}")
    assert caught.value.diag.message_detail == "The setting max_pending is 10."
    hint = caught.value.diag.message_hint or ""
    assert hint.startswith("No worker is running. Start one: ")
    assert hint.endswith("raise the limit: select net.configure('max_pending', '20');")


def test_a_bulk_statement_is_stopped_within(own: Database) -> None:
    """Its rows are in nobody's statistics before it has ended: the session counts them itself."""
    own.execute("select net.configure('max_pending', '1000')")
    own.execute(MANY, 400)
    with pytest.raises(errors.ConfigurationLimitExceeded):
        own.execute(MANY, 1001)
    own.execute(MANY, 400)
    assert own.value("select count(*) from net.http_request_queue") == 800


def test_another_session_sees_what_was_reported(own: Database) -> None:
    own.execute("select net.configure('max_pending', '100')")
    own.execute(MANY, 100)
    report(own)
    alice = own.connect("backlog_alice")
    refused(alice, CALLS[0])
    # What was taken from the queue makes room.
    own.execute("delete from net.http_request_queue where id <= 50")
    report(own)
    alice.execute(MANY, [50])
    refused(alice, CALLS[0])


@pytest.mark.parametrize("upkeep", ["vacuum", "analyze", "vacuum analyze", "vacuum full"])
def test_upkeep_changes_nothing(own: Database, upkeep: str) -> None:
    own.execute("select net.configure('max_pending', '1000')")
    own.execute(MANY, 1000)
    own.execute("delete from net.http_request_queue where id % 2 = 0")
    report(own)
    own.execute(f"{upkeep} net.http_request_queue")
    alice = own.connect("backlog_alice")
    alice.execute(MANY, [450])
    with pytest.raises(errors.ConfigurationLimitExceeded):
        alice.execute(MANY, [150])


def test_statistics_that_were_reset_refuse_nobody(make_cluster: Callable[..., Cluster]) -> None:
    """After a crash the server counts from nothing, until the next VACUUM or ANALYZE."""
    cluster = make_cluster(autovacuum="off")
    database = cluster.create_database()
    database.execute("select net.configure('max_pending', '100')")
    database.execute(MANY, 100)
    report(database)
    refused(database.connect(), CALLS[0])
    database.close()
    cluster.kill()
    cluster.start()
    with database.connect() as connection:
        connection.execute(f"select {CALLS[0]}")
    database.execute("analyze net.http_request_queue")
    refused(database.connect(), CALLS[0])
    database.drop()


def test_the_doctor_says_that_nothing_is_counted(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(track_counts="off")
    database = cluster.create_database()
    assert check(database)["queue"][0]
    database.execute("select net.configure('max_pending', '100')")
    ok, detail, hint = check(database)["queue"]
    assert not ok
    assert detail.endswith("; max_pending limits nothing, since the server counts no rows")
    assert hint == "Set track_counts = on."
    database.execute(MANY, 200)
    database.drop()


def test_a_worker_in_the_database_makes_room(database: Database, nginx: Nginx) -> None:
    """It reports to the statistics when its CALL ends: what it counts makes up for that."""
    database.execute("select net.configure('max_pending', '1000')")
    # VACUUM would count the rows anew.
    database.execute("alter table net.http_request_queue set (autovacuum_enabled = off)")
    call = "select count(net.http_get(%s)) from generate_series(1, 300)"
    with serving(database):
        for number in range(1, 8):
            database.execute(call, f"{nginx.url}/?")
            database.wait_for(
                "select count(*) = %s from net._http_response", 300 * number, timeout=20
            )
            database.wait_for(COUNTED, 300 * number, timeout=20)
        assert (
            database.value(
                "select n_live_tup from pg_stat_all_tables where relname = %s", "http_request_queue"
            )
            > 1000
        )


def test_a_procedure_that_commits_counts_what_is_pending(database: Database, nginx: Nginx) -> None:
    """It reports nothing before its end, and what it queued before is sent meanwhile."""
    for setting in ("max_pending", "max_pending_per_role"):
        database.execute("select net.configure(%s, '1000')", setting)
    database.execute(
        "create procedure fill(url text) language plpgsql as $$ begin"
        " for n in 1 .. 4 loop"
        " perform net.http_get(url) from generate_series(1, 300);"
        " commit;"
        " while exists (select from net.http_request_queue) loop"
        " commit; perform pg_sleep(0.01);"
        " end loop;"
        " commit; perform pg_sleep(1.2); end loop; end $$"
    )
    with database.worker():
        database.execute("call fill(%s)", f"{nginx.url}/?")
        database.wait_for(COUNTED, 1200, timeout=20)
    # No worker has counted for a while: what the session itself has queued counts.
    database.execute("vacuum analyze net.http_request_queue")
    database.execute("update pgnet.backlog set counted = counted - interval '1 minute'")
    with pytest.raises(errors.ConfigurationLimitExceeded):
        database.execute(
            "do $$ begin for n in 1 .. 7 loop"
            " perform net.http_get('http://a.example/') from generate_series(1, 300);"
            " commit; end loop; end $$"
        )
    assert 900 <= database.value("select count(*) from net.http_request_queue") <= 1000


# ---- by role


def test_each_role_is_counted_by_itself(own: Database) -> None:
    own.execute("select net.configure('max_pending_per_role', '10')")
    alice, bob = (own.connect(role) for role in ROLES)
    alice.execute(MANY, [10])
    own.execute("select pgnet.count_backlog()")
    counted = "select role::text, pending from pgnet.backlog order by 1"
    assert own.rows(counted) == [("-", 10), ("backlog_alice", 10)]
    for call in CALLS:
        assert refused(alice, call) == (
            'too many requests of role "backlog_alice" are pending: about 10, and at most 10 may be'
        )
    bob.execute(f"select {CALLS[0]}")
    assert bob.execute("select role::text from pgnet.backlog").fetchall() == [("-",)]
    with pytest.raises(errors.ConfigurationLimitExceeded):
        bob.execute(MANY, [11])


def test_workers_count_while_it_is_on(database: Database, roles: None, witness: Running) -> None:
    database.execute("select net.pause()")
    alice = database.connect("backlog_alice")
    with database.worker(), database.worker():
        database.execute("select net.configure('max_pending_per_role', '10')")
        alice.execute(
            "select net.http_get(%s) from generate_series(1, 10)", [f"{witness.url}/body/1"]
        )
        database.wait_for(PENDING, predicate=(10).__eq__, timeout=5)
        refused(alice, CALLS[0])
        database.execute("select net.resume()")
        database.wait_for(PENDING, predicate=(0).__eq__, timeout=5)
        alice.execute("select net.http_get(%s)", [f"{witness.url}/body/1"])
        database.wait_for("select not exists (select from net.http_request_queue)")
        database.execute("select net.pause()")
        database.execute("select net.http_get(%s)", f"{witness.url}/body/1")
        database.wait_for(PENDING, predicate=(1).__eq__, timeout=5)
        database.execute("select net.configure('max_pending_per_role', null)")
        database.wait_for("select not exists (select from pgnet.backlog)", timeout=5)


def test_a_long_queue_is_counted_in_pieces(own: Database) -> None:
    own.execute("select net.configure('max_pending_per_role', '1000000')")
    own.execute(
        "insert into net.http_request_queue (method, url, requested_by)"
        " select 'GET', 'http://a.example/', case when n % 3 = 0 then 'backlog_alice'::regrole"
        " else 'backlog_bob'::regrole end from generate_series(1, 120000) n"
    )
    counted = "select role::text, pending from pgnet.backlog where role <> 0::oid"
    total = "select pending from pgnet.backlog where role = 0::oid"
    pieces = []
    for _ in range(4):
        own.execute("update pgnet.backlog_count set next_at = '-infinity'")
        own.execute("select pgnet.count_backlog()")
        pieces.append(dict(own.rows(counted)))
    whole = {"backlog_alice": 40_000, "backlog_bob": 80_000}
    assert pieces[2] == whole
    assert own.value(total) == 120_000
    assert pieces[0]["backlog_bob"] < pieces[1]["backlog_bob"] < 80_000
    # The next count begins anew, and shows nothing less before its end.
    assert pieces[3] == whole
    own.execute("delete from net.http_request_queue where id > 60000")
    for _ in range(3):
        own.execute("update pgnet.backlog_count set next_at = '-infinity'")
        own.execute("select pgnet.count_backlog()")
    assert dict(own.rows(counted)) == {"backlog_alice": 20_000, "backlog_bob": 40_000}


def test_one_worker_counts_in_a_second(own: Database) -> None:
    own.execute("select net.configure('max_pending_per_role', '10')")
    assert own.value("select pgnet.count_backlog()") == 1
    own.execute(MANY, 5)
    began = time.monotonic()
    assert own.value("select pgnet.count_backlog()") == 1
    if time.monotonic() - began < 0.5:
        assert own.value(PENDING) == 0


# ---- what else queues, and what keeps the limits


def test_sending_again_is_a_call_too(own: Database) -> None:
    own.execute(
        "insert into pgnet.failed (id, method, url, requested_by, created, priority, state,"
        " attempts) select nextval('net.http_request_queue_id_seq'), 'GET', 'http://a.example/',"
        " 'backlog_alice'::regrole, now(), 0, 'failed', 1 from generate_series(1, 5)"
    )
    own.execute("select net.configure('max_pending', '3')")
    alice = own.connect("backlog_alice")
    refused(alice, """net.retry_where('{"host": "*"}')""")
    assert alice.execute("""select net.retry_where('{"host": "*"}', 2)""").fetchone() == (2,)
    assert alice.execute("select net.retry(min(id)) from net.failures").fetchone() == (8,)
    refused(alice, "net.retry(min(id)) from net.failures")
    assert own.value("select count(*) from net.failures") == 2


def test_a_restored_dump_has_the_limits(cluster: Cluster, own: Database) -> None:
    own.execute("select net.configure('max_pending', '7')")
    dump = cluster.run("pg_dump", "--dbname", own.dsn())
    assert "pending_limits" not in dump
    other = cluster.create_database()
    try:
        other.execute("drop extension pgnet cascade")
        path = cluster.data / "dump.sql"
        path.write_text(dump)
        cluster.run("psql", "--quiet", "--dbname", other.dsn(), "--file", str(path))
        assert other.value("select pgnet.pending_limits()") == [7, None]
    finally:
        other.drop()


def test_nobody_lifts_the_limit(own: Database) -> None:
    """Neither by settings of the session nor by objects of the same names."""
    own.execute("select net.configure('max_pending_per_role', '1')")
    own.execute("grant create on schema public to backlog_alice")
    alice = own.connect("backlog_alice")
    alice.execute(f"select {CALLS[0]}")
    own.execute("select pgnet.count_backlog()")
    alice.execute("create temp table backlog (role regrole, pending bigint)")
    alice.execute("create function public.pending_limits() returns int[] return null::int[]")
    alice.execute("set search_path = pg_temp, public, pg_catalog")
    alice.execute("set row_security = on")
    alice.execute("set stats_fetch_consistency = 'none'")
    for call in CALLS:
        refused(alice, call)
    with pytest.raises(errors.InsufficientPrivilege):
        alice.execute("insert into pgnet.backlog values ('backlog_alice'::regrole, 0)")
    with pytest.raises(errors.InsufficientPrivilege):
        alice.execute(
            "create or replace function pgnet.pending_limits() returns int[] return null::int[]"
        )
    alice.execute("drop function public.pending_limits()")
    alice.close()
    own.execute("revoke create on schema public from backlog_alice")
