"""What a webhook costs the statement that changes its table, beside the same without one."""

from __future__ import annotations

import time
from typing import Any

import pytest

from servers.shop import Shop

ROWS = 10_000


def seconds(shop: Shop, statement: str, prepare: str | None = None) -> tuple[float, float]:
    """The least times of a statement, of runs in turn without a webhook and with one.

    Others use the machine: the least is what the statement itself takes.
    """
    taken: dict[str, list[float]] = {"plain": [], "hooked": []}
    for _ in range(12):
        for table, times in taken.items():
            with shop.owner.transaction(force_rollback=True):
                if prepare:
                    shop.owner.execute(prepare.format(table=table))
                began = time.perf_counter()
                shop.owner.execute(statement.format(table=table))
                times.append(time.perf_counter() - began)
    return min(taken["plain"]), min(taken["hooked"])


def two_tables(shop: Shop) -> None:
    columns = (
        "id integer primary key, customer uuid, status text, amount numeric(10, 2),"
        " created timestamptz default now()"
    )
    shop.table("plain", columns)
    shop.table("hooked", columns)


INSERT = (
    "insert into app.{table} (id, customer, status, amount)"
    " select n, gen_random_uuid(), 'new', n / 7.0 from generate_series(1, 10000) n"
)


@pytest.mark.parametrize(("per", "most"), [("row", 12), ("statement", 3)])
def test_an_insert_of_many_rows(
    shop: Shop, per: str, most: int, capsys: pytest.CaptureFixture[str]
) -> None:
    two_tables(shop)
    shop.webhook(table="app.hooked", per=per)
    for _ in range(3):
        bare, hooked = seconds(shop, INSERT)
        if hooked < most * bare:
            break
    with capsys.disabled():
        print(
            f" [{per}: {hooked / ROWS * 1e6:.1f} µs a row, bare {bare / ROWS * 1e6:.1f},"
            f" {hooked / bare:.1f} times]",
            end="",
        )
    assert hooked < most * bare


@pytest.mark.parametrize("given", [{"columns": ["status"]}, {"condition": "new.status = 'paid'"}])
def test_an_update_that_sends_nothing(
    shop: Shop, given: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """At most 3 µs a row."""
    two_tables(shop)
    shop.webhook(table="app.hooked", events=["UPDATE"], **given)
    bare, hooked = seconds(shop, "update app.{table} set amount = amount + 1", INSERT)
    more = (hooked - bare) / ROWS * 1e6
    with capsys.disabled():
        print(f" [{more:.2f} µs a row]", end="")
    assert more < 3
