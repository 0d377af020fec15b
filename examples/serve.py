"""What the servers of the examples share: HTTP, and a line for each thing that they are asked.

They listen on 127.0.0.1 only, and keep nothing when they end.
"""

from __future__ import annotations

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """One connection; `serve` answers a request of any method."""

    protocol_version = "HTTP/1.1"
    # Headers and content are two writes: the second one must not wait for the client's ACK.
    disable_nagle_algorithm = True

    def serve(self) -> None:
        raise NotImplementedError

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.content = self.rfile.read(length)
        self.serve()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    def json(self) -> Any:
        """The content of the request, which is JSON."""
        return json.loads(self.content)

    def say(self, line: str) -> None:
        print(line, flush=True)

    def answer(self, status: int, content: object = None, **headers: str) -> None:
        """Answer with bytes, a text, or anything else as JSON; `Retry_After` is Retry-After."""
        if isinstance(content, bytes):
            data, kind = content, "application/octet-stream"
        elif isinstance(content, str):
            data, kind = content.encode(), "text/plain"
        else:
            data, kind = json.dumps(content).encode(), "application/json"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """What is worth a line is said by `say`."""


def run(handler: type[Handler]) -> None:
    """Listen until the process is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8080)
    server = ThreadingHTTPServer(("127.0.0.1", parser.parse_args().port), handler)
    print(f"listening on http://localhost:{server.server_port}", flush=True)
    server.serve_forever()
