-- Settings and egress rules.
\set SHOW_CONTEXT never
\set VERBOSITY default
select name, value, "default", unit from net.settings order by name collate "C";

select net.configure('timeout_milliseconds', '5000');
select net.configure(name => 'ttl', value => '1 day');
select name, value from net.settings where value <> "default" order by name collate "C";
select net.configure('ttl', null);
select net.configure('timeout_milliseconds', null);
select count(*) from pgnet.setting;

select net.configure('timeouts', '1');
\echo :LAST_ERROR_SQLSTATE
select net.configure(null, '1');
select net.configure('timeout_milliseconds', '0');
\echo :LAST_ERROR_SQLSTATE
select net.configure('timeout_milliseconds', 'soon');
select net.configure('ttl', '-1 day');
select net.configure('ttl', 'a while');
select net.configure('wake_up', 'notify');
select net.configure('egress', 'all');

select net.allow_network('loopback');
select net.deny_network('10.1/16');
select net.allow_host('*.Example.com.');
select net.deny_host('api.example.com');
select kind, pattern, verdict from net.egress order by kind, pattern collate "C";
select net.forget_network('loopback'), net.forget_network('10.1.0.0/16');
select net.forget_host('*.example.com'), net.forget_host('API.example.com');
select count(*) from net.egress;

select net.allow_network('localhost');
\echo :LAST_ERROR_SQLSTATE
select net.allow_network(null);
select net.allow_host('http://example.com/');
\echo :LAST_ERROR_SQLSTATE
select net.allow_host(null);
