-- net.hosts: hosts that have settings, and how it stands with them.

create view net.hosts as
    select u.host, h.settings, l.concurrency, l.in_flight, l.rate, l.burst, l.next_token,
        p.since as paused_since, p.reason as pause_reason
    from (
        select h.pattern as host from pgnet.host h
        union
        -- Names of hosts are known to the roles that send requests to them, and to the owner.
        select b.host from pgnet.host_budget b
        where (b.concurrency is not null or b.rate is not null) and pgnet.caller_is_owner()
        union
        select p.host from pgnet.pause p where p.host operator(pg_catalog.=) '*' or pgnet.caller_is_owner()
    ) u
    left join pgnet.host h on h.pattern operator(pg_catalog.=) u.host
    cross join lateral pgnet.limits_of_host(u.host) l
    -- As in pgnet.pause_of.
    left join lateral (
        select t.since, t.reason from pgnet.pause t
        where t.host operator(pg_catalog.=) any (array['*', u.host, pg_catalog.regexp_replace(u.host, ':[0-9]+$', '')])
        order by t.host operator(pg_catalog.<>) u.host, t.host operator(pg_catalog.=) '*' limit 1
    ) p on true
    offset 0; -- or else a role with that right could write through the view, as its owner
comment on view net.hosts is
    'Hosts with settings, by net.configure_host, and for the owner those with limits that have '
    'requests, and those that are paused; one row for each pattern or host. Of all patterns that '
    'match a host, the most specific one that has a setting counts.';
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
