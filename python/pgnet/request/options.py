"""The options of net.http_request: which ones there are, and what values they take."""

from __future__ import annotations

import re

from pgnet.request.errors import InvalidRequest, printable
from pgnet.request.json_text import Number, json_object
from pgnet.request.secret_reference import HINT_NAME, MAX_SECRETS, is_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


AT_MOST_ONCE = "at_most_once"
# Each id costs a look-up or two, and a worker looks them all up at once.
_MOST_IDS = 1000
TIME, INTERVAL, KEY, IDS, BOOLEAN = "time", "interval", "key", "ids", "boolean"
SECRETS, WORDS = "secrets", "words"
# The values that each option takes: an integer between two bounds, one of some words, a kind, or,
# with None, a value of the header Idempotency-Key.
_STORED: dict[str, tuple[int, int] | tuple[str, ...] | str | None] = {
    "after": IDS,
    "after_any_end": BOOLEAN,
    "delivery": ("at_least_once", AT_MOST_ONCE),
    "idempotency_key": None,
    "max_redirects": (0, 30),
    "on_failure": ("block", "skip"),
    "ordering_key": KEY,
    "priority": (-32768, 32767),
    "sign": SECRETS,
    "store_response": BOOLEAN,
}
# Of these a row has columns, and its options do not have them. The database reads times and
# intervals, since it reads them by its own clock: they are only checked to be strings here.
_KINDS = {
    TIME: 'a string: a time such as "2026-12-24 18:00+01", or an interval such as "5 minutes"',
    INTERVAL: 'a string that is an interval, such as "5 minutes"',
    KEY: "a string of 1 to 255 printable characters",
}
_COLUMNS: dict[str, str | tuple[str, ...]] = {
    "not_before": TIME,
    "not_after": TIME,
    "unique_key": KEY,
    "unique_for": INTERVAL,
    "on_conflict": ("keep", "replace"),
}
_OPTIONS: dict[str, Any] = {**_STORED, **_COLUMNS}
# The other arguments of net.http_request, for the message where one is given as an option.
_ARGUMENTS = frozenset(
    (
        "method",
        "url",
        "body",
        "params",
        "headers",
        "timeout_milliseconds",
        "body_text",
        "body_form",
        "body_bytes",
        "retry",
        "max_attempts",
        "context",
    )
)
# The options of a row hold these arguments, too; net.http_request has checked them.
# So do those that a webhook's requests have, which SQL reads.
STORED_OPTIONS = {
    **_STORED,
    "max_attempts": (1, 1000),
    "retry": None,
    "webhook": WORDS,
    "endpoint": WORDS,
    "fault": WORDS,
}


def parse_options(text: str | None, *, stored: bool = False) -> dict[str, Any]:
    """Return the options of a request, given as JSON text, by name; None means none.

    stored: whether they are those of a row; otherwise a caller gives them.

    Raises InvalidRequest for an option that is not known, and for a value out of its bounds.
    """
    if text is None:
        return {}
    options: dict[str, Any] = {}
    known = STORED_OPTIONS if stored else _OPTIONS
    for name, value in json_object("options", text).items():
        if name not in known:
            raise _unknown_option(name, known)
        if value is not None:
            options[name] = _option(name, value, known[name])
    if "unique_key" not in options:
        for name in ("unique_for", "on_conflict"):
            if name in options:
                raise InvalidRequest(
                    f'option "{name}" is of no use without "unique_key"',
                    "It says what a second request with the same unique_key does.",
                )
    elif "after" in options:
        raise InvalidRequest(
            'the options "after" and "unique_key" exclude each other',
            "Calls that are merged could each name others to wait for.",
        )
    if not stored:
        for name, other in (("on_failure", "ordering_key"), ("after_any_end", "after")):
            if name in options and other not in options:
                raise InvalidRequest(f'option "{name}" is of no use without "{other}"')
    return options


def _unknown_option(name: str, known: Iterable[str]) -> InvalidRequest:
    names = ", ".join(sorted(known))
    if name in _ARGUMENTS:
        return InvalidRequest(
            f'unknown option "{name}": it is an argument of net.http_request; known: {names}',
            f"Give it beside options, not in it: {name} => value.",
        )
    return InvalidRequest(f'unknown option "{printable(name)}"; known: {names}')


def _option(
    name: str, value: object, bounds: tuple[int, int] | tuple[str, ...] | str | None
) -> Any:
    if bounds == BOOLEAN:
        if not isinstance(value, bool):
            raise InvalidRequest(f'option "{name}" must be true or false')
        return value
    if bounds == IDS:
        return _ids(name, value)
    if bounds == SECRETS:
        return _secrets(name, value)
    if bounds == WORDS:
        return value
    if isinstance(bounds, str):
        if type(value) is not str or not 1 <= len(value) <= 255 or not value.isprintable():
            raise InvalidRequest(f'option "{name}" must be {_KINDS[bounds]}')
        return value
    if bounds is None:
        if type(value) is not str or _is_key(value) is None:
            raise InvalidRequest(
                f'option "{name}" must be a string of 1 to 255 printable ASCII characters'
            )
        return value
    low, high = bounds[0], bounds[-1]
    if isinstance(low, str) or isinstance(high, str):
        if value not in bounds:
            words = " or ".join(f'"{word}"' for word in bounds)
            raise InvalidRequest(f'option "{name}" must be {words}')
        return value
    number = int(value) if isinstance(value, Number) and _is_integer(value) else None
    if number is None or not low <= number <= high:
        raise InvalidRequest(f'option "{name}" must be an integer between {low} and {high}')
    return number


def _ids(name: str, value: object) -> list[int]:
    if not isinstance(value, list) or not all(map(_is_id, value)):
        raise InvalidRequest(
            f'option "{name}" must be an array of ids of requests',
            "Write, for example: jsonb_build_object('after', array[id_1, id_2]).",
        )
    if len(value) > _MOST_IDS:
        raise InvalidRequest(
            f'option "{name}" must have at most {_MOST_IDS} ids, not {len(value)}',
            "Have a request wait for each thousand of them, and this one for those.",
        )
    return [int(number) for number in value]


def _secrets(name: str, value: object) -> list[str]:
    if not isinstance(value, list) or not value or not all(map(is_name, value)):
        raise InvalidRequest(f'option "{name}" must be an array of names of secrets', HINT_NAME)
    if len(value) > MAX_SECRETS:
        raise InvalidRequest(f"a request names at most {MAX_SECRETS} secrets")
    return value


def _is_id(value: object) -> bool:
    return isinstance(value, Number) and _is_number(value) is not None


# No space at either end: it would not be part of a header's value.
_is_key = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?").fullmatch
_is_integer = re.compile(r"-?[0-9]{1,10}").fullmatch
_is_number = re.compile(r"[0-9]{1,18}").fullmatch
