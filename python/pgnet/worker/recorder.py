"""What has ended and is not recorded yet: answers as they came, and the outcomes made of them."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from pgnet.outbox import Claim, Outcome
from pgnet.wire.answer import Answer

log = logging.getLogger("pgnet.worker")

# Bytes of response bodies that one recording takes: they are in memory thrice then.
_RECORD_BYTES = 8 << 20
# A row that somebody holds a lock on is tried again after this time, in seconds. Then the database
# takes the outcome, and keeps it until it can be recorded.
_HELD_UP_RETRY = 0.1
# An outcome of more bytes is taken so the first time: it is not to be sent twice.
_LARGE = 100_000

Flight = TypeVar("Flight")


@dataclass(slots=True)
class _Ended(Generic[Flight]):
    claim: Claim
    flight: Flight
    answer: Answer | str


class Recorder(Generic[Flight]):
    """The way from an answer to the database.

    read: makes the outcome of a flight's answer. ``size`` counts the bytes of all bodies and
    headers that wait here, whatever they wait for.
    """

    def __init__(self, read: Callable[[Flight, Answer | str], Outcome]) -> None:
        self._read = read
        self._answers: deque[_Ended[Flight]] = deque()
        self._outcomes: list[Outcome] = []
        self._held_up: list[Outcome] = []
        self._held_until = 0.0
        # A recording that failed as a whole is tried again in parts, down to one outcome.
        self._most = 1 << 30
        self.size = 0
        # When the first of those that wait has ended.
        self.first = 0.0

    def __len__(self) -> int:
        """How many can be recorded now."""
        return len(self._answers) + len(self._outcomes)

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits, not for a lock either."""
        return not (self._answers or self._outcomes or self._held_up)

    @property
    def held_until(self) -> float:
        """When those that a lock holds up are tried again; infinity where there are none."""
        return self._held_until if self._held_up else float("inf")

    def ids(self) -> list[int]:
        """The requests whose outcomes are here."""
        outcomes = [outcome.id for outcome in self._outcomes + self._held_up]
        return outcomes + [ended.claim.id for ended in self._answers]

    def add(self, claim: Claim, flight: Flight, answer: Answer | str) -> None:
        """A request has ended."""
        if not len(self):
            self.first = time.monotonic()
        self._answers.append(_Ended(claim, flight, answer))
        self.size += _size(answer)

    def look(self, now: float) -> None:
        """Try those again that were held up, if it is time."""
        if now >= self.held_until:
            self._outcomes += self._held_up
            self._held_up = []

    def batch(self, count: int) -> list[Outcome]:
        """At most so many outcomes, and so large that they can be in memory thrice."""
        size, number = 0, 0
        while number < min(count, self._most) and size < _RECORD_BYTES:
            if number == len(self._outcomes):
                if not self._answers:
                    break
                # One at a time: what waits stays as it came.
                ended = self._answers.popleft()
                self.size -= _size(ended.answer)
                outcome = self._read(ended.flight, ended.answer)
                if outcome.size > _LARGE:
                    outcome = replace(outcome, put_aside=True)
                self._outcomes.append(outcome)
                self.size += _size(outcome)
            size += self._outcomes[number].size
            number += 1
        return self._outcomes[:number]

    def recorded(self, batch: Sequence[Outcome], held_up: Collection[int]) -> None:
        """The database has taken a batch, except these, whose rows somebody holds a lock on."""
        del self._outcomes[: len(batch)]
        kept = [replace(outcome, put_aside=True) for outcome in batch if outcome.id in held_up]
        self._held_up += kept
        self._held_until = time.monotonic() + _HELD_UP_RETRY
        self.size += sum(map(_size, kept)) - sum(map(_size, batch))
        if self._most < len(self):
            self._most *= 2

    def failed(self, batch: Sequence[Outcome]) -> None:
        """The database could not take a batch: the next one is smaller, so that others get by."""
        self._most = max(1, len(batch) // 2)
        if len(batch) == 1:
            del self._outcomes[0]
            self._held_up.append(replace(batch[0], put_aside=True))
            self._held_until = time.monotonic() + _HELD_UP_RETRY

    def lighten(self, batch: Sequence[Outcome]) -> None:
        """There is no memory to record these: the largest goes without its body.

        It is written into several buffers, one after another. Without an outcome it would be
        attempted again, and bring down the next worker. Raises MemoryError where none has a body.
        """
        largest = max(batch, key=lambda outcome: outcome.size, default=None)
        if largest is None or not largest.size:
            raise MemoryError
        log.error("request %s: no memory to record %d bytes", largest.id, largest.size)
        self._outcomes[self._outcomes.index(largest)] = largest.without_content
        self.size -= largest.size

    def drop(self, ids: Collection[int]) -> None:
        """Forget what belongs to these requests."""
        self._answers = deque(ended for ended in self._answers if ended.claim.id not in ids)
        self._outcomes = [outcome for outcome in self._outcomes if outcome.id not in ids]
        self._held_up = [outcome for outcome in self._held_up if outcome.id not in ids]
        self.size = sum(_size(ended.answer) for ended in self._answers) + sum(
            _size(outcome) for outcome in self._outcomes + self._held_up
        )


def _size(ended: Answer | Outcome | str) -> int:
    if isinstance(ended, str):
        return 0
    headers = sum(len(name) + len(value) for name, value in ended.header_list or ())
    return ended.size + headers
