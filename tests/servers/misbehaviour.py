"""Servers that break the rules of HTTP, TLS and good manners, each in a way with a name.

    with running() as servers:
        servers.url(way)    # what to ask for
        way.outcome         # what must come of it, by the limits below

A way is chosen by the path of the request, or, where there is no request yet, by a port of its own.
The servers count: which connections were used for which ways, and which are still open.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import gzip
import json
import logging
import os
import re
import select
import socket
import ssl
import struct
import subprocess
import sys
import zlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import brotlicffi  # type: ignore[import-untyped]
import pycurl
import trustme

OLD_LIBCURL = pycurl.version_info()[2] < 0x080000
# Bytes that nobody has room for.
FLOOD = 256 << 20
MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What the client allows; the ways are made for no more than 8 MiB, half of it on the wire.

    Little, since what is allowed is kept, and recorded like any other body.
    """

    max_response_bytes: int = 40_000
    max_wire_bytes: int = 30_000
    max_header_bytes: int = 20_000


LIMITS = Limits()


@dataclass(frozen=True)
class Outcome:
    """What must come of a request: a status, an error, or both, and a body.

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
        """Whether it is this.

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
        """This of libcurl 7.88; of newer ones perhaps one of the others."""
        if OLD_LIBCURL or not others:
            return self
        return replace(self, other=others[0].newer(*others[1:]))

    @property
    def messages(self) -> str:
        """The pattern of its error; empty where there is none."""
        return self.text if self.status is None else self.error or ""

    def beside(self, status: int, body: str = "") -> Outcome:
        """The same error with an answer of which so much came.

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
# Such a body is no text: in the database it stands in another column.
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
    """Each way so often, but once where it is said to be alone."""
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


# ---- the head


@way(TOO_MANY_HEADERS.beside(200))
async def endless_header_line(peer: Peer) -> None:
    await peer.send(OK, b"X-Endless: ")
    await peer.flood(b"x")


@way(TOO_MANY_HEADERS.beside(200))
async def endless_header_name(peer: Peer) -> None:
    await peer.send(OK)
    await peer.flood(b"x")


@way(TOO_MANY_HEADERS.beside(200))
async def million_headers(peer: Peer) -> None:
    await peer.send(OK)
    await peer.flood(b"a:b\r\n", 5_000_000)
    await peer.send(b"\r\n")


@way(TOO_MANY_HEADERS.beside(200))
async def many_long_headers(peer: Peer) -> None:
    await peer.send(OK)
    await peer.flood(b"X-Long: " + b"x" * 1000 + b"\r\n")


@way(TOO_MANY_HEADERS.beside(200))
async def endless_folding(peer: Peer) -> None:
    await peer.send(OK, b"X-Folded: x\r\n")
    await peer.flood(b" x\r\n")


@way(TOO_MANY_HEADERS)
async def huge_status_line(peer: Peer) -> None:
    await peer.send(b"HTTP/1.1 200 ")
    await peer.flood(b"x")


@way(TOO_MANY_HEADERS)
async def flood_of_100(peer: Peer) -> None:
    await peer.flood(b"HTTP/1.1 100 Continue\r\n\r\n")


@way(TOO_MANY_HEADERS)
async def flood_of_103(peer: Peer) -> None:
    await peer.flood(b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n")


@way(TOO_MANY_HEADERS.beside(200, "ok"))
async def trailer_flood(peer: Peer) -> None:
    await peer.send(CHUNKED, b"\r\n", chunk(b"ok"), b"0\r\n")
    await peer.flood(b"X-Trailer: x\r\n")


@way(TOO_MANY_HEADERS.beside(200, "ok"))
async def endless_trailer_line(peer: Peer) -> None:
    await peer.send(CHUNKED, b"\r\n", chunk(b"ok"), b"0\r\nX-Trailer: ")
    await peer.flood(b"x")


ways(
    WEIRD,
    {
        "nul-in-status-line": b"HTTP/1.1 200 O\x00K\r\nContent-Length: 2\r\n\r\nok",
        "switching-protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n"
        b"Connection: Upgrade\r\n\r\n" + POISON,
    },
)
# Where the body begins and ends nobody knows: the status and what came of the headers are kept.
ways(
    WEIRD.beside(200),
    {
        "nul-in-value": OK + b"X-Nul: a\x00b\r\nContent-Length: 2\r\n\r\nok",
        "nul-in-name": OK + b"X-\x00Nul: a\r\nContent-Length: 2\r\n\r\nok",
        "header-without-colon": OK + b"nonsense\r\nContent-Length: 2\r\n\r\nok",
        "negative-length": OK + b"Content-Length: -2\r\n\r\nok",
        "length-of-letters": OK + b"Content-Length: two\r\n\r\nok",
        "length-with-letters": OK + b"Content-Length: 2x\r\n\r\nok",
        "signed-length": OK + b"Content-Length: +2\r\n\r\nok",
        "hex-length": OK + b"Content-Length: 0x2\r\n\r\nok",
        "empty-length": OK + b"Content-Length:\r\n\r\nok",
        "length-beyond-64-bits": OK + b"Content-Length: 18446744073709551618\r\n\r\nok",
        "length-beyond-any": OK + b"Content-Length: " + b"9" * 500 + b"\r\n\r\nok",
        "conflicting-lengths": OK + b"Content-Length: 2\r\nContent-Length: 6\r\n\r\nok" + POISON,
        "list-of-lengths": OK + b"Content-Length: 2, 6\r\n\r\nok" + POISON,
    },
)
ways(
    NOT_HTTP,
    {
        "http-0-9": b"<html>this is how it was in 1991</html>",
        "no-http": b"\x00\x01\x02\x03\r\n\r\n",
        "line-feeds-only": b"\r\n\r\n\r\n",
        "http-2-frames": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes(18),
        "icy": b"ICY 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "rtsp": b"RTSP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "status-of-two-digits": b"HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok",
        "status-of-four-digits": b"HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nok",
        "status-of-letters": b"HTTP/1.1 abc OK\r\nContent-Length: 2\r\n\r\nok",
        "negative-status": b"HTTP/1.1 -20 OK\r\nContent-Length: 2\r\n\r\nok",
        "status-000": b"HTTP/1.1 000 OK\r\nContent-Length: 2\r\n\r\nok",
        "version-9-9": b"HTTP/9.9 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "version-of-letters": b"HTTP/x.y 200 OK\r\nContent-Length: 2\r\n\r\nok",
    },
)
ways(
    answers().newer(WEIRD.beside(200)),
    {"bare-carriage-return": OK + b"X-A: b\rContent-Length: 9\r\nContent-Length: 2\r\n\r\nok"},
)
ways(
    answers(),
    {
        "same-length-twice": OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        "length-and-chunked": CHUNKED + b"Content-Length: 6\r\n\r\n" + chunk(b"ok") + b"0\r\n\r\n",
        "bare-line-feeds": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        "no-reason": b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok",
        "http-1-0": b"HTTP/1.0 200 OK\r\n\r\nok",
        "no-length": OK + b"\r\nok",
        "chunked-and-http-1-0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunk(b"ok")
        + b"0\r\n\r\n",
        "interim-answers": b"HTTP/1.1 102 Processing\r\nContent-Encoding: gzip\r\n\r\n"
        b"HTTP/1.1 103 Early Hints\r\nContent-Length: 9\r\n\r\n" + FINE,
        "length-with-zeros": OK + b"Content-Length: 0000000000000000000002\r\n\r\nok",
        "latin-1-in-headers": OK + b"X-Text: gr\xfcn \xff\xfe\r\nContent-Length: 2\r\n\r\nok",
        "http-in-lower-case": b"http/1.1 200 ok\r\nContent-Length: 2\r\n\r\nok",
    },
)
ways(answers(status=999), {"status-999": b"HTTP/1.1 999 ?\r\nContent-Length: 2\r\n\r\nok"})


# ---- the body


@way(PARTIAL.beside(200, "12345"))
async def short_body(peer: Peer) -> None:
    await peer.send(OK, b"Content-Length: 100\r\n\r\n", b"12345")


@way(TOO_LONG_ON_THE_WIRE.beside(200, "x{10000,}"))
async def endless_body(peer: Peer) -> None:
    await peer.send(OK, b"\r\n")
    await peer.flood(b"x")


@way(TOO_LONG_ON_THE_WIRE.beside(200, "x{10000,}"))
async def endless_chunks(peer: Peer) -> None:
    await peer.send(CHUNKED, b"\r\n")
    await peer.flood(chunk(b"x" * 1000))


@way(TOO_LONG_ON_THE_WIRE.beside(200, "[xy]{10000,}"))
async def endless_chunks_of_a_byte(peer: Peer) -> None:
    await peer.send(CHUNKED, b"\r\n")
    await peer.flood(chunk(b"x"))


@way(TOO_LONG_ON_THE_WIRE.beside(200, "[xy]{10000,}"))
async def endless_chunks_of_two_bytes(peer: Peer) -> None:
    await peer.send(CHUNKED, b"\r\n")
    await peer.flood(chunk(b"xy"))


@way(TOO_LONG_ON_THE_WIRE.beside(200, "x{10000,}"))
async def one_endless_chunk(peer: Peer) -> None:
    await peer.send(CHUNKED, b"\r\n7fffffffffffffff\r\n")
    await peer.flood(b"x")


@way(TOO_LONG_ON_THE_WIRE.beside(200, "x{10000,}"))
async def announced_flood(peer: Peer) -> None:
    await peer.send(OK, b"Content-Length: 1000000000000\r\n\r\n")
    await peer.flood(b"x")


@way(TOO_LONG_ON_THE_WIRE.beside(200))
async def chunk_extension_flood(peer: Peer) -> None:
    await peer.send(CHUNKED, b"\r\n2;x=")
    await peer.flood(b"x")


ways(
    BROKEN_OFF.beside(200),
    {
        f"chunk-size-{name}": CHUNKED + b"\r\n" + size + b"\r\nok\r\n0\r\n\r\n"
        for name, size in {
            "beyond-64-bits": b"10000000000000002",
            "of-64-bits": b"ffffffffffffffff",
            "of-63-bits": b"8000000000000002",
            "negative": b"-2",
            "signed": b"+2",
            "in-hex": b"0x2",
            "of-letters": b"zz",
            "empty": b"",
            "behind-a-blank": b" 2",
            "of-many-zeros": b"0" * 5000 + b"2",
        }.items()
    },
)
ways(
    BROKEN_OFF.beside(200, "ok"),
    {
        "chunk-longer-than-said": CHUNKED + b"\r\n2\r\nokok\r\n0\r\n\r\n",
        "chunk-without-end": CHUNKED + b"\r\n2\r\nok0\r\n\r\n",
        "nul-in-trailer": CHUNKED + b"\r\n" + chunk(b"ok") + b"0\r\nX: a\x00b\r\n\r\n",
    },
)
ways(
    PARTIAL.beside(200, "ok"),
    {
        "cut-in-a-chunk": CHUNKED + b"\r\n64\r\nok",
        "cut-in-a-chunk-size": CHUNKED + b"\r\n" + chunk(b"ok") + b"1",
        "cut-before-the-last-chunk": CHUNKED + b"\r\n" + chunk(b"ok"),
        "cut-in-the-last-chunk": CHUNKED + b"\r\n" + chunk(b"ok") + b"0\r\n",
        "cut-in-the-trailers": CHUNKED + b"\r\n" + chunk(b"ok") + b"0\r\nX: y\r\n",
    },
)
ways(
    answers(),
    {
        "chunk-extensions": CHUNKED + b'\r\n2;a=b;c="d;e"\r\nok\r\n0;f\r\n\r\n',
        "trailers": CHUNKED + b"\r\n" + chunk(b"ok") + b"0\r\nX-Trailer: y\r\n\r\n",
        "poison-behind-the-body": FINE + POISON,
        "poison-behind-the-chunks": CHUNKED + b"\r\n" + chunk(b"ok") + b"0\r\n\r\n" + POISON,
    },
)
ways(
    fails("Unrecognized or bad HTTP Content or Transfer-Encoding", "Weird server reply").beside(
        200
    ),
    {
        "chunked-twice": CHUNKED + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(b"ok"),
        "chunked-twice-in-one-field": OK
        + b"Transfer-Encoding: chunked, chunked\r\n\r\n"
        + chunk(b"ok"),
        "unknown-transfer-coding": OK + b"Transfer-Encoding: foo\r\n\r\nok",
        "transfer-coding-not-last": OK
        + b"Transfer-Encoding: chunked, foo\r\n\r\n"
        + chunk(b"ok")
        + b"0\r\n\r\n",
    },
)


@way(answers("", 204))
async def body_with_204(peer: Peer) -> None:
    await peer.send(b"HTTP/1.1 204 No Content\r\nContent-Length: 43\r\n\r\n" + POISON)


@way(answers("", 304))
async def body_with_304(peer: Peer) -> None:
    await peer.send(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 43\r\n\r\n" + POISON)


@way(answers("", 204))
async def chunks_with_204(peer: Peer) -> None:
    await peer.send(
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
        chunk(POISON),
        b"0\r\n\r\n",
    )


@way(answers(""), method="HEAD")
async def body_with_head(peer: Peer) -> None:
    await peer.send(OK, b"Content-Length: 43\r\n\r\n" + POISON)


# ---- encoded bodies


@functools.cache
def zeros_as_gzip(mebibytes: int) -> bytes:
    """A thousand to one, made of one block that is repeated."""
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = 0
    for _ in range(mebibytes):
        checksum = zlib.crc32(bytes(MIB), checksum)
    size = struct.pack("<II", checksum, (mebibytes << 20) & 0xFFFFFFFF)
    header = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
    return header + block * mebibytes + zlib.compressobj(9, wbits=-15).flush() + size


@functools.cache
def zeros_as_brotli(mebibytes: int) -> bytes:
    packer = brotlicffi.Compressor(quality=5)
    parts = [packer.compress(bytes(MIB)) for _ in range(mebibytes)]
    return b"".join(parts) + bytes(packer.finish())


@functools.cache
def bombs() -> dict[str, tuple[bytes, str]]:
    """Body and Content-Encoding; each would be a quarter of a gibibyte and more."""
    one = zeros_as_gzip(256)
    two = gzip.compress(zeros_as_gzip(1024))
    return {
        "gzip": (one, "gzip"),
        "deflate": (zlib.compress(bytes(64 * MIB), 9), "deflate"),
        # In Python each character of it takes four bytes.
        "wide-text": (gzip.compress("\U0001f600".encode() + b"x" * 64 * MIB), "gzip"),
        "br": (zeros_as_brotli(256), "br"),
        "gzip-twice": (two, "gzip, gzip"),
        "gzip-three-times": (gzip.compress(two), "gzip, gzip, gzip"),
        "br-of-gzip": (bytes(brotlicffi.compress(one)), "gzip, br"),
        "gzip-of-br": (gzip.compress(zeros_as_brotli(256)), "br, gzip"),
        "three-codings": (
            zlib.compress(gzip.compress(zeros_as_brotli(256))),
            "br, gzip, deflate",
        ),
    }


def _bomb(name: str, content: str = ZEROS) -> None:
    async def serve(peer: Peer) -> None:
        body, coding = bombs()[name]
        await peer.send(with_length(body, f"Content-Encoding: {coding}"))

    async def in_chunks(peer: Peer) -> None:
        body, coding = bombs()[name]
        await peer.send(CHUNKED, f"Content-Encoding: {coding}\r\n\r\n".encode())
        for start in range(0, len(body), 1000):
            await peer.send(chunk(body[start : start + 1000]))
        await peer.send(b"0\r\n\r\n")

    # What is too long on the wire as well may be either.
    WAYS[f"bomb-{name}"] = Way(f"bomb-{name}", TOO_LONG.beside(200, content), serve)
    WAYS[f"bomb-{name}-in-chunks"] = Way(
        f"bomb-{name}-in-chunks", TOO_LONG.beside(200, content), in_chunks
    )


for _name in (
    "gzip",
    "deflate",
    "br",
    "gzip-twice",
    "gzip-three-times",
    "br-of-gzip",
    "gzip-of-br",
    "three-codings",
):
    _bomb(_name)
_bomb("wide-text", ".{1,4}x{10000,}")


# Nobody has asked for it, so whoever takes it may take its bytes for those on the wire.
@way(Outcome(200, ".*", error=f"{TOO_LONG.text}|{TOO_LONG_ON_THE_WIRE.text}|{BAD_CODING.text}"))
async def bomb_as_transfer_coding(peer: Peer) -> None:
    await peer.send(OK, b"Transfer-Encoding: gzip, chunked\r\n\r\n")
    await peer.send(chunk(zeros_as_gzip(256)), b"0\r\n\r\n")


@way(TOO_LONG_ON_THE_WIRE.beside(200))
async def gzip_of_nothing(peer: Peer) -> None:
    """Empty blocks: bytes on the wire that never become a byte of the body."""
    packer = zlib.compressobj(9, wbits=31)
    block = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    await peer.send(CHUNKED, b"Content-Encoding: gzip\r\n\r\n", chunk(block))
    await peer.flood(chunk(b"\x00\x00\x00\xff\xff" * 3000))


@way(TOO_LONG_ON_THE_WIRE.beside(200))
async def endless_gzip_name(peer: Peer) -> None:
    """The file's name in the header of gzip has no end."""
    await peer.send(OK, b"Content-Encoding: gzip\r\n\r\n")
    await peer.send(b"\x1f\x8b\x08\x08\x00\x00\x00\x00\x00\xff")
    await peer.flood(b"x")


@way(TOO_LONG_ON_THE_WIRE.beside(200, ".*"))
async def noise_as_gzip(peer: Peer) -> None:
    """No fewer bytes on the wire than decoded."""
    packer = zlib.compressobj(0, wbits=31)
    noise = os.urandom(MIB)
    await peer.send(OK, b"Content-Encoding: gzip\r\n\r\n")
    for _ in range(64):
        await peer.send(packer.compress(noise) + packer.flush(zlib.Z_SYNC_FLUSH))


_GZIP = gzip.compress(b"ok" * 1000)
_BAD_CHECKSUM = _GZIP[:-8] + bytes(4) + _GZIP[-4:]
_BROTLI = bytes.fromhex("8b0080") + b"ok\x03"
# What a body that breaks off has given by then; how much that is the decoder knows.
ways(
    UP_TO_THE_FAULT.beside(200, "(ok)*o?"),
    {
        "truncated-gzip": with_length(_GZIP[:-12], "Content-Encoding: gzip"),
        "truncated-deflate": with_length(
            zlib.compress(b"ok" * 1000)[:-8], "Content-Encoding: deflate"
        ),
    },
)
ways(
    UP_TO_THE_FAULT.beside(200, "(ok){1000}"),
    {
        "truncated-gzip-trailer": with_length(_GZIP[:-3], "Content-Encoding: gzip"),
        "bad-gzip-checksum": with_length(_BAD_CHECKSUM, "Content-Encoding: gzip"),
        "gzip-with-garbage-behind": with_length(_GZIP + b"garbage", "Content-Encoding: gzip"),
    },
)
ways(
    AS_IT_CAME.beside(200, "ok"),
    {
        "unknown-coding": with_length(b"ok", "Content-Encoding: unheard-of"),
        "coding-none": with_length(b"ok", "Content-Encoding: none"),
        "coding-identity-and-unknown": with_length(b"ok", "Content-Encoding: identity, foo"),
        "coding-in-quotes": with_length(b"ok", 'Content-Encoding: "gzip"'),
        "coding-with-a-parameter": with_length(b"ok", "Content-Encoding: gzip;q=1"),
        "coding-of-a-charset": with_length(b"ok", "Content-Encoding: UTF-8"),
        "codings-without-end": with_length(b"ok", "Content-Encoding: " + "gzip, " * 2000 + "gzip"),
        "many-codings": with_length(b"ok", *["Content-Encoding: gzip"] * 500),
    },
)
ways(
    AS_IT_CAME.beside(200, "(ok){1000}"),
    {
        f"plain-named-{name}".replace(", ", "-"): with_length(
            b"ok" * 1000, f"Content-Encoding: {name}"
        )
        for name in ("gzip", "x-gzip", "deflate", "br", "zstd", "gzip, gzip", "br, deflate")
    },
)
ways(
    AS_IT_CAME.beside(200, "(\\[1\\]){1000}"),
    {
        # Bits that are taken for compressed ones for a while
        f"json-named-{name}": with_length(b"[1]" * 1000, f"Content-Encoding: {name}")
        for name in ("gzip", "deflate", "br")
    },
)
# No text: in the database it stands in another column.
ways(
    AS_IT_CAME.beside(200, ".*"),
    {
        "unknown-coding-in-a-list": with_length(_GZIP, "Content-Encoding: unheard-of, gzip"),
        # Nothing comes of its beginning.
        "truncated-br": with_length(_BROTLI[:3], "Content-Encoding: br"),
        "gzip-named-br": with_length(_GZIP, "Content-Encoding: br"),
        "gzip-named-deflate": with_length(_GZIP, "Content-Encoding: deflate"),
        "noise-named-br": with_length(b"\xff" * 1000, "Content-Encoding: br"),
        "noise-named-deflate": with_length(b"\xff" * 1000, "Content-Encoding: deflate"),
    },
)
ways(
    answers(),
    {
        "br": with_length(_BROTLI, "Content-Encoding: br"),
        "no-coding": with_length(b"ok", "Content-Encoding:"),
        "coding-identity": with_length(b"ok", "Content-Encoding: identity"),
        "identity-of-gzip": with_length(gzip.compress(b"ok"), "Content-Encoding: gzip, identity"),
        "coding-twice-over": with_length(
            gzip.compress(gzip.compress(b"ok")),
            "Content-Encoding: gzip",
            "Content-Encoding: x-gzip",
        ),
    },
)

# ---- ends before the end


ways(
    NOTHING,
    {
        "cut-in-the-status-line": b"HTTP/1.1 20",
        "cut-after-100": b"HTTP/1.1 100 Continue\r\n\r\n",
    },
)
ways(
    fails("Failure when receiving data from the peer", "Transferred a partial file").beside(200),
    {
        "cut-after-the-status-line": OK,
        "cut-in-the-headers": OK + b"X-Half: 1",
        "cut-after-the-headers": OK + b"X-Whole: 1\r\n",
    },
)


@way(NOTHING)
async def closed_at_once(peer: Peer) -> None:
    pass


@way(NOTHING)
async def half_closed(peer: Peer) -> None:
    peer.writer.write_eof()
    await peer.gone()


def _reset_after(name: str, data: bytes, outcome: Outcome) -> None:
    async def serve(peer: Peer) -> None:
        await peer.send(data)
        # What has not been sent yet would be lost with the reset.
        while peer.writer.transport.get_write_buffer_size():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        peer.reset()

    WAYS[name] = Way(name, outcome, serve)


for _name, _data, _outcome in (
    ("reset-after-the-request", b"", BROKEN_OFF),
    ("reset-in-the-status-line", b"HTTP/1.1 20", BROKEN_OFF),
    ("reset-after-100", b"HTTP/1.1 100 Continue\r\n\r\n", BROKEN_OFF),
    ("reset-in-the-headers", OK + b"X-Half: 1", BROKEN_OFF.beside(200)),
    ("reset-after-the-headers", OK + b"Content-Length: 100\r\n\r\n", BROKEN_OFF.beside(200)),
    ("reset-in-the-body", OK + b"Content-Length: 9\r\n\r\nhalf", BROKEN_OFF.beside(200, "half")),
    ("reset-in-a-chunk", CHUNKED + b"\r\n64\r\nhalf", BROKEN_OFF.beside(200, "half")),
    (
        "reset-before-the-last-chunk",
        CHUNKED + b"\r\n" + chunk(b"ok"),
        BROKEN_OFF.beside(200, "ok"),
    ),
    ("reset-without-a-length", OK + b"\r\nhalf", BROKEN_OFF.beside(200, "half")),
    (
        "reset-in-gzip",
        OK + b"Content-Encoding: gzip\r\nContent-Length: 100\r\n\r\n" + _GZIP[:20],
        BROKEN_OFF.beside(200, "(ok)*o?"),
    ),
):
    _reset_after(_name, _data, _outcome)

# ---- uploads, each at a port of its own: a POST that meets a connection which the server is about
# to close is not repeated


@way(answers("", 413), method="POST", own_port=True, size=MIB)
async def early_answer(peer: Peer) -> None:
    """An answer before the body has been read, and the rest of it is never read."""
    await peer.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
    await asyncio.sleep(0.3)
    peer.reset()


@way(answers("", 413), method="POST", own_port=True, size=MIB)
async def early_answer_and_close(peer: Peer) -> None:
    await peer.send(
        b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )
    peer.writer.write_eof()
    await peer.gone()


# On a kept connection libcurl does not say how it ended, and a POST is not sent again.
@way(
    fails(
        "Failed sending data to the peer",
        "Failure when receiving data from the peer",
        "Server returned nothing (no headers, no data)",
    ),
    method="POST",
    own_port=True,
    size=8 * MIB,
)
async def reset_in_the_upload(peer: Peer) -> None:
    await peer.reader.readexactly(100_000)
    peer.reset()


@way(LATE, method="POST", own_port=True, size=50 * MIB)
async def upload_never_read(peer: Peer) -> None:
    peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
    # Longer than the client waits; what it has sent hides that it is gone.
    await asyncio.sleep(3)
    peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
    await peer.gone()


@way(answers(), method="POST", own_port=True, size=MIB, keeps=True)
async def upload_read(peer: Peer) -> None:
    await peer.read_body()
    await peer.send(FINE)


# ---- slowness


@way(LATE)
async def silence(peer: Peer) -> None:
    await peer.gone()


def _drip(name: str, before: bytes, data: bytes, outcome: Outcome) -> None:
    async def serve(peer: Peer) -> None:
        await peer.send(before)
        await peer.drip(data)

    WAYS[name] = Way(name, outcome, serve)


for _name, _before, _data, _outcome in (
    ("drip-of-the-status-line", b"", b"HTTP/1.1 200 O", LATE),
    ("drip-of-a-header", OK, b"X-Drip: 1", LATE.beside(200)),
    ("drip-of-the-body", OK + b"Content-Length: 100000\r\n\r\n", b"x", LATE.beside(200, "x+")),
    ("drip-without-a-length", OK + b"\r\n", b"x", LATE.beside(200, "x+")),
    ("drip-of-a-chunk", CHUNKED + b"\r\nffff\r\n", b"x", LATE.beside(200, "x+")),
    ("drip-of-a-chunk-size", CHUNKED + b"\r\n", b"2;x", LATE.beside(200)),
    (
        "drip-of-trailers",
        CHUNKED + b"\r\n" + chunk(b"ok") + b"0\r\n",
        b"X-Drip: x",
        LATE.beside(200, "ok"),
    ),
    ("silence-in-the-headers", OK + b"X-A: b\r\n", b"x", LATE.beside(200)),
):
    _drip(_name, _before, _data, _outcome)


@way(LATE.beside(200))
async def drip_of_headers(peer: Peer) -> None:
    await peer.send(OK)
    while True:
        await asyncio.sleep(0.02)
        await peer.send(b"X-Drip: 1\r\n")


@way(LATE.beside(200, "(ok)*o?"))
async def drip_of_gzip(peer: Peer) -> None:
    await peer.send(OK, b"Content-Encoding: gzip\r\n\r\n", _GZIP[:10])
    while True:
        await peer.send(b"\x00\x00\x00\xff\xff")
        await asyncio.sleep(0.02)


@way(LATE)
async def drip_of_100(peer: Peer) -> None:
    while True:
        await asyncio.sleep(0.02)
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")


@way(LATE.beside(200, "ok"))
async def end_that_never_comes(peer: Peer) -> None:
    """All of the body, without a length, on a connection that stays open."""
    await peer.send(OK, b"\r\nok")
    await peer.gone()


# ---- redirects


@way(fails("Number of redirects hit maximum amount").beside(302), keeps=True)
async def redirects_without_end(peer: Peer) -> None:
    await peer.send(
        b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nX-Long: " + b"x" * 5000 + b"\r\n"
        b"Location: " + peer.target.encode() + b"/x\r\n\r\n"
    )


@way(fails("redirect to an invalid or unsupported URL").beside(302), keeps=True)
async def redirect_to_nonsense(peer: Peer) -> None:
    await peer.send(
        b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: http://[::\xff\x01]:99999/\r\n\r\n"
    )


@way(TOO_LONG_ON_THE_WIRE.beside(302, "x{10000,}"))
async def redirect_with_an_endless_body(peer: Peer) -> None:
    await peer.send(b"HTTP/1.1 302 Found\r\nLocation: /fine\r\n\r\n")
    await peer.flood(b"x")


# ---- without a request


# It depends on who is quicker.
@way(
    fails("Failure when receiving data from the peer", "Couldn't connect to server",
          "Failed sending data to the peer"),
    own_port=True,
)  # fmt: skip
async def reset_at_the_door(peer: Peer) -> None:
    peer.reset()


@way(NOTHING, own_port=True)
async def closed_at_the_door(peer: Peer) -> None:
    peer.writer.write_eof()
    await peer.gone()


@way(NOT_HTTP, own_port=True)
async def banner(peer: Peer) -> None:
    """Another protocol's server, which speaks first."""
    await peer.send(b"SSH-2.0-OpenSSH_9.2\r\n")
    await peer.gone()


@way(TOO_LONG_ON_THE_WIRE.beside(200, "x{10000,}"), own_port=True)
async def flood_at_the_door(peer: Peer) -> None:
    await peer.send(OK, b"\r\n")
    await peer.flood(b"x")


# ---- TLS


@way(NO_TLS, own_port=True, scheme="https")
async def clear_where_tls_is_spoken(peer: Peer) -> None:
    await peer.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    await peer.gone()


@way(NOT_HTTP, own_port=True)
async def tls_where_clear_is_spoken(peer: Peer) -> None:
    """What a TLS server has to say to a request: a fatal alert."""
    await peer.reader.readexactly(1)
    await peer.send(b"\x15\x03\x01\x00\x02\x02\x46")


@way(LATE, own_port=True, scheme="https")
async def silence_in_the_handshake(peer: Peer) -> None:
    await peer.gone()


@way(LATE, own_port=True, scheme="https")
async def drip_of_the_handshake(peer: Peer) -> None:
    await peer.drip(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc\x03\x03")


@way(NO_TLS, own_port=True, scheme="https")
async def alert(peer: Peer) -> None:
    await peer.send(b"\x15\x03\x03\x00\x02\x02\x28")
    await peer.gone()


# GnuTLS keeps of it what a message may have, 16 MB.
@way(NO_TLS, own_port=True, scheme="https", alone=True)
async def flood_in_the_handshake(peer: Peer) -> None:
    await peer.flood(b"\x16\x03\x03\x40\x00" + b"\x02\xff\xff\xff" * 4096)


@way(
    fails("SSL connect error", "Couldn't connect to server"),
    own_port=True,
    scheme="https",
)
async def reset_in_the_handshake(peer: Peer) -> None:
    await peer.send(b"\x16\x03\x03\x40\x00\x02\x00")
    await asyncio.sleep(0.02)
    peer.reset()


@way(NO_TLS, own_port=True, scheme="https")
async def closed_in_the_handshake(peer: Peer) -> None:
    await peer.send(b"\x16\x03\x03\x40\x00\x02\x00")


@way(
    fails("SSL peer certificate or SSH remote key was not OK"),
    own_port=True,
    tls="unknown",
    scheme="https",
)
async def unknown_authority(peer: Peer) -> None:
    await peer.send(FINE)


@way(BROKEN_OFF.beside(200, "half"), own_port=True, tls="1.1", scheme="https")
async def end_without_goodbye(peer: Peer) -> None:
    """The body ends with the connection, and TLS does not say so: anybody may have cut it."""
    await peer.reader.readuntil(b"\r\n\r\n")
    await peer.send(OK, b"\r\nhalf")
    await asyncio.sleep(0.02)
    peer.writer.transport.abort()


@way(TOO_LONG_ON_THE_WIRE.beside(200, "x{10000,}"), own_port=True, tls="1.1", scheme="https")
async def endless_body_over_tls(peer: Peer) -> None:
    await peer.reader.readuntil(b"\r\n\r\n")
    await peer.send(OK, b"\r\n")
    await peer.flood(b"x")


@way(NOTHING.newer(LATE), own_port=True, tls="2", scheme="https", alone=True)
async def http_1_where_2_was_agreed_on(peer: Peer) -> None:
    await peer.send(FINE)
    await peer.gone()


# ---- HTTP/2 (RFC 9113), by hand


def frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 0) -> bytes:
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE = 0, 1, 3, 4, 5
PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4
# HPACK (RFC 7541): `:status: 200` stands in its table; fields by name and value are not kept.
STATUS_200 = b"\x88"


def field(name: bytes, value: bytes, keep: bool = False) -> bytes:
    return (b"\x40" if keep else b"\x00") + _string(name) + _string(value)


def _string(text: bytes) -> bytes:
    length = len(text)
    if length < 127:
        return bytes([length]) + text
    length -= 127
    more = b""
    while length >= 128:
        more += bytes([length & 127 | 128])
        length >>= 7
    return b"\x7f" + more + bytes([length]) + text


def h2(outcome: Outcome) -> Callable[[Serve], Serve]:
    """A way over HTTP/2, for one request after another; an error of ours ends the connection."""

    def made(serve: Serve) -> Serve:
        @functools.wraps(serve)
        async def greeted(peer: Peer) -> None:
            # One stream at a time
            await peer.send(frame(SETTINGS, struct.pack("!HI", 3, 1)))
            await peer.reader.readexactly(24)
            while True:
                await peer.next_stream()
                await serve(peer)

        way(outcome, own_port=True, tls="2", scheme="https", alone=True)(greeted)
        return serve

    return made


H2_BROKEN = fails(
    "Server returned nothing (no headers, no data)", "Transferred a partial file",
    "Error in the HTTP2 framing layer", "Stream error in the HTTP/2 framing layer",
    "Failure when receiving data from the peer", "Failed sending data to the peer",
)  # fmt: skip


# The library for HTTP/2 may have enough before we have.
H2_FLOODED = Outcome(
    None, "|".join((TOO_LONG_ON_THE_WIRE.text, TOO_MANY_HEADERS.text, H2_BROKEN.text))
)


@h2(LATE)
async def h2_silence(peer: Peer) -> None:
    await peer.gone()


@h2(LATE.beside(200, "x+"))
async def h2_drip(peer: Peer) -> None:
    await peer.send(peer.head())
    while True:
        await peer.send(frame(DATA, b"x", 0, peer.stream))
        await asyncio.sleep(0.02)


@h2(TOO_LONG_ON_THE_WIRE.beside(200, "x{10000,}"))
async def h2_endless_data(peer: Peer) -> None:
    await peer.send(peer.head())
    await peer.flood(frame(DATA, b"x" * 16384, 0, peer.stream), 8 * MIB)


@h2(TOO_LONG.beside(200, ZEROS))
async def h2_bomb(peer: Peer) -> None:
    body, coding = bombs()["gzip-twice"]
    await peer.send(peer.head(field(b"content-encoding", coding.encode())))
    await peer.send(frame(DATA, body, END_STREAM, peer.stream))


@h2(TOO_MANY_HEADERS.beside(200))
async def h2_many_headers(peer: Peer) -> None:
    await peer.send(peer.head(*[field(b"x-long", b"x" * 1000)] * 15, flags=0))
    more = frame(CONTINUATION, field(b"x-long", b"x" * 1000) * 15, 0, peer.stream)
    await peer.send(
        more, frame(CONTINUATION, b"", END_HEADERS, peer.stream), frame(DATA, b"ok", 0, peer.stream)
    )


@h2(TOO_MANY_HEADERS.beside(200))
async def h2_headers_of_a_table(peer: Peer) -> None:
    """One long field, kept in the table, and then a byte for each time it comes again."""
    await peer.send(
        peer.head(field(b"x-long", b"x" * 3000, keep=True), b"\xbe" * 12),
        frame(DATA, b"ok", 0, peer.stream),
    )


H2_TOO_MANY_HEADERS = Outcome(None, f"{H2_BROKEN.text}|{TOO_MANY_HEADERS.text}")


# The library for HTTP/2 has a limit of its own, at 64 KB.
@h2(H2_TOO_MANY_HEADERS.newer(H2_TOO_MANY_HEADERS.beside(200)))
async def h2_bomb_of_headers(peer: Peer) -> None:
    """Forty megabytes of fields in sixteen kilobytes."""
    await peer.send(peer.head(field(b"x-long", b"x" * 3000, keep=True), b"\xbe" * 13000))


@h2(H2_FLOODED.newer(H2_FLOODED.beside(200)))
async def h2_endless_continuation(peer: Peer) -> None:
    await peer.send(peer.head(flags=0))
    await peer.flood(frame(CONTINUATION, field(b"x", b"y") * 100, 0, peer.stream))


@h2(H2_FLOODED.newer(H2_FLOODED.beside(200)))
async def h2_empty_continuations(peer: Peer) -> None:
    await peer.send(peer.head(flags=0))
    await peer.flood(frame(CONTINUATION, b"", 0, peer.stream))


@h2(H2_FLOODED)
async def h2_flood_of_103(peer: Peer) -> None:
    early = b"\x08\x03103" + field(b"link", b"</x>; rel=preload")
    await peer.flood(frame(HEADERS, early, END_HEADERS, peer.stream))


@h2(H2_FLOODED)
async def h2_flood_of_settings(peer: Peer) -> None:
    """Each wants an acknowledgement, and none of these is read."""
    await peer.flood(frame(SETTINGS, struct.pack("!HI", 3, 100)))


@h2(H2_FLOODED)
async def h2_flood_of_pings(peer: Peer) -> None:
    await peer.flood(frame(PING, bytes(8)))


# libcurl 7.88 reads frames that carry nothing for as long as they come as fast as it reads, in one
# call that nothing outside can end: all others stand still meanwhile. From a server on the same
# machine that is 2 s for 256 MB, so here it is 8 MB; a network has pauses that end such a call.
SWALLOWED = 8 * MIB


@h2(H2_FLOODED.beside(200))
async def h2_flood_of_empty_data(peer: Peer) -> None:
    await peer.send(peer.head())
    await peer.flood(frame(DATA, b"", 0, peer.stream), SWALLOWED)
    raise ConnectionAbortedError


@h2(H2_FLOODED.beside(200))
async def h2_flood_of_padding(peer: Peer) -> None:
    await peer.send(peer.head())
    await peer.flood(frame(DATA, b"\xff" + bytes(255), 8, peer.stream), SWALLOWED)
    raise ConnectionAbortedError


@h2(H2_FLOODED)
async def h2_flood_of_unknown_frames(peer: Peer) -> None:
    await peer.flood(frame(0xEE, b"x" * 1000))


@h2(H2_BROKEN.beside(200, "half"))
async def h2_reset_of_the_stream(peer: Peer) -> None:
    await peer.send(
        peer.head(),
        frame(DATA, b"half", 0, peer.stream),
        frame(RST_STREAM, struct.pack("!I", 2), 0, peer.stream),
    )


@h2(H2_BROKEN)
async def h2_goaway(peer: Peer) -> None:
    await peer.send(frame(GOAWAY, struct.pack("!II", 0, 1)))
    raise ConnectionAbortedError


@h2(H2_BROKEN.beside(200, "half"))
async def h2_closed(peer: Peer) -> None:
    await peer.send(peer.head(), frame(DATA, b"half", 0, peer.stream))
    raise ConnectionAbortedError


@h2(H2_BROKEN.beside(200, "half"))
async def h2_cut(peer: Peer) -> None:
    await peer.send(peer.head(), frame(DATA, b"half", 0, peer.stream))
    await asyncio.sleep(0.02)
    peer.reset()
    raise ConnectionAbortedError


@h2(H2_BROKEN.beside(200))
async def h2_frame_too_large(peer: Peer) -> None:
    await peer.send(
        peer.head(field(b"content-length", b"20000")), frame(DATA, bytes(20000), 0, peer.stream)
    )


@h2(answers("").newer(H2_BROKEN.beside(200)))
async def h2_frame_too_large_and_no_length(peer: Peer) -> None:
    """A body that breaks off is taken for the whole of it.

    libcurl 7.88 ends the session as it should, and then says that all is well, as after a polite
    GOAWAY: without a length there is nothing to tell the two by. Newer ones say what it was.
    """
    await peer.send(peer.head(), frame(DATA, bytes(20000), 0, peer.stream))


@h2(H2_BROKEN.newer(H2_BROKEN.beside(200), LATE))
async def h2_garbage(peer: Peer) -> None:
    await peer.send(b"\xff" * 1000)


@h2(H2_BROKEN.newer(H2_BROKEN.beside(200), LATE))
async def h2_bad_table(peer: Peer) -> None:
    """A field that stands nowhere."""
    await peer.send(peer.head(b"\xff\xff\xff\x7f"))


@h2(LATE)
async def h2_push(peer: Peer) -> None:
    promise = struct.pack("!I", 2) + b"\x82\x84\x87" + field(b":authority", b"127.0.0.1")
    await peer.send(frame(PUSH_PROMISE, promise, END_HEADERS, peer.stream))
    await peer.gone()


@h2(H2_BROKEN.beside(200, "(12345)?"))
async def h2_short_body(peer: Peer) -> None:
    await peer.send(
        peer.head(field(b"content-length", b"100")), frame(DATA, b"12345", END_STREAM, peer.stream)
    )


@h2(H2_BROKEN.beside(200, "(ok)?"))
async def h2_long_body(peer: Peer) -> None:
    await peer.send(
        peer.head(field(b"content-length", b"2")), frame(DATA, b"okok", END_STREAM, peer.stream)
    )


@h2(H2_BROKEN.newer(H2_BROKEN.beside(200), answers()))
async def h2_line_feed_in_a_value(peer: Peer) -> None:
    await peer.send(
        peer.head(field(b"x-a", b"b\r\nx-c: d")), frame(DATA, b"ok", END_STREAM, peer.stream)
    )


@h2(H2_BROKEN)
async def h2_no_status(peer: Peer) -> None:
    fields = frame(HEADERS, field(b"x-a", b"b"), END_HEADERS, peer.stream)
    await peer.send(fields, frame(DATA, b"ok", END_STREAM, peer.stream))


# ---- the servers


class Servers:
    """What listens, and what it has seen; commands come as lines, answers go as JSON."""

    def __init__(self) -> None:
        self.connections = 0
        self.open: set[int] = set()
        self.used: dict[int, list[str]] = {}

    async def run(self) -> None:
        known, unknown = trustme.CA(), trustme.CA()
        contexts = {
            "": None,
            "1.1": context(known, "http/1.1"),
            "2": context(known, "h2"),
            "unknown": context(unknown, "http/1.1"),
        }
        ports = {"": await self.listen(None, None)}
        for each in WAYS.values():
            if each.own_port:
                ports[each.name] = await self.listen(each, contexts[each.tls])
        bombs()
        tell({"ports": ports, "ca": known.cert_pem.bytes().decode()})
        lines = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        while await lines.readline():
            tell({"open": list(self.open), "used": self.used})

    async def listen(self, own: Way | None, tls: ssl.SSLContext | None) -> int:
        """Serve one way, or all that are chosen by a path; returns the port."""

        async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            number = self.connections
            self.open.add(number)
            self.used[number] = []
            peer = Peer(reader, writer)
            try:
                if own is not None and own.method == "GET":
                    self.used[number].append(own.name)
                    await own.serve(peer)
                else:
                    while await self.request(peer, number):
                        pass
            except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
                pass
            finally:
                self.open.discard(number)
                writer.close()

        server = await asyncio.start_server(
            connection, "127.0.0.1", 0, limit=1 << 20, ssl=tls, backlog=1024
        )
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def request(self, peer: Peer, number: int) -> bool:
        """Serve one request; False ends the connection."""
        head = (await peer.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        peer.target = head.split(" ", 2)[1]
        name = peer.target.strip("/").partition("/")[0]
        self.used[number].append(name)
        length = re.search(r"\r\ncontent-length: *([0-9]+)", head, re.IGNORECASE)
        peer.length = int(length.group(1)) if length else 0
        chosen = WAYS.get(name)
        if chosen is None:
            await peer.read_body()
            await peer.send(FINE)
            return True
        await chosen.serve(peer)
        return chosen.keeps


def context(authority: trustme.CA, protocol: str) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.set_alpn_protocols([protocol])
    authority.issue_cert("127.0.0.1").configure_cert(made)
    return made


def tell(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


@dataclass(frozen=True)
class Seen:
    """The connections so far: those that are still open, and what each was used for in order."""

    open: set[int]
    used: dict[int, list[str]]

    def of(self, name: str) -> list[int]:
        """The connections that were used for a way."""
        return [number for number, names in self.used.items() if name in names]

    def after(self, name: str) -> list[str]:
        """What else these connections were used for afterwards."""
        return [
            other
            for names in (self.used[number] for number in self.of(name))
            for other in names[names.index(name) :]
            if other != name
        ]


class Running:
    """The servers, in a process of their own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        hello = self._answer()
        self._ports: dict[str, int] = hello["ports"]
        # The authority to trust for 127.0.0.1.
        self.ca: str = hello["ca"]

    def url(self, way: Way | None = None) -> str:
        """The URL of a way; without one, of an answer that is fine."""
        if way is not None and way.own_port:
            return f"{way.scheme}://127.0.0.1:{self._ports[way.name]}/{way.name}"
        return f"http://127.0.0.1:{self._ports['']}/{way.name if way is not None else 'fine'}"

    def seen(self) -> Seen:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found = self._answer()
        return Seen(
            {int(number) for number in found["open"]},
            {int(number): names for number, names in found["used"].items()},
        )

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], 60)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise RuntimeError(f"the misbehaving servers are gone: {self._process.poll()}")
        return json.loads(line)


@contextlib.contextmanager
def running() -> Iterator[Running]:
    """Start the servers, and end them afterwards."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig=KILL", sys.executable, str(Path(__file__).resolve())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield Running(process)
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    # That a client has gone is what is wanted here.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    asyncio.run(Servers().run())
