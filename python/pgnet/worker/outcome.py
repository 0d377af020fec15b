"""The outcome that is recorded of an answer, in a form that the database can store."""

from __future__ import annotations

import base64
import codecs
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pgnet.outbox import Claim, Outcome
from pgnet.request.address import literal_address
from pgnet.secret.mask import MASK, Mask
from pgnet.wire.answer import Answer
from pgnet.wire.charset import read_text
from pgnet.wire.guard import is_public
from pgnet.worker.assemble import Assembled
from pgnet.worker.retry import NONE, Policy

# A text goes into the database as JSON. A text of more bytes than this goes in base64 where that is
# shorter, and where Python holds it in two or four times as many bytes as the body has: there are
# several copies of it on the way.
_LARGE = 1 << 20
# The characters that JSON escapes by two characters, and by six.
_ESCAPED, _CONTROLS = b'"\\\b\t\n\f\r', bytes(c for c in range(32) if c not in b"\b\t\n\f\r")


@dataclass(frozen=True, slots=True)
class NotSent:
    """Why a request was not sent, and the state in which it ends."""

    reason: str
    state: str = "failed"


def make_outcome(
    claim: Claim,
    answer: Answer | NotSent,
    storable: Storable,
    assembled: Assembled | None = None,
    policy: Policy = NONE,
) -> Outcome:
    """Return the outcome to record of an answer, or of a request that was not sent.

    assembled: what was sent; its masks hide the secrets in what is recorded. policy: says which
    answers are a success.
    """
    if isinstance(answer, NotSent):
        return _outcome_of_not_sent(claim, answer, storable)
    masks = () if assembled is None else assembled.masks
    secret_url = assembled is not None and assembled.has_secret_url

    def text_of(text: str) -> str:
        for mask in masks:
            text = mask.text(text)
        return storable.text(text)

    timings = answer.timings
    measured: dict[str, Any] = {
        "redirects": answer.redirects,
        "address": _address_to_show(answer),
        "name_ms": timings.name * 1000,
        "connect_ms": timings.connect * 1000,
        "tls_ms": timings.tls * 1000,
        "total_ms": timings.total * 1000,
    }
    if answer.redirects:
        # Nobody knows how much of a secret URL a redirect repeats.
        measured["final_url"] = _origin(answer.url) if secret_url else text_of(answer.url)
    error = answer.error
    status = answer.status_code
    if error is not None:
        measured |= {"timed_out": error.timed_out, "error_msg": text_of(error.message)}
    if status is None:
        return Outcome(claim.id, claim.token, "failed", **measured)
    content_type = answer.header("Content-Type")
    header_list = _without_location(answer.header_list) if secret_url else answer.header_list
    if masks or not is_plain("".join([name + value for name, value in header_list])):
        header_list = [(text_of(name), text_of(value)) for name, value in header_list]
    return Outcome(
        claim.id,
        claim.token,
        "succeeded" if answer.is_final and policy.accepts(status) else "failed",
        status_code=status,
        content_type=None if content_type is None else text_of(content_type),
        headers=dict(header_list),
        header_list=header_list,
        http_version=answer.http_version,
        first_byte_ms=timings.first_byte * 1000,
        **storable.content(answer, content_type, masks),
        **measured,
    )


def _outcome_of_not_sent(claim: Claim, answer: NotSent, storable: Storable) -> Outcome:
    message = storable.text(answer.reason)
    unreadable = None if claim.fault is None else True
    return Outcome(claim.id, claim.token, answer.state, error_msg=message, unreadable=unreadable)


def _without_location(fields: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Headers that do not show where a redirect leads that was not followed."""
    return [(name, MASK if name.lower() == "location" else value) for name, value in fields]


def _origin(url: str) -> str:
    return "/".join(url.split("/", 3)[:3]) + "/"


def _address_to_show(answer: Answer) -> str | None:
    """The address that an answer came from; None for an inner one that the URL does not name.

    A role that may send requests to a name, or through a proxy, does not learn the inner address.
    """
    address = answer.address
    if address is None or is_public(address):
        return address
    # urlsplit is not used, since it remembers URLs.
    authority = answer.url.split("/", 3)[2]
    end = "]" if authority.startswith("[") else ":"
    host = authority.partition(end)[0].removeprefix("[")
    return address if literal_address(host) == address else None


def is_plain(text: str) -> bool:
    """Whether a database of any encoding can store a text: ASCII without NUL."""
    return text.isascii() and "\0" not in text


class Storable:
    """The text that the database can store: no NUL, no half of a surrogate pair, and only
    what its encoding has.

    server_encoding: the encoding, by PostgreSQL's name.
    """

    def __init__(self, server_encoding: str) -> None:
        self._encoding = "utf-8"
        if server_encoding != "UTF8":
            try:
                self._encoding = codecs.lookup(server_encoding.replace("WIN", "cp")).name
            except LookupError:
                self._encoding = "ascii"

    def text(self, text: str) -> str:
        """The text, with a question mark for each character that cannot be stored."""
        if is_plain(text):
            return text
        return text.replace("\0", "?").encode(self._encoding, "replace").decode(self._encoding)

    def content(
        self, answer: Answer, content_type: str | None, masks: Sequence[Mask] = ()
    ) -> dict[str, Any]:
        """An answer's body as fields of an Outcome: as text, or in base64 where it is not text.

        masks: applied to either.
        """
        body = answer.content
        if not body:
            return {}
        # Where a body was cut, it may end with a part of a secret, which no mask finds. So as many
        # characters go as a secret has.
        hidden = 0 if answer.is_whole else max((mask.longest for mask in masks), default=0)
        text = self._text(answer, content_type, masks, hidden)
        if text is not None:
            if len(body) <= _LARGE or not _is_long_as_json(text, body):
                return {"content": text} if text else {}
            data = text.encode()
            # One wide character makes all others take four bytes, so the text may be the largest.
            del text
            return {"text_base64": _base64(data)}
        if masks and answer.as_it_came:
            # Still coded, such as with gzip: masks find nothing in it, and its reader would.
            return {}
        for mask in masks:
            body = mask.bytes(body)
        if hidden:
            body = body[:-hidden]
        return {"content_base64": _base64(body)} if body else {}

    def _text(
        self, answer: Answer, content_type: str | None, masks: Sequence[Mask], hidden: int
    ) -> str | None:
        """An answer's body as text, without its last `hidden` characters.

        None where it is not text, or not text that the database can store.
        """
        try:
            text = read_text(answer.content, content_type, is_whole=answer.is_whole)
            for mask in masks:
                text = mask.text(text)
            if hidden:
                text = text[:-hidden]
            if not text.isascii():
                text.encode(self._encoding)
        except (LookupError, ValueError):
            return None
        return None if "\0" in text else text


def _is_long_as_json(text: str, body: bytes) -> bool:
    """Whether a text that was read from a body is longer as JSON, in memory too, than in base64."""
    if sys.getsizeof(text) >= 2 * len(body):
        return True
    # Counted in the body, which is nearly the same as the text: bytes are searched faster.
    more = _count(body, _ESCAPED) + 5 * _count(body, _CONTROLS)
    return more > len(body) / 3


def _count(body: bytes, characters: bytes) -> int:
    return len(body) - len(body.translate(None, characters))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
