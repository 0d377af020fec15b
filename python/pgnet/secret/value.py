"""The value of a secret: what it may be, how it gets into a request, what of it must not be seen.

A secret has a name, a value and a URL prefix. A caller's request holds the name only (see
request/secret_reference.py). The worker puts the value in: into a header with `header_value`, or,
where the secret is the URL, with `expand_url`. `sensitive` lists what a Mask has to find in the
answer. No error that is raised here holds a value.
"""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import parse_qsl, unquote

from pgnet.request.errors import InvalidRequest
from pgnet.request.prefix import origin, path_begin, within
from pgnet.request.secret_reference import ILLEGAL_IN_VALUE, Reference, SecretUrl
from pgnet.request.url import canonical_url

# In characters. A shorter value could not be told from other text, and so not be masked.
MIN_LENGTH = 8
MAX_LENGTH = 65_536
# Parts of a value that are looked for by themselves: each costs a search through the answer.
_MOST_PARTS = 50


def header_value(reference: Reference, value: str) -> str:
    """Return the text that is sent for a reference to a secret with this value.

    Raises InvalidRequest for a value that no header can hold.
    """
    if re.search(ILLEGAL_IN_VALUE, value):
        raise InvalidRequest(f'secret "{reference.name}" holds a character that no header can have')
    return (reference.prefix + value).strip(" \t")


def expand_url(secret_url: SecretUrl, value: str, prefix: str) -> str:
    """Return the URL that a request with a secret URL is sent to.

    value: a URL within the prefix, or a query that begins with ``?`` and belongs to the prefix.

    Raises InvalidRequest.
    """
    name, query = secret_url.name, secret_url.query
    if origin(prefix) != secret_url.origin:
        raise InvalidRequest(f'secret "{name}" is bound to another host now')
    url = _whole_url(name, value, prefix)
    if query:
        url += ("&" if "?" in url else "?") + query[1:]
        if "#" in query or not within(prefix, url):
            raise InvalidRequest(f'the query that follows secret "{name}" is not valid')
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


def check_value(name: str, value: str, prefix: str | None) -> None:
    """Refuse a value that a secret cannot have.

    prefix: the canonical URL prefix that the secret is bound to; None for a secret that only
    net.configure_host can name, and no request.

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
            "A shorter one could not be found, and so not be masked, in an answer that repeats it.",
        )
    if re.search(r"[\r\n]", value):
        raise InvalidRequest(
            f'the value of secret "{name}" has a line break',
            "No header can hold it. A secret for net.configure_host, such as a key in PEM, has no "
            "URL prefix.",
        )
    if re.search(ILLEGAL_IN_VALUE, value):
        raise InvalidRequest(
            f'the value of secret "{name}" has a control character, which no header can hold'
        )
    if value != value.strip():
        raise InvalidRequest(f'the value of secret "{name}" begins or ends with white space')
    if _is_url(value) and len(_behind_prefix(_whole_url(name, value, prefix), prefix)) < MIN_LENGTH:
        raise InvalidRequest(
            f'the URL that secret "{name}" holds has fewer than {MIN_LENGTH} characters behind its '
            "URL prefix",
            "The prefix is not secret, and what follows it could not be masked in an answer.",
        )


def without_line_break(text: str) -> str:
    """Return a text without the one line break that editors and echo put at its end."""
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def sensitive(value: str, prefix: str | None) -> list[str]:
    """Return what a Mask has to look for: the value, and the parts of it that give it away.

    In a URL these are what follows the prefix, its segments and its parameters. In user and
    password, in base64 as Basic authentication has them or in the URL of a proxy, it is the
    password. In a scheme and a token (``Bearer …``, RFC 9110, section 11.4) it is the token.
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
            parts |= {url, url[path_begin(url) :], behind}
            parts |= {query, *path.split("/"), *(unquote(part) for part in path.split("/"))}
            parts |= {pair.partition("=")[2] for pair in query.split("&")}
            parts |= {text for _key, text in parse_qsl(query, separator="&")}
    credentials = _credentials(token)
    if credentials:
        parts |= {credentials, credentials.partition(":")[2]}
    parts = {part for part in parts - {value} if len(part) >= MIN_LENGTH}
    return sorted([value, *sorted(parts, key=len)[-_MOST_PARTS:]])


def _is_url(value: str) -> bool:
    return value[:8].lower().startswith(("http://", "https://"))


def _behind_prefix(url: str, prefix: str) -> str:
    """The part of a URL behind the prefix that it is within."""
    return url[len(prefix.rstrip("/")) :].lstrip("/")


def _credentials(value: str) -> str | None:
    """The ``user:password`` that a value stands for; None where it stands for nothing like it."""
    in_url = re.fullmatch(r"(?s:https?://([^/@]+:[^/]*)@[^/@]+/?)", value)
    if in_url is not None:
        return unquote(in_url[1])
    try:
        text = base64.b64decode(value, validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    return text if ":" in text and text.isprintable() else None
