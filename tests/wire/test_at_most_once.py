"""A request that may go out only once does so, whatever the server does with connections."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pycurl
import pytest

from pgnet.wire.curl.repeats import RepeatWatch
from pgnet.wire.guard import EgressRules, Guard
from pgnet.wire.host import HostSettings, HostTable
from pgnet.wire.limits import Limits
from servers import httpd
from servers.client import Authority, Client, NameServer
from servers.keeper import Keeper
from servers.waiting import wait_until
from servers.way import FINE
from servers.witness import Peer, Way, Witness

METHODS = ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "POST", "PATCH"]
LARGE = bytes(1_000_000)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def trusting(make_client: Callable[..., Client], authority: Authority) -> Callable[..., Client]:
    def make(limits: Limits | None = None, **more: Any) -> Client:
        hosts = HostTable({"*": HostSettings(ca=authority.ca)})
        return make_client(limits=limits, hosts=hosts, **more)

    return make


@pytest.mark.parametrize("method", METHODS)
def test_each_has_a_connection_of_its_own(
    client: Client, server: httpd.Running, method: str
) -> None:
    server.reset()
    for number in range(6):
        assert client(server.url + "/x", method, at_most_once=number % 2 == 0).error is None
    record = [entry["connection"] for entry in server.record()]
    # nor does anybody else use it afterwards
    assert len(set(record)) == 4
    assert len({record[1], record[3], record[5]}) == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_connection_that_ends_without_an_answer_is_the_end(
    client: Client, keeper: Callable[..., Keeper], method: str
) -> None:
    server = keeper(None)
    for number in range(10):
        answer = client(server.url, method, at_most_once=True)
        assert len(server.arrived) == number + 1
        assert answer.error is not None
        assert answer.error.message == "Server returned nothing (no headers, no data)"
        assert (answer.error.kind, answer.error.possibly_sent) == ("connection", True)


@pytest.mark.parametrize("method", METHODS)
def test_no_kept_connection_is_used(
    client: Client, keeper: Callable[..., Keeper], method: str
) -> None:
    """Requests that may be repeated keep their connections; the others get new ones."""
    server = keeper(FINE, None)
    for _ in range(10):
        assert client(server.url).error is None
        assert client(server.url, method, at_most_once=True).error is None
    assert [m for _, m, _ in server.arrived].count(method) >= 10


# ---- what servers do to have a request again


class Counter:
    """A server that answers each request with the same bytes, and keeps or closes its connections.

    seen: the request lines that came, in order.
    """

    def __init__(self, answer: bytes, keep: bool = True, certificate: Path | None = None) -> None:
        self.answer = answer
        self.witness = Witness(self.serve, certificate, ("http/1.1",))
        self.keep = keep
        self.url = self.witness.url

    def serve(self, peer: Peer) -> None:
        while True:
            peer.request()
            peer.send(self.answer)
            if not self.keep:
                peer.close()
                return


ANSWERS = {
    "401": b"HTTP/1.1 401 Who?\r\nWWW-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n",
    "407": b"HTTP/1.1 407 Who?\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n",
    "408": b"HTTP/1.1 408 Too Late\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    "417": b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n",
    "421": b"HTTP/1.1 421 Misdirected\r\nContent-Length: 0\r\n\r\n",
    "425": b"HTTP/1.1 425 Too Early\r\nContent-Length: 0\r\n\r\n",
    "426": b"HTTP/1.1 426 Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n",
    "503": b"HTTP/1.1 503 Later\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n",
    "101": b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    "100": b"HTTP/1.1 100 Continue\r\n\r\n",
    "nothing": b"",
    "half": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
    "short": b"HTTP/1.1 200",
    "garbage": b"\x16\x03\x01\x00\x01\x00",
}


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("name", ANSWERS)
def test_no_answer_makes_it_go_out_again(
    trusting: Callable[..., Client], authority: Authority, name: str, tls: bool
) -> None:
    for method in ("GET", "POST"):
        certificate = authority.certificate if tls else None
        server = Counter(ANSWERS[name], keep=False, certificate=certificate)
        body = LARGE if method == "POST" else None
        client = trusting()
        for number in range(3):
            client(server.url, method, [], body, at_most_once=True)
            assert len(server.witness.arrived) == number + 1
        server.witness.stop()


def test_each_hop_has_it_once(client: Client, server: httpd.Running, other: httpd.Running) -> None:
    """Over a connection of its own each time, though both hops are of one server."""
    for running in (server, other):
        running.reset()
    to = f"{server.url}/hop/307?to=/x"
    assert client(to, "POST", [], b"pay", at_most_once=True).status_code == 200
    record = server.record()
    assert [entry["body"] for entry in record] == ["pay", "pay"]
    assert len({entry["connection"] for entry in record}) == 2
    assert client(f"{server.url}/hop/302?to={other.url}/empty", at_most_once=True).error is not None
    assert len(other.record()) == 1


# ---- several addresses


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_another_address_only_where_nothing_was_sent(
    trusting: Callable[..., Client],
    name_server: NameServer,
    authority: Authority,
    method: str,
    scheme: str,
) -> None:
    """The last way is that nobody listens at the first one."""
    certificate = authority.certificate if scheme == "https" else None
    name_server.answers["two.example"] = ["127.0.0.1", "127.0.0.2"]
    body = LARGE if method == "POST" else None
    for way in (
        Peer.reset,
        Peer.close,
        Peer.unread,
        Peer.first_byte,
        Peer.head,
        Peer.request,
        None,
    ):
        # each needs a name that was not looked up yet, and whose addresses have no order yet
        client = trusting(resolver=name_server.resolver())
        first = Witness(way or Peer.hang, certificate)
        address = ("127.0.0.2", first.port)
        second = Witness(fine, certificate, address=address)
        url = f"{scheme}://two.example:{first.port}/"
        if way is None:
            first.stop()
        answer = client(url, method, [], body, at_most_once=True)
        if way is None:
            assert (answer.error, answer.address) == (None, "127.0.0.2")
            assert len(second.arrived) == 1
        else:
            assert answer.error is not None
            assert second.connections == 0
            assert len(first.arrived) <= 1
            first.stop()
        second.stop()


def fine(peer: Peer) -> None:
    peer.request()
    peer.answer()
    peer.hang()


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_another_address_where_nobody_answers_the_door(
    trusting: Callable[..., Client],
    name_server: NameServer,
    authority: Authority,
    full_backlog: str,
    method: str,
) -> None:
    port = int(full_backlog.rpartition(":")[2].strip("/"))
    name_server.answers["two.example"] = ["127.0.0.1", "127.0.0.2"]
    for certificate in (None, authority.certificate):
        client = trusting(Limits(connect_timeout=0.3), resolver=name_server.resolver())
        second = Witness(fine, certificate, address=("127.0.0.2", port))
        scheme = "http" if certificate is None else "https"
        answer = client(f"{scheme}://two.example:{port}/", method, at_most_once=True)
        assert (answer.error, answer.address) == (None, "127.0.0.2")
        assert len(second.arrived) == 1
        second.stop()


# ---- beside others


def test_others_keep_sharing_their_connection(
    trusting: Callable[..., Client], authority: Authority
) -> None:
    """Requests that go out once use HTTP/1.1; others go on by HTTP/2, over one connection."""

    def serve(peer: Peer) -> None:
        while True:
            peer.request()
            peer.answer()

    witness = Witness(serve, authority.certificate, ("h2", "http/1.1"))
    client = trusting()
    for _ in range(3):
        ended = []
        for number in range(40):
            method = "POST" if number % 4 < 2 else "GET"
            more = {"at_most_once": number % 2 == 0, "timeout": 30.0}
            ended.append(client.begin(witness.url, method, [], None, **more)[1])
        answers = [result.get(timeout=30) for result in ended]
        assert [answer.error for answer in answers] == [None] * 40
        assert [answer.http_version for answer in answers] == ["1.1", "2"] * 20
    shared = {arrival.connection for arrival in witness.arrived if arrival.version == "2"}
    alone = [arrival.connection for arrival in witness.arrived if arrival.version == "1.1"]
    assert len(shared) == 1
    assert len(alone) == len(set(alone)) == 60
    witness.stop()


@pytest.mark.parametrize("way", [Peer.request, Peer.reset, Peer.head, Peer.hang])
def test_many_at_once_each_go_out_once(client: Client, way: Way) -> None:
    """A hundred beside each other, whose connections all end."""
    witness = Witness(way)
    timeout = 1.0 if way is Peer.hang else 30.0
    ended = [
        client.begin(f"{witness.url}{n}", "DELETE", timeout=timeout, at_most_once=True)[1]
        for n in range(100)
    ]
    for result in ended:
        assert result.get(timeout=60).error is not None
    assert len(witness.arrived) <= 100
    assert witness.connections == 100
    witness.stop()


def test_rules_that_change_meanwhile(client: Client, server: httpd.Running) -> None:
    """Requests on their way end as they would have, and leave nothing behind."""
    ended = [client.begin(server.url + "/delay/0.3", at_most_once=True)[1] for _ in range(5)]
    gevent.sleep(0.05)
    client.exchange.configure(Guard(EgressRules()))
    assert [result.get(timeout=10).status_code for result in ended] == [200] * 5
    answer = client(server.url + "/x", at_most_once=True)
    assert answer.error is not None
    assert answer.error.kind == "request"
    wait_until(server.open_connections, lambda n: n == 0, "all are closed", 5, sleep=gevent.sleep)


# ---- what is not idempotent, over connections that are kept


@pytest.mark.parametrize("way", ["reset", "empty"])
@pytest.mark.parametrize("body", [None, b"pay", LARGE])
def test_an_end_that_comes_while_the_request_is_sent(
    client: Client,
    server: httpd.Running,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    body: bytes | None,
) -> None:
    """libcurl sees it in the same call, and has other connections at hand to repeat it over."""
    listen = RepeatWatch._on_message

    def slowly(watch: RepeatWatch, kind: int, text: bytes) -> None:
        listen(watch, kind, text)
        if kind == pycurl.INFOTYPE_HEADER_OUT:
            # the request is out, and nothing of the answer is read
            time.sleep(0.1)

    monkeypatch.setattr(RepeatWatch, "_on_message", slowly)
    ended = [client.begin(server.url + "/delay/0.2")[1] for _ in range(3)]
    assert [result.get(timeout=10).status_code for result in ended] == [200] * 3
    server.reset()
    for number in range(3):
        error = client(f"{server.url}/{way}", "POST", [], body).error
        assert error is not None
        assert (error.kind, error.possibly_sent) == ("connection", True)
        assert len(server.record()) == number + 1
