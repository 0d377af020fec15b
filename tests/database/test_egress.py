"""Egress rules through SQL: what is refused, the statement that allows it, and that deny wins."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from psycopg import errors

from servers.cluster import Cluster, Database
from servers.nginx import Nginx

STATEMENT = re.compile(r"select net\.\w+\('[^']*'\)$")


@pytest.fixture(scope="module")
def shared(cluster: Cluster) -> Iterator[Database]:
    database = cluster.create_database()
    with database.worker():
        yield database
    database.drop()


@pytest.fixture
def guarded(shared: Database) -> Iterator[Database]:
    """A database with a worker and no rules; what a test says is forgotten behind it."""
    yield shared
    shared.execute(
        "select case kind when 'host' then net.forget_host(pattern)"
        " else net.forget_network(pattern) end from net.egress"
    )
    shared.execute("select net.configure('egress', null)")


@pytest.fixture(scope="module")
def rules(cluster: Cluster) -> Iterator[Database]:
    """A database that no worker serves."""
    database = cluster.create_database()
    yield database
    database.drop()


def get(database: Database, url: str) -> tuple[int | None, str | None]:
    """Status and error of a GET."""
    request_id = database.value("select net.http_get(%s, timeout_milliseconds => 2000)", url)
    row = database.row("select (o).status_code, (o).error_msg from net.wait(%s) o", request_id)
    assert row is not None
    return row[0], row[1]


def refused(database: Database, url: str) -> str:
    """The error of a GET that the guard refuses."""
    status, error = get(database, url)
    assert status is None
    assert error is not None
    return error


def advised(error: str) -> str:
    """The statement that an error ends with."""
    found = STATEMENT.search(error)
    assert found, error
    return found.group()


# ---- what is said in SQL


def test_words(rules: Database) -> None:
    rules.execute("select net.allow_network('loopback'), net.deny_network(' Private ')")
    assert rules.rows("select kind, pattern, verdict from net.egress order by pattern") == [
        ("network", "10.0.0.0/8", "deny"),
        ("network", "127.0.0.0/8", "allow"),
        ("network", "172.16.0.0/12", "deny"),
        ("network", "192.168.0.0/16", "deny"),
        ("network", "::1/128", "allow"),
        ("network", "fc00::/7", "deny"),
    ]
    rules.execute("select net.forget_network('private')")
    rules.execute("select net.forget_network('127.0.0.0/8'), net.forget_network('::1')")
    assert rules.rows("select pattern from net.egress") == []


def test_a_network_is_stored_in_one_form(rules: Database) -> None:
    for text in ("10.1.0.0/16", " 10.1.0.0/16 ", "10.1/16"):
        rules.execute("select net.allow_network(%s)", text)
    rules.execute("select net.allow_network('FD00:0::/8')")
    rules.execute("select net.allow_network('192.0.2.7')")
    assert rules.rows("select pattern from net.egress order by 1") == [
        ("10.1.0.0/16",),
        ("192.0.2.7/32",),
        ("fd00::/8",),
    ]
    rules.execute("select net.forget_network(pattern) from net.egress")


def test_a_host_is_stored_in_one_form(rules: Database) -> None:
    for text in ("Api.Example.com", "api.example.com.", " api.example.com "):
        rules.execute("select net.allow_host(%s)", text)
    rules.execute("select net.deny_host('*.Example.org')")
    assert rules.rows("select kind, pattern, verdict from net.egress order by 2") == [
        ("host", "*.example.org", "deny"),
        ("host", "api.example.com", "allow"),
    ]
    # the last word counts
    rules.execute("select net.deny_host('api.example.com')")
    assert rules.value("select verdict from net.egress where pattern = 'api.example.com'") == "deny"
    rules.execute("select net.forget_host('API.example.com'), net.forget_host('*.example.org')")
    rules.execute("select net.forget_host('never.said.example')")
    assert rules.value("select count(*) from net.egress") == 0


@pytest.mark.parametrize(
    "network",
    ["", "localhost", "10.0.0.0/33", "10.0.0.1/8", "300.1.1.1", "private networks", "fd00::/129",
     "http://10.0.0.1", "::ffff::1", None],
)  # fmt: skip
@pytest.mark.parametrize("function", ["allow_network", "deny_network", "forget_network"])
def test_what_is_no_network(rules: Database, function: str, network: str | None) -> None:
    with pytest.raises(errors.InvalidParameterValue, match="invalid network") as caught:
        rules.execute(f"select net.{function}(%s)", network)
    assert "loopback and private" in (caught.value.diag.message_hint or "")


@pytest.mark.parametrize(
    "pattern",
    ["", "http://example.com", "example.com/x", "example.com:80", "*", "*.", "a.*.example.com",
     "exa mple.com", "*example.com", "[::1]", ".example.com", "a" * 300, None],
)  # fmt: skip
@pytest.mark.parametrize("function", ["allow_host", "deny_host", "forget_host"])
def test_what_is_no_host(rules: Database, function: str, pattern: str | None) -> None:
    with pytest.raises(errors.InvalidParameterValue, match="invalid host pattern") as caught:
        rules.execute(f"select net.{function}(%s)", pattern)
    assert "api.example.com" in (caught.value.diag.message_hint or "")


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "::1", "127.0.0.0", "0x7f000001", "2130706433"]
)
def test_an_address_is_no_host(rules: Database, address: str) -> None:
    """An address as a host would never match: the hint names net.allow_network."""
    with pytest.raises(errors.InvalidParameterValue) as caught:
        rules.execute("select net.allow_host(%s)", address)
    assert "net.allow_network" in (caught.value.diag.message_hint or "")


def test_an_international_host_is_given_as_the_url_has_it(rules: Database) -> None:
    with pytest.raises(errors.InvalidParameterValue):
        rules.execute("select net.deny_host('bücher.example')")
    rules.execute("select net.deny_host('XN--Bcher-kva.example')")
    pattern = "xn--bcher-kva.example"
    assert rules.value("select verdict from net.egress where pattern = %s", pattern) == "deny"
    rules.execute("select net.forget_host(%s)", pattern)


# ---- what it does


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.0.0.1"])
def test_the_error_names_the_statement_that_allows_it(
    guarded: Database, nginx: Nginx, host: str
) -> None:
    url = f"http://{host}:{urlsplit(nginx.url).port}/"
    error = refused(guarded, url)
    assert "a loopback address and not allowed: " in error
    statement = advised(error)
    assert statement.startswith("select net.allow_network('")
    guarded.execute(statement)
    status, error_now = get(guarded, url)
    if status is None and error_now is not None and host == "localhost":
        # it has an address of the other family too
        guarded.execute(advised(error_now))
        status, error_now = get(guarded, url)
    assert (status, error_now) == (200, None)
    # and back, though a connection to it is open
    guarded.execute(statement.replace("allow_", "forget_"))
    assert "loopback" in refused(guarded, url)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.1.2.3", "10.0.0.0/8"),
        ("192.168.0.1", "192.168.0.0/16"),
        ("169.254.169.254", "169.254.0.0/16"),
        ("100.64.0.1", "100.64.0.0/10"),
        ("0.0.0.0", "0.0.0.0/8"),
        ("224.0.0.1", "224.0.0.0/4"),
        ("[::1]", "::1/128"),
        ("[fd00::1]", "fc00::/7"),
        ("[fe80::1]", "fe80::/10"),
        ("[::ffff:10.0.0.1]", "10.0.0.0/8"),
    ],
)
def test_what_is_not_public(guarded: Database, address: str, network: str) -> None:
    error = refused(guarded, f"http://{address}/")
    assert advised(error) == f"select net.allow_network('{network}')"
    row = guarded.row(
        "select timed_out, state::text, status_code from net.responses order by id desc limit 1"
    )
    assert row == (False, "failed", None)


def test_deny_wins(guarded: Database, nginx: Nginx) -> None:
    guarded.execute("select net.allow_network('loopback')")
    assert get(guarded, nginx.url) == (200, None)
    guarded.execute("select net.deny_network('127.0.0.1')")
    error = refused(guarded, nginx.url)
    assert "denied network" in error
    guarded.execute(advised(error))
    assert get(guarded, nginx.url) == (200, None)


def test_a_denied_host(guarded: Database, nginx: Nginx) -> None:
    url = f"http://localhost:{urlsplit(nginx.url).port}/"
    guarded.execute("select net.allow_network('loopback')")
    assert get(guarded, url) == (200, None)
    guarded.execute("select net.deny_host('LocalHost')")
    error = refused(guarded, url)
    assert "denied host" in error
    assert get(guarded, nginx.url) == (200, None)
    guarded.execute(advised(error))
    assert get(guarded, url) == (200, None)


def test_an_allowed_host_opens_no_network(guarded: Database, nginx: Nginx) -> None:
    guarded.execute("select net.allow_host('localhost')")
    assert "loopback" in refused(guarded, f"http://localhost:{urlsplit(nginx.url).port}/")


def test_listed(guarded: Database, nginx: Nginx) -> None:
    guarded.execute("select net.configure('egress', 'listed')")
    error = refused(guarded, "http://www.example.com/")
    assert "egress is listed" in error
    assert advised(error) == "select net.allow_host('www.example.com')"
    guarded.execute("select net.allow_network('loopback')")
    assert get(guarded, nginx.url) == (200, None)
    assert "egress is listed" in refused(guarded, "http://93.184.216.34:1025/")


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1"])
def test_listed_address(guarded: Database, address: str) -> None:
    """The statement that the error advises works, also for an address."""
    guarded.execute("select net.configure('egress', 'listed')")
    host = f"[{address}]" if ":" in address else address
    error = refused(guarded, f"http://{host}:1025/")
    assert "egress is listed" in error
    assert advised(error) == f"select net.allow_network('{address}')"
    guarded.execute(advised(error))
    assert guarded.value("select verdict from net.egress") == "allow"


def test_a_rule_holds_for_what_is_committed_after_it(guarded: Database, nginx: Nginx) -> None:
    """However soon after it, and whatever the worker is doing: it never goes by older rules."""
    found = []
    for _ in range(15):
        for verdict in ("allow", "forget"):
            guarded.execute("select net.configure('batch_size', '400')")
            guarded.execute(f"select net.{verdict}_network('loopback')")
            found.append(get(guarded, nginx.url)[0])
    assert found == [200, None] * 15
    guarded.execute("select net.configure('batch_size', null)")


def test_nobody_learns_the_address_of_a_name(guarded: Database, nginx: Nginx) -> None:
    """Neither an error nor the answer has the address, unless the caller named it."""
    port = urlsplit(nginx.url).port
    assert "127." not in refused(guarded, f"http://localhost:{port}/")
    guarded.execute("select net.allow_network('loopback')")
    for url, address in (
        (f"http://localhost:{port}/", None),
        (f"http://127.0.0.1:{port}/", "127.0.0.1"),
        (f"http://127.1:{port}/", "127.0.0.1"),
        ("http://localhost:1026/", None),
    ):
        request_id = guarded.value("select net.http_get(%s)", url)
        guarded.execute("select net.wait(%s)", request_id)
        row = guarded.row(
            "select host(address), coalesce(error_msg, '') from net._http_response where id = %s",
            request_id,
        )
        assert row is not None
        assert row[0] == address, url
        assert "127." not in row[1]


def test_a_redirect_goes_through_the_guard(guarded: Database, httpd: str) -> None:
    guarded.execute("select net.allow_network('127.0.0.1')")
    status, error = get(guarded, f"{httpd}/redirect/302?to=http://127.0.0.2:1025/")
    assert status == 302
    assert error is not None
    assert "127.0.0.2 is a loopback address" in error


def test_the_databases_own_door(guarded: Database) -> None:
    """Shut even where its network is allowed."""
    guarded.execute("select net.allow_network('loopback')")
    for host in ("127.0.0.1", "localhost", "127.1"):
        error = refused(guarded, f"http://{host}:{guarded.cluster.port}/")
        assert "this database server's own" in error


def test_a_rolled_back_rule_is_none(guarded: Database, nginx: Nginx) -> None:
    session = guarded.connect(autocommit=False)
    session.execute("select net.allow_network('loopback')")
    session.rollback()
    assert "loopback" in refused(guarded, nginx.url)
