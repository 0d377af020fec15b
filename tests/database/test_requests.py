"""Requests of any kind, and all that stands with their responses: real SQL, real servers."""

from __future__ import annotations

import email.parser
import email.policy
import hashlib
import http.server
import ipaddress
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import EmailMessage
from http import HTTPStatus
from typing import Any

import psycopg
import pytest
from psycopg import errors
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from servers.cluster import Cluster, Database

MEGABYTE = 1 << 20


@dataclass
class Received:
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        values = [value for field_name, value in self.headers if field_name.lower() == name.lower()]
        assert len(values) <= 1, values
        return values[0] if values else None


@dataclass
class Recorder:
    """A server that keeps what it got, and answers by path."""

    url: str
    received: list[Received] = field(default_factory=list)

    def take(self) -> Received:
        assert len(self.received) == 1, self.received
        return self.received.pop()


@pytest.fixture(scope="module")
def recorder_server() -> Iterator[Recorder]:
    recorder = Recorder("")

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            recorder.received.append(
                Received(self.command, self.path, list(self.headers.items()), body)
            )
            self.answer()

        def answer(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/to/"):
                self.send_response(HTTPStatus.FOUND)
                self.send_header("Location", path.removeprefix("/to"))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(HTTPStatus.OK)
            for number in range(3):
                self.send_header("X-Repeated", str(number))
            self.send_header("x-lower", "a")
            self.send_header("Content-Length", "2")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(b"ok")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    recorder.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield recorder
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def recorder(recorder_server: Recorder) -> Recorder:
    recorder_server.received.clear()
    return recorder_server


@pytest.fixture(scope="module")
def served(cluster: Cluster) -> Iterator[Database]:
    database = cluster.create_database()
    database.execute("select net.allow_network('loopback')")
    database.execute("set statement_timeout = '60 s'")
    with database.worker("--grace", "1"):
        yield database
    database.drop()


def request(database: Database, method: str, url: str, **arguments: Any) -> dict[str, Any]:
    """Send a request by net.http_request, and return its row of net.responses."""
    named = "".join(f", {name} => %s" for name in arguments)
    values = [Jsonb(a) if isinstance(a, dict) else a for a in arguments.values()]
    request_id = database.value(f"select net.http_request(%s, %s{named})", method, url, *values)
    return response(database, request_id)


def response(database: Database, request_id: int) -> dict[str, Any]:
    state = database.value("select state from net.wait(%s, '30 s')", request_id)
    assert state not in ("ready", "in_flight")
    row = (
        database.connection.cursor(row_factory=dict_row)
        .execute("select * from net.responses where id = %s", (request_id,))
        .fetchone()
    )
    assert row is not None
    return row


# --- What goes out --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "PROPFIND", "X-1!"]
)
def test_methods(served: Database, recorder: Recorder, method: str) -> None:
    row = request(served, method.lower(), f"{recorder.url}/x")
    assert (row["state"], row["status_code"], row["error_msg"]) == ("succeeded", 200, None)
    got = recorder.take()
    assert (got.method, got.target, got.body) == (method, "/x", b"")
    assert row["content"] == (None if method == "HEAD" else "ok")


@pytest.mark.parametrize("function", ["http_put", "http_patch"])
def test_put_and_patch(served: Database, recorder: Recorder, function: str) -> None:
    call = f"select net.{function}(%s, body => %s, params => %s)"
    response(served, served.value(call, recorder.url, Jsonb({"a": [1]}), Jsonb({"q": "x y"})))
    got = recorder.take()
    assert (got.method, got.target) == (function[5:].upper(), "/?q=x%20y")
    assert got.body == b'{"a": [1]}'
    assert got.header("Content-Type") == "application/json"


def test_head(served: Database, recorder: Recorder) -> None:
    call = "select net.http_head(%s, headers => %s)"
    row = response(served, served.value(call, f"{recorder.url}/x", Jsonb({"X-A": "b"})))
    got = recorder.take()
    assert (got.method, got.header("X-A"), got.header("Content-Length")) == ("HEAD", "b", None)
    assert row["headers"]["Content-Length"] == "2"


@pytest.mark.parametrize(
    ("arguments", "content_type", "body"),
    [
        ({"body": {"a": "é"}}, "application/json", '{"a": "é"}'.encode()),
        ({"body_text": "né\n"}, "text/plain; charset=utf-8", "né\n".encode()),
        (
            {"body_form": {"a": "b c", "d": "é&"}},
            "application/x-www-form-urlencoded",
            b"a=b+c&d=%C3%A9%26",
        ),
        ({"body_bytes": b"\0\xff\r\n\0"}, "application/octet-stream", b"\0\xff\r\n\0"),
        ({"body_bytes": b""}, "application/octet-stream", b""),
        (
            {"body_bytes": b"\0", "headers": {"content-type": "image/x-icon"}},
            "image/x-icon",
            b"\0",
        ),
        ({}, None, b""),
    ],
    ids=["json", "text", "form", "bytes", "no bytes", "typed bytes", "none"],
)
def test_bodies(
    served: Database,
    recorder: Recorder,
    arguments: dict[str, Any],
    content_type: str | None,
    body: bytes,
) -> None:
    request(served, "POST", recorder.url, **arguments)
    got = recorder.take()
    assert got.body == body
    assert got.header("Content-Type") == content_type
    assert got.header("Content-Length") == str(len(body))


def test_nothing_is_sent_that_nobody_asked_for(served: Database, recorder: Recorder) -> None:
    request(served, "POST", recorder.url, body_bytes=b"x" * (2 * MEGABYTE))
    assert sorted(name for name, _ in recorder.take().headers) == [
        *("Content-Length", "Content-Type", "Host", "User-Agent")
    ]


def test_user_agent(served: Database, recorder: Recorder) -> None:
    version = served.value("select extversion from pg_extension where extname = 'pgnet'")
    request(served, "GET", recorder.url)
    assert recorder.take().header("User-Agent") == f"pgnet/{version}"
    request(served, "GET", recorder.url, headers={"uSER-aGENT": "mine/1"})
    assert recorder.take().header("User-Agent") == "mine/1"


def test_repeated_headers(served: Database, recorder: Recorder) -> None:
    request(served, "GET", recorder.url, headers={"X-A": ["1", 2, None, True, ""], "X-B": 1.50})
    headers = recorder.take().headers
    assert [value for name, value in headers if name == "X-A"] == ["1", "2", "true", ""]
    assert ("X-B", "1.5") in headers


@pytest.mark.parametrize("worker", ["process", "backend"])
def test_50_megabytes_go_out_whole(database: Database, recorder: Recorder, worker: str) -> None:
    body = b"\0\r\n0123456789abc" * (50 * MEGABYTE // 16)
    request_id = database.value(
        "select net.http_request('PUT', %s, body_bytes => %s)", f"{recorder.url}/big", body
    )
    if worker == "process":
        with database.worker():
            row = response(database, request_id)
    else:
        database.execute("call net.drain()")
        row = response(database, request_id)
    assert row["error_msg"] is None
    got = recorder.take()
    assert len(got.body) == 50 * MEGABYTE
    assert hashlib.sha256(got.body).digest() == hashlib.sha256(body).digest()


# --- multipart ------------------------------------------------------------------------------------


def parse_multipart(content_type: str, body: bytes) -> list[EmailMessage]:
    """Read a multipart body by another reader of MIME."""
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    assert not message.defects
    parts = list(message.iter_parts())
    assert all(isinstance(part, EmailMessage) for part in parts)
    return parts  # type: ignore[return-value]


def test_multipart(served: Database, recorder: Recorder) -> None:
    row = served.row(
        """
        select m.content_type, m.body, net.http_request('POST', %s, body_bytes => m.body,
            headers => jsonb_build_object('Content-Type', m.content_type))
        from net.multipart(%s, files => array[%s, %s]::bytea[]) m
        """,
        recorder.url,
        Jsonb(
            [
                {"name": "title", "value": "Tea\r\n☕"},
                {"name": "number", "value": 1.50},
                {"name": "meta", "json": {"a": [1, None]}},
                {"name": "raw", "base64": "AP8NCg=="},
                {"name": "one", "filename": 'a "b".png', "content_type": "image/png", "file": 2},
                {"name": "two", "file": 1},
            ]
        ),
        b"\0first\r\n--",
        b"\x89PNG\0",
    )
    assert row is not None
    content_type, body, request_id = row
    response(served, request_id)
    got = recorder.take()
    assert got.body == body
    assert got.header("Content-Type") == content_type
    assert content_type.startswith("multipart/form-data; boundary=")
    found = [
        (part["Content-Disposition"], part["Content-Type"], part.get_payload(decode=True))
        for part in parse_multipart(content_type, body)
    ]
    assert found == [
        ('form-data; name="title"', None, "Tea\r\n☕".encode()),
        ('form-data; name="number"', None, b"1.5"),
        ('form-data; name="meta"', "application/json", b'{"a": [1, null]}'),
        ('form-data; name="raw"', "application/octet-stream", b"\0\xff\r\n"),
        ('form-data; name="one"; filename="a %22b%22.png"', "image/png", b"\x89PNG\0"),
        ('form-data; name="two"', "application/octet-stream", b"\0first\r\n--"),
    ]


def test_multipart_boundaries_differ(served: Database) -> None:
    call = 'select content_type from net.multipart(\'[{"name": "a", "value": "b"}]\')'
    assert served.value(call) != served.value(call)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (None, "parts must be a JSON array of objects"),
        ({"name": "a"}, "parts must be a JSON array of objects"),
        ([1], "part 1 must be a JSON object"),
        ([{"name": "a", "value": "hunter2"}, {"value": "hunter2"}], "part 2 must have a name"),
        ([{"name": "a"}], "part 1 must have one of value, json, base64, file"),
        ([{"name": "a", "value": "hunter2", "file": 1}], "part 1 must have one of"),
        ([{"name": "a", "value": ["hunter2"]}], "the value of part 1 must be a string"),
        ([{"name": "a", "hunter2": 1}], "part 1 has an unknown key"),
        ([{"name": 1, "value": "x"}], "the name of part 1 must be a string"),
        ([{"name": "a", "file": 2}], "the file of part 1 must be the number of an element"),
        ([{"name": "a", "file": 0}], "the file of part 1 must be the number of an element"),
        ([{"name": "a", "base64": "hunter2!"}], "the base64 of part 1 is not valid"),
        (
            [{"name": "a", "value": "x", "content_type": "text/plain\r\nX: y"}],
            "the content_type of part 1 is not a media type",
        ),
    ],
)
def test_multipart_refuses(served: Database, parts: Any, message: str) -> None:
    with pytest.raises(errors.InvalidParameterValue, match=message) as caught:
        served.rows(
            "select net.multipart(%s, array['\\x00']::bytea[])",
            None if parts is None else Jsonb(parts),
        )
    assert "hunter2" not in str(caught.value)


# --- What stands with a response ------------------------------------------------------------------


def test_header_list(served: Database, recorder: Recorder) -> None:
    row = request(served, "GET", recorder.url)
    names = [name for name, _ in row["header_list"]]
    assert names == [
        *("Server", "Date", "X-Repeated", "X-Repeated", "X-Repeated", "x-lower", "Content-Length")
    ]
    assert [value for name, value in row["header_list"] if name == "X-Repeated"] == ["0", "1", "2"]
    assert row["headers"]["X-Repeated"] == "2"
    assert row["headers"]["x-lower"] == "a"


def test_where_it_went_and_how_long_it_took(served: Database, recorder: Recorder) -> None:
    row = request(served, "GET", f"{recorder.url}/x#fragment")
    assert row["http_version"] == "1.1"
    assert row["address"] == ipaddress.ip_address("127.0.0.1")
    assert (row["redirects"], row["final_url"]) == (0, f"{recorder.url}/x#fragment")
    times = [row[f"{phase}_ms"] for phase in ("name", "connect", "tls", "first_byte", "total")]
    name, connect, tls, first_byte, total = times
    assert min(name, connect) >= 0
    assert tls == 0
    assert name + connect < first_byte <= total < 10_000


def test_redirects_are_told(served: Database, recorder: Recorder) -> None:
    row = request(served, "GET", f"{recorder.url}/to/to/end?q")
    assert (row["status_code"], row["redirects"]) == (200, 2)
    assert row["final_url"] == f"{recorder.url}/end"
    assert row["url"] == f"{recorder.url}/to/to/end?q"
    stored = served.value("select final_url from net._http_response where id = %s", row["id"])
    assert stored == f"{recorder.url}/end"


def test_max_redirects_of_a_request(served: Database, recorder: Recorder) -> None:
    url = f"{recorder.url}/to/to/end"
    row = request(served, "GET", url, options={"max_redirects": 0})
    assert (row["status_code"], row["redirects"]) == (302, 0)
    row = request(served, "GET", url, options={"max_redirects": 1})
    assert row["error_msg"] == "Number of redirects hit maximum amount"
    row = request(served, "GET", url, options={"max_redirects": 30})
    assert row["status_code"] == 200
    six = f"{recorder.url}{'/to' * 6}/end"
    row = request(served, "GET", six, options={"max_redirects": 30})
    assert row["error_msg"] == "Number of redirects hit maximum amount", "the setting was raised"


def test_a_failure_tells_where_it_went(served: Database) -> None:
    row = request(served, "GET", "http://127.0.0.1:1025/x")
    assert row["state"] == "failed"
    assert row["error_msg"] == "Couldn't connect to server"
    assert row["address"] == ipaddress.ip_address("127.0.0.1")
    assert row["total_ms"] > 0
    assert (row["first_byte_ms"], row["http_version"], row["header_list"]) == (None, None, None)


def test_context_comes_back(served: Database, recorder: Recorder) -> None:
    row = request(served, "GET", recorder.url, context={"order": 7})
    assert row["context"] == {"order": 7}
    outcome = served.value("select context from net.wait(%s)", row["id"])
    assert outcome == {"order": 7}


def test_priority(database: Database, recorder: Recorder) -> None:
    database.execute("select net.configure('concurrency', '1')")
    for number in range(10):
        database.execute(
            "select net.http_request('GET', %s, options => %s)",
            f"{recorder.url}/{number}",
            Jsonb({"priority": -number}),
        )
    database.execute("call net.drain()")
    assert [got.target for got in recorder.received] == [f"/{n}" for n in reversed(range(10))]


def test_what_is_inserted_by_hand_is_checked_when_it_is_sent(
    served: Database, recorder: Recorder
) -> None:
    rows = {
        "unknown option": ("GET", recorder.url, "null", '{"retires": 1}'),
        "must be an integer": ("GET", recorder.url, "null", '{"max_redirects": -1}'),
        "must be a JSON object": ("GET", recorder.url, "null", "[]"),
        "is not allowed": ("TRACE", recorder.url, "null", "null"),
        "names no secret": ("GET", recorder.url, '{"X-A": {"secret": 5}}', "null"),
    }
    with served.connect("postgres") as connection:
        for message, (method, url, headers, options) in rows.items():
            inserted = connection.execute(
                "insert into net.http_request_queue (method, url, headers, options)"
                " values (%s, %s, %s, nullif(%s::jsonb, 'null')) returning id",
                (method, url, headers, options),
            ).fetchone()
            connection.execute("select net.wake()")
            assert inserted is not None
            assert message in response(served, inserted[0])["error_msg"]
    assert recorder.received == []


# --- The three functions of pg_net, and the others ------------------------------------------------


def test_fetch(served: Database, recorder: Recorder) -> None:
    row = served.row("call net.fetch('patch', %s, body => '[1]')", recorder.url)
    assert row is not None
    assert row[1:3] == (200, "ok")
    got = recorder.take()
    assert (got.method, got.body) == ("PATCH", b"[1]")


def test_any_search_path(database: Database) -> None:
    """No operator, function or type of the caller's gets in between."""
    with database.connect() as connection:
        connection.execute("create schema evil")
        connection.execute("create domain evil.jsonb as pg_catalog.text")
        connection.execute("create domain evil.text as pg_catalog.text check (value is null)")
        connection.execute(
            "create function evil.upper(pg_catalog.text) returns pg_catalog.text"
            " language sql as $$ select 'EVIL' $$"
        )
        for left, right in (("integer", "integer"), ("pg_catalog.jsonb", "pg_catalog.jsonb")):
            name = left.rpartition(".")[2]
            connection.execute(
                f"create function evil.{name}_eq({left}, {right}) returns boolean"
                " language plpgsql as $$ begin raise exception 'EVIL'; end $$"
            )
            for operator in ("=", "<>", ">"):
                connection.execute(
                    f"create operator evil.{operator} (leftarg = {left}, rightarg = {right},"
                    f" function = evil.{name}_eq)"
                )
        connection.execute("set search_path = evil, pg_catalog")
        row = connection.execute(
            "select net.http_request('put', 'http://127.0.0.1/',"
            " body => '{}'::pg_catalog.jsonb, options => '{\"priority\": 1}'::pg_catalog.jsonb)"
        ).fetchone()
        assert row is not None
        queued = connection.execute(
            "select method, priority from net.http_request_queue where id = %s", row
        ).fetchone()
        assert queued == ("PUT", 1)


def test_an_ordinary_role_may_do_it_all(database: Database, recorder: Recorder) -> None:
    role = f"requests_caller_{database.name}"
    database.execute(f"create role {role} login")
    try:
        with database.connect(role) as connection:
            ids = [
                row[0]
                for row in connection.execute(
                    "select net.http_request('POST', %(url)s, body_form => '{\"a\": 1}',"
                    " context => '1', options => '{\"priority\": 1, \"max_redirects\": 1}')"
                    " union all select net.http_put(%(url)s)"
                    " union all select net.http_patch(%(url)s)"
                    " union all select net.http_head(%(url)s)"
                    " union all select net.http_request('POST', %(url)s, body_bytes => m.body)"
                    ' from net.multipart(\'[{"name": "a", "value": "b"}]\') m',
                    {"url": recorder.url},
                )
            ]
            database.execute("call net.drain()")
            rows = connection.execute(
                "select status_code from net.responses where id = any(%s)", (ids,)
            ).fetchall()
            assert rows == [(200,)] * 5
    finally:
        database.execute(f"drop owned by {role}")
        database.execute(f"drop role {role}")


def test_one_statement_and_no_subtransaction(database: Database) -> None:
    """However many requests: one transaction id, as for net.http_get."""
    with database.connect() as connection, connection.transaction():
        before = connection.execute("select pg_current_xact_id()::text::bigint").fetchone()
        connection.execute(
            "select net.http_request('POST', 'http://127.0.0.1/', body_text => 'x')"
            " from generate_series(1, 200)"
        )
        after = connection.execute(
            "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
        ).fetchone()
        assert before is not None
        assert after is not None
        assert after[0] - before[0] <= 2


def test_errors_are_raised_in_the_call(served: Database) -> None:
    with pytest.raises(psycopg.Error) as caught:
        served.rows("select net.http_request('GET', 'http://u:hunter2@localhost/')")
    assert caught.value.diag.sqlstate == "22023"
    assert "hunter2" not in str(caught.value)
    assert "secret" in (caught.value.diag.message_hint or "")
