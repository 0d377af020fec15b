\echo Use "create extension pgnet cascade" to load this file. \quit

-- pg_net owns the same schema and the same function names: the two cannot live in one database.
do $$
declare
    taken record;
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
    -- Refuse an empty schema, too, and one of the installing role. Whoever owns a schema, or may
    -- create in it, can put functions beside those of the extension (CVE-2022-2625), and DROP
    -- EXTENSION takes the schema away.
    select n.nspname as name, pg_catalog.pg_get_userbyid(n.nspowner) as owner, m.extname,
        (select pg_catalog.count(*) from pg_catalog.pg_depend d
         where d.refclassid operator(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass
             and d.refobjid operator(pg_catalog.=) n.oid and d.deptype operator(pg_catalog.=) 'n') as objects
    into taken
    from pg_catalog.pg_namespace n
    left join (
        select d.objid, x.extname from pg_catalog.pg_depend d join pg_catalog.pg_extension x on x.oid operator(pg_catalog.=) d.refobjid
        where d.classid operator(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass
            and d.deptype operator(pg_catalog.=) 'e'
    ) m on m.objid operator(pg_catalog.=) n.oid
    where n.nspname operator(pg_catalog.=) any (array['net', 'pgnet']::pg_catalog.name[])
    order by n.nspname
    limit 1;
    if found then
        raise exception using
            errcode = 'duplicate_schema',
            message = pg_catalog.format('pgnet cannot be installed: the schema "%s" exists already', taken.name),
            detail = pg_catalog.format('It belongs to the role "%s"%s, and holds %s object(s). pgnet makes this schema itself, '
                'so that nothing of others is in it.', taken.owner,
                case when taken.extname is not null then pg_catalog.format(' and to the extension "%s"', taken.extname) else '' end,
                taken.objects),
            hint = case
                when taken.extname is not null then pg_catalog.format('drop extension %I; ', taken.extname)
                when taken.objects operator(pg_catalog.=) 0 then pg_catalog.format('drop schema %s; ', taken.name)
                else pg_catalog.format('alter schema %s rename to another_name; ', taken.name) end operator(pg_catalog.||) 'create extension pgnet cascade;';
    end if;
end
$$;

-- What people call and read stands in net, and the few private names that users of pg_net know; the
-- rest stands in pgnet.
create schema net;
comment on schema net is
    'pgnet: HTTP as part of a transaction. A committed request is sent by a worker; its outcome is '
    'stored in net._http_response.';
create schema pgnet;
comment on schema pgnet is
    'The inside of the extension pgnet: its tables, and the functions that its own functions and '
    'its workers call. Names here change without notice.';
