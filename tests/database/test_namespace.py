"""By SQL, where all the internet is ours: nothing private is reached; advice opens just that."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from servers import netns
from servers.addresses import (
    ALL_EDGES,
    RANGES,
    TELLS,
    among,
    high,
    number_of,
    private,
    unwrapped,
    written,
)
from servers.internet import (
    LOGGED,
    REFUSED,
    REFUSED_NAME,
    Internet,
    last_host,
    literal,
    name_of,
    opened_by,
    redirect,
)

# ---- by SQL: a server, a worker process and a worker in a backend, all inside


@dataclass(frozen=True)
class Remote:
    """A database in the namespace, and a worker that serves it."""

    connection: psycopg.Connection[Any]
    port: int
    drain: Callable[[], object]
    log: Path

    def value(self, query: str, *arguments: Any) -> Any:
        row = self.connection.execute(query, arguments).fetchone()
        return None if row is None else row[0]

    def get(self, urls: Iterable[str]) -> list[tuple[int | None, str | None, str | None]]:
        """Status, error and content of each, all queued in one transaction."""
        ids = self.value(
            "select array_agg(net.http_get(url, timeout_milliseconds => 10000))"
            " from unnest(%s::text[]) url",
            list(urls),
        )
        self.drain()
        return self.connection.execute(
            "select o.status_code, o.error_msg, o.content"
            " from net.wait_all(%s::bigint[]) o order by array_position(%s::bigint[], o.id)",
            (ids, ids),
        ).fetchall()

    def places(self, count: int) -> list[tuple[str | None, str, list[list[str]] | None]]:
        """Address, final URL and headers of the requests that were made last, in their order."""
        rows = self.connection.execute(
            "select host(address), final_url, header_list from net.responses"
            " order by id desc limit %s",
            (count,),
        ).fetchall()
        return rows[::-1]

    def logged(self, name: str) -> re.Match[str]:
        """The last refusal of a name in the worker's log."""
        found = [m for m in LOGGED.finditer(self.log.read_text()) if m["host"] == name]
        assert found, f"the log has nothing of {name}"
        return found[-1]


@pytest.fixture(scope="module")
def inside(made_internet: Internet, installed: None) -> Iterator[dict[str, Remote]]:
    with made_internet.place.program("cluster") as program:
        hello = program.hello
        process = psycopg.connect(hello["dsn"], autocommit=True)
        process.execute("create database drained")
        backend, drainer = (
            psycopg.connect(hello["dsn"], dbname="drained", autocommit=True) for _ in range(2)
        )
        with process, backend, drainer:
            backend.execute("create extension pgnet cascade")
            yield {
                "process": Remote(process, hello["port"], lambda: None, Path(hello["worker_log"])),
                "backend": Remote(
                    backend,
                    hello["port"],
                    lambda: drainer.execute("call net.drain()"),
                    Path(hello["server_log"]),
                ),
            }


@pytest.fixture(params=["process", "backend"])
def remote(inside: dict[str, Remote], request: pytest.FixtureRequest) -> Iterator[Remote]:
    """A database without rules; the rules that a test makes are removed after it."""
    made: Remote = inside[request.param]
    yield made
    made.connection.execute(
        "select case kind when 'host' then net.forget_host(pattern)"
        " else net.forget_network(pattern) end from net.egress"
    )
    made.connection.execute("select net.configure('egress_ports', null)")


ADVICE = re.compile(r"(select net\.allow_network\('[^']+'\))$")


OPENED = {
    "http://10.1.2.3/x": (4, 0x0A010203),
    "http://0x7f000001/": (4, 0x7F000001),
    "http://\uff12130706433/": (4, 0x7F000001),
    "http://169.254.169.254/latest/meta-data/": (4, 0xA9FEA9FE),
    "http://0144.64.1/": (4, 0x64400001),
    "http://[::1]/": (6, 1),
    "http://[FD00::1]/": (6, high(0xFD00) + 1),
    "http://[::ffff:192.168.1.1]/": (4, 0xC0A80101),
    "http://[64:ff9b::10.0.0.1]/": (6, high(0x64, 0xFF9B) + 0x0A000001),
    "http://inner.hosts/": (4, 0x0A000063),
    "http://localhost/": (4, 0x7F000001),
    "http://c.4-c0a80001.sql.test/": (4, 0xC0A80001),
    f"http://6-{high(0xFD00) + 3:032x}.sql.test/": (6, high(0xFD00) + 3),
    "http://4-6440010a.sql.test/": (4, 0x6440010A),
    f"http://6-{high(0x64, 0xFF9B) + 0x0A000001:032x}.sql.test/": (
        6, high(0x64, 0xFF9B) + 0x0A000001,
    ),
    # A network of one address: the log has it.
    f"http://6-{high(0x4000) + 1:032x}.sql.test/": (6, high(0x4000) + 1),
    f"http://6-{0:032x}.sql.test/": (6, 1),
    redirect("http://4-ac100002.sql.test/"): (4, 0xAC100002),
    redirect("http://172.16.0.1/"): (4, 0xAC100001),
    redirect("//[fd00::2]/"): (6, high(0xFD00) + 2),
}  # fmt: skip


OPENED_NAMES = [url for url in OPENED if name_of(last_host(url)) is not None]


def test_by_sql_nothing_private_is_reached(internet: Internet, remote: Remote) -> None:
    urls = [literal(address) for address in ALL_EDGES if private(address)]
    for status, error, content in remote.get(urls):
        assert (status, content) == (None, None)
        assert REFUSED.search(error or ""), error
    assert remote.places(len(urls)) == [(None, url, None) for url in urls]
    # A redirect that is refused keeps what it said.
    redirects = [redirect(url) for url in urls]
    for status, error, content in remote.get(redirects):
        assert (status, content) == (302, None)
        assert REFUSED.search(error or ""), error
    places = remote.places(len(redirects))
    for url, over, (server, final_url, headers) in zip(urls, redirects, places, strict=True):
        assert (server, final_url) == ("8.8.8.8", over)
        assert ["Location", url] in (headers or [])
    internet.nothing_private()
    public = [address for address in ALL_EDGES if not private(address)]
    for address, found in zip(public, remote.get(map(literal, public)), strict=True):
        assert found[0] == 200, found
        assert number_of(json.loads(found[2] or "")["local"]) == unwrapped(address)


def advised(remote: Remote, error: str | None, url: str, source: str) -> str:
    """The statement that lets a refused request through, as its error or the log says it."""
    name = name_of(last_host(url))
    ((told, final_url, _),) = remote.places(1)
    assert told is None or not private(number_of(told)), told
    if name is None:
        advice = ADVICE.search(error or "")
        assert advice, error
        return advice.group()
    refused = REFUSED_NAME.fullmatch(error or "")
    assert refused, error
    assert refused["host"] == name
    assert written(OPENED[url]) not in final_url
    logged = remote.logged(name)
    if source == "log" or refused["network"] is None:
        return logged["statement"]
    assert among(number_of(logged["address"]), TELLS[refused["network"]])
    return f"select net.allow_network('{refused['network']}')"


@pytest.mark.parametrize(
    ("remote", "url", "source"),
    [("process", url, "error") for url in OPENED]
    + [("process", url, "log") for url in OPENED_NAMES]
    + [("backend", url, "error") for url in list(OPENED)[::4]]
    + [("backend", url, "log") for url in OPENED_NAMES[::4]],
    indirect=["remote"],
)
def test_by_sql_the_statement_opens_exactly_that(
    internet: Internet, remote: Remote, url: str, source: str
) -> None:
    """Running what is advised lets the request through, and none to another range.

    source: where the statement for a name is from. The log always has it.
    """
    address = OPENED[url]
    name = name_of(last_host(url))
    statements: list[str] = []
    for _ in range(3):
        ((status, error, content),) = remote.get([url])
        if error is None:
            break
        internet.nothing_private()
        statements.append(advised(remote, error, url, source))
        remote.connection.execute(statements[-1])
    assert status == 200
    came = number_of(json.loads(content or "")["local"])
    # A name in the hosts file has two addresses, and one of them will do.
    assert came == address or (url == "http://localhost/" and came == (6, 1))
    assert 1 <= len(statements) <= 2
    # A caller that wrote an address is told it; a caller that wrote a name is not.
    ((connected, final_url, _),) = remote.places(1)
    if name is None:
        assert unwrapped(number_of(connected or "")) == came
    else:
        assert connected is None
        assert written(came) not in final_url
    internet.seen()
    opened = [bounds for s in statements for bounds in opened_by(s.split("'")[1])]
    edges_of_all = [(version, number) for version, low, up in RANGES for number in (low, up)]
    edges_of_all += [(address[0], address[1] + step) for step in (-1, 1)]
    others = [a for a in edges_of_all if private(a) and not among(a, opened)]
    for status, error, _ in remote.get([literal(a) for a in others]):
        assert status is None
        assert ADVICE.search(error or ""), error
    internet.nothing_private()
    for statement in statements:
        remote.connection.execute(statement.replace("allow_", "forget_"))
    ((status, error, _),) = remote.get([url])
    # A redirect keeps its own status.
    assert status == (302 if "/redirect/" in url else None)
    assert advised(remote, error, url, source)
    internet.nothing_private()


def test_by_sql_ports(internet: Internet, remote: Remote) -> None:
    """The default lets go to the web's ports and to those of no special right."""
    urls = [f"http://8.8.8.8:{port}/" for port in netns.PORTS]
    open_ports = {80, 443, 1024, 3128, 5432, 65535}
    for port, (status, error, _) in zip(netns.PORTS, remote.get(urls), strict=True):
        assert (status == 200) == (port in open_ports), (port, error)
    ((_, error, _),) = remote.get(["http://8.8.8.8:22/"])
    statement = re.search(r"select net\.configure\('egress_ports', '[0-9,-]+'\)$", error or "")
    assert statement, error
    remote.connection.execute(statement.group())
    found = dict(zip(netns.PORTS, remote.get(urls), strict=True))
    assert {port for port, row in found.items() if row[0] == 200} == open_ports | {22}


def test_by_sql_the_databases_own_door(internet: Internet, remote: Remote) -> None:
    """The server listens on all addresses of its machine, and a request reaches none of them."""
    for network in ("loopback", "private", "0.0.0.0/8", "::/96", "64:ff9b::/96"):
        remote.connection.execute("select net.allow_network(%s)", (network,))
    hosts = [
        "127.0.0.1", "127.0.0.2", "127.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0",
        "0", "[::]", "[::ffff:0.0.0.0]", "10.1.2.3", "192.168.0.1", "[fd00::1]", "inner.hosts",
        "8.8.8.8", "[64:ff9b::127.0.0.1]", "[::127.0.0.1]",
    ]  # fmt: skip
    found = dict(zip(hosts, remote.get(f"http://{h}:{remote.port}/" for h in hosts), strict=True))
    assert {
        host: (status, error)
        for host, (status, error, _) in found.items()
        if "is this database server's own" not in (error or "")
    } == {}
    # and the port beside it is open
    found = dict(zip(hosts, remote.get(f"http://{host}:1024/" for host in hosts), strict=True))
    assert {host: row for host, row in found.items() if row[0] != 200} == {}
