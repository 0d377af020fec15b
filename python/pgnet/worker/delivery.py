"""The delivery of a request: how often it is sent, under which key, and when again."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass

from pgnet.outbox import Claim, Outcome
from pgnet.request.options import AT_MOST_ONCE
from pgnet.request.row import Row
from pgnet.wire.answer import Answer
from pgnet.wire.host import HostTable, split_port
from pgnet.worker.breaker import judge
from pgnet.worker.retry import IDEMPOTENT_METHODS, NONE, Policy, choose, delay_after

_KEY_HEADER, _KEY_FIELD = "Idempotency-Key", "idempotency-key"
_UNKNOWN = "Whether the request was received is unknown, and it is not sent again."


@dataclass(frozen=True, slots=True)
class Delivery:
    """The promises that hold for one request.

    policy: when it is attempted again.
    at_most_once: whether its bytes go out at most once.
    has_key: whether its caller gave an idempotency key, as an option or as a header.
    key_header: the header that carries the key, where it is sent beside the caller's headers.
    max_redirects: how many the caller allows; None stands for the general rule.
    store_response: whether headers and body of the answer are kept.
    """

    policy: Policy = NONE
    at_most_once: bool = False
    has_key: bool = False
    key_header: tuple[str, str] | None = None
    max_redirects: int | None = None
    store_response: bool = True

    def settle(
        self,
        outcome: Outcome,
        claim: Claim,
        answer: Answer,
        elapsed: float,
        expires_in: float = math.inf,
    ) -> Outcome:
        """Return an outcome that failed as it is recorded: failed, unknown, or retrying.

        elapsed: seconds since the request was claimed. expires_in: seconds until no attempt may
        begin any more.
        """
        # Where the status says what became of the request, it decides, whatever else went wrong.
        status = answer.status_code if answer.is_final else None
        error = answer.error if status is None else None
        never_sent = error is not None and not error.possibly_sent
        if self.at_most_once and not never_sent:
            if error is None:
                return outcome
            message = f"{outcome.error_msg}. {_UNKNOWN}"
            return outcome._replace(state="unknown", error_msg=message)
        # An attempt that was lost with its worker does not count for the policy. Nor does a probe
        # that has failed: the request lent itself to finding out about the host.
        attempt = claim.attempt - claim.lost
        uncounted = claim.flow.probe and judge(claim, answer).result == "failed"
        delay = delay_after(
            self.policy,
            attempt=max(1, attempt - 1) if uncounted else attempt,
            age=claim.age + elapsed,
            method=claim.method,
            has_key=self.has_key,
            status=status,
            error_kind=None if error is None else error.kind,
            never_sent=never_sent,
            retry_after=answer.header("Retry-After"),
            date=answer.header("Date"),
            now=time.time(),
            random=random.random,
        )
        if delay is None or delay >= expires_in:
            return outcome
        return Outcome(
            claim.id,
            claim.token,
            "retrying",
            status_code=outcome.status_code,
            timed_out=outcome.timed_out,
            error_msg=outcome.error_msg,
            retry_in=delay,
            uncounted=uncounted or None,
        )


PLAIN = Delivery()


def delivery_of(
    claim: Claim, row: Row, policies: Mapping[str, Policy], hosts: HostTable
) -> Delivery:
    """The promises for a claimed request, by its options and the settings of its host."""
    by_host = hosts.settings_for(*split_port(claim.host)).retry if hosts.entries else None
    if claim.options is None and by_host is None:
        return PLAIN
    options = row.options
    policy = choose(policies, options.get("retry"), by_host)
    policy = policy.with_max_attempts(options.get("max_attempts"))
    at_most_once = options.get("delivery") == AT_MOST_ONCE
    asked = "idempotency_key" in options
    own_header = any(name.lower() == _KEY_FIELD for name, _value in row.headers)
    key_header = None
    if claim.idempotency_key is not None and not own_header:
        is_idempotent = claim.method in IDEMPOTENT_METHODS
        twice = (
            not at_most_once and not is_idempotent and policy.may_send_twice(claim.method, False)
        )
        if asked or twice:
            key_header = (_KEY_HEADER, claim.idempotency_key)
    return Delivery(
        policy,
        at_most_once,
        asked or own_header,
        key_header,
        options.get("max_redirects"),
        options.get("store_response", True),
    )


def expiry_message(claim: Claim) -> str:
    """Why a request that was claimed after its not_after is not sent.

    The words are those of pgnet.expiry_message, which ends the requests that nobody claims.
    """
    unsent = "before it was sent" if claim.attempt == 1 else "before another attempt"
    return f"The request expired: its not_after passed {unsent}."
