"""What an attempt says of its host."""

from __future__ import annotations

import pytest

from pgnet.wire.answer import Answer
from pgnet.wire.message import WireRequest
from pgnet.wire.timings import Timings
from pgnet.wire.wire_error import Code, WireError
from pgnet.worker.breaker import Verdict, judge
from pgnet.worker.outcome import NotSent
from unit.test_flights import flight

TIMES = Timings(0.1, 0.2, 0.3, 1.0, 1.5)


def verdict(
    status: int | None = None,
    error: WireError | None = None,
    headers: dict[str, str] | None = None,
    url: str = "http://a/",
    redirects: int = 0,
) -> Verdict:
    answer = Answer(None, WireRequest("GET", url, [], None), error, redirects)
    answer.timings = TIMES
    answer.status_code = status
    answer.header_list = list((headers or {}).items())
    return judge(flight("a").claim, answer)


@pytest.mark.parametrize("status", [200, 204, 304, 400, 401, 404, 408, 429])
def test_a_host_that_answers_is_well(status: int) -> None:
    assert verdict(status).result == "ok"
    assert verdict(status).latency == pytest.approx(0.4)


@pytest.mark.parametrize("status", [500, 502, 503, 504, 599])
def test_a_5xx_is_a_failure(status: int) -> None:
    assert verdict(status)[:3] == ("failed", f"status {status}", status)


@pytest.mark.parametrize(
    "code",
    [
        Code.COULDNT_RESOLVE_HOST,
        Code.COULDNT_CONNECT,
        Code.OPERATION_TIMEDOUT,
        Code.SSL_CONNECT_ERROR,
        Code.SSL_PEER_CERTIFICATE,
        Code.GOT_NOTHING,
        Code.RECV_ERROR,
    ],
)
def test_no_answer_is_a_failure(code: Code) -> None:
    error = WireError("secret words", code=code, possibly_sent=True)
    judged = verdict(None, error)
    assert judged.result == "failed"
    assert judged.is_congestion
    assert "secret" not in str(judged.cause)
    # nor is an answer that broke off
    assert verdict(200, error).result == "failed"


def test_what_this_side_refuses_says_nothing() -> None:
    assert judge(flight().claim, NotSent("no")).result == "none"
    assert verdict(None, WireError("egress")).result == "none"
    assert verdict(None, WireError("cancelled", kind="request", possibly_sent=True)).result == (
        "none"
    )


def test_an_answer_that_cannot_be_read_is_an_answer() -> None:
    assert verdict(None, WireError("garbage", kind="response")).result == "ok"
    assert verdict(200, WireError("too large", code=Code.TOO_LARGE)).result == "ok"
    assert verdict(500, WireError("too large", code=Code.TOO_LARGE)).result == "failed"


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("retry_after", "pause"),
    [
        ("7", 7.0),
        ("Sun, 06 Nov 1994 08:49:47 GMT", 10.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 0.0),
        ("soon", 0.0),
        ("-1", 0.0),
    ],
)
def test_a_host_may_ask_for_a_pause(status: int, retry_after: str, pause: float) -> None:
    headers = {"Retry-After": retry_after, "Date": "Sun, 06 Nov 1994 08:49:37 GMT"}
    judged = verdict(status, headers=headers)
    assert judged.pause == pause
    assert judged.is_congestion


def test_another_status_asks_for_no_pause() -> None:
    assert verdict(500, headers={"Retry-After": "7"}).pause == 0.0
    assert verdict(301, headers={"Retry-After": "7"}).pause == 0.0


def test_what_comes_behind_a_redirect_is_another_hosts() -> None:
    error = WireError("refused", code=Code.COULDNT_CONNECT)
    assert verdict(None, error, url="http://b/", redirects=1).result == "ok"
    assert verdict(503, None, {"Retry-After": "7"}, "http://b/", 1).pause == 0.0
    assert verdict(None, error, url="http://a/next", redirects=1).result == "failed"
