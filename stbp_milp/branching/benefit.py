"""What pays, decided by what it cost and brought so far in the run."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["set", "relu"]

_LITTLE = 1e-6
_TELLING, _TELLING_SHARE = 256, 0.1  # members, or of the time for all: what tells what a member costs


@dataclass
class Benefit:
    """Does it pay to bound a group of members at once before one by one?

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
        """Can so many more members be bounded in so many seconds? True while too little was done to tell."""
        if self.members < _TELLING and self.member_seconds <= _TELLING_SHARE * seconds:
            return True
        return members * self.member_seconds <= seconds * self.members


@dataclass
class Realised:
    """How far the gains of splits came out as looked ahead.

    A look ahead keeps the bounds of hidden layers, which splits of a set improve, some of them much (places of a patch)
    and some hardly (one pixel of many): the ratio is measured, apart for splits of sets and of ReLUs.

    A gain is how far the worse child's bound is above the node's, at most up to the target: how far a closed child lies
    beyond it says nothing, and bounds of empty children are infinite. Nodes have keys that no other node ever has.

    Attributes:
        ahead, actual: sums over nodes that were split, of their gains as looked ahead and as they came out.
        waiting: the kind and the gain looked ahead at of nodes that are about to be split.
    """

    ahead: dict[Kind, float] = field(default_factory=dict)
    actual: dict[Kind, float] = field(default_factory=dict)
    waiting: dict[Hashable, tuple[Kind, float]] = field(default_factory=dict)

    def expected(self, kind: Kind, gain: float) -> float:
        """The gain to expect where a look ahead sees `gain`; infinite while nothing is known."""
        if kind not in self.ahead:
            return math.inf
        return gain * self.actual[kind] / self.ahead[kind]

    def choose(self, node: Hashable, by_set: float, by_relu: float) -> Kind:
        """The kind of split to make of a node, given what a look ahead sees in either."""
        gains: dict[Kind, float] = {"set": _at_least(by_set), "relu": _at_least(by_relu)}
        kind: Kind = "set" if self.expected("set", gains["set"]) >= self.expected("relu", gains["relu"]) else "relu"
        self.waiting[node] = kind, gains[kind]
        return kind

    def came_out(self, gains: Mapping[Hashable, float]) -> None:
        """The gains of nodes that were split; those that say nothing, because a bound was missing, do not count."""
        for node, gain in gains.items():
            kind, ahead = self.waiting.pop(node, (None, 0.0))
            if kind is not None and math.isfinite(gain) and math.isfinite(ahead):
                self.ahead[kind] = self.ahead.get(kind, 0.0) + ahead
                self.actual[kind] = self.actual.get(kind, 0.0) + gain

    def forget(self, nodes: Iterable[Hashable]) -> None:
        """These nodes are not about to be split any more."""
        for node in nodes:
            self.waiting.pop(node, None)


def gain(own: float, children: float, target: float) -> float:
    """How far the worse child's bound `children` is above the node's `own`, at most up to the target."""
    return min(children, target) - own


def _at_least(ahead: float) -> float:
    """A look ahead that sees nothing (or no number) still expects a little."""
    return ahead if ahead > _LITTLE else _LITTLE
