"""Where attacks begin: the smallest radius at which our attack breaks a property, found by bisection.

It separates budgets that are surely unsafe from those for which a proof may exist; it proves nothing itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stbp_milp.attack import THOROUGH, AttackConfiguration, attack
from stbp_milp.network.graph import Network
from stbp_milp.properties import Property
from stbp_milp.sets import SetSpecification


def attacks_begin(
    network: Network,
    clip: Tensor,
    text: str,
    property: Property,
    seed: int = 0,
    resolution: float = 1 / 512,
    configuration: AttackConfiguration = THOROUGH,
) -> float | None:
    """Finds the smallest radius (up to `resolution`) with which an attack succeeds; None if even 1 is not enough.

    It assumes that an attack that succeeds at one radius succeeds at every larger one. This holds for the sets, and
    nearly so for attacks.
    """

    def broken(radius: float) -> bool:
        generator = torch.Generator().manual_seed(seed)
        perturbation = SetSpecification(text, radius).build(clip)
        return attack(network, perturbation, property, generator, configuration=configuration).margin <= 0

    low, high = 0.0, 1.0
    if not broken(high):
        return None
    while high - low > resolution:
        middle = (low + high) / 2
        low, high = (low, middle) if broken(middle) else (middle, high)
    return high
