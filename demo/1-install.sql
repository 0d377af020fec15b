-- One statement, on a server that runs: nothing to preload, nothing to restart.
create extension pgnet cascade;

-- The inner network is closed to requests. The server of this demonstration is there, so it is
-- allowed.
select net.allow_network('loopback');
