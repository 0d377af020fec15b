"""The requests that clients make: every kind there is, drawn by a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

# Total time of an attempt in ms. The witness is sometimes slower than the shortest.
_TIMEOUTS = (1500, 4000, 8000)
# Policies of the run's own: a quick one, one for clocks that jump by a day, one for everything.
QUICK = "quick"
QUICK_SETTINGS = {
    "max_attempts": 4,
    "backoff_milliseconds": 200,
    "max_backoff_milliseconds": 2000,
    "methods": "any",
    "errors": "any",
    "max_retry_after_milliseconds": 2000,
    "total_milliseconds": 2592000000,
}
_RETRY = {None: 30, "none": 5, "safe": 20, QUICK: 35, "webhook": 10}


@dataclass(frozen=True, slots=True)
class Order:
    """One request. key is in its URL: the witness and the checker know it by this key."""

    key: str
    method: str
    timeout_milliseconds: int
    delivery: str
    retry: str | None
    max_attempts: int | None
    idempotency_key: str | None


def draw(key: str, choose: random.Random) -> Order:
    [retry] = choose.choices(list(_RETRY), list(_RETRY.values()))
    max_attempts = None
    if retry == "webhook":
        # The third attempt comes after 20 s at the latest; later ones would come after minutes.
        max_attempts = choose.randint(1, 3)
    elif retry is not None:
        max_attempts = choose.choice([None, None, 2, 6])
    return Order(
        key,
        choose.choice(["GET", "POST", "PUT"]),
        choose.choice(_TIMEOUTS),
        choose.choices(["at_least_once", "at_most_once"], [65, 35])[0],
        retry,
        max_attempts,
        f"asked for by {key}" if choose.random() < 0.15 else None,
    )


# Keeps what was asked for in the transaction that asks; gives the request's id.
SEND = """
insert into app.sent (key, id, method, delivery, retry, max_attempts, idempotency_key)
select %(key)s::text, net.http_request(
        %(method)s, %(url)s || %(key)s,
        body_text => case when %(method)s <> 'GET' then 'body of ' || %(key)s::text end,
        timeout_milliseconds => %(timeout_milliseconds)s,
        retry => %(retry)s,
        max_attempts => %(max_attempts)s,
        options => jsonb_strip_nulls(jsonb_build_object(
            'delivery', %(delivery)s::text, 'idempotency_key', %(idempotency_key)s::text))
    ), %(method)s, %(delivery)s, %(retry)s, %(max_attempts)s, %(idempotency_key)s
returning id
"""

# A few that have failed are sent again, but none that is to be sent at most once: the witness could
# not tell the two requests apart.
SEND_AGAIN = """
insert into app.sent_again (id, former)
select net.retry(f.id), f.id
from (
    select f.id from net.failures f
    where f.state = 'failed' and f.options ->> 'delivery' is distinct from 'at_most_once'
    order by random() limit %(count)s
) f
"""

# A few that are on their way are cancelled.
CANCEL = """
with chosen as materialized (
    select r.id from net.requests r
    where r.state < 'succeeded' and random() < 0.5 order by r.id desc limit %(count)s
), cancelled as materialized (
    select c.id, net.cancel(c.id) as done from chosen c
)
insert into app.cancelled (id) select c.id from cancelled c where c.done
"""
