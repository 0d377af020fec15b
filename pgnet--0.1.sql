-- pgnet: HTTP as part of a PostgreSQL transaction.
-- Joined from extension/*.sql by `make script`: edit those, not this file.

-- ======== extension/00_preamble.sql ========

\echo Use "create extension pgnet cascade" to load this file. \quit

-- pg_net owns the same schema and the same function names: the two cannot live in one database.
do $$
declare
    taken record;
begin
    if exists (select from pg_catalog.pg_extension where extname operator(pg_catalog.=) 'pg_net') then
        raise exception using
            errcode = 'duplicate_object',
            message = 'pgnet cannot be installed beside pg_net in one database',
            detail = 'Both provide the schema "net" with the same functions and tables.',
            hint = 'The page docs/coming-from-pg_net.md shows how to swap them in one transaction: '
                'drop extension pg_net, then create extension pgnet cascade.';
    end if;
    if pg_catalog.current_setting('server_version_num')::int operator(pg_catalog.<) 150000 then
        raise exception using
            errcode = 'feature_not_supported',
            message = 'pgnet needs PostgreSQL 15 or newer',
            hint = 'Upgrade the server first.';
    end if;
    -- Refuse an empty schema, too, and one of the installing role. Whoever owns a schema, or may
    -- create in it, can put functions beside those of the extension (CVE-2022-2625), and DROP
    -- EXTENSION takes the schema away.
    select n.nspname as name, pg_catalog.pg_get_userbyid(n.nspowner) as owner, m.extname,
        (select pg_catalog.count(*) from pg_catalog.pg_depend d
         where d.refclassid operator(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass
             and d.refobjid operator(pg_catalog.=) n.oid and d.deptype operator(pg_catalog.=) 'n') as objects
    into taken
    from pg_catalog.pg_namespace n
    left join (
        select d.objid, x.extname from pg_catalog.pg_depend d join pg_catalog.pg_extension x on x.oid operator(pg_catalog.=) d.refobjid
        where d.classid operator(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass
            and d.deptype operator(pg_catalog.=) 'e'
    ) m on m.objid operator(pg_catalog.=) n.oid
    where n.nspname operator(pg_catalog.=) any (array['net', 'pgnet']::pg_catalog.name[])
    order by n.nspname
    limit 1;
    if found then
        raise exception using
            errcode = 'duplicate_schema',
            message = pg_catalog.format('pgnet cannot be installed: the schema "%s" exists already', taken.name),
            detail = pg_catalog.format('It belongs to the role "%s"%s, and holds %s object(s). pgnet makes this schema itself, '
                'so that nothing of others is in it.', taken.owner,
                case when taken.extname is not null then pg_catalog.format(' and to the extension "%s"', taken.extname) else '' end,
                taken.objects),
            hint = case
                when taken.extname is not null then pg_catalog.format('drop extension %I; ', taken.extname)
                when taken.objects operator(pg_catalog.=) 0 then pg_catalog.format('drop schema %s; ', taken.name)
                else pg_catalog.format('alter schema %s rename to another_name; ', taken.name) end operator(pg_catalog.||) 'create extension pgnet cascade;';
    end if;
end
$$;

-- What people call and read stands in net, and the few private names that users of pg_net know; the
-- rest stands in pgnet.
create schema net;
comment on schema net is
    'pgnet: HTTP as part of a transaction. A committed request is sent by a worker; its outcome is '
    'stored in net._http_response.';
create schema pgnet;
comment on schema pgnet is
    'The inside of the extension pgnet: its tables, and the functions that its own functions and '
    'its workers call. Names here change without notice.';

-- ======== extension/10_types.sql ========

-- Types. Names and fields of the first four are pg_net's: grants and callers name them.

create domain net.http_method as text
    constraint http_method_is_a_token
    check (value operator(pg_catalog.~) '^[!#$%&''*+.^_`|~0-9A-Za-z-]+$');
comment on domain net.http_method is
    'An HTTP method: any token of RFC 9110, section 5.6.2. Requests are sent with it in upper '
    'case.';

create type net.request_status as enum ('PENDING', 'SUCCESS', 'ERROR');
comment on type net.request_status is
    'The status that net.http_get_result gives for a request: PENDING (on its way), SUCCESS (there '
    'was an answer), ERROR (there was none).';

create type net.http_response as (
    status_code integer,
    headers jsonb,
    body text
);
comment on type net.http_response is
    'An answer of an HTTP server, as net.http_get_result returns it.';

create type net.http_response_result as (
    status net.request_status,
    message text,
    response net.http_response
);
comment on type net.http_response_result is
    'The result of net.http_get_result: status, message (ok, or the error), and the response where '
    'there is one.';

create type net.request_state as enum (
    'scheduled', 'ready', 'in_flight', 'retrying',
    'succeeded', 'failed', 'unknown', 'cancelled', 'expired'
);
comment on type net.request_state is
    'The state of a request: scheduled, ready, in_flight and retrying are on the way; succeeded, '
    'failed, unknown, cancelled and expired are ends.';

create type net.outcome as (
    id bigint,
    state net.request_state,
    status_code integer,
    headers jsonb,
    content text,
    content_bytes bytea,
    error_msg text,
    attempts integer,
    context jsonb
);
comment on type net.outcome is
    'How a request stands or ended: content is the body as text, content_bytes where it is no '
    'text; attempts made so far; context as given with the request.';

-- An enum and not a text: a caller can insert nothing else.
create type pgnet.gate as enum ('new', 'key', 'ids');
comment on type pgnet.gate is
    'Why a request is kept from being ready: no worker has examined its ordering key and the ids '
    'that it comes after (new), another request of its key goes first (key), or requests that it '
    'comes after have not ended (ids).';

-- ======== extension/15_roles.sql ========

-- The roles: the caller, the owner, and the roles that may run workers. 85_rights.sql says which
-- rights each of them has.

-- The role of the caller, as an oid that survives a rename and is not taken over by a later role of
-- the same name.
create function pgnet.caller_role()
    returns regrole language sql stable parallel safe cost 1
as $$ select pg_catalog.quote_ident(current_user)::pg_catalog.regrole $$;
comment on function pgnet.caller_role() is 'The current role, as a regrole.';

create function pgnet.caller_is_owner()
    returns boolean
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select pg_has_role(current_user, (select n.nspowner from pg_namespace n where n.nspname = 'net'), 'usage')
$$;
comment on function pgnet.caller_is_owner() is
    'Whether the current role is the extension''s owner, or a member of it.';

-- Functions that run with the caller's rights ask this first. Otherwise row security would leave
-- the rows alone that they are to delete, and would not say so.
create function pgnet.require_owner()
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if not pgnet.caller_is_owner() then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('role "%s" is not the owner of pgnet', current_user),
            hint = format('The owner is "%s": set role to it, or to a member of it.',
                (select n.nspowner::regrole from pg_namespace n where n.nspname = 'net'));
    end if;
end
$$;
comment on function pgnet.require_owner() is
    'Raises 42501 where the current role is neither the extension''s owner nor a member of it.';

-- The role with this name, which need not be quoted.
create function pgnet.role_named(name text)
    returns regrole
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    found_role regrole := (select r.oid from pg_roles r where r.rolname = name);
begin
    if found_role is null then
        raise exception using
            errcode = case when name is null then 'invalid_parameter_value' else 'undefined_object' end,
            message = case when name is null then 'role must not be NULL' else format('role "%s" does not exist', name) end;
    end if;
    return found_role;
end
$$;
comment on function pgnet.role_named(text) is
    'The role of this name. Raises 42704 where the role does not exist, 22023 for NULL.';

-- The owner's triggers and the search_path. A trigger on a table of pgnet fires in a worker's
-- session, with the owner's rights, and in the path that is in force when the statement runs. The
-- pinned path would hide from the trigger what the owner sees, and in an unpinned one a worker's
-- role could put a temporary table in the place of a table. So a statement that changes rows is
-- read and planned in the pinned path. It sets the owner's path as the first thing when it runs, in
-- the part that PostgreSQL runs before all others. After the statement the path is pinned again. So
-- no name of ours is ever looked for in the owner's path.

-- The path is what ALTER ROLE ... SET or ALTER DATABASE ... SET has set, in PostgreSQL's order, or
-- else PostgreSQL's default. (This is PL/pgSQL, since it keeps its plans from call to call, and an
-- SQL function does not.)
create function pgnet.owners_path()
    returns text
    language plpgsql stable parallel safe cost 100
    set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce((
        select nullif(trim(substr(c.assignment, 13)), '')
        from pg_db_role_setting s
        cross join lateral unnest(s.setconfig) c (assignment)
        where s.setrole in (0, (select n.nspowner from pg_namespace n where n.nspname = 'net'))
            and s.setdatabase in (0, (select d.oid from pg_database d where d.datname = current_database()))
            and lower(left(c.assignment, 12)) = 'search_path='
        order by s.setrole <> 0 desc, s.setdatabase <> 0 desc
        limit 1), '"$user", public') || ', pg_temp';
end
$$;
comment on function pgnet.owners_path() is
    'The search_path that the extension''s owner has in this database, with the temporary schema '
    'at its end.';

create function pgnet.use_owners_path()
    returns text language plpgsql volatile parallel unsafe
as $$ begin return pg_catalog.set_config('search_path', pgnet.owners_path(), true); end $$;
comment on function pgnet.use_owners_path() is
    'Sets the owner''s path, until pgnet.pin_path() or the end of the calling function.';

create function pgnet.pin_path()
    returns text language plpgsql volatile parallel unsafe
as $$ begin return pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true); end $$;
comment on function pgnet.pin_path() is 'Sets the path of the extension''s functions again.';

create table pgnet.worker_role (
    role regrole primary key
);
comment on table pgnet.worker_role is
    'The roles that net.grant_worker was called for: they run workers, and no other role does, '
    'whatever EXECUTE says. A dump holds it.';
select pg_catalog.pg_extension_config_dump('pgnet.worker_role', '');

-- An everyday "grant execute on all functions" gives EXECUTE on the workers' functions, too. So
-- each of these functions calls this one first. The role of the session counts: in a function with
-- its owner's rights, the current role is that owner. A role that was dropped has left its number
-- in the table, and no role is a member of it.
create function pgnet.require_worker(
    -- the registration that the caller claims to be; NULL: it claims none
    worker_id bigint default null
)
    returns void
    language plpgsql volatile parallel unsafe security definer cost 10
    set search_path = pg_catalog, pg_temp
as $$
declare
    -- The role of SET ROLE, which PostgreSQL lets a session set to a role that it is a member of;
    -- without SET ROLE the role that connected.
    session_role name := coalesce(nullif(current_setting('role'), 'none'), session_user);
    registered record;
begin
    if not pg_has_role(session_role, current_user, 'member')
        and not exists (select from pgnet.worker_role w where pg_has_role(session_role, w.role, 'member'))
    then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('role "%s" may not run workers', session_role),
            hint = format('The owner of pgnet grants it: select net.grant_worker(%L);', session_role);
    end if;
    -- A callback runs in a worker's session, whose role this function goes by. PostgreSQL refuses
    -- this statement, which does nothing elsewhere, in what it calls a security-restricted
    -- operation: callbacks are one.
    execute 'unlisten pgnet';
    -- A foreign key's action runs the triggers of its table as the owner of that table, in the
    -- session of the role that deletes a request: a worker's.
    if pg_trigger_depth() > 0 then
        raise exception using
            errcode = 'insufficient_privilege',
            message = 'a worker''s calls do not come from a trigger';
    end if;
    -- Triggers of the owner's tables run in this session with the owner's rights: what they name
    -- must be the owner's.
    if pg_my_temp_schema() <> 0 and not pg_has_role(session_role, current_user, 'member')
        and (exists (select from pg_class c where c.relnamespace = pg_my_temp_schema())
            or exists (select from pg_type t where t.typnamespace = pg_my_temp_schema()))
    then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = 'a session with temporary tables cannot be a worker',
            detail = 'Triggers on the tables of pgnet run in it with the owner''s rights, and could take a temporary table for one of the owner''s.',
            hint = 'Run: discard temp; or work in a session of its own.';
    end if;
    if worker_id is null then
        return;
    end if;
    select w.pid, w.ended into registered from pgnet.worker w where w.id = worker_id;
    if registered.pid is null or registered.ended is not null then
        raise exception using
            errcode = 'connection_does_not_exist',
            message = format('worker %s is not registered', worker_id),
            hint = 'A worker that registers again goes on under another number.';
    elsif registered.pid <> pg_backend_pid() then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = 'the worker''s session has changed under it',
            detail = 'Something between the worker and the server, such as a transaction pooler, gives its statements to several sessions.',
            hint = 'Let the worker connect to the server directly. Callers may go through a pooler.';
    end if;
end
$$;
comment on function pgnet.require_worker(bigint) is
    'Raises 42501 where the role of the session may not run workers: it is neither the owner nor a '
    'member of a role that net.grant_worker was called for; in a trigger; and in a callback. Raises 55000 where '
    'the session has temporary tables or types and is not the owner''s. Raises 08003 where there '
    'is no worker with this id, 55000 where that worker is another session.';

-- ======== extension/20_settings.sql ========

-- Settings. They live in a table with checks, not in custom server settings: those anyone can set
-- to anything.

-- The one list of settings: name, kind, default, bounds, unit, meaning. The function has no
-- search_path of its own and names nothing, so that the planner makes it a part of the query that
-- calls it.
create function pgnet.known_settings()
    returns table (name text, kind text, default_value text, minimum numeric, maximum numeric, unit text, description text)
    language sql immutable parallel safe cost 10 rows 21
as $$
    values
        ('timeout_milliseconds', 'integer', '1000', 1, 86400000, 'ms',
         'Total time of an attempt, name resolution to last byte, for requests that do not say their own.'),
        ('max_timeout', 'interval', '01:00:00', 1, 2147483, 'interval',
         'The longest total time of an attempt: whoever asks for more, a request or the setting timeout_milliseconds, gets this.'),
        ('ttl', 'interval', '06:00:00', 0, 315360000, 'interval',
         'How long a response is kept after it was recorded.'),
        ('ttl_failed', 'interval', '14 days', 0, 315360000, 'interval',
         'How long a request that failed is kept, body and all, in net.failures.'),
        ('batch_size', 'integer', '500', 1, 10000, 'requests',
         'How many outcomes a worker records, and how many requests it claims, in one transaction.'),
        ('concurrency', 'integer', '1000', 1, 100000, 'requests',
         'How many requests a worker has in flight at once; it also stays below its limit of open files.'),
        ('poll_interval', 'interval', '00:01:00', 1, 3600, 'interval',
         'How often a worker that is alone looks without being woken; with others to rescue it looks every second.'),
        ('rescue_after', 'interval', '00:00:03', 0, 3600, 'interval',
         'How long the session of a worker process must be gone before its requests are free for others.'),
        ('max_losses', 'integer', '5', 1, 1000, 'workers',
         'How many workers a request may bring down, or be lost with, before it ends as failed; from the second on it is attempted alone.'),
        ('max_grace', 'interval', '00:00:30', 0, 86400, 'interval',
         'How long at most a worker that is told to stop waits for what is in flight; the rest is given back.'),
        ('max_pending', 'integer', '0', 0, 2147483647, 'requests',
         'How many requests may be pending in all; a call beyond it fails with 53400. 0: no limit.'),
        ('max_pending_per_role', 'integer', '0', 0, 2147483647, 'requests',
         'How many requests of one role may be pending, each role counted by itself; a call beyond it fails with 53400. 0: no limit.'),
        ('disable_webhook_after', 'interval', '5 days', 0, 315360000, 'interval',
         'A webhook whose deliveries have failed for so long, all of them, is disabled. 0: never.'),
        ('callback_timeout', 'interval', '00:00:30', 1, 3600, 'interval',
         'How long a callback may run; then it is cancelled, and its effects are undone.'),
        ('callback_attempts', 'integer', '5', 1, 100, 'attempts',
         'How often a callback that fails is tried, after 1 s, 4 s, 16 s and so on; then it waits for net.run_callback.'),
        ('callback_runners', 'integer', '4', 0, 64, 'sessions',
         'In how many sessions at most a worker process runs callbacks, each those of one role. 0: it runs none.'),
        ('callback_memory', 'integer', '536870912', 16777216, 2147483647, 'bytes',
         'How much memory a callback may take, beyond what its session has anyway.'),
        ('mode', 'choice', 'on', null, null, 'on|record|off',
         'on: requests are sent. record: as if they were, and nothing is. off: they wait. The server''s pgnet.mode can only make it safer.'),
        ('notify_outcomes', 'choice', 'off', null, null, 'off|on',
         'on: the recording of outcomes sends a NOTIFY on the channel pgnet_outcomes, one for a batch, with the ids of the requests.'),
        ('wake_up', 'choice', 'callback', null, null, 'callback|poll',
         'callback: a commit wakes a worker at once. poll: workers look every second instead.'),
        ('connect_timeout_milliseconds', 'integer', '10000', 1, 86400000, 'ms',
         'Time to connect to a server, TLS included, within the total time of the attempt.'),
        ('max_response_bytes', 'integer', '10485760', 0, 268435456, 'bytes',
         'The largest response body, counted as it is decoded. Of a larger one so much is kept, and error_msg says so.'),
        ('max_wire_bytes', 'integer', '10485760', 0, 268435456, 'bytes',
         'The largest response body as it comes over the wire, before it is decoded. Of a larger one so much is kept, and error_msg says so.'),
        ('max_header_bytes', 'integer', '262144', 1024, 16777216, 'bytes',
         'The largest header section of a response, interim responses included. Of a larger one so much is kept, and error_msg says so.'),
        ('max_redirects', 'integer', '5', 0, 30, 'redirects',
         'How many redirects are followed, each through the guard; at 0 a redirect is the answer.'),
        ('egress', 'choice', 'public', null, null, 'public|listed',
         'public: every public address may be requested. listed: only what net.allow_host and net.allow_network name.'),
        ('egress_ports', 'ports', '80,443,1024-65535', null, null, 'ports',
         'The ports that may be requested: numbers and ranges, with commas.')
$$;
comment on function pgnet.known_settings() is
    'The settings that exist; net.settings shows them with their values.';

-- Gives NULL for a value that can be set, and else what is wrong with it.
create function pgnet.setting_fault(setting_name text, setting_value text)
    returns text
    language plpgsql stable parallel unsafe cost 100
    set search_path = pg_catalog, pg_temp
    set datestyle = 'ISO, YMD'
    set intervalstyle = 'postgres'
as $$
declare
    known record;
    amount numeric;
begin
    select * into known from pgnet.known_settings() k where k.name = setting_name;
    if not found then
        return pg_catalog.format('unknown setting "%s"', setting_name);
    end if;
    if setting_value is null then
        return 'a value is needed';
    end if;
    if known.kind = 'choice' then
        if setting_value = any (pg_catalog.string_to_array(known.unit, '|')) then
            return null;
        end if;
        return pg_catalog.format('must be one of %s', replace(known.unit, '|', ', '));
    end if;
    if known.kind = 'ports' then
        if setting_value !~ '^ *[0-9]{1,5}(-[0-9]{1,5})?( *, *[0-9]{1,5}(-[0-9]{1,5})?)* *$' or exists (
            select from pg_catalog.regexp_split_to_table(setting_value, ',') r (ports)
            cross join lateral (
                select split_part(trim(r.ports), '-', 1)::integer as low,
                    regexp_replace(trim(r.ports), '^.*-', '')::integer as high
            ) b
            where b.low < 1 or b.high > 65535 or b.low > b.high)
        then
            return 'must be numbers and ranges from 1 to 65535, such as 80,443,8000-8999';
        end if;
        return null;
    end if;
    if known.kind = 'interval' and setting_value !~ '[a-zA-Z:]' and setting_value ~ '[1-9]' then
        return 'must have a unit, such as 30 s or 6 hours';
    end if;
    begin
        if known.kind = 'integer' then
            amount := setting_value::integer;
        else
            amount := extract(epoch from setting_value::interval);
        end if;
    exception when data_exception then
        return case known.kind when 'integer' then pg_catalog.format('must be an integer, in %s', known.unit)
            else 'must be an interval, such as 30 s or 6 hours' end;
    end;
    if amount < known.minimum or amount > known.maximum then
        return pg_catalog.format('must be between %s and %s%s', known.minimum, known.maximum,
            case known.kind when 'interval' then ' seconds' else '' end);
    end if;
    return null;
end
$$;
comment on function pgnet.setting_fault(text, text) is
    'What is wrong with a value for a setting; NULL for a value that can be set.';

create table pgnet.setting (
    name text primary key,
    value text not null,
    constraint setting_is_valid check (pgnet.setting_fault(name, value) is null)
);
comment on table pgnet.setting is
    'The settings that differ from their default; net.configure writes it, net.settings reads it.';
select pg_catalog.pg_extension_config_dump('pgnet.setting', '');

-- Counts the changes of settings and egress rules, in the transactions that make them: a worker
-- that claims a request which was committed after a change sees the new number in the same
-- snapshot, however late the wake-up is.
create table pgnet.configuration (
    revision bigint not null,
    generation bigint not null,
    host_revision bigint not null default 1,
    single boolean primary key default true check (single)
);
comment on table pgnet.configuration is
    'The number of changes of settings and egress rules so far, and of restarts that '
    'net.worker_restart asked for; host_revision: the revision of the last change of net.configure_host.';
insert into pgnet.configuration (revision, generation) values (1, 1);

create function pgnet.announce_configuration()
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgnet.require_owner();
    update pgnet.configuration set revision = revision + 1;
    perform pgnet.signal_workers('reload');
end
$$;
comment on function pgnet.announce_configuration() is
    'Every function that changes the configuration calls it: workers follow at the commit. Owner '
    'only.';

-- In PL/pgSQL, which keeps the plan: each claim asks for some.
create function pgnet.setting_value(setting_name text)
    returns text
    language plpgsql stable parallel safe security definer cost 10
    set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce(
        (select s.value from pgnet.setting s where s.name = setting_name),
        (select k.default_value from pgnet.known_settings() k where k.name = setting_name));
end
$$;
comment on function pgnet.setting_value(text) is
    'The value of a setting in force, as text; NULL for a name that does not exist.';

create function pgnet.max_timeout_milliseconds()
    returns integer
    language plpgsql stable parallel safe cost 10
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (extract(epoch from pgnet.setting_value('max_timeout')::interval) * 1000)::integer;
end
$$;
comment on function pgnet.max_timeout_milliseconds() is 'The setting max_timeout in ms.';

create function pgnet.settings_in_force()
    returns jsonb
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select jsonb_object_agg(k.name, case k.kind
            when 'interval' then to_jsonb(extract(epoch from pgnet.setting_value(k.name)::interval))
            when 'integer' then to_jsonb(pgnet.setting_value(k.name)::bigint)
            else to_jsonb(pgnet.setting_value(k.name)) end)
        || jsonb_build_object('server_encoding', current_setting('server_encoding'))
    from pgnet.known_settings() k
$$;
comment on function pgnet.settings_in_force() is
    'All settings by name, for workers: intervals in seconds; and the encoding of the database.';

create view net.settings as
    select k.name, coalesce(s.value, k.default_value) as value, k.default_value as "default", k.unit, k.description
    from pgnet.known_settings() k
    left join pgnet.setting s on s.name operator(pg_catalog.=) k.name;
comment on view net.settings is
    'Every setting: its value in force, default, unit and meaning. Changed by net.configure(name, '
    'value).';

create function net.configure(
    -- which setting: a name of net.settings
    name text,
    -- its new value; NULL goes back to the default
    value text
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    fault text;
    before text := pgnet.setting_value(name);
    now_set text;
begin
    if name is null or not exists (select from net.settings s where s.name = configure.name) then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = pg_catalog.format('unknown setting %s', coalesce('"' || name || '"', 'NULL')),
            hint = 'known: ' || (select pg_catalog.string_agg(s.name, ', ' order by s.name) from net.settings s);
    end if;
    if value is null then
        delete from pgnet.setting s where s.name = configure.name;
    else
        fault := pgnet.setting_fault(name, value);
        if fault is not null then
            raise exception using
                errcode = 'invalid_parameter_value',
                message = pg_catalog.format('invalid value for setting "%s": %s', name, fault),
                hint = (select pg_catalog.format('The default is %s (%s).', s."default", s.unit)
                        from net.settings s where s.name = configure.name);
        end if;
        -- Not in the constraint of the table: what it says must not depend on another row.
        if name = 'timeout_milliseconds' and value::integer > pgnet.max_timeout_milliseconds() then
            raise exception using
                errcode = 'invalid_parameter_value',
                message = pg_catalog.format('invalid value for setting "timeout_milliseconds": must not be more than max_timeout, %s ms',
                    pgnet.max_timeout_milliseconds()),
                hint = pg_catalog.format('Raise that first: select net.configure(''max_timeout'', ''%s s'').',
                    pg_catalog.ceil(value::numeric / 1000));
        end if;
        insert into pgnet.setting values (configure.name, configure.value)
        on conflict on constraint setting_pkey do update set value = excluded.value;
    end if;
    perform pgnet.announce_configuration();
    now_set := pgnet.setting_value(name);
    raise notice using message = case when now_set = before then pg_catalog.format('setting "%s" stays %s', name, now_set)
        else pg_catalog.format('setting "%s" is %s now; it was %s', name, now_set, before) end;
end
$$;
comment on function net.configure(text, text) is
    'Sets a setting for this database; NULL as value goes back to the default. Workers follow at '
    'the commit. Raises 22023 for an unknown name or a value out of bounds. Owner only.';

-- ======== extension/22_json.sql ========

-- JSON and its lengths: how long a value is as text, without writing it out in order to see that.

-- Whether a value is written out as quickly as it is read: it is short, and has no number that is
-- much longer as text. In jsonb the 131,072 digits of 1e131071 take ten bytes.
create function pgnet.is_plain_json(value jsonb)
    returns boolean
    language sql stable parallel safe cost 1
as $$
    select pg_catalog.pg_column_compression(value) is null
        -- An empty object has 5 bytes, and no number has room in 10.
        and (pg_catalog.pg_column_size(value) operator(pg_catalog.<=) 10
            or pg_catalog.pg_column_size(value) operator(pg_catalog.<=) 8000
                and not value operator(pg_catalog.@?) '$.** ? (@.type() == "number")'
            or pg_catalog.pg_column_size(value) operator(pg_catalog.<=) 160
                and not value operator(pg_catalog.@?) '$.** ? (@ > 1e40 || @ < -1e40)')
$$;
comment on function pgnet.is_plain_json(jsonb) is
    'Whether a value is about as long as text as it is in the table. NULL gives NULL.';

-- How many bytes a value is as text, at most. Read from how it is stored, without unpacking it:
-- pglz makes 90 bytes of one at most, lz4 255. What is longer than pgnet.json_text writes out
-- counts nothing: it is not written out.
create function pgnet.json_size(value jsonb)
    returns bigint
    language sql stable parallel safe cost 1
as $$
    select case
        when value is null then 0
        when pgnet.is_plain_json(value) then pg_catalog.pg_column_size(value)
        when pg_catalog.pg_column_compression(value) operator(pg_catalog.=) 'pglz'
            then pg_catalog.pg_column_size(value)::bigint operator(pg_catalog.*) 90
        when pg_catalog.pg_column_compression(value) is not null
            then pg_catalog.pg_column_size(value)::bigint operator(pg_catalog.*) 255
        when pg_catalog.pg_column_size(value) operator(pg_catalog.>) 2500000 then 0
        else 2500000
        end
$$;
comment on function pgnet.json_size(jsonb) is
    'How many bytes of text a claim counts for a value, at most; 0 for NULL.';

-- The text of a value, as `value::text`; NULL where it is longer than at_most bytes, nested so
-- deeply that it cannot be read, or has no form in UTF-8. Nothing that is too long is written out
-- in order to see that.
create function pgnet.json_text(value jsonb, at_most integer default 2500000)
    returns text
    language plpgsql stable parallel unsafe cost 1000
    set search_path = pg_catalog, pg_temp
as $$
declare
    unpacked bigint;
    digits bigint;
    written text;
begin
    if value is null or pg_column_size(value) > at_most then
        return null;
    end if;
    unpacked := pg_column_size(jsonb_build_array(value));
    if unpacked > 2::bigint * at_most then
        return null;
    end if;
    -- A number has up to 131,072 digits before the point, and as many behind it as its scale says.
    select sum(case when abs(n.number) < 1e40 then 40 else 131072 end + scale(n.number)) into digits
    from (
        select v.value::numeric as number
        from jsonb_path_query(value, '$.** ? (@.type() == "number")') v (value)
    ) n;
    if digits > 4::bigint * at_most then
        return null;
    end if;
    written := value::text;
    return case when octet_length(written) <= at_most and octet_length(convert_to(written, 'UTF8')) > 0 then written end;
exception
    when statement_too_complex or program_limit_exceeded or character_not_in_repertoire or untranslatable_character then
        return null;
end
$$;
comment on function pgnet.json_text(jsonb, integer) is
    'The value as text; NULL where that is longer than at_most bytes, nested too deeply to be '
    'read, or has no form in UTF-8.';

-- ======== extension/25_egress.sql ========

-- Egress: which networks and hosts requests may go to. A worker's guard reads these rules; deny
-- wins.

create table pgnet.egress_rule (
    kind text not null constraint egress_kind check (kind operator(pg_catalog.=) any (array['network', 'host'])),
    pattern text not null,
    allow boolean not null,
    created timestamptz not null default pg_catalog.now(),
    primary key (kind, pattern)
);
comment on table pgnet.egress_rule is
    'The rules that net.allow_network, net.deny_network, net.allow_host and net.deny_host have '
    'made; net.egress shows them.';
select pg_catalog.pg_extension_config_dump('pgnet.egress_rule', '');

create view net.egress as
    select r.kind, r.pattern, case when r.allow then 'allow' else 'deny' end as verdict, r.created
    from pgnet.egress_rule r
    offset 0; -- or else a role with that right could write through the view, as its owner
comment on view net.egress is
    'The egress rules beside the built-in one, that only public addresses may be requested. Deny '
    'wins over allow.';

-- A network as people write it: a cidr, an address, or the words loopback and private.
create function pgnet.networks_of(network text)
    returns setof text
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    parsed cidr;
begin
    case lower(trim(network) collate "C")
        when 'loopback' then
            return query values ('127.0.0.0/8'), ('::1/128');
        when 'private' then
            return query values ('10.0.0.0/8'), ('172.16.0.0/12'), ('192.168.0.0/16'), ('fc00::/7');
        else
            begin
                parsed := trim(network)::cidr;
            exception when data_exception then
                null;
            end;
            if parsed is null then
                raise exception using
                    errcode = 'invalid_parameter_value',
                    message = format('invalid network %s', coalesce('"' || network || '"', 'NULL')),
                    hint = 'Give a network such as 10.1.0.0/16 or fd00::/8, an address, or one of the words loopback and private.';
            end if;
            return query values (parsed::text);
    end case;
end
$$;
comment on function pgnet.networks_of(text) is 'The networks that a word or a cidr stands for.';

-- A host pattern: an exact name, or *.example.com for everything below it; lower case, no port.
create function pgnet.host_pattern(pattern text)
    returns text
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if pattern is null
        -- A host that ends in a number is an address, or no host at all.
        or lower(trim(pattern) collate "C") ~ '(^|[.])(0x[0-9a-f]*|[0-9]+)[.]?$'
        or lower(trim(pattern) collate "C") !~ '^([*][.])?[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?[.]?$' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('invalid host pattern %s', coalesce('"' || pattern || '"', 'NULL')),
            hint = 'Give a host name without scheme and port, such as api.example.com, or *.example.com for every name below it. '
                'An address goes into net.allow_network or net.deny_network.';
    end if;
    return rtrim(lower(trim(pattern) collate "C"), '.');
end
$$;
comment on function pgnet.host_pattern(text) is
    'A host pattern in its stored form. Raises 22023 for a text that is not a host pattern.';

create function pgnet.set_egress_rules(rule_kind text, rule_patterns text[], rule_allow boolean)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    listed text := array_to_string(rule_patterns, ', ');
    dropped text[];
begin
    if rule_allow is null then
        with gone as (
            delete from pgnet.egress_rule r where r.kind = rule_kind and r.pattern = any (rule_patterns) returning r.pattern
        )
        select array_agg(g.pattern) into dropped from gone g;
    else
        insert into pgnet.egress_rule (kind, pattern, allow)
        select rule_kind, p, rule_allow from unnest(rule_patterns) p
        on conflict (kind, pattern) do update set allow = excluded.allow, created = excluded.created;
    end if;
    perform pgnet.announce_configuration();
    raise notice using message = case
        when dropped is not null then format('no rule for %s any more', array_to_string(dropped, ', '))
        when rule_allow is null then format('there was no rule for %s', listed)
        when rule_allow and rule_kind = 'host' and pgnet.setting_value('egress') <> 'listed' then format(
            'requests to %s are allowed; that counts once the setting egress is "listed"', listed)
        when rule_allow then format('requests to %s are allowed', listed)
        else format('requests to %s are refused', listed) end;
end
$$;
comment on function pgnet.set_egress_rules(text, text[], boolean) is
    'Writes egress rules; NULL as verdict forgets them.';

create function net.allow_network(
    -- a cidr, an address, or one of the words loopback and private
    network text
)
    returns void language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$ select pgnet.set_egress_rules('network', array(select pgnet.networks_of(network)), true) $$;
comment on function net.allow_network(text) is
    'Lets requests go to addresses of this network, also where it is not public. Raises 22023 for a '
    'text that is not a network. Workers follow at the commit. Owner only.';

create function net.deny_network(
    -- a cidr, an address, or one of the words loopback and private
    network text
)
    returns void language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$ select pgnet.set_egress_rules('network', array(select pgnet.networks_of(network)), false) $$;
comment on function net.deny_network(text) is
    'Refuses requests to addresses of this network, whatever else allows them. Raises 22023 for a '
    'text that is not a network. Owner only.';

create function net.forget_network(
    -- as it was given to net.allow_network or net.deny_network
    network text
)
    returns void language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$ select pgnet.set_egress_rules('network', array(select pgnet.networks_of(network)), null) $$;
comment on function net.forget_network(text) is
    'Removes the rule that net.allow_network or net.deny_network made for this network. Owner only.';

create function net.allow_host(
    -- a host name, or *.example.com for every name below it
    pattern text
)
    returns void language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$ select pgnet.set_egress_rules('host', array[pgnet.host_pattern(pattern)], true) $$;
comment on function net.allow_host(text) is
    'Names a host that may be requested where the setting egress is "listed". It does not open '
    'private networks: net.allow_network does. Owner only.';

create function net.deny_host(
    -- a host name, or *.example.com for every name below it
    pattern text
)
    returns void language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$ select pgnet.set_egress_rules('host', array[pgnet.host_pattern(pattern)], false) $$;
comment on function net.deny_host(text) is
    'Refuses requests to this host, whatever else allows them. Owner only.';

create function net.forget_host(
    -- as it was given to net.allow_host or net.deny_host
    pattern text
)
    returns void language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$ select pgnet.set_egress_rules('host', array[pgnet.host_pattern(pattern)], null) $$;
comment on function net.forget_host(text) is
    'Removes the rule that net.allow_host or net.deny_host made for this host. Owner only.';

create function pgnet.egress_patterns(rule_kind text, rule_allow boolean)
    returns jsonb
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce(jsonb_agg(r.pattern), '[]') from pgnet.egress_rule r where r.kind = rule_kind and r.allow = rule_allow
$$;
comment on function pgnet.egress_patterns(text, boolean) is
    'The patterns of the rules of a kind that allow, or of those that deny.';

-- The database's own port stays shut even where its network is allowed.
create function pgnet.egress_in_force()
    returns jsonb
    language sql stable parallel restricted
    set search_path = pg_catalog, pg_temp
as $$
    select jsonb_build_object(
        'egress', pgnet.setting_value('egress'),
        'ports', pgnet.setting_value('egress_ports'),
        'allow_networks', pgnet.egress_patterns('network', true),
        'deny_networks', pgnet.egress_patterns('network', false),
        'allow_hosts', pgnet.egress_patterns('host', true),
        'deny_hosts', pgnet.egress_patterns('host', false),
        'deny_endpoints', (
            select jsonb_agg(distinct a.address || ':' || current_setting('port'))
            from unnest(array['127.0.0.1', '[::1]', case family(inet_server_addr())
                when 6 then '[' || host(inet_server_addr()) || ']' else host(inet_server_addr()) end]) a (address)
            where a.address is not null),
        -- Where the worker is on the server's own host, the port is shut on all of that host's
        -- addresses.
        'own_port', case when inet_server_addr() is null or inet_server_addr() = inet_client_addr()
            then current_setting('port')::integer end)
$$;
comment on function pgnet.egress_in_force() is
    'The egress rules and the settings of egress, for the guard of a worker.';

-- ======== extension/27_secrets.sql ========

-- Secrets: requests hold their names; the values are put in by the worker that sends them.

-- No CHECK here: the error of one prints the row, and the value with it.
create table pgnet.secret (
    name text primary key,
    value text,
    url_prefix text,
    created timestamptz default pg_catalog.now(),
    changed timestamptz default pg_catalog.now()
);
comment on table pgnet.secret is
    'The secrets: net.set_secret writes it, workers get a value when a request needs it. Only the '
    'owner reads it, and a dump of the database leaves it out.';
comment on column pgnet.secret.value is
    'NULL where the workers hold it themselves (pgnet worker --secrets-dir).';
comment on column pgnet.secret.url_prefix is
    'Requests may carry it to URLs below this one; NULL: no request may, only net.configure_host.';
-- Otherwise ANALYZE would keep samples of the values in pg_statistic.
alter table pgnet.secret alter column value set statistics 0;

create table pgnet.secret_grant (
    secret text references pgnet.secret (name) on update cascade on delete cascade,
    role regrole,
    primary key (secret, role)
);
comment on table pgnet.secret_grant is
    'Which roles may use which secrets: net.grant_secret and net.revoke_secret write it.';

-- No catalog stands in here: LOCK goes through a view with its owner's rights. A role that was
-- dropped has left its number behind: it is no grantee, and no member of one.
create view net.secrets with (security_barrier) as
    select s.name, s.url_prefix, case when s.value is null then 'worker' else 'database' end as stored_in, s.created, s.changed
    from pgnet.secret s
    where pgnet.caller_is_owner()
        or exists (
            select from pgnet.secret_grant g
            where g.secret operator(pg_catalog.=) s.name and pg_catalog.pg_has_role(current_user, g.role, 'usage'))
    offset 0; -- or else a role with that right could write through the view, as its owner
comment on view net.secrets is
    'The secrets that the current role may use: where they may go, and where their values are '
    'stored. The owner sees all of them.';

create function pgnet.secret_covers(url_prefix text, url text)
    returns boolean
    language plpython3u immutable parallel safe cost 100
as $$
from pgnet import sql_v1
return sql_v1.secret_covers(url_prefix, url)
$$;
comment on function pgnet.secret_covers(text, text) is
    'Whether a secret with this prefix may go to a URL as it is stored; false for NULL. Of a URL '
    'that is a secret itself, only the origin is known here.';

create function pgnet.inspect_secret(
    name text, value text, url_prefix text, out canonical_prefix text, out message text, out hint text
)
    language plpython3u immutable parallel safe cost 100
as $$
from pgnet import sql_v1
return sql_v1.secret_check(name, value, url_prefix)
$$;
comment on function pgnet.inspect_secret(text, text, text) is
    'The prefix as it is stored, or what is wrong with a secret: never its value.';

-- A role that may not use a secret gets the same message whether the secret exists or not.
create function pgnet.refuse_secret(name text)
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if name is null or name !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$' then
        raise exception using
            errcode = 'invalid_parameter_value',
            -- The name is not shown: it may be the value in the wrong place.
            message = case when name is null then 'the name of a secret must not be NULL' else 'this is not a valid name of a secret' end,
            hint = 'A name is of 1 to 63 letters, digits, and - _ . behind the first one.';
    end if;
    if pgnet.caller_is_owner() then
        raise exception using
            errcode = 'undefined_object',
            message = format('secret "%s" does not exist', name),
            hint = format('Set it: select net.set_secret(%L, value, url_prefix), or: pgnet secret set %s --url-prefix URL < file', name, name);
    end if;
    raise exception using
        errcode = 'insufficient_privilege',
        message = format('secret "%s" does not exist, or role "%s" may not use it', name, current_user),
        hint = format('The owner of pgnet grants it: select net.grant_secret(%L, %L)', name, current_user);
end
$$;
comment on function pgnet.refuse_secret(text) is
    'Raises that the current role cannot use a secret: 22023 for a text that cannot be a name; '
    '42704 where the owner asks, 42501 where another role does.';

-- The URL prefix that a secret is bound to, where the current role may use the secret.
create function pgnet.secret_prefix(name text)
    returns text
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    known record;
begin
    select s.url_prefix into known from net.secrets s where s.name = secret_prefix.name;
    if not found then
        perform pgnet.refuse_secret(name);
    end if;
    if known.url_prefix is null then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('secret "%s" has no URL prefix: no request can use it', name),
            hint = format('For requests: select net.set_secret(%L, value, url_prefix)', name);
    end if;
    return known.url_prefix;
end
$$;
comment on function pgnet.secret_prefix(text) is
    'The URL prefix of a secret that the current role may use; raises 42501 (42704 for the owner) '
    'where there is no such secret, 22023 where it has no prefix.';

create function pgnet.check_secret(name text, url text)
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    url_prefix text := pgnet.secret_prefix(name);
begin
    if not pgnet.secret_covers(url_prefix, url) then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('secret "%s" may not go to this URL', name),
            detail = format('It is bound to %s and what is below; dot segments and encoded slashes are not below it.', url_prefix);
    end if;
end
$$;
comment on function pgnet.check_secret(text, text) is
    'Raises where the current role may not use a secret (42501; 42704 for the owner where there is '
    'no such secret), or not for this URL (22023).';

create function net.secret_url(
    -- the name of a secret whose value is a URL, or the query of one
    name text
)
    -- a URL for net.http_get and its kin
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
    -- The operator || is not used, since it is strict: for a NULL name PostgreSQL 18's planner
    -- would take NULL for the result, and the check would never run.
as $$ select format('%s/{secret:%s}', substring(pgnet.secret_prefix(name) from '^https?://[^/]+'), name) $$;
comment on function net.secret_url(text) is
    'Stands for a whole URL that is a secret, in the url of a request: the origin shows, the '
    'worker puts in the rest. Params are appended to it. Raises 42501 where the current role may '
    'not use the secret, 22023 for NULL and for a secret without a URL prefix.';

create function net.set_secret(
    -- 1 to 63 letters, digits, and - _ . behind the first one
    name text,
    -- at least 8 characters, or NULL where the workers hold it (pgnet worker --secrets-dir)
    value text,
    -- where requests may carry it: to this URL and those below; NULL keeps what it was, at first:
    -- nowhere
    url_prefix text default null
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    -- A plan of its own would hold the value, and what explains plans would show it.
    set plan_cache_mode = force_generic_plan
as $$
declare
    checked record;
begin
    if name is null or name !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$' then
        perform pgnet.refuse_secret(name);
    end if;
    select * into checked from pgnet.inspect_secret(set_secret.name, set_secret.value,
        coalesce(set_secret.url_prefix, (select s.url_prefix from pgnet.secret s where s.name = set_secret.name)));
    if checked.message is not null then
        perform pgnet.raise_error('22023', checked.message, checked.hint);
    end if;
    insert into pgnet.secret (name, value, url_prefix)
    values (set_secret.name, set_secret.value, checked.canonical_prefix)
    on conflict on constraint secret_pkey do update
        set value = excluded.value, url_prefix = excluded.url_prefix, changed = now();
    perform pgnet.announce_configuration();
    raise notice using message = format('secret "%s" is set; %s; %s', name,
        case when value is null then 'workers hold its value' else 'its value is in the database' end,
        case when checked.canonical_prefix is null then 'no request can carry it, net.configure_host can name it'
            else format('requests to %s and below may carry it', checked.canonical_prefix) end);
end
$$;
comment on function net.set_secret(text, text, text) is
    'Sets a secret, or changes it: its grants stay. As SQL text the value may be logged: the '
    'command "pgnet secret set" keeps it out. Raises 22023, without the value, for a name, value '
    'or prefix that cannot be. Owner only.';

create function net.drop_secret(
    -- the secret
    name text
)
    -- whether there was one
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    dropped boolean;
begin
    delete from pgnet.secret s where s.name = drop_secret.name;
    dropped := found;
    perform pgnet.announce_configuration();
    if dropped then
        raise notice using message = format('secret "%s" is dropped; queued requests that name it will fail', name);
    end if;
    return dropped;
end
$$;
comment on function net.drop_secret(text) is
    'Drops a secret and its grants; queued requests that name it end as failed. False where there '
    'was no such secret, also for NULL. Owner only.';

create function pgnet.set_secret_grant(secret_name text, grantee text, granted boolean)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    grantee_role regrole := pgnet.role_named(grantee);
begin
    if not exists (select from pgnet.secret s where s.name = secret_name) then
        perform pgnet.refuse_secret(secret_name);
    end if;
    delete from pgnet.secret_grant g
    where not exists (select from pg_roles r where r.oid = g.role)
        or (not granted and g.secret = secret_name and g.role = grantee_role);
    if granted then
        insert into pgnet.secret_grant (secret, role) values (secret_name, grantee_role) on conflict do nothing;
        raise notice using message = format('role "%s" may use secret "%s"', grantee, secret_name);
    else
        raise notice using message = format('secret "%s" is not granted to role "%s"', secret_name, grantee);
    end if;
end
$$;
comment on function pgnet.set_secret_grant(text, text, boolean) is
    'Grants or revokes a secret, and removes the grants of roles that were dropped.';

create function net.grant_secret(
    -- the secret
    name text,
    -- the role, by name; its members that inherit from it may, too
    role text
)
    returns void language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$ select pgnet.set_secret_grant(name, role, true) $$;
comment on function net.grant_secret(text, text) is
    'Lets a role put a secret into its requests, without reading it. Raises 42704 for a secret or '
    'role that does not exist, 22023 for NULL. Owner only.';

create function net.revoke_secret(
    -- the secret
    name text,
    -- the role, by name
    role text
)
    returns void language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$ select pgnet.set_secret_grant(name, role, false) $$;
comment on function net.revoke_secret(text, text) is
    'Takes back what net.grant_secret gave, for queued requests too. Raises 42704 for a secret or '
    'role that does not exist, 22023 for NULL. Owner only.';

-- The values for requests that a worker has claimed: asked for at the moment of sending, judged at
-- that moment too.
create function pgnet.claimed_secrets(
    -- the requests, the tokens of their claims, and the secrets they name: a triple each
    ids bigint[], tokens uuid[], names text[]
)
    -- a row for each triple whose claim has the token: value is NULL where the worker holds it, and
    -- where fault says why there is no value
    returns table (id bigint, name text, value text, url_prefix text, stored_in text, fault text)
    language plpgsql volatile parallel unsafe security definer cost 1000 rows 100
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
    set lock_timeout = '500ms'
as $$
#variable_conflict use_column
begin
    perform pgnet.lock_tables();
    lock table pgnet.secret, pgnet.secret_grant in access share mode nowait;
    return query
    with asked as materialized (
        select a.id, a.name, q.url, s.name is not null as known, s.value, s.url_prefix,
            (select r.rolname from pg_roles r where r.oid = q.requested_by) as role,
            jsonb_path_exists(q.headers, '$.*.secret ? (@ == $name)', jsonb_build_object('name', a.name))
                or q.options -> 'sign' ? a.name
                or substring(q.url from '^https?://[^/?#{}]*/[{]secret:([A-Za-z0-9][A-Za-z0-9_.-]{0,62})[}](?:[?].*)?$') = a.name as named,
            -- In here the current role is the owner.
            pg_has_role(q.requested_by, current_user, 'usage') or exists (
                select from pgnet.secret_grant g
                where g.secret = a.name and pg_has_role(q.requested_by, g.role, 'usage')) as granted
        from unnest(ids, tokens, names) as a (id, token, name)
        cross join lateral (
            select coalesce(e.url, q.url) as url, q.headers, q.requested_by, q.options
            from net.http_request_queue q
            left join pgnet.endpoint e on e.owner = q.requested_by and e.name = q.options ->> 'endpoint'
            where q.id = a.id and exists (select from pgnet.claim c where c.id = a.id and c.token = a.token offset 0)
            offset 0
        ) q
        left join pgnet.secret s on s.name = a.name
    ), judged as (
        select a.*, case
            when a.named is not true then format('the request does not name the secret "%s"', a.name)
            when a.role is null then format('the role that asked for the secret "%s" does not exist any more', a.name)
            when not (a.known and a.granted) then format('secret "%s" does not exist, or role "%s" may not use it', a.name, a.role)
            when a.url_prefix is null then format('secret "%s" has no URL prefix: no request can use it', a.name)
            when not pgnet.secret_covers(a.url_prefix, a.url) then format('secret "%s" may not go to the URL of this request', a.name)
            end as fault
        from asked a
    )
    select j.id, j.name, case when j.fault is null then j.value end, j.url_prefix,
        case when j.known then case when j.value is null then 'worker' else 'database' end end, j.fault
    from judged j;
end
$$;
comment on function pgnet.claimed_secrets(bigint[], uuid[], text[]) is
    'The secrets that claimed requests name, as far as the roles that made them may use them now, '
    'for their URLs; else why not.';

-- ======== extension/28_hosts.sql ========

-- Settings of single hosts: how to connect to them, whom to trust, what to show, and how many
-- requests they get. net.hosts shows them: see 61_hosts.sql.

-- The one list of settings of a host: name, kind, bounds, meaning.
create function pgnet.known_host_settings()
    returns table (name text, kind text, minimum numeric, maximum numeric, description text)
    language sql immutable parallel safe cost 10 rows 10
    set search_path = pg_catalog, pg_temp
as $$
    values
        ('connect_timeout_milliseconds', 'integer', 1, 86400000, 'Time to connect in ms, TLS included.'),
        ('max_redirects', 'integer', 0, 30, 'How many redirects are followed.'),
        ('retry', 'policy', null, null, 'The retry policy of requests that name none: see net.retry_policies.'),
        ('http_version', '1.1|2', null, null, '1.1 or 2. By default 2 where TLS offers it, and 1.1 for what the libcurl in use does better so.'),
        ('user_agent', 'line', null, null, 'Sent where the request has no User-Agent of its own.'),
        ('host_header', 'authority', null, null, 'The name, or name:port, that the server is asked for, as Host and in TLS, instead of the host of the URL.'),
        ('proxy', 'proxy', null, null, 'A URL http://host:port or https://host:port, one with a password as a secret; direct: none.'),
        ('ca', 'certificate', null, null, 'PEM of the authorities to trust instead of the default ones.'),
        ('client_certificate', 'certificate', null, null, 'PEM of the certificate to show, with its chain.'),
        ('client_key', 'secret', null, null, 'PEM of its key, as a secret.'),
        ('breaker', 'breaker', null, null, 'The circuit breaker: false, or settings of pgnet.known_breaker_settings() that differ from the default.'),
        ('adaptive', 'boolean', null, null, 'With false the number of requests in flight does not adapt to what the host can bear.'),
        ('max_retry_after_milliseconds', 'integer', 0, 86400000, 'A host that asks by 429 or 503 with Retry-After for a longer pause gets this, in ms.'),
        ('verify', 'boolean', null, null, 'With false neither certificate nor name of the server are checked.'),
        ('concurrency', 'limit', 1, 100000, 'How many requests are in flight at once at each host that the pattern matches; false: no limit.'),
        ('rate', 'rate', null, null, 'How many requests each host that the pattern matches gets in a time, such as 500/minute; false: no limit.'),
        ('burst', 'integer', 1, 1000000, 'How many requests more than its rate a host may get at once.')
$$;
comment on function pgnet.known_host_settings() is
    'The settings that net.configure_host takes.';

create function pgnet.rate_per_second(rate text)
    returns double precision
    language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select nullif(m[1]::double precision, 0) / case m[2] when 'second' then 1 when 'minute' then 60 when 'hour' then 3600 else 86400 end
    from regexp_match(rate, '^ *([0-9]{1,7}(?:[.][0-9]{1,6})?) */ *(second|minute|hour|day) *$') m
$$;
comment on function pgnet.rate_per_second(text) is
    'A rate such as 500/minute in requests per second; NULL for what is no rate.';

create function pgnet.limit_fault(
    -- limit: a number; rate: a number in a time
    setting_kind text, maximum numeric, given jsonb
)
    returns text
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if given = 'false' then
        return null;
    elsif setting_kind = 'rate' then
        if jsonb_typeof(given) <> 'string' or pgnet.rate_per_second(given #>> '{}') is null then
            return 'must be such as "10/second", "500/minute", "1000/hour" or "5000/day", or false for no limit';
        end if;
    elsif given = '0' then
        return 'must be at least 1; net.pause(host) has all requests of a host wait';
    elsif given::text !~ '^[1-9][0-9]{0,9}$' or given::numeric > maximum then
        return format('must be an integer between 1 and %s, or false for no limit', maximum);
    end if;
    return null;
end
$$;
comment on function pgnet.limit_fault(text, numeric, jsonb) is
    'What is wrong with a limit of a host; NULL for one that can be set. false stands for no limit.';

create function pgnet.named_secret_fault(given jsonb)
    returns text
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if (given - 'secret') <> '{}' or jsonb_typeof(given -> 'secret') is distinct from 'string' then
        return 'must be {"secret": name}';
    end if;
    if not exists (select from pgnet.secret s where s.name = given ->> 'secret') then
        return format('names the secret "%s", which does not exist', given ->> 'secret');
    end if;
    return null;
end
$$;
comment on function pgnet.named_secret_fault(jsonb) is
    'What is wrong with an object that names a secret; NULL for one that can be set.';

-- Gives NULL for a value that can be set, and else what is wrong with it. The message does not show
-- the value: a password may have got into it.
create function pgnet.host_setting_fault(setting_kind text, minimum numeric, maximum numeric, given jsonb)
    returns text
    language plpgsql stable parallel safe cost 100
    set search_path = pg_catalog, pg_temp
as $$
declare
    plain text := case when jsonb_typeof(given) = 'string' then given #>> '{}' end;
begin
    if jsonb_typeof(given) = 'object' and setting_kind in ('secret', 'certificate', 'proxy') then
        return pgnet.named_secret_fault(given);
    end if;
    case setting_kind
        when 'integer' then
            if jsonb_typeof(given) <> 'number' or given::numeric <> trunc(given::numeric)
                or given::numeric not between minimum and maximum then
                return format('must be an integer between %s and %s', minimum, maximum);
            end if;
        when 'limit', 'rate' then
            return pgnet.limit_fault(setting_kind, maximum, given);
        when 'boolean' then
            if jsonb_typeof(given) <> 'boolean' then
                return 'must be true or false';
            end if;
        when 'line' then
            if plain is null or plain collate "C" !~ '^[ -~]+$' or length(plain) > 500 then
                return 'must be a string of 1 to 500 printable ASCII characters';
            end if;
        when 'authority' then
            -- A value that ends in a number is an address: the URL has one already.
            if plain is null or length(plain) > 259 or plain ~* '(^|[.])(0x[0-9a-f]*|[0-9]+)[.]?(:|$)'
                or plain !~ '^([A-Za-z0-9_-]{1,63}[.])*[A-Za-z0-9_-]{1,63}[.]?(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?$' then
                return 'must be a host name, or name:port, such as shop.example';
            end if;
        when 'proxy' then
            if plain is null or plain !~ '^(direct|https?://([A-Za-z0-9_.-]{1,253}|[[][0-9A-Fa-f:.]+[]]):[0-9]{1,5}/?)$' then
                return 'must be http://host:port, https://host:port or direct; one with user and password is given as {"secret": name}';
            end if;
        when 'certificate' then
            if plain is null or position('-----BEGIN CERTIFICATE-----' in plain) = 0 then
                return 'must be certificates in PEM, or {"secret": name}';
            end if;
            if position('PRIVATE KEY' in plain) > 0 then
                return 'must not hold a private key: that goes into client_key, as a secret';
            end if;
        when 'policy' then
            if plain is null or not exists (select from net.retry_policies p where p.name = plain) then
                return 'must be the name of a retry policy: ' || (
                    select string_agg(p.name, ', ' order by not p.built_in, p.name) from net.retry_policies p);
            end if;
        when 'breaker' then
            return pgnet.breaker_setting_fault(given);
        when 'secret' then
            return 'must be {"secret": name}: select net.set_secret(name, value) keeps it';
        else
            if plain is null or plain <> all (string_to_array(setting_kind, '|')) then
                return format('must be one of %s, as a string', replace(setting_kind, '|', ', '));
            end if;
    end case;
    return null;
end
$$;
comment on function pgnet.host_setting_fault(text, numeric, numeric, jsonb) is
    'What is wrong with a value for net.configure_host; NULL for a value that can be set.';

create table pgnet.host (
    pattern text primary key,
    settings jsonb not null
);
comment on table pgnet.host is
    'The settings of hosts, by net.configure_host; secrets by their names. net.hosts shows them.';
select pg_catalog.pg_extension_config_dump('pgnet.host', '');

-- Each claim asks whether there is any limit.
create index host_limited on pgnet.host ((true)) where settings operator(pg_catalog.?|) '{concurrency,rate}';

-- A pattern as a host is looked up by: an address in its usual form, a name, *.name, or * for all;
-- each may have a port. An IPv6 address has brackets only where a port follows.
create function pgnet.configured_host_pattern(host text)
    returns text
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    parts text[] := regexp_match(trim(host), '^([^:]*|[[].*[]]):([1-9][0-9]{0,4})$');
    name text := coalesce(parts[1], trim(host));
    port text := ':' || parts[2];
begin
    if parts[2] in ('80', '443') then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('invalid host pattern "%s"', host),
            hint = 'A URL has no port where it is the usual one, 80 or 443. Give the name without a port, which stands for all ports.';
    end if;
    if name = '*' and parts[2]::integer <= 65535 is not false then
        return '*' || coalesce(port, '');
    end if;
    begin
        if name !~ '/' and parts[2]::integer <= 65535 is not false then
            name := pg_catalog.host(trim(name, '[]')::inet);
            return case when port is null then name when name ~ ':' then format('[%s]%s', name, port) else name || port end;
        end if;
    exception when data_exception then
        null; -- a name
    end;
    begin
        if parts[2]::integer > 65535 then
            raise invalid_parameter_value;
        end if;
        return pgnet.host_pattern(name) || coalesce(port, '');
    exception when invalid_parameter_value then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('invalid host pattern %s', coalesce('"' || host || '"', 'NULL')),
            hint = 'Give a host name without scheme, *.example.com for every name below it, an address in its usual form, or * for every host; each may end in a port, such as api.example.com:8443.';
    end;
end
$$;
comment on function pgnet.configured_host_pattern(text) is
    'The pattern of net.configure_host in its stored form. Raises 22023 for a text that is not a '
    'host.';

create function pgnet.patterns_of(host text)
    returns text[]
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    parts text[] := regexp_match(host, '^(.*?)(:[0-9]{1,5})?$');
    name text := rtrim(lower(parts[1] collate "C"), '.');
    patterns text[] := array[name];
begin
    if length(host) > 300 then
        return '{*}'; -- it is no host
    elsif name like '[%' then
        begin
            patterns := array[pg_catalog.host(trim(name, '[]')::inet)];
        exception when data_exception then
            null;
        end;
    elsif name !~ '^[0-9.]+$' then
        while position('.' in name) > 0 loop
            name := substr(name, position('.' in name) + 1);
            patterns := patterns || ('*.' || name);
        end loop;
    end if;
    patterns := patterns || '*'::text;
    if parts[2] is not null then
        patterns := array(
            select p.pattern
            from unnest(patterns) with ordinality u (name, place)
            cross join lateral (values
                (1, case when u.name ~ ':' then format('[%s]', u.name) else u.name end || parts[2]), (2, u.name)
            ) p (rank, pattern)
            order by u.place, p.rank);
    end if;
    return patterns;
end
$$;
comment on function pgnet.patterns_of(text) is
    'The patterns of net.configure_host that match a host, the authority of a URL; the most '
    'specific first.';

create function pgnet.announce_hosts()
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgnet.announce_configuration();
    update pgnet.configuration set host_revision = revision;
end
$$;
comment on function pgnet.announce_hosts() is
    'pgnet.announce_configuration, for a change of settings of hosts. Owner only.';

create function net.configure_host(
    -- a host name, an address, *.example.com for every name below it, or * for every host; each may
    -- end in a port
    host text,
    -- merged into the settings that the host has; a null resets what it names, NULL resets all
    settings jsonb
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    host_pattern text := pgnet.configured_host_pattern(host);
    merged jsonb;
begin
    if settings is null or settings = 'null' then
        perform pgnet.forget_hosts(host_pattern);
        delete from pgnet.host h where h.pattern = host_pattern;
        perform pgnet.announce_hosts();
        raise notice using message = format('nothing is configured for host "%s" any more', host_pattern);
        return;
    end if;
    perform pgnet.check_json_settings(
        'host', host_pattern, settings, 'select net.configure_host(''api.example.com'', ''{"http_version": "1.1"}'')');
    merged := jsonb_strip_nulls(coalesce((select h.settings from pgnet.host h where h.pattern = host_pattern), '{}') || settings);
    if (merged ? 'client_certificate') <> (merged ? 'client_key') then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('client_certificate and client_key of host "%s" go together', host_pattern),
            hint = 'Give both, or null for both.';
    end if;
    if merged ? 'burst' and coalesce(merged -> 'rate', 'false') = 'false' then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('burst of host "%s" needs a rate', host_pattern),
            hint = 'Give both, such as {"rate": "500/minute", "burst": 20}, or null for burst.';
    end if;
    if merged ? 'host_header' and host_pattern like '*%' then
        raise exception using errcode = 'invalid_parameter_value',
            message = 'host_header is set for single hosts only, by their name or address',
            hint = 'Otherwise many servers would be asked for one name.';
    end if;
    if merged -> 'verify' = 'false' then
        if host_pattern like '*%' then
            raise exception using errcode = 'invalid_parameter_value',
                message = 'verification is switched off for single hosts only, by their name',
                hint = 'Better: give the authority that signed its certificate as "ca".';
        end if;
        raise warning using
            message = format('the certificate of "%s" is not checked any more', host_pattern),
            detail = 'Anybody between the worker and the server can read and change all that is sent, secrets too.',
            hint = 'Better: give the authority that signed it as "ca".';
    end if;
    if settings ? 'breaker' then
        perform pgnet.forget_hosts(host_pattern);
    end if;
    if merged = '{}' then
        delete from pgnet.host h where h.pattern = host_pattern;
    else
        insert into pgnet.host (pattern, settings) values (host_pattern, merged)
        on conflict (pattern) do update set settings = excluded.settings;
    end if;
    perform pgnet.announce_hosts();
    raise notice using message = case when merged = '{}' then format('nothing is configured for host "%s" any more', host_pattern)
        else format('for host "%s" are configured: %s', host_pattern,
            (select string_agg(k, ', ' order by k) from jsonb_object_keys(merged) k)) end;
end
$$;
comment on function net.configure_host(text, jsonb) is
    'Sets how to connect to a host, and how many requests it gets: net.hosts and the documentation '
    'have the settings. They are merged into those that the host has; null resets one. Raises '
    '22023 for a text that is not a host, an unknown setting or a value that cannot be set. '
    'Workers follow at the commit. Owner only.';

-- For workers: the settings of hosts, with the values of secrets that are stored in the database;
-- for a secret that the workers store, {"secret": name} stays. Limits are the claim's to keep; the
-- worker is told only that there is one.
create function pgnet.host_settings()
    returns jsonb
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce(jsonb_object_agg(h.pattern, coalesce((
        select jsonb_object_agg(s.key, coalesce(
            (select to_jsonb(v.value) from pgnet.secret v
             where jsonb_typeof(s.value) = 'object' and v.name = s.value ->> 'secret' and v.value is not null), s.value))
        from jsonb_each(h.settings) s
        where s.key not in ('concurrency', 'rate', 'burst')), '{}')
        || case when h.settings ?| '{concurrency,rate}' then jsonb_build_object('limited',
                coalesce(h.settings -> 'concurrency', 'false') <> 'false' or coalesce(h.settings -> 'rate', 'false') <> 'false')
            else '{}' end), '{}')
    from pgnet.host h
$$;
comment on function pgnet.host_settings() is
    'The settings of hosts by pattern, for workers: with the values of secrets, and limited for '
    'hosts that have a limit.';

-- ======== extension/29_retry.sql ========

-- Retry policies: which requests are attempted again, how often and how soon. Workers apply them
-- (retry.py).

-- The one list of settings of a retry policy: name, kind, default, bounds, meaning. The defaults
-- are the policy "safe".
create function pgnet.known_retry_settings()
    returns table (name text, kind text, default_value jsonb, minimum numeric, maximum numeric, description text)
    language sql immutable parallel safe cost 10 rows 10
    set search_path = pg_catalog, pg_temp
as $$
    values
        ('max_attempts', 'integer', '5'::jsonb, 1, 1000, 'How many attempts there are at most, the first one included.'),
        ('backoff_milliseconds', 'integer', '1000', 0, 86400000, 'The longest wait after the first attempt, in ms; each wait is drawn between 0 and the longest.'),
        ('backoff_factor', 'number', '2', 1, 100, 'How many times longer the longest wait is after each further attempt.'),
        ('max_backoff_milliseconds', 'integer', '30000', 0, 604800000, 'The longest wait after any attempt, in ms.'),
        ('statuses', 'statuses', '[408, 425, 429, 500, 502, 503, 504]', null, null,
         'Which answers are attempted again, unless they are accepted: "any", or a list such as [429, "5xx", "520-530"].'),
        ('accept', 'statuses', '["100-399"]', null, null, 'Which answers are a success: "any", or a list such as ["2xx", 304].'),
        ('errors', 'name|connect|tls|timeout|connection|response', '["name", "connect", "tls", "timeout", "connection"]', null, null,
         'Which errors are attempted again: "any", or a list of name, connect, tls, timeout, connection, response.'),
        ('methods', 'methods', '"idempotent"', null, null,
         'Which methods may be sent again once the server may have seen the request: "any", "idempotent" (GET, HEAD, PUT, DELETE, OPTIONS, and what has an idempotency key), or a list of methods.'),
        ('max_retry_after_milliseconds', 'integer', '120000', 0, 604800000, 'A Retry-After that asks for more than this counts as this, in ms.'),
        ('total_milliseconds', 'integer', '600000', 0, 2592000000, 'No attempt begins later than this after the first one began, in ms.')
$$;
comment on function pgnet.known_retry_settings() is
    'The settings that net.configure_retry takes, with their defaults.';

create function pgnet.built_in_retry_policies()
    returns table (name text, settings jsonb)
    language sql immutable parallel safe cost 10 rows 3
    set search_path = pg_catalog, pg_temp
as $$
    values
        ('none', '{"max_attempts": 1}'::jsonb),
        ('safe', '{}'),
        ('webhook', '{
            "max_attempts": 15, "backoff_milliseconds": 5000, "backoff_factor": 3, "max_backoff_milliseconds": 14400000,
            "statuses": "any", "accept": ["2xx"], "errors": "any", "methods": "any",
            "max_retry_after_milliseconds": 14400000, "total_milliseconds": 86400000}')
$$;
comment on function pgnet.built_in_retry_policies() is
    'The policies that are always there, each with the settings that differ from those of "safe".';

create table pgnet.retry_policy (
    name text primary key,
    settings jsonb not null
);
comment on table pgnet.retry_policy is
    'The retry policies that net.configure_retry has made; net.retry_policies shows them.';
select pg_catalog.pg_extension_config_dump('pgnet.retry_policy', '');

create view net.retry_policies as
    select p.name, d.settings operator(pg_catalog.||) p.settings as settings, p.built_in
    from (
        select b.name, b.settings, true as built_in from pgnet.built_in_retry_policies() b
        union all
        select o.name, o.settings, false from pgnet.retry_policy o
    ) p
    cross join (
        select pg_catalog.jsonb_object_agg(k.name, k.default_value) as settings from pgnet.known_retry_settings() k
    ) d;
comment on view net.retry_policies is
    'Every retry policy, complete with defaults. net.configure_retry(name, settings) makes further '
    'ones.';

-- Gives NULL for a value that can be set, and else what is wrong with it.
create function pgnet.retry_setting_fault(setting_kind text, minimum numeric, maximum numeric, given jsonb)
    returns text
    language plpgsql stable parallel safe cost 100
    set search_path = pg_catalog, pg_temp
as $$
begin
    case setting_kind
        when 'integer', 'number' then
            if jsonb_typeof(given) <> 'number' or given::numeric not between minimum and maximum
                or (setting_kind = 'integer' and given::numeric <> trunc(given::numeric)) then
                return format('must be %s between %s and %s',
                    case setting_kind when 'integer' then 'an integer' else 'a number' end, minimum, maximum);
            end if;
            return null;
        when 'methods' then
            if given in ('"any"', '"idempotent"') then
                return null;
            end if;
            if jsonb_typeof(given) <> 'array' or exists (
                select from jsonb_array_elements(given) e
                where jsonb_typeof(e) <> 'string' or e #>> '{}' !~ '^[A-Za-z0-9!#$%&''*+.^_`|~-]{1,40}$')
            then
                return 'must be "any", "idempotent" or a list of methods, such as ["GET", "POST"]';
            end if;
            return null;
        when 'statuses' then
            if given = '"any"' then
                return null;
            end if;
            if jsonb_typeof(given) <> 'array' or exists (
                select from jsonb_array_elements(given) e
                where jsonb_typeof(e) not in ('string', 'number')
                    or e #>> '{}' !~ '^([1-9]xx|[1-9][0-9][0-9](-[1-9][0-9][0-9])?)$'
                    or split_part(e #>> '{}', '-', 1) > substring(e #>> '{}' from '-(.*)$'))
            then
                return 'must be "any" or a list of status codes and ranges, such as [429, "5xx", "520-530"]';
            end if;
            return null;
        else
            if given = '"any"' then
                return null;
            end if;
            if jsonb_typeof(given) <> 'array' or exists (
                select from jsonb_array_elements(given) e
                where jsonb_typeof(e) <> 'string' or e #>> '{}' <> all (string_to_array(setting_kind, '|')))
            then
                return format('must be "any" or a list of these: %s', replace(setting_kind, '|', ', '));
            end if;
            return null;
    end case;
end
$$;
comment on function pgnet.retry_setting_fault(text, numeric, numeric, jsonb) is
    'What is wrong with a value for net.configure_retry; NULL for a value that can be set.';

-- For net.configure_host and net.configure_retry, whose settings are a JSON object: the first that
-- is unknown or has a value that cannot be.
create function pgnet.check_json_settings(
    -- host, or retry policy
    kind text,
    -- the host's pattern, or the policy's name
    subject text,
    settings jsonb,
    -- such settings
    example text
)
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    given record;
    fault text;
begin
    if jsonb_typeof(settings) <> 'object' then
        raise exception using errcode = 'invalid_parameter_value', message = 'settings must be a JSON object',
            hint = 'For example: ' || example;
    end if;
    for given in
        with known as (
            select 'host' as subject, h.name, h.kind, h.minimum, h.maximum, h.description from pgnet.known_host_settings() h
            union all
            select 'retry policy', r.name, r.kind, r.minimum, r.maximum, r.description from pgnet.known_retry_settings() r
        )
        select s.key, s.value, k.name, k.kind, k.minimum, k.maximum, k.description,
            (select string_agg(k.name, ', ' order by k.name) from known k where k.subject = check_json_settings.kind) as names
        from jsonb_each(settings) s left join known k on k.subject = check_json_settings.kind and k.name = s.key
    loop
        if given.name is null then
            raise exception using errcode = 'invalid_parameter_value', message = format('unknown setting "%s"', left(given.key, 60)),
                hint = 'known: ' || given.names;
        end if;
        continue when given.value = 'null';
        fault := case kind
            when 'host' then pgnet.host_setting_fault(given.kind, given.minimum, given.maximum, given.value)
            else pgnet.retry_setting_fault(given.kind, given.minimum, given.maximum, given.value) end;
        if fault is not null then
            raise exception using errcode = 'invalid_parameter_value',
                message = format('setting "%s" of %s "%s" %s', given.key, kind, subject, fault),
                hint = given.description;
        end if;
    end loop;
end
$$;
comment on function pgnet.check_json_settings(text, text, jsonb, text) is
    'Raises 22023 for settings of a host or of a retry policy that are no object, unknown, or have '
    'a value that cannot be.';

-- Callers run it for each request that names a policy: the built-in ones cost no look into a table.
create function pgnet.check_retry_policy(name text)
    returns void
    language plpgsql stable parallel safe cost 10
    set search_path = pg_catalog, pg_temp
as $$
begin
    if name in ('none', 'safe', 'webhook') or exists (select from net.retry_policies p where p.name = check_retry_policy.name) then
        return;
    end if;
    raise exception using
        errcode = 'invalid_parameter_value',
        message = case when name is null then 'the name of a retry policy must not be NULL'
            else format('unknown retry policy "%s"', left(name, 60)) end,
        hint = 'known: ' || (select string_agg(p.name, ', ' order by not p.built_in, p.name) from net.retry_policies p);
end
$$;
comment on function pgnet.check_retry_policy(text) is
    'Raises 22023 where there is no retry policy of this name; for NULL too.';

create function net.configure_retry(
    -- 1 to 63 letters, digits, and - _ . behind the first one; none, safe and webhook are built in
    name text,
    -- merged into the settings that the policy has; a null resets what it names to that of safe,
    -- NULL drops the policy
    settings jsonb
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    users text;
begin
    if name is null or name !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$' then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('invalid name %s of a retry policy', coalesce('"' || left(name, 80) || '"', 'NULL')),
            hint = 'A name is of 1 to 63 letters, digits, and - _ . behind the first one.';
    end if;
    if exists (select from pgnet.built_in_retry_policies() b where b.name = configure_retry.name) then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('retry policy "%s" is built in: it cannot be changed', name),
            hint = 'Make one of your own: select net.configure_retry(''mine'', ''{"max_attempts": 3}''). A setting that it leaves out is that of safe.';
    end if;
    if settings is null or settings = 'null' then
        delete from pgnet.retry_policy p where p.name = configure_retry.name;
        select string_agg(h.pattern, ', ' order by h.pattern) into users
        from pgnet.host h where h.settings ->> 'retry' = configure_retry.name;
        if users is not null then
            raise exception using errcode = 'dependent_objects_still_exist',
                message = format('retry policy "%s" is in use', name),
                detail = format('net.configure_host names it for: %s', users),
                hint = format('Give these hosts another one first: select net.configure_host(%L, ''{"retry": null}'')',
                    split_part(users, ', ', 1));
        end if;
        perform pgnet.announce_configuration();
        raise notice using message = format('there is no retry policy "%s" any more', name);
        return;
    end if;
    perform pgnet.check_json_settings('retry policy', name, settings, 'select net.configure_retry(''mine'', ''{"max_attempts": 3}'')');
    insert into pgnet.retry_policy as p (name, settings) values (configure_retry.name, jsonb_strip_nulls(configure_retry.settings))
    on conflict on constraint retry_policy_pkey do update
        set settings = jsonb_strip_nulls(p.settings || configure_retry.settings);
    perform pgnet.announce_configuration();
    raise notice using message = (
        select format('retry policy "%s": %s attempts at most, within %s ms', p.name, p.settings ->> 'max_attempts', p.settings ->> 'total_milliseconds')
        from net.retry_policies p where p.name = configure_retry.name);
end
$$;
comment on function net.configure_retry(text, jsonb) is
    'Makes or changes a retry policy: net.retry_policies and the documentation have the settings. '
    'They are merged into those that the policy has; null resets one to that of safe; NULL drops '
    'the policy, and raises 2BP01 while net.configure_host names it. Raises 22023 for a name, '
    'setting or value that cannot be, and for the built-in policies. Workers follow at the commit. '
    'Owner only.';

create function pgnet.retry_policy_settings()
    returns jsonb
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$ select jsonb_object_agg(p.name, p.settings) from net.retry_policies p $$;
comment on function pgnet.retry_policy_settings() is
    'All retry policies by name, complete, for workers.';

create function pgnet.is_idempotent(method text)
    returns boolean
    language sql immutable parallel safe cost 1
as $$
    select pg_catalog.upper(method collate "C")
        operator(pg_catalog.=) any (array['GET', 'HEAD', 'PUT', 'DELETE', 'OPTIONS'])
$$;
comment on function pgnet.is_idempotent(text) is
    'Whether a request with this method may be sent twice: RFC 9110, section 9.2.2.';

create function pgnet.derived_idempotency_key(key_namespace uuid, id bigint, created timestamptz)
    returns text
    language sql stable parallel safe cost 10
as $$
    select pg_catalog.md5(pg_catalog.concat_ws(':', key_namespace, id, extract(epoch from created)))::pg_catalog.uuid::pg_catalog.text
$$;
comment on function pgnet.derived_idempotency_key(uuid, bigint, timestamptz) is
    'An idempotency key that is the same for each attempt of a request, and for no other request.';

create function pgnet.idempotency_key(id bigint, created timestamptz, method text, options jsonb)
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select case
        when options ? 'idempotency_key' then
            -- Another value than a string may be 1 GB as text.
            case when jsonb_typeof(options -> 'idempotency_key') = 'string' then options ->> 'idempotency_key' end
        when not pgnet.is_idempotent(method) then pgnet.derived_idempotency_key((select d.key_namespace from pgnet.database d), id, created)
    end
$$;
comment on function pgnet.idempotency_key(bigint, timestamptz, text, jsonb) is
    'The idempotency key of a request: the one that it asked for; for a method that is not '
    'idempotent, one that is the same for each attempt and for no other request; else NULL.';

-- ======== extension/30_queue.sql ========

-- The queue: requests, the workers that claim them, and their outcomes. All of it is logged: a
-- crash or a failover loses nothing.

-- The host and port of a URL: hosts take turns. It is not a column of the queue, but computed for
-- the index.
create function pgnet.host_of_url(url text)
    returns text language sql immutable parallel safe cost 1
as $$ select pg_catalog.split_part(url, '/', 3) $$;
comment on function pgnet.host_of_url(text) is 'The host and port of a canonical URL.';

-- Each caller pays for what an INSERT costs. A CHECK constraint is compiled anew by each INSERT,
-- and so is a generated column; a view with a check option costs more than rights on columns. So
-- the table has none of these. A worker checks a request again when it sends it, and a bad row that
-- was inserted by hand ends as an error.
create table net.http_request_queue (
    -- pg_net's columns
    id bigint generated by default as identity,
    method net.http_method not null,
    url text not null,
    headers jsonb,
    body bytea,
    timeout_milliseconds integer,
    -- pgnet's
    requested_by regrole not null default pg_catalog.quote_ident(current_user)::pg_catalog.regrole,
    created timestamptz not null default current_timestamp,
    priority smallint not null default 0,
    context jsonb,
    options jsonb,
    retry_of bigint,
    due timestamptz,
    waits_since timestamptz,
    origin text,
    held boolean,
    constraint http_request_queue_pkey primary key (id)
) with (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_insert_scale_factor = 0.2, autovacuum_vacuum_cost_delay = 0
);
-- Otherwise ANALYZE would keep samples of them in pg_statistic, which pg_read_all_data reads past
-- row security.
alter table net.http_request_queue
    alter url set statistics 0,
    alter headers set statistics 0,
    alter body set statistics 0,
    alter context set statistics 0,
    alter options set statistics 0;
comment on table net.http_request_queue is
    'Requests that have no outcome yet. Rows are inserted by net.http_get and its kin, and only '
    'ever changed to wait, or by calls with their unique_key; a role sees its own. To end one call net.cancel(id) '
    'or net.forget(id). A role that is granted DELETE deletes its own rows, and may lock the whole '
    'table: then nothing is queued or sent.';
comment on column net.http_request_queue.id is 'The number that net.http_get returned.';
comment on column net.http_request_queue.method is 'Sent in upper case.';
comment on column net.http_request_queue.url is
    'The complete URL with its parameters, sent as it stands here, without the fragment.';
comment on column net.http_request_queue.headers is
    'Names and values, a secret by its name only; NULL means none.';
comment on column net.http_request_queue.body is 'The bytes that are sent; NULL means no body.';
comment on column net.http_request_queue.timeout_milliseconds is
    'Total time of an attempt in ms; NULL means the setting timeout_milliseconds at the time it is '
    'sent.';
comment on column net.http_request_queue.requested_by is
    'The role that made the request: only it sees the request and its response.';
comment on column net.http_request_queue.created is
    'When the transaction that made the request began.';
comment on column net.http_request_queue.priority is
    'Smaller ones go first among the requests of one role to one host.';
comment on column net.http_request_queue.context is
    'The caller''s own data, which comes back with the outcome.';
comment on column net.http_request_queue.options is
    'The options of net.http_request, but for the priority; NULL means none.';
comment on column net.http_request_queue.retry_of is
    'The failed request that net.retry made this one of.';
comment on column net.http_request_queue.due is
    'When the next attempt may begin; NULL: now. infinity: it was lost with several workers, and '
    'is attempted alone.';
comment on column net.http_request_queue.waits_since is
    'When due was set: a clock that is put back is noticed by it.';
comment on column net.http_request_queue.origin is
    'The subscription that brought the row from another server, which sends it; NULL: it is this '
    'server''s own.';
comment on column net.http_request_queue.held is
    'Whether the request waits for a time or for other requests, which pgnet.flow names; false: '
    'it no longer does, and has a row there; NULL: it has none.';
-- The claim steps over this index from host to host, and at each host from role to role. A request
-- that waits for a time is not in it, and so never stands in front of one that is ready.
create index http_request_queue_turn on net.http_request_queue ((pgnet.host_of_url(url) collate "C"), requested_by, priority, id)
    where due is null and held is not true and origin is null;
create index http_request_queue_due on net.http_request_queue (due) where due is not null;
create index http_request_queue_waits on net.http_request_queue (waits_since) where due is not null;

-- net.http_get and its kin insert into this view. It shows nothing, and takes what describes a
-- request and nothing else, whatever a role is granted: the requester, the time and the number are
-- never the caller's to choose. The insert is made with the owner's rights, so that the table's
-- policies, whose checks each call would pay for, do not apply. The id is an expression, so that it
-- can be returned and cannot be given.
create view net._new_request as
    select coalesce(q.id) as id, q.method, q.url, q.headers, q.body, q.timeout_milliseconds, q.priority, q.context, q.options, q.held
    from net.http_request_queue q
    where false;
comment on view net._new_request is
    'Requests are inserted here by net.http_get and its kin. It has no rows to show.';

-- The sequence gives a number to the session that draws it. A number that a row brings along is
-- forged, or replicated.
create function pgnet.was_numbered_here(request_id bigint)
    returns boolean
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    return request_id = currval('net.http_request_queue_id_seq');
exception when object_not_in_prerequisite_state then
    return false;
end
$$;
comment on function pgnet.was_numbered_here(bigint) is
    'Whether this session has drawn this number last, for a request of its own.';

create policy own_requests on net.http_request_queue for select
    using (requested_by operator(pg_catalog.=) (select pgnet.caller_role()));
create policy delete_own_requests on net.http_request_queue for delete
    using (requested_by operator(pg_catalog.=) (select pgnet.caller_role()));

-- A call changes a request that waits for its first attempt (42_timing.sql). A claim holds the lock
-- of the request's row that this role's change has, or waits for: so VOLATILE, which sees what was
-- committed meanwhile, and no request in flight is changed. A role that was granted UPDATE on the
-- whole table can change no more than one that has it on the columns for callers.
create function pgnet.may_be_changed(
    -- a request of the caller's as it is to be, without what a call sets
    id bigint, created timestamptz, retry_of bigint, due timestamptz, waits_since timestamptz, origin text
)
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
begin
    return exists (
        select from net.http_request_queue q
        where q.id = may_be_changed.id and q.requested_by = pgnet.caller_role()
            and (q.created, q.retry_of, q.due, q.waits_since, q.origin) is not distinct from (
                may_be_changed.created, may_be_changed.retry_of, may_be_changed.due, may_be_changed.waits_since, may_be_changed.origin))
        and not exists (select from pgnet.claim c where c.id = may_be_changed.id)
        and not exists (select from pgnet.attempt a where a.request_id = may_be_changed.id);
end
$$;
comment on function pgnet.may_be_changed(bigint, timestamptz, bigint, timestamptz, timestamptz, text) is
    'Whether a request of the caller waits for its first attempt, and has these values now.';
create policy change_own_requests on net.http_request_queue for update
    using (requested_by operator(pg_catalog.=) (select pgnet.caller_role()) and held is not null)
    with check (
        requested_by operator(pg_catalog.=) (select pgnet.caller_role())
        and pgnet.may_be_changed(id, created, retry_of, due, waits_since, origin));

create view pgnet.ready_request with (security_invoker) as
    select q.id, pgnet.host_of_url(q.url) collate "C" as host, q.requested_by::pg_catalog.oid as role, q.priority, q.requested_by,
        q.timeout_milliseconds, q.held,
        coalesce(pg_catalog.octet_length(q.body), 0)::bigint operator(pg_catalog.+) pg_catalog.octet_length(q.url)
            operator(pg_catalog.+) pgnet.json_size(q.context) as size,
        coalesce(pg_catalog.pg_column_size(q.headers), 0) operator(pg_catalog.+) coalesce(pg_catalog.pg_column_size(q.options), 0)
            as plain_size,
        case when pgnet.is_plain_json(q.headers) is not false and pgnet.is_plain_json(q.options) is not false then null
            else pgnet.json_size(q.headers) operator(pg_catalog.+) pgnet.json_size(q.options) end as odd_size
    from net.http_request_queue q
    where q.due is null and q.held is not true and q.origin is null;
comment on view pgnet.ready_request is
    'The requests that are ready, as a claim chooses them: by the host and the role that the index '
    'http_request_queue_turn begins with, and by lengths as they are stored. odd_size: of headers '
    'and options that are longer as text than plain_size says; NULL: they are not.';

-- What few requests ask for stands in a table of its own, so that no other call pays for its
-- indexes. The key has the role, and what workers do asks for both: a caller may insert any id, and
-- a row with the id of another role's request says nothing.
create table pgnet.flow (
    request_id bigint not null,
    requested_by regrole not null default pg_catalog.quote_ident(current_user)::pg_catalog.regrole,
    not_before timestamptz,
    not_after timestamptz,
    ordering_key text collate "C",
    unique_key text,
    merges tstzrange,
    gate pgnet.gate,
    opened timestamptz,
    callback text,
    callback_oid oid,
    primary key (request_id, requested_by)
) with (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0
);
alter table pgnet.flow
    alter ordering_key set statistics 0,
    alter unique_key set statistics 0;
comment on table pgnet.flow is
    'What a request waits for, and how it stands to others: times, ordering keys, unique keys. '
    'Most requests have no row here. The row goes with the request.';
comment on column pgnet.flow.not_before is
    'The request is not sent before this time; NULL: no such time is given, or it has come.';
comment on column pgnet.flow.not_after is
    'A request that is not sent by this time ends as expired; NULL: it never expires.';
comment on column pgnet.flow.ordering_key is
    'Of the requests of one role with the same key one is in flight at a time, in the order of '
    'their ids; NULL: the request has no key.';
comment on column pgnet.flow.unique_key is
    'While a request with this key waits for its first attempt, its role queues no second one; '
    'NULL: the request has no such key, or a worker has taken it.';
comment on column pgnet.flow.merges is
    'The calls that were merged into it by its unique_key, each within a second of the one before: '
    'when the first of them came, and the last; NULL: none was.';
comment on column pgnet.flow.gate is
    'Which other requests it waits for; NULL: none. Workers open the gate.';
comment on column pgnet.flow.opened is
    'When a worker has opened the gate. No caller can set it: where it is missing, the ordering_key '
    'does not count in pgnet.claim, so that no worker waits for another one because of forged rows.';
comment on column pgnet.flow.callback is
    'The function that is called when the request has ended, with its schema, quoted; NULL: none is.';
comment on column pgnet.flow.callback_oid is
    'The number of that function: another one of the same name is not called. It is an oid, since '
    'pg_upgrade refuses columns of the type regprocedure.';
create index flow_not_before on pgnet.flow (not_before) where not_before is not null;
create index flow_turn on pgnet.flow (requested_by, not_before) where not_before is not null;
create index flow_not_after on pgnet.flow (not_after) where not_after is not null;
create index flow_new on pgnet.flow (requested_by, request_id) where gate operator(pg_catalog.=) 'new';
create index flow_key on pgnet.flow (requested_by, ordering_key, request_id) where ordering_key is not null;
-- Here the key comes first, so that no query can take the index before for this one.
create index flow_open on pgnet.flow (ordering_key, requested_by) where ordering_key is not null and gate is null;
create unique index flow_unique_key on pgnet.flow (requested_by, unique_key) where unique_key is not null;
create policy own_flow on pgnet.flow for select
    using (requested_by operator(pg_catalog.=) (select pgnet.caller_role()));
create policy change_own_flow on pgnet.flow for update
    using (requested_by operator(pg_catalog.=) (select pgnet.caller_role()) and unique_key is not null)
    with check (requested_by operator(pg_catalog.=) (select pgnet.caller_role()));

-- As net._new_request: it shows nothing, and the role is never the caller's to choose.
create view net._new_flow as
    select f.request_id, f.not_before, f.not_after, f.ordering_key, f.unique_key, f.gate, f.callback, f.callback_oid
    from pgnet.flow f
    where false;
comment on view net._new_flow is
    'What a new request waits for is inserted here by net.http_request. The view has no rows to '
    'show.';

create table pgnet.worker (
    id bigint generated always as identity primary key,
    kind text not null constraint worker_kind check (kind operator(pg_catalog.=) any (array['backend', 'process'])),
    pid integer not null,
    backend_start timestamptz not null,
    secret uuid not null default pg_catalog.gen_random_uuid(),
    host text,
    version text,
    registered timestamptz not null default pg_catalog.clock_timestamp(),
    gone_since timestamptz,
    stalled_since timestamptz,
    ended timestamptz,
    cut_off integer not null default 0,
    mode text,
    slots integer,
    full_places jsonb
) with (autovacuum_vacuum_scale_factor = 0.1);
comment on table pgnet.worker is
    'Workers, known by pid and start of their session: what pg_stat_activity shows nobody can '
    'forge. The secret lets a worker whose connection broke come back as itself. net.workers shows '
    'them.';

comment on column pgnet.worker.mode is
    'The mode that the worker found at its last heartbeat.';
comment on column pgnet.worker.slots is 'How many requests it may have in flight at once.';
comment on column pgnet.worker.full_places is
    'Places that may have no more in flight by what their hosts can bear, by "ROLE_OID HOST", and how '
    'many they may have.';

-- Ids begin at random: a worker that lives through DROP EXTENSION and CREATE EXTENSION must not
-- take another's for its own.
do $$
begin
    perform pg_catalog.setval(pg_catalog.pg_get_serial_sequence('pgnet.worker', 'id'),
        1000 operator(pg_catalog.*) pg_catalog.floor(pg_catalog.random() operator(pg_catalog.*) 1000000)::bigint operator(pg_catalog.+) 1, false);
end
$$;

create table pgnet.claim (
    id bigint primary key,
    host text not null,
    worker bigint,
    token uuid not null,
    attempt integer not null,
    claimed timestamptz not null default pg_catalog.clock_timestamp(),
    deadline timestamptz not null,
    role oid not null,
    ordering_key text collate "C",
    limited boolean,
    probe boolean,
    progress text
) with (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0
);
comment on table pgnet.claim is
    'Requests that a worker has taken, until their outcomes are recorded. The token fences: only '
    'the worker that has it can record.';
comment on column pgnet.claim.worker is
    'The worker that has taken the request; NULL: no worker has, since the outcome waits in '
    'pgnet.unrecorded.';
comment on column pgnet.claim.deadline is
    'When the claim is free again although its worker is there: the request''s own deadline and a '
    'margin, by the database''s clock.';
comment on column pgnet.claim.role is 'The role that made the request.';
comment on column pgnet.claim.ordering_key is
    'The key of the request: no other one of its role and key can be claimed.';
comment on column pgnet.claim.limited is
    'The host has a limit of concurrency or rate, for which the claim counts; NULL: it has none.';
comment on column pgnet.claim.probe is
    'The attempt finds out whether a broken host works again; NULL: it is an attempt as any other.';
comment on column pgnet.claim.progress is
    'What the request waits for, in words, where it has been in flight for more than a second; NULL: '
    'its worker has not said so.';
create unique index claim_ordering_key on pgnet.claim (role, ordering_key) where ordering_key is not null;
create index claim_limited on pgnet.claim (host) where limited;
create index claim_probe on pgnet.claim (host) where probe;
create policy own_claims on pgnet.claim for select
    using (exists (select from net.http_request_queue q where q.id operator(pg_catalog.=) claim.id offset 0));

-- Outcomes that could not be recorded the second time, since another session holds a lock on their
-- row, or something refuses them. They wait here and not in a worker: its memory is bounded, and it
-- may stop.
create table pgnet.unrecorded (
    id bigint primary key,
    token uuid not null,
    outcome json not null,
    since timestamptz not null default pg_catalog.clock_timestamp(),
    retry_at timestamptz not null default pg_catalog.clock_timestamp(),
    message text,
    hint text
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000);
comment on table pgnet.unrecorded is
    'Outcomes of requests that have ended and cannot be recorded yet: a lock, a trigger, a foreign '
    'key is in the way. Workers try again; net.check() names them.';
comment on column pgnet.unrecorded.token is
    'The token of the claim. Where the claim is gone, the outcome does not count.';
comment on column pgnet.unrecorded.outcome is
    'The outcome as pgnet.record_outcomes takes it, with headers and body.';
comment on column pgnet.unrecorded.message is
    'The error that refuses the outcome; NULL: another session holds a lock on the request.';
comment on column pgnet.unrecorded.hint is 'The statement that cures it.';
create index unrecorded_retry_at on pgnet.unrecorded (retry_at);

-- Duties of the heartbeat that fail: each fails alone.
create table pgnet.fault (
    duty text primary key,
    since timestamptz not null default pg_catalog.clock_timestamp(),
    retry_at timestamptz not null,
    failures integer not null,
    message text not null,
    hint text,
    brief boolean not null default false,
    kept bigint not null default 0,
    behind timestamptz,
    behind_id bigint
);
comment on table pgnet.fault is
    'Duties of the workers'' heartbeat that fail, until they work again; net.check() shows them. '
    'The other duties are done.';
comment on column pgnet.fault.retry_at is
    'When the duty is tried again; for an expiry, when the rows that it could not delete are tried '
    'again.';
comment on column pgnet.fault.failures is 'How often the duty failed in a row.';
comment on column pgnet.fault.brief is
    'A lock of another session is in the way, perhaps for a moment.';
comment on column pgnet.fault.kept is
    'How many rows an expiry could not delete.';
comment on column pgnet.fault.behind is
    'An expiry goes on behind the row of this time,';
comment on column pgnet.fault.behind_id is 'and of this id.';

create table pgnet.attempt (
    request_id bigint not null,
    attempt integer not null,
    requested_by regrole not null,
    -- answered: it had an outcome, and another was to follow; probe: the same, of an attempt that
    -- tried a broken host and does not count; lost, stopped: with its worker, and nobody knows of
    -- it
    ending text not null
        constraint attempt_ending check (ending operator(pg_catalog.=) any (array['answered', 'probe', 'lost', 'stopped'])),
    started timestamptz not null,
    ended timestamptz not null,
    status_code integer,
    timed_out boolean not null default false,
    error_msg text,
    retry_in interval,
    primary key (request_id, attempt)
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000);
comment on table pgnet.attempt is
    'Attempts that were not the last of their request; net.attempts shows these and the last. Kept '
    'as long as the response.';
create index attempt_ended on pgnet.attempt (ended);
create policy own_attempts on pgnet.attempt for select
    using (requested_by operator(pg_catalog.=) (select pgnet.caller_role()));

create table net._http_response (
    -- pg_net's columns
    id bigint,
    status_code integer,
    content_type text,
    headers jsonb,
    content text,
    timed_out boolean,
    error_msg text,
    created timestamptz not null default pg_catalog.now(),
    -- pgnet's
    state net.request_state not null,
    content_bytes bytea,
    attempts integer not null,
    context jsonb,
    method text not null,
    url text not null,
    requested_by regrole not null,
    requested timestamptz not null,
    header_list jsonb,
    final_url text,
    redirects integer,
    http_version text,
    address inet,
    name_ms real,
    connect_ms real,
    tls_ms real,
    first_byte_ms real,
    total_ms real,
    retry_of bigint,
    constraint http_response_pkey primary key (id)
) with (
    autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_vacuum_insert_scale_factor = 0.2
);
alter table net._http_response
    alter url set statistics 0,
    alter headers set statistics 0,
    alter content set statistics 0,
    alter content_bytes set statistics 0,
    alter context set statistics 0,
    alter header_list set statistics 0,
    alter final_url set statistics 0;
comment on table net._http_response is
    'One row for each request that has ended, kept for the setting ttl. A role sees those of its '
    'own requests; net.forget(id) removes one. A role that is granted DELETE deletes its own rows, '
    'and may lock the whole table: then no outcome is recorded.';
comment on column net._http_response.id is 'The request''s id.';
comment on column net._http_response.status_code is
    'The status of the answer; NULL without an answer.';
comment on column net._http_response.content_type is
    'The Content-Type as the server sent it; NULL without one.';
comment on column net._http_response.headers is
    'The answer''s headers, names as sent; of a repeated header the last value.';
comment on column net._http_response.content is
    'The body as text, or what could be kept of it; NULL where it is empty or no text.';
comment on column net._http_response.timed_out is
    'Whether the time of the request ran out, be it before an answer or within it.';
comment on column net._http_response.error_msg is
    'Why there was no answer, or what is amiss with it, such as a body that is not whole; NULL '
    'where a whole answer came.';
comment on column net._http_response.created is 'When the outcome was recorded.';
comment on column net._http_response.state is 'How the request ended.';
comment on column net._http_response.content_bytes is
    'The body where it is no text in the declared charset, or has a NUL byte.';
comment on column net._http_response.attempts is
    'How many attempts were made; net.attempts has each.';
comment on column net._http_response.context is
    'The caller''s own data, as given with the request.';
comment on column net._http_response.method is 'The method of the request.';
comment on column net._http_response.url is 'The URL of the request.';
comment on column net._http_response.requested_by is 'The role that made the request.';
comment on column net._http_response.requested is 'When the request was made.';
comment on column net._http_response.header_list is
    'The answer''s headers in their order, repeats kept: an array of [name, value].';
comment on column net._http_response.final_url is
    'The URL that redirects led to; NULL where no redirect was followed.';
comment on column net._http_response.redirects is
    'How many redirects were followed; NULL where nothing was sent.';
comment on column net._http_response.http_version is
    'The version of HTTP of the answer: 1.0, 1.1 or 2.';
comment on column net._http_response.address is
    'The address last connected to, or tried; a proxy''s where one was used.';
comment on column net._http_response.name_ms is
    'Milliseconds that looking up names took; 0 where they were known.';
comment on column net._http_response.connect_ms is
    'Milliseconds that TCP connections took; 0 where they were there.';
comment on column net._http_response.tls_ms is
    'Milliseconds that TLS handshakes took; 0 without a handshake.';
comment on column net._http_response.first_byte_ms is
    'Milliseconds from the start to the first byte of the answer; NULL without an answer.';
comment on column net._http_response.total_ms is
    'Milliseconds from the start to the end of the attempt.';
comment on column net._http_response.retry_of is
    'The failed request that net.retry made this one of.';
create index http_response_created on net._http_response (created);
create policy own_responses on net._http_response for select
    using (requested_by operator(pg_catalog.=) (select pgnet.caller_role()));
create policy delete_own_responses on net._http_response for delete
    using (requested_by operator(pg_catalog.=) (select pgnet.caller_role()));

create table pgnet.failed (
    id bigint primary key,
    method net.http_method not null,
    url text not null,
    headers jsonb,
    body bytea,
    timeout_milliseconds integer,
    requested_by regrole not null,
    created timestamptz not null,
    priority smallint not null,
    context jsonb,
    options jsonb,
    retry_of bigint,
    state net.request_state not null,
    failed timestamptz not null default pg_catalog.now(),
    attempts integer not null,
    status_code integer,
    error_msg text,
    idempotency_key text
);
alter table pgnet.failed
    alter url set statistics 0,
    alter headers set statistics 0,
    alter body set statistics 0,
    alter context set statistics 0,
    alter options set statistics 0;
comment on table pgnet.failed is
    'Requests that ended as failed or unknown, or were only recorded; headers and body and all, '
    'kept for the setting ttl_failed. A role sees its own; net.forget(id) removes one. A role that '
    'is granted DELETE deletes its own rows, and may lock the whole table: then no failure is '
    'recorded.';
comment on column pgnet.failed.idempotency_key is
    'The Idempotency-Key of its attempts, which net.retry keeps; NULL where an idempotent method '
    'needs none.';
create index failed_failed on pgnet.failed (failed);
create policy own_failures on pgnet.failed for select
    using (requested_by operator(pg_catalog.=) (select pgnet.caller_role()));
create policy delete_own_failures on pgnet.failed for delete
    using (requested_by operator(pg_catalog.=) (select pgnet.caller_role()));

-- A mark is what a caller asks to be done with a request. The calling role inserts the row itself,
-- with its own rights, and a worker acts on it later, in the worker's session. So nothing runs with
-- the owner's rights in the session that calls net.cancel. PUBLIC has INSERT and SELECT, here as on
-- the other tables: a role that may UPDATE, DELETE or TRUNCATE may also lock a table. The key
-- begins with the role, which only the owner can choose: the marks of one role are not in the way
-- of others.
create table pgnet.mark (
    request_id bigint not null,
    requested_by regrole not null default pg_catalog.quote_ident(current_user)::pg_catalog.regrole,
    action text not null constraint mark_action check (action operator(pg_catalog.=) any (array['cancel', 'forget', 'retry'])),
    marked timestamptz not null default pg_catalog.now(),
    retry_at timestamptz,
    done boolean not null default false,
    primary key (requested_by, request_id, action)
) with (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0
);
comment on table pgnet.mark is
    'The orders of net.cancel, net.forget and net.retry, until a worker has carried them out. A '
    'mark counts only for a request of the role that stands in it. A role sees its own marks, and '
    'inserts them by these functions.';
comment on column pgnet.mark.request_id is 'The request''s id.';
comment on column pgnet.mark.requested_by is
    'The role that made the request. The owner marks requests of all roles; any other role only '
    'its own.';
comment on column pgnet.mark.action is
    'cancel: never send it again, and record it as cancelled. forget: remove all there is of it. '
    'retry: it was sent again, and is no longer in pgnet.failed.';
comment on column pgnet.mark.marked is 'When the transaction that marked it began.';
comment on column pgnet.mark.retry_at is
    'A worker could not do it, and tries again at this time; NULL: at the next heartbeat.';
comment on column pgnet.mark.done is
    'A retry that is done: the mark stays until no transaction sees the failure any more, so that '
    'no transaction can send it again.';
create index mark_done on pgnet.mark (request_id) where done;
create policy own_marks on pgnet.mark for select
    using (requested_by operator(pg_catalog.=) (select pgnet.caller_role()));
create policy insert_own_marks on pgnet.mark for insert
    with check (
        requested_by operator(pg_catalog.=) pgnet.caller_role() and retry_at is null and not done
        -- A role that may not call net.cancel marks nothing, although the table stands in pgnet.
        and pg_catalog.has_schema_privilege('net', 'usage')
        and (action operator(pg_catalog.<>) 'retry' or exists (
            select from pgnet.failed f
            where f.id operator(pg_catalog.=) request_id and f.requested_by operator(pg_catalog.=) mark.requested_by)));

-- A role that was granted INSERT on the whole table can say no more than one that was granted the
-- columns of a request.
create policy insert_own_requests on net.http_request_queue for insert
    with check (
        requested_by operator(pg_catalog.=) pgnet.caller_role() and created operator(pg_catalog.=) current_timestamp
        and due is null and waits_since is null and origin is null
        and pgnet.was_numbered_here(id)
        -- net.retry marks the failure first.
        and (retry_of is null or exists (
            select from pgnet.mark m
            where m.requested_by operator(pg_catalog.=) http_request_queue.requested_by
                and m.request_id operator(pg_catalog.=) retry_of and m.action operator(pg_catalog.=) 'retry')));

-- ======== extension/31_callbacks.sql ========

-- The tables of callbacks: functions that are called when requests have ended. 64_callbacks.sql
-- says how they come here, and how they are called.

create table pgnet.callback (
    request_id bigint not null,
    requested_by regrole not null,
    request_ids bigint[],
    callback text not null,
    callback_oid oid,
    state text not null default 'waiting'
        constraint callback_state check (state operator(pg_catalog.=) any (array['waiting', 'retrying', 'done', 'failed'])),
    attempts integer not null default 0,
    due timestamptz,
    made timestamptz not null default pg_catalog.clock_timestamp(),
    token uuid,
    pid integer,
    backend_start timestamptz,
    error_msg text,
    error_code text,
    error_context text,
    ended timestamptz,
    expires timestamptz,
    outcome net.outcome,
    primary key (request_id, requested_by)
) with (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0
);
alter table pgnet.callback
    alter error_msg set statistics 0,
    alter error_context set statistics 0,
    alter outcome set statistics 0;
comment on table pgnet.callback is
    'Functions to be called, and those that were: for requests that have ended, and for sets of '
    'requests. Workers write it; a role sees its own. Its key has the role, as that of pgnet.flow.';
comment on column pgnet.callback.request_id is
    'The request; of a set the number that net.on_all_done gave, which is negative.';
comment on column pgnet.callback.request_ids is 'The requests of a set; NULL: it is a single request.';
comment on column pgnet.callback.callback_oid is
    'The number of the function. Another function that has the name by now is not called.';
comment on column pgnet.callback.state is
    'waiting: to be called. retrying: it has failed, and is called again. done: it was called, and '
    'has returned. failed: it has failed, and waits for net.run_callback.';
comment on column pgnet.callback.attempts is
    'How often it was begun, since the end of its request or the last net.run_callback.';
comment on column pgnet.callback.due is 'When it is called; NULL: it runs, or has ended.';
comment on column pgnet.callback.token is
    'Of the attempt that runs: no other one can say how it has ended.';
comment on column pgnet.callback.pid is 'The session that runs it; NULL: none does.';
comment on column pgnet.callback.outcome is
    'What the function is called with where the response is not kept any more; NULL: it is.';
create index callback_due on pgnet.callback (requested_by, due) where due is not null;
create index callback_running on pgnet.callback (requested_by) where pid is not null;
create index callback_expires on pgnet.callback (expires) where expires is not null;
create policy own_callbacks on pgnet.callback for select
    using (requested_by operator(pg_catalog.=) (select pgnet.caller_role()));

create table pgnet.callback_turn (
    role oid primary key,
    served timestamptz not null default '-infinity',
    paused_until timestamptz not null default '-infinity',
    timeouts integer not null default 0
);
comment on table pgnet.callback_turn is
    'Whose callbacks are next. The session that has the row of a role locked begins one, and no '
    'other.';
comment on column pgnet.callback_turn.served is 'When a session has last begun with callbacks of the role.';
comment on column pgnet.callback_turn.paused_until is
    'No callback of the role is called before: one has run out of its time.';
comment on column pgnet.callback_turn.timeouts is 'How many in a row have run out of their time.';

-- What a caller asks for. Its numbers are negative, so that they are no request's.
create table pgnet.callback_order (
    id bigint generated always as identity (increment by -1 start with -1) primary key,
    requested_by regrole not null default pg_catalog.quote_ident(current_user)::pg_catalog.regrole,
    request_id bigint,
    request_ids bigint[],
    callback text not null,
    callback_oid oid,
    made timestamptz not null default pg_catalog.clock_timestamp(),
    look_at timestamptz not null default pg_catalog.clock_timestamp()
);
comment on table pgnet.callback_order is
    'The orders of net.on_all_done and net.run_callback, until they are carried out. An order counts '
    'only for requests of the role that stands in it.';
comment on column pgnet.callback_order.request_id is
    'net.run_callback: whose function is to be called again; NULL: it is an order of net.on_all_done.';
comment on column pgnet.callback_order.request_ids is
    'net.on_all_done: the requests that are to end first.';
comment on column pgnet.callback_order.look_at is
    'When it is to be looked at: a set when the request has ended that pgnet.dependency names, and once '
    'a minute, since that one may have been deleted by hand.';
create index callback_order_look_at on pgnet.callback_order (requested_by, look_at);
create policy own_callback_orders on pgnet.callback_order for select
    using (requested_by operator(pg_catalog.=) (select pgnet.caller_role()));

-- As net._new_request: it shows nothing, and the role and the number are never the caller's to
-- choose.
create view net._new_callback as
    select coalesce(o.id) as id, o.request_id, o.request_ids, o.callback, o.callback_oid
    from pgnet.callback_order o
    where false;
comment on view net._new_callback is
    'What net.on_all_done and net.run_callback ask for is inserted here. The view has no rows to '
    'show.';

-- ======== extension/35_copies.sql ========

-- Copies: a copy of a database must not send what the original sends. A database remembers which
-- one it is; the server's configuration can forbid it to send; and requests that come by logical
-- replication are not sent. docs/copies.md tells the whole of it.

-- This table is not part of a dump: a database that is restored from one is a database of its own.
create table pgnet.database (
    system_identifier bigint not null,
    database_oid oid not null,
    key_namespace uuid not null default pg_catalog.gen_random_uuid(),
    own_ids_until bigint,
    own_ids_from bigint,
    last_id bigint,
    publisher_key_namespace uuid,
    single boolean primary key default true check (single)
);
comment on table pgnet.database is
    'Which database this is. Where the row names another database than the one that runs, this is '
    'a copy, and no worker serves it before net.adopt_database().';
comment on column pgnet.database.system_identifier is
    'The number of the server, as initdb made it; a base backup and a standby have the same.';
comment on column pgnet.database.key_namespace is
    'Idempotency keys that nobody asked for are derived from it and the request.';
comment on column pgnet.database.own_ids_until is
    'Where replicated requests have come in: ids up to this one are of this server,';
comment on column pgnet.database.own_ids_from is 'and so are 10^12 ids from this one.';
comment on column pgnet.database.last_id is 'The last id that was given before these.';
comment on column pgnet.database.publisher_key_namespace is
    'The key_namespace of the server that replicated requests came from.';
insert into pgnet.database (system_identifier, database_oid)
    select s.system_identifier, d.oid
    from pg_catalog.pg_control_system() s
    join pg_catalog.pg_database d on d.datname operator(pg_catalog.=) pg_catalog.current_database();

create function pgnet.copy_fault()
    returns text
    language sql stable parallel restricted cost 100
    set search_path = pg_catalog, pg_temp
as $$
    select case
        when d.single is null then 'The table pgnet.database is empty.'
        when d.system_identifier <> s.system_identifier then format(
            'It is remembered as one of the server with the system identifier %s, and this one has %s.',
            d.system_identifier, s.system_identifier)
        when d.database_oid <> c.oid then format(
            'It is remembered as the database with the oid %s%s, and this one has %s.', d.database_oid,
            (select format(', which is "%s"', o.datname) from pg_database o where o.oid = d.database_oid), c.oid)
        end
    from pg_control_system() s
    join pg_database c on c.datname = current_database()
    left join pgnet.database d on true
$$;
comment on function pgnet.copy_fault() is
    'Why this database is a copy that was not adopted; NULL where it is the database that is '
    'remembered.';

create function pgnet.refuse_copy()
    returns void
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    fault text;
begin
    perform pgnet.require_worker();
    fault := pgnet.copy_fault();
    if fault is not null then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = format('the database "%s" is a copy: no worker serves it before it is adopted', current_database()),
            detail = fault,
            hint = 'Its queue holds what the original''s held. If that is to be sent from here: select net.adopt_database(). '
                'If not: delete from net.http_request_queue, and adopt it then.';
    end if;
end
$$;
comment on function pgnet.refuse_copy() is
    'Raises 55000 in a copy that was not adopted, with what to do.';

-- ---- the mode: whether anything is sent

-- Every role may set a custom setting in its session. So the server's files and its command line
-- are read as they are: no session can change what stands there.
create function pgnet.mode_sources()
    returns table (source text, configured text, mode text)
    language sql volatile parallel unsafe cost 10000 rows 3
    set search_path = pg_catalog, pg_temp
as $$
    select s.source, s.configured, case when lower(s.configured collate "C") in ('on', 'record', 'off') then lower(s.configured collate "C") else 'off' end
    from (
        select format('%s, line %s', f.sourcefile, f.sourceline) as source, f.setting as configured
        from pg_file_settings f
        where lower(f.name collate "C") = 'pgnet.mode'
        union all
        -- Read as bytes: a path in it may be in any encoding.
        select 'the server''s command line', m.found[1]
        from regexp_matches(
            encode(pg_read_binary_file('postmaster.opts', 0, 1000000, true), 'escape'), '"(?:-c ?|--)?pgnet[.]mode=([^"]*)"', 'gi'
        ) m (found)
        union all
        select 'the setting pgnet.mode of this session', current_setting('pgnet.mode', true)
        union all
        select 'net.configure', pgnet.setting_value('mode')
    ) s
    where s.configured <> ''
$$;
comment on function pgnet.mode_sources() is
    'All that sets the mode: the server''s configuration files and command line, the setting '
    'pgnet.mode of the session, net.configure. A value that is not a mode counts as off.';

create function pgnet.mode_in_force()
    returns text
    language sql volatile parallel unsafe cost 10000
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce((
        select s.mode from pgnet.mode_sources() s order by array_position(array['off', 'record', 'on'], s.mode) limit 1), 'on')
$$;
comment on function pgnet.mode_in_force() is
    'on, record or off: the safest mode that pgnet.mode_sources() gives; on where nothing sets it.';

-- ---- logical replication

create function pgnet.applying_subscription()
    returns text
    language sql stable parallel restricted cost 100
    set search_path = pg_catalog, pg_temp
as $$
    select s.subname::text
    from pg_stat_get_subscription(null) a
    join pg_subscription s on s.oid = a.subid
    where a.pid = pg_backend_pid()
    limit 1
$$;
comment on function pgnet.applying_subscription() is
    'The subscription that this session applies the changes of; NULL in all other sessions.';

-- The publisher numbers its requests from 1, and so did this server. From the first replicated one
-- on, this server's numbers are of a range of its own: neither a call here nor the replication may
-- fail because the other has used the number.
create function pgnet.set_ids_apart()
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    range_start bigint := (1 + floor(random() * 8000))::bigint * 1000000000000;
    used record;
begin
    -- Of several sessions that copy tables, the first one does it, and the others wait.
    perform from pgnet.database d where d.own_ids_from is null for update;
    if found then
        select s.last_value, s.is_called into used from net.http_request_queue_id_seq s;
        update pgnet.database
        set own_ids_from = range_start, last_id = case when used.is_called then used.last_value else 0 end,
            -- In a copy the numbers are the original's. The margin: numbers that are given out at
            -- this very moment.
            own_ids_until = case when used.is_called and pgnet.copy_fault() is null then used.last_value + 1000 else 0 end;
        perform setval('net.http_request_queue_id_seq', range_start, false);
    end if;
end
$$;
comment on function pgnet.set_ids_apart() is
    'At the first replicated request: this server''s own go on with other numbers.';

create function pgnet.is_known_row(table_name name, request_id bigint, attempt integer)
    returns boolean
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select case table_name
        when 'http_request_queue' then exists (select from net.http_request_queue q where q.id = request_id)
        when '_http_response' then exists (select from net._http_response r where r.id = request_id)
        when 'flow' then exists (select from pgnet.flow f where f.request_id = is_known_row.request_id)
        when 'failed' then exists (select from pgnet.failed f where f.id = request_id)
        when 'attempt' then exists (select from pgnet.attempt a where a.request_id = is_known_row.request_id and a.attempt = is_known_row.attempt)
    end
$$;
comment on function pgnet.is_known_row(name, bigint, integer) is
    'Whether the table has a row with this key.';

-- A role that may execute a trigger function may put it on a table of its own. These act with the
-- owner's rights, so they look whose table it is.
create function pgnet.refuse_other_tables(table_schema name)
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if table_schema not in ('net', 'pgnet') then
        raise exception using
            errcode = 'insufficient_privilege',
            message = 'this trigger function is for the tables of pgnet only';
    end if;
end
$$;
comment on function pgnet.refuse_other_tables(name) is
    'Raises 42501 for a table that is in neither of the extension''s schemas.';

-- Requests and their outcomes are taken, unless their number is one of this server's own, or
-- something was done with them here.
create function pgnet.take_replicated_row()
    returns trigger
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    subscription text := pgnet.applying_subscription();
    own record;
    request_id bigint;
    attempt integer;
begin
    perform pgnet.refuse_other_tables(tg_table_schema);
    -- Changes by triggers on replicated tables are this server's own.
    if pg_trigger_depth() = 1 then
        if subscription is not null then
            select d.own_ids_until, d.own_ids_from into own from pgnet.database d;
            if own.own_ids_from is null then
                perform pgnet.set_ids_apart();
                select d.own_ids_until, d.own_ids_from into own from pgnet.database d;
            end if;
            if tg_table_name in ('attempt', 'flow') then
                request_id := case tg_op when 'DELETE' then old.request_id else new.request_id end;
                if tg_table_name = 'attempt' then
                    attempt := case tg_op when 'DELETE' then old.attempt else new.attempt end;
                end if;
            else
                request_id := case tg_op when 'DELETE' then old.id else new.id end;
            end if;
            if request_id <= own.own_ids_until or request_id between own.own_ids_from and own.own_ids_from + 999999999999
                or (tg_op = 'INSERT' and pgnet.is_known_row(tg_table_name, request_id, attempt))
            then
                return null;
            end if;
        end if;
        if tg_table_name = 'http_request_queue' and tg_op <> 'DELETE' then
            new.origin := coalesce(subscription, case
                when tg_op = 'UPDATE' then old.origin
                when not pgnet.was_numbered_here(new.id) then 'replica' end);
        elsif tg_table_name = 'flow' and tg_op <> 'DELETE' then
            -- It is not to meet a key of this server's own requests: replication would stop.
            new.unique_key := null;
        end if;
    end if;
    return case tg_op when 'DELETE' then old else new end;
end
$$;
comment on function pgnet.take_replicated_row() is
    'Notes of replicated requests where they come from, and leaves this server''s own requests '
    'alone.';

-- Workers, claims and settings are a server's own: another's mean nothing here.
create function pgnet.keep_own_row()
    returns trigger
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgnet.refuse_other_tables(tg_table_schema);
    if pg_trigger_depth() = 1 and (tg_table_name in ('claim', 'worker') or pgnet.applying_subscription() is not null) then
        if tg_table_name = 'database' and tg_op <> 'DELETE' then
            update pgnet.database set publisher_key_namespace = new.key_namespace;
        end if;
        return null;
    end if;
    return case tg_op when 'DELETE' then old else new end;
end
$$;
comment on function pgnet.keep_own_row() is
    'Drops what replication brings of workers, claims and settings.';

-- ---- adoption

create function pgnet.take_over_requests(
    -- whether the numbers of functions may have changed
    was_copy boolean
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- What a request waits for may not have come along. Its options say which key it has, and which
    -- requests it comes after.
    insert into pgnet.flow (request_id, requested_by, ordering_key, gate)
    select q.id, q.requested_by, q.options ->> 'ordering_key', 'new'
    from net.http_request_queue q
    where q.origin is not null and q.held is not null and q.options ?| '{ordering_key,after}'
    on conflict do nothing;
    update net.http_request_queue q
    set origin = null, held = case when q.held is not null and q.options ?| '{ordering_key,after}' then true
        when q.held then (
            select case when count(*) > 0 then true end from pgnet.flow f where f.request_id = q.id and f.requested_by = q.requested_by)
        else q.held end
    where q.origin is not null;
    if was_copy then
        perform pgnet.renumber_callbacks();
    end if;
end
$$;
comment on function pgnet.take_over_requests(boolean) is
    'Makes requests that replication has brought this server''s own.';

create function net.adopt_database()
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set session_replication_role = origin
as $$
declare
    was_copy boolean := pgnet.copy_fault() is not null;
    remembered record;
    used record;
    highest bigint;
    subscriptions text;
begin
    perform pgnet.require_owner();
    lock table pgnet.database in share row exclusive mode;
    select string_agg(distinct format('"%s"', s.subname), ', ') into subscriptions
    from pg_subscription s
    join pg_subscription_rel r on r.srsubid = s.oid
    where s.subenabled and r.srrelid = 'net.http_request_queue'::regclass;
    if subscriptions is not null then
        raise warning using
            message = format('the subscription %s still brings requests', subscriptions),
            detail = 'Requests that it brings from now on are not sent here.',
            hint = 'Drop it, or disable it, and adopt the database again.';
    end if;

    select * into remembered from pgnet.database d;
    select s.last_value, s.is_called into used from net.http_request_queue_id_seq s;
    highest := greatest(
        (select max(q.id) from net.http_request_queue q),
        (select max(r.id) from net._http_response r),
        (select max(f.id) from pgnet.failed f),
        case
            when used.is_called then used.last_value
            -- Set apart for this server's own, but none was made: go on where the publisher was.
            when used.last_value = remembered.own_ids_from then remembered.last_id
            else used.last_value - 1
        end,
        remembered.own_ids_until,
        0);
    perform setval('net.http_request_queue_id_seq', highest + 1, false);

    delete from pgnet.database;
    insert into pgnet.database (system_identifier, database_oid, key_namespace)
    select s.system_identifier, c.oid, coalesce(
        -- A subscriber that made no request of its own goes on as the publisher: its requests keep
        -- their idempotency keys.
        case when not used.is_called and used.last_value = remembered.own_ids_from and remembered.own_ids_until = 0
            then remembered.publisher_key_namespace end,
        remembered.key_namespace, gen_random_uuid())
    from pg_control_system() s
    join pg_database c on c.datname = current_database();

    perform pgnet.take_over_requests(was_copy);
    -- The sessions of a copy's workers may be alive in the original.
    delete from pgnet.worker w
    where was_copy or not exists (
        select from pg_stat_get_activity(w.pid) a
        where a.backend_start = w.backend_start and a.datid = (select c.oid from pg_database c where c.datname = current_database()));
    perform pgnet.rescue_requests();
    perform pgnet.announce_configuration();
    perform net.wake();
end
$$;
comment on function net.adopt_database() is
    'Makes a copy a database of its own: it remembers the present server and database, takes over '
    'all that is in the queue, also what replication has brought, and returns what the original''s '
    'workers had claimed. From then on workers serve it. Owner only.';

-- ======== extension/40_request.sql ========

-- The caller's side: PL/Python checks and arms the commit callback, PL/pgSQL inserts. These
-- functions run in any search_path, a definer function's among them, and pg_temp comes first for
-- types: so every name is qualified, types as well (bigint, integer and their like are words of the
-- grammar). No SPI in Python here: each writing plpy.execute is a subtransaction, and 200 calls
-- would burn 201 transaction ids.

-- Gives the canonical URL with its parameters. Gives NULL where pgnet.check_or_raise is to decide,
-- because the request is to be refused or names a secret. Arms the wake-up at the commit. NULL as
-- options means the rules of pg_net's three functions, whose POST is of JSON only.
create function pgnet.check_request(method text, url text, params jsonb, headers jsonb, timeout_milliseconds integer, options jsonb default null)
    returns text
    language plpython3u volatile parallel unsafe cost 100
as $$
from pgnet import sql_v1
return sql_v1.check(plpy, method, url, params, headers, timeout_milliseconds, options)
$$;
comment on function pgnet.check_request(text, text, jsonb, jsonb, integer, jsonb) is
    'Checks a request as net.http_get and its kin do; gives the URL as it is stored, NULL where '
    'pgnet.check_or_raise decides. Also arms the wake-up at the commit.';

create function pgnet.inspect_request(
    method text, url text, params jsonb, headers jsonb, timeout_milliseconds integer, options jsonb,
    -- the URL as it is stored, and the secrets that the request names
    out complete_url text, out secrets text[],
    -- or why it is refused
    out message text, out hint text, out sqlstate text
)
    language plpython3u stable parallel unsafe cost 100
as $$
from pgnet import sql_v1
return sql_v1.inspect(method, url, params, headers, timeout_milliseconds, options)
$$;
comment on function pgnet.inspect_request(text, text, jsonb, jsonb, integer, jsonb) is
    'What pgnet.check_request found: the secrets that a request names, or why it is refused, '
    'without the value of a header or a password.';

create function pgnet.raise_error(sqlstate text, message text, hint text)
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if hint is null then
        raise exception using errcode = sqlstate, message = message;
    end if;
    raise exception using errcode = sqlstate, message = message, hint = hint;
end
$$;
comment on function pgnet.raise_error(text, text, text) is 'Raises an error; hint may be NULL.';

-- A function that was altered to SECURITY DEFINER makes every request its owner's, and the owner
-- may use every secret. The arguments tell which function was called: options are NULL in pg_net's
-- three.
create function pgnet.refuse_altered_function(method text, options jsonb)
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    own_function text := 'http_' || lower(method collate "C");
    called text[] := case
        when options is null then array[own_function]
        when method in ('PUT', 'PATCH', 'HEAD') then array['http_request', own_function]
        else array['http_request'] end;
    altered regprocedure;
begin
    select p.oid into altered
    from pg_proc p
    where p.prosecdef and (p.pronamespace = to_regnamespace('net') and p.proname = any (called)
        or p.pronamespace = to_regnamespace('pgnet') and p.proname = any ( array['check_or_raise', 'check_secret', 'secret_prefix']));
    if found then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('%s was altered to SECURITY DEFINER: no request that it makes can name a secret', altered),
            detail = 'Its requests are those of its owner, whoever calls it: every role could use every secret.',
            hint = format('alter function %s security invoker;', altered);
    end if;
end
$$;
comment on function pgnet.refuse_altered_function(text, jsonb) is
    'Raises 42501 where the function that makes a request with a secret was altered to SECURITY '
    'DEFINER.';

create function pgnet.check_or_raise(method text, url text, params jsonb, headers jsonb, timeout_milliseconds integer, options jsonb default null)
    returns text
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    found record;
    secret text;
begin
    select * into found from pgnet.inspect_request(method, url, params, headers, timeout_milliseconds, options);
    if found.message is not null then
        perform pgnet.raise_error(found.sqlstate, found.message, found.hint);
    end if;
    if found.secrets <> '{}' then
        perform pgnet.refuse_altered_function(method, options);
    end if;
    foreach secret in array found.secrets loop
        perform pgnet.check_secret(secret, found.complete_url);
    end loop;
    return found.complete_url;
end
$$;
comment on function pgnet.check_or_raise(text, text, jsonb, jsonb, integer, jsonb) is
    'Raises what is wrong with a request; where it names secrets that the caller may use for its '
    'URL, gives the URL as it is stored.';

-- Adds a Content-Type, where the headers have none in any case of letters.
create function pgnet.with_content_type(headers jsonb, content_type text)
    returns jsonb
    language plpgsql stable parallel safe cost 10
    set search_path = pg_catalog, pg_temp
as $$
begin
    if jsonb_typeof(headers) is distinct from 'object' then
        return case when headers is null then jsonb_build_object('Content-Type', content_type) else headers end;
    end if;
    if exists (select from jsonb_each(headers) h where lower(h.key collate "C") = 'content-type' and h.value <> 'null') then
        return headers;
    end if;
    return headers || jsonb_build_object('Content-Type', content_type);
end
$$;
comment on function pgnet.with_content_type(jsonb, text) is
    'The headers; with this Content-Type where they have none.';

create function net.http_get(
    -- absolute http or https URL
    url text,
    -- names and values appended to the query, percent-encoded; NULL means none
    params jsonb default '{}'::pg_catalog.jsonb,
    -- names and values of request headers; NULL means none
    headers jsonb default '{}'::pg_catalog.jsonb,
    -- total time of the attempt in ms; NULL means the setting timeout_milliseconds
    timeout_milliseconds integer default null
)
    -- the request's id, for net.http_get_result
    returns bigint
    language plpgsql volatile parallel unsafe
as $$
declare
    target pg_catalog.text := pgnet.check_request('GET', http_get.url, http_get.params, http_get.headers, http_get.timeout_milliseconds);
    request_id bigint;
begin
    if target is null then
        target := pgnet.check_or_raise('GET', http_get.url, http_get.params, http_get.headers, http_get.timeout_milliseconds);
    end if;
    if pgnet.pending_limits() is not null then
        perform pgnet.refuse_backlog();
    end if;
    insert into net._new_request (method, url, headers, timeout_milliseconds)
    values ('GET', target, http_get.headers, http_get.timeout_milliseconds)
    returning id into request_id;
    return request_id;
end
$$;
comment on function net.http_get(text, jsonb, jsonb, integer) is
    'Queues a GET, sent if and when the transaction commits, and returns its id. A NULL url raises '
    '23502, a URL, header or parameter that cannot be sent 22023; other NULLs mean none. '
    'timeout_milliseconds is total; NULL means the setting.';

create function net.http_post(
    -- absolute http or https URL
    url text,
    -- sent as JSON in UTF-8; NULL sends an empty body
    body jsonb default '{}'::pg_catalog.jsonb,
    -- names and values appended to the query, percent-encoded; NULL means none
    params jsonb default '{}'::pg_catalog.jsonb,
    -- names and values of request headers; a missing Content-Type becomes application/json
    headers jsonb default '{"Content-Type": "application/json"}'::pg_catalog.jsonb,
    -- total time of the attempt in ms; NULL means the setting timeout_milliseconds
    timeout_milliseconds integer default null
)
    -- the request's id, for net.http_get_result
    returns bigint
    language plpgsql volatile parallel unsafe
as $$
declare
    typed_headers pg_catalog.jsonb := case
        when http_post.headers operator(pg_catalog.->>) 'Content-Type' is not null then http_post.headers
        else pgnet.with_content_type(http_post.headers, 'application/json') end;
    target pg_catalog.text := pgnet.check_request('POST', http_post.url, http_post.params, typed_headers, http_post.timeout_milliseconds);
    request_id bigint;
begin
    if target is null then
        target := pgnet.check_or_raise('POST', http_post.url, http_post.params, typed_headers, http_post.timeout_milliseconds);
    end if;
    if pgnet.pending_limits() is not null then
        perform pgnet.refuse_backlog();
    end if;
    insert into net._new_request (method, url, headers, body, timeout_milliseconds)
    values ('POST', target, typed_headers, pg_catalog.convert_to(http_post.body::pg_catalog.text, 'UTF8'), http_post.timeout_milliseconds)
    returning id into request_id;
    return request_id;
end
$$;
comment on function net.http_post(text, jsonb, jsonb, jsonb, integer) is
    'Queues a POST of JSON, sent if and when the transaction commits, and returns its id. A '
    'Content-Type other than application/json raises; body NULL sends an empty POST. A NULL url '
    'raises 23502, what cannot be sent 22023.';

create function net.http_delete(
    -- absolute http or https URL
    url text,
    -- names and values appended to the query, percent-encoded; NULL means none
    params jsonb default '{}'::pg_catalog.jsonb,
    -- names and values of request headers; NULL means none
    headers jsonb default '{}'::pg_catalog.jsonb,
    -- total time of the attempt in ms; NULL means the setting timeout_milliseconds
    timeout_milliseconds integer default null,
    -- sent as JSON in UTF-8; NULL means no body
    body jsonb default null
)
    -- the request's id, for net.http_get_result
    returns bigint
    language plpgsql volatile parallel unsafe
as $$
declare
    typed_headers pg_catalog.jsonb := case
        when http_delete.body is null then http_delete.headers
        else pgnet.with_content_type(http_delete.headers, 'application/json') end;
    target pg_catalog.text := pgnet.check_request('DELETE', http_delete.url, http_delete.params, typed_headers, http_delete.timeout_milliseconds);
    request_id bigint;
begin
    if target is null then
        target := pgnet.check_or_raise('DELETE', http_delete.url, http_delete.params, typed_headers, http_delete.timeout_milliseconds);
    end if;
    if pgnet.pending_limits() is not null then
        perform pgnet.refuse_backlog();
    end if;
    insert into net._new_request (method, url, headers, body, timeout_milliseconds)
    values ('DELETE', target, typed_headers, pg_catalog.convert_to(http_delete.body::pg_catalog.text, 'UTF8'), http_delete.timeout_milliseconds)
    returning id into request_id;
    return request_id;
end
$$;
comment on function net.http_delete(text, jsonb, jsonb, integer, jsonb) is
    'Queues a DELETE, with a JSON body where one is given, sent if and when the transaction '
    'commits, and returns its id. A NULL url raises 23502, what cannot be sent 22023.';

create function pgnet.inspect_form(form jsonb, out encoded text, out message text, out hint text, out sqlstate text)
    language plpython3u immutable parallel safe cost 10
as $$
from pgnet import sql_v1
return sql_v1.form(form)
$$;
comment on function pgnet.inspect_form(jsonb) is
    'An object as application/x-www-form-urlencoded, or what is wrong with it.';

-- body_text is sent as UTF-8. So its Content-Type must not name another charset.
create function pgnet.require_utf8(headers jsonb)
    returns void
    language plpgsql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    charset text;
begin
    select lower((regexp_match((h.value #>> '{}') collate "C", ';[[:space:]]*charset[[:space:]]*=[[:space:]]*"?([^";[:space:]]+)', 'i'))[1]) into charset
    from jsonb_each(headers) h where lower(h.key collate "C") = 'content-type' and h.value <> 'null';
    if charset not in ('utf-8', 'utf8', 'us-ascii') then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = 'body_text is sent in UTF-8, and its Content-Type says another charset',
            hint = 'For another one give body_bytes => convert_to(..., ''LATIN1''), for example.';
    end if;
end
$$;
comment on function pgnet.require_utf8(jsonb) is
    'Raises 22023 where a Content-Type names another charset than UTF-8.';

create function pgnet.encode_form(form jsonb)
    returns bytea
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    made record;
begin
    select * into made from pgnet.inspect_form(form);
    if made.message is not null then
        perform pgnet.raise_error(made.sqlstate, made.message, made.hint);
    end if;
    return convert_to(made.encoded, 'UTF8');
end
$$;
comment on function pgnet.encode_form(jsonb) is
    'An object as application/x-www-form-urlencoded. Raises 22023 for a value that cannot be a '
    'form.';

-- The options by which a request stands in pgnet.flow.
create function pgnet.has_flow(options jsonb)
    returns boolean language sql immutable parallel safe cost 1
as $$
    select options operator(pg_catalog.?|)
        '{not_before,not_after,ordering_key,after,unique_key,unique_for,on_conflict}'::pg_catalog.text[]
$$;
comment on function pgnet.has_flow(jsonb) is
    'Whether options of a request ask for what pgnet.flow has columns for.';

create function net.http_request(
    -- any method but CONNECT and TRACE
    method text,
    -- absolute http or https URL
    url text,
    -- at most one of the four bodies; this one is sent as JSON in UTF-8
    body jsonb default null,
    -- names and values appended to the query, percent-encoded; NULL means none
    params jsonb default '{}'::pg_catalog.jsonb,
    -- names and values of request headers, an array repeats one, {"secret": name} is a secret; NULL
    -- means none
    headers jsonb default '{}'::pg_catalog.jsonb,
    -- total time of an attempt in ms; NULL means 30000
    timeout_milliseconds integer default 30000,
    -- sent in UTF-8, as text/plain; charset=utf-8 where no Content-Type is given
    body_text text default null,
    -- an object, sent as application/x-www-form-urlencoded; an array repeats a name
    body_form jsonb default null,
    -- sent as it is, as application/octet-stream where no Content-Type is given
    body_bytes bytea default null,
    -- a retry policy: none, safe, webhook, or one that net.configure_retry has made; NULL means the
    -- policy of the host, or none
    retry text default null,
    -- attempts at most, instead of the policy's, from 1 to 1000; NULL means the policy's
    max_attempts integer default null,
    -- a function of one argument net.outcome, called when the request has ended; NULL means none
    on_response text default null,
    -- given back with the outcome
    context jsonb default null,
    -- delivery (at_least_once, or at_most_once), idempotency_key, max_redirects (lowers the
    -- setting), priority (smaller goes first among the requests of one role to one host; 0),
    -- store_response (false: of the answer the status is kept, and neither headers nor body);
    -- ordering_key (one in flight at a time, in the order of ids), on_failure (block, or skip, its
    -- key); after (ids of requests that have to end well first), after_any_end (however they end);
    -- not_before and not_after (a time, or an interval from now); unique_key with unique_for and
    -- on_conflict (keep, or replace); sign (names of secrets, as Standard Webhooks says); NULL
    -- means none
    options jsonb default '{}'::pg_catalog.jsonb
)
    -- the request's id, for net.wait and net.http_get_result
    returns bigint
    language plpgsql volatile parallel unsafe
as $$
declare
    -- Upper case of ASCII only: in other letters no token is one.
    token pg_catalog.text := pg_catalog.upper(http_request.method collate "C");
    chosen pg_catalog.jsonb := coalesce(http_request.options, '{}'::pg_catalog.jsonb);
    total integer := coalesce(http_request.timeout_milliseconds, 30000);
    typed_headers pg_catalog.jsonb := http_request.headers;
    content_type pg_catalog.text;
    content pg_catalog.bytea;
    bodies integer;
    others pg_catalog.jsonb;
    target pg_catalog.text;
    callback record;
    request_id bigint;
begin
    bodies := pg_catalog.num_nonnulls(http_request.body, http_request.body_text, http_request.body_form, http_request.body_bytes);
    if bodies operator(pg_catalog.>) 1 then
        perform pgnet.raise_error('22023', 'a request has at most one body', 'Give one of body, body_text, body_form and body_bytes.');
    elsif bodies operator(pg_catalog.=) 1 then
        if token operator(pg_catalog.=) 'HEAD' then
            perform pgnet.raise_error('22023', 'a HEAD request has no body', 'Leave the body out, or use GET or POST.');
        end if;
        if http_request.body is not null then
            content_type := 'application/json';
            content := pg_catalog.convert_to(http_request.body::pg_catalog.text, 'UTF8');
        elsif http_request.body_text is not null then
            content_type := 'text/plain; charset=utf-8';
            content := pg_catalog.convert_to(http_request.body_text, 'UTF8');
        elsif http_request.body_form is not null then
            content_type := 'application/x-www-form-urlencoded';
            content := pgnet.encode_form(http_request.body_form);
        else
            content_type := 'application/octet-stream';
            content := http_request.body_bytes;
        end if;
        if typed_headers is null or typed_headers operator(pg_catalog.=) '{}'::pg_catalog.jsonb then
            typed_headers := pg_catalog.jsonb_build_object('Content-Type', content_type);
        else
            typed_headers := pgnet.with_content_type(typed_headers, content_type);
        end if;
    end if;
    if token is null then
        perform pgnet.raise_error('22004', 'method must not be NULL', 'It is a word such as GET or PATCH.');
    end if;
    target := pgnet.check_request(token, http_request.url, http_request.params, typed_headers, total, chosen);
    if target is null then
        target := pgnet.check_or_raise(token, http_request.url, http_request.params, typed_headers, total, chosen);
    end if;
    if http_request.body_text is not null then
        perform pgnet.require_utf8(typed_headers);
    end if;
    if pg_catalog.pg_column_size(http_request.context) operator(pg_catalog.>) 100000
        and pgnet.json_text(http_request.context, 16000000) is null
    then
        perform pgnet.raise_error('22023', 'the context is longer than 16000000 bytes as JSON, nested too deeply, or not UTF-8',
            'It comes back with the outcome: keep in a table what is large, and give its key here.');
    end if;
    -- Checked by now: an object.
    others := chosen operator(pg_catalog.-) 'priority'::pg_catalog.text;
    if http_request.retry is not null then
        perform pgnet.check_retry_policy(http_request.retry);
        others := others operator(pg_catalog.||) pg_catalog.jsonb_build_object('retry', http_request.retry);
    end if;
    if http_request.max_attempts is not null then
        if http_request.max_attempts operator(pg_catalog.<) 1 or http_request.max_attempts operator(pg_catalog.>) 1000 then
            perform pgnet.raise_error('22023', 'max_attempts must be between 1 and 1000', 'The first attempt is one of them.');
        end if;
        others := others operator(pg_catalog.||) pg_catalog.jsonb_build_object('max_attempts', http_request.max_attempts);
    end if;
    if pgnet.pending_limits() is not null then
        perform pgnet.refuse_backlog();
    end if;
    if http_request.on_response is not null then
        select r.callback as name, r.callback_oid as oid into callback from pgnet.resolve_callback(http_request.on_response, 'net.outcome') r;
        return pgnet.queue_request(token, target, typed_headers, content, total, http_request.context, others, chosen, callback.name, callback.oid);
    elsif others operator(pg_catalog.=) '{}'::pg_catalog.jsonb then
        others := null;
    elsif pgnet.has_flow(others) then
        return pgnet.queue_request(token, target, typed_headers, content, total, http_request.context, others, chosen);
    end if;
    insert into net._new_request (method, url, headers, body, timeout_milliseconds, priority, context, options)
    values (token, target, typed_headers, content, total,
        coalesce((chosen operator(pg_catalog.->>) 'priority')::smallint, 0::smallint), http_request.context,
        others)
    returning id into request_id;
    return request_id;
end
$$;
comment on function net.http_request(text, text, jsonb, jsonb, jsonb, integer, text, jsonb, bytea, text, integer, text, jsonb, jsonb) is
    'Queues a request of any method but CONNECT and TRACE, with at most one of four bodies, sent '
    'if and when the transaction commits, and returns its id. timeout_milliseconds is total; NULL '
    'means 30000. A NULL method raises 22004, a NULL url 23502, what cannot be sent, a second '
    'body, an unknown option or retry policy 22023, a secret that the role may not use 42501, an '
    'on_response that is no function of one argument net.outcome 42883, or that the role may not '
    'execute 42501.';

create function net.http_put(
    -- absolute http or https URL
    url text,
    -- sent as JSON in UTF-8; NULL sends an empty body
    body jsonb default '{}',
    -- names and values appended to the query, percent-encoded; NULL means none
    params jsonb default '{}',
    -- names and values of request headers; a missing Content-Type becomes application/json
    headers jsonb default '{"Content-Type": "application/json"}',
    -- total time of an attempt in ms; NULL means 30000
    timeout_milliseconds integer default 30000
)
    -- the request's id, for net.wait and net.http_get_result
    returns bigint
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    select net.http_request('PUT', url, body => body, params => params,
        headers => pgnet.with_content_type(headers, 'application/json'), timeout_milliseconds => timeout_milliseconds)
$$;
comment on function net.http_put(text, jsonb, jsonb, jsonb, integer) is
    'Queues a PUT of JSON, sent if and when the transaction commits, and returns its id. Another '
    'JSON type may be given as Content-Type; body NULL sends an empty PUT. Raises as '
    'net.http_request does.';

create function net.http_patch(
    -- absolute http or https URL
    url text,
    -- sent as JSON in UTF-8; NULL sends an empty body
    body jsonb default '{}',
    -- names and values appended to the query, percent-encoded; NULL means none
    params jsonb default '{}',
    -- names and values of request headers; a missing Content-Type becomes application/json
    headers jsonb default '{"Content-Type": "application/json"}',
    -- total time of an attempt in ms; NULL means 30000
    timeout_milliseconds integer default 30000
)
    -- the request's id, for net.wait and net.http_get_result
    returns bigint
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    select net.http_request('PATCH', url, body => body, params => params,
        headers => pgnet.with_content_type(headers, 'application/json'), timeout_milliseconds => timeout_milliseconds)
$$;
comment on function net.http_patch(text, jsonb, jsonb, jsonb, integer) is
    'Queues a PATCH of JSON, sent if and when the transaction commits, and returns its id. Another '
    'JSON type, such as application/merge-patch+json, may be given as Content-Type; body NULL '
    'sends an empty PATCH. Raises as net.http_request does.';

create function net.http_head(
    -- absolute http or https URL
    url text,
    -- names and values appended to the query, percent-encoded; NULL means none
    params jsonb default '{}',
    -- names and values of request headers; NULL means none
    headers jsonb default '{}',
    -- total time of an attempt in ms; NULL means 30000
    timeout_milliseconds integer default 30000
)
    -- the request's id, for net.wait and net.http_get_result
    returns bigint
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    select net.http_request('HEAD', url, params => params, headers => headers, timeout_milliseconds => timeout_milliseconds)
$$;
comment on function net.http_head(text, jsonb, jsonb, integer) is
    'Queues a HEAD, sent if and when the transaction commits, and returns its id. Raises as '
    'net.http_request does.';

create function pgnet.inspect_multipart(
    parts jsonb, files bytea[], out content_type text, out body bytea, out message text, out hint text, out sqlstate text
)
    language plpython3u volatile parallel unsafe cost 100
as $$
from pgnet import sql_v1
return sql_v1.multipart(parts, files)
$$;
comment on function pgnet.inspect_multipart(jsonb, bytea[]) is
    'Behind net.multipart: the body and its type, or what is wrong with the parts.';

create function net.multipart(
    -- an array of objects: name, and one of value (text), json, base64, or file (which one of
    -- files, from 1); also filename, content_type
    parts jsonb,
    -- what the parts' file refers to
    files bytea[] default '{}',
    -- for the header Content-Type: it names the boundary
    out content_type text,
    -- for body_bytes
    out body bytea
)
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    made record;
begin
    select * into made from pgnet.inspect_multipart(parts, files);
    if made.message is not null then
        perform pgnet.raise_error(made.sqlstate, made.message, made.hint);
    end if;
    content_type := made.content_type;
    body := made.body;
end
$$;
comment on function net.multipart(jsonb, bytea[]) is
    'Builds a body of multipart/form-data (RFC 7578) and its Content-Type, for body_bytes of '
    'net.http_request. NULL parts or a part that is not as it should be raise 22023; NULL files '
    'mean none.';

create function net._urlencode_string(
    -- the text to encode
    string varchar
)
    returns text
    language plpython3u immutable strict parallel safe cost 10
as $$
from pgnet import sql_v1
return sql_v1.urlencode_string(string)
$$;
comment on function net._urlencode_string(varchar) is
    'Percent-encodes text as UTF-8, RFC 3986 unreserved characters kept. NULL gives NULL.';

create function pgnet.append_to_query(
    url text, params_array text[], out encoded text, out message text, out hint text, out sqlstate text
)
    language plpython3u immutable parallel safe cost 10
as $$
from pgnet import sql_v1
return sql_v1.append_to_query(url, params_array)
$$;
comment on function pgnet.append_to_query(text, text[]) is
    'Behind net._encode_url_with_params_array: the URL, or what is wrong with it.';

create function net._encode_url_with_params_array(
    -- absolute http or https URL
    url text,
    -- pairs such as a=b, already percent-encoded
    params_array text[]
)
    returns text
    language plpgsql immutable strict parallel safe cost 100
    set search_path = pg_catalog, pg_temp
as $$
declare
    result record;
begin
    select * into result from pgnet.append_to_query(url, params_array);
    if result.message is not null then
        perform pgnet.raise_error(result.sqlstate, result.message, result.hint);
    end if;
    return result.encoded;
end
$$;
comment on function net._encode_url_with_params_array(text, text[]) is
    'The URL with the encoded pairs appended to its query. NULL gives NULL; what is no URL raises '
    '22023.';

-- ======== extension/41_backlog.sql ========

-- Back-pressure: the settings max_pending and max_pending_per_role, beyond which calls are refused.
--
-- Nothing is counted in a call. How many requests there are in all, the server knows by its own
-- statistics (n_live_tup), and the session adds what its transaction has queued. How many there are
-- of each role, a duty of the heartbeat counts once a second, in pgnet.backlog.
--
-- A call must pay nothing while no limit is set. So the limits stand in the body of a function,
-- which PostgreSQL inlines: what is left of it in a call is a constant. A trigger on pgnet.setting
-- writes that body, so that a restored dump has the limits too.

create function pgnet.pending_limits()
    returns integer[]
    language sql immutable parallel safe
as $$ select null::pg_catalog.int4[] $$;
comment on function pgnet.pending_limits() is
    'The settings max_pending and max_pending_per_role in an array, NULL for one that is off; NULL '
    'where both are off. pgnet.set_pending_limits writes it.';

create function pgnet.set_pending_limits()
    returns trigger
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    limits integer[];
begin
    -- One session at a time: PostgreSQL refuses to replace a function that another one replaces.
    perform from pgnet.configuration f for update;
    limits := array[
        nullif(pgnet.setting_value('max_pending')::integer, 0), nullif(pgnet.setting_value('max_pending_per_role')::integer, 0)];
    if limits = array[null, null]::integer[] then
        limits := null;
    end if;
    if limits is distinct from pgnet.pending_limits() then
        execute format('create or replace function pgnet.pending_limits() returns integer[] language sql immutable parallel safe as %L',
            format('select %L::pg_catalog.int4[]', limits));
    end if;
    return null;
end
$$;
comment on function pgnet.set_pending_limits() is
    'After each change of pgnet.setting: writes the limits into pgnet.pending_limits().';
create trigger set_pending_limits after insert or update or delete or truncate on pgnet.setting
    for each statement execute function pgnet.set_pending_limits();

create table pgnet.backlog (
    role regrole primary key,
    pending bigint not null,
    counted timestamptz not null default pg_catalog.clock_timestamp(),
    inserted bigint
);
comment on table pgnet.backlog is
    'How many requests of each role are pending, and in the row of role 0 how many in all, as the '
    'heartbeat last counted them; empty while no limit is set. A role sees its own row and that of '
    'all.';
comment on column pgnet.backlog.counted is
    'In the row of role 0: when a worker last counted.';
comment on column pgnet.backlog.inserted is
    'How many rows had been inserted into the queue when the count of all began, by the server''s '
    'statistics.';
create policy own_backlog on pgnet.backlog for select
    using (role operator(pg_catalog.=) (select pgnet.caller_role()) or role operator(pg_catalog.=) 0::pg_catalog.oid);

create table pgnet.backlog_count (
    behind bigint not null default 0,
    counts jsonb not null default '{}',
    inserted bigint not null default 0,
    next_at timestamptz not null default '-infinity',
    single boolean primary key default true check (single)
);
comment on table pgnet.backlog_count is
    'The count that is under way: the last id that it has seen, the requests of each role so far, '
    'and how many rows had been inserted when it began.';
insert into pgnet.backlog_count default values;

-- A call runs in any search_path, so all names are qualified.
create function pgnet.refuse_backlog(adding integer default 1)
    returns void
    language plpgsql volatile parallel unsafe cost 10
as $$
declare
    limits integer[] := pgnet.pending_limits();
    -- What this session has inserted and not reported yet, and how much of it before this
    -- transaction: in a procedure that commits, nothing is reported before its end. (A role may set
    -- this to another value, as it may insert without these functions.)
    unreported bigint := pg_catalog.pg_stat_get_xact_tuples_inserted('net.http_request_queue'::pg_catalog.regclass);
    given pg_catalog.text := pg_catalog.current_setting('pgnet.inserted_before', true);
    before bigint := case when given operator(pg_catalog.<>) '' then given::bigint end;
    pending bigint;
begin
    if before is null then
        before := unreported;
        perform pg_catalog.set_config('pgnet.inserted_before', unreported::pg_catalog.text, true);
        -- At its end the transaction reports what it has inserted. Otherwise a session reports
        -- once a second, and one that is idle then after ten.
        perform pg_catalog.pg_stat_force_next_flush();
    end if;
    if limits[1] is not null then
        pending := pg_catalog.pg_stat_get_live_tuples('net.http_request_queue'::pg_catalog.regclass) operator(pg_catalog.+) unreported;
        if pending operator(pg_catalog.+) adding operator(pg_catalog.>) limits[1] then
            -- A worker in the database, too, reports what it has taken from the queue when its
            -- CALL ends. So while workers count, their count counts as well, with what was
            -- inserted since.
            pending := least(pending, (
                select b.pending operator(pg_catalog.+) unreported operator(pg_catalog.-) before operator(pg_catalog.+) greatest(0,
                    pg_catalog.pg_stat_get_tuples_inserted('net.http_request_queue'::pg_catalog.regclass) operator(pg_catalog.-) b.inserted)
                from pgnet.backlog b
                where b.role operator(pg_catalog.=) 0::pg_catalog.oid
                    and b.counted operator(pg_catalog.>) (pg_catalog.clock_timestamp() operator(pg_catalog.-) '10 s'::pg_catalog.interval)));
        end if;
        if pending operator(pg_catalog.+) adding operator(pg_catalog.>) limits[1] then
            perform pgnet.raise_backlog('max_pending', pending, limits[1]);
        end if;
    end if;
    if limits[2] is not null then
        pending := coalesce((select b.pending from pgnet.backlog b where b.role operator(pg_catalog.=) pgnet.caller_role()), 0)
            operator(pg_catalog.+) unreported operator(pg_catalog.-) before;
        if pending operator(pg_catalog.+) adding operator(pg_catalog.>) limits[2] then
            perform pgnet.raise_backlog('max_pending_per_role', pending, limits[2]);
        end if;
    end if;
end
$$;
comment on function pgnet.refuse_backlog(integer) is
    'Raises 53400 where so many requests more would be beyond max_pending or max_pending_per_role.';

create function pgnet.raise_backlog(setting text, pending bigint, most integer)
    returns void
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using
        errcode = 'configuration_limit_exceeded',
        message = case setting
            when 'max_pending' then format('too many requests are pending: about %s, and at most %s may be', pending, most)
            else format('too many requests of role "%s" are pending: about %s, and at most %s may be', current_user, pending, most) end,
        detail = format('The setting %s is %s.', setting, most),
        hint = case when pgnet.worker_is_up() then 'Try again when workers have sent some of them. net.requests shows them.'
            else 'No worker is running. ' || pgnet.how_to_start_a_worker() end
            || format(' The owner of pgnet can raise the limit: select net.configure(%L, %L);', setting, (2::bigint * most)::text);
end
$$;
comment on function pgnet.raise_backlog(text, bigint, integer) is 'Raises 53400 with what to do.';

create function pgnet.forget_backlog()
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if exists (select from pgnet.backlog) then
        delete from pgnet.backlog;
        update pgnet.backlog_count set behind = 0, counts = '{}', next_at = '-infinity';
    end if;
end
$$;
comment on function pgnet.forget_backlog() is 'Forgets what was counted, when the limits are off.';

-- A duty of the heartbeat. It reads at most so many requests at a time, in the order of their ids,
-- and goes on behind them the next time. It takes a twentieth of a worker's time at most.
create function pgnet.count_backlog()
    -- seconds until it is due again; NULL where nothing is to be counted
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
declare
    began timestamptz := clock_timestamp();
    most integer := 50000;
    pause interval;
    walk record;
    piece record;
    is_whole boolean;
begin
    if pgnet.pending_limits() is null then
        perform pgnet.forget_backlog();
        return null;
    end if;
    lock table pgnet.backlog, pgnet.backlog_count in row exclusive mode nowait;
    lock table net.http_request_queue in access share mode nowait;
    select w.behind, w.counts,
        case when w.behind = 0 then pg_stat_get_tuples_inserted('net.http_request_queue'::regclass) else w.inserted end as inserted
    into walk
    from pgnet.backlog_count w where w.next_at <= began for update skip locked;
    if not found then
        return 1; -- another worker counts, or has counted within this second
    end if;
    with piece as materialized (
        select q.id, q.requested_by::oid as role, q.origin from net.http_request_queue q
        where q.id > walk.behind order by q.id limit most
    ), counted as (
        select p.role, count(*) as number from piece p where p.origin is null group by p.role
        union all
        select 0::oid, count(*) from piece p where p.origin is null
    )
    select (select count(*) from piece) as seen, (select max(p.id) from piece p) as last_id,
        (select jsonb_object_agg(s.role, s.number)
        from (
            select u.role, sum(u.number) as number
            from (
                select c.role, c.number from counted c
                union all
                select e.key::oid, e.value::bigint from jsonb_each_text(walk.counts) e
            ) u
            group by u.role
        ) s) as counts
    into piece;
    is_whole := piece.seen < most;
    -- A count that is not at its end says that there are at least so many.
    insert into pgnet.backlog as b (role, pending, inserted)
    select e.key::oid, e.value::bigint, case when e.key = '0' then walk.inserted end from jsonb_each_text(piece.counts) e
    where is_whole or e.key <> '0'
    on conflict (role) do update set pending = excluded.pending, inserted = excluded.inserted
    where is_whole and (b.pending <> excluded.pending or b.inserted <> excluded.inserted) or b.pending < excluded.pending;
    update pgnet.backlog b set counted = clock_timestamp() where b.role = 0::oid;
    if is_whole then
        delete from pgnet.backlog b where not piece.counts ? b.role::oid::text;
    end if;
    pause := greatest(interval '1 s', 20 * (clock_timestamp() - began));
    update pgnet.backlog_count
    set behind = case when is_whole then 0 else piece.last_id end, counts = case when is_whole then '{}' else piece.counts end,
        inserted = walk.inserted, next_at = clock_timestamp() + pause - interval '0.1 s';
    return extract(epoch from pause);
end
$$;
comment on function pgnet.count_backlog() is
    'Counts the pending requests in all and of each role while a limit is set, 50,000 at a time; '
    'gives the seconds until it is due again.';

-- ======== extension/42_timing.sql ========

-- Time and debounce: the options not_before, not_after, unique_key, unique_for and on_conflict of
-- net.http_request. All of this runs with the caller's rights.
--
-- Debounce. Of the requests of one role with the same unique_key, one at most waits for its first
-- attempt: a unique index of pgnet.flow says so. A call that finds one locks its row there, changes
-- the request (replace) or leaves it as it is (keep), and returns its id. The row stays locked
-- until the call's transaction ends, and workers pass over locked rows. So the request is sent
-- after the commit of the last call that was merged into it. A claim takes the key away: what comes
-- later is a request of its own.
--
-- So PUBLIC has UPDATE on the columns of a request's content, and policies show for it only a
-- role's own requests. A right on columns does not let a role lock the table.

create function pgnet.read_interval(given text)
    returns interval
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
    set intervalstyle = 'postgres'
as $$
begin
    -- 10 would be ten seconds, 10:30 ten hours, and 2026-12 two thousand years.
    if given !~ '[a-zA-Z]|[0-9]:[0-9]+:' then
        return null;
    end if;
    return given::interval;
exception when data_exception then
    return null;
end
$$;
comment on function pgnet.read_interval(text) is
    'The interval that a text says, with its units or as hours:minutes:seconds; NULL for any other '
    'text.';

-- A time begins with its date, or is infinity; everything else is an interval. So no text is both.
create function pgnet.read_time(
    -- the option that the text was given for
    option text,
    given text,
    -- the time of the call
    present timestamptz
)
    returns timestamptz
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
    set datestyle = 'ISO, YMD'
as $$
declare
    result timestamptz;
begin
    if given is null then
        return null;
    end if;
    begin
        result := case
            when given collate "C" ~* '^ *([0-9]{4,6}-[0-9][0-9]?-[0-9]|(today|tomorrow)( |$)|[+-]?infinity *$)' then given::timestamptz
            else present + pgnet.read_interval(given) end;
    exception when data_exception then
        null;
    end;
    if result is null then
        perform pgnet.raise_error('22023', format('option "%s" is neither a time nor an interval', option),
            'A time begins with its date: "2026-12-24 18:00+01", "tomorrow 09:00"; without a zone it is in the session''s TimeZone. '
            'An interval has units and counts from the call: "90 seconds", "2 hours 30 minutes", "PT5M", "00:05:00".');
    end if;
    return result;
end
$$;
comment on function pgnet.read_time(text, text, timestamptz) is
    'The time that an option says: a date with a time, or an interval after the call. Raises 22023 '
    'for a text that is neither. NULL gives NULL.';

create function pgnet.read_times(
    options jsonb,
    -- NULL: at once, and without an end
    out not_before timestamptz, out not_after timestamptz
)
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    present timestamptz := clock_timestamp();
begin
    not_before := pgnet.read_time('not_before', options ->> 'not_before', present);
    not_after := pgnet.read_time('not_after', options ->> 'not_after', present);
    if not_after <= not_before and not_after < 'infinity' then
        perform pgnet.raise_error('22023', 'not_after must be later than not_before',
            format('The first attempt may begin from not_before (%s) on, and before not_after (%s).', not_before, not_after));
    end if;
    not_before := case when not_before > present then not_before end;
    not_after := nullif(not_after, 'infinity');
end
$$;
comment on function pgnet.read_times(jsonb) is
    'The options not_before and not_after as times; NULL for a not_before that has passed, and for '
    'a not_after that never comes. Raises 22023.';

create function pgnet.read_unique_for(options jsonb)
    returns interval
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    given text := options ->> 'unique_for';
    result interval := pgnet.read_interval(given);
begin
    if given is not null and (result > interval '0') is not true then
        perform pgnet.raise_error('22023', 'option "unique_for" must be an interval greater than 0',
            'It has units: "30 seconds", "5 minutes", "1 day".');
    end if;
    return result;
end
$$;
comment on function pgnet.read_unique_for(jsonb) is
    'The option unique_for; NULL where it is not given. Raises 22023.';

create function pgnet.lock_waiting_request(
    unique_key text,
    -- as for pgnet.debounce_request
    unique_for interval,
    -- another call had locked it: this one waits until that one's transaction has ended
    contended boolean,
    -- NULL: no request with the key waits, or another call has locked it
    out id bigint,
    -- whether a call may be merged into it
    out is_open boolean,
    -- what its column merges is then
    out merges tstzrange,
    out ordering_key text, out gate pgnet.gate
)
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    waiting pgnet.flow;
    made timestamptz;
    present timestamptz;
    pause interval := '1 s';
begin
    if contended then
        select f.* into waiting from pgnet.flow f
        where f.requested_by = pgnet.caller_role() and f.unique_key = lock_waiting_request.unique_key
        for update;
    else
        select f.* into waiting from pgnet.flow f
        where f.requested_by = pgnet.caller_role() and f.unique_key = lock_waiting_request.unique_key
        for update skip locked;
    end if;
    present := clock_timestamp();
    made := (select q.created from net.http_request_queue q where q.id = waiting.request_id and q.requested_by = waiting.requested_by);
    id := waiting.request_id;
    ordering_key := waiting.ordering_key;
    gate := waiting.gate;
    merges := tstzrange(
        case when contended or upper(waiting.merges) + pause >= present then coalesce(lower(waiting.merges), present) else present end,
        present, '[]');
    is_open := made is not null and (made + unique_for <= present) is not true and (waiting.not_after <= present) is not true
        -- Calls that follow upon one another without a pause keep workers from a request that is
        -- ready: after a second it is left alone.
        and (contended and lower(merges) + pause < present
            and coalesce(waiting.not_before, present) <= present and waiting.gate is null) is not true
        and not exists (
            select from pgnet.mark m
            where m.requested_by = waiting.requested_by and m.request_id = waiting.request_id and m.action <> 'retry');
end
$$;
comment on function pgnet.lock_waiting_request(text, interval, boolean) is
    'Locks the request of the caller that has this unique_key and waits for its first attempt.';

-- The row of pgnet.flow comes first: the unique index decides whether there is to be a request. It
-- has a number that no request has, until the request has one.
create function pgnet.queue_unique_request(new net._new_request, flow net._new_flow)
    -- NULL: there is one with the key, or another session makes one and has committed meanwhile
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
begin
    insert into net._new_flow (request_id, not_before, not_after, ordering_key, unique_key, gate, callback, callback_oid)
    values (
        -1 - floor(random() * 9e18)::bigint, flow.not_before, flow.not_after, flow.ordering_key, flow.unique_key, flow.gate,
        flow.callback, flow.callback_oid)
    on conflict do nothing;
    if not found then
        return null;
    end if;
    insert into net._new_request (method, url, headers, body, timeout_milliseconds, priority, context, options, held)
    values (
        new.method, new.url, new.headers, new.body, new.timeout_milliseconds, new.priority, new.context, new.options, new.held)
    returning id into new.id;
    update pgnet.flow f set request_id = new.id where f.requested_by = pgnet.caller_role() and f.unique_key = flow.unique_key;
    return new.id;
end
$$;
comment on function pgnet.queue_unique_request(net._new_request, net._new_flow) is
    'Queues a request with a unique_key, unless there is one.';

create function pgnet.debounce_request(
    -- what is queued, checked; with its unique_key
    new net._new_request, flow net._new_flow,
    -- how long after the first request a call may be merged into it; NULL: until it is attempted
    unique_for interval,
    -- whether the content of a request that waits becomes this one's
    replaces boolean
)
    -- the id of the request that waits, or of a new one
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    waiting record;
    -- whether another call kept the request locked when this one came
    contended boolean := false;
    request_id bigint;
begin
    loop
        select * into waiting from pgnet.lock_waiting_request(flow.unique_key, unique_for, contended);
        if waiting.id is null then
            request_id := pgnet.queue_unique_request(new, flow);
            if request_id is not null then
                return request_id;
            end if;
            contended := true;
            continue;
        end if;
        if waiting.is_open then
            if waiting.ordering_key is distinct from flow.ordering_key then
                perform pgnet.raise_error('22023', format('request %s, which has this unique_key, has another ordering_key', waiting.id),
                    'Requests with the same unique_key have the same ordering_key, or none.');
            end if;
            update net.http_request_queue q
            set method = case when replaces then new.method else q.method end,
                url = case when replaces then new.url else q.url end,
                headers = case when replaces then new.headers else q.headers end,
                body = case when replaces then new.body else q.body end,
                timeout_milliseconds = case when replaces then new.timeout_milliseconds else q.timeout_milliseconds end,
                priority = case when replaces then new.priority else q.priority end,
                context = case when replaces then new.context else q.context end,
                options = case when replaces then new.options else q.options end,
                -- Where nothing else changes, this does: so net.wait knows that this transaction
                -- has to commit before the request is sent.
                held = case when replaces then num_nonnulls(flow.not_before, waiting.gate) > 0 else q.held end
            where q.id = waiting.id and q.requested_by = pgnet.caller_role();
            if found then
                update pgnet.flow f
                set merges = waiting.merges, not_before = case when replaces then flow.not_before else f.not_before end,
                    not_after = case when replaces then flow.not_after else f.not_after end,
                    callback = case when replaces then flow.callback else f.callback end,
                    callback_oid = case when replaces then flow.callback_oid else f.callback_oid end
                where f.request_id = waiting.id and f.requested_by = pgnet.caller_role();
                return waiting.id;
            end if;
        end if;
        -- It is sent as it is, or is gone.
        update pgnet.flow f set unique_key = null where f.request_id = waiting.id and f.requested_by = pgnet.caller_role();
    end loop;
end
$$;
comment on function pgnet.debounce_request(net._new_request, net._new_flow, interval, boolean) is
    'Queues a request with a unique_key, or merges it into the one of the same role and key that '
    'waits for its first attempt; gives the id of the one that is sent.';

create function pgnet.queue_request(
    -- what is queued, checked; the options as the row has them, and all that the caller gave
    method text, url text, headers jsonb, body bytea, timeout_milliseconds integer, context jsonb, stored jsonb, given jsonb,
    -- as pgnet.resolve_callback gives them; NULL: no function is called
    callback text default null, callback_oid oid default null
)
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    new net._new_request;
    flow net._new_flow;
    unique_for interval := pgnet.read_unique_for(given);
begin
    select t.not_before, t.not_after into flow.not_before, flow.not_after from pgnet.read_times(given) t;
    flow.ordering_key := given ->> 'ordering_key';
    flow.unique_key := given ->> 'unique_key';
    flow.gate := case when given ?| '{ordering_key,after}' then 'new' end;
    flow.callback := callback;
    flow.callback_oid := callback_oid;
    new.method := method;
    new.url := url;
    new.headers := headers;
    new.body := body;
    new.timeout_milliseconds := timeout_milliseconds;
    new.priority := coalesce((given ->> 'priority')::smallint, 0::smallint);
    new.context := context;
    new.options := nullif(stored - array['not_before', 'not_after', 'unique_key', 'unique_for', 'on_conflict'], '{}');
    if num_nonnulls(flow.not_before, flow.not_after, flow.ordering_key, flow.unique_key, flow.gate, flow.callback) > 0 then
        new.held := num_nonnulls(flow.not_before, flow.gate) > 0;
    end if;
    if flow.unique_key is not null then
        return pgnet.debounce_request(new, flow, unique_for, given ->> 'on_conflict' is not distinct from 'replace');
    end if;
    insert into net._new_request (method, url, headers, body, timeout_milliseconds, priority, context, options, held)
    values (
        new.method, new.url, new.headers, new.body, new.timeout_milliseconds, new.priority, new.context, new.options, new.held)
    returning id into new.id;
    if new.held is not null then
        if given ? 'after' then
            perform pgnet.check_after(new.id, given);
        end if;
        insert into net._new_flow (request_id, not_before, not_after, ordering_key, gate, callback, callback_oid)
        values (new.id, flow.not_before, flow.not_after, flow.ordering_key, flow.gate, flow.callback, flow.callback_oid);
    end if;
    return new.id;
end
$$;
comment on function pgnet.queue_request(text, text, jsonb, bytea, integer, jsonb, jsonb, jsonb, text, oid) is
    'Queues a request of net.http_request with what stands in pgnet.flow: options, a callback; gives '
    'its id.';

-- ======== extension/45_wake_up.sql ========

-- Waking workers, and those who wait for a request to end: a datagram after the commit, sent by the
-- committing backend to a socket under the data directory.

create function pgnet.arm_wake_up(signal text)
    returns text
    language plpython3u volatile parallel unsafe
as $$
from pgnet import sql_v1
return sql_v1.arm(plpy, signal)
$$;
comment on function pgnet.arm_wake_up(text) is
    'Has the commit of this transaction send a signal to workers. Returns NULL, or why the commit '
    'callback cannot be registered here.';

create function pgnet.signal_workers(signal text)
    returns void
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$ select pgnet.arm_wake_up(signal) $$;
comment on function pgnet.signal_workers(text) is
    'Tells all workers, at the commit, to read their settings again.';

create function net.wake()
    returns void
    language plpython3u volatile parallel unsafe
as $$
from pgnet import sql_v1
sql_v1.arm(plpy, "wake")
$$;
comment on function net.wake() is
    'Wakes a worker when this transaction commits: for requests that were inserted into '
    'net.http_request_queue by hand. net.http_get and the other functions that make requests wake '
    'workers themselves.';

create function pgnet.wake_next_worker(slot integer)
    returns void
    language plpython3u volatile parallel unsafe
as $$
from pgnet import sql_v1
plpy.execute("select pgnet.require_worker()")
sql_v1.wake_next(slot)
$$;
comment on function pgnet.wake_next_worker(integer) is
    'A worker that has more than it takes wakes the next one, behind its own slot.';

create function pgnet.wake_up_fault()
    returns text
    language plpython3u volatile parallel unsafe
as $$
from pgnet import sql_v1
plpy.execute("select pgnet.require_worker()")
return sql_v1.wake_up_fault(plpy)
$$;
comment on function pgnet.wake_up_fault() is
    'Why commits on this server cannot wake a worker; NULL where they can.';

create procedure pgnet.wait_for_signals(
    -- how long at most, in seconds
    timeout double precision,
    -- what came: wake, reload, prepared, separated by spaces; empty after the timeout
    inout signals text default null,
    -- the slot this session listens on; NULL where none was free
    inout slot integer default null,
    -- whether it waits for callbacks that are due, too: then callback may come
    callbacks boolean default false
)
    language plpython3u
as $$
from pgnet import sql_v1
plpy.execute("select pgnet.require_worker()")
return sql_v1.wait(plpy, timeout, callbacks)
$$;
comment on procedure pgnet.wait_for_signals(double precision, text, integer, boolean) is
    'Waits for a commit''s wake-up on behalf of a worker process, without transaction, snapshot or '
    'lock, for at most timeout seconds.';

-- ---- those who wait for a request to end

create function pgnet.tell_waiters(
    -- requests that the running transaction has ended; NULL means none
    ids bigint[]
)
    returns void
    language plpython3u volatile parallel unsafe
as $$
from pgnet import sql_v1
sql_v1.note_ends(plpy, ids)
$$;
comment on function pgnet.tell_waiters(bigint[]) is
    'Has the commit of this transaction tell those who wait for these requests that they have '
    'ended.';

-- Whatever ends requests calls this, in a worker's session.
create function pgnet.tell_of_ends(
    -- requests that have an outcome by the running transaction; NULL means none
    ids bigint[]
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgnet.tell_waiters(ids);
    if exists (select from pgnet.setting s where s.name = 'notify_outcomes' and s.value = 'on')
        and ids <> '{}'
        -- A session that listens and never reads fills the queue. No outcome fails for that.
        and pg_notification_queue_usage() < 0.5
    then
        perform pg_notify('pgnet_outcomes', (
            case when cardinality(ids) <= 300 then jsonb_build_object('count', cardinality(ids), 'ids', ids)
            -- A payload has less than 8,000 bytes.
            else jsonb_build_object('count', cardinality(ids)) end)::text);
    end if;
end
$$;
comment on function pgnet.tell_of_ends(bigint[]) is
    'Tells, at the commit, those who wait for these requests; and by the setting notify_outcomes '
    'all who listen to the channel pgnet_outcomes.';

-- Any role may call it, as it may call net.wake: whoever waits looks once more, and goes on.
create function pgnet.tell_waiter(
    -- a request that the running transaction has cancelled or forgotten; NULL: none
    request_id bigint
)
    returns void
    language plpython3u volatile parallel unsafe
as $$
from pgnet import sql_v1
sql_v1.note_ends(plpy, None if request_id is None else [request_id])
$$;
comment on function pgnet.tell_waiter(bigint) is
    'Has the commit of this transaction tell those who wait for this request to look at it. NULL '
    'tells nobody.';

create function pgnet.await_end(
    request_id bigint,
    -- how long at most, in seconds
    timeout double precision
)
    -- false: an end cannot be told here, and the caller has to look by itself
    returns boolean
    language plpython3u volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
from pgnet import sql_v1
return sql_v1.await_end(plpy, request_id, timeout)
$$;
comment on function pgnet.await_end(bigint, double precision) is
    'Waits until a request of the caller may have ended, for at most timeout seconds. The first '
    'call of a transaction for a request only begins to listen, and returns at once: what ended '
    'before is seen by one more look. False where commits cannot tell of an end: the setting '
    'wake_up is poll, the server is a standby.';

-- ======== extension/46_pause.sql ========

-- Pauses: hosts whose requests wait until somebody resumes them.
--
-- A pause is a state and not a setting: it survives restarts, crashes and failovers. A dump leaves
-- pauses out, as it leaves requests out. What a claim does about a pause stands in
-- pgnet.take_requests: it passes over the host and reads none of its requests.

create table pgnet.pause (
    host text primary key,
    since timestamptz not null default pg_catalog.clock_timestamp(),
    paused_by regrole not null default pg_catalog.quote_ident(current_user)::pg_catalog.regrole,
    reason text
);
comment on table pgnet.pause is
    'Hosts whose requests wait, by net.pause until net.resume: an authority as in a URL, a name for '
    'all its ports, or * for all hosts.';

create function pgnet.authority_of(host text)
    returns text
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    given text := trim(host);
    hint text := 'Give a host as it stands in the URL: a name, such as api.example.com, for all its ports; name:port for one; or * for every host.';
    complete_url text;
begin
    if given = '*' then
        return given;
    end if;
    if given ~ '^[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*$' then
        given := format('[%s]', given); -- an IPv6 address without its brackets
    elsif given ~ ':0*(80|443)$' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('host "%s" is given with a port that URLs leave out', given),
            hint = format('The name alone stands for all its ports: ''%s''.', regexp_replace(given, ':[0-9]+$', ''));
    end if;
    if given is not null and given <> '' and given !~ '[/?#@]' then
        select i.complete_url into complete_url from pgnet.inspect_request('GET', 'http://' || given || '/', null, null, null, null) i;
    end if;
    if complete_url is null then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('invalid host %s', coalesce('"' || left(host, 300) || '"', 'NULL')),
            hint = hint;
    end if;
    return pgnet.host_of_url(complete_url);
end
$$;
comment on function pgnet.authority_of(text) is
    'A host, or a host with a port, in the form that URLs are stored in; * stays. Raises 22023 for '
    'a text that is none.';

-- The pause that a host waits for. pgnet.take_requests asks the same.
create function pgnet.pause_of(authority text)
    returns pgnet.pause
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select p from pgnet.pause p
    where p.host in (authority, regexp_replace(authority, ':[0-9]+$', ''), '*')
    order by p.host <> authority, p.host = '*'
    limit 1
$$;
comment on function pgnet.pause_of(text) is
    'The pause that requests to this authority wait for: its own, that of its name, or that of all '
    'hosts; NULL where it is not paused.';

create function pgnet.is_paused(url text)
    returns boolean
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$ select (pgnet.pause_of(pgnet.host_of_url(url))).host is not null $$;
comment on function pgnet.is_paused(text) is 'Whether requests to this URL wait for net.resume.';

create function net.pause(
    -- a host as in URLs; without a port for all its ports; * for every host
    host text default '*',
    -- why, for people who look
    reason text default null
)
    -- whether it was not paused before
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    authority text := pgnet.authority_of(host);
    is_new boolean;
begin
    perform pgnet.require_owner();
    if length(reason) > 1000 then
        raise exception using errcode = 'invalid_parameter_value', message = 'the reason is longer than 1000 characters',
            hint = 'Give a sentence, and a link to more.';
    end if;
    insert into pgnet.pause as p (host, reason) values (authority, pause.reason)
    on conflict on constraint pause_pkey do update set paused_by = excluded.paused_by, reason = excluded.reason
    returning xmax = 0 into is_new;
    perform pgnet.signal_workers('reload');
    raise notice using message = format('%s %s', case authority when '*' then 'every host' else format('host "%s"', authority) end,
        case when is_new then 'is paused: what is in flight goes on, all else waits' else 'was paused already' end);
    return is_new;
end
$$;
comment on function net.pause(text, text) is
    'From the commit on no request to this host begins, until net.resume; what is in flight goes '
    'on, and waiting counts as no attempt. True where it was not paused before; else the reason is '
    'replaced. Survives restarts, and is no part of a dump. Raises 22023 for a NULL or another '
    'text that is no host. Owner only.';

create function net.resume(
    -- as it was given to net.pause
    host text default '*'
)
    -- whether it was paused
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    authority text := pgnet.authority_of(host);
    was_paused boolean;
    others text;
begin
    perform pgnet.require_owner();
    delete from pgnet.pause p where p.host = authority;
    was_paused := found;
    perform pgnet.signal_workers('reload');
    select string_agg(o.host, ', ' order by o.host = '*' desc, o.host) into others
    from (
        select p.host from pgnet.pause p
        where authority = '*' or p.host = '*' or authority = regexp_replace(p.host, ':[0-9]+$', '')
            or p.host = regexp_replace(authority, ':[0-9]+$', '')
        order by p.host limit 20
    ) o;
    raise notice using message = concat_ws('; ',
        format('%s %s', case authority when '*' then 'the pause of every host' else format('the pause of host "%s"', authority) end,
            case when was_paused then 'is over' else 'was not there' end),
        'still paused: ' || others);
    return was_paused;
end
$$;
comment on function net.resume(text) is
    'Ends the pause that net.pause was called for with the same host, and wakes the workers; other '
    'pauses stay, and a notice names them. True where there was such a pause. Raises 22023 for a '
    'NULL or another text that is no host. Owner only.';

-- ======== extension/47_limits.sql ========

-- Limits of hosts: how many requests may be in flight at once, and how many may begin in a time.
--
-- Theory of operation
--
-- A host is the authority of a URL, "api.example" or "api.example:8443". Its limits are looked up
-- in pgnet.host when a worker first meets it, and kept in pgnet.host_budget until settings of hosts
-- change. A claim locks that row with SKIP LOCKED before it takes requests of the host, and keeps
-- the lock until it commits. So one claim at a time decides what a host may have. It sees whatever
-- the ones before it have taken, and waits for nobody: a claim that finds the row locked passes
-- over the host, and looks again in a moment.
--
-- Concurrency is the number of claims of the host that are marked as limited. A limit that is
-- lowered needs nothing more: there is no room until enough of them have ended. A claim of a
-- limited host must live as long as its connection may: 55_marks.sql, 56_rescue.sql and
-- 58_heartbeat.sql see to it.
--
-- The rate is a token bucket: a request takes a token when it is claimed, and a token comes back
-- each 1/rate seconds, up to a capacity. What a killed worker has taken is lost, which errs on the
-- side of the limit. A claim takes its tokens in one UPDATE, and while they are scarce it waits
-- until there is a tenth of a second's worth of them. The promise is about the server: in any time
-- t it gets at most burst + rate * t requests. Between the claim and the server lies a delay, so
-- that more requests may arrive in t than were claimed in it:
--
-- * With a limit of concurrency c, these are at most c: what is claimed and has not arrived is in
--   flight. The bucket then holds c fewer than burst, and a request may take any time to arrive.
-- * Otherwise a request is sent within a time d after its claim, or not at all (send_within). So
--   what arrives in t was claimed in t + d, and the bucket holds rate * d fewer.
-- * Where less than one token would be left, the bucket holds one, and tokens come back so slowly
--   that the promise holds: either 1/rate + d after each other, so that n requests arrive in no
--   less than (n - 1) / rate; or so that burst - 1 of them come in d.
--
-- A limit that is new has to know the claims from before it. The first claim that sees another
-- revision of these settings notes the time. When no worker's transaction is left that began
-- before it, all claims are marked as limited; those that were locked at that moment are marked
-- when their host is met. Until then a host without a limit so far stays closed, for some 20 ms.
-- Claims that began before the change still go by the limits before it.

create table pgnet.host_budget (
    host text collate "C" primary key,
    revision bigint not null,
    -- what is configured
    concurrency integer,
    rate text,
    burst integer,
    -- what follows from it: tokens that come back in a second, and how many there may be
    refill double precision,
    capacity double precision,
    send_within double precision,
    tokens double precision not null default 0,
    tokens_at timestamptz not null default pg_catalog.clock_timestamp(),
    met timestamptz not null default pg_catalog.clock_timestamp()
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
comment on table pgnet.host_budget is
    'The limits of a host, and what is left of its rate. A claim locks the row, so that the limits '
    'hold for all workers together. A row is made when a worker first meets the host, and removed '
    'when nothing waits or is in flight for it.';
comment on column pgnet.host_budget.revision is
    'Of the settings of hosts that the limits were looked up in.';
comment on column pgnet.host_budget.send_within is
    'Seconds after its claim within which a request is handed to the wire; NULL: any time.';
comment on column pgnet.host_budget.tokens is 'How many requests might have begun at tokens_at.';
comment on column pgnet.host_budget.met is
    'When it was last found that the host is in use, or when the row was made.';
create index host_budget_met on pgnet.host_budget (met);

create table pgnet.limit_change (
    revision bigint not null,
    seen timestamptz not null,
    settled boolean not null,
    rest bigint[] not null default '{}',
    single boolean primary key default true check (single)
);
comment on table pgnet.limit_change is
    'When a claim has first seen this revision of the settings of hosts; settled: all claims that were '
    'made under an earlier one count for the limits of their hosts, but for the rest, which were '
    'locked. Whoever makes a row of pgnet.host_budget locks this one.';
insert into pgnet.limit_change (revision, seen, settled) values (0, '-infinity', true);

-- From what is configured: refill, capacity, send_within.
create function pgnet.bucket(
    per_second double precision, burst integer, concurrency integer,
    out refill double precision, out capacity double precision, out send_within double precision
)
    language plpgsql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    -- Half of the burst pays for the delay. But a claim and a connection take their time.
    delay double precision := least(greatest(burst / per_second / 2, 0.1), 5);
begin
    if concurrency <= burst - 1 and (concurrency <= delay * per_second or delay * per_second > burst - 1) then
        refill := per_second;
        capacity := burst - concurrency;
    elsif delay * per_second <= burst - 1 then
        refill := per_second;
        capacity := burst - delay * per_second;
        send_within := delay;
    elsif per_second is not null then
        delay := least(0.5, greatest(0.1, 0.25 / per_second));
        capacity := greatest(1, burst / 5);
        refill := least(per_second, (burst - capacity) / delay);
        if capacity = 1 then
            refill := greatest(refill, 1 / (1 / per_second + delay));
        end if;
        send_within := delay;
    end if;
end
$$;
comment on function pgnet.bucket(double precision, integer, integer) is
    'The token bucket of a rate: what comes back in a second, what it holds, and within how many '
    'seconds after its claim a request is to be sent, so that a server gets at most burst + '
    'rate * t requests in any time t. NULL where the host has no rate.';

create function pgnet.look_up_limits(
    host text,
    out concurrency integer, out rate text, out burst integer
)
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    found record;
begin
    for found in
        select h.settings
        from unnest(pgnet.patterns_of(look_up_limits.host)) with ordinality p
        cross join lateral (select h.settings from pgnet.host h where h.pattern = p.p offset 0) h
        order by p.ordinality desc
    loop
        -- The most specific pattern comes last.
        if found.settings ? 'concurrency' then
            concurrency := case when found.settings -> 'concurrency' <> 'false' then (found.settings -> 'concurrency')::integer end;
        end if;
        if found.settings ? 'rate' then
            rate := nullif(found.settings ->> 'rate', 'false');
            burst := case when rate is not null then coalesce((found.settings -> 'burst')::integer,
                1 + ceil(pgnet.rate_per_second(rate))::integer) end;
        end if;
    end loop;
end
$$;
comment on function pgnet.look_up_limits(text) is
    'The limits that are configured for a host, the authority of a URL; NULL where it has none. A '
    'rate without a burst has one of a second''s worth and one more.';

-- Whoever makes a row of pgnet.host_budget holds the lock of pgnet.limit_change: so no two do at
-- once, and none waits for the other.
create function pgnet.settle_limits(
    host text, revision bigint,
    -- whether the caller may make rows of pgnet.host_budget
    out locked boolean,
    -- whether all claims of the host from before count
    out settled boolean
)
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = on
as $$
declare
    change record;
    earlier bigint[];
begin
    select c.* into change from pgnet.limit_change c for update skip locked;
    locked := found;
    settled := false;
    if not locked then
        return;
    elsif change.revision <> settle_limits.revision then
        update pgnet.limit_change c
        set revision = settle_limits.revision, seen = clock_timestamp(), settled = false, rest = '{}';
        return;
    elsif change.settled then
        settled := change.rest = '{}' or pgnet.mark_limited(change.rest, host) = '{}';
        return;
    end if;
    perform from pgnet.worker w
    cross join lateral pg_stat_get_activity(w.pid) a
    where w.ended is null and w.pid <> pg_backend_pid() and a.backend_start = w.backend_start and a.xact_start <= change.seen;
    if found then
        return;
    end if;
    -- From now on each claim of a host with a limit is marked as such when it is made.
    earlier := array(select c.id from pgnet.claim c where c.limited is null and c.worker is not null);
    update pgnet.limit_change c set settled = true, rest = pgnet.mark_limited(earlier, null);
    settled := pgnet.mark_limited((select c.rest from pgnet.limit_change c), host) = '{}';
end
$$;
comment on function pgnet.settle_limits(text, bigint) is
    'Has the claims from before a change of the configuration count for the limits of their hosts, '
    'once none of them is on its way any more.';

create function pgnet.mark_limited(
    ids bigint[],
    -- NULL: of any host
    host text
)
    returns bigint[]
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    update pgnet.claim c set limited = true
    where c.id = any (array(
        select o.id from pgnet.claim o
        where o.id = any (ids) and (o.host = mark_limited.host or mark_limited.host is null) and o.limited is null
        for update skip locked));
    return array(
        select c.id from pgnet.claim c
        where c.id = any (ids) and (c.host = mark_limited.host or mark_limited.host is null)
            and c.limited is null and c.worker is not null);
end
$$;
comment on function pgnet.mark_limited(bigint[], text) is
    'Has claims count for the limits of their hosts; gives those that others have locked.';

create function pgnet.tokens_now(
    refill double precision, capacity double precision, tokens double precision, tokens_at timestamptz,
    present timestamptz
)
    returns double precision
    language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    -- A clock that was put back makes no tokens, and takes none.
    select least(capacity, tokens + refill * greatest(0, date_part('epoch', present - tokens_at)))
$$;
comment on function pgnet.tokens_now(double precision, double precision, double precision, timestamptz, timestamptz) is
    'How many tokens a budget has at a time.';

-- While tokens are scarce they are taken in blocks: a claim for each of them would cost a
-- transaction each.
create function pgnet.token_block(refill double precision, capacity double precision)
    returns double precision
    language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select greatest(1, least(floor(refill / 10), floor(capacity / 2)))
$$;
comment on function pgnet.token_block(double precision, double precision) is
    'How many tokens a budget must have before a claim takes any: a tenth of a second''s worth, at '
    'least one, and at most half of what it holds.';

-- Brings the budget of a host up to date with the configuration.
create function pgnet.renew_budget(
    host text, revision bigint,
    -- whether it has a limit
    out limited boolean,
    -- whether the budget can be used now
    out usable boolean
)
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    former record;
    limits record := pgnet.look_up_limits(host);
    bucket record := pgnet.bucket(pgnet.rate_per_second(limits.rate), limits.burst, limits.concurrency);
    lock record;
    present timestamptz := clock_timestamp();
begin
    limited := limits.concurrency is not null or limits.rate is not null;
    usable := false;
    select b.* into former from pgnet.host_budget b where b.host = renew_budget.host for update skip locked;
    if former.concurrency is null and former.rate is null and not (found and not limited) then
        -- The row is new, or the host had no limit so far.
        lock := pgnet.settle_limits(host, revision);
        if not lock.locked or (limited and not lock.settled) then
            return;
        end if;
    end if;
    if former.host is null then
        insert into pgnet.host_budget as b (host, revision, concurrency, rate, burst, refill, capacity, send_within, tokens, tokens_at)
        values (renew_budget.host, renew_budget.revision, limits.concurrency, limits.rate, limits.burst,
            bucket.refill, bucket.capacity, bucket.send_within, coalesce(bucket.capacity, 0), present)
        on conflict on constraint host_budget_pkey do nothing;
        usable := found;
        return;
    end if;
    update pgnet.host_budget b
    set revision = renew_budget.revision, concurrency = limits.concurrency, rate = limits.rate, burst = limits.burst,
        refill = bucket.refill, capacity = bucket.capacity, send_within = bucket.send_within,
        -- What is left of a former rate; a host that had no rate begins with all of it.
        tokens = case when bucket.refill is null then 0 when former.refill is null then bucket.capacity
            else least(bucket.capacity, pgnet.tokens_now(former.refill, former.capacity, former.tokens, former.tokens_at, present)) end,
        tokens_at = present, met = present
    where b.host = renew_budget.host;
    usable := true;
end
$$;
comment on function pgnet.renew_budget(text, bigint) is
    'Makes or renews the budget of a host by the limits that are configured now, and locks it.';

-- A claim calls this for each place that it comes to. pgnet.claim_requests has set how its
-- statements are planned.
create function pgnet.host_room(host text)
    -- NULL: the host has no limit
    returns integer
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    budget record;
    configured bigint := (select f.host_revision from pgnet.configuration f);
    renewed record;
    present timestamptz := clock_timestamp();
    tokens double precision;
    room integer;
begin
    select b.* into budget from pgnet.host_budget b where b.host = host_room.host;
    if budget.revision is distinct from configured then
        renewed := pgnet.renew_budget(host, configured);
        if not renewed.limited then
            return null;
        elsif not renewed.usable then
            return 0;
        end if;
        select b.* into budget from pgnet.host_budget b where b.host = host_room.host;
    elsif budget.concurrency is null and budget.rate is null then
        return null;
    end if;
    -- At first without the lock: of most hosts without room there is no more to know.
    for pass in 1 .. 2 loop
        if pass = 2 then
            -- Each statement has a snapshot of its own: behind this one, the next ones see what the
            -- last owner of the lock has claimed.
            select b.* into budget from pgnet.host_budget b where b.host = host_room.host for update skip locked;
            if not found or budget.revision is distinct from configured then
                return 0;
            end if;
        end if;
        room := null;
        if budget.concurrency is not null then
            room := budget.concurrency - (select count(*) from pgnet.claim c where c.host = host_room.host and c.limited)::integer;
        end if;
        if budget.rate is not null then
            if present < budget.tokens_at then
                -- The clock was put back: from here on tokens come again.
                update pgnet.host_budget b set tokens_at = present
                where b.ctid = any (array(
                    select o.ctid from pgnet.host_budget o where o.host = host_room.host and o.tokens_at > present for update skip locked));
            end if;
            -- pgnet.tokens_now
            tokens := least(budget.capacity,
                budget.tokens + budget.refill * greatest(0, date_part('epoch', present - budget.tokens_at))) + 1e-9;
            room := least(room, case when tokens < greatest(1, least(floor(budget.refill / 10), floor(budget.capacity / 2))) then 0
                else floor(tokens)::integer end);
        end if;
        if room <= 0 then
            return 0;
        end if;
    end loop;
    return room;
end
$$;
comment on function pgnet.host_room(text) is
    'How many requests a claim may take for a host, whose budget is locked then. 0 where another '
    'worker has locked the budget.';

create function pgnet.spend_tokens(ids bigint[])
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
declare
    present timestamptz := clock_timestamp();
    spent jsonb;
begin
    select jsonb_object_agg(s.host, s.number) into spent
    from (
        select c.host, count(*) as number
        from pgnet.claim c where c.id = any (ids) and c.limited
        group by c.host
    ) s;
    update pgnet.host_budget b
    set tokens = pgnet.tokens_now(b.refill, b.capacity, b.tokens, b.tokens_at, present) - (spent ->> b.host)::integer, tokens_at = present
    where b.host = any (array(select jsonb_object_keys(spent))) and b.rate is not null;
end
$$;
comment on function pgnet.spend_tokens(bigint[]) is
    'Takes what was claimed from the budgets of its hosts, which this transaction has locked.';

create function pgnet.room_in(hosts text[])
    -- seconds; NULL where no host has to wait for a time
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
declare
    present timestamptz := clock_timestamp();
    configured bigint := (select f.host_revision from pgnet.configuration f);
begin
    return (
        select min(case
            -- It is not settled yet, or another worker is making the row.
            when b.revision is distinct from configured then 0.02
            when b.rate is not null and b.missing > 0 then greatest(b.missing / b.refill, 0.005)
            -- Whoever frees a slot claims the next request.
            when b.concurrency <= (
                select count(*) from pgnet.claim c where c.host = h.host and c.limited) then null
            -- Another worker has locked it.
            else 0.01 end)
        from unnest(hosts) h (host)
        left join lateral (
            select b.revision, b.rate, b.refill, b.concurrency, pgnet.token_block(b.refill, b.capacity)
                - pgnet.tokens_now(b.refill, b.capacity, b.tokens, b.tokens_at, present) as missing
            from pgnet.host_budget b where b.host = h.host offset 0
        ) b on true);
end
$$;
comment on function pgnet.room_in(text[]) is
    'After how many seconds one of these hosts, which had no room, has some again.';

create function pgnet.limits_of_host(
    host text,
    out concurrency integer, out in_flight integer, out rate text, out burst integer,
    -- when the next request may begin by the rate; NULL: now
    out next_token timestamptz
)
    language plpgsql stable parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    limits record;
    budget record;
    present timestamptz := statement_timestamp();
    missing double precision;
begin
    limits := pgnet.look_up_limits(host);
    concurrency := limits.concurrency;
    rate := limits.rate;
    burst := limits.burst;
    in_flight := (select count(*) from pgnet.claim c where c.host = limits_of_host.host and c.limited);
    select b.* into budget from pgnet.host_budget b where b.host = limits_of_host.host;
    missing := pgnet.token_block(budget.refill, budget.capacity)
        - pgnet.tokens_now(budget.refill, budget.capacity, budget.tokens, budget.tokens_at, present);
    if rate is not null and missing > 0 then
        next_token := present + make_interval(secs => missing / budget.refill);
    end if;
end
$$;
comment on function pgnet.limits_of_host(text) is
    'The limits of a host, the authority of a URL, and how it stands to them now.';

create function pgnet.forget_budgets()
    -- seconds until more is to be done
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set jit = off
as $$
declare
    present timestamptz := clock_timestamp();
    before timestamptz := present - interval '10 minutes';
    examined text[];
begin
    lock table net.http_request_queue, pgnet.claim, pgnet.host_budget in row exclusive mode nowait;
    examined := array(
        select b.host from pgnet.host_budget b
        where b.met < before or b.met > present
        order by b.met limit 1000 for update skip locked);
    delete from pgnet.host_budget b
    where b.host = any (examined)
        and (b.rate is null or pgnet.tokens_now(b.refill, b.capacity, b.tokens, b.tokens_at, present) >= b.capacity)
        and not exists (select from pgnet.claim c where c.host = b.host and c.limited offset 0)
        and (select q.id from pgnet.ready_request q where q.host = b.host collate "C" order by q.host, q.role limit 1) is null;
    update pgnet.host_budget b set met = present where b.host = any (examined);
    return case when cardinality(examined) = 1000 then 1 end;
end
$$;
comment on function pgnet.forget_budgets() is
    'Removes the budgets of hosts for which nothing waits or is in flight, 1,000 at a time. Gives '
    'the seconds until more is to be done; NULL where nothing is urgent.';

-- ======== extension/48_breaker.sql ========

-- What workers learn of hosts: which ones are broken, and which ones have asked to wait.
--
-- Theory of operation
--
-- A place is a host, as it stands in URLs, and the role whose requests go there. All that is learnt
-- is learnt by place: a role that sends nonsense, or gives a server one millisecond, makes a host
-- broken for itself and for nobody else. pgnet.host_state has a row for each place that there is
-- something to say of. A place without a row is well.
--
-- Workers count how attempts end, and report it at most once a second, or at once where a count
-- crosses a threshold: pgnet.report_attempts. So no row is updated once a request. The circuit
-- breaker of a place is a state machine:
--
--     closed     Requests are sent. Failures are counted: those in a row, and those of two half
--                windows. Where either reaches its threshold the breaker opens.
--     open       No request is claimed before closed_until. Requests wait, without an attempt being
--                counted; with on_open = fail a duty of the heartbeat ends them.
--     half_open  closed_until has passed, and a claim took one request: the probe. No other one is
--                claimed beside it. Where it is answered, the breaker closes; where it fails, the
--                breaker opens for twice as long. Where it is lost with its worker, or cancelled, a
--                duty of the heartbeat frees the place for the next probe.
--
-- A status 429 or 503 with Retry-After closes the place until the time that the server asks for,
-- whatever the state of the breaker. The claim knows none of this. It looks at two columns:
-- closed_until, and needs_probe.
--
-- Locks. Callers have no right that locks a row of pgnet.host_state. Of each other workers lock
-- them for the moment of a claim or a report, with SKIP LOCKED: a claim passes over the place, a
-- report gives the counts back, and the worker reports them again.

create table pgnet.host_state (
    host text collate "C" not null,
    role oid not null,
    closed_until timestamptz,
    needs_probe boolean not null default false,
    state text not null default 'closed'
        constraint host_state_state check (state operator(pg_catalog.=) any (array['closed', 'open', 'half_open'])),
    since timestamptz not null default pg_catalog.clock_timestamp(),
    reason text,
    slowed_until timestamptz,
    opened integer not null default 0,
    on_open text not null default 'wait'
        constraint host_state_on_open check (on_open operator(pg_catalog.=) any (array['wait', 'fail'])),
    in_a_row integer not null default 0,
    window_start timestamptz not null default pg_catalog.clock_timestamp(),
    attempts integer not null default 0,
    failures integer not null default 0,
    earlier_attempts integer not null default 0,
    earlier_failures integer not null default 0,
    alerted smallint not null default 0,
    concurrency jsonb not null default '{}',
    updated timestamptz not null default pg_catalog.clock_timestamp(),
    primary key (host, role)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);
comment on table pgnet.host_state is
    'What workers have learnt of a host from the requests of one role. A place without a row is '
    'well. A role sees its own places; net.hosts shows them.';
comment on column pgnet.host_state.host is 'Host and port as in the URL.';
comment on column pgnet.host_state.role is 'The oid of the role whose requests it is about.';
comment on column pgnet.host_state.closed_until is
    'No request is claimed before this time; NULL: there is no such time.';
comment on column pgnet.host_state.needs_probe is
    'The breaker is open or half open: one request is claimed at a time, as a probe.';
comment on column pgnet.host_state.state is
    'The state of the circuit breaker: closed, open or half_open.';
comment on column pgnet.host_state.since is 'When that state began.';
comment on column pgnet.host_state.reason is 'Why the breaker has opened, or why requests wait.';
comment on column pgnet.host_state.slowed_until is
    'When requests may go on, as the host asked for by Retry-After.';
comment on column pgnet.host_state.opened is
    'How often the breaker has opened without being well for long: it opens for longer each '
    'time.';
comment on column pgnet.host_state.on_open is
    'What becomes of requests while the breaker is open: wait or fail.';
comment on column pgnet.host_state.in_a_row is 'How many attempts have failed in a row.';
comment on column pgnet.host_state.window_start is 'When the present half of the window began.';
comment on column pgnet.host_state.attempts is 'Attempts in the present half of the window.';
comment on column pgnet.host_state.failures is 'How many of these have failed.';
comment on column pgnet.host_state.earlier_attempts is 'Attempts in the half before.';
comment on column pgnet.host_state.earlier_failures is 'How many of these have failed.';
comment on column pgnet.host_state.alerted is
    'The highest alert that was given, in percent of a threshold.';
comment on column pgnet.host_state.concurrency is
    'How many requests each worker has in flight at most, by its id, where the host made it '
    'less.';
comment on column pgnet.host_state.updated is 'When a worker last changed the row.';
create index host_state_closed_until on pgnet.host_state (closed_until) where closed_until is not null;
create index host_state_half_open on pgnet.host_state (host, role) where state operator(pg_catalog.=) 'half_open';
create index host_state_failing on pgnet.host_state (host, role) where needs_probe and on_open operator(pg_catalog.=) 'fail';
create index host_state_updated on pgnet.host_state (updated);
create policy own_states on pgnet.host_state for select
    using (role operator(pg_catalog.=) (select pgnet.caller_role())::pg_catalog.oid);

create table pgnet.host_event (
    id bigint generated always as identity primary key,
    happened timestamptz not null default pg_catalog.clock_timestamp(),
    host text collate "C" not null,
    role oid not null,
    event text not null
        constraint host_event_event check (event operator(pg_catalog.=) any (array['alert', 'opened', 'closed', 'slowed'])),
    percent smallint,
    detail text
) with (autovacuum_vacuum_insert_scale_factor = 0.2);
comment on table pgnet.host_event is
    'What has happened to circuit breakers, for ttl_failed; net.host_events shows it. A role '
    'sees what is about its own requests.';
create index host_event_happened on pgnet.host_event (happened);
create policy own_events on pgnet.host_event for select
    using (role operator(pg_catalog.=) (select pgnet.caller_role())::pg_catalog.oid);

create view net.host_events with (security_invoker) as
    select e.happened, e.host, e.role::pg_catalog.regrole as role, e.event, e.percent, e.detail
    from pgnet.host_event e;
comment on view net.host_events is
    'What has happened to hosts: alert (percent of a threshold was reached), opened (requests '
    'wait), closed (requests are sent again), slowed (the host asked for a pause). A role sees '
    'what is about its own requests, the owner all.';

-- ---- settings

-- The one list of the settings of a breaker, in the key breaker of net.configure_host. The same
-- defaults stand in breaker.py.
--
-- Where the defaults come from. hystrix: 20 requests within 10 s, 50 %, 5 s, one probe. Polly 8:
-- 100 within 30 s, 10 %, 5 s, one probe. resilience4j: 100 calls, 50 %, 60 s, 10 probes. Envoy's
-- outlier detection: 5 failures in a row, 30 s times the number of ejections, 300 s at most. A
-- queue loses nothing by waiting, and nobody falls back to anything when it fails at once. So the
-- thresholds are rather those of hystrix than Envoy's 5 in a row, which a restart of a server
-- reaches; the first pause is short, as theirs; and it grows up to Envoy's ceiling.
create function pgnet.known_breaker_settings()
    returns table (name text, kind text, default_value jsonb, minimum numeric, maximum numeric, description text)
    language sql immutable parallel safe cost 10 rows 10
    set search_path = pg_catalog, pg_temp
as $$
    values
        ('failures_in_a_row', 'integer', '20'::jsonb, 1, 1000000, 'The breaker opens after so many failures in a row.'),
        ('failure_percent', 'number', '50', 1, 100, 'It opens where so many percent of the attempts within the window have failed,'),
        ('min_attempts', 'integer', '50', 1, 1000000, 'of at least so many attempts.'),
        ('window_milliseconds', 'integer', '60000', 100, 300000, 'The window, in ms.'),
        ('open_milliseconds', 'integer', '5000', 10, 86400000, 'For how long it opens the first time, in ms; each time twice as long.'),
        ('max_open_milliseconds', 'integer', '300000', 10, 86400000, 'For how long it opens at most, in ms.'),
        ('on_open', 'choice', '"wait"', null, null, 'What becomes of requests while it is open: wait, or fail.')
$$;
comment on function pgnet.known_breaker_settings() is
    'The settings of a circuit breaker, with their defaults.';

create function pgnet.breaker_setting_fault(given jsonb)
    returns text
    language plpgsql stable parallel safe cost 100
    set search_path = pg_catalog, pg_temp
as $$
declare
    setting record;
begin
    if jsonb_typeof(given) = 'boolean' then
        return null;
    elsif jsonb_typeof(given) <> 'object' then
        return 'must be false, true, or an object such as {"failures_in_a_row": 20, "open_milliseconds": 5000}';
    end if;
    for setting in
        select g.key, g.value, k.kind, k.minimum, k.maximum
        from jsonb_each(given) g left join pgnet.known_breaker_settings() k on k.name = g.key
        order by g.key
    loop
        if setting.kind is null then
            return format('has no "%s"; known: %s', left(setting.key, 60),
                (select string_agg(k.name, ', ' order by k.name) from pgnet.known_breaker_settings() k));
        elsif setting.kind = 'choice' then
            if setting.value not in ('"wait"', '"fail"') then
                return format('must have wait or fail as "%s"', setting.key);
            end if;
        elsif jsonb_typeof(setting.value) <> 'number' or setting.value::numeric not between setting.minimum and setting.maximum
            or setting.kind = 'integer' and setting.value::numeric <> trunc(setting.value::numeric) then
            return format('must have %s between %s and %s as "%s"',
                case setting.kind when 'integer' then 'an integer' else 'a number' end, setting.minimum, setting.maximum, setting.key);
        end if;
    end loop;
    return null;
end
$$;
comment on function pgnet.breaker_setting_fault(jsonb) is
    'What is wrong with a value for the setting breaker of net.configure_host; NULL for a value '
    'that can be set.';

create function pgnet.host_matches(pattern text, authority text)
    returns boolean
    language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select pattern = '*' or pattern = authority or pattern = n.name
        or pattern like '*.%' and right(n.name, length(pattern) - 1) = substr(pattern, 2)
    from (select trim(regexp_replace(authority, ':[0-9]+$', ''), '[]') as name) n
$$;
comment on function pgnet.host_matches(text, text) is
    'Whether a pattern of net.configure_host is about the host of this authority.';

create function pgnet.forget_hosts(pattern text)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    with forgotten as (
        delete from pgnet.host_state s where pgnet.host_matches(forget_hosts.pattern, s.host) returning s.host, s.role, s.state
    )
    insert into pgnet.host_event (host, role, event, detail)
    select f.host, f.role, 'closed', 'its settings were changed' from forgotten f where f.state <> 'closed';
end
$$;
comment on function pgnet.forget_hosts(text) is
    'Forgets what was learnt of hosts that a pattern matches: an open breaker is closed. For '
    'changes of their settings.';

-- ---- reports

create type pgnet.attempt_report as (
    host text,
    role oid,
    -- attempts that the host answered, and those that failed
    ok integer,
    failed integer,
    -- of these, how many at the end in a row
    in_a_row integer,
    -- the last failure, in words
    cause text,
    -- how the probe ended: ok, failed, or none where it says nothing of the host
    probe text,
    -- for how many seconds the host has asked to wait, within the ceiling, and by which status
    retry_after double precision,
    retry_status integer,
    -- how many requests the worker has in flight at most now; 0: not less than usual
    concurrency integer,
    -- the settings of the place; without failures_in_a_row the breaker is off
    failures_in_a_row integer,
    failure_percent double precision,
    min_attempts integer,
    window_milliseconds double precision,
    open_milliseconds double precision,
    max_open_milliseconds double precision,
    on_open text
);
comment on type pgnet.attempt_report is
    'What a worker reports of a place: how attempts have ended since its last report, and the '
    'settings of the breaker there.';

create function pgnet.count_attempts(state pgnet.host_state, report pgnet.attempt_report, present timestamptz)
    returns pgnet.host_state
    language plpgsql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    half interval := make_interval(secs => report.window_milliseconds / 2000);
begin
    if present >= state.window_start + half or present < state.window_start then
        if present < state.window_start + half * 2 then
            state.earlier_attempts := state.attempts;
            state.earlier_failures := state.failures;
        else
            state.earlier_attempts := 0;
            state.earlier_failures := 0;
        end if;
        state.attempts := 0;
        state.failures := 0;
        state.window_start := present;
    end if;
    state.attempts := state.attempts + report.ok + report.failed;
    state.failures := state.failures + report.failed;
    state.in_a_row := case when report.ok = 0 then state.in_a_row + report.failed else report.in_a_row end;
    return state;
end
$$;
comment on function pgnet.count_attempts(pgnet.host_state, pgnet.attempt_report, timestamptz) is
    'The state of a place with the counts of a report: in two half windows, and in a row.';

create function pgnet.breaker_level(
    state pgnet.host_state, report pgnet.attempt_report,
    -- how near the breaker is to opening: 1 opens it
    out level double precision,
    -- what that was counted from
    out reason text
)
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    in_a_row double precision := state.in_a_row::double precision / report.failures_in_a_row;
    attempts integer := state.attempts + state.earlier_attempts;
    failures integer := state.failures + state.earlier_failures;
    share double precision := case when attempts >= report.min_attempts then 100.0 * failures / attempts / report.failure_percent else 0 end;
begin
    level := greatest(in_a_row, share);
    reason := case when in_a_row >= share then format('%s failures in a row, where %s open it', state.in_a_row, report.failures_in_a_row)
        else format('%s of %s attempts have failed within %s s, where %s %% open it', failures, attempts,
            round((report.window_milliseconds / 1000)::numeric, 1), report.failure_percent) end
        || coalesce('; the last: ' || report.cause, '');
end
$$;
comment on function pgnet.breaker_level(pgnet.host_state, pgnet.attempt_report) is
    'How near a breaker is to opening, and why.';

create function pgnet.open_breaker(state pgnet.host_state, report pgnet.attempt_report, reason text, present timestamptz)
    returns pgnet.host_state
    language plpgsql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    seconds double precision;
begin
    if state.state = 'closed' and present > state.since + interval '5 min' then
        -- It was well for long.
        state.opened := 0;
    end if;
    seconds := least(greatest(report.max_open_milliseconds, report.open_milliseconds),
        report.open_milliseconds * 2.0 ^ least(state.opened, 30)) / 1000;
    state.opened := state.opened + 1;
    state.state := 'open';
    state.needs_probe := true;
    state.since := present;
    state.reason := open_breaker.reason;
    state.on_open := report.on_open;
    state.closed_until := greatest(present + make_interval(secs => seconds), state.slowed_until);
    return state;
end
$$;
comment on function pgnet.open_breaker(pgnet.host_state, pgnet.attempt_report, text, timestamptz) is
    'The state of a place whose breaker opens: each time for twice as long, until it was well '
    'for five minutes.';

create function pgnet.close_breaker(state pgnet.host_state, present timestamptz)
    returns pgnet.host_state
    language plpgsql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if state.state <> 'closed' then
        state.since := present;
    end if;
    state.state := 'closed';
    state.needs_probe := false;
    state.reason := null;
    state.in_a_row := 0;
    state.attempts := 0;
    state.failures := 0;
    state.earlier_attempts := 0;
    state.earlier_failures := 0;
    state.window_start := present;
    state.alerted := 0;
    state.closed_until := state.slowed_until;
    return state;
end
$$;
comment on function pgnet.close_breaker(pgnet.host_state, timestamptz) is
    'The state of a place whose breaker closes: what was counted is forgotten.';

-- An event is an object: event, percent, detail.
create function pgnet.judge_closed(inout state pgnet.host_state, report pgnet.attempt_report, present timestamptz, out events jsonb)
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    near record;
    percent integer;
begin
    events := '[]';
    state := pgnet.count_attempts(state, report, present);
    near := pgnet.breaker_level(state, report);
    foreach percent in array array[50, 70, 90, 100] loop
        if near.level * 100 >= percent and state.alerted < percent then
            state.alerted := percent;
            events := events || jsonb_build_object('event', 'alert', 'percent', percent, 'detail', near.reason);
        end if;
    end loop;
    if near.level >= 1 then
        state := pgnet.open_breaker(state, report, near.reason, present);
        events := events || jsonb_build_object('event', 'opened', 'detail', format('until %s: %s',
            to_char(state.closed_until at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'), near.reason));
    elsif near.level < 0.5 then
        state.alerted := 0;
    end if;
end
$$;
comment on function pgnet.judge_closed(pgnet.host_state, pgnet.attempt_report, timestamptz) is
    'What a report makes of a place whose breaker is closed, and the events to note.';

create function pgnet.judge_report(inout state pgnet.host_state, report pgnet.attempt_report, present timestamptz, out events jsonb)
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    slowed text;
    judged record;
begin
    events := '[]';
    if report.retry_after > 0 then
        slowed := format('status %s asks to wait for %s s', report.retry_status, round(report.retry_after::numeric, 3));
        if coalesce(state.slowed_until, '-infinity') <= present then
            events := events || jsonb_build_object('event', 'slowed', 'detail', slowed);
            if state.state = 'closed' then
                state.since := present;
                state.reason := slowed;
            end if;
        end if;
        state.slowed_until := greatest(state.slowed_until, present + make_interval(secs => report.retry_after));
    end if;
    state.closed_until := case when state.state = 'closed' then state.slowed_until else greatest(state.closed_until, state.slowed_until) end;
    if report.failures_in_a_row is null then
        if state.state <> 'closed' then
            events := events || jsonb_build_object('event', 'closed', 'detail', 'the breaker is switched off');
        end if;
        state := pgnet.close_breaker(state, present);
    elsif state.state = 'closed' then
        judged := pgnet.judge_closed(state, report, present);
        state := judged.state;
        events := events || judged.events;
    elsif report.probe = 'ok' then
        events := events || jsonb_build_object('event', 'closed', 'detail', 'a probe was answered');
        state := pgnet.close_breaker(state, present);
    elsif report.probe = 'failed' then
        state := pgnet.open_breaker(state, report, 'a probe has failed: ' || coalesce(report.cause, ''), present);
        events := events || jsonb_build_object('event', 'opened', 'detail', format('until %s: %s',
            to_char(state.closed_until at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'), state.reason));
    elsif report.probe = 'none' then
        -- It was not sent: the next one is claimed at once.
        state.state := 'open';
        state.closed_until := greatest(present, state.slowed_until);
    end if;
    state.updated := present;
end
$$;
comment on function pgnet.judge_report(pgnet.host_state, pgnet.attempt_report, timestamptz) is
    'What a report makes of the state of a place, and the events to note. The results of '
    'attempts that began before the breaker opened do not count any more.';

create function pgnet.save_host_state(place pgnet.host_state)
    returns void
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
    update pgnet.host_state s
    set closed_until = place.closed_until, needs_probe = place.needs_probe, state = place.state, since = place.since,
        reason = place.reason, slowed_until = place.slowed_until, opened = place.opened, on_open = place.on_open,
        in_a_row = place.in_a_row, window_start = place.window_start, attempts = place.attempts, failures = place.failures,
        earlier_attempts = place.earlier_attempts, earlier_failures = place.earlier_failures, alerted = place.alerted,
        concurrency = place.concurrency, updated = place.updated
    where s.host = place.host and s.role = place.role
$$;
comment on function pgnet.save_host_state(pgnet.host_state) is
    'Writes the state of a place, whose row exists.';

-- An INSERT would wait where an administrator's transaction is about to delete the row.
create function pgnet.lock_host_state(host text, role oid)
    returns pgnet.host_state
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    locked pgnet.host_state;
begin
    select s.* into locked from pgnet.host_state s
    where s.host = lock_host_state.host collate "C" and s.role = lock_host_state.role for update skip locked;
    if not found and not exists (
        select from pgnet.host_state s where s.host = lock_host_state.host collate "C" and s.role = lock_host_state.role)
    then
        insert into pgnet.host_state as s (host, role) values (left(lock_host_state.host, 300), lock_host_state.role)
        on conflict do nothing returning s.* into locked;
    end if;
    return locked;
end
$$;
comment on function pgnet.lock_host_state(text, oid) is
    'The state of a place, made if there is none, and locked; NULL where another session has '
    'locked it.';

create function pgnet.report_attempts(
    worker_id bigint,
    -- an array of objects: the fields of pgnet.attempt_report
    reports json
)
    -- deferred: the places whose state another worker has locked, each as [host, role]: to be
    -- reported again; events: what has happened, for the log
    returns jsonb
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set plan_cache_mode = force_generic_plan
    set jit = off
    set lock_timeout = '500ms'
as $$
declare
    present timestamptz := clock_timestamp();
    report pgnet.attempt_report;
    state pgnet.host_state;
    judged record;
    deferred jsonb := '[]';
    events jsonb := '[]';
begin
    -- As in pgnet.lock_tables, a session that waits for a lock holds no other.
    lock table pgnet.worker_role, pgnet.worker in access share mode nowait;
    perform pgnet.require_worker(worker_id);
    lock table pgnet.host_state, pgnet.host_event in row exclusive mode nowait;
    for report in
        select r.* from json_populate_recordset(null::pgnet.attempt_report, reports) r
        where r.failed > 0 or r.probe is not null or r.retry_after > 0 or r.concurrency > 0
            or (select exists (select from pgnet.host_state)) and exists (
                select from pgnet.host_state s where s.host = r.host collate "C" and s.role = r.role offset 0)
        -- In one order, so that two workers do not wait for each other.
        order by r.host collate "C", r.role
    loop
        state := pgnet.lock_host_state(report.host, report.role);
        if state.host is null then
            deferred := deferred || jsonb_build_array(jsonb_build_array(report.host, report.role));
            continue;
        end if;
        judged := pgnet.judge_report(state, report, present);
        state := judged.state;
        if report.concurrency is not null then
            state.concurrency := case when report.concurrency > 0
                then state.concurrency || jsonb_build_object(worker_id, report.concurrency) else state.concurrency - worker_id::text end;
        end if;
        perform pgnet.save_host_state(state);
        if judged.events <> '[]' then
            insert into pgnet.host_event (host, role, event, percent, detail)
            select report.host, report.role, e.event, e.percent, e.detail
            from jsonb_to_recordset(judged.events) e (event text, percent smallint, detail text);
            events := events || (
                select jsonb_agg(e.value || jsonb_build_object('host', report.host, 'role', report.role, 'role_name', report.role::regrole::text))
                from jsonb_array_elements(judged.events) e);
        end if;
    end loop;
    return jsonb_build_object('deferred', deferred, 'events', events);
end
$$;
comment on function pgnet.report_attempts(bigint, json) is
    'Takes what a worker has counted of attempts: breakers open and close by it, and hosts that '
    'ask for a pause get it. Raises 08003 for a worker that is not registered.';

-- ---- what the claim asks

create function pgnet.probe_room(host text, role oid)
    returns integer
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
begin
    perform from pgnet.host_state s
    where s.host = probe_room.host collate "C" and s.role = probe_room.role and s.needs_probe
        and coalesce(s.closed_until, '-infinity') <= clock_timestamp()
    for update skip locked;
    return case when found then 1 else 0 end;
end
$$;
comment on function pgnet.probe_room(text, oid) is
    '1 where a probe of a broken host may begin, whose state is locked then; else 0.';

create function pgnet.begin_probes(ids bigint[])
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    present timestamptz := clock_timestamp();
    probe record;
begin
    for probe in select c.host, c.role, c.deadline from pgnet.claim c where c.id = any (ids) and c.probe loop
        update pgnet.host_state s
        set state = 'half_open', since = present, closed_until = probe.deadline, updated = present
        where s.host = probe.host collate "C" and s.role = probe.role;
    end loop;
end
$$;
comment on function pgnet.begin_probes(bigint[]) is
    'Notes the probes among what was claimed: until they end no other one begins.';

create function pgnet.next_opening()
    -- seconds; NULL where no place is closed for a time
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
    set enable_sort = off
as $$
declare
    present timestamptz := clock_timestamp();
begin
    return extract(epoch from (
        select s.closed_until from pgnet.host_state s where s.closed_until > present order by s.closed_until limit 1) - present);
end
$$;
comment on function pgnet.next_opening() is
    'After how many seconds requests may be claimed again for the first of the places that are '
    'closed for a time.';

-- ---- duties of the heartbeat

create function pgnet.free_probes()
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
declare
    present timestamptz := clock_timestamp();
    place record;
begin
    lock table pgnet.host_state in row exclusive mode nowait;
    lock table pgnet.claim in access share mode nowait;
    -- A clock was put back: what was to last for a time lasts for that time, from now on.
    for place in
        select s.* from pgnet.host_state s where s.updated > present + interval '5 s' order by s.updated limit 1000 for update skip locked
    loop
        update pgnet.host_state s
        set closed_until = present + (place.closed_until - place.updated), slowed_until = present + (place.slowed_until - place.updated),
            since = least(place.since, present), window_start = present, updated = present
        where s.host = place.host and s.role = place.role;
    end loop;
    -- The probe was lost with its worker, or cancelled.
    for place in
        select s.host, s.role, s.slowed_until from pgnet.host_state s
        where s.state = 'half_open'
            and not exists (select from pgnet.claim c where c.probe and c.host = s.host and c.role = s.role offset 0)
        order by s.host, s.role limit 1000 for update skip locked
    loop
        update pgnet.host_state s
        set state = 'open', closed_until = greatest(present, place.slowed_until), updated = present
        where s.host = place.host and s.role = place.role;
    end loop;
    return case when (select s.host from pgnet.host_state s where s.state = 'half_open' order by s.host limit 1) is not null then 1 end;
end
$$;
comment on function pgnet.free_probes() is
    'Frees places whose probe has ended without a result, so that another one begins; and mends '
    'times of places after a clock was put back.';

create function pgnet.end_requests_of_broken_hosts()
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
declare
    present timestamptz := clock_timestamp();
    place record;
    unsent bigint;
    left_to_end integer := 500;
    any_place boolean := false;
begin
    lock table net.http_request_queue, pgnet.claim, pgnet.attempt, net._http_response, pgnet.failed, pgnet.host_state,
        pgnet.flow, pgnet.ended_request, pgnet.dependency, pgnet.callback, pgnet.callback_order in row exclusive mode nowait;
    lock table pgnet.mark in access share mode nowait;
    for place in
        select s.host, s.role, s.reason, s.since from pgnet.host_state s
        where s.needs_probe and s.on_open = 'fail' and s.closed_until > present
        order by s.host, s.role limit 1000
    loop
        any_place := true;
        foreach unsent in array array(
            select q.id from pgnet.ready_request q
            where q.host = place.host and q.role = place.role
                and not exists (select from pgnet.claim c where c.id = q.id offset 0)
                and not exists (
                    select from pgnet.mark m
                    where m.requested_by = q.requested_by and m.request_id = q.id and m.action <> 'retry' offset 0)
            order by q.priority, q.id limit left_to_end for update of q skip locked)
        loop
            perform pgnet.end_without_answer(unsent, 'failed', format(
                'Not sent: the circuit breaker of %s is open since %s: %s.', place.host, date_trunc('second', place.since), place.reason),
                (select count(*)::integer from pgnet.attempt a where a.request_id = unsent));
            left_to_end := left_to_end - 1;
        end loop;
        if left_to_end <= 0 then
            return 0.05;
        end if;
    end loop;
    return case when any_place then 0.5 end;
end
$$;
comment on function pgnet.end_requests_of_broken_hosts() is
    'Ends ready requests to hosts whose breaker is open with on_open = fail, 500 at a time.';

create function pgnet.forget_host_states()
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
declare
    present timestamptz := clock_timestamp();
    kept_after timestamptz := present - pgnet.setting_value('ttl_failed')::interval;
    place record;
begin
    lock table pgnet.host_state, pgnet.host_event in row exclusive mode nowait;
    for place in
        select s.host, s.role from pgnet.host_state s
        where s.updated < present - interval '10 min' and coalesce(s.closed_until, '-infinity') < present
            and (not s.needs_probe or s.updated < present - interval '1 hour' and s.closed_until < present - interval '1 hour')
        order by s.updated limit 1000 for update skip locked
    loop
        delete from pgnet.host_state s where s.host = place.host and s.role = place.role;
    end loop;
    delete from pgnet.host_event e where e.id = any (array(
        select o.id from pgnet.host_event o where o.happened < kept_after order by o.happened limit 1000 for update skip locked));
    return null;
end
$$;
comment on function pgnet.forget_host_states() is
    'Deletes states of places of which there is nothing to say any more, and events past '
    'ttl_failed.';

-- ======== extension/49_gates.sql ========

-- Gates: the order of requests with one ordering_key, and requests that are sent after others.
--
-- Theory of operation
--
-- Gates. A request with an ordering_key or with `after` is queued as held, with the gate `new` in
-- pgnet.flow, so that no claim sees it. pgnet.open_gates, which each claim calls first, examines
-- it: the gate becomes NULL (open), `key` (it waits behind another request of its key) or `ids` (it
-- waits for others). So a claim reads no row that it may not take, and a key with 100,000 requests
-- hides nobody.
--
-- The order of a key. At most one request of a key has an open gate. The next is opened when that
-- one is no longer in the queue, and it is the one with the lowest id of those that are committed
-- then. A request that waits for its time, for others or for another attempt holds its key. Ids are
-- drawn before the commit: a request that commits late, with a lower id than one that is open and
-- was not attempted, takes that one's place; where that one was attempted or is a retry, it is the
-- next.
--
-- Hints. Whatever ends a request with a key inserts a row into pgnet.ended_request, in the same
-- transaction, and so does what ends a request that others wait for. open_gates reads these rows,
-- and then looks at the key or at those that wait. So it looks only where something has changed. A
-- row that was deleted by hand leaves no hint: the sweep, a duty of the heartbeat, finds its row of
-- pgnet.flow, which is left.
--
-- One at a time. open_gates works under the lock of the one row of pgnet.gate_keeper, which it
-- takes with SKIP LOCKED; each of its statements has a snapshot of its own, taken under that lock.
-- So it sees what the last one to hold the lock has done. A request that ends while it works is
-- either gone in a statement's snapshot, and its hint is there, or it is still in the queue, and
-- its hint is found by the next one. So what one statement concludes from a row that is gone it
-- concludes with a look at hints, too: pgnet.find_heads opens no key that a hint says is blocked.
--
-- Requests that others wait for. What ends a request cannot see that another session is just making
-- another request wait for it. So open_gates locks the row that is waited for: what ends that
-- request takes its row with SKIP LOCKED, and comes back later, and it asks who waits in a
-- statement of its own, after it has the lock (pgnet.note_dependants). Where open_gates does not
-- get the lock, the new request stays `new` for a moment.
--
-- Blocked keys. A request that ends as failed or unknown blocks its key, unless on_failure is skip.
-- Its hint says so, and open_gates makes a row of pgnet.blocked_key of it. While the row is there,
-- no request of the key is opened but one that net.retry has made of the head: that one goes first.
-- A hint of net.retry names it, so that it does not wait behind other new requests. net.unblock,
-- and net.cancel of the head, insert a hint that takes the row away.
--
-- What a caller forges. A caller may insert rows of its own into pgnet.flow, for any request and
-- with any gate. It spoils the order of its own keys by that and of no other: a key belongs to a
-- role, and a row counts for a request of the same role only. A row without a request is deleted. A
-- key counts in pgnet.claim only where open_gates has opened the request, which flow.opened says,
-- and which no caller can set: so that no worker waits for another one because of forged rows.

create table pgnet.gate_keeper (
    single boolean primary key default true check (single),
    -- where the sweep goes on: in pgnet.flow and in pgnet.dependency
    swept_request bigint not null default -9223372036854775808,
    swept_after bigint not null default 0
);
comment on table pgnet.gate_keeper is
    'One row. The session that has it locked opens gates, and no other. It has the places where '
    'the sweep goes on.';
insert into pgnet.gate_keeper default values;

create table pgnet.dependency (
    after_id bigint not null,
    request_id bigint not null,
    any_end boolean not null,
    primary key (after_id, request_id)
) with (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0
);
comment on table pgnet.dependency is
    'Which request waits for which: a row for each id in the option after that has not ended.';
comment on column pgnet.dependency.any_end is
    'Whether request_id is sent however after_id ends.';
create index dependency_request on pgnet.dependency (request_id);
create policy own_dependencies on pgnet.dependency for select
    using (exists (select from net.http_request_queue q where q.id operator(pg_catalog.=) request_id offset 0));

create table pgnet.ended_request (
    id bigint generated always as identity primary key,
    request_id bigint not null,
    requested_by regrole not null default pg_catalog.quote_ident(current_user)::pg_catalog.regrole,
    ordering_key text collate "C",
    state net.request_state,
    blocks boolean not null default false,
    status_code integer,
    error_msg text,
    unblocks boolean not null default false,
    retry_id bigint,
    cause text,
    noted timestamptz not null default pg_catalog.clock_timestamp(),
    retry_at timestamptz
) with (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0
);
comment on table pgnet.ended_request is
    'Hints for pgnet.open_gates, until it has read them: requests that have ended and had an '
    'ordering_key, or that others wait for, and the orders of net.unblock.';
comment on column pgnet.ended_request.state is
    'How the request ended; NULL: its response says it, or it was deleted.';
comment on column pgnet.ended_request.blocks is 'Whether its key is blocked from now on.';
comment on column pgnet.ended_request.unblocks is
    'An order of net.unblock: the request, which is the head of a blocked key, blocks it no more.';
comment on column pgnet.ended_request.retry_id is
    'What net.retry has made of the request, which is the head of a blocked key: it goes first.';
comment on column pgnet.ended_request.cause is
    'Of a request that was cancelled for another one: which one that is, and how it ended.';
comment on column pgnet.ended_request.retry_at is
    'Another session had locked a row: when it is looked at again. NULL: now.';
create index ended_request_fresh on pgnet.ended_request (requested_by, id) where retry_at is null;
create index ended_request_retry on pgnet.ended_request (retry_at) where retry_at is not null;
create index ended_request_blocks on pgnet.ended_request (ordering_key, requested_by, id) where blocks;
create policy own_hints on pgnet.ended_request for select
    using (requested_by operator(pg_catalog.=) (select pgnet.caller_role()));
create policy insert_own_hints on pgnet.ended_request for insert
    with check (
        requested_by operator(pg_catalog.=) pgnet.caller_role() and (unblocks or retry_id is not null) and not blocks and state is null
        and cause is null and retry_at is null and error_msg is null and status_code is null
        -- A role that may not call net.unblock inserts nothing, although the table stands in pgnet.
        and pg_catalog.has_schema_privilege('net', 'usage'));

create table pgnet.blocked_key (
    requested_by regrole not null,
    ordering_key text collate "C" not null,
    head bigint not null,
    state net.request_state not null,
    status_code integer,
    error_msg text,
    since timestamptz not null,
    primary key (requested_by, ordering_key)
);
comment on table pgnet.blocked_key is
    'Keys whose head has failed: no request of the key is sent before net.retry, net.cancel or '
    'net.unblock. net.blocked_keys shows them.';
create index blocked_key_head on pgnet.blocked_key (head);
create policy own_blocked_keys on pgnet.blocked_key for select
    using (requested_by operator(pg_catalog.=) (select pgnet.caller_role()));

-- ---- what ends a request

create function pgnet.note_dependants(
    -- requests that this transaction may have ended
    ids bigint[]
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
begin
    if (select d.after_id from pgnet.dependency d order by d.after_id limit 1) is null then
        return;
    end if;
    -- A statement of its own: its snapshot is taken when the rows of the queue are locked.
    insert into pgnet.ended_request (request_id, requested_by, state)
    select n.id, coalesce(r.requested_by, pgnet.caller_role()), r.state
    from unnest(ids) n (id)
    left join lateral (
        select r.requested_by, r.state from net._http_response r where r.id = n.id offset 0
    ) r on true
    where (select d.after_id from pgnet.dependency d where d.after_id >= n.id and d.after_id <= n.id
            order by d.after_id, d.request_id limit 1) is not null
        and not exists (select from net.http_request_queue q where q.id = n.id offset 0);
    if found then
        perform pgnet.arm_wake_up('wake');
    end if;
end
$$;
comment on function pgnet.note_dependants(bigint[]) is
    'Hints that requests have ended which others wait for. Called in a statement behind the one '
    'that has ended them.';

-- ---- requests that are sent after others

-- How a request stands that has to do with the option after.
create type pgnet.gate_finding as (
    request_id bigint,
    -- free: it waits for nobody; waits; cancel: via has not ended well; later: a row is locked
    verdict text,
    -- the request in after, and how it ended, or for which other one it was cancelled
    via bigint,
    cause text
);
comment on type pgnet.gate_finding is
    'How a request with the option after stands: free, waits, cancel or later.';

create function pgnet.after_ids(options jsonb)
    returns bigint[]
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- A row that was inserted by hand may hold anything; a worker refuses it when it is sent.
    if options is null or pg_column_size(options) > 100000 or jsonb_typeof(options -> 'after') is distinct from 'array'
        or jsonb_array_length(options -> 'after') > 1000
        or exists (
            select from jsonb_array_elements(options -> 'after') e
            where jsonb_typeof(e.value) <> 'number' or e.value #>> '{}' !~ '^[0-9]{1,18}$')
    then
        return '{}';
    end if;
    return array(select distinct (e.value #>> '{}')::bigint from jsonb_array_elements(options -> 'after') e);
end
$$;
comment on function pgnet.after_ids(jsonb) is
    'The ids in the option after, each once; none where the option is not as net.http_request '
    'takes it.';

-- A request that waits for one that does not exist would wait for ever, and one that does not exist
-- yet could wait for it in turn. Another role's request is one that does not exist: so nobody
-- learns of it.
create function pgnet.check_after(
    -- a new request, and its options, checked by pgnet.check_request
    request_id bigint, options jsonb
)
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    missing bigint := (
        select min(a.id)
        from unnest(pgnet.after_ids(options)) a (id)
        where not exists (
                select from net.http_request_queue q
                where q.id = a.id and q.id <> request_id and q.requested_by = pgnet.caller_role() offset 0)
            and not exists (
                select from net._http_response r where r.id = a.id and r.requested_by = pgnet.caller_role() offset 0)
            and not exists (
                select from pgnet.failed f where f.id = a.id and f.requested_by = pgnet.caller_role() offset 0));
begin
    if missing is not null then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('option "after": there is no request %s of role "%s"', missing, current_user),
            hint = 'It names requests of the same role that are queued, or whose response is kept: the setting ttl says for how long.';
    end if;
end
$$;
comment on function pgnet.check_after(bigint, jsonb) is
    'Raises 22023 where the option after names a request that does not exist, or is another role''s.';

create function pgnet.cause_of(
    -- a request that has not ended well; the state and the message of its response
    request_id bigint, state net.request_state, error_msg text
)
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce(
        -- It was cancelled for another one itself: pgnet.dependency_message has made the text.
        case when state = 'cancelled' then substring(error_msg from '^(Request [0-9]+ [a-z ]+), and this request was to be sent after ') end,
        format('Request %s %s', request_id, case state when 'failed' then 'has failed' when 'unknown' then 'has ended as unknown'
            when 'expired' then 'has expired' when 'cancelled' then 'was cancelled' else 'is not known any more' end))
$$;
comment on function pgnet.cause_of(bigint, net.request_state, text) is
    'Which request has not ended well, and how it ended, in words: a request or the one that it was '
    'cancelled for.';

create function pgnet.dependency_message(cause text, via bigint)
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select format('%s, and this request was to be sent after %s.', cause,
        case when starts_with(cause, format('Request %s ', via)) then 'it'
            else format('request %s, which was cancelled for it', via) end)
$$;
comment on function pgnet.dependency_message(text, bigint) is
    'The error message of a request that is cancelled since one that it was to follow has not '
    'ended well.';

create function pgnet.link_dependencies(
    -- requests with the option after that are locked
    fresh bigint[]
)
    returns setof pgnet.gate_finding
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
begin
    insert into pgnet.dependency (after_id, request_id, any_end)
    select l.id, w.id, coalesce(w.options -> 'after_any_end' = 'true', false)
    from unnest(fresh) f (id)
    cross join lateral (
        select q.id, q.requested_by, q.options from net.http_request_queue q where q.id = f.id offset 0
    ) w
    cross join lateral unnest(pgnet.after_ids(w.options)) a (id)
    cross join lateral (
        -- Only requests from before this one, so that nothing waits for itself.
        select q.id from net.http_request_queue q
        where q.id = a.id and q.id < w.id and q.requested_by = w.requested_by and q.origin is null
        for key share of q skip locked
    ) l
    on conflict do nothing;
    -- A request that is not in the queue in the snapshot of this statement has ended, and everybody
    -- can see how.
    return query
    with standing as (
        select w.id, a.id as after_id, d.linked, d.linked is null and v.seen as later,
            coalesce(r.state, case when a.id < w.id then f.state end) as state, coalesce(r.error_msg, f.error_msg) as error_msg,
            coalesce(w.options -> 'after_any_end' = 'true', false) as any_end
        from unnest(fresh) g (id)
        cross join lateral (
            select q.id, q.requested_by, q.options from net.http_request_queue q where q.id = g.id offset 0
        ) w
        cross join lateral unnest(pgnet.after_ids(w.options)) a (id)
        left join lateral (
            select true as linked from pgnet.dependency d
            where (d.after_id, d.request_id) >= (a.id, w.id) and (d.after_id, d.request_id) <= (a.id, w.id)
            order by d.after_id, d.request_id limit 1
        ) d on true
        left join lateral (
            select true as seen from net.http_request_queue q
            where q.id = a.id and q.id < w.id and q.requested_by = w.requested_by and q.origin is null offset 0
        ) v on true
        left join lateral (
            select r.state, r.error_msg from net._http_response r where r.id = a.id and r.requested_by = w.requested_by offset 0
        ) r on true
        left join lateral (
            select f.state, f.error_msg from pgnet.failed f where f.id = a.id and f.requested_by = w.requested_by offset 0
        ) f on true
    ), judged as (
        select s.*, (s.linked or s.later or s.any_end or s.state = 'succeeded') is not true as bad from standing s
    )
    select j.id, case when bool_or(j.bad) then 'cancel' when bool_or(j.later) then 'later' when bool_or(j.linked) then 'waits' else 'free' end,
        min(j.after_id) filter (where j.bad),
        (array_agg(pgnet.cause_of(j.after_id, j.state, j.error_msg) order by j.after_id) filter (where j.bad))[1]
    from judged j
    group by j.id;
end
$$;
comment on function pgnet.link_dependencies(bigint[]) is
    'Makes the rows of pgnet.dependency for new requests, and says how these stand.';

create function pgnet.end_dependants(findings pgnet.gate_finding[])
    -- those that were ended
    returns bigint[]
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
declare
    ended bigint[];
    size integer := cardinality(findings);
    caught pgnet.error;
begin
    with doomed as materialized (
        select q.*, l.place, l.ordering_key, f.cause, pgnet.dependency_message(f.cause, f.via) as message,
            (select count(*)::integer from pgnet.attempt a where a.request_id = q.id) as attempts
        from unnest(findings) f
        cross join lateral (
            select q.* from net.http_request_queue q where q.id = f.request_id for update of q skip locked
        ) q
        cross join lateral (
            select l.ctid as place, l.ordering_key from pgnet.flow l
            where l.request_id = q.id and l.requested_by = q.requested_by for update of l skip locked
        ) l
    ), dequeued as (
        delete from net.http_request_queue q where q.id = any (array(select d.id from doomed d))
    ), unheld as (
        delete from pgnet.flow l where l.ctid = any (array(select d.place from doomed d))
    ), unlinked as (
        delete from pgnet.dependency p
        where p.ctid = any (array(
            select p.place
            from doomed d
            cross join lateral (
                select p.ctid as place from pgnet.dependency p
                where p.request_id >= d.id and p.request_id <= d.id order by p.request_id limit 1000
            ) p))
    ), recorded as (
        insert into net._http_response (
            id, state, timed_out, error_msg, attempts, context, method, url, requested_by, requested, retry_of
        )
        select d.id, 'cancelled', false, d.message, d.attempts, d.context, d.method, d.url, d.requested_by, d.created, d.retry_of
        from doomed d
    ), failed as (
        insert into pgnet.failed (
            id, method, url, headers, body, timeout_milliseconds, requested_by, created, priority, context, options,
            retry_of, state, attempts, error_msg, idempotency_key
        )
        select d.id, d.method, d.url, d.headers, d.body, d.timeout_milliseconds, d.requested_by, d.created, d.priority, d.context,
            d.options, d.retry_of, 'cancelled', d.attempts, d.message, pgnet.idempotency_key(d.id, d.created, d.method, d.options)
        from doomed d
    ), hinted as (
        insert into pgnet.ended_request (request_id, requested_by, ordering_key, state, cause)
        select d.id, d.requested_by, d.ordering_key, 'cancelled', d.cause from doomed d
    )
    select array_agg(d.id) into ended from doomed d where (select pgnet.use_owners_path()) is not null;
    perform pgnet.fire_deferred();
    perform pgnet.tell_of_ends(ended);
    return coalesce(ended, '{}');
exception when others then
    get stacked diagnostics caught.message = message_text, caught.state = returned_sqlstate,
        caught.referrer_schema = schema_name, caught.referrer = table_name, caught.constraint_name = constraint_name;
    if size > 1 and clock_timestamp() < now() + interval '2 s' then
        return pgnet.end_dependants(findings[:size / 2]) || pgnet.end_dependants(findings[size / 2 + 1:]);
    end if;
    perform pgnet.note_fault('ending requests that wait for others',
        format('request %s: %s', (findings[1]).request_id, caught.message), pgnet.remedy(caught), caught.state = '55P03');
    return '{}';
end
$$;
comment on function pgnet.end_dependants(pgnet.gate_finding[]) is
    'Ends requests as cancelled, since one that they were to follow has not ended well; they can be '
    'sent again. A batch that fails is halved down to the row at fault, which is tried again later.';

create function pgnet.lock_requests(ids bigint[])
    -- those whose rows in the queue and in pgnet.flow could both be locked
    returns bigint[]
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
begin
    return array(
        select q.id
        from unnest(ids) n (id)
        cross join lateral (
            select q.id, q.requested_by from net.http_request_queue q
            where q.id = n.id and q.origin is null for update of q skip locked
        ) q
        cross join lateral (
            select f.request_id from pgnet.flow f
            where f.request_id = q.id and f.requested_by = q.requested_by for update of f skip locked
        ) f);
end
$$;
comment on function pgnet.lock_requests(bigint[]) is
    'Locks requests that are held, with their rows of pgnet.flow, but for those that another session '
    'has locked.';

create function pgnet.dependants_of(
    -- of pgnet.ended_request
    hints bigint[]
)
    returns bigint[]
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
begin
    if (select d.after_id from pgnet.dependency d order by d.after_id limit 1) is null then
        return '{}';
    end if;
    return array(
        select distinct d.request_id
        from unnest(hints) h (id)
        cross join lateral (
            select e.request_id from pgnet.ended_request e where e.id = h.id and not e.unblocks and e.retry_id is null offset 0
        ) e
        cross join lateral (
            select d.request_id from pgnet.dependency d
            where d.after_id >= e.request_id and d.after_id <= e.request_id order by d.after_id, d.request_id limit 200
        ) d
        limit 200);
end
$$;
comment on function pgnet.dependants_of(bigint[]) is
    'The requests, 200 at most, that wait for those which hints say have ended.';

create function pgnet.resolve_dependants(
    -- of pgnet.ended_request, locked
    hints bigint[]
)
    returns setof pgnet.gate_finding
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
declare
    waiting bigint[] := pgnet.dependants_of(hints);
    locked bigint[];
    findings pgnet.gate_finding[];
begin
    if waiting = '{}' then
        return;
    end if;
    locked := pgnet.lock_requests(waiting);
    with pairs as materialized (
        select d.place, d.request_id, d.any_end, e.request_id as via,
            coalesce(e.cause, pgnet.cause_of(e.request_id, coalesce(e.state, r.state, f.state), r.error_msg)) as cause,
            coalesce(e.state, r.state, f.state) = 'succeeded' as well,
            d.request_id = any (locked) as locked,
            exists (select from net.http_request_queue q where q.id = d.request_id offset 0) as seen
        from unnest(hints) h (id)
        cross join lateral (
            select e.* from pgnet.ended_request e where e.id = h.id and not e.unblocks and e.retry_id is null offset 0
        ) e
        cross join lateral (
            select d.ctid as place, d.request_id, d.any_end from pgnet.dependency d
            where d.after_id >= e.request_id and d.after_id <= e.request_id and d.request_id = any (waiting)
            order by d.after_id, d.request_id limit 1000
        ) d
        left join lateral (
            select r.state, r.error_msg from net._http_response r where r.id = e.request_id offset 0
        ) r on true
        left join lateral (
            select f.state from pgnet.failed f where f.id = e.request_id offset 0
        ) f on true
        where not exists (select from net.http_request_queue q where q.id = e.request_id offset 0)
    ), settled as (
        delete from pgnet.dependency d
        where d.ctid = any (array(select p.place from pairs p where not p.seen or p.locked and (p.any_end or p.well)))
    )
    select array_agg(row(j.request_id, j.verdict, j.via, j.cause)::pgnet.gate_finding) into findings
    from (
        select distinct on (p.request_id) p.request_id, case when p.well or p.any_end then 'waits' else 'cancel' end as verdict,
            p.via, p.cause
        from pairs p
        where p.locked
        order by p.request_id, (p.well or p.any_end) is true, p.via
    ) j;
    return query
    select f.request_id,
        case when f.verdict = 'waits' and (
            select d.request_id from pgnet.dependency d
            where d.request_id >= f.request_id and d.request_id <= f.request_id order by d.request_id limit 1) is null
            -- One that is still new waits for others, too, which were locked when it was examined.
            and exists (
                select from net.http_request_queue q
                cross join lateral (
                    select l.gate from pgnet.flow l where l.request_id = q.id and l.requested_by = q.requested_by offset 0
                ) l
                where q.id = f.request_id and l.gate = 'ids' offset 0)
            then 'free' else f.verdict end,
        f.via, f.cause
    from unnest(findings) f;
end
$$;
comment on function pgnet.resolve_dependants(bigint[]) is
    'Takes away the rows of pgnet.dependency for requests that have ended, and says how those '
    'stand that waited for them.';

-- ---- opening

-- New requests, roles in turns: a role with a million of them does not hold up another one.
create function pgnet.lock_new_requests(
    -- how many at most
    most integer,
    out ids bigint[],
    -- those of them that have the option after
    out linked bigint[],
    -- how many were looked at
    out seen integer
)
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
#variable_conflict use_column
begin
    with recursive roles (role) as (
        (select f.requested_by::oid from pgnet.flow f where f.gate = 'new' order by f.requested_by, f.request_id limit 1)
        union all
        select n.role
        from roles r
        cross join lateral (
            select f.requested_by::oid as role from pgnet.flow f
            where f.gate = 'new' and (f.requested_by::oid, f.request_id) > (r.role, 9223372036854775807)
            order by f.requested_by, f.request_id limit 1
        ) n
    ), turns as materialized (
        select r.role from roles r limit most
    ), candidates as materialized (
        -- Of each role so many, whether they can be locked or not.
        select t.role, n.id, n.place, row_number() over (partition by t.role) as turn
        from turns t
        cross join lateral (
            select f.request_id as id, f.ctid as place from pgnet.flow f
            where f.gate = 'new' and (f.requested_by::oid, f.request_id) >= (t.role, -9223372036854775808)
                and (f.requested_by::oid, f.request_id) <= (t.role, 9223372036854775807)
            order by f.requested_by, f.request_id
            limit (select greatest(2, 2 * most / count(*)) from turns)
        ) n
    ), locked as materialized (
        select c.id, c.turn, q.links
        from candidates c
        cross join lateral (
            select q.id,
                case when pg_column_size(q.options) <= 100000 and jsonb_typeof(q.options -> 'after') = 'array'
                    then jsonb_array_length(q.options -> 'after') else 0 end as links
            from net.http_request_queue q
            where q.id = c.id and q.requested_by = c.role::regrole and q.origin is null
            for update of q skip locked
        ) q
        cross join lateral (
            select f.request_id from pgnet.flow f
            where f.request_id = c.id and f.requested_by = c.role::regrole and f.gate = 'new' for update of f skip locked
        ) f
        order by c.turn
        limit most
    ), bounded as (
        select l.id, l.links,
            sum(l.links) over (order by l.turn rows between unbounded preceding and 1 preceding) as links_before
        from locked l
    ), orphans as (
        delete from pgnet.flow f
        where f.ctid = any (array(
            select c.place from candidates c
            where not exists (
                select from net.http_request_queue q where q.id = c.id and q.requested_by = c.role::regrole offset 0)))
            and f.gate = 'new'
    )
    -- A link costs as much as a request.
    select array_agg(b.id) filter (where coalesce(b.links_before, 0) < most),
        array_agg(b.id) filter (where coalesce(b.links_before, 0) < most and b.links > 0),
        (select count(*) from candidates)
    into ids, linked, seen
    from bounded b;
end
$$;
comment on function pgnet.lock_new_requests(integer) is
    'The next requests with the gate new, locked, of each role some. A row without a request is '
    'deleted.';

create function pgnet.lock_hints(most integer)
    returns bigint[]
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
declare
    -- A variable, since an index is not used for a value that may change from row to row.
    present timestamptz := clock_timestamp();
begin
    return array(
        with recursive roles (role) as (
            (select e.requested_by::oid from pgnet.ended_request e where e.retry_at is null order by e.requested_by, e.id limit 1)
            union all
            select n.role
            from roles r
            cross join lateral (
                select e.requested_by::oid as role from pgnet.ended_request e
                where e.retry_at is null and (e.requested_by::oid, e.id) > (r.role, 9223372036854775807)
                order by e.requested_by, e.id limit 1
            ) n
        ), turns as materialized (
            select r.role from roles r limit most
        )
        select n.id
        from turns t
        cross join lateral (
            select e.id from pgnet.ended_request e
            where e.retry_at is null and (e.requested_by::oid, e.id) > (t.role, 0) and (e.requested_by::oid, e.id) <= (t.role, 9223372036854775807)
            order by e.requested_by, e.id
            limit (select greatest(1, most / count(*)) from turns)
            for update of e skip locked
        ) n
        union all
        select r.id
        from (
            select e.id from pgnet.ended_request e where e.retry_at <= present order by e.retry_at limit most for update skip locked
        ) r);
end
$$;
comment on function pgnet.lock_hints(integer) is
    'The next rows of pgnet.ended_request, locked, of each role some.';

create function pgnet.update_blocked_keys(
    -- of pgnet.ended_request, locked
    hints bigint[],
    -- new requests, locked
    fresh bigint[]
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
declare
    pending bigint[];
begin
    -- All hints that say that one of these keys is blocked, also those whose turn has not come: no
    -- request of a blocked key is opened, and a retry of the head is known as such.
    pending := array(
        select b.id
        from (
            select f.requested_by::oid as role, f.ordering_key from pgnet.flows_of(fresh) f where f.ordering_key is not null
            union
            select e.requested_by::oid, e.ordering_key
            from unnest(hints) h (id)
            cross join lateral (
                select e.requested_by, e.ordering_key from pgnet.ended_request e where e.id = h.id and e.ordering_key is not null offset 0
            ) e
        ) k
        cross join lateral (
            select e.id from pgnet.ended_request e
            where e.blocks and (e.ordering_key, e.requested_by::oid) >= (k.ordering_key collate "C", k.role)
                and (e.ordering_key, e.requested_by::oid) <= (k.ordering_key collate "C", k.role)
            order by e.ordering_key, e.requested_by, e.id limit 100
        ) b);
    -- A key has one head in flight. Where a caller has forged more, the first one that failed
    -- counts.
    with blocking as (
        update pgnet.ended_request e set blocks = false where e.id = any (pending)
        returning e.id, e.requested_by, e.ordering_key, e.request_id, e.state, e.status_code, e.error_msg, e.noted
    )
    insert into pgnet.blocked_key (requested_by, ordering_key, head, state, status_code, error_msg, since)
    select b.requested_by, b.ordering_key, b.request_id, b.state, b.status_code, b.error_msg, b.noted
    from blocking b
    order by b.id
    on conflict do nothing;
    delete from pgnet.blocked_key b
    where b.ctid = any (array(
        select b.place
        from unnest(hints) h (id)
        cross join lateral (
            select e.requested_by, e.ordering_key, e.request_id from pgnet.ended_request e where e.id = h.id and e.unblocks offset 0
        ) e
        cross join lateral (
            select b.ctid as place from pgnet.blocked_key b
            where b.requested_by = e.requested_by and b.ordering_key = e.ordering_key and b.head = e.request_id offset 0
        ) b));
end
$$;
comment on function pgnet.update_blocked_keys(bigint[], bigint[]) is
    'Blocks the keys whose head has failed, and unblocks those that net.unblock names.';

create function pgnet.lock_retries(
    -- of pgnet.ended_request, locked
    hints bigint[]
)
    returns bigint[]
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
begin
    return array(
        select q.id
        from unnest(hints) h (id)
        cross join lateral (
            select e.request_id, e.requested_by, e.retry_id from pgnet.ended_request e
            where e.id = h.id and e.retry_id is not null offset 0
        ) e
        cross join lateral (
            select q.id from net.http_request_queue q
            where q.id = e.retry_id and q.requested_by = e.requested_by and q.retry_of = e.request_id and q.origin is null
            for update of q skip locked
        ) q
        cross join lateral (
            select f.request_id from pgnet.flow f
            where f.request_id = q.id and f.requested_by = e.requested_by and f.gate = 'new' for update of f skip locked
        ) f);
end
$$;
comment on function pgnet.lock_retries(bigint[]) is
    'The new requests, locked, that net.retry has made of heads of blocked keys.';

create function pgnet.open_retried_heads(
    -- new requests that wait for nobody, locked
    ids bigint[]
)
    -- those that are opened, whatever waits in their keys
    returns bigint[]
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
declare
    opened bigint[];
begin
    with heads as materialized (
        select q.id, b.place
        from unnest(ids) n (id)
        cross join lateral (
            select q.id, q.requested_by, q.retry_of from net.http_request_queue q
            where q.id = n.id and q.retry_of is not null offset 0
        ) q
        cross join lateral (
            select f.ordering_key from pgnet.flow f
            where f.request_id = q.id and f.requested_by = q.requested_by and f.ordering_key is not null offset 0
        ) f
        cross join lateral (
            select b.ctid as place from pgnet.blocked_key b
            where b.requested_by = q.requested_by and b.ordering_key = f.ordering_key and b.head = q.retry_of offset 0
        ) b
    ), unblocked as (
        delete from pgnet.blocked_key b where b.ctid = any (array(select h.place from heads h))
    )
    select array_agg(h.id) into opened from heads h;
    if opened is not null then
        perform pgnet.set_gates(opened, null);
    end if;
    return coalesce(opened, '{}');
end
$$;
comment on function pgnet.open_retried_heads(bigint[]) is
    'Opens requests that net.retry has made of the heads of blocked keys: they go first.';

create function pgnet.set_gates(
    -- locked, with their rows of pgnet.flow
    ids bigint[],
    gate pgnet.gate
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
declare
    path text;
begin
    if ids = '{}' then
        return;
    end if;
    with flows as materialized (
        select q.id, q.held, f.place, f.not_before
        from unnest(ids) n (id)
        cross join lateral (
            select q.id, q.requested_by, q.held from net.http_request_queue q where q.id = n.id offset 0
        ) q
        cross join lateral (
            select f.ctid as place, f.not_before from pgnet.flow f
            where f.request_id = q.id and f.requested_by = q.requested_by offset 0
        ) f
    ), changed as (
        update pgnet.flow f
        set gate = set_gates.gate, opened = case when set_gates.gate is null then clock_timestamp() end
        where f.ctid = any (array(select f.place from flows f))
    ), released as (
        update net.http_request_queue q set held = set_gates.gate is not null
        where q.id = any (array(
            select f.id from flows f
            where f.held is distinct from (set_gates.gate is not null) and (set_gates.gate is not null or f.not_before is null)))
    )
    select pgnet.use_owners_path() into path;
    perform pgnet.pin_path();
end
$$;
comment on function pgnet.set_gates(bigint[], pgnet.gate) is
    'Sets the gate of requests; NULL opens it: then the request is ready, unless it waits for a time.';

create type pgnet.key_finding as (
    role oid,
    ordering_key text,
    -- the first request of the key, which is to be opened
    head bigint,
    -- the request with a higher id whose gate is open, and which gives its place to the head
    later bigint
);
comment on type pgnet.key_finding is
    'The request of a key that is to be opened, and the one that gives its place to it.';

-- What a key has to offer. A request is not looked at before open_gates has examined it.
create function pgnet.find_heads(
    roles oid[], ordering_keys text[],
    -- new requests that may be opened, locked
    examined bigint[]
)
    returns setof pgnet.key_finding
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
begin
    return query
    select k.role, k.name, h.id, o.id
    from (select distinct u.role, u.name collate "C" as name from unnest(roles, ordering_keys) u (role, name)) k
    cross join lateral (
        -- The bounds of rows, and not equality, leave one index that has the order.
        select f.request_id as id, f.gate from pgnet.flow f
        where f.ordering_key is not null
            and (f.requested_by::oid, f.ordering_key, f.request_id) >= (k.role, k.name, -9223372036854775808)
            and (f.requested_by::oid, f.ordering_key, f.request_id) <= (k.role, k.name, 9223372036854775807)
        order by f.requested_by, f.ordering_key, f.request_id limit 1
    ) h
    left join lateral (
        select f.request_id as id from pgnet.flow f
        where f.ordering_key is not null and f.gate is null
            and (f.ordering_key, f.requested_by::oid) >= (k.name, k.role) and (f.ordering_key, f.requested_by::oid) <= (k.name, k.role)
        order by f.ordering_key, f.requested_by limit 1
    ) o on true
    where (h.gate = 'key' or h.id = any (examined))
        -- A retry of the head went first, whatever its id is.
        and (o.id is null or o.id > h.id
            and exists (
                select from net.http_request_queue q
                where q.id = o.id and q.requested_by = k.role::regrole and q.due is null and q.retry_of is null offset 0)
            and not exists (select from pgnet.claim c where c.id = o.id offset 0)
            and not exists (select from pgnet.attempt a where a.request_id = o.id offset 0))
        and not exists (
            select from pgnet.blocked_key b where b.requested_by = k.role and b.ordering_key = k.name offset 0)
        -- Its last request may have ended a moment ago: in the snapshot of this statement it is
        -- gone, and the hint is there that says whether it blocks the key.
        and (
            select e.id from pgnet.ended_request e
            where e.blocks and (e.ordering_key, e.requested_by::oid) >= (k.name, k.role)
                and (e.ordering_key, e.requested_by::oid) <= (k.name, k.role)
            order by e.ordering_key, e.requested_by, e.id limit 1) is null;
end
$$;
comment on function pgnet.find_heads(oid[], text[], bigint[]) is
    'Of each of these keys the request to be opened, where there is one.';

-- Another session has the head locked at this moment. Or there is no such request: a row of
-- pgnet.flow was forged, or its request was deleted by hand; the row goes, and the next one counts.
create function pgnet.look_again(
    found_heads pgnet.key_finding[],
    -- those that could be locked
    locked bigint[]
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
declare
    busy bigint[] := array(select f.head from unnest(found_heads) f except select l.id from unnest(locked) l (id));
begin
    if busy = '{}' then
        return;
    end if;
    with heads as materialized (
        select f.*, v.seen
        from unnest(busy) b (id)
        join unnest(found_heads) f on f.head = b.id
        left join lateral (
            select true as seen from net.http_request_queue q where q.id = f.head and q.requested_by = f.role::regrole offset 0
        ) v on true
    ), orphans as (
        delete from pgnet.flow f
        where f.ctid = any (array(
            select f.place from heads h
            cross join lateral (
                select f.ctid as place from pgnet.flow f
                where f.request_id = h.head and f.requested_by = h.role::regrole for update of f skip locked
            ) f
            where h.seen is null))
    )
    insert into pgnet.ended_request (request_id, requested_by, ordering_key, retry_at)
    select h.head, h.role::regrole, h.ordering_key, case when h.seen then clock_timestamp() + interval '0.2 s' end
    from heads h;
end
$$;
comment on function pgnet.look_again(pgnet.key_finding[], bigint[]) is
    'Hints for keys whose head could not be locked.';

create function pgnet.open_heads(
    -- as for pgnet.find_heads
    roles oid[], ordering_keys text[], examined bigint[]
)
    -- the requests that are opened
    returns bigint[]
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
declare
    found_heads pgnet.key_finding[] := array(select f from pgnet.find_heads(roles, ordering_keys, examined) f);
    locked bigint[];
    opened bigint[];
    closed bigint[];
begin
    if found_heads = '{}' then
        return '{}';
    end if;
    locked := pgnet.lock_requests(array(
        select f.head from unnest(found_heads) f union all select f.later from unnest(found_heads) f where f.later is not null));
    perform pgnet.look_again(found_heads, locked);
    -- Now that they are locked, no worker can claim them: a later one that was claimed before
    -- stays.
    with locked_heads as materialized (
        select l.id from unnest(locked) l (id)
    )
    select array_agg(f.head), array_agg(f.later) filter (where f.later is not null) into opened, closed
    from unnest(found_heads) f
    where f.head in (select l.id from locked_heads l)
        and (f.later is null or f.later in (select l.id from locked_heads l)
            and not exists (select from pgnet.claim c where c.id = f.later offset 0));
    perform pgnet.set_gates(coalesce(closed, '{}'), 'key');
    perform pgnet.set_gates(coalesce(opened, '{}'), null);
    return coalesce(opened, '{}');
end
$$;
comment on function pgnet.open_heads(oid[], text[], bigint[]) is
    'Opens the first request of each of these keys, where none is open and the key is not blocked.';

create function pgnet.settle_hints(
    -- of pgnet.ended_request, locked; all has been done about them
    hints bigint[]
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
declare
    unfinished bigint[] := '{}';
begin
    if (select d.after_id from pgnet.dependency d order by d.after_id limit 1) is not null then
        -- More requests waited for it than are looked at at once, or one of them is locked.
        unfinished := array(
            select e.id
            from unnest(hints) h (id)
            cross join lateral (
                select e.id, e.request_id from pgnet.ended_request e where e.id = h.id and not e.unblocks and e.retry_id is null offset 0
            ) e
            where (select d.after_id from pgnet.dependency d where d.after_id >= e.request_id and d.after_id <= e.request_id
                    order by d.after_id, d.request_id limit 1) is not null
                and not exists (select from net.http_request_queue q where q.id = e.request_id offset 0));
        update pgnet.ended_request e
        set retry_at = clock_timestamp() + interval '0.02 s', blocks = false
        where e.id = any (unfinished);
    end if;
    delete from pgnet.ended_request e
    where e.id = any (array(select h.id from unnest(hints) h (id) where h.id <> all (unfinished)));
end
$$;
comment on function pgnet.settle_hints(bigint[]) is
    'Removes hints, but for those of requests that others still wait for.';

create function pgnet.flows_of(ids bigint[])
    returns setof pgnet.flow
    language plpgsql stable parallel safe rows 100
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
begin
    return query
    select f.*
    from unnest(ids) n (id)
    cross join lateral (
        select q.id, q.requested_by from net.http_request_queue q where q.id = n.id offset 0
    ) q
    cross join lateral (
        select f.* from pgnet.flow f where f.request_id = q.id and f.requested_by = q.requested_by offset 0
    ) f;
end
$$;
comment on function pgnet.flows_of(bigint[]) is
    'The rows of pgnet.flow that belong to requests.';

create function pgnet.open_keys(
    -- requests that wait for no id, locked; of those with a key the first one of the key is opened
    ready bigint[],
    -- of pgnet.ended_request, locked: their keys are looked at, too
    hints bigint[]
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
declare
    keyed bigint[];
    keyless bigint[];
    opened bigint[] := '{}';
    roles oid[];
    ordering_keys text[];
begin
    select array_agg(f.request_id) filter (where f.ordering_key is not null),
        array_agg(f.request_id) filter (where f.ordering_key is null)
    into keyed, keyless
    from pgnet.flows_of(ready) f;
    if keyless is not null then
        perform pgnet.set_gates(keyless, null);
    end if;
    if keyed is not null then
        opened := pgnet.open_retried_heads(keyed);
        keyed := array(select k.id from unnest(keyed) k (id) except select o.id from unnest(opened) o (id));
    end if;
    select array_agg(k.role), array_agg(k.ordering_key) into roles, ordering_keys
    from (
        select f.requested_by::oid as role, f.ordering_key from pgnet.flows_of(keyed) f
        union all
        select e.requested_by::oid, e.ordering_key
        from unnest(hints) h (id)
        cross join lateral (
            select e.requested_by, e.ordering_key from pgnet.ended_request e where e.id = h.id and e.ordering_key is not null offset 0
        ) e
    ) k;
    if roles is not null then
        opened := pgnet.open_heads(roles, ordering_keys, coalesce(keyed, '{}'));
        perform pgnet.set_gates(array(select k.id from unnest(keyed) k (id) except select o.id from unnest(opened) o (id)), 'key');
    end if;
end
$$;
comment on function pgnet.open_keys(bigint[], bigint[]) is
    'Opens requests that wait for no id, where it is their turn in their key.';

create function pgnet.examine_gates(
    -- how many new requests, and how many hints
    most integer,
    -- how many there were
    out examined integer,
    -- seconds after which to come again, since rows are locked that it needs; NULL: none are
    out again_in double precision
)
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    hints bigint[] := pgnet.lock_hints(most);
    fresh record;
    findings pgnet.gate_finding[] := '{}';
    ready bigint[];
begin
    select * into fresh from pgnet.lock_new_requests(most);
    examined := greatest(cardinality(hints), coalesce(cardinality(fresh.ids), 0));
    if examined = 0 then
        again_in := case when fresh.seen > 0 then 0.2 end;
        return;
    end if;
    ready := array(select f.id from unnest(fresh.ids) f (id) union select r.id from unnest(pgnet.lock_retries(hints)) r (id));
    if fresh.linked is not null then
        findings := array(select f from pgnet.link_dependencies(fresh.linked) f);
        perform pgnet.set_gates(array(select f.request_id from unnest(findings) f where f.verdict = 'waits'), 'ids');
        ready := array(select r.id from unnest(ready) r (id) except select f.request_id from unnest(findings) f where f.verdict <> 'free');
    end if;
    perform pgnet.update_blocked_keys(hints, ready);
    if hints <> '{}' then
        findings := findings || array(select f from pgnet.resolve_dependants(hints) f);
        ready := array(select r.id from unnest(ready) r (id) union select f.request_id from unnest(findings) f where f.verdict = 'free');
    end if;
    if exists (select from unnest(findings) f where f.verdict = 'cancel') then
        perform pgnet.end_dependants(array(select f from unnest(findings) f where f.verdict = 'cancel'));
    end if;
    again_in := case when exists (select from unnest(findings) f where f.verdict = 'later') then 0.03 end;
    perform pgnet.open_keys(ready, hints);
    if hints <> '{}' then
        perform pgnet.settle_hints(hints);
    end if;
end
$$;
comment on function pgnet.examine_gates(integer) is
    'Examines new requests and hints, some of each role, under the lock of pgnet.gate_keeper.';

create function pgnet.open_gates()
    -- seconds until it is to be called again; NULL where nothing waits for it
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
declare
    began timestamptz := clock_timestamp();
    -- A claim waits for so many: a few milliseconds.
    most constant integer := 100;
    found_work record;
    caught pgnet.error;
begin
    if (select f.request_id from pgnet.flow f where f.gate = 'new' order by f.requested_by, f.request_id limit 1) is null
        and (select e.id from pgnet.ended_request e where e.retry_at is null order by e.requested_by, e.id limit 1) is null
        and (select e.id from pgnet.ended_request e where e.retry_at <= began order by e.retry_at limit 1) is null
    then
        return (select extract(epoch from min(e.retry_at) - began) from pgnet.ended_request e where e.retry_at is not null);
    end if;
    if exists (select from pgnet.fault f where f.duty = 'opening gates' and f.retry_at > began) then
        return 1;
    end if;
    perform from pgnet.gate_keeper for update skip locked;
    if not found then
        return 0.01; -- another worker is at it
    end if;
    begin
        loop
            select * into found_work from pgnet.examine_gates(most);
            -- Requests that are cancelled for others have left hints. The claim does not wait long.
            exit when found_work.examined = 0 or found_work.again_in is not null or clock_timestamp() > began + interval '0.01 s';
        end loop;
        delete from pgnet.fault f where f.duty = 'opening gates';
    exception when others then
        get stacked diagnostics caught.message = message_text, caught.state = returned_sqlstate,
            caught.referrer_schema = schema_name, caught.referrer = table_name, caught.constraint_name = constraint_name;
        perform pgnet.note_fault('opening gates', caught.message, pgnet.remedy(caught), caught.state = '55P03');
        return 1;
    end;
    return coalesce(found_work.again_in, case when found_work.examined > 0 then 0
        else (select extract(epoch from min(e.retry_at) - clock_timestamp()) from pgnet.ended_request e where e.retry_at is not null) end);
end
$$;
comment on function pgnet.open_gates() is
    'Lets requests go on for which nothing is left to wait for. It does a few milliseconds of work '
    'at a time, and one worker does it at a time.';

-- Rows of pgnet.flow without a request: it was deleted by hand, or the row was forged.
create function pgnet.sweep_flow(
    behind bigint, most integer,
    -- the last request it looked at; NULL: it has been at all of them
    out swept bigint
)
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
declare
    flows pgnet.flow[] := array(
        select f from pgnet.flow f where f.request_id > behind order by f.request_id, f.requested_by limit most);
begin
    with orphans as (
        delete from pgnet.flow f
        where f.ctid = any (array(
            select o.place
            from unnest(flows) f
            cross join lateral (
                select o.ctid as place from pgnet.flow o
                where o.request_id = f.request_id and o.requested_by = f.requested_by for update of o skip locked
            ) o
            where not exists (
                select from net.http_request_queue q where q.id = f.request_id and q.requested_by = f.requested_by offset 0)))
        returning f.request_id, f.requested_by, f.ordering_key
    )
    insert into pgnet.ended_request (request_id, requested_by, ordering_key)
    select o.request_id, o.requested_by, o.ordering_key from orphans o where o.ordering_key is not null;
    -- A key whose first request could be opened: a hint was lost.
    insert into pgnet.ended_request (request_id, requested_by, ordering_key)
    select h.head, h.role::regrole, h.ordering_key
    from pgnet.find_heads(
        array(select f.requested_by::oid from unnest(flows) f where f.gate = 'key'),
        array(select f.ordering_key from unnest(flows) f where f.gate = 'key'), '{}') h
    where h.later is null;
    swept := case when cardinality(flows) = most then (flows[most]).request_id end;
end
$$;
comment on function pgnet.sweep_flow(bigint, integer) is
    'Deletes rows of pgnet.flow without a request, and hints that the next one of its key may go.';

create function pgnet.sweep_gates()
    -- seconds until it is to be called again; NULL where nothing waits for others
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
declare
    most constant integer := 500;
    keeper pgnet.gate_keeper;
    ids bigint[];
begin
    if (select f.request_id from pgnet.flow f order by f.request_id, f.requested_by limit 1) is null
        and (select d.after_id from pgnet.dependency d order by d.after_id limit 1) is null
    then
        return null;
    end if;
    lock table net.http_request_queue, pgnet.flow, pgnet.gate_keeper, pgnet.ended_request, pgnet.dependency, pgnet.blocked_key,
        pgnet.callback, pgnet.callback_order in row exclusive mode nowait;
    select k.* into keeper from pgnet.gate_keeper k for update skip locked;
    if not found then
        return 5;
    end if;
    with recursive links (id, number) as (
        (select d.after_id, 1 from pgnet.dependency d where d.after_id > keeper.swept_after order by d.after_id limit 1)
        union all
        select n.id, i.number + 1
        from links i
        cross join lateral (
            select d.after_id as id from pgnet.dependency d where d.after_id > i.id order by d.after_id limit 1
        ) n
        where i.number < most
    )
    select array_agg(i.id order by i.number) into ids from links i;
    perform pgnet.note_dependants(ids);
    update pgnet.gate_keeper k
    set swept_request = coalesce(pgnet.sweep_flow(keeper.swept_request, most), -9223372036854775808),
        swept_after = case when cardinality(ids) = most then ids[most] else 0 end;
    perform pgnet.arm_wake_up('wake');
    return 5;
end
$$;
comment on function pgnet.sweep_gates() is
    'Looks through some of the requests that wait for others, for what no hint has told of: where a '
    'row of the queue was deleted by hand.';

-- ======== extension/50_workers.sql ========

-- Workers: registering and deregistering, and what each call of a worker asks first. A worker uses
-- the queue by a handful of functions, with the owner's rights and a pinned search_path, and
-- touches no table by itself.

create function pgnet.session_is_alive(worker_pid integer, worker_backend_start timestamptz)
    returns boolean
    language sql stable parallel restricted security definer
    set search_path = pg_catalog, pg_temp
as $$
    select exists (select from pg_stat_get_activity(worker_pid) a where a.backend_start = worker_backend_start)
$$;
comment on function pgnet.session_is_alive(integer, timestamptz) is
    'Whether the session with this pid and start is still there: what nobody can forge, unlike an '
    'advisory lock.';

create function pgnet.worker_is_up()
    returns boolean
    language sql stable parallel restricted security definer
    set search_path = pg_catalog, pg_temp
as $$
    select exists (select from pgnet.worker w where w.ended is null and pgnet.session_is_alive(w.pid, w.backend_start))
$$;
comment on function pgnet.worker_is_up() is 'Whether a worker serves this database now.';

create function pgnet.how_to_start_a_worker()
    returns text language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select 'Start one: select net.schedule_worker() with pg_cron, call net.work() in a session of its own, or the process "pgnet worker".'
$$;
comment on function pgnet.how_to_start_a_worker() is 'The hint where no worker runs.';

create function pgnet.warn_without_worker(request_id bigint)
    -- whether it has warned
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- On a standby nobody sees the workers of the primary.
    if pgnet.worker_is_up() or pg_is_in_recovery() then
        return false;
    end if;
    raise warning using
        message = format('request %s waits: no worker is running', request_id),
        hint = pgnet.how_to_start_a_worker();
    return true;
end
$$;
comment on function pgnet.warn_without_worker(bigint) is
    'Warns the caller that waits for a request where no worker serves this database.';

-- A worker waits for the lock of a table only while it holds no other lock. So it cannot be part of
-- a deadlock with DROP EXTENSION, which locks the tables in an order that cannot be known. A wait
-- longer than lock_timeout fails with 55P03. A role that may not work is told so first, and locks
-- nothing.
create function pgnet.lock_tables(
    -- as for pgnet.require_worker
    worker_id bigint default null
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '500ms'
as $$
declare
    relation text;
begin
    for round in 1 .. 10 loop
        begin
            lock table pgnet.worker_role, pgnet.worker in access share mode nowait;
            perform pgnet.require_worker(worker_id);
            lock table net.http_request_queue, pgnet.claim, pgnet.attempt, net._http_response, pgnet.failed, pgnet.unrecorded, pgnet.worker,
                pgnet.flow, pgnet.host_budget, pgnet.limit_change, pgnet.host_state,
                pgnet.gate_keeper, pgnet.dependency, pgnet.ended_request, pgnet.blocked_key, pgnet.fault, pgnet.webhook_tally,
                pgnet.callback, pgnet.callback_order
                in row exclusive mode nowait;
            lock table pgnet.ready_request, pgnet.setting, pgnet.configuration, pgnet.database, pgnet.mark, pgnet.pause, pgnet.host,
                pgnet.webhook, pgnet.endpoint
                in access share mode nowait;
            -- At the commit, after other statements of the session, its path would count, and from
            -- PostgreSQL 18 on the owner's rights.
            set constraints all immediate;
            return;
        exception when lock_not_available then
            null;
        end;
        foreach relation in array array[
            'net.http_request_queue', 'pgnet.claim', 'pgnet.attempt', 'net._http_response', 'pgnet.failed', 'pgnet.unrecorded',
            'pgnet.worker', 'pgnet.ready_request', 'pgnet.setting', 'pgnet.configuration', 'pgnet.database', 'pgnet.worker_role',
            'pgnet.mark', 'pgnet.pause', 'pgnet.host', 'pgnet.flow',
            'pgnet.host_budget', 'pgnet.limit_change', 'pgnet.host_state', 'pgnet.gate_keeper', 'pgnet.dependency',
            'pgnet.ended_request', 'pgnet.blocked_key', 'pgnet.fault', 'pgnet.webhook_tally', 'pgnet.webhook', 'pgnet.endpoint', 'pgnet.callback',
            'pgnet.callback_order']
        loop
            begin
                execute format('lock table %s in row exclusive mode', relation);
                raise exception using errcode = 'PN000';
            exception when sqlstate 'PN000' then
                null; -- it has let go of the lock again
            end;
        end loop;
    end loop;
    raise exception using
        errcode = 'lock_not_available',
        message = 'the tables of pgnet are locked again and again',
        hint = 'The locks: select * from pg_locks l where l.relation in (select c.oid from pg_class c where c.relnamespace in (''net''::regnamespace, ''pgnet''::regnamespace)).';
end
$$;
comment on function pgnet.lock_tables(bigint) is
    'Asks pgnet.require_worker, and takes the locks of a worker''s transaction, all or none, so '
    'that it never waits for one while it holds another. Raises 55P03 after half a second.';

create function pgnet.register_worker(
    -- backend: the worker is this session; process: it only talks through this session
    worker_kind text,
    -- for a worker whose connection broke: the id and the secret it was given, and the requests it
    -- still works on
    known_id bigint default null,
    known_secret uuid default null,
    owned bigint[] default '{}',
    -- where it runs, and which version it is, for net.workers
    worker_host text default null,
    worker_version text default null,
    out worker_id bigint,
    out worker_secret uuid
)
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
    set lock_timeout = '500ms'
as $$
declare
    session_start timestamptz := (select a.backend_start from pg_stat_get_activity(pg_backend_pid()) a);
begin
    perform pgnet.lock_tables();
    -- ANALYZE, REINDEX and their like run the functions of an index as its owner, in a session that
    -- may be a worker's or a superuser's. There PostgreSQL refuses this statement, which does
    -- nothing elsewhere.
    execute 'unlisten pgnet';
    perform pgnet.refuse_copy();
    update pgnet.worker w
    set pid = pg_backend_pid(), backend_start = session_start, gone_since = null, stalled_since = null, ended = null
    where w.id = known_id and w.secret = known_secret
    returning w.id, w.secret into worker_id, worker_secret;
    if worker_id is not null then
        -- The worker never saw the claims that it does not own: the answer to its last claim was
        -- lost with the connection.
        delete from pgnet.claim c where c.id = any (array(
            select o.id from pgnet.claim o where o.worker = worker_id and o.id <> all (owned) for update skip locked));
        return;
    end if;
    -- One session is one worker. An earlier run in this session was broken off and left these rows.
    for known_id in
        select w.id from pgnet.worker w
        where w.pid = pg_backend_pid() and w.backend_start = session_start and w.ended is null
    loop
        perform pgnet.return_claims(
            (select array_agg(c.id) from pgnet.claim c where c.worker = known_id), 'The worker stopped while it was in flight.', 'stopped');
        update pgnet.worker w set ended = clock_timestamp() where w.id = known_id;
    end loop;
    insert into pgnet.worker (kind, pid, backend_start, host, version)
    values (worker_kind, pg_backend_pid(), session_start, worker_host, worker_version)
    returning id, secret into worker_id, worker_secret;
    -- A worker that was alone polls more often from now on.
    perform pgnet.signal_workers('reload');
end
$$;
comment on function pgnet.register_worker(text, bigint, uuid, bigint[], text, text) is
    'Makes the calling session a worker; with the id and secret of an earlier registration, it '
    'goes on as that worker and keeps the claims it still holds. Raises 55000 in a copy of another '
    'database.';

create function pgnet.deregister_worker(
    -- as pgnet.register_worker gave them
    worker_id bigint, worker_secret uuid,
    -- how many requests it did not finish, for net.workers
    cut_off integer default 0
)
    returns void
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
    set lock_timeout = '500ms'
as $$
begin
    perform pgnet.lock_tables();
    update pgnet.worker w set ended = clock_timestamp(), cut_off = deregister_worker.cut_off
    where w.id = worker_id and w.secret = worker_secret;
    if found then
        perform pgnet.return_claims(
            (select array_agg(c.id) from pgnet.claim c where c.worker = worker_id), 'The worker stopped while it was in flight.', 'stopped');
    end if;
end
$$;
comment on function pgnet.deregister_worker(bigint, uuid, integer) is
    'Ends a registration, and returns the claims that the worker still has.';

-- ======== extension/51_faults.sql ========

-- Faults: what fails in a worker's work, and the statement that cures it. pgnet.fault keeps them,
-- net.check() shows them.

-- GET STACKED DIAGNOSTICS fills it; `referrer` and `constraint_name` are the table and the
-- constraint that an error is about.
create type pgnet.error as (
    message text,
    state text,
    referrer_schema text,
    referrer text,
    constraint_name text
);
comment on type pgnet.error is
    'An error as an EXCEPTION block sees it: message, SQLSTATE, and the table and the constraint '
    'that it is about.';

create function pgnet.remedy(
    error pgnet.error,
    -- the tables whose rows are read or written
    relations regclass[] default array[
        'net.http_request_queue', 'pgnet.claim', 'pgnet.attempt', 'net._http_response', 'pgnet.failed']::pg_catalog.regclass[]
)
    returns text
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    referrer text := case when error.referrer <> '' then format('%I.%I', error.referrer_schema, error.referrer) end;
begin
    if error.state = '23503' and referrer is not null and to_regclass(referrer) <> all (relations) then
        return format(
            'Rows of %1$s refer to it. Delete these, or have them follow: alter table %1$s drop constraint %2$I; and add it again '
            'with "on delete cascade" or "on delete set null".', referrer, nullif(error.constraint_name, ''));
    elsif error.state like '23%' and referrer is not null and error.constraint_name <> '' then
        return format('alter table %s drop constraint %I;', referrer, error.constraint_name);
    end if;
    return coalesce((
        select 'Is it a trigger? ' || string_agg(
            format('alter table %s disable trigger %I;', t.tgrelid::regclass, t.tgname), ' ' order by t.tgrelid, t.tgname)
        from pg_trigger t
        where t.tgrelid = any (relations) and not t.tgisinternal and t.tgname not in ('replicated', 'refuse_truncate')),
        'The server''s log says more.');
end
$$;
comment on function pgnet.remedy(pgnet.error, regclass[]) is
    'The statement that cures an error with rows of these tables: it is about a constraint, or '
    'about a trigger.';

create function pgnet.fire_deferred()
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgnet.use_owners_path();
    set constraints all immediate;
end
$$;
comment on function pgnet.fire_deferred() is
    'Has constraints and triggers that are deferred do their work now, with the owner''s path: at '
    'the commit they would fail with all that was done.';

create function pgnet.note_fault(duty text, message text, hint text, brief boolean default false)
    returns void
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    insert into pgnet.fault as f (duty, retry_at, failures, message, hint, brief)
    values (duty, clock_timestamp() + interval '1 s', 1, message, hint, brief)
    on conflict on constraint fault_pkey do update
    set message = excluded.message, hint = excluded.hint, brief = excluded.brief, failures = f.failures + 1,
        retry_at = clock_timestamp() + least(interval '1 s' * 2 ^ least(f.failures, 10), interval '5 min')
    -- A lock of the moment hides no lasting fault.
    where f.brief or not excluded.brief
$$;
comment on function pgnet.note_fault(text, text, text, boolean) is
    'Keeps that a duty of the heartbeat has failed: it is tried again after 1 s, 2 s, ... 5 '
    'minutes.';

create function pgnet.fault_messages()
    returns jsonb
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce(jsonb_object_agg(f.duty, concat_ws('. ', f.message, f.hint)), '{}')
    from (
        -- The lock may be released in a moment.
        select f.duty, f.message || case when f.kept > 0 then format(' (%s rows)', f.kept) else '' end as message, f.hint
        from pgnet.fault f
        where not f.brief or f.failures > 2
        union all
        (select 'recording', format('the outcome of request %s is refused: %s', u.id, u.message), u.hint
        from pgnet.unrecorded u where u.message is not null order by u.since limit 1)
    ) f
$$;
comment on function pgnet.fault_messages() is
    'The error of each duty that fails now, by the duty''s name, for the logs of workers.';

-- ======== extension/52_claim.sql ========

-- Claiming: which requests a worker takes, and what it gets of them.
--
-- Theory of operation
--
-- Turns. pgnet.claim_requests goes from host to host, and at each host from role to role, over the
-- index http_request_queue_turn, and takes some rows of each. So nobody waits behind another host's
-- requests, nor behind another role's, whatever priorities these have: one slow host, or one role
-- with a million requests, would otherwise take every slot. The next claim begins behind the place
-- where this one ended. A recursive query steps from one (host, role) to the next by one look-up in
-- the index, so a claim costs by the places it visits and the rows it takes, not by the length of
-- the queue.
--
-- Choose first, read then. A claim chooses by what is small and is never converted: a host, a role,
-- lengths as they are stored (octet_length and pg_column_size unpack nothing). So a worker never
-- gets more bytes than it has room for, and a row of 500 MB costs nothing before its turn comes.
-- pgnet.read_claimed then reads the rows that were chosen. There a row can be at fault: text that
-- is too long as soon as it is written out, or that has no form in UTF-8. Then each row is read by
-- itself, and for one at fault the worker gets the reason in place of the request. The worker
-- records it, so that the request ends as failed, and all others go out.
--
-- Locks. A row of the queue is locked with SKIP LOCKED and is not changed: a claim is a row of
-- pgnet.claim. A row that another transaction has locked, be it another worker's or a user's, is
-- passed over.
--
-- Plans. They must not depend on how full a table was when they were made. A healthy queue is empty
-- each time autovacuum looks, and with statistics of empty tables the planner takes any order of a
-- join for as good as any other, and any index. So what workers call is planned once, for index
-- look-ups, whatever the statistics say: what is looked up for a row is a sub-select with OFFSET 0,
-- of which the planner cannot make a join; what is changed or deleted is given as an array of ids;
-- and ORDER BY, with enable_sort off, names the index to read. A time to compare with stands in a
-- variable: an index is of no use to what may change from row to row.

-- A claimed request as a worker gets it.
create type pgnet.claimed_request as (
    id bigint,
    token text,
    attempt integer,
    -- earlier attempts that were lost or stopped with their workers
    lost integer,
    method text,
    url text,
    headers text,
    body bytea,
    timeout_milliseconds integer,
    options text,
    host text,
    role oid,
    -- of the configuration that the claim saw
    revision bigint,
    -- seconds since the first attempt began
    age double precision,
    idempotency_key text,
    -- what limits, probes and times say of it, as a JSON object; NULL: nothing
    flow text,
    -- why the request cannot be sent; then its method, URL, headers, body and options are missing
    fault text
);
comment on type pgnet.claimed_request is
    'A request as a worker gets it; with a fault in place of its content where it cannot be a '
    'request.';

-- The bounds are wider than those of the package (request/), which checks each row again.
create function pgnet.read_claimed(
    -- the requests, and the numbers of their attempts
    ids bigint[], attempts integer[],
    claim_token uuid,
    -- whether they are attempted alone
    quarantined_only boolean,
    -- whether pgnet.is_plain_json is known to be true of headers and options of all
    plain boolean,
    -- whether claims have to be looked at for limits and probes
    special boolean,
    -- why no request of these can be sent; NULL: each is looked at
    reason text default null
)
    returns setof pgnet.claimed_request
    language plpgsql volatile parallel unsafe cost 1000 rows 100
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
declare
    -- In other encodings a text may have no form in UTF-8, which workers read; the conversion then
    -- raises an error.
    convertible boolean := current_setting('server_encoding') = 'UTF8';
    -- These are looked up after the requests were chosen: a setting that was changed before a
    -- request was made counts for it.
    usual_timeout integer := pgnet.setting_value('timeout_milliseconds');
    longest_timeout integer := pgnet.max_timeout_milliseconds();
begin
    return query
    select q.id, claim_token::text, c.attempt,
        case when c.attempt = 1 then 0
            else (select count(*) from pgnet.attempt a where a.request_id = c.id and a.ending <> 'answered')::integer end,
        case when q.fault is null then upper(q.method collate "C") else '' end,
        case when q.fault is null then coalesce(h.url, q.url) else '' end,
        case when q.fault is null then q.header_text end,
        case when q.fault is null then q.body end,
        least(coalesce(q.timeout_milliseconds, usual_timeout), longest_timeout),
        case when q.fault is null then q.option_text end,
        case when q.fault is null then q.host else regexp_replace(left(q.host, 253), '[^!-~]', '?', 'g') end,
        q.requested_by::oid,
        (select f.revision from pgnet.configuration f),
        -- Not since it was made: it may have waited for its time, or for other requests.
        case when c.attempt = 1 then 0
            else extract(epoch from clock_timestamp() - (
                select a.started from pgnet.attempt a where a.request_id = c.id order by a.attempt limit 1))::double precision end,
        case when q.fault is not null then null
            when q.options ? 'idempotency_key' then pgnet.idempotency_key(q.id, q.created, q.method, q.options)
            when not pgnet.is_idempotent(q.method)
                then pgnet.derived_idempotency_key((select d.key_namespace from pgnet.database d), q.id, q.created) end,
        -- What the worker is to heed: limited; send_within, in seconds since the claim; probe;
        -- expires_in, in seconds; unsent and unsent_state, of a webhook.
        case when special or h.unsent is not null then (
            select nullif(jsonb_strip_nulls(jsonb_build_object(
                'unsent', h.unsent, 'unsent_state', h.unsent_state,
                'limited', d.limited,
                'send_within', (select b.send_within from pgnet.host_budget b where d.limited and b.host = d.host),
                'probe', d.probe,
                'expires_in', (
                    select case when isfinite(f.not_after) then extract(epoch from f.not_after - clock_timestamp())::double precision
                        when f.not_after < 'infinity' then 0 end
                    from pgnet.flow f where f.request_id = d.id and f.requested_by = q.requested_by))), '{}')::text
            from pgnet.claim d where d.id = q.id) end,
        q.fault
    from unnest(ids, attempts) c (id, attempt)
    cross join lateral (
        select f.*,
            coalesce(reason, case
                when octet_length(f.method) > 255 then 'The method is longer than 255 bytes.'
                when octet_length(f.url) > 1000000 then 'The URL is longer than 1000000 bytes.'
                when octet_length(f.body) > 536870912 then 'The body is larger than 512 MB.'
                when f.headers is not null and f.header_text is null
                    then 'The headers are longer than 2500000 bytes as JSON, nested too deeply, or not UTF-8.'
                when f.options is not null and f.option_text is null
                    then 'The options are longer than 2500000 bytes as JSON, nested too deeply, or not UTF-8.'
                when not f.has_context then 'The context is longer than 16000000 bytes as JSON, nested too deeply, or not UTF-8.'
                when not convertible and convert_to(concat(f.method, f.url, f.header_text, f.option_text, f.context), 'UTF8') is null
                    then '' -- which it never is
                end) as fault
        from (
            select w.*, pgnet.host_of_url(w.url) as host,
                case when reason is not null then null when plain or pgnet.is_plain_json(w.headers) then w.headers::text
                    else pgnet.json_text(w.headers) end as header_text,
                case when reason is not null then null when plain or pgnet.is_plain_json(w.options) then w.options::text
                    else pgnet.json_text(w.options) end as option_text,
                case when reason is null then w.context is null
                    or pg_column_compression(w.context) is null and pg_column_size(w.context) <= 8000
                    or pgnet.json_text(w.context, 16000000) is not null end as has_context
            from net.http_request_queue w
            where w.id = c.id
            offset 0
        ) f
        offset 0
    ) q
    left join lateral (
        select w.* from pgnet.webhook_facts(q.requested_by, q.options) w where q.options ? 'webhook' offset 0
    ) h on true
    -- Of a request that is sent once at most, or alone, the attempt is on disk before the first
    -- byte.
    where not (quarantined_only or q.options -> 'delivery' = '"at_most_once"') is true
        or set_config('synchronous_commit', 'on', true) is not null;
end
$$;
comment on function pgnet.read_claimed(bigint[], integer[], uuid, boolean, boolean, boolean, text) is
    'The requests that a worker has claimed, as it gets them. A row that cannot be a request has a '
    'fault instead, and is not read any further. An error of reading a row is raised.';

-- Claims step over marked requests. 100,000 marks of one role would cost each claim a quarter of a
-- second. So such a role waits until workers have acted on its marks.
create function pgnet.crowded_roles()
    returns oid[]
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if (select m.request_id from pgnet.mark m order by m.requested_by offset 2000 limit 1) is null then
        return '{}';
    end if;
    return (
        with recursive roles (role) as (
            (select m.requested_by from pgnet.mark m order by m.requested_by limit 1)
            union all
            select (select m.requested_by from pgnet.mark m where m.requested_by > r.role order by m.requested_by limit 1)
            from roles r where r.role is not null
        )
        select coalesce(array_agg(r.role::oid), '{}')
        from roles r
        where (
            select count(*) from (
                select m.action, m.retry_at from pgnet.mark m where m.requested_by = r.role limit 10000
            ) m
            where m.action <> 'retry' and m.retry_at is null) > 2000);
end
$$;
comment on function pgnet.crowded_roles() is
    'The roles that have thousands of marks which no worker has acted on yet.';

-- Requests whose time not_before has come. Roles have equal shares, so that a million requests of
-- one role, which fall due at the same moment, keep those of others from nothing. A request that
-- waits for other requests, too, stays held. A row without a request is somebody's mistake, and
-- must not stand in front of others. Rows are changed by their places: another role's row with the
-- same id may be locked by that role.
create function pgnet.wake_held_requests(present timestamptz)
    -- how many rows of pgnet.flow wait for no time any more
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    done bigint;
begin
    with recursive roles (role) as (
        (select f.requested_by from pgnet.flow f where f.not_before is not null order by f.requested_by limit 1)
        union all
        select (
            select f.requested_by from pgnet.flow f
            where f.requested_by > r.role and f.not_before is not null order by f.requested_by limit 1)
        from roles r where r.role is not null
    ), ripe as materialized (
        select o.*
        from roles r
        cross join lateral (
            select f.ctid as place, f.request_id, f.gate, q.id is not null as locked
            from pgnet.flow f
            left join lateral (
                select q.id from net.http_request_queue q
                where q.id = f.request_id and q.requested_by = f.requested_by
                for update of q skip locked
            ) q on true
            left join lateral (
                select true as seen from net.http_request_queue q
                where q.id = f.request_id and q.requested_by = f.requested_by offset 0
            ) v on true
            where f.requested_by = r.role and f.not_before <= present and (q.id is not null or v.seen is null)
            order by f.not_before
            limit greatest(1000 / (select count(r.role) from roles r), 1)
            for update of f skip locked
        ) o
        where r.role is not null
    ), passed as (
        update pgnet.flow f set not_before = null
        where f.ctid = any (array(select r.place from ripe r where r.locked))
    ), orphans as (
        delete from pgnet.flow f
        where f.ctid = any (array(select r.place from ripe r where not r.locked))
    ), released as (
        update net.http_request_queue q set held = false
        where q.id = any (array(select r.request_id from ripe r where r.locked and r.gate is null))
    )
    select count(*) into done from ripe r where (select pgnet.use_owners_path()) is not null;
    return done;
end
$$;
comment on function pgnet.wake_held_requests(timestamptz) is
    'Lets 1,000 requests at most go on whose time not_before has come.';

create function pgnet.wake_due_requests()
    -- seconds until the next one is due; NULL where no request waits for a time
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    present timestamptz := clock_timestamp();
    next_due timestamptz;
    next_start timestamptz;
    next_at timestamptz;
    path text;
begin
    select
        (select q.due from net.http_request_queue q where q.due < 'infinity' and q.origin is null order by q.due limit 1),
        (select f.not_before from pgnet.flow f where f.not_before < 'infinity' order by f.not_before limit 1)
    into next_due, next_start;
    if next_due <= present then
        with woken as (
            update net.http_request_queue q set due = null, waits_since = null
            where q.id = any (array(
                select w.id from net.http_request_queue w where w.due <= present and w.origin is null
                order by w.due limit 1000 for update skip locked))
        )
        select pgnet.use_owners_path() into path;
        perform pgnet.pin_path();
    end if;
    if next_start <= present and pgnet.wake_held_requests(present) = 0 then
        -- Callers have locked all that are due, and wake a worker when they commit.
        next_start := least(present + interval '1 s', (
            select f.not_before from pgnet.flow f where f.not_before > present and f.not_before < 'infinity'
            order by f.not_before limit 1));
    end if;
    next_at := least(next_due, next_start);
    -- There may be more of them.
    return case when next_at is not null then greatest(extract(epoch from next_at - present), 0.02) end;
end
$$;
comment on function pgnet.wake_due_requests() is
    'Makes requests ready whose time has come, 1,000 of each kind at most.';

-- Many of the requests that were lost twice may be innocent: ten of them are attempted together. A
-- request that is lost once more is attempted alone.
create function pgnet.lock_suspects()
    returns bigint[]
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    suspects bigint[];
begin
    with quarantined as (
        select q.id, (select count(*) from pgnet.attempt a where a.request_id = q.id and a.ending = 'lost') > 2 as often
        from net.http_request_queue q
        where q.due >= 'infinity' and q.origin is null
            and not exists (select from pgnet.claim c where c.id = q.id offset 0)
            and not pgnet.is_paused(q.url)
        order by q.due
    )
    select array_agg(t.id) into suspects
    from (
        select q.id from quarantined q
        where q.often = (select bool_and(o.often) from quarantined o)
        order by q.id
        limit case when (select bool_and(o.often) from quarantined o) then 1 else 10 end
    ) t;
    return array(
        select q.id from net.http_request_queue q
        where q.id = any (suspects)
            and not exists (select from pgnet.claim c where c.id = q.id offset 0)
            and not exists (
                select from pgnet.mark m
                where m.requested_by = q.requested_by and m.request_id = q.id and m.action <> 'retry' offset 0)
        for update of q skip locked);
end
$$;
comment on function pgnet.lock_suspects() is
    'The next requests in quarantine that are attempted together, locked: one, or up to ten that '
    'were lost less often.';

-- The function's names are qualified and it has no search_path of its own, so that the planner
-- makes it a part of the query that calls it: that query stops the walk as soon as it has enough
-- rows.
create function pgnet.ready_places(
    -- the walk begins behind this place
    after_host text, after_role oid,
    -- and ends with this one; where wraps is true it goes on at the first host when it has been at
    -- the last
    last_host text, last_role oid, wraps boolean,
    -- how many places at most
    look_at integer
)
    returns table (host text, role oid, number integer)
    language sql stable parallel safe
as $$
    with recursive later (host, role, number) as (
        (select q.host, q.role, 1 from pgnet.ready_request q
         where (q.host, q.role) operator(pg_catalog.>) (after_host, after_role) order by q.host, q.role limit 1)
        union all
        select n.host, n.role, l.number operator(pg_catalog.+) 1
        from later l
        cross join lateral (
            select q.host, q.role from pgnet.ready_request q
            where (q.host, q.role) operator(pg_catalog.>) (l.host, l.role) order by q.host, q.role limit 1
        ) n
        where l.number operator(pg_catalog.<) look_at
            and (wraps or (n.host, n.role) operator(pg_catalog.<=) (last_host, last_role))
    ), earlier (host, role, number) as (
        (select q.host, q.role, 1 operator(pg_catalog.+) (select pg_catalog.count(*)::integer from later) from pgnet.ready_request q
         where wraps and (select pg_catalog.count(*) from later) operator(pg_catalog.<) look_at
             and (q.host, q.role) operator(pg_catalog.<=) (last_host, last_role)
         order by q.host, q.role limit 1)
        union all
        select n.host, n.role, e.number operator(pg_catalog.+) 1
        from earlier e
        cross join lateral (
            select q.host, q.role from pgnet.ready_request q
            where (q.host, q.role) operator(pg_catalog.>) (e.host, e.role)
                and (q.host, q.role) operator(pg_catalog.<=) (last_host, last_role)
            order by q.host, q.role limit 1
        ) n
        where e.number operator(pg_catalog.<) look_at
    )
    select l.host, l.role, l.number from later l
    union all
    select e.host, e.role, e.number from earlier e
$$;
comment on function pgnet.ready_places(text, oid, text, oid, boolean, integer) is
    'Where requests are ready: each host, and each role at it, in turns. pgnet.claim_requests has '
    'set how this is planned.';

create function pgnet.take_requests(
    worker_id bigint, claim_token uuid,
    -- in quarantine and locked: these and no others; NULL: those whose turn it is
    suspects bigint[],
    slots integer, quota integer, full_hosts text[], crowded oid[], max_bytes bigint,
    -- as for pgnet.claim_requests
    rooms jsonb,
    -- whether limits of hosts are configured
    has_limits boolean,
    -- as for pgnet.ready_places
    after_host text, after_role oid, last_host text, last_role oid, wraps boolean, look_at integer,
    out ids bigint[], out attempts integer[],
    -- whether pgnet.is_plain_json is true of headers and options of all
    out plain boolean,
    -- whether pgnet.account_claims is to be called: limits, probes or rows of pgnet.flow are among
    -- them
    out special boolean,
    -- hosts that were passed over since their limit leaves no room
    out denied text[],
    -- whether there is more, and the place to go on behind
    out more boolean, out host text, out role oid
)
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    present timestamptz := clock_timestamp();
    other_room integer := rooms ->> '*';
begin
    with places as materialized (
        select p.* from pgnet.ready_places(after_host, after_role, last_host, last_role, wraps, look_at) p where suspects is null
    ), open_places as materialized (
        select p.host, p.role, s.needs_probe, h.room as host_room,
            case when h.room > 0 then (select count(*) from pgnet.claim c where c.host = p.host and c.limited and c.role = p.role) end as ahead,
            greatest(0, least(quota, h.room,
                case when s.needs_probe then pgnet.probe_room(p.host, p.role) end,
                coalesce((rooms ->> concat(p.role, ' ', p.host))::integer, other_room))) as room
        from places p
        -- Asked once for all places: mostly the tables are empty.
        left join lateral (
            select s.closed_until, s.needs_probe from pgnet.host_state s
            where (select exists (select from pgnet.host_state)) and s.host = p.host and s.role = p.role offset 0
        ) s on true
        cross join lateral (select case when has_limits then pgnet.host_room(p.host) end as room offset 0) h
        where p.host <> all (full_hosts) and p.role <> all (crowded)
            and (s.closed_until > present) is not true
            -- As in pgnet.pause_of.
            and ((select not exists (select from pgnet.pause)) or not exists (
                select from pgnet.pause t where t.host in ('*', p.host, regexp_replace(p.host, ':[0-9]+$', '')) offset 0))
    ), ready as materialized (
        select r.*, row_number() over () as place, p.needs_probe, p.host_room, p.ahead
        from open_places p
        cross join lateral (
            select o.*, row_number() over () as turn
            from (
                select q.id, q.host, q.role, q.timeout_milliseconds, q.size, q.plain_size, q.odd_size, f.ordering_key,
                    f.unique_key is not null or f.not_after is not null as special
                from pgnet.ready_request q
                -- Few requests have a row there. A caller that has locked it is about to change the
                -- request.
                left join lateral (
                    select f.request_id, case when f.opened is not null then f.ordering_key end as ordering_key, f.unique_key, f.not_after
                    from pgnet.flow f
                    where q.held is not null and f.request_id = q.id and f.requested_by = q.requested_by
                    for update of f skip locked
                ) f on true
                where q.host = p.host and q.role = p.role
                    and not exists (select from pgnet.claim c where c.id = q.id offset 0)
                    -- Asked once for all rows: mostly there is no mark at all.
                    and ((select not exists (select from pgnet.mark)) or not exists (
                        select from pgnet.mark m
                        where m.requested_by = q.requested_by and m.request_id = q.id and m.action <> 'retry' offset 0))
                    and (q.held is null or f.request_id is not null or not exists (
                        select from pgnet.flow v where v.request_id = q.id and v.requested_by = q.requested_by offset 0))
                order by q.priority, q.id
                limit p.room
                for update of q skip locked
            ) o
        ) r
        limit slots
    ), either as (
        select r.id, r.host, r.role, r.timeout_milliseconds, r.size + coalesce(r.odd_size, r.plain_size) as size,
            r.odd_size is null as plain, r.place, r.turn, r.special, r.ordering_key, nullif(r.needs_probe, false) as probe, r.host_room, r.ahead
        from ready r
        union all
        select q.id, pgnet.host_of_url(q.url) collate "C", q.requested_by::oid, q.timeout_milliseconds, 0, false, 1, 1,
            q.held is not null, f.ordering_key, null,
            case when has_limits then pgnet.host_room(pgnet.host_of_url(q.url)) end, null
        from net.http_request_queue q
        left join lateral (
            select case when f.opened is not null then f.ordering_key end as ordering_key
            from pgnet.flow f
            where q.held is not null and f.request_id = q.id and f.requested_by = q.requested_by offset 0
        ) f on true
        where q.id = any (suspects)
    ), bounded as (
        select e.*,
            sum(e.size) over (order by e.place rows between unbounded preceding and 1 preceding) as size_before,
            -- The roles of one host share what it may have: a request of each in turn. Where there
            -- is a limit, those that a role has in flight count as its turns.
            row_number() over (partition by e.host order by e.turn + coalesce(e.ahead, 0), random()) as number
        from either e
    ), chosen as (
        select b.* from bounded b
        where (suspects is not null or coalesce(b.size_before, 0) < max_bytes and b.number <= quota)
            and (b.number > b.host_room) is not true
    ), claimed as (
        insert into pgnet.claim as c (id, host, worker, token, attempt, deadline, role, ordering_key, limited, probe)
        select b.id, b.host, worker_id, claim_token,
            1 + (select count(*) from pgnet.attempt a where a.request_id = b.id),
            clock_timestamp() + make_interval(secs => greatest(0, least(
                coalesce(b.timeout_milliseconds, (select pgnet.setting_value('timeout_milliseconds')::integer)),
                (select pgnet.max_timeout_milliseconds()))) / 1000.0 + 60),
            b.role, b.ordering_key, case when b.host_room is not null then true end, b.probe
        from chosen b
        order by b.place
        -- Another worker has it, or another one of its key.
        on conflict do nothing
        returning c.id, c.attempt
    ), stopped as (
        -- Where the walk ended before it had been everywhere.
        select p.host, p.role from places p
        where (select count(*) from ready) < slots and p.number >= look_at and (p.host, p.role) <> (last_host collate "C", last_role)
        limit 1
    ), behind as (
        select s.host, s.role, 1 as rank from stopped s
        union all
        (select b.host, b.role, 2 from chosen b order by b.place desc limit 1)
    )
    select array_agg(c.id) filter (where c.id is not null), array_agg(c.attempt) filter (where c.id is not null), max(x.plain::integer)::boolean, max(x.special::integer)::boolean,
        case when has_limits and (select count(*) from ready) < slots
            then (select array_agg(p.host) from open_places p where p.host_room = 0) end,
        exists (select from stopped)
            or (select count(*) from bounded b where (b.number > b.host_room) is not true) > (select count(*) from chosen),
        (select b.host from behind b order by b.rank limit 1),
        (select b.role from behind b order by b.rank limit 1)
    into ids, attempts, plain, special, denied, more, host, role
    from (
        select bool_and(b.plain) as plain,
            -- A key, or a callback, is nothing to account for.
            bool_or(b.special or b.host_room is not null or b.probe) as special
        from chosen b
    ) x
    left join claimed c on true;
end
$$;
comment on function pgnet.take_requests(bigint, uuid, bigint[], integer, integer, text[], oid[], bigint, jsonb, boolean, text, oid, text, oid, boolean, integer) is
    'Chooses requests and makes the rows of pgnet.claim: one statement, so that a row is locked, '
    'judged and claimed in one snapshot. pgnet.claim_requests has set how it is planned.';

create function pgnet.account_claims(ids bigint[])
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
begin
    perform pgnet.spend_tokens(ids);
    perform pgnet.begin_probes(ids);
    -- From now on a request with the same key is a new one. The claim has locked these rows, and no
    -- other role's rows with the same ids.
    update pgnet.flow f set unique_key = null
    where f.request_id = any (ids) and f.unique_key is not null
        and f.requested_by = (select c.role from pgnet.claim c where c.id = f.request_id offset 0);
end
$$;
comment on function pgnet.account_claims(bigint[]) is
    'What follows from claims: tokens are spent, probes have begun, unique keys are free again.';

create function pgnet.read_each_claimed(
    -- as for pgnet.read_claimed
    ids bigint[], attempts integer[], claim_token uuid, quarantined_only boolean, plain boolean, special boolean
)
    returns setof pgnet.claimed_request
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    for at in 1 .. cardinality(ids) loop
        begin
            return query
            select * from pgnet.read_claimed(ids[at:at], attempts[at:at], claim_token, quarantined_only, plain, special);
        exception when others then
            if sqlstate ~ '^(40|53|55|57|58|25006)' then
                raise; -- not the row's fault: the worker claims again
            end if;
            return query
            select * from pgnet.read_claimed(
                ids[at:at], attempts[at:at], claim_token, quarantined_only, false, special, 'The request cannot be read: ' || sqlerrm || '.');
        end;
    end loop;
end
$$;
comment on function pgnet.read_each_claimed(bigint[], integer[], uuid, boolean, boolean, boolean) is
    'pgnet.read_claimed row by row, after one of them could not be read: that one comes with its '
    'fault.';

create function pgnet.claim_requests(
    -- the worker that claims
    worker_id bigint,
    -- how many requests at most
    slots integer,
    -- how many of them for one host where several wait, and where only one does
    host_quota integer,
    single_host_quota integer,
    -- hosts whose requests are not taken: the worker is full of them
    full_hosts text[],
    -- how many bytes of requests at most; one request always fits
    max_bytes bigint,
    -- hosts take turns, and roles at each of them: the walk starts behind this one
    after_host text,
    -- those that were lost with workers, and no others: one, or a few that were lost less often
    quarantined_only boolean default false,
    -- the role at after_host; by default the walk starts behind all of them
    after_role oid default 4294967295,
    -- the walk ends with this role at this host; NULL: where it began, when it has been at every
    -- host
    until_host text default null,
    until_role oid default 0,
    -- at how many roles of hosts it looks at most
    look_at integer default 1000,
    -- how many requests at most for some places, by "ROLE_OID HOST", and "*" for others; NULL: as
    -- many as the quota
    rooms jsonb default null
)
    -- A last row has no id. Its host and role, where it has any, say that there is more than was
    -- looked at, and to go on behind them. Its flow says look_in: after how many seconds something
    -- falls due; and expires_in: after how many seconds something expires.
    returns setof pgnet.claimed_request
    language plpgsql volatile parallel unsafe security definer cost 1000 rows 100
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_mergejoin = off
    set enable_material = off
    set plan_cache_mode = force_generic_plan
    set jit = off
    set lock_timeout = '500ms'
as $$
declare
    claim_token uuid := gen_random_uuid();
    quota integer;
    -- The end of the walk lies behind the last host: it goes on at the first one.
    wraps boolean := until_host is null
        or (until_host collate "C", until_role) <= (after_host collate "C", after_role);
    last_host text := coalesce(until_host, after_host);
    last_role oid := case when until_host is null then after_role else until_role end;
    look_in double precision;
    has_limits boolean;
    next_end timestamptz;
    taken record;
begin
    perform pgnet.lock_tables(worker_id);
    look_in := least(pgnet.wake_due_requests(), pgnet.open_gates(), pgnet.next_opening());
    quota := case
        when (select q.host from pgnet.ready_request q order by q.host limit 1)
            = (select q.host from pgnet.ready_request q order by q.host desc limit 1) then single_host_quota
        else host_quota end;
    has_limits := (select true from pgnet.host h where h.settings ?| '{concurrency,rate}' limit 1) is not null;
    select * into taken
    from pgnet.take_requests(worker_id, claim_token, case when quarantined_only then pgnet.lock_suspects() end,
        slots, quota, full_hosts, pgnet.crowded_roles(), max_bytes, rooms, has_limits, after_host, after_role, last_host, last_role, wraps, look_at);
    if taken.ids is not null then
        if taken.special then
            perform pgnet.account_claims(taken.ids);
        end if;
        begin
            return query
            select * from pgnet.read_claimed(taken.ids, taken.attempts, claim_token, quarantined_only, taken.plain, taken.special);
        exception when others then
            if sqlstate ~ '^(40|53|55|57|58|25006)' then
                raise; -- not a row's fault: the worker claims again
            end if;
            return query
            select * from pgnet.read_each_claimed(taken.ids, taken.attempts, claim_token, quarantined_only, taken.plain, taken.special);
        end;
    end if;
    if taken.denied is not null then
        look_in := least(look_in, pgnet.room_in(taken.denied));
    end if;
    if coalesce(cardinality(taken.ids), 0) < slots then
        -- Where the worker has nothing else to do, it is to end in time what nobody may send.
        next_end := (select f.not_after from pgnet.flow f where f.not_after < 'infinity' order by f.not_after limit 1);
    end if;
    if taken.more or look_in is not null or next_end is not null then
        return query
        select null::bigint, null, null::integer, null::integer, null, null, null, null::bytea, null::integer, null,
            case when taken.more then taken.host::text end, taken.role::oid, null::bigint, null::double precision, null,
            jsonb_build_object('look_in', look_in, 'expires_in',
                extract(epoch from greatest(next_end, now() - interval '1 s') - clock_timestamp()))::text, null;
    end if;
end
$$;
comment on function pgnet.claim_requests(bigint, integer, integer, integer, text[], bigint, text, boolean, oid, text, oid, integer, jsonb) is
    'Takes ready requests for a worker, host by host and role by role in turns, and never one that '
    'another transaction holds. Where one of them is at_most_once, the transaction commits to '
    'disk. A row that cannot be a request comes with its fault alone.';

-- ======== extension/54_record.sql ========

-- Recording: outcomes become rows, fenced by the tokens of the claims.

create function pgnet.ascii_excerpt(given text, at_most integer)
    returns text
    language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$ select regexp_replace(left(given, at_most), '[^ -~]', '?', 'g') $$;
comment on function pgnet.ascii_excerpt(text, integer) is
    'The beginning of a text, in ASCII: what everyone can read, whatever it is.';

-- A row that its role has locked stays: a worker that meets it later removes it.
create function pgnet.remove_flow(ids bigint[])
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_mergejoin = off
    set enable_material = off
    set enable_hashjoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
begin
    with removed as (
        delete from pgnet.flow f
        where f.ctid = any (array(
            select r.place
            from unnest(ids) i (id)
            cross join lateral (
                select f.ctid as place from pgnet.flow f
                where f.request_id = i.id
                    and not exists (
                        select from net.http_request_queue q where q.id = f.request_id and q.requested_by = f.requested_by offset 0)
                for update of f skip locked
            ) r))
        returning f.request_id, f.requested_by, f.ordering_key, f.gate
    )
    insert into pgnet.ended_request (request_id, requested_by, ordering_key, state, blocks, status_code, error_msg)
    select r.request_id, r.requested_by, r.ordering_key, a.state,
        coalesce(a.state in ('failed', 'unknown') and s.skips is not true, false), a.status_code, a.error_msg
    from removed r
    left join lateral (
        select a.state, a.status_code, a.error_msg from net._http_response a
        where a.id = r.request_id and a.requested_by = r.requested_by offset 0
    ) a on true
    left join lateral (
        select s.options -> 'on_failure' = '"skip"' as skips from pgnet.failed s
        where s.id = r.request_id and s.requested_by = r.requested_by offset 0
    ) s on true
    where r.ordering_key is not null;
    if found then
        perform pgnet.arm_wake_up('wake');
    end if;
end
$$;
comment on function pgnet.remove_flow(bigint[]) is
    'Removes what pgnet.flow says of requests that have ended, and hints that the next ones of their '
    'keys may go.';

-- Records outcomes for those claims that still carry their token. Gives the ids that somebody else
-- holds a lock on.
create function pgnet.store_outcomes(outcomes json, size integer)
    returns bigint[]
    language plpgsql volatile parallel unsafe cost 1000
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_mergejoin = off
    set enable_material = off
    set enable_hashjoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
declare
    done bigint;
    flowing bigint[];
    webhooks bigint[];
    ended bigint[];
    awaited boolean;
    notifies boolean;
    deferred bigint[] := '{}';
begin
    with held as materialized (
        select r.*, c.attempt, q.id is not null as locked, v.seen,
            q.method, q.url, q.headers as request_headers, q.body, q.timeout_milliseconds, q.requested_by,
            q.created as requested, q.priority, q.context, q.options, q.retry_of, c.claimed,
            q.held is not null or c.ordering_key is not null as has_flow
        from json_to_recordset(outcomes) as r (
            id bigint, token uuid, state net.request_state, status_code integer, content_type text, headers jsonb,
            content text, text_base64 text, content_base64 text, timed_out boolean, error_msg text,
            header_list jsonb, final_url text, redirects integer, http_version text, address inet,
            name_ms real, connect_ms real, tls_ms real, first_byte_ms real, total_ms real,
            retry_in double precision, unreadable boolean, uncounted boolean, notify boolean
        )
        cross join lateral (
            select c.attempt, c.claimed, c.ordering_key from pgnet.claim c where c.id = r.id and c.token = r.token for update of c skip locked
        ) c
        left join lateral (
            select q.* from net.http_request_queue q where q.id = r.id for update of q skip locked
        ) q on true
        left join lateral (
            select true as seen from net.http_request_queue q where q.id = r.id offset 0
        ) v on true
    ), dequeued as (
        delete from net.http_request_queue q where q.id = any (array(select h.id from held h where h.locked and h.state <> 'retrying'))
    ), pauses as (
        select jsonb_object_agg(h.id, h.retry_in) as delays from held h where h.locked and h.state = 'retrying'
    ), put_back as (
        update net.http_request_queue q
        set due = clock_timestamp() + make_interval(secs => ((select p.delays from pauses p) ->> q.id::text)::double precision),
            waits_since = clock_timestamp()
        where q.id = any (array(select h.id from held h where h.locked and h.state = 'retrying'))
    ), unclaimed as (
        delete from pgnet.claim c where c.id = any (array(select h.id from held h where h.locked or h.seen is null))
    ), attempted as (
        insert into pgnet.attempt (
            request_id, attempt, requested_by, ending, started, ended, status_code, timed_out, error_msg, retry_in
        )
        select h.id,
            -- A claim counts in its own snapshot: one that was returned meanwhile may have had the
            -- same number.
            greatest(h.attempt, 1 + (select max(a.attempt) from pgnet.attempt a where a.request_id = h.id)),
            h.requested_by, case when h.uncounted then 'probe' else 'answered' end, h.claimed, clock_timestamp(), h.status_code, h.timed_out, h.error_msg,
            make_interval(secs => h.retry_in)
        from held h
        where h.locked and h.state = 'retrying'
        on conflict do nothing
    ), failed as (
        insert into pgnet.failed (
            id, method, url, headers, body, timeout_milliseconds, requested_by, created, priority, context, options,
            retry_of, state, attempts, status_code, error_msg, idempotency_key
        )
        select h.id, h.method, h.url, h.request_headers, h.body, h.timeout_milliseconds, h.requested_by, h.requested,
            h.priority, h.context, h.options, h.retry_of, h.state, h.attempt, h.status_code, h.error_msg,
            pgnet.idempotency_key(h.id, h.requested, h.method, h.options)
        from held h
        -- A row that cannot be a request is not kept to be sent again.
        where h.locked and h.state in ('failed', 'unknown', 'cancelled') and h.unreadable is not true
    ), recorded as (
        insert into net._http_response (
            id, status_code, content_type, headers, content, timed_out, error_msg, state, content_bytes, attempts,
            context, method, url, requested_by, requested, header_list, final_url, redirects, http_version, address,
            name_ms, connect_ms, tls_ms, first_byte_ms, total_ms, retry_of
        )
        select h.id, h.status_code, h.content_type, h.headers,
            coalesce(h.content, convert_from(decode(h.text_base64, 'base64'), 'UTF8')), h.timed_out, h.error_msg, h.state,
            -- What expired was claimed, and not attempted.
            decode(h.content_base64, 'base64'), h.attempt - case when h.state = 'expired' then 1 else 0 end,
            case when h.unreadable and pgnet.json_text(h.context, 16000000) is null then null else h.context end,
            case when h.unreadable then pgnet.ascii_excerpt(h.method, 255) else h.method end,
            case when h.unreadable then pgnet.ascii_excerpt(h.url, 1000) else h.url end, h.requested_by, h.requested,
            h.header_list, h.final_url, h.redirects, h.http_version, h.address,
            h.name_ms, h.connect_ms, h.tls_ms, h.first_byte_ms, h.total_ms, h.retry_of
        from held h
        where h.locked and h.state <> 'retrying'
    )
    -- Known before the first row is changed: PostgreSQL runs this part before those that change
    -- rows.
    select count(*), array_agg(h.id) filter (where h.has_flow and h.state <> 'retrying'),
        array_agg(h.id) filter (where h.locked and h.state <> 'retrying' and h.options ? 'webhook'),
        array_agg(h.id) filter (where h.state <> 'retrying'), bool_or(h.notify),
        -- Where nobody waits, this directory is not there (server/waiters.py).
        (pg_stat_file('pg_stat_tmp/pgnet.waiting', true)).isdir
    into done, flowing, webhooks, ended, notifies, awaited
    from held h
    where (select pgnet.use_owners_path()) is not null and (h.locked or h.seen is null);
    set constraints all immediate; -- what is deferred would fail at the commit, for all of the batch
    perform pgnet.pin_path();
    if awaited or notifies then
        perform pgnet.tell_of_ends(ended);
    end if;
    if flowing is not null then
        perform pgnet.remove_flow(flowing);
    end if;
    if webhooks is not null then
        perform pgnet.count_deliveries(webhooks);
    end if;
    if (select d.after_id from pgnet.dependency d order by d.after_id limit 1) is not null then
        perform pgnet.note_dependants(array(select r.id from json_to_recordset(outcomes) as r (id bigint)));
    end if;
    if done < size then
        -- The claim is still there, with its token: another session holds a lock on it, or on its
        -- request.
        select coalesce(array_agg(r.id), '{}') into deferred
        from json_to_recordset(outcomes) as r (id bigint, token uuid)
        where exists (select from pgnet.claim c where c.id = r.id and c.token = r.token offset 0);
    end if;
    return deferred;
end
$$;
comment on function pgnet.store_outcomes(json, integer) is
    'One batch of pgnet.record_outcomes: ends the requests whose claim still carries the token, or '
    'has them wait for another attempt; gives the ids of outcomes that are deferred, since another '
    'session holds a lock on the row.';

create function pgnet.record_outcomes(
    -- an array of objects: id, token, state, and the columns of net._http_response that the outcome
    -- gives, content_bytes as content_base64, or content as text_base64; the state retrying, with
    -- retry_in in seconds, does not end the request, which waits for another attempt. put_aside:
    -- the outcome comes for the second time, and is kept in pgnet.unrecorded where it cannot be
    -- recorded now. notify: the worker knows that the setting notify_outcomes is on
    outcomes json
)
    -- the ids that could not be recorded yet, because another transaction holds their row
    returns bigint[]
    language plpgsql volatile parallel unsafe security definer cost 10000
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '500ms'
as $$
begin
    perform pgnet.lock_tables();
    return pgnet.store_or_halve(outcomes);
end
$$;
comment on function pgnet.record_outcomes(json) is
    'Records outcomes, fenced by the tokens of their claims. A batch that fails is halved down to '
    'the row at fault, which is recorded without content, with its status and a word about the '
    'fault, or where that fails too kept in pgnet.unrecorded. Gives the ids of outcomes that are '
    'deferred by a lock: the worker records them later.';

create function pgnet.store_or_halve(outcomes json)
    -- as pgnet.record_outcomes
    returns bigint[]
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    size integer := json_array_length(outcomes);
    outcome json := outcomes -> 0;
    again boolean;
    deferred bigint[];
    caught pgnet.error;
begin
    begin
        deferred := pgnet.store_outcomes(outcomes, size);
    exception when others then
        get stacked diagnostics caught.message = message_text, caught.state = returned_sqlstate,
            caught.referrer_schema = schema_name, caught.referrer = table_name, caught.constraint_name = constraint_name;
    end;
    if caught.message is null then
        if deferred <> '{}' then
            select coalesce(array_agg(d.id), '{}') into deferred
            from unnest(deferred) d (id)
            join json_array_elements(outcomes) o on (o.value ->> 'id')::bigint = d.id
            where (o.value ->> 'put_aside')::boolean is not true or not pgnet.put_aside(o.value, null, null);
        end if;
        return deferred;
    end if;
    again := size = 1 and (outcome ->> 'put_aside')::boolean;
    -- Where there is no memory for a large outcome, the outcome is at fault.
    if caught.state ~ '^(40|53|57|58|25006)' and (caught.state <> '53200' or octet_length(outcomes::text) < 1000000) then
        -- No row seems to be at fault: the worker keeps its outcomes and tries again, with fewer.
        if again is true and pgnet.put_aside(outcome, caught.message, pgnet.remedy(caught)) then
            return '{}';
        end if;
        raise exception using errcode = caught.state, message = caught.message;
    end if;
    if caught.state = '55P03' then
        -- A trigger or a foreign key waits for a lock of another session. It does not wait so long
        -- for each of the parts.
        perform set_config('lock_timeout', '20ms', true);
    end if;
    if size > 1 then
        return pgnet.store_or_halve(pgnet.json_slice(outcomes, 1, size / 2))
            || pgnet.store_or_halve(pgnet.json_slice(outcomes, size / 2 + 1, size));
    elsif caught.state = '55P03' then
        return case when again and pgnet.put_aside(outcome, null, null) then '{}' else array[(outcome ->> 'id')::bigint] end;
    end if;
    return pgnet.store_without_content(outcome, caught.message);
end
$$;
comment on function pgnet.store_or_halve(json) is
    'pgnet.store_outcomes; a batch that fails is halved down to the row at fault, which is '
    'recorded without its content or put aside.';

create function pgnet.store_without_content(
    outcome json,
    -- why it cannot be recorded as it is
    reason text
)
    -- as pgnet.record_outcomes
    returns bigint[]
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    bare jsonb := jsonb_build_object(
        'id', outcome -> 'id', 'token', outcome -> 'token', 'state', 'failed', 'timed_out', false,
        'error_msg', 'The response could not be recorded: ' || reason);
    caught pgnet.error;
begin
    begin
        -- A status that came is not lost: it says that the request was received.
        return pgnet.store_outcomes(json_build_array(bare || jsonb_build_object(
            'state', case when outcome ->> 'state' = 'retrying' then 'failed' else outcome ->> 'state' end,
            'status_code', outcome -> 'status_code', 'timed_out', outcome -> 'timed_out')), 1);
    exception when others then
        null; -- it may be the status that is refused
    end;
    begin
        return pgnet.store_outcomes(json_build_array(bare), 1);
    exception when others then
        get stacked diagnostics caught.message = message_text, caught.state = returned_sqlstate,
            caught.referrer_schema = schema_name, caught.referrer = table_name, caught.constraint_name = constraint_name;
    end;
    if pgnet.put_aside(outcome, caught.message, pgnet.remedy(caught)) then
        return '{}';
    end if;
    return array[(outcome ->> 'id')::bigint];
end
$$;
comment on function pgnet.store_without_content(json, text) is
    'Records an outcome that is refused: without content, with its status where that can be; else '
    'it is put aside.';

create function pgnet.json_slice(elements json, first integer, last integer)
    returns json
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select json_agg(e.value order by e.ordinality)
    from json_array_elements(elements) with ordinality e
    where e.ordinality between first and last
$$;
comment on function pgnet.json_slice(json, integer, integer) is
    'The elements of an array from first to last, counted from 1.';

-- The claim stays, and belongs to no worker: so no worker attempts the request again.
create function pgnet.put_aside(outcome json, message text, hint text)
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    claimed record;
begin
    select c.id, c.token into claimed
    from pgnet.claim c
    where c.id = (outcome ->> 'id')::bigint and c.token = (outcome ->> 'token')::uuid
    for update skip locked;
    if not found then
        -- The claim is gone, or another session holds a lock on it, too.
        return not exists (
            select from pgnet.claim c where c.id = (outcome ->> 'id')::bigint and c.token = (outcome ->> 'token')::uuid);
    end if;
    -- The attempt has ended: it does not count for the limits of its host.
    update pgnet.claim c set worker = null, limited = null where c.id = claimed.id;
    insert into pgnet.unrecorded as u (id, token, outcome, message, hint)
    values (claimed.id, claimed.token, outcome, message, hint)
    on conflict on constraint unrecorded_pkey do update
    set token = excluded.token, outcome = excluded.outcome, since = excluded.since, retry_at = excluded.retry_at,
        message = excluded.message, hint = excluded.hint;
    return true;
exception when others then
    return false;
end
$$;
comment on function pgnet.put_aside(json, text, text) is
    'Keeps an outcome in pgnet.unrecorded; false where that cannot be: the worker keeps it.';

create function pgnet.record_put_aside()
    -- seconds until more is to be tried; NULL where nothing waits
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
    set lock_timeout = '20ms'
as $$
declare
    present timestamptz := clock_timestamp();
    request_id bigint;
    waiting record;
    caught pgnet.error;
begin
    lock table net.http_request_queue, pgnet.claim, pgnet.attempt, net._http_response, pgnet.failed, pgnet.unrecorded,
        pgnet.flow, pgnet.ended_request, pgnet.dependency, pgnet.callback, pgnet.callback_order in row exclusive mode nowait;
    -- Outcomes are read one by one: any of them may be 10 MB.
    foreach request_id in array array(
        select u.id from pgnet.unrecorded u where u.retry_at <= present order by u.retry_at limit 100)
    loop
        -- The worker's other work waits.
        exit when clock_timestamp() > present + interval '1 s';
        select u.id, u.since into waiting from pgnet.unrecorded u where u.id = request_id for update skip locked;
        continue when not found;
        caught := null;
        begin
            if exists (select from net.http_request_queue q where q.id = request_id) then
                -- The request is locked first: without the lock there is no use in reading the
                -- outcome.
                perform from net.http_request_queue q where q.id = request_id for update skip locked;
                if not found then
                    raise exception using errcode = 'PN000';
                end if;
            end if;
            select u.* into waiting from pgnet.unrecorded u where u.id = request_id;
            if pgnet.store_outcomes(json_build_array(waiting.outcome), 1) = '{}' then
                delete from pgnet.unrecorded u where u.id = request_id;
                continue;
            end if;
        exception when sqlstate 'PN000' then
            null; -- another session holds a lock on it
        when others then
            get stacked diagnostics caught.message = message_text, caught.state = returned_sqlstate,
                caught.referrer_schema = schema_name, caught.referrer = table_name, caught.constraint_name = constraint_name;
        end;
        update pgnet.unrecorded u
        set message = caught.message, hint = case when caught.message is not null then pgnet.remedy(caught) end,
            -- The outcome is tried again after half the time that it has waited, and after half a
            -- minute at most.
            retry_at = clock_timestamp() + least(greatest((clock_timestamp() - u.since) / 2, interval '0.1 s'), interval '30 s')
        where u.id = request_id;
    end loop;
    return (
        select case when min(u.retry_at) is not null then greatest(extract(epoch from min(u.retry_at) - clock_timestamp()), 0.1) end
        from pgnet.unrecorded u);
end
$$;
comment on function pgnet.record_put_aside() is
    'Records what pgnet.unrecorded keeps, as far as that can be done now. Gives the seconds until '
    'more is to be tried.';

-- ======== extension/55_marks.sql ========

-- Marks: a worker does what net.cancel, net.forget and net.retry have asked for. A cancelled
-- request ends as cancelled, a forgotten one leaves nothing, and one that was sent again is no
-- longer a failure. It happens in a worker's session: the caller has only inserted a row.

-- The message in the response of a cancelled request.
create function pgnet.cancellation_message(in_flight boolean, attempts integer)
    returns text language sql immutable parallel safe
as $$
    select case when in_flight then 'The request was cancelled while it was in flight: it may have been received.'
        when attempts operator(pg_catalog.>) 0 then 'The request was cancelled before another attempt.'
        else 'The request was cancelled before it was sent.' end
$$;
comment on function pgnet.cancellation_message(boolean, integer) is
    'The error message of a cancelled request.';

-- The caller has locked the marks, so their places stay as they are. All rows are looked up one by
-- one: the planner may make a join into a scan of the whole table, where the statistics say that
-- the table is empty. A row that another transaction has locked is passed over, and its mark stays
-- for the next heartbeat. A mark with the id of another role's request finds nothing, since each
-- look-up asks for both the id and the role. This is one statement, so that a request is judged and
-- changed in one snapshot.
create function pgnet.carry_out_marks(marks pgnet.mark[])
    -- how many requests in flight were taken from their workers
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_mergejoin = off
    set enable_material = off
    set enable_hashjoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
declare
    taken bigint;
    flowing bigint[];
    cancelled bigint[];
begin
    with marked as materialized (
        select m.request_id, m.requested_by, m.action, k.place, q.id is not null as locked, q.method, q.url, q.created, q.context, q.retry_of,
            c.attempt as in_flight, c.limited or c.ordering_key is not null as stays, c.worker, c.progress,
            q.held is not null as has_flow,
            (select count(*)::integer from pgnet.attempt a where a.request_id = q.id) as attempts,
            r.id as response_id, f.id as failed_id,
            -- A row that is seen and could not be locked is another session's at this moment.
            (v.seen and q.id is null) is not true and (d.seen and c.attempt is null) is not true
                and (s.seen and r.id is null) is not true and (g.seen and f.id is null) is not true as free
        from unnest(marks) m
        cross join lateral (
            select k.ctid as place from pgnet.mark k
            where k.requested_by = m.requested_by and k.request_id = m.request_id and k.action = m.action offset 0
        ) k
        left join lateral (
            select q.* from net.http_request_queue q
            where q.id = m.request_id and q.requested_by = m.requested_by and m.action <> 'retry'
            for update of q skip locked
        ) q on true
        left join lateral (
            select true as seen from net.http_request_queue q
            where q.id = m.request_id and q.requested_by = m.requested_by and m.action <> 'retry' offset 0
        ) v on true
        left join lateral (
            select c.attempt, c.limited, c.ordering_key, c.worker, c.progress from pgnet.claim c where c.id = q.id for update of c skip locked
        ) c on true
        left join lateral (
            select true as seen from pgnet.claim c where c.id = q.id offset 0
        ) d on true
        left join lateral (
            select r.id from net._http_response r
            where r.id = m.request_id and r.requested_by = m.requested_by and m.action = 'forget'
            for update of r skip locked
        ) r on true
        left join lateral (
            select true as seen from net._http_response r
            where r.id = m.request_id and r.requested_by = m.requested_by and m.action = 'forget' offset 0
        ) s on true
        left join lateral (
            select f.id from pgnet.failed f
            where f.id = m.request_id and f.requested_by = m.requested_by and m.action <> 'cancel'
            for update of f skip locked
        ) f on true
        left join lateral (
            select true as seen from pgnet.failed f
            where f.id = m.request_id and f.requested_by = m.requested_by and m.action <> 'cancel' offset 0
        ) g on true
    ), dequeued as (
        delete from net.http_request_queue q
        where q.id = any (array(select m.request_id from marked m where m.free and m.locked))
    ), unclaimed as (
        -- Where the host has a limit, or the request a key, the claim counts until the worker has
        -- closed the connection: then it does not name the request any more, and
        -- pgnet.renew_claims deletes it.
        delete from pgnet.claim c
        where c.id = any (array(
            select m.request_id from marked m where m.free and m.in_flight is not null and m.stays is not true))
    ), recorded as (
        insert into net._http_response (
            id, state, timed_out, error_msg, attempts, context, method, url, requested_by, requested, retry_of
        )
        select m.request_id, 'cancelled', false,
            case when m.in_flight is not null and m.worker is null
                then 'The request was cancelled after it had ended: its outcome could not be recorded.'
                else pgnet.cancellation_message(m.in_flight is not null, m.attempts)
                    || coalesce(' Its worker said last: ' || m.progress || '.', '') end,
            coalesce(m.in_flight, m.attempts), m.context, m.method, m.url, m.requested_by, m.created, m.retry_of
        from marked m
        where m.free and m.locked and m.action = 'cancel'
            and not exists (
                select from pgnet.mark f
                where f.requested_by = m.requested_by and f.request_id = m.request_id and f.action = 'forget' offset 0)
    ), forgotten as (
        delete from net._http_response r
        where r.id = any (array(select m.response_id from marked m where m.free and m.response_id is not null))
    ), failures as (
        delete from pgnet.failed f
        where f.id = any (array(select m.failed_id from marked m where m.free and m.failed_id is not null))
    ), attempts as (
        delete from pgnet.attempt a
        where a.request_id = any (array(
            select m.request_id from marked m
            where m.free and m.action = 'forget' and (m.locked or m.response_id is not null or m.failed_id is not null)))
    ), callbacks as (
        -- One that runs at this moment is locked: what it does was asked for before.
        delete from pgnet.callback b
        where b.ctid = any (array(
            select b.place
            from marked m
            cross join lateral (
                select b.ctid as place from pgnet.callback b
                where b.request_id = m.request_id and b.requested_by = m.requested_by for update of b skip locked
            ) b
            where m.free and m.action = 'forget'))
    ), stubbed as (
        delete from pgnet.stubbed s
        where s.request_id = any (array(
            select m.request_id from marked m
            where m.free and m.action = 'forget' and (m.locked or m.response_id is not null or m.failed_id is not null)))
    ), unmarked as (
        delete from pgnet.mark k
        where k.ctid = any (array(select m.place from marked m where m.free and m.action <> 'retry'))
    ), kept as (
        update pgnet.mark k set done = true
        where k.ctid = any (array(select m.place from marked m where m.free and m.action = 'retry'))
    )
    select count(*) filter (where m.in_flight is not null), array_agg(m.request_id) filter (where m.has_flow),
        array_agg(m.request_id) filter (where m.locked and m.action = 'cancel') into taken, flowing, cancelled
    from marked m
    where (select pgnet.use_owners_path()) is not null and m.free;
    perform pgnet.pin_path();
    if flowing is not null then
        perform pgnet.remove_flow(flowing);
    end if;
    perform pgnet.tell_of_ends(cancelled);
    perform pgnet.note_dependants(array(select m.request_id from unnest(marks) m where m.action <> 'retry'));
    return taken;
end
$$;
comment on function pgnet.carry_out_marks(pgnet.mark[]) is
    'Does what marks ask for, where nobody else has locked the rows; gives how many requests in '
    'flight were taken from their workers.';

-- As in pgnet.record_outcomes, a batch that fails is halved down to the mark at fault, which is
-- tried again a minute later. The worker's other work does not wait for more than a few seconds of
-- that: the next heartbeat goes on.
create function pgnet.carry_out_or_halve(marks pgnet.mark[])
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    size integer := cardinality(marks);
    taken bigint;
    caught pgnet.error;
begin
    return pgnet.carry_out_marks(marks);
exception when others then
    get stacked diagnostics caught.message = message_text, caught.state = returned_sqlstate,
        caught.referrer_schema = schema_name, caught.referrer = table_name, caught.constraint_name = constraint_name;
    if caught.state ~ '^(40|53|55|57|58|25006)' and caught.state <> '55P03' then
        raise;
    end if;
    if size > 1 then
        taken := pgnet.carry_out_or_halve(marks[:size / 2]);
        if clock_timestamp() < now() + interval '2 s' then
            taken := taken + pgnet.carry_out_or_halve(marks[size / 2 + 1:]);
        end if;
        return taken;
    end if;
    update pgnet.mark m
    set retry_at = clock_timestamp() + case when caught.state = '55P03' then interval '1 s' else interval '1 minute' end
    where m.requested_by = marks[1].requested_by and m.request_id = marks[1].request_id and m.action = marks[1].action;
    if caught.state <> '55P03' then
        perform pgnet.note_fault(
            'cancelling and forgetting', format('the %s of request %s: %s', marks[1].action, marks[1].request_id, caught.message),
            pgnet.remedy(caught));
    end if;
    return 0;
end
$$;
comment on function pgnet.carry_out_or_halve(pgnet.mark[]) is
    'pgnet.carry_out_marks; a batch that fails is halved down to the mark at fault, which is tried '
    'again a minute later, and pgnet.fault has the last one.';

create function pgnet.act_on_marks()
    -- the seconds until more is to be done; NULL where no mark is left
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
    -- A trigger or a foreign key may wait for another session.
    set lock_timeout = '20ms'
as $$
declare
    -- A variable, since an index is not used for a value that may change from row to row.
    present timestamptz := clock_timestamp();
    -- At most so many marks of each role: roles take turns, however many marks one role makes.
    most integer := 1000;
    marks pgnet.mark[];
begin
    if not exists (select from pgnet.mark m) then
        delete from pgnet.fault f where f.duty = 'cancelling and forgetting';
        return null;
    end if;
    lock table net.http_request_queue, pgnet.claim, pgnet.attempt, net._http_response, pgnet.failed, pgnet.mark, pgnet.worker,
        pgnet.flow, pgnet.ended_request, pgnet.dependency, pgnet.callback, pgnet.callback_order, pgnet.stubbed in row exclusive mode nowait;
    -- An older snapshot may still see the failure, and must find the mark: what it inserts then
    -- meets the key.
    delete from pgnet.mark m
    where (m.requested_by, m.request_id, m.action) in (
        select d.requested_by, d.request_id, d.action from pgnet.mark d
        where d.done and age(d.xmin) > (select coalesce(max(age(a.backend_xmin)), 0) from pg_stat_get_activity(null) a)
        order by d.request_id limit 5000 for update skip locked);
    with recursive roles (role) as (
        (select m.requested_by from pgnet.mark m order by m.requested_by limit 1)
        union all
        select (select m.requested_by from pgnet.mark m where m.requested_by > r.role order by m.requested_by limit 1)
        from roles r where r.role is not null
    )
    select array_agg(t.m) into marks
    from roles r
    cross join lateral (
        select m from pgnet.mark m
        where m.requested_by = r.role and not m.done and coalesce(m.retry_at, '-infinity') <= present
        order by m.request_id limit most for update skip locked
    ) t;
    if pgnet.carry_out_or_halve(marks) > 0 and exists (
        select from pgnet.worker w where w.ended is null and w.pid <> pg_backend_pid())
    then
        -- The worker that has them in flight learns it when it looks.
        perform pgnet.signal_workers('reload');
    end if;
    if exists (select from pgnet.fault f where f.duty = 'cancelling and forgetting')
        and not exists (select from pgnet.mark m where m.retry_at is not null)
    then
        delete from pgnet.fault f where f.duty = 'cancelling and forgetting';
    end if;
    if cardinality(marks) >= most then
        return 0;
    end if;
    return (
        select greatest(extract(epoch from min(coalesce(m.retry_at, present)) - present), 0.1)
        from pgnet.mark m where not m.done
        having count(*) > 0);
end
$$;
comment on function pgnet.act_on_marks() is
    'Cancels and forgets what is marked so, and takes out of pgnet.failed what was sent again: '
    '1,000 marks of each role at a time. Gives the seconds until more is to be done.';

create function pgnet.dropped_requests(worker_id bigint, owned bigint[])
    returns bigint[]
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
    select array(
        select h.id from unnest(owned) h (id)
        where not exists (select from pgnet.claim c where c.id = h.id and c.worker = worker_id offset 0)
            or not exists (select from net.http_request_queue q where q.id = h.id offset 0))
$$;
comment on function pgnet.dropped_requests(bigint, bigint[]) is
    'The requests that a worker has in flight and that are no longer its own: cancelled, '
    'forgotten, deleted, or returned for others.';

-- ======== extension/56_rescue.sql ========

-- Rescue: what becomes of claims whose attempt has no outcome. Their worker was lost, has stalled,
-- stopped, or gives them back.

-- Ends a queued request that has no answer to show.
create function pgnet.end_without_answer(id bigint, state text, error_msg text, attempts integer)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    path text;
begin
    with request as materialized (
        select q.* from net.http_request_queue q where q.id = end_without_answer.id
    ), dequeued as (
        delete from net.http_request_queue q where q.id = end_without_answer.id
    ), unclaimed as (
        delete from pgnet.claim c where c.id = end_without_answer.id
    ), recorded as (
        insert into net._http_response (
            id, state, timed_out, error_msg, attempts, context, method, url, requested_by, requested, retry_of
        )
        select r.id, end_without_answer.state::net.request_state, false, end_without_answer.error_msg, end_without_answer.attempts, r.context, r.method, r.url,
            r.requested_by, r.created, r.retry_of
        from request r
    ), failed as (
        insert into pgnet.failed (
            id, method, url, headers, body, timeout_milliseconds, requested_by, created, priority, context, options,
            retry_of, state, attempts, error_msg, idempotency_key
        )
        select r.id, r.method, r.url, r.headers, r.body, r.timeout_milliseconds, r.requested_by, r.created, r.priority,
            r.context, r.options, r.retry_of, end_without_answer.state::net.request_state, end_without_answer.attempts, end_without_answer.error_msg,
            pgnet.idempotency_key(r.id, r.created, r.method, r.options)
        from request r
        where end_without_answer.state in ('failed', 'unknown')
    )
    select pgnet.use_owners_path() into path;
    perform pgnet.pin_path();
    perform pgnet.remove_flow(array[end_without_answer.id]);
    perform pgnet.tell_of_ends(array[end_without_answer.id]);
    perform pgnet.note_dependants(array[end_without_answer.id]);
end
$$;
comment on function pgnet.end_without_answer(bigint, text, text, integer) is
    'Ends a queued request that has no answer, with a response that says why.';

-- Returns claims: others may take the requests at once. What an at_most_once request's attempt did
-- nobody knows, so the request ends; so does a request that was lost with max_losses workers, and
-- from the second loss on it is attempted alone. A row that another session holds a lock on keeps
-- its claim until the next heartbeat.
create function pgnet.return_claims(
    -- the requests; NULL means none
    ids bigint[],
    -- what became of the attempt
    reason text,
    -- lost: with its worker; stopped: the worker ended in order
    ending text
)
    -- how many could not be returned, because something refuses it; pgnet.fault has one of them
    returns integer
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    request record;
    max_losses integer := pgnet.setting_value('max_losses')::integer;
    caught pgnet.error;
    failed integer := 0;
begin
    for request in
        select q.*, c.attempt, c.claimed, v.seen, q.id is not null as locked, c.id as claim_id,
            (select count(*) from pgnet.attempt a where a.request_id = c.id and a.ending = 'lost') + 1 as losses
        from pgnet.claim c
        left join lateral (
            select q.* from net.http_request_queue q where q.id = c.id for update of q skip locked
        ) q on true
        left join lateral (
            select true as seen from net.http_request_queue q where q.id = c.id offset 0
        ) v on true
        where c.id = any (ids)
        for update of c skip locked
    loop
        continue when request.seen and not request.locked;
        begin
            if not request.locked then -- its requester has deleted it
                delete from pgnet.claim c where c.id = request.claim_id;
                perform pgnet.remove_flow(array[request.claim_id]);
                continue;
            end if;
            if request.options -> 'delivery' = '"at_most_once"' then
                perform pgnet.end_without_answer(request.id, 'unknown',
                    reason || ' Whether the request was received is unknown, and it is not sent again.', request.attempt);
            elsif ending = 'lost' and request.losses >= max_losses then
                perform pgnet.end_without_answer(request.id, 'failed',
                    format('%s %s workers were lost with it, and it is not tried again.', reason, request.losses), request.attempt);
            else
                perform pgnet.return_claim(
                    request.id, request.requested_by, request.attempt, request.claimed, ending, reason, request.losses);
            end if;
            perform pgnet.fire_deferred();
        exception when others then
            -- This request stays claimed; the others are returned.
            get stacked diagnostics caught.message = message_text, caught.state = returned_sqlstate,
                caught.referrer_schema = schema_name, caught.referrer = table_name, caught.constraint_name = constraint_name;
            perform pgnet.note_fault('giving back requests', format('request %s: %s', request.claim_id, caught.message),
                pgnet.remedy(caught));
            failed := failed + 1;
        end;
    end loop;
    return failed;
end
$$;
comment on function pgnet.return_claims(bigint[], text, text) is
    'Returns the claims of requests whose attempt ended without anybody''s knowing how, with a row '
    'in pgnet.attempt; an at_most_once request ends as unknown, one that was lost with max_losses '
    'workers as failed.';

create function pgnet.return_claim(
    id bigint, requested_by regrole, attempt integer, claimed timestamptz, ending text, reason text,
    -- how many workers were lost with the request
    losses bigint
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    path text;
begin
    with attempted as (
        insert into pgnet.attempt (request_id, attempt, requested_by, ending, started, ended, error_msg)
        values (
            return_claim.id,
            greatest(return_claim.attempt, 1 + (select max(a.attempt) from pgnet.attempt a where a.request_id = return_claim.id)),
            return_claim.requested_by, return_claim.ending, return_claim.claimed, clock_timestamp(), return_claim.reason)
        on conflict do nothing
    ), quarantined as (
        update net.http_request_queue q set due = 'infinity', waits_since = clock_timestamp()
        where q.id = return_claim.id and return_claim.ending = 'lost' and return_claim.losses >= 2
    ), unclaimed as (
        delete from pgnet.claim c where c.id = return_claim.id
    )
    select pgnet.use_owners_path() into path;
end
$$;
comment on function pgnet.return_claim(bigint, regrole, integer, timestamptz, text, text, bigint) is
    'Ends an attempt whose outcome nobody knows: the request may be taken at once, or is in '
    'quarantine from the second loss on.';

create function pgnet.release_requests(
    -- the requests to give back, and the tokens of their claims
    ids bigint[], tokens uuid[],
    -- what became of the attempt, for net.attempts; NULL where none was begun
    reason text
)
    returns void
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
    set lock_timeout = '500ms'
as $$
declare
    held bigint[];
begin
    perform pgnet.lock_tables();
    -- A request that is being cancelled now is not the worker's any more.
    held := array(
        select c.id
        from unnest(ids, tokens) g (id, token)
        cross join lateral (
            select c.id from pgnet.claim c where c.id = g.id and c.token = g.token for update of c skip locked
        ) c);
    if reason is null then
        delete from pgnet.claim c where c.id = any (held);
    else
        perform pgnet.return_claims(held, reason, 'stopped');
    end if;
end
$$;
comment on function pgnet.release_requests(bigint[], uuid[], text) is
    'Gives claimed requests back: others may take them at once. With a reason the attempt had '
    'begun: an at_most_once request ends as unknown.';

-- Returns the claims of workers that are gone, and those past their deadline whose worker has
-- stalled. Gives the seconds until more claims are to be returned; NULL where there are no more.
create function pgnet.rescue_requests()
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
    set lock_timeout = '500ms'
as $$
declare
    -- A variable, since an index is not used for a value that may change from row to row.
    present timestamptz := clock_timestamp();
    rescue_after interval := pgnet.setting_value('rescue_after');
    -- A worker that is well says so at each heartbeat, which is every second where there are
    -- others.
    stalled_after interval := interval '5 s';
begin
    lock table net.http_request_queue, pgnet.claim, pgnet.attempt, net._http_response, pgnet.failed, pgnet.worker,
        pgnet.flow, pgnet.ended_request, pgnet.dependency, pgnet.callback, pgnet.callback_order in row exclusive mode nowait;
    update pgnet.worker w set gone_since = clock_timestamp()
    where w.id in (
        select g.id from pgnet.worker g
        where g.ended is null
            and (g.gone_since is null and not pgnet.session_is_alive(g.pid, g.backend_start) or g.gone_since > clock_timestamp())
        for update skip locked);
    update pgnet.worker w set stalled_since = clock_timestamp()
    where w.id in (
        select s.id from pgnet.worker s
        where (s.stalled_since is null or s.stalled_since > clock_timestamp())
            and s.id = any (array(select distinct c.worker from pgnet.claim c where c.deadline < present))
        for update skip locked);
    if found then
        -- A worker that is well answers with a heartbeat at once.
        perform pgnet.signal_workers('reload');
    end if;
    if pgnet.return_claims(array(
        -- These rows are locked: a worker that comes back at this moment keeps its claims, or finds
        -- them gone, and never both.
        with gone as materialized (
            select w.id, w.gone_since < clock_timestamp() - rescue_after as for_long from pgnet.worker w
            -- A backend died with its session; a process may come back over a new connection.
            where w.gone_since < clock_timestamp() - case w.kind when 'backend' then interval '0' else rescue_after end
            for update skip locked
        ), stalled as materialized (
            select w.id from pgnet.worker w where w.stalled_since < clock_timestamp() - stalled_after
            for update skip locked
        )
        select c.id from pgnet.claim c
        -- A claim counts for its host's limits, and for its key, until the server has noticed.
        where exists (select from gone g where g.id = c.worker and (g.for_long or c.limited is not true and c.ordering_key is null))
            or (c.deadline < clock_timestamp() and c.worker in (select s.id from stalled s))
            -- The claim of an outcome that is put aside has no worker, and stays.
            or (c.worker is not null and not exists (select from pgnet.worker w where w.id = c.worker and w.ended is null))),
        'The worker was lost.', 'lost') = 0
    then
        delete from pgnet.fault f where f.duty = 'giving back requests';
    end if;
    return (
        select case when min(f.due) is not null then greatest(0, extract(epoch from min(f.due) - clock_timestamp())) + 0.02 end
        from (
            select coalesce(w.gone_since + rescue_after, w.stalled_since + stalled_after) as due
            from pgnet.worker w
            where w.ended is null and (w.gone_since is not null or w.stalled_since is not null)
                and w.id = any (array(select distinct c.worker from pgnet.claim c))
        ) f
        -- A claim that cannot be returned is not waited for.
        where f.due > clock_timestamp() - interval '1 s');
end
$$;
comment on function pgnet.rescue_requests() is
    'Returns the claims of workers whose session has been gone for rescue_after, and those past '
    'their deadline whose worker has stalled. Gives the seconds until more are to be returned.';

create function pgnet.mend_clocks()
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
declare
    -- A variable, since an index is not used for a value that may change from row to row.
    present timestamptz := clock_timestamp();
    path text;
begin
    lock table net.http_request_queue, pgnet.claim in row exclusive mode nowait;
    update pgnet.claim c set deadline = clock_timestamp() + (c.deadline - c.claimed), claimed = clock_timestamp()
    where c.id = any (array(
        select o.id from pgnet.claim o where o.claimed > present + interval '5 s' for update skip locked));
    with put_back as (
        update net.http_request_queue q
        set due = case when isfinite(q.due) then clock_timestamp() + (q.due - q.waits_since) else q.due end, waits_since = clock_timestamp()
        where q.id = any (array(
            select o.id from net.http_request_queue o
            where o.due is not null and o.waits_since > present + interval '5 s' order by o.waits_since for update skip locked))
    )
    select pgnet.use_owners_path() into path;
    perform pgnet.pin_path();
    return null;
end
$$;
comment on function pgnet.mend_clocks() is
    'Mends times that lie in the future because a clock was put back, so that no request waits for '
    'them.';

-- ======== extension/57_expire.sql ========

-- Expiry: responses, failed requests and attempts are kept for a time only, and workers that have
-- ended for an hour.
--
-- A batch is of up to 5,000 rows. Rows that something keeps (a foreign key, a trigger) stay alone:
-- the others of their batch are deleted, and the next batch begins behind them. They are tried
-- again after a while, a few of them first. So pgnet.fault has, for each kind, how many rows are
-- kept, and the place behind which deleting goes on.

create function pgnet.delete_expired_rows(kind text, ids bigint[], before timestamptz)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    deleted bigint[];
begin
    if kind = 'responses' then
        with old as (
            delete from net._http_response r where r.id = any (ids) returning r.*
        ), kept as (
            -- A callback that is still to run is called with it.
            update pgnet.callback b
            set outcome = (o.id, o.state, o.status_code, o.headers, o.content, o.content_bytes, o.error_msg, o.attempts, o.context)::net.outcome
            from old o
            where b.request_id = o.id and b.requested_by = o.requested_by and b.state <> 'done'
        ), attempts as (
            delete from pgnet.attempt a
            where a.request_id = any (array(
                select o.id from old o where o.attempts > 1 and not exists (select from pgnet.failed f where f.id = o.id offset 0)))
        )
        select array_agg(o.id) into deleted from old o where (select pgnet.use_owners_path()) is not null;
    elsif kind = 'failed requests' then
        with old as (
            delete from pgnet.failed f where f.id = any (ids) returning f.id
        ), attempts as (
            delete from pgnet.attempt a
            where a.request_id = any (array(
                select o.id from old o where not exists (select from net._http_response r where r.id = o.id offset 0)))
        )
        select array_agg(o.id) into deleted from old o where (select pgnet.use_owners_path()) is not null;
    else
        with old as (
            delete from pgnet.attempt a where a.request_id = any (ids) and a.ended < before returning a.request_id
        )
        select array_agg(distinct o.request_id) into deleted from old o where (select pgnet.use_owners_path()) is not null;
    end if;
    set constraints all immediate; -- what is deferred would fail at the commit, with all that the heartbeat did
    perform pgnet.pin_path();
    if coalesce(cardinality(deleted), 0) < cardinality(ids)
        -- An id stands there once for each attempt of the request.
        and (kind <> 'attempts' or exists (select from pgnet.attempt a where a.request_id = any (ids) and a.ended < before))
    then
        raise exception 'a trigger or a rule keeps the row';
    end if;
end
$$;
comment on function pgnet.delete_expired_rows(text, bigint[], timestamptz) is
    'Deletes responses, failed requests, or attempts of deleted requests. Raises an error where a '
    'row stays, also where a trigger keeps it without one.';

create function pgnet.lock_expired_rows(
    -- as for pgnet.expire
    kind text,
    -- rows from before this time, behind this place
    before timestamptz, behind timestamptz, behind_id bigint,
    most integer,
    out ids bigint[], out times timestamptz[]
)
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if kind = 'responses' then
        select array_agg(o.id), array_agg(o.created) into ids, times
        from (
            select r.id, r.created from net._http_response r
            where r.created < before and (r.created, r.id) > (behind, behind_id)
            order by r.created, r.id limit most for update skip locked
        ) o;
    elsif kind = 'failed requests' then
        select array_agg(o.id), array_agg(o.failed) into ids, times
        from (
            select f.id, f.failed from pgnet.failed f
            where f.failed < before and (f.failed, f.id) > (behind, behind_id)
            order by f.failed, f.id limit most for update skip locked
        ) o;
    else
        select array_agg(o.request_id), array_agg(o.ended) into ids, times
        from (
            select a.request_id, a.ended from pgnet.attempt a
            where a.ended < before and (a.ended, a.request_id) > (behind, behind_id)
                and not exists (select from net.http_request_queue q where q.id = a.request_id offset 0)
                and not exists (select from net._http_response r where r.id = a.request_id offset 0)
                and not exists (select from pgnet.failed f where f.id = a.request_id offset 0)
            order by a.ended, a.request_id limit most for update skip locked
        ) o;
    end if;
end
$$;
comment on function pgnet.lock_expired_rows(text, timestamptz, timestamptz, bigint, integer) is
    'The next rows of a kind that are past their time and that no other session has locked; NULL '
    'where there is no such row. pgnet.expire has set how this is planned.';

create function pgnet.delete_or_pass_over(
    kind text, ids bigint[], before timestamptz,
    -- how many of ids were tried, and how many of these are refused
    out tried integer, out refused integer,
    -- the last error
    out caught pgnet.error
)
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    began timestamptz := clock_timestamp();
begin
    tried := cardinality(ids);
    refused := 0;
    begin
        perform pgnet.delete_expired_rows(kind, ids, before);
        return;
    exception when others then
        perform set_config('lock_timeout', '20ms', true);
    end;
    tried := 0;
    -- Row by row, for so long that the worker's other work can wait for it.
    while tried < cardinality(ids) and clock_timestamp() < began + interval '2 s' loop
        tried := tried + 1;
        begin
            perform pgnet.delete_expired_rows(kind, ids[tried:tried], before);
        exception when others then
            get stacked diagnostics caught.message = message_text, caught.state = returned_sqlstate,
                caught.referrer_schema = schema_name, caught.referrer = table_name, caught.constraint_name = constraint_name;
            refused := refused + 1;
        end;
    end loop;
end
$$;
comment on function pgnet.delete_or_pass_over(text, bigint[], timestamptz) is
    'Deletes rows all at once; where something keeps one of them, one by one for up to two '
    'seconds, and passes over those that are kept.';

create function pgnet.note_kept_rows(
    duty text, message text, hint text,
    -- how many more are kept, and the last row that was tried; NULL: those that were kept are kept
    -- still
    number bigint, last_time timestamptz, last_id bigint,
    -- whether those that were kept before were tried again
    probe boolean
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if number is null then
        update pgnet.fault f
        set failures = f.failures + 1, message = note_kept_rows.message, hint = note_kept_rows.hint,
            retry_at = clock_timestamp() + least(interval '2 s' * 2 ^ least(f.failures, 10), interval '5 min')
        where f.duty = note_kept_rows.duty;
        return;
    end if;
    insert into pgnet.fault as f (duty, retry_at, failures, message, hint, kept, behind, behind_id)
    values (note_kept_rows.duty, clock_timestamp() + interval '2 s', 1, note_kept_rows.message, note_kept_rows.hint, number,
        last_time, last_id)
    on conflict on constraint fault_pkey do update
    set message = excluded.message, hint = excluded.hint,
        kept = excluded.kept + case when probe then 0 else f.kept end, behind = excluded.behind, behind_id = excluded.behind_id,
        failures = f.failures + case when probe then 1 else 0 end,
        retry_at = case when probe then clock_timestamp() + least(interval '2 s' * 2 ^ least(f.failures, 10), interval '5 min')
            else f.retry_at end;
end
$$;
comment on function pgnet.note_kept_rows(text, text, text, bigint, timestamptz, bigint, boolean) is
    'Keeps in pgnet.fault how many rows an expiry could not delete, why, and where it goes on.';

create function pgnet.expire(
    -- responses, failed requests or attempts
    kind text
)
    -- seconds until more is due; NULL where nothing is kept
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
declare
    own_duty text := 'deleting expired ' || kind;
    keep interval := case kind
        when 'responses' then pgnet.setting_value('ttl')::interval
        when 'failed requests' then pgnet.setting_value('ttl_failed')::interval
        else greatest(pgnet.setting_value('ttl')::interval, pgnet.setting_value('ttl_failed')::interval) end;
    before timestamptz := clock_timestamp() - keep;
    fault record;
    probe boolean;
    most integer;
    batch record;
    done record;
    kept_still boolean;
begin
    if kind = 'attempts' then
        lock table pgnet.attempt in row exclusive mode nowait;
        lock table net.http_request_queue, net._http_response, pgnet.failed in access share mode nowait;
    else
        lock table net._http_response, pgnet.failed, pgnet.attempt, pgnet.callback in row exclusive mode nowait;
    end if;
    select f.* into fault from pgnet.fault f where f.duty = own_duty;
    probe := coalesce(fault.retry_at <= clock_timestamp(), false);
    most := case when probe and fault.failures % 8 <> 0 then 20 else 5000 end;
    select * into batch from pgnet.lock_expired_rows(
        kind, before, case when probe then '-infinity' else coalesce(fault.behind, '-infinity') end, coalesce(fault.behind_id, 0), most);
    select 0 as tried, 0 as refused, null::pgnet.error as caught into done;
    if batch.ids is not null then
        select * into done from pgnet.delete_or_pass_over(kind, batch.ids, before);
    end if;
    if done.refused > 0 then
        kept_still := probe and most = 20 and done.refused = done.tried;
        perform pgnet.note_kept_rows(own_duty, (done.caught).message,
            pgnet.remedy(done.caught, array[case kind when 'responses' then 'net._http_response' when 'failed requests' then 'pgnet.failed'
                else 'pgnet.attempt' end, 'pgnet.attempt']::regclass[]),
            case when not kept_still then done.refused end, batch.times[done.tried], batch.ids[done.tried], probe);
        if kept_still then
            return 1;
        end if;
    elsif probe then
        -- Something has changed: all of them are tried again.
        update pgnet.fault f
        set kept = 0, behind = null, behind_id = null, retry_at = clock_timestamp() + interval '2 s'
        where f.duty = own_duty;
    end if;
    if fault.duty is not null and done.refused = 0 and coalesce(cardinality(batch.ids), 0) < most and (probe or fault.kept = 0) then
        delete from pgnet.fault f where f.duty = own_duty;
    end if;
    if cardinality(batch.ids) = most or done.tried < cardinality(batch.ids) then
        return 0.1;
    end if;
    return pgnet.seconds_to_expiry(kind, keep, case
        when done.refused > 0 then batch.times[done.tried] when probe then '-infinity' else coalesce(fault.behind, '-infinity') end);
end
$$;
comment on function pgnet.expire(text) is
    'Deletes responses past ttl, failed requests past ttl_failed, or attempts of requests that '
    'somebody has deleted, 5,000 at a time; gives the seconds until more is due. Rows that cannot '
    'be deleted stay, and pgnet.fault says how many and why.';

create function pgnet.seconds_to_expiry(kind text, keep interval, behind timestamptz)
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    next_due timestamptz := keep + case kind
        when 'responses' then (select r.created from net._http_response r where r.created > behind order by r.created limit 1)
        when 'failed requests' then (select f.failed from pgnet.failed f where f.failed > behind order by f.failed limit 1)
        end;
begin
    next_due := least(next_due, (select f.retry_at from pgnet.fault f where f.duty = 'deleting expired ' || kind));
    return case when next_due is not null then greatest(1, extract(epoch from next_due - clock_timestamp())) end;
end
$$;
comment on function pgnet.seconds_to_expiry(text, interval, timestamptz) is
    'How long until a row of a kind behind this place expires, or rows that were kept are tried '
    'again; NULL where there is no such row.';

create function pgnet.forget_workers()
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    rescue_after interval := pgnet.setting_value('rescue_after');
begin
    lock table pgnet.worker, pgnet.claim in row exclusive mode nowait;
    delete from pgnet.worker w
    where coalesce(w.ended, w.gone_since + rescue_after) < clock_timestamp() - interval '1 hour'
        and w.id <> all (array(select distinct c.worker from pgnet.claim c where c.worker is not null));
    return null;
end
$$;
comment on function pgnet.forget_workers() is 'Deletes workers that ended more than an hour ago.';

-- ---- requests whose not_after passes before a worker claims them

create function pgnet.expiry_message(attempts integer)
    returns text language sql immutable parallel safe
as $$
    select case when attempts operator(pg_catalog.>) 0 then 'The request expired: its not_after passed before another attempt.'
        else 'The request expired: its not_after passed before it was sent.' end
$$;
comment on function pgnet.expiry_message(integer) is
    'The error message of a request that ends as expired.';

-- This is one statement, so that a request is judged and ended in one snapshot. The rows are
-- locked, as in pgnet.carry_out_marks, and looked up one by one.
create function pgnet.end_expired_requests(ids bigint[])
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_mergejoin = off
    set enable_material = off
    set enable_hashjoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
declare
    path text;
begin
    with ended as materialized (
        select q.*, (select count(*)::integer from pgnet.attempt a where a.request_id = q.id) as attempts
        from net.http_request_queue q
        where q.id = any (ids)
    ), dequeued as (
        delete from net.http_request_queue q where q.id = any (array(select e.id from ended e))
    ), recorded as (
        insert into net._http_response (
            id, state, timed_out, error_msg, attempts, context, method, url, requested_by, requested, retry_of
        )
        select e.id, 'expired', false, pgnet.expiry_message(e.attempts), e.attempts, e.context, e.method, e.url, e.requested_by,
            e.created, e.retry_of
        from ended e
    )
    select pgnet.use_owners_path() into path;
    perform pgnet.pin_path();
    perform pgnet.remove_flow(ids);
    perform pgnet.tell_of_ends(ids);
    perform pgnet.note_dependants(ids);
    perform pgnet.fire_deferred();
end
$$;
comment on function pgnet.end_expired_requests(bigint[]) is
    'Ends requests as expired, with a response that says so. The caller has locked them.';

-- As in pgnet.carry_out_or_halve, a batch that fails is halved down to the request at fault, which
-- is tried again a minute later.
create function pgnet.end_expired_or_halve(ids bigint[])
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    size integer := cardinality(ids);
    caught pgnet.error;
    path text;
begin
    perform pgnet.end_expired_requests(ids);
exception when others then
    get stacked diagnostics caught.message = message_text, caught.state = returned_sqlstate,
        caught.referrer_schema = schema_name, caught.referrer = table_name, caught.constraint_name = constraint_name;
    if caught.state ~ '^(40|53|57|58|25006)' then
        raise;
    end if;
    if size > 1 then
        perform pgnet.end_expired_or_halve(ids[:size / 2]);
        if clock_timestamp() < now() + interval '2 s' then
            perform pgnet.end_expired_or_halve(ids[size / 2 + 1:]);
        end if;
        return;
    end if;
    with put_off as (
        update net.http_request_queue q set due = clock_timestamp() + interval '1 minute', waits_since = clock_timestamp()
        where q.id = any (ids)
    )
    select pgnet.use_owners_path() into path;
    perform pgnet.note_fault('ending expired requests', format('request %s: %s', ids[1], caught.message), pgnet.remedy(caught));
end
$$;
comment on function pgnet.end_expired_or_halve(bigint[]) is
    'pgnet.end_expired_requests; a batch that fails is halved down to the request at fault, which '
    'is tried again a minute later, and pgnet.fault has the last one.';

create function pgnet.expire_requests()
    -- seconds until the next not_after; NULL where no request has one
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_mergejoin = off
    set enable_material = off
    set enable_hashjoin = off
    set jit = off
    -- A trigger or a foreign key may wait for another session.
    set lock_timeout = '20ms'
as $$
declare
    -- A variable, since an index is not used for a value that may change from row to row.
    present timestamptz := clock_timestamp();
    most integer := 1000;
    ids bigint[];
    next_end timestamptz;
begin
    if (select f.not_after from pgnet.flow f where f.not_after < 'infinity' order by f.not_after limit 1) is null then
        delete from pgnet.fault f where f.duty = 'ending expired requests';
        return null;
    end if;
    lock table net.http_request_queue, pgnet.flow, pgnet.claim, pgnet.attempt, net._http_response, pgnet.failed,
        pgnet.ended_request, pgnet.dependency, pgnet.callback, pgnet.callback_order in row exclusive mode nowait;
    lock table pgnet.mark in access share mode nowait;
    ids := array(
        select f.request_id
        from pgnet.flow f
        cross join lateral (
            select q.id from net.http_request_queue q
            where q.id = f.request_id and q.requested_by = f.requested_by and q.origin is null
                -- What could not be ended a moment ago is put off.
                and coalesce(q.due, present) <= present
                and not exists (select from pgnet.claim c where c.id = q.id offset 0)
                and not exists (
                    select from pgnet.mark m
                    where m.requested_by = q.requested_by and m.request_id = q.id and m.action <> 'retry' offset 0)
            for update of q skip locked
        ) q
        where f.not_after <= present
        order by f.not_after limit most for update of f skip locked);
    if ids <> '{}' then
        perform pgnet.end_expired_or_halve(ids);
    end if;
    -- What was left behind, and what somebody has inserted by hand.
    perform pgnet.remove_flow(array(
        select f.request_id from pgnet.flow f
        where f.not_after <= present
            and not exists (
                select from net.http_request_queue q where q.id = f.request_id and q.requested_by = f.requested_by offset 0)
        order by f.not_after limit 5000));
    if exists (select from pgnet.fault f where f.duty = 'ending expired requests')
        and not exists (
            select from pgnet.flow f
            cross join lateral (select q.due from net.http_request_queue q where q.id = f.request_id offset 0) q
            where f.not_after <= present and q.due > present)
    then
        delete from pgnet.fault f where f.duty = 'ending expired requests';
    end if;
    if cardinality(ids) = most then
        return 0.1;
    end if;
    select f.not_after into next_end from pgnet.flow f
    where f.not_after > present and f.not_after < 'infinity' order by f.not_after limit 1;
    return greatest(extract(epoch from next_end - clock_timestamp()), 1);
end
$$;
comment on function pgnet.expire_requests() is
    'Ends as expired what no worker has claimed before its not_after, 1,000 requests at a time. '
    'Gives the seconds until more is to be done.';

-- ======== extension/58_heartbeat.sql ========

-- The heartbeat: every worker calls pgnet.heartbeat every second, or every minute where there is no
-- other worker. The heartbeat does the duties that do not belong to a single request: renewing the
-- worker's claims, rescuing those of lost workers, acting on marks, expiring. It gives the worker
-- its settings, egress rules, hosts and policies, and when to call again. Where a duty fails, the
-- others are done all the same.

create function pgnet.do_duty(duty text, worker_id bigint, owned bigint[])
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '500ms'
as $$
declare
    next_time double precision;
    known timestamptz := (select f.retry_at from pgnet.fault f where f.duty = do_duty.duty);
    caught pgnet.error;
begin
    if known > clock_timestamp() and duty not like 'deleting expired %' then
        return extract(epoch from known - clock_timestamp());
    end if;
    begin
        next_time := case duty
            when 'saying what is in flight' then pgnet.renew_claims(worker_id, owned)
            when 'saying the mode' then pgnet.note_mode(worker_id)
            when 'mending clocks' then pgnet.mend_clocks()
            when 'acting on marks' then pgnet.act_on_marks()
            when 'rescuing requests' then pgnet.rescue_requests()
            when 'recording what was put aside' then pgnet.record_put_aside()
            when 'expiring requests' then pgnet.expire_requests()
            when 'forgetting workers' then pgnet.forget_workers()
            when 'looking for what waits in vain' then pgnet.sweep_gates()
            when 'forgetting budgets' then pgnet.forget_budgets()
            when 'counting what is pending' then pgnet.count_backlog()
            when 'freeing probes' then pgnet.free_probes()
            when 'ending requests of broken hosts' then pgnet.end_requests_of_broken_hosts()
            when 'forgetting hosts' then pgnet.forget_host_states()
            when 'deleting expired responses' then pgnet.expire('responses')
            when 'deleting expired failed requests' then pgnet.expire('failed requests')
            when 'deleting expired attempts' then pgnet.expire('attempts')
            when 'deleting statistics' then pgnet.forget_minutes()
            when 'counting deliveries' then pgnet.judge_webhooks()
            when 'forgetting callbacks' then pgnet.expire_callbacks()
            when 'forgetting what stubs have answered' then pgnet.forget_stubbed()
            end;
        perform pgnet.fire_deferred();
    exception when others then
        get stacked diagnostics caught.message = message_text, caught.state = returned_sqlstate,
            caught.referrer_schema = schema_name, caught.referrer = table_name, caught.constraint_name = constraint_name;
        perform pgnet.note_fault(duty, caught.message, case when caught.state = '55P03' then
            'Another session holds a lock: select pid, pg_blocking_pids(pid), query from pg_stat_activity where state <> ''idle'';'
            else pgnet.remedy(caught, array['net.http_request_queue', 'pgnet.claim', 'pgnet.attempt', 'net._http_response', 'pgnet.failed',
                'pgnet.worker']::regclass[]) end,
            caught.state = '55P03');
        return 1;
    end;
    if known is not null and duty not like 'deleting expired %' then
        delete from pgnet.fault f where f.duty = do_duty.duty;
    end if;
    return next_time;
end
$$;
comment on function pgnet.do_duty(text, bigint, bigint[]) is
    'Does a duty of the heartbeat, unless it waits after a failure; gives the seconds until it is '
    'due again, NULL for at any time. The error of a duty that fails is kept in pgnet.fault.';

create function pgnet.renew_claims(worker_id bigint, owned bigint[])
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
begin
    lock table net.http_request_queue, pgnet.claim, pgnet.attempt, net._http_response, pgnet.failed, pgnet.worker,
        pgnet.flow, pgnet.ended_request, pgnet.dependency, pgnet.callback, pgnet.callback_order in row exclusive mode nowait;
    update pgnet.worker w set stalled_since = null where w.id = worker_id and w.stalled_since is not null;
    if owned is not null then
        -- The worker works. So the requests that it owns stay its own, whatever the clock says.
        update pgnet.claim c set deadline = clock_timestamp() + interval '1 minute'
        where c.id = any (array(
            select o.id from pgnet.claim o
            where o.worker = worker_id and o.deadline < clock_timestamp() and o.id = any (owned) for update skip locked));
        perform pgnet.return_claims(array(
            select c.id from pgnet.claim c where c.worker = worker_id and c.id <> all (owned)),
            'The worker lost track of the request.', 'lost');
        -- Claims whose requests were deleted meanwhile. One of a host with a limit, or with a key,
        -- stays until the worker has closed the connection, and does not name the request any more.
        delete from pgnet.claim c where c.id = any (array(
            select o.id from pgnet.claim o
            where o.worker = worker_id and o.id = any (owned) and o.limited is not true and o.ordering_key is null
                and not exists (select from net.http_request_queue q where q.id = o.id offset 0)
            for update skip locked));
    end if;
    return null;
end
$$;
comment on function pgnet.renew_claims(bigint, bigint[]) is
    'Renews the claims of requests that a worker says it owns. Claims of the worker that it does '
    'not name are returned, and claims of deleted requests are removed.';

create function pgnet.note_mode(worker_id bigint)
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    lock table pgnet.worker in row exclusive mode nowait;
    update pgnet.worker w set mode = pgnet.mode_in_force() where w.id = worker_id;
    return null;
end
$$;
comment on function pgnet.note_mode(bigint) is
    'Keeps the mode that a worker finds, which depends on its session, for net.explain.';

create function pgnet.next_poll(worker_id bigint, owned bigint[], quarantined boolean)
    -- seconds
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
declare
    -- Responses that are recorded until then expire a ttl later: with a short ttl the worker comes
    -- sooner.
    seconds double precision := extract(epoch from least(
        pgnet.setting_value('poll_interval')::interval,
        greatest(interval '1 s', least(pgnet.setting_value('ttl')::interval, pgnet.setting_value('ttl_failed')::interval))));
    next_due timestamptz := least(
        (select q.due from net.http_request_queue q where q.due < 'infinity' and q.origin is null order by q.due limit 1),
        (select f.not_before from pgnet.flow f where f.not_before < 'infinity' order by f.not_before limit 1));
begin
    if next_due is not null then
        -- The worker that put a request back looks for it at its time. This is for others, and not
        -- to be done for each request.
        seconds := least(seconds, greatest(extract(epoch from next_due - clock_timestamp()), 0.5));
    end if;
    if owned <> '{}' then
        -- The worker is to notice when its requests are deleted or cancelled.
        seconds := least(seconds, 5);
    end if;
    if quarantined
        or pgnet.setting_value('wake_up') = 'poll'
        -- The COMMIT PREPARED of these may come from a session that cannot know what was queued.
        or exists (
            select from pg_prepared_xacts p
            where p.database = current_database() and p.prepared > clock_timestamp() - interval '10 minutes')
        -- Requests of other workers may have to be rescued.
        or exists (
            select from pgnet.worker w
            where w.id <> worker_id and w.ended is null and pgnet.session_is_alive(w.pid, w.backend_start))
    then
        seconds := least(seconds, 1);
    end if;
    return seconds;
end
$$;
comment on function pgnet.next_poll(bigint, bigint[], boolean) is
    'After how many seconds a worker that nobody wakes is to call again, unless a duty is due '
    'before.';

create function pgnet.heartbeat(
    -- the worker that calls; NULL: a session that is not registered as one
    worker_id bigint,
    -- the requests that the worker has in flight or has outcomes of; NULL: not known
    owned bigint[] default null
)
    -- settings, egress, hosts and retry policies; revision: of all four; generation: workers of
    -- another one restart; mode; stubs: whether there are any; quarantined: whether requests wait
    -- in quarantine; callbacks: whether there are any to run; dropped: ids of owned that are not
    -- the worker's any more; faults: duties that fail; next_poll: after how many seconds to call
    -- again
    returns jsonb
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
    set lock_timeout = '500ms'
as $$
declare
    configuration record;
    duty text;
    next_duty double precision;
    quarantined boolean;
    mode text := pgnet.mode_in_force();
begin
    -- As in pgnet.lock_tables, a session that waits for a lock holds no other.
    lock table pgnet.setting, pgnet.configuration, pgnet.host, pgnet.egress_rule, pgnet.retry_policy, pgnet.database, pgnet.worker,
        pgnet.worker_role, pgnet.mark, pgnet.pause, pgnet.stub, pgnet.stubbed in access share mode nowait;
    lock table pgnet.fault, pgnet.callback, pgnet.callback_order in row exclusive mode nowait;
    perform pgnet.require_worker(worker_id);
    -- The revision is read first: a change while the rest is read has a higher number.
    select f.revision, f.generation into configuration from pgnet.configuration f;
    foreach duty in array array[
        'saying what is in flight', 'mending clocks', 'rescuing requests', 'acting on marks', 'recording what was put aside',
        'freeing probes', 'ending requests of broken hosts', 'forgetting hosts',
        'expiring requests', 'deleting expired responses', 'deleting expired failed requests', 'deleting expired attempts',
        'forgetting workers', 'forgetting budgets', 'counting what is pending', 'deleting statistics', 'counting deliveries',
        'forgetting callbacks', 'forgetting what stubs have answered',
        'looking for what waits in vain']
    loop
        next_duty := least(next_duty, pgnet.do_duty(duty, worker_id, owned));
    end loop;
    if mode is distinct from (select w.mode from pgnet.worker w where w.id = worker_id) then
        perform pgnet.do_duty('saying the mode', worker_id, owned);
    end if;
    quarantined := (
        select q.id from net.http_request_queue q
        where q.due >= 'infinity' and q.origin is null and not exists (select from pgnet.claim c where c.id = q.id offset 0)
            and not pgnet.is_paused(q.url)
        order by q.due limit 1) is not null;
    return jsonb_build_object(
        'next_poll', least(next_duty, pgnet.next_poll(worker_id, owned, quarantined)),
        'revision', configuration.revision,
        'generation', configuration.generation,
        'settings', pgnet.settings_in_force(),
        'egress', pgnet.egress_in_force(),
        'hosts', pgnet.host_settings(),
        'policies', pgnet.retry_policy_settings(),
        'mode', mode,
        'stubs', (select s.id from pgnet.stub s order by s.id limit 1) is not null,
        'quarantined', quarantined,
        'callbacks', pgnet.has_callbacks(),
        'dropped', to_jsonb(pgnet.dropped_requests(worker_id, owned)),
        'faults', pgnet.fault_messages());
end
$$;
comment on function pgnet.heartbeat(bigint, bigint[]) is
    'A worker says which requests it owns, and does the duties of all workers: it rescues, acts on '
    'marks, expires. It gets the requests that are no longer its own, the settings, the egress '
    'rules, and when to call again. Raises 08003 for a worker that is not registered, 55000 where '
    'its session has changed.';

-- ======== extension/59_statistics.sql ========

-- Statistics: what came of requests, by host and minute; and net.stats, which shows the last minute
-- and what waits now.
--
-- Workers count, and report once a second: pgnet.report_work. So no row is changed once a request.
-- Each worker has rows of its own, which no other one changes: no worker waits for another's lock.
-- A row holds the whole count of its minute, and is overwritten by the next report. Times are
-- counted in buckets, whose bounds grow by the fourth root of 2: p50 and p99 are right to 10 %.
--
-- What waits is never counted by reading the queue. A count ends at 10,000; where many hosts have
-- long queues, it ends earlier for each of them.

create table pgnet.host_minute (
    minute timestamptz not null,
    host text collate "C" not null,
    role oid not null,
    worker bigint not null,
    made integer not null,
    attempts integer not null,
    failed integer not null,
    ended integer not null,
    first_byte_buckets smallint[] not null,
    first_byte_counts integer[] not null,
    total_buckets smallint[] not null,
    total_counts integer[] not null,
    primary key (minute, host, role, worker)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);
comment on table pgnet.host_minute is
    'What each worker has done within a minute for the requests of a role to a host; the host * '
    'stands for all. Kept for six hours. net.stats shows the last minute.';
comment on column pgnet.host_minute.minute is 'When the minute began.';
comment on column pgnet.host_minute.host is 'Host and port as in the URL; * for all hosts.';
comment on column pgnet.host_minute.role is 'The oid of the role that made the requests.';
comment on column pgnet.host_minute.worker is 'The worker that has counted.';
comment on column pgnet.host_minute.made is
    'Requests at their first attempt that had been made less than a minute before.';
comment on column pgnet.host_minute.attempts is 'Attempts that have ended.';
comment on column pgnet.host_minute.failed is 'How many of these have failed.';
comment on column pgnet.host_minute.ended is 'Requests that have ended.';
comment on column pgnet.host_minute.first_byte_buckets is
    'Buckets of milliseconds to the first byte of the answer; see pgnet.bucket_middle.';
comment on column pgnet.host_minute.first_byte_counts is 'How many attempts each bucket has.';
comment on column pgnet.host_minute.total_buckets is 'Buckets of milliseconds to the end of the attempt.';
comment on column pgnet.host_minute.total_counts is 'How many attempts each bucket has.';
create policy own_minutes on pgnet.host_minute for select
    using (role operator(pg_catalog.=) (select pgnet.caller_role())::pg_catalog.oid);

create function pgnet.bucket_middle(bucket integer)
    -- milliseconds
    returns double precision
    language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$ select round((0.1 * 2 ^ ((bucket - 0.5) / 4))::numeric, 2)::double precision $$;
comment on function pgnet.bucket_middle(integer) is
    'The middle of a bucket of times in milliseconds: bucket n ends at 0.1 * 2 ^ (n / 4), and the '
    'one before it begins there.';

create function pgnet.report_work(
    worker_id bigint,
    -- slots: how many requests the worker may have in flight; full: full_places of pgnet.worker;
    -- minute: the one that it has counted, in minutes since the epoch, NULL: the present one;
    -- places: columns of pgnet.host_minute;
    -- progress: [id, what it waits for] of requests in flight, where that has changed
    report json
)
    -- the database's clock, in seconds since the epoch
    returns double precision
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
    set lock_timeout = '500ms'
as $$
declare
    present double precision := extract(epoch from clock_timestamp());
    -- A minute that is not near is a worker's whose clock is wrong.
    counted bigint := case when abs((report ->> 'minute')::bigint - present / 60) < 5 then (report ->> 'minute')::bigint
        else floor(present / 60) end;
    all_slots integer := (report ->> 'slots')::integer;
    all_full jsonb := nullif((report -> 'full')::jsonb, '{}');
    news jsonb := report -> 'progress';
begin
    -- As in pgnet.lock_tables, a session that waits for a lock holds no other.
    lock table pgnet.worker_role, pgnet.worker in access share mode nowait;
    perform pgnet.require_worker(worker_id);
    lock table pgnet.host_minute, pgnet.claim, pgnet.worker in row exclusive mode nowait;
    insert into pgnet.host_minute as m (
        minute, host, role, worker, made, attempts, failed, ended, first_byte_buckets, first_byte_counts, total_buckets, total_counts)
    select to_timestamp(counted * 60), p.host, p.role, worker_id, p.made, p.attempts, p.failed, p.ended,
        p.first_byte_buckets, p.first_byte_counts, p.total_buckets, p.total_counts
    from json_populate_recordset(null::pgnet.host_minute, report -> 'places') p
    on conflict on constraint host_minute_pkey do update
    set made = excluded.made, attempts = excluded.attempts, failed = excluded.failed, ended = excluded.ended,
        first_byte_buckets = excluded.first_byte_buckets, first_byte_counts = excluded.first_byte_counts,
        total_buckets = excluded.total_buckets, total_counts = excluded.total_counts;
    update pgnet.worker w set slots = all_slots, full_places = all_full
    where w.id = worker_id and (w.slots, w.full_places) is distinct from (all_slots, all_full);
    if news <> '{}' then
        update pgnet.claim c set progress = news ->> c.id::text
        where c.id = any (array(
            select o.id from jsonb_object_keys(news) k (id)
            cross join lateral (
                select o.id from pgnet.claim o where o.id = k.id::bigint and o.worker = worker_id for update skip locked
            ) o));
    end if;
    return present;
end
$$;
comment on function pgnet.report_work(bigint, json) is
    'Takes what a worker has counted within a minute, and what its requests in flight wait for. '
    'Raises 08003 for a worker that is not registered.';

create function pgnet.forget_minutes()
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
declare
    before timestamptz := clock_timestamp() - interval '6 hours';
begin
    lock table pgnet.host_minute in row exclusive mode nowait;
    delete from pgnet.host_minute m
    where m.ctid = any (array(
        select o.ctid from pgnet.host_minute o where o.minute < before order by o.minute limit 1000 for update skip locked));
    return case when found then 1 end;
end
$$;
comment on function pgnet.forget_minutes() is
    'Deletes statistics of more than six hours ago, 1,000 rows at a time.';

-- ---- what people see

create function pgnet.caller_watches()
    returns boolean
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select pgnet.caller_is_owner() or pg_has_role(current_user, 'pg_monitor', 'usage')
        or coalesce((select r.rolbypassrls from pg_roles r where r.rolname = current_user), false)
$$;
comment on function pgnet.caller_watches() is
    'Whether the current role may see statistics of every role: the owner, members of pg_monitor, '
    'and roles with BYPASSRLS.';

-- These views have the owner's rights, and show what the caller may see. OFFSET 0: no condition of
-- a caller's is asked for another row, and nobody writes through them.

create view pgnet.recent_minute as
    select m.*, case when m.minute operator(pg_catalog.>) (pg_catalog.statement_timestamp() operator(pg_catalog.-) '1 min'::interval) then 1::double precision
        -- So much of the minute before lies within the last 60 seconds.
        else greatest(0, 2::double precision operator(pg_catalog.-) (
            pg_catalog.date_part('epoch', pg_catalog.statement_timestamp() operator(pg_catalog.-) m.minute)
            operator(pg_catalog./) 60::double precision)) end as weight
    from pgnet.host_minute m
    where m.minute operator(pg_catalog.>) (pg_catalog.statement_timestamp() operator(pg_catalog.-) '2 min'::interval)
        and (m.role operator(pg_catalog.=) (select pgnet.caller_role()::pg_catalog.oid) or (select pgnet.caller_watches()))
    offset 0;
comment on view pgnet.recent_minute is
    'What workers have done within the present minute and the one before. A role sees its own.';

-- Requests that were made within the last minute and had no attempt yet: of the 2,000 last ones.
create view pgnet.newest_request as
    select pgnet.host_of_url(n.url) collate "C" as host, pg_catalog.count(*) as made
    from (select q.* from net.http_request_queue q order by q.id desc limit 2000) n
    where n.created operator(pg_catalog.>) (pg_catalog.statement_timestamp() operator(pg_catalog.-) '1 min'::interval)
        and n.due is null and n.origin is null
        and (n.requested_by operator(pg_catalog.=) (select pgnet.caller_role()) or (select pgnet.caller_watches()))
        and not exists (select from pgnet.claim c where c.id operator(pg_catalog.=) n.id offset 0)
    group by 1
    offset 0;
comment on view pgnet.newest_request is
    'Of the newest requests those of the last minute that no worker has taken yet, by host. A role '
    'sees its own.';

create view pgnet.claimed_place as
    select c.host collate "C" as host, pg_catalog.count(*) as in_flight
    from pgnet.claim c
    where c.role operator(pg_catalog.=) (select pgnet.caller_role()::pg_catalog.oid) or (select pgnet.caller_watches())
    group by 1
    offset 0;
comment on view pgnet.claimed_place is
    'How many requests are in flight, by host. A role sees its own.';

-- Where requests are ready: up to 1,000 places are walked over as by a claim (52_claim.sql), and
-- 100 of those that the caller may see are counted. At each up to 20 requests are counted, and
-- where there are more, up to 10,000 at one place and 12,000 in all. A thousand rows take about a
-- third of a millisecond. Requests in flight are among them.
create view pgnet.ready_count as
    with recursive ready as not materialized (
        select pgnet.host_of_url(q.url) collate "C" as host, q.requested_by::pg_catalog.oid as role, q.priority, q.id, q.created
        from net.http_request_queue q
        where q.due is null and q.held is not true and q.origin is null
    ), walk (host, role, number) as (
        (select r.host, r.role, 1 from ready r order by r.host, r.role limit 1)
        union all
        select n.host, n.role, w.number operator(pg_catalog.+) 1
        from walk w
        cross join lateral (
            select r.host, r.role from ready r
            where (r.host, r.role) operator(pg_catalog.>) (w.host, w.role) order by r.host, r.role limit 1
        ) n
        where w.number operator(pg_catalog.<) 1000
    ), place as materialized (
        select w.host, w.role
        from walk w
        where w.role operator(pg_catalog.=) (select pgnet.caller_role()::pg_catalog.oid) or (select pgnet.caller_watches())
        limit 100
    ), few as materialized (
        select p.host, p.role, (
            select pg_catalog.count(*) from (
                select from ready r where r.host operator(pg_catalog.=) p.host and r.role operator(pg_catalog.=) p.role
                order by r.priority, r.id limit 21
            ) r) as counted
        from place p
    ), share as materialized (
        select 10000 operator(pg_catalog./) greatest(pg_catalog.count(*), 1)::integer as most from few f where f.counted operator(pg_catalog.>) 20
    )
    select f.host, f.role, s.most, case when f.counted operator(pg_catalog.<=) 20 then f.counted else (
            select pg_catalog.count(*) from (
                select from ready r where r.host operator(pg_catalog.=) f.host and r.role operator(pg_catalog.=) f.role
                order by r.priority, r.id limit s.most operator(pg_catalog.+) 1
            ) r) end as counted,
        (select r.created from ready r
         where r.host operator(pg_catalog.=) f.host and r.role operator(pg_catalog.=) f.role
            and not exists (select from pgnet.claim c where c.id operator(pg_catalog.=) r.id offset 0)
         order by r.priority, r.id limit 1) as oldest
    from few f
    cross join share s
    offset 0;
comment on view pgnet.ready_count is
    'How many requests are ready at each place, those in flight among them: counted up to most, and '
    'one more. oldest: when the first one was made that no worker has. A role sees its own.';

create type pgnet.stats_row as (
    host text,
    waiting text,
    waiting_at_least bigint,
    in_flight bigint,
    oldest interval,
    in_per_minute bigint,
    out_per_minute bigint,
    attempts_per_minute bigint,
    failed_percent numeric,
    first_byte_p50_ms double precision,
    first_byte_p99_ms double precision,
    total_p50_ms double precision,
    total_p99_ms double precision
);
comment on type pgnet.stats_row is 'A row of net.stats.';

create function pgnet.percentiles(
    -- * stands for all of them
    hosts text[],
    out host text, out first_byte_p50 double precision, out first_byte_p99 double precision,
    out total_p50 double precision, out total_p99 double precision
)
    returns setof record
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    with histogram as (
        select m.host, k.is_total, b.bucket, sum(b.number) as number
        from pgnet.recent_minute m
        cross join lateral (
            values (false, m.first_byte_buckets, m.first_byte_counts), (true, m.total_buckets, m.total_counts)
        ) k (is_total, buckets, counts)
        cross join lateral unnest(k.buckets, k.counts) b (bucket, number)
        where m.weight > 0 and m.host = any (hosts)
        group by m.host, k.is_total, b.bucket
    ), counted as (
        select h.host, h.is_total, h.bucket,
            sum(h.number) over (partition by h.host, h.is_total order by h.bucket) / sum(h.number) over (partition by h.host, h.is_total) as part
        from histogram h
    )
    select c.host,
        pgnet.bucket_middle(min(c.bucket) filter (where not c.is_total and c.part >= 0.5)),
        pgnet.bucket_middle(min(c.bucket) filter (where not c.is_total and c.part >= 0.99)),
        pgnet.bucket_middle(min(c.bucket) filter (where c.is_total and c.part >= 0.5)),
        pgnet.bucket_middle(min(c.bucket) filter (where c.is_total and c.part >= 0.99))
    from counted c
    group by c.host;
end
$$;
comment on function pgnet.percentiles(text[]) is
    'Half of all attempts at a host within the last two minutes took no longer than p50, and 99 % no '
    'longer than p99: milliseconds to the first byte and to the end.';

create function pgnet.host_stats()
    -- a row for each host; waiting is NULL where not all is counted
    returns setof pgnet.stats_row
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    with ready as materialized (
        select r.host, sum(r.counted)::bigint as counted, bool_or(r.counted > r.most) as is_more, min(r.oldest) as oldest
        from pgnet.ready_count r group by r.host
    ), load as materialized (
        select l.* from pgnet.claimed_place l
    ), newest as materialized (
        select n.* from pgnet.newest_request n
    ), rate as materialized (
        select m.host, sum(m.made * m.weight) as made, sum(m.ended * m.weight) as ended, sum(m.attempts * m.weight) as attempts,
            sum(m.failed * m.weight) as failed
        from pgnet.recent_minute m where m.host <> '*' group by m.host
    ), named as (
        select r.host from ready r union select l.host from load l union select n.host from newest n union select t.host from rate t
    )
    select h.host, case when w.is_more is not true then greatest(0, coalesce(w.counted, 0) - coalesce(l.in_flight, 0))::text end,
        greatest(0, coalesce(w.counted, 0) - case when w.is_more then 1 else coalesce(l.in_flight, 0) end),
        coalesce(l.in_flight, 0), statement_timestamp() - w.oldest,
        round(coalesce(t.made, 0) + coalesce(n.made, 0))::bigint, round(coalesce(t.ended, 0))::bigint,
        round(coalesce(t.attempts, 0))::bigint, round((100 * t.failed / nullif(t.attempts, 0))::numeric, 1),
        null::double precision, null::double precision, null::double precision, null::double precision
    from named h
    left join ready w on w.host = h.host
    left join load l on l.host = h.host
    left join newest n on n.host = h.host
    left join rate t on t.host = h.host;
end
$$;
comment on function pgnet.host_stats() is
    'net.stats by host, without p50 and p99.';

create function pgnet.waiting_words(
    counted bigint,
    -- whether there are more
    is_more boolean
)
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select case when counted >= 10000 then '10,000+' else ltrim(to_char(counted, '9,990')) || case when is_more then '+' else '' end end
$$;
comment on function pgnet.waiting_words(bigint, boolean) is
    'How many requests wait, in words: exactly, or at least.';

create function pgnet.current_stats()
    returns setof pgnet.stats_row
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
begin
    return query
    with host as materialized (
        select s.* from pgnet.host_stats() s
    ), top as materialized (
        select h.* from host h order by h.attempts_per_minute desc, h.waiting_at_least desc, h.host limit 100
    ), percentile as materialized (
        select p.* from pgnet.percentiles(array(select t.host from top t) || '*'::text) p
    ), waiting as (
        select sum(h.waiting_at_least)::bigint as counted, bool_or(h.waiting is null) or count(*) >= 100 as is_more,
            sum(h.in_flight)::bigint as in_flight, max(h.oldest) as oldest, sum(h.in_per_minute)::bigint as made
        from host h
    ), rate as (
        -- Hosts beyond the first thousand of a minute are counted in all.
        select sum(m.ended * m.weight) as ended, sum(m.attempts * m.weight) as attempts, sum(m.failed * m.weight) as failed
        from pgnet.recent_minute m where m.host = '*'
    )
    select null::text, pgnet.waiting_words(coalesce(w.counted, 0), w.is_more), coalesce(w.counted, 0), coalesce(w.in_flight, 0), w.oldest,
        coalesce(w.made, 0), round(coalesce(r.ended, 0))::bigint, round(coalesce(r.attempts, 0))::bigint,
        round((100 * r.failed / nullif(r.attempts, 0))::numeric, 1), p.first_byte_p50, p.first_byte_p99, p.total_p50, p.total_p99
    from waiting w
    cross join rate r
    left join percentile p on p.host = '*'
    union all
    (select t.host, pgnet.waiting_words(t.waiting_at_least, t.waiting is null), t.waiting_at_least, t.in_flight, t.oldest,
        t.in_per_minute, t.out_per_minute, t.attempts_per_minute, t.failed_percent,
        p.first_byte_p50, p.first_byte_p99, p.total_p50, p.total_p99
    from top t
    left join percentile p on p.host = t.host
    order by t.attempts_per_minute desc, t.waiting_at_least desc, t.host);
end
$$;
comment on function pgnet.current_stats() is 'The rows of net.stats.';

create view net.stats as select s.* from pgnet.current_stats() s;
comment on view net.stats is
    'What goes on now, in all (host NULL) and for up to 100 hosts, those with the most attempts '
    'first: requests that wait for a worker (counted up to 10,000), that are in flight, how long the '
    'oldest has waited, how many were made and have ended within the last minute, attempts and the '
    'share of those that failed, and milliseconds to the first byte and to the end, which half of '
    'the attempts and 99 % of them did not exceed. A role sees its own requests; the owner, '
    'pg_monitor and roles with BYPASSRLS see all.';

-- ======== extension/60_outcome.sql ========

-- Outcomes for callers: states, responses, waiting, cancelling. Views run with the reader's rights:
-- row-level security decides.

-- The state of a request that has not ended.
create function pgnet.waiting_state(attempts_before integer, claimed boolean, due timestamptz, cancelled boolean)
    returns net.request_state language sql immutable parallel safe
as $$
    -- Each is a constant of the type: a cast of text to it would only be stable.
    select case when claimed then 'in_flight'::net.request_state when cancelled then 'cancelled'::net.request_state
        when due is null then 'ready'::net.request_state
        when attempts_before operator(pg_catalog.>) 0 then 'retrying'::net.request_state else 'scheduled'::net.request_state end
$$;
comment on function pgnet.waiting_state(integer, boolean, timestamptz, boolean) is
    'The state of a request that has no outcome yet: cancelled where it is marked so, unless it is '
    'in flight.';

-- What net.explain says (62_explain.sql), as far as it is worth its time for each row of a view.
create function pgnet.idle_words()
    returns text
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (select string_agg(concat_ws(' ', r.detail, r.hint), ' ') from pgnet.reasons_of_database() r);
end
$$;
comment on function pgnet.idle_words() is
    'Why no request at all is sent from this database; NULL where that is not so.';

create function pgnet.any_host_waits()
    returns boolean
    language sql stable parallel safe security definer
    set search_path = pg_catalog, pg_temp
as $$ select exists (select from pgnet.pause) or exists (select from pgnet.host_state s where s.closed_until is not null) $$;
comment on function pgnet.any_host_waits() is
    'Whether requests to some host may wait: it is paused, broken, or has asked to wait.';

create function pgnet.holding_words(request_id bigint)
    returns text
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
begin
    return (select string_agg(r.detail, ' ') from pgnet.holding_reasons(request_id) r);
end
$$;
comment on function pgnet.holding_words(bigint) is
    'What holds a request of the caller''s back: its time, other requests, its host; NULL where '
    'nothing does.';

create function pgnet.both_words(words text, more text)
    returns text
    language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$ select coalesce(words || ' ' || more, words, more) $$;
comment on function pgnet.both_words(text, text) is 'Two texts as one, where both are there.';

create view net.requests with (security_invoker) as
    select q.id,
        pgnet.waiting_state(coalesce(a.attempt, 0), c.id is not null, coalesce(q.due, f.not_before), k.marked is not null) as state,
        q.method::pg_catalog.text as method, q.url, q.requested_by, a.status_code,
        case when c.id is null and k.marked is not null then pgnet.cancellation_message(false, a.attempt)
            when c.id is not null and c.worker is null then
                'It has ended, and its outcome cannot be recorded yet: net.check() says why, to the owner.'
            when c.id is not null or a.error_msg is not null then a.error_msg
            -- Nothing is asked for a row where nothing holds any request back.
            else pgnet.both_words((select pgnet.idle_words()),
                case when q.held or q.due is not null or (select pgnet.any_host_waits()) then pgnet.holding_words(q.id) end) end as error_msg,
        coalesce(c.attempt, a.attempt, 0) as attempts,
        case when c.id is null and k.marked is null and pg_catalog.isfinite(coalesce(q.due, f.not_before))
            then coalesce(q.due, f.not_before) end as next_attempt,
        q.created as requested, case when c.id is null then k.marked end as ended,
        case when pg_catalog.isfinite(q.created) then pg_catalog.now() operator(pg_catalog.-) q.created end as age,
        q.retry_of
    from net.http_request_queue q
    -- OFFSET 0: a look-up for each row, whatever the statistics say, as in 52_claim.sql.
    left join lateral (
        select c.id, c.worker, c.attempt from pgnet.claim c where c.id operator(pg_catalog.=) q.id offset 0
    ) c on true
    left join lateral (
        select t.attempt, t.status_code, t.error_msg from pgnet.attempt t
        where t.request_id operator(pg_catalog.=) q.id order by t.attempt desc limit 1
    ) a on true
    left join lateral (
        select f.not_before from pgnet.flow f
        where q.held and f.request_id operator(pg_catalog.=) q.id and f.requested_by operator(pg_catalog.=) q.requested_by offset 0
    ) f on true
    left join lateral (
        select k.marked from pgnet.mark k
        where k.requested_by operator(pg_catalog.=) q.requested_by and k.request_id operator(pg_catalog.=) q.id
            and k.action operator(pg_catalog.=) 'cancel' offset 0
    ) k on true
    where not exists (
        select from pgnet.mark m
        where m.requested_by operator(pg_catalog.=) q.requested_by and m.request_id operator(pg_catalog.=) q.id
            and m.action operator(pg_catalog.=) 'forget' offset 0)
    union all
    select r.id, r.state, r.method, r.url, r.requested_by, r.status_code, r.error_msg, r.attempts, null,
        r.requested, r.created, case when pg_catalog.isfinite(r.requested) then pg_catalog.now() operator(pg_catalog.-) r.requested end, r.retry_of
    from net._http_response r
    where not exists (
        select from pgnet.mark m
        where m.requested_by operator(pg_catalog.=) r.requested_by and m.request_id operator(pg_catalog.=) r.id
            and m.action operator(pg_catalog.=) 'forget' offset 0);
comment on view net.requests is
    'Every request that is queued or whose response is kept: state, method, url, role, attempts, '
    'next attempt, last error, age. A role sees its own.';

create view net.attempts with (security_invoker) as
    select t.request_id, t.attempt, t.state, t.started, t.ended, t.status_code, t.timed_out, t.error_msg, t.retry_in
    from (
        select a.request_id, a.requested_by, a.attempt, a.ending as state, a.started, a.ended, a.status_code, a.timed_out,
            a.error_msg, a.retry_in
        from pgnet.attempt a
        union all
        select r.id, r.requested_by, r.attempts, r.state::pg_catalog.text,
            r.created operator(pg_catalog.-) pg_catalog.make_interval(secs => r.total_ms operator(pg_catalog./) 1000::double precision),
            r.created, r.status_code, r.timed_out, r.error_msg, null
        from net._http_response r
        where r.attempts operator(pg_catalog.>) 0
            and not exists (
                select from pgnet.attempt a
                where a.request_id operator(pg_catalog.=) r.id and a.attempt operator(pg_catalog.=) r.attempts offset 0)
        union all
        select q.id, q.requested_by, c.attempt, 'in_flight', c.claimed, null, null, null, null, null
        from pgnet.claim c
        cross join lateral (
            select q.id, q.requested_by from net.http_request_queue q where q.id operator(pg_catalog.=) c.id offset 0
        ) q
    ) t
    where not exists (
        select from pgnet.mark m
        where m.requested_by operator(pg_catalog.=) t.requested_by and m.request_id operator(pg_catalog.=) t.request_id
            and m.action operator(pg_catalog.=) 'forget' offset 0);
comment on view net.attempts is
    'Every attempt of requests that are queued or whose response is kept: answered (another '
    'followed), probe (the same, and it does not count for the retry policy: it tried a broken host), '
    'lost or stopped with its worker, in_flight, or the state in which the last one ended. A role '
    'sees its own.';

-- PARALLEL UNSAFE for its EXCEPTION block, which a parallel query cannot begin. Without it a body
-- could only be tried by parsing it twice, and from PostgreSQL 16 on.
create function pgnet.json_or_null(
    -- a body that is text
    content text,
    -- a body that is not text, such as JSON with characters that the database's encoding has not
    content_bytes bytea default null
)
    returns jsonb
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    json text := content;
    length bigint := coalesce(octet_length(content), 0);
begin
    if json is null then
        json := convert_from(
            case when substr(content_bytes, 1, 3) = decode('efbbbf', 'hex') then substr(content_bytes, 4) else content_bytes end, 'UTF8');
    end if;
    -- As text, jsonb has a blank behind each comma and colon, and all digits of a number: 1e131071
    -- has 131072. That text goes to the client beside the body. A shorter body cannot become too
    -- long.
    length := length + 2 * octet_length(json);
    if octet_length(json) > 50000 and length + 131072::bigint * regexp_count(json, '[0-9][eE][+-]?[0-9]') > 1000000000 then
        -- Strings are left out, and each exponent counts as it is; PostgreSQL has no number with a
        -- larger one.
        length := length + (
            select coalesce(sum(least(right('0000000' || x.found[1], 7)::bigint, 131072)), 0)
            from regexp_matches(regexp_replace(json, '"(?:[^"[.backslash.]]|[[.backslash.]].)*"', '', 'g'), '[eE][+-]?0*([0-9]{1,7})', 'g') x (found));
        if length > 1000000000 then
            return null;
        end if;
    end if;
    return json::jsonb;
exception when others then
    -- Whatever the error is, one response must not keep the others from being read.
    return null;
end
$$;
comment on function pgnet.json_or_null(text, bytea) is
    'A body as jsonb; NULL where it is no JSON, where jsonb cannot hold it, and where it and its '
    'text as jsonb are beyond 1 GB together.';

create view net.responses with (security_invoker) as
    select r.id, r.state, r.method, r.url, r.status_code, r.content_type, r.headers, r.content,
        -- Servers send JSON under other types too. A text that is only a number or a word is not
        -- meant as JSON there.
        case when r.content_type operator(pg_catalog.~*) '^[^;]*json' or r.content operator(pg_catalog.~) '^[[:space:]]*[[{]'
            then pgnet.json_or_null(r.content, r.content_bytes) end as content_json,
        r.content_bytes, r.timed_out, r.error_msg, r.attempts, r.context, r.requested_by, r.requested, r.created,
        case when pg_catalog.isfinite(r.requested) then r.created operator(pg_catalog.-) r.requested end as took,
        r.header_list, coalesce(r.final_url, r.url) as final_url, r.redirects, r.http_version, r.address,
        r.name_ms, r.connect_ms, r.tls_ms, r.first_byte_ms, r.total_ms, r.retry_of,
        b.callback, case when b.pid is not null then 'running' else b.state end as callback_state, b.attempts as callback_attempts,
        b.error_msg as callback_error
    from net._http_response r
    left join lateral (
        select b.callback, b.state, b.pid, b.attempts, b.error_msg from pgnet.callback b
        where b.request_id operator(pg_catalog.=) r.id and b.requested_by operator(pg_catalog.=) r.requested_by offset 0
    ) b on true
    where not exists (
        select from pgnet.mark m
        where m.requested_by operator(pg_catalog.=) r.requested_by and m.request_id operator(pg_catalog.=) r.id
            and m.action operator(pg_catalog.=) 'forget' offset 0);
comment on view net.responses is
    'Responses beside their requests; content_json where the body is JSON, under another type than '
    'JSON an array or object; content_bytes where the body is no text. A role sees its own.';

create view net.failures with (security_invoker) as
    select f.id, f.state, f.method::pg_catalog.text as method, f.url, f.headers, f.body, f.timeout_milliseconds, f.requested_by,
        f.created as requested, f.failed, f.attempts, f.status_code, f.error_msg, f.context, f.priority, f.options, f.retry_of
    from pgnet.failed f
    where not exists (
        select from pgnet.mark m
        where m.requested_by operator(pg_catalog.=) f.requested_by and m.request_id operator(pg_catalog.=) f.id
            and m.action operator(pg_catalog.<>) 'cancel' offset 0);
comment on view net.failures is
    'Dead letters: requests that ended as failed or unknown, or were only recorded, with headers '
    'and body, kept for the setting ttl_failed. net.retry sends one again, and takes it out of '
    'here. A role sees its own.';

-- Whether a row version was written by the current transaction, or by a savepoint of it.
create function pgnet.written_here(row_xmin xid)
    returns boolean
    language sql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    -- A row version of the running transaction, or of a savepoint of it, is not older than its
    -- transaction id (modulo 2^32).
    select coalesce((
        select pg_xact_status((top + newer)::text::xid8) = 'in progress'
        from (
            select t.top, (row_xmin::text::bigint - t.top) & 4294967295 as newer
            from (select pg_current_xact_id_if_assigned()::text::bigint as top) t
        ) x
        where newer < 2147483648), false)
$$;
comment on function pgnet.written_here(xid) is
    'Whether the current transaction wrote the row version with this xmin.';

-- A request's outcome so far, with the caller's rights; NULL fields where there is no such request.
-- PL/pgSQL keeps its plans, and what waits looks more than once. STABLE: both queries see what the
-- calling statement sees, so that no request ends between them.
create function pgnet.outcome_so_far(request_id bigint)
    returns net.outcome
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
declare
    outcome record;
begin
    select r.id, r.state, r.status_code, r.headers, r.content, r.content_bytes, r.error_msg, r.attempts, r.context into outcome
    from net._http_response r
    where r.id = request_id
        and not exists (
            select from pgnet.mark m
            where m.requested_by = r.requested_by and m.request_id = r.id and m.action = 'forget' offset 0);
    if found then
        return outcome;
    end if;
    select q.id, pgnet.waiting_state(coalesce(a.attempt, 0), c.id is not null, coalesce(q.due, f.not_before), k.marked is not null) as state,
        null::integer as status_code, null::jsonb as headers, null::text as content, null::bytea as content_bytes,
        case when c.id is null and k.marked is not null then pgnet.cancellation_message(false, a.attempt) end as error_msg,
        coalesce(c.attempt, a.attempt, 0) as attempts, q.context into outcome
    from net.http_request_queue q
    left join lateral (
        select c.id, c.attempt from pgnet.claim c where c.id = q.id offset 0
    ) c on true
    left join lateral (
        select f.not_before from pgnet.flow f
        where q.held and f.request_id = q.id and f.requested_by = q.requested_by offset 0
    ) f on true
    left join lateral (
        select t.attempt from pgnet.attempt t where t.request_id = q.id order by t.attempt desc limit 1
    ) a on true
    left join lateral (
        select k.marked from pgnet.mark k
        where k.requested_by = q.requested_by and k.request_id = q.id and k.action = 'cancel' offset 0
    ) k on true
    where q.id = outcome_so_far.request_id
        and not exists (
            select from pgnet.mark m
            where m.requested_by = q.requested_by and m.request_id = q.id and m.action = 'forget' offset 0);
    return outcome;
end
$$;
comment on function pgnet.outcome_so_far(bigint) is
    'How a request stands, as net.outcome; NULL where there is no request that the caller may see.';

-- Raises where waiting could never end: the answer would not be visible, or nothing is sent before
-- the commit.
create function pgnet.refuse_to_wait(request_id bigint)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
begin
    if exists (select from net.http_request_queue q where q.id = request_id and pgnet.written_here(q.xmin)) then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = format('request %s is not sent before this transaction commits', request_id),
            detail = 'It was queued in the same transaction that waits for it.',
            hint = 'Commit first, then wait; in psql, call net.fetch(...) does both.';
    end if;
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = format('this transaction could never see the response of request %s', request_id),
            detail = format('Its isolation level is %s: it sees the database as it was when it began.',
                upper(current_setting('transaction_isolation') collate "C")),
            hint = 'Wait in a transaction of its own, at READ COMMITTED.';
    end if;
end
$$;
comment on function pgnet.refuse_to_wait(bigint) is
    'Raises 55000 where the caller would wait for ever: in the transaction that queued the '
    'request, and where its snapshot is fixed.';

create function pgnet.wait_until(
    request_id bigint,
    -- waits no longer; infinity: however long
    give_up timestamptz,
    warns boolean default true
)
    returns net.outcome
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    outcome record;
    checked boolean := false;
    warned boolean := not warns;
    next_warning timestamptz := '-infinity';
    seconds double precision;
    nap double precision := 0.001;
    longest double precision := 0.02;
begin
    loop
        select * into outcome from pgnet.outcome_so_far(request_id);
        exit when outcome.state is null or outcome.state >= 'succeeded' or clock_timestamp() >= give_up;
        if not checked then
            perform pgnet.refuse_to_wait(request_id);
            checked := true;
        end if;
        if not warned and clock_timestamp() >= next_warning then
            perform pg_stat_clear_snapshot(); -- or else the sessions are those of the first look
            warned := pgnet.warn_without_worker(request_id);
            next_warning := clock_timestamp() + interval '1 s';
        end if;
        seconds := case when isfinite(give_up) then greatest(extract(epoch from give_up - clock_timestamp()), 0) else 1 end;
        -- Looks also where no end is told, at last once a second: it may have been recorded before
        -- this session listened, or deleted by hand.
        if pgnet.await_end(request_id, least(seconds, longest)) then
            longest := least(longest * 1.5, 1);
        else
            perform pg_sleep(least(nap, seconds));
            nap := least(nap * 1.5, 0.05);
        end if;
    end loop;
    return outcome;
end
$$;
comment on function pgnet.wait_until(bigint, timestamptz, boolean) is
    'Waits until a request has ended, and gives its outcome; past give_up, how it stands; NULL '
    'fields where there is no such request. Warns, once, where no worker runs. Raises as '
    'pgnet.refuse_to_wait does.';

create function net.wait(
    -- the request's id
    id bigint,
    -- how long at most
    timeout interval default '10 s'
)
    -- the outcome; after the timeout, how the request stands
    returns net.outcome
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    outcome record;
begin
    if id is null then
        return null;
    end if;
    select * into outcome from pgnet.wait_until(wait.id, clock_timestamp() + coalesce(timeout, interval '10 s'));
    if outcome.state is null then
        raise exception using
            errcode = 'no_data_found',
            message = 'request matching request_id not found',
            detail = format('There is no request %s of role "%s".', wait.id, current_user),
            hint = 'Its response may be older than the setting ttl, or the transaction that queued it was rolled back.';
    end if;
    if outcome.state < 'succeeded' then
        outcome.error_msg := coalesce(outcome.error_msg, pgnet.explain_words(wait.id));
    end if;
    return outcome;
end
$$;
comment on function net.wait(bigint, interval) is
    'Waits until the request has ended and returns its outcome; after the timeout (NULL: 10 s), '
    'how it stands, with the words of net.explain as error_msg. Warns where no worker runs. NULL '
    'id gives NULL. Raises P0002 for a request that is not there, 55000 in the '
    'transaction that queued it or under REPEATABLE READ.';

create function net.wait_all(
    -- the requests' ids
    ids bigint[],
    -- how long at most, for all together
    timeout interval default '10 s'
)
    -- a row for each id, in their order
    returns setof net.outcome
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    give_up timestamptz := clock_timestamp() + coalesce(timeout, interval '10 s');
    request_id bigint;
begin
    foreach request_id in array coalesce(ids, '{}') loop
        return query select o.* from net.wait(request_id, greatest(give_up - clock_timestamp(), interval '0')) o;
    end loop;
end
$$;
comment on function net.wait_all(bigint[], interval) is
    'net.wait for many: a row for each id in their order, after at most timeout (NULL: 10 s) for '
    'all together. Raises as net.wait does.';

create function net._await_response(
    -- the request's id
    request_id bigint
)
    returns boolean
    language plpgsql volatile parallel unsafe strict
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (select w.state is not null from pgnet.wait_until(request_id, 'infinity') w);
end
$$;
comment on function net._await_response(bigint) is
    'Waits until the request has ended, however long; true then, false where there is no such '
    'request. NULL gives NULL.';

create function net.http_get_result(
    -- the request's id
    request_id bigint,
    -- true: return at once; false: wait until the request has ended
    async boolean default true
)
    returns net.http_response_result
    language plpgsql volatile parallel unsafe strict
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    outcome record;
begin
    if async then
        select * into outcome from pgnet.outcome_so_far(request_id);
    else
        select * into outcome from pgnet.wait_until(request_id, 'infinity');
    end if;
    if outcome.state is null then
        return ('ERROR', 'request matching request_id not found', null)::net.http_response_result;
    elsif outcome.state < 'succeeded' then
        return ('PENDING', 'request is pending. ' || pgnet.explain_words(request_id), null)::net.http_response_result;
    end if;
    if outcome.status_code is null then
        return ('ERROR', outcome.error_msg, null)::net.http_response_result;
    end if;
    -- There was an answer. The message says what was wrong with it, such as a body that is not
    -- whole.
    return ('SUCCESS', coalesce(outcome.error_msg, 'ok'), (outcome.status_code, outcome.headers, outcome.content)::net.http_response)::net.http_response_result;
end
$$;
comment on function net.http_get_result(bigint, boolean) is
    'The result of a request: SUCCESS with the response, whose message is "ok" where all of it '
    'came and else what is amiss; ERROR with the message where there was no answer; PENDING while '
    'it is on its way, with the words of net.explain. NULL gives NULL. async := false waits, and raises 55000 in the transaction '
    'that queued the request.';

create function net.http_collect_response(
    -- the request's id
    request_id bigint,
    -- true: return at once; false: wait until the request has ended
    async boolean default true
)
    returns net.http_response_result
    language sql volatile parallel unsafe strict
    set search_path = pg_catalog, pg_temp
as $$ select net.http_get_result(request_id, async) $$;
comment on function net.http_collect_response(bigint, boolean) is
    'The same as net.http_get_result, under its older name.';

create function net._http_collect_response(
    -- the request's id
    request_id bigint,
    -- true: return at once; false: wait until the request has ended
    async boolean default true
)
    returns net.http_response_result
    language sql volatile parallel unsafe strict
    set search_path = pg_catalog, pg_temp
as $$ select net.http_get_result(request_id, async) $$;
comment on function net._http_collect_response(bigint, boolean) is
    'The same as net.http_get_result, under the private name that some users of pg_net call.';

-- Cancelling, forgetting and sending again insert a mark, with the caller's own rights:
-- 55_marks.sql is what workers do about it.
create function pgnet.mark_request(request_id bigint, requested_by regrole, action text)
    -- whether it was not marked so before
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
begin
    if requested_by = pgnet.caller_role() then
        insert into pgnet.mark (request_id, action) values (mark_request.request_id, mark_request.action) on conflict do nothing;
    else
        -- The right to say whose request it is the owner has alone.
        insert into pgnet.mark (request_id, requested_by, action)
        values (mark_request.request_id, mark_request.requested_by, mark_request.action) on conflict do nothing;
    end if;
    return found;
end
$$;
comment on function pgnet.mark_request(bigint, regrole, text) is
    'Marks a request of the caller, or of any role where the caller is the owner: workers act on '
    'it after the commit.';

create function net.cancel(
    -- the request's id
    id bigint
)
    -- whether there was something to cancel
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    requester regrole := (
        select q.requested_by from net.http_request_queue q
        where q.id = cancel.id and (q.requested_by = pgnet.caller_role() or pgnet.caller_is_owner())
            and not exists (
                select from pgnet.mark m
                where m.requested_by = q.requested_by and m.request_id = q.id and m.action <> 'retry'));
begin
    if requester is null then
        return pgnet.unblock_head(id);
    elsif not pgnet.mark_request(id, requester, 'cancel') then
        return false;
    end if;
    perform pgnet.reload_workers();
    perform pgnet.tell_waiter(id);
    return true;
end
$$;
comment on function net.cancel(bigint) is
    'Ends a queued request as cancelled, and true: from the commit on it is not sent (again), and '
    'where it is in flight, its connection is closed and it may have been received. Of the failed '
    'head of a blocked key it unblocks the key, as net.unblock does. False where it has ended '
    'already, is not there, or is another role''s. NULL gives false.';

create function net.forget(
    -- the request's id
    id bigint
)
    -- whether there was something to forget
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    requester regrole := (
        select o.requested_by
        from (
            select q.requested_by from net.http_request_queue q where q.id = forget.id
            union all
            select r.requested_by from net._http_response r where r.id = forget.id
            union all
            select f.requested_by from pgnet.failed f where f.id = forget.id
        ) o
        where o.requested_by = pgnet.caller_role() or pgnet.caller_is_owner()
        limit 1);
begin
    if requester is null or not pgnet.mark_request(id, requester, 'forget') then
        return false;
    end if;
    perform pgnet.unblock_head(id);
    perform pgnet.reload_workers();
    perform pgnet.tell_waiter(id);
    return true;
end
$$;
comment on function net.forget(bigint) is
    'Removes what there is of a request, and true: from the queue without a response, its '
    'response, its failure, its attempts. From the commit on it is not sent (again), and blocks '
    'no key; a worker removes the rows. False where it is not there, or is another role''s. NULL gives false.';

create function pgnet.held_again(request_id bigint, requested_by regrole, options jsonb)
    returns boolean
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
begin
    if jsonb_typeof(options -> 'ordering_key') = 'string' then
        return true;
    elsif exists (
        select from pgnet.callback b where b.request_id = held_again.request_id and b.requested_by = held_again.requested_by)
    then
        return false;
    end if;
    return null;
end
$$;
comment on function pgnet.held_again(bigint, regrole, jsonb) is
    'The column held of a request that is sent again: it has the ordering key of the first one, and '
    'its callback.';

-- The caller has marked the failures first: the policy of the queue asks for that.
create function pgnet.send_again(ids bigint[], new_idempotency_key boolean)
    -- the ids of the new requests
    returns setof bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    made_ids bigint[];
begin
    if pgnet.caller_is_owner() then
        -- The right to say whose request it is the owner has alone.
        with made as (
            insert into net.http_request_queue as q (
                method, url, headers, body, timeout_milliseconds, requested_by, priority, context, options, retry_of, held)
            select f.method, f.url, f.headers, f.body, f.timeout_milliseconds, f.requested_by, f.priority, f.context,
                pgnet.options_again(f.options, f.idempotency_key, new_idempotency_key), f.id,
                pgnet.held_again(f.id, f.requested_by, f.options)
            from pgnet.failed f where f.id = any (ids)
            returning q.id, q.requested_by, q.options, q.held, q.retry_of
        ), flows as (
            insert into pgnet.flow (request_id, requested_by, ordering_key, gate, callback, callback_oid)
            select m.id, m.requested_by, case when m.held then m.options ->> 'ordering_key' end, case when m.held then 'new'::pgnet.gate end,
                b.callback, b.callback_oid
            from made m
            left join pgnet.callback b on b.request_id = m.retry_of and b.requested_by = m.requested_by
            where m.held is not null
        )
        select array_agg(m.id) into made_ids from made m;
    else
        with made as (
            insert into net.http_request_queue as q (
                method, url, headers, body, timeout_milliseconds, priority, context, options, retry_of, held)
            select f.method, f.url, f.headers, f.body, f.timeout_milliseconds, f.priority, f.context,
                pgnet.options_again(f.options, f.idempotency_key, new_idempotency_key), f.id,
                pgnet.held_again(f.id, f.requested_by, f.options)
            from pgnet.failed f where f.id = any (ids) and f.requested_by = pgnet.caller_role()
            returning q.id, q.options, q.held, q.retry_of
        ), flows as (
            insert into net._new_flow (request_id, ordering_key, gate, callback, callback_oid)
            select m.id, case when m.held then m.options ->> 'ordering_key' end, case when m.held then 'new'::pgnet.gate end,
                b.callback, b.callback_oid
            from made m
            left join pgnet.callback b on b.request_id = m.retry_of and b.requested_by = pgnet.caller_role()
            where m.held is not null
        )
        select array_agg(m.id) into made_ids from made m;
    end if;
    perform pgnet.hint_retries(made_ids);
    return query select m.id from unnest(made_ids) m (id);
end
$$;
comment on function pgnet.send_again(bigint[], boolean) is
    'Makes new requests of failed ones that the caller has marked so; gives their ids.';

create function pgnet.options_again(options jsonb, idempotency_key text, new_idempotency_key boolean)
    returns jsonb
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    select nullif(
        -- A row that was inserted by hand may have options that are no object; it has failed for
        -- that.
        case when jsonb_typeof(options) = 'object' then options else '{}' end - array['idempotency_key', 'after', 'after_any_end']
            || case when k.key is null then '{}' else jsonb_build_object('idempotency_key', k.key) end, '{}')
    from (
        select case when new_idempotency_key is true then case when options ? 'idempotency_key' then gen_random_uuid()::text end
            else idempotency_key end as key
    ) k
$$;
comment on function pgnet.options_again(jsonb, text, boolean) is
    'The options of a request that is sent again: with the idempotency key of the first one, or '
    'with a new one, and without those that say which requests it comes after.';

create function net.retry(
    -- the id of a failed request, as net.failures shows it
    id bigint,
    -- the default keeps the key: a server that did what the first request asked for then does
    -- nothing
    new_idempotency_key boolean default false,
    -- also one that is unknown: it may have been received
    even_unknown boolean default false
)
    -- the id of the new request
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    requester regrole;
    found_state text;
    request_id bigint;
begin
    if id is null then
        return null;
    end if;
    select f.requested_by, f.state into requester, found_state from pgnet.failed f
    where f.id = retry.id and (f.requested_by = pgnet.caller_role() or pgnet.caller_is_owner())
        and not exists (
            select from pgnet.mark m
            where m.requested_by = f.requested_by and m.request_id = f.id and m.action <> 'cancel');
    if found_state = 'unknown' and even_unknown is not true then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = format('whether request %s was received is unknown, and it was to be sent once at most', id),
            hint = 'If it was not received, or may be sent twice: select net.retry(id, even_unknown => true). To leave such requests out: where state = ''failed''.';
    end if;
    -- Of several sessions that retry the request, the one whose mark comes first does so. The
    -- request is read after that: it may be gone.
    if requester is not null and pgnet.mark_request(id, requester, 'retry') then
        if pgnet.pending_limits() is not null then
            perform pgnet.refuse_backlog();
        end if;
        request_id := pgnet.send_again(array[id], new_idempotency_key);
    end if;
    if request_id is null then
        raise exception using
            errcode = 'no_data_found',
            message = format('there is no request %s to send again', id),
            hint = 'net.failures shows the requests that can be sent again. It does not have those that are in flight, have succeeded, were sent again already, are older than the setting ttl_failed, or are another role''s.';
    end if;
    perform pgnet.announce_retry(id, request_id);
    perform net.wake();
    return request_id;
end
$$;
comment on function net.retry(bigint, boolean, boolean) is
    'Makes a new request, with retry_of, of one that failed, and gives its id; many by: select '
    'net.retry(id) from net.failures where ... The Idempotency-Key stays the same unless a new one '
    'is asked for. It is the requester''s also where the owner sends it again. It does not wait for '
    'the ids in its option after. The failed head of a blocked key goes before those that wait '
    'behind it. NULL id gives NULL. '
    'Raises P0002 for what is not in net.failures, 55000 for one that is unknown.';

create procedure net.fetch(
    -- GET, POST, DELETE or another method
    method text,
    -- absolute http or https URL
    url text,
    -- sent as JSON; NULL means no body
    body jsonb default null,
    -- appended to the query; NULL means none
    params jsonb default '{}',
    -- request headers; NULL means none
    headers jsonb default '{}',
    -- total time in ms; NULL means 30000
    timeout_milliseconds integer default 30000,
    -- the answer: these show it
    inout id bigint default null,
    inout status_code integer default null,
    inout content text default null,
    inout error_msg text default null
)
    language plpgsql
as $$
declare
    outcome record;
    warns boolean := true;
begin
    id := net.http_request(method, url, body, params, headers, timeout_milliseconds);
    commit;
    loop
        -- A second, and not longer: the snapshot of the statement would keep vacuum from its work.
        select * into outcome from pgnet.wait_until(id, pg_catalog.clock_timestamp() operator(pg_catalog.+) interval '1 s', warns);
        warns := false;
        exit when outcome.state is null or outcome.state operator(pg_catalog.>=) 'succeeded'::net.request_state;
        commit;
    end loop;
    status_code := outcome.status_code;
    content := outcome.content;
    error_msg := coalesce(outcome.error_msg,
        case when outcome.state is null then 'The request was deleted.' end);
end
$$;
comment on procedure net.fetch(text, text, jsonb, jsonb, jsonb, integer, bigint, integer, text, text) is
    'For use in psql: queues a request, commits, waits and shows the answer. Not inside a '
    'transaction block. Raises as net.http_request does; a body is sent as JSON.';

-- ======== extension/61_hosts.sql ========

-- net.hosts: hosts that have settings, and how it stands with them.

create view net.hosts as
    with learnt as (
        -- Names of hosts are known to the roles that send requests to them, and to the owner.
        select t.host, t.role::pg_catalog.regrole as role,
            case when t.state operator(pg_catalog.=) 'closed' and t.closed_until operator(pg_catalog.>) pg_catalog.clock_timestamp()
                then 'slowed' else t.state end as state,
            t.since, t.reason, t.closed_until,
            (select pg_catalog.sum(c.value::integer)::integer from pg_catalog.jsonb_each_text(t.concurrency) c) as adaptive
        from pgnet.host_state t
        where t.role operator(pg_catalog.=) pgnet.caller_role()::pg_catalog.oid or pgnet.caller_is_owner()
    )
    select u.host, h.settings, l.concurrency, l.in_flight, l.rate, l.burst, l.next_token,
        s.role, s.state, s.since, s.reason as why, s.closed_until as next_probe, s.adaptive,
        p.since as paused_since, p.reason as pause_reason
    from (
        select h.pattern collate "C" as host from pgnet.host h
        union
        select b.host collate "C" from pgnet.host_budget b
        where (b.concurrency is not null or b.rate is not null) and pgnet.caller_is_owner()
        union
        select p.host collate "C" from pgnet.pause p where p.host operator(pg_catalog.=) '*' or pgnet.caller_is_owner()
        union
        select t.host from learnt t
    ) u
    left join pgnet.host h on (h.pattern collate "C") operator(pg_catalog.=) u.host
    left join learnt s on s.host operator(pg_catalog.=) u.host
    cross join lateral pgnet.limits_of_host(u.host) l
    -- As in pgnet.pause_of.
    left join lateral (
        select t.since, t.reason from pgnet.pause t
        where t.host operator(pg_catalog.=) any (array['*', u.host, pg_catalog.regexp_replace(u.host, ':[0-9]+$', '')])
        order by t.host operator(pg_catalog.<>) u.host, t.host operator(pg_catalog.=) '*' limit 1
    ) p on true
    offset 0; -- or else a role with that right could write through the view, as its owner
comment on view net.hosts is
    'Hosts with settings, by net.configure_host; for the owner those with limits that have '
    'requests, and those that are paused; and those of which workers have learnt something from the '
    'requests of a role, which that role sees, and the owner. One row for each pattern or host, and '
    'each role. Of all patterns that match a host, the most specific one that has a setting counts.';
comment on column net.hosts.host is
    'A pattern of net.configure_host, or a host as in a URL, with its port where it has one.';
comment on column net.hosts.settings is 'What is configured for just this pattern; NULL: nothing.';
comment on column net.hosts.concurrency is
    'How many requests may be in flight at once, by all patterns that match; NULL: any number.';
comment on column net.hosts.in_flight is
    'How many requests with a limit are in flight at the host of just this name.';
comment on column net.hosts.rate is 'How many requests may begin in a time; NULL: any number.';
comment on column net.hosts.burst is 'How many more than the rate may begin at once.';
comment on column net.hosts.next_token is
    'When the next request may begin by the rate; NULL: now.';
comment on column net.hosts.paused_since is
    'Since when the requests to this host wait for net.resume; NULL: they do not.';
comment on column net.hosts.pause_reason is 'The reason that net.pause was given.';
comment on column net.hosts.role is
    'The role whose requests the following columns are about; NULL: there is nothing to say.';
comment on column net.hosts.state is
    'closed, open or half_open, of the circuit breaker: while it is not closed only a probe is '
    'sent now and then. slowed: the host has asked for a pause.';
comment on column net.hosts.since is 'When that state began.';
comment on column net.hosts.why is 'Why the breaker has opened, or requests wait.';
comment on column net.hosts.next_probe is
    'When a request is sent next; with half_open, when a probe that does not end is given up.';
comment on column net.hosts.adaptive is
    'How many requests all workers together have in flight at most, where the host made it less; '
    'NULL: it did not.';

-- ======== extension/61_keys.sql ========

-- Ordering keys for callers: which ones are blocked, and the ways out. 49_gates.sql is what workers
-- do about it.

-- A key is blocked from the commit on in which its head is recorded as failed: until open_gates has
-- seen the hint, the hint stands for the block. It is not blocked any more from the commit of
-- net.unblock or net.retry on.
create view pgnet.key_block with (security_invoker) as
    select t.*
    from (
        select b.requested_by, b.ordering_key, b.head, b.state, b.status_code, b.error_msg, b.since
        from pgnet.blocked_key b
        union all
        select e.requested_by, e.ordering_key, e.request_id, e.state, e.status_code, e.error_msg, e.noted
        from pgnet.ended_request e
        where e.blocks
            and not exists (
                select from pgnet.blocked_key b
                where b.requested_by operator(pg_catalog.=) e.requested_by and b.ordering_key operator(pg_catalog.=) e.ordering_key)
    ) t
    where not exists (
        select from pgnet.ended_request u
        where (u.unblocks or u.retry_id is not null)
            and u.requested_by operator(pg_catalog.=) t.requested_by and u.request_id operator(pg_catalog.=) t.head);
comment on view pgnet.key_block is
    'The keys that are blocked, and their heads. net.blocked_keys shows more.';

create function pgnet.requests_behind(requested_by regrole, ordering_key text)
    returns integer
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
    select count(*)::integer
    from (
        select f.request_id from pgnet.flow f
        where f.requested_by = requests_behind.requested_by and f.ordering_key = requests_behind.ordering_key and f.ordering_key is not null
        limit 10000
    ) f
$$;
comment on function pgnet.requests_behind(regrole, text) is
    'How many requests of a key wait; of more than 10,000 it counts 10,000.';

create view net.blocked_keys with (security_invoker) as
    select b.ordering_key as key, b.head, b.state, b.status_code, b.error_msg,
        pgnet.requests_behind(b.requested_by, b.ordering_key) as waiting, b.since, b.requested_by
    from pgnet.key_block b;
comment on view net.blocked_keys is
    'Ordering keys whose head has failed, so that no request of the key is sent: the head''s id and '
    'its error, how many requests wait behind it (exact up to 10,000), since when. The ways out: '
    'net.retry(head), net.cancel(head), net.unblock(key). A role sees its own.';

create function pgnet.unblock_head(
    -- the id of a failed request
    head bigint
)
    -- whether it blocked a key
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    blocked record;
begin
    select b.requested_by, b.ordering_key into blocked
    from pgnet.key_block b
    where b.head = unblock_head.head and (b.requested_by = pgnet.caller_role() or pgnet.caller_is_owner());
    if not found then
        return false;
    end if;
    if blocked.requested_by = pgnet.caller_role() then
        insert into pgnet.ended_request (request_id, ordering_key, unblocks) values (head, blocked.ordering_key, true);
    else
        -- The right to say whose request it is the owner has alone.
        insert into pgnet.ended_request (request_id, requested_by, ordering_key, unblocks)
        values (head, blocked.requested_by, blocked.ordering_key, true);
    end if;
    raise notice 'key "%" is not blocked any more by request %; requests that waited behind it, and are sent one after the other: %',
        blocked.ordering_key, head, pgnet.requests_behind(blocked.requested_by, blocked.ordering_key);
    perform net.wake();
    return true;
end
$$;
comment on function pgnet.unblock_head(bigint) is
    'Has workers unblock the key that a failed request of the caller blocks, or of any role where '
    'the caller is the owner; a NOTICE says how many requests that lets run.';

create function net.unblock(
    -- the ordering key, as net.blocked_keys shows it
    key text
)
    -- whether it was blocked
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    failed_head bigint;
    unblocked boolean := false;
begin
    for failed_head in
        select b.head from pgnet.key_block b
        where b.ordering_key = key collate "C" and (b.requested_by = pgnet.caller_role() or pgnet.caller_is_owner()
            -- The owner's own key, where the owner has blocked it, and no other role's.
            and not exists (
                select from pgnet.key_block o where o.ordering_key = key collate "C" and o.requested_by = pgnet.caller_role()))
    loop
        unblocked := pgnet.unblock_head(failed_head) or unblocked;
    end loop;
    return unblocked;
end
$$;
comment on function net.unblock(text) is
    'Lets the requests run that wait behind the failed head of this ordering key, and true; the '
    'head is not sent again. A NOTICE says how many they are. False where the key is not blocked. '
    'The owner, where no request of its own blocks the key, unblocks it for all roles. NULL gives '
    'false.';

create function pgnet.hint_retries(
    -- requests that were sent again, of the caller, or of any role where the caller is the owner
    ids bigint[]
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
begin
    if pgnet.caller_is_owner() then
        -- The right to say whose request it is the owner has alone.
        insert into pgnet.ended_request (request_id, requested_by, ordering_key, retry_id)
        select b.head, b.requested_by, b.ordering_key, q.id
        from net.http_request_queue q
        join pgnet.key_block b on b.head = q.retry_of and b.requested_by = q.requested_by
        where q.id = any (ids);
    else
        insert into pgnet.ended_request (request_id, ordering_key, retry_id)
        select b.head, b.ordering_key, q.id
        from net.http_request_queue q
        join pgnet.key_block b on b.head = q.retry_of and b.requested_by = q.requested_by
        where q.id = any (ids) and q.requested_by = pgnet.caller_role();
    end if;
end
$$;
comment on function pgnet.hint_retries(bigint[]) is
    'Hints for workers that requests go first in keys which the requests that they repeat block.';

create function pgnet.announce_retry(
    -- a request that failed, and the one that net.retry has made of it
    head bigint, retry_id bigint
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    blocked record;
begin
    select e.requested_by, e.ordering_key into blocked
    from pgnet.ended_request e where e.request_id = announce_retry.head and e.retry_id = announce_retry.retry_id;
    if found then
        raise notice 'request % goes first in key "%", which request % blocked; requests that wait behind it: %',
            retry_id, blocked.ordering_key, head, pgnet.requests_behind(blocked.requested_by, blocked.ordering_key) - 1;
    end if;
end
$$;
comment on function pgnet.announce_retry(bigint, bigint) is
    'Where the failed request blocks a key, a NOTICE says how many requests the retry lets run.';

-- ======== extension/62_explain.sql ========

-- Why a request waits, or how it ended: net.explain, in words.
--
-- The words are made of facts, and the facts are those that a claim looks at: the row of the queue,
-- its claim, its mark, its attempts, the workers, and the tables of pauses, broken hosts, limits
-- and gates. A caller may not read all of these. So views with the owner's rights give the facts of
-- the caller's own requests, and of other roles' requests numbers only. They are security barriers:
-- no condition of a caller's is asked for a row that the caller may not see.

create function pgnet.caller_reads_all()
    returns boolean
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select pgnet.caller_is_owner() or coalesce((select r.rolbypassrls from pg_roles r where r.rolname = current_user), false)
$$;
comment on function pgnet.caller_reads_all() is
    'Whether row security shows the current role the requests of every role.';

create view pgnet.request_fact with (security_barrier) as
    select q.id, pgnet.host_of_url(q.url) as host, q.requested_by, q.priority, q.created, q.due, q.held, q.origin,
        h.not_before, h.not_after, h.ordering_key, h.gate, q.xmin as row_xmin, q.xmax as row_xmax, q.options, k.marked as cancelled,
        coalesce(a.attempt, 0) as attempts, a.ending, a.status_code, a.error_msg, a.ended as attempt_ended,
        c.id is not null as claimed, c.worker, c.attempt as claimed_attempt, c.claimed as claimed_at, c.progress,
        c.claimed operator(pg_catalog.+) pg_catalog.make_interval(secs => least(
            coalesce(q.timeout_milliseconds, (select pgnet.setting_value('timeout_milliseconds')::integer)),
            (select pgnet.max_timeout_milliseconds())) operator(pg_catalog./) 1000.0::double precision) as deadline,
        w.gone_since, w.stalled_since, w.ended as worker_ended,
        p.host as paused_host, p.since as paused_since, p.reason as pause_reason,
        s.closed_until, s.needs_probe, s.state as breaker, s.since as broken_since, s.reason as broken_by, s.slowed_until, 
        -- As pgnet.claim_requests asks.
        (select exists (
            select from pgnet.host h where h.settings operator(pg_catalog.?|) '{concurrency,rate}'::pg_catalog.text[])) as has_limits
    from net.http_request_queue q
    -- OFFSET 0: a look-up for each row, whatever the statistics say, as in 52_claim.sql.
    left join lateral (
        select c.* from pgnet.claim c where c.id operator(pg_catalog.=) q.id offset 0
    ) c on true
    left join lateral (
        select h.* from pgnet.flow h
        where q.held is not null and h.request_id operator(pg_catalog.=) q.id and h.requested_by operator(pg_catalog.=) q.requested_by offset 0
    ) h on true
    left join lateral (
        select w.gone_since, w.stalled_since, w.ended from pgnet.worker w where w.id operator(pg_catalog.=) c.worker offset 0
    ) w on true
    left join lateral (
        select t.* from pgnet.attempt t where t.request_id operator(pg_catalog.=) q.id order by t.attempt desc limit 1
    ) a on true
    left join lateral (
        select k.marked from pgnet.mark k
        where k.requested_by operator(pg_catalog.=) q.requested_by and k.request_id operator(pg_catalog.=) q.id
            and k.action operator(pg_catalog.=) 'cancel' offset 0
    ) k on true
    left join lateral (
        select t.* from pgnet.pause t
        where t.host operator(pg_catalog.=) any (array[
            '*', pgnet.host_of_url(q.url), pg_catalog.regexp_replace(pgnet.host_of_url(q.url), ':[0-9]+$', '')])
        -- As pgnet.pause_of.
        order by t.host operator(pg_catalog.<>) pgnet.host_of_url(q.url), t.host operator(pg_catalog.=) '*' limit 1
    ) p on true
    left join lateral (
        select s.* from pgnet.host_state s
        where s.host operator(pg_catalog.=) pgnet.host_of_url(q.url) and s.role operator(pg_catalog.=) q.requested_by::pg_catalog.oid offset 0
    ) s on true
    where (q.requested_by operator(pg_catalog.=) (select pgnet.caller_role()) or (select pgnet.caller_reads_all()))
        and not exists (
            select from pgnet.mark m
            where m.requested_by operator(pg_catalog.=) q.requested_by and m.request_id operator(pg_catalog.=) q.id
                and m.action operator(pg_catalog.=) 'forget' offset 0);
comment on view pgnet.request_fact is
    'What there is to say of each request that has not ended. A role sees its own.';

create view pgnet.request_load with (security_barrier) as
    select q.id, w.id as worker, coalesce(w.slots, (select pgnet.setting_value('concurrency')::integer)) as slots, l.in_flight, l.at_host,
        (w.full_places operator(pg_catalog.->>) pg_catalog.concat(q.requested_by::pg_catalog.oid, ' ', pgnet.host_of_url(q.url)))::integer as adapted
    from net.http_request_queue q
    cross join lateral (
        select w.* from pgnet.worker w where w.ended is null and pgnet.session_is_alive(w.pid, w.backend_start) offset 0
    ) w
    cross join lateral (
        select pg_catalog.count(*) as in_flight,
            pg_catalog.count(*) filter (where c.host operator(pg_catalog.=) pgnet.host_of_url(q.url)) as at_host
        from pgnet.claim c where c.worker operator(pg_catalog.=) w.id
    ) l
    where q.requested_by operator(pg_catalog.=) (select pgnet.caller_role()) or (select pgnet.caller_reads_all());
comment on view pgnet.request_load is
    'For each request and each worker that runs: how many requests the worker may have in flight, '
    'how many it has, and how many of these at the host of the request. A role sees its own '
    'requests.';

-- The hosts of other roles' requests are not named.
create view pgnet.request_rival with (security_barrier) as
    select q.id, r.host, r.in_flight
    from net.http_request_queue q
    cross join lateral (
        select case when v.visible then c.host end as host, pg_catalog.count(*) as in_flight
        from pgnet.claim c
        cross join lateral (
            select c.role operator(pg_catalog.=) (select pgnet.caller_role()::pg_catalog.oid) or (select pgnet.caller_reads_all()) as visible
        ) v
        where c.worker is not null
        group by 1
    ) r
    where q.requested_by operator(pg_catalog.=) (select pgnet.caller_role()) or (select pgnet.caller_reads_all());
comment on view pgnet.request_rival is
    'For each request how many requests workers have in flight, by host; the host is NULL for those '
    'of other roles. A role sees its own requests.';

-- The requests of the same role for the same host whose turn comes before, up to 101 of them.
create view pgnet.request_before with (security_barrier) as
    select q.id, b.id as before
    from net.http_request_queue q
    cross join lateral (
        select o.id from net.http_request_queue o
        where o.due is null and o.held is not true and o.origin is null
            and (pgnet.host_of_url(o.url) collate "C") operator(pg_catalog.=) pgnet.host_of_url(q.url) and o.requested_by operator(pg_catalog.=) q.requested_by
            and (o.priority, o.id) operator(pg_catalog.<) (q.priority, q.id)
            and not exists (select from pgnet.claim c where c.id operator(pg_catalog.=) o.id offset 0)
        order by o.priority, o.id limit 101
    ) b
    where q.requested_by operator(pg_catalog.=) (select pgnet.caller_role()) or (select pgnet.caller_reads_all());
comment on view pgnet.request_before is
    'For each request those of its role for its host whose turn comes before, 101 at most. A role '
    'sees its own.';

create type pgnet.reason as (
    -- a word or two, always the same for the same reason
    reason text,
    detail text,
    -- when the reason ends by itself; NULL: that is not known
    until timestamptz,
    -- what to do about it
    hint text
);
comment on type pgnet.reason is 'A row of net.explain().';

create function pgnet.is_copy()
    returns boolean
    language sql stable parallel restricted security definer
    set search_path = pg_catalog, pg_temp
as $$ select pgnet.copy_fault() is not null $$;
comment on function pgnet.is_copy() is
    'Whether this database is a copy that was not adopted.';

-- PostgreSQL keeps no list of locked rows. A row that a transaction has locked, or is about to
-- change, has the number of that transaction as its xmax; or where several share it, a number of
-- another kind, which is taken for an old transaction.
create function pgnet.is_locked(row_xmax xid)
    returns boolean
    language sql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce(row_xmax::text <> '0' and (
        -- The newest transaction with these 32 bits.
        select pg_xact_status((n.next - ((n.next - row_xmax::text::bigint) & 4294967295))::text::xid8) = 'in progress'
        from (select pg_snapshot_xmax(pg_current_snapshot())::text::bigint as next) n
        where n.next - ((n.next - row_xmax::text::bigint) & 4294967295) > 2
    ), false) and row_xmax::text::bigint <> coalesce((pg_current_xact_id_if_assigned()::text::bigint & 4294967295), 0)
$$;
comment on function pgnet.is_locked(xid) is
    'Whether another transaction holds a lock on the row with this xmax.';

-- ---- the words

-- A time in words, to the second.
create function pgnet.time_words(at timestamptz)
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$ select date_trunc('second', at)::text $$;
comment on function pgnet.time_words(timestamptz) is 'A time for a message, to the second.';

create function pgnet.attempt_words(attempts integer, ending text, status_code integer, error_msg text)
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select format('Attempt %s ended with: %s', attempts,
        coalesce(error_msg, 'status ' || status_code::text, ending))
$$;
comment on function pgnet.attempt_words(integer, text, integer, text) is
    'How an attempt ended, after which another one follows.';

create function pgnet.reasons_in_flight(fact pgnet.request_fact)
    returns setof pgnet.reason
    language plpgsql stable parallel restricted
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select 'in flight',
        format('Attempt %s has been in flight since %s', fact.claimed_attempt, pgnet.time_words(fact.claimed_at))
            || coalesce(', ' || fact.progress, '') || '.',
        fact.deadline, format('To give it up: select net.cancel(%s);', fact.id)
    where fact.worker is not null
    union all
    select 'worker lost', case
            when fact.worker_ended is not null then 'The worker that has it has ended: other workers take it over when they look.'
            when fact.gone_since is not null then format('The worker that has it is gone since %s: other workers take it over.',
                pgnet.time_words(fact.gone_since))
            else format('The worker that has it has not looked since %s.', pgnet.time_words(fact.stalled_since)) end,
        fact.gone_since + pgnet.setting_value('rescue_after')::interval,
        case when not pgnet.worker_is_up() then pgnet.how_to_start_a_worker() end
    where fact.worker is not null and (fact.worker_ended is not null or fact.gone_since is not null or fact.stalled_since is not null)
    union all
    select 'recording', 'It has ended, and its outcome cannot be recorded yet: net.check() says why, to the owner.', null, null
    where fact.worker is null
    union all
    select 'cancelled', 'It is being cancelled: its worker closes the connection.', null, null
    where fact.cancelled is not null;
end
$$;
comment on function pgnet.reasons_in_flight(pgnet.request_fact) is
    'What net.explain says of a request that a worker has claimed.';

-- Whatever the caller's session has set: the workers' sessions count.
create function pgnet.modes_of_workers()
    returns text[]
    language sql stable parallel restricted security definer
    set search_path = pg_catalog, pg_temp
as $$
    select array(
        select distinct coalesce(w.mode, pgnet.setting_value('mode')) from pgnet.worker w
        where w.ended is null and pgnet.session_is_alive(w.pid, w.backend_start)
        order by 1)
$$;
comment on function pgnet.modes_of_workers() is
    'The modes that the workers which run have found; none where no worker runs.';

create function pgnet.reasons_of_database()
    returns setof pgnet.reason
    language plpgsql stable parallel restricted
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select 'copy', format('The database "%s" is a copy: no worker serves it before it is adopted.', current_database()), null::timestamptz,
        'If its queue is to be sent from here too: select net.adopt_database();'
    where pgnet.is_copy()
    union all
    select 'no worker', 'No worker is running.', null, pgnet.how_to_start_a_worker()
    where not pgnet.worker_is_up()
    union all
    select 'mode ' || m.mode, case m.mode when 'off' then 'The mode is off: requests wait, and nothing is sent.'
            else 'The mode is record: requests are recorded, and not sent.' end,
        null, 'To the owner net.check() shows each place that sets the mode.'
    from unnest(case when pgnet.worker_is_up() then pgnet.modes_of_workers() else array[pgnet.setting_value('mode')] end) m (mode)
    where m.mode <> 'on';
end
$$;
comment on function pgnet.reasons_of_database() is
    'What net.explain says where nothing is sent from this database.';

create function pgnet.reasons_of_request(fact pgnet.request_fact)
    returns setof pgnet.reason
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select 'uncommitted', 'It is not sent before this transaction commits.', null::timestamptz, null::text
    where pgnet.written_here(fact.row_xmin)
    union all
    select 'replicated', format('It has come by the subscription "%s", and the server that it comes from sends it.', fact.origin), null,
        'Where this server takes the place of that one: drop the subscription, then select net.adopt_database();'
    where fact.origin is not null
    union all
    select 'not before', format('It is not sent before %s.', pgnet.time_words(fact.not_before)), fact.not_before, null
    where fact.not_before > statement_timestamp()
    union all
    select 'not after', format('It ends as expired where it is not sent before %s.', pgnet.time_words(fact.not_after)), fact.not_after, null
    where isfinite(fact.not_after)
    union all
    select 'quarantine', format('It was lost with %s workers, so it is attempted apart from others, as soon as its turn comes.',
            (select count(*) from pgnet.attempt a where a.request_id = fact.id and a.ending = 'lost')), null, null
    where fact.due >= 'infinity'
    union all
    select 'next attempt', format('Attempt %s follows at %s. %s', fact.attempts + 1, pgnet.time_words(fact.due),
            pgnet.attempt_words(fact.attempts, fact.ending, fact.status_code, fact.error_msg)), fact.due, null
    where fact.due < 'infinity'
    union all
    select 'attempts', pgnet.attempt_words(fact.attempts, fact.ending, fact.status_code, fact.error_msg), null, null
    where fact.due is null and fact.attempts > 0
    union all
    select 'marks', 'Workers first carry out more than 2000 calls of net.cancel and net.forget of this role.', null, null
    where (select count(*) from (
            select from pgnet.mark m
            where m.requested_by = fact.requested_by and m.action <> 'retry' and m.retry_at is null limit 2001) m) > 2000
    union all
    select 'locked', 'Another transaction holds a lock on its row of net.http_request_queue.', null,
        'Which one: select pid, query from pg_stat_activity where xact_start is not null and pid <> pg_backend_pid();'
    where pgnet.is_locked(fact.row_xmax);
end
$$;
comment on function pgnet.reasons_of_request(pgnet.request_fact) is
    'What net.explain says of the request itself: its times, its attempts, its row.';

-- With the caller's rights: keys, and the requests that one comes after, are the role's own.
create function pgnet.reasons_of_gates(fact pgnet.request_fact)
    returns setof pgnet.reason
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    blocked record;
    head bigint;
begin
    if fact.gate = 'new' then
        return query
        select 'gate', 'No worker has looked yet which requests it waits for.', null::timestamptz, null::text;
    elsif fact.gate = 'key' then
        select b.* into blocked from pgnet.key_block b
        where b.requested_by = fact.requested_by and b.ordering_key = fact.ordering_key;
        -- The request of the key whose gate is open.
        head := (
            select f.request_id from pgnet.flow f
            where f.ordering_key = fact.ordering_key and f.requested_by = fact.requested_by and f.gate is null limit 1);
        return query
        select 'key', case when blocked.head is not null then format('Its ordering_key "%s" is blocked by request %s, which has ended as %s: %s.',
                    fact.ordering_key, blocked.head, blocked.state,
                    coalesce(rtrim(blocked.error_msg, '.'), 'status ' || blocked.status_code, 'no answer'))
                when head is not null then format('It waits behind its ordering_key "%s", whose head is request %s.', fact.ordering_key, head)
                else format('It waits behind its ordering_key "%s", whose next request workers are about to choose.', fact.ordering_key) end,
            null::timestamptz,
            case when blocked.head is not null then format('The ways out: select net.retry(%1$s); or select net.unblock(%2$L);',
                    blocked.head, fact.ordering_key)
                when head is not null then format('Why that one waits: select * from net.explain(%s);', head) end;
    elsif fact.gate = 'ids' then
        return query
        select 'after', format('It is sent after requests that have not ended: %s%s.', string_agg(d.after_id::text, ', ' order by d.after_id),
                case when count(*) = 10 then ' and perhaps more' else '' end),
            null::timestamptz, format('Why the first of them waits: select * from net.explain(%s);', min(d.after_id))
        from (
            select d.after_id from pgnet.dependency d where d.request_id = fact.id order by d.after_id limit 10
        ) d
        having count(*) > 0;
    end if;
end
$$;
comment on function pgnet.reasons_of_gates(pgnet.request_fact) is
    'What net.explain says of the requests that it waits for.';

create function pgnet.reasons_of_limits(fact pgnet.request_fact)
    returns setof pgnet.reason
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    -- The same as pgnet.host_room asks, without its locks.
    limits record;
begin
    if fact.has_limits is not true then
        return;
    end if;
    limits := pgnet.limits_of_host(fact.host);
    return query
    select 'limited', format('The host %s may have %s in flight at once, and has %s.', fact.host,
            case limits.concurrency when 1 then '1 request' else format('%s requests', limits.concurrency) end, limits.in_flight),
        null::timestamptz, 'The limit was set by net.configure_host: select * from net.hosts;'
    where limits.in_flight >= limits.concurrency
    union all
    select 'limited', format('The host %s may be sent %s, and the next request at %s.', fact.host,
            replace(limits.rate, '/', ' requests a '), to_char(limits.next_token, 'HH24:MI:SS.MS')),
        limits.next_token, 'The limit was set by net.configure_host: select * from net.hosts;'
    where limits.next_token > statement_timestamp();
end
$$;
comment on function pgnet.reasons_of_limits(pgnet.request_fact) is
    'What net.explain says where a limit of the host leaves no room.';

create function pgnet.reasons_of_host(fact pgnet.request_fact)
    returns setof pgnet.reason
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select 'paused', concat_ws(' ', format('%s paused since %s.',
                case when fact.paused_host = '*' then 'All hosts are' else format('The host %s is', fact.paused_host) end,
                pgnet.time_words(fact.paused_since)), fact.pause_reason), null::timestamptz,
        format('Whoever may steer resumes it: select net.resume(%s);', case when fact.paused_host <> '*' then quote_literal(fact.paused_host) end)
    where fact.paused_host is not null
    union all
    select 'told to wait', format('The host %s has asked to wait until %s.', fact.host, pgnet.time_words(fact.slowed_until)), fact.slowed_until, null
    where fact.slowed_until > statement_timestamp()
    union all
    select 'broken', format('The host %s is broken since %s: %s. %s', fact.host, pgnet.time_words(fact.broken_since), rtrim(fact.broken_by, '.'),
            case when fact.breaker = 'half_open' then 'A probe is in flight.'
                when fact.closed_until > statement_timestamp() then format('A probe is sent at %s.', pgnet.time_words(fact.closed_until))
                else 'The next request is a probe.' end),
        case when fact.breaker = 'open' and fact.closed_until > statement_timestamp() then fact.closed_until end,
        'The circuit breaker and its settings: select * from net.hosts;'
    where fact.needs_probe;
end
$$;
comment on function pgnet.reasons_of_host(pgnet.request_fact) is
    'What net.explain says of the host: whether its requests are sent now.';

create function pgnet.reasons_of_workers(fact pgnet.request_fact)
    returns setof pgnet.reason
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    with load as materialized (
        select l.*, l.in_flight >= l.slots as is_full, l.adapted is not null as is_adapted,
            l.at_host >= greatest(1, l.slots * 3 / 4) as host_is_full
        from pgnet.request_load l where l.id = fact.id
    )
    select 'busy', format('All %s slots of the %s running are taken: %s.', (select sum(l.slots) from load l),
            case (select count(*) from load) when 1 then 'worker' else 'workers' end,
            (select string_agg(format('%s by %s', t.in_flight, coalesce(t.host, 'requests of other roles')), ', ' order by t.in_flight desc)
            from (select r.* from pgnet.request_rival r where r.id = fact.id order by r.in_flight desc limit 10) t)), null::timestamptz, 'Another worker helps, or shorter timeouts: docs/capacity.md.'
    where (select bool_and(l.is_full) from load l)
    union all
    select 'host busy', format('The host %s has all the slots that one host may have, three quarters of those of each worker: %s.', fact.host,
            (select sum(l.at_host) from load l)), null, 'Another worker helps, or shorter timeouts: docs/capacity.md.'
    where (select bool_and(l.is_full or l.host_is_full) and not bool_and(l.is_full) from load l)
    union all
    select 'adaptive', format('Workers have %s in flight at the host %s, as many as it has shown that it can bear.',
            (select case sum(l.adapted) when 1 then '1 request' else format('%s requests', sum(l.adapted)) end from load l), fact.host), null,
        'More follow as it answers. How many is a setting, too: select net.configure_host(host, ''{"adaptive": false}'');'
    where (select bool_and(l.is_full or l.host_is_full or l.is_adapted) and not bool_and(l.is_full or l.host_is_full) from load l);
end
$$;
comment on function pgnet.reasons_of_workers(pgnet.request_fact) is
    'What net.explain says where the workers have no room for the request.';

-- What holds a waiting request back, in the order in which it is told. Where nothing does, its turn
-- comes.
create function pgnet.reasons_to_wait(fact pgnet.request_fact)
    returns setof pgnet.reason
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    reason pgnet.reason;
    free boolean := true;
begin
    for reason in
        select * from pgnet.reasons_of_database()
        union all
        select * from pgnet.reasons_of_request(fact)
        union all
        select * from pgnet.reasons_of_gates(fact)
        union all
        select * from pgnet.reasons_of_host(fact)
        union all
        select * from pgnet.reasons_of_limits(fact)
    loop
        return next reason;
        free := free and reason.reason in ('attempts', 'not after', 'mode record');
    end loop;
    if free then
        for reason in select * from pgnet.reasons_of_workers(fact) loop
            return next reason;
            free := false;
        end loop;
    end if;
    if free then
        return query
        select 'turn', format('Nothing holds it back: a worker takes it when its turn comes. Before it are %s of this role for this host.',
                case t.before when 0 then 'no requests' when 1 then '1 request' when 101 then 'more than 100 requests'
                    else format('%s requests', t.before) end),
            null::timestamptz, null::text
        from (select count(*) as before from pgnet.request_before b where b.id = fact.id) t;
    end if;
end
$$;
comment on function pgnet.reasons_to_wait(pgnet.request_fact) is
    'What net.explain says of a request that waits.';

create function pgnet.holding_reasons(request_id bigint)
    returns setof pgnet.reason
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    fact pgnet.request_fact;
begin
    select f.* into fact from pgnet.request_fact f where f.id = request_id;
    return query
    select r.* from pgnet.reasons_of_request(fact) r where r.reason not in ('attempts', 'not after')
    union all
    select r.* from pgnet.reasons_of_gates(fact) r
    union all
    select r.* from pgnet.reasons_of_host(fact) r;
end
$$;
comment on function pgnet.holding_reasons(bigint) is
    'What net.explain says that is about the request itself and its host.';

create function pgnet.reason_of_end(request_id bigint)
    returns setof pgnet.reason
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
begin
    return query
    select e.state::text,
        format('It ended as %s at %s, after %s%s', e.state, pgnet.time_words(e.ended),
            case e.attempts when 1 then '1 attempt' else format('%s attempts', e.attempts) end,
            coalesce(', with status ' || e.status_code, '')) || coalesce(': ' || e.error_msg, '.'),
        null::timestamptz,
        case when k.marked then 'It was sent again: net.requests has the new one, with retry_of.'
            when e.kept then format('To send it again: select net.retry(%s%s);', e.id, case e.state when 'unknown' then ', even_unknown => true' else '' end) end
    from (
        select r.id, r.requested_by, r.state, r.created as ended, r.attempts, r.status_code, r.error_msg,
            exists (select from pgnet.failed f where f.id = r.id) as kept, 1 as place
        from net._http_response r where r.id = request_id
        union all
        select f.id, f.requested_by, f.state, f.failed, f.attempts, f.status_code, f.error_msg, true, 2
        from pgnet.failed f where f.id = request_id
    ) e
    cross join lateral (
        select exists (
            select from pgnet.mark m where m.requested_by = e.requested_by and m.request_id = e.id and m.action = 'retry') as marked
    ) k
    where not exists (select from pgnet.mark m where m.requested_by = e.requested_by and m.request_id = e.id and m.action = 'forget')
    order by e.place
    limit 1;
end
$$;
comment on function pgnet.reason_of_end(bigint) is
    'What net.explain says of a request that has ended; no row where there is no such request.';

create function net.explain(
    -- the request's id
    id bigint
)
    returns table (
        -- a word or two, always the same for the same reason
        reason text,
        -- the same in words
        detail text,
        -- when the reason ends by itself; NULL: that is not known
        until timestamptz,
        -- what to do about it
        hint text
    )
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    fact pgnet.request_fact;
begin
    select f.* into fact from pgnet.request_fact f where f.id = explain.id;
    if fact.claimed then
        return query select * from pgnet.reasons_in_flight(fact);
    elsif fact.cancelled is not null then
        return query select 'cancelled', pgnet.cancellation_message(false, fact.attempts), null::timestamptz,
            case when not pgnet.worker_is_up() then 'A worker that looks stores the response. ' || pgnet.how_to_start_a_worker() end;
    elsif fact.id is not null then
        return query select * from pgnet.reasons_to_wait(fact);
    else
        return query select * from pgnet.reason_of_end(explain.id);
        if not found then
            return query select 'not there', case when explain.id is null then 'The id is NULL.'
                    else format('There is no request %s of role "%s".', explain.id, current_user) end,
                null::timestamptz,
                'Its response may be older than the setting ttl, or the transaction that queued it was rolled back.';
        end if;
    end if;
end
$$;
comment on function net.explain(bigint) is
    'Why a request waits, where it is, or how it ended: a row for each reason, in words, with the '
    'time at which the reason ends by itself and what to do about it. For an id that is NULL or not '
    'there a row says so. A role asks for its own requests; of those of others it learns numbers '
    'only.';

-- The first words of net.explain, for other views and functions.
create function pgnet.explain_words(request_id bigint)
    returns text
    language sql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    select string_agg(concat_ws(' ', e.detail, e.hint), ' ')
    from net.explain(request_id) e
$$;
comment on function pgnet.explain_words(bigint) is
    'What net.explain says, as one text.';

-- ======== extension/63_steer.sql ========

-- Steering many requests at once: net.cancel_where and net.retry_where.
--
-- Both run with the caller's rights, as net.cancel and net.retry do: they insert marks, and workers
-- act on these later. A role finds its own requests only, and the owner finds those of all roles.
--
-- What a filter costs. Requests that are ready are found by the index http_request_queue_turn: the
-- search steps from host to host and from role to role, and reads the rows of those places only
-- that the filter names. Requests that wait for something else are in other indexes, which do not
-- begin with a host: of these all are read until enough of them match. The other keys are compared
-- row by row. A search ends as soon as it has found at_most requests.
--
-- Row security alone would keep a caller from the index: PostgreSQL compares hosts only after it
-- has seen whose the row is, since the function of the index is not leakproof. So these views have
-- their owner's rights and show each caller its own rows; of a condition on their columns
-- PostgreSQL makes a condition on the index. They begin with WITH, so that nobody can write
-- through them.

create view pgnet.own_queued with (security_barrier) as
    with caller as (
        select pgnet.caller_role() as role, pgnet.caller_is_owner() as is_owner
    )
    select q.id, pgnet.host_of_url(q.url) collate "C" as host, q.requested_by::pg_catalog.oid as role, q.requested_by, q.priority,
        q.url, q.created, q.context, q.due, q.held, q.origin
    from net.http_request_queue q
    where q.requested_by operator(pg_catalog.=) (select c.role from caller c) or (select c.is_owner from caller c);
comment on view pgnet.own_queued is
    'The queued requests of the caller, or of all roles for the owner, as net.cancel_where searches '
    'them.';

create view pgnet.own_place with (security_barrier) as
    with recursive caller as (
        select pgnet.caller_role()::pg_catalog.oid as role, pgnet.caller_is_owner() as is_owner
    ), place (host, role) as (
        (select pgnet.host_of_url(q.url) collate "C", q.requested_by::pg_catalog.oid from net.http_request_queue q
         where q.due is null and q.held is not true and q.origin is null
         order by pgnet.host_of_url(q.url) collate "C", q.requested_by::pg_catalog.oid limit 1)
        union all
        select n.host, n.role
        from place p
        cross join lateral (
            select pgnet.host_of_url(q.url) collate "C" as host, q.requested_by::pg_catalog.oid as role from net.http_request_queue q
            where q.due is null and q.held is not true and q.origin is null
                and (pgnet.host_of_url(q.url) collate "C", q.requested_by::pg_catalog.oid) operator(pg_catalog.>) (p.host, p.role)
            order by pgnet.host_of_url(q.url) collate "C", q.requested_by::pg_catalog.oid limit 1
        ) n
    )
    select p.host, p.role from place p
    where p.role operator(pg_catalog.=) (select c.role from caller c) or (select c.is_owner from caller c);
comment on view pgnet.own_place is
    'The hosts at which requests of the caller are ready, or of all roles for the owner, with the '
    'role.';

create type pgnet.request_filter as (
    -- authorities, and names for all their ports; NULL here and below: any
    hosts text[],
    roles oid[],
    states net.request_state[],
    kinds text[],
    -- made or failed before, and after
    before timestamptz,
    after timestamptz,
    url_like text,
    context jsonb
);
comment on type pgnet.request_filter is
    'What net.cancel_where and net.retry_where search for: their argument, read.';

create function pgnet.filter_fault(problem text, remedy text)
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using errcode = 'invalid_parameter_value', message = problem, hint = remedy;
end
$$;
comment on function pgnet.filter_fault(text, text) is 'Raises 22023: something is wrong with a filter.';

-- A value may be one text, or an array of texts.
create function pgnet.filter_texts(filter jsonb, key text)
    returns text[]
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    given jsonb := filter -> key;
begin
    if given is null then
        return null;
    end if;
    if jsonb_typeof(given) <> 'array' then
        given := jsonb_build_array(given);
    end if;
    if given = '[]' or exists (select from jsonb_array_elements(given) g where jsonb_typeof(g) <> 'string') then
        perform pgnet.filter_fault(format('"%s" of a filter must be a string or an array of strings', key),
            format('Such as {"%s": "..."}. A key that is left out matches every request.', key));
    end if;
    return array(select jsonb_array_elements_text(given));
end
$$;
comment on function pgnet.filter_texts(jsonb, text) is
    'The value of a key that may be a string or an array of strings; NULL without the key.';

-- An age, or a time.
create function pgnet.filter_time(filter jsonb, key text)
    returns timestamptz
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    given text := case when jsonb_typeof(filter -> key) = 'string' then filter ->> key end;
    age interval;
    point timestamptz;
begin
    if not filter ? key then
        return null;
    end if;
    begin
        if given ~ '^ *[0-9]{4}-' then
            point := given::timestamptz;
        elsif given ~ '[a-zA-Z:]' then
            age := given::interval;
        end if;
    exception when data_exception then
        null;
    end;
    if point is null and (age is null or age < interval '0') then
        perform pgnet.filter_fault(format('"%s" of a filter must be an age or a time', key),
            format('Such as {"%1$s": "10 minutes"} or {"%1$s": "2030-01-31 12:00+00"}.', key));
    end if;
    return coalesce(point, now() - age);
end
$$;
comment on function pgnet.filter_time(jsonb, text) is
    'The time that a key says, as a time or as an age; NULL without the key.';

create function pgnet.read_filter(
    filter jsonb,
    at_most integer,
    -- the states that can be asked for
    possible_states net.request_state[]
)
    returns pgnet.request_filter
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    known text[] := array['host', 'role', 'state', 'kind', 'older_than', 'newer_than', 'url_like', 'context'];
    found pgnet.request_filter;
    unknown text;
begin
    if jsonb_typeof(filter) is distinct from 'object' or filter = '{}' then
        perform pgnet.filter_fault('a filter is a JSON object with at least one key',
            'Such as {"host": "api.example.com", "older_than": "1 hour"}. All requests of a role: {"role": "..."}.');
    end if;
    unknown := (select k from jsonb_object_keys(filter) k where k <> all (known) limit 1);
    if unknown is not null then
        perform pgnet.filter_fault(format('a filter has no key "%s"', left(unknown, 60)), 'known: ' || array_to_string(known, ', '));
    end if;
    found.hosts := (select array_agg(pgnet.authority_of(h)) from unnest(pgnet.filter_texts(filter, 'host')) h);
    if '*' = any (found.hosts) then
        found.hosts := null;
    end if;
    found.roles := (select array_agg(pgnet.role_named(r)::oid) from unnest(pgnet.filter_texts(filter, 'role')) r);
    unknown := (select s from unnest(pgnet.filter_texts(filter, 'state')) s where s <> all (possible_states::text[]) limit 1);
    if unknown is not null then
        perform pgnet.filter_fault(format('there is nothing to do with requests in the state "%s"', left(unknown, 60)),
            'states that can be asked for: ' || array_to_string(possible_states, ', '));
    end if;
    found.states := pgnet.filter_texts(filter, 'state');
    unknown := (
        select k from unnest(pgnet.filter_texts(filter, 'kind')) k where k !~ '^(timeout|no_answer|status|[1-5]xx|[1-5][0-9][0-9])$' limit 1);
    if unknown is not null then
        perform pgnet.filter_fault(format('there is no kind of error "%s"', left(unknown, 60)),
            'known: timeout, no_answer (any other error without an answer), status (an answer whose status is not accepted), 4xx and the like, and statuses such as 503');
    end if;
    found.kinds := pgnet.filter_texts(filter, 'kind');
    found.before := pgnet.filter_time(filter, 'older_than');
    found.after := pgnet.filter_time(filter, 'newer_than');
    if filter ? 'url_like' and jsonb_typeof(filter -> 'url_like') <> 'string' then
        perform pgnet.filter_fault('"url_like" of a filter must be a string', 'A pattern of LIKE, such as {"url_like": "%/orders/%"}.');
    end if;
    found.url_like := filter ->> 'url_like';
    found.context := filter -> 'context';
    if at_most < 1 then
        perform pgnet.filter_fault('at_most must be 1 or more', 'NULL means all that match.');
    end if;
    return found;
end
$$;
comment on function pgnet.read_filter(jsonb, integer, net.request_state[]) is
    'Reads a filter of net.cancel_where or net.retry_where. Raises 22023 with the keys and values '
    'that there are, 42704 for a role that does not exist.';

-- What can be told of an error from what is stored of it.
create function pgnet.is_error_of(kinds text[], status_code integer, error_msg text)
    returns boolean
    language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select case
        when status_code is not null then array['status', left(status_code::text, 1) || 'xx', status_code::text] && kinds
        when error_msg is null then false
        when error_msg ~* '(timeout of .* reached|timed out)' then 'timeout' = any (kinds)
        else 'no_answer' = any (kinds) end
$$;
comment on function pgnet.is_error_of(text[], integer, text) is
    'Whether an attempt that ended so is of one of these kinds: timeout, no_answer, status, 4xx, '
    '503 and the like.';

create function pgnet.matching_queued(wanted pgnet.request_filter, at_most integer)
    returns table (id bigint, requested_by regrole)
    language plpgsql stable parallel safe rows 1000
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set enable_material = off
    -- The filter's values are constants then: what it does not ask for costs nothing.
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    f_hosts text[] := wanted.hosts;
    f_names text[] := array(select h from unnest(wanted.hosts) h where h !~ ':[0-9]+$');
    f_roles oid[] := case when pgnet.caller_is_owner() then wanted.roles else array[pgnet.caller_role()::oid] end;
    f_states net.request_state[] := wanted.states;
    only_in_flight boolean := coalesce(wanted.states <@ '{in_flight}', false);
    f_kinds text[] := wanted.kinds;
    f_before timestamptz := wanted.before; f_after timestamptz := wanted.after;
    f_url text := wanted.url_like; f_context jsonb := wanted.context;
begin
    if not pgnet.caller_is_owner() and wanted.roles is not null and pgnet.caller_role()::oid <> all (wanted.roles) then
        return; -- other roles' requests are not seen
    end if;
    return query
    select q.id, q.requested_by
    from (
        select i.*
        from pgnet.claim c
        cross join lateral (
            select v.* from pgnet.own_queued v where v.id = c.id and v.origin is null offset 0
        ) i
        where only_in_flight
        union all
        select r.*
        from pgnet.own_place p
        cross join lateral (
            select v.* from pgnet.own_queued v
            where v.host = p.host and v.role = p.role
                and v.due is null and v.held is not true and v.origin is null
            offset 0
        ) r
        where not only_in_flight
            and (f_hosts is null or p.host = any (f_hosts) or regexp_replace(p.host, ':[0-9]+$', '') = any (f_names))
            and (f_roles is null or p.role = any (f_roles))
        union all
        select v.* from pgnet.own_queued v where not only_in_flight and v.due is not null and v.origin is null
        union all
        select h.*
        from pgnet.flow f
        cross join lateral (
            select v.* from pgnet.own_queued v
            where v.id = f.request_id and v.requested_by = f.requested_by and v.held and v.due is null and v.origin is null offset 0
        ) h
        where not only_in_flight
    ) q
    where (f_hosts is null or q.host = any (f_hosts) or regexp_replace(q.host, ':[0-9]+$', '') = any (f_names))
        and (f_roles is null or q.role = any (f_roles)) and (f_before is null or q.created < f_before) and (f_after is null or q.created >= f_after)
        and (f_url is null or q.url like f_url) and (f_context is null or q.context @> f_context)
        and (f_states is null or exists (
            select from net.requests r where r.id = q.id and r.state = any (f_states) offset 0))
        and (f_kinds is null or (
            select pgnet.is_error_of(f_kinds, a.status_code, a.error_msg) from pgnet.attempt a
            where a.request_id = q.id order by a.attempt desc limit 1))
        and not exists (
            select from pgnet.mark m
            where m.requested_by = q.requested_by and m.request_id = q.id and m.action <> 'retry' offset 0)
    limit at_most;
end
$$;
comment on function pgnet.matching_queued(pgnet.request_filter, integer) is
    'The queued requests that a filter finds, at most so many (NULL: all); not those that are '
    'cancelled or forgotten already.';

-- As with the states of requests, what is not said is not read: retries look at pgnet.failed by the
-- time at which they failed, from the oldest on.
create function pgnet.matching_failed(wanted pgnet.request_filter, at_most integer)
    returns table (id bigint, requested_by regrole)
    language plpgsql stable parallel safe rows 1000
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set enable_material = off
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    f_hosts text[] := wanted.hosts;
    f_names text[] := array(select h from unnest(wanted.hosts) h where h !~ ':[0-9]+$');
    f_roles oid[] := wanted.roles;
    f_states net.request_state[] := wanted.states;
    f_kinds text[] := wanted.kinds;
    f_before timestamptz := coalesce(wanted.before, 'infinity');
    f_after timestamptz := coalesce(wanted.after, '-infinity');
    f_url text := wanted.url_like;
    f_context jsonb := wanted.context;
begin
    return query
    select f.id, f.requested_by
    from pgnet.failed f
    where f.failed < f_before and f.failed >= f_after
        and (pgnet.caller_is_owner() or f.requested_by = pgnet.caller_role())
        and f.state = any (f_states)
        and (f_roles is null or f.requested_by = any (f_roles))
        and (f_hosts is null or pgnet.host_of_url(f.url) = any (f_hosts)
            or regexp_replace(pgnet.host_of_url(f.url), ':[0-9]+$', '') = any (f_names))
        and (f_kinds is null or pgnet.is_error_of(f_kinds, f.status_code, f.error_msg))
        and (f_url is null or f.url like f_url)
        and (f_context is null or f.context @> f_context)
        and not exists (
            select from pgnet.mark m
            where m.requested_by = f.requested_by and m.request_id = f.id and m.action <> 'cancel' offset 0)
    order by f.failed
    limit at_most;
end
$$;
comment on function pgnet.matching_failed(pgnet.request_filter, integer) is
    'The requests of pgnet.failed that a filter finds, at most so many (NULL: all), the oldest '
    'failures first; not those that are sent again or forgotten already.';

create function pgnet.mark_requests(ids bigint[], requesters regrole[], action text)
    -- those that were not marked so before
    returns bigint[]
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    marked bigint[];
begin
    -- In the order of ids: of two sessions that mark the same requests one waits for the other, and
    -- never both.
    if pgnet.caller_is_owner() then
        with mark as (
            insert into pgnet.mark (request_id, requested_by, action)
            select r.id, r.requester, mark_requests.action from unnest(ids, requesters) r (id, requester) order by r.id
            on conflict do nothing
            returning request_id
        )
        select array_agg(m.request_id) into marked from mark m;
    else
        with mark as (
            insert into pgnet.mark (request_id, action)
            select r.id, mark_requests.action from unnest(ids) r (id) order by r.id
            on conflict do nothing
            returning request_id
        )
        select array_agg(m.request_id) into marked from mark m;
    end if;
    return coalesce(marked, '{}');
end
$$;
comment on function pgnet.mark_requests(bigint[], regrole[], text) is
    'Marks requests of the caller, or of any role where the caller is the owner; gives those that '
    'were not marked so before.';

create function net.cancel_where(
    -- which requests: keys host, role, state, kind, older_than, newer_than, url_like, context
    filter jsonb,
    -- at most so many; NULL: all that match
    at_most integer default 1000,
    -- true: count, and cancel none
    dry_run boolean default false
)
    -- how many were cancelled, or would be
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    wanted pgnet.request_filter := pgnet.read_filter(filter, at_most, '{scheduled,ready,in_flight,retrying}');
    ids bigint[];
    requesters regrole[];
begin
    select array_agg(m.id), array_agg(m.requested_by) into ids, requesters from pgnet.matching_queued(wanted, at_most) m;
    if ids is null or dry_run is not false then
        return coalesce(cardinality(ids), 0);
    end if;
    ids := pgnet.mark_requests(ids, requesters, 'cancel');
    perform pgnet.reload_workers();
    return cardinality(ids);
end
$$;
comment on function net.cancel_where(jsonb, integer, boolean) is
    'Cancels the queued requests that a filter finds, as net.cancel does, and gives how many; with '
    'dry_run, how many it would cancel. A role''s own requests only; for the owner, those of all '
    'roles. NULL as at_most means all, as dry_run true. Raises 22023 for a filter that is NULL, '
    'empty or has an unknown key or value, 42704 for a role that does not exist.';

create function net.retry_where(
    -- which failed requests: keys host, role, state, kind, older_than, newer_than, url_like,
    -- context
    filter jsonb,
    -- at most so many; NULL: all that match
    at_most integer default 1000,
    -- true: count, and send none
    dry_run boolean default false
)
    -- how many were sent again, or would be
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    wanted pgnet.request_filter := pgnet.read_filter(filter, at_most, '{failed,unknown,cancelled}');
    ids bigint[];
    requesters regrole[];
    number bigint;
begin
    -- What may have been received, or was cancelled, is sent again only where the filter says so.
    wanted.states := coalesce(wanted.states, '{failed}');
    select array_agg(m.id), array_agg(m.requested_by) into ids, requesters from pgnet.matching_failed(wanted, at_most) m;
    if ids is null or dry_run is not false then
        return coalesce(cardinality(ids), 0);
    end if;
    if pgnet.pending_limits() is not null then
        perform pgnet.refuse_backlog(cardinality(ids));
    end if;
    -- As in net.retry: of several sessions that retry a request, the one whose mark comes first
    -- does so.
    number := (select count(*) from pgnet.send_again(pgnet.mark_requests(ids, requesters, 'retry'), false));
    perform net.wake();
    return number;
end
$$;
comment on function net.retry_where(jsonb, integer, boolean) is
    'Sends the failed requests again that a filter finds, as net.retry does, and gives how many; '
    'with dry_run, how many it would send. Those in the state unknown or cancelled only where the '
    'filter names the state. A role''s own requests only; for the owner, those of all roles. NULL '
    'as at_most means all, as dry_run true. Raises 22023 for a filter that is NULL, empty or has '
    'an unknown key or value, 42704 for a role that does not exist.';

-- ======== extension/64_callbacks.sql ========

-- Callbacks: functions that are called when requests have ended, each with its effect exactly once.
--
-- Theory of operation
--
-- Where they come from. A request with a callback has a row in pgnet.flow, which names the function
-- by its name and its number. Whatever ends the request deletes that row, in the same transaction
-- or a later one; the trigger make_callbacks then makes a row of pgnet.callback. So no way to end a
-- request can be forgotten. A request that is forgotten, or was deleted by hand, has no response:
-- nothing is called for it.
--
-- Sets. net.on_all_done inserts an order. pgnet.examine_orders looks for a request of the set that
-- is still queued, locks its row, and makes a row of pgnet.dependency: the set waits for it. What
-- ends a request takes its row with SKIP LOCKED and then asks who waits for it (49_gates.sql): so
-- it either sees the row of pgnet.dependency, or the order is examined once more. When that row is
-- deleted, the trigger note_set has the set examined again. When none of its requests is queued,
-- the set has ended.
--
-- How they are run. A runner is a session: of a worker process, or of net.run_callbacks or
-- net.drain. It takes a callback in one transaction, which counts the attempt, and calls it in the
-- next, which notes that it is done: so an effect is there if, and only if, the callback is done. A
-- callback that fails is undone; its transaction notes the error. Of a runner that dies the attempt
-- counts, and its row is free again, since its session is gone.
--
-- Roles take turns, and have one callback running at a time: pgnet.callback_turn. A role whose
-- callback has run out of its time pauses, for longer each time.
--
-- What a callback may do. It runs as the role that made the request, in a security-restricted
-- operation, as an index function in a superuser's VACUUM does: server/restricted.py has how, and
-- what it may not do. While it runs, its runner holds no lock but those of its own rows, on tables
-- that nothing else writes for long.
--
-- What a caller forges. A role may insert rows into pgnet.flow and pgnet.callback_order, with any
-- function. It has its own callbacks called by that, as itself. The name in a row is compared with
-- the function's and never run.

-- ---- at the call

-- Migrations for pg_net alter functions to SECURITY DEFINER. A request that such a function makes
-- is its owner's. The owner is a superuser, and any role could name a callback that runs as the
-- owner.
create function pgnet.refuse_altered_callers()
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    altered regprocedure := (
        select p.oid from pg_proc p
        where p.prosecdef and (
                p.pronamespace = to_regnamespace('net') and p.proname in ('http_request', 'on_all_done')
                or p.pronamespace = to_regnamespace('pgnet') and p.proname in (
                    'resolve_callback', 'queue_request', 'debounce_request', 'queue_unique_request', 'caller_role', 'report_call'))
        limit 1);
begin
    if altered is not null then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('%s was altered to SECURITY DEFINER: no callback can be named or called', altered),
            detail = 'It would run as the owner of pgnet, whoever names it.',
            hint = format('alter function %s security invoker;', altered);
    end if;
end
$$;
comment on function pgnet.refuse_altered_callers() is
    'Raises 42501 where a function that makes callbacks, or that calls them, was altered to SECURITY '
    'DEFINER.';

-- The name is looked for in the caller's path, so this has none of its own.
create function pgnet.resolve_callback(
    -- a function, perhaps with its schema; the type of its argument
    name text, argument text,
    out callback text, out callback_oid oid
)
    language plpgsql stable parallel safe
as $$
declare
    parts pg_catalog.text[] := pg_catalog.parse_ident(resolve_callback.name);
    found record;
begin
    perform pgnet.refuse_altered_callers();
    if pg_catalog.cardinality(parts) operator(pg_catalog.=) 1 then
        callback_oid := pg_catalog.to_regprocedure(pg_catalog.format('%I(%s)', parts[1], resolve_callback.argument));
    elsif pg_catalog.cardinality(parts) operator(pg_catalog.=) 2 then
        callback_oid := pg_catalog.to_regprocedure(pg_catalog.format('%I.%I(%s)', parts[1], parts[2], resolve_callback.argument));
    end if;
    if callback_oid is null then
        perform pgnet.raise_error('42883', pg_catalog.format('function %s(%s) does not exist', resolve_callback.name, resolve_callback.argument),
            pg_catalog.format('A callback is a function of one argument: create function %s(o %s) returns void ...',
                resolve_callback.name, resolve_callback.argument));
    end if;
    select pg_catalog.format('%I.%I', n.nspname, p.proname) as name,
        p.prokind operator(pg_catalog.=) 'f'::pg_catalog."char" and not p.proretset as is_plain into found
    from pg_catalog.pg_proc p
    join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) p.pronamespace
    where p.oid operator(pg_catalog.=) callback_oid;
    callback := found.name;
    if not found.is_plain then
        perform pgnet.raise_error('42809', pg_catalog.format('%s is no function that gives one value', callback),
            'A callback is neither a procedure nor an aggregate, and returns no set: let it return void.');
    elsif not pg_catalog.has_function_privilege(callback_oid, 'execute') then
        perform pgnet.raise_error('42501', pg_catalog.format('role "%s" may not execute %s(%s)', current_user, callback, resolve_callback.argument),
            pg_catalog.format('The callback runs as this role. Its owner grants it: grant execute on function %s(%s) to %I;',
                callback, resolve_callback.argument, current_user));
    end if;
end
$$;
comment on function pgnet.resolve_callback(text, text) is
    'The function of this name and argument in the caller''s path: its name with the schema, and its '
    'number. Raises 42883 where there is none, 42809 where it cannot be a callback, 42501 where the '
    'caller may not execute it.';

-- Any role may have runners look; that is all a caller of it can do.
create function pgnet.wake_runners()
    returns void
    language sql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
as $$ select pgnet.arm_wake_up('callback') $$;
comment on function pgnet.wake_runners() is 'Has runners look for callbacks at the commit.';

create function pgnet.check_set(ids bigint[])
    -- each id once, in its place
    returns bigint[]
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    missing bigint;
begin
    if ids is null or array_position(ids, null) is not null then
        perform pgnet.raise_error('22004', 'ids must not be NULL, nor contain NULL', 'Give an array of ids: array[1, 2].');
    elsif cardinality(ids) > 10000 then
        perform pgnet.raise_error('22023', format('a set has at most 10000 requests, not %s', cardinality(ids)), 'Make several sets.');
    end if;
    missing := (
        select min(a.id)
        from unnest(ids) a (id)
        where not exists (
                select from net.http_request_queue q where q.id = a.id and q.requested_by = pgnet.caller_role() offset 0)
            and not exists (
                select from net._http_response r where r.id = a.id and r.requested_by = pgnet.caller_role() offset 0)
            and not exists (
                select from pgnet.failed f where f.id = a.id and f.requested_by = pgnet.caller_role() offset 0));
    if missing is not null then
        perform pgnet.raise_error('22023', format('there is no request %s of role "%s"', missing, current_user),
            'A set has requests of the role itself that are queued, or whose response is kept: the setting ttl says for how long.');
    end if;
    return array(select a.id from unnest(ids) with ordinality a (id, place) group by a.id order by min(a.place));
end
$$;
comment on function pgnet.check_set(bigint[]) is
    'The ids of a set, each once. Raises 22004 for NULL, 22023 for an id that is no request of the '
    'caller''s, and for more than 10,000.';

create function net.on_all_done(
    -- requests of the caller's; those that have ended count as well
    ids bigint[],
    -- a function of one argument net.outcome[]
    callback text
)
    -- the set's number, for net.callbacks and net.run_callback; it is negative
    returns bigint
    language plpgsql volatile parallel unsafe
as $$
declare
    resolved record;
    set_id bigint;
begin
    if on_all_done.callback is null then
        perform pgnet.raise_error('22004', 'callback must not be NULL', 'It is the name of a function.');
    end if;
    select r.callback as name, r.callback_oid as oid into resolved from pgnet.resolve_callback(on_all_done.callback, 'net.outcome[]') r;
    insert into net._new_callback (request_ids, callback, callback_oid)
    values (pgnet.check_set(on_all_done.ids), resolved.name, resolved.oid)
    returning id into set_id;
    perform pgnet.wake_runners();
    return set_id;
end
$$;
comment on function net.on_all_done(bigint[], text) is
    'Has a function called once, when all of these requests have ended, with their outcomes in the '
    'order of the ids; an empty array calls it at once. Gives the number of the set. A NULL raises 22004; '
    'an id that is no request of the caller''s, or more than 10,000 of them, 22023; a function that is not there '
    '42883, or may not be executed 42501.';

create function net.run_callback(
    -- the id of a request, or the number that net.on_all_done gave
    id bigint
)
    -- whether there is something to call
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    made pgnet.callback;
    resolved record;
begin
    select b.* into made from pgnet.callback b
    where b.request_id = run_callback.id and (b.requested_by = pgnet.caller_role() or pgnet.caller_is_owner());
    if made.callback is null or made.state = 'done' then
        return false;
    end if;
    select * into resolved
    from pgnet.resolve_callback(made.callback, case when made.request_ids is null then 'net.outcome' else 'net.outcome[]' end);
    if made.requested_by = pgnet.caller_role() then
        insert into net._new_callback (request_id, callback, callback_oid) values (made.request_id, resolved.callback, resolved.callback_oid);
    else
        -- The right to say whose request it is the owner has alone.
        insert into pgnet.callback_order (request_id, requested_by, callback, callback_oid)
        values (made.request_id, made.requested_by, resolved.callback, resolved.callback_oid);
    end if;
    perform pgnet.wake_runners();
    return true;
end
$$;
comment on function net.run_callback(bigint) is
    'Has a callback that failed, or that waits for its next attempt, called now, as often as a new '
    'one: true. The function of its name is looked for again. False where it is done, or there is '
    'none, or it is another role''s. NULL gives false. Raises 42883 where the function is not there, 42501 where the '
    'caller may not execute it.';

create view net.callbacks with (security_invoker) as
    select b.request_id as id, b.request_ids, b.callback,
        case when b.pid is not null then 'running' else b.state end as state,
        b.attempts, b.due as next_attempt, b.error_msg, b.error_code, b.error_context, b.requested_by, b.made, b.ended
    from pgnet.callback b
    where not exists (
        select from pgnet.mark m
        where m.requested_by operator(pg_catalog.=) b.requested_by and m.request_id operator(pg_catalog.=) b.request_id
            and m.action operator(pg_catalog.=) 'forget' offset 0)
    union all
    select o.id, o.request_ids, o.callback, 'pending', 0, null, null, null, null, o.requested_by, o.made, null
    from pgnet.callback_order o
    where o.request_ids is not null;
comment on view net.callbacks is
    'Callbacks of requests that have ended, and of sets: pending (requests of the set have not '
    'ended), waiting, running, retrying, done, failed; the error of the last attempt. A role sees its '
    'own.';

-- ---- at the end of a request

create function pgnet.make_callbacks()
    returns trigger
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
begin
    insert into pgnet.callback (request_id, requested_by, callback, callback_oid, due)
    select g.request_id, g.requested_by, g.callback, g.callback_oid, clock_timestamp()
    from gone g
    -- A name with its schema is shorter; a forged one may be of any length.
    where octet_length(g.callback) < 1000
        and exists (select from net._http_response r where r.id = g.request_id and r.requested_by = g.requested_by offset 0)
    on conflict do nothing;
    if found then
        perform pgnet.arm_wake_up('callback');
    end if;
    return null;
end
$$;
comment on function pgnet.make_callbacks() is
    'After rows of pgnet.flow are deleted: of requests that have ended, the callbacks are to be '
    'called.';
create trigger make_callbacks after delete on pgnet.flow referencing old table as gone
    for each statement execute function pgnet.make_callbacks();

create function pgnet.note_set()
    returns trigger
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
begin
    update pgnet.callback_order o set look_at = clock_timestamp()
    where o.id = any (array(select g.request_id from gone g where g.request_id < 0));
    if found then
        perform pgnet.arm_wake_up('callback');
    end if;
    return null;
end
$$;
comment on function pgnet.note_set() is
    'After rows of pgnet.dependency are deleted: the sets that waited for these requests are looked '
    'at.';
create trigger note_set after delete on pgnet.dependency referencing old table as gone
    for each statement execute function pgnet.note_set();

-- ---- orders

create function pgnet.examine_set(asked pgnet.callback_order)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
declare
    awaited bigint := (
        select max(q.id)
        from unnest(asked.request_ids) a (id)
        cross join lateral (
            select q.id from net.http_request_queue q where q.id = a.id and q.requested_by = asked.requested_by offset 0
        ) q);
begin
    if awaited is null then
        insert into pgnet.callback (request_id, requested_by, request_ids, callback, callback_oid, due)
        values (asked.id, asked.requested_by, asked.request_ids, left(asked.callback, 1000), asked.callback_oid, clock_timestamp())
        on conflict do nothing;
        delete from pgnet.callback_order o where o.id = asked.id;
        return;
    end if;
    perform from net.http_request_queue q where q.id = awaited for key share skip locked;
    if not found then
        -- It ends at this moment, or somebody has locked it.
        update pgnet.callback_order o set look_at = clock_timestamp() + interval '0.05 s' where o.id = asked.id;
        return;
    end if;
    insert into pgnet.dependency (after_id, request_id, any_end) values (awaited, asked.id, true) on conflict do nothing;
    update pgnet.callback_order o set look_at = clock_timestamp() + interval '1 minute' where o.id = asked.id;
end
$$;
comment on function pgnet.examine_set(pgnet.callback_order) is
    'Has a set wait for one of its requests that is still queued, or be called where none is.';

create function pgnet.examine_orders()
    -- when the next order is to be looked at; NULL: no order waits
    returns timestamptz
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
declare
    present timestamptz := clock_timestamp();
    asked pgnet.callback_order;
begin
    for asked in
        with recursive roles (role) as (
            (select o.requested_by::oid from pgnet.callback_order o order by o.requested_by, o.look_at limit 1)
            union all
            select n.role
            from roles r
            cross join lateral (
                select o.requested_by::oid as role from pgnet.callback_order o
                where (o.requested_by::oid, o.look_at) > (r.role, 'infinity') order by o.requested_by, o.look_at limit 1
            ) n
        )
        select t.*
        from roles r
        -- No look is put off for two minutes: a clock was put back.
        cross join (values ('-infinity'::timestamptz, present), (present + interval '2 minutes', 'infinity')) s (since, until)
        cross join lateral (
            select o.* from pgnet.callback_order o
            where (o.requested_by::oid, o.look_at) >= (r.role, s.since) and (o.requested_by::oid, o.look_at) <= (r.role, s.until)
            order by o.requested_by, o.look_at limit 20 for update of o skip locked
        ) t
    loop
        if asked.request_ids is not null then
            perform pgnet.examine_set(asked);
        elsif exists (
            select from pgnet.callback b
            where b.request_id = asked.request_id and b.requested_by = asked.requested_by and b.pid is not null)
        then
            update pgnet.callback_order o set look_at = clock_timestamp() + interval '1 s' where o.id = asked.id;
        else
            update pgnet.callback b
            set state = 'waiting', attempts = 0, due = clock_timestamp(), ended = null, expires = null,
                callback = left(asked.callback, 1000), callback_oid = asked.callback_oid
            where b.request_id = asked.request_id and b.requested_by = asked.requested_by and b.state <> 'done';
            delete from pgnet.callback_order o where o.id = asked.id;
        end if;
    end loop;
    return (
        with recursive roles (role, look_at) as (
            (select o.requested_by::oid, o.look_at from pgnet.callback_order o order by o.requested_by, o.look_at limit 1)
            union all
            select n.role, n.look_at
            from roles r
            cross join lateral (
                select o.requested_by::oid as role, o.look_at from pgnet.callback_order o
                where (o.requested_by::oid, o.look_at) > (r.role, 'infinity') order by o.requested_by, o.look_at limit 1
            ) n
        )
        select min(r.look_at) from roles r);
end
$$;
comment on function pgnet.examine_orders() is
    'Carries out what net.on_all_done and net.run_callback ask for, 20 orders of each role.';

create function pgnet.has_callbacks()
    returns boolean
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
begin
    return (select b.request_id from pgnet.callback b where b.due is not null order by b.requested_by, b.due limit 1) is not null
        or (select b.request_id from pgnet.callback b where b.pid is not null order by b.requested_by limit 1) is not null
        or (select o.id from pgnet.callback_order o order by o.requested_by, o.look_at limit 1) is not null;
end
$$;
comment on function pgnet.has_callbacks() is
    'Whether there is something for runners to look at, at once or later.';

create function pgnet.expire_callbacks()
    -- seconds until it is to be called again; NULL: at any time
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
declare
    present timestamptz := clock_timestamp();
    most constant integer := 5000;
    places tid[];
begin
    lock table pgnet.callback, pgnet.callback_turn in row exclusive mode nowait;
    places := array(
        select b.ctid from pgnet.callback b where b.expires < present order by b.expires limit most for update skip locked);
    delete from pgnet.callback b where b.ctid = any (places);
    delete from pgnet.callback_turn t
    where t.served < present - interval '1 day'
        and not exists (select from pgnet.callback b where b.requested_by = t.role and (b.due is not null or b.pid is not null));
    return case when cardinality(places) = most then 0.1 end;
end
$$;
comment on function pgnet.expire_callbacks() is
    'Deletes callbacks that are done and past the setting ttl, and those that failed, or whose '
    'request did, and are past ttl_failed.';

create function pgnet.callback_number(callback text, argument text)
    returns oid
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    -- A forged name may be any text. PostgreSQL 15 raises an error for a text that is not a name.
    select case when octet_length(callback) < 1000
            and callback ~ '^("([^"]|"")+"|[a-z_][a-z0-9_$]*)[.]("([^"]|"")+"|[a-z_][a-z0-9_$]*)$'
        then to_regprocedure(callback || '(' || argument || ')') end
$$;
comment on function pgnet.callback_number(text, text) is
    'The number of the function that has a name now; NULL where there is none.';

create function pgnet.renumber_callbacks()
    returns void
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    update pgnet.flow f set callback_oid = pgnet.callback_number(f.callback, 'net.outcome') where f.callback is not null;
    update pgnet.callback b
    set callback_oid = pgnet.callback_number(b.callback, case when b.request_ids is null then 'net.outcome' else 'net.outcome[]' end),
        pid = null, due = case when b.state in ('waiting', 'retrying') then clock_timestamp() end
    where b.state <> 'done';
    update pgnet.callback_order o
    set callback_oid = pgnet.callback_number(o.callback, case when o.request_ids is null then 'net.outcome' else 'net.outcome[]' end);
$$;
comment on function pgnet.renumber_callbacks() is
    'Functions have other numbers in a copy that pg_upgrade has made: it looks for them by their '
    'names.';

-- ======== extension/65_runners.sql ========

-- Runners: the sessions that call what pgnet.callback names. 64_callbacks.sql has the theory.

create function pgnet.role_path(role regrole)
    returns text
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce((
        -- The temporary schema is searched last, not first: in a session of net.drain() it is the
        -- caller's.
        select nullif(trim(substr(c.assignment, 13)), '') || case when c.assignment ~ 'pg_temp' then '' else ', pg_temp' end
        from pg_db_role_setting s
        cross join lateral unnest(s.setconfig) c (assignment)
        where s.setrole in (0, role) and s.setdatabase in (0, (select d.oid from pg_database d where d.datname = current_database()))
            and lower(left(c.assignment, 12)) = 'search_path='
        order by s.setrole <> 0 desc, s.setdatabase <> 0 desc
        limit 1), '"$user", public, pg_temp');
end
$$;
comment on function pgnet.role_path(regrole) is
    'The search_path that a role has in a new session of this database: what ALTER ROLE ... SET or '
    'ALTER DATABASE ... SET says, or else PostgreSQL''s default.';

-- ---- how an attempt has ended

create function pgnet.settle_callback(
    -- the callback, as it was taken
    taken pgnet.callback,
    -- why it has failed; NULL: it is done
    error_msg text, error_code text, error_context text,
    -- whether it is not tried again by itself
    is_final boolean,
    most_attempts integer,
    -- how long it is kept, done and failed
    keep interval, keep_failed interval
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    present timestamptz := clock_timestamp();
    next_state text := case when error_msg is null then 'done'
        when is_final or taken.attempts >= most_attempts then 'failed' else 'retrying' end;
begin
    update pgnet.callback b
    set state = next_state, token = null, pid = null, backend_start = null,
        error_msg = left(settle_callback.error_msg, 10000), error_code = settle_callback.error_code,
        error_context = left(settle_callback.error_context, 10000),
        due = case when next_state = 'retrying' then present + least(interval '1 s' * 4 ^ least(taken.attempts - 1, 10), interval '1 hour') end,
        ended = case when next_state <> 'retrying' then present end,
        expires = case next_state when 'done' then present + keep when 'failed' then present + keep_failed end,
        outcome = case when next_state <> 'done' then b.outcome end
    where b.request_id = taken.request_id and b.requested_by = taken.requested_by;
end
$$;
comment on function pgnet.settle_callback(pgnet.callback, text, text, text, boolean, integer, interval, interval) is
    'Notes how an attempt of a callback has ended, and when the next one is due.';

create function pgnet.pause_callbacks(
    role oid,
    -- whether a callback of the role has run out of its time
    timed_out boolean
)
    returns void
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    update pgnet.callback_turn t
    set timeouts = case when timed_out then least(t.timeouts + 1, 1000) else 0 end,
        paused_until = case when timed_out
            then clock_timestamp() + least(interval '1 s' * 2 ^ least(t.timeouts, 10), interval '5 minutes') else '-infinity' end
    where t.role = pause_callbacks.role and (timed_out or t.timeouts > 0)
$$;
comment on function pgnet.pause_callbacks(oid, boolean) is
    'A role whose callback has run out of its time pauses: 1 s, 2 s, ... 5 minutes.';

create function pgnet.free_callbacks()
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
declare
    lost pgnet.callback;
begin
    for lost in
        select b.* from pgnet.callback b
        -- This session runs none: it is just looking for one.
        where b.pid is not null and (b.pid = pg_backend_pid() or not pgnet.session_is_alive(b.pid, b.backend_start))
        order by b.requested_by for update skip locked
    loop
        perform pgnet.settle_callback(lost, 'The session that ran it was lost.', '08006', null, false,
            pgnet.setting_value('callback_attempts')::integer, null, pgnet.setting_value('ttl_failed')::interval);
        perform pgnet.pause_callbacks(lost.requested_by, true);
    end loop;
end
$$;
comment on function pgnet.free_callbacks() is
    'Ends attempts whose session is gone: what they did is undone.';

-- ---- whose turn it is

create function pgnet.due_roles(
    present timestamptz
)
    returns table (role oid, due timestamptz, is_suspect boolean, served timestamptz)
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
#variable_conflict use_column
begin
    return query
    with recursive roles (role) as (
        (select b.requested_by::oid from pgnet.callback b where b.due is not null order by b.requested_by, b.due limit 1)
        union all
        select n.role
        from roles r
        cross join lateral (
            select b.requested_by::oid as role from pgnet.callback b
            where b.due is not null and (b.requested_by::oid, b.due) > (r.role, 'infinity') order by b.requested_by, b.due limit 1
        ) n
    )
    select r.role,
        -- No pause is so long: a clock was put back.
        greatest(case when d.due > present + interval '1 day' then present else d.due end,
            case when t.paused_until < present + interval '1 day' then t.paused_until end),
        coalesce(t.timeouts > 0, false), coalesce(t.served, '-infinity')
    from roles r
    cross join lateral (
        select b.due from pgnet.callback b
        where b.due is not null and (b.requested_by::oid, b.due) >= (r.role, '-infinity') and (b.requested_by::oid, b.due) <= (r.role, 'infinity')
        order by b.requested_by, b.due limit 1
    ) d
    left join lateral (
        select t.paused_until, t.timeouts, t.served from pgnet.callback_turn t where t.role = r.role offset 0
    ) t on true
    where not exists (select from pgnet.callback b where b.requested_by = r.role and b.pid is not null offset 0);
end
$$;
comment on function pgnet.due_roles(timestamptz) is
    'The roles that have callbacks waiting and none running, and when the next one may be called.';

-- What a runner calls first, as pgnet.lock_tables: it waits for no lock while it holds one.
create function pgnet.lock_callbacks()
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    lock table pgnet.worker_role, pgnet.worker, pgnet.setting, pgnet.database in access share mode nowait;
    perform pgnet.require_worker();
    lock table net.http_request_queue, pgnet.dependency, pgnet.callback, pgnet.callback_turn, pgnet.callback_order
        in row exclusive mode nowait;
end
$$;
comment on function pgnet.lock_callbacks() is
    'Asks pgnet.require_worker, and takes the locks of a runner that looks for callbacks. Raises 55P03 '
    'at once.';

create function pgnet.look_for_callbacks(
    -- roles whose callbacks are due, in their turns; of these the ones whose callbacks have run out
    -- of their time of late
    out roles oid[], out suspects oid[],
    -- seconds until more are due; NULL: no more wait
    out look_in double precision,
    -- the setting callback_runners
    out runners integer
)
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    present timestamptz;
    next_order timestamptz;
begin
    perform pgnet.lock_callbacks();
    perform pgnet.refuse_copy();
    perform pgnet.refuse_altered_callers();
    roles := '{}';
    suspects := '{}';
    runners := pgnet.setting_value('callback_runners')::integer;
    if pgnet.mode_in_force() = 'off' then
        return;
    end if;
    perform pgnet.free_callbacks();
    next_order := pgnet.examine_orders();
    present := clock_timestamp();
    select coalesce(array_agg(d.role order by d.is_suspect, d.served, d.role) filter (where d.due <= present), '{}'),
        coalesce(array_agg(d.role) filter (where d.due <= present and d.is_suspect), '{}'),
        extract(epoch from min(d.due) filter (where d.due > present) - present)
    into roles, suspects, look_in
    from pgnet.due_roles(present) d;
    look_in := least(look_in, greatest(extract(epoch from next_order - present), 0.01));
    if (select b.request_id from pgnet.callback b where b.pid is not null order by b.requested_by limit 1) is not null then
        -- Its session may be lost.
        look_in := least(look_in, 1);
    end if;
end
$$;
comment on function pgnet.look_for_callbacks() is
    'A runner looks whose callbacks are due. It carries out orders, and frees the callbacks of runners '
    'that are gone. Raises 55000 in a copy of another database.';

create function pgnet.take_next_callback(role oid)
    returns uuid
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
declare
    present timestamptz := clock_timestamp();
    next pgnet.callback;
    taken uuid := gen_random_uuid();
begin
    perform from pgnet.callback_turn t where t.role = take_next_callback.role for update skip locked;
    if not found then
        return null;
    end if;
    -- A statement of its own: it sees what the last session to have the turn has taken.
    if exists (select from pgnet.callback b where b.requested_by = take_next_callback.role::regrole and b.pid is not null) then
        return null;
    end if;
    select b.* into next from pgnet.callback b
    where b.due is not null and (b.requested_by::oid, b.due) >= (take_next_callback.role, '-infinity')
        and (b.requested_by::oid, b.due) <= (take_next_callback.role, 'infinity')
    order by b.requested_by, b.due limit 1 for update skip locked;
    if next.due is null or next.due > present and next.due < present + interval '1 day' then
        return null;
    end if;
    update pgnet.callback b
    set token = taken, pid = pg_backend_pid(), backend_start = (select a.backend_start from pg_stat_get_activity(pg_backend_pid()) a),
        attempts = b.attempts + 1, due = null
    where b.request_id = next.request_id and b.requested_by = next.requested_by;
    return taken;
end
$$;
comment on function pgnet.take_next_callback(oid) is
    'Begins an attempt of the next callback of a role, where none of the role runs, and gives its '
    'token; NULL where there is none.';

create function pgnet.take_callback(role oid)
    returns uuid
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgnet.lock_callbacks();
    insert into pgnet.callback_turn (role) values (take_callback.role) on conflict do nothing;
    update pgnet.callback_turn t set served = clock_timestamp()
    where t.role = (
        select o.role from pgnet.callback_turn o
        where o.role = take_callback.role and (o.paused_until <= clock_timestamp() or o.paused_until > clock_timestamp() + interval '1 day')
        for update skip locked);
    return case when found then pgnet.take_next_callback(role) end;
end
$$;
comment on function pgnet.take_callback(oid) is
    'A runner begins with the callbacks of a role: the token of the first attempt, which is committed '
    'before it runs; NULL where there is none, or another runner has the role.';

-- ---- the call

-- All that is read for a call. Its locks are released: this is undone, but for the variables.
create function pgnet.read_callback(
    taken pgnet.callback,
    -- why it cannot be called; gone: there is nothing to call it with
    out fault text, out gone boolean,
    out query text, out argument text, out path text,
    -- settings: in seconds, and in bytes
    out timeout double precision, out memory bigint, out most_attempts integer, out keep interval, out keep_failed interval
)
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    kind text := case when taken.request_ids is null then 'net.outcome' else 'net.outcome[]' end;
begin
    lock table net._http_response, pgnet.failed, pgnet.mark, pgnet.setting in access share mode nowait;
    timeout := extract(epoch from pgnet.setting_value('callback_timeout')::interval);
    memory := pgnet.setting_value('callback_memory');
    most_attempts := pgnet.setting_value('callback_attempts');
    keep_failed := pgnet.setting_value('ttl_failed');
    -- net.retry has the callback called for the new request, too.
    keep := case when exists (select from pgnet.failed f where f.id = taken.request_id) then keep_failed
        else pgnet.setting_value('ttl')::interval end;
    path := pgnet.role_path(taken.requested_by);
    select format('select %I.%I($1::%s) is null', n.nspname, p.proname, kind) into query
    from pg_proc p
    join pg_namespace n on n.oid = p.pronamespace
    where p.oid = taken.callback_oid and format('%I.%I', n.nspname, p.proname) = taken.callback
        and p.prokind = 'f' and not p.proretset and p.pronargs = 1 and p.proargtypes[0] = kind::regtype;
    fault := case when not exists (select from pg_roles r where r.oid = taken.requested_by) then 'The role does not exist any more.'
        when query is null then format('The function %s(%s) was dropped, renamed or replaced. Is it there again? select net.run_callback(%s);',
            taken.callback, kind, taken.request_id) end;
    argument := pgnet.callback_argument(taken);
    gone := argument is null or exists (
        select from pgnet.mark m where m.requested_by = taken.requested_by and m.request_id = taken.request_id and m.action = 'forget');
    raise exception using errcode = 'PN000';
exception when sqlstate 'PN000' then
    null;
when program_limit_exceeded or out_of_memory then
    fault := 'It cannot be called with so large an answer: ' || sqlerrm || '.';
end
$$;
comment on function pgnet.read_callback(pgnet.callback) is
    'What a callback is called with, or why it cannot be called.';

create function pgnet.callback_argument(taken pgnet.callback)
    -- as text; NULL: it was forgotten
    returns text
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
begin
    if taken.request_ids is null then
        return coalesce((
            select (r.id, r.state, r.status_code, r.headers, r.content, r.content_bytes, r.error_msg, r.attempts, r.context)::net.outcome::text
            from net._http_response r
            where r.id = taken.request_id and r.requested_by = taken.requested_by), taken.outcome::text);
    end if;
    return array(
        select (a.id, coalesce(r.state, f.state), r.status_code, r.headers, r.content, r.content_bytes, r.error_msg, r.attempts, r.context)::net.outcome
        from unnest(taken.request_ids) with ordinality a (id, place)
        left join lateral (
            select r.* from net._http_response r where r.id = a.id and r.requested_by = taken.requested_by offset 0
        ) r on true
        left join lateral (
            select f.state from pgnet.failed f where f.id = a.id and f.requested_by = taken.requested_by offset 0
        ) f on true
        order by a.place)::text;
end
$$;
comment on function pgnet.callback_argument(pgnet.callback) is
    'The outcome of a request, or the outcomes of a set, as text.';

-- PostgreSQL refuses temporary tables in the operation, and its later minor releases types, which
-- would be found before others in the rest of the session, but not all temporary objects.
create function pgnet.temporary_objects()
    returns bigint
    language plpgsql stable parallel restricted
    set search_path = pg_catalog, pg_temp
as $$
begin
    if pg_my_temp_schema() = 0 then
        return 0;
    end if;
    return (select count(*) from pg_depend d where d.refclassid = 'pg_namespace'::regclass and d.refobjid = pg_my_temp_schema());
end
$$;
comment on function pgnet.temporary_objects() is 'How many temporary objects the session has.';

-- This runs as the role, in its path, within the operation that server/restricted.py begins. So it
-- has no path of its own, every name in it is qualified, and it may be called by everybody.
create function pgnet.report_call(query text, argument text, out message text, out state text, out detail text, out hint text, out context text)
    language plpgsql volatile parallel unsafe
as $$
declare
    temporary_objects bigint := pgnet.temporary_objects();
begin
    execute query using argument;
    if pgnet.temporary_objects() operator(pg_catalog.<>) temporary_objects then
        raise exception using errcode = 'insufficient_privilege', message = 'a callback cannot create temporary objects';
    end if;
exception when query_canceled or assert_failure or others then
    get stacked diagnostics message = message_text, state = returned_sqlstate, detail = pg_exception_detail,
        hint = pg_exception_hint, context = pg_exception_context;
end
$$;
comment on function pgnet.report_call(text, text) is
    'Runs a query of the caller''s, and gives the error that it raises, with its context.';

create function pgnet.call_restricted(
    role oid, path text, query text, argument text,
    -- seconds, bytes
    timeout double precision, memory bigint,
    -- whether advisory locks of the session stay
    keep_locks boolean,
    out message text, out state text, out context text,
    -- whether it has run out of its time, or was cancelled from outside
    out timed_out boolean, out cancelled boolean
)
    language plpython3u volatile parallel unsafe
as $$
from pgnet import sql_v1
return sql_v1.call_restricted(plpy, role, path, query, argument, timeout, memory, keep_locks)
$$;
comment on function pgnet.call_restricted(oid, text, text, text, double precision, bigint, boolean) is
    'Runs a query as a role, with nothing that the session''s own role may do: the error that it '
    'raised, with its effects undone; or NULLs.';

create function pgnet.lock_taken(token uuid)
    returns pgnet.callback
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
declare
    taken pgnet.callback;
begin
    lock table pgnet.callback, pgnet.callback_turn in row exclusive mode nowait;
    select b.* into taken from pgnet.callback b
    where b.pid is not null and b.pid = pg_backend_pid() and b.token = lock_taken.token
    order by b.requested_by for update skip locked;
    return taken;
end
$$;
comment on function pgnet.lock_taken(uuid) is
    'The callback that this session has taken under a token; NULLs: it has not, or not any more.';

-- No settings but these: they would hold for the callback as well.
create function pgnet.perform_callback(
    -- of the attempt, from pgnet.take_callback
    token uuid,
    -- whether the next callback of the role is to be taken after it
    go_on boolean,
    keep_locks boolean default false,
    -- of the next attempt; NULL: none is begun
    out next_token uuid,
    -- whether a cancel of the session has ended it
    out cancelled boolean
)
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
    set session_replication_role = origin
as $$
declare
    taken pgnet.callback;
    asked record;
    result record;
begin
    perform pgnet.require_runner();
    perform pgnet.refuse_altered_callers();
    select * into taken from pgnet.lock_taken(token);
    if taken.callback is null then
        return;
    end if;
    select * into asked from pgnet.read_callback(taken);
    if asked.gone then
        delete from pgnet.callback b where b.request_id = taken.request_id and b.requested_by = taken.requested_by;
    elsif asked.fault is not null then
        perform pgnet.settle_callback(taken, asked.fault, '42883', null, true, 0, asked.keep, asked.keep_failed);
    else
        select * into result
        from pgnet.call_restricted(taken.requested_by, asked.path, asked.query, asked.argument, asked.timeout, asked.memory, keep_locks);
        cancelled := result.cancelled;
        perform pgnet.settle_callback(taken, result.message, result.state, result.context, false, asked.most_attempts, asked.keep, asked.keep_failed);
        perform pgnet.pause_callbacks(taken.requested_by, result.timed_out or result.cancelled);
        go_on := go_on and not (result.timed_out or result.cancelled);
    end if;
    if go_on then
        next_token := pgnet.take_next_callback(taken.requested_by);
    end if;
end
$$;
comment on function pgnet.perform_callback(uuid, boolean, boolean) is
    'Calls a callback that this session has taken, and notes how it has ended, in the transaction '
    'that has its effects. It may take the next one of the role.';

create function pgnet.require_runner()
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    lock table pgnet.worker_role, pgnet.worker in access share mode nowait;
    perform pgnet.require_worker();
    -- The locks are released.
    raise exception using errcode = 'PN000';
exception when sqlstate 'PN000' then
    null;
end
$$;
comment on function pgnet.require_runner() is
    'Asks pgnet.require_worker, and holds no lock afterwards.';

-- ---- in a session

create procedure pgnet.serve_callbacks(
    max_runtime interval,
    -- true where nothing can be committed: inside a transaction block
    inout in_transaction_block boolean
)
    language plpython3u
as $$
from pgnet import sql_v1
plpy.execute("select pgnet.require_worker()")
return sql_v1.serve_callbacks(plpy, max_runtime)
$$;
comment on procedure pgnet.serve_callbacks(interval, boolean) is 'The runner behind net.run_callbacks.';

create procedure net.run_callbacks(
    -- begin no callback after this time; NULL stays
    max_runtime interval default null
)
    language plpgsql
as $$
declare
    in_transaction_block boolean;
begin
    perform pgnet.require_worker();
    perform pgnet.refuse_copy();
    call pgnet.serve_callbacks(max_runtime, in_transaction_block);
    if in_transaction_block then
        perform pgnet.refuse_transaction_block('net.run_callbacks');
    end if;
end
$$;
comment on procedure net.run_callbacks(interval) is
    'Runs callbacks in this session as they fall due, until max_runtime has passed (NULL: for ever), '
    'a cancel, or the end of the server. A worker process runs them itself, and so does net.drain(). Raises '
    '25001 inside a transaction block, 55000 in a copy of another database. net.grant_worker lets a '
    'role call it.';

-- ======== extension/66_webhooks.sql ========

-- Table webhooks: net.create_webhook makes the triggers that send a table's changes.
--
-- Theory of operation
--
-- What is made. net.create_webhook runs with the caller's rights. It makes a trigger function and a
-- trigger for each event. The function has its owner's rights, and its owner is the owner of the
-- table. So the requests are the owner's, whoever changes the table, and a role without any right
-- on pgnet may change it. Nobody else may execute the function, so nobody can attach it to a table
-- of his own.
--
-- Why the owner of the table, and nobody else. The function writes rows as JSON. A type of a column
-- may have a cast to JSON, which is code, and the table's owner may add such a column. That code
-- runs with the rights of the function's owner. So both are one role, and pgnet.refuse_new_owner
-- keeps it so. The owner of a type may be a third role, and make the cast later: a row with a cast
-- that is neither the table owner's nor a superuser's is not read (pgnet.foreign_cast).
--
-- Safe by construction. An error in the function would be an error of the user's statement. So it
-- has no block that catches errors, and calls nothing that can fail:
-- - No column is named. A column that is renamed or dropped leaves a key that is null.
-- - Rows become text by row_to_json, which takes all that a row can hold. to_jsonb refuses the
--   escape of a NUL, which a column of type json may have.
-- - What was given as an argument stands in the function as a literal, and was checked.
-- - The rights that the owner may lose are asked first.
-- - The wake-up raises nothing (pgnet.arm_webhook).
-- - A row that is too long becomes a request that fails, and says so.
-- - The function and the triggers depend on the extension, and go with it.
-- Two things can fail, and stand in a block of their own: a payload function, and the condition of
-- a webhook by statement. Both cost a subtransaction.
--
-- Later, by the claim. Whether a webhook is disabled, and where an endpoint is, is looked up when a
-- worker claims the request (pgnet.webhook_facts), and again at each attempt.
--
-- Order. A request gets its id while its transaction has the row locked, or the row's key in the
-- unique index. Both last until the commit. So the ids of the events of one key follow the order of
-- the commits, and with the option ordering they are sent in this order.

create table pgnet.endpoint (
    owner regrole not null default pg_catalog.quote_ident(current_user)::pg_catalog.regrole,
    name text not null,
    url text,
    changed timestamptz not null default pg_catalog.now(),
    primary key (owner, name)
);
comment on table pgnet.endpoint is
    'Where webhooks send to, by name: net.set_endpoint. A dump leaves it out: each environment has '
    'its own.';
comment on column pgnet.endpoint.url is 'NULL: the endpoint was dropped.';
alter table pgnet.endpoint alter url set statistics 0;
create policy own_endpoints on pgnet.endpoint for select
    using (owner operator(pg_catalog.=) (select pgnet.caller_role()));
create policy insert_own_endpoints on pgnet.endpoint for insert
    with check (owner operator(pg_catalog.=) pgnet.caller_role() and pg_catalog.has_schema_privilege('net', 'usage'));
create policy change_own_endpoints on pgnet.endpoint for update
    using (owner operator(pg_catalog.=) (select pgnet.caller_role()))
    with check (owner operator(pg_catalog.=) (select pgnet.caller_role()) and pg_catalog.has_schema_privilege('net', 'usage'));

create table pgnet.webhook (
    owner regrole not null default pg_catalog.quote_ident(current_user)::pg_catalog.regrole,
    name text not null,
    on_table regclass not null,
    definition jsonb not null,
    created timestamptz not null default pg_catalog.now(),
    dropped timestamptz,
    disabled_since timestamptz,
    disabled_reason text,
    enabled_since timestamptz,
    backfill jsonb,
    primary key (owner, name)
);
comment on table pgnet.webhook is
    'Webhooks on tables, by net.create_webhook. The triggers do what definition says; a role that '
    'changes its rows here by hand changes what net.webhooks shows of its own webhooks.';
comment on column pgnet.webhook.definition is
    'The arguments of net.create_webhook, checked, and the name of the trigger function.';
comment on column pgnet.webhook.dropped is
    'NULL: it was not dropped. A role has no right to delete rows, since it could lock the table by '
    'that.';
comment on column pgnet.webhook.disabled_since is 'NULL: its requests are sent.';
comment on column pgnet.webhook.enabled_since is
    'When net.enable_webhook was called: failures before count no more; NULL: never.';
comment on column pgnet.webhook.backfill is
    'The rows that net.backfill_webhook sends: which, how far it is; NULL: none.';
select pg_catalog.pg_extension_config_dump('pgnet.webhook', 'where dropped is null');
create policy own_webhooks on pgnet.webhook for select
    using (owner operator(pg_catalog.=) (select pgnet.caller_role()));
create policy insert_own_webhooks on pgnet.webhook for insert
    with check (owner operator(pg_catalog.=) pgnet.caller_role() and pg_catalog.has_schema_privilege('net', 'usage'));
create policy change_own_webhooks on pgnet.webhook for update
    using (owner operator(pg_catalog.=) (select pgnet.caller_role()))
    with check (owner operator(pg_catalog.=) (select pgnet.caller_role()) and pg_catalog.has_schema_privilege('net', 'usage'));

-- ---- endpoints

create view net.endpoints with (security_invoker) as
    select e.name, e.url, e.owner, e.changed from pgnet.endpoint e where e.url is not null;
comment on view net.endpoints is
    'The endpoints of net.set_endpoint: where webhooks that name them send to. A role sees its own.';

create function pgnet.check_webhook_name(kind text, name text)
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if name is null or name !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,39}$' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = case when name is null then format('the name of %s must not be NULL', kind)
                else format('invalid name "%s" of %s', left(name, 60), kind) end,
            hint = 'A name is of 1 to 40 letters, digits, and - _ . behind the first one.';
    end if;
end
$$;
comment on function pgnet.check_webhook_name(text, text) is
    'Raises 22023 for a name that no webhook or endpoint can have.';

create function pgnet.check_webhook_target(url text, headers jsonb, options jsonb)
    -- the URL as it is stored
    returns text
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    asked jsonb := jsonb_strip_nulls(jsonb_build_object('sign', options -> 'sign'));
    timeout integer := coalesce((options ->> 'timeout_milliseconds')::integer, 30000);
begin
    return coalesce(
        pgnet.check_request('POST', url, '{}', headers, timeout, asked),
        pgnet.check_or_raise('POST', url, '{}', headers, timeout, asked));
end
$$;
comment on function pgnet.check_webhook_target(text, jsonb, jsonb) is
    'Checks URL, headers and secrets of a webhook as net.http_request does, and raises as it does; '
    'gives the URL as it is stored.';

create function net.set_endpoint(
    -- 1 to 40 letters, digits, and - _ . behind the first one
    name text,
    -- absolute http or https URL, or net.secret_url
    url text
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
begin
    perform pgnet.check_webhook_name('an endpoint', name);
    insert into pgnet.endpoint (name, url) values (set_endpoint.name, pgnet.check_webhook_target(set_endpoint.url, '{}', '{}'))
    on conflict on constraint endpoint_pkey do update set url = excluded.url, changed = now();
    perform net.wake();
end
$$;
comment on function net.set_endpoint(text, text) is
    'Sets where webhooks of the current role that name this endpoint send to, also requests that '
    'wait now. Raises 22023 for a name or URL that cannot be, and for NULL, and 42501 for a secret '
    'that the role may not use.';

create function net.drop_endpoint(
    -- the endpoint
    name text
)
    -- whether there was one
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
begin
    update pgnet.endpoint e set url = null, changed = now()
    where e.owner = pgnet.caller_role() and e.name = drop_endpoint.name and e.url is not null;
    return found;
end
$$;
comment on function net.drop_endpoint(text) is
    'Drops an endpoint of the current role: requests of webhooks that name it fail until it is set '
    'again. False where there was none, also for NULL.';

-- ---- what the generated functions call

create function pgnet.arm_webhook()
    returns void
    language plpython3u volatile parallel unsafe
as $$
arm = SD.get("arm")
if arm is None:
    try:
        from pgnet.sql_v1 import arm_quietly as arm
    except Exception:
        # The package is gone, or broken. The request is queued, and a worker finds it when it looks.
        return
    SD["arm"] = arm
arm(plpy)
$$;
comment on function pgnet.arm_webhook() is
    'Has the commit of this transaction wake a worker. Raises nothing, since it is called in a '
    'statement that a user has made for something else.';

create function pgnet.changed_values(new_row json, old_row json)
    returns json
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce(json_object_agg(o.key, o.value), '{}')
    from json_each(old_row) o join json_each(new_row) n on n.key = o.key
    where n.value::text is distinct from o.value::text
$$;
comment on function pgnet.changed_values(json, json) is
    'The former values of the columns that have changed. NULL gives an empty object.';

create function pgnet.webhook_probe()
    returns trigger
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    return null;
end
$$;
comment on function pgnet.webhook_probe() is
    'The function of the trigger by which net.create_webhook has a condition read. It does nothing.';

-- ---- the arguments of net.create_webhook

create function pgnet.known_webhook_options()
    returns table (name text, kind text, hint text)
    language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    values
        ('changes', 'boolean', 'true or false'),
        ('max_attempts', 'number', 'an integer from 1 to 1000'),
        ('max_bytes', 'number', 'an integer from 1000 to 100000000'),
        ('on_failure', 'string', '"block" or "skip"'),
        ('ordering', 'boolean', 'true or false'),
        ('payload', 'string', '"supabase", "hasura", "sequin", or the name of a function (jsonb) returns jsonb'),
        ('sign', 'array', 'an array of names of secrets'),
        ('timeout_milliseconds', 'number', 'an integer from 1 to 86400000')
$$;
comment on function pgnet.known_webhook_options() is 'The options of net.create_webhook.';

create function pgnet.check_webhook_options(options jsonb)
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    given record;
begin
    if jsonb_typeof(options) <> 'object' then
        perform pgnet.raise_error('22023', 'options must be a JSON object', 'For example {"payload": "sequin"}.');
    end if;
    for given in
        select o.key, o.value, k.kind, k.hint
        from jsonb_each(options) o left join pgnet.known_webhook_options() k on k.name = o.key
        where o.value <> 'null'
    loop
        if given.kind is null then
            perform pgnet.raise_error('22023', format('unknown option "%s"; known: %s', left(given.key, 60),
                (select string_agg(k.name, ', ' order by k.name) from pgnet.known_webhook_options() k)), null);
        elsif jsonb_typeof(given.value) <> given.kind
            or given.key = 'on_failure' and given.value #>> '{}' not in ('block', 'skip')
            or given.key = 'max_attempts' and (given.value::numeric % 1 <> 0 or given.value::numeric not between 1 and 1000)
            or given.key = 'max_bytes' and (given.value::numeric % 1 <> 0 or given.value::numeric not between 1000 and 100000000)
            or given.key = 'timeout_milliseconds' and (given.value::numeric % 1 <> 0 or given.value::numeric not between 1 and 86400000)
        then
            perform pgnet.raise_error('22023', format('option "%s" must be %s', given.key, given.hint), null);
        end if;
    end loop;
    if options ? 'on_failure' and (options -> 'ordering') is distinct from 'true' then
        perform pgnet.raise_error('22023', 'option "on_failure" is of no use without "ordering"', null);
    end if;
end
$$;
comment on function pgnet.check_webhook_options(jsonb) is
    'Raises 22023 for an option that net.create_webhook does not know, or a value it cannot have.';

create function pgnet.check_webhook_table(on_table regclass)
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    target record;
begin
    if on_table is null then
        perform pgnet.raise_error('22004', 'on_table must not be NULL', null);
    end if;
    select c.relkind, c.relpersistence, c.relowner, c.relnamespace, n.nspname into target
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = on_table;
    if target.relkind not in ('r', 'p') or target.relpersistence = 't' or target.nspname in ('net', 'pgnet', 'pg_catalog', 'information_schema') then
        raise exception using
            errcode = 'wrong_object_type',
            message = format('%s cannot have a webhook', on_table),
            hint = 'A webhook is on a table or a partitioned table, not on a view, a temporary table, a foreign table, or a table of pgnet.';
    elsif target.relowner <> pgnet.caller_role()::oid then
        -- A member of the owner is not enough: other members could run code with its rights.
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('role "%s" is not the owner of %s', current_user, on_table),
            detail = 'The trigger function of a webhook runs with the rights of the role that makes it. The table''s owner can have that function run code of his own.',
            hint = format('set role %s; and call net.create_webhook again.', target.relowner::regrole);
    elsif not has_schema_privilege(target.relnamespace, 'create') then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('role "%s" may not create a function in the schema "%s"', current_user, target.nspname),
            hint = format('grant create on schema %I to %I;', target.nspname, current_user);
    end if;
end
$$;
comment on function pgnet.check_webhook_table(regclass) is
    'Raises where the current role can make no webhook on a table: 42809 for what is no table, 42501 '
    'where it is not the table''s owner, or may not create functions in its schema.';

create function pgnet.check_webhook_columns(on_table regclass, columns text[])
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    missing text;
begin
    select coalesce(c.name, 'NULL') into missing
    from unnest(columns) c (name)
    where not exists (
        select from pg_attribute a
        where a.attrelid = on_table and a.attname = c.name and a.attnum > 0 and not a.attisdropped);
    if found or columns = '{}' then
        raise exception using
            errcode = 'undefined_column',
            message = case when columns = '{}' then 'columns must name a column'
                else format('table %s has no column "%s"', on_table, left(missing, 63)) end,
            hint = 'columns => NULL sends all updates.';
    end if;
end
$$;
comment on function pgnet.check_webhook_columns(regclass, text[]) is
    'Raises 42703 for a column that the table does not have, and for an empty array.';

create function pgnet.check_payload(
    payload text, per text,
    -- the function that the name stands for in the caller's search_path
    shape regprocedure
)
    -- supabase, hasura or sequin; or the qualified name of a function
    returns text
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    known record;
begin
    if payload in ('supabase', 'sequin') or payload = 'hasura' and per = 'row' then
        return payload;
    elsif payload = 'hasura' then
        perform pgnet.raise_error('22023', 'the payload "hasura" has one row: it needs per => ''row''', 'For several rows: "sequin" or "supabase".');
    end if;
    select p.oid, p.prorettype, p.proowner, p.prokind, n.nspname, p.proname into known
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace where p.oid = shape;
    if not found or known.prokind <> 'f' or known.prorettype <> 'jsonb'::regtype then
        raise exception using
            errcode = 'undefined_function',
            message = format('there is no payload "%s"', left(payload, 80)),
            hint = 'known: supabase, hasura, sequin, or the name of a function of yours: create function app.shape(event jsonb) returns jsonb';
    elsif known.proowner <> pgnet.caller_role()::oid
        and not exists (select from pg_roles r where r.oid = known.proowner and r.rolsuper)
    then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('the payload function %s belongs to another role', shape),
            detail = 'It would run with the rights of the webhook''s owner.',
            hint = format('alter function %s owner to %I;', shape, current_user);
    elsif not has_function_privilege(shape, 'execute') then
        perform pgnet.raise_error('42501', format('role "%s" may not execute %s', current_user, shape), null);
    end if;
    return format('%I.%I', known.nspname, known.proname);
end
$$;
comment on function pgnet.check_payload(text, text, regprocedure) is
    'The payload as a webhook keeps it. Raises 42883 where it is no known one and no function '
    '(jsonb) returns jsonb, 42501 where the function is another role''s, 22023 for hasura by '
    'statement.';

create function pgnet.read_webhook(
    name text, on_table regclass, url text, endpoint text, events text[], columns text[], per text, headers jsonb, secret text,
    retry text, options jsonb, shape regprocedure
)
    returns jsonb
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
#variable_conflict use_variable
declare
    all_events text[] := array(select distinct upper(e.event) from unnest(events) e (event) order by 1);
    chosen jsonb := jsonb_strip_nulls(coalesce(options, '{}'));
    target text := url;
begin
    perform pgnet.check_webhook_name('a webhook', name);
    perform pgnet.check_webhook_table(on_table);
    if all_events = '{}' or (all_events <@ '{INSERT,UPDATE,DELETE}') is not true then
        perform pgnet.raise_error('22023', 'events must be some of INSERT, UPDATE and DELETE', 'For example: events => ''{INSERT,UPDATE}''');
    elsif per is null or per not in ('row', 'statement') then
        perform pgnet.raise_error('22023', 'per must be row or statement', 'row: a request for each row. statement: one for all rows of a statement.');
    elsif num_nonnulls(url, endpoint) <> 1 then
        perform pgnet.raise_error('22023', 'a webhook needs either a url or an endpoint', 'An endpoint is a name of net.set_endpoint.');
    end if;
    perform pgnet.check_webhook_columns(on_table, columns);
    perform pgnet.check_webhook_options(chosen);
    if secret is not null then
        chosen := chosen || jsonb_build_object('sign', jsonb_build_array(secret) || coalesce(chosen -> 'sign', '[]'));
    end if;
    if chosen -> 'ordering' = 'true' and (per <> 'row' or pgnet.primary_key(on_table) is null) then
        perform pgnet.raise_error('22023', 'option "ordering" needs per => ''row'' and a table with a primary key', null);
    end if;
    if endpoint is not null then
        target := (select e.url from pgnet.endpoint e where e.owner = pgnet.caller_role() and e.name = endpoint);
        if target is null then
            perform pgnet.raise_error('42704', format('role "%s" has no endpoint "%s"', current_user, left(endpoint, 60)),
                format('select net.set_endpoint(%L, ''https://example.com/hook'')', left(endpoint, 60)));
        end if;
    end if;
    if retry is not null then
        perform pgnet.check_retry_policy(retry);
    end if;
    headers := pgnet.with_content_type(headers, 'application/json');
    target := pgnet.check_webhook_target(target, headers, chosen);
    return chosen || jsonb_strip_nulls(jsonb_build_object(
        'url', case when endpoint is null then target end, 'endpoint', endpoint, 'events', all_events, 'columns', columns, 'per', per,
        'retry', retry, 'payload', pgnet.check_payload(coalesce(chosen ->> 'payload', 'supabase'), per, shape)))
        || jsonb_build_object('headers', headers);
end
$$;
comment on function pgnet.read_webhook(text, regclass, text, text, text[], text[], text, jsonb, text, text, jsonb, regprocedure) is
    'Checks the arguments of net.create_webhook, and gives the definition that they make.';

create function pgnet.primary_key(on_table regclass)
    -- the columns in their order; NULL: the table has no primary key
    returns text[]
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select array_agg(a.attname::text order by k.place)
    from pg_index i
    cross join lateral unnest(i.indkey::int2[]) with ordinality k (number, place)
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number
    where i.indrelid = on_table and i.indisprimary
$$;
comment on function pgnet.primary_key(regclass) is 'The columns of the primary key of a table.';

create function pgnet.probe_condition(on_table regclass)
    -- the condition of the trigger pgnet_probe, with every name qualified
    returns text
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    probe oid := (select t.oid from pg_trigger t where t.tgrelid = on_table and t.tgname = 'pgnet_probe');
    condition text := substring(pg_get_triggerdef(probe) from ' FOR EACH ROW WHEN [(](.*)[)] EXECUTE FUNCTION ');
    called regprocedure;
begin
    select d.refobjid into called
    from pg_depend d
    where d.classid = 'pg_trigger'::regclass and d.objid = probe and d.refclassid = 'pg_proc'::regclass
        and not has_function_privilege('public', d.refobjid, 'execute');
    if found then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('not every role may execute %s', called),
            detail = 'The condition of a webhook is judged with the rights of the role that changes the table.',
            hint = format('grant execute on function %s to public;', called);
    end if;
    -- A condition that raises an error would be an error of the user's statement. It is tried on
    -- rows that are there.
    execute format('select count(*) from (select t.* from %s t limit 1000) new cross join lateral (select new.*) old where %s', on_table, condition);
    return condition;
end
$$;
comment on function pgnet.probe_condition(regclass) is
    'Reads the condition that the trigger pgnet_probe has, and tries it on some rows of the table. '
    'Raises 42501 where it calls a function that not every role may execute.';

-- ---- the code that is generated

create function pgnet.webhook_message(
    payload text, name text,
    -- expressions of type text, in SQL: the event; the names of table and schema, the rows and the
    -- former values, as JSON; what is added at the end
    op text, relation text, namespace text, new_row text, old_row text, changes text, mark text
)
    -- an expression of type text
    returns text
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    select replace(replace(replace(replace(replace(replace(replace(replace(case payload
        when 'hasura' then
            $e$'{"id":"' || gen_random_uuid() || '","created_at":' || to_json(clock_timestamp()) || ',"trigger":{"name":"@name"},"table":{"schema":' || @nsp || ',"name":' || @rel || '},"event":{"op":"' || @op || '","data":{"old":' || @old || ',"new":' || @new || '},"session_variables":null,"trace_context":null},"delivery_info":{"max_retries":0,"current_retry":0}' || @mark || '}'$e$
        when 'sequin' then
            $e$'{"record":' || case when @op = 'DELETE' then @old else @new end || ',"changes":' || case when @op = 'UPDATE' then @changes else 'null' end || ',"action":"' || lower(@op) || '","metadata":{"table_schema":' || @nsp || ',"table_name":' || @rel || ',"commit_timestamp":' || to_json(now()) || ',"sink":{"name":"@name"}}' || @mark || '}'$e$
        else
            $e$'{"type":"' || @op || '","table":' || @rel || ',"schema":' || @nsp || ',"record":' || @new || ',"old_record":' || @old || @mark || '}'$e$
        end, '@name', name), '@op', op), '@rel', relation), '@nsp', namespace), '@new', new_row), '@old', old_row), '@changes', changes), '@mark', mark)
$$;
comment on function pgnet.webhook_message(text, text, text, text, text, text, text, text, text) is
    'The SQL that makes the body of a webhook''s request for one row.';

create function pgnet.webhook_batch(
    definition jsonb, name text, op text, relation text, namespace text, mark text
)
    -- an expression of type text; its rows have nj and oj, and come in their order
    returns text
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    select case when definition ->> 'payload' = 'sequin' then
        $e$'{"data":[' || string_agg($e$ || pgnet.webhook_message('sequin', name, op, relation, namespace,
            $e$coalesce(c.nj::text, 'null')$e$, $e$coalesce(c.oj::text, 'null')$e$, 'pgnet.changed_values(c.nj, c.oj)', mark) || $e$, ',') || ']}'$e$
    else
        replace(replace(replace(replace($e$'{"type":"' || @op || '","table":' || @rel || ',"schema":' || @nsp
            || ',"records":' || case when @op = 'DELETE' then 'null' else '[' || string_agg(coalesce(c.nj::text, 'null'), ',') || ']' end
            || ',"old_records":' || case when @op = 'INSERT' then 'null' else '[' || string_agg(coalesce(c.oj::text, 'null'), ',') || ']' end
            || @mark || '}'$e$, '@op', op), '@rel', relation), '@nsp', namespace),
            '@mark', mark || case when definition -> 'changes' = 'true'
                then $e$ || ',"changes":' || case when $e$ || op || $e$ <> 'UPDATE' then 'null' else '[' || string_agg(pgnet.changed_values(c.nj, c.oj)::text, ',') || ']' end$e$ else '' end)
    end
$$;
comment on function pgnet.webhook_batch(jsonb, text, text, text, text, text) is
    'The SQL that makes the body of a webhook''s request for several rows.';

create function pgnet.webhook_is_custom(definition jsonb)
    returns boolean
    language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$ select definition ->> 'payload' not in ('supabase', 'hasura', 'sequin') $$;
comment on function pgnet.webhook_is_custom(jsonb) is 'Whether a function of a role''s own makes the payload.';

create function pgnet.webhook_options(definition jsonb, name text)
    -- what the column options of its requests has
    returns jsonb
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select jsonb_strip_nulls(jsonb_build_object(
        'webhook', name, 'retry', definition -> 'retry', 'max_attempts', definition -> 'max_attempts', 'sign', definition -> 'sign',
        'endpoint', definition -> 'endpoint', 'on_failure', definition -> 'on_failure'))
$$;
comment on function pgnet.webhook_options(jsonb, text) is 'The options of a webhook''s requests.';

-- The URL of an endpoint is looked up for each row, for its host: by its host a request stands in
-- the turns of workers.
create function pgnet.webhook_insert(
    definition jsonb, name text,
    -- expressions in SQL: the body as text, and what describes the event
    content text, context text
)
    returns text
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    select format(
        $f$insert into net._new_request (method, url, headers, body, timeout_milliseconds, context, options%s)
    values ('POST', %s, %L::jsonb, case when fault is null then convert_to(%s, %L) end, %s,
        %s,
        case when fault is null then %s else %L::jsonb || jsonb_build_object('fault', fault) end%s)%s;$f$,
        case when definition -> 'ordering' = 'true' then ', held' end,
        case when definition ? 'url' then quote_literal(definition ->> 'url')
            else format($f$coalesce((select e.url from pgnet.endpoint e where e.owner = pgnet.caller_role() and e.name = %1$L), 'http://endpoint.invalid/')$f$,
                definition ->> 'endpoint') end,
        definition -> 'headers', content,
        case when getdatabaseencoding() = 'SQL_ASCII' then 'SQL_ASCII' else 'UTF8' end,
        coalesce(definition ->> 'timeout_milliseconds', '30000'), context,
        case when definition -> 'ordering' = 'true' then format($f$%L::jsonb || jsonb_build_object('ordering_key', ordering_key)$f$, o.options)
            else format('%L::jsonb', o.options) end,
        o.options,
        case when definition -> 'ordering' = 'true' then ', true' end,
        case when definition -> 'ordering' = 'true' then $f$
    returning id into request_id;
    insert into net._new_flow (request_id, ordering_key, gate) values (request_id, ordering_key, 'new')$f$ end)
    from (select pgnet.webhook_options(definition, name) as options) o
$$;
comment on function pgnet.webhook_insert(jsonb, text, text, text) is
    'The statement that queues a webhook''s request.';

-- Of a partition the name of the partitioned table is shown, where the webhook is on that.
create function pgnet.webhook_names(on_table regclass, out relation text, out namespace text)
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select case when c.relkind = 'p' then r.name else 'to_json(tg_table_name::text)' end,
        case when c.relkind = 'p' then r.space else 'to_json(tg_table_schema::text)' end
    from pg_class c
    cross join (values (
        '(select to_json(r.relname::text) from pg_class r where r.oid = coalesce(pg_partition_root(tg_relid), tg_relid))',
        '(select to_json(s.nspname::text) from pg_class r join pg_namespace s on s.oid = r.relnamespace where r.oid = coalesce(pg_partition_root(tg_relid), tg_relid))'
    )) r (name, space)
    where c.oid = on_table
$$;
comment on function pgnet.webhook_names(regclass) is
    'The SQL for the names of table and schema in a webhook''s trigger function.';

-- A call of a payload function, in a block that catches its errors. Where it gives NULL, nothing is
-- sent.
create function pgnet.payload_block(
    payload text,
    -- expression of type text
    content text
)
    returns text
    language sql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    select format($f$begin
            content := %s(%s::jsonb)::text;
            if content is null then
                %s
            end if;
        exception when others then
            fault := %L || left(sqlerrm, 500);
        end;$f$, payload, content, 'return null;', format('The payload function %s has failed: ', payload))
$$;
comment on function pgnet.payload_block(text, text) is 'The block that calls a payload function.';

create function pgnet.types_in(on_table regclass)
    returns setof oid
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    with recursive parts (type) as (
        select a.atttypid from pg_attribute a where a.attrelid = on_table and a.attnum > 0 and not a.attisdropped
        union
        select i.type
        from parts
        join pg_type t on t.oid = parts.type
        cross join lateral (
            values (t.typelem), (t.typbasetype)
            union all
            select a.atttypid from pg_attribute a where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
        ) i (type)
        where i.type <> 0
    )
    select parts.type from parts
$$;
comment on function pgnet.types_in(regclass) is
    'The types of a table''s columns, and what these are made of.';

create function pgnet.foreign_cast(on_table regclass)
    -- why the rows are not read; NULL: they may be
    returns text
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    refused record;
begin
    select c.castsource, r.rolname into refused
    from pg_cast c
    join pg_proc p on p.oid = c.castfunc
    join pg_roles r on r.oid = p.proowner
    where c.casttarget = 'json'::regtype and c.oid >= 16384
        and not r.rolsuper and p.proowner <> (select t.relowner from pg_class t where t.oid = on_table)
        and c.castsource in (select t.type from pgnet.types_in(on_table) t (type))
    limit 1;
    return case when found then format('The type %s has a cast to json that the role %s has made. It would run with the rights of the table''s owner.',
        format_type(refused.castsource, null), refused.rolname) end;
end
$$;
comment on function pgnet.foreign_cast(regclass) is
    'Why the rows of a table are not made JSON: a type of a column has a cast to json whose function '
    'is neither the table owner''s nor a superuser''s. NULL where there is none.';

create function pgnet.refuse_foreign_cast(on_table regclass)
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    reason text := pgnet.foreign_cast(on_table);
begin
    if reason is not null then
        perform pgnet.raise_error('42501', reason, 'Drop the cast, or have the owner of the table own its function.');
    end if;
end
$$;
comment on function pgnet.refuse_foreign_cast(regclass) is
    'Raises 42501 where a row of the table cannot become JSON without the code of another role.';

-- Asked for each row, which takes some microseconds: only where the table has a type that a role
-- has made. Where such a column comes later, pgnet.refuse_new_owner looks.
create function pgnet.cast_check(on_table regclass)
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select '    fault := case when (select c.oid from pg_cast c order by c.oid desc limit 1) >= 16384 then pgnet.foreign_cast(tg_relid) end;'
    where exists (
        select from pgnet.types_in(on_table) i (type)
        join pg_type t on t.oid = i.type
        join pg_roles r on r.oid = t.typowner
        where t.oid >= 16384 and not r.rolsuper)
$$;
comment on function pgnet.cast_check(regclass) is
    'The line of a trigger function that asks whether rows may be made JSON; NULL where none is '
    'needed.';

create function pgnet.webhook_row_code(on_table regclass, name text, definition jsonb)
    returns text
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    names record := pgnet.webhook_names(on_table);
    key_columns text[] := pgnet.primary_key(on_table);
    most integer := coalesce((definition ->> 'max_bytes')::integer, 10000000);
    is_ordered boolean := definition -> 'ordering' = 'true';
    has_old boolean := definition -> 'events' <> '["INSERT"]';
    has_new boolean := definition -> 'events' <> '["DELETE"]';
    any_row text := case when has_old and has_new then 'coalesce(new_row, old_row)' when has_new then 'new_row' else 'old_row' end;
    -- The values are JSON already, so that the cast reads them as they are.
    key text := coalesce(
        (select string_agg(format($e$%L || coalesce((%s -> %L)::text, 'null')$e$, case k.place when 1 then '{' else ',' end || to_json(k.name) || ':', any_row, k.name), ' || ' order by k.place)
            from unnest(key_columns) with ordinality k (name, place)) || $e$ || '}'$e$, '''null''');
    message text := pgnet.webhook_message(definition ->> 'payload', name, 'tg_op', names.relation, names.namespace,
        case when has_new then $e$coalesce(new_row::text, 'null')$e$ else '''null''' end,
        case when has_old then $e$coalesce(old_row::text, 'null')$e$ else '''null''' end,
        'pgnet.changed_values(new_row, old_row)',
        case when definition -> 'changes' = 'true' and definition ->> 'payload' <> 'sequin'
            then $e$case when tg_op = 'UPDATE' then ',"changes":' || pgnet.changed_values(new_row, old_row) else '' end$e$ else '''''' end);
begin
    return concat_ws(chr(10),
        'declare',
        '    new_row json;', '    old_row json;', '    content text;', '    fault text;',
        case when is_ordered then '    ordering_key text;' end, case when is_ordered then '    request_id bigint;' end,
        'begin',
        '    if not has_schema_privilege(''net'', ''usage'') or not has_schema_privilege(''pgnet'', ''usage'') then',
        '        return null; -- net.webhooks says so',
        '    end if;',
        '    perform pgnet.arm_webhook();',
        pgnet.cast_check(on_table),
        '    if fault is not null then',
        '        null;',
        format('    elsif %s > %s then', concat_ws(' + ',
            case when has_new then 'coalesce(pg_column_size(new), 0)' end, case when has_old then 'coalesce(pg_column_size(old), 0)' end), most),
        format('        fault := %L;', pgnet.too_long_words(most)),
        '    else',
        case when has_new then '        new_row := row_to_json(new);' end,
        case when has_old then '        old_row := row_to_json(old);' end,
        case when pgnet.webhook_is_custom(definition) then pgnet.payload_block(definition ->> 'payload', '(' || message || ')')
            else format('        content := %s;', message) end,
        format('        if octet_length(content) > %s then fault := %L; end if;', most, pgnet.too_long_words(most)),
        '    end if;',
        case when is_ordered then format($f$    ordering_key := concat_ws(',', %s);
    ordering_key := %L || case when ordering_key ~ '^[ -~]{1,200}$' then ordering_key else md5(ordering_key) end;$f$,
            (select string_agg(format('%s ->> %L', any_row, k.name), ', ') from unnest(key_columns) k (name)), name || ' ') end,
        '    ' || pgnet.webhook_insert(definition, name, 'content', format($e$(%L || tg_op || '","key":' || %s || '}')::jsonb$e$, '{"webhook":"' || name || '","event":"', key)),
        '    return null;',
        'end');
end
$$;
comment on function pgnet.webhook_row_code(regclass, text, jsonb) is
    'The body of the trigger function of a webhook by row.';

create function pgnet.too_long_words(most integer)
    returns text language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$ select format('The row is longer than max_bytes of the webhook (%s) as JSON, and is not sent.', most) $$;
comment on function pgnet.too_long_words(integer) is 'Why a row is not sent.';

create function pgnet.webhook_rows(
    definition jsonb, event text,
    -- the condition, with every name qualified; NULL: none
    condition text
)
    -- a query of nj and oj: the rows as JSON, in their order
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select format($f$select r.nj, r.oj from (%s) r%s$f$,
        case event
            when 'INSERT' then
                'select case when pg_column_size(new) <= 50000000 then row_to_json(new) end as nj, null::json as oj from pgnet_new new'
                || coalesce(' where ' || condition, '') || ' offset 0'
            when 'DELETE' then
                'select null::json as nj, case when pg_column_size(old) <= 50000000 then row_to_json(old) end as oj from pgnet_old old'
                || coalesce(' where ' || condition, '') || ' offset 0'
            -- PostgreSQL adds both rows of an update at the same moment: they have the same number.
            else
                'select case when pg_column_size(n.r) <= 50000000 then row_to_json(n.r) end as nj, case when pg_column_size(o.r) <= 50000000 then row_to_json(o.r) end as oj'
                ' from (select row_number() over () as i, t as r from pgnet_new t) n join (select row_number() over () as i, t as r from pgnet_old t) o on o.i = n.i'
                || coalesce(' cross join lateral (select (n.r).*) new cross join lateral (select (o.r).*) old where ' || condition, '')
                || ' order by n.i offset 0'
        end,
        case when event = 'UPDATE' and definition ? 'columns' then (
            select ' where ' || string_agg(format('(r.nj -> %1$L)::text is distinct from (r.oj -> %1$L)::text', c.name), ' or ')
            from jsonb_array_elements_text(definition -> 'columns') c (name)) end)
$$;
comment on function pgnet.webhook_rows(jsonb, text, text) is
    'The query for the rows of a statement that a webhook sends.';

create function pgnet.webhook_statement_code(on_table regclass, name text, definition jsonb, condition text)
    returns text
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    names record := pgnet.webhook_names(on_table);
    most integer := coalesce((definition ->> 'max_bytes')::integer, 1000000);
    content text := pgnet.webhook_batch(definition, name, 'tg_op', names.relation, names.namespace, '''''');
    send text := 'perform pgnet.arm_webhook(); ' || pgnet.webhook_insert(definition, name, 'content', format('jsonb_build_object(''webhook'', %L, ''event'', tg_op, ''rows'', part.rows)', name));
    shape text := case when pgnet.webhook_is_custom(definition)
        then replace(pgnet.payload_block(definition ->> 'payload', 'content'), 'return null;', 'continue;') end;
    branches text := (
        select string_agg(format($f$if tg_op = %L then
        for part in
            select %s as content, count(*) as rows
            from (
                select s.*,
                    sum(coalesce(octet_length(s.nj::text), 0) + coalesce(octet_length(s.oj::text), 0))
                        over (rows between unbounded preceding and current row) / %s as part
                from (%s) s
            ) c
            group by c.part order by c.part
        loop
            content := part.content;
            fault := null;
            %s
            %s
        end loop;
    end if;$f$,
            e.event, content, most, pgnet.webhook_rows(definition, e.event, condition), shape, send), chr(10) || '    ')
        from jsonb_array_elements_text(definition -> 'events') e (event));
begin
    return concat_ws(chr(10),
        '#variable_conflict use_column',
        'declare', '    part record;', '    content text;', '    fault text;',
        'begin',
        '    if not has_schema_privilege(''net'', ''usage'') or not has_schema_privilege(''pgnet'', ''usage'') then',
        '        return null; -- net.webhooks says so',
        '    end if;',
        pgnet.cast_check(on_table),
        '    if fault is not null then',
        '        perform pgnet.arm_webhook();',
        '        ' || pgnet.webhook_insert(definition, name, 'content', format('jsonb_build_object(''webhook'', %L, ''event'', tg_op)', name)),
        '        return null;',
        '    end if;',
        case when condition is not null then '    begin' end,
        '    ' || branches,
        case when condition is not null then $f$        fault := null;
    exception when others then
        fault := 'The condition or the payload has failed: ' || left(sqlerrm, 500);
    end;$f$ end,
        case when condition is not null then '    if fault is not null then' end,
        case when condition is not null then '        perform pgnet.arm_webhook();' end,
        case when condition is not null then '        ' || pgnet.webhook_insert(definition, name, 'content', format('jsonb_build_object(''webhook'', %L, ''event'', tg_op)', name)) end,
        case when condition is not null then '    end if;' end,
        '    return null;',
        'end');
end
$$;
comment on function pgnet.webhook_statement_code(regclass, text, jsonb, text) is
    'The body of the trigger function of a webhook by statement.';

-- ---- making and removing

create function pgnet.webhook_triggers(on_table regclass, name text)
    returns table (id oid, trigger_name name, function_id oid, enabled boolean)
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select t.oid, t.tgname, t.tgfoid, t.tgenabled <> 'D'
    from pg_trigger t
    where t.tgrelid = on_table and t.tgname = any (array[
        'pgnet_' || name || '_insert', 'pgnet_' || name || '_update', 'pgnet_' || name || '_delete']::name[])
$$;
comment on function pgnet.webhook_triggers(regclass, text) is 'The triggers of a webhook, as far as they are there.';

create function pgnet.webhook_trigger(
    on_table regclass, name text, definition jsonb, event text, condition text,
    -- the trigger function, as SQL names it
    function_name text
)
    -- the statement that makes the trigger
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select case when definition ->> 'per' = 'row' then
        format('create trigger %I after %s on %s for each row%s execute function %s()', 'pgnet_' || name || '_' || lower(event), event, on_table,
            -- record_image_eq compares what is stored: every type has that, and it calls nobody's
            -- operators. As an operator it would not be dumped as it is.
            ' when (' || nullif(concat_ws(' and ', '(' || condition || ')', case when event = 'UPDATE' and definition ? 'columns' then (
                select format('not pg_catalog.record_image_eq(row(%s), row(%s))', string_agg(format('old.%I', c.name), ', '), string_agg(format('new.%I', c.name), ', '))
                from jsonb_array_elements_text(definition -> 'columns') c (name)) end), '') || ')',
            function_name)
    else
        format('create trigger %I after %s on %s referencing%s%s for each statement execute function %s()', 'pgnet_' || name || '_' || lower(event), event, on_table,
            case when event <> 'DELETE' then ' new table as pgnet_new' end, case when event <> 'INSERT' then ' old table as pgnet_old' end,
            function_name)
    end
$$;
comment on function pgnet.webhook_trigger(regclass, text, jsonb, text, text, text) is
    'The statement that makes a webhook''s trigger for an event.';

create function pgnet.remove_webhook(
    -- of a webhook of the current role
    on_table regclass, name text, definition jsonb
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    made record;
    function_id oid := to_regprocedure((definition ->> 'function') || '()');
begin
    for made in select t.trigger_name, t.function_id from pgnet.webhook_triggers(on_table, name) t loop
        function_id := made.function_id; -- the schema may have been renamed
        execute format('drop trigger %I on %s', made.trigger_name, on_table);
    end loop;
    if exists (select from pg_proc p where p.oid = function_id and p.proowner = pgnet.caller_role()::oid and p.prorettype = 'trigger'::regtype) then
        execute format('drop function %s', function_id::regprocedure);
    end if;
end
$$;
comment on function pgnet.remove_webhook(regclass, text, jsonb) is
    'Drops the triggers of a webhook and their function, as far as they are there.';

create function pgnet.make_webhook(name text, on_table regclass, definition jsonb, condition text)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    function_name text := (
        select format('%I.%I', n.nspname, 'pgnet_' || name) from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = on_table);
    event text;
begin
    if to_regprocedure(function_name || '()') is not null then
        -- Another role's, which has a webhook of the same name in this schema.
        function_name := (
            select format('%I.%I', n.nspname, format('pgnet_%s_%s', name, c.oid))
            from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = on_table);
    end if;
    execute format(
        'create function %s() returns trigger language plpgsql volatile security definer set search_path = pg_catalog, pg_temp%s as %L',
        -- By hashing, a group's rows stay in their order; it is also faster.
        function_name, case when definition ->> 'per' = 'statement' then ' set enable_sort = off set jit = off' end, chr(10) || '-- Made by net.create_webhook. It goes with net.drop_webhook.' || chr(10) || case when definition ->> 'per' = 'row'
            then pgnet.webhook_row_code(on_table, name, definition)
            else pgnet.webhook_statement_code(on_table, name, definition, condition) end || chr(10));
    execute format('revoke all on function %s() from public', function_name);
    execute format('alter function %s() depends on extension pgnet', function_name);
    for event in select e.event from jsonb_array_elements_text(definition -> 'events') e (event) loop
        execute pgnet.webhook_trigger(on_table, name, definition, event, condition, function_name);
        execute format('alter trigger %I on %s depends on extension pgnet', 'pgnet_' || name || '_' || lower(event), on_table);
    end loop;
    insert into pgnet.webhook as w (name, on_table, definition)
    values (make_webhook.name, make_webhook.on_table,
        definition || jsonb_strip_nulls(jsonb_build_object('function', function_name, 'condition', condition)))
    on conflict on constraint webhook_pkey do update
    set on_table = excluded.on_table, definition = excluded.definition, created = now(), dropped = null, disabled_since = null,
        disabled_reason = null, backfill = null;
end
$$;
comment on function pgnet.make_webhook(text, regclass, jsonb, text) is
    'Makes the triggers of a webhook and their function, and its row in pgnet.webhook.';

create function pgnet.replace_webhook(name text, replaces boolean)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    former record;
begin
    select w.on_table, w.definition into former
    from pgnet.webhook w where w.owner = pgnet.caller_role() and w.name = replace_webhook.name and w.dropped is null;
    if not found then
        return;
    elsif replaces is not true then
        raise exception using
            errcode = 'duplicate_object',
            message = format('role "%s" has a webhook "%s"', current_user, name),
            hint = format('To make it anew, give replace => true. To remove it: select net.drop_webhook(%L)', name);
    end if;
    perform pgnet.remove_webhook(former.on_table, name, former.definition);
end
$$;
comment on function pgnet.replace_webhook(text, boolean) is
    'Removes the webhook that is to be made anew; raises 42710 where it is not to be replaced.';

create function net.create_webhook(
    -- 1 to 40 letters, digits, and - _ . behind the first one; a role''s webhooks have different
    -- names
    name text,
    -- a table or partitioned table that the current role owns
    on_table regclass,
    -- where to: absolute http or https URL, or net.secret_url; NULL: an endpoint is given
    url text default null,
    -- some of INSERT, UPDATE and DELETE
    events text[] default '{INSERT,UPDATE,DELETE}',
    -- an UPDATE that changes none of them sends nothing; NULL: every UPDATE sends
    columns text[] default null,
    -- an expression of new and old, as in WHEN of CREATE TRIGGER; NULL: all rows
    condition text default null,
    -- row: a request for each row; statement: one for all rows of a statement
    per text default 'row',
    -- names and values of request headers, {"secret": name} is a secret; NULL means none
    headers jsonb default '{}'::pg_catalog.jsonb,
    -- the secret that requests are signed with, as Standard Webhooks says; NULL: none is
    secret text default null,
    -- a retry policy; NULL means the policy of the host, or none
    retry text default 'webhook',
    -- whether it takes the place of one with this name
    replace boolean default false,
    -- a name of net.set_endpoint, in place of url
    endpoint text default null,
    -- payload (supabase, hasura, sequin, or a function (jsonb) returns jsonb), changes, sign,
    -- ordering, on_failure (block, or skip), timeout_milliseconds (30000), max_attempts, max_bytes;
    -- NULL means none
    options jsonb default '{}'::pg_catalog.jsonb
)
    returns void
    language plpgsql volatile parallel unsafe
as $$
declare
    definition pg_catalog.jsonb := pgnet.read_webhook(
        create_webhook.name, create_webhook.on_table, create_webhook.url, create_webhook.endpoint, create_webhook.events, create_webhook.columns,
        create_webhook.per, create_webhook.headers, create_webhook.secret, create_webhook.retry, create_webhook.options,
        -- Looked for in the caller's search_path, and so not in a function that has one of its own.
        pg_catalog.to_regprocedure((create_webhook.options operator(pg_catalog.->>) 'payload') operator(pg_catalog.||) '(jsonb)'));
    event pg_catalog.text;
    known_condition pg_catalog.text;
begin
    perform pgnet.replace_webhook(create_webhook.name, create_webhook.replace);
    if create_webhook.condition is not null then
        for event in select e.event from pg_catalog.jsonb_array_elements_text(definition operator(pg_catalog.->) 'events') e (event) loop
            execute pg_catalog.format('create trigger pgnet_probe after %s on %s for each row when (%s) execute function pgnet.webhook_probe()',
                event, pgnet.qualified_name(create_webhook.on_table), create_webhook.condition);
            known_condition := pgnet.probe_condition(create_webhook.on_table);
            execute pg_catalog.format('drop trigger pgnet_probe on %s', pgnet.qualified_name(create_webhook.on_table));
        end loop;
    end if;
    perform pgnet.make_webhook(create_webhook.name, create_webhook.on_table, definition, known_condition);
end
$$;
comment on function net.create_webhook(text, regclass, text, text[], text[], text, text, jsonb, text, text, boolean, text, jsonb) is
    'Sends the changes of a table as HTTP requests, from the commit of this transaction on: it '
    'makes a trigger function and triggers, which no change of the table can fail by. The requests '
    'are the current role''s, which has to own the table (42501). Raises 42710 for a name that is '
    'taken, 42703 for a column and 42704 for an endpoint that is not there, 42883 for a payload '
    'that is not known, 22023 for other arguments that cannot be, and what the condition raises.';

create function pgnet.qualified_name(relation regclass)
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$ select relation::text $$;
comment on function pgnet.qualified_name(regclass) is 'A relation with its schema, as SQL names it.';

create function net.drop_webhook(
    -- the webhook
    name text
)
    -- whether there was one
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    former record;
begin
    select w.on_table, w.definition into former
    from pgnet.webhook w where w.owner = pgnet.caller_role() and w.name = drop_webhook.name and w.dropped is null;
    if not found then
        return false;
    end if;
    perform pgnet.remove_webhook(former.on_table, name, former.definition);
    update pgnet.webhook w set dropped = now(), backfill = null where w.owner = pgnet.caller_role() and w.name = drop_webhook.name;
    return true;
end
$$;
comment on function net.drop_webhook(text) is
    'Removes a webhook of the current role, its triggers and their function. Requests that it has '
    'queued are sent. False where there was none, also for NULL.';

-- The trigger function runs what the table's owner puts into the table: see the theory above.
create function pgnet.refuse_new_owner()
    returns event_trigger
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    made record;
begin
    select c.oid::regclass as relation, c.relowner::regrole as owner, p.oid::regprocedure as function, p.proowner::regrole as former into made
    from pg_event_trigger_ddl_commands() d
    join pg_trigger t on d.classid = 'pg_class'::regclass and t.tgrelid = d.objid and t.tgname ^@ 'pgnet_'
    join pg_class c on c.oid = t.tgrelid
    join pg_proc p on p.oid = t.tgfoid
    where p.prosecdef and p.proname ^@ 'pgnet_' and p.proowner <> c.relowner
    limit 1;
    if found then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('a webhook of role %s is on %s, which would have another owner', made.former, made.relation),
            detail = 'Its trigger function runs with the rights of its owner. The table''s owner could have it run code of his own.',
            hint = format('Drop the webhook first, as %s, and make it again as %s. net.webhooks shows it. Or give the function to the new owner first: alter function %s owner to %s;',
                made.former, made.owner, made.function, made.owner);
    end if;
    select c.oid::regclass as relation, format_type(y.oid, null) as type, y.typowner::regrole as owner into made
    from pg_event_trigger_ddl_commands() d
    join pg_trigger t on d.classid = 'pg_class'::regclass and t.tgrelid = d.objid and t.tgname ^@ 'pgnet_'
    join pg_class c on c.oid = t.tgrelid
    join pg_proc p on p.oid = t.tgfoid
    cross join lateral pgnet.types_in(c.oid) i (type)
    join pg_type y on y.oid = i.type
    join pg_roles r on r.oid = y.typowner
    where p.prosecdef and p.proname ^@ 'pgnet_' and strpos(p.prosrc, 'pgnet.foreign_cast') = 0
        and y.oid >= 16384 and y.typowner <> c.relowner and not r.rolsuper
    limit 1;
    if found then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('a webhook is on %s, and the type %s belongs to another role, %s', made.relation, made.type, made.owner),
            detail = 'A cast to json that the type''s owner makes would run with the rights of the table''s owner.',
            hint = 'Drop the webhook first, and make it again afterwards: net.webhooks shows it.';
    end if;
end
$$;
comment on function pgnet.refuse_new_owner() is
    'Raises 42501 where a table with a webhook gets another owner than the webhook''s function has, '
    'or a column of a type that another role owns and that the function does not look out for.';
create event trigger pgnet_refuse_new_owner on ddl_command_end
    when tag in ('ALTER TABLE')
    execute function pgnet.refuse_new_owner();
comment on event trigger pgnet_refuse_new_owner is
    'Keeps the owner of a webhook''s trigger function the owner of its table.';

-- ---- what a worker has to know of a request

create function pgnet.webhook_facts(
    -- of a request that is claimed
    role regrole, options jsonb,
    -- where its endpoint is now; NULL: the request has no endpoint, or none that is set
    out url text,
    -- why it is not sent, and the state that it ends in; NULL: it is sent
    out unsent text, out unsent_state text
)
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    known record;
begin
    if options ? 'endpoint' then
        url := (select e.url from pgnet.endpoint e where e.owner = role and e.name = options ->> 'endpoint');
        if url is null then
            unsent := format('Role %s has no endpoint "%s": select net.set_endpoint(%2$L, url), then net.retry.', role, left(options ->> 'endpoint', 60));
            unsent_state := 'failed';
        end if;
    end if;
    if jsonb_typeof(options -> 'fault') = 'string' then
        unsent := left(options ->> 'fault', 1000);
        unsent_state := 'failed';
    end if;
    select w.disabled_since, w.disabled_reason into known
    from pgnet.webhook w where w.owner = role and w.name = options ->> 'webhook' and w.disabled_since is not null;
    if found then
        unsent := format('The webhook "%s" is disabled since %s: %s', left(options ->> 'webhook', 60),
            to_char(known.disabled_since, 'YYYY-MM-DD HH24:MI:SS TZ'), coalesce(known.disabled_reason, 'no reason was given.'));
        unsent_state := 'cancelled';
    end if;
end
$$;
comment on function pgnet.webhook_facts(regrole, jsonb) is
    'What a claim looks up for a request of a webhook: where its endpoint is, and whether it is sent '
    'at all.';

-- ======== extension/67_backfill.sql ========

-- Backfill: net.backfill_webhook sends the rows that a table has already, a page after the other.
--
-- A page is read by primary key, from where the last one ended, and its requests are queued. When
-- all of them have ended, a callback of the webhook's owner queues the next page (net.on_all_done).
-- So a backfill never has more than a page in the queue, it runs with the owner's rights, and it
-- goes on after any crash where it was: the page, its place and the next callback are one
-- transaction.

create function pgnet.backfill_keys(on_table regclass, from_row text, given jsonb, comparison text)
    -- a condition on the primary key; NULL: nothing is given
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select case when given is not null then format('(%s) %s (%s)',
        string_agg(format('%s.%I', from_row, k.name), ', ' order by k.place), comparison,
        string_agg(format('%L::%s', given ->> k.name, format_type(a.atttypid, a.atttypmod)), ', ' order by k.place)) end
    from unnest(pgnet.primary_key(on_table)) with ordinality k (name, place)
    join pg_attribute a on a.attrelid = on_table and a.attname = k.name
$$;
comment on function pgnet.backfill_keys(regclass, text, jsonb, text) is
    'Compares the primary key of a row with one that is given as an object of texts.';

create function pgnet.key_texts(
    on_table regclass, from_row text,
    -- ::text for an object of texts
    as_type text
)
    -- an expression of type jsonb
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select format('jsonb_build_object(%s)', string_agg(format('%L, %s.%I%s', k.name, from_row, k.name, as_type), ', ' order by k.place))
    from unnest(pgnet.primary_key(on_table)) with ordinality k (name, place)
$$;
comment on function pgnet.key_texts(regclass, text, text) is 'The SQL that gives the primary key of a row as an object.';

create function pgnet.key_columns(on_table regclass, from_row text, direction text)
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select string_agg(format('%s.%I %s', from_row, k.name, direction), ', ' order by k.place)
    from unnest(pgnet.primary_key(on_table)) with ordinality k (name, place)
$$;
comment on function pgnet.key_columns(regclass, text, text) is 'The columns of the primary key, to order rows by.';

create function pgnet.read_rate(rate text)
    -- seconds for a row; NULL: as fast as the receiver is
    returns double precision
    language plpgsql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    parts text[] := regexp_match(rate, '^ *([0-9]{1,9}) *(?:/ *(second|minute|hour))? *$');
begin
    if rate is not null and (parts is null or parts[1]::integer = 0) then
        perform pgnet.raise_error('22023', 'rate must be a number of rows and a unit of time', 'For example ''100/second'', ''30/minute''.');
    end if;
    return case coalesce(parts[2], 'second') when 'second' then 1 when 'minute' then 60 else 3600 end / parts[1]::double precision;
end
$$;
comment on function pgnet.read_rate(text) is 'Seconds for a row of a rate such as 100/second. NULL gives NULL; raises 22023.';

create function pgnet.backfill_query(known pgnet.webhook)
    -- a query of the next page: place, content, key, and ordering_key
    returns text
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    definition jsonb := known.definition;
    payload text := definition ->> 'payload';
    relation text;
    namespace text;
    op text := case payload when 'hasura' then '''MANUAL''' when 'sequin' then '''READ''' else '''INSERT''' end;
    message text;
    page text;
begin
    select format('%L', to_json(c.relname::text)), format('%L', to_json(n.nspname::text)) into relation, namespace
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = known.on_table;
    message := case when definition ->> 'per' = 'row'
        then pgnet.webhook_message(payload, known.name, op, relation, namespace, $e$coalesce(c.nj::text, 'null')$e$, $e$'null'$e$, $e$'null'$e$, $e$',"read":true'$e$)
        else pgnet.webhook_batch(definition, known.name, op, relation, namespace, $e$',"read":true'$e$) end;
    if pgnet.webhook_is_custom(definition) then
        message := format('(%s((%s)::jsonb))::text', payload, message);
    end if;
    page := format('select row_number() over (order by %1$s) as i, row_to_json(t) as nj, null::json as oj, %2$s as place, %3$s as key from %4$s t where %5$s order by %1$s limit %6$s',
        pgnet.key_columns(known.on_table, 't', ''), pgnet.key_texts(known.on_table, 't', '::text'), pgnet.key_texts(known.on_table, 't', ''), known.on_table,
        concat_ws(' and ', pgnet.backfill_keys(known.on_table, 't', known.backfill -> 'place', '>'),
            coalesce(pgnet.backfill_keys(known.on_table, 't', known.backfill -> 'until', '<='), 'false'), '(' || (known.backfill ->> 'condition') || ')'),
        known.backfill ->> 'batch');
    return case when definition ->> 'per' = 'row'
        then format('select c.place, c.key, %s as content, 1 as rows, c.nj from (%s) c order by c.i', message, page)
        else format('select (array_agg(c.place order by c.i desc))[1] as place, null::jsonb as key, %s as content, count(*)::integer as rows, null::json as nj from (%s) c having count(*) > 0', message, page) end;
end
$$;
comment on function pgnet.backfill_query(pgnet.webhook) is 'The query that reads a page of a backfill.';

create function pgnet.queue_page(
    known pgnet.webhook,
    -- the requests of the page, and the last row that was read; NULL: there is no row left
    out ids bigint[], out place jsonb,
    -- how many rows were read
    out number bigint,
    -- when the next page may begin; NULL: at once
    out next_at timestamptz
)
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    definition jsonb := known.definition;
    target text := coalesce(definition ->> 'url', (
        select e.url from pgnet.endpoint e where e.owner = known.owner and e.name = definition ->> 'endpoint'), 'http://endpoint.invalid/');
    is_ordered boolean := coalesce(definition -> 'ordering' = 'true', false);
    pause double precision := pgnet.read_rate(known.backfill ->> 'rate');
    ordering_key text;
    page record;
    request_id bigint;
begin
    ids := '{}';
    number := 0;
    next_at := case when pause is not null then greatest(clock_timestamp(), (known.backfill ->> 'next')::timestamptz) end;
    perform pgnet.refuse_foreign_cast(known.on_table);
    for page in execute pgnet.backfill_query(known) loop
        place := page.place;
        number := number + page.rows;
        continue when page.content is null; -- a payload function does not want it
        if is_ordered then
            ordering_key := (
                select string_agg(page.nj ->> k.name, ',' order by k.position)
                from unnest(pgnet.primary_key(known.on_table)) with ordinality k (name, position));
            ordering_key := known.name || ' ' || case when ordering_key ~ '^[ -~]{1,200}$' then ordering_key else md5(ordering_key) end;
        end if;
        insert into net._new_request (method, url, headers, body, timeout_milliseconds, context, options, held)
        values ('POST', target, definition -> 'headers', convert_to(page.content, 'UTF8'), coalesce((definition ->> 'timeout_milliseconds')::integer, 30000),
            jsonb_build_object('webhook', known.name, 'event', 'READ')
                || case when definition ->> 'per' = 'row' then jsonb_build_object('key', page.key) else jsonb_build_object('rows', page.rows) end,
            pgnet.webhook_options(definition, known.name) || case when is_ordered then jsonb_build_object('ordering_key', ordering_key) else '{}' end,
            case when is_ordered or pause is not null then true end)
        returning id into request_id;
        if is_ordered or pause is not null then
            insert into net._new_flow (request_id, not_before, ordering_key, gate)
            values (request_id, next_at, ordering_key, case when is_ordered then 'new'::pgnet.gate end);
        end if;
        next_at := next_at + make_interval(secs => pause * page.rows);
        ids := ids || request_id;
    end loop;
end
$$;
comment on function pgnet.queue_page(pgnet.webhook) is 'Queues the next page of a backfill.';

create function pgnet.send_page(
    -- a webhook of the current role whose backfill runs
    known pgnet.webhook
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    page record;
begin
    loop
        select * into page from pgnet.queue_page(known);
        known.backfill := known.backfill || jsonb_strip_nulls(jsonb_build_object(
            'place', page.place, 'next', page.next_at, 'sent', (known.backfill ->> 'sent')::bigint + page.number,
            'state', case when page.place is null then 'done' end));
        exit when page.ids <> '{}' or page.place is null;
    end loop;
    if page.ids <> '{}' then
        perform net.on_all_done(page.ids, 'pgnet.next_page');
    end if;
    update pgnet.webhook w set backfill = known.backfill where w.owner = pgnet.caller_role() and w.name = known.name;
    perform net.wake();
end
$$;
comment on function pgnet.send_page(pgnet.webhook) is
    'Queues the next page of a backfill, and asks for the one behind it.';

create function pgnet.next_page(outcomes net.outcome[])
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    known pgnet.webhook;
begin
    select w.* into known from pgnet.webhook w
    where w.owner = pgnet.caller_role() and w.name = (outcomes[1]).context ->> 'webhook' and w.dropped is null
        and w.backfill ->> 'state' = 'running'
    for update;
    if known.name is null then
        return;
    elsif known.disabled_since is not null then
        update pgnet.webhook w set backfill = w.backfill || '{"state": "stopped"}'
        where w.owner = known.owner and w.name = known.name;
        return;
    end if;
    perform pgnet.send_page(known);
end
$$;
comment on function pgnet.next_page(net.outcome[]) is
    'A callback: the page of a backfill has ended, and the next one is queued; where the webhook is disabled, the backfill stops.';

create function net.backfill_webhook(
    -- the webhook
    name text,
    -- an expression of the columns of the table, with names of functions written with their schema;
    -- NULL: all rows
    condition text default null,
    -- how many rows are queued at once, from 1 to 1000
    batch integer default 100,
    -- how many rows are sent in a time, such as 100/second; NULL: as fast as they are accepted
    rate text default null
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    known pgnet.webhook := pgnet.require_webhook(name);
    until jsonb;
begin
    perform pgnet.read_rate(rate);
    if pgnet.primary_key(known.on_table) is null then
        perform pgnet.raise_error('55000', format('%s has no primary key, by which its rows could be read in pages', known.on_table), null);
    elsif batch is null or batch not between 1 and 1000 then
        perform pgnet.raise_error('22023', 'batch must be between 1 and 1000', null);
    elsif known.backfill ->> 'state' = 'running' then
        perform pgnet.raise_error('55006', format('a backfill of webhook "%s" runs already', name), 'net.disable_webhook stops it, and net.enable_webhook lets it go on.');
    elsif known.disabled_since is not null then
        perform pgnet.raise_error('55000', format('webhook "%s" is disabled', name), format('select net.enable_webhook(%L)', name));
    end if;
    execute format('select %s from %s t order by %s limit 1', pgnet.key_texts(known.on_table, 't', '::text'), known.on_table, pgnet.key_columns(known.on_table, 't', 'desc')) into until;
    known.backfill := jsonb_strip_nulls(jsonb_build_object('state', 'running', 'condition', condition, 'batch', batch, 'rate', rate, 'until', until, 'started', now(), 'sent', 0));
    update pgnet.webhook w set backfill = known.backfill where w.owner = pgnet.caller_role() and w.name = backfill_webhook.name;
    perform pgnet.send_page(known);
end
$$;
comment on function net.backfill_webhook(text, text, integer, text) is
    'Sends the rows that the table of a webhook has now, as INSERT events marked by "read": true, in '
    'the background, in pages by primary key. net.webhooks shows how far it is. Raises 42704 where '
    'the current role has no such webhook, also for NULL, 55006 where a backfill runs, 55000 where '
    'the webhook is disabled or the table has no primary key, 22023 for batch and rate that cannot be.';

-- ======== extension/67_deliveries.sql ========

-- What becomes of webhooks' requests: counts, net.webhooks, net.webhook_deliveries; webhooks that
-- are disabled and enabled again; samples, and sending again.
--
-- Counts. The transaction that records a batch of outcomes inserts a row for each webhook among
-- them into pgnet.webhook_tally: so no worker waits for another one, and no count is lost. The
-- heartbeat sums these rows up in pgnet.webhook_state. A view shows both together.
--
-- Disabled. The requests of a disabled webhook are still queued. A worker ends them as cancelled,
-- unsent, and pgnet.failed keeps them for the setting ttl_failed. net.enable_webhook sends them
-- again, or leaves them.

create table pgnet.webhook_tally (
    id bigint generated always as identity primary key,
    owner regrole not null,
    name text not null,
    sent integer not null,
    failed integer not null,
    unsent integer not null,
    status_code integer,
    error_msg text,
    recorded timestamptz not null default pg_catalog.now(),
    buckets smallint[]
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);
alter table pgnet.webhook_tally alter error_msg set statistics 0;
comment on table pgnet.webhook_tally is
    'What a batch of outcomes says of a webhook, until the heartbeat has added it to '
    'pgnet.webhook_state.';
comment on column pgnet.webhook_tally.unsent is 'Requests that were not sent, since the webhook is disabled or the mode is record.';
comment on column pgnet.webhook_tally.buckets is 'The times of answers, as pgnet.bucket_middle reads them.';
create policy own_tallies on pgnet.webhook_tally for select
    using (owner operator(pg_catalog.=) (select pgnet.caller_role()));

create table pgnet.webhook_state (
    owner regrole not null,
    name text not null,
    sent bigint not null default 0,
    failed bigint not null default 0,
    unsent bigint not null default 0,
    last_status integer,
    last_error text,
    last_ended timestamptz,
    failing_since timestamptz,
    times integer[] not null default '{}',
    primary key (owner, name)
) with (fillfactor = 50, autovacuum_vacuum_threshold = 2000);
alter table pgnet.webhook_state alter last_error set statistics 0;
comment on table pgnet.webhook_state is
    'What has become of the requests of each webhook. net.webhooks shows it.';
comment on column pgnet.webhook_state.failing_since is
    'When the first request failed of those that failed since the last success; NULL: none did.';
comment on column pgnet.webhook_state.times is
    'How many answers took how long: a number for each bucket of pgnet.bucket_middle, of the last ten '
    'thousand or so.';
create policy own_states on pgnet.webhook_state for select
    using (owner operator(pg_catalog.=) (select pgnet.caller_role()));

create function pgnet.count_deliveries(ids bigint[])
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
begin
    insert into pgnet.webhook_tally (owner, name, sent, failed, unsent, status_code, error_msg, buckets)
    select r.requested_by, r.context ->> 'webhook',
        count(*) filter (where r.state = 'succeeded'), count(*) filter (where r.state in ('failed', 'unknown')),
        count(*) filter (where r.state not in ('succeeded', 'failed', 'unknown')),
        (array_agg(r.status_code order by r.id desc) filter (where r.state in ('succeeded', 'failed', 'unknown')))[1],
        left((array_agg(coalesce(r.error_msg, 'Status ' || r.status_code) order by r.id desc)
            filter (where r.state in ('failed', 'unknown')))[1], 500),
        array_agg(least(greatest(ceil(4 * log(2, (greatest(r.total_ms, 0.1) * 10)::numeric)), 1), 100)::smallint)
            filter (where r.status_code is not null)
    from unnest(ids) i (id)
    cross join lateral (
        select a.id, a.requested_by, a.context, a.state, a.status_code, a.error_msg, a.total_ms
        from net._http_response a
        where a.id = i.id
            -- A role may insert a request with any context.
            and exists (select from pgnet.webhook w where w.owner = a.requested_by and w.name = a.context ->> 'webhook' offset 0)
        offset 0
    ) r
    group by r.requested_by, r.context ->> 'webhook';
end
$$;
comment on function pgnet.count_deliveries(bigint[]) is
    'Counts the requests of webhooks among those that were recorded just now.';

create function pgnet.add_times(times integer[], buckets smallint[])
    returns integer[]
    language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select array_agg((coalesce(times[n.n], 0) + coalesce(b.number, 0))
        / case when (select sum(t.number) from unnest(times) t (number)) > 10000 then 2 else 1 end order by n.n)::integer[]
    from generate_series(1, 100) n (n)
    left join (select b.bucket, count(*) as number from unnest(buckets) b (bucket) group by b.bucket) b on b.bucket = n.n
$$;
comment on function pgnet.add_times(integer[], smallint[]) is
    'Adds times to a histogram, which forgets half of what it has when it has ten thousand.';

create function pgnet.median_time(times integer[])
    -- milliseconds; NULL: no answer was counted
    returns double precision
    language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select pgnet.bucket_middle(min(t.bucket)::integer)
    from (
        select u.bucket, sum(u.number) over (order by u.bucket) as so_far, sum(u.number) over () as number
        from unnest(times) with ordinality u (number, bucket)
    ) t
    where t.number > 0 and t.so_far * 2 >= t.number
$$;
comment on function pgnet.median_time(integer[]) is 'The median of a histogram of times, right to 10 %.';

create function pgnet.judge_webhooks()
    -- seconds until more is to be counted; NULL: nothing waits
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    disable_after interval := pgnet.setting_value('disable_webhook_after')::interval;
    done bigint;
begin
    if (select t.id from pgnet.webhook_tally t order by t.id limit 1) is null then
        return null;
    end if;
    lock table pgnet.webhook_tally, pgnet.webhook_state, pgnet.webhook in row exclusive mode nowait;
    with taken as (
        delete from pgnet.webhook_tally t
        where t.id = any (array(select o.id from pgnet.webhook_tally o order by o.id limit 5000 for update skip locked))
        returning t.*
    ), summed as (
        select t.owner, t.name, sum(t.sent) as sent, sum(t.failed) as failed, sum(t.unsent) as unsent,
            (array_agg(t.status_code order by t.id desc) filter (where t.sent + t.failed > 0))[1] as status_code,
            (array_agg(t.error_msg order by t.id desc) filter (where t.failed > 0))[1] as error_msg,
            max(t.recorded) filter (where t.sent + t.failed > 0) as recorded,
            max(t.id) filter (where t.sent > 0) as last_success,
            array_agg(t.id) filter (where t.failed > 0 and t.sent = 0) as bad, array_agg(t.recorded) filter (where t.failed > 0 and t.sent = 0) as bad_times,
            (select array_agg(b.bucket) from taken o cross join lateral unnest(o.buckets) b (bucket) where o.owner = t.owner and o.name = t.name) as buckets
        from taken t
        group by t.owner, t.name
    ), counted as (
        select s.*, (
            select min(b.recorded) from unnest(s.bad, s.bad_times) b (id, recorded) where b.id > coalesce(s.last_success, 0)
        ) as failing
        from summed s
    ), stored as (
        insert into pgnet.webhook_state as w (owner, name, sent, failed, unsent, last_status, last_error, last_ended, failing_since, times)
        select c.owner, c.name, c.sent, c.failed, c.unsent, c.status_code, c.error_msg, c.recorded, c.failing, pgnet.add_times('{}', c.buckets)
        from counted c
        order by c.owner, c.name
        on conflict on constraint webhook_state_pkey do update
        set sent = w.sent + excluded.sent, failed = w.failed + excluded.failed, unsent = w.unsent + excluded.unsent,
            last_status = case when excluded.last_ended is null then w.last_status else excluded.last_status end,
            last_error = coalesce(excluded.last_error, w.last_error), last_ended = coalesce(excluded.last_ended, w.last_ended),
            failing_since = case when excluded.sent > 0 then excluded.failing_since else coalesce(w.failing_since, excluded.failing_since) end,
            times = pgnet.add_times(w.times, (select array_agg(n.bucket::smallint) from unnest(excluded.times) with ordinality n (number, bucket)
                cross join generate_series(1, n.number)))
    )
    select count(*) into done from taken;
    if disable_after > interval '0' then
        perform pgnet.disable_failing_webhooks(disable_after);
    end if;
    return case when done = 5000 then 0.1 else 5 end;
end
$$;
comment on function pgnet.judge_webhooks() is
    'Adds what was recorded of webhooks to pgnet.webhook_state, and disables those that have failed '
    'for long.';

create function pgnet.disable_failing_webhooks(disable_after interval)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- A row that its role has locked is looked at again.
    update pgnet.webhook w
    set disabled_since = now(), disabled_reason = (
        select format('No request was accepted since %s. The last error: %s', to_char(s.failing_since, 'YYYY-MM-DD HH24:MI:SS TZ'), s.last_error)
        from pgnet.webhook_state s where s.owner = w.owner and s.name = w.name)
    where w.ctid = any (array(
        select o.ctid from pgnet.webhook o join pgnet.webhook_state s on s.owner = o.owner and s.name = o.name
        where greatest(s.failing_since, o.created, o.enabled_since) < clock_timestamp() - disable_after and s.failing_since is not null and o.disabled_since is null and o.dropped is null
        for update of o skip locked));
end
$$;
comment on function pgnet.disable_failing_webhooks(interval) is
    'Disables the webhooks whose requests have all failed for so long.';

-- ---- views

-- A role may write what it likes into the rows of its own. The owner's views must not fail by it.
create function pgnet.small_number(given jsonb, name text)
    -- NULL: it is no number of up to 18 digits
    returns bigint
    language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$ select case when given ->> name ~ '^[0-9]{1,18}$' then (given ->> name)::bigint end $$;
comment on function pgnet.small_number(jsonb, text) is 'A number in an object; NULL for anything else.';

create function pgnet.webhook_fault(owner regrole, name text, on_table regclass, definition jsonb)
    -- NULL: nothing is wrong
    returns text
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    found_triggers integer;
    enabled boolean;
begin
    if jsonb_typeof(definition -> 'events') is distinct from 'array' or jsonb_typeof(definition -> 'columns') <> 'array' then
        return 'Its row in pgnet.webhook was changed by hand.';
    elsif not exists (select from pg_class c where c.oid = on_table) then
        return 'The table was dropped.';
    elsif not exists (select from pg_roles r where r.oid = owner) then
        return 'Its owner was dropped.';
    end if;
    select count(*), bool_and(t.enabled) into found_triggers, enabled from pgnet.webhook_triggers(on_table, name) t;
    return case
        when found_triggers < jsonb_array_length(definition -> 'events') then
            'Triggers of it were dropped, perhaps with a column: call net.create_webhook again with replace => true.'
        when not enabled then 'Triggers of it are disabled: alter table ... enable trigger user.'
        when not has_schema_privilege(owner, to_regnamespace('net'), 'usage') or not has_schema_privilege(owner, to_regnamespace('pgnet'), 'usage') then
            'Its owner may not use the schemas net and pgnet: nothing is sent.'
        when definition ? 'endpoint' and not exists (
            select from pgnet.endpoint e where e.owner = webhook_fault.owner and e.name = definition ->> 'endpoint' and e.url is not null) then
            'Its endpoint is not set: net.set_endpoint.'
        when (select bool_or(not exists (
                select from pg_attribute a where a.attrelid = on_table and a.attname = c.name and not a.attisdropped))
            from jsonb_array_elements_text(definition -> 'columns') c (name)) then
            'A column that it names has another name now: call net.create_webhook again with replace => true.'
        end;
end
$$;
comment on function pgnet.webhook_fault(regrole, text, regclass, jsonb) is
    'Why a webhook sends nothing, or not all; NULL where nothing is wrong.';

create view net.webhooks with (security_invoker) as
    select w.name, w.on_table, w.owner,
        coalesce(w.definition operator(pg_catalog.->>) 'url', e.url) as url, w.definition operator(pg_catalog.->>) 'endpoint' as endpoint,
        w.definition operator(pg_catalog.->) 'events' as events, w.definition operator(pg_catalog.->>) 'per' as per,
        w.disabled_since is null as enabled,
        coalesce(s.sent, 0) operator(pg_catalog.+) coalesce(t.sent, 0) as sent,
        coalesce(s.failed, 0) operator(pg_catalog.+) coalesce(t.failed, 0) as failed,
        coalesce(s.unsent, 0) operator(pg_catalog.+) coalesce(t.unsent, 0) as unsent,
        (
            select pg_catalog.count(*) from (
                select from net.http_request_queue q
                where q.requested_by operator(pg_catalog.=) w.owner and q.options operator(pg_catalog.->>) 'webhook' operator(pg_catalog.=) w.name
                limit 10000
            ) q
        ) as waiting,
        coalesce(t.status_code, s.last_status) as last_status, coalesce(t.error_msg, s.last_error) as last_error,
        coalesce(t.recorded, s.last_ended) as last_ended,
        pgnet.median_time(pgnet.add_times(coalesce(s.times, '{}'), t.buckets)) as p50_ms,
        s.failing_since, w.disabled_since, w.disabled_reason,
        pgnet.webhook_fault(w.owner, w.name, w.on_table, w.definition) as fault,
        w.backfill operator(pg_catalog.->>) 'state' as backfill, pgnet.small_number(w.backfill, 'sent') as backfilled,
        w.created
    from pgnet.webhook w
    left join pgnet.endpoint e on e.owner operator(pg_catalog.=) w.owner and e.name operator(pg_catalog.=) (w.definition operator(pg_catalog.->>) 'endpoint')
    left join pgnet.webhook_state s on s.owner operator(pg_catalog.=) w.owner and s.name operator(pg_catalog.=) w.name
    left join lateral (
        select pg_catalog.sum(t.sent) as sent, pg_catalog.sum(t.failed) as failed, pg_catalog.sum(t.unsent) as unsent,
            (pg_catalog.array_agg(t.status_code order by t.id desc) filter (where t.sent operator(pg_catalog.+) t.failed operator(pg_catalog.>) 0))[1] as status_code,
            (pg_catalog.array_agg(t.error_msg order by t.id desc) filter (where t.failed operator(pg_catalog.>) 0))[1] as error_msg,
            pg_catalog.max(t.recorded) as recorded,
            (select pg_catalog.array_agg(b.bucket) from pgnet.webhook_tally o cross join lateral pg_catalog.unnest(o.buckets) b (bucket)
                where o.owner operator(pg_catalog.=) w.owner and o.name operator(pg_catalog.=) w.name) as buckets
        from pgnet.webhook_tally t
        where t.owner operator(pg_catalog.=) w.owner and t.name operator(pg_catalog.=) w.name
    ) t on true
    where w.dropped is null;
comment on view net.webhooks is
    'Each webhook: where it sends to, whether it is enabled, and how many of its requests were sent '
    '(and accepted), have failed, were not sent since it was disabled, and wait (10,000 stands for '
    'more); the last status and error, the median of times. fault says what is wrong with it. A '
    'role sees its own.';

create view net.webhook_deliveries with (security_invoker) as
    select c.id as request_id, c.context operator(pg_catalog.->>) 'webhook' as webhook, c.context operator(pg_catalog.->>) 'event' as event,
        c.context operator(pg_catalog.->) 'key' as key, pgnet.small_number(c.context, 'rows') as rows,
        r.state, r.attempts, r.status_code, r.error_msg, r.next_attempt, r.requested, r.ended, r.retry_of, c.requested_by as owner
    from (
        select q.id, q.context, q.requested_by from net.http_request_queue q where q.context operator(pg_catalog.?&) '{webhook,event}'
        union all
        select a.id, a.context, a.requested_by from net._http_response a where a.context operator(pg_catalog.?&) '{webhook,event}'
    ) c
    cross join lateral (
        select r.state, r.attempts, r.status_code, r.error_msg, r.next_attempt, r.requested, r.ended, r.retry_of
        from net.requests r where r.id operator(pg_catalog.=) c.id offset 0
    ) r;
comment on view net.webhook_deliveries is
    'A row for each request of a webhook that waits or whose response is kept: the key of its row, or '
    'how many rows it has, the event, state, attempts. A role sees its own.';

-- ---- steering

create function pgnet.require_webhook(name text)
    -- a webhook of the current role
    returns pgnet.webhook
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    known pgnet.webhook;
begin
    select w.* into known from pgnet.webhook w where w.owner = pgnet.caller_role() and w.name = require_webhook.name and w.dropped is null;
    if known.name is null then
        raise exception using
            errcode = 'undefined_object',
            message = format('role "%s" has no webhook %s', current_user, coalesce('"' || left(name, 60) || '"', 'NULL')),
            hint = 'net.webhooks shows them. As the role that has made it, call the function again.';
    end if;
    return known;
end
$$;
comment on function pgnet.require_webhook(text) is
    'A webhook of the current role. Raises 42704 where there is none, also for NULL.';

create function net.disable_webhook(
    -- the webhook
    name text,
    -- why, for net.webhooks; NULL: no reason is given
    reason text default null
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
begin
    perform pgnet.require_webhook(name);
    update pgnet.webhook w set disabled_since = now(), disabled_reason = left(coalesce(reason, 'by net.disable_webhook.'), 1000)
    where w.owner = pgnet.caller_role() and w.name = disable_webhook.name and w.disabled_since is null;
end
$$;
comment on function net.disable_webhook(text, text) is
    'Stops a webhook of the current role: its requests end as cancelled, unsent, and are kept for '
    'net.enable_webhook. No lock on the table is taken. Raises 42704 where there is no such webhook, '
    'also for NULL.';

create function net.enable_webhook(
    -- the webhook
    name text,
    -- whether to send what was not sent meanwhile, as far as it is kept (the setting ttl_failed);
    -- NULL means false
    with_missed boolean default true
)
    -- how many requests are sent again
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    known pgnet.webhook := pgnet.require_webhook(name);
begin
    update pgnet.webhook w set disabled_since = null, disabled_reason = null, enabled_since = now()
    where w.owner = pgnet.caller_role() and w.name = enable_webhook.name;
    if known.backfill ->> 'state' = 'stopped' then
        known.backfill := known.backfill || '{"state": "running"}';
        perform pgnet.send_page(known);
    end if;
    if known.disabled_since is null or with_missed is not true then
        return 0;
    end if;
    return pgnet.replay_failures(name, null, null, '{cancelled}', known.disabled_since);
end
$$;
comment on function net.enable_webhook(text, boolean) is
    'Lets a webhook of the current role send again, with what was not sent since it was disabled, or '
    'from now on. Raises 42704 where there is no such webhook, also for NULL.';

create function net.replay_webhook(
    -- the webhook
    name text,
    -- requests that were made from this time on; NULL: all that are kept
    since timestamptz default null,
    -- and before this time; NULL: until now
    until timestamptz default null,
    -- false: also those that were cancelled, unsent
    only_failed boolean default true
)
    -- how many requests are sent again
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
begin
    perform pgnet.require_webhook(name);
    return pgnet.replay_failures(name, since, until, case when only_failed is false then '{failed,unknown,cancelled}' else '{failed,unknown}' end::text[], null);
end
$$;
comment on function net.replay_webhook(text, timestamptz, timestamptz, boolean) is
    'Sends again what has failed of a webhook of the current role and is still kept (the setting '
    'ttl_failed), in the order in which it was made. Raises 42704 where there is no such webhook, '
    'also for NULL.';

create function pgnet.replay_failures(
    name text,
    -- of requests that were made in this time; NULL: any time
    since timestamptz, until timestamptz, states text[],
    -- and that have ended from this time on; NULL: any time
    ended_since timestamptz
)
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    ids bigint[] := array(
        select f.id from pgnet.failed f
        where f.requested_by = pgnet.caller_role() and f.context ->> 'webhook' = replay_failures.name and f.state::text = any (states)
            and (f.created < since) is not true and (f.created >= until) is not true
            and (f.failed < ended_since) is not true
            and not exists (select from pgnet.mark m where m.requested_by = f.requested_by and m.request_id = f.id and m.action <> 'cancel')
        order by f.id);
    number bigint := (
        select count(*) from pgnet.send_again(
            pgnet.mark_requests(ids, array_fill(pgnet.caller_role(), array[cardinality(ids)]), 'retry'), false));
begin
    perform net.wake();
    return number;
end
$$;
comment on function pgnet.replay_failures(text, timestamptz, timestamptz, text[], timestamptz) is
    'Sends failures of a webhook again.';

create function pgnet.queue_sample(name text)
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    known pgnet.webhook := pgnet.require_webhook(name);
    definition jsonb := known.definition;
    payload text := definition ->> 'payload';
    relation text;
    namespace text;
    message text;
    content text;
    target text := definition ->> 'url';
    request_id bigint;
begin
    select format('%L', to_json(c.relname::text)), format('%L', to_json(n.nspname::text)) into relation, namespace
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = known.on_table;
    if relation is null then
        perform pgnet.raise_error('42P01', format('the table of webhook "%s" was dropped', name), format('select net.drop_webhook(%L)', name));
    end if;
    message := case when definition ->> 'per' = 'row'
        then pgnet.webhook_message(payload, name, case payload when 'hasura' then '''MANUAL''' else '''INSERT''' end, relation, namespace,
            $e$coalesce(c.nj::text, 'null')$e$, $e$'null'$e$, $e$'null'$e$, $e$',"test":true'$e$)
        else pgnet.webhook_batch(definition, name, '''INSERT''', relation, namespace, $e$',"test":true'$e$) end;
    if pgnet.webhook_is_custom(definition) then
        message := format('(%s(%s::jsonb))::text', payload, '(' || message || ')');
    end if;
    perform pgnet.refuse_foreign_cast(known.on_table);
    execute format('select %s from (select 1 as i, (select row_to_json(t) from %s t limit 1) as nj, null::json as oj) c', message, known.on_table) into content;
    if definition ? 'endpoint' then
        target := (select e.url from pgnet.endpoint e where e.owner = known.owner and e.name = definition ->> 'endpoint');
    end if;
    -- Checked anew: secrets may have been revoked.
    target := pgnet.check_webhook_target(target, definition -> 'headers', definition);
    insert into net._new_request (method, url, headers, body, timeout_milliseconds, context, options)
    values ('POST', target, definition -> 'headers', convert_to(content, 'UTF8'), coalesce((definition ->> 'timeout_milliseconds')::integer, 30000),
        jsonb_build_object('webhook', name, 'event', 'TEST'),
        -- The option webhook is left out: a sample is sent although the webhook is disabled, and
        -- counts nowhere.
        jsonb_strip_nulls(jsonb_build_object('sign', definition -> 'sign', 'retry', 'none')))
    returning id into request_id;
    return request_id;
end
$$;
comment on function pgnet.queue_sample(text) is
    'Queues a sample of a webhook of the current role: the first row of its table, marked as a test.';

create procedure net.test_webhook(
    -- the webhook
    name text,
    -- the answer: these show it
    inout id bigint default null,
    inout status_code integer default null,
    inout content text default null,
    inout error_msg text default null
)
    language plpgsql
as $$
declare
    outcome record;
    nap double precision := 0.001;
begin
    id := pgnet.queue_sample(name);
    commit;
    perform pgnet.warn_without_worker(id);
    loop
        select * into outcome from pgnet.outcome_so_far(id);
        exit when outcome.state is null or outcome.state operator(pg_catalog.>=) 'succeeded'::net.request_state;
        commit;
        perform pg_catalog.pg_sleep(nap);
        commit;
        nap := least(nap operator(pg_catalog.*) 1.5::double precision, 0.05::double precision);
    end loop;
    status_code := outcome.status_code;
    content := outcome.content;
    error_msg := coalesce(outcome.error_msg, case when outcome.state is null then 'The request was deleted.' end);
end
$$;
comment on procedure net.test_webhook(text, bigint, integer, text, text) is
    'Sends a sample of a webhook of the current role, marked by "test": true, and waits for the answer: '
    'one attempt, also where the webhook is disabled. Raises 42704 where there is no such webhook, '
    'also for NULL, and 25001 in a transaction block.';

-- ======== extension/68_stubs.sql ========

-- Stubs: answers in place of the network, for the tests of an application. A worker asks for them
-- when it begins a request; everything else about the request is as usual.
--
-- The owner makes stubs, and no other role: a stub answers the requests of every role.

create table pgnet.stub (
    id bigint generated always as identity primary key,
    url_pattern text not null,
    status_code integer,
    headers jsonb not null,
    body text,
    delay interval not null,
    times_left integer,
    created timestamptz not null default pg_catalog.now()
);
comment on table pgnet.stub is
    'The answers that net.stub has made; net.stubs shows them. A dump does not hold them.';
comment on column pgnet.stub.status_code is 'NULL: there is no answer.';
comment on column pgnet.stub.headers is 'An array of [name, value].';
comment on column pgnet.stub.times_left is
    'How often it answers still; NULL: any number of times.';

-- What requests asked for which a stub has answered: a successful request leaves no other trace of
-- its headers and its body.
create table pgnet.stubbed (
    request_id bigint not null,
    attempt integer not null,
    requested_by regrole not null,
    method text not null,
    url text not null,
    headers jsonb,
    body bytea,
    context jsonb,
    options jsonb,
    requested timestamptz not null,
    answered timestamptz not null default pg_catalog.clock_timestamp(),
    url_pattern text not null,
    status_code integer,
    primary key (request_id, attempt)
);
alter table pgnet.stubbed
    alter url set statistics 0,
    alter headers set statistics 0,
    alter body set statistics 0,
    alter context set statistics 0,
    alter options set statistics 0;
comment on table pgnet.stubbed is
    'Attempts that a stub has answered, with what was asked; net.recorded shows them. Kept for the '
    'setting ttl. A role sees its own.';
comment on column pgnet.stubbed.url_pattern is 'The stub''s.';
comment on column pgnet.stubbed.status_code is 'The answer''s; NULL: there was none.';
create index stubbed_answered on pgnet.stubbed (answered);
create policy own_stubbed on pgnet.stubbed for select
    using (requested_by operator(pg_catalog.=) (select pgnet.caller_role()));

create function pgnet.stub_pattern(
    -- as net.stub takes it
    url_pattern text
)
    returns text
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    part text[] := regexp_match(trim(url_pattern), '^(?:([A-Za-z-]+) +)?(?:(https?)://([^/?# ]+)([^# ]*)|([*][^# ]*))$', 'i');
begin
    if part is null then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('invalid URL pattern %s', coalesce('"' || url_pattern || '"', 'NULL')),
            hint = 'Give a URL without a fragment, in which * stands for any characters, such as https://api.example.com/*; '
                'a method before it, as in "POST https://api.example.com/orders", and the stub is for this method only.';
    end if;
    return concat(upper(part[1] collate "C") || ' ', coalesce(part[5],
        lower(part[2] || '://' || part[3] collate "C")
            -- Requests for http://host go to http://host/.
            || case when part[4] ~ '^/' or part[3] ~ '[*]$' then part[4] else '/' || part[4] end));
end
$$;
comment on function pgnet.stub_pattern(text) is
    'A pattern of URLs in the form in which it is stored. Raises 22023 for what is no pattern.';

create function pgnet.stub_covers(
    -- as it is stored
    url_pattern text,
    method text, url text
)
    returns boolean
    language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select (p.part[1] is null or p.part[1] = method)
        and split_part(url, '#', 1) like replace(replace(replace(replace(p.part[2], '!', '!!'), '%', '!%'), '_', '!_'), '*', '%') escape '!'
    from regexp_match(url_pattern, '^(?:([A-Z-]+) )?(.*)$') p (part)
$$;
comment on function pgnet.stub_covers(text, text, text) is
    'Whether a stub with this pattern is for a request with this method and URL.';

create function pgnet.stub_headers(
    -- as net.stub takes them
    headers jsonb, body text
)
    returns jsonb
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    fields jsonb;
begin
    if jsonb_typeof(headers) <> 'object' or exists (
        select from jsonb_each(headers) h
        where h.key !~ '^[!#$%&''*+.^_`|~0-9A-Za-z-]+$'
            or jsonb_path_exists(h.value, 'strict $[*] ? (@.type() != "string")', silent => true)
            or jsonb_typeof(h.value) not in ('string', 'array'))
    then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = 'the headers of a stub are an object of names and texts',
            hint = 'Such as {"Content-Type": "text/plain", "Set-Cookie": ["a=1", "b=2"]}: an array repeats a name.';
    end if;
    select jsonb_agg(jsonb_build_array(f.name, f.value)) into fields
    from (
        select h.key as name, v.value
        from jsonb_each(headers) h
        cross join lateral jsonb_path_query(h.value, '$[*]') v (value)
    ) f;
    if body is not null and not exists (select from jsonb_object_keys(headers) k where lower(k collate "C") = 'content-type') then
        fields := coalesce(fields, '[]') || jsonb_build_array(jsonb_build_array('Content-Type',
            case when pgnet.json_or_null(body) is null then 'text/plain; charset=utf-8' else 'application/json' end));
    end if;
    return coalesce(fields, '[]');
end
$$;
comment on function pgnet.stub_headers(jsonb, text) is
    'The headers of a stub in their order, with a Content-Type where there is a body. Raises 22023 '
    'for what cannot be headers.';

create function net.stub(
    -- a URL in which * stands for any characters, after a method perhaps: POST https://x.example/*
    url_pattern text,
    -- NULL: there is no answer, as from a server that cannot be connected to
    status integer default 200,
    -- NULL: empty
    body text default null,
    -- names and values, an array repeats a name; NULL means none
    headers jsonb default '{}',
    -- how long the answer takes; NULL: no time
    delay interval default '0',
    -- how often it answers; NULL: any number of times
    times integer default null
)
    -- the stub's number
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    fault text := case
        when status < 200 or status > 599 then 'the status of a stub is between 200 and 599'
        when times < 1 then 'times must be 1 or more'
        when delay < '0' or delay > '1 day' then 'the delay of a stub is between 0 and 1 day' end;
    stub_id bigint;
begin
    perform pgnet.announce_configuration();
    if fault is not null then
        raise exception using errcode = 'invalid_parameter_value', message = fault;
    end if;
    insert into pgnet.stub (url_pattern, status_code, headers, body, delay, times_left)
    values (pgnet.stub_pattern(url_pattern), status, pgnet.stub_headers(coalesce(headers, '{}'), body), body, coalesce(delay, '0'), times)
    returning id into stub_id;
    return stub_id;
end
$$;
comment on function net.stub(text, integer, text, jsonb, interval, integer) is
    'Answers requests to these URLs from the commit on, in place of the network, in this database '
    'and for every role; outcomes and retries are as usual. Of several stubs for a URL the one that '
    'was made first answers, as often as times says, then the next. Gives its number. NULL as '
    'status: no answer comes. Raises 22023 for what cannot be a pattern or an answer. Owner only.';

create function net.unstub(
    -- as it was given to net.stub; NULL: all stubs
    url_pattern text default null
)
    -- how many stubs were removed
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    pattern text := case when url_pattern is not null then pgnet.stub_pattern(url_pattern) end;
    removed bigint;
begin
    perform pgnet.announce_configuration();
    with gone as (
        delete from pgnet.stub s where pattern is null or s.url_pattern = pattern returning s.id
    )
    select count(*) into removed from gone;
    return removed;
end
$$;
comment on function net.unstub(text) is
    'Removes the stubs for a pattern, or all of them (NULL): requests that are begun after the '
    'commit go to the network again. Gives how many. Raises 22023 for what is no pattern. Owner '
    'only.';

create view net.stubs with (security_invoker) as
    select s.id, s.url_pattern, s.status_code, s.headers, s.body, s.delay, s.times_left, s.created
    from pgnet.stub s;
comment on view net.stubs is
    'The stubs that answer in place of the network, and how often each does so still (NULL: any '
    'number of times). Owner only.';

-- A worker asks for claims that it is about to begin. What a stub with `times` has left is counted
-- by an update: of two workers that ask at once, each gets what is left then.
create function pgnet.take_stubs(
    -- the requests, and the tokens of their claims
    ids bigint[], tokens uuid[]
)
    -- a row for each request that a stub answers: fields is an array of [name, value], delay in
    -- seconds
    returns table (id bigint, status_code integer, fields text, body bytea, delay double precision)
    language plpgsql volatile parallel unsafe security definer cost 1000 rows 100
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
    set lock_timeout = '500ms'
as $$
declare
    request record;
    stub record;
begin
    perform pgnet.lock_tables();
    lock table pgnet.stub, pgnet.stubbed in row exclusive mode nowait;
    for request in
        select q.*, c.attempt
        from unnest(ids, tokens) with ordinality a (id, token, place)
        cross join lateral (
            select c.attempt from pgnet.claim c where c.id = a.id and c.token = a.token offset 0
        ) c
        cross join lateral (
            select q.* from net.http_request_queue q where q.id = a.id offset 0
        ) q
        order by a.place
    loop
        loop
            select s.* into stub from pgnet.stub s
            where s.times_left is distinct from 0 and pgnet.stub_covers(s.url_pattern, request.method::text, request.url)
            order by s.id limit 1;
            exit when not found or stub.times_left is null;
            update pgnet.stub s set times_left = s.times_left - 1 where s.id = stub.id and s.times_left > 0;
            exit when found;
        end loop;
        continue when stub.id is null;
        insert into pgnet.stubbed (
            request_id, attempt, requested_by, method, url, headers, body, context, options, requested, url_pattern, status_code)
        values (request.id, request.attempt, request.requested_by, request.method, request.url, request.headers, request.body,
            request.context, request.options, request.created, stub.url_pattern, stub.status_code)
        on conflict on constraint stubbed_pkey do nothing;
        return query select request.id, stub.status_code::integer, stub.headers::text, convert_to(stub.body, 'UTF8'),
            extract(epoch from stub.delay)::double precision;
    end loop;
end
$$;
comment on function pgnet.take_stubs(bigint[], uuid[]) is
    'The answers that stubs give to claimed requests, each counted as used and noted in '
    'pgnet.stubbed; no row for a request that goes to the network.';

create function pgnet.forget_stubbed()
    -- seconds until more is due; NULL where nothing is kept
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
declare
    before timestamptz;
begin
    if (select s.answered from pgnet.stubbed s order by s.answered limit 1) is null then
        return null;
    end if;
    before := clock_timestamp() - pgnet.setting_value('ttl')::interval;
    lock table pgnet.stubbed in row exclusive mode nowait;
    delete from pgnet.stubbed s
    where s.ctid = any (array(
        select o.ctid from pgnet.stubbed o where o.answered < before order by o.answered limit 1000 for update skip locked));
    return case when found then 1 else 60 end;
end
$$;
comment on function pgnet.forget_stubbed() is
    'Deletes what stubs have answered longer than the setting ttl ago, 1,000 rows at a time.';

-- ---- what was asked for and not sent

create function pgnet.text_or_null(body bytea)
    returns text
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    return convert_from(body, 'UTF8');
exception when character_not_in_repertoire or untranslatable_character then
    return null;
end
$$;
comment on function pgnet.text_or_null(bytea) is
    'A body as text; NULL where it is no UTF-8, or has a character that the database has not.';

create view net.recorded with (security_invoker) as
    select r.id, r.attempt, r.method, r.url, r.headers, r.body, pgnet.text_or_null(r.body) as body_text,
        pgnet.json_or_null(null, r.body) as body_json, r.context, r.options, r.requested_by, r.requested, r.recorded, r.stub, r.status_code
    from (
        select s.request_id as id, s.attempt, s.method, s.url, s.headers, s.body, s.context, s.options, s.requested_by, s.requested,
            s.answered as recorded, s.url_pattern as stub, s.status_code
        from pgnet.stubbed s
        union all
        select f.id, f.attempts, f.method::pg_catalog.text, f.url, f.headers, f.body, f.context, f.options, f.requested_by, f.created,
            f.failed, null, null
        from pgnet.failed f
        where f.state operator(pg_catalog.=) 'cancelled'::net.request_state
            and f.error_msg operator(pg_catalog.=) 'Not sent: the mode is record.'
    ) r
    where not exists (
        select from pgnet.mark m
        where m.requested_by operator(pg_catalog.=) r.requested_by and m.request_id operator(pg_catalog.=) r.id
            and m.action operator(pg_catalog.=) 'forget' offset 0);
comment on view net.recorded is
    'What was asked for and not sent: attempts that a stub has answered (stub is its pattern, '
    'status_code what it said), and requests of the mode record (stub is NULL); with headers and '
    'body, as bytes, as text and as JSON. A role sees its own.';

-- ======== extension/69_trigger.sql ========

-- The trigger function net.webhook(), with the arguments of Supabase's Database Webhooks. Its
-- requests are those of the role that changes the row: a trigger function that every role may use
-- has to run with that role's rights. net.create_webhook makes a function for each webhook instead,
-- whose requests are the webhook's owner's.

-- contrib/supabase_functions.sql makes a function that calls this one, in databases that may be
-- upgraded later: its name and its arguments stay.
create function pgnet.queue_event(
    -- the arguments of the trigger, as text: NULL and the word null mean that they were left out
    url text, method text, headers text, params text, timeout_milliseconds text,
    -- what has happened: the body, where the method has one. Not jsonb, which refuses the escape of
    -- a NUL that a column of type json may have
    payload json,
    -- given back with the outcome
    context jsonb
)
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    token text := upper(coalesce(nullif(method, 'null'), 'POST') collate "C");
    own_headers jsonb := nullif(headers, 'null')::jsonb;
    query jsonb := nullif(params, 'null')::jsonb;
    total integer := nullif(timeout_milliseconds, 'null')::integer;
    content bytea;
    target text;
    request_id bigint;
begin
    if coalesce(url, 'null') = 'null' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = 'the trigger names no URL',
            hint = 'Its function takes url, method, headers, params and timeout: '
                'execute function net.webhook(''https://example.com/hook'', ''POST'', ''{}'', ''{}'', ''5000'')';
    end if;
    if token <> all (array['GET', 'HEAD']) then
        -- Supabase's dashboard writes it so. Names of headers have no case.
        if own_headers is null or own_headers = '{"Content-type": "application/json"}' then
            own_headers := '{"Content-Type": "application/json"}';
        elsif own_headers ->> 'Content-Type' is null then
            own_headers := pgnet.with_content_type(own_headers, 'application/json');
        end if;
        content := convert_to(payload::text, 'UTF8');
    end if;
    target := pgnet.check_request(token, url, query, own_headers, total, '{}');
    if target is null then
        -- What names a secret is checked when it is sent, and so is what cannot be sent: it ends as
        -- a failed request, and not as an error of the statement that changes the row.
        select coalesce(i.complete_url, url) into target from pgnet.inspect_request(token, url, query, own_headers, total, '{}') i;
    end if;
    insert into net._new_request (method, url, headers, body, timeout_milliseconds, context)
    values (token, target, own_headers, content, total, queue_event.context)
    returning id into request_id;
    return request_id;
end
$$;
comment on function pgnet.queue_event(text, text, text, text, text, json, jsonb) is
    'Queues the request of a trigger. Raises 22023 where no URL is given, 22P02 where headers or '
    'params are not JSON or the timeout is not a number; all else that cannot be sent ends as a '
    'failed request.';

create function net.webhook()
    returns trigger
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgnet.queue_event(tg_argv[0], tg_argv[1], tg_argv[2], tg_argv[3], tg_argv[4],
        json_build_object('type', tg_op, 'table', tg_table_name, 'schema', tg_table_schema,
            'record', row_to_json(new), 'old_record', row_to_json(old)),
        jsonb_build_object('trigger', tg_name, 'table', format('%I.%I', tg_table_schema, tg_table_name), 'event', tg_op));
    -- What a BEFORE trigger returns is what is done with the row.
    if tg_op = 'DELETE' then
        return old;
    end if;
    return new;
end
$$;
comment on function net.webhook() is
    'A trigger function that queues a request for each row, or for each statement, with the arguments of Supabase''s '
    'Database Webhooks: url, method (POST), headers ({"Content-Type": "application/json"}), params '
    '({}), timeout in ms (the setting timeout_milliseconds). Left out or ''null'' they have these '
    'values. The request is the role''s that changes the row. Raises 22023 where no URL is given.';

-- ======== extension/70_worker.sql ========

-- The worker in the database, and how to start, see and restart workers.

create procedure pgnet.serve(
    max_runtime interval,
    until_idle boolean,
    -- true where nothing can be committed: inside a transaction block
    inout in_transaction_block boolean
)
    language plpython3u
as $$
from pgnet import sql_v1
plpy.execute("select pgnet.require_worker()")
return sql_v1.serve(plpy, max_runtime, until_idle)
$$;
comment on procedure pgnet.serve(interval, boolean, boolean) is
    'The worker behind net.work and net.drain.';

create procedure net.work(
    -- claim no more after this time; NULL stays
    max_runtime interval default null
)
    language plpgsql
as $$
declare
    in_transaction_block boolean;
begin
    -- Asked first: an everyday "grant execute ... in schema net" leads here, and no further.
    perform pgnet.require_worker();
    perform pgnet.refuse_copy();
    call pgnet.serve(max_runtime, false, in_transaction_block);
    if in_transaction_block then
        perform pgnet.refuse_transaction_block('net.work');
    end if;
end
$$;
comment on procedure net.work(interval) is
    'Serves this database from this session: sends requests as they are committed, until '
    'max_runtime has passed (NULL: for ever), a cancel, or the end of the server; what is then in '
    'flight has the setting max_grace to end. Holds no snapshot while it waits. Raises 25001 '
    'inside a transaction block, 55000 in a copy of another database. net.grant_worker lets a role '
    'call it.';

create procedure net.drain(
    -- claim no more after this time, even where more is due; NULL means no limit
    max_runtime interval default null
)
    language plpgsql
as $$
declare
    in_transaction_block boolean;
begin
    -- Asked first: an everyday "grant execute ... in schema net" leads here, and no further.
    perform pgnet.require_worker();
    perform pgnet.refuse_copy();
    call pgnet.serve(max_runtime, true, in_transaction_block);
    if in_transaction_block then
        perform pgnet.refuse_transaction_block('net.drain');
    end if;
end
$$;
comment on procedure net.drain(interval) is
    'Sends every request that is due or falls due within a second, records the outcomes, and '
    'returns: it waits for no later time and for no paused host. After max_runtime it claims no more, and what is in flight has the setting max_grace to end. Raises 25001 inside a '
    'transaction block, 55000 in a copy of another database. net.grant_worker lets a role call it.';

create function pgnet.refuse_transaction_block(procedure text)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using
        errcode = 'active_sql_transaction',
        message = format('%s cannot run inside a transaction block', procedure),
        detail = 'A worker commits after each of its steps.',
        hint = format('Run it by itself: call %s();', procedure);
end
$$;
comment on function pgnet.refuse_transaction_block(text) is 'Raises 25001 with what to do.';

-- A worker's role needs these routines, and no table.
create function pgnet.worker_routines()
    returns setof regprocedure
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select p.oid::regprocedure
    from pg_proc p
    where p.pronamespace = to_regnamespace('net') and p.proname in ('work', 'drain', 'run_callbacks')
        or p.pronamespace = to_regnamespace('pgnet') and p.proname in (
            'register_worker', 'claim_requests', 'record_outcomes', 'release_requests', 'report_attempts', 'claimed_secrets', 'take_stubs',
            'deregister_worker',
            'heartbeat', 'report_work', 'look_for_callbacks', 'take_callback', 'perform_callback', 'serve_callbacks', 'wait_for_signals', 'wake_next_worker', 'wake_up_fault', 'refuse_copy', 'serve',
            -- what these call with the rights of the worker's role
            'require_worker', 'refuse_transaction_block', 'setting_value')
$$;
comment on function pgnet.worker_routines() is 'The routines that net.grant_worker grants.';

-- Settings of a database or a role must not reach into a worker's statements. With
-- session_replication_role = replica they would not fire the triggers of the tables' owner, and
-- claim nothing; with few digits times are wrong; a batch may need a temporary file.
do $$
declare
    routine pg_catalog.regprocedure;
begin
    for routine in
        select p.oid from pgnet.worker_routines() r join pg_catalog.pg_proc p on p.oid operator(pg_catalog.=) r.r
        where p.prosecdef and p.prokind operator(pg_catalog.=) 'f'
            -- They would hold for callbacks, too.
            and p.proname operator(pg_catalog.<>) 'perform_callback'
    loop
        execute pg_catalog.format(
            'alter function %s set session_replication_role = origin set temp_file_limit = -1 set extra_float_digits = 1', routine);
    end loop;
end
$$;

create function net.grant_worker(
    -- the role, by name; its members may run workers, too
    role text
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    grantee regrole := pgnet.role_named(role);
    routine regprocedure;
begin
    perform pgnet.announce_configuration();
    delete from pgnet.worker_role w where not exists (select from pg_roles r where r.oid = w.role);
    insert into pgnet.worker_role values (grantee) on conflict do nothing;
    execute format('grant usage on schema net, pgnet to %s', grantee);
    for routine in select r from pgnet.worker_routines() r loop
        execute format('grant execute on routine %s to %s', routine, grantee);
    end loop;
    raise notice using message = format('role "%s" may run workers in this database', role);
end
$$;
comment on function net.grant_worker(text) is
    'Lets a role run workers on this database: it may claim requests and record outcomes, and '
    'reads no table. EXECUTE alone lets nobody do so. Raises 42704 for a role that does not exist, '
    '22023 for NULL. Owner only.';

create function net.revoke_worker(
    -- the role, by name
    role text
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    grantee regrole := pgnet.role_named(role);
    routine regprocedure;
begin
    -- A worker that runs looks at once, and ends.
    perform pgnet.announce_configuration();
    delete from pgnet.worker_role w where w.role = grantee;
    for routine in select r from pgnet.worker_routines() r loop
        execute format('revoke execute on routine %s from %s', routine, grantee);
    end loop;
    raise notice using message = format('role "%s" may not run workers in this database any more', role);
end
$$;
comment on function net.revoke_worker(text) is
    'Takes back what net.grant_worker gave; a worker of the role that runs ends at once. Raises '
    '42704 for a role that does not exist, 22023 for NULL. Owner only.';

create view net.workers as
    select w.id, w.kind, case when pgnet.caller_is_owner() then w.host end as host, w.pid, w.version,
        case when w.ended is not null then 'stopped'
            when not pgnet.session_is_alive(w.pid, w.backend_start) then 'lost'
            when w.stalled_since is not null then 'stalled'
            else 'running' end as state,
        (select pg_catalog.count(*) from pgnet.claim c where c.worker operator(pg_catalog.=) w.id) as in_flight,
        w.registered as started, coalesce(w.ended, w.gone_since) as ended, w.cut_off
    from pgnet.worker w
    offset 0; -- or else a role with that right could write through the view, as its owner
comment on view net.workers is
    'The workers of this database, those of the last hour that have ended too: running, stalled '
    '(its session is there, but it does not look), lost or stopped; the requests it has in flight, '
    'and how many were cut off when it stopped. The host is shown to the extension''s owner.';

-- Any role may have the workers read their settings again; that is all a caller of it can do.
create function pgnet.reload_workers()
    returns void
    language sql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
as $$ select pgnet.signal_workers('reload') $$;
comment on function pgnet.reload_workers() is
    'Has the workers read their settings again at the commit.';

create function net.worker_restart()
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if pgnet.caller_is_owner() then
        update pgnet.configuration set generation = generation + 1;
        perform pgnet.announce_configuration();
    else
        perform pgnet.reload_workers();
    end if;
    return true;
end
$$;
comment on function net.worker_restart() is
    'At the commit, workers finish what is in flight and start anew: settings, connections, names. '
    'By a role without operator''s rights they only read their settings again. True.';

create function net.check_worker_is_up()
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if not pgnet.worker_is_up() then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = 'the pgnet worker is not up',
            detail = format('No worker serves the database "%s": requests stay in the queue until one does.', current_database()),
            hint = pgnet.how_to_start_a_worker();
    end if;
end
$$;
comment on function net.check_worker_is_up() is
    'Raises 55000 where no worker serves this database.';

create function net.wait_until_running()
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    while not pgnet.worker_is_up() loop
        perform pg_sleep(0.05);
        perform pg_stat_clear_snapshot(); -- or else the sessions are those of the first look
    end loop;
end
$$;
comment on function net.wait_until_running() is
    'Waits until a worker serves this database, however long.';

-- The launcher of pg_cron before 1.5 waits for the end of one background worker before it looks at
-- the next job. A worker does not end by itself.
create function pgnet.cron_fault()
    -- what is wrong with pg_cron; NULL: nothing is known
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select format('pg_cron %s waits for one background worker before it starts another job, and a worker stays', e.extversion)
    from pg_extension e
    where e.extname = 'pg_cron' and e.extversion ~ '^1[.][0-4]([^0-9]|$)'
        and current_setting('cron.use_background_workers', true) = 'on'
$$;
comment on function pgnet.cron_fault() is
    'Why pg_cron cannot keep workers here, where that is known; else NULL.';

create function net.schedule_worker()
    -- the number of the pg_cron job
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    cron_database text := current_setting('cron.database_name', true);
    job bigint;
begin
    if to_regprocedure('cron.schedule(text, text, text)') is not null then
        execute 'select cron.schedule($1, $2, $3)' into job using 'pgnet callbacks', '* * * * *', 'call net.run_callbacks()';
        execute 'select cron.schedule($1, $2, $3)' into job using 'pgnet worker', '* * * * *', 'call net.work()';
        raise notice using message = format('pg_cron keeps a worker running in this database by job %s, and callbacks by another', job),
            hint = 'They start at the next full minute.';
        if pgnet.cron_fault() is not null then
            raise warning using message = pgnet.cron_fault(), hint = 'Set cron.use_background_workers = off, or install pg_cron 1.5.';
        end if;
        return job;
    end if;
    if cron_database is null then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = 'pg_cron is not loaded on this server',
            hint = 'Set shared_preload_libraries = ''pg_cron'', restart and create extension pg_cron; '
                'or start a worker without it: call net.work() in a session of its own, or the process "pgnet worker".';
    end if;
    if cron_database = current_database() then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = 'the extension pg_cron is not installed in this database',
            hint = 'create extension pg_cron; then call net.schedule_worker() again.';
    end if;
    raise exception using
        errcode = 'object_not_in_prerequisite_state',
        message = format('pg_cron keeps its jobs in the database "%s", not in this one', cron_database),
        hint = format('There, run: select cron.schedule_in_database(%L, %L, %L, %L); '
            'select cron.schedule_in_database(%L, %L, %L, %L);',
            'pgnet worker of ' || current_database(), '* * * * *', 'call net.work()', current_database(),
            'pgnet callbacks of ' || current_database(), '* * * * *', 'call net.run_callbacks()', current_database());
end
$$;
comment on function net.schedule_worker() is
    'Has pg_cron keep a worker running in this database, and a session for callbacks: jobs by the minute that '
    'start net.work() and net.run_callbacks() again whenever they have ended. Gives the number of the first. Raises 55000 with what to do where pg_cron is not '
    'here.';

create function net.unschedule_worker()
    -- whether there was a job
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    job text;
    found_job boolean;
    done boolean := false;
begin
    -- The argument is a name in older versions, text in newer ones.
    if coalesce(to_regprocedure('cron.unschedule(text)'), to_regprocedure('cron.unschedule(name)')) is null then
        return false;
    end if;
    foreach job in array array['pgnet worker', 'pgnet callbacks'] loop
        execute 'select exists (select from cron.job where jobname = $1 and username = current_user)' into found_job using job;
        if found_job then
            execute format('select cron.unschedule(%L)', job);
            done := true;
        end if;
    end loop;
    return done;
end
$$;
comment on function net.unschedule_worker() is
    'Removes the pg_cron jobs of net.schedule_worker; true where there was one. A worker that runs '
    'goes on until it is cancelled.';

-- ======== extension/72_help.sql ========

-- Help: what people call and read, by topic. The one list of it stands here, with an example each;
-- what each does is its COMMENT.

create function pgnet.help_entries()
    returns table (topic text, name text, example text)
    language sql immutable parallel safe cost 10 rows 60
    set search_path = pg_catalog, pg_temp
as $$
    values
        ('requests', 'http_get', 'select net.http_get(''https://example.com/'');'),
        ('requests', 'http_post', 'select net.http_post(''https://example.com/'', ''{"name": "value"}'');'),
        ('requests', 'http_delete', 'select net.http_delete(''https://example.com/1'');'),
        ('requests', 'http_put', 'select net.http_put(''https://example.com/1'', ''{"name": "value"}'');'),
        ('requests', 'http_patch', 'select net.http_patch(''https://example.com/1'', ''{"name": "value"}'');'),
        ('requests', 'http_head', 'select net.http_head(''https://example.com/'');'),
        ('requests', 'http_request', 'select net.http_request(''POST'', ''https://example.com/'', body_text => ''hello'', retry => ''safe'');'),
        ('requests', 'multipart', 'select m.* from net.multipart(''[{"name": "note", "value": "hello"}]'') m;'),
        ('requests', 'requests', 'select id, state, url, error_msg from net.requests order by id desc limit 10;'),
        ('requests', 'explain', 'select * from net.explain(1);'),
        ('requests', 'attempts', 'select * from net.attempts where request_id = 1;'),
        ('requests', 'callbacks', 'select id, callback, state, attempts, error_msg from net.callbacks order by made desc limit 10;'),
        ('requests', 'on_all_done', 'create function all_done(o net.outcome[]) returns void language sql as ''''; select net.on_all_done(''{}'', ''all_done'');'),
        ('requests', 'run_callback', 'select net.run_callback(1);'),
        ('requests', 'cancel', 'select net.cancel(1);'),
        ('requests', 'cancel_where', 'select net.cancel_where(''{"host": "api.example.com", "older_than": "1 hour"}'', dry_run => true);'),
        ('requests', 'forget', 'select net.forget(1);'),
        ('requests', 'wake', 'select net.wake();'),
        ('responses', 'responses', 'select id, status_code, content_json, took from net.responses order by id desc limit 10;'),
        ('responses', 'wait', 'select status_code, content from net.wait(1, timeout => ''5 s'');'),
        ('responses', 'wait_all', 'select id, state, status_code from net.wait_all(array[1, 2]);'),
        ('responses', 'fetch', 'call net.fetch(''GET'', ''https://example.com/'');'),
        ('responses', 'http_get_result', 'select (net.http_get_result(1)).message;'),
        ('responses', 'http_collect_response', 'select (net.http_collect_response(1)).message;'),
        ('tests', 'stub', 'select net.stub(''https://example.com/*'', 200, ''{"ok": true}'');'),
        ('tests', 'unstub', 'select net.unstub();'),
        ('tests', 'stubs', 'select * from net.stubs;'),
        ('tests', 'recorded', 'select method, url, body_json from net.recorded order by id;'),
        ('failures', 'failures', 'select id, url, status_code, error_msg from net.failures order by id desc limit 10;'),
        ('failures', 'retry', 'select net.retry(id) from net.failures where status_code = 503;'),
        ('failures', 'retry_where', 'select net.retry_where(''{"host": "api.example.com", "newer_than": "1 hour"}'', dry_run => true);'),
        ('failures', 'blocked_keys', 'select key, head, error_msg, waiting, since from net.blocked_keys;'),
        ('failures', 'unblock', 'select net.unblock(''invoice 17'');'),
        ('failures', 'retry_policies', 'select * from net.retry_policies;'),
        ('failures', 'configure_retry', 'select net.configure_retry(''patient'', ''{"max_attempts": 10}'');'),
        ('webhooks', 'create_webhook', 'create table orders (id bigint primary key); select net.create_webhook(''orders'', ''orders'', ''https://example.com/hook'');'),
        ('webhooks', 'webhooks', 'select name, enabled, sent, failed, waiting, last_error, fault from net.webhooks;'),
        ('webhooks', 'webhook_deliveries', 'select * from net.webhook_deliveries where webhook = ''orders'' order by request_id desc limit 10;'),
        ('webhooks', 'test_webhook', 'call net.test_webhook(''orders'');'),
        ('webhooks', 'disable_webhook', 'select net.disable_webhook(''orders'', ''the shop moves'');'),
        ('webhooks', 'enable_webhook', 'select net.enable_webhook(''orders'', with_missed => true);'),
        ('webhooks', 'replay_webhook', 'select net.replay_webhook(''orders'', since => now() - interval ''1 day'');'),
        ('webhooks', 'backfill_webhook', 'select net.backfill_webhook(''orders'', batch => 100, rate => ''50/second'');'),
        ('webhooks', 'set_endpoint', 'select net.set_endpoint(''shop'', ''https://example.com/hook'');'),
        ('webhooks', 'drop_endpoint', 'select net.drop_endpoint(''shop'');'),
        ('webhooks', 'endpoints', 'select name, url from net.endpoints;'),
        ('webhooks', 'drop_webhook', 'select net.drop_webhook(''orders'');'),
        ('webhooks', 'webhook', 'create temp table orders (id bigint); create trigger order_hook after insert on orders for each row execute function net.webhook(''https://example.com/orders'');'),
        ('workers', 'work', 'call net.work();'),
        ('workers', 'drain', 'call net.drain();'),
        ('workers', 'run_callbacks', 'call net.run_callbacks();'),
        ('workers', 'schedule_worker', 'select net.schedule_worker();'),
        ('workers', 'unschedule_worker', 'select net.unschedule_worker();'),
        ('workers', 'grant_worker', 'select net.grant_worker(''worker_role'');'),
        ('workers', 'revoke_worker', 'select net.revoke_worker(''worker_role'');'),
        ('workers', 'workers', 'select * from net.workers;'),
        ('workers', 'stats', 'select * from net.stats;'),
        ('workers', 'worker_restart', 'select net.worker_restart();'),
        ('workers', 'check_worker_is_up', 'select net.check_worker_is_up();'),
        ('workers', 'wait_until_running', 'select net.wait_until_running();'),
        ('egress', 'egress', 'select * from net.egress;'),
        ('egress', 'allow_network', 'select net.allow_network(''10.1.0.0/16'');'),
        ('egress', 'deny_network', 'select net.deny_network(''10.1.2.0/24'');'),
        ('egress', 'forget_network', 'select net.forget_network(''10.1.0.0/16'');'),
        ('egress', 'allow_host', 'select net.allow_host(''*.example.com'');'),
        ('egress', 'deny_host', 'select net.deny_host(''intern.example.com'');'),
        ('egress', 'forget_host', 'select net.forget_host(''*.example.com'');'),
        ('hosts', 'hosts', 'select * from net.hosts;'),
        ('hosts', 'host_events', 'select * from net.host_events order by happened desc limit 20;'),
        ('hosts', 'configure_host', 'select net.configure_host(''api.example.com'', ''{"http_version": "1.1"}'');'),
        ('hosts', 'pause', 'select net.pause(''api.example.com'', ''maintenance until noon'');'),
        ('hosts', 'resume', 'select net.resume(''api.example.com'');'),
        ('secrets', 'secrets', 'select * from net.secrets;'),
        ('secrets', 'set_secret', 'select net.set_secret(''key'', ''the secret value'', ''https://example.com/api/'');'),
        ('secrets', 'grant_secret', 'select net.grant_secret(''key'', ''app_role'');'),
        ('secrets', 'revoke_secret', 'select net.revoke_secret(''key'', ''app_role'');'),
        ('secrets', 'drop_secret', 'select net.drop_secret(''key'');'),
        ('secrets', 'secret_url', 'select net.http_get(net.secret_url(''hook''));'),
        ('settings', 'settings', 'select name, value, unit, description from net.settings;'),
        ('settings', 'configure', 'select net.configure(''ttl'', ''1 day'');'),
        ('upkeep', 'check', 'select * from net.check() where not ok;'),
        ('upkeep', 'adopt_database', 'select net.adopt_database();'),
        ('upkeep', 'help', 'select name, example from net.help(''requests'');')
$$;
comment on function pgnet.help_entries() is
    'The entries of net.help: the topic of each public function and view, and an example.';

create type pgnet.help_row as (
    topic text,
    name text,
    -- NULL for a view
    arguments text,
    description text,
    example text
);
comment on type pgnet.help_row is 'A row of net.help().';

create function net.help(
    -- requests, responses, tests, failures, webhooks, workers, egress, hosts, secrets, settings or
    -- upkeep; NULL: all
    topic text default null
)
    returns setof pgnet.help_row
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if topic is not null and not exists (select from pgnet.help_entries() e where e.topic = help.topic) then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('there is no topic "%s"', left(topic, 60)),
            hint = 'known: ' || (
                select string_agg(t.topic, ', ' order by t.place)
                from (
                    select e.topic, min(e.place) as place
                    from pgnet.help_entries() with ordinality e (topic, name, example, place) group by e.topic
                ) t);
    end if;
    return query
    select e.topic, 'net.' || e.name, pg_get_function_arguments(p.oid),
        coalesce(obj_description(p.oid, 'pg_proc'), obj_description(c.oid, 'pg_class')), e.example
    from pgnet.help_entries() with ordinality e (topic, name, example, place)
    left join pg_proc p on p.pronamespace = to_regnamespace('net') and p.proname = e.name
    left join pg_class c on c.relnamespace = to_regnamespace('net') and c.relname = e.name and c.relkind = 'v'
    where e.topic = coalesce(help.topic, e.topic)
    order by e.place;
end
$$;
comment on function net.help(text) is
    'What there is to call and to read, by topic, with an example each. Raises 22023 for a topic '
    'that does not exist.';

-- ======== extension/80_check.sql ========

-- The doctor: one look at everything that has to be right.

create function pgnet.inspect_python(
    out package_version text, out package_path text, out python_version text, out missing text, out ca_bundle text, out wake_up_fault text
)
    language plpython3u volatile parallel unsafe
as $$
from pgnet import sql_v1
return sql_v1.python_check(plpy)
$$;
comment on function pgnet.inspect_python() is
    'What net.check() learns from the server''s Python: package, dependencies, CA bundle, commit '
    'callback.';

-- Everything of the extension that has rights: 85_rights.sql goes through it to take back what
-- default privileges gave, and net.check() to find what was granted since.
create function pgnet.own_objects()
    returns table (class regclass, oid oid, sub integer, kind text, name text, owner oid, acl aclitem[])
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
    -- Some hundred rows: they must not need a temporary file.
    set work_mem = '4MB'
as $$
    with schemas as (
        select n.oid, n.nspname, n.nspowner, n.nspacl from pg_namespace n
        where n.nspname = any (array['net', 'pgnet']::name[])
    ), object (class, oid, sub, kind, name, owner, acl, default_of) as (
        select 'pg_namespace'::regclass, n.oid, 0, 'schema', n.nspname::text, n.nspowner, n.nspacl, 'n'
        from schemas n
        union all
        select 'pg_class'::regclass, c.oid, 0,
            case when c.relkind = 'S' then 'sequence' else 'table' end, c.oid::regclass::text,
            c.relowner, c.relacl, case when c.relkind = 'S' then 's' else 'r' end
        from pg_class c join schemas n on n.oid = c.relnamespace
        where c.relkind = any (array['r', 'v', 'S']::"char"[])
        union all
        select 'pg_class'::regclass, c.oid, a.attnum,
            'column', format('(%I) on %s', a.attname, c.oid::regclass), c.relowner, a.attacl, 'c'
        from pg_class c join schemas n on n.oid = c.relnamespace
        join pg_attribute a on a.attrelid = c.oid
        where a.attacl is not null or exists (
            select from pg_init_privs i
            where i.classoid = 'pg_class'::regclass
                and i.objoid = c.oid and i.objsubid = a.attnum)
        union all
        select 'pg_proc'::regclass, p.oid, 0,
            'routine', p.oid::regprocedure::text, p.proowner, p.proacl, 'f'
        from pg_proc p join schemas n on n.oid = p.pronamespace
        union all
        select 'pg_type'::regclass, t.oid, 0,
            'type', t.oid::regtype::text, t.typowner, t.typacl, 'T'
        from pg_type t join schemas n on n.oid = t.typnamespace
        left join pg_class c on c.oid = t.typrelid
        where t.typtype = any (array['d', 'e']::"char"[]) or c.relkind = 'c'
    )
    select o.class, o.oid, o.sub, o.kind, o.name, o.owner,
        coalesce(o.acl, acldefault(o.default_of::"char", o.owner)) as acl
    from object o
$$;
comment on function pgnet.own_objects() is
    'The schemas, tables, sequences, columns, routines and types of the extension that rights are '
    'granted on, with these rights.';

-- Rights that differ from what 85_rights.sql gives. Row security shuts most of an everyday "grant
-- all on all tables", but not LOCK, TRIGGER, REFERENCES and the sequences.
create function pgnet.right_faults()
    -- beyond: a right that the extension did not give; missing: one without which callers or
    -- workers fail
    returns table (kind text, fault text, cure text)
    language sql stable
    set search_path = pg_catalog, pg_temp
    -- The catalogs fit in it, also where a database allows no temporary file.
    set work_mem = '16MB'
as $$
    with object as (
        select o.* from pgnet.own_objects() o where o.kind <> 'type'
    ), held as (
        select o.*, a.grantee, a.privilege_type as privilege
        from object o cross join lateral aclexplode(o.acl) a
        where a.grantee <> o.owner
    ), given as (
        select o.*, a.grantee, a.privilege_type as privilege
        from object o
        join pg_init_privs i on i.classoid = o.class and i.objoid = o.oid and i.objsubid = o.sub
        cross join lateral aclexplode(i.initprivs) a
        where a.grantee = 0
    ), worker as (
        select w.role, r.oid as routine from pgnet.worker_role w
        join pg_roles g on g.oid = w.role
        cross join pgnet.worker_routines() r (oid)
    ), caller as (
        select distinct h.grantee from held h join pg_proc p on p.oid = h.oid and h.class = 'pg_proc'::regclass
        where p.pronamespace = to_regnamespace('net') and p.proname ~ '^http_(get|post|delete|request|put|patch|head)$'
    ), wrong (fault, kind, name, privilege, grantee) as (
        select 'beyond', h.kind, h.name, h.privilege, h.grantee
        from held h
        where not (h.kind = 'schema' and h.privilege = 'USAGE')
            and not exists (select from given g
                where g.class = h.class and g.oid = h.oid and g.sub in (0, h.sub) and g.privilege = h.privilege)
            and not exists (select from worker w where w.role = h.grantee and h.class = 'pg_proc'::regclass and w.routine = h.oid)
        union all
        select 'missing', g.kind, g.name, g.privilege, c.grantee
        from given g cross join caller c
        where g.kind <> 'schema' and not (g.kind = 'routine' and g.name ~ '^net[.][^_]')
            and not exists (select from held h
                where h.class = g.class and h.oid = g.oid and h.sub in (0, g.sub) and h.privilege = g.privilege
                    and h.grantee in (0, c.grantee))
        union all
        -- A role that may call what stands in net calls what stands in pgnet, too.
        select 'missing', 'schema', 'pgnet', 'USAGE', h.grantee
        from held h
        where h.kind = 'schema' and h.name = 'net' and h.privilege = 'USAGE'
            and not exists (select from worker w where w.role = h.grantee)
            and not exists (
                select from held u
                where u.kind = 'schema' and u.name = 'pgnet' and u.privilege = 'USAGE' and u.grantee in (0, h.grantee))
    )
    select w.fault,
        format('%s %s %s on %s', r.role, case w.fault when 'beyond' then 'has' else 'has not' end, w.privilege,
            case when count(*) <= 3 then string_agg(w.name, ', ' order by w.name)
                else format('%s and %s more', min(w.name), count(*) - 1) end),
        format(case w.fault when 'beyond' then 'revoke %s%s from %s;' else 'grant %s%s to %s;' end, lower(w.privilege),
            case w.kind when 'column' then ' ' else format(' on %s ', w.kind) end || string_agg(w.name, ', ' order by w.name), r.role)
    from wrong w
    cross join lateral (select case w.grantee when 0 then 'public' else w.grantee::regrole::text end as role) r
    group by w.fault, r.role, w.privilege, w.kind, case w.kind when 'column' then w.name end
    union all
    select 'missing', format('the worker role %s may not execute %s', w.role, string_agg(w.routine::text, ', ' order by w.routine::text)),
        format('select net.grant_worker(%L);', g.rolname)
    from worker w join pg_roles g on g.oid = w.role
    where not has_function_privilege(w.role, w.routine, 'execute')
        or not has_schema_privilege(w.role, 'net', 'usage') or not has_schema_privilege(w.role, 'pgnet', 'usage')
    group by w.role, g.rolname
$$;
comment on function pgnet.right_faults() is
    'The rights on the extension''s objects that are beyond those which it gave, or missing, with '
    'the statement that mends each.';

-- Triggers and rules that others have put on the extension's tables run in sessions of callers,
-- with their rights, and in sessions of workers, with the owner's. A function that looks for names
-- in the session's path finds there what the callers have put into it.
create function pgnet.open_paths()
    returns table (place text, cure text)
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    with tables as (
        select c.oid, c.oid::regclass::text as name
        from pg_class c
        where c.relnamespace in (to_regnamespace('net'), to_regnamespace('pgnet')) and c.relkind in ('r', 'v')
    ), parts (classid, objid, name) as (
        select 'pg_trigger'::regclass, t.oid, format('trigger %I on %s', t.tgname, r.name)
        from pg_trigger t join tables r on r.oid = t.tgrelid where not t.tgisinternal
        union all
        select 'pg_rewrite'::regclass, w.oid, format('rule %I on %s', w.rulename, r.name)
        from pg_rewrite w join tables r on r.oid = w.ev_class where w.ev_type <> '1'
        union all
        select 'pg_policy'::regclass, y.oid, format('policy %I on %s', y.polname, r.name)
        from pg_policy y join tables r on r.oid = y.polrelid
        union all
        select 'pg_attrdef'::regclass, d.oid, format('default of %s.%I', r.name, a.attname)
        from pg_attrdef d join tables r on r.oid = d.adrelid
        join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
        union all
        select 'pg_constraint'::regclass, k.oid, format('constraint %I on %s', k.conname, r.name)
        from pg_constraint k join tables r on r.oid = k.conrelid
        union all
        select 'pg_class'::regclass, i.indexrelid, format('index %s on %s', i.indexrelid::regclass, r.name)
        from pg_index i join tables r on r.oid = i.indrelid
    )
    select format('%s (%s)', p.name, f.oid::regprocedure),
        format('alter function %s set search_path = %s, pg_temp;', f.oid::regprocedure,
            coalesce((select nullif(trim(substr(c.assignment, 13)), '') from unnest(f.proconfig) c (assignment)
                where lower(left(c.assignment, 12)) = 'search_path='), quote_ident(n.nspname)))
    from parts p
    join pg_depend d on d.classid = p.classid and d.objid = p.objid
    left join pg_operator o on d.refclassid = 'pg_operator'::regclass and o.oid = d.refobjid
    join pg_proc f on f.oid = case d.refclassid when 'pg_proc'::regclass then d.refobjid else o.oprcode end
    join pg_namespace n on n.oid = f.pronamespace
    join pg_language l on l.oid = f.prolang
    where n.nspname not in ('net', 'pgnet', 'pg_catalog') and l.lanname not in ('internal', 'c') and f.prosqlbody is null
        and not exists (
            select from unnest(f.proconfig) c (assignment)
            where lower(c.assignment) ~ '^search_path=(.*[ ,])?"?pg_temp"? *$')
    group by p.name, f.oid, f.proconfig, n.nspname
$$;
comment on function pgnet.open_paths() is
    'Triggers, rules, policies, defaults, constraints and indexes on the extension''s tables whose '
    'functions have no fixed search_path that ends in pg_temp, and the statement that gives them '
    'one.';

-- ---- what net.check() looks at, a function for each subject

create type pgnet.finding as (item text, ok boolean, detail text, hint text);
comment on type pgnet.finding is 'A row of net.check().';

create function pgnet.check_package()
    returns setof pgnet.finding
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    python record;
    extension_version text := (select e.extversion from pg_extension e where e.extname = 'pgnet');
begin
    select * into python from pgnet.inspect_python();

    return query select 'version', python.package_version = extension_version,
        format('extension %s, Python package %s', extension_version, python.package_version),
        case when python.package_version is distinct from extension_version then
            'Install the package that belongs to the extension (make install), or alter extension pgnet update.' end;
    return query select 'package', true, format('%s, Python %s', python.package_path, python.python_version), null;
    return query select 'dependencies', python.missing = '',
        case when python.missing = '' then 'gevent, requests and pycurl are there'
            else 'missing on this host: ' || python.missing end,
        case when python.missing <> '' then
            'Needed only where net.work() or net.drain() run: apt-get install python3-gevent python3-requests python3-pycurl.' end;
    return query select 'CA bundle', python.ca_bundle is not null, coalesce(python.ca_bundle, 'none found'),
        case when python.ca_bundle is null then 'https needs one: apt-get install ca-certificates.' end;
    return query select 'wake-up', python.wake_up_fault is null and pgnet.setting_value('wake_up') = 'callback',
        case when pgnet.setting_value('wake_up') = 'poll' then 'setting wake_up is "poll": workers look every second'
            else coalesce('a commit cannot wake workers here, they look every second: ' || python.wake_up_fault, 'a commit wakes a worker') end,
        case when pgnet.setting_value('wake_up') = 'poll' then 'select net.configure(''wake_up'', ''callback'');'
            when python.wake_up_fault is not null then 'Allow the server to create ctypes callbacks, or set wake_up to "poll" to say that this is known.' end;
end
$$;
comment on function pgnet.check_package() is
    'The rows of net.check() about the Python package and what it needs.';

create function pgnet.check_database()
    returns setof pgnet.finding
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    copy_fault text := pgnet.copy_fault();
    modes text;
    unknown_modes text;
    replicated bigint;
begin
    select count(*) into replicated from net.http_request_queue q where q.origin is not null;
    return query select 'database', copy_fault is null,
        coalesce('this is a copy, and no worker serves it: ' || copy_fault,
            format('it is the one that is remembered%s', case when replicated > 0 then
                format('; %s request(s) have come by replication and are not sent here', replicated) end)),
        case when copy_fault is not null then
            'If what is in the queue is to be sent from here too: select net.adopt_database(). If not, delete it first.'
            when replicated > 0 then 'Where this server takes the place of their own: drop the subscription, then select net.adopt_database().' end;
    select string_agg(distinct format('%s (%s)', m.configured, m.source), ', '),
        string_agg(distinct format('%s (%s)', m.configured, m.source), ', ') filter (where lower(m.configured collate "C") <> m.mode)
    into modes, unknown_modes
    from pgnet.mode_sources() m;
    return query select 'mode', pgnet.mode_in_force() = 'on',
        case pgnet.mode_in_force()
            when 'on' then 'requests are sent'
            when 'record' then 'nothing is sent, requests are recorded and end: ' || modes
            else 'nothing is sent, requests wait: ' || modes end,
        case when unknown_modes is not null then 'Neither on, record nor off, so it counts as off: ' || unknown_modes || '.'
            when pgnet.mode_in_force() <> 'on' then 'This mode is meant for a clone. To send requests, remove the settings that are named here: the safest of them counts.' end;
    return query select 'stubs', count(*) = 0,
        case when count(*) = 0 then 'no stub answers in place of the network'
            else format('%s stub(s) answer requests in place of the network', count(*)) end,
        case when count(*) > 0 then 'Stubs are for tests. To send these requests: select net.unstub();' end
    from pgnet.stub s where s.times_left is distinct from 0;
end
$$;
comment on function pgnet.check_database() is
    'The rows of net.check() about copies, the mode and stubs.';

create function pgnet.check_work()
    returns setof pgnet.finding
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    oldest interval;
    waiting bigint;
    workers bigint;
    uncounted boolean;
begin
    if pg_is_in_recovery() then
        return query select 'worker', true, 'this is a standby: workers serve the primary', null::text;
    else
        workers := (select count(*) from pgnet.worker w where pgnet.session_is_alive(w.pid, w.backend_start));
        return query select 'worker', workers > 0, format('%s running', workers),
            case when workers = 0 then pgnet.how_to_start_a_worker() end;
    end if;

    select count(*), max(now() - q.created) into waiting, oldest
    from (select q.created from net.http_request_queue q order by q.id limit 10000) q;
    -- n_live_tup is not kept then.
    uncounted := (pgnet.pending_limits())[1] is not null and not current_setting('track_counts')::boolean;
    return query select 'queue', coalesce(oldest, interval '0') < interval '5 minutes' and not uncounted,
        format('%s waiting%s%s', case when waiting = 10000 then '10000 or more' else waiting::text end,
            coalesce(', the oldest for ' || justify_interval(date_trunc('second', oldest)), ''),
            case when uncounted then '; max_pending limits nothing, since the server counts no rows' else '' end),
        case when uncounted then 'Set track_counts = on.'
            when oldest >= interval '5 minutes' then
            'Is a worker running? Are its slots taken by slow hosts (select url, age from net.requests where state = ''in_flight'')?' end;
end
$$;
comment on function pgnet.check_work() is
    'The rows of net.check() about workers and the queue.';

create function pgnet.check_pauses()
    returns setof pgnet.finding
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    number bigint;
    listed text;
    cures text;
begin
    select count(*), string_agg(format('%s since %s by %s%s', case p.host when '*' then 'every host' else p.host end,
            date_trunc('second', p.since), p.paused_by, ': ' || p.reason), '; ' order by p.place) filter (where p.place <= 5),
        string_agg(format('select net.resume(%L);', p.host), ' ' order by p.place) filter (where p.place <= 5)
    into number, listed, cures
    from (
        select p.*, row_number() over (order by p.host <> '*', p.since) as place from pgnet.pause p
    ) p;
    return query select 'pauses', number = 0,
        case when number = 0 then 'no host is paused'
            else format('%s%s', listed, case when number > 5 then format('; and %s more in net.hosts', number - 5) end) end,
        cures;
end
$$;
comment on function pgnet.check_pauses() is
    'The row of net.check() about hosts whose requests wait for net.resume.';

create function pgnet.check_heartbeat()
    returns setof pgnet.finding
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select 'heartbeat', false, format('%s fails since %s: %s%s', f.duty, date_trunc('second', f.since), f.message,
        case when f.kept > 0 then format(' (%s rows)', f.kept) else '' end), f.hint
    from pgnet.fault f
    where not f.brief or f.failures > 2
    order by f.duty;
    if not found then
        return query select 'heartbeat', true, 'rescuing, deleting what is expired and the other duties of workers are done', null::text;
    end if;
    return query
    select 'recording', r.refused = 0,
        case when r.refused = 0 then format('%s outcomes wait for a lock', r.number)
            else format('%s outcomes cannot be recorded, since %s: %s (request %s)', r.refused, date_trunc('second', u.since), u.message, u.id) end,
        u.hint
    from (select count(*) as number, count(u.message) as refused from pgnet.unrecorded u) r
    left join lateral (
        select u.* from pgnet.unrecorded u where u.message is not null order by u.since limit 1
    ) u on true;
end
$$;
comment on function pgnet.check_heartbeat() is
    'The rows of net.check() about the duties and recordings that fail.';

create function pgnet.check_rights()
    returns setof pgnet.finding
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    beyond text;
    lacking text;
    cures text;
    open_paths text;
begin
    select string_agg(f.fault, '; ' order by f.fault) filter (where f.kind = 'beyond'),
        string_agg(f.fault, '; ' order by f.fault) filter (where f.kind = 'missing'),
        string_agg(f.cure, ' ' order by f.cure)
    into beyond, lacking, cures
    from pgnet.right_faults() f;
    return query select 'rights', cures is null,
        concat_ws('. ', case when has_schema_privilege('public', 'net', 'usage') then 'every role may send requests'
                else 'only roles with usage on the schema net may send requests' end,
            'beyond what the extension gave: ' || beyond, 'missing: ' || lacking),
        cures;
    select string_agg(o.place, ', ' order by o.place), string_agg(distinct o.cure, ' ') into open_paths, cures
    from pgnet.open_paths() o;
    return query select 'triggers', open_paths is null,
        coalesce('without a fixed search_path that ends in pg_temp: ' || open_paths, 'nothing on the tables looks for names in a session''s path'),
        cures;
end
$$;
comment on function pgnet.check_rights() is
    'The rows of net.check() about rights, and triggers on the tables.';

create function pgnet.check_definers()
    returns setof pgnet.finding
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    altered text;
    lent text;
    cures text;
begin
    -- As the extension makes them, the functions for callers are not SECURITY DEFINER.
    select string_agg(p.oid::regprocedure::text, ', ' order by p.oid::regprocedure::text),
        string_agg(format('alter function %s security invoker;', p.oid::regprocedure), ' ' order by p.oid::regprocedure::text)
    into altered, cures
    from pg_proc p
    where p.prosecdef
        and (p.pronamespace = to_regnamespace('net')
            or p.pronamespace = to_regnamespace('pgnet') and p.proname in (
                'check_request', 'inspect_request', 'check_or_raise', 'check_secret', 'refuse_secret', 'secret_prefix', 'outcome_so_far',
                'refuse_to_wait', 'written_here', 'caller_role', 'caller_is_owner', 'require_owner'));
    lent := (
        select string_agg(p.oid::regprocedure::text, ', ' order by p.oid::regprocedure::text)
        from pg_proc p
        where p.prosecdef and p.pronamespace not in (to_regnamespace('net'), to_regnamespace('pgnet'))
            and p.prosrc ~* '[[:<:]]net[[:space:]]*[.][[:space:]]*"?http_(get|post|delete|request|put|patch|head)[[:>:]]'
            and (pg_has_role(p.proowner, (select n.nspowner from pg_namespace n where n.nspname = 'net'), 'usage')
                or exists (select from pgnet.secret_grant g where pg_has_role(p.proowner, g.role, 'usage'))));
    return query select 'definer functions', altered is null,
        concat_ws('; ',
            'altered to SECURITY DEFINER, so that every request is the owner''s: ' || altered,
            'a role that may execute these sends requests as their owner, who may use secrets: ' || lent,
            case when coalesce(altered, lent) is null then 'every request is that of the role that makes it' end),
        cures;
end
$$;
comment on function pgnet.check_definers() is
    'The rows of net.check() about functions that make requests with another role''s rights.';

create function pgnet.check_network()
    returns setof pgnet.finding
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    unverified text;
    missing text;
begin
    return query select 'egress', true,
        format('%s; %s rule(s) in net.egress', case pgnet.setting_value('egress') when 'public' then 'public addresses are allowed'
            else 'only what net.egress lists is allowed' end, (select count(*) from pgnet.egress_rule)),
        null::text;

    unverified := (select string_agg(h.pattern, ', ' order by h.pattern) from pgnet.host h where h.settings -> 'verify' = 'false');
    missing := (select string_agg(format('%s of %s', v.value ->> 'secret', h.pattern), ', ' order by h.pattern)
        from pgnet.host h cross join jsonb_each(h.settings) v
        where jsonb_typeof(v.value) = 'object' and v.value ? 'secret'
            and not exists (select from pgnet.secret s where s.name = v.value ->> 'secret'));
    return query select 'hosts', unverified is null and missing is null,
        coalesce('the certificate is NOT checked of: ' || unverified, 'secrets that are not there any more: ' || missing,
            format('%s configured in net.hosts, every certificate is checked', (select count(*) from pgnet.host))),
        case when unverified is not null then
            'Give the authority that signed it: select net.configure_host(host, ''{"ca": "...", "verify": null}'').'
            when missing is not null then 'No request to these hosts is sent. Set the secrets again (net.set_secret), or reset the settings (net.configure_host).' end;
end
$$;
comment on function pgnet.check_network() is
    'The rows of net.check() about egress and the settings of hosts.';

create function pgnet.check_hosts()
    returns setof pgnet.finding
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    with place as (
        select s.*, format('%s for role %s (%s since %s: %s; next probe %s)', s.host, s.role::regrole, s.state, date_trunc('second', s.since),
            s.reason, date_trunc('second', s.closed_until)) as described
        from pgnet.host_state s
        where s.needs_probe
        order by s.since limit 1000
    ), slowed as (
        select count(*) as number from pgnet.host_state s where not s.needs_probe and s.closed_until > clock_timestamp()
    )
    select 'circuit breakers', p.number = 0,
        concat_ws('; ', case p.number when 0 then 'none is open' else format('%s open: %s', case when p.number = 1000 then '1000 or more' else p.number::text end,
            array_to_string(p.first, '; ') || case when p.number > 3 then '; ...' else '' end) end,
            case when w.number > 0 then format('%s host(s) have asked for a pause', w.number) end),
        case when p.number > 0 then 'Their requests wait, or fail where on_open says so. Which: select * from net.hosts where state <> ''closed''. '
            'Do they answer from this machine? An open breaker closes by itself at the next probe that is answered, or at once: '
            'select net.configure_host(host, ''{"breaker": true}'').' end
    from (select count(*) as number, (array_agg(place.described))[1:3] as first from place) p, slowed w;
end
$$;
comment on function pgnet.check_hosts() is
    'The row of net.check() about hosts whose requests wait.';

create function pgnet.check_secrets()
    returns setof pgnet.finding
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    with held as (
        select count(*) filter (where s.value is not null) as here, count(*) filter (where s.value is null) as elsewhere from pgnet.secret s
    ), backends as (
        select count(*) as number from pgnet.worker w where w.kind = 'backend' and pgnet.session_is_alive(w.pid, w.backend_start)
    )
    select 'secrets', h.elsewhere = 0 or b.number = 0,
        format('%s in the database, %s held by workers', h.here, h.elsewhere),
        case when h.elsewhere > 0 and b.number > 0 then
            'A worker in the database has no --secrets-dir: let worker processes alone serve this database, or keep the values in it.' end
    from held h, backends b;
end
$$;
comment on function pgnet.check_secrets() is
    'The rows of net.check() about secrets.';

create function pgnet.check_callbacks()
    returns setof pgnet.finding
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    with oldest as (
        select d.role, clock_timestamp() - d.due as age from pgnet.due_roles(clock_timestamp()) d order by d.due limit 1
    ), waits as (
        select o.role, o.age, coalesce(o.age > interval '1 minute', false) as long from (select) e left join oldest o on true
    )
    select 'callbacks', not w.long,
        case when w.role is null then 'none waits' when not w.long then 'some wait for their time'
            else format('those of role %s are due for %s', w.role::regrole, date_trunc('second', w.age)) end,
        case when w.long then 'Nobody runs them, or they hang: select * from net.callbacks where state in (''waiting'', ''running''). A worker process runs them, '
            'unless the setting callback_runners is 0; beside net.work() it takes: call net.run_callbacks().' end
    from waits w;
end
$$;
comment on function pgnet.check_callbacks() is 'The row of net.check() about callbacks.';

create function pgnet.check_cron()
    returns setof pgnet.finding
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    cron_database text := current_setting('cron.database_name', true);
    last_run record;
begin
    if to_regclass('cron.job') is not null and to_regclass('cron.job_run_details') is not null then
        execute $query$
            select j.jobname, d.status, d.return_message, d.start_time
            from cron.job j
            left join lateral (
                select * from cron.job_run_details d where d.jobid = j.jobid order by d.runid desc limit 1
            ) d on true
            where j.command collate "C" ~* 'net[.](work|drain)[(]' and j.database = current_database()
            order by j.jobid desc limit 1
        $query$ into last_run;
        if last_run.jobname is not null and pgnet.cron_fault() is not null then
            return query select 'pg_cron', false, pgnet.cron_fault(), 'Set cron.use_background_workers = off, or install pg_cron 1.5.';
        elsif last_run is null then
            return query select 'pg_cron', true, 'installed, no job runs a worker', 'select net.schedule_worker();';
        else
            return query select 'pg_cron', coalesce(last_run.status, 'none') <> 'failed',
                format('job "%s", last run: %s', last_run.jobname,
                    coalesce(concat_ws(' ', last_run.status, 'at', last_run.start_time, nullif(last_run.return_message, '')), 'none yet')),
                case when last_run.status = 'failed' then
                    'pg_cron connects by itself: allow it in pg_hba.conf, or set cron.use_background_workers = on.' end;
        end if;
    elsif cron_database is not null then
        return query select 'pg_cron', true, format('keeps its jobs in database "%s"', cron_database), null::text;
    else
        return query select 'pg_cron', true, 'not loaded (a worker process does without)', null::text;
    end if;
end
$$;
comment on function pgnet.check_cron() is
    'The rows of net.check() about pg_cron.';

create function net.check()
    returns table (
        -- what was looked at
        item text,
        -- whether it is as it should be
        ok boolean,
        -- what was found
        detail text,
        -- what to do where it is not
        hint text
    )
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgnet.require_owner();
    return query select * from pgnet.check_package();
    return query select * from pgnet.check_database();
    return query select * from pgnet.check_work();
    return query select * from pgnet.check_pauses();
    return query select * from pgnet.check_heartbeat();
    return query select * from pgnet.check_rights();
    return query select * from pgnet.check_definers();
    return query select * from pgnet.check_network();
    return query select * from pgnet.check_hosts();
    return query select * from pgnet.check_callbacks();
    return query select * from pgnet.check_secrets();
    return query select * from pgnet.check_cron();
end
$$;
comment on function net.check() is
    'The doctor: a row for each thing that has to be right, with what was found and what to do. '
    'Reads only; works on a standby too. Owner only.';

-- ======== extension/85_rights.sql ========

-- Rights: this file says for all objects at once which role may do what.

-- A table with row security and without a policy is closed to all but its owner, whatever is
-- granted. TRUNCATE is not subject to row security, so a trigger refuses it.
create function pgnet.refuse_truncate()
    returns trigger
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgnet.require_owner();
    return null;
end
$$;
comment on function pgnet.refuse_truncate() is
    'Before TRUNCATE of a table of the extension: raises 42501 for all but the owner.';

-- A trigger on a table runs in the sessions of all who write to the table, a worker's among them.
-- So do the triggers on the table of a foreign key: the key's action runs them as the owner of that
-- table or, where they are deferred, as the role that commits (before PostgreSQL 18). So the rights
-- TRIGGER and REFERENCES are worth all rights, and they are part of an everyday "grant all on all
-- tables".
create function pgnet.refuse_attachment()
    returns event_trigger
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    made record;
begin
    for made in
        select 'trigger' as kind, t.tgrelid as relation
        from pg_event_trigger_ddl_commands() d
        join pg_trigger t on d.classid = 'pg_trigger'::regclass and t.oid = d.objid
        union all
        select 'foreign key', k.confrelid
        from pg_event_trigger_ddl_commands() d
        join pg_constraint k on d.classid = 'pg_class'::regclass and k.conrelid = d.objid and k.contype = 'f'
    loop
        perform from pg_class c
        where c.oid = made.relation and c.relnamespace in (to_regnamespace('net'), to_regnamespace('pgnet')) and not pg_has_role(current_user, c.relowner, 'usage');
        if found then
            raise exception using
                errcode = 'insufficient_privilege',
                message = format('role "%s" may not attach a %s to %s', current_user, made.kind, made.relation::regclass),
                detail = 'It would run code in the sessions of all who send requests, and in those of workers.',
                hint = format('Only the owner of pgnet may. Take back the grant: revoke trigger, references on %s from %I;',
                    made.relation::regclass, current_user);
        end if;
    end loop;
end
$$;
comment on function pgnet.refuse_attachment() is
    'Raises 42501 where a role that is neither the owner nor a member of it creates a trigger on a '
    'table or view of the extension, or a foreign key to one.';

-- The owner has every right, PUBLIC what is granted here, workers what net.grant_worker grants.
-- Nothing is left to PUBLIC's defaults, nor to what ALTER DEFAULT PRIVILEGES makes of them: what
-- these gave is taken back first.
do $$
declare
    given record;
begin
    -- A session may have a work_mem that is too small for so many rows, and no room for files.
    -- CREATE EXTENSION undoes this at its end.
    perform pg_catalog.set_config('work_mem', '16MB', true);
    for given in
        select distinct pg_catalog.format('%s %s', o.kind, o.name) as name,
            case when a.grantee operator(pg_catalog.=) 0::pg_catalog.oid then 'public'
                else a.grantee::pg_catalog.regrole::pg_catalog.text end as grantee
        from pgnet.own_objects() o
        cross join lateral pg_catalog.aclexplode(o.acl) a
        where a.grantee operator(pg_catalog.<>) o.owner and o.kind operator(pg_catalog.<>) 'column'
    loop
        execute pg_catalog.format('revoke all on %s from %s', given.name, given.grantee);
    end loop;
end
$$;

-- As in pg_net every role may send requests; "revoke usage on schema net from public" forbids that.
-- So everything by which requests are made stands in net, the view net._new_request too. USAGE on
-- pgnet alone opens no way to make one.
grant usage on schema net, pgnet to public;
grant usage on type
    net.http_method, net.request_status, net.http_response, net.http_response_result, net.request_state, net.outcome
to public;

-- Callers may set the columns that describe a request, but not its role, its time and its number.
-- Nobody is granted DELETE: a role that may UPDATE, DELETE or TRUNCATE a table may lock it. UPDATE
-- of columns gives no such right. Policies show for it only rows of the role that stand in
-- pgnet.flow, and of these only those with a unique_key can be changed there.
grant insert (method, url, headers, body, timeout_milliseconds, priority, context, options, retry_of, held), select
    on net.http_request_queue to public;
grant insert (method, url, headers, body, timeout_milliseconds, priority, context, options, held), select (id) on net._new_request to public;
grant update (method, url, headers, body, timeout_milliseconds, priority, context, options, held) on net.http_request_queue to public;
grant insert (request_id, not_before, not_after, ordering_key, unique_key, gate, callback, callback_oid) on net._new_flow to public;
grant update (request_id, not_before, not_after, unique_key, merges, callback, callback_oid), select on pgnet.flow to public;
grant insert (request_id, request_ids, callback, callback_oid), select (id) on net._new_callback to public;
grant select on pgnet.callback, pgnet.callback_order to public;
grant insert (request_id, action), select on pgnet.mark to public;
grant insert (request_id, ordering_key, unblocks, retry_id), select on pgnet.ended_request to public;
grant select on pgnet.blocked_key, pgnet.dependency, pgnet.key_block to public;
grant select on net._http_response, pgnet.failed to public;
grant select on pgnet.attempt, pgnet.stubbed to public;
grant select on pgnet.host_state, pgnet.host_event to public;
grant insert (name, url), update (url, changed), select on pgnet.endpoint to public;
grant insert (name, on_table, definition), update (on_table, definition, created, dropped, disabled_since, disabled_reason, enabled_since, backfill), select
    on pgnet.webhook to public;
grant select on pgnet.webhook_tally, pgnet.webhook_state to public;
grant select (id, worker, attempt, claimed) on pgnet.claim to public;
grant select on pgnet.backlog, pgnet.own_queued, pgnet.own_place to public;
grant select on pgnet.recent_minute, pgnet.newest_request, pgnet.claimed_place, pgnet.ready_count,
    pgnet.request_fact, pgnet.request_load, pgnet.request_before, pgnet.request_rival to public;
grant select on
    net.requests, net.responses, net.callbacks, net.failures, net.attempts, net.recorded, net.blocked_keys, net.workers, net.stats,
    net.webhooks, net.webhook_deliveries, net.endpoints, net.settings, net.egress, net.hosts, net.host_events, net.retry_policies, net.secrets
to public;

-- The functions and procedures that people call.
grant execute on routine
    net.http_get, net.http_post, net.http_delete,
    net.http_request, net.http_put, net.http_patch, net.http_head, net.multipart, net.secret_url,
    net.http_get_result, net.http_collect_response, net._http_collect_response, net._await_response,
    net.wait, net.wait_all, net.explain, net.fetch, net.cancel, net.forget, net.retry, net.unblock, net.cancel_where, net.retry_where,
    net.on_all_done, net.run_callback,
    net.create_webhook, net.drop_webhook, net.enable_webhook, net.disable_webhook, net.test_webhook, net.replay_webhook, net.backfill_webhook,
    net.set_endpoint, net.drop_endpoint,
    net.wake, net.worker_restart, net.wait_until_running, net.check_worker_is_up, net.help, net.webhook,
    net._urlencode_string, net._encode_url_with_params_array
to public;
-- Functions that these, the views and the policies call with the caller's rights.
-- pgnet.require_worker is among them, so that net.work() can say that a role may not run workers.
grant execute on function
    -- the caller
    pgnet.caller_role, pgnet.caller_is_owner, pgnet.require_owner, pgnet.require_worker, pgnet.raise_error,
    -- a request, and what it is made of
    pgnet.check_request, pgnet.inspect_request, pgnet.has_flow, pgnet.check_or_raise, pgnet.check_retry_policy, pgnet.refuse_altered_function,
    pgnet.with_content_type, pgnet.require_utf8, pgnet.inspect_form, pgnet.encode_form, pgnet.inspect_multipart,
    pgnet.queue_request, pgnet.queue_event, pgnet.debounce_request, pgnet.lock_waiting_request, pgnet.queue_unique_request,
    pgnet.may_be_changed,
    pgnet.read_times, pgnet.read_time, pgnet.read_unique_for, pgnet.read_interval,
    pgnet.append_to_query, pgnet.json_text, pgnet.host_of_url, pgnet.was_numbered_here,
    pgnet.check_secret, pgnet.refuse_secret, pgnet.secret_covers, pgnet.secret_prefix,
    -- its outcome
    pgnet.outcome_so_far, pgnet.wait_until, pgnet.await_end, pgnet.tell_waiter, pgnet.waiting_state, pgnet.cancellation_message, pgnet.written_here, pgnet.refuse_to_wait,
    pgnet.json_or_null, pgnet.text_or_null, pgnet.mark_request, pgnet.send_again, pgnet.options_again, pgnet.held_again,
    -- callbacks; pgnet.report_call is called as the role of a callback
    pgnet.resolve_callback, pgnet.refuse_altered_callers, pgnet.check_set, pgnet.wake_runners, pgnet.report_call, pgnet.temporary_objects,
    pgnet.check_after, pgnet.after_ids, pgnet.unblock_head, pgnet.requests_behind, pgnet.hint_retries, pgnet.announce_retry,
    -- many at once
    pgnet.authority_of, pgnet.role_named, pgnet.filter_fault, pgnet.filter_texts, pgnet.filter_time, pgnet.read_filter,
    pgnet.is_error_of, pgnet.matching_queued, pgnet.matching_failed, pgnet.mark_requests,
    -- webhooks
    pgnet.arm_webhook, pgnet.types_in, pgnet.foreign_cast, pgnet.refuse_foreign_cast, pgnet.cast_check, pgnet.changed_values, pgnet.webhook_probe, pgnet.check_webhook_name, pgnet.check_webhook_target,
    pgnet.known_webhook_options, pgnet.check_webhook_options, pgnet.check_webhook_table, pgnet.check_webhook_columns, pgnet.check_payload,
    pgnet.read_webhook, pgnet.primary_key, pgnet.probe_condition, pgnet.webhook_message, pgnet.webhook_batch, pgnet.webhook_is_custom,
    pgnet.webhook_options, pgnet.webhook_insert, pgnet.webhook_names, pgnet.payload_block, pgnet.webhook_row_code, pgnet.too_long_words,
    pgnet.webhook_rows, pgnet.webhook_statement_code, pgnet.webhook_triggers, pgnet.webhook_trigger, pgnet.remove_webhook, pgnet.make_webhook,
    pgnet.replace_webhook, pgnet.qualified_name, pgnet.require_webhook, pgnet.replay_failures, pgnet.queue_sample, pgnet.add_times,
    pgnet.median_time, pgnet.webhook_fault, pgnet.small_number, pgnet.backfill_keys, pgnet.key_texts, pgnet.key_columns, pgnet.read_rate, pgnet.backfill_query,
    pgnet.queue_page, pgnet.send_page, pgnet.next_page,
    -- back-pressure
    pgnet.pending_limits, pgnet.refuse_backlog, pgnet.raise_backlog,
    -- why it waits
    pgnet.caller_reads_all, pgnet.max_timeout_milliseconds, pgnet.is_copy, pgnet.is_locked, pgnet.time_words, pgnet.attempt_words,
    pgnet.reasons_in_flight, pgnet.reasons_of_database, pgnet.reasons_of_request, pgnet.reasons_of_host, pgnet.reasons_of_gates, pgnet.reasons_of_limits, pgnet.reasons_of_workers,
    pgnet.reasons_to_wait, pgnet.reason_of_end, pgnet.explain_words, pgnet.idle_words, pgnet.any_host_waits, pgnet.holding_words, pgnet.both_words,
    pgnet.holding_reasons, pgnet.modes_of_workers,
    -- statistics
    pgnet.caller_watches, pgnet.bucket_middle, pgnet.percentiles, pgnet.host_stats, pgnet.waiting_words, pgnet.current_stats,
    -- workers and settings
    pgnet.session_is_alive, pgnet.worker_is_up, pgnet.how_to_start_a_worker, pgnet.warn_without_worker, pgnet.reload_workers,
    pgnet.limits_of_host, pgnet.setting_value, pgnet.known_settings, pgnet.known_retry_settings, pgnet.built_in_retry_policies, pgnet.help_entries
to public;

do $$
declare
    relation pg_catalog.regclass;
begin
    for relation in
        select c.oid from pg_catalog.pg_class c
        where c.relnamespace operator(pg_catalog.=) any (array['net', 'pgnet']::pg_catalog.regnamespace[]) and c.relkind operator(pg_catalog.=) 'r'
    loop
        execute pg_catalog.format('alter table %s enable row level security', relation);
        execute pg_catalog.format(
            'create trigger refuse_truncate before truncate on %s for each statement execute function pgnet.refuse_truncate()', relation);
    end loop;
end
$$;

create event trigger pgnet_refuse_attachment on ddl_command_end
    when tag in ('CREATE TRIGGER', 'CREATE TABLE', 'ALTER TABLE', 'CREATE SCHEMA')
    execute function pgnet.refuse_attachment();
comment on event trigger pgnet_refuse_attachment is
    'Keeps triggers and foreign keys of others from the tables of pgnet: they would run code in '
    'the sessions of all who send requests.';

-- What replication brings: 35_copies.sql says what becomes of it. Every table has the trigger.
do $$
declare
    relation record;
begin
    for relation in
        select c.oid::pg_catalog.regclass as name,
            case when c.relname operator(pg_catalog.=) any (array['http_request_queue', 'attempt', '_http_response', 'failed', 'flow'])
                then 'take_replicated_row' else 'keep_own_row' end as procedure
        from pg_catalog.pg_class c
        where c.relnamespace operator(pg_catalog.=) any (array['net', 'pgnet']::pg_catalog.regnamespace[]) and c.relkind operator(pg_catalog.=) 'r'
    loop
        execute pg_catalog.format('create trigger replicated before insert or update or delete on %s for each row execute function pgnet.%I()',
            relation.name, relation.procedure);
        -- The trigger fires for replicated rows only, so that no other insert pays for it.
        execute pg_catalog.format('alter table %s enable replica trigger replicated', relation.name);
    end loop;
end
$$;

-- ======== extension/90_notice.sql ========

-- Installed; nothing is sent before a worker runs, so say so where it is seen.
do $$
begin
    -- CREATE EXTENSION holds back messages below a warning; its end undoes this. A session that
    -- wants errors only has set so.
    if pg_catalog.current_setting('client_min_messages') operator(pg_catalog.=) 'warning' then
        perform pg_catalog.set_config('client_min_messages', 'notice', true);
    end if;
    raise notice using
        message = 'pgnet is installed; requests are sent once a worker runs',
        hint = pgnet.how_to_start_a_worker() operator(pg_catalog.||) ' Then select * from net.check();';
end
$$;

-- A worker that has lived through DROP EXTENSION registers again.
do $$
begin
    perform pgnet.signal_workers('reload');
exception when others then
    null; -- where the package is not installed, no worker of this server can be signalled
end
$$;
