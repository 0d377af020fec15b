"""The worker's loop against a database of our own, which fails on request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from pgnet.outbox import (
    Claim,
    Claimed,
    Demand,
    OutboxFailed,
    OutboxLost,
    OutboxUnregistered,
    Outcome,
    Reported,
    Secret,
    Stub,
    WorkerState,
)
from pgnet.worker.heartbeat import Heartbeat
from pgnet.worker.loop import Worker
from pgnet.worker.registration import register
from pgnet.worker.signals import Signals
from unit.test_configuration import state
from unit.test_flights import flight


class FakeOutbox:
    """A queue in memory. failing: how many calls of each method are to fail from now on."""

    def __init__(self, *queue: Claim) -> None:
        self.wake_up_fault: str | None = None
        self.queue = list(queue)
        self.failing: dict[str, list[Exception]] = {}
        self.calls: list[str] = []
        self.recorded: list[Outcome] = []
        self.released: list[tuple[int, str | None]] = []
        self.state: WorkerState = state({"concurrency": 10}, mode="record", revision=1)
        self.reports: list[str] = []
        self.same = True

    def _called(self, method: str) -> None:
        self.calls.append(method)
        if self.failing.get(method):
            raise self.failing[method].pop(0)

    def connect(self, owned: Sequence[int]) -> bool:
        self._called("connect")
        return self.same

    def listen(self, on_signals: Callable[[set[str]], None]) -> None:
        self._called("listen")

    def stop_listening(self) -> None:
        self._called("stop_listening")

    def wake_next(self) -> None:
        self._called("wake_next")

    def record_and_claim(self, outcomes: Sequence[Outcome], demand: Demand | None) -> Claimed:
        self._called("record" if demand is None else "claim")
        self.recorded += outcomes
        claims = []
        if demand is not None:
            claims, self.queue = self.queue[: demand.slots], self.queue[demand.slots :]
        return Claimed(claims)

    def secrets(self, wanted: Sequence[tuple[Claim, str]]) -> dict[tuple[int, str], Secret]:
        self._called("secrets")
        return {
            (claim.id, name): Secret(name, "a-secret-value", "http://a/", None)
            for claim, name in wanted
        }

    def stubs(self, claims: Sequence[Claim]) -> dict[int, Stub]:
        self._called("stubs")
        return {}

    def heartbeat(self, owned: Sequence[int]) -> WorkerState:
        self._called("heartbeat")
        return self.state

    def report_work(self, report: str) -> float:
        self._called("report_work")
        self.reports.append(report)
        return 1e9

    def report(self, reports: Sequence[Mapping[str, Any]]) -> Reported:
        self._called("report")
        return Reported([], [])

    def release(self, claims: Sequence[Claim], reason: str | None) -> None:
        self._called("release")
        self.released += [(claim.id, reason) for claim in claims]

    def check_interrupts(self) -> None:
        self._called("check_interrupts")

    def cancel_statement(self) -> None:
        self._called("cancel_statement")

    def close(self, cut_off: int) -> None:
        self._called(f"close {cut_off}")


def claim(headers: str | None = None) -> Claim:
    return flight("a").claim._replace(headers=headers)


def outcomes(outbox: FakeOutbox) -> dict[int, str]:
    return {outcome.id: outcome.state for outcome in outbox.recorded}


def test_what_is_claimed_is_recorded() -> None:
    """In the mode record nothing is sent, so that no server is needed."""
    requests = [claim() for _ in range(25)]
    outbox = FakeOutbox(*requests)
    Worker(outbox, until_idle=True).run()
    assert outcomes(outbox) == {request.id: "cancelled" for request in requests}
    assert len(outbox.recorded) == 25
    assert outbox.released == []
    assert outbox.calls[-1] == "close 0"


def test_nothing_is_claimed_before_the_first_heartbeat() -> None:
    outbox = FakeOutbox(claim())
    outbox.failing["heartbeat"] = [OutboxFailed("a lock", brief=True) for _ in range(2)]
    Worker(outbox, until_idle=True).run()
    assert set(outcomes(outbox).values()) == {"cancelled"}
    assert "claim" not in outbox.calls[: len(outbox.calls) - outbox.calls[::-1].index("heartbeat")]


def test_a_worker_that_is_off_claims_nothing() -> None:
    outbox = FakeOutbox(claim())
    outbox.state = state(mode="off", revision=1)
    Worker(outbox, until_idle=True).run()
    assert "claim" not in outbox.calls


def test_secrets_that_cannot_be_read_and_claims_that_cannot_be_returned_end_nothing() -> None:
    """The claims are this worker's until the database takes them back: with the heartbeat."""
    named = claim('{"X": {"secret": "key"}}')
    outbox = FakeOutbox(named)
    outbox.failing["secrets"] = [OutboxFailed("a lock")]
    outbox.failing["release"] = [OutboxFailed("a lock")]
    Worker(outbox, max_runtime=3).run()
    assert outbox.released == [(named.id, None)]


def test_a_worker_that_comes_back_as_another_one_drops_what_it_had() -> None:
    outbox = FakeOutbox(claim())
    outbox.same = False
    outbox.failing["record"] = [OutboxLost("gone")]
    Worker(outbox, until_idle=True).run()
    assert outbox.recorded == []


def test_registering_goes_on_until_a_stop(caplog: pytest.LogCaptureFixture) -> None:
    outbox, signals = FakeOutbox(), Signals()
    outbox.failing["connect"] = [OutboxLost("no route"), OutboxLost("no route")]
    assert register(outbox, list, signals)
    assert outbox.calls == ["connect"] * 3
    assert [r.getMessage() for r in caplog.records] == [
        "waiting for the database: no route",
        "connected",
    ]
    signals.add({"stop"})
    assert register(outbox, list, signals) is None
    # A worker that ends may register to record what has ended.
    assert register(outbox, list, signals, give_up_at=float("1e12"))


def test_an_absent_extension_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    outbox = FakeOutbox()
    outbox.failing["connect"] = [OutboxUnregistered("no schema")]
    assert register(outbox, list, Signals(), reason=OutboxUnregistered("no schema"))
    assert [r.getMessage() for r in caplog.records] == [
        "the extension pgnet is gone, or was created again: no schema",
        "the extension pgnet is back, and served",
    ]


def test_signals_stay_until_they_are_taken() -> None:
    signals = Signals()
    signals.add({"wake"})
    signals.add({"reload"})
    assert "wake" in signals
    signals.sleep(60)
    assert signals.take() == {"wake", "reload"}
    assert signals.take() == set()
    signals.end_sleep()
    signals.sleep(60)


def test_a_heartbeat_that_is_asked_for_comes_after_a_pause() -> None:
    heartbeat = Heartbeat()
    heartbeat.done(100.0, 100.0, 60.0)
    assert heartbeat.due_at == 160.0
    heartbeat.asked_for()
    assert heartbeat.due_at == 100.05
    # One that takes long has the worker do something else for four times as long.
    heartbeat.done(200.0, 201.0, 60.0)
    heartbeat.asked_for()
    assert heartbeat.due_at == 205.0
    heartbeat.no_later_than(230.0)
    assert heartbeat.due_at == 205.0


def test_faults_of_the_heartbeat_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    heartbeat = Heartbeat()
    for faults in ({"rescue": "a lock"}, {"rescue": "a lock"}, {}, {}):
        heartbeat.log_faults(faults)
    assert [record.getMessage() for record in caplog.records] == [
        "rescue fails, and is tried again: a lock",
        "rescue works again",
    ]
