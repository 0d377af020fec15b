"""The deadline spans all parts of a request; the guard judges each address of a name."""

from __future__ import annotations

import socket
import time

import gevent
import pytest

from pgnet.wire.answer import Answer
from pgnet.wire.guard import EgressRules, Guard
from pgnet.wire.limits import Limits
from servers import httpd
from servers.answers import TIMEOUT, MakeClient, echoed, failed, marred, ok
from servers.client import LOOPBACK, Client, NameServer
from servers.waiting import wait_until

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
        first, second = (client(f"http://two.example:{port}/x", timeout=1.0) for _ in range(2))
        assert (first.address, second.address) == ("127.0.0.3", "127.0.0.3")
        # The first request has given half of its time to the other address.
        assert second.timings.first_byte < 0.4 < first.timings.first_byte < first.timings.total
        assert len(running.record()) == 2


def test_the_first_byte_comes_after_the_name(
    make_client: MakeClient, name_server: NameServer, server: httpd.Running
) -> None:
    name_server.answers["slow.example"] = ["127.0.0.1"]
    name_server.delay = 0.1
    client = make_client(resolver=name_server.resolver())
    timings = client(f"http://slow.example:{server.port}/x").timings
    assert 0.1 <= timings.name <= timings.first_byte <= timings.total
    timings = client(f"http://slow.example:{server.port}/x").timings
    assert timings.name == 0 < timings.first_byte < 0.1


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
    """An address that the name server gives after the check is never connected to."""
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
