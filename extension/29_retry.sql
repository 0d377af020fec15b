-- Retry policies: which requests are attempted again, how often and how soon. Workers apply them
-- (retry.py).

-- The one list of settings of a retry policy: name, kind, default, bounds, meaning. The defaults
-- are the policy "safe".
create function pgnet.known_retry_settings()
    returns table (name text, kind text, default_value jsonb, minimum numeric, maximum numeric, description text)
    language sql immutable parallel safe cost 10 rows 10
    set search_path = pg_catalog, pg_temp
as $$
    values
        ('max_attempts', 'integer', '5'::jsonb, 1, 1000, 'How many attempts there are at most, the first one included.'),
        ('backoff_milliseconds', 'integer', '1000', 0, 86400000, 'The longest wait after the first attempt, in ms; each wait is drawn between 0 and the longest.'),
        ('backoff_factor', 'number', '2', 1, 100, 'How many times longer the longest wait is after each further attempt.'),
        ('max_backoff_milliseconds', 'integer', '30000', 0, 604800000, 'The longest wait after any attempt, in ms.'),
        ('statuses', 'statuses', '[408, 425, 429, 500, 502, 503, 504]', null, null,
         'Which answers are attempted again, unless they are accepted: "any", or a list such as [429, "5xx", "520-530"].'),
        ('accept', 'statuses', '["100-399"]', null, null, 'Which answers are a success: "any", or a list such as ["2xx", 304].'),
        ('errors', 'name|connect|tls|timeout|connection|response', '["name", "connect", "tls", "timeout", "connection"]', null, null,
         'Which errors are attempted again: "any", or a list of name, connect, tls, timeout, connection, response.'),
        ('methods', 'methods', '"idempotent"', null, null,
         'Which methods may be sent again once the server may have seen the request: "any", "idempotent" (GET, HEAD, PUT, DELETE, OPTIONS, and what has an idempotency key), or a list of methods.'),
        ('max_retry_after_milliseconds', 'integer', '120000', 0, 604800000, 'A Retry-After that asks for more than this counts as this, in ms.'),
        ('total_milliseconds', 'integer', '600000', 0, 2592000000, 'No attempt begins later than this after the first one began, in ms.')
$$;
comment on function pgnet.known_retry_settings() is
    'The settings that net.configure_retry takes, with their defaults.';

create function pgnet.built_in_retry_policies()
    returns table (name text, settings jsonb)
    language sql immutable parallel safe cost 10 rows 3
    set search_path = pg_catalog, pg_temp
as $$
    values
        ('none', '{"max_attempts": 1}'::jsonb),
        ('safe', '{}'),
        ('webhook', '{
            "max_attempts": 15, "backoff_milliseconds": 5000, "backoff_factor": 3, "max_backoff_milliseconds": 14400000,
            "statuses": "any", "accept": ["2xx"], "errors": "any", "methods": "any",
            "max_retry_after_milliseconds": 14400000, "total_milliseconds": 86400000}')
$$;
comment on function pgnet.built_in_retry_policies() is
    'The policies that are always there, each with the settings that differ from those of "safe".';

create table pgnet.retry_policy (
    name text primary key,
    settings jsonb not null
);
comment on table pgnet.retry_policy is
    'The retry policies that net.configure_retry has made; net.retry_policies shows them.';
select pg_catalog.pg_extension_config_dump('pgnet.retry_policy', '');

create view net.retry_policies as
    select p.name, d.settings operator(pg_catalog.||) p.settings as settings, p.built_in
    from (
        select b.name, b.settings, true as built_in from pgnet.built_in_retry_policies() b
        union all
        select o.name, o.settings, false from pgnet.retry_policy o
    ) p
    cross join (
        select pg_catalog.jsonb_object_agg(k.name, k.default_value) as settings from pgnet.known_retry_settings() k
    ) d;
comment on view net.retry_policies is
    'Every retry policy, complete with defaults. net.configure_retry(name, settings) makes further '
    'ones.';

-- Gives NULL for a value that can be set, and else what is wrong with it.
create function pgnet.retry_setting_fault(setting_kind text, minimum numeric, maximum numeric, given jsonb)
    returns text
    language plpgsql stable parallel safe cost 100
    set search_path = pg_catalog, pg_temp
as $$
begin
    case setting_kind
        when 'integer', 'number' then
            if jsonb_typeof(given) <> 'number' or given::numeric not between minimum and maximum
                or (setting_kind = 'integer' and given::numeric <> trunc(given::numeric)) then
                return format('must be %s between %s and %s',
                    case setting_kind when 'integer' then 'an integer' else 'a number' end, minimum, maximum);
            end if;
            return null;
        when 'methods' then
            if given in ('"any"', '"idempotent"') then
                return null;
            end if;
            if jsonb_typeof(given) <> 'array' or exists (
                select from jsonb_array_elements(given) e
                where jsonb_typeof(e) <> 'string' or e #>> '{}' !~ '^[A-Za-z0-9!#$%&''*+.^_`|~-]{1,40}$')
            then
                return 'must be "any", "idempotent" or a list of methods, such as ["GET", "POST"]';
            end if;
            return null;
        when 'statuses' then
            if given = '"any"' then
                return null;
            end if;
            if jsonb_typeof(given) <> 'array' or exists (
                select from jsonb_array_elements(given) e
                where jsonb_typeof(e) not in ('string', 'number')
                    or e #>> '{}' !~ '^([1-9]xx|[1-9][0-9][0-9](-[1-9][0-9][0-9])?)$'
                    or split_part(e #>> '{}', '-', 1) > substring(e #>> '{}' from '-(.*)$'))
            then
                return 'must be "any" or a list of status codes and ranges, such as [429, "5xx", "520-530"]';
            end if;
            return null;
        else
            if given = '"any"' then
                return null;
            end if;
            if jsonb_typeof(given) <> 'array' or exists (
                select from jsonb_array_elements(given) e
                where jsonb_typeof(e) <> 'string' or e #>> '{}' <> all (string_to_array(setting_kind, '|')))
            then
                return format('must be "any" or a list of these: %s', replace(setting_kind, '|', ', '));
            end if;
            return null;
    end case;
end
$$;
comment on function pgnet.retry_setting_fault(text, numeric, numeric, jsonb) is
    'What is wrong with a value for net.configure_retry; NULL for a value that can be set.';

-- For net.configure_host and net.configure_retry, whose settings are a JSON object: the first that
-- is unknown or has a value that cannot be.
create function pgnet.check_json_settings(
    -- host, or retry policy
    kind text,
    -- the host's pattern, or the policy's name
    subject text,
    settings jsonb,
    -- such settings
    example text
)
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    given record;
    fault text;
begin
    if jsonb_typeof(settings) <> 'object' then
        raise exception using errcode = 'invalid_parameter_value', message = 'settings must be a JSON object',
            hint = 'For example: ' || example;
    end if;
    for given in
        with known as (
            select 'host' as subject, h.name, h.kind, h.minimum, h.maximum, h.description from pgnet.known_host_settings() h
            union all
            select 'retry policy', r.name, r.kind, r.minimum, r.maximum, r.description from pgnet.known_retry_settings() r
        )
        select s.key, s.value, k.name, k.kind, k.minimum, k.maximum, k.description,
            (select string_agg(k.name, ', ' order by k.name) from known k where k.subject = check_json_settings.kind) as names
        from jsonb_each(settings) s left join known k on k.subject = check_json_settings.kind and k.name = s.key
    loop
        if given.name is null then
            raise exception using errcode = 'invalid_parameter_value', message = format('unknown setting "%s"', left(given.key, 60)),
                hint = 'known: ' || given.names;
        end if;
        continue when given.value = 'null';
        fault := case kind
            when 'host' then pgnet.host_setting_fault(given.kind, given.minimum, given.maximum, given.value)
            else pgnet.retry_setting_fault(given.kind, given.minimum, given.maximum, given.value) end;
        if fault is not null then
            raise exception using errcode = 'invalid_parameter_value',
                message = format('setting "%s" of %s "%s" %s', given.key, kind, subject, fault),
                hint = given.description;
        end if;
    end loop;
end
$$;
comment on function pgnet.check_json_settings(text, text, jsonb, text) is
    'Raises 22023 for settings of a host or of a retry policy that are no object, unknown, or have '
    'a value that cannot be.';

-- Callers run it for each request that names a policy: the built-in ones cost no look into a table.
create function pgnet.check_retry_policy(name text)
    returns void
    language plpgsql stable parallel safe cost 10
    set search_path = pg_catalog, pg_temp
as $$
begin
    if name in ('none', 'safe', 'webhook') or exists (select from net.retry_policies p where p.name = check_retry_policy.name) then
        return;
    end if;
    raise exception using
        errcode = 'invalid_parameter_value',
        message = case when name is null then 'the name of a retry policy must not be NULL'
            else format('unknown retry policy "%s"', left(name, 60)) end,
        hint = 'known: ' || (select string_agg(p.name, ', ' order by not p.built_in, p.name) from net.retry_policies p);
end
$$;
comment on function pgnet.check_retry_policy(text) is
    'Raises 22023 where there is no retry policy of this name; for NULL too.';

create function net.configure_retry(
    -- 1 to 63 letters, digits, and - _ . behind the first one; none, safe and webhook are built in
    name text,
    -- merged into the settings that the policy has; a null resets what it names to that of safe,
    -- NULL drops the policy
    settings jsonb
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    users text;
begin
    if name is null or name !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$' then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('invalid name %s of a retry policy', coalesce('"' || left(name, 80) || '"', 'NULL')),
            hint = 'A name is of 1 to 63 letters, digits, and - _ . behind the first one.';
    end if;
    if exists (select from pgnet.built_in_retry_policies() b where b.name = configure_retry.name) then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('retry policy "%s" is built in: it cannot be changed', name),
            hint = 'Make one of your own: select net.configure_retry(''mine'', ''{"max_attempts": 3}''). A setting that it leaves out is that of safe.';
    end if;
    if settings is null or settings = 'null' then
        delete from pgnet.retry_policy p where p.name = configure_retry.name;
        select string_agg(h.pattern, ', ' order by h.pattern) into users
        from pgnet.host h where h.settings ->> 'retry' = configure_retry.name;
        if users is not null then
            raise exception using errcode = 'dependent_objects_still_exist',
                message = format('retry policy "%s" is in use', name),
                detail = format('net.configure_host names it for: %s', users),
                hint = format('Give these hosts another one first: select net.configure_host(%L, ''{"retry": null}'')',
                    split_part(users, ', ', 1));
        end if;
        perform pgnet.announce_configuration();
        raise notice using message = format('there is no retry policy "%s" any more', name);
        return;
    end if;
    perform pgnet.check_json_settings('retry policy', name, settings, 'select net.configure_retry(''mine'', ''{"max_attempts": 3}'')');
    insert into pgnet.retry_policy as p (name, settings) values (configure_retry.name, jsonb_strip_nulls(configure_retry.settings))
    on conflict on constraint retry_policy_pkey do update
        set settings = jsonb_strip_nulls(p.settings || configure_retry.settings);
    perform pgnet.announce_configuration();
    raise notice using message = (
        select format('retry policy "%s": %s attempts at most, within %s ms', p.name, p.settings ->> 'max_attempts', p.settings ->> 'total_milliseconds')
        from net.retry_policies p where p.name = configure_retry.name);
end
$$;
comment on function net.configure_retry(text, jsonb) is
    'Makes or changes a retry policy: net.retry_policies and the documentation have the settings. '
    'They are merged into those that the policy has; null resets one to that of safe; NULL drops '
    'the policy, and raises 2BP01 while net.configure_host names it. Raises 22023 for a name, '
    'setting or value that cannot be, and for the built-in policies. Workers follow at the commit. '
    'Owner only.';

create function pgnet.retry_policy_settings()
    returns jsonb
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$ select jsonb_object_agg(p.name, p.settings) from net.retry_policies p $$;
comment on function pgnet.retry_policy_settings() is
    'All retry policies by name, complete, for workers.';

create function pgnet.is_idempotent(method text)
    returns boolean
    language sql immutable parallel safe cost 1
as $$
    select pg_catalog.upper(method collate "C")
        operator(pg_catalog.=) any (array['GET', 'HEAD', 'PUT', 'DELETE', 'OPTIONS'])
$$;
comment on function pgnet.is_idempotent(text) is
    'Whether a request with this method may be sent twice: RFC 9110, section 9.2.2.';

create function pgnet.derived_idempotency_key(key_namespace uuid, id bigint, created timestamptz)
    returns text
    language sql stable parallel safe cost 10
as $$
    select pg_catalog.md5(pg_catalog.concat_ws(':', key_namespace, id, extract(epoch from created)))::pg_catalog.uuid::pg_catalog.text
$$;
comment on function pgnet.derived_idempotency_key(uuid, bigint, timestamptz) is
    'An idempotency key that is the same for each attempt of a request, and for no other request.';

create function pgnet.idempotency_key(id bigint, created timestamptz, method text, options jsonb)
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select case
        when options ? 'idempotency_key' then
            -- Another value than a string may be 1 GB as text.
            case when jsonb_typeof(options -> 'idempotency_key') = 'string' then options ->> 'idempotency_key' end
        when not pgnet.is_idempotent(method) then pgnet.derived_idempotency_key((select d.key_namespace from pgnet.database d), id, created)
    end
$$;
comment on function pgnet.idempotency_key(bigint, timestamptz, text, jsonb) is
    'The idempotency key of a request: the one that it asked for; for a method that is not '
    'idempotent, one that is the same for each attempt and for no other request; else NULL.';
