"""The requests that clients make: every kind there is, drawn by a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

# Total time of an attempt in ms. The witness is sometimes slower than the shortest.
_TIMEOUTS = (1500, 4000, 8000)


@dataclass(frozen=True, slots=True)
class Order:
    """One request. key is in its URL, and what the witness and the checker know it by."""

    key: str
    method: str
    timeout_milliseconds: int
    delivery: str = "at_least_once"
    retry: str | None = None
    max_attempts: int | None = None
    idempotency_key: str | None = None


def draw(key: str, choose: random.Random) -> Order:
    return Order(key, choose.choice(["GET", "POST"]), choose.choice(_TIMEOUTS))


# Keeps what was asked for in the transaction that asks; gives the request's id.
SEND = """
insert into app.sent (key, id, method, delivery, retry, max_attempts, idempotency_key)
select %(key)s::text, net.http_request(
        %(method)s, %(url)s || %(key)s,
        body_text => case %(method)s when 'POST' then 'body of ' || %(key)s::text end,
        timeout_milliseconds => %(timeout_milliseconds)s
    ), %(method)s, %(delivery)s, %(retry)s, %(max_attempts)s, %(idempotency_key)s
returning id
"""
