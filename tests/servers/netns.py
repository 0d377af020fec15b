"""A network namespace that holds a whole internet: every address in it is a server of ours.

All of IPv4 and IPv6, public or not, is local there, so that a connection to any address is
accepted and seen. Three programs run in it, each with a pipe of JSON lines for commands:

    world     HTTP on every address and some ports, DNS on 9.9.9.9; remembers each accept
    client    exchanges, which try what they are told (netns_client.py)
    cluster   a PostgreSQL cluster with a worker process; connect to its Unix socket from outside

The name server says what a name says of itself, so that nothing has to be told beforehand. Labels
from the left, up to the first that is none of these:

    4-0a000001      an A record            6-fd00…01 (32 digits)   an AAAA record
    o-0a000001      an A record of another name, beside the question's own
    c               a CNAME of the rest of the name, whose records are in the answer too
    then            what stands behind it is the answer from the next query of this type on
    t               over UDP the answer is truncated

A name that begins with `absent` does not exist; every other one has private addresses. The time to
live is 0 everywhere.

`/redirect/N?URL` answers with status N and that Location, percent-encoded in the request, and
`/hold?URL` does so with 302 when it is told to. Any other path tells which address it came to.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote_to_bytes

PORTS = (1, 22, 79, 80, 81, 442, 443, 444, 1023, 1024, 3128, 5432, 65535)
NAME_SERVER = "9.9.9.9"
# The machine's own address of IPv6, in a private network.
OWN = "fd00::1"
RESOLV_CONF = f"nameserver {NAME_SERVER}\nsearch inner.test\noptions timeout:1 attempts:2\n"
# Debian's own, and names of both sides.
HOSTS = """\
127.0.0.1 localhost
::1 localhost ip6-localhost ip6-loopback
fe00:: ip6-localnet
ff00:: ip6-mcastprefix
ff02::1 ip6-allnodes
ff02::2 ip6-allrouters
10.0.0.99 inner.hosts
169.254.169.254 metadata.google.internal
8.8.4.4 mixed.hosts
10.0.0.98 mixed.hosts
1.0.0.1 outer.hosts
"""
_NAMESPACES = Path("/run/netns")
_ETC = Path("/etc/netns")
_OURS = re.compile(r"pgnet-test-([0-9]+)-[0-9]+(-[sc])?")
_CLONE_NEWNET = 0x40000000
_numbers = itertools.count()


class LackingRight(Exception):
    """This user may not make network namespaces."""


class Namespace:
    """A network namespace with its own /etc/resolv.conf and /etc/hosts."""

    def __init__(self, name: str) -> None:
        self.name = name

    def command(self, *arguments: str) -> list[str]:
        """The command that runs `arguments` in the namespace, and ends them with this process."""
        return ["setpriv", "--pdeathsig=KILL", "ip", "netns", "exec", self.name, *arguments]

    @contextlib.contextmanager
    def program(self, name: str, *arguments: str) -> Iterator[Program]:
        """Run one of the programs of this file."""
        command = self.command(sys.executable, __file__, name, *arguments)
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        try:
            yield Program(process)
        finally:
            # a program ends when its input ends
            with contextlib.suppress(BrokenPipeError):
                assert process.stdin is not None
                process.stdin.close()
            try:
                # a cluster ends a worker and a server, perhaps on a busy machine
                process.wait(30)
            finally:
                process.kill()
                process.wait()
                assert process.stdout is not None
                process.stdout.close()


class Program:
    """A program in the namespace: `ask` it, it answers."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.hello = self._answer()

    def ask(self, operation: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        line = json.dumps({"op": operation, **arguments}).encode() + b"\n"
        self._process.stdin.write(line)
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a program in the namespace ended: {self._process.wait(10)}")
        return json.loads(line)


def _ip(*arguments: str) -> None:
    finished = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if finished.returncode:
        words = f"ip {' '.join(arguments)}: {finished.stderr.strip()}"
        # The last one is a chroot's: ip mounts things of its own below /, which has to be a mount.
        denied = ("Operation not permitted", "Permission denied", "make-rslave")
        raise (LackingRight if any(d in finished.stderr for d in denied) else RuntimeError)(words)


def _remove(name: str) -> None:
    shutil.rmtree(_ETC / name, ignore_errors=True)
    with contextlib.suppress(OSError):
        _ETC.rmdir()
    if (_NAMESPACES / name).exists():
        _ip("netns", "delete", name)


def _remove_stale() -> None:
    """Remove what runs that were killed have left."""
    for directory in (_NAMESPACES, _ETC):
        for entry in directory.iterdir() if directory.exists() else ():
            match = _OURS.fullmatch(entry.name)
            if match and not Path("/proc", match.group(1)).exists():
                _remove(entry.name)


@contextlib.contextmanager
def namespace() -> Iterator[Namespace]:
    """Make a namespace, and remove it and its files afterwards, whatever happens.

    Errors: LackingRight.
    """
    if os.geteuid() != 0:
        raise LackingRight("only root makes network namespaces by name")
    _remove_stale()
    name = f"pgnet-test-{os.getpid()}-{next(_numbers)}"
    try:
        _ip("netns", "add", name)
        etc = _ETC / name
        etc.mkdir(parents=True)
        (etc / "resolv.conf").write_text(RESOLV_CONF)
        (etc / "hosts").write_text(HOSTS)
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "route", "add", "local", "0.0.0.0/0", "dev", "lo")
        _ip("-n", name, "-6", "route", "add", "local", "::/0", "dev", "lo")
        # IPv6 does not bind to an address that is local by a route alone, nor to the machine's own.
        _ip("-n", name, "-6", "address", "add", f"{OWN}/128", "dev", "lo")
        yield Namespace(name)
    finally:
        _remove(name)


# ---- two hosts on one wire


class Wire:
    """Two network namespaces, `server` and `client`, with a cable between them, and nothing else.

    Their addresses are SERVER and CLIENT; each has its own loopback.
    """

    SERVER, CLIENT = "10.77.0.1", "10.77.0.2"

    def __init__(self, name: str) -> None:
        self.server, self.client = f"{name}-s", f"{name}-c"
        self._ends = {self.server: self.SERVER, self.client: self.CLIENT}

    def lay(self) -> None:
        for name in self._ends:
            _ip("netns", "add", name)
        _ip("-n", self.server, "link", "add", "wire", "type", "veth", "peer", "name", "wire",
            "netns", self.client)  # fmt: skip
        for name, address in self._ends.items():
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "wire")
            _ip("-n", name, "link", "set", "wire", "up")
            _ip("-n", name, "link", "set", "lo", "up")

    def cut(self) -> None:
        """Drop every packet in silence: what is sent is addressed to a card that is not there."""
        for name in self._ends:
            for address in self._ends.values():
                if address != self._ends[name]:
                    _ip("-n", name, "neighbour", "replace", address, "lladdr",
                        "02:00:00:00:00:01", "nud", "permanent", "dev", "wire")  # fmt: skip

    def mend(self) -> None:
        for name in self._ends:
            for address in self._ends.values():
                if address != self._ends[name]:
                    _ip("-n", name, "neighbour", "delete", address, "dev", "wire")

    def remove(self) -> None:
        for name in self._ends:
            _remove(name)


@contextlib.contextmanager
def wire() -> Iterator[Wire]:
    """Make two namespaces with a cable between them, and remove them afterwards.

    Errors: LackingRight.
    """
    if os.geteuid() != 0:
        raise LackingRight("only root makes network namespaces by name")
    _remove_stale()
    laid = Wire(f"pgnet-test-{os.getpid()}-{next(_numbers)}")
    try:
        laid.lay()
        yield laid
    finally:
        laid.remove()


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """Be in a namespace: this thread, and the processes that it starts."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(path: str | Path) -> None:
        with open(path) as there:
            if libc.setns(there.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns {path}")

    with open("/proc/thread-self/ns/net") as before:
        enter(_NAMESPACES / name)
        try:
            yield
        finally:
            enter(f"/proc/self/fd/{before.fileno()}")


# ---- what runs inside: the servers


class World:
    """The servers; `accepts` are (address, port) of each connection, `requests` of each request."""

    def __init__(self) -> None:
        self.accepts: list[tuple[str, int]] = []
        self.requests: list[tuple[str, int, str]] = []
        self.questions: list[tuple[str, int]] = []
        self.asked: Counter[tuple[str, int]] = Counter()
        self.held: list[asyncio.Event] = []

    async def serve(self) -> None:
        """Listen, say so, and do what the lines of standard input say until it ends."""
        for port in PORTS:
            for host in ("0.0.0.0", "::"):
                await asyncio.start_server(self.connection, host, port, backlog=4096)
        loop = asyncio.get_running_loop()
        # A server that fails would look like a server that no client has reached.
        loop.set_exception_handler(lambda _, context: give_up(context))
        await loop.create_datagram_endpoint(lambda: NameServer(self), local_addr=(NAME_SERVER, 53))
        await asyncio.start_server(self.name_connection, NAME_SERVER, 53)
        lines = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        tell({"ports": PORTS})
        while line := await lines.readline():
            command = json.loads(line)
            tell(await getattr(self, command.pop("op"))(**command))

    async def seen(self) -> dict[str, Any]:
        """The requests that came in since the last call."""
        await self.caught_up()
        found = {
            "accepts": self.accepts,
            "requests": self.requests,
            "questions": self.questions,
        }
        self.accepts, self.requests, self.questions = [], [], []
        return found

    async def caught_up(self) -> None:
        """Wait until every connection made before this call has been accepted.

        A listening socket hands out its connections in their order: one more, made last, tells.
        """
        for port, host in itertools.product(PORTS, ("8.8.8.8", "2606:4700::1")):
            before = len(self.accepts)
            _, writer = await asyncio.open_connection(host, port)
            while (host, port) not in self.accepts[before:]:
                await asyncio.sleep(0)
            del self.accepts[self.accepts.index((host, port), before)]
            writer.close()

    async def holding(self, count: int) -> None:
        """Wait until that many requests are held."""
        while len(self.held) < count:
            await asyncio.sleep(0.001)

    async def release(self) -> None:
        """Answer the requests that are held."""
        held, self.held = self.held, []
        for event in held:
            event.set()

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        local = writer.get_extra_info("sockname")
        self.accepts.append((local[0], local[1]))
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                target = head.split(b" ", 2)[1].decode("latin-1")
                self.requests.append((local[0], local[1], target))
                writer.write(await self.answer(target, local))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    async def answer(self, target: str, local: Sequence[Any]) -> bytes:
        # A proxy is asked for a whole URL.
        path, _, query = re.sub("^http://[^/?]*", "", target).partition("?")
        status = path.removeprefix("/redirect/") if path.startswith("/redirect/") else ""
        if path == "/hold":
            status = "302"
            event = asyncio.Event()
            self.held.append(event)
            await event.wait()
        if status:
            location = unquote_to_bytes(query)
            return (
                f"HTTP/1.1 {status} Elsewhere\r\nContent-Length: 0\r\nLocation: ".encode()
                + location
                + b"\r\n\r\n"
            )
        body = json.dumps({"local": local[0], "port": local[1], "target": target}).encode()
        return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    # DNS (RFC 1035)

    async def name_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                (length,) = struct.unpack("!H", await reader.readexactly(2))
                answer = self.reply(await reader.readexactly(length), True)
                writer.write(struct.pack("!H", len(answer)) + answer)
        writer.close()

    def reply(self, query: bytes, whole: bool) -> bytes:
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode("latin-1").lower())
            at += query[at] + 1
        (kind,) = struct.unpack_from("!H", query, at + 1)
        question = query[12 : at + 5]
        name = ".".join(labels)
        self.questions.append((name, kind))
        if labels[:1] == ["absent"]:
            return query[:2] + b"\x85\x83" + struct.pack("!4H", 1, 0, 0, 0) + question
        step = self.asked[name, kind]
        self.asked[name, kind] += 1
        if "t" in labels and not whole:
            self.asked[name, kind] -= 1
            return query[:2] + b"\x87\x80" + struct.pack("!4H", 1, 0, 0, 0) + question
        records = self.records(labels, kind, step)
        return (
            query[:2] + b"\x85\x80" + struct.pack("!4H", 1, len(records), 0, 0) + question
        ) + b"".join(records)

    @staticmethod
    def records(labels: list[str], kind: int, step: int) -> list[bytes]:
        records = []
        owner = labels
        known = False
        rest = iter(range(len(labels)))
        for number in rest:
            mark, _, value = labels[number].partition("-")
            if mark == "4" and len(value) == 8:
                known = True
                if kind == 1:
                    records.append(record(owner, 1, bytes.fromhex(value)))
            elif mark == "6" and len(value) == 32:
                known = True
                if kind == 28:
                    records.append(record(owner, 28, bytes.fromhex(value)))
            elif mark == "o" and len(value) == 8:
                known = True
                if kind == 1:
                    records.append(record(["other", "test"], 1, bytes.fromhex(value)))
            elif mark == "c" and not value:
                known = True
                alias = labels[number + 1 :]
                records.append(record(owner, 5, encoded(alias)))
                owner = alias
            elif mark == "then":
                if step == 0:
                    break
                step -= 1
                records = []
            elif mark != "t":
                break
        if known:
            return records
        private = {1: bytes([10, 66, 66, 66]), 28: bytes.fromhex("fd66" + "0" * 26 + "66")}
        return [record(labels, kind, private[kind])] if kind in private else []


class NameServer(asyncio.DatagramProtocol):
    """DNS over UDP."""

    def __init__(self, world: World) -> None:
        self.world = world

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(self.world.reply(data, False), addr)


def encoded(labels: Sequence[str]) -> bytes:
    """A domain name as it stands in a message."""
    return b"".join(bytes([len(label)]) + label.encode("latin-1") for label in labels) + b"\0"


def record(owner: Sequence[str], kind: int, data: bytes) -> bytes:
    """A resource record, with a time to live of 0."""
    return encoded(owner) + struct.pack("!HHIH", kind, 1, 0, len(data)) + data


def give_up(context: Mapping[str, Any]) -> None:
    """End this process for a fault of its own."""
    print(context.get("message"), repr(context.get("exception")), file=sys.stderr, flush=True)
    os._exit(1)


def tell(answer: Any) -> None:
    """Answer the other end of the pipe."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


# ---- what runs inside: a cluster


def cluster() -> None:
    """A cluster with a database and its worker process, until the input ends."""
    from servers.cluster import Cluster

    # The database listens on every address here, so that each is a way to its own port.
    with Cluster(listen_addresses="*") as made:
        database = made.create_database()
        with database.worker() as worker:
            logs = {"worker_log": str(worker.log), "server_log": str(made.log)}
            tell({"dsn": database.dsn(), "port": made.port, **logs})
            sys.stdin.read()
        database.close()


def main() -> None:
    tests = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(tests), str(tests.parent / "python")]
    program = sys.argv[1]
    if program == "world":
        asyncio.run(World().serve())
    elif program == "client":
        from servers import netns_client

        netns_client.serve(tell)
    else:
        cluster()


if __name__ == "__main__":
    main()
