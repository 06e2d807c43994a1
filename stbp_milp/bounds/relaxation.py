"""The linear relaxation of a ReLU between two lines.

For `l <= z <= u` and unstable (`l < 0 < u`): `alpha z <= relu(z) <= s z + t` with any alpha in [0, 1],
`s = u / (u - l)`, `t = -l s` (Zhang et al. 2018, CROWN). Stable neurons are lines themselves.

Backward passes work in *deviations* from the clean values z_c, relu(z_c): there affine layers have no constant, and
a line contributes the *gap* `slope z_c + intercept - relu(z_c)`, which is zero for a stable neuron.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stbp_milp.bounds.interval import Interval


@dataclass(frozen=True, eq=False)
class Relaxation:
    """Two lines in deviations; each `(N, *shape)`, the lower one possibly `(N, M, *shape)`."""

    lower_slope: Tensor
    lower_gap: Tensor
    upper_slope: Tensor
    upper_gap: Tensor


def adaptive_slope(bounds: Interval) -> Tensor:
    """The lower slope with the smaller area: 1 where `u > -l`, else 0 (Singh et al. 2019, DeepPoly)."""
    return (bounds.upper > -bounds.lower).to(bounds.lower.dtype)


def relax(bounds: Interval, clean: Tensor, alpha: Tensor | None = None) -> Relaxation:
    """The relaxation of a ReLU whose operand is in `bounds`; `clean` is the operand's clean value, `(N or 1, *shape)`.

    `alpha`: lower slopes of the unstable neurons in [0, 1], `(N, *shape)` or `(N, M, *shape)`; adaptive without.
    """
    lower, upper = bounds.lower, bounds.upper
    active, unstable = lower >= 0, bounds.undecided
    width = torch.where(unstable, upper - lower, torch.ones_like(lower))
    upper_slope = torch.where(unstable, upper / width, active.to(lower.dtype))
    intercept = torch.where(unstable, -lower * upper_slope, torch.zeros_like(lower))
    output = clean.clamp(min=0)
    upper_gap = upper_slope * clean + intercept - output
    if alpha is None:
        alpha = adaptive_slope(bounds)
    elif alpha.dim() > lower.dim():
        unstable, upper_slope_, clean, output = (x.unsqueeze(1) for x in (unstable, upper_slope, clean, output))
        lower_slope = torch.where(unstable, alpha, upper_slope_)
        return Relaxation(lower_slope, lower_slope * clean - output, upper_slope, upper_gap)
    lower_slope = torch.where(unstable, alpha, upper_slope)
    return Relaxation(lower_slope, lower_slope * clean - output, upper_slope, upper_gap)
