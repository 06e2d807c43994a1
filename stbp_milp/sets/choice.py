"""Which voxels move: a *choice* picks a *cover*, a subset of the voxels `(T, H, W)`, from a family of covers.

A choice is a batch of N *parts*, each a subfamily (some frames excluded, a range of positions): branch and bound
splits parts, and one batched pass bounds many. A *member* is one cover of the family. Attackers choose a member,
then move its voxels; a voxel that is covered may also stay, so a family is as good as its maximal covers.
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
    """A family of covers as integer points: `(cover @ z)_v = 1` exactly where voxel v may move.

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
        """N."""

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""

    @property
    def voxels(self) -> tuple[int, int, int]:
        """`(T, H, W)`."""

    def best(self, gain: Tensor) -> tuple[Tensor, Tensor]:
        """For gains `(N, M, T, H, W) >= 0`: the largest sum over a cover `(N, M)` and a cover that attains it
        (bool, same shape as the gains). With N = 1 parts any leading N broadcasts.
        """

    def total(self, gain: Tensor) -> Tensor:
        """The first half of `best`: values only, `(N, M)`."""

    def members(self) -> Tensor:
        """Number of members of every part, `(N,)` float64 (they can be astronomically many)."""

    def split(self, gain: Tensor) -> tuple[Self, Tensor]:
        """Split every part with more than one member into smaller ones, guided by gains `(N, T, H, W)`.

        Returns the children and the index of each child's parent, `(children,)`. Law: a part's members are
        exactly the members of its children.
        """

    def union(self) -> Tensor:
        """Voxels that some member covers, bool `(N, T, H, W)`."""

    def select(self, index: Tensor) -> Self:
        """The parts at `index` (int64 `(n,)`)."""

    def program(self, part: int) -> ChoiceProgram:
        """One part as integer points."""

    def describe(self, part: int) -> dict[str, Any]:
        """One part in words and numbers, for records."""
