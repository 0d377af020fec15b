-- Settings of single hosts: how to connect to them, whom to trust, what to show, and how many
-- requests they get. net.hosts shows them: see 61_hosts.sql.

-- The one list of settings of a host: name, kind, bounds, meaning.
create function pgnet.known_host_settings()
    returns table (name text, kind text, minimum numeric, maximum numeric, description text)
    language sql immutable parallel safe cost 10 rows 10
    set search_path = pg_catalog, pg_temp
as $$
    values
        ('connect_timeout_milliseconds', 'integer', 1, 86400000, 'Time to connect in ms, TLS included.'),
        ('max_redirects', 'integer', 0, 30, 'How many redirects are followed.'),
        ('retry', 'policy', null, null, 'The retry policy of requests that name none: see net.retry_policies.'),
        ('http_version', '1.1|2', null, null, '1.1 or 2. By default 2 where TLS offers it, and 1.1 for what the libcurl in use does better so.'),
        ('user_agent', 'line', null, null, 'Sent where the request has no User-Agent of its own.'),
        ('host_header', 'authority', null, null, 'The name, or name:port, that the server is asked for, as Host and in TLS, instead of the host of the URL.'),
        ('proxy', 'proxy', null, null, 'A URL http://host:port or https://host:port, one with a password as a secret; direct: none.'),
        ('ca', 'certificate', null, null, 'PEM of the authorities to trust instead of the default ones.'),
        ('client_certificate', 'certificate', null, null, 'PEM of the certificate to show, with its chain.'),
        ('client_key', 'secret', null, null, 'PEM of its key, as a secret.'),
        ('breaker', 'breaker', null, null, 'The circuit breaker: false, or settings of pgnet.known_breaker_settings() that differ from the default.'),
        ('adaptive', 'boolean', null, null, 'With false the number of requests in flight does not adapt to what the host can bear.'),
        ('max_retry_after_milliseconds', 'integer', 0, 86400000, 'A host that asks by 429 or 503 with Retry-After for a longer pause gets this, in ms.'),
        ('verify', 'boolean', null, null, 'With false neither certificate nor name of the server are checked.'),
        ('concurrency', 'limit', 1, 100000, 'How many requests are in flight at once at each host that the pattern matches; false: no limit.'),
        ('rate', 'rate', null, null, 'How many requests each host that the pattern matches gets in a time, such as 500/minute; false: no limit.'),
        ('burst', 'integer', 1, 1000000, 'How many requests more than its rate a host may get at once.')
$$;
comment on function pgnet.known_host_settings() is
    'The settings that net.configure_host takes.';

create function pgnet.rate_per_second(rate text)
    returns double precision
    language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select nullif(m[1]::double precision, 0) / case m[2] when 'second' then 1 when 'minute' then 60 when 'hour' then 3600 else 86400 end
    from regexp_match(rate, '^ *([0-9]{1,7}(?:[.][0-9]{1,6})?) */ *(second|minute|hour|day) *$') m
$$;
comment on function pgnet.rate_per_second(text) is
    'A rate such as 500/minute in requests per second; NULL for what is no rate.';

create function pgnet.limit_fault(
    -- limit: a number; rate: a number in a time
    setting_kind text, maximum numeric, given jsonb
)
    returns text
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if given = 'false' then
        return null;
    elsif setting_kind = 'rate' then
        if jsonb_typeof(given) <> 'string' or pgnet.rate_per_second(given #>> '{}') is null then
            return 'must be such as "10/second", "500/minute", "1000/hour" or "5000/day", or false for no limit';
        end if;
    elsif given = '0' then
        return 'must be at least 1; net.pause(host) has all requests of a host wait';
    elsif given::text !~ '^[1-9][0-9]{0,9}$' or given::numeric > maximum then
        return format('must be an integer between 1 and %s, or false for no limit', maximum);
    end if;
    return null;
end
$$;
comment on function pgnet.limit_fault(text, numeric, jsonb) is
    'What is wrong with a limit of a host; NULL for one that can be set. false stands for no limit.';

create function pgnet.named_secret_fault(given jsonb)
    returns text
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if (given - 'secret') <> '{}' or jsonb_typeof(given -> 'secret') is distinct from 'string' then
        return 'must be {"secret": name}';
    end if;
    if not exists (select from pgnet.secret s where s.name = given ->> 'secret') then
        return format('names the secret "%s", which does not exist', given ->> 'secret');
    end if;
    return null;
end
$$;
comment on function pgnet.named_secret_fault(jsonb) is
    'What is wrong with an object that names a secret; NULL for one that can be set.';

-- Gives NULL for a value that can be set, and else what is wrong with it. The message does not show
-- the value: a password may have got into it.
create function pgnet.host_setting_fault(setting_kind text, minimum numeric, maximum numeric, given jsonb)
    returns text
    language plpgsql stable parallel safe cost 100
    set search_path = pg_catalog, pg_temp
as $$
declare
    plain text := case when jsonb_typeof(given) = 'string' then given #>> '{}' end;
begin
    if jsonb_typeof(given) = 'object' and setting_kind in ('secret', 'certificate', 'proxy') then
        return pgnet.named_secret_fault(given);
    end if;
    case setting_kind
        when 'integer' then
            if jsonb_typeof(given) <> 'number' or given::numeric <> trunc(given::numeric)
                or given::numeric not between minimum and maximum then
                return format('must be an integer between %s and %s', minimum, maximum);
            end if;
        when 'limit', 'rate' then
            return pgnet.limit_fault(setting_kind, maximum, given);
        when 'boolean' then
            if jsonb_typeof(given) <> 'boolean' then
                return 'must be true or false';
            end if;
        when 'line' then
            if plain is null or plain collate "C" !~ '^[ -~]+$' or length(plain) > 500 then
                return 'must be a string of 1 to 500 printable ASCII characters';
            end if;
        when 'authority' then
            -- A value that ends in a number is an address: the URL has one already.
            if plain is null or length(plain) > 259 or plain ~* '(^|[.])(0x[0-9a-f]*|[0-9]+)[.]?(:|$)'
                or plain !~ '^([A-Za-z0-9_-]{1,63}[.])*[A-Za-z0-9_-]{1,63}[.]?(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?$' then
                return 'must be a host name, or name:port, such as shop.example';
            end if;
        when 'proxy' then
            if plain is null or plain !~ '^(direct|https?://([A-Za-z0-9_.-]{1,253}|[[][0-9A-Fa-f:.]+[]]):[0-9]{1,5}/?)$' then
                return 'must be http://host:port, https://host:port or direct; one with user and password is given as {"secret": name}';
            end if;
        when 'certificate' then
            if plain is null or position('-----BEGIN CERTIFICATE-----' in plain) = 0 then
                return 'must be certificates in PEM, or {"secret": name}';
            end if;
            if position('PRIVATE KEY' in plain) > 0 then
                return 'must not hold a private key: that goes into client_key, as a secret';
            end if;
        when 'policy' then
            if plain is null or not exists (select from net.retry_policies p where p.name = plain) then
                return 'must be the name of a retry policy: ' || (
                    select string_agg(p.name, ', ' order by not p.built_in, p.name) from net.retry_policies p);
            end if;
        when 'breaker' then
            return pgnet.breaker_setting_fault(given);
        when 'secret' then
            return 'must be {"secret": name}: select net.set_secret(name, value) keeps it';
        else
            if plain is null or plain <> all (string_to_array(setting_kind, '|')) then
                return format('must be one of %s, as a string', replace(setting_kind, '|', ', '));
            end if;
    end case;
    return null;
end
$$;
comment on function pgnet.host_setting_fault(text, numeric, numeric, jsonb) is
    'What is wrong with a value for net.configure_host; NULL for a value that can be set.';

create table pgnet.host (
    pattern text primary key,
    settings jsonb not null
);
comment on table pgnet.host is
    'The settings of hosts, by net.configure_host; secrets by their names. net.hosts shows them.';
select pg_catalog.pg_extension_config_dump('pgnet.host', '');

-- Each claim asks whether there is any limit.
create index host_limited on pgnet.host ((true)) where settings operator(pg_catalog.?|) '{concurrency,rate}';

-- A pattern as a host is looked up by: an address in its usual form, a name, *.name, or * for all;
-- each may have a port. An IPv6 address has brackets only where a port follows.
create function pgnet.configured_host_pattern(host text)
    returns text
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    parts text[] := regexp_match(trim(host), '^([^:]*|[[].*[]]):([1-9][0-9]{0,4})$');
    name text := coalesce(parts[1], trim(host));
    port text := ':' || parts[2];
begin
    if parts[2] in ('80', '443') then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('invalid host pattern "%s"', host),
            hint = 'A URL has no port where it is the usual one, 80 or 443. Give the name without a port, which stands for all ports.';
    end if;
    if name = '*' and parts[2]::integer <= 65535 is not false then
        return '*' || coalesce(port, '');
    end if;
    begin
        if name !~ '/' and parts[2]::integer <= 65535 is not false then
            name := pg_catalog.host(trim(name, '[]')::inet);
            return case when port is null then name when name ~ ':' then format('[%s]%s', name, port) else name || port end;
        end if;
    exception when data_exception then
        null; -- a name
    end;
    begin
        if parts[2]::integer > 65535 then
            raise invalid_parameter_value;
        end if;
        return pgnet.host_pattern(name) || coalesce(port, '');
    exception when invalid_parameter_value then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('invalid host pattern %s', coalesce('"' || host || '"', 'NULL')),
            hint = 'Give a host name without scheme, *.example.com for every name below it, an address in its usual form, or * for every host; each may end in a port, such as api.example.com:8443.';
    end;
end
$$;
comment on function pgnet.configured_host_pattern(text) is
    'The pattern of net.configure_host in its stored form. Raises 22023 for a text that is not a '
    'host.';

create function pgnet.patterns_of(host text)
    returns text[]
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    parts text[] := regexp_match(host, '^(.*?)(:[0-9]{1,5})?$');
    name text := rtrim(lower(parts[1] collate "C"), '.');
    patterns text[] := array[name];
begin
    if length(host) > 300 then
        return '{*}'; -- it is no host
    elsif name like '[%' then
        begin
            patterns := array[pg_catalog.host(trim(name, '[]')::inet)];
        exception when data_exception then
            null;
        end;
    elsif name !~ '^[0-9.]+$' then
        while position('.' in name) > 0 loop
            name := substr(name, position('.' in name) + 1);
            patterns := patterns || ('*.' || name);
        end loop;
    end if;
    patterns := patterns || '*'::text;
    if parts[2] is not null then
        patterns := array(
            select p.pattern
            from unnest(patterns) with ordinality u (name, place)
            cross join lateral (values
                (1, case when u.name ~ ':' then format('[%s]', u.name) else u.name end || parts[2]), (2, u.name)
            ) p (rank, pattern)
            order by u.place, p.rank);
    end if;
    return patterns;
end
$$;
comment on function pgnet.patterns_of(text) is
    'The patterns of net.configure_host that match a host, the authority of a URL; the most '
    'specific first.';

create function pgnet.announce_hosts()
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgnet.announce_configuration();
    update pgnet.configuration set host_revision = revision;
end
$$;
comment on function pgnet.announce_hosts() is
    'pgnet.announce_configuration, for a change of settings of hosts. Owner only.';

create function net.configure_host(
    -- a host name, an address, *.example.com for every name below it, or * for every host; each may
    -- end in a port
    host text,
    -- merged into the settings that the host has; a null resets what it names, NULL resets all
    settings jsonb
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    host_pattern text := pgnet.configured_host_pattern(host);
    merged jsonb;
begin
    if settings is null or settings = 'null' then
        perform pgnet.forget_hosts(host_pattern);
        delete from pgnet.host h where h.pattern = host_pattern;
        perform pgnet.announce_hosts();
        raise notice using message = format('nothing is configured for host "%s" any more', host_pattern);
        return;
    end if;
    perform pgnet.check_json_settings(
        'host', host_pattern, settings, 'select net.configure_host(''api.example.com'', ''{"http_version": "1.1"}'')');
    merged := jsonb_strip_nulls(coalesce((select h.settings from pgnet.host h where h.pattern = host_pattern), '{}') || settings);
    if (merged ? 'client_certificate') <> (merged ? 'client_key') then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('client_certificate and client_key of host "%s" go together', host_pattern),
            hint = 'Give both, or null for both.';
    end if;
    if merged ? 'burst' and coalesce(merged -> 'rate', 'false') = 'false' then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('burst of host "%s" needs a rate', host_pattern),
            hint = 'Give both, such as {"rate": "500/minute", "burst": 20}, or null for burst.';
    end if;
    if merged ? 'host_header' and host_pattern like '*%' then
        raise exception using errcode = 'invalid_parameter_value',
            message = 'host_header is set for single hosts only, by their name or address',
            hint = 'Otherwise many servers would be asked for one name.';
    end if;
    if merged -> 'verify' = 'false' then
        if host_pattern like '*%' then
            raise exception using errcode = 'invalid_parameter_value',
                message = 'verification is switched off for single hosts only, by their name',
                hint = 'Better: give the authority that signed its certificate as "ca".';
        end if;
        raise warning using
            message = format('the certificate of "%s" is not checked any more', host_pattern),
            detail = 'Anybody between the worker and the server can read and change all that is sent, secrets too.',
            hint = 'Better: give the authority that signed it as "ca".';
    end if;
    if settings ? 'breaker' then
        perform pgnet.forget_hosts(host_pattern);
    end if;
    if merged = '{}' then
        delete from pgnet.host h where h.pattern = host_pattern;
    else
        insert into pgnet.host (pattern, settings) values (host_pattern, merged)
        on conflict (pattern) do update set settings = excluded.settings;
    end if;
    perform pgnet.announce_hosts();
    raise notice using message = case when merged = '{}' then format('nothing is configured for host "%s" any more', host_pattern)
        else format('for host "%s" are configured: %s', host_pattern,
            (select string_agg(k, ', ' order by k) from jsonb_object_keys(merged) k)) end;
end
$$;
comment on function net.configure_host(text, jsonb) is
    'Sets how to connect to a host, and how many requests it gets: net.hosts and the documentation '
    'have the settings. They are merged into those that the host has; null resets one. Raises '
    '22023 for a text that is not a host, an unknown setting or a value that cannot be set. '
    'Workers follow at the commit. Owner only.';

-- For workers: the settings of hosts, with the values of secrets that are stored in the database;
-- for a secret that the workers store, {"secret": name} stays. Limits are the claim's to keep; the
-- worker is told only that there is one.
create function pgnet.host_settings()
    returns jsonb
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce(jsonb_object_agg(h.pattern, coalesce((
        select jsonb_object_agg(s.key, coalesce(
            (select to_jsonb(v.value) from pgnet.secret v
             where jsonb_typeof(s.value) = 'object' and v.name = s.value ->> 'secret' and v.value is not null), s.value))
        from jsonb_each(h.settings) s
        where s.key not in ('concurrency', 'rate', 'burst')), '{}')
        || case when h.settings ?| '{concurrency,rate}' then jsonb_build_object('limited',
                coalesce(h.settings -> 'concurrency', 'false') <> 'false' or coalesce(h.settings -> 'rate', 'false') <> 'false')
            else '{}' end), '{}')
    from pgnet.host h
$$;
comment on function pgnet.host_settings() is
    'The settings of hosts by pattern, for workers: with the values of secrets, and limited for '
    'hosts that have a limit.';
