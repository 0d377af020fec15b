"""How many files this process may open: each request in flight takes one."""

from __future__ import annotations

import resource
import sys

# Open files that are not for requests.
_OTHERS = 100


def slots() -> int:
    """How many requests in flight the limit of open files leaves room for."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(1, soft - _OTHERS)


def raise_limit() -> None:
    """Raise this process's soft limit of open files to the hard one."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
