"""Rights: each routine and relation for each kind of role."""

from __future__ import annotations

import contextlib
import itertools

import psycopg
import pytest
from psycopg import errors

from servers.cluster import Database
from servers.nginx import Nginx
from servers.rights import URL, value
from servers.webhook_rights import CALLS as WEBHOOK_CALLS
from servers.webhook_rights import RELATIONS as WEBHOOK_RELATIONS
from servers.webhook_rights import ROUTINES as WEBHOOK_ROUTINES

# Every routine of the extension: who may call it where every role has usage on the schema.
# everyone; worker: the owner, and roles that net.grant_worker was called for; owner.
ROUTINES = WEBHOOK_ROUTINES | {
    # The public surface, and the private names that users of pg_net know: \df net.*
    "net.http_get": "everyone",
    "net.http_post": "everyone",
    "net.http_delete": "everyone",
    "net.http_request": "everyone",
    "net.http_put": "everyone",
    "net.http_patch": "everyone",
    "net.http_head": "everyone",
    "net.multipart": "everyone",
    "net.secret_url": "everyone",
    "net.http_get_result": "everyone",
    "net.http_collect_response": "everyone",
    "net._http_collect_response": "everyone",
    "net._await_response": "everyone",
    "net.wait": "everyone",
    "net.help": "everyone",
    "net.webhook": "everyone",
    "net.wait_all": "everyone",
    "net.fetch": "everyone",
    "net.cancel": "everyone",
    "net.wake": "everyone",
    "net.worker_restart": "everyone",
    "net.wait_until_running": "everyone",
    "net.check_worker_is_up": "everyone",
    "net._urlencode_string": "everyone",
    "net._encode_url_with_params_array": "everyone",
    "net.retry": "everyone",
    "net.forget": "everyone",
    "net.cancel_where": "everyone",
    "net.retry_where": "everyone",
    "net.pause": "owner",
    "net.resume": "owner",
    "net.explain": "everyone",
    "net.unblock": "everyone",
    "net.on_all_done": "everyone",
    "net.run_callback": "everyone",
    "net.run_callbacks": "worker",
    "net.work": "worker",
    "net.drain": "worker",
    "net.check": "owner",
    "net.configure": "owner",
    "net.allow_network": "owner",
    "net.deny_network": "owner",
    "net.forget_network": "owner",
    "net.allow_host": "owner",
    "net.deny_host": "owner",
    "net.forget_host": "owner",
    "net.configure_host": "owner",
    "net.configure_retry": "owner",
    "net.set_secret": "owner",
    "net.drop_secret": "owner",
    "net.grant_secret": "owner",
    "net.revoke_secret": "owner",
    "net.grant_worker": "owner",
    "net.revoke_worker": "owner",
    "net.schedule_worker": "owner",
    "net.unschedule_worker": "owner",
    "net.adopt_database": "owner",
    # The inside. Everyone may execute the functions that those above, the views and the policies
    # call with the caller's rights.
    "pgnet.resolve_callback": "everyone",
    "pgnet.refuse_altered_callers": "everyone",
    "pgnet.check_set": "everyone",
    "pgnet.wake_runners": "everyone",
    "pgnet.held_again": "everyone",
    "pgnet.report_call": "everyone",
    "pgnet.temporary_objects": "everyone",
    "pgnet.look_for_callbacks": "worker",
    "pgnet.take_callback": "worker",
    "pgnet.perform_callback": "worker",
    "pgnet.serve_callbacks": "worker",
    "pgnet.make_callbacks": "owner",
    "pgnet.check_callbacks": "owner",
    "pgnet.note_set": "owner",
    "pgnet.examine_set": "owner",
    "pgnet.examine_orders": "owner",
    "pgnet.has_callbacks": "owner",
    "pgnet.expire_callbacks": "owner",
    "pgnet.callback_number": "owner",
    "pgnet.renumber_callbacks": "owner",
    "pgnet.role_path": "owner",
    "pgnet.settle_callback": "owner",
    "pgnet.pause_callbacks": "owner",
    "pgnet.free_callbacks": "owner",
    "pgnet.due_roles": "owner",
    "pgnet.lock_callbacks": "owner",
    "pgnet.take_next_callback": "owner",
    "pgnet.read_callback": "owner",
    "pgnet.callback_argument": "owner",
    "pgnet.call_restricted": "owner",
    "pgnet.lock_taken": "owner",
    "pgnet.require_runner": "owner",
    "pgnet.after_ids": "everyone",
    "pgnet.announce_retry": "everyone",
    "pgnet.hint_retries": "everyone",
    "pgnet.append_to_query": "everyone",
    "pgnet.breaker_level": "owner",
    "pgnet.breaker_setting_fault": "owner",
    "pgnet.built_in_retry_policies": "everyone",
    "pgnet.caller_is_owner": "everyone",
    "pgnet.caller_role": "everyone",
    "pgnet.cancellation_message": "everyone",
    "pgnet.check_after": "everyone",
    "pgnet.check_hosts": "owner",
    "pgnet.check_or_raise": "everyone",
    "pgnet.check_request": "everyone",
    "pgnet.check_retry_policy": "everyone",
    "pgnet.check_secret": "everyone",
    "pgnet.close_breaker": "owner",
    "pgnet.count_attempts": "owner",
    "pgnet.encode_form": "everyone",
    "pgnet.end_requests_of_broken_hosts": "owner",
    "pgnet.forget_host_states": "owner",
    "pgnet.forget_hosts": "owner",
    "pgnet.free_probes": "owner",
    "pgnet.host_matches": "owner",
    "pgnet.host_of_url": "everyone",
    "pgnet.how_to_start_a_worker": "everyone",
    "pgnet.help_entries": "everyone",
    "pgnet.judge_closed": "owner",
    "pgnet.judge_report": "owner",
    "pgnet.known_breaker_settings": "owner",
    "pgnet.lock_host_state": "owner",
    "pgnet.named_secret_fault": "owner",
    "pgnet.next_opening": "owner",
    "pgnet.open_breaker": "owner",
    "pgnet.report_attempts": "worker",
    "pgnet.save_host_state": "owner",
    "pgnet.warn_without_worker": "everyone",
    "pgnet.inspect_form": "everyone",
    "pgnet.inspect_multipart": "everyone",
    "pgnet.has_flow": "everyone",
    "pgnet.inspect_request": "everyone",
    "pgnet.json_or_null": "everyone",
    "pgnet.json_text": "everyone",
    "pgnet.known_host_settings": "owner",
    "pgnet.known_retry_settings": "everyone",
    "pgnet.known_settings": "everyone",
    "pgnet.limits_of_host": "everyone",
    "pgnet.mark_request": "everyone",
    "pgnet.outcome_so_far": "everyone",
    "pgnet.wait_until": "everyone",
    "pgnet.await_end": "everyone",
    "pgnet.tell_waiter": "everyone",
    "pgnet.send_again": "everyone",
    "pgnet.options_again": "everyone",
    "pgnet.authority_of": "everyone",
    "pgnet.role_named": "everyone",
    "pgnet.filter_fault": "everyone",
    "pgnet.filter_texts": "everyone",
    "pgnet.filter_time": "everyone",
    "pgnet.read_filter": "everyone",
    "pgnet.is_error_of": "everyone",
    "pgnet.matching_queued": "everyone",
    "pgnet.matching_failed": "everyone",
    "pgnet.mark_requests": "everyone",
    "pgnet.pending_limits": "everyone",
    "pgnet.refuse_backlog": "everyone",
    "pgnet.raise_backlog": "everyone",
    "pgnet.debounce_request": "everyone",
    "pgnet.lock_waiting_request": "everyone",
    "pgnet.may_be_changed": "everyone",
    "pgnet.queue_unique_request": "everyone",
    "pgnet.queue_request": "everyone",
    "pgnet.queue_event": "everyone",
    "pgnet.raise_error": "everyone",
    "pgnet.read_interval": "everyone",
    "pgnet.read_time": "everyone",
    "pgnet.read_times": "everyone",
    "pgnet.read_unique_for": "everyone",
    "pgnet.refuse_altered_function": "everyone",
    "pgnet.refuse_secret": "everyone",
    "pgnet.refuse_to_wait": "everyone",
    "pgnet.refuse_transaction_block": "worker",
    "pgnet.reload_workers": "everyone",
    "pgnet.requests_behind": "everyone",
    "pgnet.require_owner": "everyone",
    "pgnet.require_utf8": "everyone",
    "pgnet.require_worker": "everyone",
    "pgnet.secret_covers": "everyone",
    "pgnet.secret_prefix": "everyone",
    "pgnet.session_is_alive": "everyone",
    "pgnet.setting_value": "everyone",
    "pgnet.unblock_head": "everyone",
    "pgnet.waiting_state": "everyone",
    "pgnet.was_numbered_here": "everyone",
    "pgnet.with_content_type": "everyone",
    "pgnet.worker_is_up": "everyone",
    "pgnet.written_here": "everyone",
    "pgnet.attempt_words": "everyone",
    "pgnet.bucket_middle": "everyone",
    "pgnet.caller_reads_all": "everyone",
    "pgnet.caller_watches": "everyone",
    "pgnet.current_stats": "everyone",
    "pgnet.explain_words": "everyone",
    "pgnet.idle_words": "everyone",
    "pgnet.any_host_waits": "everyone",
    "pgnet.both_words": "everyone",
    "pgnet.holding_words": "everyone",
    "pgnet.holding_reasons": "everyone",
    "pgnet.modes_of_workers": "everyone",
    "pgnet.host_stats": "everyone",
    "pgnet.is_copy": "everyone",
    "pgnet.is_locked": "everyone",
    "pgnet.max_timeout_milliseconds": "everyone",
    "pgnet.percentiles": "everyone",
    "pgnet.reason_of_end": "everyone",
    "pgnet.reasons_in_flight": "everyone",
    "pgnet.reasons_of_database": "everyone",
    "pgnet.reasons_of_gates": "everyone",
    "pgnet.reasons_of_host": "everyone",
    "pgnet.reasons_of_limits": "everyone",
    "pgnet.reasons_of_request": "everyone",
    "pgnet.reasons_of_workers": "everyone",
    "pgnet.reasons_to_wait": "everyone",
    "pgnet.time_words": "everyone",
    "pgnet.waiting_words": "everyone",
    "pgnet.claim_requests": "worker",
    "pgnet.claimed_secrets": "worker",
    "pgnet.deregister_worker": "worker",
    "pgnet.heartbeat": "worker",
    "pgnet.record_outcomes": "worker",
    "pgnet.refuse_copy": "worker",
    "pgnet.report_work": "worker",
    "pgnet.register_worker": "worker",
    "pgnet.release_requests": "worker",
    "pgnet.serve": "worker",
    "pgnet.wait_for_signals": "worker",
    "pgnet.wake_next_worker": "worker",
    "pgnet.wake_up_fault": "worker",
    "pgnet.account_claims": "owner",
    "pgnet.tell_waiters": "owner",
    **dict.fromkeys(("pgnet.stub_pattern", "pgnet.stub_covers", "pgnet.stub_headers"), "owner"),
    **dict.fromkeys(("pgnet.forget_stubbed", "net.stub", "net.unstub"), "owner"),
    "pgnet.take_stubs": "worker",
    "pgnet.text_or_null": "everyone",
    "pgnet.tell_of_ends": "owner",
    **dict.fromkeys(("pgnet.check_pauses", "pgnet.count_backlog", "pgnet.forget_backlog"), "owner"),
    **dict.fromkeys(("pgnet.is_paused", "pgnet.pause_of", "pgnet.set_pending_limits"), "owner"),
    "pgnet.sweep_flow": "owner",
    "pgnet.flows_of": "owner",
    "pgnet.look_again": "owner",
    "pgnet.lock_requests": "owner",
    "pgnet.lock_retries": "owner",
    "pgnet.act_on_marks": "owner",
    "pgnet.announce_configuration": "owner",
    "pgnet.applying_subscription": "owner",
    "pgnet.arm_wake_up": "owner",
    "pgnet.ascii_excerpt": "owner",
    "pgnet.begin_probes": "owner",
    "pgnet.carry_out_marks": "owner",
    "pgnet.carry_out_or_halve": "owner",
    "pgnet.check_cron": "owner",
    "pgnet.cron_fault": "owner",
    "pgnet.check_database": "owner",
    "pgnet.check_definers": "owner",
    "pgnet.check_heartbeat": "owner",
    "pgnet.check_json_settings": "owner",
    "pgnet.check_network": "owner",
    "pgnet.check_package": "owner",
    "pgnet.check_rights": "owner",
    "pgnet.check_secrets": "owner",
    "pgnet.check_work": "owner",
    "pgnet.configured_host_pattern": "owner",
    "pgnet.copy_fault": "owner",
    "pgnet.crowded_roles": "owner",
    "pgnet.wake_held_requests": "owner",
    "pgnet.delete_expired_rows": "owner",
    "pgnet.delete_or_pass_over": "owner",
    "pgnet.dependants_of": "owner",
    "pgnet.cause_of": "owner",
    "pgnet.dependency_message": "owner",
    "pgnet.derived_idempotency_key": "owner",
    "pgnet.do_duty": "owner",
    "pgnet.dropped_requests": "owner",
    "pgnet.egress_in_force": "owner",
    "pgnet.egress_patterns": "owner",
    "pgnet.end_expired_or_halve": "owner",
    "pgnet.end_expired_requests": "owner",
    "pgnet.end_dependants": "owner",
    "pgnet.end_without_answer": "owner",
    "pgnet.examine_gates": "owner",
    "pgnet.expire": "owner",
    "pgnet.expire_requests": "owner",
    "pgnet.expiry_message": "owner",
    "pgnet.fault_messages": "owner",
    "pgnet.find_heads": "owner",
    "pgnet.fire_deferred": "owner",
    "pgnet.forget_workers": "owner",
    "pgnet.host_pattern": "owner",
    "pgnet.host_room": "owner",
    "pgnet.bucket": "owner",
    "pgnet.forget_budgets": "owner",
    "pgnet.look_up_limits": "owner",
    "pgnet.patterns_of": "owner",
    "pgnet.tokens_now": "owner",
    "pgnet.token_block": "owner",
    "pgnet.rate_per_second": "owner",
    "pgnet.limit_fault": "owner",
    "pgnet.settle_limits": "owner",
    "pgnet.mark_limited": "owner",
    "pgnet.announce_hosts": "owner",
    "pgnet.renew_budget": "owner",
    "pgnet.host_setting_fault": "owner",
    "pgnet.host_settings": "owner",
    "pgnet.idempotency_key": "owner",
    "pgnet.inspect_python": "owner",
    "pgnet.inspect_secret": "owner",
    "pgnet.is_idempotent": "owner",
    "pgnet.is_known_row": "owner",
    "pgnet.is_plain_json": "owner",
    "pgnet.json_size": "owner",
    "pgnet.json_slice": "owner",
    "pgnet.keep_own_row": "owner",
    "pgnet.link_dependencies": "owner",
    "pgnet.lock_expired_rows": "owner",
    "pgnet.lock_hints": "owner",
    "pgnet.lock_new_requests": "owner",
    "pgnet.lock_suspects": "owner",
    "pgnet.lock_tables": "owner",
    "pgnet.mend_clocks": "owner",
    "pgnet.mode_in_force": "owner",
    "pgnet.mode_sources": "owner",
    "pgnet.networks_of": "owner",
    "pgnet.next_poll": "owner",
    "pgnet.note_dependants": "owner",
    "pgnet.note_fault": "owner",
    "pgnet.note_kept_rows": "owner",
    "pgnet.open_gates": "owner",
    "pgnet.open_heads": "owner",
    "pgnet.open_keys": "owner",
    "pgnet.open_paths": "owner",
    "pgnet.open_retried_heads": "owner",
    "pgnet.own_objects": "owner",
    "pgnet.owners_path": "owner",
    "pgnet.pin_path": "owner",
    "pgnet.probe_room": "owner",
    "pgnet.put_aside": "owner",
    "pgnet.read_claimed": "owner",
    "pgnet.read_each_claimed": "owner",
    "pgnet.ready_places": "owner",
    "pgnet.record_put_aside": "owner",
    "pgnet.refuse_attachment": "owner",
    "pgnet.refuse_other_tables": "owner",
    "pgnet.refuse_truncate": "owner",
    "pgnet.remove_flow": "owner",
    "pgnet.remedy": "owner",
    "pgnet.renew_claims": "owner",
    "pgnet.rescue_requests": "owner",
    "pgnet.resolve_dependants": "owner",
    "pgnet.retry_policy_settings": "owner",
    "pgnet.retry_setting_fault": "owner",
    "pgnet.return_claim": "owner",
    "pgnet.return_claims": "owner",
    "pgnet.right_faults": "owner",
    "pgnet.room_in": "owner",
    "pgnet.seconds_to_expiry": "owner",
    "pgnet.set_egress_rules": "owner",
    "pgnet.set_gates": "owner",
    "pgnet.set_ids_apart": "owner",
    "pgnet.set_secret_grant": "owner",
    "pgnet.setting_fault": "owner",
    "pgnet.settings_in_force": "owner",
    "pgnet.settle_hints": "owner",
    "pgnet.signal_workers": "owner",
    "pgnet.spend_tokens": "owner",
    "pgnet.store_or_halve": "owner",
    "pgnet.store_outcomes": "owner",
    "pgnet.store_without_content": "owner",
    "pgnet.take_over_requests": "owner",
    "pgnet.sweep_gates": "owner",
    "pgnet.take_replicated_row": "owner",
    "pgnet.take_requests": "owner",
    "pgnet.update_blocked_keys": "owner",
    "pgnet.use_owners_path": "owner",
    "pgnet.wake_due_requests": "owner",
    "pgnet.worker_routines": "owner",
    "pgnet.forget_minutes": "owner",
    "pgnet.note_mode": "owner",
}

# Every relation, and what every role may do with it; columns in parentheses.
RELATIONS = WEBHOOK_RELATIONS | {
    "net.http_request_queue": {
        "SELECT",
        "INSERT(method)",
        "INSERT(url)",
        "INSERT(headers)",
        "INSERT(body)",
        "INSERT(timeout_milliseconds)",
        "INSERT(priority)",
        "INSERT(context)",
        "INSERT(options)",
        "INSERT(retry_of)",
        "INSERT(held)",
        # Of requests of its own that stand in pgnet.flow and wait for their first attempt.
        "UPDATE(method)",
        "UPDATE(url)",
        "UPDATE(headers)",
        "UPDATE(body)",
        "UPDATE(timeout_milliseconds)",
        "UPDATE(priority)",
        "UPDATE(context)",
        "UPDATE(options)",
        "UPDATE(held)",
    },
    "pgnet.ready_request": set(),
    "net._new_request": {
        "SELECT(id)",
        "INSERT(method)",
        "INSERT(url)",
        "INSERT(headers)",
        "INSERT(body)",
        "INSERT(timeout_milliseconds)",
        "INSERT(priority)",
        "INSERT(context)",
        "INSERT(options)",
        "INSERT(held)",
    },
    "net._new_flow": {
        "INSERT(request_id)",
        "INSERT(not_before)",
        "INSERT(not_after)",
        "INSERT(ordering_key)",
        "INSERT(unique_key)",
        "INSERT(gate)",
        "INSERT(callback)",
        "INSERT(callback_oid)",
    },
    "net._new_callback": {
        "SELECT(id)",
        "INSERT(request_id)",
        "INSERT(request_ids)",
        "INSERT(callback)",
        "INSERT(callback_oid)",
    },
    "pgnet.callback": {"SELECT"},
    "pgnet.callback_order": {"SELECT"},
    "pgnet.callback_turn": set(),
    "net.callbacks": {"SELECT"},
    # Of rows of its own that have a unique_key.
    "pgnet.flow": {
        "SELECT",
        "UPDATE(request_id)",
        "UPDATE(not_before)",
        "UPDATE(not_after)",
        "UPDATE(unique_key)",
        "UPDATE(merges)",
        "UPDATE(callback)",
        "UPDATE(callback_oid)",
    },
    "pgnet.gate_keeper": set(),
    "pgnet.dependency": {"SELECT"},
    "pgnet.ended_request": {
        "SELECT",
        "INSERT(request_id)",
        "INSERT(ordering_key)",
        "INSERT(unblocks)",
        "INSERT(retry_id)",
    },
    "pgnet.blocked_key": {"SELECT"},
    "pgnet.key_block": {"SELECT"},
    "net.blocked_keys": {"SELECT"},
    "pgnet.pause": set(),
    "pgnet.backlog": {"SELECT"},
    "pgnet.backlog_count": set(),
    "pgnet.own_queued": {"SELECT"},
    "pgnet.own_place": {"SELECT"},
    "pgnet.host_budget": set(),
    "pgnet.limit_change": set(),
    "pgnet.host_state": {"SELECT"},
    "pgnet.host_event": {"SELECT"},
    "net._http_response": {"SELECT"},
    "pgnet.failed": {"SELECT"},
    "pgnet.mark": {"SELECT", "INSERT(request_id)", "INSERT(action)"},
    "net.requests": {"SELECT"},
    "net.responses": {"SELECT"},
    "net.failures": {"SELECT"},
    "net.settings": {"SELECT"},
    "net.egress": {"SELECT"},
    "net.hosts": {"SELECT"},
    "net.host_events": {"SELECT"},
    "net.retry_policies": {"SELECT"},
    "net.secrets": {"SELECT"},
    "net.attempts": {"SELECT"},
    "net.workers": {"SELECT"},
    "net.stats": {"SELECT"},
    "pgnet.claimed_place": {"SELECT"},
    "pgnet.newest_request": {"SELECT"},
    "pgnet.ready_count": {"SELECT"},
    "pgnet.recent_minute": {"SELECT"},
    "pgnet.request_before": {"SELECT"},
    "pgnet.request_fact": {"SELECT"},
    "pgnet.request_load": {"SELECT"},
    "pgnet.request_rival": {"SELECT"},
    "pgnet.host_minute": set(),
    "pgnet.database": set(),
    "pgnet.claim": {"SELECT(id)", "SELECT(worker)", "SELECT(attempt)", "SELECT(claimed)"},
    "pgnet.unrecorded": set(),
    "pgnet.fault": set(),
    "pgnet.worker": set(),
    "pgnet.configuration": set(),
    "pgnet.attempt": {"SELECT"},
    "pgnet.setting": set(),
    "pgnet.egress_rule": set(),
    "pgnet.host": set(),
    "pgnet.retry_policy": set(),
    "pgnet.secret": set(),
    "pgnet.secret_grant": set(),
    "pgnet.worker_role": set(),
    "pgnet.stub": set(),
    "pgnet.stubbed": {"SELECT"},
    "net.stubs": set(),
    "net.recorded": {"SELECT"},
}


TABLE_PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")


COLUMN_PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "REFERENCES")

# One call of each that an end user may call, with what needs no worker.
CALLS = (
    *WEBHOOK_CALLS,
    "select net.http_get('http://localhost/')",
    "select net.http_post('http://localhost/', '{\"a\": 1}', '{\"b\": 2}')",
    "select net.http_delete('http://localhost/', body => '1')",
    "select net.http_request('GET', 'http://localhost/', options => '{\"priority\": 1}')",
    "select net.http_put('http://localhost/'), net.http_patch('http://localhost/')",
    "select net.http_head('http://localhost/')",
    "select net.http_request('POST', 'http://localhost/', body_form => '{\"a\": 1}')",
    'select net.multipart(\'[{"name": "a", "value": "b"}]\')',
    "select net.http_get_result(1)",
    "select net.http_collect_response(1)",
    "select net._http_collect_response(1)",
    "select net._await_response(2000000)",
    "select net.wait(null), net.wait_all(null)",
    "select net.cancel(2000000)",
    "select net.forget(2000000)",
    'select net.cancel_where(\'{"host": "nowhere.example"}\')',
    'select net.retry_where(\'{"host": "nowhere.example"}\')',
    "select net.unblock('none')",
    "select * from net.blocked_keys",
    "select net.http_request('GET', 'http://localhost/', options => '{\"ordering_key\": \"a\"}')",
    "select net.http_request('GET', 'http://localhost/', options => '{\"after\": []}')",
    "select net.wake()",
    "select net.worker_restart()",
    "select * from net.help()",
    "select pgnet.queue_event('http://localhost/', 'POST', '{}', '{}', '1', '{}', null)",
    "select net._urlencode_string('a b')",
    "select net._encode_url_with_params_array('http://localhost/', '{a=b}')",
    "select * from net.requests",
    "select * from net.recorded",
    "select * from net.responses",
    "select * from net.failures",
    "select * from net.attempts",
    "select * from net.workers",
    "select * from net.stats",
    "select * from net.explain(1)",
    "select * from net.explain(null)",
    "select net.retry(null)",
    "select * from net.settings",
    "select * from net.egress",
    "select * from net.hosts",
    "select * from net.host_events",
    "select * from net.retry_policies",
    "select pgnet.check_retry_policy('safe')",
    "select * from net.secrets",
    "select * from net.http_request_queue",
    "select * from net._http_response",
)


def may_execute(database: Database, role: str) -> dict[str, bool]:
    return dict(
        database.rows(
            "select p.pronamespace::regnamespace || '.' || p.proname,"
            " bool_or(has_function_privilege(%s, p.oid, 'execute'))"
            " from pg_proc p where p.pronamespace = any ('{net,pgnet}'::regnamespace[]) group by 1",
            role,
        )
    )


# ---- the tables above


def test_the_table_of_routines_is_complete(granted: Database) -> None:
    assert set(may_execute(granted, "postgres")) == set(ROUTINES)
    overloaded = granted.rows(
        "select pronamespace::regnamespace || '.' || proname from pg_proc"
        " where pronamespace = any ('{net,pgnet}'::regnamespace[])"
        " group by 1 having count(*) > 1"
    )
    assert overloaded == []


@pytest.mark.parametrize(
    ("role", "may"),
    [
        ("postgres", {"everyone", "worker", "owner"}),
        ("rights_alice", {"everyone"}),
        ("rights_worker", {"everyone", "worker"}),
    ],
)
def test_routines(granted: Database, role: str, may: set[str]) -> None:
    expected = {name: kind in may for name, kind in ROUTINES.items()}
    assert may_execute(granted, role) == expected


def test_net_is_the_public_surface() -> None:
    """Names in net that begin with an underscore are those that users of pg_net know."""
    assert {name for name in ROUTINES if name.startswith("net._")} == {
        "net._http_collect_response",
        "net._await_response",
        "net._urlencode_string",
        "net._encode_url_with_params_array",
    }
    # Requests are made by the view, so it stands in the schema whose USAGE is taken back.
    assert {name for name in RELATIONS if name.startswith("net._")} == {
        "net._http_response",
        "net._new_request",
        "net._new_flow",
        "net._new_callback",
    }
    assert [name for name in (*ROUTINES, *RELATIONS) if name.startswith("pgnet._")] == []


def test_nothing_without_usage(closed: Database) -> None:
    """Without USAGE the schema is closed, and EXECUTE does not matter."""
    connection = closed.connect("rights_bob")
    for call in CALLS:
        with pytest.raises(errors.InsufficientPrivilege, match=r"schema (pg)?net"):
            connection.execute(call)


def test_usage_of_net_alone_is_what_making_requests_needs(own: Database) -> None:
    """An administrator who knows pg_net takes back usage on net, and has not heard of pgnet."""
    own.execute("revoke usage on schema net from public")
    own.execute("grant usage on schema net to rights_alice")
    alice, bob = own.connect("rights_alice"), own.connect("rights_bob")
    for call in CALLS:
        alice.execute(call)
    before = own.rows("select id from net.http_request_queue order by id")
    # Where it may execute what stands in pgnet, nothing is made, and nothing of others is seen.
    for (name, kind), number in itertools.product(ROUTINES.items(), ("1", "null")):
        if name.startswith("pgnet.") and kind == "everyone":
            types = own.value(
                "select array_to_string(array(select format('%%s::%%s', %s::text,"
                " format_type(t, null)) from unnest(proargtypes) t), ', ')"
                " from pg_proc where oid = %s::regproc",
                "null" if number == "null" else "'1'",
                name,
            )
            with contextlib.suppress(psycopg.Error):
                assert "localhost" not in str(bob.execute(f"select {name}({types})").fetchall())
    for table in ("pgnet.failed", "pgnet.mark", "pgnet.attempt"):
        assert bob.execute(f"select * from {table}").fetchall() == []
    assert bob.execute("select id, worker, attempt, claimed from pgnet.claim").fetchall() == []
    with pytest.raises(errors.InsufficientPrivilege, match="row-level security"):
        bob.execute("insert into pgnet.mark (request_id, action) values (1, 'cancel')")
    assert own.value("select count(*) from pgnet.mark") == 0
    assert own.rows("select id from net.http_request_queue order by id") == before


@pytest.mark.parametrize("role", ["rights_alice", "postgres"])
def test_calls_with_usage(closed: Database, role: str) -> None:
    connection = closed.connect(role)
    for call in CALLS:
        connection.execute(call)


def test_a_worker_role_where_the_schema_is_closed(closed: Database) -> None:
    closed.connect("rights_worker").execute("call net.drain()")


def test_an_ordinary_role_runs_no_worker(granted: Database) -> None:
    connection = granted.connect("rights_alice")
    for call in (
        "call net.work()",
        "call net.drain()",
        "call pgnet.wait_for_signals(0)",
        "select pgnet.claim_requests(1, 1, 1, 1, '{}', 1, '')",
        "select pgnet.record_outcomes('[]')",
        "select net.configure('ttl', '1 s')",
        "select net.allow_network('loopback')",
        "select net.forget_network('loopback')",
        "select net.grant_worker('rights_alice')",
        "select * from net.check()",
        "select pgnet.arm_wake_up('restart')",
    ):
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute(call)


@pytest.mark.parametrize("role", ["rights_alice", "rights_worker"])
def test_relations(granted: Database, role: str) -> None:
    """A worker's role has no more rights than others: it needs no table."""
    relations = [
        name
        for (name,) in granted.rows(
            "select oid::regclass::text from pg_class"
            " where relnamespace = any ('{net,pgnet}'::regnamespace[])"
            " and relkind in ('r', 'p', 'v', 'm', 'f')"
        )
    ]
    found = {}
    for name in relations:
        rights = {
            privilege
            for privilege in TABLE_PRIVILEGES
            if granted.value("select has_table_privilege(%s, %s, %s)", role, name, privilege)
        }
        rights |= {
            f"{privilege}({column})"
            for privilege in COLUMN_PRIVILEGES
            if privilege not in rights
            for (column,) in granted.rows(
                "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0"
                " and not attisdropped and has_column_privilege(%s, %s::regclass, attname, %s)",
                name,
                role,
                name,
                privilege,
            )
        }
        found[name] = rights
    assert found == RELATIONS


def test_sequences_and_the_schema_are_the_owners(granted: Database) -> None:
    sequences = granted.rows(
        "select relname from pg_class"
        " where relnamespace = any ('{net,pgnet}'::regnamespace[]) and case relkind"
        " when 'S' then has_sequence_privilege('rights_alice', oid, 'usage, select, update') end"
    )
    assert sequences == []
    assert granted.value("select has_schema_privilege('rights_alice', 'net', 'create')") is False


def test_revoke_worker(own: Database) -> None:
    own.execute("select net.grant_worker('rights_worker')")
    own.execute("select net.revoke_worker('rights_worker')")
    found = may_execute(own, "rights_worker")
    assert found == {name: kind == "everyone" for name, kind in ROUTINES.items()}
    with pytest.raises(errors.UndefinedObject):
        own.execute("select net.grant_worker('no such role')")


def test_a_role_with_a_difficult_name(own: Database) -> None:
    name, quoted = 'rights "x" ; drop', '"rights ""x"" ; drop"'
    own.execute(f"create role {quoted} login")
    try:
        own.execute("select net.grant_worker(%s)", name)
        connection = psycopg.connect(own.dsn(), user=name, autocommit=True)
        request_id = value(connection, "select net.http_get(%s)", URL)
        assert value(connection, "select count(*) from net.requests") == 1
        assert value(connection, "select net.cancel(%s)", request_id) is True
        connection.execute("call net.drain()")
        connection.close()
    finally:
        own.drop()
        with own.cluster.connect() as connection:
            connection.execute(f"drop role {quoted}")


@pytest.mark.parametrize("kind", ["process", "backend"])
def test_a_worker_role_needs_no_more(own: Database, nginx: Nginx, kind: str) -> None:
    own.execute("select net.grant_worker('rights_worker')")
    alice = own.connect("rights_alice")
    request_id = value(alice, "select net.http_get(%s)", nginx.url)
    if kind == "process":
        with own.cluster.worker(dbname=own.name, user="rights_worker"):
            assert value(alice, "select (net.wait(%s)).content", request_id) == "pgnet"
    else:
        own.connect("rights_worker").execute("call net.drain()")
    assert value(alice, "select (net.wait(%s)).content", request_id) == "pgnet"
