"""wait_until: tests wait for the thing itself, and do not sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    fetch: Callable[[], T],
    predicate: Callable[[T], bool] = bool,
    description: str = "the awaited value",
    timeout: float = 10.0,
    interval: float = 0.01,
    sleep: Callable[[float], object] = time.sleep,
) -> T:
    """Call `fetch` until `predicate` holds for what it returns, and return that.

    `timeout` and `interval` are seconds. `sleep` is gevent.sleep where gevent's loop must go on.
    Raises TimeoutError that names the description and the last value seen.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = fetch()
        if predicate(value):
            return value
        if time.monotonic() >= deadline:
            raise TimeoutError(
                f"{description}: not within {timeout:g} s; last value seen: {value!r}"
            )
        sleep(interval)
