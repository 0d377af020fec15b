-- What a worker may do with the queue: a handful of functions, and no table. Owner's rights, pinned search_path.
-- The plans must not depend on how full a table was when they were made: index look-ups, whatever the statistics say. A healthy
-- queue is empty each time autovacuum looks, and with statistics of empty tables the planner takes any order of a join for as good
-- as any other, and any index. So what is looked up for a row is a sub-select with OFFSET 0, of which it cannot make a join; what
-- is changed or deleted is given as an array of ids; and ORDER BY, with enable_sort off, names the index to read.

create function pgnet.session_is_alive(worker_pid integer, worker_backend_start timestamptz)
    returns boolean
    language sql stable parallel restricted security definer
    set search_path = pg_catalog, pg_temp
as $$
    select exists (select from pg_stat_get_activity(worker_pid) a where a.backend_start = worker_backend_start)
$$;
comment on function pgnet.session_is_alive(integer, timestamptz) is
    'Whether the session with this pid and start is still there: what nobody can forge, unlike an advisory lock.';

create function pgnet.worker_is_up()
    returns boolean
    language sql stable parallel restricted security definer
    set search_path = pg_catalog, pg_temp
as $$
    select exists (select from pgnet.worker w where w.ended is null and pgnet.session_is_alive(w.pid, w.backend_start))
$$;
comment on function pgnet.worker_is_up() is 'Whether a worker serves this database now.';

-- A worker waits for the lock of a table only while it holds none itself. So it is in nobody's way: DROP EXTENSION locks the tables in
-- an order that nobody knows, and one of the two would end in a deadlock. What waits for longer than lock_timeout fails with 55P03.
-- Whoever may not work is told so first, and locks nothing.
create function pgnet.lock_tables(
    -- as for pgnet.require_worker
    worker_id bigint default null
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '500ms'
as $$
declare
    relation text;
begin
    for round in 1 .. 10 loop
        begin
            lock table pgnet.worker_role, pgnet.worker in access share mode nowait;
            perform pgnet.require_worker(worker_id);
            lock table net.http_request_queue, pgnet.claim, pgnet.attempt, net._http_response, pgnet.failed, pgnet.unrecorded, pgnet.worker
                in row exclusive mode nowait;
            lock table pgnet.ready_request, pgnet.setting, pgnet.configuration, pgnet.database, pgnet.mark in access share mode nowait;
            -- At the commit, behind what the session does next, its path would count, and from PostgreSQL 18 on the owner's rights.
            set constraints all immediate;
            return;
        exception when lock_not_available then
            null;
        end;
        foreach relation in array array[
            'net.http_request_queue', 'pgnet.claim', 'pgnet.attempt', 'net._http_response', 'pgnet.failed', 'pgnet.unrecorded',
            'pgnet.worker', 'pgnet.ready_request', 'pgnet.setting', 'pgnet.configuration', 'pgnet.database', 'pgnet.worker_role',
            'pgnet.mark']
        loop
            begin
                execute format('lock table %s in row exclusive mode', relation);
                raise exception using errcode = 'PN000';
            exception when sqlstate 'PN000' then
                null; -- it has let go of the lock again
            end;
        end loop;
    end loop;
    raise exception using
        errcode = 'lock_not_available',
        message = 'the tables of pgnet are locked again and again',
        hint = 'Who holds a lock: select * from pg_locks l where l.relation in (select c.oid from pg_class c where c.relnamespace in (''net''::regnamespace, ''pgnet''::regnamespace)).';
end
$$;
comment on function pgnet.lock_tables(bigint) is
    'Asks pgnet.require_worker, and takes the locks of a worker''s transaction, all or none, so that it never waits for one while it holds another. Raises 55P03 after half a second.';

-- ---- what fails, and what can be done about it

create function pgnet.remedy(relations regclass[], state text, referrer text, constraint_name text)
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select case
        when state = '23503' and referrer is not null and to_regclass(referrer) <> all (relations) then format(
            'Rows of %1$s refer to it. Delete these, or have them follow: alter table %1$s drop constraint %2$I; and add it again '
            'with "on delete cascade" or "on delete set null".', referrer, constraint_name)
        when state like '23%' and referrer is not null and constraint_name is not null then format(
            'alter table %s drop constraint %I;', referrer, constraint_name)
        else coalesce((
            select 'Is it a trigger? ' || string_agg(
                format('alter table %s disable trigger %I;', t.tgrelid::regclass, t.tgname), ' ' order by t.tgrelid, t.tgname)
            from pg_trigger t
            where t.tgrelid = any (relations) and not t.tgisinternal
                and t.tgname not in ('replicated', 'refuse_truncate')),
            'The server''s log says more.')
    end
$$;
comment on function pgnet.remedy(regclass[], text, text, text) is
    'The statement that helps against an error with rows of these tables: about its constraint, or about triggers on them.';

create function pgnet.fire_deferred()
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgnet.use_owners_path();
    set constraints all immediate;
end
$$;
comment on function pgnet.fire_deferred() is
    'Has constraints and triggers that are deferred do their work now, with the owner''s path: at the commit they would fail with all that was done.';

create function pgnet.note_fault(duty text, message text, hint text, brief boolean default false)
    returns void
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    insert into pgnet.fault as f (duty, retry_at, failures, message, hint, brief)
    values (duty, clock_timestamp() + interval '1 s', 1, message, hint, brief)
    on conflict on constraint fault_pkey do update
    set message = excluded.message, hint = excluded.hint, brief = excluded.brief, failures = f.failures + 1,
        retry_at = clock_timestamp() + least(interval '1 s' * 2 ^ least(f.failures, 10), interval '5 min')
    -- A lock of the moment hides no lasting fault.
    where f.brief or not excluded.brief
$$;
comment on function pgnet.note_fault(text, text, text, boolean) is 'Keeps that a duty of the heartbeat has failed: it is tried again after 1 s, 2 s, ... 5 minutes.';

create function pgnet.is_idempotent(method text)
    returns boolean
    language sql immutable parallel safe cost 1
as $$
    select pg_catalog.upper(method collate "C")
        operator(pg_catalog.=) any (array['GET', 'HEAD', 'PUT', 'DELETE', 'OPTIONS'])
$$;
comment on function pgnet.is_idempotent(text) is 'Whether a request with this method may be sent twice: RFC 9110, section 9.2.2.';

create function pgnet.derived_idempotency_key(key_namespace uuid, id bigint, created timestamptz)
    returns text
    language sql stable parallel safe cost 10
as $$
    select pg_catalog.md5(pg_catalog.concat_ws(':', key_namespace, id, extract(epoch from created)))::pg_catalog.uuid::pg_catalog.text
$$;
comment on function pgnet.derived_idempotency_key(uuid, bigint, timestamptz) is
    'An idempotency key that is the same for each attempt of a request, and for no other request.';

create function pgnet.idempotency_key(id bigint, created timestamptz, method text, options jsonb)
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select case
        when options ? 'idempotency_key' then
            -- Another value than a string may be 1 GB as text.
            case when jsonb_typeof(options -> 'idempotency_key') = 'string' then options ->> 'idempotency_key' end
        when not pgnet.is_idempotent(method) then pgnet.derived_idempotency_key((select d.key_namespace from pgnet.database d), id, created)
    end
$$;
comment on function pgnet.idempotency_key(bigint, timestamptz, text, jsonb) is
    'The idempotency key of a request: what was asked for; of methods that are not idempotent one that is the same for each attempt and no other request; else NULL.';

-- Ends a queued request that has no answer to show.
create function pgnet.end_without_answer(id bigint, state text, error_msg text, attempts integer)
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
        select q.* from net.http_request_queue q where q.id = end_without_answer.id
    ), dequeued as (
        delete from net.http_request_queue q where q.id = end_without_answer.id
    ), unclaimed as (
        delete from pgnet.claim c where c.id = end_without_answer.id
    ), recorded as (
        insert into net._http_response (
            id, state, timed_out, error_msg, attempts, context, method, url, requested_by, requested, retry_of
        )
        select r.id, end_without_answer.state::net.request_state, false, end_without_answer.error_msg, end_without_answer.attempts, r.context, r.method, r.url,
            r.requested_by, r.created, r.retry_of
        from request r
    ), failed as (
        insert into pgnet.failed (
            id, method, url, headers, body, timeout_milliseconds, requested_by, created, priority, context, options,
            retry_of, state, attempts, error_msg, idempotency_key
        )
        select r.id, r.method, r.url, r.headers, r.body, r.timeout_milliseconds, r.requested_by, r.created, r.priority,
            r.context, r.options, r.retry_of, end_without_answer.state::net.request_state, end_without_answer.attempts, end_without_answer.error_msg,
            pgnet.idempotency_key(r.id, r.created, r.method, r.options)
        from request r
        where end_without_answer.state in ('failed', 'unknown')
    )
    select pgnet.use_owners_path() into path;
end
$$;
comment on function pgnet.end_without_answer(bigint, text, text, integer) is 'Ends a queued request that has no answer to show: with a response that says why.';

-- Frees claims: others may take the requests at once. What an at_most_once request's attempt did nobody knows, so that it ends;
-- so does a request that was lost with max_losses workers, and from the second one on it is attempted alone. A row that
-- somebody else holds a lock on keeps its claim until the next look.
create function pgnet.return_claims(
    -- the requests; NULL means none
    ids bigint[],
    -- what became of the attempt
    reason text,
    -- lost: with its worker; stopped: the worker ended in order
    ending text
)
    -- how many could not be freed, because something refuses it; pgnet.fault has one of them
    returns integer
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    request record;
    max_losses integer := pgnet.setting_value('max_losses')::integer;
    fate text;
    message text;
    path text;
    fault text;
    referrer_schema text;
    referrer text;
    broken text;
    failed integer := 0;
begin
    for request in
        select q.*, c.attempt, c.claimed, v.seen, q.id is not null as locked, c.id as claim_id,
            (select count(*) from pgnet.attempt a where a.request_id = c.id and a.ending = 'lost') + 1 as losses
        from pgnet.claim c
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
        begin
            if not request.locked then -- its requester has deleted it
                delete from pgnet.claim c where c.id = request.claim_id;
                continue;
            end if;
            fate := null;
            if request.options -> 'delivery' = '"at_most_once"' then
                fate := 'unknown';
                message := reason || ' Whether the request was received is unknown, and it is not sent again.';
            elsif ending = 'lost' and request.losses >= max_losses then
                fate := 'failed';
                message := format('%s %s workers were lost with it, and it is not tried again.', reason, request.losses);
            end if;
            if fate is null then
                with attempted as (
                    insert into pgnet.attempt (request_id, attempt, requested_by, ending, started, ended, error_msg)
                    values (
                        request.id, greatest(request.attempt, 1 + (select max(a.attempt) from pgnet.attempt a where a.request_id = request.id)),
                        request.requested_by, return_claims.ending, request.claimed, clock_timestamp(), reason)
                    on conflict do nothing
                ), quarantined as (
                    update net.http_request_queue q set due = 'infinity', waits_since = clock_timestamp()
                    where q.id = request.id and return_claims.ending = 'lost' and request.losses >= 2
                ), unclaimed as (
                    delete from pgnet.claim c where c.id = request.id
                )
                select pgnet.use_owners_path() into path;
                perform pgnet.pin_path();
            else
                perform pgnet.end_without_answer(request.id, fate, message, request.attempt);
            end if;
            perform pgnet.fire_deferred();
        exception when others then
            -- This one stays claimed; the others are freed.
            get stacked diagnostics fault = message_text, referrer = table_name, referrer_schema = schema_name, broken = constraint_name;
            perform pgnet.note_fault('giving back requests', format('request %s: %s', request.claim_id, fault), pgnet.remedy(
                array['net.http_request_queue', 'pgnet.claim', 'pgnet.attempt', 'net._http_response', 'pgnet.failed']::regclass[],
                sqlstate, case when referrer <> '' then format('%I.%I', referrer_schema, referrer) end, nullif(broken, '')));
            failed := failed + 1;
        end;
    end loop;
    return failed;
end
$$;
comment on function pgnet.return_claims(bigint[], text, text) is
    'Frees the claims of requests whose attempt ended without anybody''s knowing how, with a row in pgnet.attempt; an at_most_once request ends as unknown, one that was lost with max_losses workers as failed.';

create function pgnet.register_worker(
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
    set lock_timeout = '500ms'
as $$
declare
    session_start timestamptz := (select a.backend_start from pg_stat_get_activity(pg_backend_pid()) a);
begin
    perform pgnet.lock_tables();
    -- ANALYZE, REINDEX and their like run the functions of an index as its owner, in a session that may be a worker's or a
    -- superuser's. There PostgreSQL refuses this statement, which does nothing elsewhere.
    execute 'unlisten pgnet';
    perform pgnet.refuse_copy();
    update pgnet.worker w
    set pid = pg_backend_pid(), backend_start = session_start, gone_since = null, stalled_since = null, ended = null
    where w.id = known_id and w.secret = known_secret
    returning w.id, w.secret into worker_id, worker_secret;
    if worker_id is not null then
        -- What it does not hold it never saw: the answer to its last claim was lost with the connection.
        delete from pgnet.claim c where c.id = any (array(
            select o.id from pgnet.claim o where o.worker = worker_id and o.id <> all (holding) for update skip locked));
        return;
    end if;
    -- One session is one worker: an earlier run in it that was broken off left this.
    for known_id in
        select w.id from pgnet.worker w
        where w.pid = pg_backend_pid() and w.backend_start = session_start and w.ended is null
    loop
        perform pgnet.return_claims(
            (select array_agg(c.id) from pgnet.claim c where c.worker = known_id), 'The worker stopped while it was in flight.', 'stopped');
        update pgnet.worker w set ended = clock_timestamp() where w.id = known_id;
    end loop;
    insert into pgnet.worker (kind, pid, backend_start, host, version)
    values (worker_kind, pg_backend_pid(), session_start, worker_host, worker_version)
    returning id, secret into worker_id, worker_secret;
    -- Who was alone looks more often from now on.
    perform pgnet.signal_workers('reload');
end
$$;
comment on function pgnet.register_worker(text, bigint, uuid, bigint[], text, text) is
    'Makes the calling session a worker; with the id and secret of an earlier registration, it goes on as that worker and keeps the claims it still holds. Raises 55000 in a copy of another database.';

create function pgnet.ascii_excerpt(given text, at_most integer)
    returns text
    language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$ select regexp_replace(left(given, at_most), '[^ -~]', '?', 'g') $$;
comment on function pgnet.ascii_excerpt(text, integer) is 'The beginning of a text, in ASCII: what everyone can read, whatever it is.';

-- Records outcomes for those claims that still carry their token. Gives the ids that somebody else holds a lock on.
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
            retry_in double precision, unreadable boolean
        )
        cross join lateral (
            select c.attempt, c.claimed from pgnet.claim c where c.id = r.id and c.token = r.token for update of c skip locked
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
            -- A claim counts in its own snapshot: one that was freed meanwhile may have had the same number.
            greatest(h.attempt, 1 + (select max(a.attempt) from pgnet.attempt a where a.request_id = h.id)), h.requested_by, 'answered', h.claimed, clock_timestamp(), h.status_code, h.timed_out,
            h.error_msg, make_interval(secs => h.retry_in)
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
        -- What cannot be a request is not kept in order to be sent again.
        where h.locked and h.state in ('failed', 'unknown', 'cancelled') and h.unreadable is not true
    ), recorded as (
        insert into net._http_response (
            id, status_code, content_type, headers, content, timed_out, error_msg, state, content_bytes, attempts,
            context, method, url, requested_by, requested, header_list, final_url, redirects, http_version, address,
            name_ms, connect_ms, tls_ms, first_byte_ms, total_ms, retry_of
        )
        select h.id, h.status_code, h.content_type, h.headers,
            coalesce(h.content, convert_from(decode(h.text_base64, 'base64'), 'UTF8')), h.timed_out, h.error_msg, h.state,
            decode(h.content_base64, 'base64'), h.attempt,
            case when h.unreadable and pgnet.json_text(h.context, 16000000) is null then null else h.context end,
            case when h.unreadable then pgnet.ascii_excerpt(h.method, 255) else h.method end,
            case when h.unreadable then pgnet.ascii_excerpt(h.url, 1000) else h.url end, h.requested_by, h.requested,
            h.header_list, h.final_url, h.redirects, h.http_version, h.address,
            h.name_ms, h.connect_ms, h.tls_ms, h.first_byte_ms, h.total_ms, h.retry_of
        from held h
        where h.locked and h.state <> 'retrying'
    )
    -- Known before the first row is changed: PostgreSQL runs this part before those that change rows.
    select count(*) into done from held h
    where (select pgnet.use_owners_path()) is not null and (h.locked or h.seen is null);
    set constraints all immediate; -- what is deferred would fail at the commit, for all of the batch
    perform pgnet.pin_path();
    if done < size then
        -- A claim that is there still, with its token: somebody holds a lock on it, or on its request.
        select coalesce(array_agg(r.id), '{}') into held_up
        from json_to_recordset(outcomes) as r (id bigint, token uuid)
        where exists (select from pgnet.claim c where c.id = r.id and c.token = r.token offset 0);
    end if;
    return held_up;
end
$$;
comment on function pgnet.store_outcomes(json, integer) is
    'One batch of pgnet.record_outcomes: ends the requests whose claim still carries the token, or has them wait for another attempt; gives the ids that a lock of somebody holds up.';

create function pgnet.record_outcomes(
    -- an array of objects: id, token, state, and the columns of net._http_response that the outcome gives, content_bytes as
    -- content_base64, or content as text_base64; the state retrying, with retry_in in seconds, is no end: the request waits for another attempt.
    -- put_aside: it comes for the second time, and is kept in pgnet.unrecorded where it cannot be recorded now
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
    'Records outcomes, fenced by the tokens of their claims. A batch that fails is halved down to the row at fault, which is recorded without content, with its status and a word about the fault, or where that fails too kept in pgnet.unrecorded. Gives the ids that are held up by a lock, for the worker to come again.';

create function pgnet.store_or_halve(outcomes json)
    returns bigint[]
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    size integer := json_array_length(outcomes);
    outcome json;
    again boolean;
    held_up bigint[];
    fault text;
    bare jsonb;
    state text;
    referrer_schema text;
    referrer text;
    broken text;
begin
    begin
        held_up := pgnet.store_outcomes(outcomes, size);
    exception when others then
        get stacked diagnostics fault = message_text, state = returned_sqlstate,
            referrer_schema = schema_name, referrer = table_name, broken = constraint_name;
    end;
    if fault is null then
        if held_up <> '{}' then
            select coalesce(array_agg(h.id), '{}') into held_up
            from unnest(held_up) h (id)
            join json_array_elements(outcomes) o on (o.value ->> 'id')::bigint = h.id
            where (o.value ->> 'put_aside')::boolean is not true or not pgnet.put_aside(o.value, null, null);
        end if;
        return held_up;
    end if;
    outcome := outcomes -> 0;
    again := size = 1 and (outcome ->> 'put_aside')::boolean;
    -- No memory for a large one is its own fault.
    if state ~ '^(40|53|57|58|25006)' and (state <> '53200' or octet_length(outcomes::text) < 1000000) then
        -- Not a row's fault, it seems: the worker keeps its outcomes and comes again, with fewer.
        if again is true and pgnet.put_aside(outcome, fault, pgnet.recording_remedy(state, referrer_schema, referrer, broken)) then
            return '{}';
        end if;
        raise exception using errcode = state, message = fault;
    end if;
    if state = '55P03' then
        -- A trigger or a foreign key waits for somebody. Not so long for each of the parts.
        perform set_config('lock_timeout', '20ms', true);
    end if;
    if size > 1 then
        return pgnet.store_or_halve(pgnet.json_slice(outcomes, 1, size / 2)) || pgnet.store_or_halve(pgnet.json_slice(outcomes, size / 2 + 1, size));
    end if;
    if state = '55P03' then
        return case when again and pgnet.put_aside(outcome, null, null) then '{}' else array[(outcome ->> 'id')::bigint] end;
    end if;
    bare := jsonb_build_object(
        'id', outcome -> 'id', 'token', outcome -> 'token', 'state', 'failed', 'timed_out', false,
        'error_msg', 'The response could not be recorded: ' || fault);
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
        get stacked diagnostics fault = message_text, state = returned_sqlstate,
            referrer_schema = schema_name, referrer = table_name, broken = constraint_name;
    end;
    if pgnet.put_aside(outcome, fault, pgnet.recording_remedy(state, referrer_schema, referrer, broken)) then
        return '{}';
    end if;
    return array[(outcome ->> 'id')::bigint];
end
$$;
comment on function pgnet.store_or_halve(json) is 'Behind pgnet.record_outcomes.';

create function pgnet.recording_remedy(state text, referrer_schema text, referrer text, constraint_name text)
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select pgnet.remedy(
        array['net._http_response', 'net.http_request_queue', 'pgnet.claim', 'pgnet.attempt', 'pgnet.failed']::regclass[], state,
        case when referrer <> '' then format('%I.%I', referrer_schema, referrer) end, nullif(constraint_name, ''))
$$;
comment on function pgnet.recording_remedy(text, text, text, text) is 'What helps where an outcome cannot be recorded.';

-- Its claim stays, and is nobody's: so no worker attempts the request again.
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
        -- Its claim is gone, or somebody holds a lock on that too.
        return not exists (
            select from pgnet.claim c where c.id = (outcome ->> 'id')::bigint and c.token = (outcome ->> 'token')::uuid);
    end if;
    update pgnet.claim c set worker = null where c.id = claimed.id;
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
    fault text;
    state text;
    referrer_schema text;
    referrer text;
    broken text;
begin
    lock table net.http_request_queue, pgnet.claim, pgnet.attempt, net._http_response, pgnet.failed, pgnet.unrecorded in row exclusive mode nowait;
    -- One by one: any of them may be 10 MB.
    foreach request_id in array array(
        select u.id from pgnet.unrecorded u where u.retry_at <= present order by u.retry_at limit 100)
    loop
        -- The worker's other work waits.
        exit when clock_timestamp() > present + interval '1 s';
        select u.id, u.since into waiting from pgnet.unrecorded u where u.id = request_id for update skip locked;
        continue when not found;
        fault := null;
        begin
            if exists (select from net.http_request_queue q where q.id = request_id) then
                -- Its lock first: without it there is no use in reading the outcome.
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
            null; -- somebody holds a lock on it
        when others then
            get stacked diagnostics fault = message_text, state = returned_sqlstate,
                referrer_schema = schema_name, referrer = table_name, broken = constraint_name;
        end;
        update pgnet.unrecorded u
        set message = fault, hint = case when fault is not null then pgnet.recording_remedy(state, referrer_schema, referrer, broken) end,
            -- After half the time that it has waited, and half a minute at most.
            retry_at = clock_timestamp() + least(greatest((clock_timestamp() - u.since) / 2, interval '0.1 s'), interval '30 s')
        where u.id = request_id;
    end loop;
    return (
        select case when min(u.retry_at) is not null then greatest(extract(epoch from min(u.retry_at) - clock_timestamp()), 0.1) end
        from pgnet.unrecorded u);
end
$$;
comment on function pgnet.record_put_aside() is 'Records what pgnet.unrecorded keeps, as far as that can be done now. Gives the seconds until more is to be tried.';

create function pgnet.json_slice(elements json, first integer, last integer)
    returns json
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select json_agg(e.value order by e.ordinality)
    from json_array_elements(elements) with ordinality e
    where e.ordinality between first and last
$$;
comment on function pgnet.json_slice(json, integer, integer) is 'The elements of an array from first to last, counted from 1.';

create function pgnet.release_requests(
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
    set lock_timeout = '500ms'
as $$
declare
    held bigint[];
begin
    perform pgnet.lock_tables();
    -- What somebody cancels just now is not the worker's any more.
    held := array(
        select c.id
        from unnest(ids, tokens) g (id, token)
        cross join lateral (
            select c.id from pgnet.claim c where c.id = g.id and c.token = g.token for update of c skip locked
        ) c);
    if reason is null then
        delete from pgnet.claim c where c.id = any (held);
    else
        perform pgnet.return_claims(held, reason, 'stopped');
    end if;
end
$$;
comment on function pgnet.release_requests(bigint[], uuid[], text) is
    'Gives claimed requests back: others may take them at once. With a reason the attempt had begun: an at_most_once request ends as unknown.';

create function pgnet.deregister_worker(
    -- as pgnet.register_worker gave them
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
    set lock_timeout = '500ms'
as $$
begin
    perform pgnet.lock_tables();
    update pgnet.worker w set ended = clock_timestamp(), cut_off = deregister_worker.cut_off
    where w.id = worker_id and w.secret = worker_secret;
    if found then
        perform pgnet.return_claims(
            (select array_agg(c.id) from pgnet.claim c where c.worker = worker_id), 'The worker stopped while it was in flight.', 'stopped');
    end if;
end
$$;
comment on function pgnet.deregister_worker(bigint, uuid, integer) is 'Ends a registration and frees whatever the worker still holds.';

-- ---- the heartbeat: what every worker does each time it looks. Each duty fails alone.

create function pgnet.mend_clocks()
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
    path text;
begin
    lock table net.http_request_queue, pgnet.claim in row exclusive mode nowait;
    update pgnet.claim c set deadline = clock_timestamp() + (c.deadline - c.claimed), claimed = clock_timestamp()
    where c.id = any (array(
        select o.id from pgnet.claim o where o.claimed > present + interval '5 s' for update skip locked));
    with put_back as (
        update net.http_request_queue q
        set due = case when isfinite(q.due) then clock_timestamp() + (q.due - q.waits_since) else q.due end, waits_since = clock_timestamp()
        where q.id = any (array(
            select o.id from net.http_request_queue o
            where o.due is not null and o.waits_since > present + interval '5 s' order by o.waits_since for update skip locked))
    )
    select pgnet.use_owners_path() into path;
    perform pgnet.pin_path();
    return null;
end
$$;
comment on function pgnet.mend_clocks() is 'A clock that was put back strands nothing: what was said of the future is said anew.';

-- Frees the claims of workers that are gone, and those past their deadline whose worker has stalled. Gives the seconds until
-- more fall free; NULL where none will.
create function pgnet.rescue_requests()
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
    set lock_timeout = '500ms'
as $$
declare
    -- In a variable: an index is of no use to what may change from row to row.
    present timestamptz := clock_timestamp();
    rescue_after interval := pgnet.setting_value('rescue_after');
    -- A worker that is well says so each time it looks, which is every second where there are others.
    stalled_after interval := interval '5 s';
begin
    lock table net.http_request_queue, pgnet.claim, pgnet.attempt, net._http_response, pgnet.failed, pgnet.worker in row exclusive mode nowait;
    update pgnet.worker w set gone_since = clock_timestamp()
    where w.id in (
        select g.id from pgnet.worker g
        where g.ended is null
            and (g.gone_since is null and not pgnet.session_is_alive(g.pid, g.backend_start) or g.gone_since > clock_timestamp())
        for update skip locked);
    update pgnet.worker w set stalled_since = clock_timestamp()
    where w.id in (
        select s.id from pgnet.worker s
        where (s.stalled_since is null or s.stalled_since > clock_timestamp())
            and s.id = any (array(select distinct c.worker from pgnet.claim c where c.deadline < present))
        for update skip locked);
    if found then
        -- One that is well looks at once, and says so.
        perform pgnet.signal_workers('reload');
    end if;
    if pgnet.return_claims(array(
        -- Locked: one that comes back at this moment keeps its claims, or finds them gone; never both.
        with gone as materialized (
            select w.id from pgnet.worker w
            -- A worker that was a backend died with it; a process may still come back over a new connection.
            where w.gone_since < clock_timestamp() - case w.kind when 'backend' then interval '0' else rescue_after end
            for update skip locked
        ), stalled as materialized (
            select w.id from pgnet.worker w where w.stalled_since < clock_timestamp() - stalled_after
            for update skip locked
        )
        select c.id from pgnet.claim c
        where c.worker in (select g.id from gone g)
            or (c.deadline < clock_timestamp() and c.worker in (select s.id from stalled s))
            -- Of an outcome that is put aside the claim has no worker, and stays.
            or (c.worker is not null and not exists (select from pgnet.worker w where w.id = c.worker and w.ended is null))),
        'The worker was lost.', 'lost') = 0
    then
        delete from pgnet.fault f where f.duty = 'giving back requests';
    end if;
    return (
        select case when min(f.free) is not null then greatest(0, extract(epoch from min(f.free) - clock_timestamp())) + 0.02 end
        from (
            select coalesce(w.gone_since + rescue_after, w.stalled_since + stalled_after) as free
            from pgnet.worker w
            where w.ended is null and (w.gone_since is not null or w.stalled_since is not null)
                and w.id = any (array(select distinct c.worker from pgnet.claim c))
        ) f
        -- One that refuses to be freed is not waited for.
        where f.free > clock_timestamp() - interval '1 s');
end
$$;
comment on function pgnet.rescue_requests() is
    'Frees the claims of workers whose session has been gone for rescue_after, and those past their deadline whose worker has stalled. Gives the seconds until more fall free.';

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

create function pgnet.fault_messages()
    returns jsonb
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce(jsonb_object_agg(f.duty, concat_ws('. ', f.message, f.hint)), '{}')
    from (
        -- A lock may be gone in a moment.
        select f.duty, f.message || case when f.kept > 0 then format(' (%s rows)', f.kept) else '' end as message, f.hint
        from pgnet.fault f
        where not f.brief or f.failures > 2
        union all
        (select 'recording', format('the outcome of request %s is refused: %s', u.id, u.message), u.hint
        from pgnet.unrecorded u where u.message is not null order by u.since limit 1)
    ) f
$$;
comment on function pgnet.fault_messages() is 'What of the workers'' work fails now, by the name of the duty, for their logs.';

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
