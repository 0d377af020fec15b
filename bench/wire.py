#!/usr/bin/python3
"""How much of this process's CPU a small GET costs, against a local nginx.

python3 bench/wire.py [--requests N] [--concurrency N] [--profile]
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python"))

from gevent.event import Event

from pgnet.exchange import Answer, Exchange, Limits, prepare
from pgnet.guard import EgressRules, Guard

NGINX = """
daemon off;
worker_processes 1;
pid {dir}/nginx.pid;
error_log {dir}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    keepalive_requests 1000000;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{ return 200 "ok"; }}
    }}
}}
"""


@contextmanager
def nginx() -> Iterator[str]:
    """A local nginx that answers "ok" to everything; yields its URL."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        conf = Path(directory, "nginx.conf")
        conf.write_text(NGINX.format(dir=directory, port=port))
        server = subprocess.Popen(["/usr/sbin/nginx", "-c", str(conf)], stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 10
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    if time.monotonic() > deadline or server.poll() is not None:
                        raise
                    time.sleep(0.01)
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()
            server.wait()


class Run:
    """`total` requests, `concurrency` at a time; each end begins the next."""

    def __init__(self, exchange: Exchange, url: str, total: int) -> None:
        self.exchange = exchange
        self.url = url
        self.left = self.unanswered = total
        self.errors: dict[str, int] = {}
        self.finished = Event()

    def begin(self) -> None:
        self.left -= 1
        self.exchange.start(prepare("GET", self.url, [], None), 10.0, self.done)

    def done(self, answer: Answer) -> None:
        if answer.response is None or answer.response.status_code != 200:
            words = str(answer.error)
            self.errors[words] = self.errors.get(words, 0) + 1
        self.unanswered -= 1
        if self.left > 0:
            self.begin()
        elif self.unanswered == 0:
            self.finished.set()

    def run(self, concurrency: int) -> None:
        for _ in range(min(concurrency, self.left)):
            self.begin()
        self.finished.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--concurrency", type=int, default=200)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    guard = Guard(EgressRules.from_json({"allow_networks": ["127.0.0.0/8"]}))
    with nginx() as url:
        exchange = Exchange(guard, Limits(), concurrency=options.concurrency)
        Run(exchange, url, 2000).run(options.concurrency)
        run = Run(exchange, url, options.requests)
        profile = cProfile.Profile() if options.profile else None
        wall, cpu = time.monotonic(), time.process_time()
        if profile is not None:
            profile.enable()
        run.run(options.concurrency)
        if profile is not None:
            profile.disable()
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
        exchange.close()
        print(
            f"{options.requests} requests, {options.concurrency} at a time: "
            f"{options.requests / wall:.0f}/s, {cpu / options.requests * 1e6:.1f} us CPU each, "
            f"{sum(run.errors.values())} errors {run.errors or ''}, "
            f"{threading.active_count()} thread"
        )
        if profile is not None:
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
