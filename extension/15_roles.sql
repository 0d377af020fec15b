-- The roles: the caller, the owner, and the roles that may run workers. 85_rights.sql says which
-- rights each of them has.

-- The role of the caller, as an oid that survives a rename and is not taken over by a later role of
-- the same name.
create function pgnet.caller_role()
    returns regrole language sql stable parallel safe cost 1
as $$ select pg_catalog.quote_ident(current_user)::pg_catalog.regrole $$;
comment on function pgnet.caller_role() is 'The current role, as a regrole.';

create function pgnet.caller_is_owner()
    returns boolean
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select pg_has_role(current_user, (select n.nspowner from pg_namespace n where n.nspname = 'net'), 'usage')
$$;
comment on function pgnet.caller_is_owner() is
    'Whether the current role is the extension''s owner, or a member of it.';

-- Functions that run with the caller's rights ask this first. Otherwise row security would leave
-- the rows alone that they are to delete, and would not say so.
create function pgnet.require_owner()
    returns void
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if not pgnet.caller_is_owner() then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('role "%s" is not the owner of pgnet', current_user),
            hint = format('The owner is "%s": set role to it, or to a member of it.',
                (select n.nspowner::regrole from pg_namespace n where n.nspname = 'net'));
    end if;
end
$$;
comment on function pgnet.require_owner() is
    'Raises 42501 where the current role is neither the extension''s owner nor a member of it.';

-- The role with this name, which need not be quoted.
create function pgnet.role_named(name text)
    returns regrole
    language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    found_role regrole := (select r.oid from pg_roles r where r.rolname = name);
begin
    if found_role is null then
        raise exception using
            errcode = case when name is null then 'invalid_parameter_value' else 'undefined_object' end,
            message = case when name is null then 'role must not be NULL' else format('role "%s" does not exist', name) end;
    end if;
    return found_role;
end
$$;
comment on function pgnet.role_named(text) is
    'The role of this name. Raises 42704 where the role does not exist, 22023 for NULL.';

-- The owner's triggers and the search_path. A trigger on a table of pgnet fires in a worker's
-- session, with the owner's rights, and in the path that is in force when the statement runs. The
-- pinned path would hide from the trigger what the owner sees, and in an unpinned one a worker's
-- role could put a temporary table in the place of a table. So a statement that changes rows is
-- read and planned in the pinned path. It sets the owner's path as the first thing when it runs, in
-- the part that PostgreSQL runs before all others. After the statement the path is pinned again. So
-- no name of ours is ever looked for in the owner's path.

-- The path is what ALTER ROLE ... SET or ALTER DATABASE ... SET has set, in PostgreSQL's order, or
-- else PostgreSQL's default. (This is PL/pgSQL, since it keeps its plans from call to call, and an
-- SQL function does not.)
create function pgnet.owners_path()
    returns text
    language plpgsql stable parallel safe cost 100
    set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce((
        select nullif(trim(substr(c.assignment, 13)), '')
        from pg_db_role_setting s
        cross join lateral unnest(s.setconfig) c (assignment)
        where s.setrole in (0, (select n.nspowner from pg_namespace n where n.nspname = 'net'))
            and s.setdatabase in (0, (select d.oid from pg_database d where d.datname = current_database()))
            and lower(left(c.assignment, 12)) = 'search_path='
        order by s.setrole <> 0 desc, s.setdatabase <> 0 desc
        limit 1), '"$user", public') || ', pg_temp';
end
$$;
comment on function pgnet.owners_path() is
    'The search_path that the extension''s owner has in this database, with the temporary schema '
    'at its end.';

create function pgnet.use_owners_path()
    returns text language plpgsql volatile parallel unsafe
as $$ begin return pg_catalog.set_config('search_path', pgnet.owners_path(), true); end $$;
comment on function pgnet.use_owners_path() is
    'Sets the owner''s path, until pgnet.pin_path() or the end of the calling function.';

create function pgnet.pin_path()
    returns text language plpgsql volatile parallel unsafe
as $$ begin return pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true); end $$;
comment on function pgnet.pin_path() is 'Sets the path of the extension''s functions again.';

create table pgnet.worker_role (
    role regrole primary key
);
comment on table pgnet.worker_role is
    'The roles that net.grant_worker was called for: they run workers, and no other role does, '
    'whatever EXECUTE says. A dump holds it.';
select pg_catalog.pg_extension_config_dump('pgnet.worker_role', '');

-- An everyday "grant execute on all functions" gives EXECUTE on the workers' functions, too. So
-- each of these functions calls this one first. The role of the session counts: in a function with
-- its owner's rights, the current role is that owner. A role that was dropped has left its number
-- in the table, and no role is a member of it.
create function pgnet.require_worker(
    -- the registration that the caller claims to be; NULL: it claims none
    worker_id bigint default null
)
    returns void
    language plpgsql volatile parallel unsafe security definer cost 10
    set search_path = pg_catalog, pg_temp
as $$
declare
    -- The role of SET ROLE, which PostgreSQL lets a session set to a role that it is a member of;
    -- without SET ROLE the role that connected.
    session_role name := coalesce(nullif(current_setting('role'), 'none'), session_user);
    registered record;
begin
    if not pg_has_role(session_role, current_user, 'member')
        and not exists (select from pgnet.worker_role w where pg_has_role(session_role, w.role, 'member'))
    then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('role "%s" may not run workers', session_role),
            hint = format('The owner of pgnet grants it: select net.grant_worker(%L);', session_role);
    end if;
    -- A callback runs in a worker's session, whose role this function goes by. PostgreSQL refuses
    -- this statement, which does nothing elsewhere, in what it calls a security-restricted
    -- operation: callbacks are one.
    execute 'unlisten pgnet';
    -- A foreign key's action runs the triggers of its table as the owner of that table, in the
    -- session of the role that deletes a request: a worker's.
    if pg_trigger_depth() > 0 then
        raise exception using
            errcode = 'insufficient_privilege',
            message = 'a worker''s calls do not come from a trigger';
    end if;
    -- Triggers of the owner's tables run in this session with the owner's rights: what they name
    -- must be the owner's.
    if pg_my_temp_schema() <> 0 and not pg_has_role(session_role, current_user, 'member')
        and (exists (select from pg_class c where c.relnamespace = pg_my_temp_schema())
            or exists (select from pg_type t where t.typnamespace = pg_my_temp_schema()))
    then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = 'a session with temporary tables cannot be a worker',
            detail = 'Triggers on the tables of pgnet run in it with the owner''s rights, and could take a temporary table for one of the owner''s.',
            hint = 'Run: discard temp; or work in a session of its own.';
    end if;
    if worker_id is null then
        return;
    end if;
    select w.pid, w.ended into registered from pgnet.worker w where w.id = worker_id;
    if registered.pid is null or registered.ended is not null then
        raise exception using
            errcode = 'connection_does_not_exist',
            message = format('worker %s is not registered', worker_id),
            hint = 'A worker that registers again goes on under another number.';
    elsif registered.pid <> pg_backend_pid() then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = 'the worker''s session has changed under it',
            detail = 'Something between the worker and the server, such as a transaction pooler, gives its statements to several sessions.',
            hint = 'Let the worker connect to the server directly. Callers may go through a pooler.';
    end if;
end
$$;
comment on function pgnet.require_worker(bigint) is
    'Raises 42501 where the role of the session may not run workers: it is neither the owner nor a '
    'member of a role that net.grant_worker was called for; in a trigger; and in a callback. Raises 55000 where '
    'the session has temporary tables or types and is not the owner''s. Raises 08003 where there '
    'is no worker with this id, 55000 where that worker is another session.';
