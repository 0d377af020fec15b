"""When a request is attempted again, and after how long.

It needs the standard library only, and knows neither the wire nor the database.
"""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

# The kinds of errors of the wire that a policy may name. The kind "request" is not among them: what
# this side refuses to send, it would refuse again.
ERROR_KINDS = frozenset(("name", "connect", "tls", "timeout", "connection", "response"))
# RFC 9110, section 9.2.2, without TRACE, which pgnet does not send.
IDEMPOTENT_METHODS = frozenset(("GET", "HEAD", "PUT", "DELETE", "OPTIONS"))
ALL_STATUSES = frozenset(range(100, 1000))


@dataclass(frozen=True, slots=True)
class Policy:
    """How often and how soon requests are attempted again; times are in seconds.

    max_attempts: at least 1, the first one included.
    backoff, backoff_factor, max_backoff: the worker waits before attempt n + 1 for at most
    min(max_backoff, backoff × backoff_factor ** (n - 1)).
    statuses: the request is attempted again after an answer with one of these, if it is not one of
    those that are accepted.
    accept: an answer with one of these statuses is a success.
    errors: the request is attempted again after an error of these kinds.
    methods: these may be sent again once the server may have seen them. "idempotent" includes any
    request that carries an idempotency key.
    max_retry_after: a longer Retry-After counts as this.
    total: no attempt begins later than this after the first one.

    The defaults are those of the policy `none`, which is `safe` with a single attempt.
    """

    name: str = "none"
    max_attempts: int = 1
    backoff: float = 1.0
    backoff_factor: float = 2.0
    max_backoff: float = 30.0
    statuses: frozenset[int] = frozenset((408, 425, 429, 500, 502, 503, 504))
    accept: frozenset[int] = frozenset(range(100, 400))
    errors: frozenset[str] = ERROR_KINDS - {"response"}
    methods: frozenset[str] | Literal["any", "idempotent"] = "idempotent"
    max_retry_after: float = 120.0
    total: float = 600.0

    @classmethod
    def from_json(cls, name: str, settings: Mapping[str, Any]) -> Policy:
        """Read a policy as net.configure_retry takes it: times in milliseconds.

        A key that is left out has the default of the class. Unknown keys and unknown kinds of
        errors, of a newer extension, are ignored.

        Raises ValueError for an invalid value.
        """
        known = [(*_KEYS[key], value) for key, value in settings.items() if key in _KEYS]
        try:
            return cls(name, **{field: read(value) for field, read, value in known})
        except (TypeError, ValueError) as error:
            raise ValueError(f'retry policy "{name}": {error}') from None

    def accepts(self, status: int) -> bool:
        """Whether an answer with this status is a success."""
        return status in self.accept

    def may_send_twice(self, method: str, has_key: bool) -> bool:
        """Whether a method is sent again after the server may have seen it.

        One that is not idempotent needs an Idempotency-Key from its first attempt on.

        has_key: whether the caller gave an idempotency key.
        """
        if self.max_attempts == 1:
            return False
        if self.methods == "any":
            return True
        if self.methods == "idempotent":
            return has_key or method in IDEMPOTENT_METHODS
        return method in self.methods

    def with_max_attempts(self, n: int | None) -> Policy:
        """The policy with another number of attempts; None leaves it as it is."""
        return self if n is None or n == self.max_attempts else replace(self, max_attempts=n)

    def backoff_bound(self, attempt: int) -> float:
        """The longest backoff after an attempt, counted from 1; in seconds."""
        try:
            return min(self.max_backoff, self.backoff * self.backoff_factor ** (attempt - 1))
        except OverflowError:
            return self.max_backoff


NONE = Policy()


def read_policies(
    given: Mapping[str, Mapping[str, Any]], report: Callable[[str], object]
) -> dict[str, Policy]:
    """All policies by name.

    given: as the database gives them, by name. report: called with the fault of a policy that
    cannot be read, of a newer extension or put there by hand. It is left out, like a dropped one.
    """
    policies = {}
    for name, settings in given.items():
        try:
            policies[name] = Policy.from_json(name, settings)
        except ValueError as error:
            report(str(error))
    return policies


def choose(policies: Mapping[str, Policy], *names: str | None) -> Policy:
    """The policy of the first name that is not None; NONE where no name is given.

    A policy that was dropped meanwhile is NONE too: nothing is sent twice without a policy.
    """
    name = next((name for name in names if name is not None), None)
    return NONE if name is None else policies.get(name, NONE)


def delay_after(
    policy: Policy,
    *,
    attempt: int,
    age: float,
    method: str,
    has_key: bool = False,
    status: int | None = None,
    error_kind: str | None = None,
    never_sent: bool = False,
    retry_after: str | None = None,
    date: str | None = None,
    now: float,
    random: Callable[[], float],
) -> float | None:
    """Seconds to wait before the next attempt; None where no other attempt is made.

    attempt: how many attempts there have been, with this one.
    age: seconds since its first attempt began.
    has_key: whether the caller gave an idempotency key.
    status: of the answer; None without an answer, and then error_kind says why.
    never_sent: the server cannot have seen the request, so that any method may be sent again.
    retry_after, date: these headers of the answer.
    now: seconds since the epoch, for a Retry-After that is a date and comes without a Date.
    random: gives a number from 0 to 1. The backoff is drawn between 0 and its bound ("full
    jitter"), so that requests that failed together do not come back together. It is added to a
    Retry-After, which is the same for all requests that the server turned away.
    """
    if attempt >= policy.max_attempts:
        return None
    if status is not None:
        again = status in policy.statuses and not policy.accepts(status)
        never_sent = False
    else:
        again = error_kind in policy.errors
    if not again or not (never_sent or policy.may_send_twice(method, has_key)):
        return None
    delay = random() * policy.backoff_bound(attempt)
    if status is not None and retry_after is not None:
        asked = seconds_asked(retry_after, date, now)
        if asked is not None:
            delay += min(asked, policy.max_retry_after)
    return delay if age + delay <= policy.total else None


def seconds_asked(retry_after: str, date: str | None, now: float) -> float | None:
    """The seconds from now that a Retry-After asks for; None for an invalid one.

    RFC 9110, section 10.2.3: a number of seconds, or a date. A date is compared with the answer's
    Date, which is of the same clock; without a Date, with our clock. A date in the past gives 0.
    """
    retry_after = retry_after.strip(" \t")
    if re.fullmatch(r"[0-9]+", retry_after):
        # int() would refuse thousands of digits.
        return float(retry_after)
    moment = http_date(retry_after, now)
    if moment is None:
        return None
    sent = http_date(date, now) if date is not None else None
    return max(0.0, moment - (now if sent is None else sent))


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_TIME = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_MONTH = rf"(?P<month>{'|'.join(_MONTHS)})"
# In this order: IMF-fixdate, RFC 850's, and that of C's asctime().
_DATES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}})"
        rf" {_TIME} GMT",
        rf"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day, (?P<day>[0-9]{{2}})-{_MONTH}-"
        rf"(?P<year>[0-9]{{2}}) {_TIME} GMT",
        rf"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) {_MONTH} (?P<day>[ 0-9][0-9]) {_TIME}"
        rf" (?P<year>[0-9]{{4}})",
    )
)


def http_date(text: str, now: float) -> float | None:
    """Read a date of HTTP, in seconds since the epoch; None for anything else.

    RFC 9110, section 5.6.7, in all three forms. A year of two digits that would be more than 50
    years ahead is the last year with these digits. The name of the day is not compared with the
    date. strptime() would follow the locale.

    now: seconds since the epoch.
    """
    text = text.strip(" \t")
    found = next(filter(None, (pattern.fullmatch(text) for pattern in _DATES)), None)
    if found is None:
        return None
    year, month = int(found["year"]), _MONTHS.index(found["month"]) + 1
    day, hour = int(found["day"]), int(found["hour"])
    minute, second = int(found["minute"]), int(found["second"])
    if len(found["year"]) == 2:
        this_year = time.gmtime(now).tm_year
        year += this_year - this_year % 100
        if year > this_year + 50:
            year -= 100
    if year < 1 or not 1 <= day <= calendar.monthrange(year, month)[1]:
        return None
    if hour > 23 or minute > 59 or second > 60:  # 60: a leap second
        return None
    return float(calendar.timegm((year, month, day, hour, minute, second)))


# ---- the keys of net.configure_retry


def _seconds(milliseconds: Any) -> float:
    return float(milliseconds) / 1000


def _statuses(given: Any) -> frozenset[int]:
    """Read status codes: "any", or a list of 503, "503", "5xx" and "500-599"."""
    if given == "any":
        return ALL_STATUSES
    return frozenset(status for entry in given for status in _status_range(str(entry)))


def _status_range(entry: str) -> Iterable[int]:
    found = re.fullmatch(r"([1-9])xx|([1-9][0-9]{2})(?:-([1-9][0-9]{2}))?", entry)
    if found is None:
        raise ValueError(f'"{entry}" is not a status code, and not a range of them')
    hundred, first, last = found.groups()
    if hundred is not None:
        return range(int(hundred) * 100, int(hundred) * 100 + 100)
    return range(int(first), int(last or first) + 1)


def _errors(given: Any) -> frozenset[str]:
    """Read kinds of errors: "any", or a list of them."""
    return ERROR_KINDS if given == "any" else ERROR_KINDS & frozenset(given)


def _methods(given: Any) -> frozenset[str] | Literal["any", "idempotent"]:
    """Read methods: "any", "idempotent", or a list of them."""
    if given == "any" or given == "idempotent":
        return "any" if given == "any" else "idempotent"
    if isinstance(given, str):
        raise ValueError(f'methods are "any", "idempotent" or a list, not "{given}"')
    return frozenset(method.upper() for method in given)


# Each key of net.configure_retry: the policy's field, and how its value is read.
_KEYS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "max_attempts": ("max_attempts", int),
    "backoff_milliseconds": ("backoff", _seconds),
    "backoff_factor": ("backoff_factor", float),
    "max_backoff_milliseconds": ("max_backoff", _seconds),
    "statuses": ("statuses", _statuses),
    "accept": ("accept", _statuses),
    "errors": ("errors", _errors),
    "methods": ("methods", _methods),
    "max_retry_after_milliseconds": ("max_retry_after", _seconds),
    "total_milliseconds": ("total", _seconds),
}
