"""What can go wrong on the wire, in words that stay the same from one libcurl to the next."""

from __future__ import annotations

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


class WireError(requests.RequestException):
    """No response came, or none that may be used.

    message: what stands in error_msg, free of the request's values.
    timed_out: the total deadline, or that for connecting, was reached.
    possibly_sent: the server may have seen the request, wholly or in part.
    code: libcurl's number for it, 0 where it is none of libcurl's.
    detail: what libcurl had to say beyond the message; may be empty.
    """

    def __init__(
        self,
        message: str,
        *,
        timed_out: bool = False,
        possibly_sent: bool = False,
        code: int = 0,
        detail: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.timed_out = timed_out
        self.possibly_sent = possibly_sent
        self.code = code
        self.detail = detail


def words(code: int) -> str:
    """libcurl's words for one of its result codes."""
    return _WORDS.get(code) or f"Error {code} of the HTTP client"
