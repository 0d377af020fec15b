"""on_response: a function of the caller's is called once, for every end of its request."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg import errors

from servers.callback_scene import ALICE, ask, callback_of, define, drain, log_of, value
from servers.cluster import Database
from servers.httpd import Running
from servers.traffic import seen
from servers.workers import as_process

Session = psycopg.Connection[Any]
CLOSED = "http://127.0.0.1:1/"


def test_it_is_called_with_the_outcome(scene: Database, alice: Session, witness: Running) -> None:
    id = ask(alice, f"{witness.url}/body/paid", context='{"order": 7}')
    drain(scene)
    assert scene.rows("select id, state, status, content, context, who from cb_alice.log") == [
        (id, "succeeded", 200, "paid", {"order": 7}, ALICE)
    ]
    assert callback_of(scene, id) == ("done", 1, None, None)
    assert scene.row(
        "select callback, callback_state, callback_attempts, callback_error from net.responses"
    ) == ("cb_alice.note", "done", 1, None)
    # Not once more.
    drain(scene)
    assert len(log_of(scene)) == 1


def test_bytes_and_headers_come_as_they_are(
    scene: Database, alice: Session, witness: Running
) -> None:
    alice.execute("create table cb_alice.seen (o net.outcome)")
    alice.execute(
        "create function cb_alice.see(o net.outcome) returns int language sql"
        " as $$ insert into cb_alice.seen values (o) returning 1 $$"
    )
    ids = [
        ask(alice, f"{witness.url}/{path}", "cb_alice.see") for path in ("noise/5000", "cookies")
    ]
    drain(scene)
    for id in ids:
        assert scene.value(
            "select o is not distinct from (r.id, r.state, r.status_code, r.headers, r.content,"
            " r.content_bytes, r.error_msg, r.attempts, r.context)::net.outcome"
            " from cb_alice.seen join net._http_response r on r.id = (o).id where r.id = %s",
            id,
        )


def test_every_end(scene: Database, alice: Session, witness: Running) -> None:
    """By an answer, without one, cancelled, expired, and for another request's sake."""
    ok = ask(alice, f"{witness.url}/body/x")
    status = ask(alice, f"{witness.url}/status/500")
    refused = ask(alice, CLOSED)
    cancelled = ask(alice, f"{witness.url}/body/y", options='{"not_before": "1 hour"}')
    assert value(alice, "select net.cancel(%s)", cancelled)
    expired = ask(
        alice, f"{witness.url}/body/z", options='{"not_before": "1 hour", "not_after": "2 hours"}'
    )
    scene.execute(
        "update pgnet.flow set not_after = now() - interval '1 s' where request_id = %s", expired
    )
    after = ask(alice, f"{witness.url}/body/w", options=f'{{"after": [{refused}]}}')
    drain(scene)
    scene.wait_for("select count(*) = 0 from net.http_request_queue")
    drain(scene)
    assert sorted(log_of(scene)) == [
        (ok, "succeeded", 200, ALICE),
        (status, "failed", 500, ALICE),
        (refused, "failed", None, ALICE),
        (cancelled, "cancelled", None, ALICE),
        (expired, "expired", None, ALICE),
        (after, "cancelled", None, ALICE),
    ]


def test_record_mode_and_a_lost_worker(scene: Database, alice: Session, witness: Running) -> None:
    unknown = ask(alice, f"{witness.url}/hang", options='{"delivery": "at_most_once"}')
    with scene.worker() as worker:
        seen(witness, 1)
        worker.kill()
    scene.execute("select net.configure('rescue_after', '0 s'), net.configure('mode', 'record')")
    recorded = ask(alice, f"{witness.url}/body/x")
    drain(scene)
    scene.wait_for("select count(*) = 0 from net.http_request_queue")
    drain(scene)
    assert sorted(log_of(scene)) == [
        (unknown, "unknown", None, ALICE),
        (recorded, "cancelled", None, ALICE),
    ]


def test_an_outcome_that_was_put_aside(scene: Database, alice: Session, witness: Running) -> None:
    scene.execute(
        "create function public.refuse() returns trigger language plpgsql as"
        " $$ begin raise exception 'no'; end $$;"
        "create trigger refuse before insert on net._http_response"
        " for each row execute function public.refuse()"
    )
    id = ask(alice, f"{witness.url}/body/x")
    drain(scene)
    assert log_of(scene) == []
    scene.execute("drop trigger refuse on net._http_response")
    scene.execute("update pgnet.unrecorded set retry_at = now()")
    drain(scene)
    assert log_of(scene) == [(id, "succeeded", 200, ALICE)]


def test_nothing_is_called_for_what_was_forgotten(
    scene: Database, alice: Session, witness: Running
) -> None:
    queued = ask(alice, f"{witness.url}/body/x")
    assert value(alice, "select net.forget(%s)", queued)
    rolled_back = alice.transaction(force_rollback=True)
    with rolled_back:
        ask(alice, f"{witness.url}/body/y")
    drain(scene)
    scene.execute("select net.configure('callback_runners', '0')")
    ended = ask(alice, f"{witness.url}/body/z")
    with as_process(scene):
        scene.wait_for("select count(*) = 1 from net._http_response")
    assert scene.value("select callback_state from net.responses where id = %s", ended) == "waiting"
    assert value(alice, "select net.forget(%s)", ended)
    drain(scene)
    assert log_of(scene) == []
    assert scene.rows("select * from net.callbacks") == []


def test_a_chain(scene: Database, alice: Session, witness: Running) -> None:
    """A callback queues the next request, with a callback; net.drain() comes to its end."""
    define(
        alice,
        f"""
        begin
            insert into cb_alice.log (id, state) values (o.id, o.content);
            if o.content::int < 5 then
                perform net.http_request('GET', format('{witness.url}/body/%s', o.content::int + 1),
                    on_response => 'cb_alice.chain');
            end if;
        end""",
        "cb_alice.chain",
    )
    ask(alice, f"{witness.url}/body/1", "cb_alice.chain")
    drain(scene)
    assert scene.value("select array_agg(state order by number) from cb_alice.log") == list("12345")


def test_a_failed_one_is_undone_and_kept(scene: Database, alice: Session, witness: Running) -> None:
    define(
        alice,
        """
        begin
            insert into cb_alice.log (id) values (o.id);
            perform net.http_get('http://127.0.0.1:1/');
            raise exception 'the ledger is closed' using errcode = 'PX001', hint = 'Ask Bob.';
        end""",
    )
    id = ask(alice, f"{witness.url}/body/x", "cb_alice.hostile")
    drain(scene)
    state, attempts, message, code = callback_of(scene, id) or ()
    assert (state, attempts, code) == ("failed", 1, "PX001")
    assert message == "the ledger is closed. Ask Bob"
    assert "cb_alice.hostile" in scene.value("select error_context from net.callbacks")
    assert log_of(scene) == []
    assert scene.value("select count(*) from net.requests") == 1
    assert scene.value("select callback_error from net.responses") == message


def test_it_is_tried_again_by_itself(scene: Database, alice: Session, witness: Running) -> None:
    scene.execute("select net.configure('callback_attempts', null)")
    alice.execute("create sequence cb_alice.tries")
    define(
        alice,
        "begin if nextval('cb_alice.tries') < 2 then raise exception 'not yet'; end if;"
        " perform cb_alice.note(o); end",
    )
    id = ask(alice, f"{witness.url}/body/x", "cb_alice.hostile")
    drain(scene)
    state, attempts, message, _code = callback_of(scene, id) or ()
    assert (state, attempts, message) == ("retrying", 1, "not yet")
    with as_process(scene):
        scene.wait_for("select state = 'done' from net.callbacks")
    assert callback_of(scene, id) == ("done", 2, None, None)
    assert len(log_of(scene)) == 1


def test_the_name_is_looked_for_in_the_callers_path(
    scene: Database, alice: Session, witness: Running
) -> None:
    """And the function that was found there is called, whatever the path is later."""
    alice.execute(
        'create function cb_alice."Odd ""Name"(o net.outcome) returns void'
        " language sql as $$ select cb_alice.note(o) $$"
    )
    alice.execute("set search_path = cb_alice")
    ids = [ask(alice, witness.url, "note"), ask(alice, witness.url, '"Odd ""Name"')]
    alice.execute("set search_path = public")
    drain(scene)
    assert sorted(id for id, *_ in log_of(scene)) == ids


def test_the_path_of_the_call_is_the_roles(
    scene: Database, alice: Session, witness: Running
) -> None:
    alice.execute("create table cb_alice.path (path text)")
    define(alice, "begin insert into path values (current_setting('search_path')); end")
    scene.execute("alter role cb_alice set search_path = cb_alice, pg_temp")
    try:
        ask(alice, witness.url, "cb_alice.hostile")
        drain(scene)
    finally:
        scene.execute("alter role cb_alice reset search_path")
    ask(alice, witness.url, "cb_alice.hostile")
    drain(scene)
    assert scene.rows("select path from cb_alice.path") == [
        ("cb_alice, pg_temp",),
        ('"$user", public, pg_temp',),
    ]


@pytest.mark.parametrize(
    ("name", "state", "words"),
    [
        ("cb_alice.nobody", "42883", r"function cb_alice.nobody\(net.outcome\) does not exist"),
        ("no_schema.note", "42883", "does not exist"),
        ("unheard_of", "42883", "does not exist"),
        ("a.b.c", "42883", "does not exist"),
        ("cb_alice.other", "42883", "does not exist"),
        ("cb_alice.many", "42809", "no function that gives one value"),
        ("cb_bob.note", "42501", "permission denied for schema"),
        ("cb_alice.alien", "42501", 'role "cb_alice" may not execute cb_alice.alien'),
        ("x; drop table y", "22023", "not a valid identifier"),
        ("", "22023", "not a valid identifier"),
    ],
)
def test_what_cannot_be_called(
    scene: Database, alice: Session, name: str, state: str, words: str
) -> None:
    """Said at the call, with a hint where the caller can do something about it."""
    alice.execute(
        "create function cb_alice.other(o text) returns void language sql as '';"
        "create function cb_alice.many(o net.outcome) returns setof int language sql as 'select 1'"
    )
    scene.execute(
        "create function cb_alice.alien(o net.outcome) returns void language sql as '';"
        "revoke execute on function cb_alice.alien from public"
    )
    with pytest.raises(psycopg.Error, match=words) as caught:
        ask(alice, CLOSED, name)
    assert caught.value.sqlstate == state
    if state in ("42883", "42809") or "alien" in name:
        assert caught.value.diag.message_hint


def test_a_function_that_has_gone(scene: Database, alice: Session, witness: Running) -> None:
    """Another one of its name is not called, before net.run_callback says so."""
    id = ask(alice, f"{witness.url}/body/x")
    alice.execute("drop function cb_alice.note")
    drain(scene)
    state, _attempts, message, _code = callback_of(scene, id) or ()
    assert state == "failed"
    assert "was dropped, renamed or replaced" in message
    with pytest.raises(errors.UndefinedFunction):
        alice.execute("select net.run_callback(%s)", (id,))
    alice.execute(
        "create function cb_alice.note(o net.outcome) returns void language sql as"
        " $$ insert into cb_alice.log (id) values (o.id) $$"
    )
    drain(scene)
    assert log_of(scene) == []
    assert value(alice, "select net.run_callback(%s)", id)
    drain(scene)
    assert len(log_of(scene)) == 1


def test_run_callback(scene: Database, alice: Session, bob: Session, witness: Running) -> None:
    alice.execute("create table cb_alice.open ()")
    define(alice, "begin perform from cb_alice.closed; perform cb_alice.note(o); end")
    id = ask(alice, f"{witness.url}/body/x", "cb_alice.hostile")
    drain(scene)
    assert (callback_of(scene, id) or ())[0] == "failed"
    alice.execute("alter table cb_alice.open rename to closed")
    # It is nobody else's to run, and a role sees its own.
    assert not value(bob, "select net.run_callback(%s)", id)
    assert value(bob, "select count(*) from net.callbacks") == 0
    assert not value(alice, "select net.run_callback(0)")
    assert not value(alice, "select net.run_callback(null)")
    assert value(alice, "select net.run_callback(%s)", id)
    assert value(alice, "select net.run_callback(%s)", id)
    drain(scene)
    assert callback_of(scene, id) == ("done", 1, None, None)
    # Done is done, also for the owner.
    assert not value(alice, "select net.run_callback(%s)", id)
    assert not scene.value("select net.run_callback(%s)", id)
    drain(scene)
    assert len(log_of(scene)) == 1
    assert scene.value("select count(*) from pgnet.callback_order") == 0


def test_the_owner_runs_it_as_its_role(scene: Database, alice: Session, witness: Running) -> None:
    define(alice, "begin perform from cb_alice.closed; perform cb_alice.note(o); end")
    id = ask(alice, f"{witness.url}/body/x", "cb_alice.hostile")
    drain(scene)
    alice.execute("create table cb_alice.closed ()")
    assert scene.value("select net.run_callback(%s)", id)
    drain(scene)
    assert log_of(scene) == [(id, "succeeded", 200, ALICE)]


def test_sent_again_it_is_called_again(scene: Database, alice: Session, witness: Running) -> None:
    first = ask(alice, f"{witness.url}/status/500")
    drain(scene)
    second = value(alice, "select net.retry(%s)", first)
    drain(scene)
    third = scene.value("select net.retry(%s)", second)
    drain(scene)
    assert [id for id, *_ in log_of(scene)] == [first, second, third]


def test_a_response_that_has_expired(scene: Database, alice: Session, witness: Running) -> None:
    """A callback that is still to run is called with the outcome all the same."""
    define(alice, "begin perform from cb_alice.closed; perform cb_alice.note(o); end")
    id = ask(alice, f"{witness.url}/body/kept", "cb_alice.hostile")
    drain(scene)
    scene.execute("select net.configure('ttl', '0 s')")
    drain(scene)
    scene.wait_for("select count(*) = 0 from net._http_response")
    alice.execute("create table cb_alice.closed ()")
    assert value(alice, "select net.run_callback(%s)", id)
    drain(scene)
    assert scene.rows("select id, content from cb_alice.log") == [(id, "kept")]
    # What is done goes with its time, too.
    drain(scene)
    scene.wait_for("select count(*) = 0 from net.callbacks")


def test_debounce(scene: Database, alice: Session, witness: Running) -> None:
    """keep has the first call's callback, replace the last one's."""
    define(alice, "begin insert into cb_alice.log (state) values ('other'); end", "cb_alice.other")
    for on_conflict in ("keep", "replace"):
        options = f'{{"unique_key": "{on_conflict}", "on_conflict": "{on_conflict}"}}'
        ask(alice, f"{witness.url}/body/x", "cb_alice.note", options=options)
        ask(alice, f"{witness.url}/body/x", "cb_alice.other", options=options)
    drain(scene)
    assert [state for _id, state, *_ in log_of(scene)] == ["succeeded", "other"]


def test_with_keys_and_times(scene: Database, alice: Session, witness: Running) -> None:
    """A callback stands beside whatever else a request waits for."""
    ids = [ask(alice, f"{witness.url}/body/{n}", options='{"ordering_key": "k"}') for n in range(3)]
    ids.append(ask(alice, f"{witness.url}/body/x", options='{"not_after": "1 hour"}'))
    drain(scene)
    assert sorted(id for id, *_ in log_of(scene)) == ids
    assert scene.value("select count(*) from pgnet.flow") == 0
