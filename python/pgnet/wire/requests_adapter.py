"""A transport adapter for requests.Session, over libcurl and gevent.

The worker does not use it. Python code gets the wire of this package (guard, name look-ups, limits)
under the interface that code with requests has already.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import requests
from gevent.event import AsyncResult
from requests.adapters import BaseAdapter
from requests.utils import select_proxy

from pgnet.wire.guard import EgressRefused, EgressRules, Guard
from pgnet.wire.host import HostSettings
from pgnet.wire.limits import Limits
from pgnet.wire.message import WireRequest, build_response, check_method, encode_headers
from pgnet.wire.transport import Transfer, Transport
from pgnet.wire.wire_error import CERTIFICATE_CODES, Code, WireError

_DAY = 86400.0


class CurlAdapter(BaseAdapter):
    """A transport adapter for requests.Session, whose connections are libcurl's.

    `send` blocks the calling greenlet only. The read timeout of requests is taken for the total
    time of the request; the connect timeout is what it says. The Session follows redirects.

    guard: judges the addresses that are connected to; None allows all public ones.
    max_response_bytes, max_header_bytes: how much one response may bring.
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
        self._limits = Limits(max_response_bytes, max_response_bytes, max_header_bytes)

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

        timeout: seconds, or a pair of seconds: to connect, and in all. None means a day.
        verify: whether to check certificates, or a file of the authorities to trust.
        cert: a file with the client's certificate and key, or a pair of files.

        Raises what users of requests expect (ConnectTimeout, ReadTimeout, SSLError, ConnectionError
        and their like), and EgressRefused.
        """
        url = (request.url or "").partition("#")[0]
        connect, total = timeout if isinstance(timeout, tuple) else (timeout, timeout)
        body = _body(request.body)
        # libcurl sets the fields of length, framing and connection itself.
        fields = [
            (name, value)
            for name, value in request.headers.items()
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "host")
        ]
        ended: AsyncResult = AsyncResult()
        started = time.monotonic()
        try:
            check_method(request.method or "")
            settings = _settings(verify, cert, select_proxy(url, dict(proxies or {})))
            transfer = Transfer(
                WireRequest(request.method or "", url, fields, body),
                self._transport.route(url, settings, body=body),
                encode_headers(fields),
                replace(self._limits, connect_timeout=_DAY if connect is None else connect),
                started=started,
                timeout=_DAY if total is None else total,
                done=ended.set,
            )
        except WireError as error:
            raise _requests_error(error, request) from error
        self._transport.start(transfer)
        try:
            ended.get()
        except BaseException:
            transfer.cancel()
            raise
        received = transfer.received
        fault = transfer.error or received.note
        if fault is not None:
            raise _requests_error(fault, request) from fault
        seconds = time.monotonic() - started
        return build_response(request, url, received.head, received.content, seconds)

    def close(self) -> None:
        """Release the connections."""
        self._transport.close()


def _body(body: Any) -> bytes | None:
    """The body of a request of requests: text, bytes, a file, or pieces."""
    if body is None or isinstance(body, bytes):
        return body
    if isinstance(body, str):
        return body.encode()
    content: str | bytes = body.read() if hasattr(body, "read") else b"".join(body)
    return content.encode() if isinstance(content, str) else content


def _settings(verify: bool | str, cert: Any, proxy: str | None) -> HostSettings:
    certificate, key = cert if isinstance(cert, tuple) else (cert, cert)
    return HostSettings(
        verify=bool(verify),
        ca=_read(verify, Code.SSL_CACERT_BADFILE) if isinstance(verify, str) else None,
        client_certificate=_read(certificate, Code.SSL_CERTPROBLEM) if cert else None,
        client_key=_read(key, Code.SSL_CERTPROBLEM) if cert else None,
        proxy=proxy,
    )


def _read(path: str, code: Code) -> str:
    try:
        return Path(path).read_text()
    except (OSError, ValueError):
        raise WireError(code.words, code=code) from None


def _requests_error(error: WireError, request: requests.PreparedRequest) -> Exception:
    """Return the exception that users of requests expect for an error of the wire."""
    kind: type[requests.RequestException] = requests.exceptions.ConnectionError
    if isinstance(error.__cause__, EgressRefused):
        kind = EgressRefused
    elif error.timed_out:
        kind = (
            requests.exceptions.ReadTimeout
            if error.possibly_sent
            else requests.exceptions.ConnectTimeout
        )
    elif error.code in CERTIFICATE_CODES:
        kind = requests.exceptions.SSLError
    elif error.code == Code.URL_MALFORMAT:
        kind = requests.exceptions.InvalidURL
    elif error.code == Code.UNSUPPORTED_PROTOCOL:
        kind = requests.exceptions.InvalidSchema
    return kind(error.message, request=request)
