"""Where the time of a request goes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Timings:
    """Where the time of a request went, in seconds; filled while the request is on its way.

    name, connect, tls: summed over all hops and attempts; zero where a name was known, or a
    connection was used again.
    first_byte: from the start to the first byte of the last answer.
    total: from the start to the end.
    """

    name: float = 0.0
    connect: float = 0.0
    tls: float = 0.0
    first_byte: float = 0.0
    total: float = 0.0
