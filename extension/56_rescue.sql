-- Rescue: what becomes of claims whose attempt has no outcome. Their worker was lost, has stalled,
-- stopped, or gives them back.

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
    perform pgnet.pin_path();
    perform pgnet.remove_flow(array[end_without_answer.id]);
    perform pgnet.tell_of_ends(array[end_without_answer.id]);
    perform pgnet.note_dependants(array[end_without_answer.id]);
end
$$;
comment on function pgnet.end_without_answer(bigint, text, text, integer) is
    'Ends a queued request that has no answer, with a response that says why.';

-- Returns claims: others may take the requests at once. What an at_most_once request's attempt did
-- nobody knows, so the request ends; so does a request that was lost with max_losses workers, and
-- from the second loss on it is attempted alone. A row that another session holds a lock on keeps
-- its claim until the next heartbeat.
create function pgnet.return_claims(
    -- the requests; NULL means none
    ids bigint[],
    -- what became of the attempt
    reason text,
    -- lost: with its worker; stopped: the worker ended in order
    ending text
)
    -- how many could not be returned, because something refuses it; pgnet.fault has one of them
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
    caught pgnet.error;
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
                perform pgnet.remove_flow(array[request.claim_id]);
                continue;
            end if;
            if request.options -> 'delivery' = '"at_most_once"' then
                perform pgnet.end_without_answer(request.id, 'unknown',
                    reason || ' Whether the request was received is unknown, and it is not sent again.', request.attempt);
            elsif ending = 'lost' and request.losses >= max_losses then
                perform pgnet.end_without_answer(request.id, 'failed',
                    format('%s %s workers were lost with it, and it is not tried again.', reason, request.losses), request.attempt);
            else
                perform pgnet.return_claim(
                    request.id, request.requested_by, request.attempt, request.claimed, ending, reason, request.losses);
            end if;
            perform pgnet.fire_deferred();
        exception when others then
            -- This request stays claimed; the others are returned.
            get stacked diagnostics caught.message = message_text, caught.state = returned_sqlstate,
                caught.referrer_schema = schema_name, caught.referrer = table_name, caught.constraint_name = constraint_name;
            perform pgnet.note_fault('giving back requests', format('request %s: %s', request.claim_id, caught.message),
                pgnet.remedy(caught));
            failed := failed + 1;
        end;
    end loop;
    return failed;
end
$$;
comment on function pgnet.return_claims(bigint[], text, text) is
    'Returns the claims of requests whose attempt ended without anybody''s knowing how, with a row '
    'in pgnet.attempt; an at_most_once request ends as unknown, one that was lost with max_losses '
    'workers as failed.';

create function pgnet.return_claim(
    id bigint, requested_by regrole, attempt integer, claimed timestamptz, ending text, reason text,
    -- how many workers were lost with the request
    losses bigint
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    path text;
begin
    with attempted as (
        insert into pgnet.attempt (request_id, attempt, requested_by, ending, started, ended, error_msg)
        values (
            return_claim.id,
            greatest(return_claim.attempt, 1 + (select max(a.attempt) from pgnet.attempt a where a.request_id = return_claim.id)),
            return_claim.requested_by, return_claim.ending, return_claim.claimed, clock_timestamp(), return_claim.reason)
        on conflict do nothing
    ), quarantined as (
        update net.http_request_queue q set due = 'infinity', waits_since = clock_timestamp()
        where q.id = return_claim.id and return_claim.ending = 'lost' and return_claim.losses >= 2
    ), unclaimed as (
        delete from pgnet.claim c where c.id = return_claim.id
    )
    select pgnet.use_owners_path() into path;
end
$$;
comment on function pgnet.return_claim(bigint, regrole, integer, timestamptz, text, text, bigint) is
    'Ends an attempt whose outcome nobody knows: the request may be taken at once, or is in '
    'quarantine from the second loss on.';

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
    -- A request that is being cancelled now is not the worker's any more.
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
    'Gives claimed requests back: others may take them at once. With a reason the attempt had '
    'begun: an at_most_once request ends as unknown.';

-- Returns the claims of workers that are gone, and those past their deadline whose worker has
-- stalled. Gives the seconds until more claims are to be returned; NULL where there are no more.
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
    -- A variable, since an index is not used for a value that may change from row to row.
    present timestamptz := clock_timestamp();
    rescue_after interval := pgnet.setting_value('rescue_after');
    -- A worker that is well says so at each heartbeat, which is every second where there are
    -- others.
    stalled_after interval := interval '5 s';
begin
    lock table net.http_request_queue, pgnet.claim, pgnet.attempt, net._http_response, pgnet.failed, pgnet.worker,
        pgnet.flow, pgnet.ended_request, pgnet.dependency, pgnet.callback, pgnet.callback_order in row exclusive mode nowait;
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
        -- A worker that is well answers with a heartbeat at once.
        perform pgnet.signal_workers('reload');
    end if;
    if pgnet.return_claims(array(
        -- These rows are locked: a worker that comes back at this moment keeps its claims, or finds
        -- them gone, and never both.
        with gone as materialized (
            select w.id, w.gone_since < clock_timestamp() - rescue_after as for_long from pgnet.worker w
            -- A backend died with its session; a process may come back over a new connection.
            where w.gone_since < clock_timestamp() - case w.kind when 'backend' then interval '0' else rescue_after end
            for update skip locked
        ), stalled as materialized (
            select w.id from pgnet.worker w where w.stalled_since < clock_timestamp() - stalled_after
            for update skip locked
        )
        select c.id from pgnet.claim c
        -- A claim counts for its host's limits, and for its key, until the server has noticed.
        where exists (select from gone g where g.id = c.worker and (g.for_long or c.limited is not true and c.ordering_key is null))
            or (c.deadline < clock_timestamp() and c.worker in (select s.id from stalled s))
            -- The claim of an outcome that is put aside has no worker, and stays.
            or (c.worker is not null and not exists (select from pgnet.worker w where w.id = c.worker and w.ended is null))),
        'The worker was lost.', 'lost') = 0
    then
        delete from pgnet.fault f where f.duty = 'giving back requests';
    end if;
    return (
        select case when min(f.due) is not null then greatest(0, extract(epoch from min(f.due) - clock_timestamp())) + 0.02 end
        from (
            select coalesce(w.gone_since + rescue_after, w.stalled_since + stalled_after) as due
            from pgnet.worker w
            where w.ended is null and (w.gone_since is not null or w.stalled_since is not null)
                and w.id = any (array(select distinct c.worker from pgnet.claim c))
        ) f
        -- A claim that cannot be returned is not waited for.
        where f.due > clock_timestamp() - interval '1 s');
end
$$;
comment on function pgnet.rescue_requests() is
    'Returns the claims of workers whose session has been gone for rescue_after, and those past '
    'their deadline whose worker has stalled. Gives the seconds until more are to be returned.';

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
    -- A variable, since an index is not used for a value that may change from row to row.
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
comment on function pgnet.mend_clocks() is
    'Mends times that lie in the future because a clock was put back, so that no request waits for '
    'them.';
