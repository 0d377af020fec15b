"""unique_key, unique_for and on_conflict: of many calls one request comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors
from psycopg.types.json import Jsonb

from servers.cluster import Cluster, Database
from servers.roles import login_roles
from servers.scripted import SLACK, Reply, Scripted, ended, send
from servers.waiting import wait_until
from servers.workers import Session, one_worker

STANDING = (
    "select id, body, unique_key from net.http_request_queue join pgnet.flow on request_id = id"
)
ALICE, BOB = "debounce_alice", "debounce_bob"


@pytest.fixture(scope="module")
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    yield scripted
    scripted.close()


@pytest.fixture(scope="module")
def roles(cluster: Cluster) -> Iterator[None]:
    with login_roles(cluster, (ALICE, BOB)):
        yield


@pytest.fixture(scope="module", params=["process", "backend"])
def served(request: pytest.FixtureRequest, cluster: Cluster, roles: None) -> Iterator[Database]:
    database = cluster.create_database()
    database.execute("select net.allow_network('loopback')")
    with one_worker(database, request.param):
        yield database
    database.drop()


def post(connection: psycopg.Connection[Any], url: str, body: object, **options: Any) -> int:
    options = {"unique_key": "k", **options}
    row = connection.execute(
        "select net.http_request('POST', %s, body => %s, timeout_milliseconds => 20000,"
        " options => %s)",
        (url, Jsonb(body), Jsonb(options)),
    ).fetchone()
    assert row is not None
    id: int = row[0]
    return id


def bodies(server: Scripted, url: str) -> list[bytes]:
    return [seen.body for seen in server.seen(url)]


# ---- one after the other


@pytest.mark.parametrize(("way", "sent"), [("keep", b"1"), ("replace", b"3")])
def test_of_three_calls_one_is_sent(
    served: Database, server: Scripted, way: str, sent: bytes
) -> None:
    url, connection = server.script(200), served.connection
    ids = [post(connection, url, n, not_before="1 s", on_conflict=way) for n in (1, 2, 3)]
    assert len(set(ids)) == 1
    assert ended(served, ids[0]) == ("succeeded", 200, 1)
    assert bodies(server, url) == [sent]
    # What comes later is a new one.
    again = post(connection, url, 4, on_conflict=way)
    assert again > ids[0]
    assert ended(served, again) == ("succeeded", 200, 1)
    assert bodies(server, url) == [sent, b"4"]


def test_keep_is_the_default(database: Database) -> None:
    connection = database.connection
    assert post(connection, "http://localhost/1", 1) == post(connection, "http://localhost/2", 2)
    assert database.rows("select url, body from net.http_request_queue") == [
        ("http://localhost/1", b"1")
    ]


def test_what_replace_replaces(database: Database) -> None:
    """All that a call says, and nothing else."""
    connection = database.connection
    first = post(connection, "http://localhost/1", 1, not_before="1 h", priority=3)
    made = database.row("select created, requested_by from net.http_request_queue")
    second = database.value(
        "select net.http_request('put', 'https://localhost/2', body_text => 'b',"
        " headers => '{\"A\": \"b\"}', timeout_milliseconds => 7, retry => 'safe', context => '5',"
        ' options => \'{"unique_key": "k", "on_conflict": "replace", "not_after": "1 h",'
        ' "max_redirects": 1}\')'
    )
    assert first == second
    assert database.rows(
        "select method, url, headers, body, timeout_milliseconds, context, options, priority,"
        " held, not_before, not_after is null, unique_key"
        " from net.http_request_queue join pgnet.flow on request_id = id"
    ) == [
        ("PUT", "https://localhost/2", {"A": "b", "Content-Type": "text/plain; charset=utf-8"},
         b"b", 7, 5, {"retry": "safe", "max_redirects": 1}, 0, False, None, False, "k")
    ]  # fmt: skip
    assert database.row("select created, requested_by from net.http_request_queue") == made


def test_a_later_time_pushes_it_out(served: Database, server: Scripted) -> None:
    url, connection = server.script(200), served.connection
    for n in range(4):
        post(connection, url, n, not_before="1 s", on_conflict="replace")
        last = time.time()
        time.sleep(0.4)
    wait_until(lambda: bodies(server, url), bool, "it is sent")
    assert bodies(server, url) == [b"3"]
    assert 0.9 <= server.seen(url)[0].at - last <= 1 + SLACK


def test_unique_for_bounds_how_long(served: Database, server: Scripted) -> None:
    """The first is sent although calls push it out, by the last call that came in time."""
    url, connection = server.script(200), served.connection
    ids: list[int] = []
    began = time.time()
    while time.time() - began < 2.5:
        ids.append(
            post(connection, url, len(ids), not_before="0.5 s", unique_for="1 s",
                 on_conflict="replace")
        )  # fmt: skip
        time.sleep(0.05)
    for id in set(ids):
        assert ended(served, id)[0] == "succeeded"
    assert 3 <= len(set(ids)) <= 4
    assert server.seen(url)[0].at - began <= 1.5 + SLACK
    assert [int(body) for body in bodies(server, url)] == [
        max(n for n, id in enumerate(ids) if id == each) for each in sorted(set(ids))
    ]


def test_one_in_flight_is_not_changed(served: Database, server: Scripted) -> None:
    url, connection = server.script(Reply(after=1.0), 200), served.connection
    first = post(connection, url, 1)
    served.wait_for("select state = 'in_flight' from net.requests where id = %s", first)
    second = post(connection, url, 2, on_conflict="replace")
    assert second != first
    assert ended(served, first) == ("succeeded", 200, 1)
    assert ended(served, second) == ("succeeded", 200, 1)
    assert sorted(bodies(server, url)) == [b"1", b"2"]


def test_one_that_waits_for_a_retry_is_not_changed(served: Database, server: Scripted) -> None:
    url, connection = server.script(Reply(503, {"Retry-After": "1"}), 200), served.connection
    first = send(served, "POST", url, body={"n": 1}, retry="safe",
                 options={"unique_key": "r", "idempotency_key": "r"})  # fmt: skip
    served.wait_for("select state = 'retrying' from net.requests where id = %s", first)
    second = post(connection, server.script(200), 2, unique_key="r", on_conflict="replace")
    assert second != first
    assert ended(served, first) == ("succeeded", 200, 2)
    assert bodies(server, url) == [b'{"n": 1}'] * 2


def test_one_that_is_cancelled_takes_nothing_in(database: Database) -> None:
    connection = database.connection
    first = post(connection, "http://localhost/", 1)
    database.execute("select net.cancel(%s)", first)
    second = post(connection, "http://localhost/", 2, on_conflict="replace")
    assert second != first
    assert database.rows(f"{STANDING} order by id") == [
        (first, b"1", None),
        (second, b"2", "k"),
    ]


def test_one_that_expires_takes_nothing_in(database: Database) -> None:
    connection = database.connection
    first = post(connection, "http://localhost/", 1, not_after="0.2 s")
    assert post(connection, "http://localhost/", 2) == first
    time.sleep(0.25)
    assert post(connection, "http://localhost/", 3) != first


def test_a_rollback_takes_back_what_it_replaced(database: Database) -> None:
    connection = database.connection
    first = post(connection, "http://localhost/", 1)
    other = database.connect(autocommit=False)
    assert post(other, "http://localhost/", 2, on_conflict="replace") == first
    other.rollback()
    assert database.rows(STANDING) == [(first, b"1", "k")]


def test_a_call_that_failed_its_check_changes_nothing(database: Database) -> None:
    connection = database.connection
    post(connection, "http://localhost/", 1)
    with pytest.raises(errors.InvalidParameterValue):
        post(connection, "ftp://localhost/", 2, on_conflict="replace")
    with pytest.raises(errors.InvalidParameterValue, match="not_before"):
        post(connection, "http://localhost/", 2, on_conflict="replace", not_before="noon")
    assert database.rows("select url, body from net.http_request_queue") == [
        ("http://localhost/", b"1")
    ]


def test_it_is_sent_after_the_commit_of_the_last_call(served: Database, server: Scripted) -> None:
    url, connection = server.script(200), served.connection
    first = post(connection, url, 1, not_before="0.3 s")
    with served.connect(autocommit=False) as other:
        assert post(other, url, 2) == first
        with pytest.raises(errors.ObjectNotInPrerequisiteState, match="before this transaction"):
            other.execute("select net.wait(%s)", (first,))
        other.rollback()
        assert post(other, url, 3) == first
        time.sleep(1.0)
        assert bodies(server, url) == []
        other.commit()
        committed = time.time()
    assert ended(served, first)[0] == "succeeded"
    assert server.seen(url)[0].at - committed <= SLACK


def test_a_key_is_its_roles_own(database: Database, roles: None) -> None:
    alice, bob = database.connect(ALICE), database.connect(BOB)
    first = post(alice, "http://localhost/", 1)
    other = post(bob, "http://localhost/", 2, on_conflict="replace")
    assert first != other
    assert post(alice, "http://localhost/", 3, on_conflict="replace") == first
    left = database.rows("select body from net.http_request_queue order by id")
    assert left == [(b"3",), (b"2",)]


def test_a_place_in_an_order_stays(database: Database) -> None:
    """Merged calls have the ordering key of the first; another one is refused."""
    connection = database.connection
    first = post(connection, "http://localhost/", 1, ordering_key="o")
    assert post(connection, "http://localhost/", 2, ordering_key="o", on_conflict="replace") == (
        first
    )
    with pytest.raises(errors.InvalidParameterValue, match="another ordering_key"):
        post(connection, "http://localhost/", 3, on_conflict="replace")
    with pytest.raises(errors.InvalidParameterValue, match="exclude each other"):
        post(connection, "http://localhost/", 3, after=[first])
    assert database.rows(
        "select body, held, gate::text from net.http_request_queue join pgnet.flow"
        " on request_id = id"
    ) == [(b"2", True, "new")]


# ---- many at once


@pytest.fixture(scope="module")
def crowd(make_cluster: Callable[..., Cluster]) -> Iterator[Database]:
    database = make_cluster(max_connections=400).create_database()
    database.execute("select net.allow_network('loopback')")
    database.execute("create sequence turn")
    yield database
    database.drop()


@pytest.fixture(scope="module")
def sessions(crowd: Database) -> list[psycopg.Connection[Any]]:
    """Sessions that have called before: the first call of each takes longer."""
    connections = [crowd.connect(autocommit=False) for _ in range(200)]
    for connection in connections:
        connection.execute("select net.http_get('http://localhost/')")
        connection.rollback()
    return connections


def at_once(jobs: list[Callable[[], None]]) -> None:
    """Run each in a thread of its own; raises what any of them raised."""
    faults: list[BaseException] = []

    def run(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=run, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == []


@pytest.mark.parametrize("way", ["keep", "replace"])
def test_hundreds_of_callers(
    crowd: Database, sessions: list[psycopg.Connection[Any]], server: Scripted, way: str
) -> None:
    """Exactly one request for each burst, with the content of the last call, or of the first.

    A transaction that has called draws a number while it keeps the request locked: so the numbers
    are in the order of the calls.
    """
    keys, url = 3, server.script(200)
    with crowd.worker(), crowd.worker():
        for burst in range(3):
            calls: list[tuple[int, str, int, int]] = []

            def call(n: int, calls: list[tuple[int, str, int, int]] = calls) -> None:
                key = f"{way}{n % keys}"
                id = post(sessions[n], f"{url}?{key}", n, unique_key=key, not_before="1 hour",
                          on_conflict=way)  # fmt: skip
                row = sessions[n].execute("select nextval('turn')").fetchone()
                assert row is not None
                if n % 7 == 6:
                    sessions[n].rollback()
                else:
                    calls.append((row[0], key, id, n))
                    sessions[n].commit()

            at_once([lambda n=n: call(n) for n in range(len(sessions))])  # type: ignore[misc]
            # However long the burst takes on this machine, its time comes after it.
            crowd.execute("update pgnet.flow set not_before = now()")
            crowd.execute("select net.wake()")
            for at in range(keys):
                key = f"{way}{at}"
                mine = sorted(c for c in calls if c[1] == key)
                assert len({id for _, _, id, _ in mine}) == 1
                crowd.wait_for(
                    "select state = 'succeeded' from net.requests where id = %s", mine[0][2],
                    timeout=30,
                )  # fmt: skip
                seen = bodies(server, f"{url}?{key}")
                assert len(seen) == burst + 1
                assert int(seen[-1]) == mine[0 if way == "keep" else -1][3]
    assert crowd.value("select count(*) from net.http_request_queue") == 0


@pytest.mark.parametrize("way", ["keep", "replace"])
def test_calls_without_a_gap_do_not_keep_it_for_ever(
    crowd: Database, server: Scripted, way: str
) -> None:
    """Each call is followed by a request that goes out after it."""
    url = server.script(200)
    calls: list[tuple[float, int, int]] = []
    until = time.monotonic() + 6

    def caller(number: int) -> None:
        with crowd.connect(autocommit=False) as connection:
            n = 0
            while time.monotonic() < until:
                body = 1_000_000 * number + n
                id = post(connection, url, body, unique_key=way, on_conflict=way)
                at = time.time()
                connection.execute("select pg_sleep(0.02)")
                connection.commit()
                calls.append((at, id, body))
                n += 1

    with crowd.worker():
        at_once([lambda n=n: caller(n) for n in range(12)])  # type: ignore[misc]
        crowd.wait_for("select count(*) = 0 from net.http_request_queue")
    sent = [seen.at for seen in server.seen(url)]
    assert len(calls) > 100
    assert 3 <= len(sent) <= len(calls)
    # Nobody waited for much longer than a second for the next request.
    for at, _, _ in calls:
        later = [moment for moment in sent if moment >= at]
        assert later, "a call was lost"
        assert min(later) - at <= 1.5 + SLACK
    if way == "replace":
        assert set(map(int, bodies(server, url))) <= {body for _, _, body in calls}


def test_two_keys_in_two_orders_are_a_deadlock_of_two_callers(database: Database) -> None:
    """PostgreSQL ends one of them; no worker waits for either."""
    one, two = database.connect(autocommit=False), database.connect(autocommit=False)
    post(one, "http://localhost/", 1, unique_key="a")
    post(two, "http://localhost/", 2, unique_key="b")
    one.execute("set deadlock_timeout = '100 ms'")
    failed: list[str] = []

    def call(connection: psycopg.Connection[Any], key: str) -> None:
        try:
            post(connection, "http://localhost/", 3, unique_key=key)
            connection.commit()
        except errors.DeadlockDetected:
            connection.rollback()
            failed.append(key)

    at_once([lambda: call(one, "b"), lambda: call(two, "a")])
    assert len(failed) == 1
    assert database.value("select count(*) from net.http_request_queue") == 2


def test_at_a_fixed_snapshot_a_call_fails_rather_than_doubles(database: Database) -> None:
    connection = database.connection
    other = database.connect(autocommit=False)
    other.execute("set transaction isolation level repeatable read")
    other.execute("select 1")
    post(connection, "http://localhost/", 1)
    with pytest.raises(errors.SerializationFailure):
        post(other, "http://localhost/", 2)


# ---- what the rights that it needs are good for


@pytest.fixture
def alice(database: Database, roles: None) -> psycopg.Connection[Any]:
    connection = database.connect(ALICE)
    connection.execute("set lock_timeout = '200 ms'")
    return connection


MODES = ("access share", "row share", "row exclusive", "share update exclusive", "share",
         "share row exclusive", "exclusive", "access exclusive")  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_no_role_locks_the_queue(
    database: Database, alice: psycopg.Connection[Any], mode: str
) -> None:
    """UPDATE of columns is not UPDATE of the table: only what SELECT gives may be locked."""
    post(alice, "http://localhost/", 1)
    with alice.transaction(force_rollback=True):
        if mode == "access share":
            alice.execute(f"lock table net.http_request_queue in {mode} mode")
        else:
            with pytest.raises(errors.InsufficientPrivilege):
                alice.execute(f"lock table net.http_request_queue in {mode} mode")


@pytest.mark.parametrize("strength", ["update", "no key update", "share", "key share"])
def test_a_role_locks_no_row_but_its_own_that_waits(
    database: Database, alice: psycopg.Connection[Any], roles: None, strength: str
) -> None:
    bob = database.connect(BOB)
    post(bob, "http://localhost/", 1)
    send(database, "GET", "http://localhost/")
    plain = post(alice, "http://localhost/", 1, unique_key=None)
    waits = post(alice, "http://localhost/", 2)
    with alice.transaction(force_rollback=True):
        query = f"select id from net.http_request_queue for {strength}"
        assert alice.execute(query).fetchall() == [(waits,)]
        free = database.rows("select id from net.http_request_queue for update skip locked")
        assert len(free) == 3
        assert (plain,) in free
    with pytest.raises(errors.InsufficientPrivilege):
        alice.execute(f"select * from net._http_response for {strength}")


def test_a_role_changes_no_request_but_its_own_that_waits(
    database: Database, alice: psycopg.Connection[Any], roles: None
) -> None:
    bob = database.connect(BOB)
    others = [
        post(bob, "http://localhost/bob", 1),
        post(database.connection, "http://localhost/owner", 1),
        post(alice, "http://localhost/plain", 1, unique_key=None),
    ]
    waits = post(alice, "http://localhost/", 2)
    changed = alice.execute("update net.http_request_queue set url = 'http://localhost/x'").rowcount
    assert changed == 1
    assert database.rows("select id from net.http_request_queue where url like '%/x'") == [(waits,)]
    forged = (
        "id = 1000000", "requested_by = 'postgres'", "created = now()", "due = 'infinity'",
        "waits_since = now()", "origin = 'a'", "retry_of = 1",
    )  # fmt: skip
    for change in forged:
        with pytest.raises(errors.InsufficientPrivilege):
            alice.execute(f"update net.http_request_queue set {change}")
    for change in ("requested_by = 'postgres'", "ordering_key = 'a'", "gate = 'new'"):
        with pytest.raises(errors.InsufficientPrivilege):
            alice.execute(f"update pgnet.flow set {change}")
    # Nor may one that was granted more.
    database.execute(f"grant all on net.http_request_queue, pgnet.flow to {ALICE}")
    for change in (*forged, f"requested_by = '{BOB}'", f"id = {others[0]}"):
        with pytest.raises((errors.InsufficientPrivilege, errors.UniqueViolation)):
            alice.execute(f"update net.http_request_queue set {change}")
    with pytest.raises(errors.InsufficientPrivilege):
        alice.execute(f"update pgnet.flow set requested_by = '{BOB}'")
    # A row of its own with another role's id says nothing of that role's request.
    assert alice.execute("update pgnet.flow set request_id = %s", (others[0],)).rowcount == 1
    assert alice.execute("update pgnet.flow set not_after = now()").rowcount == 1
    database.execute("select pgnet.expire_requests()")
    assert database.value("select count(*) from net.http_request_queue") == 4
    assert database.value("select count(*) from pgnet.flow") == 2


def test_one_in_flight_cannot_be_changed_by_hand(
    database: Database, alice: psycopg.Connection[Any], server: Scripted
) -> None:
    """Neither after the claim, nor by a change that began before it and waits for it."""
    url = server.script(200)
    id = post(alice, url, 1)
    claim = (
        "select count(*) from pgnet.claim_requests(%s, 10, 10, 10, '{}', 1000000, '') c"
        " where c.id is not null"
    )
    worker = database.connect(autocommit=False)
    number = worker.execute("select worker_id from pgnet.register_worker('process')").fetchone()
    worker.commit()
    assert worker.execute(claim, number).fetchone() == (1,)
    other = database.connect(ALICE)
    change = "update net.http_request_queue set body = 'other' where id = " + str(id)
    late = Session(other, change)
    database.wait_for("select exists (select from pg_locks where not granted)")
    worker.commit()
    assert isinstance(late.ended(), errors.InsufficientPrivilege)
    with pytest.raises(errors.InsufficientPrivilege):
        alice.execute(change)
    assert alice.execute("update pgnet.flow set unique_key = 'other'").rowcount == 0
    # Nor by a row beside it.
    database.execute("delete from pgnet.flow")
    alice.execute("insert into net._new_flow (request_id, unique_key) values (%s, 'k')", (id,))
    with pytest.raises(errors.InsufficientPrivilege):
        alice.execute(change)
    assert database.rows(STANDING) == [(id, b"1", "k")]


def test_a_change_by_hand_is_checked_when_it_is_sent(
    database: Database, alice: psycopg.Connection[Any], server: Scripted
) -> None:
    """A secret goes nowhere beyond its prefix, and not for a role that may not use it."""
    url = server.script(200)
    database.execute("select net.set_secret('k', 'hunter2-hunter2', %s)", url)
    database.execute("select net.set_secret('l', 'hunter2-hunter2', %s)", url)
    database.execute("select net.grant_secret('k', %s)", ALICE)
    for change, word in (
        ("url = 'ftp://localhost/'", "scheme"),
        (
            f'url = \'{server.url}/elsewhere\', headers = \'{{"A": {{"secret": "k"}}}}\'',
            "may not go",
        ),
        ('headers = \'{"A": {"secret": "l"}}\'', "secret"),
        ('headers = \'{"Host": "inner"}\'', "header"),
        ("method = 'CONNECT'", "CONNECT"),
        ('options = \'{"not_before": "1 s"}\'', "unknown option"),
    ):
        id = post(alice, url, 1)
        assert alice.execute(f"update net.http_request_queue set {change}").rowcount == 1
        with database.worker():
            row = database.row(
                "select (o).state::text, (o).status_code, (o).error_msg from net.wait(%s) o", id
            )
        assert row is not None
        assert row[:2] == ("failed", None), change
        assert word in row[2], (change, row)
    assert server.seen(url) == []


def test_a_held_lock_costs_a_worker_nothing(
    database: Database, alice: psycopg.Connection[Any], server: Scripted
) -> None:
    """A transaction that stays open with a request whose time has come: others go out."""
    url = server.script(200)
    post(alice, url, 1, not_before="0.1 s")
    with alice.transaction(force_rollback=True):
        post(alice, url, 2)
        with database.worker():
            time.sleep(0.3)
            began = time.monotonic()
            ids = [
                send(database, "GET", server.script(200), options={"not_before": f"{n / 10} s"})
                for n in range(1, 6)
            ]
            for id in ids:
                assert ended(database, id)[0] == "succeeded"
            assert time.monotonic() - began <= 0.5 + SLACK
            # Sessions report their transactions once a second.
            time.sleep(1.2)
            claims = database.value("select xact_commit from pg_stat_database where datname = %s",
                                    database.name)  # fmt: skip
            time.sleep(2.5)
            database.execute("select pg_stat_force_next_flush()")
            assert database.value(
                "select xact_commit - %s from pg_stat_database where datname = %s",
                claims, database.name,
            ) < 100  # fmt: skip
