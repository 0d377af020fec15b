-- Prints, for each event trigger of Hasura's metadata, the statements that make a webhook of it and
-- drop the triggers that Hasura has made, in one transaction. It changes nothing itself. What Hasura
-- takes from its environment becomes a variable of psql with the same name.

with event as (
    select e.value ->> 'name' as name, e.value as definition, s.value ->> 'name' as source,
        format('%I.%I', t.value #>> '{table,schema}', t.value #>> '{table,name}') as on_table
    from hdb_catalog.hdb_metadata m
    cross join lateral jsonb_array_elements(m.metadata::jsonb -> 'sources') s
    cross join lateral jsonb_array_elements(s.value -> 'tables') t
    cross join lateral jsonb_array_elements(coalesce(t.value -> 'event_triggers', '[]')) e
), known as (
    select e.*, pg_get_userbyid(c.relowner) as owner,
        -- As an expression in psql: the variable, or the text with its variables.
        case when e.definition ? 'webhook_from_env' then format(':%L', e.definition ->> 'webhook_from_env')
            else regexp_replace(quote_literal(e.definition ->> 'webhook'), '[{][{]([A-Za-z0-9_]+)[}][}]', ''' || :''\1'' || ''', 'g') end as url,
        array(select upper(o.event) from unnest('{insert,update,delete}'::text[]) o (event) where e.definition -> 'definition' ? o.event) as events,
        case
            when c.oid is null then 'the table is not in this database'
            when e.definition ? 'request_transform' then 'it transforms the request'
            when concat(e.definition ->> 'webhook_from_env', h.variables) !~ '^[A-Za-z0-9_]*$' then 'a variable has an odd name'
        end as stays
    from event e
    left join pg_class c on c.oid = to_regclass(e.on_table)
    cross join lateral (
        select string_agg(h.value ->> 'value_from_env', '') as variables from jsonb_array_elements(coalesce(e.definition -> 'headers', '[]')) h) h
), made as (
    select k.*, h.headers, h.secrets, jsonb_strip_nulls(jsonb_build_object(
            'payload', 'hasura',
            'max_attempts', (k.definition #>> '{retry_conf,num_retries}')::integer + 1,
            'timeout_milliseconds', (k.definition #>> '{retry_conf,timeout_sec}')::integer * 1000)) as options
    from known k
    cross join lateral (
        select jsonb_object_agg(h.value ->> 'name', case when h.value ? 'value_from_env'
                then jsonb_build_object('secret', v.secret) else h.value -> 'value' end) as headers,
            string_agg(case when h.value ? 'value_from_env' then format(E'select net.set_secret(%L, :%L, %s);\nselect net.grant_secret(%1$L, %4$L);\n',
                v.secret, h.value ->> 'value_from_env', k.url, k.owner) end, '') as secrets
        from jsonb_array_elements(coalesce(k.definition -> 'headers', '[]')) h
        -- One for each event trigger: it is bound to its URL.
        cross join lateral (select lower(concat_ws('-', 'hasura', k.name, h.value ->> 'value_from_env')) as secret) v
    ) h
)
select case
    when stays is not null then format('-- %s stays: %s', to_json(format('%s of %s on %s', name, source, on_table)), stays)
    else concat(
        E'begin;\n', secrets,
        (select string_agg(format(E'drop trigger if exists %I on %s;\n', format('notify_hasura_%s_%s', name, op.event), on_table), '')
         from unnest(events) op (event)),
        format(E'set local role %I;\n', owner),
        format('select net.create_webhook(%L, %L, %s, events => %L', name, on_table, url, events),
        case when jsonb_typeof(definition #> '{definition,update,columns}') = 'array' then format(E',\n    columns => %L',
            array(select jsonb_array_elements_text(definition #> '{definition,update,columns}'))) end,
        case when headers is not null then format(E',\n    headers => %L', headers) end,
        format(E',\n    options => %L);\ncommit;\n', options))
    end as statements
from made
order by on_table, name;
