"""What both readers share of smooth operators: products of values, and what is composed of products and functions.

As in `assembly`, axes are those of the node.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stbp_milp.network import shaping
from stbp_milp.network.assembly import added, affine, along, divided, multiplied, product, relu, summed
from stbp_milp.network.functions import named
from stbp_milp.network.layers import Product, Scale, Smooth
from stbp_milp.network.shaping import Site, Value

_SINGLE = 2.0**-22  # a constant in float32 is as close as this to what it stands for
_PAIRS = 1 << 20  # differences of a softmax's operands that are written out


def smooth(site: Site, x: Value, function: str) -> Value:
    """A function of `network.functions`, elementwise."""
    return site.emit(Smooth(named(function)), x)


def times(site: Site, first: Value | Tensor, second: Value | Tensor) -> Value:
    """The elementwise product of two values, or of a value and a constant."""
    if not (isinstance(first, Value) and isinstance(second, Value)):
        return multiplied(site, first, second)
    if first.name == second.name:
        return smooth(site, first, "square")
    for own, gate in ((first, second), (second, first)):
        if _is_function_of(site, gate.name, "sigmoid", own.name):
            return smooth(site, own, "silu")
        if (share := _normal_share(site, gate, own)) is not None:
            return affine(site, smooth(site, own, "gelu"), 2 * share, 0.0)
    x, y = shaping.broadcast(site, [first, second])
    assert isinstance(x, Value)
    assert isinstance(y, Value)
    return site.emit(Product(), shaping.concatenated(site, [x, y], x.offset))


def _is_function_of(site: Site, name: str, function: str, x: str) -> bool:
    layer, operands = site.builder.made(name)
    return isinstance(layer, Smooth) and layer.function.name == function and operands == (x,)


def _normal_share(site: Site, gate: Value, x: Value) -> float | None:
    """Returns s if the gate is `s (1 + erf(x / sqrt 2))`, the way exporters write out GELU; None otherwise."""
    line, operands = site.builder.made(gate.name)
    if not (isinstance(line, Scale) and line.factor.numel() == 1 and bool((line.offset == line.factor).all())):
        return None
    layer, operands = site.builder.made(operands[0])
    if not (isinstance(layer, Smooth) and layer.function.name == "erf"):
        return None
    inner, operands = site.builder.made(operands[0])
    if not (isinstance(inner, Scale) and inner.factor.numel() == 1 and operands == (x.name,)):
        return None
    fits = bool((inner.offset == 0).all()) and abs(float(inner.factor) * math.sqrt(2.0) - 1) < _SINGLE
    return float(line.factor) if fits else None


def quotient(site: Site, first: Value | Tensor, second: Value | Tensor) -> Value:
    """A value or a constant over another; bounds are finite where a divisor that is a value is known to be positive."""
    if isinstance(second, Tensor):
        return divided(site, first, second)
    return times(site, first, smooth(site, second, "reciprocal"))


def power(site: Site, x: Value, exponent: float) -> Value:
    """`x ** exponent` for the exponents that networks use."""
    if exponent in (1.0, 2.0, 3.0):
        return x if exponent == 1.0 else times(site, x, x if exponent == 2.0 else smooth(site, x, "square"))
    names = {0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}
    if exponent in names:
        return smooth(site, x, names[exponent])
    raise site.unsupported(f"the exponent is {exponent:g}; expected one of 1, 2, 3, 0.5, -0.5 and -1")


def elu(site: Site, x: Value, alpha: float, scale: float = 1.0, input_scale: float = 1.0) -> Value:
    """`scale x` above 0 and `scale alpha (exp(input_scale x) - 1)` below."""
    if (alpha, input_scale) == (1.0, 1.0):
        return affine(site, smooth(site, x, "elu"), scale, 0.0)
    below = smooth(site, affine(site, relu(site, affine(site, x, -1.0, 0.0)), -input_scale, 0.0), "elu")
    return added(site, affine(site, relu(site, x), scale, 0.0), affine(site, below, scale * alpha, 0.0), 1.0)


def celu(site: Site, x: Value, alpha: float) -> Value:
    """x above 0 and `alpha (exp(x / alpha) - 1)` below."""
    return elu(site, x, alpha, 1.0, 1.0 / alpha)


def softplus(site: Site, x: Value, beta: float) -> Value:
    return affine(site, smooth(site, affine(site, x, beta, 0.0), "softplus"), 1.0 / beta, 0.0)


def softmax(site: Site, x: Value, axis: int) -> Value:
    """`exp(x_i) / sum_j exp(x_j)` along an axis of the node.

    Where the axis is short, `1 / (1 + sum_j exp(x_j - x_i))`: bounds of differences keep what cancels in them, and
    there is no product (compare Wei et al. 2023). Elsewhere by a product, around the mean.
    """
    count = x.shape[axis]
    if count == 1:
        return affine(site, x, 0.0, 1.0)
    if (count - 1) * math.prod(x.shape) <= _PAIRS:
        pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
        difference = torch.zeros(len(pairs), count, dtype=torch.float64)
        total = torch.zeros(count, len(pairs), dtype=torch.float64)
        for row, (i, j) in enumerate(pairs):
            difference[row, j], difference[row, i], total[i, row] = 1.0, -1.0, 1.0
        ratios = smooth(site, along(site, x, axis, difference), "exp")
        return smooth(site, along(site, ratios, axis, total, torch.ones(count, dtype=torch.float64)), "reciprocal")
    around = added(site, x, _mean(site, x, [axis]), -1.0)
    weights = smooth(site, around, "exp")
    return quotient(site, weights, summed(site, weights, [axis + x.offset], keep=True))


def log_softmax(site: Site, x: Value, axis: int) -> Value:
    """`x_i - log sum_j exp(x_j)` along an axis of the node; differences of its entries are those of x, exactly."""
    mean = _mean(site, x, [axis])
    weights = smooth(site, added(site, x, mean, -1.0), "exp")
    total = smooth(site, summed(site, weights, [axis + x.offset], keep=True), "log")
    return added(site, x, added(site, total, mean, 1.0), -1.0)


def normalised(site: Site, x: Value, axes: Sequence[int], epsilon: float) -> Value:
    """`(x - mean) / sqrt(variance + epsilon)`, with mean and variance over axes of the node."""
    centred = added(site, x, _mean(site, x, axes), -1.0)
    variance = _mean(site, smooth(site, centred, "square"), axes)
    return times(site, centred, smooth(site, affine(site, variance, 1.0, epsilon), "rsqrt"))


def group_normalised(site: Site, x: Value, groups: int, epsilon: float) -> Value:
    """Groups of channels, each normalised over its channels and places; the channels are the node's first axis."""
    if x.batch is None:
        raise site.unsupported(f"normalises groups of an operand of shape {x.whole} without a batch axis")
    channels, *places = x.shape
    if groups == channels:
        return normalised(site, x, range(1, len(x.shape)), epsilon)
    grouped = shaping.reshaped(site, x, (groups, channels // groups, *places))
    own = normalised(site, grouped, range(1, len(grouped.shape)), epsilon)
    return shaping.reshaped(site, own, x.shape)


def scaled(site: Site, x: Value, weight: Tensor | None, bias: Tensor | None, axis: int | None = None) -> Value:
    """`weight x + bias`, both along the last axes of the node, or along one axis."""

    def fitted(own: Tensor) -> Tensor:
        return own if axis is None else own.reshape(-1, *[1] * (len(x.shape) - axis - 1))

    if weight is not None:
        x = multiplied(site, x, fitted(weight))
    return x if bias is None else added(site, x, fitted(bias), 1.0)


def matrix_product(site: Site, first: Value | Tensor, second: Value | Tensor) -> Value:
    """`A B`; of two values, or of a value and a stack of matrices, a product per term, summed."""
    constant = next((own for own in (first, second) if isinstance(own, Tensor)), None)
    if constant is not None and math.prod(constant.shape[:-2]) == 1:
        return product(site, first, second)
    if min(len(shaping.whole_of(own)) for own in (first, second)) < 2:
        raise site.unsupported("multiplies a vector that depends on the input; reshape it to a matrix")
    left = shaping.layered(site, first, len(shaping.whole_of(first)))
    right = shaping.layered(site, second, len(shaping.whole_of(second)) - 2)
    terms = times(site, left, right)
    return summed(site, terms, [len(terms.whole) - 2], keep=False)


def attention(site: Site, query: Value, key: Value, value: Value, scale: float, mask: Tensor | None) -> Value:
    """`softmax(scale Q K^T + mask) V` over the last two axes."""
    rank = len(key.whole)
    turned = shaping.permuted(site, key, [*range(rank - 2), rank - 1, rank - 2])
    scores = affine(site, matrix_product(site, query, turned), scale, 0.0)
    if mask is not None:
        scores = added(site, scores, mask, 1.0)
    return matrix_product(site, softmax(site, scores, len(scores.shape) - 1), value)


def _mean(site: Site, x: Value, axes: Sequence[int]) -> Value:
    return summed(site, x, [axis + x.offset for axis in axes], keep=True, mean=True)
