-- Steering many requests at once: net.cancel_where and net.retry_where.
--
-- Both run with the caller's rights, as net.cancel and net.retry do: they insert marks, and workers
-- act on these later. A role finds its own requests only, and the owner finds those of all roles.
--
-- What a filter costs. Requests that are ready are found by the index http_request_queue_turn: the
-- search steps from host to host and from role to role, and reads the rows of those places only
-- that the filter names. Requests that wait for something else are in other indexes, which do not
-- begin with a host: of these all are read until enough of them match. The other keys are compared
-- row by row. A search ends as soon as it has found at_most requests.
--
-- Row security alone would keep a caller from the index: PostgreSQL compares hosts only after it
-- has seen whose the row is, since the function of the index is not leakproof. So these views have
-- their owner's rights and show each caller its own rows; of a condition on their columns
-- PostgreSQL makes a condition on the index. They begin with WITH, so that nobody can write
-- through them.

create view pgnet.own_queued with (security_barrier) as
    with caller as (
        select pgnet.caller_role() as role, pgnet.caller_is_owner() as is_owner
    )
    select q.id, pgnet.host_of_url(q.url) collate "C" as host, q.requested_by::pg_catalog.oid as role, q.requested_by, q.priority,
        q.url, q.created, q.context, q.due, q.held, q.origin
    from net.http_request_queue q
    where q.requested_by operator(pg_catalog.=) (select c.role from caller c) or (select c.is_owner from caller c);
comment on view pgnet.own_queued is
    'The queued requests of the caller, or of all roles for the owner, as net.cancel_where searches '
    'them.';

create view pgnet.own_place with (security_barrier) as
    with recursive caller as (
        select pgnet.caller_role()::pg_catalog.oid as role, pgnet.caller_is_owner() as is_owner
    ), place (host, role) as (
        (select pgnet.host_of_url(q.url) collate "C", q.requested_by::pg_catalog.oid from net.http_request_queue q
         where q.due is null and q.held is not true and q.origin is null
         order by pgnet.host_of_url(q.url) collate "C", q.requested_by::pg_catalog.oid limit 1)
        union all
        select n.host, n.role
        from place p
        cross join lateral (
            select pgnet.host_of_url(q.url) collate "C" as host, q.requested_by::pg_catalog.oid as role from net.http_request_queue q
            where q.due is null and q.held is not true and q.origin is null
                and (pgnet.host_of_url(q.url) collate "C", q.requested_by::pg_catalog.oid) operator(pg_catalog.>) (p.host, p.role)
            order by pgnet.host_of_url(q.url) collate "C", q.requested_by::pg_catalog.oid limit 1
        ) n
    )
    select p.host, p.role from place p
    where p.role operator(pg_catalog.=) (select c.role from caller c) or (select c.is_owner from caller c);
comment on view pgnet.own_place is
    'The hosts at which requests of the caller are ready, or of all roles for the owner, with the '
    'role.';

create type pgnet.request_filter as (
    -- authorities, and names for all their ports; NULL here and below: any
    hosts text[],
    roles oid[],
    states net.request_state[],
    kinds text[],
    -- made or failed before, and after
    before timestamptz,
    after timestamptz,
    url_like text,
    context jsonb
);
comment on type pgnet.request_filter is
    'What net.cancel_where and net.retry_where search for: their argument, read.';

create function pgnet.filter_fault(problem text, remedy text)
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using errcode = 'invalid_parameter_value', message = problem, hint = remedy;
end
$$;
comment on function pgnet.filter_fault(text, text) is 'Raises 22023: something is wrong with a filter.';

-- A value may be one text, or an array of texts.
create function pgnet.filter_texts(filter jsonb, key text)
    returns text[]
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    given jsonb := filter -> key;
begin
    if given is null then
        return null;
    end if;
    if jsonb_typeof(given) <> 'array' then
        given := jsonb_build_array(given);
    end if;
    if given = '[]' or exists (select from jsonb_array_elements(given) g where jsonb_typeof(g) <> 'string') then
        perform pgnet.filter_fault(format('"%s" of a filter must be a string or an array of strings', key),
            format('Such as {"%s": "..."}. A key that is left out matches every request.', key));
    end if;
    return array(select jsonb_array_elements_text(given));
end
$$;
comment on function pgnet.filter_texts(jsonb, text) is
    'The value of a key that may be a string or an array of strings; NULL without the key.';

-- An age, or a time.
create function pgnet.filter_time(filter jsonb, key text)
    returns timestamptz
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    given text := case when jsonb_typeof(filter -> key) = 'string' then filter ->> key end;
    age interval;
    point timestamptz;
begin
    if not filter ? key then
        return null;
    end if;
    begin
        if given ~ '^ *[0-9]{4}-' then
            point := given::timestamptz;
        elsif given ~ '[a-zA-Z:]' then
            age := given::interval;
        end if;
    exception when data_exception then
        null;
    end;
    if point is null and (age is null or age < interval '0') then
        perform pgnet.filter_fault(format('"%s" of a filter must be an age or a time', key),
            format('Such as {"%1$s": "10 minutes"} or {"%1$s": "2030-01-31 12:00+00"}.', key));
    end if;
    return coalesce(point, now() - age);
end
$$;
comment on function pgnet.filter_time(jsonb, text) is
    'The time that a key says, as a time or as an age; NULL without the key.';

create function pgnet.read_filter(
    filter jsonb,
    at_most integer,
    -- the states that can be asked for
    possible_states net.request_state[]
)
    returns pgnet.request_filter
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    known text[] := array['host', 'role', 'state', 'kind', 'older_than', 'newer_than', 'url_like', 'context'];
    found pgnet.request_filter;
    unknown text;
begin
    if jsonb_typeof(filter) is distinct from 'object' or filter = '{}' then
        perform pgnet.filter_fault('a filter is a JSON object with at least one key',
            'Such as {"host": "api.example.com", "older_than": "1 hour"}. All requests of a role: {"role": "..."}.');
    end if;
    unknown := (select k from jsonb_object_keys(filter) k where k <> all (known) limit 1);
    if unknown is not null then
        perform pgnet.filter_fault(format('a filter has no key "%s"', left(unknown, 60)), 'known: ' || array_to_string(known, ', '));
    end if;
    found.hosts := (select array_agg(pgnet.authority_of(h)) from unnest(pgnet.filter_texts(filter, 'host')) h);
    if '*' = any (found.hosts) then
        found.hosts := null;
    end if;
    found.roles := (select array_agg(pgnet.role_named(r)::oid) from unnest(pgnet.filter_texts(filter, 'role')) r);
    unknown := (select s from unnest(pgnet.filter_texts(filter, 'state')) s where s <> all (possible_states::text[]) limit 1);
    if unknown is not null then
        perform pgnet.filter_fault(format('there is nothing to do with requests in the state "%s"', left(unknown, 60)),
            'states that can be asked for: ' || array_to_string(possible_states, ', '));
    end if;
    found.states := pgnet.filter_texts(filter, 'state');
    unknown := (
        select k from unnest(pgnet.filter_texts(filter, 'kind')) k where k !~ '^(timeout|no_answer|status|[1-5]xx|[1-5][0-9][0-9])$' limit 1);
    if unknown is not null then
        perform pgnet.filter_fault(format('there is no kind of error "%s"', left(unknown, 60)),
            'known: timeout, no_answer (any other error without an answer), status (an answer whose status is not accepted), 4xx and the like, and statuses such as 503');
    end if;
    found.kinds := pgnet.filter_texts(filter, 'kind');
    found.before := pgnet.filter_time(filter, 'older_than');
    found.after := pgnet.filter_time(filter, 'newer_than');
    if filter ? 'url_like' and jsonb_typeof(filter -> 'url_like') <> 'string' then
        perform pgnet.filter_fault('"url_like" of a filter must be a string', 'A pattern of LIKE, such as {"url_like": "%/orders/%"}.');
    end if;
    found.url_like := filter ->> 'url_like';
    found.context := filter -> 'context';
    if at_most < 1 then
        perform pgnet.filter_fault('at_most must be 1 or more', 'NULL means all that match.');
    end if;
    return found;
end
$$;
comment on function pgnet.read_filter(jsonb, integer, net.request_state[]) is
    'Reads a filter of net.cancel_where or net.retry_where. Raises 22023 with the keys and values '
    'that there are, 42704 for a role that does not exist.';

-- What can be told of an error from what is stored of it.
create function pgnet.is_error_of(kinds text[], status_code integer, error_msg text)
    returns boolean
    language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select case
        when status_code is not null then array['status', left(status_code::text, 1) || 'xx', status_code::text] && kinds
        when error_msg is null then false
        when error_msg ~* '(timeout of .* reached|timed out)' then 'timeout' = any (kinds)
        else 'no_answer' = any (kinds) end
$$;
comment on function pgnet.is_error_of(text[], integer, text) is
    'Whether an attempt that ended so is of one of these kinds: timeout, no_answer, status, 4xx, '
    '503 and the like.';

create function pgnet.matching_queued(wanted pgnet.request_filter, at_most integer)
    returns table (id bigint, requested_by regrole)
    language plpgsql stable parallel safe rows 1000
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set enable_material = off
    -- The filter's values are constants then: what it does not ask for costs nothing.
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    f_hosts text[] := wanted.hosts;
    f_names text[] := array(select h from unnest(wanted.hosts) h where h !~ ':[0-9]+$');
    f_roles oid[] := case when pgnet.caller_is_owner() then wanted.roles else array[pgnet.caller_role()::oid] end;
    f_states net.request_state[] := wanted.states;
    only_in_flight boolean := coalesce(wanted.states <@ '{in_flight}', false);
    f_kinds text[] := wanted.kinds;
    f_before timestamptz := wanted.before; f_after timestamptz := wanted.after;
    f_url text := wanted.url_like; f_context jsonb := wanted.context;
begin
    if not pgnet.caller_is_owner() and wanted.roles is not null and pgnet.caller_role()::oid <> all (wanted.roles) then
        return; -- other roles' requests are not seen
    end if;
    return query
    select q.id, q.requested_by
    from (
        select i.*
        from pgnet.claim c
        cross join lateral (
            select v.* from pgnet.own_queued v where v.id = c.id and v.origin is null offset 0
        ) i
        where only_in_flight
        union all
        select r.*
        from pgnet.own_place p
        cross join lateral (
            select v.* from pgnet.own_queued v
            where v.host = p.host and v.role = p.role
                and v.due is null and v.held is not true and v.origin is null
            offset 0
        ) r
        where not only_in_flight
            and (f_hosts is null or p.host = any (f_hosts) or regexp_replace(p.host, ':[0-9]+$', '') = any (f_names))
            and (f_roles is null or p.role = any (f_roles))
        union all
        select v.* from pgnet.own_queued v where not only_in_flight and v.due is not null and v.origin is null
        union all
        select h.*
        from pgnet.flow f
        cross join lateral (
            select v.* from pgnet.own_queued v
            where v.id = f.request_id and v.requested_by = f.requested_by and v.held and v.due is null and v.origin is null offset 0
        ) h
        where not only_in_flight
    ) q
    where (f_hosts is null or q.host = any (f_hosts) or regexp_replace(q.host, ':[0-9]+$', '') = any (f_names))
        and (f_roles is null or q.role = any (f_roles)) and (f_before is null or q.created < f_before) and (f_after is null or q.created >= f_after)
        and (f_url is null or q.url like f_url) and (f_context is null or q.context @> f_context)
        and (f_states is null or exists (
            select from net.requests r where r.id = q.id and r.state = any (f_states) offset 0))
        and (f_kinds is null or (
            select pgnet.is_error_of(f_kinds, a.status_code, a.error_msg) from pgnet.attempt a
            where a.request_id = q.id order by a.attempt desc limit 1))
        and not exists (
            select from pgnet.mark m
            where m.requested_by = q.requested_by and m.request_id = q.id and m.action <> 'retry' offset 0)
    limit at_most;
end
$$;
comment on function pgnet.matching_queued(pgnet.request_filter, integer) is
    'The queued requests that a filter finds, at most so many (NULL: all); not those that are '
    'cancelled or forgotten already.';

-- As with the states of requests, what is not said is not read: retries look at pgnet.failed by the
-- time at which they failed, from the oldest on.
create function pgnet.matching_failed(wanted pgnet.request_filter, at_most integer)
    returns table (id bigint, requested_by regrole)
    language plpgsql stable parallel safe rows 1000
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set enable_material = off
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    f_hosts text[] := wanted.hosts;
    f_names text[] := array(select h from unnest(wanted.hosts) h where h !~ ':[0-9]+$');
    f_roles oid[] := wanted.roles;
    f_states net.request_state[] := wanted.states;
    f_kinds text[] := wanted.kinds;
    f_before timestamptz := coalesce(wanted.before, 'infinity');
    f_after timestamptz := coalesce(wanted.after, '-infinity');
    f_url text := wanted.url_like;
    f_context jsonb := wanted.context;
begin
    return query
    select f.id, f.requested_by
    from pgnet.failed f
    where f.failed < f_before and f.failed >= f_after
        and (pgnet.caller_is_owner() or f.requested_by = pgnet.caller_role())
        and f.state = any (f_states)
        and (f_roles is null or f.requested_by = any (f_roles))
        and (f_hosts is null or pgnet.host_of_url(f.url) = any (f_hosts)
            or regexp_replace(pgnet.host_of_url(f.url), ':[0-9]+$', '') = any (f_names))
        and (f_kinds is null or pgnet.is_error_of(f_kinds, f.status_code, f.error_msg))
        and (f_url is null or f.url like f_url)
        and (f_context is null or f.context @> f_context)
        and not exists (
            select from pgnet.mark m
            where m.requested_by = f.requested_by and m.request_id = f.id and m.action <> 'cancel' offset 0)
    order by f.failed
    limit at_most;
end
$$;
comment on function pgnet.matching_failed(pgnet.request_filter, integer) is
    'The requests of pgnet.failed that a filter finds, at most so many (NULL: all), the oldest '
    'failures first; not those that are sent again or forgotten already.';

create function pgnet.mark_requests(ids bigint[], requesters regrole[], action text)
    -- those that were not marked so before
    returns bigint[]
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    marked bigint[];
begin
    -- In the order of ids: of two sessions that mark the same requests one waits for the other, and
    -- never both.
    if pgnet.caller_is_owner() then
        with mark as (
            insert into pgnet.mark (request_id, requested_by, action)
            select r.id, r.requester, mark_requests.action from unnest(ids, requesters) r (id, requester) order by r.id
            on conflict do nothing
            returning request_id
        )
        select array_agg(m.request_id) into marked from mark m;
    else
        with mark as (
            insert into pgnet.mark (request_id, action)
            select r.id, mark_requests.action from unnest(ids) r (id) order by r.id
            on conflict do nothing
            returning request_id
        )
        select array_agg(m.request_id) into marked from mark m;
    end if;
    return coalesce(marked, '{}');
end
$$;
comment on function pgnet.mark_requests(bigint[], regrole[], text) is
    'Marks requests of the caller, or of any role where the caller is the owner; gives those that '
    'were not marked so before.';

create function net.cancel_where(
    -- which requests: keys host, role, state, kind, older_than, newer_than, url_like, context
    filter jsonb,
    -- at most so many; NULL: all that match
    at_most integer default 1000,
    -- true: count, and cancel none
    dry_run boolean default false
)
    -- how many were cancelled, or would be
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    wanted pgnet.request_filter := pgnet.read_filter(filter, at_most, '{scheduled,ready,in_flight,retrying}');
    ids bigint[];
    requesters regrole[];
begin
    select array_agg(m.id), array_agg(m.requested_by) into ids, requesters from pgnet.matching_queued(wanted, at_most) m;
    if ids is null or dry_run is not false then
        return coalesce(cardinality(ids), 0);
    end if;
    ids := pgnet.mark_requests(ids, requesters, 'cancel');
    perform pgnet.reload_workers();
    return cardinality(ids);
end
$$;
comment on function net.cancel_where(jsonb, integer, boolean) is
    'Cancels the queued requests that a filter finds, as net.cancel does, and gives how many; with '
    'dry_run, how many it would cancel. A role''s own requests only; for the owner, those of all '
    'roles. NULL as at_most means all, as dry_run true. Raises 22023 for a filter that is NULL, '
    'empty or has an unknown key or value, 42704 for a role that does not exist.';

create function net.retry_where(
    -- which failed requests: keys host, role, state, kind, older_than, newer_than, url_like,
    -- context
    filter jsonb,
    -- at most so many; NULL: all that match
    at_most integer default 1000,
    -- true: count, and send none
    dry_run boolean default false
)
    -- how many were sent again, or would be
    returns bigint
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    wanted pgnet.request_filter := pgnet.read_filter(filter, at_most, '{failed,unknown,cancelled}');
    ids bigint[];
    requesters regrole[];
    number bigint;
begin
    -- What may have been received, or was cancelled, is sent again only where the filter says so.
    wanted.states := coalesce(wanted.states, '{failed}');
    select array_agg(m.id), array_agg(m.requested_by) into ids, requesters from pgnet.matching_failed(wanted, at_most) m;
    if ids is null or dry_run is not false then
        return coalesce(cardinality(ids), 0);
    end if;
    if pgnet.pending_limits() is not null then
        perform pgnet.refuse_backlog(cardinality(ids));
    end if;
    -- As in net.retry: of several sessions that retry a request, the one whose mark comes first
    -- does so.
    number := (select count(*) from pgnet.send_again(pgnet.mark_requests(ids, requesters, 'retry'), false));
    perform net.wake();
    return number;
end
$$;
comment on function net.retry_where(jsonb, integer, boolean) is
    'Sends the failed requests again that a filter finds, as net.retry does, and gives how many; '
    'with dry_run, how many it would send. Those in the state unknown or cancelled only where the '
    'filter names the state. A role''s own requests only; for the owner, those of all roles. NULL '
    'as at_most means all, as dry_run true. Raises 22023 for a filter that is NULL, empty or has '
    'an unknown key or value, 42704 for a role that does not exist.';
