#!/usr/bin/python3
"""How much of this process's CPU a small GET costs, against a local nginx.

python3 bench/wire.py [--requests N] [--concurrency N] [--rounds N] [--profile]

Beside it, in turns, libcurl alone: the same handles in an epoll loop, with nothing else around it.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import select
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

import pycurl
from gevent.event import Event

from pgnet.wire.answer import Answer
from pgnet.wire.exchange import Exchange
from pgnet.wire.guard import EgressRules, Guard
from pgnet.wire.limits import Limits
from pgnet.wire.message import WireRequest

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
        self.exchange.start(WireRequest("GET", self.url, [], None), 10.0, self.done)

    def done(self, answer: Answer) -> None:
        if answer.status_code != 200 or answer.content != b"ok":
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


class Bare:
    """As many requests by libcurl alone: what any client over it has to pay."""

    def __init__(self, url: str, concurrency: int) -> None:
        self.multi = multi = pycurl.CurlMulti()
        multi.setopt(pycurl.M_SOCKETFUNCTION, self.on_socket)
        multi.setopt(pycurl.M_TIMERFUNCTION, self.on_timer)
        multi.setopt(pycurl.M_MAXCONNECTS, concurrency)
        self.epoll = select.epoll()
        # For each socket the readiness that is waited for.
        self.known: dict[int, int] = {}
        self.kicked = False
        self.handles = [self.handle(url) for _ in range(concurrency)]

    @staticmethod
    def handle(url: str) -> pycurl.Curl:
        made = pycurl.Curl()
        made.setopt(pycurl.URL, url)
        made.setopt(pycurl.PROXY, "")
        made.setopt(pycurl.WRITEFUNCTION, lambda chunk: None)
        made.setopt(pycurl.HEADERFUNCTION, lambda line: None)
        return made

    def on_socket(self, what: int, fd: int, _multi: object, _data: object) -> None:
        if what == pycurl.POLL_REMOVE or self.known.get(fd) == what:
            return
        mask = select.EPOLLOUT if what & pycurl.POLL_OUT else select.EPOLLIN
        if fd in self.known:
            self.epoll.modify(fd, mask)
        else:
            self.epoll.register(fd, mask)
        self.known[fd] = what

    def on_timer(self, milliseconds: int) -> None:
        self.kicked = self.kicked or milliseconds == 0

    def run(self, total: int) -> None:
        multi = self.multi
        left = total - len(self.handles)
        for handle in self.handles:
            multi.add_handle(handle)
        unanswered = total
        while unanswered:
            if self.kicked:
                self.kicked = False
                multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
            for fd, event in self.epoll.poll(0 if self.kicked else 0.01):
                out = event & select.EPOLLOUT
                multi.socket_action(fd, pycurl.CSELECT_OUT if out else pycurl.CSELECT_IN)
            more = 1
            while more:
                more, good, bad = multi.info_read()
                for handle in good:
                    unanswered -= 1
                    multi.remove_handle(handle)
                    if left > 0:
                        left -= 1
                        multi.add_handle(handle)
                if bad:
                    raise RuntimeError(f"libcurl alone: {bad[0]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--concurrency", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    guard = Guard(EgressRules.from_json({"allow_networks": ["127.0.0.0/8"]}))
    profile = cProfile.Profile() if options.profile else None
    ours, alone = [], []
    with nginx() as url:
        exchange = Exchange(guard, Limits(), concurrency=options.concurrency)
        bare = Bare(url, options.concurrency)
        Run(exchange, url, 2000).run(options.concurrency)
        bare.run(2000)
        for _ in range(options.rounds):
            cpu = time.process_time()
            bare.run(options.requests)
            alone.append((time.process_time() - cpu) / options.requests * 1e6)
            run = Run(exchange, url, options.requests)
            wall, cpu = time.monotonic(), time.process_time()
            if profile is not None:
                profile.enable()
            run.run(options.concurrency)
            if profile is not None:
                profile.disable()
            wall, cpu = time.monotonic() - wall, time.process_time() - cpu
            ours.append(cpu / options.requests * 1e6)
            print(
                f"{options.requests} requests, {options.concurrency} at a time: "
                f"{options.requests / wall:.0f}/s, {ours[-1]:.1f} us CPU each, "
                f"libcurl alone {alone[-1]:.1f} us, ratio {ours[-1] / alone[-1]:.2f}; "
                f"{sum(run.errors.values())} errors {run.errors or ''}, "
                f"{threading.active_count()} thread"
            )
        exchange.close()
    print(
        f"the best of {options.rounds}: {min(ours):.1f} us, libcurl alone {min(alone):.1f} us, "
        f"ratio {min(ours) / min(alone):.2f}"
    )
    if profile is not None:
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
