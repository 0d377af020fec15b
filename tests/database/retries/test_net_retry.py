"""net.attempts has a row for each attempt; net.retry sends requests that have ended again."""

from __future__ import annotations

import pytest
from psycopg import errors

from servers.cluster import Database
from servers.scripted import RESET, Reply, Scripted, ended, send

# ---- net.attempts


def test_rows_of_attempts(served: Database, server: Scripted) -> None:
    url = server.script(503, RESET, Reply(429, {"Retry-After": "1"}), 200)
    id = send(served, "PUT", url, retry="hook")
    ended(served, id)
    rows = served.rows(
        "select attempt, state, status_code, timed_out, error_msg, retry_in is not null,"
        " started <= ended, ended <= clock_timestamp()"
        " from net.attempts where request_id = %s order by attempt",
        id,
    )
    made = len(rows)
    assert [row[0] for row in rows] == list(range(1, made + 1))
    assert [row[1] for row in rows] == ["answered"] * (made - 1) + ["succeeded"]
    assert [row[3] for row in rows] == [False] * made
    assert [row[5] for row in rows] == [True] * (made - 1) + [False]
    assert all(row[6] and row[7] for row in rows)
    assert rows[0][2] == 503
    assert rows[-1][2] == 200
    # An attempt begins when the time of the one before is over.
    waits = served.rows(
        "select lead(started) over (order by attempt) - ended - retry_in from net.attempts"
        " where request_id = %s order by attempt",
        id,
    )
    for (early,) in waits[:-1]:
        assert early.total_seconds() > -0.05
    assert served.value("select attempts from net._http_response where id = %s", id) == made


def test_an_attempt_in_flight_is_a_row(served: Database, server: Scripted) -> None:
    url = server.script(503, Reply(after=1.0))
    id = send(served, "GET", url, retry="quick")
    served.wait_for(
        "select count(*) from net.attempts where request_id = %s and attempt = 2"
        " and state = 'in_flight' and ended is null",
        id,
    )
    assert ended(served, id) == ("succeeded", 200, 2)


def test_attempts_are_their_role_s_own(served: Database, server: Scripted) -> None:
    with served.connect() as connection:
        connection.execute("create role retries_alice login")
        connection.execute("create role retries_bob login")
    try:
        url = server.script(503, 200)
        with served.connect("retries_alice") as alice, served.connect("retries_bob") as bob:
            row = alice.execute(
                "select net.http_request('GET', %s, retry => 'quick')", [url]
            ).fetchone()
            assert row is not None
            assert alice.execute("select (net.wait(%s)).attempts", row).fetchone() == (2,)
            count_of = "select count(*) from net.attempts where request_id = %s"
            assert alice.execute(count_of, row).fetchone() == (2,)
            assert bob.execute(count_of, row).fetchone() == (0,)
    finally:
        served.execute("drop role retries_alice")
        served.execute("drop role retries_bob")


# ---- net.retry


def test_a_thousand_are_sent_again(served: Database, server: Scripted) -> None:
    """Each is sent again once, with the key of the first time, and the failures are gone."""
    url = server.script(503)
    served.execute(
        "select net.http_request('POST', %s || '?n=' || n, body => jsonb_build_object('n', n),"
        " retry => 'hook', max_attempts => 2, timeout_milliseconds => 20000)"
        " from generate_series(1, 1000) n",
        url,
    )
    # A path with its query is a path of its own.
    path = "/" + url.split("/", 3)[3]
    for n in range(1, 1001):
        server.scripts[f"{path}?n={n}"] = [Reply(503), Reply(503), Reply(200)]
    mine = "f.url like %s || '?n=%%'"
    served.wait_for(
        f"select count(*) from net.failures f where {mine}", url,
        predicate=lambda n: n == 1000, timeout=60,
    )  # fmt: skip
    pairs = served.rows(f"select f.id, net.retry(f.id) from net.failures f where {mine}", url)
    assert len({new for _, new in pairs}) == 1000
    assert {new for _, new in pairs}.isdisjoint({old for old, _ in pairs})
    served.wait_for(
        f"select count(*) from net.responses f where {mine} and f.state = 'succeeded'", url,
        predicate=lambda n: n == 1000, timeout=60,
    )  # fmt: skip
    assert served.value(f"select count(*) from net.failures f where {mine}", url) == 0
    again = served.rows(
        "select retry_of, id from net.responses where retry_of = any(%s)", [o for o, _ in pairs]
    )
    assert set(again) == set(pairs)
    for n in range(1, 1001):
        seen = server.record[f"{path}?n={n}"]
        assert len(seen) == 3
        assert len({(one.method, one.key, one.body) for one in seen}) == 1
        assert seen[0].key is not None


def test_retry_with_a_new_key(served: Database, server: Scripted) -> None:
    derived, asked = server.script(503, 503, 503, 200), server.script(503, 503, 503, 200)
    ids = [
        send(served, "POST", derived, retry="hook", max_attempts=2),
        send(served, "POST", asked, retry="hook", max_attempts=2,
             options={"idempotency_key": "mine"}),
    ]  # fmt: skip
    for id in ids:
        assert ended(served, id) == ("failed", 503, 2)
        again = served.value("select net.retry(%s, new_idempotency_key => true)", id)
        assert ended(served, again) == ("succeeded", 200, 2)
        assert served.row("select retry_of, attempts from net.requests where id = %s", again) == (
            id,
            2,
        )
    for url in (derived, asked):
        keys = [seen.key for seen in server.seen(url)]
        assert keys[0] == keys[1] != keys[2] == keys[3]
        assert None not in keys
    assert server.seen(asked)[0].key == "mine"


def test_retry_is_part_of_a_transaction(served: Database, server: Scripted) -> None:
    url = server.script(503, 200)
    id = send(served, "GET", url)
    assert ended(served, id) == ("failed", 503, 1)
    with served.connect(autocommit=False) as connection:
        connection.execute("select net.retry(%s)", [id])
        connection.rollback()
    assert served.value("select count(*) from net.failures where id = %s", id) == 1
    again = served.value("select net.retry(%s)", id)
    assert ended(served, again) == ("succeeded", 200, 1)
    assert len(server.seen(url)) == 2


def test_what_cannot_be_sent_again(served: Database, server: Scripted) -> None:
    assert served.value("select net.retry(null)") is None
    failed, fine = (
        send(served, "GET", server.script(503, 200)),
        send(served, "GET", server.script(200)),
    )
    assert ended(served, failed)[0] == "failed"
    assert ended(served, fine)[0] == "succeeded"
    in_flight = send(served, "GET", server.script(Reply(after=1.0)))
    served.execute("select net.retry(%s)", failed)
    for id in (failed, fine, in_flight, 10**9):
        with pytest.raises(errors.NoDataFound, match=f"no request {id} to send again") as caught:
            served.execute("select net.retry(%s)", id)
        assert "net.failures" in (caught.value.diag.message_hint or "")
    assert ended(served, in_flight) == ("succeeded", 200, 1)


def test_another_role_s_are_not_sent_again(served: Database, server: Scripted) -> None:
    served.execute("create role retries_carol login")
    try:
        id = send(served, "GET", server.script(503, 503, 200))
        assert ended(served, id)[0] == "failed"
        with served.connect("retries_carol") as carol:
            with pytest.raises(errors.NoDataFound):
                carol.execute("select net.retry(%s)", [id])
            own = carol.execute(
                "select net.http_get(%s, timeout_milliseconds => 5000)", [server.script(503)]
            ).fetchone()
            assert own is not None
            assert carol.execute("select (net.wait(%s)).state::text", own).fetchone() == ("failed",)
        # The owner may, and it stays that role's.
        again = served.value("select net.retry(%s)", own[0])
        assert ended(served, again)[0] == "failed"
        assert (
            served.value("select requested_by::text from net.requests where id = %s", again)
            == "retries_carol"
        )
        served.execute("delete from pgnet.failed where requested_by = 'retries_carol'::regrole")
        served.execute(
            "delete from net._http_response where requested_by = 'retries_carol'::regrole"
        )
    finally:
        served.execute("drop role retries_carol")
