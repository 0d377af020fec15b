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
