"""Settings that databases and roles have: the whole way of a request works under each of them.

Each set of settings is a database's own (ALTER DATABASE ... SET), so that it holds for CREATE
EXTENSION, for callers, and for both kinds of worker.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from servers.cluster import CLEAN_ENVIRONMENT, Cluster, Database, server_python
from servers.waiting import wait_until

# Settings that a caller has to change back, since a request is an INSERT.
WRITES = {"default_transaction_read_only": "off"}

# In few sets, since each is a database, an extension and two workers.
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "old strings": {
        "standard_conforming_strings": "off",
        "escape_string_warning": "on",
        "backslash_quote": "off",
    },
    "no row security": {
        "row_security": "off",
    },
    "read only": {
        "default_transaction_read_only": "on",
    },
    "replica": {
        "session_replication_role": "replica",
    },
    "serializable": {
        "default_transaction_isolation": "serializable",
        "default_transaction_deferrable": "on",
        "enable_seqscan": "off",
        "enable_mergejoin": "off",
    },
    "timeouts": {
        "statement_timeout": "20s",
        "lock_timeout": "1ms",
        "idle_in_transaction_session_timeout": "10ms",
        "idle_session_timeout": "30s",
        "transaction_timeout": "20s",
    },
    "formats, generic plans": {
        "bytea_output": "escape",
        "DateStyle": "SQL, DMY",
        "IntervalStyle": "sql_standard",
        "TimeZone": "Asia/Kathmandu",
        "extra_float_digits": "-15",
        "xmloption": "document",
        "xmlbinary": "hex",
        "plan_cache_mode": "force_generic_plan",
        "password_encryption": "md5",
    },
    "other formats, custom plans": {
        "DateStyle": "German",
        "IntervalStyle": "iso_8601",
        "TimeZone": "America/Caracas",
        "array_nulls": "off",
        "transform_null_equals": "on",
        "quote_all_identifiers": "on",
        "plan_cache_mode": "force_custom_plan",
        "check_function_bodies": "off",
    },
    "jit": {
        "jit": "on",
        "jit_above_cost": "0",
    },
    "planner": {
        "enable_indexscan": "off",
        "enable_indexonlyscan": "off",
        "enable_bitmapscan": "off",
        "enable_hashjoin": "off",
        "enable_nestloop": "off",
        "enable_sort": "off",
        "geqo_threshold": "2",
        "from_collapse_limit": "1",
        "join_collapse_limit": "1",
        "constraint_exclusion": "on",
    },
    "forced parallel": {
        "force_parallel_mode": "on",
        "debug_parallel_query": "on",
        "parallel_setup_cost": "0",
        "parallel_tuple_cost": "0",
        "min_parallel_table_scan_size": "0",
    },
    "little memory": {
        "work_mem": "64kB",
        "maintenance_work_mem": "1MB",
        "temp_file_limit": "0",
        "temp_buffers": "800kB",
        "logical_decoding_work_mem": "64kB",
        "max_stack_depth": "100kB",
    },
    "LATIN1, no path": {
        "client_encoding": "LATIN1",
        "search_path": "''",
    },
    "SQL_ASCII, a path": {
        "client_encoding": "SQL_ASCII",
        "search_path": "nowhere, strange, pg_catalog",
    },
    "silent, uncounted, repeatable read": {
        "client_min_messages": "error",
        "log_min_messages": "panic",
        "track_activities": "off",
        "track_counts": "off",
        "stats_fetch_consistency": "snapshot",
        "compute_query_id": "off",
        "plpgsql.variable_conflict": "use_variable",
        "default_transaction_isolation": "repeatable read",
    },
    "talkative, explained": {
        "client_min_messages": "debug1",
        "log_min_messages": "debug1",
        "log_statement": "all",
        "log_duration": "on",
        "log_min_duration_statement": "0",
        "log_error_verbosity": "verbose",
        "log_parser_stats": "on",
        "debug_print_plan": "on",
        "session_preload_libraries": "auto_explain",
    },
    "not durable, storage, plpgsql": {
        "synchronous_commit": "off",
        "commit_delay": "100",
        "default_tablespace": "pg_default",
        "default_table_access_method": "heap",
        "default_toast_compression": "pglz",
        "temp_tablespaces": "pg_default",
        "plpgsql.variable_conflict": "use_column",
        "plpgsql.extra_errors": "all",
        "plpgsql.extra_warnings": "all",
        "plpgsql.print_strict_params": "on",
    },
}


@pytest.fixture(scope="module")
def roles(cluster: Cluster) -> Iterator[None]:
    with cluster.connect() as connection:
        connection.execute("create role environment_app login")
        connection.execute("create role environment_worker login")
        yield
        connection.execute("drop role environment_app, environment_worker")


def apply(database: Database, settings: dict[str, str]) -> None:
    """Set these for the database's sessions, as far as the server knows the settings."""
    with database.cluster.connect() as connection:
        for name, value in settings.items():
            found = connection.execute(
                "select 1 from pg_settings where lower(name) = lower(%s)", (name,)
            ).fetchone()
            if "." not in name and found is None:
                continue  # of another release
            statement = f"alter database {database.name} set {name} = "
            lists = ("search_path", "session_preload_libraries", "temp_tablespaces", "DateStyle")
            connection.execute(statement + (value if name in lists else f"'{value}'"))
        row = connection.execute(
            "select count(*) from pg_db_role_setting s join pg_database d on d.oid = s.setdatabase"
            " where d.datname = %s",
            (database.name,),
        ).fetchone()
        assert row == (1 if settings else 0,)


def scalar(session: psycopg.Connection[Any], query: str, *arguments: Any) -> Any:
    row = session.execute(query, arguments or None).fetchone()
    assert row is not None
    value = row[0]
    return value.decode() if isinstance(value, bytes) else value


def ended(session: psycopg.Connection[Any], request_id: int) -> str:
    """Wait for the end of a request; gives the status, the message and the body."""
    message: str = wait_until(
        lambda: scalar(
            session,
            "select concat_ws(' ', r.status, r.message, (r.response).status_code,"
            " (r.response).body) from net.http_get_result(%s) r",
            request_id,
        ),
        lambda text: not text.startswith("PENDING"),
        f"request {request_id} has ended",
    )
    return message


def smoke(database: Database, url: str, writes: str = "") -> None:
    owner = database.connect(options=writes)
    owner.execute("create extension pgnet cascade")
    owner.execute("select net.allow_network('LOOPBACK')")
    owner.execute("select net.grant_worker('environment_worker')")
    owner.execute("select net.configure('ttl', '7 hours'), net.configure('max_grace', '2 s')")
    owner.execute("select net.configure('timeout_milliseconds', '20000')")
    owner.execute("select net.deny_host('*.INTERNAL.Example'), net.configure('egress', 'public')")
    owner.execute("select net.configure_host('API.Example.org', %s)", ('{"user_agent": "a / b"}',))
    owner.execute("select net.configure_retry('twice', '{\"max_attempts\": 2}')")
    owner.execute("select net.set_secret('key', 'a-secret-value', %s)", (f"{url}/",))
    owner.execute("select net.grant_secret('key', 'environment_app')")
    owner.execute("select net.configure_host('[::1]', '{\"proxy\": \"http://[::1]:8080\"}')")

    caller = database.connect("environment_app", options=writes)

    def post(path: str, **more: str) -> int:
        arguments = "".join(f", {name} => {value}" for name, value in more.items())
        number = scalar(caller, f"select net.http_request('POST', %s{arguments})", f"{url}{path}")
        assert isinstance(number, int)
        return number

    one = scalar(
        caller,
        "select net.http_post(%s, jsonb_build_object('text', chr(228) || chr(92)), %s, %s)",
        f"{url}/echo",
        '{"q": "a b\\\\", "n": 1}',
        '{"X-Key": {"secret": "key"}}',
    )
    two = post("/echo", body_text="'plain'")
    owner.execute("call net.drain()")
    assert ended(caller, one).startswith("SUCCESS ok 200"), ended(caller, one)
    assert ended(caller, two).startswith("SUCCESS ok 200")

    with pytest.raises(psycopg.errors.InvalidParameterValue, match="Unsupported URL scheme"):
        caller.execute("select net.http_get('ftp://example.com/')")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="must be between"):
        owner.execute("select net.configure('max_redirects', '31')")

    with database.cluster.worker(dbname=database.name, user="environment_worker"):
        three = post("/echo", body_form='\'{"a": "b"}\'', retry="'twice'")
        four = post("/status/500")
        five = scalar(caller, "select net.http_get(%s)", f"{url}/slow?s=5")
        assert ended(caller, three).startswith("SUCCESS ok 200")
        assert ended(caller, four).startswith("SUCCESS ok 500")
        assert scalar(caller, "select net.cancel(%s)", five) is True
        assert "cancelled" in ended(caller, five)
        six = scalar(caller, "select net.retry(%s)", four)
        assert ended(caller, six).startswith("SUCCESS ok 500")
        found = owner.execute("select item, detail from net.check() where not ok").fetchall()
        assert found == []
    assert scalar(owner, "select value from net.settings where name = 'ttl'") == "7 hours"
    rows = owner.execute("select state::text, attempts from net.requests order by id").fetchall()
    states = [(s.decode() if isinstance(s, bytes) else s, a) for s, a in rows]
    assert states == [
        ("succeeded", 1), ("succeeded", 1), ("succeeded", 1), ("failed", 1), ("cancelled", 1),
        ("failed", 1),
    ]  # fmt: skip


@pytest.mark.usefixtures("roles")
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_under(cluster: Cluster, nginx: Any, name: str) -> None:
    settings = ENVIRONMENTS[name]
    database = cluster.create_database(extension=False)
    try:
        apply(database, settings)
        writes = " ".join(f"-c {n}={v}" for n, v in WRITES.items() if n in settings)
        smoke(database, nginx.url, writes)
    finally:
        database.drop()


def test_the_sessions_settings_are_its_own_again(database: Database, nginx: Any) -> None:
    """After a worker in the session, and after one that was cancelled."""
    settings = {
        "default_transaction_read_only": "on",
        "default_transaction_isolation": "serializable",
        "lock_timeout": "5s",
        "application_name": "mine",
        "session_replication_role": "replica",
    }
    request_id = database.value("select net.http_get(%s)", nginx.url)
    session = database.connect()
    for name, value in settings.items():
        session.execute("select set_config(%s, %s, false)", (name, value))
    session.execute("call net.drain()")
    assert database.value("select state from net.requests where id = %s", request_id) == (
        "succeeded"
    )
    session.execute("set statement_timeout = '1500 ms'")
    session.execute("call net.work()")
    for name, value in settings.items():
        assert scalar(session, "select current_setting(%s)", name) == value


def test_as_replica_what_brings_its_number_is_not_sent(database: Database, nginx: Any) -> None:
    """A caller's request is: beside what other tools replicate, which is not."""
    session = database.connect(options="-c session_replication_role=replica")
    insert = "insert into net.http_request_queue (id, method, url) values (%s, 'GET', %s)"
    session.execute(insert, (1000, nginx.url))
    first = scalar(session, "select net.http_get(%s)", nginx.url)
    session.execute(insert, (1001, nginx.url))
    second = scalar(session, "select net.http_request('GET', %s)", nginx.url)
    session.execute("update net.http_request_queue set priority = 1")
    session.execute("call net.drain()")
    rows = database.rows("select id, state::text from net.requests where id < 1000 order by 1")
    assert rows == [(first, "succeeded"), (second, "succeeded")]
    assert database.rows("select id, origin from net.http_request_queue order by 1") == [
        (1000, "replica"),
        (1001, "replica"),
    ]
    # and adopted by a session of that kind, too
    session.execute("select net.adopt_database()")
    session.execute("call net.drain()")
    assert database.value("select count(*) from net.responses") == 4


# Named in two halves: the word is searched for.
PATCH = "patch_" + "all"
PATCHED = f"""
create extension if not exists plpython3u;
create function patched() returns void language plpython3u as $$
import gevent
from gevent import monkey
monkey.{PATCH}()
import socket, sys, threading, time, warnings
socket.setdefaulttimeout(0.0001)
warnings.simplefilter("error")
sys.setrecursionlimit(400)
GD["requests"] = GD["gevent"] = GD["pgnet"] = None
gevent.spawn(time.sleep, 3600)
thread = threading.Thread(target=time.sleep, args=(0.01,))
thread.start()
thread.join()
gevent.sleep(0.01)
$$
"""


@pytest.mark.parametrize("when", ["before", "between"])
def test_where_a_users_python_has_patched_the_session(
    database: Database, nginx: Any, when: str
) -> None:
    session = database.connect()
    session.execute(PATCHED)
    if when == "between":
        session.execute("select net.http_get(%s)", (nginx.url,))
        session.execute("call net.drain()")
    session.execute("select patched()")
    request_id = scalar(session, "select net.http_get(%s)", nginx.url)
    other = scalar(
        session,
        "select net.http_request('POST', %s, body => '{}', params => '{\"a\": \"ä\"}')",
        nginx.url,
    )
    session.execute("call net.drain()")
    assert ended(session, request_id).startswith("SUCCESS ok 200")
    assert ended(session, other).startswith("SUCCESS ok")
    # The worker still hears the commits of others, and a cancel.
    session.execute("set statement_timeout = '4 s'")
    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(session.execute, "call net.work()")
        database.execute("select net.wait_until_running()")
        woken = database.value("select net.http_get(%s)", nginx.url)
        assert database.value("select (net.wait(%s, '3 s')).status_code", woken) == 200
        session.cancel()
        with pytest.raises(psycopg.errors.QueryCanceled):
            serving.result(10)


def test_a_turkish_database(cluster: Cluster, nginx: Any) -> None:
    """There lower('I') is not i: hosts, words and headers do not follow the language."""
    database = cluster.create_database(
        options="locale_provider icu icu_locale 'tr-TR' locale 'C.UTF-8'"
    )
    try:
        assert database.value("select lower('I') <> 'i'") is True
        speaks_as_elsewhere(database, nginx)
    finally:
        database.drop()


def test_a_turkish_database_by_the_systems_locale(installed: None, nginx: Any) -> None:
    source = Path("/usr/share/i18n/locales/tr_TR")
    if not source.exists():
        pytest.skip("no sources of locales here: apt-get install locales")
    with tempfile.TemporaryDirectory(dir="/tmp") as locales:
        Path(locales).chmod(0o755)
        subprocess.run(
            ["localedef", "-i", "tr_TR", "-f", "UTF-8", f"{locales}/tr_TR.UTF-8"], check=True
        )
        cluster = Cluster()
        cluster.server_environment["LOCPATH"] = locales
        with cluster:
            database = cluster.create_database(options="locale 'tr_TR.UTF-8'")
            assert database.value("select lower('I') <> 'i'") is True
            speaks_as_elsewhere(database, nginx)
            database.close()


def speaks_as_elsewhere(database: Database, nginx: Any) -> None:
    database.execute("select net.configure('timeout_milliseconds', '20000')")
    database.execute("select net.allow_network('PRIVATE'), net.allow_network('LOOPBACK')")
    database.execute("select net.deny_host('API.INTERNAL.EXAMPLE')")
    database.execute("select net.configure_host('*.INTERNAL.EXAMPLE', '{\"max_redirects\": 1}')")
    assert {row[0] for row in database.rows("select pattern from net.egress")} >= {
        "api.internal.example",
        "10.0.0.0/8",
    }
    assert database.value("select host from net.hosts") == "*.internal.example"
    ids = [
        database.value(query, f"{nginx.url}/echo".replace("http://", "HTTP://"))
        for query in (
            "select net.http_request('options', %s)",
            "select net.http_request('POST', %s, body_text => 'x',"
            '   headers => \'{"CONTENT-TYPE": "text/plain; CHARSET=UTF-8"}\')',
            'select net.http_post(%s, headers => \'{"CONTENT-TYPE": "application/json"}\')',
        )
    ]
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="another charset"):
        database.execute(
            "select net.http_request('POST', 'http://x/', body_text => 'x',"
            ' headers => \'{"CONTENT-TYPE": "text/plain; CHARSET=ISO-8859-9"}\')'
        )
    database.execute("begin isolation level serializable")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="could never see"):
        database.execute("select net.wait(%s)", ids[0])
    database.execute("rollback")
    database.execute("call net.drain()")
    states = database.rows("select method, state::text from net.requests order by id")
    assert states == [("OPTIONS", "succeeded"), ("POST", "succeeded"), ("POST", "succeeded")]


def test_a_role_that_becomes_another(database: Database, nginx: Any) -> None:
    """ALTER ROLE ... SET role: the request is the current role's, and so is the answer."""
    database.execute("create role in_person login")
    database.execute("create role in_office")
    database.execute("grant in_office to in_person")
    database.execute("alter role in_person set role = in_office")
    try:
        session = database.connect("in_person")
        request_id = scalar(session, "select net.http_get(%s)", nginx.url)
        database.execute("call net.drain()")
        assert ended(session, request_id).startswith("SUCCESS ok 200")
        role = "select requested_by::text from net.responses where id = %s"
        assert database.value(role, request_id) == "in_office"
    finally:
        database.close()
        database.execute("drop role in_person, in_office")


def test_the_command_for_secrets(cluster: Cluster) -> None:
    """pgnet secret writes where a database is read only by default, in whatever encoding."""
    database = cluster.create_database()
    try:
        apply(
            database,
            {
                "default_transaction_read_only": "on",
                "default_transaction_isolation": "serializable",
                "client_encoding": "LATIN1",
                "row_security": "off",
                "DateStyle": "German",
                "search_path": "''",
            },
        )

        def command(*arguments: str, given: str = "") -> str:
            return subprocess.run(
                [server_python(), "-m", "pgnet", "secret", *arguments, "--dsn", database.dsn()],
                cwd="/", env=CLEAN_ENVIRONMENT, input=given, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True,
            ).stdout  # fmt: skip

        assert "is set" in command("set", "key", "--url-prefix", "http://x/", given="0123456789")
        assert "http://x/" in command("list")
        command("drop", "key")
        assert "key" not in command("list")
    finally:
        database.drop()
