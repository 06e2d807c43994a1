"""Conversion of points to clips that lie exactly in the set and are exactly what a float32 model is given.

A *candidate* is a clip of the set whose voxels are float32 values. The points of attacks, bounds and solvers are nearly
candidates; this module takes the last step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stbp_milp.sets import PerturbationSet


def representable(perturbation: PerturbationSet, clips: Tensor) -> Tensor:
    """Rounds clips of the set to float32 values inside it, `(B, C, T, H, W) -> (B, C, T, H, W)` float32.

    It expects the set in float64 and a clean clip of float32 values (as in every query). If rounding to nearest leaves
    the box, the next float32 value towards the centre lies in it, because the centre is itself a float32 value on that
    side. Voxels that equal the clean clip stay equal, so the clip's cover stays valid.
    """
    lower, upper = perturbation.lower, perturbation.upper
    clips = clips.to(lower.dtype).clamp(lower, upper)
    rounded = clips.to(torch.float32)
    infinity = torch.full_like(rounded, torch.inf)
    rounded = torch.where(rounded > upper, torch.nextafter(rounded, -infinity), rounded)
    return torch.where(rounded < lower, torch.nextafter(rounded, infinity), rounded)
