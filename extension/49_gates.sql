-- Gates: requests that wait for other requests, those of the same ordering key or those that they
-- come after.

create function pgnet.open_gates()
    -- seconds until it is to be called again; NULL where nothing waits for it
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    return null;
end
$$;
comment on function pgnet.open_gates() is
    'Lets requests go on for which nothing is left to wait for.';
