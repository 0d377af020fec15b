"""The requests that clients make: every kind there is, drawn by a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Total time of an attempt in ms. The witness is sometimes slower than the shortest.
_TIMEOUTS = (1500, 4000, 8000)
# Requests of one client with the same ordering key are sent in order.
KEYS = 20
# The host with limits: both hold for all workers together.
CONCURRENCY, RATE, BURST = 4, 30, 10
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
    """One request. key is in its URL: the witness and the checker know it by this key.

    after: the keys of earlier ones. not_before and not_after: seconds from the call. calls: it has
    a callback.
    """

    key: str
    method: str
    timeout_milliseconds: int
    delivery: str
    retry: str | None
    max_attempts: int | None
    idempotency_key: str | None
    ordering_key: str | None = None
    on_failure: str | None = None
    after: tuple[str, ...] = ()
    after_any_end: bool | None = None
    not_before: float | None = None
    not_after: float | None = None
    limited: bool = False
    calls: bool = False


def draw(key: str, choose: random.Random, earlier: Sequence[str] = ()) -> Order:
    """An order; earlier: keys of the same client that may be committed."""
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
        **_draw_flow(choose, earlier),
        calls=choose.random() < 0.3,
    )


def _draw_flow(choose: random.Random, earlier: Sequence[str]) -> dict[str, Any]:
    """What says when a request is sent, and after which others. Most have nothing of it."""
    drawn: dict[str, Any] = {"limited": choose.random() < 0.1}
    if choose.random() < 0.2:
        drawn["ordering_key"] = f"k{choose.randrange(KEYS)}"
        drawn["on_failure"] = choose.choice([None, "block", "skip"])
    if earlier and choose.random() < 0.1:
        drawn["after"] = tuple(choose.sample(earlier, min(len(earlier), choose.randint(1, 3))))
        drawn["after_any_end"] = choose.choice([None, True])
    if choose.random() < 0.1:
        drawn["not_before"] = round(choose.uniform(0.1, 3), 3)
    if choose.random() < 0.1:
        drawn["not_after"] = round(choose.uniform(3.1, 10), 3)
    return drawn


# Keeps what was asked for in the transaction that asks; gives the request's id. An earlier request
# whose transaction came to nothing is left out.
SEND = """
insert into app.sent (
    key, id, method, delivery, retry, max_attempts, idempotency_key, ordering_key, blocks, after,
    after_any_end, not_before, not_after, limited, calls)
select %(key)s::text, net.http_request(
        %(method)s,
        %(url)s || coalesce(%(ordering_key)s::text || '/', '') || %(key)s,
        body_text => case when %(method)s <> 'GET' then 'body of ' || %(key)s::text end,
        timeout_milliseconds => %(timeout_milliseconds)s,
        retry => %(retry)s,
        max_attempts => %(max_attempts)s,
        on_response => case when %(calls)s then 'app.note_call' end,
        options => jsonb_strip_nulls(jsonb_build_object(
            'delivery', %(delivery)s::text, 'idempotency_key', %(idempotency_key)s::text,
            'ordering_key', %(ordering_key)s::text, 'on_failure', %(on_failure)s::text,
            'after', to_jsonb(a.ids),
            'after_any_end', case when a.ids is not null then %(after_any_end)s::boolean end,
            'not_before', %(not_before)s::float8 || ' s',
            'not_after', %(not_after)s::float8 || ' s'))
    ), %(method)s, %(delivery)s, %(retry)s, %(max_attempts)s, %(idempotency_key)s,
    %(ordering_key)s, %(ordering_key)s is not null and %(on_failure)s::text is distinct from 'skip',
    a.ids, %(after_any_end)s::boolean is not null,
    clock_timestamp() + %(not_before)s::float8 * interval '1 s',
    clock_timestamp() + %(not_after)s::float8 * interval '1 s', %(limited)s, %(calls)s
from (select array_agg(s.id) as ids from app.sent s where s.key = any (%(after)s)) a
returning id
"""

# A callback for all of a transaction's requests so far.
MAKE_SET = """
insert into app.made_set (id, ids)
select net.on_all_done(array_agg(s.id order by s.id), 'app.note_set'), array_agg(s.id order by s.id)
from app.sent s where s.key = any (%(keys)s)
having count(*) > 0
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

# Keys whose heads have failed go on without them. What is noted is committed with it.
UNBLOCK = """
with chosen as materialized (
    select b.key, b.head from net.blocked_keys b order by random() limit %(count)s
), unblocked as materialized (
    select c.head from chosen c where net.unblock(c.key)
)
insert into app.let_run (head) select u.head from unblocked u
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
