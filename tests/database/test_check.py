"""The doctor: net.check() says what is right, what is not, and what to do."""

from __future__ import annotations

import os
import shutil

import pytest
from psycopg import errors

from servers.cluster import Cluster, Database, Worker, free_port
from servers.doctor import check
from servers.waiting import wait_until

ITEMS = [
    "version",
    "package",
    "dependencies",
    "CA bundle",
    "wake-up",
    "database",
    "mode",
    "stubs",
    "worker",
    "queue",
    "pauses",
    "heartbeat",
    "recording",
    "rights",
    "triggers",
    "definer functions",
    "egress",
    "hosts",
    "circuit breakers",
    "callbacks",
    "secrets",
    "pg_cron",
]


def test_all_is_well(database: Database, worker: Worker) -> None:
    found = check(database)
    assert list(found) == ITEMS
    assert [item for item, (ok, _, _) in found.items() if not ok] == []
    assert all(detail for _, detail, _ in found.values())
    assert found["version"][1] == "extension 0.1, Python package 0.1"
    assert found["worker"][1] == "1 running"
    assert found["egress"][1].startswith("public addresses are allowed; 2 rule(s)")
    assert found["rights"][1] == "every role may send requests"


def test_what_is_not_well_has_a_hint(fresh_database: Database) -> None:
    fresh_database.execute("select net.configure('wake_up', 'poll')")
    fresh_database.execute("select net.http_get('http://localhost/')")
    fresh_database.execute("update net.http_request_queue set created = now() - interval '1 hour'")
    found = check(fresh_database)
    faults = {item for item, (ok, _, _) in found.items() if not ok}
    assert faults == {"worker", "wake-up", "queue"}
    assert all(found[item][2] for item in faults)
    assert "pgnet worker" in (found["worker"][2] or "")
    assert found["queue"][1].startswith("1 waiting, the oldest for 01:00:0")


def test_closed_to_public(fresh_database: Database) -> None:
    fresh_database.execute("revoke usage on schema net, pgnet from public")
    assert "only roles with usage" in check(fresh_database)["rights"][1]


def test_it_reads_only(fresh_database: Database) -> None:
    session = fresh_database.connect(options="-c default_transaction_read_only=on")
    assert len(session.execute("select * from net.check()").fetchall()) == len(ITEMS)
    assert fresh_database.value("select count(*) from pgnet.worker where ended is null") == 0


def test_not_for_everybody(fresh_database: Database) -> None:
    fresh_database.execute("create role check_reader login")
    try:
        with pytest.raises(errors.InsufficientPrivilege):
            fresh_database.connect("check_reader").execute("select * from net.check()")
    finally:
        fresh_database.execute("drop role check_reader")


def test_on_a_standby(cluster: Cluster, database: Database) -> None:
    """net.check works on a standby, too; the server refuses functions that would write."""
    standby = Cluster(hot_standby="on", max_prepared_transactions=10)
    cluster.run(
        "pg_basebackup", "--pgdata=standby", "--write-recovery-conf", "--checkpoint=fast",
        "--wal-method=stream", "--no-sync",
    )  # fmt: skip
    standby.directory = cluster.directory / "standby-files"
    standby.directory.mkdir()
    (cluster.directory / "standby").rename(standby.data)
    if os.geteuid() == 0:
        shutil.chown(standby.directory, "postgres", "postgres")
    standby.port = free_port()
    try:
        standby.start()
        replica = Database(standby, database.name)
        wait_until(
            lambda: replica.value("select to_regnamespace('net') is not null"),
            description="the extension is replicated",
        )
        found = check(replica)
        assert list(found) == ITEMS
        assert found["worker"][0] is True
        assert "standby" in found["worker"][1]
        assert [item for item, (ok, _, _) in found.items() if not ok] == []
        with pytest.raises(errors.ReadOnlySqlTransaction):
            replica.execute("select net.http_get('http://localhost/')")
        replica.close()
    finally:
        standby.close()
