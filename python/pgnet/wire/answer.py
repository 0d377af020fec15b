"""The answer to a request, with its times."""

from __future__ import annotations

from collections.abc import Callable

import requests

from pgnet.secret.mask import MASK
from pgnet.wire.limits import Limits
from pgnet.wire.message import Head, WireRequest, WireResponse, build_response
from pgnet.wire.redirect import locations_in, resolve
from pgnet.wire.timings import Timings
from pgnet.wire.transfer import Received, Transfer
from pgnet.wire.wire_error import WireError

__all__ = ["Answer", "Followed", "Limits"]

# The longest body of a redirect that is kept while the redirect is followed, in bytes.
_REDIRECT_BODY = 65536


class Answer:
    """The one outcome of a request: a response, an error, or an error and what came before it.

    error: what went wrong; None where a whole response came.
    status_code: of the last response whose status came; None where none came.
    is_final: whether the status says what became of the request. Without a status it is false, and
    so it is where a redirect was followed and the next server gave no answer: then the error says
    it.
    header_list: the response's fields in order, repeats kept; empty without a status.
    content: the decoded body, or as much of it as came; empty without a status.
    is_whole: whether all of the body came.
    as_it_came: whether the body has a coding that was not undone.
    http_version: "1.0", "1.1", "2"; empty without a status.
    address: the IP address that was connected to last, or tried last.
    url: the URL that was answered, after all redirects, without its fragment; without an answer,
    the URL of the last attempt.
    redirects: how many were followed.
    timings: where the time went.
    """

    __slots__ = (
        "_head",
        "_received",
        "_request",
        "_response",
        "address",
        "as_it_came",
        "error",
        "header_list",
        "http_version",
        "is_final",
        "is_whole",
        "redirects",
        "status_code",
        "timings",
        "url",
    )

    def __init__(
        self,
        transfer: Transfer | None,
        request: WireRequest,
        error: WireError | None,
        redirects: int,
    ) -> None:
        self.error = error
        self.timings = Timings() if transfer is None else transfer.timings
        self.redirects = redirects
        self.header_list: list[tuple[str, str]] = []
        self.http_version = ""
        self.status_code: int | None = None
        self.address = None if transfer is None else transfer.attempts.address
        self.url = request.url.partition("#")[0] if transfer is None else transfer.request.url
        self.is_final = self.as_it_came = False
        self.is_whole = error is None
        # None where the body is forgotten.
        self._received: Received | None = None
        self._request = request
        self._response: WireResponse | None = None
        self._head: Head | None = None
        if transfer is not None and transfer.received.head.status:
            received = transfer.received
            self.is_final = True
            broken_coding = received.note is not None and not received.as_it_came
            self.is_whole = transfer.error is None and not broken_coding
            self.as_it_came = received.as_it_came
            self._take(received)

    @classmethod
    def of_stub(cls, request: WireRequest, head: Head, content: bytes, total: float) -> Answer:
        """The whole answer that a stub gives in place of a server, after ``total`` seconds."""
        received = Received()
        received.head = head
        received.take(content)
        answer = cls(None, request, None, 0)
        answer._take(received)
        answer.is_final = True
        answer.timings.first_byte = answer.timings.total = total
        return answer

    def _take(self, received: Received) -> None:
        self._received = received
        self._head = head = received.head
        self.http_version, self.status_code = head.version, head.status
        self.header_list = head.fields

    def fall_back(self, redirect: Followed, is_final: bool, *, was_followed: bool) -> None:
        """Show the redirect that was followed, since no answer came from behind it.

        is_final: whether its status says what became of the request.
        was_followed: whether anything was sent to the URL that it points to.
        """
        self._take(redirect.received)
        self.timings.first_byte = redirect.first_byte
        self.is_final = is_final
        if not was_followed:
            self.url, self.address = redirect.url, redirect.address
            self.redirects -= 1

    def hide_target(self, may_follow: Callable[[str], bool]) -> None:
        """Hide the URLs that a redirect points to, where one of them repeats a secret.

        A Location may do so in a form that only shows once it is read as a URL.
        """
        for location in locations_in(self.header_list):
            try:
                target = resolve(self.url, location)
            except ValueError:
                target = location
            if may_follow(target):
                continue
            self.header_list = [
                (name, MASK if name.lower() == "location" else value)
                for name, value in self.header_list
            ]
            # The body of a redirect mostly repeats the URL.
            self.forget_content()
            if self.error is None:
                message = "the redirect repeats a secret beyond its URL prefix and is not shown"
                self.error = WireError(message, possibly_sent=True)
            return

    @property
    def size(self) -> int:
        """How many bytes the content has."""
        return 0 if self._received is None else self._received.size

    @property
    def content(self) -> bytes:
        """The decoded body."""
        return b"" if self._received is None else self._received.content

    def forget_content(self) -> None:
        """Go on without the body, and say that it is not whole."""
        self._received = None
        self.is_whole = False

    def header(self, name: str) -> str | None:
        """A field's value, repeats joined by commas (RFC 9110, section 5.3); None without one."""
        lower = name.lower()
        values = [value for field, value in self.header_list if field.lower() == lower]
        return ", ".join(values) if values else None

    @property
    def response(self) -> requests.Response | None:
        """The same as a Response of requests, made when it is asked for; None on an error."""
        if self._response is None and self.error is None and self._head is not None:
            self._response = build_response(
                self._request, self.url, self._head, self.content, self.timings.total
            )
        return self._response


class Followed:
    """A redirect that is being followed: what an Answer shows where no server answers behind it."""

    __slots__ = ("address", "first_byte", "received", "url")

    def __init__(self, transfer: Transfer) -> None:
        self.url = transfer.request.url
        self.address = transfer.attempts.address
        self.first_byte = transfer.timings.first_byte
        self.received = transfer.received
        # The body waits beside the answer that is to come, which may take all the room there is.
        if self.received.size > _REDIRECT_BODY:
            self.received.drop_body()
