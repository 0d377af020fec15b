"""Text and JSON of answers in all charsets and encodings, and what a large one costs."""

from __future__ import annotations

import signal
import subprocess
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from psycopg import sql

from servers.cluster import Cluster, Database, as_server_user
from servers.memory import MIB, forget_peak
from servers.memory import status as size_of
from servers.raw import Raw, ask, prepare, whole
from servers.workers import as_backend, as_process

# ---- text


@pytest.mark.parametrize(
    ("content_type", "body", "text"),
    [
        # A label of the standard means what it means to browsers.
        ("text/html; charset=ISO-8859-1", b"\x80 10 \x93quoted\x94", "€ 10 “quoted”"),
        ("text/html; charset=latin1", b"Zo\xeb", "Zoë"),
        ("text/html; charset=us-ascii", b"\x85", "…"),
        ("text/plain; charset=windows-1252", b"\x81\x8d\x90", "\x81\x8d\x90"),
        ("text/plain; charset=iso-8859-9", b"\xfd\xf0", "\u0131\u011f"),
        ("text/plain; charset=iso-8859-11", b"\xa1", "ก"),
        ("text/plain; charset=gb2312", "汉".encode("gb18030"), "汉"),
        ("text/plain; charset=ks_c_5601-1987", "한".encode("cp949"), "한"),
        ("text/plain; charset=shift_jis", "①".encode("cp932"), "①"),
        ("text/plain; charset=cp1251", "Привет".encode("cp1251"), "Привет"),
        ("text/plain; charset=x-sjis", "日本".encode("cp932"), "日本"),
        ("text/plain; charset='utf-8'", "Zoë".encode(), "Zoë"),
        ("text/plain; CHARSET = UTF-8 ; x=y", "Zoë".encode(), "Zoë"),
        ("text/plain; charset=utf-8, text/plain", "Zoë".encode(), "Zoë"),
        # A byte order mark says more than a label, and is not part of the text.
        ("text/csv; charset=iso-8859-1", "\ufeffZoë".encode(), "Zoë"),
        ("text/plain", "Zoë".encode("utf-16"), "Zoë"),
        ("text/xml", b"\xfe\xff" + "Zoë".encode("utf-16-be"), "Zoë"),
        ("text/plain; charset=utf-16le", "Zoë".encode("utf-16-le"), "Zoë"),
        # A text says of itself what it likes.
        ("text/html", b"<meta charset=iso-8859-1>Zo\xeb", None),
        # Texts that are not labels, and a label that means nothing any more
        ("text/plain; charset=utf8mb4", b"abc", None),
        ("text/plain; charset=hz-gb-2312", b"abc", None),
        ("text/plain; charset=x-user-defined", b"abc", None),
        ("text/plain; charset=utf-7", b"+AGE-", None),
        ("text/plain; charset=unicode_escape", b"\\u0061", None),
        ("text/plain; charset=zip", zlib.compress(b"abc"), None),
        ("application/octet-stream", b"\xff\xfea\0", None),
    ],
)
def test_text(
    served: Database, server: Raw, content_type: str, body: bytes, text: str | None
) -> None:
    row = ask(
        served, "GET", server.answering(whole(body, b"Content-Type: " + content_type.encode()))
    )
    assert row["error_msg"] is None
    assert (row["content"], row["content_bytes"]) == (text, None if text is not None else body)


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        # RFC 8259: UTF-8, whatever the label says
        ("application/json", b'\xef\xbb\xbf{"a": "\xc3\xab"}', {"a": "ë"}),
        ("application/json; charset=utf8mb4", '{"a": "ë"}'.encode(), {"a": "ë"}),
        ("application/json; charset=iso-8859-1", '{"a": "ë"}'.encode(), {"a": "ë"}),
        ("application/json; charset=utf-16", '{"a": "ë"}'.encode(), {"a": "ë"}),
        ("application/json; charset=", b"[1]", [1]),
        ('application/json; charset="utf-8', b"[1]", [1]),
        ("application/json;charset=binary", b"[1]", [1]),
        ("text/json; charset=none", b"[1]", [1]),
        ("application/ld+json; charset=us-ascii", '["ë"]'.encode(), ["ë"]),
        ("APPLICATION/JSON", b"true", True),
        ("application/vnd.api+json;profile=x", b'"\\u00eb"', "ë"),
        ("application/json, application/json", b"[1]", [1]),
        ("application/x-json", b"[1]", [1]),
        # forms that older standards allowed
        ("application/json", '["ë"]'.encode("utf-16"), ["ë"]),
        ("application/json", '["ë"]'.encode("utf-16-le"), ["ë"]),
        ("application/json", '["ë"]'.encode("utf-16-be"), ["ë"]),
        ("application/json", '["ë"]'.encode("utf-32"), ["ë"]),
        ("application/json", '["ë"]'.encode("utf-32-be"), ["ë"]),
        # and one that none did, but whose label says what it is
        ("application/json; charset=iso-8859-1", '["ë"]'.encode("latin-1"), ["ë"]),
        # The text that jsonb makes of it
        ("application/json", b'{"a": 1, "a": 2}', {"a": 2}),
        ("application/json", b"12345678901234567890.10", 12345678901234567890.10),
        ("application/json", b' \n[1e3]\t', [1000]),
        ("application/json", b"null", None),
        # and what it cannot hold, or what is no JSON
        ("application/json", b'["\\u0000"]', None),
        ("application/json", b'["\\ud800"]', None),
        ("application/json", b"1e200000", None),
        ("application/json", b"[NaN]", None),
        ("application/json", b"", None),
        ("application/json", b"[1", None),
        ("application/json", b"[1] [2]", None),
        ("application/json", b'["\x01"]', None),
        ("application/json", b"\xff\xfe", None),
        ("application/json", b'["\0"]', None),
        ("application/json", b"[" * 900, None),
        # Under another type a number or a word is a text, and an array or an object is JSON.
        ("text/html", b" [1]", [1]),
        ("text/plain", b'{"a": 1}', {"a": 1}),
        ("text/plain", b"1", None),
        ("text/plain", b"true", None),
        ("text/plain", b"[info] started", None),
        ("application/octet-stream", b"{}", {}),
    ],
)  # fmt: skip
def test_json(served: Database, server: Raw, content_type: str, body: bytes, expected: Any) -> None:
    row = ask(
        served, "GET", server.answering(whole(body, b"Content-Type: " + content_type.encode()))
    )
    assert (row["status_code"], row["error_msg"]) == (200, None)
    assert row["content_json"] == expected
    if expected is not None:
        # A caller that casts the text to JSON need not remove a byte order mark.
        assert (
            served.value("select content::jsonb from net._http_response where id = %s", row["id"])
            == expected
        )


@pytest.mark.parametrize(
    ("encoding", "locale"), [("LATIN1", "C"), ("SQL_ASCII", "C"), ("WIN1252", "C"), ("EUC_JP", "C")]
)
def test_json_in_other_databases(cluster: Cluster, server: Raw, encoding: str, locale: str) -> None:
    """Where the database's text can hold it; a body is never lost."""
    name = f"answers_{encoding}".lower()
    with cluster.connect() as connection:
        connection.execute(
            sql.SQL("create database {} template template0 encoding {} locale {}").format(
                sql.Identifier(name), sql.Literal(encoding), sql.Literal(locale)
            )
        )
    database = Database(cluster, name)
    database.execute("create extension pgnet cascade")
    prepare(database)
    bodies = {
        "ascii": b'\xef\xbb\xbf{"a": "\\n"}',
        "latin": '{"a": "ë"}'.encode(),
        "snow": '{"a": "☃"}'.encode(),
    }
    expected: dict[str, Any] = {"ascii": "\n", "latin": "ë", "snow": None}
    if encoding == "SQL_ASCII":
        expected["snow"] = "☃"
    with database.worker(), cluster.connect(name, client_encoding="UTF8") as reader:
        for kind, body in bodies.items():
            url = server.answering(whole(body, b"Content-Type: application/json; charset=x"))
            row: Any = reader.execute(
                "select net.http_get(%s, timeout_milliseconds => 9000)", (url,)
            ).fetchone()
            assert row is not None
            reader.commit()
            reader.execute("select net.wait(%s)", row)
            found: Any = reader.execute(
                "select content_json ->> 'a', coalesce(convert_to(content, 'SQL_ASCII'),"
                " content_bytes) from net.responses where id = %s",
                row,
            ).fetchone()
            assert found is not None
            told = found[0]
            # psycopg gives bytes for an SQL_ASCII database.
            assert told in (expected[kind], (expected[kind] or "").encode()), kind
            assert found[1], kind
            reader.commit()
    database.drop()


@pytest.mark.parametrize(
    ("body", "fits"),
    [
        (b"[" + b"1e131071," * 7000 + b"1]", True),
        (b"[" + b"1e131071," * 9000 + b"1]", False),
        (b"[" + b"-1E+00131071, " * 9000 + b"1]", False),
        (b"[" + b"1e-16383," * 70_000 + b"1]", False),
        (b"{" + b",".join(b'"%d":1e131071' % n for n in range(9000)) + b"}", False),
        (b"[" + b'"1e131071",' * 9000 + b"1]", True),
        (b"[" + rb'"\"1e131071\\",' * 9000 + b"1]", True),
        (b"[" + b"1e9," * 20_000 + b"1]", True),
    ],
)
def test_json_that_grows(database: Database, body: bytes, fits: bool) -> None:
    """Eighty kilobytes, and more than a gigabyte as jsonb: the view is read all the same."""
    database.execute(
        "insert into net._http_response (id, status_code, content_type, content, timed_out, state,"
        " attempts, method, url, requested_by, requested) select n, 200, 'application/json',"
        " case n when 1 then %s else '[1]' end, false, 'succeeded', 1, 'GET', 'http://x/',"
        " current_user::regrole, now() from generate_series(1, 3) n",
        body.decode(),
    )
    found = database.rows("select id, content_json is not null from net.responses order by id")
    assert found == [(1, fits), (2, True), (3, True)]
    if not fits:
        assert len(database.rows("select * from net.responses")) == 3


def test_json_with_more_elements_than_jsonb_takes(database: Database) -> None:
    """PostgreSQL runs into the limit of its allocations, which is no error of the data."""
    database.execute(
        "insert into net._http_response (id, status_code, content_type, content, timed_out, state,"
        " attempts, method, url, requested_by, requested) select 1, 200, 'application/json',"
        " '[' || repeat('1,', 16800000) || '1]', false, 'succeeded', 1, 'GET', 'http://x/',"
        " current_user::regrole, now()"
    )
    assert database.value("select content_json is null from net.responses") is True


# ---- memory


@pytest.fixture(scope="module", params=[as_process, as_backend], ids=["process", "backend"])
def roomy(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[tuple[Database, int, str]]:
    """A database whose answers may be large, and the process that reads them."""
    database = cluster.create_database()
    prepare(database)
    for name in ("max_response_bytes", "max_wire_bytes"):
        database.execute("select net.configure(%s, %s)", name, str(200 * MIB))
    with request.param(database) as pid:
        yield database, pid, request.param.__name__
    database.drop()


@pytest.mark.parametrize("character", [b"\x01", b'"', b"x", b"\xff"])
def test_what_a_large_answer_costs(
    roomy: tuple[Database, int, str],
    server: Raw,
    character: bytes,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its characters do not matter, though some are six times as long in JSON."""
    database, pid, form = roomy
    size = 32 * MIB
    url = server.answering(whole(character * size))
    rest = forget_peak(pid)
    id = database.value("select net.http_get(%s, timeout_milliseconds => 60000)", url)
    assert database.row(
        "select status_code, octet_length(content), octet_length(content_bytes), error_msg"
        " from net.wait(%s, '60 s')",
        id,
    ) == (200, *((None, size) if character == b"\xff" else (size, None)), None)
    most = size_of(pid, "VmHWM") - rest
    with capsys.disabled():
        print(f" [{most / size:.1f} times its size]", end="")
    # The memory of a backend includes shared buffers, and the server's own copies.
    assert most < (8 if "process" in form else 24) * size
    database.execute("delete from net._http_response where id = %s", id)


def test_labels_are_not_remembered(roomy: tuple[Database, int, str], server: Raw) -> None:
    """Each answer has another long label; Python's own look-up would keep each for ever."""
    database, pid, _form = roomy
    urls = [
        server.answering(whole(b"x", b"Content-Type: text/plain; charset=x%d" % n + b"y" * 100_000))
        for n in range(400)
    ]
    database.execute("select net.configure('max_header_bytes', '200000')")

    def have_answered(some: list[str]) -> None:
        database.execute(
            "select net.http_get(url, timeout_milliseconds => 60000) from unnest(%s::text[]) url",
            some,
        )
        database.wait_for(
            "select count(*) from net.http_request_queue", predicate=lambda n: n == 0, timeout=60
        )

    # The worker first makes what it makes once. Few at a time, which take the room of those before.
    for start in range(0, 100, 5):
        have_answered(urls[start : start + 5])
    before = size_of(pid, "VmRSS")
    for start in range(100, 400, 5):
        have_answered(urls[start : start + 5])
    assert size_of(pid, "VmRSS") - before < 12 * MIB
    assert server.count(urls[-1]) == 1


def test_an_answer_that_there_is_no_memory_for(cluster: Cluster, server: Raw) -> None:
    """The answer is recorded without its body; the worker lives, and others have their answers."""
    database = cluster.create_database()
    prepare(database)
    for name in ("max_response_bytes", "max_wire_bytes"):
        database.execute("select net.configure(%s, %s)", name, str(200 * MIB))
    sizes = [20, 40, 60, 90, 120, 180]
    with database.worker() as worker:
        assert ask(database, "GET", server.answering(whole(b"ok")))["content"] == "ok"
        allowed = size_of(worker.pid, "VmSize") + 150 * MIB
        # The program runs as the worker's user: root may be confined itself.
        limit = ["prlimit", "--pid", str(worker.pid), f"--as={allowed}"]
        subprocess.run(as_server_user(limit, signal.SIGKILL), check=True)
        lost = []
        for size in sizes:
            url = server.answering(whole(b"x" * (size * MIB)))
            row = ask(database, "POST", url, body_text="x", timeout_milliseconds=60_000)
            assert (row["status_code"], row["state"], server.count(url)) == (200, "succeeded", 1)
            if row["content"] is None:
                lost.append(row["error_msg"])
            assert ask(database, "GET", server.answering(whole(b"ok")))["content"] == "ok"
        assert len(lost) >= 3
        assert all("there is no memory for" in message for message in lost)
        assert worker.process.poll() is None
    database.drop()
