"""Ordering keys: one in flight for a key, in the order of ids; a failed head blocks its key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors

from servers.cluster import Cluster, Database
from servers.recorder import Recorder
from servers.roles import login_roles
from servers.waiting import wait_until

ROLES = ("keys_alice", "keys_bob")
URL = "http://127.0.0.1:1025/"


@pytest.fixture(scope="module")
def roles(cluster: Cluster) -> Iterator[None]:
    with login_roles(cluster, ROLES):
        yield


@pytest.fixture
def own(database: Database, roles: None) -> Database:
    return database


def send(
    connection: psycopg.Connection[Any], key: str | None = "a", url: str = URL, **options: Any
) -> int:
    given = options | ({} if key is None else {"ordering_key": key})
    row = connection.execute(
        "select net.http_request('POST', %s, options => %s::jsonb)", (url, json.dumps(given))
    ).fetchone()
    assert row is not None
    number: int = row[0]
    return number


def several(database: Database, count: int, key: str = "a", **options: Any) -> list[int]:
    return [send(database.connection, key, **options) for _ in range(count)]


def notices(connection: psycopg.Connection[Any]) -> list[str]:
    said: list[str] = []
    connection.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
    return said


def fail(recorder: Recorder, *, state: str = "failed", count: int = 1) -> None:
    claims = recorder.claim()
    assert len(claims) == count
    assert recorder.record(claims, state=state, status_code=500, error_msg="no") == []


def beat(recorder: Recorder) -> int:
    """A heartbeat; gives how many claims there are then."""
    recorder.connection.execute("select pgnet.heartbeat(%s)", (recorder.id,))
    row = recorder.connection.execute("select count(*) from pgnet.claim").fetchone()
    assert row is not None
    number: int = row[0]
    return number


def gates(database: Database) -> list[tuple[int, str | None]]:
    return database.rows("select request_id, gate::text from pgnet.flow order by request_id")


def test_one_at_a_time_in_the_order_of_ids(database: Database, recorder: Recorder) -> None:
    ids = several(database, 5)
    for number in ids:
        claims = recorder.claim()
        assert list(claims) == [number]
        assert recorder.claim() == {}
        recorder.record(claims)
    assert database.value("select count(*) from net.http_request_queue") == 0
    assert database.value("select count(*) from pgnet.ended_request") == 1
    assert recorder.claim() == {}
    assert database.value("select count(*) from pgnet.ended_request") == 0


def test_heads_of_many_keys_are_claimed_at_once(database: Database, recorder: Recorder) -> None:
    first = [send(database.connection, f"k{n}") for n in range(50)]
    for n in range(50):
        send(database.connection, f"k{n}")
    assert sorted(recorder.claim()) == first


def test_a_long_key_hides_nobody(database: Database, recorder: Recorder) -> None:
    """A key has 20,000 requests in front: the others are claimed first time, by two slots."""
    database.execute(
        "select count(net.http_request('POST', %s, options => '{\"ordering_key\": \"long\"}'))"
        " from generate_series(1, 20000)",
        URL,
    )
    other = send(database.connection, None)
    assert set(recorder.claim(2)) == {1, other}


def test_keys_of_roles_are_their_own(own: Database, recorder: Recorder) -> None:
    alice, bob = own.connect("keys_alice"), own.connect("keys_bob")
    ids = [send(alice), send(bob)]
    assert sorted(recorder.claim()) == ids


def test_a_retrying_head_holds_its_key(database: Database, recorder: Recorder) -> None:
    several(database, 2)
    claims = recorder.claim()
    recorder.record(claims, state="retrying", retry_in=0.2)
    assert recorder.claim() == {}
    database.wait_for("select due < now() from net.http_request_queue where due is not null")
    assert list(recorder.claim()) == list(claims)


def test_a_head_that_waits_for_its_time_holds_its_key(
    database: Database, recorder: Recorder
) -> None:
    several(database, 2)
    database.execute(
        "update pgnet.flow set not_before = now() + interval '1 hour' where request_id = 1"
    )
    assert recorder.claim() == {}


def test_an_id_that_is_committed_late(database: Database, recorder: Recorder) -> None:
    """It goes before a request that is open and was not attempted, and behind one that was."""
    late = database.connect(autocommit=False)
    lower = send(late)
    higher = send(database.connection)
    # The host is paused: the request is open, and is not claimed.
    database.execute("insert into pgnet.pause (host) values ('*')")
    assert recorder.claim() == {}
    assert gates(database) == [(higher, None)]
    late.commit()
    assert recorder.claim() == {}
    assert gates(database) == [(lower, None), (higher, "key")]
    lowest = send(late)
    database.execute("delete from pgnet.pause")
    claims = recorder.claim()
    assert list(claims) == [lower]
    late.commit()
    assert recorder.claim() == {}
    recorder.record(claims)
    # The order is by ids again: lowest has the highest of the three.
    for number in (higher, lowest):
        claims = recorder.claim()
        assert list(claims) == [number]
        recorder.record(claims)


def test_what_is_in_flight_is_not_overtaken(database: Database, recorder: Recorder) -> None:
    late = database.connect(autocommit=False)
    lower = send(late)
    higher = send(database.connection)
    claims = recorder.claim()
    assert list(claims) == [higher]
    late.commit()
    assert recorder.claim() == {}
    recorder.record(claims, state="retrying", retry_in=0)
    # It was attempted: it stays the head.
    assert list(recorder.claim()) == [higher]
    assert gates(database) == [(lower, "key"), (higher, None)]


def test_a_rolled_back_request_holds_nobody(database: Database, recorder: Recorder) -> None:
    session = database.connect(autocommit=False)
    send(session)
    number = send(database.connection)
    assert list(recorder.claim()) == [number]
    session.rollback()


def test_a_prepared_transaction_commits_late(database: Database, recorder: Recorder) -> None:
    session = database.connect(autocommit=False)
    session.tpc_begin(session.xid(1, "order", "late"))
    lower = send(session)
    session.tpc_prepare()
    higher = send(database.connection)
    claims = recorder.claim()
    assert list(claims) == [higher]
    session.tpc_commit()
    assert recorder.claim() == {}
    recorder.record(claims)
    assert list(recorder.claim()) == [lower]


@pytest.mark.parametrize("state", ["failed", "unknown"])
def test_a_failed_head_blocks_its_key(database: Database, recorder: Recorder, state: str) -> None:
    head, *_ = several(database, 4)
    fail(recorder, state=state)
    # The view knows it before a claim has looked at it, and afterwards.
    blocked = "select key, head, state::text, status_code, error_msg, waiting from net.blocked_keys"
    assert database.rows(blocked) == [("a", head, state, 500, "no", 3)]
    assert recorder.claim() == {}
    assert database.rows(blocked) == [("a", head, state, 500, "no", 3)]
    assert database.value("select since > now() - interval '1 minute' from net.blocked_keys")
    several(database, 1, "b")
    assert len(recorder.claim()) == 1


def test_a_head_that_fails_while_its_key_is_examined(
    database: Database, recorder: Recorder
) -> None:
    """Its failure is committed between two statements of another worker: the hint is seen."""
    several(database, 2)
    fail(recorder)
    heads = "select head from pgnet.find_heads(array['postgres'::regrole::oid], array['a'], '{2}')"
    assert database.rows(heads) == []
    assert database.value("select count(*) from pgnet.blocked_key") == 0
    database.execute("update pgnet.ended_request set blocks = false")
    assert database.rows(heads) == [(2,)]


@pytest.mark.parametrize("state", ["cancelled", "expired", "succeeded"])
def test_no_other_end_blocks(database: Database, recorder: Recorder, state: str) -> None:
    several(database, 2)
    fail(recorder, state=state)
    assert len(recorder.claim()) == 1
    assert database.rows("select * from net.blocked_keys") == []


def test_on_failure_skip(database: Database, recorder: Recorder) -> None:
    several(database, 2, on_failure="skip")
    fail(recorder)
    assert len(recorder.claim()) == 1


@pytest.mark.parametrize("way", ["unblock", "cancel", "forget"])
def test_the_ways_out(database: Database, recorder: Recorder, way: str) -> None:
    head, second, *_ = several(database, 4)
    fail(recorder)
    said = notices(database.connection)
    if way == "unblock":
        assert database.value("select net.unblock('a')")
        assert not database.value("select net.unblock('a')")
    else:
        assert database.value(f"select net.{way}(%s)", head)
        assert not database.value(f"select net.{way}(%s)", head)
    assert len(said) == 1
    assert said[0].startswith(f'key "a" is not blocked any more by request {head}')
    assert said[0].endswith(": 3")
    assert database.rows("select * from net.blocked_keys") == []
    assert list(recorder.claim()) == [second]
    if way != "forget":
        assert database.value("select count(*) from net.failures") == 1


def test_a_way_out_that_is_rolled_back(database: Database, recorder: Recorder) -> None:
    several(database, 2)
    fail(recorder)
    with database.connect(autocommit=False) as session:
        assert session.execute("select net.unblock('a')").fetchone() == (True,)
        session.rollback()
    assert database.value("select count(*) from net.blocked_keys") == 1
    assert recorder.claim() == {}


def test_a_retry_of_the_head_goes_first(database: Database, recorder: Recorder) -> None:
    head, second, third = several(database, 3)
    fail(recorder)
    said = notices(database.connection)
    again = database.value("select net.retry(%s)", head)
    assert said == [
        f'request {again} goes first in key "a", which request {head} blocked;'
        " requests that wait behind it: 2"
    ]
    assert database.rows("select * from net.blocked_keys") == []
    claims = recorder.claim()
    assert list(claims) == [again]
    assert database.rows("select * from net.blocked_keys") == []
    # It fails in turn: now it is the head.
    recorder.record(claims, state="failed")
    assert database.value("select head from net.blocked_keys") == again
    assert recorder.claim() == {}
    again = database.value("select net.retry(%s)", again)
    for number in (again, second, third):
        claims = recorder.claim()
        assert list(claims) == [number]
        recorder.record(claims)


def test_a_retry_of_a_head_whose_hint_waits_in_a_long_row(
    database: Database, recorder: Recorder
) -> None:
    """Hundreds of heads fail at once, and are sent again before a worker has looked at that."""
    heads = [send(database.connection, f"k{n}") for n in range(400)]
    rest = [send(database.connection, f"k{n}") for n in range(400)]
    claims: dict[int, str] = {}
    while len(claims) < 400:
        claims |= recorder.claim(1000)
    assert sorted(claims) == heads
    recorder.record(claims, state="failed")
    database.execute("select net.retry(id) from net.failures order by id desc")
    claims = {}
    while len(claims) < 400:
        claims |= recorder.claim(1000)
    assert not set(claims) & set(rest)
    assert database.rows("select * from net.blocked_keys") == []
    recorder.record(claims)
    again = recorder.claim(1000)
    while len(again) < 400:
        again |= recorder.claim(1000)
    assert sorted(again) == rest


def test_a_retry_of_what_blocks_nothing_goes_last(database: Database, recorder: Recorder) -> None:
    head, second = several(database, 2, on_failure="skip")
    fail(recorder)
    again = database.value("select net.retry(%s)", head)
    for number in (second, again):
        claims = recorder.claim()
        assert list(claims) == [number]
        recorder.record(claims)


def test_a_retry_and_an_unblocking_at_once(database: Database, recorder: Recorder) -> None:
    head, second = several(database, 2)
    fail(recorder)
    with database.connect(autocommit=False) as session:
        session.execute("select net.unblock('a')")
        again = session.execute("select net.retry(%s)", (head,)).fetchone()
    assert again is not None
    assert set(recorder.claim()) < {second, *again}


def test_a_lost_head_goes_again(database: Database, recorder: Recorder, other: Recorder) -> None:
    head, _ = several(database, 2)
    assert list(recorder.claim()) == [head]
    recorder.connection.close()
    database.execute("select net.configure('rescue_after', '1 s')")
    wait_until(
        lambda: beat(other),
        lambda claims: claims == 0,
        "the claim of the lost worker is returned",
    )
    assert list(other.claim()) == [head]


def test_cancelling_what_waits(database: Database, recorder: Recorder) -> None:
    """The head is cancelled before it is sent, and the last one: the others go on."""
    head, second, third = several(database, 3)
    database.execute("insert into pgnet.pause (host) values ('*')")
    assert recorder.claim() == {}
    said = notices(database.connection)
    assert database.value("select net.cancel(%s) and net.cancel(%s)", head, third)
    beat(recorder)
    database.execute("delete from pgnet.pause")
    assert said == []
    claims = recorder.claim()
    assert list(claims) == [second]
    recorder.record(claims)
    assert recorder.claim() == {}
    assert database.value("select count(*) from net.http_request_queue") == 0


def test_a_head_that_was_deleted_by_hand(database: Database, recorder: Recorder) -> None:
    """No hint tells of it: the sweep finds it."""
    head, second, _ = several(database, 3)
    database.execute("insert into pgnet.pause (host) values ('*')")
    assert recorder.claim() == {}
    database.execute("delete from net.http_request_queue where id = %s", head)
    database.execute("delete from pgnet.pause")
    assert recorder.claim() == {}
    beat(recorder)
    assert list(recorder.claim()) == [second]


def test_a_head_that_was_deleted_in_flight(database: Database, recorder: Recorder) -> None:
    """The next one goes when the worker has let go of it."""
    head, second = several(database, 2)
    claims = recorder.claim()
    database.execute("delete from net.http_request_queue where id = %s", head)
    assert recorder.claim() == {}
    recorder.record(claims)
    assert list(recorder.claim()) == [second]


def test_one_claim_for_a_key_whatever_is_forged(
    own: Database, recorder: Recorder, other: Recorder
) -> None:
    """Requests that say that they are open: the order of that role is spoilt, and nothing else."""
    alice = own.connect("keys_alice")
    alice.execute(
        "insert into net._new_request (method, url, held) select 'POST', %s, false"
        " from generate_series(1, 3)",
        (URL,),
    )
    alice.execute(
        "insert into net._new_flow (request_id, ordering_key) select n, 'a'"
        " from generate_series(1, 3) n"
    )
    with pytest.raises(errors.UndefinedColumn):
        alice.execute("insert into net._new_flow (request_id, opened) values (4, now())")
    number = send(own.connect("keys_bob"))
    # No claim waits for the other worker's, which is not committed.
    recorder.connection.autocommit = False
    first = recorder.claim(2)
    second = other.claim()
    recorder.connection.commit()
    # The request of the other role is examined by the first one.
    assert sorted([*first, *second, *recorder.claim()]) == [1, 2, 3, number]


def test_the_keeper_is_busy(database: Database, recorder: Recorder) -> None:
    """While another worker opens gates, a claim takes the others, and says when to come again."""
    session = database.connect(autocommit=False)
    session.execute("select from pgnet.gate_keeper for update")
    several(database, 1)
    number = send(database.connection, None)
    assert list(recorder.claim()) == [number]
    row = recorder.connection.execute(
        "select (flow::jsonb -> 'look_in')::float"
        " from pgnet.claim_requests(%s, 1, 1, 1, '{}', 1, '') where id is null",
        (recorder.id,),
    ).fetchone()
    assert row is not None
    assert 0 < row[0] <= 0.1
    session.rollback()
    assert len(recorder.claim()) == 1


def test_a_role_sees_and_unblocks_its_own(own: Database, recorder: Recorder) -> None:
    alice, bob = own.connect("keys_alice"), own.connect("keys_bob")
    head, _, _ = send(alice), send(alice), send(bob, "b")
    fail(recorder, count=2)
    assert recorder.claim() == {}
    assert bob.execute("select key, waiting from net.blocked_keys").fetchall() == [("b", 0)]
    assert bob.execute("select net.unblock('a'), net.cancel(%s)", (head,)).fetchone() == (
        False,
        False,
    )
    bob.execute(
        "insert into pgnet.ended_request (request_id, ordering_key, unblocks)"
        " values (%s, 'a', true)",
        (head,),
    )
    assert recorder.claim() == {}
    for forged in ("false", "true, requested_by => 1"):
        with pytest.raises((errors.InsufficientPrivilege, errors.SyntaxError)):
            bob.execute(
                "insert into pgnet.ended_request (request_id, ordering_key, unblocks)"
                f" values (%s, 'a', {forged})",
                (head,),
            )
    # The owner sees both, and unblocks another role's.
    assert own.value("select count(*) from net.blocked_keys") == 2
    assert own.value("select net.unblock('a')")
    assert len(recorder.claim()) == 1


def test_a_million_new_requests_of_one_role(own: Database, recorder: Recorder) -> None:
    """They are examined some at a time: another role's request does not wait for them."""
    alice = own.connect("keys_alice")
    alice.execute(
        "select count(net.http_request('POST', %s,"
        " options => jsonb_build_object('ordering_key', n::text)))"
        " from generate_series(1, 20000) n",
        ("http://127.0.0.1:1026/",),
    )
    number = send(own.connect("keys_bob"))
    assert number in recorder.claim(1000)
    assert own.value("select count(*) > 15000 from pgnet.flow where gate = 'new'")


def test_a_trigger_that_refuses_keeps_only_gates_shut(
    database: Database, recorder: Recorder
) -> None:
    database.execute(
        "create function public.refuse() returns trigger language plpgsql as"
        " $$ begin raise 'not today'; end $$"
    )
    database.execute(
        "create trigger refuse before update on net.http_request_queue"
        " for each row execute function public.refuse()"
    )
    several(database, 1)
    number = send(database.connection, None)
    assert list(recorder.claim()) == [number]
    fault = database.row("select message, hint from pgnet.fault where duty = 'opening gates'")
    assert fault is not None
    assert "not today" in fault[0]
    assert "disable trigger" in fault[1]
    database.execute("drop trigger refuse on net.http_request_queue")
    database.execute("update pgnet.fault set retry_at = now()")
    assert len(recorder.claim()) == 1
    assert database.rows("select * from pgnet.fault") == []
