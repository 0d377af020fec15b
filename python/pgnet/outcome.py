"""What is recorded of an answer: an outcome that the database can hold."""

from __future__ import annotations

import base64
import codecs
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from pgnet.assemble import Assembled
from pgnet.exchange import Answer
from pgnet.guard import is_public
from pgnet.host import literal_address
from pgnet.outbox import Claim, Outcome
from pgnet.retry import NONE, Policy
from pgnet.secret import Mask

# Python's codecs that transform text but are no charsets of the web.
_NO_CHARSETS = frozenset(
    (
        *("idna", "punycode", "undefined", "mbcs", "oem", "utf-7"),
        *("unicode-escape", "unicode_escape", "raw-unicode-escape", "raw_unicode_escape"),
    )
)
_CHARSET = re.compile(r';\s*charset\s*=\s*"?([^\s;"]+)', re.IGNORECASE)


def outcome_of(
    claim: Claim,
    answer: Answer | str,
    storable: Storable,
    assembled: Assembled | None = None,
    policy: Policy = NONE,
) -> Outcome:
    """What is recorded of an answer, or of a request that could not be sent.

    assembled: what was sent; its secrets do not come back in what is recorded. policy: says which
    answers are a success.
    """
    if isinstance(answer, str):
        return Outcome(claim.id, claim.token, "failed", error_msg=storable.text(answer))
    masks = () if assembled is None else assembled.masks

    def text_of(text: str) -> str:
        for mask in masks:
            text = mask.text(text)
        return storable.text(text)

    timings = answer.timings
    measured: dict[str, Any] = {
        "redirects": answer.redirects,
        "address": _told_address(answer),
        "name_ms": timings.name * 1000,
        "connect_ms": timings.connect * 1000,
        "tls_ms": timings.tls * 1000,
        "total_ms": timings.total * 1000,
    }
    if answer.redirects:
        # Of a secret URL's redirect nobody knows how much of the secret it repeats.
        secret_url = assembled is not None and assembled.secret_url
        measured["final_url"] = _origin(answer.url) if secret_url else text_of(answer.url)
    if answer.error is not None:
        return Outcome(
            claim.id,
            claim.token,
            "failed",
            timed_out=answer.error.timed_out,
            error_msg=text_of(answer.error.message),
            **measured,
        )
    status = answer.status_code
    assert status is not None
    content_type = answer.header("Content-Type")
    text, encoded = storable.content(answer.content, content_type, masks)
    header_list = answer.header_list
    if masks or not is_plain("".join([name + value for name, value in header_list])):
        header_list = [(text_of(name), text_of(value)) for name, value in header_list]
    return Outcome(
        claim.id,
        claim.token,
        "succeeded" if policy.accepts(status) else "failed",
        status_code=status,
        content_type=None if content_type is None else text_of(content_type),
        headers=dict(header_list),
        header_list=header_list,
        content=text,
        content_base64=encoded,
        http_version=answer.http_version,
        first_byte_ms=timings.first_byte * 1000,
        **measured,
    )


def _origin(url: str) -> str:
    return "/".join(url.split("/", 3)[:3]) + "/"


def _told_address(answer: Answer) -> str | None:
    """The address of an answer, but for one of the inner network that the URL does not name.

    A role that may send requests to a name, or by a proxy, does not learn from it where that is.
    """
    address = answer.address
    if address is None or is_public(address):
        return address
    host = urlsplit(answer.url).hostname or ""
    return address if literal_address(host) == address else None


def is_plain(text: str) -> bool:
    """Whether any database can hold a text: ASCII without NUL."""
    return text.isascii() and "\0" not in text


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
        if is_plain(text):
            return text
        return text.replace("\0", "?").encode(self._encoding, "replace").decode(self._encoding)

    def content(
        self, body: bytes | None, content_type: str | None, masks: Sequence[Mask] = ()
    ) -> tuple[str | None, str | None]:
        """A body as text; in base64 where it is none in its declared charset (UTF-8 if none).

        masks: hide what they do in either.
        """
        if not body:
            return None, None
        declared = _CHARSET.search(content_type) if content_type else None
        try:
            charset = codecs.lookup(declared.group(1)).name if declared else "utf-8"
            if charset not in _NO_CHARSETS:
                text = body.decode(charset)
                for mask in masks:
                    text = mask.text(text)
                if not text.isascii():
                    text.encode(self._encoding)
                if "\0" not in text:
                    return text, None
        except (LookupError, ValueError):
            pass  # no text, no charset, or nothing that the database's encoding has
        for mask in masks:
            body = mask.bytes(body)
        return None, base64.b64encode(body).decode("ascii")
