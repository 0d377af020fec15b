"""What a worker tells the database once a second: its statistics, and what its requests wait for.

What a request waits for is told where it has been in flight for more than a second, and then each
time that it waits for something else. So a server that hangs costs one change of a row.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from pgnet.outbox import Claim, OutboxFailed, Outcome
from pgnet.worker.backoff import Backoff
from pgnet.worker.flights import Flights
from pgnet.worker.statistics import Statistics

# Seconds between two reports, at least and at most. In between the pause is so many times as long
# as the last report took: reports take a hundredth of the worker's time.
_INTERVAL, _LONGEST_INTERVAL, _REST = 1.0, 10.0, 100
# What a request waits for is told where it has been in flight for so many seconds.
_LONG = 1.0
# Of so many requests at most it is looked up in one report: it takes a microsecond for each.
_MOST = 1000


class Report:
    """What there is to report. Times are of the monotonic clock.

    due_at: when to report next; infinity where nothing has happened. backoff: of reports that fail.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.due_at = math.inf
        self.backoff = Backoff("the report")
        self._clock = clock
        self._statistics = Statistics(clock)
        self._last = -math.inf
        self._pause = _INTERVAL
        # What the database knows of requests in flight, by id, and of the room for more; and what
        # it is being told.
        self._told: dict[int, str] = {}
        self._telling: dict[int, str] = {}
        self._room_told: tuple[int, Mapping[str, int]] = (0, {})
        self._room: tuple[int, Mapping[str, int]] = self._room_told

    def begun(self, claim: Claim) -> None:
        """An attempt has begun."""
        self._statistics.begun(claim)
        if self.due_at == math.inf:
            self.due_at = max(self._clock() + _LONG, self._last + self._pause)

    def ended(self, claim: Claim, outcome: Outcome) -> None:
        """An attempt has ended."""
        self._statistics.ended(claim, outcome)
        if self.due_at == math.inf:
            self.due_at = self._last + self._pause

    def take(self, flights: Flights, full: Mapping[str, int]) -> str | None:
        """The report as pgnet.report_work takes it; None where nothing has changed.

        full: the places that may have no more in flight, and how many they may have.
        """
        now = self._last = self._clock()
        self._telling = self._news(flights, now)
        self._room = (flights.window.most, full)
        self.due_at = now + _INTERVAL if flights else math.inf
        if self._statistics.is_empty and not self._telling and self._room == self._room_told:
            return None
        minute, places = self._statistics.report()
        report: dict[str, Any] = {
            "slots": flights.window.most,
            "full": full,
            "places": places,
            "progress": self._telling,
        }
        if minute is not None:
            report["minute"] = minute
        return json.dumps(report, separators=(",", ":"))

    def _news(self, flights: Flights, now: float) -> dict[int, str]:
        """What requests wait for that are in flight for long, where the database does not know."""
        long: dict[int, str] = {}
        # The first one has been in flight the longest.
        for flight in flights:
            if now - flight.began < _LONG or len(long) >= _MOST:
                break
            if flight.handle is not None:
                long[flight.claim.id] = flight.handle.progress
        self._told = {id: words for id, words in self._told.items() if long.get(id) == words}
        return {id: words for id, words in long.items() if id not in self._told}

    def reported(self, database_time: float) -> None:
        """The database has taken the report. database_time: its clock, seconds since the epoch."""
        self.backoff.succeeded()
        took = self._clock() - self._last
        self._pause = min(max(_INTERVAL, _REST * took), _LONGEST_INTERVAL)
        self.due_at = max(self.due_at, self._last + self._pause)
        self._statistics.reported(database_time)
        self._told |= self._telling
        self._room_told = self._room

    def failed(self, error: OutboxFailed) -> None:
        """The database has not taken the report: all of it is told again."""
        self.backoff.failed(error)
        self.due_at = max(self._last + _INTERVAL, self.backoff.retry_at)
