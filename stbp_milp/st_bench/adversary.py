"""The adversary of training: it finds clips inside the perturbation sets that make the loss large."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stbp_milp.sets import Choice
from stbp_milp.st_bench.families import Loss


@dataclass(frozen=True, eq=False)
class Adversary:
    """Who moves the voxels of one cover of a choice by at most a radius, in so many gradient steps."""

    choice: Choice
    radius: float
    steps: int = 4


def climb(
    network: nn.Module, loss: Loss, clips: Tensor, targets: Tensor, adversary: Adversary, generator: torch.Generator
) -> Tensor:
    """Moves clips `(N, C, T, H, W)` towards a larger loss, each inside one cover."""
    choice, radius = adversary.choice, adversary.radius
    lower, upper = (clips - radius).clamp(min=0), (clips + radius).clamp(max=1)
    start = lower + torch.rand(clips.shape, generator=generator) * (upper - lower)
    slope = _slope(network, loss, start, targets)
    gain = torch.maximum(slope * (upper - clips), -slope * (clips - lower)).sum(1)  # (N, T, H, W)
    gain = gain * torch.rand(gain.shape, generator=generator) * torch.rand((*gain.shape[:2], 1, 1), generator=generator)
    cover = choice.best(gain.unsqueeze(0))[1].squeeze(0).unsqueeze(1)
    moved = torch.where(cover, start, clips)
    for step in range(adversary.steps):
        slope = _slope(network, loss, moved, targets)
        width = (upper - lower) * math.pow(0.5, step)
        moved = torch.where(cover, (moved + width * slope.sign()).clamp(lower, upper), clips)
    return moved


def _slope(network: nn.Module, loss: Loss, clips: Tensor, targets: Tensor) -> Tensor:
    clips = clips.detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(loss(network(clips), targets), clips)
    return slope.detach()
