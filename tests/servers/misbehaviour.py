"""Servers that break the rules of HTTP, TLS and good manners, each in a way with a name.

    with running() as servers:
        servers.url(way)    # what to ask for
        way.outcome         # what must come of it, by the limits below

The ways stand in ways_http1.py and ways_http2.py. A way is chosen by the path of the request, or,
where there is no request yet, by a port of its own.
The servers count: which connections were used for which ways, and which are still open.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import re
import select
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme

from servers import ways_http1, ways_http2  # noqa: F401
from servers.way import FINE, WAYS, Peer, Way
from servers.ways_http1 import bombs


class Servers:
    """The servers that listen, and what they have seen; commands are lines, answers are JSON."""

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
        """The requests for which these connections were used afterwards."""
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
        ["setpriv", "--pdeathsig=KILL", sys.executable, "-m", "servers.misbehaviour"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[1],
    )
    try:
        yield Running(process)
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    # asyncio logs clients that have gone: here they are meant to go.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    asyncio.run(Servers().run())
