"""The settings, bounds and policies on the pages are those of the catalog."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator

import pytest

from pgnet.wire import transfer
from pgnet.worker import retry
from servers.cluster import ROOT, Cluster, Database, server_python

PACKAGE = ROOT / "python/pgnet"
PAGES = {path.name: path.read_text() for path in ROOT.glob("docs/*.md")}
PAGES["the README"] = (ROOT / "README.md").read_text()


def page(name: str) -> str:
    return PAGES[name]


@pytest.fixture(scope="module")
def catalog(cluster: Cluster) -> Iterator[Database]:
    """A database with the extension, which is only read."""
    database = cluster.create_database()
    yield database
    database.drop()


def test_defaults_that_the_pages_repeat(catalog: Database) -> None:
    """`setting` (value), wherever it stands."""
    settings = dict(catalog.rows('select name, "default" from net.settings'))
    seen = 0
    for name, text in PAGES.items():
        for setting, shown in re.findall(r"`(\w+)` \((a minute|\d[\w .]*)\)", text):
            if setting not in settings:
                continue
            seen += 1
            value = "1 minute" if shown == "a minute" else shown
            if shown.isdigit():
                assert settings[setting] == shown, f"{name}: {setting}"
            elif not shown.endswith(("MB", "kB")):
                same = "select %s::interval = %s::interval"
                assert catalog.value(same, value, settings[setting]), f"{name}: {setting}"
    assert seen >= 3


def test_bounds_that_the_pages_repeat(catalog: Database) -> None:
    """The bounds of settings of hosts and of retry policies."""
    bounds = {
        name: (int(low), int(high))
        for name, low, high in catalog.rows(
            "select name, minimum, maximum from pgnet.known_host_settings()"
            " where minimum is not null"
        )
    }
    rows = re.findall(r"^\| `(\w+)` \| (\d+) to (\d+)", page("hosts.md"), re.MULTILINE)
    assert {name: (int(low), int(high)) for name, low, high in rows} == bounds
    known = {
        name: (int(low), int(high))
        for name, low, high in catalog.rows(
            "select name, minimum, maximum from pgnet.known_retry_settings()"
            " where minimum is not null"
        )
    }
    text = page("retries.md").partition("## net.configure_retry")[2]
    for name, low, high in re.findall(r"^\| `(\w+)` \| \d+ \| (\d+) to (\d+)", text, re.MULTILINE):
        assert known[name] == (int(low), int(high)), name
    for name, days in re.findall(r"^\| `(\w+)` .*[Uu]p to (\d+) days", text, re.MULTILINE):
        assert known[name][1] == int(days) * 86_400_000, name


def test_built_in_policies(catalog: Database) -> None:
    policies = dict(catalog.rows("select name, settings from net.retry_policies"))
    text = page("retries.md")
    hours = {"minutes": 60_000, "hours": 3_600_000}
    for name, attempts, number, unit in re.findall(
        r"^\| `(safe|webhook)` \| (\d+) within (\d+) (minutes|hours)", text, re.MULTILINE
    ):
        assert policies[name]["max_attempts"] == int(attempts)
        assert policies[name]["total_milliseconds"] == int(number) * hours[unit]
    for waits, name in ((r"up to 1 s, 2 s, 4 s, 8 s", "safe"), (r"5 s, 15 s, 45 s", "webhook")):
        assert waits in text
        policy = policies[name]
        first, factor = policy["backoff_milliseconds"], policy["backoff_factor"]
        made = [first * factor**n // 1000 for n in range(waits.count(" s"))]
        assert [int(n) for n in re.findall(r"(\d+) s", waits)] == made


def test_idempotent_methods(catalog: Database) -> None:
    """One list, wherever it stands; TRACE is never sent, and so in none."""
    methods = set(retry.IDEMPOTENT_METHODS)
    assert "TRACE" not in methods
    lists = re.compile(r"GET, HEAD, [A-Z]+, [A-Z]+(?:,| and| or) [A-Z]+")
    texts = [*PAGES.values()]
    texts += [
        row[0] for row in catalog.rows("select description from pgnet.known_retry_settings()")
    ]
    found = [listed for text in texts for listed in lists.findall(text) if "POST" not in listed]
    assert len(found) >= 4
    for listed in found:
        assert set(re.findall(r"[A-Z]+", listed)) == methods, listed
    source = catalog.value("select prosrc from pg_proc where proname = 'is_idempotent'")
    listed = re.search(r"array\[('GET'[^]]*)\]", source)
    assert listed
    assert set(re.findall(r"'(\w+)'", listed[1])) == methods
    assert set(transfer.IDEMPOTENT) == methods


def test_hints_are_sentences(catalog: Database) -> None:
    for name, description in catalog.rows(
        "select name, description from pgnet.known_retry_settings() union all"
        " select name, description from pgnet.known_host_settings()"
    ):
        assert re.match(r"[A-Z0-9]", description), name
        assert description.endswith("."), name
    for path in [*ROOT.glob("extension/*.sql"), *PACKAGE.rglob("*.py")]:
        found = re.findall(r"hint = '((?:and|or|but) [^']*)", path.read_text(), re.IGNORECASE)
        assert found == [], path.name


def test_status_and_metadata() -> None:
    """One version, one status; what is promised is in the package."""
    project = tomllib.loads((ROOT / "python/pyproject.toml").read_text())
    meta = json.loads((ROOT / "META.json").read_text())
    classifiers = project["project"]["classifiers"]
    beta = any("4 - Beta" in text for text in classifiers)
    assert meta["release_status"] == ("testing" if beta else "stable")
    assert "Typing :: Typed" in classifiers
    for name in project["tool"]["setuptools"]["package-data"]["pgnet"]:
        assert (PACKAGE / name).exists(), name
    installed = subprocess.run(
        [server_python(), "-c", "import os, pgnet; print(os.path.dirname(pgnet.__file__))"],
        capture_output=True, text=True, check=True, cwd="/",
    ).stdout.strip()  # fmt: skip
    assert os.path.exists(f"{installed}/py.typed")


def test_the_ports(catalog: Database) -> None:
    default_ports = catalog.value(
        "select \"default\" from net.settings where name = 'egress_ports'"
    )
    assert default_ports == "80,443,1024-65535"
    differences = page("pg_net-differences.md")
    assert "80, 443 and those from 1024; setting `egress_ports`" in differences
    for name in ("egress.md", "coming-from-pg_net.md"):
        assert "Of the ports below 1024 only 80 and 443 are open" in page(name)
