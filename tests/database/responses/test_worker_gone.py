"""The worker, the extension or the database goes, and comes back."""

from __future__ import annotations

import queue
import threading
import time

import psycopg

from servers.cluster import Cluster, Database
from servers.nginx import Nginx
from servers.responses import get, in_flight, outcome, result
from servers.waiting import wait_until

# ---- the worker gone and back


def test_worker_down_and_up_again(unserved: Database, nginx: Nginx) -> None:
    first = get(unserved, nginx.url)
    assert result(unserved, first)[0] == "PENDING"
    with unserved.worker() as worker:
        assert outcome(unserved, first)["status_code"] == 200
        worker.kill()
        unserved.wait_for("select not pgnet.worker_is_up()")
        second = get(unserved, nginx.url)
        assert "No worker is running" in result(unserved, second)[1]
    with unserved.worker() as worker:
        assert outcome(unserved, second)["status_code"] == 200
        third = get(unserved, nginx.url)
        assert outcome(unserved, third)["status_code"] == 200
        assert worker.stop() == 0
        assert (
            unserved.value(
                "select count(*) from pgnet.worker where gone_since is null and ended is null"
            )
            == 0
        )


def test_what_was_in_flight_when_the_worker_stopped(unserved: Database, nginx: Nginx) -> None:
    """SIGTERM: what is in flight ends within the grace, and is recorded."""
    with unserved.worker() as worker:
        request_id = get(unserved, f"{nginx.url}/slow?s=0.5")
        in_flight(unserved, request_id)
        assert worker.stop() == 0
    assert unserved.row("select content, attempts from net._http_response") == ("slow", 1)


def test_drop_extension_under_load(unserved: Database, nginx: Nginx) -> None:
    """The worker outlives it, and serves the extension that is created anew."""
    with unserved.worker() as worker:
        unserved.execute(
            "select net.http_get(%s) from generate_series(1, 500)", f"{nginx.url}/slow?s=0.05"
        )
        unserved.wait_for("select count(*) from net._http_response")
        began = time.monotonic()
        unserved.execute("drop extension pgnet")
        assert time.monotonic() - began < 5
        assert unserved.value("select to_regnamespace('net')") is None
        assert worker.process.poll() is None
        unserved.execute("create extension pgnet")
        unserved.execute("select net.allow_network('loopback')")
        request_id = get(unserved, nginx.url)
        assert request_id == 1
        assert outcome(unserved, request_id, timeout=15)["content"] == "pgnet"
        assert worker.process.poll() is None
        assert "Traceback" not in worker.output()


def test_database_dropped_with_force(cluster: Cluster, nginx: Nginx) -> None:
    database = cluster.create_database(name="forced")
    database.execute("select net.allow_network('loopback')")
    with database.worker() as worker:
        database.execute(
            "select net.http_get(%s) from generate_series(1, 100)", f"{nginx.url}/slow?s=0.2"
        )
        database.wait_for("select count(*) from pgnet.claim")
        began = time.monotonic()
        database.drop()
        assert time.monotonic() - began < 5
        assert worker.process.poll() is None
        again = cluster.create_database(name="forced")
        again.execute("select net.allow_network('loopback')")
        assert outcome(again, get(again, nginx.url), timeout=15)["content"] == "pgnet"
        assert "Traceback" not in worker.output()
    again.drop()


def test_database_dropped_with_force_and_a_worker_in_it(cluster: Cluster, nginx: Nginx) -> None:
    database = cluster.create_database(name="forced_backend")
    database.execute("select net.allow_network('loopback')")
    working = database.connect()
    ended: queue.Queue[BaseException | None] = queue.Queue()

    def work() -> None:
        try:
            working.execute("call net.work()")
        except psycopg.Error as error:
            ended.put(error)
        else:
            ended.put(None)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    database.wait_for("select pgnet.worker_is_up()")
    database.execute(
        "select net.http_get(%s) from generate_series(1, 100)", f"{nginx.url}/slow?s=0.2"
    )
    database.wait_for("select count(*) from pgnet.claim")
    with cluster.connect() as connection:
        began = time.monotonic()
        connection.execute("drop database forced_backend with (force)")
        assert time.monotonic() - began < 2
    assert isinstance(ended.get(timeout=5), psycopg.OperationalError)
    thread.join(5)
    database.close()


def test_a_worker_that_waits_for_the_extension(cluster: Cluster, nginx: Nginx) -> None:
    """Started before CREATE EXTENSION, it serves as soon as there is something to serve."""
    database = cluster.create_database(extension=False)
    with database.worker(seen=False) as worker:
        wait_until(worker.output, description="the worker says that it waits")
        database.execute("create extension pgnet cascade")
        database.execute("select net.allow_network('loopback')")
        request_id = get(database, nginx.url)
        assert outcome(database, request_id, timeout=15)["content"] == "pgnet"
    database.drop()
