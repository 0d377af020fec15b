"""Masks: how secrets are kept out of what is stored of an answer.

Theory of operation
-------------------

A server may repeat the secrets that a request carried: in a header, in the body, in the URL of a
redirect; as they are, or encoded in some way. A Mask gets the values (value.py: `sensitive`) and
replaces each by ``***`` wherever it stands. There are three steps; the first costs least and finds
most, the last is seldom needed:

1. **Whole forms** (forms.py: `whole_forms`): the value in base64, in hexadecimal, in UTF-16, each
   character percent-encoded or escaped. These are texts to search for.
2. **Pieces**: the value with some characters encoded and others not, each in one of many ways:
   percent-encoded up to four times, escaped as in JSON, as in JSON within JSON, as in HTML. The
   search begins at the anchor, the longest run of letters and digits, which no usual encoding
   changes. From there `_Masked` goes both ways, as far as each next piece of the value stands there
   in one of its forms.
3. **The bare text** (unescaped.py): every escape undone, white space taken out. In it values are
   found whose letters are escaped, too, or that are broken into lines, in upper and lower case.
   Their places are then traced back to the text as it came. If a value still stands in the bare
   text of the result, the whole text is replaced.

A secret that a server has turned into anything else (encrypted, compressed, reversed, in parts) is
not found.

A server may send a text that is made to keep the search busy, and all requests of a worker share
one loop. So each search has a bound on its steps (search.py), and a text that would need more is
replaced as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pgnet.secret.forms import Piece, base64_forms, forms_of, longest_run, pieces_of, whole_forms
from pgnet.secret.search import Search, TooMuch
from pgnet.secret.unescaped import (
    QUOTED_PRINTABLE,
    is_distinct,
    is_suspicious,
    spans_of,
    standing,
    unescape,
)
from pgnet.secret.value import MIN_LENGTH

MASK = "***"


class Mask:
    """Replaces values in what a server sent, in each of their usual forms.

    longest: how many characters of an answer a value may take up.
    """

    __slots__ = ("_bare", "_values", "longest")

    def __init__(self, values: Iterable[str]) -> None:
        found = {value for value in values if value}
        # No usual form writes one character as more than 16.
        self.longest = 16 * max(map(len, found), default=0)
        # Many servers read a header's UTF-8 as Latin-1 before they do anything with it.
        found |= {value.encode().decode("latin-1") for value in found if not value.isascii()}
        self._values = [_Masked(value) for value in found]
        # The values as they stand in bare texts, each with its longest run of letters and digits.
        # Made when it is needed first, which is late: hardly any answer gets that far.
        self._bare: dict[str, bytes] | None = None

    def text(self, text: str) -> str:
        """Return the text with *** in place of the values."""
        search = Search(text)
        try:
            spans = [span for value in self._values for span in value.spans(search)]
            text = _cut(text, spans) if spans else text
            return self._bare_text(text) if len(text) >= MIN_LENGTH else text
        except TooMuch:
            return MASK

    def _bare_text(self, text: str) -> str:
        """Return the text with *** in place of what is a value in its bare text (step 3)."""
        if self._bare is None:
            forms = {bare for value in self._values for bare in value.bare_forms()}
            self._bare = {form: longest_run(form.lower()).encode("latin-1") for form in forms}
        encoded = text.encode("utf-8", "surrogatepass")
        if not self._bare or not is_suspicious(encoded, self._bare):
            return text
        # A character for each byte: so lower case is as long as upper case.
        plain: bool = text.isascii()
        data = text if plain else encoded.decode("latin-1")
        masked = data
        for quoted_printable in (False, True):
            if quoted_printable and QUOTED_PRINTABLE.search(masked) is None:
                break
            found = standing(self._bare, unescape(masked, quoted_printable))
            if not found:
                continue
            masked = _cut(masked, spans_of(masked, found, quoted_printable))
            if standing(found, unescape(masked, quoted_printable)):
                return MASK
        if masked is data:
            return text
        return masked if plain else masked.encode("latin-1").decode("utf-8", "replace")

    def bytes(self, data: bytes) -> bytes:
        """Return the bytes with *** in place of the values, in UTF-8, Latin-1 or UTF-16."""
        if not self._values:
            return data
        text = data.decode("latin-1")
        masked = self.text(text)
        return data if masked is text else masked.encode("latin-1")


def _cut(text: str, spans: list[tuple[int, int]]) -> str:
    """Return the text with one mask for each run of spans that overlap or touch."""
    pieces, end = [], 0
    last = -1
    for start, stop in sorted(spans):
        if start > last:
            pieces += [text[end:start], MASK]
        last = max(last, stop)
        end = last
    return "".join([*pieces, text[end:]])


class _Masked:
    """One value, in its whole forms and in pieces (steps 1 and 2)."""

    __slots__ = ("_anchor", "_pieces", "_value", "_whole")

    def __init__(self, value: str) -> None:
        self._value = value
        self._anchor = longest_run(value)
        # A shorter form may be part of anything.
        self._whole = {form for form in whole_forms(value) if len(form) >= MIN_LENGTH}
        self._pieces: tuple[list[Piece], list[Piece]] | None = None

    def bare_forms(self) -> Iterator[str]:
        """The forms of the value that a bare text may have."""
        data = self._value.encode("utf-8", "surrogatepass").decode("latin-1")
        for form in (data, *base64_forms(self._value), data.encode("latin-1").hex()):
            bare = unescape(form, False)
            if len(bare) >= MIN_LENGTH:
                yield bare.lower() if is_distinct(bare) else bare

    def spans(self, search: Search) -> Iterator[tuple[int, int]]:
        """Where the value stands in a text; spans may overlap."""
        for form in self._whole:
            for start in search.places(form):
                yield start, start + len(form)
        if self._anchor:
            if self._anchor not in search.text:
                return
            pivots = {self._anchor}
        else:
            pivots = forms_of(self._value[0]).all
        if self._pieces is None:
            # Made late, since hardly any answer gets here.
            begin = self._value.find(self._anchor)
            end = begin + (len(self._anchor) or 1)
            self._pieces = pieces_of(self._value[:begin])[::-1], pieces_of(self._value[end:])
        for pivot in pivots:
            for place in search.places(pivot):
                span = self._around(search, place, place + len(pivot))
                if span is not None:
                    yield span

    def _around(self, search: Search, start: int, end: int) -> tuple[int, int] | None:
        """The span of the whole value around its anchor; None where the rest is not there."""
        assert self._pieces is not None
        before, after = self._pieces
        starts, ends = {start}, {end}
        for piece in before:
            starts = piece.starts(search, starts)
            if not starts:
                return None
        for piece in after:
            ends = piece.ends(search, ends)
            if not ends:
                return None
        return min(starts), max(ends)
