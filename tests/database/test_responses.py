"""What comes back: rows, results, views, waiting, cancelling, expiry; the worker gone and back."""

from __future__ import annotations

import queue
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.rows import dict_row

from servers.cluster import Cluster, Database, Worker, free_port
from servers.nginx import Nginx
from servers.waiting import wait_until

COLLECTORS = ("net.http_get_result", "net.http_collect_response", "net._http_collect_response")
TIMEOUT = re.compile(
    r"Timeout of (?P<limit>\d+) ms reached\. Total time: (?P<total>\d+) ms "
    r"\(DNS time: (?P<dns>\d+) ms, TCP/SSL handshake time: (?P<connect>\d+) ms, "
    r"HTTP Request/Response time: (?P<http>\d+) ms\)"
    r"\. That is (?P<whose>.*)"
)


@pytest.fixture(scope="module")
def shared_database(cluster: Cluster) -> Iterator[Database]:
    database = cluster.create_database()
    database.execute("select net.allow_network('loopback')")
    yield database
    database.drop()


@pytest.fixture(scope="module")
def shared_worker(shared_database: Database) -> Iterator[tuple[ExitStack, list[Worker]]]:
    with ExitStack() as stack:
        # What a test has left hanging is given back at the end, not waited for.
        yield stack, [stack.enter_context(shared_database.worker("--grace", "1"))]


@pytest.fixture
def served(
    shared_database: Database, shared_worker: tuple[ExitStack, list[Worker]]
) -> Iterator[Database]:
    """A database with a worker, shared by the tests that do not disturb each other."""
    stack, workers = shared_worker
    shared_database.execute("set statement_timeout = '30 s'")
    yield shared_database
    ended = workers[-1].process.poll()
    if ended is not None:
        # the test that ended it is at fault, not the next one
        workers.append(stack.enter_context(shared_database.worker("--grace", "1")))
        pytest.fail(f"the worker ended with {ended}; it wrote:\n{workers[-2].output()}")


@pytest.fixture
def unserved(database: Database) -> Database:
    """A database of one's own that no worker serves."""
    return database


class Canned:
    """A server that answers each request with the next of the given answers, byte for byte.

    One that is None is held back until `release()`.
    """

    def __init__(self) -> None:
        self.answers: queue.Queue[bytes | None] = queue.Queue()
        self.received: queue.Queue[bytes] = queue.Queue()
        self.released = threading.Event()
        self.ended: queue.Queue[bool] = queue.Queue()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                head = b""
                while b"\r\n\r\n" not in head:
                    piece = connection.recv(65536)
                    if not piece:
                        break
                    head += piece
                self.received.put(head)
                answer = self.answers.get(timeout=60)
                if answer is None:
                    self.released.wait(60)
                    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate"
                connection.sendall(answer)
            self.ended.put(True)

    def close(self) -> None:
        self.released.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@pytest.fixture
def canned() -> Iterator[Canned]:
    server = Canned()
    yield server
    server.close()


def http(*headers: bytes, body: bytes = b"", status: bytes = b"200 OK") -> bytes:
    head = [b"HTTP/1.1 " + status, *headers, b"Content-Length: %d" % len(body)]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def get(database: Database, url: str, **arguments: Any) -> int:
    named = "".join(f", {name} => %s" for name in arguments)
    request_id: int = database.value(f"select net.http_get(%s{named})", url, *arguments.values())
    return request_id


def outcome(database: Database, request_id: int, timeout: float = 10) -> dict[str, Any]:
    """The response row of a request, when it has come."""

    def fetch() -> dict[str, Any] | None:
        return (
            database.connection.cursor(row_factory=dict_row)
            .execute("select * from net._http_response where id = %s", (request_id,))
            .fetchone()
        )

    found = wait_until(fetch, lambda row: row is not None, f"outcome of {request_id}", timeout)
    assert found is not None
    return found


def result(database: Database, request_id: int | None, function: str = COLLECTORS[0]) -> Any:
    """What http_get_result says: status, message, (status_code, headers, body)."""
    return database.row(
        "select r.status::text, r.message, (r.response).status_code, (r.response).headers,"
        f" (r.response).body from {function}(%s) r",
        request_id,
    )


def in_flight(database: Database, request_id: int) -> None:
    database.wait_for(
        "select state::text from net.requests where id = %s",
        request_id,
        predicate=lambda state: state == "in_flight",
    )


# ---- answers


def test_an_answer(served: Database, nginx: Nginx) -> None:
    request_id = get(served, f"{nginx.url}/echo?a=1", headers='{"X-Test": "yes"}')
    row = outcome(served, request_id)
    assert row["status_code"] == 200
    assert row["content_type"] == "text/plain"
    assert row["headers"]["Content-Type"] == "text/plain"
    assert row["headers"]["Server"].startswith("nginx")
    assert row["content"].startswith("GET /echo?a=1 HTTP/1.1\r\n")
    assert "\r\nX-Test: yes\r\n" in row["content"]
    assert row["timed_out"] is False
    assert row["error_msg"] is None
    assert row["state"] == "succeeded"
    assert row["content_bytes"] is None
    assert row["attempts"] == 1
    assert row["context"] is None
    assert (row["method"], row["url"]) == ("GET", f"{nginx.url}/echo?a=1")
    assert row["requested_by"] == "postgres"
    assert row["requested"] <= row["created"]
    assert (
        served.value("select count(*) from net.http_request_queue where id = %s", request_id) == 0
    )
    assert result(served, request_id) == (
        "SUCCESS", "ok", 200, row["headers"], row["content"],
    )  # fmt: skip


def test_a_post(served: Database, nginx: Nginx) -> None:
    request_id = served.value(
        "select net.http_post(%s, body => %s)", f"{nginx.url}/echo", '{"a": "ä"}'
    )
    content = outcome(served, request_id)["content"]
    assert content.startswith("POST /echo HTTP/1.1\r\n")
    assert "\r\nContent-Type: application/json\r\n" in content
    assert "\r\nContent-Length: 11\r\n" in content
    assert content.endswith('\r\n\r\n{"a": "ä"}')


def test_an_empty_post(served: Database, nginx: Nginx) -> None:
    request_id = served.value("select net.http_post(%s, body => null)", f"{nginx.url}/echo")
    content = outcome(served, request_id)["content"]
    assert "\r\nContent-Length: 0\r\n" in content
    assert "\r\nContent-Type: application/json\r\n" in content
    assert content.endswith("\r\n\r\n")


def test_a_delete_with_and_without_a_body(served: Database, nginx: Nginx) -> None:
    url = f"{nginx.url}/echo"
    bare = outcome(served, served.value("select net.http_delete(%s)", url))["content"]
    full = outcome(served, served.value("select net.http_delete(%s, body => '[1]')", url))[
        "content"
    ]
    assert bare.startswith("DELETE /echo HTTP/1.1\r\n")
    assert "Content-Length" not in bare
    assert full.endswith("\r\n\r\n[1]")


@pytest.mark.parametrize("status", [201, 404, 429, 500, 503])
def test_every_status_is_an_answer(served: Database, nginx: Nginx, status: int) -> None:
    request_id = get(served, f"{nginx.url}/status/{status}")
    row = outcome(served, request_id)
    assert (row["status_code"], row["timed_out"], row["error_msg"]) == (status, False, None)
    assert row["state"] == ("succeeded" if status < 400 else "failed")
    assert result(served, request_id)[:3] == ("SUCCESS", "ok", status)
    failures = served.rows("select status_code, url from net.failures where id = %s", request_id)
    assert failures == ([] if status < 400 else [(status, f"{nginx.url}/status/{status}")])


def test_no_content(served: Database, nginx: Nginx) -> None:
    for path, status in (("/empty", 200), ("/status/204", 204)):
        request_id = get(served, nginx.url + path)
        row = outcome(served, request_id)
        assert (row["status_code"], row["content"], row["content_bytes"]) == (status, None, None)
        assert result(served, request_id)[4] is None


def test_a_redirect_is_followed(served: Database, nginx: Nginx) -> None:
    row = outcome(served, get(served, f"{nginx.url}/redirect"))
    assert (row["status_code"], row["content"]) == (200, "pgnet")
    assert row["url"] == f"{nginx.url}/redirect"


def test_headers_and_content_type_as_sent(served: Database, canned: Canned) -> None:
    canned.answers.put(
        http(b'content-TYPE: Text/HTML ;Charset="UTF-8"', b"x-ODD: 1", b"X-Twice: a", b"X-Twice: b")
    )
    row = outcome(served, get(served, canned.url))
    assert row["content_type"] == 'Text/HTML ;Charset="UTF-8"'
    assert row["headers"] == {
        "content-TYPE": 'Text/HTML ;Charset="UTF-8"',
        "x-ODD": "1",
        "X-Twice": "b",
        "Content-Length": "0",
    }


def test_no_content_type(served: Database, canned: Canned) -> None:
    canned.answers.put(http(body=b"plain"))
    row = outcome(served, get(served, canned.url))
    assert (row["content_type"], row["content"]) == (None, "plain")


def test_a_header_that_is_no_utf8(served: Database, canned: Canned) -> None:
    canned.answers.put(http(b"X-Name: Zo\xeb"))
    assert outcome(served, get(served, canned.url))["headers"]["X-Name"] == "Zoë"


@pytest.mark.parametrize(
    ("content_type", "body", "text"),
    [
        ("text/plain", "Zoë ☃".encode(), "Zoë ☃"),
        ("text/plain; charset=iso-8859-1", "Zoë".encode("latin-1"), "Zoë"),
        ('text/plain; charset="UTF-8"', "Zoë".encode(), "Zoë"),
        ("text/plain", "Zoë".encode("latin-1"), None),
        ("text/plain", b"a\0b", None),
        ("text/plain; charset=utf-16", "a\0b".encode("utf-16"), None),
        ("text/plain; charset=no-such", b"abc", None),
        # codecs of Python's that are no charsets
        ("text/plain; charset=base64", b"YWJj", None),
        ("text/plain; charset=rot13", b"abc", None),
        ("text/plain; charset=idna", b"xn--zo-jka", None),
        ("text/plain; charset=utf-8", b"\xed\xa0\x80", None),
        ("image/png", b"\x89PNG\r\n\x1a\n\0\0", None),
    ],
)
def test_content(
    served: Database, canned: Canned, content_type: str, body: bytes, text: str | None
) -> None:
    canned.answers.put(http(f"Content-Type: {content_type}".encode(), body=body))
    request_id = get(served, canned.url)
    row = outcome(served, request_id)
    assert (row["status_code"], row["error_msg"], row["content_type"]) == (200, None, content_type)
    assert row["content"] == text
    assert row["content_bytes"] == (None if text is not None else body)
    assert result(served, request_id)[0] == "SUCCESS"
    assert served.value("select content_bytes from net.responses where id = %s", request_id) == (
        None if text is not None else body
    )


def test_a_nul_in_a_header_of_the_answer(served: Database, httpd: str) -> None:
    """Whatever it is, an answer or an error, it is one outcome and the worker goes on."""
    outcome(served, get(served, f"{httpd}/nul-header"))
    assert outcome(served, get(served, f"{httpd}/body/after"))["content"] == "after"


# ---- no answer


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("{httpd}/empty", "Server returned nothing (no headers, no data)"),
        ("http://no-such-host.invalid/", "Couldn't resolve host name"),
        ("http://127.0.0.1:{closed}/", "Couldn't connect to server"),
    ],
)
def test_no_answer(served: Database, httpd: str, url: str, message: str) -> None:
    request_id = get(
        served, url.format(httpd=httpd, closed=free_port()), timeout_milliseconds=20_000
    )
    row = outcome(served, request_id, timeout=25)
    assert row["error_msg"] == message
    assert row["timed_out"] is False
    assert row["state"] == "failed"
    for column in ("status_code", "content_type", "headers", "content", "content_bytes"):
        assert row[column] is None
    assert result(served, request_id) == ("ERROR", message, None, None, None)
    assert served.rows("select error_msg from net.failures where id = %s", request_id) == [
        (message,)
    ]


@pytest.mark.parametrize(
    "path", ["/hang", "/drip-headers/0.05", "/drip-body/0.05", "/continue/0.05"]
)
def test_timeout(served: Database, httpd: str, path: str) -> None:
    began = time.monotonic()
    request_id = get(served, httpd + path, timeout_milliseconds=300)
    row = outcome(served, request_id)
    took = time.monotonic() - began
    assert row["timed_out"] is True
    # What a server has begun to answer is kept.
    status = 200 if path.startswith("/drip") else None
    assert row["status_code"] == status
    assert (row["content"] or "").strip("x") == ""
    said = TIMEOUT.fullmatch(row["error_msg"])
    assert said, row["error_msg"]
    assert int(said["limit"]) == 300
    assert said["whose"] == "the timeout_milliseconds of the request"
    assert 300 <= float(said["total"]) <= 550
    parts = sum(float(said[name]) for name in ("dns", "connect", "http"))
    assert parts == pytest.approx(float(said["total"]), abs=2)
    assert took >= 0.3
    assert result(served, request_id)[:3] == (
        "ERROR" if status is None else "SUCCESS", row["error_msg"], status
    )  # fmt: skip


def test_the_timeout_is_the_setting_unless_given(served: Database, httpd: str) -> None:
    row = outcome(served, get(served, f"{httpd}/hang"))
    said = TIMEOUT.fullmatch(row["error_msg"])
    assert said, row["error_msg"]
    assert said["limit"] == "1000"
    assert said["whose"].startswith("the setting timeout_milliseconds, for requests that give no")
    assert "net.configure('timeout_milliseconds', '5000')" in said["whose"]


def test_whose_time_to_connect_it_was(database: Database, worker: Worker) -> None:
    """The setting's, or the host's: behind where the time went."""
    with socket.socket() as full:
        # Its backlog is taken: another connection is not answered.
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        url = f"http://127.0.0.1:{full.getsockname()[1]}/"
        taken = [socket.socket() for _ in range(4)]
        for one in taken:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        database.execute("select net.configure('connect_timeout_milliseconds', '300')")
        message = outcome(database, get(database, url, timeout_milliseconds=5000))["error_msg"]
        assert message.startswith("Connect timeout of 300 ms reached. Total time: 3"), message
        assert "the setting connect_timeout_milliseconds: net.configure sets it" in message
        host = "select net.configure_host('127.0.0.1', '{\"connect_timeout_milliseconds\": 400}')"
        database.execute(host)
        message = outcome(database, get(database, url, timeout_milliseconds=5000))["error_msg"]
        assert message.startswith("Connect timeout of 400 ms reached. Total time: 4"), message
        assert "connect_timeout_milliseconds of the host: net.configure_host" in message
        for one in taken:
            one.close()


# ---- collecting


@pytest.mark.parametrize("function", COLLECTORS)
def test_collecting(served: Database, nginx: Nginx, function: str) -> None:
    request_id = get(served, f"{nginx.url}/slow?s=0.1")
    pending = result(served, request_id, function)
    assert pending[0] == "PENDING"
    waited = served.row(
        "select r.status::text, r.message, (r.response).body"
        f" from {function}(%s, async := false) r",
        request_id,
    )
    assert waited == ("SUCCESS", "ok", "slow")
    assert result(served, request_id, function)[4] == "slow"
    assert served.value(f"select {function}(null) is null") is True


@pytest.mark.parametrize("function", COLLECTORS)
def test_collecting_an_error_waits_for_it(served: Database, httpd: str, function: str) -> None:
    request_id = get(served, f"{httpd}/hang", timeout_milliseconds=100)
    found = served.row(
        f"select r.status::text, r.message, r.response from {function}(%s, false) r", request_id
    )
    assert found is not None
    assert (found[0], found[2]) == ("ERROR", None)
    assert TIMEOUT.fullmatch(found[1])


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("function", COLLECTORS)
def test_collecting_what_is_not_there(served: Database, function: str, asynchronous: bool) -> None:
    found = served.row(
        f"select r.status::text, r.message, r.response from {function}(%s, %s) r",
        2**60,
        asynchronous,
    )
    assert found == ("ERROR", "request matching request_id not found", None)


def test_pending_says_whether_a_worker_runs(served: Database, canned: Canned) -> None:
    canned.answers.put(None)
    request_id = get(served, canned.url, timeout_milliseconds=20_000)
    in_flight(served, request_id)
    status, message, *response = result(served, request_id)
    assert (status, response) == ("PENDING", [None, None, None])
    assert "pending" in message
    assert "no worker" not in message
    canned.released.set()
    assert outcome(served, request_id)["content"] == "late"


def test_pending_without_a_worker_says_how_to_start_one(unserved: Database) -> None:
    status, message, *response = result(unserved, get(unserved, "http://127.0.0.1:1025/"))
    assert (status, response) == ("PENDING", [None, None, None])
    for words in ("no worker is running", "net.schedule_worker()", "net.work()", '"pgnet worker"'):
        assert words in message


def test_deleted_by_its_role(unserved: Database) -> None:
    """No response row comes, and the id is not found; deleting twice deletes nothing."""
    request_id = get(unserved, "http://127.0.0.1:1025/")
    other = get(unserved, "http://127.0.0.1:1025/")
    unserved.execute("delete from net.http_request_queue where id = %s", request_id)
    assert result(unserved, request_id)[:2] == ("ERROR", "request matching request_id not found")
    with unserved.worker():
        outcome(unserved, other)
    assert unserved.rows("select id from net._http_response") == [(other,)]
    unserved.execute("delete from net._http_response where id = %s", other)
    assert result(unserved, other)[:2] == ("ERROR", "request matching request_id not found")


def test_deleted_while_in_flight(served: Database, canned: Canned, nginx: Nginx) -> None:
    canned.answers.put(None)
    request_id = get(served, canned.url, timeout_milliseconds=20_000)
    in_flight(served, request_id)
    served.execute("delete from net.http_request_queue where id = %s", request_id)
    canned.released.set()
    assert canned.ended.get(timeout=10)
    served.wait_for("select not exists (select from pgnet.claim where id = %s)", request_id)
    assert result(served, request_id)[:2] == ("ERROR", "request matching request_id not found")
    assert outcome(served, get(served, nginx.url))["content"] == "pgnet"


def test_an_open_delete_holds_up_nobody_else(
    served: Database, canned: Canned, nginx: Nginx
) -> None:
    """A role's own open transaction keeps its row only: others' outcomes come meanwhile."""
    canned.answers.put(None)
    request_id = get(served, canned.url, timeout_milliseconds=20_000)
    in_flight(served, request_id)
    deleting = served.connect(autocommit=False)
    deleting.execute("delete from net.http_request_queue where id = %s", (request_id,))
    canned.released.set()
    assert canned.ended.get(timeout=10)
    assert outcome(served, get(served, nginx.url))["content"] == "pgnet"
    assert result(served, request_id)[0] == "PENDING"
    deleting.rollback()
    assert outcome(served, request_id)["content"] == "late"


# ---- waiting


def test_wait(served: Database, nginx: Nginx) -> None:
    request_id = get(served, f"{nginx.url}/slow?s=0.1")
    row = served.row("select * from net.wait(%s)", request_id)
    assert row is not None
    assert row[:3] == (request_id, "succeeded", 200)
    assert row[4:] == ("slow", None, None, 1, None)
    # at once, the second time
    assert served.row("select * from net.wait(%s, '0 s')", request_id) == row


def test_wait_gives_up(served: Database, httpd: str) -> None:
    request_id = get(served, f"{httpd}/hang")
    began = time.monotonic()
    state = served.value("select (net.wait(%s, '100 ms')).state::text", request_id)
    assert state in ("ready", "in_flight")
    assert 0.1 <= time.monotonic() - began < 0.9
    assert served.value("select (net.wait(%s)).state::text", request_id) == "failed"


def test_wait_null(served: Database) -> None:
    assert served.value("select net.wait(null) is null") is True
    assert served.rows("select * from net.wait_all(null)") == []
    assert served.rows("select * from net.wait_all('{}')") == []


def test_wait_all(served: Database, nginx: Nginx) -> None:
    slow, quick, failed = (
        get(served, nginx.url + path) for path in ("/slow?s=0.2", "/", "/status/404")
    )
    found = served.rows(
        "select id, state::text, status_code from net.wait_all(%s)", [slow, quick, failed]
    )
    assert found == [(slow, "succeeded", 200), (quick, "succeeded", 200), (failed, "failed", 404)]


def test_wait_all_has_one_timeout_for_all(served: Database, httpd: str) -> None:
    ids = [get(served, f"{httpd}/hang") for _ in range(5)]
    began = time.monotonic()
    states = served.rows("select state::text from net.wait_all(%s, '150 ms')", ids)
    assert 0.15 <= time.monotonic() - began < 0.6
    assert {state for (state,) in states} <= {"ready", "in_flight"}
    assert len(states) == 5


@pytest.mark.parametrize("call", ["net.wait(%s)", "net.wait_all(array[%s::bigint])"])
def test_waiting_for_what_is_not_there(served: Database, call: str) -> None:
    with pytest.raises(errors.NoDataFound) as caught:
        served.execute(f"select {call}", 2**60)
    assert caught.value.diag.message_primary == "request matching request_id not found"
    assert caught.value.diag.message_detail
    assert caught.value.diag.message_hint
    assert served.value("select net._await_response(%s)", 2**60) is False


WAITING = (
    "net.wait(%s)",
    "net.wait_all(array[%s::bigint])",
    "net._await_response(%s)",
    *(f"{function}(%s, async := false)" for function in COLLECTORS),
)


@pytest.mark.parametrize("savepoints", [0, 1, 3])
@pytest.mark.parametrize("call", WAITING)
def test_waiting_in_the_queuing_transaction(served: Database, call: str, savepoints: int) -> None:
    connection = served.connect(autocommit=False)
    connection.execute("set local statement_timeout = '5 s'")
    for number in range(savepoints):
        connection.execute(sql.SQL("savepoint {}").format(sql.Identifier(f"s{number}")))
    row = connection.execute("select net.http_get('http://127.0.0.1:1025/')").fetchone()
    assert row is not None
    if savepoints == 3:
        connection.execute("release savepoint s1")
        # more of its own before it waits
        connection.execute("savepoint again")
        connection.execute("select net.http_get('http://127.0.0.1:1025/')")
    with pytest.raises(errors.ObjectNotInPrerequisiteState) as caught:
        connection.execute(f"select {call}", row)
    said = caught.value.diag
    assert said.message_primary == f"request {row[0]} is not sent before this transaction commits"
    assert said.message_detail
    assert said.message_hint
    assert "net.fetch" in said.message_hint
    connection.close()


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
@pytest.mark.parametrize("call", WAITING)
def test_waiting_where_the_answer_cannot_be_seen(
    served: Database, httpd: str, call: str, level: str
) -> None:
    request_id = get(served, f"{httpd}/hang")
    connection = served.connect(autocommit=False)
    connection.execute(f"set transaction isolation level {level}")
    connection.execute("set local statement_timeout = '5 s'")
    with pytest.raises(errors.ObjectNotInPrerequisiteState) as caught:
        connection.execute(f"select {call}", (request_id,))
    assert level.upper() in (caught.value.diag.message_detail or "")
    assert "READ COMMITTED" in (caught.value.diag.message_hint or "")
    connection.close()


@pytest.mark.parametrize("call", WAITING)
def test_what_is_there_already_is_seen_at_every_level(
    served: Database, nginx: Nginx, call: str
) -> None:
    request_id = get(served, nginx.url)
    outcome(served, request_id)
    connection = served.connect(autocommit=False)
    connection.execute("set transaction isolation level serializable")
    assert connection.execute(f"select ({call})::text", (request_id,)).fetchone() is not None
    connection.close()


def test_waiting_in_a_transaction_that_has_written(served: Database, nginx: Nginx) -> None:
    """Another session's request is waited for, however old one's own transaction is."""
    connection = served.connect(autocommit=False)
    connection.execute("select net.http_get('http://127.0.0.1:1025/')")
    connection.execute("savepoint one")
    connection.execute("select net.http_get('http://127.0.0.1:1025/')")
    request_id = get(served, f"{nginx.url}/slow?s=0.1")
    row = connection.execute("select (net.wait(%s)).content", (request_id,)).fetchone()
    assert row == ("slow",)
    connection.close()


def test_await_response(served: Database, nginx: Nginx) -> None:
    request_id = get(served, f"{nginx.url}/slow?s=0.1")
    assert served.value("select net._await_response(%s)", request_id) is True
    assert served.value("select net._await_response(%s)", request_id) is True
    assert served.value("select net._await_response(null)") is None


def test_a_wait_can_be_cancelled(unserved: Database) -> None:
    request_id = get(unserved, "http://127.0.0.1:1025/")
    for call in ("net.wait(%s)", "net.http_get_result(%s, false)"):
        connection = unserved.connect(options="-c statement_timeout=150")
        with pytest.raises(errors.QueryCanceled):
            connection.execute(f"select {call}", (request_id,))


def test_waiting_without_a_worker_says_so(unserved: Database) -> None:
    request_id = get(unserved, "http://127.0.0.1:1025/")
    connection = unserved.connect(options="-c statement_timeout=400")
    notices: list[str] = []
    connection.add_notice_handler(lambda said: notices.append(said.message_primary or ""))
    with pytest.raises(errors.QueryCanceled):
        connection.execute("select net.http_get_result(%s, async := false)", (request_id,))
    assert notices == [f"request {request_id} waits: no worker is running"]


def test_the_worker_is_up_or_not(unserved: Database) -> None:
    with pytest.raises(errors.ObjectNotInPrerequisiteState) as caught:
        unserved.execute("select net.check_worker_is_up()")
    assert "pgnet worker" in (caught.value.diag.message_hint or "")
    with unserved.worker():
        unserved.execute("select net.wait_until_running()")
        unserved.execute("select net.check_worker_is_up()")
        names = unserved.rows(
            "select application_name from pg_stat_activity"
            " where datname = current_database() and application_name like 'pgnet%%'"
        )
        assert names == [("pgnet worker",)]
        assert unserved.value("select net.worker_restart()") is True


# ---- for a person at psql


def test_fetch(served: Database, nginx: Nginx) -> None:
    row = served.row("call net.fetch('get', %s, params => '{\"a\": 1}')", f"{nginx.url}/args")
    assert row is not None
    assert row[1:] == (200, "a=1", None)
    row = served.row("call net.fetch('POST', %s, '{\"a\": 1}')", f"{nginx.url}/echo")
    assert row is not None
    assert "Content-Type: application/json" in row[2]
    assert row[2].endswith('{"a": 1}')
    row = served.row("call net.fetch('PATCH', %s)", f"{nginx.url}/method")
    assert row is not None
    assert row[2] == "PATCH"


def test_fetch_without_an_answer(served: Database, httpd: str) -> None:
    row = served.row("call net.fetch('GET', %s)", f"{httpd}/empty")
    assert row is not None
    assert row[1:] == (None, None, "Server returned nothing (no headers, no data)")


def test_fetch_refuses(served: Database, nginx: Nginx) -> None:
    with pytest.raises(errors.InvalidParameterValue, match="invalid URL"):
        served.execute("call net.fetch('GET', '/x')")
    with pytest.raises(errors.NullValueNotAllowed):
        served.execute("call net.fetch(null, 'http://localhost/')")
    with pytest.raises(errors.NotNullViolation):
        served.execute("call net.fetch('GET', null)")
    for method in ("CONNECT", "TRACE", "two words", ""):
        with pytest.raises(errors.InvalidParameterValue):
            served.execute("call net.fetch(%s, 'http://localhost/')", method)
    before = served.value("select count(*) from net.requests")
    connection = served.connect(autocommit=False)
    with pytest.raises(errors.InvalidTransactionTermination):
        connection.execute("call net.fetch('GET', %s)", (nginx.url,))
    connection.close()
    assert served.value("select count(*) from net.requests") == before


# ---- cancelling


def test_cancel_queued(unserved: Database, nginx: Nginx) -> None:
    request_id, kept = get(unserved, f"{nginx.url}/args?no"), get(unserved, f"{nginx.url}/args?yes")
    assert unserved.value("select net.cancel(%s)", request_id) is True
    assert unserved.value("select net.cancel(%s)", request_id) is False
    # No worker has looked, and all say the same of it as afterwards.
    message = "The request was cancelled before it was sent."
    standing = (
        ("cancelled", None, message, 0),
        ("cancelled", message, 0),
        ("ERROR", message),
        True,
    )

    def stands() -> tuple[Any, ...]:
        return (
            unserved.row(
                "select state::text, status_code, error_msg, attempts from net.requests"
                " where id = %s and ended is not null and next_attempt is null",
                request_id,
            ),
            unserved.row("select state::text, error_msg, attempts from net.wait(%s)", request_id),
            result(unserved, request_id)[:2],
            unserved.value("select net._await_response(%s)", request_id),
        )

    assert stands() == standing
    assert unserved.value("select count(*) from net._http_response") == 0
    with unserved.worker():
        outcome(unserved, kept)
        row = outcome(unserved, request_id)
    assert (row["state"], row["error_msg"]) == ("cancelled", message)
    assert (row["status_code"], row["timed_out"], row["attempts"]) == (None, False, 0)
    assert stands() == standing
    assert unserved.value("select net.cancel(%s)", request_id) is False
    wait_until(nginx.requests, description="nginx's record")
    assert [seen.uri for seen in nginx.requests()] == ["/args?yes"]


def test_cancel_in_flight(served: Database, canned: Canned, nginx: Nginx) -> None:
    canned.answers.put(None)
    request_id = get(served, canned.url, timeout_milliseconds=20_000)
    in_flight(served, request_id)
    assert served.value("select net.cancel(%s)", request_id) is True
    row = outcome(served, request_id)
    assert row["state"] == "cancelled"
    assert row["error_msg"].startswith("The request was cancelled while it was in flight")
    assert row["attempts"] == 1
    canned.released.set()
    assert canned.ended.get(timeout=10)
    # recorded after the late answer came in, and so after that was dropped
    assert outcome(served, get(served, nginx.url))["content"] == "pgnet"
    assert outcome(served, request_id) == row
    assert canned.received.qsize() == 1


def test_cancel_is_part_of_the_transaction(unserved: Database) -> None:
    request_id = get(unserved, "http://127.0.0.1:1025/")
    connection = unserved.connect(autocommit=False)
    assert connection.execute("select net.cancel(%s)", (request_id,)).fetchone() == (True,)
    connection.rollback()
    assert unserved.value("select state::text from net.requests") == "ready"
    # also of the one that queued it
    row = connection.execute("select net.http_get('http://127.0.0.1:1025/')").fetchone()
    assert connection.execute("select net.cancel(%s)", row).fetchone() == (True,)
    connection.commit()
    assert unserved.rows("select state::text from net.requests order by id") == [
        ("ready",),
        ("cancelled",),
    ]


def test_cancel_what_has_ended_or_never_was(served: Database, nginx: Nginx) -> None:
    request_id = get(served, nginx.url)
    row = outcome(served, request_id)
    assert served.value("select net.cancel(%s)", request_id) is False
    assert outcome(served, request_id) == row
    assert served.value("select net.cancel(%s)", 2**60) is False
    assert served.value("select net.cancel(null)") is False


def test_cancel_another_roles_request(unserved: Database) -> None:
    request_id = get(unserved, "http://127.0.0.1:1025/")
    unserved.execute("create role cancelling login")
    try:
        other = unserved.connect("cancelling")
        assert other.execute("select net.cancel(%s)", (request_id,)).fetchone() == (False,)
        own = other.execute("select net.http_get('http://127.0.0.1:1025/')").fetchone()
        assert other.execute("select net.cancel(%s)", own).fetchone() == (True,)
        third = other.execute("select net.http_get('http://127.0.0.1:1025/')").fetchone()
        assert third is not None
        # the owner may cancel everybody's
        assert unserved.value("select net.cancel(%s)", third[0]) is True
        assert unserved.value("select state::text from net.requests where id = %s", request_id) == (
            "ready"
        )
        unserved.execute("call net.drain()")
        assert unserved.value(
            "select requested_by::text from net._http_response where id = %s", third[0]
        ) == ("cancelling")
    finally:
        unserved.drop()
        with unserved.cluster.connect() as connection:
            connection.execute("drop role cancelling")


# ---- views


def test_views(served: Database, nginx: Nginx, httpd: str) -> None:
    good = get(served, f"{nginx.url}/json")
    bad = served.value(
        'select net.http_post(%s, \'{"a": 1}\', headers => \'{"X-A": "b"}\')',
        f"{nginx.url}/status/500",
    )
    hanging = get(served, f"{httpd}/hang", timeout_milliseconds=20_000)
    outcome(served, good)
    outcome(served, bad)
    in_flight(served, hanging)
    requests = served.rows(
        "select id, state::text, method, url, requested_by::text, status_code, attempts,"
        " ended >= requested, age >= '0' from net.requests where id = any(%s) order by id",
        [good, bad, hanging],
    )
    assert requests == [
        (good, "succeeded", "GET", f"{nginx.url}/json", "postgres", 200, 1, True, True),
        (bad, "failed", "POST", f"{nginx.url}/status/500", "postgres", 500, 1, True, True),
        (hanging, "in_flight", "GET", f"{httpd}/hang", "postgres", None, 1, None, True),
    ]
    assert served.value("select net.cancel(%s)", hanging)
    assert served.row(
        "select state::text, method, url, status_code, content_json, took >= '0'"
        " from net.responses where id = %s",
        good,
    ) == ("succeeded", "GET", f"{nginx.url}/json", 200, {"ok": True}, True)
    failure = served.row(
        "select method, url, headers, body, status_code, attempts, error_msg"
        " from net.failures where id = %s",
        bad,
    )
    assert failure == (
        "POST",
        f"{nginx.url}/status/500",
        {"X-A": "b", "Content-Type": "application/json"},
        b'{"a": 1}',
        500,
        1,
        None,
    )


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        (b"application/json", b'{"a": 1}', {"a": 1}),
        (b"application/problem+json; charset=utf-8", b"[1]", [1]),
        (b"application/json", b"{not json", None),
        (b"application/json", b'{"a": "\\u0000"}', None),
        (b"application/json", b"[" * 20000 + b"]" * 20000, None),
        (b"text/plain", b'{"a": 1}', {"a": 1}),
        (b"text/plain", b"1", None),
    ],
    ids=["json", "suffix", "broken", "nul", "deep", "object as text", "text"],
)
def test_content_json(
    served: Database, canned: Canned, content_type: bytes, body: bytes, expected: Any
) -> None:
    canned.answers.put(http(b"Content-Type: " + content_type, body=body))
    request_id = get(served, canned.url)
    row = outcome(served, request_id)
    assert row["content"] == body.decode()
    found = served.value("select content_json from net.responses where id = %s", request_id)
    assert found == expected
    served.execute("delete from net._http_response where id = %s", request_id)


# ---- time


def test_ttl(unserved: Database, nginx: Nginx) -> None:
    """Applied while no request comes in: by a worker that has nothing else to do."""
    with unserved.worker():
        request_id = get(unserved, f"{nginx.url}/status/500")
        kept = outcome(unserved, request_id)
        unserved.execute("select net.configure('ttl', '1 s')")
        unserved.wait_for("select count(*) from net._http_response", predicate=lambda n: n == 0)
        assert unserved.value("select clock_timestamp() - %s", kept["created"]).total_seconds() >= 1
        assert unserved.value("select count(*) from net.failures") == 1
        assert result(unserved, request_id)[:2] == (
            "ERROR", "request matching request_id not found",
        )  # fmt: skip
        unserved.execute("select net.configure('ttl_failed', '1 s')")
        unserved.wait_for("select count(*) from net.failures", predicate=lambda n: n == 0)


def test_ttl_of_what_comes_later(unserved: Database, nginx: Nginx) -> None:
    """The response is recorded after the worker has last looked for what is past its time."""
    unserved.execute("select net.configure('ttl', '1 s')")
    with unserved.worker():
        outcome(unserved, get(unserved, nginx.url))
        unserved.wait_for("select count(*) from net._http_response", predicate=lambda n: n == 0)


# ---- the worker gone and back


def test_worker_down_and_up_again(unserved: Database, nginx: Nginx) -> None:
    first = get(unserved, nginx.url)
    assert result(unserved, first)[0] == "PENDING"
    with unserved.worker() as worker:
        assert outcome(unserved, first)["status_code"] == 200
        worker.kill()
        unserved.wait_for("select not pgnet.worker_is_up()")
        second = get(unserved, nginx.url)
        assert "no worker is running" in result(unserved, second)[1]
    with unserved.worker() as worker:
        assert outcome(unserved, second)["status_code"] == 200
        third = get(unserved, nginx.url)
        assert outcome(unserved, third)["status_code"] == 200
        assert worker.stop() == 0
        assert (
            unserved.value(
                "select count(*) from pgnet.worker where gone_since is null and ended is null"
            )
            == 0
        )


def test_what_was_in_flight_when_the_worker_stopped(unserved: Database, nginx: Nginx) -> None:
    """SIGTERM: what is in flight ends within the grace, and is recorded."""
    with unserved.worker() as worker:
        request_id = get(unserved, f"{nginx.url}/slow?s=0.5")
        in_flight(unserved, request_id)
        assert worker.stop() == 0
    assert unserved.row("select content, attempts from net._http_response") == ("slow", 1)


def test_drop_extension_under_load(unserved: Database, nginx: Nginx) -> None:
    """The worker outlives it, and serves the extension that is created anew."""
    with unserved.worker() as worker:
        unserved.execute(
            "select net.http_get(%s) from generate_series(1, 500)", f"{nginx.url}/slow?s=0.05"
        )
        unserved.wait_for("select count(*) from net._http_response")
        began = time.monotonic()
        unserved.execute("drop extension pgnet")
        assert time.monotonic() - began < 5
        assert unserved.value("select to_regnamespace('net')") is None
        assert worker.process.poll() is None
        unserved.execute("create extension pgnet")
        unserved.execute("select net.allow_network('loopback')")
        request_id = get(unserved, nginx.url)
        assert request_id == 1
        assert outcome(unserved, request_id, timeout=15)["content"] == "pgnet"
        assert worker.process.poll() is None
        assert "Traceback" not in worker.output()


def test_database_dropped_with_force(cluster: Cluster, nginx: Nginx) -> None:
    database = cluster.create_database(name="forced")
    database.execute("select net.allow_network('loopback')")
    with database.worker() as worker:
        database.execute(
            "select net.http_get(%s) from generate_series(1, 100)", f"{nginx.url}/slow?s=0.2"
        )
        database.wait_for("select count(*) from pgnet.claim")
        began = time.monotonic()
        database.drop()
        assert time.monotonic() - began < 5
        assert worker.process.poll() is None
        again = cluster.create_database(name="forced")
        again.execute("select net.allow_network('loopback')")
        assert outcome(again, get(again, nginx.url), timeout=15)["content"] == "pgnet"
        assert "Traceback" not in worker.output()
    again.drop()


def test_database_dropped_with_force_and_a_worker_in_it(cluster: Cluster, nginx: Nginx) -> None:
    database = cluster.create_database(name="forced_backend")
    database.execute("select net.allow_network('loopback')")
    working = database.connect()
    ended: queue.Queue[BaseException | None] = queue.Queue()

    def work() -> None:
        try:
            working.execute("call net.work()")
        except psycopg.Error as error:
            ended.put(error)
        else:
            ended.put(None)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    database.wait_for("select pgnet.worker_is_up()")
    database.execute(
        "select net.http_get(%s) from generate_series(1, 100)", f"{nginx.url}/slow?s=0.2"
    )
    database.wait_for("select count(*) from pgnet.claim")
    with cluster.connect() as connection:
        began = time.monotonic()
        connection.execute("drop database forced_backend with (force)")
        assert time.monotonic() - began < 2
    assert isinstance(ended.get(timeout=5), psycopg.OperationalError)
    thread.join(5)
    database.close()


def test_a_worker_that_waits_for_the_extension(cluster: Cluster, nginx: Nginx) -> None:
    """Started before CREATE EXTENSION, it serves as soon as there is something to serve."""
    database = cluster.create_database(extension=False)
    with database.worker(seen=False) as worker:
        wait_until(worker.output, description="the worker says that it waits")
        database.execute("create extension pgnet cascade")
        database.execute("select net.allow_network('loopback')")
        request_id = get(database, nginx.url)
        assert outcome(database, request_id, timeout=15)["content"] == "pgnet"
    database.drop()
