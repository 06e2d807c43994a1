"""The value of every node at one input, nearly correctly rounded at any depth, by multi-word arithmetic on float64.

The provable error bounds of an ordinary forward pass grow with the product of the layers' norms; after twenty layers
they are useless. Here a number is a sum of *words*,
`sum_k words[k] 2^(bits k)`, where `words[k]` is a float64 tensor of integers of at most `2^(bits - 1)` in magnitude. A
weight is cut into words as well, and a convolution of words by words is exact: all its terms and partial sums are
integers below 2^53, in whatever order they are added. (This holds for direct and im2col convolutions, the only ones
that torch has in float64 on a CPU; Winograd and Fourier methods use fractions. Everything here therefore runs on the
CPU.) Products of one exponent are added up, carried upwards, and only the leading words are kept. What is dropped goes
into an error bound, which the following layers multiply by their absolute weights. Words are added until every node's
error bound is of the size of its final rounding to float64.

This is the splitting of Ozaki, Ogita, Oishi and Rump (Error-free transformations of matrix multiplication, Numerical
Algorithms 59, 2012) with exponents common to a node, so that the words of a sum need no sorting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import singledispatch

import numpy as np
import torch
from torch import Tensor

from stbp_milp.network.graph import Network
from stbp_milp.network.layers import (
    Add,
    Concatenate,
    Convolution,
    Linear,
    Maximum,
    Permute,
    ReLU,
    Reshape,
    Scale,
    Select,
)
from stbp_milp.network.operations import apply, linear

FIRST_WORDS = 2  # The first run mostly measures how far errors grow.
_TOLERANCE = 2.0**-52  # relative to the largest of the value and the two below
_LARGEST = 2.0**-20  # times the node's largest value
_TERMS = 2.0**-60  # times the largest sum of the terms' magnitudes, for nodes whose terms cancel everywhere
_UPWARDS = 1.0 + 2.0**-16  # more than the rounding of a sum of 2^30 error bounds
_LEAST = 2.0**-1074  # the least positive float64
_CALL = 4096  # What one call costs at least, in multiplications.

Words = dict[int, Tensor]  # exponent -> integers of at most 2^(bits - 1), each (1, *shape); words of zeros are left out


@torch.no_grad()
def precise_values(
    network: Network, x: Tensor, most_work: float = 2.0**35
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]] | None:
    """Computes the values of all nodes at the input x, and a bound of |value - exact value| for each.

    The exact value is that of the function over the real numbers with the weights, offsets and factors that the
    layers hold. A bound is at most about 2^-52 times the value's magnitude, or, where that is more, times 2^-20 of the
    node's largest value, or times 2^-60 of what the terms sum up to without their signs.

    Args:
        x: one input, (1, *input_shape).
        most_work: multiplications of words that may be spent, all runs together.

    Returns:
        Two tuples of float64 tensors (1, *shape), one per node. None where more words would cost more than `most_work`,
        and where a number is infinite, undefined, or so large (about 2^1000) that its words are.

    Raises:
        NotImplementedError: the network has a layer without a rule here.
    """
    exact = network.to(torch.device("cpu")).to(torch.float64)
    clip = x.detach().to("cpu", torch.float64)
    longest = max((_length(node.layer, len(node.inputs)) for node in exact.nodes[1:]), default=1)
    budget, words = _Budget(most_work), FIRST_WORDS
    try:
        while True:
            bits = (52 - (longest * words).bit_length()) // 2 + 1
            if bits < 4:
                return None
            before = budget.left
            values, bounds, excess = _run(exact, clip, _Arithmetic(bits, words, budget))
            if excess <= 1.0:
                return tuple(v.to(x.device) for v in values), tuple(b.to(x.device) for b in bounds)
            more = math.ceil((math.log2(excess) + 1.0) / bits) if math.isfinite(excess) else words
            if (before - budget.left) * (words + more) / words > budget.left:
                return None
            words += more
    except _OutOfReachError:
        return None


class _OutOfReachError(Exception):
    """The work is more than allowed, or a number has no words."""


@dataclass
class _Budget:
    left: float  # multiplications

    def spend(self, multiplications: int) -> None:
        self.left -= max(multiplications, _CALL)
        if self.left < 0:
            raise _OutOfReachError


@dataclass(frozen=True)
class _Arithmetic:
    """How numbers are split: bits per word and words per number, such that every sum stays below 2^53."""

    bits: int
    most_words: int
    budget: _Budget = field(repr=False)


@dataclass(frozen=True, eq=False)
class _Number:
    """A node's value `sum_k words[k] 2^(bits k)`, with an error of at most `error`, and its rounding to float64."""

    words: Words
    error: Tensor  # (1, *shape), of the words
    value: Tensor  # (1, *shape)
    bound: Tensor  # (1, *shape), of the value: error and rounding
    terms: float  # largest sum of the magnitudes of a value's terms

    @property
    def magnitude(self) -> Tensor:
        """At least the magnitude of the words."""
        return self.value.abs() + self.bound

    def excess(self) -> float:
        """The largest ratio of an error bound to what is tolerated; NaN or infinite where it is unknown."""
        size = self.value.abs()
        least = max(_LARGEST * float(size.max()), _TERMS * self.terms)
        return float((self.bound / (_TOLERANCE * size.clamp(min=least) + 64 * _LEAST)).max())


def _run(network: Network, clip: Tensor, arithmetic: _Arithmetic) -> tuple[list[Tensor], list[Tensor], float]:
    """Values and bounds of all nodes, and the largest ratio of a bound to what is tolerated."""
    words, rest = _cut(clip, arithmetic)
    numbers = {0: _number(words, rest, float(clip.abs().max()), arithmetic)}
    values, bounds, excess = [numbers[0].value], [numbers[0].bound], [numbers[0].excess()]
    last_use = {i: position for position, node in enumerate(network.nodes) for i in node.inputs}
    for position, node in enumerate(network.nodes[1:], start=1):
        numbers[position] = number = _step(node.layer, [numbers[i] for i in node.inputs], arithmetic)
        values.append(number.value)
        bounds.append(number.bound)
        excess.append(number.excess())
        for i in node.inputs:
            if last_use[i] == position:
                numbers.pop(i, None)
    return values, bounds, float(np.max(excess))  # NaN if one of them is


# --- layers -----------------------------------------------------------------------------------------------


@singledispatch
def _length(layer: object, operands: int) -> int:
    """Terms of the longest sum of products."""
    raise NotImplementedError(f"precise values: no rule for layer {type(layer).__name__}")


@_length.register(ReLU)
@_length.register(Scale)
@_length.register(Add)
@_length.register(Maximum)
def _(layer: ReLU | Scale | Add | Maximum, operands: int) -> int:
    return operands


@_length.register(Reshape)
@_length.register(Permute)
@_length.register(Select)
@_length.register(Concatenate)
def _(layer: Reshape | Permute | Select | Concatenate, operands: int) -> int:
    return 1


@_length.register
def _(layer: Convolution, operands: int) -> int:
    return layer.weight[0].numel()


@_length.register
def _(layer: Linear, operands: int) -> int:
    return layer.weight.shape[1]


@singledispatch
def _step(layer: object, operands: Sequence[_Number], arithmetic: _Arithmetic) -> _Number:
    """The layer's value."""
    raise NotImplementedError(f"precise values: no rule for layer {type(layer).__name__}")


@_step.register
def _(layer: Convolution, operands: Sequence[_Number], arithmetic: _Arithmetic) -> _Number:
    def convolve(weight: Tensor, x: Tensor) -> Tensor:
        return linear(replace(layer, weight=weight), 0, x)

    bias = layer.bias.reshape(-1, *[1] * len(layer.stride))
    return _sum([(convolve, layer.weight, operands[0])], bias, _length(layer, 1), arithmetic)


@_step.register
def _(layer: Linear, operands: Sequence[_Number], arithmetic: _Arithmetic) -> _Number:
    def multiply(weight: Tensor, x: Tensor) -> Tensor:
        return linear(replace(layer, weight=weight), 0, x)

    return _sum([(multiply, layer.weight, operands[0])], layer.bias, _length(layer, 1), arithmetic)


@_step.register
def _(layer: Scale, operands: Sequence[_Number], arithmetic: _Arithmetic) -> _Number:
    return _sum([(torch.mul, layer.factor, operands[0])], layer.offset, 1, arithmetic)


@_step.register
def _(layer: Add, operands: Sequence[_Number], arithmetic: _Arithmetic) -> _Number:
    coefficients = torch.tensor(layer.coefficients, dtype=torch.float64)
    terms = [(torch.mul, c, x) for c, x in zip(coefficients, operands, strict=True)]
    return _sum(terms, torch.zeros((), dtype=torch.float64), len(terms), arithmetic)


@_step.register
def _(layer: Maximum, operands: Sequence[_Number], arithmetic: _Arithmetic) -> _Number:
    return _step(Add((1.0, 1.0)), operands[1:], arithmetic)


@_step.register(Reshape)
@_step.register(Permute)
@_step.register(Select)
@_step.register(Concatenate)
def _(layer: Reshape | Permute | Select | Concatenate, operands: Sequence[_Number], arithmetic: _Arithmetic) -> _Number:
    def moved(tensors: Sequence[Tensor]) -> Tensor:
        return apply(layer, tensors)

    exponents = sorted({k for x in operands for k in x.words})
    words = {k: moved([x.words.get(k, torch.zeros_like(x.value)) for x in operands]) for k in exponents}
    parts = ([getattr(x, name) for x in operands] for name in ("error", "value", "bound"))
    error, value, bound = map(moved, parts)
    return _Number(words, error, value, bound, max(x.terms for x in operands))


@_step.register
def _(layer: ReLU, operands: Sequence[_Number], arithmetic: _Arithmetic) -> _Number:
    """A ReLU never increases distances, so the error bound still holds; a value surely below 0 becomes exactly 0."""
    x = operands[0]
    sign = torch.zeros_like(x.value)
    for k in sorted(x.words):
        sign = torch.where(x.words[k] != 0, x.words[k], sign)  # The leading word outweighs all words below it.
    active, inactive = sign > 0, x.value < -x.bound
    words = {k: word * active for k, word in x.words.items()}
    return _number(
        {k: word for k, word in words.items() if bool(word.any())},
        x.error.masked_fill(inactive, 0.0),
        x.terms,
        arithmetic,
    )


def _sum(
    products: Sequence[tuple[Callable[[Tensor, Tensor], Tensor], Tensor, _Number]],
    constant: Tensor,
    length: int,
    arithmetic: _Arithmetic,
) -> _Number:
    """`sum of times(factor, x) over (times, factor, x)`, plus a constant that broadcasts to its shape.

    Exact value minus words: factor times the error of x, the factor's rest times the words of x, the constant's rest,
    and the words that are dropped here.
    """
    sums: Words = {}
    constants, rest = _cut(constant, arithmetic)
    error, terms = rest, constant.abs()
    for times, factor, x in products:
        factors, factor_rest = _cut(factor, arithmetic)
        absolute = factor.abs()
        terms = terms + times(absolute, x.value.abs())
        error = error + times(absolute, x.error)
        if bool(factor_rest.any()):
            error = error + times(factor_rest, x.magnitude)
        if bool(x.error.any()) or bool(factor_rest.any()):
            error = error + length * 4 * _LEAST  # products that underflow
        for k, factor_word in factors.items():
            for m, word in x.words.items():
                arithmetic.budget.spend(length * terms.numel())
                product = times(factor_word, word)
                sums[k + m] = sums[k + m].add_(product) if k + m in sums else product
    for k, word in constants.items():
        sums[k] = sums[k] + word if k in sums else word.expand_as(terms)
    words, dropped = _leading(_carried(sums, arithmetic), arithmetic)
    error = (error + dropped).expand_as(terms) * _UPWARDS
    return _number(words, error, float(terms.max()), arithmetic)


# --- words ------------------------------------------------------------------------------------------------


def _scaled(x: Tensor, exponent: int) -> Tensor:
    """`x 2^exponent`, rounded once where it is subnormal; also where 2^exponent itself is no float64."""
    with np.errstate(over="ignore", under="ignore"):
        return torch.as_tensor(np.ldexp(x.numpy(), exponent))


def _cut(tensor: Tensor, arithmetic: _Arithmetic) -> tuple[Words, Tensor]:
    """The leading words of float64 numbers, and the magnitude of what is left: both without error."""
    bits, words, rest = arithmetic.bits, Words(), tensor.detach()
    largest = float(rest.abs().max())
    if not math.isfinite(largest):
        raise _OutOfReachError
    top = math.ceil((math.frexp(largest)[1] - (bits - 1)) / bits)  # largest < 2^(bits top + bits - 1)
    for k in range(top, top - arithmetic.most_words, -1):
        if not bool(rest.any()):
            break
        word = _scaled(rest, -bits * k).round()
        rest = rest - _scaled(word, bits * k)
        if bool(word.any()):
            words[k] = word
    if not bool(rest.isfinite().all()):
        raise _OutOfReachError  # A word near 2^1024 was rounded up.
    return words, rest.abs()


def _carried(sums: Words, arithmetic: _Arithmetic) -> Words:
    """The same number in words; sums below 2^52 in magnitude leave room for the carry."""
    words, unit = Words(), 2.0**arithmetic.bits
    k, last = min(sums, default=0), max(sums, default=-1)
    carry: Tensor | None = None
    while k <= last or carry is not None:
        total = carry if k not in sums else sums[k] if carry is None else sums[k] + carry
        carry = None
        if total is not None:
            over = (total / unit).round()
            word = total - over * unit
            if bool(word.any()):
                words[k] = word
            carry = over if bool(over.any()) else None
        k += 1
    return words


def _leading(words: Words, arithmetic: _Arithmetic) -> tuple[Words, Tensor]:
    """The leading words of a node, and what the dropped ones come to at most."""
    least = max(words, default=0) - arithmetic.most_words + 1
    below = [word != 0 for k, word in words.items() if k < least]
    kept = {k: word for k, word in words.items() if k >= least}
    if not below:
        return kept, torch.zeros((), dtype=torch.float64)
    # At most 1/2 + 1/2 2^-bits + ... of the last unit kept; an underflow is made up for.
    unit = _scaled(torch.tensor(0.75, dtype=torch.float64), arithmetic.bits * least) + _LEAST
    return kept, torch.stack(below).any(0).to(torch.float64) * unit


def _number(words: Words, error: Tensor, terms: float, arithmetic: _Arithmetic) -> _Number:
    """Words with their sum rounded to float64.

    The errors of all additions are computed without error (Knuth's two-sum), added up and added to the sum.
    """
    value, low, spread, lost = (torch.zeros_like(error) for _ in range(4))
    for k in sorted(words, reverse=True):
        exponent = arithmetic.bits * k
        value, slip = _two_sum(value, _scaled(words[k], exponent))
        low = low + slip
        spread = spread + slip.abs()
        if exponent < -1074:
            lost = lost + _LEAST * words[k].sign().abs()
    value, slip = _two_sum(value, low)
    if not (bool(value.isfinite().all()) and math.isfinite(terms)):
        raise _OutOfReachError
    bound = (error + slip.abs() + len(words) * 2.0**-52 * spread + lost) * _UPWARDS
    # 2^-52 of a slip underflows below 2^-1022, where slips are multiples of 2^-1074 and their sums are exact.
    return _Number(words, error, value, bound, terms)


def _two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The rounded sum and its rounding error."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)
