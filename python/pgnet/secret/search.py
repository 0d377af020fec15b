"""A search through one text, which ends after a bounded number of steps.

Masks search what servers send, and a server may send a text that is made to keep a search busy.
"""

from __future__ import annotations

from collections.abc import Iterator

# How many steps the search through one text may take: these take a second or two.
_MOST_STEPS = 1_000_000


class TooMuch(Exception):
    """The search would take more steps than any text may cost."""


class Search:
    """One text, and the steps that are left to search it."""

    __slots__ = ("_left", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._left = _MOST_STEPS

    def spend(self, steps: int) -> None:
        """Count steps; raises TooMuch when there are too many."""
        self._left -= steps
        if self._left < 0:
            raise TooMuch

    def places(self, part: str) -> Iterator[int]:
        """The places where a part begins."""
        place = self.text.find(part)
        while place >= 0:
            self.spend(1)
            yield place
            place = self.text.find(part, place + 1)
