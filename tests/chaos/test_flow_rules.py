"""The checker's rules of limits, keys, `after` and times find what is there to find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from chaos import orders
from chaos.checker import Attempt, Evidence, Response, Sent, Sighting, check

URL = "http://witness/"


def seen(key: str, at: float, *, at_once: int | None = None) -> Sighting:
    return Sighting(key, 1, "GET", None, "answer", 200, at, (), at_once)


def answered(id: int, key: str) -> Response:
    return Response(id, URL + key, "succeeded", 200, f'{{"key": "{key}", "number": 1}}', None, 1)


def evidence() -> Evidence:
    """A good run: d fails and blocks the key of a and b until it is let run, e is cancelled for d.

    c comes after a, f is too late, g and h are at the host with limits.
    """
    run = Evidence(
        sent=[
            Sent("a", 1, ordering_key="k", blocks=True),
            Sent("d", 2, ordering_key="k", blocks=True),
            Sent("b", 3, ordering_key="k", blocks=True),
            Sent("c", 4, after=[1], not_before=14.0),
            Sent("e", 5, after=[1, 2]),
            Sent("f", 6, not_after=13.0),
            Sent("g", 7, limited=True),
            Sent("h", 8, limited=True),
        ],
        sightings=[
            seen("a", 11),
            replace(seen("d", 12), status=404),
            seen("b", 15),
            seen("c", 15),
            seen("g", 15, at_once=1),
            seen("h", 15, at_once=2),
        ],
        responses=[
            answered(1, "a"),
            Response(2, URL + "d", "failed", 404, '{"key": "d", "number": 1}', None, 1),
            answered(3, "b"),
            answered(4, "c"),
            Response(5, URL + "e", "cancelled", None, None, "Request 2 has failed", 0),
            Response(6, URL + "f", "expired", None, None, "The request expired", 0),
            answered(7, "g"),
            answered(8, "h"),
        ],
        ended={1: 1, 2: 2, 5: 3, 3: 5, 4: 6, 6: 7, 7: 8, 8: 9},
        let_run=[(2, 4)],
        failed={2, 5},
        spans={"a": (1, 1, 2), "d": (1, 1, 2), "b": (2, 3, 4)},
    )
    for response in run.responses:
        run.operations.append(("INSERT", response.id, response.state))
        if response.attempts:
            run.attempts.append(Attempt(response.id, 1, response.state))
    return run


def test_a_good_run_has_no_violations() -> None:
    assert check(evidence()) == []


def swap(run: Evidence, one: str, other: str) -> None:
    """Have the witness see them in the other order."""
    places = {sighting.key: place for place, sighting in enumerate(run.sightings)}
    first, second = places[one], places[other]
    run.sightings[first], run.sightings[second] = run.sightings[second], run.sightings[first]


def two_at_once(run: Evidence) -> None:
    run.sightings[2] = replace(run.sightings[2], beside=("d",))


def send_the_second_first(run: Evidence) -> None:
    swap(run, "d", "b")


def send_the_second_of_a_transaction_first(run: Evidence) -> None:
    swap(run, "a", "d")


def send_behind_a_blocked_head(run: Evidence) -> None:
    run.let_run.clear()


def let_it_run_too_late(run: Evidence) -> None:
    run.let_run = [(2, 6)]


def let_another_one_run(run: Evidence) -> None:
    run.let_run = [(1, 4)]


def send_before_the_other_ended(run: Evidence) -> None:
    run.ended[4] = 0


def send_after_a_failure(run: Evidence) -> None:
    run.sent[3] = replace(run.sent[3], after=[2])


def keep_what_is_doomed(run: Evidence) -> None:
    run.responses[4] = replace(run.responses[4], state="failed")


def cancel_what_is_not_doomed(run: Evidence) -> None:
    run.sent[4] = replace(run.sent[4], after=[1])


def expire_without_a_time(run: Evidence) -> None:
    run.sent[5] = replace(run.sent[5], not_after=None)


def be_calm(run: Evidence) -> None:
    """Nothing fails where nothing goes wrong."""
    run.calm = True
    run.sightings[1] = replace(run.sightings[1], status=200)
    run.responses[1] = answered(2, "d")
    run.operations[1] = ("INSERT", 2, "succeeded")
    run.attempts[1] = Attempt(2, 1, "succeeded")
    run.sent[4] = replace(run.sent[4], after=[1, 99])
    run.failed = {5}


def send_too_early(run: Evidence) -> None:
    be_calm(run)
    run.sent[3] = replace(run.sent[3], not_before=17.0)


def send_too_late(run: Evidence) -> None:
    be_calm(run)
    run.sent[3] = replace(run.sent[3], not_after=13.0)


def send_too_many_at_once(run: Evidence) -> None:
    run.sightings[5] = replace(run.sightings[5], at_once=orders.CONCURRENCY + 1)


def send_too_many_in_a_time(run: Evidence) -> None:
    be_calm(run)
    run.sightings += [run.sightings[5]] * (orders.BURST + orders.RATE)


def test_a_calm_run_has_no_violations() -> None:
    run = evidence()
    be_calm(run)
    assert check(run) == []


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (two_at_once, "order"),
        (send_the_second_first, "order"),
        (send_the_second_of_a_transaction_first, "order"),
        (send_behind_a_blocked_head, "order"),
        (let_it_run_too_late, "order"),
        (let_another_one_run, "order"),
        (send_before_the_other_ended, "order"),
        (send_after_a_failure, "order"),
        (keep_what_is_doomed, "order"),
        (cancel_what_is_not_doomed, "wrong outcome"),
        (expire_without_a_time, "time"),
        (send_too_early, "time"),
        (send_too_late, "time"),
        (send_too_many_at_once, "limit"),
        (send_too_many_in_a_time, "limit"),
    ],
)
def test_the_checker_finds(fault: Callable[[Evidence], None], kind: str) -> None:
    run = evidence()
    fault(run)
    assert kind in {violation.kind for violation in check(run)}


def lose_an_attempt(run: Evidence) -> None:
    run.attempts[1:2] = [Attempt(2, 1, "lost"), Attempt(2, 2, "failed")]
    run.responses[1] = replace(run.responses[1], attempts=2)


@pytest.mark.parametrize("fault", [two_at_once, send_the_second_first])
def test_what_was_lost_with_a_worker_may_come_late(fault: Callable[[Evidence], None]) -> None:
    run = evidence()
    lose_an_attempt(run)
    fault(run)
    assert [v for v in check(run) if v.kind == "order" and v.subject == "d"] == []


def test_what_outlives_a_crash_may_be_there_at_once() -> None:
    run = evidence()
    send_too_many_at_once(run)
    run.upsets = [14.0]
    assert check(run) == []
