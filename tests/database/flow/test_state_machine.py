"""Callers, workers and the clock in any order, against a model: tests/servers/flow_model.py.

Hypothesis draws what happens, and shrinks what goes wrong to the few steps that it takes. After
each step the tables are compared with the model.

    make model SECONDS=600 SEED=1
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from servers.cluster import Database
from servers.flow_model import Model, Request
from servers.flow_world import ROLES, TICK, Worker, World

HOSTS = ("a.example", "b.example", "c.example:8443")
# How many examples Hypothesis makes of one seed.
ROUND, STEPS = 15, 40
WORKERS = 3


class Flow(RuleBasedStateMachine):
    """Every step that callers, workers and the clock can make."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.reset()
        self.model = Model()
        self.noticed: dict[int, float] = {}

    @initialize()
    def begin(self) -> None:
        self.world.begin_worker()

    # ---- who and what a step is about

    def alive(self) -> list[Worker]:
        return [worker for worker in self.world.workers if worker.alive]

    def worker(self, which: int) -> Worker:
        alive = self.alive()
        return alive[which % len(alive)]

    def held(self, worker: Worker, which: int, count: int) -> list[int]:
        """Some of the requests that a worker believes to hold."""
        ids = sorted(worker.holds)
        first = which % len(ids) if ids else 0
        return (ids[first:] + ids[:first])[:count]

    def holds(self, request: Request, worker: Worker) -> bool:
        """Whether what the worker says of a request counts."""
        return request.open and request.worker == worker.number

    # ---- callers

    @rule(
        role=st.sampled_from(ROLES),
        host=st.sampled_from(HOSTS),
        count=st.integers(1, 3),
        at_most_once=st.booleans(),
    )
    def send(self, role: str, host: str, count: int, at_most_once: bool) -> None:
        for _ in range(count):
            delivery = "at_most_once" if at_most_once else None
            id = self.world.send(role, host, delivery=delivery)
            self.model.requests[id] = Request(id, role, host, at_most_once)

    @precondition(lambda self: self.model.requests)
    @rule(which=st.integers(0, 99), action=st.sampled_from(["cancel", "forget"]))
    def mark(self, which: int, action: str) -> None:
        request = self.pick(list(self.model.requests.values()), which)
        done = self.world.call(request.role, f"select net.{action}(%s)", request.id)
        wanted = (
            request.mark != "forget" if action == "forget" else not request.mark and request.open
        )
        assert done is wanted
        if done:
            request.mark = action

    @precondition(lambda self: self.model.requests)
    @rule(which=st.integers(0, 99), action=st.sampled_from(["cancel", "forget"]))
    def mark_anothers(self, which: int, action: str) -> None:
        """A role can do nothing to another role's requests."""
        request = self.pick(list(self.model.requests.values()), which)
        [other] = set(ROLES) - {request.role}
        assert self.world.call(other, f"select net.{action}(%s)", request.id) is False

    @precondition(lambda self: self.model.failures())
    @rule(which=st.integers(0, 99))
    def send_again(self, which: int) -> None:
        request = self.pick(self.model.failures(), which)
        if request.mark == "forget":
            return
        id = self.world.call(request.role, "select net.retry(%s)", request.id)
        request.sent_again = True
        self.model.requests[id] = Request(id, request.role, request.host, request.at_most_once)

    def pick(self, requests: list[Request], which: int) -> Request:
        return requests[which % len(requests)]

    # ---- workers

    @rule(which=st.integers(0, 9), slots=st.sampled_from([1, 2, 5, 100]))
    def claim(self, which: int, slots: int) -> None:
        self._claim(self.worker(which), slots)

    @precondition(lambda self: self.model.ready(quarantined=True))
    @rule(which=st.integers(0, 9))
    def claim_what_was_lost(self, which: int) -> None:
        self._claim(self.worker(which), 100, quarantined=True)

    def _claim(self, worker: Worker, slots: int, *, quarantined: bool = False) -> int:
        rows, more = self.world.claim(worker, slots, quarantined=quarantined)
        for row in rows:
            self.model.take(row["id"], worker.number, quarantined=quarantined)
        assert len(rows) <= slots
        if not quarantined and not more and len(rows) < slots:
            left = self.model.ready()
            assert not left, f"a claim with free slots left {left}"
        return len(rows)

    @rule(
        which=st.integers(0, 9),
        first=st.integers(0, 99),
        count=st.integers(1, 5),
        state=st.sampled_from(["succeeded", "failed", "retrying"]),
        wait=st.integers(0, 3),
    )
    def record(self, which: int, first: int, count: int, state: str, wait: int) -> None:
        worker = self.worker(which)
        ids = self.held(worker, first, count)
        outcome: dict[str, Any] = {"state": state, "status_code": 503}
        if state == "retrying":
            outcome["retry_in"] = (wait + 0.5) * TICK
        deferred = self.world.record(worker, dict.fromkeys(ids, outcome))
        for id in ids:
            request = self.model.requests.get(id)
            if request is None or not self.holds(request, worker):
                # A stale token: the outcome does not count.
                assert id not in deferred
            elif request.locked:
                assert id in deferred
            elif state == "retrying":
                self.model.put_back(request, self.model.now + wait + 0.5)
            else:
                self.model.end(request, state)

    @rule(which=st.integers(0, 9), first=st.integers(0, 99), begun=st.booleans())
    def give_back(self, which: int, first: int, begun: bool) -> None:
        worker = self.worker(which)
        ids = self.held(worker, first, 2)
        own = [r for r in self.model.requests.values() if r.id in ids and self.holds(r, worker)]
        if begun and any(request.locked for request in own):
            return
        self.world.release(worker, ids, "stopped in a test" if begun else None)
        for request in own:
            self.model.give_back(request, begun=begun)

    @rule(which=st.integers(0, 9))
    def heartbeat(self, which: int) -> None:
        self._heartbeat(self.worker(which))

    def _heartbeat(self, worker: Worker) -> None:
        held = set(worker.holds)
        said = self.world.heartbeat(worker)
        # Rescue comes before the marks.
        for other in [w for w in self.world.workers if not w.alive]:
            known = self.noticed.setdefault(other.number, self.model.now)
            if known < self.model.now:
                for request in self.model.in_flight(other.number):
                    if not request.locked:
                        self.model.lose(request)
        self.model.act_on_marks()
        own = {id for id in held if (r := self.model.requests.get(id)) and self.holds(r, worker)}
        assert set(said["dropped"]) == held - own

    @precondition(lambda self: len(self.world.workers) < WORKERS)
    @rule()
    def begin_worker(self) -> None:
        self.world.begin_worker()

    @precondition(lambda self: len(self.alive()) > 1)
    @rule(which=st.integers(0, 9))
    def kill(self, which: int) -> None:
        self.world.kill(self.worker(which))

    @precondition(lambda self: len(self.alive()) < len(self.world.workers))
    @rule()
    def come_back(self) -> None:
        worker = next(worker for worker in self.world.workers if not worker.alive)
        self.noticed.pop(worker.number, None)
        assert self.world.come_back(worker)

    # ---- the clock, and another session

    @rule(ticks=st.integers(1, 3))
    def advance(self, ticks: int) -> None:
        self.world.advance(ticks)
        self.model.now += ticks
        # Workers call every second: none of them has stalled.
        for worker in self.alive():
            self._heartbeat(worker)

    @precondition(lambda self: self.model.requests)
    @rule(which=st.integers(0, 99))
    def hold(self, which: int) -> None:
        """Another session locks the row, and does nothing with it."""
        request = self.pick(list(self.model.requests.values()), which)
        locked = self.world.hold(request.id)
        assert locked is request.open
        request.locked = locked

    @precondition(lambda self: any(r.locked for r in self.model.requests.values()))
    @rule()
    def let_go(self) -> None:
        self._let_go()

    def _let_go(self) -> None:
        self.world.let_go()
        for request in self.model.requests.values():
            request.locked = False

    # ---- the check

    @invariant()
    def the_tables_are_as_the_model(self) -> None:
        workers = {worker.number: worker.id for worker in self.world.workers}
        requests = self.model.requests
        assert self.world.queued() == {
            r.id: None if r.worker is None else workers[r.worker]
            for r in requests.values()
            if r.open
        }
        assert self.world.outcomes() == {r.id: r.ended for r in requests.values() if not r.open}

    def teardown(self) -> None:
        """In the end everything gets its outcome."""
        if not self.world.workers:
            return
        self._let_go()
        for _ in range(2 + 4 * len(self.model.requests)):
            if all(not r.open and r.mark is None for r in self.model.requests.values()):
                break
            self.advance(4)
            for worker in self.alive():
                while self._claim(worker, 100) or self._claim(worker, 100, quarantined=True):
                    self.record(self.alive().index(worker), 0, 1000, "succeeded", 0)
                self.record(self.alive().index(worker), 0, 1000, "succeeded", 0)
        self.the_tables_are_as_the_model()
        assert [r for r in self.model.requests.values() if r.open] == []
        assert self.world.claims() == {}, self.world.workers


@pytest.fixture
def world(database: Database) -> Iterator[World]:
    world = World(database)
    yield world
    world.close()


@pytest.mark.timeout(1200)
def test_flow_is_as_the_model_says(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = float(os.environ.get("MODEL_SECONDS", "60"))
    first = int(os.environ.get("MODEL_SEED") or random.SystemRandom().randrange(1 << 32))
    # It takes minutes, which a run for a known seed has.
    shrink = "MODEL_SEED" in os.environ
    ends = time.monotonic() + seconds
    rounds = 0
    while rounds == 0 or time.monotonic() < ends:
        machine = type("Flow", (Flow,), {"world": world})
        number = first + rounds
        try:
            run_state_machine_as_test(
                seed(number)(machine),
                settings=settings(
                    max_examples=ROUND,
                    stateful_step_count=STEPS,
                    deadline=None,
                    database=None,
                    phases=[Phase.generate] + [Phase.shrink] * shrink,
                    report_multiple_bugs=False,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        except BaseException:
            with capsys.disabled():
                print(f" [failed; shorter by: make model SEED={number}]", end="")
            raise
        rounds += 1
    with capsys.disabled():
        print(f" [{rounds * ROUND} examples of {STEPS} steps, SEED={first}]", end="")
