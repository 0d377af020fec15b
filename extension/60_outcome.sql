-- What callers read: states, responses, waiting, cancelling. Views run with the reader's rights: row-level security decides.

-- The state of a request that has not ended.
create function net._waiting_state(attempts_before integer, claimed boolean, due timestamptz)
    returns net.request_state language sql immutable parallel safe
as $$
    -- Each a constant of the type: to cast text to it would be stable only.
    select case when claimed then 'in_flight'::net.request_state when due is null then 'ready'::net.request_state
        when attempts_before operator(pg_catalog.>) 0 then 'retrying'::net.request_state else 'scheduled'::net.request_state end
$$;
comment on function net._waiting_state(integer, boolean, timestamptz) is 'The state of a request that has not ended.';

create view net.requests with (security_invoker) as
    select q.id,
        net._waiting_state(coalesce(a.attempt, 0), c.id is not null, q.due) as state,
        q.method::pg_catalog.text as method, q.url, q.requested_by, a.status_code, a.error_msg,
        coalesce(c.attempt, a.attempt, 0) as attempts,
        case when c.id is null and pg_catalog.isfinite(q.due) then q.due end as next_attempt,
        q.created as requested, null::pg_catalog.timestamptz as ended, pg_catalog.now() operator(pg_catalog.-) q.created as age,
        q.retry_of
    from net.http_request_queue q
    -- OFFSET 0: a look-up for each row, whatever the statistics say, as in 50_outbox.sql.
    left join lateral (
        select c.id, c.attempt from net.claim c where c.id operator(pg_catalog.=) q.id offset 0
    ) c on true
    left join lateral (
        select t.attempt, t.status_code, t.error_msg from net.attempt t
        where t.request_id operator(pg_catalog.=) q.id order by t.attempt desc limit 1
    ) a on true
    union all
    select r.id, r.state, r.method, r.url, r.requested_by, r.status_code, r.error_msg, r.attempts, null,
        r.requested, r.created, pg_catalog.now() operator(pg_catalog.-) r.requested, r.retry_of
    from net._http_response r;
comment on view net.requests is
    'Every request that is queued or whose response is kept: state, method, url, role, attempts, next attempt, last error, age. A role sees its own.';
grant select on net.requests to public;

create view net.attempts with (security_invoker) as
    select a.request_id, a.attempt, a.ending as state, a.started, a.ended, a.status_code, a.timed_out, a.error_msg, a.retry_in
    from net.attempt a
    union all
    select r.id, r.attempts, r.state::pg_catalog.text,
        r.created operator(pg_catalog.-) pg_catalog.make_interval(secs => r.total_ms operator(pg_catalog./) 1000::double precision),
        r.created, r.status_code, r.timed_out, r.error_msg, null
    from net._http_response r
    where r.attempts operator(pg_catalog.>) 0
        and not exists (
            select from net.attempt a
            where a.request_id operator(pg_catalog.=) r.id and a.attempt operator(pg_catalog.=) r.attempts offset 0)
    union all
    select c.id, c.attempt, 'in_flight', c.claimed, null, null, null, null, null
    from net.claim c
    where exists (select from net.http_request_queue q where q.id operator(pg_catalog.=) c.id offset 0);
comment on view net.attempts is
    'Every attempt of requests that are queued or whose response is kept: answered (another followed), lost or stopped with its worker, in_flight, or the state in which the last one ended. A role sees its own.';
grant select on net.attempts to public;

create function net._json_or_null(content text)
    returns jsonb
    language plpgsql immutable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    return content::jsonb;
exception when data_exception or program_limit_exceeded then
    return null;
end
$$;
comment on function net._json_or_null(text) is 'The text as jsonb; NULL where it is no JSON.';

create view net.responses with (security_invoker) as
    select r.id, r.state, r.method, r.url, r.status_code, r.content_type, r.headers, r.content,
        case when r.content_type operator(pg_catalog.~*) '^[^;]*[/+]json' then net._json_or_null(r.content) end as content_json,
        r.content_bytes, r.timed_out, r.error_msg, r.attempts, r.context, r.requested_by, r.requested, r.created,
        r.created operator(pg_catalog.-) r.requested as took,
        r.header_list, coalesce(r.final_url, r.url) as final_url, r.redirects, r.http_version, r.address,
        r.name_ms, r.connect_ms, r.tls_ms, r.first_byte_ms, r.total_ms, r.retry_of
    from net._http_response r;
comment on view net.responses is
    'Responses beside their requests; content_json where the body is JSON, content_bytes where it is no text. A role sees its own.';
grant select on net.responses to public;

create view net.failures with (security_invoker) as
    select f.id, f.state, f.method::pg_catalog.text as method, f.url, f.headers, f.body, f.timeout_milliseconds, f.requested_by,
        f.created as requested, f.failed, f.attempts, f.status_code, f.error_msg, f.context, f.priority, f.options, f.retry_of
    from net.failed f;
comment on view net.failures is
    'Dead letters: requests that ended as failed or unknown, or were only recorded, with headers and body, kept for the setting ttl_failed. net.retry sends one again, and takes it out of here. A role sees its own.';
grant select on net.failures to public;

-- Whether a row version was written by the current transaction, or by a savepoint of it.
create function net._is_mine(row_xmin xid)
    returns boolean
    language sql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    -- A row version of the running transaction, or of a savepoint of it, is not older than its transaction id (modulo 2^32).
    select coalesce((
        select pg_xact_status((top + newer)::text::xid8) = 'in progress'
        from (
            select t.top, (row_xmin::text::bigint - t.top) & 4294967295 as newer
            from (select pg_current_xact_id_if_assigned()::text::bigint as top) t
        ) x
        where newer < 2147483648), false)
$$;
comment on function net._is_mine(xid) is 'Whether the current transaction wrote the row version with this xmin.';

-- A request's outcome so far, with the caller's rights; NULL fields where there is no such request.
create function net._look_up(request_id bigint)
    returns net.outcome
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
    select (o.id, o.state, o.status_code, o.headers, o.content, o.content_bytes, o.error_msg, o.attempts, o.context)::net.outcome
    from (
        select r.id, r.state, r.status_code, r.headers, r.content, r.content_bytes, r.error_msg, r.attempts, r.context, 1 as place
        from net._http_response r where r.id = request_id
        union all
        select q.id, net._waiting_state(coalesce(a.attempt, 0), c.id is not null, q.due),
            null, null, null, null, null, coalesce(c.attempt, a.attempt, 0), q.context, 2
        from net.http_request_queue q
        left join net.claim c on c.id = q.id
        left join lateral (
            select t.attempt from net.attempt t where t.request_id = q.id order by t.attempt desc limit 1
        ) a on true
        where q.id = request_id
    ) o
    order by o.place
    limit 1
$$;
comment on function net._look_up(bigint) is 'How a request stands, as net.outcome; NULL where there is none that the caller may see.';

-- Raises where waiting could never end: the answer would not be visible, or nothing is sent before the commit.
create function net._refuse_to_wait(request_id bigint)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
begin
    if exists (select from net.http_request_queue q where q.id = request_id and net._is_mine(q.xmin)) then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = format('request %s is not sent before this transaction commits', request_id),
            detail = 'It was queued in the same transaction that waits for it.',
            hint = 'Commit first, then wait; in psql, call net.fetch(...) does both.';
    end if;
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = format('this transaction could never see the response of request %s', request_id),
            detail = format('Its isolation level is %s: it sees the database as it was when it began.',
                upper(current_setting('transaction_isolation') collate "C")),
            hint = 'Wait in a transaction of its own, at READ COMMITTED.';
    end if;
end
$$;
comment on function net._refuse_to_wait(bigint) is
    'Raises 55000 where the caller would wait for ever: in the transaction that queued the request, and where its snapshot is fixed.';

create function net.wait(
    -- the request's id
    id bigint,
    -- how long at most
    timeout interval default '10 s'
)
    -- the outcome; after the timeout, how the request stands
    returns net.outcome
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    give_up timestamptz := clock_timestamp() + coalesce(timeout, interval '10 s');
    nap double precision := 0.001;
    outcome record;
    waited boolean := false;
begin
    if id is null then
        return null;
    end if;
    loop
        select * into outcome from net._look_up(wait.id);
        if outcome.state is null then
            raise exception using
                errcode = 'no_data_found',
                message = 'request matching request_id not found',
                detail = format('There is no request %s of role "%s".', wait.id, current_user),
                hint = 'Its response may be older than the setting ttl, or the transaction that queued it was rolled back.';
        end if;
        if outcome.state >= 'succeeded' or clock_timestamp() >= give_up then
            return outcome;
        end if;
        if not waited then
            perform net._refuse_to_wait(wait.id);
            waited := true;
        end if;
        perform pg_sleep(least(nap, greatest(extract(epoch from give_up - clock_timestamp()), 0)));
        nap := least(nap * 1.5, 0.05);
    end loop;
end
$$;
comment on function net.wait(bigint, interval) is
    'Waits until the request has ended and returns its outcome; after the timeout (NULL: 10 s), how it stands. NULL id gives NULL. Raises P0002 for a request that is not there, 55000 in the transaction that queued it or under REPEATABLE READ.';

create function net.wait_all(
    -- the requests' ids
    ids bigint[],
    -- how long at most, for all together
    timeout interval default '10 s'
)
    -- a row for each id, in their order
    returns setof net.outcome
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    give_up timestamptz := clock_timestamp() + coalesce(timeout, interval '10 s');
    request_id bigint;
begin
    foreach request_id in array coalesce(ids, '{}') loop
        return query select o.* from net.wait(request_id, greatest(give_up - clock_timestamp(), interval '0')) o;
    end loop;
end
$$;
comment on function net.wait_all(bigint[], interval) is
    'net.wait for many: a row for each id in their order, after at most timeout (NULL: 10 s) for all together. Raises as net.wait does.';

create function net._await_response(
    -- the request's id
    request_id bigint
)
    returns boolean
    language plpgsql volatile parallel unsafe strict
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    outcome record;
    warned boolean := false;
begin
    loop
        select * into outcome from net._look_up(request_id);
        if outcome.state is null or outcome.state >= 'succeeded' then
            return outcome.state is not null;
        end if;
        perform net._refuse_to_wait(request_id);
        if not warned and not net._worker_is_up() then
            raise warning using
                message = format('request %s waits: no worker is running', request_id),
                hint = 'Start one: select net.schedule_worker(), call net.work() in a session of its own, or the process "pgnet worker".';
            warned := true;
        end if;
        perform net.wait(request_id, interval '1 s');
    end loop;
end
$$;
comment on function net._await_response(bigint) is
    'Waits until the request has ended, however long; true then, false where there is no such request. NULL gives NULL.';

create function net.http_get_result(
    -- the request's id
    request_id bigint,
    -- true: return at once; false: wait until the request has ended
    async boolean default true
)
    returns net.http_response_result
    language plpgsql volatile parallel unsafe strict
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    response record;
begin
    if not async then
        perform net._await_response(request_id);
    end if;
    select * into response from net._http_response r where r.id = request_id;
    if not found then
        if not exists (select from net.http_request_queue q where q.id = request_id) then
            -- It may have ended between the two looks.
            select * into response from net._http_response r where r.id = request_id;
            if not found then
                return ('ERROR', 'request matching request_id not found', null)::net.http_response_result;
            end if;
        elsif net._worker_is_up() then
            return ('PENDING', 'request is pending: it is queued or in flight', null)::net.http_response_result;
        else
            return ('PENDING', 'request is pending, and no worker is running: start one by select net.schedule_worker(), '
                'by call net.work() in a session of its own, or by the process "pgnet worker"', null)::net.http_response_result;
        end if;
    end if;
    if response.error_msg is not null then
        return ('ERROR', response.error_msg, null)::net.http_response_result;
    end if;
    return ('SUCCESS', 'ok', (response.status_code, response.headers, response.content)::net.http_response)::net.http_response_result;
end
$$;
comment on function net.http_get_result(bigint, boolean) is
    'The result of a request: SUCCESS with the response, ERROR with the message, PENDING while it is on its way. NULL gives NULL. async := false waits, and raises 55000 in the transaction that queued the request.';

create function net.http_collect_response(
    -- the request's id
    request_id bigint,
    -- true: return at once; false: wait until the request has ended
    async boolean default true
)
    returns net.http_response_result
    language sql volatile parallel unsafe strict
    set search_path = pg_catalog, pg_temp
as $$ select net.http_get_result(request_id, async) $$;
comment on function net.http_collect_response(bigint, boolean) is 'The same as net.http_get_result, under its older name.';

create function net._http_collect_response(
    -- the request's id
    request_id bigint,
    -- true: return at once; false: wait until the request has ended
    async boolean default true
)
    returns net.http_response_result
    language sql volatile parallel unsafe strict
    set search_path = pg_catalog, pg_temp
as $$ select net.http_get_result(request_id, async) $$;
comment on function net._http_collect_response(bigint, boolean) is 'The same as net.http_get_result, for those who call the private name.';

-- Cancelling deletes from this view: it shows a caller its own requests, and the trigger acts with the owner's rights on just those.
create view net._cancellable with (security_barrier) as
    select q.id
    from net.http_request_queue q
    where q.requested_by operator(pg_catalog.=) pg_catalog.quote_ident(current_user)::pg_catalog.regrole
        or pg_catalog.pg_has_role(current_user,
            (select c.relowner from pg_catalog.pg_class c where c.oid operator(pg_catalog.=) 'net.http_request_queue'::pg_catalog.regclass),
            'usage');
comment on view net._cancellable is 'The queued requests that the current role may cancel: its own, and all for the extension''s owner.';
grant select, delete on net._cancellable to public;

create function net._cancel()
    returns trigger
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    in_flight integer;
    made integer;
begin
    perform net._refuse_other_tables(tg_table_schema);
    perform from net.http_request_queue q where q.id = old.id for update;
    if not found then
        return null;
    end if;
    -- The queue's row is locked: what claims and attempts say of it is what counts.
    in_flight := (select c.attempt from net.claim c where c.id = old.id for update);
    made := (select count(*) from net.attempt a where a.request_id = old.id);
    perform net._end(old.id, 'cancelled',
        case when in_flight is not null then 'The request was cancelled while it was in flight: it may have been received.'
            when made = 0 then 'The request was cancelled before it was sent.'
            else 'The request was cancelled before another attempt.' end,
        coalesce(in_flight, made));
    return old;
end
$$;
comment on function net._cancel() is 'Behind net.cancel: ends a queued request as cancelled.';
revoke all on function net._cancel() from public;
create trigger cancel instead of delete on net._cancellable
    for each row execute function net._cancel();

create function net.cancel(
    -- the request's id
    id bigint
)
    -- whether there was something to cancel
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    delete from net._cancellable c where c.id = cancel.id;
    return found;
end
$$;
comment on function net.cancel(bigint) is
    'Ends a queued request as cancelled, and true; false where it has ended already, is not there, or is another role''s. One that is in flight is not sent again, and its answer is dropped. NULL gives false.';

-- Sending again works like cancelling: an update of this view, by the trigger with the owner's rights on just these.
create view net._retriable with (security_barrier) as
    select f.id, f.state, false as new_key, null::bigint as retried_as
    from net.failed f
    where f.requested_by operator(pg_catalog.=) pg_catalog.quote_ident(current_user)::pg_catalog.regrole
        or pg_catalog.pg_has_role(current_user,
            (select c.relowner from pg_catalog.pg_class c where c.oid operator(pg_catalog.=) 'net.failed'::pg_catalog.regclass),
            'usage');
comment on view net._retriable is 'The dead letters that the current role may send again: its own, and all for the extension''s owner.';
grant select, update on net._retriable to public;

create function net._retry()
    returns trigger
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    request record;
    key text;
    chosen jsonb;
begin
    perform net._refuse_other_tables(tg_table_schema);
    delete from net.failed f where f.id = old.id returning f.* into request;
    if not found then
        return null;
    end if;
    key := case when new.new_key then case when request.options ? 'idempotency_key' then gen_random_uuid()::text end
        else net._idempotency_key(request.id, request.created, request.method, request.options) end;
    chosen := nullif(
        coalesce(request.options, '{}') - 'idempotency_key'
            || case when key is null then '{}' else jsonb_build_object('idempotency_key', key) end, '{}');
    insert into net.http_request_queue (
        method, url, headers, body, timeout_milliseconds, requested_by, priority, context, options, retry_of)
    values (
        request.method, request.url, request.headers, request.body, request.timeout_milliseconds, request.requested_by,
        request.priority, request.context, chosen, request.id)
    returning id into new.retried_as;
    return new;
end
$$;
comment on function net._retry() is 'Behind net.retry: makes a new request of a dead letter.';
revoke all on function net._retry() from public;
create trigger retry instead of update on net._retriable
    for each row execute function net._retry();

create function net.retry(
    -- the id of a failed request, as net.failures shows it
    id bigint,
    -- the default keeps the key: whoever did what the first request asked for then does nothing
    new_idempotency_key boolean default false,
    -- also one that is unknown: it may have been received
    even_unknown boolean default false
)
    -- the id of the new request
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    found_state text;
    request_id bigint;
begin
    if id is null then
        return null;
    end if;
    select r.state into found_state from net._retriable r where r.id = retry.id;
    if found_state = 'unknown' and even_unknown is not true then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = format('whether request %s was received is unknown, and it was to be sent once at most', id),
            hint = 'Where you know that it was not, or may be sent twice: select net.retry(id, even_unknown => true). To leave such requests out: where state = ''failed''.';
    end if;
    update net._retriable r set new_key = coalesce(new_idempotency_key, false)
    where r.id = retry.id
    returning r.retried_as into request_id;
    if request_id is null then
        raise exception using
            errcode = 'no_data_found',
            message = format('there is no request %s to send again', id),
            hint = 'net.failures shows those that can be: what is in flight, has succeeded, was sent again already, is older than the setting ttl_failed or another role''s is not among them.';
    end if;
    perform net.wake();
    return request_id;
end
$$;
comment on function net.retry(bigint, boolean, boolean) is
    'Makes a new request, with retry_of, of one that failed, and gives its id; many by: select net.retry(id) from net.failures where ... The Idempotency-Key stays the same unless a new one is asked for. NULL id gives NULL. Raises P0002 for what is not in net.failures, 55000 for one that is unknown.';

create procedure net.fetch(
    -- GET, POST, DELETE or another method
    method text,
    -- absolute http or https URL
    url text,
    -- sent as JSON; NULL means no body
    body jsonb default null,
    -- appended to the query; NULL means none
    params jsonb default '{}',
    -- request headers; NULL means none
    headers jsonb default '{}',
    -- total time in ms; NULL means 30000
    timeout_milliseconds integer default 30000,
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
    id := net.http_request(method, url, body, params, headers, timeout_milliseconds);
    commit;
    if not net._worker_is_up() then
        raise warning using
            message = pg_catalog.format('request %s waits: no worker is running', id),
            hint = 'Start one: select net.schedule_worker(), call net.work() in another session, or the process "pgnet worker".';
    end if;
    loop
        select * into outcome from net._look_up(id);
        exit when outcome.state is null or outcome.state operator(pg_catalog.>=) 'succeeded'::net.request_state;
        commit;
        perform pg_catalog.pg_sleep(nap);
        commit;
        nap := least(nap operator(pg_catalog.*) 1.5::double precision, 0.05::double precision);
    end loop;
    status_code := outcome.status_code;
    content := outcome.content;
    error_msg := coalesce(outcome.error_msg,
        case when outcome.state is null then 'The request was deleted.' end);
end
$$;
comment on procedure net.fetch(text, text, jsonb, jsonb, jsonb, integer, bigint, integer, text, text) is
    'For a person at psql: queues a request, commits, waits and shows the answer. Not inside a transaction block. Raises as net.http_request does; a body goes as JSON.';
