"""Signatures as Standard Webhooks has them: its own library for receivers accepts them."""

from __future__ import annotations

import base64
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from pgnet.request.errors import InvalidRequest
from pgnet.secret.signature import signature_headers, signing_key


def secret(key: bytes) -> str:
    return "whsec_" + base64.b64encode(key).decode()


OLD, NEW = secret(b"o" * 24), secret(b"n" * 32)


@given(
    st.text(max_size=100),
    st.binary(min_size=24, max_size=64),
    st.from_regex(r"[!-~]{1,40}", fullmatch=True),
)
def test_a_receiver_accepts_it(body: str, key: bytes, message_id: str) -> None:
    content = f'{{"a": {len(body)}}}'.encode()
    headers = signature_headers(message_id, int(time.time()), content, [("s", secret(key))])
    assert Webhook(secret(key)).verify(content, dict(headers)) == {"a": len(body)}
    with pytest.raises(WebhookVerificationError):
        Webhook(secret(key)).verify(content + b" ", dict(headers))


def test_each_of_several_secrets_is_enough() -> None:
    headers = dict(signature_headers("1", int(time.time()), b"{}", [("new", NEW), ("old", OLD)]))
    for known in (OLD, NEW):
        assert Webhook(known).verify(b"{}", headers) == {}
    with pytest.raises(WebhookVerificationError):
        Webhook(secret(b"x" * 24)).verify(b"{}", headers)


def test_the_example_of_the_specification() -> None:
    key = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    headers = signature_headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body, [("s", key)])
    assert headers == [
        ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
        ("webhook-timestamp", "1614265330"),
        ("webhook-signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
    ]


def test_an_id_has_no_full_stop() -> None:
    assert signature_headers("a.b", 1, None, [("s", OLD)])[0] == ("webhook-id", "a_b")


@pytest.mark.parametrize(
    "value", ["", "whsec_", "secretsecret", "whsec_c2hvcnQ=", "whsec_!", OLD[6:], secret(b"x" * 65)]
)
def test_what_is_no_key(value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        signing_key("shop", value)
    assert 'secret "shop" cannot sign' in caught.value.message
    assert value in ("", "whsec_") or value not in str(caught.value)
