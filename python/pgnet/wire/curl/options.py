"""The options of libcurl for a request: only those that differ from the last request are set."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import pycurl

from pgnet.request.address import literal_address
from pgnet.wire.connection import ConnectionSettings
from pgnet.wire.route import Route
from pgnet.wire.transfer import Transfer

if TYPE_CHECKING:
    from pycurl import TextOption

# Not in the pycurl of Debian 12, whose libcurl sends a URL as it is.
REQUEST_TARGET: TextOption | None = getattr(pycurl, "REQUEST_TARGET", None)
# A pooled handle gives back what it holds of a request body above this size.
_LARGE_BODY = 65536


class Options:
    """The options of one handle that depend on the request, as they are set.

    peer: port and address that the handle connects to.
    shares: whether it waits for a connection that another request makes, see `pending.py`.
    """

    __slots__ = (
        "_connection",
        "_curl",
        "_headers",
        "_method",
        "_mode",
        "_timeouts",
        "_url",
        "peer",
        "shares",
    )

    def __init__(self, curl: pycurl.Curl, connection: ConnectionSettings) -> None:
        self._curl = curl
        self._connection = connection
        self._url: str | None = None
        self._headers: list[bytes] | None = None
        # The method, and the method of libcurl's own that it is set as a variant of.
        self._method: str | None = None
        self._mode: str | None = None
        # The milliseconds that a request has in all, and to connect.
        self._timeouts = (0, 0)
        self.peer: tuple[int, str] | None = None
        self.shares = False
        set_option = curl.setopt
        set_option(pycurl.NOSIGNAL, 1)
        set_option(pycurl.PATH_AS_IS, 1)
        set_option(pycurl.FOLLOWLOCATION, 0)
        set_option(pycurl.NETRC, pycurl.NETRC_IGNORED)
        set_option(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        set_option(pycurl.REDIR_PROTOCOLS, 0)
        set_option(pycurl.HTTP09_ALLOWED, 0)
        # libcurl would not say that an encoded body was cut short.
        set_option(pycurl.HTTP_CONTENT_DECODING, 0)
        set_option(pycurl.TCP_NODELAY, 1)
        connection.apply(curl)

    def set(self, transfer: Transfer, address: str) -> None:
        """Set all of a request to `address`."""
        set_option = self._curl.setopt
        request, route = transfer.request, transfer.route
        if transfer.attempts.fresh:
            set_option(pycurl.FRESH_CONNECT, 1)
        url = request.url if route.asked_for is None else route.url_for(request.url)
        if url != self._url:
            set_option(pycurl.URL, url)
            if REQUEST_TARGET is not None:
                set_option(REQUEST_TARGET, self._target(route.origin.scheme, url))
            self._url = url
        if (route.port, address) != self.peer:
            self._set_peer(route, address)

        headers = transfer.headers
        if route.host_header is not None:
            headers = [route.host_header, *headers]
        if headers is not self._headers:
            set_option(pycurl.HTTPHEADER, headers)
            self._headers = headers

        method, body = request.method, request.body
        if body is None and method in ("POST", "PUT", "PATCH"):
            # RFC 9110, section 8.6: these say that their content is empty.
            body = b""
        mode = "HEAD" if method == "HEAD" else "GET" if body is None else "POST"
        if mode != self._mode or method != self._method:
            self._set_method(method, mode)
        if body is not None:
            set_option(pycurl.POSTFIELDS, body)

        if route.shares != self.shares:
            self.wait_for_shared(not self.shares)
        self.limit_time(transfer)

    def release(self, transfer: Transfer) -> None:
        """Let go of a large body."""
        body = transfer.request.body
        if body is not None and len(body) > _LARGE_BODY:
            self._curl.setopt(pycurl.POSTFIELDS, b"")

    def wait_for_shared(self, wanted: bool) -> None:
        """Whether to wait for a connection that is being made, and may turn out to be HTTP/2."""
        self._curl.setopt(pycurl.PIPEWAIT, 1 if wanted else 0)
        self.shares = wanted

    def limit_time(self, transfer: Transfer) -> None:
        """Set what is left until the deadline."""
        left = transfer.deadline - time.monotonic()
        # A request with other addresses left must not spend all of its time on this one.
        more = len(transfer.attempts.addresses)
        connect = min(transfer.connect_timeout, left / (more + 1))
        if transfer.attempts.send_by is not None:
            connect = min(connect, transfer.attempts.send_by - time.monotonic())
        # Rounded up: a timeout never comes before its time.
        timeouts = (max(1, math.ceil(left * 1000)), max(1, math.ceil(connect * 1000)))
        if timeouts != self._timeouts:
            self._curl.setopt(pycurl.TIMEOUT_MS, timeouts[0])
            self._curl.setopt(pycurl.CONNECTTIMEOUT_MS, timeouts[1])
            self._timeouts = timeouts

    def _target(self, scheme: str, url: str) -> str:
        """The request target (RFC 9112, section 3.2): to the letter what the URL says.

        Newer libcurls leave an empty query out, and write the digits of `%2f` their own way.
        """
        rest = url.partition("#")[0].partition("://")[2]
        authority, slash, path = rest.partition("/")
        if not slash:
            # A query without a path is a query of the root.
            authority, question, path = rest.partition("?")
            path = question + path
        if self._connection.proxy is not None and scheme == "http":
            return f"{scheme}://{authority}/{path}"
        return f"/{path}"

    def _set_method(self, method: str, mode: str) -> None:
        """Set the method; mode: which of HEAD, GET, POST libcurl is to treat it as."""
        curl = self._curl
        if self._method is not None:
            curl.unsetopt(pycurl.CUSTOMREQUEST)
        if self._mode == "HEAD":
            curl.setopt(pycurl.NOBODY, 0)
        if mode == "HEAD":
            curl.setopt(pycurl.NOBODY, 1)
        elif mode == "GET":
            curl.setopt(pycurl.HTTPGET, 1)
        else:
            curl.setopt(pycurl.POST, 1)
        if method != mode:
            curl.setopt(pycurl.CUSTOMREQUEST, method)
        self._method, self._mode = method, mode

    def _set_peer(self, route: Route, address: str) -> None:
        """Have libcurl connect to an address, and look no name up by itself."""
        set_option = self._curl.setopt
        host = f"[{address}]" if ":" in address else address
        proxy = self._connection.proxy
        if proxy is None:
            set_option(pycurl.CONNECT_TO, [f"::{host}:{route.port}"])
        elif proxy.scheme == "http":
            set_option(pycurl.PROXY, f"http://{host}:{proxy.port}")
        else:
            # The proxy's certificate is of its name, which libcurl takes from here.
            set_option(pycurl.PROXY, f"https://{proxy.host}:{proxy.port}")
            if literal_address(proxy.host) is None:
                set_option(pycurl.RESOLVE, [f"{proxy.host}:{proxy.port}:{host}"])
        self.peer = (route.port, address)
