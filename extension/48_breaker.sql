-- What workers learn of hosts: which ones are broken, and which ones have asked to wait.
--
-- Theory of operation
--
-- A place is a host, as it stands in URLs, and the role whose requests go there. All that is learnt
-- is learnt by place: a role that sends nonsense, or gives a server one millisecond, makes a host
-- broken for itself and for nobody else. pgnet.host_state has a row for each place that there is
-- something to say of. A place without a row is well.
--
-- Workers count how attempts end, and report it at most once a second, or at once where a count
-- crosses a threshold: pgnet.report_attempts. So no row is updated once a request. The circuit
-- breaker of a place is a state machine:
--
--     closed     Requests are sent. Failures are counted: those in a row, and those of two half
--                windows. Where either reaches its threshold the breaker opens.
--     open       No request is claimed before closed_until. Requests wait, without an attempt being
--                counted; with on_open = fail a duty of the heartbeat ends them.
--     half_open  closed_until has passed, and a claim took one request: the probe. No other one is
--                claimed beside it. Where it is answered, the breaker closes; where it fails, the
--                breaker opens for twice as long. Where it is lost with its worker, or cancelled, a
--                duty of the heartbeat frees the place for the next probe.
--
-- A status 429 or 503 with Retry-After closes the place until the time that the server asks for,
-- whatever the state of the breaker. The claim knows none of this. It looks at two columns:
-- closed_until, and needs_probe.
--
-- Locks. Callers have no right that locks a row of pgnet.host_state. Of each other workers lock
-- them for the moment of a claim or a report, with SKIP LOCKED: a claim passes over the place, a
-- report gives the counts back, and the worker reports them again.

create table pgnet.host_state (
    host text collate "C" not null,
    role oid not null,
    closed_until timestamptz,
    needs_probe boolean not null default false,
    state text not null default 'closed'
        constraint host_state_state check (state operator(pg_catalog.=) any (array['closed', 'open', 'half_open'])),
    since timestamptz not null default pg_catalog.clock_timestamp(),
    reason text,
    slowed_until timestamptz,
    opened integer not null default 0,
    on_open text not null default 'wait'
        constraint host_state_on_open check (on_open operator(pg_catalog.=) any (array['wait', 'fail'])),
    in_a_row integer not null default 0,
    window_start timestamptz not null default pg_catalog.clock_timestamp(),
    attempts integer not null default 0,
    failures integer not null default 0,
    earlier_attempts integer not null default 0,
    earlier_failures integer not null default 0,
    alerted smallint not null default 0,
    concurrency jsonb not null default '{}',
    updated timestamptz not null default pg_catalog.clock_timestamp(),
    primary key (host, role)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);
comment on table pgnet.host_state is
    'What workers have learnt of a host from the requests of one role. A place without a row is '
    'well. A role sees its own places; net.hosts shows them.';
comment on column pgnet.host_state.host is 'Host and port as in the URL.';
comment on column pgnet.host_state.role is 'The oid of the role whose requests it is about.';
comment on column pgnet.host_state.closed_until is
    'No request is claimed before this time; NULL: there is no such time.';
comment on column pgnet.host_state.needs_probe is
    'The breaker is open or half open: one request is claimed at a time, as a probe.';
comment on column pgnet.host_state.state is
    'The state of the circuit breaker: closed, open or half_open.';
comment on column pgnet.host_state.since is 'When that state began.';
comment on column pgnet.host_state.reason is 'Why the breaker has opened, or why requests wait.';
comment on column pgnet.host_state.slowed_until is
    'When requests may go on, as the host asked for by Retry-After.';
comment on column pgnet.host_state.opened is
    'How often the breaker has opened without being well for long: it opens for longer each '
    'time.';
comment on column pgnet.host_state.on_open is
    'What becomes of requests while the breaker is open: wait or fail.';
comment on column pgnet.host_state.in_a_row is 'How many attempts have failed in a row.';
comment on column pgnet.host_state.window_start is 'When the present half of the window began.';
comment on column pgnet.host_state.attempts is 'Attempts in the present half of the window.';
comment on column pgnet.host_state.failures is 'How many of these have failed.';
comment on column pgnet.host_state.earlier_attempts is 'Attempts in the half before.';
comment on column pgnet.host_state.earlier_failures is 'How many of these have failed.';
comment on column pgnet.host_state.alerted is
    'The highest alert that was given, in percent of a threshold.';
comment on column pgnet.host_state.concurrency is
    'How many requests each worker has in flight at most, by its id, where the host made it '
    'less.';
comment on column pgnet.host_state.updated is 'When a worker last changed the row.';
create index host_state_closed_until on pgnet.host_state (closed_until) where closed_until is not null;
create index host_state_half_open on pgnet.host_state (host, role) where state operator(pg_catalog.=) 'half_open';
create index host_state_failing on pgnet.host_state (host, role) where needs_probe and on_open operator(pg_catalog.=) 'fail';
create index host_state_updated on pgnet.host_state (updated);
create policy own_states on pgnet.host_state for select
    using (role operator(pg_catalog.=) (select pgnet.caller_role())::pg_catalog.oid);

create table pgnet.host_event (
    id bigint generated always as identity primary key,
    happened timestamptz not null default pg_catalog.clock_timestamp(),
    host text collate "C" not null,
    role oid not null,
    event text not null
        constraint host_event_event check (event operator(pg_catalog.=) any (array['alert', 'opened', 'closed', 'slowed'])),
    percent smallint,
    detail text
) with (autovacuum_vacuum_insert_scale_factor = 0.2);
comment on table pgnet.host_event is
    'What has happened to circuit breakers, for ttl_failed; net.host_events shows it. A role '
    'sees what is about its own requests.';
create index host_event_happened on pgnet.host_event (happened);
create policy own_events on pgnet.host_event for select
    using (role operator(pg_catalog.=) (select pgnet.caller_role())::pg_catalog.oid);

create view net.host_events with (security_invoker) as
    select e.happened, e.host, e.role::pg_catalog.regrole as role, e.event, e.percent, e.detail
    from pgnet.host_event e;
comment on view net.host_events is
    'What has happened to hosts: alert (percent of a threshold was reached), opened (requests '
    'wait), closed (requests are sent again), slowed (the host asked for a pause). A role sees '
    'what is about its own requests, the owner all.';

-- ---- settings

-- The one list of the settings of a breaker, in the key breaker of net.configure_host. The same
-- defaults stand in breaker.py.
--
-- Where the defaults come from. hystrix: 20 requests within 10 s, 50 %, 5 s, one probe. Polly 8:
-- 100 within 30 s, 10 %, 5 s, one probe. resilience4j: 100 calls, 50 %, 60 s, 10 probes. Envoy's
-- outlier detection: 5 failures in a row, 30 s times the number of ejections, 300 s at most. A
-- queue loses nothing by waiting, and nobody falls back to anything when it fails at once. So the
-- thresholds are rather those of hystrix than Envoy's 5 in a row, which a restart of a server
-- reaches; the first pause is short, as theirs; and it grows up to Envoy's ceiling.
create function pgnet.known_breaker_settings()
    returns table (name text, kind text, default_value jsonb, minimum numeric, maximum numeric, description text)
    language sql immutable parallel safe cost 10 rows 10
    set search_path = pg_catalog, pg_temp
as $$
    values
        ('failures_in_a_row', 'integer', '20'::jsonb, 1, 1000000, 'The breaker opens after so many failures in a row.'),
        ('failure_percent', 'number', '50', 1, 100, 'It opens where so many percent of the attempts within the window have failed,'),
        ('min_attempts', 'integer', '50', 1, 1000000, 'of at least so many attempts.'),
        ('window_milliseconds', 'integer', '60000', 100, 300000, 'The window, in ms.'),
        ('open_milliseconds', 'integer', '5000', 10, 86400000, 'For how long it opens the first time, in ms; each time twice as long.'),
        ('max_open_milliseconds', 'integer', '300000', 10, 86400000, 'For how long it opens at most, in ms.'),
        ('on_open', 'choice', '"wait"', null, null, 'What becomes of requests while it is open: wait, or fail.')
$$;
comment on function pgnet.known_breaker_settings() is
    'The settings of a circuit breaker, with their defaults.';

create function pgnet.breaker_setting_fault(given jsonb)
    returns text
    language plpgsql stable parallel safe cost 100
    set search_path = pg_catalog, pg_temp
as $$
declare
    setting record;
begin
    if jsonb_typeof(given) = 'boolean' then
        return null;
    elsif jsonb_typeof(given) <> 'object' then
        return 'must be false, true, or an object such as {"failures_in_a_row": 20, "open_milliseconds": 5000}';
    end if;
    for setting in
        select g.key, g.value, k.kind, k.minimum, k.maximum
        from jsonb_each(given) g left join pgnet.known_breaker_settings() k on k.name = g.key
        order by g.key
    loop
        if setting.kind is null then
            return format('has no "%s"; known: %s', left(setting.key, 60),
                (select string_agg(k.name, ', ' order by k.name) from pgnet.known_breaker_settings() k));
        elsif setting.kind = 'choice' then
            if setting.value not in ('"wait"', '"fail"') then
                return format('must have wait or fail as "%s"', setting.key);
            end if;
        elsif jsonb_typeof(setting.value) <> 'number' or setting.value::numeric not between setting.minimum and setting.maximum
            or setting.kind = 'integer' and setting.value::numeric <> trunc(setting.value::numeric) then
            return format('must have %s between %s and %s as "%s"',
                case setting.kind when 'integer' then 'an integer' else 'a number' end, setting.minimum, setting.maximum, setting.key);
        end if;
    end loop;
    return null;
end
$$;
comment on function pgnet.breaker_setting_fault(jsonb) is
    'What is wrong with a value for the setting breaker of net.configure_host; NULL for a value '
    'that can be set.';

create function pgnet.host_matches(pattern text, authority text)
    returns boolean
    language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select pattern = '*' or pattern = authority or pattern = n.name
        or pattern like '*.%' and right(n.name, length(pattern) - 1) = substr(pattern, 2)
    from (select trim(regexp_replace(authority, ':[0-9]+$', ''), '[]') as name) n
$$;
comment on function pgnet.host_matches(text, text) is
    'Whether a pattern of net.configure_host is about the host of this authority.';

create function pgnet.forget_hosts(pattern text)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    with forgotten as (
        delete from pgnet.host_state s where pgnet.host_matches(forget_hosts.pattern, s.host) returning s.host, s.role, s.state
    )
    insert into pgnet.host_event (host, role, event, detail)
    select f.host, f.role, 'closed', 'its settings were changed' from forgotten f where f.state <> 'closed';
end
$$;
comment on function pgnet.forget_hosts(text) is
    'Forgets what was learnt of hosts that a pattern matches: an open breaker is closed. For '
    'changes of their settings.';

-- ---- reports

create type pgnet.attempt_report as (
    host text,
    role oid,
    -- attempts that the host answered, and those that failed
    ok integer,
    failed integer,
    -- of these, how many at the end in a row
    in_a_row integer,
    -- the last failure, in words
    cause text,
    -- how the probe ended: ok, failed, or none where it says nothing of the host
    probe text,
    -- for how many seconds the host has asked to wait, within the ceiling, and by which status
    retry_after double precision,
    retry_status integer,
    -- how many requests the worker has in flight at most now; 0: not less than usual
    concurrency integer,
    -- the settings of the place; without failures_in_a_row the breaker is off
    failures_in_a_row integer,
    failure_percent double precision,
    min_attempts integer,
    window_milliseconds double precision,
    open_milliseconds double precision,
    max_open_milliseconds double precision,
    on_open text
);
comment on type pgnet.attempt_report is
    'What a worker reports of a place: how attempts have ended since its last report, and the '
    'settings of the breaker there.';

create function pgnet.count_attempts(state pgnet.host_state, report pgnet.attempt_report, present timestamptz)
    returns pgnet.host_state
    language plpgsql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    half interval := make_interval(secs => report.window_milliseconds / 2000);
begin
    if present >= state.window_start + half or present < state.window_start then
        if present < state.window_start + half * 2 then
            state.earlier_attempts := state.attempts;
            state.earlier_failures := state.failures;
        else
            state.earlier_attempts := 0;
            state.earlier_failures := 0;
        end if;
        state.attempts := 0;
        state.failures := 0;
        state.window_start := present;
    end if;
    state.attempts := state.attempts + report.ok + report.failed;
    state.failures := state.failures + report.failed;
    state.in_a_row := case when report.ok = 0 then state.in_a_row + report.failed else report.in_a_row end;
    return state;
end
$$;
comment on function pgnet.count_attempts(pgnet.host_state, pgnet.attempt_report, timestamptz) is
    'The state of a place with the counts of a report: in two half windows, and in a row.';

create function pgnet.breaker_level(
    state pgnet.host_state, report pgnet.attempt_report,
    -- how near the breaker is to opening: 1 opens it
    out level double precision,
    -- what that was counted from
    out reason text
)
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    in_a_row double precision := state.in_a_row::double precision / report.failures_in_a_row;
    attempts integer := state.attempts + state.earlier_attempts;
    failures integer := state.failures + state.earlier_failures;
    share double precision := case when attempts >= report.min_attempts then 100.0 * failures / attempts / report.failure_percent else 0 end;
begin
    level := greatest(in_a_row, share);
    reason := case when in_a_row >= share then format('%s failures in a row, where %s open it', state.in_a_row, report.failures_in_a_row)
        else format('%s of %s attempts have failed within %s s, where %s %% open it', failures, attempts,
            round((report.window_milliseconds / 1000)::numeric, 1), report.failure_percent) end
        || coalesce('; the last: ' || report.cause, '');
end
$$;
comment on function pgnet.breaker_level(pgnet.host_state, pgnet.attempt_report) is
    'How near a breaker is to opening, and why.';

create function pgnet.open_breaker(state pgnet.host_state, report pgnet.attempt_report, reason text, present timestamptz)
    returns pgnet.host_state
    language plpgsql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    seconds double precision;
begin
    if state.state = 'closed' and present > state.since + interval '5 min' then
        -- It was well for long.
        state.opened := 0;
    end if;
    seconds := least(greatest(report.max_open_milliseconds, report.open_milliseconds),
        report.open_milliseconds * 2.0 ^ least(state.opened, 30)) / 1000;
    state.opened := state.opened + 1;
    state.state := 'open';
    state.needs_probe := true;
    state.since := present;
    state.reason := open_breaker.reason;
    state.on_open := report.on_open;
    state.closed_until := greatest(present + make_interval(secs => seconds), state.slowed_until);
    return state;
end
$$;
comment on function pgnet.open_breaker(pgnet.host_state, pgnet.attempt_report, text, timestamptz) is
    'The state of a place whose breaker opens: each time for twice as long, until it was well '
    'for five minutes.';

create function pgnet.close_breaker(state pgnet.host_state, present timestamptz)
    returns pgnet.host_state
    language plpgsql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if state.state <> 'closed' then
        state.since := present;
    end if;
    state.state := 'closed';
    state.needs_probe := false;
    state.reason := null;
    state.in_a_row := 0;
    state.attempts := 0;
    state.failures := 0;
    state.earlier_attempts := 0;
    state.earlier_failures := 0;
    state.window_start := present;
    state.alerted := 0;
    state.closed_until := state.slowed_until;
    return state;
end
$$;
comment on function pgnet.close_breaker(pgnet.host_state, timestamptz) is
    'The state of a place whose breaker closes: what was counted is forgotten.';

-- An event is an object: event, percent, detail.
create function pgnet.judge_closed(inout state pgnet.host_state, report pgnet.attempt_report, present timestamptz, out events jsonb)
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    near record;
    percent integer;
begin
    events := '[]';
    state := pgnet.count_attempts(state, report, present);
    near := pgnet.breaker_level(state, report);
    foreach percent in array array[50, 70, 90, 100] loop
        if near.level * 100 >= percent and state.alerted < percent then
            state.alerted := percent;
            events := events || jsonb_build_object('event', 'alert', 'percent', percent, 'detail', near.reason);
        end if;
    end loop;
    if near.level >= 1 then
        state := pgnet.open_breaker(state, report, near.reason, present);
        events := events || jsonb_build_object('event', 'opened', 'detail', format('until %s: %s',
            to_char(state.closed_until at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'), near.reason));
    elsif near.level < 0.5 then
        state.alerted := 0;
    end if;
end
$$;
comment on function pgnet.judge_closed(pgnet.host_state, pgnet.attempt_report, timestamptz) is
    'What a report makes of a place whose breaker is closed, and the events to note.';

create function pgnet.judge_report(inout state pgnet.host_state, report pgnet.attempt_report, present timestamptz, out events jsonb)
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    slowed text;
    judged record;
begin
    events := '[]';
    if report.retry_after > 0 then
        slowed := format('status %s asks to wait for %s s', report.retry_status, round(report.retry_after::numeric, 3));
        if coalesce(state.slowed_until, '-infinity') <= present then
            events := events || jsonb_build_object('event', 'slowed', 'detail', slowed);
            if state.state = 'closed' then
                state.since := present;
                state.reason := slowed;
            end if;
        end if;
        state.slowed_until := greatest(state.slowed_until, present + make_interval(secs => report.retry_after));
    end if;
    state.closed_until := case when state.state = 'closed' then state.slowed_until else greatest(state.closed_until, state.slowed_until) end;
    if report.failures_in_a_row is null then
        if state.state <> 'closed' then
            events := events || jsonb_build_object('event', 'closed', 'detail', 'the breaker is switched off');
        end if;
        state := pgnet.close_breaker(state, present);
    elsif state.state = 'closed' then
        judged := pgnet.judge_closed(state, report, present);
        state := judged.state;
        events := events || judged.events;
    elsif report.probe = 'ok' then
        events := events || jsonb_build_object('event', 'closed', 'detail', 'a probe was answered');
        state := pgnet.close_breaker(state, present);
    elsif report.probe = 'failed' then
        state := pgnet.open_breaker(state, report, 'a probe has failed: ' || coalesce(report.cause, ''), present);
        events := events || jsonb_build_object('event', 'opened', 'detail', format('until %s: %s',
            to_char(state.closed_until at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'), state.reason));
    elsif report.probe = 'none' then
        -- It was not sent: the next one is claimed at once.
        state.state := 'open';
        state.closed_until := greatest(present, state.slowed_until);
    end if;
    state.updated := present;
end
$$;
comment on function pgnet.judge_report(pgnet.host_state, pgnet.attempt_report, timestamptz) is
    'What a report makes of the state of a place, and the events to note. The results of '
    'attempts that began before the breaker opened do not count any more.';

create function pgnet.save_host_state(place pgnet.host_state)
    returns void
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
    update pgnet.host_state s
    set closed_until = place.closed_until, needs_probe = place.needs_probe, state = place.state, since = place.since,
        reason = place.reason, slowed_until = place.slowed_until, opened = place.opened, on_open = place.on_open,
        in_a_row = place.in_a_row, window_start = place.window_start, attempts = place.attempts, failures = place.failures,
        earlier_attempts = place.earlier_attempts, earlier_failures = place.earlier_failures, alerted = place.alerted,
        concurrency = place.concurrency, updated = place.updated
    where s.host = place.host and s.role = place.role
$$;
comment on function pgnet.save_host_state(pgnet.host_state) is
    'Writes the state of a place, whose row exists.';

-- An INSERT would wait where an administrator's transaction is about to delete the row.
create function pgnet.lock_host_state(host text, role oid)
    returns pgnet.host_state
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    locked pgnet.host_state;
begin
    select s.* into locked from pgnet.host_state s
    where s.host = lock_host_state.host collate "C" and s.role = lock_host_state.role for update skip locked;
    if not found and not exists (
        select from pgnet.host_state s where s.host = lock_host_state.host collate "C" and s.role = lock_host_state.role)
    then
        insert into pgnet.host_state as s (host, role) values (left(lock_host_state.host, 300), lock_host_state.role)
        on conflict do nothing returning s.* into locked;
    end if;
    return locked;
end
$$;
comment on function pgnet.lock_host_state(text, oid) is
    'The state of a place, made if there is none, and locked; NULL where another session has '
    'locked it.';

create function pgnet.report_attempts(
    worker_id bigint,
    -- an array of objects: the fields of pgnet.attempt_report
    reports json
)
    -- deferred: the places whose state another worker has locked, each as [host, role]: to be
    -- reported again; events: what has happened, for the log
    returns jsonb
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set plan_cache_mode = force_generic_plan
    set jit = off
    set lock_timeout = '500ms'
as $$
declare
    present timestamptz := clock_timestamp();
    report pgnet.attempt_report;
    state pgnet.host_state;
    judged record;
    deferred jsonb := '[]';
    events jsonb := '[]';
begin
    -- As in pgnet.lock_tables, a session that waits for a lock holds no other.
    lock table pgnet.worker_role, pgnet.worker in access share mode nowait;
    perform pgnet.require_worker(worker_id);
    lock table pgnet.host_state, pgnet.host_event in row exclusive mode nowait;
    for report in
        select r.* from json_populate_recordset(null::pgnet.attempt_report, reports) r
        where r.failed > 0 or r.probe is not null or r.retry_after > 0 or r.concurrency > 0
            or (select exists (select from pgnet.host_state)) and exists (
                select from pgnet.host_state s where s.host = r.host collate "C" and s.role = r.role offset 0)
        -- In one order, so that two workers do not wait for each other.
        order by r.host collate "C", r.role
    loop
        state := pgnet.lock_host_state(report.host, report.role);
        if state.host is null then
            deferred := deferred || jsonb_build_array(jsonb_build_array(report.host, report.role));
            continue;
        end if;
        judged := pgnet.judge_report(state, report, present);
        state := judged.state;
        if report.concurrency is not null then
            state.concurrency := case when report.concurrency > 0
                then state.concurrency || jsonb_build_object(worker_id, report.concurrency) else state.concurrency - worker_id::text end;
        end if;
        perform pgnet.save_host_state(state);
        if judged.events <> '[]' then
            insert into pgnet.host_event (host, role, event, percent, detail)
            select report.host, report.role, e.event, e.percent, e.detail
            from jsonb_to_recordset(judged.events) e (event text, percent smallint, detail text);
            events := events || (
                select jsonb_agg(e.value || jsonb_build_object('host', report.host, 'role', report.role, 'role_name', report.role::regrole::text))
                from jsonb_array_elements(judged.events) e);
        end if;
    end loop;
    return jsonb_build_object('deferred', deferred, 'events', events);
end
$$;
comment on function pgnet.report_attempts(bigint, json) is
    'Takes what a worker has counted of attempts: breakers open and close by it, and hosts that '
    'ask for a pause get it. Raises 08003 for a worker that is not registered.';

-- ---- what the claim asks

create function pgnet.probe_room(host text, role oid)
    returns integer
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
begin
    perform from pgnet.host_state s
    where s.host = probe_room.host collate "C" and s.role = probe_room.role and s.needs_probe
        and coalesce(s.closed_until, '-infinity') <= clock_timestamp()
    for update skip locked;
    return case when found then 1 else 0 end;
end
$$;
comment on function pgnet.probe_room(text, oid) is
    '1 where a probe of a broken host may begin, whose state is locked then; else 0.';

create function pgnet.begin_probes(ids bigint[])
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    present timestamptz := clock_timestamp();
    probe record;
begin
    for probe in select c.host, c.role, c.deadline from pgnet.claim c where c.id = any (ids) and c.probe loop
        update pgnet.host_state s
        set state = 'half_open', since = present, closed_until = probe.deadline, updated = present
        where s.host = probe.host collate "C" and s.role = probe.role;
    end loop;
end
$$;
comment on function pgnet.begin_probes(bigint[]) is
    'Notes the probes among what was claimed: until they end no other one begins.';

create function pgnet.next_opening()
    -- seconds; NULL where no place is closed for a time
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
    set enable_sort = off
as $$
declare
    present timestamptz := clock_timestamp();
begin
    return extract(epoch from (
        select s.closed_until from pgnet.host_state s where s.closed_until > present order by s.closed_until limit 1) - present);
end
$$;
comment on function pgnet.next_opening() is
    'After how many seconds requests may be claimed again for the first of the places that are '
    'closed for a time.';

-- ---- duties of the heartbeat

create function pgnet.free_probes()
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
    place record;
begin
    lock table pgnet.host_state in row exclusive mode nowait;
    lock table pgnet.claim in access share mode nowait;
    -- A clock was put back: what was to last for a time lasts for that time, from now on.
    for place in
        select s.* from pgnet.host_state s where s.updated > present + interval '5 s' order by s.updated limit 1000 for update skip locked
    loop
        update pgnet.host_state s
        set closed_until = present + (place.closed_until - place.updated), slowed_until = present + (place.slowed_until - place.updated),
            since = least(place.since, present), window_start = present, updated = present
        where s.host = place.host and s.role = place.role;
    end loop;
    -- The probe was lost with its worker, or cancelled.
    for place in
        select s.host, s.role, s.slowed_until from pgnet.host_state s
        where s.state = 'half_open'
            and not exists (select from pgnet.claim c where c.probe and c.host = s.host and c.role = s.role offset 0)
        order by s.host, s.role limit 1000 for update skip locked
    loop
        update pgnet.host_state s
        set state = 'open', closed_until = greatest(present, place.slowed_until), updated = present
        where s.host = place.host and s.role = place.role;
    end loop;
    return case when (select s.host from pgnet.host_state s where s.state = 'half_open' order by s.host limit 1) is not null then 1 end;
end
$$;
comment on function pgnet.free_probes() is
    'Frees places whose probe has ended without a result, so that another one begins; and mends '
    'times of places after a clock was put back.';

create function pgnet.end_requests_of_broken_hosts()
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
    place record;
    unsent bigint;
    left_to_end integer := 500;
    any_place boolean := false;
begin
    lock table net.http_request_queue, pgnet.claim, pgnet.attempt, net._http_response, pgnet.failed, pgnet.host_state,
        pgnet.flow, pgnet.ended_request, pgnet.dependency, pgnet.callback, pgnet.callback_order in row exclusive mode nowait;
    lock table pgnet.mark in access share mode nowait;
    for place in
        select s.host, s.role, s.reason, s.since from pgnet.host_state s
        where s.needs_probe and s.on_open = 'fail' and s.closed_until > present
        order by s.host, s.role limit 1000
    loop
        any_place := true;
        foreach unsent in array array(
            select q.id from pgnet.ready_request q
            where q.host = place.host and q.role = place.role
                and not exists (select from pgnet.claim c where c.id = q.id offset 0)
                and not exists (
                    select from pgnet.mark m
                    where m.requested_by = q.requested_by and m.request_id = q.id and m.action <> 'retry' offset 0)
            order by q.priority, q.id limit left_to_end for update of q skip locked)
        loop
            perform pgnet.end_without_answer(unsent, 'failed', format(
                'Not sent: the circuit breaker of %s is open since %s: %s.', place.host, date_trunc('second', place.since), place.reason),
                (select count(*)::integer from pgnet.attempt a where a.request_id = unsent));
            left_to_end := left_to_end - 1;
        end loop;
        if left_to_end <= 0 then
            return 0.05;
        end if;
    end loop;
    return case when any_place then 0.5 end;
end
$$;
comment on function pgnet.end_requests_of_broken_hosts() is
    'Ends ready requests to hosts whose breaker is open with on_open = fail, 500 at a time.';

create function pgnet.forget_host_states()
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
    kept_after timestamptz := present - pgnet.setting_value('ttl_failed')::interval;
    place record;
begin
    lock table pgnet.host_state, pgnet.host_event in row exclusive mode nowait;
    for place in
        select s.host, s.role from pgnet.host_state s
        where s.updated < present - interval '10 min' and coalesce(s.closed_until, '-infinity') < present
            and (not s.needs_probe or s.updated < present - interval '1 hour' and s.closed_until < present - interval '1 hour')
        order by s.updated limit 1000 for update skip locked
    loop
        delete from pgnet.host_state s where s.host = place.host and s.role = place.role;
    end loop;
    delete from pgnet.host_event e where e.id = any (array(
        select o.id from pgnet.host_event o where o.happened < kept_after order by o.happened limit 1000 for update skip locked));
    return null;
end
$$;
comment on function pgnet.forget_host_states() is
    'Deletes states of places of which there is nothing to say any more, and events past '
    'ttl_failed.';
