"""Many keys at once, while requests fail and workers are killed: each key in order, one at a time.

ORDER_KEYS and ORDER_REQUESTS make it larger than it is in the suite.
"""

from __future__ import annotations

import os
import random
import threading
import time
from contextlib import ExitStack

import pytest

from servers.cluster import Database, Worker
from servers.ordered import Ordered, serving

KEYS = int(os.environ.get("ORDER_KEYS", "100"))
REQUESTS = int(os.environ.get("ORDER_REQUESTS", "30"))
CALLERS = 4
# Each worker is killed so many seconds after another one.
LIFE = 1.5


def enqueue(database: Database, url: str, caller: int) -> None:
    """Queue the requests of some keys, those of a key in the order of their numbers.

    Transactions have some requests each; some are rolled back, and made once more.
    """
    chance = random.Random(caller)
    with database.connect(autocommit=False) as connection:
        left = {f"k{n}": 0 for n in range(caller, KEYS, CALLERS)}
        while left:
            for key in chance.sample(sorted(left), min(len(left), 5)):
                until = min(left[key] + chance.randrange(1, 5), REQUESTS)
                for number in range(left[key], until):
                    connection.execute(
                        "select net.http_request('POST', %s, options => %s::jsonb,"
                        " retry => 'often')",
                        (
                            f"{url}/{key}/{number}",
                            f'{{"ordering_key": "{key}"'
                            + (', "on_failure": "skip"}' if number % 7 == 0 else "}"),
                        ),
                    )
                if chance.random() < 0.1:
                    connection.rollback()
                    continue
                connection.commit()
                left[key] = until
                if until == REQUESTS:
                    del left[key]


def kill_some(database: Database, over: threading.Event, number: int) -> None:
    """Run workers, and kill one after the other."""
    running: list[tuple[ExitStack, Worker]] = []

    def start() -> None:
        stack = ExitStack()
        running.append((stack, stack.enter_context(database.worker(seen=False))))

    for _ in range(number):
        start()
    while not over.wait(LIFE):
        stack, worker = running.pop(0)
        worker.kill()
        stack.close()
        start()
    for stack, _ in running:
        stack.close()


def unblock_some(database: Database, chance: random.Random) -> None:
    """Decide about blocked keys: the head goes again, or is given up."""
    for key, head in database.rows("select key, head from net.blocked_keys"):
        if chance.random() < 0.5:
            database.execute("select net.retry(%s)", head)
        elif chance.random() < 0.5:
            database.execute("select net.unblock(%s)", key)
        else:
            database.execute("select net.cancel(%s)", head)


@pytest.mark.parametrize("workers", [3])
def test_each_key_in_order_and_one_at_a_time(database: Database, workers: int) -> None:
    database.execute("select net.configure('rescue_after', '1 s')")
    database.execute(
        'select net.configure_retry(\'often\', \'{"max_attempts": 3, "backoff_milliseconds": 10,'
        ' "methods": "any"}\')'
    )
    # The more keys are blocked, the more of what is sent are requests that fail.
    database.execute("select net.configure_host('*', '{\"breaker\": false}')")
    # One in twelve fails at first, some of them often enough to block their key.
    server = Ordered(
        lambda key, number, times: hash((key, number)) % 12 == 0 and times < hash((number, key)) % 7
    )
    over = threading.Event()
    chance = random.Random(1)
    with serving(server), ExitStack() as stack:
        killer = threading.Thread(target=kill_some, args=(database, over, workers))
        killer.start()
        stack.callback(killer.join)
        stack.callback(over.set)
        callers = [
            threading.Thread(target=enqueue, args=(database, server.url, caller))
            for caller in range(CALLERS)
        ]
        for caller in callers:
            caller.start()
        give_up = time.monotonic() + 60 + KEYS * REQUESTS / 50
        while any(caller.is_alive() for caller in callers) or database.value(
            "select count(*) > 0 from net.http_request_queue"
        ):
            unblock_some(database, chance)
            time.sleep(0.2)
            assert time.monotonic() < give_up, database.rows(
                "select gate, count(*) from pgnet.flow group by gate"
            )
    assert server.faults == []
    assert len(server.seen) == KEYS
    # A request that was given up had been the head of its key: it was sent, too.
    assert all(sorted(set(numbers)) == list(range(REQUESTS)) for numbers in server.seen.values())
    assert server.most_at_once > 5
    for table in ("pgnet.flow", "pgnet.claim", "pgnet.blocked_key", "pgnet.dependency"):
        assert database.value(f"select count(*) from {table}") == 0, table
