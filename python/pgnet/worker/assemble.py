"""From what the database says to what the wire takes: requests, and what is special about hosts.

What a row holds was checked when it was queued; inserted by hand, perhaps not. So it is checked
once more, by the same rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pgnet.request.errors import InvalidRequest
from pgnet.request.headers import parse_headers
from pgnet.request.prefix import within
from pgnet.request.secret_reference import collector, reference_name, split_secret_url
from pgnet.request.url import canonical_url
from pgnet.secret.directory import Directory
from pgnet.secret.mask import Mask
from pgnet.secret.value import check_value, expand_url, header_value, sensitive
from pgnet.wire.host import HostSettings, HostTable
from pgnet.wire.message import WireRequest

if TYPE_CHECKING:
    from pgnet.outbox import Claim, Secret


@dataclass(frozen=True, slots=True)
class Assembled:
    """A request as the exchange takes it.

    bound: header names in lower case, and the URL prefix that their secret is bound to.
    masks: hide the secrets that went into it. may_follow: whether a redirect to a URL carries
    none of them beyond its prefix; None where there are none.
    secret_url: whether its URL is one.
    """

    request: WireRequest
    bound: Mapping[str, str] = field(default_factory=dict)
    masks: Sequence[Mask] = ()
    may_follow: Callable[[str], bool] | None = None
    secret_url: bool = False


def names_of_secrets(claim: Claim) -> set[str]:
    """The secrets that a claim may refer to; most refer to none."""
    names: list[str] = []
    if "{" in claim.url:
        parts = split_secret_url(claim.url)
        if parts is not None:
            names.append(parts[1])
    if claim.headers is not None and '"secret"' in claim.headers:
        try:
            parse_headers(claim.headers, collector(names))
        except InvalidRequest:
            return set()  # it will not be sent
    return set(names)


def assemble(
    claim: Claim,
    secrets: Mapping[str, Secret],
    directory: Directory | None,
    masks: Sequence[Mask] = (),
    key_header: tuple[str, str] | None = None,
) -> Assembled:
    """The request that a claim asks for.

    secrets: by name, those that names_of_secrets gave. directory: where workers keep what is not
    in the database. masks: what is to be hidden in every answer. key_header: the idempotency key,
    where one is to be sent beside the caller's headers.

    Raises InvalidRequest for what cannot be sent; its message holds no secret.
    """
    if claim.timeout_milliseconds <= 0:
        raise InvalidRequest("timeout_milliseconds must be greater than 0")
    if not secrets:
        fields = parse_headers(claim.headers)
        if key_header is not None:
            fields.append(key_header)
        request = WireRequest(claim.method, canonical_url(claim.url), fields, claim.body)
        follow = _follower(masks, None, ()) if masks else None
        return Assembled(request, {}, masks, follow)

    values = {name: _value(secret, directory) for name, secret in secrets.items()}
    url = claim.url
    parts = split_secret_url(url)
    if parts is not None:
        url = expand_url(url, values[parts[1]], secrets[parts[1]].url_prefix or "")
    url = canonical_url(url)
    bound: dict[str, str] = {}
    judged: set[str] = set()

    def value_of(header: str, reference: dict[str, object]) -> str:
        name = reference_name(reference)
        prefix = secrets[name].url_prefix or ""
        # Once, however often it is repeated: a URL may be long.
        if name not in judged and not within(prefix, url):
            raise InvalidRequest(f'secret "{name}" is bound to {prefix}, and not for this URL')
        judged.add(name)
        known = bound.setdefault(header.lower(), prefix)
        # Of two bounds on one header the narrower one holds: it lies within the other.
        bound[header.lower()] = prefix if within(known, prefix) else known
        return header_value(reference, values[name])

    fields = parse_headers(claim.headers, value_of)
    if key_header is not None:
        fields.append(key_header)
    prefixes = [secret.url_prefix or "" for secret in secrets.values()]
    own = Mask(part for n, v in values.items() for part in sensitive(v, secrets[n].url_prefix))
    return Assembled(
        WireRequest(claim.method, url, fields, claim.body),
        bound,
        (*masks, own),
        _follower(masks, own, prefixes),
        parts is not None,
    )


def _follower(
    masks: Sequence[Mask], own: Mask | None, prefixes: Sequence[str]
) -> Callable[[str], bool]:
    def may_follow(url: str) -> bool:
        if any(mask.text(url) != url for mask in masks):
            return False
        return own is None or own.text(url) == url or all(within(p, url) for p in prefixes)

    return may_follow


def _value(secret: Secret, directory: Directory | None) -> str:
    if secret.fault is not None:
        raise InvalidRequest(secret.fault)
    if secret.value is not None:
        return secret.value
    value = directory.read(secret.name) if directory is not None else None
    if value is None:
        raise InvalidRequest(
            f'secret "{secret.name}" is held by workers, and this one does not have it: '
            "start workers with pgnet worker --secrets-dir"
        )
    check_value(secret.name, value, secret.url_prefix)
    return value


def host_table(hosts: Mapping[str, Mapping[str, Any]], directory: Directory | None) -> HostTable:
    """What net.configure_host has said, by pattern, as the exchange takes it.

    directory: where workers keep secrets that are not in the database. Where one is missing,
    requests to the host fail, and say so.
    """
    return HostTable({host: _host_settings(said, directory) for host, said in hosts.items()})


def _host_settings(said: Mapping[str, Any], directory: Directory | None) -> HostSettings:
    settings = dict(said)
    fault = None
    for key, value in said.items():
        if not isinstance(value, dict):
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
    milliseconds = settings.pop("connect_timeout_milliseconds", None)
    if milliseconds is not None:
        settings["connect_timeout"] = milliseconds / 1000
    return HostSettings(**settings, fault=fault)


def masks_of(hosts: HostTable) -> list[Mask]:
    """Hide the credentials of proxies, which may repeat them in an answer."""
    values = {
        part
        for settings in hosts.entries.values()
        if settings.proxy is not None and "@" in settings.proxy
        for part in sensitive(settings.proxy, None)
    }
    return [Mask(values)] if values else []
