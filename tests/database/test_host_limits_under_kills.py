"""Limits of a host while workers are killed and stopped: the server counts.

PGNET_LIMIT_SECONDS=600 runs each for ten minutes.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Iterator

import pytest
from psycopg.types.json import Jsonb

from servers import gauge
from servers.cluster import Database, Worker
from servers.gauge import Gauge, excess, most_at_once

SECONDS = float(os.environ.get("PGNET_LIMIT_SECONDS", "20"))
WORKERS = 4
RATE, BURST = 100, 20


@pytest.fixture
def server() -> Iterator[Gauge]:
    with gauge.running() as running:
        yield running


def queue_many(database: Database, server: Gauge) -> None:
    """Requests that take from 1 to 60 ms, as many as the rate allows and more."""
    database.execute(
        "insert into net.http_request_queue (method, url, timeout_milliseconds)"
        " select 'GET', format('%%s/%%s?%%s', %s::text,"
        "     ('{1,2,5,20,40,60}'::int[])[1 + floor(random() * 6)], n), 60000"
        " from generate_series(1, %s) n",
        server.url,
        int(SECONDS * RATE) + 2000,
    )


@pytest.mark.timeout(SECONDS + 120)
def test_workers_that_are_killed(database: Database, server: Gauge) -> None:
    """Of four workers one is killed every second: never a sixth at once, nor one too many."""
    database.execute("select net.configure('rescue_after', '1 s')")
    database.execute("select net.configure('max_losses', '1000')")
    database.execute(
        "select net.configure_host('127.0.0.1', %s)",
        Jsonb({"concurrency": 5, "rate": f"{RATE}/second", "burst": BURST}),
    )
    queue_many(database, server)
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(database.worker()) for _ in range(WORKERS)]
        end = time.monotonic() + SECONDS
        killed = 0
        while time.monotonic() < end:
            time.sleep(1)
            workers[killed % WORKERS].kill()
            workers[killed % WORKERS] = stack.enter_context(database.worker(seen=False))
            killed += 1
        found = server.requests()
        for worker in workers:
            worker.kill()
    assert most_at_once(found) == 5
    assert excess(found, RATE, BURST) <= 0
    assert killed > SECONDS / 3
    # A killed worker's slots are free again.
    assert len(found) > SECONDS * RATE / 5


@pytest.mark.timeout(SECONDS + 120)
def test_workers_that_are_stopped(database: Database, server: Gauge) -> None:
    """Workers stand still for up to 3 s, wherever they are: what they have claimed is too late."""
    rate, burst = RATE, 2 * BURST
    database.execute(
        "select net.configure_host('127.0.0.1', %s)",
        Jsonb({"rate": f"{rate}/second", "burst": burst}),
    )
    queue_many(database, server)
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(database.worker()) for _ in range(WORKERS)]
        end = time.monotonic() + SECONDS
        resume_at: list[tuple[float, Worker]] = []
        while time.monotonic() < end:
            time.sleep(random.uniform(0.05, 0.4))
            running = [w for w in workers if w not in [stopped for _, stopped in resume_at]]
            if len(running) > 1:
                worker = random.choice(running)
                worker.pause()
                resume_at.append((time.monotonic() + random.choice((0.3, 1, 3)), worker))
            for at, worker in list(resume_at):
                if time.monotonic() >= at:
                    worker.resume()
                    resume_at.remove((at, worker))
        found = server.requests()
        for worker in workers:
            worker.kill()
    assert excess(found, rate, burst) <= 0
    assert len(found) > SECONDS * rate / 5
