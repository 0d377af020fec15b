-- CREATE EXTENSION: its requirements, its notices, its members.
\set VERBOSITY default
create extension pgnet;
create extension pgnet cascade;

-- once only
create extension pgnet;
select extversion, extrelocatable, nspname as schema
from pg_extension join pg_namespace n on n.oid = extnamespace
where extname = 'pgnet';

\pset format unaligned
-- The members of the extension. The types of rows and of arrays are members since PostgreSQL 17,
-- and are left out.
-- Since then the identity of a function names the type json without its schema.
create temporary view members as
select i.type, regexp_replace(i.identity, 'pg_catalog\.json\M', 'json', 'g') collate "C" as identity,
    obj_description(d.objid, d.classid::regclass::name) as comment
from pg_depend d
cross join pg_identify_object(d.classid, d.objid, d.objsubid) i
left join pg_type t on d.classid = 'pg_type'::regclass and t.oid = d.objid
left join pg_class c on c.oid = t.typrelid
where d.refclassid = 'pg_extension'::regclass and d.deptype = 'e'
    and d.refobjid = (select oid from pg_extension where extname = 'pgnet')
    and t.typcategory is distinct from 'A' and (c.relkind is null or c.relkind = 'c');

-- Everything that belongs to it.
select type, identity from members order by type collate "C", identity;

-- Every member has a comment, but for the sequences of columns.
select type, identity from members where comment is null and type <> 'sequence' order by 1, 2;

-- Every column of the tables and views that users read has a comment, too.
select attrelid::regclass, attname
from pg_attribute
where attrelid in ('net.http_request_queue'::regclass, 'net._http_response'::regclass)
    and attnum > 0 and not attisdropped and col_description(attrelid, attnum) is null
order by 1, attnum;

-- The tables of which a dump holds the rows.
select c::regclass from pg_extension, unnest(extconfig) c where extname = 'pgnet' order by c::regclass::text collate "C";

-- The schemas are members: they go with the extension.
drop schema net;
drop schema pgnet;
