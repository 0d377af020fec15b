"""Clones do not send what the original sends: template copies, base backups, standbys; the mode."""

from __future__ import annotations

import contextlib
import itertools
import re
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors

from servers.cluster import Cluster, Database
from servers.copies import claim_all, request, say_in_file, sent, template_copy, wait_sent
from servers.doctor import check
from servers.httpd import Running
from servers.waiting import wait_until


def test_a_template_copy_is_not_served(shop: Database, copy: Database, witness: Running) -> None:
    for call in ("call net.work()", "call net.drain()"):
        with pytest.raises(errors.ObjectNotInPrerequisiteState) as refused:
            copy.execute(call)
        diag = refused.value.diag
        assert (diag.message_primary or "").endswith(
            f'the database "{copy.name}" is a copy: no worker serves it before it is adopted'
        )
        assert f'which is "{shop.name}"' in (diag.message_detail or "")
        assert "net.adopt_database()" in (diag.message_hint or "")
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


def modes(database: Database) -> list[tuple[str, str]]:
    return database.rows("select configured, mode from pgnet.mode_sources()")


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
    """Only its configuration tells a clone from a standby that was promoted."""
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
        """Make the other server anew from the primary, as its standby."""
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


def shop_with_a_standby(pair: Pair, options: dict[str, str]) -> None:
    """Create the clients' database at the primary, and have the standby follow it."""
    shop = pair.primary.create_database(name="shop")
    shop.execute("select net.allow_network('loopback')")
    shop.execute("create schema app create table sent (key text primary key)")
    shop.close()
    pair.follow()
    for cluster in (pair.primary, pair.standby):
        cluster.options.update(options)
        cluster.restart()


def promote(pair: Pair, how: str) -> None:
    """Fail over to the standby, until both workers serve there."""
    pair.fail_over(how)
    # A commit that waits for a standby needs one.
    pair.follow()
    shop = Database(pair.primary, "shop")
    serving = "select count(*) from net.workers where state = 'running'"
    shop.wait_for(serving, predicate=lambda count: count == 2, timeout=20)
    shop.close()


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
        shop_with_a_standby(pair, options)
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
            promote(pair, how)
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
