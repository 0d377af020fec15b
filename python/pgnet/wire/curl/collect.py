"""The outcome of a request, when libcurl is done with it."""

from __future__ import annotations

import pycurl

from pgnet.wire.curl.easy import Easy
from pgnet.wire.curl.states import ANSWERED, PROXY, Fate
from pgnet.wire.decoding import Decoder
from pgnet.wire.message import parse_fields, parse_head
from pgnet.wire.transfer import Failure, Received, Transfer
from pgnet.wire.wire_error import Code, When, WireError, settle, words

_BY_PROXY: tuple[When, ...] = ("proxy",)
# libcurl takes no longer line of a header.
LONGEST_LINE = 102_400


def collect(easy: Easy, transfer: Transfer, code: int, text: str) -> Failure | None:
    """Put the outcome of a request into its transfer; give why it failed, or None.

    code, text: libcurl's code and words for it; 0 where it has nothing to complain of.
    """
    info = easy.curl.getinfo
    timings, received = transfer.timings, transfer.received
    if easy.opened:
        connect = handshake = info(pycurl.CONNECT_TIME)
        timings.connect += connect
        if transfer.route.origin.scheme == "https":
            handshake = info(pycurl.APPCONNECT_TIME)
            timings.tls += max(handshake - connect, 0.0)
        transfer.attempts.handshake = handshake
        if easy.phase is ANSWERED:
            transfer.route.version = received.head.version
    if code and code == Code.HTTP2_STREAM and easy.phase is ANSWERED:
        # An answer that is whole is not to be discarded (RFC 9113, section 8.1).
        code = 0 if easy.watch.fate is Fate.CLOSED else code
    if code == 0:
        code = _check_whole(easy, received)
        if not code:
            timings.first_byte = easy.first_byte - transfer.started
            return None
        text = ""
    if easy.section:
        _keep_broken_head(easy, transfer)
    if received.head.status:
        timings.first_byte = easy.first_byte - transfer.started
        if easy.decoder is not None:
            received.as_it_came = easy.decoder.as_it_came
    return _failure(easy, transfer, code, text)


def _check_whole(easy: Easy, received: Received) -> int:
    """0 where all of an answer has come, otherwise the code that libcurl should have given."""
    if easy.phase is not ANSWERED:
        return Code.PARTIAL_FILE
    if easy.length is not None and easy.length != easy.wire_bytes:
        return Code.PARTIAL_FILE
    if easy.decoder is not None:
        _note_coding(received, easy.decoder)
    if easy.section:
        received.head.fields.extend(parse_fields(bytes(easy.section)))
    return 0


def _note_coding(received: Received, decoder: Decoder) -> None:
    """Say of a whole body what could not be decoded of it."""
    body = decoder.finish()
    if decoder.fault is None:
        return
    if body is not None:
        received.drop_body()
        received.take(body)
    received.as_it_came = decoder.as_it_came
    code = Code.BAD_CONTENT_ENCODING
    kept = "as it came" if decoder.as_it_came else "up to the fault"
    message = f"{code.words}: the body is kept {kept}"
    received.note = WireError(message, possibly_sent=True, code=code, detail=decoder.fault)


def _keep_broken_head(easy: Easy, transfer: Transfer) -> None:
    """Keep the status and the whole fields of a header section that was broken off.

    RFC 9112, section 8: such a status may mean less than it says, but it is all that will come.
    """
    if transfer.received.head.status or easy.phase is PROXY:
        return
    lines = bytes(easy.section[: transfer.limits.max_header_bytes])
    try:
        head = parse_head(lines[: lines.rfind(b"\n") + 1])
    except WireError:
        return
    if head.status >= 200:
        transfer.received.head = head


def _failure(easy: Easy, transfer: Transfer, code: int, text: str) -> Failure:
    """Why there is no answer, or only a part of one."""
    info = easy.curl.getinfo
    has_answer = easy.phase is ANSWERED
    sent = info(pycurl.REQUEST_SIZE) > 0
    if not has_answer and easy.watch.is_refused(sent):
        return Failure(code, text, False, None, refused=True)
    secure = transfer.route.origin.scheme == "https"
    by_proxy = easy.connection.proxy is not None
    if by_proxy and secure:
        # The bytes that were sent may only have asked the proxy for the tunnel.
        sent = sent and info(pycurl.PRETRANSFER_TIME) > 0
    fault = easy.fault or easy.watch.fault
    if fault is not None:
        return Failure(code, text, sent, fault)
    if by_proxy:
        fault = _fault_of_proxy(easy, code, text, sent, secure)
    elif code in (Code.OUT_OF_MEMORY, Code.TOO_LARGE) or "Out of memory in chunk" in text:
        # A line of a header is longer than libcurl takes.
        limit = min(transfer.limits.max_header_bytes, LONGEST_LINE)
        message = f"response headers exceed {limit} bytes"
        fault = WireError(message, kind="response", possibly_sent=sent)
    # Some libcurls have these codes for a stream that was refused.
    if code in (Code.HTTP2, Code.HTTP2_STREAM):
        is_silent = not has_answer and (code == Code.HTTP2 or "reset by curl" in text)
    else:
        is_silent = not easy.opened and not easy.header_bytes
    times: list[When] = []
    if secure:
        times.append("tls")
        if easy.opened and not sent and not transfer.attempts.handshake:
            times.append("handshake")
    if sent:
        times.append("sent")
    if has_answer:
        times.append("answer")
    return Failure(code, text, sent, fault, is_silent, tuple(times))


def _fault_of_proxy(easy: Easy, code: int, text: str, sent: bool, secure: bool) -> WireError | None:
    """The error where it is the proxy that failed; None where it may be the server behind it."""
    proxy = easy.connection.proxy
    if proxy is None or code == Code.OPERATION_TIMEDOUT:
        return None
    settled, _ = settle(code, text, _BY_PROXY)
    message = f"proxy {proxy.host}: {words(settled)}"
    if secure:
        status = easy.curl.getinfo(pycurl.HTTP_CONNECTCODE)
        if status // 100 == 2 or not easy.opened:
            return None
        if status:
            message = f"proxy {proxy.host} refused the tunnel with status {status}"
    elif sent:
        return None
    # No connection was made this time, whatever went over one before it.
    kind = WireError(message, code=settled).kind
    return WireError(message, kind=kind, possibly_sent=sent, code=settled, detail=text)
