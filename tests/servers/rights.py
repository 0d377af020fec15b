"""Helpers of the tests of rights: their roles, and a value that a role reads."""

from __future__ import annotations

from typing import Any

import psycopg

ROLES = ("rights_alice", "rights_bob", "rights_worker", "rights_vault")


URL = "http://127.0.0.1:1025/"


def value(connection: psycopg.Connection[Any], query: str, *arguments: Any) -> Any:
    row = connection.execute(query, arguments or None).fetchone()
    return None if row is None else row[0]


# ---- one's own requests only

READS = (
    "select id from net.http_request_queue",
    "select id from net._http_response",
    "select id from pgnet.failed",
    "select id from net.requests",
    "select id from net.responses",
    "select id from net.failures",
    "select request_id from pgnet.mark",
)

# ---- a search_path full of traps


def trick(connection: psycopg.Connection[Any]) -> None:
    """Put everything in the way that a role can make: in pg_temp and public, before pg_catalog."""
    connection.execute(
        """
        create function public.trap(anyelement, anyelement) returns boolean language plpgsql
            as $$ begin raise exception 'trapped by an operator'; end $$;
        create function public.trap_text(text, text) returns boolean language plpgsql
            as $$ begin raise exception 'trapped by an operator'; end $$;
        create function public.trap_json(jsonb, text) returns text language plpgsql
            as $$ begin raise exception 'trapped by an operator'; end $$;
        create operator public.= (
            leftarg = anyelement, rightarg = anyelement, function = public.trap);
        create operator public.>= (
            leftarg = anyelement, rightarg = anyelement, function = public.trap);
        create operator public.<> (
            leftarg = anyelement, rightarg = anyelement, function = public.trap);
        create operator public.= (leftarg = text, rightarg = text, function = public.trap_text);
        create operator public.~ (leftarg = text, rightarg = text, function = public.trap_text);
        create operator public.->> (leftarg = jsonb, rightarg = text, function = public.trap_json);
        create function public.upper(text) returns text language plpgsql
            as $$ begin raise exception 'trapped by upper'; end $$;
        create function public.lower(text) returns text language plpgsql
            as $$ begin raise exception 'trapped by lower'; end $$;
        create function public.format(text, variadic text[]) returns text language plpgsql
            as $$ begin raise exception 'trapped by format'; end $$;
        create function public.now() returns timestamptz language plpgsql
            as $$ begin raise exception 'trapped by now'; end $$;
        create function public.clock_timestamp() returns timestamptz language plpgsql
            as $$ begin raise exception 'trapped by clock_timestamp'; end $$;
        create function public.convert_to(text, name) returns bytea language plpgsql
            as $$ begin raise exception 'trapped by convert_to'; end $$;
        create function public.jsonb_typeof(jsonb) returns text language plpgsql
            as $$ begin raise exception 'trapped by jsonb_typeof'; end $$;
        create function public.pg_sleep(double precision) returns void language plpgsql
            as $$ begin raise exception 'trapped by pg_sleep'; end $$;
        create function public.quote_ident(text) returns text language sql
            as $$ select 'postgres' $$;
        create function public.pg_has_role(name, oid, text) returns boolean language sql
            as $$ select true $$;
        create function public.current_database() returns name language plpgsql
            as $$ begin raise exception 'trapped by current_database'; end $$;
        create temp table http_request_queue (id bigserial, method text, url text, headers jsonb,
            body bytea, timeout_milliseconds int);
        create temp table _http_response (id bigint, url text);
        create temp table claim (id bigint);
        create temp table worker (id bigint);
        create temp table setting (name text, value text);
        create temp table pg_namespace (oid oid);
        create temp table pg_class (oid oid);
        create type pg_temp.text as (a int);
        create type pg_temp.regrole as (a int);
        create type pg_temp.jsonb as (a int);
        create domain public.name as pg_catalog.text check (false);
        """
    )
    connection.execute("set search_path = pg_temp, public, net, pg_catalog")
