"""Checks of the wire's answers, for tests."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from pgnet.wire.answer import Answer
from servers.client import Client

MakeClient = Callable[..., Client]


TIMEOUT = re.compile(
    r"Timeout of (\d+) ms reached\. Total time: (\d+) ms \(DNS time: (\d+) ms, "
    r"TCP/SSL handshake time: (\d+) ms, HTTP Request/Response time: (\d+) ms\)"
)


def ok(answer: Answer) -> Any:
    assert answer.error is None, answer.error
    assert answer.response is not None
    return answer.response


def failed(answer: Answer) -> Any:
    """The error of a request that has no answer."""
    assert answer.response is None, answer.response
    assert (answer.status_code, answer.header_list, answer.content) == (None, [], b"")
    assert not answer.is_final
    assert answer.error is not None
    return answer.error


def marred(answer: Answer, status: int = 200) -> Any:
    """The error of an answer that did come."""
    assert answer.response is None, answer.response
    assert answer.status_code == status
    assert answer.is_final
    assert answer.http_version == "1.1"
    assert answer.timings.first_byte > 0
    assert answer.error is not None
    return answer.error


def echoed(answer: Answer) -> dict[str, Any]:
    seen: dict[str, Any] = json.loads(ok(answer).content)
    return seen
