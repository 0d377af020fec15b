"""Redirects: methods, bodies, headers, and where none may lead."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from pgnet.wire.guard import EgressRules
from pgnet.wire.limits import Limits
from servers import httpd
from servers.answers import MakeClient, echoed, marred, ok
from servers.client import Client, NameServer

# ---- redirects


@pytest.mark.parametrize(
    ("status", "method", "becomes"),
    [
        *(("303", m, "GET") for m in ("GET", "POST", "PUT", "DELETE", "PATCH")),
        ("303", "HEAD", "HEAD"),
        *((s, "POST", "GET") for s in ("301", "302")),
        *((s, m, m) for s in ("301", "302") for m in ("GET", "HEAD", "PUT", "DELETE")),
        *((s, m, m) for s in ("307", "308") for m in ("GET", "HEAD", "POST", "PUT", "DELETE")),
    ],
)
def test_methods_after_a_redirect(
    client: Client, server: httpd.Running, status: str, method: str, becomes: str
) -> None:
    body = b"content" if method in ("POST", "PUT", "PATCH") else None
    headers = [("X-Api-Key", "k"), ("Content-Type", "x/y")]
    server.reset()
    answer = client(f"{server.url}/redirect/{status}?to=/echo", method, headers, body)
    assert ok(answer).status_code == 200
    assert answer.redirects == 1
    assert ok(answer).url == server.url + "/echo"
    _, second = server.record()
    kept = becomes == method and not (status == "303" and method != "HEAD")
    sent = dict(map(tuple, second["headers"]))
    assert second["method"] == becomes
    assert second["body"] == (body.decode() if body and kept else "")
    assert sent["X-Api-Key"] == "k"
    assert ("Content-Type" in sent) == kept


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("x?a=b", "/redirect/x?a=b"), ("/a/../b", "/b"), ("//{netloc}/x", "/x"),
        ("{url}/y#z", "/y"), ("HTTP://{netloc}/U", "/U"),
        ("/sp%20ace", "/sp%20ace"), ("/%C3%BC", "/%C3%BC"), ("?q", "/redirect/302?q"),
        ("/a[1]|x?b[2]={{3}}", "/a%5B1%5D%7Cx?b%5B2%5D=%7B3%7D"), ("/100%!", "/100%25!"),
        ("\\\\evil.example", "/redirect/%5C%5Cevil.example"),
    ],
)  # fmt: skip
def test_locations(client: Client, server: httpd.Running, location: str, target: str) -> None:
    to = location.format(netloc=server.url.partition("://")[2], url=server.url)
    server.reset()
    quoted = quote(to, safe="/:")
    ok(client(f"{server.url}/redirect/302?to={quoted}"))
    assert [entry["target"] for entry in server.record()][1:] == [target]


def test_locations_in_plain_utf8(client: Client, server: httpd.Running) -> None:
    server.reset()
    ok(client(f"{server.url}/redirect/302?to=/%C3%BC%20x"))
    assert [entry["target"] for entry in server.record()][1:] == ["/%C3%BC%20x"]


def test_another_origin_gets_no_headers_of_the_caller(
    client: Client, server: httpd.Running, other: httpd.Running
) -> None:
    back = f"{other.url}/redirect/302?to={server.url}/echo"
    headers = [("Authorization", "x"), ("X-Api-Key", "y"), ("Accept", "x/y"), ("User-Agent", "me"),
               ("Cookie", "z")]  # fmt: skip
    other.reset()
    answer = client(f"{server.url}/redirect/302?to={back}", "GET", headers)
    (hop,) = other.record()
    names = {name for name, _ in hop["headers"]}
    assert names == {"Host", "Accept", "User-Agent"}
    # A header that was dropped stays dropped when a redirect leads back.
    assert {name for name, _ in echoed(answer)["headers"]} == names


@pytest.mark.parametrize("status", ["301", "302", "307", "308"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_a_body_goes_to_no_other_origin(
    client: Client, server: httpd.Running, other: httpd.Running, status: str, method: str
) -> None:
    other.reset()
    answer = client(f"{server.url}/redirect/{status}?to={other.url}/x", method, [], b"secret")
    if method == "POST" and status in ("301", "302"):
        ok(answer)
        assert [(e["method"], e["body"]) for e in other.record()] == [("GET", "")]
    else:
        message = f"redirect of a {method} request to another origin is not followed"
        assert marred(answer, int(status)).message == message
        assert other.record() == []


def test_two_locations(client: Client, server: httpd.Running) -> None:
    to = quote("/x\r\nLocation: /x")
    assert client(f"{server.url}/redirect/302?to={to}").url == server.url + "/x"
    server.reset()
    to = quote("/x\r\nLocation: /y")
    error = marred(client(f"{server.url}/redirect/302?to={to}"), 302)
    # Newer libcurls refuse the answer itself.
    words = ("redirect to an invalid or unsupported URL", "Weird server reply")
    assert error.message in words
    assert len(server.record()) == 1


def test_a_location_is_made_canonical(
    make_client: MakeClient, name_server: NameServer, server: httpd.Running
) -> None:
    name_server.answers["xn--bcher-kva.example"] = ["127.0.0.1"]
    client = make_client(resolver=name_server.resolver())
    to = quote(f"HTTP://Bücher.example:{server.port}/x#part")
    answer = client(f"{server.url}/redirect/302?to={to}")
    assert answer.url == f"http://xn--bcher-kva.example:{server.port}/x"
    # an empty port is the usual one (RFC 3986, section 3.2.3), where nobody listens here
    answer = client(f"{server.url}/redirect/302?to=http://127.0.0.9:/x")
    assert answer.error is not None
    assert answer.error.message == "Couldn't connect to server"


def test_a_caller_may_stop_a_redirect(
    client: Client, server: httpd.Running, other: httpd.Running
) -> None:
    asked: list[str] = []

    def may_follow(url: str) -> bool:
        asked.append(url)
        return "SECRET" not in url

    answer = client(f"{server.url}/redirect/302?to=/x%23part", may_follow=may_follow)
    assert ok(answer).url == server.url + "/x"
    server.reset()
    answer = client(f"{server.url}/redirect/302?to={other.url}/SECRET", may_follow=may_follow)
    error = marred(answer, 302)
    # Where it points is not shown either, nor what it says of it.
    assert (answer.header("Location"), answer.content) == ("***", b"")
    assert error.message == (
        "the redirect repeats a secret beyond its URL prefix and is not followed"
    )
    assert error.possibly_sent
    # Once before it is followed, once before it is shown.
    assert asked == [server.url + "/x", other.url + "/SECRET", other.url + "/SECRET"]


@pytest.mark.parametrize(
    "to",
    ["ftp://127.0.0.1/x", "file:///etc/passwd", "http://u:p@127.0.0.1/", "http://", "http://[x/",
     "mailto:x", "javascript:alert(1)"],
)  # fmt: skip
def test_redirects_to_nowhere(client: Client, server: httpd.Running, to: str) -> None:
    error = marred(client(f"{server.url}/redirect/302?to={to}"), 302)
    assert error.message == "redirect to an invalid or unsupported URL"
    assert error.possibly_sent


def test_redirects_go_through_the_guard(
    make_client: MakeClient, server: httpd.Running, other: httpd.Running
) -> None:
    client = make_client(EgressRules.from_json({"allow_networks": ["127.0.0.1/32"]}))
    other.reset()
    answer = client(f"{server.url}/redirect/302?to={other.url}/x")
    error = marred(answer, 302)
    assert "127.0.0.2 is a loopback address and not allowed" in error.message
    assert error.possibly_sent
    assert other.record() == []
    # The redirect has not been followed: this URL is its own.
    assert (answer.redirects, answer.address, answer.content) == (0, "127.0.0.1", b"elsewhere")
    assert answer.url == f"{server.url}/redirect/302?to={other.url}/x"
    assert answer.header("Location") == other.url + "/x"


@pytest.mark.parametrize(
    ("method", "status", "is_final"),
    [
        # The request was answered, and what follows fetches what the answer points to.
        ("POST", "303", True), ("POST", "302", True), ("PUT", "303", True),
        # The request itself is passed on, and what it came to there nobody knows.
        ("GET", "302", False), ("GET", "303", False), ("POST", "307", False), ("PUT", "301", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("way", ["empty", "hang"])
def test_where_nothing_comes_of_a_redirect(
    client: Client, server: httpd.Running, method: str, status: str, is_final: bool, way: str
) -> None:
    body = None if method == "GET" else b"x"
    answer = client(f"{server.url}/redirect/{status}?to=/{way}", method, [], body, timeout=0.5)
    assert answer.error is not None
    assert answer.error.possibly_sent
    assert answer.error.kind == ("timeout" if way == "hang" else "connection")
    assert (answer.status_code, answer.is_final) == (int(status), is_final)
    assert answer.header("Location") == f"/{way}"
    assert (answer.redirects, answer.url) == (1, f"{server.url}/{way}")
    assert answer.content == b"elsewhere"
    assert 0 < answer.timings.first_byte < answer.timings.total


def test_what_answers_a_redirect_counts(client: Client, server: httpd.Running) -> None:
    """However little of it comes: the redirect is forgotten."""
    answer = client(f"{server.url}/redirect/303?to=/short/100", "POST", [], b"x")
    assert marred(answer).message == "Transferred a partial file"
    assert (answer.content, answer.header("Location")) == (b"12345", None)
    assert ok(client(f"{server.url}/redirect/302?to=/status/404")).status_code == 404


def test_long_locations_are_not_remembered(client: Client, server: httpd.Running) -> None:
    """urllib.parse keeps the last hundred of what it has read."""
    for number in range(3):
        to = f"/{number}" + "x" * 20_000
        ok(client(f"{server.url}/redirect/302?to={to}"))
    cache: Any = urlsplit
    assert cache.cache_info().currsize <= 2


def test_hops_are_counted(make_client: MakeClient, server: httpd.Running) -> None:
    client = make_client()
    answer = client(server.url + "/hops/5")
    assert (ok(answer).status_code, answer.redirects) == (200, 5)
    for way in ("/hops/6", "/loop"):
        answer = client(server.url + way)
        assert marred(answer, 302).message == "Number of redirects hit maximum amount"
        assert answer.redirects == 5
    none = make_client(limits=Limits(max_redirects=0))
    assert ok(none(server.url + "/loop")).status_code == 302


def test_a_redirect_without_a_location_is_an_answer(client: Client, server: httpd.Running) -> None:
    assert ok(client(server.url + "/status/302")).status_code == 302
    assert ok(client(server.url + "/status/300")).status_code == 300
