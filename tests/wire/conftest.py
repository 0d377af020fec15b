"""Fixtures of the wire: a client, servers, a name server; no test may start a thread."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from pgnet.wire.exchange import Exchange
from pgnet.wire.guard import EgressRules, Guard
from pgnet.wire.limits import Limits
from servers import httpd
from servers.client import LOOPBACK, Client, NameServer
from servers.keeper import Keeper


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
    # one round of the loop, in which what was cancelled is told so
    gevent.sleep(0)
    assert [exchange.in_flight for exchange in made] == [0] * len(made)


@pytest.fixture
def client(make_client: Callable[..., Client]) -> Client:
    return make_client()


@pytest.fixture
def name_server() -> Iterator[NameServer]:
    made = NameServer()
    yield made
    made.close()


@pytest.fixture
def keeper() -> Iterator[Callable[..., Keeper]]:
    made: list[Keeper] = []

    def make(*answers: bytes | None) -> Keeper:
        made.append(Keeper(list(answers)))
        return made[-1]

    yield make
    for each in made:
        each.server.stop()


@pytest.fixture
def full_backlog() -> Iterator[str]:
    """A URL where a connection is never accepted: the listening socket's queue is full."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        address = listening.getsockname()
        waiting = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(address)
            waiting.append(filler)
        yield f"http://127.0.0.1:{address[1]}/"
        for filler in waiting:
            filler.close()
