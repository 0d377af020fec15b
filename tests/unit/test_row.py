"""A row of the queue is read once: what comes of it, and which secrets it names."""

from __future__ import annotations

import json

import pytest

from pgnet.outbox import Claim, Secret
from pgnet.request.errors import InvalidRequest
from pgnet.request.headers import MAX_HEADERS_LENGTH
from pgnet.request.row import read_row
from pgnet.request.secret_reference import MAX_SECRETS, Reference
from pgnet.worker.assemble import assemble, read

URL = "https://api.example/v1/x"
PREFIX = "https://api.example/"


def reference(name: str, prefix: str | None = None) -> dict[str, str]:
    return {"secret": name} if prefix is None else {"secret": name, "prefix": prefix}


def claim(url: str = URL, headers: object = None, options: object = None, **more: object) -> Claim:
    given = {
        "id": 1, "token": "", "attempt": 1, "lost": 0, "method": "GET", "url": url, "body": None,
        "headers": None if headers is None else json.dumps(headers),
        "options": None if options is None else json.dumps(options),
        "timeout_milliseconds": 1000, "host": "api.example", "revision": 0, "age": 0.0,
        "idempotency_key": None, **more,
    }  # fmt: skip
    return Claim(**given)  # type: ignore[arg-type]


def test_a_row_without_secrets() -> None:
    row = read_row(
        "HTTPS://api.example", '{"X-A": ["1", 2]}', 5, '{"priority": 3, "retry": "safe"}'
    )
    assert row.url == "https://api.example/"
    assert row.headers == [("X-A", "1"), ("X-A", "2")]
    assert row.options == {"priority": 3, "retry": "safe"}
    assert (row.secret_url, row.secrets, row.fault) == (None, [], None)


def test_the_secrets_that_a_row_names() -> None:
    headers = {"X-A": [reference("b"), "plain", reference("c", "Bearer ")], "X-B": reference("b")}
    row = read_row("https://api.example/{secret:a}?q", json.dumps(headers), 5, None)
    assert row.secrets == ["a", "b", "c"]
    assert row.secret_url is not None
    assert (row.secret_url.name, row.secret_url.query) == ("a", "?q")
    values = [value for _name, value in row.headers]
    assert values[1] == "plain"
    third = values[2]
    assert isinstance(third, Reference)
    assert (third.name, third.prefix) == ("c", "Bearer ")
    names = [reference(f"s{n}") for n in range(MAX_SECRETS + 1)]
    with pytest.raises(InvalidRequest, match=f"a request names at most {MAX_SECRETS} secrets"):
        read_row(URL, json.dumps({"X-A": names}), 5, None)
    assert len(read_row(URL, json.dumps({"X-A": names[1:]}), 5, None).secrets) == MAX_SECRETS


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (claim("ftp://api.example/"), "Unsupported URL scheme"),
        (claim(headers={"Host": "x"}), 'header "Host" is not allowed'),
        (claim(headers={"X-A": {"prefix": "x"}}), "must not be an object"),
        (claim(options={"unheard": 1}), 'unknown option "unheard"'),
        (claim(timeout_milliseconds=0), "timeout_milliseconds must be greater than 0"),
        (claim(fault="unreadable"), "unreadable"),
    ],
)
def test_a_row_that_cannot_be_sent(given: Claim, fault: str) -> None:
    row = read(given)
    assert row.fault is not None
    assert fault in row.fault
    with pytest.raises(InvalidRequest) as caught:
        assemble(given, row, {}, None)
    assert caught.value.message == row.fault


def test_a_fault_of_ours_is_one_of_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("pgnet.worker.assemble.read_row", broken)
    assert read(claim()).fault == "internal error of the worker (RuntimeError)"


def test_what_is_sent_with_secrets() -> None:
    given = claim(headers={"X-A": reference("k", "Bearer "), "X-B": ["plain", reference("k")]})
    secrets = {"k": Secret("k", "value of it", PREFIX, None)}
    made = assemble(given, read(given), secrets, None, key_header=("Idempotency-Key", "1"))
    assert made.request.fields == [
        ("X-A", "Bearer value of it"), ("X-B", "plain"), ("X-B", "value of it"),
        ("Idempotency-Key", "1"),
    ]  # fmt: skip
    assert made.bound == {"x-a": PREFIX, "x-b": PREFIX}
    assert made.may_follow is not None
    assert not made.may_follow("https://other.example/value%20of%20it")


def test_a_secret_that_may_not_be_sent() -> None:
    given = claim(headers={"X-A": reference("k")})
    row = read(given)
    for secrets, message in (
        ({}, 'the database did not give the worker the secret "k"'),
        ({"k": Secret("k", None, PREFIX, "no right")}, "no right"),
        ({"k": Secret("k", None, PREFIX, None)}, 'secret "k" is held by workers'),
        ({"k": Secret("k", "long enough", "https://b.example/", None)}, "is bound to https://b."),
        # With the values of secrets the headers are longer.
        ({"k": Secret("k", "v" * MAX_HEADERS_LENGTH, PREFIX, None)}, "the headers are longer than"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            assemble(given, row, secrets, None)
        assert message in caught.value.message
