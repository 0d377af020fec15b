"""Transfers by libcurl's multi interface, driven by gevent's loop: callbacks, no threads.

All of libcurl's sockets stand in one epoll set, which a single gevent watcher watches; libcurl's
timer is a single gevent timer. A request costs no greenlet and no watcher of its own.
"""

from __future__ import annotations

import errno
import math
import os
import re
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import gevent
import pycurl

from pgnet.connection import (
    ConnectionSettings,
    Origin,
    Proxy,
    Tls,
    ca_bundle,
    is_plain,
    match_origin,
)
from pgnet.decoding import BodyTooLarge, Decoder, DecodingError
from pgnet.guard import EgressRefused, Guard
from pgnet.host import HostSettings, HostTable, literal_address
from pgnet.message import Head, encode_headers, framing, parse_fields, parse_head
from pgnet.resolve import Lookup, ResolveError, Resolver
from pgnet.wire_error import Kind, WireError, words

__all__ = ["Route", "Transfer", "Transport", "ca_bundle"]

_NO_HEAD = Head("", 0, "", [])
# What may be done twice (RFC 9110, section 9.2.2).
_IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))
# libcurl's numbers that pycurl has no names for.
_WEIRD_REPLY, _BAD_FUNCTION_ARGUMENT, _TOO_LARGE = 8, 43, 100
_TUNNEL_OPEN = re.compile(rb"HTTP/[0-9.]+ +2[0-9][0-9]", re.IGNORECASE).match
# What ends a connection of HTTP/2 with all its streams: RFC 9113, section 5.4.1.
_BROKEN = frozenset(
    (
        pycurl.E_UNSUPPORTED_PROTOCOL,
        16,
        pycurl.E_PARTIAL_FILE,
        pycurl.E_GOT_NOTHING,
        pycurl.E_SEND_ERROR,
        pycurl.E_RECV_ERROR,
    )
)
# How a kept connection ends that its server has closed.
_ENDS = (pycurl.E_GOT_NOTHING, pycurl.E_SEND_ERROR, pycurl.E_RECV_ERROR)
# What libcurl says before it sends a request once more.
_REPEATS = b"Connection died, "
# libcurl takes no longer line of a header.
_LONGEST_LINE = 102_400
# That the other side has ended a connection.
_ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
# A turn of the loop hands libcurl this many sockets at most: others get their turn too.
_EVENTS_PER_TURN = 256
# Seconds: of a turn of the loop, of a call of libcurl that is looked into, of all that are allowed.
_LONGEST_TURN, _LONG, _HEAVY = 0.02, 0.0002, 0.01
# Seconds in which a server of HTTP/2 may still send of an answer that is not wanted any more.
_RESET_TAKES = 2.0
# Where Linux' struct tcp_info has tcpi_bytes_received.
_BYTES_RECEIVED, _BYTES_RECEIVED_AT = struct.Struct("=Q"), 128
_NUDGE_INTERVAL = 0.02
# Seconds that a request waits for the connection of another one to the same server.
_LONGEST_PENDING = 1.0
# A pooled handle gives back what it holds of a request body above this size.
_LARGE_BODY = 65536
_MOST_ROUTES = 10_000


class Route:
    """How requests to one origin go: found out once, and good for a while.

    settings: what is special about the host.
    headers: the lines of a request that has none of its own.
    peer, port: what is connected to, the origin's host or a proxy.
    addresses: of the peer, all allowed by the guard, and good until `until` (time.monotonic).
    version: of HTTP, that the last answer came by; empty before the first.
    once: a request goes out once at most, whatever it asks for: over HTTP/1.1, and over a
    connection of its own.
    """

    __slots__ = (
        "addresses",
        "connection",
        "headers",
        "host_header",
        "once",
        "origin",
        "peer",
        "port",
        "settings",
        "until",
        "version",
    )

    def __init__(
        self, origin: Origin, settings: HostSettings, hosts: HostTable, once: bool = False
    ) -> None:
        self.origin = origin
        self.settings = settings
        self.once = once
        self.headers = encode_headers((), settings.user_agent)
        self.peer, self.port = origin.host, origin.port
        secure = origin.scheme == "https"
        # "direct": by none, whatever holds for other hosts.
        special = settings.proxy not in (None, "direct")
        proxy = Proxy.of(settings.proxy) if special and settings.proxy is not None else None
        proxy_tls = None
        if proxy is not None:
            self.peer, self.port = proxy.host, proxy.port
            if proxy.scheme == "https":
                # A proxy is a host too: what is said of it by its name holds for its TLS.
                proxy_tls = Tls.of(hosts.of(proxy.host))
        self.connection = ConnectionSettings(
            "1.1" if secure and (once or settings.http_version == "1.1") else "2",
            Tls.of(settings) if secure else Tls(),
            proxy,
            proxy_tls,
        )
        # In a URL for a proxy libcurl spells an address its own way, and the field must agree.
        self.host_header = origin.host_header if secure or proxy is None else None
        self.addresses: tuple[str, ...] = ()
        self.until = 0.0
        self.version = ""

    @property
    def shares(self) -> bool:
        """Whether several requests at a time may share a connection, or nobody knows yet."""
        return (
            self.origin.scheme == "https"
            and self.connection.http_version == "2"
            and self.version in ("", "2")
        )

    def avoid(self, address: str) -> None:
        """Whoever comes next begins with another address."""
        if address in self.addresses:
            self.addresses = (*(a for a in self.addresses if a != address), address)


class Transfer:
    """One request to one server: what is asked, and then what came of it.

    The asking side fills `method`, `url`, `route`, `headers` (lines as encode_headers makes them),
    `body` and the limits; `done(transfer)` is called once, from the loop, and must not block.
    """

    __slots__ = (
        "_addresses",
        "_body",
        "_lookup",
        "_multi",
        "_repeated",
        "_sent",
        "_slot",
        "address",
        "appconnect",
        "body",
        "connect",
        "connect_timeout",
        "deadline",
        "done",
        "error",
        "first_byte",
        "head",
        "headers",
        "hop_started",
        "max_header_bytes",
        "max_response_bytes",
        "max_wire_bytes",
        "method",
        "name_seconds",
        "route",
        "started",
        "timeout",
        "url",
    )

    def __init__(
        self,
        method: str,
        url: str,
        route: Route,
        headers: list[bytes],
        body: bytes | None,
        *,
        started: float,
        timeout: float,
        connect_timeout: float,
        max_response_bytes: int,
        max_wire_bytes: int,
        max_header_bytes: int,
        done: Callable[[Transfer], None],
    ) -> None:
        self.method = method
        self.url = url
        self.route = route
        self.headers = headers
        self.body = body
        self.started = self.hop_started = started
        self.timeout = timeout
        self.deadline = started + timeout
        self.connect_timeout = connect_timeout
        self.max_response_bytes = max_response_bytes
        self.max_wire_bytes = max_wire_bytes
        self.max_header_bytes = max_header_bytes
        self.done: Callable[[Transfer], None] | None = done
        self.head = _NO_HEAD
        self.error: WireError | None = None
        self.address: str | None = None
        self.name_seconds = self.connect = self.appconnect = self.first_byte = 0.0
        self._body: bytes | bytearray = b""
        self._repeated = False
        # Whether an attempt before this one may have been seen.
        self._sent = False
        self._addresses: tuple[str, ...] = ()
        self._slot: _Slot | None = None
        self._multi: _Multi | None = None
        self._lookup: Lookup | None = None

    @property
    def content(self) -> bytes:
        """The body that came, decoded."""
        if not isinstance(self._body, bytes):
            self._body = bytes(self._body)
        return self._body

    def take(self, piece: bytes) -> None:
        """Another piece of the decoded body has come."""
        if not self._body:
            self._body = piece
        elif isinstance(self._body, bytearray):
            self._body += piece
        else:
            # Not a list: of many small pieces it would take many times their length.
            self._body = bytearray(self._body)
            self._body += piece

    def again(
        self,
        method: str,
        url: str,
        route: Route,
        headers: list[bytes],
        body: bytes | None,
        connect_timeout: float,
        done: Callable[[Transfer], None],
    ) -> None:
        """Make it the next request of the same undertaking: start and deadline stay."""
        self.method, self.url, self.route = method, url, route
        self.headers, self.body, self.connect_timeout = headers, body, connect_timeout
        self.hop_started = time.monotonic()
        self.head = _NO_HEAD
        self.error = None
        self.connect = self.appconnect = self.first_byte = 0.0
        self._body, self._addresses = b"", ()
        self._repeated = self._sent = False
        self.done = done

    def fail(self, error: WireError) -> None:
        """End with an error, unless it has ended; what has come so far is nobody's."""
        error.possibly_sent = error.possibly_sent or self._sent
        self.error = error
        self._body = b""
        self.finish()

    def finish(self) -> None:
        """Call `done`, the first time."""
        done, self.done = self.done, None
        if done is not None:
            done(self)


class _Descriptor:
    """A socket that pycurl takes a duplicate of; ours is closed when it lets go."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def __del__(self) -> None:
        os.close(self._fd)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a transfer has no answer.

    code, text: libcurl's number and words for it.
    sent: the server may have seen the request.
    fault: what to say of it, where we know better than libcurl.
    unheard: it went over a kept connection, and not a byte came back.
    """

    code: int
    text: str
    sent: bool
    fault: WireError | None
    unheard: bool = False


class _Slot:
    """A pooled libcurl handle with its callbacks, and the transfer it performs.

    It is made for connections of one kind and only ever used for these: what is set for one host
    cannot stick to another.
    """

    __slots__ = (
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
        "pool",
        "repeats",
        "section",
        "shares",
        "socket",
        "timeouts",
        "transfer",
        "transport",
        "tunneled",
        "url",
        "watched",
        "wire_bytes",
    )

    def __init__(
        self,
        transport: Transport,
        multi: _Multi,
        connection: ConnectionSettings,
        pool: list[_Slot],
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
        # Whether libcurl tells what it does; whether it is about to repeat the request.
        self.watched = self.repeats = False
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
        if transfer._repeated:
            set_option(pycurl.FRESH_CONNECT, 1)
        if transfer.url != self.url:
            set_option(pycurl.URL, transfer.url)
            self.url = transfer.url
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
        watched = not (self.shares or self.multi.alone or method in _IDEMPOTENT)
        if watched != self.watched:
            set_option(pycurl.VERBOSE, 1 if watched else 0)
            set_option(pycurl.NOPROGRESS, 0 if watched else 1)
            self.watched = watched
        self.limit_time(transfer, more)

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
        if self.once or (transfer is not None and transfer._repeated):
            self.once = False
            if not self.multi.alone:
                self.curl.setopt(pycurl.FRESH_CONNECT, 0)
        if transfer is not None:
            transfer._slot = None
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
        """libcurl repeats a request, and perhaps at once, before `only_once` could be called."""
        if kind == pycurl.INFOTYPE_TEXT and text.startswith(_REPEATS):
            self.repeats = True

    def _on_progress(self, *_: int) -> int:
        """Stop a repeat over another kept connection, for which no socket is opened."""
        return self._refuse_repeat() if self.repeats else 0

    def _refuse_repeat(self) -> int:
        code = pycurl.E_GOT_NOTHING
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
            raise WireError(words(_WEIRD_REPLY), possibly_sent=True, code=_WEIRD_REPLY)
        if head.status < 200:
            return
        said = framing(head.fields)
        transfer.head = head
        self.final = True
        if transfer.method == "HEAD" or head.status in (204, 304):
            return
        self.length = said.length
        if said.codings:
            try:
                self.decoder = Decoder(said.codings, transfer.max_response_bytes)
            except DecodingError:
                code = pycurl.E_BAD_CONTENT_ENCODING
                raise WireError(words(code), possibly_sent=True, code=code) from None

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
        self.wire_bytes += size
        decoder = self.decoder
        if decoder is None:
            if self.wire_bytes > transfer.max_response_bytes:
                return self._abort(f"response body exceeds {transfer.max_response_bytes} bytes")
            if self.wire_bytes <= transfer.max_wire_bytes:
                transfer.take(chunk)
                return None
        elif self.wire_bytes <= transfer.max_wire_bytes:
            try:
                for piece in decoder.decode(chunk):
                    transfer.take(piece)
            except BodyTooLarge:
                return self._abort(f"response body exceeds {transfer.max_response_bytes} bytes")
            except DecodingError:
                return self._abort(words(pycurl.E_BAD_CONTENT_ENCODING))
            return None
        return self._abort(self.too_long_on_the_wire(transfer))

    @staticmethod
    def too_long_on_the_wire(transfer: Transfer) -> str:
        return f"response body exceeds {transfer.max_wire_bytes} bytes on the wire"

    def _abort(self, message: str) -> int:
        """Have libcurl break off the transfer, and close the connection or reset the stream."""
        transfer = self.transfer
        sent = transfer is None or not self._in_tunnel(transfer)
        self.fault = WireError(message, kind="response", possibly_sent=sent)
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
        if code == 0:
            transfer.first_byte = info(pycurl.STARTTRANSFER_TIME)
            code = self._whole(transfer)
            return Failure(code, "", True, None) if code else None
        sent = info(pycurl.REQUEST_SIZE) > 0
        proxy = self.connection.proxy
        if proxy is not None and secure:
            # What was sent may only have asked the proxy for the tunnel.
            sent = sent and info(pycurl.PRETRANSFER_TIME) > 0
        fault = self.fault
        if fault is not None:
            return Failure(code, text, sent, fault)
        if proxy is not None:
            message = None
            if secure:
                answered = info(pycurl.HTTP_CONNECTCODE)
                if answered // 100 != 2 and self.opened:
                    message = f"proxy {proxy.host}: {words(code)}"
                    if answered:
                        message = f"proxy {proxy.host} refused the tunnel with status {answered}"
            elif not sent:
                message = f"proxy {proxy.host}: {words(code)}"
            if message is not None and code != pycurl.E_OPERATION_TIMEDOUT:
                # Nothing came of this connection, whatever went over one before it.
                kind = WireError(message, code=code).kind
                fault = WireError(message, kind=kind, possibly_sent=sent, code=code, detail=text)
        elif code in (pycurl.E_OUT_OF_MEMORY, _TOO_LARGE) or "Out of memory in chunk" in text:
            # A line of a header is longer than libcurl takes.
            limit = min(transfer.max_header_bytes, _LONGEST_LINE)
            message = f"response headers exceed {limit} bytes"
            fault = WireError(message, kind="response", possibly_sent=sent)
        return Failure(code, text, sent, fault, not self.opened and not self.header_bytes)

    def _whole(self, transfer: Transfer) -> int:
        """0 where all of an answer has come, otherwise what libcurl should have said."""
        if not self.final or (self.length is not None and self.length != self.wire_bytes):
            return int(pycurl.E_PARTIAL_FILE)
        if self.decoder is not None:
            try:
                self.decoder.finish()
            except DecodingError:
                return int(pycurl.E_BAD_CONTENT_ENCODING)
        if self.section:
            transfer.head.fields.extend(parse_fields(bytes(self.section)))
        return 0

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
            self.fault = _as_wire_error(refusal)
        except OSError:
            pass
        else:
            return _Descriptor(made.detach())
        return int(pycurl.SOCKET_BAD)

    def _on_opened(self, fd: int, _purpose: int) -> int:
        self.socket = fd
        self.multi.on_new_socket(self, fd)
        return 0


class _Heavy:
    """A socket that keeps libcurl busy: for how long, and with what it does not hand out.

    transfers: those that use it; unseen: bytes received and not handed out, when that began.
    """

    __slots__ = ("seconds", "transfers", "unseen")

    def __init__(self, transfers: list[Transfer], unseen: int) -> None:
        self.seconds = 0.0
        self.transfers = transfers
        self.unseen = unseen


class _Pending(NamedTuple):
    """A transfer that waits for another one's connection, and until when (time.monotonic)."""

    slot: _Slot
    transfer: Transfer
    until: float


# Of a connection: the local port, the peer's address and its port. The first alone is not enough:
# to another server the same one is given again.
_Ends = tuple[int, str, int]


def _ends(connection: socket.socket) -> _Ends:
    address, port = connection.getpeername()[:2]
    return connection.getsockname()[1], address, port


def _ends_of(curl: pycurl.Curl) -> _Ends:
    """The connection that a transfer uses, or has used."""
    info = curl.getinfo
    return info(pycurl.LOCAL_PORT), info(pycurl.PRIMARY_IP), info(pycurl.PRIMARY_PORT)


class _Multi:
    """One libcurl multi handle with its connections, in gevent's loop.

    `retire()` makes it end after its last transfer, so that no connection outlives the rules it
    was made under.

    connections: how many idle ones are kept.
    alone: none is kept, and each transfer has one of its own.
    """

    def __init__(self, transport: Transport, connections: int, alone: bool = False) -> None:
        self._transport = transport
        self.alone = alone
        self._loop = transport.hub.loop
        self._multi = multi = pycurl.CurlMulti()
        multi.setopt(pycurl.M_SOCKETFUNCTION, self._on_socket)
        multi.setopt(pycurl.M_TIMERFUNCTION, self._on_timer)
        multi.setopt(pycurl.M_MAXCONNECTS, connections)
        self._epoll = select.epoll()
        self._wanted: dict[int, int] = {}
        self._registered: dict[int, int] = {}
        self._watcher = self._loop.io(self._epoll.fileno(), 1)
        self._watcher.start(self._on_events)
        self._timer = self._loop.timer(0.0)
        self._armed: float | None = None
        self._due: float | None = None
        self._kicked = False
        self._busy: dict[pycurl.Curl, _Slot] = {}
        self._connections = connections
        self._free: dict[ConnectionSettings, list[_Slot]] = {}
        self._free_count = 0
        self._acting = False
        self._again = self._loop.timer(0.0)
        # Sockets that had something to say when a turn was over.
        self._late: set[int] = set()
        # Sockets that keep libcurl busy.
        self._heavy: dict[int, _Heavy] = {}
        # Which sockets the numbers stand for: a number may be another file's by now.
        self._inodes: dict[int, int] = {}
        # Those that speak HTTP/2, which may have something to say at any time.
        self.framed: set[int] = set()
        # Requests to be sent once only, which have not begun yet.
        self._once: list[_Slot] = []
        # Requests on connections that others may use too, and that libcurl must not repeat.
        self._delicate: set[_Slot] = set()
        # Those that may wait for another one's connection: when they began, and those that do.
        self._sharing: list[_Slot] = []
        self._pending: list[_Pending] = []
        self._pending_timer = self._loop.timer(0.0)
        # TLS within TLS: libcurls with GnuTLS forget what the outer one has read ahead.
        self._nested: set[_Slot] = set()
        self._nested_sockets: set[int] = set()
        self._nudge = self._loop.timer(0.0)
        self._pending_until = 0.0
        # By local port: until when there may come what was sent before a stream was reset.
        self._resets: dict[_Ends, float] = {}
        self._retired = self._closed = False

    def __len__(self) -> int:
        return len(self._busy)

    def add(self, transfer: Transfer, address: str, more: int) -> None:
        """Begin a transfer."""
        connection = transfer.route.connection
        pool = self._free.get(connection)
        if pool is None:
            pool = self._free[connection] = []
        if pool:
            slot = pool.pop()
            self._free_count -= 1
        else:
            slot = _Slot(self._transport, self, connection, pool)
        try:
            slot.prepare(transfer, address, more)
        except BaseException:
            slot.release()
            slot.curl.close()
            raise
        transfer._slot = slot
        transfer._multi = self
        self._busy[slot.curl] = slot
        if connection.proxy_tls is not None and transfer.route.origin.scheme == "https":
            self._nested.add(slot)
            if len(self._nested) == 1:
                self._nudge_later()
        if slot.shares:
            self._sharing.append(slot)
            if transfer.method not in _IDEMPOTENT:
                self._delicate.add(slot)
        elif self.alone or transfer.method not in _IDEMPOTENT:
            self._once.append(slot)
        try:
            self._multi.add_handle(slot.curl)
        except BaseException:
            del self._busy[slot.curl]
            self._put_back(slot)
            raise

    def drop(self, slot: _Slot) -> None:
        """Stop a transfer; its connection is closed, since nobody knows what still comes."""
        if self._busy.pop(slot.curl, None) is not None:
            self._multi.remove_handle(slot.curl)
            self._break_off(slot)
            self._put_back(slot)

    def _break_off(self, slot: _Slot, whole: bool = False) -> None:
        """What still comes of an answer in HTTP/2 that nobody wants any more is not to be read.

        Where others use the connection too, it has to be, unless it cannot be used any more.
        whole: end the connection with all that use it.
        """
        if not slot.shares:
            return
        ends = _ends_of(slot.curl)
        if not whole and any(_ends_of(curl) == ends for curl in self._busy):
            now = time.monotonic()
            self._resets = {p: until for p, until in self._resets.items() if until > now}
            self._resets[ends] = now + _RESET_TAKES
        else:
            for fd in self._registered:
                with suppress(OSError), self._borrowed(fd) as connection:
                    if _ends(connection) == ends:
                        connection.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def _borrowed(self, fd: int) -> Iterator[socket.socket]:
        """A socket of libcurl's, by its number, as long as it is still that socket.

        libcurl does not tell when it closes one that nobody waits for; then the number may be that
        of any other file of this process.

        Errors: OSError where it is not.
        """
        if os.fstat(fd).st_ino != self._inodes.get(fd):
            self._inodes.pop(fd, None)
            raise OSError(errno.EBADF, "not this socket any more")
        borrowed = socket.socket(fileno=fd)
        try:
            yield borrowed
        finally:
            borrowed.detach()

    def retire(self) -> None:
        """Take no new transfers, and close after the last."""
        self._retired = True
        self._close_when_idle()

    def on_new_socket(self, slot: _Slot, fd: int) -> None:
        """A number that comes again is another socket: the kernel forgot it when it was closed."""
        self._inodes[fd] = os.fstat(fd).st_ino
        self._registered.pop(fd, None)
        self._heavy.pop(fd, None)
        self.framed.discard(fd)
        if slot.connection.proxy_tls is not None:
            self._nested_sockets.add(fd)
        else:
            self._nested_sockets.discard(fd)

    def _put_back(self, slot: _Slot) -> None:
        slot.release()
        if self._nested:
            self._nested.discard(slot)
        if self._delicate:
            self._delicate.discard(slot)
        if self._retired:
            slot.curl.close()
            self._loop.run_callback(self._close_when_idle)
        elif self._free_count >= self._connections:
            slot.curl.close()
        else:
            self._free_count += 1
            slot.pool.append(slot)

    def _close_when_idle(self) -> None:
        if self._busy or self._closed or not self._retired:
            return
        self._closed = True
        for slots in self._free.values():
            for slot in slots:
                slot.curl.close()
        self._free.clear()
        self._watcher.close()
        self._timer.close()
        self._nudge.close()
        self._again.close()
        self._pending_timer.close()
        self._multi.close()
        self._epoll.close()

    def _on_socket(self, what: int, fd: int, _multi: Any, _data: Any) -> None:
        """libcurl tells which readiness of a socket it waits for.

        A socket that nobody waits for stays in the set until it says something: a kept
        connection is so used again and again without a system call for it.
        """
        if what == pycurl.POLL_REMOVE:
            self._wanted.pop(fd, None)
            if self._heavy:
                self._heavy.pop(fd, None)
            return
        mask = (select.EPOLLIN | select.EPOLLRDHUP if what & pycurl.POLL_IN else 0) | (
            select.EPOLLOUT if what & pycurl.POLL_OUT else 0
        )
        self._wanted[fd] = mask
        known = self._registered.get(fd)
        if known == mask:
            return
        try:
            if known is None:
                self._epoll.register(fd, mask)
            else:
                self._epoll.modify(fd, mask)
        except FileExistsError:
            self._epoll.modify(fd, mask)
        except FileNotFoundError:
            self._epoll.register(fd, mask)
        self._registered[fd] = mask

    def _on_timer(self, milliseconds: int) -> None:
        if milliseconds < 0:
            self._due = None
        elif milliseconds == 0:
            self._kick()
        else:
            due = time.monotonic() + milliseconds / 1000
            self._due = due
            # An earlier alarm looks again by itself; most deadlines never come due.
            if self._armed is None or due < self._armed:
                self._arm(due)

    def _arm(self, due: float) -> None:
        self._timer.close()
        self._timer = self._loop.timer(max(due - time.monotonic(), 0.001))
        self._timer.start(self._on_alarm, update=True)
        self._armed = due

    def _on_alarm(self) -> None:
        self._armed = None
        if self._due is None:
            return
        if self._due - time.monotonic() > 0.001:
            self._arm(self._due)
            return
        self._due = None
        self._kick()

    def _kick(self) -> None:
        if self._kicked:
            return
        self._kicked = True
        if self._acting:
            # libcurl has had its turn, and wants another: everybody else comes first.
            self._again.close()
            self._again = self._loop.timer(0.0)
            self._again.start(self._on_kick)
        else:
            self._loop.run_callback(self._on_kick)

    def _on_kick(self) -> None:
        if self._closed:
            return
        self._kicked = False
        if len(self._registered) > len(self._wanted):
            # What a kept connection has said by now is no answer to a request that begins here.
            self._on_events()
        self._act(pycurl.SOCKET_TIMEOUT, 0)
        for slot in self._once:
            if slot.transfer is not None:
                slot.only_once()
        self._once.clear()
        if self._sharing:
            self._look_for_pending()
        self._reap()

    def _look_for_pending(self) -> None:
        """See who waits for another one's connection: libcurl forgets their deadlines."""
        now = time.monotonic()
        for slot in self._sharing:
            transfer = slot.transfer
            if transfer is not None and slot.is_pending:
                when = min(now + _LONGEST_PENDING, transfer.deadline)
                self._pending.append(_Pending(slot, transfer, when))
                if len(self._pending) == 1 or when < self._pending_until:
                    self._wait_for_pending(when)
        self._sharing.clear()

    def _wait_for_pending(self, until: float) -> None:
        self._pending_until = until
        self._pending_timer.close()
        self._pending_timer = self._loop.timer(max(until - time.monotonic(), 0.0))
        self._pending_timer.start(self._on_pending, update=True)

    def _on_pending(self) -> None:
        """Have those that have waited long enough make connections of their own, or end."""
        now = time.monotonic()
        pending, self._pending = self._pending, []
        for each in pending:
            slot, transfer = each.slot, each.transfer
            if slot.transfer is not transfer or not slot.is_pending:
                continue
            if each.until > now:
                self._pending.append(each)
            elif transfer.deadline <= now:
                self._ended(slot.curl, pycurl.E_OPERATION_TIMEDOUT, "")
            else:
                self._multi.remove_handle(slot.curl)
                slot.share(False)
                slot.limit_time(transfer, len(transfer._addresses))
                self._multi.add_handle(slot.curl)
        if self._pending:
            self._wait_for_pending(min(each.until for each in self._pending))

    def _on_nudge(self) -> None:
        """Have libcurl read where its socket has nothing more to say, but its TLS may have."""
        for fd in self._nested_sockets & self._wanted.keys():
            self._act(fd, pycurl.CSELECT_IN)
        self._reap()
        if self._nested:
            self._nudge_later()

    def _nudge_later(self) -> None:
        self._nudge.close()
        self._nudge = self._loop.timer(_NUDGE_INTERVAL)
        self._nudge.start(self._on_nudge, update=True)

    def _on_events(self) -> None:
        try:
            events = self._epoll.poll(0, _EVENTS_PER_TURN)
            wanted = self._wanted
            for fd, _ in events:
                if fd not in wanted:
                    self._forget(fd)
            end = time.perf_counter() + _LONGEST_TURN
            if self._late:
                # For whom there was no time in the last turn comes first in this one.
                late, self._late = self._late, set()
                events.sort(key=lambda event: event[0] not in late)
            for at, (fd, event) in enumerate(events):
                if fd not in wanted:
                    continue
                mask = 0
                if event & ~select.EPOLLOUT:
                    mask = pycurl.CSELECT_IN
                if event & select.EPOLLOUT:
                    mask |= pycurl.CSELECT_OUT
                if event & select.EPOLLERR:
                    mask |= pycurl.CSELECT_ERR
                if event & _ENDED and self._delicate:
                    self._spare(fd)
                if self._act(fd, mask) > end:
                    self._late = {fd for fd, _ in events[at + 1 :]}
                    break
        finally:
            self._reap()

    def _spare(self, fd: int) -> None:
        """A connection has ended: what may not be done twice is not to be sent once more.

        libcurl repeats what was sent over a connection that had been used before. It may do so as
        long as the connection stands, when a stream of HTTP/2 was refused.
        """
        with suppress(OSError), self._borrowed(fd) as ended:
            # Of a connection that was reset, this is all that is left.
            port = ended.getsockname()[1]
            for slot in self._delicate:
                if slot.curl.getinfo(pycurl.LOCAL_PORT) == port:
                    slot.only_once()

    def _forget(self, fd: int) -> None:
        """A kept connection has something to say, or has ended: it is not to be used again.

        An answer that nobody asked for would be taken for that of the next request. (In HTTP/2
        answers have numbers, and libcurl reads on its own what else there is.)
        """
        if self._registered.pop(fd, None) is None:
            return
        try:
            self._epoll.unregister(fd)
            if fd not in self.framed:
                with self._borrowed(fd) as kept:
                    kept.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def _act(self, fd: int, mask: int) -> float:
        """Have libcurl work; returns when (time.perf_counter) it was done."""
        began = time.perf_counter()
        self._acting = True
        try:
            self._multi.socket_action(fd, mask)
        except pycurl.error:
            # A socket that libcurl does not know (any more): nothing may wait for it.
            self._wanted.pop(fd, None)
            self._forget(fd)
        finally:
            self._acting = False
        ended = time.perf_counter()
        if ended - began > _LONG:
            # What libcurl did on its own, it mostly did for those that were heavy before.
            for heavy in (fd,) if fd != pycurl.SOCKET_TIMEOUT else list(self._heavy):
                if heavy in self._wanted:
                    self._weigh(heavy, ended - began)
        return ended

    def _weigh(self, fd: int, seconds: float) -> None:
        """See to it that nobody keeps us busy with what is neither header nor body.

        libcurl counts no framing: endless extensions of a chunk, or empty frames of HTTP/2.
        """
        heavy = self._heavy.get(fd)
        if heavy is not None:
            heavy.seconds += seconds
            if heavy.seconds < _HEAVY:
                return
        try:
            with self._borrowed(fd) as connection:
                ends = _ends(connection)
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
                (received,) = _BYTES_RECEIVED.unpack_from(info, _BYTES_RECEIVED_AT)
                slots = [slot for slot in self._busy.values() if _ends_of(slot.curl) == ends]
                transfers = [slot.transfer for slot in slots if slot.transfer is not None]
                unseen = received - sum(slot.header_bytes + slot.wire_bytes for slot in slots)
                # For a while there comes what belongs to answers that were broken off.
                excused = time.monotonic() < self._resets.get(ends, 0.0)
                if heavy is None or heavy.transfers != transfers or excused:
                    self._heavy[fd] = _Heavy(transfers, unseen)
                    return
                heavy.seconds = 0.0
                allowed = sum(t.max_wire_bytes + t.max_header_bytes for t in transfers)
                if unseen - heavy.unseen <= allowed:
                    return
                connection.shutdown(socket.SHUT_RDWR)
        except (OSError, struct.error):
            self._heavy.pop(fd, None)
            return
        del self._heavy[fd]
        for slot, transfer in zip(slots, transfers, strict=True):
            sent = slot.curl.getinfo(pycurl.REQUEST_SIZE) > 0
            # Before a request is sent there is only the handshake.
            code = pycurl.E_SSL_CONNECT_ERROR
            if sent:
                slot.fault = WireError(slot.too_long_on_the_wire(transfer), possibly_sent=True)
            else:
                slot.fault = WireError(words(code), code=code)
            self._ended(slot.curl, pycurl.E_WRITE_ERROR, "")

    def _reap(self) -> None:
        """Hand out what has ended."""
        left = 1
        while left:
            left, good, bad = self._multi.info_read()
            for curl in good:
                self._ended(curl, 0, "")
            for curl, code, text in bad:
                self._ended(curl, code, text)

    def _ended(self, curl: pycurl.Curl, code: int, text: str) -> None:
        slot = self._busy.pop(curl, None)
        if slot is None:
            return
        transfer = slot.transfer
        if transfer is None:
            return
        transport = self._transport
        try:
            failure = slot.collect(transfer, code, text)
            self._multi.remove_handle(curl)
            if failure is not None:
                # libcurl tells one transfer only that a connection has failed, and gives what is
                # left of a header section to another one.
                broken = code in _BROKEN or (failure.fault is not None and not slot.final)
                if broken or failure.fault or code == pycurl.E_OPERATION_TIMEDOUT:
                    self._break_off(slot, broken)
            self._put_back(slot)
            if failure is None:
                transfer.finish()
            else:
                transport.failed(transfer, failure)
        except Exception as error:
            transport.hub.handle_error(self, type(error), error, error.__traceback__)
            internal = "internal error in the wire"
            transfer.fail(WireError(internal, kind="request", possibly_sent=True))


class Transport:
    """Transfers by libcurl, each to an address that the guard has checked.

    guard: asked before a connection is made, for the name and for each address.
    hosts: what is special about some hosts.
    connections: how many idle connections are kept.
    resolver: looks names up; one with the system's name servers if none is given.
    """

    def __init__(
        self,
        guard: Guard,
        hosts: HostTable | None = None,
        *,
        connections: int = 256,
        hub: Any = None,
        resolver: Resolver | None = None,
    ) -> None:
        self.hub = hub if hub is not None else gevent.get_hub()
        self.guard = guard
        self.hosts = hosts if hosts is not None else HostTable()
        self._connections = connections
        self._resolver = resolver if resolver is not None else Resolver(hub=self.hub)
        self._multi = _Multi(self, connections)
        # Of requests that go out once at most: libcurl would let others wait for their connections,
        # and take the server for one that speaks no HTTP/2.
        self._alone: _Multi | None = None
        self._routes: dict[tuple[str, HostSettings | None, bool], Route] = {}
        # Equal settings are one object, which is soon compared.
        self._settings: dict[ConnectionSettings, ConnectionSettings] = {}

    def route(self, url: str, settings: HostSettings | None = None, once: bool = False) -> Route:
        """How requests for a URL go.

        settings: what is special about its host; None is what the table of hosts says.
        once: whether their bytes may go out once only.
        Errors: WireError for what is no http or https URL, and for settings that cannot be used.
        """
        # Scheme and authority, as far as they end with a slash.
        end = url.find("/", 8)
        if end > 0:
            known = self._routes.get((url[:end], settings, once))
            if known is not None and is_plain(url):
                return known
        origin = Origin.of(url)
        special = settings if settings is not None else self.hosts.of(origin.host)
        if special.fault is not None:
            raise WireError(special.fault)
        route = Route(origin, special, self.hosts, once)
        route.connection = self._settings.setdefault(route.connection, route.connection)
        if len(self._routes) >= _MOST_ROUTES:
            self._routes.clear()
        match = match_origin(url)
        if match is not None:
            self._routes[match.group(0), settings, once] = route
        return route

    def start(self, transfer: Transfer) -> None:
        """Begin a transfer; never blocks, and never calls `done` before it returns."""
        route = transfer.route
        try:
            if route.until > time.monotonic():
                transfer._addresses = route.addresses
                self._connect(transfer)
            else:
                self._find(transfer)
        except Exception as error:
            self.hub.loop.run_callback(transfer.fail, self._failure(error))

    def cancel(self, transfer: Transfer) -> None:
        """Stop a transfer; `done` is not called any more."""
        transfer.done = None
        if transfer._lookup is not None:
            transfer._lookup.cancel()
        if transfer._slot is not None and transfer._multi is not None:
            transfer._multi.drop(transfer._slot)

    def configure(self, guard: Guard, hosts: HostTable | None = None) -> None:
        """Follow other rules: no connection and no name from before is used again.

        hosts: None leaves them as they are.
        """
        self.guard = guard
        if hosts is not None:
            self.hosts = hosts
        self._routes.clear()
        self._settings.clear()
        self._resolver.clear()
        self._retire()
        self._multi = _Multi(self, self._connections)

    def close(self) -> None:
        """Release sockets and watchers; transfers must have ended or been cancelled."""
        self._routes.clear()
        self._settings.clear()
        self._resolver.close()
        self._retire()

    def _retire(self) -> None:
        self._multi.retire()
        if self._alone is not None:
            self._alone.retire()
            self._alone = None

    def check_address(self, route: Route, address: str) -> None:
        """Ask the guard for an address that is about to be connected to.

        Errors: EgressRefused.
        """
        try:
            self.guard.check_address(route.peer, address, route.port)
        except EgressRefused as refusal:
            if route.connection.proxy is None:
                raise
            raise EgressRefused(f"proxy {refusal}") from None

    def _check_names(self, route: Route) -> None:
        origin, proxy = route.origin, route.connection.proxy
        if proxy is None:
            self.guard.check_host(origin.host, origin.port)
            return
        self.guard.check_behind_proxy(origin.host, origin.port)
        try:
            self.guard.check_name(proxy.host)
        except EgressRefused as refusal:
            raise EgressRefused(f"proxy {refusal}") from None

    def _find(self, transfer: Transfer) -> None:
        route = transfer.route
        self._check_names(route)
        known = self._resolver.cached(route.peer)
        if known is not None:
            self._found(transfer, known)
            return
        asked = time.monotonic()

        def found(addresses: tuple[str, ...], error: ResolveError | None) -> None:
            transfer._lookup = None
            transfer.name_seconds += time.monotonic() - asked
            if error is not None:
                transfer.fail(self._unresolved(transfer, error))
                return
            try:
                # The rules may have changed while the name was looked up.
                self._check_names(route)
                self._found(transfer, addresses)
            except Exception as failure:
                transfer.fail(self._failure(failure))

        transfer._lookup = self._resolver.lookup(route.peer, transfer.deadline - asked, found)

    def _found(self, transfer: Transfer, addresses: tuple[str, ...]) -> None:
        """Keep the addresses that the guard allows, and connect to the first."""
        route = transfer.route
        allowed = []
        refusal: EgressRefused | None = None
        for address in addresses:
            try:
                self.check_address(route, address)
            except EgressRefused as error:
                refusal = refusal or error
            else:
                allowed.append(address)
        if not allowed:
            raise refusal or EgressRefused(f"{route.peer} has no address")
        transfer._addresses = route.addresses = tuple(allowed)
        route.until = self._resolver.good_until(route.peer)
        self._connect(transfer)

    def _connect(self, transfer: Transfer) -> None:
        addresses = transfer._addresses
        transfer.address = addresses[0]
        transfer._addresses = addresses[1:]
        self._add(transfer, addresses[0])

    def _connect_to(self, transfer: Transfer, address: str | None) -> None:
        """Begin a transfer anew, whose former attempt has failed."""
        transfer.address = address
        try:
            self._add(transfer, address or "")
        except Exception as error:
            transfer.fail(self._failure(error))

    def _add(self, transfer: Transfer, address: str) -> None:
        multi = self._multi
        if transfer.route.once:
            if self._alone is None:
                self._alone = _Multi(self, self._connections, alone=True)
            multi = self._alone
        multi.add(transfer, address, len(transfer._addresses))

    def failed(self, transfer: Transfer, failure: Failure) -> None:
        """A transfer ended with one of libcurl's errors: say so, or try the next address."""
        transfer._sent = transfer._sent or failure.sent
        if failure.fault is not None:
            transfer.fail(failure.fault)
            return
        code, sent = failure.code, failure.sent
        died = code == pycurl.E_SEND_ERROR and "Connection died" in failure.text
        # Servers end kept connections just when the next request comes. libcurl knows it, but not
        # over TLS, and it counts how often it met one with all the transfers of a handle.
        ended = died or (failure.unheard and code in _ENDS)
        may_repeat = transfer.method in _IDEMPOTENT and not transfer.route.once
        if ended and may_repeat and not transfer._repeated:
            transfer._repeated = True
            self._connect_to(transfer, transfer.address)
            return
        kind: Kind | None = None
        if died:
            code = pycurl.E_GOT_NOTHING
        elif code == _BAD_FUNCTION_ARGUMENT and sent:
            # So it calls some sizes of chunks.
            code, kind = pycurl.E_RECV_ERROR, "response"
        elif code == pycurl.E_RECV_ERROR and sent and "chunk" in failure.text:
            kind = "response"
        timed_out = code == pycurl.E_OPERATION_TIMEDOUT
        connecting = not sent and transfer.appconnect == 0
        if (
            (code == pycurl.E_COULDNT_CONNECT or (timed_out and connecting))
            and transfer._addresses
            and not (transfer._sent and transfer.route.once)
            and transfer.deadline - time.monotonic() > 0.001
        ):
            if transfer.address is not None:
                transfer.route.avoid(transfer.address)
            address, *left = transfer._addresses
            transfer._addresses = tuple(left)
            self._connect_to(transfer, address)
            return
        if timed_out:
            transfer.fail(self.timeout_error(transfer, sent))
            return
        if transfer.route.origin.scheme == "https":
            code = _tls_code(code, failure.text)
        transfer.fail(
            WireError(words(code), kind=kind, possibly_sent=sent, code=code, detail=failure.text)
        )

    def _failure(self, error: Exception) -> WireError:
        """The outcome of a transfer that could not be begun: there is one, whatever went wrong."""
        if isinstance(error, (WireError, EgressRefused)):
            return _as_wire_error(error)
        if isinstance(error, pycurl.error):
            code = int(error.args[0]) if error.args else 0
            return WireError(words(code), code=code)
        self.hub.handle_error(self, type(error), error, error.__traceback__)
        return WireError("internal error in the wire")

    def timeout_error(self, transfer: Transfer, sent: bool) -> WireError:
        """The error of a deadline, with where the time went."""
        total = time.monotonic() - transfer.started
        name = transfer.name_seconds
        handshake = max(transfer.connect, transfer.appconnect)
        if not sent and handshake == 0:
            handshake = total - name
        limit, what = transfer.timeout, "Timeout"
        kind: Kind = "timeout"
        if time.monotonic() < transfer.deadline - 0.05:
            limit, what, kind = transfer.connect_timeout, "Connect timeout", "connect"
        rest = max(total - name - handshake, 0.0)
        return WireError(
            f"{what} of {round(limit * 1000)} ms reached. Total time: {total * 1000:.6f} ms "
            f"(DNS time: {name * 1000:.6f} ms, "
            f"TCP/SSL handshake time: {handshake * 1000:.6f} ms, "
            f"HTTP Request/Response time: {rest * 1000:.6f} ms)",
            kind=kind,
            timed_out=True,
            possibly_sent=sent,
            code=pycurl.E_OPERATION_TIMEDOUT,
        )

    def _unresolved(self, transfer: Transfer, error: ResolveError) -> WireError:
        if error.timed_out:
            total = time.monotonic() - transfer.started
            name = transfer.name_seconds
            return WireError(
                f"Timeout of {round(transfer.timeout * 1000)} ms reached. "
                f"Total time: {total * 1000:.6f} ms (DNS time: {name * 1000:.6f} ms, "
                f"TCP/SSL handshake time: {0:.6f} ms, "
                f"HTTP Request/Response time: {max(total - name, 0.0) * 1000:.6f} ms)",
                timed_out=True,
                code=pycurl.E_OPERATION_TIMEDOUT,
            )
        direct = transfer.route.connection.proxy is None
        code = pycurl.E_COULDNT_RESOLVE_HOST if direct else pycurl.E_COULDNT_RESOLVE_PROXY
        return WireError(words(code), code=code, detail=str(error))


def _tls_code(code: int, text: str) -> int:
    """The number of what it really was, where GnuTLS' libcurl has a vaguer one."""
    if code == pycurl.E_SSL_CONNECT_ERROR and "X.509 key or certificate" in text:
        return int(pycurl.E_SSL_CERTPROBLEM)
    if code in (pycurl.E_RECV_ERROR, pycurl.E_SEND_ERROR) and "alert" in text:
        # In TLS 1.3 a server refuses the client's certificate when the handshake is over.
        return int(pycurl.E_SSL_CONNECT_ERROR)
    return code


def _as_wire_error(error: WireError | EgressRefused) -> WireError:
    if isinstance(error, WireError):
        return error
    refused = WireError(str(error))
    refused.__cause__ = error
    return refused
