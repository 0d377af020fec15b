"""Who may do what: each routine and relation for each kind of role; one's own requests only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql

from servers.cluster import Cluster, Database
from servers.nginx import Nginx

# Every routine of the extension: who may call it where every role has usage on the schema.
# everyone; worker: the owner, and roles that net.grant_worker was called for; owner.
ROUTINES = {
    "http_get": "everyone",
    "http_post": "everyone",
    "http_delete": "everyone",
    "http_request": "everyone",
    "http_put": "everyone",
    "http_patch": "everyone",
    "http_head": "everyone",
    "multipart": "everyone",
    "secret_url": "everyone",
    "http_get_result": "everyone",
    "http_collect_response": "everyone",
    "_http_collect_response": "everyone",
    "_await_response": "everyone",
    "wait": "everyone",
    "wait_all": "everyone",
    "fetch": "everyone",
    "cancel": "everyone",
    "wake": "everyone",
    "worker_restart": "everyone",
    "wait_until_running": "everyone",
    "check_worker_is_up": "everyone",
    "_urlencode_string": "everyone",
    "_encode_url_with_params_array": "everyone",
    # what those call with the caller's rights
    "_append_to_query": "everyone",
    "_caller": "everyone",
    "_require_owner": "everyone",
    "_require_worker": "everyone",
    "_refuse_altered": "everyone",
    "_raise": "everyone",
    "_check": "everyone",
    "_inspect": "everyone",
    "_second_look": "everyone",
    "_form": "everyone",
    "_encode_form": "everyone",
    "_require_utf8": "everyone",
    "_multipart": "everyone",
    "_check_secret": "everyone",
    "_refuse_secret": "everyone",
    "_secret_covers": "everyone",
    "_secret_prefix": "everyone",
    "retry": "everyone",
    "forget": "everyone",
    "_mark": "everyone",
    "_cancellation": "everyone",
    "_alive": "everyone",
    "_waiting_state": "everyone",
    "_refuse_to_wait": "everyone",
    "_refuse_transaction_block": "everyone",
    "_with_type": "everyone",
    "_is_mine": "everyone",
    "_is_operator": "everyone",
    "_host": "everyone",
    "_json_or_null": "everyone",
    "_look_up": "everyone",
    "_worker_is_up": "everyone",
    "_known_settings": "everyone",
    "_known_host_settings": "everyone",
    "_known_retry_settings": "everyone",
    "_built_in_retry_policies": "everyone",
    "_check_retry": "everyone",
    "_current_setting": "everyone",
    "_reload": "everyone",
    "work": "worker",
    "drain": "worker",
    "_serve": "worker",
    "_register": "worker",
    "_claim": "worker",
    "_record": "worker",
    "_release": "worker",
    "_secrets": "worker",
    "_deregister": "worker",
    "_tend": "worker",
    "_wait": "worker",
    "_wake_next": "worker",
    "_wake_up_fault": "worker",
    "_refuse_copy": "worker",
    "check": "owner",
    "configure": "owner",
    "allow_network": "owner",
    "deny_network": "owner",
    "forget_network": "owner",
    "allow_host": "owner",
    "deny_host": "owner",
    "forget_host": "owner",
    "configure_host": "owner",
    "configure_retry": "owner",
    "set_secret": "owner",
    "drop_secret": "owner",
    "grant_secret": "owner",
    "revoke_secret": "owner",
    "grant_worker": "owner",
    "revoke_worker": "owner",
    "schedule_worker": "owner",
    "unschedule_worker": "owner",
    "adopt_database": "owner",
    "_copy_fault": "owner",
    "_mode": "owner",
    "_mode_sources": "owner",
    "_subscription": "owner",
    "_set_ids_apart": "owner",
    "_take_replicated": "owner",
    "_is_known": "owner",
    "_was_numbered_here": "everyone",
    "_keep_own": "owner",
    "_claimed": "owner",
    "_derived_key": "owner",
    "_end": "owner",
    "_excerpt": "owner",
    "_is_idempotent": "owner",
    "_is_plain_json": "owner",
    "_json_size": "owner",
    "_json_text": "everyone",
    "_max_timeout_milliseconds": "owner",
    "_free": "owner",
    "_idempotency_key": "owner",
    "_arm": "owner",
    "_act_on_marks": "owner",
    "_owners_path": "owner",
    "_open_paths": "owner",
    "_use_owners_path": "owner",
    "_pin_path": "owner",
    "_carry_out": "owner",
    "_carry_out_each": "owner",
    "_dropped": "owner",
    "_configuration_changed": "owner",
    "_configured_host": "owner",
    "_expire": "owner",
    "_delete_expired": "owner",
    "_do_duty": "owner",
    "_faults": "owner",
    "_fire_deferred": "owner",
    "_forget_workers": "owner",
    "_hold": "owner",
    "_lock_tables": "owner",
    "_mend_clocks": "owner",
    "_note_fault": "owner",
    "_put_aside": "owner",
    "_record_put_aside": "owner",
    "_recording_remedy": "owner",
    "_remedy": "owner",
    "_store_or_halve": "owner",
    "_host_setting_fault": "owner",
    "_host_settings": "owner",
    "_host_pattern": "owner",
    "_networks": "owner",
    "_python_check": "owner",
    "_rescue": "owner",
    "_retry_policies": "owner",
    "_retry_setting_fault": "owner",
    "_role": "owner",
    "_secret_check": "owner",
    "_set_secret_grant": "owner",
    "_set_egress": "owner",
    "_setting_fault": "owner",
    "_signal_workers": "owner",
    "_slice": "owner",
    "_store": "owner",
    "_worker_routines": "owner",
    "_refuse_attachment": "owner",
    "_refuse_other_tables": "owner",
    "_refuse_truncate": "owner",
    "_right_faults": "owner",
}

# Every relation, and what every role may do with it; columns in parentheses.
RELATIONS = {
    "http_request_queue": {
        "SELECT",
        "INSERT(method)",
        "INSERT(url)",
        "INSERT(headers)",
        "INSERT(body)",
        "INSERT(timeout_milliseconds)",
        "INSERT(priority)",
        "INSERT(context)",
        "INSERT(options)",
        "INSERT(retry_of)",
    },
    "_queue": set(),
    "_new_request": {
        "SELECT(id)",
        "INSERT(method)",
        "INSERT(url)",
        "INSERT(headers)",
        "INSERT(body)",
        "INSERT(timeout_milliseconds)",
        "INSERT(priority)",
        "INSERT(context)",
        "INSERT(options)",
    },
    "worker_role": set(),
    "_http_response": {"SELECT"},
    "failed": {"SELECT"},
    "mark": {"SELECT", "INSERT(request_id)", "INSERT(action)"},
    "requests": {"SELECT"},
    "responses": {"SELECT"},
    "failures": {"SELECT"},
    "settings": {"SELECT"},
    "egress": {"SELECT"},
    "hosts": {"SELECT"},
    "retry_policies": {"SELECT"},
    "secrets": {"SELECT"},
    "attempts": {"SELECT"},
    "workers": {"SELECT"},
    "database": set(),
    "claim": {"SELECT(id)", "SELECT(worker)", "SELECT(attempt)", "SELECT(claimed)"},
    "unrecorded": set(),
    "fault": set(),
    "worker": set(),
    "configuration": set(),
    "attempt": {"SELECT"},
    "setting": set(),
    "egress_rule": set(),
    "host": set(),
    "retry_policy": set(),
    "secret": set(),
    "secret_grant": set(),
}

TABLE_PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")
COLUMN_PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "REFERENCES")

# One call of each that an end user may call, with what needs no worker.
CALLS = (
    "select net.http_get('http://localhost/')",
    "select net.http_post('http://localhost/', '{\"a\": 1}', '{\"b\": 2}')",
    "select net.http_delete('http://localhost/', body => '1')",
    "select net.http_request('GET', 'http://localhost/', options => '{\"priority\": 1}')",
    "select net.http_put('http://localhost/'), net.http_patch('http://localhost/')",
    "select net.http_head('http://localhost/')",
    "select net.http_request('POST', 'http://localhost/', body_form => '{\"a\": 1}')",
    'select net.multipart(\'[{"name": "a", "value": "b"}]\')',
    "select net.http_get_result(1)",
    "select net.http_collect_response(1)",
    "select net._http_collect_response(1)",
    "select net._await_response(2000000)",
    "select net.wait(null), net.wait_all(null)",
    "select net.cancel(2000000)",
    "select net.forget(2000000)",
    "select net.wake()",
    "select net.worker_restart()",
    "select net._urlencode_string('a b')",
    "select net._encode_url_with_params_array('http://localhost/', '{a=b}')",
    "select * from net.requests",
    "select * from net.responses",
    "select * from net.failures",
    "select * from net.attempts",
    "select * from net.workers",
    "select net.retry(null)",
    "select * from net.settings",
    "select * from net.egress",
    "select * from net.hosts",
    "select * from net.retry_policies",
    "select net._check_retry('safe')",
    "select * from net.secrets",
    "select * from net.http_request_queue",
    "select * from net._http_response",
)

ROLES = ("rights_alice", "rights_bob", "rights_worker", "rights_vault")

URL = "http://127.0.0.1:1025/"


@pytest.fixture(scope="module")
def roles(cluster: Cluster) -> Iterator[None]:
    with cluster.connect() as connection:
        for role in ROLES:
            connection.execute(sql.SQL("create role {} login").format(sql.Identifier(role)))
    yield
    with cluster.connect() as connection:
        for role in ROLES:
            connection.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


@pytest.fixture(scope="module")
def granted(cluster: Cluster, roles: None) -> Iterator[Database]:
    """As CREATE EXTENSION leaves it, with one role that may run workers."""
    database = cluster.create_database()
    database.execute("select net.grant_worker('rights_worker')")
    yield database
    database.drop()


@pytest.fixture(scope="module")
def closed(cluster: Cluster, roles: None) -> Iterator[Database]:
    """Closed to PUBLIC: usage for one role, and one that may run workers."""
    database = cluster.create_database()
    database.execute("revoke usage on schema net from public")
    database.execute("grant usage on schema net to rights_alice")
    database.execute("select net.grant_worker('rights_worker')")
    yield database
    database.drop()


@pytest.fixture
def own(database: Database, roles: None) -> Database:
    """A database of one's own, loopback allowed, roles made."""
    database.execute("grant create on schema public to public")
    return database


@pytest.fixture(scope="module")
def served(cluster: Cluster, roles: None) -> Iterator[Database]:
    database = cluster.create_database()
    database.execute("select net.allow_network('loopback')")
    database.execute("grant create on schema public to public")
    with database.worker():
        yield database
    database.drop()


def value(connection: psycopg.Connection[Any], query: str, *arguments: Any) -> Any:
    row = connection.execute(query, arguments or None).fetchone()
    return None if row is None else row[0]


def may_execute(database: Database, role: str) -> dict[str, bool]:
    return dict(
        database.rows(
            "select p.proname, bool_or(has_function_privilege(%s, p.oid, 'execute'))"
            " from pg_proc p where p.pronamespace = 'net'::regnamespace group by 1",
            role,
        )
    )


# ---- the tables above


def test_the_table_of_routines_is_complete(granted: Database) -> None:
    assert set(may_execute(granted, "postgres")) == set(ROUTINES)
    overloaded = granted.rows(
        "select proname from pg_proc where pronamespace = 'net'::regnamespace"
        " group by 1 having count(*) > 1"
    )
    assert overloaded == []


@pytest.mark.parametrize(
    ("role", "may"),
    [
        ("postgres", {"everyone", "worker", "owner"}),
        ("rights_alice", {"everyone"}),
        ("rights_worker", {"everyone", "worker"}),
    ],
)
def test_routines(granted: Database, role: str, may: set[str]) -> None:
    expected = {name: kind in may for name, kind in ROUTINES.items()}
    assert may_execute(granted, role) == expected


def test_nothing_without_usage(closed: Database) -> None:
    """What EXECUTE says does not matter then: the schema is closed."""
    connection = closed.connect("rights_bob")
    for call in CALLS:
        with pytest.raises(errors.InsufficientPrivilege, match="schema net"):
            connection.execute(call)


@pytest.mark.parametrize("role", ["rights_alice", "postgres"])
def test_calls_with_usage(closed: Database, role: str) -> None:
    connection = closed.connect(role)
    for call in CALLS:
        connection.execute(call)


def test_a_worker_role_where_the_schema_is_closed(closed: Database) -> None:
    closed.connect("rights_worker").execute("call net.drain()")


def test_an_ordinary_role_runs_no_worker(granted: Database) -> None:
    connection = granted.connect("rights_alice")
    for call in (
        "call net.work()",
        "call net.drain()",
        "call net._wait(0)",
        "select net._claim(1, 1, 1, 1, '{}', 1, '')",
        "select net._record('[]')",
        "select net.configure('ttl', '1 s')",
        "select net.allow_network('loopback')",
        "select net.forget_network('loopback')",
        "select net.grant_worker('rights_alice')",
        "select * from net.check()",
        "select net._arm('restart')",
    ):
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute(call)


@pytest.mark.parametrize("role", ["rights_alice", "rights_worker"])
def test_relations(granted: Database, role: str) -> None:
    """Also for a worker's role: it needs no table."""
    relations = [
        name
        for (name,) in granted.rows(
            "select relname from pg_class where relnamespace = 'net'::regnamespace"
            " and relkind in ('r', 'p', 'v', 'm', 'f')"
        )
    ]
    found = {}
    for name in relations:
        table = f"net.{name}"
        rights = {
            privilege
            for privilege in TABLE_PRIVILEGES
            if granted.value("select has_table_privilege(%s, %s, %s)", role, table, privilege)
        }
        rights |= {
            f"{privilege}({column})"
            for privilege in COLUMN_PRIVILEGES
            if privilege not in rights
            for (column,) in granted.rows(
                "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0"
                " and not attisdropped and has_column_privilege(%s, %s::regclass, attname, %s)",
                table,
                role,
                table,
                privilege,
            )
        }
        found[name] = rights
    assert found == RELATIONS


def test_sequences_and_the_schema_are_the_owners(granted: Database) -> None:
    sequences = granted.rows(
        "select relname from pg_class where relnamespace = 'net'::regnamespace and case relkind"
        " when 'S' then has_sequence_privilege('rights_alice', oid, 'usage, select, update') end"
    )
    assert sequences == []
    assert granted.value("select has_schema_privilege('rights_alice', 'net', 'create')") is False


def test_revoke_worker(own: Database) -> None:
    own.execute("select net.grant_worker('rights_worker')")
    own.execute("select net.revoke_worker('rights_worker')")
    found = may_execute(own, "rights_worker")
    assert found == {name: kind == "everyone" for name, kind in ROUTINES.items()}
    with pytest.raises(errors.UndefinedObject):
        own.execute("select net.grant_worker('no such role')")


def test_a_role_with_a_difficult_name(own: Database) -> None:
    name, quoted = 'rights "x" ; drop', '"rights ""x"" ; drop"'
    own.execute(f"create role {quoted} login")
    try:
        own.execute("select net.grant_worker(%s)", name)
        connection = psycopg.connect(own.dsn(), user=name, autocommit=True)
        request_id = value(connection, "select net.http_get(%s)", URL)
        assert value(connection, "select count(*) from net.requests") == 1
        assert value(connection, "select net.cancel(%s)", request_id) is True
        connection.execute("call net.drain()")
        connection.close()
    finally:
        own.drop()
        with own.cluster.connect() as connection:
            connection.execute(f"drop role {quoted}")


@pytest.mark.parametrize("kind", ["process", "backend"])
def test_a_worker_role_needs_no_more(own: Database, nginx: Nginx, kind: str) -> None:
    own.execute("select net.grant_worker('rights_worker')")
    alice = own.connect("rights_alice")
    request_id = value(alice, "select net.http_get(%s)", nginx.url)
    if kind == "process":
        with own.cluster.worker(dbname=own.name, user="rights_worker"):
            assert value(alice, "select (net.wait(%s)).content", request_id) == "pgnet"
    else:
        own.connect("rights_worker").execute("call net.drain()")
    assert value(alice, "select (net.wait(%s)).content", request_id) == "pgnet"


# ---- one's own requests only

READS = (
    "select id from net.http_request_queue",
    "select id from net._http_response",
    "select id from net.failed",
    "select id from net.requests",
    "select id from net.responses",
    "select id from net.failures",
    "select request_id from net.mark",
)


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
                assert value(connection, "select (net._look_up(%s)).id", number) is None
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
        insert into net.failed (id, state, method, url, requested_by, created, priority, attempts)
        values (7, 'failed', 'GET', 'hunter2', 'rights_bob', now(), 0, 1);
        insert into net.mark (request_id, requested_by, action) values (7, 'rights_bob', 'retry');
        """
    )
    alice = own.connect("rights_alice")
    told: list[str] = []
    alice.add_notice_handler(lambda said: told.append(said.message_primary or ""))
    alice.execute(
        """
        create function tell(word anyelement) returns boolean language plpgsql cost 0.0000001 as $$
        begin raise notice 'told %', word; return true; end $$
        """
    )
    for relation, column in (
        ("http_request_queue", "url"),
        ("_http_response", "content"),
        ("failed", "url"),
        ("requests", "url"),
        ("responses", "content"),
        ("failures", "url"),
        ("mark", "request_id"),
    ):
        rows = alice.execute(f"select {column} from net.{relation} where tell({column})").fetchall()
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
        "insert into net.failed (id, url) values (5, %s)",
        "insert into net.mark (request_id, requested_by, action)"
        " values (length(%s), 'rights_bob', 'cancel')",
        "insert into net.mark (request_id, action, done) values (length(%s), 'retry', true)",
        "update net.mark set done = true where action = %s",
        "insert into net._http_response (id, url) values (5, %s)",
        "update net.http_request_queue set url = %s",
        "update net._http_response set url = %s",
        "update net.failed set url = %s",
    ):
        with pytest.raises(errors.InsufficientPrivilege):
            alice.execute(statement, (URL,))
    for statement in (
        "select * from net._queue",
        "select * from net.http_request_queue for update",
        "select token from net.claim",
        "select secret from net.worker",
        "truncate net.http_request_queue",
        "create trigger t after insert on net.http_request_queue for each row"
        " execute function suppress_redundant_updates_trigger()",
        "create trigger t after insert on net.mark for each row"
        " execute function suppress_redundant_updates_trigger()",
        "delete from net.http_request_queue",
        "delete from net._http_response",
        "delete from net.failed",
        "delete from net.mark",
        "select * from net.mark for key share",
        "select setval('net.http_request_queue_id_seq', 1)",
        "select nextval('net.http_request_queue_id_seq')",
        "lock table net.claim in share mode",
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
    """As in pg_net, but for one's own rows only; a deleted request has no outcome."""
    bobs = value(own.connect("rights_bob"), "select net.http_get(%s)", URL)
    own.execute("grant delete on net.http_request_queue, net._http_response to rights_alice")
    alice = own.connect("rights_alice")
    mine = value(alice, "select net.http_get(%s)", URL)
    assert alice.execute("delete from net.http_request_queue").rowcount == 1
    assert alice.execute("delete from net._http_response").rowcount == 0
    assert own.rows("select id from net.http_request_queue") == [(bobs,)]
    assert bobs < mine


def test_set_role_books_to_the_current_role(own: Database) -> None:
    own.execute("set role rights_alice")
    request_id = own.value("select net.http_get(%s)", URL)
    own.execute("reset role")
    assert own.rows("select id, requested_by::text from net.http_request_queue") == [
        (request_id, "rights_alice")
    ]
    assert value(own.connect("rights_alice"), "select count(*) from net.requests") == 1


# ---- a token posted on behalf of somebody who must not see it


def test_a_definer_triggers_token(own: Database, nginx: Nginx) -> None:
    """The end user whose INSERT posts it reads neither the request nor its response."""
    vault = own.connect("rights_vault")
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
        ).format(nginx.url + "/echo")
    )
    vault.execute(
        "create trigger post_token before insert on public.orders"
        " for each row execute function public.post_token()"
    )
    alice = own.connect("rights_alice")
    transaction = own.connect("rights_alice", autocommit=False)
    transaction.execute("insert into public.orders values (1)")
    everything_alice_reads = [
        transaction.execute(f"select * from net.{relation}").fetchall()
        for relation in (
            "http_request_queue", "_http_response", "failed", "requests", "responses",
            "failures", "mark",
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
    for request_id in ids:
        assert value(alice, "select (net.http_get_result(%s)).message", request_id) == (
            "request matching request_id not found"
        )
        for call in ("net.wait(%s)", "net.wait_all(array[%s::bigint])"):
            with pytest.raises(errors.NoDataFound):
                alice.execute(f"select {call}", (request_id,))
        assert value(alice, "select net.cancel(%s)", request_id) is False
    for relation in ("http_request_queue", "_http_response", "failed", "requests", "responses"):
        rows = alice.execute(f"select * from net.{relation} where id = any(%s)", (ids,)).fetchall()
        assert rows == []
    # the vault's own role reads it
    content = value(vault, "select content from net.responses where id = %s", ids[0])
    assert "Authorization: Bearer hunter2" in content


def test_a_users_path_does_not_mislead_a_definers_function(own: Database) -> None:
    """A definer function whose author forgot to pin the search_path still books to its owner."""
    vault = own.connect("rights_vault")
    vault.execute(
        "create function public.post_it() returns bigint language sql security definer"
        f" as $$ select net.http_post('{URL}', '{{\"token\": \"hunter2\"}}') $$"
    )
    alice = own.connect("rights_alice")
    trick(alice)
    request_id = value(alice, "select public.post_it()")
    assert own.rows("select id, requested_by::text from net.http_request_queue") == [
        (request_id, "rights_vault")
    ]
    assert value(alice, "select count(*) from net.http_request_queue") == 0


def test_a_types_name_runs_nobodys_code(own: Database) -> None:
    """pg_temp comes first for types, whatever path a definer function pins."""
    vault = own.connect("rights_vault")
    vault.execute(
        f"""
        create table public.orders (id int);
        grant insert on public.orders to rights_alice;
        create function public.post_token() returns trigger
        language plpgsql security definer set search_path = '' as $$
        begin
            perform net.http_get('{URL}',
                headers => pg_catalog.jsonb_build_object('Authorization', 'hunter2'));
            perform net.http_post('{URL}', pg_catalog.jsonb_build_object('token', 'hunter2'),
                headers => pg_catalog.jsonb_build_object('Authorization', 'hunter2'));
            perform net.http_delete('{URL}',
                body => pg_catalog.jsonb_build_object('token', 'hunter2'));
            return new;
        end $$;
        create trigger post_token after insert on public.orders
            for each row execute function public.post_token();
        """
    )
    alice = own.connect("rights_alice")
    told: list[str] = []
    alice.add_notice_handler(lambda said: told.append(said.message_primary or ""))
    alice.execute(
        """
        create function pg_temp.steal(pg_catalog.text) returns boolean language plpgsql as $$
        begin raise notice '% as %', $1, current_user; return true; end $$;
        create function pg_temp.steal(pg_catalog.jsonb) returns boolean language plpgsql as $$
        begin raise notice '% as %', $1, current_user; return true; end $$;
        create domain pg_temp.jsonb as pg_catalog.jsonb check (pg_temp.steal(value));
        create domain pg_temp.text as pg_catalog.text check (pg_temp.steal(value));
        create domain pg_temp.record as pg_catalog.text check (pg_temp.steal(value));
        create domain pg_temp.name as pg_catalog.name;
        """
    )
    alice.execute("insert into public.orders values (1)")
    assert told == []
    assert own.value("select count(*) from net.requests") == 3


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


# ---- a search_path full of traps


def trick(connection: psycopg.Connection[Any]) -> None:
    """Put everything in the way that a role can make: in pg_temp and public, before pg_catalog."""
    connection.execute(
        """
        create function public.trap(anyelement, anyelement) returns boolean language plpgsql
            as $$ begin raise exception 'trapped by an operator'; end $$;
        create function public.trap_text(text, text) returns boolean language plpgsql
            as $$ begin raise exception 'trapped by an operator'; end $$;
        create function public.trap_json(jsonb, text) returns text language plpgsql
            as $$ begin raise exception 'trapped by an operator'; end $$;
        create operator public.= (
            leftarg = anyelement, rightarg = anyelement, function = public.trap);
        create operator public.>= (
            leftarg = anyelement, rightarg = anyelement, function = public.trap);
        create operator public.<> (
            leftarg = anyelement, rightarg = anyelement, function = public.trap);
        create operator public.= (leftarg = text, rightarg = text, function = public.trap_text);
        create operator public.~ (leftarg = text, rightarg = text, function = public.trap_text);
        create operator public.->> (leftarg = jsonb, rightarg = text, function = public.trap_json);
        create function public.upper(text) returns text language plpgsql
            as $$ begin raise exception 'trapped by upper'; end $$;
        create function public.lower(text) returns text language plpgsql
            as $$ begin raise exception 'trapped by lower'; end $$;
        create function public.format(text, variadic text[]) returns text language plpgsql
            as $$ begin raise exception 'trapped by format'; end $$;
        create function public.now() returns timestamptz language plpgsql
            as $$ begin raise exception 'trapped by now'; end $$;
        create function public.clock_timestamp() returns timestamptz language plpgsql
            as $$ begin raise exception 'trapped by clock_timestamp'; end $$;
        create function public.convert_to(text, name) returns bytea language plpgsql
            as $$ begin raise exception 'trapped by convert_to'; end $$;
        create function public.jsonb_typeof(jsonb) returns text language plpgsql
            as $$ begin raise exception 'trapped by jsonb_typeof'; end $$;
        create function public.pg_sleep(double precision) returns void language plpgsql
            as $$ begin raise exception 'trapped by pg_sleep'; end $$;
        create function public.quote_ident(text) returns text language sql
            as $$ select 'postgres' $$;
        create function public.pg_has_role(name, oid, text) returns boolean language sql
            as $$ select true $$;
        create function public.current_database() returns name language plpgsql
            as $$ begin raise exception 'trapped by current_database'; end $$;
        create temp table http_request_queue (id bigserial, method text, url text, headers jsonb,
            body bytea, timeout_milliseconds int);
        create temp table _http_response (id bigint, url text);
        create temp table claim (id bigint);
        create temp table worker (id bigint);
        create temp table setting (name text, value text);
        create temp table pg_namespace (oid oid);
        create temp table pg_class (oid oid);
        create type pg_temp.text as (a int);
        create type pg_temp.regrole as (a int);
        create type pg_temp.jsonb as (a int);
        create domain public.name as pg_catalog.text check (false);
        """
    )
    connection.execute("set search_path = pg_temp, public, net, pg_catalog")


def test_traps_in_the_callers_path(served: Database, nginx: Nginx) -> None:
    alice = served.connect("rights_alice")
    trick(alice)
    try:
        get = value(alice, "select net.http_get(%s)", nginx.url)
        post = value(
            alice,
            "select net.http_post(%s, '{}'::pg_catalog.jsonb, null, '{\"a\": \"b\"}')",
            f"{nginx.url}/status/500",
        )
        delete = value(alice, "select net.http_delete(%s, body => '1')", nginx.url)
        for request_id, status in ((get, 200), (post, 500)):
            assert value(alice, "select (net.wait(%s)).status_code", request_id) == status
        assert value(alice, "select ((net.http_get_result(%s, false)).response).body", get) == (
            "pgnet"
        )
        alice.execute("select * from net.wait_all(array[%s::bigint])", (delete,))
        for relation, expected in (
            ("requests", {get, post, delete}),
            ("responses", {get, post, delete}),
            ("failures", {post}),
        ):
            found = {number for (number,) in alice.execute(f"select id from net.{relation}")}
            assert found & {get, post, delete} == expected
        alice.execute("select * from net.settings")
        alice.execute("select * from net.egress")
        assert value(alice, "select net.cancel(%s)", get) is False
        alice.execute("select net.wake(), net.worker_restart(), net.check_worker_is_up()")
        row = alice.execute("call net.fetch('post', %s, '1')", (f"{nginx.url}/method",)).fetchone()
        assert row is not None
        assert row[2] == "POST"
        with pytest.raises(errors.InvalidParameterValue):
            alice.execute("select net.http_get('mailto:x')")
        assert alice.execute("select count(*) from pg_temp.http_request_queue").fetchone() == (0,)
    finally:
        alice.close()
        served.execute("drop owned by rights_alice cascade")


def test_traps_in_the_workers_path(own: Database, nginx: Nginx) -> None:
    """A worker's session whose role has a path of traps sends and records all the same."""
    own.execute("select net.grant_worker('rights_worker')")
    request_id = own.value("select net.http_get(%s)", nginx.url)
    worker = own.connect("rights_worker")
    trick(worker)
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="temporary tables"):
        worker.execute("call net.drain()")
    worker.execute("discard temp")
    worker.execute("call net.drain()")
    assert own.value("select (net.wait(%s)).content", request_id) == "pgnet"
    request_id = own.value("select net.http_get(%s)", nginx.url)
    own.execute("alter role rights_worker set search_path = public, pg_catalog")
    try:
        with own.cluster.worker(dbname=own.name, user="rights_worker"):
            assert own.value("select (net.wait(%s)).content", request_id) == "pgnet"
    finally:
        own.execute("alter role rights_worker reset search_path")


def test_traps_in_the_owners_path(own: Database) -> None:
    """The owner's functions pin theirs: an egress rule is not written by somebody's operator."""
    trick(own.connect("rights_alice"))
    own.execute("set search_path = public, pg_catalog")
    own.execute("select net.configure('ttl', '1 hour')")
    own.execute("select net.deny_host('Example.com'), net.forget_network('loopback')")
    own.execute("select * from net.check()")
    own.execute("reset search_path")
    assert own.rows("select kind, pattern, verdict from net.egress") == [
        ("host", "example.com", "deny")
    ]
    assert own.value("select value from net.settings where name = 'ttl'") == "1 hour"
