"""Responses as a caller reads them, and a server that answers by the letter."""

from __future__ import annotations

import queue
import re
import socket
import threading
from contextlib import suppress
from typing import Any

from psycopg.rows import dict_row

from servers.cluster import Database
from servers.waiting import wait_until

COLLECTORS = ("net.http_get_result", "net.http_collect_response", "net._http_collect_response")


TIMEOUT = re.compile(
    r"Timeout of (?P<limit>\d+) ms reached\. Total time: (?P<total>\d+) ms "
    r"\(DNS time: (?P<dns>\d+) ms, TCP/SSL handshake time: (?P<connect>\d+) ms, "
    r"HTTP Request/Response time: (?P<http>\d+) ms\)"
    r"\. That is (?P<whose>.*)"
)


class Canned:
    """A server that answers each request with the next of the given answers, byte for byte.

    One that is None is held back until `release()`.
    """

    def __init__(self) -> None:
        self.answers: queue.Queue[bytes | None] = queue.Queue()
        self.received: queue.Queue[bytes] = queue.Queue()
        self.released = threading.Event()
        self.ended: queue.Queue[bool] = queue.Queue()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                head = b""
                while b"\r\n\r\n" not in head:
                    piece = connection.recv(65536)
                    if not piece:
                        break
                    head += piece
                self.received.put(head)
                answer = self.answers.get(timeout=60)
                if answer is None:
                    self.released.wait(60)
                    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate"
                connection.sendall(answer)
            self.ended.put(True)

    def close(self) -> None:
        self.released.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


def http(*headers: bytes, body: bytes = b"", status: bytes = b"200 OK") -> bytes:
    head = [b"HTTP/1.1 " + status, *headers, b"Content-Length: %d" % len(body)]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def get(database: Database, url: str, **arguments: Any) -> int:
    named = "".join(f", {name} => %s" for name in arguments)
    request_id: int = database.value(f"select net.http_get(%s{named})", url, *arguments.values())
    return request_id


def outcome(database: Database, request_id: int, timeout: float = 10) -> dict[str, Any]:
    """The response row of a request, when it has come."""

    def fetch() -> dict[str, Any] | None:
        return (
            database.connection.cursor(row_factory=dict_row)
            .execute("select * from net._http_response where id = %s", (request_id,))
            .fetchone()
        )

    found = wait_until(fetch, lambda row: row is not None, f"outcome of {request_id}", timeout)
    assert found is not None
    return found


def result(database: Database, request_id: int | None, function: str = COLLECTORS[0]) -> Any:
    """The result of net.http_get_result: status, message, (status_code, headers, body)."""
    return database.row(
        "select r.status::text, r.message, (r.response).status_code, (r.response).headers,"
        f" (r.response).body from {function}(%s) r",
        request_id,
    )


def in_flight(database: Database, request_id: int) -> None:
    database.wait_for(
        "select state::text from net.requests where id = %s",
        request_id,
        predicate=lambda state: state == "in_flight",
    )
