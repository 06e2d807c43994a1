"""The choice of any k disjoint blocks: frames, pixels, or pixels of every frame.

It also expresses given frames, whose blocks are all *forced*.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from stbp_milp.sets.choice import ChoiceProgram

Kind = Literal["frames", "pixels", "pixels per frame"]


@dataclass(frozen=True, eq=False)
class Blocks:
    """At most `budget` of the `allowed` blocks per group (the clip, or each frame), including all `forced` ones.

    The axes are always (N, groups, blocks): `(N, 1, T)` for frames, `(N, 1, T*H*W)` for pixels, and `(N, T, H*W)` for
    pixels per frame.
    """

    kind: Kind
    budget: int
    voxels: tuple[int, int, int]
    allowed: Tensor  # (N, groups, blocks) bool
    forced: Tensor  # (N, groups, blocks) bool, within allowed

    @classmethod
    def of(cls, kind: Kind, budget: int, voxels: tuple[int, int, int]) -> Blocks:
        """Returns the whole family as one part; a budget beyond the number of blocks means all of them."""
        t, h, w = voxels
        groups, blocks = {"frames": (1, t), "pixels": (1, t * h * w), "pixels per frame": (t, h * w)}[kind]
        allowed = torch.ones(1, groups, blocks, dtype=torch.bool)
        everything = budget >= blocks
        return cls(kind, min(budget, blocks), voxels, allowed, allowed if everything else torch.zeros_like(allowed))

    @classmethod
    def frames(cls, indices: tuple[int, ...], voxels: tuple[int, int, int]) -> Blocks:
        """Returns the only member that covers the given frames."""
        chosen = torch.zeros(1, 1, voxels[0], dtype=torch.bool)
        chosen[..., list(indices)] = True
        return cls("frames", int(chosen.sum()), voxels, chosen, chosen)

    @property
    def parts(self) -> int:
        return self.allowed.shape[0]

    @property
    def device(self) -> torch.device:
        return self.allowed.device

    def total(self, gain: Tensor) -> Tensor:
        grouped = self._grouped(gain)
        forced = self.forced.unsqueeze(1)
        value = (grouped * forced).sum((-1, -2))
        open_gain, k = self._open(grouped)
        if k:
            largest = open_gain.topk(k, dim=-1).values
            value = value + (largest * self._ranks(k)).sum((-1, -2))
        return value

    def best(self, gain: Tensor) -> tuple[Tensor, Tensor]:
        grouped = self._grouped(gain)
        chosen = self.forced.unsqueeze(1).expand(grouped.shape).clone()
        open_gain, k = self._open(grouped)
        if k:
            top = open_gain.topk(k, dim=-1)
            taken = (self._ranks(k) & (top.values > 0)).expand(top.indices.shape)
            chosen |= torch.zeros_like(chosen).scatter(-1, top.indices, taken)
        value = (grouped * chosen).sum((-1, -2))
        return value, self._spread(chosen)

    def members(self) -> Tensor:
        free, left = (self.allowed & ~self.forced).sum(-1), self._left()
        left = torch.minimum(left, free)
        n, k = free.double(), left.double()
        logs = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
        return logs.sum(-1).exp().round()

    def split(self, gain: Tensor) -> tuple[Self, Tensor]:
        splittable = (self.members() > 1).nonzero().flatten()
        part = self.select(splittable)
        free = part.allowed & ~part.forced & (part._left() > 0).unsqueeze(-1)
        scores = self._grouped(gain[splittable].unsqueeze(1)).squeeze(1)
        pick = torch.where(free, scores, -1.0).flatten(1).argmax(1)
        picked = torch.zeros_like(free).flatten(1).scatter(1, pick.unsqueeze(1), True).view_as(free)
        taken = part._with(part.allowed, part.forced | picked)._completed()
        left_out = part._with(part.allowed & ~picked, part.forced)._completed()
        children = taken._with(torch.cat([taken.allowed, left_out.allowed]), torch.cat([taken.forced, left_out.forced]))
        return children, splittable.repeat(2)

    def union(self) -> Tensor:
        reachable = self.forced | (self.allowed & (self._left() > 0).unsqueeze(-1))
        return self._spread(reachable.unsqueeze(1)).squeeze(1)

    def select(self, index: Tensor) -> Self:
        return self._with(self.allowed[index], self.forced[index])

    def program(self, part: int) -> ChoiceProgram:
        allowed, forced = self.allowed[part].cpu().numpy(), self.forced[part].cpu().numpy()
        group, block = np.nonzero(allowed)
        size, count = int(np.prod(self.voxels)), group.size
        column = np.full(allowed.shape, -1)
        column[group, block] = np.arange(count)
        per_voxel = self._spread(torch.from_numpy(column)[None, None]).reshape(-1).numpy()
        voxel = np.flatnonzero(per_voxel >= 0)
        cover = sp.csr_matrix((np.ones(voxel.size), (voxel, per_voxel[voxel])), shape=(size, count))
        budget_rows = sp.csr_matrix((np.ones(count), (group, np.arange(count))), shape=(allowed.shape[0], count))
        fixed = column[forced]
        forced_rows = sp.csr_matrix((np.ones(fixed.size), (np.arange(fixed.size), fixed)), shape=(fixed.size, count))
        return ChoiceProgram(
            cover,
            sp.vstack([budget_rows, forced_rows], format="csr"),
            np.concatenate([np.zeros(allowed.shape[0]), np.ones(fixed.size)]),
            np.concatenate([np.full(allowed.shape[0], float(self.budget)), np.ones(fixed.size)]),
        )

    def describe(self, part: int) -> dict[str, Any]:
        return {
            "blocks": self.kind,
            "at most": self.budget,
            "forced": self.forced[part].nonzero().tolist(),
            "excluded": (~self.allowed[part]).nonzero().tolist(),
        }

    def _with(self, allowed: Tensor, forced: Tensor) -> Self:
        return replace(self, allowed=allowed, forced=forced)

    def _completed(self) -> Self:
        """Forces the free blocks of groups in which all of them may be taken: every maximal member covers them."""
        free = self.allowed & ~self.forced
        all_fit = free.sum(-1) <= self._left()
        return self._with(self.allowed, self.forced | (free & all_fit.unsqueeze(-1)))

    def _left(self) -> Tensor:  # (N, groups)
        return self.budget - self.forced.sum(-1)

    def _open(self, grouped: Tensor) -> tuple[Tensor, int]:
        """Returns the gains of blocks that may still be taken, and the largest number that a group may take."""
        free = (self.allowed & ~self.forced).unsqueeze(1)
        return grouped * free, int(self._left().max())

    def _ranks(self, k: int) -> Tensor:  # (N, 1, groups, k): may the group take its rank-th best block?
        return torch.arange(k, device=self.device) < self._left()[:, None, :, None]

    def _grouped(self, gain: Tensor) -> Tensor:  # (N, M, T, H, W) -> (N, M, groups, blocks)
        if self.kind == "frames":
            return gain.sum((-1, -2)).unsqueeze(2)
        return gain.flatten(2).unsqueeze(2) if self.kind == "pixels" else gain.flatten(3)

    def _spread(self, blocks: Tensor) -> Tensor:  # (N, M, groups, blocks) -> (N, M, T, H, W)
        t, h, w = self.voxels
        if self.kind == "frames":
            return blocks.squeeze(2)[..., None, None].expand(*blocks.shape[:2], t, h, w)
        return blocks.reshape(*blocks.shape[:2], t, h, w)
