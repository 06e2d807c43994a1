"""What bounds need of a smooth function on intervals: ranges of its value and slope, and lines below and above it.

A line of *any* slope a lies below f on [l, u] with the intercept `min over [l, u] of f(z) - a z`. The minimum lies at
an end, at a break, or inside a convex piece, where bisection on the derivative brackets it: from the bracket's middle m
of a convex h, `min h >= h(m) - |h'(m)| w / 2` for its width w, so the intercept is sound however narrow the bracket is.
The intercept's derivative by the slope is minus the minimiser (Danskin), so slopes can be optimised by gradients. Lines
above are the same for -f. This covers the tangents and chords of Shi et al. (2024, GenBaB) for all functions at once.

Where a bound is infinite, lines are flat, at the ends of the function's range. Where the function is not defined on the
whole interval, nothing is known, and ranges and intercepts are infinite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stbp_milp.network.functions import Function

_BISECTIONS = 16  # of a stationary point
_SLOPE_BISECTIONS = 10  # of the slope of a function with several pieces
_ULPS = 64.0  # more than any value in `network.functions` errs by, in units of the last place


def accuracy(function: Function, x: Tensor, value: Tensor) -> Tensor:
    """Bounds the error of a computed value at `x`."""
    size = value.abs() + x.abs() if function.by_argument else value.abs()
    return _ULPS * torch.finfo(x.dtype).eps * size + torch.finfo(x.dtype).tiny


def _defined(function: Function, lower: Tensor, upper: Tensor) -> Tensor:
    """Tells where the function is defined on the whole interval, bool."""
    start, stop = function.domain
    return ((lower > start) | (start == -torch.inf)) & ((upper < stop) | (stop == torch.inf)) & (lower <= upper)


def value_range(function: Function, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Returns bounds of the function's values on `[lower, upper]`, elementwise; infinite where nothing is known."""
    inside = _defined(function, lower, upper)
    lower, upper = (torch.where(inside, x, torch.ones_like(x)) for x in (lower, upper))
    ends = [function.value(x) for x in (lower, upper)]
    margin = torch.maximum(*(accuracy(function, x, y) for x, y in zip((lower, upper), ends, strict=True)))
    least, most = torch.minimum(*ends) - margin, torch.maximum(*ends) + margin
    for start, stop, value in function.minima:
        reached = (lower <= stop) & (upper >= start)
        least = torch.where(reached, least.clamp(max=value), least)
    unknown = ~inside | least.isnan() | most.isnan()
    return least.masked_fill(unknown, -torch.inf), most.masked_fill(unknown, torch.inf)


def slope_range(function: Function, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Returns bounds of the function's derivative on `[lower, upper]`, elementwise; infinite where nothing is known."""
    inside, lower, upper = _inside(function, lower, upper)
    ends = [function.derivative(x) for x in (lower, upper)]
    least, most = torch.minimum(*ends), torch.maximum(*ends)
    for place, (low, high) in zip(function.breaks, function.slopes_at_breaks, strict=True):
        reached = (lower <= place) & (upper >= place)
        least = torch.where(reached, least.clamp(max=low), least)
        most = torch.where(reached, most.clamp(min=high), most)
    # The derivative's own error: it may cancel, so it is counted relative to the values at hand and to 1.
    margin = _ULPS * torch.finfo(lower.dtype).eps * (torch.maximum(least.abs(), most.abs()) + function.by_argument)
    return (least - margin).masked_fill(~inside, -torch.inf), (most + margin).masked_fill(~inside, torch.inf)


def intercept(function: Function, slope: Tensor, lower: Tensor, upper: Tensor, sign: int) -> Tensor:
    """Returns the intercepts of lines below (`sign` 1) or above (-1) the function, differentiable by the slope.

    Args:
        slope: any slopes, `(N, M, *shape)`.
        lower, upper: the intervals, `(N, 1, *shape)`.
    """
    given = lower, upper
    inside, lower, upper = _inside(function, lower, upper)
    with torch.no_grad():
        point, loss = _stationary(function, slope, lower, upper, sign)
        far = torch.maximum(lower.abs(), upper.abs())
        values = torch.maximum(function.value(lower).abs(), function.value(upper).abs())
        unit = _ULPS * torch.finfo(lower.dtype).eps
        loss = loss + unit * (values + (1 + slope.abs()) * far) + torch.finfo(lower.dtype).tiny
    result = function.value(point) - slope * point - sign * loss
    if bool(inside.all()):
        return result
    flat = value_range(function, *given)[0 if sign > 0 else 1]
    return torch.where(inside, result, torch.where(slope == 0, flat, -sign * torch.inf))


def best_slope(function: Function, lower: Tensor, upper: Tensor, sign: int) -> Tensor:
    """Returns the slope of the line below (or above) that cuts off the least area, elementwise.

    It is the line that is highest (lowest) at the middle of the interval: a tangent there, a chord, or a line that
    touches an end and a tangent point, whatever the convex hull of the function has there.
    """
    inside, lower, upper = _inside(function, lower, upper)
    middle = (lower + upper) / 2
    if len(function.curvature) == 1:
        if function.curvature[0] * sign > 0:
            slope = function.derivative(middle)
        else:
            width = upper - lower
            chord = (function.value(upper) - function.value(lower)) / torch.where(width > 0, width, 1.0)
            slope = torch.where(width > 0, chord, function.derivative(middle))
    else:
        least, most = slope_range(function, lower, upper)
        for _ in range(_SLOPE_BISECTIONS):
            slope = (least + most) / 2
            point, _ = _stationary(function, slope, lower, upper, sign)
            steeper = (point < middle) if sign > 0 else (point > middle)
            least, most = torch.where(steeper, slope, least), torch.where(steeper, most, slope)
        slope = (least + most) / 2
    return torch.where(inside, slope, torch.zeros_like(slope))


def _inside(function: Function, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns where the interval can be used, and its ends, which are 1 elsewhere (every domain contains 1)."""
    inside = _defined(function, lower, upper) & lower.isfinite() & upper.isfinite()
    one = torch.ones_like(lower)
    return inside, torch.where(inside, lower, one), torch.where(inside, upper, one)


@torch.no_grad()
def _stationary(function: Function, slope: Tensor, lower: Tensor, upper: Tensor, sign: int) -> tuple[Tensor, Tensor]:
    """Returns where `sign (f(z) - slope z)` is least on the interval, and what it may be below its value there."""

    def height(z: Tensor) -> Tensor:
        return sign * (function.value(z) - slope * z)

    def rise(z: Tensor) -> Tensor:
        return sign * (function.derivative(z) - slope)

    lower, upper = lower.expand_as(slope), upper.expand_as(slope)
    best, loss = lower, torch.zeros_like(slope)
    least = height(lower)

    def tried(z: Tensor, uncertain: Tensor) -> None:
        nonlocal best, loss, least
        own = height(z) - uncertain
        lower_than = own < least
        best, loss = torch.where(lower_than, z, best), torch.where(lower_than, uncertain, loss)
        least = torch.where(lower_than, own, least)

    nothing = torch.zeros_like(slope)
    tried(upper, nothing)
    ends = (-torch.inf, *function.breaks, torch.inf)
    for k, curvature in enumerate(function.curvature):
        start, stop = (torch.maximum(lower, torch.minimum(upper, lower.new_tensor(end))) for end in ends[k : k + 2])
        if k:
            tried(start, nothing)
        if curvature * sign < 0:
            continue
        falls, rises = rise(start) < 0, rise(stop) > 0  # otherwise the least is at an end of the piece
        for _ in range(_BISECTIONS):
            middle = (start + stop) / 2
            left = rise(middle) >= 0
            start, stop = torch.where(left, start, middle), torch.where(left, middle, stop)
        middle = (start + stop) / 2
        uncertain = rise(middle).abs() * (stop - start) / 2
        inner = torch.ones_like(falls) if function.kinks else falls & rises  # at a kink, either may be wrong
        tried(torch.where(inner, middle, lower), torch.where(inner, uncertain, nothing))
    return best, loss
