-- The doctor: one look at everything that has to be right.

create function net._python_check(
    out package_version text, out package_path text, out python_version text, out missing text, out ca_bundle text, out wake_up_fault text
)
    language plpython3u volatile parallel unsafe
as $$
from pgnet import sql_v1
return sql_v1.python_check(plpy)
$$;
comment on function net._python_check() is 'What net.check() asks the server''s Python: package, dependencies, CA bundle, commit callback.';
revoke all on function net._python_check() from public;

create function net.check()
    returns table (
        -- what was looked at
        item text,
        -- whether it is as it should be
        ok boolean,
        -- what was found
        detail text,
        -- what to do where it is not
        hint text
    )
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    python record;
    standby boolean := pg_is_in_recovery();
    extension_version text := (select e.extversion from pg_extension e where e.extname = 'pgnet');
    oldest interval;
    waiting bigint;
    workers bigint;
    unverified text;
    missing text;
    cron_database text := current_setting('cron.database_name', true);
    last_run record;
    copy_fault text := net._copy_fault();
    modes text;
    unknown_modes text;
    replicated bigint;
begin
    select * into python from net._python_check();

    return query select 'version', python.package_version = extension_version,
        format('extension %s, Python package %s', extension_version, python.package_version),
        case when python.package_version is distinct from extension_version then
            'Install the package that belongs to the extension (make install), or alter extension pgnet update.' end;
    return query select 'package', true, format('%s, Python %s', python.package_path, python.python_version), null;
    return query select 'dependencies', python.missing = '',
        case when python.missing = '' then 'gevent, requests and pycurl are there'
            else 'missing on this host: ' || python.missing end,
        case when python.missing <> '' then
            'Needed only where net.work() or net.drain() run: apt-get install python3-gevent python3-requests python3-pycurl.' end;
    return query select 'CA bundle', python.ca_bundle is not null, coalesce(python.ca_bundle, 'none found'),
        case when python.ca_bundle is null then 'https needs one: apt-get install ca-certificates.' end;
    return query select 'wake-up', python.wake_up_fault is null and net._current_setting('wake_up') = 'callback',
        case when net._current_setting('wake_up') = 'poll' then 'setting wake_up is "poll": workers look every second'
            else coalesce('a commit cannot wake workers here, they look every second: ' || python.wake_up_fault, 'a commit wakes a worker') end,
        case when net._current_setting('wake_up') = 'poll' then 'select net.configure(''wake_up'', ''callback'');'
            when python.wake_up_fault is not null then 'Allow the server to create ctypes callbacks, or set wake_up to "poll" to say that this is known.' end;

    select count(*) into replicated from net.http_request_queue q where q.origin is not null;
    return query select 'database', copy_fault is null,
        coalesce('this is a copy, and no worker serves it: ' || copy_fault,
            format('it is the one that is remembered%s', case when replicated > 0 then
                format('; %s request(s) have come by replication and are not sent here', replicated) end)),
        case when copy_fault is not null then
            'If what is in the queue is to be sent from here too: select net.adopt_database(). If not, delete it first.'
            when replicated > 0 then 'Where this server takes the place of their own: drop the subscription, then select net.adopt_database().' end;
    select string_agg(distinct format('%s (%s)', m.said, m.source), ', '),
        string_agg(distinct format('%s (%s)', m.said, m.source), ', ') filter (where lower(m.said collate "C") <> m.mode)
    into modes, unknown_modes
    from net._mode_sources() m;
    return query select 'mode', net._mode() = 'on',
        case net._mode()
            when 'on' then 'requests are sent'
            when 'record' then 'nothing is sent, requests are recorded and end: ' || modes
            else 'nothing is sent, requests wait: ' || modes end,
        case when unknown_modes is not null then 'Neither on, record nor off, so it counts as off: ' || unknown_modes || '.'
            when net._mode() <> 'on' then 'Meant for a clone. Where requests are to be sent, take back what says otherwise: the safest one counts.' end;

    if standby then
        return query select 'worker', true, 'this is a standby: workers serve the primary', null::text;
    else
        workers := (select count(*) from net.worker w where net._alive(w.pid, w.backend_start));
        return query select 'worker', workers > 0, format('%s running', workers),
            case when workers = 0 then
                'select net.schedule_worker(), call net.work() in a session of its own, or start the process "pgnet worker".' end;
    end if;

    select count(*), max(now() - q.created) into waiting, oldest
    from (select q.created from net.http_request_queue q order by q.id limit 10000) q;
    return query select 'queue', coalesce(oldest, interval '0') < interval '5 minutes',
        format('%s waiting%s', case when waiting = 10000 then '10000 or more' else waiting::text end,
            coalesce(', the oldest for ' || justify_interval(date_trunc('second', oldest)), '')),
        case when oldest >= interval '5 minutes' then
            'Is a worker running? Are its slots taken by slow hosts (select url, age from net.requests where state = ''in_flight'')?' end;

    return query select 'rights', true,
        case when has_schema_privilege('public', 'net', 'usage') then 'every role may send requests'
            else 'only roles with usage on the schema net may send requests' end,
        null::text;
    return query select 'egress', true,
        format('%s; %s rule(s) in net.egress', case net._current_setting('egress') when 'public' then 'public addresses are allowed'
            else 'only what net.egress lists is allowed' end, (select count(*) from net.egress_rule)),
        null::text;

    unverified := (select string_agg(h.pattern, ', ' order by h.pattern) from net.host h where h.settings -> 'verify' = 'false');
    missing := (select string_agg(format('%s of %s', v.value ->> 'secret', h.pattern), ', ' order by h.pattern)
        from net.host h cross join jsonb_each(h.settings) v
        where jsonb_typeof(v.value) = 'object' and not exists (select from net.secret s where s.name = v.value ->> 'secret'));
    return query select 'hosts', unverified is null and missing is null,
        coalesce('the certificate is NOT checked of: ' || unverified, 'secrets that are not there any more: ' || missing,
            format('%s configured in net.hosts, every certificate is checked', (select count(*) from net.host))),
        case when unverified is not null then
            'Give the authority that signed it: select net.configure_host(host, ''{"ca": "...", "verify": null}'').'
            when missing is not null then 'No request to these hosts is sent. Set the secrets again (net.set_secret), or reset the settings (net.configure_host).' end;
    return query
    with held as (
        select count(*) filter (where s.value is not null) as here, count(*) filter (where s.value is null) as elsewhere from net.secret s
    ), backends as (
        select count(*) as number from net.worker w where w.kind = 'backend' and net._alive(w.pid, w.backend_start)
    )
    select 'secrets', h.elsewhere = 0 or b.number = 0,
        format('%s in the database, %s held by workers', h.here, h.elsewhere),
        case when h.elsewhere > 0 and b.number > 0 then
            'A worker in the database has no --secrets-dir: let worker processes alone serve this database, or keep the values in it.' end
    from held h, backends b;

    if to_regclass('cron.job') is not null and to_regclass('cron.job_run_details') is not null then
        execute $query$
            select j.jobname, d.status, d.return_message, d.start_time
            from cron.job j
            left join lateral (
                select * from cron.job_run_details d where d.jobid = j.jobid order by d.runid desc limit 1
            ) d on true
            where j.command collate "C" ~* 'net[.](work|drain)[(]' and j.database = current_database()
            order by j.jobid desc limit 1
        $query$ into last_run;
        if last_run is null then
            return query select 'pg_cron', true, 'installed, no job runs a worker', 'select net.schedule_worker();';
        else
            return query select 'pg_cron', coalesce(last_run.status, 'none') <> 'failed',
                format('job "%s", last run: %s', last_run.jobname,
                    coalesce(concat_ws(' ', last_run.status, 'at', last_run.start_time, nullif(last_run.return_message, '')), 'none yet')),
                case when last_run.status = 'failed' then
                    'pg_cron connects by itself: allow it in pg_hba.conf, or set cron.use_background_workers = on.' end;
        end if;
    elsif cron_database is not null then
        return query select 'pg_cron', true, format('keeps its jobs in database "%s"', cron_database), null::text;
    else
        return query select 'pg_cron', true, 'not loaded (a worker process does without)', null::text;
    end if;
end
$$;
comment on function net.check() is
    'The doctor: a row for each thing that has to be right, with what was found and what to do. Reads only; works on a standby too. Owner only.';
revoke all on function net.check() from public;
