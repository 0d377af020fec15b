"""Why a request waits: each reason of net.explain, made for real."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from typing import Any, NamedTuple

import psycopg
import pytest

from servers.cluster import Database, Worker
from servers.nginx import Nginx
from servers.raw import Raw
from servers.waiting import wait_until
from servers.workers import one_worker

KINDS = ("process", "backend")


class Reason(NamedTuple):
    reason: str
    detail: str
    until: datetime | None
    hint: str | None


def explain(place: Database | psycopg.Connection[Any], id: int | None) -> list[Reason]:
    connection = place.connection if isinstance(place, Database) else place
    rows = connection.execute("select * from net.explain(%s)", (id,)).fetchall()
    return [Reason(*row) for row in rows]


def reasons(place: Database | psycopg.Connection[Any], id: int | None) -> list[str]:
    return [each.reason for each in explain(place, id)]


def wait_for(database: Database, id: int, *wanted: str, timeout: float = 10.0) -> list[Reason]:
    """Wait until these are the reasons, and give them."""
    return wait_until(
        lambda: explain(database, id),
        lambda found: [each.reason for each in found] == list(wanted),
        f"the reasons {wanted} of request {id}",
        timeout,
    )


def get(database: Database, url: str, seconds: float = 30.0) -> int:
    id: int = database.value(
        "select net.http_get(%s, timeout_milliseconds => %s::int)", url, int(seconds * 1000)
    )
    return id


def nobody_takes(database: Database) -> bool:
    """Whether a worker that claims now takes nothing."""
    with database.connect(autocommit=False) as session:
        row = session.execute("select worker_id from pgnet.register_worker('process')").fetchone()
        assert row is not None
        taken = session.execute(
            "select count(id) from pgnet.claim_requests(%s, 100, 100, 100, '{}', 1000000000, '')",
            row,
        ).fetchone()
        session.rollback()
        return taken == (0,)


@pytest.fixture
def database(database: Database) -> Database:
    """Workers that stop wait for nothing."""
    database.execute("select net.configure('max_grace', '0')")
    return database


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"


def test_ids_without_a_request(database: Database) -> None:
    (nothing,) = explain(database, None)
    assert (nothing.reason, nothing.detail) == ("not there", "The id is NULL.")
    (unknown,) = explain(database, 4711)
    assert unknown.detail == 'There is no request 4711 of role "postgres".'
    assert "ttl" in (unknown.hint or "")


def test_no_worker(database: Database, nginx: Nginx) -> None:
    id = get(database, nginx.url)
    (none,) = explain(database, id)
    assert (none.reason, none.detail) == ("no worker", "No worker is running.")
    assert "net.schedule_worker()" in (none.hint or "")


def test_before_the_commit(database: Database, worker: Worker, nginx: Nginx) -> None:
    database.wait_for("select pgnet.worker_is_up()")
    with database.connect(autocommit=False) as session:
        row = session.execute("select net.http_get(%s)", (nginx.url,)).fetchone()
        assert row is not None
        (reason,) = explain(session, row[0])
        assert reason.reason == "uncommitted"
        session.rollback()


@pytest.mark.parametrize("mode", ["off", "record"])
def test_the_mode(database: Database, nginx: Nginx, mode: str) -> None:
    database.execute("select net.configure('mode', %s)", mode)
    id = get(database, nginx.url)
    assert reasons(database, id) == ["no worker", f"mode {mode}"]
    if mode == "off":
        with database.worker():
            wait_for(database, id, "mode off")
    else:
        with database.worker():
            (end,) = wait_for(database, id, "cancelled")
        assert "Not sent: the mode is record." in end.detail
        assert end.hint == f"To send it again: select net.retry({id});"


def test_the_mode_of_a_worker(database: Database, nginx: Nginx) -> None:
    """A setting of the worker's session counts, and one of the session that asks does not."""
    name = database.name
    database.execute(f"alter database {name} set pgnet.mode = 'off'")
    with database.worker():
        database.execute(f"alter database {name} reset pgnet.mode")
        id = get(database, nginx.url)
        wait_for(database, id, "mode off")
    with database.worker(), database.connect() as session:
        session.execute("set pgnet.mode = 'off'")
        blocked = get(database, f"{nginx.url}/slow?s=1")
        assert "mode off" not in reasons(session, blocked)


def test_a_copy(database: Database, nginx: Nginx) -> None:
    id = get(database, nginx.url)
    database.execute("update pgnet.database set database_oid = 1")
    copy, none = explain(database, id)
    assert (copy.reason, none.reason) == ("copy", "no worker")
    assert "select net.adopt_database();" in (copy.hint or "")
    database.execute("select net.adopt_database()")
    assert reasons(database, id) == ["no worker"]


def test_a_request_of_another_server(database: Database, worker: Worker, nginx: Nginx) -> None:
    id = database.value(
        "insert into net.http_request_queue (method, url, origin) values ('GET', %s, 'sub')"
        " returning id",
        nginx.url,
    )
    (replicated,) = wait_for(database, id, "replicated")
    assert '"sub"' in replicated.detail
    assert nobody_takes(database)


def test_another_attempt(database: Database, worker: Worker, nginx: Nginx) -> None:
    database.execute(
        'select net.configure_retry(\'later\', \'{"statuses": [503], "methods": "any",'
        ' "backoff_milliseconds": 60000}\')'
    )
    id = database.value(
        "select net.http_request('GET', %s, retry => 'later')", f"{nginx.url}/status/503"
    )
    (again,) = wait_for(database, id, "next attempt")
    due = database.value("select due from net.http_request_queue where id = %s", id)
    assert again.until == due
    assert again.detail.startswith("Attempt 2 follows at ")
    assert again.detail.endswith("Attempt 1 ended with: status 503")
    assert nobody_takes(database)


def test_quarantine(database: Database, silent: str) -> None:
    """Two workers are lost with it, and the third one has not come to it."""
    database.execute("select net.configure('rescue_after', '0')")
    id = get(database, silent)
    for attempt in (1, 2):
        with database.worker() as worker:
            database.wait_for("select attempt = %s from pgnet.claim", attempt)
            worker.kill()
    database.execute("select net.configure('mode', 'off')")
    with database.worker():
        _, quarantine = wait_for(database, id, "mode off", "quarantine")
        assert "lost with 2 workers" in quarantine.detail


@pytest.mark.parametrize("kind", KINDS)
def test_in_flight(database: Database, silent: str, kind: str) -> None:
    with one_worker(database, kind):
        id = get(database, silent, 20)
        (flight,) = wait_until(
            lambda: explain(database, id),
            lambda found: "waiting" in found[0].detail,
            "what the request waits for",
        )
        assert flight.reason == "in flight"
        assert flight.detail.endswith(", waiting for the first byte of the answer.")
        claimed = database.value("select claimed from pgnet.claim")
        assert flight.until is not None
        assert (flight.until - claimed).total_seconds() == 20
        assert flight.hint == f"To give it up: select net.cancel({id});"
        # Once it is told, the row stays as it is.
        version = database.value("select xmin::text from pgnet.claim")
        other = get(database, silent, 20)
        wait_until(lambda: explain(database, other), lambda f: "first byte" in f[0].detail, "other")
        assert database.value("select xmin::text from pgnet.claim where id = %s", id) == version


def test_a_lost_worker(database: Database, silent: str) -> None:
    database.execute("select net.configure('rescue_after', '1 hour')")
    with database.worker() as worker:
        id = get(database, silent)
        wait_for(database, id, "in flight")
        worker.kill()
        with database.worker():
            _, lost = wait_for(database, id, "in flight", "worker lost")
            assert "others" in lost.detail or "other workers" in lost.detail
            assert lost.until is not None


def test_an_outcome_that_cannot_be_recorded(
    database: Database, worker: Worker, nginx: Nginx
) -> None:
    database.execute("alter table net._http_response add constraint no check (id < 0)")
    id = get(database, nginx.url)
    (reason,) = wait_for(database, id, "recording")
    assert "net.check()" in reason.detail


def test_cancelled(database: Database, silent: str) -> None:
    id = get(database, silent)
    database.execute("select net.cancel(%s)", id)
    (waits,) = explain(database, id)
    assert waits.reason == "cancelled"
    assert waits.detail == "The request was cancelled before it was sent."
    assert nobody_takes(database)
    with database.worker():
        (ended,) = wait_until(
            lambda: explain(database, id), lambda found: "ended" in found[0].detail, "its end"
        )
        assert ended.reason == "cancelled"


def test_a_row_that_somebody_has_locked(database: Database, worker: Worker, nginx: Nginx) -> None:
    with database.connect(autocommit=False) as session, ExitStack() as stack:
        stack.callback(session.rollback)
        database.execute("select net.configure('mode', 'off')")
        wait_for(database, get(database, nginx.url), "mode off")
        id = get(database, nginx.url)
        session.execute("select from net.http_request_queue where id = %s for update", (id,))
        assert reasons(database, id) == ["mode off", "locked"]
        # The session itself is not held up by its own lock.
        assert reasons(session, id) == ["mode off"]
        database.execute("select net.configure('mode', 'on')")
        wait_for(database, id, "locked")
        session.rollback()
        wait_for(database, id, "succeeded")


def test_all_slots_are_taken(database: Database, silent: str, nginx: Nginx) -> None:
    with database.worker("--concurrency", "4"):
        taken = [get(database, silent) for _ in range(4)]
        database.wait_for("select count(*) >= 3 from pgnet.claim where progress is not null")
        host = silent.split("/")[2]
        waits = next(id for id in taken if reasons(database, id) != ["in flight"])
        (busy,) = explain(database, waits)
        assert busy.reason == "host busy"
        assert busy.detail.startswith(f"The host {host} has all the slots that one host may have")
        other = get(database, f"{nginx.url}/slow?s=20")
        wait_for(database, other, "in flight")
        third = get(database, nginx.url)
        (full,) = explain(database, third)
        assert full.reason == "busy"
        assert f"3 by {host}" in full.detail


def test_its_turn(database: Database, nginx: Nginx) -> None:
    """A worker that is paused is there, and takes nothing."""
    with database.worker() as worker:
        database.wait_for(
            "select bool_and(state = 'idle' and clock_timestamp() - state_change > '0.5 s')"
            " from pg_stat_activity"
            " where datname = current_database() and application_name = 'pgnet worker'"
        )
        worker.pause()
        first, second = get(database, nginx.url), get(database, nginx.url)
        assert "no requests" in explain(database, first)[0].detail
        (turn,) = explain(database, second)
        assert (turn.reason, turn.until) == ("turn", None)
        assert "1 request of this role for this host" in turn.detail
        assert not nobody_takes(database)


def test_ends(database: Database, worker: Worker, nginx: Nginx) -> None:
    good, bad = get(database, nginx.url), get(database, f"{nginx.url}/status/404")
    (end,) = wait_for(database, good, "succeeded")
    assert end.detail.startswith("It ended as succeeded at ")
    assert end.detail.endswith(", after 1 attempt, with status 200.")
    assert end.hint is None
    (end,) = wait_for(database, bad, "failed")
    assert end.hint == f"To send it again: select net.retry({bad});"
    database.execute("select net.retry(%s)", bad)
    (end,) = explain(database, bad)
    assert "sent again" in (end.hint or "")
    database.execute("select net.forget(%s)", good)
    assert reasons(database, good) == ["not there"]


def test_a_pause(database: Database, worker: Worker, nginx: Nginx) -> None:
    host = nginx.url.split("/")[2]
    database.execute("select net.pause(%s, 'The moon is full.')", host)
    id = get(database, nginx.url)
    (paused,) = wait_for(database, id, "paused")
    assert paused.detail.startswith(f"The host {host} is paused since ")
    assert paused.detail.endswith("The moon is full.")
    assert paused.hint is not None
    assert f"select net.resume('{host}');" in paused.hint
    assert nobody_takes(database)
    for name in (host.split(":")[0], "*"):
        database.execute("select net.pause(%s)", name)
    database.execute("select net.resume(%s)", host)
    assert host.split(":")[0] + " is paused" in explain(database, id)[0].detail
    database.execute("select net.resume(%s)", host.split(":")[0])
    (everything,) = explain(database, id)
    assert everything.detail.startswith("All hosts are paused since ")
    database.execute("select net.resume()")
    wait_for(database, id, "succeeded")


def test_a_limit_of_concurrency(database: Database, worker: Worker, silent: str) -> None:
    host = silent.split("/")[2]
    database.execute("select net.configure_host(%s, '{\"concurrency\": 2}')", host)
    ids = [get(database, silent) for _ in range(3)]
    for id in ids[:2]:
        wait_for(database, id, "in flight")
    (limited,) = wait_for(database, ids[2], "limited")
    assert limited.detail == f"The host {host} may have 2 requests in flight at once, and has 2."
    assert nobody_takes(database)


def test_a_rate(database: Database, worker: Worker, nginx: Nginx) -> None:
    host = nginx.url.split("/")[2]
    database.execute('select net.configure_host(%s, \'{"rate": "2/minute", "burst": 1}\')', host)
    first, second = get(database, nginx.url), get(database, nginx.url)
    wait_for(database, first, "succeeded")
    (limited,) = wait_for(database, second, "limited")
    assert limited.detail.startswith(f"The host {host} may be sent 2 requests a minute, and the")
    seconds = database.value("select extract(epoch from %s - now())::float", limited.until)
    assert 20 < seconds < 40
    assert nobody_takes(database)


def test_the_same_words_everywhere(database: Database, worker: Worker, nginx: Nginx) -> None:
    words = "select net.http_get_result(%s), (net.wait(%s, '0')).error_msg, r.error_msg"
    words = f"select (g).status::text, (g).message, w, e from ({words}) x (g, w, e)"
    words = words.replace("r.error_msg)", "r.error_msg from net.requests r where r.id = %s)")
    host = nginx.url.split("/")[2]
    database.execute("select net.pause(%s)", host)
    id = get(database, nginx.url)
    (paused,) = wait_for(database, id, "paused")
    status, message, waited, shown = database.rows(words, id, id, id)[0]
    assert status == "PENDING"
    assert message == f"request is pending. {paused.detail} {paused.hint}"
    assert waited == f"{paused.detail} {paused.hint}"
    assert shown == paused.detail


def test_other_roles_are_numbers(database: Database, worker: Worker, silent: str) -> None:
    """A role learns how many requests of others there are, and not where they go."""
    host = silent.split("/")[2]
    database.execute("create role explain_alice login")
    try:
        with database.connect("explain_alice") as alice:
            database.execute("select net.configure('concurrency', '1')")
            theirs = get(database, silent)
            wait_for(database, theirs, "in flight")
            row = alice.execute("select net.http_get('http://127.0.0.2:1025/')").fetchone()
            assert row is not None
            (busy,) = wait_until(
                lambda: explain(alice, row[0]), lambda found: found[0].reason == "busy", "busy"
            )
            assert "1 by requests of other roles" in busy.detail
            assert host not in str(busy)
            assert reasons(alice, theirs) == ["not there"]
            everything = "request_fact", "request_load", "request_rival", "request_before"
            for view in everything:
                assert host not in str(alice.execute(f"select * from pgnet.{view}").fetchall())
            assert host not in str(alice.execute("select * from net.stats").fetchall())
    finally:
        database.drop()
        with database.cluster.connect() as connection:
            connection.execute("drop role explain_alice")


def test_times(database: Database, worker: Worker, nginx: Nginx) -> None:
    id = database.value(
        "select net.http_request('GET', %s, options => "
        '\'{"not_before": "1 hour", "not_after": "2 hours"}\')',
        nginx.url,
    )
    before, after = wait_for(database, id, "not before", "not after")
    times = database.row("select not_before, not_after from pgnet.flow")
    assert times == (before.until, after.until)
    assert before.detail.startswith("It is not sent before ")
    assert after.detail.startswith("It ends as expired where it is not sent before ")
    assert nobody_takes(database)
    assert database.value("select error_msg from net.requests") == before.detail
    late = database.value(
        "select net.http_request('GET', %s, options => '{\"not_after\": \"2000-01-01\"}')",
        nginx.url,
    )
    (expired,) = wait_for(database, late, "expired")
    assert "not_after passed" in expired.detail


def test_behind_its_key(database: Database, worker: Worker, silent: str, nginx: Nginx) -> None:
    request = (
        "select net.http_request('POST', %s, timeout_milliseconds => 20000,"
        ' options => \'{"ordering_key": "k"}\')'
    )
    first, second = database.value(request, silent), database.value(request, nginx.url)
    (key,) = wait_for(database, second, "key")
    assert key.detail == f'It waits behind its ordering_key "k", whose head is request {first}.'
    assert key.hint == f"Why that one waits: select * from net.explain({first});"
    assert database.value("select error_msg from net.requests where id = %s", second) == key.detail
    assert nobody_takes(database)


def test_behind_a_key_that_is_blocked(database: Database, worker: Worker, nginx: Nginx) -> None:
    request = "select net.http_request('POST', %s, options => '{\"ordering_key\": \"k''\"}')"
    first = database.value(request, f"{nginx.url}/status/500")
    wait_for(database, first, "failed")
    second = database.value(request, nginx.url)
    (key,) = wait_for(database, second, "key")
    assert key.detail == (
        f'Its ordering_key "k\'" is blocked by request {first},'
        " which has ended as failed: status 500."
    )
    assert key.hint is not None
    assert nobody_takes(database)
    # The way out that it names is one.
    database.execute(key.hint.split(" or ")[1])
    wait_for(database, second, "succeeded")


def test_after_others(database: Database, worker: Worker, silent: str, nginx: Nginx) -> None:
    first, second = get(database, silent), get(database, silent)
    third = database.value(
        "select net.http_request('GET', %s, options => jsonb_build_object('after', %s::bigint[]))",
        nginx.url,
        [first, second],
    )
    (after,) = wait_for(database, third, "after")
    assert after.detail == f"It is sent after requests that have not ended: {first}, {second}."
    assert nobody_takes(database)
    database.execute("select net.cancel(%s)", first)
    (cancelled,) = wait_for(database, third, "cancelled")
    assert str(first) in cancelled.detail


def test_nobody_has_looked_at_its_key(database: Database, nginx: Nginx) -> None:
    id = database.value(
        "select net.http_request('POST', %s, options => '{\"ordering_key\": \"k\"}')", nginx.url
    )
    assert reasons(database, id) == ["no worker", "gate"]


def test_a_broken_host(database: Database, worker: Worker, nginx: Nginx) -> None:
    host = nginx.url.split("/")[2]
    database.execute(
        "select net.configure_host(%s,"
        ' \'{"breaker": {"failures_in_a_row": 3, "open_milliseconds": 60000}}\')',
        host,
    )
    for _ in range(3):
        wait_for(database, get(database, f"{nginx.url}/status/500"), "failed")
    database.wait_for("select count(*) = 1 from net.hosts where state = 'open'")
    id = get(database, nginx.url)
    (broken,) = explain(database, id)
    assert broken.reason == "broken"
    assert broken.detail.startswith(f"The host {host} is broken since ")
    assert ": 3 " in broken.detail
    assert "A probe is sent at " in broken.detail
    assert broken.until == database.value("select closed_until from pgnet.host_state")
    assert nobody_takes(database)
    assert database.value("select error_msg from net.requests where id = %s", id) == broken.detail


def test_a_host_that_has_asked_to_wait(database: Database, worker: Worker) -> None:
    with contextlib.closing(Raw()) as server:
        url = server.answering(
            b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 60\r\nContent-Length: 0\r\n\r\n"
        )
        wait_for(database, get(database, url), "failed")
        host = url.split("/")[2]
        database.wait_for("select count(*) = 1 from pgnet.host_state where closed_until > now()")
        id = get(database, url)
        (told,) = explain(database, id)
        assert told.reason == "told to wait"
        assert told.detail.startswith(f"The host {host} has asked to wait until ")
        seconds = database.value("select extract(epoch from %s - now())::float", told.until)
        assert 50 < seconds <= 60
        assert nobody_takes(database)


def test_what_a_host_can_bear(database: Database, worker: Worker, silent: str) -> None:
    """A host that has not answered yet gets a few requests at once."""
    ids = [get(database, silent) for _ in range(60)]
    last = ids[-1]
    (adaptive,) = wait_for(database, last, "adaptive")
    in_flight = database.value("select count(*) from pgnet.claim")
    assert in_flight < 60
    assert adaptive.detail.startswith(f"Workers have {in_flight} requests in flight at the host ")
