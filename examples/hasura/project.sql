-- What a database has that Hasura works on, as far as event triggers go: the metadata, with two
-- event triggers, and the triggers that Hasura has made for them.

create schema shop;
create table shop.orders (
    id bigint generated always as identity primary key,
    item text not null,
    state text not null default 'new'
);

create schema hdb_catalog;
create table hdb_catalog.event_log (
    id text primary key default gen_random_uuid(),
    trigger_name text not null,
    payload jsonb not null
);
create function hdb_catalog.notify() returns trigger language plpgsql as $$
begin
    insert into hdb_catalog.event_log (trigger_name, payload) values (tg_argv[0], jsonb_build_object('op', tg_op, 'new', new));
    return null;
end
$$;
create trigger "notify_hasura_order_placed_INSERT" after insert on shop.orders
    for each row execute function hdb_catalog.notify('order_placed');
create trigger "notify_hasura_order_state_UPDATE" after update on shop.orders
    for each row execute function hdb_catalog.notify('order_state');

create table hdb_catalog.hdb_metadata (id integer primary key, metadata json not null, resource_version integer not null);
insert into hdb_catalog.hdb_metadata values (1, '{
    "version": 3,
    "sources": [{
        "name": "default",
        "kind": "postgres",
        "tables": [{
            "table": {"schema": "shop", "name": "orders"},
            "event_triggers": [
                {
                    "name": "order_placed",
                    "definition": {"enable_manual": true, "insert": {"columns": "*"}},
                    "retry_conf": {"num_retries": 4, "interval_sec": 10, "timeout_sec": 20},
                    "webhook_from_env": "ORDER_HOOK",
                    "headers": [
                        {"name": "x-source", "value": "shop"},
                        {"name": "x-webhook-token", "value_from_env": "HOOK_TOKEN"}
                    ]
                },
                {
                    "name": "order_state",
                    "definition": {
                        "enable_manual": false,
                        "update": {"columns": ["state"], "payload": "*"},
                        "delete": {"columns": "*"}
                    },
                    "retry_conf": {"num_retries": 0, "interval_sec": 10, "timeout_sec": 60},
                    "webhook": "{{HOOKS}}/state"
                }
            ]
        }]
    }]
}', 1);
