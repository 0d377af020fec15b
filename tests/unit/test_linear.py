"""No input costs more than its size: ten times as much takes about ten times as long.

A caller's input is looked at in the caller's backend, and once more by a worker, which serves
everybody; that worker also reads the answers of servers. So each kind of input is measured at
two sizes. A ratio says whether the work is quadratic, on a slow machine and on a fast one.
"""

from __future__ import annotations

import contextlib
import gc
import json
import time
from collections.abc import Callable

import pytest

from pgnet.outbox import Claim, Secret
from pgnet.request import multipart
from pgnet.request.check import check
from pgnet.request.errors import InvalidRequest
from pgnet.request.headers import parse_headers
from pgnet.request.params import encode_form
from pgnet.request.prefix import within
from pgnet.request.url import canonical_url
from pgnet.secret.mask import Mask
from pgnet.secret.value import sensitive
from pgnet.wire import message
from pgnet.wire.guard import EgressRules, Guard
from pgnet.wire.host import HostSettings, HostTable
from pgnet.wire.wire_error import WireError
from pgnet.worker.assemble import assemble, read

# Ten times the input; what is linear needs ten times the time, what is quadratic a hundred.
MOST = 35.0
URL = "http://localhost/"
PREFIX = "https://h.example/v1/"
VALUE = "sk_live_0123456789abcdef"
KEYS = {"s": Secret("s", VALUE, PREFIX, None)}


def headers(value: object) -> Callable[[], object]:
    text = json.dumps(value)
    return lambda: check("GET", URL, None, text, None, "{}", [])


def params(value: object) -> Callable[[], object]:
    text = json.dumps(value)
    return lambda: check("GET", URL, text, None, None)


def form(value: object) -> Callable[[], object]:
    text = json.dumps(value)
    return lambda: encode_form(text)


def parts(value: object) -> Callable[[], object]:
    text = json.dumps(value)
    return lambda: multipart.encode(text, [b"x"])


def spellings(count: int) -> dict[str, None]:
    """As many ways to write Authorization."""
    word = "authorization"
    return {
        "".join([c.upper() if n >> i & 1 else c for i, c in enumerate(word)]): None
        for n in range(count)
    }


def claim(url: str, header_text: str | None) -> Claim:
    return Claim(0, "", 1, 0, "GET", url, header_text, None, 1000, None, "", 0, 0.0, None)


def references(count: int) -> str:
    return json.dumps({"X-A": [{"secret": "s"}] * count})


def assembled(claim: Claim) -> Callable[[], object]:
    return lambda: assemble(claim, read(claim), KEYS, None)


def fields(text: str) -> Callable[[], object]:
    section = f"HTTP/1.1 200 OK\r\n{text}\r\n".encode()
    return lambda: message.parse_head(section)


def masked(value: str, text: str) -> Callable[[], object]:
    mask = Mask(sensitive(value, PREFIX))
    return lambda: mask.text(text)


def hosts(count: int) -> Callable[[], object]:
    table = HostTable({f"h{n}.example": HostSettings(http_version="1.1") for n in range(count)})
    return lambda: [table.settings_for(f"h{n}.example") for n in range(count)]


def rules(count: int) -> Callable[[], object]:
    """A rule for each of as many hosts and networks."""
    guard = Guard(
        EgressRules.from_json(
            {
                "allow_networks": [f"10.{n >> 8}.{n & 255}.0/24" for n in range(count)],
                "deny_networks": [f"172.{n >> 8}.{n & 255}.0/24" for n in range(count)],
                "allow_hosts": [f"h{n}.example" for n in range(count)],
                "deny_hosts": [f"*.d{n}.example" for n in range(count)],
                "egress": "listed",
            }
        )
    )

    def check() -> None:
        for n in range(count):
            host = f"h{n}.example"
            guard.check_host(host, 443)
            guard.check_address(host, f"10.{n >> 8}.{n & 255}.1", 443)

    return check


def escaped(count: int) -> str:
    """Escapes one within another, and white space, and nearly the value."""
    return "%2525&amp;amp;#9;\\\\\\u0073 k_live%5F\\n0=31\r\n" * count


CASES: dict[str, tuple[Callable[[int], Callable[[], object]], int]] = {
    "header values": (lambda n: headers({"X-A": ["v"] * n}), 1_000),
    "header names": (lambda n: headers({f"x{i}": "v" for i in range(n)}), 1_000),
    "spellings of one header": (
        lambda n: headers({**{f"x{i}": "v" for i in range(10 * n)}, **spellings(n)}),
        300,
    ),
    "headers that name a secret": (lambda n: headers({"X-A": [{"secret": "s"}] * n}), 1_000),
    "a long header": (lambda n: headers({"X-A": "\u00e9" * n}), 15_000),
    "a header with a bad end": (lambda n: headers({"X-A": " " * n + "\n"}), 30_000),
    "params": (lambda n: params({f"x{i}": "v" for i in range(n)}), 3_000),
    "a nested param": (lambda n: params({"x": [[i] for i in range(n)]}), 2_000),
    "a deep param": (lambda n: params({"x": json.loads("[" * n + "]" * n)}), 80),
    "a param of one number": (lambda n: params({"x": 10**n}), 400),
    "a form": (lambda n: form({f"x{i}": ["v", 1] for i in range(n)}), 3_000),
    "parts": (lambda n: parts([{"name": "a", "value": "b"}] * n), 1_000),
    "a media type with a bad end": (
        lambda n: parts([{"name": "a", "value": "b", "content_type": "a/" + "b" * n + "\n"}]),
        10_000,
    ),
    "a URL to be encoded": (lambda n: lambda: canonical_url(URL + "[\u00e9" * n), 5_000),
    "a URL of percent signs": (lambda n: lambda: canonical_url(URL + "%" * n), 10_000),
    "a URL of dots": (lambda n: lambda: canonical_url("http://" + "a." * n), 10_000),
    "a URL of numbers": (lambda n: lambda: canonical_url("http://" + "1." * n), 10_000),
    "a URL with a bad end": (lambda n: lambda: canonical_url(URL + "%4" * n + "\0"), 9_000),
    "an international host": (
        lambda n: lambda: canonical_url("http://" + "\u00fc" * n + "/"),
        9_000,
    ),
    "a prefix and a long path": (lambda n: lambda: within(PREFIX, PREFIX + "%41/" * n), 3_000),
    "a prefix and a path of escapes": (
        lambda n: lambda: within(PREFIX, PREFIX + "%2525" * n),
        3_000,
    ),
    "a request whose headers name a secret": (
        lambda n: assembled(claim(PREFIX + "x" * 20 * n, references(n))),
        500,
    ),
    "the secrets that a row names": (
        lambda n: lambda: read(claim(URL, references(n))),
        3_000,
    ),
    "fields of an answer": (lambda n: fields("X-A: b\r\n" * n), 3_000),
    "a line without a colon": (lambda n: fields("a" * n + "\r\n"), 20_000),
    "a folded line": (lambda n: fields("X: " + " " * n + "a\r\n b\r\n"), 20_000),
    "folded lines": (lambda n: fields("X: a" + "\r\n b" * n + "\r\n"), 3_000),
    "a length of zeros": (lambda n: lambda: message.framing([("Content-Length", "0" * n)]), 20_000),
    "repeated fields": (lambda n: lambda: message.combine_headers([("X", "v" * 20)] * n), 4_000),
    "header lines": (lambda n: lambda: message.encode_headers([("X-A", "v")] * n), 3_000),
    "an answer to be masked": (lambda n: masked(VALUE, '{"a": "b", "c": "\\u00e9"}\n' * n), 3_000),
    "an answer of escapes": (lambda n: masked(VALUE, escaped(n)), 500),
    "an answer of backslashes": (lambda n: masked(VALUE, "\\" * n + "u0073"), 20_000),
    "an answer of zeros": (lambda n: masked(VALUE, "&#" + "0" * n), 20_000),
    "an answer of percent signs": (lambda n: masked(VALUE, "%25" * n + "73"), 9_000),
    "an answer of the secret": (lambda n: masked(VALUE, VALUE * n), 300),
    "an answer of the secret in escapes": (
        lambda n: masked(VALUE, VALUE.replace("k", "%6b") * n),
        300,
    ),
    "an answer of the secret in lines": (lambda n: masked(VALUE, "\n".join(VALUE) * n), 100),
    "settings of hosts": (hosts, 300),
    "egress rules": (rules, 300),
}  # fmt: skip


def seconds(call: Callable[[], object]) -> float:
    """The least of a few: whatever else runs only adds to it."""
    best = float("inf")
    spent = 0.0
    for _ in range(30):
        began = time.process_time()
        with contextlib.suppress(InvalidRequest, WireError):
            call()
        took = time.process_time() - began
        best, spent = min(best, took), spent + took
        if spent > 0.3:
            break
    return best


@pytest.mark.parametrize("name", CASES)
def test_ten_times_as_much_takes_ten_times_as_long(name: str) -> None:
    made, size = CASES[name]
    small, large = made(size), made(10 * size)
    gc.disable()
    try:
        # Where less than the clock can tell has gone by, it is not quadratic either.
        ratio = seconds(large) / max(seconds(small), 50e-6)
    finally:
        gc.enable()
    assert ratio < MOST


@pytest.mark.parametrize("argument", ["params", "headers", "options"])
def test_json_is_bounded_before_it_is_read(argument: str) -> None:
    """A longer text is not parsed: it need not even be JSON."""
    given = {"params": "{}", "headers": "{}", "options": "{}", argument: "[" * 2_500_001}
    with pytest.raises(InvalidRequest) as caught:
        check("GET", URL, given["params"], given["headers"], None, given["options"])
    assert caught.value.message == f"{argument} is longer than 2500000 characters as JSON"


def test_the_number_of_headers_is_bounded() -> None:
    for values in (["v"] * 10_001, ["v"] * 80_000):
        with pytest.raises(InvalidRequest, match="there are more than 10000 headers"):
            parse_headers(json.dumps({"X": values}))
    assert len(parse_headers(json.dumps({"X": [*["v"] * 10_000, None]}))) == 10_000


def test_what_fits_is_not_too_long_as_json() -> None:
    """A value of characters that JSON escapes the longest way."""
    value = "\\" * 399_000
    assert parse_headers(json.dumps({"X": value})) == [("X", value)]
    text = json.dumps({"x": "\x01" * 130_000})
    assert len(check("GET", URL, text, None, None)) == len(URL) + 3 + 390_000
