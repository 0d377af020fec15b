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
