"""The answers of httpbin are stored as they came: statuses, codings, bodies, redirects, cookies."""

from __future__ import annotations

import json
import random
import string
from urllib.parse import quote, urlencode

import pytest

from servers.asker import BOTH, NUL, Asker, Row, content, data_url, header, httpbins


# --- Status codes ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "status",
    [
        *(200, 201, 202, 203, 204, 205, 206, 207, 226, 299, 300, 304, 305, 306, 399),
        *(400, 401, 402, 403, 404, 405, 406, 408, 409, 410, 412, 413, 415, 417, 418, 421),
        *(422, 425, 426, 428, 429, 431, 451, 499, 500, 501, 502, 503, 504, 505, 507, 511, 599),
    ],
)
def test_status(ask: Asker, status: int) -> None:
    row = ask("GET", f"/status/{status}")
    assert (row["status_code"], row["redirects"], row["timed_out"]) == (status, 0, False)
    if status in (204, 304):
        assert content(row) == b""
    if status == 401:
        assert header(row, "WWW-Authenticate") == ['Basic realm="Fake Realm"']
    if status == 418:
        assert b"teapot" in content(row)
        assert header(row, "x-more-info") != []


@BOTH
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"])
@pytest.mark.parametrize("status", [200, 204, 404, 503])
def test_status_of_each_method(ask: Asker, method: str, status: int) -> None:
    arguments = {"body_text": "x"} if method in ("POST", "PUT", "PATCH") else {}
    row = ask(method, f"/status/{status}", **arguments)
    assert (row["status_code"], content(row)) == (status, b"")


# --- Encodings, charsets, images, bytes -----------------------------------------------------------
@BOTH
@pytest.mark.parametrize(
    ("path", "coding", "key"),
    [
        ("/gzip", "gzip", "gzipped"),
        ("/deflate", "deflate", "deflated"),
        ("/brotli", "br", "brotli"),
    ],
)
@pytest.mark.parametrize("accepted", [None, "gzip, deflate, br"])
def test_encoded(ask: Asker, path: str, coding: str, key: str, accepted: str | None) -> None:
    headers = {"Accept-Encoding": accepted} if accepted else {}
    row = ask("GET", path, headers=headers)
    assert header(row, "Content-Encoding") == [coding]
    got = row["content_json"]
    assert got[key] is True
    assert got["headers"].get("Accept-Encoding") == accepted
    # the length is that of what came, not of what it was decoded to
    assert int(header(row, "Content-Length")[0]) != len(row["content"])


@BOTH
def test_utf8(ask: Asker) -> None:
    row = ask("GET", "/encoding/utf8")
    assert row["content_type"] == "text/html; charset=utf-8"
    assert row["content"].encode() == httpbins("UTF-8-demo.txt").removesuffix(b"\n")


@BOTH
@pytest.mark.parametrize(
    ("kind_of_image", "file"),
    [("png", "pig_icon.png"), ("jpeg", "jackal.jpg"), ("webp", "wolf_1.webp")],
)
def test_image(ask: Asker, kind_of_image: str, file: str) -> None:
    row = ask("GET", f"/image/{kind_of_image}")
    assert row["content"] is None
    assert bytes(row["content_bytes"]) == httpbins(f"images/{file}")
    assert row["content_type"] == f"image/{kind_of_image}"


def test_an_image_that_is_text(ask: Asker) -> None:
    row = ask("GET", "/image/svg")
    assert row["content"].encode() == httpbins("images/svg_logo.svg")
    assert row["content_bytes"] is None


@pytest.mark.parametrize(
    ("accept", "status", "content_type"),
    [
        (None, 200, "image/png"),  # which httpbin gives to whom sends no Accept
        ("image/webp", 200, "image/webp"),
        ("image/jpeg;q=0.5", 200, "image/jpeg"),
        ("text/plain", 406, "application/json"),
    ],
)
def test_accept(ask: Asker, accept: str | None, status: int, content_type: str) -> None:
    row = ask("GET", "/image", headers={"Accept": accept})
    assert (row["status_code"], row["content_type"]) == (status, content_type)


@BOTH
@pytest.mark.parametrize("route", ["bytes", "stream-bytes"])
@pytest.mark.parametrize("size", [0, 1, 2, 1000, 10 * 1024, 100 * 1024])
def test_bytes(ask: Asker, route: str, size: int) -> None:
    # httpbin draws them from the same generator
    expected = random.Random(size)
    row = ask("GET", f"/{route}/{size}", params={"seed": size, "chunk_size": 777})
    assert content(row) == bytes(expected.randint(0, 255) for _ in range(size))
    if size >= 1000:
        assert row["content_bytes"] is not None
    if size == 0:
        assert (row["content"], row["content_bytes"]) == (None, None)


@BOTH
@pytest.mark.parametrize("lines", [1, 100])
def test_stream(ask: Asker, lines: int) -> None:
    row = ask("GET", f"/stream/{lines}", params={"a": "é"})
    assert header(row, "Transfer-Encoding") == ["chunked"]
    got = [json.loads(line) for line in row["content"].splitlines()]
    assert [line["id"] for line in got] == list(range(lines))
    assert all(line["args"] == {"a": "é"} for line in got)


# --- Time -----------------------------------------------------------------------------------------
@BOTH
def test_drip(ask: Asker) -> None:
    row = ask("GET", "/drip", params={"duration": 0.3, "numbytes": 6, "code": 201, "delay": 0.1})
    assert (row["status_code"], row["content"]) == (201, "*" * 6)
    # a pause behind each of six bytes; it need not wait for the last one
    assert 100 <= row["first_byte_ms"] <= row["total_ms"]
    assert row["total_ms"] >= 340


@BOTH
def test_a_drip_ends_with_the_timeout(ask: Asker) -> None:
    row = ask("GET", "/drip", params={"duration": 30, "numbytes": 300}, timeout_milliseconds=300)
    # The part that has come by then is kept.
    assert (row["status_code"], row["timed_out"]) == (200, True)
    assert (row["content"] or "").strip("*") == ""
    assert row["error_msg"].startswith("Timeout of 300 ms reached. Total time: ")
    assert 299 <= row["total_ms"] < 5000


@BOTH
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_delay(ask: Asker, method: str) -> None:
    row = ask(method, "/delay/0.2", timeout_milliseconds=5000)
    assert (row["status_code"], row["timed_out"]) == (200, False)
    assert row["first_byte_ms"] >= 200
    row = ask(method, "/delay/10", timeout_milliseconds=200)
    assert (row["status_code"], row["timed_out"]) == (None, True)
    assert row["error_msg"].startswith("Timeout of 200 ms reached.")


def test_the_timeout_is_that_of_all_hops(ask: Asker) -> None:
    row = ask(
        "GET", "/redirect-to", params={"url": "/delay/10", "status_code": 302},
        timeout_milliseconds=250,
    )  # fmt: skip
    assert (row["timed_out"], row["redirects"]) == (True, 1)
    assert (row["status_code"], row["state"]) == (302, "failed")
    assert row["final_url"] == f"{ask.base}/delay/10"


def test_where_the_time_went(ask: Asker) -> None:
    row = ask("GET", "/delay/0.1")
    assert (row["http_version"], str(row["address"])) == ("1.1", "127.0.0.1")
    assert row["tls_ms"] == 0
    assert 0 <= row["name_ms"] <= row["total_ms"]
    assert 100 <= row["first_byte_ms"] <= row["total_ms"]


# --- Ranges, caches -------------------------------------------------------------------------------
ALPHABET = (string.ascii_lowercase * 40)[:1000]


@pytest.mark.parametrize(
    ("asked", "status", "told", "expected"),
    [
        (None, 200, "bytes 0-999/1000", ALPHABET),
        ("bytes=0-0", 206, "bytes 0-0/1000", "a"),
        ("bytes=10-19", 206, "bytes 10-19/1000", ALPHABET[10:20]),
        ("bytes=990-", 206, "bytes 990-999/1000", ALPHABET[990:]),
        ("bytes=-5", 206, "bytes 995-999/1000", ALPHABET[-5:]),
        ("bytes=2000-3000", 416, "bytes */1000", ""),
    ],
)
def test_range(ask: Asker, asked: str | None, status: int, told: str, expected: str) -> None:
    row = ask("GET", "/range/1000", params={"chunk_size": 77}, headers={"Range": asked})
    assert row["status_code"] == status
    assert header(row, "Content-Range") == [told]
    assert content(row) == expected.encode()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"If-None-Match": "one"}, 304),
        ({"If-None-Match": '"other"'}, 200),
        ({"If-None-Match": "*"}, 304),
        ({"If-Match": "one"}, 200),
        ({"If-Match": "other"}, 412),
    ],
)
def test_etag(ask: Asker, headers: Row, status: int) -> None:
    row = ask("GET", "/etag/one", headers=headers)
    assert row["status_code"] == status
    if status != 412:
        assert header(row, "ETag") == ["one"]
    assert (content(row) == b"") == (status != 200)


def test_cache(ask: Asker) -> None:
    row = ask("GET", "/cache")
    assert row["status_code"] == 200
    (modified,) = header(row, "Last-Modified")
    assert ask("GET", "/cache", headers={"If-Modified-Since": modified})["status_code"] == 304
    # nothing is cached here
    assert ask("GET", "/cache")["status_code"] == 200
    assert header(ask("GET", "/cache/60"), "Cache-Control") == ["public, max-age=60"]


# --- Redirects ------------------------------------------------------------------------------------
@BOTH
@pytest.mark.parametrize("route", ["redirect", "relative-redirect", "absolute-redirect"])
@pytest.mark.parametrize("hops", [1, 5])
def test_redirects(ask: Asker, route: str, hops: int) -> None:
    row = ask("GET", f"/{route}/{hops}", headers={"X-A": "b", "Authorization": "Basic eA=="})
    assert (row["status_code"], row["redirects"]) == (200, hops)
    assert row["final_url"] == f"{ask.base}/get"
    assert row["url"] == f"{ask.base}/{route}/{hops}"
    got = row["content_json"]
    assert (got["headers"]["X-A"], got["headers"]["Authorization"]) == ("b", "Basic eA==")


@pytest.mark.parametrize(
    ("hops", "options"), [(6, {}), (3, {"max_redirects": 2}), (6, {"max_redirects": 30})]
)
def test_too_many_redirects(ask: Asker, hops: int, options: Row) -> None:
    row = ask("GET", f"/relative-redirect/{hops}", options=options)
    assert row["error_msg"] == "Number of redirects hit maximum amount"
    assert (row["status_code"], row["state"]) == (302, "succeeded")
    assert (row["timed_out"], row["redirects"]) == (False, options.get("max_redirects", 5) % 25)


def test_a_redirect_that_is_the_answer(ask: Asker) -> None:
    row = ask("GET", "/relative-redirect/3", options={"max_redirects": 0})
    assert (row["status_code"], row["redirects"]) == (302, 0)
    assert header(row, "Location") == ["/relative-redirect/2"]
    assert row["final_url"] == row["url"]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_of_each_kind(ask: Asker, status: int, method: str) -> None:
    """RFC 9110, section 15.4: 303 makes a GET of all, 301 and 302 by custom of POST only."""
    row = ask(
        method,
        "/redirect-to",
        params={"url": "/anything/there", "status_code": status},
        headers={"X-A": "b", "Content-Language": "de"},
        body_bytes=NUL,
    )
    assert (row["status_code"], row["redirects"]) == (200, 1)
    assert row["final_url"] == f"{ask.base}/anything/there"
    # the row is that of the request that was made
    assert row["method"] == method
    got = row["content_json"]
    rewritten = status == 303 or (status in (301, 302) and method == "POST")
    assert got["method"] == ("GET" if rewritten else method)
    assert got["data"] == ("" if rewritten else data_url(NUL))
    kept = {"Content-Type": "application/octet-stream", "Content-Language": "de"}
    for name, value in kept.items():
        assert got["headers"].get(name) == (None if rewritten else value)
    assert got["headers"]["X-A"] == "b"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_of_a_head(ask: Asker, status: int) -> None:
    """The redirected request is a HEAD, too."""
    params = {"url": "/bytes/10", "status_code": status}
    row = ask.function("http_head", "/relative-redirect/1")
    assert (row["status_code"], row["redirects"], content(row)) == (200, 1, b"")
    row = ask.function("http_head", "/redirect-to", params=params)
    assert (row["status_code"], row["redirects"], content(row)) == (200, 1, b"")
    assert header(row, "Content-Length") == ["10"]


@pytest.mark.parametrize("status", [300, 304, 305, 306, 310, 399])
def test_a_location_that_is_none_to_follow(ask: Asker, status: int) -> None:
    row = ask("GET", "/redirect-to", params={"url": "/get", "status_code": status})
    assert (row["status_code"], row["redirects"]) == (status, 0)
    assert header(row, "Location") == ["/get"]


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/get?x=1", "/get?x=1"),
        ("get", "/get"),
        ("./anything/../get", "/get"),
        ("//HOST/get", "/get"),
        ("http://HOST/get", "/get"),
        ("HTTP://HOST/get", "/get"),
        ("/get#part", "/get"),
        ("/anything/ä b", "/anything/%C3%A4%20b"),
        ("/anything/%2e%2E/%2f", "/anything/%2e%2E/%2f"),
    ],
)
def test_where_a_location_points(ask: Asker, location: str, path: str) -> None:
    there = location.replace("HOST", ask.base.removeprefix("http://"))
    row = ask("GET", "/redirect-to?" + urlencode({"url": there}))
    assert (row["status_code"], row["redirects"]) == (200, 1)
    assert row["final_url"] == ask.base + path


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_another_origin_gets_no_headers(ask: Asker, status: int) -> None:
    elsewhere = ask.base.replace("127.0.0.1", "localhost")
    row = ask(
        "GET",
        "/redirect-to",
        params={"url": f"{elsewhere}/headers", "status_code": status},
        headers={
            "Authorization": "Bearer token",
            "Cookie": "a=b",
            "X-Api-Key": "key",
            "Referer": "http://a.example/",
            "Accept": "application/json",
            "Accept-Language": "de",
            "User-Agent": "me/1",
        },
    )
    assert row["final_url"] == f"{elsewhere}/headers"
    assert row["content_json"]["headers"] == {
        "Host": elsewhere.removeprefix("http://"),
        "Accept": "application/json",
        "Accept-Language": "de",
        "User-Agent": "me/1",
    }


@pytest.mark.parametrize(
    ("method", "status", "arrives"),
    [
        *[("POST", status, "GET") for status in (301, 302, 303)],
        *[("POST", status, None) for status in (307, 308)],
        *[("PUT", status, None) for status in (301, 302, 307, 308)],
        *[("DELETE", status, None) for status in (301, 302, 307, 308)],
        ("PUT", 303, "GET"),
        ("DELETE", 303, "GET"),
    ],
)
def test_another_origin_gets_no_body(
    ask: Asker, method: str, status: int, arrives: str | None
) -> None:
    elsewhere = ask.base.replace("127.0.0.1", "localhost")
    arguments = {} if method == "DELETE" else {"body": {"a": "secret"}}
    row = ask(
        method,
        "/redirect-to",
        params={"url": f"{elsewhere}/anything", "status_code": status},
        **arguments,
    )
    if arrives is None:
        assert row["error_msg"] == (
            f"redirect of a {method} request to another origin is not followed"
        )
    else:
        got = row["content_json"]
        assert (got["method"], got["data"]) == (arrives, "")
        assert "Content-Type" not in got["headers"]


@pytest.mark.parametrize(
    ("location", "error"),
    [
        ("file:///etc/passwd", "redirect to an invalid or unsupported URL"),
        ("ftp://127.0.0.1/", "redirect to an invalid or unsupported URL"),
        ("gopher://127.0.0.1:1/", "redirect to an invalid or unsupported URL"),
        ("javascript:alert(1)", "redirect to an invalid or unsupported URL"),
        ("http://a@127.0.0.1/", "redirect to an invalid or unsupported URL"),
        ("http:///get", "redirect to an invalid or unsupported URL"),
        ("http://%31/", "redirect to an invalid or unsupported URL"),
        ("http://10.0.0.1/", "10.0.0.1 is a private address and not allowed"),
        ("http://169.254.169.254/latest/", "169.254.169.254 is "),
        ("http://[fe80::1]/", "fe80::1 is "),
        ("http://127.0.0.1:22/", "127.0.0.1: port 22 is not allowed"),
    ],
)
def test_where_a_redirect_may_not_go(ask: Asker, location: str, error: str) -> None:
    row = ask("GET", "/redirect-to", params={"url": location})
    assert error in row["error_msg"]
    assert (row["status_code"], row["content"], row["timed_out"]) == (302, None, False)


@pytest.mark.parametrize("location", ["", " "])
def test_a_location_without_a_word(ask: Asker, location: str) -> None:
    row = ask("GET", "/redirect-to", params={"url": location})
    assert (row["status_code"], row["redirects"]) == (302, 0)


# --- Cookies and headers --------------------------------------------------------------------------
@BOTH
def test_cookies_are_not_kept(ask: Asker) -> None:
    row = ask("GET", "/cookies/set/a/b")
    assert row["final_url"] == f"{ask.base}/cookies"
    assert row["content_json"] == {"cookies": {}}
    assert ask("GET", "/cookies")["content_json"] == {"cookies": {}}


def test_cookies_are_told(ask: Asker) -> None:
    params = {"b": "1", "a": "2", "c": "3"}
    row = ask("GET", "/cookies/set?b=1&a=2&c=3", options={"max_redirects": 0})
    assert [value.partition(";")[0] for value in header(row, "Set-Cookie")] == [
        f"{name}={value}" for name, value in params.items()
    ]
    assert row["headers"]["Set-Cookie"].startswith("c=3")
    row = ask("GET", "/cookies/delete?a=&b=", options={"max_redirects": 0})
    assert len(header(row, "Set-Cookie")) == 2


def test_the_callers_own_cookies(ask: Asker) -> None:
    headers = {"Cookie": "a=b; c=d"}
    assert ask("GET", "/cookies", headers=headers)["content_json"] == {
        "cookies": {"a": "b", "c": "d"}
    }
    # Cookies that the server has set are not kept; the caller's own go along on the same origin.
    row = ask("GET", "/cookies/set/e/f", headers=headers)
    assert row["content_json"] == {"cookies": {"a": "b", "c": "d"}}
    assert ask("GET", "/cookies")["content_json"] == {"cookies": {}}


@BOTH
def test_response_headers(ask: Asker) -> None:
    row = ask(
        "GET",
        "/response-headers?" + "X-A=1&Set-Cookie=a%3D1&X-A=2&X-B=&Set-Cookie=b%3D2&x-a=3&X-A=" +
        quote("é, \"q\";  x"),
    )  # fmt: skip
    assert header(row, "X-A") == ["1", "2", "é, \"q\";  x", "3"] or header(row, "X-A") == [
        "1", "2", "3", "é, \"q\";  x"
    ]  # fmt: skip
    assert header(row, "Set-Cookie") == ["a=1", "b=2"]
    assert header(row, "X-B") == [""]
    assert row["headers"]["Set-Cookie"] == "b=2"
    assert row["headers"]["X-B"] == ""
    # names as they were sent
    assert "Set-Cookie" in row["headers"]
    assert ["Content-Type", "application/json"] in row["header_list"]


# --- Pages ----------------------------------------------------------------------------------------
@BOTH
def test_json(ask: Asker) -> None:
    row = ask("GET", "/json")
    assert row["content_json"]["slideshow"]["title"] == "Sample Slide Show"
    assert row["content_json"] == json.loads(row["content"])


@pytest.mark.parametrize(
    ("path", "content_type", "part"),
    [
        ("/xml", "application/xml", "<slideshow"),
        ("/html", "text/html; charset=utf-8", "Herman Melville"),
        ("/robots.txt", "text/plain", "Disallow: /deny"),
        ("/deny", "text/plain", "YOU SHOULDN'T BE HERE"),
        ("/forms/post", "text/html; charset=utf-8", "<form"),
        ("/base64/SFRUUEJJTiBpcyBhd2Vzb21l", "text/html; charset=utf-8", "HTTPBIN is awesome"),
        ("/base64/4pyT", "text/html; charset=utf-8", "✓"),
    ],
)
def test_page(ask: Asker, path: str, content_type: str, part: str) -> None:
    row = ask("GET", path)
    assert (row["status_code"], row["content_type"]) == (200, content_type)
    assert part in row["content"]
    assert row["content_json"] is None


def test_links(ask: Asker) -> None:
    row = ask("GET", "/links/5")
    assert row["final_url"] == f"{ask.base}/links/5/0"
    assert row["content"].count("<a href") == 4


def test_ip_and_uuid(ask: Asker) -> None:
    assert ask("GET", "/ip")["content_json"] == {"origin": "127.0.0.1"}
    assert len({ask("GET", "/uuid")["content_json"]["uuid"] for _ in range(3)}) == 3


@BOTH
def test_all_at_once(ask: Asker) -> None:
    """A hundred routes in one statement: each answer stands with its own request."""
    ids = ask.database.rows(
        "select net.http_request('POST', %s || '/anything/' || n, body => to_jsonb(n),"
        " context => to_jsonb(n)) from generate_series(1, 100) n",
        ask.base,
    )
    if ask.drains:
        ask.database.execute("call net.drain()")
    outcomes = ask.database.rows(
        "select id, status_code from net.wait_all(%s, '30 s')", [id for (id,) in ids]
    )
    assert outcomes == [(id, 200) for (id,) in ids]
    rows = ask.database.rows(
        "select url, content_json->>'url', content_json->'json', context"
        " from net.responses where id = any(%s) order by id",
        [id for (id,) in ids],
    )
    assert rows == [
        (f"{ask.base}/anything/{n}", f"{ask.base}/anything/{n}", n, n) for n in range(1, 101)
    ]
