"""The queue: which requests are sent when, how many at once, and that it stays cheap."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from servers import httpd
from servers.cluster import Database
from servers.httpd import Running
from servers.nginx import Nginx
from servers.recorder import Recorder
from servers.traffic import crowd
from servers.waiting import wait_until
from servers.workers import serving


@pytest.fixture(scope="module")
def witness() -> Iterator[Running]:
    with httpd.running() as running:
        yield running


@pytest.fixture(scope="module")
def other_witness() -> Iterator[Running]:
    """A second host: another port."""
    with httpd.running() as running:
        yield running


@pytest.fixture
def recorder(database: Database) -> Recorder:
    return Recorder(database)


def insert(database: Database, url: str, count: int, timeout: int = 600_000) -> None:
    """Queue by hand, as the owner may."""
    database.execute(
        "insert into net.http_request_queue (method, url, timeout_milliseconds)"
        " select 'GET', %s || n, %s from generate_series(1, %s) n",
        url,
        timeout,
        count,
    )


def wait_for_open(witness: Running, count: int, timeout: float = 10.0) -> None:
    wait_until(
        witness.open_connections, lambda n: n == count, f"{count} requests at the server", timeout
    )


# ---- hosts take turns


def test_one_row_is_sent_at_once_behind_a_hundred_thousand(
    database: Database, witness: Running, nginx: Nginx
) -> None:
    crowd(database)
    insert(database, f"{witness.url}/delay/600?", 100_000)
    with serving(database):
        wait_until(witness.open_connections, lambda n: n > 500, "the worker is busy")
        started = time.monotonic()
        database.execute("select net.http_get(%s)", f"{nginx.url}/?one")
        database.wait_for("select count(*) = 1 from net._http_response where status_code = 200")
        assert time.monotonic() - started < 1
        # a place further back in line is no different
        for number in range(5):
            database.execute("select net.http_get(%s)", f"{nginx.url}/?{number}")
        database.wait_for("select count(*) = 6 from net._http_response", timeout=1)
    assert len(nginx.requests()) == 6


def test_one_row_is_sent_at_once_while_a_long_queue_is_served(
    database: Database, witness: Running, nginx: Nginx
) -> None:
    """The long queue's requests end quickly: slots are freed all the time."""
    insert(database, f"{nginx.url}/?", 10_000)
    with serving(database):
        database.wait_for("select count(*) > 100 from net._http_response")
        database.execute("select net.http_get(%s)", f"{witness.url}/body/one")
        found = database.wait_for("select id from net._http_response where content = 'one'")
        assert database.value("select count(*) > 0 from net.http_request_queue"), (
            "the long queue was over before: this shows nothing"
        )
        assert found


def test_fast_requests_behind_hung_ones(database: Database, witness: Running, nginx: Nginx) -> None:
    crowd(database)
    insert(database, f"{witness.url}/delay/600?", 300)
    with serving(database):
        wait_for_open(witness, 300)
        delays = []
        for number in range(20):
            started = time.monotonic()
            database.execute("select net.http_get(%s)", f"{nginx.url}/?{number}")
            database.wait_for("select count(*) = %s from net._http_response", number + 1)
            delays.append(time.monotonic() - started)
        assert max(delays) < 0.5, delays


def test_a_hung_host_leaves_slots_to_others(
    database: Database, witness: Running, nginx: Nginx
) -> None:
    """The hung host has more requests than there are slots."""
    database.execute("select net.configure('concurrency', '40')")
    insert(database, f"{witness.url}/delay/600?", 300)
    with serving(database):
        wait_for_open(witness, 30)
        for number in range(5):
            database.execute("select net.http_get(%s)", f"{nginx.url}/?{number}")
            database.wait_for("select count(*) = %s from net._http_response", number + 1, timeout=2)
        # and all that time no more than its share
        assert witness.open_connections() == 30


# ---- how much at once


def test_concurrency_is_respected(
    database: Database, witness: Running, other_witness: Running
) -> None:
    database.execute("select net.configure('concurrency', '20')")
    insert(database, f"{witness.url}/delay/600?", 50)
    insert(database, f"{other_witness.url}/delay/600?", 50)
    with serving(database):
        wait_until(
            lambda: witness.open_connections() + other_witness.open_connections(),
            lambda n: n == 20,
            "twenty requests at the servers",
        )
        # it has nothing more to claim for: what it holds is what is at the servers
        database.execute("select net.wake()")
        assert database.value("select count(*) from pgnet.claim") == 20
        assert witness.open_connections() + other_witness.open_connections() == 20
        assert witness.open_connections() >= 5
        assert other_witness.open_connections() >= 5


def test_the_process_has_an_option_for_it(
    database: Database, witness: Running, other_witness: Running
) -> None:
    insert(database, f"{witness.url}/delay/600?", 10)
    insert(database, f"{other_witness.url}/delay/600?", 10)
    with database.worker("--concurrency", "4", "--grace", "0"):
        wait_until(
            lambda: witness.open_connections() + other_witness.open_connections(),
            lambda n: n == 4,
            "four requests at the servers",
        )
        assert database.value("select count(*) from pgnet.claim") == 4


def test_batch_size_is_respected(database: Database, nginx: Nginx) -> None:
    database.execute("select net.configure('batch_size', '7')")
    insert(database, f"{nginx.url}/?", 100)
    database.execute(
        """
        create table public.batch (kind text, xid xid8 default pg_current_xact_id(), size bigint);
        create function public.count_batch() returns trigger language plpgsql as $$
        begin
            insert into public.batch (kind, size) select tg_argv[0], count(*) from batch_rows;
            return null;
        end $$;
        create trigger count_claims after insert on pgnet.claim referencing new table as batch_rows
            for each statement execute function public.count_batch('claimed');
        create trigger count_outcomes after insert on net._http_response
            referencing new table as batch_rows
            for each statement execute function public.count_batch('recorded');
        """
    )
    database.execute("call net.drain()")
    assert database.value("select count(*) from net._http_response") == 100
    sizes = database.rows(
        "select kind, max(total), sum(total) from"
        " (select kind, xid, sum(size) as total from public.batch group by 1, 2) b group by 1"
        " order by 1"
    )
    assert [(kind, total) for kind, _, total in sizes] == [("claimed", 100), ("recorded", 100)]
    assert max(largest for _, largest, _ in sizes) <= 7


def test_the_bytes_of_bodies_are_bounded(database: Database, recorder: Recorder) -> None:
    database.execute(
        "insert into net.http_request_queue (method, url, body)"
        " select 'POST', 'http://unsent.example/' || n, convert_to(repeat('x', 400), 'UTF8')"
        " from generate_series(1, 10) n"
    )
    # the one that crosses the bound is still taken
    assert len(recorder.claim(max_bytes=1000)) == 3
    assert len(recorder.claim(max_bytes=1)) == 1
    assert len(recorder.claim(max_bytes=1 << 20)) == 6


def test_smaller_priorities_first(database: Database, recorder: Recorder) -> None:
    database.execute(
        "insert into net.http_request_queue (method, url, priority)"
        " select 'GET', 'http://unsent.example/' || n, -n from generate_series(1, 6) n"
    )
    first = recorder.claim(2)
    second = recorder.claim(4)
    assert set(first) == {5, 6}
    assert set(second) == {1, 2, 3, 4}


def test_hosts_take_turns_from_claim_to_claim(database: Database, recorder: Recorder) -> None:
    for host in "abc":
        insert(database, f"http://{host}.example/", 100)
    taken: Counter[str] = Counter()
    after = ""
    for _ in range(6):
        hosts = [
            host
            for (host,) in recorder.connection.execute(
                "select host from pgnet.claim_requests("
                "worker_id => %s::bigint, slots => 5, host_quota => 5,"
                " single_host_quota => 5, full_hosts => '{}', max_bytes => 1000, after_host => %s)",
                (recorder.id, after),
            ).fetchall()
        ]
        after = hosts[-1]
        taken.update(hosts)
    assert taken == {"a.example": 10, "b.example": 10, "c.example": 10}


def test_roles_take_turns_at_a_host(database: Database, recorder: Recorder) -> None:
    """That holds whatever priority a role gives its requests, and however few slots there are."""
    for role, priority, count in ("greedy", -32768, 300), ("patient", 32767, 5):
        database.execute(f"create role {role}_{database.name}")
        database.execute(f"set role {role}_{database.name}")
        database.execute(
            "insert into net.http_request_queue (method, url, priority)"
            " select 'GET', 'http://a.example/' || n, %s from generate_series(1, %s) n",
            priority,
            count,
        )
        database.execute("reset role")
    taken: Counter[str] = Counter()
    place: tuple[str, int] = ("", 0)
    for slots in (1, 1, 1, 1, 4, 20):
        rows = recorder.connection.execute(
            "select host, role, role::regrole::text"
            " from pgnet.claim_requests(%s, %s, %s, %s, '{}', 100000,"
            " %s, false, %s) where id is not null",
            (recorder.id, slots, slots, slots, *place),
        ).fetchall()
        place = rows[-1][:2]
        taken.update(role.partition("_")[0] for _host, _oid, role in rows)
        if slots == 1:
            assert abs(taken["greedy"] - taken["patient"]) <= 1
    assert taken["patient"] == 5
    # The requests of one role go by their priority.
    database.execute("delete from pgnet.claim")
    database.execute("update net.http_request_queue set priority = -1 where id = 200")
    assert set(recorder.claim(1)) != {200}


def test_roles_share_what_a_host_may_have(database: Database, recorder: Recorder) -> None:
    """With one free slot at a time, chance decides between the roles."""
    for role in "greedy", "patient":
        database.execute(f"create role {role}_{database.name}")
        database.execute(f"set role {role}_{database.name}")
        for host in "ab":
            insert(database, f"http://{host}.example/", 50)
        database.execute("reset role")
    taken: Counter[str] = Counter()
    for _ in range(40):
        rows = recorder.connection.execute(
            "select role::regrole::text, count(*) over (partition by host)"
            " from pgnet.claim_requests(%s, 100, 1, 1, '{}', 100000, '') where id is not null",
            (recorder.id,),
        ).fetchall()
        assert [number for _role, number in rows] == [1, 1]
        taken.update(role.partition("_")[0] for role, _number in rows)
    assert min(taken["greedy"], taken["patient"]) >= 15


def test_a_claim_looks_at_so_many_hosts_at_most(database: Database, recorder: Recorder) -> None:
    database.execute(
        "insert into net.http_request_queue (method, url)"
        " select 'GET', format('http://h%s.example/', n) from generate_series(1, 5000) n"
    )
    # Others have them all in flight but one.
    database.execute(
        "insert into pgnet.claim (id, host, worker, token, attempt, deadline, role)"
        " select id, '', 1, gen_random_uuid(), 1, now() + interval '1 hour', requested_by"
        ' from net.http_request_queue order by pgnet.host_of_url(url) collate "C" offset 1'
    )

    def claim(after: tuple[Any, ...], until: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        return recorder.connection.execute(
            "select id, host, role"
            " from pgnet.claim_requests(%s, 10, 10, 10, '{}', 1000, %s, false, %s, %s, %s)",
            (recorder.id, *after, *until),
        ).fetchall()

    began: tuple[Any, ...] = ("h10", 0)
    place: tuple[Any, ...] = began
    until: tuple[Any, ...] = (None, 0)
    looks, found = 0, []
    while True:
        rows = claim(place, until)
        looks += 1
        found += [id for id, _host, _role in rows if id is not None]
        if not rows:
            break
        until, place = began, rows[-1][1:]
    # Once around, and it was there.
    assert len(found) == 1
    assert looks == 6


def test_a_worker_finds_what_is_behind_many_hosts(
    database: Database, nginx: Nginx, recorder: Recorder
) -> None:
    """And ends, where it is to, when it has been everywhere."""
    database.execute(
        "insert into net.http_request_queue (method, url)"
        " select 'GET', format('http://h%s.example/', n) from generate_series(1, 3000) n"
    )
    database.execute(
        "insert into pgnet.claim (id, host, worker, token, attempt, deadline, role)"
        " select q.id, '', %s, gen_random_uuid(), 1, now() + interval '1 hour', q.requested_by"
        " from net.http_request_queue q",
        recorder.id,
    )
    database.execute(f"select net.http_get('{nginx.url.replace('127.0.0.1', 'localhost')}/')")
    database.execute("call net.drain()")
    assert database.rows("select status_code from net._http_response") == [(200,)]


def test_a_full_host_gets_none(database: Database, recorder: Recorder) -> None:
    for host in "ab":
        insert(database, f"http://{host}.example/", 10)
    rows = recorder.connection.execute(
        "select distinct host from pgnet.claim_requests(worker_id => %s::bigint, slots => 50,"
        " host_quota => 50, single_host_quota => 50, full_hosts => '{a.example}',"
        " max_bytes => 1000, after_host => '')",
        (recorder.id,),
    ).fetchall()
    assert rows == [("b.example",)]


# ---- it stays cheap


def scans(connection: psycopg.Connection[Any]) -> dict[str, int]:
    connection.execute("select pg_stat_force_next_flush()")
    rows = connection.execute(
        "select relname, coalesce(seq_scan, 0) from pg_stat_user_tables"
        " where schemaname in ('net', 'pgnet')"
        " and relname in ('http_request_queue', 'claim', '_http_response', 'attempt')"
    ).fetchall()
    return dict(rows)


def fetched(connection: psycopg.Connection[Any]) -> int:
    connection.execute("select pg_stat_force_next_flush()")
    row = connection.execute(
        "select idx_tup_fetch from pg_stat_user_tables where relname = 'http_request_queue'"
    ).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("analyzed", ["empty", "vacuumed", "full", "slow disks"])
def test_plans_do_not_depend_on_statistics_and_costs(
    database: Database, recorder: Recorder, analyzed: str
) -> None:
    """Index look-ups of what is taken, whatever statistics and costs say."""
    database.execute("alter table net.http_request_queue set (autovacuum_enabled = off)")
    database.execute("alter table pgnet.claim set (autovacuum_enabled = off)")
    if analyzed == "empty":
        database.execute("analyze net.http_request_queue, pgnet.claim, net._http_response")
    # the plans of this session are made now
    insert(database, "http://first.example/", 3 if analyzed in ("empty", "full") else 14_000)
    if analyzed == "slow disks":
        recorder.connection.execute("set random_page_cost = 100")
    if analyzed == "vacuumed":
        database.execute("vacuum net.http_request_queue, pgnet.claim")
    recorder.record(recorder.claim())
    insert(database, "http://unsent.example/", 50_000)
    insert(database, "http://other.example/", 10)
    if analyzed == "full":
        database.execute("analyze net.http_request_queue, pgnet.claim, net._http_response")
    before, fetched_before = scans(recorder.connection), fetched(recorder.connection)
    durations = []
    for _ in range(20):
        started = time.monotonic()
        claims = recorder.claim(500)
        claimed = time.monotonic()
        recorder.record(claims)
        durations.append((claimed - started, time.monotonic() - claimed))
        assert len(claims) == 500
    assert scans(recorder.connection) == before
    # a few looks at each row that is taken, and none at the forty thousand that stay
    assert fetched(recorder.connection) - fetched_before < 20 * 500 * 10
    # half a second for 500 rows would be a scan of all of them for each
    assert max(claim for claim, _ in durations) < 0.25, durations
    assert max(record for _, record in durations) < 0.5, durations


def test_claims_stay_cheap_behind_many_claimed_rows(database: Database, recorder: Recorder) -> None:
    """Twenty thousand of a host are in flight elsewhere; another host's one row is found."""
    insert(database, "http://busy.example/", 20_000)
    for _ in range(10):
        assert len(recorder.claim(2000)) == 2000
    insert(database, "http://quiet.example/", 1)
    before = scans(recorder.connection)
    started = time.monotonic()
    assert len(recorder.claim(500)) == 1
    assert time.monotonic() - started < 0.5
    assert scans(recorder.connection) == before


def test_queue_rows_are_never_updated(database: Database, nginx: Nginx) -> None:
    insert(database, f"{nginx.url}/?", 200)
    connection = database.connect()
    connection.execute("call net.drain()")
    connection.execute("select pg_stat_force_next_flush()")
    connection.execute("select 1")
    database.wait_for(
        "select n_tup_del >= 200 from pg_stat_user_tables where relname = 'http_request_queue'"
    )
    assert database.rows(
        "select relname, n_tup_upd from pg_stat_user_tables where schemaname in ('net', 'pgnet')"
        " and relname in ('http_request_queue', 'claim', '_http_response') order by 1"
    ) == [("_http_response", 0), ("claim", 0), ("http_request_queue", 0)]


def test_what_is_deleted_while_it_waits_is_not_sent(database: Database, nginx: Nginx) -> None:
    insert(database, f"{nginx.url}/?", 10)
    database.execute("delete from net.http_request_queue where id % 2 = 0")
    database.execute("call net.drain()")
    assert database.value("select count(*) from net._http_response") == 5
    wait_until(lambda: len(nginx.requests()), lambda n: n == 5, "five requests at the server")


def test_nothing_that_workers_call_is_compiled_by_the_jit(database: Database) -> None:
    """Compiling takes longer than all of the work: the estimates of these queries are high."""
    compiled = database.rows(
        """
        select proname from pg_proc
        where pronamespace = any ('{net,pgnet}'::regnamespace[])
            -- Where the planner finds nothing but what is switched off, the estimate is 10^10.
            and (proname in ('claim_requests', 'store_outcomes', 'claimed_secrets', 'heartbeat',
                    'rescue_requests', 'expire')
                or 'enable_seqscan=off' = any (proconfig))
            and not coalesce('jit=off' = any (proconfig), false)
        """
    )
    assert compiled == []
    database.execute("set jit_above_cost = 0")
    database.execute("call net.drain()")
    began = time.monotonic()
    for _ in range(5):
        database.execute("call net.drain()")
    assert time.monotonic() - began < 5 * 0.2
