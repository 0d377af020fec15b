-- No worker runs now. What is committed waits.
select net.http_post(:'url' || '/later', body => '{"patience": true}') as later \gset
select status, message from net.http_collect_response(:later);

-- pg_cron can do the sending: each minute, whatever is due. This takes up to a minute.
create extension pg_cron;
select cron.schedule('send requests', '* * * * *', 'call net.drain()');
select state, status_code, content::jsonb ->> 'body' as the_server_saw from net.wait(:later, '90 s');
select cron.unschedule('send requests');
