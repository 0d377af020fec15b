"""Bodies of multipart/form-data (RFC 7578), for net.multipart.

This module runs in callers' backends and imports the standard library only.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from collections.abc import Sequence

from pgnet.request.errors import InvalidRequest
from pgnet.request.json_text import Number, decode_json, jsonb_text

_KEYS = ("name", "filename", "content_type", "value", "json", "base64", "file")
_CONTENTS = ("value", "json", "base64", "file")
# RFC 9110, section 8.3: a media type with its parameters, and nothing that ends a header.
_MEDIA_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-][\t\x20-\x7e]*")
_HINT = (
    'A part is such as {"name": "title", "value": "Tea"} or '
    '{"name": "photo", "filename": "tea.png", "content_type": "image/png", "file": 1}.'
)


def encode(parts: str | None, files: Sequence[bytes | None] | None) -> tuple[str, bytes]:
    """Return the Content-Type, with its boundary, and the body.

    parts: JSON text of an array of objects. Each has a name, and exactly one of value (text; a
    number or a boolean as JSON), json, base64 and file (a number of an element of files, from 1);
    it may have filename and content_type.
    files: None means none.

    Names are written as browsers write them (RFC 7578, section 4.2, and the HTML standard): in
    UTF-8, with line breaks and double quotes percent-encoded.

    Raises InvalidRequest, without any of the parts' contents.
    """
    array = None if parts is None else decode_json("parts", parts)
    if not isinstance(array, list):
        raise InvalidRequest("parts must be a JSON array of objects", _HINT)
    contents = [_part(number, part, files or ()) for number, part in enumerate(array, 1)]
    boundary = _boundary(contents)
    body = b"".join(
        b"--%s\r\n%s\r\n\r\n%s\r\n" % (boundary, head, content) for head, content in contents
    )
    return f"multipart/form-data; boundary={boundary.decode()}", body + b"--%s--\r\n" % boundary


def _boundary(contents: list[tuple[bytes, bytes]]) -> bytes:
    while True:
        boundary = b"pgnet-%s" % secrets.token_hex(16).encode()
        if not any(boundary in content for _, content in contents):
            return boundary


def _part(number: int, part: object, files: Sequence[bytes | None]) -> tuple[bytes, bytes]:
    """The header lines of one part, and its content."""
    if not isinstance(part, dict):
        raise InvalidRequest(f"part {number} must be a JSON object", _HINT)
    unknown = [key for key in part if key not in _KEYS]
    if unknown:
        raise InvalidRequest(f"part {number} has an unknown key; known: {', '.join(_KEYS)}", _HINT)
    given = [key for key in _CONTENTS if part.get(key) is not None]
    if len(given) != 1:
        raise InvalidRequest(f"part {number} must have one of {', '.join(_CONTENTS)}", _HINT)
    name, filename = _text(number, part, "name"), _text(number, part, "filename")
    content_type = _text(number, part, "content_type")
    if name is None:
        raise InvalidRequest(f"part {number} must have a name", _HINT)
    if content_type is not None and not _MEDIA_TYPE.fullmatch(content_type):
        raise InvalidRequest(f"the content_type of part {number} is not a media type", _HINT)
    kind = given[0]
    content = _content(number, kind, part[kind], files)
    if content_type is None:
        if kind == "json":
            content_type = "application/json"
        elif filename is not None or kind in ("base64", "file"):
            content_type = "application/octet-stream"
    head = f'Content-Disposition: form-data; name="{_quoted(name)}"'
    if filename is not None:
        head += f'; filename="{_quoted(filename)}"'
    if content_type is not None:
        head += f"\r\nContent-Type: {content_type}"
    return _encoded(number, head), content


def _text(number: int, part: dict[str, object], key: str) -> str | None:
    text = part.get(key)
    if text is not None and type(text) is not str:  # a Number is a str, too
        raise InvalidRequest(f"the {key} of part {number} must be a string", _HINT)
    return text


def _content(number: int, kind: str, value: object, files: Sequence[bytes | None]) -> bytes:
    if kind == "json" or (kind == "value" and isinstance(value, bool)):
        return _encoded(number, jsonb_text(value))
    if kind == "file":
        index = int(value) if isinstance(value, Number) and re.fullmatch("[0-9]{1,9}", value) else 0
        content = files[index - 1] if 1 <= index <= len(files) else None
        if content is None:
            raise InvalidRequest(
                f"the file of part {number} must be the number of an element of files, from 1",
                f"There are {len(files)}.",
            )
        return content
    if not isinstance(value, str):
        raise InvalidRequest(f"the {kind} of part {number} must be a string", _HINT)
    if kind == "value":
        return _encoded(number, value)
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"the base64 of part {number} is not valid") from None


def _quoted(text: str) -> str:
    return text.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


def _encoded(number: int, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"part {number} must not contain an unpaired surrogate") from None
