"""A row of the queue, read once by the worker that has claimed it.

The row was checked when it was queued; a row inserted by hand perhaps not. So it is checked once
more, by the same rules. All that a worker does with the request then uses the parsed values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from pgnet.request.errors import InvalidRequest
from pgnet.request.headers import parse_headers
from pgnet.request.options import parse_options
from pgnet.request.secret_reference import (
    Reference,
    SecretUrl,
    add_names,
    collect_names,
    read_secret_url,
)
from pgnet.request.url import canonical_url

_NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


class Row(NamedTuple):
    """What a row of the queue asks for.

    url: canonical. secret_url: the URL where it is a secret; `url` is as stored then.
    headers: names and values in order, a Reference where the value is a secret.
    options: by name. secrets: the names of all secrets, each once.
    fault: why the row cannot be sent, None where it can. With a fault the rest is empty.
    """

    url: str = ""
    secret_url: SecretUrl | None = None
    headers: Sequence[tuple[str, str | Reference]] = ()
    options: Mapping[str, Any] = _NO_OPTIONS
    secrets: Sequence[str] = ()
    fault: str | None = None


def read_row(url: str, headers: str | None, timeout_milliseconds: int, options: str | None) -> Row:
    """Read the columns of a row; headers and options are JSON text, None means none.

    Raises InvalidRequest, whose text holds no secret.
    """
    known_options = _NO_OPTIONS if options is None else parse_options(options, stored=True)
    if timeout_milliseconds <= 0:
        raise InvalidRequest("timeout_milliseconds must be greater than 0")
    fields = parse_headers(headers, may_name_secrets=True)
    names: list[str] = []
    secret_url = read_secret_url(url) if "{" in url else None
    if secret_url is None:
        url = canonical_url(url)
    else:
        names.append(secret_url.name)
    if headers is not None and "secret" in headers:
        collect_names(fields, names)
    if "sign" in known_options:
        add_names(known_options["sign"], names)
    return Row(url, secret_url, fields, known_options, names)
