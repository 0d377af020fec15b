"""Make a claimed row the request that the wire takes, and settings of hosts the wire's HostTable.

A row is read once, by `read`, when it is claimed: the Row then says which secrets are needed, what
is promised of the request (delivery.py), and what `assemble` puts together when the values of the
secrets are there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from pgnet.request.errors import InvalidRequest
from pgnet.request.headers import check_size
from pgnet.request.prefix import within
from pgnet.request.row import Row, read_row
from pgnet.secret.directory import Directory
from pgnet.secret.mask import Mask
from pgnet.secret.signature import signature_headers
from pgnet.secret.value import check_value, expand_url, header_value, sensitive
from pgnet.wire.host import BreakerSettings, HostSettings, HostTable
from pgnet.wire.message import WireRequest

if TYPE_CHECKING:
    from pgnet.outbox import Claim, Secret

log = logging.getLogger("pgnet.worker")


@dataclass(frozen=True, slots=True)
class Assembled:
    """A request as the exchange takes it.

    bound: names of headers, in lower case, and the URL prefix that their secret is bound to.
    masks: hide in the answer the secrets that went into the request.
    may_follow: whether a URL may be followed in a redirect: whether it repeats no secret beyond the
    secret's prefix. None where there are no secrets.
    has_secret_url: whether the URL is a secret.
    """

    request: WireRequest
    bound: Mapping[str, str] = field(default_factory=dict)
    masks: Sequence[Mask] = ()
    may_follow: Callable[[str], bool] | None = None
    has_secret_url: bool = False


def read(claim: Claim) -> Row:
    """Read a claimed row. Never raises: the Row's fault says why it cannot be sent."""
    if claim.fault is not None:
        return Row(fault=claim.fault)
    try:
        return read_row(claim.url, claim.headers, claim.timeout_milliseconds, claim.options)
    except InvalidRequest as error:
        return Row(fault=error.message)
    except Exception as error:
        # A row that this code cannot read must not end the worker, nor be tried for ever.
        log.error("request %s: %s while its row was read", claim.id, type(error).__name__)
        return Row(fault=f"internal error of the worker ({type(error).__name__})")


def assemble(
    claim: Claim,
    row: Row,
    secrets: Mapping[str, Secret],
    directory: Directory | None,
    masks: Sequence[Mask] = (),
    key_header: tuple[str, str] | None = None,
) -> Assembled:
    """Put together the request that a claimed row asks for.

    secrets: by name, those that `row.secrets` lists.
    directory: where workers keep secrets that are not in the database.
    masks: what is to be hidden in every answer.
    key_header: the idempotency key, where it is sent beside the caller's headers.

    Raises InvalidRequest for what cannot be sent; its message holds no secret.
    """
    if row.fault is not None:
        raise InvalidRequest(row.fault)
    if not row.secrets:
        fields = cast("list[tuple[str, str]]", row.headers)
        if key_header is not None:
            fields = [*fields, key_header]
        request = WireRequest(claim.method, row.url, fields, claim.body)
        return Assembled(request, {}, masks, _follower(masks, None, ()) if masks else None)

    values = {name: _value(name, secrets, directory) for name in row.secrets}
    url = row.url
    if row.secret_url is not None:
        name = row.secret_url.name
        url = expand_url(row.secret_url, values[name], secrets[name].url_prefix or "")
    fields, bound = _fields_with_secrets(row, url, secrets, values)
    if key_header is not None:
        fields.append(key_header)
    if "sign" in row.options:
        _sign(claim, row, url, secrets, values, fields, bound)
    prefixes = [secrets[name].url_prefix or "" for name in values]
    own = Mask(part for n, v in values.items() for part in sensitive(v, secrets[n].url_prefix))
    return Assembled(
        WireRequest(claim.method, url, fields, claim.body),
        bound,
        (*masks, own),
        _follower(masks, own, prefixes),
        row.secret_url is not None,
    )


def _fields_with_secrets(
    row: Row, url: str, secrets: Mapping[str, Secret], values: Mapping[str, str]
) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """The header fields with the values of secrets in them, and the prefixes that bind them.

    Raises InvalidRequest for a secret that may not go to the URL.
    """
    fields: list[tuple[str, str]] = []
    bound: dict[str, str] = {}
    judged: set[str] = set()
    for header, value in row.headers:
        if isinstance(value, str):
            fields.append((header, value))
            continue
        name = value.name
        prefix = secrets[name].url_prefix or ""
        # Judged once for each secret, however often it is repeated: a URL may be long.
        if name not in judged and not within(prefix, url):
            raise InvalidRequest(f'secret "{name}" is bound to {prefix} and may not go to this URL')
        judged.add(name)
        known = bound.setdefault(header.lower(), prefix)
        # Of two prefixes for one header the narrower one holds: it lies within the other.
        bound[header.lower()] = prefix if within(known, prefix) else known
        fields.append((header, header_value(value, values[name])))
    check_size(fields)
    return fields, bound


def _sign(
    claim: Claim,
    row: Row,
    url: str,
    secrets: Mapping[str, Secret],
    values: Mapping[str, str],
    fields: list[tuple[str, str]],
    bound: dict[str, str],
) -> None:
    """Add the headers of the signature. They go where the secrets may go, and no further.

    Raises InvalidRequest for a secret that may not go to the URL, or that cannot sign.
    """
    names = row.options["sign"]
    for name in names:
        prefix = secrets[name].url_prefix or ""
        if not within(prefix, url):
            raise InvalidRequest(f'secret "{name}" is bound to {prefix} and may not go to this URL')
    # The same at each attempt, and for what net.retry makes of the request.
    message_id = f"msg_{claim.idempotency_key or claim.id}"
    signed = [(name, values[name]) for name in names]
    fields += signature_headers(message_id, int(time.time()), claim.body, signed)
    prefix = max((secrets[name].url_prefix or "" for name in names), key=len)
    bound.update(dict.fromkeys(("webhook-id", "webhook-timestamp", "webhook-signature"), prefix))


def _follower(
    masks: Sequence[Mask], own: Mask | None, prefixes: Sequence[str]
) -> Callable[[str], bool]:
    """Return what judges the URLs of redirects: whether none repeats a secret beyond its prefix."""

    def may_follow(url: str) -> bool:
        if any(mask.text(url) != url for mask in masks):
            return False
        return own is None or own.text(url) == url or all(within(p, url) for p in prefixes)

    return may_follow


def _value(name: str, secrets: Mapping[str, Secret], directory: Directory | None) -> str:
    """The value of a secret, from the database or from the directory. Raises InvalidRequest."""
    secret = secrets.get(name)
    if secret is None:
        raise InvalidRequest(f'the database did not give the worker the secret "{name}"')
    if secret.fault is not None:
        raise InvalidRequest(secret.fault)
    if secret.value is not None:
        return secret.value
    value = directory.read(name) if directory is not None else None
    if value is None:
        raise InvalidRequest(
            f'secret "{name}" is held by workers, and this one does not have it: '
            "start workers with pgnet worker --secrets-dir"
        )
    check_value(name, value, secret.url_prefix)
    return value


def host_table(hosts: Mapping[str, Mapping[str, Any]], directory: Directory | None) -> HostTable:
    """Return the settings of hosts, by pattern, as the exchange takes them.

    hosts: as net.configure_host was given them.
    directory: where workers keep secrets that are not in the database. Where a secret is missing,
    requests to the host fail with an error that says so.
    """
    return HostTable({host: _host_settings(given, directory) for host, given in hosts.items()})


def _host_settings(given: Mapping[str, Any], directory: Directory | None) -> HostSettings:
    settings = dict(given)
    breaker = settings.pop("breaker", None)
    if breaker is not None:
        settings["breaker"] = BreakerSettings.from_json(breaker)
    fault = None
    for key, value in given.items():
        if key == "breaker" or not isinstance(value, dict):
            continue
        name = value["secret"]
        settings[key] = None
        try:
            settings[key] = directory.read(name) if directory is not None else None
        except InvalidRequest as error:
            fault = error.message
        else:
            if settings[key] is None:
                fault = f'secret "{name}", the {key} that net.configure_host names, is not there'
    for name in ("connect_timeout", "max_retry_after"):
        milliseconds = settings.pop(f"{name}_milliseconds", None)
        if milliseconds is not None:
            settings[name] = milliseconds / 1000
    return HostSettings(**settings, fault=fault)


def proxy_masks(hosts: HostTable) -> list[Mask]:
    """Return masks for the credentials of proxies: a proxy may repeat them in an answer."""
    values = {
        part
        for settings in hosts.entries.values()
        if settings.proxy is not None and "@" in settings.proxy
        for part in sensitive(settings.proxy, None)
    }
    return [Mask(values)] if values else []
