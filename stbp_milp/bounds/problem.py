"""The problem that is bounded: a network on a batch of input sets, with its clean values and rounding errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from stbp_milp.bounds.ideal import IdealNeurons, ideal_neurons
from stbp_milp.bounds.interval import Clean, Interval
from stbp_milp.bounds.lines import Lines, lines, parameters, steepness, undecided
from stbp_milp.bounds.relaxation import Relaxation, relax
from stbp_milp.bounds.rounding import PRECISE_WORK, Rounding, rounded, size
from stbp_milp.network.graph import Network
from stbp_milp.network.layers import Nonlinear, Product, Smooth
from stbp_milp.network.operations import apply, linear, reads
from stbp_milp.sets import InputSet, VoxelBox

Preactivations = Mapping[int, Interval]
"""Bounds of all pre-activations, the operands of nonlinear nodes, by those nodes' positions; each `(N, *shape)`."""

Relaxed = Relaxation | Lines
"""The linear relaxation of a nonlinear node."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A network on N input sets around clean inputs.

    Attributes:
        inputs: the N sets.
        clean: the value of every node at the centre, each `(N or 1, *shape)`; for a crop, as in the whole network.
        ideal: the neurons with an ideal relaxation, for first-layer ReLUs on boxes.
        rounding: how rounding can affect bounds; None if bounds only guide the search and are not claimed.
    """

    network: Network
    inputs: InputSet
    clean: tuple[Tensor, ...]
    ideal: Mapping[int, IdealNeurons] = field(default_factory=dict)
    rounding: Rounding | None = None

    @classmethod
    def of(cls, network: Network, inputs: InputSet, precise_work: float = PRECISE_WORK) -> Problem:
        """Makes the problem of a network on these sets; `precise_work` as in `rounded`."""
        with torch.no_grad():
            clean, rounding = rounded(network, inputs.centre, precise_work)
            return cls(network, inputs, clean, rounding=rounding)

    @property
    def gamma(self) -> float:
        """The constant of `bounds.rounding`; 0 if rounding is not counted."""
        return 0.0 if self.rounding is None else self.rounding.gamma

    def at(self, node: int) -> Clean:
        """Returns a node's clean value with its error bound."""
        value = self.clean[node]
        return Clean(value, value.new_zeros(()) if self.rounding is None else self.rounding.errors[node])

    @torch.no_grad()
    def sized(self, bounds: Preactivations, upto: int) -> Self:
        """Adds the sizes of nodes up to `upto`, except above nonlinear ones without bounds; known sizes are kept."""
        if self.rounding is None or upto in self.rounding.sizes:
            return self
        sizes = dict(self.rounding.sizes)
        for position, node in enumerate(self.network.nodes[: upto + 1]):
            bounded = position in bounds or not isinstance(node.layer, Nonlinear)
            if position in sizes or not bounded or any(i not in sizes for i in node.inputs):
                continue
            own = bounds.get(position)
            sizes[position] = size(self.network, position, self.clean, self.rounding, sizes, self.inputs, own)
        return replace(self, rounding=replace(self.rounding, sizes=sizes))

    def relaxation(self, relu: int, bounds: Interval, own: Tensor | None = None) -> Relaxed:
        """Returns a node's relaxation; if rounding is counted, the sizes up to the node must be known.

        Args:
            own: the parameters of a smooth function or a product; good ones by default.
        """
        layer, operand = self.network.nodes[relu].layer, self.network.operand(relu)
        clean = self.clean[operand]
        if isinstance(layer, Smooth | Product):
            own = parameters(layer, bounds) if own is None else own
            curved = lines(layer, bounds, clean, self.clean[relu], own)
            if self.rounding is None:
                return curved
            steep = steepness(layer, bounds)
            return replace(curved, error=self.rounding.of_lines(layer, (operand, relu), steep, bounds))
        triangle = relax(bounds, clean)
        if self.rounding is None:
            return triangle
        planes = self.ideal[relu].neurons if relu in self.ideal else None
        return replace(triangle, error=self.rounding.of_relu(operand, clean, bounds, planes))

    @torch.no_grad()
    def values(self, points: Tensor) -> list[Tensor]:
        """Computes the value of every node, each `(N, *shape)`, at one point per item `(N, *input_shape)`.

        It works in deviations from the clean values, so unlike `network.values` it is also valid on crops.
        """
        values = [points]
        for node, clean in zip(self.network.nodes[1:], self.clean[1:], strict=True):
            if isinstance(node.layer, Nonlinear):
                values.append(apply(node.layer, [values[node.inputs[0]]]))
                continue
            value = clean
            for i, operand in enumerate(node.inputs):
                if reads(node.layer, i):
                    value = value + linear(node.layer, i, values[operand] - self.clean[operand])
            values.append(value)
        return values

    @property
    def parts(self) -> int:
        return self.inputs.parts

    @property
    def device(self) -> torch.device:
        """The device on which everything is computed."""
        return self.clean[0].device

    def select(self, index: Tensor) -> Self:
        """Selects the items at `index` (int64 `(n,)`)."""
        if self.parts == 1 and len(index) == 1:
            return self
        clean = tuple(value if value.shape[0] == 1 else value[index] for value in self.clean)
        ideal = {relu: neurons.select(index) for relu, neurons in self.ideal.items()}
        rounding = None if self.rounding is None else self.rounding.select(index)
        return replace(self, inputs=self.inputs.select(index), clean=clean, ideal=ideal, rounding=rounding)

    def with_inputs(self, inputs: InputSet) -> Self:
        """Returns the problem with other sets around the same clean inputs."""
        rounding = None if self.rounding is None else replace(self.rounding, sizes={})
        return replace(self, inputs=inputs, rounding=rounding)

    def single(self) -> Self:
        """Converts to float32, as a guide for the search: rounding is not counted."""
        return replace(
            self,
            rounding=None,
            network=self.network.single,
            inputs=self.inputs.to(torch.float32),
            clean=tuple(value.to(torch.float32) for value in self.clean),
            ideal={relu: neurons.to(torch.float32) for relu, neurons in self.ideal.items()},
        )

    def idealised(self, bounds: Preactivations) -> Self:
        """Adds ideal relaxations of the first-layer neurons that `bounds` leave undecided, if the inputs are boxes."""
        if not isinstance(self.inputs, VoxelBox):
            return self
        return replace(self, ideal=ideal_neurons(self.network, self.inputs, bounds))


def select_preactivations(bounds: Preactivations, index: Tensor) -> dict[int, Interval]:
    """Selects the bounds of the items at `index`; if there is only one item, they are shared and not copied."""
    alone = len(index) == 1 and all(b.lower.shape[0] == 1 for b in bounds.values())
    return {relu: b if alone else b.select(index) for relu, b in bounds.items()}


def unstable_count(network: Network, bounds: Preactivations, parts: int) -> Tensor:
    """Counts the undecided neurons of each of the `parts` items, `(N,)`."""
    counts = [undecided(network.nodes[i].layer, b).flatten(1).sum(1) for i, b in bounds.items()]
    return torch.stack(counts).sum(0) if counts else torch.zeros(parts, dtype=torch.int64)
