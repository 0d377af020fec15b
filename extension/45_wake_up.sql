-- Waking workers, and those who wait for a request to end: a datagram after the commit, sent by the
-- committing backend to a socket under the data directory.

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

-- ---- those who wait for a request to end

create function pgnet.tell_waiters(
    -- requests that the running transaction has ended; NULL means none
    ids bigint[]
)
    returns void
    language plpython3u volatile parallel unsafe
as $$
from pgnet import sql_v1
sql_v1.note_ends(plpy, ids)
$$;
comment on function pgnet.tell_waiters(bigint[]) is
    'Has the commit of this transaction tell those who wait for these requests that they have '
    'ended.';

-- Whatever ends requests calls this, in a worker's session.
create function pgnet.tell_of_ends(
    -- requests that have an outcome by the running transaction; NULL means none
    ids bigint[]
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgnet.tell_waiters(ids);
    if exists (select from pgnet.setting s where s.name = 'notify_outcomes' and s.value = 'on')
        and ids <> '{}'
        -- A session that listens and never reads fills the queue. No outcome fails for that.
        and pg_notification_queue_usage() < 0.5
    then
        perform pg_notify('pgnet_outcomes', (
            case when cardinality(ids) <= 300 then jsonb_build_object('count', cardinality(ids), 'ids', ids)
            -- A payload has less than 8,000 bytes.
            else jsonb_build_object('count', cardinality(ids)) end)::text);
    end if;
end
$$;
comment on function pgnet.tell_of_ends(bigint[]) is
    'Tells, at the commit, those who wait for these requests; and by the setting notify_outcomes '
    'all who listen to the channel pgnet_outcomes.';

-- Any role may call it, as it may call net.wake: whoever waits looks once more, and goes on.
create function pgnet.tell_waiter(
    -- a request that the running transaction has cancelled or forgotten; NULL: none
    request_id bigint
)
    returns void
    language plpython3u volatile parallel unsafe
as $$
from pgnet import sql_v1
sql_v1.note_ends(plpy, None if request_id is None else [request_id])
$$;
comment on function pgnet.tell_waiter(bigint) is
    'Has the commit of this transaction tell those who wait for this request to look at it. NULL '
    'tells nobody.';

create function pgnet.await_end(
    request_id bigint,
    -- how long at most, in seconds
    timeout double precision
)
    -- false: an end cannot be told here, and the caller has to look by itself
    returns boolean
    language plpython3u volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
from pgnet import sql_v1
return sql_v1.await_end(plpy, request_id, timeout)
$$;
comment on function pgnet.await_end(bigint, double precision) is
    'Waits until a request of the caller may have ended, for at most timeout seconds. The first '
    'call of a transaction for a request only begins to listen, and returns at once: what ended '
    'before is seen by one more look. False where commits cannot tell of an end: the setting '
    'wake_up is poll, the server is a standby.';
