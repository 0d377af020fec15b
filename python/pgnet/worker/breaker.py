"""What an attempt says of its host: whether the host is well, broken, or asks for a pause.

A failure of the host is: no answer (no address, no connection, no TLS, no answer in time, a
connection that broke), and a status of 5xx. What this side refuses says nothing of the host. All
else says that the host answers, a 4xx and an answer that cannot be read too.
"""

from __future__ import annotations

import time
from typing import Literal, NamedTuple

from pgnet.outbox import Claim
from pgnet.wire.answer import Answer
from pgnet.wire.wire_error import words
from pgnet.worker.outcome import NotSent
from pgnet.worker.retry import seconds_asked

_BROKEN = frozenset(("name", "connect", "tls", "timeout", "connection"))
# With Retry-After these ask for a pause (RFC 9110, section 10.2.3; RFC 6585, section 4).
_PAUSING = frozenset((429, 503))


class Verdict(NamedTuple):
    """What an attempt says of its host.

    result: none says nothing.
    cause: of a failure, in words that repeat nothing of the request.
    status: of the answer.
    pause: for how many seconds the host asks to wait; 0: it does not ask.
    is_congestion: whether fewer requests at once may help: there was no answer, or the host says
    that there are too many.
    latency: seconds to the first byte, without connecting; None where the host gave no answer.
    """

    result: Literal["ok", "failed", "none"]
    cause: str | None = None
    status: int | None = None
    pause: float = 0.0
    is_congestion: bool = False
    latency: float | None = None


_NOTHING = Verdict("none")
_ANSWERED = Verdict("ok")


def judge(claim: Claim, answer: Answer | NotSent) -> Verdict:
    """Judge the host of a claimed request by what came of the attempt."""
    if isinstance(answer, NotSent):
        return _NOTHING
    if answer.redirects and answer.url.split("/", 3)[2] != claim.host:
        # This host has answered, and what came then is another one's.
        return _ANSWERED
    error, status = answer.error, answer.status_code
    if error is not None:
        if error.kind == "request":
            return _NOTHING
        if error.kind in _BROKEN:
            cause = f"{error.kind} ({words(error.code)})" if error.code else error.kind
            return Verdict("failed", cause, status, is_congestion=True)
    if status is None:
        return _ANSWERED
    timings = answer.timings
    latency = timings.first_byte - timings.name - timings.connect - timings.tls
    if status < 429:
        return Verdict("ok", status=status, latency=latency)
    pause = 0.0
    if status in _PAUSING:
        asked = answer.header("Retry-After")
        if asked is not None:
            pause = seconds_asked(asked, answer.header("Date"), time.time()) or 0.0
    return Verdict(
        "failed" if 500 <= status <= 599 else "ok",
        f"status {status}",
        status,
        pause,
        status in _PAUSING,
        latency,
    )
