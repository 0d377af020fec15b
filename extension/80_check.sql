-- The doctor: one look at everything that has to be right.

create function pgnet.inspect_python(
    out package_version text, out package_path text, out python_version text, out missing text, out ca_bundle text, out wake_up_fault text
)
    language plpython3u volatile parallel unsafe
as $$
from pgnet import sql_v1
return sql_v1.python_check(plpy)
$$;
comment on function pgnet.inspect_python() is
    'What net.check() learns from the server''s Python: package, dependencies, CA bundle, commit '
    'callback.';

-- Everything of the extension that has rights: 85_rights.sql goes through it to take back what
-- default privileges gave, and net.check() to find what was granted since.
create function pgnet.own_objects()
    returns table (class regclass, oid oid, sub integer, kind text, name text, owner oid, acl aclitem[])
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
    -- Some hundred rows: they must not need a temporary file.
    set work_mem = '4MB'
as $$
    with schemas as (
        select n.oid, n.nspname, n.nspowner, n.nspacl from pg_namespace n
        where n.nspname = any (array['net', 'pgnet']::name[])
    ), object (class, oid, sub, kind, name, owner, acl, default_of) as (
        select 'pg_namespace'::regclass, n.oid, 0, 'schema', n.nspname::text, n.nspowner, n.nspacl, 'n'
        from schemas n
        union all
        select 'pg_class'::regclass, c.oid, 0,
            case when c.relkind = 'S' then 'sequence' else 'table' end, c.oid::regclass::text,
            c.relowner, c.relacl, case when c.relkind = 'S' then 's' else 'r' end
        from pg_class c join schemas n on n.oid = c.relnamespace
        where c.relkind = any (array['r', 'v', 'S']::"char"[])
        union all
        select 'pg_class'::regclass, c.oid, a.attnum,
            'column', format('(%I) on %s', a.attname, c.oid::regclass), c.relowner, a.attacl, 'c'
        from pg_class c join schemas n on n.oid = c.relnamespace
        join pg_attribute a on a.attrelid = c.oid
        where a.attacl is not null or exists (
            select from pg_init_privs i
            where i.classoid = 'pg_class'::regclass
                and i.objoid = c.oid and i.objsubid = a.attnum)
        union all
        select 'pg_proc'::regclass, p.oid, 0,
            'routine', p.oid::regprocedure::text, p.proowner, p.proacl, 'f'
        from pg_proc p join schemas n on n.oid = p.pronamespace
        union all
        select 'pg_type'::regclass, t.oid, 0,
            'type', t.oid::regtype::text, t.typowner, t.typacl, 'T'
        from pg_type t join schemas n on n.oid = t.typnamespace
        left join pg_class c on c.oid = t.typrelid
        where t.typtype = any (array['d', 'e']::"char"[]) or c.relkind = 'c'
    )
    select o.class, o.oid, o.sub, o.kind, o.name, o.owner,
        coalesce(o.acl, acldefault(o.default_of::"char", o.owner)) as acl
    from object o
$$;
comment on function pgnet.own_objects() is
    'The schemas, tables, sequences, columns, routines and types of the extension that rights are '
    'granted on, with these rights.';

-- Rights that differ from what 85_rights.sql gives. Row security shuts most of an everyday "grant
-- all on all tables", but not LOCK, TRIGGER, REFERENCES and the sequences.
create function pgnet.right_faults()
    -- beyond: a right that the extension did not give; missing: one without which callers or
    -- workers fail
    returns table (kind text, fault text, cure text)
    language sql stable
    set search_path = pg_catalog, pg_temp
    -- The catalogs fit in it, also where a database allows no temporary file.
    set work_mem = '16MB'
as $$
    with object as (
        select o.* from pgnet.own_objects() o where o.kind <> 'type'
    ), held as (
        select o.*, a.grantee, a.privilege_type as privilege
        from object o cross join lateral aclexplode(o.acl) a
        where a.grantee <> o.owner
    ), given as (
        select o.*, a.grantee, a.privilege_type as privilege
        from object o
        join pg_init_privs i on i.classoid = o.class and i.objoid = o.oid and i.objsubid = o.sub
        cross join lateral aclexplode(i.initprivs) a
        where a.grantee = 0
    ), worker as (
        select w.role, r.oid as routine from pgnet.worker_role w
        join pg_roles g on g.oid = w.role
        cross join pgnet.worker_routines() r (oid)
    ), caller as (
        select distinct h.grantee from held h join pg_proc p on p.oid = h.oid and h.class = 'pg_proc'::regclass
        where p.pronamespace = to_regnamespace('net') and p.proname ~ '^http_(get|post|delete|request|put|patch|head)$'
    ), wrong (fault, kind, name, privilege, grantee) as (
        select 'beyond', h.kind, h.name, h.privilege, h.grantee
        from held h
        where not (h.kind = 'schema' and h.privilege = 'USAGE')
            and not exists (select from given g
                where g.class = h.class and g.oid = h.oid and g.sub in (0, h.sub) and g.privilege = h.privilege)
            and not exists (select from worker w where w.role = h.grantee and h.class = 'pg_proc'::regclass and w.routine = h.oid)
        union all
        select 'missing', g.kind, g.name, g.privilege, c.grantee
        from given g cross join caller c
        where g.kind <> 'schema' and not (g.kind = 'routine' and g.name ~ '^net[.][^_]')
            and not exists (select from held h
                where h.class = g.class and h.oid = g.oid and h.sub in (0, g.sub) and h.privilege = g.privilege
                    and h.grantee in (0, c.grantee))
        union all
        -- A role that may call what stands in net calls what stands in pgnet, too.
        select 'missing', 'schema', 'pgnet', 'USAGE', h.grantee
        from held h
        where h.kind = 'schema' and h.name = 'net' and h.privilege = 'USAGE'
            and not exists (select from worker w where w.role = h.grantee)
            and not exists (
                select from held u
                where u.kind = 'schema' and u.name = 'pgnet' and u.privilege = 'USAGE' and u.grantee in (0, h.grantee))
    )
    select w.fault,
        format('%s %s %s on %s', r.role, case w.fault when 'beyond' then 'has' else 'has not' end, w.privilege,
            case when count(*) <= 3 then string_agg(w.name, ', ' order by w.name)
                else format('%s and %s more', min(w.name), count(*) - 1) end),
        format(case w.fault when 'beyond' then 'revoke %s%s from %s;' else 'grant %s%s to %s;' end, lower(w.privilege),
            case w.kind when 'column' then ' ' else format(' on %s ', w.kind) end || string_agg(w.name, ', ' order by w.name), r.role)
    from wrong w
    cross join lateral (select case w.grantee when 0 then 'public' else w.grantee::regrole::text end as role) r
    group by w.fault, r.role, w.privilege, w.kind, case w.kind when 'column' then w.name end
    union all
    select 'missing', format('the worker role %s may not execute %s', w.role, string_agg(w.routine::text, ', ' order by w.routine::text)),
        format('select net.grant_worker(%L);', g.rolname)
    from worker w join pg_roles g on g.oid = w.role
    where not has_function_privilege(w.role, w.routine, 'execute')
        or not has_schema_privilege(w.role, 'net', 'usage') or not has_schema_privilege(w.role, 'pgnet', 'usage')
    group by w.role, g.rolname
$$;
comment on function pgnet.right_faults() is
    'The rights on the extension''s objects that are beyond those which it gave, or missing, with '
    'the statement that mends each.';

-- Triggers and rules that others have put on the extension's tables run in sessions of callers,
-- with their rights, and in sessions of workers, with the owner's. A function that looks for names
-- in the session's path finds there what the callers have put into it.
create function pgnet.open_paths()
    returns table (place text, cure text)
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    with tables as (
        select c.oid, c.oid::regclass::text as name
        from pg_class c
        where c.relnamespace in (to_regnamespace('net'), to_regnamespace('pgnet')) and c.relkind in ('r', 'v')
    ), parts (classid, objid, name) as (
        select 'pg_trigger'::regclass, t.oid, format('trigger %I on %s', t.tgname, r.name)
        from pg_trigger t join tables r on r.oid = t.tgrelid where not t.tgisinternal
        union all
        select 'pg_rewrite'::regclass, w.oid, format('rule %I on %s', w.rulename, r.name)
        from pg_rewrite w join tables r on r.oid = w.ev_class where w.ev_type <> '1'
        union all
        select 'pg_policy'::regclass, y.oid, format('policy %I on %s', y.polname, r.name)
        from pg_policy y join tables r on r.oid = y.polrelid
        union all
        select 'pg_attrdef'::regclass, d.oid, format('default of %s.%I', r.name, a.attname)
        from pg_attrdef d join tables r on r.oid = d.adrelid
        join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
        union all
        select 'pg_constraint'::regclass, k.oid, format('constraint %I on %s', k.conname, r.name)
        from pg_constraint k join tables r on r.oid = k.conrelid
        union all
        select 'pg_class'::regclass, i.indexrelid, format('index %s on %s', i.indexrelid::regclass, r.name)
        from pg_index i join tables r on r.oid = i.indrelid
    )
    select format('%s (%s)', p.name, f.oid::regprocedure),
        format('alter function %s set search_path = %s, pg_temp;', f.oid::regprocedure,
            coalesce((select nullif(trim(substr(c.assignment, 13)), '') from unnest(f.proconfig) c (assignment)
                where lower(left(c.assignment, 12)) = 'search_path='), quote_ident(n.nspname)))
    from parts p
    join pg_depend d on d.classid = p.classid and d.objid = p.objid
    left join pg_operator o on d.refclassid = 'pg_operator'::regclass and o.oid = d.refobjid
    join pg_proc f on f.oid = case d.refclassid when 'pg_proc'::regclass then d.refobjid else o.oprcode end
    join pg_namespace n on n.oid = f.pronamespace
    join pg_language l on l.oid = f.prolang
    where n.nspname not in ('net', 'pgnet', 'pg_catalog') and l.lanname not in ('internal', 'c') and f.prosqlbody is null
        and not exists (
            select from unnest(f.proconfig) c (assignment)
            where lower(c.assignment) ~ '^search_path=(.*[ ,])?"?pg_temp"? *$')
    group by p.name, f.oid, f.proconfig, n.nspname
$$;
comment on function pgnet.open_paths() is
    'Triggers, rules, policies, defaults, constraints and indexes on the extension''s tables whose '
    'functions have no fixed search_path that ends in pg_temp, and the statement that gives them '
    'one.';

-- ---- what net.check() looks at, a function for each subject

create type pgnet.finding as (item text, ok boolean, detail text, hint text);
comment on type pgnet.finding is 'A row of net.check().';

create function pgnet.check_package()
    returns setof pgnet.finding
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    python record;
    extension_version text := (select e.extversion from pg_extension e where e.extname = 'pgnet');
begin
    select * into python from pgnet.inspect_python();

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
    return query select 'wake-up', python.wake_up_fault is null and pgnet.setting_value('wake_up') = 'callback',
        case when pgnet.setting_value('wake_up') = 'poll' then 'setting wake_up is "poll": workers look every second'
            else coalesce('a commit cannot wake workers here, they look every second: ' || python.wake_up_fault, 'a commit wakes a worker') end,
        case when pgnet.setting_value('wake_up') = 'poll' then 'select net.configure(''wake_up'', ''callback'');'
            when python.wake_up_fault is not null then 'Allow the server to create ctypes callbacks, or set wake_up to "poll" to say that this is known.' end;
end
$$;
comment on function pgnet.check_package() is
    'The rows of net.check() about the Python package and what it needs.';

create function pgnet.check_database()
    returns setof pgnet.finding
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    copy_fault text := pgnet.copy_fault();
    modes text;
    unknown_modes text;
    replicated bigint;
begin
    select count(*) into replicated from net.http_request_queue q where q.origin is not null;
    return query select 'database', copy_fault is null,
        coalesce('this is a copy, and no worker serves it: ' || copy_fault,
            format('it is the one that is remembered%s', case when replicated > 0 then
                format('; %s request(s) have come by replication and are not sent here', replicated) end)),
        case when copy_fault is not null then
            'If what is in the queue is to be sent from here too: select net.adopt_database(). If not, delete it first.'
            when replicated > 0 then 'Where this server takes the place of their own: drop the subscription, then select net.adopt_database().' end;
    select string_agg(distinct format('%s (%s)', m.configured, m.source), ', '),
        string_agg(distinct format('%s (%s)', m.configured, m.source), ', ') filter (where lower(m.configured collate "C") <> m.mode)
    into modes, unknown_modes
    from pgnet.mode_sources() m;
    return query select 'mode', pgnet.mode_in_force() = 'on',
        case pgnet.mode_in_force()
            when 'on' then 'requests are sent'
            when 'record' then 'nothing is sent, requests are recorded and end: ' || modes
            else 'nothing is sent, requests wait: ' || modes end,
        case when unknown_modes is not null then 'Neither on, record nor off, so it counts as off: ' || unknown_modes || '.'
            when pgnet.mode_in_force() <> 'on' then 'This mode is meant for a clone. To send requests, remove the settings that are named here: the safest of them counts.' end;
    return query select 'stubs', count(*) = 0,
        case when count(*) = 0 then 'no stub answers in place of the network'
            else format('%s stub(s) answer requests in place of the network', count(*)) end,
        case when count(*) > 0 then 'Stubs are for tests. To send these requests: select net.unstub();' end
    from pgnet.stub s where s.times_left is distinct from 0;
end
$$;
comment on function pgnet.check_database() is
    'The rows of net.check() about copies, the mode and stubs.';

create function pgnet.check_work()
    returns setof pgnet.finding
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    oldest interval;
    waiting bigint;
    workers bigint;
    uncounted boolean;
begin
    if pg_is_in_recovery() then
        return query select 'worker', true, 'this is a standby: workers serve the primary', null::text;
    else
        workers := (select count(*) from pgnet.worker w where pgnet.session_is_alive(w.pid, w.backend_start));
        return query select 'worker', workers > 0, format('%s running', workers),
            case when workers = 0 then pgnet.how_to_start_a_worker() end;
    end if;

    select count(*), max(now() - q.created) into waiting, oldest
    from (select q.created from net.http_request_queue q order by q.id limit 10000) q;
    -- n_live_tup is not kept then.
    uncounted := (pgnet.pending_limits())[1] is not null and not current_setting('track_counts')::boolean;
    return query select 'queue', coalesce(oldest, interval '0') < interval '5 minutes' and not uncounted,
        format('%s waiting%s%s', case when waiting = 10000 then '10000 or more' else waiting::text end,
            coalesce(', the oldest for ' || justify_interval(date_trunc('second', oldest)), ''),
            case when uncounted then '; max_pending limits nothing, since the server counts no rows' else '' end),
        case when uncounted then 'Set track_counts = on.'
            when oldest >= interval '5 minutes' then
            'Is a worker running? Are its slots taken by slow hosts (select url, age from net.requests where state = ''in_flight'')?' end;
end
$$;
comment on function pgnet.check_work() is
    'The rows of net.check() about workers and the queue.';

create function pgnet.check_pauses()
    returns setof pgnet.finding
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    number bigint;
    listed text;
    cures text;
begin
    select count(*), string_agg(format('%s since %s by %s%s', case p.host when '*' then 'every host' else p.host end,
            date_trunc('second', p.since), p.paused_by, ': ' || p.reason), '; ' order by p.place) filter (where p.place <= 5),
        string_agg(format('select net.resume(%L);', p.host), ' ' order by p.place) filter (where p.place <= 5)
    into number, listed, cures
    from (
        select p.*, row_number() over (order by p.host <> '*', p.since) as place from pgnet.pause p
    ) p;
    return query select 'pauses', number = 0,
        case when number = 0 then 'no host is paused'
            else format('%s%s', listed, case when number > 5 then format('; and %s more in net.hosts', number - 5) end) end,
        cures;
end
$$;
comment on function pgnet.check_pauses() is
    'The row of net.check() about hosts whose requests wait for net.resume.';

create function pgnet.check_heartbeat()
    returns setof pgnet.finding
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select 'heartbeat', false, format('%s fails since %s: %s%s', f.duty, date_trunc('second', f.since), f.message,
        case when f.kept > 0 then format(' (%s rows)', f.kept) else '' end), f.hint
    from pgnet.fault f
    where not f.brief or f.failures > 2
    order by f.duty;
    if not found then
        return query select 'heartbeat', true, 'rescuing, deleting what is expired and the other duties of workers are done', null::text;
    end if;
    return query
    select 'recording', r.refused = 0,
        case when r.refused = 0 then format('%s outcomes wait for a lock', r.number)
            else format('%s outcomes cannot be recorded, since %s: %s (request %s)', r.refused, date_trunc('second', u.since), u.message, u.id) end,
        u.hint
    from (select count(*) as number, count(u.message) as refused from pgnet.unrecorded u) r
    left join lateral (
        select u.* from pgnet.unrecorded u where u.message is not null order by u.since limit 1
    ) u on true;
end
$$;
comment on function pgnet.check_heartbeat() is
    'The rows of net.check() about the duties and recordings that fail.';

create function pgnet.check_rights()
    returns setof pgnet.finding
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    beyond text;
    lacking text;
    cures text;
    open_paths text;
begin
    select string_agg(f.fault, '; ' order by f.fault) filter (where f.kind = 'beyond'),
        string_agg(f.fault, '; ' order by f.fault) filter (where f.kind = 'missing'),
        string_agg(f.cure, ' ' order by f.cure)
    into beyond, lacking, cures
    from pgnet.right_faults() f;
    return query select 'rights', cures is null,
        concat_ws('. ', case when has_schema_privilege('public', 'net', 'usage') then 'every role may send requests'
                else 'only roles with usage on the schema net may send requests' end,
            'beyond what the extension gave: ' || beyond, 'missing: ' || lacking),
        cures;
    select string_agg(o.place, ', ' order by o.place), string_agg(distinct o.cure, ' ') into open_paths, cures
    from pgnet.open_paths() o;
    return query select 'triggers', open_paths is null,
        coalesce('without a fixed search_path that ends in pg_temp: ' || open_paths, 'nothing on the tables looks for names in a session''s path'),
        cures;
end
$$;
comment on function pgnet.check_rights() is
    'The rows of net.check() about rights, and triggers on the tables.';

create function pgnet.check_definers()
    returns setof pgnet.finding
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    altered text;
    lent text;
    cures text;
begin
    -- As the extension makes them, the functions for callers are not SECURITY DEFINER.
    select string_agg(p.oid::regprocedure::text, ', ' order by p.oid::regprocedure::text),
        string_agg(format('alter function %s security invoker;', p.oid::regprocedure), ' ' order by p.oid::regprocedure::text)
    into altered, cures
    from pg_proc p
    where p.prosecdef
        and (p.pronamespace = to_regnamespace('net')
            or p.pronamespace = to_regnamespace('pgnet') and p.proname in (
                'check_request', 'inspect_request', 'check_or_raise', 'check_secret', 'refuse_secret', 'secret_prefix', 'outcome_so_far',
                'refuse_to_wait', 'written_here', 'caller_role', 'caller_is_owner', 'require_owner'));
    lent := (
        select string_agg(p.oid::regprocedure::text, ', ' order by p.oid::regprocedure::text)
        from pg_proc p
        where p.prosecdef and p.pronamespace not in (to_regnamespace('net'), to_regnamespace('pgnet'))
            and p.prosrc ~* '[[:<:]]net[[:space:]]*[.][[:space:]]*"?http_(get|post|delete|request|put|patch|head)[[:>:]]'
            and (pg_has_role(p.proowner, (select n.nspowner from pg_namespace n where n.nspname = 'net'), 'usage')
                or exists (select from pgnet.secret_grant g where pg_has_role(p.proowner, g.role, 'usage'))));
    return query select 'definer functions', altered is null,
        concat_ws('; ',
            'altered to SECURITY DEFINER, so that every request is the owner''s: ' || altered,
            'a role that may execute these sends requests as their owner, who may use secrets: ' || lent,
            case when coalesce(altered, lent) is null then 'every request is that of the role that makes it' end),
        cures;
end
$$;
comment on function pgnet.check_definers() is
    'The rows of net.check() about functions that make requests with another role''s rights.';

create function pgnet.check_network()
    returns setof pgnet.finding
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    unverified text;
    missing text;
begin
    return query select 'egress', true,
        format('%s; %s rule(s) in net.egress', case pgnet.setting_value('egress') when 'public' then 'public addresses are allowed'
            else 'only what net.egress lists is allowed' end, (select count(*) from pgnet.egress_rule)),
        null::text;

    unverified := (select string_agg(h.pattern, ', ' order by h.pattern) from pgnet.host h where h.settings -> 'verify' = 'false');
    missing := (select string_agg(format('%s of %s', v.value ->> 'secret', h.pattern), ', ' order by h.pattern)
        from pgnet.host h cross join jsonb_each(h.settings) v
        where jsonb_typeof(v.value) = 'object' and v.value ? 'secret'
            and not exists (select from pgnet.secret s where s.name = v.value ->> 'secret'));
    return query select 'hosts', unverified is null and missing is null,
        coalesce('the certificate is NOT checked of: ' || unverified, 'secrets that are not there any more: ' || missing,
            format('%s configured in net.hosts, every certificate is checked', (select count(*) from pgnet.host))),
        case when unverified is not null then
            'Give the authority that signed it: select net.configure_host(host, ''{"ca": "...", "verify": null}'').'
            when missing is not null then 'No request to these hosts is sent. Set the secrets again (net.set_secret), or reset the settings (net.configure_host).' end;
end
$$;
comment on function pgnet.check_network() is
    'The rows of net.check() about egress and the settings of hosts.';

create function pgnet.check_hosts()
    returns setof pgnet.finding
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    with place as (
        select s.*, format('%s for role %s (%s since %s: %s; next probe %s)', s.host, s.role::regrole, s.state, date_trunc('second', s.since),
            s.reason, date_trunc('second', s.closed_until)) as described
        from pgnet.host_state s
        where s.needs_probe
        order by s.since limit 1000
    ), slowed as (
        select count(*) as number from pgnet.host_state s where not s.needs_probe and s.closed_until > clock_timestamp()
    )
    select 'circuit breakers', p.number = 0,
        concat_ws('; ', case p.number when 0 then 'none is open' else format('%s open: %s', case when p.number = 1000 then '1000 or more' else p.number::text end,
            array_to_string(p.first, '; ') || case when p.number > 3 then '; ...' else '' end) end,
            case when w.number > 0 then format('%s host(s) have asked for a pause', w.number) end),
        case when p.number > 0 then 'Their requests wait, or fail where on_open says so. Which: select * from net.hosts where state <> ''closed''. '
            'Do they answer from this machine? An open breaker closes by itself at the next probe that is answered, or at once: '
            'select net.configure_host(host, ''{"breaker": true}'').' end
    from (select count(*) as number, (array_agg(place.described))[1:3] as first from place) p, slowed w;
end
$$;
comment on function pgnet.check_hosts() is
    'The row of net.check() about hosts whose requests wait.';

create function pgnet.check_secrets()
    returns setof pgnet.finding
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    with held as (
        select count(*) filter (where s.value is not null) as here, count(*) filter (where s.value is null) as elsewhere from pgnet.secret s
    ), backends as (
        select count(*) as number from pgnet.worker w where w.kind = 'backend' and pgnet.session_is_alive(w.pid, w.backend_start)
    )
    select 'secrets', h.elsewhere = 0 or b.number = 0,
        format('%s in the database, %s held by workers', h.here, h.elsewhere),
        case when h.elsewhere > 0 and b.number > 0 then
            'A worker in the database has no --secrets-dir: let worker processes alone serve this database, or keep the values in it.' end
    from held h, backends b;
end
$$;
comment on function pgnet.check_secrets() is
    'The rows of net.check() about secrets.';

create function pgnet.check_callbacks()
    returns setof pgnet.finding
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    with oldest as (
        select d.role, clock_timestamp() - d.due as age from pgnet.due_roles(clock_timestamp()) d order by d.due limit 1
    ), waits as (
        select o.role, o.age, coalesce(o.age > interval '1 minute', false) as long from (select) e left join oldest o on true
    )
    select 'callbacks', not w.long,
        case when w.role is null then 'none waits' when not w.long then 'some wait for their time'
            else format('those of role %s are due for %s', w.role::regrole, date_trunc('second', w.age)) end,
        case when w.long then 'Nobody runs them, or they hang: select * from net.callbacks where state in (''waiting'', ''running''). A worker process runs them, '
            'unless the setting callback_runners is 0; beside net.work() it takes: call net.run_callbacks().' end
    from waits w;
end
$$;
comment on function pgnet.check_callbacks() is 'The row of net.check() about callbacks.';

create function pgnet.check_cron()
    returns setof pgnet.finding
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    cron_database text := current_setting('cron.database_name', true);
    last_run record;
begin
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
        if last_run.jobname is not null and pgnet.cron_fault() is not null then
            return query select 'pg_cron', false, pgnet.cron_fault(), 'Set cron.use_background_workers = off, or install pg_cron 1.5.';
        elsif last_run is null then
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
comment on function pgnet.check_cron() is
    'The rows of net.check() about pg_cron.';

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
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgnet.require_owner();
    return query select * from pgnet.check_package();
    return query select * from pgnet.check_database();
    return query select * from pgnet.check_work();
    return query select * from pgnet.check_pauses();
    return query select * from pgnet.check_heartbeat();
    return query select * from pgnet.check_rights();
    return query select * from pgnet.check_definers();
    return query select * from pgnet.check_network();
    return query select * from pgnet.check_hosts();
    return query select * from pgnet.check_callbacks();
    return query select * from pgnet.check_secrets();
    return query select * from pgnet.check_cron();
end
$$;
comment on function net.check() is
    'The doctor: a row for each thing that has to be right, with what was found and what to do. '
    'Reads only; works on a standby too. Owner only.';
