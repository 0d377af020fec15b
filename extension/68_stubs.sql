-- Stubs: answers in place of the network, for the tests of an application. A worker asks for them
-- when it begins a request; everything else about the request is as usual.
--
-- The owner makes stubs, and no other role: a stub answers the requests of every role.

create table pgnet.stub (
    id bigint generated always as identity primary key,
    url_pattern text not null,
    status_code integer,
    headers jsonb not null,
    body text,
    delay interval not null,
    times_left integer,
    created timestamptz not null default pg_catalog.now()
);
comment on table pgnet.stub is
    'The answers that net.stub has made; net.stubs shows them. A dump does not hold them.';
comment on column pgnet.stub.status_code is 'NULL: there is no answer.';
comment on column pgnet.stub.headers is 'An array of [name, value].';
comment on column pgnet.stub.times_left is
    'How often it answers still; NULL: any number of times.';

-- What requests asked for which a stub has answered: a successful request leaves no other trace of
-- its headers and its body.
create table pgnet.stubbed (
    request_id bigint not null,
    attempt integer not null,
    requested_by regrole not null,
    method text not null,
    url text not null,
    headers jsonb,
    body bytea,
    context jsonb,
    options jsonb,
    requested timestamptz not null,
    answered timestamptz not null default pg_catalog.clock_timestamp(),
    url_pattern text not null,
    status_code integer,
    primary key (request_id, attempt)
);
alter table pgnet.stubbed
    alter url set statistics 0,
    alter headers set statistics 0,
    alter body set statistics 0,
    alter context set statistics 0,
    alter options set statistics 0;
comment on table pgnet.stubbed is
    'Attempts that a stub has answered, with what was asked; net.recorded shows them. Kept for the '
    'setting ttl. A role sees its own.';
comment on column pgnet.stubbed.url_pattern is 'The stub''s.';
comment on column pgnet.stubbed.status_code is 'The answer''s; NULL: there was none.';
create index stubbed_answered on pgnet.stubbed (answered);
create policy own_stubbed on pgnet.stubbed for select
    using (requested_by operator(pg_catalog.=) (select pgnet.caller_role()));

create function pgnet.stub_pattern(
    -- as net.stub takes it
    url_pattern text
)
    returns text
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    part text[] := regexp_match(trim(url_pattern), '^(?:([A-Za-z-]+) +)?(?:(https?)://([^/?# ]+)([^# ]*)|([*][^# ]*))$', 'i');
begin
    if part is null then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('invalid URL pattern %s', coalesce('"' || url_pattern || '"', 'NULL')),
            hint = 'Give a URL without a fragment, in which * stands for any characters, such as https://api.example.com/*; '
                'a method before it, as in "POST https://api.example.com/orders", and the stub is for this method only.';
    end if;
    return concat(upper(part[1] collate "C") || ' ', coalesce(part[5],
        lower(part[2] || '://' || part[3] collate "C")
            -- Requests for http://host go to http://host/.
            || case when part[4] ~ '^/' or part[3] ~ '[*]$' then part[4] else '/' || part[4] end));
end
$$;
comment on function pgnet.stub_pattern(text) is
    'A pattern of URLs in the form in which it is stored. Raises 22023 for what is no pattern.';

create function pgnet.stub_covers(
    -- as it is stored
    url_pattern text,
    method text, url text
)
    returns boolean
    language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select (p.part[1] is null or p.part[1] = method)
        and split_part(url, '#', 1) like replace(replace(replace(replace(p.part[2], '!', '!!'), '%', '!%'), '_', '!_'), '*', '%') escape '!'
    from regexp_match(url_pattern, '^(?:([A-Z-]+) )?(.*)$') p (part)
$$;
comment on function pgnet.stub_covers(text, text, text) is
    'Whether a stub with this pattern is for a request with this method and URL.';

create function pgnet.stub_headers(
    -- as net.stub takes them
    headers jsonb, body text
)
    returns jsonb
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    fields jsonb;
begin
    if jsonb_typeof(headers) <> 'object' or exists (
        select from jsonb_each(headers) h
        where h.key !~ '^[!#$%&''*+.^_`|~0-9A-Za-z-]+$'
            or jsonb_path_exists(h.value, 'strict $[*] ? (@.type() != "string")', silent => true)
            or jsonb_typeof(h.value) not in ('string', 'array'))
    then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = 'the headers of a stub are an object of names and texts',
            hint = 'Such as {"Content-Type": "text/plain", "Set-Cookie": ["a=1", "b=2"]}: an array repeats a name.';
    end if;
    select jsonb_agg(jsonb_build_array(f.name, f.value)) into fields
    from (
        select h.key as name, v.value
        from jsonb_each(headers) h
        cross join lateral jsonb_path_query(h.value, '$[*]') v (value)
    ) f;
    if body is not null and not exists (select from jsonb_object_keys(headers) k where lower(k collate "C") = 'content-type') then
        fields := coalesce(fields, '[]') || jsonb_build_array(jsonb_build_array('Content-Type',
            case when pgnet.json_or_null(body) is null then 'text/plain; charset=utf-8' else 'application/json' end));
    end if;
    return coalesce(fields, '[]');
end
$$;
comment on function pgnet.stub_headers(jsonb, text) is
    'The headers of a stub in their order, with a Content-Type where there is a body. Raises 22023 '
    'for what cannot be headers.';

create function net.stub(
    -- a URL in which * stands for any characters, after a method perhaps: POST https://x.example/*
    url_pattern text,
    -- NULL: there is no answer, as from a server that cannot be connected to
    status integer default 200,
    -- NULL: empty
    body text default null,
    -- names and values, an array repeats a name; NULL means none
    headers jsonb default '{}',
    -- how long the answer takes; NULL: no time
    delay interval default '0',
    -- how often it answers; NULL: any number of times
    times integer default null
)
    -- the stub's number
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    fault text := case
        when status < 200 or status > 599 then 'the status of a stub is between 200 and 599'
        when times < 1 then 'times must be 1 or more'
        when delay < '0' or delay > '1 day' then 'the delay of a stub is between 0 and 1 day' end;
    stub_id bigint;
begin
    perform pgnet.announce_configuration();
    if fault is not null then
        raise exception using errcode = 'invalid_parameter_value', message = fault;
    end if;
    insert into pgnet.stub (url_pattern, status_code, headers, body, delay, times_left)
    values (pgnet.stub_pattern(url_pattern), status, pgnet.stub_headers(coalesce(headers, '{}'), body), body, coalesce(delay, '0'), times)
    returning id into stub_id;
    return stub_id;
end
$$;
comment on function net.stub(text, integer, text, jsonb, interval, integer) is
    'Answers requests to these URLs from the commit on, in place of the network, in this database '
    'and for every role; outcomes and retries are as usual. Of several stubs for a URL the one that '
    'was made first answers, as often as times says, then the next. Gives its number. NULL as '
    'status: no answer comes. Raises 22023 for what cannot be a pattern or an answer. Owner only.';

create function net.unstub(
    -- as it was given to net.stub; NULL: all stubs
    url_pattern text default null
)
    -- how many stubs were removed
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    pattern text := case when url_pattern is not null then pgnet.stub_pattern(url_pattern) end;
    removed bigint;
begin
    perform pgnet.announce_configuration();
    with gone as (
        delete from pgnet.stub s where pattern is null or s.url_pattern = pattern returning s.id
    )
    select count(*) into removed from gone;
    return removed;
end
$$;
comment on function net.unstub(text) is
    'Removes the stubs for a pattern, or all of them (NULL): requests that are begun after the '
    'commit go to the network again. Gives how many. Raises 22023 for what is no pattern. Owner '
    'only.';

create view net.stubs with (security_invoker) as
    select s.id, s.url_pattern, s.status_code, s.headers, s.body, s.delay, s.times_left, s.created
    from pgnet.stub s;
comment on view net.stubs is
    'The stubs that answer in place of the network, and how often each does so still (NULL: any '
    'number of times). Owner only.';

-- A worker asks for claims that it is about to begin. What a stub with `times` has left is counted
-- by an update: of two workers that ask at once, each gets what is left then.
create function pgnet.take_stubs(
    -- the requests, and the tokens of their claims
    ids bigint[], tokens uuid[]
)
    -- a row for each request that a stub answers: fields is an array of [name, value], delay in
    -- seconds
    returns table (id bigint, status_code integer, fields text, body bytea, delay double precision)
    language plpgsql volatile parallel unsafe security definer cost 1000 rows 100
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
    set lock_timeout = '500ms'
as $$
declare
    request record;
    stub record;
begin
    perform pgnet.lock_tables();
    lock table pgnet.stub, pgnet.stubbed in row exclusive mode nowait;
    for request in
        select q.*, c.attempt
        from unnest(ids, tokens) with ordinality a (id, token, place)
        cross join lateral (
            select c.attempt from pgnet.claim c where c.id = a.id and c.token = a.token offset 0
        ) c
        cross join lateral (
            select q.* from net.http_request_queue q where q.id = a.id offset 0
        ) q
        order by a.place
    loop
        loop
            select s.* into stub from pgnet.stub s
            where s.times_left is distinct from 0 and pgnet.stub_covers(s.url_pattern, request.method::text, request.url)
            order by s.id limit 1;
            exit when not found or stub.times_left is null;
            update pgnet.stub s set times_left = s.times_left - 1 where s.id = stub.id and s.times_left > 0;
            exit when found;
        end loop;
        continue when stub.id is null;
        insert into pgnet.stubbed (
            request_id, attempt, requested_by, method, url, headers, body, context, options, requested, url_pattern, status_code)
        values (request.id, request.attempt, request.requested_by, request.method, request.url, request.headers, request.body,
            request.context, request.options, request.created, stub.url_pattern, stub.status_code)
        on conflict on constraint stubbed_pkey do nothing;
        return query select request.id, stub.status_code::integer, stub.headers::text, convert_to(stub.body, 'UTF8'),
            extract(epoch from stub.delay)::double precision;
    end loop;
end
$$;
comment on function pgnet.take_stubs(bigint[], uuid[]) is
    'The answers that stubs give to claimed requests, each counted as used and noted in '
    'pgnet.stubbed; no row for a request that goes to the network.';

create function pgnet.forget_stubbed()
    -- seconds until more is due; NULL where nothing is kept
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
declare
    before timestamptz;
begin
    if (select s.answered from pgnet.stubbed s order by s.answered limit 1) is null then
        return null;
    end if;
    before := clock_timestamp() - pgnet.setting_value('ttl')::interval;
    lock table pgnet.stubbed in row exclusive mode nowait;
    delete from pgnet.stubbed s
    where s.ctid = any (array(
        select o.ctid from pgnet.stubbed o where o.answered < before order by o.answered limit 1000 for update skip locked));
    return case when found then 1 else 60 end;
end
$$;
comment on function pgnet.forget_stubbed() is
    'Deletes what stubs have answered longer than the setting ttl ago, 1,000 rows at a time.';

-- ---- what was asked for and not sent

create function pgnet.text_or_null(body bytea)
    returns text
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    return convert_from(body, 'UTF8');
exception when character_not_in_repertoire or untranslatable_character then
    return null;
end
$$;
comment on function pgnet.text_or_null(bytea) is
    'A body as text; NULL where it is no UTF-8, or has a character that the database has not.';

create view net.recorded with (security_invoker) as
    select r.id, r.attempt, r.method, r.url, r.headers, r.body, pgnet.text_or_null(r.body) as body_text,
        pgnet.json_or_null(null, r.body) as body_json, r.context, r.options, r.requested_by, r.requested, r.recorded, r.stub, r.status_code
    from (
        select s.request_id as id, s.attempt, s.method, s.url, s.headers, s.body, s.context, s.options, s.requested_by, s.requested,
            s.answered as recorded, s.url_pattern as stub, s.status_code
        from pgnet.stubbed s
        union all
        select f.id, f.attempts, f.method::pg_catalog.text, f.url, f.headers, f.body, f.context, f.options, f.requested_by, f.created,
            f.failed, null, null
        from pgnet.failed f
        where f.state operator(pg_catalog.=) 'cancelled'::net.request_state
            and f.error_msg operator(pg_catalog.=) 'Not sent: the mode is record.'
    ) r
    where not exists (
        select from pgnet.mark m
        where m.requested_by operator(pg_catalog.=) r.requested_by and m.request_id operator(pg_catalog.=) r.id
            and m.action operator(pg_catalog.=) 'forget' offset 0);
comment on view net.recorded is
    'What was asked for and not sent: attempts that a stub has answered (stub is its pattern, '
    'status_code what it said), and requests of the mode record (stub is NULL); with headers and '
    'body, as bytes, as text and as JSON. A role sees its own.';
