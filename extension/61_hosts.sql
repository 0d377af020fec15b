-- net.hosts: hosts that have settings, and how it stands with them.

create view net.hosts as
    with learnt as (
        -- Names of hosts are known to the roles that send requests to them, and to the owner.
        select t.host, t.role::pg_catalog.regrole as role,
            case when t.state operator(pg_catalog.=) 'closed' and t.closed_until operator(pg_catalog.>) pg_catalog.clock_timestamp()
                then 'slowed' else t.state end as state,
            t.since, t.reason, t.closed_until,
            (select pg_catalog.sum(c.value::integer)::integer from pg_catalog.jsonb_each_text(t.concurrency) c) as adaptive
        from pgnet.host_state t
        where t.role operator(pg_catalog.=) pgnet.caller_role()::pg_catalog.oid or pgnet.caller_is_owner()
    )
    select u.host, h.settings, l.concurrency, l.in_flight, l.rate, l.burst, l.next_token,
        s.role, s.state, s.since, s.reason as why, s.closed_until as next_probe, s.adaptive,
        p.since as paused_since, p.reason as pause_reason
    from (
        select h.pattern collate "C" as host from pgnet.host h
        union
        select b.host collate "C" from pgnet.host_budget b
        where (b.concurrency is not null or b.rate is not null) and pgnet.caller_is_owner()
        union
        select p.host collate "C" from pgnet.pause p where p.host operator(pg_catalog.=) '*' or pgnet.caller_is_owner()
        union
        select t.host from learnt t
    ) u
    left join pgnet.host h on (h.pattern collate "C") operator(pg_catalog.=) u.host
    left join learnt s on s.host operator(pg_catalog.=) u.host
    cross join lateral pgnet.limits_of_host(u.host) l
    -- As in pgnet.pause_of.
    left join lateral (
        select t.since, t.reason from pgnet.pause t
        where t.host operator(pg_catalog.=) any (array['*', u.host, pg_catalog.regexp_replace(u.host, ':[0-9]+$', '')])
        order by t.host operator(pg_catalog.<>) u.host, t.host operator(pg_catalog.=) '*' limit 1
    ) p on true
    offset 0; -- or else a role with that right could write through the view, as its owner
comment on view net.hosts is
    'Hosts with settings, by net.configure_host; for the owner those with limits that have '
    'requests, and those that are paused; and those of which workers have learnt something from the '
    'requests of a role, which that role sees, and the owner. One row for each pattern or host, and '
    'each role. Of all patterns that match a host, the most specific one that has a setting counts.';
comment on column net.hosts.host is
    'A pattern of net.configure_host, or a host as in a URL, with its port where it has one.';
comment on column net.hosts.settings is 'What is configured for just this pattern; NULL: nothing.';
comment on column net.hosts.concurrency is
    'How many requests may be in flight at once, by all patterns that match; NULL: any number.';
comment on column net.hosts.in_flight is
    'How many requests with a limit are in flight at the host of just this name.';
comment on column net.hosts.rate is 'How many requests may begin in a time; NULL: any number.';
comment on column net.hosts.burst is 'How many more than the rate may begin at once.';
comment on column net.hosts.next_token is
    'When the next request may begin by the rate; NULL: now.';
comment on column net.hosts.paused_since is
    'Since when the requests to this host wait for net.resume; NULL: they do not.';
comment on column net.hosts.pause_reason is 'The reason that net.pause was given.';
comment on column net.hosts.role is
    'The role whose requests the following columns are about; NULL: there is nothing to say.';
comment on column net.hosts.state is
    'closed, open or half_open, of the circuit breaker: while it is not closed only a probe is '
    'sent now and then. slowed: the host has asked for a pause.';
comment on column net.hosts.since is 'When that state began.';
comment on column net.hosts.why is 'Why the breaker has opened, or requests wait.';
comment on column net.hosts.next_probe is
    'When a request is sent next; with half_open, when a probe that does not end is given up.';
comment on column net.hosts.adaptive is
    'How many requests all workers together have in flight at most, where the host made it less; '
    'NULL: it did not.';
