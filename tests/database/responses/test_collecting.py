"""Collecting and waiting for responses, in and out of the transaction that queued; net.fetch."""

from __future__ import annotations

import time

import pytest
from psycopg import errors, sql

from servers.cluster import Database
from servers.nginx import Nginx
from servers.responses import COLLECTORS, TIMEOUT, Canned, get, in_flight, outcome, result

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
    assert "o worker" not in message
    canned.released.set()
    assert outcome(served, request_id)["content"] == "late"


def test_pending_without_a_worker_says_how_to_start_one(unserved: Database) -> None:
    status, message, *response = result(unserved, get(unserved, "http://127.0.0.1:1025/"))
    assert (status, response) == ("PENDING", [None, None, None])
    for words in ("No worker is running", "net.schedule_worker()", "net.work()", '"pgnet worker"'):
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
    diag = caught.value.diag
    assert diag.message_primary == f"request {row[0]} is not sent before this transaction commits"
    assert diag.message_detail
    assert diag.message_hint
    assert "net.fetch" in diag.message_hint
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
    """net.wait waits for another session's request, however old its own transaction is."""
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
    connection.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
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
