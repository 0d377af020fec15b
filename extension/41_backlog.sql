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
