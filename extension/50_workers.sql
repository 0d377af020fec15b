-- Workers: registering and deregistering, and what each call of a worker asks first. A worker uses
-- the queue by a handful of functions, with the owner's rights and a pinned search_path, and
-- touches no table by itself.

create function pgnet.session_is_alive(worker_pid integer, worker_backend_start timestamptz)
    returns boolean
    language sql stable parallel restricted security definer
    set search_path = pg_catalog, pg_temp
as $$
    select exists (select from pg_stat_get_activity(worker_pid) a where a.backend_start = worker_backend_start)
$$;
comment on function pgnet.session_is_alive(integer, timestamptz) is
    'Whether the session with this pid and start is still there: what nobody can forge, unlike an '
    'advisory lock.';

create function pgnet.worker_is_up()
    returns boolean
    language sql stable parallel restricted security definer
    set search_path = pg_catalog, pg_temp
as $$
    select exists (select from pgnet.worker w where w.ended is null and pgnet.session_is_alive(w.pid, w.backend_start))
$$;
comment on function pgnet.worker_is_up() is 'Whether a worker serves this database now.';

create function pgnet.how_to_start_a_worker()
    returns text language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select 'Start one: select net.schedule_worker() with pg_cron, call net.work() in a session of its own, or the process "pgnet worker".'
$$;
comment on function pgnet.how_to_start_a_worker() is 'The hint where no worker runs.';

create function pgnet.warn_without_worker(request_id bigint)
    -- whether it has warned
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- On a standby nobody sees the workers of the primary.
    if pgnet.worker_is_up() or pg_is_in_recovery() then
        return false;
    end if;
    raise warning using
        message = format('request %s waits: no worker is running', request_id),
        hint = pgnet.how_to_start_a_worker();
    return true;
end
$$;
comment on function pgnet.warn_without_worker(bigint) is
    'Warns the caller that waits for a request where no worker serves this database.';

-- A worker waits for the lock of a table only while it holds no other lock. So it cannot be part of
-- a deadlock with DROP EXTENSION, which locks the tables in an order that cannot be known. A wait
-- longer than lock_timeout fails with 55P03. A role that may not work is told so first, and locks
-- nothing.
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
            lock table net.http_request_queue, pgnet.claim, pgnet.attempt, net._http_response, pgnet.failed, pgnet.unrecorded, pgnet.worker,
                pgnet.flow, pgnet.host_budget, pgnet.limit_change, pgnet.host_state,
                pgnet.gate_keeper, pgnet.dependency, pgnet.ended_request, pgnet.blocked_key, pgnet.fault, pgnet.webhook_tally,
                pgnet.callback, pgnet.callback_order
                in row exclusive mode nowait;
            lock table pgnet.ready_request, pgnet.setting, pgnet.configuration, pgnet.database, pgnet.mark, pgnet.pause, pgnet.host,
                pgnet.webhook, pgnet.endpoint
                in access share mode nowait;
            -- At the commit, after other statements of the session, its path would count, and from
            -- PostgreSQL 18 on the owner's rights.
            set constraints all immediate;
            return;
        exception when lock_not_available then
            null;
        end;
        foreach relation in array array[
            'net.http_request_queue', 'pgnet.claim', 'pgnet.attempt', 'net._http_response', 'pgnet.failed', 'pgnet.unrecorded',
            'pgnet.worker', 'pgnet.ready_request', 'pgnet.setting', 'pgnet.configuration', 'pgnet.database', 'pgnet.worker_role',
            'pgnet.mark', 'pgnet.pause', 'pgnet.host', 'pgnet.flow',
            'pgnet.host_budget', 'pgnet.limit_change', 'pgnet.host_state', 'pgnet.gate_keeper', 'pgnet.dependency',
            'pgnet.ended_request', 'pgnet.blocked_key', 'pgnet.fault', 'pgnet.webhook_tally', 'pgnet.webhook', 'pgnet.endpoint', 'pgnet.callback',
            'pgnet.callback_order']
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
        hint = 'The locks: select * from pg_locks l where l.relation in (select c.oid from pg_class c where c.relnamespace in (''net''::regnamespace, ''pgnet''::regnamespace)).';
end
$$;
comment on function pgnet.lock_tables(bigint) is
    'Asks pgnet.require_worker, and takes the locks of a worker''s transaction, all or none, so '
    'that it never waits for one while it holds another. Raises 55P03 after half a second.';

create function pgnet.register_worker(
    -- backend: the worker is this session; process: it only talks through this session
    worker_kind text,
    -- for a worker whose connection broke: the id and the secret it was given, and the requests it
    -- still works on
    known_id bigint default null,
    known_secret uuid default null,
    owned bigint[] default '{}',
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
    -- ANALYZE, REINDEX and their like run the functions of an index as its owner, in a session that
    -- may be a worker's or a superuser's. There PostgreSQL refuses this statement, which does
    -- nothing elsewhere.
    execute 'unlisten pgnet';
    perform pgnet.refuse_copy();
    update pgnet.worker w
    set pid = pg_backend_pid(), backend_start = session_start, gone_since = null, stalled_since = null, ended = null
    where w.id = known_id and w.secret = known_secret
    returning w.id, w.secret into worker_id, worker_secret;
    if worker_id is not null then
        -- The worker never saw the claims that it does not own: the answer to its last claim was
        -- lost with the connection.
        delete from pgnet.claim c where c.id = any (array(
            select o.id from pgnet.claim o where o.worker = worker_id and o.id <> all (owned) for update skip locked));
        return;
    end if;
    -- One session is one worker. An earlier run in this session was broken off and left these rows.
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
    -- A worker that was alone polls more often from now on.
    perform pgnet.signal_workers('reload');
end
$$;
comment on function pgnet.register_worker(text, bigint, uuid, bigint[], text, text) is
    'Makes the calling session a worker; with the id and secret of an earlier registration, it '
    'goes on as that worker and keeps the claims it still holds. Raises 55000 in a copy of another '
    'database.';

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
comment on function pgnet.deregister_worker(bigint, uuid, integer) is
    'Ends a registration, and returns the claims that the worker still has.';
