"""A server of ours in a process of its own, and what it tells of itself."""

from __future__ import annotations

import contextlib
import json
import select
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


@contextlib.contextmanager
def started(module: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a module, such as servers.httpd, until the block ends; gives the process and its URL.

    The module prints its URL when it listens. The process is killed when this one ends.
    """
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig=KILL", sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[1],
    )
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], 20)
        url = process.stdout.readline().strip() if ready else ""
        if not url.startswith("http"):
            raise RuntimeError(f"{module} printed {url!r} instead of its URL: {process.poll()}")
        yield process, url
    finally:
        process.kill()
        process.communicate()


class Recording:
    """A server that remembers what it was asked: `url`, `port`, `record()`, `reset()`."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url
        self.port = urlsplit(url).port or 0

    def record(self) -> list[dict[str, Any]]:
        """Every request since the last reset."""
        found: list[dict[str, Any]] = json.loads(self.ask("/_record"))
        return found

    def reset(self) -> None:
        """Forget the requests."""
        self.ask("/_reset")

    def ask(self, path: str) -> bytes:
        tls = ssl._create_unverified_context() if self.url.startswith("https") else None
        direct = urllib.request.ProxyHandler({})
        opener = urllib.request.build_opener(direct, urllib.request.HTTPSHandler(context=tls))
        with opener.open(self.url + path, timeout=10) as answer:
            content: bytes = answer.read()
            return content
