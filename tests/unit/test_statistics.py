"""What workers count, and what they report of it."""

from __future__ import annotations

import json
import math
import random

import pytest

from pgnet.outbox import Claim, OutboxFailed, Outcome
from pgnet.worker.adaptive import Adaptive
from pgnet.worker.flights import Flights
from pgnet.worker.report import Report
from pgnet.worker.statistics import ALL_HOSTS, BOUNDS, MOST_PLACES, Statistics
from pgnet.worker.window import Window
from unit.test_flights import flight

NOW = 1_700_000_010.0
MINUTE = int(NOW // 60)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def claim(host: str = "a", role: int = 10, attempt: int = 1, age: float = 0.1) -> Claim:
    return flight(host).claim._replace(role=role, attempt=attempt, age=age)


def outcome(state: str = "succeeded", first: float | None = 5.0, total: float = 9.0) -> Outcome:
    return Outcome(1, "token", state, first_byte_ms=first, total_ms=total)


def middle(bucket: int) -> float:
    """As pgnet.bucket_middle."""
    return float(0.1 * 2 ** ((bucket - 0.5) / 4))


def test_a_bucket_is_right_to_ten_percent() -> None:
    statistics = Statistics()
    for _ in range(2000):
        milliseconds = math.exp(random.uniform(math.log(0.1), math.log(86_400_000)))
        statistics.ended(claim(), outcome(first=milliseconds))
        _, (entry, _) = statistics.report()
        (bucket,) = entry["first_byte_buckets"]
        assert abs(middle(bucket) / milliseconds - 1) < 0.1
        statistics = Statistics()
    assert BOUNDS[-1] > 86_400_000


@pytest.mark.parametrize("spread", [0.01, 0.5, 2.0])
def test_percentiles_are_right_to_ten_percent(spread: float) -> None:
    statistics = Statistics()
    times = sorted(math.exp(random.gauss(4, spread)) for _ in range(20_000))
    for milliseconds in times:
        statistics.ended(claim(), outcome(first=milliseconds))
    _, (entry, _) = statistics.report()
    counts = dict(zip(entry["first_byte_buckets"], entry["first_byte_counts"], strict=True))
    for part in (0.5, 0.99):
        so_far, bucket = 0, -1
        while so_far < part * len(times):
            bucket += 1
            so_far += counts.get(bucket, 0)
        exact = times[math.ceil(part * len(times)) - 1]
        assert abs(middle(bucket) / exact - 1) < 0.1


def test_what_counts_as_what() -> None:
    statistics = Statistics()
    for attempt, age in ((1, 0.0), (2, 0.0), (1, 61.0)):
        statistics.begun(claim(attempt=attempt, age=age))
    for state in ("succeeded", "failed", "unknown", "retrying", "cancelled", "expired"):
        statistics.ended(claim(), outcome(state, first=None))
    _, (everything, at_a) = statistics.report()
    assert (everything["host"], at_a["host"]) == (ALL_HOSTS, "a")
    for entry in (everything, at_a):
        assert entry["made"] == 1
        # What was cancelled or has expired here was not sent.
        assert (entry["attempts"], entry["failed"], entry["ended"]) == (4, 3, 5)
        assert entry["first_byte_buckets"] == []
        assert sum(entry["total_counts"]) == 4


def test_a_report_holds_the_whole_minute_and_only_what_has_changed() -> None:
    clock = Clock()
    statistics = Statistics(clock)
    statistics.ended(claim("a"), outcome())
    minute, entries = statistics.report()
    assert minute is None
    assert [entry["host"] for entry in entries] == [ALL_HOSTS, "a"]
    # It got lost: all of it comes again.
    statistics.ended(claim("b"), outcome())
    _, entries = statistics.report()
    assert [entry["host"] for entry in entries] == [ALL_HOSTS, "a", "b"]
    statistics.reported(NOW)
    assert statistics.is_empty
    clock.now += 1
    statistics.ended(claim("b"), outcome())
    minute, entries = statistics.report()
    assert minute == MINUTE
    assert {entry["host"]: entry["attempts"] for entry in entries} == {ALL_HOSTS: 3, "b": 2}
    statistics.reported(NOW + 1)
    # The next minute begins with nothing.
    clock.now += 60
    statistics.ended(claim("b"), outcome())
    minute, entries = statistics.report()
    assert minute == MINUTE + 1
    assert {entry["host"]: entry["attempts"] for entry in entries} == {ALL_HOSTS: 1, "b": 1}


def test_roles_are_counted_apart() -> None:
    statistics = Statistics()
    for role in (10, 11):
        statistics.ended(claim(role=role), outcome())
    _, entries = statistics.report()
    assert [(e["host"], e["role"], e["attempts"]) for e in entries] == [
        (ALL_HOSTS, 10, 1),
        (ALL_HOSTS, 11, 1),
        ("a", 10, 1),
        ("a", 11, 1),
    ]


def test_places_have_a_bound_and_nothing_is_left_out_of_the_sum() -> None:
    statistics = Statistics()
    for _ in range(2):
        for number in range(MOST_PLACES + 500):
            statistics.ended(claim(f"h{number}"), outcome())
    _, entries = statistics.report()
    assert len(entries) <= MOST_PLACES + 1
    assert entries[0]["host"] == ALL_HOSTS
    assert entries[0]["attempts"] == 2 * (MOST_PLACES + 500)


class FakeHandle:
    progress = "connecting"

    def cancel(self) -> None:
        pass


def flights(*began: float) -> tuple[Flights, list[FakeHandle]]:
    made, handles = Flights(Window(10), Adaptive(lambda place: True)), []
    made.window.most = 7
    for at in began:
        added = flight("a")
        added.began = at
        handles.append(FakeHandle())
        added.handle = handles[-1]  # type: ignore[assignment]
        made.add(added)
    return made, handles


def test_what_requests_wait_for_is_told_once_a_second_where_it_is_news() -> None:
    clock = Clock()
    report = Report(clock)
    assert report.due_at == math.inf
    in_flight, (first, _) = flights(100.0, 100.5)
    report.begun(next(iter(in_flight)).claim)
    assert report.due_at == 101.0
    clock.now = 101.2
    ids = [str(id) for id in in_flight.ids]
    taken = json.loads(report.take(in_flight, {}) or "")
    assert taken["progress"] == {ids[0]: "connecting"}
    assert (taken["slots"], taken["full"]) == (7, {})
    report.reported(NOW)
    assert report.due_at == 102.2
    clock.now = 102.2
    first.progress = "waiting"
    taken = json.loads(report.take(in_flight, {}) or "")
    assert taken["progress"] == {ids[0]: "waiting", ids[1]: "connecting"}
    # The database did not take it: it is told again.
    report.failed(OutboxFailed("a lock"))
    clock.now = 103.2
    assert json.loads(report.take(in_flight, {}) or "")["progress"] == taken["progress"]
    report.reported(NOW)
    clock.now = 104.2
    assert report.take(in_flight, {}) is None
    for each in list(in_flight):
        in_flight.remove(each)
    assert report.take(in_flight, {}) is None
    assert report.due_at == math.inf


def test_an_attempt_that_has_ended_is_reported_at_most_a_second_later() -> None:
    clock = Clock()
    report = Report(clock)
    in_flight, _ = flights()
    report.ended(claim(), outcome())
    assert report.due_at < clock.now
    report.take(in_flight, {})
    report.reported(NOW)
    clock.now += 0.2
    report.ended(claim(), outcome())
    assert report.due_at == pytest.approx(101.0)


def test_reports_that_take_long_are_rare() -> None:
    clock = Clock()
    report = Report(clock)
    in_flight, _ = flights(clock.now)
    report.ended(claim(), outcome())
    for seconds, pause in ((0.001, 1.0), (0.04, 4.0), (3.0, 10.0)):
        began = clock.now
        report.take(in_flight, {})
        clock.now += seconds
        report.reported(NOW)
        assert report.due_at == pytest.approx(began + pause)
        report.ended(claim(), outcome())
        clock.now = report.due_at
