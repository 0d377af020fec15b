"""Ways to break HTTP/1.1: heads, bodies, codings, ends, uploads, slowness, redirects."""

from __future__ import annotations

import asyncio
import functools
import gzip
import os
import struct
import zlib

import brotlicffi  # type: ignore[import-untyped]

from servers.way import (
    AS_IT_CAME,
    BAD_CODING,
    BROKEN_OFF,
    CHUNKED,
    FINE,
    LATE,
    MIB,
    NOT_HTTP,
    NOTHING,
    OK,
    PARTIAL,
    POISON,
    TOO_LONG,
    TOO_LONG_ON_THE_WIRE,
    TOO_MANY_HEADERS,
    UP_TO_THE_FAULT,
    WAYS,
    WEIRD,
    ZEROS,
    Outcome,
    Peer,
    Way,
    answers,
    chunk,
    fails,
    way,
    ways,
    with_length,
)

# ---- the head


@way(TOO_MANY_HEADERS.beside(200))
async def endless_header_line(peer: Peer) -> None:
    await peer.send(OK, b"X-Endless: ")
    await peer.flood(b"x")


@way(TOO_MANY_HEADERS.beside(200))
async def endless_header_name(peer: Peer) -> None:
    await peer.send(OK)
    await peer.flood(b"x")


@way(TOO_MANY_HEADERS.beside(200))
async def million_headers(peer: Peer) -> None:
    await peer.send(OK)
    await peer.flood(b"a:b\r\n", 5_000_000)
    await peer.send(b"\r\n")


@way(TOO_MANY_HEADERS.beside(200))
async def many_long_headers(peer: Peer) -> None:
    await peer.send(OK)
    await peer.flood(b"X-Long: " + b"x" * 1000 + b"\r\n")


@way(TOO_MANY_HEADERS.beside(200))
async def endless_folding(peer: Peer) -> None:
    await peer.send(OK, b"X-Folded: x\r\n")
    await peer.flood(b" x\r\n")


@way(TOO_MANY_HEADERS)
async def huge_status_line(peer: Peer) -> None:
    await peer.send(b"HTTP/1.1 200 ")
    await peer.flood(b"x")


@way(TOO_MANY_HEADERS)
async def flood_of_100(peer: Peer) -> None:
    await peer.flood(b"HTTP/1.1 100 Continue\r\n\r\n")


@way(TOO_MANY_HEADERS)
async def flood_of_103(peer: Peer) -> None:
    await peer.flood(b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n")


@way(TOO_MANY_HEADERS.beside(200, "ok"))
async def trailer_flood(peer: Peer) -> None:
    await peer.send(CHUNKED, b"\r\n", chunk(b"ok"), b"0\r\n")
    await peer.flood(b"X-Trailer: x\r\n")


@way(TOO_MANY_HEADERS.beside(200, "ok"))
async def endless_trailer_line(peer: Peer) -> None:
    await peer.send(CHUNKED, b"\r\n", chunk(b"ok"), b"0\r\nX-Trailer: ")
    await peer.flood(b"x")


ways(
    WEIRD,
    {
        "nul-in-status-line": b"HTTP/1.1 200 O\x00K\r\nContent-Length: 2\r\n\r\nok",
        "switching-protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n"
        b"Connection: Upgrade\r\n\r\n" + POISON,
    },
)
# No reader can tell where the body begins and ends: the status and the headers so far are kept.
ways(
    WEIRD.beside(200),
    {
        "nul-in-value": OK + b"X-Nul: a\x00b\r\nContent-Length: 2\r\n\r\nok",
        "nul-in-name": OK + b"X-\x00Nul: a\r\nContent-Length: 2\r\n\r\nok",
        "header-without-colon": OK + b"nonsense\r\nContent-Length: 2\r\n\r\nok",
        "negative-length": OK + b"Content-Length: -2\r\n\r\nok",
        "length-of-letters": OK + b"Content-Length: two\r\n\r\nok",
        "length-with-letters": OK + b"Content-Length: 2x\r\n\r\nok",
        "signed-length": OK + b"Content-Length: +2\r\n\r\nok",
        "hex-length": OK + b"Content-Length: 0x2\r\n\r\nok",
        "empty-length": OK + b"Content-Length:\r\n\r\nok",
        "length-beyond-64-bits": OK + b"Content-Length: 18446744073709551618\r\n\r\nok",
        "length-beyond-any": OK + b"Content-Length: " + b"9" * 500 + b"\r\n\r\nok",
        "conflicting-lengths": OK + b"Content-Length: 2\r\nContent-Length: 6\r\n\r\nok" + POISON,
        "list-of-lengths": OK + b"Content-Length: 2, 6\r\n\r\nok" + POISON,
    },
)
ways(
    NOT_HTTP,
    {
        "http-0-9": b"<html>this is how it was in 1991</html>",
        "no-http": b"\x00\x01\x02\x03\r\n\r\n",
        "line-feeds-only": b"\r\n\r\n\r\n",
        "http-2-frames": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes(18),
        "icy": b"ICY 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "rtsp": b"RTSP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "status-of-two-digits": b"HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok",
        "status-of-four-digits": b"HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nok",
        "status-of-letters": b"HTTP/1.1 abc OK\r\nContent-Length: 2\r\n\r\nok",
        "negative-status": b"HTTP/1.1 -20 OK\r\nContent-Length: 2\r\n\r\nok",
        "status-000": b"HTTP/1.1 000 OK\r\nContent-Length: 2\r\n\r\nok",
        "version-9-9": b"HTTP/9.9 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "version-of-letters": b"HTTP/x.y 200 OK\r\nContent-Length: 2\r\n\r\nok",
    },
)
ways(
    answers().newer(WEIRD.beside(200)),
    {"bare-carriage-return": OK + b"X-A: b\rContent-Length: 9\r\nContent-Length: 2\r\n\r\nok"},
)
ways(
    answers(),
    {
        "same-length-twice": OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        "length-and-chunked": CHUNKED + b"Content-Length: 6\r\n\r\n" + chunk(b"ok") + b"0\r\n\r\n",
        "bare-line-feeds": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        "no-reason": b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok",
        "http-1-0": b"HTTP/1.0 200 OK\r\n\r\nok",
        "no-length": OK + b"\r\nok",
        "chunked-and-http-1-0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunk(b"ok")
        + b"0\r\n\r\n",
        "interim-answers": b"HTTP/1.1 102 Processing\r\nContent-Encoding: gzip\r\n\r\n"
        b"HTTP/1.1 103 Early Hints\r\nContent-Length: 9\r\n\r\n" + FINE,
        "length-with-zeros": OK + b"Content-Length: 0000000000000000000002\r\n\r\nok",
        "latin-1-in-headers": OK + b"X-Text: gr\xfcn \xff\xfe\r\nContent-Length: 2\r\n\r\nok",
        "http-in-lower-case": b"http/1.1 200 ok\r\nContent-Length: 2\r\n\r\nok",
    },
)
ways(answers(status=999), {"status-999": b"HTTP/1.1 999 ?\r\nContent-Length: 2\r\n\r\nok"})


# ---- the body


@way(PARTIAL.beside(200, "12345"))
async def short_body(peer: Peer) -> None:
    await peer.send(OK, b"Content-Length: 100\r\n\r\n", b"12345")


@way(TOO_LONG_ON_THE_WIRE.beside(200, "x{10000,}"))
async def endless_body(peer: Peer) -> None:
    await peer.send(OK, b"\r\n")
    await peer.flood(b"x")


@way(TOO_LONG_ON_THE_WIRE.beside(200, "x{10000,}"))
async def endless_chunks(peer: Peer) -> None:
    await peer.send(CHUNKED, b"\r\n")
    await peer.flood(chunk(b"x" * 1000))


@way(TOO_LONG_ON_THE_WIRE.beside(200, "[xy]{10000,}"))
async def endless_chunks_of_a_byte(peer: Peer) -> None:
    await peer.send(CHUNKED, b"\r\n")
    await peer.flood(chunk(b"x"))


@way(TOO_LONG_ON_THE_WIRE.beside(200, "[xy]{10000,}"))
async def endless_chunks_of_two_bytes(peer: Peer) -> None:
    await peer.send(CHUNKED, b"\r\n")
    await peer.flood(chunk(b"xy"))


@way(TOO_LONG_ON_THE_WIRE.beside(200, "x{10000,}"))
async def one_endless_chunk(peer: Peer) -> None:
    await peer.send(CHUNKED, b"\r\n7fffffffffffffff\r\n")
    await peer.flood(b"x")


@way(TOO_LONG_ON_THE_WIRE.beside(200, "x{10000,}"))
async def announced_flood(peer: Peer) -> None:
    await peer.send(OK, b"Content-Length: 1000000000000\r\n\r\n")
    await peer.flood(b"x")


@way(TOO_LONG_ON_THE_WIRE.beside(200))
async def chunk_extension_flood(peer: Peer) -> None:
    await peer.send(CHUNKED, b"\r\n2;x=")
    await peer.flood(b"x")


ways(
    BROKEN_OFF.beside(200),
    {
        f"chunk-size-{name}": CHUNKED + b"\r\n" + size + b"\r\nok\r\n0\r\n\r\n"
        for name, size in {
            "beyond-64-bits": b"10000000000000002",
            "of-64-bits": b"ffffffffffffffff",
            "of-63-bits": b"8000000000000002",
            "negative": b"-2",
            "signed": b"+2",
            "in-hex": b"0x2",
            "of-letters": b"zz",
            "empty": b"",
            "behind-a-blank": b" 2",
            "of-many-zeros": b"0" * 5000 + b"2",
        }.items()
    },
)
ways(
    BROKEN_OFF.beside(200, "ok"),
    {
        "chunk-longer-than-said": CHUNKED + b"\r\n2\r\nokok\r\n0\r\n\r\n",
        "chunk-without-end": CHUNKED + b"\r\n2\r\nok0\r\n\r\n",
        "nul-in-trailer": CHUNKED + b"\r\n" + chunk(b"ok") + b"0\r\nX: a\x00b\r\n\r\n",
    },
)
ways(
    PARTIAL.beside(200, "ok"),
    {
        "cut-in-a-chunk": CHUNKED + b"\r\n64\r\nok",
        "cut-in-a-chunk-size": CHUNKED + b"\r\n" + chunk(b"ok") + b"1",
        "cut-before-the-last-chunk": CHUNKED + b"\r\n" + chunk(b"ok"),
        "cut-in-the-last-chunk": CHUNKED + b"\r\n" + chunk(b"ok") + b"0\r\n",
        "cut-in-the-trailers": CHUNKED + b"\r\n" + chunk(b"ok") + b"0\r\nX: y\r\n",
    },
)
ways(
    answers(),
    {
        "chunk-extensions": CHUNKED + b'\r\n2;a=b;c="d;e"\r\nok\r\n0;f\r\n\r\n',
        "trailers": CHUNKED + b"\r\n" + chunk(b"ok") + b"0\r\nX-Trailer: y\r\n\r\n",
        "poison-behind-the-body": FINE + POISON,
        "poison-behind-the-chunks": CHUNKED + b"\r\n" + chunk(b"ok") + b"0\r\n\r\n" + POISON,
    },
)
ways(
    fails("Unrecognized or bad HTTP Content or Transfer-Encoding", "Weird server reply").beside(
        200
    ),
    {
        "chunked-twice": CHUNKED + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(b"ok"),
        "chunked-twice-in-one-field": OK
        + b"Transfer-Encoding: chunked, chunked\r\n\r\n"
        + chunk(b"ok"),
        "unknown-transfer-coding": OK + b"Transfer-Encoding: foo\r\n\r\nok",
        "transfer-coding-not-last": OK
        + b"Transfer-Encoding: chunked, foo\r\n\r\n"
        + chunk(b"ok")
        + b"0\r\n\r\n",
    },
)


@way(answers("", 204))
async def body_with_204(peer: Peer) -> None:
    await peer.send(b"HTTP/1.1 204 No Content\r\nContent-Length: 43\r\n\r\n" + POISON)


@way(answers("", 304))
async def body_with_304(peer: Peer) -> None:
    await peer.send(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 43\r\n\r\n" + POISON)


@way(answers("", 204))
async def chunks_with_204(peer: Peer) -> None:
    await peer.send(
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
        chunk(POISON),
        b"0\r\n\r\n",
    )


@way(answers(""), method="HEAD")
async def body_with_head(peer: Peer) -> None:
    await peer.send(OK, b"Content-Length: 43\r\n\r\n" + POISON)


# ---- encoded bodies


@functools.cache
def zeros_as_gzip(mebibytes: int) -> bytes:
    """A thousand to one, made of one block that is repeated."""
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = 0
    for _ in range(mebibytes):
        checksum = zlib.crc32(bytes(MIB), checksum)
    size = struct.pack("<II", checksum, (mebibytes << 20) & 0xFFFFFFFF)
    header = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
    return header + block * mebibytes + zlib.compressobj(9, wbits=-15).flush() + size


@functools.cache
def zeros_as_brotli(mebibytes: int) -> bytes:
    packer = brotlicffi.Compressor(quality=5)
    parts = [packer.compress(bytes(MIB)) for _ in range(mebibytes)]
    return b"".join(parts) + bytes(packer.finish())


@functools.cache
def bombs() -> dict[str, tuple[bytes, str]]:
    """Body and Content-Encoding; each would be a quarter of a gibibyte and more."""
    one = zeros_as_gzip(256)
    two = gzip.compress(zeros_as_gzip(1024))
    return {
        "gzip": (one, "gzip"),
        "deflate": (zlib.compress(bytes(64 * MIB), 9), "deflate"),
        # In Python each character of it takes four bytes.
        "wide-text": (gzip.compress("\U0001f600".encode() + b"x" * 64 * MIB), "gzip"),
        "br": (zeros_as_brotli(256), "br"),
        "gzip-twice": (two, "gzip, gzip"),
        "gzip-three-times": (gzip.compress(two), "gzip, gzip, gzip"),
        "br-of-gzip": (bytes(brotlicffi.compress(one)), "gzip, br"),
        "gzip-of-br": (gzip.compress(zeros_as_brotli(256)), "br, gzip"),
        "three-codings": (
            zlib.compress(gzip.compress(zeros_as_brotli(256))),
            "br, gzip, deflate",
        ),
    }


def _bomb(name: str, content: str = ZEROS) -> None:
    async def serve(peer: Peer) -> None:
        body, coding = bombs()[name]
        await peer.send(with_length(body, f"Content-Encoding: {coding}"))

    async def in_chunks(peer: Peer) -> None:
        body, coding = bombs()[name]
        await peer.send(CHUNKED, f"Content-Encoding: {coding}\r\n\r\n".encode())
        for start in range(0, len(body), 1000):
            await peer.send(chunk(body[start : start + 1000]))
        await peer.send(b"0\r\n\r\n")

    # A body that is too long on the wire as well may end with either error.
    WAYS[f"bomb-{name}"] = Way(f"bomb-{name}", TOO_LONG.beside(200, content), serve)
    WAYS[f"bomb-{name}-in-chunks"] = Way(
        f"bomb-{name}-in-chunks", TOO_LONG.beside(200, content), in_chunks
    )


for _name in (
    "gzip",
    "deflate",
    "br",
    "gzip-twice",
    "gzip-three-times",
    "br-of-gzip",
    "gzip-of-br",
    "three-codings",
):
    _bomb(_name)
_bomb("wide-text", ".{1,4}x{10000,}")


# The client has not asked for this coding: if it undoes it, it may count the wrong bytes.
@way(Outcome(200, ".*", error=f"{TOO_LONG.text}|{TOO_LONG_ON_THE_WIRE.text}|{BAD_CODING.text}"))
async def bomb_as_transfer_coding(peer: Peer) -> None:
    await peer.send(OK, b"Transfer-Encoding: gzip, chunked\r\n\r\n")
    await peer.send(chunk(zeros_as_gzip(256)), b"0\r\n\r\n")


@way(TOO_LONG_ON_THE_WIRE.beside(200))
async def gzip_of_nothing(peer: Peer) -> None:
    """Empty blocks: bytes on the wire that never become a byte of the body."""
    packer = zlib.compressobj(9, wbits=31)
    block = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    await peer.send(CHUNKED, b"Content-Encoding: gzip\r\n\r\n", chunk(block))
    await peer.flood(chunk(b"\x00\x00\x00\xff\xff" * 3000))


@way(TOO_LONG_ON_THE_WIRE.beside(200))
async def endless_gzip_name(peer: Peer) -> None:
    """The file's name in the header of gzip has no end."""
    await peer.send(OK, b"Content-Encoding: gzip\r\n\r\n")
    await peer.send(b"\x1f\x8b\x08\x08\x00\x00\x00\x00\x00\xff")
    await peer.flood(b"x")


@way(TOO_LONG_ON_THE_WIRE.beside(200, ".*"))
async def noise_as_gzip(peer: Peer) -> None:
    """No fewer bytes on the wire than decoded."""
    packer = zlib.compressobj(0, wbits=31)
    noise = os.urandom(MIB)
    await peer.send(OK, b"Content-Encoding: gzip\r\n\r\n")
    for _ in range(64):
        await peer.send(packer.compress(noise) + packer.flush(zlib.Z_SYNC_FLUSH))


_GZIP = gzip.compress(b"ok" * 1000)
_BAD_CHECKSUM = _GZIP[:-8] + bytes(4) + _GZIP[-4:]
_BROTLI = bytes.fromhex("8b0080") + b"ok\x03"
# The part of a broken body that was decoded; its length depends on the decoder.
ways(
    UP_TO_THE_FAULT.beside(200, "(ok)*o?"),
    {
        "truncated-gzip": with_length(_GZIP[:-12], "Content-Encoding: gzip"),
        "truncated-deflate": with_length(
            zlib.compress(b"ok" * 1000)[:-8], "Content-Encoding: deflate"
        ),
    },
)
ways(
    UP_TO_THE_FAULT.beside(200, "(ok){1000}"),
    {
        "truncated-gzip-trailer": with_length(_GZIP[:-3], "Content-Encoding: gzip"),
        "bad-gzip-checksum": with_length(_BAD_CHECKSUM, "Content-Encoding: gzip"),
        "gzip-with-garbage-behind": with_length(_GZIP + b"garbage", "Content-Encoding: gzip"),
    },
)
ways(
    AS_IT_CAME.beside(200, "ok"),
    {
        "unknown-coding": with_length(b"ok", "Content-Encoding: unheard-of"),
        "coding-none": with_length(b"ok", "Content-Encoding: none"),
        "coding-identity-and-unknown": with_length(b"ok", "Content-Encoding: identity, foo"),
        "coding-in-quotes": with_length(b"ok", 'Content-Encoding: "gzip"'),
        "coding-with-a-parameter": with_length(b"ok", "Content-Encoding: gzip;q=1"),
        "coding-of-a-charset": with_length(b"ok", "Content-Encoding: UTF-8"),
        "codings-without-end": with_length(b"ok", "Content-Encoding: " + "gzip, " * 2000 + "gzip"),
        "many-codings": with_length(b"ok", *["Content-Encoding: gzip"] * 500),
    },
)
ways(
    AS_IT_CAME.beside(200, "(ok){1000}"),
    {
        f"plain-named-{name}".replace(", ", "-"): with_length(
            b"ok" * 1000, f"Content-Encoding: {name}"
        )
        for name in ("gzip", "x-gzip", "deflate", "br", "zstd", "gzip, gzip", "br, deflate")
    },
)
ways(
    AS_IT_CAME.beside(200, "(\\[1\\]){1000}"),
    {
        # Bits that are taken for compressed ones for a while
        f"json-named-{name}": with_length(b"[1]" * 1000, f"Content-Encoding: {name}")
        for name in ("gzip", "deflate", "br")
    },
)
# This body is not text: it is stored in content_bytes.
ways(
    AS_IT_CAME.beside(200, ".*"),
    {
        "unknown-coding-in-a-list": with_length(_GZIP, "Content-Encoding: unheard-of, gzip"),
        # Nothing comes of its beginning.
        "truncated-br": with_length(_BROTLI[:3], "Content-Encoding: br"),
        "gzip-named-br": with_length(_GZIP, "Content-Encoding: br"),
        "gzip-named-deflate": with_length(_GZIP, "Content-Encoding: deflate"),
        "noise-named-br": with_length(b"\xff" * 1000, "Content-Encoding: br"),
        "noise-named-deflate": with_length(b"\xff" * 1000, "Content-Encoding: deflate"),
    },
)
ways(
    answers(),
    {
        "br": with_length(_BROTLI, "Content-Encoding: br"),
        "no-coding": with_length(b"ok", "Content-Encoding:"),
        "coding-identity": with_length(b"ok", "Content-Encoding: identity"),
        "identity-of-gzip": with_length(gzip.compress(b"ok"), "Content-Encoding: gzip, identity"),
        "coding-twice-over": with_length(
            gzip.compress(gzip.compress(b"ok")),
            "Content-Encoding: gzip",
            "Content-Encoding: x-gzip",
        ),
    },
)

# ---- ends before the end


ways(
    NOTHING,
    {
        "cut-in-the-status-line": b"HTTP/1.1 20",
        "cut-after-100": b"HTTP/1.1 100 Continue\r\n\r\n",
    },
)
ways(
    fails("Failure when receiving data from the peer", "Transferred a partial file").beside(200),
    {
        "cut-after-the-status-line": OK,
        "cut-in-the-headers": OK + b"X-Half: 1",
        "cut-after-the-headers": OK + b"X-Whole: 1\r\n",
    },
)


@way(NOTHING)
async def closed_at_once(peer: Peer) -> None:
    pass


@way(NOTHING)
async def half_closed(peer: Peer) -> None:
    peer.writer.write_eof()
    await peer.gone()


def _reset_after(name: str, data: bytes, outcome: Outcome) -> None:
    async def serve(peer: Peer) -> None:
        await peer.send(data)
        # Bytes that have not been sent yet would be lost with the reset.
        while peer.writer.transport.get_write_buffer_size():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        peer.reset()

    WAYS[name] = Way(name, outcome, serve)


for _name, _data, _outcome in (
    ("reset-after-the-request", b"", BROKEN_OFF),
    ("reset-in-the-status-line", b"HTTP/1.1 20", BROKEN_OFF),
    ("reset-after-100", b"HTTP/1.1 100 Continue\r\n\r\n", BROKEN_OFF),
    ("reset-in-the-headers", OK + b"X-Half: 1", BROKEN_OFF.beside(200)),
    ("reset-after-the-headers", OK + b"Content-Length: 100\r\n\r\n", BROKEN_OFF.beside(200)),
    ("reset-in-the-body", OK + b"Content-Length: 9\r\n\r\nhalf", BROKEN_OFF.beside(200, "half")),
    ("reset-in-a-chunk", CHUNKED + b"\r\n64\r\nhalf", BROKEN_OFF.beside(200, "half")),
    (
        "reset-before-the-last-chunk",
        CHUNKED + b"\r\n" + chunk(b"ok"),
        BROKEN_OFF.beside(200, "ok"),
    ),
    ("reset-without-a-length", OK + b"\r\nhalf", BROKEN_OFF.beside(200, "half")),
    (
        "reset-in-gzip",
        OK + b"Content-Encoding: gzip\r\nContent-Length: 100\r\n\r\n" + _GZIP[:20],
        BROKEN_OFF.beside(200, "(ok)*o?"),
    ),
):
    _reset_after(_name, _data, _outcome)

# ---- uploads, each at a port of its own: a POST that meets a connection which the server is about
# to close is not repeated


@way(answers("", 413), method="POST", own_port=True, size=MIB)
async def early_answer(peer: Peer) -> None:
    """An answer before the body has been read, and the rest of it is never read."""
    await peer.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
    await asyncio.sleep(1)
    peer.reset()


@way(answers("", 413), method="POST", own_port=True, size=MIB)
async def early_answer_and_close(peer: Peer) -> None:
    await peer.send(
        b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )
    peer.writer.write_eof()
    await peer.gone()


# On a kept connection libcurl does not say how it ended, and a POST is not sent again.
@way(
    fails(
        "Failed sending data to the peer",
        "Failure when receiving data from the peer",
        "Server returned nothing (no headers, no data)",
    ),
    method="POST",
    own_port=True,
    size=8 * MIB,
)
async def reset_in_the_upload(peer: Peer) -> None:
    await peer.reader.readexactly(100_000)
    peer.reset()


@way(LATE, method="POST", own_port=True, size=50 * MIB)
async def upload_never_read(peer: Peer) -> None:
    peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
    # Longer than the client waits; what it has sent hides that it is gone.
    await asyncio.sleep(3)
    peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
    await peer.gone()


@way(answers(), method="POST", own_port=True, size=MIB, keeps=True)
async def upload_read(peer: Peer) -> None:
    await peer.read_body()
    await peer.send(FINE)


# ---- slowness


@way(LATE)
async def silence(peer: Peer) -> None:
    await peer.gone()


def _drip(name: str, before: bytes, data: bytes, outcome: Outcome) -> None:
    async def serve(peer: Peer) -> None:
        await peer.send(before)
        await peer.drip(data)

    WAYS[name] = Way(name, outcome, serve)


for _name, _before, _data, _outcome in (
    ("drip-of-the-status-line", b"", b"HTTP/1.1 200 O", LATE),
    ("drip-of-a-header", OK, b"X-Drip: 1", LATE.beside(200)),
    ("drip-of-the-body", OK + b"Content-Length: 100000\r\n\r\n", b"x", LATE.beside(200, "x+")),
    ("drip-without-a-length", OK + b"\r\n", b"x", LATE.beside(200, "x+")),
    ("drip-of-a-chunk", CHUNKED + b"\r\nffff\r\n", b"x", LATE.beside(200, "x+")),
    ("drip-of-a-chunk-size", CHUNKED + b"\r\n", b"2;x", LATE.beside(200)),
    (
        "drip-of-trailers",
        CHUNKED + b"\r\n" + chunk(b"ok") + b"0\r\n",
        b"X-Drip: x",
        LATE.beside(200, "ok"),
    ),
    ("silence-in-the-headers", OK + b"X-A: b\r\n", b"x", LATE.beside(200)),
):
    _drip(_name, _before, _data, _outcome)


@way(LATE.beside(200))
async def drip_of_headers(peer: Peer) -> None:
    await peer.send(OK)
    while True:
        await asyncio.sleep(0.02)
        await peer.send(b"X-Drip: 1\r\n")


@way(LATE.beside(200, "(ok)*o?"))
async def drip_of_gzip(peer: Peer) -> None:
    await peer.send(OK, b"Content-Encoding: gzip\r\n\r\n", _GZIP[:10])
    while True:
        await peer.send(b"\x00\x00\x00\xff\xff")
        await asyncio.sleep(0.02)


@way(LATE)
async def drip_of_100(peer: Peer) -> None:
    while True:
        await asyncio.sleep(0.02)
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")


@way(LATE.beside(200, "ok"))
async def end_that_never_comes(peer: Peer) -> None:
    """All of the body, without a length, on a connection that stays open."""
    await peer.send(OK, b"\r\nok")
    await peer.gone()


# ---- redirects


@way(fails("Number of redirects hit maximum amount").beside(302), keeps=True)
async def redirects_without_end(peer: Peer) -> None:
    await peer.send(
        b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nX-Long: " + b"x" * 5000 + b"\r\n"
        b"Location: " + peer.target.encode() + b"/x\r\n\r\n"
    )


@way(fails("redirect to an invalid or unsupported URL").beside(302), keeps=True)
async def redirect_to_nonsense(peer: Peer) -> None:
    await peer.send(
        b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: http://[::\xff\x01]:99999/\r\n\r\n"
    )


@way(TOO_LONG_ON_THE_WIRE.beside(302, "x{10000,}"))
async def redirect_with_an_endless_body(peer: Peer) -> None:
    await peer.send(b"HTTP/1.1 302 Found\r\nLocation: /fine\r\n\r\n")
    await peer.flood(b"x")


# ---- without a request


# The outcome depends on which side is quicker.
@way(
    fails("Failure when receiving data from the peer", "Couldn't connect to server",
          "Failed sending data to the peer"),
    own_port=True,
)  # fmt: skip
async def reset_at_the_door(peer: Peer) -> None:
    peer.reset()


@way(NOTHING, own_port=True)
async def closed_at_the_door(peer: Peer) -> None:
    peer.writer.write_eof()
    await peer.gone()


@way(NOT_HTTP, own_port=True)
async def banner(peer: Peer) -> None:
    """Another protocol's server, which speaks first."""
    await peer.send(b"SSH-2.0-OpenSSH_9.2\r\n")
    await peer.gone()


@way(TOO_LONG_ON_THE_WIRE.beside(200, "x{10000,}"), own_port=True)
async def flood_at_the_door(peer: Peer) -> None:
    await peer.send(OK, b"\r\n")
    await peer.flood(b"x")
