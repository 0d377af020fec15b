-- The heartbeat: what every worker does each time it looks. Each duty fails alone.

create function pgnet.do_duty(duty text, worker_id bigint, holding bigint[])
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '500ms'
as $$
declare
    next_time double precision;
    known timestamptz := (select f.retry_at from pgnet.fault f where f.duty = do_duty.duty);
    fault text;
    state text;
    referrer_schema text;
    referrer text;
    broken text;
begin
    if known > clock_timestamp() and duty not like 'deleting expired %' then
        return extract(epoch from known - clock_timestamp());
    end if;
    begin
        next_time := case duty
            when 'saying what is in flight' then pgnet.renew_claims(worker_id, holding)
            when 'mending clocks' then pgnet.mend_clocks()
            when 'acting on marks' then pgnet.act_on_marks()
            when 'rescuing requests' then pgnet.rescue_requests()
            when 'recording what was put aside' then pgnet.record_put_aside()
            when 'forgetting workers' then pgnet.forget_workers()
            when 'deleting expired responses' then pgnet.expire('responses')
            when 'deleting expired failed requests' then pgnet.expire('failed requests')
            when 'deleting expired attempts' then pgnet.expire('attempts')
            end;
        perform pgnet.fire_deferred();
    exception when others then
        get stacked diagnostics fault = message_text, state = returned_sqlstate,
            referrer_schema = schema_name, referrer = table_name, broken = constraint_name;
        perform pgnet.note_fault(duty, fault, case when state = '55P03' then
            'Another session holds a lock: select pid, pg_blocking_pids(pid), query from pg_stat_activity where state <> ''idle'';'
            else pgnet.remedy(array['net.http_request_queue', 'pgnet.claim', 'pgnet.attempt', 'net._http_response', 'pgnet.failed', 'pgnet.worker']::regclass[],
                state, case when referrer <> '' then format('%I.%I', referrer_schema, referrer) end, nullif(broken, '')) end,
            state = '55P03');
        return 1;
    end;
    if known is not null and duty not like 'deleting expired %' then
        delete from pgnet.fault f where f.duty = do_duty.duty;
    end if;
    return next_time;
end
$$;
comment on function pgnet.do_duty(text, bigint, bigint[]) is
    'Does a duty of the heartbeat, if it is not to wait after a failure; gives the seconds until it is to be done again, NULL where it does not matter. What fails is kept in pgnet.fault.';

create function pgnet.renew_claims(worker_id bigint, holding bigint[])
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
begin
    lock table net.http_request_queue, pgnet.claim, pgnet.attempt, net._http_response, pgnet.failed, pgnet.worker in row exclusive mode nowait;
    update pgnet.worker w set stalled_since = null where w.id = worker_id and w.stalled_since is not null;
    if holding is not null then
        -- It is well, and its word on what it works on counts, whatever the clock says.
        update pgnet.claim c set deadline = clock_timestamp() + interval '1 minute'
        where c.id = any (array(
            select o.id from pgnet.claim o
            where o.worker = worker_id and o.deadline < clock_timestamp() and o.id = any (holding) for update skip locked));
        perform pgnet.return_claims(array(
            select c.id from pgnet.claim c where c.worker = worker_id and c.id <> all (holding)),
            'The worker lost track of it.', 'lost');
        -- Those that somebody has deleted meanwhile.
        delete from pgnet.claim c where c.id = any (array(
            select o.id from pgnet.claim o
            where o.worker = worker_id and o.id = any (holding) and not exists (select from net.http_request_queue q where q.id = o.id offset 0)
            for update skip locked));
    end if;
    return null;
end
$$;
comment on function pgnet.renew_claims(bigint, bigint[]) is
    'A worker is well and says what it works on: that stays its own. What it has lost track of is freed, and what was deleted is not its own any more.';

create function pgnet.heartbeat(
    -- the worker that looks; NULL: a session that is not registered as one
    worker_id bigint,
    -- the requests that it has in flight or has outcomes of; NULL: it does not say
    holding bigint[] default null
)
    -- settings, egress, hosts, retry policies, the revision of all four, the generation that workers are to be of, the mode, whether
    -- something waits to be attempted alone, gone: what of holding is not the worker's any more, faults: duties that fail, and next_look:
    -- after how many seconds to come again
    returns jsonb
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
    set lock_timeout = '500ms'
as $$
declare
    configuration record;
    duty text;
    next_duty double precision;
    next_due double precision;
    quarantined boolean := false;
    next_look double precision := extract(epoch from pgnet.setting_value('poll_interval')::interval);
begin
    -- As pgnet.lock_tables does: whoever waits for a lock holds none.
    lock table pgnet.setting, pgnet.configuration, pgnet.host, pgnet.egress_rule, pgnet.retry_policy, pgnet.database, pgnet.worker, pgnet.worker_role, pgnet.mark
        in access share mode nowait;
    lock table pgnet.fault in row exclusive mode nowait;
    perform pgnet.require_worker(worker_id);
    -- Read first: what changes while the rest is read has a higher number.
    select f.revision, f.generation into configuration from pgnet.configuration f;
    foreach duty in array array[
        'saying what is in flight', 'mending clocks', 'rescuing requests', 'acting on marks', 'recording what was put aside', 'deleting expired responses',
        'deleting expired failed requests', 'deleting expired attempts', 'forgetting workers']
    loop
        next_duty := least(next_duty, pgnet.do_duty(duty, worker_id, holding));
    end loop;
    if holding <> '{}' then
        -- What is deleted or cancelled meanwhile is to be noticed.
        next_look := least(next_look, 5);
    end if;
    if pgnet.setting_value('wake_up') = 'poll' or exists (
        -- Its COMMIT PREPARED may come from a session that cannot know what was queued.
        select from pg_prepared_xacts p
        where p.database = current_database() and p.prepared > clock_timestamp() - interval '10 minutes')
    then
        next_look := least(next_look, 1);
    end if;
    if (
        select q.id from net.http_request_queue q
        where q.due >= 'infinity' and q.origin is null and not exists (select from pgnet.claim c where c.id = q.id offset 0)
        order by q.due limit 1) is not null
    then
        quarantined := true;
        next_look := least(next_look, 1);
    end if;
    if exists (select from pgnet.worker w where w.id <> worker_id and w.ended is null and pgnet.session_is_alive(w.pid, w.backend_start)) then
        next_look := least(next_look, 1);
    end if;
    next_due := extract(epoch from clock_timestamp() - (
        select q.due from net.http_request_queue q where q.due < 'infinity' and q.origin is null order by q.due limit 1));
    if next_due is not null then
        -- Who has put a request back looks for it at its time. This is for others, and not to be done for each.
        next_due := greatest(-next_due, 0.5);
    end if;
    return jsonb_build_object(
        -- What is recorded until then expires a ttl later: a short one has to be looked after.
        'next_look', least(next_look, next_duty, next_due, greatest(1, extract(epoch from least(
            pgnet.setting_value('ttl')::interval, pgnet.setting_value('ttl_failed')::interval)))),
        'revision', configuration.revision,
        'generation', configuration.generation,
        'settings', (select jsonb_object_agg(k.name,
                        case k.kind when 'interval' then to_jsonb(extract(epoch from pgnet.setting_value(k.name)::interval))
                            when 'integer' then to_jsonb(pgnet.setting_value(k.name)::bigint)
                            else to_jsonb(pgnet.setting_value(k.name)) end)
                     from pgnet.known_settings() k)
            || jsonb_build_object('server_encoding', current_setting('server_encoding')),
        'hosts', pgnet.host_settings(),
        'policies', pgnet.retry_policy_settings(),
        'mode', pgnet.mode_in_force(),
        'quarantined', quarantined,
        'dropped', to_jsonb(pgnet.dropped_requests(worker_id, holding)),
        'faults', pgnet.fault_messages(),
        'egress', jsonb_build_object(
            'egress', pgnet.setting_value('egress'),
            'ports', pgnet.setting_value('egress_ports'),
            'allow_networks', (select coalesce(jsonb_agg(r.pattern), '[]') from pgnet.egress_rule r where r.kind = 'network' and r.allow),
            'deny_networks', (select coalesce(jsonb_agg(r.pattern), '[]') from pgnet.egress_rule r where r.kind = 'network' and not r.allow),
            'allow_hosts', (select coalesce(jsonb_agg(r.pattern), '[]') from pgnet.egress_rule r where r.kind = 'host' and r.allow),
            -- The database's own door stays shut even where its network is allowed.
            'deny_endpoints', (select jsonb_agg(distinct a.address || ':' || current_setting('port'))
                from unnest(array['127.0.0.1', '[::1]', case family(inet_server_addr()) when 6 then '[' || host(inet_server_addr()) || ']' else host(inet_server_addr()) end]) a (address) where a.address is not null),
            -- Where the worker is on the server's own host, on none of that host's addresses.
            'own_port', case when inet_server_addr() is null or inet_server_addr() = inet_client_addr() then current_setting('port')::integer end,
            'deny_hosts', (select coalesce(jsonb_agg(r.pattern), '[]') from pgnet.egress_rule r where r.kind = 'host' and not r.allow)));
end
$$;
comment on function pgnet.heartbeat(bigint, bigint[]) is
    'What a worker does each time it looks: says what it holds, rescues, acts on marks, expires; gives which requests are no longer its own, its settings, the egress rules and when to look again. Raises 08003 for a worker that is not registered, 55000 where its session has changed.';
