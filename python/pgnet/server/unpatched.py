"""epoll and poll as the interpreter has them.

In a backend, a user's PL/Python function may have let gevent patch the session's modules: select
then has no epoll, and a poll that switches greenlets.
"""

from __future__ import annotations

import importlib.util
import select
from typing import TYPE_CHECKING

__all__ = ["epoll", "poll"]

if TYPE_CHECKING or hasattr(select, "epoll"):
    from select import epoll, poll
else:
    _spec = importlib.util.find_spec("select")
    _made_anew = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_made_anew)
    epoll, poll = _made_anew.epoll, _made_anew.poll
