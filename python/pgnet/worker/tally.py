"""How attempts have ended, counted by place, until it is reported to the database.

A place is a host and the role whose requests go there. Counts are reported once a second, and at
once where the breaker of a place may have reached a threshold, where a probe has ended, and where a
host asks for a pause. What could not be reported is added to the next report.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pgnet.outbox import Claim, Place
from pgnet.wire.host import BreakerSettings
from pgnet.worker.breaker import Verdict

# Reports are this far apart, in seconds: those that are not urgent, and those that are.
_INTERVAL, _URGENT_INTERVAL = 1.0, 0.02
# What another worker had locked is reported again after so many seconds.
_DEFERRED = 0.2
# Parts of a threshold that are reported at once, in percent: the alerts.
_LEVELS = (50, 70, 90, 100)
# Of so many places at most it is known how many attempts have failed in a row, and until when they
# are to be left alone.
_KNOWN = 10_000


@dataclass(slots=True)
class Count:
    """How attempts at a place have ended.

    ok, failed: how many. in_a_row: of the last ones, how many failed. cause: of the last failure.
    probe: how the probe ended, None where there was none. pause: seconds that the host asked for;
    pause_status: by which status. concurrency: how many requests the place may have in flight now,
    0 for no less than usual, None where that is known.
    """

    ok: int = 0
    failed: int = 0
    in_a_row: int = 0
    cause: str | None = None
    probe: str | None = None
    pause: float = 0.0
    pause_status: int | None = None
    concurrency: int | None = None

    def add(self, other: Count) -> None:
        """Add what came after it."""
        self.in_a_row = other.in_a_row if other.ok else self.in_a_row + other.failed
        self.ok += other.ok
        self.failed += other.failed
        self.cause = other.cause or self.cause
        self.probe = other.probe or self.probe
        if other.pause > self.pause:
            self.pause, self.pause_status = other.pause, other.pause_status
        if other.concurrency is not None:
            self.concurrency = other.concurrency


class Tally:
    """The counts that are not reported yet. Times are of the monotonic clock.

    due_at: when to report; infinity where there is nothing to report.
    """

    def __init__(self) -> None:
        self.due_at = math.inf
        self._counts: dict[Place, Count] = {}
        # The counts that are being reported.
        self._sent: dict[Place, Count] = {}
        self._sent_at = 0.0
        self._in_a_row: dict[Place, int] = {}
        self._paused_until: dict[Place, float] = {}

    def add(
        self,
        claim: Claim,
        verdict: Verdict,
        breaker: BreakerSettings,
        longest_pause: float,
        now: float,
    ) -> None:
        """Count an attempt that has ended.

        breaker: the settings of its host. longest_pause: a longer one counts as this, in seconds.
        """
        place = Place(claim.host, claim.role)
        count = self._counts.get(place)
        if count is None:
            count = self._counts[place] = Count()
            self._due(max(now, self._sent_at + _INTERVAL))
        if verdict.result == "ok":
            count.ok += 1
            count.in_a_row = 0
            if self._in_a_row:
                self._in_a_row.pop(place, None)
        elif verdict.result == "failed":
            count.failed += 1
            count.in_a_row += 1
            count.cause = verdict.cause
            if self._fails_again(place, breaker):
                self._urgent(now)
        if claim.flow.probe:
            count.probe = verdict.result
            self._urgent(now)
        if verdict.pause > 0:
            self._pause(place, count, min(verdict.pause, longest_pause), verdict.status, now)

    def _fails_again(self, place: Place, breaker: BreakerSettings) -> bool:
        """Count failures in a row; gives whether there are as many as an alert needs."""
        if len(self._in_a_row) >= _KNOWN:
            self._in_a_row.clear()
        number = self._in_a_row[place] = self._in_a_row.get(place, 0) + 1
        if not breaker.enabled:
            return False
        threshold = breaker.failures_in_a_row
        if number > threshold:
            return number % threshold == 0
        return any(number == math.ceil(threshold * level / 100) for level in _LEVELS)

    def _pause(
        self, place: Place, count: Count, seconds: float, status: int | None, now: float
    ) -> None:
        if seconds > count.pause:
            count.pause, count.pause_status = seconds, status
        # Many requests in flight may be turned away at once: one of them is urgent.
        if now + seconds > self._paused_until.get(place, 0.0) + 1.0:
            if len(self._paused_until) >= _KNOWN:
                self._paused_until.clear()
            self._paused_until[place] = now + seconds
            self._urgent(now)

    def _due(self, at: float) -> None:
        self.due_at = min(self.due_at, at)

    def _urgent(self, now: float) -> None:
        self._due(max(now, self._sent_at + _URGENT_INTERVAL))

    def take(self, now: float, concurrency: Mapping[Place, int]) -> Mapping[Place, Count]:
        """The counts to report, and what has changed of ``concurrency``.

        They are forgotten once ``reported`` is called.
        """
        for place, number in concurrency.items():
            self._counts.setdefault(place, Count()).concurrency = number
        self._sent, self._counts = self._counts, {}
        self._sent_at = now
        self.due_at = math.inf
        return self._sent

    def reported(self, deferred: Iterable[Place], now: float) -> None:
        """The database has taken the counts, except those of some places: these are kept."""
        kept = {place: self._sent[place] for place in deferred if place in self._sent}
        self._keep(kept)
        if kept:
            self._due(now + _DEFERRED)

    def failed(self, now: float) -> None:
        """The counts could not be reported."""
        self._keep(self._sent)
        self._due(now)

    def forget(self) -> None:
        """Forget the counts that are not reported yet."""
        self._counts.clear()
        self._in_a_row.clear()
        self.due_at = math.inf

    def _keep(self, counts: Mapping[Place, Count]) -> None:
        self._sent = {}
        for place, count in counts.items():
            since = self._counts.get(place)
            if since is not None:
                count.add(since)
            self._counts[place] = count


def as_json(place: Place, count: Count, breaker: BreakerSettings) -> dict[str, Any]:
    """A count as pgnet.report_attempts takes it."""
    entry: dict[str, Any] = {
        "host": place.host,
        "role": place.role,
        "ok": count.ok,
        "failed": count.failed,
        "in_a_row": count.in_a_row,
        **breaker.for_report,
    }
    if count.cause is not None:
        entry["cause"] = count.cause
    if count.probe is not None:
        entry["probe"] = count.probe
    if count.pause:
        entry |= {"retry_after": count.pause, "retry_status": count.pause_status}
    if count.concurrency is not None:
        entry["concurrency"] = count.concurrency
    return entry
