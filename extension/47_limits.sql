-- Limits of hosts: how many requests may be in flight at once, and how many may begin in a time.

create table pgnet.host_budget (
    host text primary key
);
comment on table pgnet.host_budget is
    'The limits of a host, and what is left of its rate. A claim locks the row, so that the limits '
    'hold for all workers together.';

create function pgnet.host_room(host text)
    -- NULL: the host has no limit
    returns integer
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    select null::integer
$$;
comment on function pgnet.host_room(text) is
    'How many requests a claim may take for a host, whose budget is locked then. 0 where another '
    'worker has locked the budget.';

create function pgnet.send_within(host text)
    -- seconds; NULL: the host has no rate
    returns double precision
    language sql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    select null::double precision
$$;
comment on function pgnet.send_within(text) is
    'How long after its claim a request may be handed to the wire, so that the rate of its host '
    'holds there.';

create function pgnet.spend_tokens(ids bigint[])
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    null;
end
$$;
comment on function pgnet.spend_tokens(bigint[]) is
    'Takes what was claimed from the budgets of its hosts, which this transaction has locked.';

create function pgnet.room_in(hosts text[])
    -- seconds; NULL where no host has to wait for a time
    returns double precision
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    select null::double precision
$$;
comment on function pgnet.room_in(text[]) is
    'After how many seconds one of these hosts, which had no room, has some again.';
