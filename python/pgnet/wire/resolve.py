"""Names to addresses by c-ares in the event loop: no thread, no blocking call.

libcurl's own resolver is not used: joining its thread, it blocked the loop for 9.5 s, and signal
handlers of PostgreSQL may run on such threads. And the guard has to judge the very address that
libcurl then connects to: a name may have another one at the next look-up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import gevent
from gevent.resolver import cares

from pgnet.request.address import literal_address

# Seconds in which one channel of c-ares is used. From 1.31 on a channel remembers answers for as
# long as their records say, and gevent has no option against it. A new channel remembers nothing.
_CHANNEL_AGE = 1.0
# ARES_ETIMEOUT, c-ares' own status: no server answered in time, or none could be asked.
_TIMED_OUT = 12


class ResolveError(Exception):
    """The name has no address, or no name server could say.

    timed_out: whether the deadline came first.
    """

    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out


Found = Callable[[tuple[str, ...], ResolveError | None], None]

# RFC 6761, section 6.3: name servers are not asked for these names. /etc/hosts is not either: on
# many machines it has one of the two families only.
_LOOPBACK = ("127.0.0.1", "::1")


def is_localhost(host: str) -> bool:
    """Whether a name, in lower case, is localhost or below it."""
    name = host.rstrip(".")
    return name == "localhost" or name.endswith(".localhost")


class Lookup:
    """A request that waits for its name; `cancel()` makes it stop waiting."""

    __slots__ = ("_resolver", "_timer", "done", "host")

    def __init__(self, resolver: Resolver, host: str, done: Found) -> None:
        self._resolver = resolver
        self.host = host
        self.done: Found | None = done
        self._timer: Any = None

    def cancel(self) -> None:
        """Stop waiting: `done` is not called any more."""
        self.done = None
        self._stop_timer()

    def _start_timer(self, seconds: float) -> None:
        self._timer = self._resolver.hub.loop.timer(max(seconds, 0.0))
        self._timer.start(self._expired, update=True)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    def _expired(self) -> None:
        self.finish((), ResolveError("Resolving timed out", timed_out=True))

    def finish(self, addresses: tuple[str, ...], error: ResolveError | None) -> None:
        """Tell the outcome, the first time it is called."""
        done, self.done = self.done, None
        self._stop_timer()
        if done is not None:
            try:
                done(addresses, error)
            except Exception as failure:
                self._resolver.hub.handle_error(self, type(failure), failure, None)


class _Channel:
    """c-ares' sockets, and what it remembers.

    until: when (time.monotonic) it gets its last question. asked: how many have no answer yet.
    """

    __slots__ = ("ares", "asked", "until")

    def __init__(self, ares: Any, until: float) -> None:
        self.ares = ares
        self.until = until
        self.asked = 0


class Resolver:
    """Looks names up, in /etc/hosts and by DNS, many at a time, and remembers them for a while.

    hub: gevent's, of the current thread if none is given.
    servers, port: name servers instead of the system's, as addresses, and their port.
    max_age: for how many seconds an answer is used again; at most 60.
    server_timeout: seconds until a name server is asked again.
    tries: how often each name server is asked.
    """

    def __init__(
        self,
        *,
        hub: Any = None,
        servers: Sequence[str] | None = None,
        port: int = 53,
        max_age: float = 30.0,
        server_timeout: float = 2.0,
        tries: int = 3,
    ) -> None:
        self.hub = hub if hub is not None else gevent.get_hub()
        self._max_age = min(max_age, 60.0)
        self._options: dict[str, Any] = {"timeout": server_timeout, "tries": tries}
        if servers is not None:
            self._options |= {"servers": list(servers), "udp_port": port, "tcp_port": port}
        self._channel: _Channel | None = None
        # Channels that get no more questions, and have some without an answer.
        self._former: set[_Channel] = set()
        self._cache: dict[str, tuple[float, tuple[str, ...]]] = {}
        self._waiting: dict[str, list[Lookup]] = {}

    def cached(self, host: str) -> tuple[str, ...] | None:
        """The addresses of `host` where they need no lookup, otherwise None."""
        literal = literal_address(host)
        if literal is not None:
            return (literal,)
        if is_localhost(host):
            return _LOOPBACK
        entry = self._cache.get(host)
        if entry is None:
            return None
        if entry[0] < time.monotonic():
            del self._cache[host]
            return None
        return entry[1]

    def good_until(self, host: str) -> float:
        """Until when (time.monotonic) the cached addresses of `host` may be used."""
        if literal_address(host) is not None or is_localhost(host):
            return time.monotonic() + self._max_age
        entry = self._cache.get(host)
        return entry[0] if entry is not None else 0.0

    def lookup(self, host: str, seconds: float, done: Found) -> Lookup:
        """Look `host` up, and call `done(addresses, error)` once, from the event loop.

        seconds: when to give up; other requests that wait for the same name go on waiting.
        """
        lookup = Lookup(self, host, done)
        known = self.cached(host)
        if known is not None:
            self.hub.loop.run_callback(lookup.finish, known, None)
            return lookup
        lookup._start_timer(seconds)
        waiting = self._waiting.get(host)
        if waiting is not None:
            waiting.append(lookup)
            return lookup
        self._waiting[host] = [lookup]
        # c-ares calls back at once for a name in /etc/hosts: it is asked from the loop, not here.
        self.hub.loop.run_callback(self._ask, host)
        return lookup

    def clear(self) -> None:
        """Forget every answer."""
        self._cache.clear()
        self._retire_channel()

    def close(self) -> None:
        """End all lookups, unanswered."""
        waiting, self._waiting = self._waiting, {}
        for lookups in waiting.values():
            for lookup in lookups:
                lookup.cancel()
        self.clear()
        former, self._former = self._former, set()
        for channel in former:
            channel.ares.destroy()

    def _ask(self, host: str) -> None:
        try:
            channel = self._fresh_channel()
        except Exception as error:
            self._tell(host, (), ResolveError(f"Couldn't ask a name server: {error}"))
            return

        def answered(result: Any) -> None:
            channel.asked -= 1
            if channel in self._former and not channel.asked:
                # c-ares must not lose its channel while it calls.
                self._former.discard(channel)
                self.hub.loop.run_callback(channel.ares.destroy)
            self._answered(host, result)

        channel.asked += 1
        try:
            channel.ares.getaddrinfo(answered, host.encode("ascii"), None, 0, 1, 6, 0)
        except Exception as error:
            channel.asked -= 1
            self._tell(host, (), ResolveError(f"Couldn't ask a name server: {error}"))

    def _fresh_channel(self) -> _Channel:
        """The channel, or a new one, which reads resolv.conf anew and remembers nothing."""
        now = time.monotonic()
        if self._channel is None or not self._channel.asked or now > self._channel.until:
            self._retire_channel()
            made = cares.channel(self.hub.loop, **self._options)
            self._channel = _Channel(made, now + _CHANNEL_AGE)
        return self._channel

    def _retire_channel(self) -> None:
        """Ask the channel nothing more; it is destroyed when it has answered all it was asked."""
        channel, self._channel = self._channel, None
        if channel is None:
            return
        if channel.asked:
            self._former.add(channel)
        else:
            channel.ares.destroy()

    def _answered(self, host: str, result: Any) -> None:
        if result.exception is not None:
            timed_out = result.exception.args[:1] == (_TIMED_OUT,)
            words = "No name server answered" if timed_out else "No such name"
            self._tell(host, (), ResolveError(words))
            return
        # The same address comes once for each socket type.
        addresses = tuple(dict.fromkeys(str(entry[4][0]) for entry in result.value))
        if not addresses:
            self._tell(host, (), ResolveError("No such name"))
            return
        if len(self._cache) >= 10_000:
            self._cache.clear()
        self._cache[host] = (time.monotonic() + self._max_age, addresses)
        self._tell(host, addresses, None)

    def _tell(self, host: str, addresses: tuple[str, ...], error: ResolveError | None) -> None:
        for lookup in self._waiting.pop(host, ()):
            lookup.finish(addresses, error)
