"""Nothing private is connected to by way of a redirect or a proxy."""

from __future__ import annotations

import json

import pytest

from servers.addresses import (
    ALL_EDGES,
    DISPUTED,
    DISPUTED_4,
    DNS_V4,
    DNS_V6,
    RANGES,
    SPELLINGS,
    SPELLINGS_4,
    host_of,
)
from servers.internet import (
    REFUSED,
    Case,
    Internet,
    hops,
    label,
    last_host,
    literal,
    name_for,
    name_of,
    redirect,
    through,
)


@pytest.mark.parametrize("status", ["301", "302", "303", "307", "308"])
def test_redirects_to_every_edge(internet: Internet, status: str) -> None:
    cases = [Case(redirect(literal(address), status), address) for address in ALL_EDGES]
    internet.judge(cases)


def test_redirects_in_every_spelling(internet: Internet) -> None:
    """A Location is not canonicalized by the caller's check; non-ASCII is percent-encoded."""
    firsts = [(version, low) for version, low, _ in RANGES]
    for address in firsts:
        cases = []
        for spell in SPELLINGS[address[0]].values():
            host = spell(address[1])
            cases.append(Case(redirect(f"http://{host}/"), address, not host.isascii()))
            cases.append(Case(redirect(f"//{host}/"), address, not host.isascii()))
        for spell in DISPUTED[address[0]].values():
            host = spell(address[1])
            cases.append(Case(redirect(f"http://{host}/"), address, disputed=True))
            cases.append(Case(redirect(f"//{host}/"), address, disputed=True))
        internet.judge(cases)


@pytest.mark.parametrize(
    "form",
    [
        "http://{}/", "http://{}", "http://{}?x", "http://{}#x", "HTTP://{}/", "hTtP://{}/",
        "//{}/", "//{}", "https://{}/", "//{}:443/", "http://{}:443/", "http://{}:/",
    ],
)  # fmt: skip
def test_absolute_and_scheme_relative(internet: Internet, form: str) -> None:
    targets = [(version, (low + up) // 2) for version, low, up in RANGES]
    cases = [Case(redirect(form.format(host_of(address))), address) for address in targets]
    internet.judge(cases)


@pytest.mark.parametrize(
    "form",
    [
        "///{}/", "////{}/", "\\\\{}/", "/\\{}/", "\\/{}/", "http:\\\\{}/", "http:/{}/", "http:{}/",
        "http:///{}/", "http:////{}/", "/\t/{}/", "//\t{}/", " //{}/", "\t//{}/", "//8.8.8.8@{}/",
        "//{}@8.8.8.8/", "//{}\\@8.8.8.8/", "//8.8.8.8\\@{}/", "http://8.8.8.8:80@{}/",
        "http://8.8.8.8#@{}/", "http://8.8.8.8?@{}/", "/../../{}/", "?//{}/", "#//{}/",
        "http://{} /", "http://{}\x00/", "//{}%00/", "//{}%2f@8.8.8.8/", "//8.8.8.8%2f@{}/",
        "javascript://{}/", "ftp://{}/", "gopher://{}/", "file://{}/", "url:http://{}/",
        "http://[::ffff:8.8.8.8]@{}/", "http://a:b@{}/", "//{},8.8.8.8/", "http://{};8.8.8.8/",
        "http://8.8.8.8 {}/", "http://8.8.8.8\t@{}/", "http:\t//{}/", "h\tttp://{}/",
        "//\u3000{}/", "\uff0f\uff0f{}/", "//{}\uff0f8.8.8.8/", "http://8.8.8.8&@{}/",
    ],
)  # fmt: skip
def test_locations_that_readers_dispute(internet: Internet, form: str) -> None:
    targets = [(version, (low + up) // 2) for version, low, up in RANGES]
    cases = [Case(redirect(form.format(host_of(address))), address, True) for address in targets]
    internet.judge(cases)


def test_chains_of_hops(internet: Internet) -> None:
    """Over several public hosts, of both families and by name, and private at the end."""
    firsts = [(version, low) for version, low, _ in RANGES]
    for address in firsts:
        name = name_for(label(DNS_V4))
        hidden = name_for("c", label(address))
        public = ["8.8.8.8", "1.1.1.1", host_of(DNS_V6), name]
        cases = [
            Case(hops(*public[:count], last=last), address)
            for count in range(1, 5)
            for last in (f"http://{host_of(address)}/", f"http://{hidden}/")
        ]
        internet.judge(cases)
    to = (4, 0x01010101)
    internet.judge([Case(hops("8.8.8.8", host_of(DNS_V6), last="http://1.1.1.1/"), to)])
    # A hop in the middle is a hop too: what stands behind it is never asked.
    (answer,) = internet.run([hops("8.8.8.8", "10.0.0.1", last="http://1.1.1.1/")])
    assert REFUSED.search(answer["error"])
    assert internet.seen()[0] == [DNS_V4]


def test_a_redirect_to_a_name_that_was_rebound(internet: Internet) -> None:
    """The same host before and after, and other addresses."""
    names = {name_for(label(DNS_V4), "then", label((v, low))): (v, low) for v, low, _ in RANGES}
    urls = [hops(name, last=f"http://{name}:1024/") for name in names]
    answers = internet.run(urls, "forgetful")
    for (name, address), answer in zip(names.items(), answers, strict=True):
        internet.refused(name, answer, address)
    internet.nothing_private()


def test_a_proxy_is_judged_instead(internet: Internet) -> None:
    """Where the proxy stands decides, for its addresses and its names."""
    for version, low, up in RANGES:
        address = (version, (low + up) // 2)
        host = host_of(address)
        for proxy in (host, name_for(label(address)), name_for("c", label(address))):
            for scheme in ("http", "https"):
                internet.configure("proxied", hosts=through(f"{scheme}://{proxy}:3128"))
                for answer in internet.run(["http://8.8.8.8/", "https://a.example/"], "proxied"):
                    assert answer["error"].startswith("proxy "), answer
                    internet.refused(proxy, answer, address)
    internet.nothing_private()


def test_what_is_behind_a_proxy(internet: Internet) -> None:
    """A literal address is judged all the same; names are the proxy's to look up."""
    for proxy in ("8.8.8.8", name_for(label(DNS_V4))):
        internet.configure("proxied", hosts=through(f"http://{proxy}:3128"))
        refused = [
            form.format(SPELLINGS[version][spelling](number))
            for version, low, up in RANGES
            for number in (low, up)
            for spelling in ("usual", *(list(SPELLINGS_4) if version == 4 else []))
            for form in ("http://{}/", "https://{}/")
        ]
        refused += [
            f"http://{DISPUTED_4[spelling](number)}/"
            for version, low, up in RANGES
            if version == 4
            for number in (low, up)
            for spelling in ("trailing dot", "decimal, trailing dot", "hex, trailing dot")
        ]
        refused += ["http://localhost/", "https://a.localhost/", "http://LOCALHOST/"]
        refused += ["http://localhost./", "http://010.0.0.1/", "http://0x7f.1./"]
        refused += [redirect("http://10.0.0.1/"), redirect("http://localhost/")]
        for url, answer in zip(refused, internet.run(refused, "proxied"), strict=True):
            # localhost is not looked up, so that the log says what the error hides.
            if name_of(last_host(url)) is not None:
                internet.refused(last_host(url), answer, (4, 0x7F000001))
            else:
                assert REFUSED.search(answer.get("error", "")), (url, answer)
        reached, targets = internet.seen()
        assert set(reached) == {DNS_V4}
        assert all(target.startswith("http://8.8.8.8/redirect") for target in targets)
        for url in ("http://1.1.1.1/x", "http://inner.hosts/x", "http://10.example/x"):
            (answer,) = internet.run([url], "proxied")
            assert json.loads(answer["body"]) == {"local": "8.8.8.8", "port": 3128, "target": url}
        internet.nothing_private()


def test_a_proxy_that_was_rebound(internet: Internet) -> None:
    hosts = {name_for(label(DNS_V4), "then", label((v, low))): (v, low) for v, low, _ in RANGES}
    for host, address in hosts.items():
        internet.configure("rebound", max_age=0.0, hosts=through(f"http://{host}:3128"))
        first, second = (internet.run(["http://1.1.1.1/"], "rebound")[0] for _ in range(2))
        assert first["status"] == 200
        internet.refused(host, second, address)
    internet.nothing_private()
