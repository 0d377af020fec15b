"""A model of the queue for a state machine: what may happen to each request, and what must.

It knows no database. Times are in ticks since the beginning: the clock stands at whole ticks, and
everything falls due between two of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

# From the second loss on a request is attempted alone; with so many it ends as failed.
QUARANTINE, MAX_LOSSES = 2, 5
# Ends that block an ordering key.
BLOCKING = frozenset(["failed", "unknown"])


@dataclass(slots=True)
class Request:
    """A request, as its caller has made it, and where it is now."""

    id: int
    role: str
    host: str
    at_most_once: bool = False
    key: str | None = None
    skips: bool = False
    after: tuple[int, ...] = ()
    after_any_end: bool = False
    not_before: float | None = None
    not_after: float | None = None
    # Until the first claim, calls with this key are merged into it.
    unique_key: str | None = None
    made: float = 0
    # What comes first in its key; the retry of a head that blocks goes in its place.
    rank: int = 0
    # the state it has ended with
    ended: str | None = None
    # whether a worker has claimed it, and it was not given back unsent
    attempted: bool = False
    # when its next attempt is due
    due: float | None = None
    # the worker that has it in flight
    worker: int | None = None
    losses: int = 0
    # what its caller has asked for: cancel or forget
    mark: str | None = None
    # whether net.retry can send it again
    failure: bool = False
    # whether another session holds a lock on its row
    locked: bool = False

    def __post_init__(self) -> None:
        self.rank = self.rank or self.id

    @property
    def open(self) -> bool:
        return self.ended is None

    @property
    def place(self) -> tuple[bool, int]:
        """Its place in its key: one that was attempted before another one was there stays first."""
        return not self.attempted, self.rank

    @property
    def quarantined(self) -> bool:
        return self.losses >= QUARANTINE


@dataclass(slots=True)
class Model:
    """All requests that were committed, and the rules for them."""

    now: float = 0
    requests: dict[int, Request] = field(default_factory=dict)
    # the heads that block keys, by role and key
    blocked: dict[tuple[str, str], Request] = field(default_factory=dict)
    # retries of such heads that no worker has examined yet, with the heads
    retried: list[tuple[Request, Request]] = field(default_factory=list)
    paused: set[str] = field(default_factory=set)
    concurrency: dict[str, int] = field(default_factory=dict)
    # what was cancelled in flight, and whose connection may still be open
    lingering: list[Request] = field(default_factory=list)

    # ---- which there are

    def in_flight(self, worker: int | None = None) -> list[Request]:
        """Those in flight, with one worker or with any."""
        return [
            r
            for r in self.requests.values()
            if r.open and r.worker is not None and worker in (None, r.worker)
        ]

    def failures(self) -> list[Request]:
        """Those that can be sent again."""
        return [r for r in self.requests.values() if r.failure and r.mark is None]

    def merges_with(self, role: str, unique_key: str) -> Request | None:
        """The request that a call with this unique key changes or leaves as it is."""
        for request in self.requests.values():
            if request.open and (request.role, request.unique_key) == (role, unique_key):
                return None if request.mark or self.is_too_late(request) else request
        return None

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
        for name, time in (("its next attempt", request.due), ("it", request.not_before)):
            if time is not None and time > self.now:
                yield f"{name} is not due before {time}"
        if self.paused & {request.host, request.host.split(":")[0], "*"}:
            yield f"{request.host} is paused"
        hosts = [r.host for r in [*self.in_flight(), *self.lingering]]
        flying = hosts.count(request.host)
        if flying >= self.concurrency.get(request.host, flying + 1):
            yield f"{request.host} has {flying} in flight"
        yield from self._before_it(request)

    def _before_it(self, request: Request) -> Iterator[str]:
        for id in request.after:
            first = self.requests.get(id)
            if first is not None and first.open:
                yield f"it comes after {id}, which has not ended"
        if self.fate(request) == "doomed":
            yield f"one of {request.after} has not ended well"
        if request.key is None:
            return
        head = self.blocked.get((request.role, request.key))
        if head is not None:
            yield f"its key is blocked by {head.id}"
        for other in [*self.requests.values(), *self.lingering]:
            if (other.open or other in self.lingering) and (other.role, other.key) == (
                request.role,
                request.key,
            ):
                if other.worker is not None or not other.open:
                    yield f"{other.id} of its key is in flight"
                if other.place < request.place:
                    yield f"{other.id} of its key comes first"

    def fate(self, request: Request) -> str | None:
        """Whether those in `after` have it cancelled: doomed; perhaps, where one was forgotten."""
        if request.after_any_end:
            return None
        before = [self.requests.get(id) for id in request.after]
        if any(r is not None and not r.open and r.ended != "succeeded" for r in before):
            return "doomed"
        return "perhaps" if None in before else None

    def ready(self, *, quarantined: bool = False) -> list[Request]:
        """Those that a claim must take if it has room."""
        return [
            r
            for r in self.requests.values()
            if r.quarantined == quarantined
            and not r.locked
            and self.obstacle(r) is None
            and self.fate(r) is None
            and not self.is_too_late(r)
        ]

    def is_too_late(self, request: Request) -> bool:
        return request.not_after is not None and request.not_after <= self.now

    def endings(self, request: Request) -> set[str]:
        """The states with which an open request may end without anybody doing anything."""
        if request.worker is not None:
            return set()
        states = set()
        if self.fate(request) is not None:
            states.add("cancelled")
        if self.is_too_late(request):
            states.add("expired")
        return states

    # ---- what happens

    def take(self, id: int, worker: int, *, quarantined: bool = False) -> Request:
        """A worker has claimed a request: raises AssertionError where it must not."""
        request = self.requests.get(id)
        assert request is not None, f"request {id} was claimed, and it was never committed"
        obstacle = self.obstacle(request)
        assert obstacle is None, f"{request} was claimed at {self.now}, though {obstacle}"
        assert request.quarantined == quarantined, f"{request}: in quarantine?"
        assert not request.locked, f"{request} was claimed, and another session holds a lock on it"
        request.worker = worker
        request.due = request.unique_key = None
        return request

    def end(self, request: Request, state: str) -> None:
        """A request has an outcome."""
        assert request.open, f"{request} has another outcome: {state}"
        request.failure = state == "failed"
        request.ended = state
        request.worker = request.due = None
        self._block_again(request)
        if request.key is not None and state in BLOCKING and not request.skips:
            self.blocked.setdefault((request.role, request.key), request)

    def unblock(self, request: Request) -> bool:
        """Let a key run that this head blocks; whether it did."""
        key = (request.role, request.key or "")
        if self.blocked.get(key) is not request:
            return False
        del self.blocked[key]
        return True

    def head_of(self, role: str, key: str) -> Request | None:
        """The request that blocks a key; from its retry on it does not."""
        return self.blocked.get((role, key))

    def send_again(self, request: Request, id: int) -> None:
        """The head of a blocked key takes its old place."""
        request.failure = False
        retry = Request(
            id, request.role, request.host, request.at_most_once, request.key, request.skips
        )
        self.requests[id] = retry
        if self.unblock(request):
            retry.rank = request.rank
            self.retried.append((request, retry))

    def examine(self) -> None:
        """A claim opens the gates of what no other session has locked."""
        self.retried = [pair for pair in self.retried if pair[1].locked]

    def put_back(self, request: Request, due: float) -> None:
        """An attempt has failed, and another one is due later."""
        request.worker = None
        request.attempted = True
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
            request.attempted = True

    def _block_again(self, request: Request) -> None:
        """A retry that ends before a worker has seen it lets nothing run."""
        for head, retry in self.retried:
            if retry is request and request.key is not None:
                self.retried.remove((head, retry))
                self.blocked[request.role, request.key] = head
                return

    def give_back(self, request: Request, *, begun: bool) -> None:
        """A worker gives a claim back that it has begun or not."""
        if begun and request.at_most_once:
            self.end(request, "unknown")
        else:
            request.worker = None
            request.attempted |= begun

    def act_on_marks(self) -> None:
        """A heartbeat ends what is marked, but for what another session has locked."""
        for request in [r for r in self.requests.values() if r.mark and not r.locked]:
            if request.mark == "forget":
                del self.requests[request.id]
                self._block_again(request)
            else:
                if request.open:
                    self.end(request, "cancelled")
                request.mark = None
