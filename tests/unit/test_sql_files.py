"""The SQL files read well: short functions, short lines of prose, one place for each thing."""

from __future__ import annotations

import re
from pathlib import Path

FILES = sorted((Path(__file__).resolve().parents[2] / "extension").glob("*.sql"))
# Functions of more lines, and why: what is one statement is planned and run as one, so that a row
# is locked, judged and changed in one snapshot; net.http_request runs once for each request.
LONG = {
    "pgnet.take_requests",
    "pgnet.read_claimed",
    "pgnet.end_dependants",
    "pgnet.help_entries",
    "pgnet.lock_new_requests",
    "pgnet.store_outcomes",
    "pgnet.carry_out_marks",
    "net.http_request",
}


def bodies() -> dict[str, int]:
    return {
        found[1]: found[2].count("\n")
        for path in FILES
        for found in re.finditer(
            r"create (?:function|procedure) (\S+?)\(.*?\nas \$\$(.*?)\$\$", path.read_text(), re.S
        )
    }


def test_functions_are_short() -> None:
    lines = bodies()
    assert len(lines) > 100
    assert {name for name, length in lines.items() if length > 60} == LONG


def test_prose_is_in_lines_of_100_characters() -> None:
    long = [
        f"{path.name}: {line}"
        for path in FILES
        for line in path.read_text().splitlines()
        if re.match(r" *-- ", line) and len(line) > 100
    ]
    assert long == []
