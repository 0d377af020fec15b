"""libcurl's easy handles: a request as libcurl takes it, and its answer as it comes."""

from __future__ import annotations

import math
import os
import re
import socket
import time
from typing import TYPE_CHECKING, Any

import pycurl

from pgnet.request.address import literal_address
from pgnet.wire.connection import ConnectionSettings
from pgnet.wire.decoding import BodyTooLarge, Decoder
from pgnet.wire.guard import EgressRefused
from pgnet.wire.message import framing, parse_fields, parse_head
from pgnet.wire.route import Route
from pgnet.wire.transfer import IDEMPOTENT, Failure, Transfer
from pgnet.wire.wire_error import Code, When, WireError, refused, settle, words

if TYPE_CHECKING:
    from pgnet.wire.curl.multi import Multi
    from pgnet.wire.transport import Transport

_TUNNEL_OPEN = re.compile(rb"HTTP/[0-9.]+ +2[0-9][0-9]", re.IGNORECASE).match
# Not in the pycurl of Debian 12, whose libcurl sends a URL as it is.
REQUEST_TARGET: int | None = getattr(pycurl, "REQUEST_TARGET", None)
# What libcurl says before it sends a request once more.
_REPEATS = b"Connection died, "
# What it says of HTTP/2, from 7.88 to 8.23: the stream of a request; the last stream that the
# server will process; that it has refused one; and why a stream or the connection has failed.
_find_told = re.compile(
    rb"(?:Using Stream ID: |\[HTTP/2\] \[)(?P<stream>[0-9]+)(?: \(|\] OPENED )"
    rb"|rec\w*ved GOAWAY, error=[0-9]+, last_stream=(?P<goodbye>[0-9]+)"
    rb"|HTTP/2 stream [0-9]+ (?P<refused>refused) by server"
    rb"|stream [0-9]+ (?P<closed>closed)"
    rb"|(?P<trouble>Failed (?:receiv|send)ing HTTP2 data|HTTP/2 stream [0-9]+ (?:was|reset)"
    rb"|h2_process_pending_input)"
).match
# How these begin: most of what libcurl says is of no interest.
_TOLD = frozenset((b"Con", b"Usi", b"[HT", b"rec", b"HTT", b"Fai", b"h2_", b"str"))
_VERSION: int = pycurl.version_info()[2]
_PROXY: tuple[When, ...] = ("proxy",)
# libcurl takes no longer line of a header.
_LONGEST_LINE = 102_400
# A pooled handle gives back what it holds of a request body above this size.
_LARGE_BODY = 65536


class _Descriptor:
    """A socket that pycurl takes a duplicate of; ours is closed when it lets go."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def __del__(self) -> None:
        os.close(self._fd)


class Easy:
    """A pooled libcurl handle with its callbacks, and the transfer it performs.

    It is made for connections of one kind and only ever used for these: what is set for one host
    cannot stick to another.
    """

    __slots__ = (
        "closed",
        "connection",
        "curl",
        "decoder",
        "fault",
        "final",
        "header_bytes",
        "headers",
        "length",
        "method",
        "mode",
        "most_header_bytes",
        "multi",
        "once",
        "opened",
        "peer",
        "perhaps_refused",
        "pool",
        "port",
        "progressed",
        "refused",
        "repeats",
        "section",
        "shares",
        "socket",
        "stream",
        "timeouts",
        "told",
        "transfer",
        "transport",
        "troubled",
        "tunneled",
        "url",
        "watched",
        "wire_bytes",
    )

    def __init__(
        self,
        transport: Transport,
        multi: Multi,
        connection: ConnectionSettings,
        pool: list[Easy],
    ) -> None:
        self.transport = transport
        self.multi = multi
        self.connection = connection
        self.pool = pool
        self.curl = curl = pycurl.Curl()
        self.transfer: Transfer | None = None
        self.headers: list[bytes] | None = None
        self.url: str | None = None
        self.peer: tuple[int, str] | None = None
        self.method: str | None = None
        self.mode: str | None = None
        self.timeouts = (0, 0)
        # What aborted the transfer, where it was not libcurl.
        self.fault: WireError | None = None
        self.opened = self.tunneled = self.final = self.once = self.shares = False
        # Whether libcurl tells what it does; whether a repeat is to be stopped, and comes now.
        self.told = self.watched = self.repeats = False
        # The request's stream in HTTP/2, and the local port of its connection; 0 while unknown.
        self.stream = self.port = 0
        # In which of libcurl's turns it last told how far the transfer is.
        self.progressed = 0
        # Whether the server has said that it does not process the request (RFC 9113, sections 6.8
        # and 8.7), or may have said so; whether something else went wrong with the stream.
        self.refused = self.perhaps_refused = self.troubled = False
        # Whether the server has ended the stream in good order, before all of the request was sent.
        self.closed = False
        self.socket = -1
        self.section = bytearray()
        self.length: int | None = None
        self.decoder: Decoder | None = None
        self.header_bytes = self.wire_bytes = self.most_header_bytes = 0
        set_option = curl.setopt
        set_option(pycurl.NOSIGNAL, 1)
        set_option(pycurl.PATH_AS_IS, 1)
        set_option(pycurl.FOLLOWLOCATION, 0)
        set_option(pycurl.NETRC, pycurl.NETRC_IGNORED)
        set_option(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        set_option(pycurl.REDIR_PROTOCOLS, 0)
        set_option(pycurl.HTTP09_ALLOWED, 0)
        # libcurl would not tell that an encoded body was cut short.
        set_option(pycurl.HTTP_CONTENT_DECODING, 0)
        set_option(pycurl.TCP_NODELAY, 1)
        set_option(pycurl.WRITEFUNCTION, self._on_body)
        set_option(pycurl.HEADERFUNCTION, self._on_header)
        set_option(pycurl.OPENSOCKETFUNCTION, self._on_open)
        set_option(pycurl.SOCKOPTFUNCTION, self._on_opened)
        set_option(pycurl.DEBUGFUNCTION, self._on_told)
        set_option(pycurl.XFERINFOFUNCTION, self._on_progress)
        if multi.alone:
            set_option(pycurl.FRESH_CONNECT, 1)
            set_option(pycurl.FORBID_REUSE, 1)
        connection.apply(curl)

    def prepare(self, transfer: Transfer, address: str, more: int) -> None:
        """Set the handle up for a transfer to `address`, with `more` addresses left to try."""
        curl = self.curl
        set_option = curl.setopt
        route = transfer.route
        self.transfer = transfer
        self.header_bytes = self.wire_bytes = 0
        self.most_header_bytes = transfer.max_header_bytes
        self.opened = self.tunneled = self.final = self.repeats = False
        if transfer.fresh:
            set_option(pycurl.FRESH_CONNECT, 1)
        url = transfer.url if route.asked_for is None else route.url_for(transfer.url)
        if url != self.url:
            set_option(pycurl.URL, url)
            if REQUEST_TARGET is not None:
                set_option(REQUEST_TARGET, self._target(transfer.route.origin.scheme, url))
            self.url = url
        if (route.port, address) != self.peer:
            self._set_peer(route, address)

        headers = transfer.headers
        if route.host_header is not None:
            headers = [route.host_header, *headers]
        if headers is not self.headers:
            set_option(pycurl.HTTPHEADER, headers)
            self.headers = headers

        method, body = transfer.method, transfer.body
        if body is None and method in ("POST", "PUT", "PATCH"):
            # RFC 9110, section 8.6: these say that their content is empty.
            body = b""
        mode = "HEAD" if method == "HEAD" else "GET" if body is None else "POST"
        if mode != self.mode or method != self.method:
            if self.method is not None:
                curl.unsetopt(pycurl.CUSTOMREQUEST)
            if self.mode == "HEAD":
                set_option(pycurl.NOBODY, 0)
            if mode == "HEAD":
                set_option(pycurl.NOBODY, 1)
            elif mode == "GET":
                set_option(pycurl.HTTPGET, 1)
            else:
                set_option(pycurl.POST, 1)
            if method != mode:
                set_option(pycurl.CUSTOMREQUEST, method)
            self.method, self.mode = method, mode
        if body is not None:
            set_option(pycurl.POSTFIELDS, body)

        if route.shares != self.shares:
            self.share(not self.shares)
        watched = not self.multi.alone and (transfer.repeated or method not in IDEMPOTENT)
        if watched != self.watched:
            set_option(pycurl.NOPROGRESS, 0 if watched else 1)
            self.watched = watched
        self.tell(watched or (self.shares and self.multi.has_unrepeatable))
        if self.told:
            self.stream = self.port = 0
            self.refused = self.perhaps_refused = self.troubled = self.closed = False
        self.limit_time(transfer, more)

    def _target(self, scheme: str, url: str) -> str:
        """The request target (RFC 9112, section 3.2): to the letter what the URL says.

        Newer libcurls leave an empty query out, and write the digits of `%2f` their own way.
        """
        rest = url.partition("#")[0].partition("://")[2]
        authority, slash, path = rest.partition("/")
        if not slash:
            # Before a query without a path stands the root's.
            authority, question, path = rest.partition("?")
            path = question + path
        if self.connection.proxy is not None and scheme == "http":
            return f"{scheme}://{authority}/{path}"
        return f"/{path}"

    def tell(self, wanted: bool) -> None:
        """Whether libcurl is to tell what it does, which takes a tenth of a request's time."""
        if wanted != self.told:
            self.curl.setopt(pycurl.VERBOSE, 1 if wanted else 0)
            self.told = wanted

    def share(self, wanted: bool) -> None:
        """Whether to wait for a connection that is being made, and may turn out to be HTTP/2."""
        self.curl.setopt(pycurl.PIPEWAIT, 1 if wanted else 0)
        self.shares = wanted

    def limit_time(self, transfer: Transfer, more: int) -> None:
        """Set what is left of the deadline, with `more` addresses left to try."""
        set_option = self.curl.setopt
        left = transfer.deadline - time.monotonic()
        # Whoever has other addresses must not spend all of the time on this one.
        connect = min(transfer.connect_timeout, left / (more + 1))
        # Rounded up: a timeout never comes before its time.
        timeouts = (max(1, math.ceil(left * 1000)), max(1, math.ceil(connect * 1000)))
        if timeouts != self.timeouts:
            set_option(pycurl.TIMEOUT_MS, timeouts[0])
            set_option(pycurl.CONNECTTIMEOUT_MS, timeouts[1])
            self.timeouts = timeouts

    def _set_peer(self, route: Route, address: str) -> None:
        """Have libcurl connect to an address, and look nothing up by itself."""
        set_option = self.curl.setopt
        host = f"[{address}]" if ":" in address else address
        proxy = self.connection.proxy
        if proxy is None:
            set_option(pycurl.CONNECT_TO, [f"::{host}:{route.port}"])
        elif proxy.scheme == "http":
            set_option(pycurl.PROXY, f"http://{host}:{proxy.port}")
        else:
            # Its certificate is of its name, which must stand here.
            set_option(pycurl.PROXY, f"https://{proxy.host}:{proxy.port}")
            if literal_address(proxy.host) is None:
                set_option(pycurl.RESOLVE, [f"{proxy.host}:{proxy.port}:{host}"])
        self.peer = (route.port, address)

    def release(self) -> None:
        """Let go of what belonged to the transfer."""
        transfer, self.transfer = self.transfer, None
        self.fault = self.decoder = self.length = None
        if self.section:
            self.section = bytearray()
        if self.once or (transfer is not None and transfer.fresh):
            self.once = False
            if not self.multi.alone:
                self.curl.setopt(pycurl.FRESH_CONNECT, 0)
        if transfer is not None:
            transfer.easy = None
            if transfer.body is not None and len(transfer.body) > _LARGE_BODY:
                self.curl.setopt(pycurl.POSTFIELDS, b"")

    @property
    def is_pending(self) -> bool:
        """Whether it has no connection yet, and makes none."""
        return not self.opened and self.curl.getinfo(pycurl.REQUEST_SIZE) == 0

    def only_once(self) -> None:
        """From now on a connection that ends without an answer is the end.

        libcurl would send the request once more, whatever it asks for: over another connection,
        which is now always a new one, and so does not come about.
        """
        self.once = True
        self.curl.setopt(pycurl.FRESH_CONNECT, 1)

    def _on_told(self, kind: int, text: bytes) -> None:
        """libcurl says what it does: of interest is what becomes of a stream of HTTP/2, and that
        a request is about to be repeated, perhaps before `only_once` could be called."""
        if kind or text[:3] not in _TOLD:
            # INFOTYPE_TEXT is 0.
            return
        if text.startswith(_REPEATS):
            if self.watched:
                self.repeats = True
                self.refused = self.refused or self._is_refusal()
                self.multi.on_repeat(self)
            else:
                self.stream = 0
            return
        told = _find_told(text)
        if told is None:
            return
        if told["stream"] is not None:
            self.stream, self.port = int(told["stream"]), 0
            self.multi.on_stream(self)
        elif told["goodbye"] is not None:
            self.multi.on_goodbye(self, int(told["goodbye"]))
        elif told["refused"] is not None:
            self.refused = True
        elif told["closed"] is not None:
            self.closed = True
        else:
            self.troubled = True

    def _is_refusal(self) -> bool:
        """Whether libcurl repeats the request because its stream of HTTP/2 was refused.

        It also repeats what a connection carried that has ended. False is also: nobody knows.
        """
        if not self.stream or self.troubled:
            return False
        if _VERSION < 0x080000:
            # Only where the answer ends without an error it looks at the progress first.
            return self.progressed != self.multi.turn
        # Until 8.6 it says nothing of connections that have ended, from 8.19 on of refusals.
        return 0x080700 <= _VERSION < 0x081300

    def _on_progress(self, *_: int) -> int:
        """Stop a repeat over another kept connection, for which no socket is opened."""
        self.progressed = self.multi.turn
        return self._refuse_repeat() if self.repeats else 0

    def _refuse_repeat(self) -> int:
        code = Code.GOT_NOTHING
        self.fault = WireError(words(code), possibly_sent=True, code=code)
        return int(pycurl.SOCKET_BAD)

    def _on_header(self, line: bytes) -> int | None:
        # Called for each line of a header: what is usual comes first.
        section = self.section
        section += line
        size = len(line)
        self.header_bytes = total = self.header_bytes + size
        if size > 2 and total <= self.most_header_bytes:
            return None
        transfer = self.transfer
        if transfer is None:
            return 0
        if total > transfer.max_header_bytes:
            return self._abort(f"response headers exceed {transfer.max_header_bytes} bytes")
        if line in (b"\r\n", b"\n") and not self.final:
            self.section = bytearray()
            try:
                self._end_section(transfer, bytes(section))
            except WireError as error:
                self.fault = error
                return 0
            except Exception as error:
                self.transport.hub.handle_error(self, type(error), error, error.__traceback__)
                return self._abort("the response could not be read")
        return None

    def _end_section(self, transfer: Transfer, section: bytes) -> None:
        """A header section is complete: of a proxy, an interim one (1xx), or the answer's."""
        if self._in_tunnel(transfer):
            # What else a proxy says libcurl takes for what it is.
            self.tunneled = _TUNNEL_OPEN(section) is not None
            return
        head = parse_head(section)
        if head.status == 101:
            # Nobody has asked for another protocol.
            raise WireError(Code.WEIRD_REPLY.words, possibly_sent=True, code=Code.WEIRD_REPLY)
        if head.status < 200:
            return
        # Before anything is made of it: a status that came is never lost.
        transfer.head = head
        said = framing(head.fields)
        self.final = True
        if transfer.method == "HEAD" or head.status in (204, 304):
            return
        self.length = said.length
        if said.codings:
            self.decoder = Decoder(said.codings, transfer.max_response_bytes)

    def _keep_broken_head(self, transfer: Transfer) -> None:
        """Of a header section that was broken off, keep the status and the fields that are whole.

        RFC 9112, section 8: such a status may mean less than it says, but it is all that will come.
        """
        if transfer.head.status or self._in_tunnel(transfer):
            return
        lines = bytes(self.section[: transfer.max_header_bytes])
        try:
            head = parse_head(lines[: lines.rfind(b"\n") + 1])
        except WireError:
            return
        if head.status >= 200:
            transfer.head = head

    def _in_tunnel(self, transfer: Transfer) -> bool:
        """Whether it is still the proxy that speaks."""
        return (
            self.opened
            and not self.tunneled
            and self.connection.proxy is not None
            and transfer.route.origin.scheme == "https"
        )

    def _on_body(self, chunk: bytes) -> int | None:
        transfer = self.transfer
        if transfer is None:
            return 0
        size = len(chunk)
        room = min(transfer.max_response_bytes, transfer.max_wire_bytes) - self.wire_bytes
        self.wire_bytes += size
        try:
            if self.decoder is not None:
                return self._decode(transfer, self.decoder, chunk)
            if size <= room:
                transfer.take(chunk)
                return None
            if room > 0:
                transfer.take(chunk[:room])
        except MemoryError:
            transfer.drop_body()
            return self._abort("there is no memory for the response body")
        if self.wire_bytes > transfer.max_response_bytes:
            return self._abort(self.too_long(transfer))
        return self._abort(self.too_long_on_the_wire(transfer))

    def _decode(self, transfer: Transfer, decoder: Decoder, chunk: bytes) -> int | None:
        """Take an encoded piece of the body, as far as it may be that long."""
        over = self.wire_bytes - transfer.max_wire_bytes
        try:
            for piece in decoder.decode(chunk[:-over] if over > 0 else chunk):
                if piece is None:
                    transfer.drop_body()
                else:
                    transfer.take(piece)
        except BodyTooLarge:
            return self._abort(self.too_long(transfer))
        return self._abort(self.too_long_on_the_wire(transfer)) if over > 0 else None

    @staticmethod
    def too_long(transfer: Transfer) -> str:
        return f"response body exceeds {transfer.max_response_bytes} bytes"

    @staticmethod
    def too_long_on_the_wire(transfer: Transfer) -> str:
        return f"response body exceeds {transfer.max_wire_bytes} bytes on the wire"

    def _abort(self, message: str) -> int:
        """Have libcurl break off the transfer, and close the connection or reset the stream."""
        transfer = self.transfer
        sent = transfer is None or not self._in_tunnel(transfer)
        self.fault = WireError(message, kind="response", possibly_sent=sent)
        if transfer is not None and self.decoder is not None:
            transfer.as_it_came = self.decoder.as_it_came
        # Until libcurl hands the transfer back, it would hold its buffers.
        self.decoder = None
        return 0

    def collect(self, transfer: Transfer, code: int, text: str) -> Failure | None:
        """Put into the transfer what has become of it; what went wrong, or None."""
        info = self.curl.getinfo
        secure = transfer.route.origin.scheme == "https"
        if self.opened:
            transfer.connect = info(pycurl.CONNECT_TIME)
            if secure:
                transfer.appconnect = info(pycurl.APPCONNECT_TIME)
            if transfer.head.version == "2":
                self.multi.framed.add(self.socket)
            if self.final:
                transfer.route.version = transfer.head.version
        if code == Code.HTTP2_STREAM and self.closed and self.final:
            # The answer is whole, and is not to be discarded (RFC 9113, section 8.1).
            code = 0
        if code == 0:
            code = self._whole(transfer)
            if not code:
                transfer.first_byte = info(pycurl.STARTTRANSFER_TIME)
                return None
            text = ""
        if self.section:
            self._keep_broken_head(transfer)
        if transfer.head.status:
            transfer.first_byte = info(pycurl.STARTTRANSFER_TIME)
            if self.decoder is not None:
                transfer.as_it_came = self.decoder.as_it_came
        sent = info(pycurl.REQUEST_SIZE) > 0
        if self.watched and not self.final and (self.refused or (self.repeats and not sent)):
            return Failure(code, text, False, None, refused=True)
        proxy = self.connection.proxy
        if proxy is not None and secure:
            # What was sent may only have asked the proxy for the tunnel.
            sent = sent and info(pycurl.PRETRANSFER_TIME) > 0
        fault = self.fault
        if fault is not None:
            return Failure(code, text, sent, fault)
        if proxy is not None:
            message = None
            said, _ = settle(code, text, _PROXY)
            if secure:
                answered = info(pycurl.HTTP_CONNECTCODE)
                if answered // 100 != 2 and self.opened:
                    message = f"proxy {proxy.host}: {words(said)}"
                    if answered:
                        message = f"proxy {proxy.host} refused the tunnel with status {answered}"
            elif not sent:
                message = f"proxy {proxy.host}: {words(said)}"
            if message is not None and code != Code.OPERATION_TIMEDOUT:
                # Nothing came of this connection, whatever went over one before it.
                kind = WireError(message, code=said).kind
                fault = WireError(message, kind=kind, possibly_sent=sent, code=said, detail=text)
        elif code in (Code.OUT_OF_MEMORY, Code.TOO_LARGE) or "Out of memory in chunk" in text:
            # A line of a header is longer than libcurl takes.
            limit = min(transfer.max_header_bytes, _LONGEST_LINE)
            message = f"response headers exceed {limit} bytes"
            fault = WireError(message, kind="response", possibly_sent=sent)
        # Some libcurls have these for a stream that was refused.
        if code in (Code.HTTP2, Code.HTTP2_STREAM):
            unheard = not self.final and (code == Code.HTTP2 or "reset by curl" in text)
        else:
            unheard = not self.opened and not self.header_bytes
        times: list[When] = []
        if secure:
            times.append("tls")
            if self.opened and not sent and not transfer.appconnect:
                times.append("handshake")
        if sent:
            times.append("sent")
        if self.final:
            times.append("answer")
        return Failure(code, text, sent, fault, unheard, tuple(times))

    def _whole(self, transfer: Transfer) -> int:
        """0 where all of an answer has come, otherwise what libcurl should have said."""
        if not self.final or (self.length is not None and self.length != self.wire_bytes):
            return Code.PARTIAL_FILE
        if self.decoder is not None:
            self._note_coding(transfer, self.decoder)
        if self.section:
            transfer.head.fields.extend(parse_fields(bytes(self.section)))
        return 0

    @staticmethod
    def _note_coding(transfer: Transfer, decoder: Decoder) -> None:
        """Say of a whole body what could not be decoded of it."""
        body = decoder.finish()
        if decoder.fault is None:
            return
        if body is not None:
            transfer.drop_body()
            transfer.take(body)
        transfer.as_it_came = decoder.as_it_came
        code = Code.BAD_CONTENT_ENCODING
        kept = "as it came" if decoder.as_it_came else "up to the fault"
        message = f"{words(code)}: the body is kept {kept}"
        transfer.note = WireError(message, possibly_sent=True, code=code, detail=decoder.fault)

    def _on_open(self, purpose: int, where: Any) -> _Descriptor | int:
        """Make the socket, after one more look at the address that it will be connected to."""
        transfer = self.transfer
        if self.once or self.repeats:
            return self._refuse_repeat()
        self.opened = True
        try:
            if transfer is None or where.family not in (socket.AF_INET, socket.AF_INET6):
                raise EgressRefused("only internet addresses are connected to")
            self.transport.check_address(transfer.route, where.addr[0])
            made = socket.socket(where.family, where.socktype, where.protocol)
            made.setblocking(False)
        except EgressRefused as refusal:
            self.fault = refused(refusal)
        except OSError:
            pass
        else:
            return _Descriptor(made.detach())
        return int(pycurl.SOCKET_BAD)

    def _on_opened(self, fd: int, _purpose: int) -> int:
        self.socket = fd
        self.multi.on_new_socket(self, fd)
        return 0
