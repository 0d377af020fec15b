"""Which kind an error is of, by libcurl's number and by whether anything was sent."""

from __future__ import annotations

from typing import get_args

import pycurl
import pytest

from pgnet.wire_error import _KINDS, _WORDS, Kind, WireError


def kind(code: int, possibly_sent: bool) -> Kind:
    return WireError("x", code=code, possibly_sent=possibly_sent).kind


@pytest.mark.parametrize(
    ("code", "sent", "never_sent"),
    [
        (pycurl.E_COULDNT_RESOLVE_HOST, "name", "name"),
        (pycurl.E_COULDNT_RESOLVE_PROXY, "name", "name"),
        (pycurl.E_COULDNT_CONNECT, "connect", "connect"),
        (pycurl.E_OPERATION_TIMEDOUT, "timeout", "timeout"),
        (pycurl.E_SSL_CONNECT_ERROR, "tls", "tls"),
        (60, "tls", "tls"),
        (pycurl.E_GOT_NOTHING, "connection", "connect"),
        (pycurl.E_SEND_ERROR, "connection", "connect"),
        (pycurl.E_RECV_ERROR, "connection", "connect"),
        (pycurl.E_PARTIAL_FILE, "connection", "connect"),
        (16, "connection", "connect"),
        (92, "connection", "connect"),
        # numbers of libcurls to come
        (999, "connection", "connect"),
        (pycurl.E_BAD_CONTENT_ENCODING, "response", "response"),
        (pycurl.E_TOO_MANY_REDIRECTS, "response", "response"),
        (8, "response", "response"),
        (pycurl.E_URL_MALFORMAT, "request", "request"),
        # a URL of another scheme, or an answer that is no HTTP
        (pycurl.E_UNSUPPORTED_PROTOCOL, "response", "request"),
        # words of ours
        (0, "response", "request"),
    ],
)
def test_a_kind_follows_from_the_number(code: int, sent: Kind, never_sent: Kind) -> None:
    assert (kind(code, True), kind(code, False)) == (sent, never_sent)


def test_a_kind_may_be_told() -> None:
    for told in get_args(Kind):
        assert WireError("x", kind=told, code=pycurl.E_RECV_ERROR).kind == told


def test_each_number_that_has_words_has_a_kind() -> None:
    assert _WORDS.keys() <= _KINDS.keys()
    assert set(_KINDS.values()) <= set(get_args(Kind))
