-- A GET. The call only queues it, and gives its id at once. A worker sends it once the transaction
-- has committed.
select net.http_get(:'url' || '/hello', params => '{"name": "world"}') as hello \gset
select state, status_code, content::jsonb ->> 'path' as the_server_saw from net.wait(:hello);

-- A POST, in one transaction with the row it tells about: both happen, or neither.
create table payments (id bigint generated always as identity, item text, amount int);
begin;
insert into payments (item, amount) values ('tea', 3);
select net.http_post(:'url' || '/payments', body => '{"item": "tea", "amount": 3}') as payment \gset
commit;
select state, status_code, content::jsonb ->> 'body' as the_server_saw from net.wait(:payment);

-- The same, rolled back: this request is never sent.
begin;
insert into payments (item, amount) values ('gold', 1000000);
select net.http_post(:'url' || '/payments', body => '{"item": "gold", "amount": 1000000}') is not null as queued;
rollback;

-- A trigger that posts each new row.
create table orders (id bigint generated always as identity, item text);
create function announce_order() returns trigger language plpgsql as $$
begin
    perform net.http_post(tg_argv[0], body => to_jsonb(new));
    return null;
end
$$;
\set orders_url :url /orders
create trigger announce after insert on orders
    for each row execute function announce_order(:'orders_url');

insert into orders (item) values ('bread'), ('butter');
select state, status_code, content::jsonb ->> 'body' as the_server_saw
from net.wait_all((select array_agg(id) from net.requests where url = :'orders_url'));

-- Every request and its outcome. The one that was rolled back is not there.
select id, method, url, state from net.requests order by id;

-- And what the server itself has on record.
\! cat "$RECORD"

-- Is all well?
select item, ok, detail from net.check();
