"""Rows that cannot be requests: each ends as failed, says why, and stops no other one.

Anyone may insert a row, and a database may be in another encoding than UTF-8. The claim is
the first to read a row, and all workers live of it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from psycopg import errors

from servers.cluster import Cluster, Database
from servers.nginx import Nginx
from servers.recorder import Recorder
from servers.workers import as_backend, as_process

# A number of ten bytes that is 131,072 digits as text.
HUGE = "1e131071"
MANY = f"(select jsonb_agg({HUGE}) from generate_series(1, 8300))"
DEEP = "(repeat('[', 6000) || repeat(']', 6000))::jsonb"
FORMS = pytest.mark.parametrize("form", [as_process, as_backend])
Form = Callable[[Database], AbstractContextManager[None]]
# The interpreter of the tests is the server's.
TOO_DEEP = "nested too deeply" if sys.version_info < (3, 12) else ""

# Columns of a row besides method and url, and what the error says.
POISON = {
    "a header of 1 GB as text": (f"headers => jsonb_build_object('X', {MANY})", "The headers are"),
    "options of 1 GB as text": (f"options => jsonb_build_object('retry', {MANY})", "The options"),
    "a delivery of 1 GB as text": (
        f"options => jsonb_build_object('delivery', {MANY})",
        "The options are longer",
    ),
    "a key of 1 GB as text": (
        f"options => jsonb_build_object('idempotency_key', {MANY})",
        "The options are longer",
    ),
    "a context of 1 GB as text": (f"context => {MANY}", "The context is longer"),
    "numbers with a long fraction": (
        "headers => (select jsonb_agg(1e-16383) from generate_series(1, 100000))",
        "The headers are longer",
    ),
    "zeros with a scale": (
        "headers => (select jsonb_object_agg(n, round(0::numeric, 16000))"
        " from generate_series(1, 90000) n)",
        "The headers are longer",
    ),
    "a header of 50 MB": (
        "headers => jsonb_build_object('X', repeat('x', 50000000))",
        "The headers are longer",
    ),
    "control characters": (
        "headers => jsonb_build_object('X', repeat(chr(1), 2000000))",
        "The headers are longer",
    ),
    # Python 3.12 and later read deeper JSON, and then find an array.
    "headers nested deeply": (f"headers => {DEEP}", TOO_DEEP or "headers must be a JSON object"),
    "options nested deeply": (f"options => {DEEP}", TOO_DEEP or "options must be a JSON object"),
    "headers that are a number": (f"headers => '{HUGE}'", "headers must be a JSON object"),
    "headers that are a string": ("headers => '\"idempotency_key\"'", "headers must be a JSON"),
    "options that are an array": (
        'options => \'["idempotency_key", "delivery"]\'',
        "options must be a JSON object",
    ),
    "options that are a string": ("options => '\"idempotency_key\"'", "options must be a JSON"),
    "options that are null": ("options => 'null'", "options must be a JSON object"),
    "an unknown option": ("options => '{\"delivery\": 1e1000}'", 'option "delivery" must be'),
    "a negative timeout": ("timeout_milliseconds => -2147483648", "must be greater than 0"),
    "a timeout of 0": ("timeout_milliseconds => 0", "must be greater than 0"),
    "a long URL": ("url => 'http://a.example/' || repeat('x', 300000000)", "The URL is longer"),
    "a long host": ("url => 'http://' || repeat('x', 100000) || '/'", "its host is not a name"),
    "no host": ("url => ''", "invalid URL"),
    "a lone slash": ("url => '/'", "invalid URL"),
    "a long method": ("method => repeat('A', 1000000)", "The method is longer"),
    "a created that is infinite": ("created => 'infinity', options => '[]'", "options must be"),
    "a negative id": ("id => -9223372036854775808, options => '[]'", "options must be"),
    "a body of 600 MB": (
        "body => convert_to(repeat('x', 600000000), 'SQL_ASCII')",
        "The body is larger than 512 MB",
    ),
}

INSERT = """
    create function insert_request(
        method text default 'GET', url text default 'http://a.example/', headers jsonb default null,
        options jsonb default null, context jsonb default null, body bytea default null,
        timeout_milliseconds integer default null, created timestamptz default now(),
        id bigint default null
    ) returns bigint language sql as $$
        insert into net.http_request_queue (
            id, method, url, headers, options, context, body, timeout_milliseconds, created)
        values (
            coalesce(id, nextval('net.http_request_queue_id_seq')), method, url, headers, options,
            context, body, timeout_milliseconds, created)
        returning id
    $$
"""


def send_beside(database: Database, nginx: Nginx, form: Form) -> dict[int, str]:
    """Queue good ones behind what is there, and serve; gives the errors of the bad ones, by id."""
    database.execute(
        "select net.http_get(%s || n, timeout_milliseconds => 20000) from generate_series(1, 20) n",
        f"{nginx.url}/?",
    )
    with form(database):
        database.wait_for("select not exists (select from net.http_request_queue)", timeout=60)
    good = "select count(*) from net._http_response where status_code = 200"
    assert database.value(good) == 20
    failed = "select id, error_msg from net._http_response where state = 'failed'"
    return dict(database.rows(failed))


def readable(database: Database) -> None:
    """Whatever was done, the views can be read."""
    for relation in ("net.requests", "net.responses", "net.failures", "net.attempts"):
        database.rows(f"select r::text from {relation} r")
    database.rows("select net.http_get_result(id)::text from net._http_response")


@FORMS
def test_rows_that_cannot_be_requests(database: Database, nginx: Nginx, form: Form) -> None:
    database.execute(INSERT)
    expected = {
        database.value(f"select insert_request({columns})"): (poison, words)
        for poison, (columns, words) in POISON.items()
    }
    began = time.monotonic()
    messages = send_beside(database, nginx, form)
    # To write a text of 1 GB, and to see that it is too long, takes 5 s.
    assert time.monotonic() - began < 20
    wrong = {
        poison: messages.get(id)
        for id, (poison, words) in expected.items()
        if words not in messages.get(id, "")
    }
    assert wrong == {}
    assert len(messages) == len(POISON)
    readable(database)
    # Requests that can be sent again are; none of them stops the others.
    database.rows("select net.retry(id) from net.failures")


def test_what_is_long_in_any_column_counts(database: Database, recorder: Recorder) -> None:
    """A claim brings little into memory, however short a row is as it is stored."""
    database.execute(INSERT)
    for columns in (
        "headers => jsonb_build_object('X', repeat('x', 2000000))",
        "headers => (select jsonb_agg(1e131071) from generate_series(1, 18))",
        "options => jsonb_build_object('retry', repeat('x', 2000000))",
        "context => jsonb_build_object('X', repeat('x', 2000000))",
        "url => 'http://a.example/' || repeat('x', 2000000)",
        "body => convert_to(repeat('x', 2000000), 'UTF8')",
    ):
        database.execute(f"select insert_request({columns}) from generate_series(1, 40)")
        rows = recorder.connection.execute(
            "select octet_length(concat(url, headers, options)) + coalesce(octet_length(body), 0)"
            " from pgnet.claim_requests(%s, 100, 100, 100, '{}', 5000000, '') where id is not null",
            (recorder.id,),
        ).fetchall()
        assert 1 <= len(rows) <= 20
        assert sum(size for (size,) in rows) <= 8_000_000
        database.execute("delete from net.http_request_queue")
        database.execute("delete from pgnet.claim")


@pytest.fixture
def recorder(database: Database) -> Recorder:
    return Recorder(database)


@FORMS
@pytest.mark.parametrize(
    ("encoding", "text", "words"),
    [
        ("SQL_ASCII", r"e'\xff'", 'invalid byte sequence for encoding "UTF8"'),
        ("WIN1252", "chr(129)", 'has no equivalent in encoding "UTF8"'),
        ("EUC_JP", r"convert_from('\x8ff5a1', 'EUC_JP')", 'has no equivalent in encoding "UTF8"'),
    ],
)
def test_text_that_utf8_cannot_express(
    cluster: Cluster,
    nginx: Nginx,
    form: Form,
    encoding: str,
    text: str,
    words: str,
) -> None:
    database = cluster.create_database(options=f"encoding '{encoding}' locale 'C'")
    try:
        database.execute("select net.allow_network('loopback')")
        database.execute(INSERT)
        for columns in (
            "headers => jsonb_build_object('X', {text})",
            "url => 'http://a.example/' || {text}",
            "url => 'http://' || {text} || '/'",
            "options => jsonb_build_object('retry', {text})",
            "context => jsonb_build_object('X', {text})",
        ):
            database.execute(f"select insert_request({columns.format(text=text)})")
        database.execute("set client_encoding to 'UTF8'")
        messages = send_beside(database, nginx, form)
        assert len(messages) == 5
        assert [message for message in messages.values() if words not in message] == []
        readable(database)
    finally:
        database.drop()


@FORMS
def test_letters_of_other_encodings_are_no_fault(
    cluster: Cluster, nginx: Nginx, form: Form
) -> None:
    database = cluster.create_database(options="encoding 'LATIN1' locale 'C'")
    try:
        database.execute("select net.allow_network('loopback')")
        database.execute(INSERT)
        database.execute(
            "select insert_request(url => %s || chr(233), context => jsonb_build_array(chr(233)))",
            f"{nginx.url}/?",
        )
        with form(database):
            database.wait_for("select count(*) = 1 from net._http_response where status_code = 200")
    finally:
        database.drop()


@pytest.mark.parametrize("context", [MANY, "jsonb_build_object('a', repeat('x', 16000000))"])
def test_a_context_that_could_not_be_read_is_refused_at_the_call(
    database: Database, context: str
) -> None:
    with pytest.raises(errors.InvalidParameterValue, match="the context is longer than") as caught:
        database.execute(
            f"select net.http_request('GET', 'http://a.example/', context => {context})"
        )
    assert "keep in a table what is large" in str(caught.value)
    good = "jsonb_build_object('a', repeat('x', 15000000), 'b', 1e131071)"
    database.execute(f"select net.http_request('GET', 'http://a.example/', context => {good})")


def test_timeouts_have_a_ceiling(database: Database, recorder: Recorder) -> None:
    def claimed(timeout: int | None) -> int:
        database.execute(
            "insert into net.http_request_queue (method, url, timeout_milliseconds)"
            " values ('GET', 'http://a.example/', %s)",
            timeout,
        )
        ((milliseconds,),) = recorder.connection.execute(
            "select timeout_milliseconds from pgnet.claim_requests(%s, 1, 1, 1, '{}', 1000, '')",
            (recorder.id,),
        ).fetchall()
        # Until when the claim is not touched by others.
        kept = database.value("select extract(epoch from max(deadline) - now()) from pgnet.claim")
        assert float(kept) == pytest.approx(max(milliseconds, 0) / 1000 + 60, abs=5)
        database.execute("delete from net.http_request_queue")
        database.execute("delete from pgnet.claim")
        return int(milliseconds)

    assert claimed(2147483647) == 3_600_000
    assert claimed(3_600_001) == 3_600_000
    assert claimed(3_599_999) == 3_599_999
    assert claimed(None) == 1000
    assert claimed(-2147483648) == -2147483648
    database.execute("select net.configure('max_timeout', '5 s')")
    assert claimed(6000) == 5000
    database.execute("select net.configure('timeout_milliseconds', '5000')")
    database.execute("select net.configure('max_timeout', '2 s')")
    assert claimed(None) == 2000
    with pytest.raises(Exception, match="must not be more than max_timeout, 2000 ms") as raised:
        database.execute("select net.configure('timeout_milliseconds', '2001')")
    assert "net.configure('max_timeout', '3 s')" in str(raised.value)
    database.execute("select net.configure('max_timeout', '2147483 s')")
    assert claimed(2147483647) == 2_147_483_000
