"""What is recorded of an answer: an outcome that the database can hold."""

from __future__ import annotations

import base64
import codecs
import re

from pgnet.exchange import Answer
from pgnet.outbox import Claim, Outcome

# Python's codecs that transform text but are no charsets of the web.
_NO_CHARSETS = frozenset(
    (
        *("idna", "punycode", "undefined", "mbcs", "oem", "utf-7"),
        *("unicode-escape", "unicode_escape", "raw-unicode-escape", "raw_unicode_escape"),
    )
)
_CHARSET = re.compile(r';\s*charset\s*=\s*"?([^\s;"]+)', re.IGNORECASE)


def outcome_of(claim: Claim, answer: Answer | str, storable: Storable) -> Outcome:
    """What is recorded of an answer, or of a request that could not be sent."""
    if isinstance(answer, str):
        return Outcome(claim.id, claim.token, "failed", error_msg=storable.text(answer))
    if answer.error is not None:
        return Outcome(
            claim.id,
            claim.token,
            "failed",
            timed_out=answer.error.timed_out,
            error_msg=storable.text(answer.error.message),
        )
    response = answer.response
    assert response is not None
    content_type = response.headers.get("Content-Type")
    text, encoded = storable.content(response.content, content_type)
    return Outcome(
        claim.id,
        claim.token,
        "succeeded" if response.status_code < 400 else "failed",
        status_code=response.status_code,
        content_type=None if content_type is None else storable.text(content_type),
        headers={storable.text(name): storable.text(value) for name, value in answer.header_list},
        content=text,
        content_base64=encoded,
    )


class Storable:
    """What the database's text can hold: no NUL, no half of a surrogate pair, and its encoding.

    server_encoding is PostgreSQL's name of it.
    """

    def __init__(self, server_encoding: str) -> None:
        self._encoding = "utf-8"
        if server_encoding != "UTF8":
            try:
                self._encoding = codecs.lookup(server_encoding.replace("WIN", "cp")).name
            except LookupError:
                self._encoding = "ascii"

    def text(self, text: str) -> str:
        """The text, with what cannot be held replaced."""
        if text.isascii() and "\0" not in text:
            return text
        return text.replace("\0", "?").encode(self._encoding, "replace").decode(self._encoding)

    def content(
        self, body: bytes | None, content_type: str | None
    ) -> tuple[str | None, str | None]:
        """A body as text; in base64 where it is none in its declared charset (UTF-8 if none)."""
        if not body:
            return None, None
        declared = _CHARSET.search(content_type) if content_type else None
        try:
            charset = codecs.lookup(declared.group(1)).name if declared else "utf-8"
            if charset not in _NO_CHARSETS:
                text = body.decode(charset)
                if not text.isascii():
                    text.encode(self._encoding)
                if "\0" not in text:
                    return text, None
        except (LookupError, ValueError):
            pass  # no text, no charset, or nothing that the database's encoding has
        return None, base64.b64encode(body).decode("ascii")
