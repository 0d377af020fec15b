#!/usr/bin/python3
"""Break the product on purpose, and see that the tests notice: `make mutants`.

    tools/mutants.py [--keep] [NAME ...]

Each mutant is a small change of the source, made in a copy of the tree under build/mutants and
installed there: a mount namespace has the server see the copy's script and package in place of the
installed ones, which stay as they are. That needs root.

First the tests named below pass with the source as it is. Then each mutant has to pass the smoke
test, so that it is a mutant and no wreck, and at least one of its tests has to fail. The exit status
is 1 when one survives, and 2 when it cannot be told.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]

from servers.cluster import find_pg_config, pg_config, server_python

BUILD = ROOT / "build/mutants"
SMOKE = ["tests/database/test_requests.py", "-k", "test_put_and_patch"]
# Seconds of chaos that catch what is rather a matter of chance.
CHAOS = "tests/chaos/test_chaos.py::test_a_minute_of_chaos"
CHAOS_SECONDS = "30"
# pytest's exit status when tests were run, and some failed.
FAILED = 1


@dataclass(frozen=True, slots=True)
class Edit:
    """search stands exactly `times` times in the file, and becomes replace."""

    path: str
    search: str
    replace: str
    times: int = 1


@dataclass(frozen=True, slots=True)
class Mutant:
    """name; what is wrong with it; the edits that make it; tests and isolation specs.

    At least one of the tests has to fail, and if there are specs at least one of them.
    """

    name: str
    wrong: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...] = ()
    specs: tuple[str, ...] = ()


RECORD = "extension/54_record.sql"
RESCUE = "extension/56_rescue.sql"
HEARTBEAT = "extension/58_heartbeat.sql"
WORKERS = "extension/50_workers.sql"
EXPIRE = "extension/57_expire.sql"
CLAIM = "extension/52_claim.sql"
LIMITS = "extension/47_limits.sql"
HOST_LIMITS = "tests/database/test_host_limits.py::"
LIMIT_CLAIMS = "tests/database/test_host_limit_claims.py::"
CRASHES = "tests/chaos/test_crashes.py::"
WEBHOOKS = "extension/66_webhooks.sql"
ROW_PATH = "tests/database/webhooks/test_row_path.py::"
SUPABASE = "tests/database/supabase/test_supabase.py::"

MUTANTS = (
    Mutant(
        "limit-without-lock",
        "two claims at once decide what a host may have",
        (
            Edit(
                LIMITS,
                "    select b.* into budget from pgnet.host_budget b where b.host = host_room.host"
                " for update skip locked;",
                "    select b.* into budget from pgnet.host_budget b where b.host = host_room.host;",
            ),
        ),
        tests=(LIMIT_CLAIMS + "test_two_claims_at_once",),
    ),
    Mutant(
        "rate-without-delay",
        "the bucket of a rate does not pay for the time between the claim and the server",
        (Edit(LIMITS, "capacity := burst - delay * per_second;", "capacity := burst;"),),
        tests=(HOST_LIMITS + "test_a_bucket_never_lets_more_arrive_than_it_says",),
    ),
    Mutant(
        "limit-forgets-the-cancelled",
        "a cancelled request does not count while its connection is open",
        (Edit("extension/55_marks.sql", " and m.limited is not true))", "))"),),
        tests=(HOST_LIMITS + "test_a_cancelled_request_counts_until_its_connection_is_closed",),
    ),
    Mutant(
        "limit-forgets-those-before",
        "what was claimed before a limit does not count for it",
        (
            Edit(
                LIMITS,
                "        for update skip locked));\n    return array(",
                "        limit 0 for update skip locked));\n    return '{}';\n    return array(",
            ),
        ),
        tests=(LIMIT_CLAIMS + "test_a_first_limit_waits_for_its_own_hosts_claims",),
    ),
    Mutant(
        "trigger-raises",
        "a request that cannot be sent fails the statement that changes the row",
        (
            Edit(
                "extension/69_trigger.sql",
                "select coalesce(i.complete_url, url) into target from pgnet.inspect_request"
                "(token, url, query, own_headers, total, '{}') i;",
                "target := pgnet.check_or_raise(token, url, query, own_headers, total, '{}');",
            ),
        ),
        tests=(SUPABASE + "test_a_broken_url_fails_no_statement",),
    ),
    Mutant(
        "foreign-cast",
        "a cast of a table's owner runs with the rights of the trigger function's owner",
        (
            Edit(
                "contrib/supabase_functions.sql",
                "        perform supabase_functions.refuse_foreign_casts(tg_relid);",
                "        null;",
            ),
        ),
        tests=(SUPABASE + "test_a_cast_of_the_tables_owner_is_not_run",),
    ),
    Mutant(
        "webhook-for-everybody",
        "every role may attach the trigger function of a webhook to a table of its own",
        (
            Edit(
                WEBHOOKS,
                "    execute format('revoke all on function %s() from public', function_name);",
                "",
            ),
        ),
        tests=(ROW_PATH + "test_the_function_is_the_owners_alone",),
    ),
    Mutant(
        "webhook-of-a-former-owner",
        "a table's new owner has code of his own run with the rights of the former one",
        (Edit(WEBHOOKS, "    limit 1;\n    if found then", "    limit 1;\n    if false then"),),
        tests=(ROW_PATH + "test_a_table_given_to_another_owner",),
    ),
    Mutant(
        "webhook-by-jsonb",
        "a row with an escape of NUL in a column of type json fails the statement",
        (
            Edit(
                WEBHOOKS,
                "new_row := row_to_json(new);",
                "new_row := to_jsonb(new)::json;",
            ),
        ),
        tests=("tests/database/webhooks/test_payloads.py::test_values_as_json",),
    ),
    Mutant(
        "untold-end",
        "the commit that ends a request tells nobody who waits for it",
        (
            Edit(
                "python/pgnet/server/commit_hook.py",
                "self._sender.tell(self._ended)",
                "self._ended.clear()",
            ),
        ),
        tests=("tests/database/responses/test_waiting.py::test_a_recording_tells",),
    ),
    Mutant(
        "no-fence",
        "outcomes are recorded whoever holds the claim",
        (
            Edit(
                RECORD,
                "where c.id = r.id and c.token = r.token for update of c skip locked",
                "where c.id = r.id for update of c skip locked",
            ),
        ),
        (
            CRASHES + "test_a_rescued_claim_is_fenced",
            CRASHES + "test_a_stale_token_records_nothing",
        ),
        ("rescue-record",),
    ),
    Mutant(
        "no-on-conflict",
        "two workers that look before either commits collide",
        (Edit(CLAIM, "        on conflict on constraint claim_pkey do nothing\n", ""),),
        (CRASHES + "test_claims_are_exclusive",),
        ("claim-claim",),
    ),
    Mutant(
        "delete-before-send",
        "a claim takes the request out of the queue: with the worker it is gone",
        (
            Edit(
                "extension/30_queue.sql",
                "create view pgnet.ready_request with (security_invoker) as",
                "create table pgnet.taken (like net.http_request_queue including all);\n"
                "grant select on pgnet.taken to public;\n"
                "create view pgnet.ready_request with (security_invoker) as",
            ),
            # or the heartbeat would take it for deleted
            Edit(
                "extension/58_heartbeat.sql",
                "o.id = any (owned) and not exists (select from net.http_request_queue q",
                "o.id = any (owned) and not exists (select from (table net.http_request_queue union all table pgnet.taken) q",
            ),
            # or net.wait would not find it
            Edit(
                "extension/60_outcome.sql",
                "        from net.http_request_queue q\n        left join pgnet.claim c on c.id = q.id\n",
                "        from (table net.http_request_queue union all table pgnet.taken) q\n        left join pgnet.claim c on c.id = q.id\n",
            ),
            Edit(
                CLAIM,
                "    -- Of a request that is sent once at most, or alone, the attempt is on disk",
                "    cross join lateral (select pgnet.take(c.id) as taken offset 0) t\n"
                "    -- Of a request that is sent once at most, or alone, the attempt is on disk",
            ),
            Edit(
                CLAIM,
                "create function pgnet.claim_requests(",
                "create function pgnet.take(request_id bigint) returns boolean\n"
                "language sql volatile as $$\n"
                "    with taken as (delete from net.http_request_queue q where q.id = request_id returning q.*)\n"
                "    insert into pgnet.taken select * from taken;\n"
                "    select true\n"
                "$$;\n"
                "create function pgnet.claim_requests(",
            ),
            Edit(
                RECORD,
                "select q.* from net.http_request_queue q where q.id = r.id for update of q skip locked",
                "select q.* from pgnet.taken q where q.id = r.id for update of q skip locked",
            ),
            Edit(
                RECORD,
                "select true as seen from net.http_request_queue q where q.id = r.id",
                "select true as seen from pgnet.taken q where q.id = r.id",
            ),
            Edit(
                RECORD,
                "delete from net.http_request_queue q where q.id = any "
                "(array(select h.id from held h where h.locked and h.state <> 'retrying'))",
                "delete from pgnet.taken q where q.id = any "
                "(array(select h.id from held h where h.locked))",
            ),
        ),
        (CRASHES + "test_a_crash_amid_a_thousand_requests",),
    ),
    Mutant(
        "pause-of-a-port-only",
        "a host that is paused by its name is sent to on its other ports",
        (
            Edit(
                CLAIM,
                "t.host in ('*', p.host, regexp_replace(p.host, ':[0-9]+$', ''))",
                "t.host in ('*', p.host)",
            ),
        ),
        ("tests/database/test_pause.py::test_a_name_stands_for_all_its_ports",),
    ),
    Mutant(
        "leaky-search",
        "a function of the caller's sees requests of others, through the view of net.cancel_where",
        (
            Edit(
                "extension/63_steer.sql",
                "create view pgnet.own_queued with (security_barrier) as",
                "create view pgnet.own_queued as",
            ),
        ),
        ("tests/database/test_steer.py::test_no_function_of_a_caller_sees_rows_of_others",),
    ),
    Mutant(
        "drain-ends-early",
        "a drain does not wait for the next request by the rate of a host",
        (Edit("python/pgnet/worker/loop.py", "_WORTH_WAITING = 1.0", "_WORTH_WAITING = 0.0"),),
        ("tests/database/test_drain.py::test_it_sends_all_that_the_rate_of_a_host_allows",),
    ),
    Mutant(
        "high-water-mark",
        "requests are claimed behind the last id that was: who commits later with a lower one waits",
        (
            Edit(
                CLAIM,
                "                order by q.priority, q.id\n",
                "                    and q.id > (select coalesce(max(r.id), 0) from net._http_response r)\n"
                "                order by q.priority, q.id\n",
            ),
        ),
        (CRASHES + "test_a_crash_amid_a_thousand_requests",),
        ("enqueue-claim",),
    ),
    Mutant(
        "heartbeat-in-one-piece",
        "a duty of the heartbeat that fails has all of it fail",
        (
            Edit(
                HEARTBEAT,
                "        perform pgnet.note_fault(duty, caught.message, case",
                "        raise exception '%', caught.message;\n"
                "        perform pgnet.note_fault(duty, caught.message, case",
            ),
        ),
        ("tests/database/test_heartbeat.py::test_a_trigger_that_raises_stops_nobody_else",),
    ),
    Mutant(
        "expiry-begins-anew",
        "rows that cannot be deleted are in front of all others again and again",
        (
            Edit(
                EXPIRE,
                "before, case when probe then '-infinity' else coalesce(fault.behind, '-infinity') end,",
                "before, '-infinity',",
            ),
        ),
        (
            "tests/database/test_heartbeat.py::test_many_rows_that_stay_do_not_starve_those_behind_them",
        ),
    ),
    Mutant(
        "refused-outcome-in-memory",
        "an outcome that is refused stays with its worker, and is sent again when that stops",
        (
            Edit(
                RECORD,
                "    if pgnet.put_aside(outcome, caught.message, pgnet.remedy(caught)) then\n",
                "    if false then\n",
            ),
        ),
        ("tests/database/test_heartbeat.py::test_an_outcome_that_is_refused_is_kept",),
    ),
    Mutant(
        "a-suspect-keeps-its-turn",
        "one that was lost with workers keeps all others waiting until it ends",
        (
            Edit(
                "python/pgnet/worker/quarantine.py",
                "over = now >= self._began + (_LONGEST_PHASE if self.in_flight else _PHASE)",
                "over = not self.in_flight and now >= self._began + _PHASE",
            ),
        ),
        ("tests/database/test_quarantine.py::test_a_suspect_that_hangs_stops_nobody",),
    ),
    Mutant(
        "every-error-is-a-lost-connection",
        "what the database refuses has the worker connect anew",
        (
            Edit(
                "python/pgnet/outbox/libpq.py",
                "        return OutboxLost(_message(error)) if self._is_closed() else translated\n",
                "        return OutboxLost(_message(error))\n",
            ),
        ),
        ("tests/database/test_outbox_errors.py::test_a_claim_that_fails_stops_no_recording",),
    ),
    Mutant(
        "waits-for-a-lock-with-another-in-hand",
        "a worker takes the locks of its tables one by one, as DROP EXTENSION does",
        (
            Edit(
                WORKERS,
                "begin\n    for round in 1 .. 10 loop\n",
                "begin\n    return;\n    for round in 1 .. 10 loop\n",
            ),
        ),
        ("tests/database/test_heartbeat.py::test_a_lock_is_waited_for_with_no_other_in_hand",),
    ),
    Mutant(
        "attempt-counted-after-the-send",
        "an attempt that ends with its worker is none",
        (
            Edit(
                RESCUE,
                "ending, started, ended, error_msg)\n        values (\n",
                "ending, started, ended, error_msg)\n        select * from (values (\n",
            ),
            Edit(
                RESCUE,
                "return_claim.claimed, clock_timestamp(), return_claim.reason)\n",
                "return_claim.claimed, clock_timestamp(), return_claim.reason)) v where false\n",
            ),
        ),
        (CRASHES + "test_another_worker_rescues_a_killed_ones_requests",),
    ),
    Mutant(
        "attempt-not-on-disk",
        "a request that is to be sent once at most is sent before the disk knows of it",
        (
            Edit(
                CLAIM,
                "or set_config('synchronous_commit', 'on', true) is not null",
                "or set_config('synchronous_commit', 'off', true) is not null",
            ),
        ),
        (
            "tests/chaos/test_at_most_once_on_disk.py::test_the_attempt_is_on_disk_before_the_first_byte",
        ),
    ),
    Mutant(
        "deadline-by-the-workers-clock",
        "a claim ends when the worker's clock says so",
        (
            Edit(
                "python/pgnet/outbox/libpq.py",
                "select set_config('synchronous_commit', 'off', true) as done",
                "select set_config('synchronous_commit', 'off', true)"
                " || set_config('pgnet.worker_clock', %(clock)s::text, true) as done",
            ),
            Edit(
                "python/pgnet/outbox/libpq.py",
                '                "worker": self._worker_id,\n',
                '                "worker": self._worker_id,\n'
                '                "clock": str(__import__("time").time()),\n',
            ),
            Edit(
                CLAIM,
                "            clock_timestamp() + make_interval(secs => greatest(",
                "            coalesce(to_timestamp(nullif(current_setting('pgnet.worker_clock', true), '')::float8),"
                " clock_timestamp()) + make_interval(secs => greatest(",
            ),
        ),
        ("tests/chaos/test_clocks.py::test_a_claim_ends_by_the_databases_clock",),
    ),
    Mutant(
        "retry-forgets-the-key",
        "the Idempotency-Key goes out with the first attempt alone",
        (
            Edit(
                "python/pgnet/worker/delivery.py",
                "    if claim.idempotency_key is not None and not own_header:",
                "    if claim.idempotency_key is not None and not own_header and claim.attempt == 1:",
            ),
        ),
        (CHAOS,),
    ),
    Mutant(
        "retry-draws-a-new-key",
        "each attempt has an Idempotency-Key of its own",
        (
            Edit(
                "python/pgnet/worker/delivery.py",
                "            key_header = (_KEY_HEADER, claim.idempotency_key)",
                "            key_header = (_KEY_HEADER, f'{claim.idempotency_key}-{claim.attempt}')",
            ),
        ),
        (CHAOS,),
    ),
    Mutant(
        "wake-up-lost-before-sleep",
        "a wake-up that comes while the last look is on its way is thrown away",
        (
            Edit(
                "python/pgnet/worker/loop.py",
                "            claimed = self._outbox.record_and_claim(batch, demand)\n",
                "            claimed = self._outbox.record_and_claim(batch, demand)\n"
                "            self._signals._names -= {'wake'}\n",
            ),
        ),
        ("tests/database/test_wake_up.py::test_no_wake_up_is_lost",),
    ),
    Mutant(
        "wake-up-lost-between-waits",
        "what came while nobody waited is thrown away",
        (
            Edit(
                "python/pgnet/server/waiting.py",
                "    deadline = time.monotonic() + timeout\n",
                "    deadline = time.monotonic() + timeout\n"
                "    if listener is not None:\n"
                "        listener.read()\n",
            ),
        ),
        ("tests/database/test_wake_up.py::test_a_wake_up_between_two_waits_is_kept",),
    ),
    Mutant(
        "rescue-at-each-blip",
        "a worker whose connection broke has no time to come back",
        (
            Edit(
                RESCUE,
                "case w.kind when 'backend' then interval '0' else rescue_after end",
                "interval '0'",
            ),
        ),
        (CRASHES + "test_a_worker_that_is_back_in_time_keeps_its_requests",),
    ),
    Mutant(
        "comes-back-with-nothing",
        "a worker that comes back loses what it has in flight",
        (
            Edit(
                WORKERS,
                "where o.worker = worker_id and o.id <> all (owned) for update",
                "where o.worker = worker_id for update",
            ),
        ),
        ("tests/database/test_worker_process.py::test_a_restart_sends_nothing_again",),
    ),
    Mutant(
        "at-most-once-after-a-loss",
        "what was lost with its worker is sent again, though once at most",
        (
            Edit(
                RESCUE,
                "            if request.options -> 'delivery' = '\"at_most_once\"' then\n",
                "            if false then\n",
            ),
        ),
        (CHAOS,),
        ("at-most-once",),
    ),
    Mutant(
        "at-most-once-repeated-on-the-wire",
        "a kept connection that is closed has the request sent again, though once at most",
        (
            Edit(
                "python/pgnet/worker/performer.py",
                "at_most_once=delivery.at_most_once",
                "at_most_once=False",
            ),
        ),
        (CHAOS,),
    ),
    Mutant(
        "what-waits-is-a-flood",
        "an answer that we have not read yet is broken off for what a server has sent of it",
        (
            Edit(
                "python/pgnet/wire/curl/flood.py",
                "return int(received) - int.from_bytes(waiting, sys.byteorder)\n",
                "return int(received)\n",
            ),
        ),
        ("tests/wire/test_misbehaviour.py::test_what_waits_in_the_kernel_is_no_flood",),
    ),
    Mutant(
        "a-tunnel-is-an-answer",
        "where libcurl repeats a request through another tunnel, its opening is taken for the answer",
        (
            Edit(
                "python/pgnet/wire/curl/easy.py",
                "PROXY if has_tunnel else OPENED",
                "PROXY if has_tunnel and not self.opened else OPENED",
            ),
        ),
        ("tests/wire/test_http2.py::test_what_is_refused_through_a_tunnel",),
    ),
    Mutant(
        "unknown-is-failed",
        "what may have been received ends as never sent",
        (
            Edit(
                "python/pgnet/worker/delivery.py",
                'return replace(outcome, state="unknown"',
                'return replace(outcome, state="failed"',
            ),
        ),
        (CHAOS,),
    ),
    Mutant(
        "stranded-by-the-clock",
        "what waits for a time waits a day longer when the clock is put back by one",
        (
            Edit(
                RESCUE,
                "where o.due is not null and o.waits_since > present + interval '5 s' order by",
                "where false order by",
            ),
        ),
        ("tests/chaos/test_clocks.py::test_what_waits_is_sent_when_the_clock_is_put_back",),
    ),
    Mutant(
        "two-heads",
        "a second request of a key is opened beside the first",
        (
            Edit(
                "extension/49_gates.sql",
                "except select o.id from unnest(opened) o (id)), 'key');",
                "except select o.id from unnest(opened) o (id)), null);",
            ),
            Edit(
                "extension/30_queue.sql",
                "create unique index claim_ordering_key on pgnet.claim (role, ordering_key) where ordering_key is not null;\n",
                "",
            ),
        ),
        ("tests/database/order/test_keys.py::test_one_at_a_time_in_the_order_of_ids",),
    ),
    Mutant(
        "late-is-last",
        "a request that is committed late stays behind one with a higher id",
        (
            Edit(
                "extension/49_gates.sql",
                "            and not exists (select from pgnet.attempt a where a.request_id = o.id offset 0))\n",
                "            and false)\n",
            ),
        ),
        ("tests/database/order/test_keys.py::test_an_id_that_is_committed_late",),
    ),
    Mutant(
        "nobody-is-told",
        "the end of a request that others wait for is noted by nobody",
        (
            Edit(
                "extension/49_gates.sql",
                "    -- A statement of its own: its snapshot is taken when the rows of the queue are locked.\n",
                "    return;\n",
            ),
        ),
        ("tests/database/order/test_after.py::test_it_is_sent_when_all_have_ended_well",),
    ),
    Mutant(
        "unlocked-link",
        "what a request waits for is not locked while it is examined",
        (
            Edit(
                "extension/49_gates.sql",
                "        for key share of q skip locked\n",
                "        offset 0\n",
            ),
        ),
        (
            "tests/database/order/test_after.py::test_it_is_being_recorded_while_a_dependant_is_examined",
            "tests/database/order/test_after.py::test_a_dependant_is_being_examined_while_it_is_recorded",
        ),
    ),
    Mutant(
        "forged-key",
        "the key of a row that no worker has opened counts in a claim",
        (
            Edit(
                "extension/52_claim.sql",
                "case when f.opened is not null then f.ordering_key end as ordering_key, f.unique_key\n                    from",
                "f.ordering_key as ordering_key, f.unique_key\n                    from",
            ),
        ),
        ("tests/database/order/test_keys.py::test_one_claim_for_a_key_whatever_is_forged",),
    ),
    Mutant(
        "no-sweep",
        "nobody looks for what a row deleted by hand has left",
        (
            Edit(
                "extension/49_gates.sql",
                "    perform pgnet.note_dependants(ids);\n    update pgnet.gate_keeper k\n",
                "    update pgnet.gate_keeper k\n",
            ),
        ),
        ("tests/database/order/test_after.py::test_one_that_was_taken_away",),
    ),
)


class Unfit(Exception):
    """A mutant that cannot be tried."""


def copy_tree(name: str) -> Path:
    """A copy of what is in the working tree, with the virtual environment beside it."""
    tree = BUILD / name / "tree"
    shutil.rmtree(BUILD / name, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for path in filter(None, listed.stdout.split("\0")):
        source = ROOT / path
        if source.is_file() and not source.is_symlink():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, tree / path)
    (tree / ".venv").symlink_to((ROOT / ".venv").resolve())
    return tree


def mutate(tree: Path, mutant: Mutant) -> None:
    for edit in mutant.edits:
        path = tree / edit.path
        text = path.read_text()
        if text.count(edit.search) != edit.times:
            raise Unfit(f"{edit.path} has not {edit.times} × {edit.search!r}")
        path.write_text(text.replace(edit.search, edit.replace))


def private_view(name: str) -> list[str]:
    """The beginning of a command that sees copies in place of what is installed."""
    share = Path(pg_config("sharedir")) / "extension"
    site = Path(
        subprocess.run(
            [server_python(), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            cwd="/",
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    )
    binds = []
    for installed in (share, site):
        copy = BUILD / name / "installed" / installed.name
        shutil.copytree(installed, copy, symlinks=True)
        binds.append(f'mount --bind "{copy}" "{installed}"')
    script = " && ".join(["mount --make-rprivate /", *binds, 'exec "$@"'])
    return ["unshare", "--mount", "bash", "-c", script, "bash"]


def run(command: list[str], tree: Path, log: Path) -> int:
    environment = {
        **os.environ,
        "PG_CONFIG": find_pg_config(),
        "CHAOS_SECONDS": os.environ.get("CHAOS_SECONDS", CHAOS_SECONDS),
    }
    with log.open("ab") as output:
        return subprocess.run(
            command, cwd=tree, env=environment, stdout=output, stderr=output, check=False
        ).returncode


def build(name: str, mutant: Mutant | None) -> tuple[list[str], Path, Path]:
    """Make and install it; gives how to run something in it, where, and its log."""
    tree = copy_tree(name)
    if mutant is not None:
        mutate(tree, mutant)
    log = BUILD / name / "log"
    view = private_view(name)
    prefix = f"PREFIX={BUILD / name / 'prefix'}"
    if run([*view, "make", "-B", "script"], tree, log) or run(
        [*view, "make", prefix, "install"], tree, log
    ):
        raise Unfit(f"it cannot be built, see {log}")
    return view, tree, log


def pytest(view: list[str], tree: Path, log: Path, tests: list[str]) -> int:
    command = [".venv/bin/python", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    return run([*view, *command], tree, log)


def isolation(view: list[str], tree: Path, log: Path, specs: list[str]) -> int:
    return run([*view, "make", "run-isolation", f"SPECS={' '.join(specs)}"], tree, log)


def as_it_is(tests: list[str], specs: list[str]) -> None:
    view, tree, log = build("as-it-is", None)
    if (
        pytest(view, tree, log, SMOKE)
        or (tests and pytest(view, tree, log, tests))
        or (specs and isolation(view, tree, log, specs))
    ):
        raise Unfit(f"the tests do not pass with the source as it is, see {log}")


def survives(mutant: Mutant) -> bool:
    view, tree, log = build(mutant.name, mutant)
    if pytest(view, tree, log, SMOKE):
        raise Unfit(f"it does not pass the smoke test, see {log}")
    survived = False
    if mutant.tests:
        status = pytest(view, tree, log, list(mutant.tests))
        if status not in (0, FAILED):
            raise Unfit(f"its tests could not be run, see {log}")
        survived = status == 0
    if mutant.specs:
        survived |= isolation(view, tree, log, list(mutant.specs)) == 0
    return survived


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="keep the copies that were caught")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these")
    options = parser.parse_args()
    known = {mutant.name: mutant for mutant in MUTANTS}
    if unknown := set(options.names) - known.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    if os.geteuid() != 0:
        print("mutants: this needs root: it mounts copies over what is installed", file=sys.stderr)
        return 2
    chosen = [known[name] for name in options.names] or list(MUTANTS)
    # Mutants that do not apply any more are named at once.
    tree = copy_tree("as-it-is")
    for mutant in chosen:
        for edit in mutant.edits:
            if (tree / edit.path).read_text().count(edit.search) != edit.times:
                print(f"mutants: {mutant.name}: {edit.path} has not {edit.search!r}")
                return 2
    worst = 0
    try:
        as_it_is(
            sorted({test for mutant in chosen for test in mutant.tests}),
            sorted({spec for mutant in chosen for spec in mutant.specs}),
        )
    except Unfit as error:
        print(f"mutants: {error}")
        return 2
    print(f"{'mutant':32} {'':10} {'s':>4}  what is wrong with it", flush=True)
    for mutant in chosen:
        started = time.monotonic()
        try:
            found, status = ("SURVIVES", 1) if survives(mutant) else ("caught", 0)
        except Unfit as error:
            found, status = f"UNFIT: {error}", 2
        took = time.monotonic() - started
        print(f"{mutant.name:32} {found:10} {took:4.0f}  {mutant.wrong}", flush=True)
        worst = max(worst, status)
        if status == 0 and not options.keep:
            shutil.rmtree(BUILD / mutant.name)
    if not options.keep:
        shutil.rmtree(BUILD / "as-it-is")
    return worst


if __name__ == "__main__":
    sys.exit(main())
