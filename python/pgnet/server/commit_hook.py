"""The commit callback: it wakes a worker when a transaction commits, and only then.

This module runs in every caller's backend and imports the standard library only. A backend
registers one callback, which stays for the life of the process. The callback sends one datagram for
a transaction, however many requests the transaction made, and raises nothing. Where the transaction
has ended requests, the callback tells those that wait for them (waiters.py). Where it has waited
itself, the callback removes its socket file, however the transaction ends.

The callback relies on this in PostgreSQL's C: `CallXactCallbacks` (access/transam/xact.c) gives
XACT_EVENT_COMMIT after others can see the commit, XACT_EVENT_ABORT after a rollback, and
XACT_EVENT_PREPARE after PREPARE TRANSACTION; nothing for a savepoint, nor for COMMIT PREPARED.
tests/database/test_wake_up.py checks it: test_only_a_commit_wakes, test_a_prepared_transaction.
"""

from __future__ import annotations

from collections.abc import Sequence

from pgnet.server import backend
from pgnet.server.waiters import Waiter
from pgnet.server.wake_up import SIGNALS, Sender

# So many ends of one transaction are told. Those who wait for more look by themselves, and a role
# that tells of its own cancels takes no more memory than that.
_MOST_ENDS = 100_000


class CommitHook:
    """The signals that the running transaction wants to send, which go out after its commit.

    waiter: the socket by which the running transaction waits for a request; None where it does not.
    """

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._armed: set[str] = set()
        self._ended: list[int] = []
        self.waiter: Waiter | None = None

    def arm(self, signal: str) -> None:
        """Send ``signal`` when the running transaction commits.

        ``wake`` goes to one worker, ``callback`` to all runners, and what else there is to all
        workers.
        """
        self._armed.add(signal)

    def note_ends(self, ids: Sequence[int]) -> None:
        """Tell those that wait for these requests when the running transaction commits."""
        if len(self._ended) < _MOST_ENDS:
            self._ended += ids

    def at_end(self, event: int) -> None:
        """The server's callback at the end of a transaction. Events not known are ignored."""
        if not (self._armed or self._ended or self.waiter):
            return
        if event in (backend.COMMIT, backend.PARALLEL_COMMIT):
            if self._ended:
                self._sender.tell(self._ended)
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
            if self._armed:
                self._sender.send("prepared")
        elif event not in (backend.ABORT, backend.PARALLEL_ABORT):
            return
        self._armed.clear()
        self._ended = []
        if self.waiter is not None:
            self.waiter.close()
            self.waiter = None


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


def note_ends(ids: Sequence[int]) -> None:
    """Have the commit of the running transaction tell those that wait for these requests.

    Where commits of this backend cannot signal, those who wait find out by themselves.
    """
    if _hook is None and register() is not None:
        return
    assert _hook is not None
    _hook.note_ends(ids)


def waiter_for(request_id: int) -> Waiter | None:
    """The socket by which the running transaction waits for a request, if it is bound already."""
    if _hook is None or _hook.waiter is None or _hook.waiter.request_id != request_id:
        return None
    return _hook.waiter


def begin_to_wait(request_id: int) -> bool:
    """Bind a socket for the end of a request, in place of the one before; whether that could be.

    The end of the running transaction closes it. A commit before that is not noticed.
    """
    if _hook is None and register() is not None:
        return False
    assert _hook is not None
    if _hook.waiter is not None:
        _hook.waiter.close()
        _hook.waiter = None
    try:
        _hook.waiter = Waiter(backend.database_oid(), request_id)
    except OSError:
        return False
    return True
