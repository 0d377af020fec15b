"""A minute of chaos, and that its checker finds what it is there to find."""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from chaos import crash, faults, server
from chaos.checker import Attempt, Evidence, Response, Sent, Sighting, check
from servers.cluster import Cluster
from servers.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
URL = "http://witness/"


def evidence() -> Evidence:
    """A good run: 1 answered, 2 retried, 3 at most once and unknown, 4 failed, 5 the same again."""
    return Evidence(
        sent=[
            Sent("a", 1),
            Sent("b", 2, "POST", retry="quick"),
            Sent("c", 3, "POST", "at_most_once"),
            Sent("d", 4, "PUT", idempotency_key="mine"),
            Sent("d", 5, "PUT", idempotency_key="mine", former=4),
            Sent("e", 6),
        ],
        sightings=[
            Sighting("a", 1, "GET", None, "answer", 200),
            Sighting("b", 1, "POST", "kb", "503", 503),
            Sighting("b", 2, "POST", "kb", "answer", 200),
            Sighting("c", 1, "POST", None, "reset", None),
            Sighting("d", 1, "PUT", "mine", "404", 404),
            Sighting("d", 2, "PUT", "mine", "answer", 200),
        ],
        responses=[
            Response(1, URL + "a", "succeeded", 200, '{"key": "a", "number": 1}', None, 1),
            Response(2, URL + "b", "succeeded", 200, '{"key": "b", "number": 2}', None, 2),
            Response(3, URL + "c", "unknown", None, None, "Recv failure", 1),
            Response(4, URL + "d", "failed", 404, '{"key": "d", "number": 1}', None, 1),
            Response(5, URL + "d", "succeeded", 200, '{"key": "d", "number": 2}', None, 1),
            Response(6, URL + "e", "cancelled", None, None, "Cancelled", 0),
        ],
        operations=[
            ("INSERT", 1, "succeeded"),
            ("INSERT", 2, "succeeded"),
            ("INSERT", 3, "unknown"),
            ("INSERT", 4, "failed"),
            ("INSERT", 5, "succeeded"),
            ("INSERT", 6, "cancelled"),
        ],
        attempts=[
            Attempt(1, 1, "succeeded"),
            Attempt(2, 1, "answered"),
            Attempt(2, 2, "succeeded"),
            Attempt(3, 1, "unknown"),
            Attempt(4, 1, "failed"),
            Attempt(5, 1, "succeeded"),
        ],
        failed={3},
        cancelled=[6],
        acknowledged={"a", "b"},
        undone={"x"},
    )


def test_a_good_run_has_no_violations() -> None:
    assert check(evidence()) == []


def lose_an_outcome(run: Evidence) -> None:
    del run.responses[0], run.operations[0], run.attempts[0]


def record_twice(run: Evidence) -> None:
    run.operations.append(("INSERT", 1, "failed"))


def record_another_way(run: Evidence) -> None:
    run.operations.append(("UPDATE", 1, "failed"))


def remove_an_outcome(run: Evidence) -> None:
    run.operations.append(("DELETE", 1, "succeeded"))


def send_what_was_rolled_back(run: Evidence) -> None:
    run.sightings.append(Sighting("x", 1, "GET", None, "reset", None))


def record_what_was_rolled_back(run: Evidence) -> None:
    run.operations.append(("INSERT", 99, "failed"))


def send_twice_at_most_once(run: Evidence) -> None:
    run.sightings.append(Sighting("c", 2, "POST", None, "reset", None))


def try_again_at_most_once(run: Evidence) -> None:
    run.attempts[3:4] = [Attempt(3, 1, "lost"), Attempt(3, 2, "unknown")]
    run.responses[2] = replace(run.responses[2], attempts=2)


def say_never_sent(run: Evidence) -> None:
    run.responses[2] = replace(run.responses[2], state="failed")
    run.operations[2] = ("INSERT", 3, "failed")
    run.attempts[3] = Attempt(3, 1, "failed")


def say_unknown_of_an_answer(run: Evidence) -> None:
    run.responses[2] = replace(
        run.responses[2], status_code=200, content='{"key": "c", "number": 1}', error_msg=None
    )


def say_unknown_of_what_may_be_sent_again(run: Evidence) -> None:
    run.sent[2] = replace(run.sent[2], delivery="at_least_once")


def give_the_answer_of_another(run: Evidence) -> None:
    run.responses[0] = replace(run.responses[0], content='{"key": "b", "number": 2}')


def give_an_answer_that_was_not(run: Evidence) -> None:
    run.responses[0] = replace(run.responses[0], content='{"key": "a", "number": 2}')


def give_another_status(run: Evidence) -> None:
    run.responses[0] = replace(run.responses[0], status_code=201)


def record_nothing(run: Evidence) -> None:
    run.responses[2] = replace(run.responses[2], error_msg=None)


def succeed_without_an_answer(run: Evidence) -> None:
    run.responses[0] = replace(run.responses[0], status_code=None, content=None, error_msg="?")


def end_otherwise(run: Evidence) -> None:
    run.responses[0] = replace(run.responses[0], state="ready")


def send_by_another_method(run: Evidence) -> None:
    run.sightings[0] = replace(run.sightings[0], method="POST")


def send_another_body(run: Evidence) -> None:
    run.wrong_bodies.append("b")


def forget_a_dead_letter(run: Evidence) -> None:
    run.failed.clear()


def keep_what_succeeded(run: Evidence) -> None:
    run.failed.add(1)


def send_again_twice(run: Evidence) -> None:
    run.sent.append(replace(run.sent[4], id=7))


def send_again_what_succeeded(run: Evidence) -> None:
    run.sent[4] = replace(run.sent[4], former=1)


def cancel_in_vain(run: Evidence) -> None:
    run.cancelled.append(3)
    run.responses[2] = replace(run.responses[2], attempts=0)


def leave_a_mark(run: Evidence) -> None:
    run.marked.add(1)


def cancel_by_itself(run: Evidence) -> None:
    run.cancelled.clear()


def forget_the_key(run: Evidence) -> None:
    run.sightings[2] = replace(run.sightings[2], idempotency_key=None)


def change_the_key(run: Evidence) -> None:
    run.sightings[2] = replace(run.sightings[2], idempotency_key="another")


def send_without_a_key(run: Evidence) -> None:
    run.sightings[1:3] = [replace(seen, idempotency_key=None) for seen in run.sightings[1:3]]


def send_another_key_than_asked(run: Evidence) -> None:
    run.sightings[4:6] = [replace(seen, idempotency_key="yours") for seen in run.sightings[4:6]]


def share_a_key(run: Evidence) -> None:
    run.sightings[0] = replace(run.sightings[0], idempotency_key="kb")


def leave_in_the_queue(run: Evidence) -> None:
    run.queued.add(7)


def leave_claimed(run: Evidence) -> None:
    run.claimed.add(7)


def miscount_attempts(run: Evidence) -> None:
    run.responses[1] = replace(run.responses[1], attempts=3)


def forget_an_attempt(run: Evidence) -> None:
    del run.attempts[1]


def try_too_often(run: Evidence) -> None:
    run.sent[1] = replace(run.sent[1], max_attempts=1)


def give_up_early(run: Evidence) -> None:
    run.responses[1] = replace(
        run.responses[1], state="failed", status_code=503, content='{"key": "b", "number": 1}'
    )
    run.operations[1] = ("INSERT", 2, "failed")
    run.attempts[2] = Attempt(2, 2, "failed")
    run.failed.add(2)


def lose_a_commit(run: Evidence) -> None:
    run.acknowledged.add("y")


def keep_a_rollback(run: Evidence) -> None:
    run.undone.add("a")


def send_twice_in_a_calm(run: Evidence) -> None:
    run.calm = True


def find(run: Evidence) -> None:
    run.findings.append("a worker ended by itself")


def commit_nothing(run: Evidence) -> None:
    for what in (run.sent, run.sightings, run.responses, run.operations, run.attempts):
        what.clear()
    run.failed.clear()
    run.cancelled.clear()
    run.acknowledged.clear()


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (lose_an_outcome, "lost"),
        (record_twice, "double outcome"),
        (record_another_way, "double outcome"),
        (remove_an_outcome, "double outcome"),
        (send_again_twice, "double outcome"),
        (send_what_was_rolled_back, "phantom"),
        (record_what_was_rolled_back, "phantom"),
        (send_twice_at_most_once, "sent twice though at most once"),
        (try_again_at_most_once, "sent twice though at most once"),
        (say_never_sent, "wrong outcome"),
        (say_unknown_of_an_answer, "wrong outcome"),
        (say_unknown_of_what_may_be_sent_again, "wrong outcome"),
        (give_the_answer_of_another, "wrong outcome"),
        (give_an_answer_that_was_not, "wrong outcome"),
        (give_another_status, "wrong outcome"),
        (record_nothing, "wrong outcome"),
        (succeed_without_an_answer, "wrong outcome"),
        (end_otherwise, "wrong outcome"),
        (send_by_another_method, "wrong outcome"),
        (send_another_body, "wrong outcome"),
        (forget_a_dead_letter, "wrong outcome"),
        (keep_what_succeeded, "wrong outcome"),
        (send_again_what_succeeded, "wrong outcome"),
        (cancel_in_vain, "wrong outcome"),
        (leave_a_mark, "wrong outcome"),
        (cancel_by_itself, "wrong outcome"),
        (forget_the_key, "key"),
        (change_the_key, "key"),
        (send_without_a_key, "key"),
        (send_another_key_than_asked, "key"),
        (share_a_key, "key"),
        (leave_in_the_queue, "left over"),
        (leave_claimed, "left over"),
        (miscount_attempts, "attempts"),
        (forget_an_attempt, "attempts"),
        (try_too_often, "attempts"),
        (give_up_early, "attempts"),
        (lose_a_commit, "database"),
        (keep_a_rollback, "database"),
        (send_twice_in_a_calm, "double outcome"),
        (find, "finding"),
        (commit_nothing, "finding"),
    ],
)
def test_the_checker_finds(fault: Callable[[Evidence], None], kind: str) -> None:
    run = evidence()
    fault(run)
    assert kind in {violation.kind for violation in check(run)}


def chaos(seconds: float, *options: str) -> tuple[str, dict[str, float]]:
    """Run it; gives what it prints, and the figures by their names."""
    seed = os.environ.get("CHAOS_SEED") or str(random.SystemRandom().randrange(1 << 32))
    finished = subprocess.run(
        [sys.executable, "-m", "chaos", "--seconds", str(seconds), "--seed", seed, *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(finished.stdout)
    assert finished.returncode == 0, "violations, see above"
    figures = {
        name: float(count)
        for count, name in re.findall(r"^ *([0-9.]+)  (.*)$", finished.stdout, re.MULTILINE)
    }
    return finished.stdout, figures


CRASHES = """
create extension if not exists plpython3u;
create function crash_in_python() returns void language plpython3u as $$
import ctypes
ctypes.string_at(0)
$$;
"""


@pytest.mark.parametrize("own", [True, False], ids=["PostgreSQL's", "ours"])
def test_whose_crash_it_was(own: bool, tmp_path: Path) -> None:
    """The stack of the core says whose crash it was."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    if shutil.which("gdb") is None or not pattern.startswith("core"):
        pytest.skip("no gdb here, or cores go elsewhere")
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    crash.allow_cores()
    cluster = Cluster()
    try:
        with cluster, cluster.connect() as session:
            session.execute(CRASHES)
            if own:
                os.kill(session.info.backend_pid, signal.SIGSEGV)
            with pytest.raises(psycopg.OperationalError):
                session.execute("select crash_in_python()")
            cores = wait_until(lambda: list(cluster.data.glob("core*")))

            def collected() -> bool:
                crash.collect(cluster.data, tmp_path / "cores")
                return not any(core.exists() for core in cores)

            wait_until(collected)
            (stack,) = crash.stacks(tmp_path / "cores", cluster.bindir / "postgres")
            assert crash.is_postgresqls_own(stack) is own, stack
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


@pytest.mark.usefixtures("installed")
def test_calm() -> None:
    """Workers that are stopped, started and disconnected in order: each request is sent once."""
    _output, figures = chaos(15, "--calm")
    assert figures["requests committed"] > 100
    assert figures["fault: SIGTERM of a worker process"] >= 3
    assert figures["fault: a setting changed"] >= 2
    assert figures["keys seen more than once"] == 0


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("installed")
def test_a_minute_of_chaos() -> None:
    seconds = float(os.environ.get("CHAOS_SECONDS", "60"))
    output, figures = chaos(seconds)
    assert figures["requests committed"] > seconds
    assert figures["keys seen more than once"] > 0
    for state in ("succeeded", "failed", "unknown", "cancelled"):
        assert figures[f"outcomes: {state}"] > 0
    assert figures["callbacks called"] > seconds
    assert figures["callbacks of sets called"] > 0
    # Whatever this machine allows has happened, but for what was struck in vain.
    left_out = set(re.findall(r"^not possible here: (.*)$", output, re.MULTILINE))
    possible = {kind.name for kind in faults.KINDS} - left_out
    struck = {name for name in possible if figures.get(f"fault: {name}")}
    assert len(struck) >= 0.8 * len(possible), f"did not happen: {possible - struck}"
    assert figures["faults: kill -9, all together"] >= 0.8 * seconds
    assert figures["faults: immediate stops"] >= 0.06 * seconds


def test_what_the_faults_need() -> None:
    """The faults name needs that exist: no fault is left out by a slip of a name."""
    needs = {kind.needs for kind in faults.KINDS} - {None}
    assert needs == {"a file system of its own", "a network namespace", "libfaketime"}
    assert server.clock_can_be_moved(), "libfaketime is not installed here: make deps"
