"""Servers that keep us busy with what is neither header nor body.

libcurl hands out headers and bodies, which are counted there. Framing is not counted: a server may
send endless extensions of a chunk, or endless empty frames of HTTP/2. So a call of libcurl that
takes long is put to the account of its socket, and so is one call in many: newer libcurls read a
little at a time. Where an account is large, the bytes that libcurl has read from the kernel are
compared with those that it has handed out. A connection is ended where the difference exceeds all
that its requests may receive.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
import termios
import time

import pycurl

from pgnet.wire.curl.easy import Easy, too_long_on_the_wire
from pgnet.wire.curl.sockets import Ends, Sockets, ends_of, ends_used_by
from pgnet.wire.transfer import Transfer
from pgnet.wire.wire_error import Code, WireError

# Seconds: a call of libcurl that takes longer is put to the account of its socket.
LONG_CALL = 0.0002
# Seconds of long calls after which a socket's bytes are counted.
LARGE_ACCOUNT = 0.01
# One call of libcurl in so many, a power of two, makes a large account however short it is.
SAMPLED_CALLS = 256
# Seconds in which a server of HTTP/2 may still send of an answer that was broken off.
_RESET_TAKES = 2.0
# Where Linux' struct tcp_info has tcpi_bytes_received.
_BYTES_RECEIVED, _BYTES_RECEIVED_AT = struct.Struct("=Q"), 128


class Account:
    """How long a socket has kept libcurl busy, and how much it had received when that began.

    seconds: of long calls since the bytes were counted last.
    transfers: the transfers that used the socket then.
    unseen: bytes that libcurl had read by then, and not handed out.
    """

    __slots__ = ("seconds", "transfers", "unseen")

    def __init__(self, transfers: list[Transfer], unseen: int) -> None:
        self.seconds = 0.0
        self.transfers = transfers
        self.unseen = unseen


class FloodGuard:
    """Finds connections whose servers send too much of what is not handed out.

    busy: the handles that have requests. sockets: libcurl's. accounts: those of busy sockets.
    """

    def __init__(
        self, busy: dict[pycurl.Curl, Easy], sockets: Sockets, accounts: dict[int, Account]
    ) -> None:
        self._busy = busy
        self._sockets = sockets
        self._accounts = accounts
        # Until when a connection may bring what was sent before one of its streams was reset.
        self._resets: dict[Ends, float] = {}

    def excuse(self, ends: Ends) -> None:
        """For a while a connection may bring the rest of an answer that was broken off."""
        now = time.monotonic()
        self._resets = {ends: until for ends, until in self._resets.items() if until > now}
        self._resets[ends] = now + _RESET_TAKES

    def check_call(self, fd: int, seconds: float) -> list[Easy]:
        """Put a long call of libcurl to the accounts it is for; the handles to be ended for it.

        fd: the socket that libcurl was called for, or pycurl.SOCKET_TIMEOUT. A call without a
        socket is mostly for the sockets that were busy before.
        """
        wanted = self._sockets.wanted
        flooded = []
        for busy in (fd,) if fd != pycurl.SOCKET_TIMEOUT else list(self._accounts):
            if busy in wanted:
                flooded += self.check_flood(busy, seconds)
        return flooded

    def check_flood(self, fd: int, seconds: float) -> list[Easy]:
        """Add to a socket's account; where it is a flood, the handles that are to be ended.

        Each of them has its fault, and the connection is shut down.
        """
        account = self._accounts.get(fd)
        if account is not None:
            account.seconds += seconds
            if account.seconds < LARGE_ACCOUNT:
                return []
        try:
            with self._sockets.borrowed(fd) as connection:
                ends = ends_of(connection)
                handles = [easy for easy in self._busy.values() if _uses(easy, fd, ends)]
                transfers = [easy.transfer for easy in handles if easy.transfer is not None]
                unseen = _read_by_us(connection)
                unseen -= sum(easy.header_bytes + easy.wire_bytes for easy in handles)
                is_excused = time.monotonic() < self._resets.get(ends, 0.0)
                if account is None or account.transfers != transfers or is_excused:
                    self._accounts[fd] = Account(transfers, unseen)
                    return []
                account.seconds = 0.0
                allowed = sum(
                    t.limits.max_wire_bytes + t.limits.max_header_bytes for t in transfers
                )
                if unseen - account.unseen <= allowed:
                    return []
                connection.shutdown(socket.SHUT_RDWR)
        except (OSError, struct.error):
            self._accounts.pop(fd, None)
            return []
        del self._accounts[fd]
        for easy, transfer in zip(handles, transfers, strict=True):
            easy.fault = _fault(easy, transfer)
        return handles


def _read_by_us(connection: socket.socket) -> int:
    """How many bytes of a connection libcurl has read.

    Bytes that wait in the kernel were not read, and say nothing of the server: a worker that is
    behind would otherwise break off answers that it has not looked at.
    """
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
    (received,) = _BYTES_RECEIVED.unpack_from(info, _BYTES_RECEIVED_AT)
    waiting = fcntl.ioctl(connection, termios.FIONREAD, bytes(4))
    return int(received) - int.from_bytes(waiting, sys.byteorder)


def _uses(easy: Easy, fd: int, ends: Ends) -> bool:
    """Whether a handle uses the connection of this socket and these ends.

    Newer libcurls tell the ends only when the connection is made, with all its handshakes.
    """
    if easy.curl.getinfo(pycurl.LOCAL_PORT) > 0:
        return ends_used_by(easy.curl) == ends
    return easy.opened and easy.socket == fd


def _fault(easy: Easy, transfer: Transfer) -> WireError:
    if easy.curl.getinfo(pycurl.REQUEST_SIZE) > 0:
        return WireError(too_long_on_the_wire(transfer.limits), possibly_sent=True)
    # Before a request is sent there is only the handshake.
    code = Code.SSL_CONNECT_ERROR
    return WireError(code.words, code=code)
