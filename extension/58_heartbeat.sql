-- The heartbeat: every worker calls pgnet.heartbeat every second, or every minute where there is no
-- other worker. The heartbeat does the duties that do not belong to a single request: renewing the
-- worker's claims, rescuing those of lost workers, acting on marks, expiring. It gives the worker
-- its settings, egress rules, hosts and policies, and when to call again. Where a duty fails, the
-- others are done all the same.

create function pgnet.do_duty(duty text, worker_id bigint, owned bigint[])
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '500ms'
as $$
declare
    next_time double precision;
    known timestamptz := (select f.retry_at from pgnet.fault f where f.duty = do_duty.duty);
    caught pgnet.error;
begin
    if known > clock_timestamp() and duty not like 'deleting expired %' then
        return extract(epoch from known - clock_timestamp());
    end if;
    begin
        next_time := case duty
            when 'saying what is in flight' then pgnet.renew_claims(worker_id, owned)
            when 'saying the mode' then pgnet.note_mode(worker_id)
            when 'mending clocks' then pgnet.mend_clocks()
            when 'acting on marks' then pgnet.act_on_marks()
            when 'rescuing requests' then pgnet.rescue_requests()
            when 'recording what was put aside' then pgnet.record_put_aside()
            when 'expiring requests' then pgnet.expire_requests()
            when 'forgetting workers' then pgnet.forget_workers()
            when 'looking for what waits in vain' then pgnet.sweep_gates()
            when 'forgetting budgets' then pgnet.forget_budgets()
            when 'counting what is pending' then pgnet.count_backlog()
            when 'freeing probes' then pgnet.free_probes()
            when 'ending requests of broken hosts' then pgnet.end_requests_of_broken_hosts()
            when 'forgetting hosts' then pgnet.forget_host_states()
            when 'deleting expired responses' then pgnet.expire('responses')
            when 'deleting expired failed requests' then pgnet.expire('failed requests')
            when 'deleting expired attempts' then pgnet.expire('attempts')
            when 'deleting statistics' then pgnet.forget_minutes()
            when 'counting deliveries' then pgnet.judge_webhooks()
            when 'forgetting callbacks' then pgnet.expire_callbacks()
            when 'forgetting what stubs have answered' then pgnet.forget_stubbed()
            end;
        perform pgnet.fire_deferred();
    exception when others then
        get stacked diagnostics caught.message = message_text, caught.state = returned_sqlstate,
            caught.referrer_schema = schema_name, caught.referrer = table_name, caught.constraint_name = constraint_name;
        perform pgnet.note_fault(duty, caught.message, case when caught.state = '55P03' then
            'Another session holds a lock: select pid, pg_blocking_pids(pid), query from pg_stat_activity where state <> ''idle'';'
            else pgnet.remedy(caught, array['net.http_request_queue', 'pgnet.claim', 'pgnet.attempt', 'net._http_response', 'pgnet.failed',
                'pgnet.worker']::regclass[]) end,
            caught.state = '55P03');
        return 1;
    end;
    if known is not null and duty not like 'deleting expired %' then
        delete from pgnet.fault f where f.duty = do_duty.duty;
    end if;
    return next_time;
end
$$;
comment on function pgnet.do_duty(text, bigint, bigint[]) is
    'Does a duty of the heartbeat, unless it waits after a failure; gives the seconds until it is '
    'due again, NULL for at any time. The error of a duty that fails is kept in pgnet.fault.';

create function pgnet.renew_claims(worker_id bigint, owned bigint[])
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
begin
    lock table net.http_request_queue, pgnet.claim, pgnet.attempt, net._http_response, pgnet.failed, pgnet.worker,
        pgnet.flow, pgnet.ended_request, pgnet.dependency, pgnet.callback, pgnet.callback_order in row exclusive mode nowait;
    update pgnet.worker w set stalled_since = null where w.id = worker_id and w.stalled_since is not null;
    if owned is not null then
        -- The worker works. So the requests that it owns stay its own, whatever the clock says.
        update pgnet.claim c set deadline = clock_timestamp() + interval '1 minute'
        where c.id = any (array(
            select o.id from pgnet.claim o
            where o.worker = worker_id and o.deadline < clock_timestamp() and o.id = any (owned) for update skip locked));
        perform pgnet.return_claims(array(
            select c.id from pgnet.claim c where c.worker = worker_id and c.id <> all (owned)),
            'The worker lost track of the request.', 'lost');
        -- Claims whose requests were deleted meanwhile. One of a host with a limit, or with a key,
        -- stays until the worker has closed the connection, and does not name the request any more.
        delete from pgnet.claim c where c.id = any (array(
            select o.id from pgnet.claim o
            where o.worker = worker_id and o.id = any (owned) and o.limited is not true and o.ordering_key is null
                and not exists (select from net.http_request_queue q where q.id = o.id offset 0)
            for update skip locked));
    end if;
    return null;
end
$$;
comment on function pgnet.renew_claims(bigint, bigint[]) is
    'Renews the claims of requests that a worker says it owns. Claims of the worker that it does '
    'not name are returned, and claims of deleted requests are removed.';

create function pgnet.note_mode(worker_id bigint)
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    lock table pgnet.worker in row exclusive mode nowait;
    update pgnet.worker w set mode = pgnet.mode_in_force() where w.id = worker_id;
    return null;
end
$$;
comment on function pgnet.note_mode(bigint) is
    'Keeps the mode that a worker finds, which depends on its session, for net.explain.';

create function pgnet.next_poll(worker_id bigint, owned bigint[], quarantined boolean)
    -- seconds
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
declare
    -- Responses that are recorded until then expire a ttl later: with a short ttl the worker comes
    -- sooner.
    seconds double precision := extract(epoch from least(
        pgnet.setting_value('poll_interval')::interval,
        greatest(interval '1 s', least(pgnet.setting_value('ttl')::interval, pgnet.setting_value('ttl_failed')::interval))));
    next_due timestamptz := least(
        (select q.due from net.http_request_queue q where q.due < 'infinity' and q.origin is null order by q.due limit 1),
        (select f.not_before from pgnet.flow f where f.not_before < 'infinity' order by f.not_before limit 1));
begin
    if next_due is not null then
        -- The worker that put a request back looks for it at its time. This is for others, and not
        -- to be done for each request.
        seconds := least(seconds, greatest(extract(epoch from next_due - clock_timestamp()), 0.5));
    end if;
    if owned <> '{}' then
        -- The worker is to notice when its requests are deleted or cancelled.
        seconds := least(seconds, 5);
    end if;
    if quarantined
        or pgnet.setting_value('wake_up') = 'poll'
        -- The COMMIT PREPARED of these may come from a session that cannot know what was queued.
        or exists (
            select from pg_prepared_xacts p
            where p.database = current_database() and p.prepared > clock_timestamp() - interval '10 minutes')
        -- Requests of other workers may have to be rescued.
        or exists (
            select from pgnet.worker w
            where w.id <> worker_id and w.ended is null and pgnet.session_is_alive(w.pid, w.backend_start))
    then
        seconds := least(seconds, 1);
    end if;
    return seconds;
end
$$;
comment on function pgnet.next_poll(bigint, bigint[], boolean) is
    'After how many seconds a worker that nobody wakes is to call again, unless a duty is due '
    'before.';

create function pgnet.heartbeat(
    -- the worker that calls; NULL: a session that is not registered as one
    worker_id bigint,
    -- the requests that the worker has in flight or has outcomes of; NULL: not known
    owned bigint[] default null
)
    -- settings, egress, hosts and retry policies; revision: of all four; generation: workers of
    -- another one restart; mode; stubs: whether there are any; quarantined: whether requests wait
    -- in quarantine; callbacks: whether there are any to run; dropped: ids of owned that are not
    -- the worker's any more; faults: duties that fail; next_poll: after how many seconds to call
    -- again
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
    quarantined boolean;
    mode text := pgnet.mode_in_force();
begin
    -- As in pgnet.lock_tables, a session that waits for a lock holds no other.
    lock table pgnet.setting, pgnet.configuration, pgnet.host, pgnet.egress_rule, pgnet.retry_policy, pgnet.database, pgnet.worker,
        pgnet.worker_role, pgnet.mark, pgnet.pause, pgnet.stub, pgnet.stubbed in access share mode nowait;
    lock table pgnet.fault, pgnet.callback, pgnet.callback_order in row exclusive mode nowait;
    perform pgnet.require_worker(worker_id);
    -- The revision is read first: a change while the rest is read has a higher number.
    select f.revision, f.generation into configuration from pgnet.configuration f;
    foreach duty in array array[
        'saying what is in flight', 'mending clocks', 'rescuing requests', 'acting on marks', 'recording what was put aside',
        'freeing probes', 'ending requests of broken hosts', 'forgetting hosts',
        'expiring requests', 'deleting expired responses', 'deleting expired failed requests', 'deleting expired attempts',
        'forgetting workers', 'forgetting budgets', 'counting what is pending', 'deleting statistics', 'counting deliveries',
        'forgetting callbacks', 'forgetting what stubs have answered',
        'looking for what waits in vain']
    loop
        next_duty := least(next_duty, pgnet.do_duty(duty, worker_id, owned));
    end loop;
    if mode is distinct from (select w.mode from pgnet.worker w where w.id = worker_id) then
        perform pgnet.do_duty('saying the mode', worker_id, owned);
    end if;
    quarantined := (
        select q.id from net.http_request_queue q
        where q.due >= 'infinity' and q.origin is null and not exists (select from pgnet.claim c where c.id = q.id offset 0)
            and not pgnet.is_paused(q.url)
        order by q.due limit 1) is not null;
    return jsonb_build_object(
        'next_poll', least(next_duty, pgnet.next_poll(worker_id, owned, quarantined)),
        'revision', configuration.revision,
        'generation', configuration.generation,
        'settings', pgnet.settings_in_force(),
        'egress', pgnet.egress_in_force(),
        'hosts', pgnet.host_settings(),
        'policies', pgnet.retry_policy_settings(),
        'mode', mode,
        'stubs', (select s.id from pgnet.stub s order by s.id limit 1) is not null,
        'quarantined', quarantined,
        'callbacks', pgnet.has_callbacks(),
        'dropped', to_jsonb(pgnet.dropped_requests(worker_id, owned)),
        'faults', pgnet.fault_messages());
end
$$;
comment on function pgnet.heartbeat(bigint, bigint[]) is
    'A worker says which requests it owns, and does the duties of all workers: it rescues, acts on '
    'marks, expires. It gets the requests that are no longer its own, the settings, the egress '
    'rules, and when to call again. Raises 08003 for a worker that is not registered, 55000 where '
    'its session has changed.';
