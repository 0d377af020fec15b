"""epoll and poll as the interpreter has them, whatever the session has done to `select`.

A PL/Python function of any user may let gevent patch the modules of its session. Then `select` has
no epoll, and its poll switches greenlets, which a backend must not do.
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
