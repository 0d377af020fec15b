"""The check of a run: compares what was committed, what the witness saw, and what was recorded.

Nothing here asks the database or the witness: it is given all that they know, as Evidence, so that
a test can give it a run with one thing wrong.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from chaos import flow_rules, orders

ENDS = frozenset(["succeeded", "failed", "unknown", "cancelled", "expired"])
# Attempts of a request with the policy orders.QUICK that does not say its own number.
_QUICK_ATTEMPTS = 4
# Answers that it tries again.
_TRANSIENT = frozenset([408, 425, 429, 500, 502, 503, 504])
_SAFE_ATTEMPTS, _SAFE_METHODS = 5, frozenset(["GET", "PUT"])


@dataclass(frozen=True, slots=True)
class Sent:
    """A row of app.sent: a request that was committed.

    former: the one it is sent again for. blocks: whether its failure blocks its ordering key.
    not_before, not_after: in seconds since the epoch.
    """

    key: str
    id: int
    method: str = "GET"
    delivery: str = "at_least_once"
    retry: str | None = None
    max_attempts: int | None = None
    idempotency_key: str | None = None
    former: int | None = None
    ordering_key: str | None = None
    blocks: bool = False
    after: list[int] | None = None
    after_any_end: bool = False
    not_before: float | None = None
    not_after: float | None = None
    limited: bool = False
    calls: bool = False


@dataclass(frozen=True, slots=True)
class Sighting:
    """A request that came to the witness; number: which one of this key. See chaos/witness.py."""

    key: str
    number: int
    method: str
    idempotency_key: str | None
    way: str
    status: int | None
    time: float = 0.0
    beside: Sequence[str] = ()
    at_once: int | None = None


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
    state: str


@dataclass(slots=True)
class Evidence:
    """All that is known when everything has drained."""

    sent: list[Sent] = field(default_factory=list)
    sightings: list[Sighting] = field(default_factory=list)
    responses: list[Response] = field(default_factory=list)
    # what happened to outcomes: operation, id, state
    operations: list[tuple[str, int, str]] = field(default_factory=list)
    # what orders events: the numbers at which requests ended, and at which a blocked key was let
    # run, by its head
    ended: dict[int, int] = field(default_factory=dict)
    let_run: list[tuple[int, int]] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    # those that net.failures shows
    failed: set[int] = field(default_factory=set)
    # those for which net.cancel returned true
    cancelled: list[int] = field(default_factory=list)
    # those whose mark no worker has acted on
    marked: set[int] = field(default_factory=set)
    queued: set[int] = field(default_factory=set)
    claimed: set[int] = field(default_factory=set)
    # keys that the server told a client of: committed, and rolled back
    acknowledged: set[str] = field(default_factory=set)
    undone: set[str] = field(default_factory=set)
    # of those that were committed: the transaction, when it began, and when it was acknowledged
    spans: dict[str, tuple[int, float, float]] = field(default_factory=dict)
    # when claims were lost with a server, or connections outlived their claims
    upsets: list[float] = field(default_factory=list)
    # requests that came with another body than was asked for
    wrong_bodies: list[str] = field(default_factory=list)
    # what callbacks have done: ids with states; the sets that were made, by their ids, and what was
    # called for them
    called: list[tuple[int, str]] = field(default_factory=list)
    sets: list[tuple[int, ...]] = field(default_factory=list)
    called_sets: list[tuple[tuple[int, ...], tuple[str, ...]]] = field(default_factory=list)
    # nothing went wrong that anybody may notice
    calm: bool = False
    # other faults: a worker that ended by itself, a backend that crashed
    findings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that was broken, and the request that broke it; kind is one of KINDS."""

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
    "order",
    "limit",
    "time",
    "callback",
    "database",
    "finding",
)


def check(evidence: Evidence) -> list[Violation]:
    """Every violation there is; none is what a good run gives."""
    found: list[Violation] = []
    if not evidence.sent:
        found.append(Violation("finding", "once", "no request was committed: nothing is shown"))
    for examine in (
        _committed_and_outcome,
        _phantoms,
        _at_most_once,
        _outcomes,
        _keys,
        _left_over,
        _attempts,
        _flow,
        _callbacks,
        _database,
        _calm,
    ):
        found.extend(examine(evidence))
    for finding, count in Counter(evidence.findings).items():
        found.append(Violation("finding", f"{count} times" if count > 1 else "once", finding))
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
    """The witness has seen no request that was not committed."""
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
    dooms = flow_rules.doomed(evidence)
    former = Counter(request.former for request in evidence.sent if request.former is not None)
    for id, state in ended.items():
        kept = state in ("failed", "unknown", "cancelled") and id not in former
        # Whether a cancelled request can be sent again depends on when it was cancelled.
        if state != "cancelled" and kept != (id in evidence.failed):
            detail = f"{state}, and {'' if id in evidence.failed else 'not '}among the failures"
            yield Violation("wrong outcome", str(id), detail)
        if state == "cancelled" and id not in set(evidence.cancelled) | dooms:
            yield Violation("wrong outcome", str(id), "cancelled, and nobody has cancelled it")
    # An attempt that ended before a worker saw the cancel keeps its outcome. Without an attempt
    # there is no outcome to keep.
    for response in evidence.responses:
        cancelled = response.id in evidence.cancelled
        unsent = response.state in ("cancelled", "expired")
        if cancelled and not unsent and response.attempts == 0:
            detail = f"{response.state} without an attempt, and it was cancelled"
            yield Violation("wrong outcome", str(response.id), detail)
    for id in evidence.marked:
        yield Violation("wrong outcome", str(id), "what it was marked for was not done")
    for id, count in former.items():
        if count > 1:
            yield Violation("double outcome", str(id), f"sent again {count} times")
        if ended.get(id) != "failed":
            yield Violation("wrong outcome", str(id), f"{ended.get(id)}, and sent again")
    for key in evidence.wrong_bodies:
        yield Violation("wrong outcome", key, "its body came as another")


def _faults_of(request: Sent, response: Response, seen: list[Sighting]) -> Iterator[str]:
    if response.state not in ENDS:
        yield f"ended as {response.state}"
    if response.state == "unknown" and request.delivery != "at_most_once":
        yield "unknown, though it may be sent again"
    if not response.url.endswith(f"/{request.key}"):
        yield f"recorded for {response.url}"
    if any(sighting.method != request.method for sighting in seen):
        yield "came with another method"
    if response.status_code is None:
        if response.state == "succeeded":
            yield "succeeded without an answer"
        if not response.error_msg:
            yield "neither an answer nor an error"
        if response.state in ("cancelled", "expired"):
            return
        if request.delivery == "at_most_once" and response.state == "failed" and seen:
            yield f"failed, as if never sent ({response.error_msg}); yet it was seen"
        return
    if response.error_msg is not None:
        # The answer has its status and a part of its body: the beginning of what the witness sent.
        yield from _faults_of_a_part(request, response, seen)
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


def _faults_of_a_part(request: Sent, response: Response, seen: list[Sighting]) -> Iterator[str]:
    given = [
        json.dumps({"key": request.key, "number": sighting.number})
        for sighting in seen
        if sighting.status == response.status_code
    ]
    if not any(text.startswith(response.content or "") for text in given):
        yield f"{response.status_code} and {response.content!r}, though the witness gave {given}"
    if response.state == "unknown":
        yield "unknown, though there is a status"


def _keys(evidence: Evidence) -> Iterator[Violation]:
    """Idempotency-Key: one for all attempts of a request, and another for each other request."""
    sent: dict[str, set[str | None]] = defaultdict(set)
    for sighting in evidence.sightings:
        sent[sighting.key].add(sighting.idempotency_key)
    again = {request.key for request in evidence.sent if request.former is not None}
    owners: dict[str, str] = {}
    for request in evidence.sent:
        keys = set(sent.get(request.key, ()))
        if not keys or request.former is not None:
            continue
        asked = request.idempotency_key
        # A repeated request has its key; the first one may have needed none.
        may_lack = request.key in again and asked is None and not _is_sent_twice(request)
        if len(keys - {None} if may_lack else keys) > 1:
            yield Violation("key", request.key, f"came with different ones: {keys}")
        elif asked is not None and keys != {asked}:
            yield Violation("key", request.key, f"{asked!r} was asked for: {keys}")
        elif None in keys and _is_sent_twice(request):
            yield Violation("key", request.key, "came without one, though it may be sent twice")
        for key in keys - {None}:
            assert key is not None
            owner = owners.setdefault(key, request.key)
            if owner != request.key:
                yield Violation("key", request.key, f"has the same one as {owner}: {key}")


def _is_sent_twice(request: Sent) -> bool:
    """Whether its policy sends a method again that is not idempotent."""
    return (
        request.method == "POST"
        and request.delivery == "at_least_once"
        and request.retry in ("webhook", orders.QUICK)
        and request.max_attempts != 1
    )


def _left_over(evidence: Evidence) -> Iterator[Violation]:
    for id in evidence.queued:
        yield Violation("left over", str(id), "still in the queue")
    for id in evidence.claimed:
        yield Violation("left over", str(id), "still claimed")


def _attempts(evidence: Evidence) -> Iterator[Violation]:
    """Attempts are numbered from 1 to the count that the outcome says, and as many as allowed."""
    rows: dict[int, list[Attempt]] = defaultdict(list)
    for row in evidence.attempts:
        rows[row.id].append(row)
    requests = {request.id: request for request in evidence.sent}
    for response in evidence.responses:
        of_one = sorted(rows[response.id], key=lambda row: row.attempt)
        if [row.attempt for row in of_one] != list(range(1, response.attempts + 1)):
            detail = f"{of_one}, and the outcome says {response.attempts}"
            yield Violation("attempts", str(response.id), detail)
            continue
        request = requests.get(response.id)
        if request is None or response.state in ("cancelled", "expired"):
            continue
        if response.attempts < 1:
            yield Violation("attempts", request.key, "it has an outcome without an attempt")
            continue
        *earlier, last = of_one
        if last.state != response.state:
            yield Violation("attempts", request.key, f"{response.state}, and the last was {last}")
        answered = 1 + sum(row.state == "answered" for row in earlier)
        most = _max_attempts(request)
        if answered > most:
            detail = f"{answered} had an outcome, and {most} are allowed"
            yield Violation("attempts", request.key, detail)
        if answered < most and _gave_up(request, response):
            detail = f"{response.state} after {answered} of {most}, and could be tried again"
            yield Violation("attempts", request.key, detail)
        if request.delivery == "at_most_once" and any(
            row.state not in ("answered",) for row in earlier
        ):
            detail = f"tried again though nobody knew of an earlier one: {of_one}"
            yield Violation("sent twice though at most once", request.key, detail)


def _max_attempts(request: Sent) -> int:
    by_policy = {"safe": _SAFE_ATTEMPTS, orders.QUICK: _QUICK_ATTEMPTS, "webhook": 15}
    return request.max_attempts or by_policy.get(request.retry or "none", 1)


def _gave_up(request: Sent, response: Response) -> bool:
    """Whether the request failed with an answer or an error that its policy tries again.

    The policies with a total time are left out: the clock jumps.
    """
    if response.state != "failed" or request.retry != orders.QUICK:
        return False
    if response.status_code is not None:
        return request.delivery == "at_least_once" and response.status_code in _TRANSIENT
    # After losses with many workers it ends whatever the policy says.
    return not _is_poison(response)


def _is_poison(response: Response) -> bool:
    return "workers were lost with it" in (response.error_msg or "")


def _flow(evidence: Evidence) -> Iterator[Violation]:
    for rule in flow_rules.rules():
        yield from (Violation(*finding) for finding in rule(evidence))


def _callbacks(evidence: Evidence) -> Iterator[Violation]:
    """Each callback was called once, with the outcome of its request; and no other was."""
    states = {response.id: response.state for response in evidence.responses}
    called = Counter(id for id, _state in evidence.called)
    expected = {request.id for request in evidence.sent if request.calls}
    for id in expected | called.keys():
        if called[id] != (id in expected):
            yield Violation("callback", str(id), f"called {called[id]} times")
    for id, state in evidence.called:
        if state != states.get(id):
            yield Violation("callback", str(id), f"called with {state}, and it is {states.get(id)}")
    sets = Counter(ids for ids, _states in evidence.called_sets)
    for ids in {*evidence.sets, *sets}:
        if sets[ids] != (ids in evidence.sets):
            yield Violation("callback", str(ids[0]), f"the set {ids} was called {sets[ids]} times")
    for ids, found in evidence.called_sets:
        if found != tuple(states.get(id) for id in ids):
            yield Violation("callback", str(ids[0]), f"the set {ids} was called with {found}")


def _database(evidence: Evidence) -> Iterator[Violation]:
    """The server has what it told its clients; otherwise the harness errs."""
    committed = {request.key for request in evidence.sent}
    for key in evidence.acknowledged - committed:
        yield Violation("database", key, "its commit was acknowledged, and it is not there")
    for key in evidence.undone & committed:
        yield Violation("database", key, "it was rolled back, and it is there")


def _calm(evidence: Evidence) -> Iterator[Violation]:
    """Where nothing goes wrong each request is sent once, and succeeds."""
    if not evidence.calm:
        return
    for key, count in Counter(sighting.key for sighting in evidence.sightings).items():
        if count > 1:
            yield Violation("double outcome", key, f"seen {count} times, and nothing went wrong")
    for response in evidence.responses:
        if response.state not in ("succeeded", "cancelled", "expired") or response.attempts > 1:
            detail = f"{response.state} after {response.attempts} attempts, and nothing went wrong"
            yield Violation("wrong outcome", str(response.id), detail)


def summary(evidence: Evidence, violations: Iterable[Violation]) -> list[tuple[str, int]]:
    """The figures of a run, by their names."""
    seen = Counter(sighting.key for sighting in evidence.sightings)
    states = Counter(response.state for response in evidence.responses)
    found = Counter(violation.kind for violation in violations)
    poison = sum(_is_poison(response) for response in evidence.responses)
    return [
        ("requests committed", len(evidence.sent)),
        ("requests undone, as their clients know", len(evidence.undone)),
        ("requests seen by the witness", sum(seen.values())),
        ("keys seen more than once", sum(count > 1 for count in seen.values())),
        *((f"outcomes: {state}", count) for state, count in sorted(states.items())),
        ("of these failed since many workers were lost with them", poison),
        ("callbacks called", len(evidence.called)),
        ("callbacks of sets called", len(evidence.called_sets)),
        *((f"violations: {kind}", found[kind]) for kind in KINDS),
    ]
