"""A way to misbehave: its name, what the server does, and what must come of it."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import pycurl

from servers.frames import HEADERS, STATUS_200, frame

OLD_LIBCURL = pycurl.version_info()[2] < 0x080000
# More bytes than any limit here allows.
FLOOD = 256 << 20
MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """The limits of the client; the ways are made for no more than 8 MiB, half of it on the wire.

    Little, since what is allowed is kept, and recorded like any other body.
    """

    max_response_bytes: int = 40_000
    max_wire_bytes: int = 30_000
    max_header_bytes: int = 20_000


LIMITS = Limits()


@dataclass(frozen=True)
class Outcome:
    """The outcome that a request must have: a status, an error, or both, and a body.

    status: None where no status came: then there is no body either.
    text: a pattern for the whole of the body; where there is no status, of the error.
    error: a pattern for the whole of the error message beside a status; None where all is well. A
    limit stands in it by its name, as <max_wire_bytes>.
    timed_out: the deadline ended it.
    other: what else may come of it, by some libcurls.
    """

    status: int | None
    text: str
    timed_out: bool = False
    error: str | None = None
    other: Outcome | None = None

    def fits(
        self,
        status: int | None,
        body: str | None,
        error: str | None,
        late: bool,
        limits: Limits = LIMITS,
        busy: bool = False,
    ) -> bool:
        """Whether an answer has this outcome.

        busy: so much goes on that a deadline or a reset may come before the first byte is read.
        """
        if self.other is not None and self.other.fits(status, body, error, late, limits, busy):
            return True
        if busy and status is None and late == self.timed_out and self.error is not None:
            return _matches(self.error, error, limits)
        if status != self.status or late != self.timed_out:
            return False
        if status is None:
            return _matches(self.text, error, limits)
        if not _matches(self.text, body or "", limits):
            return False
        return error is None if self.error is None else _matches(self.error, error, limits)

    @property
    def may_be_late(self) -> bool:
        """Whether the deadline ends it, by some libcurls at least."""
        return self.timed_out or (self.other is not None and self.other.timed_out)

    def newer(self, *others: Outcome) -> Outcome:
        """This outcome with libcurl 7.88; with newer ones perhaps one of the others."""
        if OLD_LIBCURL or not others:
            return self
        return replace(self, other=others[0].newer(*others[1:]))

    @property
    def messages(self) -> str:
        """The pattern that its error matches; empty if it has no error."""
        return self.text if self.status is None else self.error or ""

    def beside(self, status: int, body: str = "") -> Outcome:
        """The same error, beside the part of the answer that came.

        body: a pattern.
        """
        return Outcome(status, body, self.timed_out, self.text)


def _matches(pattern: str, text: str | None, limits: Limits) -> bool:
    pattern = re.sub("<([a-z_]+)>", lambda match: str(getattr(limits, match.group(1))), pattern)
    return text is not None and re.fullmatch(pattern, text, re.DOTALL) is not None


def fails(*texts: str) -> Outcome:
    """An error, in one of these words."""
    return Outcome(None, "|".join(map(re.escape, texts)))


def answers(text: str = "ok", status: int = 200) -> Outcome:
    return Outcome(status, re.escape(text))


TOO_LONG = fails("response body exceeds <max_response_bytes> bytes")
TOO_LONG_ON_THE_WIRE = fails("response body exceeds <max_wire_bytes> bytes on the wire")
TOO_MANY_HEADERS = fails("response headers exceed <max_header_bytes> bytes")
LATE = Outcome(None, r"Timeout of [0-9]+ ms reached\. Total time: .*", timed_out=True)
PARTIAL = fails("Transferred a partial file")
NOTHING = fails("Server returned nothing (no headers, no data)")
BROKEN_OFF = fails("Failure when receiving data from the peer")
WEIRD = fails("Weird server reply")
NOT_HTTP = fails("Unsupported protocol")
BAD_CODING = fails("Unrecognized or bad HTTP Content or Transfer-Encoding")
AS_IT_CAME = fails(
    "Unrecognized or bad HTTP Content or Transfer-Encoding: the body is kept as it came"
)
UP_TO_THE_FAULT = fails(
    "Unrecognized or bad HTTP Content or Transfer-Encoding: the body is kept up to the fault"
)
NO_TLS = fails("SSL connect error")
# A body with zeros is not text: it is stored in content_bytes.
ZEROS = "\0*"

Serve = Callable[["Peer"], Awaitable[None]]


@dataclass(frozen=True)
class Way:
    """One way to misbehave.

    serve: what the server does once it has the head of the request, or at once.
    own_port: there is a port where only this way is served. Servers there may speak first: only a
    request with a body is waited for.
    tls: what the port speaks before `serve` begins: "" nothing; "1.1" or "2" TLS with that version
    of HTTP agreed on; "unknown" TLS with a certificate of an authority that nobody knows.
    scheme: what the client speaks.
    method, size: of the request and its body, whose bytes are zeros; -1 for no body.
    keeps: the connection may be used again.
    alone: one at a time. Over HTTP/2 requests share a connection, and what breaks one of them may
    break its neighbours.
    """

    name: str
    outcome: Outcome
    serve: Serve
    own_port: bool = False
    tls: str = ""
    scheme: str = "http"
    method: str = "GET"
    size: int = -1
    keeps: bool = False
    alone: bool = False


WAYS: dict[str, Way] = {}


def several(copies: int) -> list[Way]:
    """Each way that many times; a way that is `alone` only once."""
    return [way for way in WAYS.values() for _ in range(1 if way.alone else copies)]


def way(outcome: Outcome, **more: Any) -> Callable[[Serve], Serve]:
    """Make a function a way, under its own name."""

    def made(serve: Serve) -> Serve:
        name = serve.__name__.replace("_", "-")
        assert name not in WAYS
        WAYS[name] = Way(name, outcome, serve, **more)
        return serve

    return made


def ways(outcome: Outcome, table: dict[str, bytes], **more: Any) -> None:
    """Ways that send these bytes and end the connection."""
    for name, data in table.items():
        assert name not in WAYS

        async def serve(peer: Peer, data: bytes = data) -> None:
            await peer.send(data)

        WAYS[name] = Way(name, outcome, serve, **more)


class Peer:
    """A connection of a client, from the side of the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.length = 0
        self.target = ""
        self.stream = 0

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
        await self.writer.drain()

    async def flood(self, piece: bytes, total: int = FLOOD) -> None:
        """The same again and again."""
        block = piece * max(1, (64 << 10) // len(piece))
        for _ in range(0, total, len(block)):
            if self.writer.is_closing():
                raise ConnectionResetError
            await self.send(block)

    async def drip(self, data: bytes, seconds: float = 0.02) -> None:
        """A byte at a time, the last one again and again."""
        for byte in data:
            await self.send(bytes([byte]))
            await asyncio.sleep(seconds)
        while True:
            await self.send(data[-1:])
            await asyncio.sleep(seconds)

    async def read_body(self) -> None:
        await self.reader.readexactly(self.length)

    async def gone(self) -> None:
        """Wait until the client has closed."""
        while await self.reader.read(65536):
            pass

    async def next_stream(self) -> None:
        """Wait for the next request over HTTP/2."""
        kind = -1
        while kind != HEADERS:
            header = await self.reader.readexactly(9)
            kind, self.stream = header[3], int.from_bytes(header[5:], "big")
            await self.reader.readexactly(int.from_bytes(header[:3], "big"))

    def head(self, *fields: bytes, flags: int = 4) -> bytes:
        """A frame with the status 200 and these fields; END_HEADERS unless said otherwise."""
        return frame(HEADERS, STATUS_200 + b"".join(fields), flags, self.stream)

    def reset(self) -> None:
        """End it with a TCP reset."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n"
FINE = OK + b"Content-Length: 2\r\n\r\nok"
POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def with_length(body: bytes, *fields: str) -> bytes:
    head = "".join(f"{field}\r\n" for field in (*fields, f"Content-Length: {len(body)}"))
    return OK + head.encode() + b"\r\n" + body
