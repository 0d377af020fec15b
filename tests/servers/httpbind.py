#!/usr/bin/python3
"""httpbin, in a process of its own, behind a threaded server that keeps connections open.

python3 tests/servers/httpbind.py

It prints its URL, and ends with its standard input.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator


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
    """Start the server as a process, give its URL without a slash at its end, and end it."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig=KILL", sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            assert url.startswith("http://"), f"bin.py printed {url!r} instead of its URL"
            yield url
        finally:
            process.kill()


if __name__ == "__main__":
    serve()
