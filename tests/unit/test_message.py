"""Headers, status lines and framing, as they are read and written."""

from __future__ import annotations

import pytest

from pgnet.wire.message import encode_headers, framing, parse_fields, parse_head
from pgnet.wire.wire_error import WireError

# ---- headers


def test_headers_as_they_come() -> None:
    lines = [
        b"HTTP/1.1 200 \r\n", b"A: 1\r\n", b"B:  two \t\r\n", b"  folded\r\n", b"no colon\r\n",
        b"C: gr\xc3\xbcn\r\n", b"D: gr\xfcn\r\n", b"E:\r\n", b"\r\n",
    ]  # fmt: skip
    assert parse_head(b"".join(lines)) == (
        "1.1",
        200,
        "",
        [("A", "1"), ("B", "two folded"), ("C", "grün"), ("D", "grün"), ("E", "")],
    )
    assert parse_fields(b"Trailer: t\r\nX:y\r\n") == [("Trailer", "t"), ("X", "y")]
    assert parse_head(b"HTTP/2 404 \r\n")[:3] == ("2", 404, "")
    assert parse_head(b"HTTP/1.0 204 None at all\n\n")[:3] == ("1.0", 204, "None at all")


@pytest.mark.parametrize(
    "line", [b"", b"HTTP/1.1", b"HTTP/1.1 20", b"HTTP/x.y 200 OK", b"ICY 200 OK", b"HTTP/1.1 2000"]
)
def test_what_is_no_status_line(line: bytes) -> None:
    with pytest.raises(WireError, match="Unsupported protocol"):
        parse_head(line + b"\r\nA: b\r\n\r\n")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([], (None, "")),
        ([("Content-Length", "5"), ("content-length", "005")], (5, "")),
        ([("Content-Length", "5, 5")], (5, "")),
        ([("Content-Encoding", "gzip"), ("content-encoding", "br")], (None, "gzip, br")),
        ([("Transfer-Encoding", "Chunked"), ("Content-Length", "nonsense")], (None, "")),
    ],
)
def test_how_a_body_comes(fields: list[tuple[str, str]], expected: tuple[int | None, str]) -> None:
    assert framing(fields) == expected


@pytest.mark.parametrize(
    "fields",
    [
        *([("Content-Length", value)] for value in
          ("", "-1", "+1", "1x", "0x1", "1 2", "1,", "5, 6", "9" * 30, "²")),
        [("Content-Length", "5"), ("Content-Length", "6")],
        [("Transfer-Encoding", "gzip, chunked")],
        [("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")],
        [("Transfer-Encoding", "")],
    ],
)  # fmt: skip
def test_lengths_and_codings_that_are_refused(fields: list[tuple[str, str]]) -> None:
    with pytest.raises(WireError):
        framing(fields)


def test_a_value_is_never_told() -> None:
    for headers in ({"X-A": "SECRET\n"}, {"X A": "SECRET"}, {"Host": "SECRET"}):
        with pytest.raises(WireError) as caught:
            encode_headers(headers.items())
        assert "SECRET" not in str(caught.value)
