"""Stubs: answers that the database has for requests, in place of the network."""

from __future__ import annotations

import time
from collections.abc import Callable
from http import HTTPStatus

import gevent

from pgnet.outbox import Stub
from pgnet.wire.answer import Answer
from pgnet.wire.message import Head, WireRequest
from pgnet.wire.transport import timeout_words
from pgnet.wire.wire_error import Code, WireError, words


class StubbedRequest:
    """A request that a stub answers: what a Handle of an Exchange is for others.

    timeout: seconds, the total time of the attempt. done: called once with the Answer, in the hub
    and not before this is made, unless it is cancelled before; it must not switch greenlets.
    """

    progress = "waiting for the delay of a stub"

    def __init__(
        self, request: WireRequest, stub: Stub, timeout: float, done: Callable[[Answer], None]
    ) -> None:
        self._request = request
        self._stub = stub
        self._timeout = timeout
        self._done = done
        self._began = time.monotonic()
        self._timer = gevent.get_hub().loop.timer(min(stub.delay, timeout))
        # The loop's own time is that of its last round, before a statement perhaps.
        self._timer.start(self._end, update=True)

    def cancel(self) -> None:
        """Stop it: `done` is not called any more. No effect after its end."""
        self._timer.stop()
        self._timer.close()

    def _end(self) -> None:
        self.cancel()
        self._done(self._answer())

    def _answer(self) -> Answer:
        stub, request = self._stub, self._request
        total = time.monotonic() - self._began
        if stub.delay >= self._timeout:
            error = WireError(
                timeout_words("Timeout", self._timeout, total, 0.0, 0.0),
                timed_out=True,
                possibly_sent=True,
                code=Code.OPERATION_TIMEDOUT,
            )
        elif stub.status_code is None:
            code = Code.COULDNT_CONNECT
            error = WireError(words(code), code=code)
        else:
            head = Head("1.1", stub.status_code, _reason(stub.status_code), list(stub.fields))
            content = b"" if request.method == "HEAD" else stub.body
            return Answer.of_stub(request, head, content, total)
        answer = Answer(None, request, error, 0)
        answer.timings.total = total
        return answer


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
