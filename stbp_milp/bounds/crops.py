"""Crops of layers: the neurons that a small change of the clip can reach, as a box of positions with all channels.

Crops serve networks that are too large to be written down as matrices (`footprint` serves the others). A change inside
a box of voxels reaches, layer by layer, a box of neurons. Outside that box every *deviation* from the clean values is
zero. In deviations, a convolution over a crop is therefore the same convolution with zeros around it, whatever the true
values there are, and the whole network becomes an ordinary network of small layers. Bounds work in deviations; apart
from these layers they only need the crops of the clean values. Applying a crop's layers to values (with biases, and
zeros instead of neighbours) is meaningless.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch

import torch
from torch import Tensor

from stbp_milp.network.graph import Network, Node
from stbp_milp.network.layers import (
    Add,
    Concatenate,
    Convolution,
    Input,
    Layer,
    Linear,
    Maximum,
    Permute,
    Product,
    ReLU,
    Reshape,
    Scale,
    Select,
    Smooth,
)
from stbp_milp.network.operations import products

Elementwise = Scale | Add | ReLU | Smooth | Maximum
"""The layers in which every element reads the same element of every operand."""

Range = tuple[int, int]
"""`[start, stop)`."""


@dataclass(frozen=True)
class Region:
    """A box of a node's elements.

    Attributes:
        view: the node's shape; for a flat node, the shape before it was flattened.
        ranges: the range along every axis of the view; the first axis (channels) is always whole.
    """

    view: tuple[int, ...]
    ranges: tuple[Range, ...]

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Region:
        return cls(shape, tuple((0, n) for n in shape))

    @property
    def is_whole(self) -> bool:
        return self == Region.whole(self.view)

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(stop - start for start, stop in self.ranges)

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the crop's shape, given the node's shape `whole`."""
        return self.lengths if len(whole) == len(self.view) else (math.prod(self.lengths),)

    def of(self, values: Tensor) -> Tensor:
        """Returns the crop of a node's values `(N, *shape)`, as a view without a copy if possible."""
        part = values.reshape(values.shape[0], *self.view)
        for axis, (start, stop) in enumerate(self.ranges, start=1):
            part = part.narrow(axis, start, stop - start)
        return part.reshape(values.shape[0], *self.shape(tuple(values.shape[1:])))

    def union(self, other: Region, shape: tuple[int, ...]) -> Region:
        """Returns the smallest region that contains both; `shape` is the node's shape."""
        if self.view != other.view:
            return Region.whole(shape)
        ends = zip(self.ranges, other.ranges, strict=True)
        return Region(self.view, tuple((min(a, c), max(b, d)) for (a, b), (c, d) in ends)).normal(shape)

    def normal(self, shape: tuple[int, ...]) -> Region:
        """Returns the same region; if it is the whole node, in the node's own shape."""
        return Region.whole(shape) if self.is_whole else self


def footprint(network: Network, voxels: Region) -> tuple[Region, ...]:
    """Returns, for every node, the region that a change of these voxels can reach, enlarged by what its readers need.

    All operands of an elementwise layer get the same region; the operand of a selection gets all that is read.

    Raises:
        NotImplementedError: a layer has no rule; a default rule could miss neurons that it reaches.
    """
    nodes = network.nodes
    regions = [voxels]
    for node in nodes[1:]:
        own = [_reached(node.layer, regions[i], nodes[i].shape, node.shape) for i in node.inputs]
        regions.append(_joined(own, node.shape))
    while True:
        before = list(regions)
        for position in range(len(nodes) - 1, 0, -1):
            for i in nodes[position].inputs:
                wanted = _wanted(nodes[position].layer, regions[position], regions[i], nodes[i].shape)
                regions[i] = regions[i].union(wanted, nodes[i].shape)
        for position, node in enumerate(nodes):
            if isinstance(node.layer, Elementwise | Product | Reshape | Permute | Concatenate):
                own = [_reached(node.layer, regions[i], nodes[i].shape, node.shape) for i in node.inputs]
                regions[position] = _joined([regions[position], *own], node.shape)
        if regions == before:
            return tuple(regions)


def cropped(network: Network, regions: Sequence[Region]) -> Network:
    """Returns the network in deviations from the clean values, with every node restricted to its region."""
    nodes = []
    for position, node in enumerate(network.nodes):
        operands = [regions[i] for i in node.inputs]
        layer = node.layer
        if not (regions[position].is_whole and all(region.is_whole for region in operands)):
            layer = _restricted(layer, regions[position], operands, node.shape)
        nodes.append(Node(node.name, layer, node.inputs, regions[position].shape(node.shape)))
    return Network(tuple(nodes))


def crop_work(network: Network, regions: Sequence[Region]) -> float:
    """Returns the multiplications of a pass through the cropped network."""
    total = 0.0
    for node, region in zip(network.nodes, regions, strict=True):
        if isinstance(node.layer, Linear):  # only the weights of the operand's region
            total += node.layer.weight.shape[0] * math.prod(regions[node.inputs[0]].lengths)
        else:
            total += products(node.layer, region.shape(node.shape))
    return total


def _joined(regions: Sequence[Region], shape: tuple[int, ...]) -> Region:
    result = regions[0].normal(shape)
    for region in regions[1:]:
        result = result.union(region, shape)
    return result


# --- what a change of an operand reaches ----------------------------------------------------------------------


@singledispatch
def _reached(layer: object, region: Region, operand_shape: tuple[int, ...], shape: tuple[int, ...]) -> Region:
    """Returns the region of the layer's value (of `shape`) that a change in the operand's `region` reaches."""
    raise NotImplementedError(f"crops: no rule for what a change reaches through layer {type(layer).__name__}")


@_reached.register(Scale)
@_reached.register(Add)
@_reached.register(ReLU)
@_reached.register(Smooth)
@_reached.register(Maximum)
def _(layer: Elementwise, region: Region, operand_shape: tuple[int, ...], shape: tuple[int, ...]) -> Region:
    return region


@_reached.register
def _(layer: Convolution, region: Region, operand_shape: tuple[int, ...], shape: tuple[int, ...]) -> Region:
    ranges = [(0, shape[0])]
    for (start, stop), size, (before, _), stride, reach in zip(
        region.ranges[1:], shape[1:], layer.padding, layer.stride, _reaches(layer), strict=True
    ):
        first = -((reach - 1 - before - start) // stride)  # the first output whose last tap lies at or after start
        last = (stop - 1 + before) // stride
        ranges.append(_inside(first, last + 1, size))
    return Region(shape, tuple(ranges))


@_reached.register
def _(layer: Linear, region: Region, operand_shape: tuple[int, ...], shape: tuple[int, ...]) -> Region:
    return Region.whole(shape)


@_reached.register
def _(layer: Reshape, region: Region, operand_shape: tuple[int, ...], shape: tuple[int, ...]) -> Region:
    fits = len(shape) == 1 or region.view == shape
    return region if fits else Region.whole(shape)


@_reached.register
def _(layer: Select, region: Region, operand_shape: tuple[int, ...], shape: tuple[int, ...]) -> Region:
    if region.view != operand_shape:
        return Region.whole(shape)
    ranges = list(region.ranges)
    start, stop = ranges[layer.axis]
    readers = ((layer.index >= start) & (layer.index < stop)).nonzero().flatten().tolist() or [0]
    ranges[layer.axis] = (0, shape[0]) if layer.axis == 0 else (readers[0], readers[-1] + 1)
    return Region(shape, tuple(ranges))


@_reached.register
def _(layer: Permute, region: Region, operand_shape: tuple[int, ...], shape: tuple[int, ...]) -> Region:
    if region.view != operand_shape:
        return Region.whole(shape)
    return Region(shape, ((0, shape[0]), *(region.ranges[axis] for axis in layer.order[1:])))


@_reached.register
def _(layer: Concatenate, region: Region, operand_shape: tuple[int, ...], shape: tuple[int, ...]) -> Region:
    return _along(layer.axis, region, operand_shape, shape)


@_reached.register
def _(layer: Product, region: Region, operand_shape: tuple[int, ...], shape: tuple[int, ...]) -> Region:
    return _along(0, region, operand_shape, shape)


def _along(axis: int, region: Region, own: tuple[int, ...], other: tuple[int, ...]) -> Region:
    """A region of a node in another of a different length along one axis: whole there, the same along all others."""
    if region.view != own:
        return Region.whole(other)
    return Region(other, tuple((0, n) if i == axis else region.ranges[i] for i, n in enumerate(other)))


def _inside(start: int, stop: int, size: int) -> Range:
    """Clips a range to `size` positions; if nothing is reached it keeps one position, so that no layer is empty."""
    start = min(max(start, 0), size - 1)
    return start, max(start + 1, min(stop, size))


def _reaches(layer: Convolution) -> list[int]:
    """Returns the length from the first to the last tap, both included, along every axis."""
    return [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.weight.shape[2:], strict=True)]


# --- what a layer needs of its operand ------------------------------------------------------------------------


@singledispatch
def _wanted(layer: object, own: Region, operand: Region, operand_shape: tuple[int, ...]) -> Region:
    """Returns the region of the operand that the layer needs to compute its `own` region."""
    raise NotImplementedError(f"crops: no rule for what layer {type(layer).__name__} needs of its operand")


@_wanted.register(Scale)
@_wanted.register(Add)
@_wanted.register(ReLU)
@_wanted.register(Smooth)
@_wanted.register(Maximum)
def _(layer: Elementwise, own: Region, operand: Region, operand_shape: tuple[int, ...]) -> Region:
    return own


@_wanted.register(Convolution)
@_wanted.register(Linear)
def _(layer: Convolution | Linear, own: Region, operand: Region, operand_shape: tuple[int, ...]) -> Region:
    return operand  # zeros stand for the rest


@_wanted.register
def _(layer: Reshape, own: Region, operand: Region, operand_shape: tuple[int, ...]) -> Region:
    return own if own.view == operand.view else Region.whole(operand_shape)


@_wanted.register
def _(layer: Select, own: Region, operand: Region, operand_shape: tuple[int, ...]) -> Region:
    if operand.view != operand_shape:
        return Region.whole(operand_shape)
    ranges = list(own.ranges)
    start, stop = own.ranges[layer.axis]
    index = layer.index[start:stop]
    index = index[index >= 0] if bool((index >= 0).any()) else torch.zeros_like(index)
    ranges[layer.axis] = (0, operand_shape[0]) if layer.axis == 0 else (int(index.min()), int(index.max()) + 1)
    return Region(operand_shape, tuple(ranges))


@_wanted.register
def _(layer: Permute, own: Region, operand: Region, operand_shape: tuple[int, ...]) -> Region:
    if operand.view != operand_shape:
        return Region.whole(operand_shape)
    ranges = [own.ranges[layer.order.index(axis)] for axis in range(len(operand_shape))]
    return Region(operand_shape, ((0, operand_shape[0]), *ranges[1:]))


@_wanted.register
def _(layer: Concatenate, own: Region, operand: Region, operand_shape: tuple[int, ...]) -> Region:
    return _along(layer.axis, own, own.view, operand_shape)


@_wanted.register
def _(layer: Product, own: Region, operand: Region, operand_shape: tuple[int, ...]) -> Region:
    if operand.view != operand_shape:
        return Region.whole(operand_shape)
    return _along(0, own, (operand_shape[0] // 2, *operand_shape[1:]), operand_shape)


# --- layers on regions ----------------------------------------------------------------------------------------


@singledispatch
def _restricted(layer: object, own: Region, operands: Sequence[Region], shape: tuple[int, ...]) -> Layer:
    """Returns the layer, in deviations, from its operands' regions to its own."""
    raise NotImplementedError(f"crops: no rule to restrict layer {type(layer).__name__} to a region")


@_restricted.register(Input)
@_restricted.register(Add)
@_restricted.register(ReLU)
@_restricted.register(Smooth)
@_restricted.register(Product)
@_restricted.register(Maximum)
@_restricted.register(Permute)
@_restricted.register(Concatenate)
def _(layer: Layer, own: Region, operands: Sequence[Region], shape: tuple[int, ...]) -> Layer:
    return layer


@_restricted.register
def _(layer: Convolution, own: Region, operands: Sequence[Region], shape: tuple[int, ...]) -> Layer:
    return replace(layer, padding=tuple(_crop_padding(layer, own, operands[0])))


def _crop_padding(layer: Convolution, own: Region, operand: Region) -> Iterator[tuple[int, int]]:
    """Yields the zeros before and after the operand's crop; negative numbers if the outputs read less than the crop."""
    for (first, end), (start, stop), (before, _), stride, reach in zip(
        own.ranges[1:], operand.ranges[1:], layer.padding, layer.stride, _reaches(layer), strict=True
    ):
        read_from, read_to = first * stride - before, (end - 1) * stride - before + reach
        yield start - read_from, read_to - stop


@_restricted.register
def _(layer: Linear, own: Region, operands: Sequence[Region], shape: tuple[int, ...]) -> Layer:
    return layer if operands[0].is_whole else replace(layer, weight=operands[0].of(layer.weight))


@_restricted.register
def _(layer: Scale, own: Region, operands: Sequence[Region], shape: tuple[int, ...]) -> Layer:
    def part(x: Tensor) -> Tensor:
        x = x.reshape(*[1] * (len(shape) - x.dim()), *x.shape)
        if len(shape) != len(own.view):
            return own.of(x.expand(1, *shape))[0]
        for axis, (start, stop) in enumerate(own.ranges):
            x = x if x.shape[axis] == 1 else x.narrow(axis, start, stop - start)
        return x

    return Scale(part(layer.factor), part(layer.offset))


@_restricted.register
def _(layer: Reshape, own: Region, operands: Sequence[Region], shape: tuple[int, ...]) -> Layer:
    return Reshape(own.shape(shape))


@_restricted.register
def _(layer: Select, own: Region, operands: Sequence[Region], shape: tuple[int, ...]) -> Layer:
    (start, stop), (offset, _) = own.ranges[layer.axis], operands[0].ranges[layer.axis]
    index = layer.index[start:stop]
    return replace(layer, index=torch.where(index < 0, index, index - offset))
