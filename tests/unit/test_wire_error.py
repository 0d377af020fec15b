"""The words and the kind of each error, whatever libcurl's number and words for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pycurl
import pytest

import pgnet
from pgnet.wire.wire_error import CERTIFICATE_CODES, Code, Kind, WireError, words


def kind(code: int, possibly_sent: bool) -> Kind:
    return WireError("x", code=code, possibly_sent=possibly_sent).kind


@pytest.mark.parametrize(
    ("code", "sent", "never_sent"),
    [
        (Code.COULDNT_RESOLVE_HOST, "name", "name"),
        (Code.COULDNT_RESOLVE_PROXY, "name", "name"),
        (Code.COULDNT_CONNECT, "connect", "connect"),
        (Code.OPERATION_TIMEDOUT, "timeout", "timeout"),
        (Code.SSL_CONNECT_ERROR, "tls", "tls"),
        (Code.SSL_PEER_CERTIFICATE, "tls", "tls"),
        (Code.GOT_NOTHING, "connection", "connect"),
        (Code.SEND_ERROR, "connection", "connect"),
        (Code.RECV_ERROR, "connection", "connect"),
        (Code.PARTIAL_FILE, "connection", "connect"),
        (Code.HTTP2, "connection", "connect"),
        (Code.HTTP2_STREAM, "connection", "connect"),
        # numbers of libcurls to come
        (999, "connection", "connect"),
        (Code.BAD_CONTENT_ENCODING, "response", "response"),
        (Code.TOO_MANY_REDIRECTS, "response", "response"),
        (Code.WEIRD_REPLY, "response", "response"),
        (Code.URL_MALFORMAT, "request", "request"),
        # a URL of another scheme, or an answer that is no HTTP
        (Code.UNSUPPORTED_PROTOCOL, "response", "request"),
        # words of ours
        (0, "response", "request"),
    ],
)
def test_a_kind_follows_from_the_number(code: int, sent: Kind, never_sent: Kind) -> None:
    assert (kind(code, True), kind(code, False)) == (sent, never_sent)


def test_a_kind_may_be_told() -> None:
    for told in get_args(Kind):
        assert WireError("x", kind=told, code=Code.RECV_ERROR).kind == told


def test_each_number_has_a_kind_and_words() -> None:
    for code in Code:
        assert code.kind in get_args(Kind)
        assert words(code) == code.words != ""
    assert words(999) == "Error 999 of the HTTP client"
    assert set(CERTIFICATE_CODES) <= set(Code)


def test_the_numbers_are_those_of_libcurl() -> None:
    """pycurl has names for most numbers; old versions have some twice."""
    named = {name[2:]: value for name, value in vars(pycurl).items() if name.startswith("E_")}
    for code in Code:
        if code.name in named and code is not Code.PEER_FAILED_VERIFICATION:
            assert named[code.name] == code, code.name


def test_the_numbers_stand_nowhere_else() -> None:
    """A number elsewhere would have words and a kind of its own."""
    number = "|".join(str(code.value) for code in Code)
    again = re.compile(rf"pycurl\.E_|\bcodes?\b *(=|==|!=|in|\() *\(?({number})\b")
    for path in Path(pgnet.__file__).parent.rglob("*.py"):
        for line in path.read_text().splitlines():
            assert not again.search(line), (path.name, line)
