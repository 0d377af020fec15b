"""Fixtures of the tests of secrets: roles, a cluster that logs all it can, and the scene in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers.canary import CANARY
from servers.cluster import (
    Cluster,
    Database,
    pg_config,
)
from servers.secret_scene import API, Scene, Site, observed, put, serving


@pytest.fixture(scope="module")
def rules(cluster: Cluster) -> Iterator[Database]:
    """A database that no worker serves, and roles: app, its members, another one."""
    database = cluster.create_database()
    for role in ("secrets_app login", "secrets_other login", "secrets_reader login"):
        database.execute(f"create role {role}")
    database.execute("create role secrets_member login in role secrets_app")
    database.execute("create role secrets_stranger login noinherit in role secrets_app")
    database.execute("grant select on pgnet.secret to secrets_reader")
    yield database
    database.drop()
    with cluster.connect() as connection:
        for role in ("app", "other", "reader", "member", "stranger"):
            connection.execute(f"drop role secrets_{role}")


@pytest.fixture
def secrets(rules: Database) -> Iterator[Database]:
    """The same with two secrets of a test's own."""
    put(rules, "stripe", f"sk_{CANARY}", API)
    put(rules, "hook", f"https://hooks.example/services/{CANARY}", "https://hooks.example/services")
    yield rules
    rules.execute("delete from pgnet.secret")
    rules.execute("delete from net.http_request_queue")


@pytest.fixture(scope="session")
def talkative(installed: None) -> Iterator[Cluster]:
    """A cluster that logs whatever it can: statements, parameters, plans, errors with it all."""
    options: dict[str, object] = {
        "log_statement": "all",
        "log_min_duration_statement": 0,
        "log_min_duration_sample": 0,
        "log_transaction_sample_rate": 1,
        "log_duration": "on",
        "log_parameter_max_length": -1,
        "log_parameter_max_length_on_error": -1,
        "log_error_verbosity": "verbose",
        "log_min_messages": "debug1",
        "log_min_error_statement": "debug1",
        "log_connections": "on",
        "log_disconnections": "on",
        "log_lock_waits": "on",
        "log_replication_commands": "on",
        "track_activity_query_size": 65536,
        "max_prepared_transactions": 10,
    }
    library = Path(pg_config("pkglibdir"))
    modules = [
        name for name in ("auto_explain", "pg_stat_statements") if (library / f"{name}.so").exists()
    ]
    if modules:
        options["shared_preload_libraries"] = ",".join(modules)
    if "auto_explain" in modules:
        options |= {
            "auto_explain.log_min_duration": 0,
            "auto_explain.log_analyze": "on",
            "auto_explain.log_verbose": "on",
            "auto_explain.log_nested_statements": "on",
            "auto_explain.log_triggers": "on",
            "auto_explain.log_settings": "on",
        }
    if "pg_stat_statements" in modules:
        options |= {"pg_stat_statements.track": "all", "pg_stat_statements.track_utility": "on"}
    with Cluster(**options) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def watched(talkative: Cluster) -> Iterator[Database]:
    database = observed(talkative)
    yield database
    database.close()


@pytest.fixture(scope="module")
def sites() -> Iterator[tuple[Site, Site]]:
    with serving() as home, serving() as foreign:
        yield home, foreign


@pytest.fixture(scope="module")
def stage(talkative: Cluster, sites: tuple[Site, Site]) -> Iterator[Scene]:
    database = observed(talkative)
    directory = talkative.directory / f"secrets-{database.name}"
    directory.mkdir()
    shutil.chown(directory, *(2 * ["postgres"] if os.geteuid() == 0 else [os.geteuid()] * 2))
    with database.worker("--verbose", "--secrets-dir", str(directory)) as worker:
        yield Scene(database, worker, directory, *sites)
    database.close()


@pytest.fixture
def scene(stage: Scene) -> Iterator[Scene]:
    for site in (stage.home, stage.foreign):
        site.received.clear()
        site.release.clear()
        site.to = ""
    yield stage
    stage.home.release.set()
    stage.check()
