-- Table webhooks: net.create_webhook makes the triggers that send a table's changes.
--
-- Theory of operation
--
-- What is made. net.create_webhook runs with the caller's rights. It makes a trigger function and a
-- trigger for each event. The function has its owner's rights, and its owner is the owner of the
-- table. So the requests are the owner's, whoever changes the table, and a role without any right
-- on pgnet may change it. Nobody else may execute the function, so nobody can attach it to a table
-- of his own.
--
-- Why the owner of the table, and nobody else. The function writes rows as JSON. A type of a column
-- may have a cast to JSON, which is code, and the table's owner may add such a column. That code
-- runs with the rights of the function's owner. So both are one role, and pgnet.refuse_new_owner
-- keeps it so. The owner of a type may be a third role, and make the cast later: a row with a cast
-- that is neither the table owner's nor a superuser's is not read (pgnet.foreign_cast).
--
-- Safe by construction. An error in the function would be an error of the user's statement. So it
-- has no block that catches errors, and calls nothing that can fail:
-- - No column is named. A column that is renamed or dropped leaves a key that is null.
-- - Rows become text by row_to_json, which takes all that a row can hold. to_jsonb refuses the
--   escape of a NUL, which a column of type json may have.
-- - What was given as an argument stands in the function as a literal, and was checked.
-- - The rights that the owner may lose are asked first.
-- - The wake-up raises nothing (pgnet.arm_webhook).
-- - A row that is too long becomes a request that fails, and says so.
-- - The function and the triggers depend on the extension, and go with it.
-- Two things can fail, and stand in a block of their own: a payload function, and the condition of
-- a webhook by statement. Both cost a subtransaction.
--
-- Later, by the claim. Whether a webhook is disabled, and where an endpoint is, is looked up when a
-- worker claims the request (pgnet.webhook_facts), and again at each attempt.
--
-- Order. A request gets its id while its transaction has the row locked, or the row's key in the
-- unique index. Both last until the commit. So the ids of the events of one key follow the order of
-- the commits, and with the option ordering they are sent in this order.

create table pgnet.endpoint (
    owner regrole not null default pg_catalog.quote_ident(current_user)::pg_catalog.regrole,
    name text not null,
    url text,
    changed timestamptz not null default pg_catalog.now(),
    primary key (owner, name)
);
comment on table pgnet.endpoint is
    'Where webhooks send to, by name: net.set_endpoint. A dump leaves it out: each environment has '
    'its own.';
comment on column pgnet.endpoint.url is 'NULL: the endpoint was dropped.';
alter table pgnet.endpoint alter url set statistics 0;
create policy own_endpoints on pgnet.endpoint for select
    using (owner operator(pg_catalog.=) (select pgnet.caller_role()));
create policy insert_own_endpoints on pgnet.endpoint for insert
    with check (owner operator(pg_catalog.=) pgnet.caller_role() and pg_catalog.has_schema_privilege('net', 'usage'));
create policy change_own_endpoints on pgnet.endpoint for update
    using (owner operator(pg_catalog.=) (select pgnet.caller_role()))
    with check (owner operator(pg_catalog.=) (select pgnet.caller_role()) and pg_catalog.has_schema_privilege('net', 'usage'));

create table pgnet.webhook (
    owner regrole not null default pg_catalog.quote_ident(current_user)::pg_catalog.regrole,
    name text not null,
    on_table regclass not null,
    definition jsonb not null,
    created timestamptz not null default pg_catalog.now(),
    dropped timestamptz,
    disabled_since timestamptz,
    disabled_reason text,
    enabled_since timestamptz,
    backfill jsonb,
    primary key (owner, name)
);
comment on table pgnet.webhook is
    'Webhooks on tables, by net.create_webhook. The triggers do what definition says; a role that '
    'changes its rows here by hand changes what net.webhooks shows of its own webhooks.';
comment on column pgnet.webhook.definition is
    'The arguments of net.create_webhook, checked, and the name of the trigger function.';
comment on column pgnet.webhook.dropped is
    'NULL: it was not dropped. A role has no right to delete rows, since it could lock the table by '
    'that.';
comment on column pgnet.webhook.disabled_since is 'NULL: its requests are sent.';
comment on column pgnet.webhook.enabled_since is
    'When net.enable_webhook was called: failures before count no more; NULL: never.';
comment on column pgnet.webhook.backfill is
    'The rows that net.backfill_webhook sends: which, how far it is; NULL: none.';
select pg_catalog.pg_extension_config_dump('pgnet.webhook', 'where dropped is null');
create policy own_webhooks on pgnet.webhook for select
    using (owner operator(pg_catalog.=) (select pgnet.caller_role()));
create policy insert_own_webhooks on pgnet.webhook for insert
    with check (owner operator(pg_catalog.=) pgnet.caller_role() and pg_catalog.has_schema_privilege('net', 'usage'));
create policy change_own_webhooks on pgnet.webhook for update
    using (owner operator(pg_catalog.=) (select pgnet.caller_role()))
    with check (owner operator(pg_catalog.=) (select pgnet.caller_role()) and pg_catalog.has_schema_privilege('net', 'usage'));

-- ---- endpoints

create view net.endpoints with (security_invoker) as
    select e.name, e.url, e.owner, e.changed from pgnet.endpoint e where e.url is not null;
comment on view net.endpoints is
    'The endpoints of net.set_endpoint: where webhooks that name them send to. A role sees its own.';

create function pgnet.check_webhook_name(kind text, name text)
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if name is null or name !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,39}$' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = case when name is null then format('the name of %s must not be NULL', kind)
                else format('invalid name "%s" of %s', left(name, 60), kind) end,
            hint = 'A name is of 1 to 40 letters, digits, and - _ . behind the first one.';
    end if;
end
$$;
comment on function pgnet.check_webhook_name(text, text) is
    'Raises 22023 for a name that no webhook or endpoint can have.';

create function pgnet.check_webhook_target(url text, headers jsonb, options jsonb)
    -- the URL as it is stored
    returns text
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    asked jsonb := jsonb_strip_nulls(jsonb_build_object('sign', options -> 'sign'));
    timeout integer := coalesce((options ->> 'timeout_milliseconds')::integer, 30000);
begin
    return coalesce(
        pgnet.check_request('POST', url, '{}', headers, timeout, asked),
        pgnet.check_or_raise('POST', url, '{}', headers, timeout, asked));
end
$$;
comment on function pgnet.check_webhook_target(text, jsonb, jsonb) is
    'Checks URL, headers and secrets of a webhook as net.http_request does, and raises as it does; '
    'gives the URL as it is stored.';

create function net.set_endpoint(
    -- 1 to 40 letters, digits, and - _ . behind the first one
    name text,
    -- absolute http or https URL, or net.secret_url
    url text
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
begin
    perform pgnet.check_webhook_name('an endpoint', name);
    insert into pgnet.endpoint (name, url) values (set_endpoint.name, pgnet.check_webhook_target(set_endpoint.url, '{}', '{}'))
    on conflict on constraint endpoint_pkey do update set url = excluded.url, changed = now();
    perform net.wake();
end
$$;
comment on function net.set_endpoint(text, text) is
    'Sets where webhooks of the current role that name this endpoint send to, also requests that '
    'wait now. Raises 22023 for a name or URL that cannot be, and for NULL, and 42501 for a secret '
    'that the role may not use.';

create function net.drop_endpoint(
    -- the endpoint
    name text
)
    -- whether there was one
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
begin
    update pgnet.endpoint e set url = null, changed = now()
    where e.owner = pgnet.caller_role() and e.name = drop_endpoint.name and e.url is not null;
    return found;
end
$$;
comment on function net.drop_endpoint(text) is
    'Drops an endpoint of the current role: requests of webhooks that name it fail until it is set '
    'again. False where there was none, also for NULL.';

-- ---- what the generated functions call

create function pgnet.arm_webhook()
    returns void
    language plpython3u volatile parallel unsafe
as $$
arm = SD.get("arm")
if arm is None:
    try:
        from pgnet.sql_v1 import arm_quietly as arm
    except Exception:
        # The package is gone, or broken. The request is queued, and a worker finds it when it looks.
        return
    SD["arm"] = arm
arm(plpy)
$$;
comment on function pgnet.arm_webhook() is
    'Has the commit of this transaction wake a worker. Raises nothing, since it is called in a '
    'statement that a user has made for something else.';

create function pgnet.changed_values(new_row json, old_row json)
    returns json
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce(json_object_agg(o.key, o.value), '{}')
    from json_each(old_row) o join json_each(new_row) n on n.key = o.key
    where n.value::text is distinct from o.value::text
$$;
comment on function pgnet.changed_values(json, json) is
    'The former values of the columns that have changed. NULL gives an empty object.';

create function pgnet.webhook_probe()
    returns trigger
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    return null;
end
$$;
comment on function pgnet.webhook_probe() is
    'The function of the trigger by which net.create_webhook has a condition read. It does nothing.';

-- ---- the arguments of net.create_webhook

create function pgnet.known_webhook_options()
    returns table (name text, kind text, hint text)
    language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    values
        ('changes', 'boolean', 'true or false'),
        ('max_attempts', 'number', 'an integer from 1 to 1000'),
        ('max_bytes', 'number', 'an integer from 1000 to 100000000'),
        ('on_failure', 'string', '"block" or "skip"'),
        ('ordering', 'boolean', 'true or false'),
        ('payload', 'string', '"supabase", "hasura", "sequin", or the name of a function (jsonb) returns jsonb'),
        ('sign', 'array', 'an array of names of secrets'),
        ('timeout_milliseconds', 'number', 'an integer from 1 to 86400000')
$$;
comment on function pgnet.known_webhook_options() is 'The options of net.create_webhook.';

create function pgnet.check_webhook_options(options jsonb)
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    given record;
begin
    if jsonb_typeof(options) <> 'object' then
        perform pgnet.raise_error('22023', 'options must be a JSON object', 'For example {"payload": "sequin"}.');
    end if;
    for given in
        select o.key, o.value, k.kind, k.hint
        from jsonb_each(options) o left join pgnet.known_webhook_options() k on k.name = o.key
        where o.value <> 'null'
    loop
        if given.kind is null then
            perform pgnet.raise_error('22023', format('unknown option "%s"; known: %s', left(given.key, 60),
                (select string_agg(k.name, ', ' order by k.name) from pgnet.known_webhook_options() k)), null);
        elsif jsonb_typeof(given.value) <> given.kind
            or given.key = 'on_failure' and given.value #>> '{}' not in ('block', 'skip')
            or given.key = 'max_attempts' and (given.value::numeric % 1 <> 0 or given.value::numeric not between 1 and 1000)
            or given.key = 'max_bytes' and (given.value::numeric % 1 <> 0 or given.value::numeric not between 1000 and 100000000)
            or given.key = 'timeout_milliseconds' and (given.value::numeric % 1 <> 0 or given.value::numeric not between 1 and 86400000)
        then
            perform pgnet.raise_error('22023', format('option "%s" must be %s', given.key, given.hint), null);
        end if;
    end loop;
    if options ? 'on_failure' and (options -> 'ordering') is distinct from 'true' then
        perform pgnet.raise_error('22023', 'option "on_failure" is of no use without "ordering"', null);
    end if;
end
$$;
comment on function pgnet.check_webhook_options(jsonb) is
    'Raises 22023 for an option that net.create_webhook does not know, or a value it cannot have.';

create function pgnet.check_webhook_table(on_table regclass)
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    target record;
begin
    if on_table is null then
        perform pgnet.raise_error('22004', 'on_table must not be NULL', null);
    end if;
    select c.relkind, c.relpersistence, c.relowner, c.relnamespace, n.nspname into target
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = on_table;
    if target.relkind not in ('r', 'p') or target.relpersistence = 't' or target.nspname in ('net', 'pgnet', 'pg_catalog', 'information_schema') then
        raise exception using
            errcode = 'wrong_object_type',
            message = format('%s cannot have a webhook', on_table),
            hint = 'A webhook is on a table or a partitioned table, not on a view, a temporary table, a foreign table, or a table of pgnet.';
    elsif target.relowner <> pgnet.caller_role()::oid then
        -- A member of the owner is not enough: other members could run code with its rights.
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('role "%s" is not the owner of %s', current_user, on_table),
            detail = 'The trigger function of a webhook runs with the rights of the role that makes it. The table''s owner can have that function run code of his own.',
            hint = format('set role %s; and call net.create_webhook again.', target.relowner::regrole);
    elsif not has_schema_privilege(target.relnamespace, 'create') then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('role "%s" may not create a function in the schema "%s"', current_user, target.nspname),
            hint = format('grant create on schema %I to %I;', target.nspname, current_user);
    end if;
end
$$;
comment on function pgnet.check_webhook_table(regclass) is
    'Raises where the current role can make no webhook on a table: 42809 for what is no table, 42501 '
    'where it is not the table''s owner, or may not create functions in its schema.';

create function pgnet.check_webhook_columns(on_table regclass, columns text[])
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    missing text;
begin
    select coalesce(c.name, 'NULL') into missing
    from unnest(columns) c (name)
    where not exists (
        select from pg_attribute a
        where a.attrelid = on_table and a.attname = c.name and a.attnum > 0 and not a.attisdropped);
    if found or columns = '{}' then
        raise exception using
            errcode = 'undefined_column',
            message = case when columns = '{}' then 'columns must name a column'
                else format('table %s has no column "%s"', on_table, left(missing, 63)) end,
            hint = 'columns => NULL sends all updates.';
    end if;
end
$$;
comment on function pgnet.check_webhook_columns(regclass, text[]) is
    'Raises 42703 for a column that the table does not have, and for an empty array.';

create function pgnet.check_payload(
    payload text, per text,
    -- the function that the name stands for in the caller's search_path
    shape regprocedure
)
    -- supabase, hasura or sequin; or the qualified name of a function
    returns text
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    known record;
begin
    if payload in ('supabase', 'sequin') or payload = 'hasura' and per = 'row' then
        return payload;
    elsif payload = 'hasura' then
        perform pgnet.raise_error('22023', 'the payload "hasura" has one row: it needs per => ''row''', 'For several rows: "sequin" or "supabase".');
    end if;
    select p.oid, p.prorettype, p.proowner, p.prokind, n.nspname, p.proname into known
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace where p.oid = shape;
    if not found or known.prokind <> 'f' or known.prorettype <> 'jsonb'::regtype then
        raise exception using
            errcode = 'undefined_function',
            message = format('there is no payload "%s"', left(payload, 80)),
            hint = 'known: supabase, hasura, sequin, or the name of a function of yours: create function app.shape(event jsonb) returns jsonb';
    elsif known.proowner <> pgnet.caller_role()::oid
        and not exists (select from pg_roles r where r.oid = known.proowner and r.rolsuper)
    then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('the payload function %s belongs to another role', shape),
            detail = 'It would run with the rights of the webhook''s owner.',
            hint = format('alter function %s owner to %I;', shape, current_user);
    elsif not has_function_privilege(shape, 'execute') then
        perform pgnet.raise_error('42501', format('role "%s" may not execute %s', current_user, shape), null);
    end if;
    return format('%I.%I', known.nspname, known.proname);
end
$$;
comment on function pgnet.check_payload(text, text, regprocedure) is
    'The payload as a webhook keeps it. Raises 42883 where it is no known one and no function '
    '(jsonb) returns jsonb, 42501 where the function is another role''s, 22023 for hasura by '
    'statement.';

create function pgnet.read_webhook(
    name text, on_table regclass, url text, endpoint text, events text[], columns text[], per text, headers jsonb, secret text,
    retry text, options jsonb, shape regprocedure
)
    returns jsonb
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
#variable_conflict use_variable
declare
    all_events text[] := array(select distinct upper(e.event) from unnest(events) e (event) order by 1);
    chosen jsonb := jsonb_strip_nulls(coalesce(options, '{}'));
    target text := url;
begin
    perform pgnet.check_webhook_name('a webhook', name);
    perform pgnet.check_webhook_table(on_table);
    if all_events = '{}' or (all_events <@ '{INSERT,UPDATE,DELETE}') is not true then
        perform pgnet.raise_error('22023', 'events must be some of INSERT, UPDATE and DELETE', 'For example: events => ''{INSERT,UPDATE}''');
    elsif per is null or per not in ('row', 'statement') then
        perform pgnet.raise_error('22023', 'per must be row or statement', 'row: a request for each row. statement: one for all rows of a statement.');
    elsif num_nonnulls(url, endpoint) <> 1 then
        perform pgnet.raise_error('22023', 'a webhook needs either a url or an endpoint', 'An endpoint is a name of net.set_endpoint.');
    end if;
    perform pgnet.check_webhook_columns(on_table, columns);
    perform pgnet.check_webhook_options(chosen);
    if secret is not null then
        chosen := chosen || jsonb_build_object('sign', jsonb_build_array(secret) || coalesce(chosen -> 'sign', '[]'));
    end if;
    if chosen -> 'ordering' = 'true' and (per <> 'row' or pgnet.primary_key(on_table) is null) then
        perform pgnet.raise_error('22023', 'option "ordering" needs per => ''row'' and a table with a primary key', null);
    end if;
    if endpoint is not null then
        target := (select e.url from pgnet.endpoint e where e.owner = pgnet.caller_role() and e.name = endpoint);
        if target is null then
            perform pgnet.raise_error('42704', format('role "%s" has no endpoint "%s"', current_user, left(endpoint, 60)),
                format('select net.set_endpoint(%L, ''https://example.com/hook'')', left(endpoint, 60)));
        end if;
    end if;
    if retry is not null then
        perform pgnet.check_retry_policy(retry);
    end if;
    headers := pgnet.with_content_type(headers, 'application/json');
    target := pgnet.check_webhook_target(target, headers, chosen);
    return chosen || jsonb_strip_nulls(jsonb_build_object(
        'url', case when endpoint is null then target end, 'endpoint', endpoint, 'events', all_events, 'columns', columns, 'per', per,
        'retry', retry, 'payload', pgnet.check_payload(coalesce(chosen ->> 'payload', 'supabase'), per, shape)))
        || jsonb_build_object('headers', headers);
end
$$;
comment on function pgnet.read_webhook(text, regclass, text, text, text[], text[], text, jsonb, text, text, jsonb, regprocedure) is
    'Checks the arguments of net.create_webhook, and gives the definition that they make.';

create function pgnet.primary_key(on_table regclass)
    -- the columns in their order; NULL: the table has no primary key
    returns text[]
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select array_agg(a.attname::text order by k.place)
    from pg_index i
    cross join lateral unnest(i.indkey::int2[]) with ordinality k (number, place)
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number
    where i.indrelid = on_table and i.indisprimary
$$;
comment on function pgnet.primary_key(regclass) is 'The columns of the primary key of a table.';

create function pgnet.probe_condition(on_table regclass)
    -- the condition of the trigger pgnet_probe, with every name qualified
    returns text
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    probe oid := (select t.oid from pg_trigger t where t.tgrelid = on_table and t.tgname = 'pgnet_probe');
    condition text := substring(pg_get_triggerdef(probe) from ' FOR EACH ROW WHEN [(](.*)[)] EXECUTE FUNCTION ');
    called regprocedure;
begin
    select d.refobjid into called
    from pg_depend d
    where d.classid = 'pg_trigger'::regclass and d.objid = probe and d.refclassid = 'pg_proc'::regclass
        and not has_function_privilege('public', d.refobjid, 'execute');
    if found then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('not every role may execute %s', called),
            detail = 'The condition of a webhook is judged with the rights of the role that changes the table.',
            hint = format('grant execute on function %s to public;', called);
    end if;
    -- A condition that raises an error would be an error of the user's statement. It is tried on
    -- rows that are there.
    execute format('select count(*) from (select t.* from %s t limit 1000) new cross join lateral (select new.*) old where %s', on_table, condition);
    return condition;
end
$$;
comment on function pgnet.probe_condition(regclass) is
    'Reads the condition that the trigger pgnet_probe has, and tries it on some rows of the table. '
    'Raises 42501 where it calls a function that not every role may execute.';

-- ---- the code that is generated

create function pgnet.webhook_message(
    payload text, name text,
    -- expressions of type text, in SQL: the event; the names of table and schema, the rows and the
    -- former values, as JSON; what is added at the end
    op text, relation text, namespace text, new_row text, old_row text, changes text, mark text
)
    -- an expression of type text
    returns text
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    select replace(replace(replace(replace(replace(replace(replace(replace(case payload
        when 'hasura' then
            $e$'{"id":"' || gen_random_uuid() || '","created_at":' || to_json(clock_timestamp()) || ',"trigger":{"name":"@name"},"table":{"schema":' || @nsp || ',"name":' || @rel || '},"event":{"op":"' || @op || '","data":{"old":' || @old || ',"new":' || @new || '},"session_variables":null,"trace_context":null},"delivery_info":{"max_retries":0,"current_retry":0}' || @mark || '}'$e$
        when 'sequin' then
            $e$'{"record":' || case when @op = 'DELETE' then @old else @new end || ',"changes":' || case when @op = 'UPDATE' then @changes else 'null' end || ',"action":"' || lower(@op) || '","metadata":{"table_schema":' || @nsp || ',"table_name":' || @rel || ',"commit_timestamp":' || to_json(now()) || ',"sink":{"name":"@name"}}' || @mark || '}'$e$
        else
            $e$'{"type":"' || @op || '","table":' || @rel || ',"schema":' || @nsp || ',"record":' || @new || ',"old_record":' || @old || @mark || '}'$e$
        end, '@name', name), '@op', op), '@rel', relation), '@nsp', namespace), '@new', new_row), '@old', old_row), '@changes', changes), '@mark', mark)
$$;
comment on function pgnet.webhook_message(text, text, text, text, text, text, text, text, text) is
    'The SQL that makes the body of a webhook''s request for one row.';

create function pgnet.webhook_batch(
    definition jsonb, name text, op text, relation text, namespace text, mark text
)
    -- an expression of type text; its rows have nj and oj, and come in their order
    returns text
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    select case when definition ->> 'payload' = 'sequin' then
        $e$'{"data":[' || string_agg($e$ || pgnet.webhook_message('sequin', name, op, relation, namespace,
            $e$coalesce(c.nj::text, 'null')$e$, $e$coalesce(c.oj::text, 'null')$e$, 'pgnet.changed_values(c.nj, c.oj)', mark) || $e$, ',') || ']}'$e$
    else
        replace(replace(replace(replace($e$'{"type":"' || @op || '","table":' || @rel || ',"schema":' || @nsp
            || ',"records":' || case when @op = 'DELETE' then 'null' else '[' || string_agg(coalesce(c.nj::text, 'null'), ',') || ']' end
            || ',"old_records":' || case when @op = 'INSERT' then 'null' else '[' || string_agg(coalesce(c.oj::text, 'null'), ',') || ']' end
            || @mark || '}'$e$, '@op', op), '@rel', relation), '@nsp', namespace),
            '@mark', mark || case when definition -> 'changes' = 'true'
                then $e$ || ',"changes":' || case when $e$ || op || $e$ <> 'UPDATE' then 'null' else '[' || string_agg(pgnet.changed_values(c.nj, c.oj)::text, ',') || ']' end$e$ else '' end)
    end
$$;
comment on function pgnet.webhook_batch(jsonb, text, text, text, text, text) is
    'The SQL that makes the body of a webhook''s request for several rows.';

create function pgnet.webhook_is_custom(definition jsonb)
    returns boolean
    language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$ select definition ->> 'payload' not in ('supabase', 'hasura', 'sequin') $$;
comment on function pgnet.webhook_is_custom(jsonb) is 'Whether a function of a role''s own makes the payload.';

create function pgnet.webhook_options(definition jsonb, name text)
    -- what the column options of its requests has
    returns jsonb
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select jsonb_strip_nulls(jsonb_build_object(
        'webhook', name, 'retry', definition -> 'retry', 'max_attempts', definition -> 'max_attempts', 'sign', definition -> 'sign',
        'endpoint', definition -> 'endpoint', 'on_failure', definition -> 'on_failure'))
$$;
comment on function pgnet.webhook_options(jsonb, text) is 'The options of a webhook''s requests.';

-- The URL of an endpoint is looked up for each row, for its host: by its host a request stands in
-- the turns of workers.
create function pgnet.webhook_insert(
    definition jsonb, name text,
    -- expressions in SQL: the body as text, and what describes the event
    content text, context text
)
    returns text
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    select format(
        $f$insert into net._new_request (method, url, headers, body, timeout_milliseconds, context, options%s)
    values ('POST', %s, %L::jsonb, case when fault is null then convert_to(%s, %L) end, %s,
        %s,
        case when fault is null then %s else %L::jsonb || jsonb_build_object('fault', fault) end%s)%s;$f$,
        case when definition -> 'ordering' = 'true' then ', held' end,
        case when definition ? 'url' then quote_literal(definition ->> 'url')
            else format($f$coalesce((select e.url from pgnet.endpoint e where e.owner = pgnet.caller_role() and e.name = %1$L), 'http://endpoint.invalid/')$f$,
                definition ->> 'endpoint') end,
        definition -> 'headers', content,
        case when getdatabaseencoding() = 'SQL_ASCII' then 'SQL_ASCII' else 'UTF8' end,
        coalesce(definition ->> 'timeout_milliseconds', '30000'), context,
        case when definition -> 'ordering' = 'true' then format($f$%L::jsonb || jsonb_build_object('ordering_key', ordering_key)$f$, o.options)
            else format('%L::jsonb', o.options) end,
        o.options,
        case when definition -> 'ordering' = 'true' then ', true' end,
        case when definition -> 'ordering' = 'true' then $f$
    returning id into request_id;
    insert into net._new_flow (request_id, ordering_key, gate) values (request_id, ordering_key, 'new')$f$ end)
    from (select pgnet.webhook_options(definition, name) as options) o
$$;
comment on function pgnet.webhook_insert(jsonb, text, text, text) is
    'The statement that queues a webhook''s request.';

-- Of a partition the name of the partitioned table is shown, where the webhook is on that.
create function pgnet.webhook_names(on_table regclass, out relation text, out namespace text)
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select case when c.relkind = 'p' then r.name else 'to_json(tg_table_name::text)' end,
        case when c.relkind = 'p' then r.space else 'to_json(tg_table_schema::text)' end
    from pg_class c
    cross join (values (
        '(select to_json(r.relname::text) from pg_class r where r.oid = coalesce(pg_partition_root(tg_relid), tg_relid))',
        '(select to_json(s.nspname::text) from pg_class r join pg_namespace s on s.oid = r.relnamespace where r.oid = coalesce(pg_partition_root(tg_relid), tg_relid))'
    )) r (name, space)
    where c.oid = on_table
$$;
comment on function pgnet.webhook_names(regclass) is
    'The SQL for the names of table and schema in a webhook''s trigger function.';

-- A call of a payload function, in a block that catches its errors. Where it gives NULL, nothing is
-- sent.
create function pgnet.payload_block(
    payload text,
    -- expression of type text
    content text
)
    returns text
    language sql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    select format($f$begin
            content := %s(%s::jsonb)::text;
            if content is null then
                %s
            end if;
        exception when others then
            fault := %L || left(sqlerrm, 500);
        end;$f$, payload, content, 'return null;', format('The payload function %s has failed: ', payload))
$$;
comment on function pgnet.payload_block(text, text) is 'The block that calls a payload function.';

create function pgnet.types_in(on_table regclass)
    returns setof oid
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    with recursive parts (type) as (
        select a.atttypid from pg_attribute a where a.attrelid = on_table and a.attnum > 0 and not a.attisdropped
        union
        select i.type
        from parts
        join pg_type t on t.oid = parts.type
        cross join lateral (
            values (t.typelem), (t.typbasetype)
            union all
            select a.atttypid from pg_attribute a where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
        ) i (type)
        where i.type <> 0
    )
    select parts.type from parts
$$;
comment on function pgnet.types_in(regclass) is
    'The types of a table''s columns, and what these are made of.';

create function pgnet.foreign_cast(on_table regclass)
    -- why the rows are not read; NULL: they may be
    returns text
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    refused record;
begin
    select c.castsource, r.rolname into refused
    from pg_cast c
    join pg_proc p on p.oid = c.castfunc
    join pg_roles r on r.oid = p.proowner
    where c.casttarget = 'json'::regtype and c.oid >= 16384
        and not r.rolsuper and p.proowner <> (select t.relowner from pg_class t where t.oid = on_table)
        and c.castsource in (select t.type from pgnet.types_in(on_table) t (type))
    limit 1;
    return case when found then format('The type %s has a cast to json that the role %s has made. It would run with the rights of the table''s owner.',
        format_type(refused.castsource, null), refused.rolname) end;
end
$$;
comment on function pgnet.foreign_cast(regclass) is
    'Why the rows of a table are not made JSON: a type of a column has a cast to json whose function '
    'is neither the table owner''s nor a superuser''s. NULL where there is none.';

create function pgnet.refuse_foreign_cast(on_table regclass)
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    reason text := pgnet.foreign_cast(on_table);
begin
    if reason is not null then
        perform pgnet.raise_error('42501', reason, 'Drop the cast, or have the owner of the table own its function.');
    end if;
end
$$;
comment on function pgnet.refuse_foreign_cast(regclass) is
    'Raises 42501 where a row of the table cannot become JSON without the code of another role.';

-- Asked for each row, which takes some microseconds: only where the table has a type that a role
-- has made. Where such a column comes later, pgnet.refuse_new_owner looks.
create function pgnet.cast_check(on_table regclass)
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select '    fault := case when (select c.oid from pg_cast c order by c.oid desc limit 1) >= 16384 then pgnet.foreign_cast(tg_relid) end;'
    where exists (
        select from pgnet.types_in(on_table) i (type)
        join pg_type t on t.oid = i.type
        join pg_roles r on r.oid = t.typowner
        where t.oid >= 16384 and not r.rolsuper)
$$;
comment on function pgnet.cast_check(regclass) is
    'The line of a trigger function that asks whether rows may be made JSON; NULL where none is '
    'needed.';

create function pgnet.webhook_row_code(on_table regclass, name text, definition jsonb)
    returns text
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    names record := pgnet.webhook_names(on_table);
    key_columns text[] := pgnet.primary_key(on_table);
    most integer := coalesce((definition ->> 'max_bytes')::integer, 10000000);
    is_ordered boolean := definition -> 'ordering' = 'true';
    has_old boolean := definition -> 'events' <> '["INSERT"]';
    has_new boolean := definition -> 'events' <> '["DELETE"]';
    any_row text := case when has_old and has_new then 'coalesce(new_row, old_row)' when has_new then 'new_row' else 'old_row' end;
    -- The values are JSON already, so that the cast reads them as they are.
    key text := coalesce(
        (select string_agg(format($e$%L || coalesce((%s -> %L)::text, 'null')$e$, case k.place when 1 then '{' else ',' end || to_json(k.name) || ':', any_row, k.name), ' || ' order by k.place)
            from unnest(key_columns) with ordinality k (name, place)) || $e$ || '}'$e$, '''null''');
    message text := pgnet.webhook_message(definition ->> 'payload', name, 'tg_op', names.relation, names.namespace,
        case when has_new then $e$coalesce(new_row::text, 'null')$e$ else '''null''' end,
        case when has_old then $e$coalesce(old_row::text, 'null')$e$ else '''null''' end,
        'pgnet.changed_values(new_row, old_row)',
        case when definition -> 'changes' = 'true' and definition ->> 'payload' <> 'sequin'
            then $e$case when tg_op = 'UPDATE' then ',"changes":' || pgnet.changed_values(new_row, old_row) else '' end$e$ else '''''' end);
begin
    return concat_ws(chr(10),
        'declare',
        '    new_row json;', '    old_row json;', '    content text;', '    fault text;',
        case when is_ordered then '    ordering_key text;' end, case when is_ordered then '    request_id bigint;' end,
        'begin',
        '    if not has_schema_privilege(''net'', ''usage'') or not has_schema_privilege(''pgnet'', ''usage'') then',
        '        return null; -- net.webhooks says so',
        '    end if;',
        '    perform pgnet.arm_webhook();',
        pgnet.cast_check(on_table),
        '    if fault is not null then',
        '        null;',
        format('    elsif %s > %s then', concat_ws(' + ',
            case when has_new then 'coalesce(pg_column_size(new), 0)' end, case when has_old then 'coalesce(pg_column_size(old), 0)' end), most),
        format('        fault := %L;', pgnet.too_long_words(most)),
        '    else',
        case when has_new then '        new_row := row_to_json(new);' end,
        case when has_old then '        old_row := row_to_json(old);' end,
        case when pgnet.webhook_is_custom(definition) then pgnet.payload_block(definition ->> 'payload', '(' || message || ')')
            else format('        content := %s;', message) end,
        format('        if octet_length(content) > %s then fault := %L; end if;', most, pgnet.too_long_words(most)),
        '    end if;',
        case when is_ordered then format($f$    ordering_key := concat_ws(',', %s);
    ordering_key := %L || case when ordering_key ~ '^[ -~]{1,200}$' then ordering_key else md5(ordering_key) end;$f$,
            (select string_agg(format('%s ->> %L', any_row, k.name), ', ') from unnest(key_columns) k (name)), name || ' ') end,
        '    ' || pgnet.webhook_insert(definition, name, 'content', format($e$(%L || tg_op || '","key":' || %s || '}')::jsonb$e$, '{"webhook":"' || name || '","event":"', key)),
        '    return null;',
        'end');
end
$$;
comment on function pgnet.webhook_row_code(regclass, text, jsonb) is
    'The body of the trigger function of a webhook by row.';

create function pgnet.too_long_words(most integer)
    returns text language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$ select format('The row is longer than max_bytes of the webhook (%s) as JSON, and is not sent.', most) $$;
comment on function pgnet.too_long_words(integer) is 'Why a row is not sent.';

create function pgnet.webhook_rows(
    definition jsonb, event text,
    -- the condition, with every name qualified; NULL: none
    condition text
)
    -- a query of nj and oj: the rows as JSON, in their order
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select format($f$select r.nj, r.oj from (%s) r%s$f$,
        case event
            when 'INSERT' then
                'select case when pg_column_size(new) <= 50000000 then row_to_json(new) end as nj, null::json as oj from pgnet_new new'
                || coalesce(' where ' || condition, '') || ' offset 0'
            when 'DELETE' then
                'select null::json as nj, case when pg_column_size(old) <= 50000000 then row_to_json(old) end as oj from pgnet_old old'
                || coalesce(' where ' || condition, '') || ' offset 0'
            -- PostgreSQL adds both rows of an update at the same moment: they have the same number.
            else
                'select case when pg_column_size(n.r) <= 50000000 then row_to_json(n.r) end as nj, case when pg_column_size(o.r) <= 50000000 then row_to_json(o.r) end as oj'
                ' from (select row_number() over () as i, t as r from pgnet_new t) n join (select row_number() over () as i, t as r from pgnet_old t) o on o.i = n.i'
                || coalesce(' cross join lateral (select (n.r).*) new cross join lateral (select (o.r).*) old where ' || condition, '')
                || ' order by n.i offset 0'
        end,
        case when event = 'UPDATE' and definition ? 'columns' then (
            select ' where ' || string_agg(format('(r.nj -> %1$L)::text is distinct from (r.oj -> %1$L)::text', c.name), ' or ')
            from jsonb_array_elements_text(definition -> 'columns') c (name)) end)
$$;
comment on function pgnet.webhook_rows(jsonb, text, text) is
    'The query for the rows of a statement that a webhook sends.';

create function pgnet.webhook_statement_code(on_table regclass, name text, definition jsonb, condition text)
    returns text
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    names record := pgnet.webhook_names(on_table);
    most integer := coalesce((definition ->> 'max_bytes')::integer, 1000000);
    content text := pgnet.webhook_batch(definition, name, 'tg_op', names.relation, names.namespace, '''''');
    send text := 'perform pgnet.arm_webhook(); ' || pgnet.webhook_insert(definition, name, 'content', format('jsonb_build_object(''webhook'', %L, ''event'', tg_op, ''rows'', part.rows)', name));
    shape text := case when pgnet.webhook_is_custom(definition)
        then replace(pgnet.payload_block(definition ->> 'payload', 'content'), 'return null;', 'continue;') end;
    branches text := (
        select string_agg(format($f$if tg_op = %L then
        for part in
            select %s as content, count(*) as rows
            from (
                select s.*,
                    sum(coalesce(octet_length(s.nj::text), 0) + coalesce(octet_length(s.oj::text), 0))
                        over (rows between unbounded preceding and current row) / %s as part
                from (%s) s
            ) c
            group by c.part order by c.part
        loop
            content := part.content;
            fault := null;
            %s
            %s
        end loop;
    end if;$f$,
            e.event, content, most, pgnet.webhook_rows(definition, e.event, condition), shape, send), chr(10) || '    ')
        from jsonb_array_elements_text(definition -> 'events') e (event));
begin
    return concat_ws(chr(10),
        '#variable_conflict use_column',
        'declare', '    part record;', '    content text;', '    fault text;',
        'begin',
        '    if not has_schema_privilege(''net'', ''usage'') or not has_schema_privilege(''pgnet'', ''usage'') then',
        '        return null; -- net.webhooks says so',
        '    end if;',
        pgnet.cast_check(on_table),
        '    if fault is not null then',
        '        perform pgnet.arm_webhook();',
        '        ' || pgnet.webhook_insert(definition, name, 'content', format('jsonb_build_object(''webhook'', %L, ''event'', tg_op)', name)),
        '        return null;',
        '    end if;',
        case when condition is not null then '    begin' end,
        '    ' || branches,
        case when condition is not null then $f$        fault := null;
    exception when others then
        fault := 'The condition or the payload has failed: ' || left(sqlerrm, 500);
    end;$f$ end,
        case when condition is not null then '    if fault is not null then' end,
        case when condition is not null then '        perform pgnet.arm_webhook();' end,
        case when condition is not null then '        ' || pgnet.webhook_insert(definition, name, 'content', format('jsonb_build_object(''webhook'', %L, ''event'', tg_op)', name)) end,
        case when condition is not null then '    end if;' end,
        '    return null;',
        'end');
end
$$;
comment on function pgnet.webhook_statement_code(regclass, text, jsonb, text) is
    'The body of the trigger function of a webhook by statement.';

-- ---- making and removing

create function pgnet.webhook_triggers(on_table regclass, name text)
    returns table (id oid, trigger_name name, function_id oid, enabled boolean)
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select t.oid, t.tgname, t.tgfoid, t.tgenabled <> 'D'
    from pg_trigger t
    where t.tgrelid = on_table and t.tgname = any (array[
        'pgnet_' || name || '_insert', 'pgnet_' || name || '_update', 'pgnet_' || name || '_delete']::name[])
$$;
comment on function pgnet.webhook_triggers(regclass, text) is 'The triggers of a webhook, as far as they are there.';

create function pgnet.webhook_trigger(
    on_table regclass, name text, definition jsonb, event text, condition text,
    -- the trigger function, as SQL names it
    function_name text
)
    -- the statement that makes the trigger
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select case when definition ->> 'per' = 'row' then
        format('create trigger %I after %s on %s for each row%s execute function %s()', 'pgnet_' || name || '_' || lower(event), event, on_table,
            -- record_image_eq compares what is stored: every type has that, and it calls nobody's
            -- operators. As an operator it would not be dumped as it is.
            ' when (' || nullif(concat_ws(' and ', '(' || condition || ')', case when event = 'UPDATE' and definition ? 'columns' then (
                select format('not pg_catalog.record_image_eq(row(%s), row(%s))', string_agg(format('old.%I', c.name), ', '), string_agg(format('new.%I', c.name), ', '))
                from jsonb_array_elements_text(definition -> 'columns') c (name)) end), '') || ')',
            function_name)
    else
        format('create trigger %I after %s on %s referencing%s%s for each statement execute function %s()', 'pgnet_' || name || '_' || lower(event), event, on_table,
            case when event <> 'DELETE' then ' new table as pgnet_new' end, case when event <> 'INSERT' then ' old table as pgnet_old' end,
            function_name)
    end
$$;
comment on function pgnet.webhook_trigger(regclass, text, jsonb, text, text, text) is
    'The statement that makes a webhook''s trigger for an event.';

create function pgnet.remove_webhook(
    -- of a webhook of the current role
    on_table regclass, name text, definition jsonb
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    made record;
    function_id oid := to_regprocedure((definition ->> 'function') || '()');
begin
    for made in select t.trigger_name, t.function_id from pgnet.webhook_triggers(on_table, name) t loop
        function_id := made.function_id; -- the schema may have been renamed
        execute format('drop trigger %I on %s', made.trigger_name, on_table);
    end loop;
    if exists (select from pg_proc p where p.oid = function_id and p.proowner = pgnet.caller_role()::oid and p.prorettype = 'trigger'::regtype) then
        execute format('drop function %s', function_id::regprocedure);
    end if;
end
$$;
comment on function pgnet.remove_webhook(regclass, text, jsonb) is
    'Drops the triggers of a webhook and their function, as far as they are there.';

create function pgnet.make_webhook(name text, on_table regclass, definition jsonb, condition text)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    function_name text := (
        select format('%I.%I', n.nspname, 'pgnet_' || name) from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = on_table);
    event text;
begin
    if to_regprocedure(function_name || '()') is not null then
        -- Another role's, which has a webhook of the same name in this schema.
        function_name := (
            select format('%I.%I', n.nspname, format('pgnet_%s_%s', name, c.oid))
            from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = on_table);
    end if;
    execute format(
        'create function %s() returns trigger language plpgsql volatile security definer set search_path = pg_catalog, pg_temp%s as %L',
        -- By hashing, a group's rows stay in their order; it is also faster.
        function_name, case when definition ->> 'per' = 'statement' then ' set enable_sort = off set jit = off' end, chr(10) || '-- Made by net.create_webhook. It goes with net.drop_webhook.' || chr(10) || case when definition ->> 'per' = 'row'
            then pgnet.webhook_row_code(on_table, name, definition)
            else pgnet.webhook_statement_code(on_table, name, definition, condition) end || chr(10));
    execute format('revoke all on function %s() from public', function_name);
    execute format('alter function %s() depends on extension pgnet', function_name);
    for event in select e.event from jsonb_array_elements_text(definition -> 'events') e (event) loop
        execute pgnet.webhook_trigger(on_table, name, definition, event, condition, function_name);
        execute format('alter trigger %I on %s depends on extension pgnet', 'pgnet_' || name || '_' || lower(event), on_table);
    end loop;
    insert into pgnet.webhook as w (name, on_table, definition)
    values (make_webhook.name, make_webhook.on_table,
        definition || jsonb_strip_nulls(jsonb_build_object('function', function_name, 'condition', condition)))
    on conflict on constraint webhook_pkey do update
    set on_table = excluded.on_table, definition = excluded.definition, created = now(), dropped = null, disabled_since = null,
        disabled_reason = null, backfill = null;
end
$$;
comment on function pgnet.make_webhook(text, regclass, jsonb, text) is
    'Makes the triggers of a webhook and their function, and its row in pgnet.webhook.';

create function pgnet.replace_webhook(name text, replaces boolean)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    former record;
begin
    select w.on_table, w.definition into former
    from pgnet.webhook w where w.owner = pgnet.caller_role() and w.name = replace_webhook.name and w.dropped is null;
    if not found then
        return;
    elsif replaces is not true then
        raise exception using
            errcode = 'duplicate_object',
            message = format('role "%s" has a webhook "%s"', current_user, name),
            hint = format('To make it anew, give replace => true. To remove it: select net.drop_webhook(%L)', name);
    end if;
    perform pgnet.remove_webhook(former.on_table, name, former.definition);
end
$$;
comment on function pgnet.replace_webhook(text, boolean) is
    'Removes the webhook that is to be made anew; raises 42710 where it is not to be replaced.';

create function net.create_webhook(
    -- 1 to 40 letters, digits, and - _ . behind the first one; a role''s webhooks have different
    -- names
    name text,
    -- a table or partitioned table that the current role owns
    on_table regclass,
    -- where to: absolute http or https URL, or net.secret_url; NULL: an endpoint is given
    url text default null,
    -- some of INSERT, UPDATE and DELETE
    events text[] default '{INSERT,UPDATE,DELETE}',
    -- an UPDATE that changes none of them sends nothing; NULL: every UPDATE sends
    columns text[] default null,
    -- an expression of new and old, as in WHEN of CREATE TRIGGER; NULL: all rows
    condition text default null,
    -- row: a request for each row; statement: one for all rows of a statement
    per text default 'row',
    -- names and values of request headers, {"secret": name} is a secret; NULL means none
    headers jsonb default '{}'::pg_catalog.jsonb,
    -- the secret that requests are signed with, as Standard Webhooks says; NULL: none is
    secret text default null,
    -- a retry policy; NULL means the policy of the host, or none
    retry text default 'webhook',
    -- whether it takes the place of one with this name
    replace boolean default false,
    -- a name of net.set_endpoint, in place of url
    endpoint text default null,
    -- payload (supabase, hasura, sequin, or a function (jsonb) returns jsonb), changes, sign,
    -- ordering, on_failure (block, or skip), timeout_milliseconds (30000), max_attempts, max_bytes;
    -- NULL means none
    options jsonb default '{}'::pg_catalog.jsonb
)
    returns void
    language plpgsql volatile parallel unsafe
as $$
declare
    definition pg_catalog.jsonb := pgnet.read_webhook(
        create_webhook.name, create_webhook.on_table, create_webhook.url, create_webhook.endpoint, create_webhook.events, create_webhook.columns,
        create_webhook.per, create_webhook.headers, create_webhook.secret, create_webhook.retry, create_webhook.options,
        -- Looked for in the caller's search_path, and so not in a function that has one of its own.
        pg_catalog.to_regprocedure((create_webhook.options operator(pg_catalog.->>) 'payload') operator(pg_catalog.||) '(jsonb)'));
    event pg_catalog.text;
    known_condition pg_catalog.text;
begin
    perform pgnet.replace_webhook(create_webhook.name, create_webhook.replace);
    if create_webhook.condition is not null then
        for event in select e.event from pg_catalog.jsonb_array_elements_text(definition operator(pg_catalog.->) 'events') e (event) loop
            execute pg_catalog.format('create trigger pgnet_probe after %s on %s for each row when (%s) execute function pgnet.webhook_probe()',
                event, pgnet.qualified_name(create_webhook.on_table), create_webhook.condition);
            known_condition := pgnet.probe_condition(create_webhook.on_table);
            execute pg_catalog.format('drop trigger pgnet_probe on %s', pgnet.qualified_name(create_webhook.on_table));
        end loop;
    end if;
    perform pgnet.make_webhook(create_webhook.name, create_webhook.on_table, definition, known_condition);
end
$$;
comment on function net.create_webhook(text, regclass, text, text[], text[], text, text, jsonb, text, text, boolean, text, jsonb) is
    'Sends the changes of a table as HTTP requests, from the commit of this transaction on: it '
    'makes a trigger function and triggers, which no change of the table can fail by. The requests '
    'are the current role''s, which has to own the table (42501). Raises 42710 for a name that is '
    'taken, 42703 for a column and 42704 for an endpoint that is not there, 42883 for a payload '
    'that is not known, 22023 for other arguments that cannot be, and what the condition raises.';

create function pgnet.qualified_name(relation regclass)
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$ select relation::text $$;
comment on function pgnet.qualified_name(regclass) is 'A relation with its schema, as SQL names it.';

create function net.drop_webhook(
    -- the webhook
    name text
)
    -- whether there was one
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    former record;
begin
    select w.on_table, w.definition into former
    from pgnet.webhook w where w.owner = pgnet.caller_role() and w.name = drop_webhook.name and w.dropped is null;
    if not found then
        return false;
    end if;
    perform pgnet.remove_webhook(former.on_table, name, former.definition);
    update pgnet.webhook w set dropped = now(), backfill = null where w.owner = pgnet.caller_role() and w.name = drop_webhook.name;
    return true;
end
$$;
comment on function net.drop_webhook(text) is
    'Removes a webhook of the current role, its triggers and their function. Requests that it has '
    'queued are sent. False where there was none, also for NULL.';

-- The trigger function runs what the table's owner puts into the table: see the theory above.
create function pgnet.refuse_new_owner()
    returns event_trigger
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    made record;
begin
    select c.oid::regclass as relation, c.relowner::regrole as owner, p.oid::regprocedure as function, p.proowner::regrole as former into made
    from pg_event_trigger_ddl_commands() d
    join pg_trigger t on d.classid = 'pg_class'::regclass and t.tgrelid = d.objid and t.tgname ^@ 'pgnet_'
    join pg_class c on c.oid = t.tgrelid
    join pg_proc p on p.oid = t.tgfoid
    where p.prosecdef and p.proname ^@ 'pgnet_' and p.proowner <> c.relowner
    limit 1;
    if found then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('a webhook of role %s is on %s, which would have another owner', made.former, made.relation),
            detail = 'Its trigger function runs with the rights of its owner. The table''s owner could have it run code of his own.',
            hint = format('Drop the webhook first, as %s, and make it again as %s. net.webhooks shows it. Or give the function to the new owner first: alter function %s owner to %s;',
                made.former, made.owner, made.function, made.owner);
    end if;
    select c.oid::regclass as relation, format_type(y.oid, null) as type, y.typowner::regrole as owner into made
    from pg_event_trigger_ddl_commands() d
    join pg_trigger t on d.classid = 'pg_class'::regclass and t.tgrelid = d.objid and t.tgname ^@ 'pgnet_'
    join pg_class c on c.oid = t.tgrelid
    join pg_proc p on p.oid = t.tgfoid
    cross join lateral pgnet.types_in(c.oid) i (type)
    join pg_type y on y.oid = i.type
    join pg_roles r on r.oid = y.typowner
    where p.prosecdef and p.proname ^@ 'pgnet_' and strpos(p.prosrc, 'pgnet.foreign_cast') = 0
        and y.oid >= 16384 and y.typowner <> c.relowner and not r.rolsuper
    limit 1;
    if found then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('a webhook is on %s, and the type %s belongs to another role, %s', made.relation, made.type, made.owner),
            detail = 'A cast to json that the type''s owner makes would run with the rights of the table''s owner.',
            hint = 'Drop the webhook first, and make it again afterwards: net.webhooks shows it.';
    end if;
end
$$;
comment on function pgnet.refuse_new_owner() is
    'Raises 42501 where a table with a webhook gets another owner than the webhook''s function has, '
    'or a column of a type that another role owns and that the function does not look out for.';
create event trigger pgnet_refuse_new_owner on ddl_command_end
    when tag in ('ALTER TABLE')
    execute function pgnet.refuse_new_owner();
comment on event trigger pgnet_refuse_new_owner is
    'Keeps the owner of a webhook''s trigger function the owner of its table.';

-- ---- what a worker has to know of a request

create function pgnet.webhook_facts(
    -- of a request that is claimed
    role regrole, options jsonb,
    -- where its endpoint is now; NULL: the request has no endpoint, or none that is set
    out url text,
    -- why it is not sent, and the state that it ends in; NULL: it is sent
    out unsent text, out unsent_state text
)
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    known record;
begin
    if options ? 'endpoint' then
        url := (select e.url from pgnet.endpoint e where e.owner = role and e.name = options ->> 'endpoint');
        if url is null then
            unsent := format('Role %s has no endpoint "%s": select net.set_endpoint(%2$L, url), then net.retry.', role, left(options ->> 'endpoint', 60));
            unsent_state := 'failed';
        end if;
    end if;
    if jsonb_typeof(options -> 'fault') = 'string' then
        unsent := left(options ->> 'fault', 1000);
        unsent_state := 'failed';
    end if;
    select w.disabled_since, w.disabled_reason into known
    from pgnet.webhook w where w.owner = role and w.name = options ->> 'webhook' and w.disabled_since is not null;
    if found then
        unsent := format('The webhook "%s" is disabled since %s: %s', left(options ->> 'webhook', 60),
            to_char(known.disabled_since, 'YYYY-MM-DD HH24:MI:SS TZ'), coalesce(known.disabled_reason, 'no reason was given.'));
        unsent_state := 'cancelled';
    end if;
end
$$;
comment on function pgnet.webhook_facts(regrole, jsonb) is
    'What a claim looks up for a request of a webhook: where its endpoint is, and whether it is sent '
    'at all.';
