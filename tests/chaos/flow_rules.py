"""The rules of limits, keys, `after` and times for the check of a run.

A request that was sent with a worker that died, or whose claim was lost with the server, may be
seen at any later time: the server cannot be told that it counts no more. So the rules of order hold
for requests that were seen once and have no lost attempt; that is nearly all of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from chaos import orders

if TYPE_CHECKING:
    from chaos.checker import Evidence, Sent

# A broken rule: its kind, the request, and what is wrong.
Finding = tuple[str, str, str]
# Seconds between the database's decision and what the witness sees.
_SLACK = 1.0
# Seconds for which what has outlived its claim may still be at the witness.
_UPSET = 15.0


def rules() -> tuple[Callable[[Evidence], Iterator[Finding]], ...]:
    return (_one_at_a_time, _in_order, _blocked, _after, _times, _at_once, _rate)


def doomed(evidence: Evidence) -> set[int]:
    """Those that one of their `after` has doomed: it has not ended well."""
    states = {response.id: response.state for response in evidence.responses}
    return {
        request.id
        for request in evidence.sent
        if not request.after_any_end
        and any(states.get(id) != "succeeded" for id in request.after or ())
    }


def _clean(evidence: Evidence) -> set[str]:
    """The keys of requests that can only have been seen when they were sent."""
    seen = Counter(sighting.key for sighting in evidence.sightings)
    keys = Counter(request.key for request in evidence.sent)
    lost = {row.id for row in evidence.attempts if row.state in ("lost", "stopped")}
    return {
        request.key
        for request in evidence.sent
        if seen[request.key] <= 1 and keys[request.key] == 1 and request.id not in lost
    }


def _one_at_a_time(evidence: Evidence) -> Iterator[Finding]:
    """No two requests of an ordering key are at the witness at once."""
    clean = _clean(evidence)
    for sighting in evidence.sightings:
        for other in {sighting.key, *sighting.beside} & clean if sighting.beside else ():
            beside = sorted({sighting.key, *sighting.beside} - {other})
            yield "order", other, f"was at the witness beside {beside} of its ordering key"


def _in_order(evidence: Evidence) -> Iterator[Finding]:
    """Requests of a key are seen in the order of ids, where those before were committed before."""
    clean = _clean(evidence)
    sent = Counter(request.key for request in evidence.sent)
    first: dict[str, int] = {}
    for place, sighting in enumerate(evidence.sightings):
        first.setdefault(sighting.key, place)
    by_key: dict[str, list[Sent]] = defaultdict(list)
    for request in evidence.sent:
        if request.ordering_key is not None and request.key in evidence.spans:
            by_key[request.ordering_key].append(request)
    for requests in by_key.values():
        requests.sort(key=lambda request: request.id)
        for place, later in enumerate(requests):
            if later.key not in first or sent[later.key] > 1:
                # A request that was sent again has the same key: the first sighting is the first
                # one's.
                continue
            transaction, began, _ = evidence.spans[later.key]
            for earlier in requests[:place]:
                number, _, acknowledged = evidence.spans[earlier.key]
                if (
                    earlier.key in clean
                    and (number == transaction or acknowledged < began)
                    and first.get(earlier.key, -1) > first[later.key]
                ):
                    yield "order", earlier.key, f"was seen after {later.key} of its ordering key"


def _blocked(evidence: Evidence) -> Iterator[Finding]:
    """Behind a head that has failed nothing of its key is sent before somebody lets it run."""
    let_run: dict[int, list[int]] = defaultdict(list)
    for id, number in evidence.let_run:
        let_run[id].append(number)
    states = {response.id: response for response in evidence.responses}
    by_key: dict[str, list[Sent]] = defaultdict(list)
    for request in evidence.sent:
        if request.ordering_key is not None and request.id in evidence.ended:
            by_key[request.ordering_key].append(request)
    for requests in by_key.values():
        requests.sort(key=lambda request: evidence.ended[request.id])
        head: Sent | None = None
        for request in requests:
            response = states.get(request.id)
            if response is None:
                continue
            ended = evidence.ended[request.id]
            if head is not None and response.attempts > 0:
                since = evidence.ended[head.id]
                if not any(since < number < ended for number in let_run[head.id]):
                    yield (
                        "order",
                        request.key,
                        f"was sent while {head.key} blocked its ordering key",
                    )
                head = None
            if request.blocks and response.state in ("failed", "unknown"):
                head = request


def _after(evidence: Evidence) -> Iterator[Finding]:
    """A request is sent when those before it have ended, and well; otherwise it is cancelled."""
    responses = {response.id: response for response in evidence.responses}
    dooms = doomed(evidence)
    for request in evidence.sent:
        response = responses.get(request.id)
        if not request.after or response is None:
            continue
        if response.attempts > 0 and request.id in dooms:
            yield "order", request.key, f"was sent, and not all of {request.after} ended well"
        if request.id in dooms and response.state not in ("cancelled", "expired"):
            yield (
                "order",
                request.key,
                f"{response.state}, and not all of {request.after} ended well",
            )
        late = [
            id
            for id in request.after
            if evidence.ended.get(id, 0) > evidence.ended.get(request.id, 0)
        ]
        if response.attempts > 0 and late:
            yield "order", request.key, f"ended before {late}, after which it was to be sent"


def _times(evidence: Evidence) -> Iterator[Finding]:
    """Where the clock is right, nothing is seen before its time, nor after it."""
    requests = {request.key: request for request in evidence.sent if request.former is None}
    for response in evidence.responses:
        if response.state == "expired" and not any(
            request.id == response.id and request.not_after is not None for request in evidence.sent
        ):
            yield "time", str(response.id), "expired, and it has no not_after"
    for sighting in evidence.sightings if evidence.calm else ():
        request = requests.get(sighting.key)
        if request is None:
            continue
        if request.not_before is not None and sighting.time < request.not_before - _SLACK:
            yield "time", request.key, f"was seen at {sighting.time}, before {request.not_before}"
        if request.not_after is not None and sighting.time > request.not_after + _SLACK:
            yield "time", request.key, f"was seen at {sighting.time}, after {request.not_after}"


def _at_once(evidence: Evidence) -> Iterator[Finding]:
    """The host with limits gets no more at once than it may have."""
    for sighting in evidence.sightings:
        upset = sum(0 <= sighting.time - moment <= _UPSET for moment in evidence.upsets)
        most = orders.CONCURRENCY * (1 + upset)
        if sighting.at_once is not None and sighting.at_once > most:
            yield "limit", sighting.key, f"one of {sighting.at_once} at once, where {most} may be"


def _rate(evidence: Evidence) -> Iterator[Finding]:
    """The host with limits gets no more in any time than its rate and its burst."""
    if not evidence.calm:
        return
    limited = [sighting for sighting in evidence.sightings if sighting.at_once is not None]
    for place, last in enumerate(limited):
        for count, first in enumerate(reversed(limited[: place + 1]), 1):
            span = last.time - first.time
            if count > orders.BURST + orders.RATE * (span + _SLACK):
                yield "limit", last.key, f"the last of {count} within {span:.2f} s"
                break
