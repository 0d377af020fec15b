"""The caller's check against the case file, and what the file cannot say.

The case file holds calls of net.http_get, net.http_request and their kin with their row or error.
For an argument of type jsonb, a string in the file is the text of the jsonb, any other value its
JSON. Cases marked as only for SQL need jsonb itself. ``hides`` are words that an error must not
show.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pgnet.request.check import check as check_request
from pgnet.request.errors import InvalidRequest
from pgnet.request.headers import flatten_headers
from pgnet.request.json_text import jsonb_text
from pgnet.request.params import add_params, encode_url_with_params_array, urlencode_string
from pgnet.request.url import MAX_URL_LENGTH, canonical_url

CASES: list[dict[str, Any]] = json.loads(
    Path(__file__).parents[1].joinpath("cases/requests.json").read_text(encoding="utf-8")
)


def jsonb(value: object) -> str | None:
    """Return an argument of the case file as the text that PL/Python would hand over."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def run(case: dict[str, Any]) -> str:
    args = case["args"]
    beyond = case["call"] in ("http_request", "http_put", "http_patch", "http_head")
    return check_request(
        args.get("method", case["call"].removeprefix("http_")).upper(),
        args["url"],
        jsonb(args.get("params", {})),
        jsonb(args.get("headers", {})),
        args.get("timeout_milliseconds"),
        (jsonb(args.get("options")) or "{}") if beyond else None,
        [] if beyond else None,
    )


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case["name"]) for case in CASES if "row" in case and "only" not in case],
)
def test_row(case: dict[str, Any]) -> None:
    url = run(case)
    assert url == case["row"].get("url", url)
    assert canonical_url(url) == url


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case["name"])
        for case in CASES
        if "error" in case and case.get("only") != "sql"
    ],
)
def test_error(case: dict[str, Any]) -> None:
    expected = case["error"]
    with pytest.raises(InvalidRequest) as caught:
        run(case)
    error = caught.value
    assert error.message == expected.get("message", error.message)
    assert expected.get("contains", "") in error.message
    assert error.sqlstate == expected["sqlstate"]
    assert expected.get("hint_contains", "") in (error.hint or "")
    for secret in expected.get("hides", ()):
        assert secret not in f"{error.message} {error.hint}"


def test_case_file_is_well_formed() -> None:
    known = {"url", "body", "params", "headers", "timeout_milliseconds"}
    beyond = {"method", "body_text", "body_form", "body_bytes", "context", "options"}
    columns = {"method", "url", "headers", "body", "timeout_milliseconds"}
    columns |= {"body_hex", "priority", "context", "options"}
    columns |= {"not_before", "not_after", "unique_key"}
    functions = {"http_get", "http_post", "http_delete", "http_put", "http_patch", "http_head"}
    details = {"message", "contains", "sqlstate", "hint_contains", "hides"}
    for case in CASES:
        assert case.get("only", "sql") == "sql"
        assert case["call"] in functions | {"http_request"}
        assert set(case["args"]) <= known | beyond, case["name"]
        assert ("row" in case) != ("error" in case), case["name"]
        assert set(case.get("row", ())) <= columns, case["name"]
        assert set(case.get("error", ())) <= details, case["name"]
    names = [case["name"] for case in CASES]
    assert len(names) == len(set(names))


# --- What no SQL call can hand over, since jsonb and text exclude it ------------------------------


@pytest.mark.parametrize("argument", ["params", "headers"])
@pytest.mark.parametrize(
    "text", ["", "{", "{} {}", "nul", '{"a": NaN}', '{"a": Infinity}', "\ud800"]
)
def test_not_json(argument: str, text: str) -> None:
    given = {"params": "{}", "headers": "{}", argument: text}
    with pytest.raises(InvalidRequest, match=f"{argument} is not valid JSON"):
        check_request("GET", "http://localhost/", given["params"], given["headers"], None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (r'{"a": "\u0000"}', "a parameter must not contain a NUL character"),
        (r'{"\u0000": "a"}', "a parameter must not contain a NUL character"),
        (r'{"a": "\ud800"}', "a parameter must not contain an unpaired surrogate"),
        (r'{"a": ["\ud800"]}', "a parameter must not contain an unpaired surrogate"),
    ],
)
def test_params_that_no_text_holds(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_request("GET", "http://localhost/", text, None, None)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (r'{"X-A": "\u0000"}', 'header "X-A" contains a NUL character'),
        (r'{"X-A": "\ud800"}', 'header "X-A" contains the character U+D800'),
        (r'{"X\u0000": "a"}', 'invalid header name "X...": a NUL character is not allowed in it'),
    ],
)
def test_headers_that_no_text_holds(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_request("GET", "http://localhost/", None, text, None)
    assert caught.value.message == message


@pytest.mark.parametrize("part", ["/", "/?", "/#"])
@pytest.mark.parametrize("code_point", [0, 0xD800, 0xDFFF])
def test_urls_that_no_text_holds(part: str, code_point: int) -> None:
    with pytest.raises(InvalidRequest, match="is not allowed in its"):
        canonical_url(f"http://localhost{part}{chr(code_point)}")


@pytest.mark.parametrize("argument", ["params", "headers"])
def test_deep_nesting_is_an_error_of_its_own(argument: str) -> None:
    deep = '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"
    given = {"params": "{}", "headers": "{}", argument: deep}
    with pytest.raises(InvalidRequest, match=f"{argument} is nested too deeply"):
        check_request("GET", "http://localhost/", given["params"], given["headers"], None)


def test_nesting_deeper_than_python_calls() -> None:
    value: object = "x"
    depth = sys.getrecursionlimit() + 100
    for _ in range(depth):
        value = [value]
    assert jsonb_text(value) == "[" * depth + '"x"' + "]" * depth


def test_a_url_longer_than_libcurl_takes() -> None:
    url = "http://localhost/".ljust(MAX_URL_LENGTH, "a")
    assert canonical_url(url) == url
    with pytest.raises(InvalidRequest, match="it is longer than 400000 characters"):
        canonical_url(url + "a")
    with pytest.raises(InvalidRequest, match="it is longer than 400000 characters"):
        add_params(url, {"a": "b"})


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/" + "a" * 200_000 + "\n.",
        "http://localhost/" + "%41" * 100_000 + "%\n.",
        "http://localhost/" + "%" * 350_000,
        " " * 500_000 + "http://localhost/",
        "http://" + "a." * 100_000 + "/",
        "http://" + "a" * 200_000,
        "http://" + "ü" * 200_000,
        "http://[" + ":" * 200_000,
        "@" * 200_000,
        "a:" * 100_000,
    ],
    ids=lambda url: url[:20],
)
def test_no_url_takes_long(url: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        canonical_url(url)
    assert len(caught.value.message) < 300


# --- Functions by themselves ----------------------------------------------------------------------


def test_flatten_headers() -> None:
    headers: dict[str, object] = {
        "X-Text": " \ta b\t ",
        "X-None": None,
        "X-Many": ["a", None, 2, True],
        "X-No-One": [],
        "X-Number": 1.5,
        "X-Large": 10**40,
        "X-Yes": True,
        "x-text": "again",
    }
    assert flatten_headers(headers) == [
        ("X-Text", "a b"),
        ("X-Many", "a"),
        ("X-Many", "2"),
        ("X-Many", "true"),
        ("X-Number", "1.5"),
        ("X-Large", "1" + "0" * 40),
        ("X-Yes", "true"),
        ("x-text", "again"),
    ]


def test_a_content_type_of_null_is_none() -> None:
    check = check_request("POST", "http://localhost/", None, '{"Content-Type": null}', None)
    assert check == "http://localhost/"


@pytest.mark.parametrize(
    ("string", "encoded"),
    [
        (None, None),
        ("", ""),
        ("abc", "abc"),
        ("a b", "a%20b"),
        ("a/b?c=d&e", "a%2Fb%3Fc%3Dd%26e"),
        ("-._~", "-._~"),
        ("%", "%25"),
        ("é", "%C3%A9"),
        ("²", "%C2%B2"),
    ],
)
def test_urlencode_string(string: str | None, encoded: str | None) -> None:
    assert urlencode_string(string) == encoded


@pytest.mark.parametrize(
    ("url", "params", "complete"),
    [
        (None, None, None),
        ("http://localhost", None, None),
        (None, ["a=1"], None),
        ("http://localhost", [], "http://localhost/"),
        ("http://localhost", ["a=1", None, "b=%20"], "http://localhost/?a=1&b=%20"),
        ("http://localhost/?x", ["a=1"], "http://localhost/?x&a=1"),
        ("http://localhost/#f", ["a=é"], "http://localhost/?a=%C3%A9#f"),
        ("http://localhost/?", [None, ""], "http://localhost/?"),
        ("http://localhost/", ["a b=[", "c#=%"], "http://localhost/?a%20b=%5B&c%23=%25"),
    ],
)
def test_encode_url_with_params_array(
    url: str | None, params: list[str | None] | None, complete: str | None
) -> None:
    assert encode_url_with_params_array(url, params) == complete


@pytest.mark.parametrize("pair", ["a\tb", "a=\x7f", "\n", "\ud800"])
def test_encode_url_with_params_array_refuses(pair: str) -> None:
    with pytest.raises(InvalidRequest, match="in an element of params_array"):
        encode_url_with_params_array("http://localhost", [pair])
    with pytest.raises(InvalidRequest, match="invalid URL"):
        encode_url_with_params_array("localhost", ["a=b"])


def test_the_import_is_small() -> None:
    """The check runs in every caller's backend: it imports json and re, and what these import."""
    code = "import __future__, sys, json, re; before = set(sys.modules); "
    code += "import pgnet.request.check; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rules = {"check", "errors", "headers", "json_text", "options", "params"}
    rules |= {"secret_reference", "url"}
    expected = {"pgnet", "pgnet.request", *(f"pgnet.request.{name}" for name in rules)}
    assert set(done.stdout.split()) == expected
