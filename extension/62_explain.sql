-- Why a request waits, or how it ended: net.explain, in words.
--
-- The words are made of facts, and the facts are those that a claim looks at: the row of the queue,
-- its claim, its mark, its attempts, the workers, and the tables of pauses, broken hosts, limits
-- and gates. A caller may not read all of these. So views with the owner's rights give the facts of
-- the caller's own requests, and of other roles' requests numbers only. They are security barriers:
-- no condition of a caller's is asked for a row that the caller may not see.

create function pgnet.caller_reads_all()
    returns boolean
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select pgnet.caller_is_owner() or coalesce((select r.rolbypassrls from pg_roles r where r.rolname = current_user), false)
$$;
comment on function pgnet.caller_reads_all() is
    'Whether row security shows the current role the requests of every role.';

create view pgnet.request_fact with (security_barrier) as
    select q.id, pgnet.host_of_url(q.url) as host, q.requested_by, q.priority, q.created, q.due, q.held, q.origin,
        h.not_before, h.not_after, h.ordering_key, h.gate, q.xmin as row_xmin, q.xmax as row_xmax, q.options, k.marked as cancelled,
        coalesce(a.attempt, 0) as attempts, a.ending, a.status_code, a.error_msg, a.ended as attempt_ended,
        c.id is not null as claimed, c.worker, c.attempt as claimed_attempt, c.claimed as claimed_at, c.progress,
        c.claimed operator(pg_catalog.+) pg_catalog.make_interval(secs => least(
            coalesce(q.timeout_milliseconds, (select pgnet.setting_value('timeout_milliseconds')::integer)),
            (select pgnet.max_timeout_milliseconds())) operator(pg_catalog./) 1000.0::double precision) as deadline,
        w.gone_since, w.stalled_since, w.ended as worker_ended,
        p.host as paused_host, p.since as paused_since, p.reason as pause_reason,
        s.closed_until, s.needs_probe, s.state as breaker, s.since as broken_since, s.reason as broken_by, s.slowed_until, 
        -- As pgnet.claim_requests asks.
        (select exists (
            select from pgnet.host h where h.settings operator(pg_catalog.?|) '{concurrency,rate}'::pg_catalog.text[])) as has_limits
    from net.http_request_queue q
    -- OFFSET 0: a look-up for each row, whatever the statistics say, as in 52_claim.sql.
    left join lateral (
        select c.* from pgnet.claim c where c.id operator(pg_catalog.=) q.id offset 0
    ) c on true
    left join lateral (
        select h.* from pgnet.flow h
        where q.held is not null and h.request_id operator(pg_catalog.=) q.id and h.requested_by operator(pg_catalog.=) q.requested_by offset 0
    ) h on true
    left join lateral (
        select w.gone_since, w.stalled_since, w.ended from pgnet.worker w where w.id operator(pg_catalog.=) c.worker offset 0
    ) w on true
    left join lateral (
        select t.* from pgnet.attempt t where t.request_id operator(pg_catalog.=) q.id order by t.attempt desc limit 1
    ) a on true
    left join lateral (
        select k.marked from pgnet.mark k
        where k.requested_by operator(pg_catalog.=) q.requested_by and k.request_id operator(pg_catalog.=) q.id
            and k.action operator(pg_catalog.=) 'cancel' offset 0
    ) k on true
    left join lateral (
        select t.* from pgnet.pause t
        where t.host operator(pg_catalog.=) any (array[
            '*', pgnet.host_of_url(q.url), pg_catalog.regexp_replace(pgnet.host_of_url(q.url), ':[0-9]+$', '')])
        -- As pgnet.pause_of.
        order by t.host operator(pg_catalog.<>) pgnet.host_of_url(q.url), t.host operator(pg_catalog.=) '*' limit 1
    ) p on true
    left join lateral (
        select s.* from pgnet.host_state s
        where s.host operator(pg_catalog.=) pgnet.host_of_url(q.url) and s.role operator(pg_catalog.=) q.requested_by::pg_catalog.oid offset 0
    ) s on true
    where (q.requested_by operator(pg_catalog.=) (select pgnet.caller_role()) or (select pgnet.caller_reads_all()))
        and not exists (
            select from pgnet.mark m
            where m.requested_by operator(pg_catalog.=) q.requested_by and m.request_id operator(pg_catalog.=) q.id
                and m.action operator(pg_catalog.=) 'forget' offset 0);
comment on view pgnet.request_fact is
    'What there is to say of each request that has not ended. A role sees its own.';

create view pgnet.request_load with (security_barrier) as
    select q.id, w.id as worker, coalesce(w.slots, (select pgnet.setting_value('concurrency')::integer)) as slots, l.in_flight, l.at_host,
        (w.full_places operator(pg_catalog.->>) pg_catalog.concat(q.requested_by::pg_catalog.oid, ' ', pgnet.host_of_url(q.url)))::integer as adapted
    from net.http_request_queue q
    cross join lateral (
        select w.* from pgnet.worker w where w.ended is null and pgnet.session_is_alive(w.pid, w.backend_start) offset 0
    ) w
    cross join lateral (
        select pg_catalog.count(*) as in_flight,
            pg_catalog.count(*) filter (where c.host operator(pg_catalog.=) pgnet.host_of_url(q.url)) as at_host
        from pgnet.claim c where c.worker operator(pg_catalog.=) w.id
    ) l
    where q.requested_by operator(pg_catalog.=) (select pgnet.caller_role()) or (select pgnet.caller_reads_all());
comment on view pgnet.request_load is
    'For each request and each worker that runs: how many requests the worker may have in flight, '
    'how many it has, and how many of these at the host of the request. A role sees its own '
    'requests.';

-- The hosts of other roles' requests are not named.
create view pgnet.request_rival with (security_barrier) as
    select q.id, r.host, r.in_flight
    from net.http_request_queue q
    cross join lateral (
        select case when v.visible then c.host end as host, pg_catalog.count(*) as in_flight
        from pgnet.claim c
        cross join lateral (
            select c.role operator(pg_catalog.=) (select pgnet.caller_role()::pg_catalog.oid) or (select pgnet.caller_reads_all()) as visible
        ) v
        where c.worker is not null
        group by 1
    ) r
    where q.requested_by operator(pg_catalog.=) (select pgnet.caller_role()) or (select pgnet.caller_reads_all());
comment on view pgnet.request_rival is
    'For each request how many requests workers have in flight, by host; the host is NULL for those '
    'of other roles. A role sees its own requests.';

-- The requests of the same role for the same host whose turn comes before, up to 101 of them.
create view pgnet.request_before with (security_barrier) as
    select q.id, b.id as before
    from net.http_request_queue q
    cross join lateral (
        select o.id from net.http_request_queue o
        where o.due is null and o.held is not true and o.origin is null
            and (pgnet.host_of_url(o.url) collate "C") operator(pg_catalog.=) pgnet.host_of_url(q.url) and o.requested_by operator(pg_catalog.=) q.requested_by
            and (o.priority, o.id) operator(pg_catalog.<) (q.priority, q.id)
            and not exists (select from pgnet.claim c where c.id operator(pg_catalog.=) o.id offset 0)
        order by o.priority, o.id limit 101
    ) b
    where q.requested_by operator(pg_catalog.=) (select pgnet.caller_role()) or (select pgnet.caller_reads_all());
comment on view pgnet.request_before is
    'For each request those of its role for its host whose turn comes before, 101 at most. A role '
    'sees its own.';

create type pgnet.reason as (
    -- a word or two, always the same for the same reason
    reason text,
    detail text,
    -- when the reason ends by itself; NULL: that is not known
    until timestamptz,
    -- what to do about it
    hint text
);
comment on type pgnet.reason is 'A row of net.explain().';

create function pgnet.is_copy()
    returns boolean
    language sql stable parallel restricted security definer
    set search_path = pg_catalog, pg_temp
as $$ select pgnet.copy_fault() is not null $$;
comment on function pgnet.is_copy() is
    'Whether this database is a copy that was not adopted.';

-- PostgreSQL keeps no list of locked rows. A row that a transaction has locked, or is about to
-- change, has the number of that transaction as its xmax; or where several share it, a number of
-- another kind, which is taken for an old transaction.
create function pgnet.is_locked(row_xmax xid)
    returns boolean
    language sql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce(row_xmax::text <> '0' and (
        -- The newest transaction with these 32 bits.
        select pg_xact_status((n.next - ((n.next - row_xmax::text::bigint) & 4294967295))::text::xid8) = 'in progress'
        from (select pg_snapshot_xmax(pg_current_snapshot())::text::bigint as next) n
        where n.next - ((n.next - row_xmax::text::bigint) & 4294967295) > 2
    ), false) and row_xmax::text::bigint <> coalesce((pg_current_xact_id_if_assigned()::text::bigint & 4294967295), 0)
$$;
comment on function pgnet.is_locked(xid) is
    'Whether another transaction holds a lock on the row with this xmax.';

-- ---- the words

-- A time in words, to the second.
create function pgnet.time_words(at timestamptz)
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$ select date_trunc('second', at)::text $$;
comment on function pgnet.time_words(timestamptz) is 'A time for a message, to the second.';

create function pgnet.attempt_words(attempts integer, ending text, status_code integer, error_msg text)
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select format('Attempt %s ended with: %s', attempts,
        coalesce(error_msg, 'status ' || status_code::text, ending))
$$;
comment on function pgnet.attempt_words(integer, text, integer, text) is
    'How an attempt ended, after which another one follows.';

create function pgnet.reasons_in_flight(fact pgnet.request_fact)
    returns setof pgnet.reason
    language plpgsql stable parallel restricted
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select 'in flight',
        format('Attempt %s has been in flight since %s', fact.claimed_attempt, pgnet.time_words(fact.claimed_at))
            || coalesce(', ' || fact.progress, '') || '.',
        fact.deadline, format('To give it up: select net.cancel(%s);', fact.id)
    where fact.worker is not null
    union all
    select 'worker lost', case
            when fact.worker_ended is not null then 'The worker that has it has ended: other workers take it over when they look.'
            when fact.gone_since is not null then format('The worker that has it is gone since %s: other workers take it over.',
                pgnet.time_words(fact.gone_since))
            else format('The worker that has it has not looked since %s.', pgnet.time_words(fact.stalled_since)) end,
        fact.gone_since + pgnet.setting_value('rescue_after')::interval,
        case when not pgnet.worker_is_up() then pgnet.how_to_start_a_worker() end
    where fact.worker is not null and (fact.worker_ended is not null or fact.gone_since is not null or fact.stalled_since is not null)
    union all
    select 'recording', 'It has ended, and its outcome cannot be recorded yet: net.check() says why, to the owner.', null, null
    where fact.worker is null
    union all
    select 'cancelled', 'It is being cancelled: its worker closes the connection.', null, null
    where fact.cancelled is not null;
end
$$;
comment on function pgnet.reasons_in_flight(pgnet.request_fact) is
    'What net.explain says of a request that a worker has claimed.';

-- Whatever the caller's session has set: the workers' sessions count.
create function pgnet.modes_of_workers()
    returns text[]
    language sql stable parallel restricted security definer
    set search_path = pg_catalog, pg_temp
as $$
    select array(
        select distinct coalesce(w.mode, pgnet.setting_value('mode')) from pgnet.worker w
        where w.ended is null and pgnet.session_is_alive(w.pid, w.backend_start)
        order by 1)
$$;
comment on function pgnet.modes_of_workers() is
    'The modes that the workers which run have found; none where no worker runs.';

create function pgnet.reasons_of_database()
    returns setof pgnet.reason
    language plpgsql stable parallel restricted
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select 'copy', format('The database "%s" is a copy: no worker serves it before it is adopted.', current_database()), null::timestamptz,
        'If its queue is to be sent from here too: select net.adopt_database();'
    where pgnet.is_copy()
    union all
    select 'no worker', 'No worker is running.', null, pgnet.how_to_start_a_worker()
    where not pgnet.worker_is_up()
    union all
    select 'mode ' || m.mode, case m.mode when 'off' then 'The mode is off: requests wait, and nothing is sent.'
            else 'The mode is record: requests are recorded, and not sent.' end,
        null, 'To the owner net.check() shows each place that sets the mode.'
    from unnest(case when pgnet.worker_is_up() then pgnet.modes_of_workers() else array[pgnet.setting_value('mode')] end) m (mode)
    where m.mode <> 'on';
end
$$;
comment on function pgnet.reasons_of_database() is
    'What net.explain says where nothing is sent from this database.';

create function pgnet.reasons_of_request(fact pgnet.request_fact)
    returns setof pgnet.reason
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select 'uncommitted', 'It is not sent before this transaction commits.', null::timestamptz, null::text
    where pgnet.written_here(fact.row_xmin)
    union all
    select 'replicated', format('It has come by the subscription "%s", and the server that it comes from sends it.', fact.origin), null,
        'Where this server takes the place of that one: drop the subscription, then select net.adopt_database();'
    where fact.origin is not null
    union all
    select 'not before', format('It is not sent before %s.', pgnet.time_words(fact.not_before)), fact.not_before, null
    where fact.not_before > statement_timestamp()
    union all
    select 'not after', format('It ends as expired where it is not sent before %s.', pgnet.time_words(fact.not_after)), fact.not_after, null
    where isfinite(fact.not_after)
    union all
    select 'quarantine', format('It was lost with %s workers, so it is attempted apart from others, as soon as its turn comes.',
            (select count(*) from pgnet.attempt a where a.request_id = fact.id and a.ending = 'lost')), null, null
    where fact.due >= 'infinity'
    union all
    select 'next attempt', format('Attempt %s follows at %s. %s', fact.attempts + 1, pgnet.time_words(fact.due),
            pgnet.attempt_words(fact.attempts, fact.ending, fact.status_code, fact.error_msg)), fact.due, null
    where fact.due < 'infinity'
    union all
    select 'attempts', pgnet.attempt_words(fact.attempts, fact.ending, fact.status_code, fact.error_msg), null, null
    where fact.due is null and fact.attempts > 0
    union all
    select 'marks', 'Workers first carry out more than 2000 calls of net.cancel and net.forget of this role.', null, null
    where (select count(*) from (
            select from pgnet.mark m
            where m.requested_by = fact.requested_by and m.action <> 'retry' and m.retry_at is null limit 2001) m) > 2000
    union all
    select 'locked', 'Another transaction holds a lock on its row of net.http_request_queue.', null,
        'Which one: select pid, query from pg_stat_activity where xact_start is not null and pid <> pg_backend_pid();'
    where pgnet.is_locked(fact.row_xmax);
end
$$;
comment on function pgnet.reasons_of_request(pgnet.request_fact) is
    'What net.explain says of the request itself: its times, its attempts, its row.';

-- With the caller's rights: keys, and the requests that one comes after, are the role's own.
create function pgnet.reasons_of_gates(fact pgnet.request_fact)
    returns setof pgnet.reason
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    blocked record;
    head bigint;
begin
    if fact.gate = 'new' then
        return query
        select 'gate', 'No worker has looked yet which requests it waits for.', null::timestamptz, null::text;
    elsif fact.gate = 'key' then
        select b.* into blocked from pgnet.key_block b
        where b.requested_by = fact.requested_by and b.ordering_key = fact.ordering_key;
        -- The request of the key whose gate is open.
        head := (
            select f.request_id from pgnet.flow f
            where f.ordering_key = fact.ordering_key and f.requested_by = fact.requested_by and f.gate is null limit 1);
        return query
        select 'key', case when blocked.head is not null then format('Its ordering_key "%s" is blocked by request %s, which has ended as %s: %s.',
                    fact.ordering_key, blocked.head, blocked.state,
                    coalesce(rtrim(blocked.error_msg, '.'), 'status ' || blocked.status_code, 'no answer'))
                when head is not null then format('It waits behind its ordering_key "%s", whose head is request %s.', fact.ordering_key, head)
                else format('It waits behind its ordering_key "%s", whose next request workers are about to choose.', fact.ordering_key) end,
            null::timestamptz,
            case when blocked.head is not null then format('The ways out: select net.retry(%1$s); or select net.unblock(%2$L);',
                    blocked.head, fact.ordering_key)
                when head is not null then format('Why that one waits: select * from net.explain(%s);', head) end;
    elsif fact.gate = 'ids' then
        return query
        select 'after', format('It is sent after requests that have not ended: %s%s.', string_agg(d.after_id::text, ', ' order by d.after_id),
                case when count(*) = 10 then ' and perhaps more' else '' end),
            null::timestamptz, format('Why the first of them waits: select * from net.explain(%s);', min(d.after_id))
        from (
            select d.after_id from pgnet.dependency d where d.request_id = fact.id order by d.after_id limit 10
        ) d
        having count(*) > 0;
    end if;
end
$$;
comment on function pgnet.reasons_of_gates(pgnet.request_fact) is
    'What net.explain says of the requests that it waits for.';

create function pgnet.reasons_of_limits(fact pgnet.request_fact)
    returns setof pgnet.reason
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    -- The same as pgnet.host_room asks, without its locks.
    limits record;
begin
    if fact.has_limits is not true then
        return;
    end if;
    limits := pgnet.limits_of_host(fact.host);
    return query
    select 'limited', format('The host %s may have %s in flight at once, and has %s.', fact.host,
            case limits.concurrency when 1 then '1 request' else format('%s requests', limits.concurrency) end, limits.in_flight),
        null::timestamptz, 'The limit was set by net.configure_host: select * from net.hosts;'
    where limits.in_flight >= limits.concurrency
    union all
    select 'limited', format('The host %s may be sent %s, and the next request at %s.', fact.host,
            replace(limits.rate, '/', ' requests a '), to_char(limits.next_token, 'HH24:MI:SS.MS')),
        limits.next_token, 'The limit was set by net.configure_host: select * from net.hosts;'
    where limits.next_token > statement_timestamp();
end
$$;
comment on function pgnet.reasons_of_limits(pgnet.request_fact) is
    'What net.explain says where a limit of the host leaves no room.';

create function pgnet.reasons_of_host(fact pgnet.request_fact)
    returns setof pgnet.reason
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select 'paused', concat_ws(' ', format('%s paused since %s.',
                case when fact.paused_host = '*' then 'All hosts are' else format('The host %s is', fact.paused_host) end,
                pgnet.time_words(fact.paused_since)), fact.pause_reason), null::timestamptz,
        format('Whoever may steer resumes it: select net.resume(%s);', case when fact.paused_host <> '*' then quote_literal(fact.paused_host) end)
    where fact.paused_host is not null
    union all
    select 'told to wait', format('The host %s has asked to wait until %s.', fact.host, pgnet.time_words(fact.slowed_until)), fact.slowed_until, null
    where fact.slowed_until > statement_timestamp()
    union all
    select 'broken', format('The host %s is broken since %s: %s. %s', fact.host, pgnet.time_words(fact.broken_since), rtrim(fact.broken_by, '.'),
            case when fact.breaker = 'half_open' then 'A probe is in flight.'
                when fact.closed_until > statement_timestamp() then format('A probe is sent at %s.', pgnet.time_words(fact.closed_until))
                else 'The next request is a probe.' end),
        case when fact.breaker = 'open' and fact.closed_until > statement_timestamp() then fact.closed_until end,
        'The circuit breaker and its settings: select * from net.hosts;'
    where fact.needs_probe;
end
$$;
comment on function pgnet.reasons_of_host(pgnet.request_fact) is
    'What net.explain says of the host: whether its requests are sent now.';

create function pgnet.reasons_of_workers(fact pgnet.request_fact)
    returns setof pgnet.reason
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    with load as materialized (
        select l.*, l.in_flight >= l.slots as is_full, l.adapted is not null as is_adapted,
            l.at_host >= greatest(1, l.slots * 3 / 4) as host_is_full
        from pgnet.request_load l where l.id = fact.id
    )
    select 'busy', format('All %s slots of the %s running are taken: %s.', (select sum(l.slots) from load l),
            case (select count(*) from load) when 1 then 'worker' else 'workers' end,
            (select string_agg(format('%s by %s', t.in_flight, coalesce(t.host, 'requests of other roles')), ', ' order by t.in_flight desc)
            from (select r.* from pgnet.request_rival r where r.id = fact.id order by r.in_flight desc limit 10) t)), null::timestamptz, 'Another worker helps, or shorter timeouts: docs/capacity.md.'
    where (select bool_and(l.is_full) from load l)
    union all
    select 'host busy', format('The host %s has all the slots that one host may have, three quarters of those of each worker: %s.', fact.host,
            (select sum(l.at_host) from load l)), null, 'Another worker helps, or shorter timeouts: docs/capacity.md.'
    where (select bool_and(l.is_full or l.host_is_full) and not bool_and(l.is_full) from load l)
    union all
    select 'adaptive', format('Workers have %s in flight at the host %s, as many as it has shown that it can bear.',
            (select case sum(l.adapted) when 1 then '1 request' else format('%s requests', sum(l.adapted)) end from load l), fact.host), null,
        'More follow as it answers. How many is a setting, too: select net.configure_host(host, ''{"adaptive": false}'');'
    where (select bool_and(l.is_full or l.host_is_full or l.is_adapted) and not bool_and(l.is_full or l.host_is_full) from load l);
end
$$;
comment on function pgnet.reasons_of_workers(pgnet.request_fact) is
    'What net.explain says where the workers have no room for the request.';

-- What holds a waiting request back, in the order in which it is told. Where nothing does, its turn
-- comes.
create function pgnet.reasons_to_wait(fact pgnet.request_fact)
    returns setof pgnet.reason
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    reason pgnet.reason;
    free boolean := true;
begin
    for reason in
        select * from pgnet.reasons_of_database()
        union all
        select * from pgnet.reasons_of_request(fact)
        union all
        select * from pgnet.reasons_of_gates(fact)
        union all
        select * from pgnet.reasons_of_host(fact)
        union all
        select * from pgnet.reasons_of_limits(fact)
    loop
        return next reason;
        free := free and reason.reason in ('attempts', 'not after', 'mode record');
    end loop;
    if free then
        for reason in select * from pgnet.reasons_of_workers(fact) loop
            return next reason;
            free := false;
        end loop;
    end if;
    if free then
        return query
        select 'turn', format('Nothing holds it back: a worker takes it when its turn comes. Before it are %s of this role for this host.',
                case t.before when 0 then 'no requests' when 1 then '1 request' when 101 then 'more than 100 requests'
                    else format('%s requests', t.before) end),
            null::timestamptz, null::text
        from (select count(*) as before from pgnet.request_before b where b.id = fact.id) t;
    end if;
end
$$;
comment on function pgnet.reasons_to_wait(pgnet.request_fact) is
    'What net.explain says of a request that waits.';

create function pgnet.holding_reasons(request_id bigint)
    returns setof pgnet.reason
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    fact pgnet.request_fact;
begin
    select f.* into fact from pgnet.request_fact f where f.id = request_id;
    return query
    select r.* from pgnet.reasons_of_request(fact) r where r.reason not in ('attempts', 'not after')
    union all
    select r.* from pgnet.reasons_of_gates(fact) r
    union all
    select r.* from pgnet.reasons_of_host(fact) r;
end
$$;
comment on function pgnet.holding_reasons(bigint) is
    'What net.explain says that is about the request itself and its host.';

create function pgnet.reason_of_end(request_id bigint)
    returns setof pgnet.reason
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
begin
    return query
    select e.state::text,
        format('It ended as %s at %s, after %s%s', e.state, pgnet.time_words(e.ended),
            case e.attempts when 1 then '1 attempt' else format('%s attempts', e.attempts) end,
            coalesce(', with status ' || e.status_code, '')) || coalesce(': ' || e.error_msg, '.'),
        null::timestamptz,
        case when k.marked then 'It was sent again: net.requests has the new one, with retry_of.'
            when e.kept then format('To send it again: select net.retry(%s%s);', e.id, case e.state when 'unknown' then ', even_unknown => true' else '' end) end
    from (
        select r.id, r.requested_by, r.state, r.created as ended, r.attempts, r.status_code, r.error_msg,
            exists (select from pgnet.failed f where f.id = r.id) as kept, 1 as place
        from net._http_response r where r.id = request_id
        union all
        select f.id, f.requested_by, f.state, f.failed, f.attempts, f.status_code, f.error_msg, true, 2
        from pgnet.failed f where f.id = request_id
    ) e
    cross join lateral (
        select exists (
            select from pgnet.mark m where m.requested_by = e.requested_by and m.request_id = e.id and m.action = 'retry') as marked
    ) k
    where not exists (select from pgnet.mark m where m.requested_by = e.requested_by and m.request_id = e.id and m.action = 'forget')
    order by e.place
    limit 1;
end
$$;
comment on function pgnet.reason_of_end(bigint) is
    'What net.explain says of a request that has ended; no row where there is no such request.';

create function net.explain(
    -- the request's id
    id bigint
)
    returns table (
        -- a word or two, always the same for the same reason
        reason text,
        -- the same in words
        detail text,
        -- when the reason ends by itself; NULL: that is not known
        until timestamptz,
        -- what to do about it
        hint text
    )
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    fact pgnet.request_fact;
begin
    select f.* into fact from pgnet.request_fact f where f.id = explain.id;
    if fact.claimed then
        return query select * from pgnet.reasons_in_flight(fact);
    elsif fact.cancelled is not null then
        return query select 'cancelled', pgnet.cancellation_message(false, fact.attempts), null::timestamptz,
            case when not pgnet.worker_is_up() then 'A worker that looks stores the response. ' || pgnet.how_to_start_a_worker() end;
    elsif fact.id is not null then
        return query select * from pgnet.reasons_to_wait(fact);
    else
        return query select * from pgnet.reason_of_end(explain.id);
        if not found then
            return query select 'not there', case when explain.id is null then 'The id is NULL.'
                    else format('There is no request %s of role "%s".', explain.id, current_user) end,
                null::timestamptz,
                'Its response may be older than the setting ttl, or the transaction that queued it was rolled back.';
        end if;
    end if;
end
$$;
comment on function net.explain(bigint) is
    'Why a request waits, where it is, or how it ended: a row for each reason, in words, with the '
    'time at which the reason ends by itself and what to do about it. For an id that is NULL or not '
    'there a row says so. A role asks for its own requests; of those of others it learns numbers '
    'only.';

-- The first words of net.explain, for other views and functions.
create function pgnet.explain_words(request_id bigint)
    returns text
    language sql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    select string_agg(concat_ws(' ', e.detail, e.hint), ' ')
    from net.explain(request_id) e
$$;
comment on function pgnet.explain_words(bigint) is
    'What net.explain says, as one text.';
