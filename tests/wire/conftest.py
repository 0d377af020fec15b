from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import AsyncResult

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpd

from pgnet.exchange import Answer, Exchange, Limits, prepare
from pgnet.guard import EgressRules, Guard
from pgnet.resolve import Resolver

LOOPBACK = EgressRules.from_json({"allow_networks": ["127.0.0.0/8", "::1/128"]})


@pytest.fixture(scope="session")
def server() -> Iterator[httpd.Running]:
    with httpd.running() as running:
        yield running


@pytest.fixture(scope="session")
def other() -> Iterator[httpd.Running]:
    """Another origin."""
    with httpd.running("127.0.0.2") as running:
        yield running


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    yield
    threads = threading.active_count(), len(list(Path("/proc/self/task").iterdir()))
    assert threads == (1, 1), "a thread was born"


class Client:
    """An Exchange, asked one request after another."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange

    def begin(
        self,
        url: str,
        method: str = "GET",
        headers: Iterable[tuple[str, str]] = (),
        body: bytes | None = None,
        timeout: float = 5.0,
    ) -> tuple[Any, AsyncResult]:
        ended: AsyncResult = AsyncResult()
        calls: list[Answer] = []

        def done(answer: Answer) -> None:
            calls.append(answer)
            assert len(calls) == 1, "done was called twice"
            ended.set(answer)

        handle = self.exchange.start(prepare(method, url, headers, body), timeout, done)
        return handle, ended

    def __call__(self, url: str, *args: Any, timeout: float = 5.0, **kwargs: Any) -> Answer:
        _, ended = self.begin(url, *args, timeout=timeout, **kwargs)
        answer: Answer = ended.get(timeout=timeout + 5)
        return answer


@pytest.fixture
def make_client() -> Iterator[Callable[..., Client]]:
    made: list[Exchange] = []

    def make(rules: EgressRules = LOOPBACK, limits: Limits | None = None, **more: Any) -> Client:
        exchange = Exchange(Guard(rules), limits, **more)
        made.append(exchange)
        return Client(exchange)

    yield make
    for exchange in made:
        exchange.close()
        assert exchange.in_flight == 0 or gevent.sleep(0) is None
    gevent.sleep(0)


@pytest.fixture
def client(make_client: Callable[..., Client]) -> Client:
    return make_client()


class NameServer:
    """A DNS server of ours, over UDP, in this process' loop.

    `answers` maps a name to its IPv4 addresses; a name that maps to None is never answered, and
    others do not exist. `asked` is every question (name, type).
    """

    def __init__(self) -> None:
        self.answers: dict[str, list[str] | None] = {}
        self.asked: list[tuple[str, int]] = []
        self.socket = gevent.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]
        self.greenlet = gevent.spawn(self.serve)

    def serve(self) -> None:
        while True:
            query, peer = self.socket.recvfrom(4096)
            answer = self.answer(query)
            if answer is not None:
                self.socket.sendto(answer, peer)

    def answer(self, query: bytes) -> bytes | None:
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode())
            at += query[at] + 1
        name, kind = ".".join(labels).lower(), int.from_bytes(query[at + 1 : at + 3], "big")
        self.asked.append((name, kind))
        known = self.answers.get(name, [])
        if known is None:
            return None
        question = query[12 : at + 5]
        records = b"".join(
            b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04" + socket.inet_aton(address)
            for address in known
            if kind == 1
        )
        count = len(records) // 16
        flags = b"\x81\x80" if name in self.answers else b"\x81\x83"
        counts = b"\x00\x01" + count.to_bytes(2, "big") + b"\x00\x00\x00\x00"
        return query[:2] + flags + counts + question + records

    def resolver(self, **more: Any) -> Resolver:
        return Resolver(servers=["127.0.0.1"], port=self.port, **more)

    def close(self) -> None:
        self.greenlet.kill()
        self.socket.close()


@pytest.fixture
def name_server() -> Iterator[NameServer]:
    made = NameServer()
    yield made
    made.close()
