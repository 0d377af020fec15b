"""Requests to httpbin by SQL, and what is stored of its answers."""

from __future__ import annotations

import base64
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from servers.cluster import Database

Row = dict[str, Any]


JSON_ARGUMENTS = ("body", "params", "headers", "body_form", "context", "options")


BOTH = pytest.mark.parametrize("kind", ["process", "backend"], indirect=True)


NUL = bytes(range(256))


@dataclass
class Asker:
    """Queues a request, has it sent, and gives what stands in net.responses."""

    database: Database
    base: str
    drains: bool

    def __call__(self, method: str, path: str, **arguments: Any) -> Row:
        """Ask by net.http_request; path is that of a URL at httpbin, or a whole URL."""
        return self.function("http_request", path, method=method, **arguments)

    def function(self, function: str, path: str, **arguments: Any) -> Row:
        """Ask by one of the functions that queue a request."""
        arguments["url"] = path if "://" in path else self.base + path
        named = ", ".join(f"{name} => %({name})s" for name in arguments)
        for name in JSON_ARGUMENTS:
            if name in arguments:
                arguments[name] = Jsonb(arguments[name])
        return self.select(f"select net.{function}({named})", arguments)

    def select(self, statement: str, arguments: Row | None = None) -> Row:
        """Ask by a statement that gives the request's id."""
        connection = self.database.connection
        found = connection.execute(statement, arguments).fetchone()
        assert found is not None
        if self.drains:
            connection.execute("call net.drain()")
        else:
            connection.execute("select net.wait(%s, '15 s')", found)
        with connection.cursor(row_factory=dict_row) as cursor:
            row = cursor.execute("select * from net.responses where id = %s", found).fetchone()
        assert row is not None, "no outcome"
        # A redirect whose target gave no answer has failed, and so has a request without a status.
        passed_on = row["error_msg"] is not None and row["final_url"] != row["url"]
        if not (passed_on and row["status_code"] in (301, 302, 303, 307, 308)):
            assert row["state"] == ("succeeded" if is_success(row) else "failed")
        assert row["error_msg"] is not None or row["status_code"] is not None
        return row


def is_success(row: Row) -> bool:
    return row["status_code"] is not None and row["status_code"] < 400


def header(row: Row, name: str) -> list[str]:
    """The values of a response's header, in their order."""
    return [value for field, value in row["header_list"] if field.lower() == name.lower()]


def content(row: Row) -> bytes:
    """The body's bytes, whichever column they are in."""
    assert row["content"] is None or row["content_bytes"] is None
    if row["content_bytes"] is not None:
        return bytes(row["content_bytes"])
    return (row["content"] or "").encode()


def httpbins(path: str) -> bytes:
    """A file of the package."""
    spec = importlib.util.find_spec("httpbin")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "templates" / path).read_bytes()


def data_url(data: bytes) -> str:
    """How httpbin shows what is no text."""
    return "data:application/octet-stream;base64," + base64.b64encode(data).decode()
