"""A patch of h rows and w columns in m consecutive frames, which may move arbitrarily from frame to frame."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from stbp_milp.sets.choice import ChoiceProgram
from stbp_milp.sets.patch import Patch, _bisect, _within, window_sums


@dataclass(frozen=True, eq=False)
class MovingPatch:
    """Runs whose first frame is in `start_first..start_last`, with a range of places `(i, j)` for every frame."""

    size: tuple[int, int, int]  # (m, h, w)
    voxels: tuple[int, int, int]
    start_first: Tensor  # (N,) int64
    start_last: Tensor  # (N,) int64, inclusive
    place_first: Tensor  # (N, T, 2) int64
    place_last: Tensor  # (N, T, 2) int64, inclusive

    @classmethod
    def of(cls, size: tuple[int, int, int], voxels: tuple[int, int, int]) -> MovingPatch:
        """Returns all runs and all places as one part."""
        (m, h, w), (t, height, width) = size, voxels
        last = torch.tensor([height - h, width - w]).expand(1, t, 2).clone()
        start = torch.zeros(1, dtype=torch.int64)
        return cls(size, voxels, start, start + (t - m), torch.zeros_like(last), last)

    @property
    def parts(self) -> int:
        return self.start_first.shape[0]

    @property
    def device(self) -> torch.device:
        return self.start_first.device

    def total(self, gain: Tensor) -> Tensor:
        frame_best = self._place_sums(gain).flatten(3).amax(-1)
        return self._run_sums(frame_best).amax(-1)

    def best(self, gain: Tensor) -> tuple[Tensor, Tensor]:
        sums = self._place_sums(gain)
        frame_best, at = sums.flatten(3).max(-1)  # (N, M, T)
        value, run = self._run_sums(frame_best).max(-1)
        row, column = torch.unravel_index(at, sums.shape[3:])
        t, h, w = self.voxels
        frames = _within(run, self.size[0], t, 0)
        rows = torch.arange(h, device=gain.device)[:, None] - row[..., None, None]
        columns = torch.arange(w, device=gain.device) - column[..., None, None]
        patch = (rows >= 0) & (rows < self.size[1]) & (columns >= 0) & (columns < self.size[2])
        return value, frames & patch

    def members(self) -> Tensor:
        places = (self.place_last - self.place_first + 1).double().prod(-1)  # (N, T)
        runs = places.log().unfold(1, self.size[0], 1).sum(-1).exp()  # (N, runs)
        # Not a product: if a number overflows float64, infinity times 0 would be NaN.
        return runs.masked_fill(~self._allowed_runs(), 0.0).sum(-1).round()

    def split(self, gain: Tensor) -> tuple[Self, Tensor]:
        splittable = (self.members() > 1).nonzero().flatten()
        part = self.select(splittable)
        by_run = part.start_last > part.start_first
        start_low = torch.where(by_run, (part.start_first + part.start_last) // 2 + 1, part.start_first)
        start_high = torch.where(by_run, (part.start_first + part.start_last) // 2, part.start_last)
        # If only one run is left, the longest range of places of its frames is halved.
        t = self.voxels[0]
        frame = torch.arange(t, device=self.device)
        active = (frame >= part.start_first[:, None]) & (frame < part.start_first[:, None] + self.size[0])
        extent = ((part.place_last - part.place_first) * active.unsqueeze(-1)).flatten(1)
        low, high = _bisect(part.place_first.flatten(1), part.place_last.flatten(1), extent.argmax(-1))
        keep = by_run[:, None, None]
        low = torch.where(keep, part.place_first, low.view_as(part.place_first))
        high = torch.where(keep, part.place_last, high.view_as(part.place_last))
        children = replace(
            self,
            start_first=torch.cat([part.start_first, start_low]),
            start_last=torch.cat([start_high, part.start_last]),
            place_first=torch.cat([part.place_first, low]),
            place_last=torch.cat([high, part.place_last]),
        )
        return children, splittable.repeat(2)

    def union(self) -> Tensor:
        t, h, w = self.voxels
        frame = torch.arange(t, device=self.device)
        active = (frame >= self.start_first[:, None]) & (frame < self.start_last[:, None] + self.size[0])  # (N, T)
        rows, columns = torch.arange(h, device=self.device), torch.arange(w, device=self.device)
        low, high = self.place_first[..., None], self.place_last[..., None]  # (N, T, 2, 1)
        in_rows = (rows >= low[..., 0, :]) & (rows < high[..., 0, :] + self.size[1])  # (N, T, H)
        in_columns = (columns >= low[..., 1, :]) & (columns < high[..., 1, :] + self.size[2])
        return active[..., None, None] & in_rows.unsqueeze(-1) & in_columns.unsqueeze(-2)

    def select(self, index: Tensor) -> Self:
        return replace(
            self,
            start_first=self.start_first[index],
            start_last=self.start_last[index],
            place_first=self.place_first[index],
            place_last=self.place_last[index],
        )

    def program(self, part: int) -> ChoiceProgram:
        """Returns a program with one binary per run, then one per frame and place.

        The binaries of a frame's places sum to 1 if the chosen run covers the frame, and to 0 otherwise.
        """
        t, h, w = self.voxels
        m = self.size[0]
        runs = np.arange(int(self.start_first[part]), int(self.start_last[part]) + 1)
        covers: list[sp.csr_matrix] = [sp.csr_matrix((t * h * w, runs.size))]
        entries: list[tuple[int, int, float]] = [(0, i, 1.0) for i in range(runs.size)]
        column, row = runs.size, 1
        for frame in range(t):
            starting = np.flatnonzero((runs <= frame) & (frame < runs + m))
            if not starting.size:
                continue
            first, last = self.place_first[part, frame], self.place_last[part, frame]
            places = (
                Patch(
                    (1, *self.size[1:]),
                    (1, h, w),
                    torch.cat([first.new_zeros(1), first])[None],
                    torch.cat([last.new_zeros(1), last])[None],
                )
                .program(0)
                .cover
            )
            above, below = (
                sp.csr_matrix((frame * h * w, places.shape[1])),
                sp.csr_matrix(((t - frame - 1) * h * w, places.shape[1])),
            )
            covers.append(sp.vstack([above, places, below], format="csr"))
            entries += [(row, column + i, 1.0) for i in range(places.shape[1])]
            entries += [(row, int(i), -1.0) for i in starting]
            column, row = column + places.shape[1], row + 1
        rows, columns, values = zip(*entries, strict=True)
        sides = np.zeros(row)
        sides[0] = 1.0
        return ChoiceProgram(
            sp.hstack(covers, format="csr"), sp.csr_matrix((values, (rows, columns)), shape=(row, column)), sides, sides
        )

    def describe(self, part: int) -> dict[str, Any]:
        return {
            "moving patch": list(self.size),
            "first frame": [int(self.start_first[part]), int(self.start_last[part])],
            "first place": self.place_first[part].tolist(),
            "last place": self.place_last[part].tolist(),
        }

    def _place_sums(self, gain: Tensor) -> Tensor:
        """Sums, per frame, the gains under every place, `(N, M, T, I, J)`; minus infinity out of range."""
        sums = window_sums(gain, self.size[1:])
        rows, columns = torch.arange(sums.shape[3], device=gain.device), torch.arange(sums.shape[4], device=gain.device)
        low, high = self.place_first[..., None], self.place_last[..., None]
        in_rows = (rows >= low[..., 0, :]) & (rows <= high[..., 0, :])
        in_columns = (columns >= low[..., 1, :]) & (columns <= high[..., 1, :])
        inside = in_rows.unsqueeze(-1) & in_columns.unsqueeze(-2)  # (N, T, I, J)
        return sums.masked_fill(~inside.unsqueeze(1), -torch.inf)

    def _run_sums(self, frame_best: Tensor) -> Tensor:  # (N, M, T) -> (N, M, runs)
        sums = frame_best.unfold(-1, self.size[0], 1).sum(-1)
        return sums.masked_fill(~self._allowed_runs().unsqueeze(1), -torch.inf)

    def _allowed_runs(self) -> Tensor:  # (N, runs) bool
        run = torch.arange(self.voxels[0] - self.size[0] + 1, device=self.device)
        return (run >= self.start_first[:, None]) & (run <= self.start_last[:, None])
