"""One request, one outcome: redirects, limits, and one deadline over all of it.

Theory of operation
-------------------

An Exchange performs many requests beside each other, as callbacks of gevent's hub. No greenlet
waits for a request, so a request costs no stack. `Exchange.start` returns a Handle at once; the way
of the request from there is

    start -> Transfer -> hop_ended -> next_hop -> Transfer -> hop_ended -> ... -> finish -> done

- A **Transfer** is one request to one server. The transport looks up the name, asks the guard,
  connects, and calls `hop_ended` when that server has answered, or when it is clear that it will
  not.
- **`next_hop`** (redirect.py) has the rules of redirects. It returns the request that the answer
  leads on to, the reason why that must not be sent, or None. The next Transfer keeps the start and
  the deadline of the first.
- **`finish`** makes the one Answer, and calls `done` with it.

These hold, whatever happens:

- `done` is called exactly once for each `start`, from the hub, and never before `start` returns. A
  fault of our own code becomes the error of an Answer, too.
- The deadline covers all hops: look-ups, connections, TLS, redirects, the last byte of the body.
- Rules that change (`configure`) hold for each hop that begins after that.
- A redirect that was followed to a server without an answer is itself the answer that is shown,
  beside the error. `Answer.is_final` says which of both became of the request: the redirect where
  it has answered the request and the next hop only fetches what it points to (the method became
  GET), or where the next hop was refused here; otherwise the error.
- No secret goes to a hop beyond its URL prefix, and no answer shows such a hop: `bound` has the
  headers that stay behind, `may_follow` judges the URLs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import gevent

from pgnet.wire.answer import Answer, Followed
from pgnet.wire.guard import Guard
from pgnet.wire.host import HostTable
from pgnet.wire.limits import Limits
from pgnet.wire.message import WireRequest, check_method, encode_headers
from pgnet.wire.redirect import is_redirect, next_hop
from pgnet.wire.resolve import Resolver
from pgnet.wire.transfer import Progress
from pgnet.wire.transport import Route, Transfer, Transport
from pgnet.wire.wire_error import WireError

Done = Callable[[Answer], None]

_NOTHING_BOUND: Mapping[str, str] = MappingProxyType({})
# The least that a request gets, in seconds.
_SHORTEST_TIMEOUT = 0.001


class Exchange:
    """Performs requests, many at a time, without blocking.

    guard: asked for each hop's host and address.
    limits: what a request may cost.
    hosts: what is special about some hosts.
    concurrency: how many connections are kept for use again; it does not bound `start`.
    hub: gevent's hub; None means that of the current thread.
    resolver: looks names up; None means one with the system's name servers.
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
        request: WireRequest,
        timeout: float,
        done: Done,
        *,
        bound: Mapping[str, str] = _NOTHING_BOUND,
        max_redirects: int | None = None,
        may_follow: Callable[[str], bool] | None = None,
        at_most_once: bool = False,
        send_by: float | None = None,
    ) -> Handle:
        """Begin a request. Never blocks, and never raises for what is wrong with the request.

        timeout: seconds in all, from the look-up of the first name to the last byte of the last
        hop.
        done: called exactly once, in the hub, with the Answer; it must not switch greenlets.
        bound: names of headers, in lower case, and the URL prefix beyond which a redirect must not
        carry each.
        max_redirects: of this request; it lowers what limits and host allow, and never raises it.
        may_follow: asked for the URL of each redirect; false where it repeats a secret beyond the
        URL prefix that the secret is bound to.
        at_most_once: whether the bytes of each hop go out at most once, whatever the method: over a
        connection of their own, by HTTP/1.1, to another address only where nothing can have been
        sent. A proxy may still repeat them.
        send_by: when the first hop must have its connection, by the monotonic clock; without one by
        then it is not sent. None: at any time.
        """
        handle = Handle(self, request, done, bound, may_follow, at_most_once)
        self._handles.add(handle)
        try:
            handle._begin(max(timeout, _SHORTEST_TIMEOUT), max_redirects, send_by)
        except WireError as error:
            self._hub.loop.run_callback(handle._finish, error)
        return handle

    def configure(
        self, guard: Guard, limits: Limits | None = None, hosts: HostTable | None = None
    ) -> None:
        """Follow other rules: requests begun from now on, and redirects of those on their way.

        No connection and no looked-up name from before is used again. None leaves limits or hosts
        as they are.
        """
        if limits is not None:
            self._limits = limits
        self._transport.configure(guard, hosts)

    def close(self) -> None:
        """Cancel what is on its way, and release all sockets and watchers."""
        for handle in list(self._handles):
            handle.cancel()
        self._transport.close()


class Handle:
    """A request on its way through an Exchange, hop by hop."""

    __slots__ = (
        "_answered",
        "_at_most_once",
        "_bound",
        "_done",
        "_exchange",
        "_first",
        "_max_redirects",
        "_may_follow",
        "_redirect",
        "_redirects",
        "_request",
        "_transfer",
    )

    def __init__(
        self,
        exchange: Exchange,
        request: WireRequest,
        done: Done,
        bound: Mapping[str, str],
        may_follow: Callable[[str], bool] | None,
        at_most_once: bool,
    ) -> None:
        self._exchange = exchange
        # The request of the current hop.
        self._request = request
        self._done: Done | None = done
        self._bound = bound
        self._may_follow = may_follow
        self._at_most_once = at_most_once
        # The authority of the first hop.
        self._first = ""
        self._max_redirects = 0
        self._redirects = 0
        # The redirect that is being followed; and whether a redirect has answered the request, so
        # that the hops behind it only fetch what it points to.
        self._redirect: Followed | None = None
        self._answered = False
        # None before the first hop, and after the end.
        self._transfer: Transfer | None = None

    @property
    def progress(self) -> str:
        """What it waits for, in words."""
        transfer = self._transfer
        if transfer is None:
            words = Progress.ANSWER.value
        else:
            ask = transfer.progress
            words = (Progress.NAME if ask is None else ask()).value
        return f"{words}, behind {self._redirects} redirect(s)" if self._redirects else words

    def cancel(self) -> None:
        """Stop it; `done` is still called, with an error. No effect after its end."""
        exchange = self._exchange
        if self not in exchange._handles:
            return
        if self._transfer is not None:
            if self._transfer.done is None:
                # The hop has ended, and `done` is about to be called.
                return
            self._transfer.cancel()
        error = WireError("Request was cancelled", kind="request", possibly_sent=True)
        exchange._hub.loop.run_callback(self._finish, error)

    def _begin(self, timeout: float, max_redirects: int | None, send_by: float | None) -> None:
        """Start the first hop. Raises WireError."""
        started = time.monotonic()
        exchange, request = self._exchange, self._request
        limits, transport = exchange._limits, exchange._transport
        method, url, body = request.method, request.url, request.body
        check_method(method)
        if method == "HEAD" and body is not None:
            raise WireError("a HEAD request has no body")
        if "#" in url:
            url = url.partition("#")[0]
            request = WireRequest(method, url, request.fields, body)
        route = transport.route(url, at_most_once=self._at_most_once, body=body)
        settings = route.settings
        most = settings.max_redirects
        if most is None:
            most = limits.max_redirects
        self._max_redirects = most if max_redirects is None else min(most, max_redirects)
        self._transfer = transfer = Transfer(
            request,
            route,
            _header_lines(request, route),
            limits,
            started=started,
            timeout=timeout,
            done=self._hop_ended,
        )
        transfer.attempts.send_by = send_by
        self._first = _authority(url)
        transport.start(transfer)

    def _hop_ended(self, transfer: Transfer) -> None:
        """A server has answered, or it has not: follow its redirect, or finish."""
        error = transfer.error
        head = transfer.received.head
        if error is None and is_redirect(head.status):
            try:
                following = next_hop(
                    self._request,
                    head,
                    self._redirects,
                    self._max_redirects,
                    self._bound,
                    self._may_follow,
                )
                if isinstance(following, WireRequest):
                    self._follow(following, transfer)
                    return
                error = following
            except WireError as refusal:
                error = refusal
            except Exception as failure:
                hub = self._exchange._hub
                hub.handle_error(self, type(failure), failure, failure.__traceback__)
                error = WireError(
                    "internal error in following a redirect", kind="request", possibly_sent=True
                )
        self._finish(error)

    def _follow(self, request: WireRequest, transfer: Transfer) -> None:
        """Start the next hop. Raises WireError."""
        exchange = self._exchange
        transport = exchange._transport
        self._request = request
        route = transport.route(request.url, at_most_once=self._at_most_once, body=request.body)
        lines = _header_lines(request, route)
        has_limit = transport.hosts.has_own_limit(route.origin.host, route.origin.port)
        if has_limit and _authority(request.url) != self._first:
            # The limit counts requests by the host of their own URL.
            raise WireError(
                "redirect to a host that has a limit is not followed: give its URL to the request",
                kind="request",
                possibly_sent=True,
            )
        self._redirects += 1
        self._redirect = Followed(transfer)
        # RFC 9110, section 15.4.4: the server has done what was asked, and says where to see it.
        self._answered = self._answered or request.method != transfer.request.method
        self._transfer = transfer = transfer.following(
            request, route, lines, exchange._limits, self._hop_ended
        )
        if transfer.deadline <= time.monotonic():
            raise transport.timeout_error(transfer, True)
        transport.start(transfer)

    def _finish(self, error: WireError | None) -> None:
        """Make the Answer, and call `done` with it; the first time only."""
        exchange = self._exchange
        if self not in exchange._handles:
            return
        exchange._handles.discard(self)
        transfer, redirect = self._transfer, self._redirect
        if transfer is not None:
            transfer.timings.total = time.monotonic() - transfer.started
            if error is None:
                error = transfer.received.note
            elif self._redirects or transfer.received.head.status:
                error.possibly_sent = True
        answer = Answer(transfer, self._request, error, self._redirects)
        if answer.status_code is None and redirect is not None and error is not None:
            refused = error.kind == "request"
            answer.fall_back(redirect, self._answered or refused, was_followed=not refused)
        if self._may_follow is not None and is_redirect(answer.status_code):
            answer.hide_target(self._may_follow)
        # The owner of the handle may keep it, and does not keep the answer by that.
        done, self._done, self._transfer = self._done, None, None
        assert done is not None
        try:
            done(answer)
        except Exception as failure:
            # The request whose callback fails has its answer; the loop goes on for all others.
            exchange._hub.handle_error(self, type(failure), failure, failure.__traceback__)


def _header_lines(request: WireRequest, route: Route) -> list[bytes]:
    fields = request.fields
    return encode_headers(fields, route.settings.user_agent) if fields else route.headers


def _authority(url: str) -> str:
    return url.partition("://")[2].partition("/")[0].partition("?")[0]
