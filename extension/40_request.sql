-- The caller's side: PL/Python checks and arms the commit callback, PL/pgSQL inserts. These
-- functions run in any search_path, a definer function's among them, and pg_temp comes first for
-- types: so every name is qualified, types as well (bigint, integer and their like are words of the
-- grammar). No SPI in Python here: each writing plpy.execute is a subtransaction, and 200 calls
-- would burn 201 transaction ids.

-- Gives the canonical URL with its parameters. Gives NULL where pgnet.check_or_raise is to decide,
-- because the request is to be refused or names a secret. Arms the wake-up at the commit. NULL as
-- options means the rules of pg_net's three functions, whose POST is of JSON only.
create function pgnet.check_request(method text, url text, params jsonb, headers jsonb, timeout_milliseconds integer, options jsonb default null)
    returns text
    language plpython3u volatile parallel unsafe cost 100
as $$
from pgnet import sql_v1
return sql_v1.check(plpy, method, url, params, headers, timeout_milliseconds, options)
$$;
comment on function pgnet.check_request(text, text, jsonb, jsonb, integer, jsonb) is
    'Checks a request as net.http_get and its kin do; gives the URL as it is stored, NULL where '
    'pgnet.check_or_raise decides. Also arms the wake-up at the commit.';

create function pgnet.inspect_request(
    method text, url text, params jsonb, headers jsonb, timeout_milliseconds integer, options jsonb,
    -- the URL as it is stored, and the secrets that the request names
    out complete_url text, out secrets text[],
    -- or why it is refused
    out message text, out hint text, out sqlstate text
)
    language plpython3u stable parallel unsafe cost 100
as $$
from pgnet import sql_v1
return sql_v1.inspect(method, url, params, headers, timeout_milliseconds, options)
$$;
comment on function pgnet.inspect_request(text, text, jsonb, jsonb, integer, jsonb) is
    'What pgnet.check_request found: the secrets that a request names, or why it is refused, '
    'without the value of a header or a password.';

create function pgnet.raise_error(sqlstate text, message text, hint text)
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if hint is null then
        raise exception using errcode = sqlstate, message = message;
    end if;
    raise exception using errcode = sqlstate, message = message, hint = hint;
end
$$;
comment on function pgnet.raise_error(text, text, text) is 'Raises an error; hint may be NULL.';

-- A function that was altered to SECURITY DEFINER makes every request its owner's, and the owner
-- may use every secret. The arguments tell which function was called: options are NULL in pg_net's
-- three.
create function pgnet.refuse_altered_function(method text, options jsonb)
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    own_function text := 'http_' || lower(method collate "C");
    called text[] := case
        when options is null then array[own_function]
        when method in ('PUT', 'PATCH', 'HEAD') then array['http_request', own_function]
        else array['http_request'] end;
    altered regprocedure;
begin
    select p.oid into altered
    from pg_proc p
    where p.prosecdef and (p.pronamespace = to_regnamespace('net') and p.proname = any (called)
        or p.pronamespace = to_regnamespace('pgnet') and p.proname = any ( array['check_or_raise', 'check_secret', 'secret_prefix']));
    if found then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('%s was altered to SECURITY DEFINER: no request that it makes can name a secret', altered),
            detail = 'Its requests are those of its owner, whoever calls it: every role could use every secret.',
            hint = format('alter function %s security invoker;', altered);
    end if;
end
$$;
comment on function pgnet.refuse_altered_function(text, jsonb) is
    'Raises 42501 where the function that makes a request with a secret was altered to SECURITY '
    'DEFINER.';

create function pgnet.check_or_raise(method text, url text, params jsonb, headers jsonb, timeout_milliseconds integer, options jsonb default null)
    returns text
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    found record;
    secret text;
begin
    select * into found from pgnet.inspect_request(method, url, params, headers, timeout_milliseconds, options);
    if found.message is not null then
        perform pgnet.raise_error(found.sqlstate, found.message, found.hint);
    end if;
    if found.secrets <> '{}' then
        perform pgnet.refuse_altered_function(method, options);
    end if;
    foreach secret in array found.secrets loop
        perform pgnet.check_secret(secret, found.complete_url);
    end loop;
    return found.complete_url;
end
$$;
comment on function pgnet.check_or_raise(text, text, jsonb, jsonb, integer, jsonb) is
    'Raises what is wrong with a request; where it names secrets that the caller may use for its '
    'URL, gives the URL as it is stored.';

-- Adds a Content-Type, where the headers have none in any case of letters.
create function pgnet.with_content_type(headers jsonb, content_type text)
    returns jsonb
    language plpgsql stable parallel safe cost 10
    set search_path = pg_catalog, pg_temp
as $$
begin
    if jsonb_typeof(headers) is distinct from 'object' then
        return case when headers is null then jsonb_build_object('Content-Type', content_type) else headers end;
    end if;
    if exists (select from jsonb_each(headers) h where lower(h.key collate "C") = 'content-type' and h.value <> 'null') then
        return headers;
    end if;
    return headers || jsonb_build_object('Content-Type', content_type);
end
$$;
comment on function pgnet.with_content_type(jsonb, text) is
    'The headers; with this Content-Type where they have none.';

create function net.http_get(
    -- absolute http or https URL
    url text,
    -- names and values appended to the query, percent-encoded; NULL means none
    params jsonb default '{}'::pg_catalog.jsonb,
    -- names and values of request headers; NULL means none
    headers jsonb default '{}'::pg_catalog.jsonb,
    -- total time of the attempt in ms; NULL means the setting timeout_milliseconds
    timeout_milliseconds integer default null
)
    -- the request's id, for net.http_get_result
    returns bigint
    language plpgsql volatile parallel unsafe
as $$
declare
    target pg_catalog.text := pgnet.check_request('GET', http_get.url, http_get.params, http_get.headers, http_get.timeout_milliseconds);
    request_id bigint;
begin
    if target is null then
        target := pgnet.check_or_raise('GET', http_get.url, http_get.params, http_get.headers, http_get.timeout_milliseconds);
    end if;
    if pgnet.pending_limits() is not null then
        perform pgnet.refuse_backlog();
    end if;
    insert into net._new_request (method, url, headers, timeout_milliseconds)
    values ('GET', target, http_get.headers, http_get.timeout_milliseconds)
    returning id into request_id;
    return request_id;
end
$$;
comment on function net.http_get(text, jsonb, jsonb, integer) is
    'Queues a GET, sent if and when the transaction commits, and returns its id. A NULL url raises '
    '23502, a URL, header or parameter that cannot be sent 22023; other NULLs mean none. '
    'timeout_milliseconds is total; NULL means the setting.';

create function net.http_post(
    -- absolute http or https URL
    url text,
    -- sent as JSON in UTF-8; NULL sends an empty body
    body jsonb default '{}'::pg_catalog.jsonb,
    -- names and values appended to the query, percent-encoded; NULL means none
    params jsonb default '{}'::pg_catalog.jsonb,
    -- names and values of request headers; a missing Content-Type becomes application/json
    headers jsonb default '{"Content-Type": "application/json"}'::pg_catalog.jsonb,
    -- total time of the attempt in ms; NULL means the setting timeout_milliseconds
    timeout_milliseconds integer default null
)
    -- the request's id, for net.http_get_result
    returns bigint
    language plpgsql volatile parallel unsafe
as $$
declare
    typed_headers pg_catalog.jsonb := case
        when http_post.headers operator(pg_catalog.->>) 'Content-Type' is not null then http_post.headers
        else pgnet.with_content_type(http_post.headers, 'application/json') end;
    target pg_catalog.text := pgnet.check_request('POST', http_post.url, http_post.params, typed_headers, http_post.timeout_milliseconds);
    request_id bigint;
begin
    if target is null then
        target := pgnet.check_or_raise('POST', http_post.url, http_post.params, typed_headers, http_post.timeout_milliseconds);
    end if;
    if pgnet.pending_limits() is not null then
        perform pgnet.refuse_backlog();
    end if;
    insert into net._new_request (method, url, headers, body, timeout_milliseconds)
    values ('POST', target, typed_headers, pg_catalog.convert_to(http_post.body::pg_catalog.text, 'UTF8'), http_post.timeout_milliseconds)
    returning id into request_id;
    return request_id;
end
$$;
comment on function net.http_post(text, jsonb, jsonb, jsonb, integer) is
    'Queues a POST of JSON, sent if and when the transaction commits, and returns its id. A '
    'Content-Type other than application/json raises; body NULL sends an empty POST. A NULL url '
    'raises 23502, what cannot be sent 22023.';

create function net.http_delete(
    -- absolute http or https URL
    url text,
    -- names and values appended to the query, percent-encoded; NULL means none
    params jsonb default '{}'::pg_catalog.jsonb,
    -- names and values of request headers; NULL means none
    headers jsonb default '{}'::pg_catalog.jsonb,
    -- total time of the attempt in ms; NULL means the setting timeout_milliseconds
    timeout_milliseconds integer default null,
    -- sent as JSON in UTF-8; NULL means no body
    body jsonb default null
)
    -- the request's id, for net.http_get_result
    returns bigint
    language plpgsql volatile parallel unsafe
as $$
declare
    typed_headers pg_catalog.jsonb := case
        when http_delete.body is null then http_delete.headers
        else pgnet.with_content_type(http_delete.headers, 'application/json') end;
    target pg_catalog.text := pgnet.check_request('DELETE', http_delete.url, http_delete.params, typed_headers, http_delete.timeout_milliseconds);
    request_id bigint;
begin
    if target is null then
        target := pgnet.check_or_raise('DELETE', http_delete.url, http_delete.params, typed_headers, http_delete.timeout_milliseconds);
    end if;
    if pgnet.pending_limits() is not null then
        perform pgnet.refuse_backlog();
    end if;
    insert into net._new_request (method, url, headers, body, timeout_milliseconds)
    values ('DELETE', target, typed_headers, pg_catalog.convert_to(http_delete.body::pg_catalog.text, 'UTF8'), http_delete.timeout_milliseconds)
    returning id into request_id;
    return request_id;
end
$$;
comment on function net.http_delete(text, jsonb, jsonb, integer, jsonb) is
    'Queues a DELETE, with a JSON body where one is given, sent if and when the transaction '
    'commits, and returns its id. A NULL url raises 23502, what cannot be sent 22023.';

create function pgnet.inspect_form(form jsonb, out encoded text, out message text, out hint text, out sqlstate text)
    language plpython3u immutable parallel safe cost 10
as $$
from pgnet import sql_v1
return sql_v1.form(form)
$$;
comment on function pgnet.inspect_form(jsonb) is
    'An object as application/x-www-form-urlencoded, or what is wrong with it.';

-- body_text is sent as UTF-8. So its Content-Type must not name another charset.
create function pgnet.require_utf8(headers jsonb)
    returns void
    language plpgsql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    charset text;
begin
    select lower((regexp_match((h.value #>> '{}') collate "C", ';[[:space:]]*charset[[:space:]]*=[[:space:]]*"?([^";[:space:]]+)', 'i'))[1]) into charset
    from jsonb_each(headers) h where lower(h.key collate "C") = 'content-type' and h.value <> 'null';
    if charset not in ('utf-8', 'utf8', 'us-ascii') then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = 'body_text is sent in UTF-8, and its Content-Type says another charset',
            hint = 'For another one give body_bytes => convert_to(..., ''LATIN1''), for example.';
    end if;
end
$$;
comment on function pgnet.require_utf8(jsonb) is
    'Raises 22023 where a Content-Type names another charset than UTF-8.';

create function pgnet.encode_form(form jsonb)
    returns bytea
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    made record;
begin
    select * into made from pgnet.inspect_form(form);
    if made.message is not null then
        perform pgnet.raise_error(made.sqlstate, made.message, made.hint);
    end if;
    return convert_to(made.encoded, 'UTF8');
end
$$;
comment on function pgnet.encode_form(jsonb) is
    'An object as application/x-www-form-urlencoded. Raises 22023 for a value that cannot be a '
    'form.';

-- The options by which a request stands in pgnet.flow.
create function pgnet.has_flow(options jsonb)
    returns boolean language sql immutable parallel safe cost 1
as $$
    select options operator(pg_catalog.?|)
        '{not_before,not_after,ordering_key,after,unique_key,unique_for,on_conflict}'::pg_catalog.text[]
$$;
comment on function pgnet.has_flow(jsonb) is
    'Whether options of a request ask for what pgnet.flow has columns for.';

create function net.http_request(
    -- any method but CONNECT and TRACE
    method text,
    -- absolute http or https URL
    url text,
    -- at most one of the four bodies; this one is sent as JSON in UTF-8
    body jsonb default null,
    -- names and values appended to the query, percent-encoded; NULL means none
    params jsonb default '{}'::pg_catalog.jsonb,
    -- names and values of request headers, an array repeats one, {"secret": name} is a secret; NULL
    -- means none
    headers jsonb default '{}'::pg_catalog.jsonb,
    -- total time of an attempt in ms; NULL means 30000
    timeout_milliseconds integer default 30000,
    -- sent in UTF-8, as text/plain; charset=utf-8 where no Content-Type is given
    body_text text default null,
    -- an object, sent as application/x-www-form-urlencoded; an array repeats a name
    body_form jsonb default null,
    -- sent as it is, as application/octet-stream where no Content-Type is given
    body_bytes bytea default null,
    -- a retry policy: none, safe, webhook, or one that net.configure_retry has made; NULL means the
    -- policy of the host, or none
    retry text default null,
    -- attempts at most, instead of the policy's, from 1 to 1000; NULL means the policy's
    max_attempts integer default null,
    -- a function of one argument net.outcome, called when the request has ended; NULL means none
    on_response text default null,
    -- given back with the outcome
    context jsonb default null,
    -- delivery (at_least_once, or at_most_once), idempotency_key, max_redirects (lowers the
    -- setting), priority (smaller goes first among the requests of one role to one host; 0),
    -- store_response (false: of the answer the status is kept, and neither headers nor body);
    -- ordering_key (one in flight at a time, in the order of ids), on_failure (block, or skip, its
    -- key); after (ids of requests that have to end well first), after_any_end (however they end);
    -- not_before and not_after (a time, or an interval from now); unique_key with unique_for and
    -- on_conflict (keep, or replace); sign (names of secrets, as Standard Webhooks says); NULL
    -- means none
    options jsonb default '{}'::pg_catalog.jsonb
)
    -- the request's id, for net.wait and net.http_get_result
    returns bigint
    language plpgsql volatile parallel unsafe
as $$
declare
    -- Upper case of ASCII only: in other letters no token is one.
    token pg_catalog.text := pg_catalog.upper(http_request.method collate "C");
    chosen pg_catalog.jsonb := coalesce(http_request.options, '{}'::pg_catalog.jsonb);
    total integer := coalesce(http_request.timeout_milliseconds, 30000);
    typed_headers pg_catalog.jsonb := http_request.headers;
    content_type pg_catalog.text;
    content pg_catalog.bytea;
    bodies integer;
    others pg_catalog.jsonb;
    target pg_catalog.text;
    callback record;
    request_id bigint;
begin
    bodies := pg_catalog.num_nonnulls(http_request.body, http_request.body_text, http_request.body_form, http_request.body_bytes);
    if bodies operator(pg_catalog.>) 1 then
        perform pgnet.raise_error('22023', 'a request has at most one body', 'Give one of body, body_text, body_form and body_bytes.');
    elsif bodies operator(pg_catalog.=) 1 then
        if token operator(pg_catalog.=) 'HEAD' then
            perform pgnet.raise_error('22023', 'a HEAD request has no body', 'Leave the body out, or use GET or POST.');
        end if;
        if http_request.body is not null then
            content_type := 'application/json';
            content := pg_catalog.convert_to(http_request.body::pg_catalog.text, 'UTF8');
        elsif http_request.body_text is not null then
            content_type := 'text/plain; charset=utf-8';
            content := pg_catalog.convert_to(http_request.body_text, 'UTF8');
        elsif http_request.body_form is not null then
            content_type := 'application/x-www-form-urlencoded';
            content := pgnet.encode_form(http_request.body_form);
        else
            content_type := 'application/octet-stream';
            content := http_request.body_bytes;
        end if;
        if typed_headers is null or typed_headers operator(pg_catalog.=) '{}'::pg_catalog.jsonb then
            typed_headers := pg_catalog.jsonb_build_object('Content-Type', content_type);
        else
            typed_headers := pgnet.with_content_type(typed_headers, content_type);
        end if;
    end if;
    if token is null then
        perform pgnet.raise_error('22004', 'method must not be NULL', 'It is a word such as GET or PATCH.');
    end if;
    target := pgnet.check_request(token, http_request.url, http_request.params, typed_headers, total, chosen);
    if target is null then
        target := pgnet.check_or_raise(token, http_request.url, http_request.params, typed_headers, total, chosen);
    end if;
    if http_request.body_text is not null then
        perform pgnet.require_utf8(typed_headers);
    end if;
    if pg_catalog.pg_column_size(http_request.context) operator(pg_catalog.>) 100000
        and pgnet.json_text(http_request.context, 16000000) is null
    then
        perform pgnet.raise_error('22023', 'the context is longer than 16000000 bytes as JSON, nested too deeply, or not UTF-8',
            'It comes back with the outcome: keep in a table what is large, and give its key here.');
    end if;
    -- Checked by now: an object.
    others := chosen operator(pg_catalog.-) 'priority'::pg_catalog.text;
    if http_request.retry is not null then
        perform pgnet.check_retry_policy(http_request.retry);
        others := others operator(pg_catalog.||) pg_catalog.jsonb_build_object('retry', http_request.retry);
    end if;
    if http_request.max_attempts is not null then
        if http_request.max_attempts operator(pg_catalog.<) 1 or http_request.max_attempts operator(pg_catalog.>) 1000 then
            perform pgnet.raise_error('22023', 'max_attempts must be between 1 and 1000', 'The first attempt is one of them.');
        end if;
        others := others operator(pg_catalog.||) pg_catalog.jsonb_build_object('max_attempts', http_request.max_attempts);
    end if;
    if pgnet.pending_limits() is not null then
        perform pgnet.refuse_backlog();
    end if;
    if http_request.on_response is not null then
        select r.callback as name, r.callback_oid as oid into callback from pgnet.resolve_callback(http_request.on_response, 'net.outcome') r;
        return pgnet.queue_request(token, target, typed_headers, content, total, http_request.context, others, chosen, callback.name, callback.oid);
    elsif others operator(pg_catalog.=) '{}'::pg_catalog.jsonb then
        others := null;
    elsif pgnet.has_flow(others) then
        return pgnet.queue_request(token, target, typed_headers, content, total, http_request.context, others, chosen);
    end if;
    insert into net._new_request (method, url, headers, body, timeout_milliseconds, priority, context, options)
    values (token, target, typed_headers, content, total,
        coalesce((chosen operator(pg_catalog.->>) 'priority')::smallint, 0::smallint), http_request.context,
        others)
    returning id into request_id;
    return request_id;
end
$$;
comment on function net.http_request(text, text, jsonb, jsonb, jsonb, integer, text, jsonb, bytea, text, integer, text, jsonb, jsonb) is
    'Queues a request of any method but CONNECT and TRACE, with at most one of four bodies, sent '
    'if and when the transaction commits, and returns its id. timeout_milliseconds is total; NULL '
    'means 30000. A NULL method raises 22004, a NULL url 23502, what cannot be sent, a second '
    'body, an unknown option or retry policy 22023, a secret that the role may not use 42501, an '
    'on_response that is no function of one argument net.outcome 42883, or that the role may not '
    'execute 42501.';

create function net.http_put(
    -- absolute http or https URL
    url text,
    -- sent as JSON in UTF-8; NULL sends an empty body
    body jsonb default '{}',
    -- names and values appended to the query, percent-encoded; NULL means none
    params jsonb default '{}',
    -- names and values of request headers; a missing Content-Type becomes application/json
    headers jsonb default '{"Content-Type": "application/json"}',
    -- total time of an attempt in ms; NULL means 30000
    timeout_milliseconds integer default 30000
)
    -- the request's id, for net.wait and net.http_get_result
    returns bigint
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    select net.http_request('PUT', url, body => body, params => params,
        headers => pgnet.with_content_type(headers, 'application/json'), timeout_milliseconds => timeout_milliseconds)
$$;
comment on function net.http_put(text, jsonb, jsonb, jsonb, integer) is
    'Queues a PUT of JSON, sent if and when the transaction commits, and returns its id. Another '
    'JSON type may be given as Content-Type; body NULL sends an empty PUT. Raises as '
    'net.http_request does.';

create function net.http_patch(
    -- absolute http or https URL
    url text,
    -- sent as JSON in UTF-8; NULL sends an empty body
    body jsonb default '{}',
    -- names and values appended to the query, percent-encoded; NULL means none
    params jsonb default '{}',
    -- names and values of request headers; a missing Content-Type becomes application/json
    headers jsonb default '{"Content-Type": "application/json"}',
    -- total time of an attempt in ms; NULL means 30000
    timeout_milliseconds integer default 30000
)
    -- the request's id, for net.wait and net.http_get_result
    returns bigint
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    select net.http_request('PATCH', url, body => body, params => params,
        headers => pgnet.with_content_type(headers, 'application/json'), timeout_milliseconds => timeout_milliseconds)
$$;
comment on function net.http_patch(text, jsonb, jsonb, jsonb, integer) is
    'Queues a PATCH of JSON, sent if and when the transaction commits, and returns its id. Another '
    'JSON type, such as application/merge-patch+json, may be given as Content-Type; body NULL '
    'sends an empty PATCH. Raises as net.http_request does.';

create function net.http_head(
    -- absolute http or https URL
    url text,
    -- names and values appended to the query, percent-encoded; NULL means none
    params jsonb default '{}',
    -- names and values of request headers; NULL means none
    headers jsonb default '{}',
    -- total time of an attempt in ms; NULL means 30000
    timeout_milliseconds integer default 30000
)
    -- the request's id, for net.wait and net.http_get_result
    returns bigint
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    select net.http_request('HEAD', url, params => params, headers => headers, timeout_milliseconds => timeout_milliseconds)
$$;
comment on function net.http_head(text, jsonb, jsonb, integer) is
    'Queues a HEAD, sent if and when the transaction commits, and returns its id. Raises as '
    'net.http_request does.';

create function pgnet.inspect_multipart(
    parts jsonb, files bytea[], out content_type text, out body bytea, out message text, out hint text, out sqlstate text
)
    language plpython3u volatile parallel unsafe cost 100
as $$
from pgnet import sql_v1
return sql_v1.multipart(parts, files)
$$;
comment on function pgnet.inspect_multipart(jsonb, bytea[]) is
    'Behind net.multipart: the body and its type, or what is wrong with the parts.';

create function net.multipart(
    -- an array of objects: name, and one of value (text), json, base64, or file (which one of
    -- files, from 1); also filename, content_type
    parts jsonb,
    -- what the parts' file refers to
    files bytea[] default '{}',
    -- for the header Content-Type: it names the boundary
    out content_type text,
    -- for body_bytes
    out body bytea
)
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    made record;
begin
    select * into made from pgnet.inspect_multipart(parts, files);
    if made.message is not null then
        perform pgnet.raise_error(made.sqlstate, made.message, made.hint);
    end if;
    content_type := made.content_type;
    body := made.body;
end
$$;
comment on function net.multipart(jsonb, bytea[]) is
    'Builds a body of multipart/form-data (RFC 7578) and its Content-Type, for body_bytes of '
    'net.http_request. NULL parts or a part that is not as it should be raise 22023; NULL files '
    'mean none.';

create function net._urlencode_string(
    -- the text to encode
    string varchar
)
    returns text
    language plpython3u immutable strict parallel safe cost 10
as $$
from pgnet import sql_v1
return sql_v1.urlencode_string(string)
$$;
comment on function net._urlencode_string(varchar) is
    'Percent-encodes text as UTF-8, RFC 3986 unreserved characters kept. NULL gives NULL.';

create function pgnet.append_to_query(
    url text, params_array text[], out encoded text, out message text, out hint text, out sqlstate text
)
    language plpython3u immutable parallel safe cost 10
as $$
from pgnet import sql_v1
return sql_v1.append_to_query(url, params_array)
$$;
comment on function pgnet.append_to_query(text, text[]) is
    'Behind net._encode_url_with_params_array: the URL, or what is wrong with it.';

create function net._encode_url_with_params_array(
    -- absolute http or https URL
    url text,
    -- pairs such as a=b, already percent-encoded
    params_array text[]
)
    returns text
    language plpgsql immutable strict parallel safe cost 100
    set search_path = pg_catalog, pg_temp
as $$
declare
    result record;
begin
    select * into result from pgnet.append_to_query(url, params_array);
    if result.message is not null then
        perform pgnet.raise_error(result.sqlstate, result.message, result.hint);
    end if;
    return result.encoded;
end
$$;
comment on function net._encode_url_with_params_array(text, text[]) is
    'The URL with the encoded pairs appended to its query. NULL gives NULL; what is no URL raises '
    '22023.';
