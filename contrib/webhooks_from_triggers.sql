-- Prints, for each trigger of supabase_functions.http_request() and net.webhook(), the statements
-- that make a webhook of it (net.create_webhook) and drop the trigger, in one transaction. It
-- changes nothing itself.
--
--   psql -d shop -X -A -t -f contrib/webhooks_from_triggers.sql > webhooks.sql
--   psql -d shop -f webhooks.sql          -- as the owner of pgnet, when you have read it
--
-- What looks like a token in a header becomes a secret, which the table's owner may use. What a
-- webhook cannot do (GET, a trigger before the change, for the statement, or of TRUNCATE) stays a
-- trigger, and a comment says so.

\set QUIET on
\set ON_ERROR_STOP on

-- Anybody may have made a trigger, with any text.
create function pg_temp.read_object(argument text)
    returns jsonb
    language plpgsql immutable
as $$
begin
    return case jsonb_typeof(argument::jsonb) when 'null' then '{}' when 'object' then argument::jsonb end;
exception when data_exception then
    return null;
end
$$;

with fired as (
    select t.oid, t.tgname, t.tgtype::integer as type, t.tgenabled, c.relowner, format('%I.%I', n.nspname, c.relname) as on_table,
        -- The arguments, each of which ends in a byte of zero.
        array(
            select convert_from(substring(t.tgargs from s.first for s.stop - s.first), getdatabaseencoding())
            from (
                select coalesce(lag(z.i) over (order by z.i), -1) + 2 as first, z.i + 1 as stop
                from generate_series(0, length(t.tgargs) - 1) z (i) where get_byte(t.tgargs, z.i) = 0
            ) s order by s.first) as arguments,
        (select array_agg(a.attname::text order by a.attnum) from pg_attribute a where a.attrelid = t.tgrelid and a.attnum = any (t.tgattr)) as columns,
        substring(pg_get_triggerdef(t.oid) from ' WHEN [(](.*)[)] EXECUTE FUNCTION ') as condition
    from pg_trigger t
    join pg_class c on c.oid = t.tgrelid
    join pg_namespace n on n.oid = c.relnamespace
    where not t.tgisinternal and t.tgparentid = 0
        and t.tgfoid in (to_regprocedure('supabase_functions.http_request()'), to_regprocedure('net.webhook()'))
), asked as (
    select f.*, a.url, a.method, a.headers, a.timeout,
        coalesce((select i.complete_url from pgnet.inspect_request('POST', a.url, a.params, '{}', 1000, '{}') i), a.url) as target,
        -- A name of letters, digits, and - _ . that no other webhook gets here.
        left(regexp_replace(regexp_replace(f.tgname, '[^A-Za-z0-9_.-]+', '_', 'g'), '^[^A-Za-z0-9]', 'w'), 29)
            || case when count(*) over (partition by f.tgname) > 1 or f.tgname !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,28}$'
                then '-' || f.oid else '' end as name,
        case
            when f.tgenabled = 'D' then 'it is disabled'
            when a.url is null then 'it names no URL'
            when a.headers is null or a.params is null then 'its headers or params are no JSON object'
            when a.method <> 'POST' then 'its method is ' || a.method
            when f.type & 1 = 0 then 'it fires for a statement'
            when f.type & (2 | 64) <> 0 then 'it does not fire after the change'
            when f.type & 32 <> 0 then 'it fires at TRUNCATE'
        end as stays
    from fired f
    cross join lateral (
        select nullif(f.arguments[1], 'null') as url, upper(coalesce(nullif(f.arguments[2], 'null'), 'POST')) as method,
            pg_temp.read_object(coalesce(f.arguments[3], '{}')) as headers,
            pg_temp.read_object(coalesce(f.arguments[4], '{}')) as params,
            substring(f.arguments[5] from '^[0-9]{1,8}$')::integer as timeout
    ) a
), hidden as (
    -- The headers that become secrets. Such a name is that of one trigger, so that nobody gets the
    -- use of another trigger's secret by it.
    select a.oid, h.key as header, h.value #>> '{}' as value, format('hook-%s-%s', a.oid, regexp_replace(lower(h.key), '[^a-z0-9]+', '-', 'g')) as secret
    from asked a
    cross join lateral jsonb_each(a.headers) h
    where a.stays is null and jsonb_typeof(h.value) = 'string' and h.key ~* 'auth|cookie|credential|key|pass|secret|signature|token'
        and h.value #>> '{}' ~ '^[!-~]([ -~]*[!-~])?$' and length(h.value #>> '{}') between 8 and 4000
), secrets as (
    select h.oid, jsonb_object_agg(h.header, jsonb_build_object('secret', h.secret)) as headers,
        string_agg(format(E'select net.set_secret(%L, %L, %L);\nselect net.grant_secret(%L, %L);\n',
            h.secret, h.value, split_part(split_part(a.target, '#', 1), '?', 1), h.secret, pg_get_userbyid(a.relowner)), '' order by h.header) as statements
    from hidden h join asked a on a.oid = h.oid
    group by h.oid
)
select case
    -- As JSON it is one line, whatever characters a name has.
    when a.stays is not null then format('-- %s stays a trigger: %s', to_json(format('%s on %s', a.tgname, a.on_table)), to_json(a.stays))
    else concat(
        E'begin;\n',
        s.statements,
        format(E'drop trigger %I on %s;\n', a.tgname, a.on_table),
        format(E'set local role %I;\n', pg_get_userbyid(a.relowner)),
        format('select net.create_webhook(%L, %L, %L, events => %L', a.name, a.on_table, a.target,
            array_remove(array[case when a.type & 4 <> 0 then 'INSERT' end, case when a.type & 16 <> 0 then 'UPDATE' end, case when a.type & 8 <> 0 then 'DELETE' end], null)),
        case when a.columns is not null then format(E',\n    columns => %L', a.columns) end,
        case when a.condition is not null then format(E',\n    condition => %L', a.condition) end,
        case when a.headers <> '{}' then format(E',\n    headers => %L', a.headers || coalesce(s.headers, '{}')) end,
        case when a.timeout > 0 then format(E',\n    options => %L', jsonb_build_object('timeout_milliseconds', a.timeout)) end,
        E');\ncommit;\n')
    end as statements
from asked a left join secrets s on s.oid = a.oid
order by a.on_table, a.tgname;
