"""Where attacks begin: the radius from which an attack of ours breaks a property, found by halving.

It tells budgets apart that are surely unsafe from those worth a proof; it proves nothing itself.
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
    """The smallest radius (up to `resolution`) that an attack succeeds with; None if not even 1 is enough.

    Assumes that a clip broken at one radius is broken at every larger one, which is true of the set, and nearly
    true of attacks.
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
