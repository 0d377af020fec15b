-- What is learnt of hosts: which ones are broken, and which ones have asked to wait.

create table pgnet.host_state (
    host text not null,
    role oid not null,
    -- no request is claimed before this time
    closed_until timestamptz,
    -- the next request is a probe, and no other one is claimed beside it
    needs_probe boolean not null default false,
    primary key (host, role)
);
comment on table pgnet.host_state is
    'What workers have learnt of a host from the requests of one role. A place without a row is '
    'well.';

create function pgnet.probe_room(host text, role oid)
    returns integer
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform from pgnet.host_state s
    where s.host = probe_room.host and s.role = probe_room.role and s.needs_probe
        and coalesce(s.closed_until, '-infinity') <= clock_timestamp()
    for update skip locked;
    return case when found then 1 else 0 end;
end
$$;
comment on function pgnet.probe_room(text, oid) is
    '1 where a probe of a broken host may begin, whose state is locked then; else 0.';

create function pgnet.begin_probes(ids bigint[])
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    null;
end
$$;
comment on function pgnet.begin_probes(bigint[]) is
    'Notes the probes among what was claimed: until they end no other one begins.';
