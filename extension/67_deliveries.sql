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
