"""Settings of single hosts: how pgnet connects to each, and what it sends.

This module imports the standard library only, so that a check of settings does not load the wire.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pgnet.request.address import literal_address

_CACHED_HOSTS = 10_000


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """When the circuit breaker of a host opens, and for how long.

    The names are those of net.configure_host; 48_breaker.sql says where the defaults come from.
    """

    enabled: bool = True
    failures_in_a_row: int = 20
    failure_percent: float = 50
    min_attempts: int = 50
    window_milliseconds: int = 60_000
    open_milliseconds: int = 5_000
    max_open_milliseconds: int = 300_000
    on_open: str = "wait"

    @classmethod
    def from_json(cls, given: Mapping[str, Any] | bool) -> BreakerSettings:
        """Read the setting breaker of net.configure_host; what is unknown is left out."""
        if isinstance(given, bool):
            return cls(enabled=given)
        return cls(**{name: value for name, value in given.items() if name in _BREAKER_NAMES})

    @property
    def for_report(self) -> dict[str, Any]:
        """The settings as pgnet.report_attempts takes them; none where the breaker is off."""
        if not self.enabled:
            return {}
        return {name: getattr(self, name) for name in _BREAKER_NAMES}


_BREAKER_NAMES = tuple(entry.name for entry in fields(BreakerSettings) if entry.name != "enabled")


@dataclass(frozen=True, slots=True)
class HostSettings:
    """The settings of one host; None stands for the general rule.

    connect_timeout: seconds to connect, TLS included.
    max_redirects: how many redirects of a request to this host are followed.
    http_version: "1.1", or "2" for HTTP/2 where TLS offers it, which is also the general rule.
    user_agent: the User-Agent in place of pgnet's own, where the caller gives none.
    host_header: the name, perhaps with a port, that the server is asked for in place of the URL's
    host, as Host and in TLS. The connection still goes to the URL's host.
    proxy: `http://host:port` or `https://host:port`, perhaps with `user:password@`.
    ca: the authorities that are trusted in place of the default bundle, as PEM.
    client_certificate, client_key: how this side identifies itself, as PEM.
    verify: False checks neither the server's certificate nor its name.
    retry: the name of the retry policy of requests that give none.
    limited: whether it has a limit of concurrency or rate, which the database keeps; False: it has
    none, whatever a wider pattern says.
    breaker: of the circuit breaker.
    adaptive: False does not adapt how many requests the host has in flight.
    max_retry_after: a longer pause that the host asks for counts as this, in seconds.
    fault: why no request may be sent to this host; it becomes the error of each.
    """

    connect_timeout: float | None = None
    max_redirects: int | None = None
    http_version: str | None = None
    user_agent: str | None = None
    host_header: str | None = None
    # The proxy's URL may hold a password.
    proxy: str | None = field(default=None, repr=False)
    ca: str | None = field(default=None, repr=False)
    client_certificate: str | None = field(default=None, repr=False)
    client_key: str | None = field(default=None, repr=False)
    verify: bool | None = None
    retry: str | None = None
    limited: bool | None = None
    breaker: BreakerSettings | None = None
    adaptive: bool | None = None
    max_retry_after: float | None = None
    fault: str | None = None


_NAMES = tuple(entry.name for entry in fields(HostSettings))
GENERAL = HostSettings()


class HostTable:
    """Settings by pattern: a name, an address, `*.suffix` for all names below, `*` for all hosts.

    All patterns that match a host count, key by key. The host's own setting comes first, then that
    of the longest suffix, and that of `*` last. A pattern may end in a port, and then comes before
    the same one without.

    entries: settings by pattern; an IPv6 address has brackets only where a port follows.
    """

    def __init__(self, entries: Mapping[str, HostSettings] | None = None) -> None:
        self.entries = {
            _usual_pattern(pattern): settings for pattern, settings in (entries or {}).items()
        }
        self._cache: dict[tuple[str, int | None], HostSettings] = {}
        self._has_ports = any(split_port(pattern)[1] for pattern in self.entries)
        self.has_limits = any(settings.limited for settings in self.entries.values())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HostTable) and self.entries == other.entries

    def __hash__(self) -> int:
        return hash(frozenset(self.entries))

    def settings_for(self, host: str, port: int | None = None) -> HostSettings:
        """Return the settings of a host, merged from all patterns that match it.

        host: of a URL; an IPv6 address with or without its brackets. port: of the same URL; None
        where it has none, or where the port does not matter.
        """
        if not self.entries:
            return GENERAL
        key = host, port if self._has_ports else None
        known = self._cache.get(key)
        if known is None:
            if len(self._cache) >= _CACHED_HOSTS:
                self._cache.clear()
            known = self._cache[key] = self._merge(*key)
        return known

    def has_own_limit(self, host: str, port: int | None) -> bool:
        """Whether a host has a limit by another pattern than `*`."""
        if not self.has_limits:
            return False
        found = (self.entries.get(pattern) for pattern in self._patterns(host, port)[:-1])
        return next((s.limited for s in found if s is not None and s.limited is not None), False)

    def _patterns(self, host: str, port: int | None) -> list[str]:
        """The patterns that match a host, the most specific first, and `*` last."""
        address = literal_address(host)
        names = [address] if address is not None else patterns_of(plain_host(host))
        if not self._has_ports or port is None:
            return [*names, "*"]
        return [p for name in (*names, "*") for p in (_with_port(name, port), name)]

    def _merge(self, host: str, port: int | None) -> HostSettings:
        found = [self.entries[p] for p in self._patterns(host, port) if p in self.entries]
        if len(found) == 1:
            return found[0]
        merged = {}
        for name in _NAMES:
            values = (getattr(settings, name) for settings in found)
            merged[name] = next((value for value in values if value is not None), None)
        return HostSettings(**merged)


# Asked several times for each request where a host has settings.
@functools.lru_cache(_CACHED_HOSTS)
def split_port(pattern: str) -> tuple[str, int | None]:
    """The two parts of a host and port; the port is None where there is none."""
    match = re.fullmatch(r"([^:]*|\[.*\]):([0-9]{1,5})", pattern)
    return (match[1], int(match[2])) if match is not None else (pattern, None)


def _with_port(name: str, port: int) -> str:
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def _usual_pattern(pattern: str) -> str:
    name, port = split_port(pattern)
    usual = literal_address(name) or plain_host(name)
    return usual if port is None else _with_port(usual, port)


@functools.lru_cache(_CACHED_HOSTS)
def usual_authority(authority: str) -> str:
    """Return the authority of a canonical URL with its host as limits know it.

    An address has its usual form, and a name does not have the root's dot.
    """
    name, port = split_port(authority)
    address = literal_address(name)
    if address is None:
        address = plain_host(name)
    elif ":" in address:
        address = f"[{address}]"
    return address if port is None else f"{address}:{port}"


def plain_host(host: str) -> str:
    """Return a name in lower case, without the root's dot: `Example.com.` is `example.com`."""
    return host.lower().rstrip(".")


def patterns_of(name: str) -> list[str]:
    """Return the patterns that match a name, the most specific first."""
    labels = name.split(".")
    return [name, *("*." + ".".join(labels[at:]) for at in range(1, len(labels)))]
