-- The worker in the database, and how to start, see and restart workers.

create procedure pgnet.serve(
    max_runtime interval,
    until_idle boolean,
    -- true where nothing can be committed: inside a transaction block
    inout in_transaction_block boolean
)
    language plpython3u
as $$
from pgnet import sql_v1
plpy.execute("select pgnet.require_worker()")
return sql_v1.serve(plpy, max_runtime, until_idle)
$$;
comment on procedure pgnet.serve(interval, boolean, boolean) is
    'The worker behind net.work and net.drain.';

create procedure net.work(
    -- claim no more after this time; NULL stays
    max_runtime interval default null
)
    language plpgsql
as $$
declare
    in_transaction_block boolean;
begin
    -- Asked first: an everyday "grant execute ... in schema net" leads here, and no further.
    perform pgnet.require_worker();
    perform pgnet.refuse_copy();
    call pgnet.serve(max_runtime, false, in_transaction_block);
    if in_transaction_block then
        perform pgnet.refuse_transaction_block('net.work');
    end if;
end
$$;
comment on procedure net.work(interval) is
    'Serves this database from this session: sends requests as they are committed, until '
    'max_runtime has passed (NULL: for ever), a cancel, or the end of the server; what is then in '
    'flight has the setting max_grace to end. Holds no snapshot while it waits. Raises 25001 '
    'inside a transaction block, 55000 in a copy of another database. net.grant_worker lets a role '
    'call it.';

create procedure net.drain(
    -- claim no more after this time, even where more is due; NULL means no limit
    max_runtime interval default null
)
    language plpgsql
as $$
declare
    in_transaction_block boolean;
begin
    -- Asked first: an everyday "grant execute ... in schema net" leads here, and no further.
    perform pgnet.require_worker();
    perform pgnet.refuse_copy();
    call pgnet.serve(max_runtime, true, in_transaction_block);
    if in_transaction_block then
        perform pgnet.refuse_transaction_block('net.drain');
    end if;
end
$$;
comment on procedure net.drain(interval) is
    'Sends every request that is due or falls due within a second, records the outcomes, and '
    'returns: it waits for no later time and for no paused host. After max_runtime it claims no more, and what is in flight has the setting max_grace to end. Raises 25001 inside a '
    'transaction block, 55000 in a copy of another database. net.grant_worker lets a role call it.';

create function pgnet.refuse_transaction_block(procedure text)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using
        errcode = 'active_sql_transaction',
        message = format('%s cannot run inside a transaction block', procedure),
        detail = 'A worker commits after each of its steps.',
        hint = format('Run it by itself: call %s();', procedure);
end
$$;
comment on function pgnet.refuse_transaction_block(text) is 'Raises 25001 with what to do.';

-- A worker's role needs these routines, and no table.
create function pgnet.worker_routines()
    returns setof regprocedure
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select p.oid::regprocedure
    from pg_proc p
    where p.pronamespace = to_regnamespace('net') and p.proname in ('work', 'drain', 'run_callbacks')
        or p.pronamespace = to_regnamespace('pgnet') and p.proname in (
            'register_worker', 'claim_requests', 'record_outcomes', 'release_requests', 'report_attempts', 'claimed_secrets', 'take_stubs',
            'deregister_worker',
            'heartbeat', 'report_work', 'look_for_callbacks', 'take_callback', 'perform_callback', 'serve_callbacks', 'wait_for_signals', 'wake_next_worker', 'wake_up_fault', 'refuse_copy', 'serve',
            -- what these call with the rights of the worker's role
            'require_worker', 'refuse_transaction_block', 'setting_value')
$$;
comment on function pgnet.worker_routines() is 'The routines that net.grant_worker grants.';

-- Settings of a database or a role must not reach into a worker's statements. With
-- session_replication_role = replica they would not fire the triggers of the tables' owner, and
-- claim nothing; with few digits times are wrong; a batch may need a temporary file.
do $$
declare
    routine pg_catalog.regprocedure;
begin
    for routine in
        select p.oid from pgnet.worker_routines() r join pg_catalog.pg_proc p on p.oid operator(pg_catalog.=) r.r
        where p.prosecdef and p.prokind operator(pg_catalog.=) 'f'
            -- They would hold for callbacks, too.
            and p.proname operator(pg_catalog.<>) 'perform_callback'
    loop
        execute pg_catalog.format(
            'alter function %s set session_replication_role = origin set temp_file_limit = -1 set extra_float_digits = 1', routine);
    end loop;
end
$$;

create function net.grant_worker(
    -- the role, by name; its members may run workers, too
    role text
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    grantee regrole := pgnet.role_named(role);
    routine regprocedure;
begin
    perform pgnet.announce_configuration();
    delete from pgnet.worker_role w where not exists (select from pg_roles r where r.oid = w.role);
    insert into pgnet.worker_role values (grantee) on conflict do nothing;
    execute format('grant usage on schema net, pgnet to %s', grantee);
    for routine in select r from pgnet.worker_routines() r loop
        execute format('grant execute on routine %s to %s', routine, grantee);
    end loop;
    raise notice using message = format('role "%s" may run workers in this database', role);
end
$$;
comment on function net.grant_worker(text) is
    'Lets a role run workers on this database: it may claim requests and record outcomes, and '
    'reads no table. EXECUTE alone lets nobody do so. Raises 42704 for a role that does not exist, '
    '22023 for NULL. Owner only.';

create function net.revoke_worker(
    -- the role, by name
    role text
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    grantee regrole := pgnet.role_named(role);
    routine regprocedure;
begin
    -- A worker that runs looks at once, and ends.
    perform pgnet.announce_configuration();
    delete from pgnet.worker_role w where w.role = grantee;
    for routine in select r from pgnet.worker_routines() r loop
        execute format('revoke execute on routine %s from %s', routine, grantee);
    end loop;
    raise notice using message = format('role "%s" may not run workers in this database any more', role);
end
$$;
comment on function net.revoke_worker(text) is
    'Takes back what net.grant_worker gave; a worker of the role that runs ends at once. Raises '
    '42704 for a role that does not exist, 22023 for NULL. Owner only.';

create view net.workers as
    select w.id, w.kind, case when pgnet.caller_is_owner() then w.host end as host, w.pid, w.version,
        case when w.ended is not null then 'stopped'
            when not pgnet.session_is_alive(w.pid, w.backend_start) then 'lost'
            when w.stalled_since is not null then 'stalled'
            else 'running' end as state,
        (select pg_catalog.count(*) from pgnet.claim c where c.worker operator(pg_catalog.=) w.id) as in_flight,
        w.registered as started, coalesce(w.ended, w.gone_since) as ended, w.cut_off
    from pgnet.worker w
    offset 0; -- or else a role with that right could write through the view, as its owner
comment on view net.workers is
    'The workers of this database, those of the last hour that have ended too: running, stalled '
    '(its session is there, but it does not look), lost or stopped; the requests it has in flight, '
    'and how many were cut off when it stopped. The host is shown to the extension''s owner.';

-- Any role may have the workers read their settings again; that is all a caller of it can do.
create function pgnet.reload_workers()
    returns void
    language sql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
as $$ select pgnet.signal_workers('reload') $$;
comment on function pgnet.reload_workers() is
    'Has the workers read their settings again at the commit.';

create function net.worker_restart()
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if pgnet.caller_is_owner() then
        update pgnet.configuration set generation = generation + 1;
        perform pgnet.announce_configuration();
    else
        perform pgnet.reload_workers();
    end if;
    return true;
end
$$;
comment on function net.worker_restart() is
    'At the commit, workers finish what is in flight and start anew: settings, connections, names. '
    'By a role without operator''s rights they only read their settings again. True.';

create function net.check_worker_is_up()
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if not pgnet.worker_is_up() then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = 'the pgnet worker is not up',
            detail = format('No worker serves the database "%s": requests stay in the queue until one does.', current_database()),
            hint = pgnet.how_to_start_a_worker();
    end if;
end
$$;
comment on function net.check_worker_is_up() is
    'Raises 55000 where no worker serves this database.';

create function net.wait_until_running()
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    while not pgnet.worker_is_up() loop
        perform pg_sleep(0.05);
        perform pg_stat_clear_snapshot(); -- or else the sessions are those of the first look
    end loop;
end
$$;
comment on function net.wait_until_running() is
    'Waits until a worker serves this database, however long.';

-- The launcher of pg_cron before 1.5 waits for the end of one background worker before it looks at
-- the next job. A worker does not end by itself.
create function pgnet.cron_fault()
    -- what is wrong with pg_cron; NULL: nothing is known
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select format('pg_cron %s waits for one background worker before it starts another job, and a worker stays', e.extversion)
    from pg_extension e
    where e.extname = 'pg_cron' and e.extversion ~ '^1[.][0-4]([^0-9]|$)'
        and current_setting('cron.use_background_workers', true) = 'on'
$$;
comment on function pgnet.cron_fault() is
    'Why pg_cron cannot keep workers here, where that is known; else NULL.';

create function net.schedule_worker()
    -- the number of the pg_cron job
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    cron_database text := current_setting('cron.database_name', true);
    job bigint;
begin
    if to_regprocedure('cron.schedule(text, text, text)') is not null then
        execute 'select cron.schedule($1, $2, $3)' into job using 'pgnet callbacks', '* * * * *', 'call net.run_callbacks()';
        execute 'select cron.schedule($1, $2, $3)' into job using 'pgnet worker', '* * * * *', 'call net.work()';
        raise notice using message = format('pg_cron keeps a worker running in this database by job %s, and callbacks by another', job),
            hint = 'They start at the next full minute.';
        if pgnet.cron_fault() is not null then
            raise warning using message = pgnet.cron_fault(), hint = 'Set cron.use_background_workers = off, or install pg_cron 1.5.';
        end if;
        return job;
    end if;
    if cron_database is null then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = 'pg_cron is not loaded on this server',
            hint = 'Set shared_preload_libraries = ''pg_cron'', restart and create extension pg_cron; '
                'or start a worker without it: call net.work() in a session of its own, or the process "pgnet worker".';
    end if;
    if cron_database = current_database() then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = 'the extension pg_cron is not installed in this database',
            hint = 'create extension pg_cron; then call net.schedule_worker() again.';
    end if;
    raise exception using
        errcode = 'object_not_in_prerequisite_state',
        message = format('pg_cron keeps its jobs in the database "%s", not in this one', cron_database),
        hint = format('There, run: select cron.schedule_in_database(%L, %L, %L, %L); '
            'select cron.schedule_in_database(%L, %L, %L, %L);',
            'pgnet worker of ' || current_database(), '* * * * *', 'call net.work()', current_database(),
            'pgnet callbacks of ' || current_database(), '* * * * *', 'call net.run_callbacks()', current_database());
end
$$;
comment on function net.schedule_worker() is
    'Has pg_cron keep a worker running in this database, and a session for callbacks: jobs by the minute that '
    'start net.work() and net.run_callbacks() again whenever they have ended. Gives the number of the first. Raises 55000 with what to do where pg_cron is not '
    'here.';

create function net.unschedule_worker()
    -- whether there was a job
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    job text;
    found_job boolean;
    done boolean := false;
begin
    -- The argument is a name in older versions, text in newer ones.
    if coalesce(to_regprocedure('cron.unschedule(text)'), to_regprocedure('cron.unschedule(name)')) is null then
        return false;
    end if;
    foreach job in array array['pgnet worker', 'pgnet callbacks'] loop
        execute 'select exists (select from cron.job where jobname = $1 and username = current_user)' into found_job using job;
        if found_job then
            execute format('select cron.unschedule(%L)', job);
            done := true;
        end if;
    end loop;
    return done;
end
$$;
comment on function net.unschedule_worker() is
    'Removes the pg_cron jobs of net.schedule_worker; true where there was one. A worker that runs '
    'goes on until it is cancelled.';
