"""Rounds of made-up requests, each compared with what a strict server got."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from servers.made_requests import CANARY, Case, batches
from servers.strict import Strict
from servers.wanted import Refused, Wanted, compare, wanted

# `make fuzz` gives other numbers. A seed makes the same cases only while the code stays the same,
# since hypothesis takes constants from it.
CASES = int(os.environ.get("FUZZ_CASES", "20000"))
SQL_CASES = max(2000, CASES // 10)
SEED = int(os.environ.get("FUZZ_SEED", "20260101"))

# Examples in a round. With more, hypothesis makes most of them by copying parts of one example.
ROUND = 10
TIMEOUT = 10_000


class Tally:
    """How many different cases there were, and what came of them."""

    def __init__(self) -> None:
        self.sent: set[int] = set()
        self.refused: set[int] = set()

    def __len__(self) -> int:
        return len(self.sent) + len(self.refused)

    def __str__(self) -> str:
        return f"{len(self.sent)} sent, {len(self.refused)} refused"


@dataclass(frozen=True, slots=True)
class Asked:
    """The result of one request.

    expected: what must reach the server; None where the call must raise.
    refusal: how it raised; outcome: where its answer will be.
    """

    case: Case
    expected: Wanted | None
    refusal: Exception | None
    outcome: Any


def ask_all(
    batch: list[Case], port: int, typed: bool, ask: Callable[[Case], Any], error: type[Exception]
) -> list[Asked]:
    asked = []
    for case in batch:
        expected, refusal, outcome = None, None, None
        with contextlib.suppress(Refused):
            expected = wanted(case, port, typed)
        try:
            outcome = ask(case)
        except error as raised:
            refusal = raised
        asked.append(Asked(case, expected, refusal, outcome))
    return asked


def compare_all(
    asked: list[Asked], answers: dict[int, tuple[int, str]], server: Strict, tally: Tally
) -> None:
    """Each request has arrived or was refused, and the server got no other.

    answers: by the request's place, its status, and the number that the server gave it or what went
    wrong.
    """
    received, faults = server.take()
    assert faults == []
    by_serial = {str(got.serial): got for got in received}
    for place, one in enumerate(asked):
        case, expected = one.case, one.expected
        if one.refusal is not None:
            assert expected is None, (case, str(one.refusal))
            check_refusal(case, one.refusal)
            tally.refused.add(hash(case))
        else:
            assert expected is not None, f"not refused: {case}"
            status, serial = answers[place]
            assert status == 200, (case, serial)
            compare(case, expected, by_serial.pop(serial))
            tally.sent.add(hash(case))
    assert not by_serial, f"more than was asked for: {by_serial}"


def check_refusal(case: Case, refusal: Any) -> None:
    """A refusal is PostgreSQL's error of a wrong argument, and tells no value of a header."""
    assert refusal.sqlstate in ("22023", "23502"), (case, str(refusal))
    diag = getattr(refusal, "diag", refusal)
    told = [getattr(diag, name) for name in dir(diag) if not name.startswith("_")]
    assert CANARY not in f"{refusal}{told}", case


def fuzz(
    hosts: st.SearchStrategy[str], count: int, run: Callable[[list[Case], Tally], None]
) -> Tally:
    """Have hypothesis make different cases until there are that many; the same ones for a seed."""
    tally = Tally()
    rounds = random.Random(SEED)
    started = time.monotonic()
    print(f"seed {SEED}")
    while len(tally) < count:

        @seed(rounds.getrandbits(64))
        @settings(
            max_examples=ROUND,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(batch=batches(hosts))
        def round(batch: list[Case]) -> None:
            run(batch, tally)

        round()
    print(f"{tally}, in {time.monotonic() - started:.1f} s")
    assert len(tally.sent) >= count / 2
    assert len(tally.refused) >= count / 10
    return tally
