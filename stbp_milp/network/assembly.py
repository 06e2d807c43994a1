"""What both readers share: the operators of common frameworks, written in the layer vocabulary.

A *site* is the operator being read; the layers it becomes carry its name. A *value* is a node already in the
builder, with its shape. Constants are plain tensors in float64, and they *include* the batch axis where the model's
do: the functions here remove it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext

import numpy as np
import torch
from torch import Tensor

from stbp_milp.errors import InputError, UnsupportedLayerError
from stbp_milp.network.graph import NetworkBuilder
from stbp_milp.network.layers import Add, Convolution, Layer, Linear, ReLU, Reshape, Scale, Select


@dataclass(frozen=True)
class Value:
    name: str
    shape: tuple[int, ...]  # without the batch axis


@dataclass(frozen=True)
class Site:
    builder: NetworkBuilder
    name: str  # first choice for the name of the layers
    described: str  # the operator as the user knows it: "node 'head.0' (Sigmoid)"

    def emit(self, layer: Layer, *operands: Value) -> Value:
        name = self.fresh()
        self.builder.add(name, layer, *(operand.name for operand in operands))
        return Value(name, self.builder.shape(name))

    def emit_maximum(self, first: Value, second: Value) -> Value:
        name = self.fresh()
        self.builder.maximum(name, first.name, second.name)
        return Value(name, first.shape)

    def fresh(self) -> str:
        name, count = self.name, 1
        while name in self.builder:
            count += 1
            name = f"{self.name}/{count}"
        return name

    def unsupported(self, reason: str) -> UnsupportedLayerError:
        return UnsupportedLayerError(f"{self.described}: {reason}")

    def invalid(self, reason: str) -> InputError:
        return InputError(f"{self.described}: {reason}")


# --- layers -----------------------------------------------------------------------------------------------


def relu(site: Site, x: Value) -> Value:
    return site.emit(ReLU(), x)


def maximum(site: Site, operands: Sequence[Value]) -> Value:
    """The elementwise maximum of nodes of one shape."""
    result, *others = operands
    for other in others:
        if other.shape != result.shape:
            raise site.unsupported(f"a maximum of shapes {result.shape} and {other.shape}; expected one shape")
        result = result if other == result else site.emit_maximum(result, other)
    return result


def convolution(
    site: Site,
    x: Value,
    weight: Tensor,  # (C_out, C_in / groups, *kernel)
    bias: Tensor | None,  # (C_out,)
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],  # (before, after) per axis
    dilation: Sequence[int],
    groups: int,
) -> Value:
    axes = weight.dim() - 2
    if axes not in (1, 2, 3) or len(x.shape) != axes + 1:
        raise site.unsupported(
            f"a convolution over {axes} axes arrived at an operand of shape {x.shape}; "
            "expected one channel axis and the 1, 2 or 3 axes of the kernel"
        )
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
    if bias.shape != weight.shape[:1]:
        raise site.invalid(f"a bias of shape {tuple(bias.shape)} for {weight.shape[0]} channels")
    return site.emit(Convolution(weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups), x)


def linear(site: Site, x: Value, weight: Tensor, bias: Tensor | None) -> Value:
    """`W x + b` with weight `(out, in)` and a bias that broadcasts to `(out,)`."""
    if len(x.shape) != 1:
        raise site.unsupported(
            f"a fully connected layer arrived at an operand of shape {x.shape} (without the batch axis); "
            "expected a flat one, put a Flatten before it"
        )
    if weight.dim() != 2:
        raise site.unsupported(f"the weight has shape {tuple(weight.shape)}; expected a matrix")
    bias = torch.zeros((), dtype=weight.dtype) if bias is None else constant_for(site, bias, 1)
    return site.emit(Linear(weight, bias.expand(weight.shape[0]).clone()), x)


def scale(site: Site, x: Value, factor: Tensor, offset: Tensor) -> Value:
    """`factor * x + offset`; where the constants are larger than x, x is repeated first."""
    shape = _broadcast(site, x.shape, tuple(factor.shape), tuple(offset.shape))
    return site.emit(Scale(factor, offset), repeated(site, x, shape))


def batch_norm(
    site: Site,
    x: Value,
    mean: Tensor,  # (C,), as all of them
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
) -> Value:
    """`weight (x - mean) / sqrt(variance + epsilon) + bias` as one scaling, its factor and offset correctly rounded.

    In 60 digits, because `bias - mean * factor` can cancel.
    """
    channels = (-1,) + (1,) * (len(x.shape) - 1)
    weight = torch.ones_like(mean) if weight is None else weight
    bias = torch.zeros_like(mean) if bias is None else bias
    parameters = torch.stack([own.to(torch.float64) for own in (mean, variance, weight, bias)], 1)
    if bool(parameters.isfinite().all()) and float(variance.min()) + epsilon > 0:
        exact = [_scaling([Decimal(number) for number in row], Decimal(epsilon)) for row in parameters.tolist()]
        factor, offset = torch.tensor(exact, dtype=torch.float64).unbind(1)
    else:  # what is infinite or undefined stays so
        factor = (variance + epsilon).rsqrt() * weight
        offset = bias - mean * factor
    return site.emit(Scale(factor.reshape(channels), offset.reshape(channels)), x)


def _scaling(parameters: Sequence[Decimal], epsilon: Decimal) -> tuple[float, float]:
    mean, variance, weight, bias = parameters
    with localcontext() as context:
        context.prec = 60
        factor = weight / (variance + epsilon).sqrt()
        return float(factor), float(bias - mean * factor)


def mean(site: Site, x: Value, axes: Sequence[int], keep: bool) -> Value:
    """The mean over some axes of the node shape: a convolution whose kernel is as large as they are."""
    chosen = sorted(set(axes))
    if len(x.shape) == 1 and chosen == [0]:
        average = linear(site, x, torch.full((1, x.shape[0]), 1.0 / x.shape[0], dtype=torch.float64), None)
    elif 0 in chosen or not chosen or len(x.shape) > 4:
        raise site.unsupported(
            f"a mean over axes {[axis + 1 for axis in chosen]} of an operand of shape {x.shape} (without the batch "
            "axis); expected axes after the channels, of an operand with at most 3 of them"
        )
    else:
        kernel = [size if axis in chosen else 1 for axis, size in enumerate(x.shape[1:], start=1)]
        average = windows_mean(site, x, kernel, [1] * len(kernel), [(0, 0)] * len(kernel), [1] * len(kernel))
    if keep:
        return average
    return reshaped(site, average, [size for axis, size in enumerate(average.shape) if axis not in chosen])


def windows_mean(
    site: Site,
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> Value:
    """The mean over windows that may reach into a zero padding (which counts)."""
    channels = x.shape[0]
    weight = torch.full((channels, 1, *kernel), 1.0 / math.prod(kernel), dtype=torch.float64)
    return convolution(site, x, weight, None, stride, padding, dilation, channels)


# --- shapes -----------------------------------------------------------------------------------------------


def reshaped(site: Site, x: Value, shape: Sequence[int]) -> Value:
    return x if tuple(shape) == x.shape else site.emit(Reshape(tuple(shape)), x)


def reshaped_batch(site: Site, x: Value, target: Sequence[int], batch: int) -> Value:
    """`x.reshape(target)`, where the target includes the batch axis and may hold one -1."""
    size = batch * math.prod(x.shape)
    known = math.prod(length for length in target if length != -1)
    resolved = [size // known if length == -1 and known else length for length in target]
    if list(target).count(-1) > 1 or math.prod(resolved) != size:
        raise site.invalid(f"cannot reshape {(batch, *x.shape)} into {tuple(target)}; the sizes differ")
    if not resolved or resolved[0] != batch:
        raise site.unsupported(
            f"reshaping {(batch, *x.shape)} into {tuple(resolved)} mixes or drops the batch axis; "
            "keep it in front, as in x.flatten(1)"
        )
    return reshaped(site, x, resolved[1:])


def flattened(site: Site, x: Value, start: int, end: int, batch: int) -> Value:
    """`torch.flatten(x, start, end)`; the axes count the batch axis."""
    whole = [batch, *x.shape]
    first, last = _positive(site, start, len(whole)), _positive(site, end, len(whole))
    return reshaped_batch(site, x, [*whole[:first], math.prod(whole[first : last + 1]), *whole[last + 1 :]], batch)


def squeezed(site: Site, x: Value, axes: Sequence[int]) -> Value:
    chosen = node_axes(site, x, axes)
    return reshaped(site, x, [n for axis, n in enumerate(x.shape) if axis not in chosen or n != 1])


def unsqueezed(site: Site, x: Value, axes: Sequence[int]) -> Value:
    """A new axis of length 1 at each of these positions of the result (which count the batch axis)."""
    rank = 1 + len(x.shape) + len(axes)
    chosen = {_positive(site, axis, rank) for axis in axes}
    if 0 in chosen:
        raise site.unsupported("a new axis before the batch axis; keep the batch axis in front")
    lengths = iter(x.shape)
    return reshaped(site, x, [1 if axis in chosen else next(lengths) for axis in range(1, rank)])


def node_axes(site: Site, x: Value, axes: Sequence[int]) -> list[int]:
    """Axes as the model counts them (batch first, negative from the end) as axes of the node shape."""
    chosen = [_positive(site, axis, 1 + len(x.shape)) - 1 for axis in axes]
    if -1 in chosen:
        raise site.unsupported("works along the batch axis; every clip must be treated on its own")
    return chosen


def repeated(site: Site, x: Value, shape: tuple[int, ...]) -> Value:
    """x broadcast to a larger shape of the same rank."""
    for axis, (have, want) in enumerate(zip(x.shape, shape, strict=True)):
        if have != want:
            x = site.emit(Select(axis, torch.zeros(want, dtype=torch.int64)), x)
    return x


def _positive(site: Site, axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise site.invalid(f"axis {axis} of an operand with {rank} axes (the batch axis included)")
    return axis % rank


def _broadcast(site: Site, shape: tuple[int, ...], *others: tuple[int, ...]) -> tuple[int, ...]:
    try:
        result = np.broadcast_shapes(shape, *others)
    except ValueError as error:
        raise site.invalid(f"shapes {[shape, *others]} (without the batch axis) do not broadcast") from error
    if len(result) != len(shape):
        raise site.unsupported(f"broadcasting {shape} to {result} adds an axis before the batch axis")
    return result


# --- arithmetic -------------------------------------------------------------------------------------------


def added(site: Site, first: Value | Tensor, second: Value | Tensor, sign: float) -> Value:
    """`first + sign * second`, of two nodes or of a node and a constant."""
    if isinstance(first, Value) and isinstance(second, Value):
        if first == second:
            return scale(site, first, _scalar(1.0 + sign), _scalar(0.0))
        if len(first.shape) != len(second.shape):
            raise site.unsupported(f"adds operands of shape {first.shape} and {second.shape}; expected one rank")
        shape = _broadcast(site, first.shape, second.shape)
        return site.emit(Add((1.0, sign)), repeated(site, first, shape), repeated(site, second, shape))
    if isinstance(first, Value):
        assert isinstance(second, Tensor)
        return scale(site, first, _scalar(1.0), sign * constant_for(site, second, len(first.shape)))
    assert isinstance(second, Value)
    return scale(site, second, _scalar(sign), constant_for(site, first, len(second.shape)))


def multiplied(site: Site, first: Value | Tensor, second: Value | Tensor) -> Value:
    if isinstance(first, Value) and isinstance(second, Value):
        raise site.unsupported("multiplies two values that both depend on the input; expected one constant")
    value, constant = (first, second) if isinstance(first, Value) else (second, first)
    assert isinstance(value, Value)
    assert isinstance(constant, Tensor)
    return scale(site, value, constant_for(site, constant, len(value.shape)), _scalar(0.0))


def divided(site: Site, first: Value | Tensor, second: Value | Tensor) -> Value:
    if isinstance(second, Value):
        raise site.unsupported("divides by a value that depends on the input; expected a constant divisor")
    if bool((second == 0).any()):
        raise site.invalid("divides by a constant that is zero somewhere")
    return multiplied(site, first, 1.0 / second.to(torch.float64))


def constant_for(site: Site, constant: Tensor, rank: int) -> Tensor:
    """The constant without its batch axis, for a node shape of this rank; always in float64."""
    double = constant.to(torch.float64)
    if double.dim() <= rank:
        return double
    if double.dim() > rank + 1 or double.shape[0] != 1:
        raise site.unsupported(
            f"the constant of shape {tuple(double.shape)} does not broadcast along the batch axis of an operand with "
            f"{rank + 1} axes; expected length 1 there"
        )
    return double.squeeze(0)


def _scalar(number: float) -> Tensor:
    return torch.tensor(number, dtype=torch.float64)
