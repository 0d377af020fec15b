"""HTTP/2: shared connections, servers that say goodbye, faults of one stream only."""

from __future__ import annotations

import re
import socket
import ssl
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, cycle, repeat
from pathlib import Path
from typing import Any

import gevent
import gevent.pool
import gevent.server
import gevent.socket
import gevent.ssl
import pytest
import trustme
from gevent.event import AsyncResult

from pgnet.wire.answer import Answer
from pgnet.wire.host import HostSettings, HostTable
from pgnet.wire.limits import Limits
from servers import httpd, proxyd
from servers.client import Client
from servers.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    INTERNAL_ERROR,
    NO_ERROR,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    STATUS_200,
    WINDOW_UPDATE,
    field,
    fine,
    frame,
)
from servers.nginx import Nginx
from servers.waiting import wait_until
from servers.way import OLD_LIBCURL

MakeClient = Callable[..., Client]


class Authority:
    def __init__(self, directory: Path) -> None:
        made = trustme.CA()
        self.ca = made.cert_pem.bytes().decode()
        self.certificate = directory / "server.pem"
        leaf = made.issue_cert("127.0.0.1", "localhost", "127.0.0.2")
        leaf.private_key_and_cert_chain_pem.write_to_path(str(self.certificate))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def nginx(authority: Authority) -> Iterator[Nginx]:
    with Nginx(certificate=authority.certificate) as running:
        running.file("large", b"x" * 3_000_000)
        running.file("more", b"x" * 30_000_000)
        yield running


@pytest.fixture
def trusting(make_client: MakeClient, authority: Authority) -> Callable[..., Client]:
    def make(limits: Limits | None = None, **settings: Any) -> Client:
        special = HostSettings(ca=authority.ca, **settings)
        return make_client(limits=limits, hosts=HostTable({"*": special}))

    return make


@pytest.fixture
def client(trusting: Callable[..., Client]) -> Client:
    return trusting()


def ok(answer: Answer) -> bytes:
    assert answer.error is None, answer.error
    return answer.content


def all_of(ended: list[AsyncResult]) -> list[Answer]:
    return [result.get(timeout=20) for result in ended]


def connections(answers: list[Answer]) -> set[bytes]:
    """The numbers of the connections that /connection told of."""
    told = [ok(answer).split() for answer in answers]
    assert {protocol for protocol, _ in told} == {b"HTTP/2.0"}
    return {number for _, number in told}


# ---- a request and its answer


def test_http_2_where_it_is_offered(client: Client, nginx: Nginx) -> None:
    answer = client(nginx.tls_url + "/json")
    assert (answer.status_code, answer.http_version) == (200, "2")
    names = [name for name, _ in answer.header_list]
    assert "content-type" in names
    assert names == [name.lower() for name in names]
    assert not any(name.startswith(":") for name in names)
    assert answer.header("Content-Type") == "application/json"
    assert answer.response is not None
    assert (answer.response.json(), answer.response.reason) == ({"ok": True}, "")
    assert answer.timings.tls > 0
    # without TLS nobody offers it
    assert client(nginx.url + "/json").http_version == "1.1"


def test_the_version_may_be_set(trusting: Callable[..., Client], nginx: Nginx) -> None:
    for version, protocol in (("1.1", b"HTTP/1.1"), ("2", b"HTTP/2.0"), (None, b"HTTP/2.0")):
        client = trusting(http_version=version)
        answer = client(nginx.tls_url + "/connection")
        assert ok(answer).split()[0] == protocol
        assert answer.http_version == protocol.decode()[5:].removesuffix(".0")


def test_what_is_sent_is_what_was_asked(client: Client, nginx: Nginx) -> None:
    headers = [("X-Text", "grün"), ("Accept", "x/y"), ("User-Agent", "me")]
    answer = client(nginx.tls_url + "/sent", "GET", headers)
    host = nginx.tls_url.partition("://")[2]
    assert ok(answer).decode() == f"GET|{host}|grün|x/y|me||"
    for target in ("/uri?a=b&c=%20d", "/uri?", "/uri?a=/../b", "/uri?%2f%7E%2F"):
        assert ok(client(nginx.tls_url + target)).decode() == target


def test_another_name_is_asked_for(trusting: Callable[..., Client], nginx: Nginx) -> None:
    answer = trusting(host_header="localhost")(nginx.tls_url + "/sent")
    assert ok(answer).decode().split("|")[:2] == ["GET", "localhost"]
    assert (answer.http_version, answer.address) == ("2", "127.0.0.1")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_methods(client: Client, nginx: Nginx, method: str) -> None:
    for _ in range(2):
        answer = client(nginx.tls_url + "/method", method)
        assert (answer.error, answer.http_version) == (None, "2")
        assert answer.content.decode() == ("" if method == "HEAD" else method)


@pytest.mark.parametrize("size", [0, 1, 100_000, 5_000_000])
def test_uploads(trusting: Callable[..., Client], nginx: Nginx, size: int) -> None:
    client = trusting(http_version="2")
    body = (bytes(range(256)) * (size // 256 + 1))[:size]
    for method in ("POST", "PUT"):
        answer = client(nginx.tls_url + "/body", method, [], body, timeout=20)
        assert answer.http_version == "2"
        assert ok(answer) == body


@pytest.mark.parametrize("size", [1, 100_000, 5_000_000])
def test_an_answer_that_does_not_wait_for_the_body(
    trusting: Callable[..., Client], nginx: Nginx, size: int
) -> None:
    """The answer comes whole, and then the server resets the stream (RFC 9113, section 8.1)."""
    client = trusting(http_version="2")
    for _ in range(3):
        answer = client(nginx.tls_url + "/uri", "POST", [], b"x" * size)
        assert (ok(answer), answer.status_code) == (b"/uri", 200)


def test_answers_that_do_not_wait_for_long_bodies(client: Client, nginx: Nginx) -> None:
    """libcurl 7.88 loses them over HTTP/2, or goes on until the deadline."""
    body = b"x" * 100_000
    ended = [client.begin(nginx.tls_url + "/", "POST", [], body)[1] for _ in range(100)]
    for answer in all_of(ended):
        assert (ok(answer), answer.status_code) == (b"pgnet", 200)
        assert answer.http_version == ("1.1" if OLD_LIBCURL else "2")


def test_a_redirect_stays_on_its_connection(client: Client, nginx: Nginx) -> None:
    nginx.forget()
    answer = client(nginx.tls_url + "/redirect")
    assert (ok(answer), answer.redirects, answer.http_version) == (b"pgnet", 1, "2")


# ---- many on one connection


def test_requests_share_a_connection(client: Client, nginx: Nginx) -> None:
    """From the first moment on, when nobody knows yet what the server speaks."""
    for _ in range(2):
        ended = [client.begin(nginx.tls_url + "/connection")[1] for _ in range(50)]
        answers = all_of(ended)
        assert len(connections(answers)) == 1
        assert sum(answer.timings.tls > 0 for answer in answers) <= 1


def test_more_than_one_connection_takes(
    trusting: Callable[..., Client], authority: Authority
) -> None:
    with Nginx(certificate=authority.certificate, streams=4) as nginx:
        client = trusting()
        ok(client(nginx.tls_url + "/"))
        ended = [client.begin(nginx.tls_url + "/slow?s=0.2")[1] for _ in range(20)]
        assert {ok(answer) for answer in all_of(ended)} == {b"slow"}


@pytest.mark.parametrize("path", ["/", "/through/"])
@pytest.mark.parametrize(
    ("requests", "streams", "total", "http_version"),
    [
        (1, 128, 200, None),
        (3, 1, 200, None),
        (7, 128, 200, None),
        (100, 128, 600, None),
        (1000, 128, 2200, None),
        (1000, 4, 300, None),
        (7, 128, 200, "2"),
        (100, 128, 600, "2"),
        (1000, 4, 300, "2"),
    ],
)
def test_a_server_that_says_goodbye(
    trusting: Callable[..., Client],
    authority: Authority,
    requests: int,
    streams: int,
    total: int,
    http_version: str | None,
    path: str,
) -> None:
    """GOAWAY after each few requests, or a stream refused where there are too many of them.

    A request that the server has not taken goes over another connection, whatever its method, and
    none is lost. Each gets its own answer, also where requests with a body go over HTTP/1.1 beside
    the others.
    """
    with Nginx(certificate=authority.certificate, requests=requests, streams=streams) as nginx:
        client = trusting(http_version=http_version)
        for methods in (["POST"], ["GET"], ["POST", "GET", "PATCH"]):
            nginx.forget()

            def ask(number: int, methods: list[str] = methods) -> Answer:
                method = methods[number % len(methods)]
                body = None if method == "GET" else b"x" * 3000
                uri = f"asked?{number}"
                answer = client(f"{nginx.tls_url}{path}{uri}", method, [], body, timeout=30)
                assert answer.error is not None or answer.content == f"/{uri}".encode()
                return answer

            answers = gevent.pool.Pool(150).map(ask, range(total))
            # Where bodies are to go over HTTP/2 with libcurl 7.88, it may lose an answer of what
            # nginx has processed, and with it those of one connection: nginx answers before it has
            # the body. On a busy machine that was up to 71 of 600, alone up to 3 of 200.
            # With newer libcurls bodies go over HTTP/2 by default. nginx may reset a connection
            # after its GOAWAY, and the kernel discards the answers that were not read yet: up to 9
            # of 200 in one run of about ten. The record shows that these were processed.
            loses = OLD_LIBCURL and http_version == "2" and methods != ["GET"]
            most = total / 4 if loses else 0 if OLD_LIBCURL else total / 20
            failed = [a.error for a in answers if a.error is not None]
            assert all(error.possibly_sent for error in failed)
            assert len(failed) <= most, Counter(map(str, failed))
            served = wait_until(
                lambda: Counter(
                    s.uri for s in nginx.requests() if s.uri.startswith(f"{path}asked?")
                ),
                lambda uris: len(uris) == total,
                "the record",
                20,
                sleep=gevent.sleep,
            )
            if "GET" not in methods:
                assert set(served.values()) == {1}


def test_servers_without_http_2_are_not_waited_for(client: Client, authority: Authority) -> None:
    more = ("--cert", str(authority.certificate), "--key", str(authority.certificate))
    with httpd.running("127.0.0.1", 0, *more) as server:
        for _ in range(2):
            ended = [client.begin(server.url + "/delay/0.3")[1] for _ in range(20)]
            began = time.monotonic()
            for answer in all_of(ended):
                assert (ok(answer), answer.http_version) == (b"ok", "1.1")
            assert time.monotonic() - began < 2
        assert len({entry["connection"] for entry in server.record()}) > 10


def forward(source: Any, target: Any) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return


@contextmanager
def one_address(ports: Iterator[int]) -> Iterator[str]:
    """The URL of a balancer: each connection to it goes on to the next of these ports."""

    def balance(connection: Any, _: Any) -> None:
        with gevent.socket.socket() as behind:
            behind.connect(("127.0.0.1", next(ports)))
            there = gevent.spawn(forward, connection, behind)
            forward(behind, connection)
            there.join()

    server = gevent.server.StreamServer(("127.0.0.1", 0), balance)
    server.start()
    yield f"https://127.0.0.1:{server.server_port}/"
    server.stop()


@pytest.mark.parametrize("requests", [3, 1000])
def test_servers_of_both_versions_behind_one_address(
    client: Client, authority: Authority, requests: int
) -> None:
    """A balancer, or a server that is set up anew: nobody gets another one's answer."""
    more = ("--cert", str(authority.certificate), "--key", str(authority.certificate))
    with (
        Nginx(certificate=authority.certificate, requests=requests) as new,
        httpd.running("127.0.0.1", 0, *more) as old,
    ):
        ports = cycle((int(new.tls_url.rpartition(":")[2]), old.port))
        seen: Counter[str] = Counter()

        def ask(number: int, url: str) -> None:
            method, body = ("GET", None) if number % 3 else ("POST", b"x" * 3000)
            answer = client(f"{url}echo?{number}", method, [], body, timeout=30)
            ok(answer)
            seen[answer.http_version] += 1
            if answer.http_version == "1.1":
                assert re.search(rf"/echo[?]{number}\b", answer.content.decode())

        with one_address(ports) as url:
            gevent.pool.Pool(100).map(lambda number: ask(number, url), range(400))
            gevent.pool.Pool(100).map(lambda number: ask(number, url), range(400, 800))
        # Where a connection ends soon, there are others.
        assert "2" in seen
        assert requests > 3 or "1.1" in seen


@pytest.mark.parametrize("count", [1, 5])
def test_a_late_answer_is_nobody_elses(client: Client, authority: Authority, count: int) -> None:
    """A request whose time is over, on a connection of HTTP/1.1 that others were given as well.

    Its late answer must not be taken for that of the next one.
    """
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.certificate)
    late: Counter[str] = Counter()

    def answer_in_order(connection: Any, _: Any) -> None:
        received = b""
        while data := connection.recv(65536):
            received += data
            while b"\r\n\r\n" in received:
                head, _, received = received.partition(b"\r\n\r\n")
                path = head.split()[1]
                if b"late" in path:
                    late["requests"] += 1
                    gevent.sleep(1)
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(path), path)
                )

    old = gevent.server.StreamServer(("127.0.0.1", 0), answer_in_order, ssl_context=context)
    old.start()
    with Nginx(certificate=authority.certificate) as new:
        ports = chain(
            [old.server_port, int(new.tls_url.rpartition(":")[2])], repeat(old.server_port)
        )
        with one_address(ports) as url:
            first = client.begin(url + "late", timeout=0.5)[1]
            wait_until(lambda: late["requests"], bool, "the first request", sleep=gevent.sleep)
            # libcurl knows of the host now that requests may share a connection, and takes the
            # first one for them.
            assert client(url + "uri").http_version == "2"
            others = [client.begin(f"{url}{number}", timeout=20)[1] for number in range(count)]
            assert first.get().error.timed_out
            assert [ok(other.get()) for other in others] == [b"/%d" % n for n in range(count)]
    old.stop()


# ---- what goes wrong with one goes wrong with this one only


def beside(client: Client, nginx: Nginx, work: Callable[[], None]) -> None:
    """Do something while others are on their way on the same connection, and see them end well."""
    (number,) = connections([client(nginx.tls_url + "/connection")])
    others = [client.begin(nginx.tls_url + "/slow?s=0.4")[1] for _ in range(5)]
    others.append(client.begin(nginx.tls_url + "/files/large", timeout=20)[1])
    work()
    *slow, large = all_of(others)
    assert {ok(answer) for answer in slow} == {b"slow"}
    assert len(ok(large)) == 3_000_000
    assert connections([client(nginx.tls_url + "/connection")]) == {number}


def test_a_cancelled_stream(client: Client, nginx: Nginx) -> None:
    def work() -> None:
        for path in ("/slow?s=10", "/files/more"):
            handle, ended = client.begin(nginx.tls_url + path)
            gevent.sleep(0.01)
            handle.cancel()
            assert ended.get(timeout=5).error is not None

    beside(client, nginx, work)


def test_a_deadline(client: Client, nginx: Nginx) -> None:
    def work() -> None:
        answer = client(nginx.tls_url + "/slow?s=10", timeout=0.2)
        assert answer.error is not None
        assert answer.error.message.startswith("Timeout of 200 ms reached. ")
        assert (answer.error.timed_out, answer.error.possibly_sent) == (True, True)

    beside(client, nginx, work)


@pytest.mark.parametrize(
    ("limits", "path", "message"),
    [
        (Limits(max_response_bytes=3_000_000), "/files/more",
         "response body exceeds 3000000 bytes"),
        (Limits(max_wire_bytes=3_000_000), "/files/more",
         "response body exceeds 3000000 bytes on the wire"),
    ],
)  # fmt: skip
def test_limits(
    trusting: Callable[..., Client], nginx: Nginx, limits: Limits, path: str, message: str
) -> None:
    client = trusting(limits)

    def work() -> None:
        for _ in range(3):
            answer = client(nginx.tls_url + path)
            assert answer.error is not None
            assert (answer.error.message, answer.error.possibly_sent) == (message, True)

    beside(client, nginx, work)


def test_too_many_headers(trusting: Callable[..., Client], nginx: Nginx) -> None:
    """Too many headers end the connection: libcurl would give the rest to another request."""
    client = trusting(Limits(max_header_bytes=2000))
    (number,) = connections([client(nginx.tls_url + "/connection")])
    beside = client.begin(nginx.tls_url + "/slow?s=0.3")[1]
    answer = client(nginx.tls_url + "/long-headers")
    assert answer.error is not None
    assert answer.error.message == "response headers exceed 2000 bytes"
    # whose answer had not begun goes over another one
    assert ok(beside.get(timeout=5)) == b"slow"
    assert connections([client(nginx.tls_url + "/connection")]) != {number}


# ---- servers of ours, frame by frame (RFC 9113)

Serve = Callable[[Any, int, int], None]


class Server:
    """A server of HTTP/2 in this process.

    serve: called with the connection, its number, and the number of each new stream.
    finish: the same when all of a request has come.
    hold: how many connections are left hanging before the handshake.
    """

    def __init__(
        self, authority: Authority, serve: Serve, finish: Serve | None = None, hold: int = 0
    ) -> None:
        self.serve = serve
        self.finish = finish or (lambda *_: None)
        self.hold = hold
        self.count = 0
        # Connection and stream of each request.
        self.arrived: list[tuple[int, int]] = []
        self.context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(authority.certificate)
        self.context.set_alpn_protocols(["h2"])
        self.server = gevent.server.StreamServer(("127.0.0.1", 0), self.connection)
        self.server.start()
        self.url = f"https://127.0.0.1:{self.server.server_port}/"

    def connection(self, plain: Any, _: Any) -> None:
        self.count += 1
        number = self.count
        try:
            if number <= self.hold:
                # until the client has given up
                while plain.recv(4096):
                    pass
                return
            with self.context.wrap_socket(plain, server_side=True) as connection:
                window = struct.pack("!I", 2**30)
                settings = frame(SETTINGS, b"\0\4" + window)
                connection.sendall(settings + frame(WINDOW_UPDATE, window))
                with connection.makefile("rb") as reader:
                    # the client's preface, and then its frames
                    reader.read(24)
                    while header := reader.read(9):
                        reader.read(int.from_bytes(header[:3], "big"))
                        kind, flags, stream = struct.unpack("!BBI", header[3:])
                        if kind == HEADERS:
                            self.arrived.append((number, stream))
                            self.serve(connection, number, stream)
                        if kind in (HEADERS, DATA) and flags & END_STREAM:
                            self.finish(connection, number, stream)
        except OSError:
            return


@pytest.fixture
def serving(authority: Authority) -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def make(serve: Serve, **more: Any) -> Server:
        made.append(Server(authority, serve, **more))
        return made[-1]

    yield make
    for each in made:
        each.server.stop()


def test_interim_answers(client: Client, serving: Callable[..., Server]) -> None:
    early = b"\x08\x03103" + field(b"link", b"</x>") + field(b"content-encoding", b"gzip")

    def serve(connection: Any, _: int, stream: int) -> None:
        connection.sendall(frame(HEADERS, early, END_HEADERS, stream) * 3 + fine(stream))

    answer = client(serving(serve).url)
    assert (ok(answer), answer.status_code, answer.header_list) == (b"ok", 200, [])


def test_trailers(client: Client, serving: Callable[..., Server]) -> None:
    def serve(connection: Any, _: int, stream: int) -> None:
        connection.sendall(
            frame(HEADERS, STATUS_200 + field(b"a", b"1"), END_HEADERS, stream)
            + frame(DATA, b"ok", 0, stream)
            + frame(HEADERS, field(b"b", b"2"), END_HEADERS | END_STREAM, stream)
        )

    answer = client(serving(serve).url)
    assert (ok(answer), answer.header_list) == (b"ok", [("a", "1"), ("b", "2")])


@pytest.mark.parametrize("before", [b"", frame(HEADERS, STATUS_200, END_HEADERS, 1)])
def test_a_stream_that_is_reset(
    client: Client, serving: Callable[..., Server], before: bytes
) -> None:
    """The request ends with an error, and the connection goes on."""

    def serve(connection: Any, _: int, stream: int) -> None:
        if stream == 1:
            reset = frame(RST_STREAM, struct.pack("!I", INTERNAL_ERROR), 0, stream)
            connection.sendall(before + reset)
        else:
            connection.sendall(fine(stream))

    server = serving(serve)
    error = client(server.url).error
    assert error is not None
    assert error.message == "Stream error in the HTTP/2 framing layer"
    assert (error.possibly_sent, error.timed_out) == (True, False)
    assert ok(client(server.url)) == b"ok"
    assert server.arrived == [(1, 1), (1, 3)]


def reset(stream: int, code: int) -> bytes:
    return frame(RST_STREAM, struct.pack("!I", code), 0, stream)


def goodbye(last: int, code: int = NO_ERROR) -> bytes:
    return frame(GOAWAY, struct.pack("!II", last, code))


def hang_up(connection: Any, last: bytes = b"") -> None:
    """End it without a word of TLS'."""
    connection.sendall(last)
    connection.shutdown(socket.SHUT_WR)


REFUSED: dict[str, Serve] = {
    "reset": lambda connection, _, stream: connection.sendall(reset(stream, REFUSED_STREAM)),
    "goodbye": lambda connection, _, stream: connection.sendall(goodbye(max(stream - 2, 0))),
    "goodbye for a reason": lambda connection, _, stream: connection.sendall(
        goodbye(max(stream - 2, 0), INTERNAL_ERROR)
    ),
    "goodbye and end": lambda connection, _, stream: hang_up(
        connection, goodbye(max(stream - 2, 0))
    ),
}


@pytest.mark.parametrize(("method", "body"), [("GET", 0), ("POST", 0), ("PATCH", 1_000_000)])
@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("way", REFUSED)
def test_what_is_refused_is_sent_again(
    trusting: Callable[..., Client],
    serving: Callable[..., Server],
    method: str,
    before: int,
    body: int,
    way: str,
) -> None:
    """The server has not processed it (RFC 9113, 6.8 and 8.7): here that comes twice in a row.

    before: so many requests were answered on the connection.
    """
    client = trusting(http_version="2")
    refused: set[tuple[int, int]] = set()

    def serve(connection: Any, number: int, stream: int) -> None:
        if before < len(server.arrived) <= before + 2:
            refused.add((number, stream))
            REFUSED[way](connection, number, stream)

    def finish(connection: Any, number: int, stream: int) -> None:
        if (number, stream) not in refused:
            connection.sendall(fine(stream))

    server = serving(serve, finish=finish)
    for _ in range(before):
        assert ok(client(server.url)) == b"ok"
    content = None if method == "GET" else b"x" * body
    assert ok(client(server.url, method, [], content)) == b"ok"
    assert len(server.arrived) == before + 3


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("way", REFUSED)
def test_what_is_refused_through_a_tunnel(
    trusting: Callable[..., Client], serving: Callable[..., Server], method: str, way: str
) -> None:
    """The request goes through another tunnel, whose opening is no answer of the server."""

    def serve(connection: Any, number: int, stream: int) -> None:
        if len(server.arrived) == 1:
            REFUSED[way](connection, number, stream)
        else:
            # the first byte is the status 404
            answer = b"\x8d" + field(b"a", b"1")
            connection.sendall(frame(HEADERS, answer, END_HEADERS | END_STREAM, stream))

    with proxyd.running() as proxy:
        client = trusting(http_version="2", proxy=proxy.url)
        server = serving(serve)
        answer = client(server.url, method)
        assert ok(answer) == b""
        assert (answer.status_code, answer.header_list) == (404, [("a", "1")])
        assert len(server.arrived) == 2


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("way", [
    lambda connection, stream: hang_up(connection),
    lambda connection, stream: connection.sendall(reset(stream, INTERNAL_ERROR)),
    lambda connection, stream: hang_up(connection, reset(stream, INTERNAL_ERROR)),
    lambda connection, stream: hang_up(connection, goodbye(stream)),
    lambda connection, stream: hang_up(connection, goodbye(2**31 - 1)),
    # against the rules: a window of nothing, an answer of a stream that nobody has opened, settings
    # of one byte, headers that nobody can read, an answer that begins with its body
    lambda connection, stream: connection.sendall(frame(WINDOW_UPDATE, bytes(4))),
    lambda connection, stream: connection.sendall(fine(stream + 1)),
    lambda connection, stream: connection.sendall(frame(SETTINGS, b"x")),
    lambda connection, stream: connection.sendall(frame(HEADERS, b"\xff" * 5, END_HEADERS, stream)),
    lambda connection, stream: connection.sendall(frame(DATA, b"ok", END_STREAM, stream)),
])  # fmt: skip
def test_what_may_have_been_done_is_not_sent_again(
    trusting: Callable[..., Client],
    serving: Callable[..., Server],
    before: int,
    way: Callable[[Any, int], None],
) -> None:
    """However the connection ends, on which others may wait as well."""
    client = trusting(http_version="2")

    def serve(connection: Any, number: int, stream: int) -> None:
        if len(server.arrived) <= before:
            connection.sendall(fine(stream))
        elif len(server.arrived) == before + 3:
            way(connection, stream)

    server = serving(serve)
    for _ in range(before):
        assert ok(client(server.url)) == b"ok"
    ended = [client.begin(server.url, "POST", [], b"pay", timeout=0.5)[1] for _ in range(3)]
    for answer in all_of(ended):
        assert answer.error is not None
        assert answer.error.possibly_sent
    assert len(server.arrived) == before + 3


def test_a_server_that_refuses_everything(
    trusting: Callable[..., Client], serving: Callable[..., Server]
) -> None:
    client = trusting(http_version="2")
    server = serving(
        lambda connection, _, stream: connection.sendall(reset(stream, REFUSED_STREAM))
    )
    for _ in range(2):
        server.arrived.clear()
        error = client(server.url, "POST", [], b"x").error
        assert error is not None
        assert (error.kind, error.possibly_sent, error.timed_out) == ("connect", False, False)
        assert len(server.arrived) == 21


def test_a_goodbye_in_the_middle(client: Client, serving: Callable[..., Server]) -> None:
    """Requests that were begun are finished; later ones go over another connection."""

    def serve(connection: Any, number: int, stream: int) -> None:
        goodbye = frame(GOAWAY, struct.pack("!II", stream, NO_ERROR)) if number == 1 else b""
        connection.sendall(goodbye + fine(stream))

    server = serving(serve)
    for _ in range(3):
        assert ok(client(server.url)) == b"ok"
    assert [number for number, _ in server.arrived] == [1, 2, 2]


def test_a_hung_connection_holds_up_nobody_for_long(
    client: Client, serving: Callable[..., Server]
) -> None:
    server = serving(lambda connection, _, stream: connection.sendall(fine(stream)), hold=1)
    began = time.monotonic()
    first = client.begin(server.url, timeout=3.0)[1]
    others = [client.begin(server.url, timeout=3.0)[1] for _ in range(10)]
    for answer in all_of(others):
        assert ok(answer) == b"ok"
        assert 0.9 < answer.timings.first_byte <= answer.timings.total < 2.0
    assert time.monotonic() - began < 2.5
    error = first.get(timeout=5).error
    assert error.timed_out
    # a request that begins now finds a connection
    assert client(server.url).timings.total < 0.5


def test_deadlines_hold_while_a_connection_is_waited_for(
    client: Client, serving: Callable[..., Server]
) -> None:
    server = serving(lambda *_: None, hold=1000)
    deadlines = [2.0, 0.3, 0.5, 0.4, 1.2]
    ended = [client.begin(server.url, timeout=seconds)[1] for seconds in deadlines]
    for seconds, answer in zip(deadlines, all_of(ended), strict=True):
        assert answer.error is not None
        assert answer.error.message.startswith(f"Timeout of {seconds * 1000:.0f} ms reached. ")
        assert (answer.error.timed_out, answer.error.possibly_sent) == (True, False)
        assert seconds - 0.01 < answer.timings.total < seconds + 0.3


def test_a_cancelled_wait(client: Client, serving: Callable[..., Server]) -> None:
    server = serving(lambda *_: None, hold=1000)
    begun = [client.begin(server.url, timeout=5.0) for _ in range(5)]
    gevent.sleep(0.05)
    for handle, _ in begun:
        handle.cancel()
    for answer in all_of([ended for _, ended in begun]):
        assert answer.error is not None
        assert answer.error.message == "Request was cancelled"
