"""Settings of single hosts: the checks of net.configure_host, and that workers follow."""

from __future__ import annotations

import http.server
import json
import ssl
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme
from psycopg import errors
from psycopg.types.json import Jsonb

from pgnet.secret.mask import MASK
from servers.cluster import Cluster, Database
from servers.nginx import Nginx
from servers.waiting import wait_until

PEM = trustme.CA().cert_pem.bytes().decode()
KEY = trustme.CA().private_key_pem.bytes().decode()


@pytest.fixture(scope="module")
def hosts(cluster: Cluster) -> Iterator[Database]:
    database = cluster.create_database()
    database.execute("select net.set_secret('a-key', %s)", KEY)
    database.execute("select net.set_secret('a-proxy', 'http://u:hunter2hunter2@proxy.example:1')")
    yield database
    database.drop()


@pytest.fixture(autouse=True)
def forget(hosts: Database) -> Iterator[None]:
    yield
    hosts.execute("delete from pgnet.host")


def configure(database: Database, host: str | None, settings: Any) -> None:
    database.execute(
        "select net.configure_host(%s, %s)", host, None if settings is None else Jsonb(settings)
    )


def configured(database: Database) -> dict[str, Any]:
    return dict(database.rows("select host, settings from net.hosts"))


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("api.example.com", "api.example.com"),
        (" API.Example.COM. ", "api.example.com"),
        ("*.example.com", "*.example.com"),
        ("*", "*"),
        ("10.0.0.1", "10.0.0.1"),
        ("[2001:DB8::0:1]", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("localhost", "localhost"),
    ],
)
def test_patterns(hosts: Database, given: str, stored: str) -> None:
    configure(hosts, given, {"max_redirects": 1})
    assert configured(hosts) == {stored: {"max_redirects": 1}}
    configure(hosts, given, None)
    assert configured(hosts) == {}


@pytest.mark.parametrize(
    "pattern",
    [
        None,
        "",
        "http://a.example",
        "a.example:80",
        "a.*.example",
        "10.0.0.0/8",
        "127.1",
        "a b",
        "*.",
    ],
)
def test_bad_patterns(hosts: Database, pattern: str | None) -> None:
    with pytest.raises(errors.InvalidParameterValue, match="host pattern"):
        configure(hosts, pattern, {"max_redirects": 1})


def test_merged_and_reset(hosts: Database) -> None:
    configure(hosts, "a.example", {"max_redirects": 1, "user_agent": "x/1"})
    configure(hosts, "a.example", {"max_redirects": 2, "http_version": "1.1"})
    expected = {"max_redirects": 2, "user_agent": "x/1", "http_version": "1.1"}
    assert configured(hosts) == {"a.example": expected}
    configure(hosts, "a.example", {"user_agent": None})
    assert configured(hosts) == {"a.example": {"max_redirects": 2, "http_version": "1.1"}}
    configure(hosts, "a.example", {"max_redirects": None, "http_version": None})
    assert configured(hosts) == {}


@pytest.mark.parametrize(
    "settings",
    [
        {"connect_timeout_milliseconds": 1},
        {"max_redirects": 0},
        {"http_version": "2"},
        {"user_agent": "mine (a; b)/1.0"},
        {"proxy": "http://proxy.example:3128"},
        {"proxy": "https://[2001:db8::1]:3128/"},
        {"proxy": {"secret": "a-proxy"}},
        {"proxy": "direct"},
        {"retry": "safe"},
        {"host_header": "shop.example"},
        {"host_header": "A_b-c.example.:65535"},
        {"ca": PEM},
        {"client_certificate": PEM, "client_key": {"secret": "a-key"}},
        {"verify": True},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_good_settings(hosts: Database, settings: dict[str, Any]) -> None:
    configure(hosts, "a.example", settings)
    assert configured(hosts) == {"a.example": settings}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([], "must be a JSON object"),
        ("x", "must be a JSON object"),
        ({"retries": 1}, 'unknown setting "retries"'),
        ({"connect_timeout_milliseconds": 0}, "integer between 1 and 86400000"),
        ({"connect_timeout_milliseconds": "5"}, "integer between"),
        ({"max_redirects": 31}, "integer between 0 and 30"),
        ({"max_redirects": 1.5}, "integer between 0 and 30"),
        ({"http_version": "3"}, "one of 1.1, 2"),
        ({"http_version": 2}, "one of 1.1, 2"),
        ({"user_agent": ""}, "printable"),
        ({"user_agent": "a\r\nX: y"}, "printable"),
        ({"proxy": "proxy.example:3128"}, "must be http://host:port"),
        ({"proxy": "http://proxy.example"}, "must be http://host:port"),
        ({"proxy": "socks5://proxy.example:1080"}, "must be http://host:port"),
        ({"proxy": "http://u:hunter2@proxy.example:3128"}, "given as"),
        ({"proxy": {"secret": "nobody-made-it"}}, 'secret "nobody-made-it", which does not exist'),
        *[
            ({"host_header": name}, "must be a host name, or name:port")
            for name in (
                *(
                    "",
                    " ",
                    "a b",
                    "a\r\nX: y",
                    "a\n",
                    "a/b",
                    "a,b",
                    "u@a",
                    "a:0",
                    "a:65536",
                    "a:",
                    ":80",
                ),
                *(
                    "10.0.0.1",
                    "a.1",
                    "0x7f.1:80",
                    "[::1]",
                    "*",
                    "*.a",
                    "a..b",
                    "{a}",
                    "é",
                    "x" * 64,
                ),
                *(5, ["a"], {"secret": "a-key"}),
            )
        ],
        ({"ca": "hunter2"}, "certificates in PEM"),
        ({"ca": PEM + KEY}, "must not hold a private key"),
        ({"client_key": KEY}, "as|secret"),
        ({"client_key": {"secret": "a-key", "value": "hunter2"}}, "must be"),
        ({"client_certificate": PEM}, "go together"),
        ({"client_key": {"secret": "a-key"}}, "go together"),
        ({"verify": "no"}, "true or false"),
        ({"verify": 0}, "true or false"),
    ],
)
def test_bad_settings(hosts: Database, settings: Any, words: str) -> None:
    with pytest.raises(errors.InvalidParameterValue, match=words) as caught:
        configure(hosts, "a.example", settings)
    assert "hunter2" not in str(caught.value)
    assert "PRIVATE" not in str(caught.value)
    assert configured(hosts) == {}


def test_verification_is_switched_off_by_name_and_loudly(hosts: Database) -> None:
    for pattern in ("*", "*.example"):
        with pytest.raises(errors.InvalidParameterValue, match="single hosts only"):
            configure(hosts, pattern, {"verify": False})
    warnings: list[tuple[str | None, str | None]] = []
    with hosts.connect() as connection:
        connection.add_notice_handler(lambda d: warnings.append((d.severity, d.message_primary)))
        connection.execute("select net.configure_host('a.example', '{\"verify\": false}')")
    assert warnings == [
        ("WARNING", 'the certificate of "a.example" is not checked any more'),
        ("NOTICE", 'for host "a.example" are configured: verify'),
    ]
    checked = "select ok, detail from net.check() where item = 'hosts'"
    row = hosts.row(checked)
    assert row == (False, "the certificate is NOT checked of: a.example")
    configure(hosts, "a.example", {"verify": True})
    row = hosts.row(checked)
    assert row is not None
    assert row[0]


def test_a_secret_that_was_dropped_is_told(hosts: Database) -> None:
    hosts.execute("select net.set_secret('gone', 'http://u:p@proxy.example:1')")
    configure(hosts, "a.example", {"proxy": {"secret": "gone"}})
    hosts.execute("select net.drop_secret('gone')")
    row = hosts.row("select ok, detail, hint from net.check() where item = 'hosts'")
    assert row is not None
    assert row[:2] == (False, "secrets that are not there any more: gone of a.example")
    assert "net.set_secret" in row[2]


def test_the_key_is_nowhere_to_be_seen(hosts: Database) -> None:
    configure(hosts, "a.example", {"client_certificate": PEM, "client_key": {"secret": "a-key"}})
    assert "PRIVATE" not in json.dumps(configured(hosts))


def test_workers_follow(database: Database, nginx: Nginx) -> None:
    with database.worker():

        def agent() -> str:
            request_id = database.value("select net.http_get(%s)", f"{nginx.url}/headers")
            content = database.value("select content from net.wait(%s)", request_id)
            lines = [line for line in content.splitlines() if line.startswith("User-Agent:")]
            assert len(lines) == 1
            return str(lines[0].partition(": ")[2])

        assert agent().startswith("pgnet/")
        configure(database, "*", {"user_agent": "all/1"})
        assert agent() == "all/1"
        configure(database, "127.0.0.1", {"user_agent": "one/1"})
        assert agent() == "one/1"
        configure(database, "127.0.0.1", None)
        assert agent() == "all/1"


def test_the_host_header(database: Database, nginx: Nginx) -> None:
    """An ingress that is reached by its address, and asked for a name."""
    for pattern in ("*", "*.example"):
        with pytest.raises(errors.InvalidParameterValue, match="single hosts only"):
            configure(database, pattern, {"host_header": "shop.example"})
    with pytest.raises(errors.InvalidParameterValue) as caught:
        database.execute("select net.http_get('http://10.0.0.5/', headers => '{\"host\": \"a\"}')")
    assert "host_header" in str(caught.value.diag.message_hint)
    configure(database, "127.0.0.1", {"host_header": "shop.example"})
    request_id = database.value("select net.http_get(%s)", f"{nginx.url}/headers")
    database.execute("call net.drain()")
    content = database.value("select content from net.wait(%s)", request_id)
    assert [line for line in content.splitlines() if line[:5].lower() == "host:"] == [
        "Host: shop.example"
    ]


def test_secrets_are_bound_to_the_url_whatever_the_host_header(
    database: Database, nginx: Nginx
) -> None:
    """A name that is only asked for opens nothing, and hides nothing."""
    configure(database, "127.0.0.1", {"host_header": "shop.example"})
    database.execute("select net.set_secret('named', 'open sesame', 'http://shop.example/')")
    database.execute("select net.set_secret('placed', 'open sesame', %s)", f"{nginx.url}/")
    call = "select net.http_get(%s, headers => jsonb_build_object('X-A', %s::jsonb))"
    with pytest.raises(errors.InvalidParameterValue, match='"named" may not go'):
        database.execute(call, f"{nginx.url}/headers", '{"secret": "named"}')
    request_id = database.value(call, f"{nginx.url}/headers", '{"secret": "placed"}')
    database.execute("call net.drain()")
    content = database.value("select content from net.wait(%s)", request_id)
    # The value has gone there, and is hidden in what comes back.
    assert {"Host: shop.example", f"X-A: {MASK}"} <= set(content.splitlines())


def test_a_secret_that_is_missing_stops_requests_to_that_host_only(
    database: Database, nginx: Nginx
) -> None:
    database.execute("select net.set_secret('the-proxy', null)")
    configure(database, "localhost", {"proxy": {"secret": "the-proxy"}})
    by_name = database.value("select net.http_get(%s)", f"http://localhost:{nginx.port}/")
    by_address = database.value("select net.http_get(%s)", nginx.url)
    database.execute("call net.drain()")
    error = database.value("select error_msg from net.wait(%s)", by_name)
    assert 'secret "the-proxy", the proxy that net.configure_host names, is not there' in error
    assert database.value("select status_code from net.wait(%s)", by_address) == 200


def test_it_is_part_of_a_dump(hosts: Database) -> None:
    configure(hosts, "a.example", {"max_redirects": 3})
    dump = hosts.cluster.run(
        "pg_dump", "--dbname", hosts.dsn(), "--data-only", "--table=pgnet.host"
    )
    assert "a.example" in dump


# --- TLS, by real certificates --------------------------------------------------------------------


class TlsServer:
    """Answers with the name in the client's certificate, or with "nobody"."""

    def __init__(self, authority: trustme.CA, clients: trustme.CA | None) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        if clients is not None:
            clients.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                certificate: Any = self.connection.getpeercert()
                name = certificate["subjectAltName"][0][1] if certificate else "nobody"
                self.send_response(200)
                self.send_header("Content-Length", str(len(name)))
                self.end_headers()
                self.wfile.write(name.encode())

            def log_message(self, *_: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            def finish_request(self, request: Any, client_address: Any) -> None:
                try:
                    wrapped = context.wrap_socket(request, server_side=True)
                except OSError:
                    return  # who does not trust it, or is not trusted, hangs up
                with wrapped:
                    super().finish_request(wrapped, client_address)

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"https://localhost:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def __enter__(self) -> TlsServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.mark.parametrize("kind", ["process", "backend"])
def test_tls(database: Database, kind: str) -> None:
    """An internal authority, and keys that are changed: each counts from the next request on."""
    authority, clients = trustme.CA(), trustme.CA()
    first = clients.issue_cert("first.example")
    second = clients.issue_cert("second.example")

    def ask(url: str) -> tuple[str | None, str | None]:
        request_id = database.value("select net.http_request('GET', %s)", url)
        if kind == "backend":
            database.execute("call net.drain()")
        row = database.row("select content, error_msg from net.wait(%s)", request_id)
        assert row is not None
        return row[0], row[1]

    def show(certificate: trustme.LeafCert) -> None:
        key = certificate.private_key_pem.bytes().decode()
        database.execute("select net.set_secret('key', %s)", key)
        chain = "".join(blob.bytes().decode() for blob in certificate.cert_chain_pems)
        settings = {"client_certificate": chain, "client_key": {"secret": "key"}}
        configure(database, "localhost", settings)

    untrusted = (None, "SSL peer certificate or SSH remote key was not OK")
    with ExitStack() as stack:
        plain = stack.enter_context(TlsServer(authority, None))
        mutual = stack.enter_context(TlsServer(authority, clients))
        if kind == "process":
            stack.enter_context(database.worker())
        assert ask(plain.url) == untrusted
        configure(database, "localhost", {"ca": authority.cert_pem.bytes().decode()})
        assert ask(plain.url) == ("nobody", None)
        assert ask(plain.url.replace("localhost", "127.0.0.1")) == untrusted
        content, error = ask(mutual.url)
        assert content is None
        assert error is not None
        show(first)
        assert ask(mutual.url) == ("first.example", None)
        show(second)
        assert ask(mutual.url) == ("second.example", None)
        configure(database, "localhost", {"ca": PEM})
        assert ask(plain.url) == untrusted
        configure(database, "localhost", {"ca": None, "verify": False})
        assert ask(mutual.url) == ("second.example", None)
        configure(database, "localhost", None)
        assert ask(plain.url) == untrusted


@pytest.fixture
def secrets_dir() -> Iterator[Path]:
    """A directory that the server's user may read: the worker runs as this user."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def test_a_key_that_only_the_worker_has(database: Database, secrets_dir: Path) -> None:
    authority, clients = trustme.CA(), trustme.CA()
    certificate = clients.issue_cert("held.example")
    chain = "".join(blob.bytes().decode() for blob in certificate.cert_chain_pems)
    (secrets_dir / "held-key").write_bytes(certificate.private_key_pem.bytes())
    database.execute("select net.set_secret('held-key', null)")
    configure(
        database,
        "localhost",
        {
            "ca": authority.cert_pem.bytes().decode(),
            "client_certificate": chain,
            "client_key": {"secret": "held-key"},
        },
    )
    (secrets_dir / "held-key").chmod(0o644)
    with (
        TlsServer(authority, clients) as server,
        database.worker("--secrets-dir", str(secrets_dir)),
    ):
        request_id = database.value("select net.http_request('GET', %s)", server.url)
        row = database.row("select content, error_msg from net.wait(%s)", request_id)
        assert row == ("held.example", None)
        (secrets_dir / "held-key").unlink()
        database.execute("select net.worker_restart()")
        database.wait_for("select 1 from net.check() where item = 'worker' and ok")

        def error() -> str | None:
            request_id = database.value("select net.http_request('GET', %s)", server.url)
            message: str | None = database.value("select error_msg from net.wait(%s)", request_id)
            return message

        expected = 'secret "held-key", the client_key that net.configure_host names, is not there'
        wait_until(error, lambda text: text == expected, "the error names the missing key")
