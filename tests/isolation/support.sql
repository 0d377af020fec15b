-- The vocabulary of the specs: the steps of a worker, which remembers its claims as a real one does,
-- and the state of its requests. All of it is PL/pgSQL, so that nothing depends on the extension,
-- which each permutation makes anew.

create table worker (number integer primary key, id bigint, secret uuid);
create table held (worker integer, id bigint, token uuid);

create procedure fresh() language plpgsql as $$
begin
    drop extension if exists pgnet cascade;
    create extension pgnet;
    -- The ids of workers are their numbers.
    perform setval(pg_get_serial_sequence('pgnet.worker', 'id'), 1, false);
    truncate worker, held;
end
$$;

create procedure register(worker_number integer) language plpgsql as $$
begin
    insert into worker select worker_number, r.worker_id, r.worker_secret from pgnet.register_worker('process') r;
end
$$;

-- The worker comes back over a new connection, with its secret and the claims that it still works on.
create function come_back(worker_number integer) returns boolean language plpgsql as $$
declare
    me worker := (select w from worker w where w.number = worker_number);
    again record;
begin
    select * into again from pgnet.register_worker('process', me.id, me.secret,
        (select coalesce(array_agg(h.id), '{}') from held h where h.worker = worker_number));
    update worker w set id = again.worker_id, secret = again.worker_secret where w.number = worker_number;
    return again.worker_id = me.id;
end
$$;

create function claim(worker_number integer, slots integer default 10, quarantined_only boolean default false)
    returns table (id bigint, url text, attempt integer) language plpgsql as $$
#variable_conflict use_column
begin
    return query
    with c as (
        select c.* from worker w cross join lateral pgnet.claim_requests(w.id, slots, slots, slots, '{}', 1000000, '', quarantined_only) c
        where w.number = worker_number and c.id is not null
    ), h as (
        insert into held select worker_number, c.id, c.token::uuid from c
    )
    select c.id, c.url, c.attempt from c order by c.id;
end
$$;

-- Records outcomes of these requests, or of all that the worker holds; returns the ids of outcomes
-- that are deferred, which the worker keeps.
create function record(worker_number integer, variadic ids bigint[] default null) returns bigint[] language plpgsql as $$
declare
    deferred bigint[];
begin
    deferred := pgnet.record_outcomes((
        select coalesce(json_agg(json_build_object('id', h.id, 'token', h.token, 'state', 'succeeded', 'status_code', 200,
            'content', 'by worker ' || worker_number, 'timed_out', false) order by h.id), '[]')
        from held h where h.worker = worker_number and (ids is null or h.id = any (ids))));
    delete from held h
    where h.worker = worker_number and (ids is null or h.id = any (ids)) and h.id <> all (deferred);
    return deferred;
end
$$;

-- Records all that the worker holds as failed.
create procedure fail(worker_number integer) language plpgsql as $$
begin
    perform pgnet.record_outcomes(json_agg(json_build_object('id', h.id, 'token', h.token, 'state', 'failed', 'error_msg', 'refused',
        'timed_out', false))) from held h where h.worker = worker_number;
    delete from held h where h.worker = worker_number;
end
$$;

-- Puts all that the worker holds back for another attempt in a thousand seconds; returns the ids of
-- outcomes that are deferred.
create function retry(worker_number integer) returns bigint[] language plpgsql as $$
begin
    return pgnet.record_outcomes((
        select json_agg(json_build_object('id', h.id, 'token', h.token, 'state', 'retrying', 'status_code', 503,
            'retry_in', 1000, 'timed_out', false) order by h.id)
        from held h where h.worker = worker_number));
end
$$;

create procedure release(worker_number integer, reason text default null) language plpgsql as $$
begin
    perform pgnet.release_requests(array_agg(h.id), array_agg(h.token), reason) from held h where h.worker = worker_number;
    delete from held h where h.worker = worker_number;
end
$$;

-- A heartbeat: the worker says what it holds.
create procedure heartbeat(worker_number integer) language plpgsql as $$
begin
    perform pgnet.heartbeat(w.id, (select coalesce(array_agg(h.id), '{}') from held h where h.worker = worker_number))
    from worker w where w.number = worker_number;
end
$$;

-- The worker's session is gone, for longer than rescue_after, but not so long that it is forgotten.
create procedure lose(worker_number integer) language plpgsql as $$
begin
    update pgnet.worker n set backend_start = n.backend_start - interval '1 day', gone_since = now() - interval '10 s'
    from worker w where w.number = worker_number and n.id = w.id;
end
$$;

-- The workers before this one are lost, with all that they hold; then their sessions live again.
create procedure lose_all(worker_number integer) language plpgsql as $$
begin
    update pgnet.worker w set gone_since = now() - interval '10 s', backend_start = w.backend_start - interval '1 day' where w.id < worker_number;
    call heartbeat(worker_number);
    update pgnet.worker w set gone_since = null, backend_start = w.backend_start + interval '1 day' where w.id < worker_number;
end
$$;

create function standing()
    returns table (id bigint, state text, attempts integer, claimed_by integer, content text, error_msg text)
    language plpgsql as $$
#variable_conflict use_column
begin
    return query
    select r.id, r.state::text, r.attempts, w.number, a.content, regexp_replace(r.error_msg, '[A-Z][a-z][a-z] [A-Z][a-z][a-z] [0-9 :]+ [0-9]{4} [A-Z]+', 'TIME')
    from net.requests r
    left join net._http_response a on a.id = r.id
    left join pgnet.claim c on c.id = r.id
    left join worker w on w.id = c.worker
    order by r.id;
end
$$;
