"""The program `client` of netns.py: exchanges, which try what they are told."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

from gevent.event import AsyncResult
from gevent.fileobject import FileObjectPosix

from pgnet.request.errors import InvalidRequest
from pgnet.request.url import canonical_url
from pgnet.wire import guard as guard_module
from pgnet.wire.answer import Answer
from pgnet.wire.exchange import Exchange
from pgnet.wire.guard import EgressRules, Guard
from pgnet.wire.host import HostSettings, HostTable
from pgnet.wire.limits import Limits
from pgnet.wire.message import WireRequest
from pgnet.wire.resolve import Resolver


class Commands:
    """Exchanges by name; a command is the name of a method, and its arguments."""

    def __init__(self) -> None:
        self._exchanges: dict[str, Exchange] = {}
        self._begun: list[AsyncResult] = []
        self._lines: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: self._lines.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("pgnet.guard").addHandler(handler)
        # A worker logs that many refused names at most; thousands are refused here.
        guard_module._LOGGED_REFUSALS = sys.maxsize

    def configure(
        self,
        name: str,
        rules: Mapping[str, Any],
        hosts: Mapping[str, Mapping[str, Any]] | None = None,
        max_age: float = 30.0,
    ) -> None:
        guard = Guard(EgressRules.from_json(rules))
        table = HostTable({host: HostSettings(**has) for host, has in (hosts or {}).items()})
        limits = Limits(max_redirects=8)
        if name in self._exchanges:
            self._exchanges[name].configure(guard, limits, table)
        else:
            resolver = Resolver(max_age=max_age)
            self._exchanges[name] = Exchange(guard, limits, table, resolver=resolver)

    def begin(
        self, name: str, cases: list[dict[str, Any]], timeout: float = 10.0, stored: bool = True
    ) -> None:
        """Begin requests. stored: as the row of the queue has it; otherwise as it is written."""
        for case in cases:
            ended: AsyncResult = AsyncResult()
            self._begun.append(ended)
            try:
                url = canonical_url(case["url"]) if stored else case["url"]
            except InvalidRequest as error:
                ended.set({"invalid": error.message})
                continue
            request = WireRequest(case.get("method", "GET"), url, case.get("headers", []), None)
            self._exchanges[name].start(request, timeout, ended.set)

    def collect(self) -> list[dict[str, Any]]:
        """The outcomes of all requests begun since the last time."""
        answers = [ended.get(timeout=60) for ended in self._begun]
        self._begun.clear()
        return [_as_json(answer) if isinstance(answer, Answer) else answer for answer in answers]

    def run(self, **arguments: Any) -> list[dict[str, Any]]:
        self.begin(**arguments)
        return self.collect()

    def logged(self) -> list[str]:
        """The lines that the guard has logged since the last call."""
        found = self._lines.copy()
        self._lines.clear()
        return found

    def close(self) -> None:
        for exchange in self._exchanges.values():
            exchange.close()


def _as_json(answer: Answer) -> dict[str, Any]:
    shown: dict[str, Any] = {"redirects": answer.redirects, "address": answer.address}
    if answer.error is not None:
        return shown | {"error": answer.error.message, "detail": answer.error.detail}
    assert answer.response is not None
    return shown | {"status": answer.response.status_code, "body": answer.response.text}


def serve(tell: Callable[[Any], None]) -> None:
    """Do the commands of standard input, and tell what comes of each."""
    commands = Commands()
    operations: dict[str, Callable[..., Any]] = {
        "logged": commands.logged,
        "configure": commands.configure,
        "begin": commands.begin,
        "collect": commands.collect,
        "run": commands.run,
    }
    tell("ready")
    for line in FileObjectPosix(sys.stdin.fileno(), "rb", closefd=False):
        command = json.loads(line)
        tell(operations[command.pop("op")](**command))
    commands.close()
