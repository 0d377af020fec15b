-- Installed; nothing is sent before a worker runs, so say so where it is seen.
do $$
begin
    -- CREATE EXTENSION holds back messages below a warning; its end undoes this. A session that
    -- wants errors only has set so.
    if pg_catalog.current_setting('client_min_messages') operator(pg_catalog.=) 'warning' then
        perform pg_catalog.set_config('client_min_messages', 'notice', true);
    end if;
    raise notice using
        message = 'pgnet is installed; requests are sent once a worker runs',
        hint = pgnet.how_to_start_a_worker() operator(pg_catalog.||) ' Then select * from net.check();';
end
$$;

-- A worker that has lived through DROP EXTENSION registers again.
do $$
begin
    perform pgnet.signal_workers('reload');
exception when others then
    null; -- where the package is not installed, no worker of this server can be signalled
end
$$;
