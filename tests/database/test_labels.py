"""Volatility and parallel labels: the labels of a function are those that its body allows.

PostgreSQL believes the labels. A function that is said to be safe in a parallel query and is not
fails as soon as a table is large enough; one that is said to be immutable and is not gives old
answers from plans and indexes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors

from servers.cluster import Cluster, Database

PARALLEL = "sru"  # safe, restricted, unsafe: each may call those before it, and itself
VOLATILITY = "isv"  # immutable, stable, volatile

# Functions whose body may do less than their label says, and why.
EXCUSED = {
    # The function raises the error of its arguments, or none: the same each time.
    "raise_error",
    # The rows do not change while a statement runs.
    "pg_control_system",
    "pg_xact_status",
}
BY_ROW = 8
ROWS = 4000


@pytest.fixture(scope="module")
def full(cluster: Cluster) -> Iterator[Database]:
    """A database whose tables are worth a parallel plan."""
    database = cluster.create_database()
    database.execute(
        "insert into net._http_response (id, status_code, content_type, headers, content,"
        "   timed_out, state, attempts, method, url, requested_by, requested)"
        " select n, 200, 'application/json', '{}', jsonb_build_object('ok', n %% 100)::text,"
        "   false, 'succeeded', 2, 'GET', 'http://x/', current_user::regrole, now()"
        " from generate_series(1, %s) n",
        ROWS,
    )
    database.execute(
        "insert into net.http_request_queue (method, url)"
        " select 'GET', 'http://x/' from generate_series(1, %s)",
        ROWS,
    )
    database.execute(
        "insert into pgnet.attempt (request_id, attempt, requested_by, ending, started, ended)"
        " select n, 1, current_user::regrole, 'answered', now(), now()"
        " from generate_series(1, %s) n",
        ROWS,
    )
    database.execute(
        "insert into pgnet.failed"
        " (id, method, url, requested_by, created, priority, state, attempts)"
        " select n, 'GET', 'http://x/', current_user::regrole, now(), 0, 'failed', 1"
        " from generate_series(1, %s) n",
        ROWS,
    )
    database.execute("select net.set_secret('s', '0123456789', 'http://x/')")
    database.execute("select net.deny_host('example.com'), net.configure_retry('mine', '{}')")
    database.execute("select net.configure_host('example.com', '{\"max_redirects\": 1}')")
    database.execute("analyze")
    yield database
    database.drop()


def parallel_session(database: Database) -> psycopg.Connection[Any]:
    """A session in which whatever may run in parallel does."""
    session = database.connect()
    new = session.info.server_version >= 160000
    for setting in (
        f"{'debug_parallel_query' if new else 'force_parallel_mode'} = on",
        "parallel_setup_cost = 0",
        "parallel_tuple_cost = 0",
        "min_parallel_table_scan_size = 0",
        "min_parallel_index_scan_size = 0",
        "max_parallel_workers_per_gather = 2",
    ):
        session.execute(f"set {setting}")
    return session


def without_text(source: str) -> str:
    """A body without its comments and string literals."""
    return re.sub(r"'(?:[^']|'')*'|--.*", "", source)


def test_labels_are_those_of_the_bodies(full: Database) -> None:
    """No body calls what its own label excludes, and no immutable one reads a table."""
    functions = full.rows(
        "select p.proname, l.lanname, p.prosrc, p.provolatile, p.proparallel"
        " from pg_proc p join pg_language l on l.oid = p.prolang"
        " where p.pronamespace = any ('{net,pgnet}'::regnamespace[]) and p.prokind = 'f'"
    )
    labels = {name: (volatility, parallel) for name, _, _, volatility, parallel in functions}
    # For overloaded functions of PostgreSQL, the label that allows most.
    builtin = {
        name: (VOLATILITY[volatility], PARALLEL[parallel])
        for name, volatility, parallel in full.rows(
            "select proname, min(position(provolatile::text in 'isv')) - 1,"
            "   min(position(proparallel::text in 'sru')) - 1"
            " from pg_proc where pronamespace = 'pg_catalog'::regnamespace group by 1"
        )
    }
    relations = [
        name
        for (name,) in full.rows(
            "select relname from pg_class where relnamespace = any ('{net,pgnet}'::regnamespace[])"
            " and relkind in ('r', 'v')"
        )
    ]
    faults = []
    for name, language, source, volatility, parallel in functions:
        body = without_text(source)
        if re.search(r"\bexception\s+when\b", body, re.IGNORECASE) and parallel != "u":
            faults.append(f"{name}: a subtransaction cannot begin in a parallel query")
        if "plpy," in source and parallel != "u":
            faults.append(f"{name}: it may run SQL in Python, each a subtransaction")
        if language == "plpython3u":
            continue
        read = [r for r in relations if re.search(rf"\b(?:pg)?net\.{r}\b(?!\()", body)]
        if read and volatility == "i":
            faults.append(f"{name}: immutable, and reads {read[0]}")
        for called in set(re.findall(r"(?<![\w.])(?:(?:net|pgnet|pg_catalog)\.)?(\w+)\(", body)):
            label = labels.get(called) or builtin.get(called)
            if label is None or called in EXCUSED:
                continue
            if PARALLEL.index(label[1]) > PARALLEL.index(parallel):
                faults.append(f"{name}: parallel {parallel}, calls {called}: {label[1]}")
            if VOLATILITY.index(label[0]) > VOLATILITY.index(volatility):
                faults.append(f"{name}: {volatility}, calls {called}: {label[0]}")
        asked = re.search(r"\b(current_user|session_user|current_timestamp)\b", body)
        if asked and volatility == "i":
            faults.append(f"{name}: immutable, and asks for {asked[0]}")
    assert faults == [], "\n".join(sorted(faults))


def test_what_writes_is_volatile(full: Database) -> None:
    """And unsafe: a parallel query writes nothing, and a stable function may not."""
    for name, source in full.rows(
        "select proname, prosrc from pg_proc"
        " where pronamespace = any ('{net,pgnet}'::regnamespace[])"
        " and prokind = 'f' and (provolatile <> 'v' or proparallel <> 'u')"
    ):
        body = without_text(source)
        written = re.search(
            r"\b(insert into|update (?:pg)?net|delete from|for update|lock table)\b", body
        )
        assert written is None, f"{name}: {written}"


def test_every_view_in_parallel(full: Database) -> None:
    session = parallel_session(full)
    for (name,) in full.rows(
        "select oid::regclass::text from pg_class"
        " where relnamespace = any ('{net,pgnet}'::regnamespace[]) and relkind = 'v'"
    ):
        # Every column of every row: count(*) alone would compute none.
        session.execute(f"select sum(length(v::text)) from {name} v")
    row = session.execute(
        "select count(*) from net.responses where content_json ->> 'ok' = '7'"
    ).fetchone()
    assert row == (ROWS / 100,)


VALUES = {
    "text": ["http://x/", "s", "loopback", "10.1", "ttl", "6 h", "mine", '{"a": ["a", 1]}'],
    "name": ["http_request_queue", "_http_response", "failed", "attempt", "x", "x", "x", "x"],
    "varchar": ["a b"],
    "jsonb": ['{"Content-Type": "text/plain; charset=utf-8"}', "[1, 429]", '"any"', "7", "{}"],
    "json": ["[1, 2, 3]"],
    "text[]": ["{a=b}"],
    "boolean": ["true", "false"],
    "timestamptz": ["now", "infinity"],
    "regrole": ["postgres"],
    "xid": ["3"],
}


def test_every_function_in_parallel(full: Database) -> None:
    """Functions that are PARALLEL SAFE run row by row, with arguments that reach their branches."""
    session = parallel_session(full)
    functions = full.rows(
        "select p.oid::regproc::text,"
        " array(select format_type(t, null) from unnest(p.proargtypes) t)"
        " from pg_proc p where p.pronamespace = any ('{net,pgnet}'::regnamespace[])"
        " and p.prokind = 'f' and p.prorettype <> 'trigger'::regtype and p.proparallel <> 'u'"
        " order by 1"
    )
    assert len(functions) > 30
    aliases = {"timestamp with time zone": "timestamptz", "character varying": "varchar"}
    refused = []
    for name, types in functions:
        for row in range(BY_ROW):
            arguments = []
            for place, kind in enumerate(types):
                kind = aliases.get(kind, kind)
                known = VALUES.get(kind, ["1"])
                value = known[(row + place) % len(known)] if row else known[0]
                arguments.append(f"nullif($q${value}$q$, x::text)::{kind}")
            call = f"{name}({', '.join(arguments)})"
            query = (
                f"select count(v.*) from (select url as x from net._http_response limit 3) t,"
                f" lateral (select {call}) v"
            )
            try:
                session.execute(query)
            except psycopg.Error as error:
                # Errors of the function itself are fine.
                if "parallel" in (error.diag.message_primary or ""):
                    refused.append(f"{call}: {error}")
    assert refused == [], "\n".join(refused)


def test_what_the_session_shows_was_parallel(full: Database) -> None:
    """The tests above would notice a wrong label: this function has one."""
    full.execute(
        "create function number(x text) returns int language plpgsql immutable parallel safe as"
        " $$ begin return nextval('numbers'); end $$"
    )
    full.execute("create sequence numbers")
    # Until PostgreSQL 16 a subtransaction, as an EXCEPTION block has one, is refused as well.
    with pytest.raises(errors.InvalidTransactionState, match="parallel operation"):
        parallel_session(full).execute("select count(number(url)) from net._http_response")


def test_what_is_to_be_seen_depends_on_the_role_in_parallel_too(full: Database) -> None:
    """Row security of a parallel query goes by the role that asks."""
    full.execute("create role nobody_here login")
    session = parallel_session(full)
    session.execute("set role nobody_here")
    for name in ("requests", "responses", "failures", "attempts"):
        assert session.execute(f"select count(*) from net.{name}").fetchone() == (0,)
    full.execute("drop role nobody_here")


def test_indexes_and_constraints_use_immutable_functions_only(full: Database) -> None:
    used = full.rows(
        "select distinct p.proname, p.provolatile from pg_depend d"
        " join pg_proc p on p.oid = d.refobjid and d.refclassid = 'pg_proc'::regclass"
        " join pg_index i on i.indexrelid = d.objid and d.classid = 'pg_class'::regclass"
        " where p.pronamespace = any ('{net,pgnet}'::regnamespace[])"
    )
    assert used == [("host_of_url", "i")]
