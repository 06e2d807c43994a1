"""Does it pay to bound a group of members at once before one by one? Decided by what it cost and settled so far."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Benefit:
    """What was measured in this run.

    Attributes:
        tries, settled: groups bounded at once, and those that this settled.
        group_seconds: what that cost.
        members, member_seconds: members bounded one by one, and what that cost.
    """

    tries: int = 0
    settled: int = 0
    group_seconds: float = 0.0
    members: int = 0
    member_seconds: float = 0.0

    def pays(self, members: int) -> bool:
        """Is the expected saving larger than the cost, for a group of so many? True while nothing is known."""
        if not self.tries or not self.members:
            return True
        share = (self.settled + 1) / (self.tries + 2)  # Laplace's rule of succession
        return share * members * self.member_seconds / self.members > self.group_seconds / self.tries

    def tried(self, settled: bool, seconds: float) -> None:
        self.tries += 1
        self.settled += settled
        self.group_seconds += seconds

    def bounded(self, members: int, seconds: float) -> None:
        self.members += members
        self.member_seconds += seconds

    def affordable(self, members: int, seconds: float) -> bool:
        """Can so many more members be bounded in the time left? True while too few were to tell."""
        return self.members < 256 or members * self.member_seconds / self.members <= seconds
