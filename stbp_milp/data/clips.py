"""The result of every reader of a data set: clips that are decoded on demand, and their targets.

A *target* is the data set's annotation of a clip: the number of its class, or values in a *unit*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

ClipShape = tuple[int, int, int, int]  # (C, T, H, W)


@dataclass(frozen=True, eq=False)
class ClipSet:
    """Clips of one data set; item i is the clip (C, T, H, W), float32 in [0, 1], read from disk on every call.

    Attributes:
        decode: maps an item to its clip; raises InputError if its file is damaged.
        targets: (N,) int64 class numbers, or (N, 1) float32 in `unit`.
        names: the data set's name of each clip.
        classes: the names of the classes in the order of their numbers; empty for regression.
        unit: the unit of the targets; empty for classification.
    """

    decode: Callable[[int], Tensor]
    targets: Tensor
    names: tuple[str, ...]
    classes: tuple[str, ...] = ()
    unit: str = ""

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, item: int) -> Tensor:
        if not 0 <= item < len(self):
            raise IndexError(f"item {item} of {len(self)} clips")
        return self.decode(item)

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.decode, range(len(self)))

    def stacked(self) -> Tensor:
        """Returns all clips at once, (N, C, T, H, W); for sets that fit in memory."""
        return torch.stack(list(self))
