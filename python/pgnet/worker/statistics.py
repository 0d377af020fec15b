"""What has come of requests, counted by place and minute, until the database is told.

A place is a host and the role whose requests go there. Once a second the worker reports what it
has counted. For each place that is the sum of the present minute, so that a report which comes
twice, or which got lost, does no harm: the database overwrites what it has of this worker and
minute. Minutes are those of the database's clock, which each report brings back.

Times are counted in buckets. Each bound is 2 ** (1/4) times the one before, so that the middle of a
bucket is less than 10 % away from every time in it.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from pgnet.outbox import Claim, Outcome

# The upper bounds of the buckets in milliseconds: from 0.1 ms to two days. pgnet.bucket_middle has
# the same rule.
BOUNDS = tuple(0.1 * 2 ** (bucket / 4) for bucket in range(124))
# At so many places at most requests are counted by place within a minute; and beyond them in all.
MOST_PLACES = 1000
# Stands for all hosts: no URL has it as its host.
ALL_HOSTS = "*"
# A request that was made so many seconds ago does not count as made in this minute.
_MINUTE = 60.0

_Key: TypeAlias = "tuple[str, int]"


class Counts:
    """What has come of requests at a place.

    made: requests at their first attempt that were made less than a minute ago. attempts: that have
    ended, and how many failed. ended: requests whose last attempt that was. first_byte, total: how
    many attempts have taken how long, by the number of the bucket.
    """

    __slots__ = ("attempts", "ended", "failed", "first_byte", "made", "total")

    def __init__(self) -> None:
        self.made = self.attempts = self.failed = self.ended = 0
        self.first_byte: dict[int, int] = {}
        self.total: dict[int, int] = {}

    def add(self, other: Counts) -> None:
        """Add what another one has counted."""
        self.made += other.made
        self.attempts += other.attempts
        self.failed += other.failed
        self.ended += other.ended
        for mine, more in ((self.first_byte, other.first_byte), (self.total, other.total)):
            for bucket, number in more.items():
                mine[bucket] = mine.get(bucket, 0) + number

    def as_json(self, host: str, role: int) -> dict[str, Any]:
        """As pgnet.report_work takes it."""
        return {
            "host": host,
            "role": role,
            "made": self.made,
            "attempts": self.attempts,
            "failed": self.failed,
            "ended": self.ended,
            "first_byte_buckets": list(self.first_byte),
            "first_byte_counts": list(self.first_byte.values()),
            "total_buckets": list(self.total),
            "total_counts": list(self.total.values()),
        }


class Statistics:
    """The counts of the present minute.

    clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Since the last report.
        self._new: dict[_Key, Counts] = {}
        # Of this minute, as far as it was counted up to the last report; the changed ones are not
        # known to the database.
        self._sums: dict[_Key, Counts] = {}
        self._changed: set[_Key] = set()
        # The present minute by the database's clock, and that clock at zero of ours.
        self._minute: int | None = None
        self._zero: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether the database knows all."""
        return not self._new and not self._changed

    def begun(self, claim: Claim) -> None:
        """An attempt has begun."""
        if claim.attempt == 1 and claim.age < _MINUTE:
            self._at(claim).made += 1

    def ended(self, claim: Claim, outcome: Outcome) -> None:
        """An attempt has ended."""
        counts = self._at(claim)
        state = outcome.state
        if state != "retrying":
            counts.ended += 1
            if state in ("cancelled", "expired"):
                # It was not sent.
                return
        counts.attempts += 1
        if state != "succeeded":
            counts.failed += 1
        milliseconds = outcome.first_byte_ms
        if milliseconds is not None:
            buckets = counts.first_byte
            bucket = bisect_left(BOUNDS, milliseconds)
            buckets[bucket] = buckets.get(bucket, 0) + 1
        milliseconds = outcome.total_ms
        if milliseconds is not None:
            buckets = counts.total
            bucket = bisect_left(BOUNDS, milliseconds)
            buckets[bucket] = buckets.get(bucket, 0) + 1

    def _at(self, claim: Claim) -> Counts:
        key = (claim.host, claim.role)
        counts = self._new.get(key)
        if counts is None:
            if len(self._new) >= MOST_PLACES:
                key = (ALL_HOSTS, claim.role)
                counts = self._new.get(key)
                if counts is not None:
                    return counts
            counts = self._new[key] = Counts()
        return counts

    def report(self) -> tuple[int | None, Sequence[dict[str, Any]]]:
        """The minute, and the places of which the database does not know all.

        None is the minute that it is for the database.
        """
        if self._zero is not None:
            minute = int((self._clock() + self._zero) // 60)
            if minute != self._minute and self._minute is not None and not self._changed:
                self._sums.clear()
                self._minute = minute
        new, self._new = self._new, {}
        for (host, role), counts in new.items():
            self._sum(host, role, counts)
            if host != ALL_HOSTS:
                self._sum(ALL_HOSTS, role, counts)
        entries = [self._sums[key].as_json(*key) for key in sorted(self._changed)]
        return self._minute, entries

    def _sum(self, host: str, role: int, counts: Counts) -> None:
        key = (host, role)
        known = self._sums.get(key)
        if known is None:
            if len(self._sums) >= MOST_PLACES and host != ALL_HOSTS:
                return
            known = self._sums[key] = Counts()
        known.add(counts)
        self._changed.add(key)

    def reported(self, database_time: float) -> None:
        """The database has taken the report. database_time: its clock, seconds since the epoch."""
        self._changed.clear()
        self._zero = database_time - self._clock()
        if self._minute is None:
            self._minute = int(database_time // 60)
