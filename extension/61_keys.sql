-- Ordering keys for callers: which ones are blocked, and the ways out. 49_gates.sql is what workers
-- do about it.

-- A key is blocked from the commit on in which its head is recorded as failed: until open_gates has
-- seen the hint, the hint stands for the block. It is not blocked any more from the commit of
-- net.unblock or net.retry on.
create view pgnet.key_block with (security_invoker) as
    select t.*
    from (
        select b.requested_by, b.ordering_key, b.head, b.state, b.status_code, b.error_msg, b.since
        from pgnet.blocked_key b
        union all
        select e.requested_by, e.ordering_key, e.request_id, e.state, e.status_code, e.error_msg, e.noted
        from pgnet.ended_request e
        where e.blocks
            and not exists (
                select from pgnet.blocked_key b
                where b.requested_by operator(pg_catalog.=) e.requested_by and b.ordering_key operator(pg_catalog.=) e.ordering_key)
    ) t
    where not exists (
        select from pgnet.ended_request u
        where (u.unblocks or u.retry_id is not null)
            and u.requested_by operator(pg_catalog.=) t.requested_by and u.request_id operator(pg_catalog.=) t.head);
comment on view pgnet.key_block is
    'The keys that are blocked, and their heads. net.blocked_keys shows more.';

create function pgnet.requests_behind(requested_by regrole, ordering_key text)
    returns integer
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
    select count(*)::integer
    from (
        select f.request_id from pgnet.flow f
        where f.requested_by = requests_behind.requested_by and f.ordering_key = requests_behind.ordering_key and f.ordering_key is not null
        limit 10000
    ) f
$$;
comment on function pgnet.requests_behind(regrole, text) is
    'How many requests of a key wait; of more than 10,000 it counts 10,000.';

create view net.blocked_keys with (security_invoker) as
    select b.ordering_key as key, b.head, b.state, b.status_code, b.error_msg,
        pgnet.requests_behind(b.requested_by, b.ordering_key) as waiting, b.since, b.requested_by
    from pgnet.key_block b;
comment on view net.blocked_keys is
    'Ordering keys whose head has failed, so that no request of the key is sent: the head''s id and '
    'its error, how many requests wait behind it (exact up to 10,000), since when. The ways out: '
    'net.retry(head), net.cancel(head), net.unblock(key). A role sees its own.';

create function pgnet.unblock_head(
    -- the id of a failed request
    head bigint
)
    -- whether it blocked a key
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    blocked record;
begin
    select b.requested_by, b.ordering_key into blocked
    from pgnet.key_block b
    where b.head = unblock_head.head and (b.requested_by = pgnet.caller_role() or pgnet.caller_is_owner());
    if not found then
        return false;
    end if;
    if blocked.requested_by = pgnet.caller_role() then
        insert into pgnet.ended_request (request_id, ordering_key, unblocks) values (head, blocked.ordering_key, true);
    else
        -- The right to say whose request it is the owner has alone.
        insert into pgnet.ended_request (request_id, requested_by, ordering_key, unblocks)
        values (head, blocked.requested_by, blocked.ordering_key, true);
    end if;
    raise notice 'key "%" is not blocked any more by request %; requests that waited behind it, and are sent one after the other: %',
        blocked.ordering_key, head, pgnet.requests_behind(blocked.requested_by, blocked.ordering_key);
    perform net.wake();
    return true;
end
$$;
comment on function pgnet.unblock_head(bigint) is
    'Has workers unblock the key that a failed request of the caller blocks, or of any role where '
    'the caller is the owner; a NOTICE says how many requests that lets run.';

create function net.unblock(
    -- the ordering key, as net.blocked_keys shows it
    key text
)
    -- whether it was blocked
    returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    failed_head bigint;
    unblocked boolean := false;
begin
    for failed_head in
        select b.head from pgnet.key_block b
        where b.ordering_key = key collate "C" and (b.requested_by = pgnet.caller_role() or pgnet.caller_is_owner()
            -- The owner's own key, where the owner has blocked it, and no other role's.
            and not exists (
                select from pgnet.key_block o where o.ordering_key = key collate "C" and o.requested_by = pgnet.caller_role()))
    loop
        unblocked := pgnet.unblock_head(failed_head) or unblocked;
    end loop;
    return unblocked;
end
$$;
comment on function net.unblock(text) is
    'Lets the requests run that wait behind the failed head of this ordering key, and true; the '
    'head is not sent again. A NOTICE says how many they are. False where the key is not blocked. '
    'The owner, where no request of its own blocks the key, unblocks it for all roles. NULL gives '
    'false.';

create function pgnet.hint_retries(
    -- requests that were sent again, of the caller, or of any role where the caller is the owner
    ids bigint[]
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
begin
    if pgnet.caller_is_owner() then
        -- The right to say whose request it is the owner has alone.
        insert into pgnet.ended_request (request_id, requested_by, ordering_key, retry_id)
        select b.head, b.requested_by, b.ordering_key, q.id
        from net.http_request_queue q
        join pgnet.key_block b on b.head = q.retry_of and b.requested_by = q.requested_by
        where q.id = any (ids);
    else
        insert into pgnet.ended_request (request_id, ordering_key, retry_id)
        select b.head, b.ordering_key, q.id
        from net.http_request_queue q
        join pgnet.key_block b on b.head = q.retry_of and b.requested_by = q.requested_by
        where q.id = any (ids) and q.requested_by = pgnet.caller_role();
    end if;
end
$$;
comment on function pgnet.hint_retries(bigint[]) is
    'Hints for workers that requests go first in keys which the requests that they repeat block.';

create function pgnet.announce_retry(
    -- a request that failed, and the one that net.retry has made of it
    head bigint, retry_id bigint
)
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    blocked record;
begin
    select e.requested_by, e.ordering_key into blocked
    from pgnet.ended_request e where e.request_id = announce_retry.head and e.retry_id = announce_retry.retry_id;
    if found then
        raise notice 'request % goes first in key "%", which request % blocked; requests that wait behind it: %',
            retry_id, blocked.ordering_key, head, pgnet.requests_behind(blocked.requested_by, blocked.ordering_key) - 1;
    end if;
end
$$;
comment on function pgnet.announce_retry(bigint, bigint) is
    'Where the failed request blocks a key, a NOTICE says how many requests the retry lets run.';
