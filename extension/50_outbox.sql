-- What a worker may do with the queue: a handful of functions, and no table. Owner's rights, pinned search_path.
-- The plans must not depend on how full a table was when they were made: index look-ups, whatever the statistics say.

create function net._alive(worker_pid integer, worker_backend_start timestamptz)
    returns boolean
    language sql stable parallel restricted security definer
    set search_path = pg_catalog, pg_temp
as $$
    select exists (select from pg_stat_get_activity(worker_pid) a where a.backend_start = worker_backend_start)
$$;
comment on function net._alive(integer, timestamptz) is
    'Whether the session with this pid and start is still there: what nobody can forge, unlike an advisory lock.';
revoke all on function net._alive(integer, timestamptz) from public;

create function net._worker_is_up()
    returns boolean
    language sql stable parallel restricted security definer
    set search_path = pg_catalog, pg_temp
as $$
    select exists (select from net.worker w where net._alive(w.pid, w.backend_start))
$$;
comment on function net._worker_is_up() is 'Whether a worker serves this database now.';

create function net._register(
    -- backend: the worker is this session; process: it only talks through this session
    worker_kind text,
    -- for a worker whose connection broke: the id and the secret it was given, and the requests it still works on
    known_id bigint default null,
    known_secret uuid default null,
    holding bigint[] default '{}',
    out worker_id bigint,
    out worker_secret uuid
)
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    session_start timestamptz := (select a.backend_start from pg_stat_get_activity(pg_backend_pid()) a);
begin
    update net.worker w set pid = pg_backend_pid(), backend_start = session_start, gone_since = null
    where w.id = known_id and w.secret = known_secret
    returning w.id, w.secret into worker_id, worker_secret;
    if worker_id is not null then
        -- What it does not hold it never saw: the answer to its last claim was lost with the connection.
        delete from net.claim c where c.worker = worker_id and c.id <> all (holding);
        return;
    end if;
    -- One session is one worker: an earlier run in it that was broken off left this.
    delete from net.claim c using net.worker w
    where w.pid = pg_backend_pid() and w.backend_start = session_start and c.worker = w.id;
    delete from net.worker w where w.pid = pg_backend_pid() and w.backend_start = session_start;
    insert into net.worker (kind, pid, backend_start) values (worker_kind, pg_backend_pid(), session_start)
    returning id, secret into worker_id, worker_secret;
end
$$;
comment on function net._register(text, bigint, uuid, bigint[]) is
    'Makes the calling session a worker; with the id and secret of an earlier registration, it goes on as that worker and keeps the claims it still holds.';

create function net._claim(
    -- who claims
    worker_id bigint,
    -- how many requests at most
    slots integer,
    -- how many of them for one host where several wait, and where only one does
    host_quota integer,
    lone_quota integer,
    -- hosts that get none: the worker is full of them
    full_hosts text[],
    -- how many bytes of bodies at most; one request always fits
    max_bytes bigint,
    -- hosts take turns: the scan starts behind this one
    after_host text
)
    returns table (
        id bigint, token text, attempt integer, method text, url text, headers text, body bytea,
        timeout_milliseconds integer, options text, host text, revision bigint
    )
    language plpgsql volatile parallel unsafe security definer cost 1000 rows 100
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_mergejoin = off
    set enable_material = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    claim_token uuid := gen_random_uuid();
    quota integer := case
        when (select q.host from net._queue q order by q.host limit 1)
            = (select q.host from net._queue q order by q.host desc limit 1) then lone_quota
        else host_quota end;
begin
    return query
    with recursive later (name) as (
        (select q.host from net._queue q where q.host > after_host order by q.host limit 1)
        union all
        select (select q.host from net._queue q where q.host > l.name order by q.host limit 1)
        from later l where l.name is not null
    ), earlier (name) as (
        (select q.host from net._queue q where q.host <= after_host order by q.host limit 1)
        union all
        select (select q.host from net._queue q
                where q.host > e.name and q.host <= after_host order by q.host limit 1)
        from earlier e where e.name is not null
    ), ready as materialized (
        select r.*
        from (
            select name from later where name is not null
            union all
            select name from earlier where name is not null
        ) h
        cross join lateral (
            select q.id, q.method, q.url, q.headers, q.body, q.timeout_milliseconds, q.options, q.host,
                coalesce(octet_length(q.body), 0) as size
            from net._queue q
            where q.host = h.name
                and not exists (select from net.claim c where c.id = q.id)
            order by q.priority, q.id
            limit quota
            for update of q skip locked
        ) r
        where h.name <> all (full_hosts)
        limit slots
    ), bounded as (
        select r.id, r.method, r.url, r.headers, r.body, r.options, r.host,
            -- Looked up here, in the snapshot that sees the request.
            coalesce(r.timeout_milliseconds, (select net._current_setting('timeout_milliseconds')::integer)) as timeout_milliseconds,
            sum(r.size) over (rows between unbounded preceding and 1 preceding) as size_before
        from ready r
    ), claimed as (
        insert into net.claim as c (id, host, worker, token, attempt, deadline)
        select b.id, b.host, worker_id, claim_token,
            1 + (select count(*) from net.attempt a where a.request_id = b.id),
            clock_timestamp() + make_interval(secs => b.timeout_milliseconds / 1000.0 + 60)
        from bounded b
        where coalesce(b.size_before, 0) < max_bytes
        on conflict on constraint claim_pkey do nothing
        returning c.id, c.attempt
    )
    select c.id, claim_token::text, c.attempt, upper(b.method collate "C"), b.url, b.headers::text, b.body,
        b.timeout_milliseconds, b.options::text, b.host,
        (select f.revision from net.configuration f)
    from claimed c
    join bounded b on b.id = c.id;
end
$$;
comment on function net._claim(bigint, integer, integer, integer, text[], bigint, text) is
    'Takes ready requests for a worker, host by host in turns, and never one that another transaction holds.';

-- Records outcomes for those claims that still carry their token. Gives the ids that somebody else holds a lock on.
create function net._store(outcomes json)
    returns bigint[]
    language plpgsql volatile parallel unsafe security definer cost 1000
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
    held_up bigint[];
begin
    with held as materialized (
        select r.*, c.attempt, q.id is not null as locked, v.seen,
            q.method, q.url, q.headers as request_headers, q.body, q.timeout_milliseconds, q.requested_by,
            q.created as requested, q.priority, q.context, q.options
        from json_to_recordset(outcomes) as r (
            id bigint, token uuid, state net.request_state, status_code integer, content_type text, headers jsonb,
            content text, content_base64 text, timed_out boolean, error_msg text,
            header_list jsonb, final_url text, redirects integer, http_version text, address inet,
            name_ms real, connect_ms real, tls_ms real, first_byte_ms real, total_ms real
        )
        cross join lateral (
            select c.attempt from net.claim c where c.id = r.id and c.token = r.token for update of c
        ) c
        left join lateral (
            select q.* from net.http_request_queue q where q.id = r.id for update of q skip locked
        ) q on true
        left join lateral (
            select true as seen from net.http_request_queue q where q.id = r.id
        ) v on true
    ), dequeued as (
        delete from net.http_request_queue q where q.id = any (array(select h.id from held h where h.locked))
    ), unclaimed as (
        delete from net.claim c where c.id = any (array(select h.id from held h where h.locked or h.seen is null))
    ), forgotten as (
        delete from net.attempt a where a.request_id = any (
            array(select h.id from held h where h.attempt > 1 and (h.locked or h.seen is null)))
    ), failed as (
        insert into net.failed (
            id, method, url, headers, body, timeout_milliseconds, requested_by, created, priority, context, options,
            attempts, status_code, error_msg
        )
        select h.id, h.method, h.url, h.request_headers, h.body, h.timeout_milliseconds, h.requested_by, h.requested,
            h.priority, h.context, h.options, h.attempt, h.status_code, h.error_msg
        from held h
        where h.locked and h.state = 'failed'
    ), recorded as (
        insert into net._http_response (
            id, status_code, content_type, headers, content, timed_out, error_msg, state, content_bytes, attempts,
            context, method, url, requested_by, requested, header_list, final_url, redirects, http_version, address,
            name_ms, connect_ms, tls_ms, first_byte_ms, total_ms
        )
        select h.id, h.status_code, h.content_type, h.headers, h.content, h.timed_out, h.error_msg, h.state,
            decode(h.content_base64, 'base64'), h.attempt, h.context, h.method, h.url, h.requested_by, h.requested,
            h.header_list, h.final_url, h.redirects, h.http_version, h.address,
            h.name_ms, h.connect_ms, h.tls_ms, h.first_byte_ms, h.total_ms
        from held h
        where h.locked
    )
    select array_agg(h.id) into held_up from held h where h.seen and not h.locked;
    return coalesce(held_up, '{}');
end
$$;
comment on function net._store(json) is
    'One batch of net._record: ends the requests whose claim still carries the token; gives the ids that a lock of somebody holds up.';
revoke all on function net._store(json) from public;

create function net._record(
    -- an array of objects: id, token, state, and the columns of net._http_response that the outcome gives, content_bytes as content_base64
    outcomes json
)
    -- the ids that could not be recorded yet, because another transaction holds their row, or something refuses it
    returns bigint[]
    language plpgsql volatile parallel unsafe security definer cost 10000
    set search_path = pg_catalog, pg_temp
as $$
declare
    size integer := json_array_length(outcomes);
    fault text;
begin
    return net._store(outcomes);
exception
    when transaction_rollback or insufficient_resources or operator_intervention or system_error
        or object_not_in_prerequisite_state or read_only_sql_transaction then
        -- Not a row's fault: the worker keeps its outcomes and comes again.
        raise;
    when others then
        if size > 1 then
            return net._record(net._slice(outcomes, 1, size / 2)) || net._record(net._slice(outcomes, size / 2 + 1, size));
        end if;
        get stacked diagnostics fault = message_text;
        begin
            return net._store(json_build_array(json_build_object(
                'id', outcomes -> 0 -> 'id', 'token', outcomes -> 0 -> 'token', 'state', 'failed', 'timed_out', false,
                'error_msg', 'The response could not be recorded: ' || fault)));
        exception when others then
            raise warning using
                message = format('the outcome of request %s cannot be recorded: %s', outcomes -> 0 ->> 'id', fault),
                hint = 'Is there a trigger or a constraint on net._http_response? The worker tries again.';
            return array[(outcomes -> 0 ->> 'id')::bigint];
        end;
end
$$;
comment on function net._record(json) is
    'Records outcomes, fenced by the tokens of their claims. A batch that fails is halved down to the row at fault, which is recorded as an error without content. Gives the ids that are held up, for the worker to come again.';

create function net._slice(elements json, first integer, last integer)
    returns json
    language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select json_agg(e.value order by e.ordinality)
    from json_array_elements(elements) with ordinality e
    where e.ordinality between first and last
$$;
comment on function net._slice(json, integer, integer) is 'The elements of an array from first to last, counted from 1.';
revoke all on function net._slice(json, integer, integer) from public;

create function net._release(
    -- the requests to give back, and the tokens of their claims
    ids bigint[], tokens uuid[],
    -- what became of the attempt, for net.attempt; NULL where none was begun
    reason text
)
    returns void
    language sql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
as $$
    with released as (
        delete from net.claim c using unnest(ids, tokens) r (id, token)
        where c.id = r.id and c.token = r.token
        returning c.id, c.attempt, c.claimed
    )
    insert into net.attempt (request_id, attempt, started, ended, error_msg)
    select r.id, r.attempt, r.claimed, clock_timestamp(), reason from released r where reason is not null
    on conflict do nothing
$$;
comment on function net._release(bigint[], uuid[], text) is 'Gives claimed requests back: others may take them at once.';

create function net._deregister(worker_id bigint, worker_secret uuid)
    returns void
    language sql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
as $$
    with gone as (delete from net.worker w where w.id = worker_id and w.secret = worker_secret returning w.id)
    delete from net.claim c using gone where c.worker = gone.id
$$;
comment on function net._deregister(bigint, uuid) is 'Ends a registration and frees whatever the worker still holds.';

-- Frees the claims of workers that are gone, and those past their deadline. Gives the seconds until more fall free; NULL
-- where none will.
create function net._rescue()
    returns double precision
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
    set jit = off
as $$
declare
    rescue_after interval := net._current_setting('rescue_after');
begin
    update net.worker w set gone_since = clock_timestamp()
    where w.id in (
        select g.id from net.worker g
        where g.gone_since is null and not net._alive(g.pid, g.backend_start)
        for update skip locked);
    with gone as materialized (
        -- A worker that was a backend died with it; a process may still come back over a new connection.
        select w.id from net.worker w
        where w.gone_since < clock_timestamp() - case w.kind when 'backend' then interval '0' else rescue_after end
        for update skip locked
    ), stale as materialized (
        select c.id from net.claim c
        where c.worker in (select g.id from gone g)
            or c.deadline < clock_timestamp()
            or not exists (select from net.worker w where w.id = c.worker)
        for update skip locked
    ), freed as (
        delete from net.claim c using stale s where c.id = s.id returning c.id, c.attempt, c.claimed
    )
    insert into net.attempt (request_id, attempt, started, ended, error_msg)
    select f.id, f.attempt, f.claimed, clock_timestamp(), 'The worker was lost.' from freed f
    on conflict do nothing;
    delete from net.worker w
    where w.gone_since < clock_timestamp() - rescue_after - interval '1 minute'
        and not exists (select from net.claim c where c.worker = w.id);
    return (
        select case when min(w.gone_since) is not null then
            greatest(0, extract(epoch from min(w.gone_since) + rescue_after - clock_timestamp())) + 0.02 end
        from net.worker w
        where w.gone_since is not null and exists (select from net.claim c where c.worker = w.id));
end
$$;
comment on function net._rescue() is
    'Frees the claims of workers whose session has been gone for rescue_after, and those past their deadline. Gives the seconds until more fall free.';
revoke all on function net._rescue() from public;

-- Deletes what is past its time, in batches. Gives the seconds until more falls due; NULL where nothing is kept.
create function net._expire()
    returns double precision
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
declare
    ttl interval := net._current_setting('ttl');
    ttl_failed interval := net._current_setting('ttl_failed');
    deleted bigint;
    deleted_failed bigint;
    next_due timestamptz;
begin
    delete from net._http_response r where r.id = any (array(
        select o.id from net._http_response o where o.created < clock_timestamp() - ttl
        order by o.created limit 5000 for update skip locked));
    get diagnostics deleted = row_count;
    delete from net.failed f where f.id = any (array(
        select o.id from net.failed o where o.failed < clock_timestamp() - ttl_failed
        order by o.failed limit 5000 for update skip locked));
    get diagnostics deleted_failed = row_count;
    if greatest(deleted, deleted_failed) = 5000 then
        return 0.1;
    end if;
    next_due := least(
        (select min(r.created) + ttl from net._http_response r),
        (select min(f.failed) + ttl_failed from net.failed f));
    return case when next_due is not null then greatest(1, extract(epoch from next_due - clock_timestamp())) end;
end
$$;
comment on function net._expire() is 'Deletes responses past ttl and failed requests past ttl_failed, 5,000 at a time; gives the seconds until more is due.';
revoke all on function net._expire() from public;

create function net._tend(worker_id bigint)
    -- settings, egress, hosts, the revision of all three, the generation that workers are to be of, and next_look: after how many seconds to come again
    returns jsonb
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
    set jit = off
as $$
declare
    configuration record;
    next_rescue double precision;
    next_expiry double precision;
    next_look double precision := extract(epoch from net._current_setting('poll_interval')::interval);
begin
    -- Read first: what changes while the rest is read has a higher number.
    select f.revision, f.generation into configuration from net.configuration f;
    next_rescue := net._rescue();
    next_expiry := net._expire();
    if net._current_setting('wake_up') = 'poll' or exists (
        -- Its COMMIT PREPARED may come from a session that cannot know what was queued.
        select from pg_prepared_xacts p
        where p.database = current_database() and p.prepared > clock_timestamp() - interval '10 minutes')
    then
        next_look := least(next_look, 1);
    end if;
    if exists (select from net.worker w where w.id <> worker_id and net._alive(w.pid, w.backend_start)) then
        next_look := least(next_look, 2);
    end if;
    return jsonb_build_object(
        -- What is recorded until then expires a ttl later: a short one has to be looked after.
        'next_look', least(next_look, next_expiry, next_rescue, greatest(1, extract(epoch from least(
            net._current_setting('ttl')::interval, net._current_setting('ttl_failed')::interval)))),
        'revision', configuration.revision,
        'generation', configuration.generation,
        'settings', (select jsonb_object_agg(k.name,
                        case k.kind when 'interval' then to_jsonb(extract(epoch from net._current_setting(k.name)::interval))
                            when 'integer' then to_jsonb(net._current_setting(k.name)::bigint)
                            else to_jsonb(net._current_setting(k.name)) end)
                     from net._known_settings() k)
            || jsonb_build_object('server_encoding', current_setting('server_encoding')),
        'hosts', net._host_settings(),
        'egress', jsonb_build_object(
            'egress', net._current_setting('egress'),
            'ports', net._current_setting('egress_ports'),
            'allow_networks', (select coalesce(jsonb_agg(r.pattern), '[]') from net.egress_rule r where r.kind = 'network' and r.allow),
            'deny_networks', (select coalesce(jsonb_agg(r.pattern), '[]') from net.egress_rule r where r.kind = 'network' and not r.allow),
            'allow_hosts', (select coalesce(jsonb_agg(r.pattern), '[]') from net.egress_rule r where r.kind = 'host' and r.allow),
            -- The database's own door stays shut even where its network is allowed.
            'deny_endpoints', (select jsonb_agg(distinct a.address || ':' || current_setting('port'))
                from unnest(array['127.0.0.1', '[::1]', case family(inet_server_addr()) when 6 then '[' || host(inet_server_addr()) || ']' else host(inet_server_addr()) end]) a (address) where a.address is not null),
            -- Where the worker is on the server's own host, on none of that host's addresses.
            'own_port', case when inet_server_addr() is null or inet_server_addr() = inet_client_addr() then current_setting('port')::integer end,
            'deny_hosts', (select coalesce(jsonb_agg(r.pattern), '[]') from net.egress_rule r where r.kind = 'host' and not r.allow)));
end
$$;
comment on function net._tend(bigint) is
    'What a worker does each time it looks: rescue, expiry; gives its settings, the egress rules and when to look again.';

revoke all on function
    net._register(text, bigint, uuid, bigint[]),
    net._claim(bigint, integer, integer, integer, text[], bigint, text),
    net._record(json),
    net._release(bigint[], uuid[], text),
    net._deregister(bigint, uuid),
    net._tend(bigint)
from public;
