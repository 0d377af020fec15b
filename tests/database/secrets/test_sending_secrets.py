"""Secrets on their way out: in headers, URLs, proxies and keys, as they are when they are sent."""

from __future__ import annotations

import base64
import os
import ssl
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
import trustme
from psycopg import errors
from psycopg.types.json import Jsonb

from servers.canary import CANARY, found_in
from servers.cluster import (
    Cluster,
    Database,
    free_port,
)
from servers.secret_scene import Repeats, Scene, Site, nowhere, observed, put, serving, store

# ---- what goes out


def test_in_a_header(scene: Scene) -> None:
    name = scene.secret(f"sk_{CANARY}")
    row = scene.ask(f"{scene.home.url}/v1/x", {"X-Key": {"secret": name}, "X-Other": "1"})
    assert row["status_code"] == 200
    assert f"X-Key: sk_{CANARY}\n" in scene.home.take()


def test_with_a_prefix(scene: Scene) -> None:
    name = scene.secret(f"sk_{CANARY}")
    scene.ask(f"{scene.home.url}/v1/x", {"Authorization": {"secret": name, "prefix": "Bearer "}})
    assert f"Authorization: Bearer sk_{CANARY}\n" in scene.home.take()


def test_in_an_array(scene: Scene) -> None:
    first, second = scene.secret(f"one {CANARY}"), scene.secret(f"two {CANARY}", "/v1")
    headers = {
        "X-Key": ["plain", {"secret": first}, {"secret": second, "prefix": "p="}],
        "X-B": "b",
    }
    scene.ask(f"{scene.home.url}/v1/x", headers)
    told = scene.home.take()
    lines = [line for line in told.splitlines() if line.startswith("X-")]
    # jsonb has shorter names first
    assert lines == ["X-B: b", "X-Key: plain", f"X-Key: one {CANARY}", f"X-Key: p=two {CANARY}"]


def test_as_a_url(scene: Scene) -> None:
    name = scene.secret(f"{scene.home.url}/v1/hooks/{CANARY}")
    url = scene.database.value("select net.secret_url(%s)", name)
    row = scene.ask(url, params=Jsonb({"a": "b c"}))
    assert row["status_code"] == 200
    assert row["url"] == f"{scene.home.url}/{{secret:{name}}}?a=b%20c"
    assert row["final_url"] == row["url"]
    assert scene.home.take().startswith(f"GET /v1/hooks/{CANARY}?a=b%20c HTTP/1.1\r\n")


def test_as_a_query(scene: Scene) -> None:
    name = scene.secret(f"?token={CANARY}", "/v1/json")
    url = scene.database.value("select net.secret_url(%s)", name)
    row = scene.ask(url, params=Jsonb({"a": 1}))
    assert scene.home.take().startswith(f"GET /v1/json?token={CANARY}&a=1 HTTP/1.1\r\n")
    assert "***" in row["content"]
    assert "a=1" in row["content"]


def test_both_at_once(scene: Scene) -> None:
    hook = scene.secret(f"{scene.home.url}/v1/plain/{CANARY}")
    inside, outside = (
        scene.secret(f"in {CANARY}", "/v1/plain"),
        scene.secret(f"out {CANARY}", "/v2"),
    )
    url = scene.database.value("select net.secret_url(%s)", hook)
    row = scene.ask(url, {"A": {"secret": inside}})
    assert row["status_code"] == 200
    assert f"A: in {CANARY}\n" in scene.home.take()
    # only the worker can know that this one's URL is not below the other one's prefix
    row = scene.ask(url, {"A": {"secret": outside}})
    assert row["state"] == "failed"
    assert f'secret "{outside}"' in row["error_msg"]
    assert scene.home.received == []


def test_held_by_the_worker(scene: Scene) -> None:
    name = scene.held(f"held {CANARY}\n".encode())
    row = scene.ask(f"{scene.home.url}/v1/json", {"A": {"secret": name, "prefix": "Token "}})
    assert f"A: Token held {CANARY}\n" in scene.home.take()
    assert row["content_json"]["told"].startswith("Token ***|")
    # what is put in its place counts at once
    (scene.directory / name).write_text(f"again {CANARY}")
    scene.ask(f"{scene.home.url}/v1/x", {"A": {"secret": name}})
    assert f"A: again {CANARY}\n" in scene.home.take()
    hook = scene.held(f"{scene.home.url}/v1/plain/{CANARY}".encode())
    scene.ask(scene.database.value("select net.secret_url(%s)", hook))
    assert scene.home.take().startswith(f"GET /v1/plain/{CANARY} HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not have it"),
        (CANARY[:7].encode(), "fewer than 8 characters"),
        (b"", "is empty"),
        (f"{CANARY}\n\n".encode(), "line break"),
        (f"{CANARY}\x01".encode(), "control character"),
        (f" {CANARY}".encode(), "white space"),
        (CANARY.encode() + b"\xff", "not in UTF-8"),
        (CANARY.encode() * 20_000, "cannot be read"),
        (f"https://evil.example/{CANARY}".encode(), "not within its URL prefix"),
    ],
)
def test_held_and_no_use(scene: Scene, content: bytes | None, message: str) -> None:
    name = scene.held(content or b"")
    if content is None:
        (scene.directory / name).unlink()
    row = scene.ask(f"{scene.home.url}/v1/x", {"A": {"secret": name}})
    assert (row["state"], row["status_code"]) == ("failed", None)
    assert message in row["error_msg"]
    assert scene.home.received == []


@pytest.mark.skipif(os.geteuid() != 0, reason="the file has to be another user's")
def test_held_and_unreadable(scene: Scene) -> None:
    name = scene.held(CANARY.encode())
    (scene.directory / name).chmod(0o600)
    row = scene.ask(f"{scene.home.url}/v1/x", {"A": {"secret": name}})
    assert row["error_msg"] == f'the file of secret "{name}" cannot be read: Permission denied'
    assert scene.home.received == []


# ---- what fails


def test_a_timeout(scene: Scene) -> None:
    name = scene.secret(f"sk_{CANARY}")
    row = scene.ask(f"{scene.home.url}/v1/never", {"A": {"secret": name}}, timeout_milliseconds=300)
    assert row["timed_out"] is True


def test_a_refused_connection(scene: Scene) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    store(scene.database, "refused", f"sk_{CANARY}", nobody)
    row = scene.ask(f"{nobody}/x", {"A": {"secret": "refused"}})
    assert "connect" in row["error_msg"]
    store(scene.database, "refused", f"{nobody}/{CANARY}", nobody)
    row = scene.ask(scene.database.value("select net.secret_url('refused')"))
    assert "connect" in row["error_msg"]


@pytest.mark.parametrize("host", ["nobody.invalid", "10.255.255.1"])
def test_a_host_that_is_none(scene: Scene, host: str) -> None:
    store(scene.database, "nobody", f"http://{host}/{CANARY}", f"http://{host}/")
    row = scene.ask(scene.database.value("select net.secret_url('nobody')"))
    assert row["error_msg"]


def test_tls_that_fails(scene: Scene) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with serving(tls=context) as site:
        store(scene.database, "tls", f"sk_{CANARY}", site.url)
        row = scene.ask(f"{site.url}/x", {"A": {"secret": "tls"}})
        assert row["status_code"] is None
        assert row["error_msg"]
        # plain text at a port of TLS, and the other way round
        plain = site.url.replace("https", "http")
        store(scene.database, "tls", f"sk_{CANARY}", plain)
        row = scene.ask(f"{plain}/x", {"A": {"secret": "tls"}})
        assert row["status_code"] is None
        assert site.received == []
    secure = scene.home.url.replace("http", "https")
    store(scene.database, "tls", f"sk_{CANARY}", secure)
    row = scene.ask(f"{secure}/x", {"A": {"secret": "tls"}})
    assert row["status_code"] is None


# ---- what changes between the call and the sending


@pytest.fixture
def later(talkative: Cluster, sites: tuple[Site, Site]) -> Iterator[Database]:
    """A database whose requests are sent when a test says so, by a worker in a backend."""
    home, _foreign = sites
    home.received.clear()
    database = observed(talkative)
    database.execute("create role secrets_later login")
    database.execute("grant select on net.http_request_queue to secrets_later")
    store(database, "key", f"sk_{CANARY}", f"{home.url}/v1/")
    database.execute("select net.grant_secret('key', 'secrets_later')")
    yield database
    nowhere(database)
    database.drop()
    with talkative.connect() as connection:
        connection.execute("drop role if exists secrets_later")


def send(database: Database, home: Site, meanwhile: Callable[[], None]) -> tuple[Any, ...]:
    """Queue a request as secrets_later, do something, send it; give state and error."""
    connection = database.connect("secrets_later")
    row = connection.execute(
        "select net.http_get(%s, headers => %s, timeout_milliseconds => 5000)",
        (f"{home.url}/v1/plain", Jsonb({"A": {"secret": "key"}})),
    ).fetchone()
    assert row is not None
    connection.close()
    meanwhile()
    database.execute("call net.drain()")
    found = database.row("select state, error_msg from net._http_response where id = %s", row[0])
    assert found is not None
    return found


REFUSED = 'secret "key" does not exist, or role "secrets_later" may not use it'


def test_nothing_changes(later: Database, sites: tuple[Site, Site]) -> None:
    assert send(later, sites[0], lambda: None) == ("succeeded", None)
    assert f"A: sk_{CANARY}\n" in sites[0].take()


def test_dropped_meanwhile(later: Database, sites: tuple[Site, Site]) -> None:
    def meanwhile() -> None:
        later.execute("select net.drop_secret('key')")

    assert send(later, sites[0], meanwhile) == ("failed", REFUSED)
    assert sites[0].received == []


def test_revoked_meanwhile(later: Database, sites: tuple[Site, Site]) -> None:
    def meanwhile() -> None:
        later.execute("select net.revoke_secret('key', 'secrets_later')")

    assert send(later, sites[0], meanwhile) == ("failed", REFUSED)
    assert sites[0].received == []


def test_its_prefix_changed_meanwhile(later: Database, sites: tuple[Site, Site]) -> None:
    def meanwhile() -> None:
        store(later, "key", f"sk_{CANARY}", f"{sites[0].url}/v2/")

    state, error = send(later, sites[0], meanwhile)
    assert (state, error) == ("failed", 'secret "key" may not go to the URL of this request')
    assert sites[0].received == []


def test_rotated_meanwhile(later: Database, sites: tuple[Site, Site]) -> None:
    def meanwhile() -> None:
        store(later, "key", f"new_{CANARY}")

    assert send(later, sites[0], meanwhile) == ("succeeded", None)
    assert f"A: new_{CANARY}\n" in sites[0].take()


def test_the_role_dropped_meanwhile(later: Database, sites: tuple[Site, Site]) -> None:
    def meanwhile() -> None:
        later.execute("drop owned by secrets_later")
        later.execute("drop role secrets_later")

    state, error = send(later, sites[0], meanwhile)
    assert state == "failed"
    assert error == 'the role that asked for the secret "key" does not exist any more'
    assert sites[0].received == []


def test_held_by_workers_and_this_one_is_a_backend(
    later: Database, sites: tuple[Site, Site]
) -> None:
    def meanwhile() -> None:
        put(later, "key", None)

    state, error = send(later, sites[0], meanwhile)
    assert state == "failed"
    assert "pgnet worker --secrets-dir" in error
    assert sites[0].received == []


def test_by_hand(later: Database, sites: tuple[Site, Site]) -> None:
    """A row that a role inserts past the functions is checked when it is sent."""
    home, foreign = sites
    foreign.received.clear()
    store(later, "other", f"other {CANARY}", home.url)
    connection = later.connect("secrets_later")
    reference = {"A": {"secret": "key"}}
    for url, headers in (
        (f"{foreign.url}/v1/", reference),
        (f"{home.url}/v2/", reference),
        (f"{home.url}/v1/", {"A": {"secret": "other"}}),
        (f"{home.url}/v1/", {"A": [[{"secret": "key"}]]}),
        (f"{home.url}/v1/", {"A": {"b": {"secret": "key"}}}),
        (f"{home.url}/v1/", {"secret": "key"}),
        (f"{home.url}/v1/", [reference]),
        (f"{home.url}/v1/", {"Host": {"secret": "key"}}),
        (f"{home.url}/v1/", {"A": {"secret": "key", "prefix": "a\r\nB: c"}}),
        (f"{home.url}/{{secret:other}}", {}),
        (f"{home.url}/{{secret:key}}", {}),
        (f"{foreign.url}/{{secret:key}}", {}),
        (f"{home.url}/v1/{{secret:key}}", {}),
        (f"{home.url}/{{secret:key}}/{{secret:key}}", {}),
    ):
        connection.execute(
            "insert into net.http_request_queue (method, url, headers, timeout_milliseconds)"
            " values ('GET', %s, %s, 5000)",
            (url, Jsonb(headers)),
        )
    later.execute("call net.drain()")
    rows = later.rows("select url, state::text, error_msg from net._http_response order by id")
    assert len(rows) == 14
    # a header named "secret" is not a reference to a secret: its value is sent unchanged
    assert [row for row in rows if row[1] != "failed"] == [rows[5]]
    assert "secret: key\n" in home.take()
    assert foreign.received == []


def test_a_worker_gets_only_what_its_claims_name(later: Database, sites: tuple[Site, Site]) -> None:
    """A worker's role asks for values by the tokens of its claims, and in no other way."""
    home = sites[0]
    store(later, "other", f"other {CANARY}", home.url)
    later.execute("select net.grant_secret('other', 'secrets_later')")
    connection = later.connect("secrets_later")
    headers = Jsonb({"A": {"secret": "key"}})
    queued = connection.execute(
        "select net.http_get(%s, headers => %s)", (f"{home.url}/v1/x", headers)
    ).fetchone()
    assert queued is not None
    connection.close()
    later.execute("create role secrets_worker login")
    try:
        later.execute("select net.grant_worker('secrets_worker')")
        worker = later.connect("secrets_worker")
        registered = worker.execute(
            "select worker_id from pgnet.register_worker('backend')"
        ).fetchone()
        assert registered is not None
        claimed = worker.execute(
            "select id, token from pgnet.claim_requests(%s, 10, 10, 10, '{}', 1000, '')", registered
        ).fetchone()
        assert claimed is not None
        request_id, token = claimed

        def asked(*triples: tuple[int, str, str]) -> list[tuple[Any, ...]]:
            ids, tokens, names = (list(column) for column in zip(*triples, strict=True))
            return worker.execute(
                "select name, value, url_prefix, stored_in, fault"
                " from pgnet.claimed_secrets(%s::bigint[], %s::uuid[], %s::text[])",
                (ids, tokens, names),
            ).fetchall()

        assert asked((request_id, token, "key"), (request_id, token, "other")) == [
            ("key", f"sk_{CANARY}", f"{home.url}/v1/", "database", None),
            ("other", None, f"{home.url}/", "database",
             'the request does not name the secret "other"'),
        ]  # fmt: skip
        stranger = "00000000-0000-0000-0000-000000000000"
        assert asked((request_id, stranger, "key"), (request_id + 1, token, "key")) == []
        with pytest.raises(errors.InsufficientPrivilege):
            worker.execute("select * from pgnet.secret")
        worker.close()
    finally:
        later.execute("drop owned by secrets_worker")
        later.execute("drop role secrets_worker")


# ---- in the settings of hosts


class Proxies(Repeats):
    """A proxy for http that answers by itself, and repeats what it was told."""

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        self.site.received.append(self.raw_requestline.decode("latin-1") + str(self.headers))
        told = "|".join(self.headers.values())
        basic = self.headers.get("Proxy-Authorization", "").partition(" ")[2]
        told = f"{told}|{base64.b64decode(basic).decode()}"
        self.answer(told.encode(), more={"X-Told": told})
        self.wfile.flush()


def test_a_proxys_password(scene: Scene) -> None:
    with serving(Proxies) as proxy:
        password = f"{CANARY}/@"
        address = proxy.url.removeprefix("http://")
        store(scene.database, "proxy", f"http://user:{quote(password, '')}@{address}")
        configure(scene, "127.0.0.2", {"proxy": {"secret": "proxy"}})
        try:
            row = scene.ask("http://127.0.0.2:8080/x", {"X-Plain": "plain"})
            assert row["status_code"] == 200, row
            basic = base64.b64encode(f"user:{password}".encode()).decode()
            assert f"Proxy-Authorization: Basic {basic}" in proxy.take()
            assert "plain" in row["content"]
        finally:
            configure(scene, "127.0.0.2", None)
    # Another one, which is not there: a worker may have kept its connection to the first.
    store(scene.database, "proxy", f"http://user:{quote(password, '')}@127.0.0.1:{free_port()}")
    configure(scene, "127.0.0.2", {"proxy": {"secret": "proxy"}})
    try:
        row = scene.ask("http://127.0.0.2:8080/x")
        assert row["error_msg"]
    finally:
        configure(scene, "127.0.0.2", None)


def test_a_clients_key(scene: Scene) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    client = authority.issue_cert("client.example")
    chain = b"".join(pem.bytes() for pem in client.cert_chain_pems).decode()
    # what stands before the key in PEM is for people to read
    key = f"{CANARY}\n{client.private_key_pem.bytes().decode()}"
    store(scene.database, "client-key", key)
    settings = {
        "ca": authority.cert_pem.bytes().decode(),
        "client_certificate": chain,
        "client_key": {"secret": "client-key"},
    }
    with serving(tls=context) as site:
        configure(scene, "127.0.0.1", settings)
        try:
            row = scene.ask(f"{site.url}/v1/json")
            assert row["status_code"] == 200, row
            assert not found_in(site.take())
            # a key that the worker holds, and a value that is not a key
            (scene.directory / "client-key").write_text(key)
            put(scene.database, "client-key", None)
            row = scene.ask(f"{site.url}/v1/json")
            assert row["status_code"] == 200, row
            store(scene.database, "client-key", f"{CANARY} is no key")
            row = scene.ask(f"{site.url}/v1/json")
            assert row["status_code"] is None
            assert row["error_msg"]
            (scene.directory / "client-key").write_bytes(CANARY.encode() + b"\xff")
            put(scene.database, "client-key", None)
            row = scene.ask(f"{site.url}/v1/json")
            assert row["status_code"] is None
            assert row["error_msg"]
        finally:
            configure(scene, "127.0.0.1", None)
    # the worker is there, and serves others
    assert scene.ask(f"{scene.home.url}/v1/x")["status_code"] == 200


def configure(scene: Scene, host: str, settings: dict[str, Any] | None) -> None:
    scene.database.execute(
        "select net.configure_host(%s, %s)", host, None if settings is None else Jsonb(settings)
    )
