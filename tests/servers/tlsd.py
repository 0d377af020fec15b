"""A TLS server that tells who asked: over what connection, under what name, with what certificate.

    cd tests; python3 -m servers.tlsd --cert PEM [--host ADDRESS] [--port N] [--client-ca PEM]
                          [--lowest VERSION] [--highest VERSION]

It prints its URL when it listens, and answers each GET with a JSON object: `connection` (a number
for each TCP connection), `name` (as in SNI), `certificate` (its first name, or null), `version` of
TLS, and `target`. With `--client-ca` it lets nobody in without a certificate of that authority, and
says so by a TLS alert, as strict servers do. VERSION is such as TLSv1_2.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import socket
import ssl
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from servers.process import started

numbers = itertools.count(1)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    connection: Any

    def setup(self) -> None:
        self.number = next(numbers)
        super().setup()

    def handle(self) -> None:
        try:
            self.connection.do_handshake()
        except (ssl.SSLError, OSError):
            # The alert is sent; a reset by what the client sends meanwhile must not discard it.
            with contextlib.suppress(OSError):
                raw = socket.socket(fileno=self.connection.detach())
                raw.settimeout(10)
                raw.shutdown(socket.SHUT_WR)
                while raw.recv(4096):
                    pass
                raw.close()
            return
        with contextlib.suppress(OSError):
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def do_GET(self) -> None:
        names = (self.connection.getpeercert() or {}).get("subjectAltName", ())
        entry = {
            "connection": self.number,
            "name": getattr(self.connection, "asked_for", None),
            "certificate": next((value for _, value in names), None),
            "version": self.connection.version(),
            "target": self.path,
        }
        body = json.dumps(entry).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Shakes hands in each connection's own thread."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext) -> None:
        self.context = context
        context.sni_callback = self.name_asked
        super().__init__(address, Handler)

    @staticmethod
    def name_asked(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        connection.asked_for = name  # type: ignore[attr-defined]

    def get_request(self) -> tuple[Any, Any]:
        plain, peer = self.socket.accept()
        return (
            self.context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False),
            peer,
        )

    def shutdown_request(self, request: Any) -> None:
        with contextlib.suppress(OSError, ValueError):
            request.close()

    def handle_error(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def running(certificate: Path, *more: str) -> Iterator[str]:
    """Start the server, and end it afterwards; gives its URL.

    certificate: the server's, with its key. more: further arguments of the command line.
    """
    with started("servers.tlsd", "--cert", str(certificate), *more) as (_, url):
        yield url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cert", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--client-ca")
    parser.add_argument("--lowest", default="TLSv1_2")
    parser.add_argument("--highest", default="TLSv1_3")
    options = parser.parse_args()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options.cert)
    context.minimum_version = ssl.TLSVersion[options.lowest]
    context.maximum_version = ssl.TLSVersion[options.highest]
    if options.lowest == "TLSv1":
        # without this OpenSSL itself refuses versions that old
        context.set_ciphers("ALL:@SECLEVEL=0")
    if options.client_ca:
        context.load_verify_locations(options.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    server = Server((options.host, options.port), context)
    print(f"https://{options.host}:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
