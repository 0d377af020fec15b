"""The outbox: what a worker needs of the database, and nothing more.

Two adapters have this one interface: ``spi`` for a worker that is a backend, ``libpq`` for a worker
that is a process. Both only call a handful of the extension's functions. No Python code knows the
tables: these functions do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

# The settings that a worker's session needs, whatever its database or its role has set: a worker
# writes, and sees what others have committed.
SESSION_SETTINGS = {
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    "lock_timeout": "0",
    "transaction_timeout": "0",
}
# The message of libpq would quote the string, and a password in it.
NO_DSN = (
    "--dsn is no connection string of libpq, such as "
    "'host=db.example dbname=app' or postgresql://db.example/app"
)


class OutboxError(Exception):
    """The outbox could not be used."""


class OutboxRefused(OutboxError):
    """The database refuses this worker, and trying again does not help."""


class OutboxLost(OutboxError):
    """The connection to the database broke: nobody knows whether it did what it was asked."""


class OutboxUnregistered(OutboxError):
    """The extension is absent, or does not know this worker: the worker must register."""


class OutboxFailed(OutboxError):
    """The database answered with an error, and did nothing of what it was asked.

    brief: the cause may be gone in a moment, such as a lock that another session holds.
    """

    def __init__(self, message: str, *, brief: bool = False) -> None:
        super().__init__(message)
        self.brief = brief


# What cures an error: a sentence for the administrator, by SQLSTATE or its first characters. The
# longest match counts.
_REMEDIES = {
    "53": "The server lacks a resource. Nothing is lost: what has ended is recorded when there is"
    " enough again",
    "53100": "The disk of the database server is full. Nothing is lost: what has ended is recorded"
    " when there is room again",
    "53200": "The database server is out of memory. Nothing is lost; a lower batch_size needs less:"
    " select net.configure('batch_size', '50')",
    "42501": "Has the role lost a right? As the owner of the extension:"
    " select net.grant_worker('NAME_OF_THE_ROLE')",
    "55P03": "Another session holds a lock. Which one: select pid, pg_blocking_pids(pid), query"
    " from pg_stat_activity where wait_event_type = 'Lock' or state = 'idle in transaction'",
    "57014": "Something has cancelled the worker's statement: a statement_timeout, or"
    " pg_cancel_backend()",
    "25006": "The server accepts no changes: is it a standby, or is default_transaction_read_only"
    " on?",
    "58": "The database server's file system fails: see the server's log",
    "XX": "The database server found a fault in itself: see the server's log",
}
# The server ends the session with these: shutdown, crash, timeouts of sessions.
_ENDS_SESSION = ("08006", "08P01", "57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04")
# The errors of a statement where the extension was dropped, or is being dropped: no such schema,
# function, relation or type; and an internal error for an object that went between its look-up and
# its use.
_MAY_BE_ABSENT = ("3F000", "42883", "42P01", "42704", "XX000")
# Their cause may be gone in a moment: locks, deadlocks, and an extension that was created again in
# between.
_BRIEF = ("55P03", "40", *_MAY_BE_ABSENT)
# The error of pgnet.require_worker for a worker that is not registered, or not any more.
_UNREGISTERED = "08003"


def ends_session(sqlstate: str) -> bool:
    """Whether the server ends the session with this error."""
    return sqlstate.startswith(_ENDS_SESSION)


def translate_error(
    sqlstate: str, message: str, hint: str | None, is_absent: Callable[[], bool]
) -> OutboxError:
    """Translate an error of the server for a worker whose connection is well.

    is_absent: asks whether the extension is missing; called only where the error may mean that.
    """
    if sqlstate == _UNREGISTERED:
        return OutboxUnregistered(message)
    if sqlstate.startswith(_MAY_BE_ABSENT) and is_absent():
        return OutboxUnregistered(message)
    remedy = max((code for code in _REMEDIES if sqlstate.startswith(code)), key=len, default=None)
    sentences = (message, hint if remedy is None else _REMEDIES[remedy])
    return OutboxFailed(
        ". ".join(part.rstrip(".") for part in sentences if part),
        brief=sqlstate.startswith(_BRIEF),
    )


@dataclass(frozen=True, slots=True)
class Flow:
    """What limits, probes and times say of a claim. The names are keys of the database's JSON.

    limited: the host has a limit. When the request has ended, another one may be claimed.
    send_within: seconds since the claim within which the request is handed to the wire; else it is
    given back. None: the host has no rate.
    probe: the attempt finds out whether a broken host works again.
    expires_in: seconds after which the request is not sent any more; None: it does not expire.
    unsent: why the request is not sent at all, and unsent_state the state that it ends in; None: it
    is sent.
    """

    limited: bool = False
    send_within: float | None = None
    probe: bool = False
    expires_in: float | None = None
    unsent: str | None = None
    unsent_state: str = "failed"


NO_FLOW = Flow()


class Claim(NamedTuple):
    """A request that this worker has claimed. A tuple is made in a third of the time.

    token: fences the recording of the outcome.
    attempt: counts from 1. lost: how many of the attempts before were lost with their workers.
    headers, options: JSON objects as text, or None.
    timeout_milliseconds: the total time of the attempt.
    revision: of the settings, egress rules, hosts and retry policies at the claim.
    age: seconds since its first attempt began.
    idempotency_key: the one that the caller asked for; or, for a method that is not idempotent, one
    that a policy may need that sends the request twice.
    role: the oid of the role that made the request.
    flow: what limits, probes and times say of the request.
    fault: why the row cannot be a request, None where it may be one. With a fault, what would be
    sent is left out.
    """

    id: int
    token: str
    attempt: int
    lost: int
    method: str
    url: str
    headers: str | None
    body: bytes | None
    timeout_milliseconds: int
    options: str | None
    host: str
    revision: int
    age: float
    idempotency_key: str | None
    role: int = 0
    fault: str | None = None
    flow: Flow = NO_FLOW


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret that a claimed request refers to.

    value: None where workers hold it. url_prefix: what it is bound to. fault: why the request may
    not use it, None where it may.
    """

    name: str
    value: str | None = field(repr=False)
    url_prefix: str | None
    fault: str | None


def read_secrets(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[int, str], Secret]:
    """The rows of pgnet.claimed_secrets as secrets, by the id of the claim and the name."""
    return {
        (row["id"], row["name"]): Secret(row["name"], row["value"], row["url_prefix"], row["fault"])
        for row in rows
    }


@dataclass(frozen=True, slots=True)
class Stub:
    """An answer that the database has for a request, in place of the network.

    status_code: None for no answer. fields: headers in their order, repeats kept. delay: seconds.
    """

    status_code: int | None
    fields: Sequence[tuple[str, str]]
    body: bytes
    delay: float


def read_stubs(rows: Iterable[Mapping[str, Any]]) -> dict[int, Stub]:
    """The rows of pgnet.take_stubs as stubs, by the id of the claim."""
    return {
        row["id"]: Stub(
            row["status_code"],
            [(name, value) for name, value in json.loads(row["fields"])],
            row["body"] or b"",
            row["delay"],
        )
        for row in rows
    }


class Outcome(NamedTuple):
    """How an attempt ended, to be recorded under the token of its claim.

    The names are keys of the JSON that pgnet.record_outcomes takes.

    state: the state of the request from now on. With "retrying" it is to be attempted again.
    content: the body as text. text_base64: the same text in base64, where that is shorter.
    content_base64: a body that is not text.
    headers: the answer's headers as an object. header_list: the same in their order.
    final_url: where redirects led to, None where there were none.
    name_ms and the others: times in milliseconds.
    retry_in: seconds until the next attempt, with the state "retrying" only.
    put_aside: the database may keep the outcome where it cannot record it now. It is set for an
    outcome that was deferred before, or that is large.
    unreadable: True where the claim had a fault.
    uncounted: True for a probe that failed, with the state "retrying" only.
    notify: True where the setting notify_outcomes is on.
    """

    id: int
    token: str
    state: str
    status_code: int | None = None
    content_type: str | None = None
    headers: dict[str, str] | None = None
    content: str | None = None
    text_base64: str | None = None
    content_base64: str | None = None
    timed_out: bool = False
    error_msg: str | None = None
    header_list: Sequence[tuple[str, str]] | None = None
    final_url: str | None = None
    redirects: int | None = None
    http_version: str | None = None
    address: str | None = None
    name_ms: float | None = None
    connect_ms: float | None = None
    tls_ms: float | None = None
    first_byte_ms: float | None = None
    total_ms: float | None = None
    retry_in: float | None = None
    put_aside: bool | None = None
    unreadable: bool | None = None
    uncounted: bool | None = None
    notify: bool | None = None

    @property
    def size(self) -> int:
        """About how many bytes its recording takes."""
        texts = (self.content, self.text_base64, self.content_base64)
        return sum(len(text) for text in texts if text is not None)

    @property
    def without_content(self) -> Outcome:
        """The same without the body, and with a message that says so."""
        message = "" if self.error_msg is None else f"{self.error_msg}. "
        return self._replace(
            content=None,
            text_base64=None,
            content_base64=None,
            error_msg=f"{message}The body could not be kept: there is no memory for it.",
        )

    @property
    def without_answer(self) -> Outcome:
        """The same without headers and body of the answer."""
        return self._replace(
            content_type=None,
            headers=None,
            header_list=None,
            content=None,
            text_base64=None,
            content_base64=None,
        )


# Not only ASCII: escapes would make six times as many bytes of some texts.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def encode_outcomes(outcomes: Iterable[Outcome]) -> str:
    """Return the JSON array that pgnet.record_outcomes takes. A field that is None is left out."""
    return _encode(
        [
            {
                name: value
                for name, value in zip(Outcome._fields, outcome, strict=True)
                if value is not None
            }
            for outcome in outcomes
        ]
    )


class Place(NamedTuple):
    """A place in the turns of hosts, and of the roles at each host; role is an oid."""

    host: str = ""
    role: int = 0


@dataclass(frozen=True, slots=True)
class Demand:
    """How many requests a worker can take now, and behind which place its claim begins.

    slots: how many requests at most.
    host_quota: of these for one host, where requests for several hosts wait.
    single_host_quota: the same, where requests for only one host wait.
    full_hosts: hosts whose requests are passed over.
    max_bytes: of requests.
    after: the turns of hosts go on behind this place. until: they end there; None for once around.
    quarantined_only: one request that is in quarantine, and no other.
    rooms: how many requests at most for some places, by "ROLE_OID HOST"; None: as for others.
    """

    slots: int
    host_quota: int
    single_host_quota: int
    full_hosts: Sequence[str]
    max_bytes: int
    after: Place
    until: Place | None = None
    quarantined_only: bool = False
    rooms: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class WorkerState:
    """The database's answer to a heartbeat. The names are keys of its JSON.

    settings: by name.
    egress: the rules as the guard reads them.
    hosts: settings of hosts, by pattern.
    policies: of retrying, by name.
    revision: of these four.
    generation: a worker that began under another one is to restart.
    mode: on, record or off.
    quarantined: whether a request in quarantine waits for a worker.
    dropped: the requests that the worker owns no longer, of those that it gave: they were
    cancelled, forgotten or deleted, or freed for others.
    callbacks: whether there are any to look for.
    next_poll: seconds until the next heartbeat.
    faults: the duties of the heartbeat that fail, and why, by the name of the duty.
    stubs: whether the database has stubs, which answer requests in place of the network.
    """

    settings: dict[str, Any]
    egress: dict[str, Any]
    hosts: dict[str, dict[str, Any]]
    policies: dict[str, dict[str, Any]]
    revision: int
    generation: int
    mode: str
    quarantined: bool
    dropped: Sequence[int]
    next_poll: float
    faults: Mapping[str, str] = field(default_factory=dict)
    callbacks: bool = False
    stubs: bool = False


@dataclass(slots=True)
class Claimed:
    """The result of one transaction that records and claims.

    stopped_at: the place where the claim stopped before it had gone through all hosts; None where
    it has gone through all.
    look_in: seconds after which something falls due; None where nothing waits for a time.
    expires_in: seconds after which a request expires, for a heartbeat to end it; None where nothing
    expires, or the claim did not look.
    deferred: ids of outcomes that were not recorded, since their rows are locked.
    """

    claims: list[Claim] = field(default_factory=list)
    stopped_at: Place | None = None
    look_in: float | None = None
    expires_in: float | None = None
    deferred: list[int] = field(default_factory=list)

    def add(self, row: dict[str, Any]) -> None:
        """Add a row of pgnet.claim_requests."""
        if row["id"] is not None:
            flow = row["flow"]
            row["flow"] = NO_FLOW if flow is None else Flow(**json.loads(flow))
            self.claims.append(Claim(**row))
        elif "flow" in row:
            # The last row has no request.
            if row["host"] is not None:
                self.stopped_at = Place(row["host"], row["role"])
            flow = json.loads(row["flow"] or "{}")
            self.look_in, self.expires_in = flow.get("look_in"), flow.get("expires_in")


@dataclass(frozen=True, slots=True)
class HostEvent:
    """What has happened to a host, for the log. The names are keys of the database's JSON.

    event: alert, opened, closed, slowed. percent: of an alert. role: an oid.
    """

    host: str
    role: int
    role_name: str
    event: str
    detail: str
    percent: int | None = None


@dataclass(frozen=True, slots=True)
class Reported:
    """The database's answer to a report of attempts.

    deferred: the places that are to be reported again, since another worker has locked them.
    """

    deferred: Sequence[Place]
    events: Sequence[HostEvent]

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Reported:
        """Read what pgnet.report_attempts gives."""
        return cls(
            [Place(host, role) for host, role in given["deferred"]],
            [HostEvent(**event) for event in given["events"]],
        )


@dataclass(frozen=True, slots=True)
class DueCallbacks:
    """Whose callbacks are due. Roles are oids.

    roles: in their turns. suspects: those of them whose callbacks have run out of their time of
    late. look_in: seconds until more are due, None where no more wait. runners: in how many
    sessions at most a worker process runs callbacks.
    """

    roles: Sequence[int]
    suspects: Sequence[int]
    look_in: float | None
    runners: int


class Performed(NamedTuple):
    """What follows a callback: the token of the next one, which is begun; was it cancelled?"""

    next_token: str | None
    cancelled: bool


class Runner(Protocol):
    """A session that runs callbacks. Each call is a transaction of its own.

    Every method may raise OutboxLost and OutboxFailed; then a callback that was begun is free again
    when this session looks the next time, or is gone.
    """

    def look(self) -> DueCallbacks:
        """See whose callbacks are due."""
        ...

    def take(self, role: int) -> str | None:
        """Begin the next callback of a role; gives its token, None where no callback is due."""
        ...

    def perform(self, token: str, *, go_on: bool) -> Performed:
        """Run a callback that was begun. go_on: begin the next one of its role."""
        ...

    def cancel(self) -> None:
        """End what runs now."""
        ...

    def close(self) -> None:
        """End the session."""
        ...


class Outbox(Protocol):
    """The interface. Each call is a transaction of its own, which is over when it returns.

    Every method may raise OutboxLost and OutboxUnregistered (to be tried again after ``connect``),
    OutboxFailed (to be tried again later), and OutboxRefused.
    """

    # Why commits cannot wake this worker, so that it polls each second; None where they can.
    wake_up_fault: str | None

    def connect(self, owned: Sequence[int]) -> bool:
        """Register as a worker, or again as the same one.

        owned: the ids of the requests that the worker takes to be its own. Gives whether the
        database knows it as the same worker, so that they are.
        """

    def listen(self, on_signals: Callable[[set[str]], None]) -> None:
        """Call ``on_signals`` in the hub's thread with the names of signals as they come."""

    def stop_listening(self) -> None:
        """Give the wake-up slot back."""

    def wake_next(self) -> None:
        """Wake another worker, since there is more than this one takes."""

    def record_and_claim(self, outcomes: Sequence[Outcome], demand: Demand | None) -> Claimed:
        """Record outcomes and, where there is a demand, claim: in one transaction."""

    def secrets(self, wanted: Sequence[tuple[Claim, str]]) -> dict[tuple[int, str], Secret]:
        """Secrets, by the id of the claim that names them and their name."""

    def stubs(self, claims: Sequence[Claim]) -> dict[int, Stub]:
        """The stubs that answer claims in place of the network, by the id of the claim.

        Each use of a stub counts from then on.
        """

    def heartbeat(self, owned: Sequence[int]) -> WorkerState:
        """Say what this worker owns, do the duties that are due, and read the configuration."""

    def report_work(self, report: str) -> float:
        """Hand in statistics, and what requests in flight wait for, as pgnet.report_work has it.

        Gives the database's clock, in seconds since the epoch.
        """

    def report(self, reports: Sequence[Mapping[str, Any]]) -> Reported:
        """Report how attempts have ended: entries of pgnet.report_attempts."""

    def release(self, claims: Sequence[Claim], reason: str | None) -> None:
        """Give claims back. reason: what became of the attempt, None where it never began."""

    def check_interrupts(self) -> None:
        """Have the server act upon a cancel or a stop that has come; raises the server's error."""

    def cancel_statement(self) -> None:
        """Cancel the statement that runs, if one does: the worker is to stop, and waits for it."""

    def close(self, cut_off: int) -> None:
        """Deregister and disconnect. Does not raise where the connection is gone.

        cut_off: how many requests were given back that were in flight.
        """
