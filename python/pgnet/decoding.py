"""Content codings (RFC 9110, section 8.4.1) undone as the bytes come: gzip, deflate and br.

libcurl could do it, but it tells neither that an encoded body was cut short nor how much has come
before it was decoded. Nothing here makes more bytes at once than `_PIECE`, however small what they
are made of.
"""

from __future__ import annotations

import ctypes
import functools
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

# As many as other clients take; more of them are an attack.
_MOST = 5
_PIECE = 65536
CODINGS = ("gzip", "deflate", "br")


class DecodingError(ValueError):
    """The body is not what its Content-Encoding says, or that says what is not known."""


class BodyTooLarge(ValueError):
    """More bytes came out than may."""


class _Stage(Protocol):
    """One coding undone."""

    @property
    def finished(self) -> bool:
        """Whether the body ends here."""

    def decode(self, data: bytes) -> Iterator[bytes]:
        """What follows from some more bytes, piece by piece. Raises DecodingError."""


class Decoder:
    """Undoes the codings that a Content-Encoding names, the last one first.

    content_encoding: the field's value; repeats joined by commas.
    limit: how many bytes may come out, of each coding.

    Raises DecodingError for a coding that is not known, and for too many of them.
    """

    def __init__(self, content_encoding: str, limit: int) -> None:
        names = [name.strip().lower() for name in content_encoding.split(",")]
        names = [name for name in names if name not in ("", "identity")]
        if len(names) > _MOST:
            raise DecodingError("too many content codings")
        self._limit = limit
        self._stages = [_stage(name) for name in reversed(names)]
        self._made = [0] * len(self._stages)
        self._began = False

    def decode(self, data: bytes) -> Iterator[bytes]:
        """The decoded bytes that some more bytes give, piece by piece.

        Raises DecodingError and BodyTooLarge.
        """
        self._began = self._began or bool(data)
        return self._through(0, data)

    def _through(self, number: int, data: bytes) -> Iterator[bytes]:
        if number == len(self._stages):
            yield data
            return
        for piece in self._stages[number].decode(data):
            self._made[number] += len(piece)
            if self._made[number] > self._limit:
                raise BodyTooLarge
            yield from self._through(number + 1, piece)

    def finish(self) -> None:
        """Say that no more comes. Raises DecodingError where more should have come.

        An empty body is one in any coding: so answers to HEAD are.
        """
        if self._began and not all(stage.finished for stage in self._stages):
            raise DecodingError("the encoded body is cut short")


def _stage(name: str) -> _Stage:
    if name in ("gzip", "x-gzip"):
        return _Gzip()
    if name == "deflate":
        return _Deflate()
    if name == "br" and _brotli() is not None:
        return _Brotli()
    raise DecodingError("unknown content coding")


def _inflate(inflater: Any, data: bytes) -> Iterator[bytes]:
    piece = b""
    # Without input too, as long as it holds back what one piece had no room for.
    while not inflater.eof and (data or piece):
        try:
            piece = inflater.decompress(data, _PIECE)
        except zlib.error:
            raise DecodingError("a bad compressed body") from None
        if piece:
            yield piece
        data = inflater.unconsumed_tail


class _Gzip:
    """RFC 1952; of several members, one behind another."""

    def __init__(self) -> None:
        self._inflater: Any = zlib.decompressobj(wbits=31)

    @property
    def finished(self) -> bool:
        return bool(self._inflater.eof)

    def decode(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._inflater.eof:
                # What is no further member fails at its magic number.
                self._inflater = zlib.decompressobj(wbits=31)
            yield from _inflate(self._inflater, data)
            data = self._inflater.unused_data if self._inflater.eof else b""


class _Deflate:
    """The zlib format (RFC 1950), or bare deflate (RFC 1951), which some servers mean by it."""

    def __init__(self) -> None:
        self._inflater: Any = None
        self._head = b""

    @property
    def finished(self) -> bool:
        return self._inflater is not None and bool(self._inflater.eof)

    def decode(self, data: bytes) -> Iterator[bytes]:
        if self._inflater is None:
            self._head += data
            if len(self._head) < 2:
                return
            data = self._head
            zlib_format = data[0] & 15 == 8 and int.from_bytes(data[:2], "big") % 31 == 0
            self._inflater = zlib.decompressobj(wbits=15 if zlib_format else -15)
        if self._inflater.eof and data:
            raise DecodingError("bytes behind the compressed body")
        yield from _inflate(self._inflater, data)
        if self._inflater.unused_data:
            raise DecodingError("bytes behind the compressed body")


@functools.cache
def _brotli() -> Any:
    """Brotli's own decoder (RFC 7932), which libcurl uses too; None where it is not there.

    Python's modules for it cannot bound what they make at once.
    """
    try:
        # By its name alone: ctypes' own search starts processes.
        library = ctypes.CDLL("libbrotlidec.so.1")
    except OSError:
        return None
    pointer, size = ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t)
    library.BrotliDecoderCreateInstance.argtypes = [pointer] * 3
    library.BrotliDecoderCreateInstance.restype = pointer
    library.BrotliDecoderDestroyInstance.argtypes = [pointer]
    library.BrotliDecoderDestroyInstance.restype = None
    library.BrotliDecoderDecompressStream.argtypes = [
        *(pointer, size, ctypes.POINTER(pointer), size, ctypes.POINTER(pointer), size)
    ]
    library.BrotliDecoderDecompressStream.restype = ctypes.c_int
    return library


_ERROR, _SUCCESS, _MORE_OUTPUT = 0, 1, 3


class _Brotli:
    def __init__(self) -> None:
        library = _brotli()
        self._decompress: Callable[..., int] = library.BrotliDecoderDecompressStream
        self._destroy: Callable[[int], None] = library.BrotliDecoderDestroyInstance
        self._state: int | None = library.BrotliDecoderCreateInstance(None, None, None)
        if not self._state:
            raise MemoryError
        self._output = ctypes.create_string_buffer(_PIECE)
        self.finished = False

    def decode(self, data: bytes) -> Iterator[bytes]:
        if self.finished and data:
            raise DecodingError("bytes behind the compressed body")
        source = ctypes.create_string_buffer(data, len(data))
        available = ctypes.c_size_t(len(data))
        position = ctypes.c_void_p(ctypes.addressof(source))
        result = _MORE_OUTPUT
        while result == _MORE_OUTPUT:
            room = ctypes.c_size_t(_PIECE)
            target = ctypes.c_void_p(ctypes.addressof(self._output))
            result = self._decompress(
                self._state,
                ctypes.byref(available),
                ctypes.byref(position),
                ctypes.byref(room),
                ctypes.byref(target),
                None,
            )
            if result == _ERROR:
                raise DecodingError("a bad compressed body")
            made = _PIECE - room.value
            if made:
                yield self._output.raw[:made]
        if result == _SUCCESS:
            self.finished = True
            if available.value:
                raise DecodingError("bytes behind the compressed body")

    def __del__(self) -> None:
        state, self._state = getattr(self, "_state", None), None
        if state:
            self._destroy(state)
