"""An immutable network: layers in topological order.

`NetworkBuilder` collects named layers in a networkx graph and computes every node's shape; `build` keeps what the
output needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import networkx as nx
import torch
from torch import Tensor

from stbp_milp.errors import InputError
from stbp_milp.network.layers import Add, Affine, Input, Layer, Maximum, Nonlinear, ReLU, Scale, Smooth
from stbp_milp.network.operations import apply, products


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

    @cached_property
    def nonlinear(self) -> tuple[int, ...]:
        """Positions of the nodes that are not affine."""
        return tuple(i for i, node in enumerate(self.nodes) if isinstance(node.layer, Nonlinear))

    @cached_property
    def is_piecewise_linear(self) -> bool:
        """Are all its nonlinear layers ReLUs?"""
        return self.relus == self.nonlinear

    def operand(self, relu: int | None) -> int:
        """The node that a nonlinear node reads; of None, the network's output."""
        return len(self.nodes) - 1 if relu is None else self.nodes[relu].inputs[0]

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

    @cached_property
    def single(self) -> Network:
        """The same network in float32; made once."""
        return self.to(torch.float32)

    def multiplications(self) -> list[int]:
        """Of every node: the multiplications that a form takes from it back to the input; of the last, of all."""
        return list(accumulate(products(node.layer, node.shape) for node in self.nodes))

    def part(self, node: int) -> Network:
        """The network whose output is `node` `(*shape)`: that node, all that it is computed from, and the input."""
        needed = {0}
        pending = [node]
        while pending:
            position = pending.pop()
            if position not in needed:
                needed.add(position)
                pending += self.nodes[position].inputs
        order = sorted(needed)
        position_of = {old: new for new, old in enumerate(order)}
        return Network(
            tuple(
                replace(self.nodes[i], inputs=tuple(position_of[operand] for operand in self.nodes[i].inputs))
                for i in order
            )
        )

    def affine_depth(self) -> tuple[bool, ...]:
        """For every node: is it an affine function of the input (nothing but affine layers in between)?"""
        affine: list[bool] = []
        for node in self.nodes:
            own = isinstance(node.layer, Input | Affine)
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
    """Collects named layers; `add` returns the name so that readers can chain calls.

    Every node's shape is known as soon as it is added (torch's meta device computes shapes without numbers).
    """

    def __init__(self, input_shape: Sequence[int], name: str = "input") -> None:
        self._graph = nx.DiGraph()
        self._input = name
        self._graph.add_node(name, layer=Input(), inputs=(), shape=tuple(input_shape))

    def __contains__(self, name: str) -> bool:
        return name in self._graph

    def shape(self, name: str) -> tuple[int, ...]:
        """The node's shape, without the batch axis."""
        shape: tuple[int, ...] = self._graph.nodes[name]["shape"]
        return shape

    def add(self, name: str, layer: Layer, *inputs: str) -> str:
        """Add `layer` reading the named nodes, which must be there already.

        Raises:
            InputError: an operand does not exist, the name is taken, the operands' shapes do not fit, or a weight is
                not finite.
        """
        if name in self._graph:
            raise InputError(f"two nodes are named {name!r}; give every node of the model its own name")
        missing = [i for i in inputs if i not in self._graph]
        if missing:
            raise InputError(
                f"node {name!r} reads {missing[0]!r}, which no earlier node produces; export the model again"
            )
        _check_finite(name, layer)
        shape = _shape_after(name, layer, [self.shape(i) for i in inputs])
        self._graph.add_node(name, layer=layer, inputs=inputs, shape=shape)
        self._graph.add_edges_from((i, name) for i in inputs)
        return name

    def made(self, name: str) -> tuple[Layer, tuple[str, ...]]:
        """The layer of a node that was added, and the names of its operands."""
        entry = self._graph.nodes[name]
        return entry["layer"], tuple(entry["inputs"])

    def maximum(self, name: str, first: str, second: str) -> str:
        """Add `max(first, second)` as `second + relu(first - second)`."""
        difference = self.add(f"{name}/difference", Add((1.0, -1.0)), first, second)
        excess = self.add(f"{name}/relu", ReLU(), difference)
        return self.add(name, Maximum(), first, second, excess)

    def build(self, output: str) -> Network:
        """The network that computes node `output` (its shape must be flat: `(K,)`)."""
        if len(self.shape(output)) != 1:
            raise InputError(
                f"the network's output {output!r} has shape {self.shape(output)}; "
                "expected one flat vector of scores, add a Flatten at the end"
            )
        needed = nx.ancestors(self._graph, output) | {output, self._input}
        # Operands are added before their readers, so the order of insertion is topological (and, unlike
        # networkx's own sort, the same in every run).
        order = [name for name in self._graph if name in needed]
        position = {name: i for i, name in enumerate(order)}
        return Network(tuple(self._node(name, position) for name in order))

    def _node(self, name: str, position: dict[str, int]) -> Node:
        entry = self._graph.nodes[name]
        return Node(name, entry["layer"], tuple(position[i] for i in entry["inputs"]), entry["shape"])


def _check_finite(name: str, layer: Layer) -> None:
    for f in fields(layer):
        value = getattr(layer, f.name)
        if isinstance(value, Tensor) and value.is_floating_point():
            wrong = int((~value.isfinite()).sum())
            if wrong:
                raise InputError(
                    f"node {name!r} ({type(layer).__name__}): {wrong} of the {value.numel()} values in its {f.name} "
                    "are NaN or infinite; expected finite numbers: check the training of the model, and give a channel "
                    "that a bias of -inf switches off a large negative bias instead"
                )


_SAME_SHAPE = (Scale, Add, ReLU, Smooth, Maximum)  # torch would broadcast what the linear rules cannot


def _shape_after(name: str, layer: Layer, operands: list[tuple[int, ...]]) -> tuple[int, ...]:
    arrived = f"node {name!r} ({type(layer).__name__}) cannot take operands of shape " + ", ".join(map(str, operands))
    try:
        probes = [torch.empty((1, *shape), dtype=torch.float64, device="meta") for shape in operands]
        shape = tuple(apply(_moved(_moved(layer, torch.float64), torch.device("meta")), probes).shape[1:])
    except (RuntimeError, IndexError) as error:
        raise InputError(f"{arrived}: {error}") from error
    if isinstance(layer, _SAME_SHAPE) and any(operand != shape for operand in operands):
        raise InputError(f"{arrived}: expected operands of its own shape {shape}; broadcast them with Select first")
    return shape
