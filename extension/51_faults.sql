-- Faults: what fails in a worker's work, and the statement that cures it. pgnet.fault keeps them,
-- net.check() shows them.

-- GET STACKED DIAGNOSTICS fills it; `referrer` and `constraint_name` are the table and the
-- constraint that an error is about.
create type pgnet.error as (
    message text,
    state text,
    referrer_schema text,
    referrer text,
    constraint_name text
);
comment on type pgnet.error is
    'An error as an EXCEPTION block sees it: message, SQLSTATE, and the table and the constraint '
    'that it is about.';

create function pgnet.remedy(
    error pgnet.error,
    -- the tables whose rows are read or written
    relations regclass[] default array[
        'net.http_request_queue', 'pgnet.claim', 'pgnet.attempt', 'net._http_response', 'pgnet.failed']::pg_catalog.regclass[]
)
    returns text
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    referrer text := case when error.referrer <> '' then format('%I.%I', error.referrer_schema, error.referrer) end;
begin
    if error.state = '23503' and referrer is not null and to_regclass(referrer) <> all (relations) then
        return format(
            'Rows of %1$s refer to it. Delete these, or have them follow: alter table %1$s drop constraint %2$I; and add it again '
            'with "on delete cascade" or "on delete set null".', referrer, nullif(error.constraint_name, ''));
    elsif error.state like '23%' and referrer is not null and error.constraint_name <> '' then
        return format('alter table %s drop constraint %I;', referrer, error.constraint_name);
    end if;
    return coalesce((
        select 'Is it a trigger? ' || string_agg(
            format('alter table %s disable trigger %I;', t.tgrelid::regclass, t.tgname), ' ' order by t.tgrelid, t.tgname)
        from pg_trigger t
        where t.tgrelid = any (relations) and not t.tgisinternal and t.tgname not in ('replicated', 'refuse_truncate')),
        'The server''s log says more.');
end
$$;
comment on function pgnet.remedy(pgnet.error, regclass[]) is
    'The statement that cures an error with rows of these tables: it is about a constraint, or '
    'about a trigger.';

create function pgnet.fire_deferred()
    returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgnet.use_owners_path();
    set constraints all immediate;
end
$$;
comment on function pgnet.fire_deferred() is
    'Has constraints and triggers that are deferred do their work now, with the owner''s path: at '
    'the commit they would fail with all that was done.';

create function pgnet.note_fault(duty text, message text, hint text, brief boolean default false)
    returns void
    language sql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    insert into pgnet.fault as f (duty, retry_at, failures, message, hint, brief)
    values (duty, clock_timestamp() + interval '1 s', 1, message, hint, brief)
    on conflict on constraint fault_pkey do update
    set message = excluded.message, hint = excluded.hint, brief = excluded.brief, failures = f.failures + 1,
        retry_at = clock_timestamp() + least(interval '1 s' * 2 ^ least(f.failures, 10), interval '5 min')
    -- A lock of the moment hides no lasting fault.
    where f.brief or not excluded.brief
$$;
comment on function pgnet.note_fault(text, text, text, boolean) is
    'Keeps that a duty of the heartbeat has failed: it is tried again after 1 s, 2 s, ... 5 '
    'minutes.';

create function pgnet.fault_messages()
    returns jsonb
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce(jsonb_object_agg(f.duty, concat_ws('. ', f.message, f.hint)), '{}')
    from (
        -- The lock may be released in a moment.
        select f.duty, f.message || case when f.kept > 0 then format(' (%s rows)', f.kept) else '' end as message, f.hint
        from pgnet.fault f
        where not f.brief or f.failures > 2
        union all
        (select 'recording', format('the outcome of request %s is refused: %s', u.id, u.message), u.hint
        from pgnet.unrecorded u where u.message is not null order by u.since limit 1)
    ) f
$$;
comment on function pgnet.fault_messages() is
    'The error of each duty that fails now, by the duty''s name, for the logs of workers.';
