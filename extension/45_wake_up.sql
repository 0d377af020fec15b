-- Waking workers: a datagram after the commit, sent by the committing backend to a socket under the
-- data directory.

create function pgnet.arm_wake_up(signal text)
    returns text
    language plpython3u volatile parallel unsafe
as $$
from pgnet import sql_v1
return sql_v1.arm(plpy, signal)
$$;
comment on function pgnet.arm_wake_up(text) is
    'Has the commit of this transaction send a signal to workers. Returns NULL, or why the commit '
    'callback cannot be registered here.';

create function pgnet.signal_workers(signal text)
    returns void
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$ select pgnet.arm_wake_up(signal) $$;
comment on function pgnet.signal_workers(text) is
    'Tells all workers, at the commit, to read their settings again.';

create function net.wake()
    returns void
    language plpython3u volatile parallel unsafe
as $$
from pgnet import sql_v1
sql_v1.arm(plpy, "wake")
$$;
comment on function net.wake() is
    'Wakes a worker when this transaction commits: for requests that were inserted into '
    'net.http_request_queue by hand. net.http_get and the other functions that make requests wake '
    'workers themselves.';

create function pgnet.wake_next_worker(slot integer)
    returns void
    language plpython3u volatile parallel unsafe
as $$
from pgnet import sql_v1
plpy.execute("select pgnet.require_worker()")
sql_v1.wake_next(slot)
$$;
comment on function pgnet.wake_next_worker(integer) is
    'A worker that has more than it takes wakes the next one, behind its own slot.';

create function pgnet.wake_up_fault()
    returns text
    language plpython3u volatile parallel unsafe
as $$
from pgnet import sql_v1
plpy.execute("select pgnet.require_worker()")
return sql_v1.wake_up_fault(plpy)
$$;
comment on function pgnet.wake_up_fault() is
    'Why commits on this server cannot wake a worker; NULL where they can.';

create procedure pgnet.wait_for_signals(
    -- how long at most, in seconds
    timeout double precision,
    -- what came: wake, reload, prepared, separated by spaces; empty after the timeout
    inout signals text default null,
    -- the slot this session listens on; NULL where none was free
    inout slot integer default null,
    -- whether it waits for callbacks that are due, too: then callback may come
    callbacks boolean default false
)
    language plpython3u
as $$
from pgnet import sql_v1
plpy.execute("select pgnet.require_worker()")
return sql_v1.wait(plpy, timeout, callbacks)
$$;
comment on procedure pgnet.wait_for_signals(double precision, text, integer, boolean) is
    'Waits for a commit''s wake-up on behalf of a worker process, without transaction, snapshot or '
    'lock, for at most timeout seconds.';
