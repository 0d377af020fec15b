"""The command `pgnet secret`: what it stores, and that no log has it."""

from __future__ import annotations

import os
import pty
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from psycopg import errors

from servers.canary import CANARY, found_in
from servers.cluster import (
    CLEAN_ENVIRONMENT,
    Database,
    free_port,
    server_python,
)
from servers.secret_scene import API, logs_parameters_of_plans, nowhere


def command(
    database: Database,
    *arguments: str,
    given: bytes | None = b"",
    user: str = "postgres",
    **more: Any,
) -> tuple[int, str]:
    """Run `pgnet secret`; give its exit status and what it printed."""
    finished = subprocess.run(
        [server_python(), "-m", "pgnet", "secret", *arguments, "--dsn", database.dsn(user)],
        cwd="/",
        env=CLEAN_ENVIRONMENT,
        input=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        **more,
    )
    printed = finished.stdout.decode()
    assert not found_in(printed)
    return finished.returncode, printed


def test_what_the_talkative_cluster_tells(watched: Database) -> None:
    """The log has all other statements: a search of it that finds no secret is worth something."""
    watched.execute("select net.set_secret('told', %s, %s)", "a Told and retold value", API)
    log = watched.cluster.log.read_text()
    assert "parameters: $1 = 'a Told and retold value'" in log
    if "auto_explain.log_verbose" in watched.cluster.options:
        # a plan that was made for it holds it, but for those of net.set_secret itself
        assert "Output: net.set_secret('told'::text, 'a Told and retold value'::text" in log
        assert "insert into pgnet.secret (name, value, url_prefix)" in log
        assert log.count("'a Told and retold value'::text") == 1
    with pytest.raises(errors.InvalidParameterValue):
        watched.execute("select net.set_secret('told', %s, %s)", "Told", API)
    assert "parameters: $1 = 'Told'" in watched.cluster.log.read_text()


def test_setting_by_the_command(watched: Database) -> None:
    value = f'sk_{CANARY} ü "quoted" \\'
    status, printed = command(
        watched,
        "set",
        "cli",
        "--url-prefix",
        "https://Api.example/v1",
        given=value.encode() + b"\n",
    )
    assert (status, printed) == (0, 'secret "cli" is set, for requests to https://api.example/v1\n')
    assert watched.value("select value from pgnet.secret where name = 'cli'") == value
    # rotated, from a file that ends without a line break
    status, printed = command(watched, "set", "cli", given=f"{CANARY}.2".encode())
    assert (status, printed) == (0, 'secret "cli" is set, for requests to https://api.example/v1\n')
    assert watched.value("select value from pgnet.secret where name = 'cli'") == f"{CANARY}.2"
    pem = f"-----BEGIN KEY-----\n{CANARY}\n-----END KEY-----\n"
    status, printed = command(watched, "set", "pem", given=pem.encode())
    assert status == 0
    assert "only net.configure_host" in printed
    assert watched.value("select value from pgnet.secret where name = 'pem'") == pem.rstrip("\n")
    status, printed = command(watched, "list")
    assert status == 0
    lines = [line.split()[:4] for line in printed.splitlines()]
    assert lines[0] == ["NAME", "URL", "PREFIX", "STORED"]
    assert ["cli", "https://api.example/v1", "database"] in [line[:3] for line in lines]
    assert ["pem", "-", "database"] in [line[:3] for line in lines]
    assert command(watched, "drop", "pem") == (0, 'secret "pem" is dropped\n')
    assert command(watched, "drop", "pem") == (1, 'pgnet secret: secret "pem" does not exist\n')
    assert "net.set_secret" in watched.cluster.log.read_text()
    nowhere(watched)


@pytest.mark.parametrize(
    ("name", "given", "prefix", "message"),
    [
        ("s", b"", None, 'the value of secret "s" is empty'),
        ("s", b"\n", None, 'the value of secret "s" is empty'),
        ("s", CANARY.encode() + b"\xff", None, 'the value of secret "s" is not in UTF-8'),
        ("s", CANARY.encode() + b"\0", None, 'the value of secret "s" has a NUL character'),
        ("s", CANARY.encode() * 10_000, None, 'the value of secret "s" is longer than 65536'),
        (f"{CANARY}/", b"stripe", None, "this is not a valid name of a secret"),
        # by the server
        ("s", f"{CANARY}\n\n".encode(), API, 'the value of secret "s" has a line break'),
        ("s", CANARY[:6].encode(), API, 'the value of secret "s" has fewer than 8 characters'),
        ("s", CANARY.encode(), f"https://u:{CANARY}@h/", "the URL prefix is not an http"),
        ("s", f"https://evil.example/{CANARY}".encode(), API, "is not within its URL prefix"),
    ],
)  # fmt: skip
def test_the_command_refuses(
    watched: Database, name: str, given: bytes, prefix: str | None, message: str
) -> None:
    to = [] if prefix is None else ["--url-prefix", prefix.replace(CANARY, "word")]
    status, printed = command(watched, "set", name, *to, given=given)
    assert status == 1
    assert message in printed
    assert "Traceback" not in printed
    assert watched.value("select count(*) from pgnet.secret where name = 's'") == 0
    nowhere(watched)


def test_a_call_that_fails_in_the_server(watched: Database) -> None:
    """An error of a trigger brings the value neither to the user nor into the server's log."""
    watched.execute(
        "create function public.fail() returns trigger language plpgsql as $$"
        " begin raise exception 'not today' using detail = 'no detail'; end $$"
    )
    watched.execute(
        "create trigger fail before insert on pgnet.secret"
        " for each row execute function public.fail()"
    )
    try:
        status, printed = command(watched, "set", "s", "--url-prefix", API, given=CANARY.encode())
        assert (status, printed) == (1, "pgnet secret: not today\n")
    finally:
        watched.execute("drop function public.fail() cascade")
    assert "not today" in watched.cluster.log.read_text()
    nowhere(watched)


def test_a_call_that_is_cut_off(watched: Database) -> None:
    """A lock keeps it from the table; then its session is ended."""
    holder = watched.connect(autocommit=False)
    holder.execute("lock table pgnet.secret in exclusive mode")
    done: list[tuple[int, str]] = []
    thread = threading.Thread(
        target=lambda: done.append(
            command(watched, "set", "s", "--url-prefix", API, given=CANARY.encode())
        )
    )
    thread.start()
    waiting = "select pid from pg_stat_activity where wait_event_type = 'Lock'"
    pid = watched.wait_for(waiting)
    query = watched.value("select query from pg_stat_activity where pid = %s", pid)
    assert query == "select net.set_secret($1, $2, $3)"
    nowhere(watched)
    watched.execute("select pg_terminate_backend(%s)", pid)
    thread.join(20)
    holder.rollback()
    status, printed = done[0]
    assert status == 1
    assert "terminating connection" in printed
    nowhere(watched)


def test_where_the_server_would_log_it(watched: Database) -> None:
    """A role that may set secrets, and may not keep the server from logging its parameters."""
    watched.execute("create role secrets_dba login in role postgres")
    try:
        arguments = ("set", "s", "--url-prefix", API)
        status, printed = command(watched, *arguments, given=CANARY.encode(), user="secrets_dba")
        assert status == 1
        assert "this server would log the value" in printed
        statement = 'grant set on parameter log_parameter_max_length to "secrets_dba"'
        assert statement in printed
        assert watched.value("select count(*) from pgnet.secret where name = 's'") == 0
        watched.execute(statement)
        if logs_parameters_of_plans(watched):
            watched.execute(statement.replace("log_parameter", "auto_explain.log_parameter"))
        status, printed = command(watched, *arguments, given=CANARY.encode(), user="secrets_dba")
        assert status == 0, printed
        assert command(watched, "drop", "s", user="secrets_dba")[0] == 0
    finally:
        watched.execute("drop owned by secrets_dba")
        watched.execute("drop role secrets_dba")
    nowhere(watched)


def test_where_the_server_would_not_log_it(rules: Database) -> None:
    """The same role, and a server as it comes."""
    rules.execute("create role secrets_dba login in role postgres")
    try:
        status, printed = command(rules, "set", "s", given=CANARY.encode(), user="secrets_dba")
        assert status == 0, printed
        assert command(rules, "drop", "s", user="secrets_dba")[0] == 0
    finally:
        rules.execute("drop role secrets_dba")


def test_the_command_by_others(secrets: Database) -> None:
    for arguments in (("set", "stripe"), ("drop", "stripe")):
        status, printed = command(secrets, *arguments, given=CANARY.encode(), user="secrets_app")
        assert status == 1
        assert "permission denied for function" in printed
    secrets.execute("select net.grant_secret('stripe', 'secrets_app')")
    status, printed = command(secrets, "list", user="secrets_app")
    assert status == 0
    assert [line.split()[0] for line in printed.splitlines()] == ["NAME", "stripe"]


def test_the_command_without_a_database(secrets: Database) -> None:
    nobody = f"host=127.0.0.1 port={free_port()} password={CANARY} connect_timeout=5"
    for dsn, message in (
        (nobody, "onnection refused"),
        (f"hots={CANARY}", "--dsn is no connection string of libpq"),
    ):
        finished = subprocess.run(
            [server_python(), "-m", "pgnet", "secret", "set", "s", "--dsn", dsn],
            cwd="/", env=CLEAN_ENVIRONMENT, input=CANARY.encode(), capture_output=True, check=False,
        )  # fmt: skip
        assert finished.returncode == 1
        printed = (finished.stdout + finished.stderr).decode()
        assert message in printed
        assert "Traceback" not in printed
        assert not found_in(printed)
    empty = secrets.cluster.create_database(extension=False)
    try:
        status, printed = command(empty, "set", "s", given=CANARY.encode())
        assert (status, printed) == (1, 'pgnet secret: schema "net" does not exist\n')
    finally:
        empty.drop()


def test_a_terminal(secrets: Database) -> None:
    """A terminal is refused: the value would be seen while it is typed."""
    ours, theirs = pty.openpty()
    try:
        status, printed = command(secrets, "set", "s", given=None, stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)
    assert status == 1
    assert "not from a terminal" in printed
    assert "pgnet secret set s < file" in printed


@pytest.mark.parametrize("kind", ["missing", "a file", "refused"])
def test_a_directory_of_secrets_that_cannot_be_read(tmp_path: Path, kind: str) -> None:
    directory = tmp_path / "secrets"
    prefix: list[str] = []
    if kind == "a file":
        directory.touch()
    elif kind == "refused":
        directory.mkdir(mode=0)
        # root reads everything
        prefix = ["setpriv", "--reuid=65534", "--clear-groups"] if os.geteuid() == 0 else []
        tmp_path.chmod(0o755)
    finished = subprocess.run(
        [*prefix, server_python(), "-m", "pgnet", "worker", "--secrets-dir", str(directory)],
        cwd="/", env=CLEAN_ENVIRONMENT, capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    assert finished.returncode == 2
    assert finished.stderr.startswith("pgnet worker: --secrets-dir cannot be read: ")
    assert "Traceback" not in finished.stderr
