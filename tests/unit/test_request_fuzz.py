"""The caller's check against whatever text and JSON there is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar
from urllib.parse import parse_qsl, unquote

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from requests.models import PreparedRequest

from pgnet.request.check import check
from pgnet.request.errors import InvalidRequest
from pgnet.request.headers import flatten_headers
from pgnet.request.params import add_params, encode_url_with_params_array
from pgnet.request.url import canonical_url

# Written from the ABNF of RFC 3986, apart from the patterns under test.
UNRESERVED = r"(?:[a-zA-Z]|[0-9]|-|\.|_|~)"
SUB_DELIM = r"(?:!|\$|&|'|\(|\)|\*|\+|,|;|=)"
PCT_ENCODED = r"(?:%[0-9a-fA-F][0-9a-fA-F])"
PCHAR = rf"(?:{UNRESERVED}|{PCT_ENCODED}|{SUB_DELIM}|:|@)"
HTTP_URL = re.compile(
    rf"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]+\]|(?:{UNRESERVED}|{PCT_ENCODED}|{SUB_DELIM})+)"
    rf"(?::(?P<port>[1-9][0-9]*))?(?P<path>(?:/{PCHAR}*)+)"
    rf"(?:\?(?P<query>(?:{PCHAR}|/|\?)*))?(?:#(?P<fragment>(?:{PCHAR}|/|\?)*))?"
)

# Any character, surrogates and NUL too; and those that mean something in a URL, more often.
any_text = st.text(st.characters())
delimiters = st.sampled_from(
    list(":/?#[]@!$&'()*+,;=%\\ .-_~\t\r\n\0\u00df\u200d\u3002\uff0e\u2100")
)
nasty_text = st.lists(
    st.one_of(
        delimiters,
        st.sampled_from(
            ["http://", "HTTPS://", "//", "localhost", "127.0.0.1", "[::1]", ":80", ":443", "%41",
             "xn--", "user:pw@", "é", "example", "0x7f", "\ud800", "::", ":65535", "a.b"]
        ),
        st.characters(),
    ),
    max_size=12,
).map("".join)  # fmt: skip
likely_urls = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["http://", "https://", "HtTp://"]),
    st.one_of(st.from_regex(r"[a-zA-Z0-9._-]{1,20}(:[0-9]{0,6})?", fullmatch=True), nasty_text),
    st.sampled_from(["", "/", "?", "#"]),
    st.one_of(nasty_text, st.from_regex(r"[a-z/?#&=%.\[\]]{0,20}", fullmatch=True)),
)
urls = st.one_of(any_text, nasty_text, likely_urls)

json_scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), any_text, nasty_text)
json_values = st.recursive(
    json_scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(any_text, inner, max_size=3)
    ),
    max_leaves=8,
)
tokens = st.from_regex(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,12}", fullmatch=True)
names = st.one_of(
    tokens,
    any_text,
    st.sampled_from(["Host", "TE", "proxy-x", "Content-Type", "content-length", "X-A"]),
)
objects = st.dictionaries(st.one_of(names, nasty_text), json_values, max_size=4)
# Text that need not be JSON, JSON of any kind, and objects.
json_texts = st.one_of(
    st.none(),
    any_text,
    st.builds(json.dumps, st.one_of(json_values, objects), ensure_ascii=st.booleans()),
)

# A busy machine is no fault of the code.
thorough = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])

P = ParamSpec("P")
R = TypeVar("R")


def attempt(call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | InvalidRequest:
    """Return what a call returns, or how it refuses; any other exception fails the test."""
    try:
        return call(*args, **kwargs)
    except InvalidRequest as error:
        # PostgreSQL raises the message: one line, in any encoding that could express the input.
        assert f"{error.message}{error.hint}".isprintable()  # noqa: PT017 (not about one error)
        return error


def is_legal(url: str) -> re.Match[str]:
    match = HTTP_URL.fullmatch(url)
    assert match is not None, url
    assert "@" not in url.split("/")[2]
    return match


@thorough
@given(url=urls)
@example("http://h:443/")
@example("https://h:80/")
@example("http://a\u3002b/")
@example("http://a.b\uff0e/")
@example("http://[::1]:080/#?")
@example("http://a/{secret:b}")
@example(" http://a/%%4%41[#\u00e9#")
@example("http://a/\\..\\?{}|^`")
def test_a_url_is_canonical_once_and_for_all(url: str) -> None:
    canonical = attempt(canonical_url, url)
    if isinstance(canonical, InvalidRequest):
        return
    match = is_legal(canonical)
    assert canonical_url(canonical) == canonical
    assert match["host"] == match["host"].lower()
    if match["port"]:
        assert 0 < int(match["port"]) < 65536
        assert (match["scheme"], match["port"]) not in {("http", "80"), ("https", "443")}


@thorough
@given(
    scheme=st.sampled_from(["http", "https", "HTTP"]),
    host=st.from_regex(r"([a-zA-Z0-9-]{1,20}\.){0,3}[a-zA-Z][a-zA-Z0-9-]{0,20}\.?", fullmatch=True),
    port=st.one_of(st.just(""), st.integers(1, 65535).map(":{}".format)),
    rest=st.from_regex(
        rf"(/{PCHAR}{{0,5}}){{1,3}}(\?{PCHAR}{{0,5}})?(#{PCHAR}{{0,5}})?", fullmatch=True
    ),
)
def test_a_legal_url_is_taken_and_its_rest_left_alone(
    scheme: str, host: str, port: str, rest: str
) -> None:
    canonical = canonical_url(f"{scheme}://{host}{port}{rest}")
    match = is_legal(canonical)
    assert match["host"] == host.lower()
    assert canonical.endswith(rest)
    assert match["port"] in (port[1:], None)


@thorough
@given(
    method=st.sampled_from(["GET", "POST", "DELETE"]),
    url=urls,
    params=json_texts,
    headers=json_texts,
    timeout=st.one_of(st.none(), st.integers(-(2**31), 2**31 - 1)),
)
def test_check_raises_nothing_else(
    method: str, url: str, params: str | None, headers: str | None, timeout: int | None
) -> None:
    stored = attempt(check, method, url, params, headers, timeout)
    if isinstance(stored, InvalidRequest):
        return
    is_legal(stored)
    assert check(method, stored, None, headers, timeout) == stored


@thorough
@given(params=objects)
def test_params_never_leave_the_query(params: dict[str, object]) -> None:
    base = "http://localhost/path"
    text = json.dumps(params)
    stored = attempt(check, "GET", f"{base}#part", text, None, None)
    if isinstance(stored, InvalidRequest):
        return
    match = is_legal(stored)
    assert (match["host"], match["path"], match["fragment"]) == ("localhost", "/path", "part")
    pairs = [pair for pair in (match["query"] or "").split("&") if pair]
    assert len(pairs) == sum(value is not None for value in json.loads(text).values())


@thorough
@given(params=st.dictionaries(st.text(max_size=5), st.text(max_size=20), min_size=1, max_size=3))
def test_params_can_be_read_back(params: dict[str, str]) -> None:
    stored = attempt(add_params, "http://localhost/", dict(params))
    if isinstance(stored, InvalidRequest):
        assert any("\0" in f"{key}{value}" for key, value in params.items())
        return
    assert parse_qsl(stored.partition("?")[2], True, True) == list(params.items())


@thorough
@given(value=json_values)
def test_nested_values_are_written_as_json(value: object) -> None:
    """They are written as jsonb does, which for these values is as json.dumps does."""
    stored = attempt(add_params, "http://localhost/", {"a": [value]})
    if isinstance(stored, InvalidRequest):
        return
    text = json.dumps([value], ensure_ascii=False)
    assert unquote(stored.partition("?a=")[2]) == text


@thorough
@given(headers=objects)
@example({"X-A": "b\n"})
@example({"X-A": ["b", "\r\nHost: c"]})
@example({"X-A\n": "b"})
@example({"X-A": "\u2028\x85"})
def test_headers_hold_one_line_each(headers: dict[str, object]) -> None:
    pairs = attempt(flatten_headers, headers)
    if isinstance(pairs, InvalidRequest):
        return
    for name, value in pairs:
        assert isinstance(value, str)
        assert re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name)
        assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value)
        assert value == value.strip(" \t")
        value.encode("utf-8")


@thorough
@given(
    before=st.sampled_from(["http://", "https://", "ftp://", "//", ""]),
    user=st.from_regex(r"[a-z]{0,5}", fullmatch=True),
    junk=st.one_of(st.just(""), nasty_text),
    after=st.sampled_from(["localhost", "localhost/x", "localhost:8080/?q=1", "a b", "a b:x/"]),
)
def test_no_error_shows_a_password(before: str, user: str, junk: str, after: str) -> None:
    url = f"{before}{user}:hunter2{junk}hunter2@{after}"
    refused = attempt(canonical_url, url)
    if isinstance(refused, InvalidRequest):
        assert "hunter2" not in f"{refused.message}{refused.hint}"


@thorough
@given(pairs=st.lists(st.one_of(st.none(), any_text, nasty_text), max_size=4), url=urls)
def test_params_array(pairs: list[str | None], url: str) -> None:
    stored = attempt(encode_url_with_params_array, url, pairs)
    if isinstance(stored, InvalidRequest):
        return
    assert stored is not None
    is_legal(stored)


@thorough
@given(url=likely_urls)
def test_requests_finds_the_same_host(url: str) -> None:
    """Another parser than ours sees the host that the guard and the connection will see."""
    stored = attempt(canonical_url, url)
    if isinstance(stored, InvalidRequest):
        return
    prepared = PreparedRequest()
    try:
        prepared.prepare_url(stored, None)
    except ValueError:
        return  # requests takes fewer URLs
    assert isinstance(prepared.url, str)
    assert is_legal(prepared.url)["host"] == is_legal(stored)["host"]
