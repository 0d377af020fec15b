"""A table with webhooks: the role that owns it, a role that only writes to it, and what is sent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql

from servers.cluster import Database

OWNER, WRITER, HOSTILE = "shop_owner", "shop_writer", "shop_hostile"
URL = "http://127.0.0.1:1025/hook"


class Shop:
    """A database with the table app.orders, which `OWNER` owns and `WRITER` may write to.

    owner, writer: connections of these roles.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        database.execute(f"create schema app authorization {OWNER}")
        database.execute(f"grant usage on schema app to {WRITER}, {HOSTILE}")
        self.owner = database.connect(OWNER)
        self.writer = database.connect(WRITER)
        self.table("orders", "id integer primary key, status text, amount numeric, note json")

    def table(self, name: str, columns: str, more: str = "") -> None:
        """Make a table of the owner's that the writer may write to."""
        self.owner.execute(f"create table app.{name} ({columns}) {more}")
        self.owner.execute(
            f"grant select, insert, update, delete on app.{name} to {WRITER}, {HOSTILE}"
        )

    def webhook(self, name: str = "hook", table: str = "app.orders", **given: Any) -> None:
        """Call net.create_webhook as the owner; what is a dict is given as JSON."""
        create(self.owner, name, table, **given)

    def write(self, statement: str, *arguments: Any) -> psycopg.Cursor[Any]:
        """Run a statement as the writer."""
        return self.writer.execute(statement, arguments or None)

    def queued(self) -> list[Any]:
        """The bodies that wait to be sent, in their order; removes them from the queue."""
        rows = self.database.rows(
            "with taken as (delete from net.http_request_queue returning id, body)"
            " select convert_from(body, 'UTF8') from taken order by id"
        )
        self.database.execute("delete from pgnet.flow")
        return [json.loads(body) if body is not None else None for (body,) in rows]

    def requests(self, columns: str) -> list[tuple[Any, ...]]:
        """Columns of what waits to be sent."""
        return self.database.rows(f"select {columns} from net.http_request_queue q order by id")


def create(
    connection: psycopg.Connection[Any], name: str, table: str = "app.orders", **given: Any
) -> None:
    """Call net.create_webhook by names of arguments."""
    if "endpoint" not in given:
        given.setdefault("url", URL)
    given = {"name": name, "on_table": table} | given
    values = [json.dumps(v) if isinstance(v, dict) else v for v in given.values()]
    connection.execute(
        sql.SQL("select net.create_webhook({})").format(
            sql.SQL(", ").join(sql.SQL("{} => %s").format(sql.Identifier(n)) for n in given)
        ),
        values,
    )


def events(bodies: Sequence[dict[str, Any]]) -> list[tuple[Any, Any, Any]]:
    """Of bodies in the shape of Supabase: event, record, old record."""
    return [(body["type"], body["record"], body["old_record"]) for body in bodies]
