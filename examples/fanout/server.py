"""Subscribers behind one host, which allows 20 requests a second and 5 at once."""

from __future__ import annotations

import time

from examples.serve import Handler, run

RATE, BURST = 20, 5
came: list[float] = []


class Subscribers(Handler):
    def serve(self) -> None:
        if self.path == "/summary":
            self.answer(200, {"messages": len(came), "too_fast": too_fast()})
            return
        came.append(time.monotonic())
        gone = self.path == "/subscribers/3"
        self.answer(410 if gone else 200, "gone" if gone else "thank you")


def too_fast() -> bool:
    """Whether more came in some stretch of time than burst and rate allow."""
    slack = 0.05
    return any(
        last - first + 1 > BURST + RATE * (came[last] - came[first] + slack)
        for first in range(len(came))
        for last in range(first, len(came))
    )


if __name__ == "__main__":
    run(Subscribers)
