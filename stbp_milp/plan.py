"""The plan of a run: what the network's size allows within the limits of time and memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

from stbp_milp.bounds.backward import FORMS_ALIVE
from stbp_milp.bounds.preactivation import BoundingOptions
from stbp_milp.branching import BranchingOptions
from stbp_milp.network.graph import Network
from stbp_milp.strategy import Strategy

_RATE = 1e10  # multiplications per second that the plan assumes
# Shares of the time for backward passes to one layer, for optimising the slopes of the first piece, and for the bound
# of the whole set, which is hardly ever enough.
_LAYER_SHARE, _ROOT_SHARE, _UNION_SHARE = 0.05, 0.15, 0.05
_CHUNK = 256 << 20  # bytes: larger chunks of forms are not faster
_MATRICES_RATE = 2_000_000  # of a forward pass, per second of the limit: writing down the matrices takes a tenth of it
_BATCH = 64
_OPERATION = 5e8  # multiplications of one tensor operation: it cannot be interrupted, so it must be short
_LARGE = 1_000_000  # multiplications of a forward pass beyond which single operations are worth interrupting


@dataclass(frozen=True)
class Plan:
    """How a query is to be answered.

    Attributes:
        options: the options of the branch and bound.
        matrices: is the network small enough to be written down as matrices (for members' networks and programs)?
        union: is a quick bound of the whole set cheap even if it is hardly ever enough (many places of a patch)?
        interrupt: may a single step on the network take so long that it must be interrupted when time runs out?
        most_at_once: how many pieces may be expanded together; a look-ahead holds the forms of 2 * width children per
            piece.
    """

    options: BranchingOptions
    matrices: bool
    union: bool
    interrupt: bool
    most_at_once: int

    @property
    def quick(self) -> BranchingOptions:
        """Returns the options without backward passes to hidden layers."""
        return replace(self.options, bounding=replace(self.options.bounding, deep="interval"))

    @classmethod
    def of(cls, network: Network, clauses: int, seconds: float, memory: int, strategy: Strategy) -> Plan:
        """Makes the plan for a network.

        Args:
            clauses: number of forms of a first bound.
            seconds: the time limit.
            memory: bytes that the run may take.
        """
        default = replace(strategy.branching, minimisers=strategy.candidates)
        budget = _RATE * seconds
        passes = [0, *network.multiplications()]
        work = max(1, passes[-1])
        dearest = max(1, *(after - before for before, after in pairwise(passes)))
        sizes = [math.prod(node.shape) for node in network.nodes]
        # A step needs one backward pass and another for its gradient; it holds forms of all layers, slopes and moments.
        fits = 6 * 8 * sum(sizes) * clauses <= memory
        steps = min(default.root.steps, _ROOT_SHARE * budget / (3 * work * clauses)) if fits else 0
        look_ahead = 8 * sum(sizes) * 8 * default.width
        return cls(
            replace(
                default,
                bounding=BoundingOptions(
                    memory_bytes=int(min(_CHUNK, memory // 8, _OPERATION / dearest * FORMS_ALIVE * 8 * max(sizes))),
                    work=_LAYER_SHARE * budget,
                ),
                at_once=max(1, int(_OPERATION / dearest)),
                root=replace(default.root, steps=int(steps)),
                family_memory=min(default.family_memory, memory // 8),
                open_memory=memory // 2,
            ),
            work <= min(strategy.matrices_limit, _MATRICES_RATE * seconds),
            (2 + clauses) * work <= _UNION_SHARE * budget,  # two passes of intervals, and one pass per form
            work > _LARGE,
            max(1, min(_BATCH, memory // (4 * look_ahead))),
        )
