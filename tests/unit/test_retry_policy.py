"""Retry policies as values: what is attempted again, and after how long."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgnet.worker.retry import (
    ALL_STATUSES,
    ERROR_KINDS,
    IDEMPOTENT_METHODS,
    NONE,
    Policy,
    choose,
    delay_after,
    http_date,
    read_policies,
    seconds_asked,
)

SAFE_BY_NAME = Policy(name="safe", max_attempts=5)
SAFE = NONE.with_max_attempts(5)
WEBHOOK = Policy.from_json(
    "webhook",
    {
        "max_attempts": 15,
        "backoff_milliseconds": 5000,
        "backoff_factor": 3,
        "max_backoff_milliseconds": 4 * 3600 * 1000,
        "statuses": "any",
        "accept": ["2xx"],
        "errors": "any",
        "methods": "any",
        "max_retry_after_milliseconds": 4 * 3600 * 1000,
        "total_milliseconds": 24 * 3600 * 1000,
    },
)
METHODS = ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "POST", "PATCH", "PROPFIND")
# Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110
NOW = 784111777.0


def after(policy: Policy, **circumstances: Any) -> float | None:
    """Decide, with the longest backoff unless told otherwise."""
    circumstances.setdefault("attempt", 1)
    circumstances.setdefault("age", 0.0)
    circumstances.setdefault("method", "GET")
    circumstances.setdefault("now", NOW)
    circumstances.setdefault("random", lambda: 1.0)
    return delay_after(policy, **circumstances)


# ---- which requests


def test_none_is_one_attempt() -> None:
    assert NONE.name == "none"
    for status, method in product((None, 200, 302, 404, 429, 500, 503), METHODS):
        for kind in (*ERROR_KINDS, "request"):
            for never_sent in (False, True):
                assert (
                    after(
                        NONE,
                        method=method,
                        status=status,
                        error_kind=None if status else kind,
                        never_sent=never_sent,
                        has_key=True,
                    )
                    is None
                )


@pytest.mark.parametrize("status", ALL_STATUSES)
def test_statuses_of_safe(status: int) -> None:
    again = status in (408, 425, 429, 500, 502, 503, 504)
    assert (after(SAFE, status=status) is not None) == again
    assert SAFE.accepts(status) == (status < 400)


@pytest.mark.parametrize("status", ALL_STATUSES)
def test_statuses_of_webhook(status: int) -> None:
    success = 200 <= status < 300
    assert (after(WEBHOOK, method="POST", status=status) is None) == success
    assert WEBHOOK.accepts(status) == success


def test_an_accepted_status_is_never_attempted_again() -> None:
    policy = Policy(max_attempts=5, statuses=ALL_STATUSES, accept=frozenset((404,)))
    assert after(policy, status=404) is None
    assert after(policy, status=200) is not None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("has_key", [False, True])
def test_methods_of_safe(method: str, has_key: bool) -> None:
    twice = has_key or method not in ("POST", "PATCH", "PROPFIND")
    assert SAFE.may_send_twice(method, has_key) == twice
    assert (after(SAFE, method=method, has_key=has_key, status=503) is not None) == twice
    for kind in ERROR_KINDS - {"response"}:
        again = after(SAFE, method=method, has_key=has_key, error_kind=kind)
        assert (again is not None) == twice
        # A request that was never sent may be sent, whatever its method.
        again = after(SAFE, method=method, has_key=has_key, error_kind=kind, never_sent=True)
        assert again is not None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("has_key", [False, True])
def test_methods_of_webhook(method: str, has_key: bool) -> None:
    assert WEBHOOK.may_send_twice(method, has_key)
    assert after(WEBHOOK, method=method, has_key=has_key, status=503) is not None


@pytest.mark.parametrize("has_key", [False, True])
def test_a_list_of_methods_is_just_these(has_key: bool) -> None:
    policy = Policy(max_attempts=2, methods=frozenset(("POST",)))
    assert policy.may_send_twice("POST", has_key)
    assert not policy.may_send_twice("GET", has_key)
    assert after(policy, method="GET", status=503) is None
    assert after(policy, method="GET", error_kind="connect", never_sent=True) is not None


def test_one_attempt_sends_nothing_twice() -> None:
    for methods in ("any", "idempotent", frozenset(("GET",))):
        policy = Policy(max_attempts=1, methods=methods)
        assert not any(policy.may_send_twice(method, True) for method in METHODS)


def test_kinds_of_errors() -> None:
    for kind in ERROR_KINDS:
        only = Policy(max_attempts=2, errors=frozenset((kind,)))
        for other in ERROR_KINDS:
            for never_sent in (False, True):
                again = after(only, error_kind=other, never_sent=never_sent)
                assert (again is not None) == (other == kind)
    assert after(SAFE, error_kind="response") is None
    assert after(WEBHOOK, error_kind="response") is not None


@pytest.mark.parametrize("kind", ["request", "", "unheard of", None])
def test_what_is_refused_here_is_not_attempted_again(kind: str | None) -> None:
    for policy in (SAFE, WEBHOOK):
        assert after(policy, error_kind=kind, never_sent=True) is None


def test_an_answer_was_sent_whatever_is_said() -> None:
    assert after(SAFE, method="POST", status=503, never_sent=True) is None


# ---- how often


@pytest.mark.parametrize("policy", [SAFE, WEBHOOK, Policy(max_attempts=2)])
def test_attempts_are_counted(policy: Policy) -> None:
    answers = [after(policy, attempt=n, status=503) for n in range(1, policy.max_attempts + 3)]
    assert [a is not None for a in answers] == [True] * (policy.max_attempts - 1) + [False] * 3


def test_another_number_of_attempts() -> None:
    assert SAFE.with_max_attempts(None) is SAFE
    assert SAFE.with_max_attempts(5) is SAFE
    twice = SAFE.with_max_attempts(2)
    assert (twice.max_attempts, twice.with_max_attempts(5)) == (2, SAFE)
    assert after(twice, attempt=1, status=503) is not None
    assert after(twice, attempt=2, status=503) is None
    assert after(NONE.with_max_attempts(2), attempt=1, status=503) is not None
    assert after(SAFE.with_max_attempts(1), attempt=1, status=503) is None
    assert not WEBHOOK.with_max_attempts(1).may_send_twice("POST", True)


# ---- how long


def test_bounds_of_the_backoff() -> None:
    assert [SAFE.backoff_bound(n) for n in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]
    assert [WEBHOOK.backoff_bound(n) for n in range(1, 10)] == [
        5, 15, 45, 135, 405, 1215, 3645, 10935, 14400,
    ]  # fmt: skip
    assert Policy(backoff_factor=1.0, backoff=3).backoff_bound(50) == 3
    assert Policy(backoff=60, max_backoff=30).backoff_bound(1) == 30
    assert Policy(backoff=0).backoff_bound(10) == 0
    assert Policy(backoff_factor=100.0).backoff_bound(100_000) == 30  # float("inf") and beyond


def test_the_backoff_is_drawn_from_nothing_to_its_bound() -> None:
    for share in (0.0, 0.25, 0.5, 0.999, 1.0):
        random = iter([share] * 4).__next__
        delays = [after(SAFE, attempt=n, status=503, random=random) for n in (1, 2, 3, 4)]
        assert delays == [share * bound for bound in (1, 2, 4, 8)]


def test_it_is_drawn_once_and_only_where_it_is_needed() -> None:
    drawn = []

    def random() -> float:
        drawn.append(1)
        return 0.5

    after(SAFE, status=404, random=random)
    after(SAFE, status=503, attempt=5, random=random)
    assert drawn == []
    after(SAFE, status=503, random=random, retry_after="1")
    assert drawn == [1]


def test_no_attempt_begins_after_the_total_time() -> None:
    policy = Policy(max_attempts=100, backoff=10, max_backoff=10, total=60)
    assert after(policy, status=503, age=50.0) == 10
    assert after(policy, status=503, age=50.001) is None
    assert after(policy, status=503, age=50.001, random=lambda: 0.5) == 5
    assert after(policy, status=503, age=60.0, random=lambda: 0.0) == 0
    assert after(policy, status=503, age=60.001, random=lambda: 0.0) is None
    assert after(policy, error_kind="connect", never_sent=True, age=51.0) is None
    assert after(policy, status=503, age=0.0, retry_after="51") is None
    assert after(policy, status=503, age=0.0, retry_after="50") == 60


# ---- Retry-After


def test_retry_after_comes_below_the_backoff() -> None:
    assert after(SAFE, status=503, retry_after="7", random=lambda: 0.0) == 7
    assert after(SAFE, status=429, retry_after="7", random=lambda: 1.0) == 8
    assert after(SAFE, status=429, attempt=4, retry_after="0", random=lambda: 1.0) == 8


def test_retry_after_is_cut() -> None:
    assert after(SAFE, status=503, retry_after="121", random=lambda: 0.0) == 120
    assert after(SAFE, status=503, retry_after="9" * 10_000, random=lambda: 0.0) == 120
    assert after(WEBHOOK, status=503, retry_after="86400", random=lambda: 0.0) == 14400
    none_at_all = Policy(max_attempts=2, max_retry_after=0)
    assert after(none_at_all, status=503, retry_after="60") == 1


def test_retry_after_asks_for_nothing_where_there_is_no_next_attempt() -> None:
    assert after(SAFE, status=404, retry_after="1") is None
    assert after(SAFE, status=503, method="POST", retry_after="1") is None
    assert after(SAFE, status=503, attempt=5, retry_after="1") is None
    assert after(SAFE, status=301, retry_after="1") is None


def test_retry_after_is_of_an_answer() -> None:
    assert after(SAFE, error_kind="connection", retry_after="60") == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("1", 1), ("120", 120), ("007", 7), (" 5\t", 5), ("9" * 400, float("inf"))],
)
def test_retry_after_in_seconds(text: str, seconds: float) -> None:
    assert seconds_asked(text, None, NOW) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "Sun, 06 Nov 1994 08:50:07 GMT",
        "Sunday, 06-Nov-94 08:50:07 GMT",
        "Sun Nov  6 08:50:07 1994",
        " Sun, 06 Nov 1994 08:50:07 GMT ",
    ],
)
def test_retry_after_as_a_date(text: str) -> None:
    assert seconds_asked(text, None, NOW) == 30
    assert seconds_asked(text, None, NOW + 31) == 0
    # The date is by the server's clock, which is an hour late.
    assert seconds_asked(text, "Sun, 06 Nov 1994 08:49:57 GMT", NOW + 3600) == 10
    assert seconds_asked(text, "Sun, 06 Nov 1994 08:51:00 GMT", NOW) == 0
    assert seconds_asked(text, "yesterday", NOW) == 30
    assert after(SAFE, status=503, retry_after=text, random=lambda: 0.0) == 30


RUBBISH = [
    "", " ", "soon", "-1", "+1", "1.5", "1e3", "0x10", "1 2", "1,2", "120, 120", "1s", "\u0661",
    "²", "NaN", "inf", "1\n", "None", "Sun, 06 Nov 1994 08:49:37", "Sun, 06 Nov 1994 08:49:37 UTC",
    "Sun, 06 Nov 1994 08:49:37 +0000", "06 Nov 1994 08:49:37 GMT", "Sun, 6 Nov 1994 08:49:37 GMT",
    "Sun, 31 Feb 1994 08:49:37 GMT", "Sun, 00 Nov 1994 08:49:37 GMT",
    "Sun, 06 Nov 1994 24:00:00 GMT", "Sun, 06 Nov 1994 08:60:00 GMT",
    "Sun, 06 Nov 1994 08:49:61 GMT", "Sun, 06 nov 1994 08:49:37 GMT",
    "Sun, 06 Nov 0000 08:49:37 GMT", "Sun, 06-Nov-94 08:49:37 GMT",
    "Sonntag, 06-Nov-94 08:49:37 GMT", "1994-11-06T08:49:37Z", "Sun Nov 6 08:49:37 1994",
    "Sun, 29 Feb 2023 08:49:37 GMT",
    "Sun, 06 Nov 1994 08:49:37 GMT\nX: y", "Sun, 06 Nov ١٩٩٤ 08:49:37 GMT",
]  # fmt: skip


@pytest.mark.parametrize("text", RUBBISH)
def test_rubbish_asks_for_nothing(text: str) -> None:
    assert seconds_asked(text, None, NOW) is None
    assert after(SAFE, status=503, retry_after=text) == 1


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Thu, 29 Feb 2024 12:00:00 GMT", 1709208000),
        ("Sat, 31 Dec 2016 23:59:60 GMT", 1483228800),  # a leap second
        ("Mon, 07 Nov 1994 08:49:37 GMT", NOW + 86400),
        ("Mon, 06 Nov 1994 08:49:37 GMT", NOW),  # it was a Sunday
        ("Fri, 31 Dec 9999 23:59:59 GMT", 253402300799),
    ],
)
def test_dates_of_http(text: str, moment: float) -> None:
    assert http_date(text, NOW) == moment


def year_of(moment: float | None) -> int:
    assert moment is not None
    return datetime.fromtimestamp(moment, UTC).year


def test_years_of_two_digits() -> None:
    text = "Sunday, 06-Nov-{:02} 08:49:37 GMT"
    assert [year_of(http_date(text.format(y), NOW)) for y in (0, 44, 45, 94, 99)] == [
        1900, 1944, 1945, 1994, 1999,
    ]  # fmt: skip
    in_2026 = datetime(2026, 11, 6, tzinfo=UTC).timestamp()
    assert [year_of(http_date(text.format(y), in_2026)) for y in (0, 26, 76, 77, 94)] == [
        2000, 2026, 2076, 1977, 1994,
    ]  # fmt: skip


@given(st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)), st.integers(0, 10**7))
def test_a_date_means_as_many_seconds(start: datetime, seconds: int) -> None:
    start = start.replace(microsecond=0, tzinfo=UTC)
    end = start + timedelta(seconds=seconds)
    retry_after, sent = format_datetime(end, usegmt=True), format_datetime(start, usegmt=True)
    assert seconds_asked(retry_after, sent, NOW) == seconds
    assert seconds_asked(retry_after, None, start.timestamp()) == seconds
    assert seconds_asked(end.strftime("%a %b %e %H:%M:%S %Y"), sent, NOW) == seconds


@given(st.text(), st.none() | st.text())
def test_no_header_raises(retry_after: str, date: str | None) -> None:
    delay = after(SAFE, status=503, retry_after=retry_after, date=date)
    assert delay is not None
    assert 1 <= delay <= 121


# ---- whatever happens

POLICIES = st.builds(
    Policy,
    max_attempts=st.integers(1, 1000),
    backoff=st.floats(0, 86400),
    backoff_factor=st.floats(1, 100),
    max_backoff=st.floats(0, 86400),
    statuses=st.frozensets(st.integers(100, 999), max_size=20) | st.just(ALL_STATUSES),
    accept=st.frozensets(st.integers(100, 999), max_size=20) | st.just(frozenset(range(200, 300))),
    errors=st.frozensets(st.sampled_from(sorted(ERROR_KINDS))),
    methods=st.sampled_from(["any", "idempotent"]) | st.frozensets(st.sampled_from(METHODS)),
    max_retry_after=st.floats(0, 86400),
    total=st.floats(0, 10**6),
)


@given(
    POLICIES,
    st.fixed_dictionaries(
        {
            "attempt": st.integers(1, 1001),
            "age": st.floats(0, 10**6),
            "method": st.sampled_from(METHODS),
            "has_key": st.booleans(),
            "never_sent": st.booleans(),
            "retry_after": st.none() | st.integers(0, 10**6).map(str) | st.text(max_size=5),
            "date": st.none() | st.just("Sun, 06 Nov 1994 08:49:37 GMT"),
        }
    ),
    st.integers(100, 999) | st.sampled_from([*sorted(ERROR_KINDS), "request"]),
    st.floats(0, 1),
)
def test_rules(policy: Policy, case: dict[str, Any], end: int | str, share: float) -> None:
    answered = isinstance(end, int)
    delay = after(
        policy,
        **case,
        status=end if answered else None,
        error_kind=None if answered else end,
        random=lambda: share,
    )
    if delay is None:
        return
    assert case["attempt"] < policy.max_attempts
    assert delay >= 0
    assert case["age"] + delay <= policy.total
    assert delay <= policy.max_backoff + (policy.max_retry_after if answered else 0)
    if answered:
        assert not policy.accepts(int(end))
        assert end in policy.statuses
    else:
        assert end in policy.errors
    if answered or not case["never_sent"]:
        assert policy.may_send_twice(case["method"], case["has_key"])


# ---- as the database says them


def test_a_policy_as_the_database_says_it() -> None:
    policy = Policy.from_json(
        "mine",
        {
            "max_attempts": 3,
            "backoff_milliseconds": 250,
            "backoff_factor": 1.5,
            "max_backoff_milliseconds": 2000,
            "statuses": [429, "503", "5xx", "440-442"],
            "accept": ["2xx", 304],
            "errors": ["connect", "name"],
            "methods": ["post", "GET"],
            "max_retry_after_milliseconds": 1500,
            "total_milliseconds": 10000,
        },
    )
    assert policy == Policy(
        name="mine",
        max_attempts=3,
        backoff=0.25,
        backoff_factor=1.5,
        max_backoff=2.0,
        statuses=frozenset((429, 440, 441, 442, *range(500, 600))),
        accept=frozenset((*range(200, 300), 304)),
        errors=frozenset(("connect", "name")),
        methods=frozenset(("GET", "POST")),
        max_retry_after=1.5,
        total=10.0,
    )


def test_what_is_left_out_is_as_in_safe_with_one_attempt() -> None:
    assert Policy.from_json("none", {}) == NONE
    assert Policy.from_json("safe", {"max_attempts": 5}) == Policy(name="safe", max_attempts=5)


def test_words_for_all() -> None:
    policy = Policy.from_json("all", {"statuses": "any", "errors": "any", "methods": "any"})
    assert (policy.statuses, policy.errors, policy.methods) == (ALL_STATUSES, ERROR_KINDS, "any")
    assert Policy.from_json("p", {"methods": "idempotent"}).methods == "idempotent"
    assert Policy.from_json("p", {"statuses": [], "errors": []}).statuses == frozenset()


def test_what_a_newer_extension_says_is_ignored() -> None:
    policy = Policy.from_json("p", {"colour": "blue", "errors": ["connect", "gremlins"]})
    assert policy == Policy(name="p", errors=frozenset(("connect",)))


@pytest.mark.parametrize(
    "settings",
    [
        {"statuses": ["6"]},
        {"statuses": ["0xx"]},
        {"statuses": ["xxx"]},
        {"statuses": ["5XX"]},
        {"statuses": [99]},
        {"statuses": [1000]},
        {"statuses": [True]},
        {"statuses": "5xx"},
        {"statuses": 503},
        {"accept": ["200-"]},
        {"accept": [None]},
        {"methods": "all"},
        {"methods": 1},
        {"max_attempts": "many"},
        {"total_milliseconds": None},
    ],
)
def test_what_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r'^retry policy "p": '):
        Policy.from_json("p", settings)


def test_an_empty_range() -> None:
    assert Policy.from_json("p", {"statuses": ["599-500"]}).statuses == frozenset()


def test_one_that_cannot_be_read_spoils_no_other() -> None:
    complaints: list[str] = []
    policies: dict[str, dict[str, Any]] = {
        "safe": {"max_attempts": 5},
        "odd": {"statuses": ["many"]},
        "worse": {"errors": 1},
    }
    assert read_policies(policies, complaints.append) == {"safe": SAFE_BY_NAME}
    assert [text.partition(":")[0] for text in complaints] == [
        'retry policy "odd"',
        'retry policy "worse"',
    ]


def test_the_first_name_that_is_given_counts() -> None:
    policies = {"safe": SAFE, "webhook": WEBHOOK, "none": NONE}
    assert choose(policies) is NONE
    assert choose(policies, None, None) is NONE
    assert choose(policies, None, "safe") is SAFE
    assert choose(policies, "webhook", "safe") is WEBHOOK
    assert choose(policies, "none", "safe") is NONE
    # Dropped while requests that name it wait: that of the host was not what they asked for.
    assert choose(policies, "dropped", "safe") is NONE


def test_idempotent_methods_are_those_of_the_standard() -> None:
    assert {"GET", "HEAD", "OPTIONS", "PUT", "DELETE"} == IDEMPOTENT_METHODS


def test_it_imports_the_standard_library_only() -> None:
    others = "{'gevent', 'requests', 'pycurl'}"
    code = f"import sys, pgnet.worker.retry; print({others} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, env={"PYTHONPATH": "python"}) == b"set()\n"
