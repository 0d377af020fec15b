"""Callers, workers and the clock in any order, against a model: tests/servers/flow_model.py.

Hypothesis draws what happens, and shrinks what goes wrong to the few steps that it takes. After
each step the tables are compared with the model.

    make model SECONDS=600 SEED=1
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from servers.cluster import Cluster
from servers.flow_model import Model, Request
from servers.flow_world import ROLES, TICK, Worker, World

HOSTS = ("a.example", "b.example", "c.example:8443")
KEYS = ("k", "l")
UNIQUE = "u"
# How an attempt ends.
STATES = ("succeeded", "failed", "retrying")
# The suite takes the same way each time, so that a fault of today is not that of another change;
# make model goes new ways.
_SUITE_SEED = 77
# How many examples Hypothesis makes of one seed.
ROUND, STEPS = 15, 40
WORKERS = 3
Step: TypeAlias = Callable[..., None]


def only_if(holds: Callable[[Flow], Any]) -> Callable[[Step], Step]:
    """Leave a step out where it makes no sense.

    Hypothesis's own preconditions are a part of what it draws, which is to be the same each time
    for a seed. The database is not: which of several requests is claimed first is left to chance.
    """

    def decorate(step: Step) -> Step:
        @functools.wraps(step)
        def guarded(self: Flow, *given: Any, **named: Any) -> None:
            if holds(self):
                step(self, *given, **named)

        return guarded

    return decorate


class Flow(RuleBasedStateMachine):
    """Every step that callers, workers and the clock can make."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.reset()
        self.model = Model()
        self.noticed: dict[int, float] = {}
        self.uncommitted: dict[str, list[Request]] = {}
        # Requests that were claimed; and the ids of those that count until the connection is
        # closed, for a limit or for a key.
        self.claimed: dict[int, Request] = {}
        self.counted: set[int] = set()

    @initialize(
        role=st.sampled_from(ROLES),
        host=st.sampled_from(HOSTS),
        skips=st.booleans(),
        states=st.lists(st.sampled_from(STATES), min_size=1, max_size=3),
    )
    def begin(self, role: str, host: str, skips: bool, states: list[str]) -> None:
        for _ in range(2):
            self.world.begin_worker()
        self.send_in_order(role, host, 3, KEYS[0], skips)
        self.send(role, host, 2, False, None, False, None, False)
        self.work(0, 100, states, 0)

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

    def pick(self, requests: list[Request], which: int) -> Request:
        return requests[which % len(requests)]

    # ---- callers

    @rule(
        role=st.sampled_from(ROLES),
        host=st.sampled_from(HOSTS),
        count=st.integers(1, 3),
        at_most_once=st.booleans(),
        key=st.none() | st.sampled_from(KEYS),
        skips=st.booleans(),
        times=st.none() | st.tuples(st.integers(0, 2), st.integers(1, 3)),
        stays_open=st.booleans(),
    )
    def send(
        self,
        role: str,
        host: str,
        count: int,
        at_most_once: bool,
        key: str | None,
        skips: bool,
        times: tuple[int, int] | None,
        stays_open: bool,
    ) -> None:
        for _ in range(count):
            request = Request(0, role, host, at_most_once, key, skips and key is not None)
            if times is not None and not stays_open:
                request.not_before = self.model.now + times[0] - 0.5 if times[0] else None
                request.not_after = self.model.now + sum(times) - 0.5
            self._send(request, stays_open=stays_open)

    @rule(
        role=st.sampled_from(ROLES),
        host=st.sampled_from(HOSTS),
        count=st.integers(2, 4),
        key=st.sampled_from(KEYS),
        skips=st.booleans(),
    )
    def send_in_order(self, role: str, host: str, count: int, key: str, skips: bool) -> None:
        self.send(role, host, count, False, key, skips, None, False)

    def _send(self, request: Request, *, stays_open: bool = False, **options: Any) -> int:
        id = self.world.send(
            request.role,
            request.host,
            delivery="at_most_once" if request.at_most_once else None,
            ordering_key=request.key,
            on_failure="skip" if request.skips else None,
            after=list(request.after) or None,
            after_any_end=request.after_any_end or None,
            not_before=self._interval(request.not_before),
            not_after=self._interval(request.not_after),
            unique_key=request.unique_key,
            stays_open=stays_open,
            **options,
        )
        new = replace(request, id=id, rank=id, made=self.model.now)
        if stays_open:
            self.uncommitted.setdefault(request.role, []).append(new)
        else:
            self.model.requests.setdefault(id, new)
        return id

    @rule(which=st.integers(0, 1), commits=st.booleans())
    @only_if(lambda self: self.uncommitted)
    def end_transaction(self, which: int, commits: bool) -> None:
        """Requests with lower ids than others may be seen later."""
        role = sorted(self.uncommitted)[which % len(self.uncommitted)]
        requests = self.uncommitted.pop(role)
        if commits:
            self.world.open_callers[role].commit()
            self.model.requests |= {request.id: request for request in requests}
        else:
            self.world.open_callers[role].rollback()

    def _interval(self, time: float | None) -> str | None:
        return None if time is None else f"{(time - self.model.now) * TICK} seconds"

    @rule(
        which=st.lists(st.integers(0, 99), min_size=1, max_size=3),
        any_end=st.booleans(),
        key=st.none() | st.sampled_from(KEYS),
    )
    @only_if(lambda self: self.model.requests)
    def send_after(self, which: list[int], any_end: bool, key: str | None) -> None:
        requests = list(self.model.requests.values())
        first = self.pick(requests, which[0])
        own = [request for request in requests if request.role == first.role]
        after = {first.id, *(self.pick(own, number).id for number in which)}
        if not any(self.model.requests[id].mark == "forget" for id in after):
            self._send(
                Request(0, first.role, HOSTS[0], key=key, after=tuple(after), after_any_end=any_end)
            )

    @rule(
        role=st.sampled_from(ROLES),
        host=st.sampled_from(HOSTS),
        unique_for=st.none() | st.integers(1, 2),
        delay=st.none() | st.integers(1, 2),
        replaces=st.booleans(),
    )
    def send_once(
        self, role: str, host: str, unique_for: int | None, delay: int | None, replaces: bool
    ) -> None:
        """A second request with the key changes the one that waits, or nothing."""
        model = self.model
        new = Request(0, role, host, unique_key=UNIQUE)
        new.not_before = None if delay is None else model.now + delay - 0.5
        for request in model.requests.values():
            if request.unique_key == UNIQUE and request.role == role and request.locked:
                self._let_go()
        waiting = model.merges_with(role, UNIQUE)
        # How long a call merges is its own option, and counts from the first call.
        if waiting is not None and waiting.made + (unique_for or 99) - 0.5 <= model.now:
            waiting.unique_key, waiting = None, None
        id = self._send(
            new,
            on_conflict="replace" if replaces else None,
            unique_for=unique_for and self._interval(model.now + unique_for - 0.5),
        )
        if waiting is None:
            for request in model.requests.values():
                if request.role == role and request.id != id:
                    request.unique_key = None
            return
        assert id == waiting.id
        if replaces:
            waiting.host, waiting.not_before = host, new.not_before

    @rule(which=st.integers(0, 99), action=st.sampled_from(["cancel", "forget"]))
    @only_if(lambda self: self.model.requests)
    def mark(self, which: int, action: str) -> None:
        request = self.pick(list(self.model.requests.values()), which)
        # A role can do nothing to another role's requests.
        [other] = set(ROLES) - {request.role}
        assert self.world.call(other, f"select net.{action}(%s)", request.id) is False
        unblocks = self.model.unblock(request) if not request.open else False
        done = self.world.call(request.role, f"select net.{action}(%s)", request.id)
        if action == "cancel":
            assert done is (unblocks or (request.mark is None and request.open))
        else:
            assert done is (request.mark != "forget")
        if done and (action == "forget" or request.open):
            request.mark = action

    @rule(role=st.sampled_from(ROLES), key=st.sampled_from(KEYS))
    def unblock(self, role: str, key: str) -> None:
        head = self.model.head_of(role, key)
        done = self.world.call(role, "select net.unblock(%s)", key)
        assert done is (head is not None and self.model.unblock(head))

    @rule(which=st.integers(0, 99))
    @only_if(lambda self: self.model.failures())
    def send_again(self, which: int) -> None:
        request = self.pick(self.model.failures(), which)
        id = self.world.call(request.role, "select net.retry(%s)", request.id)
        self.model.send_again(request, id)

    # ---- administrators

    @rule(host=st.sampled_from([*HOSTS, "c.example", "*"]))
    def pause_or_resume(self, host: str) -> None:
        paused = host in self.model.paused
        self.world.administer(f"select net.{'resume' if paused else 'pause'}(%s)", host)
        self.model.paused ^= {host}

    @rule(host=st.sampled_from(HOSTS), most=st.none() | st.integers(1, 3))
    def limit(self, host: str, most: int | None) -> None:
        """Set a limit, raise it, lower it, or take it away."""
        self.world.administer(
            "select net.configure_host(%s, %s)", host, json.dumps({"concurrency": most})
        )
        self.model.concurrency.pop(host, None)
        if most is not None:
            self.model.concurrency[host] = most

    # ---- workers

    # Rules are drawn with equal chances, and some are left out of an example: so what is to happen
    # often has several rules.
    @rule(
        which=st.integers(0, 9),
        slots=st.sampled_from([2, 100]),
        states=st.lists(st.sampled_from(STATES), min_size=1, max_size=3),
        wait=st.integers(0, 2),
    )
    def work(self, which: int, slots: int, states: list[str], wait: int) -> None:
        """A worker claims, and records what it has in flight, some this way and some that."""
        self.claim(which, slots)
        for first, state in enumerate(states):
            self.record(which, first, 2, state, wait)

    @rule(which=st.integers(0, 9), states=st.lists(st.sampled_from(STATES), min_size=2, max_size=5))
    def work_on(self, which: int, states: list[str]) -> None:
        """One after the other, as a key has them."""
        for state in states:
            self.work(which, 100, [state], 0)

    @rule(which=st.integers(0, 9), slots=st.sampled_from([1, 2, 5, 100]))
    def claim(self, which: int, slots: int) -> None:
        if slots == 100:
            self._claim_all(self.worker(which))
        else:
            self._claim(self.worker(which), slots)

    @rule(which=st.integers(0, 9))
    @only_if(lambda self: self.model.ready(quarantined=True))
    def claim_what_was_lost(self, which: int) -> None:
        self._claim(self.worker(which), 100, quarantined=True)

    def _claim(self, worker: Worker, slots: int, *, quarantined: bool = False) -> int:
        self._see_lingering()
        rows, _more = self.world.claim(worker, slots, quarantined=quarantined)
        assert len(rows) <= slots
        self.model.examine()
        self._see_endings()
        for row in rows:
            try:
                request = self.model.take(row["id"], worker.number, quarantined=quarantined)
            except AssertionError as error:
                self._explain(error, row["id"])
                raise
            self.claimed[request.id] = request
            if request.host in self.model.concurrency or request.key is not None:
                self.counted.add(request.id)
            expires_in = json.loads(row["flow"] or "{}").get("expires_in", 1)
            assert (expires_in <= 0) is self.model.is_too_late(request), row
            if expires_in <= 0:
                # A worker does not send it.
                self.world.record(worker, {request.id: {"state": "expired", "error_msg": "late"}})
                self.model.end(request, "expired")
        return len(rows)

    def _explain(self, error: AssertionError, id: int) -> None:
        """Say what the tables have of a request, and of those that it has to do with."""
        request = self.model.requests.get(id)
        others = [] if request is None else [*request.after, *self._same_key(request)]
        for number in (id, *others):
            error.add_note(f"{self.model.requests.get(number)} {self.world.known(number)}")

    def _same_key(self, request: Request) -> list[int]:
        mine = (request.role, request.key)
        return [r.id for r in self.model.requests.values() if r.key and (r.role, r.key) == mine]

    def _claim_all(self, worker: Worker) -> int:
        """Claim until nothing is left that may be sent: then the model has nothing left, either."""
        count, tries = 0, 0
        while (claimed := self._claim(worker, 100)) or (self.model.ready() and tries < 100):
            count += claimed
            if not claimed:
                # What another session had locked a moment ago is looked at again in a moment.
                tries += 1
                time.sleep(0.03)
        left = self.model.ready()
        assert not left, f"left by a claim: {[(r, self.world.known(r.id)) for r in left]}"
        return count

    def _see_lingering(self) -> None:
        """What was cancelled in flight counts for a limit and a key until its worker drops it."""
        requests = self.model.requests
        claims = [id for id in self.world.claims() if id not in requests or not requests[id].open]
        for worker in self.alive():
            for id in worker.holds.keys() & self.counted:
                # One whose outcome the worker was told to be stale is not held any more.
                if (request := requests.get(id)) is None or request.ended == "cancelled":
                    assert id in claims, f"{id} may be in flight, and does not count"
        self.model.lingering = [replace(self.claimed[id], ended="cancelled") for id in claims]

    def _see_endings(self) -> None:
        """Requests end without anybody doing anything where the model says that they may."""
        for id, state in self.world.outcomes().items():
            request = self.model.requests.get(id)
            if request is not None and request.open and state in self.model.endings(request):
                self.model.end(request, state)
                request.failure = state == "cancelled"

    @rule(
        which=st.integers(0, 9),
        first=st.integers(0, 99),
        count=st.integers(1, 5),
        state=st.sampled_from(STATES),
        wait=st.integers(0, 3),
    )
    @only_if(lambda self: any(worker.holds for worker in self.alive()))
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
    @only_if(lambda self: any(worker.holds for worker in self.alive()))
    def give_back(self, which: int, first: int, begun: bool) -> None:
        worker = self.worker(which)
        ids = self.held(worker, first, 2)
        own = [r for r in self.model.requests.values() if r.id in ids and self.holds(r, worker)]
        if begun and any(request.locked for request in own):
            return
        self.world.release(worker, ids, "stopped in a test" if begun else None)
        for request in own:
            self.model.give_back(request, begun=begun)

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
        self._see_endings()
        own = {id for id in held if (r := self.model.requests.get(id)) and self.holds(r, worker)}
        assert set(said["dropped"]) == held - own

    @rule()
    @only_if(lambda self: len(self.world.workers) < WORKERS)
    def begin_worker(self) -> None:
        self.world.begin_worker()

    @rule(which=st.integers(0, 9), rescued=st.booleans(), returns=st.booleans())
    @only_if(lambda self: len(self.alive()) > 1)
    def kill(self, which: int, rescued: bool, returns: bool) -> None:
        """A worker dies; perhaps others take what it had, and perhaps it comes back then."""
        self.world.kill(self.worker(which))
        if rescued:
            self._heartbeat(self.alive()[0])
            self.advance(1)
            self._claim_all(self.alive()[0])
            if returns:
                self.come_back(records=True)

    @rule(records=st.booleans())
    @only_if(lambda self: len(self.alive()) < len(self.world.workers))
    def come_back(self, records: bool) -> None:
        """A worker that was lost has what it had in flight, and perhaps others have it, too."""
        worker = next(worker for worker in self.world.workers if not worker.alive)
        self.noticed.pop(worker.number, None)
        assert self.world.come_back(worker)
        if records:
            self.record(self.alive().index(worker), 0, 100, "succeeded", 0)

    # ---- the clock, and another session

    @rule(ticks=st.sampled_from([1, 1, 2, 3]))
    def advance(self, ticks: int) -> None:
        self.world.advance(ticks)
        self.model.now += ticks
        # Workers call every second: none of them has stalled.
        for worker in self.alive():
            self._heartbeat(worker)

    @rule(which=st.integers(0, 99))
    @only_if(lambda self: self.model.requests)
    def hold(self, which: int) -> None:
        """Another session locks the row, and does nothing with it."""
        request = self.pick(list(self.model.requests.values()), which)
        locked = self.world.hold(request.id)
        assert locked is request.open
        request.locked = locked

    @rule()
    @only_if(lambda self: any(r.locked for r in self.model.requests.values()))
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
        while self.uncommitted:
            self.end_transaction(0, commits=True)
        for host in sorted(self.model.paused):
            self.world.administer("select net.resume(%s)", host)
        self.model.paused.clear()
        for _ in range(4 + 4 * len(self.model.requests)):
            if all(not r.open and r.mark is None for r in self.model.requests.values()):
                break
            for role in ROLES:
                for key in KEYS:
                    self.unblock(role, key)
            self.advance(4)
            for which, worker in enumerate(self.alive()):
                self.record(which, 0, 1000, "succeeded", 0)
                while self._claim_all(worker) or self._claim(worker, 100, quarantined=True):
                    self.record(which, 0, 1000, "succeeded", 0)
        for _ in range(3):
            self.advance(1)
        self.the_tables_are_as_the_model()
        assert [r for r in self.model.requests.values() if r.open] == []
        assert self.world.claims() == {}, self.world.workers


@pytest.fixture
def world(make_cluster: Callable[..., Cluster]) -> Iterator[World]:
    # A duty of the heartbeat is put off where VACUUM has just locked a table: the model knows no
    # VACUUM.
    database = make_cluster(autovacuum="off").create_database()
    world = World(database)
    yield world
    world.close()


@pytest.mark.timeout(1200)
def test_flow_is_as_the_model_says(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = float(os.environ.get("MODEL_SECONDS", "60"))
    first = int(os.environ.get("MODEL_SEED") or _SUITE_SEED)
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
