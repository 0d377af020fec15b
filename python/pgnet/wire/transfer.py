"""One request to one server, and what came of it: what Transport and libcurl's handles share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pgnet.wire.message import Head
from pgnet.wire.route import Route
from pgnet.wire.wire_error import When, WireError

_NO_HEAD = Head("", 0, "", [])
# Methods that may be done twice (RFC 9110, section 9.2.2).
IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))


class Transfer:
    """One request to one server: what is asked, and then what came of it.

    The caller gives `method`, `url`, `route`, `headers` (lines as encode_headers makes them),
    `body` and the limits; `done(transfer)` is called once, from the loop, and must not block.

    error: why there is no answer, or none that is whole. note: what is wrong with the body of an
    answer that came whole. as_it_came: whether the body still has a coding.
    repeated: whether it was sent again because a kept connection ended. fresh: whether libcurl is
    to make a new connection for it. refusals: how often its server refused it.
    sent: whether a server may have seen an attempt that failed.
    address: what it is connected to. addresses: those that are left to try.
    name_seconds, connect, appconnect, first_byte: seconds for the look-up; and, from the start of
    the last attempt, until the connection was made, until TLS was agreed on, until the first byte.
    stop: ends what is done for it just now, the look-up of its name or libcurl's work.
    """

    __slots__ = (
        "_body",
        "address",
        "addresses",
        "appconnect",
        "as_it_came",
        "body",
        "connect",
        "connect_timeout",
        "deadline",
        "done",
        "error",
        "first_byte",
        "fresh",
        "head",
        "headers",
        "hop_started",
        "max_header_bytes",
        "max_response_bytes",
        "max_wire_bytes",
        "method",
        "name_seconds",
        "note",
        "refusals",
        "repeated",
        "route",
        "sent",
        "started",
        "stop",
        "timeout",
        "url",
    )

    def __init__(
        self,
        method: str,
        url: str,
        route: Route,
        headers: list[bytes],
        body: bytes | None,
        *,
        started: float,
        timeout: float,
        connect_timeout: float,
        max_response_bytes: int,
        max_wire_bytes: int,
        max_header_bytes: int,
        done: Callable[[Transfer], None],
    ) -> None:
        self.method = method
        self.url = url
        self.route = route
        self.headers = headers
        self.body = body
        self.started = self.hop_started = started
        self.timeout = timeout
        self.deadline = started + timeout
        self.connect_timeout = connect_timeout
        self.max_response_bytes = max_response_bytes
        self.max_wire_bytes = max_wire_bytes
        self.max_header_bytes = max_header_bytes
        self.done: Callable[[Transfer], None] | None = done
        self.head = _NO_HEAD
        self.error: WireError | None = None
        self.note: WireError | None = None
        self.as_it_came = False
        self.address: str | None = None
        self.name_seconds = self.connect = self.appconnect = self.first_byte = 0.0
        self._body: bytes | bytearray = b""
        self.repeated = self.fresh = False
        self.refusals = 0
        self.sent = False
        self.addresses: tuple[str, ...] = ()
        self.stop: Callable[[], None] | None = None

    @property
    def content(self) -> bytes:
        """The body that came, decoded."""
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

    def again(
        self,
        method: str,
        url: str,
        route: Route,
        headers: list[bytes],
        body: bytes | None,
        connect_timeout: float,
        done: Callable[[Transfer], None],
    ) -> None:
        """Make it the request of the next hop: start and deadline stay."""
        self.method, self.url, self.route = method, url, route
        self.headers, self.body, self.connect_timeout = headers, body, connect_timeout
        self.hop_started = time.monotonic()
        self.forget_answer()
        self.error = None
        self.connect = self.appconnect = self.first_byte = 0.0
        self.addresses = ()
        self.repeated = self.fresh = self.sent = False
        self.refusals = 0
        self.done = done

    def forget_answer(self) -> None:
        """Forget what has come of an answer: another attempt will bring another one."""
        self.head = _NO_HEAD
        self.note = None
        self.as_it_came = False
        self._body = b""

    def fail(self, error: WireError) -> None:
        """End with an error, unless it has ended.

        What has come of an answer stays: its status says what the server has done.
        """
        error.possibly_sent = error.possibly_sent or self.sent
        self.error = error
        if not self.head.status:
            self._body = b""
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
