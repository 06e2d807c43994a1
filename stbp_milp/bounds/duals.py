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
from stbp_milp.bounds.interval import slope_range
from stbp_milp.bounds.problem import Preactivations, Problem
from stbp_milp.bounds.relaxation import Relaxation, adaptive_slope


@dataclass(frozen=True, eq=False)
class Duals:
    """The dual variables of a bound, per ReLU node.

    Attributes:
        slopes: lower slopes, `(N, M, *shape)` in [0, 1].
        multipliers: multipliers of split neurons, `(N, M, *shape)`, >= 0.
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
    """The relaxations of a problem's ReLUs without their duals, for ReLUs whose bounds are given.

    Attributes:
        lines: the relaxations with adaptive lower slopes.
        ranges: the ranges of the slopes, two `(N, 1, *shape)`.
        terms: the terms of the planes.
    """

    lines: dict[int, Relaxation]
    ranges: dict[int, tuple[Tensor, Tensor]]
    terms: dict[int, PlaneTerms]

    @classmethod
    def of(cls, problem: Problem, bounds: Preactivations) -> Bracket:
        clean = {relu: problem.clean[problem.network.nodes[relu].inputs[0]] for relu in bounds}
        ranges = {relu: slope_range(own) for relu, own in bounds.items()}
        return cls(
            {relu: problem.relaxation(relu, own) for relu, own in bounds.items()},
            {relu: (least.unsqueeze(1), most.unsqueeze(1)) for relu, (least, most) in ranges.items()},
            {
                relu: PlaneTerms.of(ideal, bounds[relu], clean[relu])
                for relu, ideal in problem.ideal.items()
                if relu in bounds  # a first layer on another branch may come later
            },
        )

    @property
    def dtype(self) -> torch.dtype:
        """The type of the bounds; duals may have another."""
        return next((least.dtype for least, _ in self.ranges.values()), torch.float64)

    def between(self, duals: Duals) -> dict[int, Relaxation]:
        """Returns the relaxations with these slopes and shares, which must lie in their ranges."""
        lines = dict(self.lines)
        for relu, slope in duals.slopes.items():
            lines[relu] = replace(lines[relu], lower_slope=slope)
        for relu, shares in duals.shares.items():
            lines[relu] = replace(lines[relu], planes=Planes(self.terms[relu], shares))
        return lines

    def project(self, duals: Duals) -> Duals:
        """Projects the duals onto their ranges."""
        return Duals(
            {relu: slope.to(self.dtype).clamp(*self.ranges[relu]) for relu, slope in duals.slopes.items()},
            {relu: multiplier.to(self.dtype).clamp(min=0) for relu, multiplier in duals.multipliers.items()},
            {relu: self.terms[relu].project(shares.to(self.dtype)) for relu, shares in duals.shares.items()},
        )


def starting_duals(bounded: Bounded, m: int, start: Duals) -> Duals:
    """Returns initial values of all duals of an ascent with `m` forms per item, taken from `start` if it has them."""
    problem, bounds = bounded.problem, bounded.bounds
    n = problem.parts
    slopes = {
        relu: start.slopes.get(relu, adaptive_slope(b).unsqueeze(1).expand(n, m, *b.lower.shape[1:]))
        for relu, b in bounds.items()
        if bool(b.undecided.any())
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
