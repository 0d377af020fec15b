"""Many small requests to a local server: each is answered, none fails. The rate is printed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest

from servers.cluster import Database
from servers.nginx import Nginx
from servers.workers import as_backend, as_process

REQUESTS = 5000


@pytest.fixture(scope="module")
def quiet_nginx() -> Iterator[Nginx]:
    """An nginx that keeps no record."""
    with Nginx(record=False) as nginx:
        yield nginx


@pytest.mark.parametrize("form", [as_process, as_backend])
def test_thousands_of_small_requests(
    database: Database,
    quiet_nginx: Nginx,
    form: Callable[[Database], contextlib.AbstractContextManager[None]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with form(database):
        started = time.monotonic()
        database.execute(
            "select net.http_get(%s || n, timeout_milliseconds => 30000)"
            " from generate_series(1, %s) n",
            f"{quiet_nginx.url}/?",
            REQUESTS,
        )
        committed = time.monotonic()
        database.wait_for("select count(*) >= %s from net._http_response", REQUESTS, timeout=60)
        seconds = time.monotonic() - committed
    assert database.rows(
        "select status_code, content, error_msg, attempts, count(distinct url)"
        " from net._http_response group by 1, 2, 3, 4"
    ) == [(200, "pgnet", None, 1, REQUESTS)]
    assert database.value("select count(*) from net.http_request_queue") == 0
    assert database.value("select count(*) from pgnet.claim") == 0
    with capsys.disabled():
        print(
            f" [{REQUESTS / seconds:,.0f} requests/s {form.__name__.replace('_', ' ')},"
            f" queued in {committed - started:.2f} s]",
            end="",
        )
