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
