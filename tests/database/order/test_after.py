"""The option after: a request is sent when others have ended well, or is cancelled with them."""

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

ROLES = ("after_alice", "after_bob")
URL = "http://127.0.0.1:1025/"


@pytest.fixture(scope="module")
def roles(cluster: Cluster) -> Iterator[None]:
    with login_roles(cluster, ROLES):
        yield


def send(connection: psycopg.Connection[Any], *after: int, **options: Any) -> int:
    given = options | ({"after": list(after)} if after else {})
    row = connection.execute(
        "select net.http_request('POST', %s, options => %s::jsonb)", (URL, json.dumps(given))
    ).fetchone()
    assert row is not None
    number: int = row[0]
    return number


def beat(recorder: Recorder) -> None:
    recorder.connection.execute("select pgnet.heartbeat(%s)", (recorder.id,))


def settle(recorder: Recorder) -> list[int]:
    """Claim until no gate is left to be looked at: a claim looks at some, for a few ms."""
    claimed: list[int] = []
    while True:
        claimed += recorder.claim()
        row = recorder.connection.execute(
            "select exists (select from pgnet.flow where gate = 'new')"
            " or exists (select from pgnet.ended_request)"
        ).fetchone()
        if row == (False,):
            return claimed


def ends(database: Database, *ids: int) -> list[tuple[str, str | None]]:
    return database.rows(
        "select state::text, error_msg from net.requests where id = any (%s) order by id", list(ids)
    )


def nothing_is_left(database: Database) -> bool:
    """Whether no row is left of what requests waited for."""
    return all(
        database.value(f"select not exists (select from {table})")
        for table in ("net.http_request_queue", "pgnet.flow", "pgnet.dependency")
    )


def test_it_is_sent_when_all_have_ended_well(database: Database, recorder: Recorder) -> None:
    first, second = send(database.connection), send(database.connection)
    third = send(database.connection, first, second, first)
    claims = recorder.claim()
    assert sorted(claims) == [first, second]
    recorder.record({first: claims[first]})
    assert recorder.claim() == {}
    recorder.record({second: claims[second]})
    claims = recorder.claim()
    assert list(claims) == [third]
    recorder.record(claims)
    assert nothing_is_left(database)


def test_after_what_has_ended_already(database: Database, recorder: Recorder) -> None:
    first = send(database.connection)
    recorder.record(recorder.claim())
    second = send(database.connection, first)
    assert list(recorder.claim()) == [second]


@pytest.mark.parametrize("state", ["failed", "unknown", "cancelled", "expired"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_one_that_did_not_end_well(
    database: Database, recorder: Recorder, state: str, when: str
) -> None:
    """Those that follow end transitively, with a message that names the request at fault."""
    first, well = send(database.connection), send(database.connection)
    claims = recorder.claim()
    rest: list[int] = []

    def queue() -> None:
        rest.append(send(database.connection, well, first))
        rest.append(send(database.connection, rest[0]))
        rest.append(send(database.connection, rest[1]))
        rest.append(send(database.connection, first, after_any_end=True))
        assert recorder.claim() == {} or when == "after"

    if when == "before":
        queue()
    recorder.record({first: claims[first]}, state=state, error_msg="no")
    if when == "after":
        queue()
    settle(recorder)
    word = {"failed": "has failed", "unknown": "has ended as unknown", "expired": "has expired"}
    message = f"Request {first} {word.get(state, 'was cancelled')}, and this request was to be sent"
    assert ends(database, *rest[:3]) == [
        ("cancelled", f"{message} after it."),
        ("cancelled", f"{message} after request {rest[0]}, which was cancelled for it."),
        ("cancelled", f"{message} after request {rest[1]}, which was cancelled for it."),
    ]
    assert ends(database, rest[3])[0][0] == "in_flight"
    # One that is queued now hears of the same request.
    late = send(database.connection, rest[2])
    settle(recorder)
    assert ends(database, late) == [
        ("cancelled", f"{message} after request {rest[2]}, which was cancelled for it.")
    ]
    # They can be sent again, and wait for nobody then.
    assert {row[0] for row in database.rows("select id from net.failures")} >= set(rest[:3])
    again = database.value("select net.retry(%s)", rest[2])
    assert list(recorder.claim()) == [again]
    assert database.value("select count(*) from pgnet.dependency") == 0


@pytest.mark.parametrize("way", ["cancel", "forget", "delete"])
def test_one_that_was_taken_away(database: Database, recorder: Recorder, way: str) -> None:
    database.execute("insert into pgnet.pause (host) values ('*')")
    first = send(database.connection)
    second = send(database.connection, first)
    any_end = send(database.connection, first, after_any_end=True)
    recorder.claim()
    if way == "delete":
        database.execute("delete from net.http_request_queue where id = %s", first)
    else:
        database.execute(f"select net.{way}(%s)", first)
    beat(recorder)
    database.execute("delete from pgnet.pause")
    assert settle(recorder) == [any_end]
    word = "was cancelled" if way == "cancel" else "is not known any more"
    assert ends(database, second) == [
        ("cancelled", f"Request {first} {word}, and this request was to be sent after it.")
    ]


def test_a_dependant_that_is_cancelled_itself(database: Database, recorder: Recorder) -> None:
    first = send(database.connection)
    second = send(database.connection, first)
    third = send(database.connection, second)
    claims = recorder.claim()
    database.execute("select net.cancel(%s)", second)
    beat(recorder)
    assert settle(recorder) == []
    assert [state for state, _ in ends(database, second, third)] == ["cancelled", "cancelled"]
    recorder.record(claims)
    settle(recorder)
    assert nothing_is_left(database)


def test_an_id_that_does_not_exist(database: Database, roles: None, recorder: Recorder) -> None:
    """Nor does another role's, nor the request itself: the message is the same."""
    alice, bob = database.connect("after_alice"), database.connect("after_bob")
    number = send(alice)
    for missing in (number, number + 1, number + 2, 10**17):
        with pytest.raises(errors.InvalidParameterValue) as caught:
            send(bob, missing)
        assert caught.value.diag.message_primary == (
            f'option "after": there is no request {missing} of role "after_bob"'
        )
    with pytest.raises(errors.InvalidParameterValue):
        send(database.connection, number)
    # Not by hand either.
    row = bob.execute(
        "insert into net._new_request (method, url, options, held) values ('GET', %s, %s, true)"
        " returning id",
        (URL, json.dumps({"after": [number]})),
    ).fetchone()
    bob.execute("insert into net._new_flow (request_id, gate) values (%s, 'new')", row)
    assert settle(recorder) == [number]
    assert bob.execute("select state::text, error_msg from net.requests").fetchall() == [
        (
            "cancelled",
            f"Request {number} is not known any more, and this request was to be sent after it.",
        )
    ]


def test_a_circle_by_hand(database: Database, recorder: Recorder) -> None:
    """A request can follow earlier ones only."""
    database.execute(
        "insert into net._new_request (method, url, options, held)"
        " values ('GET', %s, '{\"after\": [2]}', true), ('GET', %s, '{\"after\": [1]}', true)",
        URL,
        URL,
    )
    database.execute("insert into net._new_flow (request_id, gate) values (1, 'new'), (2, 'new')")
    assert settle(recorder) == []
    assert [state for state, _ in ends(database, 1, 2)] == ["cancelled", "cancelled"]


def test_a_fan_in_of_a_thousand(database: Database, recorder: Recorder) -> None:
    ids = [
        number
        for (number,) in database.rows("select net.http_get(%s) from generate_series(1, 1000)", URL)
    ]
    last = send(database.connection, *ids)
    with pytest.raises(errors.InvalidParameterValue, match="at most 1000 ids"):
        send(database.connection, *ids, last)
    while not nothing_is_left(database):
        # On a busy machine a claim has no time to let all of them go.
        claims = recorder.claim(300)
        assert (last in claims) == (list(claims) == [last])
        recorder.record(claims)
        database.execute("update pgnet.ended_request set retry_at = now()")
    assert database.value("select state::text from net.requests where id = %s", last) == "succeeded"


@pytest.mark.parametrize("state", ["succeeded", "failed"])
def test_a_fan_out_of_thousands(database: Database, recorder: Recorder, state: str) -> None:
    first = send(database.connection)
    database.execute(
        "select count(net.http_request('GET', %s, options => %s::jsonb))"
        " from generate_series(1, 3000)",
        URL,
        json.dumps({"after": [first]}),
    )
    claims = recorder.claim()
    while database.value("select exists (select from pgnet.flow where gate = 'new')"):
        assert recorder.claim() == {}
    recorder.record(claims, state=state)
    ended = 0
    while not nothing_is_left(database):
        claims = recorder.claim(1000)
        recorder.record(claims)
        ended += len(claims)
        database.execute("update pgnet.ended_request set retry_at = now()")
    assert ended == (3000 if state == "succeeded" else 0)


def test_a_key_and_after(database: Database, recorder: Recorder) -> None:
    """A request that waits for others holds its key, in its place."""
    first = send(database.connection)
    second = send(database.connection, first, ordering_key="a")
    third = send(database.connection, ordering_key="a")
    claims = recorder.claim()
    assert list(claims) == [first]
    recorder.record(claims)
    for number in (second, third):
        claims = recorder.claim()
        assert list(claims) == [number]
        recorder.record(claims)


def test_it_is_being_recorded_while_a_dependant_is_examined(
    database: Database, recorder: Recorder, other: Recorder
) -> None:
    """Neither sees the other's rows: the dependant is examined once more."""
    first = send(database.connection)
    claims = recorder.claim()
    recorder.connection.autocommit = False
    recorder.record(claims)
    second = send(database.connection, first)
    assert other.claim() == {}
    assert database.value("select gate::text from pgnet.flow") == "new"
    recorder.connection.commit()
    assert list(other.claim()) == [second]


def test_a_dependant_is_being_examined_while_it_is_recorded(
    database: Database, recorder: Recorder, other: Recorder
) -> None:
    """The other way round: the outcome is recorded a moment later."""
    first = send(database.connection)
    claims = recorder.claim()
    second = send(database.connection, first)
    other.connection.autocommit = False
    assert other.claim() == {}
    assert recorder.record(claims) == [first]
    other.connection.commit()
    assert recorder.record(claims) == []
    assert list(recorder.claim()) == [second]


def test_one_is_locked_and_another_one_ends(
    database: Database, recorder: Recorder, other: Recorder
) -> None:
    """The dependant could not be linked to the first one yet: the second does not free it."""
    first = send(database.connection)
    claims = recorder.claim()
    second = send(database.connection)
    third = send(database.connection, first, second)
    other.connection.autocommit = False
    other.connection.execute(
        "select from net.http_request_queue where id = %s for update", (first,)
    )
    claims |= recorder.claim()
    recorder.record({second: claims[second]})
    assert recorder.claim() == {}
    other.connection.rollback()
    assert recorder.claim() == {}
    recorder.record({first: claims[first]})
    assert list(recorder.claim()) == [third]


def test_one_that_cannot_be_ended(database: Database, recorder: Recorder) -> None:
    """A trigger refuses it: the others are cancelled, and net.check() names it."""
    first = send(database.connection)
    rest = [send(database.connection, first) for _ in range(5)]
    claims = recorder.claim()
    database.execute(
        "create function public.refuse() returns trigger language plpgsql as"
        f" $$ begin if new.id = {rest[2]} then raise 'not this one'; end if; return new; end $$"
    )
    database.execute(
        "create trigger refuse before insert on net._http_response"
        " for each row execute function public.refuse()"
    )
    recorder.record(claims, state="failed")
    assert recorder.claim() == {}
    states = [state for state, _ in ends(database, *rest)]
    assert states.count("cancelled") == 4
    fault = "select message from pgnet.fault where duty = 'ending requests that wait for others'"
    assert "not this one" in database.value(fault)
    database.execute("drop trigger refuse on net._http_response")
    database.execute("update pgnet.ended_request set retry_at = now()")
    recorder.claim()
    assert [state for state, _ in ends(database, *rest)] == ["cancelled"] * 5
