"""A server that judges an order: paths are /KEY/NUMBER, and keys are served one at a time."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator


class Ordered:
    """Notes what breaks the order of a key.

    fails: whether a request is answered with 500, by key, number, and how often it came before.
    seen: the numbers of each key, as they came. faults: what was out of order, or at the same time.
    """

    def __init__(self, fails: Callable[[str, int, int], bool], seconds: float = 0.002) -> None:
        self._fails = fails
        self._seconds = seconds
        self._in_flight: defaultdict[str, int] = defaultdict(int)
        self._times: defaultdict[tuple[str, int], int] = defaultdict(int)
        self.seen: defaultdict[str, list[int]] = defaultdict(list)
        self.faults: list[str] = []
        self.most_at_once = 0
        self.url = ""

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                if "content-length: " in head.lower():
                    length = int(head.lower().split("content-length: ")[1].split("\r")[0])
                    await reader.readexactly(length)
                key, number = head.split()[1].lstrip("/").split("/")
                # What a worker that was killed has left in the socket is nobody's request any more.
                for _ in range(3):
                    await asyncio.sleep(0)
                if reader.at_eof():
                    break
                status = await self._serve(key, int(number), reader)
                writer.write(f"HTTP/1.1 {status} -\r\nContent-Length: 0\r\n\r\n".encode())
                await writer.drain()
        writer.close()

    async def _serve(self, key: str, number: int, reader: asyncio.StreamReader) -> int:
        seen = self.seen[key]
        if self._in_flight[key]:
            self.faults.append(f"{key}/{number} came while {key}/{seen[-1]} was there")
        if seen and number < seen[-1]:
            self.faults.append(f"{key}/{number} came after {key}/{seen[-1]}")
        seen.append(number)
        times = self._times[key, number]
        self._times[key, number] += 1
        self._in_flight[key] += 1
        self.most_at_once = max(self.most_at_once, sum(self._in_flight.values()))
        try:
            # It ends at once where the client goes away.
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(reader.read(1), self._seconds * random.uniform(0.2, 2))
                raise ConnectionResetError
        finally:
            self._in_flight[key] -= 1
        return 500 if self._fails(key, number, times) else 200


@contextlib.contextmanager
def serving(server: Ordered) -> Iterator[Ordered]:
    """Run it in a thread."""
    begun = threading.Event()
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = []

    async def main() -> None:
        listening = await asyncio.start_server(server.connection, "127.0.0.1", 0, backlog=1000)
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        task = asyncio.current_task()
        assert task is not None
        running.append((asyncio.get_running_loop(), task))
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await listening.serve_forever()

    # asyncio.run ends all connections, and closes what is open.
    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    begun.wait(10)
    try:
        yield server
    finally:
        loop, task = running[0]
        loop.call_soon_threadsafe(task.cancel)
        thread.join(10)
