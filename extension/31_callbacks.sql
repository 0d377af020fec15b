-- The tables of callbacks: functions that are called when requests have ended. 64_callbacks.sql
-- says how they come here, and how they are called.

create table pgnet.callback (
    request_id bigint not null,
    requested_by regrole not null,
    request_ids bigint[],
    callback text not null,
    callback_oid oid,
    state text not null default 'waiting'
        constraint callback_state check (state operator(pg_catalog.=) any (array['waiting', 'retrying', 'done', 'failed'])),
    attempts integer not null default 0,
    due timestamptz,
    made timestamptz not null default pg_catalog.clock_timestamp(),
    token uuid,
    pid integer,
    backend_start timestamptz,
    error_msg text,
    error_code text,
    error_context text,
    ended timestamptz,
    expires timestamptz,
    outcome net.outcome,
    primary key (request_id, requested_by)
) with (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0
);
alter table pgnet.callback
    alter error_msg set statistics 0,
    alter error_context set statistics 0,
    alter outcome set statistics 0;
comment on table pgnet.callback is
    'Functions to be called, and those that were: for requests that have ended, and for sets of '
    'requests. Workers write it; a role sees its own. Its key has the role, as that of pgnet.flow.';
comment on column pgnet.callback.request_id is
    'The request; of a set the number that net.on_all_done gave, which is negative.';
comment on column pgnet.callback.request_ids is 'The requests of a set; NULL: it is a single request.';
comment on column pgnet.callback.callback_oid is
    'The number of the function. Another function that has the name by now is not called.';
comment on column pgnet.callback.state is
    'waiting: to be called. retrying: it has failed, and is called again. done: it was called, and '
    'has returned. failed: it has failed, and waits for net.run_callback.';
comment on column pgnet.callback.attempts is
    'How often it was begun, since the end of its request or the last net.run_callback.';
comment on column pgnet.callback.due is 'When it is called; NULL: it runs, or has ended.';
comment on column pgnet.callback.token is
    'Of the attempt that runs: no other one can say how it has ended.';
comment on column pgnet.callback.pid is 'The session that runs it; NULL: none does.';
comment on column pgnet.callback.outcome is
    'What the function is called with where the response is not kept any more; NULL: it is.';
create index callback_due on pgnet.callback (requested_by, due) where due is not null;
create index callback_running on pgnet.callback (requested_by) where pid is not null;
create index callback_expires on pgnet.callback (expires) where expires is not null;
create policy own_callbacks on pgnet.callback for select
    using (requested_by operator(pg_catalog.=) (select pgnet.caller_role()));

create table pgnet.callback_turn (
    role oid primary key,
    served timestamptz not null default '-infinity',
    paused_until timestamptz not null default '-infinity',
    timeouts integer not null default 0
);
comment on table pgnet.callback_turn is
    'Whose callbacks are next. The session that has the row of a role locked begins one, and no '
    'other.';
comment on column pgnet.callback_turn.served is 'When a session has last begun with callbacks of the role.';
comment on column pgnet.callback_turn.paused_until is
    'No callback of the role is called before: one has run out of its time.';
comment on column pgnet.callback_turn.timeouts is 'How many in a row have run out of their time.';

-- What a caller asks for. Its numbers are negative, so that they are no request's.
create table pgnet.callback_order (
    id bigint generated always as identity (increment by -1 start with -1) primary key,
    requested_by regrole not null default pg_catalog.quote_ident(current_user)::pg_catalog.regrole,
    request_id bigint,
    request_ids bigint[],
    callback text not null,
    callback_oid oid,
    made timestamptz not null default pg_catalog.clock_timestamp(),
    look_at timestamptz not null default pg_catalog.clock_timestamp()
);
comment on table pgnet.callback_order is
    'The orders of net.on_all_done and net.run_callback, until they are carried out. An order counts '
    'only for requests of the role that stands in it.';
comment on column pgnet.callback_order.request_id is
    'net.run_callback: whose function is to be called again; NULL: it is an order of net.on_all_done.';
comment on column pgnet.callback_order.request_ids is
    'net.on_all_done: the requests that are to end first.';
comment on column pgnet.callback_order.look_at is
    'When it is to be looked at: a set when the request has ended that pgnet.dependency names, and once '
    'a minute, since that one may have been deleted by hand.';
create index callback_order_look_at on pgnet.callback_order (requested_by, look_at);
create policy own_callback_orders on pgnet.callback_order for select
    using (requested_by operator(pg_catalog.=) (select pgnet.caller_role()));

-- As net._new_request: it shows nothing, and the role and the number are never the caller's to
-- choose.
create view net._new_callback as
    select coalesce(o.id) as id, o.request_id, o.request_ids, o.callback, o.callback_oid
    from pgnet.callback_order o
    where false;
comment on view net._new_callback is
    'What net.on_all_done and net.run_callback ask for is inserted here. The view has no rows to '
    'show.';
