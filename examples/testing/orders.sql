-- The application: an order charges a card when it is placed.
create table orders (
    id bigint generated always as identity primary key,
    amount integer not null,
    charge bigint
);

select net.configure_retry('charge', '{"max_attempts": 4, "backoff_milliseconds": 1000, "methods": "any"}');

create function charge_order() returns trigger
language plpgsql as $$
begin
    new.charge := net.http_request(
        'POST', 'https://payments.example/charges',
        body => jsonb_build_object('order', new.id, 'amount', new.amount),
        retry => 'charge',
        options => jsonb_build_object('idempotency_key', 'order-' || new.id));
    return new;
end
$$;

create trigger charge_order before insert on orders for each row execute function charge_order();
