"""The states of a libcurl handle, and which may follow which.

A handle has two of them at a time. `Phase` is how far libcurl is with the request. `Repeat` is
whether libcurl may send the request once more. Each change goes through `changed`, which raises
where the table does not have it: a callback of libcurl that comes at the wrong time then ends its
transfer, and is not taken for something else.

`Fate` has no table: libcurl's words about a stream of HTTP/2 come in any order, and the strongest
counts.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import TypeVar


class IllegalChangeError(RuntimeError):
    """A handle was to change into a state that cannot follow its present one."""


class Phase(Enum):
    """How far libcurl is with the request."""

    IDLE = "there is no request"
    BEGUN = "libcurl has the request, and has opened no socket for it"
    PROXY = "a socket was opened to a proxy, which speaks until its tunnel to the server is open"
    OPENED = "a socket was opened, and it is the server that speaks"
    ANSWERED = "the header section of the final answer is complete"

    # Enum's own hash is a function in Python: too slow for what each request asks three times.
    __hash__ = object.__hash__


class Repeat(Enum):
    """Whether libcurl may send the request once more, over another connection."""

    ALLOWED = "it may"
    FORBIDDEN = "it may not, and is watched; the request has no connection yet, or shares one"
    SEALED = "it may not, and no further socket is opened: so it cannot"
    STOPPED = "it was about to, and the transfer is ended"

    __hash__ = object.__hash__


class Fate(IntEnum):
    """The fate of the stream of HTTP/2 that carries a request; the stronger word is greater."""

    UNKNOWN = 0
    # A GOAWAY was read that may be of this stream's connection.
    PERHAPS_REFUSED = 1
    # Something else went wrong with the stream, so that the server may have processed the request.
    TROUBLED = 2
    # The server has ended the stream in good order, before all of the request was sent.
    CLOSED = 3
    # The server says that it has not processed the request (RFC 9113, sections 6.8 and 8.7).
    REFUSED = 4


# The members under names of their own: in Python 3.11 `Phase.IDLE` calls a function in Python.
IDLE, BEGUN, PROXY, OPENED, ANSWERED = Phase
ALLOWED, FORBIDDEN, SEALED, STOPPED = Repeat

LEGAL: dict[Enum, frozenset[Enum]] = {
    IDLE: frozenset((BEGUN,)),
    # Over a kept connection the answer comes without a socket being opened.
    BEGUN: frozenset((PROXY, OPENED, ANSWERED, IDLE)),
    # libcurl opens another socket for a request that it repeats.
    PROXY: frozenset((PROXY, OPENED, IDLE)),
    OPENED: frozenset((PROXY, OPENED, ANSWERED, IDLE)),
    ANSWERED: frozenset((IDLE,)),
    ALLOWED: frozenset((ALLOWED, FORBIDDEN)),
    FORBIDDEN: frozenset((SEALED, STOPPED, ALLOWED)),
    # libcurl may say twice that it is about to repeat a request.
    SEALED: frozenset((STOPPED, ALLOWED)),
    STOPPED: frozenset((STOPPED, ALLOWED)),
}

State = TypeVar("State", Phase, Repeat)


def changed(before: State, after: State) -> State:
    """The state `after`, where it may follow the state `before`.

    Errors: IllegalChangeError.
    """
    if after not in LEGAL[before]:
        raise IllegalChangeError(f"{after} cannot follow {before}")
    return after
