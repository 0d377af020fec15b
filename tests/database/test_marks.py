"""net.cancel, net.forget and net.retry insert a mark with the caller's rights; workers act on it.

And what PUBLIC's rights allow: no lock, no write and no row of others.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import psycopg
import pytest
from psycopg import errors

from servers.cluster import Cluster, Database
from servers.roles import login_roles
from servers.waiting import wait_until

ROLES = ("marks_alice", "marks_bob")
URL = "http://127.0.0.1:1025/"


class Hanging:
    """A server that reads requests and never answers; it notices when a client goes away."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=500)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/"
        self.received: list[bytes] = []
        self.closed = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._hang, args=(connection,), daemon=True).start()

    def _hang(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while piece := connection.recv(65536):
                with self._lock:
                    self.received.append(piece)
        with self._lock:
            self.closed += 1

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    server = Hanging()
    yield server
    server.close()


@pytest.fixture(scope="module")
def roles(cluster: Cluster) -> Iterator[None]:
    with login_roles(cluster, ROLES):
        yield


@pytest.fixture
def own(database: Database, roles: None) -> Database:
    return database


def value(connection: psycopg.Connection[Any], query: str, *arguments: Any) -> Any:
    row = connection.execute(query, arguments or None).fetchone()
    return None if row is None else row[0]


def get(connection: psycopg.Connection[Any], url: str, timeout: int = 60_000) -> int:
    number: int = value(
        connection, "select net.http_get(%s, timeout_milliseconds => %s)", url, timeout
    )
    return number


def fail(database: Database, *ids: int) -> None:
    """Make requests end as failed, as a worker records it."""
    database.execute(
        "select pgnet.record_outcomes(json_agg(json_build_object('id', c.id, 'token', c.token,"
        " 'state', 'failed', 'timed_out', false, 'error_msg', 'refused')))"
        " from pgnet.register_worker('process') r,"
        " pgnet.claim_requests(r.worker_id, 100, 100, 100, '{}', 1000, '') c"
        " where c.id = any (%s)",
        list(ids),
    )


# ---- in flight


@pytest.mark.parametrize("kind", ["process", "backend"])
@pytest.mark.parametrize("action", ["cancel", "forget"])
@pytest.mark.parametrize("by", ["requester", "owner"])
def test_in_flight_the_slot_is_free_at_once(
    own: Database, hanging: Hanging, kind: str, action: str, by: str
) -> None:
    """Three are all that one host may have; one that is ended makes room, its connection closed."""
    own.execute("select net.configure('concurrency', '4')")
    alice = own.connect("marks_alice")
    with ExitStack() as stack:
        if kind == "process":
            stack.enter_context(own.worker("--grace", "0"))
        else:
            serving = own.connect()
            thread = threading.Thread(target=serve, args=(serving,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(serving.cancel)
        ids = [get(alice, f"{hanging.url}{n}") for n in range(4)]
        own.wait_for(
            "select count(*) from net.requests where state = 'in_flight'", predicate=(3).__eq__
        )
        wait_until(lambda: len(hanging.received) == 3, description="three requests received")
        started = time.monotonic()
        who = alice if by == "requester" else own.connection
        held = [n for (n,) in own.rows("select id from pgnet.claim order by 1")]
        assert value(who, f"select net.{action}(%s)", held[0]) is True
        wait_until(lambda: hanging.closed == 1, description="the connection closed")
        wait_until(lambda: len(hanging.received) == 4, description="the slot's next request")
        assert time.monotonic() - started < 3
        own.wait_for("select count(*) from pgnet.mark", predicate=(0).__eq__)
        left = own.rows(
            "select id, state::text, error_msg, attempts from net.requests where id = %s", held[0]
        )
        if action == "forget":
            assert left == []
            assert (
                own.value("select count(*) from net.attempts where request_id = %s", held[0]) == 0
            )
        else:
            message = "The request was cancelled while it was in flight: it may have been received."
            # Of a request that has been in flight for a second it also says what it waited for.
            assert [row[:2] + row[3:] for row in left] == [(held[0], "cancelled", 1)]
            assert left[0][2].startswith(message)
        assert own.value("select count(*) from pgnet.claim where id = %s", held[0]) == 0
        alice.execute("select net.cancel(id) from net.requests where state < 'succeeded'")
        wait_until(lambda: hanging.closed == len(ids), description="all connections closed")


def serve(connection: psycopg.Connection[Any]) -> None:
    with suppress(errors.QueryCanceled):
        connection.execute("call net.work()")


def test_the_worker_that_does_not_have_it_tells_the_one_that_does(
    own: Database, hanging: Hanging
) -> None:
    """Whichever of two looks first ends the request; the other one closes the connection."""
    with own.worker("--grace", "0"):
        ids = [get(own.connection, hanging.url) for _ in range(10)]
        wait_until(lambda: len(hanging.received) == 10, description="ten requests received")
        with own.worker("--grace", "0"):
            for at, number in enumerate(ids):
                started = time.monotonic()
                assert own.value("select net.cancel(%s)", number) is True
                wait_until(lambda: hanging.closed, at.__lt__, "its connection closed")
                assert time.monotonic() - started < 0.9, "before the next look of each second"


def test_deleted_by_hand_in_flight(own: Database, hanging: Hanging) -> None:
    """The owner's delete leaves nothing, and frees the slot when the worker looks."""
    own.execute("select net.configure('poll_interval', '1 s')")
    with own.worker("--grace", "0"):
        get(own.connection, hanging.url)
        wait_until(lambda: hanging.received, description="the request received")
        own.execute("delete from net.http_request_queue")
        wait_until(lambda: hanging.closed == 1, description="the connection closed")
        own.wait_for("select count(*) from pgnet.claim", predicate=(0).__eq__)
    assert own.value("select count(*) from net.requests") == 0


def test_an_at_most_once_request(own: Database, hanging: Hanging) -> None:
    number = own.value(
        "select net.http_request('POST', %s, options => '{\"delivery\": \"at_most_once\"}')",
        hanging.url,
    )
    with own.worker("--grace", "0"):
        wait_until(lambda: hanging.received, description="the request received")
        assert own.value("select net.cancel(%s)", number)
        state = own.value("select (net.wait(%s)).state::text", number)
    assert state == "cancelled"
    assert own.value("select count(*) from pgnet.failed") == 0


def test_many_at_once(own: Database) -> None:
    """Ten thousand of two roles: none is sent, each has its outcome, no mark is left."""
    alice, bob = (own.connect(role) for role in ROLES)
    for connection in (alice, bob):
        connection.execute("select net.http_get(%s) from generate_series(1, 5000)", (URL,))
    alice.execute("select count(net.cancel(id)) from net.requests")
    bob.execute("select count(net.forget(id)) from net.requests")
    assert own.rows("select state::text, count(*) from net.requests group by 1") == [
        ("cancelled", 5000)
    ]
    own.execute("call net.drain()")
    assert own.rows(
        "select state::text, attempts, count(*) from net._http_response group by 1, 2"
    ) == [("cancelled", 0, 5000)]
    for table in ("pgnet.mark", "net.http_request_queue", "pgnet.attempt", "pgnet.claim"):
        assert own.value(f"select count(*) from {table}") == 0, table


def test_ten_thousand_marks_of_one_role_cost_others_nothing(own: Database) -> None:
    """No claim steps over them: their role waits until workers have acted on them."""
    alice, bob = (own.connect(role) for role in ROLES)
    alice.execute("select net.http_get(%s) from generate_series(1, 10000)", (URL,))
    alice.execute("select count(net.cancel(id)) from net.requests")
    last, others = get(alice, URL), get(bob, URL)
    worker = own.connect()
    number = value(worker, "select worker_id from pgnet.register_worker('process')")
    claim = (
        "select id from pgnet.claim_requests(%s, 100, 100, 100, '{}', 1000000, '')"
        " where id is not null"
    )
    worker.execute("begin")
    touched = (
        "select sum(pg_stat_get_xact_tuples_fetched(t)) from unnest("
        "'{net.http_request_queue,pgnet.claim,pgnet.mark}'::regclass[]) t"
    )
    before = value(worker, touched)
    assert worker.execute(claim, (number,)).fetchall() == [(others,)]
    assert value(worker, touched) - before < 15_000
    worker.execute("rollback")
    worker.close()
    own.execute("call net.drain()")
    assert sorted(own.rows("select state::text, count(*) from net.requests group by 1")) == [
        ("cancelled", 10_000),
        ("failed", 2),
    ]
    assert own.value("select attempts from net.requests where id = %s", last) == 1


# ---- forgetting


def test_forget(own: Database) -> None:
    """A request in the queue, a response, a failure with its attempts: only those of the role."""
    alice, bob = (own.connect(role) for role in ROLES)
    queued, failed = get(alice, URL), get(alice, URL)
    fail(own, failed)
    own.execute("insert into pgnet.attempt select %s, 7, requested_by, 'lost', now(), now()"
                " from pgnet.failed", failed)  # fmt: skip
    for number in (queued, failed):
        assert value(bob, "select net.forget(%s)", number) is False
        assert value(alice, "select net.forget(%s)", number) is True
        assert value(alice, "select net.forget(%s)", number) is False
        assert value(alice, "select net.cancel(%s)", number) is False
        with pytest.raises(errors.NoDataFound):
            alice.execute("select net.wait(%s)", (number,))
        with pytest.raises(errors.NoDataFound):
            alice.execute("select net.retry(%s)", (number,))
        assert value(alice, "select (net.http_get_result(%s)).message", number) == (
            "request matching request_id not found"
        )
    for view in ("requests", "responses", "failures", "attempts"):
        assert own.value(f"select count(*) from net.{view}") == 0, view
    own.execute("call net.drain()")
    for table in (
        "net.http_request_queue",
        "net._http_response",
        "pgnet.failed",
        "pgnet.attempt",
        "pgnet.mark",
    ):
        assert own.value(f"select count(*) from {table}") == 0, table
    assert value(alice, "select net.forget(null)") is False
    assert value(alice, "select net.forget(%s)", 2**60) is False


def test_forgetting_in_the_transaction_that_queued_it(own: Database) -> None:
    alice = own.connect("marks_alice", autocommit=False)
    number = get(alice, URL)
    assert value(alice, "select net.forget(%s)", number) is True
    assert value(alice, "select count(*) from net.requests") == 0
    alice.commit()
    own.execute("call net.drain()")
    assert own.value("select count(*) from net._http_response") == 0
    assert own.value("select count(*) from pgnet.mark") == 0


# ---- somebody else's


def test_a_mark_that_is_inserted_by_hand(own: Database) -> None:
    """A mark counts only for requests of its role; a mark without a request is removed."""
    alice, bob = (own.connect(role) for role in ROLES)
    queued, failed = get(alice, URL), get(alice, URL)
    fail(own, failed)
    bob.execute(
        "insert into pgnet.mark (request_id, action) select n, a from unnest(%s::bigint[]) n,"
        " unnest(array['cancel', 'forget']) a",
        ([queued, failed, -1, 2**62],),
    )
    for view, count in (("requests", 2), ("failures", 1), ("responses", 1)):
        assert value(alice, f"select count(*) from net.{view}") == count, view
    assert own.value("select count(*) from pgnet.ready_request") == 1
    own.execute("call net.drain()")
    own.wait_for("select pgnet.act_on_marks() is null", predicate=bool)
    assert own.value("select count(*) from pgnet.failed") == 2, "the one that was sent and refused"
    assert own.value("select count(*) from pgnet.mark") == 0
    with pytest.raises(errors.CheckViolation):
        bob.execute("insert into pgnet.mark (request_id, action) values (1, 'send')")
    for number in (queued, failed, -1):
        with pytest.raises(errors.InsufficientPrivilege):
            bob.execute(
                "insert into pgnet.mark (request_id, action) values (%s, 'retry')", (number,)
            )
        with pytest.raises(errors.InsufficientPrivilege):
            bob.execute(
                "insert into net.http_request_queue (method, url, retry_of) values ('GET', %s, %s)",
                (URL, number),
            )


def test_rights_on_all_tables_mark_nothing_of_others(own: Database) -> None:
    """After an administrator's GRANT ALL row security still holds."""
    alice, bob = (own.connect(role) for role in ROLES)
    number = get(alice, URL)
    own.execute("grant all on all tables in schema net, pgnet to marks_bob")
    with pytest.raises(errors.InsufficientPrivilege):
        bob.execute(
            "insert into pgnet.mark (request_id, requested_by, action)"
            " values (%s, 'marks_alice', 'cancel')",
            (number,),
        )
    assert value(bob, "select net.cancel(%s)", number) is False
    own.execute("alter role marks_bob bypassrls")
    try:
        again = own.connect("marks_bob")
        assert value(again, "select count(*) from net.requests") == 1, "it sees all"
        for action in ("cancel", "forget"):
            assert value(again, f"select net.{action}(%s)", number) is False
    finally:
        own.execute("alter role marks_bob nobypassrls")


def test_a_member_of_the_owner(own: Database) -> None:
    """A role with the owner's rights cancels, forgets and retries the requests of every role."""
    own.execute("grant postgres to marks_bob")
    try:
        alice, bob = (own.connect(role) for role in ROLES)
        first, second, failed = (get(alice, URL) for _ in range(3))
        fail(own, failed)
        own.execute("delete from pgnet.claim")
        assert value(bob, "select net.cancel(%s)", first) is True
        assert value(bob, "select net.forget(%s)", second) is True
        again = value(bob, "select net.retry(%s)", failed)
        with pytest.raises(errors.NoDataFound):
            alice.execute("select net.retry(%s)", (failed,))
        assert value(alice, "select array_agg(id order by id) from net.requests") == [
            first,
            failed,
            again,
        ]
        assert value(alice, "select retry_of from net.http_request_queue where id = %s", again) == (
            failed
        )
    finally:
        own.execute("revoke postgres from marks_bob")


def test_what_refuses_a_cancel_is_tried_again_and_holds_up_no_other(own: Database) -> None:
    own.execute(
        """
        create function public.refuse() returns trigger language plpgsql as $$
        begin
            if new.url like '%/refused' then raise exception 'not this one'; end if;
            return new;
        end $$;
        create trigger refuse before insert on net._http_response
            for each row execute function public.refuse();
        """
    )
    ids = [get(own.connection, f"{URL}{name}") for name in ("a", "refused", "b", "c")]
    own.execute("select net.cancel(id) from net.requests")
    own.execute("call net.drain()")
    assert own.rows("select id from net._http_response order by 1") == [
        (ids[0],),
        (ids[2],),
        (ids[3],),
    ]
    assert own.rows("select request_id, retry_at > now() + interval '50 s' from pgnet.mark") == [
        (ids[1], True)
    ]
    assert own.value("select state::text from net.requests where id = %s", ids[1]) == "cancelled"
    named = "select detail, hint from net.check() where item = 'heartbeat' and not ok"
    ((detail, hint),) = own.rows(named)
    assert detail.startswith("cancelling and forgetting fails since ")
    assert detail.endswith(f": the cancel of request {ids[1]}: not this one")
    # The hint names the trigger that a user has made.
    assert hint == "Is it a trigger? alter table net._http_response disable trigger refuse;"
    own.execute("drop trigger refuse on net._http_response")
    own.execute("update pgnet.mark set retry_at = now()")
    own.execute("call net.drain()")
    assert own.value("select count(*) from net._http_response") == 4
    assert own.rows(named) == []


def test_a_lock_behind_a_foreign_key_holds_up_one_mark(own: Database) -> None:
    """Every role may lock rows of its table: that delays no other role's cancel."""
    own.execute(
        "create table public.note (response bigint references net._http_response on delete cascade)"
    )
    own.execute(f"grant select, update on public.note to {ROLES[0]}")
    alice, bob = own.connect(ROLES[0], autocommit=False), own.connect(ROLES[1])
    mine = get(alice, URL)
    alice.commit()
    own.execute("call net.drain()")
    own.execute("insert into public.note values (%s)", mine)
    alice.execute("select net.forget(%s)", (mine,))
    alice.commit()
    alice.execute("select from public.note for update")
    other = get(bob, URL)
    bob.execute("select net.cancel(%s)", (other,))
    with own.worker():
        state = f"select state::text from net._http_response where id = {other}"
        wait_until(lambda: own.value(state) == "cancelled")
        assert own.value("select count(*) from net._http_response where id = %s", mine) == 1
        alice.rollback()
        own.wait_for("select not exists (select from pgnet.mark)")
    assert own.value("select count(*) from net._http_response where id = %s", mine) == 0


# ---- what PUBLIC's rights allow

MODES = (
    "access share", "row share", "row exclusive", "share update exclusive", "share",
    "share row exclusive", "exclusive", "access exclusive",
)  # fmt: skip


def test_public_locks_no_relation_more_than_reading_and_inserting_need(own: Database) -> None:
    """Every relation of the extension, in every mode: what is taken, on it and on others."""
    alice = own.connect("marks_alice", autocommit=False)
    relations = own.rows(
        """
        select c.oid::regclass::text
        from pg_class c
        where c.relnamespace = any ('{net,pgnet}'::regnamespace[])
            and c.relkind in ('r', 'p', 'v', 'm', 'f')
            and (has_table_privilege('marks_alice', c.oid,
                    'select, insert, update, delete, truncate, references, trigger')
                or has_any_column_privilege('marks_alice', c.oid, 'select, insert, update'))
        """
    )
    assert len(relations) > 10
    for (name,) in relations:
        for mode in MODES:
            try:
                alice.execute(f"lock table {name} in {mode} mode nowait")
            except errors.InsufficientPrivilege:
                alice.rollback()
                continue
            taken = own.rows(
                "select l.relation::regclass::text, l.mode from pg_locks l where l.pid = %s"
                " and l.locktype = 'relation'",
                alice.info.backend_pid,
            )
            alice.rollback()
            # PostgreSQL counts no column's right for LOCK: an INSERT takes ROW EXCLUSIVE itself.
            assert mode == "access share", (name, taken)
            assert {lock for _relation, lock in taken} == {"AccessShareLock"}, (name, taken)


def test_public_locks_no_row(own: Database) -> None:
    """A role that may lock a row may delay its deletion; some statements lock whole tables."""
    alice = own.connect("marks_alice")
    number = get(alice, URL)
    for statement in (
        *(f"select * from {table} for {strength}"
          for table in ("net.http_request_queue", "net._http_response", "pgnet.failed",
                        "pgnet.mark", "pgnet.attempt", "net.requests", "net.responses",
                        "net.failures", "net.workers", "net.settings")
          for strength in ("update", "no key update", "share", "key share")),
        "merge into pgnet.mark m using (select 1) s on true when matched then delete",
        "merge into net.http_request_queue q using (select 1) s on true"
        " when matched then update set url = 'x'",
        "copy net.http_request_queue (id, method, url) from stdin",
        "copy net.http_request_queue (requested_by, method, url) from stdin",
        "copy pgnet.mark (request_id, requested_by, action) from stdin",
        "insert into pgnet.mark (request_id, action) values (1, 'cancel')"
        " on conflict (requested_by, request_id, action) do update set done = true",
        "vacuum pgnet.mark", "analyze pgnet.mark", "cluster pgnet.mark using mark_pkey",
        "reindex table pgnet.mark", "truncate pgnet.mark", "comment on table pgnet.mark is 'x'",
        "create index on pgnet.mark (action)",
        "create rule r as on insert to pgnet.mark do nothing",
        "create policy p on pgnet.mark", "create statistics s on action, done from pgnet.mark",
        "create table public.c (id bigint references net.http_request_queue)",
    ):  # fmt: skip
        own.execute("grant create on schema public to public")
        connection = own.connect("marks_alice")
        notices: list[str] = []
        connection.add_notice_handler(adds_to(notices))
        try:
            found = connection.execute(statement).rowcount
        except (errors.InsufficientPrivilege, errors.WrongObjectType):
            pass
        else:
            # VACUUM and ANALYZE skip with a warning. A role may change, and so lock, its requests
            # with a unique_key: this one has none.
            assert notices or found == 0, statement
        connection.close()
    assert own.value("select count(*) from net.requests where id = %s", number) == 1


def adds_to(states: list[str]) -> Callable[[psycopg.errors.Diagnostic], None]:
    return lambda notice: states.append(notice.sqlstate or "")


def test_open_and_prepared_marks_stop_nobody(
    make_cluster: Callable[..., Cluster], hanging: Hanging
) -> None:
    """A role that marks, queues and prepares: workers, others and new connections go on."""
    cluster = make_cluster(max_prepared_transactions=4)
    with cluster.connect() as connection:
        connection.execute("create role marks_alice login")
    database = cluster.create_database()
    database.execute("select net.allow_network('loopback')")
    alice = database.connect("marks_alice", autocommit=False)
    mine = get(alice, URL)
    alice.commit()
    alice.execute("select net.cancel(%s)", (mine,))
    get(alice, URL)
    alice.execute("select * from net.requests")
    alice.execute("prepare transaction 'held'")
    alice.close()
    database.execute("set lock_timeout = '2 s'")
    with database.worker():
        others = [get(database.connection, URL) for _ in range(3)]
        for number in (mine, *others):
            assert database.value("select (net.wait(%s)).state::text", number) == "failed"
        assert database.value("select net.cancel(%s)", get(database.connection, hanging.url))
        database.execute("select net.worker_restart()")
        database.execute("vacuum net.http_request_queue, pgnet.mark")
    assert database.connect().execute("select 1").fetchone() == (1,)
    database.execute("rollback prepared 'held'")
    database.drop()
