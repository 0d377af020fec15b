"""Secrets: where one may go, how it gets into a request, and how it is kept out of an answer.

A secret has a name, a value and a URL prefix. Requests hold the name only, in one of two forms:

- a header value ``{"secret": name}``, with ``"prefix": "Bearer "`` before it if need be;
- a URL ``https://host/{secret:name}?query``, as net.secret_url gives it. The value is then a whole
  URL, or a query that begins with ``?`` and belongs to the URL that the prefix is.

Worker and caller's check share this module; it imports the standard library only, and no error
that it raises holds a value.
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
    """Replaces values wherever they occur in what a server sent, in each of their usual forms.

    As they are; percent-encoded, once or more often; escaped as in JSON, and JSON in JSON; escaped
    as in HTML; in base64, alone or within other text; in hexadecimal; in UTF-16. Then again in what
    is left when every escape is undone and white space is taken out, in upper and lower case: so
    they are found where single characters are escaped, each in another way, and broken into lines.
    What a server turns into anything else (encrypted, reversed, in pieces) is not found. A text
    that is made to keep the search busy is replaced as a whole.
    """

    __slots__ = ("_bare", "_values", "longest")

    def __init__(self, values: Iterable[str]) -> None:
        found = {value for value in values if value}
        # How many characters a value may have in an answer: of one, no usual form has more than 16.
        self.longest = 16 * max(map(len, found), default=0)
        # Many servers take the UTF-8 of a header for Latin-1 before they do anything with it.
        found |= {value.encode().decode("latin-1") for value in found if not value.isascii()}
        self._values = [_Masked(value) for value in found]
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
        """Return the text with *** in place of what is a value when all escapes are undone."""
        if self._bare is None:
            forms = {bare for value in self._values for bare in value.bare_forms()}
            self._bare = {form: longest_run(form.lower()).encode("latin-1") for form in forms}
        encoded = text.encode("utf-8", "surrogatepass")
        if not self._bare or not is_suspicious(encoded, self._bare):
            return text
        # As bytes, whose lower case is as long.
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
    """The text with one mask for each run of spans that overlap or touch."""
    pieces, end = [], 0
    last = -1
    for start, stop in sorted(spans):
        if start > last:
            pieces += [text[end:start], MASK]
        last = max(last, stop)
        end = last
    return "".join([*pieces, text[end:]])


class _Masked:
    """One value: forms that are searched for whole, and others that mix character by character.

    The latter are found from the longest run of letters and digits, which no usual encoding
    touches: from there both ways as far as each next character stands there in one of its forms.
    So an answer that was made to keep the search busy costs little more than any other.
    """

    __slots__ = ("_anchor", "_pieces", "_value", "_whole")

    def __init__(self, value: str) -> None:
        self._value = value
        self._anchor = longest_run(value)
        # What is shorter may be part of anything.
        self._whole = {form for form in whole_forms(value) if len(form) >= MIN_LENGTH}
        self._pieces: tuple[list[Piece], list[Piece]] | None = None

    def bare_forms(self) -> Iterator[str]:
        """The value as it stands in a text whose escapes are undone."""
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
            # Late: hardly any answer gets here.
            begin = self._value.find(self._anchor)
            end = begin + (len(self._anchor) or 1)
            self._pieces = pieces_of(self._value[:begin])[::-1], pieces_of(self._value[end:])
        for pivot in pivots:
            for place in search.places(pivot):
                span = self._around(search, place, place + len(pivot))
                if span is not None:
                    yield span

    def _around(self, search: Search, start: int, end: int) -> tuple[int, int] | None:
        """The whole value around its part that stands there."""
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
