"""A proxy for HTTP that remembers what it was asked, and that fails on request.

    cd tests; python3 -m servers.proxyd [--host ADDRESS] [--port N] [--cert PEM] [--user NAME:WORD]

The proxy prints its URL when it listens, passes requests on (RFC 9112, section 3.2.2) and opens
tunnels (RFC 9110, section 9.3.6); names that end in `.example` are this host to it. With `--user`
it wants Basic credentials. The name of the target may ask for trouble, to CONNECT and to other
requests:

    status-N.example   an answer with status N        hang.example    nothing, ever
    close.example      closed without a byte          reset.example   a TCP reset
    flood.example      headers without an end         garbage.example bytes that are no HTTP
    early.example      some 1xx, and then what was asked for (not to CONNECT)

`GET /_record` (not by proxy) gives all requests as a JSON array, `GET /_reset` forgets them.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import re
import socket
import ssl
import struct
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from servers.process import Recording, started


class Proxy:
    def __init__(self, user: str | None) -> None:
        self.record: list[dict[str, Any]] = []
        self.connections = 0
        self.expected = None
        if user is not None:
            self.expected = "Basic " + base64.b64encode(user.encode()).decode()

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        try:
            while await self.request(reader, writer, number):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    async def request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> bool:
        """Serve one request; False ends the connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *rest = head[:-4].split("\r\n")
        method, target, _version = line.split(" ")
        headers = [(n, v.strip()) for n, _, v in (field.partition(":") for field in rest)]
        lower = {name.lower(): value for name, value in headers}
        body = await reader.readexactly(int(lower.get("content-length", "0")))
        if target.startswith("/_"):
            if target == "/_reset":
                self.record.clear()
            await answer(writer, "200 OK", json.dumps(self.record).encode())
            return True
        entry = {"method": method, "target": target, "headers": headers, "connection": number}
        self.record.append(entry)
        if self.expected is not None and lower.get("proxy-authorization") != self.expected:
            more = "Proxy-Authenticate: Basic realm=x\r\n"
            await answer(writer, "407 Proxy Authentication Required", b"who?", more)
            return True
        url = urlsplit("//" + target if method == "CONNECT" else target)
        host, port = url.hostname or "", url.port or 80
        if host.endswith(".example") and not await self.trouble(method, host, reader, writer):
            return False
        try:
            address = "127.0.0.1" if host.endswith(".example") else host
            server_reader, server_writer = await asyncio.open_connection(address, port)
        except OSError:
            await answer(writer, "502 Bad Gateway", b"nobody there")
            return True
        try:
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\nX-Proxy: yes\r\n\r\n")
                await both(pump(reader, server_writer), pump(server_reader, writer))
                return False
            await self.forward(entry, body, server_reader, server_writer, writer)
            return True
        finally:
            server_writer.close()

    async def trouble(
        self, method: str, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Fail as the host's name says; True where it does not say so."""
        status = re.match(r"status-(\d+)\.", host)
        if status is not None:
            await answer(writer, f"{status[1]} As Asked", b"refused")
            return False
        match host:
            case "hang.example":
                await reader.read(1)
            case "close.example":
                pass
            case "reset.example":
                raw = writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            case "garbage.example":
                writer.write(b"\x00\x01 no HTTP\r\n\r\n")
                await writer.drain()
            case "flood.example":
                writer.write(b"HTTP/1.1 200 OK\r\n")
                while True:
                    writer.write(b"X-Flood: " + b"x" * 1000 + b"\r\n")
                    await writer.drain()
                    await asyncio.sleep(0)
                    if writer.is_closing():
                        break
            case "early.example" if method != "CONNECT":
                writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 3)
                return True
            case _:
                return True
        return False

    async def forward(
        self,
        entry: dict[str, Any],
        body: bytes,
        reader: asyncio.StreamReader,
        server: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
    ) -> None:
        url = urlsplit(entry["target"])
        target = entry["target"].partition(url.netloc)[2] or "/"
        lines = [f"{entry['method']} {target} HTTP/1.1", "Connection: close"]
        lines += [f"{n}: {v}" for n, v in entry["headers"] if not n.lower().startswith("proxy-")]
        server.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        head = await reader.readuntil(b"\r\n\r\n")
        client.write(head)
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if length is not None and entry["method"] != "HEAD":
            client.write(await reader.readexactly(int(length[1])))
        await client.drain()


async def answer(writer: asyncio.StreamWriter, status: str, body: bytes, more: str = "") -> None:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def both(*ways: Any) -> None:
    """Until either way ends."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def serve(host: str, port: int, tls: ssl.SSLContext | None, user: str | None) -> None:
    proxy = Proxy(user)
    listening = await asyncio.start_server(proxy.connection, host, port, ssl=tls, backlog=1024)
    bound = listening.sockets[0].getsockname()
    name = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
    print(f"{'https' if tls else 'http'}://{name}:{bound[1]}", flush=True)
    await listening.serve_forever()


@contextlib.contextmanager
def running(*more: str) -> Iterator[Recording]:
    """Start the proxy, and end it afterwards.

    more: the command line's arguments.
    """
    with started("servers.proxyd", *more) as (process, url):
        yield Recording(process, url)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--cert")
    parser.add_argument("--user")
    options = parser.parse_args()
    tls = None
    if options.cert:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(options.cert)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(options.host, options.port, tls, options.user))


if __name__ == "__main__":
    main()
