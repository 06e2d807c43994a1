"""A piece: one clause of the property on part of the set, with the phases of some ReLUs fixed.

Pieces are the nodes of the branch and bound. Clauses are searched separately, because different splits pay for each.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from stbp_milp.bounds.bounded import Bounded
from stbp_milp.bounds.duals import Duals
from stbp_milp.bounds.ideal import chord_shares
from stbp_milp.bounds.interval import Interval
from stbp_milp.bounds.lines import parameters
from stbp_milp.bounds.problem import Problem
from stbp_milp.branching.views import View, WholeView
from stbp_milp.sets import InputSet, PerturbationSet, concatenate

_SERIALS = itertools.count()
_BYTES_PER_RELU = 48  # of an open piece: bounds, slope, multiplier, phase, and temporary copies of some of them


@dataclass(frozen=True, eq=False, kw_only=True)
class Family:
    """Pieces that share a network.

    Attributes:
        problem: the network, and the sets on which a smaller network is valid.
        whole: the set that the query asks about.
        view: how the network corresponds to the whole one.
        members: the members that the problem's boxes stand for, if it is a problem on boxes.
    """

    problem: Problem
    whole: PerturbationSet
    view: View = field(default_factory=WholeView)
    members: PerturbationSet | None = None

    def on(self, inputs: InputSet, items: Sequence[int]) -> Problem:
        """Returns the family's network on the sets `inputs`; `items` says which members they belong to, if any."""
        at = torch.tensor(items, device=self.problem.device)
        ideal = {relu: neurons.select(at) for relu, neurons in self.problem.ideal.items()}
        return replace(self.problem, inputs=inputs, ideal=ideal)

    def describe(self, item: int, inputs: InputSet) -> dict[str, Any]:
        """Describes the part of the set that a piece covers."""
        if self.members is not None:
            return self.members.choice.describe(item)
        assert isinstance(inputs, PerturbationSet)
        return inputs.choice.describe(0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Piece:
    """A subproblem of the branch and bound.

    Attributes:
        family: the family whose network it uses.
        item: the index of the family's member that it belongs to, if the family has members.
        inputs: its part of the set, a batch of one part.
        clause: the index of its clause in the property.
        lower: proved lower bound of the clause on the piece.
        method: the stage that found the bound.
        bounds: bounds of all pre-activations, `(1, *shape)`; empty for a piece that will not be expanded.
        phases: phases of split neurons, `(1, *shape)`, for layers that have any.
        duals: slopes and multipliers from which children start, `(1, 1, *shape)`.
        splits: number of split ReLUs.
        members: number of members of its part.
        unstable: number of undecided ReLUs.
        tried: the smallest number of undecided ReLUs with which the MILP failed on it or an ancestor.
        serial: the unique number of its node in the search. `replace` keeps it, because a piece with a better bound is
            the same node; children have their own numbers.
    """

    family: Family
    item: int
    inputs: InputSet
    clause: int
    lower: float
    method: str
    bounds: dict[int, Interval] = field(default_factory=dict)
    phases: dict[int, Tensor] = field(default_factory=dict)
    duals: Duals = field(default_factory=Duals)
    splits: int = 0
    members: float = 1.0
    unstable: int = 0
    tried: int = 1 << 30
    serial: int = field(default_factory=_SERIALS.__next__)

    @property
    def memory(self) -> int:
        """Estimates the bytes that it takes while it is open."""
        return _BYTES_PER_RELU * sum(bounds.lower.numel() for bounds in self.bounds.values())

    @property
    def group(self) -> int:
        return id(self.family)


@dataclass(frozen=True, eq=False)
class Batch:
    """Pieces of one family side by side.

    Attributes:
        clause: the clause of every piece, `(N,)` int64.
        lower: the bound of every piece, `(N,)`.
    """

    bounded: Bounded
    clause: Tensor
    lower: Tensor
    duals: Duals

    @property
    def problem(self) -> Problem:
        return self.bounded.problem

    def single(self) -> Batch:
        """Converts to float32."""
        return Batch(self.bounded.single(), self.clause, self.lower.to(torch.float32), self.duals)

    def select(self, index: Tensor) -> Batch:
        return Batch(self.bounded.select(index), self.clause[index], self.lower[index], self.duals.select(index))


def stack(pieces: Sequence[Piece]) -> Batch:
    """Puts pieces of one family into a batch, in order."""
    family = pieces[0].family
    inputs = concatenate([p.inputs for p in pieces])  # type: ignore[type-var]
    problem = family.on(inputs, [p.item for p in pieces])
    bounds = {
        relu: Interval(
            torch.cat([p.bounds[relu].lower for p in pieces]), torch.cat([p.bounds[relu].upper for p in pieces])
        )
        for relu in pieces[0].bounds
    }
    clause = torch.tensor([p.clause for p in pieces], device=problem.device)
    lower = torch.tensor([p.lower for p in pieces], dtype=problem.network.dtype, device=problem.device)
    split = sorted({relu for p in pieces for relu in p.phases})
    phases = {k: torch.cat([p.phases.get(k, torch.zeros_like(p.bounds[k].lower)) for p in pieces]) for k in split}
    sloped = sorted({relu for p in pieces for relu in p.duals.slopes})
    multiplied = sorted({relu for p in pieces for relu in p.duals.multipliers})

    def slope(piece: Piece, relu: int) -> Tensor:
        own = piece.duals.slopes.get(relu)
        return parameters(problem.network.nodes[relu].layer, piece.bounds[relu]) if own is None else own

    def multiplier(piece: Piece, relu: int) -> Tensor:
        own = piece.duals.multipliers.get(relu)
        return torch.zeros_like(piece.bounds[relu].lower).unsqueeze(1) if own is None else own

    def share(piece: Piece, relu: int) -> Tensor:
        own = piece.duals.shares.get(relu)
        return chord_shares(problem.ideal[relu], piece.bounds[relu]) if own is None else own

    shared = sorted({relu for p in pieces for relu in p.duals.shares})
    duals = Duals(
        {relu: torch.cat([slope(p, relu) for p in pieces]) for relu in sloped},
        {relu: torch.cat([multiplier(p, relu) for p in pieces]) for relu in multiplied},
        {relu: torch.cat([share(p, relu) for p in pieces]) for relu in shared},
    )
    return Batch(Bounded(problem, bounds, phases), clause, lower, duals)
