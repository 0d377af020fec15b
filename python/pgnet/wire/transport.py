"""From a request to a connection: its route, its name's addresses, and what is tried again.

`start` has the name looked up and every address judged, and gives libcurl the request for the first
address that is allowed. libcurl connects to that address, and looks nothing up. An attempt that
failed is made again where that does no harm:

* The server refused the request's stream (`Failure.refused`): to the same address.
* A kept connection ended without a byte of an answer, and the method is idempotent: to the same
  address, once, over a new connection.
* No connection was made: to the next address, as long as there is time.
"""

from __future__ import annotations

import time
from typing import Any

import gevent
import pycurl

from pgnet.wire.connection import ConnectionSettings, Origin, ca_bundle, is_plain, match_origin
from pgnet.wire.curl.multi import Multi
from pgnet.wire.guard import EgressRefused, Guard
from pgnet.wire.host import HostSettings, HostTable
from pgnet.wire.resolve import ResolveError, Resolver
from pgnet.wire.route import Route
from pgnet.wire.transfer import IDEMPOTENT, Failure, Transfer
from pgnet.wire.wire_error import Code, Kind, WireError, refused, settle, words

__all__ = ["Route", "Transfer", "Transport", "ca_bundle"]

# How a kept connection ends that its server has closed.
_ENDS_OF_KEPT = (Code.GOT_NOTHING, Code.SEND_ERROR, Code.RECV_ERROR, Code.HTTP2, Code.HTTP2_STREAM)
_MOST_ROUTES = 10_000
# How often a request is sent again that its server refuses, and after how many times over a
# connection of its own, whose first stream it is.
_MOST_REFUSALS, _SHARED_REFUSALS = 20, 10


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
        self._multi = self._new_multi()
        # Its requests must not be repeated, and have connections of their own. In `_multi` libcurl
        # would let others wait for these, and take the server for one without HTTP/2.
        self._multi_without_reuse: Multi | None = None
        # Its requests go over HTTP/1.1 to hosts that may speak HTTP/2 as well. libcurl 7.88 knows
        # of a host whether requests may share a connection, and not of a connection: in `_multi` it
        # would send requests of HTTP/2 over connections of HTTP/1.1, and mix up the answers.
        self._multi_of_http_1: Multi | None = None
        self._routes: dict[tuple[str, HostSettings | None, bool, bool], Route] = {}
        # Equal settings are one object: to compare an object with itself takes no time.
        self._settings: dict[ConnectionSettings, ConnectionSettings] = {}

    def route(
        self,
        url: str,
        settings: HostSettings | None = None,
        at_most_once: bool = False,
        body: bytes | str | None = None,
    ) -> Route:
        """How a request for a URL goes.

        settings: what is special about its host; None stands for what the table of hosts has.
        at_most_once: whether its bytes may go out once only.
        Errors: WireError for a URL that is not http or https, and for settings that cannot be used.
        """
        with_body = bool(body)
        # Scheme and authority end with a slash in nearly all URLs: no pattern is needed then.
        end = url.find("/", 8)
        if end > 0:
            known = self._routes.get((url[:end], settings, at_most_once, with_body))
            if known is not None and is_plain(url):
                return known
        origin = Origin.parse(url)
        special = (
            settings if settings is not None else self.hosts.settings_for(origin.host, origin.port)
        )
        if special.fault is not None:
            raise WireError(special.fault)
        route = Route(origin, special, self.hosts, at_most_once, with_body)
        route.connection = self._settings.setdefault(route.connection, route.connection)
        if len(self._routes) >= _MOST_ROUTES:
            self._routes.clear()
        match = match_origin(url)
        if match is not None:
            self._routes[match.group(0), settings, at_most_once, with_body] = route
        return route

    def start(self, transfer: Transfer) -> None:
        """Begin a transfer; never blocks, and never calls `done` before it returns."""
        route = transfer.route
        try:
            if route.until > time.monotonic():
                transfer.attempts.addresses = route.addresses
                self._connect(transfer)
            else:
                self._find(transfer)
        except Exception as error:
            self.hub.loop.run_callback(transfer.fail, self._failure(error))

    def configure(self, guard: Guard, hosts: HostTable | None = None) -> None:
        """Follow other rules: no connection and no address from before is used again.

        hosts: None leaves the settings of hosts as they are.
        """
        self.guard = guard
        if hosts is not None:
            self.hosts = hosts
        self._routes.clear()
        self._settings.clear()
        self._resolver.clear()
        self._retire()
        self._multi = self._new_multi()

    def close(self) -> None:
        """Release sockets and watchers; transfers must have ended or been cancelled."""
        self._routes.clear()
        self._settings.clear()
        self._resolver.close()
        self._retire()

    def _new_multi(self, reuse: bool = True) -> Multi:
        return Multi(
            self.hub.loop,
            self._connections,
            check_address=self.check_address,
            on_failed=self._on_failed,
            on_error=self._report,
            reuse=reuse,
        )

    def _report(self, context: object, error: Exception) -> None:
        self.hub.handle_error(context, type(error), error, error.__traceback__)

    def _retire(self) -> None:
        for multi in (self._multi, self._multi_without_reuse, self._multi_of_http_1):
            if multi is not None:
                multi.retire()
        self._multi_without_reuse = self._multi_of_http_1 = None

    def check_address(self, route: Route, address: str) -> None:
        """Ask the guard whether an address may be connected to.

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
            transfer.stop = None
            transfer.timings.name += time.monotonic() - asked
            if error is not None:
                transfer.fail(self._unresolved(transfer, error))
                return
            try:
                # The rules may have changed while the name was looked up.
                self._check_names(route)
                self._found(transfer, addresses)
            except Exception as failure:
                transfer.fail(self._failure(failure))

        lookup = self._resolver.lookup(route.peer, transfer.deadline - asked, found)
        transfer.stop = lookup.cancel

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
        transfer.attempts.addresses = route.addresses = tuple(allowed)
        route.until = self._resolver.good_until(route.peer)
        self._connect(transfer)

    def _connect(self, transfer: Transfer) -> None:
        attempts = transfer.attempts
        addresses = attempts.addresses
        attempts.address = address = addresses[0]
        attempts.addresses = addresses[1:]
        self._add(transfer, address)

    def _connect_to(self, transfer: Transfer, address: str | None) -> None:
        """Begin a transfer anew, after an attempt that failed."""
        transfer.forget_answer()
        transfer.attempts.address = address
        try:
            self._add(transfer, address or "")
        except Exception as error:
            transfer.fail(self._failure(error))

    def _add(self, transfer: Transfer, address: str) -> None:
        multi, route = self._multi, transfer.route
        if transfer.attempts.send_by is not None and time.monotonic() >= transfer.attempts.send_by:
            raise self.timeout_error(transfer, False)
        if route.at_most_once:
            if self._multi_without_reuse is None:
                self._multi_without_reuse = self._new_multi(reuse=False)
            multi = self._multi_without_reuse
        elif route.connection.http_version == "1.1" and not route.answered_by_1:
            if self._multi_of_http_1 is None:
                self._multi_of_http_1 = self._new_multi()
            multi = self._multi_of_http_1
        multi.add(transfer, address)

    def _on_failed(self, transfer: Transfer, failure: Failure) -> None:
        """A transfer has no answer: try again, or say why."""
        attempts = transfer.attempts
        attempts.sent = attempts.sent or failure.sent
        if failure.refused and self._send_again(transfer):
            return
        if failure.fault is not None:
            transfer.fail(failure.fault)
            return
        if self._repeat(transfer, failure) or self._try_next_address(transfer, failure):
            return
        if failure.code == Code.OPERATION_TIMEDOUT:
            transfer.fail(self.timeout_error(transfer, failure.sent))
            return
        code, kind = settle(failure.code, failure.text, failure.times)
        # An attempt before this one may have come further.
        sent = attempts.sent
        transfer.fail(
            WireError(words(code), kind=kind, possibly_sent=sent, code=code, detail=failure.text)
        )

    def _repeat(self, transfer: Transfer, failure: Failure) -> bool:
        """Send an idempotent request again, once, if its kept connection ended; returns whether.

        Servers end kept connections just when the next request comes. libcurl itself then repeats
        the request, but not over TLS, and it counts the repeats of all transfers of a handle.
        """
        code = failure.code
        died = code == Code.SEND_ERROR and "Connection died" in failure.text
        ended = died or (failure.is_silent and code in _ENDS_OF_KEPT)
        may_repeat = transfer.request.method in IDEMPOTENT and not transfer.route.at_most_once
        attempts = transfer.attempts
        if not ended or not may_repeat or attempts.repeated:
            return False
        attempts.repeated = attempts.fresh = True
        self._connect_to(transfer, attempts.address)
        return True

    def _try_next_address(self, transfer: Transfer, failure: Failure) -> bool:
        """Try the next address where no connection was made to this one; whether there is one."""
        attempts = transfer.attempts
        timed_out = failure.code == Code.OPERATION_TIMEDOUT
        connecting = not failure.sent and attempts.handshake == 0
        if not (failure.code == Code.COULDNT_CONNECT or (timed_out and connecting)):
            return False
        if not attempts.addresses or (attempts.sent and transfer.route.at_most_once):
            return False
        if transfer.deadline - time.monotonic() <= 0.001:
            return False
        if attempts.address is not None:
            transfer.route.avoid(attempts.address)
        address, *left = attempts.addresses
        attempts.addresses = tuple(left)
        self._connect_to(transfer, address)
        return True

    def _send_again(self, transfer: Transfer) -> bool:
        """Send a request again that its server refused, whatever its method; whether it is."""
        attempts = transfer.attempts
        attempts.refusals += 1
        left = transfer.deadline - time.monotonic()
        if attempts.refusals > _MOST_REFUSALS or left < 0.001:
            return False
        attempts.fresh = attempts.refusals > _SHARED_REFUSALS
        self._connect_to(transfer, attempts.address)
        return True

    def _failure(self, error: Exception) -> WireError:
        """The error of a transfer that could not be begun, whatever went wrong."""
        if isinstance(error, WireError):
            return error
        if isinstance(error, EgressRefused):
            return refused(error)
        if isinstance(error, pycurl.error):
            code = int(error.args[0]) if error.args else 0
            return WireError(words(code), code=code)
        self._report(self, error)
        return WireError("internal error in the wire")

    def timeout_error(self, transfer: Transfer, sent: bool) -> WireError:
        """The error of a deadline that was reached; its message says where the time went."""
        total = time.monotonic() - transfer.started
        name = transfer.timings.name
        handshake = transfer.attempts.handshake
        if not sent and handshake == 0:
            handshake = total - name
        limit, what = transfer.timeout, "Timeout"
        kind: Kind = "timeout"
        if time.monotonic() < transfer.deadline - 0.05:
            limit, what, kind = transfer.connect_timeout, "Connect timeout", "connect"
            if transfer.attempts.send_by is not None:
                limit = min(limit, transfer.attempts.send_by - transfer.started)
        error = WireError(
            timeout_words(what, limit, total, name, handshake),
            kind=kind,
            timed_out=True,
            possibly_sent=sent,
            code=Code.OPERATION_TIMEDOUT,
        )
        if kind == "connect" and transfer.attempts.send_by is not None:
            error.explain(
                "The rate of the host leaves no more time to connect: with a larger burst it does, "
                "or with a limit of concurrency below the burst. net.configure_host sets them"
            )
        elif kind == "connect":
            of_host = transfer.route.settings.connect_timeout is not None
            error.explain(
                "It is the connect_timeout_milliseconds of the host: net.configure_host sets it"
                if of_host
                else "It is the setting connect_timeout_milliseconds: net.configure sets it, and "
                "net.configure_host that of a host"
            )
        return error

    def _unresolved(self, transfer: Transfer, error: ResolveError) -> WireError:
        if error.timed_out:
            total = time.monotonic() - transfer.started
            return WireError(
                timeout_words("Timeout", transfer.timeout, total, transfer.timings.name, 0.0),
                timed_out=True,
                code=Code.OPERATION_TIMEDOUT,
            )
        direct = transfer.route.connection.proxy is None
        code = Code.COULDNT_RESOLVE_HOST if direct else Code.COULDNT_RESOLVE_PROXY
        return WireError(words(code), code=code, detail=str(error))


def timeout_words(what: str, limit: float, total: float, name: float, handshake: float) -> str:
    """The message of a deadline, with the words of pg_net: where the time went, in milliseconds."""
    limit, total, name, handshake, rest = (
        round(seconds * 1000)
        for seconds in (limit, total, name, handshake, max(total - name - handshake, 0.0))
    )
    return (
        f"{what} of {limit} ms reached. Total time: {total} ms (DNS time: {name} ms, "
        f"TCP/SSL handshake time: {handshake} ms, HTTP Request/Response time: {rest} ms)"
    )
