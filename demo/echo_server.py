#!/usr/bin/python3
"""A local HTTP server that answers every request with what it received, and keeps a record of it.

    echo_server.py [--port PORT] [--record FILE]

Prints its URL when it is ready. The record has a line for each request: method, path, body.
"""

from __future__ import annotations

import argparse
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    record: IO[str] | None = None
    record_lock = threading.Lock()

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length).decode(errors="replace")
        if self.record:
            with self.record_lock:
                self.record.write(f"{self.command} {self.path} {body}".rstrip() + "\n")
                self.record.flush()
        received = {
            "method": self.command,
            "path": self.path,
            "headers": dict(self.headers.items()),
            "body": body,
        }
        content = json.dumps(received).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = answer

    def log_message(self, format: str, *args: object) -> None:
        """The record is the log."""


def main() -> None:
    parser = argparse.ArgumentParser(description="answers every request with what it received")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--record", type=argparse.FileType("a"), help="a file to write requests to")
    arguments = parser.parse_args()
    Echo.record = arguments.record
    server = ThreadingHTTPServer(("127.0.0.1", arguments.port), Echo)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
