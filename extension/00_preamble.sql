\echo Use "create extension pgnet cascade" to load this file. \quit

-- pg_net owns the same schema and the same function names: the two cannot live in one database.
do $$
begin
    if exists (select from pg_catalog.pg_extension where extname operator(pg_catalog.=) 'pg_net') then
        raise exception using
            errcode = 'duplicate_object',
            message = 'pgnet cannot be installed beside pg_net in one database',
            detail = 'Both provide the schema "net" with the same functions and tables.',
            hint = 'The page docs/coming-from-pg_net.md shows how to swap them in one transaction: '
                'drop extension pg_net, then create extension pgnet cascade.';
    end if;
    if pg_catalog.current_setting('server_version_num')::int operator(pg_catalog.<) 150000 then
        raise exception using
            errcode = 'feature_not_supported',
            message = 'pgnet needs PostgreSQL 15 or newer',
            hint = 'Upgrade the server first.';
    end if;
end
$$;

create schema net;
comment on schema net is
    'pgnet: HTTP as part of a transaction. A committed request is sent by a worker; its outcome is stored in net._http_response.';
-- As in pg_net every role may send requests; "revoke usage on schema net from public" closes it.
grant usage on schema net to public;
