"""What is special about one host: how it is connected to, and what it is told.

The standard library only: whoever checks settings need not load the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from pgnet.request.address import literal_address

_CACHED_HOSTS = 10_000


@dataclass(frozen=True, slots=True)
class HostSettings:
    """What is said of one host; None stands for the general rule.

    connect_timeout: seconds to connect, TLS included.
    max_redirects: hops that a request to this host may be led on.
    http_version: "1.1", or "2" for HTTP/2 where TLS offers it, which is also the general rule.
    user_agent: instead of pgnet's own, where the caller gives none.
    host_header: the name, perhaps with a port, that the server is asked for instead of the URL's
    host: as Host, and in TLS. What is connected to is still the URL's host.
    proxy: `http://host:port` or `https://host:port`, perhaps with `user:password@`.
    ca: the authorities that are trusted instead of the default bundle, as PEM.
    client_certificate, client_key: what this side shows of itself, as PEM.
    verify: False checks neither the server's certificate nor its name.
    retry: the retry policy, by name, of requests that do not say theirs.
    fault: why no request may be sent to this host: the error of each.
    """

    connect_timeout: float | None = None
    max_redirects: int | None = None
    http_version: str | None = None
    user_agent: str | None = None
    host_header: str | None = None
    # It may hold a password.
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

    All patterns that match a host count, key by key: what is set for the host itself, then for the
    longest suffix, and at last for `*`.

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
        """What holds for a host.

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
    """Lower case, and without the root's dot: `Example.com.` and `example.com` are one name."""
    return host.lower().rstrip(".")


def patterns_of(name: str) -> list[str]:
    """The patterns that match a name, the most specific first."""
    labels = name.split(".")
    return [name, *("*." + ".".join(labels[at:]) for at in range(1, len(labels)))]
