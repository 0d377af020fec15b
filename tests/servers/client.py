"""Helpers of the wire's tests: a client that waits for its answer, a name server of ours."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import trustme
from gevent.event import AsyncResult

from pgnet.wire.answer import Answer
from pgnet.wire.exchange import Exchange, Handle
from pgnet.wire.guard import EgressRules
from pgnet.wire.message import WireRequest
from pgnet.wire.resolve import Resolver

LOOPBACK = EgressRules.from_json({"allow_networks": ["127.0.0.0/8", "::1/128"]})


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
        **more: Any,
    ) -> tuple[Handle, AsyncResult]:
        ended: AsyncResult = AsyncResult()
        calls: list[Answer] = []

        def done(answer: Answer) -> None:
            calls.append(answer)
            assert len(calls) == 1, "done was called twice"
            ended.set(answer)

        request = WireRequest(method, url, list(headers), body)
        handle = self.exchange.start(request, timeout, done, **more)
        return handle, ended

    def __call__(
        self,
        url: str,
        method: str = "GET",
        headers: Iterable[tuple[str, str]] = (),
        body: bytes | None = None,
        timeout: float = 5.0,
        **more: Any,
    ) -> Answer:
        _, ended = self.begin(url, method, headers, body, timeout, **more)
        answer: Answer = ended.get(timeout=timeout + 5)
        return answer


class Authority:
    """An authority with a certificate for our servers, and one of an unknown authority."""

    def __init__(self, directory: Path) -> None:
        made = trustme.CA()
        self.ca = made.cert_pem.bytes().decode()
        self.certificate = directory / "server.pem"
        leaf = made.issue_cert("127.0.0.1", "127.0.0.2", "two.example")
        leaf.private_key_and_cert_chain_pem.write_to_path(str(self.certificate))
        self.strange = directory / "stranger.pem"
        leaf = trustme.CA().issue_cert("127.0.0.1")
        leaf.private_key_and_cert_chain_pem.write_to_path(str(self.strange))


class NameServer:
    """A DNS server of ours, over UDP, in this process' loop.

    `answers` maps a name to its IPv4 addresses; a name that maps to None is never answered, and
    others do not exist. `asked` is every question (name, type). Records may be kept for `seconds`.
    Each answer takes `delay` seconds.
    """

    def __init__(self) -> None:
        self.answers: dict[str, list[str] | None] = {}
        self.asked: list[tuple[str, int]] = []
        self.seconds = 60
        self.delay = 0.0
        self.socket = gevent.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]
        self.greenlet = gevent.spawn(self.serve)

    def serve(self) -> None:
        while True:
            query, peer = self.socket.recvfrom(4096)
            answer = self.answer(query)
            if answer is not None:
                gevent.sleep(self.delay)
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
            b"\xc0\x0c\x00\x01\x00\x01"
            + self.seconds.to_bytes(4, "big")
            + b"\x00\x04"
            + socket.inet_aton(address)
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
