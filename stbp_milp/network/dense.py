"""Networks written down as dense matrices between ReLUs: for parts of a network, where that is cheap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stbp_milp.network.graph import Network, Node
from stbp_milp.network.layers import Add, Input, Layer, Linear, ReLU, Reshape


@dataclass(frozen=True, eq=False)
class DenseMap:
    """`z = sum_s weights[s] @ x_s + bias`, read by a ReLU unless it is the last map.

    `weights` are by source, `(n, size of the source)`: 0 is the input, i + 1 the ReLU of map i. `magnitudes` as in
    `Linear`, of some of them.
    """

    weights: Mapping[int, Tensor]
    bias: Tensor
    magnitudes: Mapping[int, Tensor] = field(default_factory=dict)


def dense_network(input_shape: tuple[int, ...], maps: Sequence[DenseMap]) -> tuple[Network, tuple[int, ...]]:
    """The network, and the node positions of the sources (the input, then every ReLU)."""
    nodes = [Node("input", Input(), (), input_shape)]

    def add(name: str, layer: Layer, inputs: tuple[int, ...], size: int) -> int:
        nodes.append(Node(name, layer, inputs, (size,)))
        return len(nodes) - 1

    sources = [0]
    if len(input_shape) > 1:
        size = torch.Size(input_shape).numel()
        sources = [add("flat", Reshape((size,)), (0,), size)]
    for i, affine in enumerate(maps):
        name, size = f"map {i}", len(affine.bias)
        none = torch.zeros_like(affine.bias)
        linear = []
        for j, (source, weight) in enumerate(affine.weights.items()):
            layer = Linear(weight, none if j else affine.bias, affine.magnitudes.get(source))
            linear.append(add(f"{name}/{j}", layer, (sources[source],), size))
        node = linear[0] if len(linear) == 1 else add(f"{name}/sum", Add((1.0,) * len(linear)), tuple(linear), size)
        if i + 1 < len(maps):
            sources.append(add(f"{name}/relu", ReLU(), (node,), size))
    return Network(tuple(nodes)), (0, *sources[1:])
