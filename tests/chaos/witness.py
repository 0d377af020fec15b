#!/usr/bin/python3
"""The server that requests go to: records each, misbehaves by a seed, and outlives all workers.

    python3 tests/chaos/witness.py --record FILE --seed N [--host ADDRESS] [--sockets FILE ...]

It prints its ports when it listens: the second is that of a host with limits. A line of JSON is
written for each request as soon as its head has come, before anything else is done about it:

    {"key", "number" (of this key, from 1), "method", "idempotency_key", "way", "status", "time",
     "beside", "at_once"}

`status` is that of a complete answer, null where there will be none. A path is /KEY, or
/ORDERING_KEY/KEY: `beside` are the keys of the other requests of the same ordering key that are
being answered just now. `at_once` is how many are at the host with limits, this one included; null
for the other host. Lines on its standard input are commands:

    kill connect    kill -9 who connects next, right after the connect
    kill sent       kill -9 who sends the next request, right after its last byte
    spare …         not any more
    behave          from now on, answer every request well, and at once
    take your time  the same, after up to half a second
    kills           nothing

The answer is always how many it has killed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import email.utils
import itertools
import json
import random
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from chaos import culprit

WAYS = {
    "answer": 52,
    "answer late": 12,
    "answer too late": 1,
    "answer, then close": 4,
    "answer twice": 2,
    "500": 4,
    "503": 4,
    "503 with a date": 1,
    "429": 3,
    "404": 2,
    "close": 3,
    "reset": 3,
    "reset before the body is read": 2,
    "half a head": 2,
    "half a body": 3,
}
# The share of connections that are closed without a byte read.
_CLOSED_UNREAD = 0.004


class Witness:
    def __init__(self, record: Path, seed: str, sockets: list[Path]) -> None:
        self._record = record.open("a", buffering=1)
        self._seed = seed
        self._sockets = sockets
        self._numbers: Counter[str] = Counter()
        self._kill_at: set[str] = set()
        self._well = False
        self._slowly = False
        self._kills = 0
        # The requests that are being answered: key, ordering key, whether at the host with limits,
        # and where they came from.
        self._open: dict[int, tuple[str, str, bool, asyncio.StreamReader]] = {}
        self._opened = itertools.count()
        self.limited_port = 0
        self._choose = random.Random(f"{seed}/connections")

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self._perhaps_kill("connect", writer)
            if not self._well and self._choose.random() < _CLOSED_UNREAD:
                _reset(writer)
                return
            while await self._request(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    def _perhaps_kill(self, point: str, writer: asyncio.StreamWriter) -> None:
        if point in self._kill_at:
            self._kill_at.discard(point)
            name = culprit.kill(writer.get_extra_info("peername")[1], self._sockets)
            self._kills += name is not None
            self._write({"killed": name, "point": point})

    def _write(self, entry: dict[str, Any]) -> None:
        self._record.write(json.dumps({**entry, "time": time.time()}) + "\n")

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Read one request, note it, answer it; False ends the connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = head[:-4].split("\r\n")
        method, target, _version = line.split(" ")
        headers = {
            name.lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)
        }
        ordering_key, _, key = target[1:].rpartition("/")
        self._numbers[key] += 1
        number = self._numbers[key]
        choose = random.Random(f"{self._seed}/{key}/{number}")
        [way] = ["answer"] if self._well else choose.choices(list(WAYS), list(WAYS.values()))
        limited = writer.get_extra_info("sockname")[1] == self.limited_port
        answers = way.startswith(("answer", "half"))
        status = int(way[:3]) if way[:3].isdigit() else 200 if answers else None
        self._write(
            {
                "key": key,
                "number": number,
                "method": method,
                "idempotency_key": headers.get("idempotency-key"),
                "way": way,
                "status": status,
                **self._beside(ordering_key, key, limited=limited),
            }
        )
        place = next(self._opened)
        self._open[place] = (key, ordering_key, limited, reader)
        try:
            return await self._read_and_answer(
                way, status, key, number, choose, method, headers, reader, writer
            )
        finally:
            del self._open[place]

    def _beside(self, ordering_key: str, key: str, *, limited: bool) -> dict[str, Any]:
        """What is being answered for clients that are still there."""
        there = [entry for entry in self._open.values() if not entry[3].at_eof()]
        return {
            "beside": [k for k, o, _, _ in there if o and o == ordering_key and k != key],
            "at_once": 1 + sum(entry[2] for entry in there) if limited else None,
        }

    async def _read_and_answer(
        self,
        way: str,
        status: int | None,
        key: str,
        number: int,
        choose: random.Random,
        method: str,
        headers: dict[str, str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        if way == "reset before the body is read":
            _reset(writer)
            return False
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if method != "GET" and body.decode() != f"body of {key}":
            self._write({"wrong_body": body.decode("latin-1"), "key": key})
        self._perhaps_kill("sent", writer)
        return await self._answer(way, status, key, number, choose, writer)

    async def _answer(
        self,
        way: str,
        status: int | None,
        key: str,
        number: int,
        choose: random.Random,
        writer: asyncio.StreamWriter,
    ) -> bool:
        more = ""
        if self._well and self._slowly:
            await asyncio.sleep(choose.uniform(0, 0.5))
        match way:
            case "answer late":
                await asyncio.sleep(choose.expovariate(2))
            case "answer too late":
                await asyncio.sleep(9)
            case "503 with a date":
                more = f"Retry-After: {email.utils.formatdate(time.time() + 2, usegmt=True)}\r\n"
            case "429":
                more = f"Retry-After: {choose.choice([0, 1, 2])}\r\n"
            case "close":
                return False
            case "reset":
                _reset(writer)
                return False
        content = json.dumps({"key": key, "number": number}).encode()
        lines = f"HTTP/1.1 {status or 200} As Drawn\r\nContent-Type: application/json\r\n{more}"
        whole = f"{lines}Content-Length: {len(content)}\r\n\r\n".encode() + content
        if way == "half a head":
            whole = whole[:40]
        elif way == "half a body":
            whole = whole[:-10]
        elif way == "answer twice":
            whole += whole
        writer.write(whole)
        await writer.drain()
        return way not in ("answer, then close", "half a head", "half a body")

    # ---- commands

    async def obey(self) -> None:
        """Read commands until the input ends."""
        commands = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
        )
        while line := (await commands.readline()).decode().strip():
            verb, _, point = line.partition(" ")
            if verb == "kill":
                self._kill_at.add(point)
            elif verb == "spare":
                self._kill_at.discard(point)
            elif line in ("behave", "take your time"):
                self._well = True
                self._slowly = line != "behave"
                self._kill_at.clear()
            print(self._kills, flush=True)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Have the connection end with a TCP reset."""
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def serve(options: argparse.Namespace) -> None:
    witness = Witness(options.record, options.seed, options.sockets)
    servers = [
        await asyncio.start_server(witness.connection, options.host, 0, backlog=1024)
        for _ in range(2)
    ]
    ports = [server.sockets[0].getsockname()[1] for server in servers]
    witness.limited_port = ports[1]
    print(*ports, flush=True)
    await witness.obey()


class Running:
    """The witness in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], host: str, ports: list[str]) -> None:
        self._process = process
        self._lock = threading.Lock()
        self.url, self.limited_url = (f"http://{host}:{port}/" for port in ports)

    def kills(self) -> int:
        """How many processes it has killed."""
        return self.tell("kills")

    def tell(self, command: str) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
            if not answer:
                raise RuntimeError("the witness has ended")
            return int(answer)


@contextlib.contextmanager
def running(record: Path, seed: str, host: str, sockets: list[Path]) -> Iterator[Running]:
    command = [sys.executable, __file__, "--record", str(record), "--seed", seed, "--host", host]
    command += ["--sockets", *map(str, sockets)]
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig=KILL", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], 10)
        ports = process.stdout.readline().split() if ready else []
        if not ports:
            raise RuntimeError(f"the witness did not start: {process.poll()}")
        yield Running(process, host, ports)
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--sockets", type=Path, nargs="*", default=[Path("/proc/net/tcp")])
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
