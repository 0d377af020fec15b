"""A restored dump is a database of its own; pg_upgrade keeps what waits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from psycopg import errors

from servers.cluster import Cluster, Database
from servers.copies import psql, request, sent
from servers.httpd import Running

# ---- dump and restore


def test_a_restored_dump_is_a_database_of_its_own(
    shop: Database, witness: Running, make_cluster: Callable[..., Cluster]
) -> None:
    request(shop, witness, "/pending")
    shop.execute(
        "select net.configure('ttl', '1 hour'), net.deny_host('example.com'),"
        """ net.configure_host('api.example.com', '{"http_version": "1.1"}')"""
    )
    shop.execute("""select net.configure_retry('mine', '{"max_attempts": 3}')""")
    whole, configured = ["--no-sync"], ["--data-only", "--table=pgnet.*"]
    for cluster, calls in (
        (shop.cluster, [whole]),
        (make_cluster(), [whole]),
        (shop.cluster, [["--schema-only"], configured]),
    ):
        dump = "".join(shop.cluster.run("pg_dump", *options, shop.name) for options in calls)
        assert "/pending" not in dump
        restored = cluster.create_database(extension=False)
        try:
            psql(restored, dump)
            assert restored.value("select pgnet.copy_fault()") is None
            for query in (
                "select value from net.settings where name = 'ttl'",
                "select kind, pattern, verdict from net.egress order by 1, 2",
                "table net.hosts",
                "select * from net.retry_policies where not built_in",
            ):
                assert restored.rows(query) == shop.rows(query)
            # two databases never give the same idempotency keys
            of_keys = "select key_namespace from pgnet.database"
            assert restored.value(of_keys) != shop.value(of_keys)
            assert request(restored, witness, "/own") == 1
            restored.execute("call net.drain()")
        finally:
            restored.drop()
    assert sent(witness) == {"/own": 3}


# ---- pg_upgrade


def test_pg_upgrade(witness: Running, make_cluster: Callable[..., Cluster]) -> None:
    """The new server has another identity: adoption is a step of the upgrade. Nothing is lost."""
    old = make_cluster()
    database = old.create_database(name="shop")
    database.execute("select net.allow_network('loopback'), net.configure('ttl', '1 hour')")
    database.execute("create role buyer login")
    with database.connect("buyer") as buyer:
        buyer.execute("select net.http_get(%s)", (witness.url + "/before",))
    database.execute("call net.drain()")
    with database.connect("buyer") as buyer:
        buyer.execute("select net.http_get(%s)", (witness.url + "/pending",))
    namespace = database.value("select key_namespace from pgnet.database")
    database.close()
    old.stop()

    new = Cluster(**old.options)
    try:
        new.initialize()
        new.run(
            "pg_upgrade",
            f"--old-bindir={old.bindir}", f"--new-bindir={new.bindir}",
            f"--old-datadir={old.data}", f"--new-datadir={new.data}",
            f"--socketdir={new.directory}", "--username=postgres",
        )  # fmt: skip
        new.start()
        upgraded = Database(new, "shop")
        with pytest.raises(errors.ObjectNotInPrerequisiteState, match="is a copy"):
            upgraded.execute("call net.drain()")
        assert sent(witness) == {"/before": 1}
        upgraded.execute("select net.adopt_database()")
        upgraded.execute("call net.drain()")
        assert sent(witness) == {"/before": 1, "/pending": 1}
        # those who asked see their answers, and settings and keys are as they were
        with upgraded.connect("buyer") as buyer:
            states = buyer.execute("select state from net.responses order by id").fetchall()
        assert states == [("succeeded",), ("succeeded",)]
        assert upgraded.value("select value from net.settings where name = 'ttl'") == "1 hour"
        assert upgraded.value("select key_namespace from pgnet.database") == namespace
        assert request(upgraded, witness, "/after") == 3
        upgraded.close()
    finally:
        new.close()
