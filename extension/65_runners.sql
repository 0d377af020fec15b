-- Runners: the sessions that call what pgnet.callback names. 64_callbacks.sql has the theory.

create function pgnet.role_path(role regrole)
    returns text
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce((
        -- The temporary schema is searched last, not first: in a session of net.drain() it is the
        -- caller's.
        select nullif(trim(substr(c.assignment, 13)), '') || case when c.assignment ~ 'pg_temp' then '' else ', pg_temp' end
        from pg_db_role_setting s
        cross join lateral unnest(s.setconfig) c (assignment)
        where s.setrole in (0, role) and s.setdatabase in (0, (select d.oid from pg_database d where d.datname = current_database()))
            and lower(left(c.assignment, 12)) = 'search_path='
        order by s.setrole <> 0 desc, s.setdatabase <> 0 desc
        limit 1), '"$user", public, pg_temp');
end
$$;
comment on function pgnet.role_path(regrole) is
    'The search_path that a role has in a new session of this database: what ALTER ROLE ... SET or '
    'ALTER DATABASE ... SET says, or else PostgreSQL''s default.';

-- ---- how an attempt has ended

create function pgnet.settle_callback(
    -- the callback, as it was taken
    taken pgnet.callback,
    -- why it has failed; NULL: it is done
    error_msg text, error_code text, error_context text,
    -- whether it is not tried again by itself
    is_final boolean,
    most_attempts integer,
    -- how long it is kept, done and failed
    keep interval, keep_failed interval
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    present timestamptz := clock_timestamp();
    next_state text := case when error_msg is null then 'done'
        when is_final or taken.attempts >= most_attempts then 'failed' else 'retrying' end;
begin
    update pgnet.callback b
    set state = next_state, token = null, pid = null, backend_start = null,
        error_msg = left(settle_callback.error_msg, 10000), error_code = settle_callback.error_code,
        error_context = left(settle_callback.error_context, 10000),
        due = case when next_state = 'retrying' then present + least(interval '1 s' * 4 ^ least(taken.attempts - 1, 10), interval '1 hour') end,
        ended = case when next_state <> 'retrying' then present end,
        expires = case next_state when 'done' then present + keep when 'failed' then present + keep_failed end,
        outcome = case when next_state <> 'done' then b.outcome end
    where b.request_id = taken.request_id and b.requested_by = taken.requested_by;
end
$$;
comment on function pgnet.settle_callback(pgnet.callback, text, text, text, boolean, integer, interval, interval) is
    'Notes how an attempt of a callback has ended, and when the next one is due.';

create function pgnet.pause_callbacks(
    role oid,
    -- whether a callback of the role has run out of its time
    timed_out boolean
)
    returns void
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    update pgnet.callback_turn t
    set timeouts = case when timed_out then least(t.timeouts + 1, 1000) else 0 end,
        paused_until = case when timed_out
            then clock_timestamp() + least(interval '1 s' * 2 ^ least(t.timeouts, 10), interval '5 minutes') else '-infinity' end
    where t.role = pause_callbacks.role and (timed_out or t.timeouts > 0)
$$;
comment on function pgnet.pause_callbacks(oid, boolean) is
    'A role whose callback has run out of its time pauses: 1 s, 2 s, ... 5 minutes.';

create function pgnet.free_callbacks()
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
declare
    lost pgnet.callback;
begin
    for lost in
        select b.* from pgnet.callback b
        -- This session runs none: it is just looking for one.
        where b.pid is not null and (b.pid = pg_backend_pid() or not pgnet.session_is_alive(b.pid, b.backend_start))
        order by b.requested_by for update skip locked
    loop
        perform pgnet.settle_callback(lost, 'The session that ran it was lost.', '08006', null, false,
            pgnet.setting_value('callback_attempts')::integer, null, pgnet.setting_value('ttl_failed')::interval);
        perform pgnet.pause_callbacks(lost.requested_by, true);
    end loop;
end
$$;
comment on function pgnet.free_callbacks() is
    'Ends attempts whose session is gone: what they did is undone.';

-- ---- whose turn it is

create function pgnet.due_roles(
    present timestamptz
)
    returns table (role oid, due timestamptz, is_suspect boolean, served timestamptz)
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
#variable_conflict use_column
begin
    return query
    with recursive roles (role) as (
        (select b.requested_by::oid from pgnet.callback b where b.due is not null order by b.requested_by, b.due limit 1)
        union all
        select n.role
        from roles r
        cross join lateral (
            select b.requested_by::oid as role from pgnet.callback b
            where b.due is not null and (b.requested_by::oid, b.due) > (r.role, 'infinity') order by b.requested_by, b.due limit 1
        ) n
    )
    select r.role,
        -- No pause is so long: a clock was put back.
        greatest(case when d.due > present + interval '1 day' then present else d.due end,
            case when t.paused_until < present + interval '1 day' then t.paused_until end),
        coalesce(t.timeouts > 0, false), coalesce(t.served, '-infinity')
    from roles r
    cross join lateral (
        select b.due from pgnet.callback b
        where b.due is not null and (b.requested_by::oid, b.due) >= (r.role, '-infinity') and (b.requested_by::oid, b.due) <= (r.role, 'infinity')
        order by b.requested_by, b.due limit 1
    ) d
    left join lateral (
        select t.paused_until, t.timeouts, t.served from pgnet.callback_turn t where t.role = r.role offset 0
    ) t on true
    where not exists (select from pgnet.callback b where b.requested_by = r.role and b.pid is not null offset 0);
end
$$;
comment on function pgnet.due_roles(timestamptz) is
    'The roles that have callbacks waiting and none running, and when the next one may be called.';

-- What a runner calls first, as pgnet.lock_tables: it waits for no lock while it holds one.
create function pgnet.lock_callbacks()
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    lock table pgnet.worker_role, pgnet.worker, pgnet.setting, pgnet.database in access share mode nowait;
    perform pgnet.require_worker();
    lock table net.http_request_queue, pgnet.dependency, pgnet.callback, pgnet.callback_turn, pgnet.callback_order
        in row exclusive mode nowait;
end
$$;
comment on function pgnet.lock_callbacks() is
    'Asks pgnet.require_worker, and takes the locks of a runner that looks for callbacks. Raises 55P03 '
    'at once.';

create function pgnet.look_for_callbacks(
    -- roles whose callbacks are due, in their turns; of these the ones whose callbacks have run out
    -- of their time of late
    out roles oid[], out suspects oid[],
    -- seconds until more are due; NULL: no more wait
    out look_in double precision,
    -- the setting callback_runners
    out runners integer
)
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    present timestamptz;
    next_order timestamptz;
begin
    perform pgnet.lock_callbacks();
    perform pgnet.refuse_copy();
    perform pgnet.refuse_altered_callers();
    roles := '{}';
    suspects := '{}';
    runners := pgnet.setting_value('callback_runners')::integer;
    if pgnet.mode_in_force() = 'off' then
        return;
    end if;
    perform pgnet.free_callbacks();
    next_order := pgnet.examine_orders();
    present := clock_timestamp();
    select coalesce(array_agg(d.role order by d.is_suspect, d.served, d.role) filter (where d.due <= present), '{}'),
        coalesce(array_agg(d.role) filter (where d.due <= present and d.is_suspect), '{}'),
        extract(epoch from min(d.due) filter (where d.due > present) - present)
    into roles, suspects, look_in
    from pgnet.due_roles(present) d;
    look_in := least(look_in, greatest(extract(epoch from next_order - present), 0.01));
    if (select b.request_id from pgnet.callback b where b.pid is not null order by b.requested_by limit 1) is not null then
        -- Its session may be lost.
        look_in := least(look_in, 1);
    end if;
end
$$;
comment on function pgnet.look_for_callbacks() is
    'A runner looks whose callbacks are due. It carries out orders, and frees the callbacks of runners '
    'that are gone. Raises 55000 in a copy of another database.';

create function pgnet.take_next_callback(role oid)
    returns uuid
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
declare
    present timestamptz := clock_timestamp();
    next pgnet.callback;
    taken uuid := gen_random_uuid();
begin
    perform from pgnet.callback_turn t where t.role = take_next_callback.role for update skip locked;
    if not found then
        return null;
    end if;
    -- A statement of its own: it sees what the last session to have the turn has taken.
    if exists (select from pgnet.callback b where b.requested_by = take_next_callback.role::regrole and b.pid is not null) then
        return null;
    end if;
    select b.* into next from pgnet.callback b
    where b.due is not null and (b.requested_by::oid, b.due) >= (take_next_callback.role, '-infinity')
        and (b.requested_by::oid, b.due) <= (take_next_callback.role, 'infinity')
    order by b.requested_by, b.due limit 1 for update skip locked;
    if next.due is null or next.due > present and next.due < present + interval '1 day' then
        return null;
    end if;
    update pgnet.callback b
    set token = taken, pid = pg_backend_pid(), backend_start = (select a.backend_start from pg_stat_get_activity(pg_backend_pid()) a),
        attempts = b.attempts + 1, due = null
    where b.request_id = next.request_id and b.requested_by = next.requested_by;
    return taken;
end
$$;
comment on function pgnet.take_next_callback(oid) is
    'Begins an attempt of the next callback of a role, where none of the role runs, and gives its '
    'token; NULL where there is none.';

create function pgnet.take_callback(role oid)
    returns uuid
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgnet.lock_callbacks();
    insert into pgnet.callback_turn (role) values (take_callback.role) on conflict do nothing;
    update pgnet.callback_turn t set served = clock_timestamp()
    where t.role = (
        select o.role from pgnet.callback_turn o
        where o.role = take_callback.role and (o.paused_until <= clock_timestamp() or o.paused_until > clock_timestamp() + interval '1 day')
        for update skip locked);
    return case when found then pgnet.take_next_callback(role) end;
end
$$;
comment on function pgnet.take_callback(oid) is
    'A runner begins with the callbacks of a role: the token of the first attempt, which is committed '
    'before it runs; NULL where there is none, or another runner has the role.';

-- ---- the call

-- All that is read for a call. Its locks are released: this is undone, but for the variables.
create function pgnet.read_callback(
    taken pgnet.callback,
    -- why it cannot be called; gone: there is nothing to call it with
    out fault text, out gone boolean,
    out query text, out argument text, out path text,
    -- settings: in seconds, and in bytes
    out timeout double precision, out memory bigint, out most_attempts integer, out keep interval, out keep_failed interval
)
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    kind text := case when taken.request_ids is null then 'net.outcome' else 'net.outcome[]' end;
begin
    lock table net._http_response, pgnet.failed, pgnet.mark, pgnet.setting in access share mode nowait;
    timeout := extract(epoch from pgnet.setting_value('callback_timeout')::interval);
    memory := pgnet.setting_value('callback_memory');
    most_attempts := pgnet.setting_value('callback_attempts');
    keep_failed := pgnet.setting_value('ttl_failed');
    -- net.retry has the callback called for the new request, too.
    keep := case when exists (select from pgnet.failed f where f.id = taken.request_id) then keep_failed
        else pgnet.setting_value('ttl')::interval end;
    path := pgnet.role_path(taken.requested_by);
    select format('select %I.%I($1::%s) is null', n.nspname, p.proname, kind) into query
    from pg_proc p
    join pg_namespace n on n.oid = p.pronamespace
    where p.oid = taken.callback_oid and format('%I.%I', n.nspname, p.proname) = taken.callback
        and p.prokind = 'f' and not p.proretset and p.pronargs = 1 and p.proargtypes[0] = kind::regtype;
    fault := case when not exists (select from pg_roles r where r.oid = taken.requested_by) then 'The role does not exist any more.'
        when query is null then format('The function %s(%s) was dropped, renamed or replaced. Is it there again? select net.run_callback(%s);',
            taken.callback, kind, taken.request_id) end;
    argument := pgnet.callback_argument(taken);
    gone := argument is null or exists (
        select from pgnet.mark m where m.requested_by = taken.requested_by and m.request_id = taken.request_id and m.action = 'forget');
    raise exception using errcode = 'PN000';
exception when sqlstate 'PN000' then
    null;
when program_limit_exceeded or out_of_memory then
    fault := 'It cannot be called with so large an answer: ' || sqlerrm || '.';
end
$$;
comment on function pgnet.read_callback(pgnet.callback) is
    'What a callback is called with, or why it cannot be called.';

create function pgnet.callback_argument(taken pgnet.callback)
    -- as text; NULL: it was forgotten
    returns text
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
begin
    if taken.request_ids is null then
        return coalesce((
            select (r.id, r.state, r.status_code, r.headers, r.content, r.content_bytes, r.error_msg, r.attempts, r.context)::net.outcome::text
            from net._http_response r
            where r.id = taken.request_id and r.requested_by = taken.requested_by), taken.outcome::text);
    end if;
    return array(
        select (a.id, coalesce(r.state, f.state), r.status_code, r.headers, r.content, r.content_bytes, r.error_msg, r.attempts, r.context)::net.outcome
        from unnest(taken.request_ids) with ordinality a (id, place)
        left join lateral (
            select r.* from net._http_response r where r.id = a.id and r.requested_by = taken.requested_by offset 0
        ) r on true
        left join lateral (
            select f.state from pgnet.failed f where f.id = a.id and f.requested_by = taken.requested_by offset 0
        ) f on true
        order by a.place)::text;
end
$$;
comment on function pgnet.callback_argument(pgnet.callback) is
    'The outcome of a request, or the outcomes of a set, as text.';

-- PostgreSQL refuses temporary tables in the operation, and its later minor releases types, which
-- would be found before others in the rest of the session, but not all temporary objects.
create function pgnet.temporary_objects()
    returns bigint
    language plpgsql stable parallel restricted
    set search_path = pg_catalog, pg_temp
as $$
begin
    if pg_my_temp_schema() = 0 then
        return 0;
    end if;
    return (select count(*) from pg_depend d where d.refclassid = 'pg_namespace'::regclass and d.refobjid = pg_my_temp_schema());
end
$$;
comment on function pgnet.temporary_objects() is 'How many temporary objects the session has.';

-- This runs as the role, in its path, within the operation that server/restricted.py begins. So it
-- has no path of its own, every name in it is qualified, and it may be called by everybody.
create function pgnet.report_call(query text, argument text, out message text, out state text, out detail text, out hint text, out context text)
    language plpgsql volatile parallel unsafe
as $$
declare
    temporary_objects bigint := pgnet.temporary_objects();
begin
    execute query using argument;
    if pgnet.temporary_objects() operator(pg_catalog.<>) temporary_objects then
        raise exception using errcode = 'insufficient_privilege', message = 'a callback cannot create temporary objects';
    end if;
exception when query_canceled or assert_failure or others then
    get stacked diagnostics message = message_text, state = returned_sqlstate, detail = pg_exception_detail,
        hint = pg_exception_hint, context = pg_exception_context;
end
$$;
comment on function pgnet.report_call(text, text) is
    'Runs a query of the caller''s, and gives the error that it raises, with its context.';

create function pgnet.call_restricted(
    role oid, path text, query text, argument text,
    -- seconds, bytes
    timeout double precision, memory bigint,
    -- whether advisory locks of the session stay
    keep_locks boolean,
    out message text, out state text, out context text,
    -- whether it has run out of its time, or was cancelled from outside
    out timed_out boolean, out cancelled boolean
)
    language plpython3u volatile parallel unsafe
as $$
from pgnet import sql_v1
return sql_v1.call_restricted(plpy, role, path, query, argument, timeout, memory, keep_locks)
$$;
comment on function pgnet.call_restricted(oid, text, text, text, double precision, bigint, boolean) is
    'Runs a query as a role, with nothing that the session''s own role may do: the error that it '
    'raised, with its effects undone; or NULLs.';

create function pgnet.lock_taken(token uuid)
    returns pgnet.callback
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
declare
    taken pgnet.callback;
begin
    lock table pgnet.callback, pgnet.callback_turn in row exclusive mode nowait;
    select b.* into taken from pgnet.callback b
    where b.pid is not null and b.pid = pg_backend_pid() and b.token = lock_taken.token
    order by b.requested_by for update skip locked;
    return taken;
end
$$;
comment on function pgnet.lock_taken(uuid) is
    'The callback that this session has taken under a token; NULLs: it has not, or not any more.';

-- No settings but these: they would hold for the callback as well.
create function pgnet.perform_callback(
    -- of the attempt, from pgnet.take_callback
    token uuid,
    -- whether the next callback of the role is to be taken after it
    go_on boolean,
    keep_locks boolean default false,
    -- of the next attempt; NULL: none is begun
    out next_token uuid,
    -- whether a cancel of the session has ended it
    out cancelled boolean
)
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
    set session_replication_role = origin
as $$
declare
    taken pgnet.callback;
    asked record;
    result record;
begin
    perform pgnet.require_runner();
    perform pgnet.refuse_altered_callers();
    select * into taken from pgnet.lock_taken(token);
    if taken.callback is null then
        return;
    end if;
    select * into asked from pgnet.read_callback(taken);
    if asked.gone then
        delete from pgnet.callback b where b.request_id = taken.request_id and b.requested_by = taken.requested_by;
    elsif asked.fault is not null then
        perform pgnet.settle_callback(taken, asked.fault, '42883', null, true, 0, asked.keep, asked.keep_failed);
    else
        select * into result
        from pgnet.call_restricted(taken.requested_by, asked.path, asked.query, asked.argument, asked.timeout, asked.memory, keep_locks);
        cancelled := result.cancelled;
        perform pgnet.settle_callback(taken, result.message, result.state, result.context, false, asked.most_attempts, asked.keep, asked.keep_failed);
        perform pgnet.pause_callbacks(taken.requested_by, result.timed_out or result.cancelled);
        go_on := go_on and not (result.timed_out or result.cancelled);
    end if;
    if go_on then
        next_token := pgnet.take_next_callback(taken.requested_by);
    end if;
end
$$;
comment on function pgnet.perform_callback(uuid, boolean, boolean) is
    'Calls a callback that this session has taken, and notes how it has ended, in the transaction '
    'that has its effects. It may take the next one of the role.';

create function pgnet.require_runner()
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    lock table pgnet.worker_role, pgnet.worker in access share mode nowait;
    perform pgnet.require_worker();
    -- The locks are released.
    raise exception using errcode = 'PN000';
exception when sqlstate 'PN000' then
    null;
end
$$;
comment on function pgnet.require_runner() is
    'Asks pgnet.require_worker, and holds no lock afterwards.';

-- ---- in a session

create procedure pgnet.serve_callbacks(
    max_runtime interval,
    -- true where nothing can be committed: inside a transaction block
    inout in_transaction_block boolean
)
    language plpython3u
as $$
from pgnet import sql_v1
plpy.execute("select pgnet.require_worker()")
return sql_v1.serve_callbacks(plpy, max_runtime)
$$;
comment on procedure pgnet.serve_callbacks(interval, boolean) is 'The runner behind net.run_callbacks.';

create procedure net.run_callbacks(
    -- begin no callback after this time; NULL stays
    max_runtime interval default null
)
    language plpgsql
as $$
declare
    in_transaction_block boolean;
begin
    perform pgnet.require_worker();
    perform pgnet.refuse_copy();
    call pgnet.serve_callbacks(max_runtime, in_transaction_block);
    if in_transaction_block then
        perform pgnet.refuse_transaction_block('net.run_callbacks');
    end if;
end
$$;
comment on procedure net.run_callbacks(interval) is
    'Runs callbacks in this session as they fall due, until max_runtime has passed (NULL: for ever), '
    'a cancel, or the end of the server. A worker process runs them itself, and so does net.drain(). Raises '
    '25001 inside a transaction block, 55000 in a copy of another database. net.grant_worker lets a '
    'role call it.';
