"""Content codings undone: whole, in pieces, cut short, with something behind, and as bombs."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress

import brotlicffi  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgnet.decoding import BodyTooLarge, Decoder, DecodingError


def bare_deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return deflater.compress(data) + deflater.flush()


ENCODERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("X-GZip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "bare deflate": ("deflate", bare_deflate),
    "br": ("br", brotlicffi.compress),
}
each_coding = pytest.mark.parametrize(("name", "encode"), ENCODERS.values(), ids=ENCODERS)
MEGABYTE = 1 << 20
BODY = bytes(range(256)) * 1000


def decode(names: str, data: bytes, step: int = 16384, limit: int = 1 << 30) -> bytes:
    decoder = Decoder(names, limit)
    made = [
        piece
        for start in range(0, len(data), step)
        for piece in decoder.decode(data[start : start + step])
    ]
    decoder.finish()
    return b"".join(made)


@each_coding
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_whole(name: str, encode: Callable[[bytes], bytes], step: int) -> None:
    for body in (b"", b"x", BODY):
        assert decode(name, encode(body), step) == body


@each_coding
@given(st.binary(max_size=5000), st.integers(1, 100), st.integers(1, 50))
def test_any_body(
    name: str, encode: Callable[[bytes], bytes], body: bytes, times: int, step: int
) -> None:
    assert decode(name, encode(body * times), step * 37) == body * times


@each_coding
def test_cut_short(name: str, encode: Callable[[bytes], bytes]) -> None:
    encoded = encode(b"some words that are long enough to be worth it " * 20)
    for end in range(1, len(encoded)):
        with pytest.raises(DecodingError):
            decode(name, encoded[:end])


@each_coding
def test_something_behind(name: str, encode: Callable[[bytes], bytes]) -> None:
    for step in (1, 1 << 20):
        with pytest.raises(DecodingError):
            decode(name, encode(BODY) + b"x", step)


@each_coding
@given(st.binary(min_size=1, max_size=300))
def test_noise(name: str, encode: Callable[[bytes], bytes], noise: bytes) -> None:
    """It is decoded by chance, or it is an error of ours; nothing else comes out."""
    with suppress(DecodingError, BodyTooLarge):
        decode(name, noise, limit=MEGABYTE)


@each_coding
def test_no_body_is_one_in_any_coding(name: str, encode: Callable[[bytes], bytes]) -> None:
    assert decode(name, b"") == b""


def test_members_one_behind_another() -> None:
    encoded = gzip.compress(b"one ") + gzip.compress(b"") + gzip.compress(b"two")
    for step in (1, 5, 1000):
        assert decode("gzip", encoded, step) == b"one two"


def test_several_codings() -> None:
    encoded = brotlicffi.compress(gzip.compress(zlib.compress(BODY)))
    assert decode("deflate, gzip,identity , br", encoded) == BODY
    with pytest.raises(DecodingError):
        decode("br, gzip, deflate", encoded)
    assert decode("identity", BODY) == BODY
    assert decode("", BODY) == BODY


@pytest.mark.parametrize("names", ["zstd", "compress", "gzip, nonsense", "gzip;q=1", "*"])
def test_unknown(names: str) -> None:
    with pytest.raises(DecodingError, match="unknown"):
        Decoder(names, 1)


def test_too_many() -> None:
    Decoder(", ".join(["gzip"] * 5), 1)
    with pytest.raises(DecodingError, match="too many"):
        Decoder(", ".join(["gzip"] * 6), 1)


@each_coding
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_a_bomb_costs_no_memory(name: str, encode: Callable[[bytes], bytes], twice: bool) -> None:
    bomb = encode(b"\0" * (64 * MEGABYTE))
    names = name
    if twice:
        bomb, names = encode(bomb), f"{name}, {name}"
    assert len(bomb) < MEGABYTE / 8
    decoder = Decoder(names, 8 * MEGABYTE)
    tracemalloc.start()
    # A sum, which keeps none of the pieces.
    made = 0

    def count() -> None:
        nonlocal made
        for piece in decoder.decode(bomb):
            made += len(piece)

    with pytest.raises(BodyTooLarge):
        count()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made <= 8 * MEGABYTE
    assert peak < MEGABYTE


def test_the_limit_holds_for_what_is_in_between_too() -> None:
    """A body that is small in the end, and huge on the way there."""
    body = zlib.compress(b"\0" * (64 * MEGABYTE))
    padded = gzip.compress(body + b"\0" * (64 * MEGABYTE))
    with pytest.raises(BodyTooLarge):
        decode("gzip", padded, limit=MEGABYTE)


def test_exactly_the_limit() -> None:
    assert decode("gzip", gzip.compress(BODY), limit=len(BODY)) == BODY
    with pytest.raises(BodyTooLarge):
        decode("gzip", gzip.compress(BODY), limit=len(BODY) - 1)
