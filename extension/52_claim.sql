-- Claiming: which requests a worker takes, and what it gets of them.
--
-- pgnet.claim_requests chooses first and reads then. What it chooses by is small and is never converted: a host, a role, lengths as they are
-- stored. It goes from host to host, and at each host from role to role, over the index http_request_queue_turn, and takes some
-- rows of each. So nobody waits behind another host's requests, nor behind another role's, whatever priorities these have.
-- pgnet.read_claimed reads the rows that were chosen. There a row can be at fault: text that is too long as soon as it is written out, or
-- that has no form in UTF-8. Then each row is read by itself, and for one at fault the worker gets the reason in place of the
-- request. The worker records it, so that the request ends as failed, and all others go out.

-- Whether a value is written out as quickly as it is read: it is short, and has no number that is much longer as text. In jsonb the
-- 131,072 digits of 1e131071 take ten bytes.
create function pgnet.is_plain_json(value jsonb)
    returns boolean
    language sql stable parallel safe cost 1
as $$
    select pg_catalog.pg_column_compression(value) is null
        -- An empty object has 5 bytes, and no number has room in 10.
        and (pg_catalog.pg_column_size(value) operator(pg_catalog.<=) 10
            or pg_catalog.pg_column_size(value) operator(pg_catalog.<=) 8000
                and not value operator(pg_catalog.@?) '$.** ? (@.type() == "number")'
            or pg_catalog.pg_column_size(value) operator(pg_catalog.<=) 160
                and not value operator(pg_catalog.@?) '$.** ? (@ > 1e40 || @ < -1e40)')
$$;
comment on function pgnet.is_plain_json(jsonb) is
    'Whether a value is about as long as text as it is in the table. NULL gives NULL.';

-- How many bytes a value is as text, at most. Read from how it is stored, without unpacking it: pglz makes 90 bytes of one at most,
-- lz4 255. What is longer than pgnet.json_text writes out counts nothing: it is not written out.
create function pgnet.json_size(value jsonb)
    returns bigint
    language sql stable parallel safe cost 1
as $$
    select case
        when value is null then 0
        when pgnet.is_plain_json(value) then pg_catalog.pg_column_size(value)
        when pg_catalog.pg_column_compression(value) operator(pg_catalog.=) 'pglz'
            then pg_catalog.pg_column_size(value)::bigint operator(pg_catalog.*) 90
        when pg_catalog.pg_column_compression(value) is not null
            then pg_catalog.pg_column_size(value)::bigint operator(pg_catalog.*) 255
        when pg_catalog.pg_column_size(value) operator(pg_catalog.>) 2500000 then 0
        else 2500000
        end
$$;
comment on function pgnet.json_size(jsonb) is 'How many bytes of text a claim counts for a value, at most; 0 for NULL.';

-- The text of a value, as `value::text`; NULL where it is longer than at_most bytes, nested so deeply that it cannot be read, or
-- has no form in UTF-8.
-- Nothing that is too long is written out in order to see that.
create function pgnet.json_text(value jsonb, at_most integer default 2500000)
    returns text
    language plpgsql stable parallel unsafe cost 1000
    set search_path = pg_catalog, pg_temp
as $$
declare
    unpacked bigint;
    digits bigint;
    written text;
begin
    if value is null or pg_column_size(value) > at_most then
        return null;
    end if;
    unpacked := pg_column_size(jsonb_build_array(value));
    if unpacked > 2::bigint * at_most then
        return null;
    end if;
    -- Of a number: up to 131,072 digits before the point, and as many behind it as its scale says.
    select sum(case when abs(n.number) < 1e40 then 40 else 131072 end + scale(n.number)) into digits
    from (
        select v.value::numeric as number
        from jsonb_path_query(value, '$.** ? (@.type() == "number")') v (value)
    ) n;
    if digits > 4::bigint * at_most then
        return null;
    end if;
    written := value::text;
    return case when octet_length(written) <= at_most and octet_length(convert_to(written, 'UTF8')) > 0 then written end;
exception
    when statement_too_complex or program_limit_exceeded or character_not_in_repertoire or untranslatable_character then
        return null;
end
$$;
comment on function pgnet.json_text(jsonb, integer) is
    'The value as text; NULL where that is longer than at_most bytes, nested too deeply to be read, or has no form in UTF-8.';

-- The bounds are wider than those of request.py, which judges what is read here.
create function pgnet.read_claimed(
    -- the requests, and the numbers of their attempts
    ids bigint[], attempts integer[],
    claim_token uuid,
    -- whether they are attempted alone
    alone boolean,
    -- whether pgnet.is_plain_json is known to be true of headers and options of all
    plain boolean,
    -- why none of them can be sent; NULL: they are looked at
    reason text default null
)
    returns table (
        id bigint, token text, attempt integer, lost integer, method text, url text, headers text, body bytea,
        timeout_milliseconds integer, options text, host text, role oid, revision bigint, age double precision,
        idempotency_key text, fault text
    )
    language plpgsql volatile parallel unsafe cost 1000 rows 100
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    -- Elsewhere text may have no form in UTF-8, which is what workers read. To convert it raises that.
    convertible boolean := current_setting('server_encoding') = 'UTF8';
    -- Looked up after the requests were chosen: a setting that was changed before a request was made counts for it.
    usual_timeout integer := pgnet.setting_value('timeout_milliseconds');
    longest_timeout integer := pgnet.max_timeout_milliseconds();
begin
    return query
    select q.id, claim_token::text, c.attempt,
        case when c.attempt = 1 then 0
            else (select count(*) from pgnet.attempt a where a.request_id = c.id and a.ending <> 'answered')::integer end,
        case when q.fault is null then upper(q.method collate "C") else '' end,
        case when q.fault is null then q.url else '' end,
        case when q.fault is null then q.header_text end,
        case when q.fault is null then q.body end,
        least(coalesce(q.timeout_milliseconds, usual_timeout), longest_timeout),
        case when q.fault is null then q.option_text end,
        case when q.fault is null then q.host else regexp_replace(left(q.host, 253), '[^!-~]', '?', 'g') end,
        q.requested_by::oid,
        (select f.revision from pgnet.configuration f),
        case when isfinite(q.created) then extract(epoch from clock_timestamp() - q.created)::double precision else 0 end,
        case when q.fault is not null then null
            when q.options ? 'idempotency_key' then pgnet.idempotency_key(q.id, q.created, q.method, q.options)
            when not pgnet.is_idempotent(q.method)
                then pgnet.derived_idempotency_key((select d.key_namespace from pgnet.database d), q.id, q.created) end,
        q.fault
    from unnest(ids, attempts) c (id, attempt)
    cross join lateral (
        select f.*,
            coalesce(reason, case
                when octet_length(f.method) > 255 then 'The method is longer than 255 bytes.'
                when octet_length(f.url) > 1000000 then 'The URL is longer than 1000000 bytes.'
                when octet_length(f.body) > 536870912 then 'The body is larger than 512 MB.'
                when f.headers is not null and f.header_text is null
                    then 'The headers are longer than 2500000 bytes as JSON, nested too deeply, or not UTF-8.'
                when f.options is not null and f.option_text is null
                    then 'The options are longer than 2500000 bytes as JSON, nested too deeply, or not UTF-8.'
                when not f.has_context then 'The context is longer than 16000000 bytes as JSON, nested too deeply, or not UTF-8.'
                when not convertible and convert_to(concat(f.method, f.url, f.header_text, f.option_text, f.context), 'UTF8') is null
                    then '' -- which it never is
                end) as fault
        from (
            select w.*, pgnet.host_of_url(w.url) as host,
                case when reason is null then
                    case when plain or pgnet.is_plain_json(w.headers) then w.headers::text else pgnet.json_text(w.headers) end end as header_text,
                case when reason is null then
                    case when plain or pgnet.is_plain_json(w.options) then w.options::text else pgnet.json_text(w.options) end end as option_text,
                case when reason is null then
                    w.context is null
                    or pg_column_compression(w.context) is null and pg_column_size(w.context) <= 8000
                    or pgnet.json_text(w.context, 16000000) is not null end as has_context
            from net.http_request_queue w
            where w.id = c.id
            offset 0
        ) f
        offset 0
    ) q
    -- Of a request that is sent once at most, or alone, the attempt is on disk before the first byte.
    where not (alone or q.options -> 'delivery' = '"at_most_once"') is true
        or set_config('synchronous_commit', 'on', true) is not null;
end
$$;
comment on function pgnet.read_claimed(bigint[], integer[], uuid, boolean, boolean, text) is
    'What a worker gets of the requests that it has claimed. What cannot be a request has a fault instead: it is not read any further. Raises what reading a row raises.';

create function pgnet.claim_requests(
    -- who claims
    worker_id bigint,
    -- how many requests at most
    slots integer,
    -- how many of them for one host where several wait, and where only one does
    host_quota integer,
    lone_quota integer,
    -- hosts that get none: the worker is full of them
    full_hosts text[],
    -- how many bytes of requests at most; one request always fits
    max_bytes bigint,
    -- hosts take turns, and roles at each of them: the scan starts behind this one
    after_host text,
    -- those that were lost with workers, and no others: one, or a few that were lost less often
    alone boolean default false,
    -- the role at after_host; by default it starts behind all of them
    after_role oid default 4294967295,
    -- the scan ends with this role at this host; NULL: where it began, when it has been at every host
    until_host text default null,
    until_role oid default 0,
    -- at how many roles of hosts it looks at most
    look_at integer default 1000
)
    -- A last row without an id says that there is more than was looked at, and to go on behind that row's host and role.
    returns table (
        id bigint, token text, attempt integer, lost integer, method text, url text, headers text, body bytea,
        timeout_milliseconds integer, options text, host text, role oid, revision bigint, age double precision,
        idempotency_key text, fault text
    )
    language plpgsql volatile parallel unsafe security definer cost 1000 rows 100
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_mergejoin = off
    set enable_material = off
    set plan_cache_mode = force_generic_plan
    set jit = off
    set lock_timeout = '500ms'
as $$
#variable_conflict use_column
declare
    claim_token uuid := gen_random_uuid();
    suspects bigint[];
    path text;
    quota integer;
    -- The end of the scan lies behind the last host: it goes on at the first one.
    wraps boolean := until_host is null
        or (until_host collate "C", until_role) <= (after_host collate "C", after_role);
    last_host text := coalesce(until_host, after_host);
    last_role oid := case when until_host is null then after_role else until_role end;
    -- In a variable: an index is of no use to what may change from row to row.
    present timestamptz := clock_timestamp();
    crowded oid[] := '{}';
    taken record;
begin
    perform pgnet.lock_tables(worker_id);
    quota := case
        when (select q.host from pgnet.ready_request q order by q.host limit 1)
            = (select q.host from pgnet.ready_request q order by q.host desc limit 1) then lone_quota
        else host_quota end;
    -- To step over the requests that one role has marked by the thousand would cost everybody's claim a quarter of a second for
    -- 100,000 of them. So that role waits until workers have acted on its marks.
    if (select m.request_id from pgnet.mark m order by m.requested_by offset 2000 limit 1) is not null then
        with recursive roles (role) as (
            (select m.requested_by from pgnet.mark m order by m.requested_by limit 1)
            union all
            select (select m.requested_by from pgnet.mark m where m.requested_by > r.role order by m.requested_by limit 1)
            from roles r where r.role is not null
        )
        select coalesce(array_agg(r.role::oid), '{}') into crowded
        from roles r
        where (
            select count(*) from (
                select m.action, m.retry_at from pgnet.mark m where m.requested_by = r.role limit 10000
            ) m
            where m.action <> 'retry' and m.retry_at is null) > 2000;
    end if;
    if (select q.id from net.http_request_queue q where q.due <= present and q.origin is null order by q.due limit 1) is not null then
        with woken as (
            update net.http_request_queue q set due = null, waits_since = null
            where q.id = any (array(
                select w.id from net.http_request_queue w where w.due <= present and w.origin is null
                order by w.due limit 1000 for update skip locked))
        )
        select pgnet.use_owners_path() into path;
        perform pgnet.pin_path();
    end if;
    if alone then
        -- Lost twice, many may be innocent: ten at once. Whoever was lost with these as well is attempted alone.
        with quarantined as (
            select q.id, (select count(*) from pgnet.attempt a where a.request_id = q.id and a.ending = 'lost') > 2 as often
            from net.http_request_queue q
            where q.due >= 'infinity' and q.origin is null
                and not exists (select from pgnet.claim c where c.id = q.id offset 0)
            order by q.due
        )
        select array_agg(t.id) into suspects
        from (
            select q.id from quarantined q
            where q.often = (select bool_and(o.often) from quarantined o)
            order by q.id
            limit case when (select bool_and(o.often) from quarantined o) then 1 else 10 end
        ) t;
    end if;
    with recursive later (host, role, number) as (
        (select q.host, q.role, 1 from pgnet.ready_request q
         where not alone and (q.host, q.role) > (after_host, after_role) order by q.host, q.role limit 1)
        union all
        select n.host, n.role, l.number + 1
        from later l
        cross join lateral (
            select q.host, q.role from pgnet.ready_request q where (q.host, q.role) > (l.host, l.role) order by q.host, q.role limit 1
        ) n
        where l.number < look_at and (wraps or (n.host, n.role) <= (last_host, last_role))
    ), earlier (host, role, number) as (
        (select q.host, q.role, 1 + (select count(*)::integer from later) from pgnet.ready_request q
         where not alone and wraps and (select count(*) from later) < look_at and (q.host, q.role) <= (last_host, last_role)
         order by q.host, q.role limit 1)
        union all
        select n.host, n.role, e.number + 1
        from earlier e
        cross join lateral (
            select q.host, q.role from pgnet.ready_request q
            where (q.host, q.role) > (e.host, e.role) and (q.host, q.role) <= (last_host, last_role)
            order by q.host, q.role limit 1
        ) n
        where e.number < look_at
    ), ready as materialized (
        select r.*, row_number() over () as place
        from (
            select l.host, l.role from later l
            union all
            select e.host, e.role from earlier e
        ) h
        cross join lateral (
            select o.*, row_number() over () as turn
            from (
                select q.id, q.host, q.role, q.timeout_milliseconds,
                    coalesce(octet_length(q.body), 0)::bigint + octet_length(q.url) + pgnet.json_size(q.context) as size,
                    coalesce(pg_column_size(q.headers), 0) + coalesce(pg_column_size(q.options), 0) as plain_size,
                    case when pgnet.is_plain_json(q.headers) is not false and pgnet.is_plain_json(q.options) is not false then null
                        else pgnet.json_size(q.headers) + pgnet.json_size(q.options) end as odd_size
                from pgnet.ready_request q
                where q.host = h.host and q.role = h.role
                    and not exists (select from pgnet.claim c where c.id = q.id offset 0)
                    -- Asked once for all rows: mostly there is no mark at all.
                    and ((select not exists (select from pgnet.mark)) or not exists (
                        select from pgnet.mark m
                        where m.requested_by = q.requested_by and m.request_id = q.id and m.action <> 'retry' offset 0))
                order by q.priority, q.id
                limit quota
                for update of q skip locked
            ) o
        ) r
        where h.host <> all (full_hosts) and h.role <> all (crowded)
        limit slots
    ), either as (
        select r.id, r.host, r.role, r.timeout_milliseconds, r.size + coalesce(r.odd_size, r.plain_size) as size,
            r.odd_size is null as plain, r.place, r.turn
        from ready r
        union all
        select l.id, l.host, l.role, l.timeout_milliseconds, 0, false, 1, 1
        from (
            select q.id, pgnet.host_of_url(q.url) collate "C" as host, q.requested_by::oid as role, q.timeout_milliseconds
            from net.http_request_queue q
            where alone and q.id = any (suspects)
                and not exists (select from pgnet.claim c where c.id = q.id offset 0)
                and ((select not exists (select from pgnet.mark)) or not exists (
                    select from pgnet.mark m
                    where m.requested_by = q.requested_by and m.request_id = q.id and m.action <> 'retry' offset 0))
            for update of q skip locked
        ) l
    ), bounded as (
        select e.*,
            sum(e.size) over (order by e.place rows between unbounded preceding and 1 preceding) as size_before,
            -- The roles of one host share what it may have: a request of each in turn.
            row_number() over (partition by e.host order by e.turn, random()) as number
        from either e
    ), chosen as (
        select b.* from bounded b where alone or coalesce(b.size_before, 0) < max_bytes and b.number <= quota
    ), claimed as (
        insert into pgnet.claim as c (id, host, worker, token, attempt, deadline)
        select b.id, b.host, worker_id, claim_token,
            1 + (select count(*) from pgnet.attempt a where a.request_id = b.id),
            clock_timestamp() + make_interval(secs => greatest(0, least(
                coalesce(b.timeout_milliseconds, (select pgnet.setting_value('timeout_milliseconds')::integer)),
                (select pgnet.max_timeout_milliseconds()))) / 1000.0 + 60)
        from chosen b
        order by b.place
        on conflict on constraint claim_pkey do nothing
        returning c.id, c.attempt
    ), stopped as (
        -- Where the scan ended before it had been everywhere.
        select p.host, p.role
        from (select l.* from later l union all select e.* from earlier e) p
        where (select count(*) from ready) < slots and p.number >= look_at and (p.host, p.role) <> (last_host collate "C", last_role)
        limit 1
    ), behind as (
        select s.host, s.role, 1 as rank from stopped s
        union all
        (select b.host, b.role, 2 from chosen b order by b.place desc limit 1)
    )
    select array_agg(c.id) as ids, array_agg(c.attempt) as attempts, (select bool_and(b.plain) from chosen b) as plain,
        exists (select from stopped) or (select count(*) from either) > (select count(*) from chosen) as more,
        (select b.host from behind b order by b.rank limit 1) as host,
        (select b.role from behind b order by b.rank limit 1) as role
    into taken
    from claimed c;

    if taken.ids is not null then
        begin
            return query select * from pgnet.read_claimed(taken.ids, taken.attempts, claim_token, alone, taken.plain);
        exception
            when transaction_rollback or insufficient_resources or operator_intervention or system_error
                or object_not_in_prerequisite_state or read_only_sql_transaction then
                -- Not a row's fault: the worker comes again.
                raise;
            when others then
                for at in 1 .. cardinality(taken.ids) loop
                    begin
                        return query
                        select * from pgnet.read_claimed(taken.ids[at:at], taken.attempts[at:at], claim_token, alone, taken.plain);
                    exception
                        when transaction_rollback or insufficient_resources or operator_intervention or system_error
                            or object_not_in_prerequisite_state or read_only_sql_transaction then
                            raise;
                        when others then
                            return query
                            select * from pgnet.read_claimed(
                                taken.ids[at:at], taken.attempts[at:at], claim_token, alone, false,
                                'The request cannot be read: ' || sqlerrm || '.');
                    end;
                end loop;
        end;
    end if;
    if taken.more then
        return query
        select null::bigint, null, null::integer, null::integer, null, null, null, null::bytea, null::integer, null,
            taken.host::text, taken.role::oid, null::bigint, null::double precision, null, null;
    end if;
end
$$;
comment on function pgnet.claim_requests(bigint, integer, integer, integer, text[], bigint, text, boolean, oid, text, oid, integer) is
    'Takes ready requests for a worker, host by host and role by role in turns, and never one that another transaction holds. Where one of them is at_most_once, the transaction commits to disk. A row that cannot be a request comes with its fault alone.';
