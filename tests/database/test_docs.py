"""README, docs/ and examples/ name what is there, and the code that they show is run."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from servers.cluster import ROOT, Cluster, Database, pg_config, server_python

README = ROOT / "README.md"
DOCS = ROOT / "docs"
SWAP = DOCS / "coming-from-pg_net.md"
EXAMPLES = ROOT / "examples"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "tests/README.md",
    *sorted(DOCS.glob("*.md")),
    *sorted(EXAMPLES.rglob("*.md")),
]
EXAMPLE_FILES = [
    path
    for folder in (EXAMPLES, ROOT / "contrib")
    for path in folder.rglob("*")
    if path.suffix in (".sql", ".py", ".service")
]
UNIT = EXAMPLES / "pgnet-worker@.service"

# Internal names that users of pg_net know.
KNOWN_PRIVATE = {
    "_await_response",
    "_encode_url_with_params_array",
    "_http_collect_response",
    "_http_response",
    "_urlencode_string",
}
BLOCK = re.compile(
    r"^(<!-- not run here: [^\n]+ -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language, but for those marked as not run."""
    return [
        text
        for mark, found, text in BLOCK.findall(page.read_text())
        if found == language and not mark
    ]


def prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text())


def section(name: str, pages: str = "*") -> str:
    """The text under the first heading that has a name in it, up to the next heading."""
    for page in sorted(DOCS.glob(f"{pages}.md")):
        parts = re.split(r"^(#{1,3} .*)$", page.read_text(), flags=re.MULTILINE)
        for heading, text in itertools.pairwise(parts):
            if heading.startswith("#") and re.search(rf"{re.escape(name)}\b", heading):
                return heading + text
    raise AssertionError(f"no page has a section for {name}")


def documentation() -> str:
    return "\n".join(page.read_text() for page in DOCS.glob("*.md"))


def psql(database: Database, script: str, *options: str) -> str:
    """Run a script in one psql session; give what it printed, errors and notices included."""
    finished = subprocess.run(
        [
            database.cluster.bindir / "psql",
            "--no-psqlrc",
            "--set=ON_ERROR_STOP=1",
            *options,
            "--file=-",
        ],
        input=script,
        env={
            **os.environ,
            **database.cluster.environment,
            "PGDATABASE": database.name,
            "PGCLIENTENCODING": "UTF8",
            "PAGER": "",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-4000:]
    return finished.stdout


def run_page(database: Database, page: Path, url: str, etc: Path = Path("/etc/pgnet")) -> str:
    """Run the SQL of a page in order, with the echo server in place of others."""
    script = "\n".join(blocks(page, "sql"))
    assert script, f"{page.name} has no SQL"
    script = script.replace("http://localhost:8080", url).replace("https://example.com", url)
    script = script.replace("/etc/pgnet", str(etc))
    return psql(database, script)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The demonstration's server, which answers with what it got."""
    with subprocess.Popen(
        ["setpriv", "--pdeathsig=TERM", server_python(), str(ROOT / "demo/echo_server.py")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


@pytest.fixture(scope="module")
def docs_cluster(installed: None) -> Iterator[Cluster]:
    """A cluster of its own: pages create roles."""
    with Cluster() as cluster:
        with cluster.connect() as connection:
            connection.execute("create role app login")
        yield cluster


@pytest.fixture
def bare(docs_cluster: Cluster) -> Iterator[Database]:
    """A database without the extension."""
    database = docs_cluster.create_database(extension=False)
    yield database
    database.drop()


@pytest.fixture
def ready(docs_cluster: Cluster) -> Iterator[Database]:
    """A database with the extension and a worker, loopback allowed."""
    database = docs_cluster.create_database()
    database.execute("select net.allow_network('loopback')")
    with database.worker():
        yield database
    database.drop()


@pytest.fixture(scope="module")
def catalog(docs_cluster: Cluster) -> Iterator[Database]:
    """A database with the extension, which is only read."""
    database = docs_cluster.create_database()
    yield database
    database.drop()


# ---- what is shown is run


def test_the_session_in_the_readme(ready: Database, url: str) -> None:
    """The transcript, prompts taken away, is what psql prints."""
    shown = next(text for text in blocks(README, "text") if text.startswith("sandbox=#"))
    prompt = re.compile(r"^sandbox[=*-]+# ", re.MULTILINE)
    script = "\n".join(prompt.sub("", line) for line in shown.splitlines() if prompt.match(line))
    printed = psql(ready, script + "\n", "--echo-all", "-v", f"url={url}")
    assert printed.rstrip().splitlines() == prompt.sub("", shown).rstrip().splitlines()


def test_from_the_readme_to_the_uninstallation(bare: Database, url: str) -> None:
    printed = run_page(bare, README, url)
    assert "127.0.0.1 is a loopback address and not allowed" in printed
    run_page(bare, DOCS / "uninstall.md", url)
    assert bare.rows("select extname from pg_extension") == [("plpgsql",)]


def test_getting_started(bare: Database, url: str) -> None:
    printed = run_page(bare, DOCS / "getting-started.md", url)
    assert "127.0.0.1 is a loopback address and not allowed" in printed


# Pages that tests of their own run.
RUN_APART = {
    *("getting-started", "uninstall", "coming-from-pg_net", "certificates", "proxies", "testing")
}
WITH_SQL = [page.stem for page in DOCS.glob("*.md") if blocks(page, "sql")]


@pytest.mark.parametrize("name", sorted(set(WITH_SQL) - RUN_APART))
def test_a_page(ready: Database, url: str, name: str) -> None:
    run_page(ready, DOCS / f"{name}.md", url)


def test_testing_an_application(docs_cluster: Cluster, url: str) -> None:
    """No worker serves the database, so that net.drain does all the work."""
    database = docs_cluster.create_database()
    try:
        printed = run_page(database, DOCS / "testing.md", url)
        assert '{"id": "ch_1", "paid": true}' in printed
        assert re.search(r"^ +1200? .*\| 201$|\| 1200 +\|.*\| +201", printed, re.MULTILINE)
        attempts = re.findall(r"^ +([1-4]) \| +(503|200|)$", printed, re.MULTILINE)
        assert attempts == [("1", "503"), ("2", "503"), ("3", ""), ("4", "200")]
        assert re.search(r"^ failed \| t$", printed, re.MULTILINE)
        assert database.rows("select * from net.stubs") == []
    finally:
        database.drop()


@pytest.fixture
def etc() -> Iterator[Path]:
    """A directory for what pages have in /etc/pgnet; the server's user can read it."""
    directory = Path(tempfile.mkdtemp(prefix="pgnet-etc-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def run_commands(database: Database, page: Path, etc: Path) -> None:
    """Run the commands of a page, which are all of pgnet."""
    for command in [line for text in blocks(page, "sh") for line in text.splitlines()]:
        program, _, rest = command.replace("/etc/pgnet", str(etc)).partition(" ")
        assert program == "pgnet"
        subprocess.run(
            ["/bin/sh", "-c", f"{server_python()} -m pgnet {rest}"],
            env={**os.environ, **database.cluster.environment, "PGDATABASE": database.name},
            check=True,
        )


def test_certificates(ready: Database, url: str, etc: Path) -> None:
    authority = trustme.CA()
    client = authority.issue_cert("shop@example.com")
    for name, content in (
        ("internal-ca.pem", authority.cert_pem.bytes()),
        ("partner.pem", client.cert_chain_pems[0].bytes()),
        ("partner.key", client.private_key_pem.bytes()),
    ):
        (etc / name).write_bytes(content)
        (etc / name).chmod(0o644)
    run_commands(ready, DOCS / "certificates.md", etc)
    printed = run_page(ready, DOCS / "certificates.md", url, etc)
    assert 'the certificate of "testbed.internal.example" is not checked any more' in printed
    configured = dict(ready.rows("select host, settings from net.hosts"))
    assert configured["*.internal.example"] == {"ca": authority.cert_pem.bytes().decode()}
    assert configured["api.partner.example"] == {
        "client_certificate": client.cert_chain_pems[0].bytes().decode(),
        "client_key": {"secret": "partner-key"},
    }
    assert "testbed.internal.example" not in configured


def test_proxies(ready: Database, url: str, etc: Path) -> None:
    line = "http://user:password@proxy.office.example:3128\n"
    (etc / "office-proxy").write_text(line)
    (etc / "office-proxy").chmod(0o644)
    run_commands(ready, DOCS / "proxies.md", etc)
    run_page(ready, DOCS / "proxies.md", url, etc)
    configured = dict(ready.rows("select host, settings from net.hosts"))
    assert configured["*"]["proxy"] == {"secret": "office-proxy"}
    assert configured["*.internal.example"] == {"proxy": "direct"}


def test_failed_posts_are_sent_again(ready: Database, httpd: str) -> None:
    """The statement of the page on troubles does send what failed."""
    ready.execute("select net.http_post(%s, body => '{\"a\": 1}')", f"{httpd}/status/503")
    ready.wait_for("select count(*) from net.failures")
    statement = next(
        text
        for text in blocks(DOCS / "troubleshooting.md", "sql")
        if "net.failures f" in text and "net.retry" in text
    )
    assert "(1 row)" in psql(ready, statement)
    ready.wait_for("select count(*) from net.failures where id = 2")
    assert ready.rows("select id, body, retry_of from net.failures") == [(2, b'{"a": 1}', 1)]


# ---- the swap


# As much of pg_net as a swap meets: the extension's name, its schema, its members.
PG_NET = """
create schema net;
create domain net.http_method as text;
create unlogged table net.http_request_queue (
    id bigserial, method net.http_method not null, url text not null, headers jsonb, body bytea,
    timeout_milliseconds int not null);
create unlogged table net._http_response (
    id bigint, status_code integer, content_type text, headers jsonb, content text, timed_out bool,
    error_msg text, created timestamptz not null default now());
create type net.request_status as enum ('PENDING', 'SUCCESS', 'ERROR');
create type net.http_response as (status_code integer, headers jsonb, body text);
create type net.http_response_result as (
    status net.request_status, message text, response net.http_response);
create function net.http_get(
    url text, params jsonb default '{}', headers jsonb default '{}',
    timeout_milliseconds int default 5000)
    returns bigint language sql
    return (select null::bigint);
grant usage on schema net to public;
grant all on all tables in schema net to public;
"""


@pytest.fixture(scope="module")
def cluster_with_pg_net(installed: None) -> Iterator[Cluster]:
    """A cluster that finds one more extension, a stand-in for pg_net.

    The server looks for its files beside its executable: so a copy of that stands in a tree that
    is otherwise links to the installed one.
    """
    bindir, share, lib = (Path(pg_config(item)) for item in ("bindir", "sharedir", "pkglibdir"))
    common = Path(os.path.commonpath([bindir, share, lib]))
    tree = Path(tempfile.mkdtemp(prefix="pgnet-swap-", dir="/tmp"))
    try:
        tree.chmod(0o755)
        places = {path: tree / path.relative_to(common) for path in (bindir, share, lib)}
        places[lib].parent.mkdir(parents=True, exist_ok=True)
        places[lib].symlink_to(lib)
        places[bindir].mkdir(parents=True)
        for program in ("postgres", "initdb", "psql"):
            shutil.copy(bindir / program, places[bindir])
        places[share].mkdir(parents=True)
        for entry in share.iterdir():
            if entry.name != "extension":
                (places[share] / entry.name).symlink_to(entry)
        extensions = places[share] / "extension"
        extensions.mkdir()
        for entry in (share / "extension").iterdir():
            (extensions / entry.name).symlink_to(entry)
        (extensions / "pg_net.control").write_text("default_version = '0.20'\n")
        (extensions / "pg_net--0.20.sql").write_text(PG_NET)
        cluster = Cluster()
        cluster.bindir = places[bindir]
        with cluster:
            yield cluster
    finally:
        shutil.rmtree(tree)


@pytest.fixture
def with_pg_net(cluster_with_pg_net: Cluster) -> Iterator[Database]:
    database = cluster_with_pg_net.create_database(extension=False)
    database.execute("create extension pg_net")
    yield database
    database.drop()


def test_the_swap(with_pg_net: Database, url: str) -> None:
    with_pg_net.execute("create role web login")
    with_pg_net.execute("grant execute on function net.http_get to web")
    with_pg_net.execute("select setval('net.http_request_queue_id_seq', 40)")
    with_pg_net.execute(
        "insert into net.http_request_queue (method, url, headers, body, timeout_milliseconds)"
        " values ('GET', %s, '{}', null, 5000), ('POST', %s, null, '{\"a\": 1}', 2000),"
        " ('GET', 'ftp://example.com/', null, null, 1000)",
        f"{url}/one",
        f"{url}/two",
    )

    # pgnet refuses to be installed beside it, and names the page
    with pytest.raises(Exception, match="beside pg_net") as refusal:
        with_pg_net.execute("create extension pgnet cascade")
    assert SWAP.name in str(refusal.value)

    # the statement that lists what depends on pg_net does, and changes nothing
    listing = next(text for text in blocks(SWAP, "sql") if "dependents" in text)
    with_pg_net.execute(
        "create function last_result(net.http_response_result) returns text language sql"
        " return ($1).message"
    )
    assert "function last_result(net.http_response_result) depends" in psql(with_pg_net, listing)
    with_pg_net.execute("drop function last_result")

    script = "\n".join(blocks(SWAP, "sql"))
    printed = psql(with_pg_net, script)
    assert "nothing depends on pg_net" in printed
    assert re.search(r"http_get.*\| web +\| EXECUTE", printed)

    assert with_pg_net.rows("select extname from pg_extension where extname like 'pg%net'") == [
        ("pgnet",)
    ]
    settings = "select value from net.settings where name = 'timeout_milliseconds'"
    assert with_pg_net.value(settings) == "5000"
    with_pg_net.execute("select net.allow_network('loopback')")
    with_pg_net.execute("call net.drain()")
    answers = with_pg_net.rows(
        "select id, status_code, coalesce(content_json ->> 'body', error_msg)"
        " from net.responses order by id"
    )
    assert answers == [
        (41, 200, ""),
        (42, 200, '{"a": 1}'),
        (43, None, 'invalid URL "ftp://example.com/": Unsupported URL scheme'),
    ]
    assert with_pg_net.value("select net.http_get(%s)", url) == 44


# ---- examples


def test_the_trigger(ready: Database, url: str) -> None:
    psql(ready, (EXAMPLES / "trigger.sql").read_text(), "-v", f"url={url}/announced")
    ready.execute("grant usage on schema shop to app")
    ready.execute("grant insert on shop.orders to app")
    with ready.connect("app") as caller:
        caller.execute("insert into shop.orders (item, amount) values ('tea', 3)")
        ready.wait_for("select count(*) from net.responses")
        received = ready.value(
            "select content_json -> 'headers' ->> 'Authorization' from net.responses"
        )
        # the value was there; a page that repeats the statement does not show it
        assert received == "Bearer ***"
        assert ready.value(
            "select (content_json ->> 'body')::json ->> 'event' from net.responses"
        ) == ("insert")
        for relation in (
            "requests",
            "responses",
            "http_request_queue",
            "_http_response",
            "secrets",
        ):
            assert caller.execute(f"select count(*) from net.{relation}").fetchone() == (0,)


def test_pg_cron(installed: None) -> None:
    if not (Path(pg_config("pkglibdir")) / "pg_cron.so").exists():
        pytest.skip("pg_cron is not installed here: make deps")
    with (
        Cluster(shared_preload_libraries="pg_cron", **{"cron.database_name": "shop"}) as cluster,
        contextlib.closing(cluster.create_database(name="shop")) as database,
    ):
        psql(database, (EXAMPLES / "pg_cron.sql").read_text())
        assert database.rows("select jobname from cron.job") == []
        # and what the pages say to start it and to take it out again
        marked = [
            text
            for page in (DOCS / "getting-started.md", DOCS / "uninstall.md")
            for mark, language, text in BLOCK.findall(page.read_text())
            if language == "sql" and "pg_cron" in mark
        ]
        assert len(marked) == 2
        psql(database, marked[0])
        assert database.rows("select command from cron.job order by 1") == [
            ("call net.run_callbacks()",),
            ("call net.work()",),
        ]
        psql(database, marked[1])
        assert database.rows("select command from cron.job") == []


def unit() -> dict[str, str]:
    lines = [line for line in UNIT.read_text().splitlines() if re.match(r"\w+=", line)]
    return dict(line.split("=", 1) for line in lines)


def test_the_units_command_serves(ready: Database) -> None:
    """The unit's command is the installed one, and its options exist."""
    program, command, *options = shlex.split(unit()["ExecStart"])
    assert Path(program).is_absolute()
    assert command == "worker"
    grace = float(options[options.index("--grace") + 1])
    assert float(unit()["TimeoutStopSec"]) > grace
    with ready.worker(*options):
        ready.wait_for(
            "select count(*) from pgnet.worker where pgnet.session_is_alive(pid, backend_start)",
            predicate=lambda count: count == 2,
        )


def test_the_units_syntax(installed: None, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze here")
    instance = tmp_path / "pgnet-worker@shop.service"
    # "make install" may have another prefix here than the unit's
    instance.write_text(UNIT.read_text().replace("/usr/local/bin/pgnet", server_python()))
    finished = subprocess.run(
        [analyze, "verify", "--man=no", instance], capture_output=True, text=True, check=False
    )
    assert (finished.returncode, finished.stderr) == (0, "")


# ---- the pages agree with the extension and the tree


def public(names: list[tuple[str]]) -> list[str]:
    return sorted({name for (name,) in names if not name.startswith("_") or name in KNOWN_PRIVATE})


def test_every_function_is_on_its_page(catalog: Database) -> None:
    """And in the list of all functions."""
    functions = public(
        catalog.rows("select proname from pg_proc where pronamespace = 'net'::regnamespace")
    )
    assert len(functions) > 25
    text = (DOCS / "functions.md").read_text()
    missing = [name for name in functions if not re.search(rf"net\.{name}\b", text)]
    assert missing == []


def test_every_argument_is_on_a_page(catalog: Database) -> None:
    text = documentation()
    signatures = catalog.rows(
        "select proname, proargnames from pg_proc"
        " where pronamespace = 'net'::regnamespace and proargnames is not null"
    )
    missing = [
        f"{name}.{argument}"
        for name, arguments in signatures
        if public([(name,)])
        for argument in arguments
        if not re.search(rf"\b{argument}\b", text)
    ]
    assert missing == []


def test_every_relation_is_on_a_page(catalog: Database) -> None:
    rows = catalog.rows(
        "select c.relname, array_agg(a.attname::text order by a.attnum) from pg_class c"
        " join pg_attribute a on a.attrelid = c.oid and a.attnum > 0"
        " where c.relnamespace = 'net'::regnamespace and c.relkind in ('r', 'v') group by 1"
    )
    views_and_tables = {name: columns for name, columns in rows if public([(name,)])}
    for name, columns in views_and_tables.items():
        found = section(f"net.{name}")
        missing = [column for column in columns if f"`{column}`" not in found]
        assert missing == [], f"columns of net.{name}"


def test_every_internal_table_is_on_the_page_of_tables(catalog: Database) -> None:
    tables = catalog.rows(
        "select relname from pg_class where relnamespace = 'pgnet'::regnamespace and relkind = 'r'"
    )
    text = (DOCS / "tables.md").read_text()
    assert {name for (name,) in tables} == set(re.findall(r"(?<!\w)pgnet\.(\w+)`", text)) | {
        name for (name,) in tables if f"## pgnet.{name}\n" in text
    }


def test_every_type_is_on_a_page(catalog: Database) -> None:
    types = catalog.rows(
        "select t.typname from pg_type t left join pg_class c on c.oid = t.typrelid"
        " where t.typnamespace = 'net'::regnamespace and t.typelem = 0"
        " and coalesce(c.relkind, 'c') = 'c'"
    )
    found = section("Types", "tables")
    assert [name for (name,) in types if f"`net.{name}`" not in found] == []
    states = catalog.value("select enum_range(null::net.request_state)::text")
    for page in ("results", "glossary"):
        found = section("States", page)
        assert [state for state in states.strip("{}").split(",") if f"`{state}`" not in found] == []


def test_every_setting_is_on_its_page(catalog: Database) -> None:
    """The page has its default, too; an interval may be written in another way."""
    rows = re.findall(r"^\| `(\w+)` \| `?([^|`]+?)`? \|", section("net.configure"), re.MULTILINE)
    known = catalog.rows('select name, "default", unit from net.settings')
    assert sorted(name for name, _ in rows) == sorted(name for name, _, _ in known)
    for name, default, kind in known:
        shown = dict(rows)[name]
        if kind == "interval":
            assert catalog.value("select %s::interval = %s::interval", shown, default), name
        else:
            assert shown == default, name


def test_every_setting_of_hosts_is_on_its_page(catalog: Database) -> None:
    rows = re.findall(r"^\| `(\w+)` \|", section("net.configure_host"), re.MULTILINE)
    known = catalog.rows("select name from pgnet.known_host_settings()")
    assert sorted(rows) == sorted(name for (name,) in known)


def test_every_setting_of_retry_policies_is_on_its_page(catalog: Database) -> None:
    """The page has each setting with the value of the policy safe."""
    rows = re.findall(
        r"^\| `(\w+)` \| `?([^|]+?)`? \|", section("net.configure_retry"), re.MULTILINE
    )
    known = catalog.rows("select name, default_value from pgnet.known_retry_settings()")
    assert {name: json.loads(shown) for name, shown in rows} == dict(known)


def test_every_item_of_the_doctor_is_on_its_page(catalog: Database) -> None:
    listed = re.findall(r"^\| ([\w -]+) \|", section("net.check", "monitoring"), re.MULTILINE)
    items = {item for (item,) in catalog.rows("select item from net.check()")}
    assert set(listed) - {"item"} == items


def test_what_the_pages_name_exists(catalog: Database) -> None:
    known = {
        name
        for (name,) in catalog.rows(
            "select n.nspname || '.' || o.name from pg_namespace n join ("
            "   select pronamespace, proname::text from pg_proc"
            "   union select relnamespace, relname from pg_class"
            "   union select typnamespace, typname from pg_type) o (schema, name)"
            " on o.schema = n.oid where n.nspname in ('net', 'pgnet')"
        )
    }
    for page in [*PAGES, *EXAMPLE_FILES]:
        named = set(re.findall(r"(?<![\w.])net\.\w+", page.read_text()))
        assert named - known == set(), page.name


def test_the_options_are_on_their_page() -> None:
    usage = subprocess.run(
        [server_python(), "-m", "pgnet", "worker", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "python"), "COLUMNS": "80"},
    ).stdout
    options = set(re.findall(r"^  (?:-h, )?(--\w+)", usage, re.MULTILINE)) - {"--help"}
    found = section("pgnet worker", "command")
    assert {option for option in options if f"| `{option}" not in found} == set()
    assert set(re.findall(r"^\| `(--\w+)", found, re.MULTILINE)) == options


def test_every_file_is_in_the_architecture() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    files = [path.name for path in (ROOT / "extension").glob("[0-9]*.sql")]
    package = ROOT / "python/pgnet"
    files += [path.name for path in package.rglob("*.py") if path.name != "__main__.py"]
    named = set(re.findall(r"(?<![\w/.-])(\w+\.(?:py|sql))\b", text))
    assert set(files) ^ named == set()


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):(?!=)", (ROOT / "Makefile").read_text(), re.M))
    for page in [*PAGES, *EXAMPLE_FILES]:
        code = re.findall(r"`([^`\n]+)`|^((?:sudo )?make .*)$", page.read_text(), re.MULTILINE)
        for words in (" ".join(found) for found in code):
            for target in re.findall(r"\bmake ([a-z][\w-]*)", words):
                assert target in targets, f"{page.name}: make {target}"


# ---- links


def anchor(heading: str) -> str:
    """The fragment that a heading gets where pages are shown."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    kept = [c for c in text if c in " -_" or unicodedata.category(c)[0] in "LN"]
    return "".join(kept).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {anchor(text) for text in re.findall(r"^#{1,6} (.+)$", prose(page), re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    assert links
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert target.is_relative_to(ROOT), f"{page.name}: {link}"
        if fragment:
            assert fragment in anchors(target), f"{page.name}: {link}"


def test_every_page_is_in_the_index() -> None:
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", (DOCS / "README.md").read_text()))
    assert listed == {page.name for page in DOCS.glob("*.md")} - {"README.md"}


def test_every_page_can_be_reached() -> None:
    """From README, by links."""
    reached: set[Path] = set()
    waiting = [README]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        for link in re.findall(r"\]\(([^)\s#]+\.md)", prose(page)):
            target = (page.parent / link).resolve()
            if target not in reached:
                waiting.append(target)
    assert [page.name for page in PAGES if page not in reached] == []


# ---- where a change goes


def test_what_contributing_names_is_there() -> None:
    """The files of its tables exist, and have the names that the tables give for them."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    roots = (ROOT, ROOT / "python/pgnet", ROOT / "extension")
    files = {}
    for name in set(re.findall(r"`([\w/]+\.(?:py|sql|json|md))`", text)) - {
        "tests/sql/NAME.sql",
        "tests/database/test_TOPIC.py",
    }:
        found = [root / name for root in roots if (root / name).exists()]
        assert found, name
        files[name] = found[0].read_text()
    places = re.findall(r"((?:`[\w.]+`(?:, | and )?)+)\s+(?:there )?in\s+`([\w/]+\.\w+)`", text)
    assert len(places) > 25
    for names, file in places:
        for name in re.findall(r"`([\w.]+)`", names):
            assert re.search(rf"\b{re.escape(name)}\b", files[file]), f"{name} in {file}"
