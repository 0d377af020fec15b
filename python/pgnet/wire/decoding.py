"""Content codings (RFC 9110, section 8.4.1) undone as the bytes come: gzip, deflate and br.

libcurl could undo them, but it tells neither that an encoded body was cut short nor how many bytes
came before they were decoded. Nothing here makes more bytes at once than `_PIECE`, however few
bytes they are made of.

A body whose coding cannot be undone is kept: as it came where its label is wrong, up to the fault
where the coding is broken.
"""

from __future__ import annotations

import codecs
import ctypes
import functools
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

# Other clients accept as many codings; more of them are an attack.
_MOST = 5
_PIECE = 65536
CODINGS = ("gzip", "deflate", "br")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")


class DecodingError(ValueError):
    """The body is not what its Content-Encoding says, or the coding is not known."""


class BodyTooLarge(ValueError):
    """Decoding made more bytes than are allowed."""


class _Stage(Protocol):
    """Undoes one coding."""

    @property
    def finished(self) -> bool:
        """Whether the encoded body is complete."""

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Yield what some more bytes give, piece by piece. Raises DecodingError."""


class Decoder:
    """Undoes the codings that a Content-Encoding names, the last one first.

    content_encoding: the field's value; repeats joined by commas.
    limit: how many bytes each coding may make.

    fault: why the body, or a part of it, is not decoded; None as long as nothing is wrong.
    as_it_came: whether the body is given as it came, encoded or not.
    """

    __slots__ = ("_began", "_given", "_limit", "_made", "_seen", "_stages", "as_it_came", "fault")

    def __init__(self, content_encoding: str, limit: int) -> None:
        names = [name.strip().lower() for name in content_encoding.split(",")]
        names = [name for name in names if name not in ("", "identity")]
        self.fault: str | None = None
        self.as_it_came = False
        self._limit = limit
        self._stages: list[_Stage] = []
        try:
            if len(names) > _MOST:
                raise DecodingError("too many content codings")
            self._stages = [_stage(name) for name in reversed(names)]
        except DecodingError as error:
            self.fault = str(error)
            self.as_it_came = True
        # How many bytes each stage has made, and how many were given on as they came.
        self._made = [0] * len(self._stages)
        self._given = 0
        # The bytes that have come, as long as they are few: perhaps they were never encoded.
        self._seen: bytearray | None = bytearray()
        self._began = False

    def decode(self, data: bytes) -> Iterator[bytes | None]:
        """Yield the decoded bytes that some more bytes give, piece by piece.

        A None says: forget all pieces so far, the body follows as it came.
        Raises BodyTooLarge, after the last piece that there is room for.
        """
        self._began = self._began or bool(data)
        if self.as_it_came:
            yield from self._as_it_came(data)
            return
        if self.fault is not None:
            return
        if self._seen is not None:
            self._seen += data
            if len(self._seen) > _PIECE:
                self._seen = None
        try:
            yield from self._through(0, data)
        except DecodingError as error:
            self.fault = str(error)
            if self._seen is not None and (not self._made[-1] or _is_text(self._seen)):
                # Nothing was decoded, or nonsense: an encoded body does not look like text.
                self.as_it_came = True
                yield None
                yield from self._as_it_came(bytes(self._seen))
        if self.fault is not None:
            self._seen = None
            # The stages hold buffers.
            self._stages = []

    def _as_it_came(self, data: bytes) -> Iterator[bytes]:
        room = self._limit - self._given
        self._given += len(data)
        if room > 0:
            yield data[:room]
        if len(data) > room:
            raise BodyTooLarge

    def _through(self, number: int, data: bytes) -> Iterator[bytes]:
        if number == len(self._stages):
            yield data
            return
        for piece in self._stages[number].decode(data):
            room = self._limit - self._made[number]
            self._made[number] += len(piece)
            if len(piece) > room:
                yield from self._through(number + 1, piece[:room])
                raise BodyTooLarge
            yield from self._through(number + 1, piece)

    def finish(self) -> bytes | None:
        """End the body. `fault` then says where more bytes should have come.

        Returns the body as it came, in place of all pieces so far, where it was never encoded;
        otherwise None. An empty body is complete in any coding, as in answers to HEAD.
        """
        if self._began and not all(stage.finished for stage in self._stages):
            self.fault = "the encoded body is cut short"
            seen, self._seen = self._seen, None
            nothing = not self._made[-1]
            if seen is not None and len(seen) <= self._limit and (nothing or _is_text(seen)):
                self.as_it_came = True
                return bytes(seen)
        return None


def _is_text(data: bytearray) -> bool:
    """Whether these bytes are the beginning of a text in UTF-8, without control characters."""
    try:
        text, _length = codecs.utf_8_decode(data, "strict", False)
    except UnicodeDecodeError:
        return False
    return bool(text) and _CONTROL.search(text) is None


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
    # The loop goes on without input, as long as zlib holds back what one piece had no room for.
    while not inflater.eof and (data or piece):
        before = inflater.copy()
        try:
            piece = inflater.decompress(data, _PIECE)
        except zlib.error:
            yield from _salvage(before, data)
            raise DecodingError("a bad compressed body") from None
        if piece:
            yield piece
        data = inflater.unconsumed_tail


def _salvage(inflater: Any, data: bytes) -> Iterator[bytes]:
    """Yield what the bytes before a fault decode to: the call that meets it gives nothing."""
    while data and not inflater.eof:
        part = data[: (len(data) + 1) // 2]
        before = inflater.copy()
        try:
            piece = inflater.decompress(part, _PIECE)
        except zlib.error:
            if len(part) == 1:
                return
            # The fault is in this half.
            inflater, data = before, part
            continue
        if piece:
            yield piece
        data = inflater.unconsumed_tail + data[len(part) :]


class _Gzip:
    """gzip (RFC 1952), of one or several members."""

    def __init__(self) -> None:
        self._inflater: Any = zlib.decompressobj(wbits=31)

    @property
    def finished(self) -> bool:
        return bool(self._inflater.eof)

    def decode(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._inflater.eof:
                # Bytes that are not another member fail at their magic number.
                self._inflater = zlib.decompressobj(wbits=31)
            yield from _inflate(self._inflater, data)
            data = self._inflater.unused_data if self._inflater.eof else b""


class _Deflate:
    """deflate: the zlib format (RFC 1950), or bare deflate (RFC 1951), which some servers send."""

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
    """The library of Brotli (RFC 7932), which libcurl uses, too; None where it is not installed.

    Python's modules for Brotli cannot bound how much they make at once.
    """
    try:
        # The library is loaded by its file's name, since ctypes.util.find_library starts processes.
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
    """br (RFC 7932)."""

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
