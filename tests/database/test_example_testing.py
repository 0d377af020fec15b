"""examples/testing runs as its README says, and its test fails where the application is wrong."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from servers.cluster import ROOT, Cluster, Database

FOLDER = ROOT / "examples/testing"


def psql(database: Database, *options: str) -> str:
    finished = subprocess.run(
        [database.cluster.bindir / "psql", "-X", "-v", "ON_ERROR_STOP=1", *options],
        env={**os.environ, **database.cluster.environment, "PGDATABASE": database.name},
        cwd=FOLDER,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


@pytest.fixture
def shop(cluster: Cluster) -> Iterator[Database]:
    database = cluster.create_database()
    try:
        if not database.rows("select from pg_available_extensions where name = 'pgtap'"):
            pytest.skip("pgTAP is not installed")
        database.execute("create extension pgtap")
        psql(database, "-f", "orders.sql")
        yield database
    finally:
        database.drop()


def test_it_prints_what_the_readme_shows(shop: Database) -> None:
    """Twice: the test may be run again in the same database."""
    shown = re.findall(r"^```text\n(.*?)^```$", (FOLDER / "README.md").read_text(), re.M | re.S)
    for _ in range(2):
        assert psql(shop, "-At", "-f", "test.sql") == shown[0]
    assert shop.rows("select * from net.stubs") == []


def test_it_fails_where_the_application_is_wrong(shop: Database) -> None:
    """A wrong amount, another service, and no retries."""
    source = shop.value("select prosrc from pg_proc where proname = 'charge_order'")
    for right, wrong, number in (
        ("new.amount)", "new.amount + 1)", 2),
        ("'order-' ||", "'x-' ||", 3),
        ("retry => 'charge'", "retry => 'none'", 5),
        ("return new;", "perform net.http_get('https://spy.example/'); return new;", 7),
    ):
        assert source.count(right) == 1
        body = source.replace(right, wrong)
        shop.execute(
            "create or replace function charge_order() returns trigger language plpgsql as"
            f" $f${body}$f$"
        )
        assert f"not ok {number} -" in psql(shop, "-At", "-f", "test.sql"), wrong
