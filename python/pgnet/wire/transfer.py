"""One request to one server, and what came of it: what Transport and libcurl's handles share.

A `Transfer` has what is asked, and two parts: `Attempts`, which Transport changes, and `Received`,
which libcurl's handles fill.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from pgnet.wire.limits import Limits
from pgnet.wire.message import Head, WireRequest
from pgnet.wire.route import Route
from pgnet.wire.timings import Timings
from pgnet.wire.wire_error import When, WireError

_NO_HEAD = Head("", 0, "", [])
# Methods that may be done twice (RFC 9110, section 9.2.2).
IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))


class Progress(Enum):
    """What a request in flight waits for, in words that are shown to its requester."""

    NAME = "looking up the name"
    PENDING = "waiting for the connection of another request"
    CONNECTING = "connecting"
    TUNNEL = "waiting for the tunnel of the proxy"
    TLS = "agreeing on TLS"
    SENDING = "sending the request"
    FIRST_BYTE = "waiting for the first byte of the answer"
    ANSWER = "reading the answer"


class Received:
    """The part of an answer that has come.

    head: its header section; the status is 0 before it has come.
    note: what is wrong with the body of an answer that came whole.
    as_it_came: whether the body still has a coding.
    """

    __slots__ = ("_body", "as_it_came", "head", "note")

    def __init__(self) -> None:
        self.head = _NO_HEAD
        self.note: WireError | None = None
        self.as_it_came = False
        self._body: bytes | bytearray = b""

    @property
    def content(self) -> bytes:
        """The body, decoded."""
        if not isinstance(self._body, bytes):
            self._body = bytes(self._body)
        return self._body

    @property
    def size(self) -> int:
        """How many bytes of the body have come, decoded."""
        return len(self._body)

    def drop_body(self) -> None:
        """Forget what has come of the body."""
        self._body = b""

    def take(self, piece: bytes) -> None:
        """Another piece of the decoded body has come."""
        if not self._body:
            self._body = piece
        elif isinstance(self._body, bytearray):
            self._body += piece
        else:
            # Not a list: a list of many small pieces takes many times their length.
            self._body = bytearray(self._body)
            self._body += piece


class Attempts:
    """The attempts of a transfer: the present or last one, and what is left to try.

    address: what it is connected to. addresses: those that are left to try.
    handshake: seconds that the last connection took, TLS included; zero where none was made.
    repeated: whether the request was sent again because a kept connection ended.
    fresh: whether libcurl is to make a new connection for it.
    refusals: how often its server refused it.
    sent: whether a server may have seen an attempt that failed.
    send_by: when the request must have its connection, by time.monotonic; None: at any time.
    """

    __slots__ = (
        "address",
        "addresses",
        "fresh",
        "handshake",
        "refusals",
        "repeated",
        "send_by",
        "sent",
    )

    def __init__(self) -> None:
        self.address: str | None = None
        self.addresses: tuple[str, ...] = ()
        self.handshake = 0.0
        self.repeated = self.fresh = self.sent = False
        self.send_by: float | None = None
        self.refusals = 0


class Transfer:
    """One request to one server: what is asked, and what came of it.

    The caller gives `request`, its URL without a fragment, `route`, `headers` (lines as
    encode_headers makes them) and `limits`; `started` by time.monotonic and `timeout` in seconds.
    `done(transfer)` is called once, from the loop, and must not block.

    error: why there is no answer, or none that is whole.
    timings: of all hops up to this one.
    stop: ends what is done for it just now, the look-up of its name or libcurl's work.
    progress: says how far libcurl is with it; None where libcurl does not have it.
    """

    __slots__ = (
        "attempts",
        "connect_timeout",
        "deadline",
        "done",
        "error",
        "headers",
        "limits",
        "progress",
        "received",
        "request",
        "route",
        "started",
        "stop",
        "timeout",
        "timings",
    )

    def __init__(
        self,
        request: WireRequest,
        route: Route,
        headers: list[bytes],
        limits: Limits,
        *,
        started: float,
        timeout: float,
        done: Callable[[Transfer], None],
    ) -> None:
        self.request = request
        self.route = route
        self.headers = headers
        self.limits = limits
        of_host = route.settings.connect_timeout
        self.connect_timeout = limits.connect_timeout if of_host is None else of_host
        self.started = started
        self.timeout = timeout
        self.deadline = started + timeout
        self.done: Callable[[Transfer], None] | None = done
        self.stop: Callable[[], None] | None = None
        self.progress: Callable[[], Progress] | None = None
        self.attempts = Attempts()
        self.received = Received()
        self.error: WireError | None = None
        self.timings = Timings()

    def following(
        self,
        request: WireRequest,
        route: Route,
        headers: list[bytes],
        limits: Limits,
        done: Callable[[Transfer], None],
    ) -> Transfer:
        """The transfer of the next hop: start and deadline are those of the first, and timings."""
        made = Transfer(
            request, route, headers, limits, started=self.started, timeout=self.timeout, done=done
        )
        made.timings = self.timings
        # The address that is shown where the next hop does not come as far as an address.
        made.attempts.address = self.attempts.address
        return made

    def forget_answer(self) -> None:
        """Forget what has come of an answer: another attempt will bring another one."""
        self.received = Received()
        self.timings.first_byte = 0.0

    def fail(self, error: WireError) -> None:
        """End with an error, unless it has ended.

        The part of an answer that has come stays: its status says what the server has done.
        """
        error.possibly_sent = error.possibly_sent or self.attempts.sent
        self.error = error
        if not self.received.head.status:
            self.received.drop_body()
        self.finish()

    def cancel(self) -> None:
        """Stop it: `done` is not called any more."""
        self.done = None
        if self.stop is not None:
            self.stop()

    def finish(self) -> None:
        """Call `done`, the first time."""
        done, self.done = self.done, None
        if done is not None:
            done(self)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a transfer has no answer.

    code, text: libcurl's number and words for it.
    sent: the server may have seen the request.
    fault: the error, where pgnet knows more than libcurl's code says.
    is_silent: it went over a kept connection, and not a byte came back.
    times: when it happened, for `settle`.
    refused: the server says that it has not processed the request, or has got nothing of it.
    """

    code: int
    text: str
    sent: bool
    fault: WireError | None
    is_silent: bool = False
    times: tuple[When, ...] = ()
    refused: bool = False
