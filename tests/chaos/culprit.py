"""Find the process at the other end of a TCP connection of this machine, and kill it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path


def kill(port: int, sockets: Iterable[Path]) -> str | None:
    """Kill -9 the process whose connection has this local port; gives its name.

    sockets: lists of sockets as in /proc/net/tcp, one for each network namespace.
    """
    inode = _inode(port, sockets)
    if inode is None:
        return None
    spared = {os.getpid(), os.getppid()}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in spared or not _has(entry, inode):
            continue
        with contextlib.suppress(OSError):
            name = (entry / "comm").read_text().strip()
            os.kill(int(entry.name), signal.SIGKILL)
            return name
    return None


def _inode(port: int, sockets: Iterable[Path]) -> str | None:
    wanted = f":{port:04X}"
    for path in sockets:
        with contextlib.suppress(OSError):
            for line in path.read_text().splitlines()[1:]:
                fields = line.split()
                # 0A is a listening one; a closed one has no inode
                if fields[1].endswith(wanted) and fields[3] != "0A" and fields[9] != "0":
                    return fields[9]
    return None


def _has(process: Path, inode: str) -> bool:
    link = f"socket:[{inode}]"
    with contextlib.suppress(OSError):
        return any(os.readlink(fd) == link for fd in (process / "fd").iterdir())
    return False
