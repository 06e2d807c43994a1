"""What makes networks easy to verify: sparse weights and stable ReLUs.

Xiao, Tjeng, Shafiullah, Madry 2019, Training for Faster Adversarial Robustness Verification via Inducing ReLU
Stability.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def absolute_weights(network: nn.Module) -> Tensor:
    weights = [parameter.abs().sum() for parameter in network.parameters() if parameter.dim() > 1]
    return torch.stack(weights).sum()


def instability(network: nn.Module, clips: Tensor, radius: float) -> Tensor:
    """Mean `-tanh(1 + l u)` over the ReLUs of a sequential network, with intervals around every voxel +-radius."""
    assert isinstance(network, nn.Sequential)
    lower, upper = (clips - radius).clamp(min=0), (clips + radius).clamp(max=1)
    penalties = []
    for layer in network:
        if isinstance(layer, nn.ReLU):
            penalties.append(-torch.tanh(1 + lower * upper).mean())
        if isinstance(layer, nn.Conv3d | nn.Linear):
            centre, reach = layer((lower + upper) / 2), (upper - lower) / 2
            if isinstance(layer, nn.Conv3d):
                reach = F.conv3d(reach, layer.weight.abs(), None, layer.stride, layer.padding)
            else:
                reach = F.linear(reach, layer.weight.abs())
            lower, upper = centre - reach, centre + reach
        else:
            lower, upper = layer(lower), layer(upper)
    return torch.stack(penalties).sum()
