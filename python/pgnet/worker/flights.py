"""The requests in flight, how many more there may be, and how many of them one host may have.

Four limits hold at once:

- ``window.most``, the setting concurrency: all that is in flight.
- ``window.size``, between a floor and ``most``: what has been in flight for a moment only. Such
  requests keep the loop busy with connecting, sending and reading, and the window follows how busy
  it is. A request that is in flight for longer mostly waits for a server that hangs. It does not
  count here, since it must not take the room of others.
- Three quarters of ``most``: what one host may have. However slow a host is, others find room.
- What a host can bear, by place: adaptive.py.

A claim asks for a batch at most. Where requests for several hosts wait, one host gets half of the
free slots at most, so that the second one in the order of turns is served by the same claim. Where
only one host waits, it may have all that its limit leaves. The database knows how many hosts wait;
so it is given both numbers. It is also given the hosts that are full. When one of them has
room again there may be requests that the claim passed over: ``remove`` says so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pgnet.outbox import Claim, Demand, Place
from pgnet.wire.exchange import Handle
from pgnet.worker.adaptive import Adaptive
from pgnet.worker.assemble import Assembled
from pgnet.worker.delivery import PLAIN, Delivery
from pgnet.worker.stubs import StubbedRequest
from pgnet.worker.window import Window

# Bytes of requests that one claim brings into memory.
_CLAIM_BYTES = 64 << 20
# The part of all slots that one host may have.
_HOST_SHARE = 0.75
# So many requests that were late are remembered.
_LATE = 10_000
# A request counts for the window for so many seconds.
_RECENT = 0.25


@dataclass(slots=True)
class Flight:
    """A request in flight: its claim, when its attempt began, and what it became on the way.

    began: by the monotonic clock. send_by: when the request must have its connection, by the same
    clock; None: at any time. handle: stops it; None before it is sent and after its end.
    expires_at: no attempt begins from then on. is_ordered: others of its key may wait for its end.
    is_stubbed: a stub answers it, so that its answer says nothing of its host.
    """

    claim: Claim
    began: float
    send_by: float | None = None
    delivery: Delivery = PLAIN
    handle: Handle | StubbedRequest | None = None
    assembled: Assembled | None = None
    expires_at: float = math.inf
    is_ordered: bool = False
    is_stubbed: bool = False

    @property
    def deadline(self) -> float:
        """When its time is over, by the monotonic clock."""
        return self.began + self.claim.timeout_milliseconds / 1000


class Flights:
    """The requests in flight, by id. Times are of the monotonic clock."""

    def __init__(self, window: Window, adaptive: Adaptive) -> None:
        self.window = window
        self._adaptive = adaptive
        self._by_id: dict[int, Flight] = {}
        # When each of those began that count for the window, the first one first.
        self._recent: dict[int, float] = {}
        self._by_host: Counter[str] = Counter()
        # The hosts that were full at the last claim.
        self._passed_over: list[str] = []
        # Requests that had no connection in time, and were given back for that.
        self._late: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Flight]:
        return iter(self._by_id.values())

    @property
    def ids(self) -> Iterable[int]:
        """The ids of all requests in flight."""
        return self._by_id.keys()

    @property
    def begins(self) -> Iterable[float]:
        """When each request in flight began."""
        return (flight.began for flight in self._by_id.values())

    def get(self, id: int) -> Flight | None:
        """The flight of a request; None where it is not in flight."""
        return self._by_id.get(id)

    def add(self, flight: Flight) -> None:
        """A request is in flight from now on."""
        claim = flight.claim
        self._by_id[claim.id] = flight
        self._recent[claim.id] = flight.began
        self._by_host[claim.host] += 1
        self._adaptive.begun(Place(claim.host, claim.role), is_probe=claim.flow.probe)

    def remove(self, flight: Flight) -> bool:
        """A request is not in flight any more; whether the last claim has left others for it."""
        claim = flight.claim
        host = claim.host
        del self._by_id[claim.id]
        self._recent.pop(claim.id, None)
        self._by_host[host] -= 1
        if not self._by_host[host]:
            del self._by_host[host]
        has_left = self._adaptive.ended(Place(host, claim.role))
        return has_left or host in self._passed_over

    def is_late(self, flight: Flight, now: float) -> bool:
        """Whether a request that was not sent had no connection in time, for the first time here.

        Names are remembered and a second attempt is faster. Where it is not, the host is too slow.
        """
        id, late = flight.claim.id, self._late
        if flight.send_by is None or now < flight.send_by or id in late:
            return False
        late[id] = None
        if len(late) > _LATE:
            del late[next(iter(late))]
        return True

    def room(self, now: float) -> int:
        """How many more requests may be in flight now; not above zero where none may."""
        recent, window = self._recent, self.window
        while recent:
            id = next(iter(recent))
            if now - recent[id] < _RECENT:
                break
            del recent[id]
        window.adjust(len(recent))
        return min(window.size - len(recent), window.most - len(self._by_id))

    def full_hosts(self) -> list[str]:
        """The hosts that have as many requests in flight as one host may have."""
        limit = self.host_limit
        return [host for host, count in self._by_host.items() if count >= limit]

    def demand(
        self,
        free: int,
        batch_size: int,
        after: Place,
        until: Place | None,
        *,
        quarantined_only: bool,
    ) -> Demand:
        """What to ask the database for.

        free: what ``room`` has given. after, until: of the turns of hosts. quarantined_only: ask
        for one request that is in quarantine, and for no other.
        """
        limit = self.host_limit
        self._passed_over = self.full_hosts()
        # The same number is for all hosts, so it is that of the fullest one that is not full.
        quota = limit - max((count for count in self._by_host.values() if count < limit), default=0)
        return Demand(
            slots=min(free, batch_size),
            host_quota=min(quota, (free + 1) // 2),
            single_host_quota=quota,
            full_hosts=self._passed_over,
            max_bytes=_CLAIM_BYTES,
            after=after,
            until=until,
            quarantined_only=quarantined_only,
            rooms=self._adaptive.rooms(),
        )

    @property
    def host_limit(self) -> int:
        """How many requests one host may have in flight."""
        return max(1, int(self.window.most * _HOST_SHARE))
