-- Users of pg_net rely on these to the letter: names, order and types of arguments, results,
-- columns.
select p.proname, pg_get_function_arguments(p.oid) as arguments, pg_get_function_result(p.oid) as result
from pg_proc p
where p.pronamespace = 'net'::regnamespace
    and p.proname in (
        'http_get', 'http_post', 'http_delete', 'http_get_result', 'http_collect_response', '_http_collect_response',
        '_await_response', 'wake', 'worker_restart', 'wait_until_running', 'check_worker_is_up', '_urlencode_string',
        '_encode_url_with_params_array')
order by p.proname collate "C" \gx

-- The functions that pg_net does not have.
select p.proname, pg_get_function_arguments(p.oid) as arguments, pg_get_function_result(p.oid) as result
from pg_proc p
where p.pronamespace = 'net'::regnamespace
    and p.proname in (
        'http_request', 'http_put', 'http_patch', 'http_head', 'multipart', 'secret_url', 'set_secret', 'drop_secret',
        'grant_secret', 'revoke_secret', 'configure_host', 'wait', 'wait_all', 'webhook', 'fetch', 'cancel', 'check', 'configure', 'allow_network', 'deny_network', 'forget_network',
        'allow_host', 'deny_host', 'forget_host', 'grant_worker', 'revoke_worker', 'schedule_worker', 'unschedule_worker',
        'work', 'drain', 'on_all_done', 'run_callback', 'run_callbacks', 'create_webhook', 'drop_webhook', 'enable_webhook', 'disable_webhook', 'test_webhook', 'replay_webhook', 'backfill_webhook',
        'set_endpoint', 'drop_endpoint', 'stub', 'unstub')
order by p.proname collate "C" \gx

-- \df net.*: what people call, and the private names that users of pg_net know.
select distinct proname::text collate "C" as name from pg_proc where pronamespace = 'net'::regnamespace order by name;

-- No name stands for two functions, nor for a function and a table.
select name
from (
    select pronamespace::regnamespace || '.' || proname from pg_proc where pronamespace = any ('{net,pgnet}'::regnamespace[])
    union all
    select relnamespace::regnamespace || '.' || relname from pg_class
    where relnamespace = any ('{net,pgnet}'::regnamespace[]) and relkind in ('r', 'v')
) o (name)
group by name having count(*) > 1;

-- A function that inserts cannot run in a parallel worker, and a NULL url is an error: neither
-- PARALLEL SAFE nor STRICT.
select proname, provolatile, proparallel, proisstrict, prosecdef
from pg_proc
where pronamespace = any ('{net,pgnet}'::regnamespace[])
    and proname in ('http_get', 'http_post', 'http_delete', 'fetch', 'check_request', 'wake', 'cancel')
order by proname collate "C";

-- No function that writes, waits or runs Python against the server is labelled PARALLEL SAFE.
select oid::regprocedure from pg_proc
where pronamespace = any ('{net,pgnet}'::regnamespace[]) and provolatile = 'v' and proparallel <> 'u';

-- A function with the owner's rights has a search_path of its own, which ends in pg_temp.
select oid::regprocedure from pg_proc
where pronamespace = any ('{net,pgnet}'::regnamespace[]) and prosecdef
    and not coalesce('search_path=pg_catalog, pg_temp' = any (proconfig), false);

-- The order of columns.
select attrelid::regclass as relation, attname, format_type(atttypid, atttypmod) as type
from pg_attribute
where attrelid in ('net.http_request_queue'::regclass, 'net._http_response'::regclass)
    and attnum between 1 and case attrelid when 'net._http_response'::regclass then 8 else 6 end
order by attrelid::regclass::text collate "C" desc, attnum;

select t.typname, a.attname, format_type(a.atttypid, a.atttypmod) as type
from pg_type t join pg_attribute a on a.attrelid = t.typrelid
where t.typnamespace = 'net'::regnamespace and t.typname in ('http_response', 'http_response_result', 'outcome')
order by t.typname collate "C", a.attnum;

select enum_range(null::net.request_status);
select enum_range(null::net.request_state);
select 'token!#$%&''*+-.^_`|~09AZ'::net.http_method;
select 'two words'::net.http_method;
