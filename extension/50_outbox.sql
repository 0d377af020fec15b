-- What a worker may do with the queue: a handful of functions, and no table. Owner's rights, pinned search_path.
-- The plans must not depend on how full a table was when they were made: index look-ups, whatever the statistics say. A healthy
-- queue is empty each time autovacuum looks, and with statistics of empty tables the planner takes any order of a join for as good
-- as any other, and any index. So what is looked up for a row is a sub-select with OFFSET 0, of which it cannot make a join; what
-- is changed or deleted is given as an array of ids; and ORDER BY, with enable_sort off, names the index to read.

create function net._alive(worker_pid integer, worker_backend_start timestamptz)
    returns boolean
    language sql stable parallel restricted security definer
    set search_path = pg_catalog, pg_temp
as $$
    select exists (select from pg_stat_get_activity(worker_pid) a where a.backend_start = worker_backend_start)
$$;
comment on function net._alive(integer, timestamptz) is
    'Whether the session with this pid and start is still there: what nobody can forge, unlike an advisory lock.';

create function net._worker_is_up()
    returns boolean
    language sql stable parallel restricted security definer
    set search_path = pg_catalog, pg_temp
as $$
    select exists (select from net.worker w where w.ended is null and net._alive(w.pid, w.backend_start))
$$;
comment on function net._worker_is_up() is 'Whether a worker serves this database now.';

create function net._idempotency_key(id bigint, created timestamptz, method text, options jsonb)
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select case
        when options ? 'idempotency_key' then options ->> 'idempotency_key'
        when upper(method collate "C") not in ('GET', 'HEAD', 'PUT', 'DELETE', 'OPTIONS') then
            md5(concat_ws(':', (select d.key_namespace from net.database d), id, extract(epoch from created)))::uuid::text
    end
$$;
comment on function net._idempotency_key(bigint, timestamptz, text, jsonb) is
    'The idempotency key of a request: what was asked for; of methods that are not idempotent one that is the same for each attempt and no other request; else NULL.';
revoke all on function net._idempotency_key(bigint, timestamptz, text, jsonb) from public;

-- Ends a queued request that has no answer to show.
create function net._end(id bigint, state text, error_msg text, attempts integer)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    path text;
begin
    with request as materialized (
        select q.* from net.http_request_queue q where q.id = _end.id
    ), dequeued as (
        delete from net.http_request_queue q where q.id = _end.id
    ), unclaimed as (
        delete from net.claim c where c.id = _end.id
    ), recorded as (
        insert into net._http_response (
            id, state, timed_out, error_msg, attempts, context, method, url, requested_by, requested, retry_of
        )
        select r.id, _end.state::net.request_state, false, _end.error_msg, _end.attempts, r.context, r.method, r.url,
            r.requested_by, r.created, r.retry_of
        from request r
    ), failed as (
        insert into net.failed (
            id, method, url, headers, body, timeout_milliseconds, requested_by, created, priority, context, options,
            retry_of, state, attempts, error_msg, idempotency_key
        )
        select r.id, r.method, r.url, r.headers, r.body, r.timeout_milliseconds, r.requested_by, r.created, r.priority,
            r.context, r.options, r.retry_of, _end.state::net.request_state, _end.attempts, _end.error_msg,
            net._idempotency_key(r.id, r.created, r.method, r.options)
        from request r
        where _end.state in ('failed', 'unknown')
    )
    select net._use_owners_path() into path;
end
$$;
comment on function net._end(bigint, text, text, integer) is 'Ends a queued request that has no answer to show: with a response that says why.';
revoke all on function net._end(bigint, text, text, integer) from public;

-- Frees claims: others may take the requests at once. What an at_most_once request's attempt did nobody knows, so that it ends;
-- so does a request that was lost with max_losses workers, and from the second one on it is attempted alone. A row that
-- somebody else holds a lock on keeps its claim until the next look.
create function net._free(
    -- the requests; NULL means none
    ids bigint[],
    -- what became of the attempt
    reason text,
    -- lost: with its worker; stopped: the worker ended in order
    ending text
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    request record;
    max_losses integer := net._current_setting('max_losses')::integer;
    fate text;
    message text;
    path text;
begin
    for request in
        select q.*, c.attempt, c.claimed, v.seen, q.id is not null as locked, c.id as claim_id,
            (select count(*) from net.attempt a where a.request_id = c.id and a.ending = 'lost') + 1 as losses
        from net.claim c
        left join lateral (
            select q.* from net.http_request_queue q where q.id = c.id for update of q skip locked
        ) q on true
        left join lateral (
            select true as seen from net.http_request_queue q where q.id = c.id offset 0
        ) v on true
        where c.id = any (ids)
        for update of c skip locked
    loop
        continue when request.seen and not request.locked;
        if not request.locked then -- its requester has deleted it
            delete from net.claim c where c.id = request.claim_id;
            continue;
        end if;
        fate := null;
        if request.options ->> 'delivery' = 'at_most_once' then
            fate := 'unknown';
            message := reason || ' Whether the request was received is unknown, and it is not sent again.';
        elsif ending = 'lost' and request.losses >= max_losses then
            fate := 'failed';
            message := format('%s %s workers were lost with it, and it is not tried again.', reason, request.losses);
        end if;
        if fate is null then
            with attempted as (
                insert into net.attempt (request_id, attempt, requested_by, ending, started, ended, error_msg)
                values (
                    request.id, greatest(request.attempt, 1 + (select max(a.attempt) from net.attempt a where a.request_id = request.id)),
                    request.requested_by, _free.ending, request.claimed, clock_timestamp(), reason)
                on conflict do nothing
            ), quarantined as (
                update net.http_request_queue q set due = 'infinity', waits_since = clock_timestamp()
                where q.id = request.id and _free.ending = 'lost' and request.losses >= 2
            ), unclaimed as (
                delete from net.claim c where c.id = request.id
            )
            select net._use_owners_path() into path;
            perform net._pin_path();
        else
            begin
                perform net._end(request.id, fate, message, request.attempt);
            exception when others then
                raise warning using
                    message = format('the outcome of request %s cannot be recorded: %s', request.id, sqlerrm),
                    hint = 'Is there a trigger or a constraint on net._http_response? It is tried again.';
            end;
        end if;
    end loop;
end
$$;
comment on function net._free(bigint[], text, text) is
    'Frees the claims of requests whose attempt ended without anybody''s knowing how, with a row in net.attempt; an at_most_once request ends as unknown, one that was lost with max_losses workers as failed.';
revoke all on function net._free(bigint[], text, text) from public;

create function net._register(
    -- backend: the worker is this session; process: it only talks through this session
    worker_kind text,
    -- for a worker whose connection broke: the id and the secret it was given, and the requests it still works on
    known_id bigint default null,
    known_secret uuid default null,
    holding bigint[] default '{}',
    -- where it runs, and which version it is, for net.workers
    worker_host text default null,
    worker_version text default null,
    out worker_id bigint,
    out worker_secret uuid
)
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    session_start timestamptz := (select a.backend_start from pg_stat_get_activity(pg_backend_pid()) a);
begin
    perform net._require_worker();
    -- ANALYZE, REINDEX and their like run the functions of an index as its owner, in a session that may be a worker's or a
    -- superuser's. There PostgreSQL refuses this statement, which does nothing elsewhere.
    execute 'unlisten pgnet';
    perform net._refuse_copy();
    update net.worker w
    set pid = pg_backend_pid(), backend_start = session_start, gone_since = null, stalled_since = null, ended = null
    where w.id = known_id and w.secret = known_secret
    returning w.id, w.secret into worker_id, worker_secret;
    if worker_id is not null then
        -- What it does not hold it never saw: the answer to its last claim was lost with the connection.
        delete from net.claim c where c.id = any (array(
            select o.id from net.claim o where o.worker = worker_id and o.id <> all (holding) for update skip locked));
        return;
    end if;
    -- One session is one worker: an earlier run in it that was broken off left this.
    for known_id in
        select w.id from net.worker w
        where w.pid = pg_backend_pid() and w.backend_start = session_start and w.ended is null
    loop
        perform net._free(
            (select array_agg(c.id) from net.claim c where c.worker = known_id), 'The worker stopped while it was in flight.', 'stopped');
        update net.worker w set ended = clock_timestamp() where w.id = known_id;
    end loop;
    insert into net.worker (kind, pid, backend_start, host, version)
    values (worker_kind, pg_backend_pid(), session_start, worker_host, worker_version)
    returning id, secret into worker_id, worker_secret;
    -- Who was alone looks more often from now on.
    perform net._signal_workers('reload');
end
$$;
comment on function net._register(text, bigint, uuid, bigint[], text, text) is
    'Makes the calling session a worker; with the id and secret of an earlier registration, it goes on as that worker and keeps the claims it still holds. Raises 55000 in a copy of another database.';

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
    after_host text,
    -- those that were lost with workers, and no others: one, or a few that were lost less often
    alone boolean default false
)
    returns table (
        id bigint, token text, attempt integer, lost integer, method text, url text, headers text, body bytea,
        timeout_milliseconds integer, options text, host text, revision bigint, age double precision, idempotency_key text
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
    suspects bigint[];
    path text;
    quota integer := case
        when (select q.host from net._queue q order by q.host limit 1)
            = (select q.host from net._queue q order by q.host desc limit 1) then lone_quota
        else host_quota end;
    -- In a variable: an index is of no use to what may change from row to row.
    present timestamptz := clock_timestamp();
begin
    perform net._require_worker(worker_id);
    if (select q.id from net.http_request_queue q where q.due <= present and q.origin is null order by q.due limit 1) is not null then
        with woken as (
            update net.http_request_queue q set due = null, waits_since = null
            where q.id = any (array(
                select w.id from net.http_request_queue w where w.due <= present and w.origin is null
                order by w.due limit 1000 for update skip locked))
        )
        select net._use_owners_path() into path;
        perform net._pin_path();
    end if;
    if alone then
        -- Lost twice, many may be innocent: ten at once. Whoever was lost with these as well is attempted alone.
        with quarantined as (
            select q.id, (select count(*) from net.attempt a where a.request_id = q.id and a.ending = 'lost') > 2 as often
            from net.http_request_queue q
            where q.due >= 'infinity' and q.origin is null
                and not exists (select from net.claim c where c.id = q.id offset 0)
            order by q.due
        )
        select array_agg(t.id) into suspects
        from (
            select q.id from quarantined q
            where q.often = (select bool_and(o.often) from quarantined o)
            order by q.id
            limit case when (select bool_and(o.often) from quarantined o) then 1 else 10 end
        ) t;
    end if;
    return query
    with recursive later (name) as (
        (select q.host from net._queue q where not alone and q.host > after_host order by q.host limit 1)
        union all
        select (select q.host from net._queue q where q.host > l.name order by q.host limit 1)
        from later l where l.name is not null
    ), earlier (name) as (
        (select q.host from net._queue q where not alone and q.host <= after_host order by q.host limit 1)
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
            select q.id, q.method, q.url, q.headers, q.body, q.timeout_milliseconds, q.options, q.created, q.host,
                coalesce(octet_length(q.body), 0) as size
            from net._queue q
            where q.host = h.name
                and not exists (select from net.claim c where c.id = q.id offset 0)
                -- Asked once for all rows: mostly there is no mark at all.
                and ((select not exists (select from net.mark)) or not exists (
                    select from net.mark m
                    where m.requested_by = q.requested_by and m.request_id = q.id and m.action <> 'retry' offset 0))
            order by q.priority, q.id
            limit quota
            for update of q skip locked
        ) r
        where h.name <> all (full_hosts)
        limit slots
    ), either as (
        select r.* from ready r
        union all
        select l.*
        from (
            select q.id, q.method, q.url, q.headers, q.body, q.timeout_milliseconds, q.options, q.created,
                net._host(q.url) collate "C" as host, 0 as size
            from net.http_request_queue q
            where alone and q.id = any (suspects)
                and not exists (select from net.claim c where c.id = q.id offset 0)
                and ((select not exists (select from net.mark)) or not exists (
                    select from net.mark m
                    where m.requested_by = q.requested_by and m.request_id = q.id and m.action <> 'retry' offset 0))
            for update of q skip locked
        ) l
    ), bounded as (
        select r.id, r.method, r.url, r.headers, r.body, r.options, r.host, r.created,
            -- Looked up here, in the snapshot that sees the request.
            coalesce(r.timeout_milliseconds, (select net._current_setting('timeout_milliseconds')::integer)) as timeout_milliseconds,
            sum(r.size) over (rows between unbounded preceding and 1 preceding) as size_before
        from either r
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
    select c.id, claim_token::text, c.attempt,
        case when c.attempt = 1 then 0
            else (select count(*) from net.attempt a where a.request_id = c.id and a.ending <> 'answered')::integer end,
        upper(b.method collate "C"), b.url, b.headers::text, b.body,
        b.timeout_milliseconds, b.options::text, b.host,
        (select f.revision from net.configuration f),
        extract(epoch from clock_timestamp() - b.created)::double precision,
        net._idempotency_key(b.id, b.created, b.method, b.options)
    from claimed c
    join bounded b on b.id = c.id
    -- Of a request that is sent once at most, or alone, the attempt is on disk before the first byte.
    where not (alone or b.options ->> 'delivery' = 'at_most_once') is true
        or set_config('synchronous_commit', 'on', true) is not null;
end
$$;
comment on function net._claim(bigint, integer, integer, integer, text[], bigint, text, boolean) is
    'Takes ready requests for a worker, host by host in turns, and never one that another transaction holds. Where one of them is at_most_once, the transaction commits to disk.';

-- Records outcomes for those claims that still carry their token. Gives the ids that somebody else holds a lock on.
create function net._store(outcomes json, size integer)
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
    held_up bigint[] := '{}';
begin
    with held as materialized (
        select r.*, c.attempt, q.id is not null as locked, v.seen,
            q.method, q.url, q.headers as request_headers, q.body, q.timeout_milliseconds, q.requested_by,
            q.created as requested, q.priority, q.context, q.options, q.retry_of, c.claimed
        from json_to_recordset(outcomes) as r (
            id bigint, token uuid, state net.request_state, status_code integer, content_type text, headers jsonb,
            content text, text_base64 text, content_base64 text, timed_out boolean, error_msg text,
            header_list jsonb, final_url text, redirects integer, http_version text, address inet,
            name_ms real, connect_ms real, tls_ms real, first_byte_ms real, total_ms real,
            retry_in double precision
        )
        cross join lateral (
            select c.attempt, c.claimed from net.claim c where c.id = r.id and c.token = r.token for update of c skip locked
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
        delete from net.claim c where c.id = any (array(select h.id from held h where h.locked or h.seen is null))
    ), attempted as (
        insert into net.attempt (
            request_id, attempt, requested_by, ending, started, ended, status_code, timed_out, error_msg, retry_in
        )
        select h.id,
            -- A claim counts in its own snapshot: one that was freed meanwhile may have had the same number.
            greatest(h.attempt, 1 + (select max(a.attempt) from net.attempt a where a.request_id = h.id)), h.requested_by, 'answered', h.claimed, clock_timestamp(), h.status_code, h.timed_out,
            h.error_msg, make_interval(secs => h.retry_in)
        from held h
        where h.locked and h.state = 'retrying'
        on conflict do nothing
    ), failed as (
        insert into net.failed (
            id, method, url, headers, body, timeout_milliseconds, requested_by, created, priority, context, options,
            retry_of, state, attempts, status_code, error_msg, idempotency_key
        )
        select h.id, h.method, h.url, h.request_headers, h.body, h.timeout_milliseconds, h.requested_by, h.requested,
            h.priority, h.context, h.options, h.retry_of, h.state, h.attempt, h.status_code, h.error_msg,
            net._idempotency_key(h.id, h.requested, h.method, h.options)
        from held h
        where h.locked and h.state in ('failed', 'unknown', 'cancelled')
    ), recorded as (
        insert into net._http_response (
            id, status_code, content_type, headers, content, timed_out, error_msg, state, content_bytes, attempts,
            context, method, url, requested_by, requested, header_list, final_url, redirects, http_version, address,
            name_ms, connect_ms, tls_ms, first_byte_ms, total_ms, retry_of
        )
        select h.id, h.status_code, h.content_type, h.headers,
            coalesce(h.content, convert_from(decode(h.text_base64, 'base64'), 'UTF8')), h.timed_out, h.error_msg, h.state,
            decode(h.content_base64, 'base64'), h.attempt, h.context, h.method, h.url, h.requested_by, h.requested,
            h.header_list, h.final_url, h.redirects, h.http_version, h.address,
            h.name_ms, h.connect_ms, h.tls_ms, h.first_byte_ms, h.total_ms, h.retry_of
        from held h
        where h.locked and h.state <> 'retrying'
    )
    -- Known before the first row is changed: PostgreSQL runs this part before those that change rows.
    select count(*) into done from held h
    where (select net._use_owners_path()) is not null and (h.locked or h.seen is null);
    perform net._pin_path();
    if done < size then
        -- A claim that is there still, with its token: somebody holds a lock on it, or on its request.
        select coalesce(array_agg(r.id), '{}') into held_up
        from json_to_recordset(outcomes) as r (id bigint, token uuid)
        where exists (select from net.claim c where c.id = r.id and c.token = r.token offset 0);
    end if;
    return held_up;
end
$$;
comment on function net._store(json, integer) is
    'One batch of net._record: ends the requests whose claim still carries the token, or has them wait for another attempt; gives the ids that a lock of somebody holds up.';
revoke all on function net._store(json, integer) from public;

create function net._record(
    -- an array of objects: id, token, state, and the columns of net._http_response that the outcome gives, content_bytes as
    -- content_base64, or content as text_base64; the state retrying, with retry_in in seconds, is no end: the request waits for another attempt
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
    bare jsonb;
begin
    perform net._require_worker();
    begin
        return net._store(outcomes, size);
    exception
        when transaction_rollback or disk_full or too_many_connections or configuration_limit_exceeded or operator_intervention
            or system_error or object_not_in_prerequisite_state or read_only_sql_transaction then
            -- Not a row's fault: the worker keeps its outcomes and comes again.
            raise;
        when others then
            if sqlstate = '53200' and octet_length(outcomes::text) < 1000000 then
                -- No memory for what is not large: nor is that a row's fault.
                raise;
            end if;
            if size > 1 then
                return net._record(net._slice(outcomes, 1, size / 2)) || net._record(net._slice(outcomes, size / 2 + 1, size));
            end if;
            get stacked diagnostics fault = message_text;
            bare := jsonb_build_object(
                'id', outcomes -> 0 -> 'id', 'token', outcomes -> 0 -> 'token', 'state', 'failed', 'timed_out', false,
                'error_msg', 'The response could not be recorded: ' || fault);
            begin
                -- A status that came is not lost: it says that the request was received.
                return net._store(json_build_array(bare || jsonb_build_object(
                    'state', case when outcomes -> 0 ->> 'state' = 'retrying' then 'failed' else outcomes -> 0 ->> 'state' end,
                    'status_code', outcomes -> 0 -> 'status_code', 'timed_out', outcomes -> 0 -> 'timed_out')), 1);
            exception when others then
                null; -- it may be the status that is refused
            end;
            begin
                return net._store(json_build_array(bare), 1);
            exception when others then
                raise warning using
                    message = format('the outcome of request %s cannot be recorded: %s', outcomes -> 0 ->> 'id', fault),
                    hint = 'Is there a trigger or a constraint on net._http_response? The worker tries again.';
                return array[(outcomes -> 0 ->> 'id')::bigint];
            end;
    end;
end
$$;
comment on function net._record(json) is
    'Records outcomes, fenced by the tokens of their claims. A batch that fails is halved down to the row at fault, which is recorded without content, with its status and a word about the fault. Gives the ids that are held up, for the worker to come again.';

create function net._slice(elements json, first integer, last integer)
    returns json
    language sql stable parallel safe
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
    -- what became of the attempt, for net.attempts; NULL where none was begun
    reason text
)
    returns void
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    -- What is being cancelled just now is no longer the worker's.
    held bigint[] := array(
        select c.id
        from unnest(ids, tokens) g (id, token)
        cross join lateral (
            select c.id from net.claim c where c.id = g.id and c.token = g.token for update of c skip locked
        ) c);
begin
    perform net._require_worker();
    if reason is null then
        delete from net.claim c where c.id = any (held);
    else
        perform net._free(held, reason, 'stopped');
    end if;
end
$$;
comment on function net._release(bigint[], uuid[], text) is
    'Gives claimed requests back: others may take them at once. With a reason the attempt had begun: an at_most_once request ends as unknown.';

create function net._deregister(
    -- as net._register gave them
    worker_id bigint, worker_secret uuid,
    -- how many requests it did not finish, for net.workers
    cut_off integer default 0
)
    returns void
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
begin
    perform net._require_worker();
    update net.worker w set ended = clock_timestamp(), cut_off = _deregister.cut_off
    where w.id = worker_id and w.secret = worker_secret;
    if found then
        perform net._free(
            (select array_agg(c.id) from net.claim c where c.worker = worker_id), 'The worker stopped while it was in flight.', 'stopped');
    end if;
end
$$;
comment on function net._deregister(bigint, uuid, integer) is 'Ends a registration and frees whatever the worker still holds.';

-- Frees the claims of workers that are gone, and those past their deadline whose worker has stalled. Gives the seconds until
-- more fall free; NULL where none will.
create function net._rescue()
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
declare
    -- In a variable: an index is of no use to what may change from row to row.
    present timestamptz := clock_timestamp();
    rescue_after interval := net._current_setting('rescue_after');
    -- A worker that is well says so each time it looks, which is every second where there are others.
    stalled_after interval := interval '5 s';
    path text;
begin
    -- A clock that was put back strands nothing: what was said of the future is said anew.
    update net.claim c set deadline = clock_timestamp() + (c.deadline - c.claimed), claimed = clock_timestamp()
    where c.id = any (array(
        select o.id from net.claim o where o.claimed > present + interval '5 s' for update skip locked));
    with put_back as (
        update net.http_request_queue q
        set due = case when isfinite(q.due) then clock_timestamp() + (q.due - q.waits_since) else q.due end, waits_since = clock_timestamp()
        where q.id = any (array(
            select o.id from net.http_request_queue o
            where o.due is not null and o.waits_since > present + interval '5 s' order by o.waits_since for update skip locked))
    )
    select net._use_owners_path() into path;
    perform net._pin_path();

    update net.worker w set gone_since = clock_timestamp()
    where w.id in (
        select g.id from net.worker g
        where g.ended is null
            and (g.gone_since is null and not net._alive(g.pid, g.backend_start) or g.gone_since > clock_timestamp())
        for update skip locked);
    update net.worker w set stalled_since = clock_timestamp()
    where w.id in (
        select s.id from net.worker s
        where (s.stalled_since is null or s.stalled_since > clock_timestamp())
            and s.id = any (array(select distinct c.worker from net.claim c where c.deadline < present))
        for update skip locked);
    if found then
        -- One that is well looks at once, and says so.
        perform net._signal_workers('reload');
    end if;
    perform net._free(array(
        -- Locked: one that comes back at this moment keeps its claims, or finds them gone; never both.
        with gone as materialized (
            select w.id from net.worker w
            -- A worker that was a backend died with it; a process may still come back over a new connection.
            where w.gone_since < clock_timestamp() - case w.kind when 'backend' then interval '0' else rescue_after end
            for update skip locked
        ), stalled as materialized (
            select w.id from net.worker w where w.stalled_since < clock_timestamp() - stalled_after
            for update skip locked
        )
        select c.id from net.claim c
        where c.worker in (select g.id from gone g)
            or (c.deadline < clock_timestamp() and c.worker in (select s.id from stalled s))
            or not exists (select from net.worker w where w.id = c.worker and w.ended is null)),
        'The worker was lost.', 'lost');
    delete from net.worker w
    where coalesce(w.ended, w.gone_since + rescue_after) < clock_timestamp() - interval '1 hour'
        and w.id <> all (array(select distinct c.worker from net.claim c));
    return (
        select case when min(f.free) is not null then greatest(0, extract(epoch from min(f.free) - clock_timestamp())) + 0.02 end
        from (
            select coalesce(w.gone_since + rescue_after, w.stalled_since + stalled_after) as free
            from net.worker w
            where w.ended is null and (w.gone_since is not null or w.stalled_since is not null)
                and w.id = any (array(select distinct c.worker from net.claim c))
        ) f);
end
$$;
comment on function net._rescue() is
    'Frees the claims of workers whose session has been gone for rescue_after, and those past their deadline whose worker has stalled. Gives the seconds until more fall free.';
revoke all on function net._rescue() from public;

-- Deletes what is past its time, in batches. Gives the seconds until more falls due; NULL where nothing is kept.
create function net._expire()
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
declare
    -- In a variable: an index is of no use to what may change from row to row.
    present timestamptz := clock_timestamp();
    ttl interval := net._current_setting('ttl');
    ttl_failed interval := net._current_setting('ttl_failed');
    deleted bigint;
    deleted_failed bigint;
    next_due timestamptz;
    path text;
begin
    with old as (
        delete from net._http_response r where r.id = any (array(
            select o.id from net._http_response o where o.created < present - ttl
            order by o.created limit 5000 for update skip locked))
        returning r.id, r.attempts
    ), attempts as (
        delete from net.attempt a
        where a.request_id = any (array(
            select o.id from old o where o.attempts > 1 and not exists (select from net.failed f where f.id = o.id offset 0)))
    )
    select count(*) into deleted from old where (select net._use_owners_path()) is not null;
    perform net._pin_path();
    with old as (
        delete from net.failed f where f.id = any (array(
            select o.id from net.failed o where o.failed < present - ttl_failed
            order by o.failed limit 5000 for update skip locked))
        returning f.id
    ), attempts as (
        delete from net.attempt a
        where a.request_id = any (array(
            select o.id from old o where not exists (select from net._http_response r where r.id = o.id offset 0)))
    )
    select count(*) into deleted_failed from old where (select net._use_owners_path()) is not null;
    perform net._pin_path();
    -- Those of requests that somebody has deleted.
    with attempts as (
        delete from net.attempt a where a.ctid = any (array(
            select o.ctid from net.attempt o
            where o.ended < present - greatest(ttl, ttl_failed)
                and not exists (select from net.http_request_queue q where q.id = o.request_id offset 0)
                and not exists (select from net._http_response r where r.id = o.request_id offset 0)
                and not exists (select from net.failed f where f.id = o.request_id offset 0)
            order by o.ended limit 5000 for update skip locked))
    )
    select net._use_owners_path() into path;
    perform net._pin_path();
    if greatest(deleted, deleted_failed) = 5000 then
        return 0.1;
    end if;
    next_due := least(
        (select r.created + ttl from net._http_response r order by r.created limit 1),
        (select f.failed + ttl_failed from net.failed f order by f.failed limit 1));
    return case when next_due is not null then greatest(1, extract(epoch from next_due - clock_timestamp())) end;
end
$$;
comment on function net._expire() is 'Deletes responses past ttl and failed requests past ttl_failed, 5,000 at a time; gives the seconds until more is due.';
revoke all on function net._expire() from public;

create function net._tend(
    -- who looks
    worker_id bigint,
    -- the requests that it has in flight or has outcomes of; NULL: it does not say
    holding bigint[] default null
)
    -- settings, egress, hosts, retry policies, the revision of all four, the generation that workers are to be of, the mode, whether
    -- something waits to be attempted alone, which requests of those that it holds are no longer the worker's (dropped), and
    -- next_look: after how many seconds to come again
    returns jsonb
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
declare
    configuration record;
    next_rescue double precision;
    next_expiry double precision;
    next_due double precision;
    next_mark double precision;
    quarantined boolean := false;
    next_look double precision := extract(epoch from net._current_setting('poll_interval')::interval);
begin
    perform net._require_worker(worker_id);
    -- Read first: what changes while the rest is read has a higher number.
    select f.revision, f.generation into configuration from net.configuration f;
    update net.worker w set stalled_since = null where w.id = worker_id and w.stalled_since is not null;
    if holding is not null then
        -- It is well, and its word on what it works on counts, whatever the clock says.
        update net.claim c set deadline = clock_timestamp() + interval '1 minute'
        where c.id = any (array(
            select o.id from net.claim o
            where o.worker = worker_id and o.deadline < clock_timestamp() and o.id = any (holding) for update skip locked));
        perform net._free(array(
            select c.id from net.claim c where c.worker = worker_id and c.id <> all (holding)),
            'The worker lost track of it.', 'lost');
    end if;
    next_rescue := net._rescue();
    next_mark := net._act_on_marks();
    next_expiry := net._expire();
    if net._current_setting('wake_up') = 'poll' or exists (
        -- Its COMMIT PREPARED may come from a session that cannot know what was queued.
        select from pg_prepared_xacts p
        where p.database = current_database() and p.prepared > clock_timestamp() - interval '10 minutes')
    then
        next_look := least(next_look, 1);
    end if;
    if (
        select q.id from net.http_request_queue q
        where q.due >= 'infinity' and q.origin is null and not exists (select from net.claim c where c.id = q.id offset 0)
        order by q.due limit 1) is not null
    then
        quarantined := true;
        next_look := least(next_look, 1);
    end if;
    if exists (select from net.worker w where w.id <> worker_id and w.ended is null and net._alive(w.pid, w.backend_start)) then
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
        'next_look', least(next_look, next_expiry, next_rescue, next_mark, next_due, greatest(1, extract(epoch from least(
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
        'policies', net._retry_policies(),
        'mode', net._mode(),
        'quarantined', quarantined,
        'dropped', to_jsonb(net._dropped(worker_id, holding)),
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
comment on function net._tend(bigint, bigint[]) is
    'What a worker does each time it looks: says what it holds, rescues, acts on marks, expires; gives which requests are no longer its own, its settings, the egress rules and when to look again. Raises 08003 for a worker that is not registered, 55000 where its session has changed.';

revoke all on function
    net._register(text, bigint, uuid, bigint[], text, text),
    net._claim(bigint, integer, integer, integer, text[], bigint, text, boolean),
    net._record(json),
    net._release(bigint[], uuid[], text),
    net._deregister(bigint, uuid, integer),
    net._tend(bigint, bigint[])
from public;
