"""Copies do not send what the original sends: clones, dumps, subscribers, standbys."""

from __future__ import annotations

import contextlib
import itertools
import re
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql

from servers.cluster import Cluster, Database
from servers.doctor import check
from servers.httpd import Running
from servers.waiting import wait_until


def sent(witness: Running) -> Counter[str]:
    """How often each path was requested."""
    return Counter(entry["target"] for entry in witness.record())


def wait_sent(witness: Running, *paths: str) -> None:
    wait_until(
        lambda: set(sent(witness)),
        lambda found: found >= set(paths),
        f"{', '.join(paths)} sent",
    )


def request(database: Database, witness: Running, path: str) -> int:
    found: int = database.value("select net.http_get(%s)", witness.url + path)
    return found


@pytest.fixture
def shop(database: Database) -> Database:
    """A database with an order table, whose worker is stopped."""
    database.execute("create table orders (id int primary key)")
    return database


def template_copy(original: Database, name: str) -> Database:
    original.close()
    with original.cluster.connect() as connection:
        connection.execute(
            sql.SQL("create database {} template {}").format(
                sql.Identifier(name), sql.Identifier(original.name)
            )
        )
    return Database(original.cluster, name)


# ---- create database … template


def claim_all(database: Database, kind: str = "process") -> None:
    """Be a worker that takes what is ready, and is heard of no more."""
    database.execute(
        "select pgnet.claim_requests(worker_id, 10, 10, 10, '{}', 1000, '')"
        " from pgnet.register_worker(%s)",
        kind,
    )


@pytest.fixture
def copy(shop: Database, witness: Running) -> Iterator[Database]:
    """A copy of a database that has a request waiting, and one that was claimed."""
    request(shop, witness, "/claimed")
    shop.execute(
        "select pgnet.claim_requests(worker_id, 10, 10, 10, '{}', 1000, '')"
        " from pgnet.register_worker('backend')"
    )
    request(shop, witness, "/waiting")
    copy = template_copy(shop, f"{shop.name}_copy")
    yield copy
    copy.drop()


def test_a_template_copy_is_not_served(shop: Database, copy: Database, witness: Running) -> None:
    for call in ("call net.work()", "call net.drain()"):
        with pytest.raises(errors.ObjectNotInPrerequisiteState) as refused:
            copy.execute(call)
        said = refused.value.diag
        assert (said.message_primary or "").endswith(
            f'the database "{copy.name}" is a copy: no worker serves it before it is adopted'
        )
        assert f'which is "{shop.name}"' in (said.message_detail or "")
        assert "net.adopt_database()" in (said.message_hint or "")
    shop.execute("call net.drain()")
    assert sent(witness) == {"/waiting": 1, "/claimed": 1}


def test_a_copy_is_served_once_it_is_adopted(copy: Database, witness: Running) -> None:
    """All of its queue is sent then, what the original's worker had claimed too."""
    with copy.worker(seen=False) as refused:
        assert refused.process.wait(10) == 1
        assert "is a copy" in refused.output()
        assert "net.adopt_database()" in refused.output()
    copy.execute("select net.adopt_database()")
    assert copy.value("select pgnet.copy_fault()") is None
    with copy.worker():
        wait_sent(witness, "/claimed", "/waiting")
        copy.wait_for("select count(*) = 2 from net.responses where state = 'succeeded'")
    assert copy.value("select count(*) from pgnet.claim") == 0
    assert set(sent(witness).values()) == {1}


def test_what_the_original_may_have_sent_once_at_most_is_unknown(
    shop: Database, witness: Running
) -> None:
    """A claim that was copied says that an attempt was begun."""
    for path in ("/begun", "/waiting"):
        shop.execute(
            "select net.http_request('POST', %s, options => '{\"delivery\": \"at_most_once\"}')",
            witness.url + path,
        )
        if path == "/begun":
            claim_all(shop)
    copy = template_copy(shop, f"{shop.name}_copy")
    try:
        copy.execute("select net.adopt_database()")
        copy.execute("call net.drain()")
        assert copy.rows("select state, url from net.responses order by id") == [
            ("unknown", f"{witness.url}/begun"),
            ("succeeded", f"{witness.url}/waiting"),
        ]
        assert sent(witness) == {"/waiting": 1}
    finally:
        copy.drop()


def test_a_copy_whose_queue_was_emptied_sends_only_its_own(
    copy: Database, witness: Running
) -> None:
    copy.execute("delete from net.http_request_queue")
    copy.execute("select net.adopt_database()")
    highest = copy.value("select last_value from net.http_request_queue_id_seq")
    assert request(copy, witness, "/of-the-copy") == highest == 3
    copy.execute("call net.drain()")
    assert sent(witness) == {"/of-the-copy": 1}


def test_the_doctor_knows_a_copy(copy: Database) -> None:
    ok, detail, hint = check(copy)["database"]
    assert not ok
    assert "It is remembered as the database with the oid" in detail
    assert "net.adopt_database()" in (hint or "")
    copy.execute("select net.adopt_database()")
    assert check(copy)["database"][0]


def test_renamed_it_is_the_same(shop: Database, witness: Running) -> None:
    """Name, owner and connection limit make no other database of it."""
    request(shop, witness, "/renamed")
    shop.close()
    with shop.cluster.connect() as connection:
        connection.execute(f"alter database {shop.name} rename to {shop.name}_renamed")
    renamed = Database(shop.cluster, f"{shop.name}_renamed")
    try:
        assert renamed.value("select pgnet.copy_fault()") is None
        renamed.execute("call net.drain()")
        assert sent(witness) == {"/renamed": 1}
    finally:
        renamed.drop()


def test_adopting_what_is_no_copy_takes_nothing_from_its_workers(
    shop: Database, witness: Running
) -> None:
    with shop.worker():
        shop.execute(
            "select net.http_get(%s, timeout_milliseconds => 10000)", witness.url + "/delay/1"
        )
        wait_sent(witness, "/delay/1")
        shop.execute("select net.adopt_database()")
        shop.wait_for("select count(*) from net.responses where state = 'succeeded'")
    assert sent(witness) == {"/delay/1": 1}
    assert shop.value("select attempts from net.responses") == 1


def test_adoption_is_the_owners(shop: Database) -> None:
    shop.execute("create role adopter login")
    try:
        with pytest.raises(errors.InsufficientPrivilege):
            shop.connect("adopter").execute("select net.adopt_database()")
    finally:
        shop.execute("drop role adopter")


# ---- the mode


def say_in_file(cluster: Cluster, mode: str) -> None:
    """Add a line to a file that postgresql.conf includes; nothing is reloaded."""
    with (cluster.data / "postgresql.auto.conf").open("a") as file:
        file.write(f"pgnet.mode = '{mode}'\n")


def modes(database: Database) -> list[tuple[str, str]]:
    return database.rows("select said, mode from pgnet.mode_sources()")


@pytest.fixture(scope="module")
def configured(make_cluster: Callable[..., Cluster]) -> Cluster:
    return make_cluster()


@pytest.fixture
def plain(configured: Cluster) -> Iterator[Database]:
    """A database of a server whose configuration may be changed."""
    database = configured.create_database()
    kept = (configured.data / "postgresql.auto.conf").read_text()
    yield database
    (configured.data / "postgresql.auto.conf").write_text(kept)
    database.drop()


def test_the_safest_mode_counts(plain: Database) -> None:
    cluster = plain.cluster
    assert plain.value("select pgnet.mode_in_force()") == "on"
    assert modes(plain) == [("on", "on")]
    say_in_file(cluster, "Record")
    assert plain.value("select pgnet.mode_in_force()") == "record"
    # a session cannot take it back, but make it safer
    for mode, result in (("on", "record"), ("off", "off"), ("", "record"), ("yes", "off")):
        plain.execute("select set_config('pgnet.mode', %s, false)", mode)
        assert plain.value("select pgnet.mode_in_force()") == result, mode
    plain.execute("reset pgnet.mode")
    plain.execute(f"alter database {plain.name} set pgnet.mode = 'on'")
    assert plain.connect().execute("select pgnet.mode_in_force()").fetchone() == ("record",)
    # the later line counts for the server, the safer one here
    say_in_file(cluster, "on")
    assert plain.value("select pgnet.mode_in_force()") == "record"
    ok, detail, _ = check(plain)["mode"]
    assert not ok
    assert re.search(rf"Record \({cluster.data}/postgresql.auto.conf, line \d+\)", detail)


def test_a_mode_that_is_none_is_said(plain: Database) -> None:
    assert check(plain)["mode"] == (True, "requests are sent", None)
    plain.execute("set pgnet.mode = 'ofv'")
    ok, detail, hint = check(plain)["mode"]
    assert (ok, detail.partition(":")[0]) == (False, "nothing is sent, requests wait")
    assert (hint or "").startswith("Neither on, record nor off, so it counts as off: ofv (")


def test_net_configure_cannot_make_it_less_safe(plain: Database) -> None:
    plain.execute("select net.configure('mode', 'record')")
    assert plain.value("select pgnet.mode_in_force()") == "record"
    say_in_file(plain.cluster, "off")
    plain.execute("select net.configure('mode', 'on')")
    assert plain.value("select pgnet.mode_in_force()") == "off"


def test_the_mode_on_the_command_line(plain: Database) -> None:
    for mode in ("on", "record", "off", "of", "false"):
        plain.close()
        plain.cluster.restart(**{"pgnet.mode": mode})
        expected = mode if mode in ("on", "record") else "off"
        assert plain.value("select pgnet.mode_in_force()") == expected
        plain.execute("set pgnet.mode = 'on'")
        assert plain.value("select pgnet.mode_in_force()") == expected
    plain.close()
    del plain.cluster.options["pgnet.mode"]
    plain.cluster.restart()


# ---- a base backup: a clone of the server has everything, as a standby has


@pytest.mark.parametrize("mode", [None, "record", "off"])
def test_a_clone_of_the_server(shop: Database, witness: Running, mode: str | None) -> None:
    """Nothing tells it from a standby that was promoted, but what its configuration says."""
    request(shop, witness, "/cloned")
    clone = shop.cluster.base_backup()
    try:
        if mode is not None:
            say_in_file(clone, mode)
        clone.start()
        cloned = Database(clone, shop.name)
        with cloned.worker():
            of_the_clone = request(cloned, witness, "/of-the-clone")
            if mode is None:
                wait_sent(witness, "/cloned", "/of-the-clone")
            elif mode == "record":
                cloned.wait_for("select count(*) = 2 from net.responses")
                message = "select error_msg from net.responses where id = %s"
                assert cloned.value(message, of_the_clone) == "Not sent: the mode is record."
            else:
                # a worker in the database, a setting, a session's wish: it stays so
                cloned.execute("select net.configure('mode', 'on')")
                with contextlib.closing(cloned.connect(options="-c pgnet.mode=on")) as session:
                    session.execute("call net.drain()")
                assert cloned.value("select count(*) from net.requests where state = 'ready'") == 2
        assert bool(sent(witness)) == (mode is None)
        # it is told to send after all: that takes a reload, what is safer counts at once
        if mode == "off":
            (clone.data / "postgresql.auto.conf").write_text("")
            assert cloned.value("select pgnet.mode_in_force()") == "off"
            cloned.execute("select pg_reload_conf()")
            cloned.wait_for("select pgnet.mode_in_force() = 'on'")
            cloned.execute("call net.drain()")
            assert set(sent(witness)) == {"/cloned", "/of-the-clone"}
        cloned.close()
    finally:
        clone.close()
    shop.execute("delete from net.http_request_queue")


def test_a_promoted_standby_sends(shop: Database, witness: Running) -> None:
    primary = shop.cluster
    standby = primary.base_backup(standby=True)
    try:
        standby.start()
        request(shop, witness, "/replicated")
        primary.wait_for_standby(standby)
        replica = Database(standby, shop.name)
        with replica.worker(seen=False) as worker:
            wait_until(worker.output, lambda text: "waiting for the database" in text, "it waits")
            assert sent(witness) == {}
            standby.promote()
            wait_sent(witness, "/replicated")
            replica.wait_for("select count(*) from net.responses where state = 'succeeded'")
        assert replica.value("select pgnet.copy_fault()") is None
        replica.close()
    finally:
        standby.close()
    shop.execute("delete from net.http_request_queue")


class Pair:
    """Two servers, one of which follows the other, and takes its place again and again."""

    def __init__(self, **options: object) -> None:
        self.primary = Cluster(**options)
        self.standby = self.primary

    def __enter__(self) -> Pair:
        self.primary.create()
        return self

    def __exit__(self, *_: object) -> None:
        self.primary.close()
        self.standby.close()

    def follow(self) -> None:
        """Have the other server follow the primary, which it is made anew of."""
        into = None if self.standby is self.primary else self.standby
        self.standby = self.primary.base_backup(into, standby=True)
        self.standby.start()
        with self.primary.connect() as connection:
            wait_until(
                lambda: connection.execute("select state from pg_stat_replication").fetchall(),
                lambda states: states == [("streaming",)],
                "the standby streams",
                timeout=30,
            )

    def fail_over(self, how: str) -> None:
        """Stop the primary in some way, and promote the standby."""
        if how == "kill":
            self.primary.kill()
        else:
            self.primary.stop(how)
        self.standby.promote()
        self.primary, self.standby = self.standby, self.primary

    @property
    def dsn(self) -> str:
        """Whichever of the two can be written to."""
        both = (self.primary, self.standby)
        hosts = ",".join(str(cluster.socket_directory) for cluster in both)
        ports = ",".join(str(cluster.port) for cluster in both)
        return (
            f"host={hosts} port={ports} dbname=shop user=postgres target_session_attrs=read-write"
        )


class Load:
    """Clients that commit requests and roll back others, at whichever server takes them."""

    def __init__(self, dsn: str, statement: str) -> None:
        self.dsn = dsn
        self.statement = statement
        self.committed: set[str] = set()
        self.rolled_back: set[str] = set()
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(f"client{n}",), daemon=True) for n in range(3)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, name: str) -> None:
        number = 0
        while not self._stopped.is_set():
            # what becomes of a commit whose connection breaks, app.sent says
            with (
                contextlib.suppress(psycopg.OperationalError),
                contextlib.closing(psycopg.connect(self.dsn, connect_timeout=5)) as connection,
            ):
                while not self._stopped.wait(0.05):
                    number += 1
                    self._transact(connection, f"{name}-{number}", number)
            self._stopped.wait(0.05)

    def _transact(self, connection: psycopg.Connection[Any], key: str, number: int) -> None:
        undone = number % 5 == 0
        if undone:
            self.rolled_back.add(key)
        connection.execute("insert into app.sent values (%s)", (key,))
        connection.execute(self.statement, {"key": key})
        if undone:
            connection.rollback()
        else:
            connection.commit()
            self.committed.add(key)

    def more(self, count: int) -> None:
        """Wait for so many more commits."""
        enough = len(self.committed) + count
        wait_until(
            lambda: len(self.committed), lambda n: n >= enough, "the clients commit", timeout=30
        )

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "a client hangs"


def keys_sent(witness: Running) -> Counter[str]:
    return Counter(entry["target"].partition("?")[2] for entry in witness.record())


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("synchronous", "times"), [(False, 10), (True, 3)], ids=["asynchronous", "synchronous"]
)
def test_a_standby_is_promoted_under_load(
    installed: None, witness: Running, synchronous: bool, times: int
) -> None:
    """Two workers move over each time; what was replicated is delivered, and ends once.

    Where a commit waits for the standby, that is all that was committed, and what is to be sent
    once at most is not sent by the other server again.
    """
    options = {"synchronous_standby_names": "*"} if synchronous else {}
    delivery = '{"delivery": "at_most_once"}' if synchronous else "{}"
    url = witness.url.replace("%", "%%")
    statement = (
        f"select net.http_request('POST', '{url}/delay/0.1?' || %(key)s, options => '{delivery}')"
    )
    with contextlib.ExitStack() as stack:
        pair = stack.enter_context(Pair())
        first = pair.primary.create_database(name="shop")
        first.execute("select net.allow_network('loopback')")
        first.execute("create schema app create table sent (key text primary key)")
        first.close()
        pair.follow()
        for cluster in (pair.primary, pair.standby):
            cluster.options.update(options)
            cluster.restart()
        workers = [
            stack.enter_context(
                pair.primary.worker("--dsn", pair.dsn, "--verbose", dbname="shop", seen=False)
            )
            for _ in range(2)
        ]
        load = Load(pair.dsn, statement)
        stack.callback(load.stop)
        for _, how in zip(range(times), itertools.cycle(["kill", "immediate", "fast"])):
            load.more(60)
            pair.fail_over(how)
            # a commit that waits for a standby needs one
            pair.follow()
            shop = Database(pair.primary, "shop")
            serving = "select count(*) from net.workers where state = 'running'"
            shop.wait_for(serving, predicate=lambda count: count == 2, timeout=20)
            shop.close()
        load.more(60)
        load.stop()

        shop = Database(pair.primary, "shop")
        shop.wait_for("select count(*) = 0 from net.http_request_queue", timeout=60)
        assert [worker.process.poll() for worker in workers] == [None, None]
        known = shop.value("select count(*) from pgnet.worker")
        delivered = {key for (key,) in shop.rows("select key from app.sent")}
        outcomes = shop.rows(
            "select split_part(url, '?', 2), state, attempts, error_msg from net._http_response"
        )
        assert shop.value("select count(*) from pgnet.claim") == 0
        shop.close()
    seen = keys_sent(witness)
    assert Counter(key for key, _, _, _ in outcomes) == Counter(delivered)
    assert not load.rolled_back & set(seen)
    if synchronous:
        assert load.committed <= delivered
        assert set(seen.values()) == {1}
        # each came back as itself
        assert known == len(workers)
        unsure = {key for key, state, _, _ in outcomes if state == "unknown"}
        assert {state for _, state, _, _ in outcomes} <= {"succeeded", "unknown"}
        assert delivered - set(seen) <= unsure
    else:
        assert {state for _, state, _, _ in outcomes} == {"succeeded"}
        assert delivered <= set(seen)
    print(
        f"{times} promotions, {len(delivered)} requests delivered,"
        f" {sum(seen.values()) - len(seen)} sent again,"
        f" {len(load.committed - delivered)} commits lost with a primary"
    )


# ---- dump and restore


def test_a_restored_dump_is_a_database_of_its_own(
    shop: Database, witness: Running, make_cluster: Callable[..., Cluster]
) -> None:
    request(shop, witness, "/pending")
    shop.execute(
        "select net.configure('ttl', '1 hour'), net.deny_host('example.com'),"
        """ net.configure_host('api.example.com', '{"http_version": "1.1"}')"""
    )
    shop.execute("""select net.configure_retry('mine', '{"max_attempts": 3}')""")
    whole, configured = ["--no-sync"], ["--data-only", "--table=pgnet.*"]
    for cluster, calls in (
        (shop.cluster, [whole]),
        (make_cluster(), [whole]),
        (shop.cluster, [["--schema-only"], configured]),
    ):
        dump = "".join(shop.cluster.run("pg_dump", *options, shop.name) for options in calls)
        assert "/pending" not in dump
        restored = cluster.create_database(extension=False)
        try:
            psql(restored, dump)
            assert restored.value("select pgnet.copy_fault()") is None
            for query in (
                "select value from net.settings where name = 'ttl'",
                "select kind, pattern, verdict from net.egress order by 1, 2",
                "table net.hosts",
                "select * from net.retry_policies where not built_in",
            ):
                assert restored.rows(query) == shop.rows(query)
            # two databases never give the same idempotency keys
            of_keys = "select key_namespace from pgnet.database"
            assert restored.value(of_keys) != shop.value(of_keys)
            assert request(restored, witness, "/own") == 1
            restored.execute("call net.drain()")
        finally:
            restored.drop()
    assert sent(witness) == {"/own": 3}


def psql(database: Database, script: str) -> None:
    finished = subprocess.run(
        [
            database.cluster.bindir / "psql",
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            database.dsn(),
        ],
        input=script,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr


# ---- pg_upgrade


def test_pg_upgrade(witness: Running, make_cluster: Callable[..., Cluster]) -> None:
    """The new server has another identity: adoption is a step of the upgrade. Nothing is lost."""
    old = make_cluster()
    database = old.create_database(name="shop")
    database.execute("select net.allow_network('loopback'), net.configure('ttl', '1 hour')")
    database.execute("create role buyer login")
    with database.connect("buyer") as buyer:
        buyer.execute("select net.http_get(%s)", (witness.url + "/before",))
    database.execute("call net.drain()")
    with database.connect("buyer") as buyer:
        buyer.execute("select net.http_get(%s)", (witness.url + "/pending",))
    namespace = database.value("select key_namespace from pgnet.database")
    database.close()
    old.stop()

    new = Cluster(**old.options)
    try:
        new.initialize()
        new.run(
            "pg_upgrade",
            f"--old-bindir={old.bindir}", f"--new-bindir={new.bindir}",
            f"--old-datadir={old.data}", f"--new-datadir={new.data}",
            f"--socketdir={new.directory}", "--username=postgres",
        )  # fmt: skip
        new.start()
        upgraded = Database(new, "shop")
        with pytest.raises(errors.ObjectNotInPrerequisiteState, match="is a copy"):
            upgraded.execute("call net.drain()")
        assert sent(witness) == {"/before": 1}
        upgraded.execute("select net.adopt_database()")
        upgraded.execute("call net.drain()")
        assert sent(witness) == {"/before": 1, "/pending": 1}
        # those who asked see their answers, and settings and keys are as they were
        with upgraded.connect("buyer") as buyer:
            states = buyer.execute("select state from net.responses order by id").fetchall()
        assert states == [("succeeded",), ("succeeded",)]
        assert upgraded.value("select value from net.settings where name = 'ttl'") == "1 hour"
        assert upgraded.value("select key_namespace from pgnet.database") == namespace
        assert request(upgraded, witness, "/after") == 3
        upgraded.close()
    finally:
        new.close()


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
    yield database
    database.drop()


@pytest.fixture
def subscriber(subscribing: Cluster) -> Iterator[Database]:
    database = subscribing.create_database()
    database.execute("select net.allow_network('loopback')")
    database.execute("create table orders (id int primary key)")
    yield database
    database.drop()


@contextlib.contextmanager
def subscribed(
    subscriber: Database, publisher: Database, tables: str = "all tables"
) -> Iterator[Callable[[], None]]:
    """A subscription to tables of the publisher; gives a function that waits for it."""
    publisher.execute(f"create publication everything for {tables}")
    name = f"of_{publisher.name}"
    subscriber.execute(
        f"create subscription {name} connection '{publisher.dsn()}' publication everything"
    )

    def caught_up() -> None:
        subscriber.wait_for(
            "select count(*) = 0 from pg_subscription_rel where srsubstate <> 'r'", timeout=30
        )
        position = publisher.value("select pg_current_wal_flush_lsn()")
        subscriber.wait_for(
            "select latest_end_lsn >= %s::pg_lsn from pg_stat_subscription"
            " where subname = %s and relid is null",
            position,
            name,
        )

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

        # ends: one by a worker, one cancelled, one that is deleted; changes and ends of its workers
        publisher.execute("select net.cancel(%s)", ids[0])
        publisher.execute("select pgnet.act_on_marks()")
        publisher.execute("delete from net.http_request_queue where id in (1, %s)", ids[1])
        publisher.execute("delete from pgnet.claim")
        publisher.execute("update pgnet.worker set gone_since = now()")
        publisher.execute("delete from pgnet.worker")
        publisher.execute("select net.configure('ttl', null)")
        publisher.execute("call net.drain()")
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
    """What a subscriber's own trigger requests, within the replication, is its own."""
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
    """As pg_createsubscriber makes one: it sends nothing that the original has sent."""
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
        session.add_notice_handler(lambda said: notices.append(said.message_primary or ""))
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
    """They work in sessions that say so. A row that brings its number is not sent; a call is."""
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
    """Each has a key, without which a publisher could not delete, and its trigger."""
    tables = fresh_database.rows(
        "select c.relname,"
        " exists (select from pg_constraint where conrelid = c.oid and contype = 'p'),"
        " array(select p.proname || t.tgenabled::text"
        "       from pg_trigger t join pg_proc p on p.oid = t.tgfoid"
        "       where t.tgrelid = c.oid and t.tgname = 'replicated')"
        " from pg_class c"
        " where c.relnamespace = any ('{net,pgnet}'::regnamespace[]) and c.relkind = 'r'"
    )
    taken = {"http_request_queue", "attempt", "_http_response", "failed"}
    assert len(tables) > 10
    for name, has_key, triggers in tables:
        assert has_key, name
        assert triggers == ["take_replicated_rowR" if name in taken else "keep_own_rowR"], name
