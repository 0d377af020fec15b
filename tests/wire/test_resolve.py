"""Looking up names: how long a name is kept, and what is not found."""

from __future__ import annotations

import time
from typing import Any

import gevent
import pytest
from gevent.event import AsyncResult

from pgnet.wire.resolve import ResolveError, Resolver
from servers.client import NameServer
from servers.waiting import wait_until


def look_up(resolver: Resolver, host: str, seconds: float = 5.0) -> tuple[str, ...]:
    ended: AsyncResult = AsyncResult()
    calls: list[Any] = []

    def done(addresses: tuple[str, ...], error: ResolveError | None) -> None:
        calls.append(addresses)
        assert len(calls) == 1
        ended.set_exception(error) if error is not None else ended.set(addresses)

    resolver.lookup(host, seconds, done)
    assert not calls, "done was called before lookup returned"
    found: tuple[str, ...] = ended.get(timeout=seconds + 5)
    return found


def test_a_name_is_looked_up_once_and_remembered(name_server: NameServer) -> None:
    name_server.answers["a.example"] = ["192.0.2.1", "192.0.2.2"]
    resolver = name_server.resolver()
    assert sorted(look_up(resolver, "a.example")) == ["192.0.2.1", "192.0.2.2"]
    asked = len(name_server.asked)
    assert asked >= 1
    assert resolver.cached("a.example") is not None
    look_up(resolver, "a.example")
    assert len(name_server.asked) == asked
    resolver.clear()
    look_up(resolver, "a.example")
    assert len(name_server.asked) > asked
    resolver.close()


def test_nothing_else_remembers_it(name_server: NameServer) -> None:
    """c-ares does from 1.31 on, as long as the records may be kept: here for an hour."""
    name_server.seconds = 3600
    name_server.answers |= {"a.example": ["192.0.2.1"], "slow.example": None}
    resolver = name_server.resolver(max_age=0.0)
    assert look_up(resolver, "a.example") == ("192.0.2.1",)
    name_server.answers["a.example"] = ["192.0.2.2"]
    assert look_up(resolver, "a.example") == ("192.0.2.2",)
    # while another name is waited for, all are asked of one channel, for a second
    resolver.lookup("slow.example", 5.0, lambda *_: None)
    look_up(resolver, "a.example")
    name_server.answers["a.example"] = ["192.0.2.3"]
    wait_until(
        lambda: look_up(resolver, "a.example"),
        lambda found: found == ("192.0.2.3",),
        "the new address",
        3,
        sleep=gevent.sleep,
    )
    name_server.answers["a.example"] = ["192.0.2.4"]
    resolver.clear()
    assert look_up(resolver, "a.example") == ("192.0.2.4",)
    resolver.close()


def test_an_answer_grows_old(name_server: NameServer) -> None:
    name_server.answers["a.example"] = ["192.0.2.1"]
    resolver = name_server.resolver(max_age=0.0)
    look_up(resolver, "a.example")
    assert resolver.cached("a.example") is None
    assert resolver.good_until("a.example") <= time.monotonic()
    resolver.close()


def test_names_that_do_not_exist(name_server: NameServer) -> None:
    resolver = name_server.resolver()
    with pytest.raises(ResolveError, match="No such name") as caught:
        look_up(resolver, "nowhere.example")
    assert not caught.value.timed_out
    resolver.close()


def test_a_deadline_each(name_server: NameServer) -> None:
    name_server.answers["slow.example"] = None
    resolver = name_server.resolver()
    ends: list[tuple[float, bool]] = []
    began = time.monotonic()

    def done(_: tuple[str, ...], error: ResolveError | None) -> None:
        assert error is not None
        ends.append((time.monotonic() - began, error.timed_out))

    cancelled = resolver.lookup("slow.example", 0.1, done)
    cancelled.cancel()
    for seconds in (0.3, 0.1):
        resolver.lookup("slow.example", seconds, done)
    with gevent.Timeout(5):
        while len(ends) < 2:
            gevent.sleep(0.01)
    assert [timed_out for _, timed_out in ends] == [True, True]
    assert ends[0][0] == pytest.approx(0.1, abs=0.1)
    assert ends[1][0] == pytest.approx(0.3, abs=0.1)
    resolver.close()


def test_a_dead_name_server() -> None:
    resolver = Resolver(servers=["127.0.0.1"], port=9, server_timeout=0.1, tries=1)
    with pytest.raises(ResolveError):
        look_up(resolver, "a.example")
    resolver.close()


@pytest.mark.parametrize("host", ["127.1", "127.0.0.1", "2130706433"])
def test_addresses_need_no_server(host: str) -> None:
    resolver = Resolver(servers=["127.0.0.1"], port=9)
    assert resolver.cached(host) == ("127.0.0.1",)
    assert look_up(resolver, host) == ("127.0.0.1",)
    resolver.close()


def test_etc_hosts_is_read(name_server: NameServer) -> None:
    resolver = name_server.resolver()
    assert "127.0.0.1" in look_up(resolver, "localhost")
    assert name_server.asked == []
    resolver.close()


@pytest.mark.parametrize("name", ["localhost", "localhost.", "a.localhost", "a.b.localhost."])
def test_localhost_is_this_host_whatever_name_servers_say(name: str) -> None:
    """RFC 6761, 6.3: both families, and nobody is asked."""
    resolver = Resolver(servers=["127.0.0.1"], port=1)
    assert resolver.cached(name) == ("127.0.0.1", "::1")
    assert resolver.good_until(name) > time.monotonic()
    assert resolver.cached("localhost.example") is None
    resolver.close()
