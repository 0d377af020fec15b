"""httpbin, in a process of its own, behind a threaded server that keeps connections open.

    cd tests; python3 -m servers.httpbind

It prints its URL, and ends with its standard input.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

from servers.process import started


def serve() -> None:
    # Only the process that serves needs them.
    from httpbin import app  # type: ignore[import-untyped]
    from waitress.server import create_server  # type: ignore[import-untyped]

    # send_bytes: what drips shall drip.
    server = create_server(
        app, host="127.0.0.1", port=0, threads=32, connection_limit=1000, send_bytes=1
    )
    threading.Thread(target=server.run, daemon=True).start()
    print(f"http://127.0.0.1:{server.effective_port}", flush=True)
    sys.stdin.read()


@contextlib.contextmanager
def running() -> Iterator[str]:
    """Start the server, give its URL without a slash at its end, and end it."""
    with started("servers.httpbind") as (_, url):
        yield url


if __name__ == "__main__":
    serve()
