"""Proxies: requests passed on and tunnels, credentials, what a proxy answers by itself."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pycurl
import pytest
import trustme

from pgnet.wire.answer import Answer
from pgnet.wire.connection import Proxy
from pgnet.wire.curl.options import REQUEST_TARGET
from pgnet.wire.guard import EgressRules
from pgnet.wire.host import HostSettings, HostTable
from pgnet.wire.limits import Limits
from pgnet.wire.wire_error import WireError
from servers import httpd, proxyd
from servers.client import LOOPBACK, Client, NameServer
from servers.process import Recording

MakeClient = Callable[..., Client]
NAMES = ("a.example", "b.example", "proxy.example", "localhost", "127.0.0.1", "hang.example",
         "early.example", "close.example")  # fmt: skip


class Authority:
    """One authority, and a certificate of it for all names here."""

    def __init__(self, directory: Path) -> None:
        made = trustme.CA()
        self.ca = made.cert_pem.bytes().decode()
        self.certificate = str(directory / "server.pem")
        leaf = made.issue_cert(*NAMES)
        leaf.private_key_and_cert_chain_pem.write_to_path(self.certificate)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def secure(authority: Authority) -> Iterator[httpd.Running]:
    """The target with TLS."""
    more = ("--cert", authority.certificate, "--key", authority.certificate)
    with httpd.running("127.0.0.1", 0, *more) as running:
        yield running


@pytest.fixture(scope="module", params=["http", "https"])
def proxy(request: pytest.FixtureRequest, authority: Authority) -> Iterator[Recording]:
    more = ("--cert", authority.certificate) if request.param == "https" else ()
    with proxyd.running(*more) as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_seen(server: httpd.Running, secure: httpd.Running, proxy: Recording) -> None:
    for running in (server, secure, proxy):
        running.reset()


@pytest.fixture
def by_proxy(
    make_client: MakeClient, authority: Authority, proxy: Recording
) -> Callable[..., Client]:
    """A client whose requests all go by the proxy."""

    def make(rules: EgressRules = LOOPBACK, **more: Any) -> Client:
        settings = HostSettings(ca=authority.ca, proxy=proxy.url)
        return make_client(rules, hosts=HostTable({"*": settings}), **more)

    return make


@pytest.fixture
def client(by_proxy: Callable[..., Client]) -> Client:
    return by_proxy()


def ok(answer: Answer) -> bytes:
    assert answer.error is None, answer.error
    return answer.content


def failed(answer: Answer) -> WireError:
    assert answer.error is not None
    return answer.error


def seen(answer: Answer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ok(answer))
    return found


# ---- what goes where


def test_http_goes_in_absolute_form(
    client: Client, server: httpd.Running, proxy: Recording
) -> None:
    answer = client(f"http://a.example:{server.port}/echo/../echo/./x?q=%20", "GET", [("X-A", "1")])
    assert (answer.address, answer.http_version, answer.redirects) == ("127.0.0.1", "1.1", 0)
    assert ok(answer)
    (asked,) = proxy.record()
    assert asked["target"] == f"http://a.example:{server.port}/echo/../echo/./x?q=%20"
    names = [name for name, _ in asked["headers"]]
    assert sorted(names) == ["Host", "User-Agent", "X-A"]
    (arrived,) = server.record()
    assert arrived["target"] == "/echo/../echo/./x?q=%20"


def test_https_goes_by_a_tunnel_that_learns_nothing(
    client: Client, secure: httpd.Running, proxy: Recording
) -> None:
    headers = [("Authorization", "Bearer SECRET"), ("X-A", "1")]
    answer = client(f"https://a.example:{secure.port}/echo?q", "POST", headers, b"body")
    assert answer.address == "127.0.0.1"
    arrived = seen(answer)
    assert (arrived["method"], arrived["target"], arrived["body"]) == ("POST", "/echo?q", "body")
    assert ["Authorization", "Bearer SECRET"] in arrived["headers"]
    (asked,) = proxy.record()
    assert (asked["method"], asked["target"]) == ("CONNECT", f"a.example:{secure.port}")
    assert asked["headers"] == [["Host", f"a.example:{secure.port}"]]
    # what the proxy said of the tunnel is no part of the answer
    assert answer.header("X-Proxy") is None
    assert answer.timings.connect > 0
    assert answer.timings.tls > 0
    # The first byte is the server's, not that of the proxy's answer to CONNECT.
    assert answer.timings.connect + answer.timings.tls <= answer.timings.first_byte


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE"])
def test_methods_and_bodies(
    client: Client,
    server: httpd.Running,
    secure: httpd.Running,
    method: str,
) -> None:
    body = bytes(range(256)) * 2000 if method in ("POST", "PUT") else None
    for target in (server, secure):
        ok(client(target.url.replace("127.0.0.1", "a.example") + "/echo", method, [], body))
        (arrived,) = target.record()
        assert (arrived["method"], arrived["body"].encode("latin-1")) == (method, body or b"")


def test_connections_are_used_again(
    client: Client, server: httpd.Running, secure: httpd.Running, proxy: Recording
) -> None:
    for _ in range(3):
        for name in ("a.example", "b.example"):
            ok(client(f"http://{name}:{server.port}/x"))
            ok(client(f"https://{name}:{secure.port}/x"))
    record = proxy.record()
    # requests to any host share connections to the proxy, a tunnel is of one host
    kept = {e["connection"] for e in record if e["method"] == "GET"}
    # libcurl 8.23 keeps none to a proxy that is spoken to over TLS
    keeps = proxy.url.startswith("http:") or pycurl.version_info()[2] < 0x081700
    assert len(kept) == (1 if keeps else 6)
    assert [e["target"] for e in record if e["method"] == "CONNECT"] == [
        f"{name}:{secure.port}" for name in ("a.example", "b.example")
    ]


@pytest.mark.parametrize("target", ["/x?", "/x?a=%2f%7E%2F", "/a/../x", "/./x//", "/x?a=/../b"])
def test_the_target_is_what_the_url_says(
    client: Client, server: httpd.Running, proxy: Recording, target: str
) -> None:
    """The proxy gets the URL to the letter, in absolute form (RFC 9112, section 3.2.2)."""
    server.reset()
    for host in ("127.0.0.1", "127.1"):
        url = f"http://{host}:{server.port}{target}"
        assert client(url).error is None
        if REQUEST_TARGET is not None:
            assert proxy.record()[-1]["target"] == url
    # The libcurl of Debian 12 leaves an empty query out.
    seen = target if REQUEST_TARGET is not None else target.removesuffix("?")
    assert [entry["target"] for entry in server.record()] == [seen] * 2


def test_a_proxy_is_of_its_host_only(
    make_client: MakeClient,
    authority: Authority,
    server: httpd.Running,
    proxy: Recording,
    name_server: NameServer,
) -> None:
    """Hosts with a proxy and without one lead to the same address and port, in turns."""
    for name in ("a.example", "b.example"):
        name_server.answers[name] = ["127.0.0.1"]
    table = {
        "a.example": HostSettings(proxy=proxy.url),
        "127.0.0.1": HostSettings(ca=authority.ca),
    }
    client = make_client(hosts=HostTable(table), resolver=name_server.resolver())
    for _ in range(3):
        for name in ("a.example", "b.example", "127.0.0.1"):
            ok(client(f"http://{name}:{server.port}/{name}"))
    assert [entry["target"] for entry in proxy.record()] == [
        f"http://a.example:{server.port}/a.example"
    ] * 3
    assert len(server.record()) == 9
    # a name that the proxy looks up is not looked up here
    assert {name for name, _ in name_server.asked} == {"b.example"}


def test_the_environment_is_not_read(
    make_client: MakeClient,
    server: httpd.Running,
    proxy: Recording,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    ok(make_client()(f"{server.url}/x"))
    assert proxy.record() == []
    # nor who is to have none
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("NO_PROXY", "a.example")
    ok(client(f"http://a.example:{server.port}/x"))
    assert len(proxy.record()) == 1


# ---- who may


def test_credentials(
    make_client: MakeClient, authority: Authority, server: httpd.Running, secure: httpd.Running
) -> None:
    password = "p@ss:w/rd%"
    with proxyd.running("--user", f"me:{password}") as proxy:
        host = proxy.url.partition("://")[2]
        for user, expected in (
            ("me:p%40ss%3Aw%2Frd%25@", True),
            ("me:p%40ss%3Aw%2Frd@", False),
            ("me@", False),
            ("", False),
        ):
            proxy.reset()
            settings = HostSettings(ca=authority.ca, proxy=f"http://{user}{host}")
            client = make_client(hosts=HostTable({"*": settings}))
            plain = client(f"http://a.example:{server.port}/echo", "GET", [("X-A", "1")])
            tunnel = client(f"https://a.example:{secure.port}/echo", "GET", [("X-A", "1")])
            if expected:
                # and the servers never see them
                for answer in (plain, tunnel):
                    names = {name for name, _ in seen(answer)["headers"]}
                    assert names - {"Connection"} == {"Host", "User-Agent", "X-A"}
                given = "Basic " + base64.b64encode(f"me:{password}".encode()).decode()
                for asked in proxy.record():
                    assert ["Proxy-Authorization", given] in asked["headers"]
            else:
                assert plain.status_code == 407
                error = failed(tunnel)
                assert error.message == "proxy 127.0.0.1 refused the tunnel with status 407"
                assert not error.possibly_sent
                assert "ss" not in error.detail.partition("tunnel")[0]


@pytest.mark.parametrize("status", [403, 407, 502, 504])
def test_a_proxy_that_refuses(client: Client, server: httpd.Running, status: int) -> None:
    error = failed(client(f"https://status-{status}.example/x"))
    assert error.message == f"proxy 127.0.0.1 refused the tunnel with status {status}"
    assert (error.possibly_sent, error.timed_out) == (False, False)
    # for http its answer is the answer: nobody could tell them apart
    assert client(f"http://status-{status}.example/x").status_code == status
    ok(client(f"http://a.example:{server.port}/x"))


@pytest.mark.parametrize(
    ("way", "tunnel", "plain"),
    [
        ("close", "proxy 127.0.0.1: Failure when receiving data from the peer",
         "Server returned nothing (no headers, no data)"),
        ("garbage", "proxy 127.0.0.1: Failure when receiving data from the peer",
         "Unsupported protocol"),
        ("flood", "response headers exceed 262144 bytes", "response headers exceed 262144 bytes"),
    ],
)  # fmt: skip
def test_a_proxy_that_fails(
    client: Client, server: httpd.Running, way: str, tunnel: str, plain: str
) -> None:
    error = failed(client(f"https://{way}.example/x"))
    assert (error.message, error.possibly_sent) == (tunnel, False)
    error = failed(client(f"http://{way}.example/x"))
    assert (error.message, error.possibly_sent) == (plain, True)
    ok(client(f"http://a.example:{server.port}/x"))


def test_a_proxy_that_resets(client: Client) -> None:
    # with TLS a reset is an end without a word
    for scheme, sent in (("https", False), ("http", True)):
        error = failed(client(f"{scheme}://reset.example/x"))
        assert error.possibly_sent == sent
        assert "receiving data" in error.message or "returned nothing" in error.message


def test_a_proxy_that_hangs(by_proxy: Callable[..., Client]) -> None:
    client = by_proxy(limits=Limits(connect_timeout=0.3))
    began = time.monotonic()
    error = failed(client("https://hang.example/x"))
    assert 0.29 <= time.monotonic() - began <= 0.8
    assert error.message.startswith("Connect timeout of 300 ms reached. ")
    assert (error.timed_out, error.possibly_sent) == (True, False)
    error = failed(client("http://hang.example/x", timeout=0.4))
    assert error.message.startswith("Timeout of 400 ms reached. ")
    assert (error.timed_out, error.possibly_sent) == (True, True)


def test_interim_answers_of_a_proxy(client: Client, server: httpd.Running) -> None:
    answer = client(f"http://early.example:{server.port}/x")
    assert (answer.status_code, answer.header("Link")) == (200, None)


def test_nobody_behind_the_proxy(client: Client) -> None:
    assert client("http://a.example:1/x").status_code == 502
    error = failed(client("https://a.example:1/x"))
    assert error.message == "proxy 127.0.0.1 refused the tunnel with status 502"


def test_no_proxy_there(make_client: MakeClient, name_server: NameServer) -> None:
    table = {
        "a.example": HostSettings(proxy="http://127.0.0.1:1"),
        "b.example": HostSettings(proxy="http://proxy.example:3128"),
    }
    client = make_client(hosts=HostTable(table), resolver=name_server.resolver())
    for scheme in ("http", "https"):
        error = failed(client(f"{scheme}://a.example/x"))
        assert error.message == "proxy 127.0.0.1: Couldn't connect to server"
        assert not error.possibly_sent
        assert failed(client(f"{scheme}://b.example/x")).message == "Couldn't resolve proxy name"


def test_the_targets_certificate_is_checked(client: Client, secure: httpd.Running) -> None:
    error = failed(client(f"https://unnamed.example:{secure.port}/x"))
    assert error.message == "SSL peer certificate or SSH remote key was not OK"
    assert not error.possibly_sent
    assert secure.record() == []


def test_the_proxys_certificate_is_checked(
    make_client: MakeClient,
    authority: Authority,
    server: httpd.Running,
    secure: httpd.Running,
    name_server: NameServer,
) -> None:
    for name in ("proxy.example", "unnamed.example"):
        name_server.answers[name] = ["127.0.0.1"]
    with proxyd.running("--cert", authority.certificate) as proxy:
        for name, settings, expected in (
            ("proxy.example", HostSettings(ca=authority.ca), True),
            ("proxy.example", HostSettings(), False),
            ("proxy.example", HostSettings(verify=False), True),
            ("unnamed.example", HostSettings(ca=authority.ca), False),
        ):
            table = {
                "a.example": HostSettings(ca=authority.ca, proxy=f"https://{name}:{proxy.port}"),
                # A proxy is a host too.
                name: settings,
            }
            client = make_client(hosts=HostTable(table), resolver=name_server.resolver())
            for url in (server.url, secure.url):
                answer = client(url.replace("127.0.0.1", "a.example") + "/x")
                if expected:
                    assert ok(answer) == b"ok"
                else:
                    error = failed(answer)
                    assert error.message == (
                        f"proxy {name}: SSL peer certificate or SSH remote key was not OK"
                    )
                    assert not error.possibly_sent


# ---- the guard


def test_the_proxys_address_is_judged(
    make_client: MakeClient, name_server: NameServer, proxy: Recording, server: httpd.Running
) -> None:
    """The address of the target is not: the proxy connects to it."""
    name_server.answers["proxy.example"] = ["10.0.0.9"]
    table = {
        "a.example": HostSettings(proxy="http://proxy.example:3128"),
        "b.example": HostSettings(proxy="http://169.254.169.254:80"),
        "c.example": HostSettings(proxy="http://127.1:3128"),
    }
    client = make_client(EgressRules(), hosts=HostTable(table), resolver=name_server.resolver())
    for scheme in ("http", "https"):
        for name, message in (
            ("a", "proxy proxy.example: its address is a private address and not allowed: "
             "select net.allow_network('private')"),
            ("b", "proxy 169.254.169.254 is a link-local address and not allowed: "
             "select net.allow_network('169.254.0.0/16')"),
            ("c", "proxy 127.1: 127.0.0.1 is a loopback address and not allowed: "
             "select net.allow_network('127.0.0.0/8')"),
        ):  # fmt: skip
            error = failed(client(f"{scheme}://{name}.example/x"))
            assert (error.message, error.possibly_sent) == (message, False)
    assert {name for name, _ in name_server.asked} == {"proxy.example"}


def test_targets_are_judged_by_name_literal_and_port(
    by_proxy: Callable[..., Client], proxy: Recording
) -> None:
    rules = EgressRules.from_json(
        {
            "allow_networks": ["127.0.0.1/32"],
            "deny_networks": ["8.8.8.0/24"],
            "deny_hosts": ["*.evil.example", "b.example"],
            "ports": "80,443",
        }
    )
    client = by_proxy(rules)
    for host, words in (
        ("10.0.0.1", "10.0.0.1 is a private address"),
        ("0x0a000001", "10.0.0.1 is a private address"),
        ("[::ffff:10.0.0.1]", "10.0.0.1 is a private address"),
        ("[fd00::1]", "fd00::1 is a private address"),
        ("8.8.8.8", "8.8.8.8 is in a denied network"),
        ("x.evil.example", "x.evil.example is a denied host"),
        ("b.example", "b.example is a denied host"),
        ("a.example:22", "a.example: port 22 is not allowed"),
    ):
        for scheme in ("http", "https"):
            error = failed(client(f"{scheme}://{host}/x"))
            assert error.message.startswith(words) or f": {words}" in error.message, error.message
            assert not error.message.startswith("proxy")
    assert proxy.record() == []


def test_a_denied_proxy(by_proxy: Callable[..., Client], proxy: Recording) -> None:
    denied = EgressRules.from_json({"allow_networks": ["127.0.0.0/8"], "deny_hosts": ["127.0.0.1"]})
    error = failed(by_proxy(denied)("http://a.example/x"))
    assert error.message == (
        "proxy 127.0.0.1 is a denied host: select net.forget_host('127.0.0.1')"
    )
    assert proxy.record() == []


def test_listed_hosts_behind_a_proxy(
    by_proxy: Callable[..., Client], server: httpd.Running, proxy: Recording
) -> None:
    rules = EgressRules.from_json(
        {"egress": "listed", "allow_networks": ["127.0.0.0/8"], "allow_hosts": ["a.example"]}
    )
    client = by_proxy(rules)
    ok(client(f"http://a.example:{server.port}/x"))
    error = failed(client(f"http://b.example:{server.port}/x"))
    assert error.message.startswith("b.example is not an allowed host")
    assert len(proxy.record()) == 1


def test_redirects_go_by_proxy_and_guard(
    by_proxy: Callable[..., Client],
    server: httpd.Running,
    secure: httpd.Running,
    proxy: Recording,
) -> None:
    client = by_proxy(EgressRules.from_json({"allow_networks": ["127.0.0.0/8"]}))
    first = f"http://a.example:{server.port}/redirect/302?to="
    headers = [("Authorization", "x")]
    answer = client(f"{first}http://b.example:{server.port}/echo", "GET", headers)
    assert answer.url == f"http://b.example:{server.port}/echo"
    assert "Authorization" not in {name for name, _ in seen(answer)["headers"]}
    answer = client(f"{first}https://b.example:{secure.port}/echo")
    assert ok(answer)
    proxy.reset()
    error = failed(client(f"{first}http://10.0.0.1/"))
    assert "10.0.0.1 is a private address" in error.message
    assert [entry["target"] for entry in proxy.record()] == [f"{first}http://10.0.0.1/"]


def test_a_redirect_to_a_host_with_another_proxy(
    make_client: MakeClient, server: httpd.Running, proxy: Recording, authority: Authority
) -> None:
    with proxyd.running() as other:
        table = {
            "a.example": HostSettings(ca=authority.ca, proxy=proxy.url),
            "b.example": HostSettings(proxy=other.url),
            "127.0.0.1": HostSettings(ca=authority.ca),
        }
        client = make_client(hosts=HostTable(table))
        last = f"http://b.example:{server.port}/redirect/302?to={server.url}/x"
        answer = client(f"http://a.example:{server.port}/redirect/302?to={last}")
        assert (answer.redirects, answer.url) == (2, server.url + "/x")
        assert [len(proxy.record()), len(other.record()), len(server.record())] == [1, 1, 3]


# ---- how one is written


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://proxy.example:3128", Proxy("http", "proxy.example", 3128)),
        ("https://Proxy.Example/", Proxy("https", "proxy.example", 443)),
        ("http://proxy.example", Proxy("http", "proxy.example", 80)),
        ("http://[::1]:8080", Proxy("http", "[::1]", 8080)),
        ("http://me@10.0.0.1:80", Proxy("http", "10.0.0.1", 80, "me")),
        ("http://me:@10.0.0.1:80", Proxy("http", "10.0.0.1", 80, "me", "")),
        ("http://m%65:a:b%3A@h:1", Proxy("http", "h", 1, "me", "a:b:")),
    ],
)
def test_a_proxy_as_text(text: str, expected: Proxy) -> None:
    assert Proxy.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "proxy.example:3128", "socks5://h:1", "http://h:0", "http://h:65536", "http://h/path",
     "http://h:1?x", "http://a@b@h:1", "http://me:SECRET@", "ftp://h", "http://h h:1"],
)  # fmt: skip
def test_no_proxy_as_text(client: Client, make_client: MakeClient, text: str) -> None:
    client = make_client(hosts=HostTable({"*": HostSettings(proxy=text)}))
    for _ in range(2):
        error = failed(client("http://a.example/x"))
        assert error.message == "the proxy of this host is not of the form http://host:port"
        assert "SECRET" not in f"{error.detail} {error!r}"


def test_a_password_is_in_no_repr() -> None:
    assert "SECRET" not in repr(Proxy.parse("http://me:SECRET@h:1"))
