"""The commit callback: it wakes a worker when a transaction commits, and only then.

This module runs in every caller's backend and imports the standard library only. A backend
registers one callback, which stays for the life of the process. The callback sends one datagram for
a transaction, however many requests the transaction made, and raises nothing.

The callback relies on this in PostgreSQL's C: `CallXactCallbacks` (access/transam/xact.c) gives
XACT_EVENT_COMMIT after others can see the commit, XACT_EVENT_ABORT after a rollback, and
XACT_EVENT_PREPARE after PREPARE TRANSACTION; nothing for a savepoint, nor for COMMIT PREPARED.
tests/database/test_wake_up.py checks it: test_only_a_commit_wakes, test_a_prepared_transaction.
"""

from __future__ import annotations

from pgnet.server import backend
from pgnet.server.wake_up import SIGNALS, Sender


class CommitHook:
    """The signals that the running transaction wants to send, which go out after its commit."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._armed: set[str] = set()

    def arm(self, signal: str) -> None:
        """Send ``signal`` when the running transaction commits.

        ``wake`` goes to one worker, ``callback`` to all runners, and what else there is to all
        workers.
        """
        self._armed.add(signal)

    def at_end(self, event: int) -> None:
        """The server's callback at the end of a transaction. Events not known are ignored."""
        if not self._armed:
            return
        if event in (backend.COMMIT, backend.PARALLEL_COMMIT):
            # Settings and rules first: requests of the same transaction are meant to meet them.
            for signal in self._armed - {"wake", "callback"}:
                self._sender.send_all(signal)
            if "callback" in self._armed:
                self._sender.send_to_runners()
            if "wake" in self._armed:
                self._sender.send("wake")
        elif event == backend.PREPARE:
            # COMMIT PREPARED may come from any session, and says nothing. The worker polls each
            # second for a while.
            self._sender.send("prepared")
        elif event not in (backend.ABORT, backend.PARALLEL_ABORT):
            return
        self._armed.clear()


# A backend has one of each: the hook, or why it has none; and the closure that the server calls.
_hook: CommitHook | None = None
_fault: str | None = None
_pinned: list[object] = []


def registered() -> bool:
    """Whether this backend has its callback."""
    return _hook is not None


def fault() -> str | None:
    """Why this backend cannot have its callback, as far as it is known."""
    return _fault


def register() -> str | None:
    """Register this backend's callback, if it has none; returns None, or why it cannot have one."""
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

    Returns None, or why commits of this backend cannot signal. The request is queued all the same,
    and a worker finds it when it polls.

    Raises ValueError for an unknown signal, since nothing may raise at the commit.
    """
    if signal not in SIGNALS:
        raise ValueError(f"the signal {signal!r} is not known")
    if _hook is None and register() is not None:
        return _fault
    assert _hook is not None
    _hook.arm(signal)
    return None
