"""Clients: sessions that make requests in transactions of every fate, and go on after a crash.

The table app.sent says which requests were committed: the same transaction writes it. A client
notes only the server's word: a commit that it was told of must be there, such a rollback must not.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from dataclasses import asdict
from typing import Any

import psycopg

from chaos import orders
from chaos.tally import Tally

# The most requests of a transaction.
_MOST = 8
FATES = {
    "committed": 46,
    "each statement by itself": 6,
    "savepoint released": 8,
    "savepoint rolled back": 12,
    "rolled back": 10,
    "prepared": 10,
    "failed": 4,
    "left without a word": 4,
    "sent again": 4,
    "cancelled": 4,
    "unblocked": 4,
}
# How many of its last keys a client may name in the option after.
_EARLIER = 20

_STEERED = {
    orders.CANCEL: "requests cancelled",
    orders.SEND_AGAIN: "requests sent again",
    orders.UNBLOCK: "keys unblocked",
}


class Clients:
    """`dsns`: how each of them connects. `rate`: requests a second, all together."""

    def __init__(
        self,
        dsns: list[str],
        resolver_dsn: str,
        urls: tuple[str, str],
        rate: float,
        seed: int,
        tally: Tally,
    ) -> None:
        self._url, self._limited_url = urls
        # between transactions of one client, in seconds
        self._pause = len(dsns) / rate * (1 + _MOST) / 2
        self._tally = tally
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        # by keys: the number of the transaction, when it was begun, and when it was acknowledged
        self.acknowledged: dict[str, tuple[int, float, float]] = {}
        # keys
        self.undone: set[str] = set()
        self._transactions = itertools.count()
        self._threads = [
            threading.Thread(
                target=self._work,
                args=(f"c{number}", dsn, random.Random(f"{seed}/client {number}")),
                daemon=True,
            )
            for number, dsn in enumerate(dsns)
        ]
        self._resolver = threading.Thread(
            target=self._resolve,
            args=(resolver_dsn, random.Random(f"{seed}/resolver")),
            daemon=True,
        )
        self._all_done = threading.Event()

    def start(self) -> None:
        for thread in [*self._threads, self._resolver]:
            thread.start()

    def stop(self) -> None:
        """No more requests; what is prepared is resolved."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(90)
            if thread.is_alive():
                raise TimeoutError("a client hangs")
        self._all_done.set()
        self._resolver.join(60)
        if self._resolver.is_alive():
            raise TimeoutError("the one who resolves prepared transactions hangs")

    # ---- a client

    def _work(self, name: str, dsn: str, choose: random.Random) -> None:
        connection: psycopg.Connection[Any] | None = None
        number = 0
        earlier: list[str] = []
        while not self._stopped.wait(choose.expovariate(1 / self._pause)):
            keys = [f"{name}-{number + n}" for n in range(choose.randint(1, _MOST))]
            number += len(keys)
            [fate] = choose.choices(list(FATES), list(FATES.values()))
            made = []
            for key in keys:
                made.append(orders.draw(key, choose, earlier))
                earlier = [*earlier[-_EARLIER:], key]
            try:
                if connection is None:
                    connection = psycopg.connect(dsn, connect_timeout=5)
                getattr(self, "_" + fate.replace(" ", "_"))(connection, made, choose)
                self._tally.add(f"transactions: {fate}")
                if connection.closed:
                    connection = None
            except psycopg.Error as error:
                # what became of it, app.sent says
                self._tally.add("transactions: broken off")
                if not isinstance(error, psycopg.OperationalError):
                    self._tally.add(f"clients' errors: {type(error).__name__}")
                if connection is not None:
                    connection.close()
                    connection = None
                self._stopped.wait(choose.uniform(0.05, 0.3))
        if connection is not None:
            connection.close()

    def _send(self, connection: psycopg.Connection[Any], made: list[orders.Order]) -> None:
        for order in made:
            connection.execute(
                orders.SEND,
                {
                    **asdict(order),
                    "url": self._limited_url if order.limited else self._url,
                    "after": list(order.after),
                },
            )
        if made and made[0].calls:
            connection.execute(orders.MAKE_SET, {"keys": [order.key for order in made]})

    def _note_commit(self, made: list[orders.Order], began: float) -> None:
        span = (next(self._transactions), began, time.time())
        with self._lock:
            self.acknowledged.update((order.key, span) for order in made)

    def _note_rollback(self, made: list[orders.Order]) -> None:
        with self._lock:
            self.undone.update(order.key for order in made)

    def _committed(
        self, connection: psycopg.Connection[Any], made: list[orders.Order], choose: random.Random
    ) -> None:
        began = time.time()
        self._send(connection, made)
        if choose.random() < 0.05:
            # others claim and record meanwhile
            self._stopped.wait(choose.uniform(0, 2))
        connection.commit()
        self._note_commit(made, began)

    def _each_statement_by_itself(
        self, connection: psycopg.Connection[Any], made: list[orders.Order], choose: random.Random
    ) -> None:
        connection.autocommit = True
        for order in made:
            began = time.time()
            self._send(connection, [order])
            self._note_commit([order], began)
        connection.autocommit = False

    def _savepoint_released(
        self, connection: psycopg.Connection[Any], made: list[orders.Order], choose: random.Random
    ) -> None:
        began = time.time()
        for order in made:
            connection.execute("savepoint before")
            self._send(connection, [order])
            connection.execute("release savepoint before")
        connection.commit()
        self._note_commit(made, began)

    def _savepoint_rolled_back(
        self, connection: psycopg.Connection[Any], made: list[orders.Order], choose: random.Random
    ) -> None:
        half = len(made) // 2
        began = time.time()
        self._send(connection, made[:half])
        connection.execute("savepoint before")
        self._send(connection, made[half:])
        connection.execute("rollback to savepoint before")
        connection.commit()
        self._note_commit(made[:half], began)
        self._note_rollback(made[half:])

    def _rolled_back(
        self, connection: psycopg.Connection[Any], made: list[orders.Order], choose: random.Random
    ) -> None:
        self._send(connection, made)
        if choose.random() < 0.05:
            self._stopped.wait(choose.uniform(0, 2))
        connection.rollback()
        self._note_rollback(made)

    def _failed(
        self, connection: psycopg.Connection[Any], made: list[orders.Order], choose: random.Random
    ) -> None:
        self._send(connection, made)
        with contextlib.suppress(psycopg.errors.DivisionByZero):
            connection.execute("select 1 / 0")
        # a COMMIT of it is a rollback
        connection.commit()
        self._note_rollback(made)

    def _left_without_a_word(
        self, connection: psycopg.Connection[Any], made: list[orders.Order], choose: random.Random
    ) -> None:
        self._send(connection, made)
        connection.close()
        self._note_rollback(made)

    def _prepared(
        self, connection: psycopg.Connection[Any], made: list[orders.Order], choose: random.Random
    ) -> None:
        # Another session commits or rolls back, or this one does not learn which.
        self._send(connection, made)
        connection.execute(f"prepare transaction '{made[0].key}'")
        connection.commit()

    def _sent_again(
        self, connection: psycopg.Connection[Any], made: list[orders.Order], choose: random.Random
    ) -> None:
        self._steer(connection, orders.SEND_AGAIN, made, choose)

    def _cancelled(
        self, connection: psycopg.Connection[Any], made: list[orders.Order], choose: random.Random
    ) -> None:
        self._steer(connection, orders.CANCEL, made, choose)

    def _unblocked(
        self, connection: psycopg.Connection[Any], made: list[orders.Order], choose: random.Random
    ) -> None:
        self._steer(connection, orders.UNBLOCK, made, choose)

    def _steer(
        self,
        connection: psycopg.Connection[Any],
        statement: str,
        made: list[orders.Order],
        choose: random.Random,
    ) -> None:
        try:
            done = connection.execute(statement, {"count": len(made)}).rowcount
        except psycopg.errors.NoDataFound:
            # Another client was faster.
            connection.rollback()
            return
        if choose.random() < 0.2:
            self._stopped.wait(choose.uniform(0, 1))
        if choose.random() < 0.2:
            connection.rollback()
            return
        connection.commit()
        self._tally.add(_STEERED[statement], done)

    # ---- who ends what others have prepared

    def _resolve(self, dsn: str, choose: random.Random) -> None:
        while True:
            last = self._all_done.is_set()
            with contextlib.suppress(psycopg.Error):
                with psycopg.connect(dsn, autocommit=True, connect_timeout=5) as connection:
                    while not self._resolve_some(connection, choose) or not last:
                        time.sleep(0.3)
                        last = self._all_done.is_set()
                return
            time.sleep(0.3)

    def _resolve_some(self, connection: psycopg.Connection[Any], choose: random.Random) -> bool:
        """End some of what is prepared; whether nothing was left before."""
        found = connection.execute("select gid from pg_prepared_xacts order by gid").fetchall()
        for (gid,) in found:
            if choose.random() < 0.4:
                way = choose.choice(["commit", "commit", "rollback"])
                connection.execute(f"{way} prepared '{gid}'")
                self._tally.add(f"transactions: prepared, then {way}")
        return not found
