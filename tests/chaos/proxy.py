"""The way to PostgreSQL for some workers and clients: it breaks when it is told to.

It reads the messages of PostgreSQL's protocol as they pass, so that it knows what a statement does:
`claim` and `record` are a worker's, `call` makes requests, `commit` ends a transaction.

| break | what happens to the next statement of a kind |
|---|---|
| before | it never gets to the server, and the connection is reset |
| after | it is done and committed, its answer never gets back, and the connection is reset |
| killed | it is done and committed, and who gets the answer is killed before it |
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any

# A statement does what these words in it say.
_WORDS = {
    b"pgnet.claim_requests": "claim",
    b"pgnet.record_outcomes": "record",
    b"insert into app.sent": "call",
    b"COMMIT": "commit",
}
_WAYS = ("before", "after", "killed")


class Proxy:
    """Listens on a port of 127.0.0.1 in a thread of its own.

    killer: kills who holds the connection whose far port it is given.
    """

    def __init__(self, target_port: int, killer: Callable[[int], bool]) -> None:
        self._target_port = target_port
        self._killer = killer
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._ways: set[_Way] = set()
        self._open = asyncio.Event()
        self._armed: tuple[str, str, threading.Event] | None = None
        self._lock = threading.Lock()
        # One break at a time.
        self._one = threading.Lock()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait(10)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._open.set()
        server = self._loop.run_until_complete(
            asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=100)
        )
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        self._loop.run_forever()

    def close(self) -> None:
        self._in_loop(self._cut_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _in_loop(self, work: Coroutine[Any, Any, int]) -> int:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    # ---- faults

    def cut(self) -> int:
        """Reset every connection; gives how many there were."""
        return self._in_loop(self._cut_all())

    async def _cut_all(self) -> int:
        ways = list(self._ways)
        for way in ways:
            way.cut()
        return len(ways)

    def hold(self, held: bool) -> None:
        """Pass nothing on, new connections included, and say nothing; or go on."""
        self._loop.call_soon_threadsafe(self._open.clear if held else self._open.set)

    def break_at(self, when: str, kind: str, seconds: float) -> bool:
        """Break at the next statement of the kind; whether one came within the time."""
        assert when in _WAYS
        done = threading.Event()
        with self._one:
            with self._lock:
                self._armed = (when, kind, done)
            fired = done.wait(seconds)
            with self._lock:
                self._armed = None
        return fired

    def take(self, kinds: frozenset[str]) -> str | None:
        """The break that is to be made at a statement of these kinds; given only once."""
        with self._lock:
            if self._armed is None or self._armed[1] not in kinds or self._armed[2].is_set():
                return None
            self._armed[2].set()
            return self._armed[0]

    # ---- connections

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._open.wait()
        try:
            server = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.close()
            return
        way = _Way(self, writer, server[1], self._open, self._killer)
        self._ways.add(way)
        pumps = [
            asyncio.ensure_future(way.forwards(reader)),
            asyncio.ensure_future(way.backwards(server[0])),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._ways.discard(way)
            for end in (writer, server[1]):
                end.close()


class _Way:
    """One connection through the proxy."""

    def __init__(
        self,
        proxy: Proxy,
        client: asyncio.StreamWriter,
        server: asyncio.StreamWriter,
        is_open: asyncio.Event,
        killer: Callable[[int], bool],
    ) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._open = is_open
        self._killer = killer
        # by the name of a prepared statement
        self._kinds: dict[bytes, frozenset[str]] = {}
        self._breaking: str | None = None

    def cut(self) -> None:
        for end in (self._client, self._server):
            end.transport.abort()

    async def forwards(self, reader: asyncio.StreamReader) -> None:
        """From the client to the server."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            # The first message has no type.
            head = await reader.readexactly(4)
            rest = await reader.readexactly(struct.unpack(">i", head)[0] - 4)
            self._server.write(head + rest)
            while True:
                head = await reader.readexactly(5)
                body = await reader.readexactly(struct.unpack(">i", head[1:])[0] - 4)
                await self._open.wait()
                kinds = self._kinds_of(head[:1], body)
                if kinds and self._breaking is None:
                    self._breaking = self._proxy.take(kinds)
                if self._breaking == "before":
                    self.cut()
                    return
                self._server.write(head + body)
                await self._server.drain()

    def _kinds_of(self, tag: bytes, body: bytes) -> frozenset[str]:
        """The kinds of statements that are in a message."""
        if tag == b"P":
            name, _, query = body.partition(b"\0")
            self._kinds[name] = frozenset(kind for word, kind in _WORDS.items() if word in query)
        elif tag == b"B":
            return self._kinds.get(body.split(b"\0", 2)[1], frozenset())
        elif tag == b"Q":
            return frozenset(kind for word, kind in _WORDS.items() if word in body)
        return frozenset()

    async def backwards(self, reader: asyncio.StreamReader) -> None:
        """From the server to the client."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readexactly(5)
                body = await reader.readexactly(struct.unpack(">i", head[1:])[0] - 4)
                await self._open.wait()
                if self._breaking is None:
                    self._client.write(head + body)
                    await self._client.drain()
                elif head[:1] == b"Z":
                    # The statement has run: its answer, which came before this, was kept back.
                    if self._breaking == "killed":
                        self._killer(self._client.get_extra_info("peername")[1])
                    self.cut()
                    return
