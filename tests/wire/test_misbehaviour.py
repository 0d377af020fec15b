"""Each way of servers/misbehaviour.py, one after another and all at once."""

from __future__ import annotations

import fcntl
import json
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

import gevent
import pytest
from gevent.event import AsyncResult

from pgnet.wire.answer import Answer
from pgnet.wire.host import HostSettings, HostTable
from pgnet.wire.limits import Limits
from pgnet.wire.wire_error import WireError
from servers import httpd, misbehaviour
from servers.client import LOOPBACK, Client
from servers.keeper import Keeper
from servers.misbehaviour import Running
from servers.waiting import wait_until
from servers.way import CHUNKED, FINE, POISON, WAYS, Way, several
from servers.way import LIMITS as DEFAULT_LIMITS

LIMITS = Limits(**asdict(DEFAULT_LIMITS))
# Seconds of the deadline, of what it may be late, and what one answer may cost.
DEADLINE, LATENESS, CPU, STANDSTILL = 1.0, 0.25, 0.25, 0.1

QUICK = [name for name, way in WAYS.items() if not way.outcome.may_be_late]
SLOW = [name for name, way in WAYS.items() if way.outcome.may_be_late]


@pytest.fixture(scope="module")
def servers() -> Iterator[Running]:
    with misbehaviour.running() as running:
        yield running


@pytest.fixture
def client(make_client: Callable[..., Client], servers: Running) -> Client:
    hosts = HostTable({"127.0.0.1": HostSettings(ca=servers.ca)})
    return make_client(LOOPBACK, LIMITS, hosts=hosts)


# Which kind an error is of, by how its message begins.
KINDS = {
    "Timeout of": "timeout",
    "Server returned nothing": "connection",
    "Transferred a partial file": "connection",
    "Failed sending data": "connection",
    "Error in the HTTP2": "connection",
    "Stream error in the HTTP/2": "connection",
    "SSL ": "tls",
    "Couldn't connect": "connect",
    "response ": "response",
    "redirect ": "response",
    "Number of redirects": "response",
    "Weird server reply": "response",
    "Unsupported protocol": "response",
    "Unrecognized or bad HTTP": "response",
}


def ask(client: Client, servers: Running, way: Way, timeout: float) -> AsyncResult:
    body = None if way.size < 0 else bytes(way.size)
    return client.begin(servers.url(way), way.method, [], body, timeout)[1]


def assert_fits(way: Way, answer: Answer, busy: bool = False) -> None:
    error = answer.error
    body = answer.content.decode("latin-1")
    late = error is not None and error.timed_out
    message = None if error is None else error.message
    assert way.outcome.fits(answer.status_code, body, message, late, busy=busy), (
        way.name, answer.status_code, body[:100], message, None if error is None else error.detail
    )  # fmt: skip
    if error is not None:
        assert error.kind == kind_of(error), (way.name, message, error.detail)


def kind_of(error: WireError) -> str:
    if error.message.startswith("Failure when receiving"):
        read = any(word in error.detail for word in ("chunk", "response header", "in header"))
        return "response" if read or "without colon" in error.detail else "connection"
    (kind,) = {kind for words, kind in KINDS.items() if error.message.startswith(words)}
    return kind


def assert_fine(client: Client, servers: Running) -> None:
    answer = client(servers.url())
    assert (answer.error, answer.content) == (None, b"ok")


def assert_left(servers: Running, names: list[str]) -> None:
    """The client has closed the connections of these ways, and used them for nothing else."""

    def still_open() -> list[str]:
        seen = servers.seen()
        return [name for name in names for number in seen.of(name) if number in seen.open]

    wait_until(still_open, lambda left: not left, "the connections are closed", 5, 0.02)
    seen = servers.seen()
    assert {name: seen.after(name) for name in names if seen.after(name)} == {}


class Ticker:
    """How long the loop stood still at most, in seconds of this process."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        # Seconds of processor time: other programs may be busy on this machine.
        last = time.process_time()
        while True:
            gevent.sleep(0.002)
            now = time.process_time()
            self.longest = max(self.longest, now - last)
            last = now

    def stop(self) -> float:
        self._greenlet.kill()
        return self.longest


@pytest.mark.parametrize("name", QUICK)
def test_each_way_has_its_outcome(client: Client, servers: Running, name: str) -> None:
    way = WAYS[name]
    # A connection that is kept already is the first to be tried.
    assert_fine(client, servers)
    cpu, ticker = time.process_time(), Ticker()
    ended = ask(client, servers, way, DEADLINE)
    answer = ended.get(timeout=DEADLINE + 5)
    assert_fits(way, answer)
    assert ticker.stop() < STANDSTILL
    assert time.process_time() - cpu < CPU
    assert answer.timings.total < DEADLINE
    assert_fine(client, servers)
    if not way.keeps and way.tls != "2":
        assert_left(servers, [name])


def test_what_takes_too_long_ends_at_its_deadline(client: Client, servers: Running) -> None:
    """All of them side by side, and others beside them."""
    cpu, ticker, began = time.process_time(), Ticker(), time.monotonic()
    ended = {name: ask(client, servers, WAYS[name], DEADLINE) for name in SLOW}
    for _ in range(20):
        assert_fine(client, servers)
    assert time.monotonic() - began < DEADLINE
    for name, result in ended.items():
        answer = result.get(timeout=DEADLINE + 5)
        assert_fits(WAYS[name], answer)
        if answer.error is not None and answer.error.timed_out:
            assert DEADLINE - 0.01 <= answer.timings.total <= DEADLINE + LATENESS
    assert ticker.stop() < STANDSTILL
    assert time.process_time() - cpu < 2 * CPU
    assert_fine(client, servers)
    assert_left(servers, [name for name in SLOW if WAYS[name].tls != "2"])


def test_all_ways_at_once(client: Client, servers: Running, server: httpd.Running) -> None:
    """Several of each, in one loop: none is taken for another, and none delays the good ones."""
    ended = []
    for way in several(3):
        timeout = DEADLINE if way.outcome.may_be_late else 20.0
        ended.append((way, ask(client, servers, way, timeout)))
    good = []
    while not all(result.ready() for _, result in ended):
        began = time.process_time()
        assert client(server.url + "/x").error is None
        good.append(time.process_time() - began)
    for way, result in ended:
        assert_fits(way, result.get(timeout=0), busy=True)
    assert len(good) > 2
    assert max(good) < 1.0
    assert_fine(client, servers)


# ---- connections that are kept


def test_an_answer_that_nobody_asked_for(client: Client, keeper: Callable[..., Keeper]) -> None:
    """An answer that comes while the connection is kept is not the answer of the next request."""
    server = keeper(*[FINE] * 10)
    assert client(server.url).content == b"ok"
    for number in range(3):
        server.connections[number].sendall(POISON)
        # a round of the loop, which sees it
        gevent.sleep(0.001)
        answer = client(server.url)
        assert (answer.error, answer.content) == (None, b"ok")
    assert [number for number, _, _ in server.arrived] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "first",
    [
        FINE,
        CHUNKED + b"\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 43\r\n\r\n",
    ],
    ids=["length", "chunks", "204", "304"],
)
def test_an_answer_with_another_behind_it(
    client: Client, keeper: Callable[..., Keeper], first: bytes
) -> None:
    """In one packet, behind what the answer says is its end."""
    server = keeper(first + POISON, *[FINE] * 5)
    for _ in range(5):
        answer = client(server.url)
        assert answer.error is None
        assert answer.content != b"poison"


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_a_server_that_closes_idle_connections(
    client: Client, keeper: Callable[..., Keeper], method: str
) -> None:
    """Just when the next request is on its way: another connection is the answer, each time."""
    server = keeper(FINE, None)
    for _ in range(40):
        answer = client(server.url, method)
        assert answer.error is None, answer.error
        assert answer.status_code == 200


@pytest.mark.parametrize("body", [b"pay", b"x" * 100_000, None])
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_what_is_not_idempotent_is_sent_once(
    client: Client, keeper: Callable[..., Keeper], method: str, body: bytes | None
) -> None:
    """A client must not repeat it by itself (RFC 9110, section 9.2.2): it may have been done."""
    server = keeper(FINE, None)
    failed = 0
    for number in range(20):
        answer = client(server.url, method, [], body)
        assert len(server.arrived) == number + 1
        if answer.error is not None:
            failed += 1
            assert answer.error.possibly_sent
            assert answer.error.message == "Server returned nothing (no headers, no data)"
    assert failed == 10


def test_short_calls_can_be_a_flood(
    client: Client, servers: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newer libcurls read a little at a time, so that no call takes long."""
    # No call counts as one that took long. Older libcurls make few: each fourth is a sample.
    monkeypatch.setattr("pgnet.wire.curl.multi.LONG_CALL", 100.0)
    monkeypatch.setattr("pgnet.wire.curl.multi.LARGE_ACCOUNT", 101.0)
    monkeypatch.setattr("pgnet.wire.curl.multi.SAMPLED_CALLS", 4)
    way = WAYS["h2-flood-of-unknown-frames"]
    assert_fits(way, ask(client, servers, way, DEADLINE).get(timeout=DEADLINE + 5))


def test_what_waits_in_the_kernel_is_no_flood(
    make_client: Callable[..., Client],
    keeper: Callable[..., Keeper],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An answer beyond the limits comes while we are busy with others: its status is not lost."""
    # Each call of libcurl counts as one that took long.
    monkeypatch.setattr("pgnet.wire.curl.multi.LONG_CALL", 0.0)
    monkeypatch.setattr("pgnet.wire.curl.flood.LARGE_ACCOUNT", 0.0)
    limits = Limits(max_response_bytes=2000, max_wire_bytes=2000, max_header_bytes=2000)
    client = make_client(limits=limits)
    slow, quick = keeper(b""), keeper(FINE)
    _, ended = client.begin(slow.url)
    while not slow.arrived:
        gevent.sleep(0.001)
    (connection,) = slow.connections
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n" + bytes(50_000))
    # All of it is in our kernel, and our loop has had no turn since.
    while int.from_bytes(fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)), sys.byteorder):
        time.sleep(0.001)
    # libcurl begins this one before it reads anything of the other.
    assert client(quick.url).content == b"ok"
    answer = ended.get(timeout=5)
    assert str(answer.error) == "response body exceeds 2000 bytes"
    assert (answer.status_code, answer.is_final) == (200, True)


# ---- what a header section may hold


def test_headers_stay_what_they_are(client: Client, servers: Running) -> None:
    """Odd characters in one field make no other field."""
    for name in ("bare-carriage-return", "latin-1-in-headers", "interim-answers"):
        answer = client(servers.url(WAYS[name]))
        if name == "bare-carriage-return" and answer.error is not None:
            # Newer libcurls refuse it.
            assert answer.error.message == "Weird server reply"
            continue
        assert answer.error is None
        names = [field.lower() for field, _ in answer.header_list]
        assert names.count("content-length") == 1
        assert "content-encoding" not in names
        assert answer.header("content-length") == "2"
        json.dumps(answer.header_list)


def test_there_are_enough() -> None:
    assert len(WAYS) >= 200
    assert len({way.outcome.messages for way in WAYS.values()}) >= 15
