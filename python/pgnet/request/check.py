"""The caller's check, the one entrance to this folder for net.http_request and its kin.

`check` calls the files of this folder, one for each argument: url, params, headers, options; row.py
is what a worker calls for a row that was checked here. All of it runs in the backend of everyone
who queues a request. So it imports little, keeps nothing of one call for the next, and raises one
exception, InvalidRequest. Its rules stand in ``tests/cases/requests.json``: what is given, and the
row or the error that comes of it.
"""

from __future__ import annotations

from pgnet.request.errors import NOT_NULL_VIOLATION, InvalidRequest
from pgnet.request.headers import (
    JSON_HEADERS,
    flatten_headers,
    is_token,
    require_json,
)
from pgnet.request.json_text import json_object
from pgnet.request.options import parse_options
from pgnet.request.params import add_params
from pgnet.request.secret_reference import (
    Reference,
    add_names,
    canonical_secret_url,
    collect_names,
)
from pgnet.request.url import canonical_url

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Of Standard Webhooks: what the option sign adds.
SIGNED_HEADERS = frozenset(("webhook-id", "webhook-timestamp", "webhook-signature"))


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
    options: JSON text; None means the rules of net.http_get, http_post and http_delete, which POST
    nothing but JSON.
    secrets: gets the names of the secrets that headers and URL refer to. Whether the caller may use
    them is not judged here. Where it is None, a request with a secret is refused.

    Raises InvalidRequest.
    """
    if url is None:
        # Word for word what PostgreSQL says: pg_net leaves this check to the column's constraint.
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
    fields: list[tuple[str, str | Reference]] = []
    if headers is not None and headers != "{}" and headers != JSON_HEADERS:
        fields = flatten_headers(json_object("headers", headers), secrets is not None)
        if secrets is not None:
            collect_names(fields, secrets)
        if method == "POST" and options is None:
            require_json(fields)
    if options is not None and options != "{}":
        _check_with_headers(parse_options(options), fields, secrets)
    return complete


def _check_with_headers(
    options: dict[str, Any], fields: list[tuple[str, str | Reference]], secrets: list[str] | None
) -> None:
    """Refuse options that give what a header gives, too; collect the secrets that they name."""
    given = {name.lower() for name, _value in fields}
    if "idempotency_key" in options and "idempotency-key" in given:
        raise InvalidRequest(
            "the idempotency key is given twice",
            "Give the option idempotency_key or the header Idempotency-Key.",
        )
    if "sign" in options:
        if given & SIGNED_HEADERS:
            raise InvalidRequest(
                "a header of the signature is given beside the option sign",
                "Leave out webhook-id, webhook-timestamp and webhook-signature.",
            )
        if secrets is None:
            raise InvalidRequest("the request names a secret")
        add_names(options["sign"], secrets)


def _check_method(method: str) -> None:
    if is_token(method) is None:
        raise InvalidRequest(
            "the method is not a token of RFC 9110", "A method is a word such as GET or PATCH."
        )
    if method in ("CONNECT", "TRACE"):
        raise InvalidRequest(
            f"the method {method} is not allowed", "CONNECT asks for a tunnel, TRACE for an echo."
        )
