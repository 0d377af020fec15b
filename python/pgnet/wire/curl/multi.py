"""libcurl's multi handles, driven by gevent's loop: callbacks, no threads.

All of libcurl's sockets stand in one epoll set, which a single gevent watcher watches; libcurl's
timer is a single gevent timer. A request costs no greenlet and no watcher of its own.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import pycurl

from pgnet.server.unpatched import epoll
from pgnet.wire.connection import ConnectionSettings
from pgnet.wire.curl.easy import Easy
from pgnet.wire.transfer import IDEMPOTENT, Transfer
from pgnet.wire.wire_error import Code, WireError

if TYPE_CHECKING:
    from pgnet.wire.transport import Transport

# What ends a connection of HTTP/2 with all its streams: RFC 9113, section 5.4.1.
_BROKEN = frozenset(
    (
        Code.UNSUPPORTED_PROTOCOL,
        Code.HTTP2,
        Code.PARTIAL_FILE,
        Code.GOT_NOTHING,
        Code.SEND_ERROR,
        Code.RECV_ERROR,
    )
)
# That the other side says something, or ends the connection.
_SAYS = select.EPOLLIN | select.EPOLLRDHUP
# A turn of the loop hands libcurl this many sockets at most: others get their turn too.
_EVENTS_PER_TURN = 256
# Seconds: of a turn of the loop, of a call of libcurl that is looked into, of all that are allowed.
_LONGEST_TURN, _LONG, _HEAVY = 0.02, 0.0002, 0.01
# Seconds in which a server of HTTP/2 may still send of an answer that is not wanted any more.
_RESET_TAKES = 2.0
# Where Linux' struct tcp_info has tcpi_bytes_received.
_BYTES_RECEIVED, _BYTES_RECEIVED_AT = struct.Struct("=Q"), 128
_NUDGE_INTERVAL = 0.02
# Seconds that a request waits for the connection of another one to the same server.
_LONGEST_PENDING = 1.0


class _Heavy:
    """A socket that keeps libcurl busy: for how long, and with what it does not hand out.

    transfers: those that use it; unseen: bytes received and not handed out, when that began.
    """

    __slots__ = ("seconds", "transfers", "unseen")

    def __init__(self, transfers: list[Transfer], unseen: int) -> None:
        self.seconds = 0.0
        self.transfers = transfers
        self.unseen = unseen


class _Pending(NamedTuple):
    """A transfer that waits for another one's connection, and until when (time.monotonic)."""

    easy: Easy
    transfer: Transfer
    until: float


# Of a connection: the local port, the peer's address and its port. The first alone is not enough:
# to another server the same one is given again.
_Ends = tuple[int, str, int]


def _ends(connection: socket.socket) -> _Ends:
    address, port = connection.getpeername()[:2]
    return connection.getsockname()[1], address, port


def _ends_of(curl: pycurl.Curl) -> _Ends:
    """The connection that a transfer uses, or has used."""
    info = curl.getinfo
    return info(pycurl.LOCAL_PORT), info(pycurl.PRIMARY_IP), info(pycurl.PRIMARY_PORT)


def _uses(easy: Easy, fd: int, ends: _Ends) -> bool:
    """Whether a transfer goes over a connection: a socket, and its ends.

    Newer libcurls do not tell the ends before the connection is made, with its handshakes.
    """
    if easy.curl.getinfo(pycurl.LOCAL_PORT) > 0:
        return _ends_of(easy.curl) == ends
    return easy.opened and easy.socket == fd


class Multi:
    """One libcurl multi handle with its connections, in gevent's loop.

    `retire()` makes it end after its last transfer, so that no connection outlives the rules it
    was made under.

    connections: how many idle ones are kept.
    alone: none is kept, and each transfer has one of its own.
    """

    def __init__(self, transport: Transport, connections: int, alone: bool = False) -> None:
        self._transport = transport
        self.alone = alone
        self._loop = transport.hub.loop
        self._multi = multi = pycurl.CurlMulti()
        multi.setopt(pycurl.M_SOCKETFUNCTION, self._on_socket)
        multi.setopt(pycurl.M_TIMERFUNCTION, self._on_timer)
        multi.setopt(pycurl.M_MAXCONNECTS, connections)
        self._epoll = epoll()
        self._wanted: dict[int, int] = {}
        self._registered: dict[int, int] = {}
        self._watcher = self._loop.io(self._epoll.fileno(), 1)
        self._watcher.start(self._on_events)
        self._timer = self._loop.timer(0.0)
        self._armed: float | None = None
        self._due: float | None = None
        self._kicked = False
        self._busy: dict[pycurl.Curl, Easy] = {}
        self._connections = connections
        self._free: dict[ConnectionSettings, list[Easy]] = {}
        self._free_count = 0
        self._acting = False
        # How often libcurl has had its turn.
        self.turn = 0
        self._again = self._loop.timer(0.0)
        # Sockets that had something to say when a turn was over.
        self._late: set[int] = set()
        # Sockets that keep libcurl busy.
        self._heavy: dict[int, _Heavy] = {}
        # Which sockets the numbers stand for: a number may be another file's by now.
        self._inodes: dict[int, int] = {}
        # Those that speak HTTP/2, which may have something to say at any time.
        self.framed: set[int] = set()
        # Requests to be sent once only, which have not begun yet.
        self._once: list[Easy] = []
        # Requests on connections that others may use too, and that libcurl must not repeat.
        self._unrepeatable: set[Easy] = set()
        # What was told since libcurl's turn began. Requests that have a stream of HTTP/2 now;
        # GOAWAY frames, each with its reader, its connection's local port if known, and the last
        # stream that is processed; requests that libcurl is about to repeat.
        self._begun: list[Easy] = []
        self._goodbyes: list[tuple[Easy, int, int]] = []
        self._repeating: list[Easy] = []
        # Those that may wait for another one's connection: when they began, and those that do.
        self._sharing: list[Easy] = []
        self._pending: list[_Pending] = []
        self._pending_timer = self._loop.timer(0.0)
        # TLS within TLS: libcurls with GnuTLS forget what the outer one has read ahead.
        self._nested: set[Easy] = set()
        self._nested_sockets: set[int] = set()
        self._nudge = self._loop.timer(0.0)
        self._pending_until = 0.0
        # By local port: until when there may come what was sent before a stream was reset.
        self._resets: dict[_Ends, float] = {}
        self._retired = self._closed = False

    def __len__(self) -> int:
        return len(self._busy)

    def add(self, transfer: Transfer, address: str, more: int) -> None:
        """Begin a transfer."""
        connection = transfer.route.connection
        pool = self._free.get(connection)
        if pool is None:
            pool = self._free[connection] = []
        if pool:
            easy = pool.pop()
            self._free_count -= 1
        else:
            easy = Easy(self._transport, self, connection, pool)
        try:
            easy.prepare(transfer, address, more)
        except BaseException:
            easy.release()
            easy.curl.close()
            raise
        transfer.easy = easy
        transfer.multi = self
        self._busy[easy.curl] = easy
        if connection.proxy_tls is not None and transfer.route.origin.scheme == "https":
            self._nested.add(easy)
            if len(self._nested) == 1:
                self._nudge_later()
        if easy.shares:
            self._sharing.append(easy)
            if easy.watched:
                self._add_unrepeatable(easy)
        elif self.alone or transfer.method not in IDEMPOTENT:
            self._once.append(easy)
        try:
            self._multi.add_handle(easy.curl)
        except BaseException:
            del self._busy[easy.curl]
            self._put_back(easy)
            raise

    def drop(self, easy: Easy) -> None:
        """Stop a transfer; its connection is closed, since nobody knows what still comes."""
        if self._busy.pop(easy.curl, None) is not None:
            self._multi.remove_handle(easy.curl)
            self._break_off(easy)
            self._put_back(easy)

    def _break_off(self, easy: Easy, whole: bool = False) -> None:
        """What still comes of an answer in HTTP/2 that nobody wants any more is not to be read.

        Where others use the connection too, it has to be, unless it cannot be used any more.
        whole: end the connection with all that use it.
        """
        if not easy.shares:
            return
        ends = _ends_of(easy.curl)
        if not whole and any(_ends_of(curl) == ends for curl in self._busy):
            now = time.monotonic()
            self._resets = {p: until for p, until in self._resets.items() if until > now}
            self._resets[ends] = now + _RESET_TAKES
        else:
            for fd in self._registered:
                with suppress(OSError), self._borrowed(fd) as connection:
                    if _ends(connection) == ends:
                        connection.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def _borrowed(self, fd: int) -> Iterator[socket.socket]:
        """A socket of libcurl's, by its number, as long as it is still that socket.

        libcurl does not tell when it closes one that nobody waits for; then the number may be that
        of any other file of this process.

        Errors: OSError where it is not.
        """
        if os.fstat(fd).st_ino != self._inodes.get(fd):
            self._inodes.pop(fd, None)
            raise OSError(errno.EBADF, "not this socket any more")
        borrowed = socket.socket(fileno=fd)
        try:
            yield borrowed
        finally:
            borrowed.detach()

    def retire(self) -> None:
        """Take no new transfers, and close after the last."""
        self._retired = True
        self._close_when_idle()

    def on_new_socket(self, easy: Easy, fd: int) -> None:
        """A number that comes again is another socket: the kernel forgot it when it was closed."""
        self._inodes[fd] = os.fstat(fd).st_ino
        self._registered.pop(fd, None)
        self._heavy.pop(fd, None)
        self.framed.discard(fd)
        if easy.connection.proxy_tls is not None:
            self._nested_sockets.add(fd)
        else:
            self._nested_sockets.discard(fd)

    def _put_back(self, easy: Easy) -> None:
        easy.release()
        if self._nested:
            self._nested.discard(easy)
        if self._unrepeatable:
            self._unrepeatable.discard(easy)
        if self._retired:
            easy.curl.close()
            self._loop.run_callback(self._close_when_idle)
        elif self._free_count >= self._connections:
            easy.curl.close()
        else:
            self._free_count += 1
            easy.pool.append(easy)

    def _close_when_idle(self) -> None:
        if self._busy or self._closed or not self._retired:
            return
        self._closed = True
        for handles in self._free.values():
            for easy in handles:
                easy.curl.close()
        self._free.clear()
        self._watcher.close()
        self._timer.close()
        self._nudge.close()
        self._again.close()
        self._pending_timer.close()
        self._multi.close()
        self._epoll.close()

    def _on_socket(self, what: int, fd: int, _multi: Any, _data: Any) -> None:
        """libcurl tells which readiness of a socket it waits for.

        A socket that nobody waits for stays in the set until it says something: a kept
        connection is so used again and again without a system call for it. That it can be written
        to says nothing, and is not to be told: newer libcurls send and read in one go, and may
        never have waited for an answer.
        """
        if what == pycurl.POLL_REMOVE:
            self._wanted.pop(fd, None)
            if self._heavy:
                self._heavy.pop(fd, None)
            if self._registered.get(fd, 0) & select.EPOLLOUT:
                self._listen(fd)
            return
        mask = (_SAYS if what & pycurl.POLL_IN else 0) | (
            select.EPOLLOUT if what & pycurl.POLL_OUT else 0
        )
        self._wanted[fd] = mask
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

    def _listen(self, fd: int) -> None:
        """Wait for what the other side says, and not until a socket can be written to."""
        try:
            self._epoll.modify(fd, _SAYS)
        except OSError:
            self._registered.pop(fd, None)
        else:
            self._registered[fd] = _SAYS

    def _on_timer(self, milliseconds: int) -> None:
        if milliseconds < 0:
            self._due = None
        elif milliseconds == 0:
            self._kick()
        else:
            due = time.monotonic() + milliseconds / 1000
            self._due = due
            # An earlier alarm looks again by itself; most deadlines never come due.
            if self._armed is None or due < self._armed:
                self._arm(due)

    def _arm(self, due: float) -> None:
        self._timer.close()
        self._timer = self._loop.timer(max(due - time.monotonic(), 0.001))
        self._timer.start(self._on_alarm, update=True)
        self._armed = due

    def _on_alarm(self) -> None:
        self._armed = None
        if self._due is None:
            return
        if self._due - time.monotonic() > 0.001:
            self._arm(self._due)
            return
        self._due = None
        self._kick()

    def _kick(self) -> None:
        if self._kicked:
            return
        self._kicked = True
        if self._acting:
            # libcurl has had its turn, and wants another: everybody else comes first.
            self._again.close()
            self._again = self._loop.timer(0.0)
            self._again.start(self._on_kick)
        else:
            self._loop.run_callback(self._on_kick)

    def _on_kick(self) -> None:
        if self._closed:
            return
        self._kicked = False
        if len(self._registered) > len(self._wanted):
            # What a kept connection has said by now is no answer to a request that begins here.
            self._on_events()
        self._act(pycurl.SOCKET_TIMEOUT, 0)
        for easy in self._once:
            if easy.transfer is not None:
                easy.only_once()
        self._once.clear()
        if self._sharing:
            self._look_for_pending()
        self._reap()

    def _look_for_pending(self) -> None:
        """See who waits for another one's connection: libcurl forgets their deadlines."""
        now = time.monotonic()
        for easy in self._sharing:
            transfer = easy.transfer
            if transfer is not None and easy.is_pending:
                when = min(now + _LONGEST_PENDING, transfer.deadline)
                self._pending.append(_Pending(easy, transfer, when))
                if len(self._pending) == 1 or when < self._pending_until:
                    self._wait_for_pending(when)
        self._sharing.clear()

    def _wait_for_pending(self, until: float) -> None:
        self._pending_until = until
        self._pending_timer.close()
        self._pending_timer = self._loop.timer(max(until - time.monotonic(), 0.0))
        self._pending_timer.start(self._on_pending, update=True)

    def _on_pending(self) -> None:
        """Have those that have waited long enough make connections of their own, or end."""
        now = time.monotonic()
        pending, self._pending = self._pending, []
        for each in pending:
            easy, transfer = each.easy, each.transfer
            if easy.transfer is not transfer or not easy.is_pending:
                continue
            if each.until > now:
                self._pending.append(each)
            elif transfer.deadline <= now:
                self._ended(easy.curl, Code.OPERATION_TIMEDOUT, "")
            else:
                self._multi.remove_handle(easy.curl)
                easy.share(False)
                easy.limit_time(transfer, len(transfer.addresses))
                self._multi.add_handle(easy.curl)
        if self._pending:
            self._wait_for_pending(min(each.until for each in self._pending))

    def _on_nudge(self) -> None:
        """Have libcurl read where its socket has nothing more to say, but its TLS may have."""
        for fd in self._nested_sockets & self._wanted.keys():
            self._act(fd, pycurl.CSELECT_IN)
        self._reap()
        if self._nested:
            self._nudge_later()

    def _nudge_later(self) -> None:
        self._nudge.close()
        self._nudge = self._loop.timer(_NUDGE_INTERVAL)
        self._nudge.start(self._on_nudge, update=True)

    def _on_events(self) -> None:
        try:
            events = self._epoll.poll(0, _EVENTS_PER_TURN)
            wanted = self._wanted
            for fd, _ in events:
                if fd not in wanted:
                    self._forget(fd)
            end = time.perf_counter() + _LONGEST_TURN
            if self._late:
                # For whom there was no time in the last turn comes first in this one.
                late, self._late = self._late, set()
                events.sort(key=lambda event: event[0] not in late)
            for at, (fd, event) in enumerate(events):
                if fd not in wanted:
                    continue
                mask = 0
                if event & ~select.EPOLLOUT:
                    mask = pycurl.CSELECT_IN
                if event & select.EPOLLOUT:
                    # It is to read before it writes: of an answer of HTTP/2 that comes while the
                    # body is sent libcurl 7.88 may lose what another request has read of it.
                    mask |= pycurl.CSELECT_OUT | pycurl.CSELECT_IN
                if event & select.EPOLLERR:
                    mask |= pycurl.CSELECT_ERR
                if self._act(fd, mask) > end:
                    self._late = {fd for fd, _ in events[at + 1 :]}
                    break
        finally:
            self._reap()

    @property
    def has_unrepeatable(self) -> bool:
        """Whether there are requests that share connections and must not be repeated."""
        return bool(self._unrepeatable)

    def _add_unrepeatable(self, easy: Easy) -> None:
        """From now on all that share connections tell what they read: it may concern this one."""
        if not self._unrepeatable:
            for other in self._busy.values():
                if other.shares and not other.told:
                    other.tell(True)
                    other.stream, other.port = 0, other.curl.getinfo(pycurl.LOCAL_PORT)
        self._unrepeatable.add(easy)

    def on_stream(self, easy: Easy) -> None:
        """A request has a stream of HTTP/2 now: on which connection cannot be asked yet."""
        self._begun.append(easy)

    def on_goodbye(self, easy: Easy, last: int) -> None:
        """GOAWAY was read: no stream above `last` of its connection is processed."""
        self._goodbyes.append((easy, easy.port, last))

    def on_repeat(self, easy: Easy) -> None:
        """libcurl is about to send a request once more."""
        self._repeating.append(easy)

    def _settle_streams(self) -> None:
        """Find out which requests their servers have not processed: these alone are sent again.

        libcurl repeats what was refused, and also what was sent over a connection that has then
        ended. It does not tell the one from the other, so what it was told itself has to.
        """
        for easy in self._begun:
            if easy.stream and not easy.repeats and easy.transfer is not None:
                easy.port = easy.curl.getinfo(pycurl.LOCAL_PORT)
                if easy.watched:
                    easy.only_once()
        self._begun.clear()
        for reader, port, last in self._goodbyes:
            for easy in self._unrepeatable:
                if easy.stream > last and easy.peer == reader.peer:
                    if easy is reader or (port and port == easy.port):
                        easy.refused = True
                    elif not port or not easy.port:
                        # One of both began in this turn, and is over.
                        easy.perhaps_refused = True
        self._goodbyes.clear()
        repeating, self._repeating = self._repeating, []
        for easy in repeating:
            if easy.stream and not easy.refused and not easy.troubled:
                easy.refused = easy.perhaps_refused
        for easy in repeating:
            self._ended(easy.curl, Code.GOT_NOTHING, "")

    def _forget(self, fd: int) -> None:
        """A kept connection has something to say, or has ended: it is not to be used again.

        An answer that nobody asked for would be taken for that of the next request. (In HTTP/2
        answers have numbers, and libcurl reads on its own what else there is.)
        """
        if self._registered.pop(fd, None) is None:
            return
        try:
            self._epoll.unregister(fd)
            if fd not in self.framed:
                with self._borrowed(fd) as kept:
                    kept.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def _act(self, fd: int, mask: int) -> float:
        """Have libcurl work; returns when (time.perf_counter) it was done."""
        began = time.perf_counter()
        self._acting = True
        self.turn += 1
        try:
            self._multi.socket_action(fd, mask)
        except pycurl.error:
            # A socket that libcurl does not know (any more): nothing may wait for it.
            self._wanted.pop(fd, None)
            self._forget(fd)
        finally:
            self._acting = False
        if self._begun or self._goodbyes or self._repeating:
            self._settle_streams()
        ended = time.perf_counter()
        if ended - began > _LONG:
            # What libcurl did on its own, it mostly did for those that were heavy before.
            for heavy in (fd,) if fd != pycurl.SOCKET_TIMEOUT else list(self._heavy):
                if heavy in self._wanted:
                    self._weigh(heavy, ended - began)
        return ended

    def _weigh(self, fd: int, seconds: float) -> None:
        """See to it that nobody keeps us busy with what is neither header nor body.

        libcurl counts no framing: endless extensions of a chunk, or empty frames of HTTP/2.
        """
        heavy = self._heavy.get(fd)
        if heavy is not None:
            heavy.seconds += seconds
            if heavy.seconds < _HEAVY:
                return
        try:
            with self._borrowed(fd) as connection:
                ends = _ends(connection)
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
                (received,) = _BYTES_RECEIVED.unpack_from(info, _BYTES_RECEIVED_AT)
                handles = [easy for easy in self._busy.values() if _uses(easy, fd, ends)]
                transfers = [easy.transfer for easy in handles if easy.transfer is not None]
                # What waits in the kernel nobody has read yet, and it says nothing of the server.
                waiting = fcntl.ioctl(connection, termios.FIONREAD, bytes(4))
                unseen = received - int.from_bytes(waiting, sys.byteorder)
                unseen -= sum(easy.header_bytes + easy.wire_bytes for easy in handles)
                # For a while there comes what belongs to answers that were broken off.
                excused = time.monotonic() < self._resets.get(ends, 0.0)
                if heavy is None or heavy.transfers != transfers or excused:
                    self._heavy[fd] = _Heavy(transfers, unseen)
                    return
                heavy.seconds = 0.0
                allowed = sum(t.max_wire_bytes + t.max_header_bytes for t in transfers)
                if unseen - heavy.unseen <= allowed:
                    return
                connection.shutdown(socket.SHUT_RDWR)
        except (OSError, struct.error):
            self._heavy.pop(fd, None)
            return
        del self._heavy[fd]
        for easy, transfer in zip(handles, transfers, strict=True):
            sent = easy.curl.getinfo(pycurl.REQUEST_SIZE) > 0
            # Before a request is sent there is only the handshake.
            code = Code.SSL_CONNECT_ERROR
            if sent:
                easy.fault = WireError(easy.too_long_on_the_wire(transfer), possibly_sent=True)
            else:
                easy.fault = WireError(code.words, code=code)
            self._ended(easy.curl, Code.WRITE_ERROR, "")

    def _reap(self) -> None:
        """Hand out what has ended."""
        left = 1
        while left:
            left, good, bad = self._multi.info_read()
            for curl in good:
                self._ended(curl, 0, "")
            for curl, code, text in bad:
                self._ended(curl, code, text)

    def _ended(self, curl: pycurl.Curl, code: int, text: str) -> None:
        easy = self._busy.pop(curl, None)
        if easy is None:
            return
        transfer = easy.transfer
        if transfer is None:
            return
        transport = self._transport
        try:
            failure = easy.collect(transfer, code, text)
            self._multi.remove_handle(curl)
            if failure is not None:
                # libcurl tells one transfer only that a connection has failed, and gives what is
                # left of a header section to another one.
                broken = code in _BROKEN or (failure.fault is not None and not easy.final)
                spared = failure.refused or easy.repeats
                if not spared and (broken or failure.fault or code == Code.OPERATION_TIMEDOUT):
                    self._break_off(easy, broken)
            self._put_back(easy)
            if failure is None:
                transfer.finish()
            else:
                transport.failed(transfer, failure)
        except Exception as error:
            transport.hub.handle_error(self, type(error), error, error.__traceback__)
            internal = "internal error in the wire"
            transfer.fail(WireError(internal, kind="request", possibly_sent=True))
