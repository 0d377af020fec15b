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
