"""TLS by a bundle of authorities, the adapter for requests, and a loop that has nothing to do."""

from __future__ import annotations

import datetime
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.pool
import pycurl
import pytest
import requests
import trustme

from pgnet.wire.connection import Tls, ca_bundle
from pgnet.wire.guard import EgressRefused, Guard
from pgnet.wire.requests_adapter import CurlAdapter
from servers import httpd
from servers.client import LOOPBACK, Client
from servers.waiting import wait_until

PAST = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


class TlsServers:
    """Servers with a certificate each, made when they are asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = trustme.CA()
        self.stranger = trustme.CA()
        self.ca = directory / "ca.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))

    def certificate(self, kind: str) -> tuple[str, ...]:
        if kind == "good":
            made = self.authority.issue_cert("localhost", "127.0.0.1")
        elif kind == "unknown":
            made = self.stranger.issue_cert("localhost", "127.0.0.1")
        elif kind == "wrong-name":
            made = self.authority.issue_cert("elsewhere.example")
        else:
            made = self.authority.issue_cert("localhost", "127.0.0.1", not_after=PAST)
        path = self.directory / f"{kind}.pem"
        made.private_key_and_cert_chain_pem.write_to_path(str(path))
        return "--cert", str(path), "--key", str(path)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsServers:
    return TlsServers(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def good(tls: TlsServers) -> Iterator[httpd.Running]:
    with httpd.running("127.0.0.1", 0, *tls.certificate("good")) as running:
        yield running


@pytest.fixture
def session() -> Iterator[requests.Session]:
    adapter = CurlAdapter(Guard(LOOPBACK))
    made = requests.Session()
    made.trust_env = False
    made.mount("http://", adapter)
    made.mount("https://", adapter)
    yield made
    made.close()
    gevent.sleep(0)


# ---- TLS


def test_a_good_certificate(
    session: requests.Session, good: httpd.Running, tls: TlsServers
) -> None:
    for host in ("127.0.0.1", "localhost"):
        answer = session.get(f"https://{host}:{good.port}/echo", verify=str(tls.ca), timeout=5)
        assert answer.json()["method"] == "GET"


@pytest.mark.parametrize("kind", ["unknown", "wrong-name", "expired"])
def test_a_bad_certificate_and_the_next_request(
    session: requests.Session, good: httpd.Running, tls: TlsServers, kind: str
) -> None:
    unverified: dict[str, Any] = {"verify": False}
    with httpd.running("127.0.0.1", 0, *tls.certificate(kind)) as running:
        for _ in range(2):
            with pytest.raises(requests.exceptions.SSLError) as caught:
                session.get(running.url + "/x", verify=str(tls.ca), timeout=5)
            assert str(caught.value) == "SSL peer certificate or SSH remote key was not OK"
            assert session.get(good.url + "/x", verify=str(tls.ca), timeout=5).text == "ok"
            assert session.get(running.url + "/x", **unverified, timeout=5).text == "ok"
        # The one that was let in unverified is not asked on the same connection now.
        with pytest.raises(requests.exceptions.SSLError):
            session.get(running.url + "/x", verify=str(tls.ca), timeout=5)
        assert [entry["target"] for entry in running.record()] == ["/x", "/x"]


def test_the_default_authorities_do_not_know_ours(
    make_client: Callable[..., Client], session: requests.Session, good: httpd.Running
) -> None:
    answer = make_client()(good.url + "/x")
    assert answer.error is not None
    assert answer.error.message == "SSL peer certificate or SSH remote key was not OK"
    assert not answer.error.possibly_sent
    with pytest.raises(requests.exceptions.SSLError):
        session.get(good.url + "/x", timeout=5)


def test_a_missing_bundle(session: requests.Session, good: httpd.Running, tmp_path: Path) -> None:
    with pytest.raises(requests.exceptions.SSLError, match="CA cert"):
        session.get(good.url + "/x", verify=str(tmp_path / "none.pem"), timeout=5)


def test_a_directory_of_authorities_is_no_bundle(
    session: requests.Session, good: httpd.Running, tmp_path: Path
) -> None:
    with pytest.raises(requests.exceptions.SSLError):
        session.get(good.url + "/x", verify=str(tmp_path), timeout=5)


def test_plain_http_at_a_tls_port_and_the_other_way(
    session: requests.Session, good: httpd.Running, server: httpd.Running, tls: TlsServers
) -> None:
    with pytest.raises(requests.exceptions.ConnectionError):
        session.get(f"http://127.0.0.1:{good.port}/x", timeout=5)
    with pytest.raises(requests.exceptions.ConnectionError, match="SSL connect error"):
        session.get(f"https://127.0.0.1:{server.port}/x", verify=str(tls.ca), timeout=5)


def test_the_bundle_is_named() -> None:
    assert Path(ca_bundle()).is_file()
    assert Tls() == Tls(verify=True, ca=None)


def test_https_does_not_go_back_to_http(
    session: requests.Session,
    make_client: Callable[..., Client],
    good: httpd.Running,
    server: httpd.Running,
    tls: TlsServers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pgnet.wire.connection._CA_BUNDLES", (str(tls.ca),))
    client = make_client()
    server.reset()
    answer = client(f"{good.url}/redirect/302?to={server.url}/x")
    assert answer.error is not None
    assert answer.error.message == "redirect from https to http is not followed"
    assert answer.timings.tls > 0
    assert server.record() == []
    answer = client(f"{server.url}/redirect/302?to={good.url}/x")
    assert (answer.error, answer.redirects) == (None, 1)


# ---- the adapter of requests


def test_a_session_works_as_usual(session: requests.Session, server: httpd.Running) -> None:
    answer = session.post(
        server.url + "/echo?x=1", params={"y": "ü"}, json={"a": 1}, headers={"X-A": "b"}, timeout=5
    )
    seen = answer.json()
    assert (seen["method"], seen["target"]) == ("POST", "/echo?x=1&y=%C3%BC")
    assert seen["body"] == '{"a": 1}'
    names = [name for name, _ in seen["headers"]]
    assert names.count("Content-Length") == 1
    assert ["X-A", "b"] in seen["headers"]
    assert session.get(server.url + "/gzip", timeout=5).content == b"decoded"
    assert session.get(server.url + "/hops/3", timeout=5).history[0].status_code == 302
    assert session.head(server.url + "/long/10", timeout=5).headers["Content-Length"] == "10"
    with pytest.raises(requests.HTTPError):
        session.get(server.url + "/status/500", timeout=5).raise_for_status()


def test_bodies_that_are_files(
    session: requests.Session, server: httpd.Running, tmp_path: Path
) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"from a file")
    with path.open("rb") as file:
        answer = session.put(server.url + "/echo", data=file, timeout=5)
    assert answer.json()["body"] == "from a file"
    answer = session.put(server.url + "/echo", data=iter([b"in ", b"parts"]), timeout=5)
    assert answer.json()["body"] == "in parts"


def test_errors_are_those_of_requests(session: requests.Session, server: httpd.Running) -> None:
    errors = requests.exceptions
    with pytest.raises(errors.ReadTimeout, match=r"Timeout of 200 ms reached\."):
        session.get(server.url + "/hang", timeout=0.2)
    with pytest.raises(errors.ConnectionError, match="Server returned nothing"):
        session.get(server.url + "/empty", timeout=5)
    with pytest.raises(errors.ConnectionError, match="Couldn't connect to server"):
        session.get("http://127.0.0.1:1/", timeout=5)
    with pytest.raises(EgressRefused, match="private address"):
        session.get("http://10.0.0.1/", timeout=5)
    with pytest.raises(errors.InvalidURL):
        session.get("http://user@127.0.0.1/", timeout=5)
    with pytest.raises(errors.ConnectionError, match=r"proxy 127\.0\.0\.1: Couldn't connect"):
        session.get(server.url, proxies={"http": "http://127.0.0.1:9"}, timeout=5)
    with pytest.raises(errors.SSLError, match="local SSL certificate"):
        session.get(server.url, cert="/nowhere", timeout=5)


def test_greenlets_wait_beside_each_other(session: requests.Session, server: httpd.Running) -> None:
    pool = gevent.pool.Pool(50)
    urls = [f"{server.url}/body/{n}" for n in range(200)]
    slow = gevent.spawn(session.get, server.url + "/hang", timeout=1)
    texts = [a.text for a in pool.map(lambda url: session.get(url, timeout=5), urls)]
    assert texts == [str(n) for n in range(200)]
    with pytest.raises(requests.exceptions.ReadTimeout):
        slow.get(timeout=5)


def test_a_killed_greenlet_lets_go(session: requests.Session, server: httpd.Running) -> None:
    waiting = gevent.spawn(session.get, server.url + "/hang", timeout=60)
    wait_until(
        lambda: [entry["target"] for entry in server.record()],
        lambda seen: "/hang" in seen,
        "the request arrives",
        sleep=gevent.sleep,
    )
    waiting.kill()
    assert session.get(server.url + "/x", timeout=5).text == "ok"


# ---- the loop


def test_the_server_of_ours_runs_by_itself() -> None:
    command = [sys.executable, "-m", "servers.httpd", "--port", "0"]
    tests = Path(__file__).parents[1]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tests) as process:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 10)[0]
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.kill()


def test_an_idle_loop_does_nothing(
    client: Client, server: httpd.Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept connections, whose other ends close, cost no round of the loop."""
    for way in ("/x", "/hang"):
        client(server.url + way, timeout=0.2)
    turns: list[int] = []
    multi = client.exchange._transport._multi
    act = multi._socket_action

    def counted(fd: int, mask: int) -> None:
        turns.append(fd)
        act(fd, mask)

    monkeypatch.setattr(multi, "_socket_action", counted)
    gevent.sleep(0.5)
    assert turns == []


def test_a_kept_connection_that_can_be_written_to_is_kept(
    client: Client, server: httpd.Running
) -> None:
    """Newer libcurls may have waited for nothing else when an answer comes at once."""
    server.reset()
    multi = client.exchange._transport._multi
    for _ in range(10):
        assert client(server.url + "/x", "POST", [], b"x").error is None
        (number,) = multi._sockets._inodes
        multi._sockets.on_socket(pycurl.POLL_OUT, number, None, None)
        multi._sockets.on_socket(pycurl.POLL_REMOVE, number, None, None)
        # a round of the loop, in which the socket can be written to
        gevent.sleep(0.001)
    assert len({entry["connection"] for entry in server.record()}) == 1


@pytest.mark.parametrize("kind", ["socket", "file"])
def test_a_number_that_is_another_file_by_now_is_left_alone(
    client: Client, server: httpd.Running, tmp_path: Path, kind: str
) -> None:
    """libcurl closes kept connections without a word; in a backend the number may be a client's."""
    assert client(server.url + "/echo").error is None
    sockets = client.exchange._transport._multi._sockets
    (number,) = sockets._inodes
    ours, theirs = socket.socketpair()
    with ours, theirs, (tmp_path / "file").open("wb") as file:
        os.dup2(ours.fileno() if kind == "socket" else file.fileno(), number)
        before = len(os.listdir("/proc/self/fd"))
        sockets.drop_unwanted(number)
        assert len(os.listdir("/proc/self/fd")) == before
        ours.send(b"still there")
        assert theirs.recv(100) == b"still there"
