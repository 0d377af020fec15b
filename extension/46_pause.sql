-- Pauses: hosts whose requests wait until somebody resumes them.
--
-- A pause is a state and not a setting: it survives restarts, crashes and failovers. A dump leaves
-- pauses out, as it leaves requests out. What a claim does about a pause stands in
-- pgnet.take_requests: it passes over the host and reads none of its requests.

create table pgnet.pause (
    host text primary key,
    since timestamptz not null default pg_catalog.clock_timestamp(),
    paused_by regrole not null default pg_catalog.quote_ident(current_user)::pg_catalog.regrole,
    reason text
);
comment on table pgnet.pause is
    'Hosts whose requests wait, by net.pause until net.resume: an authority as in a URL, a name for '
    'all its ports, or * for all hosts.';

create function pgnet.authority_of(host text)
    returns text
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    given text := trim(host);
    hint text := 'Give a host as it stands in the URL: a name, such as api.example.com, for all its ports; name:port for one; or * for every host.';
    complete_url text;
begin
    if given = '*' then
        return given;
    end if;
    if given ~ '^[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*$' then
        given := format('[%s]', given); -- an IPv6 address without its brackets
    elsif given ~ ':0*(80|443)$' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('host "%s" is given with a port that URLs leave out', given),
            hint = format('The name alone stands for all its ports: ''%s''.', regexp_replace(given, ':[0-9]+$', ''));
    end if;
    if given is not null and given <> '' and given !~ '[/?#@]' then
        select i.complete_url into complete_url from pgnet.inspect_request('GET', 'http://' || given || '/', null, null, null, null) i;
    end if;
    if complete_url is null then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('invalid host %s', coalesce('"' || left(host, 300) || '"', 'NULL')),
            hint = hint;
    end if;
    return pgnet.host_of_url(complete_url);
end
$$;
comment on function pgnet.authority_of(text) is
    'A host, or a host with a port, in the form that URLs are stored in; * stays. Raises 22023 for '
    'a text that is none.';

-- The pause that a host waits for. pgnet.take_requests asks the same.
create function pgnet.pause_of(authority text)
    returns pgnet.pause
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select p from pgnet.pause p
    where p.host in (authority, regexp_replace(authority, ':[0-9]+$', ''), '*')
    order by p.host <> authority, p.host = '*'
    limit 1
$$;
comment on function pgnet.pause_of(text) is
    'The pause that requests to this authority wait for: its own, that of its name, or that of all '
    'hosts; NULL where it is not paused.';

create function pgnet.is_paused(url text)
    returns boolean
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$ select (pgnet.pause_of(pgnet.host_of_url(url))).host is not null $$;
comment on function pgnet.is_paused(text) is 'Whether requests to this URL wait for net.resume.';

create function net.pause(
    -- a host as in URLs; without a port for all its ports; * for every host
    host text default '*',
    -- why, for people who look
    reason text default null
)
    -- whether it was not paused before
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    authority text := pgnet.authority_of(host);
    is_new boolean;
begin
    perform pgnet.require_owner();
    if length(reason) > 1000 then
        raise exception using errcode = 'invalid_parameter_value', message = 'the reason is longer than 1000 characters',
            hint = 'Give a sentence, and a link to more.';
    end if;
    insert into pgnet.pause as p (host, reason) values (authority, pause.reason)
    on conflict on constraint pause_pkey do update set paused_by = excluded.paused_by, reason = excluded.reason
    returning xmax = 0 into is_new;
    perform pgnet.signal_workers('reload');
    raise notice using message = format('%s %s', case authority when '*' then 'every host' else format('host "%s"', authority) end,
        case when is_new then 'is paused: what is in flight goes on, all else waits' else 'was paused already' end);
    return is_new;
end
$$;
comment on function net.pause(text, text) is
    'From the commit on no request to this host begins, until net.resume; what is in flight goes '
    'on, and waiting counts as no attempt. True where it was not paused before; else the reason is '
    'replaced. Survives restarts, and is no part of a dump. Raises 22023 for a NULL or another '
    'text that is no host. Owner only.';

create function net.resume(
    -- as it was given to net.pause
    host text default '*'
)
    -- whether it was paused
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    authority text := pgnet.authority_of(host);
    was_paused boolean;
    others text;
begin
    perform pgnet.require_owner();
    delete from pgnet.pause p where p.host = authority;
    was_paused := found;
    perform pgnet.signal_workers('reload');
    select string_agg(o.host, ', ' order by o.host = '*' desc, o.host) into others
    from (
        select p.host from pgnet.pause p
        where authority = '*' or p.host = '*' or authority = regexp_replace(p.host, ':[0-9]+$', '')
            or p.host = regexp_replace(authority, ':[0-9]+$', '')
        order by p.host limit 20
    ) o;
    raise notice using message = concat_ws('; ',
        format('%s %s', case authority when '*' then 'the pause of every host' else format('the pause of host "%s"', authority) end,
            case when was_paused then 'is over' else 'was not there' end),
        'still paused: ' || others);
    return was_paused;
end
$$;
comment on function net.resume(text) is
    'Ends the pause that net.pause was called for with the same host, and wakes the workers; other '
    'pauses stay, and a notice names them. True where there was such a pause. Raises 22023 for a '
    'NULL or another text that is no host. Owner only.';
