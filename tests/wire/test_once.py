"""What may go out once only goes out once, whatever the server does with its connections."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import httpd
from misbehaviour import FINE
from wire.keeper import Keeper
from wire.support import Client

METHODS = ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "POST", "PATCH"]


@pytest.mark.parametrize("method", METHODS)
def test_each_has_a_connection_of_its_own(
    client: Client, server: httpd.Running, method: str
) -> None:
    server.reset()
    for number in range(6):
        assert client(server.url + "/x", method, once=number % 2 == 0).error is None
    record = [entry["connection"] for entry in server.record()]
    # nor does anybody else use it afterwards
    assert len(set(record)) == 4
    assert len({record[1], record[3], record[5]}) == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_connection_that_ends_without_an_answer_is_the_end(
    client: Client, keeper: Callable[..., Keeper], method: str
) -> None:
    server = keeper(None)
    for number in range(10):
        answer = client(server.url, method, once=True)
        assert len(server.arrived) == number + 1
        assert answer.error is not None
        assert answer.error.message == "Server returned nothing (no headers, no data)"
        assert (answer.error.kind, answer.error.possibly_sent) == ("connection", True)


@pytest.mark.parametrize("method", METHODS)
def test_no_kept_connection_is_used(
    client: Client, keeper: Callable[..., Keeper], method: str
) -> None:
    """Of requests that go either way: those that may be repeated keep theirs."""
    server = keeper(FINE, None)
    for _ in range(10):
        assert client(server.url).error is None
        assert client(server.url, method, once=True).error is None
    assert [m for _, m, _ in server.arrived].count(method) >= 10
