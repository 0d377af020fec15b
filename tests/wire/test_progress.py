"""What a request in flight waits for, as net.explain says it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import gevent
import pytest

from pgnet.wire.exchange import Handle
from pgnet.wire.host import HostSettings, HostTable
from pgnet.wire.transfer import Progress
from servers.client import Client, NameServer
from servers.keeper import Keeper
from servers.waiting import wait_until

MakeClient = Callable[..., Client]


@pytest.fixture
def silent() -> Iterator[str]:
    """The authority of a server that takes connections and says nothing; nor does it read."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def waits_for(handle: Handle, words: str) -> None:
    """What it waits for, and goes on to wait for."""
    wait_until(lambda: handle.progress, lambda now: now == words, words, sleep=gevent.sleep)
    for _ in range(5):
        gevent.sleep(0.01)
        assert handle.progress == words
    handle.cancel()


def test_the_look_up_of_a_name(make_client: MakeClient, name_server: NameServer) -> None:
    name_server.answers["slow.example"] = None
    client = make_client(resolver=name_server.resolver())
    handle, _ = client.begin("http://slow.example/")
    waits_for(handle, Progress.NAME.value)


def test_a_connection(client: Client, full_backlog: str) -> None:
    handle, _ = client.begin(full_backlog)
    waits_for(handle, Progress.CONNECTING.value)


def test_tls(client: Client, silent: str) -> None:
    handle, _ = client.begin(f"https://{silent}/")
    waits_for(handle, Progress.TLS.value)


def test_the_connection_of_another_request(client: Client, silent: str) -> None:
    first, _ = client.begin(f"https://{silent}/")
    second, _ = client.begin(f"https://{silent}/")
    waits_for(second, Progress.PENDING.value)
    first.cancel()


def test_the_tunnel_of_a_proxy(make_client: MakeClient, silent: str) -> None:
    hosts = HostTable({"*": HostSettings(proxy=f"http://{silent}")})
    handle, _ = make_client(hosts=hosts).begin("https://127.0.0.1:9/")
    waits_for(handle, Progress.TUNNEL.value)


@pytest.mark.parametrize(
    ("method", "body"), [("GET", None), ("POST", b"x" * 100), ("PUT", b"x" * 9999)]
)
def test_the_first_byte(client: Client, silent: str, method: str, body: bytes | None) -> None:
    handle, _ = client.begin(f"http://{silent}/", method, body=body)
    waits_for(handle, Progress.FIRST_BYTE.value)


def test_a_server_that_does_not_read(client: Client, silent: str) -> None:
    handle, _ = client.begin(f"http://{silent}/", "POST", body=b"x" * (64 << 20))
    waits_for(handle, Progress.SENDING.value)


@pytest.mark.parametrize(
    "part", [b"HTTP/1.1 200 O", b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nbody"]
)
def test_the_rest_of_an_answer(client: Client, keeper: Callable[..., Keeper], part: bytes) -> None:
    server = keeper(part)
    handle, _ = client.begin(server.url)
    waits_for(handle, Progress.ANSWER.value)


def test_a_kept_connection(client: Client, keeper: Callable[..., Keeper]) -> None:
    server = keeper(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert client(server.url).status_code == 200
    handle, _ = client.begin(server.url)
    waits_for(handle, Progress.FIRST_BYTE.value)


def test_behind_a_redirect(client: Client, keeper: Callable[..., Keeper], silent: str) -> None:
    moved = f"HTTP/1.1 302 Found\r\nLocation: http://{silent}/\r\nContent-Length: 0\r\n\r\n"
    server = keeper(moved.encode())
    handle, _ = client.begin(server.url)
    waits_for(handle, f"{Progress.FIRST_BYTE.value}, behind 1 redirect(s)")


def test_after_its_end(client: Client, keeper: Callable[..., Keeper]) -> None:
    server = keeper(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    handle, ended = client.begin(server.url)
    ended.get(timeout=5)
    assert handle.progress == Progress.ANSWER.value
