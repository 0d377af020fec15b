"""TLS: authorities, certificates of clients, versions, names; keys do not stay in memory."""

from __future__ import annotations

import datetime
import gc
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import permutations
from pathlib import Path
from typing import Any

import gevent
import pytest
import trustme

from pgnet.wire.answer import Answer
from pgnet.wire.connection import PemFile, Tls
from pgnet.wire.guard import Guard
from pgnet.wire.host import HostSettings, HostTable
from pgnet.wire.wire_error import WireError
from servers import httpd, tlsd
from servers.client import LOOPBACK, Client, NameServer
from servers.waiting import wait_until

MakeClient = Callable[..., Client]
NOT_OK = "SSL peer certificate or SSH remote key was not OK"
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


def pem(certificate: trustme.LeafCert) -> tuple[str, str]:
    """The certificate's chain, and its key."""
    chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    return chain.decode(), certificate.private_key_pem.bytes().decode()


def identity(certificate: trustme.LeafCert) -> dict[str, Any]:
    chain, key = pem(certificate)
    return {"client_certificate": chain, "client_key": key}


class Authorities:
    """Authorities, and the certificates that they sign, in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.servers = trustme.CA()
        self.clients = trustme.CA()
        self.strangers = trustme.CA()
        self.ca = self.servers.cert_pem.bytes().decode()
        self.client_ca = self.write("clients", self.clients.cert_pem.bytes())

    def write(self, name: str, *content: bytes) -> Path:
        path = self.directory / f"{name}.pem"
        path.write_bytes(b"".join(content))
        return path

    def server(self, kind: str) -> Path:
        """A server's certificate and key; what is wrong with it is its name."""
        names = ("localhost", "127.0.0.1", "one.example", "two.example")
        if kind == "self-signed":
            # an authority that serves in person
            made = trustme.CA()
            return self.write(kind, made.cert_pem.bytes(), made.private_key_pem.bytes())
        if kind == "expired":
            leaf = self.servers.issue_cert(*names, not_before=NOW - 2 * DAY, not_after=NOW - DAY)
        elif kind == "not-yet-valid":
            leaf = self.servers.issue_cert(*names, not_before=NOW + DAY, not_after=NOW + 2 * DAY)
        elif kind == "wrong-name":
            leaf = self.servers.issue_cert("elsewhere.example", "127.0.0.2")
        elif kind == "unknown-authority":
            leaf = self.strangers.issue_cert(*names)
        else:
            leaf = self.servers.issue_cert(*names)
        return self.write(kind, leaf.private_key_and_cert_chain_pem.bytes())


BAD = ["expired", "not-yet-valid", "wrong-name", "unknown-authority", "self-signed"]


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> Authorities:
    return Authorities(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def servers(authorities: Authorities) -> Iterator[dict[str, httpd.Running]]:
    """A server for each kind of certificate, by the kind."""
    with ExitStack() as stack:
        running = {}
        for kind in ("good", *BAD):
            path = str(authorities.server(kind))
            more = ("--cert", path, "--key", path)
            running[kind] = stack.enter_context(httpd.running("127.0.0.1", 0, *more))
        yield running


@pytest.fixture(scope="module")
def strict(authorities: Authorities) -> Iterator[str]:
    """A server that lets nobody in without a certificate of its authority."""
    certificate = authorities.server("strict")
    with tlsd.running(certificate, "--client-ca", str(authorities.client_ca)) as url:
        yield url


@pytest.fixture
def trusting(make_client: MakeClient, authorities: Authorities) -> Client:
    """A client that trusts the servers' authority, for every host."""
    return make_client(hosts=HostTable({"*": HostSettings(ca=authorities.ca)}))


def seen(answer: Answer) -> dict[str, Any]:
    assert answer.error is None, answer.error
    found: dict[str, Any] = json.loads(answer.content)
    return found


# ---- the server's certificate


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_good_certificate(trusting: Client, servers: dict[str, httpd.Running], name: str) -> None:
    answer = trusting(f"https://{name}:{servers['good'].port}/x")
    assert (answer.error, answer.content, answer.http_version) == (None, b"ok", "1.1")
    timings = answer.timings
    assert timings.connect > 0
    assert timings.tls > 0
    assert timings.connect + timings.tls <= timings.first_byte <= timings.total
    # the second one needs neither
    timings = trusting(f"https://{name}:{servers['good'].port}/x").timings
    assert (timings.connect, timings.tls) == (0, 0)


def test_the_name_that_is_asked_for_is_verified(
    make_client: MakeClient, authorities: Authorities, servers: dict[str, httpd.Running]
) -> None:
    """An address stands in no certificate but the one that is asked for by name does."""

    def error(kind: str, name: str) -> str | None:
        settings = HostSettings(ca=authorities.ca, host_header=name)
        client = make_client(hosts=HostTable({"127.0.0.1": settings}))
        answer = client(f"https://127.0.0.1:{servers[kind].port}/x")
        return None if answer.error is None else str(answer.error)

    assert error("wrong-name", "elsewhere.example") is None
    assert error("good", "one.example:8443") is None
    # neither is the name in that one, nor is its address looked at
    for kind, name in (("good", "elsewhere.example"), ("wrong-name", "127.0.0.1")):
        assert "certificate" in (error(kind, name) or "")


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_certificate(trusting: Client, servers: dict[str, httpd.Running], kind: str) -> None:
    server = servers[kind]
    server.reset()
    for _ in range(2):
        error = trusting(server.url + "/x").error
        assert error is not None
        assert (error.message, error.timed_out, error.possibly_sent) == (NOT_OK, False, False)
    assert server.record() == []


def test_the_usual_authorities_do_not_know_ours(
    client: Client, servers: dict[str, httpd.Running]
) -> None:
    error = client(servers["good"].url + "/x").error
    assert error is not None
    assert error.message == NOT_OK


@pytest.mark.parametrize("order", list(permutations(["good", "expired", "wrong-name"])))
def test_none_affects_the_next(
    make_client: MakeClient,
    authorities: Authorities,
    servers: dict[str, httpd.Running],
    order: tuple[str, ...],
) -> None:
    """Verified, refused and unverified requests to the same servers, one after another."""
    client = make_client(
        hosts=HostTable(
            {"*": HostSettings(ca=authorities.ca), "localhost": HostSettings(verify=False)}
        )
    )
    for kind in (*order, *order):
        port = servers[kind].port
        for name, expected in (("127.0.0.1", kind == "good"), ("localhost", True)):
            for _ in range(2):
                answer = client(f"https://{name}:{port}/x")
                assert (answer.error is None) == expected, (kind, name)
                if answer.error is not None:
                    assert answer.error.message == NOT_OK


@pytest.mark.parametrize("kind", ["good", *BAD])
def test_verification_may_be_off(
    make_client: MakeClient, servers: dict[str, httpd.Running], kind: str
) -> None:
    client = make_client(hosts=HostTable({"localhost": HostSettings(verify=False)}))
    assert client(f"https://localhost:{servers[kind].port}/x").content == b"ok"
    # for this host only
    error = client(f"https://127.0.0.1:{servers[kind].port}/x").error
    assert error is not None
    assert error.message == NOT_OK


def test_new_settings_ask_again(
    make_client: MakeClient, authorities: Authorities, servers: dict[str, httpd.Running]
) -> None:
    """A connection that was made without verification serves no request that asks for it."""
    client = make_client()
    url = servers["expired"].url + "/x"
    for settings, expected in (
        (HostSettings(verify=False), True),
        (HostSettings(ca=authorities.ca), False),
        (HostSettings(verify=False, ca=authorities.ca), True),
        (HostSettings(), False),
        (HostSettings(verify=True), False),
    ):
        client.exchange.configure(Guard(LOOPBACK), None, HostTable({"127.0.0.1": settings}))
        for _ in range(2):
            assert (client(url).error is None) == expected


@pytest.mark.parametrize("ca", ["", "no PEM at all", "-----BEGIN CERTIFICATE-----\nMIIB\n"])
def test_a_broken_authority_trusts_nobody(
    make_client: MakeClient, servers: dict[str, httpd.Running], ca: str
) -> None:
    client = make_client(hosts=HostTable({"*": HostSettings(ca=ca)}))
    error = client(servers["good"].url + "/x").error
    assert error is not None
    assert error.message in (NOT_OK, "Problem with the SSL CA cert (path? access rights?)")
    assert not error.possibly_sent


def test_several_authorities(
    make_client: MakeClient, authorities: Authorities, servers: dict[str, httpd.Running]
) -> None:
    both = authorities.strangers.cert_pem.bytes().decode() + authorities.ca
    client = make_client(hosts=HostTable({"*": HostSettings(ca=both)}))
    assert client(servers["good"].url + "/x").content == b"ok"
    assert client(servers["unknown-authority"].url + "/x").content == b"ok"


@pytest.mark.parametrize("highest", ["TLSv1", "TLSv1_1", "TLSv1_2", "TLSv1_3"])
def test_versions_of_tls(trusting: Client, authorities: Authorities, highest: str) -> None:
    more = ("--lowest", "TLSv1", "--highest", highest)
    with tlsd.running(authorities.server("old"), *more) as url:
        answer = trusting(url + "/x")
        if highest in ("TLSv1_2", "TLSv1_3"):
            assert seen(answer)["version"] == highest.replace("_", ".")
        else:
            assert answer.error is not None
            assert answer.error.message == "SSL connect error"


def test_connections_that_end_when_the_next_request_comes(
    trusting: Client, servers: dict[str, httpd.Running]
) -> None:
    """Connections end without notice: a request that may be sent twice goes over a new one."""
    for _ in range(100):
        answer = trusting(servers["good"].url + "/close")
        assert answer.error is None, answer.error.detail


# ---- the client's certificate


def test_a_client_certificate(
    make_client: MakeClient, authorities: Authorities, strict: str
) -> None:
    right = identity(authorities.clients.issue_cert("right@example.org"))
    wrong = identity(authorities.strangers.issue_cert("wrong@example.org"))
    for settings, expected in (
        ({}, None),
        (right, "right@example.org"),
        (wrong, None),
        (right, "right@example.org"),
    ):
        client = make_client(hosts=HostTable({"*": HostSettings(ca=authorities.ca, **settings)}))
        for _ in range(2):
            answer = client(strict + "/x")
            if expected is None:
                assert answer.error is not None
                assert answer.error.message == "SSL connect error", answer.error.detail
            else:
                assert seen(answer)["certificate"] == expected


@pytest.mark.parametrize("order", list(permutations(["right", "other", "none"])))
def test_identities_are_never_mixed_up(
    make_client: MakeClient,
    authorities: Authorities,
    name_server: NameServer,
    strict: str,
    order: tuple[str, ...],
) -> None:
    """Hosts that lead to one address and port, each with an identity of its own, in turns."""
    names = [f"{kind}.example" for kind in order]
    for name in names:
        name_server.answers[name] = ["127.0.0.1"]
    people = {
        kind: identity(authorities.clients.issue_cert(f"{kind}@example.org"))
        for kind in ("right", "other")
    }
    table = {
        f"{kind}.example": HostSettings(verify=False, **people.get(kind, {})) for kind in order
    }
    client = make_client(hosts=HostTable(table), resolver=name_server.resolver())
    port = strict.rpartition(":")[2]
    connections: dict[str, set[int]] = {}
    for kind in order * 3:
        answer = client(f"https://{kind}.example:{port}/x")
        if kind == "none":
            assert answer.error is not None
        else:
            assert seen(answer)["certificate"] == f"{kind}@example.org"
            connections.setdefault(kind, set()).add(seen(answer)["connection"])
    # each has one connection of its own, which is used again
    assert [len(numbers) for numbers in connections.values()] == [1, 1]
    assert len(set.union(*connections.values())) == 2


def test_one_host_under_another_key(
    make_client: MakeClient, authorities: Authorities, strict: str
) -> None:
    """After configure() no connection and no session of the former identity is used."""
    client = make_client()
    for who in ("one", "two", "one", "three"):
        mine = identity(authorities.clients.issue_cert(f"{who}@example.org"))
        table = HostTable({"*": HostSettings(ca=authorities.ca, **mine)})
        client.exchange.configure(Guard(LOOPBACK), None, table)
        for _ in range(2):
            assert seen(client(strict + "/x"))["certificate"] == f"{who}@example.org"


def test_a_redirect_shows_each_host_its_own_identity(
    make_client: MakeClient,
    authorities: Authorities,
    name_server: NameServer,
    servers: dict[str, httpd.Running],
    strict: str,
) -> None:
    for name in ("one.example", "two.example"):
        name_server.answers[name] = ["127.0.0.1"]
    mine = identity(authorities.clients.issue_cert("mine@example.org"))
    table = {
        "*": HostSettings(ca=authorities.ca),
        "two.example": HostSettings(**mine),
    }
    client = make_client(hosts=HostTable(table), resolver=name_server.resolver())
    first = f"https://one.example:{servers['good'].port}"
    port = strict.rpartition(":")[2]
    answer = client(f"{first}/redirect/302?to=https://two.example:{port}/x")
    assert seen(answer) | {"connection": 0} == {
        "certificate": "mine@example.org",
        "connection": 0,
        "name": "two.example",
        "target": "/x",
        "version": "TLSv1.3",
    }
    assert client(f"{first}/redirect/302?to=https://one.example:{port}/x").error is not None


def test_keys_that_cannot_be_used(
    make_client: MakeClient, authorities: Authorities, strict: str
) -> None:
    certificate, key = pem(authorities.clients.issue_cert("a@example.org"))
    other_key = pem(authorities.clients.issue_cert("b@example.org"))[1]
    problem = "Problem with the local SSL certificate"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"client_certificate": certificate, "client_key": other_key}, problem),
        ({"client_certificate": certificate, "client_key": "no PEM"}, problem),
        ({"client_certificate": "no PEM", "client_key": key}, problem),
        ({"client_certificate": certificate}, "the client key of this host is missing"),
        ({"client_key": key}, "the client certificate of this host is missing"),
    ]
    for settings, message in cases:
        client = make_client(hosts=HostTable({"*": HostSettings(ca=authorities.ca, **settings)}))
        for _ in range(2):
            error = client(strict + "/x").error
            assert error is not None
            assert (error.message, error.possibly_sent) == (message, False)


def test_key_before_certificate(
    make_client: MakeClient, authorities: Authorities, strict: str
) -> None:
    """One text may be given as certificate and as key, in any order."""
    certificate, key = pem(authorities.clients.issue_cert("a@example.org"))
    for both in (certificate + key, key + certificate):
        mine = HostSettings(ca=authorities.ca, client_certificate=both, client_key=both)
        client = make_client(hosts=HostTable({"*": mine}))
        assert seen(client(strict + "/x"))["certificate"] == "a@example.org"


# ---- keys as files


def test_a_content_has_one_path() -> None:
    one, same, other = PemFile.shared("one"), PemFile.shared("one"), PemFile.shared("other")
    assert one is same
    assert one.path != other.path
    assert Path(one.path).read_text() == "one"
    with pytest.raises(OSError, match="not permitted"):
        os.pwrite(int(one.path.rpartition("/")[2]), b"X", 0)
    assert Tls(ca=one) == Tls(ca=same) != Tls(ca=other)


def test_a_path_lasts_as_long_as_connections_by_it(
    make_client: MakeClient, authorities: Authorities, strict: str
) -> None:
    # contents that no other test has
    ca = authorities.ca + "\n# once more\n"
    mine = identity(authorities.clients.issue_cert("a@example.org"))

    def in_memory() -> int:
        count = 0
        for path in Path("/proc/self/fd").iterdir():
            if path.exists() and "memfd:pgnet" in os.readlink(path):
                count += path.read_text() in (ca, mine["client_certificate"] + mine["client_key"])
        return count

    client = make_client(hosts=HostTable({"*": HostSettings(ca=ca, **mine)}))
    assert seen(client(strict + "/x"))["certificate"] == "a@example.org"
    assert in_memory() == 2
    # cleared when routes are asked for, kept by the connections
    client.exchange._transport._routes.clear()
    client.exchange._transport._settings.clear()
    gc.collect()
    assert in_memory() == 2
    client.exchange.configure(Guard(LOOPBACK), None, HostTable())

    def left() -> int:
        gc.collect()
        return in_memory()

    wait_until(left, lambda count: count == 0, "the keys are gone", 5, sleep=gevent.sleep)


def test_a_fault_is_the_error(make_client: MakeClient, server: httpd.Running) -> None:
    table = HostTable({"127.0.0.1": HostSettings(fault="the secret key of this host is gone")})
    client = make_client(hosts=table)
    server.reset()
    error = client(server.url + "/x").error
    assert error is not None
    assert (error.message, error.possibly_sent) == ("the secret key of this host is gone", False)
    assert server.record() == []
    # also where a redirect leads there
    with httpd.running("127.0.0.2") as other:
        error = client(f"{other.url}/redirect/302?to={server.url}/x").error
    assert error is not None
    assert (error.message, error.possibly_sent) == ("the secret key of this host is gone", True)
    assert server.record() == []


def test_settings_are_in_no_error() -> None:
    with pytest.raises(WireError) as caught:
        Tls.for_host(HostSettings(client_key="SECRET"))
    assert "SECRET" not in str(caught.value)
