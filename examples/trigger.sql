-- A trigger that posts each new row, with a token that the role which inserts must not see.
-- Run it as the owner of the extension pgnet, with the URL as a variable:
--   psql -v url=https://example.com/orders

create schema if not exists shop;

create table shop.orders (
    id bigint generated always as identity primary key,
    item text not null,
    amount integer not null
);

-- The token goes to this URL and to no other. Better, since this text may be logged:
--   pgnet secret set orders --url-prefix https://example.com/orders < token
select net.set_secret('orders', 'change-me', :'url');
-- Where another role owns the function below, let that role use the token:
--   select net.grant_secret('orders', 'shop_owner');

-- SECURITY DEFINER: the request belongs to the owner of this function, who may use the secret and
-- sees the response. The role that inserts the row sees neither, and cannot use the secret for
-- anything else.
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
        headers => '{"Authorization": {"secret": "orders", "prefix": "Bearer "}}',
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
