"""The adversary of training: it finds clips inside the perturbation sets that make the loss large."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from stbp_milp.sets import Choice
from stbp_milp.st_bench.families import Loss


def climb(
    network: nn.Module,
    loss: Loss,
    clips: Tensor,
    targets: Tensor,
    choice: Choice,
    radius: float,
    generator: torch.Generator,
    steps: int = 4,
) -> Tensor:
    """Moves clips `(N, C, T, H, W)` towards a larger loss, each inside one cover."""
    lower, upper = (clips - radius).clamp(min=0), (clips + radius).clamp(max=1)
    start = lower + torch.rand(clips.shape, generator=generator) * (upper - lower)
    slope = _slope(network, loss, start, targets)
    gain = torch.maximum(slope * (upper - clips), -slope * (clips - lower)).sum(1)  # (N, T, H, W)
    gain = gain * torch.rand(gain.shape, generator=generator) * torch.rand((*gain.shape[:2], 1, 1), generator=generator)
    cover = choice.best(gain.unsqueeze(0))[1].squeeze(0).unsqueeze(1)
    moved = torch.where(cover, start, clips)
    for step in range(steps):
        slope = _slope(network, loss, moved, targets)
        width = (upper - lower) * math.pow(0.5, step)
        moved = torch.where(cover, (moved + width * slope.sign()).clamp(lower, upper), clips)
    return moved


def _slope(network: nn.Module, loss: Loss, clips: Tensor, targets: Tensor) -> Tensor:
    clips = clips.detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(loss(network(clips), targets), clips)
    return slope.detach()
