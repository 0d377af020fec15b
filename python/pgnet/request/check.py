"""The caller's check: what becomes of a URL, its parameters and headers, or which error.

This module runs in the backend of everyone who queues a request, so it imports little, keeps
nothing of one call for the next, and raises one exception. Its rules stand, as input and row or
error, in ``tests/cases/requests.json``.
"""

from __future__ import annotations

from pgnet.request.errors import NOT_NULL_VIOLATION, InvalidRequest
from pgnet.request.headers import (
    JSON_HEADERS,
    flatten_headers,
    is_token,
    parse_headers,
    require_json,
)
from pgnet.request.json_text import json_object
from pgnet.request.options import parse_options
from pgnet.request.params import add_params
from pgnet.request.secret_reference import canonical_secret_url, collector
from pgnet.request.url import canonical_url


def check(
    method: str,
    url: str | None,
    params: str | None,
    headers: str | None,
    timeout_milliseconds: int | None,
    options: str | None = None,
    secrets: list[str] | None = None,
) -> str:
    """Check what is asked of net.http_request and its kin; return the URL to store.

    method: in upper case.
    params, headers: JSON text, as PostgreSQL writes jsonb; None means none.
    timeout_milliseconds: of the whole attempt; None means the setting of that name.
    options: JSON text; None means the rules of net.http_get, http_post and http_delete, whose POST
    is of JSON only.
    secrets: gets the names of the secrets that headers and URL refer to; whether the caller may use
    them is not for this module to say. Where it is None, a request with a secret is refused.

    Raises InvalidRequest.
    """
    if url is None:
        # Word for word what PostgreSQL says, as the column is what pg_net leaves this check to.
        raise InvalidRequest(
            'null value in column "url" of relation "http_request_queue" '
            "violates not-null constraint",
            "The argument url is NULL. Give an absolute http or https URL.",
            sqlstate=NOT_NULL_VIOLATION,
        )
    if method not in ("GET", "POST", "DELETE"):
        _check_method(method)
    if timeout_milliseconds is not None and timeout_milliseconds <= 0:
        raise InvalidRequest(
            f"timeout_milliseconds must be greater than 0, not {timeout_milliseconds}",
            "It is the total time of an attempt in milliseconds. NULL stands for the default.",
        )
    if secrets is not None and "{" in url:
        complete = canonical_secret_url(url, secrets)
    else:
        complete = canonical_url(url)
    if params is not None and params != "{}":
        complete = add_params(complete, json_object("params", params))
    collect = None if secrets is None else collector(secrets)
    if headers is not None and headers != "{}" and headers != JSON_HEADERS:
        pairs = flatten_headers(json_object("headers", headers), collect)
        if method == "POST" and options is None:
            require_json(pairs)
    if options is not None and options != "{}" and "idempotency_key" in parse_options(options):
        pairs = parse_headers(headers, collect)
        if any(name.lower() == "idempotency-key" for name, _value in pairs):
            raise InvalidRequest(
                "the idempotency key is given twice",
                "Give the option idempotency_key or the header Idempotency-Key.",
            )
    return complete


def _check_method(method: str) -> None:
    if is_token(method) is None:
        raise InvalidRequest(
            "the method is no token of RFC 9110", "A method is a word such as GET or PATCH."
        )
    if method in ("CONNECT", "TRACE"):
        raise InvalidRequest(f"the method {method} is not allowed", "It asks for a tunnel or echo.")
