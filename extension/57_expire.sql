-- Expiry: rows that are kept for a time only.

create function pgnet.delete_expired_rows(kind text, ids bigint[], before timestamptz)
    -- the ids of those that were deleted
    returns bigint[]
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
            delete from net._http_response r where r.id = any (ids) returning r.id, r.attempts
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
    return coalesce(deleted, '{}');
end
$$;
comment on function pgnet.delete_expired_rows(text, bigint[], timestamptz) is
    'Deletes responses, failed requests, or attempts of requests that somebody has deleted; gives the ids of those that were there and are gone.';

-- Rows that something keeps (a foreign key, a trigger) stay alone: the others of their batch go, and the next batch begins behind
-- them. They are tried again after a while, a few of them first.
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
    -- In variables: an index is of no use to what may change from row to row.
    present timestamptz := clock_timestamp();
    keep interval := case kind
        when 'responses' then pgnet.setting_value('ttl')::interval
        when 'failed requests' then pgnet.setting_value('ttl_failed')::interval
        else greatest(pgnet.setting_value('ttl')::interval, pgnet.setting_value('ttl_failed')::interval) end;
    before timestamptz := present - keep;
    fault record;
    probe boolean;
    behind timestamptz;
    behind_id bigint;
    ids bigint[];
    times timestamptz[];
    most integer;
    position integer := 0;
    refused integer := 0;
    said text;
    state text;
    referrer_schema text;
    referrer text;
    broken text;
    remedy text;
    next_due timestamptz;
    path text;
begin
    if kind = 'attempts' then
        lock table pgnet.attempt in row exclusive mode nowait;
        lock table net.http_request_queue, net._http_response, pgnet.failed in access share mode nowait;
    else
        lock table net._http_response, pgnet.failed, pgnet.attempt in row exclusive mode nowait;
    end if;
    select f.* into fault from pgnet.fault f where f.duty = own_duty;
    probe := coalesce(fault.retry_at <= present, false);
    most := case when probe and fault.failures % 8 <> 0 then 20 else 5000 end;
    behind := case when probe then '-infinity' else coalesce(fault.behind, '-infinity') end;
    behind_id := coalesce(fault.behind_id, 0);
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
    if ids is not null then
        begin
            -- One that a trigger or a rule keeps without a word counts as an error.
            if cardinality(pgnet.delete_expired_rows(kind, ids, before)) < cardinality(ids) and (kind <> 'attempts' or exists (
                select from pgnet.attempt a where a.request_id = any (ids) and a.ended < before))
            then
                raise exception 'a trigger or a rule keeps it';
            end if;
            position := cardinality(ids);
        exception when others then
            perform set_config('lock_timeout', '20ms', true);
            -- Row by row, for so long that the worker's other work can wait for it.
            while position < cardinality(ids) and clock_timestamp() < present + interval '2 s' loop
                position := position + 1;
                begin
                    if pgnet.delete_expired_rows(kind, ids[position:position], before) = '{}'
                        and (kind <> 'attempts' or exists (select from pgnet.attempt a where a.request_id = ids[position] and a.ended < before))
                    then
                        raise exception 'a trigger or a rule keeps it';
                    end if;
                exception when others then
                    get stacked diagnostics said = message_text, state = returned_sqlstate,
                        referrer_schema = schema_name, referrer = table_name, broken = constraint_name;
                    refused := refused + 1;
                end;
            end loop;
        end;
    end if;
    if refused > 0 then
        remedy := pgnet.remedy(array[case kind when 'responses' then 'net._http_response' when 'failed requests' then 'pgnet.failed' else 'pgnet.attempt' end,
            'pgnet.attempt']::regclass[], state, case when referrer <> '' then format('%I.%I', referrer_schema, referrer) end, nullif(broken, ''));
    end if;
    if probe and most = 20 and refused = position and refused > 0 then
        -- As before: it goes on behind them.
        update pgnet.fault f
        set failures = f.failures + 1, message = said, hint = remedy,
            retry_at = clock_timestamp() + least(interval '2 s' * 2 ^ least(f.failures, 10), interval '5 min')
        where f.duty = own_duty;
        return 1;
    elsif refused > 0 then
        insert into pgnet.fault as f (duty, retry_at, failures, message, hint, kept, behind, behind_id)
        values (own_duty, clock_timestamp() + interval '2 s', 1, said, remedy, refused, times[position], ids[position])
        on conflict on constraint fault_pkey do update
        set message = excluded.message, hint = excluded.hint,
            kept = excluded.kept + case when probe then 0 else f.kept end, behind = excluded.behind, behind_id = excluded.behind_id,
            failures = f.failures + case when probe then 1 else 0 end,
            retry_at = case when probe then clock_timestamp() + least(interval '2 s' * 2 ^ least(f.failures, 10), interval '5 min')
                else f.retry_at end;
    elsif probe then
        -- Something has changed: all of them are tried again.
        update pgnet.fault f
        set kept = 0, behind = null, behind_id = null, retry_at = clock_timestamp() + interval '2 s'
        where f.duty = own_duty;
    end if;
    if fault.duty is not null and refused = 0 and coalesce(cardinality(ids), 0) < most
        and (probe or fault.kept = 0)
    then
        delete from pgnet.fault f where f.duty = own_duty;
    end if;
    if cardinality(ids) = most or position < cardinality(ids) then
        return 0.1;
    end if;
    behind := case when refused > 0 then times[position] when probe then '-infinity' else coalesce(fault.behind, '-infinity') end;
    next_due := keep + case kind
        when 'responses' then (select r.created from net._http_response r where r.created > behind order by r.created limit 1)
        when 'failed requests' then (select f.failed from pgnet.failed f where f.failed > behind order by f.failed limit 1)
        end;
    next_due := least(next_due, (select f.retry_at from pgnet.fault f where f.duty = own_duty));
    return case when next_due is not null then greatest(1, extract(epoch from next_due - clock_timestamp())) end;
end
$$;
comment on function pgnet.expire(text) is
    'Deletes responses past ttl, failed requests past ttl_failed, or attempts of requests that somebody has deleted, 5,000 at a time; gives the seconds until more is due. Rows that cannot be deleted stay, and pgnet.fault says how many and why.';

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
