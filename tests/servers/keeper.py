"""A server in this process that answers one connection after another, by the byte."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import gevent.server


class Keeper:
    """A server of one connection after another, told in this process what to do with each request.

    `answers` are what the requests of a connection get, in order; None closes it without a byte.
    `arrived` is every request, as (number of the connection, method, body).
    """

    def __init__(self, answers: list[bytes | None]) -> None:
        self.answers = answers
        self.arrived: list[tuple[int, str, bytes]] = []
        self.connections: list[Any] = []
        self.server = gevent.server.StreamServer(("127.0.0.1", 0), self.serve)
        self.server.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def serve(self, connection: Any, _: Any) -> None:
        number = len(self.connections)
        self.connections.append(connection)
        with connection, connection.makefile("rb") as reader:
            for answer in self.answers:
                line = reader.readline()
                if not line:
                    return
                length = 0
                while (field := reader.readline()) not in (b"\r\n", b""):
                    name, _, value = field.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                body = reader.read(length)
                self.arrived.append((number, line.split()[0].decode(), body))
                if answer is None:
                    return
                connection.sendall(answer)
            with suppress(ConnectionResetError):
                reader.read()
