"""JSON as a caller gave it: read and written without a change of its numbers."""

from __future__ import annotations

import json

from pgnet.request.errors import InvalidRequest

# How many characters params, headers and options may have as JSON text; judged before it is parsed.
# Params and headers that a request can have are shorter, even with each of their characters
# escaped.
MAX_JSON_LENGTH = 2_500_000


class Number(str):
    """A JSON number as it was written: as a float, 1.10 would become 1.1."""

    __slots__ = ()


def _refuse_constant(name: str) -> object:
    raise ValueError(name)  # NaN and Infinity, which Python's decoder accepts


_decode_json = json.JSONDecoder(
    parse_float=Number, parse_int=Number, parse_constant=_refuse_constant
).raw_decode
encode_json = json.JSONEncoder(ensure_ascii=False).encode

_HINT_NONE = "For none, leave it out, or give NULL or '{}'."


def decode_json(argument: str, text: str, longest: int | None = None) -> object:
    """Read JSON text; a number becomes a Number.

    argument: its name, for messages. longest: how many characters the text may have; None means
    any number.

    Raises InvalidRequest, with the name of the argument.
    """
    if longest is not None and len(text) > longest:
        raise InvalidRequest(f"{argument} is longer than {longest} characters as JSON")
    text = text.strip(" \t\n\r")
    try:
        value, end = _decode_json(text)
    except ValueError:
        raise InvalidRequest(f"{argument} is not valid JSON") from None
    except RecursionError:
        raise InvalidRequest(f"{argument} is nested too deeply") from None
    if end != len(text):
        raise InvalidRequest(f"{argument} is not valid JSON")
    return value


def json_object(
    argument: str, text: str, longest: int | None = MAX_JSON_LENGTH
) -> dict[str, object]:
    """Read a JSON object, as decode_json reads any value. Raises InvalidRequest."""
    value = decode_json(argument, text, longest)
    if type(value) is not dict:
        raise InvalidRequest(f"{argument} must be a JSON object, not {kind_of(value)}", _HINT_NONE)
    return value


def kind_of(value: object) -> str:
    """What kind of JSON value this is, with its article, for a message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (Number, int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"


def jsonb_text(value: object) -> str:
    """Write a value that decode_json has read, as the output function of jsonb writes it."""
    written: list[str] = []
    # A stack instead of recursion: what was read may be nested deeper than calls can be. Brackets
    # and commas go through it as Numbers, which are written as they are.
    todo = [value]
    while todo:
        item = todo.pop()
        if type(item) is Number:
            written.append(item)
        elif isinstance(item, list):
            todo.append(Number("]"))
            for element in reversed(item):
                todo += element, Number(", ")
            todo[-1:] = [Number("[")] if item else [Number("]"), Number("[")]
        elif isinstance(item, dict):
            todo.append(Number("}"))
            for key, element in reversed(item.items()):
                todo += element, Number(f"{encode_json(key)}: "), Number(", ")
            todo[-1:] = [Number("{")] if item else [Number("}"), Number("{")]
        else:
            written.append(encode_json(item))
    return "".join(written)
