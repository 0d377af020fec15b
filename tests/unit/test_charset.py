"""Labels of charsets and their meaning, without a server."""

from __future__ import annotations

import encodings

import pytest

from pgnet.wire import charset
from pgnet.wire.charset import read_text

WIDE = ("utf_16_le", "utf_16_be")


@pytest.mark.parametrize("label", sorted(charset._CODECS))
def test_every_label_is_a_codec(label: str) -> None:
    """In any case, with quotes or without; the whole of a body, and a body that was cut."""
    codec = charset._CODECS[label]
    body = "Az 09".encode(codec if codec in WIDE else "ascii")
    for written in (label, label.upper(), f'"{label}"'):
        kind = f"text/plain; charset={written}"
        assert read_text(body, kind) == "Az 09"
        assert read_text(body, kind, is_whole=False) == "Az 09"


@pytest.mark.parametrize(
    ("codec", "body", "whole"),
    [("utf-8", "☃☃".encode(), "☃"), ("gb18030", "汉汉".encode("gb18030"), "汉"),
     ("shift_jis", "日日".encode("cp932"), "日"), ("utf-16le", "ëë".encode("utf-16-le"), "ë"),
     ("iso-8859-1", b"\x80\x80", "€")],
)  # fmt: skip
def test_a_body_that_was_cut_within_a_character(codec: str, body: bytes, whole: str) -> None:
    assert read_text(body[:-1], f"text/plain; charset={codec}", is_whole=False) == whole


@pytest.mark.parametrize("kind", ["text/plain; charset=", "application/xml;charset=x-"])
def test_no_label_is_remembered(kind: str) -> None:
    """Python's own look-up keeps for ever what it has not found."""
    encodings.search_function("utf_8")
    cache = getattr(encodings, "_cache")  # noqa: B009
    before = len(cache)
    for number in range(1000):
        with pytest.raises(LookupError):
            read_text(b"x", f"{kind}none{number}")
    assert len(cache) == before
