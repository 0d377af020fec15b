"""The entry points that the extension's SQL functions call; released ones stay as they are.

The package of a host serves all of its databases, each of which may have another version of the
extension. ``plpy`` is handed in. Callers' entry points import neither gevent nor requests: only the
worker's do, inside their functions.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import pgnet
from pgnet.request.check import check as check_request
from pgnet.request.errors import InvalidRequest
from pgnet.request.params import encode_form, encode_url_with_params_array
from pgnet.request.params import urlencode_string as urlencode
from pgnet.server import backend, commit_hook, wake_up

_POLLS = "the setting wake_up is poll"

# plpy is a module that exists in a server only.
Plpy = Any


def check(
    plpy: Plpy,
    method: str,
    url: str | None,
    params: str | None,
    headers: str | None,
    timeout_milliseconds: int | None,
    options: str | None,
) -> str | None:
    """For pgnet.check_request: the URL as it is stored, None where ``inspect`` decides."""
    if commit_hook.registered():
        commit_hook.arm("wake")
    else:
        arm(plpy, "wake")
    try:
        # A request with a secret is refused here, since SQL decides whether the secret may be used.
        return check_request(method, url, params, headers, timeout_milliseconds, options)
    except InvalidRequest:
        return None


def inspect(
    method: str,
    url: str | None,
    params: str | None,
    headers: str | None,
    timeout_milliseconds: int | None,
    options: str | None,
) -> tuple[str | None, list[str], str | None, str | None, str | None]:
    """For pgnet.inspect_request: URL and secrets; or None, and message, hint and SQLSTATE."""
    secrets: list[str] = []
    try:
        complete = check_request(
            method, url, params, headers, timeout_milliseconds, options, secrets
        )
    except InvalidRequest as error:
        return None, [], error.message, error.hint, error.sqlstate
    return complete, secrets, None, None, None


def form(text: str | None) -> tuple[str | None, str | None, str | None, str | None]:
    """For pgnet.inspect_form: the encoded form; or None, and message, hint and SQLSTATE."""
    try:
        return encode_form(text), None, None, None
    except InvalidRequest as error:
        return None, error.message, error.hint, error.sqlstate


def multipart(
    parts: str | None, files: list[bytes | None] | None
) -> tuple[str | None, bytes | None, str | None, str | None, str | None]:
    """For pgnet.inspect_multipart: type and body; or None, and message, hint and SQLSTATE."""
    from pgnet.request.multipart import encode

    try:
        return *encode(parts, files), None, None, None
    except InvalidRequest as error:
        return None, None, error.message, error.hint, error.sqlstate


def secret_covers(url_prefix: str | None, url: str | None) -> bool:
    """For pgnet.secret_covers: whether a secret with this prefix may go to a URL as stored."""
    from pgnet.request.prefix import covers

    return url is not None and covers(url_prefix, url)


def secret_check(
    name: str, value: str | None, url_prefix: str | None
) -> tuple[str | None, str | None, str | None]:
    """For pgnet.inspect_secret: the prefix as it is stored; or None, and message and hint."""
    from pgnet.request.prefix import canonical_prefix
    from pgnet.secret.value import check_value

    try:
        prefix = None if url_prefix is None else canonical_prefix(url_prefix)
        if value is not None:
            check_value(name, value, prefix)
    except InvalidRequest as error:
        return None, error.message, error.hint
    return prefix, None, None


def urlencode_string(string: str) -> str | None:
    """For net._urlencode_string."""
    return urlencode(string)


def append_to_query(
    url: str, params_array: list[str | None]
) -> tuple[str | None, str | None, str | None, str | None]:
    """For pgnet.append_to_query: the URL; or None, and message, hint and SQLSTATE."""
    try:
        return encode_url_with_params_array(url, params_array), None, None, None
    except InvalidRequest as error:
        return None, error.message, error.hint, error.sqlstate


def arm(plpy: Plpy, signal: str) -> str | None:
    """For pgnet.arm_wake_up and net.wake: signal workers at the commit; or why not."""
    if not commit_hook.registered() and _polls(plpy):
        return _POLLS
    return commit_hook.arm(signal)


def arm_quietly(plpy: Plpy) -> None:
    """For pgnet.arm_webhook: wake a worker at the commit if that can be. Raises nothing of ours."""
    if commit_hook.registered() or (commit_hook.fault() is None and not _polls(plpy)):
        commit_hook.arm("wake")


def _polls(plpy: Plpy) -> bool:
    rows = plpy.execute("select pgnet.setting_value('wake_up') as wake_up", 1)
    return bool(rows[0]["wake_up"] == "poll")


def wake_up_fault(plpy: Plpy) -> str | None:
    """For pgnet.wake_up_fault: why a commit cannot wake a worker here; None where it can."""
    return _POLLS if _polls(plpy) else commit_hook.register()


def note_ends(plpy: Plpy, ids: Sequence[int] | None) -> None:
    """For pgnet.tell_waiters and pgnet.tell_waiter: at the commit, tell who waits for requests."""
    if ids and (commit_hook.registered() or not _polls(plpy)):
        commit_hook.note_ends(ids)


_MAY_WAIT = """
    select pg_catalog.pg_is_in_recovery() as recovering, exists (
        select from net.http_request_queue q where q.id operator(pg_catalog.=) $1) as visible
"""


def await_end(plpy: Plpy, request_id: int, timeout: float) -> bool:
    """For pgnet.await_end: wait until a request may have ended; False where that cannot be told.

    The first call for a request only begins to listen: the caller looks once more, and calls again.
    """
    from pgnet.server import waiting

    waiter = commit_hook.waiter_for(request_id)
    if waiter is None:
        if not commit_hook.registered() and _polls(plpy):
            return False
        found = plpy.execute(plpy.prepare(_MAY_WAIT, ["bigint"]), [request_id])[0]
        if found["recovering"]:
            # What ends requests commits on another server.
            return False
        # When requests of others end is nobody's to know.
        return not found["visible"] or commit_hook.begin_to_wait(request_id)
    postmaster = backend.postmaster_fd()
    told = waiting.wait([waiter], backend.interrupt_flag(), postmaster, -1, timeout)
    if not told and waiting.is_gone(postmaster):
        plpy.fatal("terminating because the postmaster is gone")
    return True


def wake_next(slot: int | None) -> None:
    """For pgnet.wake_next_worker: wake the worker in the next slot behind this one."""
    wake_up.Sender(backend.database_oid()).send("wake", after=-1 if slot is None else slot)


def wait(
    plpy: Plpy, timeout: float | None, callbacks: bool | None = False
) -> tuple[str, int | None]:
    """For pgnet.wait_for_signals: what signals came within ``timeout`` seconds, and the slot.

    callbacks: signals to runners, too.
    """
    from pgnet.server import waiting

    plpy.commit()  # lets go of the snapshot of the CALL
    listening = wake_up.listener()
    both = (listening, wake_up.listener(wake_up.RUNNERS) if callbacks else None)
    signals = waiting.wait(
        [listener for listener in both if listener is not None],
        backend.interrupt_flag(),
        backend.postmaster_fd(),
        backend.client_fd(),
        timeout or 0.0,
    )
    if backend.interrupt_flag().value:
        # A cancel is the statement's to raise, not this code's to swallow.
        plpy.execute("select 1")
        plpy.commit()
    return " ".join(sorted(signals)), listening.slot if listening else None


def serve(plpy: Plpy, max_runtime: str | None, until_idle: bool) -> tuple[bool]:
    """For pgnet.serve: work until the time is over or, if told so, nothing is due.

    max_runtime is an interval as text, None for no limit. Returns whether the call stands in a
    transaction block, where nothing can be done.
    """
    from pgnet.worker.session import run

    return (not run(plpy, max_runtime, until_idle=until_idle),)


def call_restricted(
    plpy: Plpy,
    role: int,
    path: str,
    query: str,
    argument: str,
    timeout: float,
    memory: int,
    keep_locks: bool,
) -> tuple[str | None, str | None, str | None, bool, bool]:
    """For pgnet.call_restricted: message, SQLSTATE and context; timed out; cancelled."""
    from pgnet.server import restricted

    return restricted.call(
        plpy, role, path, query, argument, timeout, memory, keep_locks=keep_locks
    )


def serve_callbacks(plpy: Plpy, max_runtime: str | None) -> tuple[bool]:
    """For pgnet.serve_callbacks: run callbacks until the time is over.

    Returns what ``serve`` does.
    """
    from pgnet.worker.session import run_callbacks

    return (not run_callbacks(plpy, max_runtime),)


def python_check(
    plpy: Plpy,
) -> tuple[str, str, str, str, str | None, str | None]:
    """For pgnet.inspect_python: versions and paths, what is missing, CA bundle, wake-up."""
    from importlib.util import find_spec

    missing = [name for name in ("gevent", "requests", "pycurl") if find_spec(name) is None]
    ca_bundle = None
    if not missing:
        from pgnet.wire.transport import ca_bundle as find_ca_bundle

        path = find_ca_bundle()
        ca_bundle = path if os.path.exists(path) else None
    return (
        pgnet.__version__,
        os.path.dirname(pgnet.__file__),
        sys.version.split()[0],
        ", ".join(missing),
        ca_bundle,
        commit_hook.register(),
    )
