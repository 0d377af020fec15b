"""An HTTP server that measures: when each request came, and how many it had at once.

    cd tests; python3 -m servers.gauge

It prints its URL when it listens. `/N…` is answered after N milliseconds, `/hang` never, and
`/at/N…?to=URL` redirects. A request has come when its head was read. It is over when its answer is
written, or when its connection is closed. `/_record` gives `[target, came, over]` for each request,
in seconds of one monotonic clock, `over` null while it lasts; `/_reset` forgets them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import time
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, NamedTuple
from urllib.parse import unquote

from servers.process import Recording, started

_OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s"


class _Connection(asyncio.Protocol):
    def __init__(self, record: list[list[Any]]) -> None:
        self._record = record
        self._buffer = b""
        self._open: list[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._over()

    def data_received(self, data: bytes) -> None:
        came = time.monotonic()
        self._buffer += data
        if b"\r\n\r\n" not in self._buffer:
            return
        target = self._buffer.split(b" ", 2)[1].decode()
        self._buffer = b""
        if target.startswith("/_"):
            if target == "/_reset":
                self._record.clear()
            body = json.dumps(self._record).encode()
            self._transport.write(_OK % (len(body), body))
            return
        self._open = [target, came, None]
        self._record.append(self._open)
        redirect = re.search(r"\?to=(.*)", target)
        if redirect is not None:
            self._over()
            location = unquote(redirect[1]).encode()
            self._transport.write(
                b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: %s\r\n\r\n" % location
            )
            return
        wait = re.match(r"/([0-9]+)", target)
        if wait is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(int(wait[1]) / 1000, self._answer)

    def _answer(self) -> None:
        # Before it is written: whoever reads the answer may send the next request at once.
        self._over()
        self._transport.write(_OK % (2, b"ok"))

    def _over(self) -> None:
        if self._open is not None and self._open[2] is None:
            self._open[2] = time.monotonic()
        self._open = None


class Request(NamedTuple):
    """A request as the server saw it; over is infinity while it lasts."""

    target: str
    came: float
    over: float


class Gauge(Recording):
    """The server in a process of its own."""

    @property
    def authority(self) -> str:
        """The host as it stands in URLs."""
        return self.url.partition("://")[2]

    def requests(self) -> list[Request]:
        """All requests in the order of arrival."""
        found = [
            Request(target, came, math.inf if over is None else over)
            for target, came, over in json.loads(self.ask("/_record"))
        ]
        return sorted(found, key=lambda request: request.came)


def most_at_once(requests: list[Request]) -> int:
    """How many requests there were at once at the most."""
    changes = [(request.came, 1) for request in requests]
    changes += [(request.over, -1) for request in requests]
    return max(accumulate(step for _, step in sorted(changes)), default=0)


def excess(requests: list[Request], rate: float, burst: int) -> float:
    """How many requests too many there were in the worst of all windows; none: 0 or less.

    rate: per second. In a window of t seconds there may be burst + rate * t. A window with the most
    for its length begins and ends with a request. That from request i to j has j - i + 1 of them:
    so it is the rise of j - rate * t_j over the lowest of the values before.
    """
    worst, lowest = -float("inf"), float("inf")
    for number, request in enumerate(requests):
        level = number - rate * request.came
        lowest = min(lowest, level)
        worst = max(worst, level - lowest + 1 - burst)
    return worst


@contextlib.contextmanager
def running() -> Iterator[Gauge]:
    """Start the server, and end it afterwards."""
    with started("servers.gauge") as (process, url):
        yield Gauge(process, url)


async def _serve() -> None:
    record: list[list[Any]] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(record), "127.0.0.1", 0, backlog=1000)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
