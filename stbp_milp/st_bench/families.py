"""The three families of ST-Bench: their clips, their properties, and the sets against which networks are trained.

A family's clips here are the procedural stand-ins; they have the shapes that the sizes of its networks take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from stbp_milp.data import stand_ins as data
from stbp_milp.errors import InputError
from stbp_milp.properties import Property, same_class, within_tolerance
from stbp_milp.st_bench.networks import (
    Shape,
    SteeringNetwork,
    VolumeNetwork,
    network_q,
    r3d,
    small_c3d,
    steering_network,
    steering_network_m,
    video_network,
    volume_network_m,
)

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Size:
    """A shape of clips `(C, T, H, W)` and an untrained network that takes them."""

    shape: Shape
    network: Callable[[], nn.Module]


@dataclass(frozen=True)
class Family:
    """Clips, networks and a question of one kind.

    Attributes:
        maker: draws `(clips, targets)` from `(count, seed, shape)`; targets are labels `(N,)` or angles `(N, 1)`.
        loss: the loss as a function of `(outputs, targets)`.
        property_kind: "class": the class does not change; "tolerance": outputs stay near the clean ones.
        tolerance: the largest distance from the clean outputs, in the output's unit; 0 for classes.
        sets: the sets that networks are trained against, in words, each with the largest radius.
        sizes: the sizes, at least "S", "M" and "L".
    """

    name: str
    maker: Callable[[int, int, Shape], tuple[Tensor, Tensor]]
    loss: Loss
    property_kind: Literal["class", "tolerance"]
    tolerance: float
    sets: tuple[tuple[str, float], ...]
    sizes: Mapping[str, Size]

    def size(self, name: str) -> Size:
        """The size called `name`.

        Raises:
            InputError: the family has none of that name.
        """
        if name not in self.sizes:
            raise InputError(f"family {self.name!r} has no size {name!r}; expected one of: {', '.join(self.sizes)}")
        return self.sizes[name]

    def shape(self, size: str) -> Shape:
        """Returns the shape `(C, T, H, W)` of a clip."""
        return self.size(size).shape

    def draw(self, count: int, seed: int, size: str = "S") -> tuple[Tensor, Tensor]:
        """Draws `count` clips `(count, C, T, H, W)`, float32 in [0, 1], and their targets."""
        return self.maker(count, seed, self.shape(size))

    def property(self, outputs: Tensor, target: Tensor) -> Property:
        """Returns the property of a clip with clean outputs `(K,)` and this target (a label, or an angle)."""
        if self.property_kind == "class":
            return same_class(int(target), len(outputs))
        return within_tolerance(outputs, self.tolerance)


def _angle_loss(angle: Tensor, target: Tensor) -> Tensor:
    return F.smooth_l1_loss(angle / data.STEERING_LIMIT, target / data.STEERING_LIMIT, beta=0.05) * 4


_VIDEO, _ROAD, _VOLUME = (3, 16, 112, 112), (3, 16, 64, 96), (1, 64, 64, 64)

ACTIVITY = Family(
    "activity",
    data.moving_shapes,
    F.cross_entropy,
    "class",
    0.0,
    (("window:2", 0.1), ("any-frames:2", 0.1), ("patch:3x3@2", 0.2), ("everywhere", 0.03)),
    {
        "S": Size(data.VIDEO_SHAPE, video_network),
        "M": Size((3, 8, 32, 32), network_q),
        "L": Size(_VIDEO, lambda: small_c3d(_VIDEO, len(data.VIDEO_CLASSES))),
        "L-r3d": Size(_VIDEO, lambda: r3d(8, 1, len(data.VIDEO_CLASSES))),
    },
)
DRIVING = Family(
    "driving",
    data.roads,
    _angle_loss,
    "tolerance",
    5.0,
    (("frames:3", 0.1), ("moving-patch:3x3@2", 0.5), ("everywhere", 0.02), ("pixels:5", 0.5)),
    {
        "S": Size(data.STEERING_SHAPE, steering_network),
        "M": Size((3, 8, 32, 48), steering_network_m),
        "L": Size(_ROAD, lambda: SteeringNetwork(small_c3d(_ROAD, 1))),
    },
)
MEDICAL = Family(
    "medical",
    data.organs,
    F.cross_entropy,
    "class",
    0.0,
    (("window:2", 0.1), ("patch:3x3@2", 0.3), ("everywhere", 0.03), ("pixels-per-frame:1", 0.3)),
    {
        "S": Size(data.VOLUME_SHAPE, VolumeNetwork),
        "M": Size((1, 28, 28, 28), volume_network_m),
        "L": Size(_VOLUME, lambda: small_c3d(_VOLUME, len(data.VOLUME_CLASSES))),
    },
)
FAMILIES: Mapping[str, Family] = {family.name: family for family in (ACTIVITY, DRIVING, MEDICAL)}


def family_named(name: str) -> Family:
    """Returns the family with this name.

    Raises:
        InputError: there is no family of that name.
    """
    if name not in FAMILIES:
        raise InputError(f"there is no family {name!r}; expected one of: {', '.join(FAMILIES)}")
    return FAMILIES[name]
