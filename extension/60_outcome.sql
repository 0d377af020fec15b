-- Outcomes for callers: states, responses, waiting, cancelling. Views run with the reader's rights:
-- row-level security decides.

-- The state of a request that has not ended.
create function pgnet.waiting_state(attempts_before integer, claimed boolean, due timestamptz, cancelled boolean)
    returns net.request_state language sql immutable parallel safe
as $$
    -- Each is a constant of the type: a cast of text to it would only be stable.
    select case when claimed then 'in_flight'::net.request_state when cancelled then 'cancelled'::net.request_state
        when due is null then 'ready'::net.request_state
        when attempts_before operator(pg_catalog.>) 0 then 'retrying'::net.request_state else 'scheduled'::net.request_state end
$$;
comment on function pgnet.waiting_state(integer, boolean, timestamptz, boolean) is
    'The state of a request that has no outcome yet: cancelled where it is marked so, unless it is '
    'in flight.';

-- What net.explain says (62_explain.sql), as far as it is worth its time for each row of a view.
create function pgnet.idle_words()
    returns text
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (select string_agg(concat_ws(' ', r.detail, r.hint), ' ') from pgnet.reasons_of_database() r);
end
$$;
comment on function pgnet.idle_words() is
    'Why no request at all is sent from this database; NULL where that is not so.';

create function pgnet.any_host_waits()
    returns boolean
    language sql stable parallel safe security definer
    set search_path = pg_catalog, pg_temp
as $$ select exists (select from pgnet.pause) or exists (select from pgnet.host_state s where s.closed_until is not null) $$;
comment on function pgnet.any_host_waits() is
    'Whether requests to some host may wait: it is paused, broken, or has asked to wait.';

create function pgnet.holding_words(request_id bigint)
    returns text
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
begin
    return (select string_agg(r.detail, ' ') from pgnet.holding_reasons(request_id) r);
end
$$;
comment on function pgnet.holding_words(bigint) is
    'What holds a request of the caller''s back: its time, other requests, its host; NULL where '
    'nothing does.';

create function pgnet.both_words(words text, more text)
    returns text
    language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$ select coalesce(words || ' ' || more, words, more) $$;
comment on function pgnet.both_words(text, text) is 'Two texts as one, where both are there.';

create view net.requests with (security_invoker) as
    select q.id,
        pgnet.waiting_state(coalesce(a.attempt, 0), c.id is not null, coalesce(q.due, f.not_before), k.marked is not null) as state,
        q.method::pg_catalog.text as method, q.url, q.requested_by, a.status_code,
        case when c.id is null and k.marked is not null then pgnet.cancellation_message(false, a.attempt)
            when c.id is not null and c.worker is null then
                'It has ended, and its outcome cannot be recorded yet: net.check() says why, to the owner.'
            when c.id is not null or a.error_msg is not null then a.error_msg
            -- Nothing is asked for a row where nothing holds any request back.
            else pgnet.both_words((select pgnet.idle_words()),
                case when q.held or q.due is not null or (select pgnet.any_host_waits()) then pgnet.holding_words(q.id) end) end as error_msg,
        coalesce(c.attempt, a.attempt, 0) as attempts,
        case when c.id is null and k.marked is null and pg_catalog.isfinite(coalesce(q.due, f.not_before))
            then coalesce(q.due, f.not_before) end as next_attempt,
        q.created as requested, case when c.id is null then k.marked end as ended,
        case when pg_catalog.isfinite(q.created) then pg_catalog.now() operator(pg_catalog.-) q.created end as age,
        q.retry_of
    from net.http_request_queue q
    -- OFFSET 0: a look-up for each row, whatever the statistics say, as in 52_claim.sql.
    left join lateral (
        select c.id, c.worker, c.attempt from pgnet.claim c where c.id operator(pg_catalog.=) q.id offset 0
    ) c on true
    left join lateral (
        select t.attempt, t.status_code, t.error_msg from pgnet.attempt t
        where t.request_id operator(pg_catalog.=) q.id order by t.attempt desc limit 1
    ) a on true
    left join lateral (
        select f.not_before from pgnet.flow f
        where q.held and f.request_id operator(pg_catalog.=) q.id and f.requested_by operator(pg_catalog.=) q.requested_by offset 0
    ) f on true
    left join lateral (
        select k.marked from pgnet.mark k
        where k.requested_by operator(pg_catalog.=) q.requested_by and k.request_id operator(pg_catalog.=) q.id
            and k.action operator(pg_catalog.=) 'cancel' offset 0
    ) k on true
    where not exists (
        select from pgnet.mark m
        where m.requested_by operator(pg_catalog.=) q.requested_by and m.request_id operator(pg_catalog.=) q.id
            and m.action operator(pg_catalog.=) 'forget' offset 0)
    union all
    select r.id, r.state, r.method, r.url, r.requested_by, r.status_code, r.error_msg, r.attempts, null,
        r.requested, r.created, case when pg_catalog.isfinite(r.requested) then pg_catalog.now() operator(pg_catalog.-) r.requested end, r.retry_of
    from net._http_response r
    where not exists (
        select from pgnet.mark m
        where m.requested_by operator(pg_catalog.=) r.requested_by and m.request_id operator(pg_catalog.=) r.id
            and m.action operator(pg_catalog.=) 'forget' offset 0);
comment on view net.requests is
    'Every request that is queued or whose response is kept: state, method, url, role, attempts, '
    'next attempt, last error, age. A role sees its own.';

create view net.attempts with (security_invoker) as
    select t.request_id, t.attempt, t.state, t.started, t.ended, t.status_code, t.timed_out, t.error_msg, t.retry_in
    from (
        select a.request_id, a.requested_by, a.attempt, a.ending as state, a.started, a.ended, a.status_code, a.timed_out,
            a.error_msg, a.retry_in
        from pgnet.attempt a
        union all
        select r.id, r.requested_by, r.attempts, r.state::pg_catalog.text,
            r.created operator(pg_catalog.-) pg_catalog.make_interval(secs => r.total_ms operator(pg_catalog./) 1000::double precision),
            r.created, r.status_code, r.timed_out, r.error_msg, null
        from net._http_response r
        where r.attempts operator(pg_catalog.>) 0
            and not exists (
                select from pgnet.attempt a
                where a.request_id operator(pg_catalog.=) r.id and a.attempt operator(pg_catalog.=) r.attempts offset 0)
        union all
        select q.id, q.requested_by, c.attempt, 'in_flight', c.claimed, null, null, null, null, null
        from pgnet.claim c
        cross join lateral (
            select q.id, q.requested_by from net.http_request_queue q where q.id operator(pg_catalog.=) c.id offset 0
        ) q
    ) t
    where not exists (
        select from pgnet.mark m
        where m.requested_by operator(pg_catalog.=) t.requested_by and m.request_id operator(pg_catalog.=) t.request_id
            and m.action operator(pg_catalog.=) 'forget' offset 0);
comment on view net.attempts is
    'Every attempt of requests that are queued or whose response is kept: answered (another '
    'followed), probe (the same, and it does not count for the retry policy: it tried a broken host), '
    'lost or stopped with its worker, in_flight, or the state in which the last one ended. A role '
    'sees its own.';

-- PARALLEL UNSAFE for its EXCEPTION block, which a parallel query cannot begin. Without it a body
-- could only be tried by parsing it twice, and from PostgreSQL 16 on.
create function pgnet.json_or_null(
    -- a body that is text
    content text,
    -- a body that is not text, such as JSON with characters that the database's encoding has not
    content_bytes bytea default null
)
    returns jsonb
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    json text := content;
    length bigint := coalesce(octet_length(content), 0);
begin
    if json is null then
        json := convert_from(
            case when substr(content_bytes, 1, 3) = decode('efbbbf', 'hex') then substr(content_bytes, 4) else content_bytes end, 'UTF8');
    end if;
    -- As text, jsonb has a blank behind each comma and colon, and all digits of a number: 1e131071
    -- has 131072. That text goes to the client beside the body. A shorter body cannot become too
    -- long.
    length := length + 2 * octet_length(json);
    if octet_length(json) > 50000 and length + 131072::bigint * regexp_count(json, '[0-9][eE][+-]?[0-9]') > 1000000000 then
        -- Strings are left out, and each exponent counts as it is; PostgreSQL has no number with a
        -- larger one.
        length := length + (
            select coalesce(sum(least(right('0000000' || x.found[1], 7)::bigint, 131072)), 0)
            from regexp_matches(regexp_replace(json, '"(?:[^"[.backslash.]]|[[.backslash.]].)*"', '', 'g'), '[eE][+-]?0*([0-9]{1,7})', 'g') x (found));
        if length > 1000000000 then
            return null;
        end if;
    end if;
    return json::jsonb;
exception when others then
    -- Whatever the error is, one response must not keep the others from being read.
    return null;
end
$$;
comment on function pgnet.json_or_null(text, bytea) is
    'A body as jsonb; NULL where it is no JSON, where jsonb cannot hold it, and where it and its '
    'text as jsonb are beyond 1 GB together.';

create view net.responses with (security_invoker) as
    select r.id, r.state, r.method, r.url, r.status_code, r.content_type, r.headers, r.content,
        -- Servers send JSON under other types too. A text that is only a number or a word is not
        -- meant as JSON there.
        case when r.content_type operator(pg_catalog.~*) '^[^;]*json' or r.content operator(pg_catalog.~) '^[[:space:]]*[[{]'
            then pgnet.json_or_null(r.content, r.content_bytes) end as content_json,
        r.content_bytes, r.timed_out, r.error_msg, r.attempts, r.context, r.requested_by, r.requested, r.created,
        case when pg_catalog.isfinite(r.requested) then r.created operator(pg_catalog.-) r.requested end as took,
        r.header_list, coalesce(r.final_url, r.url) as final_url, r.redirects, r.http_version, r.address,
        r.name_ms, r.connect_ms, r.tls_ms, r.first_byte_ms, r.total_ms, r.retry_of,
        b.callback, case when b.pid is not null then 'running' else b.state end as callback_state, b.attempts as callback_attempts,
        b.error_msg as callback_error
    from net._http_response r
    left join lateral (
        select b.callback, b.state, b.pid, b.attempts, b.error_msg from pgnet.callback b
        where b.request_id operator(pg_catalog.=) r.id and b.requested_by operator(pg_catalog.=) r.requested_by offset 0
    ) b on true
    where not exists (
        select from pgnet.mark m
        where m.requested_by operator(pg_catalog.=) r.requested_by and m.request_id operator(pg_catalog.=) r.id
            and m.action operator(pg_catalog.=) 'forget' offset 0);
comment on view net.responses is
    'Responses beside their requests; content_json where the body is JSON, under another type than '
    'JSON an array or object; content_bytes where the body is no text. A role sees its own.';

create view net.failures with (security_invoker) as
    select f.id, f.state, f.method::pg_catalog.text as method, f.url, f.headers, f.body, f.timeout_milliseconds, f.requested_by,
        f.created as requested, f.failed, f.attempts, f.status_code, f.error_msg, f.context, f.priority, f.options, f.retry_of
    from pgnet.failed f
    where not exists (
        select from pgnet.mark m
        where m.requested_by operator(pg_catalog.=) f.requested_by and m.request_id operator(pg_catalog.=) f.id
            and m.action operator(pg_catalog.<>) 'cancel' offset 0);
comment on view net.failures is
    'Dead letters: requests that ended as failed or unknown, or were only recorded, with headers '
    'and body, kept for the setting ttl_failed. net.retry sends one again, and takes it out of '
    'here. A role sees its own.';

-- Whether a row version was written by the current transaction, or by a savepoint of it.
create function pgnet.written_here(row_xmin xid)
    returns boolean
    language sql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    -- A row version of the running transaction, or of a savepoint of it, is not older than its
    -- transaction id (modulo 2^32).
    select coalesce((
        select pg_xact_status((top + newer)::text::xid8) = 'in progress'
        from (
            select t.top, (row_xmin::text::bigint - t.top) & 4294967295 as newer
            from (select pg_current_xact_id_if_assigned()::text::bigint as top) t
        ) x
        where newer < 2147483648), false)
$$;
comment on function pgnet.written_here(xid) is
    'Whether the current transaction wrote the row version with this xmin.';

-- A request's outcome so far, with the caller's rights; NULL fields where there is no such request.
-- PL/pgSQL keeps its plans, and what waits looks more than once. STABLE: both queries see what the
-- calling statement sees, so that no request ends between them.
create function pgnet.outcome_so_far(request_id bigint)
    returns net.outcome
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
declare
    outcome record;
begin
    select r.id, r.state, r.status_code, r.headers, r.content, r.content_bytes, r.error_msg, r.attempts, r.context into outcome
    from net._http_response r
    where r.id = request_id
        and not exists (
            select from pgnet.mark m
            where m.requested_by = r.requested_by and m.request_id = r.id and m.action = 'forget' offset 0);
    if found then
        return outcome;
    end if;
    select q.id, pgnet.waiting_state(coalesce(a.attempt, 0), c.id is not null, coalesce(q.due, f.not_before), k.marked is not null) as state,
        null::integer as status_code, null::jsonb as headers, null::text as content, null::bytea as content_bytes,
        case when c.id is null and k.marked is not null then pgnet.cancellation_message(false, a.attempt) end as error_msg,
        coalesce(c.attempt, a.attempt, 0) as attempts, q.context into outcome
    from net.http_request_queue q
    left join lateral (
        select c.id, c.attempt from pgnet.claim c where c.id = q.id offset 0
    ) c on true
    left join lateral (
        select f.not_before from pgnet.flow f
        where q.held and f.request_id = q.id and f.requested_by = q.requested_by offset 0
    ) f on true
    left join lateral (
        select t.attempt from pgnet.attempt t where t.request_id = q.id order by t.attempt desc limit 1
    ) a on true
    left join lateral (
        select k.marked from pgnet.mark k
        where k.requested_by = q.requested_by and k.request_id = q.id and k.action = 'cancel' offset 0
    ) k on true
    where q.id = outcome_so_far.request_id
        and not exists (
            select from pgnet.mark m
            where m.requested_by = q.requested_by and m.request_id = q.id and m.action = 'forget' offset 0);
    return outcome;
end
$$;
comment on function pgnet.outcome_so_far(bigint) is
    'How a request stands, as net.outcome; NULL where there is no request that the caller may see.';

-- Raises where waiting could never end: the answer would not be visible, or nothing is sent before
-- the commit.
create function pgnet.refuse_to_wait(request_id bigint)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
begin
    if exists (select from net.http_request_queue q where q.id = request_id and pgnet.written_here(q.xmin)) then
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
comment on function pgnet.refuse_to_wait(bigint) is
    'Raises 55000 where the caller would wait for ever: in the transaction that queued the '
    'request, and where its snapshot is fixed.';

create function pgnet.wait_until(
    request_id bigint,
    -- waits no longer; infinity: however long
    give_up timestamptz,
    warns boolean default true
)
    returns net.outcome
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    outcome record;
    checked boolean := false;
    warned boolean := not warns;
    next_warning timestamptz := '-infinity';
    seconds double precision;
    nap double precision := 0.001;
    longest double precision := 0.02;
begin
    loop
        select * into outcome from pgnet.outcome_so_far(request_id);
        exit when outcome.state is null or outcome.state >= 'succeeded' or clock_timestamp() >= give_up;
        if not checked then
            perform pgnet.refuse_to_wait(request_id);
            checked := true;
        end if;
        if not warned and clock_timestamp() >= next_warning then
            perform pg_stat_clear_snapshot(); -- or else the sessions are those of the first look
            warned := pgnet.warn_without_worker(request_id);
            next_warning := clock_timestamp() + interval '1 s';
        end if;
        seconds := case when isfinite(give_up) then greatest(extract(epoch from give_up - clock_timestamp()), 0) else 1 end;
        -- Looks also where no end is told, at last once a second: it may have been recorded before
        -- this session listened, or deleted by hand.
        if pgnet.await_end(request_id, least(seconds, longest)) then
            longest := least(longest * 1.5, 1);
        else
            perform pg_sleep(least(nap, seconds));
            nap := least(nap * 1.5, 0.05);
        end if;
    end loop;
    return outcome;
end
$$;
comment on function pgnet.wait_until(bigint, timestamptz, boolean) is
    'Waits until a request has ended, and gives its outcome; past give_up, how it stands; NULL '
    'fields where there is no such request. Warns, once, where no worker runs. Raises as '
    'pgnet.refuse_to_wait does.';

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
    outcome record;
begin
    if id is null then
        return null;
    end if;
    select * into outcome from pgnet.wait_until(wait.id, clock_timestamp() + coalesce(timeout, interval '10 s'));
    if outcome.state is null then
        raise exception using
            errcode = 'no_data_found',
            message = 'request matching request_id not found',
            detail = format('There is no request %s of role "%s".', wait.id, current_user),
            hint = 'Its response may be older than the setting ttl, or the transaction that queued it was rolled back.';
    end if;
    if outcome.state < 'succeeded' then
        outcome.error_msg := coalesce(outcome.error_msg, pgnet.explain_words(wait.id));
    end if;
    return outcome;
end
$$;
comment on function net.wait(bigint, interval) is
    'Waits until the request has ended and returns its outcome; after the timeout (NULL: 10 s), '
    'how it stands, with the words of net.explain as error_msg. Warns where no worker runs. NULL '
    'id gives NULL. Raises P0002 for a request that is not there, 55000 in the '
    'transaction that queued it or under REPEATABLE READ.';

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
    'net.wait for many: a row for each id in their order, after at most timeout (NULL: 10 s) for '
    'all together. Raises as net.wait does.';

create function net._await_response(
    -- the request's id
    request_id bigint
)
    returns boolean
    language plpgsql volatile parallel unsafe strict
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (select w.state is not null from pgnet.wait_until(request_id, 'infinity') w);
end
$$;
comment on function net._await_response(bigint) is
    'Waits until the request has ended, however long; true then, false where there is no such '
    'request. NULL gives NULL.';

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
    outcome record;
begin
    if async then
        select * into outcome from pgnet.outcome_so_far(request_id);
    else
        select * into outcome from pgnet.wait_until(request_id, 'infinity');
    end if;
    if outcome.state is null then
        return ('ERROR', 'request matching request_id not found', null)::net.http_response_result;
    elsif outcome.state < 'succeeded' then
        return ('PENDING', 'request is pending. ' || pgnet.explain_words(request_id), null)::net.http_response_result;
    end if;
    if outcome.status_code is null then
        return ('ERROR', outcome.error_msg, null)::net.http_response_result;
    end if;
    -- There was an answer. The message says what was wrong with it, such as a body that is not
    -- whole.
    return ('SUCCESS', coalesce(outcome.error_msg, 'ok'), (outcome.status_code, outcome.headers, outcome.content)::net.http_response)::net.http_response_result;
end
$$;
comment on function net.http_get_result(bigint, boolean) is
    'The result of a request: SUCCESS with the response, whose message is "ok" where all of it '
    'came and else what is amiss; ERROR with the message where there was no answer; PENDING while '
    'it is on its way, with the words of net.explain. NULL gives NULL. async := false waits, and raises 55000 in the transaction '
    'that queued the request.';

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
comment on function net.http_collect_response(bigint, boolean) is
    'The same as net.http_get_result, under its older name.';

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
comment on function net._http_collect_response(bigint, boolean) is
    'The same as net.http_get_result, under the private name that some users of pg_net call.';

-- Cancelling, forgetting and sending again insert a mark, with the caller's own rights:
-- 55_marks.sql is what workers do about it.
create function pgnet.mark_request(request_id bigint, requested_by regrole, action text)
    -- whether it was not marked so before
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
begin
    if requested_by = pgnet.caller_role() then
        insert into pgnet.mark (request_id, action) values (mark_request.request_id, mark_request.action) on conflict do nothing;
    else
        -- The right to say whose request it is the owner has alone.
        insert into pgnet.mark (request_id, requested_by, action)
        values (mark_request.request_id, mark_request.requested_by, mark_request.action) on conflict do nothing;
    end if;
    return found;
end
$$;
comment on function pgnet.mark_request(bigint, regrole, text) is
    'Marks a request of the caller, or of any role where the caller is the owner: workers act on '
    'it after the commit.';

create function net.cancel(
    -- the request's id
    id bigint
)
    -- whether there was something to cancel
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    requester regrole := (
        select q.requested_by from net.http_request_queue q
        where q.id = cancel.id and (q.requested_by = pgnet.caller_role() or pgnet.caller_is_owner())
            and not exists (
                select from pgnet.mark m
                where m.requested_by = q.requested_by and m.request_id = q.id and m.action <> 'retry'));
begin
    if requester is null then
        return pgnet.unblock_head(id);
    elsif not pgnet.mark_request(id, requester, 'cancel') then
        return false;
    end if;
    perform pgnet.reload_workers();
    perform pgnet.tell_waiter(id);
    return true;
end
$$;
comment on function net.cancel(bigint) is
    'Ends a queued request as cancelled, and true: from the commit on it is not sent (again), and '
    'where it is in flight, its connection is closed and it may have been received. Of the failed '
    'head of a blocked key it unblocks the key, as net.unblock does. False where it has ended '
    'already, is not there, or is another role''s. NULL gives false.';

create function net.forget(
    -- the request's id
    id bigint
)
    -- whether there was something to forget
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    requester regrole := (
        select o.requested_by
        from (
            select q.requested_by from net.http_request_queue q where q.id = forget.id
            union all
            select r.requested_by from net._http_response r where r.id = forget.id
            union all
            select f.requested_by from pgnet.failed f where f.id = forget.id
        ) o
        where o.requested_by = pgnet.caller_role() or pgnet.caller_is_owner()
        limit 1);
begin
    if requester is null or not pgnet.mark_request(id, requester, 'forget') then
        return false;
    end if;
    perform pgnet.unblock_head(id);
    perform pgnet.reload_workers();
    perform pgnet.tell_waiter(id);
    return true;
end
$$;
comment on function net.forget(bigint) is
    'Removes what there is of a request, and true: from the queue without a response, its '
    'response, its failure, its attempts. From the commit on it is not sent (again), and blocks '
    'no key; a worker removes the rows. False where it is not there, or is another role''s. NULL gives false.';

create function pgnet.held_again(request_id bigint, requested_by regrole, options jsonb)
    returns boolean
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
begin
    if jsonb_typeof(options -> 'ordering_key') = 'string' then
        return true;
    elsif exists (
        select from pgnet.callback b where b.request_id = held_again.request_id and b.requested_by = held_again.requested_by)
    then
        return false;
    end if;
    return null;
end
$$;
comment on function pgnet.held_again(bigint, regrole, jsonb) is
    'The column held of a request that is sent again: it has the ordering key of the first one, and '
    'its callback.';

-- The caller has marked the failures first: the policy of the queue asks for that.
create function pgnet.send_again(ids bigint[], new_idempotency_key boolean)
    -- the ids of the new requests
    returns setof bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    made_ids bigint[];
begin
    if pgnet.caller_is_owner() then
        -- The right to say whose request it is the owner has alone.
        with made as (
            insert into net.http_request_queue as q (
                method, url, headers, body, timeout_milliseconds, requested_by, priority, context, options, retry_of, held)
            select f.method, f.url, f.headers, f.body, f.timeout_milliseconds, f.requested_by, f.priority, f.context,
                pgnet.options_again(f.options, f.idempotency_key, new_idempotency_key), f.id,
                pgnet.held_again(f.id, f.requested_by, f.options)
            from pgnet.failed f where f.id = any (ids)
            returning q.id, q.requested_by, q.options, q.held, q.retry_of
        ), flows as (
            insert into pgnet.flow (request_id, requested_by, ordering_key, gate, callback, callback_oid)
            select m.id, m.requested_by, case when m.held then m.options ->> 'ordering_key' end, case when m.held then 'new'::pgnet.gate end,
                b.callback, b.callback_oid
            from made m
            left join pgnet.callback b on b.request_id = m.retry_of and b.requested_by = m.requested_by
            where m.held is not null
        )
        select array_agg(m.id) into made_ids from made m;
    else
        with made as (
            insert into net.http_request_queue as q (
                method, url, headers, body, timeout_milliseconds, priority, context, options, retry_of, held)
            select f.method, f.url, f.headers, f.body, f.timeout_milliseconds, f.priority, f.context,
                pgnet.options_again(f.options, f.idempotency_key, new_idempotency_key), f.id,
                pgnet.held_again(f.id, f.requested_by, f.options)
            from pgnet.failed f where f.id = any (ids) and f.requested_by = pgnet.caller_role()
            returning q.id, q.options, q.held, q.retry_of
        ), flows as (
            insert into net._new_flow (request_id, ordering_key, gate, callback, callback_oid)
            select m.id, case when m.held then m.options ->> 'ordering_key' end, case when m.held then 'new'::pgnet.gate end,
                b.callback, b.callback_oid
            from made m
            left join pgnet.callback b on b.request_id = m.retry_of and b.requested_by = pgnet.caller_role()
            where m.held is not null
        )
        select array_agg(m.id) into made_ids from made m;
    end if;
    perform pgnet.hint_retries(made_ids);
    return query select m.id from unnest(made_ids) m (id);
end
$$;
comment on function pgnet.send_again(bigint[], boolean) is
    'Makes new requests of failed ones that the caller has marked so; gives their ids.';

create function pgnet.options_again(options jsonb, idempotency_key text, new_idempotency_key boolean)
    returns jsonb
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    select nullif(
        -- A row that was inserted by hand may have options that are no object; it has failed for
        -- that.
        case when jsonb_typeof(options) = 'object' then options else '{}' end - array['idempotency_key', 'after', 'after_any_end']
            || case when k.key is null then '{}' else jsonb_build_object('idempotency_key', k.key) end, '{}')
    from (
        select case when new_idempotency_key is true then case when options ? 'idempotency_key' then gen_random_uuid()::text end
            else idempotency_key end as key
    ) k
$$;
comment on function pgnet.options_again(jsonb, text, boolean) is
    'The options of a request that is sent again: with the idempotency key of the first one, or '
    'with a new one, and without those that say which requests it comes after.';

create function net.retry(
    -- the id of a failed request, as net.failures shows it
    id bigint,
    -- the default keeps the key: a server that did what the first request asked for then does
    -- nothing
    new_idempotency_key boolean default false,
    -- also one that is unknown: it may have been received
    even_unknown boolean default false
)
    -- the id of the new request
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    requester regrole;
    found_state text;
    request_id bigint;
begin
    if id is null then
        return null;
    end if;
    select f.requested_by, f.state into requester, found_state from pgnet.failed f
    where f.id = retry.id and (f.requested_by = pgnet.caller_role() or pgnet.caller_is_owner())
        and not exists (
            select from pgnet.mark m
            where m.requested_by = f.requested_by and m.request_id = f.id and m.action <> 'cancel');
    if found_state = 'unknown' and even_unknown is not true then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = format('whether request %s was received is unknown, and it was to be sent once at most', id),
            hint = 'If it was not received, or may be sent twice: select net.retry(id, even_unknown => true). To leave such requests out: where state = ''failed''.';
    end if;
    -- Of several sessions that retry the request, the one whose mark comes first does so. The
    -- request is read after that: it may be gone.
    if requester is not null and pgnet.mark_request(id, requester, 'retry') then
        if pgnet.pending_limits() is not null then
            perform pgnet.refuse_backlog();
        end if;
        request_id := pgnet.send_again(array[id], new_idempotency_key);
    end if;
    if request_id is null then
        raise exception using
            errcode = 'no_data_found',
            message = format('there is no request %s to send again', id),
            hint = 'net.failures shows the requests that can be sent again. It does not have those that are in flight, have succeeded, were sent again already, are older than the setting ttl_failed, or are another role''s.';
    end if;
    perform pgnet.announce_retry(id, request_id);
    perform net.wake();
    return request_id;
end
$$;
comment on function net.retry(bigint, boolean, boolean) is
    'Makes a new request, with retry_of, of one that failed, and gives its id; many by: select '
    'net.retry(id) from net.failures where ... The Idempotency-Key stays the same unless a new one '
    'is asked for. It is the requester''s also where the owner sends it again. It does not wait for '
    'the ids in its option after. The failed head of a blocked key goes before those that wait '
    'behind it. NULL id gives NULL. '
    'Raises P0002 for what is not in net.failures, 55000 for one that is unknown.';

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
    warns boolean := true;
begin
    id := net.http_request(method, url, body, params, headers, timeout_milliseconds);
    commit;
    loop
        -- A second, and not longer: the snapshot of the statement would keep vacuum from its work.
        select * into outcome from pgnet.wait_until(id, pg_catalog.clock_timestamp() operator(pg_catalog.+) interval '1 s', warns);
        warns := false;
        exit when outcome.state is null or outcome.state operator(pg_catalog.>=) 'succeeded'::net.request_state;
        commit;
    end loop;
    status_code := outcome.status_code;
    content := outcome.content;
    error_msg := coalesce(outcome.error_msg,
        case when outcome.state is null then 'The request was deleted.' end);
end
$$;
comment on procedure net.fetch(text, text, jsonb, jsonb, jsonb, integer, bigint, integer, text, text) is
    'For use in psql: queues a request, commits, waits and shows the answer. Not inside a '
    'transaction block. Raises as net.http_request does; a body is sent as JSON.';
