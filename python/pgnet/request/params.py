"""Parameters of a query, and bodies of forms: names and values, percent-encoded."""

from __future__ import annotations

import re

from pgnet.request.errors import InvalidRequest, described
from pgnet.request.json_text import json_object, jsonb_text
from pgnet.request.url import REFUSED, bounded, canonical_url, encoded, percent_encode


def urlencode_string(string: str | None) -> str | None:
    """Percent-encode all characters but the unreserved ones of RFC 3986; None stays None.

    Raises InvalidRequest for what UTF-8 cannot express, and for a NUL character.
    """
    return None if string is None else _encode_component(string)


def _encode_component(text: str) -> str:
    if text.isalnum() and text.isascii():
        return text
    if "\0" in text:
        raise InvalidRequest("a parameter must not contain a NUL character")
    try:
        return percent_encode(text)
    except UnicodeEncodeError:
        raise InvalidRequest("a parameter must not contain an unpaired surrogate") from None


def add_params(url: str, params: dict[str, object]) -> str:
    """Append parameters to the query of a canonical URL, percent-encoded, before its fragment.

    A parameter whose value is None is left out. A value that is not a string, also an array or an
    object, becomes its JSON text.

    Raises InvalidRequest.
    """
    pairs = []
    for key, value in params.items():
        if value is not None:
            text = value if isinstance(value, str) else jsonb_text(value)
            pairs.append(f"{_encode_component(key)}={_encode_component(text)}")
    return _append_to_query(url, pairs) if pairs else url


def _append_to_query(url: str, pairs: list[str]) -> str:
    base, hash_sign, fragment = url.partition("#")
    _, question_mark, query = base.partition("?")
    separator = "?"
    if question_mark:
        separator = "&" if query and not query.endswith("&") else ""
    return bounded(f"{base}{separator}{'&'.join(pairs)}{hash_sign}{fragment}")


def encode_form(text: str | None) -> str:
    """Return an object, given as JSON text, as application/x-www-form-urlencoded; None is empty.

    The URL standard says how (section 5.2): a space becomes "+". An array repeats its name, a null
    is left out, and a value that is not a string becomes its JSON text.

    Raises InvalidRequest.
    """
    pairs = []
    # A body may be of any length.
    fields = {} if text is None else json_object("body_form", text, longest=None)
    for key, value in fields.items():
        items = value if isinstance(value, list) else [value]
        pairs += [
            f"{_encode_field(key)}={_encode_field(i if isinstance(i, str) else jsonb_text(i))}"
            for i in items
            if i is not None
        ]
    return "&".join(pairs)


def _encode_field(text: str) -> str:
    try:
        return percent_encode(text).replace("%20", "+").replace("~", "%7E").replace("%2A", "*")
    except UnicodeEncodeError:
        raise InvalidRequest("body_form must not contain an unpaired surrogate") from None


def encode_url_with_params_array(
    url: str | None, params_array: list[str | None] | None
) -> str | None:
    """Return the canonical URL with parameters appended that are encoded already, as ``k=v``.

    A None among the parameters is left out; None for either argument gives None.

    Raises InvalidRequest for an invalid URL, or a parameter that cannot stand in a query.
    """
    if url is None or params_array is None:
        return None
    complete = canonical_url(url)
    pairs = []
    for pair in params_array:
        if not pair:
            continue
        refused = re.search(REFUSED, pair)
        if refused is not None:
            raise InvalidRequest(
                f"{described(refused[0])} is not allowed in an element of params_array",
                "Each is key=value, both encoded by net._urlencode_string.",
            )
        pairs.append(encoded(pair))
    return _append_to_query(complete, pairs) if pairs else complete
