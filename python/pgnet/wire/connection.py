"""Properties of a connection: where it leads, by which proxy, and how TLS is spoken on it.

Requests may share a connection only where all of this is equal. libcurl compares less: it may reuse
a connection that was made with another certificate, if that stands in a file of the same name. So a
handle is told of TLS and proxy once, for good, and a file has one content (`PemFile`).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote
from weakref import WeakValueDictionary

import pycurl
import requests

from pgnet.request.address import literal_address
from pgnet.wire.host import HostSettings
from pgnet.wire.wire_error import Code, WireError

if TYPE_CHECKING:
    from pycurl import LongOption, TextOption

_AUTHORITY = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_-][A-Za-z0-9._-]*)(?::([0-9]{0,5}))?"
# Scheme, host, port. Whatever else an authority may hold (user names, percent signs) is refused.
match_origin = re.compile(rf"(https?)://{_AUTHORITY}(?=[/?#]|\Z)").match
_PROXY = re.compile(rf"(https?)://(?:([^/?#@]*)@)?{_AUTHORITY}/?")
_DEFAULT_PORTS = {"http": 80, "https": 443}

_CA_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
# CURLOPT_PROXY_SSLVERSION, which pycurl has no name for.
_PROXY_SSLVERSION = cast("LongOption", 250)


def ca_bundle() -> str:
    """The path of the certificate authorities trusted by default.

    This is the system's bundle, where its administrator adds authorities, or else certifi's.
    """
    for path in _CA_BUNDLES:
        if os.path.exists(path):
            return path
    return requests.utils.DEFAULT_CA_BUNDLE_PATH


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port of a URL (RFC 9110, section 4.3.1), as it is connected to.

    host_header: the Host field, where the one that libcurl makes would not be what the URL says.
    """

    scheme: str
    host: str
    port: int
    host_header: bytes | None = None

    @classmethod
    def parse(cls, url: str) -> Origin:
        """The origin of an absolute http or https URL.

        Errors: WireError for any other URL, and for one with a user name.
        """
        match = match_origin(url)
        if match is None or not is_plain(url):
            supported = url[:8].lower().startswith(("http://", "https://"))
            code = Code.URL_MALFORMAT if supported else Code.UNSUPPORTED_PROTOCOL
            raise WireError(code.words, code=code)
        scheme, host, port = match.groups()
        number = int(port) if port else _DEFAULT_PORTS[scheme]
        if not 0 < number < 65536:
            raise WireError(Code.URL_MALFORMAT.words, code=Code.URL_MALFORMAT)
        # libcurl would write 127.0.0.1 for 127.1. The server is to see what the caller wrote.
        literal = literal_address(host)
        header = None
        if literal is not None and literal != host.strip("[]"):
            header = b"Host: " + match.group(0).partition("://")[2].encode("ascii")
        return cls(scheme, host.lower(), number, header)


def is_plain(url: str) -> bool:
    """Whether a URL is of visible ASCII characters only."""
    return url.isascii() and url.isprintable() and " " not in url


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy for HTTP (RFC 9110, section 3.7); for https it opens tunnels (section 9.3.6)."""

    scheme: str
    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> Proxy:
        """Read `http://[user:password@]host:port`, or the same with https.

        Errors: WireError. Its message does not have the text, which may hold a password.
        """
        match = _PROXY.fullmatch(text)
        scheme, user, host, port = match.groups() if match is not None else ("", None, "", "0")
        number = int(port) if port else _DEFAULT_PORTS[scheme]
        if not 0 < number < 65536:
            raise WireError("the proxy of this host is not of the form http://host:port")
        username, colon, password = (user or "").partition(":")
        return cls(
            scheme,
            host.lower(),
            number,
            unquote(username) if user is not None else None,
            unquote(password) if colon else None,
        )


class PemFile:
    """PEM as a file that stands in no directory: some libcurls read keys from files only.

    libcurl tells connections apart by the paths of these files. So one content has one path, and a
    path has one content, as long as any object refers to this one.
    """

    __slots__ = ("__weakref__", "_fd", "path")

    def __init__(self, content: bytes) -> None:
        self._fd = os.memfd_create("pgnet", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.path = f"/proc/self/fd/{self._fd}"
        with open(self._fd, "wb", closefd=False) as file:
            file.write(content)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, seals)

    def __del__(self) -> None:
        os.close(self._fd)

    @classmethod
    def shared(cls, text: str) -> PemFile:
        """The file of this content; all connections with this content share it."""
        content = text.encode()
        digest = hashlib.sha256(content).digest()
        known = _pem_files.get(digest)
        if known is None:
            known = _pem_files[digest] = cls(content)
        return known


_pem_files: WeakValueDictionary[bytes, PemFile] = WeakValueDictionary()


@dataclass(frozen=True, slots=True)
class Tls:
    """How TLS is spoken with one side.

    verify: whether that side's certificate and name are checked.
    ca: the authorities that are trusted; None stands for the default bundle.
    client: the certificates that this side shows, and their key, in one file.
    """

    verify: bool = True
    ca: PemFile | None = None
    client: PemFile | None = None

    @classmethod
    def for_host(cls, settings: HostSettings) -> Tls:
        """TLS as the settings of a host have it.

        Errors: WireError for a certificate without its key, or a key without its certificate.
        """
        certificate, key = settings.client_certificate, settings.client_key
        if (certificate is None) != (key is None):
            missing = "key" if key is None else "certificate"
            raise WireError(f"the client {missing} of this host is missing")
        ca, client = settings.ca, None
        if certificate is not None and key is not None:
            texts = dict.fromkeys((certificate.strip(), key.strip()))
            client = PemFile.shared("\n".join((*texts, "")))
        return cls(
            settings.verify is not False, PemFile.shared(ca) if ca is not None else None, client
        )

    def apply(self, curl: pycurl.Curl, options: TlsOptions) -> None:
        """Set a new libcurl handle up for it."""
        set_option = curl.setopt
        set_option(options.verify_peer, 1 if self.verify else 0)
        set_option(options.verify_host, 2 if self.verify else 0)
        # Older versions of TLS are not safe any more (RFC 8996).
        set_option(options.version, pycurl.SSLVERSION_TLSv1_2)
        curl.unsetopt(options.ca_path)
        if self.verify:
            set_option(options.ca_file, self.ca.path if self.ca is not None else ca_bundle())
        else:
            # The authorities are not used without verification, and to read them takes longer than
            # a handshake.
            curl.unsetopt(options.ca_file)
        if self.client is not None:
            set_option(options.certificate, self.client.path)
            set_option(options.key, self.client.path)


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """libcurl has each option of TLS twice: for the server, and for a proxy."""

    verify_peer: LongOption
    verify_host: LongOption
    version: LongOption
    ca_file: TextOption
    ca_path: TextOption
    certificate: TextOption
    key: TextOption


_SERVER = TlsOptions(
    pycurl.SSL_VERIFYPEER,
    pycurl.SSL_VERIFYHOST,
    pycurl.SSLVERSION,
    pycurl.CAINFO,
    pycurl.CAPATH,
    pycurl.SSLCERT,
    pycurl.SSLKEY,
)
_PROXY_SERVER = TlsOptions(
    pycurl.PROXY_SSL_VERIFYPEER,
    pycurl.PROXY_SSL_VERIFYHOST,
    _PROXY_SSLVERSION,
    pycurl.PROXY_CAINFO,
    pycurl.PROXY_CAPATH,
    pycurl.PROXY_SSLCERT,
    pycurl.PROXY_SSLKEY,
)


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """The settings of a connection; requests share connections only where these are equal.

    http_version: "1.1", or "2" for HTTP/2 where TLS offers it (RFC 9113, section 3.2).
    tls: with the server; proxy_tls: with the proxy.
    """

    http_version: str = "2"
    tls: Tls = field(default_factory=Tls)
    proxy: Proxy | None = None
    proxy_tls: Tls | None = None
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # The hash is computed once: each request asks for it.
        own = hash((self.http_version, self.tls, self.proxy, self.proxy_tls))
        object.__setattr__(self, "_hash", own)

    def __hash__(self) -> int:
        return self._hash

    def apply(self, curl: pycurl.Curl) -> None:
        """Set a new libcurl handle up for such connections, for good."""
        set_option = curl.setopt
        set_option(
            pycurl.HTTP_VERSION,
            pycurl.CURL_HTTP_VERSION_1_1
            if self.http_version == "1.1"
            else pycurl.CURL_HTTP_VERSION_2TLS,
        )
        self.tls.apply(curl, _SERVER)
        proxy = self.proxy
        if proxy is None:
            # An empty proxy has libcurl not read http_proxy and its kin from the environment.
            set_option(pycurl.PROXY, "")
            set_option(pycurl.NOPROXY, "*")
            return
        set_option(pycurl.NOPROXY, "")
        # The request's headers are for the server. A proxy that opens a tunnel gets none of them.
        set_option(pycurl.HEADEROPT, pycurl.HEADER_SEPARATE)
        set_option(pycurl.PROXYHEADER, ["Proxy-Connection:", "User-Agent:"])
        if proxy.username is not None:
            set_option(pycurl.PROXYAUTH, pycurl.HTTPAUTH_BASIC)
            set_option(pycurl.PROXYUSERNAME, proxy.username)
            set_option(pycurl.PROXYPASSWORD, proxy.password or "")
        if self.proxy_tls is not None:
            self.proxy_tls.apply(curl, _PROXY_SERVER)
