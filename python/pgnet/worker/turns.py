"""Whose turn it is at the next claim: hosts take turns, and at each host the roles do.

A claim goes through the hosts in the order of their names, from behind a place, once around. It
looks at a bounded number of places. Where it has not been everywhere, it says where it stopped, and
the next claim goes on from there.
"""

from __future__ import annotations

from collections import Counter

from pgnet.outbox import Claim, Claimed, Demand, Place


class Turns:
    """Where the next claim goes on.

    after: it begins behind this place. until: it ends there; None for once around.
    """

    def __init__(self) -> None:
        self.after = Place()
        self.until: Place | None = None

    @property
    def is_unfinished(self) -> bool:
        """Whether the last claim stopped before it had been everywhere, and found nothing."""
        return self.until is not None

    def served(self, claim: Claim) -> None:
        """The last of the claims that were begun: the next claim goes on behind its place."""
        self.after = Place(claim.host, claim.role)

    def claimed(self, demand: Demand, claimed: Claimed) -> bool:
        """Take note of an answer to a demand; gives whether to claim again at once."""
        self.until = None
        if claimed.stopped_at is not None:
            self.after = claimed.stopped_at
            if not claimed.claims:
                # Nothing was there: the search ends where it began.
                self.until = demand.until or demand.after
            return bool(claimed.claims)
        if len(claimed.claims) >= demand.slots:
            return True
        hosts = Counter(claim.host for claim in claimed.claims)
        return any(count >= demand.host_quota for count in hosts.values())
