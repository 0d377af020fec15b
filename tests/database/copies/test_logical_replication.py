"""Subscribers do not send what the publisher sends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from servers.cluster import Cluster, Database
from servers.copies import claim_all, request, sent, template_copy, wait_sent
from servers.httpd import Running

# ---- logical replication


@pytest.fixture(scope="module")
def publishing(make_cluster: Callable[..., Cluster]) -> Cluster:
    return make_cluster(wal_level="logical")


@pytest.fixture(scope="module")
def subscribing(make_cluster: Callable[..., Cluster]) -> Cluster:
    return make_cluster()


@pytest.fixture
def publisher(publishing: Cluster) -> Iterator[Database]:
    database = publishing.create_database()
    database.execute("select net.allow_network('loopback')")
    database.execute("create table orders (id int primary key)")
    database.execute("create table marker (id int primary key)")
    yield database
    database.drop()


@pytest.fixture
def subscriber(subscribing: Cluster) -> Iterator[Database]:
    database = subscribing.create_database()
    database.execute("select net.allow_network('loopback')")
    database.execute("create table orders (id int primary key)")
    database.execute("create table marker (id int primary key)")
    yield database
    database.drop()


@contextlib.contextmanager
def subscribed(
    subscriber: Database, publisher: Database, tables: str = "all tables"
) -> Iterator[Callable[[], None]]:
    """A subscription to tables of the publisher; gives a function that waits for it."""
    more = "" if tables == "all tables" else ", marker"
    publisher.execute(f"create publication everything for {tables}{more}")
    name = f"of_{publisher.name}"
    subscriber.execute("truncate marker")
    subscriber.execute(
        f"create subscription {name} connection '{publisher.dsn()}' publication everything"
    )

    def caught_up() -> None:
        subscriber.wait_for(
            "select count(*) = 0 from pg_subscription_rel where srsubstate <> 'r'", timeout=30
        )
        # A row comes after what was committed before it. The position that a subscriber shows
        # stays behind where nothing is left to be sent.
        last = publisher.value(
            "insert into marker select coalesce(max(id), 0) + 1 from marker returning id"
        )
        subscriber.wait_for("select exists (select from marker where id = %s)", last, timeout=30)

    try:
        yield caught_up
    finally:
        subscriber.execute(f"drop subscription if exists {name}")
        publisher.execute("drop publication everything")


QUEUE = "select id, origin, url from net.http_request_queue order by id"


def test_a_subscriber_sends_its_own_requests_only(
    publisher: Database, subscriber: Database, witness: Running
) -> None:
    """The publication has all tables, and both number their requests from 1."""
    for n in range(3):
        request(publisher, witness, f"/publisher/{n}")
        request(subscriber, witness, f"/subscriber/{n}")
    request(publisher, witness, "/publisher/3")
    with subscribed(subscriber, publisher) as caught_up:
        caught_up()
        with subscriber.worker():
            own = [request(subscriber, witness, f"/subscriber/{n}") for n in range(3, 6)]
            later = [request(publisher, witness, f"/publisher/{n}") for n in range(4, 6)]
            caught_up()
            subscriber.wait_for("select count(*) = 6 from net.responses where state = 'succeeded'")
            assert set(sent(witness)) == {f"/subscriber/{n}" for n in range(6)}
            with publisher.worker():
                publisher.wait_for(
                    "select count(*) = 6 from net.responses where state = 'succeeded'"
                )
            caught_up()
            subscriber.execute("call net.drain()")
        assert set(sent(witness).values()) == {1}
        assert len(sent(witness)) == 12
        # each of its ids is its own request's, whatever the publisher did with that number
        assert min(own) > 10**12 > max(later)
        for n, id in enumerate([1, 2, 3, *own]):
            url = subscriber.value("select url from net.responses where id = %s", id)
            assert url == f"{witness.url}/subscriber/{n}"
        assert subscriber.value("select count(*) from net.http_request_queue") == 0


def end_all(publisher: Database, cancelled: int, deleted: int) -> None:
    """End a publisher's requests, and its workers; the rest is sent by a worker."""
    publisher.execute("select net.cancel(%s)", cancelled)
    publisher.execute("select pgnet.act_on_marks()")
    publisher.execute("delete from net.http_request_queue where id in (1, %s)", deleted)
    publisher.execute("delete from pgnet.claim")
    publisher.execute("update pgnet.worker set gone_since = now()")
    publisher.execute("delete from pgnet.worker")
    publisher.execute("select net.configure('ttl', null)")
    publisher.execute("call net.drain()")


def test_what_a_subscriber_takes_and_what_not(
    publisher: Database, subscriber: Database, witness: Running
) -> None:
    subscriber.execute("select net.configure('ttl', '3 hours'), net.deny_host('example.net')")
    own = [request(subscriber, witness, f"/own/{n}") for n in range(2)]
    with subscribed(subscriber, publisher) as caught_up:
        publisher.execute("select setval('net.http_request_queue_id_seq', 5000)")
        ids = [request(publisher, witness, f"/publisher/{n}") for n in range(3)]
        # a publisher's with a number of the subscriber's own, and its end
        publisher.execute(
            "insert into net.http_request_queue (id, method, url) values (1, 'GET', 'http://a/')"
        )
        publisher.execute("select net.configure('ttl', '2 hours'), net.deny_host('example.com')")
        publisher.execute(
            "select net.set_secret('key', 'some secret value', 'https://example.com/')"
        )
        claim_all(publisher)
        caught_up()
        name = f"of_{publisher.name}"
        expected = [(id, None, f"{witness.url}/own/{n}") for n, id in enumerate(own)]
        theirs = [(id, name, f"{witness.url}/publisher/{n}") for n, id in enumerate(ids)]
        assert subscriber.rows(QUEUE) == expected + theirs
        for table in ("claim", "worker", "secret", "secret_grant"):
            assert subscriber.value(f"select count(*) from pgnet.{table}") == 0, table
        assert subscriber.value("select value from pgnet.setting where name = 'ttl'") == "3 hours"
        assert subscriber.rows("select pattern from net.egress where kind = 'host'") == [
            ("example.net",)
        ]

        end_all(publisher, cancelled=ids[0], deleted=ids[1])
        caught_up()
        assert subscriber.rows(QUEUE) == expected
        assert subscriber.rows("select id, state from net.responses order by id") == [
            (ids[0], "cancelled"),
            (ids[2], "succeeded"),
        ]
        assert subscriber.value("select value from pgnet.setting where name = 'ttl'") == "3 hours"
        # what somebody here has done to one of the publisher's does not stop the replication
        later = [request(publisher, witness, f"/publisher/{n}") for n in range(3, 6)]
        caught_up()
        subscriber.execute("select net.cancel(%s)", later[0])
        subscriber.execute("select pgnet.act_on_marks()")
        subscriber.execute("delete from net.http_request_queue where id = %s", later[1])
        publisher.execute("call net.drain()")
        caught_up()
        assert subscriber.rows(QUEUE) == expected
        assert subscriber.rows(
            "select id, state from net.responses where id = any (%s) order by id", later
        ) == [(later[0], "cancelled"), (later[1], "succeeded"), (later[2], "succeeded")]
        # what the publisher's time has run out for goes here too
        publisher.execute("delete from net._http_response")
        caught_up()
        assert subscriber.value("select count(*) from net.responses") == 0
        subscriber.execute("call net.drain()")
    assert set(sent(witness)) == {"/own/0", "/own/1", *(f"/publisher/{n}" for n in range(2, 6))}


def test_triggers_on_replicated_tables_send(
    publisher: Database, subscriber: Database, witness: Running
) -> None:
    """A request that a subscriber's own trigger makes during replication is the subscriber's."""
    subscriber.execute(
        "create function announce() returns trigger language plpgsql as $$begin"
        f" perform net.http_get('{witness.url}/order/' || new.id); return new; end$$;"
        " create trigger announce after insert on orders for each row execute function announce();"
        " alter table orders enable always trigger announce"
    )
    publisher.execute(
        "create function announce() returns trigger language plpgsql as $$begin"
        f" perform net.http_get('{witness.url}/publisher/' || new.id); return new; end$$;"
        " create trigger announce after insert on orders for each row execute function announce();"
    )
    publisher.execute("insert into orders values (1)")
    for tables in ("table orders", "all tables"):
        with subscribed(subscriber, publisher, tables) as caught_up, subscriber.worker():
            caught_up()
            wait_sent(witness, "/order/1")
            publisher.execute("insert into orders values (2)")
            wait_sent(witness, "/order/2")
            caught_up()
            subscriber.execute("call net.drain()")
            assert set(sent(witness)) == {"/order/1", "/order/2"}
        witness.reset()
        subscriber.execute("truncate orders")
        publisher.execute("delete from orders where id = 2")


def test_a_switchover_by_logical_replication(
    publisher: Database, subscriber: Database, witness: Running
) -> None:
    """The subscriber takes the publisher's place: what waits there is sent by the new one."""
    for n in range(3):
        request(publisher, witness, f"/sent/{n}")
    publisher.execute("call net.drain()")
    pending = request(publisher, witness, "/pending")
    with subscribed(subscriber, publisher) as caught_up:
        caught_up()
        subscriber.execute("call net.drain()")
        assert set(sent(witness)) == {f"/sent/{n}" for n in range(3)}
    with subscriber.worker():
        subscriber.execute("select net.adopt_database()")
        wait_sent(witness, "/pending")
        subscriber.wait_for("select count(*) = 4 from net.responses where state = 'succeeded'")
        assert request(subscriber, witness, "/after") == pending + 1
        wait_sent(witness, "/after")
    assert set(sent(witness).values()) == {1}
    of_keys = "select key_namespace from pgnet.database"
    assert subscriber.value(of_keys) == publisher.value(of_keys)


def test_a_copy_that_becomes_a_subscriber(publisher: Database, witness: Running) -> None:
    """A subscriber made by pg_createsubscriber sends nothing that the original has sent."""
    for path in ("/early", "/late"):
        request(publisher, witness, path)
    publisher.execute("create publication everything for all tables")
    slot = f"of_{publisher.name}"
    publisher.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", slot)
    copy = template_copy(publisher, f"{publisher.name}_copy")
    copy.execute("drop publication everything")
    copy.execute(
        f"create subscription {slot} connection '{publisher.dsn()}' publication everything"
        " with (create_slot = false, copy_data = false)"
    )
    try:
        publisher.execute("delete from net.http_request_queue where url like '%%/late'")
        publisher.execute("call net.drain()")
        request(publisher, witness, "/replicated")
        copy.wait_for(QUEUE, predicate=lambda id: id == 3)
        copy.execute(f"drop subscription {slot}")
        copy.execute("select net.adopt_database()")
        assert request(copy, witness, "/own") == 4
        copy.execute("call net.drain()")
        assert sent(witness) == {"/early": 1, "/replicated": 1, "/own": 1}
    finally:
        copy.execute(f"drop subscription if exists {slot}")
        copy.drop()
        publisher.execute("drop publication everything")


def test_adoption_while_a_subscription_goes_on(
    publisher: Database, subscriber: Database, witness: Running
) -> None:
    request(publisher, witness, "/first")
    with subscribed(subscriber, publisher) as caught_up:
        caught_up()
        notices: list[str] = []
        session = subscriber.connect()
        session.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
        session.execute("select net.adopt_database()")
        assert notices == [f'the subscription "of_{publisher.name}" still brings requests']
        own = request(subscriber, witness, "/own")
        for n in range(3):
            request(publisher, witness, f"/later/{n}")
        caught_up()
        subscriber.execute("call net.drain()")
        assert sent(witness) == {"/first": 1, "/own": 1}
        assert subscriber.value("select url from net.responses where id = %s", own) == (
            f"{witness.url}/own"
        )


def test_other_tools_that_replicate(shop: Database, witness: Running) -> None:
    """In sessions of such a tool, a row that brings its number is not sent; a call is."""
    session = shop.connect(options="-c session_replication_role=replica")
    session.execute(
        "insert into net.http_request_queue (id, method, url) values (1000, 'GET', %s)",
        (f"{witness.url}/replicated",),
    )
    session.execute("select net.http_get(%s)", (f"{witness.url}/called",))
    request(shop, witness, "/own")
    shop.execute("call net.drain()")
    assert sent(witness) == {"/called": 1, "/own": 1}
    assert shop.rows(QUEUE) == [(1000, "replica", f"{witness.url}/replicated")]


def test_all_tables_can_be_replicated(fresh_database: Database) -> None:
    """Each table has a key, without which a publisher could not delete, and its trigger."""
    tables = fresh_database.rows(
        "select c.relname,"
        " exists (select from pg_constraint where conrelid = c.oid and contype = 'p'),"
        " array(select p.proname || t.tgenabled::text"
        "       from pg_trigger t join pg_proc p on p.oid = t.tgfoid"
        "       where t.tgrelid = c.oid and t.tgname = 'replicated')"
        " from pg_class c"
        " where c.relnamespace = any ('{net,pgnet}'::regnamespace[]) and c.relkind = 'r'"
    )
    taken = {"http_request_queue", "attempt", "_http_response", "failed", "flow"}
    assert len(tables) > 10
    for name, has_key, triggers in tables:
        assert has_key, name
        assert triggers == ["take_replicated_rowR" if name in taken else "keep_own_rowR"], name
