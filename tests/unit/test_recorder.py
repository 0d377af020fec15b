"""The way from an answer to the database: in batches, smaller ones where one is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from pgnet.outbox import OutboxFailed, Outcome
from pgnet.wire.answer import Answer
from pgnet.worker.flights import Flight
from pgnet.worker.outcome import NotSent
from pgnet.worker.recorder import Recorder
from unit.test_flights import flight

REASON = NotSent("Not sent.")


def read(flight: Flight, answer: Answer | NotSent) -> Outcome:
    assert isinstance(answer, NotSent)
    return Outcome(flight.claim.id, flight.claim.token, answer.state, content=answer.reason)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder(read)


def fill(recorder: Recorder, count: int, reason: NotSent = REASON) -> list[int]:
    ended = [flight() for _ in range(count)]
    for one in ended:
        recorder.add(one, reason)
    return [one.claim.id for one in ended]


def ids(batch: list[Outcome]) -> list[int]:
    return [outcome.id for outcome in batch]


def test_what_has_ended_is_recorded_in_its_order(recorder: Recorder) -> None:
    ended = fill(recorder, 5)
    assert recorder.ids == ended
    batch = recorder.batch(3)
    assert ids(batch) == ended[:3]
    assert ids(recorder.batch(3)) == ended[:3]
    recorder.recorded(batch, set())
    assert ids(recorder.batch(3)) == ended[3:]
    assert len(recorder) == 2


def test_large_bodies_make_small_batches(recorder: Recorder) -> None:
    fill(recorder, 5, NotSent("x" * (5 << 20)))
    batch = recorder.batch(100)
    assert len(batch) == 2
    assert [outcome.put_aside for outcome in batch] == [True, True]
    assert recorder.size == 10 << 20
    recorder.recorded(batch, set())
    assert recorder.size == 0


def test_what_is_deferred_is_put_aside_the_next_time(recorder: Recorder) -> None:
    _, second = fill(recorder, 2)
    recorder.recorded(recorder.batch(10), {second})
    assert len(recorder) == 0
    assert recorder.ids == [second]
    assert recorder.next_change < math.inf
    recorder.retry_deferred(-math.inf)
    assert len(recorder) == 0
    recorder.retry_deferred(math.inf)
    (again,) = recorder.batch(10)
    assert (again.id, again.put_aside) == (second, True)
    recorder.recorded([again], set())
    assert recorder.is_empty
    assert recorder.next_change == math.inf


def test_batches_that_fail_get_smaller_until_the_rest_gets_by(recorder: Recorder) -> None:
    ended = fill(recorder, 8)
    bad = ended[0]
    sizes = []
    while len(recorder):
        batch = recorder.batch(100)
        sizes.append(len(batch))
        if bad in ids(batch):
            recorder.failed(batch, OutboxFailed("no such thing"))
            assert recorder.backoff.failing
        else:
            recorder.recorded(batch, set())
    assert sizes == [8, 4, 2, 1, 1, 2, 4]
    assert recorder.ids == [bad]


def test_without_memory_the_largest_goes_without_its_body(recorder: Recorder) -> None:
    (small,) = fill(recorder, 1, NotSent("x"))
    (large,) = fill(recorder, 1, NotSent("y" * 1000))
    recorder.lighten(recorder.batch(10))
    left = {outcome.id: outcome.content for outcome in recorder.batch(10)}
    assert left == {small: "x", large: None}
    recorder.lighten(recorder.batch(10))
    with pytest.raises(MemoryError):
        recorder.lighten(recorder.batch(10))


def test_what_is_dropped_is_forgotten_wherever_it_waits(recorder: Recorder) -> None:
    ended = fill(recorder, 3)
    recorder.recorded(recorder.batch(1), {ended[0]})
    recorder.batch(1)
    recorder.drop(set(ended))
    assert recorder.is_empty
    assert recorder.size == 0


@pytest.mark.parametrize(
    ("seconds", "batch_size", "waits"),
    [(0.01, 10, True), (0.01, 2, False), (0.0, 10, False)],
)
def test_outcomes_wait_for_others_as_long_as_a_transaction_takes(
    seconds: float,
    batch_size: int,
    waits: bool,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock: Callable[[], float] = lambda: 100.0  # noqa: E731
    monkeypatch.setattr("time.monotonic", clock)
    recorder.wait_as_long_as(seconds)
    fill(recorder, 2)
    assert recorder.may_wait(100.0, batch_size) is waits
    assert not recorder.may_wait(100.06, batch_size)
