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
