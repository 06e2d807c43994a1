"""What is bounded: a network on a batch of input sets, and what is known of its ReLUs there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from stbp_milp.bounds.interval import Interval
from stbp_milp.network.graph import Network
from stbp_milp.network.layers import Linear
from stbp_milp.sets import InputSet

Preactivations = Mapping[int, Interval]
"""Bounds of the operand of every ReLU, by the ReLU's node position; each `(N, *shape)`."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A network on N input sets around clean inputs.

    Attributes:
        network: shared by the batch, or with matrices of its own for each item (`Linear` with a batch axis).
        inputs: N sets.
        clean: the value of every node at the centre, each `(N or 1, *shape)`.
    """

    network: Network
    inputs: InputSet
    clean: tuple[Tensor, ...]

    @classmethod
    def of(cls, network: Network, inputs: InputSet) -> Problem:
        with torch.no_grad():
            return cls(network, inputs, tuple(network.values(inputs.centre)))

    @property
    def parts(self) -> int:
        return self.inputs.parts

    def select(self, index: Tensor) -> Self:
        """The items at `index` (int64 `(n,)`)."""
        clean = tuple(value if value.shape[0] == 1 else value[index] for value in self.clean)
        return replace(
            self, network=select_matrices(self.network, index), inputs=self.inputs.select(index), clean=clean
        )

    def alone(self) -> Self:
        """A problem of one item with plain matrices, which any number of its pieces can share."""
        nodes = []
        for node in self.network.nodes:
            layer = node.layer
            if isinstance(layer, Linear) and layer.weight.dim() == 3:
                layer = Linear(layer.weight[0], layer.bias[0])
            nodes.append(replace(node, layer=layer))
        return replace(self, network=Network(tuple(nodes)))

    def with_inputs(self, inputs: InputSet) -> Self:
        """Other sets around the same clean inputs."""
        return replace(self, inputs=inputs)


def select_matrices(network: Network, index: Tensor) -> Network:
    """The network with the matrices of the batch items at `index`; the same object if it has no batched matrix."""
    if not any(isinstance(node.layer, Linear) and node.layer.weight.dim() == 3 for node in network.nodes):
        return network
    nodes = []
    for node in network.nodes:
        layer = node.layer
        if isinstance(layer, Linear):
            weight = layer.weight[index] if layer.weight.dim() == 3 else layer.weight
            bias = layer.bias[index] if layer.bias.dim() == 2 else layer.bias
            nodes.append(replace(node, layer=Linear(weight, bias)))
        else:
            nodes.append(node)
    return Network(tuple(nodes))


def select_preactivations(bounds: Preactivations, index: Tensor) -> dict[int, Interval]:
    return {relu: interval.select(index) for relu, interval in bounds.items()}


def unstable_count(bounds: Preactivations, parts: int) -> Tensor:
    """Undecided ReLUs of every one of `parts` batch items, `(N,)`."""
    counts = [((b.lower < 0) & (b.upper > 0)).flatten(1).sum(1) for b in bounds.values()]
    return torch.stack(counts).sum(0) if counts else torch.zeros(parts, dtype=torch.int64)
