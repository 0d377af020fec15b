"""Crashes of the server: their stacks, and whether anything of pgnet stands in them."""

from __future__ import annotations

import contextlib
import re
import resource
import shutil
import subprocess
import time
from pathlib import Path

# Names that are in a session's memory only because of pgnet.
_OURS = re.compile(
    r"plpython|libpython|_Py[A-Z]|\bPy[A-Z]\w+_|ctypes|libffi|greenlet|gevent|pycurl|libcurl|cares"
)
_FRAME = re.compile(r"^#\d+ .*", re.MULTILINE)
_NAMED = re.compile(r"^#\d+ .*?\b(?!\?\?)\w+ \(", re.MULTILINE)
# Cores leave out shared memory: shared_buffers would fill the disk.
_COREDUMP_FILTER = "0x31"
_FRAMES = 40
# Seconds after which a core that does not grow any more is whole.
_WRITTEN = 0.5


def allow_cores() -> None:
    """Let processes that are started from now on leave a core where they crash."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))
    with contextlib.suppress(OSError):
        Path("/proc/self/coredump_filter").write_text(_COREDUMP_FILTER)


def collect(data: Path, into: Path) -> None:
    """Move cores out of a data directory: the next one may have the same name."""
    for core in data.glob("core*"):
        with contextlib.suppress(OSError):
            if time.time() - core.stat().st_mtime < _WRITTEN:
                continue
            into.mkdir(exist_ok=True)
            shutil.move(core, into / str(len(list(into.iterdir()))))


def stacks(cores: Path, program: Path) -> list[str]:
    """The stack of each segmentation fault, innermost frame first; none without gdb."""
    if not cores.is_dir() or shutil.which("gdb") is None:
        return []
    found = [_stack(core, program) for core in sorted(cores.iterdir())]
    return [stack for stack in found if stack]


def _stack(core: Path, program: Path) -> str:
    command = ["gdb", "-batch", "-nx", "-ex", f"bt {_FRAMES}", str(program), str(core)]
    with contextlib.suppress(subprocess.TimeoutExpired):
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        # A PANIC, such as that of a full disk, leaves a core as well.
        if "SIGSEGV" in result.stdout:
            return "\n".join(_FRAME.findall(result.stdout))
    return ""


def is_postgresqls_own(stack: str) -> bool:
    """Whether a stack has names, and nothing of pgnet, of Python or of its modules among them."""
    return len(_NAMED.findall(stack)) >= 3 and _OURS.search(stack) is None
