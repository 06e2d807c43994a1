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

from stbp_milp.bounds.ideal import Planes
from stbp_milp.bounds.interval import Interval, slope_range


@dataclass(frozen=True, eq=False)
class Relaxation:
    """Two lines in deviations.

    Attributes:
        lower_slope: of the lower line `lower_slope z`, `(N, M or 1, *shape)`.
        upper_slope: `(N, *shape)`.
        upper_gap: the upper line at the clean value, less the clean output, `(N, *shape)`.
        clean, output: the clean operand and output, `(N or 1, *shape)`.
        planes: of some neurons, upper bounds over the input that take the place of their upper lines.
        error: what rounding costs a unit of a form on the ReLU, `(N, *shape)`; None where it is not counted.
    """

    lower_slope: Tensor
    upper_slope: Tensor
    upper_gap: Tensor
    clean: Tensor
    output: Tensor
    planes: Planes | None = None
    error: Tensor | None = None

    def select(self, items: Tensor) -> Relaxation:
        """Those of some items; planes belong to a bracket, which is made for its items."""
        assert self.planes is None
        clean, output = (x if x.shape[0] == 1 else x[items] for x in (self.clean, self.output))
        error = None if self.error is None else self.error[items]
        lines = (self.lower_slope[items], self.upper_slope[items], self.upper_gap[items])
        return Relaxation(*lines, clean, output, error=error)


def adaptive_slope(bounds: Interval) -> Tensor:
    """The lower slope with the smaller area: 1 where `u > -l`, else 0 (Singh et al. 2019, DeepPoly)."""
    return (bounds.upper > -bounds.lower).to(bounds.lower.dtype)


def relax(bounds: Interval, clean: Tensor) -> Relaxation:
    """The relaxation of a ReLU whose operand is in `bounds`, with adaptive lower slopes.

    `clean` is the operand's clean value, `(N or 1, *shape)`.
    """
    lower, upper = bounds.lower, bounds.upper
    least, most = slope_range(bounds)
    undecided = least < most
    width = torch.where(undecided, upper - lower, torch.ones_like(lower))
    upper_slope = torch.where(undecided, upper / width, most)
    intercept = torch.where(undecided, -lower * upper_slope, torch.zeros_like(lower))
    output = clean.clamp(min=0)
    lower_slope = adaptive_slope(bounds).clamp(least, most).unsqueeze(1)
    return Relaxation(lower_slope, upper_slope, upper_slope * clean + intercept - output, clean, output)
