"""A database with secrets, a worker, and two servers: one may see the secrets, one may not."""

from __future__ import annotations

import base64
import contextlib
import html
import http.server
import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, unquote

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from servers.canary import found_in, logs
from servers.cluster import (
    Cluster,
    Database,
    Worker,
)

API = "https://api.example/v1/"


def put(database: Database, name: str | None, value: str | None, prefix: str | None = None) -> None:
    database.execute("select net.set_secret(%s, %s, %s)", name, value, prefix)


def refusal(caught: pytest.ExceptionInfo[psycopg.Error]) -> str:
    """The message of an error; it must not contain a secret."""
    diag = caught.value.diag
    parts = (diag.message_primary, diag.message_detail, diag.message_hint, diag.context)
    text = "\n".join(part for part in parts if part)
    assert not found_in(text)
    assert not found_in(str(caught.value))
    return diag.message_primary or ""


def logs_parameters_of_plans(database: Database) -> bool:
    """Whether auto_explain logs the parameters of statements: from PostgreSQL 16 on."""
    return database.connection.info.server_version >= 160000


# The sessions of `store`, by database: to start Python in a new one takes longest.
silent: dict[str, psycopg.Connection[Any]] = {}


def store(database: Database, name: str, value: str, prefix: str | None = None) -> None:
    """Set a secret as the command does, in a session that is silent where others are not."""
    quiet = [
        "log_parameter_max_length=0",
        "log_parameter_max_length_on_error=0",
        "plan_cache_mode=force_generic_plan",
    ]
    if database.dsn() not in silent:
        if logs_parameters_of_plans(database):
            quiet.append("auto_explain.log_parameter_max_length=0")
        options = " ".join(f"-c {setting}" for setting in quiet)
        silent[database.dsn()] = database.connect(options=options)
    silent[database.dsn()].execute("select net.set_secret(%s, %s, %s)", (name, value, prefix))


def observed(cluster: Cluster) -> Database:
    """Make a database in that cluster, with pg_stat_statements if it is there."""
    database = cluster.create_database()
    database.execute("select net.allow_network('loopback')")
    # What one test's failures teach about a host is not for the next test.
    learnt = {"breaker": False, "adaptive": False, "max_retry_after_milliseconds": 0}
    database.execute("select net.configure_host('*', %s)", Jsonb(learnt))
    if "pg_stat_statements.track" in cluster.options:
        database.execute("create extension pg_stat_statements")
    return database


# How far `nowhere` has read each log.
looked_at: dict[Path, int] = {}


def nowhere(database: Database) -> None:
    """The canary is in no log, and in no table or view of the extension but its own."""
    for path in logs(database.cluster.directory):
        with path.open("rb") as file:
            # do not read again what was read, but for a match that may begin there
            file.seek(max(0, looked_at.get(path, 0) - 1000))
            content = file.read()
            looked_at[path] = file.tell()
        assert not found_in(content), path
    relations = database.rows(
        "select c.oid::regclass::text from pg_class c where c.relkind in ('r', 'v', 'm', 'p', 'f')"
        " and (c.relnamespace = any ('{net,pgnet}'::regnamespace[]) or c.oid in ("
        " to_regclass('pg_stat_statements'), 'pg_catalog.pg_stat_activity'::regclass,"
        " 'pg_catalog.pg_statistic'::regclass, 'pg_catalog.pg_prepared_statements'::regclass))"
        " and c.oid <> 'pgnet.secret'::regclass"
    )
    assert ("net._http_response",) in relations
    for (relation,) in relations:
        rows = database.rows(f"select x::text from {relation} x")
        assert not found_in("\n".join(str(text) for (text,) in rows)), relation


@dataclass
class Site:
    """A server that repeats what it was told, in the way that the path asks for.

    received: each request as it came, byte for byte but for the decoding from Latin-1.
    """

    url: str = ""
    received: list[str] = field(default_factory=list)
    to: str = ""
    release: threading.Event = field(default_factory=threading.Event)

    def take(self) -> str:
        """The only request so far."""
        assert len(self.received) == 1, self.received
        return self.received.pop()


def shown(handler: http.server.BaseHTTPRequestHandler) -> str:
    """All texts of a request: its target, decoded too, and the values of its fields."""
    target = handler.path.partition("?")[2] and handler.path
    values = [v for n, v in handler.headers.items() if n.lower() not in ("host", "user-agent")]
    return "|".join([*values, target, unquote(target)])


class Repeats(http.server.BaseHTTPRequestHandler):
    """/v1/WAY/…: what `shown` gives of the request, in the way of that name."""

    protocol_version = "HTTP/1.1"
    # one write an answer: a second one would wait for the client's acknowledgement of the first
    wbufsize = -1
    site: ClassVar[Site]

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = (self.raw_requestline.decode("latin-1"), str(self.headers), body.decode("latin-1"))
        self.site.received.append("".join(parts))
        way = self.path.split("/")[2] if self.path.startswith("/v1/") else ""
        getattr(self, f"way_{way.partition('?')[0]}", self.way_ok)(shown(self))
        self.wfile.flush()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""

    def answer(
        self,
        body: bytes,
        status: int = 200,
        kind: str = "text/plain; charset=utf-8",
        phrase: str | None = None,
        more: Mapping[str, str] | None = None,
    ) -> None:
        self.send_response(status, phrase)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (more or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def way_ok(self, _told: str) -> None:
        self.answer(b"ok")

    def way_plain(self, told: str) -> None:
        self.answer(told.encode())

    def way_failing(self, told: str) -> None:
        self.answer(told.encode(), 500)

    def way_json(self, told: str) -> None:
        self.answer(json.dumps({"told": told}).encode(), kind="application/json")

    def way_percent(self, told: str) -> None:
        self.answer(quote(told, safe="").encode())

    def way_html(self, told: str) -> None:
        self.answer(f"<p>{html.escape(told)}</p>".encode(), kind="text/html")

    def way_base64(self, told: str) -> None:
        self.answer(base64.b64encode(told.encode()))

    def way_utf16(self, told: str) -> None:
        self.answer(told.encode("utf-16"), kind="text/plain; charset=utf-16")

    def way_binary(self, told: str) -> None:
        self.answer(b"\0\xff" + told.encode() + b"\0", kind="application/octet-stream")

    def way_utf16_binary(self, told: str) -> None:
        self.answer(b"\0" + told.encode("utf-16-le"), kind="application/octet-stream")

    def way_fields(self, told: str) -> None:
        more = {"X-Told": told.replace("\n", ""), "Set-Cookie": f"a={quote(told)}", "ETag": told}
        self.answer(b"ok", more=more, kind=f"text/plain; told={quote(told, safe='')}")

    def way_phrase(self, told: str) -> None:
        self.answer(b"ok", 418, phrase=told)

    def way_garbage(self, told: str) -> None:
        self.close_connection = True
        self.wfile.write(f"HTTP/7 {told}\r\n\r\n".encode())

    def way_short(self, told: str) -> None:
        self.close_connection = True
        self.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{told}".encode())

    def way_location(self, told: str) -> None:
        """Redirects to where the site points, and repeats all of it there."""
        self.answer(b"", 302, more={"Location": f"{self.site.to}?told={quote(told, safe='')}"})

    def way_to(self, _told: str) -> None:
        """Redirects to where the site points."""
        self.answer(b"", int(self.path.split("/")[3]), more={"Location": self.site.to})

    def way_later(self, told: str) -> None:
        self.site.release.wait(20)
        self.answer(told.encode())

    def way_never(self, _told: str) -> None:
        self.rfile.read(1)
        self.close_connection = True


@contextlib.contextmanager
def serving(handler: type[Repeats] = Repeats, tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    """A site of that kind, on a port of 127.0.0.1."""
    site = Site()
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Handler", (handler,), {"site": site})
    )
    if tls is not None:
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    server.daemon_threads = True
    scheme = "http" if tls is None else "https"
    site.url = f"{scheme}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield site
    finally:
        site.release.set()
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Scene:
    """A database with a worker, the server that secrets are for, and one that must not see any."""

    database: Database
    worker: Worker
    directory: Path
    home: Site
    foreign: Site
    made: int = 0

    def secret(self, value: str, path: str = "/v1/") -> str:
        """Store a secret for the home server; give its name."""
        self.made += 1
        name = f"s{self.made}"
        store(self.database, name, value, self.home.url + path)
        return name

    def held(self, content: bytes, path: str = "/v1/") -> str:
        """The same for one that the worker holds itself."""
        self.made += 1
        name = f"s{self.made}"
        (self.directory / name).write_bytes(content)
        put(self.database, name, None, self.home.url + path)
        return name

    def ask(self, url: str, headers: Any = None, **more: Any) -> dict[str, Any]:
        """Have a request made, wait for its end, and give its row of net.responses."""
        return self.wait(self.begin(url, headers, **more))

    def begin(self, url: str, headers: Any = None, **more: Any) -> int:
        arguments = {"url": url, "headers": None if headers is None else Jsonb(headers), **more}
        named = ", ".join(f"{name} => %({name})s" for name in arguments)
        row = self.database.connection.execute(
            f"select net.http_request('GET', {named})", arguments
        ).fetchone()
        assert row is not None
        request_id: int = row[0]
        return request_id

    def wait(self, request_id: int) -> dict[str, Any]:
        with self.database.connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute("select (net.wait(%s, '30 s')).state", (request_id,))
            row = cursor.execute(
                "select * from net.responses where id = %s", (request_id,)
            ).fetchone()
        assert row is not None
        assert row["state"] in ("succeeded", "failed")
        return row

    def check(self) -> None:
        """Only the server that the secret is for has got the canary."""
        nowhere(self.database)
        assert not found_in("\n".join(self.foreign.received)), self.foreign.received
