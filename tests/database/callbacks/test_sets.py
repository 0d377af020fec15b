"""net.on_all_done: a function is called once, when all requests of a set have ended."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest
from psycopg import errors

from servers.callback_scene import ask, callback_of, drain, value
from servers.cluster import Database
from servers.httpd import Running
from servers.workers import as_process

Session = psycopg.Connection[Any]
CLOSED = "http://127.0.0.1:1/"


@pytest.fixture
def alice(scene: Database, alice: Session) -> Session:
    alice.execute(
        "create table cb_alice.sets (number bigint generated always as identity, outcomes"
        " net.outcome[], ids bigint[], states text[]);"
        "create function cb_alice.all_done(o net.outcome[]) returns void language sql as $$"
        " insert into cb_alice.sets (outcomes, ids, states)"
        " select o, array(select u.id from unnest(o) u),"
        " array(select u.state::text from unnest(o) u)"
        "$$"
    )
    return alice


def when_done(connection: Session, ids: list[int]) -> int:
    found: int = value(connection, "select net.on_all_done(%s::bigint[], 'cb_alice.all_done')", ids)
    return found


def get(connection: Session, url: str, **more: Any) -> int:
    found: int = value(connection, "select net.http_get(%s)", url)
    return found


def sets(database: Database) -> list[tuple[Any, ...]]:
    return database.rows("select ids, states from cb_alice.sets order by number")


def test_it_is_called_once_when_all_have_ended(
    scene: Database, alice: Session, witness: Running
) -> None:
    ids = [get(alice, f"{witness.url}/body/{n}") for n in range(5)] + [get(alice, CLOSED)]
    order = [ids[3], *reversed(ids), ids[3]]
    number = when_done(alice, order)
    assert number < 0
    assert alice.execute("select id, request_ids, state from net.callbacks").fetchall() == [
        (number, [ids[3], ids[5], ids[4], ids[2], ids[1], ids[0]], "pending")
    ]
    drain(scene)
    [(got, states)] = sets(scene)
    assert got == [ids[3], ids[5], ids[4], ids[2], ids[1], ids[0]]
    assert states == ["succeeded", "failed", *["succeeded"] * 4]
    assert scene.value("select (outcomes[1]).content from cb_alice.sets") == "3"
    assert callback_of(scene, number) == ("done", 1, None, None)
    drain(scene)
    assert len(sets(scene)) == 1
    assert scene.value("select count(*) from pgnet.dependency") == 0
    assert scene.value("select count(*) from pgnet.ended_request") == 0


def test_a_clock_that_is_put_back_delays_no_set(
    scene: Database, alice: Session, witness: Running
) -> None:
    id = get(alice, f"{witness.url}/body/x")
    when_done(alice, [id])
    scene.execute("update pgnet.callback_order set look_at = now() + interval '1 day'")
    drain(scene)
    assert [ids for ids, _states in sets(scene)] == [[id]]


def test_those_that_have_ended_count(scene: Database, alice: Session, witness: Running) -> None:
    ids = [get(alice, f"{witness.url}/body/{n}") for n in range(3)]
    drain(scene)
    when_done(alice, ids)
    when_done(alice, [])
    drain(scene)
    assert sets(scene) == [(ids, ["succeeded"] * 3), ([], [])]


def test_a_mixture_by_a_worker_process(scene: Database, alice: Session, witness: Running) -> None:
    """Some have ended, one is slow, one is cancelled, one forgotten, one waits for an hour."""
    ended = get(alice, f"{witness.url}/body/0")
    drain(scene)
    with as_process(scene):
        slow = get(alice, f"{witness.url}/delay/0.3")
        options = '{"not_before": "1 hour"}'
        later = [
            value(
                alice,
                "select net.http_request('GET', %s, options => %s)",
                f"{witness.url}/body/x",
                options,
            )
            for _ in range(3)
        ]
        when_done(alice, [slow, ended, *later])
        scene.wait_for("select state = 'succeeded' from net.requests where id = %s", slow)
        assert sets(scene) == []
        assert value(alice, "select net.cancel(%s)", later[0])
        assert value(alice, "select net.forget(%s)", later[1])
        scene.execute("delete from net.http_request_queue where id = %s", later[2])
        scene.execute("update pgnet.callback_order set look_at = now()")
        scene.execute("select net.worker_restart()")
        scene.wait_for("select count(*) = 1 from cb_alice.sets", timeout=20)
    assert sets(scene) == [
        ([slow, ended, *later], ["succeeded", "succeeded", "cancelled", None, None])
    ]


def test_a_set_whose_transaction_is_rolled_back(scene: Database, alice: Session) -> None:
    with alice.transaction(force_rollback=True):
        when_done(alice, [get(alice, CLOSED)])
    drain(scene)
    assert sets(scene) == []


def test_made_with_its_requests(scene: Database, alice: Session, witness: Running) -> None:
    with alice.transaction():
        ids = [get(alice, f"{witness.url}/body/x") for _ in range(300)]
        when_done(alice, ids)
    with as_process(scene):
        scene.wait_for("select count(*) = 1 from cb_alice.sets")
    assert sets(scene)[0][0] == ids


def test_sets_race_with_ends(scene: Database, alice: Session, witness: Running) -> None:
    """Each request ends while a session is just making a set of it: none is lost or doubled."""
    scene.execute("select net.configure_host('*', '{\"adaptive\": false}')")
    count, threads = 60, 4
    made: list[tuple[int, list[int]]] = []

    def work(name: int) -> None:
        with scene.cluster.connect(scene.name, "cb_alice") as connection:
            for n in range(count):
                ids = [get(connection, f"{witness.url}/body/{name}-{n}") for _ in range(3)]
                made.append((when_done(connection, ids), ids))

    with as_process(scene), as_process(scene):
        workers = [threading.Thread(target=work, args=(name,)) for name in range(threads)]
        for thread in workers:
            thread.start()
        for thread in workers:
            thread.join()
        scene.wait_for("select count(*) = %s from cb_alice.sets", count * threads, timeout=30)
        scene.wait_for("select count(*) = 0 from pgnet.callback_order")
    assert sorted(ids for ids, _ in sets(scene)) == sorted(ids for _, ids in made)
    assert scene.value("select count(*) from pgnet.dependency") == 0


def test_one_that_failed_is_run_again(scene: Database, alice: Session, witness: Running) -> None:
    alice.execute("alter table cb_alice.sets rename to away")
    number = when_done(alice, [get(alice, f"{witness.url}/body/x")])
    drain(scene)
    assert (callback_of(scene, number) or ())[0] == "failed"
    alice.execute("alter table cb_alice.away rename to sets")
    assert value(alice, "select net.run_callback(%s)", number)
    drain(scene)
    assert len(sets(scene)) == 1


def test_what_is_refused(scene: Database, alice: Session, bob: Session, witness: Running) -> None:
    mine, theirs = get(alice, CLOSED), get(bob, CLOSED)
    for ids, error in (
        ("array[0]::bigint[]", errors.InvalidParameterValue),
        (f"array[{mine}, {theirs}]::bigint[]", errors.InvalidParameterValue),
        (f"array[{mine}, null]::bigint[]", errors.NullValueNotAllowed),
        ("null", errors.NullValueNotAllowed),
        (f"array_fill({mine}::bigint, array[10001])", errors.InvalidParameterValue),
    ):
        with pytest.raises(error):
            alice.execute(f"select net.on_all_done({ids}, 'cb_alice.all_done')")
    with pytest.raises(errors.UndefinedFunction):
        alice.execute("select net.on_all_done('{}', 'cb_alice.note')")
    with pytest.raises(errors.NullValueNotAllowed):
        alice.execute("select net.on_all_done('{}', null)")


def test_a_set_of_requests_with_callbacks(
    scene: Database, alice: Session, witness: Running
) -> None:
    """Both are called; the set does not wait for the callbacks of its requests."""
    ids = [ask(alice, f"{witness.url}/body/x") for _ in range(3)]
    when_done(alice, ids)
    drain(scene)
    assert scene.value("select count(*) from cb_alice.log") == 3
    assert len(sets(scene)) == 1
