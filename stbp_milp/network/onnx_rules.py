"""What each ONNX operator means: one table by operator name.

An *operator* is a node of the file with its operands looked up: values of the network, or constant arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from stbp_milp.network import assembly, curved, pooling, resizing, shaping
from stbp_milp.network.assembly import Kernel
from stbp_milp.network.pooling import WindowAxis
from stbp_milp.network.resizing import Ways
from stbp_milp.network.shaping import Site, Value


@dataclass(frozen=True, eq=False)
class Operator:
    site: Site
    operands: tuple[Value | np.ndarray | None, ...]
    attributes: dict[str, Any]
    opset: int
    outputs: int  # how many values the operator has

    def value(self, position: int = 0) -> Value:
        operand = self._operand(position)
        if not isinstance(operand, Value):
            raise self.site.unsupported(f"operand {position} is a constant; expected one that depends on the input")
        return operand

    def constant(self, position: int) -> Tensor:
        tensor = self.optional_constant(position)
        if tensor is None:
            raise self.site.invalid(f"operand {position} is missing")
        return tensor

    def optional_constant(self, position: int) -> Tensor | None:
        operand = self._operand(position)
        if isinstance(operand, Value):
            raise self.site.unsupported(f"operand {position} depends on the input; expected a constant")
        return None if operand is None else torch.from_numpy(np.asarray(operand, dtype=np.float64))

    def either(self, position: int) -> Value | Tensor:
        operand = self._operand(position)
        return operand if isinstance(operand, Value) else self.constant(position)

    def integers(self, name: str, position: int) -> list[int] | None:
        """A list that older files keep as an attribute and newer ones as an operand."""
        if name in self.attributes:
            return [int(number) for number in self.attributes[name]]
        tensor = self.optional_constant(position)
        return None if tensor is None else [int(number) for number in tensor.reshape(-1)]

    def number(self, name: str, position: int) -> float | None:
        """A number that older files keep as an attribute and newer ones as an operand."""
        if name in self.attributes:
            return float(self.attributes[name])
        tensor = self.optional_constant(position)
        return None if tensor is None else float(tensor.reshape(-1)[0])

    def text(self, name: str, default: str) -> str:
        value = self.attributes.get(name, default.encode())
        return str(value.decode() if isinstance(value, bytes) else value)

    def setting(self, name: str, default: int) -> int:
        return int(self.attributes.get(name, default))

    def per_axis(self, name: str, axes: int) -> list[int]:
        """Strides or dilations: 1 along every axis unless the file says otherwise."""
        return [int(number) for number in self.attributes.get(name, [1] * axes)]

    def _operand(self, position: int) -> Value | np.ndarray | None:
        return self.operands[position] if position < len(self.operands) else None


# --- windows ----------------------------------------------------------------------------------------------


def _windows(operator: Operator, sizes: Sequence[int], kernel: Sequence[int]) -> list[WindowAxis]:
    axes = len(kernel)
    if len(sizes) != axes:
        raise operator.site.unsupported(f"a window over {axes} axes arrived at an operand with {len(sizes)} such axes")
    pads = [int(pad) for pad in operator.attributes.get("pads", [0] * (2 * axes))]
    strides, dilations = operator.per_axis("strides", axes), operator.per_axis("dilations", axes)
    automatic = operator.attributes.get("auto_pad", b"NOTSET").decode()
    round_up = bool(operator.setting("ceil_mode", 0)) and automatic == "NOTSET"
    windows = []
    for axis, (size, length) in enumerate(zip(sizes, kernel, strict=True)):
        sides = (pads[axis], pads[axes + axis])
        if automatic != "NOTSET":
            sides = _automatic_padding(automatic, size, dilations[axis] * (length - 1) + 1, strides[axis])
        windows.append(WindowAxis(size, length, strides[axis], sides, dilations[axis], round_up))
    return windows


def _automatic_padding(kind: str, size: int, reach: int, stride: int) -> tuple[int, int]:
    if kind == "VALID":
        return 0, 0
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    small, large = total // 2, total - total // 2
    return (small, large) if kind == "SAME_UPPER" else (large, small)


def _convolution(operator: Operator) -> Value:
    x, weight = operator.value(), operator.constant(1)
    windows = _windows(operator, x.whole[2:], weight.shape[2:])
    kernel = Kernel(
        weight,
        operator.optional_constant(2),
        [window.stride for window in windows],
        [window.padding for window in windows],
        [window.dilation for window in windows],
        operator.setting("group", 1),
    )
    return assembly.convolution(operator.site, x, kernel)


def _transposed_convolution(operator: Operator) -> Value:
    x, weight = operator.value(), operator.constant(1)
    axes = weight.dim() - 2
    if operator.text("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in operator.attributes:
        raise operator.site.unsupported("pads by auto_pad or output_shape; export with explicit pads")
    pads = [int(pad) for pad in operator.attributes.get("pads", [0] * (2 * axes))]
    kernel = Kernel(
        weight,
        operator.optional_constant(2),
        operator.per_axis("strides", axes),
        list(zip(pads[:axes], pads[axes:], strict=True)),
        operator.per_axis("dilations", axes),
        operator.setting("group", 1),
    )
    more = [int(n) for n in operator.attributes.get("output_padding", [0] * axes)]
    return assembly.transposed_convolution(operator.site, x, kernel, more)


def _average_pool(operator: Operator) -> Value:
    x = operator.value()
    windows = _windows(operator, x.whole[2:], operator.attributes["kernel_shape"])
    return pooling.average_pool(operator.site, x, windows, bool(operator.setting("count_include_pad", 0)))


def _max_pool(operator: Operator) -> Value:
    x = operator.value()
    return pooling.max_pool(operator.site, x, _windows(operator, x.whole[2:], operator.attributes["kernel_shape"]))


def _global_average_pool(operator: Operator) -> Value:
    x = operator.value()
    return assembly.summed(operator.site, x, range(2, len(x.whole)), keep=True, mean=True)


def _global_max_pool(operator: Operator) -> Value:
    x = operator.value()
    return pooling.max_pool(operator.site, x, [WindowAxis(size, size, 1, (0, 0)) for size in x.whole[2:]])


def _reduce(operator: Operator, mean: bool) -> Value:
    x, axes = operator.value(), operator.integers("axes", 1)
    if not axes:
        raise operator.site.unsupported("reduces the batch axis too; expected axes after it")
    return assembly.summed(operator.site, x, axes, bool(operator.setting("keepdims", 1)), mean)


def _reduce_max(operator: Operator) -> Value:
    x, axes = operator.value(), operator.integers("axes", 1)
    if not axes:
        raise operator.site.unsupported("a maximum over the batch axis too; expected axes after it")
    return pooling.maximum_over(operator.site, x, axes, bool(operator.setting("keepdims", 1)))


# --- affine -----------------------------------------------------------------------------------------------


def _cumulative(operator: Operator) -> Value:
    x = operator.value()
    if operator.setting("exclusive", 0) or operator.setting("reverse", 0):
        raise operator.site.unsupported("sums exclusively or backwards; expected exclusive=0 and reverse=0")
    (axis,) = shaping.node_axes(operator.site, x, [int(operator.constant(1))])
    return assembly.cumulative(operator.site, x, axis)


def _gemm(operator: Operator) -> Value:
    if operator.setting("transA", 0):
        raise operator.site.unsupported("transA=1 exchanges the batch axis; expected transA=0")
    weight = operator.attributes.get("alpha", 1.0) * operator.constant(1)
    bias = operator.optional_constant(2)
    if bias is not None:
        bias = operator.attributes.get("beta", 1.0) * bias
    rows = weight if operator.setting("transB", 0) else weight.mT
    return assembly.linear(operator.site, operator.value(), rows, bias)


def _matmul(operator: Operator) -> Value:
    first, second = operator.either(0), operator.either(1)
    return curved.matrix_product(operator.site, first, second)


def _batch_norm(operator: Operator) -> Value:
    if operator.setting("training_mode", 0):
        raise operator.site.unsupported("normalises by the statistics of the batch; export the model in eval mode")
    weight, bias, mean, variance = (operator.constant(position) for position in range(1, 5))
    epsilon = float(operator.attributes.get("epsilon", 1e-5))
    return assembly.batch_norm(operator.site, operator.value(), mean, variance, weight, bias, epsilon)


def _add(operator: Operator) -> Value:
    return assembly.added(operator.site, operator.either(0), operator.either(1), 1.0)


def _subtract(operator: Operator) -> Value:
    return assembly.added(operator.site, operator.either(0), operator.either(1), -1.0)


def _multiply(operator: Operator) -> Value:
    return curved.times(operator.site, operator.either(0), operator.either(1))


def _divide(operator: Operator) -> Value:
    return curved.quotient(operator.site, operator.either(0), operator.either(1))


def _negative(operator: Operator) -> Value:
    return assembly.multiplied(operator.site, operator.value(), torch.tensor(-1.0, dtype=torch.float64))


# --- shapes and the rest ----------------------------------------------------------------------------------


def _relu(operator: Operator) -> Value:
    return assembly.relu(operator.site, operator.value())


def _maximum(operator: Operator) -> Value:
    return assembly.maximum(operator.site, [operator.either(position) for position in range(len(operator.operands))])


def _minimum(operator: Operator) -> Value:
    operands = [operator.either(position) for position in range(len(operator.operands))]
    return assembly.maximum(operator.site, operands, -1.0)


def _same(operator: Operator) -> Value:
    return operator.value()


def _dropout(operator: Operator) -> Value:
    training = operator.optional_constant(2)
    if training is not None and bool(training):
        raise operator.site.unsupported("active dropout makes the network random; export the model in eval mode")
    return operator.value()


def _cast(operator: Operator) -> Value:
    if operator.attributes["to"] not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        raise operator.site.unsupported("casts to a type other than FLOAT or DOUBLE, which rounds; export in float32")
    return operator.value()


def _flatten(operator: Operator) -> Value:
    x, axis = operator.value(), operator.setting("axis", 1)
    axis = axis + len(x.whole) if axis < 0 else axis
    return shaping.reshaped_whole(operator.site, x, [int(np.prod(x.whole[:axis])), int(np.prod(x.whole[axis:]))])


def _reshape(operator: Operator) -> Value:
    x, target = operator.value(), operator.integers("shape", 1)
    if target is None or (not operator.setting("allowzero", 0) and 0 in target[len(x.whole) :]):
        raise operator.site.invalid(f"no usable target shape ({target}) for an operand of shape {x.whole}")
    if not operator.setting("allowzero", 0):
        target = [x.whole[axis] if length == 0 else length for axis, length in enumerate(target)]
    return shaping.reshaped_whole(operator.site, x, target)


def _squeeze(operator: Operator) -> Value:
    axes = operator.integers("axes", 1)
    if axes is None:
        raise operator.site.unsupported("without axes it may drop the batch axis too; export with explicit axes")
    return shaping.squeezed(operator.site, operator.value(), axes)


def _unsqueeze(operator: Operator) -> Value:
    return shaping.unsqueezed(operator.site, operator.value(), operator.integers("axes", 1) or [])


def _transpose(operator: Operator) -> Value:
    x = operator.value()
    order = operator.attributes.get("perm", range(len(x.whole) - 1, -1, -1))
    return shaping.permuted(operator.site, x, [int(axis) for axis in order])


def _concatenate(operator: Operator) -> Value:
    operands = [operator.either(position) for position in range(len(operator.operands))]
    return assembly.joined(operator.site, operands, operator.setting("axis", 0))


def _slice(operator: Operator) -> Value:
    x = operator.value()
    starts, ends = operator.integers("starts", 1), operator.integers("ends", 2)
    assert starts is not None
    assert ends is not None
    axes = operator.integers("axes", 3) or list(range(len(starts)))
    steps = operator.integers("steps", 4) or [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = shaping.length(operator.site, x, axis)
        places = range(size)[slice(start, None if step < 0 and end < -size else end, step)]
        x = shaping.taken(operator.site, x, axis, places)
    return x


def _gather(operator: Operator) -> Value:
    x, index = operator.value(), operator.constant(1)
    axis = operator.setting("axis", 0)
    if index.dim() > 1:
        raise operator.site.unsupported(f"gathers by indices of shape {tuple(index.shape)}; expected one axis")
    places = [int(place) for place in index.reshape(-1)]
    return shaping.taken(operator.site, x, axis, places if index.dim() else places[0])


def _split(operator: Operator) -> list[Value]:
    x, axis = operator.value(), operator.setting("axis", 0)
    size = shaping.length(operator.site, x, axis)
    lengths = operator.integers("split", 1)
    if lengths is None:
        count = operator.setting("num_outputs", operator.outputs)
        each = -(-size // count)
        lengths = [min(each, size - i * each) for i in range(count)]
    return shaping.parts(operator.site, x, axis, lengths)


def _pad(operator: Operator) -> Value:
    x, pads = operator.value(), operator.integers("pads", 1)
    mode, number = operator.text("mode", "constant"), operator.number("value", 2)
    assert pads is not None
    half = len(pads) // 2
    axes = operator.integers("axes", 3) or range(half)
    by_axis = {
        shaping.positive(operator.site, axis, len(x.whole)): (pads[i], pads[half + i]) for i, axis in enumerate(axes)
    }
    return assembly.padded_whole(operator.site, x, by_axis, mode, number or 0.0)


def _resize(operator: Operator) -> Value:
    x = operator.value()
    sizes = operator.optional_constant(3)
    scales = operator.optional_constant(1 if operator.opset < 11 or len(operator.operands) == 2 else 2)
    if sizes is not None:
        lengths, factors = [int(n) for n in sizes], None
    else:
        assert scales is not None
        factors = [float(s) for s in scales]
        lengths = [int(np.floor(n * s)) for n, s in zip(x.whole, factors, strict=True)]
    return resizing.resized(operator.site, x, lengths, factors, _resize_ways(operator))


def _resize_ways(operator: Operator) -> Ways:
    old = operator.opset < 11
    return Ways(
        mode=operator.text("mode", "nearest"),
        coordinates=operator.text("coordinate_transformation_mode", "asymmetric" if old else "half_pixel"),
        nearest=operator.text("nearest_mode", "floor" if old else "round_prefer_floor"),
    )


def _expand(operator: Operator) -> Value:
    x, shape = operator.value(), operator.integers("shape", 1)
    assert shape is not None
    return assembly.expanded(operator.site, x, shape)


def _leaky_relu(operator: Operator) -> Value:
    slope = torch.tensor(float(operator.attributes.get("alpha", 0.01)), dtype=torch.float64)
    return assembly.leaky_relu(operator.site, operator.value(), slope)


def _prelu(operator: Operator) -> Value:
    x, slope = shaping.broadcast(operator.site, [operator.value(), operator.constant(1)])
    assert isinstance(x, Value)
    assert isinstance(slope, Tensor)
    return assembly.leaky_relu(operator.site, x, slope)


def _clip(operator: Operator) -> Value:
    return assembly.clamped(operator.site, operator.value(), operator.number("min", 1), operator.number("max", 2))


def _hard_sigmoid(operator: Operator) -> Value:
    alpha, beta = (float(operator.attributes.get(name, number)) for name, number in (("alpha", 0.2), ("beta", 0.5)))
    line = assembly.affine(operator.site, operator.value(), alpha, beta)
    return assembly.clamped(operator.site, line, 0.0, 1.0)


def _absolute(operator: Operator) -> Value:
    return assembly.magnitude(operator.site, operator.value())


def _is_constant(operand: Value | Tensor) -> bool:
    return isinstance(operand, Tensor)


def _sum(operator: Operator) -> Value:
    total, *others = sorted((operator.either(i) for i in range(len(operator.operands))), key=_is_constant)
    for other in others:
        total = assembly.added(operator.site, total, other, 1.0)
    assert isinstance(total, Value)
    return total


# --- smooth functions and what is composed of them --------------------------------------------------------


def _smooth(function: str, operator: Operator) -> Value:
    return curved.smooth(operator.site, operator.value(), function)


def _gelu(operator: Operator) -> Value:
    function = "gelu_tanh" if operator.text("approximate", "none") == "tanh" else "gelu"
    return curved.smooth(operator.site, operator.value(), function)


def _elu(operator: Operator) -> Value:
    return curved.elu(operator.site, operator.value(), float(operator.attributes.get("alpha", 1.0)))


def _celu(operator: Operator) -> Value:
    return curved.celu(operator.site, operator.value(), float(operator.attributes.get("alpha", 1.0)))


def _selu(operator: Operator) -> Value:
    alpha = float(operator.attributes.get("alpha", 1.67326319217681884765625))
    return curved.elu(
        operator.site, operator.value(), alpha, float(operator.attributes.get("gamma", 1.05070102214813232421875))
    )


def _power(operator: Operator) -> Value:
    exponent = operator.constant(1)
    if exponent.numel() != 1:
        raise operator.site.unsupported(f"the exponent has shape {tuple(exponent.shape)}; expected one number")
    return curved.power(operator.site, operator.value(), float(exponent.reshape(-1)[0]))


def _softmax(composed: Callable[[Site, Value, int], Value], operator: Operator) -> Value:
    x = operator.value()
    axis = operator.setting("axis", -1 if operator.opset >= 13 else 1)
    if operator.opset < 13:  # the axis and all behind it are one
        (first,) = shaping.node_axes(operator.site, x, [axis])
        flat = shaping.reshaped(operator.site, x, (*x.shape[:first], math.prod(x.shape[first:])))
        return shaping.reshaped(operator.site, composed(operator.site, flat, first), x.shape)
    (own,) = shaping.node_axes(operator.site, x, [axis])
    return composed(operator.site, x, own)


def _layer_norm(operator: Operator) -> Value:
    x = operator.value()
    (first,) = shaping.node_axes(operator.site, x, [operator.setting("axis", -1)])
    epsilon = float(operator.attributes.get("epsilon", 1e-5))
    own = curved.normalised(operator.site, x, range(first, len(x.shape)), epsilon)
    return curved.scaled(operator.site, own, operator.constant(1), operator.optional_constant(2))


def _instance_norm(operator: Operator) -> Value:
    x, epsilon = operator.value(), float(operator.attributes.get("epsilon", 1e-5))
    own = curved.group_normalised(operator.site, x, x.shape[0], epsilon)
    return curved.scaled(operator.site, own, operator.constant(1), operator.constant(2), 0)


def _group_norm(operator: Operator) -> Value:
    x, epsilon = operator.value(), float(operator.attributes.get("epsilon", 1e-5))
    groups, weight, bias = operator.setting("num_groups", 1), operator.constant(1), operator.constant(2)
    own = curved.group_normalised(operator.site, x, groups, epsilon)
    if operator.opset < 21:  # one weight per group
        weight, bias = (each.repeat_interleave(x.shape[0] // groups) for each in (weight, bias))
    return curved.scaled(operator.site, own, weight, bias, 0)


_FUNCTIONS = {
    "Erf": "erf",
    "Exp": "exp",
    "HardSwish": "hardswish",
    "Log": "log",
    "Mish": "mish",
    "Reciprocal": "reciprocal",
    "Sigmoid": "sigmoid",
    "Softplus": "softplus",
    "Sqrt": "sqrt",
    "Tanh": "tanh",
}

RULES: dict[str, Callable[[Operator], Value | list[Value]]] = {
    **{name: partial(_smooth, function) for name, function in _FUNCTIONS.items()},
    "Celu": _celu,
    "Elu": _elu,
    "Gelu": _gelu,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "Pow": _power,
    "Selu": _selu,
    "LogSoftmax": partial(_softmax, curved.log_softmax),
    "Softmax": partial(_softmax, curved.softmax),
    "Abs": _absolute,
    "Add": _add,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concatenate,
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "CumSum": _cumulative,
    "Div": _divide,
    "Dropout": _dropout,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_max_pool,
    "HardSigmoid": _hard_sigmoid,
    "Identity": _same,
    "LeakyRelu": _leaky_relu,
    "MatMul": _matmul,
    "Max": _maximum,
    "MaxPool": _max_pool,
    "Min": _minimum,
    "Mul": _multiply,
    "Neg": _negative,
    "PRelu": _prelu,
    "Pad": _pad,
    "ReduceMax": _reduce_max,
    "ReduceMean": partial(_reduce, mean=True),
    "ReduceSum": partial(_reduce, mean=False),
    "Relu": _relu,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _subtract,
    "Sum": _sum,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
}

SUPPORTED = ", ".join([*sorted(RULES), "Constant", "Shape and what is computed from constants alone"])
