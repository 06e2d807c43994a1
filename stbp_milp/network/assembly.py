"""What both readers share: the operators of common frameworks, written in the layer vocabulary.

Constants are plain tensors in float64, and include the batch axis where the model's do. Axes of a function here are
those of the node; `shaping` has values, sites, and what only moves numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext

import numpy as np
import torch
from torch import Tensor

from stbp_milp.network.layers import Add, Convolution, Linear, ReLU, Scale
from stbp_milp.network.shaping import (
    Site,
    Value,
    broadcast,
    concatenated,
    moved,
    node_axes,
    padded,
    reshaped,
    reshaped_whole,
    selected,
)

_MOST_AXES = 3  # of a convolution, after the channels


# --- convolutions -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Kernel:
    """A convolution's weights and how they lie on its operand; all per axis after the channels.

    Attributes:
        weight: `(C_out, C_in / groups, *kernel)`.
        bias: `(C_out,)`, or None.
        padding: zeros `(before, after)`.
    """

    weight: Tensor
    bias: Tensor | None
    stride: Sequence[int]
    padding: Sequence[tuple[int, int]]
    dilation: Sequence[int]
    groups: int = 1

    @property
    def axes(self) -> int:
        return self.weight.dim() - 2


def convolution(site: Site, x: Value, kernel: Kernel) -> Value:
    """A convolution over 1, 2 or 3 axes; of several frames at once, each on its own."""
    weight, axes = kernel.weight, kernel.axes
    frames = x.batch is None and len(x.shape) == axes + 2
    if axes not in (1, 2, 3) or not (frames or len(x.shape) == axes + 1):
        raise site.unsupported(
            f"a convolution over {axes} axes arrived at an operand of shape {x.whole}; "
            "expected one channel axis and the 1, 2 or 3 axes of the kernel"
        )
    bias = weight.new_zeros(weight.shape[0]) if kernel.bias is None else kernel.bias
    if bias.shape != weight.shape[:1]:
        raise site.invalid(f"a bias of shape {tuple(bias.shape)} for {weight.shape[0]} channels")
    stride, padding, dilation = tuple(kernel.stride), tuple(kernel.padding), tuple(kernel.dilation)
    if not frames:
        return site.emit(Convolution(weight, bias, stride, padding, dilation, kernel.groups), x)
    order = [1, 0, *range(2, len(x.shape))]
    if axes < _MOST_AXES:  # frames become one more axis, along which the kernel has one tap
        layer = Convolution(weight.unsqueeze(2), bias, (1, *stride), ((0, 0), *padding), (1, *dilation), kernel.groups)
        return moved(site, site.emit(layer, moved(site, x, order)), order)
    count = x.shape[0]
    layer = Convolution(
        weight.repeat(count, *[1] * (axes + 1)), bias.repeat(count), stride, padding, dilation, count * kernel.groups
    )
    out = site.emit(layer, reshaped(site, x, (count * x.shape[1], *x.shape[2:])))
    return reshaped(site, out, (count, weight.shape[0], *out.shape[1:]))


def transposed_convolution(site: Site, x: Value, kernel: Kernel, outputs: Sequence[int]) -> Value:
    """`torch.conv_transposeNd`: its operand with gaps of zeros, under the mirrored kernel.

    Args:
        kernel: of the layer as torch keeps it, weight `(C_in, C_out / groups, *kernel)`.
        outputs: places added behind each axis (`output_padding`).
    """
    axes, first = kernel.axes, len(x.shape) - kernel.axes
    if first not in (1, 2):
        raise site.unsupported(f"a transposed convolution over {axes} axes arrived at an operand of shape {x.whole}")
    for axis, stride in enumerate(kernel.stride, start=first):
        size = x.shape[axis]
        index = torch.full(((size - 1) * stride + 1,), -1)
        index[::stride] = torch.arange(size)
        x = selected(site, x, axis, index, padded=True)
    by_group = kernel.weight.reshape(kernel.groups, -1, *kernel.weight.shape[1:])
    weight = by_group.transpose(1, 2).flatten(0, 1).flip(tuple(range(2, axes + 2)))
    reach = [d * (k - 1) for d, k in zip(kernel.dilation, weight.shape[2:], strict=True)]
    sides = [
        (r - before, r - after + more) for r, (before, after), more in zip(reach, kernel.padding, outputs, strict=True)
    ]
    ones = [1] * axes
    return convolution(site, x, Kernel(weight, kernel.bias, ones, sides, kernel.dilation, kernel.groups))


def linear(site: Site, x: Value, weight: Tensor, bias: Tensor | None) -> Value:
    """`W x + b` along the last axis of the node, with weight `(out, in)` and a bias that broadcasts to `(out,)`."""
    if weight.dim() != 2:
        raise site.unsupported(f"the weight has shape {tuple(weight.shape)}; expected a matrix")
    if weight.shape[1] != x.shape[-1]:
        raise site.invalid(f"a matrix of shape {tuple(weight.shape)} does not fit an operand of shape {x.whole}")
    bias = weight.new_zeros(()) if bias is None else bias.to(torch.float64).reshape(-1)
    bias = bias.expand(weight.shape[0]).clone()
    if len(x.shape) == 1:
        return site.emit(Linear(weight, bias), x)
    return along(site, x, len(x.shape) - 1, weight, bias)


def along(site: Site, x: Value, axis: int, weight: Tensor, bias: Tensor | None = None) -> Value:
    """A matrix `(out, in)` applied along one axis of the node: a convolution with one tap, of that axis as channels."""
    if len(x.shape) == 1:
        return linear(site, x, weight, bias)
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
    order = [axis, *(i for i in range(len(x.shape)) if i != axis)]
    front = moved(site, x, order)
    rest = front.shape[1:]
    flat = reshaped(site, front, (front.shape[0], math.prod(rest))) if len(rest) > _MOST_AXES else front
    ones = (1,) * (len(flat.shape) - 1)
    layer = Convolution(weight.reshape(*weight.shape, *ones), bias, ones, ((0, 0),) * len(ones), ones)
    out = site.emit(layer, flat)
    out = reshaped(site, out, (weight.shape[0], *rest))
    return moved(site, out, [order.index(i) for i in range(len(order))])


def product(site: Site, first: Value | Tensor, second: Value | Tensor) -> Value:
    """The matrix product of a value and a constant matrix, on either side of it."""
    if isinstance(first, Value) and isinstance(second, Value):
        raise site.unsupported("multiplies two matrices that both depend on the input; expected one constant")
    value, constant = (first, second) if isinstance(first, Value) else (second, first)
    assert isinstance(value, Value)
    assert isinstance(constant, Tensor)
    weight = constant.to(torch.float64)
    while weight.dim() > 2 and weight.shape[0] == 1:
        weight = weight.squeeze(0)
    if weight.dim() == 1:  # a vector: the axis that it is multiplied with goes
        right = value is first
        column = product(site, value, weight.unsqueeze(1)) if right else product(site, weight.unsqueeze(0), value)
        dropped = len(value.whole) - (1 if right else 2)
        return reshaped_whole(site, column, [n for i, n in enumerate(column.whole) if i != dropped])
    if weight.dim() != 2:
        raise site.unsupported(f"multiplies by a stack of matrices of shape {tuple(weight.shape)}; expected one matrix")
    if value is first:
        return linear(site, value, weight.mT, None)
    if len(value.whole) < 2 or value.shape[-2:] != value.whole[-2:]:
        raise site.unsupported("multiplies along the batch axis; expected a matrix on the right")
    return along(site, value, len(value.shape) - 2, weight)


# --- normalisation ----------------------------------------------------------------------------------------


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
    if len(x.whole) < 2:
        raise site.unsupported(f"normalises the channels of an operand of shape {x.whole}; expected a channel axis")
    channels = (-1,) + (1,) * (len(x.whole) - 2)
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


# --- sums and means ---------------------------------------------------------------------------------------


def summed(site: Site, x: Value, axes: Sequence[int], keep: bool, mean: bool = False) -> Value:
    """The sum, or the mean, over some axes as the model counts them."""
    chosen = sorted(set(node_axes(site, x, axes)))
    total = _total(site, x, chosen, mean)
    if keep or not chosen:
        return total
    dropped = {axis + x.offset for axis in chosen}
    return reshaped_whole(site, total, [n for axis, n in enumerate(total.whole) if axis not in dropped])


def _total(site: Site, x: Value, chosen: Sequence[int], mean: bool) -> Value:
    """Sums or means over axes of the node, which keep length 1: convolutions with kernels as large as they are."""
    after = [axis for axis in chosen if axis > 0]
    if len(x.shape) in (2, 3, 4) and after:
        kernel = [size if axis in chosen else 1 for axis, size in enumerate(x.shape[1:], start=1)]
        x = _windows_total(site, x, kernel, mean)
        chosen = [axis for axis in chosen if axis == 0]
    for axis in chosen:
        size = x.shape[axis]
        x = along(site, x, axis, torch.full((1, size), 1.0 / size if mean else 1.0, dtype=torch.float64))
    return x


def _windows_total(site: Site, x: Value, kernel: Sequence[int], mean: bool) -> Value:
    weight = torch.full((x.shape[0], 1, *kernel), 1.0 / math.prod(kernel) if mean else 1.0, dtype=torch.float64)
    ones = (1,) * len(kernel)
    bias = weight.new_zeros(x.shape[0])
    return site.emit(Convolution(weight, bias, ones, ((0, 0),) * len(kernel), ones, x.shape[0]), x)


def cumulative(site: Site, x: Value, axis: int) -> Value:
    """Sums of all entries up to each, along an axis of the node."""
    return along(site, x, axis, torch.ones(x.shape[axis], x.shape[axis], dtype=torch.float64).tril())


# --- interpolation ----------------------------------------------------------------------------------------


def nearest(site: Site, x: Value, axis: int, places: np.ndarray) -> Value:
    """Nearest neighbours: the operand's place of every place of the value, along an axis of the node."""
    return selected(site, x, axis, torch.from_numpy(places.clip(0, x.shape[axis] - 1).astype(np.int64)))


def interpolated(site: Site, x: Value, axis: int, places: np.ndarray) -> Value:
    """Linear interpolation between the two neighbours of these real-valued places along an axis of the node."""
    size = x.shape[axis]
    places = places.clip(0, size - 1)
    below = np.floor(places).astype(np.int64)
    above, share = np.minimum(below + 1, size - 1), torch.from_numpy(places - below)
    if not bool(share.any()):
        return selected(site, x, axis, torch.from_numpy(below))
    weights = share.reshape(-1, *[1] * (len(x.shape) - axis - 1))
    low, high = (selected(site, x, axis, torch.from_numpy(index)) for index in (below, above))
    parts = [site.emit(Scale(w, weights.new_zeros(())), own) for w, own in ((1 - weights, low), (weights, high))]
    return site.emit(Add((1.0, 1.0)), *parts)


# --- piecewise linear -------------------------------------------------------------------------------------


def relu(site: Site, x: Value) -> Value:
    return site.emit(ReLU(), x)


def leaky_relu(site: Site, x: Value, slope: Tensor) -> Value:
    """`slope x` below 0 and x above, as `slope x + (1 - slope) relu(x)`; the slope broadcasts to the node."""
    positive = relu(site, x)
    zero = slope.new_zeros(())
    if slope.numel() == 1:
        number = float(slope)
        return site.emit(Add((number, 1.0 - number)), x, positive)
    parts = [site.emit(Scale(own, zero), value) for own, value in ((slope, x), (1.0 - slope, positive))]
    return site.emit(Add((1.0, 1.0)), *parts)


def clamped(site: Site, x: Value, least: float | None, most: float | None) -> Value:
    """`min(max(x, least), most)`: two ReLUs, one inside of the other, each exact on intervals."""
    if least is not None and most is not None and least > most:
        raise site.invalid(f"clamps to an empty range, from {least:g} to {most:g}")
    if least is not None:
        x = affine(site, relu(site, affine(site, x, 1.0, -least)), 1.0, least)
    if most is not None:
        x = affine(site, relu(site, affine(site, x, -1.0, most)), -1.0, most)
    return x


def magnitude(site: Site, x: Value) -> Value:
    """`|x|`, as the sum of its positive and its negative part."""
    return site.emit(Add((1.0, 1.0)), relu(site, x), relu(site, affine(site, x, -1.0, 0.0)))


def maximum(site: Site, operands: Sequence[Value | Tensor], sign: float = 1.0) -> Value:
    """The elementwise maximum of nodes and constants; the minimum where `sign` is -1."""
    result, *others = broadcast(site, operands)
    if isinstance(result, Tensor):
        others = [own for own in [*others, result] if own is not result]
        return maximum(site, [*others, result], sign)
    if sign < 0:
        result = affine(site, result, -1.0, 0.0)
    for other in others:
        if isinstance(other, Tensor):
            above = site.emit(Scale(_scalar(1.0), -sign * other), result)
            result = site.emit(Scale(_scalar(1.0), sign * other), relu(site, above))
        else:
            other = affine(site, other, -1.0, 0.0) if sign < 0 else other
            result = result if other == result else site.emit_maximum(result, other)
    return affine(site, result, -1.0, 0.0) if sign < 0 else result


# --- arithmetic -------------------------------------------------------------------------------------------


def affine(site: Site, x: Value, factor: float, offset: float) -> Value:
    """`factor x + offset`."""
    return x if (factor, offset) == (1.0, 0.0) else site.emit(Scale(_scalar(factor), _scalar(offset)), x)


def added(site: Site, first: Value | Tensor, second: Value | Tensor, sign: float) -> Value:
    """`first + sign * second`, of two nodes or of a node and a constant."""
    if isinstance(first, Value) and first == second:
        return affine(site, first, 1.0 + sign, 0.0)
    left, right = broadcast(site, [first, second])
    if isinstance(left, Value) and isinstance(right, Value):
        return site.emit(Add((1.0, sign)), left, right)
    if isinstance(left, Value):
        assert isinstance(right, Tensor)
        return site.emit(Scale(_scalar(1.0), sign * right), left)
    assert isinstance(right, Value)
    return site.emit(Scale(_scalar(sign), left), right)


def multiplied(site: Site, first: Value | Tensor, second: Value | Tensor) -> Value:
    if isinstance(first, Value) and isinstance(second, Value):
        raise site.unsupported("multiplies two values that both depend on the input; expected one constant")
    left, right = broadcast(site, [first, second])
    value, constant = (left, right) if isinstance(left, Value) else (right, left)
    assert isinstance(value, Value)
    assert isinstance(constant, Tensor)
    return site.emit(Scale(constant, _scalar(0.0)), value)


def divided(site: Site, first: Value | Tensor, second: Value | Tensor) -> Value:
    if isinstance(second, Value):
        raise site.unsupported("divides by a value that depends on the input; expected a constant divisor")
    if bool((second == 0).any()):
        raise site.invalid("divides by a constant that is zero somewhere")
    return multiplied(site, first, 1.0 / second.to(torch.float64))


def padded_with(site: Site, x: Value, sides: Sequence[tuple[int, int]], number: float) -> Value:
    """Padding of the node's axes with a number, `(before, after)` each; negative ones cut."""
    zeros = padded(site, x, sides, "constant")
    if number == 0.0:
        return zeros
    around = [max(0, side) for pair in reversed(sides) for side in pair]
    inner = [n - sum(max(0, side) for side in pair) for n, pair in zip(zeros.shape, sides, strict=True)]
    offset = torch.nn.functional.pad(torch.zeros(inner, dtype=torch.float64), around, value=number)
    return site.emit(Scale(_scalar(1.0), offset), zeros)


def padded_whole(site: Site, x: Value, sides: Mapping[int, tuple[int, int]], mode: str, number: float = 0.0) -> Value:
    """Padding along axes of the whole shape.

    Args:
        sides: `(before, after)` by axis.
        mode: "constant", or as numpy.pad names it: "reflect", "edge" or "wrap".
        number: the constant.
    """
    if x.offset and any(sides.get(0, (0, 0))):
        raise site.unsupported("pads the batch axis; every clip must be treated on its own")
    own = [sides.get(axis + x.offset, (0, 0)) for axis in range(len(x.shape))]
    return padded_with(site, x, own, number) if mode == "constant" else padded(site, x, own, mode)


def joined(site: Site, operands: Sequence[Value | Tensor], axis: int) -> Value:
    """Values and constants one after the other along an axis as the model counts it."""
    first = next(own for own in operands if isinstance(own, Value))
    parts = [own if isinstance(own, Value) else _constant_part(site, first, own) for own in operands]
    return concatenated(site, parts, axis)


def _constant_part(site: Site, like: Value, constant: Tensor) -> Value:
    """A constant as a value: nothing of another value, and the constant as its offset."""
    whole = tuple(constant.shape)
    if len(whole) != len(like.whole) or (like.offset and whole[0] != 1):
        raise site.unsupported(f"joins a constant of shape {whole} to a value of shape {like.whole}")
    shape = whole[like.offset :]
    flat = reshaped(site, like, (math.prod(like.shape),))
    nothing = selected(site, flat, 0, torch.full((math.prod(shape),), -1), padded=True)
    node = reshaped(site, nothing, shape)
    return site.emit(Scale(_scalar(1.0), constant.to(torch.float64).reshape(shape)), node)


def expanded(site: Site, x: Value, shape: Sequence[int]) -> Value:
    """The value broadcast with a whole shape."""
    like = torch.zeros(1, dtype=torch.float64).expand(tuple(shape))
    value, _ = broadcast(site, [x, like])
    assert isinstance(value, Value)
    return value


def _scalar(number: float) -> Tensor:
    return torch.tensor(number, dtype=torch.float64)
