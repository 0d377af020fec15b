"""Frames of HTTP/2 (RFC 9113, section 6), as servers of ours send them."""

from __future__ import annotations

import struct

DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE = 0, 1, 3, 4, 5
PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4
NO_ERROR, INTERNAL_ERROR, REFUSED_STREAM = 0, 2, 7
# HPACK (RFC 7541): `:status: 200` stands in its table; fields by name and value are not kept.
STATUS_200 = b"\x88"


def frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 0) -> bytes:
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


def field(name: bytes, value: bytes, keep: bool = False) -> bytes:
    return (b"\x40" if keep else b"\x00") + _string(name) + _string(value)


def _string(text: bytes) -> bytes:
    length = len(text)
    if length < 127:
        return bytes([length]) + text
    length -= 127
    more = b""
    while length >= 128:
        more += bytes([length & 127 | 128])
        length >>= 7
    return b"\x7f" + more + bytes([length]) + text


def fine(stream: int) -> bytes:
    return frame(HEADERS, STATUS_200, END_HEADERS, stream) + frame(DATA, b"ok", END_STREAM, stream)
