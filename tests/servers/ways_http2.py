"""Ways to break TLS and HTTP/2 (RFC 9113), by hand."""

from __future__ import annotations

import asyncio
import functools
import struct
from collections.abc import Callable

from servers.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    field,
    frame,
)
from servers.way import (
    BROKEN_OFF,
    FINE,
    LATE,
    MIB,
    NO_TLS,
    NOT_HTTP,
    NOTHING,
    OK,
    TOO_LONG,
    TOO_LONG_ON_THE_WIRE,
    TOO_MANY_HEADERS,
    ZEROS,
    Outcome,
    Peer,
    Serve,
    answers,
    fails,
    way,
)
from servers.ways_http1 import bombs

# ---- TLS


@way(NO_TLS, own_port=True, scheme="https")
async def clear_where_tls_is_spoken(peer: Peer) -> None:
    await peer.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    await peer.gone()


@way(NOT_HTTP, own_port=True)
async def tls_where_clear_is_spoken(peer: Peer) -> None:
    """A TLS server answers a request in clear text with a fatal alert."""
    await peer.reader.readexactly(1)
    await peer.send(b"\x15\x03\x01\x00\x02\x02\x46")


@way(LATE, own_port=True, scheme="https")
async def silence_in_the_handshake(peer: Peer) -> None:
    await peer.gone()


@way(LATE, own_port=True, scheme="https")
async def drip_of_the_handshake(peer: Peer) -> None:
    await peer.drip(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc\x03\x03")


@way(NO_TLS, own_port=True, scheme="https")
async def alert(peer: Peer) -> None:
    await peer.send(b"\x15\x03\x03\x00\x02\x02\x28")
    await peer.gone()


# GnuTLS keeps a message of up to 16 MB.
@way(NO_TLS, own_port=True, scheme="https", alone=True)
async def flood_in_the_handshake(peer: Peer) -> None:
    await peer.flood(b"\x16\x03\x03\x40\x00" + b"\x02\xff\xff\xff" * 4096)


@way(
    fails("SSL connect error", "Couldn't connect to server"),
    own_port=True,
    scheme="https",
)
async def reset_in_the_handshake(peer: Peer) -> None:
    await peer.send(b"\x16\x03\x03\x40\x00\x02\x00")
    await asyncio.sleep(0.02)
    peer.reset()


@way(NO_TLS, own_port=True, scheme="https")
async def closed_in_the_handshake(peer: Peer) -> None:
    await peer.send(b"\x16\x03\x03\x40\x00\x02\x00")


@way(
    fails("SSL peer certificate or SSH remote key was not OK"),
    own_port=True,
    tls="unknown",
    scheme="https",
)
async def unknown_authority(peer: Peer) -> None:
    await peer.send(FINE)


@way(BROKEN_OFF.beside(200, "half"), own_port=True, tls="1.1", scheme="https")
async def end_without_goodbye(peer: Peer) -> None:
    """The body ends with the connection, and TLS does not say so: anybody may have cut it."""
    await peer.reader.readuntil(b"\r\n\r\n")
    await peer.send(OK, b"\r\nhalf")
    await asyncio.sleep(0.02)
    peer.writer.transport.abort()


@way(TOO_LONG_ON_THE_WIRE.beside(200, "x{10000,}"), own_port=True, tls="1.1", scheme="https")
async def endless_body_over_tls(peer: Peer) -> None:
    await peer.reader.readuntil(b"\r\n\r\n")
    await peer.send(OK, b"\r\n")
    await peer.flood(b"x")


@way(NOTHING.newer(LATE), own_port=True, tls="2", scheme="https", alone=True)
async def http_1_where_2_was_agreed_on(peer: Peer) -> None:
    await peer.send(FINE)
    await peer.gone()


# ---- HTTP/2 (RFC 9113), by hand


def h2(outcome: Outcome) -> Callable[[Serve], Serve]:
    """A way over HTTP/2, for one request after another; an error of ours ends the connection."""

    def made(serve: Serve) -> Serve:
        @functools.wraps(serve)
        async def greeted(peer: Peer) -> None:
            # One stream at a time
            await peer.send(frame(SETTINGS, struct.pack("!HI", 3, 1)))
            await peer.reader.readexactly(24)
            while True:
                await peer.next_stream()
                await serve(peer)

        way(outcome, own_port=True, tls="2", scheme="https", alone=True)(greeted)
        return serve

    return made


H2_BROKEN = fails(
    "Server returned nothing (no headers, no data)", "Transferred a partial file",
    "Error in the HTTP2 framing layer", "Stream error in the HTTP/2 framing layer",
    "Failure when receiving data from the peer", "Failed sending data to the peer",
)  # fmt: skip


# The library for HTTP/2 may stop before our limit does.
H2_FLOODED = Outcome(
    None, "|".join((TOO_LONG_ON_THE_WIRE.text, TOO_MANY_HEADERS.text, H2_BROKEN.text))
)


@h2(LATE)
async def h2_silence(peer: Peer) -> None:
    await peer.gone()


@h2(LATE.beside(200, "x+"))
async def h2_drip(peer: Peer) -> None:
    await peer.send(peer.head())
    while True:
        await peer.send(frame(DATA, b"x", 0, peer.stream))
        await asyncio.sleep(0.02)


@h2(TOO_LONG_ON_THE_WIRE.beside(200, "x{10000,}"))
async def h2_endless_data(peer: Peer) -> None:
    await peer.send(peer.head())
    await peer.flood(frame(DATA, b"x" * 16384, 0, peer.stream), 8 * MIB)


@h2(TOO_LONG.beside(200, ZEROS))
async def h2_bomb(peer: Peer) -> None:
    body, coding = bombs()["gzip-twice"]
    await peer.send(peer.head(field(b"content-encoding", coding.encode())))
    await peer.send(frame(DATA, body, END_STREAM, peer.stream))


@h2(TOO_MANY_HEADERS.beside(200))
async def h2_many_headers(peer: Peer) -> None:
    await peer.send(peer.head(*[field(b"x-long", b"x" * 1000)] * 15, flags=0))
    more = frame(CONTINUATION, field(b"x-long", b"x" * 1000) * 15, 0, peer.stream)
    await peer.send(
        more, frame(CONTINUATION, b"", END_HEADERS, peer.stream), frame(DATA, b"ok", 0, peer.stream)
    )


@h2(TOO_MANY_HEADERS.beside(200))
async def h2_headers_of_a_table(peer: Peer) -> None:
    """One long field, kept in the table, and then a byte for each time it comes again."""
    await peer.send(
        peer.head(field(b"x-long", b"x" * 3000, keep=True), b"\xbe" * 12),
        frame(DATA, b"ok", 0, peer.stream),
    )


H2_TOO_MANY_HEADERS = Outcome(None, f"{H2_BROKEN.text}|{TOO_MANY_HEADERS.text}")


# The library for HTTP/2 has a limit of its own, at 64 KB.
@h2(H2_TOO_MANY_HEADERS.newer(H2_TOO_MANY_HEADERS.beside(200)))
async def h2_bomb_of_headers(peer: Peer) -> None:
    """Forty megabytes of fields in sixteen kilobytes."""
    await peer.send(peer.head(field(b"x-long", b"x" * 3000, keep=True), b"\xbe" * 13000))


@h2(H2_FLOODED.newer(H2_FLOODED.beside(200)))
async def h2_endless_continuation(peer: Peer) -> None:
    await peer.send(peer.head(flags=0))
    await peer.flood(frame(CONTINUATION, field(b"x", b"y") * 100, 0, peer.stream))


@h2(H2_FLOODED.newer(H2_FLOODED.beside(200)))
async def h2_empty_continuations(peer: Peer) -> None:
    await peer.send(peer.head(flags=0))
    await peer.flood(frame(CONTINUATION, b"", 0, peer.stream))


@h2(H2_FLOODED)
async def h2_flood_of_103(peer: Peer) -> None:
    early = b"\x08\x03103" + field(b"link", b"</x>; rel=preload")
    await peer.flood(frame(HEADERS, early, END_HEADERS, peer.stream))


@h2(H2_FLOODED)
async def h2_flood_of_settings(peer: Peer) -> None:
    """Each wants an acknowledgement, and none of these is read."""
    await peer.flood(frame(SETTINGS, struct.pack("!HI", 3, 100)))


@h2(H2_FLOODED)
async def h2_flood_of_pings(peer: Peer) -> None:
    await peer.flood(frame(PING, bytes(8)))


# libcurl 7.88 reads frames that carry nothing for as long as they come as fast as it reads, in one
# call that nothing outside can end: all others stand still meanwhile. From a server on the same
# machine that is 2 s for 256 MB, so here it is 8 MB; a network has pauses that end such a call.
SWALLOWED = 8 * MIB


@h2(H2_FLOODED.beside(200))
async def h2_flood_of_empty_data(peer: Peer) -> None:
    await peer.send(peer.head())
    await peer.flood(frame(DATA, b"", 0, peer.stream), SWALLOWED)
    raise ConnectionAbortedError


@h2(H2_FLOODED.beside(200))
async def h2_flood_of_padding(peer: Peer) -> None:
    await peer.send(peer.head())
    await peer.flood(frame(DATA, b"\xff" + bytes(255), 8, peer.stream), SWALLOWED)
    raise ConnectionAbortedError


@h2(H2_FLOODED)
async def h2_flood_of_unknown_frames(peer: Peer) -> None:
    await peer.flood(frame(0xEE, b"x" * 1000))


@h2(H2_BROKEN.beside(200, "half"))
async def h2_reset_of_the_stream(peer: Peer) -> None:
    await peer.send(
        peer.head(),
        frame(DATA, b"half", 0, peer.stream),
        frame(RST_STREAM, struct.pack("!I", 2), 0, peer.stream),
    )


@h2(H2_BROKEN)
async def h2_goaway(peer: Peer) -> None:
    await peer.send(frame(GOAWAY, struct.pack("!II", 0, 1)))
    raise ConnectionAbortedError


@h2(H2_BROKEN.beside(200, "half"))
async def h2_closed(peer: Peer) -> None:
    await peer.send(peer.head(), frame(DATA, b"half", 0, peer.stream))
    raise ConnectionAbortedError


@h2(H2_BROKEN.beside(200, "half"))
async def h2_cut(peer: Peer) -> None:
    await peer.send(peer.head(), frame(DATA, b"half", 0, peer.stream))
    await asyncio.sleep(0.02)
    peer.reset()
    raise ConnectionAbortedError


@h2(H2_BROKEN.beside(200))
async def h2_frame_too_large(peer: Peer) -> None:
    await peer.send(
        peer.head(field(b"content-length", b"20000")), frame(DATA, bytes(20000), 0, peer.stream)
    )


@h2(answers("").newer(H2_BROKEN.beside(200)))
async def h2_frame_too_large_and_no_length(peer: Peer) -> None:
    """A body that breaks off is taken for the whole of it.

    libcurl 7.88 ends the session as it should, and then says that all is well, as after a polite
    GOAWAY: without a length there is nothing to tell the two by. Newer ones say what it was.
    """
    await peer.send(peer.head(), frame(DATA, bytes(20000), 0, peer.stream))


@h2(H2_BROKEN.newer(H2_BROKEN.beside(200), LATE))
async def h2_garbage(peer: Peer) -> None:
    await peer.send(b"\xff" * 1000)


@h2(H2_BROKEN.newer(H2_BROKEN.beside(200), LATE))
async def h2_bad_table(peer: Peer) -> None:
    """A field that stands nowhere."""
    await peer.send(peer.head(b"\xff\xff\xff\x7f"))


@h2(LATE)
async def h2_push(peer: Peer) -> None:
    promise = struct.pack("!I", 2) + b"\x82\x84\x87" + field(b":authority", b"127.0.0.1")
    await peer.send(frame(PUSH_PROMISE, promise, END_HEADERS, peer.stream))
    await peer.gone()


@h2(H2_BROKEN.beside(200, "(12345)?"))
async def h2_short_body(peer: Peer) -> None:
    await peer.send(
        peer.head(field(b"content-length", b"100")), frame(DATA, b"12345", END_STREAM, peer.stream)
    )


@h2(H2_BROKEN.beside(200, "(ok)?"))
async def h2_long_body(peer: Peer) -> None:
    await peer.send(
        peer.head(field(b"content-length", b"2")), frame(DATA, b"okok", END_STREAM, peer.stream)
    )


@h2(H2_BROKEN.newer(H2_BROKEN.beside(200), answers()))
async def h2_line_feed_in_a_value(peer: Peer) -> None:
    await peer.send(
        peer.head(field(b"x-a", b"b\r\nx-c: d")), frame(DATA, b"ok", END_STREAM, peer.stream)
    )


@h2(H2_BROKEN)
async def h2_no_status(peer: Peer) -> None:
    fields = frame(HEADERS, field(b"x-a", b"b"), END_HEADERS, peer.stream)
    await peer.send(fields, frame(DATA, b"ok", END_STREAM, peer.stream))
