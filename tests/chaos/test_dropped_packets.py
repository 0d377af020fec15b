"""A worker whose packets are dropped, both ways and without a word: others take over."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from chaos.link import Link
from chaos.tally import Tally
from chaos.workers import ProcessWorker
from servers import httpd
from servers.waiting import wait_until

# Both sides set these: 10 s of silence, then three questions 5 s apart.
KEEPALIVE = 25
RESCUE_AFTER, LOOK = 3, 2


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    try:
        made = Link()
    except (OSError, RuntimeError, subprocess.SubprocessError):
        pytest.skip("no network namespace can be made here")
    yield made
    made.close()


def test_another_worker_takes_over(link: Link, make_cluster: Any) -> None:
    """Within the time of the keepalives; and what the first one had begun it does not record."""
    cluster = make_cluster(listen_addresses=f"127.0.0.1,{link.address}")
    with (cluster.data / "pg_hba.conf").open("a") as rules:
        rules.write(f"host all all {link.address}/24 trust\n")
    with cluster.connect() as connection:
        connection.execute("select pg_reload_conf()")
    database = cluster.create_database()
    dsn = f"host={link.address} port={cluster.port} dbname={database.name} user=postgres"
    far = ProcessWorker("behind the cable", dsn, cluster.directory, Tally(), prefix=link.command())
    with httpd.running(link.address) as witness:
        database.execute("select net.allow_network(%s)", f"{link.address}/32")
        far.start()
        try:
            database.wait_for("select count(*) = 1 from pgnet.worker", timeout=20)
            database.execute(
                "select net.http_get(%s || n, timeout_milliseconds => 120000)"
                " from generate_series(1, 10) n",
                f"{witness.url}/delay/60?",
            )
            wait_until(lambda: len(witness.record()), (10).__eq__, "the requests are seen")
            with database.worker("--grace", "0"):
                link.pull()
                started = time.monotonic()
                wait_until(
                    lambda: len(witness.record()),
                    (20).__eq__,
                    "the requests are seen again",
                    timeout=KEEPALIVE + RESCUE_AFTER + LOOK + 5,
                )
                took = time.monotonic() - started
                print(f"taken over after {took:.1f} s")
                assert took <= KEEPALIVE + RESCUE_AFTER + LOOK + 1
            rows = database.rows("select attempt, error_msg from pgnet.attempt where attempt = 1")
            assert rows == [(1, "The worker was lost.")] * 10
        finally:
            link.plug()
            far.stop()
            database.close()
    assert far.findings == []
