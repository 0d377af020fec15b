"""Performs requests: from a claim to the wire, and from an answer to the outcome of its request.

Nothing in here waits, and nothing raises for what is wrong with one request: a request that cannot
be sent has an outcome too. Without one it would be attempted again and again, and if it brought
down the worker, it would bring down the next one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

import requests

from pgnet.outbox import Claim, Outcome, Secret, Stub
from pgnet.request.errors import InvalidRequest
from pgnet.request.row import Row
from pgnet.wire.answer import Answer
from pgnet.wire.exchange import Exchange
from pgnet.wire.guard import EgressRules, Guard
from pgnet.wire.host import HostTable, split_port, usual_authority
from pgnet.worker.assemble import assemble
from pgnet.worker.configuration import Configuration
from pgnet.worker.delivery import delivery_of, expiry_message
from pgnet.worker.flights import Flight
from pgnet.worker.outcome import NotSent, make_outcome
from pgnet.worker.stubs import StubbedRequest

log = logging.getLogger("pgnet.worker")


class Performer:
    """Sends requests by the configuration of the moment.

    on_ended: called with a flight and what came of it, once for each flight, also for one that was
    stopped: in ``begin`` where it cannot be sent, else in the hub. It must not switch greenlets.
    """

    def __init__(self, on_ended: Callable[[Flight, Answer | NotSent], None]) -> None:
        self._on_ended = on_ended
        self._configuration = Configuration()
        self._exchange: Exchange | None = None

    @property
    def is_open(self) -> bool:
        """Whether requests can be begun: the performer was configured, and was not closed since."""
        return self._exchange is not None

    def configure(self, configuration: Configuration) -> None:
        """Follow a configuration; makes the exchange where there is no exchange yet."""
        former, self._configuration = self._configuration, configuration
        if self._exchange is not None and configuration.same_wire(former):
            return
        guard = Guard(EgressRules.from_json(configuration.egress))
        limits, hosts = configuration.limits, configuration.hosts
        if self._exchange is not None:
            self._exchange.configure(guard, limits, hosts)
        else:
            concurrency = configuration.concurrency
            self._exchange = Exchange(guard, limits, hosts, concurrency=concurrency)

    def close(self) -> None:
        """Stop all requests, and close all connections."""
        if self._exchange is not None:
            self._exchange.close()
        self._exchange = None

    def begin(
        self, flight: Flight, row: Row, secrets: Mapping[str, Secret], stub: Stub | None = None
    ) -> None:
        """Send a request, or say why it cannot be sent.

        row: what the request asks for. secrets: those that it names, by name. stub: what answers it
        in place of the network.
        """
        claim, configuration = flight.claim, self._configuration
        try:
            assert self._exchange is not None
            if claim.flow.unsent is not None:
                self._on_ended(flight, NotSent(claim.flow.unsent, claim.flow.unsent_state))
                return
            flight.delivery = delivery = delivery_of(
                claim, row, configuration.policies, configuration.hosts
            )
            flight.assembled = assembled = assemble(
                claim,
                row,
                secrets,
                configuration.directory,
                configuration.masks,
                delivery.key_header,
            )
            if configuration.hosts.has_limits:
                _check_host(claim, assembled.request.url, configuration.hosts)
            if time.monotonic() >= flight.expires_at:
                self._on_ended(flight, NotSent(expiry_message(claim), "expired"))
                return
            if stub is not None:
                flight.is_stubbed = True
                flight.handle = StubbedRequest(
                    assembled.request,
                    stub,
                    claim.timeout_milliseconds / 1000,
                    lambda answer: self._on_ended(flight, answer),
                )
                return
            if configuration.mode == "record":
                self._on_ended(flight, NotSent("Not sent: the mode is record.", "cancelled"))
                return
            flight.handle = self._exchange.start(
                assembled.request,
                claim.timeout_milliseconds / 1000,
                lambda answer: self._on_ended(flight, answer),
                bound=assembled.bound,
                max_redirects=delivery.max_redirects,
                may_follow=assembled.may_follow,
                at_most_once=delivery.at_most_once,
                send_by=flight.send_by,
            )
        except InvalidRequest as error:
            self._on_ended(flight, NotSent(error.message))
        except requests.RequestException as error:
            self._on_ended(flight, NotSent(str(error)))
        except Exception as error:
            # A request that this code cannot send must neither end the worker nor be tried for
            # ever.
            log.error("request %s: %s while it was begun", claim.id, type(error).__name__)
            self._on_ended(flight, NotSent(_internal(error)))

    def outcome(self, flight: Flight, answer: Answer | NotSent) -> Outcome:
        """Return the outcome of a request that has ended. Raises MemoryError and no other error."""
        claim = flight.claim
        try:
            return self._read(flight, answer)
        except MemoryError:
            # All of an answer but its body is small.
            if isinstance(answer, Answer):
                log.error("request %s: no memory for %s bytes", claim.id, answer.size)
                answer.forget_content()
            return self._read(flight, answer).without_content
        except Exception as error:
            # An answer that cannot be read must not end the worker either.
            log.error("request %s: %s while it was read", claim.id, type(error).__name__)
            return Outcome(claim.id, claim.token, "failed", error_msg=_internal(error))

    def _read(self, flight: Flight, answer: Answer | NotSent) -> Outcome:
        claim, delivery = flight.claim, flight.delivery
        storable = self._configuration.storable
        outcome = make_outcome(claim, answer, storable, flight.assembled, delivery.policy)
        if outcome.state == "failed" and isinstance(answer, Answer):
            now = time.monotonic()
            outcome = delivery.settle(
                outcome, claim, answer, now - flight.began, flight.expires_at - now
            )
        if not delivery.store_response:
            outcome = outcome.without_answer
        return outcome._replace(notify=True) if self._configuration.notifies else outcome


def _internal(error: Exception) -> str:
    return f"internal error of the worker ({type(error).__name__})"


def _check_host(claim: Claim, url: str, hosts: HostTable) -> None:
    """Refuse a request whose host was taken for another one by the limits. Raises InvalidRequest.

    The claim counts requests by the host as it stands in the row. So there is one way to write it.
    """
    authority = url.partition("://")[2].partition("/")[0]
    usual = usual_authority(authority)
    if not usual == authority == claim.host and hosts.settings_for(*split_port(usual)).limited:
        raise InvalidRequest(f"requests to this host are limited, and its name is to be {usual}")
