"""Which voxels move: a *choice* is a family of *covers*, subsets of the voxels `(T, H, W)`.

A choice is a batch of N *parts*, each a subfamily (some frames excluded, a range of positions): branch and bound
splits parts, and one batched pass bounds many. A *member* is one cover of the family. An attacker chooses a member and
then moves its voxels; a covered voxel may also stay, so only the maximal covers of a family matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ChoiceProgram:
    """A family of covers as the integer points of a program: `(cover @ z)_v = 1` exactly if voxel v may move.

    `z` are binaries with `row_lower <= rows @ z <= row_upper`; `cover` is `(T*H*W, Z)`.
    """

    cover: sp.csr_matrix
    rows: sp.csr_matrix
    row_lower: np.ndarray
    row_upper: np.ndarray


class Choice(Protocol):
    """A batch of N families of covers over voxels `(T, H, W)`."""

    @property
    def parts(self) -> int:
        """N, the number of parts."""

    @property
    def device(self) -> torch.device:
        """The device of its tensors."""

    @property
    def voxels(self) -> tuple[int, int, int]:
        """The numbers of voxels `(T, H, W)`."""

    def best(self, gain: Tensor) -> tuple[Tensor, Tensor]:
        """Finds the largest sum of gains `(N, M, T, H, W) >= 0` over a cover, `(N, M)`, and a cover that attains it.

        The cover is bool, of the shape of the gains. With a single part, gains with any leading N broadcast.
        """

    def total(self, gain: Tensor) -> Tensor:
        """Returns the first result of `best`, the values `(N, M)`."""

    def members(self) -> Tensor:
        """Counts the members of every part, `(N,)` float64 (they can be astronomically many)."""

    def split(self, gain: Tensor) -> tuple[Self, Tensor]:
        """Splits every part with more than one member into smaller ones, guided by gains `(N, T, H, W)`.

        Returns the children and the index of each child's parent, `(children,)`. Law: a part's members are
        exactly the members of its children.
        """

    def union(self) -> Tensor:
        """Returns the voxels that some member covers, bool `(N, T, H, W)`."""

    def select(self, index: Tensor) -> Self:
        """Selects the parts at `index` (int64 `(n,)`)."""

    def program(self, part: int) -> ChoiceProgram:
        """Returns one part as integer points."""

    def describe(self, part: int) -> dict[str, Any]:
        """Describes one part in words and numbers, for records."""
