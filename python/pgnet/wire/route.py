"""How requests to an origin go: to which address, by which proxy, with which version of HTTP."""

from __future__ import annotations

import re
from dataclasses import replace

import pycurl

from pgnet.wire.connection import ConnectionSettings, Origin, Proxy, Tls
from pgnet.wire.host import HostSettings, HostTable
from pgnet.wire.message import encode_headers
from pgnet.wire.wire_error import WireError

# Over HTTP/2 libcurl 7.88 loses answers of a server that does not wait for the body: with a short
# body now and then, with a long one nearly always.
_LOSES_ANSWERS: bool = pycurl.version_info()[2] < 0x080000
# Older libcurls know of a host whether requests may share a connection, and not of a connection.
# Where a host speaks HTTP/2 on one and HTTP/1.1 on another, they send several requests at a time
# over that one too, and give each whatever answer comes first.
MIXES_UP: bool = pycurl.version_info()[2] < 0x080E00


class Route:
    """How requests to one origin go: found out for the first, and used again for a while.

    settings: what is special about the host.
    headers: the lines of a request that has no headers of its own.
    peer, port: what is connected to, the origin's host or a proxy.
    asked_for: scheme and authority of the URLs that libcurl is given, None where they are the
    origin's. Host, HTTP/2's :authority and TLS then have that name, which is not looked up.
    addresses: of the peer, all allowed by the guard, and good until `until` (time.monotonic).
    version: the version of HTTP that the last answer had; empty before the first.
    at_most_once: whether requests go out once at most, whatever their method. Each then has a
    connection of its own, and HTTP/1.1.
    with_body: whether requests have a body. With libcurl 7.88 they then have HTTP/1.1, unless the
    host's http_version is 2.
    """

    __slots__ = (
        "addresses",
        "answered_by_1",
        "asked_for",
        "at_most_once",
        "connection",
        "headers",
        "host_header",
        "origin",
        "peer",
        "port",
        "settings",
        "until",
        "version",
    )

    def __init__(
        self,
        origin: Origin,
        settings: HostSettings,
        hosts: HostTable,
        at_most_once: bool = False,
        with_body: bool = False,
    ) -> None:
        self.origin = origin
        self.settings = settings
        self.at_most_once = at_most_once
        self.headers = encode_headers((), settings.user_agent)
        self.peer, self.port = origin.host, origin.port
        secure = origin.scheme == "https"
        # "direct" stands for no proxy, where a pattern that also matches has one.
        given = settings.proxy
        proxy = Proxy.parse(given) if given is not None and given != "direct" else None
        proxy_tls = None
        if proxy is not None:
            self.peer, self.port = proxy.host, proxy.port
            if proxy.scheme == "https":
                # A proxy is a host too: settings of its name hold for its TLS.
                proxy_tls = Tls.for_host(hosts.settings_for(proxy.host))
        version = settings.http_version or ("1.1" if with_body and _LOSES_ANSWERS else "2")
        self.connection = ConnectionSettings(
            "1.1" if secure and (at_most_once or version == "1.1") else "2",
            Tls.for_host(settings) if secure else Tls(),
            proxy,
            proxy_tls,
        )
        # Where libcurl writes the URL that a proxy gets, it spells an address its own way, and Host
        # must agree with that.
        as_stored = secure or proxy is None or hasattr(pycurl, "REQUEST_TARGET")
        self.host_header = origin.host_header if as_stored else None
        self.asked_for: str | None = None
        if settings.host_header is not None:
            if proxy is not None:
                # A proxy connects to the name it is given, or replaces Host by it.
                raise WireError(
                    f"host_header of {origin.host} goes by no proxy: "
                    f"""select net.configure_host('{origin.host}', '{{"proxy": "direct"}}')"""
                )
            self.asked_for = f"{origin.scheme}://{settings.host_header.lower()}"
            if set(settings.host_header) & set("/?#"):
                raise WireError("the host_header of this host is no host name")
            Origin.parse(self.asked_for)
            self.host_header = None
        self.addresses: tuple[str, ...] = ()
        self.until = 0.0
        self.version = ""
        self.answered_by_1 = False

    @property
    def shares(self) -> bool:
        """Whether requests may share a connection at the same time, or it is not known yet."""
        return (
            self.origin.scheme == "https"
            and self.connection.http_version == "2"
            and self.version in ("", "2")
        )

    def shun_http_2(self) -> None:
        """Ask for HTTP/1.1 from now on: the host has answered by it, though it was asked for 2."""
        if not self.answered_by_1:
            self.connection = replace(self.connection, http_version="1.1")
            self.answered_by_1 = True

    def url_for(self, url: str) -> str:
        """The URL that libcurl is given for a URL of this origin."""
        if self.asked_for is None:
            return url
        end = re.compile("[/?]").search(url, len(self.origin.scheme) + 3)
        return self.asked_for + (url[end.start() :] if end is not None else "/")

    def avoid(self, address: str) -> None:
        """Have the next request begin with another address."""
        if address in self.addresses:
            self.addresses = (*(a for a in self.addresses if a != address), address)
