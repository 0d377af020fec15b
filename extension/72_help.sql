-- Help: what people call and read, by topic. The one list of it stands here, with an example each;
-- what each does is its COMMENT.

create function pgnet.help_entries()
    returns table (topic text, name text, example text)
    language sql immutable parallel safe cost 10 rows 60
    set search_path = pg_catalog, pg_temp
as $$
    values
        ('requests', 'http_get', 'select net.http_get(''https://example.com/'');'),
        ('requests', 'http_post', 'select net.http_post(''https://example.com/'', ''{"name": "value"}'');'),
        ('requests', 'http_delete', 'select net.http_delete(''https://example.com/1'');'),
        ('requests', 'http_put', 'select net.http_put(''https://example.com/1'', ''{"name": "value"}'');'),
        ('requests', 'http_patch', 'select net.http_patch(''https://example.com/1'', ''{"name": "value"}'');'),
        ('requests', 'http_head', 'select net.http_head(''https://example.com/'');'),
        ('requests', 'http_request', 'select net.http_request(''POST'', ''https://example.com/'', body_text => ''hello'', retry => ''safe'');'),
        ('requests', 'multipart', 'select m.* from net.multipart(''[{"name": "note", "value": "hello"}]'') m;'),
        ('requests', 'requests', 'select id, state, url, error_msg from net.requests order by id desc limit 10;'),
        ('requests', 'explain', 'select * from net.explain(1);'),
        ('requests', 'attempts', 'select * from net.attempts where request_id = 1;'),
        ('requests', 'callbacks', 'select id, callback, state, attempts, error_msg from net.callbacks order by made desc limit 10;'),
        ('requests', 'on_all_done', 'create function all_done(o net.outcome[]) returns void language sql as ''''; select net.on_all_done(''{}'', ''all_done'');'),
        ('requests', 'run_callback', 'select net.run_callback(1);'),
        ('requests', 'cancel', 'select net.cancel(1);'),
        ('requests', 'cancel_where', 'select net.cancel_where(''{"host": "api.example.com", "older_than": "1 hour"}'', dry_run => true);'),
        ('requests', 'forget', 'select net.forget(1);'),
        ('requests', 'wake', 'select net.wake();'),
        ('responses', 'responses', 'select id, status_code, content_json, took from net.responses order by id desc limit 10;'),
        ('responses', 'wait', 'select status_code, content from net.wait(1, timeout => ''5 s'');'),
        ('responses', 'wait_all', 'select id, state, status_code from net.wait_all(array[1, 2]);'),
        ('responses', 'fetch', 'call net.fetch(''GET'', ''https://example.com/'');'),
        ('responses', 'http_get_result', 'select (net.http_get_result(1)).message;'),
        ('responses', 'http_collect_response', 'select (net.http_collect_response(1)).message;'),
        ('tests', 'stub', 'select net.stub(''https://example.com/*'', 200, ''{"ok": true}'');'),
        ('tests', 'unstub', 'select net.unstub();'),
        ('tests', 'stubs', 'select * from net.stubs;'),
        ('tests', 'recorded', 'select method, url, body_json from net.recorded order by id;'),
        ('failures', 'failures', 'select id, url, status_code, error_msg from net.failures order by id desc limit 10;'),
        ('failures', 'retry', 'select net.retry(id) from net.failures where status_code = 503;'),
        ('failures', 'retry_where', 'select net.retry_where(''{"host": "api.example.com", "newer_than": "1 hour"}'', dry_run => true);'),
        ('failures', 'blocked_keys', 'select key, head, error_msg, waiting, since from net.blocked_keys;'),
        ('failures', 'unblock', 'select net.unblock(''invoice 17'');'),
        ('failures', 'retry_policies', 'select * from net.retry_policies;'),
        ('failures', 'configure_retry', 'select net.configure_retry(''patient'', ''{"max_attempts": 10}'');'),
        ('webhooks', 'create_webhook', 'create table orders (id bigint primary key); select net.create_webhook(''orders'', ''orders'', ''https://example.com/hook'');'),
        ('webhooks', 'webhooks', 'select name, enabled, sent, failed, waiting, last_error, fault from net.webhooks;'),
        ('webhooks', 'webhook_deliveries', 'select * from net.webhook_deliveries where webhook = ''orders'' order by request_id desc limit 10;'),
        ('webhooks', 'test_webhook', 'call net.test_webhook(''orders'');'),
        ('webhooks', 'disable_webhook', 'select net.disable_webhook(''orders'', ''the shop moves'');'),
        ('webhooks', 'enable_webhook', 'select net.enable_webhook(''orders'', with_missed => true);'),
        ('webhooks', 'replay_webhook', 'select net.replay_webhook(''orders'', since => now() - interval ''1 day'');'),
        ('webhooks', 'backfill_webhook', 'select net.backfill_webhook(''orders'', batch => 100, rate => ''50/second'');'),
        ('webhooks', 'set_endpoint', 'select net.set_endpoint(''shop'', ''https://example.com/hook'');'),
        ('webhooks', 'drop_endpoint', 'select net.drop_endpoint(''shop'');'),
        ('webhooks', 'endpoints', 'select name, url from net.endpoints;'),
        ('webhooks', 'drop_webhook', 'select net.drop_webhook(''orders'');'),
        ('webhooks', 'webhook', 'create temp table orders (id bigint); create trigger order_hook after insert on orders for each row execute function net.webhook(''https://example.com/orders'');'),
        ('workers', 'work', 'call net.work();'),
        ('workers', 'drain', 'call net.drain();'),
        ('workers', 'run_callbacks', 'call net.run_callbacks();'),
        ('workers', 'schedule_worker', 'select net.schedule_worker();'),
        ('workers', 'unschedule_worker', 'select net.unschedule_worker();'),
        ('workers', 'grant_worker', 'select net.grant_worker(''worker_role'');'),
        ('workers', 'revoke_worker', 'select net.revoke_worker(''worker_role'');'),
        ('workers', 'workers', 'select * from net.workers;'),
        ('workers', 'stats', 'select * from net.stats;'),
        ('workers', 'worker_restart', 'select net.worker_restart();'),
        ('workers', 'check_worker_is_up', 'select net.check_worker_is_up();'),
        ('workers', 'wait_until_running', 'select net.wait_until_running();'),
        ('egress', 'egress', 'select * from net.egress;'),
        ('egress', 'allow_network', 'select net.allow_network(''10.1.0.0/16'');'),
        ('egress', 'deny_network', 'select net.deny_network(''10.1.2.0/24'');'),
        ('egress', 'forget_network', 'select net.forget_network(''10.1.0.0/16'');'),
        ('egress', 'allow_host', 'select net.allow_host(''*.example.com'');'),
        ('egress', 'deny_host', 'select net.deny_host(''intern.example.com'');'),
        ('egress', 'forget_host', 'select net.forget_host(''*.example.com'');'),
        ('hosts', 'hosts', 'select * from net.hosts;'),
        ('hosts', 'host_events', 'select * from net.host_events order by happened desc limit 20;'),
        ('hosts', 'configure_host', 'select net.configure_host(''api.example.com'', ''{"http_version": "1.1"}'');'),
        ('hosts', 'pause', 'select net.pause(''api.example.com'', ''maintenance until noon'');'),
        ('hosts', 'resume', 'select net.resume(''api.example.com'');'),
        ('secrets', 'secrets', 'select * from net.secrets;'),
        ('secrets', 'set_secret', 'select net.set_secret(''key'', ''the secret value'', ''https://example.com/api/'');'),
        ('secrets', 'grant_secret', 'select net.grant_secret(''key'', ''app_role'');'),
        ('secrets', 'revoke_secret', 'select net.revoke_secret(''key'', ''app_role'');'),
        ('secrets', 'drop_secret', 'select net.drop_secret(''key'');'),
        ('secrets', 'secret_url', 'select net.http_get(net.secret_url(''hook''));'),
        ('settings', 'settings', 'select name, value, unit, description from net.settings;'),
        ('settings', 'configure', 'select net.configure(''ttl'', ''1 day'');'),
        ('upkeep', 'check', 'select * from net.check() where not ok;'),
        ('upkeep', 'adopt_database', 'select net.adopt_database();'),
        ('upkeep', 'help', 'select name, example from net.help(''requests'');')
$$;
comment on function pgnet.help_entries() is
    'The entries of net.help: the topic of each public function and view, and an example.';

create type pgnet.help_row as (
    topic text,
    name text,
    -- NULL for a view
    arguments text,
    description text,
    example text
);
comment on type pgnet.help_row is 'A row of net.help().';

create function net.help(
    -- requests, responses, tests, failures, webhooks, workers, egress, hosts, secrets, settings or
    -- upkeep; NULL: all
    topic text default null
)
    returns setof pgnet.help_row
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if topic is not null and not exists (select from pgnet.help_entries() e where e.topic = help.topic) then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('there is no topic "%s"', left(topic, 60)),
            hint = 'known: ' || (
                select string_agg(t.topic, ', ' order by t.place)
                from (
                    select e.topic, min(e.place) as place
                    from pgnet.help_entries() with ordinality e (topic, name, example, place) group by e.topic
                ) t);
    end if;
    return query
    select e.topic, 'net.' || e.name, pg_get_function_arguments(p.oid),
        coalesce(obj_description(p.oid, 'pg_proc'), obj_description(c.oid, 'pg_class')), e.example
    from pgnet.help_entries() with ordinality e (topic, name, example, place)
    left join pg_proc p on p.pronamespace = to_regnamespace('net') and p.proname = e.name
    left join pg_class c on c.relnamespace = to_regnamespace('net') and c.relname = e.name and c.relkind = 'v'
    where e.topic = coalesce(help.topic, e.topic)
    order by e.place;
end
$$;
comment on function net.help(text) is
    'What there is to call and to read, by topic, with an example each. Raises 22023 for a topic '
    'that does not exist.';
