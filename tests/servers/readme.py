"""Follow the README of an example: what it says is run, and what it shows is what comes.

| block | what becomes of it |
|---|---|
| sh | one that starts the example's server is run; what makes the sandbox is known, and left out |
| sql | run by psql, all of them in one session |
| text | what psql --quiet printed for the SQL before it, but for the width of columns |
| log | what the server has said since the log block before |

Port 8080 is the server's own port.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from servers.cluster import ROOT, Database
from servers.waiting import wait_until

EXAMPLES = ROOT / "examples"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# A line that no SQL prints.
MARK = "-- the end of block"
SANDBOX = re.compile(r"make psql|tools/sandbox\.py (--\S+( [\w.=]+)? )*psql")


def blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language and text."""
    return [(found[1], found[2]) for found in BLOCK.finditer(page.read_text())]


@dataclass
class Server:
    """An example's server, and the lines that it has said."""

    port: int
    lines: list[str] = field(default_factory=list)


@contextlib.contextmanager
def running(module: str) -> Iterator[Server]:
    """Run `python3 -m MODULE` on a free port until the block ends."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig=KILL", sys.executable, "-m", module, "--port", "0"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    stdout = process.stdout
    try:
        first = stdout.readline()
        listening = re.search(r"http://localhost:(\d+)", first)
        assert listening is not None, first
        server = Server(int(listening[1]))
        reader = threading.Thread(target=_read, args=(stdout, server.lines))
        reader.start()
        yield server
    finally:
        process.kill()
        process.wait()
        reader.join()
        stdout.close()


def _read(stdout: Iterator[str], lines: list[str]) -> None:
    """Keep each line as it comes."""
    for line in stdout:
        said = line.rstrip("\n")
        lines.append(said)


def psql(database: Database, script: str) -> str:
    """Run a script in one psql session; give what it printed."""
    finished = subprocess.run(
        [
            database.cluster.bindir / "psql",
            "--no-psqlrc",
            "--quiet",
            "--set=ON_ERROR_STOP=1",
            "--file=-",
        ],
        input=script,
        env={
            **os.environ,
            **database.cluster.environment,
            "PGDATABASE": database.name,
            "PGCLIENTENCODING": "UTF8",
            "PAGER": "",
        },
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-4000:]
    return finished.stdout


def cells(output: str) -> list[str]:
    """The lines of an output, whatever the width of its columns."""
    lines = (re.sub(r"\s+", " ", line).strip() for line in output.splitlines())
    return [line for line in lines if line and not re.fullmatch(r"[-+]+", line)]


def follow(database: Database, page: Path) -> None:
    """Do what a README says, from its first block to its last."""
    found = blocks(page)
    commands = [line for kind, text in found if kind == "sh" for line in text.splitlines()]
    with contextlib.ExitStack() as stack:
        servers = []
        for command in commands:
            module = re.fullmatch(r"python3 -m (examples\.\w+\.\w+)", command)
            if module:
                servers.append(stack.enter_context(running(module[1])))
            else:
                assert SANDBOX.fullmatch(command), f"{page.parent.name}: {command}"
        (server,) = servers
        here = f"localhost:{server.port}"
        own = [(kind, text.replace("localhost:8080", here)) for kind, text in found]
        compare_outputs(database, own)
        said = [line for kind, text in own if kind == "log" for line in text.splitlines()]
        if said:
            wait_until(lambda: list(server.lines), lambda lines: len(lines) >= len(said), "the log")
            assert server.lines == said, differ(said, server.lines)


def differ(shown: object, found: object) -> str:
    return f"the README shows\n{shown}\nand there was\n{found}"


def compare_outputs(database: Database, found: list[tuple[str, str]]) -> None:
    """Run the SQL; each text block is what the SQL block before it has printed."""
    script = ""
    shown: list[str | None] = []
    for kind, text in found:
        if kind == "sql":
            script += f"{text}\n\\echo '{MARK}'\n"
            shown.append(None)
        elif kind == "text" and shown:
            assert shown[-1] is None, f"two outputs of one block: {text}"
            shown[-1] = text
        else:
            assert kind in ("sh", "log"), kind
    printed = psql(database, script).split(f"{MARK}\n")
    for expected, output in zip(shown, printed, strict=False):
        if expected is not None:
            assert cells(output) == cells(expected), differ(expected, output)
