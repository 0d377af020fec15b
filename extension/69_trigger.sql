-- The trigger function net.webhook(), with the arguments of Supabase's Database Webhooks. Its
-- requests are those of the role that changes the row: a trigger function that every role may use
-- has to run with that role's rights. net.create_webhook makes a function for each webhook instead,
-- whose requests are the webhook's owner's.

-- contrib/supabase_functions.sql makes a function that calls this one, in databases that may be
-- upgraded later: its name and its arguments stay.
create function pgnet.queue_event(
    -- the arguments of the trigger, as text: NULL and the word null mean that they were left out
    url text, method text, headers text, params text, timeout_milliseconds text,
    -- what has happened: the body, where the method has one. Not jsonb, which refuses the escape of
    -- a NUL that a column of type json may have
    payload json,
    -- given back with the outcome
    context jsonb
)
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    token text := upper(coalesce(nullif(method, 'null'), 'POST') collate "C");
    own_headers jsonb := nullif(headers, 'null')::jsonb;
    query jsonb := nullif(params, 'null')::jsonb;
    total integer := nullif(timeout_milliseconds, 'null')::integer;
    content bytea;
    target text;
    request_id bigint;
begin
    if coalesce(url, 'null') = 'null' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = 'the trigger names no URL',
            hint = 'Its function takes url, method, headers, params and timeout: '
                'execute function net.webhook(''https://example.com/hook'', ''POST'', ''{}'', ''{}'', ''5000'')';
    end if;
    if token <> all (array['GET', 'HEAD']) then
        -- Supabase's dashboard writes it so. Names of headers have no case.
        if own_headers is null or own_headers = '{"Content-type": "application/json"}' then
            own_headers := '{"Content-Type": "application/json"}';
        elsif own_headers ->> 'Content-Type' is null then
            own_headers := pgnet.with_content_type(own_headers, 'application/json');
        end if;
        content := convert_to(payload::text, 'UTF8');
    end if;
    target := pgnet.check_request(token, url, query, own_headers, total, '{}');
    if target is null then
        -- What names a secret is checked when it is sent, and so is what cannot be sent: it ends as
        -- a failed request, and not as an error of the statement that changes the row.
        select coalesce(i.complete_url, url) into target from pgnet.inspect_request(token, url, query, own_headers, total, '{}') i;
    end if;
    insert into net._new_request (method, url, headers, body, timeout_milliseconds, context)
    values (token, target, own_headers, content, total, queue_event.context)
    returning id into request_id;
    return request_id;
end
$$;
comment on function pgnet.queue_event(text, text, text, text, text, json, jsonb) is
    'Queues the request of a trigger. Raises 22023 where no URL is given, 22P02 where headers or '
    'params are not JSON or the timeout is not a number; all else that cannot be sent ends as a '
    'failed request.';

create function net.webhook()
    returns trigger
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgnet.queue_event(tg_argv[0], tg_argv[1], tg_argv[2], tg_argv[3], tg_argv[4],
        json_build_object('type', tg_op, 'table', tg_table_name, 'schema', tg_table_schema,
            'record', row_to_json(new), 'old_record', row_to_json(old)),
        jsonb_build_object('trigger', tg_name, 'table', format('%I.%I', tg_table_schema, tg_table_name), 'event', tg_op));
    -- What a BEFORE trigger returns is what is done with the row.
    if tg_op = 'DELETE' then
        return old;
    end if;
    return new;
end
$$;
comment on function net.webhook() is
    'A trigger function that queues a request for each row, or for each statement, with the arguments of Supabase''s '
    'Database Webhooks: url, method (POST), headers ({"Content-Type": "application/json"}), params '
    '({}), timeout in ms (the setting timeout_milliseconds). Left out or ''null'' they have these '
    'values. The request is the role''s that changes the row. Raises 22023 where no URL is given.';
