"""Interval arithmetic: bounds of a node's deviations from its clean values, given those of its operands.

Like backward passes, it works in *deviations* `f_k(x) - f_k(c)`: a layer's bias and whatever surrounds a crop do not
matter, and a neuron that cannot move has the deviation 0, exactly and at every depth, whatever rounding did to its
clean value.

Results are rounded outwards: an affine rule computes `L m +- |L| r` from middles m and radii r with an error of at most
`gamma |L| (|m| + r)`, which the radius absorbs (`bounds.rounding`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor

from stbp_milp.bounds import smooth
from stbp_milp.network.layers import (
    Concatenate,
    Linear,
    Maximum,
    Permute,
    Product,
    ReLU,
    Reshape,
    Select,
    Smooth,
    halves,
)
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
        """Returns the intersection of both intervals."""
        return Interval(torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper))

    def select(self, index: Tensor) -> Interval:
        return Interval(self.lower[index], self.upper[index])

    def to(self, dtype: torch.dtype) -> Interval:
        return Interval(self.lower.to(dtype), self.upper.to(dtype))

    def widened(self, by: Tensor | float) -> Interval:
        return Interval(self.lower - by, self.upper + by)


@dataclass(frozen=True, eq=False)
class Clean:
    """A node's computed clean value and a bound of its error, each `(N or 1, *shape)`.

    The error bound includes four roundings of the value, so sums with the value need no bound of their own.
    """

    value: Tensor
    error: Tensor

    def values(self, deviations: Interval) -> Interval:
        """Converts bounds of the node's deviations to bounds of its values."""
        unit = 2 * torch.finfo(self.value.dtype).eps
        below, above = self.error + unit * deviations.lower.abs(), self.error + unit * deviations.upper.abs()
        return Interval(self.value + deviations.lower - below, self.value + deviations.upper + above)

    def deviations(self, values: Interval) -> Interval:
        """Converts bounds of the node's values to bounds of its deviations."""
        unit = 2 * torch.finfo(self.value.dtype).eps
        below, above = self.error + unit * values.lower.abs(), self.error + unit * values.upper.abs()
        return Interval(values.lower - self.value - below, values.upper - self.value + above)


def slope_range(bounds: Interval) -> tuple[Tensor, Tensor]:
    """Returns the range of every neuron's lower slope, two `(N, *shape)`: [0, 1], or only its own slope if decided."""
    undecided, active = bounds.undecided, bounds.lower >= 0
    return (~undecided & active).to(bounds.lower.dtype), (undecided | active).to(bounds.lower.dtype)


@singledispatch
def interval(layer: object, operands: Sequence[Interval], clean: Sequence[Clean], gamma: float) -> Interval:
    """Computes bounds of the layer's deviations.

    Args:
        operands: bounds of the operands' deviations, each `(N, *shape)`.
        clean: the operands' clean values.
        gamma: the constant of `bounds.rounding`.
    """
    centre: Tensor | float = 0.0
    radius: Tensor | float = 0.0
    for i, operand in enumerate(operands):
        if reads(layer, i):
            middle = (operand.lower + operand.upper).div_(2)
            reach = (operand.upper - operand.lower).div_(2)
            centre = centre + linear(layer, i, middle)
            rounded = middle.abs_().add_(reach).mul_(2 * gamma)
            if isinstance(layer, Linear) and layer.magnitude is not None:
                radius = radius + linear(layer, i, reach, absolute=True) + rounded @ layer.magnitude.T
            else:
                radius = radius + linear(layer, i, reach.add_(rounded), absolute=True)
    radius = (1 + 4 * gamma) * radius
    assert isinstance(centre, Tensor)  # every layer reads something
    # Overflow means that nothing is known: a bound must never be NaN, which would compare as decided.
    unknown = (centre.abs() + radius).isfinite().logical_not_()
    lower, upper = centre - radius, centre + radius
    return Interval(lower.masked_fill_(unknown, -torch.inf), upper.masked_fill_(unknown, torch.inf))


@interval.register
def _(layer: ReLU, operands: Sequence[Interval], clean: Sequence[Clean], gamma: float) -> Interval:
    """`relu(z + d) - relu(z)` for the clean operand z: between 0 and d, and monotone in z on either side of d = 0."""
    (moved,), (at,) = operands, clean
    least, most = at.value - at.error, at.value + at.error

    def change(deviation: Tensor, rises_with_z: Tensor, sign: float) -> Tensor:
        z = torch.where(rises_with_z, most, least)
        bound = (z + deviation).clamp(min=0) - z.clamp(min=0)
        bound = bound + sign * gamma * (z.abs() + deviation.abs())
        return bound.clamp(deviation.clamp(max=0), deviation.clamp(min=0))

    active = least + torch.minimum(moved.lower, torch.zeros_like(moved.lower)) >= 0
    lower = torch.where(active, moved.lower, change(moved.lower, moved.lower < 0, -1.0))
    upper = torch.where(active, moved.upper, change(moved.upper, moved.upper > 0, 1.0))
    return Interval(lower, upper)


@interval.register
def _(layer: Smooth, operands: Sequence[Interval], clean: Sequence[Clean], gamma: float) -> Interval:
    """Bounds the change of the value, and by the mean value theorem: the change of the operand times a slope."""
    (moved,), (at,) = operands, clean
    values = at.values(moved)
    here = at.value - at.error, at.value + at.error
    least, most = smooth.value_range(layer.function, values.lower, values.upper)
    clean_least, clean_most = smooth.value_range(layer.function, *here)
    unit = 4 * torch.finfo(least.dtype).eps
    change = Interval(least - clean_most, most - clean_least)
    change = change.widened(unit * (least.abs() + most.abs() + clean_most.abs() + clean_least.abs()))
    lower, upper = torch.minimum(values.lower, here[0]), torch.maximum(values.upper, here[1])
    slopes = Interval(*smooth.slope_range(layer.function, lower, upper))
    return _orderly(change).meet(_orderly(_times(slopes, moved)))


@interval.register
def _(layer: Product, operands: Sequence[Interval], clean: Sequence[Clean], gamma: float) -> Interval:
    """`(x + d) (y + e) - x y = d (y + e) + x e`, or `(x + d) e + d y`."""
    (moved,), (at,) = operands, clean
    (d_low, e_low), (d_high, e_high) = halves(moved.lower, 1), halves(moved.upper, 1)
    d, e = Interval(d_low, d_high), Interval(e_low, e_high)
    values = at.values(moved)
    (x_low, y_low), (x_high, y_high) = halves(values.lower, 1), halves(values.upper, 1)
    (x, y), (x_error, y_error) = halves(at.value, 1), halves(at.error.expand_as(at.value), 1)
    clean_x, clean_y = Interval(x - x_error, x + x_error), Interval(y - y_error, y + y_error)
    one = _plus(_times(d, Interval(y_low, y_high)), _times(clean_x, e))
    other = _plus(_times(Interval(x_low, x_high), e), _times(d, clean_y))
    return _orderly(one).meet(_orderly(other))


def _times(x: Interval, y: Interval) -> Interval:
    """Returns the products of two intervals, rounded outwards; exactly 0 where one of them is 0."""
    nothing = ((x.lower == 0) & (x.upper == 0)) | ((y.lower == 0) & (y.upper == 0))
    ends = torch.stack([a * b for a in (x.lower, x.upper) for b in (y.lower, y.upper)])
    unit = 2 * torch.finfo(ends.dtype).eps
    lower, upper = ends.amin(0), ends.amax(0)  # NaN if one of them is
    lower, upper = lower - unit * lower.abs(), upper + unit * upper.abs()
    return Interval(lower.masked_fill(nothing, 0.0), upper.masked_fill(nothing, 0.0))


def _plus(x: Interval, y: Interval) -> Interval:
    lower, upper = x.lower + y.lower, x.upper + y.upper
    unit = 2 * torch.finfo(lower.dtype).eps
    return Interval(lower - unit * lower.abs(), upper + unit * upper.abs())


def _orderly(x: Interval) -> Interval:
    """Returns the interval with NaN, of which nothing is known, replaced by infinities."""
    return Interval(
        x.lower.nan_to_num(nan=-torch.inf, neginf=-torch.inf), x.upper.nan_to_num(nan=torch.inf, posinf=torch.inf)
    )


@interval.register(Reshape)
@interval.register(Permute)
@interval.register(Select)
@interval.register(Concatenate)
def _(
    layer: Reshape | Permute | Select | Concatenate, operands: Sequence[Interval], clean: Sequence[Clean], gamma: float
) -> Interval:
    """What only moves values rounds nothing."""
    return Interval(apply(layer, [own.lower for own in operands]), apply(layer, [own.upper for own in operands]))


@interval.register
def _(layer: Maximum, operands: Sequence[Interval], clean: Sequence[Clean], gamma: float) -> Interval:
    """Bounds the move by those of both operands, and by the larger value less the larger clean value."""
    first, second = operands[:2]
    a, b = (at.values(box) for at, box in zip(clean, operands[:2], strict=False))
    larger = Clean(torch.maximum(clean[0].value, clean[1].value), torch.maximum(clean[0].error, clean[1].error))
    values = larger.deviations(Interval(torch.maximum(a.lower, b.lower), torch.maximum(a.upper, b.upper)))
    moved = Interval(torch.minimum(first.lower, second.lower), torch.maximum(first.upper, second.upper))
    return values.meet(moved)
