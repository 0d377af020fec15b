#!/usr/bin/python3
"""A strict HTTP/1.1 server: what it was sent, byte for byte, and whatever was not one request.

    python3 tests/servers/strict.py

The server runs in a process of its own (`running()`), reads by h11, and by itself once more: both
must agree. A request that it takes is recorded, and answered with its number in `X-Serial`.
Everything else is a fault: what h11 refuses, and besides a line break or a control character where
none belongs, a folded line, Host not exactly once, Content-Length twice or beside
Transfer-Encoding, white space before a colon, another version, bytes behind a request that nobody
sent for, a request cut off.

The server listens on a port of 127.0.0.1, of ::1 too where there is IPv6, and prints the addresses
and the port. Commands come by the standard input, a line each: `take` hands out what was recorded,
and forgets it; `settle` does so when all connections are closed. The server ends with its input.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import pickle
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import h11

# Larger than any head that a test sends.
MAX_HEAD = 64 << 20
TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
TARGET = re.compile(rb"[\x21-\x7e]+")
# The value of a field: tab, and from the space on all but DEL; beyond ASCII is obs-text.
VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")
# How long `settle` waits for connections to close, in seconds.
PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class Received:
    """One request: the target and the fields as they came, in their order."""

    serial: int
    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Fault(Exception):
    """The bytes that came are not exactly one well-formed request."""


Read = tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes]


def read_strictly(raw: bytes) -> Read:
    """Read all of the bytes as one request: method, target, fields, body.

    Raises Fault.
    """
    head, end, body = raw.partition(b"\r\n\r\n")
    if not end:
        raise Fault("a head without an end")
    line, *fields = head.split(b"\r\n")
    parts = line.split(b" ")
    if len(parts) != 3 or not TOKEN.fullmatch(parts[0]) or not TARGET.fullmatch(parts[1]):
        raise Fault(f"no request line: {line!r}")
    if parts[2] != b"HTTP/1.1":
        raise Fault(f"another version: {line!r}")
    headers = []
    for field in fields:
        name, colon, value = field.partition(b":")
        value = value.strip(b" \t")
        # A folded line begins with white space, which no token does.
        if not colon or not TOKEN.fullmatch(name) or not VALUE.fullmatch(value):
            raise Fault(f"no field: {field!r}")
        headers.append((name, value))
    named = [(name.lower(), value) for name, value in headers]
    hosts = [value for name, value in named if name == b"host"]
    lengths = [value for name, value in named if name == b"content-length"]
    codings = [value for name, value in named if name == b"transfer-encoding"]
    if len(hosts) != 1:
        raise Fault(f"{len(hosts)} fields Host")
    if len(lengths) > 1 or (lengths and codings):
        raise Fault(f"Content-Length {lengths!r} and Transfer-Encoding {codings!r}")
    if lengths and not re.fullmatch(rb"0|[1-9][0-9]*", lengths[0]):
        raise Fault(f"no length: {lengths[0]!r}")
    if not codings and len(body) != int(lengths[0] if lengths else 0):
        raise Fault(f"a body of {len(body)} bytes with Content-Length {lengths!r}")
    return parts[0], parts[1], headers, body


class Ledger:
    """The record of all connections."""

    def __init__(self) -> None:
        self.serial = 0
        self.received: list[tuple[Any, ...]] = []
        self.faults: list[str] = []
        self.open: set[Connection] = set()

    def record(self, read: Read) -> int:
        self.serial += 1
        self.received.append((self.serial, *read))
        return self.serial

    def take(self) -> bytes:
        """Return the record as bytes, and empty it."""
        taken = pickle.dumps((self.received, self.faults))
        self.received, self.faults = [], []
        return taken

    async def settle(self) -> None:
        """Wait until all connections are closed; those that stay are a fault."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while self.open:
                    await asyncio.sleep(0.005)
        if self.open:
            self.faults.append(f"{len(self.open)} connections stay open")


class Connection(asyncio.Protocol):
    """One connection: a request, its answer, and only then the next."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.parser = self.new_parser()
        self.raw = bytearray()
        self.request: h11.Request | None = None
        self.body: list[bytes] = []

    @staticmethod
    def new_parser() -> h11.Connection:
        return h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.ledger.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ledger.open.discard(self)
        if self.raw:
            self.note("cut off")

    def eof_received(self) -> None:
        if self.raw:
            self.fault("cut off")

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self.raw += data
        self.parser.receive_data(data)
        try:
            while not self.transport.is_closing():
                event = self.parser.next_event()
                if isinstance(event, h11.Request):
                    self.request = event
                elif isinstance(event, h11.Data):
                    self.body.append(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    self.complete()
                else:
                    break
        except (h11.RemoteProtocolError, Fault) as error:
            self.fault(str(error))

    def complete(self) -> None:
        """One request is there, as h11 sees it: judge it, and answer."""
        behind = self.parser.trailing_data[0]
        if behind:
            raise Fault(f"{len(behind)} bytes behind the request: {behind[:200]!r}")
        request = cast(h11.Request, self.request)
        read = read_strictly(bytes(self.raw))
        method, target, headers, body = read
        fields = [(name.lower(), value) for name, value in headers]
        if (request.method, request.target, [tuple(h) for h in request.headers]) != (
            method,
            target,
            fields,
        ):
            raise Fault("two readers, two requests")
        if b"".join(self.body) != body and (b"transfer-encoding", b"chunked") not in fields:
            raise Fault("two readers, two bodies")
        self.raw.clear()
        self.body.clear()
        serial = b"%d" % self.ledger.record(read)
        send = self.parser.send
        answer = [
            send(
                h11.Response(
                    status_code=200,
                    headers=[(b"X-Serial", serial), (b"Content-Length", b"%d" % len(serial))],
                )
            )
        ]
        if method != b"HEAD":
            answer.append(send(h11.Data(data=serial)))
        answer.append(send(h11.EndOfMessage()))
        self.transport.write(b"".join(part or b"" for part in answer))
        self.parser.start_next_cycle()

    def note(self, what: str) -> None:
        self.ledger.faults.append(f"{what}; received: {bytes(self.raw[:1000])!r}")
        self.raw.clear()

    def fault(self, what: str) -> None:
        self.note(what)
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        )
        self.transport.close()


async def serve() -> None:
    """Listen until the standard input ends."""
    loop = asyncio.get_running_loop()
    ledger = Ledger()
    port, sockets = listen()
    for listening in sockets:
        await loop.create_server(lambda: Connection(ledger), sock=listening, backlog=1024)
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    print(port, *(listening.getsockname()[0] for listening in sockets), flush=True)
    while command := await commands.readline():
        if command == b"settle\n":
            await ledger.settle()
        taken = ledger.take()
        sys.stdout.buffer.write(struct.pack("!Q", len(taken)) + taken)
        sys.stdout.buffer.flush()


def listen() -> tuple[int, list[socket.socket]]:
    """One port of both loopback addresses."""
    for _ in range(20):
        first = socket.create_server(("127.0.0.1", 0))
        port: int = first.getsockname()[1]
        try:
            second = socket.create_server(("::1", port), family=socket.AF_INET6)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                first.close()
                continue
            return port, [first]
        return port, [first, second]
    raise RuntimeError("no port is free on both addresses")


class Strict:
    """The server in a process of its own.

    port: where it listens; addresses: on which ones.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int, addresses: list[str]) -> None:
        self._process = process
        self.port = port
        self.addresses = addresses

    def take(self) -> tuple[list[Received], list[str]]:
        """Return what came since the last call: requests in their order, and faults."""
        return self._ask(b"take\n")

    def settle(self) -> tuple[list[Received], list[str]]:
        """The same, after all connections are closed; one that stays open is a fault."""
        return self._ask(b"settle\n")

    def _ask(self, command: bytes) -> tuple[list[Received], list[str]]:
        to, back = self._process.stdin, self._process.stdout
        assert to is not None
        assert back is not None
        to.write(command)
        to.flush()
        (size,) = struct.unpack("!Q", back.read(8))
        received, faults = pickle.loads(back.read(size))
        return [Received(*entry) for entry in received], faults


@contextlib.contextmanager
def running() -> Iterator[Strict]:
    """Start the server as a process, and end it afterwards."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig=KILL", sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        try:
            port, *addresses = process.stdout.readline().decode().split()
            yield Strict(process, int(port), addresses)
        finally:
            process.kill()


if __name__ == "__main__":
    asyncio.run(serve())
