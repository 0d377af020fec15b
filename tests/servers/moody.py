"""A server that answers, refuses connections, hangs or turns requests away, as it is told."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Moody:
    """A server at one port that stays the same.

    mood: a status to answer with, or "hang". headers: sent with each answer. delay: seconds before
    an answer. arrivals: when each request came, and its target. most: how many were there at once.
    """

    def __init__(self) -> None:
        self.mood: int | str = 200
        self.headers: dict[str, str] = {}
        self.delay = 0.0
        self.arrivals: list[tuple[float, str]] = []
        self.most = 0
        self._here = 0
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self._connections: set[socket.socket] = set()
        self.port = 0
        self.up()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def targets(self) -> list[str]:
        return [target for _at, target in self.arrivals]

    def since(self, at: float) -> list[float]:
        """When requests came since then, in seconds from then on."""
        return [arrival - at for arrival, _target in self.arrivals if arrival >= at]

    def up(self) -> None:
        """Accept connections."""
        moody = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                moody._connections.add(self.request)
                super().setup()

            def do_GET(self) -> None:
                moody._answer(self)

            do_POST = do_GET

            def log_message(self, *arguments: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 1024
            daemon_threads = True

            def handle_error(self, *arguments: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def down(self) -> None:
        """Refuse connections, and break those that are there."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._connections.clear()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        with self._lock:
            self.arrivals.append((time.time(), handler.path))
            self._here += 1
            self.most = max(self.most, self._here)
            mood, headers = self.mood, dict(self.headers)
        try:
            time.sleep(self.delay)
            while mood == "hang" and self.mood == "hang" and self._server is not None:
                time.sleep(0.02)
            # send_response would add a second Date.
            handler.send_response_only(mood if isinstance(mood, int) else 200)
            for name, value in {"Content-Length": "2", **headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(b"ok")
        finally:
            with self._lock:
                self._here -= 1
