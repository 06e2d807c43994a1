"""What is bounded: a network on a batch of input sets, and what is known of its ReLUs there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from stbp_milp.bounds.ideal import IdealNeurons, ideal_neurons
from stbp_milp.bounds.interval import Interval
from stbp_milp.network.graph import Network
from stbp_milp.sets import InputSet, VoxelBox

Preactivations = Mapping[int, Interval]
"""Bounds of the operand of every ReLU, by the ReLU's node position; each `(N, *shape)`."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A network on N input sets around clean inputs.

    Attributes:
        inputs: N sets.
        clean: the value of every node at the centre, each `(N or 1, *shape)`.
        ideal: of first-layer ReLUs, the neurons with an ideal relaxation, where the inputs are boxes.
    """

    network: Network
    inputs: InputSet
    clean: tuple[Tensor, ...]
    ideal: Mapping[int, IdealNeurons] = field(default_factory=dict)

    @classmethod
    def of(cls, network: Network, inputs: InputSet) -> Problem:
        with torch.no_grad():
            return cls(network, inputs, tuple(network.values(inputs.centre)))

    @property
    def parts(self) -> int:
        return self.inputs.parts

    def select(self, index: Tensor) -> Self:
        """The items at `index` (int64 `(n,)`)."""
        if self.parts == 1 and len(index) == 1:
            return self
        clean = tuple(value if value.shape[0] == 1 else value[index] for value in self.clean)
        ideal = {relu: neurons.select(index) for relu, neurons in self.ideal.items()}
        return replace(self, inputs=self.inputs.select(index), clean=clean, ideal=ideal)

    def with_inputs(self, inputs: InputSet) -> Self:
        """Other sets around the same clean inputs."""
        return replace(self, inputs=inputs)

    def to(self, dtype: torch.dtype) -> Self:
        """The same in another floating-point type."""
        return replace(
            self,
            network=self.network.to(dtype),
            inputs=self.inputs.to(dtype),
            clean=tuple(value.to(dtype) for value in self.clean),
            ideal={relu: neurons.to(dtype) for relu, neurons in self.ideal.items()},
        )

    def idealised(self, bounds: Preactivations) -> Self:
        """With ideal relaxations of the first-layer neurons that `bounds` leave undecided, where inputs are boxes."""
        if not isinstance(self.inputs, VoxelBox):
            return self
        return replace(self, ideal=ideal_neurons(self.network, self.inputs, bounds))


def select_preactivations(bounds: Preactivations, index: Tensor) -> dict[int, Interval]:
    """Those of the items at `index`; shared, not copied, where that is the only one."""
    alone = len(index) == 1 and all(b.lower.shape[0] == 1 for b in bounds.values())
    return {relu: b if alone else b.select(index) for relu, b in bounds.items()}


def unstable_count(bounds: Preactivations, parts: int) -> Tensor:
    """Undecided ReLUs of every one of `parts` batch items, `(N,)`."""
    counts = [b.undecided.flatten(1).sum(1) for b in bounds.values()]
    return torch.stack(counts).sum(0) if counts else torch.zeros(parts, dtype=torch.int64)
