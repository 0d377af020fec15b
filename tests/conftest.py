"""Fixtures that several folders use: real servers, each a throwaway of its own.

| fixture | lives | what |
|---|---|---|
| cluster | the run | a PostgreSQL cluster with nothing preloaded |
| make_cluster | the module | a function that makes further clusters with settings of their own |
| database | the test | a new database in `cluster` with the extension, loopback allowed |
| fresh_database | the test | the same as CREATE EXTENSION leaves it |
| nginx | the run, its record the test | nginx with the echo module: the server that behaves |
| witness | the run, its record the test | our server that misbehaves by path: servers/httpd.py |
| internet | the run | a network namespace that is a whole internet, and a client in it |
| crashing | the module | a cluster that is made to crash |
| stricken | the test | a database in `crashing`, with the table app.sent |
| nowhere | the run, always | fails the run if a log has the secret of servers/canary.py |

The folders' own conftest.py have more.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from servers import canary, httpd, netns
from servers.cluster import (
    Cluster,
    Database,
    Worker,
    before_removal,
    stale_installation,
)
from servers.internet import Internet
from servers.nginx import Nginx


@pytest.fixture(scope="session", autouse=True)
def nowhere() -> Iterator[None]:
    """No log of a server or a worker, in the whole run, holds the secret of servers/canary.py."""
    before_removal.append(canary.look)
    yield
    before_removal.remove(canary.look)
    assert not canary.leaks, "a secret got into a log"


@pytest.fixture(scope="session")
def installed() -> None:
    """The installed extension and package are those of the tree."""
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


@pytest.fixture
def fresh_database(cluster: Cluster) -> Iterator[Database]:
    database = cluster.create_database()
    yield database
    database.drop()


@pytest.fixture
def database(fresh_database: Database) -> Database:
    fresh_database.execute("select net.allow_network('loopback')")
    return fresh_database


@pytest.fixture(scope="session")
def running_nginx() -> Iterator[Nginx]:
    with Nginx() as nginx:
        yield nginx


@pytest.fixture
def nginx(running_nginx: Nginx) -> Nginx:
    running_nginx.forget()
    return running_nginx


@pytest.fixture(scope="session")
def running_httpd() -> Iterator[httpd.Running]:
    with httpd.running() as running:
        yield running


@pytest.fixture
def witness(running_httpd: httpd.Running) -> httpd.Running:
    """Where requests go: what it got is what was sent."""
    running_httpd.reset()
    return running_httpd


@pytest.fixture(scope="session")
def made_internet() -> Iterator[Internet]:
    try:
        with (
            netns.namespace() as place,
            place.program("world") as world,
            place.program("client") as client,
        ):
            made = Internet(place, world, client)
            made.configure("default")
            # no name is remembered, so that each request asks again
            made.configure("forgetful", max_age=0.0)
            yield made
    except netns.LackingRight as lacking:
        pytest.skip(str(lacking))


@pytest.fixture
def internet(made_internet: Internet) -> Internet:
    made_internet.seen()
    return made_internet


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
