"""What a network's size allows within the limits of time and memory, decided before anything is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

from stbp_milp.bounds.backward import FORMS_ALIVE
from stbp_milp.bounds.preactivation import BoundingOptions
from stbp_milp.branching import BranchingOptions
from stbp_milp.network.graph import Network
from stbp_milp.strategy import Strategy

_RATE = 1e10  # multiplications a second, to plan by
# Of the time: backward passes to one layer, optimised slopes of the first piece, a bound that is hardly ever enough.
_LAYER_SHARE, _ROOT_SHARE, _UNION_SHARE = 0.05, 0.15, 0.05
_CHUNK = 256 << 20  # bytes: larger chunks of forms are not faster
_MATRICES_RATE = 2_000_000  # of a forward pass, for a second of the time: matrices take a tenth of it to write down
_BATCH = 64
_OPERATION = 5e8  # multiplications of one tensor operation: nothing can end it, so it must be short
_LARGE = 1_000_000  # multiplications of a forward pass beyond which single operations are worth interrupting


@dataclass(frozen=True)
class Plan:
    """How a query is gone about.

    Attributes:
        options: of the branch and bound.
        matrices: is the network small enough to be written down as matrices (for members' networks and programs)?
        union: is a quick bound of the whole set cheap even where it is hardly ever enough (many places of a patch)?
        interrupt: may one step on the network take so long that it must end in the middle, when the time is over?
        most_at_once: pieces that may be expanded together: a look ahead holds forms of 2 * width children of each.
    """

    options: BranchingOptions
    matrices: bool
    union: bool
    interrupt: bool
    most_at_once: int

    @property
    def quick(self) -> BranchingOptions:
        """The options without backward passes to hidden layers."""
        return replace(self.options, bounding=replace(self.options.bounding, deep="interval"))

    @classmethod
    def of(cls, network: Network, clauses: int, seconds: float, memory: int, strategy: Strategy) -> Plan:
        """`clauses`: forms that a first bound has; `memory`: bytes that the run may take."""
        default = replace(strategy.branching, minimisers=strategy.candidates)
        budget = _RATE * seconds
        passes = [0, *network.multiplications()]
        work = max(1, passes[-1])
        dearest = max(1, *(after - before for before, after in pairwise(passes)))
        sizes = [math.prod(node.shape) for node in network.nodes]
        # A step goes back, and back again for its gradient; it holds forms of all layers, slopes and their moments.
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
            (2 + clauses) * work <= _UNION_SHARE * budget,  # two passes of intervals, one of every form
            work > _LARGE,
            max(1, min(_BATCH, memory // (4 * look_ahead))),
        )
