"""The forms in which a value may stand in a text: percent-encoded, escaped, in base64.

There are two kinds. `whole_forms` writes all characters of a value in one way, as base64 or
hexadecimal do: each form is one text to search for. In the others each character may be written in
a way of its own, so that there are too many texts to list: `pieces_of` gives, part by part, all
ways to write that part, and mask.py puts them together while it searches.
"""

from __future__ import annotations

import base64
import functools
import html.entities
import re
from collections.abc import Iterable, Iterator

from pgnet.secret.search import Search


def longest_run(value: str) -> str:
    """The longest run of letters and digits, which no usual encoding changes; may be empty."""
    runs: list[str] = re.findall(r"[A-Za-z0-9]*", value)
    return max(runs, key=len)


def whole_forms(value: str) -> Iterator[str]:
    """The forms in which all characters are written in the same way, or not one by one."""
    data = value.encode("utf-8", "surrogatepass")
    yield from base64_forms(value)
    for digits in (data.hex(), data.hex().upper()):
        pairs = re.findall("..", digits)
        yield digits
        yield "".join([f"%{pair}" for pair in pairs])
        if value.isascii():
            yield "".join([f"\\u00{pair}" for pair in pairs])
            yield "".join([f"\\x{pair}" for pair in pairs])
            yield "".join([f"&#x{pair};" for pair in pairs])
    yield "".join([f"&#{ord(character)};" for character in value])
    for encoding in ("utf-16-le", "utf-16-be"):
        yield value.encode(encoding, "surrogatepass").decode("latin-1")


def base64_forms(value: str) -> Iterator[str]:
    """The value in base64, alone and within other text."""
    data = value.encode("utf-8", "surrogatepass")
    for alphabet in (None, b"-_"):
        yield base64.b64encode(data, alphabet).decode().rstrip("=")
        # Within other text: the digits that do not depend on the text around the value.
        for offset in range(3):
            encoded = base64.b64encode(bytes(offset) + data, alphabet).decode()
            yield encoded[(offset * 8 + 5) // 6 : (offset + len(data)) * 8 // 6]


# A run of characters that no encoder changes, or one other character.
_LITERAL = re.compile(r"[A-Za-z0-9_.-]+|(?s:.)")


class Piece:
    """A part of a value in all the ways in which it may be written."""

    __slots__ = ("_by_first", "_by_last", "all")

    def __init__(self, forms: Iterable[str]) -> None:
        self.all = set(forms)
        self._by_first: dict[str, list[str]] = {}
        self._by_last: dict[str, list[str]] = {}
        for form in self.all:
            self._by_first.setdefault(form[0], []).append(form)
            self._by_last.setdefault(form[-1], []).append(form)

    def ends(self, search: Search, starts: set[int]) -> set[int]:
        """Where the piece ends, if it begins at one of these places."""
        text = search.text
        search.spend(len(starts))
        return {
            start + len(form)
            for start in starts
            for form in self._by_first.get(text[start : start + 1], ())
            if text.startswith(form, start)
        }

    def starts(self, search: Search, ends: set[int]) -> set[int]:
        """Where the piece begins, if it ends at one of these places."""
        text = search.text
        search.spend(len(ends))
        return {
            end - len(form)
            for end in ends
            if end
            for form in self._by_last.get(text[end - 1], ())
            if len(form) <= end and text.startswith(form, end - len(form))
        }


def pieces_of(text: str) -> list[Piece]:
    """A part of a value, cut into pieces that may each be written in a way of its own."""
    return [
        forms_of(part) if len(part) == 1 else Piece([part]) for part in re.findall(_LITERAL, text)
    ]


@functools.lru_cache(maxsize=512)
def forms_of(character: str) -> Piece:
    """One character in all the ways in which it may be written."""
    return Piece(_character_forms(character))


def _character_forms(character: str) -> Iterator[str]:
    yield character
    if character.isalnum() and character.isascii():
        return
    data = character.encode("utf-8", "surrogatepass")
    yield data.decode("latin-1")
    for octets in ([f"{byte:02X}" for byte in data], [f"{byte:02x}" for byte in data]):
        for layers in range(4):
            yield "".join([f"%{'25' * layers}{octet}" for octet in octets])
    if character == " ":
        yield "+"
    units = character.encode("utf-16-be", "surrogatepass").hex()
    escapes = [f"u{units[i : i + 4]}" for i in range(0, len(units), 4)]
    named = {"\t": "t", '"': '"', "/": "/", "'": "'"}.get(character)
    # JSON within JSON doubles each backslash, and puts one more before a quote.
    for count in (1, 2, 4, 8):
        for written in (escapes, [f"u{escape[1:].upper()}" for escape in escapes]):
            yield "".join(["\\" * count + escape for escape in written])
        if ord(character) < 256:
            yield "\\" * count + f"x{ord(character):02x}"
        if character == "\\":
            yield "\\" * count
    if named is not None:
        for count in range(1, 9):
            yield "\\" * count + named
    number = ord(character)
    entities = {f"#{number};", f"#0{number};", f"#x{number:x};", f"#x{number:X};", f"#X{number:X};"}
    entities |= {html.escape(character)[1:], _ENTITIES.get(character, "")} - {""}
    for entity in entities:
        for layers in range(3):
            form = f"&{'amp;' * layers}{entity}"
            yield form
            if named is not None:
                for count in range(1, 4):
                    yield "\\" * count + form


_ENTITIES = {"'": "apos;", "\xa0": "nbsp;"}
