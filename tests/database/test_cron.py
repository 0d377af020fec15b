"""The worker under a real pg_cron: by the minute, over a connection and in a background worker.

In background workers pg_cron runs several jobs at a time from 1.5 on.

pg_cron waits for the minute, so both clusters wait for it together, and each step for both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from servers.cluster import Cluster, Database, pg_config
from servers.httpd import Running
from servers.waiting import wait_until

# The longest time to the next minute, and some for pg_cron and the worker to start.
A_MINUTE = 65.0


@dataclass
class Scheduled:
    """A cluster with pg_cron, and three databases of it."""

    cluster: Cluster
    # where pg_cron keeps its jobs: a worker by net.schedule_worker()
    home: Database
    # a worker by the hint's line
    second: Database
    # a drain each minute
    drained: Database

    def worker_pid(self, database: Database) -> int | None:
        pid: int | None = database.value(
            "select max(w.pid) from pgnet.worker w join pg_stat_activity a"
            " on a.pid = w.pid and a.backend_start = w.backend_start"
        )
        return pid

    def close(self) -> None:
        for database in (self.home, self.second, self.drained):
            database.close()
        self.cluster.close()

    def runs(self) -> list[tuple[Any, ...]]:
        return self.home.rows(
            "select database, command, status, return_message from cron.job_run_details"
        )


def make(use_background_workers: str) -> Scheduled:
    cluster = Cluster(
        shared_preload_libraries="pg_cron",
        max_worker_processes=20,
        **{
            "cron.database_name": "home",
            "cron.use_background_workers": use_background_workers,
            # With background workers it is 5 by default, and each database takes two.
            "cron.max_running_jobs": 16,
        },
    )
    cluster.create()
    databases = [cluster.create_database(name=name) for name in ("home", "second", "drained")]
    for database in databases:
        database.execute("select net.allow_network('loopback')")
    return Scheduled(cluster, *databases)


@pytest.fixture(scope="module")
def scheduled(installed: None) -> Iterator[list[Scheduled]]:
    """A cluster whose pg_cron connects over localhost, and one that uses background workers."""
    if not (Path(pg_config("pkglibdir")) / "pg_cron.so").exists():
        pytest.skip("pg_cron is not installed here: make deps")
    made = [make("off"), make("on")] if version() >= (1, 5) else [make("off")]
    yield made
    for one in made:
        one.close()


def version() -> tuple[int, int]:
    """The version of pg_cron that is installed."""
    control = Path(pg_config("sharedir")) / "extension" / "pg_cron.control"
    match = re.search(r"default_version = '(\d+)\.(\d+)", control.read_text())
    assert match is not None
    return int(match[1]), int(match[2])


def outcome(database: Database) -> str | None:
    """The contents of the responses, in order."""
    found: str | None = database.value(
        "select string_agg(content, ',' order by id) from net._http_response"
    )
    return found


def wait_for_all(
    scheduled: list[Scheduled], what: str, fetch: Any, predicate: Any, timeout: float
) -> None:
    wait_until(
        lambda: [(fetch(one), one.runs()) for one in scheduled],
        lambda found: all(predicate(value) for value, _runs in found),
        what,
        timeout,
        0.05,
    )


def wait_for_another(one: Scheduled, database: Database, pid: int | None) -> None:
    """Wait until the worker of this pid has ended; pg_cron may have started the next already."""
    wait_until(
        lambda: one.worker_pid(database), lambda found: found != pid, "the worker has ended", 2
    )


def test_what_is_missing_is_said(scheduled: list[Scheduled], cluster: Cluster) -> None:
    bare = cluster.create_database()
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as caught:
        bare.execute("select net.schedule_worker()")
    assert "shared_preload_libraries" in str(caught.value.diag.message_hint)
    assert bare.value("select net.unschedule_worker()") is False
    bare.drop()

    home = scheduled[0].home
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as caught:
        home.execute("select net.schedule_worker()")
    assert "create extension pg_cron" in str(caught.value.diag.message_hint)


@pytest.mark.parametrize("use_background_workers", ["off", "on"])
def test_what_an_old_pg_cron_cannot_do_is_said(
    scheduled: list[Scheduled], use_background_workers: str
) -> None:
    one = make(use_background_workers)
    is_well = use_background_workers == "off" or version() >= (1, 5)
    with closing(one.home.connect()) as connection:
        connection.execute("create extension pg_cron")
        said: list[str] = []
        connection.add_notice_handler(lambda d: said.append(f"{d.severity} {d.message_primary}"))
        connection.execute("select net.schedule_worker()")
        assert any(words.startswith("WARNING pg_cron 1.") for words in said) is not is_well
        [(ok,)] = connection.execute("select ok from net.check() where item = 'pg_cron'").fetchall()
        assert ok is is_well
    one.close()


def schedule_all(one: Scheduled) -> None:
    """Schedule a worker for two databases, and drains for the first and the third."""
    one.home.execute("create extension pg_cron")
    job = one.home.value("select net.schedule_worker()")
    assert one.home.rows(
        "select schedule, command, database from cron.job where jobid = %s", job
    ) == [("* * * * *", "call net.work()", "home")]
    # said twice it is one job
    assert one.home.value("select net.schedule_worker()") == job

    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as caught:
        one.second.execute("select net.schedule_worker()")
    hint = str(caught.value.diag.message_hint)
    assert "home" in str(caught.value.diag.message_primary)
    line = hint[hint.index("select cron.schedule_in_database(") :]
    one.home.execute(line)

    one.home.execute("select cron.schedule('* * * * *', 'call net.drain()')")
    one.home.execute(
        "select cron.schedule_in_database('drain', '* * * * *', 'call net.drain()', 'drained')"
    )


def wait_for_workers(scheduled: list[Scheduled], outcomes: list[str]) -> None:
    """Wait until workers run in the first two databases, and all three have these outcomes."""
    wait_for_all(
        scheduled,
        "workers run in both databases",
        lambda one: (one.worker_pid(one.home), one.worker_pid(one.second)),
        all,
        A_MINUTE,
    )
    wait_for_all(
        scheduled,
        "what was queued before is answered, by the drain too",
        lambda one: [outcome(database) for database in (one.home, one.second, one.drained)],
        outcomes.__eq__,
        10,
    )


def is_well(one: Scheduled, url: str) -> None:
    """Each database has one worker, which a commit wakes; the drains end, and the doctor agrees."""
    for database in (one.home, one.second):
        # The session for callbacks is another job's, which begins in the same minute.
        assert database.wait_for(
            "select array_agg(application_name order by application_name) from pg_stat_activity"
            " where datname = current_database() and application_name like 'pgnet%'",
            predicate=lambda found: len(found) == 2,
        ) == ["pgnet callbacks", "pgnet worker"]
        # woken by the commit, not by the next minute
        database.execute("select net.http_get(%s)", url)
        database.wait_for("select count(*) = 2 from net._http_response", timeout=2)
    one.home.wait_for(
        "select count(*) = 2 from cron.job_run_details"
        " where status = 'succeeded' and command = 'call net.drain()'"
    )
    assert one.worker_pid(one.drained) is None
    checked = {
        item: (ok, detail)
        for item, ok, detail in one.home.rows("select item, ok, detail from net.check()")
    }
    assert checked["worker"][0]
    assert checked["pg_cron"][0], checked["pg_cron"]


@pytest.mark.timeout(300)
def test_workers_and_drains_by_the_minute(scheduled: list[Scheduled], witness: Running) -> None:
    for one in scheduled:
        for database in (one.home, one.second, one.drained):
            database.execute("select net.http_get(%s)", f"{witness.url}/body/first")
        schedule_all(one)
    wait_for_workers(scheduled, ["first", "first", "first"])
    for one in scheduled:
        is_well(one, f"{witness.url}/body/second")
        assert (outcome(one.home), outcome(one.second)) == ("first,second", "first,second")

    # ---- cancelled, they come back by themselves

    for one in scheduled:
        for database in (one.home, one.second):
            pid = one.worker_pid(database)
            database.execute("select pg_cancel_backend(%s)", pid)
            wait_for_another(one, database, pid)
            database.execute("select net.http_get(%s)", f"{witness.url}/body/third")
        one.drained.execute("select net.http_get(%s)", f"{witness.url}/body/second")
    wait_for_workers(scheduled, ["first,second,third", "first,second,third", "first,second"])

    # ---- unscheduled

    for one in scheduled:
        assert one.home.value("select net.unschedule_worker()") is True
        assert one.home.value("select net.unschedule_worker()") is False
        assert one.home.value("select count(*) from cron.job where jobname = 'pgnet worker'") == 0
        # the one that runs goes on until it is cancelled
        one.home.execute("select net.http_get(%s)", f"{witness.url}/body/fourth")
        one.home.wait_for("select count(*) = 4 from net._http_response", timeout=2)


def test_a_shutdown_ends_them(scheduled: list[Scheduled]) -> None:
    """The workers under pg_cron do not hold up a fast shutdown."""
    for one in scheduled:
        for database in (one.home, one.second, one.drained):
            database.close()
        one.cluster.stop("fast", timeout=5)
