"""Requests that are signed by the worker, and verified by the library of Standard Webhooks."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from psycopg import errors
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from servers import httpd
from servers.shop import OWNER, Shop
from servers.waiting import wait_until
from servers.workers import one_worker


def secret(letter: bytes) -> str:
    return "whsec_" + base64.b64encode(letter * 32).decode()


OLD, NEW = secret(b"o"), secret(b"n")


@pytest.fixture
def signed(shop: Shop, witness: httpd.Running) -> Shop:
    """The owner may sign with the secrets old and new."""
    for name, value in (("old", OLD), ("new", NEW)):
        shop.database.execute("select net.set_secret(%s, %s, %s)", name, value, witness.url)
        shop.database.execute("select net.grant_secret(%s, %s)", name, OWNER)
    return shop


def arrived(witness: httpd.Running, number: int) -> list[dict[str, Any]]:
    return wait_until(witness.record, lambda r: len(r) >= number, f"{number} requests")


def verify(key: str, request: dict[str, Any]) -> Any:
    headers = {name.lower(): value for name, value in request["headers"]}
    return Webhook(key).verify(request["body"].encode("latin-1"), headers)


@pytest.mark.parametrize("kind", ["process", "backend"])
def test_a_receiver_verifies_it(signed: Shop, witness: httpd.Running, kind: str) -> None:
    signed.webhook(url=f"{witness.url}/hook", secret="old", options={"sign": ["new"]})
    with one_worker(signed.database, kind):
        signed.write("insert into app.orders values (1, 'né', 2.50)")
        (request,) = arrived(witness, 1)
    for key in (OLD, NEW):
        assert verify(key, request)["record"]["status"] == "né"
    with pytest.raises(WebhookVerificationError):
        verify(secret(b"x"), request)
    assert OLD not in json.dumps(request)


def test_each_attempt_has_its_own_time_and_the_same_id(
    signed: Shop, witness: httpd.Running
) -> None:
    signed.database.execute(
        'select net.configure_retry(\'quick\', \'{"max_attempts": 2, "methods": "any"}\')'
    )
    signed.webhook(url=f"{witness.url}/status/503", secret="old", retry="quick")
    with signed.database.worker():
        signed.write("insert into app.orders values (1)")
        requests = arrived(witness, 2)
        assert verify(OLD, requests[0]) == verify(OLD, requests[1])
        sent = [{name.lower(): value for name, value in r["headers"]} for r in requests]
        assert sent[0]["webhook-id"] == sent[1]["webhook-id"]
        assert sent[0]["webhook-timestamp"] <= sent[1]["webhook-timestamp"]
        signed.database.wait_for("select count(*) from net.failures")
        signed.owner.execute("select net.replay_webhook('hook')")
        again = {n.lower(): v for n, v in arrived(witness, 3)[2]["headers"]}
        assert again["webhook-id"] == sent[0]["webhook-id"]


def test_any_request_can_be_signed(signed: Shop, witness: httpd.Running) -> None:
    with signed.database.worker():
        signed.owner.execute(
            "select net.http_request('POST', %s, '{\"a\": 1}', options => '{\"sign\": [\"new\"]}')",
            (f"{witness.url}/",),
        )
        (request,) = arrived(witness, 1)
    assert verify(NEW, request) == {"a": 1}
    with pytest.raises(errors.InsufficientPrivilege):
        signed.writer.execute(
            "select net.http_request('POST', %s, options => '{\"sign\": [\"new\"]}')",
            (f"{witness.url}/",),
        )
    with pytest.raises(errors.InvalidParameterValue, match="may not go"):
        signed.owner.execute(
            "select net.http_request('POST', 'http://localhost/',"
            ' options => \'{"sign": ["new"]}\')'
        )


def test_a_signature_stays_within_the_prefix(signed: Shop, witness: httpd.Running) -> None:
    """A redirect that leads beyond it does not carry it along."""
    signed.database.execute("select net.set_secret('old', %s, %s)", OLD, f"{witness.url}/redirect/")
    signed.webhook(url=f"{witness.url}/redirect/307?to={witness.url}/elsewhere", secret="old")
    with signed.database.worker():
        signed.write("insert into app.orders values (1)")
        first, second = arrived(witness, 2)
    verify(OLD, first)
    assert second["target"] == "/elsewhere"
    assert not any(name.lower().startswith("webhook-") for name, _ in second["headers"])


@pytest.mark.parametrize("way", ["dropped", "revoked", "no key", "moved"])
def test_a_secret_that_is_gone(signed: Shop, witness: httpd.Running, way: str) -> None:
    """The user's statement succeeds, and the outcome says what is wrong, without a value."""
    signed.webhook(url=f"{witness.url}/", secret="old", retry="none")
    statement, words = {
        "dropped": ("select net.drop_secret('old')", "does not exist"),
        "revoked": (f"select net.revoke_secret('old', '{OWNER}')", "may not use it"),
        "no key": ("select net.set_secret('old', 'not-a-signing-key')", "cannot sign"),
        "moved": (f"select net.set_secret('old', '{OLD}', 'http://a.example/')", "may not go"),
    }[way]
    signed.database.execute(statement)
    with signed.database.worker():
        signed.write("insert into app.orders values (1)")
        message = signed.database.wait_for("select error_msg from net.responses")
    assert words in message
    assert signed.owner.execute("select failed, last_error from net.webhooks").fetchone() == (
        1,
        message,
    )
    assert witness.record() == []
    assert OLD not in message
    assert "not-a-signing-key" not in message
