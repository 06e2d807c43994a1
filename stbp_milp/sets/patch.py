"""A cuboid of m frames, h rows and w columns at a fixed position, whose first voxel (t, i, j) the attacker chooses.

A window of m consecutive frames is the cuboid `(m, H, W)`; a given patch is a range with one position.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from stbp_milp.sets.choice import ChoiceProgram


@dataclass(frozen=True, eq=False)
class Patch:
    """Positions `first <= (t, i, j) <= last` of a cuboid of the given size, one range per part."""

    size: tuple[int, int, int]
    voxels: tuple[int, int, int]
    first: Tensor  # (N, 3) int64
    last: Tensor  # (N, 3) int64, inclusive

    @classmethod
    def of(cls, size: tuple[int, int, int], voxels: tuple[int, int, int]) -> Patch:
        """Returns all positions inside the clip as one part."""
        last = torch.tensor([[n - k for n, k in zip(voxels, size, strict=True)]])
        return cls(size, voxels, torch.zeros_like(last), last)

    @classmethod
    def at(cls, place: tuple[int, int, int], size: tuple[int, int, int], voxels: tuple[int, int, int]) -> Patch:
        """Returns the only position `place`."""
        first = torch.tensor([place])
        return cls(size, voxels, first, first)

    @property
    def parts(self) -> int:
        return self.first.shape[0]

    @property
    def device(self) -> torch.device:
        return self.first.device

    def total(self, gain: Tensor) -> Tensor:
        return self._position_sums(gain).flatten(2).amax(-1)

    def best(self, gain: Tensor) -> tuple[Tensor, Tensor]:
        sums = self._position_sums(gain)
        value, at = sums.flatten(2).max(-1)
        start = torch.stack(torch.unravel_index(at, sums.shape[2:]), -1)  # (N, M, 3)
        cover = torch.ones((), dtype=torch.bool, device=gain.device)
        for axis in range(3):
            cover = cover & _within(start[..., axis], self.size[axis], self.voxels[axis], axis)
        return value, cover

    def members(self) -> Tensor:
        return (self.last - self.first + 1).double().prod(-1)

    def split(self, gain: Tensor) -> tuple[Self, Tensor]:
        splittable = (self.members() > 1).nonzero().flatten()
        first, last = self.first[splittable], self.last[splittable]
        low, high = _bisect(first, last, (last - first).argmax(-1))
        children = replace(self, first=torch.cat([first, low]), last=torch.cat([high, last]))
        return children, splittable.repeat(2)

    def union(self) -> Tensor:
        cover = torch.ones((), dtype=torch.bool, device=self.device)
        for axis in range(3):
            index = torch.arange(self.voxels[axis], device=self.device).view([-1 if a == axis else 1 for a in range(3)])
            low, high = self.first[:, axis, None, None, None], self.last[:, axis, None, None, None] + self.size[axis]
            cover = cover & (index >= low) & (index < high)
        return cover

    def select(self, index: Tensor) -> Self:
        return replace(self, first=self.first[index], last=self.last[index])

    def singletons(self) -> Patch:
        """Returns every position of every part as a part of its own."""
        ranges = [
            torch.cartesian_prod(*(torch.arange(a, b + 1, device=self.device) for a, b in zip(low, high, strict=True)))
            for low, high in zip(self.first.tolist(), self.last.tolist(), strict=True)
        ]
        positions = torch.cat(ranges)
        return replace(self, first=positions, last=positions)

    def program(self, part: int) -> ChoiceProgram:
        alone = (
            self.select(torch.tensor([part], device=self.device)).singletons().union().flatten(1)
        )  # (positions, voxels)
        count = alone.shape[0]
        return ChoiceProgram(
            sp.csr_matrix(alone.cpu().numpy().T.astype(float)),
            sp.csr_matrix(np.ones((1, count))),
            np.ones(1),
            np.ones(1),
        )

    def describe(self, part: int) -> dict[str, Any]:
        return {"patch": list(self.size), "first": self.first[part].tolist(), "last": self.last[part].tolist()}

    def _position_sums(self, gain: Tensor) -> Tensor:
        """Sums the gains under every position; minus infinity outside the part's range."""
        sums = window_sums(gain, self.size)
        inside = torch.ones((), dtype=torch.bool, device=gain.device)
        for axis in range(3):
            index = torch.arange(sums.shape[2 + axis], device=gain.device)
            index = index.view([-1 if a == axis else 1 for a in range(3)])
            inside = (
                inside
                & (index >= self.first[:, axis, None, None, None])
                & (index <= self.last[:, axis, None, None, None])
            )
        return sums.masked_fill(~inside.unsqueeze(1), -torch.inf)


def window_sums(gain: Tensor, size: tuple[int, ...]) -> Tensor:
    """Sums over all windows of the last `len(size)` axes, axis by axis: the cost grows with the sum of the sizes."""
    for axis, length in zip(range(-len(size), 0), size, strict=True):
        if length == gain.shape[axis]:
            gain = gain.sum(axis, keepdim=True)
        elif length > 1:
            gain = gain.unfold(axis, length, 1).sum(-1)
    return gain


def _within(start: Tensor, length: int, size: int, axis: int) -> Tensor:
    """Bool `(N, M, ...)` with `size` on voxel axis `axis`: is the voxel inside `[start, start + length)`?"""
    index = torch.arange(size, device=start.device).view([-1 if a == axis else 1 for a in range(3)])
    start = start[..., None, None, None]
    return (index >= start) & (index < start + length)


def _bisect(first: Tensor, last: Tensor, axis: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `low` and `high` of the ranges `[first, high]` and `[low, last]` that halve each row along its axis."""
    middle = (first + last) // 2
    halved = torch.zeros_like(first, dtype=torch.bool).scatter(-1, axis.unsqueeze(-1), True)
    return torch.where(halved, middle + 1, first), torch.where(halved, middle, last)
