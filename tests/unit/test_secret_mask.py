"""Secrets in answers are masked, in whatever form they stand there."""

from __future__ import annotations

import base64
import gzip
import html
import json
import quopri
import random
import re
import string
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from pgnet.secret.mask import Mask
from pgnet.secret.value import (
    sensitive,
)
from servers.canary import CANARY, found_in

HOOKS = "https://hooks.example/services/"

# ---- masks


def js_escape(text: str) -> str:
    """Escape as JavaScript that goes into HTML is."""
    return "".join(c if c.isalnum() and c.isascii() else f"\\u{ord(c):04x}" for c in text)


def dump(text: str) -> str:
    return json.dumps(text)[1:-1]


ENCODERS: dict[str, Callable[[str], str]] = {
    "plain": lambda text: text,
    "quote": quote,
    "quote all": lambda text: quote(text, safe=""),
    "quote little": lambda text: quote(text, safe=string.punctuation.replace("%", "")),
    "quote_plus": quote_plus,
    "quote in lower case": lambda text: re.sub("%..", lambda m: m[0].lower(), quote(text, "")),
    "quote twice": lambda text: quote(quote(text, ""), ""),
    "quote thrice": lambda text: quote_plus(quote(quote(text, ""), "")),
    "every byte": lambda text: "".join(f"%{byte:02X}" for byte in text.encode()),
    "JSON": dump,
    "JSON as text": lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    "JSON of PHP": lambda text: dump(text).replace("/", "\\/"),
    "JSON in JSON": lambda text: dump(dump(text)),
    "JSON in JSON in JSON": lambda text: dump(dump(dump(text))),
    "JSON in HTML": lambda text: html.escape(dump(text)),
    "HTML": html.escape,
    "HTML twice": lambda text: html.escape(html.escape(text)),
    "HTML text": lambda text: html.escape(text, quote=False),
    "HTML numbers": lambda text: "".join(f"&#{ord(c)};" for c in text),
    "HTML for what is not ASCII": lambda text: text.encode("ascii", "xmlcharrefreplace").decode(),
    "hexadecimal": lambda text: text.encode().hex(),
    "HEXADECIMAL": lambda text: text.encode().hex().upper(),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 of URLs": lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
    "base64 without =": lambda text: base64.b64encode(text.encode()).decode().rstrip("="),
    "Python": lambda text: repr(text.encode())[2:-1],
    "UTF-8 as Latin-1": lambda text: text.encode().decode("latin-1"),
    "UTF-8 as Latin-1 in JSON": lambda text: dump(text.encode().decode("latin-1")),
}


CHARACTERS = st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="*")


VALUES = st.one_of(
    st.text(string.ascii_letters + string.digits + "_-", min_size=8, max_size=60),
    st.text(
        string.ascii_letters + string.punctuation.replace("*", "") + " ", min_size=8, max_size=40
    ),
    st.text(CHARACTERS, min_size=8, max_size=30),
)


BACKSLASHES = "\\" * 100


SPECIAL = "sk/live \"a\\b'&<é>+%~ü=:?#{}€\U0001f511x"


@pytest.mark.parametrize("name", ENCODERS)
@settings(max_examples=150, deadline=None)
@given(
    value=VALUES, before=st.text(CHARACTERS, max_size=10), after=st.text(CHARACTERS, max_size=10)
)
@example(value=SPECIAL, before="", after="")
@example(value=CANARY, before="{", after="}")
@example(value='"' * 8, before='"', after='"')
@example(value="\\" * 8, before="\\", after="\\")
@example(value="%" * 8, before="%", after="25")
@example(value="a" * 9, before="a", after="a")
def test_no_form_is_left(name: str, value: str, before: str, after: str) -> None:
    encode = ENCODERS[name]
    whole = encode(value)
    mask = Mask([value])
    for text in (whole, f"{before}{whole}{after}"):
        masked = mask.text(text)
        assert whole not in masked
        assert "***" in masked
        data = text.encode()
        masked_data = mask.bytes(data)
        assert whole.encode() not in masked_data
        assert b"***" in masked_data


@settings(max_examples=300, deadline=None)
@given(value=VALUES, before=st.binary(max_size=40), after=st.binary(max_size=40), url=st.booleans())
def test_no_form_is_left_within_base64(value: str, before: bytes, after: bytes, url: bool) -> None:
    """Less than a character of a value is left at each end, within other text."""
    alphabet = b"-_" if url else b"+/"
    text = base64.b64encode(before + value.encode() + after, alphabet).decode()
    masked = Mask([value]).text(text)
    assert "***" in masked
    inner = value.encode()[1:-1]
    for part in masked.split("***"):
        for shift in range(4):
            piece = part.rstrip("=")[shift:]
            decoded = base64.b64decode(piece[: len(piece) // 4 * 4], alphabet)
            assert inner not in decoded or inner in before + after


@settings(deadline=None)
@given(value=VALUES, before=st.binary(max_size=20), after=st.binary(max_size=20))
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "latin-1"])
def test_bytes(encoding: str, value: str, before: bytes, after: bytes) -> None:
    data = value.encode(encoding, "ignore")
    assume(data.decode(encoding) == value)
    masked = Mask([value]).bytes(before + data + after)
    assert data not in masked
    assert b"***" in masked


@settings(deadline=None)
@given(
    values=st.lists(VALUES, min_size=1, max_size=4),
    text=st.text(CHARACTERS, max_size=40),
    data=st.data(),
)
def test_values_that_overlap(values: list[str], text: str, data: st.DataObject) -> None:
    for value in values:
        place = data.draw(st.integers(0, len(text)))
        text = text[:place] + value + text[place:]
    masked = Mask(values).text(text)
    for value in values:
        assert value not in masked


def test_what_overlaps_is_one() -> None:
    mask = Mask(["abcdefgh", "efghijkl", "abcdefgh-longer", ""])
    assert mask.text("1abcdefghijkl2") == "1***2"
    assert mask.text("abcdefgh-longer") == "***"
    assert mask.text("abcdefghabcdefgh abcdefgh") == "*** ***"
    assert Mask(["aaaaaaaa"]).text("a" * 11) == "***"


@settings(deadline=None)
@given(st.text(string.ascii_lowercase + ' ,.{}":&%\\', max_size=300))
def test_other_text_stays(text: str) -> None:
    mask = Mask([CANARY, SPECIAL, "12345678"])
    assert mask.text(text) is text
    data = text.encode()
    assert mask.bytes(data) is data
    assert Mask([]).text(text) is text
    assert Mask([]).bytes(data) is data


def test_a_short_value_is_masked_as_it_is() -> None:
    """A short value is not looked for in forms that may be part of any text."""
    mask = Mask(["pw"])
    assert mask.text("user:pw@host cHc= 7077") == "user:***@host cHc= 7077"


# ---- masks, where each character is written in a way of its own

PERCENT = "%{:02x}".format


ESCAPERS: list[Callable[[int], str]] = [
    chr,
    chr,
    lambda code: chr(code).upper(),
    PERCENT,
    "%{:02X}".format,
    "%25{:02x}".format,
    "%252525{:02x}".format,
    "%u00{:02x}".format,
    "\\u00{:02x}".format,
    "\\u{{{:x}}}".format,
    "\\\\u00{:02X}".format,
    "\\\\\\\\x{:02x}".format,
    "\\{:03o}".format,
    "&#{};".format,
    "&#x{:x};".format,
    "&#X000{:X};".format,
    "&amp;#{};".format,
    "&amp;amp;#0{};".format,
    # one within another
    lambda code: f"%5Cu00{code:02x}",
    lambda code: f"%26%23{code}%3B",
    lambda code: f"\\u0026#{code};",
    lambda code: f"\\u0025{code:02x}",
    lambda code: f"&#37;{code:02x}",
    lambda code: "".join(f"&#{ord(c)};" for c in PERCENT(code)),
]


BREAKS = [
    "",
    "",
    "",
    "",
    " ",
    "%20",
    "\n",
    "\r\n",
    "\\n",
    "\\r\\n",
    "%0A",
    "%0d%0a",
    "&#10;",
    "\t",
    "\\u000a",
]


# A value of one digit alone also begins within the escape of its first character: "%30" and fifteen
# zeros are masked as "%3***".
PLAIN_VALUES = st.text(
    string.ascii_letters + string.digits + "_-", min_size=16, max_size=40
).filter(lambda value: len(set(value)) > 1)


@settings(max_examples=500, deadline=None)
@given(value=PLAIN_VALUES, chance=st.randoms(use_true_random=False), frame=st.booleans())
def test_characters_in_forms_of_their_own(value: str, chance: random.Random, frame: bool) -> None:
    written = ""
    for character in value:
        written += chance.choice(ESCAPERS)(ord(character)) + chance.choice(BREAKS)
    before, after = ('<a href="/x?y=1&z=%20">', "</a> \u00e9") if frame else ("", "")
    hidden = Mask([value]).text(f"{before}{written}{after}")
    assert hidden.startswith(f"{before}***")
    # A line break behind it is no part of it.
    assert hidden.endswith(after)
    assert len(hidden) <= len(f"{before}***{after}") + 6


KEY = f"sk_live_{CANARY}"


@pytest.mark.parametrize("place", range(len(KEY)))
@pytest.mark.parametrize("escape", ESCAPERS[2:])
def test_one_character_is_escaped(place: int, escape: Callable[[int], str]) -> None:
    """And the rest of the text stays as it is."""
    written = KEY[:place] + escape(ord(KEY[place])) + KEY[place + 1 :]
    for before, after in (("", ""), ("x=", "&y=%41 z\\n"), ('{"a": "\\u00e9 ', '"}\n')):
        assert Mask([KEY]).text(before + written + after) == f"{before}***{after}"


def lines(text: str, width: int, end: str) -> str:
    return end.join(text[at : at + width] for at in range(0, len(text), width))


@pytest.mark.parametrize(
    "end", ["\n", "\r\n", "\r\n ", "\\n", "\\r\\n", "%0A", "&#13;&#10;", "\n\t"]
)
@pytest.mark.parametrize("width", [1, 7, 64, 76])
@pytest.mark.parametrize("form", ["base64", "base64 of URLs", "hexadecimal", "plain"])
def test_a_form_that_is_broken_into_lines(form: str, width: int, end: str) -> None:
    value = KEY * 3  # whose base64 needs no padding
    whole = ENCODERS[form](value)
    for text in (lines(whole, width, end), f"a {lines(whole, width, end)} b"):
        assert Mask([value]).text(text) == text.replace(lines(whole, width, end), "***")


@pytest.mark.parametrize("width", [64, 76])
def test_base64_of_more_that_is_broken_into_lines(width: int) -> None:
    for shift in range(3):
        whole = base64.b64encode(b"x" * (shift + 90) + KEY.encode() + b"y" * 90).decode()
        hidden = Mask([KEY]).text(lines(whole, width, "\r\n"))
        assert "***" in hidden
        for part in hidden.split("***"):
            for cut in range(4):
                piece = "".join(part.split()).rstrip("=")[cut:]
                assert CANARY.encode() not in base64.b64decode(piece[: len(piece) // 4 * 4])


@pytest.mark.parametrize("encode", [str, base64.b64encode])
def test_quoted_printable(encode: Callable[[Any], Any]) -> None:
    whole = encode(KEY) if encode is str else encode(KEY.encode()).decode()
    for text in (
        quopri.encodestring(f"{'x' * 60} {whole} =".encode()).decode(),
        quopri.encodestring(whole.encode(), quotetabs=True).decode().replace("_", "=5F"),
        whole.replace(whole[9], f"={ord(whole[9]):02X}"),
        lines(whole, 9, "=\r\n"),
        lines(whole, 9, "=\n"),
        lines(whole, 9, "=\\r\\n"),
    ):
        hidden = Mask([KEY]).text(text)
        assert "***" in hidden
        assert whole[9:30] not in quopri.decodestring(hidden.encode()).decode()


def test_a_word_in_another_case_is_another_word() -> None:
    """A segment of a secret URL may be one: headers and headings are not to be lost for it."""
    mask = Mask(["location", "Subscribe"])
    for text in ("Location: x", "LOCATION", "subscribe to it"):
        assert mask.text(text) is text
    assert mask.text("loc%61tion lo\ncation Subscr&#105;be") == "*** *** ***"


def test_another_case() -> None:
    """A host name comes in lower case, and so may anything."""
    mask = Mask([KEY])
    for text in (KEY.lower(), KEY.upper(), f"https://{KEY.lower()}.evil.example/", KEY.swapcase()):
        assert mask.text(text) == text.replace(text[8:-14], "***") or "***" in mask.text(text)
        assert CANARY.lower() not in mask.text(text).lower()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "latin-1"])
def test_bytes_with_one_character_escaped(encoding: str) -> None:
    data = KEY.replace("C", "%43").encode(encoding)
    assert b"***" in Mask([KEY]).bytes(b"\xff\xfe\0\1" + data + b"\xe9\0")
    assert data[20:40] not in Mask([KEY]).bytes(b"\xff" + data + b"\0")


def test_values_beyond_ascii_with_one_character_escaped() -> None:
    value = "Schlüssel-für-Zoë-0123456789"
    for text in (
        f"a é {value.replace('S', '%53')} ü",
        f"a é {lines(value, 5, chr(10))} ü",
    ):
        assert "Schl" not in Mask([value]).text(text)
        assert Mask([value]).text(text)[:2] == text[:2]
        assert Mask([value]).text(text)[-2:] == text[-2:]


def test_escapes_of_other_things_stay() -> None:
    text = "a%20b%41%2525 &amp;#97; \\u0061\\\\n =3D=\r\n \\/ &lt;&#x41;"
    assert Mask([KEY]).text(text) is text
    assert Mask([KEY]).text(f"{text}{KEY}{text}") == f"{text}***{text}"


def test_masking_is_cheap() -> None:
    """A text that a server sends to keep a worker busy is replaced as a whole."""
    mask = Mask([f"sk_live_{CANARY}", SPECIAL])
    for text in ("x" * 10_000_000, "lorem ipsum dolor sit amet " * 400_000, "\\" * 10_000_000):
        began = time.process_time()
        assert mask.text(text) is text
        assert time.process_time() - began < 1
    for value, part in (
        (f"sk_live_{CANARY}", f"sk_live_{CANARY}"),
        (f"sk_live_{CANARY}", CANARY),
        (SPECIAL, SPECIAL[:-1]),
        (f'"{CANARY}', '"'),
        (f"{CANARY}\\\\\\\\x", f"{CANARY}{BACKSLASHES}"),
        ('"' * 9, '"'),
        ("!?" * 30_000, "!?"),
        ("a" * 9, "a"),
        ('{"a":"b"},' * 800, '{"a":"b"},'),
    ):
        text = part * (10_000_000 // len(part))
        began = time.process_time()
        found = Mask([value]).text(text)
        assert time.process_time() - began < 10
        assert value not in found


def test_masking_does_not_undo_what_is_packed() -> None:
    """As the documentation says: only what can be read is masked."""
    packed = gzip.compress(CANARY.encode())
    assert Mask([CANARY]).bytes(packed) == packed


# ---- what to look for


def masked(value: str, prefix: str | None, text: str) -> str:
    return Mask(sensitive(value, prefix)).text(text)


def test_the_parts_of_a_secret_url() -> None:
    value = f"{HOOKS}T0/B0/{CANARY}?token=a%20{CANARY}%26b&x=1"
    for shown in (
        value,
        f"Cannot GET /services/T0/B0/{CANARY}?token=a%20{CANARY}%26b&x=1",
        f"no such hook: {CANARY}",
        json.dumps({"args": {"token": f"a {CANARY}&b", "x": "1"}}),
        f"<p>services/T0/B0/{CANARY}</p>",
    ):
        assert CANARY not in masked(value, HOOKS, shown)
    # the prefix and what is short are no secrets
    assert masked(value, HOOKS, f"{HOOKS} T0 B0 x=1 token") == f"{HOOKS} T0 B0 x=1 token"


def test_the_parts_of_a_query() -> None:
    value = f"?key={CANARY}&user=me"
    for shown in (f"{HOOKS}?key={CANARY}&user=me", f"key={CANARY}", json.dumps({"key": CANARY})):
        assert CANARY not in masked(value, HOOKS, shown)


@pytest.mark.parametrize("password", [CANARY, f"{CANARY}@/ :%"])
@pytest.mark.parametrize("kind", ["basic", "proxy"])
def test_the_password(kind: str, password: str) -> None:
    pair = f"user:{password}"
    basic = base64.b64encode(pair.encode()).decode()
    if kind == "basic":
        value, prefix = basic, "https://h.example/"
    else:
        value, prefix = f"http://user:{quote(password, '')}@proxy.example:3128", None
    for shown in (password, pair, value, basic, json.dumps([pair]), f"Basic {basic}"):
        hidden = masked(value, prefix, shown)
        assert "***" in hidden
        assert not found_in(hidden)


def test_values_that_are_no_urls() -> None:
    assert sensitive(CANARY, "https://h.example/") == [CANARY]
    assert sensitive(CANARY, None) == [CANARY]
    # a URL that is not within its prefix cannot be set, but may be in a file
    assert sensitive(f"https://evil.example/{CANARY}", HOOKS) == [f"https://evil.example/{CANARY}"]
    assert sensitive("?\tno query", HOOKS) == ["?\tno query"]


@pytest.mark.parametrize("scheme", ["Bearer", "token", "AWS4-HMAC-SHA256"])
def test_a_token_behind_its_scheme(scheme: str) -> None:
    assert set(sensitive(f"{scheme} {CANARY}", None)) == {f"{scheme} {CANARY}", CANARY}
    mask = Mask(sensitive(f"{scheme} {CANARY}", None))
    assert mask.text(f"you sent {CANARY}") == "you sent ***"


def test_user_and_password_behind_their_scheme() -> None:
    encoded = base64.b64encode(f"zoe:{CANARY}".encode()).decode()
    assert CANARY in sensitive(f"Basic {encoded}", None)
    # words are no token
    assert sensitive("correct horse battery", None) == ["correct horse battery"]
