"""How many requests one place may have in flight: it adapts by itself.

A place is a host and the role whose requests go there. Nobody says how much a host can bear. So the
limit of a place grows while the host answers, and shrinks where it does not: additive increase,
multiplicative decrease, as TCP does (Chiu and Jain 1989; RFC 5681). A host that hangs has a few
requests in flight, and not all slots of the worker.

The constants:

- A place begins with 32 requests: small beside the setting concurrency (1,000), and about what
  concurrency-limits of Netflix begins with (20 in its Gradient2Limit, 10 in its AIMDLimit).
- Slow start (RFC 5681, section 3.1): until the first sign of congestion each answer makes it one
  more, so that it doubles in a round trip. From then on it grows by one in a round trip.
- It only grows while at least half of it is in use (``inflight * 2 >= limit`` in AIMDLimit):
  otherwise nothing was learnt.
- No answer, a refusal, 429 and 503 halve it (RFC 5681, section 3.1: ssthresh), once for all
  requests that had begun before (RFC 6582 does so once in a window): they tell of one moment.
- Answers that take longer make it smaller by a tenth (the ``backoffRatio`` 0.9 of AIMDLimit):
  where a round took twice as long as usual, which is where Gradient2Limit reacts in full (its
  gradient ends at 0.5), and 0.1 s more, since below that the worker's own loop is what takes the
  time. Usual is a mean over about 600 answers (``longWindow`` of Gradient2Limit).
- With a probe it is 1, and it doubles from there: no storm meets a host that has just come back.
- A place without requests is forgotten after a time. Its limit says little by then (RFC 5681,
  section 4.1).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pgnet.outbox import Place
from pgnet.worker.breaker import Verdict

INITIAL = 32
_ON_FAILURE, _ON_LATENCY = 0.5, 0.9
_SLOWER, _SLACK = 2.0, 0.1
_USUAL = 600
# Seconds after which a place without requests is forgotten: one that has grown, and one that has
# shrunk. So many are known at most.
_GROWN, _SHRUNK, _KNOWN = 10.0, 60.0, 1000
# A place with fewer requests in flight is not worth naming: it gets room for INITIAL more.
_FEW = INITIAL // 4


@dataclass(slots=True)
class _Limit:
    """The limit of a place. Times are of the monotonic clock.

    given: how many more the claim may still take of those that it was allowed. has_left: the claim
    took all of them, so that there may be others. threshold: slow start ends here. shrunk_at: when
    it last shrank; requests that began before say nothing new. usual: seconds to the first byte,
    None before the first round. A round is over after ``round`` answers: as many as could be in
    flight when it began. most: how many were in flight at once in it. answers, seconds: of this
    round. known: what ``changes`` has said last; 0: nothing.
    """

    limit: float = INITIAL
    threshold: float = float("inf")
    in_flight: int = 0
    given: int = INITIAL
    has_left: bool = False
    shrunk_at: float = 0.0
    used_at: float = 0.0
    usual: float | None = None
    round: int = INITIAL
    most: int = 0
    answers: int = 0
    seconds: float = 0.0
    known: int = 0

    @property
    def has_shrunk(self) -> bool:
        return self.threshold < float("inf")

    def shrink(self, factor: float, now: float) -> None:
        self.limit = max(1.0, self.limit * factor)
        self.threshold = max(2.0, self.limit)
        self.shrunk_at = now
        self._next_round()

    def _next_round(self) -> None:
        self.round, self.most = int(self.limit), self.in_flight
        self.answers, self.seconds = 0, 0.0

    def grow(self) -> None:
        if self.most * 2 > self.limit:
            self.limit += 1.0 if self.limit < self.threshold else 1.0 / self.limit

    def is_slow(self, latency: float) -> bool:
        return self.usual is not None and latency > self.usual * _SLOWER + _SLACK

    def answered(self, latency: float, now: float) -> None:
        """Judge a round, when it is over: as many answers as may be in flight."""
        self.answers += 1
        self.seconds += latency
        if self.answers < self.round:
            return
        mean = self.seconds / self.answers
        if self.usual is None:
            self.usual = mean
        elif self.is_slow(mean):
            self.shrink(_ON_LATENCY, now)
        # What is slow for long is usual at last.
        self.usual += (mean - self.usual) * min(1.0, self.round / _USUAL)
        self._next_round()


class Adaptive:
    """The limits of all places. most: what one host may have, whatever it can bear.

    applies_to: whether the limit of a place adapts by itself: not where a limit is set.
    """

    def __init__(
        self,
        applies_to: Callable[[Place], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.most = 1
        self._applies_to = applies_to
        self._clock = clock
        self._places: dict[Place, _Limit] = {}
        # Places that are not known any more, and what was last said of them is not true.
        self._recovered: set[Place] = set()
        self._claim_again = False

    def begun(self, place: Place, *, is_probe: bool) -> None:
        """A request of the place is in flight."""
        state = self._places.get(place)
        if state is None:
            state = self._places[place] = _Limit()
        state.in_flight += 1
        state.most = max(state.most, state.in_flight)
        state.given -= 1
        if state.given <= 0:
            state.has_left = True
            if not self._applies_to(place):
                self._claim_again = True
        if is_probe:
            state.threshold = max(2.0, min(state.threshold, state.limit / 2, self.most / 2))
            state.limit = 1.0

    def claims_again(self) -> bool:
        """Whether the last claim took too few of a place that has no limit; asked once."""
        again, self._claim_again = self._claim_again, False
        return again

    def ended(self, place: Place) -> bool:
        """A request is not in flight any more; gives whether a claim may have left others."""
        state = self._places.get(place)
        if state is None:
            return False
        has_left, state.has_left = state.has_left, False
        state.in_flight -= 1
        if not state.in_flight and state.limit == INITIAL and not state.has_shrunk:
            del self._places[place]
        else:
            state.used_at = self._clock()
        return has_left

    def judged(self, place: Place, verdict: Verdict, began: float) -> None:
        """Learn from an attempt. Called before ``ended``. began: when the request was begun."""
        state = self._places.get(place)
        if state is None:
            return
        if verdict.is_congestion:
            if began >= state.shrunk_at:
                state.shrink(_ON_FAILURE, self._clock())
        elif verdict.result == "ok":
            if state.limit < self.most:
                if verdict.latency is not None and not state.is_slow(verdict.latency):
                    state.grow()
            elif state.has_shrunk:
                # The host bears all that it may have.
                state.threshold = float("inf")
            if verdict.latency is not None and began >= state.shrunk_at:
                state.answered(verdict.latency, self._clock())

    def rooms(self) -> dict[str, int]:
        """How many more requests each place may have, by "ROLE_OID HOST", and "*" any other."""
        now = self._clock()
        rooms = {"*": INITIAL}
        forgotten = []
        for place, state in self._places.items():
            if not state.in_flight:
                kept = _SHRUNK if state.has_shrunk else _GROWN
                if now - state.used_at > kept or len(self._places) > _KNOWN:
                    forgotten.append(place)
                    continue
            state.given = INITIAL
            if not self._applies_to(place):
                state.given = self.most
            elif state.limit != INITIAL or state.in_flight >= _FEW:
                state.given = max(0, int(state.limit) - state.in_flight)
            if state.given != INITIAL:
                rooms[f"{place.role} {place.host}"] = state.given
            state.has_left = not state.given
        for place in forgotten:
            if self._places.pop(place).known:
                self._recovered.add(place)
        return rooms

    def full(self) -> dict[str, int]:
        """The places that have as many requests in flight as they may have, and how many."""
        return {
            f"{place.role} {place.host}": int(state.limit)
            for place, state in self._places.items()
            if state.in_flight >= int(state.limit) and self._applies_to(place)
        }

    def changes(self) -> Mapping[Place, int]:
        """The limits that hosts have made less, as far as they are not known yet; 0: not less."""
        changes = dict.fromkeys(self._recovered, 0)
        self._recovered.clear()
        for place, state in self._places.items():
            now_at = int(state.limit) if state.has_shrunk and self._applies_to(place) else 0
            # A little more or less is not worth a row's change.
            if abs(now_at - state.known) * 10 > state.known or (not now_at and state.known):
                state.known = changes[place] = now_at
        return changes
