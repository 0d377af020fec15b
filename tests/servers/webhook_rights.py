"""Who may do what with webhooks: a part of the lists of tests/database/rights/test_rights.py."""

from __future__ import annotations

EVERYONE = (
    "net.create_webhook",
    "net.drop_webhook",
    "net.enable_webhook",
    "net.disable_webhook",
    "net.test_webhook",
    "net.replay_webhook",
    "net.set_endpoint",
    "net.drop_endpoint",
    "pgnet.arm_webhook",
    "pgnet.changed_values",
    "pgnet.webhook_probe",
    "pgnet.check_webhook_name",
    "pgnet.check_webhook_target",
    "pgnet.known_webhook_options",
    "pgnet.check_webhook_options",
    "pgnet.check_webhook_table",
    "pgnet.check_webhook_columns",
    "pgnet.check_payload",
    "pgnet.read_webhook",
    "pgnet.primary_key",
    "pgnet.probe_condition",
    "pgnet.webhook_message",
    "pgnet.webhook_batch",
    "pgnet.webhook_is_custom",
    "pgnet.webhook_options",
    "pgnet.webhook_insert",
    "pgnet.webhook_names",
    "pgnet.payload_block",
    "pgnet.webhook_row_code",
    "pgnet.too_long_words",
    "pgnet.webhook_rows",
    "pgnet.webhook_statement_code",
    "pgnet.webhook_triggers",
    "pgnet.webhook_trigger",
    "pgnet.remove_webhook",
    "pgnet.make_webhook",
    "pgnet.replace_webhook",
    "pgnet.qualified_name",
    "pgnet.require_webhook",
    "pgnet.replay_failures",
    "pgnet.queue_sample",
    "pgnet.add_times",
    "pgnet.median_time",
    "pgnet.webhook_fault",
)
OWNER = (
    "pgnet.refuse_new_owner",
    "pgnet.webhook_facts",
    "pgnet.count_deliveries",
    "pgnet.judge_webhooks",
    "pgnet.disable_failing_webhooks",
)
ROUTINES = dict.fromkeys(EVERYONE, "everyone") | dict.fromkeys(OWNER, "owner")

# What PUBLIC may do with tables and views; rows are those of the role itself.
RELATIONS: dict[str, set[str]] = {
    "pgnet.endpoint": {
        "SELECT",
        "INSERT(name)",
        "INSERT(url)",
        "UPDATE(url)",
        "UPDATE(changed)",
    },
    "pgnet.webhook": {
        "SELECT",
        "INSERT(name)",
        "INSERT(on_table)",
        "INSERT(definition)",
        "UPDATE(on_table)",
        "UPDATE(definition)",
        "UPDATE(created)",
        "UPDATE(dropped)",
        "UPDATE(disabled_since)",
        "UPDATE(disabled_reason)",
        "UPDATE(backfill)",
    },
    "pgnet.webhook_state": {"SELECT"},
    "pgnet.webhook_tally": {"SELECT"},
    "net.webhooks": {"SELECT"},
    "net.webhook_deliveries": {"SELECT"},
    "net.endpoints": {"SELECT"},
}

# One call of each that every role may call.
CALLS = (
    "select net.set_endpoint('a', 'http://localhost/')",
    "select net.drop_endpoint('a')",
    "select * from net.endpoints",
    "select * from net.webhooks",
    "select * from net.webhook_deliveries",
    "select net.drop_webhook('none')",
)
