-- Taken out again, nothing is left.
drop extension pgnet;
select to_regnamespace('net'), to_regnamespace('pgnet');
select count(*) from pg_shdepend d join pg_database b on b.oid = d.dbid
where b.datname = current_database() and d.classid = 'pg_namespace'::regclass;
select count(*) from pg_init_privs p where p.objoid >= 16384
    and not exists (select from pg_depend e where e.classid = p.classoid and e.objid = p.objoid and e.deptype = 'e');

-- And back: numbers begin at 1 again.
create extension pgnet;
select net.http_get('http://localhost/');
drop extension pgnet cascade;
