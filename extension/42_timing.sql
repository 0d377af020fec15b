-- Time and debounce: the options not_before, not_after, unique_key, unique_for and on_conflict of
-- net.http_request. All of this runs with the caller's rights.
--
-- Debounce. Of the requests of one role with the same unique_key, one at most waits for its first
-- attempt: a unique index of pgnet.flow says so. A call that finds one locks its row there, changes
-- the request (replace) or leaves it as it is (keep), and returns its id. The row stays locked
-- until the call's transaction ends, and workers pass over locked rows. So the request is sent
-- after the commit of the last call that was merged into it. A claim takes the key away: what comes
-- later is a request of its own.
--
-- So PUBLIC has UPDATE on the columns of a request's content, and policies show for it only a
-- role's own requests. A right on columns does not let a role lock the table.

create function pgnet.read_interval(given text)
    returns interval
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
    set intervalstyle = 'postgres'
as $$
begin
    -- 10 would be ten seconds, 10:30 ten hours, and 2026-12 two thousand years.
    if given !~ '[a-zA-Z]|[0-9]:[0-9]+:' then
        return null;
    end if;
    return given::interval;
exception when data_exception then
    return null;
end
$$;
comment on function pgnet.read_interval(text) is
    'The interval that a text says, with its units or as hours:minutes:seconds; NULL for any other '
    'text.';

-- A time begins with its date, or is infinity; everything else is an interval. So no text is both.
create function pgnet.read_time(
    -- the option that the text was given for
    option text,
    given text,
    -- the time of the call
    present timestamptz
)
    returns timestamptz
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
    set datestyle = 'ISO, YMD'
as $$
declare
    result timestamptz;
begin
    if given is null then
        return null;
    end if;
    begin
        result := case
            when given collate "C" ~* '^ *([0-9]{4,6}-[0-9][0-9]?-[0-9]|(today|tomorrow)( |$)|[+-]?infinity *$)' then given::timestamptz
            else present + pgnet.read_interval(given) end;
    exception when data_exception then
        null;
    end;
    if result is null then
        perform pgnet.raise_error('22023', format('option "%s" is neither a time nor an interval', option),
            'A time begins with its date: "2026-12-24 18:00+01", "tomorrow 09:00"; without a zone it is in the session''s TimeZone. '
            'An interval has units and counts from the call: "90 seconds", "2 hours 30 minutes", "PT5M", "00:05:00".');
    end if;
    return result;
end
$$;
comment on function pgnet.read_time(text, text, timestamptz) is
    'The time that an option says: a date with a time, or an interval after the call. Raises 22023 '
    'for a text that is neither. NULL gives NULL.';

create function pgnet.read_times(
    options jsonb,
    -- NULL: at once, and without an end
    out not_before timestamptz, out not_after timestamptz
)
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    present timestamptz := clock_timestamp();
begin
    not_before := pgnet.read_time('not_before', options ->> 'not_before', present);
    not_after := pgnet.read_time('not_after', options ->> 'not_after', present);
    if not_after <= not_before and not_after < 'infinity' then
        perform pgnet.raise_error('22023', 'not_after must be later than not_before',
            format('The first attempt may begin from not_before (%s) on, and before not_after (%s).', not_before, not_after));
    end if;
    not_before := case when not_before > present then not_before end;
    not_after := nullif(not_after, 'infinity');
end
$$;
comment on function pgnet.read_times(jsonb) is
    'The options not_before and not_after as times; NULL for a not_before that has passed, and for '
    'a not_after that never comes. Raises 22023.';

create function pgnet.read_unique_for(options jsonb)
    returns interval
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    given text := options ->> 'unique_for';
    result interval := pgnet.read_interval(given);
begin
    if given is not null and (result > interval '0') is not true then
        perform pgnet.raise_error('22023', 'option "unique_for" must be an interval greater than 0',
            'It has units: "30 seconds", "5 minutes", "1 day".');
    end if;
    return result;
end
$$;
comment on function pgnet.read_unique_for(jsonb) is
    'The option unique_for; NULL where it is not given. Raises 22023.';

create function pgnet.lock_waiting_request(
    unique_key text,
    -- as for pgnet.debounce_request
    unique_for interval,
    -- another call had locked it: this one waits until that one's transaction has ended
    contended boolean,
    -- NULL: no request with the key waits, or another call has locked it
    out id bigint,
    -- whether a call may be merged into it
    out is_open boolean,
    -- what its column merges is then
    out merges tstzrange,
    out ordering_key text, out gate pgnet.gate
)
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    waiting pgnet.flow;
    made timestamptz;
    present timestamptz;
    pause interval := '1 s';
begin
    if contended then
        select f.* into waiting from pgnet.flow f
        where f.requested_by = pgnet.caller_role() and f.unique_key = lock_waiting_request.unique_key
        for update;
    else
        select f.* into waiting from pgnet.flow f
        where f.requested_by = pgnet.caller_role() and f.unique_key = lock_waiting_request.unique_key
        for update skip locked;
    end if;
    present := clock_timestamp();
    made := (select q.created from net.http_request_queue q where q.id = waiting.request_id and q.requested_by = waiting.requested_by);
    id := waiting.request_id;
    ordering_key := waiting.ordering_key;
    gate := waiting.gate;
    merges := tstzrange(
        case when contended or upper(waiting.merges) + pause >= present then coalesce(lower(waiting.merges), present) else present end,
        present, '[]');
    is_open := made is not null and (made + unique_for <= present) is not true and (waiting.not_after <= present) is not true
        -- Calls that follow upon one another without a pause keep workers from a request that is
        -- ready: after a second it is left alone.
        and (contended and lower(merges) + pause < present
            and coalesce(waiting.not_before, present) <= present and waiting.gate is null) is not true
        and not exists (
            select from pgnet.mark m
            where m.requested_by = waiting.requested_by and m.request_id = waiting.request_id and m.action <> 'retry');
end
$$;
comment on function pgnet.lock_waiting_request(text, interval, boolean) is
    'Locks the request of the caller that has this unique_key and waits for its first attempt.';

-- The row of pgnet.flow comes first: the unique index decides whether there is to be a request. It
-- has a number that no request has, until the request has one.
create function pgnet.queue_unique_request(new net._new_request, flow net._new_flow)
    -- NULL: there is one with the key, or another session makes one and has committed meanwhile
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
begin
    insert into net._new_flow (request_id, not_before, not_after, ordering_key, unique_key, gate, callback, callback_oid)
    values (
        -1 - floor(random() * 9e18)::bigint, flow.not_before, flow.not_after, flow.ordering_key, flow.unique_key, flow.gate,
        flow.callback, flow.callback_oid)
    on conflict do nothing;
    if not found then
        return null;
    end if;
    insert into net._new_request (method, url, headers, body, timeout_milliseconds, priority, context, options, held)
    values (
        new.method, new.url, new.headers, new.body, new.timeout_milliseconds, new.priority, new.context, new.options, new.held)
    returning id into new.id;
    update pgnet.flow f set request_id = new.id where f.requested_by = pgnet.caller_role() and f.unique_key = flow.unique_key;
    return new.id;
end
$$;
comment on function pgnet.queue_unique_request(net._new_request, net._new_flow) is
    'Queues a request with a unique_key, unless there is one.';

create function pgnet.debounce_request(
    -- what is queued, checked; with its unique_key
    new net._new_request, flow net._new_flow,
    -- how long after the first request a call may be merged into it; NULL: until it is attempted
    unique_for interval,
    -- whether the content of a request that waits becomes this one's
    replaces boolean
)
    -- the id of the request that waits, or of a new one
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    waiting record;
    -- whether another call kept the request locked when this one came
    contended boolean := false;
    request_id bigint;
begin
    loop
        select * into waiting from pgnet.lock_waiting_request(flow.unique_key, unique_for, contended);
        if waiting.id is null then
            request_id := pgnet.queue_unique_request(new, flow);
            if request_id is not null then
                return request_id;
            end if;
            contended := true;
            continue;
        end if;
        if waiting.is_open then
            if waiting.ordering_key is distinct from flow.ordering_key then
                perform pgnet.raise_error('22023', format('request %s, which has this unique_key, has another ordering_key', waiting.id),
                    'Requests with the same unique_key have the same ordering_key, or none.');
            end if;
            update net.http_request_queue q
            set method = case when replaces then new.method else q.method end,
                url = case when replaces then new.url else q.url end,
                headers = case when replaces then new.headers else q.headers end,
                body = case when replaces then new.body else q.body end,
                timeout_milliseconds = case when replaces then new.timeout_milliseconds else q.timeout_milliseconds end,
                priority = case when replaces then new.priority else q.priority end,
                context = case when replaces then new.context else q.context end,
                options = case when replaces then new.options else q.options end,
                -- Where nothing else changes, this does: so net.wait knows that this transaction
                -- has to commit before the request is sent.
                held = case when replaces then num_nonnulls(flow.not_before, waiting.gate) > 0 else q.held end
            where q.id = waiting.id and q.requested_by = pgnet.caller_role();
            if found then
                update pgnet.flow f
                set merges = waiting.merges, not_before = case when replaces then flow.not_before else f.not_before end,
                    not_after = case when replaces then flow.not_after else f.not_after end,
                    callback = case when replaces then flow.callback else f.callback end,
                    callback_oid = case when replaces then flow.callback_oid else f.callback_oid end
                where f.request_id = waiting.id and f.requested_by = pgnet.caller_role();
                return waiting.id;
            end if;
        end if;
        -- It is sent as it is, or is gone.
        update pgnet.flow f set unique_key = null where f.request_id = waiting.id and f.requested_by = pgnet.caller_role();
    end loop;
end
$$;
comment on function pgnet.debounce_request(net._new_request, net._new_flow, interval, boolean) is
    'Queues a request with a unique_key, or merges it into the one of the same role and key that '
    'waits for its first attempt; gives the id of the one that is sent.';

create function pgnet.queue_request(
    -- what is queued, checked; the options as the row has them, and all that the caller gave
    method text, url text, headers jsonb, body bytea, timeout_milliseconds integer, context jsonb, stored jsonb, given jsonb,
    -- as pgnet.resolve_callback gives them; NULL: no function is called
    callback text default null, callback_oid oid default null
)
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    new net._new_request;
    flow net._new_flow;
    unique_for interval := pgnet.read_unique_for(given);
begin
    select t.not_before, t.not_after into flow.not_before, flow.not_after from pgnet.read_times(given) t;
    flow.ordering_key := given ->> 'ordering_key';
    flow.unique_key := given ->> 'unique_key';
    flow.gate := case when given ?| '{ordering_key,after}' then 'new' end;
    flow.callback := callback;
    flow.callback_oid := callback_oid;
    new.method := method;
    new.url := url;
    new.headers := headers;
    new.body := body;
    new.timeout_milliseconds := timeout_milliseconds;
    new.priority := coalesce((given ->> 'priority')::smallint, 0::smallint);
    new.context := context;
    new.options := nullif(stored - array['not_before', 'not_after', 'unique_key', 'unique_for', 'on_conflict'], '{}');
    if num_nonnulls(flow.not_before, flow.not_after, flow.ordering_key, flow.unique_key, flow.gate, flow.callback) > 0 then
        new.held := num_nonnulls(flow.not_before, flow.gate) > 0;
    end if;
    if flow.unique_key is not null then
        return pgnet.debounce_request(new, flow, unique_for, given ->> 'on_conflict' is not distinct from 'replace');
    end if;
    insert into net._new_request (method, url, headers, body, timeout_milliseconds, priority, context, options, held)
    values (
        new.method, new.url, new.headers, new.body, new.timeout_milliseconds, new.priority, new.context, new.options, new.held)
    returning id into new.id;
    if new.held is not null then
        if given ? 'after' then
            perform pgnet.check_after(new.id, given);
        end if;
        insert into net._new_flow (request_id, not_before, not_after, ordering_key, gate, callback, callback_oid)
        values (new.id, flow.not_before, flow.not_after, flow.ordering_key, flow.gate, flow.callback, flow.callback_oid);
    end if;
    return new.id;
end
$$;
comment on function pgnet.queue_request(text, text, jsonb, bytea, integer, jsonb, jsonb, jsonb, text, oid) is
    'Queues a request of net.http_request with what stands in pgnet.flow: options, a callback; gives '
    'its id.';
