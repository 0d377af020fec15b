"""One request to one server, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pgnet.wire.message import Head
from pgnet.wire.route import Route
from pgnet.wire.wire_error import When, WireError

_NO_HEAD = Head("", 0, "", [])
# What may be done twice (RFC 9110, section 9.2.2).
IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))


class Transfer:
    """One request to one server: what is asked, and then what came of it.

    The asking side fills `method`, `url`, `route`, `headers` (lines as encode_headers makes them),
    `body` and the limits; `done(transfer)` is called once, from the loop, and must not block.
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
        # What is wrong with the body of an answer that came whole.
        self.note: WireError | None = None
        # Whether the body has a coding that was not undone.
        self.as_it_came = False
        self.address: str | None = None
        self.name_seconds = self.connect = self.appconnect = self.first_byte = 0.0
        self._body: bytes | bytearray = b""
        # Whether libcurl is to make a connection of its own for it.
        self.repeated = self.fresh = False
        # How often a server has said that it does not process the request.
        self.refusals = 0
        # Whether an attempt before this one may have been seen.
        self.sent = False
        self.addresses: tuple[str, ...] = ()
        # What ends the work that is done for it just now: the look-up of a name, or libcurl's.
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
            # Not a list: of many small pieces it would take many times their length.
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
        """Make it the next request of the same undertaking: start and deadline stay."""
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
        """Whatever has come, the answer is another one."""
        self.head = _NO_HEAD
        self.note = None
        self.as_it_came = False
        self._body = b""

    def fail(self, error: WireError) -> None:
        """End with an error, unless it has ended.

        What has come of an answer stays: its status tells what the server has done.
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
    fault: what to say of it, where we know better than libcurl.
    is_silent: it went over a kept connection, and not a byte came back.
    times: when it happened, for `settle`.
    refused: the server has not processed it, and says so, or has got nothing of it.
    """

    code: int
    text: str
    sent: bool
    fault: WireError | None
    is_silent: bool = False
    times: tuple[When, ...] = ()
    refused: bool = False
