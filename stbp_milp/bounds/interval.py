"""Interval arithmetic: the box around a node's values from the boxes around its operands'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor

from stbp_milp.network.layers import Maximum, ReLU
from stbp_milp.network.operations import apply, linear, reads


@dataclass(frozen=True, eq=False)
class Interval:
    """`lower <= value <= upper`, elementwise, each `(N, *shape)`."""

    lower: Tensor
    upper: Tensor

    @property
    def undecided(self) -> Tensor:
        """Where a ReLU that reads the value may be active or inactive, bool."""
        return (self.lower < 0) & (self.upper > 0)

    def meet(self, other: Interval) -> Interval:
        """What both say."""
        return Interval(torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper))

    def select(self, index: Tensor) -> Interval:
        return Interval(self.lower[index], self.upper[index])

    def to(self, dtype: torch.dtype) -> Interval:
        return Interval(self.lower.to(dtype), self.upper.to(dtype))


def slope_range(bounds: Interval) -> tuple[Tensor, Tensor]:
    """Between which numbers a neuron's lower slope may be chosen, two `(N, *shape)`: [0, 1], or its own if decided."""
    undecided, active = bounds.undecided, bounds.lower >= 0
    return (~undecided & active).to(bounds.lower.dtype), (undecided | active).to(bounds.lower.dtype)


@singledispatch
def interval(layer: object, operands: Sequence[Interval]) -> Interval:
    """Affine layers: `L c + b +- |L| r` with centre c and radius r."""
    centre = apply(layer, [(o.lower + o.upper) / 2 for o in operands])
    radii = [
        linear(layer, i, (o.upper - o.lower) / 2, absolute=True) for i, o in enumerate(operands) if reads(layer, i)
    ]
    radius = sum(radii[1:], radii[0])
    return Interval(centre - radius, centre + radius)


@interval.register
def _(layer: ReLU, operands: Sequence[Interval]) -> Interval:
    return Interval(operands[0].lower.clamp(min=0), operands[0].upper.clamp(min=0))


@interval.register
def _(layer: Maximum, operands: Sequence[Interval]) -> Interval:
    first, second, _ = operands
    return Interval(torch.maximum(first.lower, second.lower), torch.maximum(first.upper, second.upper))
