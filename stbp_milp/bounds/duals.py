"""The free parameters of a backward bound, and the relaxations that they define.

Any slopes in [0, 1], any multipliers >= 0 and any shares in [0, 1] give a sound bound; gradient ascent looks for good
ones. Whatever does not depend on them, the *bracket*, is computed once per ascent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stbp_milp.bounds.bounded import Bounded
from stbp_milp.bounds.ideal import Planes, PlaneTerms, chord_shares
from stbp_milp.bounds.lines import is_curved, parameters, ranges, undecided
from stbp_milp.bounds.problem import Preactivations, Problem, Relaxed
from stbp_milp.bounds.relaxation import Relaxation


@dataclass(frozen=True, eq=False)
class Duals:
    """The dual variables of a bound, per nonlinear node.

    Attributes:
        slopes: lower slopes of ReLUs, `(N, M, *shape)` in [0, 1]; parameters of other layers (`bounds.lines`).
        multipliers: multipliers of split neurons, `(N, M, *shape)`, >= 0 for ReLUs.
        shares: shares of the terms of neurons with an ideal relaxation, `(N, M, U, K)` in [0, 1].
    """

    slopes: dict[int, Tensor] = field(default_factory=dict)
    multipliers: dict[int, Tensor] = field(default_factory=dict)
    shares: dict[int, Tensor] = field(default_factory=dict)

    def map(self, function: Callable[[Tensor], Tensor]) -> Duals:
        """Applies the function to every tensor."""
        return Duals(*({k: function(v) for k, v in d.items()} for d in (self.slopes, self.multipliers, self.shares)))

    def kinds(self) -> tuple[tuple[str, dict[int, Tensor]], ...]:
        return ("slope", self.slopes), ("multiplier", self.multipliers), ("share", self.shares)

    def merge(self, other: Duals, function: Callable[[Tensor | None, Tensor], Tensor]) -> Duals:
        """Replaces every tensor that `other` has by the function of this one (None if missing) and the other one."""
        own = (self.slopes, self.multipliers, self.shares)
        news = (other.slopes, other.multipliers, other.shares)
        return Duals(*(a | {k: function(a.get(k), v) for k, v in b.items()} for a, b in zip(own, news, strict=True)))

    def select(self, index: Tensor) -> Duals:
        return self.map(lambda values: values[index])

    def rows(self, index: Tensor) -> Duals:
        """Selects some of the forms."""
        return self.map(lambda values: values[:, index])


@dataclass(frozen=True, eq=False)
class Bracket:
    """The relaxations of a problem's nonlinear nodes without their duals, for nodes whose bounds are given.

    Attributes:
        problem, bounds: what is relaxed.
        lines: the relaxations of ReLUs, with adaptive lower slopes.
        ranges: the ranges of the slopes, two tensors that broadcast to them.
        terms: the terms of the planes.
        curved: the nodes with parameters instead of one slope.
    """

    problem: Problem
    bounds: Preactivations
    lines: dict[int, Relaxation]
    ranges: dict[int, tuple[Tensor, Tensor]]
    terms: dict[int, PlaneTerms]
    curved: tuple[int, ...] = ()

    @classmethod
    def of(cls, problem: Problem, bounds: Preactivations) -> Bracket:
        nodes = problem.network.nodes
        curved = tuple(i for i in bounds if is_curved(nodes[i].layer))
        relaxed = ((i, problem.relaxation(i, own)) for i, own in bounds.items() if i not in curved)
        return cls(
            problem,
            bounds,
            {i: lines for i, lines in relaxed if isinstance(lines, Relaxation)},
            {i: ranges(nodes[i].layer, own) for i, own in bounds.items()},
            {
                relu: PlaneTerms.of(ideal, bounds[relu], problem.clean[problem.network.operand(relu)])
                for relu, ideal in problem.ideal.items()
                if relu in bounds  # a first layer on another branch may come later
            },
            curved,
        )

    @property
    def dtype(self) -> torch.dtype:
        """The type of the bounds; duals may have another."""
        return next((least.dtype for least, _ in self.ranges.values()), torch.float64)

    def between(self, duals: Duals) -> dict[int, Relaxed]:
        """Returns the relaxations with these slopes and shares, which must lie in their ranges."""
        lines = dict(self.lines)
        for relu, slope in duals.slopes.items():
            if relu not in self.curved:
                lines[relu] = replace(lines[relu], lower_slope=slope)
        for relu, shares in duals.shares.items():
            lines[relu] = replace(lines[relu], planes=Planes(self.terms[relu], shares))
        curved = {i: self.problem.relaxation(i, self.bounds[i], duals.slopes.get(i)) for i in self.curved}
        return {**lines, **curved}

    def spread(self, node: int) -> Tensor:
        """Returns how far apart the ends of a node's ranges are: the unit of steps along its parameters."""
        least, most = self.ranges[node]
        return most - least

    def project(self, duals: Duals) -> Duals:
        """Projects the duals onto their ranges."""
        return Duals(
            {relu: slope.to(self.dtype).clamp(*self.ranges[relu]) for relu, slope in duals.slopes.items()},
            {
                relu: multiplier.to(self.dtype) if relu in self.curved else multiplier.to(self.dtype).clamp(min=0)
                for relu, multiplier in duals.multipliers.items()
            },
            {relu: self.terms[relu].project(shares.to(self.dtype)) for relu, shares in duals.shares.items()},
        )


def starting_duals(bounded: Bounded, m: int, start: Duals) -> Duals:
    """Returns initial values of all duals of an ascent with `m` forms per item, taken from `start` if it has them."""
    problem, bounds = bounded.problem, bounded.bounds
    n, nodes = problem.parts, problem.network.nodes

    def first(node: int) -> Tensor:
        own = parameters(nodes[node].layer, bounds[node])
        return own.expand(n, m, *own.shape[2:])

    slopes = {
        node: start.slopes[node] if node in start.slopes else first(node)
        for node, b in bounds.items()
        if bool(undecided(nodes[node].layer, b).any())
    }
    multipliers = {
        relu: start.multipliers.get(relu, sign.new_zeros(n, m, *sign.shape[1:]))
        for relu, sign in bounded.phases.items()
        if bool((sign != 0).any())
    }
    shares = {
        relu: start.shares.get(relu, chord_shares(ideal, bounds[relu]).expand(n, m, *ideal.index.shape))
        for relu, ideal in problem.ideal.items()
        if relu in slopes
    }
    return Duals(slopes, multipliers, shares)
