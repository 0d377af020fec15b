"""The commit callback: what wakes a worker when, and only when, the transaction commits.

Runs in every caller's backend: the standard library only. One callback is registered for a backend,
pinned for the life of the process; it sends one datagram a transaction, however many requests it
made, and nothing raises out of it.
"""

from __future__ import annotations

from pgnet.server import backend
from pgnet.server.wake_up import SIGNALS, Sender


class CommitHook:
    """Remembers what a transaction wants to signal, and signals it after the commit."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._armed: set[str] = set()

    def arm(self, signal: str) -> None:
        """Send ``signal`` when the running transaction commits.

        ``wake`` goes to one worker, ``reload`` to all.
        """
        self._armed.add(signal)

    def at_end(self, event: int) -> None:
        """What the server calls at the end of a transaction; acts upon known events only."""
        if not self._armed:
            return
        if event in (backend.COMMIT, backend.PARALLEL_COMMIT):
            # Rules first: what the same transaction queued is meant to meet them.
            for signal in self._armed - {"wake"}:
                self._sender.send_all(signal)
            if "wake" in self._armed:
                self._sender.send("wake")
        elif event == backend.PREPARE:
            # COMMIT PREPARED may come from any session: the worker looks each second for a while.
            self._sender.send("prepared")
        elif event not in (backend.ABORT, backend.PARALLEL_ABORT):
            return
        self._armed.clear()


# Once a backend: the hook, or why there is none, and what the server points to.
_hook: CommitHook | None = None
_fault: str | None = None
_pinned: list[object] = []


def registered() -> bool:
    """Whether this backend has its callback."""
    return _hook is not None


def register() -> str | None:
    """Register this backend's callback, once; gives None, or why there is none."""
    global _hook, _fault
    if _hook is None and _fault is None:
        try:
            hook = CommitHook(Sender(backend.database_oid()))
            _pinned.append(backend.register_xact_callback(hook.at_end))
        except (OSError, MemoryError, AttributeError, ValueError) as error:
            _fault = f"{type(error).__name__}: {error}"
        else:
            _hook = hook
    return _fault


def arm(signal: str) -> str | None:
    """Have the commit of the running transaction send ``signal``.

    Gives None, or why commits of this backend cannot signal: the request stands all the same, and
    a worker finds it when it looks. Raises ValueError for a signal that there is not: at the commit
    nothing may raise.
    """
    if signal not in SIGNALS:
        raise ValueError(f"there is no signal {signal!r}")
    if _hook is None and register() is not None:
        return _fault
    assert _hook is not None
    _hook.arm(signal)
    return None
