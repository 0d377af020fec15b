"""What a heartbeat reads: settings, egress rules, hosts, retry policies, and the database's mode.

The Configuration is one frozen value, replaced as a whole by each heartbeat. Requests are sent by
the value of the moment at which they begin. Each claim carries the revision of the settings at its
commit. Where that is not the worker's, the worker has a heartbeat before it sends what it has
claimed, so that a setting which was committed before a request holds for the request.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pgnet.outbox import WorkerState
from pgnet.secret.directory import Directory
from pgnet.secret.mask import Mask
from pgnet.wire.answer import Limits
from pgnet.wire.host import HostTable
from pgnet.worker import open_files
from pgnet.worker.assemble import host_table, proxy_masks
from pgnet.worker.outcome import Storable
from pgnet.worker.retry import Policy, read_policies

log = logging.getLogger("pgnet.worker")


@dataclass(frozen=True, slots=True)
class Configuration:
    """The worker's configuration; the defaults stand until its first heartbeat.

    directory: the secrets that this worker holds itself. own_concurrency, own_grace: what the
    worker was started with instead of the settings; None for the settings.

    revision: of all that the database says here, but for the mode. generation: the one that this
    worker serves; None before its first heartbeat. must_restart: whether the database has another
    generation by now. mode: on, record or off. batch_size: requests that one statement claims, and
    outcomes that one records. concurrency: requests in flight at once. grace: seconds that a worker
    which stops waits for what is in flight. timeout, max_timeout: settings, in milliseconds.
    limits, egress, hosts: what the wire follows. masks: hide the passwords of proxies in answers.
    policies: of retrying, by name; given_policies: the same as the database gives them.
    storable: what text the database can hold. notifies: the setting notify_outcomes.
    stubs: whether the database has stubs, which answer requests in place of the network.
    """

    directory: Directory | None = None
    own_concurrency: int | None = None
    own_grace: float | None = None

    revision: int = 0
    generation: int | None = None
    must_restart: bool = False
    mode: str = "on"
    batch_size: int = 1
    concurrency: int = 1
    max_grace: float = 0.0
    timeout: int = 0
    max_timeout: float = 0.0
    limits: Limits = field(default_factory=Limits)
    egress: Mapping[str, Any] = field(default_factory=dict)
    hosts: HostTable = field(default_factory=HostTable)
    masks: Sequence[Mask] = ()
    policies: Mapping[str, Policy] = field(default_factory=dict)
    given_policies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    storable: Storable = field(default_factory=lambda: Storable("UTF8"))
    notifies: bool = False
    stubs: bool = False

    @property
    def grace(self) -> float:
        """Seconds that requests in flight have at most to end when the worker stops."""
        return self.max_grace if self.own_grace is None else self.own_grace

    def updated(self, state: WorkerState) -> Configuration:
        """Return the configuration after a heartbeat that has read this state."""
        settings = state.settings
        generation = state.generation if self.generation is None else self.generation
        policies = self.policies
        if state.policies != self.given_policies:
            # Read only after a change, so that a policy that cannot be read is logged once.
            policies = read_policies(state.policies, log.error)
        # Made each time: the files of secrets may have changed, which the database does not know.
        hosts = host_table(state.hosts, self.directory)
        same_hosts = hosts == self.hosts
        return replace(
            self,
            revision=state.revision,
            generation=generation,
            must_restart=generation != state.generation,
            mode=state.mode,
            batch_size=settings["batch_size"],
            concurrency=min(self.own_concurrency or settings["concurrency"], open_files.slots()),
            max_grace=settings["max_grace"],
            timeout=settings["timeout_milliseconds"],
            # In seconds, as every interval among the settings.
            max_timeout=settings.get("max_timeout", 0) * 1000,
            limits=_limits(settings),
            egress=state.egress,
            # The former table knows already which settings hold for which host.
            hosts=self.hosts if same_hosts else hosts,
            masks=self.masks if same_hosts else proxy_masks(hosts),
            policies=policies,
            given_policies=state.policies,
            storable=Storable(settings["server_encoding"]),
            notifies=settings.get("notify_outcomes") == "on",
            stubs=state.stubs,
        )

    def for_a_new_worker(self) -> Configuration:
        """The same, for a worker that serves whatever generation it finds."""
        return replace(self, generation=None, must_restart=False)

    def same_wire(self, other: Configuration) -> bool:
        """Whether the wire follows the same rules under another configuration."""
        return (self.egress, self.limits, self.hosts) == (other.egress, other.limits, other.hosts)

    def origin_of_timeout(self, milliseconds: int) -> str:
        """Where the total time of an attempt comes from, and how to have another."""
        if milliseconds == self.max_timeout:
            return "That is the setting max_timeout, the most that any request has"
        if milliseconds == self.timeout:
            return (
                "That is the setting timeout_milliseconds, for requests that give no time: give "
                "timeout_milliseconds => 5000, or select net.configure("
                "'timeout_milliseconds', '5000')"
            )
        return "That is the timeout_milliseconds of the request"


def _limits(settings: Mapping[str, Any]) -> Limits:
    return Limits(
        max_response_bytes=settings["max_response_bytes"],
        max_wire_bytes=settings["max_wire_bytes"],
        max_header_bytes=settings["max_header_bytes"],
        max_redirects=settings["max_redirects"],
        connect_timeout=settings["connect_timeout_milliseconds"] / 1000,
    )
