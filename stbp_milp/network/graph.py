"""An immutable network: layers in topological order.

`NetworkBuilder` collects named layers in any order in a networkx graph; `build` drops what the output does not
need, sorts, and computes every node shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import networkx as nx
import torch
from torch import Tensor

from stbp_milp.errors import InputError
from stbp_milp.network.layers import Add, Input, Layer, Maximum, ReLU
from stbp_milp.network.operations import apply


@dataclass(frozen=True, eq=False)
class Node:
    name: str
    layer: Layer
    inputs: tuple[int, ...]  # positions of the operands in Network.nodes
    shape: tuple[int, ...]  # without the batch axis


@dataclass(frozen=True, eq=False)
class Network:
    """Nodes in topological order; node 0 is the input, the last node the output of shape (K,)."""

    nodes: tuple[Node, ...]

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.nodes[0].shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.nodes[-1].shape

    @property
    def dtype(self) -> torch.dtype:
        for node in self.nodes:
            for tensor in _tensors(node.layer):
                if tensor.is_floating_point():
                    return tensor.dtype
        return torch.get_default_dtype()

    @property
    def relus(self) -> tuple[int, ...]:
        """Positions of the ReLU nodes."""
        return tuple(i for i, node in enumerate(self.nodes) if isinstance(node.layer, ReLU))

    def values(self, clips: Tensor) -> list[Tensor]:
        """The value of every node, each `(N, *node.shape)`, for clips `(N, *input_shape)`."""
        values = [clips]
        for node in self.nodes[1:]:
            values.append(apply(node.layer, [values[i] for i in node.inputs]))
        return values

    def __call__(self, clips: Tensor) -> Tensor:  # (N, *input_shape) -> (N, K)
        """The network's output; a value is dropped after its last use."""
        last_use = {i: position for position, node in enumerate(self.nodes) for i in node.inputs}
        values = {0: clips}
        for position, node in enumerate(self.nodes[1:], start=1):
            values[position] = apply(node.layer, [values[i] for i in node.inputs])
            for i in node.inputs:
                if last_use[i] == position:
                    values.pop(i, None)
        return values[len(self.nodes) - 1]

    def to(self, target: torch.dtype | torch.device) -> Network:
        """The same network with every floating-point tensor in another dtype or on another device."""
        return Network(tuple(replace(node, layer=_moved(node.layer, target)) for node in self.nodes))

    def affine_depth(self) -> tuple[bool, ...]:
        """For every node: is it an affine function of the input (no ReLU in between)?"""
        affine: list[bool] = []
        for node in self.nodes:
            own = not isinstance(node.layer, ReLU)
            affine.append(own and all(affine[i] for i in node.inputs))
        return tuple(affine)


def _tensors(layer: Layer) -> list[Tensor]:
    return [value for f in fields(layer) if isinstance(value := getattr(layer, f.name), Tensor)]


def _moved(layer: Layer, target: torch.dtype | torch.device) -> Layer:
    changes: dict[str, Any] = {}
    for f in fields(layer):
        value = getattr(layer, f.name)
        if isinstance(value, Tensor) and (value.is_floating_point() or isinstance(target, torch.device)):
            changes[f.name] = value.to(target)
    return replace(layer, **changes)


class NetworkBuilder:
    """Collects named layers; `add` returns the name so that readers can chain calls."""

    def __init__(self, input_shape: Sequence[int], name: str = "input") -> None:
        self._graph = nx.DiGraph()
        self._input = name
        self._shape = tuple(input_shape)
        self._graph.add_node(name, layer=Input(), inputs=())

    def add(self, name: str, layer: Layer, *inputs: str) -> str:
        """Add `layer` reading the named nodes.

        Raises:
            InputError: an operand does not exist or the name is taken.
        """
        if name in self._graph:
            raise InputError(f"two nodes are named {name!r}; give every node of the model its own name")
        missing = [i for i in inputs if i not in self._graph]
        if missing:
            raise InputError(f"node {name!r} reads {missing[0]!r}, which no earlier node produces; export the model again")
        self._graph.add_node(name, layer=layer, inputs=inputs)
        self._graph.add_edges_from((i, name) for i in inputs)
        return name

    def maximum(self, name: str, first: str, second: str) -> str:
        """Add `max(first, second)` as `second + relu(first - second)`."""
        difference = self.add(f"{name}/difference", Add((1.0, -1.0)), first, second)
        excess = self.add(f"{name}/relu", ReLU(), difference)
        return self.add(name, Maximum(), first, second, excess)

    def build(self, output: str) -> Network:
        """The network that computes node `output` (its shape must be flat: `(K,)`)."""
        needed = nx.ancestors(self._graph, output) | {output, self._input}
        order = [self._input, *(n for n in nx.topological_sort(self._graph.subgraph(needed)) if n != self._input)]
        order.remove(output)
        order.append(output)
        position = {name: i for i, name in enumerate(order)}
        nodes: list[Node] = []
        probe = [torch.zeros((1, *self._shape), dtype=torch.float64)]
        for name in order:
            layer, inputs = self._graph.nodes[name]["layer"], tuple(position[i] for i in self._graph.nodes[name]["inputs"])
            if name != self._input:
                try:
                    probe.append(apply(_moved(layer, torch.float64), [probe[i] for i in inputs]))
                except RuntimeError as error:
                    shapes = ", ".join(str(tuple(probe[i].shape[1:])) for i in inputs)
                    raise InputError(f"node {name!r} ({type(layer).__name__}) cannot take operands of shape {shapes}: {error}") from error
            nodes.append(Node(name, layer, inputs, tuple(probe[-1].shape[1:])))
        if len(nodes[-1].shape) != 1:
            raise InputError(f"the network's output has shape {nodes[-1].shape}; expected one flat vector of scores, add a Flatten at the end")
        return Network(tuple(nodes))
