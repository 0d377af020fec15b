-- The caller's side: PL/Python checks and arms the commit callback, PL/pgSQL inserts.
-- These functions run in any search_path, a definer function's among them, and pg_temp comes first for types: so every
-- name is qualified, types as well (bigint, integer and their like are words of the grammar).
-- No SPI in Python here: each writing plpy.execute is a subtransaction, and 200 calls would burn 201 transaction ids.

-- The canonical URL with its parameters, or NULL where the request is to be refused; arms the wake-up at commit.
create function net._check(method text, url text, params jsonb, headers jsonb, timeout_milliseconds integer)
    returns text
    language plpython3u volatile parallel unsafe cost 100
as $$
from pgnet import sql_v1
return sql_v1.check(plpy, method, url, params, headers, timeout_milliseconds)
$$;
comment on function net._check(text, text, jsonb, jsonb, integer) is
    'Checks a request as net.http_get and its kin do; gives the URL as it is stored, NULL where it is refused. Also arms the wake-up at the commit.';

create function net._refusal(
    method text, url text, params jsonb, headers jsonb, timeout_milliseconds integer,
    out message text, out hint text, out sqlstate text
)
    language plpython3u stable parallel unsafe cost 100
as $$
from pgnet import sql_v1
return sql_v1.refusal(method, url, params, headers, timeout_milliseconds)
$$;
comment on function net._refusal(text, text, jsonb, jsonb, integer) is 'Why net._check refuses a request: never the value of a header or a password.';

create function net._raise(sqlstate text, message text, hint text)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if hint is null then
        raise exception using errcode = sqlstate, message = message;
    end if;
    raise exception using errcode = sqlstate, message = message, hint = hint;
end
$$;
comment on function net._raise(text, text, text) is 'Raises an error; hint may be NULL.';

create function net._refuse(method text, url text, params jsonb, headers jsonb, timeout_milliseconds integer)
    returns void
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    select net._raise(r.sqlstate, r.message, r.hint)
    from net._refusal(method, url, params, headers, timeout_milliseconds) r
$$;
comment on function net._refuse(text, text, jsonb, jsonb, integer) is 'Raises what is wrong with a request.';

-- Headers with a Content-Type of application/json where none is given in any case.
create function net._with_json_type(headers jsonb)
    returns jsonb
    language plpgsql immutable parallel safe cost 10
    set search_path = pg_catalog, pg_temp
as $$
begin
    if jsonb_typeof(headers) is distinct from 'object' then
        return case when headers is null or headers = 'null' then '{"Content-Type": "application/json"}' else headers end;
    end if;
    if exists (select from jsonb_each(headers) h where lower(h.key) = 'content-type' and h.value <> 'null') then
        return headers;
    end if;
    return headers || '{"Content-Type": "application/json"}';
end
$$;
comment on function net._with_json_type(jsonb) is 'The headers, with Content-Type: application/json added where there is none.';

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
    target pg_catalog.text := net._check('GET', http_get.url, http_get.params, http_get.headers, http_get.timeout_milliseconds);
    request_id bigint;
begin
    if target is null then
        perform net._refuse('GET', http_get.url, http_get.params, http_get.headers, http_get.timeout_milliseconds);
    end if;
    insert into net.http_request_queue (method, url, headers, timeout_milliseconds)
    values ('GET', target, http_get.headers, http_get.timeout_milliseconds)
    returning id into request_id;
    return request_id;
end
$$;
comment on function net.http_get(text, jsonb, jsonb, integer) is
    'Queues a GET, sent if and when the transaction commits, and returns its id. A NULL url raises 23502, a URL, header or parameter that cannot be sent 22023; other NULLs mean none. timeout_milliseconds is total; NULL means the setting.';

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
        else net._with_json_type(http_post.headers) end;
    target pg_catalog.text := net._check('POST', http_post.url, http_post.params, typed_headers, http_post.timeout_milliseconds);
    request_id bigint;
begin
    if target is null then
        perform net._refuse('POST', http_post.url, http_post.params, typed_headers, http_post.timeout_milliseconds);
    end if;
    insert into net.http_request_queue (method, url, headers, body, timeout_milliseconds)
    values ('POST', target, typed_headers, pg_catalog.convert_to(http_post.body::pg_catalog.text, 'UTF8'), http_post.timeout_milliseconds)
    returning id into request_id;
    return request_id;
end
$$;
comment on function net.http_post(text, jsonb, jsonb, jsonb, integer) is
    'Queues a POST of JSON, sent if and when the transaction commits, and returns its id. A Content-Type other than application/json raises; body NULL sends an empty POST. A NULL url raises 23502, what cannot be sent 22023.';

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
        else net._with_json_type(http_delete.headers) end;
    target pg_catalog.text := net._check('DELETE', http_delete.url, http_delete.params, typed_headers, http_delete.timeout_milliseconds);
    request_id bigint;
begin
    if target is null then
        perform net._refuse('DELETE', http_delete.url, http_delete.params, typed_headers, http_delete.timeout_milliseconds);
    end if;
    insert into net.http_request_queue (method, url, headers, body, timeout_milliseconds)
    values ('DELETE', target, typed_headers, pg_catalog.convert_to(http_delete.body::pg_catalog.text, 'UTF8'), http_delete.timeout_milliseconds)
    returning id into request_id;
    return request_id;
end
$$;
comment on function net.http_delete(text, jsonb, jsonb, integer, jsonb) is
    'Queues a DELETE, with a JSON body where one is given, sent if and when the transaction commits, and returns its id. A NULL url raises 23502, what cannot be sent 22023.';

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

create function net._append_to_query(
    url text, params_array text[], out encoded text, out message text, out hint text, out sqlstate text
)
    language plpython3u immutable parallel safe cost 10
as $$
from pgnet import sql_v1
return sql_v1.append_to_query(url, params_array)
$$;
comment on function net._append_to_query(text, text[]) is 'Behind net._encode_url_with_params_array: the URL, or what is wrong with it.';

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
    select * into result from net._append_to_query(url, params_array);
    if result.message is not null then
        perform net._raise(result.sqlstate, result.message, result.hint);
    end if;
    return result.encoded;
end
$$;
comment on function net._encode_url_with_params_array(text, text[]) is
    'The URL with the encoded pairs appended to its query. NULL gives NULL; what is no URL raises 22023.';
