"""A server that fails in a chosen way, and knows how much of each request has come to it."""

from __future__ import annotations

import os
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import gevent.select
import gevent.server
import gevent.ssl

from servers.frames import DATA, END_STREAM, HEADERS, SETTINGS, WINDOW_UPDATE, fine, frame

FINE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Arrival:
    """A request as far as it has arrived: how many bytes, and whether it is whole."""

    def __init__(self, connection: int, version: str) -> None:
        self.connection = connection
        self.version = version
        self.size = 0
        self.whole = False
        self.method = ""


class Peer:
    """A connection of a client, from the side of the server.

    version: "1.1" or "2". stream: of the last request, in HTTP/2.
    """

    def __init__(self, witness: Witness, plain: Any, number: int) -> None:
        self.witness = witness
        self.socket = plain
        self.number = number
        self.version = "1.1"
        self.stream = 0
        self.length = 0
        self.arrival: Arrival | None = None
        self._read = b""

    def shake_hands(self, context: Any) -> None:
        self.socket = context.wrap_socket(self.socket, server_side=True)
        if self.socket.selected_alpn_protocol() == "h2":
            self.version = "2"
            most = 2**30
            window = frame(SETTINGS, struct.pack("!HI", 4, most))
            self.send(window + frame(WINDOW_UPDATE, struct.pack("!I", most)))
            # the preface is not of a request
            self.take(24)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def unread(self) -> None:
        """Until something of a request has come, which stays where it is."""
        if self.version == "2":
            # there is always something else
            self.first_byte()
            return
        fd = os.dup(self.socket.fileno())
        with socket.socket(fileno=fd) as raw:
            gevent.select.select([raw], [], [])
            if not raw.recv(1, socket.MSG_PEEK):
                raise ConnectionResetError
        self._begun().size = 1

    @property
    def speaks_tls(self) -> bool:
        return isinstance(self.socket, gevent.ssl.SSLSocket)

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionResetError
        self._read += data
        if self.arrival is not None:
            self.arrival.size += len(data)

    def take(self, size: int) -> bytes:
        """Read that many bytes."""
        while len(self._read) < size:
            self._more()
        taken, self._read = self._read[:size], self._read[size:]
        return taken

    def _begun(self) -> Arrival:
        self.arrival = Arrival(self.number, self.version)
        self.arrival.size = len(self._read)
        self.witness.arrived.append(self.arrival)
        return self.arrival

    def first_byte(self) -> None:
        """Read until something of a request has come."""
        if self.version == "2":
            while True:
                # what is no request: settings, windows
                header = self.take(9)
                if header[3] == HEADERS:
                    arrival = self._begun()
                    arrival.size += 9
                    self._read = header + self._read
                    return
                self.take(int.from_bytes(header[:3], "big"))
        if not self._read:
            self._more()
        self._begun()

    def head(self) -> None:
        """Read until the head of the request has come."""
        self.first_byte()
        assert self.arrival is not None
        if self.version == "2":
            header = self.take(9)
            self.take(int.from_bytes(header[:3], "big"))
            self.stream = int.from_bytes(header[5:], "big")
            self.length = 0 if header[4] & END_STREAM else 1
            return
        while b"\r\n\r\n" not in self._read:
            self._more()
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        line, *fields = head.decode().split("\r\n")
        self.arrival.method = line.split()[0]
        named = {name.lower(): value for name, _, value in (f.partition(":") for f in fields)}
        self.length = int(named.get("content-length", "0"))

    def request(self) -> None:
        """Read a whole request."""
        self.head()
        assert self.arrival is not None
        if self.version == "2":
            while self.length:
                header = self.take(9)
                self.take(int.from_bytes(header[:3], "big"))
                if header[3] == DATA and header[4] & END_STREAM:
                    self.length = 0
        else:
            self.take(self.length)
        self.arrival.whole = True

    def answer(self) -> None:
        self.send(fine(self.stream) if self.version == "2" else FINE)

    def leave(self) -> None:
        """Stop listening."""
        self.witness.server.stop_accepting()
        self.witness.server.socket.close()

    def close(self) -> None:
        """End the connection, without a word of TLS'."""
        raw = socket.socket(fileno=self.socket.detach())
        raw.close()

    def say_goodbye(self) -> None:
        """End the connection by TLS' own words."""
        if self.speaks_tls:
            raw = self.socket.unwrap()
            raw.close()
        else:
            self.close()

    def reset(self) -> None:
        """End the connection by a TCP reset."""
        raw = socket.socket(fileno=self.socket.detach())
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.close()

    def hang(self) -> None:
        """Send nothing until the client has gone."""
        while self.socket.recv(65536):
            pass


Way = Callable[[Peer], None]


class Witness:
    """A server in this process.

    way: what becomes of a request.
    certificate: for TLS, with its key; None for http.
    protocols: of ALPN.
    handshake: what is done with a connection instead of a handshake.
    fine: so many requests are answered before the first that goes that way.
    """

    def __init__(
        self,
        way: Way,
        certificate: Path | None = None,
        protocols: tuple[str, ...] = ("http/1.1",),
        handshake: Way | None = None,
        fine: int = 0,
        address: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        self.way = way
        self.handshake = handshake
        self.fine = fine
        self.connections = 0
        self.arrived: list[Arrival] = []
        self.faults: list[BaseException] = []
        self.context = None
        if certificate is not None:
            self.context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(certificate)
            self.context.set_alpn_protocols(list(protocols))
        self.server = gevent.server.StreamServer(address, self.connection)
        self.server.start()
        self.port = self.server.server_port
        scheme = "http" if certificate is None else "https"
        self.url = f"{scheme}://{address[0]}:{self.port}/"

    def connection(self, plain: Any, _: Any) -> None:
        self.connections += 1
        peer = Peer(self, plain, self.connections)
        try:
            if self.context is not None:
                if self.handshake is not None and self.fine <= len(self.arrived):
                    self.handshake(peer)
                    return
                peer.shake_hands(self.context)
            while len(self.arrived) < self.fine:
                peer.request()
                peer.answer()
            self.way(peer)
        except OSError:
            pass
        except BaseException as fault:
            self.faults.append(fault)
            raise
        finally:
            if peer.socket.fileno() >= 0:
                peer.socket.close()

    def bytes_seen(self, after: int = 0) -> int:
        """How many bytes of requests have come, the first `after` requests left out."""
        return sum(arrival.size for arrival in self.arrived[after:])

    def stop(self) -> None:
        self.server.stop()
        assert self.faults == []
