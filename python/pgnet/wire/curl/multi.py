"""libcurl's multi handles, driven by gevent's loop: callbacks, no threads, no greenlet a request.

Theory of operation
-------------------

`add` gives libcurl a request (curl_multi_add_handle). libcurl then says which sockets it waits for
(CURLMOPT_SOCKETFUNCTION, `sockets.py`) and when it wants to be called (CURLMOPT_TIMERFUNCTION,
`schedule.py`). The loop calls curl_multi_socket_action for a socket that is ready, or when it is
time, and afterwards takes what has ended from curl_multi_info_read. `collect.py` makes of it an
answer or a failure.

libcurl promises: no call blocks, as long as it has no names to look up; each request ends once,
with a CURLcode; none outlives its CURLOPT_TIMEOUT_MS. The rest is done here:

* *Speed.* A watcher of gevent's for each socket takes 42 to 53 us of processor time a request. All
  sockets in one epoll set, which one watcher watches, take 27 to 32 us; libcurl alone 19 to 22 us.
* *That a number stays a socket.* libcurl closes kept connections without a word (`sockets.py`).
* *That a kept connection is silent.* An answer that belongs to no request would be taken for that
  of the next one. Sockets that libcurl does not wait for stay in the set, and are looked at before
  a request begins: one with anything to read is ended (`Sockets.drop_unwanted`).
* *That a request is sent once.* libcurl repeats it over another connection where a kept one ends,
  whatever the method, and does not report it (`repeats.py`).
* *That deadlines hold* while a request waits for the connection of another one, CURLOPT_PIPEWAIT
  (`pending.py`).
* *A bound for framing.* Headers and bodies are counted; chunk extensions and frames are not
  (`flood.py`).
* *That a broken connection of HTTP/2 ends for all.* One request gets CURLE_HTTP2 or its like, and
  libcurl hands another one what is left of a header section. So the connection is ended with all
  requests that use it. The rest of an answer that was broken off is read as long as others use the
  connection; else the connection is ended too (`_break_off`).
* *That only HTTP/2 has several requests on a connection.* Where a host speaks HTTP/2 on one
  connection and HTTP/1.1 on another, libcurls before 8.14 send several requests at a time over that
  one too, and give each whatever answer comes first. All of them are ended (`_end_mixed_up`).
* *That TLS within TLS is read to its end* (`inner_tls.py`).
* *That an answer survives its request.* Of an answer of HTTP/2 that comes while the body is sent,
  libcurl 7.88 may lose what another request has read of it. So a socket that can be written to is
  also reported as readable: libcurl then reads first.
* *Fairness.* libcurl works for 20 ms in a round of the loop. Sockets that were left out come first
  in the next round.

Rules that change retire a multi handle: it takes no new request, and closes after its last.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pycurl

from pgnet.wire.connection import ConnectionSettings
from pgnet.wire.curl.collect import collect
from pgnet.wire.curl.easy import Easy
from pgnet.wire.curl.flood import LARGE_ACCOUNT, LONG_CALL, SAMPLED_CALLS, Account, FloodGuard
from pgnet.wire.curl.inner_tls import InnerTls
from pgnet.wire.curl.pending import Pending
from pgnet.wire.curl.repeats import Repeats
from pgnet.wire.curl.schedule import Schedule
from pgnet.wire.curl.sockets import Ends, Sockets, ends_used_by
from pgnet.wire.curl.states import ANSWERED
from pgnet.wire.route import MIXES_UP, Route
from pgnet.wire.transfer import IDEMPOTENT, Failure, Transfer
from pgnet.wire.wire_error import Code, WireError

# The errors that end a connection of HTTP/2 with all its streams: RFC 9113, section 5.4.1.
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
# Seconds that libcurl may take in one round of the loop.
_LONGEST_ROUND = 0.02


class Multi:
    """One libcurl multi handle with its connections, in gevent's loop.

    loop: gevent's. connections: how many idle ones are kept, and as many idle easy handles.
    check_address: asked for each address before it is connected to; raises EgressRefused.
    on_failed: called with each transfer that has no answer, and why.
    on_error: told of each exception that is a fault of ours, with the object it came from.
    reuse: whether connections are kept; otherwise each transfer has one of its own.
    """

    def __init__(
        self,
        loop: Any,
        connections: int,
        *,
        check_address: Callable[[Route, str], None],
        on_failed: Callable[[Transfer, Failure], None],
        on_error: Callable[[object, Exception], None],
        reuse: bool = True,
    ) -> None:
        self._loop = loop
        self._check_address = check_address
        self._on_failed = on_failed
        self._on_error = on_error
        self._reuse = reuse
        self._busy: dict[pycurl.Curl, Easy] = {}
        # Idle easy handles, by the kind of connections they are for.
        self._connections = connections
        self._idle: dict[ConnectionSettings, list[Easy]] = {}
        self._idle_count = 0
        self._multi = multi = pycurl.CurlMulti()
        accounts: dict[int, Account] = {}
        self._sockets = Sockets(accounts)
        self._floods = FloodGuard(self._busy, self._sockets, accounts)
        self._schedule = Schedule(loop, self._on_action)
        self._repeats = Repeats(reuse)
        self._pending = Pending(loop, multi, self._ended)
        self._inner_tls = InnerTls(loop, self._poll_inner_tls)
        multi.setopt(pycurl.M_SOCKETFUNCTION, self._sockets.on_socket)
        multi.setopt(pycurl.M_TIMERFUNCTION, self._schedule.on_timer)
        multi.setopt(pycurl.M_MAXCONNECTS, connections)
        self._watcher = loop.io(self._sockets.fileno(), 1)
        self._watcher.start(self._on_events)
        # Connections that others still use, and that may bring the answer of a stopped transfer.
        self._owing: set[Ends] = set()
        self._retired = self._closed = False

    def add(self, transfer: Transfer, address: str) -> None:
        """Begin a transfer to `address`."""
        connection = transfer.route.connection
        pool = self._idle.get(connection)
        if pool is None:
            pool = self._idle[connection] = []
        if pool:
            easy = pool.pop()
            self._idle_count -= 1
        else:
            easy = self._new_handle(connection, pool)
        forbidden = (
            not self._reuse
            or transfer.attempts.repeated
            or transfer.request.method not in IDEMPOTENT
        )
        try:
            easy.prepare(transfer, address, forbidden)
        except BaseException:
            transfer.stop = None
            easy.close()
            raise
        self._busy[easy.curl] = easy
        if connection.proxy_tls is not None and transfer.route.origin.scheme == "https":
            self._inner_tls.add(easy)
        if easy.options.shares:
            self._pending.started.append(easy)
            if forbidden:
                sharing = (e.watch for e in self._busy.values() if e.options.shares)
                self._repeats.add(easy.watch, sharing)
        elif forbidden:
            self._repeats.to_seal.append(easy.watch)
        try:
            self._multi.add_handle(easy.curl)
        except BaseException:
            del self._busy[easy.curl]
            self._put_back(easy)
            raise

    def retire(self) -> None:
        """Take no new transfers, and close after the last."""
        self._retired = True
        self._close_when_idle()

    def _new_handle(self, connection: ConnectionSettings, pool: list[Easy]) -> Easy:
        easy = Easy(
            connection,
            pool,
            self._repeats,
            check_address=self._check_address,
            on_socket=self._sockets.opened,
            on_error=self._on_error,
        )
        easy.stop = partial(self._drop, easy)
        return easy

    def _drop(self, easy: Easy) -> None:
        """Stop a transfer. The rest of its answer is not read, see `_break_off`."""
        if self._busy.pop(easy.curl, None) is not None:
            self._multi.remove_handle(easy.curl)
            self._break_off(easy)
            self._put_back(easy)

    def _break_off(self, easy: Easy, whole: bool = False) -> None:
        """See to it that the rest of an unwanted answer in HTTP/2 is not read.

        Where other requests use the connection too, it has to be read, unless the connection cannot
        be used any more.
        whole: end the connection with all requests that use it.
        """
        if not easy.options.shares:
            return
        ends = ends_used_by(easy.curl)
        if not whole and any(ends_used_by(curl) == ends for curl in self._busy):
            self._floods.excuse(ends)
            if MIXES_UP:
                used = {ends_used_by(curl) for curl in self._busy}
                self._owing = {ends, *(self._owing & used)}
        else:
            self._sockets.shut_down(ends)

    def _put_back(self, easy: Easy) -> None:
        """Release a handle, and keep it for another request where there is room."""
        easy.release()
        if self._inner_tls.users:
            self._inner_tls.discard(easy)
        if self._repeats.forbidden:
            self._repeats.discard(easy.watch)
        if self._retired:
            easy.close()
            self._loop.run_callback(self._close_when_idle)
        elif self._idle_count >= self._connections:
            easy.close()
        else:
            self._idle_count += 1
            easy.pool.append(easy)

    def _close_when_idle(self) -> None:
        if self._busy or self._closed or not self._retired:
            return
        self._closed = True
        for handles in self._idle.values():
            while handles:
                handles.pop().close()
        self._idle.clear()
        self._watcher.close()
        self._schedule.close()
        self._inner_tls.close()
        self._pending.close()
        self._multi.close()
        self._sockets.close()

    def _on_action(self) -> None:
        """libcurl's time is over, or it has been given requests."""
        if self._closed:
            return
        if self._sockets.has_unwanted:
            # Bytes that a kept connection has brought by now are no answer to a request that begins
            # here.
            self._on_events()
        self._socket_action(pycurl.SOCKET_TIMEOUT, 0)
        if self._repeats.to_seal:
            self._repeats.seal()
        if self._pending.started:
            self._pending.look()
        self._reap()

    def _on_events(self) -> None:
        """The epoll set is readable: hand libcurl each socket that is ready."""
        try:
            events = self._sockets.poll()
            wanted = self._sockets.wanted
            end = time.perf_counter() + _LONGEST_ROUND
            for at, (fd, event) in enumerate(events):
                if fd not in wanted:
                    continue
                mask = 0
                if event & ~select.EPOLLOUT:
                    mask = pycurl.CSELECT_IN
                if event & select.EPOLLOUT:
                    # libcurl is to read before it writes: see the theory of operation.
                    mask |= pycurl.CSELECT_OUT | pycurl.CSELECT_IN
                if event & select.EPOLLERR:
                    mask |= pycurl.CSELECT_ERR
                if self._socket_action(fd, mask) > end:
                    self._sockets.late = {fd for fd, _ in events[at + 1 :]}
                    break
        finally:
            self._reap()

    def _poll_inner_tls(self) -> None:
        """Have libcurl read where a socket has nothing more to give, but its TLS may have."""
        for fd in self._sockets.inner_tls & self._sockets.wanted.keys():
            self._socket_action(fd, pycurl.CSELECT_IN)
        self._reap()

    def _socket_action(self, fd: int, mask: int) -> float:
        """Call curl_multi_socket_action; return the time of its end by time.perf_counter."""
        began = time.perf_counter()
        self._schedule.acting = True
        self._repeats.calls += 1
        try:
            self._multi.socket_action(fd, mask)
        except pycurl.error:
            # A socket that libcurl does not know (any more): nothing may wait for it.
            self._sockets.wanted.pop(fd, None)
            self._sockets.drop_unwanted(fd)
        finally:
            self._schedule.acting = False
        if self._repeats.unsettled:
            for curl in self._repeats.settle():
                self._ended(curl, Code.GOT_NOTHING, "")
        ended = time.perf_counter()
        seconds = ended - began
        if not self._repeats.calls % SAMPLED_CALLS and fd != pycurl.SOCKET_TIMEOUT:
            seconds += LARGE_ACCOUNT
        if seconds > LONG_CALL:
            for easy in self._floods.check_call(fd, seconds):
                self._ended(easy.curl, Code.WRITE_ERROR, "")
        return ended

    def _reap(self) -> None:
        """Hand out the transfers that have ended."""
        left = 1
        while left:
            left, good, bad = self._multi.info_read()
            for curl in good:
                self._ended(curl, 0, "")
            for curl, code, text in bad:
                self._ended(curl, code, text)

    def _ended(self, curl: pycurl.Curl, code: int, text: str) -> None:
        """A transfer has ended, with one of libcurl's codes and its words, or with 0."""
        easy = self._busy.pop(curl, None)
        if easy is None:
            return
        transfer = easy.transfer
        if transfer is None:
            return
        try:
            # The condition that is most often false comes first: each request comes by here.
            if (
                MIXES_UP
                and transfer.route.origin.scheme == "https"
                and easy.connection.http_version == "2"
                and transfer.received.head.version[:1] == "1"
            ):
                transfer.route.shun_http_2()
                if self._end_mixed_up(easy):
                    return
            failure = collect(easy, transfer, code, text)
            if easy.opened and transfer.received.head.version == "2":
                self._sockets.framed.add(easy.socket)
            self._multi.remove_handle(curl)
            if failure is not None:
                self._break_off_failed(easy, code, failure)
            self._put_back(easy)
            if failure is None:
                transfer.finish()
            else:
                self._on_failed(transfer, failure)
        except Exception as error:
            self._on_error(self, error)
            internal = "internal error in the wire"
            transfer.fail(WireError(internal, kind="request", possibly_sent=True))

    def _end_mixed_up(self, easy: Easy) -> bool:
        """End all transfers on one connection of HTTP/1.1: their answers cannot be told apart.

        easy: the one that has just ended. Returns whether there are others, or were some before
        that were stopped: alone from the beginning it is left alone.
        """
        ends = ends_used_by(easy.curl)
        others = [e for curl, e in self._busy.items() if ends_used_by(curl) == ends]
        if not others and ends not in self._owing:
            return False
        self._sockets.shut_down(ends)
        for each in (easy, *others):
            self._busy.pop(each.curl, None)
            self._multi.remove_handle(each.curl)
        for each in (easy, *others):
            mixed_up = each.transfer
            self._put_back(each)
            if mixed_up is not None:
                mixed_up.forget_answer()
                self._on_failed(mixed_up, Failure(Code.GOT_NOTHING, "", True, None, is_silent=True))
        return True

    def _break_off_failed(self, easy: Easy, code: int, failure: Failure) -> None:
        """End the connection of a failed transfer, or let others use it on."""
        if failure.refused or easy.watch.is_stopped:
            # The stream is over, and the connection may be used on, or has ended.
            return
        has_fault = failure.fault is not None
        broken = code in _BROKEN or (has_fault and easy.phase is not ANSWERED)
        if broken or has_fault or code == Code.OPERATION_TIMEDOUT:
            self._break_off(easy, broken)
