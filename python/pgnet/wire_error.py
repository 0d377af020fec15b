"""What can go wrong on the wire, in words that stay the same from one libcurl to the next."""

from __future__ import annotations

from typing import Literal

import pycurl
import requests

# libcurl's classic words: newer libcurls change them, users compare with them.
_WORDS = {
    pycurl.E_UNSUPPORTED_PROTOCOL: "Unsupported protocol",
    pycurl.E_URL_MALFORMAT: "URL using bad/illegal format or missing URL",
    pycurl.E_COULDNT_RESOLVE_PROXY: "Couldn't resolve proxy name",
    pycurl.E_COULDNT_RESOLVE_HOST: "Couldn't resolve host name",
    pycurl.E_COULDNT_CONNECT: "Couldn't connect to server",
    8: "Weird server reply",
    16: "Error in the HTTP2 framing layer",
    pycurl.E_PARTIAL_FILE: "Transferred a partial file",
    pycurl.E_WRITE_ERROR: "Failed writing received data to disk/application",
    pycurl.E_READ_ERROR: "Failed to open/read local data from file/application",
    pycurl.E_OUT_OF_MEMORY: "Out of memory",
    pycurl.E_OPERATION_TIMEDOUT: "Timeout was reached",
    pycurl.E_SSL_CONNECT_ERROR: "SSL connect error",
    pycurl.E_TOO_MANY_REDIRECTS: "Number of redirects hit maximum amount",
    pycurl.E_GOT_NOTHING: "Server returned nothing (no headers, no data)",
    pycurl.E_SEND_ERROR: "Failed sending data to the peer",
    pycurl.E_RECV_ERROR: "Failure when receiving data from the peer",
    pycurl.E_SSL_CERTPROBLEM: "Problem with the local SSL certificate",
    pycurl.E_SSL_CIPHER: "Couldn't use specified SSL cipher",
    60: "SSL peer certificate or SSH remote key was not OK",
    pycurl.E_BAD_CONTENT_ENCODING: "Unrecognized or bad HTTP Content or Transfer-Encoding",
    pycurl.E_SEND_FAIL_REWIND: "Send failed since rewinding of the data stream failed",
    77: "Problem with the SSL CA cert (path? access rights?)",
    91: "SSL server certificate status verification FAILED",
    92: "Stream error in the HTTP/2 framing layer",
}
CERTIFICATE_CODES = (51, 58, 60, 77, 83, 91)

# What went wrong, as far as it matters for doing it again:
#   name        the name has no address, or nobody could say
#   connect     no connection was made: refused, unreachable, not in time, or not by the proxy
#   tls         the two sides could not agree on TLS, or one did not trust the other
#   timeout     the deadline of the whole request was reached
#   connection  the connection broke after something may have been sent
#   response    an answer came that cannot be used
#   request     it was refused here, whatever the server is like
Kind = Literal["name", "connect", "tls", "timeout", "connection", "response", "request"]

# By libcurl's numbers. A number that is not here is of a connection.
_KINDS: dict[int, Kind] = {
    # There is another reason for this one: see _kind_of.
    pycurl.E_UNSUPPORTED_PROTOCOL: "request",
    pycurl.E_FAILED_INIT: "request",
    pycurl.E_URL_MALFORMAT: "request",
    4: "request",  # not built in
    pycurl.E_COULDNT_RESOLVE_PROXY: "name",
    pycurl.E_COULDNT_RESOLVE_HOST: "name",
    pycurl.E_COULDNT_CONNECT: "connect",
    8: "response",  # weird server reply
    16: "connection",  # HTTP/2 framing
    pycurl.E_PARTIAL_FILE: "connection",
    pycurl.E_WRITE_ERROR: "response",
    pycurl.E_READ_ERROR: "request",
    pycurl.E_OUT_OF_MEMORY: "request",
    pycurl.E_OPERATION_TIMEDOUT: "timeout",
    pycurl.E_SSL_CONNECT_ERROR: "tls",
    43: "request",  # bad function argument
    45: "connect",  # interface failed
    pycurl.E_TOO_MANY_REDIRECTS: "response",
    48: "request",  # unknown option
    51: "tls",  # peer's certificate, in old libcurls
    pycurl.E_GOT_NOTHING: "connection",
    pycurl.E_SSL_ENGINE_NOTFOUND: "tls",
    pycurl.E_SSL_ENGINE_SETFAILED: "tls",
    pycurl.E_SEND_ERROR: "connection",
    pycurl.E_RECV_ERROR: "connection",
    pycurl.E_SSL_CERTPROBLEM: "tls",
    pycurl.E_SSL_CIPHER: "tls",
    60: "tls",  # peer's certificate
    pycurl.E_BAD_CONTENT_ENCODING: "response",
    63: "response",  # file size exceeded
    pycurl.E_SEND_FAIL_REWIND: "connection",
    66: "tls",  # engine initialisation failed
    77: "tls",  # authorities' file
    80: "tls",  # shutdown failed
    82: "tls",  # revocation list
    83: "tls",  # issuer
    89: "connect",  # no connection available
    90: "tls",  # pinned key
    91: "tls",  # certificate's status
    92: "connection",  # HTTP/2 stream
    93: "request",  # recursive call
    97: "connect",  # proxy handshake
    98: "tls",  # client's certificate required
    100: "response",  # too large
}


class WireError(requests.RequestException):
    """No response came, or none that may be used.

    message: what stands in error_msg, free of the request's values.
    timed_out: the total deadline, or that for connecting, was reached.
    possibly_sent: the server may have seen the request, wholly or in part.
    kind: what went wrong, one of Kind; where it is not told, it follows from the code, and without
    one it is `response` where the request may have been sent, and `request` where it was not.
    code: libcurl's number for it, 0 where it is none of libcurl's.
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
    """What was refused here, in the words of the refusal."""
    error = WireError(str(refusal))
    error.__cause__ = refusal
    return error


def words(code: int) -> str:
    """libcurl's words for one of its result codes."""
    return _WORDS.get(code) or f"Error {code} of the HTTP client"


def _kind_of(code: int, possibly_sent: bool) -> Kind:
    if code == 0 or code == pycurl.E_UNSUPPORTED_PROTOCOL:
        # That code: a URL of another scheme, or an answer that is none of HTTP.
        return "response" if possibly_sent else "request"
    kind = _KINDS.get(code, "connection")
    if kind == "connection" and not possibly_sent:
        # It broke before it carried anything.
        return "connect"
    return kind
