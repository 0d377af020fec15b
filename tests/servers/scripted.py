"""A server that answers by a script, and a database whose policies send requests to it again."""

from __future__ import annotations

import http.server
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Any

from psycopg.types.json import Jsonb

from servers.cluster import Database

# Seconds that a busy machine may take beyond the time that was asked for.
SLACK = 3.0


@dataclass(frozen=True)
class Reply:
    """An answer: its status and headers, sent after a pause; or `end` instead of one."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    after: float = 0.0
    end: str = ""


RESET, GARBAGE = Reply(end="reset"), Reply(end="garbage")


@dataclass(frozen=True)
class Seen:
    """A request as it came in; `at` in seconds since the epoch."""

    method: str
    at: float
    key: str | None
    body: bytes


class Scripted(http.server.ThreadingHTTPServer):
    """Answers the n-th request for a path with the n-th reply of its script; the last one stays."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, port: int = 0) -> None:
        self.scripts: dict[str, Sequence[Reply]] = {}
        self.record: dict[str, list[Seen]] = defaultdict(list)
        self._paths = count(1)
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def script(self, *replies: Reply | int) -> str:
        """A new URL, with these answers; a number is a status."""
        path = f"/{next(self._paths)}"
        self.scripts[path] = [Reply(r) if isinstance(r, int) else r for r in replies]
        return self.url + path

    def next_reply(self, path: str, seen: Seen) -> Reply:
        with self._lock:
            record = self.record[path]
            record.append(seen)
            script = self.scripts.get(path, [Reply()])
            return script[min(len(record), len(script)) - 1]

    def seen(self, url: str) -> list[Seen]:
        """The requests for a URL, in the order of arrival."""
        return list(self.record["/" + url.split("/", 3)[3]])

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client may go away at any time: that is no error here."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        key = self.headers.get("Idempotency-Key")
        seen = Seen(self.command, time.time(), key, body)
        reply = self.server.next_reply(self.path, seen)
        time.sleep(reply.after)
        if reply.end:
            self.close_connection = True
            if reply.end == "garbage":
                self.wfile.write(b"\x00\x01 this is no HTTP\r\n\r\n")
            else:
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
            return
        self.send_response_only(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = answer

    def log_message(self, *_: object) -> None:
        pass


POLICIES: dict[str, dict[str, Any]] = {
    # as safe and as webhook, in less time
    "quick": {"backoff_milliseconds": 40, "max_backoff_milliseconds": 200},
    "hook": {
        "max_attempts": 4,
        "backoff_milliseconds": 40,
        "max_backoff_milliseconds": 200,
        "statuses": "any",
        "accept": ["2xx"],
        "errors": "any",
        "methods": "any",
    },
    "patient": {"max_attempts": 50, "backoff_milliseconds": 100, "backoff_factor": 1},
    "growing": {
        "max_attempts": 4,
        "backoff_milliseconds": 100,
        "backoff_factor": 3,
        "max_backoff_milliseconds": 500,
    },
    "short": {
        "max_attempts": 1000,
        "backoff_milliseconds": 200,
        "backoff_factor": 1,
        "total_milliseconds": 1500,
    },
    "hasty": {"backoff_milliseconds": 0, "max_retry_after_milliseconds": 600},
    "slow": {"backoff_milliseconds": 86400000, "max_backoff_milliseconds": 86400000,
             "total_milliseconds": 2592000000},
    "deaf": {"backoff_milliseconds": 10, "errors": ["timeout"], "statuses": [404]},
    "found": {"accept": [404], "statuses": [200], "backoff_milliseconds": 10},
    "posts": {"methods": ["POST"], "backoff_milliseconds": 10},
}  # fmt: skip


def send(database: Database, method: str, url: str, **arguments: Any) -> int:
    """Queue a request by net.http_request; gives its id."""
    arguments = {"timeout_milliseconds": 5000, **arguments}
    named = ", ".join(f"{name} => %s" for name in arguments)
    values = [Jsonb(v) if isinstance(v, dict | list) else v for v in arguments.values()]
    id: int = database.value(f"select net.http_request(%s, %s, {named})", method, url, *values)
    return id


def ended(database: Database, id: int, timeout: str = "20 s") -> tuple[str, int | None, int]:
    """Wait for the end of a request: state, status, number of attempts."""
    row = database.row(
        "select state::text, status_code, attempts from net.wait(%s, %s::interval)", id, timeout
    )
    assert row is not None
    return row[0], row[1], row[2]


def attempts(database: Database, id: int) -> list[tuple[Any, ...]]:
    return database.rows(
        "select attempt, state, status_code from net.attempts where request_id = %s"
        " order by attempt",
        id,
    )


def waiting(database: Database, id: int) -> None:
    """Wait until a request waits for its next attempt."""
    database.wait_for(
        "select state::text from net.requests where id = %s", id,
        predicate=lambda state: state == "retrying",
    )  # fmt: skip


# ---- how soon


def gaps(seen: Sequence[Seen]) -> list[float]:
    return [later.at - earlier.at for earlier, later in pairwise(seen)]


# ---- errors


def errors_of(database: Database, id: int) -> list[str | None]:
    rows = database.rows(
        "select error_msg from net.attempts where request_id = %s order by attempt", id
    )
    return [message for (message,) in rows]
