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
