-- A trigger that posts each new row, with a token that the one who inserts must not see.
-- Run it as the owner of the schema. Needs the extension pgnet; set the URL first:  psql -v url=https://example.com/orders

create schema if not exists shop;

create table shop.orders (
    id bigint generated always as identity primary key,
    item text not null,
    amount integer not null
);

-- Only the owner reads this table.
create table shop.token (
    name text primary key,
    value text not null
);
insert into shop.token values ('orders', 'change-me');

-- SECURITY DEFINER: the request belongs to the owner of this function. Who inserts the row sees neither the request, which
-- holds the token, nor its response. Without it the request belongs to who inserts, who then needs the token.
create function shop.announce_order()
    returns trigger
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform net.http_post(
        tg_argv[0],
        body => jsonb_build_object('event', lower(tg_op), 'order', to_jsonb(new)),
        headers => jsonb_build_object(
            'Content-Type', 'application/json',
            'Authorization', 'Bearer ' || (select value from shop.token where name = 'orders')),
        timeout_milliseconds => 5000);
    return null;
end
$$;

create trigger announce
    after insert on shop.orders
    for each row
    execute function shop.announce_order(:'url');

-- What has been announced so far, as the owner:
--   select id, state, status_code, error_msg from net.requests where url = '...' order by id;
