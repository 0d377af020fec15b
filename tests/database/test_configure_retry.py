"""Retry policies in the database: the checks of net.configure_retry, what workers are told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors
from psycopg.types.json import Jsonb

from pgnet.worker.retry import ALL_STATUSES, ERROR_KINDS, NONE, Policy
from servers.cluster import Cluster, Database


@pytest.fixture(scope="module")
def policies(cluster: Cluster) -> Iterator[Database]:
    database = cluster.create_database()
    yield database
    database.drop()


@pytest.fixture(autouse=True)
def forget(policies: Database) -> Iterator[None]:
    yield
    policies.execute("delete from pgnet.host")
    policies.execute("delete from pgnet.retry_policy")


def configure(database: Database, name: str | None, settings: Any) -> None:
    database.execute(
        "select net.configure_retry(%s, %s)", name, None if settings is None else Jsonb(settings)
    )


def own(database: Database) -> dict[str, Any]:
    return dict(database.rows("select name, settings from pgnet.retry_policy"))


def read(database: Database) -> dict[str, Policy]:
    """The retry policies as a worker gets them."""
    policies = database.value("select pgnet.retry_policy_settings()")
    return {name: Policy.from_json(name, settings) for name, settings in policies.items()}


def test_the_built_in_ones(policies: Database) -> None:
    assert read(policies) == {
        "none": NONE,
        "safe": Policy(name="safe", max_attempts=5),
        "webhook": Policy(
            name="webhook",
            max_attempts=15,
            backoff=5,
            backoff_factor=3,
            max_backoff=4 * 3600,
            statuses=ALL_STATUSES,
            accept=frozenset(range(200, 300)),
            errors=ERROR_KINDS,
            methods="any",
            max_retry_after=4 * 3600,
            total=24 * 3600,
        ),
    }
    rows = policies.rows("select name, built_in from net.retry_policies order by name")
    assert rows == [("none", True), ("safe", True), ("webhook", True)]


def test_each_policy_is_shown_complete(policies: Database) -> None:
    configure(policies, "mine", {"max_attempts": 3})
    known = {name for (name,) in policies.rows("select name from pgnet.known_retry_settings()")}
    shown = policies.rows("select name, settings, built_in from net.retry_policies")
    assert len(shown) == 4
    for _, settings, _ in shown:
        assert set(settings) == known
    assert [name for name, _, built_in in shown if not built_in] == ["mine"]


def test_what_is_left_out_is_as_in_safe(policies: Database) -> None:
    configure(policies, "mine", {})
    configure(policies, "other", {"accept": ["2xx"]})
    found = read(policies)
    assert found["mine"] == Policy(name="mine", max_attempts=5)
    assert found["other"] == Policy(name="other", max_attempts=5, accept=frozenset(range(200, 300)))


def test_merged_reset_and_dropped(policies: Database) -> None:
    configure(policies, "mine", {"max_attempts": 3, "backoff_factor": 1.5})
    configure(policies, "mine", {"max_attempts": 4, "errors": []})
    assert own(policies) == {"mine": {"max_attempts": 4, "backoff_factor": 1.5, "errors": []}}
    configure(policies, "mine", {"max_attempts": None})
    assert own(policies) == {"mine": {"backoff_factor": 1.5, "errors": []}}
    configure(policies, "new", {"max_attempts": None})
    assert own(policies)["new"] == {}
    configure(policies, "mine", None)
    policies.execute("select net.configure_retry('new', 'null')")
    assert own(policies) == {}
    configure(policies, "mine", None)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_attempts": 1},
        {"max_attempts": 1000},
        {"backoff_milliseconds": 0},
        {"backoff_factor": 1.25},
        {"max_backoff_milliseconds": 604800000},
        {"statuses": "any"},
        {"statuses": []},
        {"statuses": [429, "503", "5xx", "520-530", "599-599"]},
        {"accept": ["2xx", 304]},
        {"errors": "any"},
        {"errors": ["name", "connect", "tls", "timeout", "connection", "response"]},
        {"methods": "any"},
        {"methods": "idempotent"},
        {"methods": ["get", "POST", "X-OWN"]},
        {"max_retry_after_milliseconds": 0},
        {"total_milliseconds": 2592000000},
    ],
    ids=lambda settings: "-".join(f"{key}:{value}" for key, value in settings.items()),
)
def test_good_settings(policies: Database, settings: dict[str, Any]) -> None:
    configure(policies, "mine", settings)
    assert own(policies) == {"mine": settings}
    # and it is one that workers can read
    assert read(policies)["mine"] == Policy.from_json("mine", {"max_attempts": 5, **settings})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([], "must be a JSON object"),
        ("safe", "must be a JSON object"),
        ({"retries": 1}, 'unknown setting "retries"'),
        ({"max_attempts": 0}, "must be an integer between 1 and 1000"),
        ({"max_attempts": 1001}, "must be an integer between 1 and 1000"),
        ({"max_attempts": 1.5}, "must be an integer"),
        ({"max_attempts": "3"}, "must be an integer"),
        ({"max_attempts": True}, "must be an integer"),
        ({"backoff_milliseconds": -1}, "must be an integer between 0"),
        ({"backoff_factor": 0.5}, "must be a number between 1 and 100"),
        ({"backoff_factor": "2"}, "must be a number"),
        ({"statuses": "all"}, 'must be "any" or a list of status codes'),
        ({"statuses": 503}, 'must be "any" or a list of status codes'),
        ({"statuses": [99]}, 'must be "any" or a list of status codes'),
        ({"statuses": [1000]}, 'must be "any" or a list of status codes'),
        ({"statuses": ["0xx"]}, 'must be "any" or a list of status codes'),
        ({"statuses": ["5XX"]}, 'must be "any" or a list of status codes'),
        ({"statuses": ["599-500"]}, 'must be "any" or a list of status codes'),
        ({"statuses": ["500-"]}, 'must be "any" or a list of status codes'),
        ({"statuses": ["503\n"]}, 'must be "any" or a list of status codes'),
        ({"statuses": [None]}, 'must be "any" or a list of status codes'),
        ({"statuses": [[503]]}, 'must be "any" or a list of status codes'),
        ({"statuses": {"503": 1}}, 'must be "any" or a list of status codes'),
        ({"accept": [200.5]}, 'must be "any" or a list of status codes'),
        ({"errors": ["gremlins"]}, 'must be "any" or a list of these: name, connect'),
        ({"errors": ["request"]}, 'must be "any" or a list of these: name, connect'),
        ({"errors": "connect"}, 'must be "any" or a list of these'),
        ({"errors": [1]}, 'must be "any" or a list of these'),
        ({"methods": "POST"}, 'must be "any", "idempotent" or a list of methods'),
        ({"methods": ["a b"]}, 'must be "any", "idempotent" or a list of methods'),
        ({"methods": [1]}, 'must be "any", "idempotent" or a list of methods'),
        ({"methods": {}}, 'must be "any", "idempotent" or a list of methods'),
        ({"total_milliseconds": 2592000001}, "must be an integer between 0 and 2592000000"),
    ],
    ids=str,
)
def test_bad_settings(policies: Database, settings: Any, words: str) -> None:
    with pytest.raises(errors.InvalidParameterValue) as caught:
        configure(policies, "mine", settings)
    assert words in str(caught.value)
    assert caught.value.diag.message_hint
    assert own(policies) == {}


@pytest.mark.parametrize("name", [None, "", "a b", "-a", "x" * 64, "a\n", "ä", 'a"'])
def test_bad_names(policies: Database, name: str | None) -> None:
    with pytest.raises(errors.InvalidParameterValue, match="invalid name"):
        configure(policies, name, {})


@pytest.mark.parametrize("name", ["none", "safe", "webhook"])
@pytest.mark.parametrize("settings", [{}, {"max_attempts": 2}, None])
def test_the_built_in_ones_stay(policies: Database, name: str, settings: Any) -> None:
    with pytest.raises(errors.InvalidParameterValue, match="is built in") as caught:
        configure(policies, name, settings)
    assert "one of your own" in (caught.value.diag.message_hint or "")


def test_a_name_is_checked_by_whoever_asks(policies: Database) -> None:
    configure(policies, "mine", {})
    with policies.connect() as connection:
        connection.execute("create role retry_alice")
        connection.execute("set role retry_alice")
        try:
            for name in ("none", "safe", "webhook", "mine"):
                connection.execute("select pgnet.check_retry_policy(%s)", [name])
            with pytest.raises(
                errors.InvalidParameterValue, match=r'^unknown retry policy "yours"'
            ) as caught:
                connection.execute("select pgnet.check_retry_policy('yours')")
            assert caught.value.diag.message_hint == "known: none, safe, webhook, mine"
            with pytest.raises(errors.InvalidParameterValue, match="must not be NULL"):
                connection.execute("select pgnet.check_retry_policy(null)")
            assert connection.execute(
                "select settings ->> 'max_attempts' from net.retry_policies where name = 'mine'"
            ).fetchone() == ("5",)
            for forbidden in (
                "select net.configure_retry('mine', '{}')",
                "select pgnet.retry_policy_settings()",
                "select * from pgnet.retry_policy",
            ):
                with pytest.raises(errors.InsufficientPrivilege):
                    connection.execute(forbidden)
        finally:
            connection.execute("reset role")
            connection.execute("drop role retry_alice")


# ---- the policy of a host


def test_a_host_names_a_policy(policies: Database) -> None:
    configure(policies, "mine", {})
    for name in ("none", "safe", "webhook", "mine"):
        policies.execute(
            "select net.configure_host('a.example', jsonb_build_object('retry', %s::text))", name
        )
        assert policies.value("select settings from net.hosts") == {"retry": name}
    for value in ("yours", 1, ["safe"], {"secret": "safe"}, True, ""):
        with pytest.raises(errors.InvalidParameterValue) as caught:
            policies.execute("select net.configure_host('a.example', %s)", Jsonb({"retry": value}))
        assert "must be the name of a retry policy: none, safe, webhook, mine" in str(caught.value)


def test_a_policy_that_a_host_names_stays(policies: Database) -> None:
    configure(policies, "mine", {"max_attempts": 2})
    for host in ("b.example", "*.a.example"):
        policies.execute('select net.configure_host(%s, \'{"retry": "mine"}\')', host)
    with pytest.raises(errors.DependentObjectsStillExist, match="is in use") as caught:
        configure(policies, "mine", None)
    assert (
        caught.value.diag.message_detail
        == "net.configure_host names it for: *.a.example, b.example"
    )
    hint = caught.value.diag.message_hint or ""
    policies.execute(hint.partition(": ")[2])
    assert own(policies) == {"mine": {"max_attempts": 2}}
    policies.execute("select net.configure_host('b.example', null)")
    configure(policies, "mine", None)
    assert own(policies) == {}


# ---- dumps, and what workers are told


def test_one_s_own_are_part_of_a_dump(policies: Database) -> None:
    configure(policies, "mine", {"max_attempts": 3})
    dump = policies.cluster.run(
        "pg_dump", "--dbname", policies.dsn(), "--data-only", "--table=pgnet.retry_policy"
    )
    assert 'mine\t{"max_attempts": 3}' in dump


def test_a_change_makes_a_new_revision(policies: Database) -> None:
    def revision() -> int:
        number: int = policies.value("select revision from pgnet.configuration")
        return number

    before = revision()
    configure(policies, "mine", {})
    assert revision() == before + 1
    configure(policies, "mine", None)
    assert revision() == before + 2


def test_what_the_table_holds_is_what_was_said(policies: Database) -> None:
    """Two sessions that change one policy: both changes are there."""
    configure(policies, "mine", {})
    with policies.connect() as one, policies.connect() as two:
        one.autocommit = False
        one.execute("select net.configure_retry('mine', '{\"max_attempts\": 2}')")
        two.execute("set lock_timeout = '50 ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            two.execute("select net.configure_retry('mine', '{\"backoff_factor\": 3}')")
        one.commit()
        two.execute("select net.configure_retry('mine', '{\"backoff_factor\": 3}')")
    assert own(policies) == {"mine": {"max_attempts": 2, "backoff_factor": 3}}
