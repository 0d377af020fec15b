"""Secrets as values: their names and prefixes, where one may go, how it gets into a request."""

from __future__ import annotations

import os
import posixpath
import re
import time
import unicodedata
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pgnet.request.errors import InvalidRequest
from pgnet.request.headers import flatten_headers
from pgnet.request.prefix import canonical_prefix, covers, origin, within
from pgnet.request.row import read_row
from pgnet.request.secret_reference import Reference, is_name, read_reference, read_secret_url
from pgnet.request.url import MAX_URL_LENGTH, canonical_url
from pgnet.secret.directory import Directory, UnsafeFile
from pgnet.secret.value import (
    MAX_LENGTH,
    check_value,
    expand_url,
    header_value,
    without_line_break,
)
from servers.canary import CANARY

# ---- names


@pytest.mark.parametrize("name", ["a", "stripe", "9", "A-b_c.d", "x" * 63, "api.example.com"])
def test_a_name(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".a", "-a", "_a", "a b", "a/b", "../a", "a\n", "é", "x" * 64, "a{", "a\0",
     None, 1],
)  # fmt: skip
def test_no_name(name: object) -> None:
    assert not is_name(name)


# ---- prefixes


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("https://api.example", "https://api.example/"),
        ("HTTPS://Api.Example:443/v1", "https://api.example/v1"),
        ("https://api.example/v1/", "https://api.example/v1/"),
        ("http://127.0.0.1:8080/a%20b/", "http://127.0.0.1:8080/a%20b/"),
        ("http://[::1]:80/", "http://[::1]/"),
        ("https://bücher.example/ü", "https://xn--bcher-kva.example/%C3%BC"),
        ("https://api.example/{x}/a b", "https://api.example/%7Bx%7D/a%20b"),
    ],
)
def test_a_prefix(text: str, prefix: str) -> None:
    assert canonical_prefix(text) == prefix
    assert canonical_prefix(prefix) == prefix


@pytest.mark.parametrize(
    "text",
    ["", "api.example", "ftp://api.example/", "https://", "https://user:word@api.example/",
     "https://api.example/v1?", "https://api.example/v1?a=b", "https://api.example/#", "/v1",
     "https://api.example/v1/..", "https://api.example/./v1", "https://api.example/%2e%2e/",
     "https://api.example/%252E", "https://api.example/a%2Fb", "https://api.example/a%5cb",
     "https://api.example/..;a", "https://api.example/%c0%ae%c0%ae/", "https://api.example/a\\b",
     "https://api.example/{secret:x}", "https://api.example/a\tb",
     f"https://user:{CANARY}@api.example/", CANARY, f"//{CANARY}/",
     f"https://{CANARY} /"],
)  # fmt: skip
def test_no_prefix(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        canonical_prefix(text)
    assert CANARY not in f"{caught.value.message} {caught.value.hint}"


# ---- within

INSIDE = [
    ("https://h.example/", "https://h.example/"),
    ("https://h.example/", "https://h.example/a/b?c=d"),
    ("https://h.example/", "https://h.example/?c"),
    # an origin covers all of it: there is nowhere to get out to
    ("https://h.example/", "https://h.example/a/../b%2fc"),
    ("https://h.example/v1", "https://h.example/v1"),
    ("https://h.example/v1", "https://h.example/v1/"),
    ("https://h.example/v1", "https://h.example/v1?x=../y"),
    ("https://h.example/v1", "https://h.example/v1/x"),
    ("https://h.example/v1", "https://h.example/v1//x"),
    ("https://h.example/v1", "https://h.example/v1#x"),
    ("https://h.example/v1/", "https://h.example/v1"),
    ("https://h.example/v1/", "https://h.example/v1/x/y"),
    ("https://h.example/v1/", "https://h.example/v1/.a./a..;x/a%2e%2e"),
    ("https://h.example/v1/", "https://h.example/v1/.well-known/a..b;c=1"),
    ("https://h.example/v1/", "https://h.example/v1/100%25/%C3%BC%20x"),
    ("https://h.example:8443/v1/", "https://h.example:8443/v1/x"),
    ("http://[::1]:8080/v1", "http://[::1]:8080/v1/x"),
    ("https://h.example/a%20b", "https://h.example/a%20b/c"),
]


OUTSIDE = [
    ("https://h.example/", "http://h.example/"),
    ("https://h.example/", "https://h.example:8443/"),
    ("https://h.example/", "https://h.example.evil.example/"),
    ("https://h.example/", "https://evil.example/https://h.example/"),
    ("https://h.example/", "https://h.example./"),
    ("https://h.example/", "https://www.h.example/"),
    ("https://h.example/", "https://h.example@evil.example/"),
    ("https://h.example/", "https://H.example/"),
    ("https://h.example/", "https://h.example:443/"),
    ("https://h.example/", "https://h.example"),
    ("https://h.example/", "https://h.example\\@evil.example/"),
    ("https://h.example/", "//h.example/"),
    ("https://h.example/", ""),
    ("https://h.example/v1", "https://h.example/"),
    ("https://h.example/v1", "https://h.example/v10"),
    ("https://h.example/v1", "https://h.example/v"),
    ("https://h.example/v1", "https://h.example/V1"),
    ("https://h.example/v1", "https://h.example//v1"),
    ("https://h.example/v1", "https://h.example/x/v1"),
    ("https://h.example/v1", "https://h.example/v1;a/x"),
    ("https://h.example/v1", "https://h.example/%761"),
    ("https://h.example/v1", "https://h.example/v1%2fx"),
    ("https://h.example/v1/a", "https://h.example/v1/"),
    ("https://h.example/v1", "https://h.example/v1\n/x"),
    # the prefix is not a URL
    ("https://h.example/v1?a", "https://h.example/v1?a"),
    ("https://h.example/v1/..", "https://h.example/v1/.."),
    ("https://h.example", "https://h.example/"),
] + [
    ("https://h.example/v1/", f"https://h.example/v1/{rest}")
    for rest in (
        *("..", "../x", "./x", "x/..", "x/../../y", ".", "%2e%2e/x", "%2E./x", ".%2e", "%2e"),
        *("%252e%252e/x", "%25252e%25252e", "%2525252525252525252e", "..;a/x", ".;", "%2e%2e;a"),
        *("..%3Ba=b/x", "%252e%252e%253b", "x%2f..", "x%2F", "x%252fy", "x%5cy", "x%5C.."),
        *("%c0%ae%c0%ae/x", "%e0%80%ae", "%c0%af", "%ef%bc%8e%ef%bc%8e/", "%E2%80%A5/x"),
        *("x%255c", "x%ef%bc%8fy"),
        *("..%00/x", "%00", "..%20/x", "%09../x", "..%0a", "x%0d%0ay", "%u002e%u002e", "%25u002e"),
        *("..%20;a", ".%20.", "%2e%e2%80%8b%2e", ".%0b./x", "%fe", "x%e9"),
        # whatever a server makes of what begins with two dots
        *("...", "..x", "..;", "..%3b", "..%00", ".%2e", "%2e%2e;", "%2e%2e%3bx/y"),
        *("..%252f", "..:", "..~", "..%23", "..%3f", ".%252e;", "%2e.%2e", "..%e2%80%8b"),
        *("%E2%80%A6", "..\\"),
    )
]  # fmt: skip


@pytest.mark.parametrize(("prefix", "url"), INSIDE)
def test_inside(prefix: str, url: str) -> None:
    assert within(prefix, url)
    assert covers(prefix, url)


@pytest.mark.parametrize(("prefix", "url"), OUTSIDE)
def test_outside(prefix: str, url: str) -> None:
    assert not within(prefix, url)
    assert not covers(prefix, url)


PIECES = [
    *("/", "/", "/", "//", ".", "..", "v1", "v1", "v10", "a", ";", ";x", "?", "#", "%", "%25"),
    *("%2e", "%2E", "%2f", "%2F", "%5c", "%5C", "%3b", "%3B", "%00", "%20", "%09", "%0a", "%c0"),
    *("%ae", "%af", "%ef%bc%8e", "%ef%bc%8f", "%ef%bc%bc", "%e2%80%a5", "%e2%80%a4", "%u002e"),
    *("2e", "2f", "5c", "u002e", "u002f", "@", ":", "h.example", "é"),
]


PATHS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


def readings(url: str) -> set[str]:
    """The paths for which a server, a proxy or a framework may take a URL."""
    path = urlsplit(url).path
    found = {path}
    for _ in range(6):
        found |= {unquote(p, errors="replace") for p in found}
        found |= {unquote(p, "latin-1") for p in found}
    found |= {re.sub("%[uU]([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), p) for p in found}
    found |= {p.replace("\xc0\xae", ".").replace("\xc0\xaf", "/") for p in found}
    found |= {unicodedata.normalize("NFKC", p) for p in found}
    found |= {p.replace("\\", "/") for p in found}
    found |= {re.sub(r"[\0-\x20\u200b]", "", p) for p in found}
    found |= {p.partition("\0")[0] for p in found}
    found |= {re.sub(r";[^/]*", "", p) for p in found}
    return {re.sub("^/+", "/", posixpath.normpath(p or "/")) for p in found}


@settings(max_examples=3000, deadline=None)
@given(PATHS, PATHS)
def test_no_server_reads_a_way_out(below: str, above: str) -> None:
    """A URL within the prefix stays there, however it is decoded and normalized."""
    prefix = "https://h.example/v1/a"
    for path in (f"/v1/a/{below}", f"/v1/a{below}", above):
        try:
            url = canonical_url(f"https://h.example{path}")
        except InvalidRequest:
            continue
        if within(prefix, url):
            for reading in readings(url):
                assert (reading + "/").startswith("/v1/a/"), reading


@settings(deadline=None)
@given(
    st.lists(st.text("abc019-._~!$&'()*+,=:@", min_size=1, max_size=8), min_size=1, max_size=6),
    st.integers(0, 6),
    st.booleans(),
)
def test_each_url_is_within_what_is_above_it(path: list[str], depth: int, slash: bool) -> None:
    assume("." not in path)
    assume(not any(segment.startswith("..") for segment in path))
    above = path[:depth]
    prefix = f"https://h.example/{'/'.join(above)}{'/' if slash and above else ''}"
    url = f"https://h.example/{'/'.join(path)}"
    assert within(prefix, url)
    assert not within(f"{prefix.rstrip('/')}/other", url)
    assert not within(prefix, url.replace("h.example", "i.example"))


@settings(deadline=None)
@given(st.text(), st.text())
def test_within_takes_any_text(prefix: str, url: str) -> None:
    assert not within(prefix, url) or canonical_url(url).startswith(origin(prefix))


def test_a_long_url_is_judged_at_once() -> None:
    began = time.monotonic()
    long = MAX_URL_LENGTH // 2 - 100
    assert not within("https://h.example/v1", f"https://h.example/v1/%{'25' * long}2e")
    assert within("https://h.example/v1", f"https://h.example/v1/{'a/' * long}")
    assert time.monotonic() - began < 10


# ---- references in headers


def test_a_header_value() -> None:
    def sent(reference: dict[str, object], value: str) -> str:
        return header_value(read_reference(reference), value)

    assert sent({"secret": "a"}, "value of it") == "value of it"
    assert sent({"secret": "a", "prefix": "Bearer "}, "token") == "Bearer token"
    assert sent({"secret": "a", "prefix": None}, "token") == "token"
    assert sent({"secret": "a", "prefix": " \t"}, "token") == "token"
    assert read_reference({"prefix": "Basic ", "secret": "b.c"}).name == "b.c"


@pytest.mark.parametrize(
    "reference",
    [{}, {"secret": None}, {"secret": 1}, {"secret": ""}, {"secret": "a b"}, {"secret": ["a"]},
     {"secret": "a", "prefix": 1}, {"secret": "a", "prefix": "\r\n"}, {"secret": "a", "suffix": ""},
     {"secret": "a", "value": CANARY}, {"secret": "a", CANARY: 1}, {"secret": f"{CANARY} "},
     {"secret": "a", "prefix": f"{CANARY}\n"}, {"prefix": CANARY}],
)  # fmt: skip
def test_no_reference(reference: dict[str, object]) -> None:
    for use in (read_reference, lambda r: flatten_headers({"X-A": r}, may_name_secrets=True)):
        with pytest.raises(InvalidRequest) as caught:
            use(reference)
        assert CANARY not in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    "value", [f"{CANARY}\n", f"{CANARY}\r\nX: 1", f"\0{CANARY}", f"{CANARY}\x7f"]
)
def test_a_value_that_no_header_can_hold(value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        header_value(Reference("a", ""), value)
    assert caught.value.message == 'secret "a" holds a character that no header can have'


# ---- secret URLs

HOOKS = "https://hooks.example/services/"


@pytest.mark.parametrize(
    ("stored", "value", "prefix", "url"),
    [
        ("https://hooks.example/{secret:s}", f"{HOOKS}T/B/X", HOOKS, f"{HOOKS}T/B/X"),
        ("https://hooks.example/{secret:s}?a=b", f"{HOOKS}T", HOOKS, f"{HOOKS}T?a=b"),
        ("https://hooks.example/{secret:s}?a=b", f"{HOOKS}T?c", HOOKS, f"{HOOKS}T?c&a=b"),
        ("https://hooks.example/{secret:s}", "?token=x", HOOKS, f"{HOOKS}?token=x"),
        ("https://hooks.example/{secret:s}?a", "?token=x", HOOKS[:-1], f"{HOOKS[:-1]}?token=x&a"),
        ("https://hooks.example/{secret:s}", "HTTPS://Hooks.example/services/é", HOOKS,
         f"{HOOKS}%C3%A9"),
        ("http://[::1]:81/{secret:s}", "http://[::1]:81/x", "http://[::1]:81/", "http://[::1]:81/x"),
    ],
)  # fmt: skip
def test_a_secret_url(stored: str, value: str, prefix: str, url: str) -> None:
    secret_url = read_secret_url(stored)
    assert secret_url is not None
    assert expand_url(secret_url, value, prefix) == url
    assert covers(prefix, stored)


@pytest.mark.parametrize(
    ("stored", "value", "prefix", "message"),
    [
        ("https://evil.example/{secret:s}", f"{HOOKS}T", HOOKS,
         'secret "s" is bound to another host now'),
        ("https://hooks.example/{secret:s}", CANARY, HOOKS,
         'secret "s" holds neither a URL nor a query that begins with "?"'),
        ("https://hooks.example/{secret:s}", f"?{CANARY}\tx", HOOKS,
         'secret "s" holds neither a URL nor a query that begins with "?"'),
        ("https://hooks.example/{secret:s}", f"https://u:{CANARY}@hooks.example/services/", HOOKS,
         'secret "s" holds neither a URL nor a query that begins with "?"'),
        ("https://hooks.example/{secret:s}", f"{HOOKS}{CANARY}#x", HOOKS,
         'the URL that secret "s" holds has a fragment'),
        ("https://hooks.example/{secret:s}", f"https://evil.example/{CANARY}", HOOKS,
         'the URL that secret "s" holds is not within its URL prefix'),
        ("https://hooks.example/{secret:s}", f"{HOOKS}../{CANARY}", HOOKS,
         'the URL that secret "s" holds is not within its URL prefix'),
        # by hand, past the caller's check
        ("https://hooks.example/{secret:s}?a#b", f"{HOOKS}{CANARY}", HOOKS,
         'the query that follows secret "s" is not valid'),
        ("https://hooks.example/{secret:s}?a b", f"{HOOKS}{CANARY}", HOOKS,
         'the query that follows secret "s" is not valid'),
    ],
)  # fmt: skip
def test_a_secret_url_that_is_none(stored: str, value: str, prefix: str, message: str) -> None:
    secret_url = read_secret_url(stored)
    assert secret_url is not None
    with pytest.raises(InvalidRequest) as caught:
        expand_url(secret_url, value, prefix)
    assert caught.value.message == message
    assert CANARY not in str(caught.value.hint)


@pytest.mark.parametrize("end", ["x", "{secret:s}/x", "{secret:s", "{secret:../s}"])
def test_a_url_that_is_no_secret(end: str) -> None:
    """A row with it is sent as any other, or refused for its brace."""
    url = f"https://hooks.example/{end}"
    assert read_secret_url(url) is None
    if end == "x":
        row = read_row(url, None, 1, None)
        assert (row.url, row.secret_url, row.secrets) == (url, None, [])
    else:
        with pytest.raises(InvalidRequest, match="stands only in what"):
            read_row(url, None, 1, None)


def test_what_a_secret_url_covers() -> None:
    """Only the origin of a secret URL is known: the worker checks the rest with the value."""
    assert covers("https://hooks.example/v1/", "https://hooks.example/{secret:other}?x")
    assert not covers("https://hooks.example:81/", "https://hooks.example/{secret:other}")
    assert not covers(None, "https://hooks.example/")
    assert not covers("https://hooks.example/", "https://hooks.example/{secret:a}/../x")


# ---- values


@pytest.mark.parametrize(
    ("value", "prefix"),
    [
        ("x" * 8, "https://h.example/"),
        ("a value with spaces \t and ünicode", "https://h.example/"),
        ("https://h.example/v1/12345678", "https://h.example/v1"),
        ("?key=value", "https://h.example/v1"),
        ("? no query at all", "https://h.example/v1"),
        ("x", None),
        ("-----BEGIN\nx\n", None),
        (" ", None),
        ("x" * MAX_LENGTH, "https://h.example/"),
    ],
)
def test_a_value(value: str, prefix: str | None) -> None:
    check_value("s", value, prefix)


@pytest.mark.parametrize(
    ("value", "prefix", "fault"),
    [
        ("", None, "is empty"),
        ("", "https://h.example/", "is empty"),
        ("x" * (MAX_LENGTH + 1), None, "longer than"),
        ("a\0bcdefgh", None, "NUL"),
        ("1234567", "https://h.example/", "fewer than 8"),
        ("12345678\n", "https://h.example/", "line break"),
        (f"{CANARY}\r\nX-Other: 1", "https://h.example/", "line break"),
        (f"{CANARY}\x1b", "https://h.example/", "control character"),
        (f"{CANARY}\x85", "https://h.example/", "control character"),
        (f"{CANARY} ", "https://h.example/", "white space"),
        (f"\t{CANARY}", "https://h.example/", "white space"),
        (f"https://evil.example/{CANARY}", "https://h.example/", "not within"),
        (f"https://h.example/{CANARY}", "https://h.example/v1", "not within"),
        (f"https://u:{CANARY}@h.example/", "https://h.example/", "neither a URL"),
        ("https://h.example/v1/1234567", "https://h.example/v1/", "behind its URL prefix"),
        ("https://h.example/v1/", "https://h.example/v1/", "behind its URL prefix"),
    ],
)
def test_no_value(value: str, prefix: str | None, fault: str) -> None:
    with pytest.raises(InvalidRequest, match=fault) as caught:
        check_value("s", value, prefix)
    shown = f"{caught.value.message} {caught.value.hint}"
    assert CANARY not in shown
    assert not value or value not in shown


# ---- held by the worker


def test_a_directory(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("value")
    (tmp_path / "line").write_text("value\n")
    (tmp_path / "windows").write_bytes(b"value\r\n")
    (tmp_path / "two").write_text("value\n\n")
    (tmp_path / "pem").write_text("a\nb\n")
    (tmp_path / "empty").write_text("")
    (tmp_path / "unicode").write_text("wörd", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "plain")
    directory = Directory(str(tmp_path))
    found = {name.name: directory.read(name.name) for name in tmp_path.iterdir()}
    assert found == {
        "plain": "value",
        "line": "value",
        "windows": "value",
        "two": "value\n",
        "pem": "a\nb",
        "empty": "",
        "unicode": "wörd",
        "link": "value",
    }
    assert directory.read("missing") is None
    (tmp_path / "plain").write_text("another")
    assert directory.read("link") == "another"


def test_what_a_directory_does_not_give(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "outside").write_text(CANARY)
    (inside / "latin").write_bytes(CANARY.encode() + b"\xe9")
    (inside / "huge").write_bytes(CANARY.encode() * (MAX_LENGTH // 4))
    (inside / "directory").mkdir()
    os.mkfifo(inside / "pipe")
    directory = Directory(str(inside))
    for name in ("../outside", "..", ".", "", "a/b", "/etc/passwd", "a\0b", "..\\outside"):
        with pytest.raises(InvalidRequest, match="not a valid name of a secret"):
            directory.read(name)
    for name in ("latin", "huge", "directory", "pipe"):
        with pytest.raises(InvalidRequest, match=f'the file of secret "{name}"') as caught:
            directory.read(name)
        assert CANARY not in f"{caught.value.message} {caught.value.hint}"
    with pytest.raises(OSError, match="No such file"):
        Directory(str(tmp_path / "missing"))


@pytest.fixture
def secrets_dir(tmp_path: Path) -> Path:
    path = tmp_path / "secrets"
    path.mkdir(mode=0o755)
    (path / "key").write_text("value")
    return path


def test_how_containers_mount_secrets(secrets_dir: Path) -> None:
    """The files are links to a directory that is exchanged; all may write, but for a sticky bit."""
    (secrets_dir / "key").unlink()
    (secrets_dir / "..1").mkdir(mode=0o755)
    (secrets_dir / "..1" / "key").write_text("value")
    (secrets_dir / "..data").symlink_to("..1")
    (secrets_dir / "key").symlink_to("..data/key")
    secrets_dir.chmod(0o1777)
    assert Directory(str(secrets_dir)).read("key") == "value"
    # and by a link to the directory itself
    (secrets_dir.parent / "link").symlink_to("secrets")
    assert Directory(str(secrets_dir.parent / "link")).read("key") == "value"


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
def test_a_directory_that_others_may_write(secrets_dir: Path, mode: int) -> None:
    for of in (secrets_dir, secrets_dir.parent):
        before = of.stat().st_mode
        directory = Directory(str(secrets_dir))
        of.chmod(mode)
        with pytest.raises(UnsafeFile, match=f"chmod go-w {of}$"):
            Directory(str(secrets_dir))
        # The file was changed under a worker that runs: the error for requesters names no path.
        with pytest.raises(InvalidRequest, match="not used, since others may write it") as caught:
            directory.read("key")
        assert str(of) not in caught.value.message
        of.chmod(before)
        assert directory.read("key") == "value"


@pytest.mark.parametrize("mode", [0o666, 0o660, 0o602])
def test_a_file_that_others_may_write(secrets_dir: Path, mode: int) -> None:
    (secrets_dir / "key").chmod(mode)
    with pytest.raises(UnsafeFile, match=f"chmod go-w {secrets_dir}/key$"):
        Directory(str(secrets_dir))
    # where a link leads to it, too
    (secrets_dir / "key").rename(secrets_dir.parent / "elsewhere")
    (secrets_dir / "key").symlink_to("../elsewhere")
    with pytest.raises(UnsafeFile, match=f"chmod go-w {secrets_dir.parent}/elsewhere$"):
        Directory(str(secrets_dir))


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")
def test_a_file_of_another_user(secrets_dir: Path) -> None:
    key = secrets_dir / "key"
    os.chown(key, 65534, 65534)
    with pytest.raises(UnsafeFile, match=f"belongs to user 65534.*chown.* 0 {key}$"):
        Directory(str(secrets_dir))
    # A link of somebody else's, in a directory that is like /tmp, to a file that is well.
    secrets_dir.chmod(0o1777)
    key.unlink()
    (secrets_dir.parent / "other").write_text("value")
    key.symlink_to(secrets_dir.parent / "other")
    assert Directory(str(secrets_dir)).read("key") == "value"
    os.lchown(key, 65534, 65534)
    with pytest.raises(UnsafeFile, match="belongs to user 65534"):
        Directory(str(secrets_dir))
    # The whole directory may be another user's: then its files are.
    secrets_dir.chmod(0o755)
    key.unlink()
    key.write_text("value")
    for path in (secrets_dir, key):
        os.chown(path, 65534, 65534)
    assert Directory(str(secrets_dir)).read("key") == "value"


def test_links_without_end(secrets_dir: Path) -> None:
    (secrets_dir / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        Directory(str(secrets_dir))


def test_the_line_break() -> None:
    assert [
        without_line_break(text) for text in ("a", "a\n", "a\r\n", "a\n\n", "\n", "a\r", "")
    ] == [*("a", "a", "a", "a\n", "", "a\r", "")]
