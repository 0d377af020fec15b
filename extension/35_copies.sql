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
