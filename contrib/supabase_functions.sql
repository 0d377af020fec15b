-- Supabase's Database Webhooks on pgnet: the trigger function supabase_functions.http_request(), so
-- that a dump with such triggers restores, and they work as they are. docs/coming-from-supabase.md
-- has the whole way, and how to make webhooks of them.
--
--   psql -d shop -c 'create extension pgnet cascade'
--   psql -d shop -f contrib/supabase_functions.sql
--   psql -d shop -f dump.sql
--
-- By a superuser, before the restore or behind it; a second run changes nothing.
--
-- As at Supabase, the function is SECURITY DEFINER and belongs to the role supabase_functions_admin.
-- So the requests are this role's, whoever changes a row: the role that inserts needs no right, and
-- sees neither the request nor its answer. Give this role no further rights: who owns a table with
-- such a trigger, or may create one, has requests sent in its name.

\set ON_ERROR_STOP on

begin;

do $$
declare
    schema_owner record;
begin
    if to_regprocedure('pgnet.queue_event(text,text,text,text,text,json,jsonb)') is null then
        raise exception using
            errcode = 'undefined_object',
            message = 'the extension pgnet is not installed in this database, or is an older one',
            hint = 'create extension pgnet cascade;';
    end if;
    -- Whoever owns the schema may drop what is in it, and put something else there.
    select r.rolname, r.rolsuper into schema_owner
    from pg_namespace n join pg_roles r on r.oid = n.nspowner
    where n.nspname = 'supabase_functions';
    if found and not schema_owner.rolsuper and schema_owner.rolname <> 'supabase_functions_admin' then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('the schema supabase_functions belongs to the role "%s"', schema_owner.rolname),
            hint = format('Where it came with the dump: alter schema supabase_functions owner to %I;', current_user);
    end if;
    if not exists (select from pg_roles where rolname = 'supabase_functions_admin') then
        create role supabase_functions_admin nologin noinherit;
    end if;
end
$$;

create schema if not exists supabase_functions;
grant usage on schema supabase_functions, net, pgnet to supabase_functions_admin;

-- row_to_json calls the cast to json that a column's type has. In the function below it would run with
-- the rights of supabase_functions_admin, so a cast that somebody else has made is refused.
create or replace function supabase_functions.refuse_foreign_casts(changed_table regclass)
    returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    refused record;
begin
    with recursive part (type) as (
        select a.atttypid from pg_attribute a where a.attrelid = changed_table and a.attnum > 0 and not a.attisdropped
        union
        select inner_part.type
        from part
        join pg_type t on t.oid = part.type
        cross join lateral (
            values (t.typelem), (t.typbasetype)
            union all
            select a.atttypid from pg_attribute a where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
        ) inner_part (type)
        where inner_part.type <> 0
    )
    select format_type(part.type, null) as type, p.proowner::regrole as role into refused
    from part
    join pg_type t on t.oid = part.type and t.typtype <> 'c' -- a composite becomes an object, whatever cast it has
    join pg_cast c on c.castsource = part.type and c.casttarget = 'json'::regtype
    join pg_proc p on p.oid = c.castfunc
    join pg_roles r on r.oid = p.proowner
    where not r.rolsuper and r.rolname <> 'supabase_functions_admin'
    limit 1;
    if found then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('the type %s in the table %s has a cast to json that the role %s has made', refused.type, changed_table, refused.role),
            detail = 'The webhook''s trigger would run it with the rights of supabase_functions_admin.',
            hint = format('drop cast (%s as json);', refused.type);
    end if;
end
$$;
comment on function supabase_functions.refuse_foreign_casts(regclass) is
    'Raises 42501 where a row of the table cannot become JSON without the code of another role.';

create or replace function supabase_functions.http_request()
    returns trigger
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- Most databases have no such cast, and few rows are to be read for that.
    if exists (
        select from pg_cast c join pg_proc p on p.oid = c.castfunc join pg_roles r on r.oid = p.proowner
        where c.oid >= 16384 and c.casttarget = 'json'::regtype and not r.rolsuper)
    then
        perform supabase_functions.refuse_foreign_casts(tg_relid);
    end if;
    perform pgnet.queue_event(tg_argv[0], tg_argv[1], tg_argv[2], tg_argv[3], tg_argv[4],
        json_build_object('type', tg_op, 'table', tg_table_name, 'schema', tg_table_schema,
            'record', row_to_json(new), 'old_record', row_to_json(old)),
        jsonb_build_object('trigger', tg_name, 'table', format('%I.%I', tg_table_schema, tg_table_name), 'event', tg_op));
    if tg_op = 'DELETE' then
        return old;
    end if;
    return new;
end
$$;
comment on function supabase_functions.http_request() is
    'The trigger function of Supabase''s Database Webhooks, on pgnet: url, method, headers, params, '
    'timeout in ms. The requests are those of supabase_functions_admin.';
alter function supabase_functions.refuse_foreign_casts(regclass) owner to supabase_functions_admin;
alter function supabase_functions.http_request() owner to supabase_functions_admin;
-- DROP EXTENSION says that triggers need it, and with CASCADE takes them along. A trigger that stayed
-- would fail every change of its table.
alter function supabase_functions.http_request() depends on extension pgnet;

-- A trigger fires without EXECUTE; to make one takes it. Who may make one has requests sent in the
-- name of supabase_functions_admin: so nobody may, unless you grant it.
do $$
declare
    given record;
begin
    for given in
        select distinct p.oid::regprocedure as function, case when a.grantee = 0 then 'public' else a.grantee::regrole::text end as grantee
        from pg_proc p
        cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
        where p.pronamespace = 'supabase_functions'::regnamespace
            and p.proname in ('http_request', 'refuse_foreign_casts') and a.grantee <> p.proowner
    loop
        execute format('revoke all on function %s from %s', given.function, given.grantee);
    end loop;
end
$$;

commit;
