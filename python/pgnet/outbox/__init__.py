"""The outbox: what a worker needs of the database, and nothing more.

Two adapters meet the one interface: ``spi`` for a worker that is a backend, ``libpq`` for one that
is a process. Both only call a handful of the extension's functions; which tables there are is known
to those alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Protocol

# What a worker's session needs, whatever its database or role has set: it writes, and sees what
# others have committed.
SESSION_SETTINGS = {
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    "lock_timeout": "0",
    "transaction_timeout": "0",
}
# libpq's own words would quote it, and a password with it.
NO_DSN = (
    "--dsn is no connection string of libpq, such as "
    "'host=db.example dbname=app' or postgresql://db.example/app"
)


class OutboxError(Exception):
    """The outbox could not be used."""


class OutboxRefused(OutboxError):
    """The database does not want this worker: trying again does not help."""


class OutboxLost(OutboxError):
    """The connection to the database broke: what was asked may have been done or not."""


class OutboxUnknown(OutboxError):
    """The extension is not there, or does not know this worker: it must register."""


class OutboxFailed(OutboxError):
    """The database answered with an error, and nothing of what was asked was done.

    brief: it may be over in a moment, such as a lock that another session holds.
    """

    def __init__(self, message: str, *, brief: bool = False) -> None:
        super().__init__(message)
        self.brief = brief


# What an administrator can do, by SQLSTATE or its class. The longer one counts.
_REMEDIES = {
    "53": "The server lacks a resource. Nothing is lost: what has ended is recorded when there is"
    " enough again",
    "53100": "The disk of the database server is full. Nothing is lost: what has ended is recorded"
    " when there is room again",
    "53200": "The database server is out of memory. Nothing is lost; a lower batch_size needs less:"
    " select net.configure('batch_size', '50')",
    "42501": "Has its right been taken away? As the owner of the extension:"
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
# The connection is over with these: shutdown, crash, timeouts that end a session.
_ENDS_SESSION = ("08006", "08P01", "57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04")
# What a statement meets where the extension was dropped, or is being dropped: no such schema,
# function, relation, type; and an object that is gone between its look-up and its use.
_MAY_BE_ABSENT = ("3F000", "42883", "42P01", "42704", "XX000")
# May be over in a moment: locks, deadlocks, and an extension that was made anew in between.
_BRIEF = ("55P03", "40", *_MAY_BE_ABSENT)
# What pgnet.require_worker raises for a worker that is not registered (any more).
_UNREGISTERED = "08003"


def ends_session(sqlstate: str) -> bool:
    """Whether the server ends the session with this error."""
    return sqlstate.startswith(_ENDS_SESSION)


def error_of(
    sqlstate: str, message: str, hint: str | None, is_absent: Callable[[], bool]
) -> OutboxError:
    """What an error of the server means for a worker whose connection is well.

    is_absent: looks whether the extension is missing; called only where the error may mean that.
    """
    if sqlstate == _UNREGISTERED:
        return OutboxUnknown(message)
    if sqlstate.startswith(_MAY_BE_ABSENT) and is_absent():
        return OutboxUnknown(message)
    remedy = max((code for code in _REMEDIES if sqlstate.startswith(code)), key=len, default=None)
    sentences = (message, hint if remedy is None else _REMEDIES[remedy])
    return OutboxFailed(
        ". ".join(part.rstrip(".") for part in sentences if part),
        brief=sqlstate.startswith(_BRIEF),
    )


@dataclass(frozen=True, slots=True)
class Claim:
    """A request that this worker has taken.

    token fences the recording of its outcome; attempt counts from 1; lost is how many attempts
    before ended without anybody's knowing how; headers and options are JSON
    objects as text or None; timeout_milliseconds is the total time of the attempt; revision is
    that of the settings, egress rules, hosts and retry policies when it was claimed; age is the
    seconds since the request was made; idempotency_key the one that was asked for, or of a method
    that is not idempotent one for a policy that may send it twice; role is the oid of the role that
    made the request. fault says why the row cannot be a request, and is None where it may be one:
    with a fault, what would be sent is left out.
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


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret that a claimed request refers to.

    value: None where workers hold it; url_prefix: what it is bound to; fault: why the request may
    not use it, None where it may.
    """

    name: str
    value: str | None = field(repr=False)
    url_prefix: str | None
    fault: str | None


def secrets_of(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[int, str], Secret]:
    """What the rows of pgnet.claimed_secrets say."""
    return {
        (row["id"], row["name"]): Secret(row["name"], row["value"], row["url_prefix"], row["fault"])
        for row in rows
    }


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended, to be recorded under the token of its claim.

    content is the body as text, or text_base64 the same in base64 where that is shorter;
    content_base64 the body that is no text; headers the answer's as an object, header_list in their
    order; final_url where redirects led to, None where there were none; the times are in ms;
    retry_in is in seconds, and given with the state retrying alone, which is no end; unreadable is
    True where the claim had a fault. put_aside: it was tried before, or is large, and the database
    keeps it where it cannot be recorded now.
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

    @property
    def size(self) -> int:
        """About how many bytes its recording takes."""
        texts = (self.content, self.text_base64, self.content_base64)
        return sum(len(text) for text in texts if text is not None)

    @property
    def without_content(self) -> Outcome:
        """The same, without the body, of which it says why."""
        said = "" if self.error_msg is None else f"{self.error_msg}. "
        return replace(
            self,
            content=None,
            text_base64=None,
            content_base64=None,
            error_msg=f"{said}The body could not be kept: there is no memory for it.",
        )


# Not ASCII alone: escapes would make six times as many bytes of some texts.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_FIELDS = tuple(entry.name for entry in fields(Outcome))


def encode_outcomes(outcomes: Iterable[Outcome]) -> str:
    """The array of objects that pgnet.record_outcomes takes; what is None is left out."""
    return _encode(
        [
            {name: value for name in _FIELDS if (value := getattr(outcome, name)) is not None}
            for outcome in outcomes
        ]
    )


class Place(NamedTuple):
    """A place in the turns of hosts, and of roles at each host; role is an oid."""

    host: str = ""
    role: int = 0


@dataclass(frozen=True, slots=True)
class Demand:
    """What a worker can take now.

    slots: requests at most; host_quota: of them for one host where several wait; lone_quota: for
    one host where only one does; full_hosts: hosts that get none;
    max_bytes: of requests; after: hosts and their roles take turns from behind this place; until:
    where the scan ends, None for once around; alone: one request that is to be attempted alone, and
    no other.
    """

    slots: int
    host_quota: int
    lone_quota: int
    full_hosts: Sequence[str]
    max_bytes: int
    after: Place
    until: Place | None = None
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Tending:
    """What the database says each time a worker looks.

    settings: by name; egress: the rules as the guard reads them; hosts: what is said of hosts, by
    pattern; policies: of retrying, by name; revision: of all four; generation:
    a worker that began under another one is to start anew; mode: on, record or off; quarantined:
    whether a request waits to be attempted alone; dropped: which requests of those that the worker
    said it holds are no longer its own, because they were cancelled, forgotten or deleted, or freed
    for others; next_look: seconds until it should look again; faults: what of the heartbeat fails,
    by the name of the duty.
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
    next_look: float
    faults: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Turn:
    """The answer to one turn: what was claimed, and the ids whose recording is held up.

    more: where to go on, since there is more than was looked at; None where there is not.
    """

    claims: list[Claim] = field(default_factory=list)
    more: Place | None = None
    held_up: list[int] = field(default_factory=list)


class Outbox(Protocol):
    """The interface. Each call is a transaction of its own, over when it returns.

    Every method may raise OutboxLost and OutboxUnknown (come again after ``connect``), OutboxFailed
    (come again later) and OutboxRefused.
    """

    # Why commits cannot wake this worker, so that it looks each second; None where they can.
    wake_up_fault: str | None

    def connect(self, holding: Sequence[int]) -> bool:
        """Register as a worker, or come back as the same one with the claims in ``holding``.

        Gives whether it is the same one.
        """

    def listen(self, on_signals: Callable[[set[str]], None]) -> None:
        """Call ``on_signals`` in the hub's thread with the names of signals as they come."""

    def stop_listening(self) -> None:
        """Let go of the wake-up slot."""

    def wake_next(self) -> None:
        """Wake the next worker: there is more than this one takes."""

    def turn(self, outcomes: Sequence[Outcome], demand: Demand | None) -> Turn:
        """Record outcomes and, where there is a demand, claim, in one transaction."""

    def secrets(self, wanted: Sequence[tuple[Claim, str]]) -> dict[tuple[int, str], Secret]:
        """Secrets by the id of the claim that refers to them, and their name."""

    def tend(self, holding: Sequence[int]) -> Tending:
        """Say what is held, rescue and expire; read settings, rules, hosts and policies."""

    def release(self, claims: Sequence[Claim], reason: str | None) -> None:
        """Give claims back; ``reason`` is what became of the attempt, None if it never began."""

    def check_interrupts(self) -> None:
        """Let the server act upon a cancel or a stop that has come; raises what it raises."""

    def cut_short(self) -> None:
        """End the statement that runs, if one does: the worker is to stop and waits for it."""

    def close(self, cut_off: int) -> None:
        """Deregister and disconnect; does not raise where the connection is gone.

        cut_off: how many requests were given back in flight.
        """
