"""How attempts are counted by place, and when the counts are due."""

from __future__ import annotations

import math

import pytest

from pgnet.outbox import Flow, Place
from pgnet.wire.host import BreakerSettings
from pgnet.worker.breaker import Verdict
from pgnet.worker.tally import Count, Tally, as_json
from unit.test_flights import flight

USUAL = BreakerSettings()
OK, FAILED = Verdict("ok"), Verdict("failed", "timeout", is_congestion=True)
A = Place("a", 0)


def add(tally: Tally, *verdicts: Verdict, now: float = 100.0, host: str = "a") -> None:
    for verdict in verdicts:
        tally.add(flight(host).claim, verdict, USUAL, 300.0, now)


def test_nothing_is_due_before_the_first_attempt() -> None:
    assert Tally().due_at == math.inf


def test_counts_are_due_a_second_after_the_last_report() -> None:
    tally = Tally()
    add(tally, OK, now=100.0)
    assert tally.due_at == 100.0
    tally.take(100.0, {})
    tally.reported([], 100.0)
    assert tally.due_at == math.inf
    add(tally, OK, now=100.3)
    assert tally.due_at == 101.0


def test_what_ends_during_a_report_is_due_a_second_after_it() -> None:
    tally = Tally()
    add(tally, OK, now=100.0)
    tally.take(100.0, {})
    add(tally, OK, now=100.01)
    tally.reported([], 100.02)
    assert tally.due_at == 101.0


def test_failures_in_a_row_are_those_since_the_last_answer() -> None:
    tally = Tally()
    add(tally, FAILED, FAILED, OK, FAILED)
    assert tally.take(100.0, {}) == {A: Count(1, 3, 1, "timeout")}


@pytest.mark.parametrize(("number", "urgent"), [(9, False), (10, True), (20, True)])
def test_an_alert_is_urgent(number: int, urgent: bool) -> None:
    tally = Tally()
    add(tally, OK)
    tally.take(100.0, {})
    tally.reported([], 100.0)
    add(tally, *[FAILED] * number, now=100.1)
    assert (tally.due_at < 101.0) is urgent


def test_a_success_begins_a_new_row() -> None:
    tally = Tally()
    add(tally, *[FAILED] * 9, OK)
    tally.take(100.0, {})
    tally.reported([], 100.0)
    add(tally, FAILED, now=100.1)
    assert tally.due_at == 101.0


def test_a_breaker_that_is_off_has_nothing_urgent() -> None:
    tally = Tally()
    tally.take(100.0, {})
    for _ in range(20):
        tally.add(flight().claim, FAILED, BreakerSettings(enabled=False), 300.0, 100.1)
    assert tally.due_at == 101.0


@pytest.mark.parametrize("verdict", [OK, FAILED, Verdict("none")])
def test_the_end_of_a_probe_is_urgent(verdict: Verdict) -> None:
    tally = Tally()
    tally.take(100.0, {})
    tally.add(flight().claim._replace(flow=Flow(probe=True)), verdict, USUAL, 300.0, 100.5)
    assert tally.due_at == 100.5
    assert tally.take(100.5, {})[A].probe == verdict.result


def test_a_pause_is_urgent_once_and_has_a_ceiling() -> None:
    tally = Tally()
    add(tally, Verdict("ok", "status 429", 429, 1e9, True), now=100.0)
    count = tally.take(100.0, {})[A]
    assert (count.pause, count.pause_status) == (300.0, 429)
    tally.reported([], 100.0)
    add(tally, Verdict("ok", "status 429", 429, 1e9, True), now=100.5)
    assert tally.due_at == 101.0


@pytest.mark.parametrize("deferred", [True, False])
def test_what_is_not_reported_is_added_to_what_follows(deferred: bool) -> None:
    tally = Tally()
    add(tally, OK, FAILED)
    add(tally, OK, host="b")
    tally.take(100.0, {A: 7})
    add(tally, FAILED, now=100.1)
    if deferred:
        tally.reported([A], 100.1)
    else:
        tally.failed(100.1)
    counts = tally.take(100.5, {})
    assert counts[A] == Count(1, 2, 2, "timeout", concurrency=7)
    assert (Place("b", 0) in counts) is not deferred


def test_a_count_as_the_database_takes_it() -> None:
    count = Count(3, 2, 1, "status 503", "failed", 2.5, 503, 4)
    entry = as_json(Place("a:80", 7), count, BreakerSettings(failures_in_a_row=5))
    assert entry["host"] == "a:80"
    assert entry["retry_after"] == 2.5
    assert entry["failures_in_a_row"] == 5
    assert "failures_in_a_row" not in as_json(A, Count(), BreakerSettings(enabled=False))
