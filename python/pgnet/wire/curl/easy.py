"""libcurl's easy handles: one request as libcurl takes it, and its answer as it comes.

Theory of operation
-------------------

A handle is made for connections of one kind (`ConnectionSettings`), and goes back into a pool after
each request. So an option that was set for one host cannot stick to a request to another one.

libcurl calls back while it works, and each callback belongs to one phase of the request
(`states.py` has the table):

    IDLE ── prepare ──► BEGUN ──────────────────────────────────────► ANSWERED ── release ──► IDLE
                          │ a socket is opened      a header section     ▲
                          ├──────────► OPENED ──────────────────────────-┤
                          └► PROXY ──────► OPENED (the tunnel is open) ──┘

* CURLOPT_OPENSOCKETFUNCTION asks for a socket. The guard judges the address once more: it is the
  last moment before the connection, and the address is that of the connection itself. A request
  over a kept connection gets no such call, and stays BEGUN until its answer.
* CURLOPT_HEADERFUNCTION brings a line. libcurl does not tell whose header section a line is of: a
  proxy's answer to CONNECT, an interim answer (1xx), the final answer, or trailers. The phase does.
  In PROXY a section is the proxy's; after ANSWERED lines are trailers.
* CURLOPT_WRITEFUNCTION brings a piece of the body. libcurl does not undo codings here
  (CURLOPT_HTTP_CONTENT_DECODING is 0), because it would not say that an encoded body was cut short.
* A callback that returns too little aborts the transfer, with CURLE_WRITE_ERROR. The reason stands
  in `fault`, which goes before libcurl's code and words.

A callback never raises: pycurl would print the exception to the server's log and go on. An illegal
change of the phase fails the transfer, and is reported with its traceback.

`collect.py` says what has become of the request when libcurl is done with it, and `repeats.py` sees
to it that libcurl does not send it twice.

The header callback is called for each line of a header, about five times a request, and the others
once: they hold plain attributes, and what is usual comes first in them.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pycurl

from pgnet.wire.connection import ConnectionSettings
from pgnet.wire.curl.options import Options
from pgnet.wire.curl.repeats import Repeats, RepeatWatch
from pgnet.wire.curl.states import ALLOWED, ANSWERED, BEGUN, IDLE, OPENED, PROXY, changed
from pgnet.wire.decoding import BodyTooLarge, Decoder
from pgnet.wire.guard import EgressRefused
from pgnet.wire.limits import Limits
from pgnet.wire.message import framing, parse_head
from pgnet.wire.route import Route
from pgnet.wire.transfer import Progress, Transfer
from pgnet.wire.wire_error import Code, WireError, refused

if TYPE_CHECKING:
    from pycurl import SocketAddress

_is_success = re.compile(rb"HTTP/[0-9.]+ +2[0-9][0-9]", re.IGNORECASE).match


class _Descriptor:
    """A socket that pycurl takes a duplicate of; ours is closed when pycurl lets go of this."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def __del__(self) -> None:
        os.close(self._fd)


def _is_connected(fd: int) -> bool:
    """Whether a socket of libcurl's has its connection."""
    try:
        with socket.socket(fileno=os.dup(fd)) as own:
            own.getpeername()
    except OSError:
        return False
    return True


class Easy:
    """A pooled libcurl handle with its callbacks, and the transfer it performs.

    connection: the kind of connections it is for. pool: where it waits for its next request.
    check_address: asked for each address before it is connected to; raises EgressRefused.
    on_socket: told of each new socket, and whether it carries TLS within TLS.
    on_error: told of each exception that is a fault of ours, with the object it came from.

    stop: ends the transfer; see Transfer.
    fault: why the transfer was aborted, where it was not libcurl that did.
    opened: whether a socket was opened for the transfer; it goes over a kept connection otherwise.
    socket: the last socket that was opened.
    section: the lines of the header section that is being read; trailers after the answer's.
    first_byte: when the first line of an answer came, by time.monotonic; zero before that.
    header_room: how many bytes of headers may still come. wire_bytes: of the body that have come.
    length: of the body, as the answer says.
    """

    __slots__ = (
        "_check_address",
        "_on_error",
        "_on_socket",
        "connection",
        "curl",
        "decoder",
        "fault",
        "first_byte",
        "header_room",
        "length",
        "opened",
        "options",
        "phase",
        "pool",
        "section",
        "socket",
        "stop",
        "transfer",
        "watch",
        "wire_bytes",
    )

    def __init__(
        self,
        connection: ConnectionSettings,
        pool: list[Easy],
        repeats: Repeats,
        *,
        check_address: Callable[[Route, str], None],
        on_socket: Callable[[int, bool], None],
        on_error: Callable[[object, Exception], None],
    ) -> None:
        self._check_address = check_address
        self._on_socket = on_socket
        self._on_error = on_error
        self.connection = connection
        self.pool = pool
        self.curl = curl = pycurl.Curl()
        self.options = Options(curl, connection)
        self.watch = RepeatWatch(curl, repeats)
        self.phase = IDLE
        self.transfer: Transfer | None = None
        self.stop: Callable[[], None] | None = None
        self.fault: WireError | None = None
        self.opened = False
        self.socket = -1
        self.section = bytearray()
        self.length: int | None = None
        self.decoder: Decoder | None = None
        self.header_room = self.wire_bytes = 0
        self.first_byte = 0.0
        curl.setopt(pycurl.WRITEFUNCTION, self._on_body)
        curl.setopt(pycurl.HEADERFUNCTION, self._on_header)
        curl.setopt(pycurl.OPENSOCKETFUNCTION, self._on_open)
        curl.setopt(pycurl.SOCKOPTFUNCTION, self._on_opened)

    def prepare(self, transfer: Transfer, address: str, forbidden: bool) -> None:
        """Set the handle up for a transfer to `address`.

        forbidden: whether libcurl must not send the request twice.
        """
        self.phase = changed(self.phase, BEGUN)
        self.transfer = transfer
        self.header_room = transfer.limits.max_header_bytes
        self.wire_bytes = 0
        self.first_byte = 0.0
        self.opened = False
        options = self.options
        options.set(transfer, address)
        self.watch.begin(forbidden, options.shares, options.peer)
        transfer.stop = self.stop
        transfer.progress = self.progress

    def release(self) -> None:
        """Let go of what belonged to the transfer."""
        self.phase = changed(self.phase, IDLE)
        transfer, self.transfer = self.transfer, None
        self.fault = self.decoder = self.length = None
        if self.section:
            self.section = bytearray()
        if transfer is not None:
            transfer.stop = transfer.progress = None
            if self.watch.state is not ALLOWED or transfer.attempts.fresh:
                self.watch.end()
            if transfer.request.body is not None:
                self.options.release(transfer)

    def close(self) -> None:
        """Close the handle. All that it refers to, keys included, goes with it without the gc."""
        # pycurl lets go of the callbacks, which refer to this object; so does `stop`.
        self.curl.close()
        self.transfer = self.stop = None

    @property
    def header_bytes(self) -> int:
        """How many bytes of headers have come, those of proxies and interim answers included."""
        transfer = self.transfer
        return 0 if transfer is None else transfer.limits.max_header_bytes - self.header_room

    @property
    def is_pending(self) -> bool:
        """Whether the request has no connection yet, and makes none."""
        return not self.opened and self.curl.getinfo(pycurl.REQUEST_SIZE) == 0

    def progress(self) -> Progress:
        """What the request waits for. Not to be called from a callback of libcurl."""
        transfer, info = self.transfer, self.curl.getinfo
        if transfer is None or self.phase is ANSWERED:
            return Progress.ANSWER
        if self.phase is PROXY:
            return Progress.TUNNEL if _is_connected(self.socket) else Progress.CONNECTING
        # A tunnel has its own request before that.
        if info(pycurl.PRETRANSFER_TIME) and info(pycurl.REQUEST_SIZE):
            # STARTTRANSFER_TIME would not do: in libcurl 7.88 it is set when the body is sent.
            if self.section:
                return Progress.ANSWER
            unsent = len(transfer.request.body or b"") - info(pycurl.SIZE_UPLOAD)
            return Progress.SENDING if unsent > 0 else Progress.FIRST_BYTE
        if not self.opened:
            return Progress.PENDING
        # Nor CONNECT_TIME: until TLS is agreed on, it is 0.
        return Progress.TLS if _is_connected(self.socket) else Progress.CONNECTING

    def _on_open(self, _purpose: int, where: SocketAddress) -> _Descriptor | int:
        """CURLOPT_OPENSOCKETFUNCTION: make the socket, if its address may be connected to."""
        transfer = self.transfer
        if self.watch.refuses_socket():
            return pycurl.SOCKET_BAD
        try:
            if transfer is None or where.family not in (socket.AF_INET, socket.AF_INET6):
                raise EgressRefused("only internet addresses are connected to")
            has_tunnel = (
                self.connection.proxy is not None and transfer.route.origin.scheme == "https"
            )
            self.phase = changed(self.phase, PROXY if has_tunnel else OPENED)
            self.opened = True
            self._check_address(transfer.route, where.addr[0])
            made = socket.socket(where.family, where.socktype, where.protocol)
            made.setblocking(False)
        except EgressRefused as refusal:
            self.fault = refused(refusal)
        except OSError:
            # libcurl says that it could not connect.
            pass
        except Exception as error:
            self._on_error(self, error)
            self.fault = WireError("internal error in the wire", possibly_sent=True)
        else:
            return _Descriptor(made.detach())
        return pycurl.SOCKET_BAD

    def _on_opened(self, fd: int, _purpose: int) -> int:
        """CURLOPT_SOCKOPTFUNCTION: this is the number of libcurl's duplicate of the socket."""
        self.socket = fd
        self._on_socket(fd, self.connection.proxy_tls is not None)
        return 0

    def _on_header(self, line: bytes) -> int | None:
        """CURLOPT_HEADERFUNCTION: a line of a header section, or of trailers."""
        section = self.section
        section += line
        size = len(line)
        self.header_room = room = self.header_room - size
        if not self.first_byte:
            self.first_byte = time.monotonic()
        if size > 2 and room >= 0:
            return None
        transfer = self.transfer
        if transfer is None:
            return 0
        if room < 0:
            return self._abort(f"response headers exceed {transfer.limits.max_header_bytes} bytes")
        if line in (b"\r\n", b"\n") and self.phase is not ANSWERED:
            self.section = bytearray()
            try:
                self._end_section(transfer, bytes(section))
            except WireError as error:
                self.fault = error
                return 0
            except Exception as error:
                self._on_error(self, error)
                return self._abort("the response could not be read")
        return None

    def _end_section(self, transfer: Transfer, section: bytes) -> None:
        """A header section is complete: of a proxy, an interim one (1xx), or the answer's."""
        if self.phase is PROXY:
            if _is_success(section):
                self.phase = changed(self.phase, OPENED)
                self.first_byte = 0.0
            # libcurl itself reports a proxy that refuses the tunnel.
            return
        head = parse_head(section)
        if head.status == 101:
            # No request asks for another protocol.
            raise WireError(Code.WEIRD_REPLY.words, possibly_sent=True, code=Code.WEIRD_REPLY)
        if head.status < 200:
            return
        # Before anything is made of it: a status that came is never lost.
        transfer.received.head = head
        body = framing(head.fields)
        self.phase = changed(self.phase, ANSWERED)
        if transfer.request.method == "HEAD" or head.status in (204, 304):
            return
        self.length = body.length
        if body.codings:
            self.decoder = Decoder(body.codings, transfer.limits.max_response_bytes)

    def _on_body(self, chunk: bytes) -> int | None:
        """CURLOPT_WRITEFUNCTION: a piece of the body, without the framing of chunks."""
        transfer = self.transfer
        if transfer is None:
            return 0
        size = len(chunk)
        limits, received = transfer.limits, transfer.received
        room = min(limits.max_response_bytes, limits.max_wire_bytes) - self.wire_bytes
        self.wire_bytes += size
        try:
            if self.decoder is not None:
                return self._decode(transfer, self.decoder, chunk)
            if size <= room:
                received.take(chunk)
                return None
            if room > 0:
                received.take(chunk[:room])
        except MemoryError:
            received.drop_body()
            return self._abort("there is no memory for the response body")
        if self.wire_bytes > limits.max_response_bytes:
            return self._abort(_too_long(limits))
        return self._abort(too_long_on_the_wire(limits))

    def _decode(self, transfer: Transfer, decoder: Decoder, chunk: bytes) -> int | None:
        """Take an encoded piece of the body, as far as it does not exceed the limits."""
        limits, received = transfer.limits, transfer.received
        over = self.wire_bytes - limits.max_wire_bytes
        try:
            for piece in decoder.decode(chunk[:-over] if over > 0 else chunk):
                if piece is None:
                    received.drop_body()
                else:
                    received.take(piece)
        except BodyTooLarge:
            return self._abort(_too_long(limits))
        return self._abort(too_long_on_the_wire(limits)) if over > 0 else None

    def _abort(self, message: str) -> int:
        """Have libcurl break off the transfer, and close the connection or reset the stream."""
        transfer = self.transfer
        sent = self.phase is not PROXY
        self.fault = WireError(message, kind="response", possibly_sent=sent)
        if transfer is not None and self.decoder is not None:
            transfer.received.as_it_came = self.decoder.as_it_came
        # Until libcurl hands the transfer back, the decoder would hold its buffers.
        self.decoder = None
        return 0


def _too_long(limits: Limits) -> str:
    return f"response body exceeds {limits.max_response_bytes} bytes"


def too_long_on_the_wire(limits: Limits) -> str:
    """The message of an answer that has more bytes on the wire than it may have."""
    return f"response body exceeds {limits.max_wire_bytes} bytes on the wire"
