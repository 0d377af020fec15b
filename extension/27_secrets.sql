-- Secrets: requests hold their names; the values are put in by the worker that sends them.

-- No CHECK here: the error of one prints the row, and the value with it.
create table pgnet.secret (
    name text primary key,
    value text,
    url_prefix text,
    created timestamptz default pg_catalog.now(),
    changed timestamptz default pg_catalog.now()
);
comment on table pgnet.secret is
    'The secrets: net.set_secret writes it, workers get a value when a request needs it. Only the '
    'owner reads it, and a dump of the database leaves it out.';
comment on column pgnet.secret.value is
    'NULL where the workers hold it themselves (pgnet worker --secrets-dir).';
comment on column pgnet.secret.url_prefix is
    'Requests may carry it to URLs below this one; NULL: no request may, only net.configure_host.';
-- Otherwise ANALYZE would keep samples of the values in pg_statistic.
alter table pgnet.secret alter column value set statistics 0;

create table pgnet.secret_grant (
    secret text references pgnet.secret (name) on update cascade on delete cascade,
    role regrole,
    primary key (secret, role)
);
comment on table pgnet.secret_grant is
    'Which roles may use which secrets: net.grant_secret and net.revoke_secret write it.';

-- No catalog stands in here: LOCK goes through a view with its owner's rights. A role that was
-- dropped has left its number behind: it is no grantee, and no member of one.
create view net.secrets with (security_barrier) as
    select s.name, s.url_prefix, case when s.value is null then 'worker' else 'database' end as stored_in, s.created, s.changed
    from pgnet.secret s
    where pgnet.caller_is_owner()
        or exists (
            select from pgnet.secret_grant g
            where g.secret operator(pg_catalog.=) s.name and pg_catalog.pg_has_role(current_user, g.role, 'usage'))
    offset 0; -- or else a role with that right could write through the view, as its owner
comment on view net.secrets is
    'The secrets that the current role may use: where they may go, and where their values are '
    'stored. The owner sees all of them.';

create function pgnet.secret_covers(url_prefix text, url text)
    returns boolean
    language plpython3u immutable parallel safe cost 100
as $$
from pgnet import sql_v1
return sql_v1.secret_covers(url_prefix, url)
$$;
comment on function pgnet.secret_covers(text, text) is
    'Whether a secret with this prefix may go to a URL as it is stored; false for NULL. Of a URL '
    'that is a secret itself, only the origin is known here.';

create function pgnet.inspect_secret(
    name text, value text, url_prefix text, out canonical_prefix text, out message text, out hint text
)
    language plpython3u immutable parallel safe cost 100
as $$
from pgnet import sql_v1
return sql_v1.secret_check(name, value, url_prefix)
$$;
comment on function pgnet.inspect_secret(text, text, text) is
    'The prefix as it is stored, or what is wrong with a secret: never its value.';

-- A role that may not use a secret gets the same message whether the secret exists or not.
create function pgnet.refuse_secret(name text)
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if name is null or name !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$' then
        raise exception using
            errcode = 'invalid_parameter_value',
            -- The name is not shown: it may be the value in the wrong place.
            message = case when name is null then 'the name of a secret must not be NULL' else 'this is not a valid name of a secret' end,
            hint = 'A name is of 1 to 63 letters, digits, and - _ . behind the first one.';
    end if;
    if pgnet.caller_is_owner() then
        raise exception using
            errcode = 'undefined_object',
            message = format('secret "%s" does not exist', name),
            hint = format('Set it: select net.set_secret(%L, value, url_prefix), or: pgnet secret set %s --url-prefix URL < file', name, name);
    end if;
    raise exception using
        errcode = 'insufficient_privilege',
        message = format('secret "%s" does not exist, or role "%s" may not use it', name, current_user),
        hint = format('The owner of pgnet grants it: select net.grant_secret(%L, %L)', name, current_user);
end
$$;
comment on function pgnet.refuse_secret(text) is
    'Raises that the current role cannot use a secret: 22023 for a text that cannot be a name; '
    '42704 where the owner asks, 42501 where another role does.';

-- The URL prefix that a secret is bound to, where the current role may use the secret.
create function pgnet.secret_prefix(name text)
    returns text
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    known record;
begin
    select s.url_prefix into known from net.secrets s where s.name = secret_prefix.name;
    if not found then
        perform pgnet.refuse_secret(name);
    end if;
    if known.url_prefix is null then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('secret "%s" has no URL prefix: no request can use it', name),
            hint = format('For requests: select net.set_secret(%L, value, url_prefix)', name);
    end if;
    return known.url_prefix;
end
$$;
comment on function pgnet.secret_prefix(text) is
    'The URL prefix of a secret that the current role may use; raises 42501 (42704 for the owner) '
    'where there is no such secret, 22023 where it has no prefix.';

create function pgnet.check_secret(name text, url text)
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    url_prefix text := pgnet.secret_prefix(name);
begin
    if not pgnet.secret_covers(url_prefix, url) then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('secret "%s" may not go to this URL', name),
            detail = format('It is bound to %s and what is below; dot segments and encoded slashes are not below it.', url_prefix);
    end if;
end
$$;
comment on function pgnet.check_secret(text, text) is
    'Raises where the current role may not use a secret (42501; 42704 for the owner where there is '
    'no such secret), or not for this URL (22023).';

create function net.secret_url(
    -- the name of a secret whose value is a URL, or the query of one
    name text
)
    -- a URL for net.http_get and its kin
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
    -- The operator || is not used, since it is strict: for a NULL name PostgreSQL 18's planner
    -- would take NULL for the result, and the check would never run.
as $$ select format('%s/{secret:%s}', substring(pgnet.secret_prefix(name) from '^https?://[^/]+'), name) $$;
comment on function net.secret_url(text) is
    'Stands for a whole URL that is a secret, in the url of a request: the origin shows, the '
    'worker puts in the rest. Params are appended to it. Raises 42501 where the current role may '
    'not use the secret, 22023 for NULL and for a secret without a URL prefix.';

create function net.set_secret(
    -- 1 to 63 letters, digits, and - _ . behind the first one
    name text,
    -- at least 8 characters, or NULL where the workers hold it (pgnet worker --secrets-dir)
    value text,
    -- where requests may carry it: to this URL and those below; NULL keeps what it was, at first:
    -- nowhere
    url_prefix text default null
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    -- A plan of its own would hold the value, and what explains plans would show it.
    set plan_cache_mode = force_generic_plan
as $$
declare
    checked record;
begin
    if name is null or name !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$' then
        perform pgnet.refuse_secret(name);
    end if;
    select * into checked from pgnet.inspect_secret(set_secret.name, set_secret.value,
        coalesce(set_secret.url_prefix, (select s.url_prefix from pgnet.secret s where s.name = set_secret.name)));
    if checked.message is not null then
        perform pgnet.raise_error('22023', checked.message, checked.hint);
    end if;
    insert into pgnet.secret (name, value, url_prefix)
    values (set_secret.name, set_secret.value, checked.canonical_prefix)
    on conflict on constraint secret_pkey do update
        set value = excluded.value, url_prefix = excluded.url_prefix, changed = now();
    perform pgnet.announce_configuration();
    raise notice using message = format('secret "%s" is set; %s; %s', name,
        case when value is null then 'workers hold its value' else 'its value is in the database' end,
        case when checked.canonical_prefix is null then 'no request can carry it, net.configure_host can name it'
            else format('requests to %s and below may carry it', checked.canonical_prefix) end);
end
$$;
comment on function net.set_secret(text, text, text) is
    'Sets a secret, or changes it: its grants stay. As SQL text the value may be logged: the '
    'command "pgnet secret set" keeps it out. Raises 22023, without the value, for a name, value '
    'or prefix that cannot be. Owner only.';

create function net.drop_secret(
    -- the secret
    name text
)
    -- whether there was one
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    dropped boolean;
begin
    delete from pgnet.secret s where s.name = drop_secret.name;
    dropped := found;
    perform pgnet.announce_configuration();
    if dropped then
        raise notice using message = format('secret "%s" is dropped; queued requests that name it will fail', name);
    end if;
    return dropped;
end
$$;
comment on function net.drop_secret(text) is
    'Drops a secret and its grants; queued requests that name it end as failed. False where there '
    'was no such secret, also for NULL. Owner only.';

create function pgnet.set_secret_grant(secret_name text, grantee text, granted boolean)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    grantee_role regrole := pgnet.role_named(grantee);
begin
    if not exists (select from pgnet.secret s where s.name = secret_name) then
        perform pgnet.refuse_secret(secret_name);
    end if;
    delete from pgnet.secret_grant g
    where not exists (select from pg_roles r where r.oid = g.role)
        or (not granted and g.secret = secret_name and g.role = grantee_role);
    if granted then
        insert into pgnet.secret_grant (secret, role) values (secret_name, grantee_role) on conflict do nothing;
        raise notice using message = format('role "%s" may use secret "%s"', grantee, secret_name);
    else
        raise notice using message = format('secret "%s" is not granted to role "%s"', secret_name, grantee);
    end if;
end
$$;
comment on function pgnet.set_secret_grant(text, text, boolean) is
    'Grants or revokes a secret, and removes the grants of roles that were dropped.';

create function net.grant_secret(
    -- the secret
    name text,
    -- the role, by name; its members that inherit from it may, too
    role text
)
    returns void language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$ select pgnet.set_secret_grant(name, role, true) $$;
comment on function net.grant_secret(text, text) is
    'Lets a role put a secret into its requests, without reading it. Raises 42704 for a secret or '
    'role that does not exist, 22023 for NULL. Owner only.';

create function net.revoke_secret(
    -- the secret
    name text,
    -- the role, by name
    role text
)
    returns void language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$ select pgnet.set_secret_grant(name, role, false) $$;
comment on function net.revoke_secret(text, text) is
    'Takes back what net.grant_secret gave, for queued requests too. Raises 42704 for a secret or '
    'role that does not exist, 22023 for NULL. Owner only.';

-- The values for requests that a worker has claimed: asked for at the moment of sending, judged at
-- that moment too.
create function pgnet.claimed_secrets(
    -- the requests, the tokens of their claims, and the secrets they name: a triple each
    ids bigint[], tokens uuid[], names text[]
)
    -- a row for each triple whose claim has the token: value is NULL where the worker holds it, and
    -- where fault says why there is no value
    returns table (id bigint, name text, value text, url_prefix text, stored_in text, fault text)
    language plpgsql volatile parallel unsafe security definer cost 1000 rows 100
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
    set lock_timeout = '500ms'
as $$
#variable_conflict use_column
begin
    perform pgnet.lock_tables();
    lock table pgnet.secret, pgnet.secret_grant in access share mode nowait;
    return query
    with asked as materialized (
        select a.id, a.name, q.url, s.name is not null as known, s.value, s.url_prefix,
            (select r.rolname from pg_roles r where r.oid = q.requested_by) as role,
            jsonb_path_exists(q.headers, '$.*.secret ? (@ == $name)', jsonb_build_object('name', a.name))
                or q.options -> 'sign' ? a.name
                or substring(q.url from '^https?://[^/?#{}]*/[{]secret:([A-Za-z0-9][A-Za-z0-9_.-]{0,62})[}](?:[?].*)?$') = a.name as named,
            -- In here the current role is the owner.
            pg_has_role(q.requested_by, current_user, 'usage') or exists (
                select from pgnet.secret_grant g
                where g.secret = a.name and pg_has_role(q.requested_by, g.role, 'usage')) as granted
        from unnest(ids, tokens, names) as a (id, token, name)
        cross join lateral (
            select coalesce(e.url, q.url) as url, q.headers, q.requested_by, q.options
            from net.http_request_queue q
            left join pgnet.endpoint e on e.owner = q.requested_by and e.name = q.options ->> 'endpoint'
            where q.id = a.id and exists (select from pgnet.claim c where c.id = a.id and c.token = a.token offset 0)
            offset 0
        ) q
        left join pgnet.secret s on s.name = a.name
    ), judged as (
        select a.*, case
            when a.named is not true then format('the request does not name the secret "%s"', a.name)
            when a.role is null then format('the role that asked for the secret "%s" does not exist any more', a.name)
            when not (a.known and a.granted) then format('secret "%s" does not exist, or role "%s" may not use it', a.name, a.role)
            when a.url_prefix is null then format('secret "%s" has no URL prefix: no request can use it', a.name)
            when not pgnet.secret_covers(a.url_prefix, a.url) then format('secret "%s" may not go to the URL of this request', a.name)
            end as fault
        from asked a
    )
    select j.id, j.name, case when j.fault is null then j.value end, j.url_prefix,
        case when j.known then case when j.value is null then 'worker' else 'database' end end, j.fault
    from judged j;
end
$$;
comment on function pgnet.claimed_secrets(bigint[], uuid[], text[]) is
    'The secrets that claimed requests name, as far as the roles that made them may use them now, '
    'for their URLs; else why not.';
