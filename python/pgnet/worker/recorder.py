"""Requests that are not recorded yet: their answers as they came, and the outcomes made of these.

An answer waits here as it came, compressed as it may be. It becomes an outcome when it is about to
be recorded, so that few bodies are in memory as text.

The database takes a batch of outcomes as a whole, or refuses it as a whole. Of a batch that it
takes it may defer some: their rows are locked by somebody. These are tried again after a moment,
and then ``put_aside`` is set: the database keeps the outcome, and records it when the lock is gone.

A batch that is refused holds perhaps one outcome that cannot be recorded, so the next batch is half
as large, down to a single outcome. That one is deferred, and put aside the next time. While the
outcomes that were refused together are recorded, batches grow again.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from pgnet.outbox import OutboxFailed, Outcome
from pgnet.wire.answer import Answer
from pgnet.worker.backoff import Backoff
from pgnet.worker.flights import Flight
from pgnet.worker.outcome import NotSent

log = logging.getLogger("pgnet.worker")

# Bytes of response bodies that one recording takes: they are in memory three times then.
_BATCH_BYTES = 8 << 20
# An outcome that was deferred is tried again after this time, in seconds.
_RETRY_AFTER = 0.1
# An outcome of more bytes is to be put aside the first time: it is not to be sent twice.
_LARGE = 100_000
# For so many seconds at most an outcome waits for others that are recorded with it.
_LONGEST_WAIT = 0.05


@dataclass(slots=True)
class _Ended:
    flight: Flight
    answer: Answer | NotSent
    size: int


class Recorder:
    """The way from an answer to the database. Times are of the monotonic clock.

    read: makes the outcome of a flight's answer.
    size: the bytes of all bodies and headers that wait here, whatever they wait for.
    backoff: of recordings that fail as a whole.
    """

    def __init__(self, read: Callable[[Flight, Answer | NotSent], Outcome]) -> None:
        self._read = read
        self._answers: deque[_Ended] = deque()
        self._outcomes: list[Outcome] = []
        self._deferred: list[Outcome] = []
        self._retry_at = 0.0
        # The size of a batch, where one has failed.
        self._most = 1 << 30
        # When the first of those that can be recorded has ended, and how long it waits for others.
        self._first_ended = 0.0
        self._wait = 0.0
        self.size = 0
        self.backoff = Backoff("recording")

    def __len__(self) -> int:
        """How many can be recorded now."""
        return len(self._answers) + len(self._outcomes)

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits here, not for a lock either."""
        return not (self._answers or self._outcomes or self._deferred)

    @property
    def ids(self) -> list[int]:
        """The requests whose outcomes are here."""
        outcomes = [outcome.id for outcome in self._outcomes + self._deferred]
        return outcomes + [ended.flight.claim.id for ended in self._answers]

    @property
    def next_change(self) -> float:
        """When there is something to record, if nothing else ends; infinity where there is not."""
        at = self._retry_at if self._deferred else math.inf
        return min(at, max(self._wait_ends, self.backoff.retry_at)) if len(self) else at

    @property
    def _wait_ends(self) -> float:
        return self._first_ended + self._wait

    def may_wait(self, now: float, batch_size: int) -> bool:
        """Whether others may be waited for that end in a moment, to be recorded with these."""
        return now < self._wait_ends and len(self) < batch_size

    def wait_as_long_as(self, seconds: float) -> None:
        """Have outcomes wait for others as long as a transaction takes, so that they share one."""
        self._wait = min(seconds, _LONGEST_WAIT)

    def add(self, flight: Flight, answer: Answer | NotSent) -> None:
        """A request has ended."""
        if not len(self):
            self._first_ended = time.monotonic()
        size = _size(answer)
        self._answers.append(_Ended(flight, answer, size))
        self.size += size

    def retry_deferred(self, now: float) -> None:
        """Have deferred outcomes recorded again, if it is time."""
        if self._deferred and now >= self._retry_at:
            self._outcomes += self._deferred
            self._deferred = []

    def batch(self, count: int) -> list[Outcome]:
        """The outcomes to be recorded next: at most so many, and few where they are large."""
        size, number = 0, 0
        while number < min(count, self._most) and size < _BATCH_BYTES:
            if number == len(self._outcomes):
                if not self._answers:
                    break
                ended = self._answers.popleft()
                self.size -= ended.size
                outcome = self._read(ended.flight, ended.answer)
                if outcome.size > _LARGE:
                    outcome = outcome._replace(put_aside=True)
                self._outcomes.append(outcome)
                self.size += _size(outcome)
            size += self._outcomes[number].size
            number += 1
        return self._outcomes[:number]

    def recorded(self, batch: Sequence[Outcome], deferred: Collection[int]) -> None:
        """The database has taken a batch, except those with these ids, whose rows are locked."""
        self.backoff.succeeded()
        del self._outcomes[: len(batch)]
        kept = [outcome._replace(put_aside=True) for outcome in batch if outcome.id in deferred]
        self._deferred += kept
        self._retry_at = time.monotonic() + _RETRY_AFTER
        self.size += sum(map(_size, kept)) - sum(map(_size, batch))
        if self._most < len(self):
            self._most *= 2

    def failed(self, batch: Sequence[Outcome], error: OutboxFailed) -> None:
        """The database has refused a batch."""
        self.backoff.failed(error, retry_differs=len(batch) > 1)
        self._most = max(1, len(batch) // 2)
        if len(batch) == 1:
            del self._outcomes[0]
            self._deferred.append(batch[0]._replace(put_aside=True))
            self._retry_at = time.monotonic() + _RETRY_AFTER

    def lighten(self, batch: Sequence[Outcome]) -> None:
        """Drop the largest body of a batch that there is no memory to record.

        A body is written into several buffers, one after another. A request without an outcome
        would be attempted again, and would bring down the next worker.

        Raises MemoryError where no outcome has a body.
        """
        largest = max(batch, key=lambda outcome: outcome.size, default=None)
        if largest is None or not largest.size:
            raise MemoryError
        log.error("request %s: no memory to record %d bytes", largest.id, largest.size)
        self._outcomes[self._outcomes.index(largest)] = largest.without_content
        self.size -= largest.size

    def drop(self, ids: Collection[int]) -> None:
        """Forget the answers and outcomes of these requests."""
        self._answers = deque(ended for ended in self._answers if ended.flight.claim.id not in ids)
        self._outcomes = [outcome for outcome in self._outcomes if outcome.id not in ids]
        self._deferred = [outcome for outcome in self._deferred if outcome.id not in ids]
        self.size = sum(ended.size for ended in self._answers) + sum(
            _size(outcome) for outcome in self._outcomes + self._deferred
        )


def _size(ended: Answer | Outcome | NotSent) -> int:
    if isinstance(ended, NotSent):
        return 0
    size = ended.size
    # A loop, since a generator would take several times as long, for each request.
    for name, value in ended.header_list or ():
        size += len(name) + len(value)
    return size
