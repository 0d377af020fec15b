"""The worker's configuration: what a heartbeat reads, and what of it has changed."""

from __future__ import annotations

from typing import Any

import pytest

from pgnet.outbox import WorkerState
from pgnet.worker import open_files
from pgnet.worker.configuration import Configuration

SETTINGS = {
    "max_response_bytes": 1000,
    "max_wire_bytes": 2000,
    "max_header_bytes": 3000,
    "max_redirects": 4,
    "connect_timeout_milliseconds": 1500,
    "timeout_milliseconds": 5000,
    "max_timeout": 60,
    "batch_size": 200,
    "concurrency": 300,
    "max_grace": 30,
    "server_encoding": "UTF8",
}


def state(settings: dict[str, Any] | None = None, **changes: Any) -> WorkerState:
    values: dict[str, Any] = {
        "settings": SETTINGS | (settings or {}),
        "egress": {"networks": []},
        "hosts": {},
        "policies": {},
        "revision": 7,
        "generation": 3,
        "mode": "on",
        "quarantined": False,
        "dropped": [],
        "next_poll": 1.0,
    }
    return WorkerState(**values | changes)


def test_before_the_first_heartbeat() -> None:
    assert Configuration(own_grace=3.0).grace == 3.0
    assert Configuration().batch_size == 1
    assert not Configuration().must_restart


def test_settings_have_their_units() -> None:
    configuration = Configuration().updated(state())
    assert configuration.revision == 7
    assert configuration.limits.connect_timeout == 1.5
    assert configuration.limits.max_redirects == 4
    assert configuration.grace == 30
    assert configuration.max_timeout == 60_000
    assert configuration.concurrency == 300


def test_what_the_worker_was_started_with_counts_before_the_settings() -> None:
    configuration = Configuration(own_concurrency=5, own_grace=0.0).updated(state())
    assert (configuration.concurrency, configuration.grace) == (5, 0.0)


def test_the_limit_of_open_files_counts_before_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files, "slots", lambda: 50)
    assert Configuration(own_concurrency=500).updated(state()).concurrency == 50


def test_another_generation_asks_for_a_restart() -> None:
    first = Configuration().updated(state())
    assert not first.must_restart
    assert not first.updated(state(revision=8)).must_restart
    second = first.updated(state(generation=4))
    assert second.must_restart
    assert second.updated(state(generation=4)).must_restart
    assert not second.for_a_new_worker().updated(state(generation=4)).must_restart


@pytest.mark.parametrize(
    "changed",
    [
        state({"max_redirects": 5}),
        state(egress={"networks": ["10.0.0.0/8"]}),
        state(hosts={"a.example": {"max_redirects": 1}}),
    ],
    ids=["limits", "egress", "hosts"],
)
def test_the_wire_follows_limits_rules_and_hosts(changed: WorkerState) -> None:
    configuration = Configuration().updated(state())
    assert not configuration.same_wire(configuration.updated(changed))


def test_the_wire_follows_nothing_else() -> None:
    configuration = Configuration().updated(state(hosts={"a.example": {"max_redirects": 1}}))
    changed = state(
        {"batch_size": 5, "max_grace": 1},
        mode="record",
        policies={"p": {"max_attempts": 3}},
        hosts={"a.example": {"max_redirects": 1}},
    )
    other = configuration.updated(changed)
    assert configuration.same_wire(other)
    # The table keeps what it knows already of single hosts.
    assert other.hosts is configuration.hosts


def test_passwords_of_proxies_are_masked() -> None:
    hosts = {"*": {"proxy": "http://user:s3cr3t-word@proxy.example:3128"}}
    (mask,) = Configuration().updated(state(hosts=hosts)).masks
    assert "s3cr3t-word" not in mask.text("the password was s3cr3t-word")


def test_a_policy_that_cannot_be_read_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    policies = {"good": {"max_attempts": 3}, "bad": {"methods": "sometimes"}}
    configuration = Configuration().updated(state(policies=policies))
    configuration = configuration.updated(state(policies=dict(policies), revision=8))
    assert list(configuration.policies) == ["good"]
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [
        (60_000, "max_timeout"),
        (5000, "select net.configure('timeout_milliseconds', '5000')"),
        (80, "the timeout_milliseconds of the request"),
    ],
)
def test_a_timeout_says_where_it_comes_from(milliseconds: int, words: str) -> None:
    assert words in Configuration().updated(state()).origin_of_timeout(milliseconds)
