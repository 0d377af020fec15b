"""A search through one text, with a bound on its steps."""

from __future__ import annotations

from collections.abc import Iterator

# Steps that the search through one text may take: a second or two.
_MOST_STEPS = 1_000_000


class TooMuch(Exception):
    """The search takes longer than any text should cost."""


class Search:
    """A search through one text, which does not take for ever."""

    __slots__ = ("_left", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._left = _MOST_STEPS

    def spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise TooMuch

    def places(self, part: str) -> Iterator[int]:
        """Where a part stands."""
        place = self.text.find(part)
        while place >= 0:
            self.spend(1)
            yield place
            place = self.text.find(part, place + 1)
