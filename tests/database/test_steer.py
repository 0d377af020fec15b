"""net.cancel_where and net.retry_where: many requests at once, by a filter."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors

from servers.cluster import Cluster, Database
from servers.httpd import Running
from servers.nginx import Nginx
from servers.roles import login_roles
from servers.traffic import queue, seen, states, wait_for_states
from servers.waiting import wait_until

ROLES = ("steer_alice", "steer_bob")
# Rows and index entries of the extension's tables that the current transaction has read.
READ = """
    select sum(pg_stat_get_xact_tuples_returned(c.oid))
    from pg_class c
    where c.relnamespace = any ('{net,pgnet}'::regnamespace[]) and c.relkind in ('r', 'i')
"""
TABLES = "net.http_request_queue, pgnet.claim, pgnet.attempt, pgnet.failed, pgnet.mark, pgnet.flow"


@pytest.fixture(scope="module")
def roles(cluster: Cluster) -> Iterator[None]:
    with login_roles(cluster, ROLES):
        yield


@pytest.fixture
def own(fresh_database: Database, roles: None) -> Database:
    return fresh_database


def where(
    connection: psycopg.Connection[Any],
    action: str,
    filter: dict[str, Any],
    at_most: int | None = 1000,
    dry_run: bool = False,
) -> int:
    row = connection.execute(
        f"select net.{action}_where(%s::jsonb, %s::int, %s)", [json.dumps(filter), at_most, dry_run]
    ).fetchone()
    assert row is not None
    number: int = row[0]
    return number


def act(database: Database) -> None:
    """Do what is marked, as a worker's heartbeat does."""
    while database.value("select pgnet.act_on_marks()") is not None:
        pass


def add(database: Database, role: str, url: str, count: int = 1, more: str = "null") -> None:
    """Queue requests of a role by hand, made at a time, with a context."""
    database.execute(
        "insert into net.http_request_queue (method, url, requested_by, context)"
        f" select 'GET', %s, %s::regrole, {more} from generate_series(1, %s)",
        url,
        role,
        count,
    )


def fail(database: Database, role: str, url: str, count: int = 1, **columns: Any) -> None:
    """Rows of pgnet.failed, as a recording leaves them."""
    columns = {"state": "failed", "status_code": None, "error_msg": "refused"} | columns
    database.execute(
        "insert into pgnet.failed (id, method, url, requested_by, created, priority, state,"
        " attempts, status_code, error_msg, failed, context, options)"
        " select nextval('net.http_request_queue_id_seq'), 'GET', %s, %s::regrole, now(), 0,"
        " %s::net.request_state, 1, %s, %s, now() - %s::interval, %s::jsonb, %s::jsonb"
        " from generate_series(1, %s)",
        url,
        role,
        columns["state"],
        columns["status_code"],
        columns["error_msg"],
        columns.get("age", "0"),
        columns.get("context"),
        columns.get("options"),
        count,
    )


def left(database: Database) -> dict[str, int]:
    return dict(
        database.rows("select url, count(*) from net.http_request_queue group by 1 order by 1")
    )


# ---- which requests


def test_each_key_of_a_filter_says_which(own: Database) -> None:
    alice, bob = "steer_alice", "steer_bob"
    add(own, alice, "http://a.example/orders/1", 3)
    add(own, alice, "http://a.example:8080/", 2)
    add(own, bob, "http://a.example/", 4)
    add(own, bob, "https://b.example/orders/2", 5, """'{"shop": 7, "tags": ["x"]}'""")
    own.execute(
        "update net.http_request_queue set created = now() - interval '2 days'"
        " where url like '%:8080/'"
    )
    # What waits for net.resume has not failed.
    own.execute("select net.pause()")
    # Two wait for another attempt, and two are in flight.
    own.execute(
        "with chosen as (select id from net.http_request_queue where url like 'https%' limit 2),"
        " tried as (insert into pgnet.attempt (request_id, attempt, requested_by, ending, started,"
        " ended, status_code) select id, 1, 'steer_bob'::regrole, 'answered', now(), now(), 503"
        " from chosen)"
        " update net.http_request_queue q set due = now() + interval '1 hour',"
        " waits_since = now() where id in (select id from chosen)"
    )
    own.execute(
        "insert into pgnet.claim (id, host, worker, token, attempt, deadline, role)"
        " select id, 'a.example', 1, gen_random_uuid(), 1, now() + interval '1 day', requested_by"
        " from net.http_request_queue where requested_by = 'steer_alice'::regrole"
        " and url like '%orders%' order by id limit 2"
    )
    expected: list[tuple[dict[str, Any], int]] = [
        ({"host": "a.example"}, 9),
        ({"host": "A.example:8080"}, 2),
        ({"host": ["a.example:8080", "b.example"]}, 7),
        ({"host": "*"}, 14),
        ({"host": "c.example"}, 0),
        ({"role": alice}, 5),
        ({"role": [alice, bob]}, 14),
        ({"role": alice, "host": "a.example", "url_like": "%orders%"}, 3),
        ({"url_like": "%/orders/%"}, 8),
        ({"context": {"shop": 7}}, 5),
        ({"context": {"tags": ["x"], "shop": 7}, "state": "ready"}, 3),
        ({"context": {"shop": 8}}, 0),
        ({"older_than": "1 day"}, 2),
        ({"newer_than": "1 day"}, 12),
        ({"older_than": "1 hour", "newer_than": "7 days"}, 2),
        ({"older_than": "2999-01-01"}, 14),
        ({"newer_than": "2999-01-01 12:00+02"}, 0),
        ({"state": "ready"}, 10),
        ({"state": "retrying"}, 2),
        ({"state": "in_flight"}, 2),
        ({"state": "in_flight", "host": "b.example"}, 0),
        ({"state": ["in_flight", "retrying"]}, 4),
        ({"kind": "503"}, 2),
        ({"kind": ["5xx", "timeout"]}, 2),
        ({"kind": "status", "host": "a.example"}, 0),
        ({"kind": "no_answer"}, 0),
    ]
    counted = [(f, where(own.connection, "cancel", f, None, True)) for f, _ in expected]
    assert counted == expected
    assert own.value("select count(*) from pgnet.mark") == 0

    for filter, number in [expected[8], expected[3], expected[0]]:
        done = own.value("select count(*) from pgnet.mark")
        again = where(own.connection, "cancel", filter, None)
        assert own.value("select count(*) from pgnet.mark") == done + again
        assert again <= number
        assert where(own.connection, "cancel", filter, None) == 0
    act(own)
    assert left(own) == {}
    assert states(own) == {"cancelled": 14}


def test_which_failures(own: Database) -> None:
    alice, bob = "steer_alice", "steer_bob"
    fail(own, alice, "http://a.example/1", 3, status_code=503, error_msg=None)
    fail(own, alice, "http://a.example:8080/2", 2, error_msg="Timeout of 5 ms reached. Total 6")
    fail(own, bob, "http://a.example/3", 4, age="3 days", context='{"shop": 7}')
    fail(own, bob, "http://b.example/4", 5, state="unknown", status_code=404, error_msg=None)
    fail(own, bob, "http://b.example/5", 6, state="cancelled", error_msg="recorded")
    expected: list[tuple[dict[str, Any], int]] = [
        ({"host": "a.example"}, 9),
        ({"host": "a.example:8080"}, 2),
        ({"host": "b.example"}, 0),
        ({"host": "b.example", "state": "unknown"}, 5),
        ({"host": "*", "state": ["unknown", "failed", "cancelled"]}, 20),
        ({"kind": "5xx"}, 3),
        ({"kind": "503"}, 3),
        ({"kind": "status", "state": ["failed", "unknown"]}, 8),
        ({"kind": "timeout"}, 2),
        ({"kind": "no_answer"}, 4),
        ({"older_than": "1 day"}, 4),
        ({"newer_than": "1 day"}, 5),
        ({"role": alice}, 5),
        ({"context": {"shop": 7}}, 4),
        ({"url_like": "%/3"}, 4),
    ]
    counted = [(f, where(own.connection, "retry", f, None, True)) for f, _ in expected]
    assert counted == expected
    assert where(own.connection, "retry", {"state": "unknown"}) == 5
    assert where(own.connection, "retry", {"state": "unknown"}) == 0
    assert where(own.connection, "retry", {"host": "a.example"}, 6) == 6
    assert where(own.connection, "retry", {"host": "a.example"}) == 3
    act(own)
    assert left(own) == {
        "http://a.example/1": 3,
        "http://a.example/3": 4,
        "http://a.example:8080/2": 2,
        "http://b.example/4": 5,
    }
    assert own.value("select count(*) from net.failures") == 6
    assert own.rows(
        "select distinct requested_by::text, url from net.http_request_queue q"
        " where retry_of is not null and not exists (select from pgnet.failed f"
        " where f.id = retry_of) order by 2, 1"
    ) == [
        (alice, "http://a.example/1"),
        (bob, "http://a.example/3"),
        (alice, "http://a.example:8080/2"),
        (bob, "http://b.example/4"),
    ]


def test_what_is_sent_again_is_what_failed(own: Database) -> None:
    """Headers, body and all, with the key that the first one had: as net.retry does."""
    alice = own.connect("steer_alice")
    columns = (
        "method::text, url, headers, body, timeout_milliseconds, priority, context,"
        " options, requested_by::text"
    )
    own.execute(
        "insert into pgnet.failed (id, method, url, headers, body, timeout_milliseconds,"
        " requested_by, created, priority, context, options, state, attempts, idempotency_key)"
        " select nextval('net.http_request_queue_id_seq'), 'POST', 'http://a.example/',"
        " '{\"X\": \"1\"}', 'body', 77, 'steer_alice'::regrole, now(), 3, '[1]',"
        " '{\"delivery\": \"at_least_once\"}', 'failed', 1, 'key ' || n"
        " from generate_series(1, 3) n"
    )
    one = alice.execute("select net.retry(id) from net.failures order by id limit 1").fetchone()
    assert where(alice, "retry", {"url_like": "%"}) == 2
    rows = own.rows(f"select {columns}, retry_of from net.http_request_queue order by id")
    for number, row in enumerate(rows, 1):
        assert row == (
            *("POST", "http://a.example/", {"X": "1"}, b"body", 77, 3, [1]),
            {"delivery": "at_least_once", "idempotency_key": f"key {number}"},
            *("steer_alice", number),
        )
    assert one == (4,)


def test_requests_that_wait_for_a_time_are_found(own: Database) -> None:
    alice = own.connect("steer_alice")
    alice.execute(
        "select net.http_request('GET', 'http://a.example/' || n,"
        """ options => '{"not_before": "1 hour"}') from generate_series(1, 5) n"""
    )
    add(own, "steer_alice", "http://a.example/", 2)
    assert where(alice, "cancel", {"state": "scheduled"}, None, True) == 5
    assert where(alice, "cancel", {"host": "a.example"}, None, True) == 7
    assert where(alice, "cancel", {"url_like": "%/5"}) == 1
    assert where(alice, "cancel", {"host": "a.example", "state": "scheduled"}) == 4
    act(own)
    assert left(own) == {"http://a.example/": 2}
    assert own.value("select count(*) from pgnet.flow") == 0


# ---- what is wrong with a filter


@pytest.mark.parametrize("action", ["cancel", "retry"])
@pytest.mark.parametrize(
    ("filter", "message"),
    [
        ("null", "a filter is a JSON object with at least one key"),
        (None, "a filter is a JSON object with at least one key"),
        ("{}", "a filter is a JSON object with at least one key"),
        ("[]", "a filter is a JSON object with at least one key"),
        ('{"hosts": "a.example"}', 'a filter has no key "hosts"'),
        ('{"host": 7}', '"host" of a filter must be a string or an array of strings'),
        ('{"host": []}', '"host" of a filter must be a string or an array of strings'),
        ('{"host": null}', '"host" of a filter must be a string or an array of strings'),
        ('{"host": "http://a.example"}', 'invalid host "http://a.example"'),
        ('{"state": "succeeded"}', 'there is nothing to do with requests in the state "succeeded"'),
        ('{"kind": "slow"}', 'there is no kind of error "slow"'),
        ('{"older_than": "10"}', '"older_than" of a filter must be an age or a time'),
        ('{"older_than": "-1 day"}', '"older_than" of a filter must be an age or a time'),
        ('{"newer_than": 10}', '"newer_than" of a filter must be an age or a time'),
        ('{"newer_than": "2026-13-01"}', '"newer_than" of a filter must be an age or a time'),
        ('{"url_like": 1}', '"url_like" of a filter must be a string'),
    ],
)
def test_a_filter_at_fault_is_refused(
    own: Database, action: str, filter: str | None, message: str
) -> None:
    with pytest.raises(errors.InvalidParameterValue) as caught:
        own.execute(f"select net.{action}_where(%s::jsonb)", filter)
    assert caught.value.diag.message_primary == message
    assert caught.value.diag.message_hint


def test_other_arguments_at_fault_are_refused(own: Database) -> None:
    with pytest.raises(errors.UndefinedObject, match='role "nobody_here" does not exist'):
        where(own.connection, "cancel", {"role": "nobody_here"})
    for at_most in (0, -1):
        with pytest.raises(errors.InvalidParameterValue, match="at_most must be 1 or more"):
            where(own.connection, "cancel", {"host": "*"}, at_most)
    add(own, "steer_alice", "http://a.example/", 2)
    # NULL for dry_run is no order to do it.
    assert own.value("""select net.cancel_where('{"host": "*"}', dry_run => null)""") == 2
    assert own.value("select count(*) from pgnet.mark") == 0
    assert own.value("""select net.cancel_where('{"host": "*"}', null)""") == 2


# ---- whose requests


def test_a_role_steers_its_own_requests_only(own: Database) -> None:
    for role in ROLES:
        add(own, role, f"http://{role.removeprefix('steer_')}.example/", 3)
        fail(own, role, "http://failed.example/", 2)
    own.execute(
        "insert into pgnet.claim (id, host, worker, token, attempt, deadline, role)"
        " select id, '', 1, gen_random_uuid(), 1, now() + interval '1 day', requested_by"
        " from net.http_request_queue"
    )
    alice = own.connect("steer_alice")
    everything: list[dict[str, Any]] = [
        {"host": "*"},
        {"role": list(ROLES)},
        {"url_like": "%"},
        {"state": "in_flight"},
    ]
    for filter in everything:
        assert where(alice, "cancel", filter, None, True) == 3
    for filter in everything[:3]:
        assert where(alice, "retry", filter, None, True) == 2
    nothing: list[dict[str, Any]] = [{"role": "steer_bob"}, {"host": "bob.example"}]
    for filter in nothing:
        assert where(alice, "cancel", filter) == 0
        assert where(alice, "retry", filter) == 0
    # Nor by the views that the search goes through.
    assert alice.execute("select distinct requested_by::text from pgnet.own_queued").fetchall() == [
        ("steer_alice",)
    ]
    assert alice.execute("select host from pgnet.own_place").fetchall() == [("alice.example",)]
    assert where(alice, "cancel", {"host": "*"}, None) == 3
    assert where(alice, "retry", {"host": "*"}, None) == 2
    act(own)
    assert left(own) == {"http://bob.example/": 3, "http://failed.example/": 2}
    assert own.rows("select requested_by::text, count(*) from net.failures group by 1") == [
        ("steer_bob", 2)
    ]


def test_no_function_of_a_caller_sees_rows_of_others(own: Database) -> None:
    """A cheap function in a condition would run before the view's own one."""
    add(own, "steer_bob", "http://bob.example/secret", 3)
    add(own, "steer_alice", "http://alice.example/", 1)
    own.execute("grant create on schema public to steer_alice")
    alice = own.connect("steer_alice")
    alice.execute(
        "create function public.spy(text) returns boolean language plpgsql cost 0.0001 as"
        " $$ begin raise notice 'saw %', $1; return true; end $$"
    )
    saw: list[str | None] = []
    alice.add_notice_handler(lambda notice: saw.append(notice.message_primary))
    alice.execute("select id from pgnet.own_queued where public.spy(url)")
    alice.execute("select host from pgnet.own_place where public.spy(host)")
    assert saw == ["saw http://alice.example/", "saw alice.example"]
    alice.execute("drop function public.spy(text)")
    alice.close()
    own.execute("revoke create on schema public from steer_alice")


def test_nobody_writes_through_the_views(own: Database) -> None:
    add(own, "steer_alice", "http://alice.example/")
    own.execute("grant all on pgnet.own_queued, pgnet.own_place to steer_alice")
    alice = own.connect("steer_alice")
    for statement in (
        "delete from pgnet.own_queued",
        "update pgnet.own_queued set priority = 1",
        "insert into pgnet.own_queued (id) values (1)",
        "delete from pgnet.own_place",
    ):
        with pytest.raises(errors.ObjectNotInPrerequisiteState):
            alice.execute(statement)
    alice.close()
    own.execute("drop owned by steer_alice")


# ---- what it reads


@pytest.fixture
def large(make_cluster: Callable[..., Cluster]) -> Iterator[Database]:
    cluster = make_cluster(autovacuum="off")
    with cluster.connect() as connection:
        for role in ROLES:
            connection.execute(f"create role {role} login")
    database = cluster.create_database()
    yield database
    database.drop()


@pytest.mark.parametrize("analyzed", ["empty", "full"])
def test_it_reads_what_it_needs(large: Database, analyzed: str) -> None:
    """Behind 100,000 requests of another host or role, whatever the statistics say."""
    if analyzed == "empty":
        large.execute(f"vacuum analyze {TABLES}")
    add(large, "steer_bob", "http://a.example/", 100_000)
    add(large, "steer_alice", "http://a.example/", 2_000)
    add(large, "steer_alice", "http://b.example/", 2_000)
    if analyzed == "full":
        large.execute(f"vacuum analyze {TABLES}")
    read: dict[str, float] = {}
    for user, filter in [
        ("steer_alice", {"host": "b.example"}),
        ("steer_alice", {"role": "steer_alice"}),
        ("steer_alice", {"older_than": "0 s"}),
        ("postgres", {"host": "b.example"}),
        ("postgres", {"role": "steer_alice"}),
        ("postgres", {"role": "steer_bob"}),
        ("postgres", {"state": "ready"}),
    ]:
        with large.connect(user, autocommit=False) as connection:
            connection.execute("select 1")
            before = connection.execute(READ).fetchone()
            assert where(connection, "cancel", filter, 1000, True) == 1000
            after = connection.execute(READ).fetchone()
            assert before is not None
            assert after is not None
            read[f"{user} {filter}"] = (after[0] - before[0]) / 1000
    assert {what: rows for what, rows in read.items() if rows > 12} == {}


def test_a_cancel_of_many_holds_up_no_other_role(
    database: Database, roles: None, witness: Running, nginx: Nginx
) -> None:
    add(database, "steer_bob", f"{witness.url}/body/1", 100_000)
    database.execute("select net.pause(%s)", witness.url.removeprefix("http://"))
    bob, alice = database.connect("steer_bob"), database.connect("steer_alice")
    with database.worker():
        assert where(bob, "cancel", {"host": "*"}, None) == 100_000
        longest = 0.0
        for number in range(30):
            began = time.monotonic()
            alice.execute("select net.http_get(%s)", [f"{nginx.url}/?{number}"])
            database.wait_for(
                "select count(*) = %s from net._http_response where state = 'succeeded'",
                number + 1,
                timeout=30,
            )
            longest = max(longest, time.monotonic() - began)
            time.sleep(0.1)
        assert longest < 2
        database.wait_for("select not exists (select from pgnet.mark)", timeout=100)
    assert database.value("select count(*) from net._http_response where state = 'cancelled'") == (
        100_000
    )


def test_sessions_that_cancel_the_same_do_not_deadlock(own: Database) -> None:
    add(own, "steer_alice", "http://a.example/", 500)
    add(own, "steer_alice", "http://b.example/", 500)
    first = own.connect(autocommit=False)
    second = own.connect("steer_alice", autocommit=False)
    assert where(first, "cancel", {"host": "a.example"}) == 500
    assert where(second, "cancel", {"host": "b.example"}) == 500
    second.execute("set statement_timeout = '1 s'")
    with pytest.raises(errors.QueryCanceled):
        where(second, "cancel", {"role": "steer_alice"})
    second.rollback()
    first.commit()
    assert where(own.connection, "cancel", {"role": "steer_alice"}) == 500


def test_in_flight_the_connection_is_closed(database: Database, witness: Running) -> None:
    """And the outcome says what is known of the attempt."""
    with database.worker("--grace", "0"):
        queue(database, f"{witness.url}/delay/600", 5, timeout=600_000)
        seen(witness, 5)
        database.wait_for("select count(*) = 5 from pgnet.claim where progress is not null")
        assert where(database.connection, "cancel", {"state": "in_flight"}, 3) == 3
        wait_until(witness.open_connections, (2).__eq__, "connections that are left")
        wait_for_states(database, {"cancelled": 3, "in_flight": 2})
    assert database.rows("select distinct error_msg, attempts from net._http_response") == [
        (
            "The request was cancelled while it was in flight: it may have been received."
            " Its worker said last: waiting for the first byte of the answer.",
            1,
        )
    ]


def test_what_has_ended_and_is_not_recorded_is_cancelled_too(own: Database) -> None:
    add(own, "steer_alice", "http://a.example/")
    own.execute(
        "insert into pgnet.claim (id, host, worker, token, attempt, deadline, role)"
        " select id, '', null, gen_random_uuid(), 1, now() + interval '1 day', requested_by"
        " from net.http_request_queue"
    )
    assert where(own.connection, "cancel", {"state": "in_flight"}) == 1
    act(own)
    assert own.rows("select state::text, error_msg from net._http_response") == [
        (
            "cancelled",
            "The request was cancelled after it had ended: its outcome could not be recorded.",
        )
    ]
