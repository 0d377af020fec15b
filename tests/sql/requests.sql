-- Calls as a user types them, and what they queue. No worker runs.
\set SHOW_CONTEXT never
select net.http_get('http://localhost:8080/path');
select net.http_get('HTTP://LocalHost', '{"a": "x y", "b": null, "c": 1}', '{"X-Test": "yes"}', 2500);
select net.http_get(url := 'http://localhost/?a=1#part', params := '{"b": "ä&"}', headers := null);
select net.http_post('http://localhost/hook', '{"id": 1}');
select net.http_post('http://localhost/hook', body := null, headers := '{"Authorization": "Bearer x"}');
select net.http_delete('http://localhost/thing', '{"id": "7"}');
select net.http_delete('http://localhost/thing', body := '{"id": 7}');
select id, method, url, headers, convert_from(body, 'UTF8') as body, timeout_milliseconds
from net.http_request_queue order by id;

select id, state, method, url, attempts, age >= '0' as has_age from net.requests where id < 3 order by id;

-- A request that cannot be sent fails in the call.
\set VERBOSITY default
select net.http_get(null);
\echo :LAST_ERROR_SQLSTATE
select net.http_get('localhost:6666');
\echo :LAST_ERROR_SQLSTATE
select net.http_get('mailto:x');
select net.http_get('ftp://localhost/');
select net.http_get('/malformed_url');
select net.http_get('http://user:secret@localhost/');
select net.http_get('http://localhost/a b');
select net.http_get('http://localhost/', params => '[1]');
select net.http_get('http://localhost/', headers => '{"Host": "other"}');
select net.http_get('http://localhost/', headers => '{"Two Words": "x"}');
select net.http_get('http://localhost/', headers => '{"X-Test": "a\nb"}');
select net.http_get('http://localhost/', timeout_milliseconds => 0);
select net.http_post('http://localhost/', headers => '{"Content-Type": "text/plain"}');
\echo :LAST_ERROR_SQLSTATE
call net.fetch(null, 'http://localhost/');
\echo :LAST_ERROR_SQLSTATE
call net.fetch('CONNECT', 'http://localhost/');
\echo :LAST_ERROR_SQLSTATE

-- A request that was rolled back was never made; its number is not used again.
begin;
select net.http_get('http://localhost/never');
rollback;
select net.http_get('http://localhost/after');
select count(*) from net.http_request_queue where url like '%/never';

-- Results.
select * from net.http_get_result(1);
select * from net.http_get_result(1000000);
select * from net.http_get_result(null);
begin;
select net.http_get('http://localhost/mine') as id \gset
select net.http_get_result(:id, async := false);
\echo :LAST_ERROR_SQLSTATE
rollback;
begin isolation level repeatable read;
select net.wait(1);
\echo :LAST_ERROR_SQLSTATE
rollback;
\set VERBOSITY terse
select net.wait(1000000);
\set VERBOSITY default
\echo :LAST_ERROR_SQLSTATE
select (net.wait(1, '0 s')).*;
select id, state from net.wait_all('{1,2}', '1 ms');
select net._await_response(1000000);

-- Cancelled, forgotten: at once to whoever looks, and done by the next worker.
select net.cancel(1), net.cancel(1), net.cancel(1000000);
select status, message, response from net.http_get_result(1);
select state, error_msg from net.wait(1);
select net.forget(2), net.forget(2), net.forget(1000000);
select * from net.http_get_result(2);
call net.drain();
select status_code, content_type, headers, content, timed_out, error_msg, state, attempts
from net._http_response where id = 1 \gx
select status, message, response from net.http_get_result(1);
select * from net.http_get_result(2);
select count(*) from pgnet.mark;

-- An answer, as a worker records it.
insert into net._http_response (
    id, status_code, content_type, headers, content, timed_out, state, attempts, method, url, requested_by, requested)
values (2, 201, 'application/json; charset=utf-8', '{"X-Test": "yes"}', '{"ok": true}', false, 'succeeded', 1, 'POST',
    'http://localhost/', (select quote_ident(current_user)::regrole), now());
select * from net.http_get_result(2);
select (net.http_collect_response(2)).response.body;
select status, (response).status_code, (response).headers ->> 'X-Test' as test, (response).body
from net._http_collect_response(request_id := 2, async := false);
select net._await_response(2);
select state, status_code, content_json, content_json -> 'ok' as ok, took is not null as took from net.responses where id = 2;
select (net.wait(2)).*;

-- A worker in this session: the guard refuses what is not public, and says how to allow it.
delete from net.http_request_queue;
select net.http_get('http://127.0.0.1:1025/') as id \gset
call net.drain();
select status, message, response from net.http_get_result(:id);
select method, error_msg from net.failures where id = :id;
begin;
call net.drain();
\echo :LAST_ERROR_SQLSTATE
rollback;

select net._urlencode_string('a b&c=ä/~-._');
select net._urlencode_string(null) is null;
select net._encode_url_with_params_array('http://localhost', array['a=b', 'c=%20']);
select net._encode_url_with_params_array('http://localhost/?x=1', '{}');
select net._encode_url_with_params_array('localhost', array['a=b']);
\echo :LAST_ERROR_SQLSTATE
select net.check_worker_is_up();
\echo :LAST_ERROR_SQLSTATE
select net.wake();
select net.worker_restart();
