"""net.help(): everything that is called or read, by topic, with an example that runs."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors

from servers.cluster import Database

# Errors that an example may raise in a database without requests, workers, pg_cron, other roles.
NOTHING_THERE = ("P0002", "55000", "42704", "57014")


def public(database: Database) -> set[str]:
    return {
        name
        for (name,) in database.rows(
            "select proname::text from pg_proc where pronamespace = 'net'::regnamespace"
            " union select relname from pg_class"
            " where relnamespace = 'net'::regnamespace and relkind = 'v'"
        )
        if not name.startswith("_")
    }


def test_everything_public_is_there_once(database: Database) -> None:
    """Each entry has the COMMENT of its object, and an example that names it."""
    rows = database.rows("select name, topic, description, example from net.help()")
    assert sorted(name for name, *_ in rows) == sorted(f"net.{name}" for name in public(database))
    for name, topic, description, example in rows:
        assert topic, name
        assert description, name
        assert name in example, name


def test_the_examples_run(database: Database) -> None:
    session = database.connect()
    session.execute("set statement_timeout = '1 s'")
    session.execute(
        "select net.set_secret('hook', 'https://example.com/hooks/12345678', 'https://example.com/')"
    )
    failed = []
    for name, example in session.execute("select name, example from net.help()").fetchall():
        try:
            session.execute(example)
        except psycopg.Error as error:
            if error.sqlstate not in NOTHING_THERE:
                failed.append((name, str(error)))
    assert failed == []


def test_a_topic(database: Database) -> None:
    topics = [topic for (topic,) in database.rows("select distinct topic from net.help()")]
    assert len(topics) > 5
    for topic in topics:
        assert database.rows("select distinct topic from net.help(%s)", topic) == [(topic,)]
    with pytest.raises(errors.InvalidParameterValue, match='no topic "nonsense"') as caught:
        database.execute("select net.help('nonsense')")
    for topic in topics:
        assert topic in (caught.value.diag.message_hint or "")
