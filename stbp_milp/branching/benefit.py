"""Decisions about what pays off, based on cost and benefit so far in the run."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["set", "relu"]

_LITTLE = 1e-6
_TELLING, _TELLING_SHARE = 256, 0.1  # so many members, or this share of the time, tell what a member costs


@dataclass
class Benefit:
    """Does it pay to bound a group of members at once before bounding them one by one?

    Attributes:
        tries, settled: the numbers of groups bounded at once, and of those that this settled.
        group_seconds: the time that this took.
        members, member_seconds: the number of members bounded one by one, and the time that this took.
    """

    tries: int = 0
    settled: int = 0
    group_seconds: float = 0.0
    members: int = 0
    member_seconds: float = 0.0

    def pays(self, members: int) -> bool:
        """Is the expected saving for a group of so many members larger than the cost? True while nothing is known."""
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
        """Can so many more members be bounded in so many seconds? True while too little is known to tell."""
        if self.members < _TELLING and self.member_seconds <= _TELLING_SHARE * seconds:
            return True
        return members * self.member_seconds <= seconds * self.members


@dataclass
class Realised:
    """How the actual gains of splits compare with those that a look-ahead predicted.

    A look-ahead keeps the bounds of hidden layers. Splits of a set improve those bounds, some of them much (positions
    of a patch) and some hardly (one pixel of many). The ratio is therefore measured, separately for sets and ReLUs.

    A gain is the distance from the node's bound up to the worse child's bound, which is capped at the target: how far a
    closed child lies beyond the target says nothing, and bounds of empty children are infinite. Every node has a key of
    its own that is never reused.

    Attributes:
        ahead, actual: sums of the predicted and of the actual gains of nodes that were split.
        waiting: kind and predicted gain of nodes that are about to be split.
    """

    ahead: dict[Kind, float] = field(default_factory=dict)
    actual: dict[Kind, float] = field(default_factory=dict)
    waiting: dict[Hashable, tuple[Kind, float]] = field(default_factory=dict)

    def expected(self, kind: Kind, gain: float) -> float:
        """Returns the gain to expect if a look-ahead predicts `gain`; infinite while nothing is known."""
        if kind not in self.ahead:
            return math.inf
        return gain * self.actual[kind] / self.ahead[kind]

    def choose(self, node: Hashable, by_set: float, by_relu: float) -> Kind:
        """Chooses how to split a node, given the gains that a look-ahead predicts for both kinds of split."""
        gains: dict[Kind, float] = {"set": _at_least(by_set), "relu": _at_least(by_relu)}
        kind: Kind = "set" if self.expected("set", gains["set"]) >= self.expected("relu", gains["relu"]) else "relu"
        self.waiting[node] = kind, gains[kind]
        return kind

    def came_out(self, gains: Mapping[Hashable, float]) -> None:
        """Records the actual gains of nodes that were split; it ignores infinite gains, where a bound was missing."""
        for node, gain in gains.items():
            kind, ahead = self.waiting.pop(node, (None, 0.0))
            if kind is not None and math.isfinite(gain) and math.isfinite(ahead):
                self.ahead[kind] = self.ahead.get(kind, 0.0) + ahead
                self.actual[kind] = self.actual.get(kind, 0.0) + gain

    def forget(self, nodes: Iterable[Hashable]) -> None:
        """Forgets the predictions for nodes that are no longer about to be split."""
        for node in nodes:
            self.waiting.pop(node, None)


def gain(own: float, children: float, target: float) -> float:
    """Returns the gain of a split: the worse child's bound `children`, capped at the target, less the node's `own`."""
    return min(children, target) - own


def _at_least(ahead: float) -> float:
    """Returns the predicted gain, but at least a little, also if the prediction is NaN."""
    return ahead if ahead > _LITTLE else _LITTLE
