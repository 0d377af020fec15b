from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import gevent
import pytest

import pgnet
from pgnet.wire.answer import Answer, Limits
from pgnet.wire.exchange import Exchange
from pgnet.wire.guard import EgressRules, Guard
from pgnet.wire.message import WireRequest
from servers import httpd
from servers.client import LOOPBACK, Client, NameServer
from servers.waiting import wait_until

MakeClient = Callable[..., Client]
TIMEOUT = re.compile(
    r"Timeout of (\d+) ms reached\. Total time: (\d+) ms \(DNS time: (\d+) ms, "
    r"TCP/SSL handshake time: (\d+) ms, HTTP Request/Response time: (\d+) ms\)"
)


def ok(answer: Answer) -> Any:
    assert answer.error is None, answer.error
    assert answer.response is not None
    return answer.response


def failed(answer: Answer) -> Any:
    """The error of a request that has no answer."""
    assert answer.response is None, answer.response
    assert (answer.status_code, answer.header_list, answer.content) == (None, [], b"")
    assert not answer.is_final
    assert answer.error is not None
    return answer.error


def marred(answer: Answer, status: int = 200) -> Any:
    """The error of an answer that did come."""
    assert answer.response is None, answer.response
    assert answer.status_code == status
    assert answer.is_final
    assert answer.http_version == "1.1"
    assert answer.timings.first_byte > 0
    assert answer.error is not None
    return answer.error


def echoed(answer: Answer) -> dict[str, Any]:
    seen: dict[str, Any] = json.loads(ok(answer).content)
    return seen


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
    # What is small on the wire may become large.
    assert len(ok(client(server.url + "/bomb/10000000")).content) == 9 << 20


def test_headers_are_capped(make_client: MakeClient, server: httpd.Running) -> None:
    client = make_client(limits=Limits(max_header_bytes=50_000))
    answer = client(server.url + "/headers/1000")
    assert marred(answer).message == "response headers exceed 50000 bytes"
    # Those that came whole.
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


# ---- the deadline


def assert_timed_out(answer: Answer, milliseconds: int) -> tuple[float, ...]:
    error = answer.error
    assert error is not None
    assert error.timed_out
    match = TIMEOUT.fullmatch(error.message)
    assert match is not None, error.message
    limit, total, *parts = (float(text) for text in match.groups())
    assert limit == milliseconds
    assert milliseconds - 5 <= total <= milliseconds + 250
    assert sum(parts) == pytest.approx(total, abs=2)
    return tuple(parts)


@pytest.mark.parametrize(
    "way", ["hang", "delay/30", "drip-headers/0.05", "drip-body/0.05", "continue/0.01"]
)
def test_the_deadline_is_total(client: Client, server: httpd.Running, way: str) -> None:
    began = time.monotonic()
    answer = client(f"{server.url}/{way}", timeout=0.5)
    assert 0.49 <= time.monotonic() - began <= 0.75
    name, connect, rest = assert_timed_out(answer, 500)
    assert rest > 400
    assert name + connect < 50
    if way.startswith("drip"):
        assert marred(answer).possibly_sent
        assert len(answer.header_list) + len(answer.content) > 5
    else:
        assert failed(answer).possibly_sent


def test_a_slow_connect(client: Client, full_backlog: str) -> None:
    began = time.monotonic()
    answer = client(full_backlog, timeout=0.5)
    assert 0.49 <= time.monotonic() - began <= 0.75
    _, connect, _ = assert_timed_out(answer, 500)
    assert connect > 450
    assert answer.error is not None
    assert not answer.error.possibly_sent


def test_connecting_has_a_limit_of_its_own(make_client: MakeClient, full_backlog: str) -> None:
    client = make_client(limits=Limits(connect_timeout=0.3))
    began = time.monotonic()
    error = failed(client(full_backlog, timeout=5))
    assert 0.29 <= time.monotonic() - began <= 0.55
    assert error.message.startswith("Connect timeout of 300 ms reached. ")
    assert error.timed_out


def test_a_slow_name(make_client: MakeClient, name_server: NameServer) -> None:
    name_server.answers["slow.example"] = None
    client = make_client(resolver=name_server.resolver())
    began = time.monotonic()
    answer = client("http://slow.example/", timeout=0.5)
    assert 0.49 <= time.monotonic() - began <= 0.75
    name, connect, _ = assert_timed_out(answer, 500)
    assert name > 450
    assert connect < 50
    assert answer.error is not None
    assert not answer.error.possibly_sent


def test_the_deadline_spans_redirects(client: Client, server: httpd.Running) -> None:
    began = time.monotonic()
    answer = client(f"{server.url}/redirect/302?to=/delay/30", timeout=0.5)
    assert 0.49 <= time.monotonic() - began <= 0.75
    assert_timed_out(answer, 500)
    assert (answer.status_code, answer.is_final) == (302, False)


def test_others_are_not_delayed(client: Client, server: httpd.Running, full_backlog: str) -> None:
    """Fast requests go their way beside hung ones."""
    slow = [client.begin(server.url + "/hang", timeout=1.0)[1] for _ in range(100)]
    slow += [client.begin(full_backlog, timeout=1.0)[1] for _ in range(20)]
    for _ in range(20):
        assert client(server.url + "/x", timeout=1.0).timings.total < 0.25
    assert client.exchange.in_flight == 120
    for ended in slow:
        assert_timed_out(ended.get(timeout=5), 1000)
    assert client.exchange.in_flight == 0


# ---- names, addresses, the guard


def test_names_that_do_not_resolve(make_client: MakeClient, name_server: NameServer) -> None:
    client = make_client(resolver=name_server.resolver())
    error = failed(client("http://nowhere.example/"))
    assert error.message == "Couldn't resolve host name"
    assert not error.possibly_sent


def test_nothing_listens(client: Client) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        error = failed(client(f"http://127.0.0.1:{bound.getsockname()[1]}/"))
    assert (error.message, error.possibly_sent) == ("Couldn't connect to server", False)


def test_the_next_address_is_tried(
    make_client: MakeClient, name_server: NameServer, server: httpd.Running, full_backlog: str
) -> None:
    name_server.answers["two.example"] = ["127.0.0.9", "127.0.0.1"]
    client = make_client(resolver=name_server.resolver())
    for _ in range(3):
        answer = client(f"http://two.example:{server.port}/echo")
        assert echoed(answer)["headers"][0] == ["Host", f"two.example:{server.port}"]
        assert answer.address == "127.0.0.1"


def test_the_next_address_is_tried_within_the_deadline(
    make_client: MakeClient, name_server: NameServer, full_backlog: str
) -> None:
    port = int(full_backlog.rpartition(":")[2].strip("/"))
    with httpd.running("127.0.0.3", port) as running:
        name_server.answers["two.example"] = ["127.0.0.1", "127.0.0.3"]
        client = make_client(resolver=name_server.resolver())
        for _ in range(2):
            assert client(f"http://two.example:{port}/x", timeout=1.0).address == "127.0.0.3"
        assert len(running.record()) == 2


def test_localhost_has_two_families(make_client: MakeClient, server: httpd.Running) -> None:
    client = make_client()
    ok(client(f"http://localhost:{server.port}/x"))
    with httpd.running("::1") as six:
        ok(client(f"http://[::1]:{six.port}/x"))


def test_a_refusal_is_an_outcome(make_client: MakeClient, server: httpd.Running) -> None:
    client = make_client(EgressRules())
    server.reset()
    for url in (server.url, f"http://127.1:{server.port}", f"http://2130706433:{server.port}/"):
        error = failed(client(url))
        assert error.message.endswith(
            "127.0.0.1 is a loopback address and not allowed: "
            "select net.allow_network('127.0.0.0/8')"
        )
        assert not error.possibly_sent
    assert server.record() == []


def test_a_denied_host_is_not_even_looked_up(
    make_client: MakeClient, name_server: NameServer
) -> None:
    rules = EgressRules.from_json({"deny_hosts": ["*.evil.example"]})
    client = make_client(rules, resolver=name_server.resolver())
    assert "denied host" in failed(client("http://a.evil.example/")).message
    assert name_server.asked == []


def test_only_allowed_addresses_of_a_name_are_used(
    make_client: MakeClient, name_server: NameServer, server: httpd.Running
) -> None:
    name_server.answers["mixed.example"] = ["10.0.0.1", "127.0.0.1"]
    client = make_client(resolver=name_server.resolver())
    assert client(f"http://mixed.example:{server.port}/x").address == "127.0.0.1"
    name_server.answers["inner.example"] = ["10.0.0.1", "192.168.0.1"]
    assert "private address" in failed(client("http://inner.example/")).message


def test_rebinding_has_no_second_look(
    make_client: MakeClient, name_server: NameServer, other: httpd.Running, server: httpd.Running
) -> None:
    """What the name server says after the check is never connected to."""
    rules = EgressRules.from_json({"allow_networks": ["127.0.0.1/32"]})
    client = make_client(rules, resolver=name_server.resolver(max_age=0.0))
    name_server.answers["re.example"] = ["127.0.0.1"]
    other.reset()
    ok(client(f"http://re.example:{server.port}/x"))
    name_server.answers["re.example"] = ["127.0.0.2"]
    error = failed(client(f"http://re.example:{other.port}/x"))
    assert "re.example: its address is a loopback address" in error.message
    assert other.record() == []


def test_the_socket_address_is_checked_once_more(
    make_client: MakeClient, server: httpd.Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a lookup that checks nothing, the last check before connect still refuses."""
    client = make_client(EgressRules())
    checks: list[str] = []

    class Forgetful(Guard):
        def check_address(self, host: str, ip: str, port: int) -> None:
            checks.append(ip)
            if len(checks) > 1:
                super().check_address(host, ip, port)

    client.exchange.configure(Forgetful(EgressRules()))
    server.reset()
    assert "loopback" in failed(client(server.url)).message
    assert checks == ["127.0.0.1", "127.0.0.1"]
    assert server.record() == []


def test_new_rules_drop_connections_and_names(
    make_client: MakeClient, name_server: NameServer, server: httpd.Running
) -> None:
    name_server.answers["a.example"] = ["127.0.0.1"]
    client = make_client(resolver=name_server.resolver())
    url = f"http://a.example:{server.port}/x"
    slow = client.begin(f"http://a.example:{server.port}/delay/0.2")[1]
    ok(client(url))
    asked = len(name_server.asked)
    client.exchange.configure(Guard(LOOPBACK), Limits())
    assert len(ok(client(url)).content) == 2
    assert len(name_server.asked) > asked
    client.exchange.configure(Guard(EgressRules()), Limits())
    assert "loopback" in failed(client(url)).message
    assert ok(slow.get(timeout=5)).content == b"ok"
    wait_until(
        server.open_connections, lambda n: n == 0, "all connections close", sleep=gevent.sleep
    )


# ---- redirects


@pytest.mark.parametrize(
    ("status", "method", "becomes"),
    [
        *(("303", m, "GET") for m in ("GET", "POST", "PUT", "DELETE", "PATCH")),
        ("303", "HEAD", "HEAD"),
        *((s, "POST", "GET") for s in ("301", "302")),
        *((s, m, m) for s in ("301", "302") for m in ("GET", "HEAD", "PUT", "DELETE")),
        *((s, m, m) for s in ("307", "308") for m in ("GET", "HEAD", "POST", "PUT", "DELETE")),
    ],
)
def test_methods_after_a_redirect(
    client: Client, server: httpd.Running, status: str, method: str, becomes: str
) -> None:
    body = b"content" if method in ("POST", "PUT", "PATCH") else None
    headers = [("X-Api-Key", "k"), ("Content-Type", "x/y")]
    server.reset()
    answer = client(f"{server.url}/redirect/{status}?to=/echo", method, headers, body)
    assert ok(answer).status_code == 200
    assert answer.redirects == 1
    assert ok(answer).url == server.url + "/echo"
    _, second = server.record()
    kept = becomes == method and not (status == "303" and method != "HEAD")
    sent = dict(map(tuple, second["headers"]))
    assert second["method"] == becomes
    assert second["body"] == (body.decode() if body and kept else "")
    assert sent["X-Api-Key"] == "k"
    assert ("Content-Type" in sent) == kept


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("x?a=b", "/redirect/x?a=b"), ("/a/../b", "/b"), ("//{netloc}/x", "/x"),
        ("{url}/y#z", "/y"), ("HTTP://{netloc}/U", "/U"),
        ("/sp%20ace", "/sp%20ace"), ("/%C3%BC", "/%C3%BC"), ("?q", "/redirect/302?q"),
        ("/a[1]|x?b[2]={{3}}", "/a%5B1%5D%7Cx?b%5B2%5D=%7B3%7D"), ("/100%!", "/100%25!"),
        ("\\\\evil.example", "/redirect/%5C%5Cevil.example"),
    ],
)  # fmt: skip
def test_locations(client: Client, server: httpd.Running, location: str, target: str) -> None:
    to = location.format(netloc=server.url.partition("://")[2], url=server.url)
    server.reset()
    quoted = quote(to, safe="/:")
    ok(client(f"{server.url}/redirect/302?to={quoted}"))
    assert [entry["target"] for entry in server.record()][1:] == [target]


def test_locations_in_plain_utf8(client: Client, server: httpd.Running) -> None:
    server.reset()
    ok(client(f"{server.url}/redirect/302?to=/%C3%BC%20x"))
    assert [entry["target"] for entry in server.record()][1:] == ["/%C3%BC%20x"]


def test_another_origin_gets_no_headers_of_the_caller(
    client: Client, server: httpd.Running, other: httpd.Running
) -> None:
    back = f"{other.url}/redirect/302?to={server.url}/echo"
    headers = [("Authorization", "x"), ("X-Api-Key", "y"), ("Accept", "x/y"), ("User-Agent", "me"),
               ("Cookie", "z")]  # fmt: skip
    other.reset()
    answer = client(f"{server.url}/redirect/302?to={back}", "GET", headers)
    (hop,) = other.record()
    names = {name for name, _ in hop["headers"]}
    assert names == {"Host", "Accept", "User-Agent"}
    # What was dropped stays dropped when the way leads back.
    assert {name for name, _ in echoed(answer)["headers"]} == names


@pytest.mark.parametrize("status", ["301", "302", "307", "308"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_a_body_goes_to_no_other_origin(
    client: Client, server: httpd.Running, other: httpd.Running, status: str, method: str
) -> None:
    other.reset()
    answer = client(f"{server.url}/redirect/{status}?to={other.url}/x", method, [], b"secret")
    if method == "POST" and status in ("301", "302"):
        ok(answer)
        assert [(e["method"], e["body"]) for e in other.record()] == [("GET", "")]
    else:
        message = f"redirect of a {method} request to another origin is not followed"
        assert marred(answer, int(status)).message == message
        assert other.record() == []


def test_two_locations(client: Client, server: httpd.Running) -> None:
    to = quote("/x\r\nLocation: /x")
    assert client(f"{server.url}/redirect/302?to={to}").url == server.url + "/x"
    server.reset()
    to = quote("/x\r\nLocation: /y")
    error = marred(client(f"{server.url}/redirect/302?to={to}"), 302)
    # Newer libcurls refuse the answer itself.
    words = ("redirect to an invalid or unsupported URL", "Weird server reply")
    assert error.message in words
    assert len(server.record()) == 1


def test_a_location_is_made_canonical(
    make_client: MakeClient, name_server: NameServer, server: httpd.Running
) -> None:
    name_server.answers["xn--bcher-kva.example"] = ["127.0.0.1"]
    client = make_client(resolver=name_server.resolver())
    to = quote(f"HTTP://Bücher.example:{server.port}/x#part")
    answer = client(f"{server.url}/redirect/302?to={to}")
    assert answer.url == f"http://xn--bcher-kva.example:{server.port}/x"
    # an empty port is the usual one (RFC 3986, section 3.2.3), where nobody listens here
    answer = client(f"{server.url}/redirect/302?to=http://127.0.0.9:/x")
    assert answer.error is not None
    assert answer.error.message == "Couldn't connect to server"


def test_a_caller_may_stop_a_redirect(
    client: Client, server: httpd.Running, other: httpd.Running
) -> None:
    asked: list[str] = []

    def may_follow(url: str) -> bool:
        asked.append(url)
        return "SECRET" not in url

    answer = client(f"{server.url}/redirect/302?to=/x%23part", may_follow=may_follow)
    assert ok(answer).url == server.url + "/x"
    server.reset()
    answer = client(f"{server.url}/redirect/302?to={other.url}/SECRET", may_follow=may_follow)
    error = marred(answer, 302)
    # Where it points is not shown either, nor what it says of it.
    assert (answer.header("Location"), answer.content) == ("***", b"")
    assert error.message == (
        "the redirect repeats a secret beyond its URL prefix and is not followed"
    )
    assert error.possibly_sent
    # Once before it is followed, once before it is shown.
    assert asked == [server.url + "/x", other.url + "/SECRET", other.url + "/SECRET"]


@pytest.mark.parametrize(
    "to",
    ["ftp://127.0.0.1/x", "file:///etc/passwd", "http://u:p@127.0.0.1/", "http://", "http://[x/",
     "mailto:x", "javascript:alert(1)"],
)  # fmt: skip
def test_redirects_to_nowhere(client: Client, server: httpd.Running, to: str) -> None:
    error = marred(client(f"{server.url}/redirect/302?to={to}"), 302)
    assert error.message == "redirect to an invalid or unsupported URL"
    assert error.possibly_sent


def test_redirects_go_through_the_guard(
    make_client: MakeClient, server: httpd.Running, other: httpd.Running
) -> None:
    client = make_client(EgressRules.from_json({"allow_networks": ["127.0.0.1/32"]}))
    other.reset()
    answer = client(f"{server.url}/redirect/302?to={other.url}/x")
    error = marred(answer, 302)
    assert "127.0.0.2 is a loopback address and not allowed" in error.message
    assert error.possibly_sent
    assert other.record() == []
    # It has not been followed: this is the redirect's.
    assert (answer.redirects, answer.address, answer.content) == (0, "127.0.0.1", b"elsewhere")
    assert answer.url == f"{server.url}/redirect/302?to={other.url}/x"
    assert answer.header("Location") == other.url + "/x"


@pytest.mark.parametrize(
    ("method", "status", "is_final"),
    [
        # The request was answered, and what follows fetches what the answer points to.
        ("POST", "303", True), ("POST", "302", True), ("PUT", "303", True),
        # The request itself is passed on, and what it came to there nobody knows.
        ("GET", "302", False), ("GET", "303", False), ("POST", "307", False), ("PUT", "301", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("way", ["empty", "hang"])
def test_where_nothing_comes_of_a_redirect(
    client: Client, server: httpd.Running, method: str, status: str, is_final: bool, way: str
) -> None:
    body = None if method == "GET" else b"x"
    answer = client(f"{server.url}/redirect/{status}?to=/{way}", method, [], body, timeout=0.5)
    assert answer.error is not None
    assert answer.error.possibly_sent
    assert answer.error.kind == ("timeout" if way == "hang" else "connection")
    assert (answer.status_code, answer.is_final) == (int(status), is_final)
    assert answer.header("Location") == f"/{way}"
    assert (answer.redirects, answer.url) == (1, f"{server.url}/{way}")
    assert answer.content == b"elsewhere"
    assert 0 < answer.timings.first_byte < answer.timings.total


def test_what_answers_a_redirect_counts(client: Client, server: httpd.Running) -> None:
    """However little of it comes: the redirect is forgotten."""
    answer = client(f"{server.url}/redirect/303?to=/short/100", "POST", [], b"x")
    assert marred(answer).message == "Transferred a partial file"
    assert (answer.content, answer.header("Location")) == (b"12345", None)
    assert ok(client(f"{server.url}/redirect/302?to=/status/404")).status_code == 404


def test_long_locations_are_not_remembered(client: Client, server: httpd.Running) -> None:
    """urllib.parse keeps the last hundred of what it has read."""
    for number in range(3):
        to = f"/{number}" + "x" * 20_000
        ok(client(f"{server.url}/redirect/302?to={to}"))
    cache: Any = urlsplit
    assert cache.cache_info().currsize <= 2


def test_hops_are_counted(make_client: MakeClient, server: httpd.Running) -> None:
    client = make_client()
    answer = client(server.url + "/hops/5")
    assert (ok(answer).status_code, answer.redirects) == (200, 5)
    for way in ("/hops/6", "/loop"):
        answer = client(server.url + way)
        assert marred(answer, 302).message == "Number of redirects hit maximum amount"
        assert answer.redirects == 5
    none = make_client(limits=Limits(max_redirects=0))
    assert ok(none(server.url + "/loop")).status_code == 302


def test_a_redirect_without_a_location_is_an_answer(client: Client, server: httpd.Running) -> None:
    assert ok(client(server.url + "/status/302")).status_code == 302
    assert ok(client(server.url + "/status/300")).status_code == 300


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
        patch.setattr("pgnet.wire.transport.Transport.failed", broken)
        assert failed(client(server.url + "/empty")).message == "internal error in the wire"
    for url in urls:
        ok(client(url))
    assert capsys.readouterr().err.count("RuntimeError: a fault of ours") == 4


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
