-- Backfill: net.backfill_webhook sends the rows that a table has already, a page after the other.
--
-- A page is read by primary key, from where the last one ended, and its requests are queued. When
-- all of them have ended, a callback of the webhook's owner queues the next page (net.on_all_done).
-- So a backfill never has more than a page in the queue, it runs with the owner's rights, and it
-- goes on after any crash where it was: the page, its place and the next callback are one
-- transaction.

create function pgnet.backfill_keys(on_table regclass, from_row text, given jsonb, comparison text)
    -- a condition on the primary key; NULL: nothing is given
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select case when given is not null then format('(%s) %s (%s)',
        string_agg(format('%s.%I', from_row, k.name), ', ' order by k.place), comparison,
        string_agg(format('%L::%s', given ->> k.name, format_type(a.atttypid, a.atttypmod)), ', ' order by k.place)) end
    from unnest(pgnet.primary_key(on_table)) with ordinality k (name, place)
    join pg_attribute a on a.attrelid = on_table and a.attname = k.name
$$;
comment on function pgnet.backfill_keys(regclass, text, jsonb, text) is
    'Compares the primary key of a row with one that is given as an object of texts.';

create function pgnet.key_texts(
    on_table regclass, from_row text,
    -- ::text for an object of texts
    as_type text
)
    -- an expression of type jsonb
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select format('jsonb_build_object(%s)', string_agg(format('%L, %s.%I%s', k.name, from_row, k.name, as_type), ', ' order by k.place))
    from unnest(pgnet.primary_key(on_table)) with ordinality k (name, place)
$$;
comment on function pgnet.key_texts(regclass, text, text) is 'The SQL that gives the primary key of a row as an object.';

create function pgnet.key_columns(on_table regclass, from_row text, direction text)
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select string_agg(format('%s.%I %s', from_row, k.name, direction), ', ' order by k.place)
    from unnest(pgnet.primary_key(on_table)) with ordinality k (name, place)
$$;
comment on function pgnet.key_columns(regclass, text, text) is 'The columns of the primary key, to order rows by.';

create function pgnet.read_rate(rate text)
    -- seconds for a row; NULL: as fast as the receiver is
    returns double precision
    language plpgsql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    parts text[] := regexp_match(rate, '^ *([0-9]{1,9}) *(?:/ *(second|minute|hour))? *$');
begin
    if rate is not null and (parts is null or parts[1]::integer = 0) then
        perform pgnet.raise_error('22023', 'rate must be a number of rows and a unit of time', 'For example ''100/second'', ''30/minute''.');
    end if;
    return case coalesce(parts[2], 'second') when 'second' then 1 when 'minute' then 60 else 3600 end / parts[1]::double precision;
end
$$;
comment on function pgnet.read_rate(text) is 'Seconds for a row of a rate such as 100/second. NULL gives NULL; raises 22023.';

create function pgnet.backfill_query(known pgnet.webhook)
    -- a query of the next page: place, content, key, and ordering_key
    returns text
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    definition jsonb := known.definition;
    payload text := definition ->> 'payload';
    relation text;
    namespace text;
    op text := case payload when 'hasura' then '''MANUAL''' when 'sequin' then '''READ''' else '''INSERT''' end;
    message text;
    page text;
begin
    select format('%L', to_json(c.relname::text)), format('%L', to_json(n.nspname::text)) into relation, namespace
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = known.on_table;
    message := case when definition ->> 'per' = 'row'
        then pgnet.webhook_message(payload, known.name, op, relation, namespace, $e$coalesce(c.nj::text, 'null')$e$, $e$'null'$e$, $e$'null'$e$, $e$',"read":true'$e$)
        else pgnet.webhook_batch(definition, known.name, op, relation, namespace, $e$',"read":true'$e$) end;
    if pgnet.webhook_is_custom(definition) then
        message := format('(%s((%s)::jsonb))::text', payload, message);
    end if;
    page := format('select row_number() over (order by %1$s) as i, row_to_json(t) as nj, null::json as oj, %2$s as place, %3$s as key from %4$s t where %5$s order by %1$s limit %6$s',
        pgnet.key_columns(known.on_table, 't', ''), pgnet.key_texts(known.on_table, 't', '::text'), pgnet.key_texts(known.on_table, 't', ''), known.on_table,
        concat_ws(' and ', pgnet.backfill_keys(known.on_table, 't', known.backfill -> 'place', '>'),
            coalesce(pgnet.backfill_keys(known.on_table, 't', known.backfill -> 'until', '<='), 'false'), '(' || (known.backfill ->> 'condition') || ')'),
        known.backfill ->> 'batch');
    return case when definition ->> 'per' = 'row'
        then format('select c.place, c.key, %s as content, 1 as rows, c.nj from (%s) c order by c.i', message, page)
        else format('select (array_agg(c.place order by c.i desc))[1] as place, null::jsonb as key, %s as content, count(*)::integer as rows, null::json as nj from (%s) c having count(*) > 0', message, page) end;
end
$$;
comment on function pgnet.backfill_query(pgnet.webhook) is 'The query that reads a page of a backfill.';

create function pgnet.queue_page(
    known pgnet.webhook,
    -- the requests of the page, and the last row that was read; NULL: there is no row left
    out ids bigint[], out place jsonb,
    -- how many rows were read
    out number bigint,
    -- when the next page may begin; NULL: at once
    out next_at timestamptz
)
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    definition jsonb := known.definition;
    target text := coalesce(definition ->> 'url', (
        select e.url from pgnet.endpoint e where e.owner = known.owner and e.name = definition ->> 'endpoint'), 'http://endpoint.invalid/');
    is_ordered boolean := coalesce(definition -> 'ordering' = 'true', false);
    pause double precision := pgnet.read_rate(known.backfill ->> 'rate');
    ordering_key text;
    page record;
    request_id bigint;
begin
    ids := '{}';
    number := 0;
    next_at := case when pause is not null then greatest(clock_timestamp(), (known.backfill ->> 'next')::timestamptz) end;
    perform pgnet.refuse_foreign_cast(known.on_table);
    for page in execute pgnet.backfill_query(known) loop
        place := page.place;
        number := number + page.rows;
        continue when page.content is null; -- a payload function does not want it
        if is_ordered then
            ordering_key := (
                select string_agg(page.nj ->> k.name, ',' order by k.position)
                from unnest(pgnet.primary_key(known.on_table)) with ordinality k (name, position));
            ordering_key := known.name || ' ' || case when ordering_key ~ '^[ -~]{1,200}$' then ordering_key else md5(ordering_key) end;
        end if;
        insert into net._new_request (method, url, headers, body, timeout_milliseconds, context, options, held)
        values ('POST', target, definition -> 'headers', convert_to(page.content, 'UTF8'), coalesce((definition ->> 'timeout_milliseconds')::integer, 30000),
            jsonb_build_object('webhook', known.name, 'event', 'READ')
                || case when definition ->> 'per' = 'row' then jsonb_build_object('key', page.key) else jsonb_build_object('rows', page.rows) end,
            pgnet.webhook_options(definition, known.name) || case when is_ordered then jsonb_build_object('ordering_key', ordering_key) else '{}' end,
            case when is_ordered or pause is not null then true end)
        returning id into request_id;
        if is_ordered or pause is not null then
            insert into net._new_flow (request_id, not_before, ordering_key, gate)
            values (request_id, next_at, ordering_key, case when is_ordered then 'new'::pgnet.gate end);
        end if;
        next_at := next_at + make_interval(secs => pause * page.rows);
        ids := ids || request_id;
    end loop;
end
$$;
comment on function pgnet.queue_page(pgnet.webhook) is 'Queues the next page of a backfill.';

create function pgnet.send_page(
    -- a webhook of the current role whose backfill runs
    known pgnet.webhook
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    page record;
begin
    loop
        select * into page from pgnet.queue_page(known);
        known.backfill := known.backfill || jsonb_strip_nulls(jsonb_build_object(
            'place', page.place, 'next', page.next_at, 'sent', (known.backfill ->> 'sent')::bigint + page.number,
            'state', case when page.place is null then 'done' end));
        exit when page.ids <> '{}' or page.place is null;
    end loop;
    if page.ids <> '{}' then
        perform net.on_all_done(page.ids, 'pgnet.next_page');
    end if;
    update pgnet.webhook w set backfill = known.backfill where w.owner = pgnet.caller_role() and w.name = known.name;
    perform net.wake();
end
$$;
comment on function pgnet.send_page(pgnet.webhook) is
    'Queues the next page of a backfill, and asks for the one behind it.';

create function pgnet.next_page(outcomes net.outcome[])
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    known pgnet.webhook;
begin
    select w.* into known from pgnet.webhook w
    where w.owner = pgnet.caller_role() and w.name = (outcomes[1]).context ->> 'webhook' and w.dropped is null
        and w.backfill ->> 'state' = 'running'
    for update;
    if known.name is null then
        return;
    elsif known.disabled_since is not null then
        update pgnet.webhook w set backfill = w.backfill || '{"state": "stopped"}'
        where w.owner = known.owner and w.name = known.name;
        return;
    end if;
    perform pgnet.send_page(known);
end
$$;
comment on function pgnet.next_page(net.outcome[]) is
    'A callback: the page of a backfill has ended, and the next one is queued; where the webhook is disabled, the backfill stops.';

create function net.backfill_webhook(
    -- the webhook
    name text,
    -- an expression of the columns of the table, with names of functions written with their schema;
    -- NULL: all rows
    condition text default null,
    -- how many rows are queued at once, from 1 to 1000
    batch integer default 100,
    -- how many rows are sent in a time, such as 100/second; NULL: as fast as they are accepted
    rate text default null
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    known pgnet.webhook := pgnet.require_webhook(name);
    until jsonb;
begin
    perform pgnet.read_rate(rate);
    if pgnet.primary_key(known.on_table) is null then
        perform pgnet.raise_error('55000', format('%s has no primary key, by which its rows could be read in pages', known.on_table), null);
    elsif batch is null or batch not between 1 and 1000 then
        perform pgnet.raise_error('22023', 'batch must be between 1 and 1000', null);
    elsif known.backfill ->> 'state' = 'running' then
        perform pgnet.raise_error('55006', format('a backfill of webhook "%s" runs already', name), 'net.disable_webhook stops it, and net.enable_webhook lets it go on.');
    elsif known.disabled_since is not null then
        perform pgnet.raise_error('55000', format('webhook "%s" is disabled', name), format('select net.enable_webhook(%L)', name));
    end if;
    execute format('select %s from %s t order by %s limit 1', pgnet.key_texts(known.on_table, 't', '::text'), known.on_table, pgnet.key_columns(known.on_table, 't', 'desc')) into until;
    known.backfill := jsonb_strip_nulls(jsonb_build_object('state', 'running', 'condition', condition, 'batch', batch, 'rate', rate, 'until', until, 'started', now(), 'sent', 0));
    update pgnet.webhook w set backfill = known.backfill where w.owner = pgnet.caller_role() and w.name = backfill_webhook.name;
    perform pgnet.send_page(known);
end
$$;
comment on function net.backfill_webhook(text, text, integer, text) is
    'Sends the rows that the table of a webhook has now, as INSERT events marked by "read": true, in '
    'the background, in pages by primary key. net.webhooks shows how far it is. Raises 42704 where '
    'the current role has no such webhook, also for NULL, 55006 where a backfill runs, 55000 where '
    'the webhook is disabled or the table has no primary key, 22023 for batch and rate that cannot be.';
