"""Content codings undone: whole, in pieces, cut short, with something behind, and as bombs."""

from __future__ import annotations

import gzip
import os
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress

import brotlicffi  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgnet.wire.decoding import BodyTooLarge, Decoder


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


def take(names: str, data: bytes, step: int = 16384, limit: int = 1 << 30) -> tuple[bytes, Decoder]:
    """Return the part of a body that is kept, and the decoder, which has the fault."""
    decoder = Decoder(names, limit)
    made: list[bytes] = []
    for start in range(0, len(data), step):
        for piece in decoder.decode(data[start : start + step]):
            if piece is None:
                made.clear()
            else:
                made.append(piece)
    instead = decoder.finish()
    return b"".join(made) if instead is None else instead, decoder


def decode(names: str, data: bytes, step: int = 16384, limit: int = 1 << 30) -> bytes:
    """A body that is well."""
    made, decoder = take(names, data, step, limit)
    assert (decoder.fault, decoder.as_it_came) == (None, False)
    return made


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
    words = b"".join(
        [b"some words that are long enough to be worth it, %d. " % n for n in range(99)]
    )
    encoded = encode(words)
    for end in range(1, len(encoded)):
        made, decoder = take(name, encoded[:end])
        assert decoder.fault == "the encoded body is cut short"
        assert words.startswith(made) or (decoder.as_it_came and made == encoded[:end])
    assert len(made) > 100


@each_coding
def test_something_behind(name: str, encode: Callable[[bytes], bytes]) -> None:
    for step in (1, 1 << 20):
        made, decoder = take(name, encode(BODY) + b"x", step)
        assert (made, decoder.as_it_came) == (BODY, False)
        assert decoder.fault


@each_coding
@given(st.binary(min_size=1, max_size=300))
def test_noise(name: str, encode: Callable[[bytes], bytes], noise: bytes) -> None:
    """Noise is decoded by chance, or kept as it came: there is always something to show."""
    with suppress(BodyTooLarge):
        made, decoder = take(name, noise, limit=MEGABYTE)
        if decoder.as_it_came:
            assert made == noise


@each_coding
@pytest.mark.parametrize("step", [1, 3, 1000, 1 << 20])
@pytest.mark.parametrize("body", [b'{"a": [1, 2]}' * 90, "Zoë ☃ ".encode() * 90, b"ok", b"<p>\n"])
def test_text_that_was_never_encoded(
    name: str, encode: Callable[[bytes], bytes], body: bytes, step: int
) -> None:
    """That holds, too, where its bits can be taken for compressed ones."""
    made, decoder = take(name, body, step)
    assert (made, decoder.as_it_came) == (body, True)
    assert decoder.fault


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_up_to_the_fault(name: str) -> None:
    """zlib itself gives nothing of the piece in which it meets the fault."""
    body = bytes(range(256)) * 500
    encoded = bytearray(ENCODERS[name][1](os.urandom(50_000) + body))
    encoded[40_000] ^= 0xFF
    for step in (1, 777, 1 << 20):
        made, decoder = take(name, bytes(encoded), step)
        assert decoder.fault
        assert not decoder.as_it_came
        assert len(made) > 30_000


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
    assert take("br, gzip, deflate", encoded)[1].fault == "a bad compressed body"
    assert decode("identity", BODY) == BODY
    assert decode("", BODY) == BODY


@pytest.mark.parametrize("names", ["zstd", "compress", "gzip, nonsense", "gzip;q=1", "*"])
def test_unknown(names: str) -> None:
    made, decoder = take(names, BODY)
    assert (made, decoder.as_it_came, decoder.fault) == (BODY, True, "unknown content coding")
    with pytest.raises(BodyTooLarge):
        take(names, BODY, limit=len(BODY) - 1)


def test_too_many() -> None:
    assert Decoder(", ".join(["gzip"] * 5), 1).fault is None
    assert Decoder(", ".join(["gzip"] * 6), 1).fault == "too many content codings"


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
            made += len(piece or b"")

    with pytest.raises(BodyTooLarge):
        count()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made == 8 * MEGABYTE
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
