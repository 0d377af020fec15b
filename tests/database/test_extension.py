"""The extension as an object: creating it, what it says and refuses, dropping, dump and restore."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pglast import ast, parse_sql
from pglast.enums import FunctionParameterMode
from psycopg import errors, sql

import pgnet
from servers.cluster import CLEAN_ENVIRONMENT, ROOT, Cluster, Database, pg_config, server_python
from servers.nginx import Nginx

SCRIPTS = sorted(ROOT.glob("pgnet--*.sql"))
EXTENSIONS = Path(pg_config("sharedir")) / "extension"


@pytest.fixture
def empty(cluster: Cluster) -> Iterator[Database]:
    """A database without the extension."""
    database = cluster.create_database(extension=False)
    yield database
    database.drop()


def statements(script: Path) -> list[Any]:
    """The script's statements, as PostgreSQL's own parser reads them."""
    text = "".join(
        line for line in script.read_text().splitlines(keepends=True) if not line.startswith("\\")
    )
    return [raw.stmt for raw in parse_sql(text)]


def functions(script: Path) -> list[Any]:
    """The functions and procedures that it creates."""
    return [stmt for stmt in statements(script) if isinstance(stmt, ast.CreateFunctionStmt)]


# ---- the script


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_argument_names_need_no_quotes(script: Path) -> None:
    named = []
    for function in functions(script):
        parameters = function.parameters or ()
        for parameter in parameters:
            if parameter.mode != FunctionParameterMode.FUNC_PARAM_TABLE and parameter.name:
                parse_sql(f"select f({parameter.name} => 1)")
                named.append(parameter.name)
                assert parameter.name == parameter.name.lower()
        name = function.funcname[-1].sval
        assert name.startswith("_") or all(parameter.name for parameter in parameters), name
    assert "timeout_milliseconds" in named


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_nothing_is_replaced_and_nothing_is_skipped(script: Path) -> None:
    """OR REPLACE and IF NOT EXISTS would take over what somebody has put there before."""
    for stmt in statements(script):
        assert not getattr(stmt, "replace", False)
        assert not getattr(stmt, "if_not_exists", False)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_function_says_what_it_is(script: Path) -> None:
    """Language and, for functions, volatility; a definer's search_path is pinned."""
    for function in functions(script):
        name = function.funcname[-1].sval
        assert [part.sval for part in function.funcname[:-1]] in (["net"], ["pgnet"]), name
        options = {option.defname: option.arg for option in function.options}
        assert "language" in options, name
        assert function.is_procedure or "volatility" in options, name
        if "security" in options and options["security"].boolval:
            paths = [
                [value.val.sval for value in option.arg.args]
                for option in function.options
                if option.defname == "set" and option.arg.name == "search_path"
            ]
            assert paths == [["pg_catalog", "pg_temp"]], name


def test_psql_is_refused(empty: Database) -> None:
    """Fed to psql by hand, the script does nothing but say how it is meant."""
    finished = subprocess.run(
        [
            empty.cluster.bindir / "psql",
            "-X",
            "-d",
            empty.dsn(),
            "-f",
            EXTENSIONS / SCRIPTS[-1].name,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stdout.strip() == 'Use "create extension pgnet cascade" to load this file.'
    assert empty.value("select to_regnamespace('net')") is None


# ---- creating


def test_the_notice(empty: Database) -> None:
    notices: list[tuple[str | None, str | None, str | None]] = []
    session = empty.connect()
    session.add_notice_handler(
        lambda notice: notices.append(
            (notice.severity, notice.message_primary, notice.message_hint)
        )
    )
    session.execute("create extension pgnet cascade")
    severity, message, hint = notices[-1]
    assert severity == "NOTICE"
    assert "once a worker runs" in (message or "")
    for way in ("net.schedule_worker()", "net.work()", '"pgnet worker"', "net.check()"):
        assert way in (hint or "")
    # the session's own setting is as it was
    assert session.execute("show client_min_messages").fetchone() == ("notice",)


def test_several_databases(cluster: Cluster) -> None:
    databases = [cluster.create_database() for _ in range(3)]
    for database in databases:
        assert database.value("select net.http_get('http://localhost/')") == 1
    for database in databases:
        assert database.value("select count(*) from net.requests") == 1
        database.drop()


def test_without_what_it_requires(empty: Database) -> None:
    with pytest.raises(errors.UndefinedObject, match='required extension "plpython3u"') as caught:
        empty.execute("create extension pgnet")
    assert "CASCADE" in (caught.value.diag.message_hint or "")


def serves(database: Database, url: str) -> None:
    """A request is sent, and its outcome recorded."""
    database.execute("select net.allow_network('loopback')")
    request_id = database.value("select net.http_get(%s)", url)
    database.execute("call net.drain()")
    assert database.value("select (net.wait(%s)).status_code", request_id) == 200


@pytest.mark.parametrize(
    ("contents", "cure"),
    [
        ("", "drop schema {schema}"),
        # the installing role's own, and with what the script would not meet
        ("create function {schema}.mine() returns int language sql as 'select 1'", "rename to"),
        ("create table {schema}.http_request_queue (id int)", "rename to"),
    ],
    ids=["empty", "a function", "a table"],
)
@pytest.mark.parametrize("owner", ["postgres", "pg_monitor"])
@pytest.mark.parametrize("schema", ["net", "pgnet"])
def test_where_a_schema_is_taken(
    empty: Database, schema: str, owner: str, contents: str, cure: str
) -> None:
    empty.execute(f"create schema {schema} authorization {owner}")
    if contents:
        empty.execute(contents.format(schema=schema))
    with pytest.raises(errors.DuplicateSchema) as caught:
        empty.execute("create extension pgnet cascade")
    diag = caught.value.diag
    assert diag.message_primary == (
        f'pgnet cannot be installed: the schema "{schema}" exists already'
    )
    assert f'"{owner}"' in (diag.message_detail or "")
    assert f"holds {1 if contents else 0} object" in (diag.message_detail or "")
    assert cure.format(schema=schema) in (diag.message_hint or "")
    assert empty.value("select count(*) from pg_extension where extname = 'pgnet'") == 0
    # the hint's statements
    for statement in (diag.message_hint or "").split(";")[:-1]:
        empty.execute(statement)
    assert empty.value("select net.http_get('http://localhost/')") == 1


def test_the_schema_public_may_go(empty: Database, nginx: Nginx) -> None:
    """Neither the extension nor what it requires depends on the schema public."""
    notices: list[str | None] = []
    session = empty.connect()
    session.execute("create extension pgnet cascade")
    session.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    session.execute("drop schema public cascade")
    assert notices == []
    serves(empty, nginx.url)
    assert empty.rows(
        "select distinct n.nspname from pg_depend d join pg_namespace n on n.oid = d.refobjid"
        " where d.refclassid = 'pg_namespace'::regclass and ("
        "   d.classid = 'pg_extension'::regclass"
        "   or (d.classid, d.objid) in (select m.classid, m.objid from pg_depend m"
        "     where m.refclassid = 'pg_extension'::regclass and m.deptype = 'e'))"
        " order by 1"
    ) == [("net",), ("pgnet",)]


@pytest.mark.parametrize(
    "path",
    ["", "nowhere", '"$user"', "other, public", "pg_temp, other", "other, pg_catalog"],
)
def test_whatever_the_search_path(empty: Database, nginx: Nginx, path: str) -> None:
    """The path may come with the role, and its schema may have names that the script uses."""
    empty.execute("create schema other")
    for name in ("text", "jsonb", "bigint", "timestamptz"):
        empty.execute(f"create domain other.{name} as int check (value < 0)")
    empty.execute("create function other.now() returns int language sql as 'select -1'")
    empty.execute("create role path_owner superuser login")
    try:
        empty.execute(f"alter database {empty.name} owner to path_owner")
        empty.execute("select set_config('search_path', %s, false)", path)
        empty.execute("alter role path_owner set search_path from current")
        session = empty.connect("path_owner")
        assert session.execute("show search_path").fetchone() == (path,)
        session.execute("create extension pgnet cascade")
        session.execute("select net.allow_network('loopback')")
        row = session.execute("select net.http_get(%s)", (nginx.url,)).fetchone()
        session.execute("call net.drain()")
        found = session.execute("select status_code from net.responses where id = %s", row)
        assert found.fetchone() == (200,)
    finally:
        empty.execute("reset search_path")
        empty.execute("drop owned by path_owner cascade")
        empty.execute(f"alter database {empty.name} owner to postgres")
        empty.close()
        empty.execute("drop extension if exists pgnet, plpython3u")
        empty.execute("drop role path_owner")


@pytest.mark.parametrize(
    "options",
    [
        "encoding 'LATIN1' locale 'C'",
        "encoding 'WIN1252' locale 'C'",
        "encoding 'SQL_ASCII' locale 'C'",
        "encoding 'EUC_JP' locale 'C'",
        "locale_provider icu icu_locale 'tr-TR' locale 'C.UTF-8'",
        "locale_provider icu icu_locale 'de-u-ks-level2' locale 'C.UTF-8'",
    ],
)
def test_other_encodings_and_locales(cluster: Cluster, nginx: Nginx, options: str) -> None:
    database = cluster.create_database(options=options)
    try:
        serves(database, nginx.url)
    finally:
        database.drop()


def test_an_ordinary_role_cannot_create_it(empty: Database) -> None:
    """The extension needs an untrusted language, which only a superuser may install."""
    empty.execute("create extension plpython3u")
    empty.execute("create role extension_creator login")
    try:
        empty.execute(f"grant create on database {empty.name} to extension_creator")
        with pytest.raises(errors.InsufficientPrivilege):
            empty.connect("extension_creator").execute("create extension pgnet")
    finally:
        empty.execute("drop owned by extension_creator")
        empty.execute("drop role extension_creator")


@pytest.fixture
def pg_net(empty: Database) -> Iterator[Database]:
    """A database with an extension that goes by the name of pg_net."""
    control, script = EXTENSIONS / "pg_net.control", EXTENSIONS / "pg_net--0.0.sql"
    if control.exists():
        empty.execute("create extension pg_net")
        yield empty
        return
    try:
        control.write_text("comment = 'stands in for another one'\ndefault_version = '0.0'\n")
        script.write_text("create schema net;\n")
    except PermissionError:
        pytest.skip("the server's extension directory cannot be written here")
    try:
        empty.execute("create extension pg_net")
        yield empty
    finally:
        control.unlink()
        script.unlink()


def test_beside_pg_net(pg_net: Database) -> None:
    with pytest.raises(errors.DuplicateObject) as caught:
        pg_net.execute("create extension pgnet cascade")
    diag = caught.value.diag
    assert diag.message_primary == "pgnet cannot be installed beside pg_net in one database"
    assert diag.message_detail
    assert "drop extension pg_net" in (diag.message_hint or "")
    # as the hint says, in one transaction
    session = pg_net.connect(autocommit=False)
    session.execute("drop extension pg_net")
    session.execute("create extension pgnet cascade")
    session.execute("select net.http_get('http://localhost/')")
    session.commit()
    assert pg_net.value("select count(*) from net.requests") == 1


# ---- dropping

CATALOGUE = """
    select count(*) from (
        select oid from pg_class union all select oid from pg_proc union all select oid from pg_type
        union all select oid from pg_namespace union all select oid from pg_constraint
        union all select oid from pg_trigger union all select oid from pg_rewrite
        union all select oid from pg_policy union all select oid from pg_attrdef
        union all select objoid from pg_init_privs union all select objoid from pg_description
        union all select classid from pg_depend union all select objid from pg_shdepend
    ) everything
"""


def test_dropping_leaves_nothing(empty: Database) -> None:
    empty.execute("create extension plpython3u")
    before = empty.value(CATALOGUE)
    empty.execute("create extension pgnet")
    empty.execute("select net.allow_network('loopback'), net.configure('ttl', '1 hour')")
    empty.execute("select net.http_get('http://localhost/')")
    assert empty.value(CATALOGUE) > before
    empty.execute("drop extension pgnet")
    assert empty.value(CATALOGUE) == before


def test_dropping_with_work_in_it(database: Database, httpd: str) -> None:
    """Requests that wait and requests in flight do not stand in the way."""
    with database.worker() as worker:
        database.execute("select net.http_get(%s)", f"{httpd}/hang")
        database.wait_for("select count(*) from pgnet.claim")
        database.execute("drop extension pgnet")
        assert worker.process.poll() is None


# ---- dump and restore


def test_dump_and_restore(cluster: Cluster, database: Database, nginx: Any, tmp_path: Path) -> None:
    """Settings and egress rules come along; requests and responses do not, and no number."""
    database.execute("create role dump_worker")
    database.execute("select net.grant_worker('dump_worker'), net.configure('ttl', '1 hour')")
    database.execute("select net.deny_host('example.com'), net.configure('wake_up', 'poll')")
    database.execute("revoke usage on schema net, pgnet from public")
    with database.worker():
        failed = database.value("select net.http_get(%s)", f"{nginx.url}/status/500")
        database.execute("select net.wait(%s)", failed)
    database.execute("select net.http_get('http://localhost/pending')")

    dump = tmp_path / "dump.sql"
    dump.write_text(cluster.run("pg_dump", "--no-sync", database.name))
    assert "pending" not in dump.read_text()
    restored = cluster.create_database(extension=False)
    try:
        subprocess.run(
            [cluster.bindir / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1",
             "-d", restored.dsn(), "-f", dump],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        for query in (
            "select name, value from net.settings order by 1",
            "select kind, pattern, verdict from net.egress order by 1, 2",
            "select oid::regprocedure::text from pg_proc"
            " where pronamespace = any ('{net,pgnet}'::regnamespace[])"
            " and has_function_privilege('dump_worker', oid, 'execute') order by 1",
            "select nspacl::text from pg_namespace where nspname in ('net', 'pgnet')",
        ):
            assert restored.rows(query) == database.rows(query)
        assert restored.value("select count(*) from net.requests") == 0
        assert restored.value("select count(*) from net.failures") == 0
        assert restored.value("select net.http_get(%s)", nginx.url) == 1
        with restored.worker():
            assert restored.value("select (net.wait(1)).status_code") == 200
    finally:
        restored.drop()
        database.drop()
        with cluster.connect() as connection:
            connection.execute("drop role dump_worker")


def test_a_template_copy_has_what_the_original_has(cluster: Cluster, database: Database) -> None:
    database.execute("select net.configure('ttl', '1 hour')")
    database.close()
    copy = Database(cluster, f"{database.name}_copy")
    with cluster.connect() as connection:
        connection.execute(
            sql.SQL("create database {} template {}").format(
                sql.Identifier(copy.name), sql.Identifier(database.name)
            )
        )
    assert copy.value("select value from net.settings where name = 'ttl'") == "1 hour"
    assert copy.value("select net.http_get('http://localhost/')") == 1
    copy.drop()


# ---- the package


def imported(statement: str, *, python: str = server_python()) -> set[str]:
    """The modules, of those that are heavy, that a statement brings in."""
    finished = subprocess.run(
        [
            python,
            "-c",
            f"import sys; {statement}; print(*{{m.partition('.')[0] for m in sys.modules}})",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
        env=CLEAN_ENVIRONMENT,
    )
    return set(finished.stdout.split()) & {
        "gevent", "greenlet", "requests", "urllib3", "pycurl", "psycopg", "ssl", "asyncio",
    }  # fmt: skip


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    "statement",
    [
        "import pgnet",
        "from pgnet import sql_v1",
        "import pgnet.request.check, pgnet.server.commit_hook",
    ],
)
def test_what_callers_import_is_light(statement: str) -> None:
    assert imported(statement) == set()


@pytest.mark.usefixtures("installed")
def test_the_worker_imports_what_it_needs() -> None:
    """A worker imports these modules: so the test above would notice them in a caller."""
    assert {"gevent", "requests", "pycurl"} <= imported("import pgnet.worker.loop")
    assert "psycopg" not in imported("import pgnet.worker.loop")


def test_nothing_is_patched() -> None:
    word = "patch_" + "all"
    found = [
        path
        for path in [*ROOT.glob("python/**/*.py"), *ROOT.glob("extension/*.sql")]
        if word in path.read_text()
    ]
    assert found == []


def test_one_version(cluster: Cluster, fresh_database: Database) -> None:
    control = (ROOT / "pgnet.control").read_text()
    version = re.search(r"^default_version = '(.*)'$", control, re.MULTILINE)
    assert version
    name = version.group(1)
    assert (ROOT / f"pgnet--{name}.sql").exists()
    assert fresh_database.value("select extversion from pg_extension where extname = 'pgnet'") == (
        name
    )
    finished = subprocess.run(
        [server_python(), "-m", "pgnet", "--version"],
        capture_output=True, text=True, check=True, cwd="/", env=CLEAN_ENVIRONMENT,
    )  # fmt: skip
    assert finished.stdout.split() == ["pgnet", name]
    assert pgnet.__version__ == name


def test_a_session_that_was_there_before(cluster: Cluster, empty: Database) -> None:
    """Nothing is preloaded or restarted: an open session can call the extension at once."""
    session: psycopg.Connection[Any] = empty.connect()
    session.execute("select 1")
    empty.execute("create extension pgnet cascade")
    assert session.execute("select net.http_get('http://localhost/')").fetchone() == (1,)
    assert empty.value("show shared_preload_libraries") == ""
