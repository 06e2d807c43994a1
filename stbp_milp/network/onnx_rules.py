"""What each ONNX operator means: one table by operator name.

An *operator* is a node of the file with its operands looked up: values of the network, or constant arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from stbp_milp.network import assembly, pooling
from stbp_milp.network.assembly import Site, Value
from stbp_milp.network.pooling import WindowAxis


@dataclass(frozen=True, eq=False)
class Operator:
    site: Site
    operands: tuple[Value | np.ndarray | None, ...]
    attributes: dict[str, Any]
    batch: int  # the length of the batch axis in the file, 1 where it is open

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
    windows = _windows(operator, x.shape[1:], weight.shape[2:])
    return assembly.convolution(
        operator.site,
        x,
        weight,
        operator.optional_constant(2),
        [window.stride for window in windows],
        [window.padding for window in windows],
        [window.dilation for window in windows],
        operator.setting("group", 1),
    )


def _average_pool(operator: Operator) -> Value:
    x = operator.value()
    windows = _windows(operator, x.shape[1:], operator.attributes["kernel_shape"])
    return pooling.average_pool(operator.site, x, windows, bool(operator.setting("count_include_pad", 0)))


def _max_pool(operator: Operator) -> Value:
    x = operator.value()
    return pooling.max_pool(operator.site, x, _windows(operator, x.shape[1:], operator.attributes["kernel_shape"]))


def _global_average_pool(operator: Operator) -> Value:
    x = operator.value()
    return assembly.mean(operator.site, x, range(1, len(x.shape)), keep=True)


def _global_max_pool(operator: Operator) -> Value:
    x = operator.value()
    return pooling.max_pool(operator.site, x, [WindowAxis(size, size, 1, (0, 0)) for size in x.shape[1:]])


def _reduce_mean(operator: Operator) -> Value:
    x, axes = operator.value(), operator.integers("axes", 1)
    if not axes:
        raise operator.site.unsupported("a mean over the batch axis too; expected axes after it")
    chosen = assembly.node_axes(operator.site, x, axes)
    return assembly.mean(operator.site, x, chosen, bool(operator.setting("keepdims", 1)))


def _reduce_max(operator: Operator) -> Value:
    x, axes = operator.value(), operator.integers("axes", 1)
    if not axes:
        raise operator.site.unsupported("a maximum over the batch axis too; expected axes after it")
    chosen = assembly.node_axes(operator.site, x, axes)
    if 0 in chosen:
        raise operator.site.unsupported("a maximum over the channels; expected axes after them")
    windows = [WindowAxis(n, n if axis in chosen else 1, 1, (0, 0)) for axis, n in enumerate(x.shape[1:], start=1)]
    largest = pooling.max_pool(operator.site, x, windows)
    return largest if operator.setting("keepdims", 1) else assembly.squeezed(operator.site, largest, axes)


# --- affine -----------------------------------------------------------------------------------------------


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
    weight = operator.constant(1)
    return assembly.linear(operator.site, operator.value(), weight.mT if weight.dim() > 1 else weight, None)


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
    return assembly.multiplied(operator.site, operator.either(0), operator.either(1))


def _divide(operator: Operator) -> Value:
    return assembly.divided(operator.site, operator.either(0), operator.either(1))


def _negative(operator: Operator) -> Value:
    return assembly.multiplied(operator.site, operator.value(), torch.tensor(-1.0, dtype=torch.float64))


# --- shapes and the rest ----------------------------------------------------------------------------------


def _relu(operator: Operator) -> Value:
    return assembly.relu(operator.site, operator.value())


def _maximum(operator: Operator) -> Value:
    return assembly.maximum(operator.site, [operator.value(position) for position in range(len(operator.operands))])


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
    whole = [operator.batch, *x.shape]
    axis = axis + len(whole) if axis < 0 else axis
    target = [int(np.prod(whole[:axis])), int(np.prod(whole[axis:]))]
    return assembly.reshaped_batch(operator.site, x, target, operator.batch)


def _reshape(operator: Operator) -> Value:
    x, target = operator.value(), operator.integers("shape", 1)
    whole = [operator.batch, *x.shape]
    if target is None or (not operator.setting("allowzero", 0) and 0 in target[len(whole) :]):
        raise operator.site.invalid(f"no usable target shape ({target}) for an operand of shape {x.shape}")
    if not operator.setting("allowzero", 0):
        target = [whole[axis] if length == 0 else length for axis, length in enumerate(target)]
    return assembly.reshaped_batch(operator.site, x, target, operator.batch)


def _squeeze(operator: Operator) -> Value:
    axes = operator.integers("axes", 1)
    if axes is None:
        raise operator.site.unsupported("without axes it may drop the batch axis too; export with explicit axes")
    return assembly.squeezed(operator.site, operator.value(), axes)


def _unsqueeze(operator: Operator) -> Value:
    return assembly.unsqueezed(operator.site, operator.value(), operator.integers("axes", 1) or [])


RULES: dict[str, Callable[[Operator], Value]] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Conv": _convolution,
    "Div": _divide,
    "Dropout": _dropout,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_max_pool,
    "Identity": _same,
    "MatMul": _matmul,
    "Max": _maximum,
    "MaxPool": _max_pool,
    "Mul": _multiply,
    "Neg": _negative,
    "ReduceMax": _reduce_max,
    "ReduceMean": _reduce_mean,
    "Relu": _relu,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Sub": _subtract,
    "Unsqueeze": _unsqueeze,
}

SUPPORTED = ", ".join([*RULES, "Constant", "Shape and what is computed from constants alone"])
