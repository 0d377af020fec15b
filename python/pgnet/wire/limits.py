"""The limits of what one request may cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of what one request may cost.

    max_response_bytes: of the decoded body.
    max_wire_bytes: of the body as it comes, which may be compressed.
    max_header_bytes: of all header sections of one response.
    max_redirects: hops that are followed; with 0 a redirect is the answer itself.
    connect_timeout: seconds to connect to one server, TLS included.
    """

    max_response_bytes: int = 64 << 20
    max_wire_bytes: int = 64 << 20
    max_header_bytes: int = 256 << 10
    max_redirects: int = 5
    connect_timeout: float = 10.0
