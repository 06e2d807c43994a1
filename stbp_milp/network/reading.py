"""Does a network compute what the model it was read from computes? Asked on clips, relative to the numbers involved.

A score is compared relative to its *size*: what the terms of the layer that makes it add up to in magnitude. So a model
times 1e-8 or 1e8 is checked as sharply as the model itself, and a score that is a small difference of large numbers is
not asked for digits that it does not have. Where scores differ by more than that, the rounding errors of all layers
are estimated as they reach the score (a running error analysis to first order: every layer's own rounding, weighted by
the derivative of the score by its value), and only what exceeds them is a disagreement.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stbp_milp.network.graph import Network
from stbp_milp.network.layers import Nonlinear, Product, ReLU, halves
from stbp_milp.network.operations import apply, linear, reads

_LARGE = 2e9  # multiplications: networks beyond are compared in float32, which takes a fraction of the time and memory
_SUSPECTS = 4  # outputs of a clip whose rounding errors are estimated
_SAFETY = 64.0  # times the estimate; sums of many terms are usually far better
_FINER = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
_QUICK = {torch.float64: 2.0**-30, torch.float32: 2.0**-15}  # differences relative to sizes that nobody asks about


@dataclass(frozen=True)
class Disagreement:
    """Where a reading differs from its original by more than rounding explains."""

    clip: int
    output: int
    read: float
    expected: float
    allowed: float


@dataclass(frozen=True)
class Comparison:
    """The largest difference of a score, relative to its size, and the worst disagreement, if there is any."""

    largest: float
    disagreement: Disagreement | None


def compared(
    network: Network,
    expected: np.ndarray,
    clips: np.ndarray,
    dtype: torch.dtype,
    in_float32: np.ndarray | None = None,
) -> Comparison:
    """The network's scores on clips `(N, *input_shape)` against the original's `(N, K)`, computed in `dtype`.

    Args:
        in_float32: what the original computes in float32, where `dtype` is float64. What that changes shows how much
            the original rounds in places that the network does not have, such as a BatchNorm with a large mean.
    """
    own = torch.float32 if is_large(network) else torch.float64
    precision = torch.float32 if torch.float32 in (own, dtype) else torch.float64
    cast = network.to(torch.device("cpu")).to(own)  # clips and the original are there
    largest, worst = 0.0, None
    for i, clip in enumerate(clips):
        with torch.no_grad():
            values = cast.values(torch.from_numpy(clip[None]).to(own))
            sizes = _size(cast, len(cast.nodes) - 1, values)[0].clamp(min=torch.finfo(own).tiny)
        read, size = values[-1][0].to(torch.float64), sizes.to(torch.float64)
        truth = torch.from_numpy(np.asarray(expected[i], dtype=np.float64))
        difference = (read - truth).abs()
        relative = (difference / size).nan_to_num(nan=torch.inf)
        largest = max(largest, float(relative.max()))
        suspects = relative.argsort(descending=True)[:_SUSPECTS]
        for output in suspects[relative[suspects] > _QUICK[precision]].tolist():
            allowed = _rounding(cast, values, output, _SAFETY * torch.finfo(precision).eps)
            if in_float32 is not None:
                allowed += _SAFETY * _FINER * abs(float(in_float32[i][output]) - float(truth[output]))
            if not float(difference[output]) <= allowed:
                found = Disagreement(i, output, float(read[output]), float(truth[output]), allowed)
                worst = worst or found
    return Comparison(largest, worst)


def is_large(network: Network) -> bool:
    """Is a pass in float64 too dear, so that comparisons are made in float32?"""
    return network.multiplications()[-1] > _LARGE


def _size(network: Network, position: int, values: list[Tensor]) -> Tensor:
    """What the terms of an affine node add up to in magnitude, `(N, *shape)`; of other nodes, the value's own."""
    node = network.nodes[position]
    if position == 0 or isinstance(node.layer, Nonlinear):
        return values[position].abs()
    operands = [values[i] for i in node.inputs]
    size = apply(node.layer, [torch.zeros_like(x) for x in operands]).abs()
    for k, x in enumerate(operands):
        if reads(node.layer, k):
            size = size + linear(node.layer, k, x.abs(), absolute=True)
    return size


def _rounding(network: Network, values: list[Tensor], output: int, unit: float) -> float:
    """What relative errors of `unit` in every layer do to a score, to first order.

    This is `unit * sum over nodes of |d score / d value| * size`. A ReLU whose operand is 0 up to such errors may let
    them through whatever its sign, so its derivative counts as 1.
    """
    errors = _forward_errors(network, values, unit)
    leaves = [value.detach().requires_grad_() for value in values[:1]]
    with torch.enable_grad():
        for node in network.nodes[1:]:
            operands = [leaves[i] for i in node.inputs]
            value = apply(node.layer, operands)
            if isinstance(node.layer, ReLU):
                (operand,) = operands
                value = torch.where(operand.detach().abs() <= errors[node.inputs[0]], operand, value)
            leaves.append(value)
        slopes = torch.autograd.grad(leaves[-1][0, output], leaves, allow_unused=True)
    total = 0.0
    with torch.no_grad():
        for position, slope in enumerate(slopes):
            if slope is not None:
                total += float((slope.abs() * _size(network, position, values)).sum())
    return unit * total


def _forward_errors(network: Network, values: list[Tensor], unit: float) -> list[Tensor]:
    """The same of every node, each error at its largest and none cancelling another: `(1, *shape)`."""
    errors = [torch.zeros_like(values[0])]
    with torch.no_grad():
        for position, node in enumerate(network.nodes[1:], start=1):
            if isinstance(node.layer, Nonlinear):
                operand = node.inputs[0]
                error = _passed_on(node.layer, values[operand], errors[operand])
                if not isinstance(node.layer, ReLU):  # which rounds nothing
                    error = error + unit * _size(network, position, values)
            else:
                error = unit * _size(network, position, values)
                for k, i in enumerate(node.inputs):
                    if reads(node.layer, k):
                        error = error + linear(node.layer, k, errors[i], absolute=True)
            errors.append(error)
    return errors


def _passed_on(layer: Nonlinear, operand: Tensor, error: Tensor) -> Tensor:
    """What errors of the operand do to a nonlinear layer's value, to first order; at most all of it for a ReLU."""
    if isinstance(layer, ReLU):
        return error
    if isinstance(layer, Product):
        (x, y), (x_error, y_error) = halves(operand.abs(), 1), halves(error, 1)
        return x * y_error + y * x_error
    return layer.function.derivative(operand).abs() * error
