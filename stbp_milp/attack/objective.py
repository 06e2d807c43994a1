"""What an attack minimises and where it may move: a query in float32.

A *target* is one clause of the property. The property is broken as soon as one clause is, and a single clause is a
smoother objective than the margin, which is the least of all clauses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stbp_milp.network.graph import Network
from stbp_milp.properties import Property
from stbp_milp.sets import Choice, PerturbationSet


@dataclass(frozen=True, eq=False)
class Objective:
    """Clause values of a network's output and their gradients.

    Attributes:
        per_clip: how many numbers the network computes for one clip.
        rows: how many clips pass through the network at once.
    """

    network: Network
    property: Property
    per_clip: int
    rows: int

    @classmethod
    def of(cls, network: Network, property: Property, dtype: torch.dtype, values: int) -> Objective:
        """Makes the objective in `dtype`, with at most `values` intermediate numbers, which a backward pass keeps."""
        per_clip = sum(torch.Size(node.shape).numel() for node in network.nodes)
        rows = max(1, min(values // per_clip, clips_at_once(network)))
        return cls(network.to(dtype), property.to(dtype), per_clip, rows)

    def affordable(self, values: int) -> int:
        """Returns how many clips (at least one) can be computed with `values` intermediate numbers."""
        return max(1, values // self.per_clip)

    def clauses(self, clips: Tensor) -> Tensor:
        """Computes clause values `(B, clauses)` of clips `(B, C, T, H, W)`; the least of them is the margin."""
        outputs = self.network(clips)
        return self.property.clause_bounds(outputs @ self.property.rows.T + self.property.offset)

    def values(self, clips: Tensor) -> Tensor:
        """Computes the same as `clauses`, in batches and without gradients."""
        with torch.no_grad():
            return torch.cat([self.clauses(chunk) for chunk in torch.split(clips, self.rows)])

    def slopes(self, clips: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Computes clause values `(B, clauses)` and the gradient of each clip's target, `(B, C, T, H, W)`."""
        with torch.enable_grad():
            at = clips.detach().requires_grad_(True)
            values = self.clauses(at)
            chosen = values.gather(1, targets.unsqueeze(1)).sum()
            (slope,) = torch.autograd.grad(chosen, at)
        return values.detach(), slope


@dataclass(frozen=True, eq=False)
class Room:
    """The region in which clips may move, in float32: the box and the choice of one part."""

    clip: Tensor  # (C, T, H, W)
    lower: Tensor
    upper: Tensor
    choice: Choice

    @classmethod
    def of(cls, perturbation: PerturbationSet) -> Room:
        one = perturbation.select(torch.tensor([0], device=perturbation.clip.device)).to(torch.float32)
        return cls(one.clip, one.lower, one.upper, one.choice)

    def gain(self, slope: Tensor) -> Tensor:
        """Computes the largest first-order decrease per voxel, `(B, C, T, H, W) -> (B, T, H, W)`, >= 0."""
        return torch.maximum(slope * (self.clip - self.lower), slope * (self.clip - self.upper)).sum(1)

    def cover(self, gain: Tensor) -> Tensor:
        """Returns the covers with the largest gains, `(B, T, H, W) -> (B, 1, T, H, W)` bool."""
        return self.choice.best(gain.unsqueeze(0))[1].squeeze(0).unsqueeze(1)

    def vertex(self, slope: Tensor, cover: Tensor) -> Tensor:
        """Returns the corner of every cover's box that minimises the linear function with slopes `(B, C, T, H, W)`."""
        corner = torch.where(slope > 0, self.lower, torch.where(slope < 0, self.upper, self.clip))
        return torch.where(cover, corner, self.clip)

    def step(self, clips: Tensor, slope: Tensor, cover: Tensor, width: float) -> Tensor:
        """Moves covered voxels against the sign of the slope, by the share `width` of their box."""
        moved = (clips - width * (self.upper - self.lower) * slope.sign()).clamp(self.lower, self.upper)
        return torch.where(cover, moved, self.clip)


def clips_at_once(network: Network) -> int:
    """Returns how many clips may pass through a network together, so that the clock is checked often enough."""
    return max(1, int(_OPERATION / max(1, network.multiplications()[-1])))


def single_members(choice: Choice, limit: int) -> tuple[Choice, ...]:
    """Returns all members of all parts as parts of their own, in batches; empty if there are more than `limit`.

    The result is also empty if splitting takes too many rounds, for example if every split removes only one block.
    """
    if float(choice.members().sum()) > limit:
        return ()
    singles: list[Choice] = []
    pending = choice
    for _ in range(_ROUNDS):
        alone = pending.members() <= 1
        if bool(alone.any()):
            singles.append(pending.select(alone.nonzero().flatten()))
        if bool(alone.all()):
            return tuple(singles)
        pending = pending.select((~alone).nonzero().flatten())
        pending = pending.split(torch.zeros(pending.parts, *pending.voxels, device=pending.device))[0]
    return ()


_ROUNDS = 64
_OPERATION = 2e9  # multiplications of a pass, whose gradient cannot be interrupted
