"""A role sees and steers its own requests only, and speaks for nobody else."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.types.json import Jsonb

from servers.cluster import Database
from servers.nginx import Nginx
from servers.rights import READS, URL, value


def test_a_role_sees_its_own(served: Database, nginx: Nginx) -> None:
    own = {}
    with ExitStack() as stack:
        connections = {role: served.connect(role) for role in ("rights_alice", "rights_bob")}
        for role, connection in connections.items():
            stack.callback(connection.close)
            done = value(connection, "select net.http_get(%s)", nginx.url)
            failed = value(connection, "select net.http_get(%s)", f"{nginx.url}/status/500")
            slow = value(
                connection,
                "select net.http_get(%s, timeout_milliseconds => 20000)",
                f"{nginx.url}/slow?s=5",
            )
            own[role] = {done, failed, slow}
            connection.execute("select net.wait_all(array[%s, %s]::bigint[])", (done, failed))
        for role, connection in connections.items():
            for read in READS:
                found = {number for (number,) in connection.execute(read).fetchall()}
                assert found <= own[role], read
            assert {n for (n,) in connection.execute("select id from net.requests")} == own[role]
            other = max(own["rights_bob" if role == "rights_alice" else "rights_alice"])
            for number in (other, other - 1, other - 2):
                assert value(connection, "select (net.http_get_result(%s)).message", number) == (
                    "request matching request_id not found"
                )
                with pytest.raises(errors.NoDataFound):
                    connection.execute("select net.wait(%s)", (number,))
                with pytest.raises(errors.NoDataFound):
                    connection.execute("select net.wait_all(array[%s::bigint])", (number,))
                assert value(connection, "select net._await_response(%s)", number) is False
                assert value(connection, "select net.cancel(%s)", number) is False
                assert value(connection, "select net.forget(%s)", number) is False
                assert value(connection, "select (pgnet.outcome_so_far(%s)).id", number) is None
        assert served.value("select count(*) from net.requests") == 6
        for role, connection in connections.items():
            assert value(connection, "select net.cancel(%s)", max(own[role])) is True


def test_a_leaking_condition_sees_nothing(own: Database) -> None:
    """A cheap function that tells what it is given is not run on another's rows."""
    own.connect("rights_bob").execute(
        "select net.http_get('http://localhost/hunter2', headers => '{\"A\": \"hunter2\"}')"
    )
    own.execute(
        """
        insert into net._http_response (
            id, state, content, attempts, method, url, requested_by, requested
        ) values (7, 'failed', 'hunter2', 1, 'GET', 'hunter2', 'rights_bob', now());
        insert into pgnet.failed (id, state, method, url, requested_by, created, priority, attempts)
        values (7, 'failed', 'GET', 'hunter2', 'rights_bob', now(), 0, 1);
        insert into pgnet.stubbed (
            request_id, attempt, requested_by, method, url, requested, url_pattern
        ) values (7, 1, 'rights_bob', 'GET', 'hunter2', now(), '*');
        insert into pgnet.mark (request_id, requested_by, action) values (7, 'rights_bob', 'retry');
        """
    )
    alice = own.connect("rights_alice")
    told: list[str] = []
    alice.add_notice_handler(lambda notice: told.append(notice.message_primary or ""))
    alice.execute(
        """
        create function tell(word anyelement) returns boolean language plpgsql cost 0.0000001 as $$
        begin raise notice 'told %', word; return true; end $$
        """
    )
    for relation, column in (
        ("net.http_request_queue", "url"),
        ("net._http_response", "content"),
        ("pgnet.failed", "url"),
        ("net.requests", "url"),
        ("net.responses", "content"),
        ("net.failures", "url"),
        ("pgnet.stubbed", "url"),
        ("net.recorded", "url"),
        ("pgnet.mark", "request_id"),
    ):
        rows = alice.execute(f"select {column} from {relation} where tell({column})").fetchall()
        assert (relation, rows, told) == (relation, [], [])


def test_forging_the_role(own: Database) -> None:
    alice = own.connect("rights_alice")
    for statement in (
        "insert into net.http_request_queue (method, url, requested_by)"
        " values ('GET', %s, 'rights_bob')",
        "insert into net.http_request_queue (method, url, requested_by)"
        " values ('GET', %s, current_user::regrole)",
        "insert into net.http_request_queue (id, method, url) values (5, 'GET', %s)",
        "insert into net.http_request_queue (method, url, created) values ('GET', %s, now())",
        "insert into pgnet.failed (id, url) values (5, %s)",
        "insert into pgnet.mark (request_id, requested_by, action)"
        " values (length(%s), 'rights_bob', 'cancel')",
        "insert into pgnet.mark (request_id, action, done) values (length(%s), 'retry', true)",
        "update pgnet.mark set done = true where action = %s",
        "insert into net._http_response (id, url) values (5, %s)",
        "update net._http_response set url = %s",
        "update pgnet.failed set url = %s",
    ):
        with pytest.raises(errors.InsufficientPrivilege):
            alice.execute(statement, (URL,))
    for statement in (
        "select * from pgnet.ready_request",
        "select token from pgnet.claim",
        "select secret from pgnet.worker",
        "truncate net.http_request_queue",
        "create trigger t after insert on net.http_request_queue for each row"
        " execute function suppress_redundant_updates_trigger()",
        "create trigger t after insert on pgnet.mark for each row"
        " execute function suppress_redundant_updates_trigger()",
        "delete from net.http_request_queue",
        "delete from net._http_response",
        "delete from pgnet.failed",
        "delete from pgnet.mark",
        "select * from pgnet.mark for key share",
        "select setval('net.http_request_queue_id_seq', 1)",
        "select nextval('net.http_request_queue_id_seq')",
        "lock table pgnet.claim in share mode",
        "create table net.mine ()",
        "alter table net.http_request_queue disable row level security",
        "set role rights_bob",
    ):
        with (
            pytest.raises((errors.InsufficientPrivilege, errors.WrongObjectType)),
            alice.transaction(),
        ):
            alice.execute(statement)
    request_id = value(
        alice,
        "insert into net.http_request_queue (method, url) values ('GET', %s) returning id",
        URL,
    )
    assert own.rows("select id, requested_by::text from net.http_request_queue") == [
        (request_id, "rights_alice")
    ]


def test_what_comes_past_the_functions_is_checked_when_it_is_sent(served: Database) -> None:
    alice = served.connect("rights_alice")
    for columns, values in (
        ("method, url", ("GET", "http://user:hunter2@127.0.0.1/")),
        ("method, url", ("GET", "ftp://127.0.0.1/")),
        ("method, url", ("GET", "http://127.0.0.1/\r\nX: y")),
        ("method, url", ("CONNECT", "http://127.0.0.1/")),
        ("method, url", ("GET /", "http://127.0.0.1/")),
        ("method, url, headers", ("GET", "http://127.0.0.1/", '{"Host": "inner"}')),
        ("method, url, headers", ("GET", "http://127.0.0.1/", '{"A": "b\\r\\nC: d"}')),
        ("method, url, headers", ("GET", "http://127.0.0.1/", '{"Transfer-Encoding": "chunked"}')),
        ("method, url, timeout_milliseconds", ("GET", "http://127.0.0.1/", -1)),
    ):
        marks = ", ".join(["%s"] * len(values))
        try:
            request_id = value(
                alice,
                f"insert into net.http_request_queue ({columns}) values ({marks}) returning id",
                *values,
            )
        except psycopg.IntegrityError:
            continue
        alice.execute("select net.wake()")
        row = alice.execute(
            "select (o).state::text, (o).status_code, (o).error_msg from net.wait(%s) o",
            (request_id,),
        ).fetchone()
        assert row is not None
        assert row[:2] == ("failed", None)
        assert "hunter2" not in row[2]
        assert "connect" not in row[2]


def test_deleting_where_it_was_granted(own: Database) -> None:
    """As in pg_net, but a role deletes its own rows only; a deleted request has no outcome."""
    bobs = value(own.connect("rights_bob"), "select net.http_get(%s)", URL)
    own.execute("grant delete on net.http_request_queue, net._http_response to rights_alice")
    alice = own.connect("rights_alice")
    mine = value(alice, "select net.http_get(%s)", URL)
    assert alice.execute("delete from net.http_request_queue").rowcount == 1
    assert alice.execute("delete from net._http_response").rowcount == 0
    assert own.rows("select id from net.http_request_queue") == [(bobs,)]
    assert bobs < mine


def test_statistics_hold_no_samples(own: Database) -> None:
    """ANALYZE keeps frequent values, and a role that reads all data sees them past row security."""
    canary = "rights-canary"
    own.execute("select net.set_secret('k', %s), net.set_secret('l', %s)", canary, canary)
    own.connect("rights_bob").execute(
        "select net.http_request('POST', %(u)s, body => %(b)s, headers => %(b)s, context => %(b)s)"
        " from generate_series(1, 20)",
        {"u": f"{URL}?{canary}", "b": Jsonb({"X": canary})},
    )
    own.execute(
        "insert into pgnet.failed (id, state, method, url, headers, body, context, requested_by,"
        " created, priority, attempts)"
        " select id, 'failed', method, url, headers, body, context, requested_by, created, 0, 1"
        " from net.http_request_queue"
    )
    own.execute(
        "insert into pgnet.stubbed (request_id, attempt, requested_by, method, url, headers, body,"
        " context, options, requested, url_pattern)"
        " select id, 1, requested_by, method, url, headers, body, context, context, created, '*'"
        " from net.http_request_queue"
    )
    own.execute(
        "insert into net._http_response (id, state, attempts, method, url, requested_by, requested,"
        " headers, header_list, content, content_bytes, context, final_url)"
        " select id, 'failed', 1, 'POST', url, requested_by, created, headers, headers, url, body,"
        " context, url from net.http_request_queue"
    )
    own.execute("analyze")
    own.execute("grant pg_read_all_data to rights_alice")
    alice = own.connect("rights_alice")
    assert value(alice, "select count(*) from net.http_request_queue") == 0
    assert value(alice, "select count(*) > 100 from pg_statistic")
    told = "s::text like %s or s::text like '%%' || encode(%s, 'hex') || '%%'"
    found = alice.execute(
        f"select starelid::regclass, staattnum from pg_statistic s where {told}",
        (f"%{canary}%", canary.encode()),
    ).fetchall()
    assert found == []


def test_set_role_books_to_the_current_role(own: Database) -> None:
    own.execute("set role rights_alice")
    request_id = own.value("select net.http_get(%s)", URL)
    own.execute("reset role")
    assert own.rows("select id, requested_by::text from net.http_request_queue") == [
        (request_id, "rights_alice")
    ]
    assert value(own.connect("rights_alice"), "select count(*) from net.requests") == 1


# ---- a token posted on behalf of somebody who must not see it


def post_token_by_trigger(vault: psycopg.Connection[Any], url: str) -> None:
    """A table whose INSERT posts the vault's token with the vault's rights."""
    vault.execute("create table if not exists public.orders (id int)")
    vault.execute("grant insert, select on public.orders to rights_alice")
    vault.execute(
        sql.SQL(
            """
            create function public.post_token() returns trigger
            language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
            begin
                perform net.http_post({}, pg_catalog.jsonb_build_object('token', 'hunter2'),
                    params => '{{"key": "hunter2"}}',
                    headers => '{{"Authorization": "Bearer hunter2"}}');
                return new;
            end $$
            """
        ).format(url)
    )
    vault.execute(
        "create trigger post_token before insert on public.orders"
        " for each row execute function public.post_token()"
    )


def knows_nothing_of(alice: psycopg.Connection[Any], ids: list[int]) -> None:
    """No function tells a role anything of these requests, and no relation shows them."""
    for request_id in ids:
        assert value(alice, "select (net.http_get_result(%s)).message", request_id) == (
            "request matching request_id not found"
        )
        for call in ("net.wait(%s)", "net.wait_all(array[%s::bigint])"):
            with pytest.raises(errors.NoDataFound):
                alice.execute(f"select {call}", (request_id,))
        assert value(alice, "select net.cancel(%s)", request_id) is False
    for relation in (
        "net.http_request_queue",
        "net._http_response",
        "pgnet.failed",
        "net.requests",
        "net.responses",
    ):
        rows = alice.execute(f"select * from {relation} where id = any(%s)", (ids,)).fetchall()
        assert rows == []


def test_a_definer_triggers_token(own: Database, nginx: Nginx) -> None:
    """The end user whose INSERT posts it reads neither the request nor its response."""
    vault = own.connect("rights_vault")
    post_token_by_trigger(vault, nginx.url + "/echo")
    alice = own.connect("rights_alice")
    transaction = own.connect("rights_alice", autocommit=False)
    transaction.execute("insert into public.orders values (1)")
    everything_alice_reads = [
        transaction.execute(f"select * from {relation}").fetchall()
        for relation in (
            "net.http_request_queue", "net._http_response", "pgnet.failed", "net.requests",
            "net.responses", "net.failures", "pgnet.mark",
        )
    ]  # fmt: skip
    assert everything_alice_reads == [[]] * 7
    transaction.commit()
    alice.execute("insert into public.orders values (2)")
    with own.worker():
        own.execute("select net.wait_all(array(select id from net.requests))")
    ids = [
        number
        for (number,) in own.rows(
            "select id from net.requests where requested_by = 'rights_vault'::regrole order by id"
        )
    ]
    assert len(ids) == 2
    for (status,) in own.rows("select status_code from net.wait_all(%s)", ids):
        assert status == 200
    knows_nothing_of(alice, ids)
    # the vault's own role reads it
    content = value(vault, "select content from net.responses where id = %s", ids[0])
    assert "Authorization: Bearer hunter2" in content


# ---- time passes


def test_a_later_role_of_the_same_name(own: Database, nginx: Nginx) -> None:
    with own.worker():
        own.execute("create role rights_temporary login")
        former = own.connect("rights_temporary")
        done = value(former, "select net.http_get(%s)", nginx.url)
        failed = value(former, "select net.http_get(%s)", f"{nginx.url}/status/500")
        former.execute("select net.wait_all(array[%s, %s]::bigint[])", (done, failed))
    waiting = value(former, "select net.http_get(%s)", nginx.url)
    former.close()
    own.execute("drop role rights_temporary")
    own.execute("create role rights_temporary login")
    try:
        later = own.connect("rights_temporary")
        for read in READS:
            assert later.execute(read).fetchall() == [], read
        for request_id in (done, failed, waiting):
            assert value(later, "select (net.http_get_result(%s)).message", request_id) == (
                "request matching request_id not found"
            )
        # the owner sees them still, and what waits is sent
        assert own.value("select count(*) from net.requests") == 3
        with own.worker():
            assert own.value("select (net.wait(%s)).status_code", waiting) == 200
        assert own.value("select net.cancel(%s)", waiting) is False
    finally:
        own.drop()
        with own.cluster.connect() as connection:
            connection.execute("drop role rights_temporary")


def test_a_renamed_role_keeps_its_requests(own: Database) -> None:
    own.execute("create role rights_before login")
    request_id = value(own.connect("rights_before"), "select net.http_get(%s)", URL)
    own.execute("alter role rights_before rename to rights_after")
    try:
        assert value(own.connect("rights_after"), "select net.cancel(%s)", request_id) is True
    finally:
        own.drop()
        with own.cluster.connect() as connection:
            connection.execute("drop role rights_after")
