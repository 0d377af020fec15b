"""A network namespace with one cable to this machine, which can be pulled.

Root is needed. The namespace lives as long as a process of ours holds it; the cable goes with it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path


class Link:
    """`address`: this machine's end of the cable; `command`: runs another one at its far end."""

    def __init__(self) -> None:
        # One of many networks: another run may be at it.
        number = os.getpid() % 250
        self.address, far = f"10.213.{number}.1", f"10.213.{number}.2"
        self._name = f"pgnet{os.getpid()}"
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", "unshare", "--net", "sleep", "infinity"],
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._wait_for_namespace()
            _ip("link", "add", self._name, "type", "veth", "peer", "eth0", "netns", self._pid)
            _ip("address", "add", f"{self.address}/24", "dev", self._name)
            _ip("link", "set", self._name, "up")
            for arguments in (
                ("address", "add", f"{far}/24", "dev", "eth0"),
                ("link", "set", "eth0", "up"),
                ("link", "set", "lo", "up"),
            ):
                subprocess.run(self.command("ip", *arguments), check=True)
        except BaseException:
            self.close()
            raise

    @property
    def _pid(self) -> str:
        return str(self._holder.pid)

    def _wait_for_namespace(self) -> None:
        own = os.readlink("/proc/self/ns/net")
        deadline = time.monotonic() + 10
        while self._holder.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{self._pid}/ns/net") != own:
                    return
            time.sleep(0.01)
        raise RuntimeError("no network namespace could be made")

    @property
    def sockets(self) -> Path:
        """The list of the TCP sockets at the far end."""
        return Path(f"/proc/{self._pid}/net/tcp")

    def command(self, *arguments: str) -> list[str]:
        return ["nsenter", f"--net=/proc/{self._pid}/ns/net", *arguments]

    def pull(self) -> None:
        """From now on packets are dropped, both ways and without a word."""
        _ip("link", "set", self._name, "down")

    def plug(self) -> None:
        _ip("link", "set", self._name, "up")

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
