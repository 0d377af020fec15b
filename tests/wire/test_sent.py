"""For each way to fail: what kind it is, and whether the server may have seen the request.

`possibly_sent` may be false only where no byte of the request can have come to the server. Callers
that must not do a thing twice never send again where it is true, so it should not always be true.
"""

from __future__ import annotations

import itertools
import socket
import ssl
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
import gevent.ssl
import pycurl
import pytest
import trustme

from pgnet.wire.host import HostSettings, HostTable
from pgnet.wire.limits import Limits
from pgnet.wire.wire_error import WireError
from servers import httpd, proxyd, tlsd
from servers.client import Authority, Client, NameServer
from servers.frames import (
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
from servers.process import Recording
from servers.witness import FINE, Peer, Way, Witness

MakeClient = Callable[..., Client]
METHODS = ("GET", "POST")
LARGE = bytes(1_000_000)
# Seconds in which a handshake is sure to be over, and in which all is.
HANGS, PATIENT = 3.0, 30.0


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
def proxies(authority: Authority) -> Iterator[dict[str, Recording]]:
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
        proxies: dict[str, Recording],
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
    proxies: dict[str, Recording],
    serve: Callable[..., Witness],
) -> World:
    return World(ROUTES[request.param], make_client, authority, proxies, serve)


def together(work: Callable[..., None], several: Iterable[tuple[Any, ...]]) -> None:
    """All of them at once; the first failure is raised."""
    running = [gevent.spawn(work, *arguments) for arguments in several]
    try:
        gevent.joinall(running, raise_error=True)
    finally:
        gevent.killall(running)


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


# Servers of HTTP/2 that say of each request that they do not process it.
REFUSING = ("stream-refused", "goodbye-before")


def attempt(world: World, name: str, way: Way, case: Case) -> None:
    witness = world.witness(way, fine=case.warm)
    client = world.client()
    for _ in range(case.warm):
        assert client(witness.url).content == b"ok"
    hangs = name.endswith("hang")
    body = LARGE if case.method == "POST" else None
    answer = client(
        witness.url, case.method, [], body, HANGS if hangs else PATIENT, at_most_once=case.once
    )
    error = answer.error
    if error is None:
        # A proxy that reaches nobody says so, and nobody could tell that from the server's answer.
        assert (world.route.tls, bool(world.route.proxy)) == (False, True)
        assert answer.status_code == 502
        return
    came = witness.bytes_seen(case.warm)
    seen = (name, case, error.kind, error.possibly_sent, error.message, error.detail, came)
    # Where bytes of the request came, the error says that it was possibly sent.
    unprocessed = name in REFUSING and case.method == "POST"
    assert error.possibly_sent or unprocessed or not came, seen
    assert error.possibly_sent or unprocessed or name.startswith("at-once"), seen
    http_2 = world.route.version == "2" and not case.once
    if hangs:
        assert (error.kind, error.timed_out) == ("timeout", True), seen
    elif name == "garbage" and not http_2:
        assert error.kind == "response", seen
    elif error.possibly_sent:
        # The second attempt of what may be repeated may not come further than to a handshake.
        repeated = case.warm and case.method == "GET" and not case.once
        assert error.kind in ("connection", "tls" if repeated else "connection"), seen
    else:
        assert error.kind in ("connect", "tls"), seen
    arrived = witness.arrived[case.warm :]
    if case.once:
        assert len(arrived) <= 1, seen
        assert {arrival.version for arrival in arrived} <= {"1.1"}, seen
    elif unprocessed:
        # The request is sent again and again, and was never processed.
        assert (len(arrived), error.possibly_sent) == (21, False), seen
    elif case.method == "POST":
        # The first stream is the last that is processed: what came as the second is sent again.
        most = 2 if name in ("goodbye-after", "goodbye-in-anger") and case.warm else 1
        assert len(arrived) <= most, seen


def attempts(world: World, ways: dict[str, Way], cases: list[Case]) -> None:
    """All of them at once."""
    together(attempt, [(world, name, way, case) for name, way in ways.items() for case in cases])


def cases(*warm: int) -> list[Case]:
    return [Case(*each) for each in itertools.product(METHODS, warm, (False, True))]


@pytest.mark.parametrize("name", [name for name in WAYS if not name.endswith("hang")])
def test_ways_to_fail(world: World, name: str) -> None:
    # A connection that ends at once may take the answer before with it.
    attempts(world, {name: WAYS[name]}, cases(0) if name.startswith("at-once") else cases(0, 1))


def test_ways_to_hang(world: World) -> None:
    attempts(world, {n: way for n, way in WAYS.items() if n.endswith("hang")}, cases(0, 1))


@pytest.mark.parametrize("name", WAYS_OF_HTTP_2)
@pytest.mark.parametrize("route", ["http2", "http2-tunnel"])
def test_ways_to_fail_of_http_2(
    route: str,
    name: str,
    make_client: MakeClient,
    authority: Authority,
    proxies: dict[str, Recording],
    serve: Callable[..., Witness],
) -> None:
    world = World(ROUTES[route], make_client, authority, proxies, serve)
    several = [case for case in cases(0, 1) if not case.once]
    attempts(world, {name: WAYS_OF_HTTP_2[name]}, several)


def test_a_kept_connection_that_ends_and_then_nobody(world: World) -> None:
    """The first attempt may have been seen, whatever becomes of the second."""
    witness = world.witness(then(Peer.request, Peer.leave, Peer.reset), fine=1)
    client = world.client()
    assert client(witness.url).content == b"ok"
    answer = client(witness.url)
    error = answer.error
    if error is None:
        assert (world.route.tls, answer.status_code) == (False, 502)
        return
    assert len(witness.arrived) == 2
    # libcurl 8.23 keeps no connection to a proxy that is spoken to over TLS: the first is the last.
    kept = world.route.proxy != "https" or world.route.tls or pycurl.version_info()[2] < 0x081700
    kind = "connect" if kept else "connection"
    assert (error.kind, error.possibly_sent) == (kind, True), error


# ---- before the connection stands


def refused() -> int:
    """A port of this host where nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_nobody_there(make_client: MakeClient, scheme: str, once: bool) -> None:
    # the broadcast address has no connections, and so it is unreachable at once
    for address in (f"127.0.0.1:{refused()}", "127.255.255.255:80"):
        error = failed(make_client(), f"{scheme}://{address}/", at_most_once=once)
        assert error.message == "Couldn't connect to server"
        assert (error.kind, error.possibly_sent, error.timed_out) == ("connect", False, False)


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_connection_in_time(
    make_client: MakeClient, full_backlog: str, scheme: str, once: bool
) -> None:
    url = full_backlog.replace("http", scheme)
    client = make_client(limits=Limits(connect_timeout=0.2))
    error = failed(client, url, at_most_once=once)
    assert (error.kind, error.possibly_sent, error.timed_out) == ("connect", False, True)
    # the deadline of the whole request, while it is still connecting
    error = failed(make_client(), url, timeout=0.2, at_most_once=once)
    assert (error.kind, error.possibly_sent, error.timed_out) == ("timeout", False, True)


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("by_proxy", [False, True])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_name(
    make_client: MakeClient, name_server: NameServer, scheme: str, by_proxy: bool, once: bool
) -> None:
    name_server.answers["silent.example"] = None
    for name, timeout, kind in (("none", 5.0, "name"), ("silent", 0.3, "timeout")):
        resolver = name_server.resolver()
        url = f"{name}.example:81"
        settings = HostSettings(proxy=f"http://{url}" if by_proxy else None)
        client = make_client(hosts=HostTable({"*": settings}), resolver=resolver)
        url = f"{scheme}://127.0.0.1/" if by_proxy else f"{scheme}://{url}/"
        error = failed(client, url, timeout=timeout, at_most_once=once)
        assert (error.kind, error.possibly_sent) == (kind, False), error
        assert error.timed_out == (kind == "timeout")


def read_hello(peer: Peer) -> bytes:
    """A record of TLS: its length is in the last two of five bytes."""
    header = peer.take(5)
    return header + peer.take(int.from_bytes(header[3:], "big"))


def half_a_handshake(peer: Peer) -> None:
    """The first bytes of a server's handshake, without their end."""
    assert peer.witness.context is not None
    coming, going = gevent.ssl.MemoryBIO(), gevent.ssl.MemoryBIO()
    both = peer.witness.context.wrap_bio(coming, going, server_side=True)
    coming.write(read_hello(peer))
    with pytest.raises(ssl.SSLWantReadError):
        both.do_handshake()
    peer.send(going.read()[:-100])


def saying(data: bytes) -> Way:
    def way(peer: Peer) -> None:
        read_hello(peer)
        peer.send(data)

    return way


HELLOS: dict[str, Way] = {
    "at-once": lambda peer: None,
    "hello": saying(b""),
    "half": half_a_handshake,
    "garbage": saying(b"no TLS at all" * 10),
    # an alert: the handshake failed
    "alert": saying(b"\x15\x03\x03\x00\x02\x02\x28"),
    "http": saying(FINE),
}
OVER_TLS = pytest.mark.parametrize(
    "world", [name for name, route in ROUTES.items() if route.tls], indirect=True
)


@OVER_TLS
def test_no_handshake(world: World) -> None:
    def attempt(hello: str, end: str, method: str, warm: int, once: bool) -> None:
        witness = world.witness(Peer.hang, handshake=then(HELLOS[hello], ENDS[end]), fine=warm)
        body = LARGE if method == "POST" else None
        client = world.client(connect_timeout=HANGS)
        if warm:
            # a connection that stands is of no use to what has one of its own
            assert client(witness.url, timeout=PATIENT).content == b"ok"
        error = failed(client, witness.url, method, body, PATIENT, at_most_once=once)
        seen = (hello, end, method, warm, once, error.kind, error.message, error.detail)
        assert not error.possibly_sent, seen
        if error.timed_out:
            assert (error.kind, end) == ("connect", "hang"), seen
        else:
            # A proxy may not have reached a server that is gone at once.
            refused = hello == "at-once" and "refused the tunnel" in error.message
            assert error.kind == ("connect" if refused else "tls"), seen

    for end in ENDS:
        several = itertools.product(HELLOS, [end], METHODS, ((0, False), (0, True), (1, True)))
        together(attempt, [(*which, *how) for *which, how in several])


@OVER_TLS
@pytest.mark.parametrize("once", [False, True])
def test_a_server_that_is_not_trusted(
    world: World, authority: Authority, serve: Callable[..., Witness], once: bool
) -> None:
    for certificate, host in (
        (authority.strange, "127.0.0.1"),
        (authority.certificate, "127.0.0.3"),
    ):
        witness = serve(Peer.hang, certificate, address=(host, 0))
        error = failed(world.client(), witness.url, "POST", LARGE, at_most_once=once)
        assert error.message.endswith("SSL peer certificate or SSH remote key was not OK")
        assert (error.kind, error.possibly_sent) == ("tls", False)
        assert witness.arrived == []


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("highest", ["TLSv1_2", "TLSv1_3"])
def test_a_client_that_is_not_trusted(
    make_client: MakeClient, authority: Authority, tmp_path: Path, highest: str, once: bool
) -> None:
    """In TLS 1.3 the server says so when the request may be there already."""
    strangers = tmp_path / "clients.pem"
    trustme.CA().cert_pem.write_to_path(str(strangers))
    more = ("--client-ca", str(strangers), "--highest", highest)
    with tlsd.running(authority.certificate, *more) as url:
        client = make_client(hosts=HostTable({"*": HostSettings(ca=authority.ca)}))
        error = failed(client, url + "/", at_most_once=once)
    assert error.kind == "tls"
    assert error.possibly_sent == (highest == "TLSv1_3")


# ---- proxies


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("proxy", ["http", "https"])
def test_proxies_that_fail(
    make_client: MakeClient,
    authority: Authority,
    proxies: dict[str, Recording],
    proxy: str,
    once: bool,
) -> None:
    settings = HostSettings(ca=authority.ca, proxy=proxies[proxy].url)
    limits = Limits(connect_timeout=1.0)
    client = make_client(limits=limits, hosts=HostTable({"*": settings}))
    for way, kind, kind_in_clear in (
        ("status-407", "connect", None),
        ("status-502", "connect", None),
        ("close", "connect", "connection"),
        ("reset", "connect", "connection"),
        ("garbage", "connect", "response"),
        ("flood", "response", "response"),
        ("hang", "connect", "timeout"),
    ):
        error = failed(client, f"https://{way}.example/", "POST", LARGE, at_most_once=once)
        assert (error.kind, error.possibly_sent) == (kind, False), (way, error)
        timeout = 1.0 if way == "hang" else PATIENT
        # not POST: a proxy that has answered closes its connection, perhaps just now
        answer = client(f"http://{way}.example/", "PUT", [], b"x", timeout, at_most_once=once)
        if kind_in_clear is None:
            # its answer is the answer
            assert (answer.error, answer.status_code) == (None, int(way[-3:]))
        else:
            assert answer.error is not None
            assert (answer.error.kind, answer.error.possibly_sent) == (kind_in_clear, True), way


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_connection_to_the_proxy(
    make_client: MakeClient,
    authority: Authority,
    full_backlog: str,
    serve: Callable[..., Witness],
    scheme: str,
    once: bool,
) -> None:
    strange = serve(Peer.hang, authority.strange)
    broken = serve(Peer.hang, authority.certificate, handshake=then(HELLOS["hello"], Peer.close))
    for proxy, kind in (
        (f"http://127.0.0.1:{refused()}", "connect"),
        (f"https://127.0.0.1:{refused()}", "connect"),
        ("http://127.255.255.255:80", "connect"),
        (full_backlog, "connect"),
        (strange.url, "tls"),
        (broken.url, "tls"),
    ):
        settings = HostSettings(ca=authority.ca, proxy=proxy)
        limits = Limits(connect_timeout=1.0)
        client = make_client(limits=limits, hosts=HostTable({"*": settings}))
        error = failed(client, f"{scheme}://a.example/", "POST", LARGE, at_most_once=once)
        assert (error.kind, error.possibly_sent) == (kind, False), (proxy, error)
    assert strange.arrived == broken.arrived == []


# ---- what is refused here, and answers that cannot be used


def test_what_is_refused_here(client: Client, server: httpd.Running) -> None:
    server.reset()
    for url, method, headers in (
        ("http://10.0.0.1/", "GET", []),
        ("http://user@127.0.0.1/", "GET", []),
        ("ftp://127.0.0.1/", "GET", []),
        ("http://127.0.0.1:99999/", "GET", []),
        (server.url, "CONNECT", []),
        (server.url, "B A D", []),
        (server.url, "GET", [("Host", "x")]),
        (server.url, "GET", [("X", "a\nb")]),
    ):
        for once in (False, True):
            error = client(url, method, headers, at_most_once=once).error
            assert error is not None
            assert (error.kind, error.possibly_sent) == ("request", False), (url, error)
    assert server.record() == []


def test_redirects_that_fail(make_client: MakeClient, server: httpd.Running) -> None:
    """A redirect shows that a server has seen the request."""
    client = make_client(limits=Limits(connect_timeout=0.3))
    for to, kind in (
        ("http://10.0.0.1/", "request"),
        ("ftp://127.0.0.1/", "response"),
        ("http://user@127.0.0.1/", "response"),
        (f"http://127.0.0.1:{refused()}/", "connect"),
        (f"https://127.0.0.1:{server.port}/", "tls"),
        (f"{server.url}/hang", "timeout"),
        (f"{server.url}/loop", "response"),
        (f"{server.url}/short/9", "connection"),
    ):
        for once in (False, True):
            timeout = 1.0 if kind == "timeout" else PATIENT
            error = failed(
                client, f"{server.url}/hop/302?to={to}", timeout=timeout, at_most_once=once
            )
            assert (error.kind, error.possibly_sent) == (kind, True), (to, error)


def test_limits(make_client: MakeClient, server: httpd.Running) -> None:
    limits = Limits(max_response_bytes=1000, max_wire_bytes=1000, max_header_bytes=1000)
    client = make_client(limits=limits)
    for way in ("long/2000", "chunked/2000", "headers/3", "bomb/2000000", "coding/x", "bad-gzip"):
        error = failed(client, f"{server.url}/{way}")
        assert (error.kind, error.possibly_sent) == ("response", True), (way, error)


@pytest.mark.parametrize("once", [False, True])
def test_cancelled(client: Client, server: httpd.Running, once: bool) -> None:
    handle, ended = client.begin(server.url + "/hang", at_most_once=once)
    gevent.sleep(0.01)
    handle.cancel()
    error = ended.get(timeout=5).error
    assert (error.kind, error.possibly_sent) == ("request", True)
