"""Which state of a libcurl handle may follow which, and that nothing else is let pass."""

from __future__ import annotations

from typing import Any

import pytest

from pgnet.wire.curl.states import LEGAL, Fate, IllegalChangeError, Phase, Repeat, changed

# Each change of state that may happen, and its cause.
CHANGES = {
    (Phase.IDLE, Phase.BEGUN): "a request begins",
    (Phase.BEGUN, Phase.PROXY): "a socket to a proxy is opened, for a tunnel",
    (Phase.BEGUN, Phase.OPENED): "a socket is opened",
    (Phase.BEGUN, Phase.ANSWERED): "an answer comes over a kept connection",
    (Phase.BEGUN, Phase.IDLE): "it ends before anything has happened",
    (Phase.PROXY, Phase.PROXY): "libcurl tries another connection to the proxy",
    (Phase.PROXY, Phase.OPENED): "the tunnel is open",
    (Phase.PROXY, Phase.IDLE): "the proxy refuses",
    (Phase.OPENED, Phase.PROXY): "libcurl repeats a request, through another tunnel",
    (Phase.OPENED, Phase.OPENED): "libcurl repeats a request",
    (Phase.OPENED, Phase.ANSWERED): "an answer comes",
    (Phase.OPENED, Phase.IDLE): "it ends without an answer",
    (Phase.ANSWERED, Phase.IDLE): "it ends",
    (Repeat.ALLOWED, Repeat.FORBIDDEN): "a request begins that must not be repeated",
    (Repeat.ALLOWED, Repeat.ALLOWED): "another one ends",
    (Repeat.FORBIDDEN, Repeat.SEALED): "it has its connection",
    (Repeat.FORBIDDEN, Repeat.STOPPED): "libcurl is about to repeat it",
    (Repeat.FORBIDDEN, Repeat.ALLOWED): "it ends",
    (Repeat.SEALED, Repeat.STOPPED): "libcurl is about to repeat it",
    (Repeat.SEALED, Repeat.ALLOWED): "it ends",
    (Repeat.STOPPED, Repeat.STOPPED): "libcurl says so twice",
    (Repeat.STOPPED, Repeat.ALLOWED): "it ends",
}


@pytest.mark.parametrize("states", [Phase, Repeat])
def test_what_may_follow(states: Any) -> None:
    for before in states:
        for after in states:
            if (before, after) in CHANGES:
                assert changed(before, after) is after
            else:
                with pytest.raises(IllegalChangeError) as failure:
                    changed(before, after)
                assert str(failure.value) == f"{after} cannot follow {before}"


def test_each_state_has_its_row() -> None:
    assert set(LEGAL) == {*Phase, *Repeat}


def test_the_stronger_word_of_a_stream_counts() -> None:
    """A server that refuses a stream has not processed it, whatever else libcurl tells of it."""
    assert max(Fate) is Fate.REFUSED
    assert max(Fate.PERHAPS_REFUSED, Fate.TROUBLED) is Fate.TROUBLED
