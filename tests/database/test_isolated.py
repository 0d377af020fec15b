"""Modules in the current directory are not run, neither by the command nor in a backend."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from servers.cluster import CLEAN_ENVIRONMENT, Database, server_python

PLANTED = ("psycopg", "gevent", "requests", "pycurl", "argparse", "logging", "socket", "json")


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A directory of modules that leave a file beside them where one is imported."""
    for name in PLANTED:
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'imported')!r}, 'a').write('{name} ')\n"
        )
    return tmp_path


def imported(directory: Path) -> str:
    path = directory / "imported"
    return path.read_text() if path.exists() else ""


def run(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**CLEAN_ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


# This command imports all that a worker imports, and then refuses the DSN.
WORKER = ["worker", "--dsn", "no=dsn"]


@pytest.mark.parametrize("python_path", [None, "", ":"])
def test_python_m(planted: Path, python_path: str | None) -> None:
    environment = {} if python_path is None else {"PYTHONPATH": python_path}
    command = [server_python(), "-m", "pgnet"]
    assert run([*command, "--version"], planted, **environment).stdout.startswith("pgnet ")
    finished = run([*command, *WORKER], planted, **environment)
    assert (finished.returncode, imported(planted)) == (2, ""), finished.stderr
    assert "Traceback" not in finished.stderr


def test_the_launcher(planted: Path) -> None:
    """The launcher is isolated: PYTHONPATH does not count either."""
    launcher = shutil.which("pgnet", path=CLEAN_ENVIRONMENT["PATH"])
    assert launcher is not None
    for environment in ({}, {"PYTHONPATH": str(planted)}, {"PYTHONSTARTUP": str(planted)}):
        finished = run([launcher, *WORKER], planted, **environment)
        assert (finished.returncode, imported(planted)) == (2, ""), finished.stderr
    beside = planted / "pgnet"
    shutil.copy(launcher, beside)
    finished = run([str(beside), *WORKER], planted)
    assert (finished.returncode, imported(planted)) == (2, ""), finished.stderr


def test_a_backend(database: Database) -> None:
    """A backend's current directory is the data directory, which is not in Python's path."""
    database.execute(
        "create function public.path() returns text[] language plpython3u as"
        " $$ import sys; return sys.path $$"
    )
    data = str(database.cluster.data)
    entries = database.value("select public.path()")
    assert entries
    assert not {"", ".", data} & set(entries)
    assert not [entry for entry in entries if entry.startswith(data)]
