"""Settings: each takes effect at once, without a restart; a bad value is refused with a hint."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest
from psycopg import errors

from servers.cluster import Cluster, Database, Worker
from servers.nginx import Nginx
from servers.waiting import wait_until


@pytest.mark.parametrize("value", ["6", " 6 ", "6.5", "1 6", "+6"])
def test_an_interval_has_a_unit(fresh_database: Database, value: str) -> None:
    with pytest.raises(errors.InvalidParameterValue, match="must have a unit"):
        fresh_database.execute("select net.configure('ttl', %s)", value)
    for fine in ("6 h", "0", "00:00:06", "PT6S", "1 6:00", "6ms"):
        fresh_database.execute("select net.configure('ttl', %s)", fine)


def test_what_was_done_is_said(fresh_database: Database) -> None:
    """Each function of the owner raises a NOTICE, which has no value of a secret."""
    fresh_database.execute("create role told login")
    session = fresh_database.connect()
    notices: list[str] = []
    session.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    try:
        for statement, words in {
            "net.configure('ttl', '7 hours')": r'setting "ttl" is 7 hours now; it was 06:00:00',
            "net.configure('ttl', '7 hours'), 1": r'setting "ttl" stays 7 hours',
            "net.allow_network('10.1.2.3')": r"requests to 10.1.2.3/32 are allowed",
            "net.deny_network('private')": r"requests to 10.0.0.0/8, .* are refused",
            "net.forget_network('10.1.2.3')": r"no rule for 10.1.2.3/32 any more",
            "net.forget_network('10.9.9.9')": r"there was no rule for 10.9.9.9/32",
            "net.allow_host('a.example')": r'allowed; that counts once .* egress is "listed"',
            "net.deny_host('b.example')": r"requests to b.example are refused",
            "net.set_secret('k', 'not-to-be-seen', 'http://x/')": r"requests to http://x/ and",
            "net.grant_secret('k', 'told')": r'role "told" may use secret "k"',
            "net.revoke_secret('k', 'told')": r'secret "k" is not granted to role "told"',
            "net.grant_worker('told')": r'role "told" may run workers in this database',
            "net.revoke_worker('told')": r'role "told" may not run workers',
            "net.drop_secret('k')": r'secret "k" is dropped',
            "net.configure_host('a.example', '{\"retry\": \"safe\"}')": r"configured: retry",
            "net.configure_host('a.example', null)": r"nothing is configured .* any more",
            "net.configure_retry('mine', '{}')": r'"mine": 5 attempts at most, within 600000 ms',
            "net.configure_retry('mine', null)": r'there is no retry policy "mine" any more',
        }.items():
            notices.clear()
            session.execute(f"select {statement}")
            assert len(notices) == 1, statement
            assert re.search(words, notices[0]), notices
            assert "not-to-be-seen" not in notices[0]
    finally:
        session.close()
        fresh_database.execute("drop owned by told")
        fresh_database.execute("drop role told")


DEFAULTS = {
    "timeout_milliseconds": "1000",
    "max_timeout": "01:00:00",
    "max_pending": "0",
    "max_pending_per_role": "0",
    "ttl": "06:00:00",
    "ttl_failed": "14 days",
    "batch_size": "500",
    "concurrency": "1000",
    "poll_interval": "00:01:00",
    "rescue_after": "00:00:03",
    "max_losses": "5",
    "max_grace": "00:00:30",
    "disable_webhook_after": "5 days",
    "callback_timeout": "00:00:30",
    "callback_attempts": "5",
    "callback_runners": "4",
    "callback_memory": "536870912",
    "mode": "on",
    "notify_outcomes": "off",
    "wake_up": "callback",
    "connect_timeout_milliseconds": "10000",
    "max_response_bytes": "10485760",
    "max_wire_bytes": "10485760",
    "max_header_bytes": "262144",
    "max_redirects": "5",
    "egress": "public",
    "egress_ports": "80,443,1024-65535",
}


@pytest.fixture(scope="module")
def settings(cluster: Cluster) -> Iterator[Database]:
    """A database that no worker serves."""
    database = cluster.create_database()
    yield database
    database.drop()


@pytest.fixture(scope="module")
def served(cluster: Cluster) -> Iterator[Database]:
    database = cluster.create_database()
    database.execute("select net.allow_network('loopback')")
    with database.worker():
        yield database
    database.drop()


@pytest.fixture
def configured(served: Database) -> Iterator[Database]:
    """The shared database with a worker; what a test sets is reset behind it."""
    yield served
    served.execute('select net.configure(name, null) from net.settings where value <> "default"')


def error_of(database: Database, url: str, timeout: str = "null") -> str | None:
    """How a GET ends: NULL where there is an answer."""
    request_id = database.value(f"select net.http_get(%s, timeout_milliseconds => {timeout})", url)
    row = database.row("select (o).state::text, (o).error_msg from net.wait(%s) o", request_id)
    assert row is not None
    assert row[0] in ("succeeded", "failed")
    message: str | None = row[1]
    return message


# ---- the list, and what is refused


def test_defaults(settings: Database) -> None:
    found = settings.rows('select name, value, "default" from net.settings')
    assert {name: default for name, _, default in found} == DEFAULTS
    assert all(value == default for _, value, default in found)


def test_each_is_described(settings: Database) -> None:
    for name, unit, description in settings.rows(
        "select name, unit, description from net.settings"
    ):
        assert unit, name
        assert description.endswith("."), name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout_milliseconds", "0"),
        ("timeout_milliseconds", "-1"),
        ("timeout_milliseconds", "1.5"),
        ("timeout_milliseconds", "soon"),
        ("timeout_milliseconds", ""),
        ("timeout_milliseconds", "99999999999999999999"),
        ("ttl", "soon"),
        ("ttl", "-1 s"),
        ("ttl", "100 years"),
        ("ttl_failed", "-1 day"),
        ("batch_size", "0"),
        ("batch_size", "1000000"),
        ("concurrency", "0"),
        ("poll_interval", "0"),
        ("poll_interval", "2 hours"),
        ("rescue_after", "-1 s"),
        ("wake_up", "notify"),
        ("wake_up", "Callback"),
        ("wake_up", ""),
        ("max_response_bytes", "-1"),
        ("max_response_bytes", "1e6"),
        ("max_redirects", "31"),
        ("egress", "everything"),
        ("connect_timeout_milliseconds", "0"),
        ("max_wire_bytes", "-1"),
        ("max_header_bytes", "10"),
        ("egress_ports", ""),
        ("egress_ports", "http"),
        ("egress_ports", "0"),
        ("egress_ports", "65536"),
        ("egress_ports", "443-80"),
        ("egress_ports", "80,,443"),
        ("egress_ports", "80-90-100"),
    ],
)
def test_a_bad_value(settings: Database, name: str, value: str) -> None:
    with pytest.raises(errors.InvalidParameterValue) as caught:
        settings.execute("select net.configure(%s, %s)", name, value)
    diag = caught.value.diag
    assert diag.message_primary is not None
    assert diag.message_primary.startswith(f'invalid value for setting "{name}": must be ')
    assert diag.message_hint is not None
    assert f"The default is {DEFAULTS[name]}" in diag.message_hint
    assert settings.value("select value from net.settings where name = %s", name) == DEFAULTS[name]


@pytest.mark.parametrize("name", ["ttls", "", "TTL", None])
def test_an_unknown_setting(settings: Database, name: str | None) -> None:
    with pytest.raises(errors.InvalidParameterValue, match="unknown setting") as caught:
        settings.execute("select net.configure(%s, '1')", name)
    assert ", ".join(sorted(DEFAULTS)) in (caught.value.diag.message_hint or "")


def test_the_table_takes_no_bad_value_either(settings: Database) -> None:
    for name, value in (("ttl", "-1 s"), ("no_such", "1"), ("wake_up", "never")):
        with pytest.raises(errors.CheckViolation):
            settings.execute("insert into pgnet.setting values (%s, %s)", name, value)


def test_set_and_reset(settings: Database) -> None:
    settings.execute("select net.configure('ttl', '1 hour')")
    settings.execute("select net.configure(name => 'ttl', value => '2 hours')")
    assert settings.value("select value from net.settings where name = 'ttl'") == "2 hours"
    settings.execute("select net.configure('ttl', null)")
    assert settings.value("select value from net.settings where name = 'ttl'") == DEFAULTS["ttl"]
    assert settings.value("select count(*) from pgnet.setting") == 0


def test_an_interval_is_read_whatever_the_sessions_style(settings: Database) -> None:
    session = settings.connect(options="-c intervalstyle=iso_8601 -c datestyle=SQL,DMY")
    for value in ("1 day 02:00", "P1DT2H", "26 h", "1d 2h"):
        session.execute("select net.configure('ttl', %s)", (value,))
        row = session.execute(
            "select value::interval = '26 h' from net.settings where name = 'ttl'"
        ).fetchone()
        assert row == (True,)
    session.execute("select net.configure('ttl', null)")


def test_part_of_the_transaction(settings: Database) -> None:
    session = settings.connect(autocommit=False)
    session.execute("select net.configure('ttl', '1 hour')")
    session.rollback()
    assert settings.value("select value from net.settings where name = 'ttl'") == DEFAULTS["ttl"]


# ---- what they do, in a worker that runs on


def test_timeout_milliseconds(configured: Database, httpd: str) -> None:
    for limit in (150, 250):
        configured.execute("select net.configure('timeout_milliseconds', %s)", str(limit))
        message = error_of(configured, f"{httpd}/hang")
        assert message is not None
        assert message.startswith(f"Timeout of {limit} ms reached.")
    # what a request says itself wins
    message = error_of(configured, f"{httpd}/hang", timeout="80")
    assert message is not None
    assert message.startswith("Timeout of 80 ms reached.")


def test_timeout_of_a_request_that_waits(fresh_database: Database, httpd: str) -> None:
    """A request without a timeout of its own has the one that is set when it is sent."""
    fresh_database.execute("select net.allow_network('loopback')")
    request_id = fresh_database.value("select net.http_get(%s)", f"{httpd}/hang")
    fresh_database.execute("select net.configure('timeout_milliseconds', '123')")
    with fresh_database.worker():
        message = fresh_database.value("select (net.wait(%s)).error_msg", request_id)
    assert message.startswith("Timeout of 123 ms reached.")


def test_max_response_bytes(configured: Database, httpd: str) -> None:
    assert error_of(configured, f"{httpd}/long/5000") is None
    configured.execute("select net.configure('max_response_bytes', '4999')")
    for path in ("/long/5000", "/chunked/5000", "/bomb/1048576"):
        message = error_of(configured, httpd + path)
        assert message is not None, path
        assert re.search(r"\b4999\b", message), message
    assert error_of(configured, f"{httpd}/long/4999") is None
    configured.execute("select net.configure('max_response_bytes', null)")
    assert error_of(configured, f"{httpd}/bomb/1048576") is None


def test_max_redirects(configured: Database, httpd: str) -> None:
    assert error_of(configured, f"{httpd}/hops/5") is None
    assert error_of(configured, f"{httpd}/hops/6") is not None
    configured.execute("select net.configure('max_redirects', '2')")
    assert error_of(configured, f"{httpd}/hops/2") is None
    assert error_of(configured, f"{httpd}/hops/3") == "Number of redirects hit maximum amount"
    # none at all: the redirect is the answer
    configured.execute("select net.configure('max_redirects', '0')")
    request_id = configured.value("select net.http_get(%s)", f"{httpd}/hops/1")
    assert configured.value("select (net.wait(%s)).status_code", request_id) == 302


def test_concurrency(configured: Database, nginx: Nginx) -> None:
    configured.execute("select net.configure('concurrency', '3')")
    assert error_of(configured, nginx.url) is None
    ids = [
        configured.value(
            "select net.http_get(%s, timeout_milliseconds => 5000)", f"{nginx.url}/slow?s=0.2"
        )
        for _ in range(9)
    ]
    most = 0

    def in_flight() -> int:
        nonlocal most
        waiting, flying = configured.row(  # type: ignore[misc]
            "select count(*), count(*) filter (where state = 'in_flight') from net.requests"
            " where id = any(%s) and state < 'succeeded'",
            ids,
        )
        most = max(most, flying)
        return int(waiting)

    wait_until(in_flight, lambda waiting: waiting == 0, "all have ended")
    assert most in (2, 3)
    assert len(configured.rows("select from net.wait_all(%s) where status_code = 200", ids)) == 9


@pytest.mark.parametrize("size", ["1", "7"])
def test_batch_size(configured: Database, nginx: Nginx, size: str) -> None:
    """However small, all is sent."""
    configured.execute("select net.configure('batch_size', %s)", size)
    ids = configured.value(
        "select array_agg(net.http_get(%s)) from generate_series(1, 40)", nginx.url
    )
    assert len(configured.rows("select from net.wait_all(%s) where status_code = 200", ids)) == 40


@pytest.mark.parametrize("ports", ["1-65535", "80", " 80 , 443,8000-8999 ", "1,1,1"])
def test_ports(settings: Database, ports: str) -> None:
    settings.execute("select net.configure('egress_ports', %s)", ports)
    settings.execute("select net.configure('egress_ports', null)")


def test_ports_are_followed(configured: Database, nginx: Nginx) -> None:
    ask = "select error_msg from net.wait(%s)"
    configured.execute("select net.configure('egress_ports', %s)", str(nginx.port))
    assert configured.value(ask, configured.value("select net.http_get(%s)", nginx.url)) is None
    configured.execute("select net.configure('egress_ports', '80, 443')")
    error = configured.value(ask, configured.value("select net.http_get(%s)", nginx.url))
    assert error.endswith(f"select net.configure('egress_ports', '80,443,{nginx.port}')")
    configured.execute(error.partition(": select ")[2].join(("select ", "")))
    assert configured.value(ask, configured.value("select net.http_get(%s)", nginx.url)) is None


@pytest.mark.parametrize(
    ("setting", "value", "path", "error"),
    [
        ("max_response_bytes", "4", "/", "response body exceeds 4 bytes"),
        ("max_wire_bytes", "4", "/", "response body exceeds 4 bytes on the wire"),
        ("max_header_bytes", "1024", "/files/headers", None),
        ("max_redirects", "0", "/redirect", None),
    ],
)
def test_limits(
    configured: Database, nginx: Nginx, setting: str, value: str, path: str, error: str | None
) -> None:
    nginx.file("headers", b"")
    configured.execute("select net.configure(%s, %s)", setting, value)
    request_id = configured.value("select net.http_get(%s)", nginx.url + path)
    outcome = configured.row("select error_msg, status_code, content from net.wait(%s)", request_id)
    assert outcome is not None
    assert outcome[:2] == (error, 302 if path == "/redirect" else 200)
    if error:
        assert outcome[2] == "pgnet"[:4]


def test_poll_interval(fresh_database: Database, nginx: Nginx) -> None:
    """Without a wake-up, the only worker of a database looks this often."""
    fresh_database.execute("select net.allow_network('loopback')")
    fresh_database.execute("select net.configure('poll_interval', '1 s')")
    with fresh_database.worker():
        began = time.monotonic()
        fresh_database.execute(
            "insert into net.http_request_queue (method, url) values ('GET', %s)", nginx.url
        )
        fresh_database.wait_for("select count(*) from net._http_response", timeout=5)
        assert time.monotonic() - began < 2.5


def crashed_in_flight(database: Database, worker: Worker, url: str) -> int:
    request_id: int = database.value("select net.http_get(%s)", url)
    database.wait_for("select count(*) from pgnet.claim")
    worker.kill()
    return request_id


def test_rescue_after(fresh_database: Database, nginx: Nginx) -> None:
    """The requests of a worker that has been gone for so long are free for others."""
    fresh_database.execute("select net.allow_network('loopback')")
    fresh_database.execute("select net.configure('timeout_milliseconds', '20000')")
    fresh_database.execute("select net.configure('rescue_after', '0 s')")
    with fresh_database.worker() as worker, fresh_database.worker(seen=False) as other:
        request_id = crashed_in_flight(fresh_database, worker, f"{nginx.url}/slow?s=1")
        outcome = fresh_database.row("select (net.wait(%s, '15 s')).*", request_id)
        assert outcome is not None
        assert outcome[1] == "succeeded"
        assert outcome[7] in (1, 2)
        assert other.process.poll() is None
