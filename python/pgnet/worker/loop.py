"""The worker: claim, perform, record, in one loop, for both of its forms.

The loop runs in one greenlet; requests run beside it as callbacks of the hub. It talks to the
database through an Outbox and to the world through an Exchange, and knows neither.
"""

from __future__ import annotations

import contextlib
import logging
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import gevent
import requests
from gevent.event import Event

from pgnet.outbox import (
    Claim,
    Demand,
    Outbox,
    OutboxError,
    OutboxFailed,
    OutboxLost,
    OutboxRefused,
    OutboxUnknown,
    Outcome,
    Place,
    Secret,
    Tending,
    Turn,
)
from pgnet.request.errors import InvalidRequest
from pgnet.request.row import Row
from pgnet.secret.directory import Directory
from pgnet.secret.mask import Mask
from pgnet.wire.answer import Answer, Limits
from pgnet.wire.exchange import Exchange, Handle
from pgnet.wire.guard import EgressRules, Guard
from pgnet.wire.host import HostTable
from pgnet.worker.alarm import Alarm
from pgnet.worker.assemble import Assembled, assemble, host_table, masks_of, read
from pgnet.worker.backoff import Backoff
from pgnet.worker.delivery import PLAIN, Delivery, delivery_of
from pgnet.worker.outcome import Storable, outcome_of
from pgnet.worker.quarantine import Quarantine
from pgnet.worker.recorder import Recorder
from pgnet.worker.retry import Policy, read_policies
from pgnet.worker.window import Window

log = logging.getLogger("pgnet.worker")

# Bytes of requests that one claim brings into memory.
_CLAIM_BYTES = 64 << 20
# Bytes of response bodies that may wait to be recorded while more requests are claimed.
_UNRECORDED_BYTES = 64 << 20
# One host never has all of the slots: others find room, however slow it is.
_HOST_SHARE = 0.75
# Where commits cannot wake the worker, it looks this often, in seconds.
_POLL_INTERVAL = 1.0
# How long to wait before trying to connect again, in seconds.
# Well below the setting rescue_after: others take over what a worker holds that stays away.
_FIRST_RETRY, _LONGEST_RETRY = 0.1, 1.0
# The same where the database answers, and refuses.
_LONGEST_REFUSED = 5.0
# It commits at least this often, so that its transaction never looks old.
_LONGEST_SLEEP = 60.0
# Seconds after which a request in flight is none of the window's any more.
_YOUTH = 0.25
# How often the window is judged while requests wait for it, in seconds.
_WINDOW_INTERVAL = 0.01
# A heartbeat that a signal asks for comes no sooner after the last one, in seconds: any role may
# send such a signal, with each of its commits.
_HEARTBEAT_PAUSE = 0.05
# A worker whose slots are full wakes the next one this often, in seconds.
_HELPER_INTERVAL = 0.5
# Open files that are not for requests.
_OTHER_FILES = 100
# Seconds that a worker which stops takes to record what ended at the last moment, and that it waits
# at least for a database that is out of reach.
_RECORDING, _RECONNECTING = 0.5, 5.0
# Seconds beyond its grace that a worker which stops waits for a statement, before it is cancelled.
_UNTIL_CUT_SHORT = 5.0
# Seconds after a recording until the heartbeat at the latest: where an outcome may have been put
# aside, and else.
_SOON, _LATER = 0.5, 5.0
# Seconds past its deadline after which a flight is not believed any more.
_OVERDUE = 60.0


@dataclass(slots=True)
class _Flight:
    claim: Claim
    began: float
    delivery: Delivery = PLAIN
    handle: Handle | None = None
    assembled: Assembled | None = None

    @property
    def deadline(self) -> float:
        return self.began + self.claim.timeout_milliseconds / 1000


class _Unsent(str):
    """Why a request was not sent that could have been."""


class Worker:
    """Serves one database until it is stopped, or until nothing is due.

    outbox: the database. max_runtime: seconds, None for no limit. until_idle: end when nothing is
    due. grace: seconds that requests in flight have at most to end when it stops, None for the
    setting. concurrency: requests in flight at once, None for the setting. directory: the secrets
    that this worker holds itself.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        max_runtime: float | None = None,
        until_idle: bool = False,
        grace: float | None = None,
        concurrency: int | None = None,
        directory: Directory | None = None,
    ) -> None:
        self._directory = directory
        self._outbox = outbox
        self._until_idle = until_idle
        self._own_grace = grace
        self._grace = grace or 0.0
        self._cut_off = 0
        self._mode = "on"
        self._policies: dict[str, Policy] = {}
        self._policies_said: dict[str, dict[str, Any]] = {}
        self._quarantine = Quarantine()
        self._heartbeat = Backoff("the heartbeat")
        self._claiming = Backoff("claiming")
        self._recording = Backoff("recording")
        # Duties of the heartbeat that fail, as the database says.
        self._faults: Mapping[str, str] = {}
        # When requests that this worker has put back fall due.
        self._due = Alarm()
        self._ends = time.monotonic() + max_runtime if max_runtime is not None else float("inf")
        self._own_concurrency = concurrency
        self._window = Window(1)
        self._default_timeout = 0
        self._ceiling = 0.0
        self._batch_size = 1
        self._storable = Storable("UTF8")
        self._exchange: Exchange | None = None
        self._revision = 0
        self._generation: int | None = None
        self._restart = False
        self._rules: tuple[dict[str, Any], Limits, HostTable] | None = None
        self._masks: Sequence[Mask] = ()
        self._flights: dict[int, _Flight] = {}
        # When they began, the first one first; those that are young.
        self._young: dict[int, float] = {}
        self._hosts: Counter[str] = Counter()
        self._full_hosts: list[str] = []
        # Hosts, and roles at each of them, take turns from behind this place. Where there are too
        # many to look at in one claim, the next ones go on, until they are where they began.
        self._after = Place()
        self._until: Place | None = None
        self._recorder: Recorder[_Flight] = Recorder(self._outcome)
        # What is to be given back: why, or None where no attempt was begun.
        self._given_up: list[tuple[Claim, str | None]] = []
        self._next_helper = 0.0
        self._linger = 0.0
        # There may be requests that are ready: cleared before each claim, never after it, so
        # that a wake-up that comes meanwhile is not lost.
        self._look = True
        self._next_look = 0.0
        self._last_look = 0.0
        self._heartbeat_pause = _HEARTBEAT_PAUSE
        self._signals: set[str] = set()
        self._event = Event()
        self._over = False

    def run(self) -> None:
        """Serve. Raises OutboxRefused, and what a cancel raises; of other errors it comes back."""
        loop = gevent.get_hub().loop
        watchers = [loop.prepare(), loop.check()]
        watchers[0].start(self._window.idle_begins)
        watchers[1].start(self._window.idle_ends)
        self._outbox.listen(self._on_signals)
        self._connect()
        try:
            while self._serve() == "restart":
                log.info("restarting")
                self._finish()
                self._reset()
            self._finish()
        finally:
            try:
                self._abandon()
            finally:
                for watcher in watchers:
                    watcher.stop()
                    watcher.close()
                self._reset()
                self._outbox.close(self._cut_off)
                self._over = True

    def stop(self) -> None:
        """Have ``run`` end: claim no more, finish within the grace, give back the rest."""
        self._on_signals({"stop"})
        gevent.spawn(self._cut_short)

    def _cut_short(self) -> None:
        """Have no statement outlast the grace, whatever it waits for."""
        gevent.sleep(self._grace)
        while not self._over:
            gevent.sleep(_UNTIL_CUT_SHORT)
            self._outbox.cut_short()

    def _on_signals(self, signals: set[str]) -> None:
        self._signals |= signals
        self._event.set()

    def _reset(self) -> None:
        if self._exchange is not None:
            self._exchange.close()
        self._exchange = None
        self._rules = None
        self._generation = None
        self._restart = False
        self._look = True
        self._next_look = 0.0

    # ---- the loop

    def _serve(self) -> str:
        while True:
            self._event.clear()
            signals, self._signals = self._signals, set()
            if "interrupt" in signals:
                self._outbox.check_interrupts()
            if "stop" in signals:
                return "stop"
            if signals & {"wake", "prepared"}:
                self._look = True
                # Where there is no room here, the wake-up is the next one's, at once.
                self._next_helper = 0.0
            now = time.monotonic()
            if now >= self._ends:
                return "ends"
            if self._due.rings(now):
                self._look = True
            try:
                self._tend_if_due(signals)
                if self._restart:
                    return "restart"
                if self._step():
                    continue
            except (OutboxLost, OutboxUnknown) as error:
                self._connect(error)
                continue
            if self._until_idle and self._is_idle():
                return "idle"
            self._sleep(min(self._next_look, self._due.next, self._ends))

    def _connect(self, error: OutboxError | None = None, until: float = float("inf")) -> None:
        """Register with the database, however long it takes; a stop ends the trying.

        error: why it is to be done anew. until: give up then, by the monotonic clock; a stop counts
        for nothing where that is given.
        """
        pause, logged = _FIRST_RETRY, ""
        absent = isinstance(error, OutboxUnknown)
        if absent:
            log.warning("the extension pgnet is gone, or was created again: %s", error)
        elif error is not None:
            log.warning("the database is out of reach: %s", error)
        while time.monotonic() < until and ("stop" not in self._signals or until < float("inf")):
            try:
                same = self._outbox.connect(self._holding())
            except OutboxRefused:
                raise
            except OutboxError as error:
                if str(error) != logged and not (absent and isinstance(error, OutboxUnknown)):
                    logged = str(error)
                    log.warning("waiting for the database: %s", logged)
                self._event.clear()
                self._event.wait(pause)
                longest = _LONGEST_REFUSED if isinstance(error, OutboxFailed) else _LONGEST_RETRY
                pause = min(pause * 1.6, longest)
            else:
                if not same:
                    # What it had was another worker's, which is not known any more: freed, or gone
                    # with the extension.
                    self._drop(set(self._holding()))
                    self._generation = None
                    for what in (self._heartbeat, self._claiming, self._recording):
                        what.succeeded()
                self._look = True
                self._next_look = 0.0
                if absent:
                    log.warning("the extension pgnet is back, and served")
                elif logged:
                    log.warning("connected")
                return

    def _holding(self) -> list[int]:
        """The requests that are in flight here, and those whose outcome is not recorded yet."""
        return [*self._flights, *self._recorder.ids(), *(claim.id for claim, _ in self._given_up)]

    def _drop(self, ids: Set[int]) -> None:
        """Stop requests that are no longer this worker's: slots, connections and answers go."""
        if not ids:
            return
        for id in ids & self._flights.keys():
            self._land(self._flights[id])
        self._recorder.drop(ids)
        self._given_up = [entry for entry in self._given_up if entry[0].id not in ids]
        self._look = True

    def _step(self, *, claim: bool = True) -> bool:
        """One turn with the database, if there is reason for one; whether there was."""
        now = time.monotonic()
        self._recorder.look(now)
        if self._quarantine.check(now):
            self._look = True
        claim = claim and self._mode != "off" and now >= self._claiming.retry_at
        free = self._room(now)
        looks = self._look or self._until is not None
        wanted = claim and looks and free > 0 and self._recorder.size < _UNRECORDED_BYTES
        if claim and self._look and not wanted:
            self._wake_next()
        alone = claim and self._quarantine.is_on
        if alone:
            wanted = self._quarantine.may_claim(now, self._begins())
        waiting = len(self._recorder) if now >= self._recording.retry_at else 0
        if waiting:
            # Others may end in a moment: as long as a turn takes is worth waiting to share it.
            if (
                waiting < self._batch_size
                and self._flights
                and now < self._recorder.first + self._linger
            ):
                return False
        elif not wanted:
            return False
        self._turn(self._demand(free, alone=alone) if wanted else None, record=waiting > 0)
        return True

    def _begins(self) -> Iterable[float]:
        """When each request in flight began."""
        return (flight.began for flight in self._flights.values())

    def _room(self, now: float) -> int:
        """How many more requests may be in flight now.

        The window is for those that keep the loop busy. Who has been on the way for a while mostly
        waits for a server that hangs, and must not take the room of others.
        """
        while self._young:
            flight_id = next(iter(self._young))
            if now - self._young[flight_id] < _YOUTH:
                break
            del self._young[flight_id]
        self._window.adjust(len(self._young))
        return min(self._window.size - len(self._young), self._window.most - len(self._flights))

    def _demand(self, free: int, *, alone: bool) -> Demand:
        cap = self._host_cap()
        self._full_hosts = self._hosts_at_cap()
        room = cap - max((count for count in self._hosts.values() if count < cap), default=0)
        return Demand(
            slots=min(free, self._batch_size),
            host_quota=min(room, (free + 1) // 2),
            lone_quota=room,
            full_hosts=self._full_hosts,
            max_bytes=_CLAIM_BYTES,
            after=self._after,
            # For a new reason it looks everywhere.
            until=None if self._look else self._until,
            alone=alone,
        )

    def _turn(self, demand: Demand | None, *, record: bool = True) -> None:
        batch = self._recorder.batch(self._batch_size) if record else []
        if demand is not None and not demand.alone:
            self._look = False
        started = time.monotonic()
        try:
            turn = self._outbox.turn(batch, demand)
        except MemoryError:
            self._look = True
            self._recorder.lighten(batch)
            return
        except OutboxFailed as error:
            if demand is not None:
                # What has ended is recorded without a claim, which may be what has failed.
                self._look = True
                self._claiming.failed(error, differently=bool(batch))
            else:
                self._recorder.failed(batch)
                self._recording.failed(error, differently=len(batch) > 1)
            return
        now = time.monotonic()
        self._linger = min(now - started, 0.05)
        if batch:
            self._recording.succeeded()
            self._recorder.recorded(batch, set(turn.held_up))
            aside = any(outcome.put_aside for outcome in batch)
            # The heartbeat records what was put aside, and says what was refused.
            self._next_look = min(self._next_look, now + (_SOON if aside else _LATER))
        for outcome in batch:
            # Later ones are seen when the worker looks anyway.
            if outcome.retry_in is not None and now + outcome.retry_in < self._next_look:
                self._due.set(now + outcome.retry_in)
        if demand is not None:
            self._claiming.succeeded()
            self._begin_all(turn.claims)
            self._after_claim(demand, turn)

    def _begin_all(self, claims: Sequence[Claim]) -> None:
        """Send what was claimed, by the settings and with the secrets of this moment."""
        try:
            if any(claim.revision != self._revision for claim in claims):
                # Settings or rules were changed before these were committed: they are meant for
                # them.
                dropped = self._tend(claims)
                claims = [claim for claim in claims if claim.id not in dropped]
            # A worker that is to start anew does so first.
            if self._mode != "off" and not self._restart:
                rows = [(claim, read(claim)) for claim in claims]
                secrets = self._secrets(rows)
                for claim, row in rows:
                    self._begin(claim, row, secrets.get(claim.id) or {})
                return
        except OutboxFailed as error:
            self._claiming.failed(error)
        self._given_up += [(claim, None) for claim in claims]
        self._return_claims()

    def _after_claim(self, demand: Demand, turn: Turn) -> None:
        if demand.alone:
            suspects = {claim.id for claim in turn.claims if claim.id in self._flights}
            self._quarantine.claimed(suspects, time.monotonic())
            self._look = self._look or not suspects
        elif self._may_be_more(demand, turn):
            self._look = True
            self._wake_next()
        elif demand.full_hosts:
            self._wake_next()

    def _secrets(self, rows: Sequence[tuple[Claim, Row]]) -> dict[int, dict[str, Secret]]:
        """What claims refer to, by their ids and the secrets' names; few refer to any."""
        wanted = [(claim, name) for claim, row in rows for name in row.secrets]
        found: dict[int, dict[str, Secret]] = {}
        if wanted:
            for (claim_id, name), secret in self._outbox.secrets(wanted).items():
                found.setdefault(claim_id, {})[name] = secret
        return found

    def _outcome(self, flight: _Flight, answer: Answer | str) -> Outcome:
        claim = flight.claim
        if isinstance(answer, _Unsent):
            return Outcome(claim.id, claim.token, "cancelled", error_msg=answer)
        try:
            return self._read(flight, answer)
        except MemoryError:
            # All of it but the body is small.
            if not isinstance(answer, str):
                log.error("request %s: no memory for %s bytes", claim.id, answer.size)
                answer.forget_content()
            return self._read(flight, answer).without_content
        except Exception as error:
            # Nor must an answer that cannot be read.
            log.error("request %s: %s while it was read", claim.id, type(error).__name__)
            message = f"internal error of the worker ({type(error).__name__})"
            return Outcome(claim.id, claim.token, "failed", error_msg=message)

    def _read(self, flight: _Flight, answer: Answer | str) -> Outcome:
        claim, delivery = flight.claim, flight.delivery
        policy = delivery.policy
        outcome = outcome_of(claim, answer, self._storable, flight.assembled, policy)
        if outcome.state == "failed" and not isinstance(answer, str):
            elapsed = time.monotonic() - flight.began
            outcome = delivery.settle(outcome, claim, answer, elapsed)
        return outcome

    def _wake_next(self) -> None:
        """Have another worker take what this one has no room for, if there is one."""
        now = time.monotonic()
        full = self._room(now) <= 0 or self._hosts_at_cap()
        if full and now >= self._next_helper:
            self._next_helper = now + _HELPER_INTERVAL
            self._outbox.wake_next()

    def _hosts_at_cap(self) -> list[str]:
        """The hosts that have as many requests in flight as one host may have."""
        cap = self._host_cap()
        return [host for host, count in self._hosts.items() if count >= cap]

    def _host_cap(self) -> int:
        return max(1, int(self._window.most * _HOST_SHARE))

    def _may_be_more(self, demand: Demand, turn: Turn) -> bool:
        """Whether to look for more at once; otherwise the scan goes on, or has been everywhere."""
        self._until = None
        if turn.more is not None:
            self._after = turn.more
            if not turn.claims:
                # Nothing was there: it ends where it began.
                self._until = demand.until or demand.after
            return bool(turn.claims)
        if len(turn.claims) >= demand.slots:
            return True
        hosts = Counter(claim.host for claim in turn.claims)
        return any(count >= demand.host_quota for count in hosts.values())

    def _begin(self, claim: Claim, row: Row, secrets: Mapping[str, Secret]) -> None:
        self._after = Place(claim.host, claim.role)
        flight = _Flight(claim, time.monotonic())
        former = self._flights.get(claim.id)
        if former is not None:
            # Past its deadline the claim was free again, and this worker is who took it.
            self._land(former)
        self._flights[claim.id] = flight
        self._young[claim.id] = flight.began
        self._hosts[claim.host] += 1
        try:
            assert self._exchange is not None
            assert self._rules is not None
            flight.delivery = delivery = delivery_of(claim, row, self._policies, self._rules[2])
            flight.assembled = assembled = assemble(
                claim, row, secrets, self._directory, self._masks, delivery.key_header
            )
            if self._mode == "record":
                self._done(flight, _Unsent("Not sent: the mode is record."))
                return
            flight.handle = self._exchange.start(
                assembled.request,
                claim.timeout_milliseconds / 1000,
                lambda answer: self._done(flight, answer),
                bound=assembled.bound,
                max_redirects=delivery.max_redirects,
                may_follow=assembled.may_follow,
                at_most_once=delivery.at_most_once,
            )
        except InvalidRequest as error:
            self._done(flight, error.message)
        except requests.RequestException as error:
            self._done(flight, str(error))
        except Exception as error:
            # A request that this code cannot send must not end the worker, nor be tried for ever.
            log.error("request %s: %s while it was begun", claim.id, type(error).__name__)
            self._done(flight, f"internal error of the worker ({type(error).__name__})")

    def _done(self, flight: _Flight, answer: Answer | str) -> None:
        claim = flight.claim
        if self._flights.get(claim.id) is not flight:
            return
        self._land(flight)
        error = answer.error if isinstance(answer, Answer) else None
        if error is not None and error.timed_out and error.kind == "timeout":
            error.explain(self._whose_time(claim.timeout_milliseconds))
        self._recorder.add(claim, flight, answer)
        self._event.set()

    def _whose_time(self, milliseconds: int) -> str:
        """Where the total time of an attempt comes from, and how to have another."""
        if milliseconds == self._ceiling:
            return "That is the setting max_timeout, the most that any request has"
        if milliseconds == self._default_timeout:
            return (
                "That is the setting timeout_milliseconds, for requests that give no time: give "
                "timeout_milliseconds => 5000, or select net.configure("
                "'timeout_milliseconds', '5000')"
            )
        return "That is the timeout_milliseconds of the request"

    def _land(self, flight: _Flight) -> None:
        host = flight.claim.host
        del self._flights[flight.claim.id]
        self._young.pop(flight.claim.id, None)
        self._hosts[host] -= 1
        if not self._hosts[host]:
            del self._hosts[host]
        if host in self._full_hosts:
            self._look = True
        self._quarantine.apart.discard(flight.claim.id)
        # Taken away, not only ended: it knows the flight, and together they would keep the answer.
        handle, flight.handle = flight.handle, None
        if handle is not None:
            handle.cancel()

    def _tend_if_due(self, signals: Set[str]) -> None:
        if signals & {"reload", "prepared"}:
            self._next_look = min(self._next_look, self._last_look + self._heartbeat_pause)
        if time.monotonic() >= self._next_look:
            self._look_after()

    def _look_after(self) -> None:
        """The heartbeat, if it is not to wait after a failure."""
        now = time.monotonic()
        if now < self._heartbeat.retry_at:
            self._next_look = self._heartbeat.retry_at
            return
        try:
            self._return_claims()
            self._tend()
        except OutboxFailed as error:
            self._heartbeat.failed(error)
            self._next_look = self._heartbeat.retry_at
        else:
            self._heartbeat.succeeded()

    def _tend(self, claims: Sequence[Claim] = ()) -> Set[int]:
        """Look after everything; the ids of requests that are no longer this worker's.

        claims: what was claimed and is not in flight yet.
        """
        now = time.monotonic()
        overdue = [f for f in self._flights.values() if now > f.deadline + _OVERDUE]
        for flight in overdue:
            log.error("request %s: no end, long after its time", flight.claim.id)
        self._give_up(overdue, "The worker lost track of it.")
        tending = self._outbox.tend(self._holding() + [claim.id for claim in claims])
        dropped = frozenset(tending.dropped)
        self._drop(dropped)
        self._apply(tending)
        self._log_faults(tending.faults)
        if tending.quarantined:
            self._quarantine.wanted(now)
        polling = self._outbox.wake_up_fault is not None
        next_look = min(tending.next_look, _POLL_INTERVAL if polling else _LONGEST_SLEEP)
        self._last_look = time.monotonic()
        # However often it is asked for, it takes a fifth of the worker's time at most.
        self._heartbeat_pause = max(_HEARTBEAT_PAUSE, 4 * (self._last_look - now))
        self._next_look = self._last_look + next_look
        self._look = True
        return dropped

    def _log_faults(self, faults: Mapping[str, str]) -> None:
        """Say once what of the heartbeat fails, and once that it works again."""
        for duty in self._faults.keys() | faults.keys():
            if duty not in faults:
                log.warning("%s works again", duty)
            elif duty not in self._faults:
                log.warning("%s fails, and is tried again: %s", duty, faults[duty])
        self._faults = faults

    def _apply(self, tending: Tending) -> None:
        settings = tending.settings
        self._revision = tending.revision
        self._restart = self._generation not in (None, tending.generation)
        if self._generation is None:
            self._generation = tending.generation
        limits = Limits(
            max_response_bytes=settings["max_response_bytes"],
            max_wire_bytes=settings["max_wire_bytes"],
            max_header_bytes=settings["max_header_bytes"],
            max_redirects=settings["max_redirects"],
            connect_timeout=settings["connect_timeout_milliseconds"] / 1000,
        )
        self._default_timeout = settings["timeout_milliseconds"]
        # In seconds, as every interval among them.
        self._ceiling = settings.get("max_timeout", 0) * 1000
        self._batch_size = settings["batch_size"]
        self._mode = tending.mode
        if self._own_grace is None:
            self._grace = settings["max_grace"]
        if tending.policies != self._policies_said:
            self._policies_said = tending.policies
            self._policies = read_policies(tending.policies, log.error)
        self._storable = Storable(settings["server_encoding"])
        self._window.most = min(self._own_concurrency or settings["concurrency"], _file_slots())
        hosts = host_table(tending.hosts, self._directory)
        rules = (tending.egress, limits, hosts)
        if rules == self._rules:
            return
        self._rules = rules
        self._masks = masks_of(hosts)
        guard = Guard(EgressRules.from_json(tending.egress))
        if self._exchange is None:
            self._exchange = Exchange(guard, limits, hosts, concurrency=self._window.most)
        else:
            self._exchange.configure(guard, limits, hosts)

    def _is_idle(self) -> bool:
        looks = self._look or self._until is not None or self._quarantine.is_on
        looks = looks and self._mode != "off"
        return not (looks or self._flights) and self._recorder.is_empty

    def _sleep(self, until: float) -> None:
        """Until that time, or until something comes."""
        if len(self._recorder):
            ready = self._recorder.first + self._linger
            until = min(until, max(ready, self._recording.retry_at))
        until = min(until, self._recorder.held_until)
        if self._claiming.retry_at > time.monotonic():
            until = min(until, self._claiming.retry_at)
        elif self._quarantine.is_on and self._mode != "off":
            until = min(until, self._quarantine.next_change(self._begins()))
        elif self._look and len(self._flights) < self._window.most:
            # Only the window holds them back: it may grow while nothing happens.
            until = min(until, time.monotonic() + _WINDOW_INTERVAL)
        timeout = until - time.monotonic()
        if timeout > 0 and not self._signals:
            self._event.wait(timeout)

    # ---- the end

    def _finish(self) -> None:
        """Claim no more; wait for what is in flight, and record it; give back the rest.

        For as long as the longest deadline in flight allows, and at most the grace; what has ended
        is recorded within the grace also where the database is out of reach for a while.
        """
        now = time.monotonic()
        at_most = now + self._grace
        longest = max((flight.deadline for flight in self._flights.values()), default=now)
        deadline = min(longest + _RECORDING, at_most)
        at_most = min(at_most, max(deadline, now + _RECONNECTING))
        later: set[str] = set()
        while self._flights or not self._recorder.is_empty:
            self._event.clear()
            signals, self._signals = self._signals, set()
            later |= signals
            if "interrupt" in signals:
                self._outbox.check_interrupts()
            now = time.monotonic()
            if now >= (deadline if self._flights else at_most):
                break
            try:
                # What is cancelled now is not waited for. Nothing is claimed, whatever there is.
                self._tend_if_due(signals)
                self._look, self._quarantine = False, Quarantine()
                if self._step(claim=False):
                    continue
            except OutboxUnknown:
                self._drop(set(self._holding()))
                break
            except OutboxLost as error:
                self._connect(error, until=at_most)
                continue
            self._sleep(min(deadline if self._flights else at_most, self._next_look))
        # A stop that came during a restart is still one.
        self._signals |= later - {"interrupt"}
        self._give_back()

    def _abandon(self) -> None:
        """Whatever ended the loop: record what has ended, give back what has not."""
        with contextlib.suppress(OutboxError):
            for _ in range(2):  # what is held up is put aside the second time
                self._recorder.look(float("inf"))
                while len(self._recorder) and not self._recording.failing:
                    self._turn(None)
        self._give_back()

    def _give_back(self) -> None:
        flights = list(self._flights.values())
        if flights:
            log.warning("giving back %d requests that were in flight", len(flights))
            self._cut_off += len(flights)
        with contextlib.suppress(OutboxError):
            self._give_up(flights, "The worker stopped while it was in flight.")

    def _give_up(self, flights: Sequence[_Flight], reason: str) -> None:
        """Stop requests, and give them back.

        Until the database has heard that their attempt was begun they are this worker's: it must
        not take them for requests that were never seen.
        """
        for flight in flights:
            self._land(flight)
            self._given_up.append((flight.claim, reason))
        self._return_claims()

    def _return_claims(self) -> None:
        while self._given_up:
            reason = self._given_up[0][1]
            claims = [claim for claim, why in self._given_up if why == reason]
            self._outbox.release(claims, reason)
            self._given_up = [(claim, why) for claim, why in self._given_up if why != reason]


def _file_slots() -> int:
    """How many requests the limit of open files leaves room for."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(1, soft - _OTHER_FILES)


def raise_file_limit() -> None:
    """Raise this process's soft limit of open files to the hard one."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
