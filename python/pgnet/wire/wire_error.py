"""The errors of the wire, in words that stay the same from one libcurl to the next.

`Code` is the one table of libcurl's codes: number, name, kind, words. No other module has such a
number. `settle` puts right what some libcurls report under another code.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import IntEnum
from typing import Literal

import requests

# The kinds of errors, as far as they matter for another attempt:
#   name        the name has no address, or no name server could say
#   connect     no connection was made: refused, unreachable, not in time, or not by the proxy
#   tls         the two sides could not agree on TLS, or one side did not trust the other
#   timeout     the deadline of the whole request was reached
#   connection  the connection broke after something may have been sent
#   response    an answer came that cannot be used
#   request     it was refused here, whatever the server would have said
Kind = Literal["name", "connect", "tls", "timeout", "connection", "response", "request"]


class Code(IntEnum):
    """libcurl's codes (CURLcode), whose numbers never change, each with its kind and its words.

    The words are those of libcurl 7.88. Newer ones change theirs, and users compare with these.
    A number that is not here has the kind `connection`.
    """

    words: str
    kind: Kind

    def __new__(cls, number: int, kind: Kind, words: str = "") -> Code:
        """A code with its kind and words; where it has no words, they name the number."""
        made = int.__new__(cls, number)
        made._value_ = number
        made.kind = kind
        made.words = words or f"Error {number} of the HTTP client"
        return made

    # This code may also stand for an answer that is not HTTP: see _kind_of.
    UNSUPPORTED_PROTOCOL = 1, "request", "Unsupported protocol"
    FAILED_INIT = 2, "request"
    URL_MALFORMAT = 3, "request", "URL using bad/illegal format or missing URL"
    NOT_BUILT_IN = 4, "request"
    COULDNT_RESOLVE_PROXY = 5, "name", "Couldn't resolve proxy name"
    COULDNT_RESOLVE_HOST = 6, "name", "Couldn't resolve host name"
    COULDNT_CONNECT = 7, "connect", "Couldn't connect to server"
    WEIRD_REPLY = 8, "response", "Weird server reply"
    HTTP2 = 16, "connection", "Error in the HTTP2 framing layer"
    PARTIAL_FILE = 18, "connection", "Transferred a partial file"
    WRITE_ERROR = 23, "response", "Failed writing received data to disk/application"
    READ_ERROR = 26, "request", "Failed to open/read local data from file/application"
    OUT_OF_MEMORY = 27, "request", "Out of memory"
    OPERATION_TIMEDOUT = 28, "timeout", "Timeout was reached"
    SSL_CONNECT_ERROR = 35, "tls", "SSL connect error"
    ABORTED_BY_CALLBACK = 42, "connection"
    BAD_FUNCTION_ARGUMENT = 43, "request"
    INTERFACE_FAILED = 45, "connect"
    TOO_MANY_REDIRECTS = 47, "response", "Number of redirects hit maximum amount"
    UNKNOWN_OPTION = 48, "request"
    # Old libcurls have it for a certificate that newer ones report as 60.
    PEER_FAILED_VERIFICATION = 51, "tls"
    GOT_NOTHING = 52, "connection", "Server returned nothing (no headers, no data)"
    SSL_ENGINE_NOTFOUND = 53, "tls"
    SSL_ENGINE_SETFAILED = 54, "tls"
    SEND_ERROR = 55, "connection", "Failed sending data to the peer"
    RECV_ERROR = 56, "connection", "Failure when receiving data from the peer"
    SSL_CERTPROBLEM = 58, "tls", "Problem with the local SSL certificate"
    SSL_CIPHER = 59, "tls", "Couldn't use specified SSL cipher"
    SSL_PEER_CERTIFICATE = 60, "tls", "SSL peer certificate or SSH remote key was not OK"
    BAD_CONTENT_ENCODING = 61, "response", "Unrecognized or bad HTTP Content or Transfer-Encoding"
    FILESIZE_EXCEEDED = 63, "response"
    SEND_FAIL_REWIND = 65, "connection", "Send failed since rewinding of the data stream failed"
    SSL_ENGINE_INITFAILED = 66, "tls"
    SSL_CACERT_BADFILE = 77, "tls", "Problem with the SSL CA cert (path? access rights?)"
    SSL_SHUTDOWN_FAILED = 80, "tls"
    SSL_CRL_BADFILE = 82, "tls"
    SSL_ISSUER_ERROR = 83, "tls"
    NO_CONNECTION_AVAILABLE = 89, "connect"
    SSL_PINNEDPUBKEYNOTMATCH = 90, "tls"
    SSL_INVALIDCERTSTATUS = 91, "tls", "SSL server certificate status verification FAILED"
    HTTP2_STREAM = 92, "connection", "Stream error in the HTTP/2 framing layer"
    RECURSIVE_API_CALL = 93, "request"
    PROXY = 97, "connect"
    SSL_CLIENTCERT = 98, "tls"
    TOO_LARGE = 100, "response"


CERTIFICATE_CODES = (
    Code.PEER_FAILED_VERIFICATION,
    Code.SSL_CERTPROBLEM,
    Code.SSL_PEER_CERTIFICATE,
    Code.SSL_CACERT_BADFILE,
    Code.SSL_ISSUER_ERROR,
    Code.SSL_INVALIDCERTSTATUS,
)


# libcurls, and the TLS libraries beneath them, have different codes for the same fault. Each row
# says when the fault happens, has the code and a part of the words that it comes with, and the code
# and kind that it gets here.
When = Literal["always", "proxy", "handshake", "tls", "sent", "answer"]
_OTHERWISE: tuple[tuple[When, Code, str, Code, Kind | None], ...] = (
    ("always", Code.SEND_ERROR, "Connection died", Code.GOT_NOTHING, None),
    ("proxy", Code.WEIRD_REPLY, "", Code.RECV_ERROR, None),
    ("handshake", Code.SEND_ERROR, "", Code.SSL_CONNECT_ERROR, None),
    ("handshake", Code.RECV_ERROR, "", Code.SSL_CONNECT_ERROR, None),
    ("handshake", Code.SSL_CONNECT_ERROR, "error reading X.509", Code.SSL_CERTPROBLEM, None),
    ("handshake", Code.BAD_FUNCTION_ARGUMENT, "private key file", Code.SSL_CERTPROBLEM, None),
    # In TLS 1.3 a server refuses the client's certificate when the handshake is over.
    ("tls", Code.SEND_ERROR, "alert", Code.SSL_CONNECT_ERROR, None),
    ("tls", Code.RECV_ERROR, "alert", Code.SSL_CONNECT_ERROR, None),
    # Sizes of chunks, what stands between them, trailers.
    ("answer", Code.WEIRD_REPLY, "", Code.RECV_ERROR, "response"),
    ("sent", Code.BAD_FUNCTION_ARGUMENT, "", Code.RECV_ERROR, "response"),
    ("sent", Code.RECV_ERROR, "chunk", Code.RECV_ERROR, "response"),
    ("sent", Code.RECV_ERROR, "Invalid response header", Code.RECV_ERROR, "response"),
    ("sent", Code.WEIRD_REPLY, "status line", Code.UNSUPPORTED_PROTOCOL, None),
    ("sent", Code.WEIRD_REPLY, "[HTTP2]", Code.HTTP2_STREAM, None),
)


def settle(code: int, text: str, times: Collection[When]) -> tuple[int, Kind | None]:
    """The code that a fault has here, and its kind where that does not follow from the code.

    code, text: libcurl's code, and its words.
    times: when it happened. `proxy`: before the proxy let the request through. `handshake`: before
    TLS was agreed on. `tls`: on a connection that speaks TLS. `sent`: after something of the
    request was sent. `answer`: after the head of the answer.
    """
    for when, number, words_of_libcurl, ours, kind in _OTHERWISE:
        happened = when == "always" or when in times
        if happened and code == number and words_of_libcurl in text:
            return ours, kind
    return code, None


class WireError(requests.RequestException):
    """No response came, or none that can be used.

    message: what stands in error_msg, free of the request's values.
    timed_out: the total deadline, or that for connecting, was reached.
    possibly_sent: the server may have seen the request, wholly or in part.
    kind: what went wrong, one of Kind. Where it is not given it follows from the code. Without a
    code it is `response` where the request may have been sent, and `request` where it was not.
    code: libcurl's code, 0 where it is not one of libcurl's errors.
    detail: what libcurl had to say beyond the message; may be empty.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: Kind | None = None,
        timed_out: bool = False,
        possibly_sent: bool = False,
        code: int = 0,
        detail: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.kind: Kind = kind or _kind_of(code, possibly_sent)
        self.timed_out = timed_out
        self.possibly_sent = possibly_sent
        self.code = code
        self.detail = detail

    def explain(self, sentence: str) -> None:
        """Add a sentence to the message: what to do about it."""
        self.message = f"{self.message}. {sentence}"
        self.args = (self.message,)


def refused(refusal: Exception) -> WireError:
    """The error of a request that was refused here, with the message of the refusal."""
    error = WireError(str(refusal))
    error.__cause__ = refusal
    return error


def words(code: int) -> str:
    """The words for one of libcurl's codes."""
    known = _CODES.get(code)
    return known.words if known is not None else f"Error {code} of the HTTP client"


_CODES: dict[int, Code] = {code.value: code for code in Code}


def _kind_of(code: int, possibly_sent: bool) -> Kind:
    if code == 0 or code == Code.UNSUPPORTED_PROTOCOL:
        # The code stands for a URL of another scheme, and for an answer that is not HTTP.
        return "response" if possibly_sent else "request"
    known = _CODES.get(code)
    kind = known.kind if known is not None else "connection"
    if kind == "connection" and not possibly_sent:
        # The connection broke before it carried anything.
        return "connect"
    return kind
