"""The worker's loop: claim, perform, record, for both forms of the worker.

How it works
------------

One greenlet, the one that calls ``run``, is the loop, and it alone uses the outbox. A request is
not a greenlet: libcurl performs requests in callbacks of gevent's hub. The hub runs whenever the
loop sleeps, and in a worker that is a process also while the loop waits for the database. In a
backend the database is SPI, below which nothing may switch: there each statement stops all else.

The loop goes round. Each round is:

1. Take the signals that have come. A stop ends the loop, an interrupt goes to the server.
2. The heartbeat, if it is due: tell the database what this worker owns, drop what is not its own
   any more, read the configuration.
3. Report what was learnt of hosts, if it is due: a second after the last time, or at once.
4. Record what has ended, and claim what there is room for: either, or both, in one transaction.
   The requests that it claimed are sent after its commit. Then comes the next round.
5. Where there was nothing to record or to claim: sleep until a signal comes, a request ends, or one
   of these is due.

``_claim_wanted`` says that requests may be ready that no claim has looked for. It is cleared before
each claim and never after one. A wake-up that comes during a claim sets it again, at the latest at
the beginning of the next round: no wake-up is lost. A worker without room for more wakes another.

Errors of the outbox: OutboxFailed means that the connection is well and nothing was done. What has
failed (the heartbeat, claiming, recording) is tried again after a pause of its own, and the others
go on. OutboxLost and OutboxUnregistered end the round: the worker registers again. If the database
then knows it as the same worker, everything that is in flight goes on, and is recorded by the
tokens that it has. Otherwise the database has freed what this worker had, and the worker drops it.
OutboxRefused, a cancel, and any other error end ``run``.

At the end the worker claims nothing more, and waits for what is in flight: until the last deadline,
or until the grace is over. What is in flight then is stopped and given back, as an attempt that may
have reached a server. A restart, which ``net.worker_restart`` asks for, is such an end, with a
beginning after it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence, Set

import gevent

from pgnet.outbox import (
    Claim,
    Claimed,
    Demand,
    Outbox,
    OutboxError,
    OutboxFailed,
    OutboxLost,
    OutboxUnregistered,
    Outcome,
    Secret,
    Stub,
)
from pgnet.request.row import Row
from pgnet.secret.directory import Directory
from pgnet.wire.answer import Answer
from pgnet.worker.alarm import Alarm
from pgnet.worker.assemble import read
from pgnet.worker.backoff import Backoff
from pgnet.worker.callbacks import Callbacks, NoCallbacks
from pgnet.worker.configuration import Configuration
from pgnet.worker.flights import Flight, Flights
from pgnet.worker.heartbeat import Heartbeat
from pgnet.worker.hosts import Hosts
from pgnet.worker.outcome import NotSent
from pgnet.worker.performer import Performer
from pgnet.worker.quarantine import Quarantine
from pgnet.worker.recorder import Recorder
from pgnet.worker.registration import register
from pgnet.worker.report import Report
from pgnet.worker.signals import Signals
from pgnet.worker.turns import Turns
from pgnet.worker.window import Window

log = logging.getLogger("pgnet.worker")

# Bytes of response bodies that may wait to be recorded while more requests are claimed.
_UNRECORDED_BYTES = 64 << 20
# Where commits cannot wake the worker, it polls this often, in seconds.
_POLL_INTERVAL = 1.0
# A worker commits at least this often, in seconds, so that its transaction never looks old.
_LONGEST_SLEEP = 60.0
# How often the window is judged while requests wait for it, in seconds.
_WINDOW_INTERVAL = 0.01
# A worker that has no room for more wakes another one this often, in seconds.
_WAKE_NEXT_INTERVAL = 0.5
# A worker that stops takes so many seconds to record what ended at the last moment, and waits at
# least so many for a database that is out of reach.
_RECORDING, _RECONNECTING = 0.5, 5.0
# Seconds beyond its grace after which a worker that stops has its statement cancelled.
_UNTIL_CANCEL = 5.0
# The heartbeat records what was put aside, and reports what was refused. So it follows a recording
# within so many seconds: where an outcome may have been put aside, and where none was.
_SOON, _LATER = 0.5, 5.0
# What expires is ended by the heartbeat, which follows within so many seconds.
_EXPIRING = 1.0
# A worker that ends when nothing is due waits for what falls due within so many seconds: the next
# request by the rate of a host, the first retries.
_WORTH_WAITING = 1.0
# A request that is in flight so many seconds after its deadline is a bug: it is given back.
_OVERDUE = 60.0


class Worker:
    """Serves one database until it is stopped, or until nothing is due.

    outbox: the database. max_runtime: seconds, None for no limit. until_idle: end when nothing is
    due. grace: seconds that requests in flight have at most to end when it stops, None for the
    setting. concurrency: requests in flight at once, None for the setting. directory: the secrets
    that this worker holds itself. callbacks: what runs callbacks beside it, None where others do.
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
        callbacks: Callbacks | None = None,
    ) -> None:
        self._outbox = outbox
        self._callbacks = callbacks or NoCallbacks()
        self._until_idle = until_idle
        self._ends_at = math.inf if max_runtime is None else time.monotonic() + max_runtime
        self._configuration = Configuration(directory, concurrency, grace)
        self._hosts = Hosts()
        self._flights = Flights(Window(1), self._hosts.adaptive)
        self._performer = Performer(self._ended)
        self._recorder = Recorder(self._outcome)
        self._report = Report()
        self._quarantine = Quarantine()
        self._turns = Turns()
        self._heartbeat = Heartbeat()
        self._claiming = Backoff("claiming")
        # When requests that this worker has put back fall due.
        self._alarm = Alarm()
        # The claims to give back, and why; None where no attempt was begun.
        self._given_up: list[tuple[Claim, str | None]] = []
        # How many were given back that were in flight.
        self._cut_off = 0
        self._signals = Signals()
        self._claim_wanted = True
        self._wake_next_at = 0.0
        self._is_over = False

    def run(self) -> None:
        """Serve. Raises OutboxRefused, and what a cancel raises."""
        window = self._flights.window
        loop = gevent.get_hub().loop
        watchers = [loop.prepare(), loop.check()]
        watchers[0].start(window.idle_begins)
        watchers[1].start(window.idle_ends)
        self._outbox.listen(self._signals.add)
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
                self._callbacks.stop()
                self._outbox.close(self._cut_off)
                self._is_over = True

    def stop(self) -> None:
        """Have ``run`` end: claim no more, finish within the grace, give back the rest."""
        self._signals.add({"stop"})
        gevent.spawn(self._cancel_late_statements)

    def _cancel_late_statements(self) -> None:
        """Have no statement outlast the grace, whatever it waits for."""
        gevent.sleep(self._configuration.grace)
        while not self._is_over:
            gevent.sleep(_UNTIL_CANCEL)
            self._outbox.cancel_statement()

    def _reset(self) -> None:
        """Prepare for a new beginning: with other connections, and under another generation."""
        self._performer.close()
        self._configuration = self._configuration.for_a_new_worker()
        self._claim_wanted = True
        self._heartbeat.due_at = 0.0

    # ---- the loop

    def _serve(self) -> str:
        """Go round until there is a reason to end, and give it."""
        while True:
            signals = self._signals.take()
            if "interrupt" in signals:
                self._outbox.check_interrupts()
            if "stop" in signals:
                return "stop"
            if signals & {"wake", "prepared"}:
                self._claim_wanted = True
                # Where there is no room here, the wake-up is for another worker, at once.
                self._wake_next_at = 0.0
            if signals & {"callback", "prepared"}:
                self._callbacks.look()
            now = time.monotonic()
            if now >= self._ends_at:
                return "ends"
            if self._alarm.rings(now):
                self._claim_wanted = True
            try:
                self._beat_if_due(signals)
                if self._configuration.must_restart:
                    return "restart"
                self._report_if_due()
                if now >= self._report.due_at:
                    self._send_report()
                if self._record_and_claim_if_due():
                    continue
            except (OutboxLost, OutboxUnregistered) as error:
                self._connect(error)
                continue
            if self._until_idle and self._is_idle():
                # A callback may have made requests, or others may have waited for its end.
                self._claim_wanted = self._callbacks.run_due(self._ends_at)
                if self._claim_wanted:
                    continue
                return "idle"
            self._sleep(
                min(self._heartbeat.due_at, self._report.due_at, self._alarm.next, self._ends_at)
            )

    def _is_idle(self) -> bool:
        if self._flights or not self._recorder.is_empty:
            return False
        searches = self._claim_wanted or self._turns.is_unfinished or self._quarantine.is_on
        soon = self._alarm.next < time.monotonic() + _WORTH_WAITING
        return not (searches or soon) or self._configuration.mode == "off"

    @property
    def _may_claim(self) -> bool:
        """Whether the worker may claim at all: not before its first heartbeat."""
        return self._configuration.mode != "off" and self._performer.is_open

    def _sleep(self, until: float) -> None:
        """Until that time, or until there is something to do."""
        now = time.monotonic()
        until = min(until, self._recorder.next_change, self._hosts.due_at)
        if not self._may_claim:
            pass
        elif self._claiming.retry_at > now:
            until = min(until, self._claiming.retry_at)
        elif self._quarantine.is_on:
            until = min(until, self._quarantine.next_change(self._flights.begins))
        elif self._claim_wanted and len(self._flights) < self._flights.window.most:
            # Only the window keeps requests from being claimed: it may grow while nothing happens.
            until = min(until, now + _WINDOW_INTERVAL)
        self._signals.sleep(until - now)

    def _connect(self, reason: OutboxError | None = None, give_up_at: float = math.inf) -> None:
        """Register with the database. reason: why again. give_up_at: see ``register``."""
        same = register(
            self._outbox, self._owned, self._signals, reason=reason, give_up_at=give_up_at
        )
        if same is None:
            return
        if not same:
            # The claims of this worker are no longer its own: they were freed, or are gone with the
            # extension.
            self._drop(set(self._owned()))
            self._report = Report()
            self._configuration = self._configuration.for_a_new_worker()
            for backoff in (self._heartbeat.backoff, self._claiming, self._recorder.backoff):
                backoff.succeeded()
        self._claim_wanted = True
        self._heartbeat.due_at = 0.0

    def _owned(self) -> list[int]:
        """The requests that this worker has claimed, and has neither recorded nor given back."""
        return [*self._flights.ids, *self._recorder.ids, *(claim.id for claim, _ in self._given_up)]

    def _drop(self, ids: Set[int]) -> None:
        """Stop requests that are no longer this worker's: slots, connections and answers go."""
        if not ids:
            return
        for flight in [flight for flight in self._flights if flight.claim.id in ids]:
            self._stop(flight)
        self._recorder.drop(ids)
        self._given_up = [entry for entry in self._given_up if entry[0].id not in ids]
        self._claim_wanted = True

    # ---- the heartbeat

    def _beat_if_due(self, signals: Set[str]) -> None:
        """The heartbeat, if it is due and is not to wait after a failure."""
        heartbeat = self._heartbeat
        if signals & {"reload", "prepared"}:
            heartbeat.asked_for()
        now = time.monotonic()
        if now < heartbeat.due_at:
            return
        if now < heartbeat.backoff.retry_at:
            heartbeat.due_at = heartbeat.backoff.retry_at
            return
        try:
            self._return_claims()
            self._beat()
        except OutboxFailed as error:
            heartbeat.backoff.failed(error)
            heartbeat.due_at = heartbeat.backoff.retry_at
        else:
            heartbeat.backoff.succeeded()

    def _beat(self, claims: Sequence[Claim] = ()) -> Set[int]:
        """Have a heartbeat; gives the ids of requests that are no longer this worker's.

        claims: what was claimed and is not in flight yet.
        """
        began = time.monotonic()
        overdue = [flight for flight in self._flights if began > flight.deadline + _OVERDUE]
        for flight in overdue:
            log.error("request %s has not ended, long after its deadline", flight.claim.id)
        self._give_up(overdue, "The worker lost track of the request.")
        state = self._outbox.heartbeat(self._owned() + [claim.id for claim in claims])
        dropped = frozenset(state.dropped)
        in_the_way = any(
            f.claim.flow.limited or f.is_ordered for f in self._flights if f.claim.id in dropped
        )
        self._drop(dropped)
        self._configuration = self._configuration.updated(state)
        self._flights.window.most = self._configuration.concurrency
        self._performer.configure(self._configuration)
        self._hosts.configure(self._configuration.hosts, self._flights.host_limit)
        self._heartbeat.log_faults(state.faults)
        if state.quarantined:
            self._quarantine.wanted(began)
        if state.callbacks:
            self._callbacks.look()
        polls = self._outbox.wake_up_fault is not None
        next_in = min(state.next_poll, _POLL_INTERVAL if polls else _LONGEST_SLEEP)
        if in_the_way:
            # Their hosts have room again, and the next ones of their keys may go, when this worker
            # says that it does not own them any more.
            next_in = 0.0
        self._heartbeat.done(began, time.monotonic(), next_in)
        self._claim_wanted = True
        return dropped

    def _send_report(self) -> None:
        """Tell the database of this worker's work, where there is something to tell."""
        report = self._report.take(self._flights, self._hosts.adaptive.full())
        if report is None:
            return
        try:
            self._report.reported(self._outbox.report_work(report))
        except OutboxFailed as error:
            self._report.failed(error)

    # ---- recording and claiming

    def _report_if_due(self) -> None:
        """Report how attempts have ended, before the next claim asks what is known of hosts."""
        if time.monotonic() >= self._hosts.due_at and self._hosts.report(self._outbox):
            self._claim_wanted = True

    def _record_and_claim_if_due(self, *, may_claim: bool = True) -> bool:
        """Record and claim in one transaction, if there is reason for either; whether there was."""
        now = time.monotonic()
        recorder = self._recorder
        recorder.retry_deferred(now)
        if self._quarantine.phase_ended(now):
            self._claim_wanted = True
        free = self._flights.room(now)
        claims = may_claim and self._claims_now(now, free)
        records = len(recorder) > 0 and now >= recorder.backoff.retry_at
        if records:
            if self._flights and recorder.may_wait(now, self._configuration.batch_size):
                return False
        elif not claims:
            return False
        self._record_and_claim(self._demand(free) if claims else None, record=records)
        return True

    def _claims_now(self, now: float, free: int) -> bool:
        """Whether to claim, with room for so many. What this worker cannot take, another may."""
        if not self._may_claim or now < self._claiming.retry_at:
            return False
        searches = self._claim_wanted or self._turns.is_unfinished
        claims = searches and free > 0 and self._recorder.size < _UNRECORDED_BYTES
        if self._claim_wanted and not claims:
            self._wake_next()
        if self._quarantine.is_on:
            return self._quarantine.may_claim(now, self._flights.begins)
        return claims

    def _demand(self, free: int) -> Demand:
        # Where there is a new reason to claim, the claim goes through all hosts.
        until = None if self._claim_wanted else self._turns.until
        return self._flights.demand(
            free,
            self._configuration.batch_size,
            self._turns.after,
            until,
            quarantined_only=self._quarantine.is_on,
        )

    def _record_and_claim(self, demand: Demand | None, *, record: bool = True) -> None:
        """One transaction with the database, and what follows from its answer."""
        batch = self._recorder.batch(self._configuration.batch_size) if record else []
        if demand is not None and not demand.quarantined_only:
            self._claim_wanted = False
        began = time.monotonic()
        try:
            claimed = self._outbox.record_and_claim(batch, demand)
        except MemoryError:
            self._claim_wanted = True
            self._recorder.lighten(batch)
            return
        except OutboxFailed as error:
            if demand is None:
                self._recorder.failed(batch, error)
            else:
                # Claiming may be what has failed: what has ended is recorded without it.
                self._claim_wanted = True
                self._claiming.failed(error, retry_differs=bool(batch))
            return
        now = time.monotonic()
        self._recorder.wait_as_long_as(now - began)
        if batch:
            self._recorded(batch, set(claimed.deferred), now)
        if demand is not None:
            self._claimed(demand, claimed, began)

    def _recorded(self, batch: Sequence[Outcome], deferred: Set[int], now: float) -> None:
        self._recorder.recorded(batch, deferred)
        if self._until_idle:
            # Others may have waited for these.
            self._claim_wanted = True
        put_aside = any(outcome.put_aside for outcome in batch)
        self._heartbeat.no_later_than(now + (_SOON if put_aside else _LATER))
        for outcome in batch:
            # Requests that are due after the next heartbeat are found by it.
            if outcome.retry_in is not None and now + outcome.retry_in < self._heartbeat.due_at:
                self._alarm.set(now + outcome.retry_in)

    def _claimed(self, demand: Demand, claimed: Claimed, began: float) -> None:
        self._claiming.succeeded()
        if claimed.look_in is not None:
            # What falls due after the next heartbeat is found by it.
            at = time.monotonic() + claimed.look_in
            waits = self._until_idle and claimed.look_in < _WORTH_WAITING
            if at < self._heartbeat.due_at or waits:
                self._alarm.set(at)
        if claimed.expires_in is not None:
            self._heartbeat.no_later_than(time.monotonic() + max(claimed.expires_in, _EXPIRING))
        begun = self._begin(claimed.claims, began)
        if begun:
            self._turns.served(begun[-1])
        if demand.quarantined_only:
            suspects = {claim.id for claim in begun if claim.id in self._flights.ids}
            self._quarantine.claimed(suspects, time.monotonic())
            self._claim_wanted = self._claim_wanted or not suspects
        elif self._turns.claimed(demand, claimed):
            self._claim_wanted = True
            self._wake_next()
        elif demand.full_hosts:
            self._wake_next()
        if self._hosts.adaptive.claims_again():
            self._claim_wanted = True

    def _wake_next(self) -> None:
        """Where there is no room here, wake another worker, if there is one."""
        now = time.monotonic()
        is_full = self._flights.room(now) <= 0 or self._flights.full_hosts()
        if is_full and now >= self._wake_next_at:
            self._wake_next_at = now + _WAKE_NEXT_INTERVAL
            self._outbox.wake_next()

    # ---- performing

    def _begin(self, claims: Sequence[Claim], claimed_at: float) -> Sequence[Claim]:
        """Send what was claimed, by the settings and with the secrets of this moment.

        claimed_at: when the claim began. Gives the claims that were begun, or are given back since
        their time to be sent is over: none where all of them are to be given back.
        """
        try:
            if any(claim.revision != self._configuration.revision for claim in claims):
                # The configuration was changed before these were committed: it is meant for them.
                dropped = self._beat(claims)
                claims = [claim for claim in claims if claim.id not in dropped]
            # A worker that is to restart does so first.
            if self._configuration.mode != "off" and not self._configuration.must_restart:
                rows = [(claim, read(claim)) for claim in claims]
                secrets = self._secrets(rows)
                stubs = self._stubs(rows)
                for claim, row in rows:
                    within = claim.flow.send_within
                    send_by = claimed_at + within if within is not None else None
                    if send_by is not None and time.monotonic() > send_by:
                        # Too late for its place in the rate of its host.
                        self._give_back_unsent(claim)
                        continue
                    former = self._flights.get(claim.id)
                    if former is not None:
                        # Past its deadline the claim was free again, and this worker has taken it.
                        self._stop(former)
                    flight = Flight(claim, time.monotonic(), send_by)
                    flight.is_ordered = "ordering_key" in row.options
                    if claim.flow.expires_in is not None:
                        flight.expires_at = claimed_at + claim.flow.expires_in
                    self._flights.add(flight)
                    self._report.begun(claim)
                    self._performer.begin(
                        flight, row, secrets.get(claim.id) or {}, stubs.get(claim.id)
                    )
                return claims
        except OutboxFailed as error:
            self._claiming.failed(error)
        self._given_up += [(claim, None) for claim in claims]
        # The heartbeat gives them back, and tries again where that fails.
        self._heartbeat.due_at = 0.0
        return ()

    def _give_back_unsent(self, claim: Claim) -> None:
        """Have the next heartbeat, which comes at once, give back a request that was not sent."""
        self._given_up.append((claim, None))
        self._heartbeat.due_at = 0.0

    def _secrets(self, rows: Iterable[tuple[Claim, Row]]) -> dict[int, dict[str, Secret]]:
        """The secrets that rows name, by the id of the claim and the name. Few rows name any."""
        wanted = [(claim, name) for claim, row in rows for name in row.secrets]
        found: dict[int, dict[str, Secret]] = {}
        if wanted:
            for (claim_id, name), secret in self._outbox.secrets(wanted).items():
                found.setdefault(claim_id, {})[name] = secret
        return found

    def _stubs(self, rows: Iterable[tuple[Claim, Row]]) -> Mapping[int, Stub]:
        """The stubs that answer requests in place of the network, by the id of the claim."""
        claims = [claim for claim, row in rows if row.fault is None]
        return self._outbox.stubs(claims) if claims and self._configuration.stubs else {}

    def _ended(self, flight: Flight, answer: Answer | NotSent) -> None:
        """Called by the performer: a request has its answer, or was not sent."""
        claim = flight.claim
        if self._flights.get(claim.id) is not flight:
            return
        if not flight.is_stubbed or claim.flow.probe:
            self._hosts.ended(flight, answer)
        self._stop(flight)
        error = answer.error if isinstance(answer, Answer) else None
        unsent = error is not None and not error.possibly_sent
        if unsent and self._flights.is_late(flight, time.monotonic()):
            self._give_back_unsent(claim)
            self._signals.end_sleep()
            return
        if error is not None and error.timed_out and error.kind == "timeout":
            error.explain(self._configuration.origin_of_timeout(claim.timeout_milliseconds))
        self._recorder.add(flight, answer)
        self._signals.end_sleep()

    def _outcome(self, flight: Flight, answer: Answer | NotSent) -> Outcome:
        """Called by the recorder, when it is about to record what has ended."""
        outcome = self._performer.outcome(flight, answer)
        self._report.ended(flight.claim, outcome)
        return outcome

    def _stop(self, flight: Flight) -> None:
        """A request is not in flight any more, whether it has ended or not."""
        has_room = self._flights.remove(flight)
        # The next one of its key can be claimed in the transaction that records this one.
        if has_room or flight.is_ordered or flight.claim.flow.limited:
            self._claim_wanted = True
        self._quarantine.in_flight.discard(flight.claim.id)
        # Taken away, not only cancelled: the handle knows the flight, and together they would keep
        # the answer.
        handle, flight.handle = flight.handle, None
        if handle is not None:
            handle.cancel()

    # ---- the end

    def _finish(self) -> None:
        """Claim no more; wait for what is in flight, and record it; give back the rest.

        For as long as the longest deadline in flight allows, and at most the grace; what has ended
        is recorded within the grace also where the database is out of reach for a while.
        """
        now = time.monotonic()
        at_most = now + self._configuration.grace
        longest = max((flight.deadline for flight in self._flights), default=now)
        deadline = min(longest + _RECORDING, at_most)
        at_most = min(at_most, max(deadline, now + _RECONNECTING))
        later: set[str] = set()
        while self._flights or not self._recorder.is_empty:
            signals = self._signals.take()
            later |= signals
            if "interrupt" in signals:
                self._outbox.check_interrupts()
            if time.monotonic() >= (deadline if self._flights else at_most):
                break
            try:
                # Requests that are cancelled now are not waited for. No request is claimed.
                self._beat_if_due(signals)
                self._report_if_due()
                self._claim_wanted, self._quarantine = False, Quarantine()
                if time.monotonic() >= self._report.due_at:
                    self._send_report()
                if self._record_and_claim_if_due(may_claim=False):
                    continue
            except OutboxUnregistered:
                self._drop(set(self._owned()))
                break
            except OutboxLost as error:
                self._connect(error, give_up_at=at_most)
                continue
            self._sleep(min(deadline if self._flights else at_most, self._heartbeat.due_at))
        # A stop that came during a restart is still one.
        self._signals.add(later - {"interrupt"})
        self._give_back()

    def _abandon(self) -> None:
        """Whatever ended the loop: record what has ended, give back what has not."""
        with contextlib.suppress(OutboxError):
            self._hosts.report_the_rest(self._outbox)
        with contextlib.suppress(OutboxError):
            for _ in range(2):  # what is deferred is put aside the second time
                self._recorder.retry_deferred(math.inf)
                while len(self._recorder) and not self._recorder.backoff.failing:
                    self._record_and_claim(None)
            self._send_report()
        self._give_back()

    def _give_back(self) -> None:
        flights = list(self._flights)
        if flights:
            log.warning("giving back %d requests that were in flight", len(flights))
            self._cut_off += len(flights)
        with contextlib.suppress(OutboxError):
            self._give_up(flights, "The worker stopped while it was in flight.")

    def _give_up(self, flights: Sequence[Flight], reason: str) -> None:
        """Stop requests, and give them back.

        Until the database has heard that their attempt was begun they are this worker's: it must
        not take them for requests that were never seen.
        """
        for flight in flights:
            self._stop(flight)
            self._given_up.append((flight.claim, reason))
        self._return_claims()

    def _return_claims(self) -> None:
        while self._given_up:
            reason = self._given_up[0][1]
            claims = [claim for claim, why in self._given_up if why == reason]
            self._outbox.release(claims, reason)
            self._given_up = [(claim, why) for claim, why in self._given_up if why != reason]
