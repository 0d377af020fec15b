"""Numbers, messages and metadata of the pages are those of the code; pages are short."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

import pgnet
from pgnet.request.headers import MAX_HEADERS_LENGTH
from pgnet.request.options import STORED_OPTIONS
from pgnet.request.url import MAX_URL_LENGTH
from pgnet.secret.value import MIN_LENGTH
from pgnet.wire import resolve
from pgnet.wire.curl.collect import LONGEST_LINE
from pgnet.worker import flights, loop, open_files
from servers.cluster import ROOT

PACKAGE = ROOT / "python/pgnet"
PAGES = {path.name: path.read_text() for path in ROOT.glob("docs/*.md")}
PAGES["the README"] = (ROOT / "README.md").read_text()
PAGES |= {str(p.relative_to(ROOT)): p.read_text() for p in ROOT.glob("examples/**/*.md")}


def page(name: str) -> str:
    return PAGES[name]


def default(function: Callable[..., object], parameter: str) -> object:
    return inspect.signature(function).parameters[parameter].default


def megabytes(number: int) -> str:
    return f"{number >> 20} MB"


OPTIONS: dict[str, Any] = STORED_OPTIONS

# For each number: the page, its sentence there (the number is a group), and the number in the code.
NUMBERS: list[tuple[str, str, object]] = [
    ("errors-at-the-call.md", r"it is longer than (\d+) characters", MAX_URL_LENGTH),
    ("errors-at-the-call.md", r"`the headers are longer than (\d+) bytes`", MAX_HEADERS_LENGTH),
    ("settings.md", r"A single line of headers has at most (\d+) kB", LONGEST_LINE // 1024),
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


def test_nothing_says_a_setting_by_its_default() -> None:
    """Thirty seconds of grace is the setting max_grace, which may be another time."""
    for path in ROOT.glob("extension/*.sql"):
        assert not re.search(r"\b\d+ s to end", path.read_text()), path.name


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
    messages = [
        str(node.value)
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
    ]
    scripts = [path.read_text() for path in ROOT.glob("extension/*.sql")]
    messages += [re.sub(r"'\s*\n\s*'", "", text).replace("''", "'") for text in scripts]
    return "\n".join(messages)


# Parts that differ from one message to the next, where a page shows an example of them.
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
    """A message on a page is the code's, but for the parts that differ each time."""
    known = literals()
    for name in ("errors-at-the-call.md", "errors-in-responses.md", "hosts.md"):
        pieces = shown_messages(page(name))
        assert len(pieces) > 8
        assert [piece for piece in pieces if piece not in known] == [], name
