"""Signatures of requests, as Standard Webhooks has them (version 1.0, symmetric).

The worker signs at each attempt, since the time is part of what is signed. With several secrets
there are several signatures: a receiver accepts the request by either, so that secrets can be
changed one side after the other. https://github.com/standard-webhooks/standard-webhooks
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable

from pgnet.request.errors import InvalidRequest

_PREFIX = "whsec_"
# In bytes, by the specification.
_SHORTEST, _LONGEST = 24, 64


def signature_headers(
    message_id: str, timestamp: int, body: bytes | None, secrets: Iterable[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Return the three headers that sign a request.

    message_id: the same at each attempt. timestamp: seconds since the epoch.
    secrets: names and values; a value is ``whsec_`` and a key in base64.

    Raises InvalidRequest for a value that is no such key.
    """
    # The parts of what is signed are told apart by full stops.
    message_id = message_id.replace(".", "_")
    signed = b"%s.%d.%s" % (message_id.encode(), timestamp, body or b"")
    signatures = (
        base64.b64encode(hmac.new(signing_key(name, value), signed, hashlib.sha256).digest())
        for name, value in secrets
    )
    return [
        ("webhook-id", message_id),
        ("webhook-timestamp", str(timestamp)),
        ("webhook-signature", " ".join(f"v1,{signature.decode()}" for signature in signatures)),
    ]


def signing_key(name: str, value: str) -> bytes:
    """Return the key that a secret holds. Raises InvalidRequest, whose text has no value."""
    try:
        key = base64.b64decode(value.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not value.startswith(_PREFIX) or not _SHORTEST <= len(key) <= _LONGEST:
        raise InvalidRequest(
            f'secret "{name}" cannot sign: it has to be "{_PREFIX}" and '
            f"{_SHORTEST} to {_LONGEST} bytes in base64"
        )
    return key
