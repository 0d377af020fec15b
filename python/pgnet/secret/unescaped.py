"""A text with all its escapes undone and without white space, and where its characters stood.

A value whose characters are escaped one by one, each in another way, is found in such a bare text.
`unescape` makes it, `standing` says which forms it has, and `spans_of` where they stand in the text
as it came. Most texts have nothing of the kind, which `is_suspicious` tells soon.
"""

from __future__ import annotations

import bisect
import functools
import html.entities
import re
from collections.abc import Callable, Iterable, Mapping

from pgnet.secret.search import Search, TooMuch

# How many escapes are undone in one text: these take a second or two.
_MOST_ESCAPES = 3_000_000
# How often one escape may stand within another.
_MOST_ROUNDS = 8

# Escapes of ASCII characters only: others are found in their usual forms. A run of backslashes has
# become a single one before this is searched for.
_ESCAPE = re.compile(
    r"%(?:25)*(?:[uU]00)?([2-7][0-9A-Fa-f]|0[0-9A-Da-d])"
    r"|\\(?:[uU](?:0000)?00|[uU]\{0{0,6}|[xX]\{?)([2-7][0-9A-Fa-f]|0[0-9A-Da-d])\}?"
    r"|\\([01][0-7][0-7])"
    r"|\\([^0-9A-Za-z])"
    r"|\\[bfnrtv]"
    r"|&(?:amp;)*#0{0,9}([1-9][0-9]{1,2})(?![0-9]);?"
    r"|&(?:amp;)*#[xX]0{0,9}([1-9A-Fa-f]|[2-7][0-9A-Fa-f])(?![0-9A-Fa-f]);?"
    r"|&(?:amp;)*([A-Za-z]{2,10});"
)
# A text in which a letter, a digit, white space or the beginning of an escape is escaped has one of
# these. Few texts do.
_ALNUM = rb"(?:3[0-9]|[46][1-9A-Fa-f]|[57][0-9Aa])"
_HINT = re.compile(
    rb"[%\\#&](?:"
    rb"(?<=%)(?:25)*(?:(?:[uU]00)?" + _ALNUM + rb"|0[9ADad]|5[Cc](?:[uU]00|[xX])|23[0-9xX])"
    rb"|(?<=\\)(?:[uU](?:0000)?00|[uU]\{0{0,6}|[xX]\{?)(?:" + _ALNUM + rb"|2[35]|5[Cc]|0[9ADad])"
    rb"|(?<=\\)[01][0-7][0-7]"
    rb"|(?<=#)0{0,9}(?:9|1[03]|3[57]|4[89]|5[0-7]|6[5-9]|[78][0-9]|9[0257-9]|1[01][0-9]|12[0-2])"
    rb"(?![0-9])"
    rb"|(?<=#)[xX]0{0,9}(?:" + _ALNUM + rb"|2[35]|5[Cc]|[9ADad])(?![0-9A-Fa-f])"
    rb"|(?<=&)(?:amp;)*(?:percnt|bsol|num|nbsp|Tab|NewLine);)"
)
_QUOTED_ALNUM = re.compile(rb"=(?:[ \t]*(?:\\r|\r)?(?:\\n|\n)|3[0-9]|[46][1-9A-F]|[57][0-9A])")
_LOWER = bytes(range(256)).lower()
_BACKSLASHES = re.compile(r"\\{2,}")
# The same characters that str.split takes for white space.
_SPACES = re.compile(r"\s+")
_NULS = re.compile(r"\0+")
QUOTED_PRINTABLE = re.compile(r"=(?:[ \t]*(?:\\r|\r)?(?:\\n|\n)|([2-7][0-9A-F]))")


def is_suspicious(data: bytes, forms: Mapping[str, bytes]) -> bool:
    """Whether the bare text may have one of the forms; for most texts this is told soon.

    forms: each with its longest run of letters and digits. Where none of these characters is
    escaped, the run stands in the text when white space is taken out.
    """
    data = data.replace(b"\0", b"")  # UTF-16 has them
    if _HINT.search(data) is not None or _has_any(data, forms.values()):
        return True
    if _QUOTED_ALNUM.search(data) is None:
        return False
    unquoted = _QUOTED_ALNUM.sub(lambda found: _unquoted_bytes(found[0]), data)
    return _has_any(unquoted, forms.values())


def _has_any(data: bytes, anchors: Iterable[bytes]) -> bool:
    if b"\\" in data:
        data = data.replace(b"\\n", b"").replace(b"\\r", b"").replace(b"\\t", b"")
    if b"%20" in data:
        data = data.replace(b"%20", b"")
    data = data.translate(_LOWER, b" \t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\\")
    return any(anchor in data for anchor in anchors)


def _unquoted_bytes(found: bytes) -> bytes:
    return bytes([int(found[1:], 16)]) if found[1:2].isdigit() else b""


def unescape(text: str, quoted_printable: bool) -> str:
    """Return the bare text of a text, each of whose characters stands for a byte.

    Raises TooMuch.
    """
    text = text.replace("\0", "")
    if quoted_printable:
        text = QUOTED_PRINTABLE.sub(_unquoted, text)
    left = _MOST_ESCAPES
    for _round in range(_MOST_ROUNDS):
        before = text
        if "\\\\" in text:
            text = _BACKSLASHES.sub(r"\\", text)
        text, count = _ESCAPE.subn(_undone, text)
        left -= count
        if left < 0:
            raise TooMuch
        text = "".join(text.split())
        if text == before:
            break
    return text


def is_distinct(form: str) -> bool:
    """Whether a form is long or has a digit, so that it can be searched for in any case.

    A short one without a digit may be a word, which in another case is part of a heading or a name.
    """
    return len(form) >= 16 or re.search("[0-9]", form) is not None


def standing(forms: Iterable[str], bare: str) -> list[str]:
    """Return the forms that stand in a bare text: distinct ones in upper and lower case."""
    lower = bare.lower()
    return [form for form in forms if form in (lower if is_distinct(form) else bare)]


def spans_of(text: str, forms: Iterable[str], quoted_printable: bool) -> list[tuple[int, int]]:
    """Return where the forms, which stand in the bare text, stand in the text.

    The steps of `unescape` are taken again, and each remembers where the characters come from.

    Raises TooMuch.
    """
    views = [_View(text)]
    views.append(views[0].without(_NULS, lambda _run: ""))
    if quoted_printable:
        views.append(views[-1].without(QUOTED_PRINTABLE, _unquoted))
    for _round in range(_MOST_ROUNDS):
        before = views[-1].text
        views.append(views[-1].without(_BACKSLASHES, lambda _run: "\\"))
        views.append(views[-1].without(_ESCAPE, _undone))
        views.append(views[-1].without(_SPACES, lambda _run: ""))
        if views[-1].text == before:
            break
    bare = views[-1].text
    folded, exact = Search(bare.lower()), Search(bare)
    spans = [
        (at, at + len(form))
        for form in forms
        for at in (folded if is_distinct(form) else exact).places(form)
    ]
    for view in reversed(views[1:]):
        spans = [(view.begin(start), view.end(stop)) for start, stop in spans]
    return spans


class _View:
    """A text after a replacement, and where its characters stood before it."""

    __slots__ = ("_ends", "_places", "_sources", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        # The places behind each replacement, now and before; and where the parts that something
        # stands for now began and ended before.
        self._places = [0]
        self._sources = [0]
        self._ends: dict[int, int] = {}

    def without(self, pattern: re.Pattern[str], replace: Callable[[re.Match[str]], str]) -> _View:
        """Return the view with everything replaced that a pattern matches."""
        pieces, end, length = [], 0, 0
        view = _View("")
        for found in pattern.finditer(self.text):
            start, stop = found.span()
            new = replace(found)
            pieces += [self.text[end:start], new]
            length += start - end + len(new)
            end = stop
            view._places.append(length)
            view._sources.append(stop)
            if new:
                view._ends[start] = stop
            if len(pieces) > 2 * _MOST_ESCAPES:
                raise TooMuch
        view.text = "".join([*pieces, self.text[end:]])
        return view

    def begin(self, place: int) -> int:
        """Where the character that stands at a place now began before."""
        at = bisect.bisect_right(self._places, place) - 1
        return self._sources[at] + place - self._places[at]

    def end(self, place: int) -> int:
        """Where the character that ends at a place now ended before."""
        last = self.begin(place - 1)
        return self._ends.get(last, last + 1)


def _undone(escape: re.Match[str]) -> str:
    return _character(escape[0])


def _unquoted(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 16)) if escape[1] else ""


@functools.lru_cache(maxsize=4096)
def _character(escape: str) -> str:
    """The character that an escape stands for; an empty text for white space."""
    found = _ESCAPE.fullmatch(escape)
    assert found is not None
    percent, code, octal, itself, decimal, hexadecimal, name = found.groups()
    if itself is not None:
        return itself
    if name is not None:
        return _NAMED.get(name, escape)
    digits = percent or code or hexadecimal
    number = int(digits, 16) if digits else int(octal, 8) if octal else int(decimal or 0)
    if number <= 0x20:
        return ""
    return chr(number) if number < 0x7F else escape


_NAMED = {
    name.removesuffix(";"): character
    for name, character in html.entities.html5.items()
    if name.endswith(";") and len(character) == 1 and "!" <= character <= "~"
} | {"nbsp": "", "Tab": "", "NewLine": ""}
