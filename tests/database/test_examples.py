"""The folders of examples/: each README is followed as it stands, against the example's server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers.cluster import Cluster, Database, pg_config
from servers.readme import EXAMPLES, blocks, cells, compare_outputs, follow

# An example without a server of its own has a test of its own.
FOLDERS = sorted(server.parent.name for server in EXAMPLES.glob("*/server.py"))


@pytest.fixture(scope="module")
def sandboxes(installed: None) -> Iterator[Cluster]:
    """A cluster of its own: examples configure hosts, and one has pg_cron."""
    cron = (Path(pg_config("pkglibdir")) / "pg_cron.so").exists()
    options = {"shared_preload_libraries": "pg_cron", "cron.database_name": "sandbox"}
    with Cluster(**(options if cron else {})) as cluster:
        yield cluster


@pytest.fixture
def sandbox(sandboxes: Cluster) -> Iterator[Database]:
    """What `make psql` makes: a database with the extension and a worker, loopback allowed."""
    database = sandboxes.create_database(name="sandbox")
    try:
        database.execute("select net.allow_network('loopback')")
        with database.worker():
            yield database
    finally:
        database.drop()


@pytest.mark.parametrize("name", FOLDERS)
def test_an_example(sandbox: Database, name: str) -> None:
    page = EXAMPLES / name / "README.md"
    if "pg_cron" in page.read_text() and not sandbox.value(
        "select count(*) from pg_available_extensions where name = 'pg_cron'"
    ):
        pytest.skip("pg_cron is not installed here: make deps")
    follow(sandbox, page)


def test_every_example_is_listed() -> None:
    text = (EXAMPLES / "README.md").read_text()
    listed = re.findall(r"^\| \[(\w+)\]\(\1/README.md\) \|", text, re.MULTILINE)
    assert sorted(listed) == sorted(page.parent.name for page in EXAMPLES.glob("*/README.md"))
    assert set(FOLDERS) <= set(listed)
    for path in EXAMPLES.iterdir():
        if path.is_file() and path.name not in ("README.md", "serve.py"):
            assert f"[{path.name}]({path.name})" in text, path.name


def test_every_readme_shows_what_comes() -> None:
    """An example whose README compares nothing would prove nothing."""
    for name in FOLDERS:
        kinds = [kind for kind, _ in blocks(EXAMPLES / name / "README.md")]
        assert "text" in kinds, name
        assert kinds.count("sh") == 1, name


def test_a_readme_that_shows_something_else_fails(sandbox: Database) -> None:
    compare_outputs(sandbox, [("sql", "select 1 as a;"), ("text", " a \n---\n 1\n(1 row)\n")])
    with pytest.raises(AssertionError):
        compare_outputs(sandbox, [("sql", "select 2 as a;"), ("text", " a \n---\n 1\n(1 row)\n")])
    with pytest.raises(AssertionError):
        compare_outputs(sandbox, [("sql", "select 1 / 0;")])


def test_the_width_of_columns_does_not_count() -> None:
    assert cells("  a  |  b \n-----+-----\n 1   | 2\n") == ["a | b", "1 | 2"]
