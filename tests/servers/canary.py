"""The canary: one secret for all tests, and the search for it where no secret may be.

Every test that needs a secret has CANARY in it: so one look finds any that got out. Clusters look
through their logs and those of their workers when they are closed; `nowhere` in conftest.py fails
the run where one of them has it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

# The canary has only letters and digits, so that most ways of writing text leave it as it is.
CANARY = "Canary7hQ2zWm5TfXk9Rb"


def forms(value: str = CANARY) -> Iterator[bytes]:
    """The forms that would tell the value: itself, base64, hexadecimal and UTF-16."""
    data = value.encode()
    yield data
    yield data[::-1]
    yield data.lower()
    yield data.upper()
    yield data.hex().encode()
    yield data.hex().upper().encode()
    yield value.encode("utf-16-le")
    yield value.encode("utf-16-be")
    for offset in range(3):
        # without the characters that depend on the neighbouring bytes
        encoded = base64.b64encode(bytes(offset) + data)
        yield encoded[(offset * 8 + 5) // 6 : (offset + len(data)) * 8 // 6]


def found_in(content: bytes | str) -> list[str]:
    """The places where the canary stands, each with what is around it; none where all is well."""
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    places = []
    for form in forms():
        start = data.find(form)
        if start >= 0:
            around = data[max(0, start - 200) : start + len(form) + 80]
            places.append(around.decode("utf-8", "replace"))
    return places


# The findings of `look`: file and place.
leaks: list[str] = []


def logs(directory: Path) -> Iterator[Path]:
    """The files that a cluster and its workers write for people to read."""
    for pattern in ("*", "data/log/*", "data/pg_stat_tmp/*", "data/pg_stat/*"):
        for path in directory.glob(pattern):
            if path.is_file() and not path.is_symlink():
                yield path


def look(directory: Path) -> None:
    """Search the logs of a cluster, given its directory; `leaks` gets what is found."""
    for path in logs(directory):
        leaks.extend(f"{path}: {place}" for place in found_in(path.read_bytes()))
