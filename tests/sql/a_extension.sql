-- Installing: what is required, what is said, what is there.
\set VERBOSITY default
create extension pgnet;
create extension pgnet cascade;

-- once only
create extension pgnet;
select extversion, extrelocatable, nspname as schema
from pg_extension join pg_namespace n on n.oid = extnamespace
where extname = 'pgnet';

\pset format unaligned
-- Everything that belongs to it, but for indexes, constraints, toast and the types of rows.
select i.type, i.identity
from pg_depend d, pg_identify_object(d.classid, d.objid, d.objsubid) i
where d.refclassid = 'pg_extension'::regclass and d.deptype = 'e'
    and d.refobjid = (select oid from pg_extension where extname = 'pgnet')
order by i.type collate "C", i.identity collate "C";

-- Every member has a comment, but for the sequences of columns.
select i.type, i.identity
from pg_depend d, pg_identify_object(d.classid, d.objid, d.objsubid) i
where d.refclassid = 'pg_extension'::regclass and d.deptype = 'e'
    and d.refobjid = (select oid from pg_extension where extname = 'pgnet')
    and obj_description(d.objid, d.classid::regclass::name) is null
    and i.type <> 'sequence'
order by 1, i.identity collate "C";

-- So has every column of what a user reads.
select attrelid::regclass, attname
from pg_attribute
where attrelid in ('net.http_request_queue'::regclass, 'net._http_response'::regclass)
    and attnum > 0 and not attisdropped and col_description(attrelid, attnum) is null
order by 1, attnum;

-- The tables of which a dump holds the rows.
select c::regclass from pg_extension, unnest(extconfig) c where extname = 'pgnet' order by c::regclass::text collate "C";

-- The schema is a member: it goes with the extension.
drop schema net;
