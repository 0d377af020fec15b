"""A model of the queue for a state machine: what may happen to each request, and what must.

It knows no database. Times are in ticks since the beginning: the clock stands at whole ticks, and
everything falls due between two of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

GOOD = frozenset(["succeeded"])
# From the second loss on a request is attempted alone; with so many it ends as failed.
QUARANTINE, MAX_LOSSES = 2, 5


@dataclass(slots=True)
class Request:
    """A request, as its caller has made it, and where it is now."""

    id: int
    role: str
    host: str
    at_most_once: bool = False
    # the state it has ended with
    ended: str | None = None
    # when its next attempt is due
    due: float | None = None
    # the worker that has it in flight
    worker: int | None = None
    attempts: int = 0
    losses: int = 0
    # what its caller has asked for: cancel or forget
    mark: str | None = None
    # a failure that was sent again
    sent_again: bool = False
    # whether another session holds a lock on its row
    locked: bool = False

    @property
    def open(self) -> bool:
        return self.ended is None

    @property
    def quarantined(self) -> bool:
        return self.losses >= QUARANTINE


@dataclass(slots=True)
class Model:
    """All requests that were committed, and the rules for them."""

    now: float = 0
    requests: dict[int, Request] = field(default_factory=dict)

    # ---- which there are

    def waiting(self) -> list[Request]:
        """Those that are neither in flight nor ended."""
        return [r for r in self.requests.values() if r.open and r.worker is None]

    def in_flight(self, worker: int | None = None) -> list[Request]:
        """Those in flight, with one worker or with any."""
        return [
            r
            for r in self.requests.values()
            if r.open and r.worker is not None and worker in (None, r.worker)
        ]

    def failures(self) -> list[Request]:
        """Those that can be sent again."""
        return [r for r in self.requests.values() if r.ended == "failed" and not r.sent_again]

    # ---- what may happen

    def obstacle(self, request: Request) -> str | None:
        """Why a worker must not take a request now; None: it may, and in time it must."""
        return next(self._obstacles(request), None)

    def _obstacles(self, request: Request) -> Iterator[str]:
        if request.ended is not None:
            yield f"it has ended as {request.ended}"
        if request.worker is not None:
            yield f"worker {request.worker} has it in flight"
        if request.mark is not None:
            yield f"it is marked: {request.mark}"
        if request.due is not None and request.due > self.now:
            yield f"its next attempt is due at {request.due}"

    def ready(self, *, quarantined: bool = False) -> list[Request]:
        """Those that a claim must take if it has room."""
        return [
            r
            for r in self.requests.values()
            if r.quarantined == quarantined and not r.locked and self.obstacle(r) is None
        ]

    # ---- what happens

    def take(self, id: int, worker: int, *, quarantined: bool = False) -> None:
        """A worker has claimed a request: raises AssertionError where it must not."""
        request = self.requests.get(id)
        assert request is not None, f"request {id} was claimed, and it was never committed"
        obstacle = self.obstacle(request)
        assert obstacle is None, f"request {id} was claimed at {self.now}, though {obstacle}"
        assert request.quarantined == quarantined, f"{request}: in quarantine?"
        assert not request.locked, f"{request} was claimed, and another session holds a lock on it"
        request.worker = worker
        request.due = None
        request.attempts += 1

    def end(self, request: Request, state: str) -> None:
        """A request has an outcome."""
        assert request.open, f"{request} has another outcome: {state}"
        request.ended = state
        request.worker = request.due = None

    def put_back(self, request: Request, due: float) -> None:
        """An attempt has failed, and another one is due later."""
        request.worker = None
        request.due = due

    def lose(self, request: Request) -> None:
        """The claim of a lost worker is returned."""
        request.losses += 1
        if request.at_most_once:
            self.end(request, "unknown")
        elif request.losses >= MAX_LOSSES:
            self.end(request, "failed")
        else:
            request.worker = request.due = None

    def give_back(self, request: Request, *, begun: bool) -> None:
        """A worker gives a claim back that it has begun or not."""
        if begun and request.at_most_once:
            self.end(request, "unknown")
            return
        request.attempts -= not begun
        request.worker = None

    def act_on_marks(self) -> None:
        """A heartbeat ends what is marked, but for what another session has locked."""
        for request in [r for r in self.requests.values() if r.mark and not r.locked]:
            if request.mark == "forget":
                del self.requests[request.id]
            else:
                request.mark = None
                if request.open:
                    self.end(request, "cancelled")

    def endings(self, request: Request) -> set[str]:
        """The states with which an open request may end without anybody doing anything."""
        return set()
