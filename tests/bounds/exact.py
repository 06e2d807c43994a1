"""Networks in exact rational arithmetic, written without the package's own evaluation: the judge of rounding."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from stbp_milp.network.graph import Network
from stbp_milp.network.layers import Add, Linear, Maximum, ReLU, Reshape, Scale, Select

Vector = list[Fraction]


def exact_values(network: Network, x: Sequence[float]) -> list[Vector]:
    """The value of every node at `x`, flat; for networks of flat nodes."""
    values: list[Vector] = [[Fraction(float(v)) for v in x]]
    for node in network.nodes[1:]:
        operands = [values[i] for i in node.inputs]
        values.append(_value(node.layer, operands))
    return values


def _value(layer: object, operands: list[Vector]) -> Vector:
    first = operands[0]
    match layer:
        case Linear():
            rows = [[Fraction(w) for w in row] for row in layer.weight.tolist()]
            constants = [Fraction(b) for b in layer.bias.tolist()]
            return [
                sum((w * v for w, v in zip(row, first, strict=True)), b) for row, b in zip(rows, constants, strict=True)
            ]
        case ReLU():
            return [max(v, Fraction(0)) for v in first]
        case Reshape():
            return first
        case Select():
            return [first[i] for i in layer.index.tolist()]
        case Scale():
            factor, offset = (_flat(x, len(first)) for x in (layer.factor, layer.offset))
            return [f * v + o for f, v, o in zip(factor, first, offset, strict=True)]
        case Add():
            scaled = [
                [Fraction(c) * v for v in operand] for c, operand in zip(layer.coefficients, operands, strict=True)
            ]
            return [sum(terms, Fraction(0)) for terms in zip(*scaled, strict=True)]
        case Maximum():
            return [max(a, b) for a, b in zip(operands[0], operands[1], strict=True)]
    raise NotImplementedError(type(layer).__name__)


def _flat(x: Tensor, size: int) -> Vector:
    return (
        [Fraction(v) for v in x.expand(size).tolist()] if x.dim() <= 1 else [Fraction(v) for v in x.flatten().tolist()]
    )


def exact_form(row: Tensor, values: Vector) -> Fraction:
    return sum((Fraction(w) * v for w, v in zip(row.tolist(), values, strict=True)), Fraction(0))


def random_corners(lower: Tensor, upper: Tensor, count: int, seed: int) -> list[list[float]]:
    """Corners and points of a box, flat; the first ones are the two extreme corners."""
    generator = torch.Generator().manual_seed(seed)
    low, high = lower.flatten(), upper.flatten()
    points = [low.tolist(), high.tolist()]
    for k in range(count):
        share = torch.rand(low.shape, generator=generator, dtype=torch.float64)
        share = share.round() if k % 2 else share
        points.append((low + share * (high - low)).clamp(low, high).tolist())
    return points
