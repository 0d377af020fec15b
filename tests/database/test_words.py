"""What the pages and the metadata say in numbers, names and lists is what the code has."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import pgnet
from pgnet.request.headers import MAX_HEADERS_LENGTH
from pgnet.request.options import STORED_OPTIONS
from pgnet.request.url import MAX_URL_LENGTH
from pgnet.secret.value import MIN_LENGTH
from pgnet.wire import resolve, transfer
from pgnet.wire.curl import easy
from pgnet.worker import flights, loop, open_files, retry
from servers.cluster import ROOT, Cluster, Database, server_python

PACKAGE = ROOT / "python/pgnet"
PAGES = {path.name: path.read_text() for path in ROOT.glob("docs/*.md")}
PAGES["the README"] = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def catalog(cluster: Cluster) -> Iterator[Database]:
    """A database with the extension, which is only read."""
    database = cluster.create_database()
    yield database
    database.drop()


def page(name: str) -> str:
    return PAGES[name]


def default(function: Callable[..., object], parameter: str) -> object:
    return inspect.signature(function).parameters[parameter].default


def megabytes(number: int) -> str:
    return f"{number >> 20} MB"


OPTIONS: dict[str, Any] = STORED_OPTIONS

# Of each: the page, what stands there (with the number in a group), and what the code has.
NUMBERS: list[tuple[str, str, object]] = [
    ("errors-at-the-call.md", r"it is longer than (\d+) characters", MAX_URL_LENGTH),
    ("errors-at-the-call.md", r"`the headers are longer than (\d+) bytes`", MAX_HEADERS_LENGTH),
    ("settings.md", r"A single line of headers has at most (\d+) kB", easy._LONGEST_LINE // 1024),
    ("settings.md", r"Names are kept for (\d+) s", default(resolve.Resolver, "max_age")),
    ("hosts.md", r"looked up is good for (\d+) s", default(resolve.Resolver, "max_age")),
    ("requests.md", r"`priority` \| \W(\d+) to", -OPTIONS["priority"][0]),
    ("requests.md", r"`priority` \| \W\d+ to (\d+):", OPTIONS["priority"][1]),
    (
        "requests.md",
        r"`max_redirects` \| 0 to (\d+): lowers",
        OPTIONS["max_redirects"][1],
    ),
    ("requests.md", r"`max_attempts` \| 1 to (\d+):", OPTIONS["max_attempts"][1]),
    ("capacity.md", r"At most (\d+ MB) of request bodies", megabytes(flights._CLAIM_BYTES)),
    ("capacity.md", r"While (\d+ MB) of answers wait", megabytes(loop._UNRECORDED_BYTES)),
    ("capacity.md", r"stays (\d+) below it", open_files._OTHERS),
    (
        "troubleshooting.md",
        r"at most (three quarters) of a worker's",
        {0.75: "three quarters"}[flights._HOST_SHARE],
    ),
    ("secrets.md", r"has at least (\d+) characters, no line", MIN_LENGTH),
    ("headers.md", r"All headers of a request have at most (\d+) bytes", MAX_HEADERS_LENGTH),
    ("urls.md", r"more than (\d+) characters", MAX_URL_LENGTH),
    ("headers.md", r"`User-Agent: pgnet/([\d.]+)`", pgnet.__version__),
    ("hosts.md", r"their own \| `pgnet/([\d.]+)`", pgnet.__version__),
    ("pg_net-differences.md", r"\| `pgnet/([\d.]+)`, unless", pgnet.__version__),
]


@pytest.mark.parametrize(("name", "pattern", "number"), NUMBERS)
def test_a_number(name: str, pattern: str, number: object) -> None:
    found = re.findall(pattern, " ".join(page(name).split()))
    assert found, f"{name} does not say {pattern}"
    if isinstance(number, float):
        number = int(number)
    assert set(found) == {str(number)}


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
    """Of settings of hosts and of retry policies."""
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
    found = [said for text in texts for said in lists.findall(text) if "POST" not in said]
    assert len(found) >= 4
    for said in found:
        assert set(re.findall(r"[A-Z]+", said)) == methods, said
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


def test_nothing_says_a_setting_by_its_default() -> None:
    """Thirty seconds of grace is the setting max_grace, which may be another time."""
    for path in ROOT.glob("extension/*.sql"):
        assert not re.search(r"\b\d+ s to end", path.read_text()), path.name


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


# ---- how the pages are written


def test_the_readme_is_read_in_minutes() -> None:
    assert len(PAGES["the README"].split()) <= 900


@pytest.mark.parametrize("name", sorted(PAGES))
def test_lines_of_prose(name: str) -> None:
    """At most 100 characters, so that a diff can be read: not tables, headings and outputs."""
    prose = re.sub(r"^```.*?^```$", "", page(name), flags=re.MULTILINE | re.DOTALL)
    long = [line for line in prose.splitlines() if len(line) > 100 and not re.match(r"[|#]", line)]
    assert long == []


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_page_is_short(name: str) -> None:
    """A page for one subject has a screen or a few; a longer one is two."""
    assert len(page(name).splitlines()) <= 320


# ---- messages


def literals() -> str:
    """Every piece of text that the code can say."""
    trees = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")]
    said = [
        str(node.value)
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
    ]
    scripts = [path.read_text() for path in ROOT.glob("extension/*.sql")]
    said += [re.sub(r"'\s*\n\s*'", "", text).replace("''", "'") for text in scripts]
    return "\n".join(said)


# What differs from one message to the next, where a page shows an example of it.
EXAMPLES = (
    r"CONNECT|an object|client_key|(?:Connect t|T)imeout of|a private address|: select net\..*"
)


def shown_messages(text: str) -> list[str]:
    """Pieces of the messages in the first columns of a page's tables."""
    rows = re.findall(r"^\| ((?:\d{5} )?`[^|]+`[^|]*) \|", text, re.MULTILINE)
    messages = [found for row in rows for found in re.findall(r"`([^`]+ [^`]+)`", row)]
    pieces = re.split(rf"…|\d+|\"[^\"]*\"|\"|\n|{EXAMPLES}", "\n".join(messages))
    return [piece for piece in (piece.strip(" :,.") for piece in pieces) if len(piece) > 5]


def test_the_messages_that_the_pages_show() -> None:
    """What stands there is what the code says, between the parts that differ each time."""
    known = literals()
    for name in ("errors-at-the-call.md", "errors-in-responses.md", "hosts.md"):
        pieces = shown_messages(page(name))
        assert len(pieces) > 8
        assert [piece for piece in pieces if piece not in known] == [], name
