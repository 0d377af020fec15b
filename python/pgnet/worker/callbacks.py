"""Callbacks: who runs them, beside the requests of a worker, or in a session of their own.

How it works
------------

A worker process opens sessions for callbacks as they are needed: runners, up to the setting
callback_runners. A session runs callbacks of one role only. What a role leaves behind in it, such
as a connection of dblink, no other role meets. A runner whose role has nothing to do is closed when
another role needs its place.

One greenlet, the coordinator, has a runner look whose callbacks are due, and gives each role a
runner. It looks when a commit says so, when a callback is due, and when a runner has ended its
turn. A role has one callback running at a time: the database sees to it, among all workers. A
runner goes on with its role for a second, and then others come first. Roles whose callbacks have
run out of their time of late get half of the runners at most: the others are never all theirs.

Each runner waits for the database in a thread of a pool of their own. So no request ever waits for
a callback.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Protocol

import gevent
from gevent.event import Event

from pgnet.outbox import DueCallbacks, OutboxError, OutboxFailed, Performed, Runner

log = logging.getLogger("pgnet.worker")

# Seconds that a runner goes on with one role.
_TURN = 1.0
# Seconds after which runners that have nothing to do are closed.
_IDLE = 60.0
# Seconds until the next try where the database fails, the first time and at the longest.
_FIRST, _LONGEST = 0.1, 10.0
# Seconds that net.drain() waits for the lock of another session.
_PATIENCE = 2.0
# Seconds that callbacks have to end when the worker stops.
_GRACE = 5.0


class Callbacks(Protocol):
    """What a worker's loop knows of callbacks."""

    def look(self) -> None:
        """There may be callbacks to run."""

    def run_due(self, until: float) -> bool:
        """Run all that is due, until a time of the monotonic clock; was there any?"""

    def stop(self) -> None:
        """Begin no more, and end."""


class NoCallbacks:
    """For a worker beside which others run the callbacks."""

    def look(self) -> None:
        """Do nothing."""

    def run_due(self, until: float) -> bool:
        """Run none."""
        return False

    def stop(self) -> None:
        """Do nothing."""


class SessionCallbacks(NoCallbacks):
    """Runs callbacks in this session, when the worker has nothing else to do."""

    def __init__(self, open_runner: Callable[[], Runner]) -> None:
        self._open_runner = open_runner

    def run_due(self, until: float) -> bool:
        runner = self._open_runner()
        give_up_at = time.monotonic() + _PATIENCE
        while True:
            try:
                return run_due(runner, until)[0]
            except OutboxFailed:
                # Another session holds a lock on a table: they are run the next time.
                if time.monotonic() > give_up_at:
                    return False
                gevent.sleep(_FIRST)


class CallbackCancelled(Exception):
    """The session was cancelled while a callback ran."""


def run_due(runner: Runner, until: float) -> tuple[bool, float | None]:
    """Run what is due, until a time of the monotonic clock.

    Returns whether anything was run, and after how many seconds more is due, None: nothing waits.
    Raises CallbackCancelled.
    """
    ran_any = False
    while True:
        due = runner.look()
        ran = False
        for role in due.roles:
            ran = _run_turn(runner, role, until) or ran
        if not ran or time.monotonic() >= until:
            return ran_any or ran, due.look_in
        ran_any = True


def _run_turn(runner: Runner, role: int, until: float) -> bool:
    """Run callbacks of a role for its turn; returns whether there were any."""
    if time.monotonic() >= until:
        return False
    turn_ends = min(until, time.monotonic() + _TURN)
    token = first = runner.take(role)
    while token is not None:
        performed = _perform(runner, token, go_on=time.monotonic() < turn_ends)
        if performed.cancelled:
            raise CallbackCancelled
        token = performed.next_token
    return first is not None


def _perform(runner: Runner, token: str, *, go_on: bool) -> Performed:
    """Run a callback that was begun, as soon as no lock of another session is in its way."""
    give_up_at = time.monotonic() + _LONGEST
    while True:
        try:
            return runner.perform(token, go_on=go_on)
        except OutboxFailed as error:
            # Nothing of it was run: what it raises itself is its error, and not this one.
            if not error.brief or time.monotonic() > give_up_at:
                raise
            gevent.sleep(_FIRST)


class _Place:
    """A runner, with what it is used for.

    role: whose callbacks its session has run; None: nobody's yet. is_busy: it runs some now.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.role: int | None = None
        self.is_busy = False
        self.used_at = time.monotonic()


class ProcessCallbacks(NoCallbacks):
    """Runs callbacks in sessions of their own. open_runner: makes such a session."""

    def __init__(self, open_runner: Callable[[], Runner]) -> None:
        self._open_runner = open_runner
        self._places: list[_Place] = []
        self._most = 1
        self._wanted = Event()
        self._is_stopping = False
        self._pause = _FIRST
        self._fault = ""
        self._coordinator: gevent.Greenlet[..., None] | None = None
        self._serving: set[gevent.Greenlet[..., None]] = set()

    def look(self) -> None:
        self._wanted.set()
        if self._coordinator is None and not self._is_stopping:
            self._coordinator = gevent.spawn(self._coordinate)

    def stop(self) -> None:
        self._is_stopping = True
        if self._coordinator is not None:
            self._wanted.set()
            self._coordinator.join(_GRACE)
            self._coordinator.kill()
        gevent.joinall(list(self._serving), _GRACE)
        for place in self._places:
            if place.is_busy:
                log.warning("a callback is cancelled, since the worker stops; it is tried again")
                place.runner.cancel()
        gevent.joinall(list(self._serving), _FIRST)
        gevent.killall(list(self._serving), block=False)
        for place in self._places:
            place.runner.close()

    # ---- the coordinator

    def _coordinate(self) -> None:
        pause: float | None = 0.0
        while True:
            self._wanted.wait(pause)
            self._wanted.clear()
            if self._is_stopping:
                return
            place = self._free_place()
            if place is None:
                pause = None  # a runner that ends its turn has this one look
                continue
            place.is_busy = True
            try:
                due = place.runner.look()
            except OutboxError as error:
                self._failed(place, error)
                pause = self._pause
                continue
            finally:
                place.is_busy = False
            self._succeeded()
            self._hand_out(due)
            pause = self._next_look(due)

    def _failed(self, place: _Place, error: OutboxError) -> None:
        self._remove(place)
        self._pause = min(self._pause * 2, _LONGEST)
        if str(error) != self._fault and not (isinstance(error, OutboxFailed) and error.brief):
            self._fault = str(error)
            log.warning("looking for callbacks fails, and is tried again: %s", error)

    def _succeeded(self) -> None:
        if self._fault:
            log.warning("looking for callbacks works again")
        self._pause, self._fault = _FIRST, ""

    def _next_look(self, due: DueCallbacks) -> float | None:
        """Seconds until the next look, and no runners that nobody needs until then."""
        now = time.monotonic()
        if due.look_in is not None:
            return max(due.look_in, 0.01)
        if any(place.is_busy for place in self._places):
            return None
        last = max((place.used_at for place in self._places), default=-math.inf)
        if now < last + _IDLE:
            return last + _IDLE - now
        for place in list(self._places):
            self._remove(place)
        return None

    def _hand_out(self, due: DueCallbacks) -> None:
        """Give each role whose callbacks are due a runner, as long as there are any."""
        self._most = due.runners
        if self._most < 1:
            return
        for role in due.roles:
            busy = [place for place in self._places if place.is_busy]
            if any(place.role == role for place in busy):
                continue
            if role in due.suspects and len(busy) >= max(1, due.runners // 2):
                continue
            place = self._place_for(role)
            if place is None:
                return
            place.role, place.is_busy = role, True
            serving = gevent.spawn(self._serve, place, role)
            self._serving.add(serving)
            serving.link(self._serving.discard)

    # ---- places

    def _free_place(self) -> _Place | None:
        """A place to look from."""
        idle = [place for place in self._places if not place.is_busy]
        if idle:
            return idle[0]
        return self._new_place()

    def _place_for(self, role: int) -> _Place | None:
        """A place whose session has run nobody else's callbacks; None where all are busy."""
        idle = sorted(
            (place for place in self._places if not place.is_busy), key=lambda place: place.used_at
        )
        for place in idle:
            if place.role in (role, None):
                return place
        if len(self._places) >= self._most and idle:
            self._remove(idle[0])
        return self._new_place()

    def _new_place(self) -> _Place | None:
        if len(self._places) >= max(self._most, 1):
            return None
        place = _Place(self._open_runner())
        self._places.append(place)
        return place

    def _remove(self, place: _Place) -> None:
        if place in self._places:
            self._places.remove(place)
        place.runner.close()

    # ---- a runner's turn

    def _serve(self, place: _Place, role: int) -> None:
        turn_ends = time.monotonic() + _TURN
        try:
            token = place.runner.take(role)
            while token is not None:
                go_on = not self._is_stopping and time.monotonic() < turn_ends
                token = _perform(place.runner, token, go_on=go_on).next_token
        except OutboxError as error:
            # The callback that ran is free again: its session is gone.
            self._remove(place)
            log.warning("a session for callbacks is lost: %s", error)
            gevent.sleep(_FIRST)
        finally:
            place.is_busy = False
            place.used_at = time.monotonic()
            self._wanted.set()
