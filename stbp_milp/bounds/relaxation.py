"""The linear relaxation of a ReLU between two lines.

For `l <= z <= u` and unstable (`l < 0 < u`): `alpha z <= relu(z) <= s z + t` with any alpha in [0, 1],
`s = u / (u - l)`, `t = -l s` (Zhang et al. 2018, CROWN). Stable neurons are lines themselves.

Backward passes work in *deviations* from the clean values z_c and relu(z_c), where affine layers have no constant and a
line contributes the *gap* `slope z_c + intercept - relu(z_c)`, which is zero for a stable neuron.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stbp_milp.bounds.ideal import Planes
from stbp_milp.bounds.interval import Interval, slope_range


@dataclass(frozen=True, eq=False)
class Relaxation:
    """The two lines of a ReLU, in deviations.

    Attributes:
        lower_slope: the slope of the lower line `lower_slope z`, `(N, M or 1, *shape)`.
        upper_slope: the slope of the upper line, `(N, *shape)`.
        upper_gap: the upper line at the clean value, less the clean output, `(N, *shape)`.
        clean, output: the clean operand and output, `(N or 1, *shape)`.
        planes: upper bounds over the input that replace the upper lines of some neurons.
        error: the rounding error per unit of a form on the ReLU, `(N, *shape)`; None if it is not counted.
    """

    lower_slope: Tensor
    upper_slope: Tensor
    upper_gap: Tensor
    clean: Tensor
    output: Tensor
    planes: Planes | None = None
    error: Tensor | None = None

    def select(self, items: Tensor) -> Relaxation:
        """Selects items; there must be no planes, because those belong to a bracket that is made for its own items."""
        assert self.planes is None
        clean, output = (x if x.shape[0] == 1 else x[items] for x in (self.clean, self.output))
        error = None if self.error is None else self.error[items]
        lines = (self.lower_slope[items], self.upper_slope[items], self.upper_gap[items])
        return Relaxation(*lines, clean, output, error=error)


def adaptive_slope(bounds: Interval) -> Tensor:
    """Returns the lower slope of smaller area: 1 where `u > -l`, else 0 (Singh et al. 2019, DeepPoly)."""
    return (bounds.upper > -bounds.lower).to(bounds.lower.dtype)


def relax(bounds: Interval, clean: Tensor) -> Relaxation:
    """Returns the relaxation of a ReLU whose operand lies in `bounds`, with adaptive lower slopes.

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
