"""What comes back: an answer with its times, and the limits of what it may cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import requests

from pgnet.wire.message import Head, WireResponse, build_response
from pgnet.wire.transport import Transfer
from pgnet.wire.wire_error import WireError

# The longest body of a redirect that is kept while it is followed.
_REDIRECT_BODY = 65536


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may cost.

    max_response_bytes: of the decoded body.
    max_wire_bytes: of the body as it comes, which may be compressed.
    max_header_bytes: of all header sections of one response.
    max_redirects: hops that are followed; at 0 a redirect is the answer itself.
    connect_timeout: seconds to connect to one server, TLS included.
    """

    max_response_bytes: int = 64 << 20
    max_wire_bytes: int = 64 << 20
    max_header_bytes: int = 256 << 10
    max_redirects: int = 5
    connect_timeout: float = 10.0


class Timings(NamedTuple):
    """Where the time went, in seconds.

    name, connect, tls: summed over all hops; zero where a connection was used again.
    first_byte: from the start to the first byte of the last answer.
    total: from the start to the end.
    """

    name: float
    connect: float
    tls: float
    first_byte: float
    total: float


class Answer:
    """The one outcome of a request: a response, an error, or what came of a response and an error.

    error: what went wrong; None where a whole response came.
    status_code: of the last response whose status came; None where none did.
    is_final: whether the status is what became of the request. Not where there is none, and not
    where a redirect was followed and the next server gave no answer: then the error is.
    header_list: the response's fields in order, repeats kept; empty without a status.
    content: the decoded body, or what came of it; empty without a status.
    is_whole: whether all of the body came. as_it_came: whether it has a coding that was not undone.
    http_version: "1.0", "1.1", "2"; empty without a status.
    address: the IP address last connected to, or tried.
    url: where the answer comes from after all redirects, without fragment; without an answer, where
    the last attempt went.
    redirects: how many were followed.
    timings: where the time went.
    """

    __slots__ = (
        "_head",
        "_request",
        "_response",
        "_transfer",
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
        request: requests.PreparedRequest,
        error: WireError | None,
        timings: Timings,
        redirects: int,
    ) -> None:
        self.error = error
        self.timings = timings
        self.redirects = redirects
        self.header_list: list[tuple[str, str]] = []
        self.http_version = ""
        self.status_code: int | None = None
        self.address = None if transfer is None else transfer.address
        self.url = (request.url or "").partition("#")[0] if transfer is None else transfer.url
        self.is_final = self.as_it_came = False
        self.is_whole = error is None
        self._transfer: Transfer | Followed | None = None
        self._request = request
        self._response: WireResponse | None = None
        self._head: Head | None = None
        if transfer is not None and transfer.head.status:
            self.is_final = True
            broken_coding = transfer.note is not None and not transfer.as_it_came
            self.is_whole = transfer.error is None and not broken_coding
            self.as_it_came = transfer.as_it_came
            self._take(transfer)

    def _take(self, answered: Transfer | Followed) -> None:
        self._transfer = answered
        self._head = head = answered.head
        self.http_version, self.status_code = head.version, head.status
        self.header_list = head.fields

    def fall_back(self, redirect: Followed, is_final: bool, was_followed: bool) -> None:
        """The last answer is this redirect, behind which none came.

        is_final: whether it is what became of the request. was_followed: whether anything was sent
        to where it points.
        """
        self._take(redirect)
        self.is_final = is_final
        if not was_followed:
            self.url, self.address = redirect.url, redirect.address
            self.redirects -= 1

    @property
    def size(self) -> int:
        """How many bytes the content has."""
        return 0 if self._transfer is None else self._transfer.size

    @property
    def content(self) -> bytes:
        return b"" if self._transfer is None else self._transfer.content

    def forget_content(self) -> None:
        """Go on without the body, and say that it is not whole."""
        self._transfer = None
        self.is_whole = False

    def header(self, name: str) -> str | None:
        """A field's value, repeats joined by commas (RFC 9110, section 5.3); None without one."""
        lower = name.lower()
        values = [value for field, value in self.header_list if field.lower() == lower]
        return ", ".join(values) if values else None

    @property
    def response(self) -> requests.Response | None:
        """The same as requests' own response, made when it is asked for; None on an error."""
        if self._response is None and self.error is None and self._head is not None:
            self._response = build_response(
                self._request, self.url, self._head, self.content, self.timings.total
            )
        return self._response


class Followed:
    """A redirect that is being followed: what is left to tell where nothing comes of it."""

    __slots__ = ("address", "content", "first_byte", "head", "url")

    def __init__(self, transfer: Transfer) -> None:
        self.head = transfer.head
        self.url = transfer.url
        self.address = transfer.address
        self.first_byte = first_byte_of(transfer)
        # It waits beside the answer that is to come, and that may take all the room there is.
        self.content = transfer.content if transfer.size <= _REDIRECT_BODY else b""

    @property
    def size(self) -> int:
        return len(self.content)


def first_byte_of(transfer: Transfer) -> float:
    """Seconds from the start to the first byte of an answer."""
    return transfer.hop_started - transfer.started + transfer.first_byte
