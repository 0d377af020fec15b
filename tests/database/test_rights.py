"""Who may do what: each routine and relation for each kind of role; one's own requests only."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.types.json import Jsonb

from servers.cluster import Cluster, Database
from servers.nginx import Nginx
from servers.roles import login_roles

# Every routine of the extension: who may call it where every role has usage on the schema.
# everyone; worker: the owner, and roles that net.grant_worker was called for; owner.
ROUTINES = {
    # The public surface, and the private names that users of pg_net know: \df net.*
    "net.http_get": "everyone",
    "net.http_post": "everyone",
    "net.http_delete": "everyone",
    "net.http_request": "everyone",
    "net.http_put": "everyone",
    "net.http_patch": "everyone",
    "net.http_head": "everyone",
    "net.multipart": "everyone",
    "net.secret_url": "everyone",
    "net.http_get_result": "everyone",
    "net.http_collect_response": "everyone",
    "net._http_collect_response": "everyone",
    "net._await_response": "everyone",
    "net.wait": "everyone",
    "net.wait_all": "everyone",
    "net.fetch": "everyone",
    "net.cancel": "everyone",
    "net.wake": "everyone",
    "net.worker_restart": "everyone",
    "net.wait_until_running": "everyone",
    "net.check_worker_is_up": "everyone",
    "net._urlencode_string": "everyone",
    "net._encode_url_with_params_array": "everyone",
    "net.retry": "everyone",
    "net.forget": "everyone",
    "net.work": "worker",
    "net.drain": "worker",
    "net.check": "owner",
    "net.configure": "owner",
    "net.allow_network": "owner",
    "net.deny_network": "owner",
    "net.forget_network": "owner",
    "net.allow_host": "owner",
    "net.deny_host": "owner",
    "net.forget_host": "owner",
    "net.configure_host": "owner",
    "net.configure_retry": "owner",
    "net.set_secret": "owner",
    "net.drop_secret": "owner",
    "net.grant_secret": "owner",
    "net.revoke_secret": "owner",
    "net.grant_worker": "owner",
    "net.revoke_worker": "owner",
    "net.schedule_worker": "owner",
    "net.unschedule_worker": "owner",
    "net.adopt_database": "owner",
    # The inside. What everyone may execute are the functions that those above, the views and the
    # policies call with the caller's rights.
    "pgnet.append_to_query": "everyone",
    "pgnet.built_in_retry_policies": "everyone",
    "pgnet.caller_is_owner": "everyone",
    "pgnet.caller_role": "everyone",
    "pgnet.cancellation_message": "everyone",
    "pgnet.check_or_raise": "everyone",
    "pgnet.check_request": "everyone",
    "pgnet.check_retry_policy": "everyone",
    "pgnet.check_secret": "everyone",
    "pgnet.encode_form": "everyone",
    "pgnet.host_of_url": "everyone",
    "pgnet.inspect_form": "everyone",
    "pgnet.inspect_multipart": "everyone",
    "pgnet.inspect_request": "everyone",
    "pgnet.json_or_null": "everyone",
    "pgnet.json_text": "everyone",
    "pgnet.known_host_settings": "everyone",
    "pgnet.known_retry_settings": "everyone",
    "pgnet.known_settings": "everyone",
    "pgnet.mark_request": "everyone",
    "pgnet.outcome_so_far": "everyone",
    "pgnet.raise_error": "everyone",
    "pgnet.refuse_altered_function": "everyone",
    "pgnet.refuse_secret": "everyone",
    "pgnet.refuse_to_wait": "everyone",
    "pgnet.refuse_transaction_block": "everyone",
    "pgnet.reload_workers": "everyone",
    "pgnet.require_owner": "everyone",
    "pgnet.require_utf8": "everyone",
    "pgnet.require_worker": "everyone",
    "pgnet.secret_covers": "everyone",
    "pgnet.secret_prefix": "everyone",
    "pgnet.session_is_alive": "everyone",
    "pgnet.setting_value": "everyone",
    "pgnet.waiting_state": "everyone",
    "pgnet.was_numbered_here": "everyone",
    "pgnet.with_content_type": "everyone",
    "pgnet.worker_is_up": "everyone",
    "pgnet.written_here": "everyone",
    "pgnet.claim_requests": "worker",
    "pgnet.claimed_secrets": "worker",
    "pgnet.deregister_worker": "worker",
    "pgnet.heartbeat": "worker",
    "pgnet.record_outcomes": "worker",
    "pgnet.refuse_copy": "worker",
    "pgnet.register_worker": "worker",
    "pgnet.release_requests": "worker",
    "pgnet.serve": "worker",
    "pgnet.wait_for_signals": "worker",
    "pgnet.wake_next_worker": "worker",
    "pgnet.wake_up_fault": "worker",
    "pgnet.act_on_marks": "owner",
    "pgnet.announce_configuration": "owner",
    "pgnet.applying_subscription": "owner",
    "pgnet.arm_wake_up": "owner",
    "pgnet.ascii_excerpt": "owner",
    "pgnet.carry_out_marks": "owner",
    "pgnet.carry_out_or_halve": "owner",
    "pgnet.configured_host_pattern": "owner",
    "pgnet.copy_fault": "owner",
    "pgnet.delete_expired_rows": "owner",
    "pgnet.derived_idempotency_key": "owner",
    "pgnet.do_duty": "owner",
    "pgnet.dropped_requests": "owner",
    "pgnet.end_without_answer": "owner",
    "pgnet.expire": "owner",
    "pgnet.fault_messages": "owner",
    "pgnet.fire_deferred": "owner",
    "pgnet.forget_workers": "owner",
    "pgnet.host_pattern": "owner",
    "pgnet.host_setting_fault": "owner",
    "pgnet.host_settings": "owner",
    "pgnet.idempotency_key": "owner",
    "pgnet.inspect_python": "owner",
    "pgnet.inspect_secret": "owner",
    "pgnet.is_idempotent": "owner",
    "pgnet.is_known_row": "owner",
    "pgnet.is_plain_json": "owner",
    "pgnet.json_size": "owner",
    "pgnet.json_slice": "owner",
    "pgnet.keep_own_row": "owner",
    "pgnet.lock_tables": "owner",
    "pgnet.max_timeout_milliseconds": "owner",
    "pgnet.mend_clocks": "owner",
    "pgnet.mode_in_force": "owner",
    "pgnet.mode_sources": "owner",
    "pgnet.networks_of": "owner",
    "pgnet.note_fault": "owner",
    "pgnet.open_paths": "owner",
    "pgnet.owners_path": "owner",
    "pgnet.pin_path": "owner",
    "pgnet.put_aside": "owner",
    "pgnet.read_claimed": "owner",
    "pgnet.record_put_aside": "owner",
    "pgnet.recording_remedy": "owner",
    "pgnet.refuse_attachment": "owner",
    "pgnet.refuse_other_tables": "owner",
    "pgnet.refuse_truncate": "owner",
    "pgnet.remedy": "owner",
    "pgnet.renew_claims": "owner",
    "pgnet.rescue_requests": "owner",
    "pgnet.retry_policy_settings": "owner",
    "pgnet.retry_setting_fault": "owner",
    "pgnet.return_claims": "owner",
    "pgnet.right_faults": "owner",
    "pgnet.role_named": "owner",
    "pgnet.set_egress_rules": "owner",
    "pgnet.set_ids_apart": "owner",
    "pgnet.set_secret_grant": "owner",
    "pgnet.setting_fault": "owner",
    "pgnet.signal_workers": "owner",
    "pgnet.store_or_halve": "owner",
    "pgnet.store_outcomes": "owner",
    "pgnet.take_replicated_row": "owner",
    "pgnet.use_owners_path": "owner",
    "pgnet.worker_routines": "owner",
}

# Every relation, and what every role may do with it; columns in parentheses.
RELATIONS = {
    "net.http_request_queue": {
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
    "pgnet.ready_request": set(),
    "net._new_request": {
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
    "net._http_response": {"SELECT"},
    "pgnet.failed": {"SELECT"},
    "pgnet.mark": {"SELECT", "INSERT(request_id)", "INSERT(action)"},
    "net.requests": {"SELECT"},
    "net.responses": {"SELECT"},
    "net.failures": {"SELECT"},
    "net.settings": {"SELECT"},
    "net.egress": {"SELECT"},
    "net.hosts": {"SELECT"},
    "net.retry_policies": {"SELECT"},
    "net.secrets": {"SELECT"},
    "net.attempts": {"SELECT"},
    "net.workers": {"SELECT"},
    "pgnet.database": set(),
    "pgnet.claim": {"SELECT(id)", "SELECT(worker)", "SELECT(attempt)", "SELECT(claimed)"},
    "pgnet.unrecorded": set(),
    "pgnet.fault": set(),
    "pgnet.worker": set(),
    "pgnet.configuration": set(),
    "pgnet.attempt": {"SELECT"},
    "pgnet.setting": set(),
    "pgnet.egress_rule": set(),
    "pgnet.host": set(),
    "pgnet.retry_policy": set(),
    "pgnet.secret": set(),
    "pgnet.secret_grant": set(),
    "pgnet.worker_role": set(),
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
    "select pgnet.check_retry_policy('safe')",
    "select * from net.secrets",
    "select * from net.http_request_queue",
    "select * from net._http_response",
)

ROLES = ("rights_alice", "rights_bob", "rights_worker", "rights_vault")

URL = "http://127.0.0.1:1025/"


@pytest.fixture(scope="module")
def roles(cluster: Cluster) -> Iterator[None]:
    with login_roles(cluster, ROLES):
        yield


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
    database.execute("revoke usage on schema net, pgnet from public")
    database.execute("grant usage on schema net, pgnet to rights_alice")
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
            "select p.pronamespace::regnamespace || '.' || p.proname,"
            " bool_or(has_function_privilege(%s, p.oid, 'execute'))"
            " from pg_proc p where p.pronamespace = any ('{net,pgnet}'::regnamespace[]) group by 1",
            role,
        )
    )


# ---- the tables above


def test_the_table_of_routines_is_complete(granted: Database) -> None:
    assert set(may_execute(granted, "postgres")) == set(ROUTINES)
    overloaded = granted.rows(
        "select pronamespace::regnamespace || '.' || proname from pg_proc"
        " where pronamespace = any ('{net,pgnet}'::regnamespace[])"
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


def test_net_is_the_public_surface() -> None:
    """What stands in net and begins with an underscore is what users of pg_net know."""
    assert {name for name in ROUTINES if name.startswith("net._")} == {
        "net._http_collect_response",
        "net._await_response",
        "net._urlencode_string",
        "net._encode_url_with_params_array",
    }
    # By the view requests are made: so it stands where USAGE is taken back.
    assert {name for name in RELATIONS if name.startswith("net._")} == {
        "net._http_response",
        "net._new_request",
    }
    assert [name for name in (*ROUTINES, *RELATIONS) if name.startswith("pgnet._")] == []


def test_nothing_without_usage(closed: Database) -> None:
    """What EXECUTE says does not matter then: the schema is closed."""
    connection = closed.connect("rights_bob")
    for call in CALLS:
        with pytest.raises(errors.InsufficientPrivilege, match=r"schema (pg)?net"):
            connection.execute(call)


def test_usage_of_net_alone_is_what_making_requests_needs(own: Database) -> None:
    """An administrator who knows pg_net takes back usage on net, and has not heard of pgnet."""
    own.execute("revoke usage on schema net from public")
    own.execute("grant usage on schema net to rights_alice")
    alice, bob = own.connect("rights_alice"), own.connect("rights_bob")
    for call in CALLS:
        alice.execute(call)
    before = own.rows("select id from net.http_request_queue order by id")
    # Where it may execute what stands in pgnet, nothing is made, and nothing of others is seen.
    for (name, kind), number in itertools.product(ROUTINES.items(), ("1", "null")):
        if name.startswith("pgnet.") and kind == "everyone":
            types = own.value(
                "select array_to_string(array(select format('%%s::%%s', %s::text,"
                " format_type(t, null)) from unnest(proargtypes) t), ', ')"
                " from pg_proc where oid = %s::regproc",
                "null" if number == "null" else "'1'",
                name,
            )
            with contextlib.suppress(psycopg.Error):
                assert "localhost" not in str(bob.execute(f"select {name}({types})").fetchall())
    for table in ("pgnet.failed", "pgnet.mark", "pgnet.attempt"):
        assert bob.execute(f"select * from {table}").fetchall() == []
    assert bob.execute("select id, worker, attempt, claimed from pgnet.claim").fetchall() == []
    with pytest.raises(errors.InsufficientPrivilege, match="row-level security"):
        bob.execute("insert into pgnet.mark (request_id, action) values (1, 'cancel')")
    assert own.value("select count(*) from pgnet.mark") == 0
    assert own.rows("select id from net.http_request_queue order by id") == before


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
        "call pgnet.wait_for_signals(0)",
        "select pgnet.claim_requests(1, 1, 1, 1, '{}', 1, '')",
        "select pgnet.record_outcomes('[]')",
        "select net.configure('ttl', '1 s')",
        "select net.allow_network('loopback')",
        "select net.forget_network('loopback')",
        "select net.grant_worker('rights_alice')",
        "select * from net.check()",
        "select pgnet.arm_wake_up('restart')",
    ):
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute(call)


@pytest.mark.parametrize("role", ["rights_alice", "rights_worker"])
def test_relations(granted: Database, role: str) -> None:
    """Also for a worker's role: it needs no table."""
    relations = [
        name
        for (name,) in granted.rows(
            "select oid::regclass::text from pg_class"
            " where relnamespace = any ('{net,pgnet}'::regnamespace[])"
            " and relkind in ('r', 'p', 'v', 'm', 'f')"
        )
    ]
    found = {}
    for name in relations:
        rights = {
            privilege
            for privilege in TABLE_PRIVILEGES
            if granted.value("select has_table_privilege(%s, %s, %s)", role, name, privilege)
        }
        rights |= {
            f"{privilege}({column})"
            for privilege in COLUMN_PRIVILEGES
            if privilege not in rights
            for (column,) in granted.rows(
                "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0"
                " and not attisdropped and has_column_privilege(%s, %s::regclass, attname, %s)",
                name,
                role,
                name,
                privilege,
            )
        }
        found[name] = rights
    assert found == RELATIONS


def test_sequences_and_the_schema_are_the_owners(granted: Database) -> None:
    sequences = granted.rows(
        "select relname from pg_class"
        " where relnamespace = any ('{net,pgnet}'::regnamespace[]) and case relkind"
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
    "select id from pgnet.failed",
    "select id from net.requests",
    "select id from net.responses",
    "select id from net.failures",
    "select request_id from pgnet.mark",
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
        insert into pgnet.mark (request_id, requested_by, action) values (7, 'rights_bob', 'retry');
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
        ("net.http_request_queue", "url"),
        ("net._http_response", "content"),
        ("pgnet.failed", "url"),
        ("net.requests", "url"),
        ("net.responses", "content"),
        ("net.failures", "url"),
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
        "update net.http_request_queue set url = %s",
        "update net._http_response set url = %s",
        "update pgnet.failed set url = %s",
    ):
        with pytest.raises(errors.InsufficientPrivilege):
            alice.execute(statement, (URL,))
    for statement in (
        "select * from pgnet.ready_request",
        "select * from net.http_request_queue for update",
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
    """As in pg_net, but for one's own rows only; a deleted request has no outcome."""
    bobs = value(own.connect("rights_bob"), "select net.http_get(%s)", URL)
    own.execute("grant delete on net.http_request_queue, net._http_response to rights_alice")
    alice = own.connect("rights_alice")
    mine = value(alice, "select net.http_get(%s)", URL)
    assert alice.execute("delete from net.http_request_queue").rowcount == 1
    assert alice.execute("delete from net._http_response").rowcount == 0
    assert own.rows("select id from net.http_request_queue") == [(bobs,)]
    assert bobs < mine


def test_statistics_hold_no_samples(own: Database) -> None:
    """Who may read all data reads them too, past row security; ANALYZE keeps the most frequent."""
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
