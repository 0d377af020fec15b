"""Fixtures: real servers, each a throwaway of its own.

| fixture | lives | what |
|---|---|---|
| cluster | the run | a PostgreSQL cluster with nothing preloaded |
| make_cluster | the module | a function that makes further clusters with settings of their own |
| cron_database | the module | a database with pg_cron; once for each way pg_cron runs its jobs |
| database | the test | a new database in `cluster` with the extension, loopback allowed |
| fresh_database | the test | the same as CREATE EXTENSION leaves it |
| worker | the test | a worker process for `database` |
| nginx | the run, its record the test | nginx with the echo module |
| httpd | the run | our server that misbehaves; its URL |
| nowhere | the run, always | fails it where a log has the secret of tests/canary.py |
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

import canary
from cluster import (
    Cluster,
    Database,
    Worker,
    before_removal,
    pg_config,
    stale_installation,
)
from nginx import Nginx

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session", autouse=True)
def nowhere() -> Iterator[None]:
    """No log of a server or a worker, of the whole run, has the secret of tests/canary.py."""
    before_removal.append(canary.look)
    yield
    before_removal.remove(canary.look)
    assert not canary.leaks, "a secret got into a log"


@pytest.fixture(scope="session")
def installed() -> None:
    """What the server runs is what stands in the tree."""
    stale = stale_installation()
    if stale:
        pytest.fail(f"installed and in the tree differ, run `make install`: {', '.join(stale)}")


@pytest.fixture(scope="session")
def cluster(installed: None) -> Iterator[Cluster]:
    with Cluster(max_prepared_transactions=10) as cluster:
        yield cluster
        log = cluster.log.read_text(errors="replace")
        crashes = [line for line in log.splitlines() if "terminated by signal 11" in line]
        assert not crashes, "a backend crashed"


@pytest.fixture(scope="module")
def make_cluster(installed: None) -> Iterator[Callable[..., Cluster]]:
    made: list[Cluster] = []

    def make(**options: object) -> Cluster:
        cluster = Cluster(**options)
        cluster.create()
        made.append(cluster)
        return cluster

    yield make
    for cluster in made:
        cluster.close()


@pytest.fixture(scope="module", params=["off", "on"], ids=["connection", "background_worker"])
def cron_database(request: pytest.FixtureRequest, installed: None) -> Iterator[Database]:
    """A database with pg_cron and the extension, loopback allowed."""
    if not (Path(pg_config("pkglibdir")) / "pg_cron.so").exists():
        pytest.skip("pg_cron is not installed here: make deps")
    with Cluster(
        shared_preload_libraries="pg_cron",
        **{"cron.database_name": "scheduled", "cron.use_background_workers": request.param},
    ) as cluster:
        database = cluster.create_database(name="scheduled")
        database.execute("create extension pg_cron")
        database.execute("select net.allow_network('loopback')")
        yield database
        database.close()


@pytest.fixture
def fresh_database(cluster: Cluster) -> Iterator[Database]:
    database = cluster.create_database()
    yield database
    database.drop()


@pytest.fixture
def database(fresh_database: Database) -> Database:
    fresh_database.execute("select net.allow_network('loopback')")
    return fresh_database


@pytest.fixture
def worker(database: Database) -> Iterator[Worker]:
    with database.worker() as worker:
        yield worker


@pytest.fixture(scope="session")
def running_nginx() -> Iterator[Nginx]:
    with Nginx() as nginx:
        yield nginx


@pytest.fixture
def nginx(running_nginx: Nginx) -> Nginx:
    running_nginx.forget()
    return running_nginx


@pytest.fixture(scope="session")
def httpd() -> Iterator[str]:
    """The URL, without a slash at its end, of tests/httpd.py."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig=TERM", sys.executable, str(HERE / "httpd.py"), "--port", "0"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process:
        url = process.stdout.readline().strip()
        assert url.startswith("http://"), f"httpd.py printed {url!r} instead of its URL"
        yield url.rstrip("/")
        process.terminate()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the server and the workers wrote beside a test that failed."""
    report = yield
    if report.failed:
        for name, value in getattr(item, "funcargs", {}).items():
            if isinstance(value, Database):
                report.sections.append((f"{name}: the server's log", value.cluster.log_tail(40)))
            elif isinstance(value, Worker) and value.log.exists():
                report.sections.append((f"{name}: the worker's log", value.output()[-8000:]))
    return report


@pytest.fixture(scope="module")
def crashing(make_cluster: Any) -> Cluster:
    made: Cluster = make_cluster()
    return made


@pytest.fixture
def stricken(crashing: Cluster) -> Iterator[Database]:
    """A database of a cluster that is made to crash; app.sent says what was committed."""
    database = crashing.create_database()
    database.execute("select net.allow_network('loopback')")
    database.execute("create schema app")
    database.execute("create table app.sent (key text primary key)")
    yield database
    crashing.wait_ready()
    database.drop()
