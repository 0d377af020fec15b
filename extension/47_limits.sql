-- Limits of hosts: how many requests may be in flight at once, and how many may begin in a time.
--
-- Theory of operation
--
-- A host is the authority of a URL, "api.example" or "api.example:8443". Its limits are looked up
-- in pgnet.host when a worker first meets it, and kept in pgnet.host_budget until settings of hosts
-- change. A claim locks that row with SKIP LOCKED before it takes requests of the host, and keeps
-- the lock until it commits. So one claim at a time decides what a host may have. It sees whatever
-- the ones before it have taken, and waits for nobody: a claim that finds the row locked passes
-- over the host, and looks again in a moment.
--
-- Concurrency is the number of claims of the host that are marked as limited. A limit that is
-- lowered needs nothing more: there is no room until enough of them have ended. A claim of a
-- limited host must live as long as its connection may: 55_marks.sql, 56_rescue.sql and
-- 58_heartbeat.sql see to it.
--
-- The rate is a token bucket: a request takes a token when it is claimed, and a token comes back
-- each 1/rate seconds, up to a capacity. What a killed worker has taken is lost, which errs on the
-- side of the limit. A claim takes its tokens in one UPDATE, and while they are scarce it waits
-- until there is a tenth of a second's worth of them. The promise is about the server: in any time
-- t it gets at most burst + rate * t requests. Between the claim and the server lies a delay, so
-- that more requests may arrive in t than were claimed in it:
--
-- * With a limit of concurrency c, these are at most c: what is claimed and has not arrived is in
--   flight. The bucket then holds c fewer than burst, and a request may take any time to arrive.
-- * Otherwise a request is sent within a time d after its claim, or not at all (send_within). So
--   what arrives in t was claimed in t + d, and the bucket holds rate * d fewer.
-- * Where less than one token would be left, the bucket holds one, and tokens come back so slowly
--   that the promise holds: either 1/rate + d after each other, so that n requests arrive in no
--   less than (n - 1) / rate; or so that burst - 1 of them come in d.
--
-- A limit that is new has to know the claims from before it. The first claim that sees another
-- revision of these settings notes the time. When no worker's transaction is left that began
-- before it, all claims are marked as limited; those that were locked at that moment are marked
-- when their host is met. Until then a host without a limit so far stays closed, for some 20 ms.
-- Claims that began before the change still go by the limits before it.

create table pgnet.host_budget (
    host text collate "C" primary key,
    revision bigint not null,
    -- what is configured
    concurrency integer,
    rate text,
    burst integer,
    -- what follows from it: tokens that come back in a second, and how many there may be
    refill double precision,
    capacity double precision,
    send_within double precision,
    tokens double precision not null default 0,
    tokens_at timestamptz not null default pg_catalog.clock_timestamp(),
    met timestamptz not null default pg_catalog.clock_timestamp()
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
comment on table pgnet.host_budget is
    'The limits of a host, and what is left of its rate. A claim locks the row, so that the limits '
    'hold for all workers together. A row is made when a worker first meets the host, and removed '
    'when nothing waits or is in flight for it.';
comment on column pgnet.host_budget.revision is
    'Of the settings of hosts that the limits were looked up in.';
comment on column pgnet.host_budget.send_within is
    'Seconds after its claim within which a request is handed to the wire; NULL: any time.';
comment on column pgnet.host_budget.tokens is 'How many requests might have begun at tokens_at.';
comment on column pgnet.host_budget.met is
    'When it was last found that the host is in use, or when the row was made.';
create index host_budget_met on pgnet.host_budget (met);

create table pgnet.limit_change (
    revision bigint not null,
    seen timestamptz not null,
    settled boolean not null,
    rest bigint[] not null default '{}',
    single boolean primary key default true check (single)
);
comment on table pgnet.limit_change is
    'When a claim has first seen this revision of the settings of hosts; settled: all claims that were '
    'made under an earlier one count for the limits of their hosts, but for the rest, which were '
    'locked. Whoever makes a row of pgnet.host_budget locks this one.';
insert into pgnet.limit_change (revision, seen, settled) values (0, '-infinity', true);

-- From what is configured: refill, capacity, send_within.
create function pgnet.bucket(
    per_second double precision, burst integer, concurrency integer,
    out refill double precision, out capacity double precision, out send_within double precision
)
    language plpgsql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    -- Half of the burst pays for the delay. But a claim and a connection take their time.
    delay double precision := least(greatest(burst / per_second / 2, 0.1), 5);
begin
    if concurrency <= burst - 1 and (concurrency <= delay * per_second or delay * per_second > burst - 1) then
        refill := per_second;
        capacity := burst - concurrency;
    elsif delay * per_second <= burst - 1 then
        refill := per_second;
        capacity := burst - delay * per_second;
        send_within := delay;
    elsif per_second is not null then
        delay := least(0.5, greatest(0.1, 0.25 / per_second));
        capacity := greatest(1, burst / 5);
        refill := least(per_second, (burst - capacity) / delay);
        if capacity = 1 then
            refill := greatest(refill, 1 / (1 / per_second + delay));
        end if;
        send_within := delay;
    end if;
end
$$;
comment on function pgnet.bucket(double precision, integer, integer) is
    'The token bucket of a rate: what comes back in a second, what it holds, and within how many '
    'seconds after its claim a request is to be sent, so that a server gets at most burst + '
    'rate * t requests in any time t. NULL where the host has no rate.';

create function pgnet.look_up_limits(
    host text,
    out concurrency integer, out rate text, out burst integer
)
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    found record;
begin
    for found in
        select h.settings
        from unnest(pgnet.patterns_of(look_up_limits.host)) with ordinality p
        cross join lateral (select h.settings from pgnet.host h where h.pattern = p.p offset 0) h
        order by p.ordinality desc
    loop
        -- The most specific pattern comes last.
        if found.settings ? 'concurrency' then
            concurrency := case when found.settings -> 'concurrency' <> 'false' then (found.settings -> 'concurrency')::integer end;
        end if;
        if found.settings ? 'rate' then
            rate := nullif(found.settings ->> 'rate', 'false');
            burst := case when rate is not null then coalesce((found.settings -> 'burst')::integer,
                1 + ceil(pgnet.rate_per_second(rate))::integer) end;
        end if;
    end loop;
end
$$;
comment on function pgnet.look_up_limits(text) is
    'The limits that are configured for a host, the authority of a URL; NULL where it has none. A '
    'rate without a burst has one of a second''s worth and one more.';

-- Whoever makes a row of pgnet.host_budget holds the lock of pgnet.limit_change: so no two do at
-- once, and none waits for the other.
create function pgnet.settle_limits(
    host text, revision bigint,
    -- whether the caller may make rows of pgnet.host_budget
    out locked boolean,
    -- whether all claims of the host from before count
    out settled boolean
)
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = on
as $$
declare
    change record;
    earlier bigint[];
begin
    select c.* into change from pgnet.limit_change c for update skip locked;
    locked := found;
    settled := false;
    if not locked then
        return;
    elsif change.revision <> settle_limits.revision then
        update pgnet.limit_change c
        set revision = settle_limits.revision, seen = clock_timestamp(), settled = false, rest = '{}';
        return;
    elsif change.settled then
        settled := change.rest = '{}' or pgnet.mark_limited(change.rest, host) = '{}';
        return;
    end if;
    perform from pgnet.worker w
    cross join lateral pg_stat_get_activity(w.pid) a
    where w.ended is null and w.pid <> pg_backend_pid() and a.backend_start = w.backend_start and a.xact_start <= change.seen;
    if found then
        return;
    end if;
    -- From now on each claim of a host with a limit is marked as such when it is made.
    earlier := array(select c.id from pgnet.claim c where c.limited is null and c.worker is not null);
    update pgnet.limit_change c set settled = true, rest = pgnet.mark_limited(earlier, null);
    settled := pgnet.mark_limited((select c.rest from pgnet.limit_change c), host) = '{}';
end
$$;
comment on function pgnet.settle_limits(text, bigint) is
    'Has the claims from before a change of the configuration count for the limits of their hosts, '
    'once none of them is on its way any more.';

create function pgnet.mark_limited(
    ids bigint[],
    -- NULL: of any host
    host text
)
    returns bigint[]
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    update pgnet.claim c set limited = true
    where c.id = any (array(
        select o.id from pgnet.claim o
        where o.id = any (ids) and (o.host = mark_limited.host or mark_limited.host is null) and o.limited is null
        for update skip locked));
    return array(
        select c.id from pgnet.claim c
        where c.id = any (ids) and (c.host = mark_limited.host or mark_limited.host is null)
            and c.limited is null and c.worker is not null);
end
$$;
comment on function pgnet.mark_limited(bigint[], text) is
    'Has claims count for the limits of their hosts; gives those that others have locked.';

create function pgnet.tokens_now(
    refill double precision, capacity double precision, tokens double precision, tokens_at timestamptz,
    present timestamptz
)
    returns double precision
    language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    -- A clock that was put back makes no tokens, and takes none.
    select least(capacity, tokens + refill * greatest(0, date_part('epoch', present - tokens_at)))
$$;
comment on function pgnet.tokens_now(double precision, double precision, double precision, timestamptz, timestamptz) is
    'How many tokens a budget has at a time.';

-- While tokens are scarce they are taken in blocks: a claim for each of them would cost a
-- transaction each.
create function pgnet.token_block(refill double precision, capacity double precision)
    returns double precision
    language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select greatest(1, least(floor(refill / 10), floor(capacity / 2)))
$$;
comment on function pgnet.token_block(double precision, double precision) is
    'How many tokens a budget must have before a claim takes any: a tenth of a second''s worth, at '
    'least one, and at most half of what it holds.';

-- Brings the budget of a host up to date with the configuration.
create function pgnet.renew_budget(
    host text, revision bigint,
    -- whether it has a limit
    out limited boolean,
    -- whether the budget can be used now
    out usable boolean
)
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    former record;
    limits record := pgnet.look_up_limits(host);
    bucket record := pgnet.bucket(pgnet.rate_per_second(limits.rate), limits.burst, limits.concurrency);
    lock record;
    present timestamptz := clock_timestamp();
begin
    limited := limits.concurrency is not null or limits.rate is not null;
    usable := false;
    select b.* into former from pgnet.host_budget b where b.host = renew_budget.host for update skip locked;
    if former.concurrency is null and former.rate is null and not (found and not limited) then
        -- The row is new, or the host had no limit so far.
        lock := pgnet.settle_limits(host, revision);
        if not lock.locked or (limited and not lock.settled) then
            return;
        end if;
    end if;
    if former.host is null then
        insert into pgnet.host_budget as b (host, revision, concurrency, rate, burst, refill, capacity, send_within, tokens, tokens_at)
        values (renew_budget.host, renew_budget.revision, limits.concurrency, limits.rate, limits.burst,
            bucket.refill, bucket.capacity, bucket.send_within, coalesce(bucket.capacity, 0), present)
        on conflict on constraint host_budget_pkey do nothing;
        usable := found;
        return;
    end if;
    update pgnet.host_budget b
    set revision = renew_budget.revision, concurrency = limits.concurrency, rate = limits.rate, burst = limits.burst,
        refill = bucket.refill, capacity = bucket.capacity, send_within = bucket.send_within,
        -- What is left of a former rate; a host that had no rate begins with all of it.
        tokens = case when bucket.refill is null then 0 when former.refill is null then bucket.capacity
            else least(bucket.capacity, pgnet.tokens_now(former.refill, former.capacity, former.tokens, former.tokens_at, present)) end,
        tokens_at = present, met = present
    where b.host = renew_budget.host;
    usable := true;
end
$$;
comment on function pgnet.renew_budget(text, bigint) is
    'Makes or renews the budget of a host by the limits that are configured now, and locks it.';

-- A claim calls this for each place that it comes to. pgnet.claim_requests has set how its
-- statements are planned.
create function pgnet.host_room(host text)
    -- NULL: the host has no limit
    returns integer
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    budget record;
    configured bigint := (select f.host_revision from pgnet.configuration f);
    renewed record;
    present timestamptz := clock_timestamp();
    tokens double precision;
    room integer;
begin
    select b.* into budget from pgnet.host_budget b where b.host = host_room.host;
    if budget.revision is distinct from configured then
        renewed := pgnet.renew_budget(host, configured);
        if not renewed.limited then
            return null;
        elsif not renewed.usable then
            return 0;
        end if;
        select b.* into budget from pgnet.host_budget b where b.host = host_room.host;
    elsif budget.concurrency is null and budget.rate is null then
        return null;
    end if;
    -- At first without the lock: of most hosts without room there is no more to know.
    for pass in 1 .. 2 loop
        if pass = 2 then
            -- Each statement has a snapshot of its own: behind this one, the next ones see what the
            -- last owner of the lock has claimed.
            select b.* into budget from pgnet.host_budget b where b.host = host_room.host for update skip locked;
            if not found or budget.revision is distinct from configured then
                return 0;
            end if;
        end if;
        room := null;
        if budget.concurrency is not null then
            room := budget.concurrency - (select count(*) from pgnet.claim c where c.host = host_room.host and c.limited)::integer;
        end if;
        if budget.rate is not null then
            if present < budget.tokens_at then
                -- The clock was put back: from here on tokens come again.
                update pgnet.host_budget b set tokens_at = present
                where b.ctid = any (array(
                    select o.ctid from pgnet.host_budget o where o.host = host_room.host and o.tokens_at > present for update skip locked));
            end if;
            -- pgnet.tokens_now
            tokens := least(budget.capacity,
                budget.tokens + budget.refill * greatest(0, date_part('epoch', present - budget.tokens_at))) + 1e-9;
            room := least(room, case when tokens < greatest(1, least(floor(budget.refill / 10), floor(budget.capacity / 2))) then 0
                else floor(tokens)::integer end);
        end if;
        if room <= 0 then
            return 0;
        end if;
    end loop;
    return room;
end
$$;
comment on function pgnet.host_room(text) is
    'How many requests a claim may take for a host, whose budget is locked then. 0 where another '
    'worker has locked the budget.';

create function pgnet.spend_tokens(ids bigint[])
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
declare
    present timestamptz := clock_timestamp();
    spent jsonb;
begin
    select jsonb_object_agg(s.host, s.number) into spent
    from (
        select c.host, count(*) as number
        from pgnet.claim c where c.id = any (ids) and c.limited
        group by c.host
    ) s;
    update pgnet.host_budget b
    set tokens = pgnet.tokens_now(b.refill, b.capacity, b.tokens, b.tokens_at, present) - (spent ->> b.host)::integer, tokens_at = present
    where b.host = any (array(select jsonb_object_keys(spent))) and b.rate is not null;
end
$$;
comment on function pgnet.spend_tokens(bigint[]) is
    'Takes what was claimed from the budgets of its hosts, which this transaction has locked.';

create function pgnet.room_in(hosts text[])
    -- seconds; NULL where no host has to wait for a time
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
declare
    present timestamptz := clock_timestamp();
    configured bigint := (select f.host_revision from pgnet.configuration f);
begin
    return (
        select min(case
            -- It is not settled yet, or another worker is making the row.
            when b.revision is distinct from configured then 0.02
            when b.rate is not null and b.missing > 0 then greatest(b.missing / b.refill, 0.005)
            -- Whoever frees a slot claims the next request.
            when b.concurrency <= (
                select count(*) from pgnet.claim c where c.host = h.host and c.limited) then null
            -- Another worker has locked it.
            else 0.01 end)
        from unnest(hosts) h (host)
        left join lateral (
            select b.revision, b.rate, b.refill, b.concurrency, pgnet.token_block(b.refill, b.capacity)
                - pgnet.tokens_now(b.refill, b.capacity, b.tokens, b.tokens_at, present) as missing
            from pgnet.host_budget b where b.host = h.host offset 0
        ) b on true);
end
$$;
comment on function pgnet.room_in(text[]) is
    'After how many seconds one of these hosts, which had no room, has some again.';

create function pgnet.limits_of_host(
    host text,
    out concurrency integer, out in_flight integer, out rate text, out burst integer,
    -- when the next request may begin by the rate; NULL: now
    out next_token timestamptz
)
    language plpgsql stable parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set jit = off
as $$
declare
    limits record;
    budget record;
    present timestamptz := statement_timestamp();
    missing double precision;
begin
    limits := pgnet.look_up_limits(host);
    concurrency := limits.concurrency;
    rate := limits.rate;
    burst := limits.burst;
    in_flight := (select count(*) from pgnet.claim c where c.host = limits_of_host.host and c.limited);
    select b.* into budget from pgnet.host_budget b where b.host = limits_of_host.host;
    missing := pgnet.token_block(budget.refill, budget.capacity)
        - pgnet.tokens_now(budget.refill, budget.capacity, budget.tokens, budget.tokens_at, present);
    if rate is not null and missing > 0 then
        next_token := present + make_interval(secs => missing / budget.refill);
    end if;
end
$$;
comment on function pgnet.limits_of_host(text) is
    'The limits of a host, the authority of a URL, and how it stands to them now.';

create function pgnet.forget_budgets()
    -- seconds until more is to be done
    returns double precision
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set jit = off
as $$
declare
    present timestamptz := clock_timestamp();
    before timestamptz := present - interval '10 minutes';
    examined text[];
begin
    lock table net.http_request_queue, pgnet.claim, pgnet.host_budget in row exclusive mode nowait;
    examined := array(
        select b.host from pgnet.host_budget b
        where b.met < before or b.met > present
        order by b.met limit 1000 for update skip locked);
    delete from pgnet.host_budget b
    where b.host = any (examined)
        and (b.rate is null or pgnet.tokens_now(b.refill, b.capacity, b.tokens, b.tokens_at, present) >= b.capacity)
        and not exists (select from pgnet.claim c where c.host = b.host and c.limited offset 0)
        and (select q.id from pgnet.ready_request q where q.host = b.host collate "C" order by q.host, q.role limit 1) is null;
    update pgnet.host_budget b set met = present where b.host = any (examined);
    return case when cardinality(examined) = 1000 then 1 end;
end
$$;
comment on function pgnet.forget_budgets() is
    'Removes the budgets of hosts for which nothing waits or is in flight, 1,000 at a time. Gives '
    'the seconds until more is to be done; NULL where nothing is urgent.';
