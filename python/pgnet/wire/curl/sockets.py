"""libcurl's sockets in one epoll set, and what is known of each.

libcurl says which readiness of a socket it waits for, and when it waits for a socket no more
(CURLMOPT_SOCKETFUNCTION). libcurl does not say when it closes the socket of a kept connection. The
number may then be that of any other file of this process, in a backend even that of the client's
connection. So each socket is remembered with its inode, and a number whose inode is another is left
alone.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pycurl

from pgnet.server.unpatched import epoll

# The other side sends something, or ends the connection.
_FROM_PEER = select.EPOLLIN | select.EPOLLRDHUP
# One round of the loop hands libcurl this many sockets at most: other work comes in between.
_EVENTS_PER_ROUND = 256

# The identity of a connection: the local port, the peer's address, the peer's port. The local port
# is not enough, since the kernel gives the same one again for another peer.
Ends = tuple[int, str, int]


def ends_of(connection: socket.socket) -> Ends:
    """The ends of a connected socket."""
    address, port = connection.getpeername()[:2]
    return connection.getsockname()[1], address, port


def ends_used_by(curl: pycurl.Curl) -> Ends:
    """The ends of the connection that a handle uses, or has used."""
    info = curl.getinfo
    return info(pycurl.LOCAL_PORT), info(pycurl.PRIMARY_IP), info(pycurl.PRIMARY_PORT)


class Sockets:
    """The epoll set, and the sockets in it by their number.

    floods: what `flood.py` has measured of sockets; an entry goes when libcurl waits for its socket
    no more, or when the number becomes another socket.
    wanted: the sockets that libcurl waits for, with the readiness it waits for.
    framed: those of HTTP/2, whose server may send frames at any time.
    inner_tls: those that carry TLS within the TLS of a proxy.
    late: those that were ready when the time of the last round was over.
    """

    def __init__(self, floods: dict[int, Any]) -> None:
        self._epoll = epoll()
        self._floods = floods
        self.wanted: dict[int, int] = {}
        # The events that the kernel was asked for. They may be more than are wanted: see
        # `on_socket`.
        self._registered: dict[int, int] = {}
        self._inodes: dict[int, int] = {}
        self.framed: set[int] = set()
        self.inner_tls: set[int] = set()
        self.late: set[int] = set()

    def fileno(self) -> int:
        """The descriptor of the set itself, which is readable when a socket in it is ready."""
        return self._epoll.fileno()

    def close(self) -> None:
        """Close the set; the sockets are libcurl's."""
        self._epoll.close()

    @property
    def has_unwanted(self) -> bool:
        """Whether there are sockets in the set that libcurl does not wait for."""
        return len(self._registered) > len(self.wanted)

    def opened(self, fd: int, inner_tls: bool) -> None:
        """Take note of a new socket: what was known of its number was of another socket.

        The kernel took that one out of the set when it was closed.
        """
        self._inodes[fd] = os.fstat(fd).st_ino
        self._registered.pop(fd, None)
        self._floods.pop(fd, None)
        self.framed.discard(fd)
        if inner_tls:
            self.inner_tls.add(fd)
        else:
            self.inner_tls.discard(fd)

    def on_socket(self, what: int, fd: int, _multi: object, _data: object) -> None:
        """CURLMOPT_SOCKETFUNCTION: libcurl says which readiness of a socket it waits for.

        A socket that libcurl waits for no more stays in the set until its server sends something.
        A kept connection is so used again and again without a system call for it. That the socket
        can be written to is not to be reported meanwhile: newer libcurls send and read in one go,
        and may never have waited for an answer.
        """
        if what == pycurl.POLL_REMOVE:
            self.wanted.pop(fd, None)
            if self._floods:
                self._floods.pop(fd, None)
            if self._registered.get(fd, 0) & select.EPOLLOUT:
                self._watch_peer(fd)
            return
        mask = (_FROM_PEER if what & pycurl.POLL_IN else 0) | (
            select.EPOLLOUT if what & pycurl.POLL_OUT else 0
        )
        self.wanted[fd] = mask
        known = self._registered.get(fd)
        if known == mask:
            return
        try:
            if known is None:
                self._epoll.register(fd, mask)
            else:
                self._epoll.modify(fd, mask)
        except FileExistsError:
            self._epoll.modify(fd, mask)
        except FileNotFoundError:
            self._epoll.register(fd, mask)
        self._registered[fd] = mask

    def _watch_peer(self, fd: int) -> None:
        """Wait for what the other side sends, and not until the socket can be written to."""
        try:
            self._epoll.modify(fd, _FROM_PEER)
        except OSError:
            self._registered.pop(fd, None)
        else:
            self._registered[fd] = _FROM_PEER

    def poll(self) -> list[tuple[int, int]]:
        """The sockets that are ready, with their events; kept connections among them are ended."""
        events = self._epoll.poll(0, _EVENTS_PER_ROUND)
        for fd, _ in events:
            if fd not in self.wanted:
                self.drop_unwanted(fd)
        if self.late:
            # Sockets for which the last round had no time come first in this one.
            late, self.late = self.late, set()
            events.sort(key=lambda event: event[0] not in late)
        return events

    def drop_unwanted(self, fd: int) -> None:
        """End a kept connection whose server sends something, or has ended it.

        libcurl would take an answer that belongs to no request for that of the next request.
        (Answers of HTTP/2 have numbers, and libcurl itself reads what else comes there.)
        """
        if self._registered.pop(fd, None) is None:
            return
        with suppress(OSError):
            self._epoll.unregister(fd)
            if fd not in self.framed:
                with self.borrowed(fd) as kept:
                    kept.shutdown(socket.SHUT_RDWR)

    def shut_down(self, ends: Ends) -> None:
        """End the connection with these ends, for all requests that use it."""
        for fd in self._registered:
            with suppress(OSError), self.borrowed(fd) as connection:
                if ends_of(connection) == ends:
                    connection.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def borrowed(self, fd: int) -> Iterator[socket.socket]:
        """libcurl's socket of this number as an object of Python; it stays libcurl's.

        Errors: OSError where the number is not that socket any more.
        """
        if os.fstat(fd).st_ino != self._inodes.get(fd):
            self._inodes.pop(fd, None)
            raise OSError(errno.EBADF, "not this socket any more")
        borrowed = socket.socket(fileno=fd)
        try:
            yield borrowed
        finally:
            borrowed.detach()
