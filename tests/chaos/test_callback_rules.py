"""The checker's rule of callbacks finds what is there to find."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from chaos.checker import Evidence, Response, Sent, Sighting, check

URL = "http://witness/"


def evidence() -> Evidence:
    """A good run: two requests, of which the first has a callback, and a set of both."""
    return Evidence(
        sent=[Sent("a", 1, calls=True), Sent("b", 2)],
        sightings=[Sighting(key, 1, "GET", None, "answer", 200) for key in "ab"],
        responses=[
            Response(id, URL + key, "succeeded", 200, f'{{"key": "{key}", "number": 1}}', None, 1)
            for id, key in ((1, "a"), (2, "b"))
        ],
        called=[(1, "succeeded")],
        sets=[(1, 2)],
        called_sets=[((1, 2), ("succeeded", "succeeded"))],
    )


def broken(run: Evidence) -> set[str]:
    return {violation.subject for violation in check(run) if violation.kind == "callback"}


def test_a_good_run() -> None:
    assert broken(evidence()) == set()


def call_twice(run: Evidence) -> None:
    run.called *= 2


def call_never(run: Evidence) -> None:
    run.called = []


def call_for_another(run: Evidence) -> None:
    run.called.append((2, "succeeded"))


def call_with_another_state(run: Evidence) -> None:
    run.called = [(1, "failed")]


def call_a_set_twice(run: Evidence) -> None:
    run.called_sets *= 2


def forget_a_set(run: Evidence) -> None:
    run.called_sets = []


def call_a_set_that_was_not_made(run: Evidence) -> None:
    run.sets = []


def call_a_set_early(run: Evidence) -> None:
    run.called_sets = [((1, 2), ("succeeded", "in_flight"))]


@pytest.mark.parametrize(
    "fault",
    [
        call_twice,
        call_never,
        call_for_another,
        call_with_another_state,
        call_a_set_twice,
        forget_a_set,
        call_a_set_that_was_not_made,
        call_a_set_early,
    ],
)
def test_the_checker_finds(fault: Callable[[Evidence], None]) -> None:
    run = evidence()
    fault(run)
    assert broken(run)
