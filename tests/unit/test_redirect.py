"""The rules of redirects, one by one: which request follows an answer, and why none does."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from pgnet.wire.message import Head, WireRequest
from pgnet.wire.redirect import next_hop, resolve
from pgnet.wire.wire_error import Code, WireError

URL = "https://a.example/v1/x?q=1#part"


def hop(
    location: str | list[str] | None = "/y",
    status: int = 302,
    method: str = "GET",
    url: str = URL,
    fields: list[tuple[str, str]] | None = None,
    body: bytes | None = None,
    *,
    followed: int = 0,
    most: int = 5,
    bound: Mapping[str, str] | None = None,
    may_follow: Callable[[str], bool] | None = None,
) -> WireRequest | WireError | None:
    locations = [location] if isinstance(location, str) else location or []
    answer = Head("1.1", status, "", [("Location", value) for value in locations])
    request = WireRequest(method, url, fields or [], body)
    return next_hop(request, answer, followed, most, bound or {}, may_follow)


def sent(following: WireRequest | WireError | None) -> WireRequest:
    assert isinstance(following, WireRequest), following
    return following


def refused(following: WireRequest | WireError | None) -> str:
    assert isinstance(following, WireError), following
    # The server of the redirect has seen the request.
    assert following.possibly_sent
    return following.message


def test_what_is_no_redirect_stands_for_itself() -> None:
    for status in (200, 201, 300, 304, 305, 306, 309, 404):
        assert hop(status=status) is None
    for location in (None, "", ["", ""]):
        assert hop(location) is None
    for status in (301, 302, 303, 307, 308):
        assert sent(hop(status=status)).url == "https://a.example/y"


def test_the_limit_of_hops() -> None:
    assert hop(most=0) is None
    assert hop(followed=5, most=0) is None
    assert sent(hop(followed=4))
    following = hop(followed=5)
    assert refused(following) == "Number of redirects hit maximum amount"
    assert isinstance(following, WireError)
    assert following.code == Code.TOO_MANY_REDIRECTS
    # Without a Location there is nothing to follow.
    assert hop(None, followed=5) is None


def test_several_locations() -> None:
    assert sent(hop(["/y", "/y"])).url == "https://a.example/y"
    for locations in (["/y", "/z"], ["/y", ""]):
        assert refused(hop(locations)) == "redirect to an invalid or unsupported URL"


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("?r", "https://a.example/v1/x?r"),
        ("y", "https://a.example/v1/y"),
        ("../y", "https://a.example/y"),
        # The fragment of a Location is left out, and so is that of the base.
        ("#other", "https://a.example/v1/x?q=1"),
        ("//b.example", "https://b.example/"),
        ("HTTPS://B.example:443/ü ?a=[1]", "https://b.example/%C3%BC%20?a=%5B1%5D"),
        ("/50%", "https://a.example/50%25"),
        ("https:y", None),
        ("https://", None),
        ("ftp://b.example/", None),
        ("https://user:word@b.example/", None),
        ("/{secret:name}", "https://a.example/%7Bsecret:name%7D"),
    ],
)
def test_what_a_location_means(location: str, url: str | None) -> None:
    if url is None:
        with pytest.raises(ValueError, match="invalid URL"):
            resolve(URL, location)
        assert refused(hop(location)) == "redirect to an invalid or unsupported URL"
    else:
        assert resolve(URL, location) == url
        assert sent(hop(location)).url == url


def test_https_does_not_lead_to_http() -> None:
    message = "redirect from https to http is not followed"
    assert refused(hop("http://a.example/y")) == message
    assert sent(hop("https://a.example/y", url="http://a.example/x"))


def test_a_url_that_repeats_a_secret() -> None:
    asked: list[str] = []

    def may_follow(url: str) -> bool:
        asked.append(url)
        return "hidden" not in url

    assert sent(hop("/y#hidden", may_follow=may_follow))
    message = "the redirect repeats a secret beyond its URL prefix and is not followed"
    assert refused(hop("/hid%64en?hidden", may_follow=may_follow)) == message
    assert asked == ["https://a.example/y", "https://a.example/hid%64en?hidden"]


METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", METHODS)
def test_method_and_body(status: int, method: str) -> None:
    body = None if method == "HEAD" else b"content"
    fields = [("Content-Type", "text/plain"), ("content-language", "en"), ("X-A", "1")]
    following = sent(hop(status=status, method=method, fields=fields, body=body))
    becomes_get = (status == 303 and method != "HEAD") or (
        status in (301, 302) and method == "POST"
    )
    assert following.method == ("GET" if becomes_get else method)
    assert following.body == (None if becomes_get else body)
    assert following.fields == (fields[2:] if becomes_get else fields)


ELSEWHERE = ["https://b.example/", "https://a.example:8443/", "https://www.a.example/"]


@pytest.mark.parametrize("location", ELSEWHERE)
def test_another_origin_gets_nothing_of_the_caller(location: str) -> None:
    fields = [("Authorization", "x"), ("X-A", "1"), ("USER-AGENT", "me"), ("Accept", "a/b"),
              ("Cookie", "z"), ("Accept-Language", "en"), ("Accept-Encoding", "gzip")]  # fmt: skip
    harmless = [field for field in fields if field[0] in ("USER-AGENT",) or "Acc" in field[0]]
    assert sent(hop(location, fields=fields)).fields == harmless
    for method in METHODS:
        for body in (None, b"", b"x"):
            following = hop(location, 307, method, body=body)
            if body is None and method in ("GET", "HEAD", "OPTIONS"):
                assert sent(following).method == method
            else:
                message = f"redirect of a {method} request to another origin is not followed"
                assert refused(following) == message
    # As a GET without a body it may go there.
    assert sent(hop(location, 303, "POST", fields=fields, body=b"x")).fields == harmless


def test_the_upgrade_to_https_is_the_same_origin() -> None:
    fields = [("Authorization", "x")]
    for url, location, same in (
        ("http://a.example/", "https://a.example/", True),
        ("http://a.example:80/", "https://a.example:443/", True),
        ("http://a.example:8080/", "https://a.example/", False),
        ("http://a.example/", "https://a.example:8443/", False),
        ("http://a.example/", "https://b.example/", False),
    ):
        following = sent(hop(location, url=url, fields=fields))
        assert following.fields == (fields if same else []), (url, location)


def test_a_bound_header_stays_within_its_prefix() -> None:
    fields = [("X-Key", "1"), ("x-other", "2"), ("X-KEY", "3"), ("X-Free", "4")]
    bound = {"x-key": "https://a.example/v1/", "x-other": "https://a.example/"}
    assert sent(hop("/v1/y", fields=fields, bound=bound)).fields == fields
    assert sent(hop("/v2/y", fields=fields, bound=bound)).fields == [fields[1], fields[3]]
    assert sent(hop("/v1/../v2", fields=fields, bound=bound)).fields == [fields[1], fields[3]]
    # A header that may go anywhere for its name does not, where it is bound.
    agent = [("User-Agent", "secret")]
    bound = {"user-agent": "https://a.example/"}
    assert sent(hop("https://b.example/", fields=agent, bound=bound)).fields == []


def test_the_request_before_is_left_as_it_was() -> None:
    fields = [("Content-Type", "a/b"), ("X-A", "1")]
    request = WireRequest("POST", URL, fields, b"x")
    following = next_hop(request, Head("1.1", 303, "", [("location", "/y")]), 0, 5, {}, None)
    assert sent(following).fields == fields[1:]
    assert (request.method, request.url, request.body) == ("POST", URL, b"x")
    assert request.fields == fields == [("Content-Type", "a/b"), ("X-A", "1")]
