-- Egress: which networks and hosts requests may go to. A worker's guard reads these rules; deny
-- wins.

create table pgnet.egress_rule (
    kind text not null constraint egress_kind check (kind operator(pg_catalog.=) any (array['network', 'host'])),
    pattern text not null,
    allow boolean not null,
    created timestamptz not null default pg_catalog.now(),
    primary key (kind, pattern)
);
comment on table pgnet.egress_rule is
    'The rules that net.allow_network, net.deny_network, net.allow_host and net.deny_host have '
    'made; net.egress shows them.';
select pg_catalog.pg_extension_config_dump('pgnet.egress_rule', '');

create view net.egress as
    select r.kind, r.pattern, case when r.allow then 'allow' else 'deny' end as verdict, r.created
    from pgnet.egress_rule r
    offset 0; -- or else a role with that right could write through the view, as its owner
comment on view net.egress is
    'The egress rules beside the built-in one, that only public addresses may be requested. Deny '
    'wins over allow.';

-- A network as people write it: a cidr, an address, or the words loopback and private.
create function pgnet.networks_of(network text)
    returns setof text
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    parsed cidr;
begin
    case lower(trim(network) collate "C")
        when 'loopback' then
            return query values ('127.0.0.0/8'), ('::1/128');
        when 'private' then
            return query values ('10.0.0.0/8'), ('172.16.0.0/12'), ('192.168.0.0/16'), ('fc00::/7');
        else
            begin
                parsed := trim(network)::cidr;
            exception when data_exception then
                null;
            end;
            if parsed is null then
                raise exception using
                    errcode = 'invalid_parameter_value',
                    message = format('invalid network %s', coalesce('"' || network || '"', 'NULL')),
                    hint = 'Give a network such as 10.1.0.0/16 or fd00::/8, an address, or one of the words loopback and private.';
            end if;
            return query values (parsed::text);
    end case;
end
$$;
comment on function pgnet.networks_of(text) is 'The networks that a word or a cidr stands for.';

-- A host pattern: an exact name, or *.example.com for everything below it; lower case, no port.
create function pgnet.host_pattern(pattern text)
    returns text
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if pattern is null
        -- A host that ends in a number is an address, or no host at all.
        or lower(trim(pattern) collate "C") ~ '(^|[.])(0x[0-9a-f]*|[0-9]+)[.]?$'
        or lower(trim(pattern) collate "C") !~ '^([*][.])?[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?[.]?$' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('invalid host pattern %s', coalesce('"' || pattern || '"', 'NULL')),
            hint = 'Give a host name without scheme and port, such as api.example.com, or *.example.com for every name below it. '
                'An address goes into net.allow_network or net.deny_network.';
    end if;
    return rtrim(lower(trim(pattern) collate "C"), '.');
end
$$;
comment on function pgnet.host_pattern(text) is
    'A host pattern in its stored form. Raises 22023 for a text that is not a host pattern.';

create function pgnet.set_egress_rules(rule_kind text, rule_patterns text[], rule_allow boolean)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    listed text := array_to_string(rule_patterns, ', ');
    dropped text[];
begin
    if rule_allow is null then
        with gone as (
            delete from pgnet.egress_rule r where r.kind = rule_kind and r.pattern = any (rule_patterns) returning r.pattern
        )
        select array_agg(g.pattern) into dropped from gone g;
    else
        insert into pgnet.egress_rule (kind, pattern, allow)
        select rule_kind, p, rule_allow from unnest(rule_patterns) p
        on conflict (kind, pattern) do update set allow = excluded.allow, created = excluded.created;
    end if;
    perform pgnet.announce_configuration();
    raise notice using message = case
        when dropped is not null then format('no rule for %s any more', array_to_string(dropped, ', '))
        when rule_allow is null then format('there was no rule for %s', listed)
        when rule_allow and rule_kind = 'host' and pgnet.setting_value('egress') <> 'listed' then format(
            'requests to %s are allowed; that counts once the setting egress is "listed"', listed)
        when rule_allow then format('requests to %s are allowed', listed)
        else format('requests to %s are refused', listed) end;
end
$$;
comment on function pgnet.set_egress_rules(text, text[], boolean) is
    'Writes egress rules; NULL as verdict forgets them.';

create function net.allow_network(
    -- a cidr, an address, or one of the words loopback and private
    network text
)
    returns void language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$ select pgnet.set_egress_rules('network', array(select pgnet.networks_of(network)), true) $$;
comment on function net.allow_network(text) is
    'Lets requests go to addresses of this network, also where it is not public. Raises 22023 for a '
    'text that is not a network. Workers follow at the commit. Owner only.';

create function net.deny_network(
    -- a cidr, an address, or one of the words loopback and private
    network text
)
    returns void language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$ select pgnet.set_egress_rules('network', array(select pgnet.networks_of(network)), false) $$;
comment on function net.deny_network(text) is
    'Refuses requests to addresses of this network, whatever else allows them. Raises 22023 for a '
    'text that is not a network. Owner only.';

create function net.forget_network(
    -- as it was given to net.allow_network or net.deny_network
    network text
)
    returns void language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$ select pgnet.set_egress_rules('network', array(select pgnet.networks_of(network)), null) $$;
comment on function net.forget_network(text) is
    'Removes the rule that net.allow_network or net.deny_network made for this network. Owner only.';

create function net.allow_host(
    -- a host name, or *.example.com for every name below it
    pattern text
)
    returns void language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$ select pgnet.set_egress_rules('host', array[pgnet.host_pattern(pattern)], true) $$;
comment on function net.allow_host(text) is
    'Names a host that may be requested where the setting egress is "listed". It does not open '
    'private networks: net.allow_network does. Owner only.';

create function net.deny_host(
    -- a host name, or *.example.com for every name below it
    pattern text
)
    returns void language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$ select pgnet.set_egress_rules('host', array[pgnet.host_pattern(pattern)], false) $$;
comment on function net.deny_host(text) is
    'Refuses requests to this host, whatever else allows them. Owner only.';

create function net.forget_host(
    -- as it was given to net.allow_host or net.deny_host
    pattern text
)
    returns void language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$ select pgnet.set_egress_rules('host', array[pgnet.host_pattern(pattern)], null) $$;
comment on function net.forget_host(text) is
    'Removes the rule that net.allow_host or net.deny_host made for this host. Owner only.';

create function pgnet.egress_patterns(rule_kind text, rule_allow boolean)
    returns jsonb
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce(jsonb_agg(r.pattern), '[]') from pgnet.egress_rule r where r.kind = rule_kind and r.allow = rule_allow
$$;
comment on function pgnet.egress_patterns(text, boolean) is
    'The patterns of the rules of a kind that allow, or of those that deny.';

-- The database's own port stays shut even where its network is allowed.
create function pgnet.egress_in_force()
    returns jsonb
    language sql stable parallel restricted
    set search_path = pg_catalog, pg_temp
as $$
    select jsonb_build_object(
        'egress', pgnet.setting_value('egress'),
        'ports', pgnet.setting_value('egress_ports'),
        'allow_networks', pgnet.egress_patterns('network', true),
        'deny_networks', pgnet.egress_patterns('network', false),
        'allow_hosts', pgnet.egress_patterns('host', true),
        'deny_hosts', pgnet.egress_patterns('host', false),
        'deny_endpoints', (
            select jsonb_agg(distinct a.address || ':' || current_setting('port'))
            from unnest(array['127.0.0.1', '[::1]', case family(inet_server_addr())
                when 6 then '[' || host(inet_server_addr()) || ']' else host(inet_server_addr()) end]) a (address)
            where a.address is not null),
        -- Where the worker is on the server's own host, the port is shut on all of that host's
        -- addresses.
        'own_port', case when inet_server_addr() is null or inet_server_addr() = inet_client_addr()
            then current_setting('port')::integer end)
$$;
comment on function pgnet.egress_in_force() is
    'The egress rules and the settings of egress, for the guard of a worker.';
