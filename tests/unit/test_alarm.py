"""The alarm rings for each time it is set to, soon, and once."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from pgnet.worker.alarm import TICK, Alarm


def test_it_rings_once() -> None:
    alarm = Alarm()
    assert alarm.next == math.inf
    assert not alarm.rings(10.0**9)
    alarm.set(100.0)
    assert not alarm.rings(99.9)
    assert alarm.rings(100.0 + TICK)
    assert not alarm.rings(10.0**9)
    assert alarm.next == math.inf


def test_it_rings_for_each_time() -> None:
    alarm = Alarm()
    for at in (103.0, 101.0, 102.0):
        alarm.set(at)
    moments = (101.5, 101.6, 102.5, 102.6, 103.5, 103.6)
    assert [now for now in moments if alarm.rings(now)] == [101.5, 102.5, 103.5]


def test_what_falls_into_a_tick_rings_together() -> None:
    alarm = Alarm()
    for n in range(10_000):
        alarm.set(100.0 + n / 10_000)
    rang = 0
    while alarm.next < math.inf:
        rang += alarm.rings(alarm.next)
    assert rang <= 1 / TICK + 1


@given(st.lists(st.floats(0, 10**6), max_size=50))
def test_never_early_and_at_most_a_tick_late(times: list[float]) -> None:
    alarm = Alarm()
    for at in times:
        alarm.set(at)
    rung = []
    while alarm.next < math.inf:
        rung.append(alarm.next)
        assert alarm.rings(rung[-1])
    assert rung == sorted(set(rung))
    for at in times:
        assert any(-1e-6 <= ring - at <= TICK + 1e-6 for ring in rung)
    for ring in rung:
        assert any(-1e-6 <= ring - at <= TICK + 1e-6 for at in times)
