"""One request, one outcome: redirects, limits, and the deadline over all of it."""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urljoin

import gevent
import requests
from requests.structures import CaseInsensitiveDict

from pgnet.guard import Guard
from pgnet.resolve import Resolver
from pgnet.transport import (
    USER_AGENT,
    Origin,
    Transfer,
    Transport,
    WireError,
    WireResponse,
    build_response,
    case_insensitive,
    check_method,
    encode_headers,
    parse_headers,
    words,
)

__all__ = ["Answer", "Exchange", "Handle", "Limits", "Timings", "WireError", "prepare"]

_REDIRECTS = (301, 302, 303, 307, 308)
_TOO_MANY_REDIRECTS = 47
# What a caller's header may tell another server: nothing about the caller.
_HARMLESS = frozenset(("accept", "accept-encoding", "accept-language", "user-agent"))
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
# What may stand unescaped in a Location; the rest is escaped as browsers do.
_LOCATION_SAFE = "%:/?#[]@!$&'()*+,;=-._~"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may cost.

    max_response_bytes: of the body, on the wire and decoded.
    max_header_bytes: of all header sections of one response.
    max_redirects: hops that are followed; at 0 a redirect is the answer itself.
    connect_timeout: seconds to connect to one server, TLS included.
    """

    max_response_bytes: int = 64 << 20
    max_header_bytes: int = 256 << 10
    max_redirects: int = 5
    connect_timeout: float = 10.0


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in seconds.

    name, connect, tls: summed over all hops; zero where a connection was used again.
    first_byte: from the start to the first byte of the last answer.
    total: from the start to the end.
    """

    name: float
    connect: float
    tls: float
    first_byte: float
    total: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The one outcome of a request: a response, or an error.

    header_list: the response's fields in order, repeats kept.
    http_version: "1.0", "1.1", "2"; empty without a response.
    address: the IP address last connected to, or tried.
    """

    response: requests.Response | None
    header_list: list[tuple[str, str]]
    error: WireError | None
    timings: Timings
    redirects: int
    http_version: str
    address: str | None


Done = Callable[[Answer], None]
_NO_TIME = Timings(0.0, 0.0, 0.0, 0.0, 0.0)


def prepare(
    method: str, url: str, headers: Iterable[tuple[str, str]], body: bytes | None
) -> requests.PreparedRequest:
    """A PreparedRequest that is sent exactly as it is said here, without requests' rewriting.

    Arguments: the method; a canonical URL, whose fragment is not sent; header fields, where a
    repeated name is a repeated header; the body or None. A User-Agent is added if there is none.
    """
    prepared = requests.PreparedRequest()
    store: OrderedDict[str, tuple[str, Any]] = OrderedDict()
    for name, value in headers:
        lower = name.lower()
        known = store.get(lower)
        if known is None:
            store[lower] = (name, value)
        elif isinstance(known[1], list):
            known[1].append(value)
        else:
            store[lower] = (name, [known[1], value])
    if "user-agent" not in store:
        store["user-agent"] = ("User-Agent", USER_AGENT)
    prepared.method = method
    # Assigned, not prepared: requests would rewrite what the enqueue has checked and stored.
    prepared.url = url
    prepared.headers = case_insensitive(store)
    prepared.body = body
    return prepared


class Handle:
    """A request on its way."""

    __slots__ = (
        "_connect",
        "_done",
        "_exchange",
        "_redirects",
        "_request",
        "_tls",
        "_transfer",
    )

    def __init__(self, exchange: Exchange, request: requests.PreparedRequest, done: Done) -> None:
        self._exchange = exchange
        self._request = request
        self._done = done
        self._redirects = 0
        self._connect = self._tls = 0.0
        self._transfer: Transfer | None = None

    def cancel(self) -> None:
        """Stop it; `done` is still called, with an error. No effect after its end."""
        self._exchange._cancel(self)

    def _hop_ended(self, transfer: Transfer) -> None:
        self._exchange._hop_ended(self, transfer)


class Exchange:
    """Performs requests, many at a time, without blocking.

    guard: asked for each hop's host and address.
    limits: what a request may cost.
    concurrency: how many connections are kept for use again; it does not bound `start`.
    hub: gevent's, of the current thread if none is given.
    resolver: looks names up; one with the system's name servers if none is given.
    """

    def __init__(
        self,
        guard: Guard,
        limits: Limits | None = None,
        *,
        concurrency: int = 256,
        hub: Any = None,
        resolver: Resolver | None = None,
    ) -> None:
        self._hub = hub if hub is not None else gevent.get_hub()
        self._limits = limits if limits is not None else Limits()
        self._transport = Transport(
            guard, connections=concurrency, hub=self._hub, resolver=resolver
        )
        self._handles: set[Handle] = set()

    @property
    def in_flight(self) -> int:
        """Requests begun whose `done` has not been called."""
        return len(self._handles)

    def start(self, request: requests.PreparedRequest, timeout: float, done: Done) -> Handle:
        """Begin a request. Never blocks and never raises for what is wrong with the request.

        timeout: seconds in all, from the lookup of the first name to the last byte of the last hop.
        done: called exactly once, in the hub, with the Answer; it must not switch greenlets.
        """
        handle = Handle(self, request, done)
        self._handles.add(handle)
        try:
            self._begin(handle, max(timeout, 0.001))
        except WireError as error:
            self._hub.loop.run_callback(self._finish, handle, error)
        return handle

    def configure(self, guard: Guard, limits: Limits | None = None) -> None:
        """Follow other rules: requests begun from now on, and redirects of those on their way.

        No connection made and no name looked up before is used again.
        """
        if limits is not None:
            self._limits = limits
        self._transport.configure(guard)

    def close(self) -> None:
        """Cancel what is on its way and release all sockets and watchers."""
        for handle in list(self._handles):
            self._cancel(handle)
        self._transport.close()

    def _begin(self, handle: Handle, timeout: float) -> None:
        request = handle._request
        limits = self._limits
        method = request.method or ""
        check_method(method)
        body = request.body
        if isinstance(body, str):
            body = body.encode()
        url = request.url or ""
        if "#" in url:
            url = url.partition("#")[0]
        handle._transfer = transfer = Transfer(
            method,
            url,
            encode_headers(request.headers),
            body,
            started=time.monotonic(),
            timeout=timeout,
            connect_timeout=limits.connect_timeout,
            max_response_bytes=limits.max_response_bytes,
            max_header_bytes=limits.max_header_bytes,
            done=handle._hop_ended,
        )
        self._transport.start(transfer)

    def _hop_ended(self, handle: Handle, transfer: Transfer) -> None:
        """One server answered, or not: follow its redirect, or finish."""
        error = transfer.error
        handle._connect += transfer.connect
        handle._tls += max(transfer.appconnect - transfer.connect, 0.0)
        if error is None and transfer.status in _REDIRECTS and self._limits.max_redirects:
            try:
                if self._follow(handle, transfer):
                    return
            except WireError as refusal:
                error = refusal
            except Exception as failure:
                self._hub.handle_error(self, type(failure), failure, failure.__traceback__)
                error = WireError("internal error in following a redirect", possibly_sent=True)
        self._finish(handle, error)

    def _follow(self, handle: Handle, transfer: Transfer) -> bool:
        """Go where a redirect points (RFC 9110, section 15.4); False when it points nowhere.

        Errors: WireError when it may not be followed.
        """
        fields = parse_headers(transfer.header_lines)[2]
        location = next((value for name, value in fields if name.lower() == "location"), "")
        if not location:
            return False
        if handle._redirects >= self._limits.max_redirects:
            raise WireError(
                words(_TOO_MANY_REDIRECTS), possibly_sent=True, code=_TOO_MANY_REDIRECTS
            )
        before = Origin.of(transfer.url)
        try:
            url = _resolve(transfer.url, location)
            after = Origin.of(url)
        except (WireError, ValueError):
            raise WireError(
                "redirect to an invalid or unsupported URL", possibly_sent=True
            ) from None
        if before.scheme == "https" and after.scheme == "http":
            raise WireError("redirect from https to http is not followed", possibly_sent=True)

        method, body, headers = transfer.method, transfer.body, handle._request.headers
        rewritten = (transfer.status == 303 and method != "HEAD") or (
            transfer.status in (301, 302) and method == "POST"
        )
        if rewritten:
            method, body = "GET", None
        same = _same_origin(before, after)
        if not same and (body is not None or method not in ("GET", "HEAD", "OPTIONS")):
            raise WireError(
                f"redirect of a {method} request to another origin is not followed",
                possibly_sent=True,
            )
        kept: CaseInsensitiveDict[Any] = CaseInsensitiveDict(
            (name, value)
            for name, value in headers.items()
            if (same or name.lower() in _HARMLESS)
            and not (rewritten and name.lower().startswith("content-"))
        )
        # What is left out here stays out, also when a later hop comes back.
        again = requests.PreparedRequest()
        again.method, again.url, again.headers, again.body = method, url, kept, body
        handle._request = again
        handle._redirects += 1
        if transfer.deadline <= time.monotonic():
            raise self._transport.timeout_error(transfer, True)
        transfer.again(method, url, encode_headers(kept), body, handle._hop_ended)
        self._transport.start(transfer)
        return True

    def _cancel(self, handle: Handle) -> None:
        if handle not in self._handles:
            return
        if handle._transfer is not None:
            if handle._transfer.done is None:
                # It has ended, and `done` is on its way.
                return
            self._transport.cancel(handle._transfer)
        error = WireError("Request was cancelled", possibly_sent=True)
        self._hub.loop.run_callback(self._finish, handle, error)

    def _finish(self, handle: Handle, error: WireError | None) -> None:
        """Tell the outcome, once."""
        if handle not in self._handles:
            return
        self._handles.discard(handle)
        transfer = handle._transfer
        response: WireResponse | None = None
        header_list: list[tuple[str, str]] = []
        version = ""
        address = None
        timings = _NO_TIME
        if transfer is not None:
            address = transfer.address
            now = time.monotonic()
            first_byte = 0.0
            if error is None:
                try:
                    response, header_list, version = build_response(transfer, handle._request)
                except Exception as failure:
                    self._hub.handle_error(self, type(failure), failure, failure.__traceback__)
                    error = WireError("the response could not be read", possibly_sent=True)
                first_byte = transfer.hop_started - transfer.started + transfer.first_byte
            timings = Timings(
                transfer.name_seconds,
                handle._connect,
                handle._tls,
                first_byte,
                now - transfer.started,
            )
        if error is not None and handle._redirects:
            error.possibly_sent = True
        answer = Answer(response, header_list, error, timings, handle._redirects, version, address)
        try:
            handle._done(answer)
        except Exception as failure:
            # Whose callback fails has got its answer; the loop goes on for everybody else.
            self._hub.handle_error(self, type(failure), failure, failure.__traceback__)


def _resolve(base: str, location: str) -> str:
    """What a Location means (RFC 3986, section 5), without its fragment.

    Errors: ValueError for what cannot be read.
    """
    reference = quote(location, safe=_LOCATION_SAFE).partition("#")[0]
    absolute = _ABSOLUTE.match(reference)
    if absolute is None:
        return urljoin(base, reference)
    # urljoin would take `http://` for "here".
    return absolute.group(0).lower() + reference[absolute.end() :]


def _same_origin(before: Origin, after: Origin) -> bool:
    """Whether two URLs have one origin; http to https of one host by the usual ports counts.

    That upgrade gives nothing to anybody who has not just been told it in clear.
    """
    if before.host != after.host:
        return False
    if (before.scheme, before.port) == (after.scheme, after.port):
        return True
    return (before.scheme, before.port, after.scheme, after.port) == ("http", 80, "https", 443)
