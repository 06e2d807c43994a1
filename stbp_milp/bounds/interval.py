"""Interval arithmetic: the box around a node's values from the boxes around its operands'.

In deviations from the clean values, as backward passes: a layer's bias and what surrounds a crop of it do not matter,
and a neuron that cannot move is bounded by its clean value exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor

from stbp_milp.network.layers import Maximum, ReLU, Reshape, Select
from stbp_milp.network.operations import linear, reads


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
def interval(layer: object, operands: Sequence[Interval], clean: Sequence[Tensor], value: Tensor) -> Interval:
    """The layer's box.

    Args:
        operands: their boxes, each `(N, *shape)`.
        clean: their clean values, each `(N or 1, *shape)`.
        value: the layer's clean value.

    Affine layers: `value + L (c - clean) +- |L| r` with centre c and radius r.
    """
    centre: Tensor = value
    radius: Tensor | float = 0.0
    for i, (operand, at) in enumerate(zip(operands, clean, strict=True)):
        if reads(layer, i):
            centre = centre + linear(layer, i, ((operand.lower + operand.upper) / 2).sub_(at))
            radius = radius + linear(layer, i, (operand.upper - operand.lower).div_(2), absolute=True)
    return Interval(centre - radius, centre + radius)


@interval.register
def _(layer: ReLU, operands: Sequence[Interval], clean: Sequence[Tensor], value: Tensor) -> Interval:
    return Interval(operands[0].lower.clamp(min=0), operands[0].upper.clamp(min=0))


@interval.register(Reshape)
@interval.register(Select)
def _(layer: Reshape | Select, operands: Sequence[Interval], clean: Sequence[Tensor], value: Tensor) -> Interval:
    return Interval(linear(layer, 0, operands[0].lower), linear(layer, 0, operands[0].upper))


@interval.register
def _(layer: Maximum, operands: Sequence[Interval], clean: Sequence[Tensor], value: Tensor) -> Interval:
    first, second, _ = operands
    return Interval(torch.maximum(first.lower, second.lower), torch.maximum(first.upper, second.upper))
