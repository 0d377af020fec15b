-- Rights: this file says for all objects at once which role may do what.

-- A table with row security and without a policy is closed to all but its owner, whatever is
-- granted. TRUNCATE is not subject to row security, so a trigger refuses it.
create function pgnet.refuse_truncate()
    returns trigger
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgnet.require_owner();
    return null;
end
$$;
comment on function pgnet.refuse_truncate() is
    'Before TRUNCATE of a table of the extension: raises 42501 for all but the owner.';

-- A trigger on a table runs in the sessions of all who write to the table, a worker's among them.
-- So do the triggers on the table of a foreign key: the key's action runs them as the owner of that
-- table or, where they are deferred, as the role that commits (before PostgreSQL 18). So the rights
-- TRIGGER and REFERENCES are worth all rights, and they are part of an everyday "grant all on all
-- tables".
create function pgnet.refuse_attachment()
    returns event_trigger
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    made record;
begin
    for made in
        select 'trigger' as kind, t.tgrelid as relation
        from pg_event_trigger_ddl_commands() d
        join pg_trigger t on d.classid = 'pg_trigger'::regclass and t.oid = d.objid
        union all
        select 'foreign key', k.confrelid
        from pg_event_trigger_ddl_commands() d
        join pg_constraint k on d.classid = 'pg_class'::regclass and k.conrelid = d.objid and k.contype = 'f'
    loop
        perform from pg_class c
        where c.oid = made.relation and c.relnamespace in (to_regnamespace('net'), to_regnamespace('pgnet')) and not pg_has_role(current_user, c.relowner, 'usage');
        if found then
            raise exception using
                errcode = 'insufficient_privilege',
                message = format('role "%s" may not attach a %s to %s', current_user, made.kind, made.relation::regclass),
                detail = 'It would run code in the sessions of all who send requests, and in those of workers.',
                hint = format('Only the owner of pgnet may. Take back the grant: revoke trigger, references on %s from %I;',
                    made.relation::regclass, current_user);
        end if;
    end loop;
end
$$;
comment on function pgnet.refuse_attachment() is
    'Raises 42501 where a role that is neither the owner nor a member of it creates a trigger on a '
    'table or view of the extension, or a foreign key to one.';

-- The owner has every right, PUBLIC what is granted here, workers what net.grant_worker grants.
-- Nothing is left to PUBLIC's defaults, nor to what ALTER DEFAULT PRIVILEGES makes of them: what
-- these gave is taken back first.
do $$
declare
    given record;
begin
    -- A session may have a work_mem that is too small for so many rows, and no room for files.
    -- CREATE EXTENSION undoes this at its end.
    perform pg_catalog.set_config('work_mem', '16MB', true);
    for given in
        select distinct pg_catalog.format('%s %s', o.kind, o.name) as name,
            case when a.grantee operator(pg_catalog.=) 0::pg_catalog.oid then 'public'
                else a.grantee::pg_catalog.regrole::pg_catalog.text end as grantee
        from pgnet.own_objects() o
        cross join lateral pg_catalog.aclexplode(o.acl) a
        where a.grantee operator(pg_catalog.<>) o.owner and o.kind operator(pg_catalog.<>) 'column'
    loop
        execute pg_catalog.format('revoke all on %s from %s', given.name, given.grantee);
    end loop;
end
$$;

-- As in pg_net every role may send requests; "revoke usage on schema net from public" forbids that.
-- So everything by which requests are made stands in net, the view net._new_request too. USAGE on
-- pgnet alone opens no way to make one.
grant usage on schema net, pgnet to public;
grant usage on type
    net.http_method, net.request_status, net.http_response, net.http_response_result, net.request_state, net.outcome
to public;

-- Callers may set the columns that describe a request, but not its role, its time and its number.
-- Nobody is granted DELETE: a role that may UPDATE, DELETE or TRUNCATE a table may lock it. UPDATE
-- of columns gives no such right. Policies show for it only rows of the role that stand in
-- pgnet.flow, and of these only those with a unique_key can be changed there.
grant insert (method, url, headers, body, timeout_milliseconds, priority, context, options, retry_of, held), select
    on net.http_request_queue to public;
grant insert (method, url, headers, body, timeout_milliseconds, priority, context, options, held), select (id) on net._new_request to public;
grant update (method, url, headers, body, timeout_milliseconds, priority, context, options, held) on net.http_request_queue to public;
grant insert (request_id, not_before, not_after, ordering_key, unique_key, gate, callback, callback_oid) on net._new_flow to public;
grant update (request_id, not_before, not_after, unique_key, merges, callback, callback_oid), select on pgnet.flow to public;
grant insert (request_id, request_ids, callback, callback_oid), select (id) on net._new_callback to public;
grant select on pgnet.callback, pgnet.callback_order to public;
grant insert (request_id, action), select on pgnet.mark to public;
grant insert (request_id, ordering_key, unblocks, retry_id), select on pgnet.ended_request to public;
grant select on pgnet.blocked_key, pgnet.dependency, pgnet.key_block to public;
grant select on net._http_response, pgnet.failed to public;
grant select on pgnet.attempt, pgnet.stubbed to public;
grant select on pgnet.host_state, pgnet.host_event to public;
grant insert (name, url), update (url, changed), select on pgnet.endpoint to public;
grant insert (name, on_table, definition), update (on_table, definition, created, dropped, disabled_since, disabled_reason, enabled_since, backfill), select
    on pgnet.webhook to public;
grant select on pgnet.webhook_tally, pgnet.webhook_state to public;
grant select (id, worker, attempt, claimed) on pgnet.claim to public;
grant select on pgnet.backlog, pgnet.own_queued, pgnet.own_place to public;
grant select on pgnet.recent_minute, pgnet.newest_request, pgnet.claimed_place, pgnet.ready_count,
    pgnet.request_fact, pgnet.request_load, pgnet.request_before, pgnet.request_rival to public;
grant select on
    net.requests, net.responses, net.callbacks, net.failures, net.attempts, net.recorded, net.blocked_keys, net.workers, net.stats,
    net.webhooks, net.webhook_deliveries, net.endpoints, net.settings, net.egress, net.hosts, net.host_events, net.retry_policies, net.secrets
to public;

-- The functions and procedures that people call.
grant execute on routine
    net.http_get, net.http_post, net.http_delete,
    net.http_request, net.http_put, net.http_patch, net.http_head, net.multipart, net.secret_url,
    net.http_get_result, net.http_collect_response, net._http_collect_response, net._await_response,
    net.wait, net.wait_all, net.explain, net.fetch, net.cancel, net.forget, net.retry, net.unblock, net.cancel_where, net.retry_where,
    net.on_all_done, net.run_callback,
    net.create_webhook, net.drop_webhook, net.enable_webhook, net.disable_webhook, net.test_webhook, net.replay_webhook, net.backfill_webhook,
    net.set_endpoint, net.drop_endpoint,
    net.wake, net.worker_restart, net.wait_until_running, net.check_worker_is_up, net.help, net.webhook,
    net._urlencode_string, net._encode_url_with_params_array
to public;
-- Functions that these, the views and the policies call with the caller's rights.
-- pgnet.require_worker is among them, so that net.work() can say that a role may not run workers.
grant execute on function
    -- the caller
    pgnet.caller_role, pgnet.caller_is_owner, pgnet.require_owner, pgnet.require_worker, pgnet.raise_error,
    -- a request, and what it is made of
    pgnet.check_request, pgnet.inspect_request, pgnet.has_flow, pgnet.check_or_raise, pgnet.check_retry_policy, pgnet.refuse_altered_function,
    pgnet.with_content_type, pgnet.require_utf8, pgnet.inspect_form, pgnet.encode_form, pgnet.inspect_multipart,
    pgnet.queue_request, pgnet.queue_event, pgnet.debounce_request, pgnet.lock_waiting_request, pgnet.queue_unique_request,
    pgnet.may_be_changed,
    pgnet.read_times, pgnet.read_time, pgnet.read_unique_for, pgnet.read_interval,
    pgnet.append_to_query, pgnet.json_text, pgnet.host_of_url, pgnet.was_numbered_here,
    pgnet.check_secret, pgnet.refuse_secret, pgnet.secret_covers, pgnet.secret_prefix,
    -- its outcome
    pgnet.outcome_so_far, pgnet.wait_until, pgnet.await_end, pgnet.tell_waiter, pgnet.waiting_state, pgnet.cancellation_message, pgnet.written_here, pgnet.refuse_to_wait,
    pgnet.json_or_null, pgnet.text_or_null, pgnet.mark_request, pgnet.send_again, pgnet.options_again, pgnet.held_again,
    -- callbacks; pgnet.report_call is called as the role of a callback
    pgnet.resolve_callback, pgnet.refuse_altered_callers, pgnet.check_set, pgnet.wake_runners, pgnet.report_call, pgnet.temporary_objects,
    pgnet.check_after, pgnet.after_ids, pgnet.unblock_head, pgnet.requests_behind, pgnet.hint_retries, pgnet.announce_retry,
    -- many at once
    pgnet.authority_of, pgnet.role_named, pgnet.filter_fault, pgnet.filter_texts, pgnet.filter_time, pgnet.read_filter,
    pgnet.is_error_of, pgnet.matching_queued, pgnet.matching_failed, pgnet.mark_requests,
    -- webhooks
    pgnet.arm_webhook, pgnet.types_in, pgnet.foreign_cast, pgnet.refuse_foreign_cast, pgnet.cast_check, pgnet.changed_values, pgnet.webhook_probe, pgnet.check_webhook_name, pgnet.check_webhook_target,
    pgnet.known_webhook_options, pgnet.check_webhook_options, pgnet.check_webhook_table, pgnet.check_webhook_columns, pgnet.check_payload,
    pgnet.read_webhook, pgnet.primary_key, pgnet.probe_condition, pgnet.webhook_message, pgnet.webhook_batch, pgnet.webhook_is_custom,
    pgnet.webhook_options, pgnet.webhook_insert, pgnet.webhook_names, pgnet.payload_block, pgnet.webhook_row_code, pgnet.too_long_words,
    pgnet.webhook_rows, pgnet.webhook_statement_code, pgnet.webhook_triggers, pgnet.webhook_trigger, pgnet.remove_webhook, pgnet.make_webhook,
    pgnet.replace_webhook, pgnet.qualified_name, pgnet.require_webhook, pgnet.replay_failures, pgnet.queue_sample, pgnet.add_times,
    pgnet.median_time, pgnet.webhook_fault, pgnet.small_number, pgnet.backfill_keys, pgnet.key_texts, pgnet.key_columns, pgnet.read_rate, pgnet.backfill_query,
    pgnet.queue_page, pgnet.send_page, pgnet.next_page,
    -- back-pressure
    pgnet.pending_limits, pgnet.refuse_backlog, pgnet.raise_backlog,
    -- why it waits
    pgnet.caller_reads_all, pgnet.max_timeout_milliseconds, pgnet.is_copy, pgnet.is_locked, pgnet.time_words, pgnet.attempt_words,
    pgnet.reasons_in_flight, pgnet.reasons_of_database, pgnet.reasons_of_request, pgnet.reasons_of_host, pgnet.reasons_of_gates, pgnet.reasons_of_limits, pgnet.reasons_of_workers,
    pgnet.reasons_to_wait, pgnet.reason_of_end, pgnet.explain_words, pgnet.idle_words, pgnet.any_host_waits, pgnet.holding_words, pgnet.both_words,
    pgnet.holding_reasons, pgnet.modes_of_workers,
    -- statistics
    pgnet.caller_watches, pgnet.bucket_middle, pgnet.percentiles, pgnet.host_stats, pgnet.waiting_words, pgnet.current_stats,
    -- workers and settings
    pgnet.session_is_alive, pgnet.worker_is_up, pgnet.how_to_start_a_worker, pgnet.warn_without_worker, pgnet.reload_workers,
    pgnet.limits_of_host, pgnet.setting_value, pgnet.known_settings, pgnet.known_retry_settings, pgnet.built_in_retry_policies, pgnet.help_entries
to public;

do $$
declare
    relation pg_catalog.regclass;
begin
    for relation in
        select c.oid from pg_catalog.pg_class c
        where c.relnamespace operator(pg_catalog.=) any (array['net', 'pgnet']::pg_catalog.regnamespace[]) and c.relkind operator(pg_catalog.=) 'r'
    loop
        execute pg_catalog.format('alter table %s enable row level security', relation);
        execute pg_catalog.format(
            'create trigger refuse_truncate before truncate on %s for each statement execute function pgnet.refuse_truncate()', relation);
    end loop;
end
$$;

create event trigger pgnet_refuse_attachment on ddl_command_end
    when tag in ('CREATE TRIGGER', 'CREATE TABLE', 'ALTER TABLE', 'CREATE SCHEMA')
    execute function pgnet.refuse_attachment();
comment on event trigger pgnet_refuse_attachment is
    'Keeps triggers and foreign keys of others from the tables of pgnet: they would run code in '
    'the sessions of all who send requests.';

-- What replication brings: 35_copies.sql says what becomes of it. Every table has the trigger.
do $$
declare
    relation record;
begin
    for relation in
        select c.oid::pg_catalog.regclass as name,
            case when c.relname operator(pg_catalog.=) any (array['http_request_queue', 'attempt', '_http_response', 'failed', 'flow'])
                then 'take_replicated_row' else 'keep_own_row' end as procedure
        from pg_catalog.pg_class c
        where c.relnamespace operator(pg_catalog.=) any (array['net', 'pgnet']::pg_catalog.regnamespace[]) and c.relkind operator(pg_catalog.=) 'r'
    loop
        execute pg_catalog.format('create trigger replicated before insert or update or delete on %s for each row execute function pgnet.%I()',
            relation.name, relation.procedure);
        -- The trigger fires for replicated rows only, so that no other insert pays for it.
        execute pg_catalog.format('alter table %s enable replica trigger replicated', relation.name);
    end loop;
end
$$;
