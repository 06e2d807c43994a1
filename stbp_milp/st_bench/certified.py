"""Differentiable bounds for training: the closed-form first layer and intervals above it (ST-IBP).

They are the verifier's bounds (`bounds.first_layer`, then `bounds.interval`), but for a batch of clips at once, in the
network's own precision, and as functions of its parameters: Gowal et al. 2018, On the Effectiveness of Interval
Bound Propagation, with the interval of the first layer replaced by its exact bounds over the perturbation set. Batch
normalisation counts as it is in evaluation mode. The last layer is bounded together with the property: margins, not
scores.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from stbp_milp.bounds.first_layer import excess
from stbp_milp.network.layers import Convolution
from stbp_milp.sets import Choice


@dataclass(frozen=True, eq=False)
class Box:
    """`lower <= value <= upper`, each `(B, *shape)`."""

    lower: Tensor
    upper: Tensor

    def affine(self, factor: Tensor | float, offset: Tensor | float) -> Box:
        """`factor * value + offset`, elementwise."""
        first, second = self.lower * factor + offset, self.upper * factor + offset
        return Box(torch.minimum(first, second), torch.maximum(first, second))


@dataclass(frozen=True, eq=False)
class Attacked:
    """Clips `(B, C, T, H, W)` in which the voxels of some cover move inside a box, possibly scaled."""

    clips: Tensor
    box: Box
    choice: Choice

    def affine(self, factor: Tensor | float, offset: Tensor | float) -> Attacked:
        return Attacked(self.clips * factor + offset, self.box.affine(factor, offset), self.choice)


Bounded = Box | Attacked


def worst_outputs(network: nn.Module, clips: Tensor, targets: Tensor, choice: Choice, radius: float) -> Tensor:
    """Computes outputs `(B, K)` at least as bad as those of any clip in the set around each of `clips` (B, C, T, H, W).

    For labels `(B,)` these are upper bounds of every class's score minus that of the right one, that is, the negative
    lower bounds of the margins. For angles `(B, K)` they are the target plus the largest deviation from it.

    Args:
        radius: the radius of the box around every clip, which is clipped to [0, 1].

    Raises:
        NotImplementedError: the network has a layer without a rule.
    """
    box = Box((clips - radius).clamp(min=0), (clips + radius).clamp(max=1))
    traced = fx.symbolic_trace(network)
    if targets.is_floating_point():
        outputs = _Bounds(traced, None).run(Attacked(clips, box, choice))
        deviation: Tensor = torch.maximum(outputs.upper - targets, targets - outputs.lower)
        return targets + deviation
    margins: Box = _Bounds(traced, targets).run(Attacked(clips, box, choice))
    return -margins.lower


class _Bounds(fx.Interpreter):
    """Runs a traced network on boxes instead of tensors; with labels `(B,)`, its last layer on their margins."""

    def __init__(self, traced: fx.GraphModule, labels: Tensor | None) -> None:
        super().__init__(traced)
        self._labels = labels
        (output,) = (node for node in traced.graph.nodes if node.op == "output")
        self._last = output.args[0]
        if labels is not None and not isinstance(_called(traced, self._last), nn.Linear):
            raise NotImplementedError("certified training of classes: expected a network whose last layer is Linear")

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer = self.fetch_attr(target)
        if self._labels is not None and target == self._last.target:
            return _margins(layer, args[0], self._labels)
        return bounds(layer, args[0])

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        first, second = args
        if target is operator.add and isinstance(first, Box) and isinstance(second, Box):
            return Box(first.lower + second.lower, first.upper + second.upper)
        if isinstance(first, Box | Attacked) and isinstance(second, int | float):
            if target in (operator.add, operator.sub):
                return first.affine(1.0, second if target is operator.add else -second)
            if target is operator.mul:
                return first.affine(second, 0.0)
        raise NotImplementedError(f"certified training: no rule for the function {target}")


def _called(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def _margins(layer: nn.Linear, value: Box, labels: Tensor) -> Box:
    """Computes the score of the right class minus that of every class, `(B, K)`."""
    rows = layer.weight[labels].unsqueeze(1) - layer.weight  # (B, K, features)
    offset = layer.bias[labels].unsqueeze(1) - layer.bias
    centre, radius = (value.lower + value.upper) / 2, (value.upper - value.lower) / 2
    middle = torch.einsum("bkf,bf->bk", rows, centre) + offset
    reach = torch.einsum("bkf,bf->bk", rows.abs(), radius)
    return Box(middle - reach, middle + reach)


@singledispatch
def bounds(layer: nn.Module, value: Any) -> Any:
    """Computes the box of a layer's values from that of its operand, or from attacked clips."""
    raise NotImplementedError(f"certified training: no rule for layer {type(layer).__name__}")


@bounds.register
def _(layer: nn.Identity, value: Any) -> Any:
    return value


@bounds.register(nn.ReLU)
@bounds.register(nn.Flatten)
@bounds.register(nn.AvgPool3d)
@bounds.register(nn.MaxPool3d)
def _(layer: nn.Module, value: Box) -> Box:
    """Bounds layers that are monotone in every operand."""
    return Box(layer(value.lower), layer(value.upper))


@bounds.register
def _(layer: nn.Linear, value: Box) -> Box:
    centre = layer((value.lower + value.upper) / 2)
    radius = F.linear((value.upper - value.lower) / 2, layer.weight.abs())
    return Box(centre - radius, centre + radius)


@bounds.register
def _(layer: nn.BatchNorm3d, value: Box) -> Box:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    factor = layer.weight / torch.sqrt(layer.running_var + layer.eps)
    offset = layer.bias - layer.running_mean * factor
    return value.affine(factor.view(-1, 1, 1, 1), offset.view(-1, 1, 1, 1))


@bounds.register
def _(layer: nn.Conv3d, value: Bounded) -> Box:
    if isinstance(value, Attacked):
        return _first_layer(layer, value)
    centre = layer((value.lower + value.upper) / 2)
    weight = layer.weight.abs()
    spread = (value.upper - value.lower) / 2
    radius = F.conv3d(spread, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    return Box(centre - radius, centre + radius)


def _first_layer(layer: nn.Conv3d, value: Attacked) -> Box:
    """Computes exact bounds of every neuron over the set, by the closed form, for all clips at once."""
    weight = layer.weight
    padding = tuple((int(p), int(p)) for p in layer.padding)
    convolution = Convolution(weight, weight.new_zeros(len(weight)), layer.stride, padding, layer.dilation)

    def of_one(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        rise, fall = excess(convolution, up, down, value.choice)
        return rise.squeeze(0), fall.squeeze(0)

    clean = layer(value.clips)
    rise, fall = torch.func.vmap(of_one)(value.box.upper - value.clips, value.clips - value.box.lower)
    return Box(clean - fall, clean + rise)
