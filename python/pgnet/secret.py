"""Secrets: where one may go, how it gets into a request, and how it is kept out of an answer.

A secret has a name, a value and a URL prefix. Requests hold the name only, in one of two forms:

- a header value ``{"secret": name}``, with ``"prefix": "Bearer "`` before it if need be;
- a URL ``https://host/{secret:name}?query``, as net.secret_url gives it. The value is then a whole
  URL, or a query that begins with ``?`` and belongs to the URL that the prefix is.

Worker and caller's check share this module; it imports the standard library only, and no error
that it raises holds a value.
"""

from __future__ import annotations

import base64
import binascii
import bisect
import contextlib
import errno
import functools
import html.entities
import logging
import os
import re
import shlex
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from urllib.parse import parse_qsl, unquote, unquote_to_bytes

from pgnet.request import InvalidRequest, canonical_url, split_secret_url

log = logging.getLogger("pgnet.secret")

# What is shorter could not be told from other text, and so not be masked.
MIN_LENGTH = 8
MAX_LENGTH = 65_536
MASK = "***"
# Steps that the search through one text may take: a second or two.
_MOST_STEPS = 1_000_000
# Escapes that are undone in one text, which takes about as long.
_MOST_ESCAPES = 3_000_000
# So often may one escape stand within another.
_MOST_ROUNDS = 8
# Parts of a URL that are looked for by themselves: each costs a search through every answer.
_MOST_PARTS = 50
# How often a segment of a path may be percent-encoded.
_LAYERS = 5
# Of a file's mode: its group and everybody may write.
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
# Links that lead to the next one: as many as the kernel follows.
_MOST_LINKS = 40

_is_name = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}").fullmatch
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff]")

HINT_NAME = "A name is of 1 to 63 letters, digits, and - _ . behind the first one."
_HINT_REFERENCE = 'For example {"secret": "stripe", "prefix": "Bearer "}.'
_HINT_PREFIX = "Give scheme, host and perhaps a path, such as https://api.example.com/v1/."


def is_name(text: object) -> bool:
    """Whether this is the name of a secret."""
    return type(text) is str and _is_name(text) is not None


# --- Where a secret may go ------------------------------------------------------------------------


def canonical_prefix(text: str) -> str:
    """Return a URL prefix in its canonical form.

    Raises InvalidRequest for what is no http or https URL, and for one with user, query, fragment,
    dot segments, or encoded slashes.
    """
    try:
        prefix = canonical_url(text)
    except InvalidRequest:
        # Its words show what was given, which may be the value in the wrong place.
        raise InvalidRequest("the URL prefix is no http or https URL", _HINT_PREFIX) from None
    if "?" in prefix or "#" in prefix:
        raise InvalidRequest("a URL prefix has neither query nor fragment", _HINT_PREFIX)
    if not all(map(_is_plain, _segments(prefix))):
        raise InvalidRequest(
            "a URL prefix has no dot segments and no encoded slashes", _HINT_PREFIX
        )
    return prefix


def within(prefix: str, url: str) -> bool:
    """Whether a canonical URL is the canonical prefix itself, or below it.

    Scheme, host and port are the same, and so is each segment of the prefix's path. Where the
    prefix has a path, no server's reading of the URL leads out of it again: a URL with dot
    segments or encoded slashes, however often encoded, is not within. An origin covers all.
    """
    try:
        if canonical_url(url) != url or canonical_prefix(prefix) != prefix:
            return False
    except InvalidRequest:
        return False
    if origin(prefix) != origin(url):
        return False
    above = _segments(prefix)
    if above and not above[-1]:
        above.pop()
    path = _segments(url)
    if path[: len(above)] != above:
        return False
    return not above or all(map(_is_plain, path[len(above) :]))


def covers(prefix: str | None, url: str) -> bool:
    """Whether a secret with this prefix may go into a request to this URL, as it is stored.

    Of a URL that is a secret itself only the origin is known: ``expand_url`` looks at the rest.
    """
    if prefix is None:
        return False
    parts = split_secret_url(url)
    return within(prefix, url) if parts is None else origin(prefix) == parts[0]


def origin(url: str) -> str:
    """Return the scheme, host and port of a canonical URL."""
    return url[: _path_begin(url)]


def _path_begin(url: str) -> int:
    found = re.compile(r"[/?#]").search(url, url.find("//") + 2)
    return len(url) if found is None else found.start()


def _segments(url: str) -> list[str]:
    """The segments of a URL's path; none for the root."""
    path = re.split(r"[?#]", url[_path_begin(url) :], maxsplit=1)[0]
    return [] if path in ("", "/") else path[1:].split("/")


def _is_plain(segment: str) -> bool:
    """Whether every server takes this for one segment of a path that leads downwards."""
    if "%" not in segment:
        return not _leads_elsewhere(segment)
    text, decoded = "", segment
    for _layer in range(_LAYERS):
        if decoded == text:
            break
        text = decoded
        try:
            decoded = unquote_to_bytes(text).decode()
        except UnicodeDecodeError:
            return False  # overlong forms of dots and slashes among them
    if decoded != text:
        return False
    # Some servers know further spellings, and lose what they cannot print.
    text = unicodedata.normalize("NFKC", text)
    if re.search(r"[/\\]|%[uU]|[\x00-\x1f\x7f-\x9f\u2028\u2029]", text):
        return False
    return not _leads_elsewhere("".join([c for c in text if c.isprintable() and c != " "]))


def _leads_elsewhere(segment: str) -> bool:
    """Whether a server may take a segment for a dot segment.

    Some cut it at a semicolon, others at whatever they cannot read: nothing that begins with two
    dots is worth the risk.
    """
    return segment.startswith("..") or segment.partition(";")[0] == "."


# --- How it gets into a request -------------------------------------------------------------------


def reference_name(reference: Mapping[str, object]) -> str:
    """Check a header value ``{"secret": name}`` and return the name.

    Raises InvalidRequest, without the value of anything.
    """
    name, _prefix = _reference(reference)
    return name


def _reference(reference: Mapping[str, object]) -> tuple[str, str]:
    name, prefix = reference.get("secret"), reference.get("prefix")
    if not isinstance(name, str) or not is_name(name):
        raise InvalidRequest("a header's value names no secret", HINT_NAME)
    if prefix is None:
        prefix = ""
    if type(prefix) is not str or _CONTROL.search(prefix):
        raise InvalidRequest(
            f'the "prefix" of secret "{name}" must be a string of printable characters',
            _HINT_REFERENCE,
        )
    if not reference.keys() <= {"secret", "prefix"}:
        raise InvalidRequest(
            f'a header value with secret "{name}" knows "secret" and "prefix" only',
            _HINT_REFERENCE,
        )
    return name, prefix


def header_value(reference: Mapping[str, object], value: str) -> str:
    """Return what is sent for a header value ``{"secret": name}``.

    Raises InvalidRequest for a reference that is none, and a value that no header can hold.
    """
    name, prefix = _reference(reference)
    if _CONTROL.search(value):
        raise InvalidRequest(f'secret "{name}" holds a character that no header can have')
    return (prefix + value).strip(" \t")


def expand_url(stored: str, value: str, prefix: str) -> str:
    """Return the URL that a request with a secret URL is sent to.

    stored: as net.secret_url gives it, with a query or not. value: a URL within the prefix, or a
    query that begins with ``?`` and belongs to the prefix.

    Raises InvalidRequest.
    """
    parts = split_secret_url(stored)
    if parts is None:
        raise InvalidRequest("the URL refers to no secret")
    stored_origin, name, query = parts
    if origin(prefix) != stored_origin:
        raise InvalidRequest(f'secret "{name}" belongs to another host by now')
    url = _whole_url(name, value, prefix)
    if query:
        url += ("&" if "?" in url else "?") + query[1:]
        if "#" in query or not within(prefix, url):
            raise InvalidRequest(f'the query behind secret "{name}" is none')
    return url


def _whole_url(name: str, value: str, prefix: str) -> str:
    try:
        url = canonical_url(prefix + value if value.startswith("?") else value)
    except InvalidRequest:
        raise InvalidRequest(
            f'secret "{name}" holds neither a URL nor a query that begins with "?"'
        ) from None
    if "#" in url:
        raise InvalidRequest(f'the URL that secret "{name}" holds has a fragment')
    if not within(prefix, url):
        raise InvalidRequest(f'the URL that secret "{name}" holds is not within its URL prefix')
    return url


def _is_url(value: str) -> bool:
    return value[:8].lower().startswith(("http://", "https://"))


def check_value(name: str, value: str, prefix: str | None) -> None:
    """Check the value of a secret.

    prefix: where it may go, canonical; None for one that no request can name, only
    net.configure_host.

    Raises InvalidRequest.
    """
    if not value:
        raise InvalidRequest(f'the value of secret "{name}" is empty')
    if len(value) > MAX_LENGTH:
        raise InvalidRequest(f'the value of secret "{name}" is longer than {MAX_LENGTH} characters')
    if "\0" in value:
        raise InvalidRequest(f'the value of secret "{name}" has a NUL character')
    if prefix is None:
        return
    if len(value) < MIN_LENGTH:
        raise InvalidRequest(
            f'the value of secret "{name}" has fewer than {MIN_LENGTH} characters',
            "It could not be found in an answer that repeats it, and so not be masked there.",
        )
    if re.search(r"[\r\n]", value):
        raise InvalidRequest(
            f'the value of secret "{name}" has a line break',
            "No header can hold it. Without a URL prefix it is one for net.configure_host, "
            "such as a key in PEM.",
        )
    if _CONTROL.search(value):
        raise InvalidRequest(
            f'the value of secret "{name}" has a control character, which no header can hold'
        )
    if value != value.strip():
        raise InvalidRequest(f'the value of secret "{name}" begins or ends with white space')
    if _is_url(value) and len(_behind_prefix(_whole_url(name, value, prefix), prefix)) < MIN_LENGTH:
        raise InvalidRequest(
            f'the URL that secret "{name}" holds has fewer than {MIN_LENGTH} characters behind its '
            "URL prefix",
            "The prefix is no secret, and what is behind it could not be masked in an answer.",
        )


class UnsafeFile(Exception):
    """What is wrong with who may write a file, and the command that mends it."""


class Directory:
    """Secrets that a worker holds itself: a file each, whose name is the secret's.

    Whoever can write one has requests carry what it likes. So nobody but the owner of the
    directory, and root, may: not the files, nor any directory or link on the way to them. What is
    mounted read-only nobody writes, and in a directory with the sticky bit, as containers mount
    secrets in, one can add a file, but not in the name of another user.
    """

    def __init__(self, path: str) -> None:
        """Path of the directory.

        Raises OSError where it is none that can be read, UnsafeFile where others may write it, or
        one of its files.
        """
        self._path = path
        names = os.listdir(path)
        self._refuse_foreign(path)
        for name in filter(is_name, names):
            with contextlib.suppress(FileNotFoundError):  # a link to nowhere
                self._refuse_foreign(os.path.join(path, name))

    def read(self, name: str) -> str | None:
        """Return a value, without the one line break that may end its file; None without a file.

        The file is read each time: what is put in its place counts at once.

        Raises InvalidRequest for a file that cannot be read or is no text.
        """
        if not is_name(name):
            raise InvalidRequest("this is no name of a secret", HINT_NAME)
        path = os.path.join(self._path, name)
        try:
            self._refuse_foreign(path)
            content = self._content(path)
        except FileNotFoundError:
            return None
        except UnsafeFile as fault:
            log.warning("the file of secret %s is not used: %s", name, fault)
            raise InvalidRequest(
                f'the file of secret "{name}" is not used, since others may write it: '
                "the worker's log says what to do"
            ) from None
        except OSError as error:
            said = os.strerror(error.errno or errno.EIO)
            raise InvalidRequest(f'the file of secret "{name}" cannot be read: {said}') from None
        try:
            value = content.decode()
        except UnicodeDecodeError:
            # Its own words show the bytes at fault.
            raise InvalidRequest(f'the file of secret "{name}" is not in UTF-8') from None
        return without_line_break(value)

    def _refuse_foreign(self, path: str) -> None:
        """Walk to a file or directory, as the kernel does. Raises OSError, UnsafeFile."""
        owner = os.stat(self._path).st_uid
        trusted = {0, owner, os.geteuid()}
        walk = os.path.join(os.getcwd(), path).split("/")[::-1]
        place, shared, links = "/", False, 0
        while walk:
            part = walk.pop()
            if part in ("", "."):
                continue
            entry = os.path.join(place, part)
            if part == "..":
                place = os.path.dirname(place)
                continue
            status = os.lstat(entry)
            is_link, is_directory = stat.S_ISLNK(status.st_mode), stat.S_ISDIR(status.st_mode)
            # Whoever may not write the directory cannot have put a link into it.
            if status.st_uid not in trusted and (shared or not is_link):
                raise UnsafeFile(
                    f"{entry} belongs to user {status.st_uid}, and the secrets to user {owner}: "
                    f"chown --no-dereference {owner} {shlex.quote(entry)}"
                )
            if is_link:
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                target = os.readlink(entry)
                walk += target.split("/")[::-1]
                place = "/" if target.startswith("/") else place
                continue
            writable = bool(status.st_mode & _WRITABLE_BY_OTHERS)
            shared = is_directory and writable
            if (
                writable
                and not (is_directory and status.st_mode & stat.S_ISVTX)
                and not os.statvfs(entry).f_flag & os.ST_RDONLY
            ):
                raise UnsafeFile(
                    f"others than its owner may write {entry}: chmod go-w {shlex.quote(entry)}"
                )
            place = entry

    @staticmethod
    def _content(path: str) -> bytes:
        # Links are followed: it is with them that mounted secrets are rotated.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "")
            if status.st_size > 4 * MAX_LENGTH:
                raise OSError(errno.EFBIG, "")
            return file.read(4 * MAX_LENGTH)


def without_line_break(text: str) -> str:
    """Return a text without the one line break that editors and echo end it with."""
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


# --- How it is kept out of an answer --------------------------------------------------------------


def sensitive(value: str, prefix: str | None) -> list[str]:
    """Return what a Mask has to look for: the value, and those parts of it that tell it.

    Of a URL these are what is behind the prefix, its segments and parameters; of user and password
    in base64, as Basic authentication has them, and in a proxy's URL, the password; of a scheme and
    a token (``Bearer …``, RFC 9110, section 11.4) the token.
    """
    parts = {value}
    with_scheme = re.fullmatch(r"[A-Za-z][A-Za-z0-9-]* +([!-~]+)", value)
    token = value if with_scheme is None else with_scheme[1]
    parts.add(token)
    if prefix is not None and (value.startswith("?") or _is_url(value)):
        try:
            url = _whole_url("", value, prefix)
        except InvalidRequest:
            url = ""
        if url:
            behind = _behind_prefix(url, prefix)
            path, _, query = behind.partition("?")
            parts |= {url, url[_path_begin(url) :], behind}
            parts |= {query, *path.split("/"), *(unquote(part) for part in path.split("/"))}
            parts |= {pair.partition("=")[2] for pair in query.split("&")}
            parts |= {text for _key, text in parse_qsl(query, separator="&")}
    credentials = _credentials(token)
    if credentials:
        parts |= {credentials, credentials.partition(":")[2]}
    parts = {part for part in parts - {value} if len(part) >= MIN_LENGTH}
    return sorted([value, *sorted(parts, key=len)[-_MOST_PARTS:]])


def _behind_prefix(url: str, prefix: str) -> str:
    return url[len(prefix.rstrip("/")) :].lstrip("/")


def _credentials(value: str) -> str | None:
    """The ``user:password`` that a value is another form of; None where it is none."""
    in_url = re.fullmatch(r"(?s:https?://([^/@]+:[^/]*)@[^/@]+/?)", value)
    if in_url is not None:
        return unquote(in_url[1])
    try:
        text = base64.b64decode(value, validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    return text if ":" in text and text.isprintable() else None


class Mask:
    """Replaces values wherever they occur in what a server sent, in each of their usual forms.

    As they are; percent-encoded, once or more often; escaped as in JSON, and JSON in JSON; escaped
    as in HTML; in base64, alone or within other text; in hexadecimal; in UTF-16. Then again in what
    is left when every escape is undone and white space is taken out, in upper and lower case: so
    they are found where single characters are escaped, each in another way, and broken into lines.
    What a server turns into anything else (encrypted, reversed, in pieces) is not found. A text
    that is made to keep the search busy is replaced as a whole.
    """

    __slots__ = ("_bare", "_values", "longest")

    def __init__(self, values: Iterable[str]) -> None:
        found = {value for value in values if value}
        # How many characters a value may have in an answer: of one, no usual form has more than 16.
        self.longest = 16 * max(map(len, found), default=0)
        # Many servers take the UTF-8 of a header for Latin-1 before they do anything with it.
        found |= {value.encode().decode("latin-1") for value in found if not value.isascii()}
        self._values = [_Masked(value) for value in found]
        self._bare: dict[str, bytes] | None = None

    def text(self, text: str) -> str:
        """Return the text with *** in place of the values."""
        search = _Search(text)
        try:
            spans = [span for value in self._values for span in value.spans(search)]
            text = _cut(text, spans) if spans else text
            return self._bare_text(text) if len(text) >= MIN_LENGTH else text
        except _TooMuch:
            return MASK

    def _bare_text(self, text: str) -> str:
        """Return the text with *** in place of what is a value when all escapes are undone."""
        if self._bare is None:
            forms = {bare for value in self._values for bare in value.bare_forms()}
            self._bare = {form: _anchor(form.lower()).encode("latin-1") for form in forms}
        encoded = text.encode("utf-8", "surrogatepass")
        if not self._bare or not _is_suspicious(encoded, self._bare):
            return text
        # As bytes, whose lower case is as long.
        plain: bool = text.isascii()
        data = text if plain else encoded.decode("latin-1")
        masked = data
        for quoted_printable in (False, True):
            if quoted_printable and _QUOTED_PRINTABLE.search(masked) is None:
                break
            found = _standing(self._bare, _bare(masked, quoted_printable))
            if not found:
                continue
            masked = _cut(masked, _bare_spans(masked, found, quoted_printable))
            if _standing(found, _bare(masked, quoted_printable)):
                return MASK
        if masked is data:
            return text
        return masked if plain else masked.encode("latin-1").decode("utf-8", "replace")

    def bytes(self, data: bytes) -> bytes:
        """Return the bytes with *** in place of the values, in UTF-8, Latin-1 or UTF-16."""
        if not self._values:
            return data
        text = data.decode("latin-1")
        masked = self.text(text)
        return data if masked is text else masked.encode("latin-1")


class _TooMuch(Exception):
    """The search takes longer than any text should cost."""


class _Search:
    """A search through one text, which does not take for ever."""

    __slots__ = ("_left", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._left = _MOST_STEPS

    def spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise _TooMuch

    def places(self, part: str) -> Iterator[int]:
        """Where a part stands."""
        place = self.text.find(part)
        while place >= 0:
            self.spend(1)
            yield place
            place = self.text.find(part, place + 1)


def _cut(text: str, spans: list[tuple[int, int]]) -> str:
    """The text with one mask for each run of spans that overlap or touch."""
    pieces, end = [], 0
    last = -1
    for start, stop in sorted(spans):
        if start > last:
            pieces += [text[end:start], MASK]
        last = max(last, stop)
        end = last
    return "".join([*pieces, text[end:]])


class _Masked:
    """One value: forms that are searched for whole, and others that mix character by character.

    The latter are found from the longest run of letters and digits, which no usual encoding
    touches: from there both ways as far as each next character stands there in one of its forms.
    So an answer that was made to keep the search busy costs little more than any other.
    """

    __slots__ = ("_anchor", "_pieces", "_value", "_whole")

    def __init__(self, value: str) -> None:
        self._value = value
        self._anchor = _anchor(value)
        # What is shorter may be part of anything.
        self._whole = {form for form in _whole_forms(value) if len(form) >= MIN_LENGTH}
        self._pieces: tuple[list[_Piece], list[_Piece]] | None = None

    def bare_forms(self) -> Iterator[str]:
        """The value as it stands in a text whose escapes are undone."""
        data = self._value.encode("utf-8", "surrogatepass").decode("latin-1")
        for form in (data, *_base64_forms(self._value), data.encode("latin-1").hex()):
            bare = _bare(form, False)
            if len(bare) >= MIN_LENGTH:
                yield bare.lower() if _is_distinct(bare) else bare

    def spans(self, search: _Search) -> Iterator[tuple[int, int]]:
        """Where the value stands in a text; spans may overlap."""
        for form in self._whole:
            for start in search.places(form):
                yield start, start + len(form)
        if self._anchor:
            if self._anchor not in search.text:
                return
            pivots = {self._anchor}
        else:
            pivots = _forms(self._value[0]).all
        if self._pieces is None:
            # Late: hardly any answer gets here.
            begin = self._value.find(self._anchor)
            end = begin + (len(self._anchor) or 1)
            self._pieces = _pieces_of(self._value[:begin])[::-1], _pieces_of(self._value[end:])
        for pivot in pivots:
            for place in search.places(pivot):
                span = self._around(search, place, place + len(pivot))
                if span is not None:
                    yield span

    def _around(self, search: _Search, start: int, end: int) -> tuple[int, int] | None:
        """The whole value around its part that stands there."""
        assert self._pieces is not None
        before, after = self._pieces
        starts, ends = {start}, {end}
        for piece in before:
            starts = piece.starts(search, starts)
            if not starts:
                return None
        for piece in after:
            ends = piece.ends(search, ends)
            if not ends:
                return None
        return min(starts), max(ends)


def _anchor(value: str) -> str:
    """The longest run of letters and digits."""
    runs: list[str] = re.findall(r"[A-Za-z0-9]*", value)
    return max(runs, key=len)


def _whole_forms(value: str) -> Iterator[str]:
    """The forms in which each character is written in the same way, or none for itself."""
    data = value.encode("utf-8", "surrogatepass")
    yield from _base64_forms(value)
    for digits in (data.hex(), data.hex().upper()):
        pairs = re.findall("..", digits)
        yield digits
        yield "".join([f"%{pair}" for pair in pairs])
        if value.isascii():
            yield "".join([f"\\u00{pair}" for pair in pairs])
            yield "".join([f"\\x{pair}" for pair in pairs])
            yield "".join([f"&#x{pair};" for pair in pairs])
    yield "".join([f"&#{ord(character)};" for character in value])
    for encoding in ("utf-16-le", "utf-16-be"):
        yield value.encode(encoding, "surrogatepass").decode("latin-1")


def _base64_forms(value: str) -> Iterator[str]:
    data = value.encode("utf-8", "surrogatepass")
    for alphabet in (None, b"-_"):
        yield base64.b64encode(data, alphabet).decode().rstrip("=")
        # Within other text: what its neighbours have no part in.
        for offset in range(3):
            encoded = base64.b64encode(bytes(offset) + data, alphabet).decode()
            yield encoded[(offset * 8 + 5) // 6 : (offset + len(data)) * 8 // 6]


# What encoders leave as it is.
_LITERAL = re.compile(r"[A-Za-z0-9_.-]+|(?s:.)")


class _Piece:
    """A part of a value in all the ways in which it may stand in a text."""

    __slots__ = ("_by_first", "_by_last", "all")

    def __init__(self, forms: Iterable[str]) -> None:
        self.all = set(forms)
        self._by_first: dict[str, list[str]] = {}
        self._by_last: dict[str, list[str]] = {}
        for form in self.all:
            self._by_first.setdefault(form[0], []).append(form)
            self._by_last.setdefault(form[-1], []).append(form)

    def ends(self, search: _Search, starts: set[int]) -> set[int]:
        """Where it ends that begins at one of these places."""
        text = search.text
        search.spend(len(starts))
        return {
            start + len(form)
            for start in starts
            for form in self._by_first.get(text[start : start + 1], ())
            if text.startswith(form, start)
        }

    def starts(self, search: _Search, ends: set[int]) -> set[int]:
        """Where it begins that ends at one of these places."""
        text = search.text
        search.spend(len(ends))
        return {
            end - len(form)
            for end in ends
            if end
            for form in self._by_last.get(text[end - 1], ())
            if len(form) <= end and text.startswith(form, end - len(form))
        }


def _pieces_of(text: str) -> list[_Piece]:
    return [
        _forms(part) if len(part) == 1 else _Piece([part]) for part in re.findall(_LITERAL, text)
    ]


@functools.lru_cache(maxsize=512)
def _forms(character: str) -> _Piece:
    return _Piece(_character_forms(character))


def _character_forms(character: str) -> Iterator[str]:
    yield character
    if character.isalnum() and character.isascii():
        return
    data = character.encode("utf-8", "surrogatepass")
    yield data.decode("latin-1")
    for octets in ([f"{byte:02X}" for byte in data], [f"{byte:02x}" for byte in data]):
        for layers in range(4):
            yield "".join([f"%{'25' * layers}{octet}" for octet in octets])
    if character == " ":
        yield "+"
    units = character.encode("utf-16-be", "surrogatepass").hex()
    escapes = [f"u{units[i : i + 4]}" for i in range(0, len(units), 4)]
    named = {"\t": "t", '"': '"', "/": "/", "'": "'"}.get(character)
    # JSON in JSON doubles each backslash; before a quote there is one more each time.
    for count in (1, 2, 4, 8):
        for written in (escapes, [f"u{escape[1:].upper()}" for escape in escapes]):
            yield "".join(["\\" * count + escape for escape in written])
        if ord(character) < 256:
            yield "\\" * count + f"x{ord(character):02x}"
        if character == "\\":
            yield "\\" * count
    if named is not None:
        for count in range(1, 9):
            yield "\\" * count + named
    number = ord(character)
    entities = {f"#{number};", f"#0{number};", f"#x{number:x};", f"#x{number:X};", f"#X{number:X};"}
    entities |= {html.escape(character)[1:], _ENTITIES.get(character, "")} - {""}
    for entity in entities:
        for layers in range(3):
            form = f"&{'amp;' * layers}{entity}"
            yield form
            if named is not None:
                for count in range(1, 4):
                    yield "\\" * count + form


_ENTITIES = {"'": "apos;", "\xa0": "nbsp;"}


# --- A text without its escapes -------------------------------------------------------------------

# Of ASCII only: what is beyond is found in its usual forms. A run of backslashes is one by then.
_ESCAPE = re.compile(
    r"%(?:25)*(?:[uU]00)?([2-7][0-9A-Fa-f]|0[0-9A-Da-d])"
    r"|\\(?:[uU](?:0000)?00|[uU]\{0{0,6}|[xX]\{?)([2-7][0-9A-Fa-f]|0[0-9A-Da-d])\}?"
    r"|\\([01][0-7][0-7])"
    r"|\\([^0-9A-Za-z])"
    r"|\\[bfnrtv]"
    r"|&(?:amp;)*#0{0,9}([1-9][0-9]{1,2})(?![0-9]);?"
    r"|&(?:amp;)*#[xX]0{0,9}([1-9A-Fa-f]|[2-7][0-9A-Fa-f])(?![0-9A-Fa-f]);?"
    r"|&(?:amp;)*([A-Za-z]{2,10});"
)
# What there is in a text where a letter or digit is escaped, or white space or what begins an
# escape. Few texts have any of it.
_ALNUM = rb"(?:3[0-9]|[46][1-9A-Fa-f]|[57][0-9Aa])"
_HINT = re.compile(
    rb"[%\\#&](?:"
    rb"(?<=%)(?:25)*(?:(?:[uU]00)?" + _ALNUM + rb"|0[9ADad]|5[Cc](?:[uU]00|[xX])|23[0-9xX])"
    rb"|(?<=\\)(?:[uU](?:0000)?00|[uU]\{0{0,6}|[xX]\{?)(?:" + _ALNUM + rb"|2[35]|5[Cc]|0[9ADad])"
    rb"|(?<=\\)[01][0-7][0-7]"
    rb"|(?<=#)0{0,9}(?:9|1[03]|3[57]|4[89]|5[0-7]|6[5-9]|[78][0-9]|9[0257-9]|1[01][0-9]|12[0-2])"
    rb"(?![0-9])"
    rb"|(?<=#)[xX]0{0,9}(?:" + _ALNUM + rb"|2[35]|5[Cc]|[9ADad])(?![0-9A-Fa-f])"
    rb"|(?<=&)(?:amp;)*(?:percnt|bsol|num|nbsp|Tab|NewLine);)"
)
_QUOTED_ALNUM = re.compile(rb"=(?:[ \t]*(?:\\r|\r)?(?:\\n|\n)|3[0-9]|[46][1-9A-F]|[57][0-9A])")
_LOWER = bytes(range(256)).lower()
_BACKSLASHES = re.compile(r"\\{2,}")
# str.split takes the same for white space.
_SPACES = re.compile(r"\s+")
_NULS = re.compile(r"\0+")
_QUOTED_PRINTABLE = re.compile(r"=(?:[ \t]*(?:\\r|\r)?(?:\\n|\n)|([2-7][0-9A-F]))")


def _is_suspicious(data: bytes, forms: Mapping[str, bytes]) -> bool:
    """Whether a bare text may have one of the forms, told soon for most texts.

    forms: and the longest run of letters and digits of each. Where none of these is escaped, it
    stands there when white space is taken out.
    """
    data = data.replace(b"\0", b"")  # as in UTF-16
    if _HINT.search(data) is not None or _has_any(data, forms.values()):
        return True
    if _QUOTED_ALNUM.search(data) is None:
        return False
    unquoted = _QUOTED_ALNUM.sub(lambda found: _unquoted_bytes(found[0]), data)
    return _has_any(unquoted, forms.values())


def _has_any(data: bytes, anchors: Iterable[bytes]) -> bool:
    if b"\\" in data:
        data = data.replace(b"\\n", b"").replace(b"\\r", b"").replace(b"\\t", b"")
    if b"%20" in data:
        data = data.replace(b"%20", b"")
    data = data.translate(_LOWER, b" \t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\\")
    return any(anchor in data for anchor in anchors)


def _unquoted_bytes(found: bytes) -> bytes:
    return bytes([int(found[1:], 16)]) if found[1:2].isdigit() else b""


def _bare(text: str, quoted_printable: bool) -> str:
    """Return a text of bytes with its escapes undone, and without white space.

    Raises _TooMuch.
    """
    text = text.replace("\0", "")
    if quoted_printable:
        text = _QUOTED_PRINTABLE.sub(_unquoted, text)
    left = _MOST_ESCAPES
    for _round in range(_MOST_ROUNDS):
        before = text
        if "\\\\" in text:
            text = _BACKSLASHES.sub(r"\\", text)
        text, count = _ESCAPE.subn(_undone, text)
        left -= count
        if left < 0:
            raise _TooMuch
        text = "".join(text.split())
        if text == before:
            break
    return text


def _is_distinct(form: str) -> bool:
    """Whether it is hardly a word, which another case would make of a heading or a name."""
    return len(form) >= 16 or re.search("[0-9]", form) is not None


def _standing(forms: Iterable[str], bare: str) -> list[str]:
    """The forms that stand in a bare text; distinct ones, in lower case, in any case."""
    lower = bare.lower()
    return [form for form in forms if form in (lower if _is_distinct(form) else bare)]


def _bare_spans(text: str, forms: Iterable[str], quoted_printable: bool) -> list[tuple[int, int]]:
    """Where the forms, which its bare text has, stand in a text.

    The same steps again, and each remembers where its characters come from.

    Raises _TooMuch.
    """
    views = [_View(text)]
    views.append(views[0].without(_NULS, lambda _run: ""))
    if quoted_printable:
        views.append(views[-1].without(_QUOTED_PRINTABLE, _unquoted))
    for _round in range(_MOST_ROUNDS):
        before = views[-1].text
        views.append(views[-1].without(_BACKSLASHES, lambda _run: "\\"))
        views.append(views[-1].without(_ESCAPE, _undone))
        views.append(views[-1].without(_SPACES, lambda _run: ""))
        if views[-1].text == before:
            break
    bare = views[-1].text
    folded, exact = _Search(bare.lower()), _Search(bare)
    spans = [
        (at, at + len(form))
        for form in forms
        for at in (folded if _is_distinct(form) else exact).places(form)
    ]
    for view in reversed(views[1:]):
        spans = [(view.begin(start), view.end(stop)) for start, stop in spans]
    return spans


class _View:
    """A text in which something was replaced, and where its characters were before.

    text: as it is now.
    """

    __slots__ = ("_ends", "_places", "_sources", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        # Behind each replacement: its place now, and before; and where the long ones ended.
        self._places = [0]
        self._sources = [0]
        self._ends: dict[int, int] = {}

    def without(self, pattern: re.Pattern[str], replace: Callable[[re.Match[str]], str]) -> _View:
        """Return the view with everything replaced that a pattern matches."""
        pieces, end, length = [], 0, 0
        view = _View("")
        for found in pattern.finditer(self.text):
            start, stop = found.span()
            new = replace(found)
            pieces += [self.text[end:start], new]
            length += start - end + len(new)
            end = stop
            view._places.append(length)
            view._sources.append(stop)
            if new:
                view._ends[start] = stop
            if len(pieces) > 2 * _MOST_ESCAPES:
                raise _TooMuch
        view.text = "".join([*pieces, self.text[end:]])
        return view

    def begin(self, place: int) -> int:
        """Where the character at a place began before."""
        at = bisect.bisect_right(self._places, place) - 1
        return self._sources[at] + place - self._places[at]

    def end(self, place: int) -> int:
        """Where the character before a place ended before."""
        last = self.begin(place - 1)
        return self._ends.get(last, last + 1)


def _undone(escape: re.Match[str]) -> str:
    return _character(escape[0])


def _unquoted(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 16)) if escape[1] else ""


@functools.lru_cache(maxsize=4096)
def _character(escape: str) -> str:
    """What an escape stands for; nothing for white space."""
    found = _ESCAPE.fullmatch(escape)
    assert found is not None
    percent, code, octal, itself, decimal, hexadecimal, name = found.groups()
    if itself is not None:
        return itself
    if name is not None:
        return _NAMED.get(name, escape)
    digits = percent or code or hexadecimal
    number = int(digits, 16) if digits else int(octal, 8) if octal else int(decimal or 0)
    if number <= 0x20:
        return ""
    return chr(number) if number < 0x7F else escape


_NAMED = {
    name.removesuffix(";"): character
    for name, character in html.entities.html5.items()
    if name.endswith(";") and len(character) == 1 and "!" <= character <= "~"
} | {"nbsp": "", "Tab": "", "NewLine": ""}
