"""What came of it: what was committed, what the witness saw and what was recorded, compared.

Nothing here asks the database or the witness: it is given all that they know, as Evidence, so that
a test can give it a run with one thing wrong.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

ENDS = frozenset(["succeeded", "failed", "unknown"])


@dataclass(frozen=True, slots=True)
class Sent:
    """A row of app.sent: a request that was committed."""

    key: str
    id: int
    method: str
    delivery: str = "at_least_once"
    retry: str | None = None
    max_attempts: int | None = None
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Sighting:
    """A request that came to the witness; number: which one of this key."""

    key: str
    number: int
    method: str
    idempotency_key: str | None
    way: str
    status: int | None


@dataclass(frozen=True, slots=True)
class Response:
    """A row of net._http_response."""

    id: int
    url: str
    state: str
    status_code: int | None
    content: str | None
    error_msg: str | None
    attempts: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """A row of net.attempts."""

    id: int
    attempt: int
    lost: bool
    error_msg: str | None


@dataclass(slots=True)
class Evidence:
    """All that is known when everything has drained."""

    sent: list[Sent] = field(default_factory=list)
    sightings: list[Sighting] = field(default_factory=list)
    responses: list[Response] = field(default_factory=list)
    # what happened to outcomes: operation, id, state
    operations: list[tuple[str, int, str]] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    failed: set[int] = field(default_factory=set)
    queued: set[int] = field(default_factory=set)
    claimed: set[int] = field(default_factory=set)
    # keys that the server told a client of: committed, and rolled back
    acknowledged: set[str] = field(default_factory=set)
    undone: set[str] = field(default_factory=set)
    # requests that came with another body than was asked for
    wrong_bodies: list[str] = field(default_factory=list)
    # what else must not have been: a worker that ended by itself, a backend that crashed
    findings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong, and with which request; kind is one of KINDS."""

    kind: str
    subject: str
    detail: str


KINDS = (
    "lost",
    "phantom",
    "double outcome",
    "sent twice though at most once",
    "wrong outcome",
    "key",
    "left over",
    "attempts",
    "database",
    "finding",
)


def check(evidence: Evidence) -> list[Violation]:
    """Every violation there is; none is what a good run gives."""
    found: list[Violation] = []
    for examine in (
        _committed_and_outcome,
        _phantoms,
        _at_most_once,
        _outcomes,
        _keys,
        _left_over,
        _attempts,
        _database,
    ):
        found.extend(examine(evidence))
    found.extend(Violation("finding", "", finding) for finding in evidence.findings)
    return found


def _committed_and_outcome(evidence: Evidence) -> Iterator[Violation]:
    """Each committed request has exactly one outcome, and no other request has any."""
    inserted = Counter(id for operation, id, _state in evidence.operations if operation == "INSERT")
    recorded = Counter(response.id for response in evidence.responses)
    for request in evidence.sent:
        if inserted[request.id] == 0 or recorded[request.id] == 0:
            yield Violation("lost", request.key, f"request {request.id} has no outcome")
        elif inserted[request.id] > 1 or recorded[request.id] > 1:
            detail = f"request {request.id} has {inserted[request.id]} outcomes"
            yield Violation("double outcome", request.key, detail)
    for operation, id, state in evidence.operations:
        if operation != "INSERT":
            detail = f"an outcome was touched: {operation}, {state}"
            yield Violation("double outcome", str(id), detail)
    committed = {request.id for request in evidence.sent}
    for id in (inserted.keys() | recorded.keys()) - committed:
        yield Violation("phantom", str(id), "an outcome of a request that was not committed")


def _phantoms(evidence: Evidence) -> Iterator[Violation]:
    """What was not committed has not been seen."""
    committed = {request.key for request in evidence.sent}
    for key in {sighting.key for sighting in evidence.sightings} - committed:
        yield Violation("phantom", key, "sent though it was not committed")


def _at_most_once(evidence: Evidence) -> Iterator[Violation]:
    seen = Counter(sighting.key for sighting in evidence.sightings)
    for request in evidence.sent:
        if request.delivery == "at_most_once" and seen[request.key] > 1:
            detail = f"request {request.id} was seen {seen[request.key]} times"
            yield Violation("sent twice though at most once", request.key, detail)


def _outcomes(evidence: Evidence) -> Iterator[Violation]:
    """An outcome says what the witness did, for this very request."""
    requests = {request.id: request for request in evidence.sent}
    seen: dict[str, list[Sighting]] = defaultdict(list)
    for sighting in evidence.sightings:
        seen[sighting.key].append(sighting)
    for response in evidence.responses:
        request = requests.get(response.id)
        if request is None:
            continue
        for detail in _faults_of(request, response, seen[request.key]):
            yield Violation("wrong outcome", request.key, f"request {request.id}: {detail}")
    ended = {response.id: response.state for response in evidence.responses}
    for id, state in ended.items():
        if (state == "failed") != (id in evidence.failed):
            detail = f"{state}, and {'' if id in evidence.failed else 'not '}among the failures"
            yield Violation("wrong outcome", str(id), detail)
    for key in evidence.wrong_bodies:
        yield Violation("wrong outcome", key, "its body came as another")


def _faults_of(request: Sent, response: Response, seen: list[Sighting]) -> Iterator[str]:
    if response.state not in ENDS:
        yield f"ended as {response.state}"
    if not response.url.endswith(f"/{request.key}"):
        yield f"recorded for {response.url}"
    if any(sighting.method != request.method for sighting in seen):
        yield "came with another method"
    if response.status_code is None:
        if response.state == "succeeded":
            yield "succeeded without an answer"
        if not response.error_msg:
            yield "neither an answer nor an error"
        if request.delivery == "at_most_once" and response.state == "failed" and seen:
            yield f"failed, as if never sent ({response.error_msg}); yet it was seen"
        return
    try:
        content = json.loads(response.content or "")
        key, number = content["key"], content["number"]
    except (ValueError, KeyError, TypeError):
        yield f"an answer that nobody gave: {response.content!r}"
        return
    if key != request.key:
        yield f"the answer to {key}"
        return
    answered = [sighting for sighting in seen if sighting.number == number]
    if not answered or answered[0].status != response.status_code:
        yield f"status {response.status_code}, though the witness gave {answered}"
    if response.state == "unknown":
        yield "unknown, though there is an answer"


def _keys(evidence: Evidence) -> Iterator[Violation]:
    """Idempotency-Key: one for all attempts of a request, and another for each other request."""
    sent: dict[str, set[str | None]] = defaultdict(set)
    for sighting in evidence.sightings:
        sent[sighting.key].add(sighting.idempotency_key)
    owners: dict[str, str] = {}
    for request in evidence.sent:
        keys = sent.get(request.key)
        if keys is None:
            continue
        if len(keys) > 1:
            yield Violation("key", request.key, f"came with different ones: {keys}")
        if request.idempotency_key is not None and keys != {request.idempotency_key}:
            yield Violation("key", request.key, f"{request.idempotency_key} was asked for: {keys}")
        for key in keys - {None}:
            assert key is not None
            owner = owners.setdefault(key, request.key)
            if owner != request.key:
                yield Violation("key", request.key, f"has the same one as {owner}: {key}")


def _left_over(evidence: Evidence) -> Iterator[Violation]:
    for id in evidence.queued:
        yield Violation("left over", str(id), "still in the queue")
    for id in evidence.claimed:
        yield Violation("left over", str(id), "still claimed")


def _attempts(evidence: Evidence) -> Iterator[Violation]:
    """Attempts are numbered from 1 to the count that the outcome says."""
    rows: dict[int, list[Attempt]] = defaultdict(list)
    for row in evidence.attempts:
        rows[row.id].append(row)
    for response in evidence.responses:
        if response.attempts < 1:
            yield Violation("attempts", str(response.id), f"{response.attempts} attempts")
    counts = {response.id: response.attempts for response in evidence.responses}
    for id, of_one in rows.items():
        numbers = sorted(row.attempt for row in of_one)
        if numbers != list(range(1, counts.get(id, 0) + 1)):
            detail = f"{numbers}, and the outcome says {counts.get(id)}"
            yield Violation("attempts", str(id), detail)


def _database(evidence: Evidence) -> Iterator[Violation]:
    """What the server has told its clients: not ours to break, and a harness that errs shows here."""
    committed = {request.key for request in evidence.sent}
    for key in evidence.acknowledged - committed:
        yield Violation("database", key, "its commit was acknowledged, and it is not there")
    for key in evidence.undone & committed:
        yield Violation("database", key, "it was rolled back, and it is there")


def summary(evidence: Evidence, violations: Iterable[Violation]) -> list[tuple[str, int]]:
    """The figures of a run, by their names."""
    seen = Counter(sighting.key for sighting in evidence.sightings)
    states = Counter(response.state for response in evidence.responses)
    found = Counter(violation.kind for violation in violations)
    return [
        ("requests committed", len(evidence.sent)),
        ("requests undone, as their clients know", len(evidence.undone)),
        ("requests seen by the witness", sum(seen.values())),
        ("keys seen more than once", sum(count > 1 for count in seen.values())),
        *((f"outcomes: {state}", count) for state, count in sorted(states.items())),
        *((f"violations: {kind}", found[kind]) for kind in KINDS),
    ]
