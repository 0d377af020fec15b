"""Requests that libcurl must not send twice.

libcurl sends a request once more, whatever its method, where a kept connection ends without a byte
of an answer, and where a server of HTTP/2 refuses its stream. libcurl has no option against the
first.
The second is safe, and wanted: the server says that it has not processed the request (RFC 9113,
section 8.7). libcurl does not report which of the two it does, nor that it does any.

So, for a request that must not be repeated:

* As soon as it has its connection it is sealed. CURLOPT_FRESH_CONNECT has libcurl repeat it over a
  new connection only, and CURLOPT_OPENSOCKETFUNCTION refuses the socket for that.
* Before that, libcurl is listened to (CURLOPT_VERBOSE): it says "Connection died" before it repeats
  a request. CURLOPT_XFERINFOFUNCTION then stops a repeat over another kept connection, for which no
  socket is opened.
* libcurl also says what becomes of the streams of HTTP/2. So a request that a server has refused
  is told from one that a server may have processed. The first is sent again by `Transport`.

A GOAWAY concerns all streams of its connection, and libcurl says it to the request that happens to
read. So as long as there is any such request, all that may share a connection are listened to. To
listen takes a tenth of a request's processor time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import pycurl

from pgnet.wire.curl.states import ALLOWED, FORBIDDEN, SEALED, STOPPED, Fate, changed
from pgnet.wire.wire_error import Code, WireError

# How the message begins that libcurl gives before it sends a request once more.
_REPEATS = b"Connection died, "
# The messages of libcurl 7.88 to 8.23 about HTTP/2: the stream of a request; the last stream that
# the server will process; that it has refused one; and why a stream or the connection has failed.
_find_event = re.compile(
    rb"(?:Using Stream ID: |\[HTTP/2\] \[)(?P<stream>[0-9]+)(?: \(|\] OPENED )"
    rb"|rec\w*ved GOAWAY, error=[0-9]+, last_stream=(?P<goaway>[0-9]+)"
    rb"|HTTP/2 stream [0-9]+ (?P<refused>refused) by server"
    rb"|stream [0-9]+ (?P<closed>closed)"
    rb"|(?P<trouble>Failed (?:receiv|send)ing HTTP2 data|HTTP/2 stream [0-9]+ (?:was|reset)"
    rb"|h2_process_pending_input)"
).match
# How these begin: most of what libcurl says is of no interest.
_BEGINNINGS = frozenset((b"Con", b"Usi", b"[HT", b"rec", b"HTT", b"Fai", b"h2_", b"str"))
_VERSION: int = pycurl.version_info()[2]
_CANNOT_REPEAT = (SEALED, STOPPED)


class RepeatWatch:
    """Watches over one handle, so that its request is not sent twice by libcurl.

    curl: the handle. repeats: the watches of all handles that share connections with it.
    state: whether the request may be repeated. fate: what became of its stream of HTTP/2.
    stream: the number of that stream. port: the local port of its connection. Each is 0 while it is
    unknown. peer: what the request is connected to.
    fault: why the request was stopped.
    listens: whether libcurl says what it does.
    """

    __slots__ = (
        "_has_progress",
        "_progressed",
        "_repeats",
        "curl",
        "fate",
        "fault",
        "listens",
        "peer",
        "port",
        "state",
        "stream",
    )

    def __init__(self, curl: pycurl.Curl, repeats: Repeats) -> None:
        self._repeats = repeats
        self.curl = curl
        self.state = ALLOWED
        self.fate = Fate.UNKNOWN
        self.stream = self.port = 0
        self.peer: tuple[int, str] | None = None
        self.fault: WireError | None = None
        self.listens = False
        # Whether libcurl tells how far the request is, and in which of its turns it did so last.
        self._has_progress = False
        self._progressed = 0
        curl.setopt(pycurl.DEBUGFUNCTION, self._on_message)
        curl.setopt(pycurl.XFERINFOFUNCTION, self._on_progress)
        if not repeats.reuse:
            curl.setopt(pycurl.FRESH_CONNECT, 1)
            curl.setopt(pycurl.FORBID_REUSE, 1)

    def begin(self, forbidden: bool, shares: bool, peer: tuple[int, str] | None) -> None:
        """A request begins.

        forbidden: whether libcurl must not repeat it. shares: whether it may share a connection.
        """
        if forbidden:
            self.state = changed(self.state, FORBIDDEN)
            # A request with a connection of its own never uses a kept one.
            watched = self._repeats.reuse
        else:
            watched = False
        if watched != self._has_progress:
            self.curl.setopt(pycurl.NOPROGRESS, 0 if watched else 1)
            self._has_progress = watched
        listens = watched or (shares and bool(self._repeats.forbidden))
        if listens != self.listens:
            self.listen(listens)
        self.peer = peer
        if listens:
            self.stream = self.port = 0
            self.fate = Fate.UNKNOWN

    def end(self) -> None:
        """The request has ended: the handle may be used for another one."""
        self.state = changed(self.state, ALLOWED)
        self.fault = None
        if self._repeats.reuse:
            self.curl.setopt(pycurl.FRESH_CONNECT, 0)

    def listen(self, wanted: bool) -> None:
        """Turn libcurl's messages about this request on or off."""
        self.curl.setopt(pycurl.VERBOSE, 1 if wanted else 0)
        self.listens = wanted

    def seal(self) -> None:
        """The request has its connection: from now on it gets no other one."""
        self.state = changed(self.state, SEALED)
        self.curl.setopt(pycurl.FRESH_CONNECT, 1)

    @property
    def is_stopped(self) -> bool:
        """Whether libcurl was about to send the request once more."""
        return self.state is STOPPED

    def is_refused(self, sent: bool) -> bool:
        """Whether the request may be sent again, though libcurl must not repeat it.

        sent: whether any of it was sent over the connection that libcurl tried last.
        """
        if self.state is ALLOWED:
            return False
        return self.fate is Fate.REFUSED or (self.is_stopped and not sent)

    def refuses_socket(self) -> bool:
        """Whether no socket may be opened for the request any more; the fault then says why."""
        if self.state not in _CANNOT_REPEAT:
            return False
        self._stop()
        return True

    def learn(self, fate: Fate) -> None:
        """More is known of the request's stream; a weaker word than the last changes nothing."""
        self.fate = max(self.fate, fate)

    def _stop(self) -> None:
        code = Code.GOT_NOTHING
        self.fault = WireError(code.words, possibly_sent=True, code=code)

    def _on_message(self, kind: int, text: bytes) -> None:
        """CURLOPT_DEBUGFUNCTION: a message of libcurl's about what it does."""
        if kind or text[:3] not in _BEGINNINGS:
            # CURLINFO_TEXT is 0.
            return
        if text.startswith(_REPEATS):
            if self.state is not ALLOWED:
                self.state = changed(self.state, STOPPED)
                if self._is_refusal():
                    self.learn(Fate.REFUSED)
                self._repeats.on_repeat(self)
            else:
                self.stream = 0
            return
        found = _find_event(text)
        if found is None:
            return
        if found["stream"] is not None:
            self.stream, self.port = int(found["stream"]), 0
            self._repeats.on_stream(self)
        elif found["goaway"] is not None:
            self._repeats.on_goaway(self, int(found["goaway"]))
        elif found["refused"] is not None:
            self.learn(Fate.REFUSED)
        elif found["closed"] is not None:
            self.learn(Fate.CLOSED)
        else:
            self.learn(Fate.TROUBLED)

    def _is_refusal(self) -> bool:
        """Whether libcurl repeats the request because its stream was refused.

        False also where a refusal cannot be told from a connection that has ended.
        """
        if not self.stream or self.fate in (Fate.TROUBLED, Fate.CLOSED):
            return False
        if _VERSION < 0x080000:
            # libcurl looks at the progress first, except where an answer ends without an error.
            return self._progressed != self._repeats.calls
        # Until 8.6 libcurl says nothing of connections that have ended, from 8.19 on of refusals.
        return 0x080700 <= _VERSION < 0x081300

    def _on_progress(self, *_: int) -> int:
        """CURLOPT_XFERINFOFUNCTION: anything but 0 has libcurl end the request."""
        self._progressed = self._repeats.calls
        if not self.is_stopped:
            return 0
        self._stop()
        return 1


class Repeats:
    """The watches of all handles of one multi handle: what libcurl says to one may concern others.

    reuse: whether connections are kept and used again.
    calls: how often libcurl was called.
    forbidden: requests that must not be repeated, on connections that others may use too.
    to_seal: requests that were given to libcurl and get their connection in its next call.
    unsettled: whether libcurl has said anything that `settle` is for.
    """

    def __init__(self, reuse: bool) -> None:
        self.reuse = reuse
        self.calls = 0
        self.forbidden: set[RepeatWatch] = set()
        self.to_seal: list[RepeatWatch] = []
        self.unsettled = False
        # Collected from libcurl's messages since it was called. Requests that have a stream of
        # HTTP/2 now; GOAWAY frames, each with the request that has read it, its connection's local
        # port if that is known, and the last stream that is processed; requests that libcurl is
        # about to repeat.
        self._streams: list[RepeatWatch] = []
        self._goaways: list[tuple[RepeatWatch, int, int]] = []
        self._repeated: list[RepeatWatch] = []

    def add(self, watch: RepeatWatch, others: Iterable[RepeatWatch]) -> None:
        """A request that must not be repeated begins, and may share its connection.

        others: the watches of all requests that may share connections; they have to listen now.
        """
        if not self.forbidden:
            for other in others:
                if not other.listens:
                    other.listen(True)
                    other.stream, other.port = 0, other.curl.getinfo(pycurl.LOCAL_PORT)
        self.forbidden.add(watch)

    def discard(self, watch: RepeatWatch) -> None:
        """A request has ended."""
        self.forbidden.discard(watch)

    def seal(self) -> None:
        """libcurl was called: the requests it was given have their connections."""
        for watch in self.to_seal:
            # A request that has ended meanwhile is ALLOWED, and so is the next request of its
            # handle.
            if watch.state is FORBIDDEN:
                watch.seal()
        self.to_seal.clear()

    def on_stream(self, watch: RepeatWatch) -> None:
        """A request has a stream of HTTP/2 now: on which connection cannot be asked yet."""
        self._streams.append(watch)
        self.unsettled = True

    def on_goaway(self, watch: RepeatWatch, last: int) -> None:
        """A request has read a GOAWAY: no stream above `last` of its connection is processed."""
        self._goaways.append((watch, watch.port, last))
        self.unsettled = True

    def on_repeat(self, watch: RepeatWatch) -> None:
        """libcurl is about to send a request once more that it must not repeat."""
        self._repeated.append(watch)
        self.unsettled = True

    def settle(self) -> list[pycurl.Curl]:
        """Find out which requests were refused; the handles of requests that are to be ended."""
        self.unsettled = False
        for watch in self._streams:
            if watch.stream and not watch.is_stopped:
                watch.port = watch.curl.getinfo(pycurl.LOCAL_PORT)
                if watch.state is FORBIDDEN:
                    watch.seal()
        self._streams.clear()
        for reader, port, last in self._goaways:
            for watch in self.forbidden:
                if watch.stream > last and watch.peer == reader.peer:
                    if watch is reader or (port and port == watch.port):
                        watch.learn(Fate.REFUSED)
                    elif not port or not watch.port:
                        # One of the two requests began in this call, and is over.
                        watch.learn(Fate.PERHAPS_REFUSED)
        self._goaways.clear()
        repeated, self._repeated = self._repeated, []
        for watch in repeated:
            if watch.stream and watch.fate is Fate.PERHAPS_REFUSED:
                watch.learn(Fate.REFUSED)
        return [watch.curl for watch in repeated]
