"""Settings of hosts: which pattern wins, and what they change on each hop."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import pgnet
from pgnet.wire.guard import EgressRules, Guard
from pgnet.wire.host import HostSettings, HostTable
from pgnet.wire.limits import Limits
from servers import httpd
from servers.client import LOOPBACK, Client, NameServer

MakeClient = Callable[..., Client]


# ---- which settings are whose


def test_the_most_specific_pattern_wins_key_by_key() -> None:
    hosts = HostTable(
        {
            "*": HostSettings(user_agent="all", max_redirects=1, connect_timeout=1.0),
            "*.example": HostSettings(user_agent="short", max_redirects=2),
            "*.b.example": HostSettings(user_agent="long"),
            "a.b.example": HostSettings(verify=False),
        }
    )
    assert hosts.settings_for("a.b.example") == HostSettings(
        user_agent="long", max_redirects=2, connect_timeout=1.0, verify=False
    )
    assert hosts.settings_for("x.y.example").user_agent == "short"
    # a suffix is of the names below it, as in the egress rules
    assert hosts.settings_for("b.example").user_agent == "short"
    assert hosts.settings_for("example").user_agent == "all"
    assert hosts.settings_for("xb.example").user_agent == "short"
    assert hosts.settings_for("127.0.0.1").user_agent == "all"


@pytest.mark.parametrize("host", ["A.Example", "a.example.", "a.EXAMPLE"])
def test_a_name_in_any_spelling(host: str) -> None:
    settings = HostSettings(verify=False)
    assert HostTable({"a.example": settings}).settings_for(host) == settings
    assert HostTable({host: settings}).settings_for("a.example") == settings


@pytest.mark.parametrize(
    ("pattern", "host"),
    [
        ("127.0.0.1", "127.1"), ("127.0.0.1", "2130706433"), ("2001:db8::1", "[2001:DB8:0:0::1]"),
        ("2001:db8:0::1", "2001:db8::1"),
    ],
)  # fmt: skip
def test_an_address_in_any_spelling(pattern: str, host: str) -> None:
    settings = HostSettings(verify=False)
    hosts = HostTable({pattern: settings, "*.1": HostSettings(), "*.0.0.1": HostSettings()})
    assert hosts.settings_for(host) == settings


def test_tables_are_equal_by_what_they_say() -> None:
    one, other = HostSettings(user_agent="1"), HostSettings(user_agent="2")
    assert HostTable({"a": one}) == HostTable({"A.": HostSettings(user_agent="1")})
    assert HostTable({"a": one}) != HostTable({"a": other})
    assert HostTable({"a": one}) != HostTable({"b": one})
    assert HostTable() == HostTable({})
    assert HostTable() != 1
    assert len({HostTable({"a": one}), HostTable({"a": one})}) == 1


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgnet.wire.host._CACHED_HOSTS", 10)
    hosts = HostTable({"*": HostSettings(user_agent="all")})
    for number in range(100):
        assert hosts.settings_for(f"{number}.example").user_agent == "all"
    assert len(hosts._cache) <= 10


def test_secrets_are_in_no_repr() -> None:
    settings = HostSettings(
        proxy="http://me:SECRET@proxy.example:3128", client_key="SECRET", client_certificate="PEM"
    )
    assert "SECRET" not in repr(settings)


# ---- what they do


def user_agents(entry: dict[str, Any]) -> list[str]:
    return [value for name, value in entry["headers"] if name.lower() == "user-agent"]


def test_one_user_agent_only(
    make_client: MakeClient, server: httpd.Running, other: httpd.Running
) -> None:
    client = make_client(hosts=HostTable({"127.0.0.2": HostSettings(user_agent="for the other")}))
    own = f"pgnet/{pgnet.__version__}"
    for url, expected in ((server.url, own), (other.url, "for the other")):
        answer = client(url + "/echo")
        assert user_agents(json.loads(answer.content)) == [expected]
        answer = client(url + "/echo", "GET", [("user-agent", "mine")])
        assert user_agents(json.loads(answer.content)) == ["mine"]
        answer = client(url + "/echo", "POST", [("X-A", "1")], b"body")
        assert user_agents(json.loads(answer.content)) == [expected]


def test_a_user_agent_is_of_its_host_on_each_hop(
    make_client: MakeClient, server: httpd.Running, other: httpd.Running
) -> None:
    client = make_client(hosts=HostTable({"127.0.0.2": HostSettings(user_agent="for the other")}))
    own = f"pgnet/{pgnet.__version__}"
    server.reset()
    other.reset()
    back = f"{other.url}/redirect/302?to={server.url}/echo"
    answer = client(f"{server.url}/redirect/302?to={back}")
    assert (answer.redirects, answer.url) == (2, server.url + "/echo")
    assert [user_agents(entry) for entry in server.record()] == [[own], [own]]
    assert [user_agents(entry) for entry in other.record()] == [["for the other"]]
    # what the caller says goes along
    client(f"{server.url}/redirect/302?to={back}", "GET", [("User-Agent", "mine")])
    assert [user_agents(entry) for entry in other.record()] == [["for the other"], ["mine"]]


def hosts_of(entry: dict[str, Any]) -> list[str]:
    return [value for name, value in entry["headers"] if name.lower() == "host"]


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("shop.example", "shop.example"),
        ("Shop.Example", "shop.example"),
        ("shop.example:8443", "shop.example:8443"),
        ("shop.example:443", "shop.example:443"),
        # the port of http
        ("shop.example:80", "shop.example"),
        ("a_b", "a_b"),
    ],
)
def test_another_name_is_asked_for(
    make_client: MakeClient, server: httpd.Running, name: str, sent: str
) -> None:
    """The other name is not looked up, and the URL stays that of the request."""
    client = make_client(hosts=HostTable({"127.0.0.1": HostSettings(host_header=name)}))
    for rest in ("/echo", "/echo?to=http://b/&c", "/echo/../%2e?"):
        for method, body in (("GET", None), ("POST", b"x")):
            answer = client(server.url + rest, method, [("X-A", "b")], body)
            seen = json.loads(answer.content)
            assert hosts_of(seen) == [sent]
            assert seen["target"] == rest
            assert (answer.url, answer.address) == (server.url + rest, "127.0.0.1")
    # one address, two hosts: another spelling is the same one, another name is not
    assert hosts_of(json.loads(client(f"http://127.1:{server.port}/echo").content)) == [sent]
    own = f"localhost:{server.port}"
    assert hosts_of(json.loads(client(f"http://{own}/echo").content)) == [own]
    # the caller has no say in it
    answer = client(server.url + "/echo", "GET", [("Host", "x")])
    assert "Host" in str(answer.error)


def test_another_name_is_of_its_host_on_each_hop(
    make_client: MakeClient, server: httpd.Running, other: httpd.Running
) -> None:
    client = make_client(hosts=HostTable({"127.0.0.1": HostSettings(host_header="shop.example")}))
    server.reset()
    other.reset()
    client(f"{server.url}/redirect/302?to=/redirect/302?to={other.url}/redirect/302?to=/echo")
    assert [hosts_of(entry) for entry in server.record()] == [["shop.example"]] * 2
    own = other.url.partition("://")[2]
    assert [hosts_of(entry) for entry in other.record()] == [[own]] * 2


def test_another_name_and_the_host_of_that_name(
    make_client: MakeClient,
    server: httpd.Running,
    other: httpd.Running,
    name_server: NameServer,
) -> None:
    """The two are different hosts: each request is sent to the host of its URL."""
    name_server.answers["shop.example"] = ["127.0.0.2"]
    named = f"shop.example:{other.port}"
    client = make_client(
        hosts=HostTable({"127.0.0.1": HostSettings(host_header=named)}),
        resolver=name_server.resolver(),
    )
    for _ in range(2):
        addresses = [client(url + "/echo").address for url in (server.url, f"http://{named}")]
        assert addresses == ["127.0.0.1", "127.0.0.2"]
    server.reset()
    other.reset()
    headers = [("Authorization", "mine")]
    client(f"{server.url}/redirect/302?to=http://{named}/echo", "GET", headers)
    assert [hosts_of(entry) for entry in server.record()] == [[named]]
    (entry,) = other.record()
    assert hosts_of(entry) == [named]
    assert "Authorization" not in {name for name, _ in entry["headers"]}


def test_another_name_of_an_ipv6_address(make_client: MakeClient) -> None:
    client = make_client(hosts=HostTable({"::1": HostSettings(host_header="shop.example")}))
    with httpd.running("::1") as server:
        for address in ("[::1]", "[0:0::0:1]"):
            answer = client(f"http://{address}:{server.port}/echo")
            assert hosts_of(json.loads(answer.content)) == ["shop.example"]


def test_another_name_changes_nothing_about_where_a_request_may_go(
    make_client: MakeClient, server: httpd.Running
) -> None:
    hosts = HostTable({"127.0.0.1": HostSettings(host_header="shop.example")})
    server.reset()
    client = make_client(EgressRules(), hosts=hosts)
    assert "a loopback address and not allowed" in str(client(server.url).error)
    client = make_client(
        EgressRules.from_json({"allow_networks": ["127.0.0.0/8"], "deny_hosts": ["127.0.0.1"]}),
        hosts=hosts,
    )
    assert "a denied host" in str(client(server.url).error)
    for name in ("a b", "a\r\nX: y", "a/b", "u@a", "a:99999", "", "a?b", "a#b"):
        client = make_client(hosts=HostTable({"127.0.0.1": HostSettings(host_header=name)}))
        assert client(server.url).error is not None
    for proxy in (server.url, "https://127.0.0.1:1"):
        hosts = HostTable({"*": HostSettings(host_header="shop.example", proxy=proxy)})
        message = str(make_client(hosts=hosts)(server.url).error)
        assert "select net.configure_host('127.0.0.1', '{\"proxy\": \"direct\"}')" in message
    assert server.record() == []


def test_redirects_by_host_and_by_request(
    make_client: MakeClient, server: httpd.Running, other: httpd.Running
) -> None:
    client = make_client(
        limits=Limits(max_redirects=3),
        hosts=HostTable({"127.0.0.2": HostSettings(max_redirects=1)}),
    )
    for url, most in ((server.url, 3), (other.url, 1)):
        assert client(f"{url}/hops/{most}").redirects == most
        error = client(f"{url}/hops/{most + 1}").error
        assert error is not None
        assert error.message == "Number of redirects hit maximum amount"
        # a request lowers it and never raises it
        assert client(f"{url}/hops/1", max_redirects=1).redirects == 1
        assert client(f"{url}/hops/2", max_redirects=1).error is not None
        assert client(f"{url}/hops/{most + 1}", max_redirects=9).error is not None
        answer = client(f"{url}/hops/1", max_redirects=0)
        assert (answer.status_code, answer.redirects) == (302, 0)
    # it is the first host that says how far
    assert client(f"{server.url}/redirect/302?to={other.url}/hops/2").redirects == 3


def test_bound_headers_stay_within_their_prefix(client: Client, server: httpd.Running) -> None:
    headers = [("Authorization", "Bearer x"), ("X-Free", "1"), ("X-Bound", "2")]
    bound = {"authorization": server.url + "/", "x-bound": server.url + "/v1"}
    for first, expected in (
        ("/redirect/302?to=/echo", {"Authorization", "X-Free"}),
        ("/redirect/302?to=/v1/../echo", {"Authorization", "X-Free"}),
    ):
        answer = client(server.url + first, "GET", headers, bound=bound)
        sent = {name for name, _ in json.loads(answer.content)["headers"]}
        assert sent - {"Host", "User-Agent"} == expected
    server.reset()
    client(f"{server.url}/redirect/302?to=/v1/x", "GET", headers, bound=bound)
    names = {name for name, _ in server.record()[1]["headers"]}
    assert {"X-Bound", "Authorization", "X-Free"} <= names


def test_what_was_dropped_stays_dropped(client: Client, server: httpd.Running) -> None:
    bound = {"x-bound": server.url + "/redirect"}
    # out of the prefix, back into it, and out again
    server.reset()
    client(
        f"{server.url}/redirect/302?to=/hop/302?to=/redirect/302",
        "GET",
        [("X-Bound", "2")],
        bound=bound,
    )
    sent = [(e["target"], ["X-Bound", "2"] in e["headers"]) for e in server.record()]
    assert sent == [
        ("/redirect/302?to=/hop/302?to=/redirect/302", True),
        ("/hop/302?to=/redirect/302", False),
        ("/redirect/302", False),
    ]


def test_new_settings_hold_from_the_next_request_on(
    make_client: MakeClient, server: httpd.Running
) -> None:
    client = make_client()
    own = f"pgnet/{pgnet.__version__}"
    for hosts, expected in (
        (HostTable({"*": HostSettings(user_agent="one")}), "one"),
        (None, "one"),
        (HostTable(), own),
    ):
        client.exchange.configure(Guard(LOOPBACK), None, hosts)
        assert user_agents(json.loads(client(server.url + "/echo").content)) == [expected]
