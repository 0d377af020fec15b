-- Callbacks: functions that are called when requests have ended, each with its effect exactly once.
--
-- Theory of operation
--
-- Where they come from. A request with a callback has a row in pgnet.flow, which names the function
-- by its name and its number. Whatever ends the request deletes that row, in the same transaction
-- or a later one; the trigger make_callbacks then makes a row of pgnet.callback. So no way to end a
-- request can be forgotten. A request that is forgotten, or was deleted by hand, has no response:
-- nothing is called for it.
--
-- Sets. net.on_all_done inserts an order. pgnet.examine_orders looks for a request of the set that
-- is still queued, locks its row, and makes a row of pgnet.dependency: the set waits for it. What
-- ends a request takes its row with SKIP LOCKED and then asks who waits for it (49_gates.sql): so
-- it either sees the row of pgnet.dependency, or the order is examined once more. When that row is
-- deleted, the trigger note_set has the set examined again. When none of its requests is queued,
-- the set has ended.
--
-- How they are run. A runner is a session: of a worker process, or of net.run_callbacks or
-- net.drain. It takes a callback in one transaction, which counts the attempt, and calls it in the
-- next, which notes that it is done: so an effect is there if, and only if, the callback is done. A
-- callback that fails is undone; its transaction notes the error. Of a runner that dies the attempt
-- counts, and its row is free again, since its session is gone.
--
-- Roles take turns, and have one callback running at a time: pgnet.callback_turn. A role whose
-- callback has run out of its time pauses, for longer each time.
--
-- What a callback may do. It runs as the role that made the request, in a security-restricted
-- operation, as an index function in a superuser's VACUUM does: server/restricted.py has how, and
-- what it may not do. While it runs, its runner holds no lock but those of its own rows, on tables
-- that nothing else writes for long.
--
-- What a caller forges. A role may insert rows into pgnet.flow and pgnet.callback_order, with any
-- function. It has its own callbacks called by that, as itself. The name in a row is compared with
-- the function's and never run.

-- ---- at the call

-- Migrations for pg_net alter functions to SECURITY DEFINER. A request that such a function makes
-- is its owner's. The owner is a superuser, and any role could name a callback that runs as the
-- owner.
create function pgnet.refuse_altered_callers()
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    altered regprocedure := (
        select p.oid from pg_proc p
        where p.prosecdef and (
                p.pronamespace = to_regnamespace('net') and p.proname in ('http_request', 'on_all_done')
                or p.pronamespace = to_regnamespace('pgnet') and p.proname in (
                    'resolve_callback', 'queue_request', 'debounce_request', 'queue_unique_request', 'caller_role', 'report_call'))
        limit 1);
begin
    if altered is not null then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('%s was altered to SECURITY DEFINER: no callback can be named or called', altered),
            detail = 'It would run as the owner of pgnet, whoever names it.',
            hint = format('alter function %s security invoker;', altered);
    end if;
end
$$;
comment on function pgnet.refuse_altered_callers() is
    'Raises 42501 where a function that makes callbacks, or that calls them, was altered to SECURITY '
    'DEFINER.';

-- The name is looked for in the caller's path, so this has none of its own.
create function pgnet.resolve_callback(
    -- a function, perhaps with its schema; the type of its argument
    name text, argument text,
    out callback text, out callback_oid oid
)
    language plpgsql stable parallel safe
as $$
declare
    parts pg_catalog.text[] := pg_catalog.parse_ident(resolve_callback.name);
    found record;
begin
    perform pgnet.refuse_altered_callers();
    if pg_catalog.cardinality(parts) operator(pg_catalog.=) 1 then
        callback_oid := pg_catalog.to_regprocedure(pg_catalog.format('%I(%s)', parts[1], resolve_callback.argument));
    elsif pg_catalog.cardinality(parts) operator(pg_catalog.=) 2 then
        callback_oid := pg_catalog.to_regprocedure(pg_catalog.format('%I.%I(%s)', parts[1], parts[2], resolve_callback.argument));
    end if;
    if callback_oid is null then
        perform pgnet.raise_error('42883', pg_catalog.format('function %s(%s) does not exist', resolve_callback.name, resolve_callback.argument),
            pg_catalog.format('A callback is a function of one argument: create function %s(o %s) returns void ...',
                resolve_callback.name, resolve_callback.argument));
    end if;
    select pg_catalog.format('%I.%I', n.nspname, p.proname) as name,
        p.prokind operator(pg_catalog.=) 'f'::pg_catalog."char" and not p.proretset as is_plain into found
    from pg_catalog.pg_proc p
    join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) p.pronamespace
    where p.oid operator(pg_catalog.=) callback_oid;
    callback := found.name;
    if not found.is_plain then
        perform pgnet.raise_error('42809', pg_catalog.format('%s is no function that gives one value', callback),
            'A callback is neither a procedure nor an aggregate, and returns no set: let it return void.');
    elsif not pg_catalog.has_function_privilege(callback_oid, 'execute') then
        perform pgnet.raise_error('42501', pg_catalog.format('role "%s" may not execute %s(%s)', current_user, callback, resolve_callback.argument),
            pg_catalog.format('The callback runs as this role. Its owner grants it: grant execute on function %s(%s) to %I;',
                callback, resolve_callback.argument, current_user));
    end if;
end
$$;
comment on function pgnet.resolve_callback(text, text) is
    'The function of this name and argument in the caller''s path: its name with the schema, and its '
    'number. Raises 42883 where there is none, 42809 where it cannot be a callback, 42501 where the '
    'caller may not execute it.';

-- Any role may have runners look; that is all a caller of it can do.
create function pgnet.wake_runners()
    returns void
    language sql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
as $$ select pgnet.arm_wake_up('callback') $$;
comment on function pgnet.wake_runners() is 'Has runners look for callbacks at the commit.';

create function pgnet.check_set(ids bigint[])
    -- each id once, in its place
    returns bigint[]
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    missing bigint;
begin
    if ids is null or array_position(ids, null) is not null then
        perform pgnet.raise_error('22004', 'ids must not be NULL, nor contain NULL', 'Give an array of ids: array[1, 2].');
    elsif cardinality(ids) > 10000 then
        perform pgnet.raise_error('22023', format('a set has at most 10000 requests, not %s', cardinality(ids)), 'Make several sets.');
    end if;
    missing := (
        select min(a.id)
        from unnest(ids) a (id)
        where not exists (
                select from net.http_request_queue q where q.id = a.id and q.requested_by = pgnet.caller_role() offset 0)
            and not exists (
                select from net._http_response r where r.id = a.id and r.requested_by = pgnet.caller_role() offset 0)
            and not exists (
                select from pgnet.failed f where f.id = a.id and f.requested_by = pgnet.caller_role() offset 0));
    if missing is not null then
        perform pgnet.raise_error('22023', format('there is no request %s of role "%s"', missing, current_user),
            'A set has requests of the role itself that are queued, or whose response is kept: the setting ttl says for how long.');
    end if;
    return array(select a.id from unnest(ids) with ordinality a (id, place) group by a.id order by min(a.place));
end
$$;
comment on function pgnet.check_set(bigint[]) is
    'The ids of a set, each once. Raises 22004 for NULL, 22023 for an id that is no request of the '
    'caller''s, and for more than 10,000.';

create function net.on_all_done(
    -- requests of the caller's; those that have ended count as well
    ids bigint[],
    -- a function of one argument net.outcome[]
    callback text
)
    -- the set's number, for net.callbacks and net.run_callback; it is negative
    returns bigint
    language plpgsql volatile parallel unsafe
as $$
declare
    resolved record;
    set_id bigint;
begin
    if on_all_done.callback is null then
        perform pgnet.raise_error('22004', 'callback must not be NULL', 'It is the name of a function.');
    end if;
    select r.callback as name, r.callback_oid as oid into resolved from pgnet.resolve_callback(on_all_done.callback, 'net.outcome[]') r;
    insert into net._new_callback (request_ids, callback, callback_oid)
    values (pgnet.check_set(on_all_done.ids), resolved.name, resolved.oid)
    returning id into set_id;
    perform pgnet.wake_runners();
    return set_id;
end
$$;
comment on function net.on_all_done(bigint[], text) is
    'Has a function called once, when all of these requests have ended, with their outcomes in the '
    'order of the ids; an empty array calls it at once. Gives the number of the set. A NULL raises 22004; '
    'an id that is no request of the caller''s, or more than 10,000 of them, 22023; a function that is not there '
    '42883, or may not be executed 42501.';

create function net.run_callback(
    -- the id of a request, or the number that net.on_all_done gave
    id bigint
)
    -- whether there is something to call
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    made pgnet.callback;
    resolved record;
begin
    select b.* into made from pgnet.callback b
    where b.request_id = run_callback.id and (b.requested_by = pgnet.caller_role() or pgnet.caller_is_owner());
    if made.callback is null or made.state = 'done' then
        return false;
    end if;
    select * into resolved
    from pgnet.resolve_callback(made.callback, case when made.request_ids is null then 'net.outcome' else 'net.outcome[]' end);
    if made.requested_by = pgnet.caller_role() then
        insert into net._new_callback (request_id, callback, callback_oid) values (made.request_id, resolved.callback, resolved.callback_oid);
    else
        -- The right to say whose request it is the owner has alone.
        insert into pgnet.callback_order (request_id, requested_by, callback, callback_oid)
        values (made.request_id, made.requested_by, resolved.callback, resolved.callback_oid);
    end if;
    perform pgnet.wake_runners();
    return true;
end
$$;
comment on function net.run_callback(bigint) is
    'Has a callback that failed, or that waits for its next attempt, called now, as often as a new '
    'one: true. The function of its name is looked for again. False where it is done, or there is '
    'none, or it is another role''s. NULL gives false. Raises 42883 where the function is not there, 42501 where the '
    'caller may not execute it.';

create view net.callbacks with (security_invoker) as
    select b.request_id as id, b.request_ids, b.callback,
        case when b.pid is not null then 'running' else b.state end as state,
        b.attempts, b.due as next_attempt, b.error_msg, b.error_code, b.error_context, b.requested_by, b.made, b.ended
    from pgnet.callback b
    where not exists (
        select from pgnet.mark m
        where m.requested_by operator(pg_catalog.=) b.requested_by and m.request_id operator(pg_catalog.=) b.request_id
            and m.action operator(pg_catalog.=) 'forget' offset 0)
    union all
    select o.id, o.request_ids, o.callback, 'pending', 0, null, null, null, null, o.requested_by, o.made, null
    from pgnet.callback_order o
    where o.request_ids is not null;
comment on view net.callbacks is
    'Callbacks of requests that have ended, and of sets: pending (requests of the set have not '
    'ended), waiting, running, retrying, done, failed; the error of the last attempt. A role sees its '
    'own.';

-- ---- at the end of a request

create function pgnet.make_callbacks()
    returns trigger
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
begin
    insert into pgnet.callback (request_id, requested_by, callback, callback_oid, due)
    select g.request_id, g.requested_by, g.callback, g.callback_oid, clock_timestamp()
    from gone g
    -- A name with its schema is shorter; a forged one may be of any length.
    where octet_length(g.callback) < 1000
        and exists (select from net._http_response r where r.id = g.request_id and r.requested_by = g.requested_by offset 0)
    on conflict do nothing;
    if found then
        perform pgnet.arm_wake_up('callback');
    end if;
    return null;
end
$$;
comment on function pgnet.make_callbacks() is
    'After rows of pgnet.flow are deleted: of requests that have ended, the callbacks are to be '
    'called.';
create trigger make_callbacks after delete on pgnet.flow referencing old table as gone
    for each statement execute function pgnet.make_callbacks();

create function pgnet.note_set()
    returns trigger
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
begin
    update pgnet.callback_order o set look_at = clock_timestamp()
    where o.id = any (array(select g.request_id from gone g where g.request_id < 0));
    if found then
        perform pgnet.arm_wake_up('callback');
    end if;
    return null;
end
$$;
comment on function pgnet.note_set() is
    'After rows of pgnet.dependency are deleted: the sets that waited for these requests are looked '
    'at.';
create trigger note_set after delete on pgnet.dependency referencing old table as gone
    for each statement execute function pgnet.note_set();

-- ---- orders

create function pgnet.examine_set(asked pgnet.callback_order)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
declare
    awaited bigint := (
        select max(q.id)
        from unnest(asked.request_ids) a (id)
        cross join lateral (
            select q.id from net.http_request_queue q where q.id = a.id and q.requested_by = asked.requested_by offset 0
        ) q);
begin
    if awaited is null then
        insert into pgnet.callback (request_id, requested_by, request_ids, callback, callback_oid, due)
        values (asked.id, asked.requested_by, asked.request_ids, left(asked.callback, 1000), asked.callback_oid, clock_timestamp())
        on conflict do nothing;
        delete from pgnet.callback_order o where o.id = asked.id;
        return;
    end if;
    perform from net.http_request_queue q where q.id = awaited for key share skip locked;
    if not found then
        -- It ends at this moment, or somebody has locked it.
        update pgnet.callback_order o set look_at = clock_timestamp() + interval '0.05 s' where o.id = asked.id;
        return;
    end if;
    insert into pgnet.dependency (after_id, request_id, any_end) values (awaited, asked.id, true) on conflict do nothing;
    update pgnet.callback_order o set look_at = clock_timestamp() + interval '1 minute' where o.id = asked.id;
end
$$;
comment on function pgnet.examine_set(pgnet.callback_order) is
    'Has a set wait for one of its requests that is still queued, or be called where none is.';

create function pgnet.examine_orders()
    -- when the next order is to be looked at; NULL: no order waits
    returns timestamptz
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
declare
    present timestamptz := clock_timestamp();
    asked pgnet.callback_order;
begin
    for asked in
        with recursive roles (role) as (
            (select o.requested_by::oid from pgnet.callback_order o order by o.requested_by, o.look_at limit 1)
            union all
            select n.role
            from roles r
            cross join lateral (
                select o.requested_by::oid as role from pgnet.callback_order o
                where (o.requested_by::oid, o.look_at) > (r.role, 'infinity') order by o.requested_by, o.look_at limit 1
            ) n
        )
        select t.*
        from roles r
        -- No look is put off for two minutes: a clock was put back.
        cross join (values ('-infinity'::timestamptz, present), (present + interval '2 minutes', 'infinity')) s (since, until)
        cross join lateral (
            select o.* from pgnet.callback_order o
            where (o.requested_by::oid, o.look_at) >= (r.role, s.since) and (o.requested_by::oid, o.look_at) <= (r.role, s.until)
            order by o.requested_by, o.look_at limit 20 for update of o skip locked
        ) t
    loop
        if asked.request_ids is not null then
            perform pgnet.examine_set(asked);
        elsif exists (
            select from pgnet.callback b
            where b.request_id = asked.request_id and b.requested_by = asked.requested_by and b.pid is not null)
        then
            update pgnet.callback_order o set look_at = clock_timestamp() + interval '1 s' where o.id = asked.id;
        else
            update pgnet.callback b
            set state = 'waiting', attempts = 0, due = clock_timestamp(), ended = null, expires = null,
                callback = left(asked.callback, 1000), callback_oid = asked.callback_oid
            where b.request_id = asked.request_id and b.requested_by = asked.requested_by and b.state <> 'done';
            delete from pgnet.callback_order o where o.id = asked.id;
        end if;
    end loop;
    return (
        with recursive roles (role, look_at) as (
            (select o.requested_by::oid, o.look_at from pgnet.callback_order o order by o.requested_by, o.look_at limit 1)
            union all
            select n.role, n.look_at
            from roles r
            cross join lateral (
                select o.requested_by::oid as role, o.look_at from pgnet.callback_order o
                where (o.requested_by::oid, o.look_at) > (r.role, 'infinity') order by o.requested_by, o.look_at limit 1
            ) n
        )
        select min(r.look_at) from roles r);
end
$$;
comment on function pgnet.examine_orders() is
    'Carries out what net.on_all_done and net.run_callback ask for, 20 orders of each role.';

create function pgnet.has_callbacks()
    returns boolean
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
begin
    return (select b.request_id from pgnet.callback b where b.due is not null order by b.requested_by, b.due limit 1) is not null
        or (select b.request_id from pgnet.callback b where b.pid is not null order by b.requested_by limit 1) is not null
        or (select o.id from pgnet.callback_order o order by o.requested_by, o.look_at limit 1) is not null;
end
$$;
comment on function pgnet.has_callbacks() is
    'Whether there is something for runners to look at, at once or later.';

create function pgnet.expire_callbacks()
    -- seconds until it is to be called again; NULL: at any time
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
declare
    present timestamptz := clock_timestamp();
    most constant integer := 5000;
    places tid[];
begin
    lock table pgnet.callback, pgnet.callback_turn in row exclusive mode nowait;
    places := array(
        select b.ctid from pgnet.callback b where b.expires < present order by b.expires limit most for update skip locked);
    delete from pgnet.callback b where b.ctid = any (places);
    delete from pgnet.callback_turn t
    where t.served < present - interval '1 day'
        and not exists (select from pgnet.callback b where b.requested_by = t.role and (b.due is not null or b.pid is not null));
    return case when cardinality(places) = most then 0.1 end;
end
$$;
comment on function pgnet.expire_callbacks() is
    'Deletes callbacks that are done and past the setting ttl, and those that failed, or whose '
    'request did, and are past ttl_failed.';

create function pgnet.callback_number(callback text, argument text)
    returns oid
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    -- A forged name may be any text. PostgreSQL 15 raises an error for a text that is not a name.
    select case when octet_length(callback) < 1000
            and callback ~ '^("([^"]|"")+"|[a-z_][a-z0-9_$]*)[.]("([^"]|"")+"|[a-z_][a-z0-9_$]*)$'
        then to_regprocedure(callback || '(' || argument || ')') end
$$;
comment on function pgnet.callback_number(text, text) is
    'The number of the function that has a name now; NULL where there is none.';

create function pgnet.renumber_callbacks()
    returns void
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    update pgnet.flow f set callback_oid = pgnet.callback_number(f.callback, 'net.outcome') where f.callback is not null;
    update pgnet.callback b
    set callback_oid = pgnet.callback_number(b.callback, case when b.request_ids is null then 'net.outcome' else 'net.outcome[]' end),
        pid = null, due = case when b.state in ('waiting', 'retrying') then clock_timestamp() end
    where b.state <> 'done';
    update pgnet.callback_order o
    set callback_oid = pgnet.callback_number(o.callback, case when o.request_ids is null then 'net.outcome' else 'net.outcome[]' end);
$$;
comment on function pgnet.renumber_callbacks() is
    'Functions have other numbers in a copy that pg_upgrade has made: it looks for them by their '
    'names.';
