"""A server that answers by the byte, and a database that asks it."""

from __future__ import annotations

import gzip
import itertools
import re
import socket
import struct
import threading
from collections import Counter
from contextlib import suppress
from typing import Any

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from servers.cluster import Database

OK = b"HTTP/1.1 200 OK\r\n"


GZIP = gzip.compress(b"some words " * 500)


TIMEOUT = 600


POLICIES: dict[str, dict[str, Any]] = {
    # Retries after every error, with every method: only a status ends the request.
    "stubborn": {"errors": "any", "methods": "any", "statuses": [503], "max_attempts": 4},
    # As webhook, in less time
    "hook": {"errors": "any", "methods": "any", "statuses": "any", "accept": ["2xx"],
             "max_attempts": 3},
}  # fmt: skip


class Raw:
    """A server that answers the n-th request for a path with the n-th of its answers, as it is.

    Then it ends the connection, by a reset where the answer ends in RESET, and not at all where it
    ends in SILENCE.
    """

    RESET, SILENCE = b"<reset>", b"<silence>"

    def __init__(self) -> None:
        self.answers: dict[str, list[bytes]] = {}
        self.seen: Counter[str] = Counter()
        self.headers: dict[str, bytes] = {}
        self._paths = itertools.count(1)
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def answering(self, *answers: bytes) -> str:
        """A new URL, with these answers; the last one stays."""
        path = f"/{next(self._paths)}"
        self.answers[path] = list(answers)
        return self.url + path

    def count(self, url: str) -> int:
        return self.seen[url.removeprefix(self.url)]

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                piece = connection.recv(65536)
                if not piece:
                    return
                head += piece
            head, _, body = head.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
            while length and len(body) < int(length[1]):
                body += connection.recv(65536)
            path = head.split(b" ")[1].decode().partition("?")[0]
            self.headers[path] = head
            number, answers = self.seen[path], self.answers.get(path, [whole(b"ok")])
            self.seen[path] += 1
            answer = answers[min(number, len(answers) - 1)]
            connection.sendall(answer.removesuffix(self.RESET).removesuffix(self.SILENCE))
            if answer.endswith(self.RESET):
                threading.Event().wait(0.02)
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            elif answer.endswith(self.SILENCE):
                self._ended.wait(30)

    def close(self) -> None:
        self._ended.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


def whole(body: bytes, *fields: bytes, status: bytes = b"200 OK") -> bytes:
    head = [b"HTTP/1.1 " + status, *fields, b"Content-Length: %d" % len(body), b"", b""]
    return b"\r\n".join(head) + body


def coded(coding: str, body: bytes) -> bytes:
    return whole(body, b"Content-Encoding: " + coding.encode())


def redirect(status: int, to: str, body: bytes = b"gone") -> bytes:
    return whole(body, b"Location: " + to.encode(), status=b"%d Elsewhere" % status)


def prepare(database: Database) -> None:
    database.execute("select net.allow_network('127.0.0.1'), net.deny_host('no.example')")
    for name, settings in POLICIES.items():
        database.execute(
            "select net.configure_retry(%s, %s)",
            name,
            Jsonb({"backoff_milliseconds": 20, "max_backoff_milliseconds": 50, **settings}),
        )
    for name, value in {"max_response_bytes": 1000, "max_header_bytes": 1024}.items():
        database.execute("select net.configure(%s, %s)", name, str(value))


def ask(database: Database, method: str, url: str, **more: Any) -> dict[str, Any]:
    """Send a request, and give its row when it has ended."""
    arguments = {"timeout_milliseconds": 10_000, **more}
    named = "".join(f", {name} => %s" for name in arguments)
    values = [Jsonb(v) if isinstance(v, dict) else v for v in arguments.values()]
    id = database.value(f"select net.http_request(%s, %s{named})", method, url, *values)
    database.execute("select net.wait(%s, '30 s')", id)
    cursor = database.connection.cursor(row_factory=dict_row)
    row = cursor.execute("select * from net.responses where id = %s", (id,)).fetchone()
    assert row is not None
    return row


LONG = "response body exceeds 1000 bytes"
