"""An HTTP server that misbehaves on purpose, by path, and remembers what it was asked.

    cd tests; python3 -m servers.httpd --port 0 [--host ADDRESS] [--cert PEM --key PEM]

It prints its URL when it listens. Ways to answer (numbers in seconds unless said otherwise):

    /echo…               the request as JSON: method, target, headers (pairs), body (latin-1)
    /status/N            status N                     /delay/S      nothing for S seconds, then ok
    /drip-headers/S      a header each S              /drip-body/S  a byte each S, without an end
    /continue/S          a 100 Continue each S, without an end
    /short/N             Content-Length N, 5 bytes, then closed
    /long/N              N bytes                      /chunked/N    the same in chunks
    /endless             chunks without an end        /bad-chunk    a broken chunk size
    /reset               a TCP reset                  /empty        closed without a byte
    /cut-headers         closed within the headers    /garbage      bytes that are no HTTP
    /nul-header          a header with a NUL          /headers/N    N headers of 1000 bytes
    /gzip  /deflate  /double-gzip  /bad-gzip  /coding/NAME          encoded bodies
    /bomb/N              N bytes of zeros, as gzip    /trickle      gzip that decodes to nothing
    /noise/N             N bytes that gzip cannot make fewer, as gzip
    /redirect/N?to=URL   status N with Location: URL  /loop         a redirect to itself
    /hop/N?to=URL        the same under another name
    /hops/N              N redirects, then /echo      /cookies      two Set-Cookie, two X-Twice
    /length/N            Content-Length N, no body (for HEAD)
    /close               ok, and the connection ends  /body/TEXT    TEXT
    /hang                nothing, ever                anything else: ok

`/_record` gives all requests as a JSON array (`connection` numbers the TCP connections), and
`/_reset` forgets them; neither is remembered itself. `/_open` says how many connections are open.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import json
import os
import socket
import ssl
import struct
import time
import zlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

from servers.process import Recording, started


class Server:
    """One listening server; `record` is what came in, in the order of arrival."""

    def __init__(self) -> None:
        self.record: list[dict[str, Any]] = []
        self.connections = 0
        self.open = 0

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until either side ends it."""
        self.connections += 1
        self.open += 1
        number = self.connections
        try:
            while await self.request(reader, writer, number):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self.open -= 1
            writer.close()

    async def request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int
    ) -> bool:
        """Read one request, answer it; False ends the connection."""
        first = await reader.readexactly(1)
        if first == b"\x16":
            # A TLS handshake at a plain port.
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            return False
        head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *rest = head[:-4].split("\r\n")
        method, target, _version = line.split(" ")
        headers = [(n, v.strip(" \t")) for n, _, v in (field.partition(":") for field in rest)]
        lower = {name.lower(): value for name, value in headers}
        body = b""
        if "content-length" in lower:
            body = await reader.readexactly(int(lower["content-length"]))
        entry = {
            "method": method,
            "target": target,
            "headers": headers,
            "body": body.decode("latin-1"),
            "connection": connection,
        }
        if not target.startswith("/_"):
            self.record.append({**entry, "at": time.time()})
        url = urlsplit(target)
        answer = Answer(reader, writer, method)
        name, *arguments = url.path.lstrip("/").split("/")
        way = getattr(answer, name.lstrip("_").replace("-", "_"), None)
        if name == "_record":
            await answer.send(json.dumps(self.record).encode(), kind="application/json")
        elif name == "_reset":
            self.record.clear()
            await answer.send(b"ok")
        elif name == "_open":
            await answer.send(str(self.open - 1).encode())
        elif name == "echo":
            await answer.send(json.dumps(entry).encode(), kind="application/json")
        elif name in ("redirect", "hop"):
            to = parse_qs(url.query).get("to")
            await (answer.redirect(arguments[0], to[0]) if to else answer.send(b"ok"))
        elif name == "loop":
            await answer.redirect("302", target)
        elif name == "hops":
            left = int(arguments[0])
            await answer.redirect("302", f"/hops/{left - 1}" if left > 1 else "/echo")
        elif name in WAYS and way is not None:
            await way(*arguments)
        else:
            await answer.send(b"ok")
        return answer.keep


WAYS = frozenset(
    [
        "status",
        "delay",
        "hang",
        "drip-headers",
        "drip-body",
        "continue",
        "short",
        "long",
        "chunked",
        "endless",
        "bad-chunk",
        "reset",
        "empty",
        "close",
        "cut-headers",
        "garbage",
        "nul-header",
        "headers",
        "gzip",
        "deflate",
        "double-gzip",
        "bad-gzip",
        "coding",
        "bomb",
        "trickle",
        "noise",
        "cookies",
        "length",
        "body",
    ]
)
# `continue` is a word of Python's own.
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n"


class Answer:
    """The ways to answer; a method's name is a path's first part."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.method = method
        self.keep = True
        setattr(self, "continue", self.interim)

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def send(
        self,
        body: bytes,
        status: str = "200 OK",
        kind: str = "text/plain",
        more: str = "",
    ) -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        content = b"" if self.method == "HEAD" else body
        await self.write(f"{head}{more}\r\n".encode("latin-1") + content)

    async def redirect(self, status: str, to: str) -> None:
        location = f"Location: {to}\r\n".encode().decode("latin-1")
        await self.send(b"elsewhere", f"{status} Elsewhere", more=location)

    async def status(self, code: str) -> None:
        if code in ("204", "304"):
            await self.write(f"HTTP/1.1 {code} Nothing\r\n\r\n".encode())
        else:
            await self.send(b"status", f"{code} Some Words")

    async def delay(self, seconds: str) -> None:
        await self.pause(float(seconds))
        await self.send(b"ok")

    async def hang(self) -> None:
        await self.pause(None)

    async def pause(self, seconds: float | None) -> None:
        """Wait, but no longer than the other side does."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.reader.read(1)
            raise ConnectionResetError

    async def drip_headers(self, seconds: str) -> None:
        await self.write(OK)
        while True:
            await asyncio.sleep(float(seconds))
            await self.write(b"X-Drip: 1\r\n")

    async def drip_body(self, seconds: str) -> None:
        await self.write(CHUNKED + b"\r\n")
        while True:
            await asyncio.sleep(float(seconds))
            await self.write(b"1\r\nx\r\n")

    async def interim(self, seconds: str) -> None:
        while True:
            await asyncio.sleep(float(seconds))
            await self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def short(self, length: str) -> None:
        self.keep = False
        await self.write(OK + f"Content-Length: {length}\r\n\r\n12345".encode())

    async def long(self, length: str) -> None:
        await self.send(b"x" * int(length))

    async def chunked(self, length: str) -> None:
        body = b"x" * int(length)
        await self.write(CHUNKED + b"\r\n")
        for start in range(0, len(body), 1000):
            piece = body[start : start + 1000]
            await self.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        await self.write(b"0\r\n\r\n")

    async def endless(self) -> None:
        await self.write(CHUNKED + b"\r\n")
        while True:
            await self.write(b"4000\r\n" + b"x" * 0x4000 + b"\r\n")

    async def bad_chunk(self) -> None:
        self.keep = False
        await self.write(CHUNKED + b"\r\n5\r\nhello\r\nzz\r\nworld\r\n")

    async def reset(self) -> None:
        self.keep = False
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def empty(self) -> None:
        self.keep = False

    async def close(self) -> None:
        self.keep = False
        await self.send(b"ok")

    async def cut_headers(self) -> None:
        self.keep = False
        await self.write(OK + b"X-Half: 1")

    async def garbage(self) -> None:
        self.keep = False
        await self.write(b"\x00\x01\x02 this is no HTTP\r\n\r\n")

    async def nul_header(self) -> None:
        self.keep = False
        await self.write(OK + b"X-Nul: a\x00b\r\nContent-Length: 0\r\n\r\n")

    async def headers(self, count: str) -> None:
        await self.write(OK)
        for number in range(int(count)):
            await self.write(f"X-Flood-{number}: ".encode() + b"x" * 1000 + b"\r\n")
        await self.write(b"Content-Length: 0\r\n\r\n")

    async def encoded(self, body: bytes, coding: str) -> None:
        await self.send(body, more=f"Content-Encoding: {coding}\r\n")

    async def gzip(self) -> None:
        await self.encoded(gzip.compress(b"decoded"), "gzip")

    async def deflate(self) -> None:
        await self.encoded(zlib.compress(b"decoded"), "deflate")

    async def double_gzip(self) -> None:
        await self.encoded(gzip.compress(gzip.compress(b"decoded")), "gzip, gzip")

    async def bad_gzip(self) -> None:
        await self.encoded(b"this is not gzip at all", "gzip")

    async def coding(self, name: str) -> None:
        await self.encoded(b"decoded", name)

    async def bomb(self, length: str) -> None:
        packer = zlib.compressobj(9, wbits=31)
        zeros = bytes(1 << 20)
        parts = [packer.compress(zeros) for _ in range(int(length) >> 20)]
        await self.encoded(b"".join([*parts, packer.flush()]), "gzip")

    async def noise(self, length: str) -> None:
        await self.encoded(gzip.compress(os.urandom(int(length))), "gzip")

    async def trickle(self) -> None:
        """Empty gzip blocks: bytes on the wire that never become a byte of the body."""
        await self.write(CHUNKED + b"Content-Encoding: gzip\r\n\r\n")
        packer = zlib.compressobj(9, wbits=31)
        block = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
        await self.write(f"{len(block):x}\r\n".encode() + block + b"\r\n")
        empty = b"\x00\x00\x00\xff\xff" * 3000
        while True:
            await self.write(f"{len(empty):x}\r\n".encode() + empty + b"\r\n")

    async def cookies(self) -> None:
        more = "Set-Cookie: a=1\r\nX-Twice: 1\r\nSet-Cookie: b=2\r\nX-Twice: 2\r\n"
        await self.send(b"ok", more=more)

    async def length(self, length: str) -> None:
        await self.write(OK + f"Content-Length: {length}\r\n\r\n".encode())

    async def body(self, text: str) -> None:
        await self.send(text.encode())


async def serve(host: str, port: int, tls: ssl.SSLContext | None) -> None:
    """Listen until the process is ended; prints the URL first."""
    server = Server()
    listening = await asyncio.start_server(
        server.connection, host, port, limit=1 << 26, ssl=tls, backlog=1024
    )
    bound = listening.sockets[0].getsockname()
    name = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
    print(f"{'https' if tls else 'http'}://{name}:{bound[1]}", flush=True)
    await listening.serve_forever()


class Running(Recording):
    """The server in a process of its own."""

    def open_connections(self) -> int:
        """How many connections are open, this question's left out."""
        return int(self.ask("/_open"))


@contextlib.contextmanager
def running(host: str = "127.0.0.1", port: int = 0, *more: str) -> Iterator[Running]:
    """Start the server, and end it afterwards.

    more: further arguments of the command line.
    """
    with started("servers.httpd", "--host", host, "--port", str(port), *more) as (process, url):
        yield Running(process, url)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--cert")
    parser.add_argument("--key")
    options = parser.parse_args()
    tls = None
    if options.cert:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(options.cert, options.key)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(options.host, options.port, tls))


if __name__ == "__main__":
    main()
