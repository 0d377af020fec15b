"""How requests to an origin go."""

from __future__ import annotations

import re

import pycurl

from pgnet.wire.connection import ConnectionSettings, Origin, Proxy, Tls
from pgnet.wire.host import HostSettings, HostTable
from pgnet.wire.message import encode_headers
from pgnet.wire.wire_error import WireError

_LOSES_ANSWERS: bool = pycurl.version_info()[2] < 0x080000


class Route:
    """How requests to one origin go: found out once, and good for a while.

    settings: what is special about the host.
    headers: the lines of a request that has none of its own.
    peer, port: what is connected to, the origin's host or a proxy.
    asked_for: scheme and authority of the URLs that libcurl is given, None where they are the
    origin's. So Host, HTTP/2's :authority and TLS go by that name; it is not looked up.
    addresses: of the peer, all allowed by the guard, and good until `until` (time.monotonic).
    version: of HTTP, that the last answer came by; empty before the first.
    once: a request goes out once at most, whatever it asks for: over HTTP/1.1, and over a
    connection of its own.
    with_body: a request has a body. With libcurl 7.88 it goes over HTTP/1.1, unless the host's
    http_version is 2: over HTTP/2 this libcurl loses answers of a server that does not wait for
    the body, of short bodies now and then, of long ones nearly always.
    """

    __slots__ = (
        "addresses",
        "asked_for",
        "connection",
        "headers",
        "host_header",
        "once",
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
        once: bool = False,
        with_body: bool = False,
    ) -> None:
        self.origin = origin
        self.settings = settings
        self.once = once
        self.headers = encode_headers((), settings.user_agent)
        self.peer, self.port = origin.host, origin.port
        secure = origin.scheme == "https"
        # "direct": by none, whatever holds for other hosts.
        special = settings.proxy not in (None, "direct")
        proxy = Proxy.of(settings.proxy) if special and settings.proxy is not None else None
        proxy_tls = None
        if proxy is not None:
            self.peer, self.port = proxy.host, proxy.port
            if proxy.scheme == "https":
                # A proxy is a host too: what is said of it by its name holds for its TLS.
                proxy_tls = Tls.of(hosts.settings_for(proxy.host))
        version = settings.http_version or ("1.1" if with_body and _LOSES_ANSWERS else "2")
        self.connection = ConnectionSettings(
            "1.1" if secure and (once or version == "1.1") else "2",
            Tls.of(settings) if secure else Tls(),
            proxy,
            proxy_tls,
        )
        # Where libcurl itself spells an address in a URL for a proxy, the field must agree.
        as_stored = secure or proxy is None or hasattr(pycurl, "REQUEST_TARGET")
        self.host_header = origin.host_header if as_stored else None
        self.asked_for: str | None = None
        if settings.host_header is not None:
            if proxy is not None:
                # It is told where to connect to by that name, or puts its own Host in its place.
                raise WireError(
                    f"host_header of {origin.host} goes by no proxy: "
                    f"""select net.configure_host('{origin.host}', '{{"proxy": "direct"}}')"""
                )
            self.asked_for = f"{origin.scheme}://{settings.host_header.lower()}"
            if set(settings.host_header) & set("/?#"):
                raise WireError("the host_header of this host is no host name")
            Origin.of(self.asked_for)
            self.host_header = None
        self.addresses: tuple[str, ...] = ()
        self.until = 0.0
        self.version = ""

    @property
    def shares(self) -> bool:
        """Whether several requests at a time may share a connection, or nobody knows yet."""
        return (
            self.origin.scheme == "https"
            and self.connection.http_version == "2"
            and self.version in ("", "2")
        )

    def url_for(self, url: str) -> str:
        """The URL that libcurl is given for one of this origin."""
        if self.asked_for is None:
            return url
        end = re.compile("[/?]").search(url, len(self.origin.scheme) + 3)
        return self.asked_for + (url[end.start() :] if end is not None else "/")

    def avoid(self, address: str) -> None:
        """Whoever comes next begins with another address."""
        if address in self.addresses:
            self.addresses = (*(a for a in self.addresses if a != address), address)
