"""For each way to fail: what kind it is, and whether the server may have seen the request.

`possibly_sent` may be false only where no byte of the request can have come to the server. What it
is true for is never sent again by who must not do a thing twice, so it should not be true for all.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gevent
import pytest
import trustme

import proxyd
from pgnet.exchange import Limits
from pgnet.host import HostSettings, HostTable
from pgnet.wire_error import WireError
from wire.frames import (
    END_HEADERS,
    GOAWAY,
    HEADERS,
    INTERNAL_ERROR,
    NO_ERROR,
    REFUSED_STREAM,
    RST_STREAM,
    STATUS_200,
    frame,
)
from wire.support import Client
from wire.witness import Peer, Way, Witness

MakeClient = Callable[..., Client]
LARGE = bytes(1_000_000)


class Authority:
    def __init__(self, directory: Path) -> None:
        made = trustme.CA()
        self.ca = made.cert_pem.bytes().decode()
        self.certificate = directory / "server.pem"
        leaf = made.issue_cert("127.0.0.1", "127.0.0.2", "two.example")
        leaf.private_key_and_cert_chain_pem.write_to_path(str(self.certificate))
        self.strange = directory / "stranger.pem"
        leaf = trustme.CA().issue_cert("127.0.0.1")
        leaf.private_key_and_cert_chain_pem.write_to_path(str(self.strange))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def serve() -> Iterator[Callable[..., Witness]]:
    made: list[Witness] = []

    def make(*arguments: object, **more: object) -> Witness:
        made.append(Witness(*arguments, **more))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.stop()


# ---- how a request gets to its server


@dataclass(frozen=True)
class Route:
    """tls: whether https is spoken with the server; version: of HTTP there; proxy: "", or how the
    proxy is spoken to."""

    tls: bool = False
    version: str = "1.1"
    proxy: str = ""


ROUTES = {
    "http": Route(),
    "https": Route(tls=True),
    "http2": Route(tls=True, version="2"),
    "proxy": Route(proxy="http"),
    "tls-proxy": Route(proxy="https"),
    "tunnel": Route(tls=True, proxy="http"),
    "http2-tunnel": Route(tls=True, version="2", proxy="http"),
    "tls-tunnel": Route(tls=True, proxy="https"),
}


@pytest.fixture(scope="module")
def proxies(authority: Authority) -> Iterator[dict[str, proxyd.Running]]:
    # of the same name as the servers, and so of the same certificate
    with proxyd.running() as plain, proxyd.running("--cert", str(authority.certificate)) as secure:
        yield {"http": plain, "https": secure}


class World:
    """A client whose requests go one way."""

    def __init__(
        self,
        route: Route,
        make_client: MakeClient,
        authority: Authority,
        proxies: dict[str, proxyd.Running],
        serve: Callable[..., Witness],
    ) -> None:
        self.route = route
        self.authority = authority
        self.serve = serve
        self.settings = HostSettings(
            ca=authority.ca,
            http_version=route.version,
            proxy=proxies[route.proxy].url if route.proxy else None,
        )
        self.make_client = make_client

    def client(self, connect_timeout: float = 5.0) -> Client:
        return self.make_client(
            limits=Limits(connect_timeout=connect_timeout),
            hosts=HostTable({"*": self.settings}),
        )

    def witness(self, way: Way, **more: object) -> Witness:
        certificate = self.authority.certificate if self.route.tls else None
        protocols = ("h2", "http/1.1") if self.route.version == "2" else ("http/1.1",)
        return self.serve(way, certificate, protocols, **more)


@pytest.fixture(params=ROUTES)
def world(
    request: pytest.FixtureRequest,
    make_client: MakeClient,
    authority: Authority,
    proxies: dict[str, proxyd.Running],
    serve: Callable[..., Witness],
) -> World:
    return World(ROUTES[request.param], make_client, authority, proxies, serve)


def failed(client: Client, url: str, method: str = "GET", body: bytes | None = None,
           timeout: float = 5.0, **more: object) -> WireError:  # fmt: skip
    answer = client(url, method, [], body, timeout, **more)
    assert answer.error is not None, answer.content
    return answer.error


# ---- once the connection stands

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n"


def part_of_the_head(peer: Peer) -> None:
    peer.request()
    # in HTTP/2: of a frame
    peer.send(ANSWER if peer.version == "1.1" else fine_head(peer)[:-1])


def part_of_the_answer(peer: Peer) -> None:
    peer.request()
    peer.send(ANSWER + b"\r\npart" if peer.version == "1.1" else fine_head(peer))


def fine_head(peer: Peer) -> bytes:
    return frame(HEADERS, STATUS_200, END_HEADERS, peer.stream)


def then(*parts: Way) -> Way:
    """One after another."""

    def way(peer: Peer) -> None:
        for part in parts:
            part(peer)

    return way


def garbage(peer: Peer) -> None:
    peer.request()
    # in HTTP/2: headers of no stream
    no_http = b"\x00\x01\x02 this is no HTTP\r\n\r\n"
    peer.send(no_http if peer.version == "1.1" else frame(HEADERS, STATUS_200, END_HEADERS, 0))
    peer.hang()


def reset_stream(code: int) -> Way:
    def way(peer: Peer) -> None:
        while True:
            peer.request()
            peer.send(frame(RST_STREAM, struct.pack("!I", code), 0, peer.stream))

    return way


def goodbye(code: int, last: int) -> Way:
    """GOAWAY, and the end of the connection; last: what it says to have begun."""

    def way(peer: Peer) -> None:
        peer.request()
        peer.send(frame(GOAWAY, struct.pack("!II", last, code)))
        peer.close()

    return way


BEGINNINGS: dict[str, Way] = {
    "something-came": Peer.unread,
    "first-byte": Peer.first_byte,
    "head": Peer.head,
    "request": Peer.request,
    "part-of-the-head": part_of_the_head,
    "part-of-the-answer": part_of_the_answer,
}
ENDS: dict[str, Way] = {
    "close": Peer.close,
    "goodbye": Peer.say_goodbye,
    "reset": Peer.reset,
    "hang": Peer.hang,
}
WAYS = {
    **{f"{a}-{b}": then(x, y) for a, x in BEGINNINGS.items() for b, y in ENDS.items()},
    **{f"at-once-{name}": end for name, end in ENDS.items() if name != "hang"},
    "garbage": garbage,
}
WAYS_OF_HTTP_2 = {
    "stream-error": reset_stream(INTERNAL_ERROR),
    "stream-refused": reset_stream(REFUSED_STREAM),
    "goodbye-before": goodbye(NO_ERROR, 0),
    "goodbye-after": goodbye(NO_ERROR, 1),
    "goodbye-in-anger": goodbye(INTERNAL_ERROR, 1),
}


@dataclass(frozen=True)
class Case:
    """warm: how many requests are answered before, over a connection that is kept."""

    method: str
    warm: int
    once: bool


def attempt(world: World, name: str, way: Way, case: Case) -> None:
    witness = world.witness(way, fine=case.warm)
    client = world.client()
    for _ in range(case.warm):
        assert client(witness.url).content == b"ok"
    hangs = name.endswith("hang")
    body = LARGE if case.method == "POST" else None
    answer = client(witness.url, case.method, [], body, 0.5 if hangs else 5.0, once=case.once)
    error = answer.error
    if error is None:
        # A proxy that reaches nobody says so, and nobody could tell that from the server's answer.
        assert (world.route.tls, bool(world.route.proxy)) == (False, True)
        assert answer.status_code == 502
        return
    came = witness.bytes_seen(case.warm)
    seen = (name, case, error.kind, error.possibly_sent, error.message, error.detail, came)
    # What came may have come, and what did not come at all did not.
    assert error.possibly_sent or not came, seen
    assert error.possibly_sent or name.startswith("at-once"), seen
    http_2 = world.route.version == "2" and not case.once
    if hangs:
        assert (error.kind, error.timed_out) == ("timeout", True), seen
    elif name == "garbage" and not http_2:
        assert error.kind == "response", seen
    elif error.possibly_sent:
        assert error.kind == "connection", seen
    else:
        assert error.kind in ("connect", "tls"), seen
    arrived = witness.arrived[case.warm :]
    if case.once:
        assert len(arrived) <= 1, seen
        assert {arrival.version for arrival in arrived} <= {"1.1"}, seen
    elif case.method == "POST" and name not in ("stream-refused", "garbage"):
        # libcurl takes an HTTP/2 that is none for streams that were refused
        assert len(arrived) <= 1, seen


def attempts(world: World, name: str, way: Way, cases: list[Case]) -> None:
    running = [gevent.spawn(attempt, world, name, way, case) for case in cases]
    gevent.joinall(running, raise_error=True)


@pytest.mark.parametrize("name", WAYS)
def test_ways_to_fail(world: World, name: str) -> None:
    # What ends at once may take the answer before with it.
    warm = (0,) if name.startswith("at-once") else (0, 1)
    cases = [Case(m, w, o) for m in ("GET", "POST") for w in warm for o in (False, True)]
    attempts(world, name, WAYS[name], cases)


@pytest.mark.parametrize("name", WAYS_OF_HTTP_2)
@pytest.mark.parametrize("route", ["http2", "http2-tunnel"])
def test_ways_to_fail_of_http_2(
    route: str,
    name: str,
    make_client: MakeClient,
    authority: Authority,
    proxies: dict[str, proxyd.Running],
    serve: Callable[..., Witness],
) -> None:
    world = World(ROUTES[route], make_client, authority, proxies, serve)
    cases = [Case(method, warm, False) for method in ("GET", "POST") for warm in (0, 1)]
    attempts(world, name, WAYS_OF_HTTP_2[name], cases)
