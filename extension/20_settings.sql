-- Settings. They live in a table with checks, not in custom server settings: those anyone can set
-- to anything.

-- The one list of settings: name, kind, default, bounds, unit, meaning. The function has no
-- search_path of its own and names nothing, so that the planner makes it a part of the query that
-- calls it.
create function pgnet.known_settings()
    returns table (name text, kind text, default_value text, minimum numeric, maximum numeric, unit text, description text)
    language sql immutable parallel safe cost 10 rows 21
as $$
    values
        ('timeout_milliseconds', 'integer', '1000', 1, 86400000, 'ms',
         'Total time of an attempt, name resolution to last byte, for requests that do not say their own.'),
        ('max_timeout', 'interval', '01:00:00', 1, 2147483, 'interval',
         'The longest total time of an attempt: whoever asks for more, a request or the setting timeout_milliseconds, gets this.'),
        ('ttl', 'interval', '06:00:00', 0, 315360000, 'interval',
         'How long a response is kept after it was recorded.'),
        ('ttl_failed', 'interval', '14 days', 0, 315360000, 'interval',
         'How long a request that failed is kept, body and all, in net.failures.'),
        ('batch_size', 'integer', '500', 1, 10000, 'requests',
         'How many outcomes a worker records, and how many requests it claims, in one transaction.'),
        ('concurrency', 'integer', '1000', 1, 100000, 'requests',
         'How many requests a worker has in flight at once; it also stays below its limit of open files.'),
        ('poll_interval', 'interval', '00:01:00', 1, 3600, 'interval',
         'How often a worker that is alone looks without being woken; with others to rescue it looks every second.'),
        ('rescue_after', 'interval', '00:00:03', 0, 3600, 'interval',
         'How long the session of a worker process must be gone before its requests are free for others.'),
        ('max_losses', 'integer', '5', 1, 1000, 'workers',
         'How many workers a request may bring down, or be lost with, before it ends as failed; from the second on it is attempted alone.'),
        ('max_grace', 'interval', '00:00:30', 0, 86400, 'interval',
         'How long at most a worker that is told to stop waits for what is in flight; the rest is given back.'),
        ('max_pending', 'integer', '0', 0, 2147483647, 'requests',
         'How many requests may be pending in all; a call beyond it fails with 53400. 0: no limit.'),
        ('max_pending_per_role', 'integer', '0', 0, 2147483647, 'requests',
         'How many requests of one role may be pending, each role counted by itself; a call beyond it fails with 53400. 0: no limit.'),
        ('disable_webhook_after', 'interval', '5 days', 0, 315360000, 'interval',
         'A webhook whose deliveries have failed for so long, all of them, is disabled. 0: never.'),
        ('callback_timeout', 'interval', '00:00:30', 1, 3600, 'interval',
         'How long a callback may run; then it is cancelled, and its effects are undone.'),
        ('callback_attempts', 'integer', '5', 1, 100, 'attempts',
         'How often a callback that fails is tried, after 1 s, 4 s, 16 s and so on; then it waits for net.run_callback.'),
        ('callback_runners', 'integer', '4', 0, 64, 'sessions',
         'In how many sessions at most a worker process runs callbacks, each those of one role. 0: it runs none.'),
        ('callback_memory', 'integer', '536870912', 16777216, 2147483647, 'bytes',
         'How much memory a callback may take, beyond what its session has anyway.'),
        ('mode', 'choice', 'on', null, null, 'on|record|off',
         'on: requests are sent. record: as if they were, and nothing is. off: they wait. The server''s pgnet.mode can only make it safer.'),
        ('notify_outcomes', 'choice', 'off', null, null, 'off|on',
         'on: the recording of outcomes sends a NOTIFY on the channel pgnet_outcomes, one for a batch, with the ids of the requests.'),
        ('wake_up', 'choice', 'callback', null, null, 'callback|poll',
         'callback: a commit wakes a worker at once. poll: workers look every second instead.'),
        ('connect_timeout_milliseconds', 'integer', '10000', 1, 86400000, 'ms',
         'Time to connect to a server, TLS included, within the total time of the attempt.'),
        ('max_response_bytes', 'integer', '10485760', 0, 268435456, 'bytes',
         'The largest response body, counted as it is decoded. Of a larger one so much is kept, and error_msg says so.'),
        ('max_wire_bytes', 'integer', '10485760', 0, 268435456, 'bytes',
         'The largest response body as it comes over the wire, before it is decoded. Of a larger one so much is kept, and error_msg says so.'),
        ('max_header_bytes', 'integer', '262144', 1024, 16777216, 'bytes',
         'The largest header section of a response, interim responses included. Of a larger one so much is kept, and error_msg says so.'),
        ('max_redirects', 'integer', '5', 0, 30, 'redirects',
         'How many redirects are followed, each through the guard; at 0 a redirect is the answer.'),
        ('egress', 'choice', 'public', null, null, 'public|listed',
         'public: every public address may be requested. listed: only what net.allow_host and net.allow_network name.'),
        ('egress_ports', 'ports', '80,443,1024-65535', null, null, 'ports',
         'The ports that may be requested: numbers and ranges, with commas.')
$$;
comment on function pgnet.known_settings() is
    'The settings that exist; net.settings shows them with their values.';

-- Gives NULL for a value that can be set, and else what is wrong with it.
create function pgnet.setting_fault(setting_name text, setting_value text)
    returns text
    language plpgsql stable parallel unsafe cost 100
    set search_path = pg_catalog, pg_temp
    set datestyle = 'ISO, YMD'
    set intervalstyle = 'postgres'
as $$
declare
    known record;
    amount numeric;
begin
    select * into known from pgnet.known_settings() k where k.name = setting_name;
    if not found then
        return pg_catalog.format('unknown setting "%s"', setting_name);
    end if;
    if setting_value is null then
        return 'a value is needed';
    end if;
    if known.kind = 'choice' then
        if setting_value = any (pg_catalog.string_to_array(known.unit, '|')) then
            return null;
        end if;
        return pg_catalog.format('must be one of %s', replace(known.unit, '|', ', '));
    end if;
    if known.kind = 'ports' then
        if setting_value !~ '^ *[0-9]{1,5}(-[0-9]{1,5})?( *, *[0-9]{1,5}(-[0-9]{1,5})?)* *$' or exists (
            select from pg_catalog.regexp_split_to_table(setting_value, ',') r (ports)
            cross join lateral (
                select split_part(trim(r.ports), '-', 1)::integer as low,
                    regexp_replace(trim(r.ports), '^.*-', '')::integer as high
            ) b
            where b.low < 1 or b.high > 65535 or b.low > b.high)
        then
            return 'must be numbers and ranges from 1 to 65535, such as 80,443,8000-8999';
        end if;
        return null;
    end if;
    if known.kind = 'interval' and setting_value !~ '[a-zA-Z:]' and setting_value ~ '[1-9]' then
        return 'must have a unit, such as 30 s or 6 hours';
    end if;
    begin
        if known.kind = 'integer' then
            amount := setting_value::integer;
        else
            amount := extract(epoch from setting_value::interval);
        end if;
    exception when data_exception then
        return case known.kind when 'integer' then pg_catalog.format('must be an integer, in %s', known.unit)
            else 'must be an interval, such as 30 s or 6 hours' end;
    end;
    if amount < known.minimum or amount > known.maximum then
        return pg_catalog.format('must be between %s and %s%s', known.minimum, known.maximum,
            case known.kind when 'interval' then ' seconds' else '' end);
    end if;
    return null;
end
$$;
comment on function pgnet.setting_fault(text, text) is
    'What is wrong with a value for a setting; NULL for a value that can be set.';

create table pgnet.setting (
    name text primary key,
    value text not null,
    constraint setting_is_valid check (pgnet.setting_fault(name, value) is null)
);
comment on table pgnet.setting is
    'The settings that differ from their default; net.configure writes it, net.settings reads it.';
select pg_catalog.pg_extension_config_dump('pgnet.setting', '');

-- Counts the changes of settings and egress rules, in the transactions that make them: a worker
-- that claims a request which was committed after a change sees the new number in the same
-- snapshot, however late the wake-up is.
create table pgnet.configuration (
    revision bigint not null,
    generation bigint not null,
    host_revision bigint not null default 1,
    single boolean primary key default true check (single)
);
comment on table pgnet.configuration is
    'The number of changes of settings and egress rules so far, and of restarts that '
    'net.worker_restart asked for; host_revision: the revision of the last change of net.configure_host.';
insert into pgnet.configuration (revision, generation) values (1, 1);

create function pgnet.announce_configuration()
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgnet.require_owner();
    update pgnet.configuration set revision = revision + 1;
    perform pgnet.signal_workers('reload');
end
$$;
comment on function pgnet.announce_configuration() is
    'Every function that changes the configuration calls it: workers follow at the commit. Owner '
    'only.';

-- In PL/pgSQL, which keeps the plan: each claim asks for some.
create function pgnet.setting_value(setting_name text)
    returns text
    language plpgsql stable parallel safe security definer cost 10
    set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce(
        (select s.value from pgnet.setting s where s.name = setting_name),
        (select k.default_value from pgnet.known_settings() k where k.name = setting_name));
end
$$;
comment on function pgnet.setting_value(text) is
    'The value of a setting in force, as text; NULL for a name that does not exist.';

create function pgnet.max_timeout_milliseconds()
    returns integer
    language plpgsql stable parallel safe cost 10
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (extract(epoch from pgnet.setting_value('max_timeout')::interval) * 1000)::integer;
end
$$;
comment on function pgnet.max_timeout_milliseconds() is 'The setting max_timeout in ms.';

create function pgnet.settings_in_force()
    returns jsonb
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select jsonb_object_agg(k.name, case k.kind
            when 'interval' then to_jsonb(extract(epoch from pgnet.setting_value(k.name)::interval))
            when 'integer' then to_jsonb(pgnet.setting_value(k.name)::bigint)
            else to_jsonb(pgnet.setting_value(k.name)) end)
        || jsonb_build_object('server_encoding', current_setting('server_encoding'))
    from pgnet.known_settings() k
$$;
comment on function pgnet.settings_in_force() is
    'All settings by name, for workers: intervals in seconds; and the encoding of the database.';

create view net.settings as
    select k.name, coalesce(s.value, k.default_value) as value, k.default_value as "default", k.unit, k.description
    from pgnet.known_settings() k
    left join pgnet.setting s on s.name operator(pg_catalog.=) k.name;
comment on view net.settings is
    'Every setting: its value in force, default, unit and meaning. Changed by net.configure(name, '
    'value).';

create function net.configure(
    -- which setting: a name of net.settings
    name text,
    -- its new value; NULL goes back to the default
    value text
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    fault text;
    before text := pgnet.setting_value(name);
    now_set text;
begin
    if name is null or not exists (select from net.settings s where s.name = configure.name) then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = pg_catalog.format('unknown setting %s', coalesce('"' || name || '"', 'NULL')),
            hint = 'known: ' || (select pg_catalog.string_agg(s.name, ', ' order by s.name) from net.settings s);
    end if;
    if value is null then
        delete from pgnet.setting s where s.name = configure.name;
    else
        fault := pgnet.setting_fault(name, value);
        if fault is not null then
            raise exception using
                errcode = 'invalid_parameter_value',
                message = pg_catalog.format('invalid value for setting "%s": %s', name, fault),
                hint = (select pg_catalog.format('The default is %s (%s).', s."default", s.unit)
                        from net.settings s where s.name = configure.name);
        end if;
        -- Not in the constraint of the table: what it says must not depend on another row.
        if name = 'timeout_milliseconds' and value::integer > pgnet.max_timeout_milliseconds() then
            raise exception using
                errcode = 'invalid_parameter_value',
                message = pg_catalog.format('invalid value for setting "timeout_milliseconds": must not be more than max_timeout, %s ms',
                    pgnet.max_timeout_milliseconds()),
                hint = pg_catalog.format('Raise that first: select net.configure(''max_timeout'', ''%s s'').',
                    pg_catalog.ceil(value::numeric / 1000));
        end if;
        insert into pgnet.setting values (configure.name, configure.value)
        on conflict on constraint setting_pkey do update set value = excluded.value;
    end if;
    perform pgnet.announce_configuration();
    now_set := pgnet.setting_value(name);
    raise notice using message = case when now_set = before then pg_catalog.format('setting "%s" stays %s', name, now_set)
        else pg_catalog.format('setting "%s" is %s now; it was %s', name, now_set, before) end;
end
$$;
comment on function net.configure(text, text) is
    'Sets a setting for this database; NULL as value goes back to the default. Workers follow at '
    'the commit. Raises 22023 for an unknown name or a value out of bounds. Owner only.';
