"""net.pause and net.resume: a paused host's requests wait, and those of all others go."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import errors

from servers.cluster import Cluster, Database
from servers.doctor import check
from servers.httpd import Running
from servers.nginx import Nginx
from servers.roles import login_roles
from servers.traffic import queue, seen, targets
from servers.workers import one_worker

# Rows and index entries of the queue that the current transaction has read.
READ = """
    select sum(pg_stat_get_xact_tuples_returned(c.oid))
    from pg_class c
    where c.relname like 'http_request_queue%' and c.relkind in ('r', 'i')
"""
REGISTER = "select worker_id from pgnet.register_worker('process')"
CLAIM = (
    "select id from pgnet.claim_requests(worker_id => %s::bigint, slots => 10, host_quota => 10,"
    " single_host_quota => 10, full_hosts => '{}', max_bytes => 1000000, after_host => '')"
    " where id is not null"
)


def authority(server: Running | Nginx) -> str:
    return server.url.removeprefix("http://")


class Claimer:
    """A session that claims as a worker does, and takes nothing: each claim is rolled back."""

    def __init__(self, database: Database) -> None:
        self._connection = database.connect(autocommit=False)
        row = self._connection.execute(REGISTER).fetchone()
        assert row is not None
        self._worker = row[0]
        self._connection.commit()
        self.read = 0

    def claim(self) -> list[int]:
        connection = self._connection
        before = connection.execute(READ).fetchone()
        taken = [id for (id,) in connection.execute(CLAIM, [self._worker]).fetchall()]
        after = connection.execute(READ).fetchone()
        assert before is not None
        assert after is not None
        self.read = after[0] - before[0]
        connection.rollback()
        return taken


def notices(connection: psycopg.Connection[Any]) -> list[str]:
    got: list[str] = []
    connection.add_notice_handler(lambda notice: got.append(notice.message_primary or ""))
    return got


# ---- what waits, and what goes


@pytest.mark.parametrize("kind", ["process", "backend"])
def test_a_paused_host_waits_and_another_one_does_not(
    database: Database, witness: Running, nginx: Nginx, kind: str
) -> None:
    assert database.value("select net.pause(%s, 'it is down')", authority(witness)) is True
    with one_worker(database, kind):
        waiting = queue(database, f"{witness.url}/body/#", 5)
        going = queue(database, f"{nginx.url}/?#", 5)
        database.wait_for("select count(*) = 5 from net._http_response")
        # A second claim, after which the first one is over.
        going += queue(database, f"{nginx.url}/?#", 5)
        database.wait_for("select count(*) = 10 from net._http_response")
        assert {id for (id,) in database.rows("select id from net._http_response")} == set(going)
        assert targets(witness) == []
        shown = database.rows(
            "select id, state::text, attempts, error_msg from net.requests"
            " where id = any (%s) order by id",
            waiting,
        )
        assert [row[:3] for row in shown] == [(id, "ready", 0) for id in waiting]
        assert all(" is paused since " in row[3] for row in shown)

        began = time.monotonic()
        assert database.value("select net.resume(%s)", authority(witness)) is True
        seen(witness, 5)
        assert time.monotonic() - began < 2
        database.wait_for("select count(*) = 15 from net._http_response")
    assert database.value("select max(attempts) from net._http_response") == 1


def test_what_is_in_flight_goes_on(database: Database, witness: Running) -> None:
    with database.worker():
        [id] = queue(database, f"{witness.url}/delay/1")
        seen(witness, 1)
        database.execute("select net.pause()")
        assert database.value("select state::text from net.wait(%s)", id) == "succeeded"


def test_a_retry_waits_too(database: Database, witness: Running) -> None:
    """The attempt that failed before the pause counts, and waiting does not."""
    with database.worker():
        id = database.value(
            "select net.http_request('GET', %s, retry => 'safe', max_attempts => 2)",
            f"{witness.url}/status/503",
        )
        seen(witness, 1)
        database.execute("select net.pause(%s)", authority(witness))
        database.wait_for("select due is null from net.http_request_queue")
        # A claim that finds it ready, and does not take it.
        assert Claimer(database).claim() == []
        assert len(targets(witness)) == 1
        database.execute("select net.resume(%s)", authority(witness))
        outcome = database.row("select state::text, attempts from net.wait(%s)", id)
    assert outcome == ("failed", 2)


def test_a_request_in_quarantine_waits_too(
    database: Database, witness: Running, nginx: Nginx
) -> None:
    """The worker does not begin a phase for it, in which others would wait."""
    database.execute("select net.pause(%s)", authority(witness))
    queue(database, f"{witness.url}/body/1")
    database.execute(
        "update net.http_request_queue set due = 'infinity', waits_since = clock_timestamp()"
    )
    with database.worker():
        queue(database, f"{nginx.url}/")
        database.wait_for("select count(*) = 1 from net._http_response", timeout=3)
        assert database.value("select pgnet.heartbeat(null) ->> 'quarantined'") == "false"
        assert targets(witness) == []
        database.execute("select net.resume(%s)", authority(witness))
        seen(witness, 1)


def test_a_drain_ends_beside_a_paused_host(
    database: Database, witness: Running, nginx: Nginx
) -> None:
    database.execute("select net.pause(%s)", authority(witness))
    queue(database, f"{witness.url}/body/#", 50)
    queue(database, f"{nginx.url}/?#", 50)
    began = time.monotonic()
    database.execute("call net.drain()")
    assert time.monotonic() - began < 5
    assert database.value("select count(*) from net._http_response") == 50
    assert targets(witness) == []


def test_a_claim_reads_no_request_of_a_paused_host(database: Database) -> None:
    database.execute(
        "insert into net.http_request_queue (method, url)"
        " select 'GET', 'http://a.example/' from generate_series(1, 100000)"
    )
    database.execute("select net.http_get('http://b.example/')")
    claimer = Claimer(database)
    read = {}
    for paused in ("a.example", "*"):
        database.execute("select net.pause(%s)", paused)
        assert len(claimer.claim()) == (paused != "*")
        read[paused] = claimer.read
    assert max(read.values()) < 50, read


# ---- which hosts


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("API.Example", "api.example"),
        (" api.example:8443 ", "api.example:8443"),
        ("münchen.example", "xn--mnchen-3ya.example"),
        ("127.0.0.1", "127.0.0.1"),
        ("2001:DB8::1", "[2001:db8::1]"),
        ("[2001:db8::1]:8443", "[2001:db8::1]:8443"),
        ("*", "*"),
    ],
)
def test_a_host_is_stored_as_urls_name_it(
    fresh_database: Database, given: str, stored: str
) -> None:
    assert fresh_database.value("select net.pause(%s)", given) is True
    assert fresh_database.value("select net.pause(%s, 'again')", given) is False
    assert fresh_database.rows("select host, reason, paused_by::text from pgnet.pause") == [
        (stored, "again", "postgres")
    ]
    assert fresh_database.value("select net.resume(%s)", given) is True
    assert fresh_database.value("select net.resume(%s)", given) is False


@pytest.mark.parametrize(
    "given",
    [
        *(None, "", " ", "https://a.example", "a.example/x", "a.example?x", "me@a.example"),
        *("*.a.example", "a b", "a.example:443", "a.example:80", "a.example:0", "a.example:x"),
    ],
)
def test_what_is_no_host_is_refused(fresh_database: Database, given: str | None) -> None:
    for function in ("pause", "resume"):
        with pytest.raises(errors.InvalidParameterValue) as caught:
            fresh_database.execute(f"select net.{function}(%s)", given)
        assert caught.value.diag.message_hint
    assert fresh_database.value("select count(*) from pgnet.pause") == 0


def test_a_name_stands_for_all_its_ports(fresh_database: Database) -> None:
    urls = [
        "http://a.example/",
        "http://a.example:8080/",
        "https://b.a.example/",
        "http://[::1]:8/",
    ]
    paused = "select array_agg(u) from unnest(%s::text[]) u where pgnet.is_paused(u)"
    claimer = Claimer(fresh_database)
    for url in urls:
        fresh_database.execute("select net.http_get(%s)", url)
    for host, expected in {
        "a.example": urls[:2],
        "a.example:8080": urls[1:2],
        "::1": urls[3:],
        "*": urls,
    }.items():
        fresh_database.execute("select net.pause(%s)", host)
        assert fresh_database.value(paused, urls) == expected
        # A claim sees it in the same way.
        left = fresh_database.rows(
            "select url from net.http_request_queue where id <> all (%s) order by id",
            claimer.claim(),
        )
        assert [url for (url,) in left] == expected
        fresh_database.execute("select net.resume(%s)", host)


def test_each_pause_has_an_end_of_its_own(fresh_database: Database) -> None:
    said = notices(fresh_database.connection)
    fresh_database.execute("select net.pause('a.example:8080')")
    fresh_database.execute("select net.pause()")
    assert fresh_database.value("select net.resume('a.example')") is False
    assert fresh_database.value("select net.resume()") is True
    assert said == [
        'host "a.example:8080" is paused: what is in flight goes on, all else waits',
        "every host is paused: what is in flight goes on, all else waits",
        'the pause of host "a.example" was not there; still paused: *, a.example:8080',
        "the pause of every host is over; still paused: a.example:8080",
    ]


# ---- seen, kept, refused


def test_the_doctor_names_it(database: Database) -> None:
    assert check(database)["pauses"] == (True, "no host is paused", None)
    for number in range(7):
        database.execute("select net.pause(%s, 'maintenance')", f"h{number}.example")
    ok, detail, hint = check(database)["pauses"]
    assert not ok
    assert detail.startswith("h0.example since ")
    assert " by postgres: maintenance; h1.example since " in detail
    assert detail.endswith("; and 2 more in net.hosts")
    assert hint is not None
    assert hint.startswith("select net.resume('h0.example'); select net.resume('h1.example');")


def test_the_view_of_hosts_shows_it(cluster: Cluster, fresh_database: Database) -> None:
    shown = (
        "select host, pause_reason from net.hosts where paused_since <= now()"
        ' order by host collate "C"'
    )
    fresh_database.execute("select net.configure_host('a.example:8080', '{\"concurrency\": 5}')")
    fresh_database.execute("select net.configure_host('b.example', '{\"concurrency\": 5}')")
    fresh_database.execute("select net.pause('a.example', 'it is down')")
    assert fresh_database.rows(shown) == [
        ("a.example", "it is down"),
        ("a.example:8080", "it is down"),
    ]
    with login_roles(cluster, ["pause_bob"]):
        bob = fresh_database.connect("pause_bob")
        assert bob.execute(shown).fetchall() == [("a.example:8080", "it is down")]
        fresh_database.execute("select net.pause('*', 'maintenance')")
        assert bob.execute(shown).fetchall() == [
            ("*", "maintenance"),
            ("a.example:8080", "it is down"),
            ("b.example", "maintenance"),
        ]
        bob.close()


def test_it_survives_a_crash_and_is_no_part_of_a_dump(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster()
    database = cluster.create_database()
    database.execute("select net.pause('a.example', 'crash')")
    dump = cluster.run("pg_dump", "--dbname", database.dsn())
    assert "a.example" not in dump
    database.close()
    cluster.kill()
    cluster.start()
    assert database.rows("select host, reason from pgnet.pause") == [("a.example", "crash")]
    database.drop()


def test_only_the_owner_may(cluster: Cluster, fresh_database: Database) -> None:
    with login_roles(cluster, ["pause_alice"]):
        alice = fresh_database.connect("pause_alice")
        fresh_database.execute("select net.pause('a.example')")
        # An everyday grant does not help.
        fresh_database.execute("grant execute on all functions in schema net, pgnet to pause_alice")
        fresh_database.execute("grant select, insert, delete on pgnet.pause to pause_alice")
        for call in ("net.pause('b.example')", "net.resume('a.example')"):
            with pytest.raises(errors.InsufficientPrivilege, match="is not the owner of pgnet"):
                alice.execute(f"select {call}")
        with pytest.raises(errors.InsufficientPrivilege):
            alice.execute("insert into pgnet.pause values ('b.example')")
        alice.execute("delete from pgnet.pause")
        alice.close()
        fresh_database.execute("drop owned by pause_alice")
    assert fresh_database.value("select count(*) from pgnet.pause") == 1
