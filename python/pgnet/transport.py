"""requests over libcurl's multi interface, driven by gevent's loop: callbacks, no threads.

All of libcurl's sockets stand in one epoll set, which a single gevent watcher watches; libcurl's
timer is a single gevent timer. A request costs no greenlet and no watcher of its own.
"""

from __future__ import annotations

import datetime
import io
import math
import os
import re
import select
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import gevent
import pycurl
import requests
from gevent.event import AsyncResult
from requests.adapters import BaseAdapter
from requests.cookies import RequestsCookieJar
from requests.structures import CaseInsensitiveDict
from requests.utils import get_encoding_from_headers, select_proxy

import pgnet
from pgnet.guard import EgressRefused, EgressRules, Guard, literal_address
from pgnet.resolve import Lookup, ResolveError, Resolver

# libcurl's classic words: newer libcurls change them, users compare with them.
_WORDS = {
    pycurl.E_UNSUPPORTED_PROTOCOL: "Unsupported protocol",
    pycurl.E_URL_MALFORMAT: "URL using bad/illegal format or missing URL",
    pycurl.E_COULDNT_RESOLVE_HOST: "Couldn't resolve host name",
    pycurl.E_COULDNT_CONNECT: "Couldn't connect to server",
    8: "Weird server reply",
    16: "Error in the HTTP2 framing layer",
    pycurl.E_PARTIAL_FILE: "Transferred a partial file",
    pycurl.E_WRITE_ERROR: "Failed writing received data to disk/application",
    pycurl.E_READ_ERROR: "Failed to open/read local data from file/application",
    pycurl.E_OUT_OF_MEMORY: "Out of memory",
    pycurl.E_OPERATION_TIMEDOUT: "Timeout was reached",
    pycurl.E_SSL_CONNECT_ERROR: "SSL connect error",
    pycurl.E_TOO_MANY_REDIRECTS: "Number of redirects hit maximum amount",
    pycurl.E_GOT_NOTHING: "Server returned nothing (no headers, no data)",
    pycurl.E_SEND_ERROR: "Failed sending data to the peer",
    pycurl.E_RECV_ERROR: "Failure when receiving data from the peer",
    pycurl.E_SSL_CERTPROBLEM: "Problem with the local SSL certificate",
    pycurl.E_SSL_CIPHER: "Couldn't use specified SSL cipher",
    60: "SSL peer certificate or SSH remote key was not OK",
    pycurl.E_BAD_CONTENT_ENCODING: "Unrecognized or bad HTTP Content or Transfer-Encoding",
    pycurl.E_SEND_FAIL_REWIND: "Send failed since rewinding of the data stream failed",
    77: "Problem with the SSL CA cert (path? access rights?)",
    91: "SSL server certificate status verification FAILED",
    92: "Stream error in the HTTP/2 framing layer",
}
_CERTIFICATE_CODES = (51, 58, 60, 77, 83, 91)

# Scheme, host, port; whatever else an authority may hold (user names, percent signs) is refused.
_ORIGIN = re.compile(
    r"(https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_](?:[A-Za-z0-9._-]*))(?::([0-9]{1,5}))?(?=[/?#]|\Z)"
)
_UNPRINTABLE = re.compile(r"[^\x21-\x7e]")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BAD_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# The client's own: with them a caller could smuggle a request or speak to a proxy.
_FORBIDDEN = frozenset(
    [
        "host",
        "content-length",
        "transfer-encoding",
        "te",
        "trailer",
        "connection",
        "keep-alive",
        "upgrade",
        "expect",
    ]
)
# An empty value takes libcurl's own header away: nobody asked for these.
_UNASKED = (b"Accept:", b"Accept-Encoding:", b"Content-Type:", b"Expect:")
_UNASKED_NAMES = ("accept", "accept-encoding", "content-type", "expect")
USER_AGENT = f"pgnet/{pgnet.__version__}"
_USUAL = [f"User-Agent: {USER_AGENT}".encode(), *_UNASKED]
_CODINGS = "gzip, deflate, br"

_CA_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
# A turn of the loop hands libcurl this many sockets at most: others get their turn too.
_EVENTS_PER_TURN = 256
# A pooled handle gives back what it holds of a request body above this size.
_LARGE_BODY = 65536


def ca_bundle() -> str:
    """The path of the certificate authorities trusted by default.

    The system's bundle, where its administrator adds authorities; certifi's where there is none.
    """
    for path in _CA_BUNDLES:
        if os.path.exists(path):
            return path
    return requests.utils.DEFAULT_CA_BUNDLE_PATH


class WireError(requests.RequestException):
    """No response came, or none that may be used.

    message: what stands in error_msg, free of the request's values.
    timed_out: the total deadline, or that for connecting, was reached.
    possibly_sent: the server may have seen the request, wholly or in part.
    detail: what libcurl had to say beyond the message; may be empty.
    """

    def __init__(
        self,
        message: str,
        *,
        timed_out: bool = False,
        possibly_sent: bool = False,
        code: int = 0,
        detail: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.timed_out = timed_out
        self.possibly_sent = possibly_sent
        self.code = code
        self.detail = detail


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """What a connection's security depends on; connections are shared only between equals.

    verify: whether the server's certificate and name are checked.
    ca: path of a bundle or a directory of authorities; None is the default bundle.
    """

    verify: bool = True
    ca: str | None = None


_DEFAULT_TLS = TlsSettings()


class Transfer:
    """One request to one server: what is asked, and then what came of it.

    The asking side fills `method`, `url`, `headers` (lines as encode_headers makes them), `body`
    and the limits; `done(transfer)` is called once, from the loop, and must not block.
    """

    __slots__ = (
        "_addresses",
        "_lookup",
        "_multi",
        "_origin",
        "_slot",
        "address",
        "appconnect",
        "body",
        "chunks",
        "connect",
        "connect_timeout",
        "deadline",
        "done",
        "error",
        "first_byte",
        "header_lines",
        "headers",
        "hop_started",
        "max_header_bytes",
        "max_response_bytes",
        "method",
        "name_seconds",
        "secure",
        "started",
        "status",
        "timeout",
        "tls",
        "total",
        "url",
    )

    def __init__(
        self,
        method: str,
        url: str,
        headers: list[bytes],
        body: bytes | None,
        *,
        started: float,
        timeout: float,
        connect_timeout: float,
        max_response_bytes: int,
        max_header_bytes: int,
        done: Callable[[Transfer], None],
        tls: TlsSettings = _DEFAULT_TLS,
    ) -> None:
        self.method = method
        self.url = url
        self.headers = headers
        self.body = body
        self.started = started
        self.timeout = timeout
        self.deadline = started + timeout
        self.connect_timeout = connect_timeout
        self.max_response_bytes = max_response_bytes
        self.max_header_bytes = max_header_bytes
        self.tls = tls
        self.secure = False
        self.done: Callable[[Transfer], None] | None = done
        self.status = 0
        self.header_lines: list[bytes] = []
        self.chunks: list[bytes] = []
        self.error: WireError | None = None
        self.address: str | None = None
        self.name_seconds = self.connect = self.appconnect = self.first_byte = self.total = 0.0
        self._origin: Origin | None = None
        self._addresses: tuple[str, ...] = ()
        self._slot: _Slot | None = None
        self._multi: _Multi | None = None
        self._lookup: Lookup | None = None
        self.hop_started = started

    def again(
        self,
        method: str,
        url: str,
        headers: list[bytes],
        body: bytes | None,
        done: Callable[[Transfer], None],
    ) -> None:
        """Make it the next request of the same undertaking: start and deadline stay."""
        self.method, self.url, self.headers, self.body = method, url, headers, body
        self.hop_started = time.monotonic()
        self.status = 0
        self.header_lines, self.chunks = [], []
        self.error = None
        self.connect = self.appconnect = self.first_byte = 0.0
        self._origin, self._addresses = None, ()
        self.done = done

    def fail(self, error: WireError) -> None:
        """End with an error, unless it has ended."""
        self.error = error
        self.finish()

    def finish(self) -> None:
        """Call `done`, the first time."""
        done, self.done = self.done, None
        if done is not None:
            done(self)


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port of a URL (RFC 9110, section 4.3.1), as it is connected to."""

    scheme: str
    host: str
    port: int
    host_header: bytes | None = None

    @classmethod
    def of(cls, url: str) -> Origin:
        """The origin of an absolute http or https URL.

        Errors: WireError for any other, and for one with a user name.
        """
        match = _ORIGIN.match(url)
        if match is None or _UNPRINTABLE.search(url):
            supported = url[:8].lower().startswith(("http://", "https://"))
            code = pycurl.E_URL_MALFORMAT if supported else pycurl.E_UNSUPPORTED_PROTOCOL
            raise WireError(_WORDS[code], code=code)
        scheme, host, port = match.groups()
        number = int(port) if port else 443 if scheme == "https" else 80
        if not 0 < number < 65536:
            raise WireError(_WORDS[pycurl.E_URL_MALFORMAT], code=pycurl.E_URL_MALFORMAT)
        # libcurl would put 127.0.0.1 in place of 127.1: the server sees what was asked for.
        literal = literal_address(host)
        header = None
        if literal is not None and literal != host.strip("[]"):
            header = b"Host: " + match.group(0).partition("://")[2].encode("ascii")
        return cls(scheme, host.lower(), number, header)


def encode_headers(headers: Mapping[str, str | list[str]]) -> list[bytes]:
    """Header lines as libcurl takes them, and the removal of those that nobody asked for.

    Arguments: names and values; a list is a repeated header.
    Errors: WireError for a name that is no token, a control character in a value (RFC 9110,
    sections 5.1 and 5.5), or a header that is the client's own. The value is never told.
    """
    # Mapping's own items() would take some calls of Python code for each.
    fields: Any = headers.items()
    if type(headers) is CaseInsensitiveDict:
        fields = vars(headers)["_store"].values()
        if len(fields) == 1 and headers.get("user-agent") == USER_AGENT:
            # The usual case: a caller without headers.
            return _USUAL
    lines: list[bytes] = []
    names = set()
    for name, value in fields:
        lower = name.lower()
        if _TOKEN.fullmatch(name) is None:
            raise WireError("invalid header name")
        if lower in _FORBIDDEN or lower.startswith("proxy-"):
            raise WireError(f"header {name} is set by the client itself")
        names.add(lower)
        for text in (value,) if isinstance(value, str) else value:
            if _BAD_VALUE.search(text) is not None:
                raise WireError(f"header {name} has an invalid value")
            stripped = text.strip(" \t")
            # libcurl's way to say that a value is empty.
            line = f"{name}: {stripped}" if stripped else f"{name};"
            lines.append(line.encode("utf-8"))
    if names.isdisjoint(_UNASKED_NAMES):
        lines.extend(_UNASKED)
    else:
        lines.extend(
            u for u, name in zip(_UNASKED, _UNASKED_NAMES, strict=True) if name not in names
        )
    return lines


class _Descriptor:
    """A socket that pycurl takes a duplicate of; ours is closed when it lets go."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def __del__(self) -> None:
        os.close(self._fd)


class _Slot:
    """A pooled libcurl handle with its callbacks, and the transfer it performs."""

    __slots__ = (
        "body_bytes",
        "connect_to",
        "curl",
        "header_bytes",
        "headers",
        "method",
        "mode",
        "multi",
        "overrun",
        "refusal",
        "timeouts",
        "tls",
        "transfer",
        "transport",
        "url",
    )

    def __init__(self, transport: Transport, multi: _Multi) -> None:
        self.transport = transport
        self.multi = multi
        self.curl = curl = pycurl.Curl()
        self.transfer: Transfer | None = None
        self.headers: list[bytes] | None = None
        self.url: str | None = None
        self.connect_to: str | None = None
        self.method: str | None = None
        self.mode: str | None = None
        self.timeouts: tuple[int, int] | None = None
        self.tls: TlsSettings | None = None
        self.overrun: str | None = None
        self.refusal: EgressRefused | None = None
        self.header_bytes = self.body_bytes = 0
        set_option = curl.setopt
        set_option(pycurl.NOSIGNAL, 1)
        set_option(pycurl.PATH_AS_IS, 1)
        set_option(pycurl.FOLLOWLOCATION, 0)
        # Nothing from the environment: an empty proxy beats http_proxy and its kin.
        set_option(pycurl.PROXY, "")
        set_option(pycurl.NOPROXY, "*")
        set_option(pycurl.NETRC, pycurl.NETRC_IGNORED)
        set_option(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        set_option(pycurl.REDIR_PROTOCOLS, 0)
        set_option(pycurl.HTTP09_ALLOWED, 0)
        set_option(pycurl.ACCEPT_ENCODING, _CODINGS)
        set_option(pycurl.TCP_NODELAY, 1)
        set_option(pycurl.WRITEFUNCTION, self._on_body)
        set_option(pycurl.HEADERFUNCTION, self._on_header)
        set_option(pycurl.OPENSOCKETFUNCTION, self._on_open)
        set_option(pycurl.SOCKOPTFUNCTION, multi.on_new_socket)

    def prepare(self, transfer: Transfer, address: str, more: int) -> None:
        """Set the handle up for a transfer to `address`, with `more` addresses left to try."""
        curl = self.curl
        set_option = curl.setopt
        origin = transfer._origin
        if origin is None:
            raise WireError(words(pycurl.E_URL_MALFORMAT))
        self.transfer = transfer
        transfer.secure = origin.scheme == "https"
        self.header_bytes = self.body_bytes = 0
        self.overrun = self.refusal = None
        if transfer.url != self.url:
            set_option(pycurl.URL, transfer.url)
            self.url = transfer.url
        host = f"[{address}]" if ":" in address else address
        connect_to = f"::{host}:{origin.port}"
        if connect_to != self.connect_to:
            set_option(pycurl.CONNECT_TO, [connect_to])
            self.connect_to = connect_to

        headers = transfer.headers
        if origin.host_header is not None:
            headers = [origin.host_header, *headers]
        if headers != self.headers:
            set_option(pycurl.HTTPHEADER, headers)
            self.headers = headers

        method, body = transfer.method, transfer.body
        if body is None and method in ("POST", "PUT", "PATCH"):
            # RFC 9110, section 8.6: these say that their content is empty.
            body = b""
        mode = "HEAD" if method == "HEAD" and body is None else "GET" if body is None else "POST"
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

        left = transfer.deadline - time.monotonic()
        # Whoever has other addresses must not spend all of the time on this one.
        connect = min(transfer.connect_timeout, left / (more + 1))
        # Rounded up: a timeout never comes before its time.
        timeouts = (max(1, math.ceil(left * 1000)), max(1, math.ceil(connect * 1000)))
        if timeouts != self.timeouts:
            set_option(pycurl.TIMEOUT_MS, timeouts[0])
            set_option(pycurl.CONNECTTIMEOUT_MS, timeouts[1])
            self.timeouts = timeouts

        if transfer.secure and transfer.tls != self.tls:
            self._secure(transfer.tls)

    def _secure(self, tls: TlsSettings) -> None:
        set_option = self.curl.setopt
        set_option(pycurl.SSL_VERIFYPEER, 1 if tls.verify else 0)
        set_option(pycurl.SSL_VERIFYHOST, 2 if tls.verify else 0)
        path = tls.ca if tls.ca is not None else ca_bundle()
        if os.path.isdir(path):
            set_option(pycurl.CAPATH, path)
            self.curl.unsetopt(pycurl.CAINFO)
        else:
            set_option(pycurl.CAINFO, path)
            self.curl.unsetopt(pycurl.CAPATH)
        self.tls = tls

    def release(self) -> None:
        """Let go of what belonged to the transfer."""
        transfer, self.transfer = self.transfer, None
        if transfer is not None:
            transfer._slot = None
            if transfer.body is not None and len(transfer.body) > _LARGE_BODY:
                self.curl.setopt(pycurl.POSTFIELDS, b"")

    def _on_header(self, line: bytes) -> int | None:
        transfer = self.transfer
        if transfer is None:
            return 0
        self.header_bytes += len(line)
        if self.header_bytes > transfer.max_header_bytes:
            self.overrun = f"response headers exceed {transfer.max_header_bytes} bytes"
            return 0
        lines = transfer.header_lines
        lines.append(line)
        if len(line) < 3 and b"\ncontent-encoding:" in b"".join(lines).lower():
            self.multi.encoded.add(self)
        return None

    def _on_body(self, chunk: bytes) -> int | None:
        transfer = self.transfer
        if transfer is None:
            return 0
        self.body_bytes += len(chunk)
        if self.body_bytes > transfer.max_response_bytes:
            self.overrun = f"response body exceeds {transfer.max_response_bytes} bytes"
            return 0
        transfer.chunks.append(chunk)
        return None

    def _on_open(self, purpose: int, where: Any) -> _Descriptor | int:
        """Make the socket, after one more look at the address that it will be connected to."""
        transfer = cast(Transfer, self.transfer)
        origin = cast(Origin, transfer._origin)
        try:
            if where.family not in (socket.AF_INET, socket.AF_INET6):
                raise EgressRefused("only internet addresses are connected to")
            self.transport.guard.check_address(origin.host, where.addr[0], where.addr[1])
            made = socket.socket(where.family, where.socktype, where.protocol)
            made.setblocking(False)
        except EgressRefused as refusal:
            self.refusal = refusal
        except OSError:
            pass
        else:
            return _Descriptor(made.detach())
        return int(pycurl.SOCKET_BAD)


class _Multi:
    """One libcurl multi handle with its connections, in gevent's loop.

    `retire()` makes it end after its last transfer, so that no connection outlives the rules it
    was made under.
    """

    def __init__(self, transport: Transport, connections: int) -> None:
        self._transport = transport
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
        self._free: list[_Slot] = []
        # Bodies that are decoded: what comes over the wire is looked at after each turn.
        self.encoded: set[_Slot] = set()
        self._retired = self._closed = False

    def __len__(self) -> int:
        return len(self._busy)

    def add(self, transfer: Transfer, address: str, more: int) -> None:
        """Begin a transfer."""
        slot = self._free.pop() if self._free else _Slot(self._transport, self)
        try:
            slot.prepare(transfer, address, more)
        except BaseException:
            slot.release()
            slot.curl.close()
            raise
        transfer._slot = slot
        transfer._multi = self
        self._busy[slot.curl] = slot
        try:
            self._multi.add_handle(slot.curl)
        except BaseException:
            del self._busy[slot.curl]
            self._put_back(slot)
            raise

    def drop(self, slot: _Slot) -> None:
        """Stop a transfer; its connection is closed, since nobody knows what still comes."""
        if self._busy.pop(slot.curl, None) is not None:
            self.encoded.discard(slot)
            self._multi.remove_handle(slot.curl)
            self._put_back(slot)

    def retire(self) -> None:
        """Take no new transfers, and close after the last."""
        self._retired = True
        self._close_when_idle()

    def on_new_socket(self, fd: int, _purpose: int) -> int:
        """A number that comes again is another socket: the kernel forgot it when it was closed."""
        self._registered.pop(fd, None)
        return 0

    def _put_back(self, slot: _Slot) -> None:
        slot.release()
        if self._retired:
            slot.curl.close()
            self._loop.run_callback(self._close_when_idle)
        else:
            self._free.append(slot)

    def _close_when_idle(self) -> None:
        if self._busy or self._closed or not self._retired:
            return
        self._closed = True
        for slot in self._free:
            slot.curl.close()
        self._free.clear()
        self._watcher.close()
        self._timer.close()
        self._multi.close()
        self._epoll.close()

    def _on_socket(self, what: int, fd: int, _multi: Any, _data: Any) -> None:
        """libcurl tells which readiness of a socket it waits for.

        A socket that nobody waits for stays in the set until it says something: a kept
        connection is so used again and again without a system call for it.
        """
        if what == pycurl.POLL_REMOVE:
            self._wanted.pop(fd, None)
            return
        mask = (select.EPOLLIN if what & pycurl.POLL_IN else 0) | (
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
        if not self._kicked:
            self._kicked = True
            self._loop.run_callback(self._on_kick)

    def _on_kick(self) -> None:
        self._kicked = False
        if not self._closed:
            self._act(pycurl.SOCKET_TIMEOUT, 0)
            self._reap()

    def _on_events(self) -> None:
        try:
            for fd, event in self._epoll.poll(0, _EVENTS_PER_TURN):
                if fd not in self._wanted:
                    self._forget(fd)
                    continue
                mask = 0
                if event & ~select.EPOLLOUT:
                    mask = pycurl.CSELECT_IN
                if event & select.EPOLLOUT:
                    mask |= pycurl.CSELECT_OUT
                if event & select.EPOLLERR:
                    mask |= pycurl.CSELECT_ERR
                self._act(fd, mask)
        finally:
            self._reap()

    def _forget(self, fd: int) -> None:
        self._registered.pop(fd, None)
        try:
            self._epoll.unregister(fd)
        except OSError:
            return

    def _act(self, fd: int, mask: int) -> None:
        try:
            self._multi.socket_action(fd, mask)
        except pycurl.error:
            # A socket that libcurl does not know (any more): nothing may wait for it.
            self._wanted.pop(fd, None)
            self._forget(fd)

    def _reap(self) -> None:
        """Hand out what has ended."""
        if self.encoded:
            self._check_encoded()
        left = 1
        while left:
            left, good, bad = self._multi.info_read()
            for curl in good:
                self._ended(curl, 0, "")
            for curl, code, text in bad:
                self._ended(curl, code, text)

    def _check_encoded(self) -> None:
        """Stop encoded bodies that are too long on the wire, whatever they decode to."""
        for slot in list(self.encoded):
            transfer = slot.transfer
            if transfer is None:
                self.encoded.discard(slot)
            elif slot.curl.getinfo(pycurl.SIZE_DOWNLOAD) > transfer.max_response_bytes:
                slot.overrun = f"response body exceeds {transfer.max_response_bytes} bytes"
                self._ended(slot.curl, pycurl.E_WRITE_ERROR, "")

    def _ended(self, curl: pycurl.Curl, code: int, text: str) -> None:
        slot = self._busy.pop(curl, None)
        if slot is None:
            return
        if self.encoded:
            self.encoded.discard(slot)
        transfer = slot.transfer
        if transfer is None:
            return
        transport = self._transport
        try:
            info = curl.getinfo
            transfer.status = info(pycurl.RESPONSE_CODE)
            transfer.connect = info(pycurl.CONNECT_TIME)
            if transfer.secure:
                transfer.appconnect = info(pycurl.APPCONNECT_TIME)
            transfer.first_byte = info(pycurl.STARTTRANSFER_TIME)
            sent = code != 0 and info(pycurl.REQUEST_SIZE) > 0
            overrun, refusal = slot.overrun, slot.refusal
            self._multi.remove_handle(curl)
            self._put_back(slot)
            if code == 0:
                transfer.finish()
            else:
                transport.failed(transfer, code, text, sent, overrun, refusal)
        except Exception as error:
            transport.hub.handle_error(self, type(error), error, error.__traceback__)
            transfer.fail(WireError("internal error in the wire", possibly_sent=True))


class Transport:
    """Transfers by libcurl, each to an address that the guard has checked.

    guard: asked before a connection is made, for the name and for each address.
    connections: how many idle connections are kept.
    resolver: looks names up; one with the system's name servers if none is given.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        connections: int = 256,
        hub: Any = None,
        resolver: Resolver | None = None,
    ) -> None:
        self.hub = hub if hub is not None else gevent.get_hub()
        self.guard = guard
        self._connections = connections
        self._resolver = resolver if resolver is not None else Resolver(hub=self.hub)
        self._multi = _Multi(self, connections)
        # What a URL's beginning leads to, checked: (good until, origin, addresses).
        self._routes: dict[str, tuple[float, Origin, tuple[str, ...]]] = {}

    def start(self, transfer: Transfer) -> None:
        """Begin a transfer; never blocks, and never calls `done` before it returns."""
        match = _ORIGIN.match(transfer.url)
        route = self._routes.get(match.group(0)) if match is not None else None
        try:
            if route is not None and route[0] > time.monotonic():
                if _UNPRINTABLE.search(transfer.url):
                    raise WireError(_WORDS[pycurl.E_URL_MALFORMAT], code=pycurl.E_URL_MALFORMAT)
                transfer._origin = route[1]
                transfer._addresses = route[2]
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

    def configure(self, guard: Guard) -> None:
        """Follow other egress rules: no connection and no name from before is used again."""
        self.guard = guard
        self._routes.clear()
        self._resolver.clear()
        self._multi.retire()
        self._multi = _Multi(self, self._connections)

    def close(self) -> None:
        """Release sockets and watchers; transfers must have ended or been cancelled."""
        self._routes.clear()
        self._resolver.close()
        self._multi.retire()

    def _find(self, transfer: Transfer) -> None:
        transfer._origin = origin = Origin.of(transfer.url)
        self.guard.check_host(origin.host)
        known = self._resolver.cached(origin.host)
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
                self._found(transfer, addresses)
            except Exception as failure:
                transfer.fail(self._failure(failure))

        transfer._lookup = self._resolver.lookup(origin.host, transfer.deadline - asked, found)

    def _found(self, transfer: Transfer, addresses: tuple[str, ...]) -> None:
        """Keep the addresses that the guard allows, and connect to the first."""
        origin = cast(Origin, transfer._origin)
        guard = self.guard
        # The rules may have changed while the name was looked up.
        guard.check_host(origin.host)
        allowed = []
        refusal: EgressRefused | None = None
        for address in addresses:
            try:
                guard.check_address(origin.host, address, origin.port)
            except EgressRefused as error:
                refusal = refusal or error
            else:
                allowed.append(address)
        if not allowed:
            raise refusal or EgressRefused(f"{origin.host} has no address")
        transfer._addresses = tuple(allowed)
        self._remember(transfer, transfer._addresses)
        self._connect(transfer)

    def _remember(self, transfer: Transfer, addresses: tuple[str, ...]) -> None:
        origin = cast(Origin, transfer._origin)
        match = _ORIGIN.match(transfer.url)
        if match is None:
            return
        if len(self._routes) >= 10_000:
            self._routes.clear()
        until = self._resolver.good_until(origin.host)
        self._routes[match.group(0)] = (until, origin, addresses)

    def _connect(self, transfer: Transfer) -> None:
        addresses = transfer._addresses
        transfer.address = addresses[0]
        transfer._addresses = addresses[1:]
        self._multi.add(transfer, addresses[0], len(addresses) - 1)

    def failed(
        self,
        transfer: Transfer,
        code: int,
        text: str,
        sent: bool,
        overrun: str | None,
        refusal: EgressRefused | None,
    ) -> None:
        """A transfer ended with one of libcurl's errors: say so, or try the next address."""
        if refusal is not None:
            transfer.fail(_as_wire_error(refusal))
            return
        if overrun is not None:
            transfer.fail(WireError(overrun, possibly_sent=True, code=code))
            return
        now = time.monotonic()
        timed_out = code == pycurl.E_OPERATION_TIMEDOUT
        connecting = not sent and transfer.appconnect == 0
        if (
            (code == pycurl.E_COULDNT_CONNECT or (timed_out and connecting))
            and transfer._addresses
            and transfer.deadline - now > 0.001
        ):
            failed = transfer.address
            left = transfer._addresses
            # Whoever comes next begins with an address that may work.
            self._remember(transfer, (*left, cast(str, failed)))
            try:
                self._connect(transfer)
            except Exception as error:
                transfer.fail(self._failure(error))
            return
        if timed_out:
            transfer.fail(self.timeout_error(transfer, sent))
            return
        transfer.fail(WireError(words(code), possibly_sent=sent, code=code, detail=text))

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
        limit, kind = transfer.timeout, "Timeout"
        if time.monotonic() < transfer.deadline - 0.05:
            limit, kind = transfer.connect_timeout, "Connect timeout"
        rest = max(total - name - handshake, 0.0)
        return WireError(
            f"{kind} of {round(limit * 1000)} ms reached. Total time: {total * 1000:.6f} ms "
            f"(DNS time: {name * 1000:.6f} ms, "
            f"TCP/SSL handshake time: {handshake * 1000:.6f} ms, "
            f"HTTP Request/Response time: {rest * 1000:.6f} ms)",
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
        code = pycurl.E_COULDNT_RESOLVE_HOST
        return WireError(words(code), code=code, detail=str(error))


def words(code: int) -> str:
    """libcurl's words for one of its result codes."""
    return _WORDS.get(code) or f"Error {code} of the HTTP client"


def _as_wire_error(error: WireError | EgressRefused) -> WireError:
    if isinstance(error, WireError):
        return error
    refused = WireError(str(error))
    refused.__cause__ = error
    return refused


def check_method(method: str) -> None:
    """Refuse what is no token (RFC 9110, section 9.1), and the methods that open tunnels.

    Errors: WireError.
    """
    if _TOKEN.fullmatch(method) is None:
        raise WireError("invalid method")
    if method.upper() in ("CONNECT", "TRACE"):
        raise WireError(f"method {method} is not allowed")


def parse_headers(lines: list[bytes]) -> tuple[str, str, list[tuple[str, str]]]:
    """The final header section among all that came, interim ones (1xx) before it.

    Returns the HTTP version, the reason phrase, and the fields in order, repeats kept. Trailer
    fields come last. Values are UTF-8 where they are valid UTF-8, otherwise Latin-1 (RFC 9110,
    section 5.5, leaves bytes above 127 open).
    """
    section = b"".join(lines)
    begin = section.rfind(b"\nHTTP/") + 1
    try:
        texts = section[begin:].decode("utf-8").split("\n")
    except UnicodeDecodeError:
        texts = [_decode(line) for line in section[begin:].split(b"\n")]
    version, _, rest = texts[0].partition(" ")
    fields: list[tuple[str, str]] = []
    for text in texts[1:]:
        name, colon, value = text.partition(":")
        if name[:1] in " \t" and fields and text.strip():
            # A folded line (RFC 9112, section 5.2) goes on with the one before.
            fields[-1] = (fields[-1][0], f"{fields[-1][1]} {text.strip()}")
        elif colon:
            fields.append((name, value.strip("\r \t")))
    return version[5:], rest[4:].strip(), fields


def _decode(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("latin-1")


def combine_headers(fields: list[tuple[str, str]]) -> CaseInsensitiveDict[str]:
    """Fields as one object: repeats joined by commas (RFC 9110, section 5.3).

    Of Set-Cookie, which cannot be joined, the last stands there.
    """
    store: OrderedDict[str, tuple[str, str]] = OrderedDict()
    for field in fields:
        lower = field[0].lower()
        if lower in store and lower != "set-cookie":
            store[lower] = (store[lower][0], f"{store[lower][1]}, {field[1]}")
        else:
            store[lower] = field
    return case_insensitive(store)


def case_insensitive(store: OrderedDict[str, tuple[str, Any]]) -> CaseInsensitiveDict[Any]:
    """requests' dictionary over a ready store, without its call of Python code for each header."""
    made: CaseInsensitiveDict[Any] = CaseInsensitiveDict.__new__(CaseInsensitiveDict)
    vars(made)["_store"] = store
    return made


class WireResponse(requests.Response):
    """requests' Response; what few ask for is made when it is asked for."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        # requests' own constructor makes a cookie jar, which costs more than all the rest.
        self.__dict__ = attributes

    def __getattr__(self, name: str) -> Any:
        value: Any
        if name == "cookies":
            value = RequestsCookieJar()
        elif name == "encoding":
            value = get_encoding_from_headers(self.headers)
        elif name == "history":
            value = []
        elif name == "raw":
            value = io.BytesIO(self.content)
        else:
            raise AttributeError(name)
        setattr(self, name, value)
        return value


def build_response(
    transfer: Transfer, request: requests.PreparedRequest
) -> tuple[WireResponse, list[tuple[str, str]], str]:
    """What a finished transfer brought.

    Returns the response, its header fields in order, and the HTTP version.
    """
    version, reason, fields = parse_headers(transfer.header_lines)
    chunks = transfer.chunks
    attributes: dict[str, Any] = {
        "status_code": transfer.status,
        "reason": reason,
        "headers": combine_headers(fields),
        "_content": chunks[0] if len(chunks) == 1 else b"".join(chunks),
        "_content_consumed": True,
        "_next": None,
        "url": transfer.url,
        "request": request,
        "elapsed": datetime.timedelta(seconds=time.monotonic() - transfer.started),
        "connection": None,
    }
    return WireResponse(attributes), fields, version


class CurlAdapter(BaseAdapter):
    """A transport adapter for requests.Session, over libcurl and gevent.

    `send` blocks the calling greenlet only. requests' read timeout is taken as the total time of
    the request, its connect timeout as what it says. Redirects are the Session's affair.

    guard: which addresses may be connected to; all public ones if none is given.
    max_response_bytes, max_header_bytes: caps on what one response may bring.
    """

    def __init__(
        self,
        guard: Guard | None = None,
        *,
        max_response_bytes: int = 64 << 20,
        max_header_bytes: int = 256 << 10,
        transport: Transport | None = None,
    ) -> None:
        super().__init__()
        if transport is None:
            transport = Transport(guard if guard is not None else Guard(EgressRules()))
        self._transport = transport
        self._max_response_bytes = max_response_bytes
        self._max_header_bytes = max_header_bytes

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send a prepared request; see requests' BaseAdapter.send.

        timeout: seconds, or a pair of seconds to connect and in all; None is a day.
        Errors: requests' own: ConnectTimeout, ReadTimeout, SSLError, ConnectionError;
        EgressRefused; InvalidSchema for what is not supported (proxies, client certificates).
        """
        url = request.url or ""
        if cert is not None or (proxies and select_proxy(url, dict(proxies)) is not None):
            raise requests.exceptions.InvalidSchema("proxies and client certificates are not taken")
        connect, total = timeout if isinstance(timeout, tuple) else (timeout, timeout)
        body: Any = request.body
        if body is not None and not isinstance(body, (bytes, str)):
            body = body.read() if hasattr(body, "read") else b"".join(body)
        # Its length and framing are libcurl's affair.
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "host")
        }
        ended: AsyncResult = AsyncResult()
        check_method(request.method or "")
        transfer = Transfer(
            request.method or "",
            url.partition("#")[0],
            encode_headers(headers),
            body.encode() if isinstance(body, str) else body,
            started=time.monotonic(),
            timeout=86400.0 if total is None else total,
            connect_timeout=86400.0 if connect is None else connect,
            max_response_bytes=self._max_response_bytes,
            max_header_bytes=self._max_header_bytes,
            done=ended.set,
            tls=TlsSettings(bool(verify), verify if isinstance(verify, str) else None),
        )
        self._transport.start(transfer)
        try:
            ended.get()
        except BaseException:
            self._transport.cancel(transfer)
            raise
        if transfer.error is not None:
            raise _requests_error(transfer.error, request) from transfer.error
        return build_response(transfer, request)[0]

    def close(self) -> None:
        """Release the connections."""
        self._transport.close()


def _requests_error(error: WireError, request: requests.PreparedRequest) -> Exception:
    """The exception that requests' users expect for an error of the wire."""
    kind: type[requests.RequestException] = requests.exceptions.ConnectionError
    if isinstance(error.__cause__, EgressRefused):
        kind = EgressRefused
    elif error.timed_out:
        kind = (
            requests.exceptions.ReadTimeout
            if error.possibly_sent
            else requests.exceptions.ConnectTimeout
        )
    elif error.code in _CERTIFICATE_CODES:
        kind = requests.exceptions.SSLError
    elif error.code == pycurl.E_URL_MALFORMAT:
        kind = requests.exceptions.InvalidURL
    elif error.code == pycurl.E_UNSUPPORTED_PROTOCOL:
        kind = requests.exceptions.InvalidSchema
    return kind(error.message, request=request)
