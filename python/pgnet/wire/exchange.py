"""One request, one outcome: redirects, limits, and the deadline over all of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import gevent
import requests

from pgnet.request.prefix import within
from pgnet.secret.mask import MASK
from pgnet.wire.answer import Answer, Followed, Limits, Timings, first_byte_of
from pgnet.wire.connection import Origin
from pgnet.wire.guard import Guard
from pgnet.wire.host import HostSettings, HostTable
from pgnet.wire.message import WireRequest, check_method, encode_headers
from pgnet.wire.redirect import HARMLESS, REDIRECTS, resolve, same_origin
from pgnet.wire.resolve import Resolver
from pgnet.wire.transport import Route, Transfer, Transport
from pgnet.wire.wire_error import Code, WireError

Done = Callable[[Answer], None]


def _nobody(_: Answer) -> None:
    """Whoever waited has been told."""


_UNBOUND: Mapping[str, str] = MappingProxyType({})
_NO_TIME = Timings(0.0, 0.0, 0.0, 0.0, 0.0)


def prepare(
    method: str, url: str, headers: Iterable[tuple[str, str]], body: bytes | None
) -> WireRequest:
    """A request that is sent exactly as it is said here.

    Arguments: the method; a canonical URL, whose fragment is not sent; header fields, where a
    repeated name is a repeated header; the body or None.
    """
    return WireRequest(method, url, list(headers), body)


class Handle:
    """A request on its way."""

    __slots__ = (
        "_answered",
        "_bound",
        "_connect",
        "_done",
        "_exchange",
        "_max_redirects",
        "_may_follow",
        "_once",
        "_redirect",
        "_redirects",
        "_request",
        "_tls",
        "_transfer",
    )

    def __init__(
        self,
        exchange: Exchange,
        request: requests.PreparedRequest,
        done: Done,
        bound: Mapping[str, str],
        may_follow: Callable[[str], bool] | None,
        once: bool,
    ) -> None:
        self._exchange = exchange
        self._request = request
        self._done = done
        self._bound = bound
        self._may_follow = may_follow
        self._once = once
        self._max_redirects = 0
        self._redirects = 0
        # The redirect that is being followed, and whether one of them has answered the request:
        # what follows it only fetches what it points to.
        self._redirect: Followed | None = None
        self._answered = False
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
    hosts: what is special about some hosts.
    concurrency: how many connections are kept for use again; it does not bound `start`.
    hub: gevent's, of the current thread if none is given.
    resolver: looks names up; one with the system's name servers if none is given.
    """

    def __init__(
        self,
        guard: Guard,
        limits: Limits | None = None,
        hosts: HostTable | None = None,
        *,
        concurrency: int = 256,
        hub: Any = None,
        resolver: Resolver | None = None,
    ) -> None:
        self._hub = hub if hub is not None else gevent.get_hub()
        self._limits = limits if limits is not None else Limits()
        self._transport = Transport(
            guard, hosts, connections=concurrency, hub=self._hub, resolver=resolver
        )
        self._handles: set[Handle] = set()

    @property
    def in_flight(self) -> int:
        """Requests begun whose `done` has not been called."""
        return len(self._handles)

    def start(
        self,
        request: requests.PreparedRequest,
        timeout: float,
        done: Done,
        *,
        bound: Mapping[str, str] = _UNBOUND,
        max_redirects: int | None = None,
        may_follow: Callable[[str], bool] | None = None,
        once: bool = False,
    ) -> Handle:
        """Begin a request. Never blocks and never raises for what is wrong with the request.

        timeout: seconds in all, from the lookup of the first name to the last byte of the last hop.
        done: called exactly once, in the hub, with the Answer; it must not switch greenlets.
        bound: names of headers, in lower case, and the URL prefix beyond which a redirect must not
        carry each.
        max_redirects: of this request; it lowers what limits and host allow, and never raises it.
        may_follow: asked for the URL of each redirect; false where it repeats a secret beyond the
        URL prefix that the secret is bound to.
        once: whether its bytes go out once at most on each hop, whatever the method: over a
        connection of its own, by HTTP/1.1, to another address only where nothing can have been
        sent. What a proxy does with it is the proxy's affair.
        """
        handle = Handle(self, request, done, bound, may_follow, once)
        self._handles.add(handle)
        try:
            self._begin(handle, max(timeout, 0.001), max_redirects)
        except WireError as error:
            self._hub.loop.run_callback(self._finish, handle, error)
        return handle

    def configure(
        self, guard: Guard, limits: Limits | None = None, hosts: HostTable | None = None
    ) -> None:
        """Follow other rules: requests begun from now on, and redirects of those on their way.

        No connection made and no name looked up before is used again. None leaves limits or hosts
        as they are.
        """
        if limits is not None:
            self._limits = limits
        self._transport.configure(guard, hosts)

    def close(self) -> None:
        """Cancel what is on its way and release all sockets and watchers."""
        for handle in list(self._handles):
            self._cancel(handle)
        self._transport.close()

    def _begin(self, handle: Handle, timeout: float, max_redirects: int | None) -> None:
        started = time.monotonic()
        request = handle._request
        limits = self._limits
        method = request.method or ""
        check_method(method)
        body = request.body
        if isinstance(body, str):
            body = body.encode()
        if method == "HEAD" and body is not None:
            raise WireError("a HEAD request has no body")
        url = request.url or ""
        if "#" in url:
            url = url.partition("#")[0]
        route = self._transport.route(url, once=handle._once, body=body)
        settings = route.settings
        hops = settings.max_redirects
        if hops is None:
            hops = limits.max_redirects
        handle._max_redirects = hops if max_redirects is None else min(hops, max_redirects)
        handle._transfer = transfer = Transfer(
            method,
            url,
            route,
            _header_lines(_fields_of(request), route),
            body,
            started=started,
            timeout=timeout,
            connect_timeout=self._connect_timeout(settings),
            max_response_bytes=limits.max_response_bytes,
            max_wire_bytes=limits.max_wire_bytes,
            max_header_bytes=limits.max_header_bytes,
            done=handle._hop_ended,
        )
        self._transport.start(transfer)

    def _connect_timeout(self, settings: HostSettings) -> float:
        own = settings.connect_timeout
        return own if own is not None else self._limits.connect_timeout

    def _hop_ended(self, handle: Handle, transfer: Transfer) -> None:
        """One server answered, or not: follow its redirect, or finish."""
        error = transfer.error
        handle._connect += transfer.connect
        handle._tls += max(transfer.appconnect - transfer.connect, 0.0)
        if error is None and transfer.head.status in REDIRECTS and handle._max_redirects:
            try:
                if self._follow(handle, transfer):
                    return
            except WireError as refusal:
                error = refusal
            except Exception as failure:
                self._hub.handle_error(self, type(failure), failure, failure.__traceback__)
                error = WireError(
                    "internal error in following a redirect", kind="request", possibly_sent=True
                )
        self._finish(handle, error)

    def _follow(self, handle: Handle, transfer: Transfer) -> bool:
        """Go where a redirect points (RFC 9110, section 15.4); False when it points nowhere.

        Errors: WireError when it may not be followed.
        """
        locations = {value for name, value in transfer.head.fields if name.lower() == "location"}
        if locations <= {""}:
            return False
        if handle._redirects >= handle._max_redirects:
            raise WireError(
                Code.TOO_MANY_REDIRECTS.words,
                possibly_sent=True,
                code=Code.TOO_MANY_REDIRECTS,
            )
        before = transfer.route.origin
        try:
            # Of two that differ nobody knows which one is meant.
            (location,) = locations
            url = resolve(transfer.url, location)
            after = Origin.of(url)
        except (WireError, ValueError):
            raise WireError(
                "redirect to an invalid or unsupported URL", possibly_sent=True
            ) from None
        if before.scheme == "https" and after.scheme == "http":
            raise WireError("redirect from https to http is not followed", possibly_sent=True)
        if handle._may_follow is not None and not handle._may_follow(url):
            raise WireError(
                "the redirect repeats a secret beyond its URL prefix and is not followed",
                possibly_sent=True,
            )

        method, body = transfer.method, transfer.body
        status = transfer.head.status
        rewritten = (status == 303 and method != "HEAD") or (
            status in (301, 302) and method == "POST"
        )
        if rewritten:
            method, body = "GET", None
        same = same_origin(before, after)
        # Each prefix once: a URL and the list of headers may be long.
        beyond = {p for p in set(handle._bound.values()) if not within(p, url)}
        if not same and (body is not None or method not in ("GET", "HEAD", "OPTIONS")):
            raise WireError(
                f"redirect of a {method} request to another origin is not followed",
                possibly_sent=True,
            )
        kept = [
            (name, value)
            for name, value in _fields_of(handle._request)
            if (same or name.lower() in HARMLESS)
            and not (rewritten and name.lower().startswith("content-"))
            and handle._bound.get(name.lower()) not in beyond
        ]
        # What is left out here stays out, also when a later hop comes back.
        handle._request = WireRequest(method, url, kept, body)
        route = self._transport.route(url, once=handle._once, body=body)
        handle._redirects += 1
        handle._redirect = Followed(transfer)
        # RFC 9110, section 15.4.4: it has done what was asked, and says where to see it.
        handle._answered = handle._answered or method != transfer.method
        transfer.again(
            method,
            url,
            route,
            _header_lines(kept, route),
            body,
            self._connect_timeout(route.settings),
            handle._hop_ended,
        )
        if transfer.deadline <= time.monotonic():
            raise self._transport.timeout_error(transfer, True)
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
        error = WireError("Request was cancelled", kind="request", possibly_sent=True)
        self._hub.loop.run_callback(self._finish, handle, error)

    def _finish(self, handle: Handle, error: WireError | None) -> None:
        """Tell the outcome, once."""
        if handle not in self._handles:
            return
        self._handles.discard(handle)
        transfer = handle._transfer
        timings = _NO_TIME
        if transfer is not None:
            first_byte = 0.0
            if error is not None and (handle._redirects or transfer.head.status):
                error.possibly_sent = True
            if transfer.head.status:
                first_byte = first_byte_of(transfer)
            elif handle._redirect is not None:
                first_byte = handle._redirect.first_byte
            timings = Timings(
                transfer.name_seconds,
                handle._connect,
                handle._tls,
                first_byte,
                time.monotonic() - transfer.started,
            )
            if error is None:
                error = transfer.note
        answer = Answer(transfer, handle._request, error, timings, handle._redirects)
        if answer.status_code is None and handle._redirect is not None and error is not None:
            refused = error.kind == "request"
            answer.fall_back(handle._redirect, handle._answered or refused, not refused)
        if handle._may_follow is not None and answer.status_code in REDIRECTS:
            _hide_target(answer, handle._may_follow)
        # Who keeps the handle does not keep the answer.
        done, handle._done, handle._transfer = handle._done, _nobody, None
        try:
            done(answer)
        except Exception as failure:
            # Whose callback fails has got its answer; the loop goes on for everybody else.
            self._hub.handle_error(self, type(failure), failure, failure.__traceback__)


def _hide_target(answer: Answer, may_follow: Callable[[str], bool]) -> None:
    """Hide where a redirect points that is the answer, where that repeats a secret.

    It may do so in a form that only shows once it is read as a URL.
    """
    for location in [v for name, v in answer.header_list if name.lower() == "location"]:
        try:
            target = resolve(answer.url, location)
        except ValueError:
            target = location
        if not may_follow(target):
            answer.header_list = [
                (name, MASK if name.lower() == "location" else value)
                for name, value in answer.header_list
            ]
            # It mostly says the same once more.
            answer.forget_content()
            if answer.error is None:
                words = "the redirect repeats a secret beyond its URL prefix and is not shown"
                answer.error = WireError(words, possibly_sent=True)
            return


def _fields_of(request: requests.PreparedRequest) -> list[tuple[str, str]]:
    return request.fields if isinstance(request, WireRequest) else list(request.headers.items())


def _header_lines(fields: list[tuple[str, str]], route: Route) -> list[bytes]:
    return encode_headers(fields, route.settings.user_agent) if fields else route.headers
