-- Nothing of this test reaches the network, and nothing of it waits.
\set QUIET on
\set ON_ERROR_STOP on
set client_min_messages = warning;
select net.configure('mode', 'record') \g /dev/null
select net.configure_retry('charge', '{"max_attempts": 4, "backoff_milliseconds": 1, "methods": "any"}') \g /dev/null
select net.unstub() \g /dev/null
select net.forget(id) from net.recorded \g /dev/null
call net.drain();
select plan(7);

begin;
insert into orders (amount) values (500);
rollback;
call net.drain();
select is_empty('select * from net.recorded', 'a rolled back order charges nobody');

select net.stub('POST https://payments.example/*', 201, '{"id": "ch_1"}') \g /dev/null
insert into orders (amount) values (1200) returning id as order_id, charge as charge_id \gset
call net.drain();
select results_eq(
    $$ select body_json - 'order' from net.recorded where url = 'https://payments.example/charges' $$,
    $$ values ('{"amount": 1200}'::jsonb) $$,
    'the card is charged once, with the amount of the order');
select is(
    (select options ->> 'idempotency_key' from net.recorded where id = :'charge_id'),
    'order-' || :'order_id',
    'under a key that keeps it from being charged twice');
select is(
    (select content_json ->> 'id' from net.responses where id = :'charge_id'),
    'ch_1',
    'what the service said can be read');

select net.unstub() \g /dev/null
select net.stub('https://payments.example/*', null, times => 1) \g /dev/null
select net.stub('https://payments.example/*', 503) \g /dev/null
insert into orders (amount) values (900) returning charge as charge_id \gset
call net.drain();
select results_eq(
    format('select status_code from net.recorded where id = %s order by attempt', :'charge_id'),
    'values (null::integer), (503), (503), (503)',
    'it is tried again when the service does not answer');
select is(
    (select state::text from net.failures where id = :'charge_id'),
    'failed',
    'and given up after four attempts');

select is_empty(
    $$ select url from net.recorded where url not like 'https://payments.example/%' $$,
    'nothing was sent to anybody else');
select * from finish();
select net.unstub() \g /dev/null
