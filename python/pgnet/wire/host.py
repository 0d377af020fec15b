"""Settings of single hosts: how pgnet connects to each, and what it sends.

This module imports the standard library only, so that a check of settings does not load the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from pgnet.request.address import literal_address

_CACHED_HOSTS = 10_000


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
    fault: str | None = None


_NAMES = tuple(entry.name for entry in fields(HostSettings))
GENERAL = HostSettings()


class HostTable:
    """Settings by pattern: a name, an address, `*.suffix` for all names below, `*` for all hosts.

    All patterns that match a host count, key by key. The host's own setting comes first, then that
    of the longest suffix, and that of `*` last.

    entries: settings by pattern; an IPv6 address stands without brackets.
    """

    def __init__(self, entries: Mapping[str, HostSettings] | None = None) -> None:
        self.entries = {
            literal_address(pattern) or plain_host(pattern): settings
            for pattern, settings in (entries or {}).items()
        }
        self._cache: dict[str, HostSettings] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HostTable) and self.entries == other.entries

    def __hash__(self) -> int:
        return hash(frozenset(self.entries))

    def settings_for(self, host: str) -> HostSettings:
        """Return the settings of a host, merged from all patterns that match it.

        host: of a URL; an IPv6 address with or without its brackets.
        """
        if not self.entries:
            return GENERAL
        known = self._cache.get(host)
        if known is None:
            if len(self._cache) >= _CACHED_HOSTS:
                self._cache.clear()
            known = self._cache[host] = self._merge(host)
        return known

    def _merge(self, host: str) -> HostSettings:
        address = literal_address(host)
        patterns = [address] if address is not None else patterns_of(plain_host(host))
        found = [self.entries[p] for p in (*patterns, "*") if p in self.entries]
        if len(found) == 1:
            return found[0]
        merged = {}
        for name in _NAMES:
            values = (getattr(settings, name) for settings in found)
            merged[name] = next((value for value in values if value is not None), None)
        return HostSettings(**merged)


def plain_host(host: str) -> str:
    """Return a name in lower case, without the root's dot: `Example.com.` is `example.com`."""
    return host.lower().rstrip(".")


def patterns_of(name: str) -> list[str]:
    """Return the patterns that match a name, the most specific first."""
    labels = name.split(".")
    return [name, *("*." + ".".join(labels[at:]) for at in range(1, len(labels)))]
