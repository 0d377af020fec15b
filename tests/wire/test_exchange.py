"""One exchange: what goes out, what comes in, its limits; many at a time."""

from __future__ import annotations

from pathlib import Path

import gevent
import pytest

import pgnet
from pgnet.wire.answer import Answer
from pgnet.wire.curl.states import LEGAL, Phase
from pgnet.wire.exchange import Exchange
from pgnet.wire.guard import Guard
from pgnet.wire.limits import Limits
from pgnet.wire.message import WireRequest
from servers import httpd
from servers.answers import MakeClient, echoed, failed, marred, ok
from servers.client import LOOPBACK, Client, NameServer
from servers.waiting import wait_until

# ---- what goes out


def test_a_get_sends_what_was_asked_and_nothing_else(client: Client, server: httpd.Running) -> None:
    seen = echoed(client(server.url + "/echo"))
    assert seen["method"] == "GET"
    assert dict(map(tuple, seen["headers"])) == {
        "Host": server.url.partition("://")[2],
        "User-Agent": f"pgnet/{pgnet.__version__}",
    }
    assert seen["body"] == ""


@pytest.mark.parametrize(
    "target",
    ["/a/../b/./c", "/%7Ex/%2f", "/x?", "/x?a=b&c=%20d", "/x?a=/../b", "//x", "/;p=1?q=a?b"],
)
def test_the_target_is_sent_as_stored(client: Client, server: httpd.Running, target: str) -> None:
    server.reset()
    ok(client(server.url + target + "#fragment"))
    assert [entry["target"] for entry in server.record()] == [target]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "GET", "OPTIONS", "MKCOL"])
def test_bodies_arrive_whole(client: Client, server: httpd.Running, method: str) -> None:
    body = bytes(range(256)) * 8000
    seen = echoed(client(server.url + "/echo", method, [("Content-Type", "x/y")], body))
    assert seen["method"] == method
    assert seen["body"].encode("latin-1") == body
    names = sorted(name for name, _ in seen["headers"])
    assert names == ["Content-Length", "Content-Type", "Host", "User-Agent"]


def test_methods_follow_each_other_on_one_connection(client: Client, server: httpd.Running) -> None:
    asked = [("GET", None), ("POST", b"a"), ("HEAD", None), ("PUT", b""), ("GET", None),
             ("HEAD", None), ("HEAD", None), ("DELETE", None), ("POST", None), ("DELETE", b"x"),
             ("GET", b"y"), ("GET", None), ("PURGE", None), ("GET", None)]  # fmt: skip
    server.reset()
    for method, body in asked:
        response = ok(client(server.url + "/x", method, [], body))
        assert (response.content == b"") == (method == "HEAD")
    record = server.record()
    assert [(e["method"], e["body"]) for e in record] == [
        (method, (body or b"").decode()) for method, body in asked
    ]
    assert len({e["connection"] for e in record}) == 1
    for entry, (method, body) in zip(record, asked, strict=True):
        names = {name for name, _ in entry["headers"]}
        has_length = body is not None or method in ("POST", "PUT", "PATCH")
        assert names == {"Host", "User-Agent"} | ({"Content-Length"} if has_length else set())


def test_headers_arrive_as_given(client: Client, server: httpd.Running) -> None:
    headers = [("X-One", "1"), ("x-two", "a, b"), ("X-Twice", "1"), ("X-Twice", "2"),
               ("X-Empty", ""), ("x-twice", "3"), ("X-Text", "grün"), ("User-Agent", "mine"),
               ("Accept", "x/y"), ("Accept-Encoding", "gzip")]  # fmt: skip
    seen = echoed(client(server.url + "/echo", "POST", headers, b"x"))
    sent = [(n, v.encode("latin-1").decode()) for n, v in seen["headers"]]
    own = ("Host", "Content-Length")
    assert [field for field in sent if field[0] not in own] == headers
    assert sorted(field[0] for field in sent if field[0] in own) == sorted(own)
    assert echoed(client(server.url + "/echo"))["headers"][1:] == [
        ["User-Agent", f"pgnet/{pgnet.__version__}"]
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [("Host", "x"), ("Content-Length", "5"), ("transfer-encoding", "chunked"), ("TE", "x"),
     ("Connection", "close"), ("Expect", "100-continue"), ("Proxy-Authorization", "x"),
     ("Upgrade", "h2c"), ("X Y", "1"), ("X:Y", "1"), ("", "1"), ("X\r\nY", "1"),
     ("X-A", "SECRET\r\nX: 1"),
     ("X-A", "SECRET\x00"), ("X-A", "SECRET\n"), ("X-Ä", "1")],
)  # fmt: skip
def test_headers_that_are_refused(
    client: Client, server: httpd.Running, name: str, value: str
) -> None:
    server.reset()
    error = failed(client(server.url + "/x", "GET", [(name, value)]))
    assert "header" in error.message
    assert "SECRET" not in error.message
    assert not error.possibly_sent
    assert server.record() == []


def test_a_head_request_has_no_body(client: Client, server: httpd.Running) -> None:
    server.reset()
    for body in (b"x", b""):
        error = failed(client(server.url + "/x", "HEAD", [], body))
        assert (error.message, error.possibly_sent) == ("a HEAD request has no body", False)
    assert server.record() == []


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "connect", "", "A B", "GET\r\nX:"])
def test_methods_that_are_refused(client: Client, server: httpd.Running, method: str) -> None:
    server.reset()
    assert "method" in failed(client(server.url + "/x", method)).message
    assert server.record() == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://localhost/x", "Unsupported protocol"),
        ("file:///etc/passwd", "Unsupported protocol"),
        ("", "Unsupported protocol"),
        ("http://", "URL using bad/illegal format or missing URL"),
        ("http://user:pw@localhost/", "URL using bad/illegal format or missing URL"),
        ("http://127.0.0.1\\@a.example/", "URL using bad/illegal format or missing URL"),
        ("http://localhost:0/", "URL using bad/illegal format or missing URL"),
        ("http://localhost:65536/", "URL using bad/illegal format or missing URL"),
        ("http://a b/", "URL using bad/illegal format or missing URL"),
        ("http://localhost/a b", "URL using bad/illegal format or missing URL"),
        ("http://localhost/\r\nX: 1", "URL using bad/illegal format or missing URL"),
        ("http://localhost/ü", "URL using bad/illegal format or missing URL"),
        ("http://[::1", "URL using bad/illegal format or missing URL"),
    ],
)
def test_urls_that_are_refused(client: Client, url: str, message: str) -> None:
    for _ in range(2):
        error = failed(client(url))
        assert (error.message, error.possibly_sent) == (message, False)


def test_the_host_header_is_what_was_asked_for(client: Client, server: httpd.Running) -> None:
    seen = echoed(client(f"http://127.1:{server.port}/echo"))
    assert dict(map(tuple, seen["headers"]))["Host"] == f"127.1:{server.port}"


def test_the_environment_is_not_read(
    make_client: MakeClient,
    server: httpd.Running,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login joe password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    seen = echoed(make_client()(server.url + "/echo", "GET", [("Authorization", "Bearer x")]))
    assert ["Authorization", "Bearer x"] in seen["headers"]


# ---- what comes in


def test_a_response_is_requests_own(client: Client, server: httpd.Running) -> None:
    answer = client(server.url + "/status/404")
    response = ok(answer)
    assert (response.status_code, response.reason, response.text) == (404, "Some Words", "status")
    assert response.headers["content-type"] == "text/plain"
    assert list(response.headers) == ["Content-Type", "Content-Length"]
    assert (response.url, response.request.method) == (server.url + "/status/404", "GET")
    assert not response.ok
    assert response.encoding == "ISO-8859-1"
    assert (list(response.cookies), response.history) == ([], [])
    assert response.raw.read() == b"status"
    assert (answer.redirects, answer.http_version, answer.address) == (0, "1.1", "127.0.0.1")
    assert 0 < answer.timings.first_byte <= answer.timings.total < 5
    assert "404" in repr(response)


def test_repeated_headers_are_kept_in_order(client: Client, server: httpd.Running) -> None:
    answer = client(server.url + "/cookies")
    repeats = [field for field in answer.header_list if field[0] in ("Set-Cookie", "X-Twice")]
    assert repeats == [
        ("Set-Cookie", "a=1"), ("X-Twice", "1"), ("Set-Cookie", "b=2"), ("X-Twice", "2")
    ]  # fmt: skip
    assert ok(answer).headers["X-Twice"] == "1, 2"
    assert ok(answer).headers["Set-Cookie"] == "b=2"
    assert all(n != "Cookie" for n, _ in echoed(client(server.url + "/echo"))["headers"])


@pytest.mark.parametrize("way", ["gzip", "deflate", "double-gzip", "coding/identity"])
def test_encoded_bodies_are_decoded(client: Client, server: httpd.Running, way: str) -> None:
    server.reset()
    assert ok(client(f"{server.url}/{way}")).content == b"decoded"
    (entry,) = server.record()
    assert "Accept-Encoding" not in dict(map(tuple, entry["headers"]))


@pytest.mark.parametrize("status", ["204", "304"])
def test_statuses_without_a_body(client: Client, server: httpd.Running, status: str) -> None:
    assert ok(client(f"{server.url}/status/{status}")).content == b""


def test_head_with_a_length_is_no_short_body(client: Client, server: httpd.Running) -> None:
    response = ok(client(server.url + "/length/1000000000000", "HEAD"))
    assert response.headers["Content-Length"] == "1000000000000"
    assert response.content == b""


@pytest.mark.parametrize("way", ["long", "chunked"])
def test_long_bodies(client: Client, server: httpd.Running, way: str) -> None:
    assert ok(client(f"{server.url}/{way}/3000000")).content == b"x" * 3_000_000


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("empty", "Server returned nothing (no headers, no data)"),
        ("reset", "Failure when receiving data from the peer"),
        ("garbage", "Unsupported protocol"),
    ],
)
def test_no_answer(client: Client, server: httpd.Running, way: str, message: str) -> None:
    error = failed(client(f"{server.url}/{way}"))
    assert (error.message, error.timed_out, error.possibly_sent) == (message, False, True)
    assert ok(client(server.url + "/x")).content == b"ok"


BAD_CODING = "Unrecognized or bad HTTP Content or Transfer-Encoding"


@pytest.mark.parametrize(
    ("way", "message", "content"),
    [
        ("short/100", "Transferred a partial file", b"12345"),
        ("cut-headers", "Transferred a partial file", b""),
        ("bad-chunk", "Failure when receiving data from the peer", b"hello"),
        ("nul-header", "Weird server reply", b""),
        ("bad-gzip", f"{BAD_CODING}: the body is kept as it came", b"this is not gzip at all"),
        ("coding/unheard-of", f"{BAD_CODING}: the body is kept as it came", b"decoded"),
        ("coding/gzip", f"{BAD_CODING}: the body is kept as it came", b"decoded"),
    ],
)
def test_broken_answers(
    client: Client, server: httpd.Running, way: str, message: str, content: bytes
) -> None:
    """The server has answered: its status is kept, and what came of the rest."""
    answer = client(f"{server.url}/{way}")
    error = marred(answer)
    assert (error.message, error.timed_out, error.possibly_sent) == (message, False, True)
    assert answer.content == content
    assert answer.as_it_came == message.endswith("as it came")
    assert answer.is_whole == answer.as_it_came
    assert ok(client(server.url + "/x")).content == b"ok"


def test_a_connection_is_kept_where_only_the_coding_was_wrong(
    client: Client, server: httpd.Running
) -> None:
    server.reset()
    for _ in range(3):
        marred(client(server.url + "/coding/unheard-of"))
        marred(client(server.url + "/bad-gzip"))
    assert len({entry["connection"] for entry in server.record()}) == 1


# ---- limits


@pytest.mark.parametrize("way", ["long/20001", "chunked/20001", "endless", "bomb/10000000"])
def test_a_decoded_body_is_capped(make_client: MakeClient, server: httpd.Running, way: str) -> None:
    client = make_client(limits=Limits(max_response_bytes=20000))
    answer = client(f"{server.url}/{way}")
    error = marred(answer)
    assert error.message == "response body exceeds 20000 bytes"
    assert (error.timed_out, error.possibly_sent) == (False, True)
    assert (len(answer.content), answer.is_whole) == (20000, False)
    assert len(ok(client(server.url + "/long/20000")).content) == 20000


@pytest.mark.parametrize(
    "way", ["long/20001", "chunked/20001", "endless", "trickle", "noise/20001"]
)
def test_a_body_is_capped_on_the_wire(
    make_client: MakeClient, server: httpd.Running, way: str
) -> None:
    client = make_client(limits=Limits(max_wire_bytes=20000))
    answer = client(f"{server.url}/{way}")
    error = marred(answer)
    assert error.message == "response body exceeds 20000 bytes on the wire"
    assert len(answer.content) <= 20000
    if way.startswith(("long", "chunked", "endless")):
        assert answer.content == b"x" * 20000
    assert (error.timed_out, error.possibly_sent) == (False, True)
    assert len(ok(client(server.url + "/long/20000")).content) == 20000
    # A body that is small on the wire may become large.
    assert len(ok(client(server.url + "/bomb/10000000")).content) == 9 << 20


def test_headers_are_capped(make_client: MakeClient, server: httpd.Running) -> None:
    client = make_client(limits=Limits(max_header_bytes=50_000))
    answer = client(server.url + "/headers/1000")
    assert marred(answer).message == "response headers exceed 50000 bytes"
    # The answers that came whole.
    assert 45 <= len(answer.header_list) < 50
    assert {len(value) for _name, value in answer.header_list} == {1000}
    assert len(ok(client(server.url + "/headers/40")).headers) == 41
    error = failed(client(server.url + "/continue/0"))
    assert error.message == "response headers exceed 50000 bytes"


def test_a_connection_that_was_broken_off_is_not_used_again(
    make_client: MakeClient, server: httpd.Running
) -> None:
    client = make_client(limits=Limits(max_response_bytes=100))
    server.reset()
    marred(client(server.url + "/endless"))
    ok(client(server.url + "/x"))
    first, second = (entry["connection"] for entry in server.record())
    assert first != second
    gevent.sleep(0)
    wait_until(
        server.open_connections, lambda n: n <= 1, "the broken connection closes",
        sleep=gevent.sleep,
    )  # fmt: skip


# ---- many at a time, ends, leftovers


def test_start_never_calls_back_before_it_returns(client: Client, server: httpd.Running) -> None:
    for url in (server.url, "http://10.0.0.1/", "ftp://x", "http://localhost:1/"):
        _, ended = client.begin(url)
        assert not ended.ready()
        ended.get(timeout=5)


def test_cancel_ends_a_request_once(
    make_client: MakeClient, server: httpd.Running, name_server: NameServer
) -> None:
    name_server.answers["slow.example"] = None
    client = make_client(resolver=name_server.resolver())
    for url in (server.url + "/hang", "http://slow.example/", server.url + "/x", "ftp://x"):
        handle, ended = client.begin(url)
        handle.cancel()
        handle.cancel()
        assert not ended.ready()
        failed(ended.get(timeout=5))
        assert client.exchange.in_flight == 0
        handle.cancel()
    handle, ended = client.begin(server.url + "/x")
    ok(ended.get(timeout=5))
    handle.cancel()
    wait_until(
        server.open_connections, lambda n: n <= 1, "hung connections close", sleep=gevent.sleep
    )


def test_close_ends_everything(server: httpd.Running) -> None:
    client = Client(Exchange(Guard(LOOPBACK)))
    ended = [client.begin(server.url + way)[1] for way in ("/hang", "/x", "/drip-body/0.1")]
    client.exchange.close()
    for result in ended:
        assert failed(result.get(timeout=5)).message == "Request was cancelled"
    wait_until(
        server.open_connections, lambda n: n == 0, "all connections close", sleep=gevent.sleep
    )


def test_a_callback_that_fails_stops_nobody(
    client: Client, server: httpd.Running, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def done(answer: Answer) -> None:
        calls.append(answer)
        raise RuntimeError("the callback's own fault")

    for _ in range(10):
        client.exchange.start(WireRequest("GET", server.url + "/x", [], None), 5.0, done)
    for _ in range(10):
        ok(client(server.url + "/x"))
    wait_until(lambda: len(calls), lambda n: n == 10, "all calls", sleep=gevent.sleep)
    assert client.exchange.in_flight == 0
    assert "the callback's own fault" in capsys.readouterr().err


def test_a_fault_of_ours_is_an_outcome_too(
    make_client: MakeClient,
    name_server: NameServer,
    server: httpd.Running,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name_server.answers["a.example"] = ["127.0.0.1"]
    client = make_client(resolver=name_server.resolver())

    def broken(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    urls = [f"http://{host}:{server.port}/x" for host in ("127.0.0.1", "a.example")]
    with monkeypatch.context() as patch:
        patch.setattr("pgnet.wire.curl.easy.Easy.prepare", broken)
        for url in urls:
            assert failed(client(url)).message == "internal error in the wire"
    with monkeypatch.context() as patch:
        patch.setattr("pgnet.wire.curl.easy.parse_head", broken)
        assert failed(client(urls[0])).message == "the response could not be read"
    with monkeypatch.context() as patch:
        patch.setattr("pgnet.wire.transport.settle", broken)
        assert failed(client(server.url + "/empty")).message == "internal error in the wire"
    for url in urls:
        ok(client(url))
    assert capsys.readouterr().err.count("RuntimeError: a fault of ours") == 4


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (Phase.IDLE, "internal error in the wire"),
        (Phase.BEGUN, "internal error in the wire"),
        (Phase.OPENED, "the response could not be read"),
    ],
)
def test_a_callback_at_the_wrong_time_is_an_outcome_too(
    client: Client,
    server: httpd.Running,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    state: Phase,
    message: str,
) -> None:
    """A request begins, its socket is opened, its answer comes: each where nothing may follow."""
    with monkeypatch.context() as patch:
        patch.setitem(LEGAL, state, frozenset((Phase.IDLE,)))
        assert str(client(server.url + "/x").error) == message
    ok(client(server.url + "/x"))
    assert capsys.readouterr().err.count(f"cannot follow {state}") == 1


def test_done_may_start_the_next(client: Client, server: httpd.Running) -> None:
    answers: list[Answer] = []

    def done(answer: Answer) -> None:
        answers.append(answer)
        if len(answers) < 50:
            client.exchange.start(WireRequest("GET", server.url + "/x", [], None), 5.0, done)

    client.exchange.start(WireRequest("GET", server.url + "/x", [], None), 5.0, done)
    wait_until(lambda: len(answers), lambda n: n == 50, "fifty answers", sleep=gevent.sleep)
    assert {answer.error for answer in answers} == {None}


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_descriptor_is_left(server: httpd.Running) -> None:
    gevent.sleep(0)
    before = descriptors()
    for _ in range(3):
        client = Client(Exchange(Guard(LOOPBACK), concurrency=10))
        ways = ["/x", "/close", "/reset", "/empty", "/short/10", "/endless", "/hang", "/garbage"]
        ended = [client.begin(server.url + way, timeout=0.5)[1] for way in ways * 10]
        for result in ended:
            result.get(timeout=5)
        assert descriptors() < before + 30
        client.exchange.close()
        gevent.sleep(0)
    wait_until(
        descriptors, lambda n: n <= before, f"{before} descriptors again", sleep=gevent.sleep
    )


def test_connections_are_used_again(client: Client, server: httpd.Running) -> None:
    server.reset()
    for _ in range(20):
        ok(client(server.url + "/x"))
    assert len({entry["connection"] for entry in server.record()}) == 1


def test_connections_that_ended_are_not_used_again(client: Client, server: httpd.Running) -> None:
    server.reset()
    for way in ["/close", "/x", "/close", "/close", "/x", "/x"]:
        ok(client(server.url + way))
    assert [entry["connection"] for entry in server.record()][1:] != []
    assert len({entry["connection"] for entry in server.record()}) == 4


def test_a_thousand_at_once_each_get_their_own(client: Client, server: httpd.Running) -> None:
    ended = [client.begin(f"{server.url}/body/{n}", timeout=30)[1] for n in range(1000)]
    for number, result in enumerate(ended):
        assert ok(result.get(timeout=40)).content == str(number).encode()
