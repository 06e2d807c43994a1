"""Linear relaxations of layers with a curve: smooth functions, and products of two values.

`below . z + b <= layer(z) <= above . z + b'` on the bounds of the operand z. Smooth functions take a line of any slope
on either side (`bounds.smooth`). A product lies between McCormick's planes,

    x y >= (1 - t) (l_y x + l_x y - l_x l_y) + t (u_y x + u_x y - u_x u_y),
    x y <= (1 - t) (u_y x + l_x y - l_x u_y) + t (l_y x + u_x y - u_x l_y),   0 <= t <= 1

(McCormick 1976). What is free, the slopes of a smooth function and the shares t of a product, are its *parameters*, of
shape `(N, M or 1, 2, *shape)`: below and above. Gradient ascent optimises them like the slopes of ReLUs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor

from stbp_milp.bounds import smooth
from stbp_milp.bounds.interval import Interval, slope_range
from stbp_milp.bounds.relaxation import adaptive_slope
from stbp_milp.network.layers import Product, ReLU, Smooth, halves
from stbp_milp.sets import inner

_NARROW = 2.0**-30  # relative widths below which an operand counts as fixed


@dataclass(frozen=True, eq=False)
class Lines:
    """The linear relaxation of a smooth function or a product, in deviations.

    Attributes:
        below, above: the slopes, `(N, M or 1, *operand_shape)`.
        below_gap, above_gap: the lines at the clean value, less the clean output, `(N, M or 1, *shape)`.
        bounds: of the operand, `(N, *operand_shape)`; for multipliers of split neurons.
        clean: the clean operand, `(N or 1, *operand_shape)`.
        pairs: is the operand twice as long as the output along its first axis, as for a product?
        error: the rounding error per unit of a form on the layer, `(N, *shape)`; None if it is not counted.
    """

    below: Tensor
    above: Tensor
    below_gap: Tensor
    above_gap: Tensor
    bounds: Interval
    clean: Tensor
    pairs: bool = False
    error: Tensor | None = None

    def select(self, items: Tensor) -> Lines:
        """Selects items."""
        below, above, below_gap, above_gap = (
            x[items] for x in (self.below, self.above, self.below_gap, self.above_gap)
        )
        clean = self.clean if self.clean.shape[0] == 1 else self.clean[items]
        error = None if self.error is None else self.error[items]
        bounds = self.bounds.select(items)
        return Lines(below, above, below_gap, above_gap, bounds, clean, self.pairs, error)

    def through(self, form: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the form on the operand, `(N, M, *operand_shape)`, and the constant `(N, M)` of forms on the layer.

        The positive part of the form meets the lines below, the negative part those above.
        """
        positive = form.clamp(min=0)
        negative = form - positive
        gap = _inner(positive, self.below_gap) + _inner(negative, self.above_gap)
        if self.pairs:
            positive, negative = (torch.cat([part, part], 2) for part in (positive, negative))
        return torch.addcmul(positive * self.below, negative, self.above), gap

    def held(self, multiplier: Tensor) -> Tensor:
        """Returns what the multipliers `m` `(N, M, *operand_shape)` of split neurons add to the constant, `(N, M)`.

        `m (z - l) >= 0` for m >= 0 and `m (z - u) >= 0` for m <= 0, so a form may drop that term.
        """
        end = torch.where(multiplier > 0, self.bounds.lower.unsqueeze(1), self.bounds.upper.unsqueeze(1))
        held = torch.where(multiplier == 0, 0.0, multiplier * end)  # an end may be infinite
        return held.flatten(2).sum(2) - inner(multiplier, self.clean)


def _inner(form: Tensor, gap: Tensor) -> Tensor:
    """Computes `<form, gap>`, `(N, M)`, for gaps of all forms alike, `(N, 1, *shape)`, or of each, `(N, M, *shape)`."""
    return inner(form, gap[:, 0]) if gap.shape[1] == 1 else (form * gap).flatten(2).sum(2)


# --- what is undecided, and what is free ------------------------------------------------------------------


@singledispatch
def undecided(layer: object, bounds: Interval) -> Tensor:
    """Tells where the layer is not known to be affine on the bounds of its operand, `(N, *operand_shape)` bool."""
    raise NotImplementedError(f"undecided: no rule for layer {type(layer).__name__}")


@undecided.register
def _(layer: ReLU, bounds: Interval) -> Tensor:
    return bounds.undecided


@undecided.register(Smooth)
@undecided.register(Product)
def _(layer: Smooth | Product, bounds: Interval) -> Tensor:
    return bounds.upper - bounds.lower > _NARROW * (bounds.lower.abs() + bounds.upper.abs())


@singledispatch
def parameters(layer: object, bounds: Interval) -> Tensor:
    """Returns good parameters of a relaxation to start from, `(N, 1, *)`."""
    raise NotImplementedError(f"parameters: no rule for layer {type(layer).__name__}")


@parameters.register
def _(layer: ReLU, bounds: Interval) -> Tensor:
    return adaptive_slope(bounds).unsqueeze(1)


@parameters.register
def _(layer: Smooth, bounds: Interval) -> Tensor:
    slopes = [smooth.best_slope(layer.function, bounds.lower, bounds.upper, sign) for sign in (1, -1)]
    return torch.stack(slopes, 1).unsqueeze(1)


@parameters.register
def _(layer: Product, bounds: Interval) -> Tensor:
    first, _ = halves(bounds.lower, 1)
    return torch.full_like(first, 0.5).unsqueeze(1).repeat(1, 2, *[1] * (first.dim() - 1)).unsqueeze(1)


@singledispatch
def ranges(layer: object, bounds: Interval) -> tuple[Tensor, Tensor]:
    """Returns the range of the parameters, two tensors that broadcast to them."""
    raise NotImplementedError(f"ranges: no rule for layer {type(layer).__name__}")


@ranges.register
def _(layer: ReLU, bounds: Interval) -> tuple[Tensor, Tensor]:
    least, most = slope_range(bounds)
    return least.unsqueeze(1), most.unsqueeze(1)


@ranges.register
def _(layer: Smooth, bounds: Interval) -> tuple[Tensor, Tensor]:
    least, most = smooth.slope_range(layer.function, bounds.lower, bounds.upper)
    unknown = ~(least.isfinite() & most.isfinite())
    least, most = (side.masked_fill(unknown, 0.0).unsqueeze(1).unsqueeze(1) for side in (least, most))
    return least, most


@ranges.register
def _(layer: Product, bounds: Interval) -> tuple[Tensor, Tensor]:
    first, _ = halves(bounds.lower, 1)
    none = torch.zeros_like(first).unsqueeze(1).unsqueeze(1)
    return none, none + 1


# --- lines ------------------------------------------------------------------------------------------------


@singledispatch
def lines(layer: object, bounds: Interval, clean: Tensor, output: Tensor, own: Tensor) -> Lines:
    """Returns the relaxation with these parameters, differentiable by them.

    Args:
        bounds: of the operand, `(N, *operand_shape)`.
        clean, output: the clean values of the operand and of the layer, `(N or 1, *)`.
        own: the parameters, `(N, M or 1, 2, *shape)`.
    """
    raise NotImplementedError(f"lines: no rule for layer {type(layer).__name__}")


@lines.register
def _(layer: Smooth, bounds: Interval, clean: Tensor, output: Tensor, own: Tensor) -> Lines:
    lower, upper = bounds.lower.unsqueeze(1), bounds.upper.unsqueeze(1)

    def gap(slope: Tensor, sign: int) -> Tensor:
        end = smooth.intercept(layer.function, slope, lower, upper, sign)
        return slope * clean.unsqueeze(1) + end - output.unsqueeze(1)

    below, above = own.unbind(2)
    return Lines(below, above, gap(below, 1), gap(above, -1), bounds, clean)


@lines.register
def _(layer: Product, bounds: Interval, clean: Tensor, output: Tensor, own: Tensor) -> Lines:
    (lx, ly), (ux, uy) = (halves(side.unsqueeze(1), 2) for side in (bounds.lower, bounds.upper))
    x, y = halves(clean.unsqueeze(1), 2)
    t, s = own.unbind(2)
    below = (1 - t) * ly + t * uy, (1 - t) * lx + t * ux
    above = (1 - s) * uy + s * ly, (1 - s) * lx + s * ux
    below_at = below[0] * x + below[1] * y - (1 - t) * (lx * ly) - t * (ux * uy)
    above_at = above[0] * x + above[1] * y - (1 - s) * (lx * uy) - s * (ux * ly)
    clean_output = output.unsqueeze(1)
    return Lines(
        torch.cat(below, 2), torch.cat(above, 2), below_at - clean_output, above_at - clean_output, bounds, clean, True
    )


@singledispatch
def steepness(layer: object, bounds: Interval) -> Tensor:
    """Returns the largest magnitude of a slope within the ranges of the parameters, `(N, *operand_shape)`."""
    raise NotImplementedError(f"steepness: no rule for layer {type(layer).__name__}")


@steepness.register
def _(layer: Smooth, bounds: Interval) -> Tensor:
    least, most = ranges(layer, bounds)
    return torch.maximum(least.abs(), most.abs())[:, 0, 0]


@steepness.register
def _(layer: Product, bounds: Interval) -> Tensor:
    x, y = halves(torch.maximum(bounds.lower.abs(), bounds.upper.abs()), 1)
    return torch.cat([y, x], 1)


@singledispatch
def looseness(layer: object, bounds: Interval) -> Tensor:
    """Returns how far apart the lines below and above are in the middle of the bounds, `(N, *operand_shape)`.

    For a product, the gap is given to both operands, in proportion to their widths.
    """
    raise NotImplementedError(f"looseness: no rule for layer {type(layer).__name__}")


@looseness.register
def _(layer: Smooth, bounds: Interval) -> Tensor:
    middle = (bounds.lower + bounds.upper) / 2
    own = lines(layer, bounds, middle, torch.zeros_like(middle), parameters(layer, bounds))
    return (own.above_gap - own.below_gap)[:, 0].nan_to_num(posinf=1e30).clamp(min=0)


@looseness.register
def _(layer: Product, bounds: Interval) -> Tensor:
    x, y = halves(bounds.upper - bounds.lower, 1)
    gap = x * y / 2
    return torch.cat([gap * x / (x + y).clamp(min=1e-30), gap * y / (x + y).clamp(min=1e-30)], 1)


def is_curved(layer: object) -> bool:
    """Is the layer relaxed by lines of this module?"""
    return isinstance(layer, Smooth | Product)
