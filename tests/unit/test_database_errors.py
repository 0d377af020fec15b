"""Errors of the database: their meaning to a worker, and their words in the log."""

from __future__ import annotations

import pytest

from pgnet.outbox import OutboxFailed, OutboxUnregistered, ends_session, translate_error
from pgnet.worker.backoff import Backoff


@pytest.mark.parametrize(
    ("sqlstate", "words", "brief"),
    [
        ("53100", "disk of the database server is full", False),
        ("53200", "out of memory", False),
        ("53400", "lacks a resource", False),
        ("42501", "select net.grant_worker(", False),
        ("55P03", "pg_blocking_pids", True),
        ("40P01", "it happened", True),
        ("40001", "it happened", True),
        ("57014", "statement_timeout", False),
        ("25006", "standby", False),
        ("58030", "file system", False),
        ("42703", "it happened", False),
        ("22021", "it happened", False),
    ],
)
def test_each_error_has_its_words(sqlstate: str, words: str, brief: bool) -> None:
    error = translate_error(sqlstate, "it happened.", None, lambda: False)
    assert isinstance(error, OutboxFailed)
    assert words in str(error)
    assert str(error).startswith("it happened")
    assert ".." not in str(error)
    assert error.brief == brief
    assert not ends_session(sqlstate)


@pytest.mark.parametrize("sqlstate", ["57P01", "57P02", "57P03", "57P05", "25P03", "08006"])
def test_these_end_the_session(sqlstate: str) -> None:
    assert ends_session(sqlstate)


@pytest.mark.parametrize("sqlstate", ["3F000", "42883", "42P01", "XX000"])
def test_an_extension_that_is_gone(sqlstate: str) -> None:
    assert isinstance(
        translate_error(sqlstate, "no schema", None, lambda: True), OutboxUnregistered
    )
    assert isinstance(translate_error(sqlstate, "no schema", None, lambda: False), OutboxFailed)


def test_the_log_says_it_once(caplog: pytest.LogCaptureFixture) -> None:
    backoff = Backoff("claiming")
    for _ in range(20):
        backoff.failed(OutboxFailed("no room"))
    backoff.failed(OutboxFailed("no memory"))
    backoff.succeeded()
    backoff.succeeded()
    assert [record.getMessage() for record in caplog.records] == [
        "claiming fails, and is tried again: no room",
        "claiming fails, and is tried again: no memory",
        "claiming works again",
    ]
    caplog.clear()
    backoff.failed(OutboxFailed("a lock", brief=True))
    backoff.succeeded()
    assert caplog.records == []
