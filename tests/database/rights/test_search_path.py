"""A search_path full of traps misleads no function of ours."""

from __future__ import annotations

import pytest
from psycopg import errors

from servers.cluster import Database
from servers.nginx import Nginx
from servers.rights import URL, trick, value


def test_a_users_path_does_not_mislead_a_definers_function(own: Database) -> None:
    """A definer function whose author forgot to pin the search_path still books to its owner."""
    vault = own.connect("rights_vault")
    vault.execute(
        "create function public.post_it() returns bigint language sql security definer"
        f" as $$ select net.http_post('{URL}', '{{\"token\": \"hunter2\"}}') $$"
    )
    alice = own.connect("rights_alice")
    trick(alice)
    request_id = value(alice, "select public.post_it()")
    assert own.rows("select id, requested_by::text from net.http_request_queue") == [
        (request_id, "rights_vault")
    ]
    assert value(alice, "select count(*) from net.http_request_queue") == 0


def test_a_types_name_runs_nobodys_code(own: Database) -> None:
    """pg_temp comes first for types, whatever path a definer function pins."""
    vault = own.connect("rights_vault")
    vault.execute(
        f"""
        create table public.orders (id int);
        grant insert on public.orders to rights_alice;
        create function public.post_token() returns trigger
        language plpgsql security definer set search_path = '' as $$
        begin
            perform net.http_get('{URL}',
                headers => pg_catalog.jsonb_build_object('Authorization', 'hunter2'));
            perform net.http_post('{URL}', pg_catalog.jsonb_build_object('token', 'hunter2'),
                headers => pg_catalog.jsonb_build_object('Authorization', 'hunter2'));
            perform net.http_delete('{URL}',
                body => pg_catalog.jsonb_build_object('token', 'hunter2'));
            return new;
        end $$;
        create trigger post_token after insert on public.orders
            for each row execute function public.post_token();
        """
    )
    alice = own.connect("rights_alice")
    told: list[str] = []
    alice.add_notice_handler(lambda notice: told.append(notice.message_primary or ""))
    alice.execute(
        """
        create function pg_temp.steal(pg_catalog.text) returns boolean language plpgsql as $$
        begin raise notice '% as %', $1, current_user; return true; end $$;
        create function pg_temp.steal(pg_catalog.jsonb) returns boolean language plpgsql as $$
        begin raise notice '% as %', $1, current_user; return true; end $$;
        create domain pg_temp.jsonb as pg_catalog.jsonb check (pg_temp.steal(value));
        create domain pg_temp.text as pg_catalog.text check (pg_temp.steal(value));
        create domain pg_temp.record as pg_catalog.text check (pg_temp.steal(value));
        create domain pg_temp.name as pg_catalog.name;
        """
    )
    alice.execute("insert into public.orders values (1)")
    assert told == []
    assert own.value("select count(*) from net.requests") == 3


def test_traps_in_the_callers_path(served: Database, nginx: Nginx) -> None:
    alice = served.connect("rights_alice")
    trick(alice)
    try:
        get = value(alice, "select net.http_get(%s)", nginx.url)
        post = value(
            alice,
            "select net.http_post(%s, '{}'::pg_catalog.jsonb, null, '{\"a\": \"b\"}')",
            f"{nginx.url}/status/500",
        )
        delete = value(alice, "select net.http_delete(%s, body => '1')", nginx.url)
        for request_id, status in ((get, 200), (post, 500)):
            assert value(alice, "select (net.wait(%s)).status_code", request_id) == status
        assert value(alice, "select ((net.http_get_result(%s, false)).response).body", get) == (
            "pgnet"
        )
        alice.execute("select * from net.wait_all(array[%s::bigint])", (delete,))
        for relation, expected in (
            ("requests", {get, post, delete}),
            ("responses", {get, post, delete}),
            ("failures", {post}),
        ):
            found = {number for (number,) in alice.execute(f"select id from net.{relation}")}
            assert found & {get, post, delete} == expected
        alice.execute("select * from net.settings")
        alice.execute("select * from net.egress")
        assert value(alice, "select net.cancel(%s)", get) is False
        alice.execute("select net.wake(), net.worker_restart(), net.check_worker_is_up()")
        row = alice.execute("call net.fetch('post', %s, '1')", (f"{nginx.url}/method",)).fetchone()
        assert row is not None
        assert row[2] == "POST"
        with pytest.raises(errors.InvalidParameterValue):
            alice.execute("select net.http_get('mailto:x')")
        assert alice.execute("select count(*) from pg_temp.http_request_queue").fetchone() == (0,)
    finally:
        alice.close()
        served.execute("drop owned by rights_alice cascade")


def test_traps_in_the_workers_path(own: Database, nginx: Nginx) -> None:
    """A worker's session whose role has a path of traps sends and records all the same."""
    own.execute("select net.grant_worker('rights_worker')")
    request_id = own.value("select net.http_get(%s)", nginx.url)
    worker = own.connect("rights_worker")
    trick(worker)
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="temporary tables"):
        worker.execute("call net.drain()")
    worker.execute("discard temp")
    worker.execute("call net.drain()")
    assert own.value("select (net.wait(%s)).content", request_id) == "pgnet"
    request_id = own.value("select net.http_get(%s)", nginx.url)
    own.execute("alter role rights_worker set search_path = public, pg_catalog")
    try:
        with own.cluster.worker(dbname=own.name, user="rights_worker"):
            assert own.value("select (net.wait(%s)).content", request_id) == "pgnet"
    finally:
        own.execute("alter role rights_worker reset search_path")


def test_traps_in_the_owners_path(own: Database) -> None:
    """The owner's functions pin theirs: an egress rule is not written by somebody's operator."""
    trick(own.connect("rights_alice"))
    own.execute("set search_path = public, pg_catalog")
    own.execute("select net.configure('ttl', '1 hour')")
    own.execute("select net.deny_host('Example.com'), net.forget_network('loopback')")
    own.execute("select * from net.check()")
    own.execute("reset search_path")
    assert own.rows("select kind, pattern, verdict from net.egress") == [
        ("host", "example.com", "deny")
    ]
    assert own.value("select value from net.settings where name = 'ttl'") == "1 hour"
