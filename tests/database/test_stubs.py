"""Stubs answer in place of the network, and net.recorded has what was asked for."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors
from psycopg.rows import dict_row

from servers.cluster import Cluster, Database
from servers.httpd import Running
from servers.responses import TIMEOUT, get, outcome
from servers.roles import login_roles
from servers.waiting import wait_until
from servers.workers import Form, Session, as_backend, as_process, serving

FORMS = pytest.mark.parametrize("form", [as_process, as_backend])
API = "https://api.example.com"


@pytest.fixture(scope="module")
def roles(cluster: Cluster) -> Iterator[None]:
    with login_roles(cluster, ("st_app", "st_other")):
        yield


def stub(database: Database, url_pattern: str, status: int | None = 200, **arguments: Any) -> int:
    named = "".join(f", {name} => %s" for name in arguments)
    made: int = database.value(
        f"select net.stub(%s, %s{named})", url_pattern, status, *arguments.values()
    )
    return made


def drain(database: Database) -> None:
    database.execute("call net.drain()")


def recorded(database: Database) -> list[dict[str, Any]]:
    return (
        database.connection.cursor(row_factory=dict_row)
        .execute("select * from net.recorded order by id, attempt")
        .fetchall()
    )


def answered(database: Database, url: str, **arguments: Any) -> dict[str, Any]:
    """The outcome of a request, after one call of net.drain."""
    request_id = get(database, url, **arguments)
    drain(database)
    return outcome(database, request_id, timeout=0)


# ---- answering


def test_an_answer(database: Database) -> None:
    """No network: the name does not exist, and no time is lost."""
    stub(
        database,
        f"{API}/*",
        201,
        body='{"id": 7}',
        headers='{"X-One": "1", "Set-Cookie": ["a", "b"]}',
    )
    began = time.monotonic()
    found = answered(database, f"{API}/orders?x=1#part")
    assert time.monotonic() - began < 5
    assert (found["state"], found["status_code"], found["attempts"]) == ("succeeded", 201, 1)
    assert (found["content"], found["content_type"]) == ('{"id": 7}', "application/json")
    assert ["Set-Cookie", "a"] in found["header_list"]
    assert ["Set-Cookie", "b"] in found["header_list"]
    assert found["headers"]["X-One"] == "1"
    assert (found["error_msg"], found["timed_out"], found["address"]) == (None, False, None)
    row = database.row(
        "select r.status::text, r.message from net.http_get_result(%s) r", found["id"]
    )
    assert row == ("SUCCESS", "ok")
    assert database.value("select content_json from net.responses") == {"id": 7}


@FORMS
def test_by_both_kinds_of_worker(database: Database, form: Form) -> None:
    """A worker that runs follows the stub at its commit."""
    with form(database):
        stub(database, f"{API}/*", 200, body="hello")
        for _ in range(3):
            request_id = get(database, f"{API}/")
            assert outcome(database, request_id)["content"] == "hello"
        database.execute("select net.unstub()")
        request_id = get(database, "http://127.0.0.1:9/")
        assert "127.0.0.1: port 9 is not allowed" in outcome(database, request_id)["error_msg"]


def test_what_is_committed_with_the_stub(database: Database) -> None:
    with serving(database):
        caller = database.connect(autocommit=False)
        for number in range(20):
            caller.execute("select net.unstub()")
            caller.execute("select net.stub(%s, body => %s)", (f"{API}/*", str(number)))
            row = caller.execute("select net.http_get(%s)", (f"{API}/",)).fetchone()
            caller.commit()
            assert row is not None
            assert outcome(database, row[0])["content"] == str(number)
            caller.rollback()


def test_the_body_and_its_type(database: Database) -> None:
    for body, headers, expected in (
        ("[1]", None, "application/json"),
        ("plain é", None, "text/plain; charset=utf-8"),
        ("<a/>", '{"content-type": "text/xml"}', "text/xml"),
        (None, None, None),
        ("", None, "text/plain; charset=utf-8"),
    ):
        database.execute("select net.unstub()")
        stub(database, f"{API}/*", body=body, headers=headers)
        found = answered(database, f"{API}/")
        assert (found["content"], found["content_type"]) == (body or None, expected)
    request_id = database.value("select net.http_head(%s)", f"{API}/")
    stub(database, f"HEAD {API}/*", body="x")
    drain(database)
    assert outcome(database, request_id)["content"] is None


@pytest.mark.parametrize(
    ("status", "state"), [(200, "succeeded"), (302, "succeeded"), (404, "failed"), (503, "failed")]
)
def test_statuses(database: Database, status: int, state: str) -> None:
    stub(database, f"{API}/*", status, headers='{"Location": "https://elsewhere.example/"}')
    found = answered(database, f"{API}/")
    assert (found["state"], found["status_code"]) == (state, status)
    assert found["redirects"] == 0


def test_no_answer(database: Database) -> None:
    stub(database, f"{API}/*", None)
    found = answered(database, f"{API}/")
    assert (found["state"], found["status_code"]) == ("failed", None)
    assert found["error_msg"] == "Couldn't connect to server"
    assert found["timed_out"] is False
    assert database.value("select id from net.failures") == found["id"]


def test_a_delay(database: Database) -> None:
    stub(database, f"{API}/slow", delay="300 ms", body="late")
    began = time.monotonic()
    found = answered(database, f"{API}/slow")
    assert time.monotonic() - began >= 0.3
    assert found["content"] == "late"
    assert found["total_ms"] >= 300


def test_a_timeout(database: Database) -> None:
    stub(database, f"{API}/*", delay="1 hour")
    found = answered(database, f"{API}/", timeout_milliseconds=50)
    assert (found["state"], found["timed_out"]) == ("failed", True)
    assert TIMEOUT.fullmatch(found["error_msg"])


def test_a_request_that_is_cancelled_meanwhile(database: Database) -> None:
    stub(database, f"{API}/*", delay="1 hour")
    request_id = get(database, f"{API}/", timeout_milliseconds=60_000)
    with database.worker():
        database.wait_for("select state = 'in_flight' from net.requests where id = %s", request_id)
        database.execute("select net.cancel(%s)", request_id)
        assert outcome(database, request_id)["state"] == "cancelled"
        assert outcome(database, get(database, "http://127.0.0.1:9/"))["state"] == "failed"


def test_a_secret_in_an_answer_is_masked(database: Database) -> None:
    """A stub answers a request that is put together as any other; a secret may be missing."""
    database.execute("select net.set_secret('key', 'hunter2hunter2', %s)", f"{API}/")
    stub(database, f"{API}/*", body="You sent hunter2hunter2.")
    headers = '{"Authorization": {"secret": "key", "prefix": "Bearer "}}'
    found = answered(database, f"{API}/", headers=headers)
    assert found["content"] == "You sent ***."
    assert recorded(database)[0]["headers"] == json.loads(headers)
    database.execute("select net.drop_secret('key')")
    request_id = database.value("select net.http_get(%s)", f"{API}/x")
    database.execute(
        "update net.http_request_queue set headers = %s where id = %s", headers, request_id
    )
    drain(database)
    assert "key" in outcome(database, request_id)["error_msg"]


# ---- which stub


def test_patterns(database: Database) -> None:
    for pattern, method, url, expected in (
        (f"{API}/*", "GET", f"{API}/a/b?c=d", True),
        (f"{API}/*", "GET", "https://api.example.com.evil.example/", False),
        (f"{API}/a", "GET", f"{API}/a", True),
        (f"{API}/a", "GET", f"{API}/ab", False),
        (f"{API}/a", "GET", f"{API}/a?b", False),
        (f"{API}/a", "GET", f"{API}/a#b", True),
        (f"{API}/a?*", "GET", f"{API}/a?b", True),
        (API, "GET", f"{API}/", True),
        (f"{API}?a=*", "GET", f"{API}/?a=1", True),
        ("HTTPS://API.Example.com/A", "GET", f"{API}/A", True),
        ("HTTPS://API.Example.com/A", "GET", f"{API}/a", False),
        ("*", "GET", f"{API}/", True),
        ("https://*.example.com/*", "GET", f"{API}/", True),
        ("https://*", "GET", "http://api.example.com/", False),
        (f"{API}/a_b%!", "GET", f"{API}/a_b%!", True),
        (f"{API}/a_b%!", "GET", f"{API}/axbyy", False),
        (f"{API}/a[b](c)", "GET", f"{API}/a[b](c)", True),
        (f"POST {API}/*", "POST", f"{API}/", True),
        (f"post {API}/*", "POST", f"{API}/", True),
        (f"POST {API}/*", "GET", f"{API}/", False),
        ("PUT *", "PUT", f"{API}/", True),
        ("https://hooks.example/*", "POST", "https://hooks.example/{secret:hook}", True),
    ):
        assert (
            database.value(
                "select pgnet.stub_covers(pgnet.stub_pattern(%s), %s, %s)", pattern, method, url
            )
            is expected
        ), (pattern, url)


@pytest.mark.parametrize(
    "pattern",
    [
        None,
        "",
        "api.example.com/*",
        "ftp://x/",
        f"{API}/#a",
        f"{API}/ a",
        "POST",
        "POST /x",
        "a b *",
    ],
)
def test_what_is_no_pattern(database: Database, pattern: str | None) -> None:
    for call in ("net.stub(%s)", "net.unstub(%s)"):
        if pattern is None and "unstub" in call:
            continue
        with pytest.raises(errors.InvalidParameterValue, match="invalid URL pattern") as caught:
            database.execute(f"select {call}", pattern)
        assert "https://api.example.com/*" in (caught.value.diag.message_hint or "")


@pytest.mark.parametrize(
    "arguments",
    [
        {"status": 100},
        {"status": 600},
        {"times": 0},
        {"delay": "-1 s"},
        {"delay": "2 days"},
        {"headers": "[]"},
        {"headers": '{"A": 1}'},
        {"headers": '{"A": ["x", 1]}'},
        {"headers": '{"A": [["x"]]}'},
        {"headers": '{"A": null}'},
        {"headers": '{"A": {"secret": "x"}}'},
        {"headers": '{"A b": "x"}'},
        {"headers": '{"": "x"}'},
    ],
)
def test_what_is_no_answer(database: Database, arguments: dict[str, Any]) -> None:
    named = ", ".join(f"{name} => %s" for name in arguments)
    with pytest.raises(errors.InvalidParameterValue):
        database.execute(f"select net.stub('*', {named})", *arguments.values())
    assert database.rows("select * from net.stubs") == []


def test_null_arguments(database: Database) -> None:
    database.execute("select net.stub('*', null, null, null, null, null)")
    row = database.row("select status_code, headers, body, delay = '0', times_left from net.stubs")
    assert row == (None, [], None, True, None)


def test_one_after_the_other(database: Database) -> None:
    """In the order in which they were made, each as often as it says, then the network again."""
    stub(database, f"{API}/*", 503, times=2)
    stub(database, f"{API}/*", 200, body="first", times=1)
    stub(database, f"POST {API}/*", 202)
    stub(database, f"{API}/*", 200, body="rest")
    found = [answered(database, f"{API}/") for _ in range(5)]
    assert [row["status_code"] for row in found] == [503, 503, 200, 200, 200]
    assert [row["content"] for row in found] == [None, None, "first", "rest", "rest"]
    assert database.rows("select times_left from net.stubs order by id") == [
        (0,),
        (0,),
        (None,),
        (None,),
    ]
    assert database.value("select net.unstub(%s)", f"{API}/*") == 3
    assert database.value("select net.unstub()") == 1
    assert database.value("select net.unstub()") == 0


def test_as_often_as_it_says_with_two_workers(database: Database) -> None:
    database.execute("select net.configure_host('*', '{\"adaptive\": false}')")
    stub(database, f"{API}/*", 201, times=150)
    stub(database, f"{API}/*", 202)
    database.execute("select net.configure('batch_size', '10')")
    database.execute("select net.http_get(%s) from generate_series(1, 400)", f"{API}/")
    with database.worker(), serving(database):
        database.wait_for("select count(*) = 400 from net._http_response", timeout=30)
    statuses = database.rows(
        "select status_code, count(*) from net._http_response group by 1 order by 1"
    )
    assert statuses == [(201, 150), (202, 250)]
    assert database.value("select count(distinct pid) from pgnet.worker") == 2


def test_retries(database: Database) -> None:
    """Attempt by attempt, and net.drain returns when all of it is done."""
    database.execute(
        "select net.configure_retry('quick', '{\"max_attempts\": 5, \"backoff_milliseconds\": 1}')"
    )
    stub(database, f"{API}/*", 503, times=2)
    stub(database, f"{API}/*", None, times=1)
    stub(database, f"{API}/*", 200, body="at last")
    request_id = database.value("select net.http_request('GET', %s, retry => 'quick')", f"{API}/")
    drain(database)
    found = outcome(database, request_id, timeout=0)
    assert (found["state"], found["content"], found["attempts"]) == ("succeeded", "at last", 4)
    assert [(row["attempt"], row["status_code"]) for row in recorded(database)] == [
        (1, 503),
        (2, 503),
        (3, None),
        (4, 200),
    ]


def test_no_host_is_taken_for_broken(database: Database) -> None:
    """What a stub says is not learnt of the host: a hundred failures open no circuit breaker."""
    stub(database, f"{API}/*", 503, headers='{"Retry-After": "600"}')
    database.execute("select net.http_get(%s) from generate_series(1, 100)", f"{API}/")
    drain(database)
    assert database.value("select count(*) from net._http_response") == 100
    database.execute("select net.unstub()")
    stub(database, f"{API}/*", 200)
    assert answered(database, f"{API}/")["status_code"] == 200
    assert database.rows("select * from net.host_events") == []


def test_an_open_transaction_that_removes_a_stub(database: Database) -> None:
    """The worker does not wait for it longer than half a second, and tries again."""
    stub(database, f"{API}/*", 200, times=5)
    remover = database.connect(autocommit=False)
    remover.execute("select net.unstub()")
    with database.worker():
        request_id = get(database, f"{API}/")
        other = database.connect()
        session = Session(other, "select net.wait(%s, '1500 ms')" % request_id)  # noqa: UP031
        assert session.ended() is None
        remover.rollback()
        assert outcome(database, request_id)["status_code"] == 200


# ---- the mode record


def test_in_the_mode_record(database: Database, witness: Running) -> None:
    """Stubs answer, everything else is recorded, and nothing is sent."""
    database.execute("select net.configure('mode', 'record')")
    stub(database, f"{API}/*", 200, body="{}")
    first = database.value(
        'select net.http_post(%s, \'{"amount": 12}\', headers => \'{"X-A": "b"}\')', f"{API}/pay"
    )
    second = database.value(
        "select net.http_request('PUT', %s, body_text => 'Grüße', context => '1',"
        " options => '{\"priority\": 1}')",
        f"{witness.url}/thing",
    )
    third = database.value(
        "select net.http_request('PUT', %s, body_bytes => '\\xff00')", f"{witness.url}/bytes"
    )
    drain(database)
    states = database.rows("select id, state::text from net.requests order by id")
    assert states == [(first, "succeeded"), (second, "cancelled"), (third, "cancelled")]
    assert witness.record() == []
    rows = recorded(database)
    assert [(row["id"], row["method"], row["url"]) for row in rows] == [
        (first, "POST", f"{API}/pay"),
        (second, "PUT", f"{witness.url}/thing"),
        (third, "PUT", f"{witness.url}/bytes"),
    ]
    assert rows[0]["body_json"] == {"amount": 12}
    assert rows[0]["headers"] == {"X-A": "b", "Content-Type": "application/json"}
    assert (rows[0]["stub"], rows[0]["status_code"]) == (f"{API}/*", 200)
    assert (rows[1]["body_text"], rows[1]["body_json"]) == ("Grüße", None)
    assert (rows[1]["context"], rows[1]["stub"], rows[1]["status_code"]) == (1, None, None)
    assert (rows[2]["body"], rows[2]["body_text"]) == (b"\xff\x00", None)


def test_only_what_was_not_sent_is_recorded(database: Database, witness: Running) -> None:
    assert answered(database, f"{witness.url}/status/500")["state"] == "failed"
    cancelled = get(database, f"{witness.url}/")
    database.execute("select net.cancel(%s)", cancelled)
    drain(database)
    assert recorded(database) == []


def test_forgetting(database: Database) -> None:
    stub(database, f"{API}/*")
    first, second = (answered(database, f"{API}/")["id"] for _ in range(2))
    database.execute("select net.forget(%s)", first)
    assert [row["id"] for row in recorded(database)] == [second]
    drain(database)
    assert database.rows("select request_id from pgnet.stubbed") == [(second,)]


def test_expiry(database: Database) -> None:
    """Kept as long as responses."""
    stub(database, f"{API}/*")
    old, new = (answered(database, f"{API}/")["id"] for _ in range(2))
    database.execute(
        "update pgnet.stubbed set answered = now() - interval '7 hours' where request_id = %s", old
    )
    with database.worker():
        database.wait_for("select count(*) = 1 from pgnet.stubbed")
    assert database.rows("select request_id from pgnet.stubbed") == [(new,)]


# ---- who may


def test_the_owner_alone_makes_stubs(database: Database, roles: None) -> None:
    """Each role sees what it has asked for itself, and none what stubs there are."""
    stub(database, f"{API}/*", body="secret of the tests")
    app, other = (database.connect(role) for role in ("st_app", "st_other"))
    for call in ("net.stub('*')", "net.unstub()"):
        with pytest.raises(errors.InsufficientPrivilege):
            app.execute(f"select {call}")
    database.execute("grant execute on all functions in schema net, pgnet to st_app")
    database.execute("grant all on all tables in schema net, pgnet to st_app")
    try:
        for call in (
            "select net.stub('*')",
            "select net.unstub()",
            "insert into pgnet.stub (url_pattern, headers, delay) values ('*', '[]', '0')",
            "select * from pgnet.take_stubs('{1}', array[gen_random_uuid()])",
        ):
            with pytest.raises(errors.InsufficientPrivilege):
                app.execute(call)
        assert app.execute("select * from net.stubs").fetchall() == []
        app.execute("select net.http_get(%s)", (f"{API}/app",))
        other.execute("select net.http_get(%s)", (f"{API}/other",))
        drain(database)
        assert app.execute("select url from net.recorded").fetchall() == [(f"{API}/app",)]
        assert other.execute("select url from net.recorded").fetchall() == [(f"{API}/other",)]
        assert len(recorded(database)) == 2
    finally:
        database.execute("revoke all on all tables in schema net, pgnet from st_app")
        database.execute("revoke all on all functions in schema net, pgnet from st_app")


def test_a_claim_of_another_worker_takes_no_stub(database: Database) -> None:
    """Only for a claim whose token the worker has."""
    stub(database, f"{API}/*", times=3)
    get(database, f"{API}/")
    session = database.connect()
    session.execute(
        "select c.id from pgnet.register_worker('process') r"
        " cross join lateral pgnet.claim_requests(r.worker_id, 1, 1, 1, '{}', 100000, '') c"
    )
    ids = "select array_agg(id) from pgnet.claim"
    for tokens, expected in (
        ("select array_agg(gen_random_uuid()) from pgnet.claim", 0),
        ("select array_agg(token) from pgnet.claim", 1),
    ):
        rows = session.execute(f"select id from pgnet.take_stubs(({ids}), ({tokens}))").fetchall()
        assert len(rows) == expected
    assert database.value("select times_left from net.stubs") == 2


def test_a_row_inserted_by_hand(database: Database) -> None:
    """What cannot be a request is refused before a stub is asked, and uses none up."""
    stub(database, "*", times=1)
    database.execute(
        "insert into net.http_request_queue (method, url) values ('GET', 'mailto:x'),"
        " ('GET', 'https://a.example/')"
    )
    drain(database)
    assert database.rows("select state::text from net._http_response order by id") == [
        ("failed",),
        ("succeeded",),
    ]


def test_the_doctor_says_so(database: Database) -> None:
    def finding() -> Any:
        return database.row("select ok, detail, hint from net.check() where item = 'stubs'")

    none = (True, "no stub answers in place of the network", None)
    assert finding() == none
    stub(database, f"{API}/*", times=1)
    ok, detail, hint = finding()
    assert not ok
    assert detail == "1 stub(s) answer requests in place of the network"
    assert "select net.unstub()" in hint
    answered(database, f"{API}/")
    assert finding() == none


def test_a_dump_has_none(cluster: Cluster, database: Database) -> None:
    stub(database, f"{API}/*")
    dump = cluster.run("pg_dump", database.name)
    assert "api.example.com" not in dump


def test_no_stubs_cost_no_statement(database: Database, witness: Running) -> None:
    """A worker asks for stubs only where there are some."""
    session = database.connect()
    session.execute("set track_functions = 'all'")
    get(database, f"{witness.url}/body/x")
    session.execute("call net.drain()")
    session.execute("select pg_stat_force_next_flush()")
    calls = session.execute(
        "select count(*) filter (where funcname = 'claim_requests'),"
        " count(*) filter (where funcname = 'take_stubs') from pg_stat_user_functions"
    ).fetchone()
    assert calls == (1, 0)


def test_a_worker_that_dies_with_a_stub_in_flight(database: Database) -> None:
    """The attempt counts as lost, the next one takes the next stub."""
    stub(database, f"{API}/*", delay="1 hour", times=1)
    stub(database, f"{API}/*", body="second")
    request_id = get(database, f"{API}/", timeout_milliseconds=60_000)
    with database.worker() as worker:
        wait_until(lambda: recorded(database), description="the stub is used")
        worker.kill()
    with contextlib.suppress(psycopg.Error), database.worker():
        found = outcome(database, request_id)
    assert (found["content"], found["attempts"]) == ("second", 2)
