"""Requests made by SQL arrive at httpbin as asked for: arguments, bodies, headers, passwords."""

from __future__ import annotations

import base64
import json

import psycopg
import pytest
from psycopg.types.json import Jsonb

import pgnet
from servers.asker import BOTH, NUL, Asker, Row, data_url, header


# --- Methods and bodies ---------------------------------------------------------------------------
@BOTH
@pytest.mark.parametrize(
    ("function", "method", "path"),
    [
        ("http_get", "GET", "/get"),
        ("http_post", "POST", "/post"),
        ("http_put", "PUT", "/put"),
        ("http_patch", "PATCH", "/patch"),
        ("http_delete", "DELETE", "/delete"),
    ],
)
def test_each_function(ask: Asker, function: str, method: str, path: str) -> None:
    has_body = method not in ("GET", "DELETE")
    body = {"body": {"a": [1, "ä"]}} if has_body else {}
    row = ask.function(function, path, params={"x": "1 2"}, headers={"X-A": "é"}, **body)
    assert (row["status_code"], row["method"]) == (200, method)
    got = row["content_json"]
    assert got["args"] == {"x": "1 2"}
    assert got["url"] == f"{ask.base}{path}?x=1%202"
    assert got["headers"]["X-A"].encode("latin-1").decode() == "é"
    if has_body:
        assert got["json"] == {"a": [1, "ä"]}
        assert got["headers"]["Content-Type"] == "application/json"


def test_delete_with_a_body(ask: Asker) -> None:
    row = ask.function("http_delete", "/delete", body={"a": 1})
    assert row["content_json"]["json"] == {"a": 1}


@BOTH
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    ("arguments", "content_type", "body", "shown"),
    [
        pytest.param({}, None, "", {"data": "", "form": {}, "json": None}, id="none"),
        pytest.param(
            {"body": {"a": [1.5, None, "ß"]}},
            "application/json",
            '{"a": [1.5, null, "ß"]}',
            {"json": {"a": [1.5, None, "ß"]}},
            id="JSON",
        ),
        pytest.param(
            {"body_text": "Größe: 1 €\r\n"},
            "text/plain; charset=utf-8",
            "Größe: 1 €\r\n",
            {"data": "Größe: 1 €\r\n"},
            id="text",
        ),
        pytest.param(
            {"body_form": {"a": "1 & 2", "b": ["x", "y"], "c": None, "ü": True}},
            "application/x-www-form-urlencoded",
            "a=1+%26+2&b=x&b=y&%C3%BC=true",
            {"form": {"a": "1 & 2", "b": ["x", "y"], "ü": "true"}, "data": ""},
            id="form",
        ),
        pytest.param(
            {"body_bytes": NUL},
            "application/octet-stream",
            NUL,
            {"data": data_url(NUL), "json": None},
            id="bytes",
        ),
        pytest.param(
            {"body_bytes": b""}, "application/octet-stream", "", {"data": ""}, id="no bytes"
        ),
        pytest.param(
            {"body_bytes": b"<a/>", "headers": {"content-type": "application/xml"}},
            "application/xml",
            "<a/>",
            {"data": "<a/>"},
            id="a type of one's own",
        ),
    ],
)
def test_anything(
    ask: Asker,
    method: str,
    arguments: Row,
    content_type: str | None,
    body: str | bytes,
    shown: Row,
) -> None:
    row = ask(method, "/anything/a/b", params={"q": ["1", "2"]}, **arguments)
    assert row["status_code"] == 200
    got = row["content_json"]
    assert got["method"] == method
    assert got["args"] == {"q": '["1", "2"]'}
    assert {name: got[name] for name in shown} == shown
    expected = {"Host": ask.base[7:], "User-Agent": f"pgnet/{pgnet.__version__}"}
    if content_type is not None:
        expected["Content-Type"] = content_type
    # waitress tells of a Content-Length of 0 as of none
    if body:
        expected["Content-Length"] = str(len(body if isinstance(body, bytes) else body.encode()))
    assert {
        k: v for k, v in got["headers"].items() if (k, v) != ("Content-Length", "0")
    } == expected


@BOTH
def test_multipart(ask: Asker) -> None:
    parts = [
        {"name": "title", "value": 'Tee "x"; ü'},
        {"name": "meta", "json": {"a": [1, None]}},
        {"name": "file", "filename": "tee ü.bin", "file": 1},
        {"name": "text", "filename": "b.txt", "content_type": "text/plain", "file": 2},
        {"name": "raw", "filename": "c", "base64": base64.b64encode(b"\0\r\n--").decode()},
    ]
    files = [NUL * 40, "zwei ✓".encode()]
    row = ask.select(
        "select net.http_request('POST', %(url)s, body_bytes => m.body,"
        " headers => jsonb_build_object('Content-Type', m.content_type))"
        " from net.multipart(%(parts)s, %(files)s) m",
        {"url": f"{ask.base}/anything", "parts": Jsonb(parts), "files": files},
    )
    # jsonb cannot hold the NUL that httpbin shows
    assert row["content_json"] is None
    got = json.loads(row["content"])
    assert got["form"] == {"title": 'Tee "x"; ü', "meta": '{"a": [1, null]}'}
    assert got["files"] == {
        "file": data_url(NUL * 40),
        "text": "zwei ✓",
        "raw": "\0\r\n--",
    }
    assert got["headers"]["Content-Type"].startswith("multipart/form-data; boundary=")


@BOTH
@pytest.mark.parametrize("path", ["/get", "/image/png", "/gzip", "/stream/3", "/bytes/1000"])
def test_head(ask: Asker, path: str) -> None:
    row = ask.function("http_head", path)
    assert (row["status_code"], row["content"], row["content_bytes"]) == (200, None, None)
    assert header(row, "Content-Type") != []
    if path != "/stream/3":
        assert int(header(row, "Content-Length")[0]) > 0


def test_options(ask: Asker) -> None:
    row = ask("OPTIONS", "/anything")
    assert row["status_code"] == 200
    assert {"GET", "POST", "OPTIONS"} <= set(header(row, "Allow")[0].split(", "))
    assert "PATCH" in header(row, "Access-Control-Allow-Methods")[0]


@pytest.mark.parametrize("method", ["PROPFIND", "query", "X-Y", "POST"])
def test_a_method_that_is_not_there(ask: Asker, method: str) -> None:
    row = ask(method, "/get")
    assert (row["status_code"], row["method"]) == (405, method.upper())
    assert "GET" in header(row, "Allow")[0]


@pytest.mark.parametrize(
    ("given", "args"),
    [
        ({"a": "1", "b": ""}, {"a": "1", "b": ""}),
        ({"a": "x&y=z#?/", "+": "+ %20"}, {"a": "x&y=z#?/", "+": "+ %20"}),
        ({"ü": "✓", "n": None, "f": 1.50, "t": True}, {"ü": "✓", "f": "1.5", "t": "true"}),
    ],
)
def test_params(ask: Asker, given: Row, args: Row) -> None:
    row = ask("GET", "/get?a=0#part", params=given)
    assert row["content_json"]["args"] == args | {"a": ["0", args["a"]] if "a" in args else "0"}


def test_headers(ask: Asker) -> None:
    """The client adds no headers of its own but these."""
    assert ask("GET", "/headers")["content_json"]["headers"] == {
        "Host": ask.base.removeprefix("http://"),
        "User-Agent": f"pgnet/{pgnet.__version__}",
    }
    row = ask("GET", "/headers", headers={"X-N": 1.50, "X-T": True, "X-L": ["a", "b"], "X-0": None})
    got = row["content_json"]["headers"]
    assert {name: got.get(name) for name in ("X-N", "X-T", "X-L", "X-0")} == {
        "X-N": "1.5", "X-T": "true", "X-L": "a, b", "X-0": None,
    }  # fmt: skip


@pytest.mark.parametrize("agent", [None, "me/1", "Mozilla/5.0 (X11; é)"])
def test_user_agent(ask: Asker, agent: str | None) -> None:
    row = ask("GET", "/user-agent", headers={"user-agent": agent})
    got = row["content_json"]["user-agent"].encode("latin-1").decode()
    assert got == (agent or f"pgnet/{pgnet.__version__}")


# --- Authentication -------------------------------------------------------------------------------
@pytest.mark.parametrize(("route", "refusal"), [("basic-auth", 401), ("hidden-basic-auth", 404)])
def test_basic_auth(ask: Asker, route: str, refusal: int) -> None:
    path = f"/{route}/user/pass-word-1"
    assert ask("GET", path)["status_code"] == refusal
    right = base64.b64encode(b"user:pass-word-1").decode()
    row = ask("GET", path, headers={"Authorization": f"Basic {right}"})
    assert row["content_json"] == {"authenticated": True, "user": "user"}
    wrong = base64.b64encode(b"user:other").decode()
    row = ask("GET", path, headers={"Authorization": f"Basic {wrong}"})
    assert row["status_code"] == refusal


@BOTH
def test_basic_auth_by_a_secret(ask: Asker) -> None:
    encoded = base64.b64encode(b"user:pass-word-2").decode()
    ask.database.execute(
        "select net.set_secret('basic', %s, %s)", encoded, f"{ask.base}/basic-auth/user"
    )
    headers = {"Authorization": {"secret": "basic", "prefix": "Basic "}}
    row = ask("GET", "/basic-auth/user/pass-word-2", headers=headers)
    assert row["content_json"] == {"authenticated": True, "user": "user"}
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="bound to"):
        ask("GET", "/headers", headers=headers)


@BOTH
def test_bearer_by_a_secret(ask: Asker) -> None:
    """httpbin gives the token back: it is masked."""
    assert ask("GET", "/bearer")["status_code"] == 401
    ask.database.execute(
        "select net.set_secret('bearer', 'canary-bearer-token', %s)", f"{ask.base}/"
    )
    headers = {"Authorization": {"secret": "bearer", "prefix": "Bearer "}}
    row = ask("GET", "/bearer", headers=headers)
    assert row["content_json"] == {"authenticated": True, "token": "***"}
    row = ask("GET", "/redirect-to", params={"url": "/bearer"}, headers=headers)
    assert row["content_json"] == {"authenticated": True, "token": "***"}
    # never to another origin
    elsewhere = ask.base.replace("127.0.0.1", "localhost")
    row = ask("GET", "/redirect-to", params={"url": f"{elsewhere}/bearer"}, headers=headers)
    assert row["status_code"] == 401
    tables = ("net.http_request_queue", "net._http_response", "pgnet.failed")
    for table in tables:
        assert ask.database.value(
            f"select count(*) from {table} t where t::text like '%%canary-bearer%%'"
        ) == 0  # fmt: skip


def test_digest_auth_is_not_ours(ask: Asker) -> None:
    row = ask("GET", "/digest-auth/auth/user/passwd")
    assert row["status_code"] == 401
    assert header(row, "WWW-Authenticate")[0].startswith("Digest ")
