"""What this worker learns of hosts: it judges each attempt, reports to the database, and adapts.

The database decides when the circuit breaker of a place opens and closes, from the reports of all
workers. This worker logs what it decides.
"""

from __future__ import annotations

import logging
import math
import time

from pgnet.outbox import HostEvent, Outbox, OutboxFailed, Place
from pgnet.wire.answer import Answer
from pgnet.wire.host import BreakerSettings, HostSettings, HostTable, split_port
from pgnet.worker.adaptive import Adaptive
from pgnet.worker.backoff import Backoff
from pgnet.worker.breaker import judge
from pgnet.worker.flights import Flight
from pgnet.worker.outcome import NotSent
from pgnet.worker.tally import Tally, as_json

log = logging.getLogger("pgnet.worker")

_USUAL = BreakerSettings()
# The longest pause that a host may ask for, in seconds, where net.configure_host says nothing.
_LONGEST_PAUSE = 300.0


class Hosts:
    """What is learnt of hosts. adaptive: how many requests each place may have in flight."""

    def __init__(self) -> None:
        self.adaptive = Adaptive(self._adapts)
        self._table = HostTable()
        self._tally = Tally()
        self._reporting = Backoff("reporting attempts")

    @property
    def due_at(self) -> float:
        """When to report, by the monotonic clock."""
        return max(self._tally.due_at, self._reporting.retry_at)

    def configure(self, table: HostTable, most: int) -> None:
        """Follow the settings of hosts. most: requests that one host may have in flight."""
        if table != self._table:
            # Under other settings what was counted may have another meaning.
            self._tally.forget()
        self._table = table
        self.adaptive.most = most

    def _settings(self, host: str) -> HostSettings:
        return self._table.settings_for(*split_port(host))

    def _adapts(self, place: Place) -> bool:
        if not self._table.entries:
            return True
        settings = self._settings(place.host)
        # A limit that is set is kept by the database, for all workers together.
        return settings.adaptive is not False and not settings.limited

    def ended(self, flight: Flight, answer: Answer | NotSent) -> None:
        """A request in flight has ended. Called before it is taken out of what is in flight."""
        claim = flight.claim
        verdict = judge(claim, answer)
        if verdict.result == "none" and not claim.flow.probe:
            return
        breaker, longest = _USUAL, _LONGEST_PAUSE
        if self._table.entries:
            settings = self._settings(claim.host)
            breaker = settings.breaker or _USUAL
            if settings.max_retry_after is not None:
                longest = settings.max_retry_after
        self._tally.add(claim, verdict, breaker, longest, time.monotonic())
        self.adaptive.judged(Place(claim.host, claim.role), verdict, flight.began)

    def report(self, outbox: Outbox) -> bool:
        """Report what was counted; gives whether requests may be ready that were not before.

        Raises what the outbox raises, except OutboxFailed: then it is tried again later.
        """
        now = time.monotonic()
        counts = self._tally.take(now, self.adaptive.changes())
        entries = [
            as_json(place, count, self._settings(place.host).breaker or _USUAL)
            for place, count in counts.items()
        ]
        try:
            reported = outbox.report(entries)
        except OutboxFailed as error:
            self._tally.failed(now)
            self._reporting.failed(error)
            return False
        self._reporting.succeeded()
        self._tally.reported(reported.deferred, now)
        for event in reported.events:
            _log(event)
        return bool(reported.events)

    def report_the_rest(self, outbox: Outbox) -> None:
        """Report what was counted, before the worker ends. Raises as ``report``."""
        if self._tally.due_at < math.inf:
            self.report(outbox)


def _log(event: HostEvent) -> None:
    log.warning(
        "circuit breaker of %s for role %s: %s%s: %s",
        event.host,
        event.role_name,
        event.event,
        "" if event.percent is None else f" at {event.percent} %",
        event.detail,
    )
